//! What the quickstart shows, step by step: each step is a command that a user would type, with
//! its real output.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use super::image;
use super::stage::Stage;

/// The app that sleeps.
const BACKEND: &str = "backend";
/// The app that calls it.
const CALLER: &str = "caller";
/// Idle time before sleep in the play; the default is five minutes.
const AUTO_STOP_AFTER: &str = "2s";
/// An app that does not fall asleep by then never will.
const SLEEP_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks at the Machines' states.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long one call may take, wake included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the calls took, as the calling app measured them.
#[derive(Debug, Default)]
struct Times {
    woken_ms: f64,
    warm_ms: f64,
}

/// Plays all steps; blocks.
///
/// # Errors
/// When a step does not do what it should; the message says which and why.
pub(crate) fn play(stage: &Stage) -> anyhow::Result<()> {
    let layout = stage.work_dir("image")?;
    image::write_layout(&layout)?;
    let backend = stage.work_dir(BACKEND)?;
    launch_backend(stage, &backend, &layout)?;
    launch_caller(stage, &layout)?;
    let times = sleep_and_wake(stage, &backend)?;
    println!("\n==> Done: every step passed");
    println!(
        "    first request to the sleeping app: {:>8.1} ms, start of its program included",
        times.woken_ms
    );
    println!("    next request, while it is awake:   {:>8.1} ms", times.warm_ms);
    Ok(())
}

/// Prints how to go on from another terminal.
pub(crate) fn invitation(stage: &Stage) {
    println!("\nThe server stays up. In another terminal, as root:\n");
    println!("  export PERCH_SOCKET={}", stage.socket().display());
    println!("  {} fly status -a {BACKEND}", stage.exe().display());
    println!("  {} fly proxy 8080:80 {BACKEND}.flycast -a {BACKEND}", stage.exe().display());
    println!("\nCtrl-C here ends it and puts everything back.");
}

fn launch_backend(stage: &Stage, dir: &Path, layout: &Path) -> anyhow::Result<()> {
    title("A private app, by the blueprint's commands");
    let image = format!("oci:{}", layout.display());
    let mut args = vec!["launch", "--image", &image, "--name", BACKEND, "--flycast", "--no-deploy"];
    args.extend(["--internal-port", "8081", "--env", "PORT=8081", "--yes"]);
    show(stage, dir, &args)?;
    shorten_idle_time(&dir.join("fly.toml"))?;
    show(stage, dir, &["deploy"])?;
    let ips = show(stage, dir, &["ips", "list"])?;
    anyhow::ensure!(ips.contains("\tprivate"), "the app has no private address");
    Ok(())
}

/// The one edit of the file that the play needs.
fn shorten_idle_time(file: &Path) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))?;
    let line = format!("  auto_stop_after = '{AUTO_STOP_AFTER}'");
    let edited = text.replacen("[http_service]\n", &format!("[http_service]\n{line}\n"), 1);
    anyhow::ensure!(edited != text, "{} has no [http_service]", file.display());
    println!(
        "\n# in fly.toml, under [http_service], so that you need not wait five minutes:\n{line}"
    );
    fs::write(file, edited).with_context(|| format!("could not write {}", file.display()))
}

fn launch_caller(stage: &Stage, layout: &Path) -> anyhow::Result<()> {
    title("Another app, which will call it");
    let dir = stage.work_dir(CALLER)?;
    let image = format!("oci:{}", layout.display());
    let mut args = vec!["launch", "--image", &image, "--name", CALLER, "--flycast", "--ha=false"];
    args.extend(["--internal-port", "8080", "--yes"]);
    show(stage, &dir, &args)?;
    Ok(())
}

fn sleep_and_wake(stage: &Stage, dir: &Path) -> anyhow::Result<Times> {
    let caller = Caller::open(stage)?;
    let url = format!("http://{BACKEND}.flycast/");
    title("Nobody calls: the app goes to sleep");
    await_sleep(stage, dir)?;
    title("The other app calls: the app is woken, and the request is answered");
    let woken_ms = caller.call(&url)?;
    let warm_ms = caller.call(&url)?;
    title("Asleep again, and woken by its address");
    await_sleep(stage, dir)?;
    caller.call(&format!("http://[{}]/", private_address(stage, dir)?))?;
    Ok(Times { woken_ms, warm_ms })
}

