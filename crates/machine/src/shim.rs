//! The keeper of one run of a Machine: `perch shim DIR`.

use std::path::Path;
use std::process::ExitCode;

/// Entry point of `perch shim DIR`. Call it first thing in `main`, before any thread or runtime exists: standard input
/// is the network namespace, standard output the answer to the launcher.
pub fn main(dir: &Path) -> ExitCode {
    let _ = dir;
    ExitCode::FAILURE
}
