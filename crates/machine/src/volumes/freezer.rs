//! Holds a file system still while it is copied: `perch freeze DIR`, a process of its own.
//!
//! ```text
//!  server ──spawn──► FIFREEZE ─► "frozen" ─► waits for the end of its input ─► FITHAW ─► exit 0
//! ```
//!
//! A file system that is frozen stays so whoever dies. This process ends the freeze when the server says so, when the
//! server is dead (its input ends then), and after [`FREEZE_MAX`] in any case. No signal but SIGKILL keeps it from that;
//! after that one the server ends the freeze, and if it is killed too, the next server thaws what it adopts.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::sys;

/// A program that waits longer for its disk is taken for hung; what is not copied by then is not copied.
const FREEZE_MAX: Duration = Duration::from_secs(60);
const FROZEN: &str = "frozen";
/// Exit code of one that ended the freeze before it was told to.
const TOO_LATE: u8 = 3;

/// A file system in which nobody can write.
pub(super) struct Frozen {
    holder: Child,
    dir: OwnedFd,
}

impl Frozen {
    pub(super) fn begin(dir: BorrowedFd<'_>) -> io::Result<Self> {
        let dir = dir.try_clone_to_owned()?;
        // By our descriptor: a path below another process would lead elsewhere once its number is another's.
        let path = format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd());
        let holder = Command::new("/proc/self/exe")
            .args(["freeze", &path])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut frozen = Self { holder, dir };
        let mut line = String::new();
        if let Some(stdout) = frozen.holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim() {
            FROZEN => Ok(frozen),
            why => Err(io::Error::other(format!("could not hold the volume still: {why}"))),
        }
    }

    /// Lets everybody write again.
    ///
    /// # Errors
    /// When somebody could already before, so that a copy is of no one moment.
    pub(super) fn end(mut self) -> io::Result<()> {
        let ended = self.let_go()?;
        match ended.code() {
            Some(0) => Ok(()),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the volume could not be copied within the {} s for which its machine may be kept from \
                     writing; stop the machine and repeat",
                    FREEZE_MAX.as_secs()
                ),
            )),
            None => Err(io::Error::other(format!("what held the volume still was ended: {ended}"))),
        }
    }

    /// Who is killed cannot end its freeze; it is ended for it.
    fn let_go(&mut self) -> io::Result<ExitStatus> {
        drop(self.holder.stdin.take());
        let ended = self.holder.wait()?;
        if ended.code().is_none() {
            thaw(self.dir.as_fd())?;
        }
        Ok(ended)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::warn!(%error, "a volume may stay frozen");
        }
    }
}

/// Ends a freeze, if there is one.
pub(super) fn thaw(dir: BorrowedFd<'_>) -> io::Result<()> {
    match sys::thaw_files(dir) {
        Err(error) if error.raw_os_error() != Some(Errno::INVAL.raw_os_error()) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Entry point of `perch freeze DIR`. Call it first thing in `main`, before any thread exists.
pub fn main(dir: &Path) -> ExitCode {
    let told = match hold(dir) {
        Ok(code) => return code,
        Err(error) => error.to_string(),
    };
    if let Err(error) = writeln!(io::stdout(), "{told}") {
        eprintln!("could not answer: {error}");
    }
    ExitCode::FAILURE
}

fn hold(dir: &Path) -> io::Result<ExitCode> {
    sys::close_inherited()?;
    rustix::process::setsid()?;
    sys::outlast_signals()?;
    let dir = File::open(dir)?;
    sys::freeze_files(dir.as_fd())?;
    let asked = writeln!(io::stdout(), "{FROZEN}").and_then(|()| until_input_ends());
    sys::thaw_files(dir.as_fd())?;
    Ok(ExitCode::from(if asked? { 0 } else { TOO_LATE }))
}

/// Whether the input ended within the time.
fn until_input_ends() -> io::Result<bool> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let time = Timespec { tv_sec: FREEZE_MAX.as_secs() as i64, tv_nsec: 0 };
    Ok(poll(&mut fds, Some(&time))? > 0)
}
