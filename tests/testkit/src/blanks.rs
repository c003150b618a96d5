//! Shims that wait for a Machine: a server keeps some, they come and go, and are no leak unless there are too many.

use std::fs;

use crate::process::Process;

/// Processes of those that a server keeps by default: two shims, and the child of each.
pub const BLANKS_MAX: usize = 4;

impl Process {
    /// Whether it is of a shim without a Machine.
    pub fn is_blank(&self) -> bool {
        self.args.get(1).is_some_and(|word| word == "blank")
    }
}

/// Whether this is the directory of a cgroup of such a shim. One with nobody inside is a leftover, and none of them.
pub fn is_of_blank(line: &str) -> bool {
    let procs = || fs::read_to_string(format!("{line}/cgroup.procs"));
    line.contains("/blank-") && procs().is_ok_and(|pids| !pids.is_empty())
}
