//! The rings of `cargo x test`, from the quickest to the one that needs a whole host.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{deny, guest, host_tests, packages, schemathesis, shell, tidy};

/// Seeds that `cargo x test` tries; a longer search is `cargo x sim --seeds N`.
const SIM_SEEDS: &str = "2000";

/// What `cargo x test` tries of the model; the whole is `cargo x model --sequences 1000`.
const MODEL: &[&str] = &["--sequences", "150", "--seconds", "60"];

/// The binary under test and the example app, built beside it, where the tests look for it.
const PRODUCT: &[&str] = &["build", "--locked", "--package", "perch", "--package", "perch-hello"];

/// With the features of all crates together: other sets of features build the world again.
const MODEL_BUILD: &[&str] = &["build", "--workspace", "--locked", "--bin", "perch-model"];

/// What came out of one step.
#[derive(Clone, Copy, Default)]
struct Tally {
    passed: u64,
    failed: u64,
}

struct Step {
    name: &'static str,
    tally: Tally,
    took: Duration,
    skipped: Option<String>,
}

/// Runs what is named, everything by default; prints one summary.
pub(crate) fn test(what: &[String]) -> Result<bool> {
    let started = Instant::now();
    let mut steps = Vec::new();
    if what.is_empty() {
        for ring in ["check", "unit", "sim", "component", "host", "model", "wire", "guest"] {
            steps.extend(run_ring(ring)?);
        }
    }
    for name in what {
        steps.extend(run_ring(name)?);
    }
    Ok(summary(&steps, started.elapsed()))
}

/// Format, clippy, tidy, docs, deny.
pub(crate) fn check() -> Result<bool> {
    let started = Instant::now();
    let steps = check_steps(&[step("docs", docs)])?;
    Ok(summary(&steps, started.elapsed()))
}

/// Has the tests that compare checked-in pages with the code write them instead.
pub(crate) fn docs_from_code() -> Result<bool> {
    let mut command =
        shell::cargo(&["test", "--locked", "--quiet", "--package", "perch-cli", "--lib", "compat"]);
    command.env("PERCH_WRITE_DOCS", "1");
    shell::succeeds(&mut command)
}

/// The simulation with the caller's arguments.
pub(crate) fn sim(args: &[String]) -> Result<bool> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    simulate(&args)
}

/// Random API calls with the caller's arguments, against the binary as users get it.
pub(crate) fn model(args: &[String]) -> Result<bool> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    packages::ensure(packages::TESTS)?;
    let release = ["--release", "--locked"];
    let build = [&["build"], &release[..], &["--package", "perch", "--package", "perch-hello"]];
    if !shell::succeeds(&mut shell::cargo(&build.concat()))? {
        bail!("the release build failed");
    }
    let run = [&["run", "--quiet"], &release[..], &["--package", "perch-model", "--"], &args];
    let mut command = shell::cargo(&run.concat());
    if std::env::var_os("PERCH_BIN").is_none() {
        command.env("PERCH_BIN", shell::built("release", "perch")?);
    }
    shell::succeeds(&mut command)
}

fn run_ring(name: &str) -> Result<Vec<Step>> {
    match name {
        "check" => check_steps(&[]),
        "unit" => Ok(vec![timed("unit", unit)?]),
        "sim" => Ok(vec![
            timed("sim", || passed(simulate(&["--seeds", SIM_SEEDS])))?,
            timed("mutants", || passed(simulate(&["--mutants"])))?,
        ]),
        "component" => Ok(vec![privileged("component", component)?]),
        "host" => Ok(vec![privileged("host", host)?]),
        "model" => Ok(vec![privileged("model", host_model)?]),
        "wire" => Ok(vec![privileged("wire", wire)?]),
        "guest" => Ok(vec![privileged("guest", guest)?]),
        crate_name => Ok(vec![timed("crate", || one_crate(crate_name))?]),
    }
}

type Run = fn() -> Result<Tally>;

fn step(name: &'static str, run: Run) -> (&'static str, Run) {
    (name, run)
}

