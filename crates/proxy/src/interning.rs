//! What many apps have in common, kept once: their services, process groups and metadata are mostly those
//! of each other's `fly.toml`.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Fewer are not worth a look for those that nobody uses any more.
const SWEEP_MIN: usize = 64;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Interner<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: SWEEP_MIN }
    }
}

impl<T: ?Sized + Eq + Hash> Interner<T> {
    /// The same value, shared with everybody who has it.
    pub(crate) fn intern(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.known.get(value.borrow()) {
            return Arc::clone(known);
        }
        if self.sweep_at <= self.known.len() {
            self.known.retain(|known| 1 < Arc::strong_count(known));
            self.sweep_at = SWEEP_MIN.max(2 * self.known.len());
        }
        let new = value.into();
        self.known.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one() {
        let mut interner = Interner::<[u32]>::default();
        let first = interner.intern(vec![1, 2]);
        assert!(Arc::ptr_eq(&first, &interner.intern(vec![1, 2])));
        assert!(!Arc::ptr_eq(&first, &interner.intern(vec![1])));
    }

    #[test]
    fn what_nobody_uses_any_more_is_forgotten() {
        let mut interner = Interner::<[usize]>::default();
        let used: Vec<_> = (0..10).map(|number| interner.intern(vec![number])).collect();
        for number in 0..100 * SWEEP_MIN {
            interner.intern(vec![number]);
        }
        assert!(interner.known.len() <= SWEEP_MIN, "{}", interner.known.len());
        for (number, used) in used.iter().enumerate() {
            assert!(Arc::ptr_eq(used, &interner.intern(vec![number])));
        }
    }
}
