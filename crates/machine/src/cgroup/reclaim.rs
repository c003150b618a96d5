//! Makes room in a memory cgroup of v1 and never leaves its limit low: `perch reclaim FILE LIMIT`, a process of its own.
//!
//! ```text
//!  server ──"TARGET"──► limit = TARGET: the kernel frees what is above ─► limit = LIMIT ─► "0", or the error's number
//!     └────its end────► what was asked for last is finished all the same ─► exit
//! ```
//!
//! The proxy wakes a Machine without the server. With a limit of what it had asleep the kernel would kill its program
//! for its first pages, and a server that is killed between the two writes cannot put the limit back. Nor can this
//! process if it is killed itself; then the server does, and if both are, the next one.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitCode, Stdio};

use perch_core::fault::{self, Point};
use rustix::io::Errno;

use super::{named, write_existing};
use crate::{launch, sys};

/// The server's end.
#[derive(Debug)]
pub(super) struct Reclaimer {
    child: Child,
    answers: BufReader<ChildStdout>,
    file: PathBuf,
    limit: u64,
}

impl Reclaimer {
    /// For the limit in this file.
    pub(super) fn spawn(file: PathBuf, limit: u64) -> io::Result<Self> {
        let mut command = launch::role_command("reclaim");
        command.arg(&file).arg(limit.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, answers: BufReader::new(stdout), file, limit })
    }

    /// Has the kernel free what is above `target`. Blocks.
    pub(super) fn free_down_to(&mut self, target: u64) -> io::Result<()> {
        match self.ask(target) {
            Ok(0) => Ok(()),
            Ok(number) if number == Errno::NODEV.raw_os_error() => {
                Err(io::ErrorKind::NotFound.into())
            }
            Ok(number) => Err(io::Error::from_raw_os_error(number)),
            Err(error) => {
                // It may have been killed between its two writes.
                let restored = write_existing(&self.file, &self.limit.to_string());
                restored.map_err(named("put back", &self.file))?;
                Err(error)
            }
        }
    }

    fn ask(&mut self, target: u64) -> io::Result<i32> {
        let mut stdin = self.child.stdin.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(format!("{target}\n").as_bytes())?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim_end().parse().map_err(|_| io::Error::other("what makes room has ended"))
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "what makes room could not be waited for");
        }
    }
}

/// Entry point of `perch reclaim FILE LIMIT`. Call it first thing in `main`, before any thread exists.
pub fn main(file: &Path, limit: &str) -> ExitCode {
    match serve(file, limit) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("could not make room by {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn serve(file: &Path, limit: &str) -> io::Result<()> {
    sys::close_inherited()?;
    rustix::process::setsid()?;
    sys::outlast_signals()?;
    let file = OpenOptions::new().write(true).open(file)?;
    for target in io::stdin().lines() {
        let done = free_down_to(&file, &target?, limit);
        let number = done.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
        writeln!(io::stdout(), "{number}")?;
    }
    Ok(())
}

fn free_down_to(file: &File, target: &str, limit: &str) -> io::Result<()> {
    let made = file.write_all_at(target.as_bytes(), 0);
    fault::pass(Point::ReclaimLowered);
    file.write_all_at(limit.as_bytes(), 0)?;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_as_it_was_after_room_is_made() -> io::Result<()> {
        let dir = crate::scratch_dir("reclaim")?;
        let path = dir.join("memory.limit_in_bytes");
        // A file is not cut as the kernel does it: all values are equally long.
        std::fs::write(&path, "8192000")?;
        let file = OpenOptions::new().write(true).open(&path)?;
        free_down_to(&file, "4999000", "8192000")?;
        assert_eq!(std::fs::read_to_string(&path)?, "8192000");
        std::fs::remove_dir_all(dir)
    }
}
