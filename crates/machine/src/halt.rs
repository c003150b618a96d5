//! Freezing by signals, where the kernel has no freezer for cgroups: SIGSTOP to each process, SIGCONT to go on.
//!
//! A process may fork before its signal comes, so the list is read again until it has nobody new. The program's parent
//! can see it, and whoever sends SIGCONT inside ends it: it is the last resort.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

/// Looks at processes that are being stopped, each after a pause: 10 ms in all. A Machine that goes on forking is not
/// frozen then, which its caller sees.
const LOOKS_MAX: usize = 50;
const PAUSE: Duration = Duration::from_micros(200);

/// Stops all that `pids` lists, and those that they fork meanwhile.
pub(crate) fn stop(pids: impl Fn() -> Vec<i32>) -> io::Result<()> {
    let mut told = BTreeSet::new();
    for _ in 0..LOOKS_MAX {
        let now = pids();
        if now.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "nothing of it can be found"));
        }
        let new: Vec<i32> = now.iter().copied().filter(|pid| told.insert(*pid)).collect();
        if new.is_empty() && now.iter().all(|pid| is_stopped(*pid)) {
            return Ok(());
        }
        new.into_iter().try_for_each(|pid| signal(pid, Signal::STOP))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Whether there are processes, and each of them is stopped.
pub(crate) fn are_stopped(pids: &[i32]) -> bool {
    !pids.is_empty() && pids.iter().all(|pid| is_stopped(*pid))
}

/// Lets them go on.
pub(crate) fn resume(pids: &[i32]) -> io::Result<()> {
    pids.iter().try_for_each(|pid| signal(*pid, Signal::CONT))
}

fn signal(pid: i32, signal: Signal) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(()) };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Also of one that is dead or gone.
fn is_stopped(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The name in parentheses may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't' | 'Z' | 'X'))
}
