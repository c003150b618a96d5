//! The part of the cgroup tree that a service manager gave us, where it did and where that is of use.
//!
//! ```text
//!  …/perch.service/            the manager's; no process may stay here once controllers are handed down
//!  ├─ daemon/                  server and proxy
//!  └─ machines/<id>/           one each
//! ```
//!
//! Limits need controllers in each Machine's cgroup, so they are handed down from the unit's. From then on the kernel
//! lets no process into the unit's own cgroup, which is where a service manager starts the next server: a restart
//! under live Machines would fail (systemd: `status=219/CGROUP`). systemd 254 and later can start it in `daemon`
//! (`DelegateSubgroup=daemon`); then the tree is as above. Where it does not, Machines are outside of the unit, at the
//! same place as without a manager (decision 0012).
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

/// Answers the parent of the Machines' cgroups, relative to the root of the hierarchy, by where the manager put this
/// process. It is written down for `perch down`.
///
/// # Errors
/// When `/proc` cannot be read or the data directory cannot be written to.
pub(crate) fn settle(paths: &Paths) -> io::Result<String> {
    let membership = fs::read_to_string("/proc/self/cgroup")?;
    let unit = unit_of(&membership).filter(|unit| is_delegated(&Path::new(ROOT).join(unit)));
    let parent = match unit {
        Some(unit) => unit.join(MACHINES).to_string_lossy().into_owned(),
        None => paths.cgroup_parent_default(),
    };
    fs::write(paths.cgroup_parent_file(), &parent)?;
    Ok(parent)
}

fn is_delegated(unit: &Path) -> bool {
    let mut value = [0_u8; 8];
    MARKS.iter().any(|mark| {
        let read = rustix::fs::getxattr(unit, *mark, &mut value);
        read.is_ok_and(|length| &value[..length] == b"1")
    })
}

/// The unit's cgroup by `/proc/PID/cgroup` of a process that the manager has put into `daemon`, relative to the root;
/// [`None`] where it has not, or v1 hierarchies are.
fn unit_of(membership: &str) -> Option<PathBuf> {
    let mut lines = membership.lines();
    let own = lines.next()?.strip_prefix("0::/")?;
    if own.is_empty() || lines.next().is_some() {
        return None;
    }
    let own = Path::new(own);
    if own.ends_with(DAEMON) { own.parent().map(Path::to_owned) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_used_only_if_the_next_server_can_be_started_beside_its_machines() {
        let unit = Some(PathBuf::from("system.slice/perch.service"));
        assert_eq!(unit_of("0::/system.slice/perch.service/daemon\n"), unit);
        assert_eq!(unit_of("0::/system.slice/perch.service\n"), None);
    }

    #[test]
    fn beside_v1_hierarchies_and_in_the_root_nothing_is_ours() {
        assert_eq!(unit_of("4:memory:/perch\n0::/system.slice/perch.service/daemon\n"), None);
        assert_eq!(unit_of("0::/\n"), None);
        assert_eq!(unit_of(""), None);
    }

    #[test]
    fn an_ordinary_directory_is_not_delegated() {
        assert!(!is_delegated(Path::new("/")));
    }
}
