//! The admission word: may one more request enter this Machine, and how many are inside?
//!
//! One 64-bit word per Machine and service, changed by compare-and-swap, so that the warm path of
//! the proxy (choose, claim, release) needs no lock and sends no message, and so that "nobody is
//! inside" and "nobody may enter any more" are one step:
//!
//! ```text
//!  63      62    61   40 39    20 19        0
//! closed  used   epoch   parked   in flight
//!
//!          claim            release           close_if_idle          open(next run)
//!  open,0 ───────► open,n ─────────► open,0 ───────────────► closed,0 ─────────► open,0
//! ```
//!
//! *parked* counts those of the in flight that are connections on which nothing moves and nothing is owed.
//! They take places, but they are no load: the word can be closed with them inside, and who goes on then
//! waits for the Machine to wake.
//!
//! *epoch* is the run of the Machine (its low 22 bits): a claim made for an older run is refused
//! and a release of an older run changes nothing, so a late connection of a dead run can neither
//! enter nor confuse its successor. *used* remembers that a request that counts (not one of the
//! same pool, AS-23) entered since the balancer last looked at the idle word.
//!
//! The callers of [`AdmissionWord::claim`] and [`AdmissionWord::release`] hear about edges only
//! ([`Change::is_edge`]); between edges the balancer needs to know nothing.

use std::sync::atomic::{AtomicU64, Ordering};

const CLOSED: u64 = 1 << 63;
const USED: u64 = 1 << 62;
const EPOCH_SHIFT: u32 = 40;
const EPOCH_MASK: u64 = 0x3f_ffff << EPOCH_SHIFT;
const PARKED_SHIFT: u32 = 20;
const PARKED_ONE: u64 = 1 << PARKED_SHIFT;
const COUNT_MASK: u64 = 0xf_ffff;

/// The limits of one Machine and service, ready for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    soft: u32,
    hard: u32,
}

impl Limits {
    /// Makes limits: at least 1 each, `soft` at most `hard`; without a hard limit about a million, which
    /// is as far as a word counts.
    pub fn new(soft: u32, hard: Option<u32>) -> Self {
        let hard = hard.unwrap_or(u32::MAX).clamp(1, COUNT_MASK as u32);
        Self { soft: soft.clamp(1, hard), hard }
    }

    /// From so many in flight on a Machine is "at or over soft".
    pub fn soft(self) -> u32 {
        self.soft
    }

    /// More than so many are never in flight.
    pub fn hard(self) -> u32 {
        self.hard
    }

    /// The band of a load (AS-25).
    pub fn band(self, in_flight: u32) -> Band {
        if in_flight < self.soft {
            Band::BelowSoft
        } else if in_flight < self.hard {
            Band::Soft
        } else {
            Band::Hard
        }
    }
}

/// The three bands that routing looks at (AS-25).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    /// Below `soft_limit`.
    BelowSoft,
    /// At or over `soft_limit`, below `hard_limit`.
    Soft,
    /// At `hard_limit`: nothing more enters.
    Hard,
}

/// Whether a request restarts the idle clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A caller: counts as use.
    Caller,
    /// A Machine of the same pool, or a check: load while it lasts, but no use (AS-23, AS-27).
    SamePool,
    /// A heartbeat on a connection that is known for them: load until it is answered, but no use.
    Heartbeat,
}

/// How one step changed the numbers of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// In flight before.
    pub from: u32,
    /// In flight after.
    pub to: u32,
    /// Of them load, not parked, before.
    pub load_from: u32,
    /// Of them load, not parked, after.
    pub load_to: u32,
    /// A request that counts has entered since the word was last without load.
    pub used: bool,
}

impl Change {
    fn of(before: u64, after: u64) -> Self {
        Self {
            from: in_flight(before),
            to: in_flight(after),
            load_from: load(before),
            load_to: load(after),
            used: after & USED != 0,
        }
    }

    /// Whether the balancer must hear of it: the first load, the last, or a border of a band
    /// crossed (reaching `soft` or `hard`, and the way back), `soft` also by load alone: whether
    /// another Machine is one too many depends on it.
    pub fn is_edge(self, limits: Limits) -> bool {
        let high = self.from.max(self.to);
        let band = self.from != self.to && (high == limits.soft || high == limits.hard);
        let [low, high] = [self.load_from.min(self.load_to), self.load_from.max(self.load_to)];
        let load = low != high && (low == 0 || high == limits.soft);
        load || band
    }
}

/// Why a claim was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Closed: asleep, falling asleep, or draining.
    Closed,
    /// The word belongs to another run.
    OtherRun,
    /// At `hard_limit`.
    Full,
}

/// Why an idle word could not be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// So many are inside and not parked.
    InFlight(u32),
    /// Without load, but used since the balancer last looked: its idle clock is out of date.
    Used,
    /// The word belongs to another run.
    OtherRun,
}

