//! `callers`: what it costs to say who calls (`Fly-Src`), with 1,000 callers on 1,000 connections.
//!
//! Two proxies of the same build, in processes of their own (`warm` of `proxy`'s examples): one has a key and signs for each
//! caller once a second, the other has none. Both have core 0; the upstream and `wrk` share core 1.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::figures::{Series, holds};
use super::rig;
use crate::{packages, shell};

/// Rounds of both.
pub(crate) const ROUNDS: usize = 5;

const LIMIT: f64 = 1.05;
const UPSTREAM_PORT: u16 = 18_080;
/// Port and last argument of each.
const PROXIES: [(u16, &str); 2] = [(18_081, "plain"), (18_082, "signed")];
const SECONDS: &str = "5";

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Measures both; whether the promise holds.
pub(crate) fn run(rounds: usize) -> Result<bool> {
    packages::ensure(packages::BENCHES)?;
    let build = ["build", "--release", "--locked", "-p", "perch-proxy", "--example", "warm"];
    ensure!(shell::succeeds(&mut shell::cargo(&build))?, "the release build failed");
    let warm = shell::built("release", "examples/warm")?;
    let start = |core: &str, args: &[&str]| -> Result<Running> {
        let mut command = Command::new("taskset");
        command.args(["-c", core]).arg(&warm).args(args).stdin(Stdio::piped());
        let child = command.stderr(Stdio::null()).spawn().context("starting a proxy")?;
        Ok(Running(child))
    };
    let upstream = UPSTREAM_PORT.to_string();
    let _upstream = start("1", &["upstream", &upstream])?;
    let mut proxies = Vec::new();
    for (port, what) in PROXIES {
        proxies.push(start("0", &["callers", &port.to_string(), &upstream, what])?);
    }
    std::thread::sleep(Duration::from_secs(1));
    let mut figures = [Series::default(), Series::default()];
    for _ in 0..rounds {
        for (index, (port, _)) in PROXIES.into_iter().enumerate() {
            let pid = proxies[index].0.id();
            let before = rig::cpu_seconds(pid)?;
            let requests = load(port)?;
            figures[index].push((rig::cpu_seconds(pid)? - before) * 1e6 / requests);
        }
    }
    for (series, (_, what)) in figures.iter().zip(PROXIES) {
        series.print(&format!("{what}: CPU per request"), "us");
    }
    let ratio = figures[1].median() / figures[0].median();
    Ok(holds("CPU/request: 1,000 callers with Fly-Src / without", ratio, LIMIT))
}

/// Requests that were answered.
fn load(port: u16) -> Result<f64> {
    let url = format!("http://127.0.0.1:{port}/");
    let mut wrk = Command::new("taskset");
    wrk.args(["-c", "1", "wrk", "-t", "1", "-c", "1000", "-d", SECONDS, &url]);
    let told = wrk.output().context("running wrk")?;
    let text = String::from_utf8_lossy(&told.stdout);
    if !told.status.success() || text.contains("Non-2xx") {
        bail!("wrk: {text}");
    }
    let line = text.lines().find(|line| line.contains(" requests in ")).context("no figures")?;
    line.split_whitespace().next().context("no number")?.parse().context("requests")
}
