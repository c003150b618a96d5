//! `warm`: CPU per request of the proxy beside HAProxy, 64 bytes, 64 connections.
//!
//! Namespaces and upstream are those of `rig`. The proxy has core 0; `wrk` and the upstream share core 1.
//!
//! CPU is what the kernel charges the proxy's process for, by one rule for both: its own code, and what
//! its writes set going in the receiver's stack. Rules that only callers' packets meet are charged to `wrk`.

use anyhow::{Context, Result};
use perch_testkit::Host;

use super::figures::{Series, holds};
use super::load::Load;
use super::rig::{self, Program, Rivals};

/// Rounds of both contenders.
pub(crate) const ROUNDS: usize = 7;

const LIMIT: f64 = 1.0;
const LOAD: Load =
    Load { connections: 64, seconds: 5, path: "/", header: None, streams: 0, calls: false };

pub(super) const HAPROXY: Program = Program {
    name: "haproxy",
    command: &["haproxy", "-q", "-db", "-f"],
    port: 80,
    config: "\
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  bind [fd99::2]:80
  option forwardfor
  default_backend back
backend back
  server upstream 10.99.0.1:8080
",
};

/// Measures both; whether the promise holds.
pub(crate) fn run(rounds: usize) -> Result<bool> {
    let host = Host::start()?;
    let address = rig::deploy(&host)?;
    let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?.pid;
    let rivals = Rivals::start(&host, rig::machine_pid(&host)?, &[HAPROXY])?;
    let haproxy = rivals.pids()[0];
    rig::pin(proxy, "0")?;
    rig::pin_all_but(&host, proxy)?;
    let (mut ours, mut theirs) = (Contender::default(), Contender::default());
    for _ in 0..rounds {
        theirs.round(&host, haproxy, "[fd99::2]")?;
        ours.round(&host, proxy.cast_unsigned(), &format!("[{address}]"))?;
    }
    theirs.print("haproxy");
    ours.print("perch");
    let rate = ours.rate.median() / theirs.rate.median();
    println!("{:<28} {rate:.2}x", "requests/s: perch / haproxy");
    Ok(holds("CPU/request: perch / haproxy", ours.cpu.median() / theirs.cpu.median(), LIMIT))
}

/// The figures of one proxy.
#[derive(Default)]
struct Contender {
    cpu: Series,
    rate: Series,
}

impl Contender {
    fn round(&mut self, host: &Host, pid: u32, authority: &str) -> Result<()> {
        let before = rig::cpu_seconds(pid)?;
        let told = LOAD.run(host, authority)?;
        let used = rig::cpu_seconds(pid)? - before;
        self.cpu.push(used * 1e6 / told.requests);
        self.rate.push(told.rate);
        Ok(())
    }

    fn print(&self, name: &str) {
        self.cpu.print(&format!("{name}: CPU per request"), "us");
        self.rate.print(&format!("{name}: requests per second"), "/s");
    }
}
