//! Ends processes where a test of hosts wants it; not in what users run (see `perch_core::fault`).
//!
//! `PERCH_FAULTS` names a directory. A file in it with the name of a place ends the first process that comes by, or the one
//! whose number is in it; the file goes with it, so that its successor passes. `perch faults` prints the places.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use perch_core::fault::{self, Point};
use rustix::process::{Pid, Signal};

static DIR: OnceLock<PathBuf> = OnceLock::new();

/// Arms this process, if its environment says so.
pub(crate) fn arm() {
    if let Some(dir) = std::env::var_os(perch_machine::FAULTS_VARIABLE) {
        DIR.get_or_init(|| dir.into());
        fault::arm(on_pass);
    }
}

fn on_pass(point: Point, pid: Option<i32>) {
    let Some(dir) = DIR.get() else { return };
    let path = dir.join(point.name());
    let named = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    // Only one process gets to remove it.
    if std::fs::remove_file(&path).is_err() {
        return;
    }
    let pid = named.or(pid).and_then(Pid::from_raw).unwrap_or_else(rustix::process::getpid);
    if let Err(errno) = rustix::process::kill_process(pid, Signal::KILL) {
        eprintln!("nothing to end at {}: {errno}", point.name());
    }
}

/// `perch faults`: each place, and when it is passed.
pub(crate) fn main() -> ExitCode {
    for point in Point::ALL {
        println!("{} {}", point.name(), point.during().name());
    }
    ExitCode::SUCCESS
}
