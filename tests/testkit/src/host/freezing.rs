//! Hosts with less than this machine has: what a kernel without a v2 freezer, or without any, lets Machines be frozen by.

use std::fs;

use anyhow::Result;

use super::Host;

/// The best that a host has to freeze Machines by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezing {
    /// `cgroup.freeze`; whatever the machine has.
    V2,
    /// `freezer.state`.
    V1,
    /// SIGSTOP, as there is no freezer.
    Signals,
}

impl Host {
    /// Takes what is better than this from the host, by its own mounts: nobody else misses it. To be called before its
    /// server starts; false if this machine has nothing to go on with.
    pub fn freeze_by_at_most(&self, way: Freezing) -> Result<bool> {
        let is_better = |kind: &str, options: &str| match way {
            Freezing::V2 => false,
            Freezing::V1 => kind == "cgroup2",
            Freezing::Signals => kind == "cgroup2" || has(options, "freezer"),
        };
        for (_, dir, _) in self.hierarchies()?.iter().filter(|(kind, _, o)| is_better(kind, o)) {
            self.run("umount", &[dir])?.ok()?;
        }
        let left = self.hierarchies()?;
        let any = |name: &str| left.iter().any(|(_, _, options)| has(options, name));
        Ok(match way {
            Freezing::V2 => true,
            Freezing::V1 => any("freezer"),
            Freezing::Signals => any("pids"),
        })
    }

    /// Kind, place and options of each mounted hierarchy of cgroups.
    fn hierarchies(&self) -> Result<Vec<(String, String, String)>> {
        let text = fs::read_to_string(format!("/proc/{}/mounts", self.init))?;
        let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = fields.filter_map(|fields| match fields[..] {
            [_, dir, kind @ ("cgroup" | "cgroup2"), options, ..] => {
                Some((kind.to_owned(), dir.to_owned(), options.to_owned()))
            }
            _ => None,
        });
        Ok(found.collect())
    }
}

fn has(options: &str, name: &str) -> bool {
    options.split(',').any(|option| option == name)
}
