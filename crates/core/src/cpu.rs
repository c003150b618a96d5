//! Which Machines yield the CPUs to others: those that have used more than their baseline.
//!
//! ```text
//!             credit < 0: it used more than its baseline and what it had saved
//!   Normal ───────────────────────────────────────────────────────────────► Idle
//!     ▲                                                                       │
//!     └────── it got less than its baseline so long that the debt is repaid ──┘
//! ```
//!
//! A baseline is the part of the CPUs that a Machine has for sure: a sixteenth of each shared one, all of a
//! `performance` one. What is left of it is saved, up to a second of all its CPUs. In the idle class it has what nobody
//! else wants: all of that when the host is otherwise idle, so that nobody is throttled, and it costs no credit. Who
//! others starve there saves its baseline up and comes back with it, so that it has its baseline in the end. It is looked
//! at so often that it neither gets nor owes much at once: a tenth of a second's baseline, so that who is a little above
//! its baseline waits no longer than that.

use std::time::Duration;

use crate::time::Timestamp;

/// So long a new run may use all its CPUs: programs start in it, and their callers wait.
const OPENING: Duration = Duration::from_secs(1);
/// So long may one that is asked something, when it has no more left.
const LIFTED: Duration = Duration::from_millis(100);
/// Most that is saved: so long it may use all its CPUs after it was quiet.
const SAVED_MAX: Duration = Duration::from_secs(1);
/// Most that is owed, in what the baseline is worth: so long who is starved waits, and [`RETURN`].
const OWED_MAX: Duration = Duration::from_millis(100);
/// Saved when it comes back, by the same measure: else it would yield again at the next look.
const RETURN: Duration = Duration::from_millis(50);
/// Between two looks. At least what a sixteenth repays in [`OWED_MAX`] and [`RETURN`]: who is starved has no more than
/// its baseline by coming back.
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// While it yields it may be starved.
const LOOK_YIELDING: Duration = Duration::from_millis(50);

/// How the kernel treats a Machine's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// They compete by their weight.
    Normal,
    /// They have what nobody else wants.
    Idle,
}

/// What a Machine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// CPU time that it has for sure, microseconds in a second.
    pub baseline_us: u64,
    /// CPU time that it can take at most, microseconds in a second.
    pub most_us: u64,
}

impl Rates {
    /// Whether it could ever use more than its baseline.
    pub fn can_exceed(self) -> bool {
        self.baseline_us < self.most_us
    }

    fn baseline(self, length: Duration) -> i64 {
        over(self.baseline_us, length)
    }

    fn most(self, length: Duration) -> i64 {
        over(self.most_us, length)
    }
}

/// Microseconds at this rate.
fn over(rate_us: u64, length: Duration) -> i64 {
    let micros = length.as_micros().saturating_mul(u128::from(rate_us)) / 1_000_000;
    i64::try_from(micros).unwrap_or(i64::MAX)
}

/// What a Machine has used of its baseline. See the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    rates: Rates,
    class: Class,
    /// Microseconds of CPU time saved; below zero owed.
    credit_us: i64,
    /// At the last look, by the kernel's count.
    used: Duration,
    looked: Timestamp,
}

impl Account {
    /// For a Machine that is of this class and has used so much.
    pub fn open(rates: Rates, class: Class, used: Duration, now: Timestamp) -> Self {
        let credit_us = match class {
            Class::Normal => rates.most(OPENING),
            Class::Idle => 0,
        };
        Self { rates, class, credit_us, used, looked: now }
    }

    /// It has used so much since it began; answers of which class it is to be from now on.
    pub fn look(&mut self, used: Duration, now: Timestamp) -> Class {
        let taken = i64::try_from(used.saturating_sub(self.used).as_micros()).unwrap_or(i64::MAX);
        let left = self.rates.baseline(now.since(self.looked)).saturating_sub(taken);
        (self.used, self.looked) = (used, now);
        // In the idle class it takes from nobody.
        let counted = if self.class == Class::Idle { left.max(0) } else { left };
        let (least, most) = (-self.rates.baseline(OWED_MAX), self.rates.most(SAVED_MAX));
        self.credit_us = self.credit_us.saturating_add(counted).clamp(least, most);
        self.class = match self.class {
            Class::Normal if self.credit_us < 0 => Class::Idle,
            Class::Idle if self.rates.baseline(RETURN) <= self.credit_us => Class::Normal,
            unchanged => unchanged,
        };
        self.class
    }

