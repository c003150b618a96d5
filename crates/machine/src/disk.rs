//! How much of the host's disk a run uses.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cgroup::Cgroups;
use crate::launch;
use crate::tree::BLOCK_BYTES;

/// What each name is charged at least: ext4 has one inode for 16 kB, and who makes empty files takes those of others.
pub const INODE_BYTES: u64 = 4096;

/// What a run takes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Size of the files that it made or changed; of one that is over its limit it is not all.
    pub used_bytes: u64,
    /// What its processes, living or ended, have written in all: also into files that have no name any more.
    pub written_bytes: u64,
}

impl DiskUse {
    /// Looks at the newest run of the Machine in `dir`: about 1 µs a file, and a process. Its files are counted until they
    /// are more than `limit` bytes. Blocks.
    ///
    /// # Errors
    /// When the Machine has no run, or it is going away meanwhile.
    pub fn of(dir: &Path, limit: u64) -> io::Result<Self> {
        let spec = launch::require_spec(dir)?;
        let upper = crate::stage::upper_dir(&spec).join("upper");
        let used_bytes = tree_bytes(&upper, limit)?;
        let pids = Cgroups::find(&launch::cgroup_path(&spec))?.pids();
        let written_bytes = pids.into_iter().map(written_by).sum();
        Ok(Self { used_bytes, written_bytes })
    }
}

/// Files that vanish meanwhile take nothing. Ends with the first entry that is beyond the limit.
fn tree_bytes(top: &Path, limit: u64) -> io::Result<u64> {
    let (mut bytes, mut linked, mut todo) = (0, BTreeSet::new(), vec![top.to_owned()]);
    while let Some(dir) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir != top => continue,
            read => read?,
        };
        for entry in entries {
            // Not followed, if it is a link.
            let Ok(meta) = entry.and_then(|entry| entry.metadata().map(|meta| (entry, meta)))
            else {
                continue;
            };
            let (entry, meta) = meta;
            if meta.is_dir() {
                todo.push(entry.path());
            } else if 1 < meta.nlink() && !linked.insert(meta.ino()) {
                continue;
            }
            bytes += (meta.blocks() * BLOCK_BYTES).max(INODE_BYTES);
            if limit < bytes {
                return Ok(bytes);
            }
        }
    }
    Ok(bytes)
}

/// The kernel adds what a child has written to its parent's count when it is reaped.
fn written_by(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_two_names_is_counted_once_and_a_link_is_not_followed() -> io::Result<()> {
        let dir = crate::scratch_dir("disk")?;
        fs::create_dir(dir.join("sub"))?;
        fs::write(dir.join("sub/file"), vec![1; 100_000])?;
        fs::hard_link(dir.join("sub/file"), dir.join("again"))?;
        std::os::unix::fs::symlink("/", dir.join("root"))?;
        let bytes = tree_bytes(&dir, u64::MAX)?;
        assert!((100_000..130_000).contains(&bytes), "{bytes}");
        fs::remove_dir_all(dir)
    }

    #[test]
    fn empty_files_are_charged_and_nothing_is_counted_beyond_the_limit() -> io::Result<()> {
        let dir = crate::scratch_dir("disk-empty")?;
        for name in 0..100 {
            fs::write(dir.join(name.to_string()), "")?;
        }
        assert_eq!(tree_bytes(&dir, u64::MAX)?, 100 * INODE_BYTES);
        assert_eq!(tree_bytes(&dir, 9 * INODE_BYTES)?, 10 * INODE_BYTES);
        fs::remove_dir_all(dir)
    }

    #[test]
    fn a_machine_without_a_run_is_an_error() -> io::Result<()> {
        let dir = crate::scratch_dir("no-run")?;
        assert!(DiskUse::of(&dir, u64::MAX).is_err());
        fs::remove_dir_all(dir)
    }
}
