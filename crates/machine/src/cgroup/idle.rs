//! The kernel's idle class: a Machine in it has what CPU time nobody beside it wants, as long as it is there.
//!
//! Whoever leaves the class has the kernel's usual weight, so its own is written anew; while it is in it the kernel
//! takes none. `cpu.idle` is known since 5.15, by both versions.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use perch_core::cpu::{Class, Rates};

use super::{Allowance, Cgroups, counter, named, write_existing};
use crate::launch::{Machine, allowance};

const IDLE: &str = "cpu.idle";
/// What [`Allowance::cpu_shares`] of one whole CPU are.
const SHARES_PER_CPU: u64 = 1024;

/// The files of one run by which its use of the CPUs is seen and given a class.
#[derive(Debug)]
pub struct Cpu {
    rates: Rates,
    usage: Usage,
    idle: PathBuf,
    weight: (PathBuf, String),
}

#[derive(Debug)]
enum Usage {
    /// `cpu.stat`, microseconds.
    V2(PathBuf),
    /// `cpuacct.usage`, nanoseconds.
    V1(PathBuf),
}

impl Machine {
    /// Finds its files. `None`: it can use no more than its baseline, or nothing here knows the class or counts.
    pub fn cpu(&self) -> Option<Cpu> {
        self.cgroups().cpu(allowance(self.spec()))
    }
}

impl Cgroups {
    fn cpu(&self, allowance: Allowance) -> Option<Cpu> {
        let rates = rates(allowance).filter(|rates| rates.can_exceed())?;
        let weight = allowance.limits().find(|limit| limit.v1.0 == "cpu.shares")?;
        let (dir, weight) = match self.v1_for(&weight) {
            Some(v1) => (&v1.dir, (v1.dir.join(weight.v1.0), weight.v1.1.to_string())),
            None => {
                let dir = self.v2.as_ref()?;
                (dir, (dir.join(weight.v2.0), weight.v2.1))
            }
        };
        let idle = Some(dir.join(IDLE)).filter(|file| file.exists())?;
        Some(Cpu { rates, usage: self.usage()?, idle, weight })
    }

    fn usage(&self) -> Option<Usage> {
        let v2 = self.v2.iter().map(|leaf| Usage::V2(leaf.join("cpu.stat")));
        let v1 = self.v1_dirs().map(|dir| Usage::V1(dir.join("cpuacct.usage")));
        v2.chain(v1).find(|usage| usage.read().is_ok())
    }
}

fn rates(allowance: Allowance) -> Option<Rates> {
    Some(Rates {
        baseline_us: u64::from(allowance.cpu_shares?) * 1_000_000 / SHARES_PER_CPU,
        most_us: u64::from(allowance.cpu_millis?) * 1000,
    })
}

impl Usage {
    fn read(&self) -> io::Result<Duration> {
        let (file, used) = match self {
            Self::V2(file) => {
                let used = counter(&read(file)?, "usage_usec").map(Duration::from_micros);
                (file, used)
            }
            Self::V1(file) => (file, read(file)?.trim_end().parse().ok().map(Duration::from_nanos)),
        };
        let unknown = || io::Error::other(format!("{} tells no usage", file.display()));
        used.ok_or_else(unknown)
    }
}

impl Cpu {
    /// Its baseline, and the most that it can take.
    pub fn rates(&self) -> Rates {
        self.rates
    }

    /// CPU time that it has used since it began.
    ///
    /// # Errors
    /// When its cgroups are gone.
    pub fn used(&self) -> io::Result<Duration> {
        self.usage.read()
    }

    /// The class in which an earlier server left it, with the weight that belongs to it.
    ///
    /// # Errors
    /// When its cgroups are gone.
    pub fn take_up(&self) -> io::Result<Class> {
        if read(&self.idle)?.trim_end() == "1" {
            return Ok(Class::Idle);
        }
        let (file, weight) = &self.weight;
        // A server may have died between the two writes that take a Machine back.
        if read(file)?.trim_end() != weight {
            self.weigh()?;
        }
        Ok(Class::Normal)
    }

