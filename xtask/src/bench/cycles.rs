//! `cycles`: thousands of sleeps and wakes, with callers that come at the worst moments, while Perch itself is disturbed.
//!
//! Every app has one Machine and one caller. The caller waits about as long as the idle time, so that its requests come
//! before, during and after the Machine falls asleep, and asks by HTTP/1, HTTP/2, raw TCP, WebSockets or datagrams, on new
//! connections and on those that it keeps over sleeps. The example app counts its requests, so each answer also says whether
//! an earlier one was lost or made twice, and whether a Machine that was to be suspended was started anew. All the while
//! apps are deployed, Perch is upgraded, and its server and proxies are killed.

mod caller;
mod count;
mod datagrams;
mod dice;
mod disturber;
mod events;
mod history;
mod http2;
mod tally;
mod way;
mod wire;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Entrance, Host, Image, Network, wait_until};

use self::caller::Caller;
use self::disturber::Disturber;
use self::events::Events;
use self::history::{History, Kind};
use self::tally::Tally;
use self::way::Sleep;

/// Wakes that are waited for when nothing else is said.
const CYCLES: usize = 10_000;

/// Apps of HTTP, raw TCP and WebSockets. Every other app is suspended instead of stopped.
const STREAMS: usize = 50;
/// Apps of UDP after them. Each session is load for half a minute, so they sleep a hundred times more seldom.
const DATAGRAMS: usize = 20;
const APPS: usize = STREAMS + DATAGRAMS;
const CONFIG: &str = "auto_stop_after = \"100ms\"\n";
/// The server's default.
const ARMED_MAX: usize = 16;

/// Progress is told so often.
const LOOK: Duration = Duration::from_secs(10);
/// No wake of any app in this time: something hangs.
const STANDSTILL: Duration = Duration::from_secs(120);

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    cycles: usize,
    seed: u64,
    kinds: Vec<Kind>,
}

impl Options {
    /// `--cycles N`, `--seed S`, and `--only KIND` for one kind of disturbance, several times, or `none`.
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let seed = since.as_micros() as u64;
        let mut options = Self { cycles: CYCLES, seed, kinds: Kind::ALL.to_vec() };
        let mut only: Option<Vec<Kind>> = None;
        for pair in args.chunks(2) {
            match pair {
                [name, value] if name == "--cycles" => {
                    options.cycles = value.parse().context("--cycles")?;
                }
                [name, value] if name == "--seed" => {
                    options.seed = value.parse().context("--seed")?;
                }
                [name, value] if name == "--only" => {
                    only.get_or_insert_default().extend(kinds(value)?)
                }
                _ => bail!("only --cycles N, --seed S and --only KIND can follow"),
            }
        }
        options.kinds = only.unwrap_or(options.kinds);
        Ok(options)
    }
}

fn kinds(name: &str) -> Result<Option<Kind>> {
    if name == "none" {
        return Ok(None);
    }
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    let names = Kind::ALL.map(Kind::name).join(", ");
    found
        .map(Some)
        .with_context(|| format!("no kind of disturbance `{name}`: there are {names}, and none"))
}

/// Runs until Machines were woken so often; whether nothing failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    println!("seed {}", options.seed);
    let mut host = Host::bare(Network::Open)?;
    host.configure(CONFIG);
    host.use_service_manager()?;
    host.start_server()?;
    let image = Image::hello(8080)?.write(&host.dir().join("image"))?;
    let apps = (0..APPS).map(|number| deploy(&host, &image, number)).collect::<Result<Vec<_>>>()?;
    let (started, history) = (Instant::now(), History::default());
    let mut events = Events::of(host.server_log());
    let entrances = (0..APPS).map(|_| host.entrance()).collect::<Result<Vec<_>>>()?;
    let mut disturber = Disturber::new(&mut host, &history, APPS, &options.kinds, options.seed);
    let (tally, watched) = call_all(&apps, entrances, &history, options.seed, |all_call| {
        watch(&mut events, &mut disturber, options.cycles, started, all_call)?;
        disturber.finish()
    })?;
    let (said_again, deploys_failed) = (disturber.said_again, disturber.faults);
    let rest = watched.and_then(|()| at_rest(&host, &history));
    events.read_on()?;
    println!("\nseed {}, {:.0} s", options.seed, started.elapsed().as_secs_f64());
    events.print();
    for (kind, count, longest) in history.sums() {
        println!(
            "  {:<12} {count:>6} times, the longest {:.1} s",
            kind.name(),
            longest.as_secs_f64()
        );
    }
    println!(
        "  {said_again} deploys were said again, because their server was ended; {deploys_failed} failed"
    );
    tally.print();
    if let Err(error) = &rest {
        println!("FAULT: {error:#}");
    }
    let good = tally.faults() + deploys_failed == 0 && rest.is_ok();
    println!(
        "\n{} cycles, 0 failed but those in flight in what was killed: {}",
        options.cycles,
        if good { "holds" } else { "DOES NOT HOLD" }
    );
    if !good {
        let kept = std::env::temp_dir().join(format!("perch-cycles-{}.log", std::process::id()));
        fs::copy(host.server_log(), &kept)?;
        fs::copy(host.data_dir().join("proxy.log"), kept.with_extension("proxy.log"))?;
        println!("the server's log and its proxies' are kept: {}", kept.display());
    }
    Ok(good)
}

