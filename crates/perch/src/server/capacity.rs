//! How much memory there is, for starts and for those who sleep.
//!
//! It is the host's, as far as the limits of cgroups above the Machines let it count, as those of a container; or as much
//! of it as the configuration says the server may count on (`memory`). In the latter case
//! what its Machines have is measured one by one, because nothing else tells it; that of sleepers once, as they fall
//! asleep and when they are paged out.

use std::fs;
use std::sync::Arc;

use perch_core::memory::{Ceiling, Facts, Pressure, Room};
use perch_machine::{Ceilings, Machine, Memory, Swap};

use crate::config::Reserve;
use crate::size::Size;

/// Part of the last 10 s, in percent, in which some program waited for memory.
const PRESSURE_PERCENT: f64 = 10.0;

/// What the configuration says about memory, and what limits it.
#[derive(Debug)]
pub(crate) struct Capacity {
    /// How much of the host's memory the server may count on; all unless said.
    pub(crate) memory: Option<Size>,
    pub(crate) reserve: Reserve,
    /// Limits above all Machines.
    pub(crate) ceilings: Ceilings,
}

impl Capacity {
    /// Whether looking takes so long that nobody should wait for it.
    pub(crate) fn is_slow(&self) -> bool {
        self.memory.is_some()
    }

    /// Looks at the host. Reads `/proc`; what the runners have if only a part of it counts. Those asleep have what was
    /// measured once: they do not grow. `own_stalls` percent of the waits for memory are a page-out's own.
    pub(crate) fn facts(
        &self,
        runners: &[Arc<Machine>],
        asleep: &[Memory],
        promised: u64,
        swap: Swap,
        own_stalls: f64,
    ) -> Facts {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let room = Room {
            total: kilobytes(&meminfo, "MemTotal:"),
            // What was paged out stays in memory as a copy until somebody wants the room.
            available: kilobytes(&meminfo, "MemAvailable:") + kilobytes(&meminfo, "SwapCached:"),
            swap_left: swap.total_bytes.saturating_sub(swap.used_bytes),
        };
        let mut ceilings: Vec<Ceiling> =
            self.ceilings.below(room.total).into_iter().map(above_all).collect();
        if let Some(Size(limit)) = self.memory {
            let memories = runners.iter().map(|machine| seen(machine));
            let memories = memories.chain(asleep.iter().copied());
            let used = memories.map(|memory| taken(memory, swap)).sum();
            ceilings.push(Ceiling { limit, used, swap_left: None });
        }
        let Room { total, available, swap_left } = room.below(&ceilings);
        let waits = fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
        Facts {
            total,
            available,
            reserve: self.reserve.of(total),
            promised,
            swap_left,
            pressure: pressure(&waits, own_stalls),
        }
    }
}

fn above_all(limit: perch_machine::Ceiling) -> Ceiling {
    let perch_machine::Ceiling { limit_bytes, used_bytes, swap_left_bytes } = limit;
    Ceiling { limit: limit_bytes, used: used_bytes, swap_left: swap_left_bytes }
}

/// By its memory cgroup, where it has one: its processes are asked only where that does not know.
fn seen(machine: &Machine) -> Memory {
    machine.charged().or_else(|| machine.memory().ok()).unwrap_or_default()
}

fn taken(memory: Memory, swap: Swap) -> u64 {
    memory.resident_bytes.saturating_add(swap.store_of(memory.swapped_bytes))
}

fn kilobytes(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

/// Low where the kernel does not tell.
fn pressure(text: &str, own_stalls: f64) -> Pressure {
    let some = text.lines().find_map(|line| line.strip_prefix("some avg10="));
    let percent = some.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let is_high = percent.is_some_and(|percent| PRESSURE_PERCENT <= percent - own_stalls);
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
        assert_eq!(pressure(&text("9.99"), 0.0), Pressure::Low);
        assert_eq!(pressure(&text("10.00"), 0.0), Pressure::High);
        assert_eq!(pressure(&text("40.00"), 31.0), Pressure::Low);
        assert_eq!(pressure("", 0.0), Pressure::Low);
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

    fn part_of_host(reserve: Reserve) -> Capacity {
        Capacity { memory: Some(Size(1 << 20)), reserve, ceilings: Ceilings::default() }
    }

    #[test]
    fn no_machine_takes_nothing_of_a_part_of_the_host() {
        let capacity = part_of_host(Reserve::Part(10));
        let facts = capacity.facts(&[], &[], 7, Swap::default(), 0.0);
        assert_eq!((facts.total, facts.available, facts.promised), (1 << 20, 1 << 20, 7));
        assert_eq!(facts.reserve, (1 << 20) / 10);
    }

    #[test]
    fn what_sleepers_had_when_they_were_measured_is_not_available() {
        let capacity = part_of_host(Reserve::Part(0));
        let asleep = Memory { resident_bytes: 1 << 18, ..Memory::default() };
        let facts = capacity.facts(&[], &[asleep, asleep], 0, Swap::default(), 0.0);
        assert_eq!(facts.available, 1 << 19);
    }
}
