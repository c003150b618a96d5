//! Rivals of the proxy in namespaces like ours, beside the same upstream, and what all of them cost.
//!
//! All have the same shape: client namespace, veth, proxy namespace, veth, upstream namespace; IPv6 in front, IPv4 behind. The
//! upstream of the rivals has a session of its own and a cgroup with the limits that a Machine has: by them the kernel
//! shares a core between programs, and how often the upstream has to be woken is charged to who wakes it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use perch_testkit::{Entrance, Host, Image, Process, get, wait_until};

use super::UPSTREAM;
use crate::shell;

/// Where the upstream answers HTTP; the port after it streams zeros, and the next one answers calls of gRPC.
pub(super) const PORT: &str = "8080";
/// What rules over CPU time in a cgroup of either version.
const CPU_FILES: [&str; 4] = ["cpu.shares", "cpu.cfs_quota_us", "cpu.weight", "cpu.max"];
/// Linux counts CPU time for `/proc` in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// A program that forwards, and how it is told to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program {
    /// How it is called in what is printed.
    pub(super) name: &'static str,
    /// Before the path of its configuration; `@SELF@` is this program.
    pub(super) command: &'static [&'static str],
    /// Its configuration; it listens at `[fd99::2]`, the upstream is at `10.99.0.1`, and `@DIR@` is its own to write to.
    pub(super) config: &'static str,
    /// Where it answers HTTP.
    pub(super) port: u16,
}

/// User and system time of a process with all its threads.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    let fields: Vec<&str> = stat.rsplit_once(") ").context("stat")?.1.split(' ').collect();
    // Fields 14 and 15 of the file; the two before the name's end are cut off.
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// Makes the app `bench` of one Machine with the upstream that is always awake: HTTP at port 80 of its Flycast address, which is
/// returned, the stream at 81, gRPC at 82.
pub(super) fn deploy(host: &Host) -> Result<String> {
    let own = std::env::current_exe()?;
    let dir = host.dir().join("root");
    std::fs::create_dir(&dir)?;
    std::fs::copy(own, dir.join("upstream"))?;
    let image = Image::directory(&dir)?.entrypoint(&["/upstream", UPSTREAM, PORT]);
    let image = image.write(&host.dir().join("image"))?;
    let text = format!(
        "app = 'bench'\n[build]\n  image = '{image}'\n[http_service]\n  internal_port = {PORT}\n  \
         force_https = false\n  auto_stop_machines = 'off'\n  auto_start_machines = true\n  \
         [http_service.concurrency]\n    type = 'requests'\n    soft_limit = 1000\n\
         [[services]]\n  internal_port = 8081\n  protocol = 'tcp'\n  auto_stop_machines = 'off'\n  \
         auto_start_machines = true\n  [[services.ports]]\n    port = 81\n\
         [[services]]\n  internal_port = 8082\n  protocol = 'tcp'\n  auto_stop_machines = 'off'\n  \
         auto_start_machines = true\n  [services.concurrency]\n    type = 'requests'\n    soft_limit = 1000\n  \
         [[services.ports]]\n    port = 82\n    handlers = ['http']\n    \
         [services.ports.http_options]\n      h2_backend = true\n"
    );
    let app = host.app_dir("bench", &text)?;
    let args = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", "bench", "--yes"];
    host.fly_in(&app, &args)?.ok()?;
    host.flycast("bench")
}

/// Rivals and their upstream in namespaces like ours.
pub(super) struct Rivals {
    spaces: [Child; 2],
    upstream: Child,
    proxies: Vec<Child>,
    cgroup: Twin,
}

impl Rivals {
    /// Starts them on core 0, beside the program `like` of a Machine.
    pub(super) fn start(host: &Host, like: i32, programs: &[Program]) -> Result<Self> {
        let spaces = [space()?, space()?];
        let (front, back) = (spaces[0].id(), spaces[1].id());
        connect(host, front, back)?;
        let own = std::env::current_exe()?.to_string_lossy().into_owned();
        let upstream = ["setsid", "taskset", "-c", "1", &own, UPSTREAM, PORT];
        let upstream = enter(back, &upstream).spawn()?;
        let cgroup = Twin::of(like, upstream.id())?;
        let mut rivals = Self { spaces, upstream, proxies: Vec::new(), cgroup };
        for program in programs {
            rivals.proxies.push(program.start(host, front)?);
            let address = format!("[fd99::2]:{}", program.port).parse()?;
            wait_until("an answer through a rival", Duration::from_secs(10), || {
                host.inside(|| {
                    get(address, "/", Duration::from_secs(1))
                        .map(|a| (a.status == 200).then_some(()))
                })
            })?;
        }
        Ok(rivals)
    }

    /// Process id of each, in the order in which they were named.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.proxies.iter().map(Child::id).collect()
    }
}

