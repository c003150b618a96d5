//! The limit on starts in flight, over all apps of a host (OQ-39).

use std::collections::{BTreeSet, VecDeque};

use crate::mutant::Mutant;

/// Lets at most so many starts be in flight; more wait in the order they came.
///
/// `K` names one start: app, Machine and attempt.
#[derive(Debug)]
pub struct StartSlots<K> {
    starts_max: usize,
    in_flight: BTreeSet<K>,
    waiting: VecDeque<K>,
    mutant: Mutant,
}

impl<K: Ord + Clone> StartSlots<K> {
    /// Slots for `starts_max` starts, at least one.
    pub fn new(starts_max: usize) -> Self {
        Self::with_mutant(starts_max, Mutant::None)
    }

    /// Slots with a planted bug, for the simulation.
    #[doc(hidden)]
    pub fn with_mutant(starts_max: usize, mutant: Mutant) -> Self {
        let starts_max = starts_max.max(1);
        Self { starts_max, in_flight: BTreeSet::new(), waiting: VecDeque::new(), mutant }
    }

    /// Changes the limit; more room is used at the next [`Self::poll`].
    pub fn set_limit(&mut self, starts_max: usize) {
        self.starts_max = starts_max.max(1);
    }

    /// A balancer wants this start; [`Self::poll`] says when to send it.
    pub fn ask(&mut self, start: K) {
        if !self.in_flight.contains(&start) && !self.waiting.contains(&start) {
            self.waiting.push_back(start);
        }
    }

    /// The start was answered, or nobody wants it any more.
    pub fn finish(&mut self, start: &K) {
        if self.mutant != Mutant::StartSlotLeaked {
            self.in_flight.remove(start);
        }
        self.waiting.retain(|k| k != start);
    }

    /// The server is gone: nothing is in flight and nothing waits.
    pub fn clear(&mut self) {
        self.in_flight.clear();
        self.waiting.clear();
    }

    /// The next start to send now.
    pub fn poll(&mut self) -> Option<K> {
        let full = self.starts_max <= self.in_flight.len();
        if full && self.mutant != Mutant::HostLimitIgnored {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.in_flight.insert(next.clone());
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_beyond_the_limit_wait_in_order() {
        let mut slots = StartSlots::new(2);
        for start in [7, 3, 9, 3] {
            slots.ask(start);
        }
        assert_eq!((slots.poll(), slots.poll(), slots.poll()), (Some(7), Some(3), None));
        slots.finish(&3);
        assert_eq!((slots.poll(), slots.poll()), (Some(9), None));
        slots.finish(&7);
        assert_eq!(slots.poll(), None);
    }

    #[test]
    fn a_start_that_nobody_wants_any_more_leaves_the_line() {
        let mut slots = StartSlots::new(0);
        slots.ask(1);
        slots.ask(2);
        assert_eq!(slots.poll(), Some(1));
        slots.finish(&2);
        slots.finish(&1);
        assert_eq!(slots.poll(), None);
        slots.ask(3);
        slots.clear();
        assert_eq!(slots.poll(), None);
    }
}
