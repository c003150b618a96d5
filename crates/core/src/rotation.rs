//! The rotation of the key that signs `Fly-Src` (OQ-27): when the new key signs, and when the old one is forgotten.
//!
//! ```text
//!  begun ──── 12 h ────► turned ──── 12 h ────► over
//!  both are shown        both are shown         one is shown
//!  the old one signs     the new one signs
//! ```
//!
//! A program that reads the keys once an hour knows the new one long before anything is signed with it, and the old one
//! as long as anything that it signed may still be looked at.

use std::time::Duration;

/// Both keys are shown for so long.
pub const OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// Where a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The old key signs, the new one is shown behind it.
    Begun,
    /// The new key signs, the old one is shown behind it.
    Turned,
    /// The old key is forgotten.
    Over,
}

/// The stage at `now` of a rotation that began at `begun`, both in seconds since 1970, and how long it lasts; `None`: for
/// good. A clock that was set back makes a rotation longer, never shorter than it was.
pub fn stage(begun: u64, now: u64) -> (Stage, Option<Duration>) {
    let age = Duration::from_secs(now.saturating_sub(begun));
    let half = OVERLAP / 2;
    if age < half {
        (Stage::Begun, Some(half - age))
    } else if age < OVERLAP {
        (Stage::Turned, Some(OVERLAP - age))
    } else {
        (Stage::Over, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    #[test]
    fn the_new_key_signs_after_half_of_the_overlap_and_stays_alone_after_all_of_it() {
        let hours = |age: u64| stage(1_000, 1_000 + age * HOUR).0;
        assert_eq!((hours(0), hours(11)), (Stage::Begun, Stage::Begun));
        assert_eq!((hours(12), hours(23)), (Stage::Turned, Stage::Turned));
        assert_eq!((hours(24), hours(999)), (Stage::Over, Stage::Over));
        assert_eq!(stage(1_000, 0).0, Stage::Begun, "the clock was set back");
    }

    #[test]
    fn each_stage_says_when_the_next_one_begins_and_never_goes_back() {
        let mut now = 7;
        let mut seen = Vec::new();
        while let (at, Some(left)) = stage(7, now) {
            assert!(Duration::ZERO < left);
            assert_eq!(stage(7, now + left.as_secs() - 1).0, at, "not before its time");
            seen.push(at);
            now += left.as_secs();
        }
        assert_eq!((seen, now), (vec![Stage::Begun, Stage::Turned], 7 + OVERLAP.as_secs()));
    }
}
