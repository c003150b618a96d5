//! Processes that are found again: by a record that cannot be taken for another's, or by a file that they hold open.
//!
//! A process id alone names whoever has it now. A record adds the time of the start and the boot; a descriptor of the
//! process, opened before these are compared, then means that process for good.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is written down of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// Clock ticks since boot.
    started: u64,
    boot: String,
}

impl Record {
    fn of(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        let started = perch_machine::process::start_time(pid)?;
        Ok(Self { pid, started, boot: fs::read_to_string(BOOT_ID)? })
    }
}

/// Writes down who `pid` is. The caller knows that it lives.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn remember(pid: Pid, path: &Path) -> io::Result<()> {
    let draft = path.with_extension("new");
    fs::write(&draft, serde_json::to_vec(&Record::of(pid)?)?)?;
    fs::rename(draft, path)
}

/// The process that was written down at `path`, if it still is that one. What cannot be read names nobody.
pub(crate) fn recall(path: &Path) -> Option<OwnedFd> {
    let record: Record = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let pid = Pid::from_raw(record.pid)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
    (Record::of(pid).ok()? == record).then_some(pidfd)
}

/// Processes, except this one, that hold the file at `path` open, be it removed or not.
pub(crate) fn holders(path: &Path) -> Vec<OwnedFd> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid| u32::try_from(*pid) != Ok(std::process::id()));
    others.filter_map(|pid| holder(pid, path)).collect()
}

fn holder(pid: i32, path: &Path) -> Option<OwnedFd> {
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    holds(pid, path).then_some(pidfd)
}

fn holds(pid: i32, path: &Path) -> bool {
    let removed = PathBuf::from(format!("{} (deleted)", path.display()));
    // The name is compared first: a look at a file of a stranger may hang.
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let wanted = identity(path);
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.map(|fd| fd.path()).any(|fd| match fs::read_link(&fd) {
        Ok(target) if target == removed => true,
        Ok(target) => {
            target.file_name() == path.file_name() && wanted.is_some() && identity(&fd) == wanted
        }
        Err(_closed) => false,
    })
}

/// Waits for the children that this process had before an exec made it this program: nobody else does any more, and each
/// would stay a zombie. To be called before it has children of its own.
///
/// # Errors
/// When there is no thread for it.
pub(crate) fn reap_inherited() -> io::Result<()> {
    let inherited = children();
    if !inherited.is_empty() {
        std::thread::Builder::new().name("reaper".to_owned()).spawn(|| reap(inherited))?;
    }
    Ok(())
}

/// Processes whose parent this one is, ended ones included.
fn children() -> Vec<OwnedFd> {
    let own = format!("PPid:\t{}", std::process::id());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_own = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == own)
    };
    // A child keeps its number until it is waited for.
    let open = |pid| rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok();
    pids.filter(is_own).filter_map(open).collect()
}

/// Until all of them have ended.
fn reap(mut children: Vec<OwnedFd>) {
    while !children.is_empty() {
        let mut fds: Vec<_> =
            children.iter().map(|child| PollFd::new(child, PollFlags::IN)).collect();
        if let Err(errno) = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)) {
            tracing::warn!(%errno, "children of the former server will stay as zombies");
            return;
        }
        let mut ended: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ended = ended.drain(..);
        children.retain(|child| {
            if ended.next() != Some(true) {
                return true;
            }
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Err(errno) = rustix::process::waitid(WaitId::PidFd(child.as_fd()), options) {
                tracing::debug!(%errno, "somebody else has waited for a child");
            }
            false
        });
    }
}

/// Sends a signal; to a process that has ended it is none.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn signal(pidfd: impl AsFd, signal: Signal) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits for the end of a process; false if it still lives after `limit`. Blocks.
pub(crate) fn ends_within(pidfd: impl AsFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let limit = Timespec::try_from(limit).expect("a limit of seconds is a time");
    // A signal to this process says nothing of that one.
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit))) != Ok(0)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    struct Sleeper(Child);

    impl Sleeper {
        fn with(stdin: Stdio) -> Self {
            Self(Command::new("sleep").arg("60").stdin(stdin).spawn().expect("sleep is there"))
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().and_then(|()| self.0.wait()).expect("it is ours");
        }
    }

    #[test]
    fn a_process_that_took_a_remembered_number_is_not_the_remembered_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("proxy.json");
        assert!(recall(&path).is_none(), "nothing is written down");
        let sleeper = Sleeper::with(Stdio::null());
        remember(sleeper.pid(), &path).expect("it is written");
        assert!(recall(&path).is_some());
        let record = Record::of(sleeper.pid()).expect("it lives");
        let earlier = Record { started: record.started - 1, ..record.clone() };
        let other_boot = Record { boot: "another".to_owned(), ..record };
        for stale in [earlier, other_boot] {
            fs::write(&path, serde_json::to_vec(&stale).expect("JSON")).expect("it is written");
            assert!(recall(&path).is_none(), "{stale:?}");
        }
        fs::write(&path, "{").expect("it is written");
        assert!(recall(&path).is_none(), "half a record names nobody");
    }

    #[test]
    fn children_that_nobody_waits_for_are_reaped_when_they_end() {
        let lives = Sleeper::with(Stdio::null());
        let mut ended = Command::new("true").spawn().expect("true is there");
        let open = |pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("a child");
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).expect("open").st_ino;
        let child = open(lives.pid());
        assert!(children().iter().any(|fd| inode(fd) == inode(&child)) && !children().is_empty());
        reap(vec![open(Pid::from_child(&ended))]);
        let error = ended.wait().expect_err("it is waited for");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::CHILD.raw_os_error()));
        assert!(!ends_within(&child, Duration::ZERO));
    }

    #[test]
    fn who_holds_a_file_is_found_also_when_the_file_is_gone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("lock");
        let file = fs::File::create(&path).expect("it is made");
        let stranger = Sleeper::with(Stdio::null());
        let holder = Sleeper::with(file.into());
        let holds = |sleeper: &Sleeper| holds(sleeper.pid().as_raw_nonzero().get(), &path);
        assert!(holds(&holder) && !holds(&stranger));
        assert!(!holders(&path).is_empty());
        fs::remove_file(&path).expect("it is there");
        assert!(holds(&holder) && !holds(&stranger));
    }
}
