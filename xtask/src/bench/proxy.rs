//! `proxy`: the proxy beside HAProxy (as it is, and tuned for large bodies) and nginx, one upstream, one core each.
//!
//! Namespaces and upstream are those of `rig`. A row is one kind of load; its contenders take turns, round by round. CPU comes
//! first: where the core of the generator is full, only that can be compared, and the row says so.

mod addresses;
mod held;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use perch_testkit::Host;

use super::figures::Series;
use super::load::Load;
use super::rig::{self, Program, Rivals};
use super::warm::HAPROXY;

/// Rounds of every row.
const ROUNDS: usize = 5;

const SECONDS: u32 = 3;
/// As the kernel calls the core of the proxies.
const PROXIES: &str = "cpu0";
/// And that of the generator and the upstream.
const GENERATOR: &str = "cpu1";
/// Busier than this, the generator's core is full.
const FULL: f64 = 0.97;
const GIB: f64 = 1_073_741_824.0;

const TUNED: Program = Program {
    name: "haproxy tuned",
    command: &["haproxy", "-q", "-db", "-f"],
    port: 82,
    config: "\
global
  nbthread 1
  tune.bufsize 131072
defaults
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  mode http
  bind [fd99::2]:82
  option forwardfor
  default_backend back
backend back
  mode http
  server upstream 10.99.0.1:8080
listen raw
  mode tcp
  option splice-auto
  bind [fd99::2]:81
  server upstream 10.99.0.1:8081
",
};

