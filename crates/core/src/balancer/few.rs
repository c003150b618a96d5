//! A map for few: a sorted vector of exactly its length. An app has one or two Machines, and a B-tree's
//! smallest node has room for eleven.

use std::mem;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Few<K, V>(Vec<(K, V)>);

impl<K: Ord, V> Few<K, V> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.find(key).ok().map(|at| &mut self.0[at].1)
    }

    /// The entry with the largest key that is not above this one.
    pub(super) fn last_up_to(&self, key: &K) -> Option<(&K, &V)> {
        let after = self.0.partition_point(|(known, _)| known <= key);
        self.0[..after].last().map(|(key, value)| (key, value))
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub(super) fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(super) fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// Takes all entries out.
    pub(super) fn take(&mut self) -> Vec<(K, V)> {
        mem::take(&mut self.0)
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Few<K, V> {
    /// Of equal keys the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut all: Vec<(K, V)> = entries.into_iter().collect();
        // Stable: the last of equal ones comes first.
        all.reverse();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.dedup_by(|(later, _), (first, _)| later == first);
        all.shrink_to_fit();
        Self(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_what_a_b_tree_does() {
        use std::collections::BTreeMap;
        let entries = [(30, 'c'), (10, 'a'), (20, 'x'), (20, 'b')];
        let (few, tree) = (Few::from_iter(entries), BTreeMap::from(entries));
        assert!(few.iter().eq(tree.iter()));
        assert!(few.keys().eq(tree.keys()) && few.values().eq(tree.values()));
        for key in 0..40 {
            assert_eq!(few.get(&key), tree.get(&key));
            assert_eq!(few.last_up_to(&key), tree.range(..=key).next_back());
        }
    }

    #[test]
    fn it_takes_no_more_room_than_its_entries() {
        let mut few = Few::from_iter((0..3).map(|key| (key, key)));
        assert_eq!(few.0.capacity(), 3);
        *few.get_mut(&1).expect("it is there") = 7;
        assert_eq!(few.take(), [(0, 0), (1, 7), (2, 2)]);
        assert_eq!((few.0.capacity(), few.get(&1)), (0, None));
    }
}
