//! `warm`: CPU per request of the proxy beside HAProxy, 64 bytes, 64 connections.
//!
//! Both have the same shape: client namespace, veth, proxy namespace, veth, upstream namespace;
//! IPv6 in front, IPv4 behind. The proxy has core 0; `wrk` and the upstream share core 1. Each upstream
//! has a session of its own and a cgroup with the same limits, as a Machine has: by them the kernel shares a core between
//! programs, and how often the upstream has to be woken is charged to who wakes it.
//!
//! CPU is what the kernel charges the proxy's process for, by one rule for both: its own code, and what
//! its writes set going in the receiver's stack. Rules that only callers' packets meet are charged to `wrk`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use perch_testkit::{Host, Image, Process, get, wait_until};

use super::UPSTREAM;
use super::figures::{Series, holds};
use crate::shell;

/// Rounds of both contenders.
pub(crate) const ROUNDS: usize = 7;

const LIMIT: f64 = 1.0;
const SECONDS: &str = "5";
const CONNECTIONS: &str = "64";
const PORT: &str = "8080";
/// What rules over CPU time in a cgroup of either version.
const CPU_FILES: [&str; 4] = ["cpu.shares", "cpu.cfs_quota_us", "cpu.weight", "cpu.max"];

/// Linux counts CPU time for `/proc` in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

const HAPROXY: &str = "\
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  bind [fd99::2]:80
  option forwardfor
  default_backend back
backend back
  server upstream 10.99.0.1:8080
";

/// Measures both; whether the promise holds.
pub(crate) fn run(rounds: usize) -> Result<bool> {
    let host = Host::start()?;
    let address = deploy(&host)?;
    let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?.pid;
    let machine = machine_pid(&host)?;
    let rival = Rival::start(&host, machine)?;
    pin(proxy, "0")?;
    pin_all_but(&host, proxy)?;
    let (mut ours, mut theirs) = (Contender::default(), Contender::default());
    for _ in 0..rounds {
        theirs.round(&host, rival.haproxy.id(), "[fd99::2]")?;
        ours.round(&host, proxy.cast_unsigned(), &format!("[{address}]"))?;
    }
    theirs.print("haproxy");
    ours.print("perch");
    let rate = ours.rate.median() / theirs.rate.median();
    println!("{:<28} {rate:.2}x", "requests/s: perch / haproxy");
    Ok(holds("CPU/request: perch / haproxy", ours.cpu.median() / theirs.cpu.median(), LIMIT))
}

/// The figures of one proxy.
#[derive(Default)]
struct Contender {
    cpu: Series,
    rate: Series,
}

impl Contender {
    fn round(&mut self, host: &Host, pid: u32, authority: &str) -> Result<()> {
        let before = cpu_seconds(pid)?;
        let requests = load(host, &format!("http://{authority}/"))?;
        let used = cpu_seconds(pid)? - before;
        self.cpu.push(used * 1e6 / requests);
        self.rate.push(requests / SECONDS.parse::<f64>()?);
        Ok(())
    }

    fn print(&self, name: &str) {
        self.cpu.print(&format!("{name}: CPU per request"), "us");
        self.rate.print(&format!("{name}: requests per second"), "/s");
    }
}

/// Runs `wrk`; how many requests were answered.
fn load(host: &Host, url: &str) -> Result<f64> {
    let duration = format!("-d{SECONDS}s");
    let connections = format!("-c{CONNECTIONS}");
    let output = host.run("taskset", &["-c", "1", "wrk", "-t1", &connections, &duration, url])?;
    let text = output.ok()?;
    if text.contains("Non-2xx") {
        bail!("not every answer was good:\n{text}");
    }
    let line = text.lines().find(|line| line.contains(" requests in "));
    let count = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
    count.with_context(|| format!("wrk does not say how many requests:\n{text}"))
}

/// User and system time of a process with all its threads.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    let fields: Vec<&str> = stat.rsplit_once(") ").context("stat")?.1.split(' ').collect();
    // Fields 14 and 15 of the file; the two before the name's end are cut off.
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

fn deploy(host: &Host) -> Result<String> {
    let own = std::env::current_exe()?;
    let dir = host.dir().join("root");
    std::fs::create_dir(&dir)?;
    std::fs::copy(own, dir.join("upstream"))?;
    let image = Image::directory(&dir)?.entrypoint(&["/upstream", UPSTREAM, PORT]);
    let image = image.write(&host.dir().join("image"))?;
    let text = format!(
        "app = 'warm'\n[build]\n  image = '{image}'\n[http_service]\n  internal_port = {PORT}\n  \
         force_https = false\n  auto_stop_machines = 'off'\n  auto_start_machines = true\n  \
         [http_service.concurrency]\n    type = 'requests'\n    soft_limit = 1000\n"
    );
    let app = host.app_dir("warm", &text)?;
    let args = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", "warm", "--yes"];
    host.fly_in(&app, &args)?.ok()?;
    host.flycast("warm")
}

/// HAProxy and its upstream in namespaces like ours.
struct Rival {
    spaces: [Child; 2],
    upstream: Child,
    haproxy: Child,
    cgroup: Twin,
}

