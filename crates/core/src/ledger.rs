//! The ledger's arithmetic: what a wait consisted of, the newest records, and how many a second are too many.
//!
//! A wait is cut at points of time that follow each other, so that its phases add up to the whole by themselves,
//! whatever was measured late or not at all:
//!
//! ```text
//!  begun ──► asked ──► up ──► placed ──► connected ──► answered
//!     queue     wake     admit     connect      answer
//! ```

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use crate::time::Timestamp;

mod histogram;

pub use histogram::{BOUNDS_MICROS, Histogram};

/// How deep a Machine was asleep before it was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// It was not: the caller waited for something else.
    Started,
    /// Frozen, its memory where it was.
    Suspended,
    /// Frozen, and some of its memory was in swap.
    PagedOut,
    /// Stopped, with its next start made ready.
    Armed,
    /// Stopped.
    Stopped,
}

impl Depth {
    /// All, from the least deep.
    pub const ALL: [Self; 5] =
        [Self::Started, Self::Suspended, Self::PagedOut, Self::Armed, Self::Stopped];

    /// The word for records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Suspended => "suspended",
            Self::PagedOut => "paged_out",
            Self::Armed => "armed",
            Self::Stopped => "stopped",
        }
    }
}

/// A part of a caller's wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Until the Machine's wake began: others were started first, or it had still to fall asleep.
    Queue,
    /// Until the Machine was up.
    Wake,
    /// Until this caller was let in.
    Admit,
    /// Until the Machine's program accepted a connection.
    Connect,
    /// Until its answer was passed on, or the first piece of a long one.
    Answer,
}

impl Phase {
    /// All, in their order.
    pub const ALL: [Self; 5] = [Self::Queue, Self::Wake, Self::Admit, Self::Connect, Self::Answer];

    /// The word for records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Wake => "wake",
            Self::Admit => "admit",
            Self::Connect => "connect",
            Self::Answer => "answer",
        }
    }
}

/// When the phases of a wait ended. What was not measured is `None`: then its phase takes no time, and its time
/// belongs to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The wait began.
    pub begun: Timestamp,
    /// The Machine's wake began; before `begun`, if somebody else caused it.
    pub asked: Option<Timestamp>,
    /// The Machine was up.
    pub up: Option<Timestamp>,
    /// The caller had his place in it.
    pub placed: Option<Timestamp>,
    /// Its program had accepted.
    pub connected: Option<Timestamp>,
    /// The wait was over.
    pub ended: Timestamp,
}

impl Marks {
    /// The whole wait.
    pub fn total(&self) -> Duration {
        self.ended.since(self.begun)
    }

    /// Cuts the wait into its phases; those that took no time are left out. They add up to [`Self::total`].
    pub fn phases(&self) -> Vec<(Phase, Duration)> {
        let ends = [self.asked, self.up, self.placed, self.connected, Some(self.ended)];
        let mut phases = Vec::new();
        let mut from = self.begun;
        for (phase, end) in Phase::ALL.into_iter().zip(ends) {
            let end = end.unwrap_or(from).max(from).min(self.ended.max(self.begun));
            if from < end {
                phases.push((phase, end.since(from)));
            }
            from = end;
        }
        phases
    }
}

/// The newest records of many owners, oldest first, each with a number that only grows.
///
/// When it is full whoever has most of it loses his oldest record: one owner alone may fill it, and none can push out
/// what others have, as long as those have no more than their equal share.
#[derive(Debug, Clone)]
pub struct Ring<K, T> {
    records: BTreeMap<u64, (K, T)>,
    /// The numbers that each owner has.
    owned: BTreeMap<K, VecDeque<u64>>,
    /// Owners by how many that are; of equals the one whose oldest record is older comes last.
    by_len: BTreeSet<(usize, Reverse<u64>, K)>,
    limit: usize,
    last: u64,
}

impl<K: Ord + Clone, T> Ring<K, T> {
    /// Makes one that keeps so many, at least one.
    pub fn new(limit: usize) -> Self {
        let (records, owned, by_len) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { records, owned, by_len, limit: limit.max(1), last: 0 }
    }

    /// The number that a record gets which comes now: `wish`, or the next one after all that were there.
    pub fn number(&self, wish: u64) -> u64 {
        wish.max(self.last + 1)
    }

    /// Adds a record; one whose number is not larger than all before is left out. Answers the one that is lost for it.
    pub fn push(&mut self, number: u64, owner: K, record: T) -> Option<T> {
        if number <= self.last {
            return None;
        }
        self.last = number;
        self.change(&owner, |numbers| numbers.push_back(number));
        self.records.insert(number, (owner, record));
        if self.limit < self.records.len() { self.lose_one() } else { None }
    }

    fn lose_one(&mut self) -> Option<T> {
        let (_, Reverse(oldest), owner) = self.by_len.last().cloned()?;
        self.change(&owner, |numbers| {
            numbers.pop_front();
        });
        self.records.remove(&oldest).map(|(_, record)| record)
    }

    fn change(&mut self, owner: &K, change: impl FnOnce(&mut VecDeque<u64>)) {
        let place = |numbers: &VecDeque<u64>| {
            numbers.front().map(|oldest| (numbers.len(), Reverse(*oldest), owner.clone()))
        };
        let numbers = self.owned.entry(owner.clone()).or_default();
        if let Some(former) = place(numbers) {
            self.by_len.remove(&former);
        }
        change(numbers);
        match place(numbers) {
            Some(place) => drop(self.by_len.insert(place)),
            None => drop(self.owned.remove(owner)),
        }
    }

    /// The number of the newest record; 0: none has come.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The records behind this number, oldest first.
    pub fn after(&self, number: u64) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        let behind = (Bound::Excluded(number), Bound::Unbounded);
        self.records.range(behind).map(|(own, (_, record))| (*own, record))
    }

    /// The records of one owner, oldest first.
    pub fn of<Q: Ord + ?Sized>(&self, owner: &Q) -> impl DoubleEndedIterator<Item = &T>
    where
        K: Borrow<Q>,
    {
        let numbers = self.owned.get(owner).into_iter().flatten();
        numbers.filter_map(|number| self.records.get(number)).map(|(_, record)| record)
    }
}

/// Lets so many records a second through, and counts the others.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    per_second: u32,
    since: Timestamp,
    passed: u32,
    left_out: u64,
}

impl Quota {
    /// Makes one for so many a second.
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, since: Timestamp::ZERO, passed: 0, left_out: 0 }
    }

    /// Whether a record may pass; then also how many were left out since the last one that did.
    pub fn pass(&mut self, now: Timestamp) -> Option<u64> {
        if Duration::from_secs(1) <= now.since(self.since) {
            (self.since, self.passed) = (now, 0);
        }
        if self.per_second <= self.passed {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests;
