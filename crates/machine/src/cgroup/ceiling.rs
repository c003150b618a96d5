//! Limits of memory above all Machines: of a container that this host is, or of somebody who limits the server.
//!
//! ```text
//!  the root that is in sight ─► … ─► the Machines' parent ─► a Machine
//!  └── whatever has a limit here: the kernel kills below it, however much the host has ──┘
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::charge::{Account, number};
use super::{Cgroups, counter};

/// The memory cgroups above the Machines of one parent.
#[derive(Debug, Clone, Default)]
pub struct Ceilings(Vec<Account>);

/// A limit, and what counts against it. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// Beyond it the kernel kills; `u64::MAX`: only swap is limited.
    pub limit_bytes: u64,
    /// What is used below it and cannot be dropped.
    pub used_bytes: u64,
    /// Swap that is left; `None`: no limit of its own.
    pub swap_left_bytes: Option<u64>,
}

impl Ceilings {
    /// Finds those above the Machines of `parent`, which need not be there yet.
    ///
    /// # Errors
    /// When the kernel does not tell what is mounted.
    pub fn above(parent: &str) -> io::Result<Self> {
        let path = Path::new(parent);
        let depth = path.components().count();
        let found = Cgroups::find(path)?.account_of_memory();
        Ok(found.map_or_else(Self::default, |nearest| Self::ancestors(&nearest, depth)))
    }

    fn ancestors(nearest: &Account, depth: usize) -> Self {
        let all = nearest.dir().ancestors().take(depth + 1);
        Self(all.map(|dir| nearest.beside(dir)).collect())
    }

    /// Those that limit memory below `bytes_max`, or swap. Reads two files each and three more where there is a limit.
    pub fn below(&self, bytes_max: u64) -> Vec<Ceiling> {
        self.0.iter().filter_map(|account| account.ceiling(bytes_max)).collect()
    }
}

impl Account {
    fn dir(&self) -> &Path {
        let (Self::V1(dir) | Self::V2(dir)) = self;
        dir
    }

    fn beside(&self, dir: &Path) -> Self {
        match self {
            Self::V1(_) => Self::V1(dir.to_owned()),
            Self::V2(_) => Self::V2(dir.to_owned()),
        }
    }

    fn ceiling(&self, bytes_max: u64) -> Option<Ceiling> {
        let file = |name: &str| -> PathBuf { self.dir().join(name) };
        let (limit, used, droppable) = match self {
            Self::V1(_) => ("memory.limit_in_bytes", "memory.usage_in_bytes", V1_DROPPABLE),
            Self::V2(_) => ("memory.max", "memory.current", V2_DROPPABLE),
        };
        // No limit is a word on v2, and on v1 a number that no machine has.
        let limit_bytes = number(&file(limit)).filter(|limit| *limit < bytes_max);
        let swap = number(&file("memory.swap.max")).zip(number(&file("memory.swap.current")));
        if limit_bytes.is_none() && swap.is_none() {
            return None;
        }
        let stat = fs::read_to_string(file("memory.stat")).ok()?;
        let droppable: u64 = droppable.iter().filter_map(|name| counter(&stat, name)).sum();
        Some(Ceiling {
            limit_bytes: limit_bytes.unwrap_or(u64::MAX),
            used_bytes: number(&file(used))?.saturating_sub(droppable),
            swap_left_bytes: swap.map(|(limit, used)| limit.saturating_sub(used)),
        })
    }
}

/// What is on a disk or in swap as well, and what the kernel only remembers for speed. On v1 only the totals are of
/// everything below, and there is none of the last.
const V1_DROPPABLE: &[&str] = &["total_inactive_file", "total_active_file", "total_swapcached"];
const V2_DROPPABLE: &[&str] = &["inactive_file", "active_file", "swapcached", "slab_reclaimable"];

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        files.iter().try_for_each(|(name, text)| fs::write(dir.join(name), text))
    }

    #[test]
    fn each_limit_above_the_machines_is_found_with_what_counts_against_it() -> io::Result<()> {
        let root = crate::scratch_dir("ceilings")?;
        let stat = "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 40\n\
                    total_swapcached 10\n";
        let v1 = [
            ("memory.limit_in_bytes", "1000\n"),
            ("memory.usage_in_bytes", "700\n"),
            ("memory.stat", stat),
        ];
        write(&root.join("pod"), &v1)?;
        write(&root, &[("memory.limit_in_bytes", "9223372036854771712\n")])?;
        // The Machines' own parent is not there yet, and what is above the root is not in sight.
        let nearest = Account::V1(root.join("pod/perch"));
        let expected = Ceiling { limit_bytes: 1000, used_bytes: 550, swap_left_bytes: None };
        assert_eq!(Ceilings::ancestors(&nearest, 2).below(1 << 40), [expected]);
        assert_eq!(Ceilings::ancestors(&nearest, 0).below(1 << 40), []);
        assert_eq!(Ceilings::ancestors(&nearest, 2).below(1000), [], "the host has no more");
        fs::remove_dir_all(root)
    }

    #[test]
    fn v2_limits_swap_beside_memory() -> io::Result<()> {
        let root = crate::scratch_dir("ceilings-2")?;
        let files = [
            ("memory.max", "1000\n"),
            ("memory.current", "700\n"),
            (
                "memory.stat",
                "inactive_file 100\nactive_file 30\nswapcached 5\nslab_reclaimable 15\n",
            ),
            ("memory.swap.max", "30\n"),
            ("memory.swap.current", "10\n"),
        ];
        write(&root, &files)?;
        write(&root.join("perch"), &[("memory.max", "max\n")])?;
        let ceilings = Ceilings::ancestors(&Account::V2(root.join("perch")), 1);
        let expected = Ceiling { limit_bytes: 1000, used_bytes: 550, swap_left_bytes: Some(20) };
        assert_eq!(ceilings.below(1 << 40), [expected]);
        fs::write(root.join("memory.max"), "max\n")?;
        assert_eq!(ceilings.below(1 << 40), [Ceiling { limit_bytes: u64::MAX, ..expected }]);
        fs::write(root.join("memory.max"), "1000\n")?;
        fs::write(root.join("memory.swap.max"), "max\n")?;
        assert_eq!(ceilings.below(1 << 40)[0].swap_left_bytes, None);
        fs::remove_dir_all(root)
    }
}
