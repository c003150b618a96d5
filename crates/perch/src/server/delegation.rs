//! The part of the cgroup tree that a service manager gave us, where it did (`Delegate=yes`).
//!
//! ```text
//!  …/perch.service/            the manager's; no process stays here
//!  ├─ daemon/                  server and proxy
//!  └─ machines/<id>/           one each
//! ```
//!
//! Only on hosts with cgroup v2 alone: elsewhere systemd delegates no v1 controller that we use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::paths::Paths;

const ROOT: &str = "/sys/fs/cgroup";
const DAEMON: &str = "daemon";
const MACHINES: &str = "machines";
/// How systemd marks what it delegated; the second name for services of users and old releases.
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// Moves this process into `daemon` of the delegated cgroup, if there is one, and answers the parent of the Machines'
/// cgroups, relative to the root of the hierarchy. It is written down for `perch down`.
///
/// # Errors
/// When the tree or the data directory cannot be written to.
pub(crate) fn settle(paths: &Paths) -> io::Result<String> {
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    let unit = unit_of(&membership).filter(|unit| is_delegated(&Path::new(ROOT).join(unit)));
    let parent = match unit {
        Some(unit) => {
            enter(&Path::new(ROOT).join(&unit).join(DAEMON))?;
            unit.join(MACHINES).to_string_lossy().into_owned()
        }
        None => paths.cgroup_parent_default(),
    };
    fs::write(paths.cgroup_parent_file(), &parent)?;
    Ok(parent)
}

fn enter(daemon: &Path) -> io::Result<()> {
    match fs::create_dir(daemon) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::write(daemon.join("cgroup.procs"), "0")
}

fn is_delegated(unit: &Path) -> bool {
    let mut value = [0_u8; 8];
    MARKS.iter().any(|mark| {
        let read = rustix::fs::getxattr(unit, *mark, &mut value);
        read.is_ok_and(|length| &value[..length] == b"1")
    })
}

/// The unit's cgroup by a process's `/proc/PID/cgroup`, relative to the root; [`None`] where v1 hierarchies are.
fn unit_of(membership: &str) -> Option<PathBuf> {
    let mut lines = membership.lines();
    let own = lines.next()?.strip_prefix("0::/")?;
    if own.is_empty() || lines.next().is_some() {
        return None;
    }
    let own = Path::new(own);
    let unit = if own.ends_with(DAEMON) { own.parent()? } else { own };
    Some(unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_found_before_and_after_the_move() {
        let unit = Some(PathBuf::from("system.slice/perch.service"));
        assert_eq!(unit_of("0::/system.slice/perch.service\n"), unit);
        assert_eq!(unit_of("0::/system.slice/perch.service/daemon\n"), unit);
    }

    #[test]
    fn beside_v1_hierarchies_and_in_the_root_nothing_is_ours() {
        assert_eq!(unit_of("4:memory:/perch\n0::/system.slice/perch.service\n"), None);
        assert_eq!(unit_of("0::/\n"), None);
        assert_eq!(unit_of(""), None);
    }

    #[test]
    fn an_ordinary_directory_is_not_delegated() {
        assert!(!is_delegated(Path::new("/")));
    }
}
