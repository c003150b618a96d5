//! The machine's own swap, which every host sees: off for tests of what happens where there is none.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Swap that was on; it is again when this is dropped.
pub(super) struct SwapsOff(Vec<Swap>);

#[derive(Debug, PartialEq, Eq)]
struct Swap {
    path: String,
    rank: i32,
}

impl SwapsOff {
    /// Turns all of it off.
    pub(super) fn now() -> Result<Self> {
        let mut off = Self(Vec::new());
        for swap in parse(&std::fs::read_to_string("/proc/swaps")?) {
            let status = Command::new("swapoff").arg(&swap.path).status().context("swapoff")?;
            ensure!(status.success(), "this machine has swap that cannot be turned off: {swap:?}");
            off.0.push(swap);
        }
        Ok(off)
    }
}

impl Drop for SwapsOff {
    fn drop(&mut self) {
        for swap in &self.0 {
            let mut command = Command::new("swapon");
            // Ranks below zero are the kernel's to give.
            if 0 <= swap.rank {
                command.args(["-p", &swap.rank.to_string()]);
            }
            if !command.arg(&swap.path).status().is_ok_and(|status| status.success()) {
                eprintln!("swap of this machine is off now: swapon {}", swap.path);
            }
        }
    }
}

/// What `/proc/swaps` lists.
fn parse(text: &str) -> Vec<Swap> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (path, rank) = (fields.first()?.replace("\\040", " "), fields.last()?.parse().ok()?);
        Some(Swap { path, rank })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_are_listed_with_their_ranks() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /swap\\040file                           file\t\t4194300\t\t920\t\t-2\n\
            /dev/zram0                              partition\t131068\t\t0\t\t100\n";
        let swap = |path: &str, rank| Swap { path: path.to_owned(), rank };
        assert_eq!(parse(text), [swap("/swap file", -2), swap("/dev/zram0", 100)]);
    }
}
