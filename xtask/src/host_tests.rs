//! Runs the host tests: each in a process of its own, so that some can run at once.
//!
//! They wait more than they compute: for programs that start, fall asleep or end. In one process they would share
//! descriptors, and what one test hands down to its server would be inherited by whatever another one starts at that
//! moment. Two that need the same thing of the machine take turns by themselves (`perch_testkit::Shared`).

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// Tests at once. Two take two thirds of the time of one; but `memory` then sees programs wait for memory that belong to
/// the other test, and would have to run alone.
const AT_ONCE: usize = 1;

/// The package of the tests, from the root of the workspace.
const HOME: &str = "tests/e2e";

/// Which of them passed.
#[derive(Debug, Default)]
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
    let queue = Mutex::new(VecDeque::from(names));
    let results = Mutex::new(Results::default());
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            while let Some(name) = next(&queue) {
                let passed = run_one(binary, perch, name)?;
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                if passed { results.passed += 1 } else { results.failed.push(name.to_owned()) }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|it| it.join().ok().context("a thread panicked")?)
    })?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn next<'a>(queue: &Mutex<VecDeque<&'a str>>) -> Option<&'a str> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn module(name: &str) -> &str {
    name.split_once("::").map_or(name, |(module, _)| module)
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

/// Runs one test and says how it went; whether it passed.
fn run_one(binary: &Path, perch: &Path, name: &str) -> Result<bool> {
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
    let took = started.elapsed().as_secs_f64();
    if status.success() {
        println!("test {name} ... ok in {took:.1} s");
    } else {
        println!("test {name} ... FAILED in {took:.1} s, {status}\n{}", all_of(&mut said)?);
    }
    Ok(status.success())
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
