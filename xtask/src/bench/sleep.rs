//! `sleep`: a frozen Machine to its first byte, beside the same request to the same Machine awake.
//!
//! Each round waits until the Machine is suspended, asks once (frozen), once more after the same pause (awake) and
//! at once again (busy), each by a new connection; client, proxy, server and Machine share one core. What is between the
//! first two is the wake: the hold and the thaw. After a pause every request finds cold caches, also that of a Machine
//! that never sleeps; the third tells how much that is. A fourth finds the Machine frozen, but all else at work (at once):
//! it comes as soon as the API says that it sleeps.
//!
//! `--freezer v1` and `--freezer stop` measure on hosts that have no better way to freeze (see `Freezing`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Freezing, Host, Network};

use super::figures::{Series, holds};
use super::paged;
use super::rig::pin;
use super::rootfs::{self, Program};
use super::wake::{CONFIG, deploy, first_byte, wait_for};

/// Rounds for each program.
const ROUNDS: usize = 200;

/// A frozen native program's median and 99th percentile, in milliseconds.
const NATIVE_MS: (f64, f64) = (0.3, 2.0);
/// A frozen Python program's median, in milliseconds: by v2, and by what is slower.
const PYTHON_MS: f64 = 0.6;
const PYTHON_V1_MS: f64 = 0.8;
/// A frozen native program against itself awake.
const RATIO: f64 = 2.0;

/// Nobody asks anything for so long before a request that is measured; less than `auto_stop_after`.
const PAUSE: Duration = Duration::from_millis(50);

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    rounds: usize,
    freezing: Freezing,
}

impl Options {
    /// Reads what follows the name of the benchmark.
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { rounds: ROUNDS, freezing: Freezing::V2 };
        for pair in args.chunks(2) {
            let [name, value] = pair else { bail!("{} wants a value", pair[0]) };
            match (name.as_str(), value.as_str()) {
                ("--rounds", number) => options.rounds = number.parse().context("--rounds")?,
                ("--freezer", "v2") => options.freezing = Freezing::V2,
                ("--freezer", "v1") => options.freezing = Freezing::V1,
                ("--freezer", "stop") => options.freezing = Freezing::Signals,
                _ => bail!("unknown: {name} {value}; there are --rounds N, --freezer v2|v1|stop"),
            }
        }
        Ok(options)
    }

    fn python_ms(self) -> f64 {
        match self.freezing {
            Freezing::V2 => PYTHON_MS,
            Freezing::V1 | Freezing::Signals => PYTHON_V1_MS,
        }
    }

    fn host(self) -> Result<Host> {
        let mut host = Host::bare(Network::Open)?;
        ensure!(host.freeze_by_at_most(self.freezing)?, "this machine has no such freezer");
        host.configure(CONFIG);
        host.start_server()?;
        Ok(host)
    }
}

/// Measures both programs; whether the promises hold.
pub(crate) fn run(options: Options) -> Result<bool> {
    pin(i32::try_from(std::process::id())?, "1")?;
    let dir = tempfile::Builder::new().prefix("perch-bench-").tempdir()?;
    let (host, rounds) = (options.host()?, options.rounds);
    let (native, python) = (rootfs::native(dir.path())?, rootfs::python(dir.path())?);
    let address = deploy(&host, &native, dir.path(), "suspend")?;
    let Measured { frozen, awake, at_once } = measure(&host, &native, address, rounds)?;
    let mut good = holds("native: frozen / awake", frozen.median() / awake.median(), RATIO);
    good &= holds("native: median / 0.3 ms", frozen.median() / NATIVE_MS.0, 1.0);
    good &= holds("native: at once / 0.3 ms", at_once.median() / NATIVE_MS.0, 1.0);
    good &= holds("native: p99 / 2 ms", frozen.at(0.99) / NATIVE_MS.1, 1.0);
    let address = deploy(&host, &python, dir.path(), "suspend")?;
    let Measured { frozen, at_once, .. } = measure(&host, &python, address, rounds)?;
    let limit = options.python_ms();
    good &= holds(&format!("python: median / {limit} ms"), frozen.median() / limit, 1.0);
    good &= holds(&format!("python: at once / {limit} ms"), at_once.median() / limit, 1.0);
    drop(host);
    // What is in swap comes back in one way, however it was frozen.
    if options.freezing != Freezing::V2 {
        return Ok(good);
    }
    Ok(paged::run(dir.path(), rounds)? && good)
}

/// One program's.
#[derive(Default)]
struct Measured {
    frozen: Series,
    awake: Series,
    at_once: Series,
}

fn measure(host: &Host, program: &Program, address: SocketAddr, rounds: usize) -> Result<Measured> {
    let Measured { mut frozen, mut awake, mut at_once } = Measured::default();
    let mut busy = Series::default();
    for _ in 0..rounds {
        wait_for(host, program.name, "suspended")?;
        std::thread::sleep(PAUSE);
        wait_for(host, program.name, "suspended")?;
        frozen.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
        std::thread::sleep(PAUSE);
        wait_for(host, program.name, "started")?;
        awake.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
        busy.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
        wait_for(host, program.name, "suspended")?;
        at_once.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
    }
    frozen.print(&format!("{}: frozen", program.name), "ms");
    awake.print(&format!("{}: awake", program.name), "ms");
    busy.print(&format!("{}: awake and busy", program.name), "ms");
    at_once.print(&format!("{}: frozen, at once", program.name), "ms");
    println!("{:<28} {:.2} ms", "p99, frozen", frozen.at(0.99));
    Ok(Measured { frozen, awake, at_once })
}
