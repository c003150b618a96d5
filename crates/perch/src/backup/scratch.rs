//! Where a backup is written before it has its name: a directory beside it, which a killed one leaves behind.
//!
//! Whoever writes there holds a lock on it, which the kernel releases with its process. The next backup into the same
//! place removes every such directory whose lock is free. Between making and locking one it may be removed by another
//! backup; then it is made again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use tempfile::TempDir;

const PREFIX: &str = ".perch-backup-";
/// Each attempt loses to another backup that begins in the same microseconds.
const ATTEMPTS_MAX: u32 = 10;

/// A directory of our own; removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: TempDir,
    /// Locked as long as it is open.
    _lock: File,
}

impl Scratch {
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS_MAX {
            let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            if let Some(lock) = lock(dir.path())? {
                return Ok(Self { dir, _lock: lock });
            }
        }
        Err(io::Error::other("other backups removed the new directory each time"))
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// The lock of a directory; none when somebody else has it, or the directory is gone.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // Removed between opening and locking, and perhaps made anew by somebody else.
    let own = file.metadata()?.ino();
    Ok(fs::symlink_metadata(dir).is_ok_and(|there| there.ino() == own).then_some(file))
}

/// Removes what killed backups have left in a directory. What cannot be removed is said, and stops nothing.
pub(super) fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) || !is_ours(&path) {
            continue;
        }
        let removed = match lock(&path) {
            // The lock is held until it is gone.
            Ok(Some(_lock)) => fs::remove_dir_all(&path),
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => eprintln!("removed {}, which a killed backup left", path.display()),
            Err(error) => eprintln!("warning: could not remove {}: {error}", path.display()),
        }
    }
}

/// In a directory where others write, too, they may give their things any name.
fn is_ours(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|it| it.is_dir() && it.uid() == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_backup_left_goes_and_what_a_living_one_uses_stays() {
        let parent = tempfile::tempdir().expect("a directory");
        let dead = parent.path().join(".perch-backup-dead");
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join("store.db"), "x").expect("written");
        let living = Scratch::new(parent.path()).expect("made");
        remove_leftovers(parent.path());
        assert!(!dead.exists());
        assert!(living.path().exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists(), "it removes itself");
    }

    #[test]
    fn only_our_own_directories_of_this_name_are_touched() {
        let parent = tempfile::tempdir().expect("a directory");
        let elsewhere = parent.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("made");
        let link = parent.path().join(".perch-backup-link");
        std::os::unix::fs::symlink(&elsewhere, &link).expect("linked");
        let file = parent.path().join(".perch-backup-file");
        fs::write(&file, "x").expect("written");
        remove_leftovers(parent.path());
        assert!(elsewhere.exists() && link.is_symlink() && file.exists());
    }

    #[test]
    fn a_directory_that_was_removed_before_it_was_locked_is_not_used() {
        let parent = tempfile::tempdir().expect("a directory");
        let gone = parent.path().join("gone");
        assert!(lock(&gone).expect("no error").is_none());
        fs::create_dir(&gone).expect("made");
        let held = lock(&gone).expect("no error").expect("free");
        assert!(lock(&gone).expect("no error").is_none(), "somebody else has it");
        drop(held);
        assert!(lock(&gone).expect("no error").is_some());
    }
}
