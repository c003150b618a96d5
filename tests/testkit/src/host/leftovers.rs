//! Finds and removes what outlives a host's processes: the cgroups of its Machines, and its swap.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::{process, wait_until};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Depth at which a Machine's group can be below a hierarchy's root.
const DEPTH_MAX: usize = 5;

/// The groups of the server with this data directory, one path a line. Other servers on the machine, those of other
/// tests among them, come and go as they like.
pub(super) fn cgroups(data_dir: &Path) -> String {
    let mut found = groups(data_dir);
    found.sort();
    found.iter().map(|dir| format!("{}\n", dir.display())).collect()
}

/// Removes the groups of the server with this data directory; they are empty, or soon will be.
pub(super) fn remove_cgroups(data_dir: &Path) {
    let mut dirs = groups(data_dir);
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

fn groups(data_dir: &Path) -> Vec<PathBuf> {
    let parent = parent_group(data_dir);
    let mut found = Vec::new();
    walk(Path::new(CGROUPS), 0, &mut |dir| {
        if dir.components().any(|part| part.as_os_str() == parent.as_str()) {
            found.push(dir.to_owned());
        }
    });
    found
}

/// The name that a server derives from its data directory.
fn parent_group(data_dir: &Path) -> String {
    let hash = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let tag: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("perch-{tag}")
}

/// Turns off swap of hosts that are gone: who was killed could not do it.
pub(super) fn remove_swap_of_the_dead() {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for swap in swaps.lines().filter_map(|line| line.split_whitespace().next()) {
        let Some(host) = host_of_swap(Path::new(swap)) else { continue };
        if !process::any_names(&host.to_string_lossy()) {
            eprintln!("turning off swap that a host has left: {swap}");
            drop(Command::new("swapoff").arg(swap).status());
        }
    }
    remove_zram_of_the_dead();
}

fn remove_zram_of_the_dead() {
    let dirs = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let hosts = dirs.map(|entry| entry.path()).filter(|path| is_host(path));
    let zrams: Vec<Zram> = hosts.filter_map(Zram::of).collect();
    let (living, dead): (Vec<_>, Vec<_>) =
        zrams.iter().partition(|it| process::any_names(&it.host.to_string_lossy()));
    // The number of a device that is gone is given to the next.
    for zram in dead.into_iter().filter(|it| living.iter().all(|other| other.number != it.number)) {
        eprintln!("removing compressed memory that a host has left: {zram:?}");
        if let Err(error) = zram.remove() {
            eprintln!("left behind: {error}");
        }
    }
}

/// Swap of compressed memory, as a host's `swap.zram` tells.
#[derive(Debug, PartialEq, Eq)]
struct Zram {
    host: PathBuf,
    number: u32,
}

impl Zram {
    /// `None` where it is not this host's: it was made before a reboot, it is gone, or another one has its number.
    fn of(host: PathBuf) -> Option<Self> {
        let text = fs::read_to_string(host.join("data/swap.zram")).ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let (size, number) = size_and_number(&text, boot.trim())?;
        let found = fs::read_to_string(block(number).join("disksize")).ok()?;
        (found.trim() == size).then_some(Self { host, number })
    }

    fn remove(&self) -> std::io::Result<()> {
        let data = self.host.join("data");
        for node in [PathBuf::from(format!("/dev/zram{}", self.number)), data.join("swap.device")] {
            drop(Command::new("swapoff").arg(node).output());
        }
        // It is refused while the device is in use.
        fs::write(block(self.number).join("reset"), "1")?;
        fs::write("/sys/class/zram-control/hot_remove", self.number.to_string())?;
        fs::remove_file(data.join("swap.zram"))
    }
}

fn block(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/zram{number}"))
}

/// Of a device that was made in this boot.
fn size_and_number<'a>(text: &'a str, boot: &str) -> Option<(&'a str, u32)> {
    let mut fields = text.split_ascii_whitespace();
    let (size, number) = (fields.next()?, fields.next()?.parse().ok()?);
    (fields.next()? == boot).then_some((size, number))
}

/// The directory of the host whose swap this is, if it is a host's.
fn host_of_swap(swap: &Path) -> Option<&Path> {
    let host =
        swap.parent().filter(|data| swap.ends_with("data/swap") && data.is_dir())?.parent()?;
    is_host(host).then_some(host)
}

fn is_host(dir: &Path) -> bool {
    let is_named = dir.file_name().is_some_and(|it| it.to_string_lossy().starts_with("perch-"));
    is_named && dir.parent() == Some(&std::env::temp_dir())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_an_earlier_boot_is_nobodys() {
        assert_eq!(size_and_number("4096 3 this\n", "this"), Some(("4096", 3)));
        for text in ["4096 3 former\n", "4096 3 off\n", "4096 3\n", "4096 x this\n", ""] {
            assert_eq!(size_and_number(text, "this"), None, "{text:?}");
        }
    }
}
