//! Random sequences of API calls against a real server, compared with a model of it.
//!
//! ```text
//! perch-model [--sequences N] [--seconds S] [--seed S] [--lanes L]
//! ```
//!
//! A lane is a host of its own with `perch server` inside (`PERCH_BIN`). On it run sequences, each from a seed: apps,
//! addresses, Machines, leases, releases, what scaling does, visits. A call is mostly one that is granted; else the
//! exact refusal is known. Now and then server or proxy are killed: between two calls, as soon as one is answered, or
//! during one, which then has happened or not, but not by halves. After each step everything that the API shows is
//! compared; at the end everything is destroyed, and the host must have nothing more than before.
//!
//! A sequence that fails is made shorter for as long as it still fails, and printed.

mod call;
mod choices;
mod image;
mod lane;
mod leaks;
mod meeting;
mod model;
mod op;
mod seen;
mod shrink;
mod tally;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use lane::{Failure, Lane};
use tally::Tally;

/// What is run.
#[derive(Debug, Clone, Copy)]
struct Options {
    sequences: u64,
    /// No sequence begins later than this.
    limit: Duration,
    seed: u64,
    lanes: usize,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(reason) = perch_testkit::skip_reason() {
        println!("skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    match parse(&args).and_then(run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn parse(args: &[String]) -> Result<Options> {
    let limit = Duration::from_secs(24 * 3600);
    let mut options = Options { sequences: 1_000, limit, seed: 1, lanes: 2 };
    for pair in args.chunks(2) {
        let [name, value] = pair else { bail!("{} wants a number", pair[0]) };
        let number: u64 = value.parse().with_context(|| format!("{name} wants a number"))?;
        match name.as_str() {
            "--sequences" => options.sequences = number,
            "--seconds" => options.limit = Duration::from_secs(number),
            "--seed" => options.seed = number,
            "--lanes" => options.lanes = usize::try_from(number)?.max(1),
            other => {
                bail!("unknown option {other}; there are --sequences, --seconds, --seed, --lanes")
            }
        }
    }
    Ok(options)
}

/// Runs all lanes; whether every sequence was clean.
fn run(options: Options) -> Result<bool> {
    let started = Instant::now();
    let (next, sum, failed) = (AtomicU64::new(0), Mutex::new(Tally::default()), Mutex::new(None));
    let lanes = std::thread::scope(|scope| {
        let work = || work(options, started, &next, &sum, &failed);
        let lanes: Vec<_> = (0..options.lanes).map(|_| scope.spawn(work)).collect();
        lanes.into_iter().map(|lane| lane.join().ok().context("a lane panicked")?).collect()
    });
    let lanes: Result<Vec<()>> = lanes;
    println!("{} in {:.0} s", locked(&sum), started.elapsed().as_secs_f64());
    lanes?;
    let failed = locked(&failed).take();
    if let Some((seed, failure)) = failed {
        report(seed, failure)?;
        return Ok(false);
    }
    Ok(true)
}

type Failed = Mutex<Option<(u64, Failure)>>;

fn work(
    options: Options,
    started: Instant,
    next: &AtomicU64,
    sum: &Mutex<Tally>,
    failed: &Failed,
) -> Result<()> {
    let mut lane = Lane::start()?;
    while started.elapsed() < options.limit && locked(failed).is_none() {
        let number = next.fetch_add(1, Ordering::SeqCst);
        if options.sequences <= number {
            break;
        }
        let seed = options.seed + number;
        if let Err(failure) = lane.run(seed) {
            println!("sequence {seed} failed: {:#}", failure.error);
            locked(failed).get_or_insert((seed, failure));
        }
    }
    locked(sum).add(&lane.tally);
    Ok(())
}

fn report(seed: u64, failure: Failure) -> Result<()> {
    let found = shrink::shrink(failure)?;
    println!("\nthe shortest sequence that fails ({} steps):", found.steps.len());
    for step in &found.steps {
        println!("  {step:?}");
    }
    println!("{:#}\n--- server log\n{}", found.error, found.log);
    println!("\nagain: cargo x model --seed {seed} --sequences 1");
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
