//! How much of the host's disk a run uses.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use crate::cgroup::Cgroups;
use crate::{launch, tree};

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
    /// In place of the size of files whose directories are nested too deep to look at.
    pub const UNCOUNTABLE: u64 = u64::MAX;
    /// So deep.
    pub const LEVELS_MAX: usize = tree::LEVELS_MAX;

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

/// Ends with the first entry that is beyond the limit.
fn tree_bytes(top: &Path, limit: u64) -> io::Result<u64> {
    let (mut bytes, mut linked) = (0, BTreeSet::new());
    let visited = tree::visit(top, |meta| {
        let is_first = tree::is_dir(meta) || meta.st_nlink < 2 || linked.insert(meta.st_ino);
        // A further name of the same file costs no blocks, but one more look.
        bytes += if is_first { tree::block_bytes(meta).max(INODE_BYTES) } else { INODE_BYTES };
        if limit < bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match visited {
        // Else it would be the way to hide.
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => Ok(DiskUse::UNCOUNTABLE),
        visited => visited.map(|()| bytes),
    }
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
    fn the_bytes_of_a_file_with_two_names_are_counted_once_and_a_link_is_not_followed()
    -> io::Result<()> {
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
    fn each_name_of_one_file_is_charged_so_that_no_walk_is_longer_than_the_limit() -> io::Result<()>
    {
        let dir = crate::scratch_dir("disk-names")?;
        fs::write(dir.join("file"), "")?;
        for name in 1..100 {
            fs::hard_link(dir.join("file"), dir.join(name.to_string()))?;
        }
        assert_eq!(tree_bytes(&dir, u64::MAX)?, 100 * INODE_BYTES);
        assert_eq!(tree_bytes(&dir, 9 * INODE_BYTES)?, 10 * INODE_BYTES);
        fs::remove_dir_all(dir)
    }

    #[test]
    fn directories_that_are_too_deep_hide_nothing() -> io::Result<()> {
        let dir = crate::scratch_dir("disk-deep")?;
        let deep = vec!["d"; DiskUse::LEVELS_MAX].join("/");
        fs::create_dir_all(dir.join(deep))?;
        assert_eq!(tree_bytes(&dir, u64::MAX)?, DiskUse::UNCOUNTABLE);
        fs::remove_dir_all(dir)
    }

    #[test]
    fn a_machine_without_a_run_is_an_error() -> io::Result<()> {
        let dir = crate::scratch_dir("no-run")?;
        assert!(DiskUse::of(&dir, u64::MAX).is_err());
        fs::remove_dir_all(dir)
    }
}