    /// Puts it into a class. Idempotent.
    ///
    /// # Errors
    /// When its cgroups are gone, or the kernel refuses.
    pub fn enter(&self, class: Class) -> io::Result<()> {
        let write = |word| write_existing(&self.idle, word).map_err(named("write", &self.idle));
        match class {
            Class::Idle => write("1"),
            Class::Normal => write("0").and_then(|()| self.weigh()),
        }
    }

    fn weigh(&self) -> io::Result<()> {
        let (file, weight) = &self.weight;
        write_existing(file, weight).map_err(named("write", file))
    }
}

fn read(file: &Path) -> io::Result<String> {
    fs::read_to_string(file).map_err(named("read", file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::V1;

    const SHARED: Allowance = Allowance {
        memory_bytes: None,
        swap_bytes: None,
        cpu_millis: Some(2000),
        cpu_shares: Some(128),
        pids: None,
    };

    /// Files of both versions.
    fn files(name: &str) -> io::Result<PathBuf> {
        let dir = crate::scratch_dir(name)?;
        for (file, text) in [
            ("cpu.idle", "0\n"),
            ("cpu.shares", "128\n"),
            ("cpu.weight", "13\n"),
            ("cpu.stat", "usage_usec 7000\nuser_usec 1\n"),
            ("cpuacct.usage", "9000000\n"),
        ] {
            fs::write(dir.join(file), text)?;
        }
        Ok(dir)
    }

    fn v1(dir: &Path, options: &str) -> Cgroups {
        let v1 = V1 { dir: dir.to_owned(), options: options.to_owned() };
        Cgroups { v1: vec![v1], v2: None, v2_root: PathBuf::new() }
    }

    #[test]
    fn each_version_counts_and_weighs_in_its_own_words() -> io::Result<()> {
        let dir = files("idle-1")?;
        let cases = [
            (v1(&dir, "rw,cpu,cpuacct"), Duration::from_millis(9), "cpu.shares", "128"),
            (Cgroups::of_test(&dir), Duration::from_millis(7), "cpu.weight", "13"),
        ];
        for (cgroups, used, file, weight) in cases {
            let cpu = cgroups.cpu(SHARED).expect("it is all there");
            assert_eq!(cpu.rates(), Rates { baseline_us: 125_000, most_us: 2_000_000 });
            assert_eq!(cpu.used()?, used);
            cpu.enter(Class::Idle)?;
            assert_eq!(cpu.take_up()?, Class::Idle);
            // What the kernel makes of it.
            fs::write(dir.join(file), "3")?;
            cpu.enter(Class::Normal)?;
            assert_eq!(fs::read_to_string(dir.join(file))?, weight);
            assert_eq!(cpu.take_up()?, Class::Normal);
        }
        fs::remove_dir_all(dir)
    }

    #[test]
    fn who_was_half_taken_back_has_its_own_weight_again() -> io::Result<()> {
        let dir = files("idle-2")?;
        let cpu = v1(&dir, "rw,cpu,cpuacct").cpu(SHARED).expect("it is all there");
        // As long as what comes: a file is not cut as the kernel does it.
        fs::write(dir.join("cpu.shares"), "256")?;
        assert_eq!(cpu.take_up()?, Class::Normal);
        assert_eq!(fs::read_to_string(dir.join("cpu.shares"))?, "128");
        fs::remove_dir_all(dir)
    }

    #[test]
    fn without_the_class_or_a_baseline_below_its_cpus_there_is_nothing_to_do() -> io::Result<()> {
        let dir = files("idle-3")?;
        let whole = Allowance { cpu_shares: Some(2048), ..SHARED };
        assert!(Cgroups::of_test(&dir).cpu(whole).is_none(), "performance CPUs");
        assert!(Cgroups::of_test(&dir).cpu(Allowance::default()).is_none(), "no limits");
        fs::remove_file(dir.join("cpu.idle"))?;
        assert!(Cgroups::of_test(&dir).cpu(SHARED).is_none(), "an old kernel");
        fs::remove_dir_all(&dir)?;
        assert!(Cgroups::of_test(&dir).cpu(SHARED).is_none(), "it is gone");
        Ok(())
    }
}
