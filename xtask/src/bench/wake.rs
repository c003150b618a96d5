//! `wake`: a stopped Machine to its first byte, armed and not, beside runc, minus the same program started bare; and
//! armed beside the same program behind `systemd-socket-activate`.
//!
//! Machines that are armed are on a host of their own, whose server differs in nothing else. All five are asked in the
//! same way from the same network: connect until it succeeds, 100 µs between two attempts, send one request, wait for
//! the first byte.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use perch_testkit::{Host, Image, Network, Process, wait_until};

use super::activate;
use super::figures::{Series, holds};
use super::rootfs::{self, Program};
use super::runc::Bundle;

/// Rounds for each program.
pub(crate) const ROUNDS: usize = 200;

/// Our overhead over the bare program, at most this share of runc's.
const LIMIT: f64 = 0.6;

/// Of the overhead of an armed start over the bare program, at most this share is left of a cold one's.
const ARMED_LIMIT: f64 = 0.5;

/// An armed start, through our proxy and with isolation, against who has neither.
const ACTIVATE_LIMIT: f64 = 1.0;

pub(super) const CONFIG: &str = "auto_stop_after = \"100ms\"\narmed_max = 0\n";
const ARMED: &str = "auto_stop_after = \"100ms\"\n";

/// Nothing here takes longer, not even Python on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_micros(100);

const SERVICE: &str = "\
  force_https = false
  auto_start_machines = true
  min_machines_running = 0
  auto_stop_after = '100ms'
";

/// Measures both programs; whether the promise holds for both.
pub(crate) fn run(rounds: usize) -> Result<bool> {
    let dir = tempfile::Builder::new().prefix("perch-bench-").tempdir()?;
    let cold = Host::start_with(Network::Open, CONFIG)?;
    let armed = Host::start_with(Network::Open, ARMED)?;
    let mut good = true;
    for program in [rootfs::native(dir.path())?, rootfs::python(dir.path())?] {
        let bundle = Bundle::new(dir.path(), &program)?;
        let cold = Contender::new(&cold, &program, dir.path())?;
        let armed = Contender::new(&armed, &program, dir.path())?;
        good &= measure(&program, &bundle, &cold, &armed, rounds)?;
    }
    Ok(good)
}

/// A host with the program as an app that is stopped when nobody uses it.
struct Contender<'a> {
    host: &'a Host,
    app: &'static str,
    address: SocketAddr,
}

impl<'a> Contender<'a> {
    fn new(host: &'a Host, program: &Program, dir: &Path) -> Result<Self> {
        let address = deploy(host, program, dir, "stop")?;
        Ok(Self { host, app: program.name, address })
    }

    fn wake(&self) -> Result<Duration> {
        wait_for(self.host, self.app, "stopped")?;
        self.host.inside(|| first_byte(self.address, Instant::now()))
    }

    fn await_armed(&self) -> Result<()> {
        wait_for(self.host, self.app, "stopped")?;
        let id = self.host.machines(self.app)?.pop().context("no Machine")?.id;
        let dir = format!("machines/{id}");
        wait_until("the Machine to be armed", PATIENCE, || {
            let (shims, all) = (self.host.perch_processes("shim"), self.host.processes());
            let own = shims.iter().find(|shim| shim.args.iter().any(|arg| arg.ends_with(&dir)));
            // PID 1 is there as such when the container is done.
            let is_init = |arg: &String| arg.ends_with("/init");
            let waits = |shim: &Process| {
                all.iter().any(|it| it.parent == shim.pid && it.args.first().is_some_and(is_init))
            };
            Ok(own.is_some_and(waits).then_some(()))
        })
    }

    /// From its armed state. That it was armed is in the event of the start.
    fn wake_armed(&self) -> Result<Duration> {
        let took = self.host.inside(|| first_byte(self.address, Instant::now()))?;
        let machine = self.host.machines(self.app)?.pop().context("no Machine")?;
        let events = machine.value["events"].as_array().context("no events")?;
        let start = events.iter().find(|event| event["type"] == "start").context("no start")?;
        if start["request"]["armed"] != true {
            bail!("{} was not armed: {start}", self.app);
        }
        Ok(took)
    }
}

