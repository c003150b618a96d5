//! `fleet`: what many Machines cost that do nothing, and how soon a server sees to all of them.
//!
//! A row is a promise: its goal beside what was measured. Each part has a host of its own and can be run small, or left
//! out with a count of 0. Memory is Pss, so that what processes share counts once.

mod armed;
mod cost;
pub(super) mod fill;
mod idle;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use perch_testkit::{Host, Network, Process};

use self::cost::{cpu_seconds, pss_mb};
use self::fill::{Filler, Kind};

/// How many of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    apps: usize,
    suspended: usize,
    idle: usize,
    adopt: usize,
    armed: usize,
    seconds: u64,
}

/// Machines of each stopped app.
const MACHINES: usize = 2;
const CLIENTS: usize = 8;
/// What was asked for last may be seen to until then.
const SETTLE: Duration = Duration::from_secs(10);
/// For what happens to all of them at once.
const PATIENCE: Duration = Duration::from_secs(180);

impl Options {
    /// Reads what follows the name of the benchmark.
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options =
            Self { apps: 10_000, suspended: 200, idle: 1_000, adopt: 100, armed: 500, seconds: 60 };
        for pair in args.chunks(2) {
            let [name, number] = pair else { bail!("{} wants a number", pair[0]) };
            let number: u32 = number.parse().with_context(|| format!("{name} {number}"))?;
            match name.as_str() {
                "--apps" => options.apps = number as usize,
                "--suspended" => options.suspended = number as usize,
                "--idle" => options.idle = number as usize,
                "--adopt" => options.adopt = number as usize,
                "--armed" => options.armed = number as usize,
                "--seconds" => options.seconds = u64::from(number),
                _ => bail!(
                    "unknown: {name}; there are --apps, --suspended, --idle, --adopt, --armed, \
                     --seconds"
                ),
            }
        }
        Ok(options)
    }

    fn rest(self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Measures what is asked for; whether all promises hold.
pub(crate) fn run(options: Options) -> Result<bool> {
    let mut rows = Rows { good: true };
    if 0 < options.adopt {
        adopt(&mut rows, options.adopt)?;
    }
    if 0 < options.suspended {
        suspended(&mut rows, options)?;
    }
    if 0 < options.idle {
        idle::measure(&mut rows, options.idle, Kind::Suspend)?;
        idle::measure(&mut rows, options.idle, Kind::Stop)?;
    }
    if 0 < options.armed {
        armed::measure(&mut rows, options.armed)?;
    }
    if 0 < options.apps {
        stopped(&mut rows, options)?;
    }
    Ok(rows.good)
}

/// Prints rows and remembers whether one did not hold.
struct Rows {
    good: bool,
}

impl Rows {
    fn at_most(&mut self, name: &str, value: f64, goal: f64, unit: &str) {
        let good = value <= goal;
        self.good &= good;
        let word = if good { "holds" } else { "DOES NOT HOLD" };
        println!("{name:<58} {value:>9.2} {unit:<4} goal {goal:>7.2}: {word}");
    }
}

fn stopped(rows: &mut Rows, options: Options) -> Result<()> {
    let mut host = Host::start_with(Network::Open, "")?;
    let filler = Filler::new(&host)?;
    let started = Instant::now();
    filler.fill(&host, options.apps, MACHINES, Kind::Stopped)?;
    let count = format!("{} stopped apps of {MACHINES}", options.apps);
    println!("{count}: made by {CLIENTS} clients in {:.1?}", started.elapsed());
    rows.at_most(&format!("{count}: server + proxy, filled"), platform_mb(&host)?, 100.0, "MiB");
    std::thread::sleep(SETTLE);
    let name = format!("{count}: CPU of both, {} s", options.seconds);
    let spent = spent_while_idle(&platform(&host)?, options.rest())?;
    rows.at_most(&name, spent, 0.1, "s");
    let unarmed = host.perch_processes("shim").iter().filter(|it| !is_armed(it)).count();
    rows.at_most(&format!("{count}: shims of unarmed Machines"), unarmed as f64, 0.0, "");
    for how in ["killed", "ended"] {
        if how == "killed" {
            host.kill_server()?
        } else {
            host.stop_server()?
        };
        let started = Instant::now();
        host.start_server()?;
        let last = format!("/v1/apps/{}/machines", fill::name(options.apps - 1));
        host.api(&last)?;
        let name = format!("{count}: first answer after it was {how}");
        rows.at_most(&name, started.elapsed().as_secs_f64(), 2.0, "s");
        print_adoption(&host)?;
    }
    rows.at_most(&format!("{count}: server + proxy, restarted"), platform_mb(&host)?, 100.0, "MiB");
    Ok(())
}

fn suspended(rows: &mut Rows, options: Options) -> Result<()> {
    let host = Host::start_with(Network::Open, "")?;
    let filler = Filler::new(&host)?;
    filler.fill(&host, options.suspended, 1, Kind::Suspend)?;
    filler.await_all(&host, options.suspended, "started")?;
    filler.each_machine(&host, options.suspended, "suspend")?;
    filler.await_all(&host, options.suspended, "suspended")?;
    let shims = host.perch_processes("shim");
    let inits = children(&host, &shims);
    let count = format!("{} suspended", options.suspended);
    let all = [shims, inits].concat();
    let each = pss_mb(&all)? / options.suspended as f64;
    rows.at_most(&format!("{count}: shim + init, each"), each, 3.0, "MB");
    std::thread::sleep(SETTLE);
    let (of_all, of_platform) = (cpu_seconds(&all)?, cpu_seconds(&platform(&host)?)?);
    std::thread::sleep(options.rest());
    let name = format!("{count}: CPU of shims and inits, {} s", options.seconds);
    rows.at_most(&name, cpu_seconds(&all)? - of_all, 0.1, "s");
    let beside = cpu_seconds(&platform(&host)?)? - of_platform;
    rows.at_most(&format!("{count}: CPU of server + proxy meanwhile"), beside, 0.1, "s");
    Ok(())
}

fn adopt(rows: &mut Rows, count: usize) -> Result<()> {
    let mut host = Host::start_with(Network::Open, "")?;
    let filler = Filler::new(&host)?;
    filler.fill(&host, count, 1, Kind::Awake)?;
    filler.await_all(&host, count, "started")?;
    for how in ["killed", "ended"] {
        if how == "killed" {
            host.kill_server()?
        } else {
            host.stop_server()?
        };
        host.start_server()?;
        let (machines, took) = adoption(&host)?;
        let name = format!("{machines} running Machines: adopted after it was {how}");
        rows.at_most(&name, took, 30.0, "ms");
    }
    Ok(())
}

/// How many Machines the server found running at its last start and how many milliseconds that took, as it logs.
fn adoption(host: &Host) -> Result<(usize, f64)> {
    let text = std::fs::read_to_string(host.server_log())?;
    let line = text.lines().rfind(|line| line.contains("took over"));
    let line = line.context("the server does not say how long it looked")?;
    let field = |name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}="))?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    let running = field("running").context("no number of Machines")?;
    Ok((running as usize, field("took_ms").context("no time")?))
}

