//! What was served, in numbers that only grow.
//!
//! Plain cells of the app that each request looks at anyway: counting is one addition, without a look-up or a clock.

use std::cell::Cell;

use super::App;
use crate::control::AppCounts;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Answers of Machines, by the first digit of their status.
    answers: [Cell<u64>; 5],
    /// Our own answers, in the same way.
    own: [Cell<u64>; 5],
    connects: Cell<u64>,
    disconnects: Cell<u64>,
}

impl Counts {
    /// A Machine has answered so.
    pub(crate) fn note_answer(&self, status: u16) {
        add(&self.answers, status);
    }

    /// We have answered so in its place.
    pub(crate) fn note_own(&self, status: u16) {
        add(&self.own, status);
    }

    /// A caller has connected.
    pub(crate) fn note_connect(&self) {
        self.connects.set(self.connects.get() + 1);
    }

    /// He has gone.
    pub(crate) fn note_disconnect(&self) {
        self.disconnects.set(self.disconnects.get() + 1);
    }
}

fn add(counts: &[Cell<u64>; 5], status: u16) {
    if let Some(count) = counts.get(usize::from(status / 100).wrapping_sub(1)) {
        count.set(count.get() + 1);
    }
}

impl App {
    /// What was counted, and what is in flight; `None`: nothing ever was.
    pub(crate) fn counted(&self) -> Option<AppCounts> {
        let Counts { answers, own, connects, disconnects } = &self.counts;
        let balancer = self.balancer.borrow();
        let machines = self.machines.borrow();
        let load = machines.iter().filter_map(|machine| balancer.belief(machine.id));
        let concurrency = load.map(|belief| belief.in_flight).sum();
        let counts = AppCounts {
            app: self.name.to_string(),
            concurrency,
            answers: answers.each_ref().map(Cell::get),
            own: own.each_ref().map(Cell::get),
            connects: connects.get(),
            disconnects: disconnects.get(),
        };
        let is_anything = counts.connects + counts.concurrency != 0
            || counts.answers.iter().chain(&counts.own).any(|count| *count != 0);
        is_anything.then_some(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_counted_by_their_first_digit_and_nonsense_is_not() {
        let counts = Counts::default();
        for status in [101, 200, 299, 404, 599, 600, 99, 0, u16::MAX] {
            counts.note_answer(status);
        }
        assert_eq!(counts.answers.each_ref().map(Cell::get), [1, 2, 0, 1, 1]);
    }
}
