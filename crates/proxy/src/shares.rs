//! What is for all, in shares: nobody takes more than one's own, so that nobody locks the others out.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use tokio::time::Instant;

/// Counts what each source has at once.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    each_max: usize,
    taken: RefCell<HashMap<K, Rc<Tally>>>,
}

/// What one source has.
#[derive(Debug, Default)]
struct Tally {
    count: Cell<usize>,
    /// Until then nothing more can be had by taking back what the source does not use.
    futile_until: Cell<Option<Instant>>,
}

/// One thing that a source has; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Copy + Eq + Hash>(Account<K>);

/// A way to take more for a source that has something, without looking for it.
#[derive(Debug)]
pub(crate) struct Account<K> {
    shares: Rc<Shares<K>>,
    source: K,
    max: usize,
    tally: Rc<Tally>,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    pub(crate) fn new(each_max: usize) -> Rc<Self> {
        Rc::new(Self { each_max, taken: RefCell::default() })
    }

    /// `None`: the source has all that one may have.
    pub(crate) fn take(self: &Rc<Self>, source: K) -> Option<Share<K>> {
        self.take_of(source, self.each_max)
    }

    /// The same for one who may have no more than so much, if that is less.
    pub(crate) fn take_of(self: &Rc<Self>, source: K, max: usize) -> Option<Share<K>> {
        let max = self.each_max.min(max);
        if max == 0 {
            return None;
        }
        let tally = Rc::clone(self.taken.borrow_mut().entry(source).or_default());
        let account = Account { shares: Rc::clone(self), source, max, tally };
        if account.take() { Some(Share(account)) } else { None }
    }

    /// Until when it is futile to take back what the source does not use, if somebody has said so.
    pub(crate) fn futile_until(&self, source: K) -> Option<Instant> {
        self.taken.borrow().get(&source)?.futile_until.get()
    }

    /// Says so of a source that has something.
    pub(crate) fn note_futile(&self, source: K, until: Instant) {
        if let Some(tally) = self.taken.borrow().get(&source) {
            tally.futile_until.set(Some(until));
        }
    }
}

impl<K: Copy + Eq + Hash> Share<K> {
    pub(crate) fn account(&self) -> Account<K> {
        let Account { shares, source, max, tally } = &self.0;
        let (shares, tally) = (Rc::clone(shares), Rc::clone(tally));
        Account { shares, source: *source, max: *max, tally }
    }
}

impl<K: Copy + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl<K: Copy + Eq + Hash> Account<K> {
    /// One more, to be given back by [`Self::give_back`]; false: the source has all that it may have. To be used as long
    /// as the source has a [`Share`]: its next one after the last begins another count.
    pub(crate) fn take(&self) -> bool {
        let count = self.tally.count.get();
        let has_room = count < self.max;
        if has_room {
            self.tally.count.set(count + 1);
        }
        has_room
    }

    pub(crate) fn give_back(&self) {
        let left = self.tally.count.get() - 1;
        self.tally.count.set(left);
        if left == 0 {
            self.shares.taken.borrow_mut().remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_takes_its_share_and_leaves_the_others_theirs() {
        let shares = Shares::new(2);
        let first = [shares.take('a'), shares.take('a'), shares.take('a')];
        assert_eq!(first.each_ref().map(Option::is_some), [true, true, false]);
        let other = shares.take('b');
        assert!(other.is_some());
        drop((first, other));
        assert!(shares.take('a').is_some());
        assert!(shares.taken.borrow().is_empty(), "nothing is kept of who has gone");
    }
}
