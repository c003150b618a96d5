//! How long things took, in parts that are fixed: what metrics tell.

/// Where the parts end, in microseconds: from a thaw, which takes a tenth of a millisecond, to the usual
/// `start_timeout`. Few, because each is a series for every depth and phase.
pub const BOUNDS_MICROS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 5_000_000,
    15_000_000, 60_000_000,
];

/// Lengths, counted by [`BOUNDS_MICROS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    parts: [u64; BOUNDS_MICROS.len()],
    count: u64,
    sum_micros: u64,
}

impl Histogram {
    /// Adds one length.
    pub fn add(&mut self, micros: u64) {
        let part = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(part) = self.parts.get_mut(part) {
            *part += 1;
        }
        self.count += 1;
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All together, in microseconds.
    pub fn sum_micros(&self) -> u64 {
        self.sum_micros
    }

    /// Each bound in microseconds, and how many took at most as long.
    pub fn up_to(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut sum = 0;
        BOUNDS_MICROS.into_iter().zip(self.parts).map(move |(bound, part)| {
            sum += part;
            (bound, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_has_all_that_took_at_most_as_long_and_the_longest_are_in_the_count_only() {
        let mut histogram = Histogram::default();
        [0, 100, 101, 60_000_000, 60_000_001].into_iter().for_each(|it| histogram.add(it));
        let all: Vec<_> = histogram.up_to().collect();
        assert_eq!(all[..3], [(100, 2), (250, 3), (500, 3)]);
        assert_eq!(all.last(), Some(&(60_000_000, 4)));
        assert_eq!((histogram.count(), histogram.sum_micros()), (5, 120_000_202));
    }
}
