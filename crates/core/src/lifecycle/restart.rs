//! What follows an exit that nobody asked for (MA-20..MA-28).

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Timestamp;

/// `max_retries` where nothing is configured (MA-21).
pub const RETRIES_DEFAULT: u32 = 10;
/// Retries count within this time (MA-21).
const RETRIES_WITHIN: Duration = Duration::from_secs(300);
/// The first back-off; it doubles from exit to exit (MA-28).
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// The longest back-off (MA-28).
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A run that lasted so long starts the back-off anew (MA-28).
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// Enough to know the number of retries of any sane limit; older ones are forgotten.
const REMEMBERED_MAX: usize = 1_000;

/// Whether the platform brings a Machine back that exited by itself (MA-20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Never.
    No,
    /// After any exit, without end.
    Always,
    /// After a failure, so often within 5 minutes.
    OnFailure {
        /// How often.
        retries_max: u32,
    },
}

impl Default for RestartPolicy {
    /// What holds where nothing is configured (MA-21).
    fn default() -> Self {
        Self::OnFailure { retries_max: RETRIES_DEFAULT }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed it for lack of memory; always a failure, code 137 (MA-28).
    pub oom_killed: bool,
}

impl Exit {
    /// Whether the program itself says that all is well (MA-25).
    pub fn is_clean(self) -> bool {
        self.code == 0 && self.signal.is_none() && !self.oom_killed
    }
}

/// What was restarted lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Restarts {
    at: VecDeque<Timestamp>,
    in_a_row: u32,
}

impl Restarts {
    pub(super) fn count(&self) -> usize {
        self.at.len()
    }

    /// How long to wait before the restart; `None`: it stays down.
    pub(super) fn after_exit(
        &mut self,
        policy: RestartPolicy,
        exit: Exit,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<Duration> {
        if HEALTHY_AFTER <= now.since(since) {
            self.in_a_row = 0;
        }
        while self.at.front().is_some_and(|&at| RETRIES_WITHIN < now.since(at)) {
            self.at.pop_front();
        }
        let allowed = match policy {
            RestartPolicy::No => false,
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure { retries_max } => {
                !exit.is_clean() && self.at.len() < retries_max as usize
            }
        };
        allowed.then(|| self.back_off(now))
    }

    fn back_off(&mut self, now: Timestamp) -> Duration {
        if self.at.len() == REMEMBERED_MAX {
            self.at.pop_front();
        }
        self.at.push_back(now);
        let wait = BACK_OFF_MIN.saturating_mul(1 << self.in_a_row.min(8)).min(BACK_OFF_MAX);
        self.in_a_row += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Exit = Exit { code: 0, signal: None, oom_killed: false };
    const CRASH: Exit = Exit { code: 1, signal: None, oom_killed: false };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_clean_exit_stays_down_unless_the_policy_is_always() {
        let mut restarts = Restarts::default();
        let mut after = |policy| restarts.after_exit(policy, CLEAN, at(0), at(1));
        assert_eq!(after(RestartPolicy::default()), None);
        assert_eq!(after(RestartPolicy::No), None);
        assert_eq!(after(RestartPolicy::Always), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_back_off_doubles_to_thirty_seconds_and_a_healthy_minute_resets_it() {
        let mut restarts = Restarts::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..7 {
            let wait = restarts.after_exit(RestartPolicy::Always, CRASH, at(now), at(now));
            waits.push(wait.expect("always restarts").as_secs());
            now += 31;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        let healthy = restarts.after_exit(RestartPolicy::Always, CRASH, at(now), at(now + 60));
        assert_eq!(healthy, Some(Duration::from_secs(1)));
    }

    #[test]
    fn retries_within_five_minutes_are_used_up_and_come_back() {
        let policy = RestartPolicy::OnFailure { retries_max: 2 };
        let mut restarts = Restarts::default();
        let mut crash = |s| restarts.after_exit(policy, CRASH, at(s), at(s)).is_some();
        assert_eq!([crash(0), crash(1), crash(2), crash(299)], [true, true, false, false]);
        assert!(crash(301), "the first retry is forgotten after 300 s");
    }

    #[test]
    fn out_of_memory_is_a_failure_whatever_the_code_says() {
        assert!(!Exit { oom_killed: true, ..CLEAN }.is_clean());
        assert!(!Exit { signal: Some(9), ..CLEAN }.is_clean());
    }
}
