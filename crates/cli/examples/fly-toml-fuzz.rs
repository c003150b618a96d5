//! Reads files by chance for as long as one likes: none may panic, none may take long, and whatever
//! parses must print and parse again to the same.
//!
//! `cargo run --release -p perch-cli --example fly-toml-fuzz -- --seconds 3600 [--seed N] [DIR…]`, where
//! DIR holds further files to start from. Ends with 1 and the input at the first failure.

#[path = "../tests/cli/mutate.rs"]
mod mutate;

use mutate::Random;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Reading a file of this size takes microseconds; this is a loop gone wrong.
const SLOW: Duration = Duration::from_secs(2);
const REPORT_EVERY: u64 = 100_000;

fn main() -> ExitCode {
    let (seconds, seed, seeds) = arguments();
    let mut random = Random::new(seed);
    let (begin, mut files) = (Instant::now(), 0u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let (name, bytes) = mutate::file(&mut random, &seeds);
        let start = used();
        let checked = catch_unwind(AssertUnwindSafe(|| mutate::check(name, &bytes)));
        let failure = match checked {
            Ok(Ok(())) if used() - start < SLOW => None,
            Ok(Ok(())) => Some(format!("took {:?}", used() - start)),
            Ok(Err(error)) => Some(error),
            Err(_) => Some("panicked".to_owned()),
        };
        if let Some(failure) = failure {
            println!("{name}: {failure}\n--- input, seed {seed}, file {files} ---");
            println!("{}\n--- bytes ---\n{bytes:?}", String::from_utf8_lossy(&bytes));
            return ExitCode::FAILURE;
        }
        files += 1;
        if files.is_multiple_of(REPORT_EVERY) {
            println!("{files} files in {:?}", begin.elapsed());
        }
    }
    println!("{files} files in {:?}, none failed", begin.elapsed());
    ExitCode::SUCCESS
}

/// CPU time of this program: it may itself be stopped for a while.
fn used() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let nanos = used.tv_nsec.try_into().unwrap_or(0);
    Duration::new(used.tv_sec.try_into().unwrap_or(0), nanos)
}

type Seeds = Vec<(String, Vec<u8>)>;

fn arguments() -> (u64, u64, Seeds) {
    let (mut seconds, mut seed, mut further) = (60, 1, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number =
            |default| arguments.next().and_then(|number| number.parse().ok()).unwrap_or(default);
        match argument.as_str() {
            "--seconds" => seconds = number(seconds),
            "--seed" => seed = number(seed),
            dir => further.extend(files_of(dir)),
        }
    }
    (seconds, seed, mutate::seeds(further))
}

fn files_of(dir: &str) -> Seeds {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_str()?.to_owned();
        let wanted = [".toml", ".json", ".yaml"].iter().any(|suffix| name.ends_with(suffix));
        wanted.then(|| Some((name, std::fs::read(entry.path()).ok()?)))?
    };
    entries.filter_map(read).filter(|(_, bytes)| !bytes.is_empty()).collect()
}