const NGINX: Program = Program {
    name: "nginx",
    command: &["nginx", "-c"],
    port: 83,
    config: "\
daemon off;
master_process off;
pid @DIR@/nginx.pid;
error_log /dev/null;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 100000000;
  upstream back { server 10.99.0.1:8080; keepalive 1024; keepalive_requests 100000000; }
  server {
    listen [fd99::2]:83;
    location / {
      proxy_pass http://back;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
  }
  upstream calls { server 10.99.0.1:8082; keepalive 1024; keepalive_requests 100000000; }
  server {
    listen [fd99::2]:85 http2;
    location / {
      grpc_pass grpc://calls;
      grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
  }
  server {
    listen [fd99::2]:84 http2;
    location / {
      proxy_pass http://back;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
  }
}
",
};

/// Nobody's rival: tells what of a figure is the kernel's.
const RELAY: Program = Program {
    name: "bare relay",
    command: &["@SELF@", super::RELAY],
    port: 86,
    config: "[fd99::2]:87 [fd99::2]:86 10.99.0.1:8080",
};

const RIVALS: [Program; 4] = [HAPROXY, TUNED, NGINX, RELAY];

/// One kind of load, and what it promises.
struct Row {
    name: &'static str,
    load: Load,
    /// Place of the rival in the list of contenders.
    rival: usize,
    promises: &'static [Promise],
}

/// A figure of ours over the rival's.
struct Promise {
    what: &'static str,
    of: fn(&Figures) -> &Series,
    limit: Limit,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

const CPU: fn(&Figures) -> &Series = |figures| &figures.cpu;
const RATE: fn(&Figures) -> &Series = |figures| &figures.rate;
const P99: fn(&Figures) -> &Series = |figures| &figures.p99;

const fn load(connections: u32, path: &'static str) -> Load {
    Load { connections, seconds: SECONDS, path, header: None, streams: 0, calls: false }
}

const ROWS: [Row; 6] = [
    Row {
        name: "64 B, 64 connections",
        load: load(64, "/"),
        rival: 1,
        promises: &[
            Promise { what: "CPU", of: CPU, limit: Limit::AtMost(0.9) },
            Promise { what: "requests/s", of: RATE, limit: Limit::AtLeast(1.1) },
            Promise { what: "p99", of: P99, limit: Limit::AtMost(0.7) },
        ],
    },
    Row {
        name: "64 B, 512 connections",
        load: load(512, "/"),
        rival: 1,
        promises: &[Promise { what: "requests/s", of: RATE, limit: Limit::AtLeast(1.3) }],
    },
    Row {
        name: "64 KiB, 64 connections",
        load: load(64, "/64k"),
        rival: 2,
        promises: &[Promise { what: "CPU", of: CPU, limit: Limit::AtMost(0.7) }],
    },
    Row {
        name: "a connection per request",
        load: Load { header: Some("Connection: close"), ..load(64, "/") },
        rival: 1,
        promises: &[Promise { what: "CPU", of: CPU, limit: Limit::AtMost(1.0) }],
    },
    Row {
        name: "HTTP/2, 16 connections of 8 streams",
        load: Load { streams: 8, ..load(16, "/") },
        rival: 3,
        promises: &[Promise { what: "CPU", of: CPU, limit: Limit::AtMost(1.0) }],
    },
    Row {
        name: "gRPC, 16 connections of 8 calls",
        load: Load { streams: 8, calls: true, ..load(16, "/bench.Bench/Call") },
        rival: 3,
        promises: &[Promise { what: "CPU", of: CPU, limit: Limit::AtMost(1.0) }],
    },
];

/// Who is measured: name, process, address of HTTP, address of the stream.
struct Contender {
    name: &'static str,
    pid: u32,
    authority: String,
    /// Where it keeps connections, if it does not know from the request.
    keeping: Option<&'static str>,
    /// Where it speaks HTTP/2 without TLS.
    http2: Option<String>,
    /// The same to an upstream that speaks it too.
    calls: Option<String>,
}

impl Contender {
    fn authority(&self, load: Load) -> Option<&str> {
        match (load.streams, load.calls) {
            (_, true) => self.calls.as_deref(),
            (0, false) if load.header.is_none() => Some(self.keeping.unwrap_or(&self.authority)),
            (0, false) => Some(&self.authority),
            (_, false) => self.http2.as_deref(),
        }
    }
}

/// What one contender did in one row.
#[derive(Default)]
struct Figures {
    /// Microseconds a request that the kernel charges the process for.
    cpu: Series,
    /// The same of the core that it has for itself: with what the kernel does for it in its own threads and in interrupts.
    core: Series,
    rate: Series,
    median: Series,
    p99: Series,
}

/// What is measured.
pub(crate) struct Options {
    rounds: usize,
    /// Part of the names of rows; empty for all.
    only: String,
    held: usize,
    addresses: usize,
}

impl Options {
    /// Reads what follows the name of the benchmark.
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let (only, held, addresses) = (String::new(), held::COUNT, addresses::COUNT);
        let mut options = Self { rounds: ROUNDS, only, held, addresses };
        for pair in args.chunks(2) {
            let [name, value] = pair else { bail!("{} wants a value", pair[0]) };
            match name.as_str() {
                "--rounds" => options.rounds = value.parse().context("--rounds")?,
                "--only" => options.only.clone_from(value),
                "--held" => options.held = value.parse().context("--held")?,
                "--addresses" => options.addresses = value.parse().context("--addresses")?,
                _ => bail!(
                    "unknown: {name}; there are --rounds N, --only PART-OF-A-ROW'S-NAME, --held N, \
                     --addresses N"
                ),
            }
        }
        Ok(options)
    }

    fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }

    fn wants_rivals(&self) -> bool {
        ROWS.iter().map(|row| row.name).chain([RAW, LATENCY]).any(|row| self.wants(row))
    }
}

const RAW: &str = "raw TCP, one stream";
const LATENCY: &str = "one connection, everything on one core";

/// Measures all rows; whether all promises hold.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut good = true;
    if options.wants(held::NAME) {
        good &= held::run(options.held)?;
    }
    if options.wants(addresses::NAME) {
        good &= addresses::run(options.addresses)?;
    }
    if options.wants_rivals() {
        good &= beside_rivals(options)?;
    }
    Ok(good)
}

