//! What is for all, in shares: nobody takes more than one's own, so that nobody locks the others out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

/// Counts what each source has at once.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    each_max: usize,
    taken: RefCell<HashMap<K, usize>>,
}

/// One thing that a source has; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Copy + Eq + Hash> {
    shares: Rc<Shares<K>>,
    source: K,
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
        let mut taken = self.taken.borrow_mut();
        let count = taken.get(&source).copied().unwrap_or(0);
        if self.each_max.min(max) <= count {
            return None;
        }
        taken.insert(source, count + 1);
        Some(Share { shares: Rc::clone(self), source })
    }
}

impl<K: Copy + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.borrow_mut();
        if let Some(count) = taken.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.source);
            }
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
