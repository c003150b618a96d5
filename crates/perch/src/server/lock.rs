//! One server per data directory, by a lock that the kernel releases when its holder dies.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

/// What a server was just starting when it was killed has its lock until the exec. That takes milliseconds.
const INHERITED_MAX: Duration = Duration::from_secs(2);
const INHERITED_INTERVAL: Duration = Duration::from_millis(5);

/// Held as long as the value lives.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another server lives.
    #[error(
        "another server{} uses {}; stop it first, or give this one a --data-dir of its own",
        pid.map_or_else(String::new, |pid| format!(" (pid {pid})")), dir.display()
    )]
    Held {
        /// Its process id, if it has written it already.
        pid: Option<i32>,
        /// The data directory.
        dir: PathBuf,
    },
    /// The file could not be used.
    #[error("could not lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl DirLock {
    /// Goes on with the lock that a server before this one has left to it.
    ///
    /// # Errors
    /// [`LockError::Io`] when it is not written down who has it now.
    pub(crate) fn inherit(path: &Path, left: OwnedFd) -> Result<Self, LockError> {
        let mut file = File::from(left);
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        write_pid(&mut file).map_err(failed)?;
        Ok(Self { file })
    }

    /// The process that has it, by its own word.
    pub(crate) fn holder(path: &Path) -> Option<i32> {
        holder(&mut File::open(path).ok()?)
    }

    /// What another process goes on with.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Takes the lock at once or says who has it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub(crate) fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
            let holder = holder(&mut file);
            let is_dead = holder.is_some_and(|pid| !lives(pid));
            if !is_dead || INHERITED_MAX < begun.elapsed() {
                let dir = path.parent().unwrap_or(path).to_owned();
                return Err(LockError::Held { pid: holder, dir });
            }
            std::thread::sleep(INHERITED_INTERVAL);
        }
        write_pid(&mut file).map_err(failed)?;
        Ok(Self { file })
    }
}

/// Who has written its id into the file.
fn holder(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether a process is more than a memory of one.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Over the last one, of the same length, so that a full disk is no obstacle.
fn write_pid(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    writeln!(file, "{:<10}", std::process::id())?;
    file.set_len(11)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_told_who_is_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("lock");
        let first = DirLock::take(&path).expect("free");
        let error = DirLock::take(&path).expect_err("held").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains("--data-dir of its own"), "{error}");
        drop(first);
        DirLock::take(&path).expect("free again");
    }
}