fn check_steps(more: &[(&'static str, Run)]) -> Result<Vec<Step>> {
    let usual = [
        step("format", || cargo_passes(&["fmt", "--all", "--check"])),
        step("clippy", clippy),
        step("tidy", || passed(tidy::run())),
        step("deny", || passed(deny::run())),
    ];
    usual.iter().chain(more).map(|(name, run)| timed(name, run)).collect()
}

fn clippy() -> Result<Tally> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    cargo_passes(&args)
}

fn docs() -> Result<Tally> {
    let mut command = shell::cargo(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    passed(shell::succeeds(&mut command))
}

/// Tests beside the code, and integration tests that need no privileges.
fn unit() -> Result<Tally> {
    if std::env::var_os("E2E_REQUIRED").is_some_and(|value| value == "1") {
        packages::ensure(packages::UNIT)?;
    }
    let mut args = vec!["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins"];
    let others = plain_test_targets()?;
    args.extend(others.iter().flat_map(|name| ["--test", name.as_str()]));
    cargo_test(&args, false)
}

fn one_crate(name: &str) -> Result<Tally> {
    let dir = ["crates", "tests", "."].map(|dir| shell::root().join(dir).join(name));
    let Some(dir) = dir.iter().find(|dir| dir.join("Cargo.toml").exists()) else {
        bail!("no ring and no crate is named `{name}`");
    };
    let package = package_name(dir)?;
    cargo_test(&["test", "--locked", "--no-fail-fast", "--package", &package], false)
}

/// Tests of single crates against the kernel: namespaces, mounts, cgroups.
fn component() -> Result<Tally> {
    packages::ensure(packages::TESTS)?;
    let args = ["test", "--workspace", "--locked", "--no-fail-fast", "--test", "root"];
    cargo_test(&[&args[..], &["--", "--test-threads=1"]].concat(), true)
}

/// Whole hosts, with the binary as users get it but for optimisation.
fn host() -> Result<Tally> {
    packages::ensure(packages::TESTS)?;
    if !cargo_all_pass(&[PRODUCT])?.good() {
        return Ok(Tally::FAILED);
    }
    let results = host_tests::run(&host_tests::build()?, &product()?, "wire")?;
    let failed = u64::try_from(results.failed.len())?;
    if !results.failed.is_empty() {
        println!("\nfailed:\n    {}", results.failed.join("\n    "));
    }
    Ok(Tally { passed: results.passed, failed })
}

/// The API's description against the server, by a stranger's program.
fn wire() -> Result<Tally> {
    packages::ensure(packages::TESTS)?;
    let program = schemathesis::ensure()?;
    if !cargo_all_pass(&[PRODUCT])?.good() {
        return Ok(Tally::FAILED);
    }
    let args = ["test", "--workspace", "--locked", "--test", "host", "--", "wire::"];
    let mut command = shell::cargo(&[&args[..], &["--nocapture"]].concat());
    command.env("SCHEMATHESIS", program);
    count_tests(command, true)
}

/// A share of the random API calls, on the binary of the host ring.
fn host_model() -> Result<Tally> {
    packages::ensure(packages::TESTS)?;
    if !cargo_all_pass(&[PRODUCT, MODEL_BUILD])?.good() {
        return Ok(Tally::FAILED);
    }
    let mut command = Command::new(shell::built("debug", "perch-model")?);
    command.args(MODEL).env("PERCH_BIN", product()?);
    passed(shell::succeeds(&mut command))
}

/// The package under systemd, in an emulated guest.
fn guest() -> Result<Tally> {
    if let Some(obstacle) = guest::obstacle() {
        bail!("{obstacle}");
    }
    if !cargo_all_pass(&[PRODUCT])?.good() {
        return Ok(Tally::FAILED);
    }
    let guest::Verdict { passed, failed } = guest::run(&product()?)?;
    Ok(Tally { passed, failed })
}

/// The binary under test.
fn product() -> Result<PathBuf> {
    match std::env::var_os("PERCH_BIN") {
        Some(binary) => Ok(binary.into()),
        None => shell::built("debug", "perch"),
    }
}

fn simulate(args: &[&str]) -> Result<bool> {
    let cargo = ["run", "--quiet", "--release", "--locked", "--package", "perch-sim", "--"];
    shell::succeeds(&mut shell::cargo(&[&cargo, args].concat()))
}

/// Runs tests, shows their output and counts what the test harness reports.
fn cargo_test(args: &[&str], needs_binary: bool) -> Result<Tally> {
    count_tests(shell::cargo(args), needs_binary)
}

fn count_tests(mut command: Command, needs_binary: bool) -> Result<Tally> {
    if needs_binary {
        command.env("PERCH_BIN", product()?);
    }
    let mut tally = Tally::default();
    let success = shell::tee(&mut command, |line| tally.count(line))?;
    // A binary that does not compile or dies reports nothing.
    if !success && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

impl Tally {
    const FAILED: Self = Self { passed: 0, failed: 1 };

    fn good(self) -> bool {
        self.failed == 0
    }

    /// Adds `test result: ok. 3 passed; 0 failed; …`.
    fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let before = result.split_once(word).map_or("", |(before, _)| before);
            before.trim().rsplit(' ').next().and_then(|text| text.parse::<u64>().ok())
        };
        self.passed += number("passed").unwrap_or_default();
        self.failed += number("failed").unwrap_or_default();
    }
}

fn cargo_passes(args: &[&str]) -> Result<Tally> {
    passed(shell::succeeds(&mut shell::cargo(args)))
}

/// Runs cargo with each of these until one fails.
fn cargo_all_pass(commands: &[&[&str]]) -> Result<Tally> {
    for args in commands {
        if !cargo_passes(args)?.good() {
            return Ok(Tally::FAILED);
        }
    }
    Ok(Tally { passed: 1, failed: 0 })
}

fn passed(result: Result<bool>) -> Result<Tally> {
    let good = result?;
    Ok(Tally { passed: u64::from(good), failed: u64::from(!good) })
}

fn timed(name: &'static str, run: impl FnOnce() -> Result<Tally>) -> Result<Step> {
    println!("== {name}");
    let started = Instant::now();
    let tally = run().unwrap_or_else(|error| {
        println!("{name}: {error:#}");
        Tally { passed: 0, failed: 1 }
    });
    Ok(Step { name, tally, took: started.elapsed(), skipped: None })
}

/// Runs a step that needs root; without root it is skipped, or fails where a skip is forbidden.
fn privileged(name: &'static str, run: impl FnOnce() -> Result<Tally>) -> Result<Step> {
    if shell::is_root() {
        return timed(name, run);
    }
    let reason = "it makes network namespaces, mounts and cgroups: run `sudo -E cargo x test`";
    if std::env::var_os("E2E_REQUIRED").is_some_and(|value| value == "1") {
        return timed(name, || bail!("not root, and E2E_REQUIRED=1 forbids to skip; {reason}"));
    }
    println!("== {name}\nskipped: {reason}");
    let skipped = Some(reason.to_owned());
    Ok(Step { name, tally: Tally::default(), took: Duration::ZERO, skipped })
}

fn summary(steps: &[Step], took: Duration) -> bool {
    println!();
    for step in steps {
        let Step { name, tally, took, skipped } = step;
        let result = match (skipped, tally.failed) {
            (Some(reason), _) => format!("skipped: {reason}"),
            (None, 0) => format!("ok, {} passed", tally.passed),
            (None, failed) => format!("FAILED, {} passed, {failed} failed", tally.passed),
        };
        println!("{name:<10} {:>7.1} s  {result}", took.as_secs_f64());
    }
    let total = steps.iter().fold(Tally::default(), |sum, step| Tally {
        passed: sum.passed + step.tally.passed,
        failed: sum.failed + step.tally.failed,
    });
    println!("{:<10} {:>7.1} s", "all", took.as_secs_f64());
    if 1 < steps.len() {
        println!("{}", seconds(steps, took));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    total.failed == 0
}

/// One line that can be compared with that of another run.
fn seconds(steps: &[Step], took: Duration) -> String {
    let each = steps.iter().map(|step| format!("{} {:.0}", step.name, step.took.as_secs_f64()));
    let each: Vec<String> = each.collect();
    format!("seconds: {}, all {:.0}", each.join(", "), took.as_secs_f64())
}

/// Names of integration tests that need no privileges: all but `root` and `host`.
fn plain_test_targets() -> Result<Vec<String>> {
    let metadata = shell::cargo(&["metadata", "--format-version=1", "--no-deps", "--locked"])
        .output()
        .context("starting cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let tests = targets.filter(|target| target["kind"][0] == "test");
    let names = tests.filter_map(|target| target["name"].as_str());
    let mut names: Vec<String> =
        names.filter(|name| !matches!(*name, "root" | "host")).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn package_name(dir: &Path) -> Result<String> {
    let manifest: toml_edit::DocumentMut =
        std::fs::read_to_string(dir.join("Cargo.toml"))?.parse()?;
    let name = manifest["package"]["name"].as_str().context("no package name")?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_the_test_harness_are_added_up() {
        let mut tally = Tally::default();
        tally.count("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.count("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        tally.count("running 3 tests");
        assert_eq!((tally.passed, tally.failed), (15, 2));
    }

    #[test]
    fn one_line_has_the_seconds_of_each_ring() {
        let step = |name, took| {
            let took = Duration::from_millis(took);
            Step { name, tally: Tally::default(), took, skipped: None }
        };
        let line = seconds(&[step("unit", 1_900), step("host", 400)], Duration::from_secs(3));
        assert_eq!(line, "seconds: unit 2, host 0, all 3");
    }
}