impl Rival {
    fn start(host: &Host, like: i32) -> Result<Self> {
        let spaces = [space()?, space()?];
        let (front, back) = (spaces[0].id(), spaces[1].id());
        connect(host, front, back)?;
        let own = std::env::current_exe()?.to_string_lossy().into_owned();
        let upstream = ["setsid", "taskset", "-c", "1", &own, UPSTREAM, PORT];
        let upstream = enter(back, &upstream).spawn()?;
        let cgroup = Twin::of(like, upstream.id())?;
        let config = host.dir().join("haproxy.cfg");
        std::fs::write(&config, HAPROXY)?;
        let haproxy = start_haproxy(front, &config)?;
        let rival = Self { spaces, upstream, haproxy, cgroup };
        wait_until("an answer through HAProxy", Duration::from_secs(10), || {
            let address = "[fd99::2]:80".parse()?;
            host.inside(|| {
                get(address, "/", Duration::from_secs(1)).map(|a| (a.status == 200).then_some(()))
            })
        })?;
        Ok(rival)
    }
}

fn start_haproxy(space: u32, config: &Path) -> Result<Child> {
    let config = config.to_string_lossy().into_owned();
    let mut command = enter(space, &["taskset", "-c", "0", "haproxy", "-q", "-db", "-f", &config]);
    command.spawn().context("starting haproxy")
}

/// A network namespace that lives as long as the process, and not longer than we do.
fn space() -> Result<Child> {
    let program = ["--pdeathsig", "KILL", "unshare", "--net", "--", "sleep", "infinity"];
    let child = Command::new("setpriv").args(program).spawn().context("starting unshare")?;
    let link = format!("/proc/{}/ns/net", child.id());
    let outer = std::fs::read_link("/proc/self/ns/net")?;
    wait_until("a network namespace", Duration::from_secs(5), || {
        Ok((std::fs::read_link(&link)? != outer).then_some(()))
    })?;
    Ok(child)
}

fn enter(space: u32, program: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &space.to_string(), "--net", "--"]).args(program);
    command.stdin(Stdio::null());
    command
}

/// Two veth pairs: the host and the front by IPv6, the front and the back by IPv4.
fn connect(host: &Host, front: u32, back: u32) -> Result<()> {
    let ip = |space: Option<u32>, line: &str| -> Result<()> {
        let words: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
        match space {
            Some(space) => shell::output(&mut enter(space, &words)).map(drop),
            None => host.inside(|| shell::output(Command::new("ip").args(&words[1..])).map(drop)),
        }
    };
    ip(None, &format!("link add bench0 type veth peer name front0 netns {front}"))?;
    ip(None, "addr add fd99::1/64 dev bench0 nodad")?;
    ip(None, "link set bench0 up")?;
    ip(Some(front), "addr add fd99::2/64 dev front0 nodad")?;
    ip(Some(front), "link set front0 up")?;
    ip(Some(front), &format!("link add back0 type veth peer name up0 netns {back}"))?;
    ip(Some(front), "addr add 10.99.0.0/31 dev back0")?;
    ip(Some(front), "link set back0 up")?;
    ip(Some(back), "addr add 10.99.0.1/31 dev up0")?;
    ip(Some(back), "link set up0 up")
}

/// Gives all threads of a process one core.
pub(super) fn pin(pid: i32, core: &str) -> Result<()> {
    shell::output(Command::new("taskset").args(["-a", "-c", "-p", core, &pid.to_string()]))
        .map(drop)
}

/// Everything of Perch but the proxy shares core 1 with the client.
fn pin_all_but(host: &Host, proxy: i32) -> Result<()> {
    for process in host.processes() {
        if process.pid != proxy && process.state != 'Z' {
            pin(process.pid, "1")?;
        }
    }
    Ok(())
}

impl Drop for Rival {
    fn drop(&mut self) {
        let [front, back] = &mut self.spaces;
        for child in [&mut self.haproxy, &mut self.upstream, front, back] {
            drop(child.kill());
            drop(child.wait());
        }
        drop(std::fs::remove_dir(&self.cgroup.0));
    }
}

/// The program of the only Machine.
fn machine_pid(host: &Host) -> Result<i32> {
    let upstream = |process: &Process| process.args.first().is_some_and(|it| it == "/upstream");
    host.processes().iter().find(|it| upstream(it)).map(|it| it.pid).context("no upstream runs")
}

/// A cgroup beside a Machine's own, with the same rules for CPU time.
struct Twin(PathBuf);

impl Twin {
    fn of(like: i32, member: u32) -> Result<Self> {
        let own = cpu_cgroup(like)?;
        let twin = Self(own.with_file_name("warm-rival"));
        std::fs::create_dir(&twin.0).with_context(|| twin.0.display().to_string())?;
        for file in CPU_FILES {
            if let Ok(value) = std::fs::read(own.join(file)) {
                std::fs::write(twin.0.join(file), value)?;
            }
        }
        std::fs::write(twin.0.join("cgroup.procs"), member.to_string())?;
        Ok(twin)
    }
}

/// The cgroup that has the CPU controller: of version 1 where there is one.
fn cpu_cgroup(pid: i32) -> Result<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let lines: Vec<(&str, &str)> = lines.collect();
    let of = |wanted: fn(&str) -> bool| lines.iter().find(|(names, _)| wanted(names));
    let found = of(|names| names.split(',').any(|it| it == "cpu")).or_else(|| of(str::is_empty));
    let (names, path) = found.context("the Machine is in no cgroup")?;
    Ok(Path::new("/sys/fs/cgroup").join(names).join(path.trim_start_matches('/')))
}