fn title(text: &str) {
    println!("\n==> {text}");
}

/// Runs a `fly` command, prints it with its output as it comes, and answers what it said on stdout.
fn show(stage: &Stage, dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    println!("\n$ fly {}", args.join(" "));
    let mut child = stage
        .fly(dir, args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start fly")?;
    let stdout = child.stdout.take().expect("stdout was asked for as a pipe");
    let mut said = String::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("could not read from fly")?;
        println!("{line}");
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().context("could not wait for fly")?;
    anyhow::ensure!(status.success(), "`fly {}` failed ({status})", args.join(" "));
    Ok(said)
}

/// Runs a `fly … --json` command quietly.
fn query(stage: &Stage, dir: &Path, args: &[&str]) -> anyhow::Result<Value> {
    let output =
        stage.fly(dir, args).stdin(Stdio::null()).output().context("could not start fly")?;
    anyhow::ensure!(
        output.status.success(),
        "`fly {}` failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`fly {}` did not print JSON", args.join(" ")))
}

fn await_sleep(stage: &Stage, dir: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let machines = query(stage, dir, &["machine", "list", "--json"])?;
        let machines = machines.as_array().context("`fly machine list --json` printed no list")?;
        if machines.iter().all(|machine| machine["state"] == "stopped") {
            break;
        }
        anyhow::ensure!(
            began.elapsed() < SLEEP_DEADLINE,
            "the app did not go to sleep within {} s",
            SLEEP_DEADLINE.as_secs()
        );
        std::thread::sleep(LOOK_INTERVAL);
    }
    println!("    asleep after {:.1} s", began.elapsed().as_secs_f64());
    show(stage, dir, &["status"])?;
    Ok(())
}

fn private_address(stage: &Stage, dir: &Path) -> anyhow::Result<String> {
    let ips = query(stage, dir, &["ips", "list", "--json"])?;
    let private = ips.as_array().into_iter().flatten().find(|ip| ip["Type"] == "private_v6");
    let address = private.and_then(|ip| ip["Address"].as_str());
    Ok(address.context("the app has no private address")?.to_owned())
}

/// The calling app, reached through `fly proxy`; the calls to the sleeping app are its own.
struct Caller {
    proxy: Child,
    port: u16,
}

impl Caller {
    fn open(stage: &Stage) -> anyhow::Result<Self> {
        let free = TcpListener::bind(("127.0.0.1", 0)).context("could not find a free port")?;
        let port = free.local_addr()?.port();
        drop(free);
        let (ports, host) = (format!("{port}:80"), format!("{CALLER}.flycast"));
        let args = ["proxy", &ports, &host, "-a", CALLER];
        title("A way from here to the calling app");
        println!("\n$ fly {} &", args.join(" "));
        let dir: PathBuf = stage.work_dir(CALLER)?;
        let mut proxy = stage
            .fly(&dir, &args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start fly proxy")?;
        let mut line = String::new();
        let stdout = proxy.stdout.take().expect("stdout was asked for as a pipe");
        BufReader::new(stdout).read_line(&mut line).context("could not read from fly proxy")?;
        print!("{line}");
        anyhow::ensure!(line.starts_with("Proxying"), "fly proxy did not begin");
        Ok(Self { proxy, port })
    }

    /// Has the calling app call `url`; answers the milliseconds that it measured.
    fn call(&self, url: &str) -> anyhow::Result<f64> {
        let path = format!("/fetch?url={url}");
        println!("\n$ curl 'http://127.0.0.1:{}{path}'", self.port);
        let body = get(self.port, &path).with_context(|| format!("the call to {url} failed"))?;
        println!("{}", body.trim_end());
        let field = |name: &str| body.lines().find_map(|line| line.strip_prefix(name));
        anyhow::ensure!(
            field("status: ") == Some("200"),
            "the call to {url} was not answered with 200: {body}"
        );
        let ms = field("ms: ").and_then(|text| text.parse().ok());
        ms.with_context(|| format!("the calling app measured no time: {body}"))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let ended = self.proxy.kill().and_then(|()| self.proxy.wait());
        if let Err(error) = ended {
            eprintln!("warning: could not end fly proxy: {error}");
        }
    }
}

/// The smallest HTTP client: one request, one connection.
fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(CALL_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {CALLER}.flycast\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    anyhow::ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}
