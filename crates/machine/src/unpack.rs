//! Unpacks one layer in a process whose root is the target directory: `perch unpack DIR`.

use std::path::Path;
use std::process::ExitCode;

/// Entry point of `perch unpack DIR`. Call it first thing in `main`, before any thread or runtime exists: standard input
/// is the layer's blob, standard output the answer to the parent.
pub fn main(dir: &Path) -> ExitCode {
    let _ = dir;
    ExitCode::FAILURE
}
