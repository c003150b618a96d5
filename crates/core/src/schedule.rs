//! When a Machine with a schedule is started: once in each period, at a time of its own (MA-46).
//!
//! ```text
//!  hour, day, week (from Thursday, as 1970 began), month; all UTC
//!  ├────────────┬──────────────────────┼────────────┬─────────────────────
//!               └ own time: the share of the period that its id draws
//! ```
//!
//! What was last done is a moment of the wall clock, not a count: a time between it and now is due, and however many
//! passed while nobody looked, it is due once. A clock that was set back makes nothing due again; a Machine then waits
//! until the clock has passed what was done. Also one that was wrong by years: an early clock is what a host without a
//! battery has at each boot, before it hears the time, and no reason to do anything again.
//!
//! A time is *taken*, durably, before the start: [`Taken::run`] is the run that it begins. A server that dies in between
//! finds a Machine that has not come so far, and starts it then.

use crate::lifecycle::MachineState;

/// How often a Machine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Once an hour.
    Hourly,
    /// Once a day.
    Daily,
    /// Once a week.
    Weekly,
    /// Once a calendar month.
    Monthly,
}

/// What was last done for a schedule; must survive the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Own times up to then are done. Seconds since 1970.
    pub last: i64,
    /// The run that the last one begins; 0: none is to begin.
    pub run: u64,
}

/// A Machine as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its state.
    pub state: MachineState,
    /// Its current or last run.
    pub run: u64,
    /// Whether somebody else decides about it now.
    pub hold: Hold,
}

/// Whether somebody else decides about a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Somebody holds its lease, or its app is going: what is due waits.
    Held,
    /// Nobody.
    Free,
}

/// What is to be done for a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing before then. Seconds since 1970.
    Wait {
        /// Its next own time.
        until: i64,
    },
    /// A time is due, but not while the Machine is as it is: look again.
    Later,
    /// A time is due and the Machine runs: only note it.
    Pass(Taken),
    /// Note it, then start the Machine.
    Start(Taken),
}

/// What is to be done for a Machine of which `taken` is noted.
pub fn step(period: Period, id: &str, taken: Taken, seen: Seen, now: i64) -> Step {
    use MachineState as S;
    let until = next(period, id, taken.last);
    let is_owed = seen.run < taken.run;
    if now < until && !is_owed {
        return Step::Wait { until };
    }
    let last = now.max(taken.last);
    match (seen.hold, seen.state) {
        (Hold::Held, _) => Step::Later,
        (Hold::Free, S::Created | S::Stopped | S::Failed | S::LaunchFailed) => {
            Step::Start(Taken { last, run: seen.run + 1 })
        }
        // It goes on with the run that it has.
        (Hold::Free, S::Suspended) => Step::Start(Taken { last, run: seen.run }),
        (Hold::Free, S::Starting | S::Started | S::Restarting | S::Updating | S::Replacing) => {
            Step::Pass(Taken { last, run: 0 })
        }
        (Hold::Free, S::Creating | S::Stopping | S::Suspending | S::Destroying | S::Destroyed) => {
            Step::Later
        }
    }
}

/// The first time of its own that a Machine has after `last`; all in seconds since 1970.
pub fn next(period: Period, id: &str, last: i64) -> i64 {
    let share = share(id);
    let (start, length) = around(period, last);
    let own = start.saturating_add(part(length, share));
    if last < own {
        return own;
    }
    let (start, length) = around(period, start.saturating_add(length));
    start.saturating_add(part(length, share))
}

/// The period in which a moment lies: its first second and its length.
fn around(period: Period, at: i64) -> (i64, i64) {
    let even = |length: i64| (at.saturating_sub(at.rem_euclid(length)), length);
    match period {
        Period::Hourly => even(HOUR),
        Period::Daily => even(DAY),
        Period::Weekly => even(7 * DAY),
        Period::Monthly => month(at),
    }
}

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// The calendar month, in the proleptic Gregorian calendar.
fn month(at: i64) -> (i64, i64) {
    let (year, month) = year_and_month(at.div_euclid(DAY));
    let start = first_day(year, month);
    let end = if month == 12 { first_day(year + 1, 1) } else { first_day(year, month + 1) };
    (start * DAY, (end - start) * DAY)
}