/// What a word says at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Nobody may enter.
    pub closed: bool,
    /// In flight in the current run.
    pub in_flight: u32,
}

/// The word. Shared between the warm path and the balancer by `Arc`.
#[derive(Debug)]
pub struct AdmissionWord(AtomicU64);

impl AdmissionWord {
    /// A closed word of no run.
    pub fn new_closed() -> Self {
        Self(AtomicU64::new(CLOSED))
    }

    /// Enters one request of `run`.
    ///
    /// # Errors
    /// [`Refusal`] when nothing was changed.
    pub fn claim(&self, run: u64, limits: Limits, origin: Origin) -> Result<Change, Refusal> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let next = claimed(word, run, limits, origin)?;
            match self.swap(word, next) {
                Ok(()) => return Ok(Change::of(word, next)),
                Err(seen) => word = seen,
            }
        }
    }

    /// Takes one request of `run` out again; `None` (and nothing changed) if the word has moved on
    /// to another run.
    pub fn release(&self, run: u64) -> Option<Change> {
        self.step(run, |word| (0 < load(word)).then(|| word - 1))
    }

    /// The same for one that is parked.
    pub fn release_parked(&self, run: u64) -> Option<Change> {
        self.step(run, |word| (0 < parked(word)).then(|| word - PARKED_ONE - 1))
    }

    /// Counts one of those inside as parked; `None` as for [`Self::release`].
    pub fn park(&self, run: u64) -> Option<Change> {
        self.step(run, |word| (0 < load(word)).then(|| word + PARKED_ONE))
    }

    /// Counts a parked one as load again, and as use if its bytes count, unless the word is closed.
    ///
    /// # Errors
    /// [`Refusal`] when nothing was changed.
    pub fn unpark(&self, run: u64, origin: Origin) -> Result<Change, Refusal> {
        let change = self.step(run, |word| {
            (word & CLOSED == 0 && 0 < parked(word)).then(|| unparked(word, origin))
        });
        match change {
            Some(change) => Ok(change),
            None if self.is_of(run) => Err(Refusal::Closed),
            None => Err(Refusal::OtherRun),
        }
    }

    /// The same, closed or not; `None` if the word has moved on to another run.
    pub fn unpark_anyway(&self, run: u64, origin: Origin) -> Option<Change> {
        self.step(run, |word| (0 < parked(word)).then(|| unparked(word, origin)))
    }

    /// One of those inside was counted as no use, and is some after all.
    pub fn note_use(&self, run: u64) {
        self.step(run, |word| Some(word | USED));
    }

    /// Whether the word belongs to this run.
    pub fn is_of(&self, run: u64) -> bool {
        epoch(self.0.load(Ordering::Acquire)) == low(run)
    }

    fn step(&self, run: u64, next: impl Fn(u64) -> Option<u64>) -> Option<Change> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if epoch(word) != low(run) {
                return None;
            }
            let after = next(word)?;
            match self.swap(word, after) {
                Ok(()) => return Some(Change::of(word, after)),
                Err(seen) => word = seen,
            }
        }
    }

    /// Closes the word if it is open, without load and unused since the balancer last looked.
    ///
    /// # Errors
    /// [`Busy`] when nothing was changed.
    pub fn close_if_idle(&self, run: u64) -> Result<(), Busy> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if epoch(word) != low(run) {
                return Err(Busy::OtherRun);
            }
            if load(word) > 0 {
                return Err(Busy::InFlight(load(word)));
            }
            if word & USED != 0 {
                return Err(Busy::Used);
            }
            match self.swap(word, word | CLOSED) {
                Ok(()) => return Ok(()),
                Err(seen) => word = seen,
            }
        }
    }

    /// Lets nobody enter any more; who is inside stays. Returns the number in flight.
    pub fn close(&self) -> u32 {
        in_flight(self.0.fetch_or(CLOSED, Ordering::AcqRel))
    }

    /// Opens the word for `run`: empty if that is another run than before, else with whoever is
    /// still inside.
    pub fn open(&self, run: u64) {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let same = epoch(word) == low(run);
            let next = if same { word & !CLOSED } else { low(run) };
            match self.swap(word, next) {
                Ok(()) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Whether a request that counts entered since the last call that found the word without load;
    /// forgets it if there is none now. While there is load the answer stays for later.
    pub fn take_used(&self) -> bool {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let used = word & USED != 0;
            if !used || load(word) > 0 {
                return used;
            }
            match self.swap(word, word & !USED) {
                Ok(()) => return true,
                Err(seen) => word = seen,
            }
        }
    }

    /// What the word says now. It may be old when the caller looks at it; only [`Self::claim`] and
    /// [`Self::close_if_idle`] decide.
    pub fn observe(&self) -> Observed {
        let word = self.0.load(Ordering::Acquire);
        Observed { closed: word & CLOSED != 0, in_flight: in_flight(word) }
    }

    /// How many of this run are inside; zero if the word belongs to another run.
    pub fn in_flight(&self, run: u64) -> u32 {
        let word = self.0.load(Ordering::Acquire);
        if epoch(word) == low(run) { in_flight(word) } else { 0 }
    }

    /// How many of this run are load: inside and not parked.
    pub fn load(&self, run: u64) -> u32 {
        let word = self.0.load(Ordering::Acquire);
        if epoch(word) == low(run) { load(word) } else { 0 }
    }

    /// Counts one in without any check: only for planted bugs.
    #[doc(hidden)]
    pub fn force(&self) -> Change {
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        Change::of(before, before + 1)
    }

    fn swap(&self, word: u64, next: u64) -> Result<(), u64> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.0.compare_exchange_weak(word, next, success, failure).map(|_| ())
    }
}