/// Has all callers call until `watch` returns.
fn call_all(
    apps: &[SocketAddr],
    entrances: Vec<Entrance>,
    history: &History,
    seed: u64,
    watch: impl FnOnce(&dyn Fn() -> bool) -> Result<()>,
) -> Result<(Tally, Result<()>)> {
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut callers = Vec::new();
        for ((number, address), entrance) in apps.iter().enumerate().zip(entrances) {
            let end = &end;
            callers.push(scope.spawn(move || {
                entrance.enter()?;
                if number < STREAMS {
                    let mut caller = Caller::new(number, *address, history, seed)?;
                    caller.call_until(end);
                    return anyhow::Ok(caller.tally);
                }
                let mut caller = datagrams::Caller::new(number, *address, history, seed);
                caller.call_until(end);
                Ok(caller.tally)
            }));
        }
        let watched = watch(&|| !callers.iter().any(|caller| caller.is_finished()));
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

/// One port for HTTP and one for raw TCP, or one for datagrams, to the same program.
fn deploy(host: &Host, image: &str, number: usize) -> Result<SocketAddr> {
    let (name, word) = (name(number), Sleep::of(number).word());
    let service = if number < STREAMS {
        "  protocol = 'tcp'\n  internal_port = 8080\n  [[services.ports]]\n    port = 80\n    \
         handlers = ['http']\n  [[services.ports]]\n    port = 81\n"
    } else {
        "  protocol = 'udp'\n  internal_port = 9999\n  [[services.ports]]\n    port = 5300\n"
    };
    let text = format!(
        "app = '{name}'\n[build]\n  image = '{image}'\n[env]\n  UDP_PORT = '9999'\n[[services]]\n  \
         auto_stop_machines = '{word}'\n  auto_start_machines = true\n  min_machines_running = 0\n\
         {service}"
    );
    let dir = host.app_dir(&name, &text)?;
    let launch = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", &name, "--yes"];
    host.fly_in(&dir, &launch)?.ok()?;
    let ip: IpAddr = host.flycast(&name)?.parse().context("its address")?;
    Ok(SocketAddr::new(ip, if number < STREAMS { 80 } else { 5300 }))
}

/// Disturbs until Machines were woken so often, and tells how it goes on.
fn watch(
    events: &mut Events,
    disturber: &mut Disturber<'_>,
    cycles: usize,
    started: Instant,
    all_call: &dyn Fn() -> bool,
) -> Result<()> {
    let (mut told, mut before, mut moved) = (Instant::now(), 0, Instant::now());
    loop {
        events.read_on()?;
        disturber.step()?;
        ensure!(all_call(), "a caller has ended");
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
            let (now, proxies) = (time_of_day(), disturber::proxies(disturber.host).len());
            let seconds = started.elapsed().as_secs_f64();
            println!("{now} {woken} wakes in {seconds:.0} s, {proxies} proxies");
            told = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// When nobody calls, everything must be asleep as it should be, and nothing else be there.
fn at_rest(host: &Host, history: &History) -> Result<()> {
    let mut frozen = 0;
    // Sessions of datagrams are load for half a minute.
    for number in (0..APPS).rev() {
        let asleep = Sleep::of(number).state();
        let what = format!("{} to be {asleep}", name(number));
        let found = wait_until(&what, Duration::from_secs(60), || {
            let states = host.states(&name(number))?;
            // A deploy leaves those asleep that are, but stopped.
            let is_right =
                |it: &str| it == asleep || it == "stopped" && history.was_deployed(number);
            let [state] = &states[..] else { bail!("its Machines are {states:?}") };
            Ok(is_right(state).then(|| state.clone()))
        })?;
        frozen += usize::from(found == "suspended");
    }
    let (armed, shims): (Vec<_>, Vec<_>) = disturber::of_role(host, "shim")
        .into_iter()
        .partition(|shim| shim.args.iter().any(|arg| arg == "--armed"));
    ensure!(shims.len() == frozen, "{} shims for {frozen} suspended Machines", shims.len());
    ensure!(armed.len() <= ARMED_MAX, "{} stopped Machines are armed", armed.len());
    wait_until("one proxy, that of the server", Duration::from_secs(30), || {
        let proxies = disturber::proxies(host);
        ensure!(proxies.len() == 1, "{} proxies are left", proxies.len());
        Ok(Some(()))
    })
}

/// Hour, minute and second with its thousandths, as in the logs.
fn time_of_day() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, ms) = (since.as_secs() % 86_400, since.subsec_millis());
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() -> Result<()> {
        let options = parsed("--cycles 7 --seed 9 --only deploy --only kill-proxy")?;
        let kinds = vec![Kind::Deploy, Kind::KillProxy];
        assert_eq!(options, Options { cycles: 7, seed: 9, kinds });
        assert_eq!(parsed("")?.kinds, Kind::ALL);
        assert_eq!(parsed("--only none")?.kinds, []);
        for bad in ["--cycles", "--only rain", "--rounds 1"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
