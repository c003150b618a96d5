//! Who gives way when memory is short: sleepers, the least recently used first.
//!
//! ```text
//!  missing = reserve + wanted − available − what is on its way
//!  page out, oldest first, as far as swap goes ─► still missing ─► stop, oldest first
//! ```
//!
//! No running Machine is chosen here: what runs is in use. A start that does not fit waits until sleepers have made
//! room; where none is left, and it does not fit by what is known of it, it has to be refused.

mod ceiling;
mod stalls;

use std::time::Duration;

pub use self::ceiling::{Ceiling, Room};
pub use self::stalls::Stalls;

use crate::ids::MachineId;
use crate::time::Timestamp;

/// What a start is taken to need of which nothing is known: the default size of a Machine.
pub const UNKNOWN_NEED: u64 = 256 << 20;
/// Less than this is not worth moving or ending anything.
pub const WORTHWHILE: u64 = 1 << 20;
/// Part of the memory that is made free while programs wait for memory although the reserve is there.
const PRESSURE_PART: u64 = 50;
/// A start that was let in counts so long with what it will need: programs take their memory in their first moments.
pub const PROMISE: Duration = Duration::from_secs(2);

/// The memory of the host, or of the part of it that the server may count on. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// All of it.
    pub total: u64,
    /// What can be used without anybody's loss.
    pub available: u64,
    /// What must stay so.
    pub reserve: u64,
    /// What was promised to starts that have not used it yet.
    pub promised: u64,
    /// Swap that is left.
    pub swap_left: u64,
    /// Whether programs wait for memory now.
    pub pressure: Pressure,
}

impl Facts {
    /// Whether programs wait because memory is nearly short. Those that wait while there is plenty have reached their
    /// own limit, which nobody else can help by giving way.
    pub fn is_pressed(&self) -> bool {
        let near = self.reserve.saturating_mul(2).max(self.total / PRESSURE_PART);
        self.pressure == Pressure::High && self.available < near
    }
}

/// Whether programs wait for memory, on the whole host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Hardly.
    Low,
    /// A noticeable part of their time.
    High,
}

/// A Machine that is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleeper {
    /// Which.
    pub machine: MachineId,
    /// When it fell asleep.
    pub since: Timestamp,
    /// Bytes that swap would take.
    pub resident: u64,
    /// Bytes of memory in which compressed swap keeps the rest: they are free when it ends.
    pub store: u64,
    /// What is being done about it.
    pub relief: Option<Relief>,
    /// What a page-out did for it.
    pub remainder: Remainder,
}

/// What can still be moved of a sleeper's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remainder {
    /// All of it, as far as anybody knows.
    Movable,
    /// Nothing more: a page-out has moved what could go.
    Stays,
}

/// What is done about a sleeper's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relief {
    /// To swap.
    PageOut,
    /// Its run ends.
    Stop,
}

/// What a start will need, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Seen in an earlier run.
    Known(u64),
    /// Never seen; at most this.
    AtMost(u64),
}

impl Need {
    /// For how much room is made.
    pub fn wanted(self) -> u64 {
        match self {
            Self::Known(bytes) => bytes,
            Self::AtMost(bytes) => bytes.min(UNKNOWN_NEED),
        }
    }

    /// What is left of it when so much has been taken.
    #[must_use]
    pub fn less(self, taken: u64) -> Self {
        match self {
            Self::Known(bytes) => Self::Known(bytes.saturating_sub(taken)),
            Self::AtMost(_) => Self::AtMost(self.wanted().saturating_sub(taken)),
        }
    }

    /// Without how much it is refused when nobody is left to give way.
    pub fn required(self) -> u64 {
        match self {
            Self::Known(bytes) => bytes,
            Self::AtMost(_) => 0,
        }
    }
}

/// Whether a start may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Fits,
    /// Not yet: sleepers can give way, or are on their way out.
    Wait,
    /// Not before somebody who runs ends.
    Full,
}

/// Chooses who gives way, so that `wanted` bytes fit above the reserve. Those for whom something is being done already
/// are counted as gone.
pub fn choose(facts: &Facts, sleepers: &[Sleeper], wanted: u64) -> Vec<(MachineId, Relief)> {
    let mut missing = missing(facts, wanted);
    let mut chosen = Vec::new();
    let mut swap_left = facts.swap_left;
    for sleeper in sleepers {
        if let Some(relief) = sleeper.relief {
            missing = missing.saturating_sub(sleeper.resident);
            if relief == Relief::PageOut {
                swap_left = swap_left.saturating_sub(sleeper.resident);
            }
        }
    }
    let mut oldest: Vec<&Sleeper> = sleepers.iter().collect();
    oldest.sort_by_key(|sleeper| (sleeper.since, sleeper.machine));
    let mut left = Vec::new();
    for sleeper in oldest {
        let pages_out = sleeper.relief.is_none()
            && sleeper.remainder == Remainder::Movable
            && WORTHWHILE <= sleeper.resident
            && sleeper.resident <= swap_left;
        if 0 < missing && pages_out {
            missing = missing.saturating_sub(sleeper.resident);
            swap_left -= sleeper.resident;
            chosen.push((sleeper.machine, Relief::PageOut));
        } else if sleeper.relief.is_none() {
            left.push(sleeper);
        }
    }
    for sleeper in left {
        let gain = sleeper.resident.saturating_add(sleeper.store);
        if 0 < missing && WORTHWHILE <= gain {
            missing = missing.saturating_sub(gain);
            chosen.push((sleeper.machine, Relief::Stop));
        }
    }
    chosen
}

