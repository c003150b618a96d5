//! A world's every choice, read from one string of bytes.

use std::time::Duration;

/// Enough for the longest world; what is read beyond is zero, so that any string is a world.
const BYTES: usize = 16 * 1024;

/// Reads choices.
#[derive(Debug)]
pub(crate) struct Choices {
    bytes: Vec<u8>,
    at: usize,
}

impl Choices {
    /// The choices that belong to a seed.
    pub(crate) fn from_seed(seed: u64) -> Self {
        let mut state = seed;
        let words = (0..BYTES / 8).flat_map(|_| next(&mut state).to_le_bytes());
        Self { bytes: words.collect(), at: 0 }
    }

    fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    /// A number from 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % n.max(1)
    }

    /// True in `percent` of all worlds.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        // Zero, which is what an exhausted string reads, is the tame answer.
        100 - percent.min(100) <= self.below(100)
    }

    /// A length from `min_ms` to `max_ms`.
    pub(crate) fn millis(&mut self, min_ms: u64, max_ms: u64) -> Duration {
        Duration::from_millis(min_ms + self.below((max_ms - min_ms + 1) as usize) as u64)
    }

    /// Any number.
    pub(crate) fn any(&mut self) -> u64 {
        (0..4).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
