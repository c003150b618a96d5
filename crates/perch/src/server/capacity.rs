//! How much memory there is, for starts and for those who sleep.
//!
//! It is the host's, or as much of it as the configuration says the server may count on (`memory`). In the latter case
//! what its Machines have is measured one by one, because nothing else tells it.

use std::fs;
use std::sync::Arc;

use perch_core::memory::{Facts, Pressure};
use perch_machine::{Machine, Swap};

use super::paging;
use crate::config::Reserve;
use crate::size::Size;

/// Part of the last 10 s, in percent, in which some program waited for memory.
const PRESSURE_PERCENT: f64 = 10.0;

/// What the configuration says about memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// How much of the host's memory the server may count on; all unless said.
    pub(crate) memory: Option<Size>,
    pub(crate) reserve: Reserve,
}

impl Capacity {
    /// Whether looking takes so long that nobody should wait for it.
    pub(crate) fn is_slow(&self) -> bool {
        self.memory.is_some()
    }

    /// Looks at the host. Reads `/proc`, a file for each process of these Machines if only a part of it counts.
    pub(crate) fn facts(&self, machines: &[Arc<Machine>], promised: u64) -> Facts {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let swap = paging::swap();
        let total = kilobytes(&meminfo, "MemTotal:");
        // What was paged out stays in memory as a copy until somebody wants the room.
        let available = kilobytes(&meminfo, "MemAvailable:") + kilobytes(&meminfo, "SwapCached:");
        let (total, available) = match self.memory {
            None => (total, available),
            Some(Size(limit)) => {
                let used: u64 = machines.iter().map(|machine| taken(machine, swap)).sum();
                (total.min(limit), available.min(limit.saturating_sub(used)))
            }
        };
        Facts {
            total,
            available,
            reserve: self.reserve.of(total),
            promised,
            swap_left: swap.total_bytes.saturating_sub(swap.used_bytes),
            pressure: pressure(&fs::read_to_string("/proc/pressure/memory").unwrap_or_default()),
        }
    }
}

fn taken(machine: &Machine, swap: Swap) -> u64 {
    let memory = machine.memory().unwrap_or_default();
    memory.resident_bytes.saturating_add(swap.store_of(memory.swapped_bytes))
}

fn kilobytes(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

/// Low where the kernel does not tell.
fn pressure(text: &str) -> Pressure {
    let some = text.lines().find_map(|line| line.strip_prefix("some avg10="));
    let percent = some.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let is_high = percent.is_some_and(|percent| PRESSURE_PERCENT <= percent);
    if is_high { Pressure::High } else { Pressure::Low }
}

/// Facts in words, for the events of who gives way and for who is refused.
pub(crate) fn in_words(facts: &Facts, wanted: u64) -> String {
    let Facts { total, available, reserve, promised, .. } = *facts;
    let mut words = format!(
        "memory is short: {} of {} are free, {} are kept free",
        Size(available),
        Size(total),
        Size(reserve)
    );
    if 0 < promised {
        words.push_str(&format!(", {} are promised to other starts", Size(promised)));
    }
    if 0 < wanted {
        words.push_str(&format!(", and a start wants {}", Size(wanted)));
    } else if available >= reserve {
        words.push_str(", and programs wait for memory");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let meminfo = "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(kilobytes(meminfo, "MemAvailable:"), 1 << 20);
        let text =
            |avg10| format!("some avg10={avg10} avg60=0.00 avg300=0.00 total=1\nfull avg10=99.0\n");
        assert_eq!(pressure(&text("9.99")), Pressure::Low);
        assert_eq!(pressure(&text("10.00")), Pressure::High);
        assert_eq!(pressure(""), Pressure::Low);
    }

    #[test]
    fn a_refusal_names_the_amounts() {
        let facts = Facts {
            total: 1 << 30,
            available: 50 << 20,
            reserve: 100 << 20,
            promised: 0,
            swap_left: 0,
            pressure: Pressure::Low,
        };
        let words = in_words(&facts, 256 << 20);
        assert!(words.contains("50 MiB of 1 GiB") && words.ends_with("wants 256 MiB"), "{words}");
    }

    #[test]
    fn no_machine_takes_nothing_of_a_part_of_the_host() {
        let capacity = Capacity { memory: Some(Size(1 << 20)), reserve: Reserve::Part(10) };
        let facts = capacity.facts(&[], 7);
        assert_eq!((facts.total, facts.available, facts.promised), (1 << 20, 1 << 20, 7));
        assert_eq!(facts.reserve, (1 << 20) / 10);
    }
}
