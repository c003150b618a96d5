//! What a Machine may use of its host, by its `guest` (MA-50, MA-51).
//!
//! | `guest` | limit |
//! |---|---|
//! | `memory_mb` | memory; swap beside it by `init.swap_size_mb`, none unless said |
//! | `cpus` | CPU time of so many whole CPUs, so that what others leave can be used |
//! | `cpu_kind` | part of the CPUs that others want too: `performance` a whole one, `shared` a sixteenth, each |
//! | `memory_mb` | processes and threads: 16 for each MB, because each costs the kernel 64 kB about |

use perch_api::wire::{Guest, MachineConfig};

use super::records::MachineRecord;

const MIB: u64 = 1 << 20;
/// What the kernel gives a program that nobody limits.
const SHARES_PER_CPU: u32 = 1024;
/// A shared CPU is this part of a whole one: the base line that Fly documents.
const SHARED_PART: u32 = 16;
/// Processes and threads for each MB of memory: more would not fit into it.
const PIDS_PER_MIB: u64 = 16;
/// Process numbers are the host's: no Machine has more than the whole of a small kernel's.
const PIDS_MAX: u64 = 32_768;
/// The most that the kernel takes, in version 1.
const SHARES_MAX: u32 = 262_144;

/// A Machine's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) swap_bytes: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) cpu_shares: u32,
    pub(crate) pids: u64,
}

/// The limits by a Machine's configuration.
pub(crate) fn of(record: &MachineRecord) -> Limits {
    let config = record.config.read();
    let init = config.get("init").unwrap_or_default();
    let swap_mb = init.get("swap_size_mb").and_then(serde_json::Value::as_u64).unwrap_or(0);
    by_guest(&config.view().guest.clone().unwrap_or_default(), swap_mb)
}

/// The most memory that a Machine with this configuration may have.
pub(crate) fn memory_bytes(config: &MachineConfig) -> u64 {
    by_guest(&config.view().guest.clone().unwrap_or_default(), 0).memory_bytes
}

fn by_guest(guest: &Guest, swap_mb: u64) -> Limits {
    let default = Guest::default();
    // Zero is how the wire says that nothing was said.
    let or = |given: u32, default: u32| if given == 0 { default } else { given };
    let memory_mb = u64::from(or(guest.memory_mb, default.memory_mb));
    let cpus = or(guest.cpus, default.cpus);
    let whole = SHARES_PER_CPU.saturating_mul(cpus);
    let shares = if guest.cpu_kind == "performance" { whole } else { whole / SHARED_PART };
    Limits {
        memory_bytes: memory_mb * MIB,
        swap_bytes: swap_mb.saturating_mul(MIB),
        cpu_millis: cpus.saturating_mul(1000),
        cpu_shares: shares.min(SHARES_MAX),
        pids: (memory_mb * PIDS_PER_MIB).min(PIDS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(cpu_kind: &str, cpus: u32, memory_mb: u32) -> Guest {
        Guest { cpu_kind: cpu_kind.to_owned(), cpus, memory_mb }
    }

    #[test]
    fn the_smallest_guest_is_the_default() {
        let expected = Limits {
            memory_bytes: 256 << 20,
            swap_bytes: 0,
            cpu_millis: 1000,
            cpu_shares: 64,
            pids: 4096,
        };
        assert_eq!(by_guest(&Guest::default(), 0), expected);
        assert_eq!(by_guest(&guest("", 0, 0), 0), expected);
    }

    #[test]
    fn a_performance_cpu_weighs_sixteen_shared_ones() {
        let shares = |kind: &str, cpus| by_guest(&guest(kind, cpus, 256), 0).cpu_shares;
        assert_eq!(shares("performance", 1), 16 * shares("shared", 1));
        assert_eq!(shares("shared", 8), 512);
        assert_eq!(shares("performance", u32::MAX), SHARES_MAX);
    }

    #[test]
    fn no_guest_takes_all_process_numbers() {
        assert_eq!(by_guest(&guest("shared", 1, u32::MAX), u64::MAX).pids, PIDS_MAX);
    }
}
