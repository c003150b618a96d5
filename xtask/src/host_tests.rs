//! Runs the host tests: each in a process of its own, so that some can run at once.
//!
//! They wait more than they compute: for programs that start, fall asleep or end. In one process they would share
//! descriptors, and what one test hands down to its server would be inherited by whatever another one starts at that
//! moment. Two that need the same thing of the machine take turns by themselves (`perch_testkit::Shared`); those that
//! need all of it are named in [`ALONE`] and run before the others, one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// Tests at once, on a machine with as many cores: they mostly wait, but what they wait for is often the idleness of a
/// program, which a busy machine does not give them.
const AT_ONCE: usize = 2;

/// Modules of tests beside which no other test runs, each with its reason.
const ALONE: &[(&str, &str)] = &[
    ("armed", "its Machines sleep after 300 ms, and it looks at them before that"),
    ("bad_input", "what is made ready meanwhile decides what its full disk has room for"),
    ("down", "the time of two ends tells whether they were at once"),
    ("faults::paging", "what another test frees meanwhile lies in swap that is turned off"),
    ("limits", "its programs take all processes, memory, disk and time that they get"),
    ("memory", "whoever waits for memory, also on another host, makes sleepers give way"),
    ("room", "whoever waits for memory, also on another host, makes sleepers give way"),
    ("slow_reader", "the times of two programs are compared"),
];

/// How many of the slowest tests are named at the end.
const SLOWEST: usize = 10;

/// The package of the tests, from the root of the workspace.
const HOME: &str = "tests/e2e";

/// Which of them passed.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) passed: u64,
    pub(crate) failed: Vec<String>,
}

/// Builds the tests, with the features of all crates together, as the other rings do.
pub(crate) fn build() -> Result<PathBuf> {
    let args = ["test", "--workspace", "--locked", "--test", "host", "--no-run"];
    let format = ["--message-format=json-render-diagnostics"];
    let mut command = shell::cargo(&[&args[..], &format].concat());
    let output = command.stderr(Stdio::inherit()).output().context("starting cargo test")?;
    if !output.status.success() {
        bail!("the host tests do not build");
    }
    let messages = String::from_utf8(output.stdout)?;
    messages.lines().find_map(executable).context("cargo names no program of the host tests")
}

fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let wanted = message["target"]["name"] == "host";
    Some(PathBuf::from(message["executable"].as_str().filter(|_| wanted)?))
}

/// Runs all tests whose module is not `without`.
pub(crate) fn run(binary: &Path, perch: &Path, without: &str) -> Result<Results> {
    let list = shell::output(Command::new(binary).arg("--list"))?;
    let names: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let names = spread(names.into_iter().filter(|name| module(name) != without));
    ensure!(!names.is_empty(), "{} lists no tests", binary.display());
    println!("\nrunning {} tests", names.len());
    let (alone, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| is_alone(name));
    let mut ended = run_all(binary, perch, alone, 1)?;
    ended.extend(run_all(binary, perch, others, at_once())?);
    print!("{}", slowest(&mut ended));
    let (passed, failed): (Vec<_>, Vec<_>) = ended.into_iter().partition(|it| it.passed);
    let failed = failed.into_iter().map(|it| it.name.to_owned()).collect();
    Ok(Results { passed: passed.len() as u64, failed })
}

/// A test that was run.
struct Ended<'a> {
    name: &'a str,
    passed: bool,
    took: Duration,
}

/// Runs these tests, so many of them at once.
fn run_all<'a>(
    binary: &Path,
    perch: &Path,
    names: Vec<&'a str>,
    at_once: usize,
) -> Result<Vec<Ended<'a>>> {
    let queue = Mutex::new(VecDeque::from(names));
    let worker = || -> Result<Vec<Ended<'a>>> {
        let mut ended = Vec::new();
        while let Some(name) = next(&queue) {
            ended.push(run_one(binary, perch, name)?);
        }
        Ok(ended)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let all = workers.into_iter().map(|it| it.join().ok().context("a thread panicked")?);
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(AT_ONCE))
}

