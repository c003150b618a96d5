//! Finds and removes what outlives a host's processes: the cgroups of its Machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::wait_until;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Depth at which a Machine's group can be below a hierarchy's root.
const DEPTH_MAX: usize = 5;

/// The ids of the Machines that have a directory.
pub(super) fn machine_ids(data_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(data_dir.join("machines")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The groups of the server with this data directory, one path a line. Other servers on the machine, those of other
/// tests among them, come and go as they like.
pub(super) fn cgroups(data_dir: &Path) -> String {
    let parent = parent_group(data_dir);
    let mut found = Vec::new();
    walk(Path::new(CGROUPS), 0, &mut |dir| {
        if dir.components().any(|part| part.as_os_str() == parent.as_str()) {
            found.push(format!("{}\n", dir.display()));
        }
    });
    found.sort();
    found.concat()
}

/// The name that a server derives from its data directory.
fn parent_group(data_dir: &Path) -> String {
    let hash = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let tag: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("perch-{tag}")
}

/// Removes the groups of these Machines; they are empty, or soon will be.
pub(super) fn remove_cgroups(machines: &[String]) {
    if machines.is_empty() {
        return;
    }
    let mut dirs: Vec<PathBuf> = Vec::new();
    walk(Path::new(CGROUPS), 0, &mut |dir| {
        let parts = dir.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
        if parts.into_iter().any(|part| machines.contains(&part)) {
            dirs.push(dir.to_owned());
        }
    });
    // Children before parents.
    dirs.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    for dir in dirs {
        let gone = wait_until("an empty cgroup", Duration::from_secs(2), || {
            Ok((fs::remove_dir(&dir).is_ok() || !dir.exists()).then_some(()))
        });
        if gone.is_err() {
            eprintln!("left behind: {}", dir.display());
        }
    }
}

fn walk(dir: &Path, depth: usize, see: &mut dyn FnMut(&Path)) {
    if DEPTH_MAX < depth {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            see(&entry.path());
            walk(&entry.path(), depth + 1, see);
        }
    }
}
