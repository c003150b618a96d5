//! Thousands of requests that wait for one Machine: what each costs, and how soon all are answered.
//!
//! The Machine's program waits for a word before it listens, so that all requests are held at once. What the kernel needs for
//! the connections is told beside: it has no goal, since it would be the same for anybody who keeps a connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entrance, Host, Image, Machine, Network, Process, wait_until};
use rustix::event::epoll;

use super::super::UPSTREAM;
use super::super::rig::{self, PORT};
use super::super::upstream::WAIT;
use super::{Limit, check};

pub(super) const NAME: &str = "held requests";
/// As many as a pool holds.
pub(super) const COUNT: usize = 10_000;

const EACH_BYTES: f64 = 4096.0;
const ALL_SECONDS: f64 = 1.0;
/// As the proxy keeps them.
const DESCRIPTORS_KEPT: u64 = 512;
/// One may have a quarter of all connections.
const CALLERS: usize = 5;
const CALLER: &str = "caller";
/// Of 4 kB of memory a page.
const PAGE: f64 = 4096.0;
const PATIENCE: Duration = Duration::from_secs(60);
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: bench.flycast\r\nUser-Agent: held\r\nAccept: */*\r\n\r\n";

/// Measures once; whether both promises hold.
pub(super) fn run(count: usize) -> Result<bool> {
    let count = count.min(allowed());
    // All of them come at once from a few.
    let host = Host::start_with(Network::Open, "caller_connections_per_second = 0\n")?;
    let (callers, address) = deploy(&host)?;
    host.fly(&["machine", "stop", &only(&host)?.id, "--app", "bench"])?.ok()?;
    host.wait_all("bench", "stopped", PATIENCE)?;
    let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?;
    let (memory, kernel) = (private_bytes(&proxy)?, kernel_bytes()?);
    let asked = Instant::now();
    let mut waiting = Vec::new();
    for caller in &callers {
        let share = count / callers.len();
        waiting.append(&mut Entrance::of(caller)?.inside(|| call(address, share))?);
    }
    let count = waiting.len();
    println!("{count} {NAME} of {COUNT}: asked in {:.1?}", asked.elapsed());
    let program = program(&host)?;
    settle(&proxy)?;
    let each = (private_bytes(&proxy)? - memory) / count as f64;
    let of_kernel = (kernel_bytes()? - kernel) / count as f64;
    println!("  {each:.0} bytes each in user space; {of_kernel:.0} in the kernel, both ends");
    program.inside(|| {
        let word = UdpSocket::bind("127.0.0.1:0")?;
        Ok(word.send_to(&[0], format!("127.0.0.1:{PORT}"))?)
    })?;
    let told = Instant::now();
    let answered = answers(waiting)?;
    let took = told.elapsed().as_secs_f64();
    ensure!(answered == count, "{answered} of {count} were answered");
    println!("  all answered {took:.2} s after the program was told to listen");
    let small = check("bytes each", "4 kB", each / EACH_BYTES, Limit::AtMost(1.0));
    let soon = check("time until all are answered", "1 s", took / ALL_SECONDS, Limit::AtMost(1.0));
    Ok(small & soon)
}

/// How many the descriptors of the proxy allow one app: half, of two for each, whether it holds or forwards, and some of
/// its own.
fn allowed() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    usize::try_from((limit.saturating_sub(DESCRIPTORS_KEPT)) / 4 * 9 / 10).unwrap_or(usize::MAX)
}

/// The Machines that call, each as much as one may, and the address that they call.
fn deploy(host: &Host) -> Result<(Vec<Process>, SocketAddr)> {
    let dir = host.dir().join("root");
    std::fs::create_dir(&dir)?;
    for name in [CALLER, "upstream"] {
        std::fs::copy(std::env::current_exe()?, dir.join(name))?;
    }
    for (name, path, word) in [("callers", CALLER, ""), ("bench", "upstream", WAIT)] {
        let image = Image::directory(&dir)?;
        let image = image.entrypoint(&[&format!("/{path}"), UPSTREAM, PORT, word]);
        let image = image.write(&host.dir().join(name))?;
        let asleep = if name == "bench" { "stop" } else { "off" };
        let text = format!(
            "app = '{name}'\n[build]\n  image = '{image}'\n[http_service]\n  internal_port = {PORT}\n  \
             auto_stop_machines = '{asleep}'\n  auto_start_machines = true\n  min_machines_running = 0\n  \
             [http_service.concurrency]\n    type = 'requests'\n    soft_limit = 20000\n"
        );
        let app = host.app_dir(&format!("of-{name}"), &text)?;
        let args = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", name, "--yes"];
        host.fly_in(&app, &args)?.ok()?;
    }
    let count = CALLERS.to_string();
    host.fly(&["scale", "count", &count, "--app", "callers", "--yes"])?.ok()?;
    let program = format!("/{CALLER}");
    let callers = wait_until("all callers", PATIENCE, || {
        let all = host.processes().into_iter();
        let all: Vec<Process> = all.filter(|it| it.args.first() == Some(&program)).collect();
        Ok((all.len() == CALLERS).then_some(all))
    })?;
    let ip: std::net::IpAddr = host.flycast("bench")?.parse()?;
    Ok((callers, SocketAddr::new(ip, 80)))
}

fn only(host: &Host) -> Result<Machine> {
    host.machines("bench")?.pop().context("no Machine")
}

/// Connects and asks so often.
fn call(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let one = |number| {
        let mut stream = TcpStream::connect(address).with_context(|| format!("caller {number}"))?;
        stream.write_all(REQUEST).with_context(|| format!("caller {number}"))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

/// Where the program waits for a word, once it does.
fn program(host: &Host) -> Result<Entrance> {
    wait_until("the Machine's program", PATIENCE, || {
        let Ok(pid) = rig::machine_pid(host) else { return Ok(None) };
        let waits = std::fs::read_to_string(format!("/proc/{pid}/net/udp"))?.lines().count();
        if waits < 2 {
            return Ok(None);
        }
        Entrance::of_number(pid).map(Some)
    })
}

/// Waits until the proxy has read what was sent, which it has when its memory grows no more.
fn settle(proxy: &Process) -> Result<()> {
    let mut before = 0.0;
    wait_until("all requests to be held", PATIENCE, || {
        let now = private_bytes(proxy)?;
        let same = (now - before).abs() < PAGE;
        before = now;
        std::thread::sleep(Duration::from_millis(500));
        Ok(same.then_some(()))
    })
}

/// Reads until each has its answer: how many were good.
fn answers(mut callers: Vec<TcpStream>) -> Result<usize> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (place, caller) in callers.iter().enumerate() {
        epoll::add(&poll, caller, epoll::EventData::new_u64(place as u64), epoll::EventFlags::IN)?;
    }
    let (mut good, mut left) = (0, callers.len());
    let mut events = Vec::with_capacity(1024);
    let limit = rustix::event::Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    while 0 < left {
        events.clear();
        let count = epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&limit))?;
        ensure!(count != 0, "{left} have no answer");
        for event in &events {
            let caller = &mut callers[usize::try_from(event.data.u64())?];
            let mut answer = [0; 1024];
            let read = caller.read(&mut answer).unwrap_or(0);
            good += usize::from(answer[..read].starts_with(b"HTTP/1.1 200"));
            epoll::delete(&poll, &*caller)?;
            left -= 1;
        }
    }
    Ok(good)
}

/// Memory of its own, shared with nobody.
fn private_bytes(process: &Process) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
    kilobytes(&text, &["Private_Clean:", "Private_Dirty:"])
}

/// What the kernel needs for its objects.
fn kernel_bytes() -> Result<f64> {
    kilobytes(&std::fs::read_to_string(Path::new("/proc/meminfo"))?, &["Slab:"])
}

fn kilobytes(text: &str, names: &[&str]) -> Result<f64> {
    let value = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(*name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
    };
    let sum: Option<f64> = names.iter().map(value).sum();
    sum.map(|kilobytes| kilobytes * 1024.0).context("no such line")
}
