//! `neighbour`: what a Machine's callers feel of another Machine that takes all it can get.
//!
//! Each round asks a quiet Machine alone, then beside one that abuses its limits in one way, or floods an app with calls,
//! each request by a new connection. The abuser has the smallest guest. Medians are compared, so that load from elsewhere touches both.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use perch_testkit::{Host, Image, Network};

use super::figures::{Series, holds};
use super::wake::{first_byte, wait_for};
use super::{FLOOD, flood};

/// Rounds for each abuser.
const ROUNDS: usize = 5;

/// Requests of one kind in a round: beside the abuser the first of them come while nothing has been done about it yet.
const REQUESTS: usize = 1000;

/// A neighbour's median beside an abuser, against its median alone.
const LIMIT: f64 = 1.2;

/// Little enough that it is full in each round.
const CONFIG: &str = "root_disk_mb = 512\n";

/// What it does until it is stopped.
#[derive(Debug, Clone, Copy)]
enum Abuse {
    /// What this script does.
    Script(&'static str),
    /// Calls the app `flooded` in this way.
    Flood(&'static str),
}

use Abuse::{Flood, Script};

/// The name of each, and what it does.
const ABUSERS: [(&str, Abuse); 8] = [
    ("spins", Script("while :; do :; done & while :; do :; done")),
    ("forks", Script("while :; do busybox sleep 5 & done 2>/dev/null")),
    ("eats-memory", Script("while :; do busybox tail /dev/zero; done 2>/dev/null")),
    ("fills-disk", Script("while :; do busybox dd if=/dev/zero of=/big bs=1M; done 2>/dev/null")),
    ("fills-log", Script("exec busybox yes 0123456789abcdef")),
    ("asks", Flood(flood::REQUESTS)),
    ("connects", Flood(flood::CONNECTIONS)),
    ("stalls", Flood(flood::HEADS)),
];

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    rounds: usize,
    /// This abuser alone.
    only: Option<&'static str>,
}

impl Options {
    /// Reads what follows the name of the benchmark.
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { rounds: ROUNDS, only: None };
        for pair in args.chunks(2) {
            let [option, value] = pair else { bail!("{} wants a value", pair[0]) };
            let abuser = ABUSERS.iter().map(|(name, _)| *name).find(|name| name == value);
            match (option.as_str(), abuser) {
                ("--rounds", _) => options.rounds = value.parse().context("--rounds")?,
                ("--only", Some(name)) => options.only = Some(name),
                _ => bail!("unknown: {option} {value}; there are --rounds N, --only ABUSER"),
            }
        }
        Ok(options)
    }
}

/// Measures the abusers; whether the promise holds for each.
pub(crate) fn run(options: Options) -> Result<bool> {
    let host = Host::start_with(Network::Open, CONFIG)?;
    let address = deploy(&host, "quiet")?;
    let flooded = deploy(&host, "flooded")?;
    let mut good = true;
    let chosen = |name: &str| options.only.is_none_or(|only| only == name);
    for (name, abuse) in ABUSERS.into_iter().filter(|(name, _)| chosen(name)) {
        let image = match abuse {
            Script(script) => Image::shell(script)?,
            Flood(way) => flooding(&host, way, flooded)?,
        };
        let id = deploy_abuser(&host, name, image)?;
        good &= measure(&host, name, &id, address, options.rounds)?;
        host.fly(&["apps", "destroy", name, "--yes"])?.ok()?;
    }
    Ok(good)
}

/// An app of one Machine that stays awake.
fn deploy(host: &Host, app: &str) -> Result<SocketAddr> {
    let image = Image::hello(8080)?.write(&host.dir().join(format!("{app}-image")))?;
    let text = format!(
        "app = '{app}'\n[build]\n  image = '{image}'\n[http_service]\n  internal_port = 8080\n  \
         force_https = false\n  auto_stop_machines = 'off'\n  auto_start_machines = true\n"
    );
    let dir = host.app_dir(app, &text)?;
    let args = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", app, "--yes"];
    host.fly_in(&dir, &args)?.ok()?;
    let ip: IpAddr = host.flycast(app)?.parse()?;
    Ok(SocketAddr::new(ip, 80))
}

/// This program, as what floods.
fn flooding(host: &Host, way: &str, target: SocketAddr) -> Result<Image> {
    let dir = host.dir().join("flood");
    std::fs::create_dir_all(&dir)?;
    std::fs::copy(std::env::current_exe()?, dir.join(FLOOD))?;
    let program = format!("/{FLOOD}");
    Ok(Image::directory(&dir)?.entrypoint(&[&program, FLOOD, way, &target.to_string()]))
}

/// A Machine that runs already when this returns.
fn deploy_abuser(host: &Host, name: &str, image: Image) -> Result<String> {
    let image = image.write(&host.dir().join(format!("{name}-image")))?;
    let text = format!("app = '{name}'\n[build]\n  image = '{image}'\n");
    let dir = host.app_dir(name, &text)?;
    host.fly(&["apps", "create", name])?.ok()?;
    host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
    let machine = host.machines(name)?.pop().context("no Machine")?;
    Ok(machine.id)
}

fn measure(host: &Host, name: &str, id: &str, address: SocketAddr, rounds: usize) -> Result<bool> {
    let (mut alone, mut beside) = (Series::default(), Series::default());
    for _ in 0..rounds {
        let stop = ["machine", "stop", id, "-a", name, "-s", "SIGKILL", "-w", "60s"];
        host.fly(&stop)?.ok()?;
        ask(host, address, &mut alone)?;
        host.fly(&["machine", "start", id, "-a", name])?.ok()?;
        wait_for(host, name, "started")?;
        ask(host, address, &mut beside)?;
    }
    alone.print(&format!("beside nobody ({name})"), "ms");
    beside.print(&format!("beside one that {name}"), "ms");
    Ok(holds(name, beside.median() / alone.median(), LIMIT))
}

fn ask(host: &Host, address: SocketAddr, series: &mut Series) -> Result<()> {
    let times = host.inside(|| {
        let times = (0..REQUESTS).map(|_| first_byte(address, Instant::now()));
        times.collect::<Result<Vec<_>>>()
    })?;
    times.into_iter().for_each(|time| series.push_ms(time));
    Ok(())
}
