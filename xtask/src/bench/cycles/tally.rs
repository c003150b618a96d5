//! What came out of thousands of requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::figures::Series;

/// Of one caller, or of all.
#[derive(Default)]
pub(super) struct Tally {
    answers: BTreeMap<&'static str, usize>,
    faults: BTreeMap<&'static str, usize>,
    awake: Series,
    woken: Series,
}

impl Tally {
    /// An answer to a request of this kind; `woken` if it waited for its Machine.
    pub(super) fn answer(&mut self, kind: &'static str, took: Duration, woken: bool) {
        *self.answers.entry(kind).or_default() += 1;
        if woken { self.woken.push_ms(took) } else { self.awake.push_ms(took) }
    }

    /// Something that must not be, with everything that is known about it; told at once.
    pub(super) fn fault(&mut self, what: &'static str, text: String) {
        *self.faults.entry(what).or_default() += 1;
        println!("{what}: {text}");
    }

    /// How many faults there were.
    pub(super) fn faults(&self) -> usize {
        self.faults.values().sum()
    }

    /// Adds another caller's.
    pub(super) fn add(&mut self, other: Self) {
        for (kind, count) in other.answers {
            *self.answers.entry(kind).or_default() += count;
        }
        for (what, count) in other.faults {
            *self.faults.entry(what).or_default() += count;
        }
        self.awake.append(other.awake);
        self.woken.append(other.woken);
    }

    /// Prints everything.
    pub(super) fn print(&self, took: Duration) {
        let all: usize = self.answers.values().sum();
        println!("{all} answers in {:.0} s:", took.as_secs_f64());
        for (kind, count) in &self.answers {
            println!("  {kind:<28} {count:>9}");
        }
        self.awake.print("answered by HTTP, awake", "ms");
        self.woken.print("answered by HTTP, woken", "ms");
        println!("{} faults", self.faults());
        for (what, count) in &self.faults {
            println!("  {what:<28} {count:>9}");
        }
    }
}
