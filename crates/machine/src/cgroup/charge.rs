//! What the kernel charges to a Machine, as its memory cgroup counts it: also shared memory and what lies in `/dev/shm`,
//! of which its processes tell a part or nothing.
//!
//! ```text
//!  on the lists of what has no file = mapped private memory + shared memory + what is in swap and still in RAM
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::{Cgroups, counter};

/// Memory of one Machine that no file of a disk has. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    /// Private, in RAM.
    pub(crate) private: u64,
    /// Shared, or a file of a tmpfs, in RAM.
    pub(crate) shared: u64,
    /// In swap. `None`: this kernel does not count it.
    pub(crate) swapped: Option<u64>,
}

/// Bytes of one Machine that are in swap and in RAM as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copies {
    /// All of them.
    pub(crate) bytes: u64,
    /// On their way to the disk: these cannot go yet.
    pub(crate) in_flight: u64,
}

/// Where it is counted.
#[derive(Debug, Clone)]
pub(crate) enum Account {
    V1(PathBuf),
    V2(PathBuf),
}

impl Cgroups {
    /// `None`: nothing counts its memory.
    pub(crate) fn charge(&self) -> Option<Charge> {
        let account = self.account_of_memory()?;
        let (Account::V1(dir) | Account::V2(dir)) = &account;
        let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
        match account {
            Account::V1(_) => Charge::of_v1(&stat),
            Account::V2(dir) => Charge::of_v2(&stat, number(&dir.join("memory.swap.current"))),
        }
    }

    /// `None`: nothing counts its memory.
    pub(crate) fn copies(&self) -> Option<Copies> {
        let account = self.account_of_memory()?;
        let (Account::V1(dir) | Account::V2(dir)) = &account;
        let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
        let in_flight = match account {
            Account::V1(_) => "writeback",
            Account::V2(_) => "file_writeback",
        };
        let count = |name| counter(&stat, name).unwrap_or(0);
        Some(Copies { bytes: count("swapcached"), in_flight: count(in_flight) })
    }

    /// Where v1 has the controller, v2 has not.
    pub(crate) fn account_of_memory(&self) -> Option<Account> {
        let is_memory = |options: &str| options.split(',').any(|option| option == "memory");
        match self.v1.iter().find(|v1| is_memory(&v1.options)) {
            Some(v1) => Some(Account::V1(v1.dir.clone())),
            None => self.v2.clone().map(Account::V2),
        }
    }
}

impl Charge {
    /// What is in swap counts there only when it has left RAM.
    fn of_v1(stat: &str) -> Option<Self> {
        let (private, shared) = (counter(stat, "rss")?, counter(stat, "shmem")?);
        let copies = copies(stat, private, shared);
        let swapped = counter(stat, "swap").map(|gone| gone.saturating_add(copies));
        Some(Self { private, shared, swapped })
    }

    /// What is in swap counts there also while it is in RAM, in use or not.
    fn of_v2(stat: &str, in_swap: Option<u64>) -> Option<Self> {
        let (private, shared) = (counter(stat, "anon")?, counter(stat, "shmem")?);
        let both = counter(stat, "swapcached").unwrap_or(0);
        let copies = copies(stat, private, shared);
        let swapped = in_swap.map(|bytes| bytes.saturating_sub(both).saturating_add(copies));
        Some(Self { private, shared, swapped })
    }

    /// What leaves RAM only for swap.
    pub(crate) fn anonymous(self) -> u64 {
        self.private.saturating_add(self.shared)
    }
}

/// Bytes in swap and still in RAM that nobody uses.
fn copies(stat: &str, private: u64, shared: u64) -> u64 {
    let listed: u64 =
        ["inactive_anon", "active_anon"].iter().filter_map(|name| counter(stat, name)).sum();
    let unused = listed.saturating_sub(private).saturating_sub(shared);
    unused.min(counter(stat, "swapcached").unwrap_or(0))
}

pub(crate) fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::V1;

    const V1_STAT: &str = "\
cache 900
rss 4000
shmem 500
swap 7000
swapcached 300
inactive_anon 4000
active_anon 600
total_rss 1
total_shmem 1
total_swap 1
";
    const V2_STAT: &str = "\
anon 4000
file 900
shmem 500
swapcached 300
inactive_anon 4000
active_anon 600
";

    #[test]
    fn both_versions_count_shared_memory_and_what_is_in_swap_alone_or_unused() {
        let v1 = Charge { private: 4000, shared: 500, swapped: Some(7100) };
        assert_eq!(Charge::of_v1(V1_STAT), Some(v1));
        assert_eq!(v1.anonymous(), 4500);
        let v2 = Charge { swapped: Some(6800), ..v1 };
        assert_eq!(Charge::of_v2(V2_STAT, Some(7000)), Some(v2));
        // What is in swap and in use is in memory.
        let used = V2_STAT.replace("active_anon 600", "active_anon 500");
        let used = Charge::of_v2(&used, Some(300)).expect("it counts");
        assert_eq!(used.swapped, Some(0));
    }

    #[test]
    fn what_a_kernel_does_not_count_is_not_taken_for_nothing() {
        let without = V1_STAT.replace("\nswap 7000", "");
        assert_eq!(Charge::of_v1(&without).expect("it counts the rest").swapped, None);
        assert_eq!(Charge::of_v2(V2_STAT, None).expect("it counts the rest").swapped, None);
        assert_eq!(Charge::of_v1(V2_STAT), None);
        assert_eq!(Charge::of_v2("", Some(1)), None);
    }

    #[test]
    fn v1_counts_where_it_has_the_controller() -> std::io::Result<()> {
        let (one, two) = (crate::scratch_dir("charge-1")?, crate::scratch_dir("charge-2")?);
        fs::write(two.join("memory.stat"), V2_STAT)?;
        fs::write(two.join("memory.swap.current"), "7000\n")?;
        let mut cgroups = Cgroups { v1: Vec::new(), v2: Some(two.clone()), v2_root: two.clone() };
        assert_eq!(cgroups.charge().and_then(|charge| charge.swapped), Some(6800));
        cgroups.v1.push(V1 { dir: one.clone(), options: "rw,memory".to_owned() });
        assert_eq!(cgroups.charge(), None, "a Machine without a limit has none");
        fs::write(one.join("memory.stat"), V1_STAT)?;
        assert_eq!(cgroups.charge().and_then(|charge| charge.swapped), Some(7100));
        fs::remove_dir_all(one)?;
        fs::remove_dir_all(two)
    }
}
