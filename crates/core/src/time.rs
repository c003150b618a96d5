//! Points in time as the pure code sees them.
//!
//! One module of the binary reads the clock (boot time, so that a suspended host counts); here a
//! point is only a number that grows. Lengths are [`std::time::Duration`].

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// A point in time: microseconds since the host booted, host suspend included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The boot of the host.
    pub const ZERO: Self = Self(0);

    /// Makes a point from microseconds since boot.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since boot.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The length from `earlier` to this point; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    /// The point `length` later; saturates at the end of time (584,000 years after boot).
    fn add(self, length: Duration) -> Self {
        let micros = u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_never_goes_below_zero_and_a_sum_never_wraps() {
        let (a, b) = (Timestamp::from_micros(5), Timestamp::from_micros(9));
        assert_eq!(a.since(b), Duration::ZERO);
        assert_eq!(b.since(a), Duration::from_micros(4));
        assert_eq!((Timestamp::from_micros(u64::MAX) + Duration::MAX).as_micros(), u64::MAX);
        assert_eq!(Timestamp::from_micros(1_500_000).to_string(), "1.500000s");
    }
}