/// Deploys a program as an app of its name that falls asleep in this way.
pub(super) fn deploy(
    host: &Host,
    program: &Program,
    dir: &Path,
    auto_stop: &str,
) -> Result<SocketAddr> {
    let argv: Vec<&str> = program.argv.iter().map(String::as_str).collect();
    let port = format!("PORT={}", program.port);
    let image = Image::directory(&program.root)?.entrypoint(&argv).env(&[&port]);
    let image = image.write(&dir.join(format!("{}-image", program.name)))?;
    let text = format!(
        "app = '{}'\n[build]\n  image = '{image}'\n[http_service]\n  internal_port = {}\n  \
         auto_stop_machines = '{auto_stop}'\n{SERVICE}",
        program.name, program.port
    );
    let app = host.app_dir(program.name, &text)?;
    let args =
        ["launch", "--flycast", "--ha=false", "--copy-config", "--name", program.name, "--yes"];
    host.fly_in(&app, &args)?.ok()?;
    let ip: IpAddr = host.flycast(program.name)?.parse()?;
    Ok(SocketAddr::new(ip, 80))
}

fn measure(
    program: &Program,
    bundle: &Bundle,
    cold: &Contender<'_>,
    armed: &Contender<'_>,
    rounds: usize,
) -> Result<bool> {
    let (mut bare, mut runc) = (Series::default(), Series::default());
    let (mut ours, mut ready) = (Series::default(), Series::default());
    let mut activated = Series::default();
    for _ in 0..rounds {
        // Nothing is made ready while the others are measured.
        armed.await_armed()?;
        bare.push_ms(cold.host.inside(|| bare_round(program))?);
        runc.push_ms(cold.host.inside(|| runc_round(program, bundle))?);
        activated.push_ms(cold.host.inside(|| activate::round(program))?);
        ours.push_ms(cold.wake()?);
        ready.push_ms(armed.wake_armed()?);
    }
    bare.print(&format!("{}: bare", program.name), "ms");
    runc.print(&format!("{}: runc create+start", program.name), "ms");
    ours.print(&format!("{}: perch", program.name), "ms");
    let over = |series: &Series| series.median() - bare.median();
    ready.print(&format!("{}: perch, armed", program.name), "ms");
    activated.print(&format!("{}: socket-activate", program.name), "ms");
    println!(
        "overhead: perch {:.2} ms, armed {:.2} ms, runc {:.2} ms",
        over(&ours),
        over(&ready),
        over(&runc)
    );
    let share = over(&ready) / over(&ours);
    let mut good = holds(&format!("{}: armed / cold", program.name), share, ARMED_LIMIT);
    let ratio = ready.median() / activated.median();
    good &= holds(&format!("{}: armed / activate", program.name), ratio, ACTIVATE_LIMIT);
    Ok(good & holds(&format!("{}: perch / runc", program.name), over(&ours) / over(&runc), LIMIT))
}

/// Waits until all Machines of the app are in this state.
pub(super) fn wait_for(host: &Host, app: &str, state: &str) -> Result<()> {
    wait_until(&format!("the Machine to be {state}"), PATIENCE, || {
        let list = host.api(&format!("/v1/apps/{app}/machines"))?;
        let machines = list.as_array().context("not a list of Machines")?;
        Ok(machines.iter().all(|machine| machine["state"] == state).then_some(()))
    })
}

fn bare_round(program: &Program) -> Result<Duration> {
    let started = Instant::now();
    let child = Command::new(&program.bare[0])
        .args(&program.bare[1..])
        .env("PORT", program.port.to_string())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", program.bare[0]))?;
    let _killed = Killed(child);
    first_byte(local(program), started)
}

fn runc_round(program: &Program, bundle: &Bundle) -> Result<Duration> {
    bundle.refresh()?;
    let started = Instant::now();
    bundle.start()?;
    let took = first_byte(local(program), started);
    bundle.delete()?;
    took
}

pub(super) fn local(program: &Program) -> SocketAddr {
    ([127, 0, 0, 1], program.port).into()
}

/// Kills the process at the end of the round.
pub(super) struct Killed(pub(super) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The time from `started` to the first byte of an answer.
pub(super) fn first_byte(address: SocketAddr, started: Instant) -> Result<Duration> {
    let mut stream = connect(address, started)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("reading the first byte")?;
    let took = started.elapsed();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    // "HTTP/1.1 200"
    if rest.get(8..11) != Some(b"200") {
        bail!("{address} answered {:?}", String::from_utf8_lossy(&rest));
    }
    Ok(took)
}

fn connect(address: SocketAddr, started: Instant) -> Result<TcpStream> {
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) if PATIENCE < started.elapsed() => return Err(error.into()),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}
