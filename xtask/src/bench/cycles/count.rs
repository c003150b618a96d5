//! Which number the next answer must have: the program counts what it answers since it began.

/// Of one app with one caller.
#[derive(Debug, Default, Clone)]
pub(super) struct Count {
    last: Option<u64>,
    /// Requests that have no answer: the program may have had them or not.
    unsure: u64,
}

/// What an answer's number tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It follows the last one.
    Next,
    /// It is the first of a new run of the program.
    First,
    /// After this one a request was lost, or made twice, or the program began anew when it must not.
    Wrong(u64),
}

impl Count {
    /// Takes an answer; `may_begin` if the program may have begun anew since the last one.
    pub(super) fn take(&mut self, number: u64, may_begin: bool) -> Place {
        let last = self.last.replace(number);
        let Some(last) = last else { return Place::Next };
        let place = match number.checked_sub(last + 1) {
            Some(skipped) if skipped <= self.unsure => {
                self.unsure -= skipped;
                return Place::Next;
            }
            _ if may_begin && 0 < number && number - 1 <= self.unsure => Place::First,
            _ => Place::Wrong(last),
        };
        self.unsure = 0;
        place
    }

    /// Takes two answers of which nobody knows which came first.
    pub(super) fn take_both(&mut self, mut numbers: [u64; 2], may_begin: bool) -> [Place; 2] {
        let before = self.clone();
        numbers.sort_unstable();
        let [low, high] = numbers;
        let places = [self.take(low, may_begin), self.take(high, may_begin)];
        if !has_wrong(places) {
            return places;
        }
        // The higher one may be the last of the run before.
        let mut other = before;
        let swapped = [other.take(high, may_begin), other.take(low, may_begin)];
        if has_wrong(swapped) {
            return places;
        }
        *self = other;
        swapped
    }

    /// Forgets so many requests that failed.
    pub(super) fn lose(&mut self, requests: u64) {
        self.unsure += requests;
    }
}

fn has_wrong(places: [Place; 2]) -> bool {
    places.iter().any(|place| matches!(place, Place::Wrong(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After this answer.
    fn after(last: u64) -> Count {
        Count { last: Some(last), unsure: 0 }
    }

    #[test]
    fn numbers_follow_each_other_and_begin_anew_only_where_they_may() {
        assert_eq!(Count::default().take(7, false), Place::Next);
        assert_eq!(after(7).take(8, false), Place::Next);
        assert_eq!(after(7).take(9, true), Place::Wrong(7));
        assert_eq!(after(7).take(7, true), Place::Wrong(7));
        assert_eq!(after(7).take(1, true), Place::First);
        assert_eq!(after(7).take(1, false), Place::Wrong(7));
    }

    #[test]
    fn a_request_without_an_answer_counts_once_at_most() {
        let mut count = after(7);
        count.lose(1);
        assert_eq!(count.take(9, false), Place::Next);
        assert_eq!(count.take(11, false), Place::Wrong(9));
        let mut late = after(7);
        late.lose(1);
        assert_eq!(late.take(8, false), Place::Next);
        assert_eq!(late.take(10, false), Place::Next);
        let mut anew = after(7);
        anew.lose(1);
        assert_eq!(anew.take(2, true), Place::First);
    }

    #[test]
    fn two_at_once_may_come_in_either_order_also_around_a_new_beginning() {
        for numbers in [[8, 9], [9, 8]] {
            assert_eq!(after(7).take_both(numbers, false), [Place::Next, Place::Next]);
        }
        for numbers in [[8, 1], [1, 8]] {
            assert_eq!(after(7).take_both(numbers, true), [Place::Next, Place::First]);
        }
        for numbers in [[2, 1], [1, 2]] {
            assert_eq!(after(7).take_both(numbers, true), [Place::First, Place::Next]);
        }
        let mut cold = after(1);
        assert_eq!(cold.take_both([1, 2], true), [Place::First, Place::Next]);
        assert_eq!(cold.take(3, false), Place::Next);
        assert_eq!(after(7).take_both([8, 8], true), [Place::Next, Place::Wrong(8)]);
    }
}
