//! The records in memory, and how far somebody has followed them: he gets each one that he wants once, in their order,
//! unless it was pushed out before.

use perch_api::wire::LedgerEvent;
use perch_core::ledger::Ring;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Shelf {
    /// By app: a flood of one washes nothing of others away.
    pub(super) ring: Ring<String, LedgerEvent>,
    follower: Option<Follower>,
}

/// Whoever wants all records of some kinds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Follower {
    pub(super) is_meant: fn(&LedgerEvent) -> bool,
    /// He has what is not newer than this record, and it may be none.
    pub(super) at: u64,
}

impl Shelf {
    pub(super) fn new(limit: usize, follower: Option<Follower>) -> Self {
        Self { ring: Ring::new(limit), follower }
    }

    /// Adds a record; whether it pushed out one that the follower would have had.
    pub(super) fn push(&mut self, event: LedgerEvent) -> bool {
        let pushed_out = self.ring.push(event.id, event.app.clone(), event);
        let both = pushed_out.zip(self.follower);
        both.is_some_and(|(event, by)| by.at < event.id && (by.is_meant)(&event))
    }

    /// Lets the follower begin no later than behind the newest record; answers where he is.
    ///
    /// He may be ahead of a ledger whose last records did not reach the disk, or of a new one after a step of the clock:
    /// numbers below his come again then.
    pub(super) fn settle(&mut self) -> Option<u64> {
        let follower = self.follower.as_mut()?;
        follower.at = follower.at.min(self.ring.last());
        Some(follower.at)
    }

    /// The follower's next records, as many at the most.
    pub(super) fn next(&mut self, records_max: usize) -> Vec<LedgerEvent> {
        let Some(follower) = &mut self.follower else { return Vec::new() };
        let behind = self.ring.after(follower.at).map(|(_, event)| event);
        let meant = behind.filter(|event| (follower.is_meant)(event));
        let next: Vec<_> = meant.take(records_max).cloned().collect();
        let last = next.last().filter(|_| next.len() == records_max);
        follower.at = last.map_or(self.ring.last(), |event| event.id);
        next
    }
}