    /// Somebody waits for it, whatever it has used: it is normal again for a moment.
    pub fn lift(&mut self) {
        self.class = Class::Normal;
        self.credit_us = self.credit_us.max(self.rates.most(LIFTED));
    }

    /// When to look next: not before it can have used up what it has.
    pub fn next_look(&self) -> Timestamp {
        let lasts = match self.class {
            Class::Idle => LOOK_YIELDING,
            Class::Normal => self.lasts().clamp(LOOK_MIN, LOOK_MAX),
        };
        self.looked + lasts
    }

    /// How long it could take all that it can.
    fn lasts(&self) -> Duration {
        let credit = u128::from(self.credit_us.max(0).unsigned_abs());
        let micros = credit * 1_000_000 / u128::from(self.rates.most_us.max(1));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest guest: a sixteenth of one CPU.
    const SMALL: Rates = Rates { baseline_us: 62_500, most_us: 1_000_000 };

    /// A Machine that is looked at whenever its account says.
    struct Sample {
        account: Account,
        used: Duration,
        now: Timestamp,
        looks: u32,
    }

    impl Sample {
        fn new(rates: Rates) -> Self {
            let account = Account::open(rates, Class::Normal, Duration::ZERO, Timestamp::ZERO);
            Self { account, used: Duration::ZERO, now: Timestamp::ZERO, looks: 0 }
        }

        /// Uses this part of its CPUs, in percent by class, for so long; how long it yielded.
        fn runs(&mut self, length: Duration, normal: u32, idle: u32) -> Duration {
            let (end, mut yielded) = (self.now + length, Duration::ZERO);
            while self.now < end {
                let next = self.account.next_look();
                assert!(self.now < next, "time goes on");
                let step = next.since(self.now);
                let (percent, of_step) = match self.account.class {
                    Class::Normal => (normal, Duration::ZERO),
                    Class::Idle => (idle, step),
                };
                yielded += of_step;
                self.used += step * percent / 100;
                self.now = next;
                self.looks += 1;
                self.account.look(self.used, self.now);
            }
            yielded
        }

        fn class(&self) -> Class {
            self.account.class
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_program_has_a_second_of_all_its_cpus_for_its_start() {
        for cpus in [1, 8] {
            let rates = Rates { baseline_us: 62_500 * cpus, most_us: 1_000_000 * cpus };
            let mut starts = Sample::new(rates);
            let all = 100 * u32::try_from(cpus).expect("a few");
            assert_eq!(starts.runs(SECOND, all, 0), Duration::ZERO);
            assert_eq!(starts.class(), Class::Normal);
        }
    }

    #[test]
    fn who_spins_from_its_start_yields_a_tenth_of_a_second_after_that() {
        let mut spinner = Sample::new(SMALL);
        spinner.runs(Duration::from_millis(1070), 100, 100);
        assert_eq!(spinner.class(), Class::Idle);
        assert!(spinner.now <= Timestamp::from_micros(1_100_000), "{}", spinner.now);
        // It has all that nobody wants, and stays.
        assert!(spinner.runs(60 * SECOND, 100, 100) >= 60 * SECOND);
    }

    #[test]
    fn who_stops_spinning_is_normal_again_within_a_fifth_of_a_second() {
        let mut spinner = Sample::new(SMALL);
        spinner.runs(60 * SECOND, 100, 100);
        spinner.runs(Duration::from_millis(200), 0, 0);
        assert_eq!(spinner.class(), Class::Normal);
    }

    /// It uses 8 % of a CPU, evenly or a twentieth of a second at once; normal Machines take all that it leaves, and
    /// what it could not do it does as soon as it can.
    #[test]
    fn who_is_a_little_above_its_baseline_beside_normal_ones_never_waits_long() {
        const STEP: Duration = Duration::from_millis(1);
        for bursts_of in [1, 50] {
            let (mut account, mut now) = (Sample::new(SMALL).account, Timestamp::ZERO);
            let (mut used, mut wants) = (Duration::ZERO, Duration::ZERO);
            let (mut waits, mut longest) = (Duration::ZERO, Duration::ZERO);
            for step in 0..600_000_u32 {
                let period = bursts_of * 25 / 2;
                if step % period == 0 {
                    wants += STEP * period * 8 / 100;
                }
                now = now + STEP;
                if account.class == Class::Normal {
                    let got = wants.min(STEP);
                    (used, wants, waits) = (used + got, wants - got, Duration::ZERO);
                } else if !wants.is_zero() {
                    waits += STEP;
                    longest = longest.max(waits);
                }
                if account.next_look() <= now {
                    account.look(used, now);
                }
            }
            assert!(longest <= Duration::from_millis(160), "{bursts_of}: {longest:?}");
            assert!(!longest.is_zero(), "{bursts_of}: it never yielded");
            // Its baseline is what it has for sure, and that it has.
            assert!(Duration::from_secs(36) <= used, "{bursts_of}: {used:?}");
        }
    }

    #[test]
    fn who_uses_no_more_than_its_baseline_never_yields() {
        let mut modest = Sample::new(SMALL);
        assert_eq!(modest.runs(600 * SECOND, 6, 6), Duration::ZERO);
    }

    #[test]
    fn a_second_of_all_its_cpus_is_saved_and_no_more() {
        let mut quiet = Sample::new(SMALL);
        quiet.runs(60 * SECOND, 0, 0);
        let before = quiet.looks;
        quiet.runs(10 * SECOND, 0, 0);
        assert_eq!(quiet.looks - before, 10, "one look a second");
        quiet.runs(Duration::from_millis(900), 90, 90);
        assert_eq!(quiet.class(), Class::Normal);
        quiet.runs(Duration::from_millis(300), 100, 100);
        assert_eq!(quiet.class(), Class::Idle);
    }

    #[test]
    fn who_is_starved_in_the_idle_class_has_its_baseline_in_the_end() {
        let mut starved = Sample::new(SMALL);
        starved.runs(10 * SECOND, 100, 0);
        let before = starved.used;
        let yielded = starved.runs(60 * SECOND, 100, 0);
        let got = starved.used - before;
        let baseline = 60 * SECOND / 16;
        assert!(baseline * 3 / 4 <= got, "{got:?}");
        assert!(got <= baseline * 5 / 4, "{got:?}");
        assert!(50 * SECOND <= yielded, "{yielded:?}: others have the CPUs nearly always");
    }

    #[test]
    fn whom_somebody_waits_for_is_normal_at_once_and_for_a_moment() {
        let mut spinner = Sample::new(SMALL);
        spinner.runs(10 * SECOND, 100, 100);
        spinner.account.lift();
        assert_eq!(spinner.class(), Class::Normal);
        spinner.runs(Duration::from_millis(60), 100, 100);
        assert_eq!(spinner.class(), Class::Normal);
        spinner.runs(Duration::from_millis(100), 100, 100);
        assert_eq!(spinner.class(), Class::Idle);
    }

    #[test]
    fn what_an_earlier_server_left_in_the_idle_class_stays_there_only_if_it_spins() {
        let open = || Account::open(SMALL, Class::Idle, SECOND, Timestamp::ZERO);
        let (mut spins, mut rests) = (open(), open());
        for tenth in 1..=10 {
            let now = Timestamp::from_micros(tenth * 100_000);
            spins.look(SECOND + now.since(Timestamp::ZERO), now);
            rests.look(SECOND, now);
        }
        assert_eq!((spins.class, rests.class), (Class::Idle, Class::Normal));
    }

    #[test]
    fn a_whole_cpu_each_is_never_exceeded() {
        assert!(SMALL.can_exceed());
        assert!(!Rates { baseline_us: 2_000_000, most_us: 2_000_000 }.can_exceed());
    }

    #[test]
    fn a_count_that_goes_back_and_a_clock_that_jumps_harm_nobody() {
        let mut account = Account::open(SMALL, Class::Normal, SECOND, Timestamp::ZERO);
        assert_eq!(account.look(Duration::ZERO, Timestamp::ZERO), Class::Normal);
        assert_eq!(account.look(Duration::ZERO, Timestamp::from_micros(u64::MAX)), Class::Normal);
        assert_eq!(account.look(Duration::MAX, Timestamp::ZERO), Class::Idle);
    }
}