/// The rows that have contenders.
fn beside_rivals(options: &Options) -> Result<bool> {
    let rounds = options.rounds;
    let host = Host::start()?;
    let address = rig::deploy(&host)?;
    let machine = rig::machine_pid(&host)?;
    let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?.pid;
    let rivals = Rivals::start(&host, machine, &RIVALS)?;
    rig::pin(proxy, "0")?;
    rig::pin_all_but(&host, proxy)?;
    let mut contenders = vec![Contender {
        name: "perch",
        pid: proxy.cast_unsigned(),
        authority: format!("[{address}]"),
        keeping: None,
        http2: Some(format!("[{address}]")),
        calls: Some(format!("[{address}]:82")),
    }];
    for (program, pid) in RIVALS.iter().zip(rivals.pids()) {
        let authority = format!("[fd99::2]:{}", program.port);
        let speaks = |address: &str| (program.name == NGINX.name).then(|| address.to_owned());
        let (http2, calls) = (speaks("[fd99::2]:84"), speaks("[fd99::2]:85"));
        let keeping = (program.name == RELAY.name).then_some("[fd99::2]:87");
        contenders.push(Contender { name: program.name, pid, authority, keeping, http2, calls });
    }
    let mut good = true;
    for row in ROWS.iter().filter(|row| options.wants(row.name)) {
        good &= row.measure(&host, &contenders, rounds)?;
    }
    if options.wants(RAW) {
        good &= raw(&host, &contenders, &address, rounds)?;
    }
    if options.wants(LATENCY) {
        rig::pin(proxy, "1")?;
        contenders.iter().skip(1).try_for_each(|it| rig::pin(it.pid.cast_signed(), "1"))?;
        good &= latency(&host, &contenders, rounds)?;
    }
    Ok(good)
}

impl Row {
    fn measure(&self, host: &Host, contenders: &[Contender], rounds: usize) -> Result<bool> {
        let mut all: Vec<Figures> = contenders.iter().map(|_| Figures::default()).collect();
        let mut busiest = Vec::new();
        for _ in 0..rounds {
            for (contender, figures) in contenders.iter().zip(&mut all) {
                let Some(authority) = contender.authority(self.load) else { continue };
                let (generator, began) = (Idle::of(GENERATOR)?, Instant::now());
                figures.add(contender.pid, authority, self.load, host)?;
                busiest.push(generator.busy_seconds()? / began.elapsed().as_secs_f64());
            }
        }
        println!("{}", self.name);
        let measured =
            contenders.iter().zip(&all).filter(|(it, _)| it.authority(self.load).is_some());
        measured.for_each(|(contender, figures)| figures.print(contender.name));
        if busiest.iter().any(|share| FULL < *share) {
            println!("  the generator's core was full: only CPU can be compared");
        }
        let rival = (contenders[self.rival].name, &all[self.rival]);
        let kept = self.promises.iter().map(|promise| promise.check(&all[0], rival));
        Ok(kept.fold(true, |good, kept| good & kept))
    }
}

impl Promise {
    fn check(&self, ours: &Figures, (name, theirs): (&str, &Figures)) -> bool {
        let ratio = (self.of)(ours).median() / (self.of)(theirs).median();
        check(self.what, name, ratio, self.limit)
    }
}

/// Prints a ratio beside its limit; whether it holds.
fn check(what: &str, rival: &str, ratio: f64, limit: Limit) -> bool {
    let (good, words) = match limit {
        Limit::AtMost(most) => (ratio <= most, format!("at most {most:.2}x")),
        Limit::AtLeast(least) => (least <= ratio, format!("at least {least:.2}x")),
    };
    let verdict = if good { "holds" } else { "DOES NOT HOLD" };
    println!("  {what}: {ratio:.2}x of {rival}, promised {words}: {verdict}");
    good
}

impl Figures {
    fn add(&mut self, pid: u32, authority: &str, load: Load, host: &Host) -> Result<()> {
        let (before, core) = (rig::cpu_seconds(pid)?, Idle::of(PROXIES)?);
        let told = load.run(host, authority)?;
        let used = rig::cpu_seconds(pid)? - before;
        self.cpu.push(used * 1e6 / told.requests);
        self.core.push(core.busy_seconds()? * 1e6 / told.requests);
        self.rate.push(told.rate);
        self.median.push(told.median_us);
        self.p99.push(told.p99_us);
        Ok(())
    }

    fn print(&self, name: &str) {
        let [cpu, core] = [&self.cpu, &self.core].map(Series::median);
        let [rate, median, p99] = [&self.rate, &self.median, &self.p99].map(Series::median);
        println!(
            "  {name:<14} CPU {cpu:>7.2} us a request, its core {core:>7.2}   {rate:>8.0} requests/s   \
             median {median:>7.0} us   p99 {p99:>7.0} us"
        );
    }
}

