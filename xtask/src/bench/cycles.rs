//! `cycles`: thousands of sleeps and wakes, with callers that come at the worst moments.
//!
//! Every app has one Machine and one caller. The caller waits about as long as the idle time, so that its requests come
//! before, during and after the Machine falls asleep, and asks by a new connection, by one it keeps, by raw TCP, or by two at
//! once. The example app counts its requests, so each answer also says whether an earlier one was lost or made twice,
//! and whether a Machine that was to be suspended was started anew.

mod caller;
mod events;
mod tally;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Image, Network};

use self::caller::{Caller, Sleep};
use self::events::Events;
use self::tally::Tally;

/// Wakes that are waited for when nothing else is said.
pub(crate) const CYCLES: usize = 10_000;

/// Every other one is suspended instead of stopped.
const APPS: usize = 50;
const CONFIG: &str = "auto_stop_after = \"100ms\"\n";
/// The server's default.
const ARMED_MAX: usize = 16;

/// Progress is told so often.
const LOOK: Duration = Duration::from_secs(10);
/// No wake of any app in this time: something hangs.
const STANDSTILL: Duration = Duration::from_secs(120);

/// Runs until Machines were woken so often; whether nothing failed.
pub(crate) fn run(cycles: usize) -> Result<bool> {
    let host = Host::start_with(Network::Open, CONFIG)?;
    let image = Image::hello(8080)?.write(&host.dir().join("image"))?;
    let apps = (0..APPS).map(|number| deploy(&host, &image, number)).collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    let mut events = Events::of(host.server_log());
    let (tally, watched) = call_all(&host, &apps, || watch(&mut events, cycles, started))?;
    let rest = watched.and_then(|()| at_rest(&host));
    events.read_on()?;
    tally.print(started.elapsed());
    events.print();
    if let Err(error) = &rest {
        println!("{error:#}");
    }
    let good = tally.faults() == 0 && rest.is_ok();
    println!(
        "{cycles} cycles, 0 failed, 0 reset: {}",
        if good { "holds" } else { "DOES NOT HOLD" }
    );
    if !good {
        let kept = std::env::temp_dir().join(format!("perch-cycles-{}.log", std::process::id()));
        fs::copy(host.server_log(), &kept)?;
        println!("the server's log is kept: {}", kept.display());
    }
    Ok(good)
}

/// Has all callers call until `watch` returns.
fn call_all(
    host: &Host,
    apps: &[SocketAddr],
    watch: impl FnOnce() -> Result<()>,
) -> Result<(Tally, Result<()>)> {
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut callers = Vec::new();
        for (number, address) in apps.iter().enumerate() {
            let (entrance, end) = (host.entrance()?, &end);
            let mut caller = Caller::new(name(number), *address, Sleep::of(number), number as u64);
            callers.push(scope.spawn(move || {
                entrance.enter()?;
                caller.call_until(end);
                Ok::<_, anyhow::Error>(caller.tally)
            }));
        }
        let watched = watch();
        end.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for caller in callers {
            let tally = caller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sum.add(tally?);
        }
        Ok((sum, watched))
    })
}

fn name(number: usize) -> String {
    format!("app{number}")
}

/// One port for HTTP and one for raw TCP, to the same program.
fn deploy(host: &Host, image: &str, number: usize) -> Result<SocketAddr> {
    let (name, word) = (name(number), Sleep::of(number).word());
    let text = format!(
        "app = '{name}'\n[build]\n  image = '{image}'\n[[services]]\n  protocol = 'tcp'\n  \
         internal_port = 8080\n  auto_stop_machines = '{word}'\n  auto_start_machines = true\n  \
         min_machines_running = 0\n  [[services.ports]]\n    port = 80\n    handlers = ['http']\n  \
         [[services.ports]]\n    port = 81\n"
    );
    let dir = host.app_dir(&name, &text)?;
    let launch = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", &name, "--yes"];
    host.fly_in(&dir, &launch)?.ok()?;
    let ip: IpAddr = host.flycast(&name)?.parse().context("its address")?;
    Ok(SocketAddr::new(ip, 80))
}

/// Waits until Machines were woken so often, and tells how it goes on.
fn watch(events: &mut Events, cycles: usize, started: Instant) -> Result<()> {
    let (mut told, mut before, mut moved) = (Instant::now(), 0, Instant::now());
    loop {
        events.read_on()?;
        let woken = events.wakes();
        if cycles <= woken {
            return Ok(());
        }
        if before < woken {
            (before, moved) = (woken, Instant::now());
        }
        if STANDSTILL < moved.elapsed() {
            bail!("nothing was woken for {STANDSTILL:?}, after {woken} wakes");
        }
        if LOOK < told.elapsed() {
            println!("{woken} wakes in {:.0} s", started.elapsed().as_secs_f64());
            told = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// When nobody calls, everything must be asleep as it should be, and nothing else be there.
fn at_rest(host: &Host) -> Result<()> {
    for number in 0..APPS {
        let asleep = Sleep::of(number).state();
        host.wait_all(&name(number), asleep, Duration::from_secs(30))?;
    }
    let frozen = (0..APPS).filter(|number| Sleep::of(*number) == Sleep::Suspend).count();
    let (armed, shims): (Vec<_>, Vec<_>) = host
        .perch_processes("shim")
        .into_iter()
        .partition(|shim| shim.args.iter().any(|arg| arg == "--armed"));
    ensure!(shims.len() == frozen, "{} shims for {frozen} suspended Machines", shims.len());
    ensure!(armed.len() <= ARMED_MAX, "{} stopped Machines are armed", armed.len());
    Ok(())
}
