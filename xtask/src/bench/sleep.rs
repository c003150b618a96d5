//! `sleep`: a frozen Machine to its first byte, beside the same request to the same Machine awake.
//!
//! Each round waits until the Machine is suspended, asks once (frozen) and once more (awake), each by a
//! new connection. What is between the two is the wake: the hold, the thaw, and whatever the program's first
//! steps cost when its caches are cold.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;
use perch_testkit::{Host, Network};

use super::figures::{Series, holds};
use super::paged;
use super::rootfs::{self, Program};
use super::wake::{CONFIG, deploy, first_byte, wait_for};

/// Rounds for each program.
pub(crate) const ROUNDS: usize = 200;

/// A frozen native program's median and 99th percentile, in milliseconds.
const NATIVE_MS: (f64, f64) = (0.3, 2.0);
/// A frozen Python program's median, in milliseconds.
const PYTHON_MS: f64 = 0.6;
/// A frozen native program against itself awake.
const RATIO: f64 = 2.0;

/// Measures both programs; whether the promises hold.
pub(crate) fn run(rounds: usize) -> Result<bool> {
    let dir = tempfile::Builder::new().prefix("perch-bench-").tempdir()?;
    let host = Host::start_with(Network::Open, CONFIG)?;
    let (native, python) = (rootfs::native(dir.path())?, rootfs::python(dir.path())?);
    let address = deploy(&host, &native, dir.path(), "suspend")?;
    let (frozen, awake) = measure(&host, &native, address, rounds)?;
    let mut good = holds("native: frozen / awake", frozen.median() / awake.median(), RATIO);
    good &= holds("native: median / 0.3 ms", frozen.median() / NATIVE_MS.0, 1.0);
    good &= holds("native: p99 / 2 ms", frozen.at(0.99) / NATIVE_MS.1, 1.0);
    let address = deploy(&host, &python, dir.path(), "suspend")?;
    let (frozen, _) = measure(&host, &python, address, rounds)?;
    good &= holds("python: median / 0.6 ms", frozen.median() / PYTHON_MS, 1.0);
    drop(host);
    Ok(paged::run(dir.path(), rounds)? && good)
}

fn measure(
    host: &Host,
    program: &Program,
    address: SocketAddr,
    rounds: usize,
) -> Result<(Series, Series)> {
    let (mut frozen, mut awake) = (Series::default(), Series::default());
    for _ in 0..rounds {
        wait_for(host, program.name, "suspended")?;
        frozen.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
        awake.push_ms(host.inside(|| first_byte(address, Instant::now()))?);
    }
    frozen.print(&format!("{}: frozen", program.name), "ms");
    awake.print(&format!("{}: awake", program.name), "ms");
    println!("{:<28} {:.2} ms", "p99, frozen", frozen.at(0.99));
    Ok((frozen, awake))
}