/// Days from 1970 to the first of a month. Years begin in March here, so that the odd day is the last.
fn first_day(year: i64, month: i64) -> i64 {
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let era_day = (153 * month + 2) / 5 + 365 * year.rem_euclid(400) + year.rem_euclid(400) / 4
        - year.rem_euclid(400) / 100;
    year.div_euclid(400) * DAYS_OF_400_YEARS + era_day - DAYS_TO_1970
}

const DAYS_OF_400_YEARS: i64 = 146_097;
/// From the first of March of year 0.
const DAYS_TO_1970: i64 = 719_468;

fn year_and_month(day: i64) -> (i64, i64) {
    // A year that is right or one too late, by the mean length.
    let mut year = 1970 + (day * 400).div_euclid(DAYS_OF_400_YEARS) + 1;
    while day < first_day(year, 1) {
        year -= 1;
    }
    let month = (1..=12).rev().find(|&month| first_day(year, month) <= day);
    (year, month.unwrap_or(1))
}

/// What an id draws, as a share of 2^32.
fn share(id: &str) -> i64 {
    // FNV-1a, then the finish of MurmurHash3: ids differ little, shares must.
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash >> 32) as i64
}

fn part(length: i64, share: i64) -> i64 {
    (length * share) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Period; 4] = [Period::Hourly, Period::Daily, Period::Weekly, Period::Monthly];
    const ID: &str = "148e21a3b92998";
    /// 2024-02-01T00:00:00Z.
    const FEBRUARY: i64 = 1_706_745_600;
    const FREE: Seen = Seen { state: MachineState::Stopped, run: 7, hold: Hold::Free };

    fn ids() -> impl Iterator<Item = String> {
        (0..500_u64).map(|n| format!("{:014x}", n * 0x1234_5678_9abc))
    }

    #[test]
    fn each_period_has_one_time_of_a_machine_and_it_lies_in_it() {
        for (period, id) in ALL.iter().flat_map(|period| ids().map(move |id| (*period, id))) {
            let (mut start, _) = around(period, FEBRUARY);
            for _ in 0..14 {
                let (first, length) = around(period, start);
                assert_eq!(first, start, "{period:?}: a period begins where the last one ends");
                let own = next(period, &id, start - 1);
                let within = (start..start + length).contains(&own);
                assert!(within, "{period:?} {id}: {own} is not in {start} + {length}");
                assert!(start + length <= next(period, &id, own), "{period:?} {id}: a second time");
                start += length;
            }
        }
    }

    #[test]
    fn months_are_as_long_as_in_the_calendar() {
        let days = |at: i64| {
            let mut at = at;
            let mut days = Vec::new();
            for _ in 0..12 {
                let (start, length) = month(at);
                assert_eq!(start, at);
                days.push(length / DAY);
                at += length;
            }
            days
        };
        // 2023, 2024, 1900 and 2000.
        let common = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let leap = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        assert_eq!(days(1_672_531_200), common);
        assert_eq!(days(1_704_067_200), leap);
        assert_eq!(days(-2_208_988_800), common);
        assert_eq!(days(946_684_800), leap);
        assert_eq!(month(FEBRUARY + 29 * DAY - 1), (FEBRUARY, 29 * DAY));
        assert_eq!(month(-1), (-31 * DAY, 31 * DAY), "December 1969");
    }

    #[test]
    fn machines_do_not_start_all_at_the_same_minute() {
        for period in ALL {
            let (start, length) = around(period, FEBRUARY);
            let mut tenths = [0; 10];
            for id in ids() {
                tenths[((next(period, &id, start - 1) - start) * 10 / length) as usize] += 1;
            }
            assert!(tenths.iter().all(|count| (20..90).contains(count)), "{period:?}: {tenths:?}");
        }
    }

    #[test]
    fn what_passed_while_nobody_looked_is_made_up_for_once() {
        for period in ALL {
            let taken = Taken { last: FEBRUARY, run: 0 };
            let due = next(period, ID, FEBRUARY);
            assert_eq!(step(period, ID, taken, FREE, due - 1), Step::Wait { until: due });
            // A hundred days later.
            let now = due + 100 * DAY;
            let Step::Start(taken) = step(period, ID, taken, FREE, now) else {
                panic!("{period:?}: not started")
            };
            assert_eq!(taken, Taken { last: now, run: 8 });
            let later = Seen { run: 8, ..FREE };
            let until = next(period, ID, now);
            assert!(now < until);
            assert_eq!(step(period, ID, taken, later, now + 1), Step::Wait { until });
        }
    }

    #[test]
    fn a_clock_that_was_set_back_starts_nothing_twice() {
        for period in ALL {
            let now = next(period, ID, FEBRUARY);
            let Step::Start(taken) = step(period, ID, Taken { last: FEBRUARY, run: 0 }, FREE, now)
            else {
                panic!("{period:?}: not started")
            };
            let later = Seen { run: 8, ..FREE };
            for back in [1, HOUR, 3 * DAY, 40 * DAY, FEBRUARY] {
                for passed in [0, HOUR / 2, HOUR] {
                    let at = now - back + passed.min(back);
                    let told = step(period, ID, taken, later, at);
                    assert_eq!(
                        told,
                        Step::Wait { until: next(period, ID, now) },
                        "{period:?} {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_time_that_was_taken_by_a_server_that_died_before_the_start_is_started() {
        let taken = Taken { last: FEBRUARY, run: 8 };
        // Also by a clock that is early.
        for now in [FEBRUARY, FEBRUARY - DAY] {
            let told = step(Period::Monthly, ID, taken, FREE, now);
            assert_eq!(told, Step::Start(Taken { last: FEBRUARY, run: 8 }));
        }
        for run in [8, 9] {
            let begun = Seen { run, ..FREE };
            let told = step(Period::Monthly, ID, taken, begun, FEBRUARY);
            assert!(matches!(told, Step::Wait { .. }), "run {run}: {told:?}");
        }
    }

    /// By state; held, all wait.
    #[test]
    fn only_what_is_down_is_started() {
        let taken = Taken { last: FEBRUARY, run: 0 };
        let now = next(Period::Daily, ID, FEBRUARY);
        let told = |state, hold| {
            let seen = Seen { state, run: 7, hold };
            match step(Period::Daily, ID, taken, seen, now) {
                Step::Start(taken) if taken.run == 7 => "resume",
                Step::Start(_) => "start",
                Step::Pass(_) => "pass",
                Step::Later => "later",
                Step::Wait { .. } => "wait",
            }
        };
        let all: Vec<String> = MachineState::ALL
            .iter()
            .map(|state| format!("{state}: {}", told(*state, Hold::Free)))
            .collect();
        assert_eq!(
            all.join(", "),
            "created: start, creating: later, starting: pass, started: pass, stopping: later, stopped: start, \
             suspending: later, suspended: resume, restarting: pass, updating: pass, replacing: pass, failed: start, \
             launch_failed: start, destroying: later, destroyed: later"
        );
        for state in MachineState::ALL {
            assert_eq!(told(state, Hold::Held), "later", "{state}");
        }
    }

    #[test]
    fn a_moment_that_no_clock_shows_is_no_reason_to_panic() {
        for (period, last) in ALL
            .iter()
            .flat_map(|period| [i64::MIN / 1_000, 0, i64::MAX / 1_000].map(|at| (*period, at)))
        {
            assert!(last < next(period, ID, last), "{period:?} {last}");
        }
    }
}