fn missing(facts: &Facts, wanted: u64) -> u64 {
    let short = facts.reserve.saturating_add(facts.promised).saturating_add(wanted);
    let short = short.saturating_sub(facts.available);
    if facts.is_pressed() { short.max(facts.total / PRESSURE_PART) } else { short }
}

/// Whether a start may begin now.
pub fn admit(facts: &Facts, sleepers: &[Sleeper], need: Need) -> Admission {
    let room = facts.available.saturating_sub(facts.reserve).saturating_sub(facts.promised);
    if need.wanted() <= room {
        return Admission::Fits;
    }
    let somebody = sleepers.iter().any(|sleeper| {
        sleeper.relief.is_some() || WORTHWHILE <= sleeper.resident.saturating_add(sleeper.store)
    });
    match (somebody, need.required() < room) {
        (true, _) => Admission::Wait,
        (false, true) => Admission::Fits,
        (false, false) => Admission::Full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn facts(available: u64, swap_left: u64) -> Facts {
        Facts {
            total: 1024 * MB,
            available: available * MB,
            reserve: 100 * MB,
            promised: 0,
            swap_left: swap_left * MB,
            pressure: Pressure::Low,
        }
    }

    /// The lower its number, the longer it sleeps.
    fn sleeper(number: u64, megabytes: u64) -> Sleeper {
        Sleeper {
            machine: MachineId::from_low_bits(number),
            since: Timestamp::from_micros(number),
            resident: megabytes * MB,
            store: 0,
            relief: None,
            remainder: Remainder::Movable,
        }
    }

    fn check(facts: &Facts, sleepers: &[Sleeper], wanted: u64, expected: &[(u64, Relief)]) {
        let expected: Vec<_> =
            expected.iter().map(|(number, it)| (MachineId::from_low_bits(*number), *it)).collect();
        assert_eq!(choose(facts, sleepers, wanted * MB), expected);
    }

    use Relief::{PageOut, Stop};

    #[test]
    fn nobody_gives_way_while_the_reserve_is_there() {
        check(&facts(100, 0), &[sleeper(1, 50)], 0, &[]);
        check(&facts(500, 500), &[sleeper(1, 50)], 400, &[]);
    }

    #[test]
    fn the_longest_asleep_give_way_first_and_no_more_than_are_needed() {
        let all = [sleeper(3, 50), sleeper(1, 50), sleeper(2, 50)];
        check(&facts(20, 0), &all, 0, &[(1, Stop), (2, Stop)]);
        check(&facts(20, 1000), &all, 0, &[(1, PageOut), (2, PageOut)]);
        check(&facts(100, 0), &all, 10, &[(1, Stop)]);
    }

    #[test]
    fn who_does_not_fit_into_swap_is_stopped_after_those_who_do_have_gone() {
        let all = [sleeper(1, 80), sleeper(2, 30), sleeper(3, 30)];
        check(&facts(0, 40), &all, 0, &[(2, PageOut), (1, Stop)]);
        check(&facts(70, 40), &all, 0, &[(2, PageOut)]);
    }

    #[test]
    fn what_is_on_its_way_is_counted_and_not_asked_twice() {
        let going = Sleeper { relief: Some(Stop), ..sleeper(1, 60) };
        check(&facts(50, 0), &[going, sleeper(2, 60)], 0, &[]);
        check(&facts(20, 0), &[going, sleeper(2, 60)], 0, &[(2, Stop)]);
        let paging = Sleeper { relief: Some(PageOut), ..sleeper(1, 60) };
        check(&facts(20, 70), &[paging, sleeper(2, 60)], 0, &[(2, Stop)]);
    }

    #[test]
    fn what_has_been_taken_of_a_need_is_wanted_no_more() {
        assert_eq!(Need::Known(30).less(10), Need::Known(20));
        assert_eq!(Need::Known(30).less(40), Need::Known(0));
        assert_eq!(Need::AtMost(u64::MAX).less(MB).wanted(), UNKNOWN_NEED - MB);
        assert_eq!(Need::AtMost(MB).less(2 * MB).wanted(), 0);
    }

    #[test]
    fn promises_and_pressure_count() {
        let promised = Facts { promised: 30 * MB, ..facts(100, 0) };
        check(&promised, &[sleeper(1, 30)], 0, &[(1, Stop)]);
        let pressed = Facts { pressure: Pressure::High, ..facts(150, 100) };
        check(&pressed, &[sleeper(1, 30), sleeper(2, 30)], 0, &[(1, PageOut)]);
    }

    #[test]
    fn nobody_gives_way_for_one_that_waits_at_its_own_limit_while_there_is_plenty() {
        let pressed = |available| Facts { pressure: Pressure::High, ..facts(available, 100) };
        check(&pressed(199), &[sleeper(1, 30)], 0, &[(1, PageOut)]);
        check(&pressed(200), &[sleeper(1, 30)], 0, &[]);
        let unreserved = |available| Facts { reserve: 0, ..pressed(available) };
        check(&unreserved(20), &[sleeper(1, 30)], 0, &[(1, PageOut)]);
        check(&unreserved(21), &[sleeper(1, 30)], 0, &[]);
    }

    #[test]
    fn one_that_is_in_swap_already_is_stopped_only_if_that_helps() {
        let all = [sleeper(1, 0), sleeper(2, 50)];
        check(&facts(0, 100), &all, 0, &[(2, PageOut)]);
        let compressed = Sleeper { store: 30 * MB, ..sleeper(1, 0) };
        check(&facts(60, 100), &[compressed, sleeper(2, 50)], 0, &[(2, PageOut)]);
        check(&facts(0, 100), &[compressed, sleeper(2, 50)], 0, &[(2, PageOut), (1, Stop)]);
    }

    #[test]
    fn one_that_a_page_out_could_not_help_is_stopped_in_its_turn() {
        let locked = Sleeper { remainder: Remainder::Stays, ..sleeper(1, 60) };
        let all = [locked, sleeper(2, 30), sleeper(3, 30)];
        check(&facts(90, 100), &all, 0, &[(2, PageOut)]);
        check(&facts(0, 100), &all, 0, &[(2, PageOut), (3, PageOut), (1, Stop)]);
        check(&facts(90, 0), &all, 0, &[(1, Stop)]);
    }

    #[test]
    fn a_start_waits_for_sleepers_and_is_refused_when_none_is_left() {
        let one = [sleeper(1, 50)];
        assert_eq!(admit(&facts(400, 0), &one, Need::Known(300 * MB)), Admission::Fits);
        assert_eq!(admit(&facts(399, 0), &one, Need::Known(300 * MB)), Admission::Wait);
        assert_eq!(admit(&facts(399, 0), &[], Need::Known(300 * MB)), Admission::Full);
        // What it may take at most is no reason to refuse it.
        assert_eq!(admit(&facts(150, 0), &[], Need::AtMost(u64::MAX)), Admission::Fits);
        assert_eq!(admit(&facts(100, 0), &[], Need::AtMost(1 << 40)), Admission::Full);
        let going = [Sleeper { relief: Some(Stop), ..sleeper(1, 0) }];
        assert_eq!(admit(&facts(50, 0), &going, Need::Known(MB)), Admission::Wait);
    }

    /// A small world: starts of 100 MB one after the other, of which each falls asleep before the next.
    #[test]
    fn in_a_world_that_is_too_small_for_all_every_start_fits_at_last() {
        for swap in [0, 300, 4096] {
            let mut asleep: Vec<Sleeper> = Vec::new();
            let mut swapped = 0;
            for number in 1..=30 {
                let mut steps = 0;
                loop {
                    let used: u64 = asleep.iter().map(|sleeper| sleeper.resident).sum();
                    let world = facts(1024 - used / MB, swap - swapped);
                    assert!(used <= 924 * MB, "the reserve was used: {used}");
                    let need = Need::AtMost(256 * MB);
                    match admit(&world, &asleep, need) {
                        Admission::Fits => break,
                        Admission::Full => panic!("sleepers are left: {asleep:?}"),
                        Admission::Wait => {}
                    }
                    let chosen = choose(&world, &asleep, need.wanted());
                    assert!(!chosen.is_empty(), "it waits for nothing");
                    for (machine, relief) in chosen {
                        match relief {
                            Stop => asleep.retain(|sleeper| sleeper.machine != machine),
                            PageOut => {
                                let found = asleep.iter_mut().find(|it| it.machine == machine);
                                let found = found.expect("one of them");
                                swapped += found.resident / MB;
                                found.resident = 0;
                            }
                        }
                    }
                    steps += 1;
                    assert!(steps < 3, "it does not come to rest");
                }
                asleep.push(sleeper(number, 100));
            }
            let newest = asleep.iter().map(|sleeper| sleeper.since).max();
            assert_eq!(newest, Some(Timestamp::from_micros(30)), "the newest was chosen");
        }
    }
}