fn next<'a>(queue: &Mutex<VecDeque<&'a str>>) -> Option<&'a str> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn module(name: &str) -> &str {
    name.split_once("::").map_or(name, |(module, _)| module)
}

fn is_alone(name: &str) -> bool {
    let is_in = |module: &str| name.strip_prefix(module).is_some_and(|it| it.starts_with("::"));
    ALONE.iter().any(|(module, _)| is_in(module))
}

/// Those that took longest, a line each.
fn slowest(ended: &mut [Ended<'_>]) -> String {
    ended.sort_by_key(|it| std::cmp::Reverse(it.took));
    let lines = ended.iter().take(SLOWEST);
    let lines = lines.map(|it| format!("    {:5.1} s {}\n", it.took.as_secs_f64(), it.name));
    format!("\nslowest:\n{}", lines.collect::<String>())
}

/// One of each module, then the next of each: those that take turns are mostly of one module.
fn spread<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut placed: Vec<(usize, &str)> = Vec::new();
    for name in names {
        let place = seen.entry(module(name)).or_default();
        placed.push((*place, name));
        *place += 1;
    }
    placed.sort_unstable();
    placed.into_iter().map(|(_, name)| name).collect()
}

/// Runs one test and says how it went.
fn run_one<'a>(binary: &Path, perch: &Path, name: &'a str) -> Result<Ended<'a>> {
    let started = Instant::now();
    // A file: a pipe would stay open as long as anything that a test has left behind.
    let mut said = tempfile::tempfile()?;
    let status = Command::new(binary)
        .args(["--exact", name])
        .env("PERCH_BIN", perch)
        .current_dir(shell::root().join(HOME))
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said.try_clone()?)
        .status()
        .with_context(|| format!("starting {}", binary.display()))?;
    let (took, passed) = (started.elapsed(), status.success());
    let seconds = took.as_secs_f64();
    if passed {
        println!("test {name} ... ok in {seconds:.1} s");
    } else {
        println!("test {name} ... FAILED in {seconds:.1} s, {status}\n{}", all_of(&mut said)?);
    }
    Ok(Ended { name, passed, took })
}

/// What was written into a file, from its beginning.
fn all_of(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_one_module_are_spread() {
        let names = ["a::x", "a::y", "a::z", "b::x", "c::x", "c::y"];
        let spread = spread(names.into_iter());
        assert_eq!(spread, ["a::x", "b::x", "c::x", "a::y", "c::y", "a::z"]);
    }

    #[test]
    fn every_module_that_runs_alone_is_there_and_says_why() {
        let tests = shell::root().join(HOME).join("tests/host");
        for (module, reason) in ALONE {
            let file = tests.join(module.replace("::", "/")).with_extension("rs");
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(text.contains("#[test]"), "{module}: no tests in {}", file.display());
            assert!(!reason.is_empty(), "{module} has no reason");
        }
    }

    #[test]
    fn a_module_runs_alone_with_all_that_is_below_it() {
        let alone = ["limits::x", "faults::paging::x", "faults::x", "limits_of::x", "limits"];
        assert_eq!(alone.map(is_alone), [true, true, false, false, false]);
    }

    #[test]
    fn the_slowest_come_first() {
        let mut ended: Vec<Ended<'_>> = (1..=11)
            .map(|seconds| Ended { name: "x", passed: true, took: Duration::from_secs(seconds) })
            .collect();
        let lines: Vec<String> = slowest(&mut ended).lines().map(str::to_owned).collect();
        assert_eq!(lines[1..3], ["slowest:", "     11.0 s x"]);
        assert_eq!(lines.len(), 2 + SLOWEST);
    }

    #[test]
    fn the_program_is_found_among_the_messages() {
        let other = r#"{"reason":"compiler-artifact","target":{"name":"root"},"executable":"/r"}"#;
        let library = r#"{"target":{"name":"host"},"executable":null}"#;
        let wanted = r#"{"target":{"name":"host"},"executable":"/h"}"#;
        assert_eq!(executable(other), None);
        assert_eq!(executable(library), None);
        assert_eq!(executable("no JSON"), None);
        assert_eq!(executable(wanted), Some(PathBuf::from("/h")));
    }
}