fn claimed(word: u64, run: u64, limits: Limits, origin: Origin) -> Result<u64, Refusal> {
    if epoch(word) != low(run) {
        return Err(Refusal::OtherRun);
    }
    if word & CLOSED != 0 {
        return Err(Refusal::Closed);
    }
    if limits.hard <= in_flight(word) {
        return Err(Refusal::Full);
    }
    match origin {
        Origin::Caller => Ok((word + 1) | USED),
        Origin::SamePool | Origin::Heartbeat => Ok(word + 1),
    }
}

fn unparked(word: u64, origin: Origin) -> u64 {
    match origin {
        Origin::Caller => (word - PARKED_ONE) | USED,
        Origin::SamePool | Origin::Heartbeat => word - PARKED_ONE,
    }
}

fn in_flight(word: u64) -> u32 {
    (word & COUNT_MASK) as u32
}

fn parked(word: u64) -> u32 {
    (word >> PARKED_SHIFT & COUNT_MASK) as u32
}

fn load(word: u64) -> u32 {
    in_flight(word) - parked(word)
}

fn epoch(word: u64) -> u64 {
    word & EPOCH_MASK
}

fn low(run: u64) -> u64 {
    (run << EPOCH_SHIFT) & EPOCH_MASK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn limits() -> Limits {
        Limits::new(2, Some(3))
    }

    fn open_word(run: u64) -> AdmissionWord {
        let word = AdmissionWord::new_closed();
        word.open(run);
        word
    }

    #[test]
    fn a_closed_word_or_another_run_or_a_full_one_lets_nobody_in() {
        let word = AdmissionWord::new_closed();
        assert_eq!(word.claim(0, limits(), Origin::Caller), Err(Refusal::Closed));
        word.open(1);
        assert_eq!(word.claim(2, limits(), Origin::Caller), Err(Refusal::OtherRun));
        for _ in 0..3 {
            word.claim(1, limits(), Origin::Caller).expect("there is room for three");
        }
        assert_eq!(word.claim(1, limits(), Origin::Caller), Err(Refusal::Full));
        word.close();
        assert_eq!(word.claim(1, limits(), Origin::Caller), Err(Refusal::Closed));
        assert_eq!(word.observe(), Observed { closed: true, in_flight: 3 });
    }

    #[test]
    fn only_an_empty_unused_word_of_this_run_can_be_closed() {
        let word = open_word(1);
        assert_eq!(word.close_if_idle(2), Err(Busy::OtherRun));
        word.claim(1, limits(), Origin::Caller).expect("open");
        assert_eq!(word.close_if_idle(1), Err(Busy::InFlight(1)));
        word.release(1).expect("one was inside");
        assert_eq!(word.close_if_idle(1), Err(Busy::Used));
        assert!(word.take_used());
        assert_eq!(word.close_if_idle(1), Ok(()));
        assert!(word.observe().closed);
    }

    #[test]
    fn a_request_of_the_same_pool_is_load_but_no_use() {
        let word = open_word(1);
        word.claim(1, limits(), Origin::SamePool).expect("open");
        assert_eq!(word.close_if_idle(1), Err(Busy::InFlight(1)));
        word.release(1).expect("one was inside");
        assert!(!word.take_used());
        assert_eq!(word.close_if_idle(1), Ok(()));
    }

    #[test]
    fn use_is_not_forgotten_while_somebody_is_inside() {
        let word = open_word(1);
        word.claim(1, limits(), Origin::Caller).expect("open");
        assert!(word.take_used());
        assert!(word.take_used());
        word.release(1).expect("one was inside");
        assert!(word.take_used());
        assert!(!word.take_used());
    }

    #[test]
    fn a_late_release_of_a_dead_run_does_not_touch_its_successor() {
        let word = open_word(1);
        word.claim(1, limits(), Origin::Caller).expect("open");
        word.close();
        word.open(2);
        assert_eq!(word.observe(), Observed { closed: false, in_flight: 0 });
        word.claim(2, limits(), Origin::Caller).expect("open");
        assert_eq!(word.release(1), None);
        assert_eq!((word.in_flight(2), word.in_flight(1)), (1, 0));
    }

    #[test]
    fn reopening_the_same_run_keeps_who_is_inside() {
        let word = open_word(1);
        word.claim(1, limits(), Origin::Caller).expect("open");
        assert_eq!(word.close(), 1);
        word.open(1);
        assert_eq!(word.observe(), Observed { closed: false, in_flight: 1 });
        assert_eq!(word.release(1), Some(change(1, 0)));
        assert_eq!(word.release(1), None);
    }

    #[test]
    fn who_is_parked_has_a_place_and_is_no_load() {
        let word = open_word(1);
        for _ in 0..3 {
            word.claim(1, limits(), Origin::Caller).expect("there is room for three");
        }
        let parked: Vec<_> = (0..3).filter_map(|_| word.park(1)).collect();
        let steps: Vec<_> = parked.iter().map(|c| (c.load_to, c.is_edge(limits()))).collect();
        assert_eq!(steps, [(2, false), (1, true), (0, true)], "below soft, and none");
        assert_eq!(word.park(1), None, "nobody is left");
        assert_eq!(word.claim(1, limits(), Origin::Caller), Err(Refusal::Full));
        assert!(word.take_used());
        assert_eq!(word.close_if_idle(1), Ok(()));
        assert_eq!(word.unpark(1, Origin::Caller), Err(Refusal::Closed));
        word.open(1);
        assert!(word.unpark(1, Origin::Caller).is_ok_and(|c| c.is_edge(limits())));
        assert_eq!(word.close_if_idle(1), Err(Busy::InFlight(1)));
        assert_eq!(word.release(1).map(|c| (c.to, c.load_to)), Some((2, 0)));
        assert_eq!(word.release_parked(1).map(|c| (c.to, c.load_to)), Some((1, 0)));
        word.open(2);
        assert_eq!(word.unpark(1, Origin::Caller), Err(Refusal::OtherRun));
        assert_eq!((word.release_parked(1), word.load(2)), (None, 0));
    }

    #[test]
    fn a_heartbeat_is_load_but_no_use_unless_it_turns_out_to_be_more() {
        let word = open_word(1);
        word.claim(1, limits(), Origin::Caller).expect("open");
        assert!(word.park(1).is_some_and(|c| c.used) && word.take_used());
        let heartbeat = || word.unpark(1, Origin::Heartbeat);
        assert!(heartbeat().is_ok_and(|c| (c.load_to, c.used) == (1, false)));
        assert!(word.park(1).is_some_and(|c| !c.used) && !word.take_used());
        assert!(heartbeat().is_ok());
        word.note_use(2);
        assert!(word.park(1).is_some_and(|c| !c.used), "that was another run");
        assert!(heartbeat().is_ok());
        word.note_use(1);
        assert!(word.park(1).is_some_and(|c| c.used) && word.take_used());
    }

    fn change(from: u32, to: u32) -> Change {
        Change { from, to, load_from: from, load_to: to, used: true }
    }

    #[test]
    fn edges_are_first_last_and_the_borders_of_bands() {
        let limits = Limits::new(5, Some(9));
        let ups: Vec<u32> = (0..9).filter(|&n| change(n, n + 1).is_edge(limits)).collect();
        let downs: Vec<u32> = (1..=9).filter(|&n| change(n, n - 1).is_edge(limits)).collect();
        assert_eq!(ups, [0, 4, 8]);
        assert_eq!(downs, [1, 5, 9]);
    }

    #[test]
    fn limits_are_made_consistent() {
        assert_eq!(Limits::new(0, None), Limits { soft: 1, hard: COUNT_MASK as u32 });
        assert_eq!(Limits::new(25, Some(20)), Limits { soft: 20, hard: 20 });
        assert_eq!(Limits::new(1, Some(0)).hard(), 1);
    }

    #[test]
    fn threads_never_enter_a_word_that_was_closed_as_idle() {
        const ROUNDS: u64 = 2_000;
        let word = Arc::new(open_word(1));
        let done = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (word, done) = (Arc::clone(&word), Arc::clone(&done));
                thread::spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let run = epoch(word.0.load(Ordering::Acquire)) >> EPOCH_SHIFT;
                        if word.claim(run, Limits::new(1, None), Origin::SamePool).is_ok() {
                            word.release(run).expect("the run cannot end while we are inside");
                        }
                    }
                })
            })
            .collect();
        for run in 1..=ROUNDS {
            while word.close_if_idle(run).is_err() {}
            assert_eq!(word.observe(), Observed { closed: true, in_flight: 0 });
            word.open(run + 1);
        }
        done.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().expect("a caller panicked");
        }
    }
}
