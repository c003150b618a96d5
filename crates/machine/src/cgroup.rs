//! A Machine's cgroups: where they are on cgroup v1, v2 and both at once, and how to empty and remove them.
//!
//! libcontainer makes and joins them from the bundle's `cgroupsPath`, except one: on a hybrid host it leaves processes
//! in the root of the v2 tree, so [`Cgroups::join_v2`] makes a leaf there, for freezing and killing.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

/// The directories that one Machine has, or would have, in each cgroup hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    v1: Vec<PathBuf>,
    v2: Option<PathBuf>,
}

impl Cgroups {
    /// Finds this host's hierarchies. `path` is relative to their roots.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?, path))
    }

    fn parse(mountinfo: &str, path: &Path) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None };
        for line in mountinfo.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else { continue };
            let Some(root) = mount.split(' ').nth(4) else { continue };
            let dir = Path::new(root).join(path);
            match kind.split(' ').next() {
                Some("cgroup") if !found.v1.contains(&dir) => found.v1.push(dir),
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(dir),
                _ => {}
            }
        }
        found
    }

    /// Whether the v1 controllers are in use (libcontainer then manages v1 only).
    fn is_hybrid(&self) -> bool {
        !self.v1.is_empty() && self.v2.is_some()
    }

    /// On a hybrid host, puts a process into the Machine's leaf of the v2 tree, making it.
    pub(crate) fn join_v2(&self, pid: i32) -> io::Result<()> {
        let (true, Some(leaf)) = (self.is_hybrid(), &self.v2) else {
            return Ok(());
        };
        fs::create_dir_all(leaf)?;
        fs::write(leaf.join("cgroup.procs"), pid.to_string())
    }

    /// Host process ids of everything in the Machine.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let dirs = self.v2.iter().chain(&self.v1);
        for dir in dirs {
            let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            if !pids.is_empty() {
                return pids.lines().filter_map(|line| line.parse().ok()).collect();
            }
        }
        Vec::new()
    }

    /// How often the kernel killed something here for lack of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v1 = self.v1.iter().map(|dir| dir.join("memory.oom_control"));
        let v2 = self.v2.iter().map(|dir| dir.join("memory.events"));
        let texts = v1.chain(v2).filter_map(|file| fs::read_to_string(file).ok());
        texts.filter_map(|text| counter(&text, "oom_kill")).max().unwrap_or(0)
    }

    /// Lets a frozen Machine run again, so that it can die: a v1-frozen process keeps SIGKILL pending.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        for dir in &self.v1 {
            write_if_there(&dir.join("freezer.state"), "THAWED")?;
        }
        match &self.v2 {
            Some(leaf) => write_if_there(&leaf.join("cgroup.freeze"), "0"),
            None => Ok(()),
        }
    }

    /// Sends SIGKILL to everything in the Machine.
    pub(crate) fn kill(&self) -> io::Result<()> {
        if let Some(leaf) = &self.v2 {
            write_if_there(&leaf.join("cgroup.kill"), "1")?;
        }
        for pid in self.pids().into_iter().filter_map(Pid::from_raw) {
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.thaw()
    }

    /// Removes the directories, and the common parent when this was its last Machine. Fails with `ResourceBusy` while
    /// processes are inside.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for dir in self.v1.iter().chain(&self.v2) {
            remove_dir(dir)?;
        }
        Ok(())
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write_if_there(file: &Path, value: &str) -> io::Result<()> {
    // Never creates the file: in a cgroup that lacks it the kernel answers that with "permission denied".
    let written = OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        // ENODEV: the cgroup was removed between the two.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            Ok(())
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 24 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
27 25 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
broken line";

    #[test]
    fn a_hybrid_host_has_both_kinds() {
        let found = Cgroups::parse(HYBRID, Path::new("perch/m1"));
        assert_eq!(found.v1, [Path::new("/sys/fs/cgroup/pids/perch/m1")]);
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/perch/m1")));
        assert!(found.is_hybrid());
    }

    #[test]
    fn a_v2_host_is_left_to_libcontainer() {
        let found =
            Cgroups::parse("30 1 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "p".as_ref());
        assert!(!found.is_hybrid());
        assert!(found.join_v2(1).is_ok());
    }

    #[test]
    fn a_counter_is_read_by_its_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(counter(text, "oom_kill"), Some(3));
        assert_eq!(counter("oom_kill_disable 0\n", "oom_kill"), None);
    }
}
