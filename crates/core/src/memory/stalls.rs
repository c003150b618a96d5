//! How much of what the kernel tells of programs that wait for memory (`avg10`) may be a page-out's own wait.
//!
//! The kernel counts whoever frees memory as one who waits for it. It looks each 2 s and forgets as this does.

use std::time::Duration;

use crate::time::Timestamp;

/// Over how long the kernel means by `avg10`.
const WINDOW: Duration = Duration::from_secs(10);
/// Of which at most so many percent are taken for one's own: two who wait at once are counted once, and not all that
/// one does for memory is a wait to the kernel. Without a bound a long page-out would hide everybody else's.
const PERCENT_MAX: f64 = 50.0;
/// How long it tells what was true at its last look.
const LOOK: Duration = Duration::from_secs(2);

/// Waits of one's own, the older the less.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stalls {
    percent: f64,
    /// When that was; `None`: there were none yet.
    at: Option<Timestamp>,
}

impl Stalls {
    /// Something that has just ended may have been such a wait.
    pub fn add(&mut self, took: Duration, now: Timestamp) {
        let part = took.as_secs_f64() / WINDOW.as_secs_f64();
        let percent = self.left(now) + 100.0 * part;
        *self = Self { percent: percent.min(100.0), at: Some(now) };
    }

    /// So many percent of the last 10 s are to be taken for these, as the kernel tells it.
    pub fn percent(&self, now: Timestamp) -> f64 {
        (self.left(now) / faded(LOOK)).min(PERCENT_MAX)
    }

    fn left(&self, now: Timestamp) -> f64 {
        self.at.map_or(0.0, |at| self.percent * faded(now.since(at)))
    }
}

fn faded(length: Duration) -> f64 {
    (-length.as_secs_f64() / WINDOW.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);
    const STEPS_A_LOOK: u64 = 20;

    /// What the kernel and this tell, each 0.1 s, of somebody who pages out in these steps.
    fn told(own: impl Fn(u64) -> bool, others: impl Fn(u64) -> bool) -> Vec<(f64, f64)> {
        let (mut stalls, mut now) = (Stalls::default(), Timestamp::from_micros(0));
        let (mut avg10, mut waited) = (0.0, 0_u64);
        let step = |at: u64| {
            now = now + STEP;
            waited += u64::from(own(at) || others(at));
            if own(at) {
                stalls.add(STEP, now);
            }
            if at.is_multiple_of(STEPS_A_LOOK) {
                let sample = 100.0 * waited as f64 / STEPS_A_LOOK as f64;
                avg10 = avg10 * faded(LOOK) + sample * (1.0 - faded(LOOK));
                waited = 0;
            }
            (avg10, stalls.percent(now))
        };
        (1..=600).map(step).collect()
    }

    #[test]
    fn no_wait_of_ones_own_is_taken_for_anothers_up_to_half_of_the_time() {
        let whens: [fn(u64) -> bool; 5] = [
            |_| true,
            |at| at < 150,
            |at| at.is_multiple_of(2),
            |at| at.is_multiple_of(3),
            |at| (33..47).contains(&at),
        ];
        for own in whens {
            for (avg10, percent) in told(own, |_| false) {
                let counted = avg10.min(PERCENT_MAX);
                assert!(counted - percent < 1.0, "{avg10} of which {percent}");
            }
        }
    }

    #[test]
    fn anothers_wait_is_seen_while_one_waits_all_of_the_time() {
        let told = told(|_| true, |at| 200 <= at);
        for (avg10, percent) in &told[200..] {
            assert!(10.0 <= avg10 - percent, "{avg10} of which {percent}");
        }
    }

    #[test]
    fn anothers_wait_is_seen_soon_after_ones_own() {
        let told = told(|at| at < 50, |at| 50 <= at);
        let seen = told.iter().position(|(avg10, percent)| 10.0 <= avg10 - percent);
        assert!(seen.is_some_and(|at| at < 150), "{seen:?}");
    }

    #[test]
    fn anothers_wait_is_seen_beside_ones_own() {
        let (avg10, percent) = told(|at| at.is_multiple_of(10), |at| !at.is_multiple_of(10))[599];
        assert!(75.0 < avg10 - percent, "{avg10} of which {percent}");
    }
}
