//! What the tests share: running on a host, and the apps that they deploy.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Image, Network, Process, Response, skip_reason};

/// Idle time after which Machines sleep in tests; long enough for a slow box to see them awake.
pub(crate) const QUICK_SLEEP: &str = "auto_stop_after = \"1s\"\n";

/// Longer than any sleep or wake in these tests takes.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The snippet of the blueprint, word for word.
pub(crate) const SNIPPET: &str = "\
[http_service]
  # the port on which your app receives requests over the 6PN
  internal_port = 8081
  # must be false - Flycast is http-only
  force_https = false
  # Fly Proxy stops Machines based on traffic
  auto_stop_machines = \"stop\"
  # Fly Proxy starts Machines based on traffic
  auto_start_machines = true
  # Number of Machines to keep running in primary region
  min_machines_running = 0
  [http_service.concurrency]
    type = \"requests\"
    # Fly Proxy uses this limit to determine Machine excess capacity
    soft_limit = 250
";

/// A service whose Machines stay awake.
pub(crate) const AWAKE: &str = "\
[http_service]
  internal_port = 8081
  force_https = false
  auto_stop_machines = \"off\"
  auto_start_machines = true
";

/// Runs a test on a host with a server that lets Machines sleep quickly.
pub(crate) fn on_host(test: impl FnOnce(&mut Host) -> Result<()>) {
    on(|| Host::start_with(Network::Open, QUICK_SLEEP), test);
}

/// Runs a test on a host that `make` makes; shows the server's log if it fails.
pub(crate) fn on(make: impl FnOnce() -> Result<Host>, test: impl FnOnce(&mut Host) -> Result<()>) {
    if let Some(reason) = skip_reason() {
        println!("skipped: {reason}");
        return;
    }
    let mut host = match make() {
        Ok(host) => host,
        Err(error) => panic!("no host: {error:#}"),
    };
    if let Err(error) = test(&mut host) {
        panic!("{error:#}\n--- server log\n{}", host.server_log_tail());
    }
}

/// A `fly.toml` of an app with this image and these sections.
pub(crate) fn fly_toml(app: &str, image: &str, sections: &str) -> String {
    format!("app = '{app}'\nprimary_region = 'lcl'\n\n[build]\n  image = '{image}'\n\n{sections}")
}

/// Writes the image of the example app, which listens on port 8081 as the snippet says.
pub(crate) fn hello_image(host: &Host) -> Result<String> {
    let dir = host.dir().join("hello-image");
    if dir.exists() {
        return Ok(format!("oci:{}", dir.display()));
    }
    Image::hello(8081)?.write(&dir)
}

/// Writes an image that runs a script of busybox.
pub(crate) fn shell_image(host: &Host, name: &str, script: &str) -> Result<String> {
    Image::shell(script)?.write(&host.dir().join(format!("{name}-image")))
}

/// Deploys the example app as a private app and returns its Flycast address.
pub(crate) fn private_app(host: &Host, app: &str, sections: &str) -> Result<String> {
    let image = hello_image(host)?;
    private_app_of(host, app, &image, sections)
}

/// Deploys an image as a private app and returns its Flycast address.
pub(crate) fn private_app_of(
    host: &Host,
    app: &str,
    image: &str,
    sections: &str,
) -> Result<String> {
    let dir = host.app_dir(app, &fly_toml(app, image, sections))?;
    let args = ["launch", "--flycast", "--copy-config", "--name", app, "--yes"];
    host.fly_in(&dir, &args)?.ok()?;
    host.flycast(app)
}

/// The same with one Machine.
pub(crate) fn one_machine_of(
    host: &Host,
    app: &str,
    image: &str,
    sections: &str,
) -> Result<String> {
    let dir = host.app_dir(app, &fly_toml(app, image, sections))?;
    let args = ["launch", "--flycast", "--copy-config", "--name", app, "--ha=false", "--yes"];
    host.fly_in(&dir, &args)?.ok()?;
    host.flycast(app)
}

/// Waits until the app sleeps.
pub(crate) fn wait_asleep(host: &Host, app: &str) -> Result<()> {
    host.wait_all(app, "stopped", SOON)
}

/// Fails unless the answer is 200 and contains `part`.
pub(crate) fn check_answer(answer: &Response, part: &str) -> Result<()> {
    ensure!(answer.status == 200, "not answered with 200: {answer:?}");
    ensure!(answer.body.contains(part), "`{part}` is not in the answer: {answer:?}");
    Ok(())
}

/// Fails unless a connection from the host is refused, which is not the same as lost.
pub(crate) fn check_refused(host: &Host, address: &str, port: u16) -> Result<()> {
    let target = SocketAddr::new(address.parse()?, port);
    let called = host.inside(|| Ok(TcpStream::connect_timeout(&target, SOON)))?;
    let error = called.err().with_context(|| format!("{target} takes connections"))?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{target}: not refused, but: {error}");
    Ok(())
}

/// The processes of a Machine, by the environment that the platform gives them.
pub(crate) fn machine_processes(host: &Host, id: &str) -> Vec<Process> {
    let mark = format!("FLY_MACHINE_ID={id}");
    let mut found = host.processes();
    found.retain(|process| {
        let environ = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
    });
    found
}

/// Runs a program in the network of a Machine, as somebody who took it over would.
pub(crate) fn run_in_machine(
    host: &Host,
    id: &str,
    program: &[&str],
) -> Result<perch_testkit::Output> {
    let process = machine_processes(host, id).pop().context("the Machine does not run")?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    let theirs = std::fs::read_link(format!("/proc/{}/ns/net", process.pid))?;
    ensure!(own != theirs, "the Machine is in the network of the test");
    let output = std::process::Command::new("nsenter")
        .args(["--target", &process.pid.to_string(), "--net", "--"])
        .args(program)
        .output()?;
    Ok(perch_testkit::Output::new(format!("in {id}: {}", program.join(" ")), &output))
}