fn print_adoption(host: &Host) -> Result<()> {
    let (running, took) = adoption(host).unwrap_or_default();
    println!("  of this, {took:.0} ms for its look at all Machines, of which {running} run");
    Ok(())
}

fn is_armed(shim: &Process) -> bool {
    shim.args.iter().any(|arg| arg == "--armed")
}

fn platform(host: &Host) -> Result<Vec<Process>> {
    let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?;
    Ok(vec![host.server_process()?, proxy])
}

fn platform_mb(host: &Host) -> Result<f64> {
    let both = platform(host)?;
    for (process, name) in both.iter().zip(["server", "proxy"]) {
        println!("  {name}: {:.1} MiB", pss_mb(std::slice::from_ref(process))?);
    }
    pss_mb(&both)
}

fn spent_while_idle(processes: &[Process], rest: Duration) -> Result<f64> {
    let before = cpu_seconds(processes)?;
    std::thread::sleep(rest);
    Ok(cpu_seconds(processes)? - before)
}

/// The PID 1 of each Machine.
fn children(host: &Host, shims: &[Process]) -> Vec<Process> {
    let parents: std::collections::BTreeSet<i32> = shims.iter().map(|shim| shim.pid).collect();
    host.processes().into_iter().filter(|it| parents.contains(&it.parent)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_what_is_wrong_is_named() {
        let parse = |text: &str| {
            let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Options::parse(&args).map_err(|error| format!("{error:#}"))
        };
        let usual = parse("").expect("nothing is wrong");
        assert_eq!(parse("--apps 7 --idle 0"), Ok(Options { apps: 7, idle: 0, ..usual }));
        assert!(parse("--apps").is_err_and(|error| error.contains("--apps")));
        assert!(parse("--apps many").is_err_and(|error| error.contains("many")));
        assert!(parse("--rounds 7").is_err_and(|error| error.contains("--suspended")));
    }
}
