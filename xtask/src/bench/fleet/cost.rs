//! What processes cost.

use std::fs;

use anyhow::{Context, Result};
use perch_testkit::Process;

/// A second, as `/proc` counts it.
const TICKS: f64 = 100.0;

/// Their part of memory, in MiB.
pub(super) fn pss_mb(processes: &[Process]) -> Result<f64> {
    let each = processes.iter().map(|process| {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        Ok(number.context("no Pss")?.parse::<f64>()? / 1024.0)
    });
    each.sum()
}

/// CPU time of all their threads until now, also of those that have ended; in steps of 10 ms.
pub(super) fn cpu_seconds(processes: &[Process]) -> Result<f64> {
    let each = processes.iter().map(|process| {
        let text = fs::read_to_string(format!("/proc/{}/stat", process.pid))
            .with_context(|| format!("{:?} has ended", process.args))?;
        // The name before it may hold anything.
        let (_, rest) = text.rsplit_once(')').context("not a process")?;
        let ticks = rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>());
        Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
    });
    each.sum()
}