impl Program {
    fn start(self, host: &Host, space: u32) -> Result<Child> {
        let config = host.dir().join(format!("{}.cfg", self.name.replace(' ', "-")));
        let dir = host.dir().to_string_lossy();
        std::fs::write(&config, self.config.replace("@DIR@", &dir))?;
        let config = config.to_string_lossy().into_owned();
        let own = std::env::current_exe()?.to_string_lossy().into_owned();
        let program = self.command.iter().map(|&word| if word == "@SELF@" { &own } else { word });
        let program: Vec<&str> = program.collect();
        let command = [&["taskset", "-c", "0"], &program[..], &[config.as_str()]].concat();
        enter(space, &command).spawn().with_context(|| format!("starting {}", self.name))
    }
}

/// A listener at one address, as far from the host as the data plane is.
pub(super) struct Plain {
    space: Child,
    address: SocketAddr,
}

impl Plain {
    /// Listens, and hangs up on whoever connects.
    pub(super) fn start(host: &Host) -> Result<Self> {
        let plain = Self { space: space()?, address: "[fd98::2]:80".parse()? };
        let pid = plain.space.id();
        ip(host, None, &format!("link add plain0 type veth peer name plain1 netns {pid}"))?;
        ip(host, None, "addr add fd98::1/64 dev plain0 nodad")?;
        ip(host, None, "link set plain0 up")?;
        ip(host, Some(pid), "addr add fd98::2/64 dev plain1 nodad")?;
        ip(host, Some(pid), "link set plain1 up")?;
        let entrance = Entrance::of_number(pid.cast_signed())?;
        let listener = entrance.inside(|| Ok(TcpListener::bind(plain.address)?))?;
        std::thread::spawn(move || listener.incoming().for_each(drop));
        Ok(plain)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        drop(self.space.kill());
        drop(self.space.wait());
    }
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

/// Does what a line of `ip` says, on the host or in a space.
fn ip(host: &Host, space: Option<u32>, line: &str) -> Result<()> {
    let words: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
    match space {
        Some(space) => shell::output(&mut enter(space, &words)).map(drop),
        None => host.inside(|| shell::output(Command::new("ip").args(&words[1..])).map(drop)),
    }
}

/// Three veth pairs: the host and the front by IPv6, the front and the back by IPv4, the host and the back by IPv4.
fn connect(host: &Host, front: u32, back: u32) -> Result<()> {
    let ip = |space, line: &str| ip(host, space, line);
    ip(None, &format!("link add bench0 type veth peer name front0 netns {front}"))?;
    ip(None, "addr add fd99::1/64 dev bench0 nodad")?;
    ip(None, "link set bench0 up")?;
    ip(Some(front), "addr add fd99::2/64 dev front0 nodad")?;
    ip(Some(front), "link set front0 up")?;
    ip(Some(front), &format!("link add back0 type veth peer name up0 netns {back}"))?;
    ip(Some(front), "addr add 10.99.0.0/31 dev back0")?;
    ip(Some(front), "link set back0 up")?;
    ip(Some(back), "addr add 10.99.0.1/31 dev up0")?;
    ip(Some(back), "link set up0 up")?;
    // The way around all proxies.
    ip(None, &format!("link add bench1 type veth peer name up1 netns {back}"))?;
    ip(None, "addr add 10.98.0.0/31 dev bench1")?;
    ip(None, "link set bench1 up")?;
    ip(Some(back), "addr add 10.98.0.1/31 dev up1")?;
    ip(Some(back), "link set up1 up")
}

/// Gives all threads of a process one core.
pub(super) fn pin(pid: i32, core: &str) -> Result<()> {
    shell::output(Command::new("taskset").args(["-a", "-c", "-p", core, &pid.to_string()]))
        .map(drop)
}

/// Everything of Perch but the proxy shares core 1 with the client.
pub(super) fn pin_all_but(host: &Host, proxy: i32) -> Result<()> {
    for process in host.processes() {
        if process.pid != proxy && process.state != 'Z' {
            pin(process.pid, "1")?;
        }
    }
    Ok(())
}

impl Drop for Rivals {
    fn drop(&mut self) {
        let [front, back] = &mut self.spaces;
        let proxies = self.proxies.iter_mut();
        for child in proxies.chain([&mut self.upstream, front, back]) {
            drop(child.kill());
            drop(child.wait());
        }
        drop(std::fs::remove_dir(&self.cgroup.0));
    }
}

/// The program of the only Machine.
pub(super) fn machine_pid(host: &Host) -> Result<i32> {
    let upstream = |process: &Process| process.args.first().is_some_and(|it| it == "/upstream");
    host.processes().iter().find(|it| upstream(it)).map(|it| it.pid).context("no upstream runs")
}

/// A cgroup beside a Machine's own, with the same rules for CPU time.
struct Twin(PathBuf);

impl Twin {
    fn of(like: i32, member: u32) -> Result<Self> {
        let own = cpu_cgroup(like)?;
        let twin = Self(own.with_file_name("bench-rival"));
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