/// A core from some point in time on.
struct Idle {
    core: &'static str,
    since: Instant,
    seconds: f64,
}

impl Idle {
    fn of(core: &'static str) -> Result<Self> {
        Ok(Self { core, since: Instant::now(), seconds: idle_seconds(core)? })
    }

    /// Seconds that it was busy since then.
    fn busy_seconds(&self) -> Result<f64> {
        let idle = idle_seconds(self.core)? - self.seconds;
        Ok(self.since.elapsed().as_secs_f64() - idle)
    }
}

/// Seconds that a core had nothing to do, since the start.
fn idle_seconds(core: &str) -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix(core)).context("no such core")?;
    let ticks: Vec<f64> = line.split(' ').skip(1).filter_map(|it| it.parse().ok()).collect();
    Ok(ticks.get(3..5).context("too short")?.iter().sum::<f64>() / 100.0)
}

/// Raw TCP, one stream towards the caller, beside HAProxy that splices.
fn raw(host: &Host, all: &[Contender], address: &str, rounds: usize) -> Result<bool> {
    let ours: SocketAddr = format!("[{address}]:81").parse()?;
    let [perch, haproxy] = [(ours, &all[0]), ("[fd99::2]:81".parse()?, &all[2])];
    let mut rates = [Series::default(), Series::default()];
    let mut cpu = [Series::default(), Series::default()];
    for _ in 0..rounds {
        for (place, (address, contender)) in [perch, haproxy].into_iter().enumerate() {
            let before = rig::cpu_seconds(contender.pid)?;
            let (bytes, took) = host.inside(|| drain(address))?;
            let used = rig::cpu_seconds(contender.pid)? - before;
            rates[place].push(bytes / GIB / took);
            cpu[place].push(used * GIB / bytes);
        }
    }
    println!("{RAW}");
    for (place, (_, contender)) in [perch, haproxy].iter().enumerate() {
        let (rate, cpu) = (rates[place].median(), cpu[place].median());
        println!("  {:<14} {rate:.2} GiB/s, CPU {cpu:.2} s per GiB", contender.name);
    }
    let [ours, theirs] = &rates;
    let name = haproxy.1.name;
    let fast = check("throughput", name, ours.median() / theirs.median(), Limit::AtLeast(1.0));
    let [ours, theirs] = &cpu;
    Ok(fast & check("CPU per GiB", name, ours.median() / theirs.median(), Limit::AtMost(1.0)))
}

/// Reads for some seconds: how many bytes, in how many seconds. On core 1.
fn drain(address: SocketAddr) -> Result<(f64, f64)> {
    let own = std::fs::read_link("/proc/thread-self")?;
    let thread = own.file_name().context("no thread")?.to_string_lossy().into_owned();
    crate::shell::output(std::process::Command::new("taskset").args(["-c", "-p", "1", &thread]))?;
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; 1 << 20];
    let (began, end) = (Instant::now(), Duration::from_secs(u64::from(SECONDS)));
    let mut bytes = 0;
    while began.elapsed() < end {
        bytes += stream.read(&mut buffer)?;
    }
    Ok((bytes as f64, began.elapsed().as_secs_f64()))
}

/// What each adds to the median of one connection when all share one core.
fn latency(host: &Host, contenders: &[Contender], rounds: usize) -> Result<bool> {
    let load = load(1, "/");
    let mut direct = Series::default();
    let mut added: Vec<Series> = contenders.iter().map(|_| Series::default()).collect();
    for _ in 0..rounds {
        let bare = load.run(host, "10.98.0.1:8080")?.median_us;
        direct.push(bare);
        for (contender, series) in contenders.iter().zip(&mut added) {
            let authority = contender.authority(load).context("each speaks HTTP/1.1")?;
            series.push(load.run(host, authority)?.median_us - bare);
        }
    }
    println!("{LATENCY}: direct {:.0} us, and", direct.median());
    for (contender, series) in contenders.iter().zip(&added) {
        println!("  {:<14} {:.0} us more", contender.name, series.median());
    }
    let ratio = added[0].median() / added[1].median();
    Ok(check("added median", contenders[1].name, ratio, Limit::AtMost(0.4)))
}
