//! Whether an open connection is load: two bits, and a look at them from time to time.
//!
//! ```text
//!  a byte to the Machine ──► moved, owed          a byte to the caller ──► moved, not owed
//!
//!  look: moved ──► load, forget it      owed ──► load, at most OWED_MAX      else ──► it rests
//! ```
//!
//! In flight beats idle: who has asked last waits for an answer, however long nothing is said. A pool's
//! idle connection, a listener, a subscriber were told something last. One-way senders look as if they
//! waited for ever, hence the bound.

use std::time::Duration;

use crate::heartbeat::{GRACE, Heartbeat, Pulse, Said, Side};
use crate::mutant::Mutant;
use crate::time::Timestamp;

/// A connection to whose last byte nobody has answered is load for so long.
pub const OWED_MAX: Duration = Duration::from_secs(3600);
/// So many looks in an `auto_stop_after`: a connection rests after one to two of them without a byte.
const LOOKS: u32 = 16;
/// The longest time between two looks.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// The shortest; below it looking would cost more than it finds.
const LOOK_MIN: Duration = Duration::from_millis(10);

/// What a look finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is in use.
    Load,
    /// Nothing moves and nothing is owed.
    Rests,
}

/// See the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    moved: bool,
    owed: bool,
    silent: Duration,
    pulse: Pulse,
    mutant: Mutant,
}

impl Quiet {
    /// A connection on which nothing was said yet.
    pub fn new() -> Self {
        Self::begun(Timestamp::ZERO)
    }

    /// One that began then.
    pub fn begun(begun: Timestamp) -> Self {
        Self { pulse: Pulse::new(begun, Mutant::None), ..Self::with_mutant(Mutant::None) }
    }

    /// With a planted bug, for the simulation.
    #[doc(hidden)]
    pub fn with_mutant(mutant: Mutant) -> Self {
        let pulse = Pulse::new(Timestamp::ZERO, mutant);
        Self { moved: true, owed: false, silent: Duration::ZERO, pulse, mutant }
    }

    /// The caller has sent something, no heartbeat.
    pub fn note_asked(&mut self) {
        self.hear(Side::Caller, usize::MAX, Timestamp::ZERO);
    }

    /// The Machine has sent something, no heartbeat.
    pub fn note_answered(&mut self) {
        self.hear(Side::Machine, usize::MAX, Timestamp::ZERO);
    }

    /// One side has sent so many bytes; none: it has ended.
    pub fn hear(&mut self, side: Side, bytes: usize, now: Timestamp) -> Said {
        let said = self.pulse.note(side, bytes, now);
        self.moved = true;
        self.owed = match side {
            // Who answers a Machine's ping waits for nothing.
            Side::Caller => {
                let pings = self.heartbeat().is_some_and(|it| it.leader == Side::Machine);
                !pings || self.mutant == Mutant::PongIsOwed
            }
            Side::Machine => false,
        };
        said
    }

    /// Whether so many bytes would be part of a heartbeat now, and thus no use of the Machine.
    pub fn expects(&self, side: Side, bytes: usize, now: Timestamp) -> bool {
        self.pulse.expects(side, bytes, now)
    }

    /// The connection's heartbeats, if it is known for them.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        self.pulse.heartbeat()
    }

    /// The Machine has sent something that the caller has not taken yet.
    pub fn note_stuck(&mut self) {
        self.moved = true;
    }

    /// The caller has sent something that the Machine has not taken yet: that is owed, as an answer is.
    pub fn note_untaken(&mut self) {
        self.owed = true;
    }

    /// How long until the next look, for this `auto_stop_after`.
    pub fn pause(auto_stop_after: Duration) -> Duration {
        (auto_stop_after / LOOKS).clamp(LOOK_MIN, LOOK_MAX)
    }

    /// The same for this connection: after a heartbeat it rests soon.
    pub fn next_look(&self, auto_stop_after: Duration) -> Duration {
        let pause = Self::pause(auto_stop_after);
        if self.heartbeat().is_some() { pause.min(GRACE / 2) } else { pause }
    }

    /// Looks, so long after the last time.
    pub fn look(&mut self, pause: Duration) -> Verdict {
        if std::mem::take(&mut self.moved) {
            self.silent = Duration::ZERO;
            return Verdict::Load;
        }
        self.silent = self.silent.saturating_add(pause);
        let owed = self.owed && self.mutant != Mutant::OwedIsIdle;
        if owed && self.silent < OWED_MAX { Verdict::Load } else { Verdict::Rests }
    }
}

impl Default for Quiet {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);
    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);

    #[test]
    fn it_rests_when_nothing_moved_between_two_looks() {
        let mut quiet = Quiet::new();
        assert_eq!(quiet.look(PAUSE), Verdict::Load);
        assert_eq!(quiet.look(PAUSE), Verdict::Rests);
        quiet.note_answered();
        assert_eq!(quiet.look(PAUSE), Verdict::Load);
        assert_eq!(quiet.look(PAUSE), Verdict::Rests);
    }

    #[test]
    fn an_answer_that_is_owed_is_load_for_an_hour() {
        let mut quiet = Quiet::new();
        quiet.note_asked();
        let looks = OWED_MAX.as_secs() / PAUSE.as_secs();
        for _ in 0..looks {
            assert_eq!(quiet.look(PAUSE), Verdict::Load);
        }
        assert_eq!(quiet.look(PAUSE), Verdict::Rests);
        quiet.note_asked();
        quiet.note_answered();
        assert_eq!([quiet.look(PAUSE), quiet.look(PAUSE)], [Verdict::Load, Verdict::Rests]);
    }

    #[test]
    fn who_was_slow_to_take_an_answer_is_owed_nothing_after_it() {
        let mut quiet = Quiet::new();
        quiet.note_asked();
        quiet.note_answered();
        quiet.note_stuck();
        assert_eq!([quiet.look(PAUSE), quiet.look(PAUSE)], [Verdict::Load, Verdict::Rests]);
    }

    #[test]
    fn what_a_machine_does_not_take_is_load_for_an_hour() {
        let mut quiet = Quiet::new();
        quiet.note_asked();
        quiet.note_answered();
        for _ in 0..OWED_MAX.as_secs() / PAUSE.as_secs() {
            quiet.note_untaken();
            assert_eq!(quiet.look(PAUSE), Verdict::Load);
        }
        quiet.note_untaken();
        assert_eq!(quiet.look(PAUSE), Verdict::Rests);
    }

    #[test]
    fn looks_are_neither_too_many_nor_too_few() {
        assert_eq!(Quiet::pause(Duration::from_millis(100)), LOOK_MIN);
        assert_eq!(Quiet::pause(Duration::from_secs(16)), Duration::from_secs(1));
        assert_eq!(Quiet::pause(Duration::from_secs(300)), LOOK_MAX);
    }

    /// Six exchanges, one every 30 s, with so much of it between the word and the answer.
    fn after_heartbeats(leader: Side, answer: Duration) -> Quiet {
        let mut quiet = Quiet::new();
        for beat in 0..6 {
            let begin = NOW + beat * Duration::from_secs(30);
            match leader {
                Side::Caller => {
                    quiet.hear(Side::Caller, 6, begin);
                    quiet.hear(Side::Machine, 7, begin + answer);
                }
                Side::Machine => {
                    quiet.hear(Side::Machine, 6, begin);
                    quiet.hear(Side::Caller, 7, begin + answer);
                }
            }
        }
        quiet
    }

    #[test]
    fn an_answered_heartbeat_is_over_after_a_moment_whoever_began() {
        for leader in [Side::Caller, Side::Machine] {
            let mut quiet = after_heartbeats(leader, Duration::from_millis(1));
            let pause = quiet.next_look(Duration::from_secs(300));
            assert!(2 * pause <= GRACE, "{pause:?}");
            assert_eq!([quiet.look(pause), quiet.look(pause)], [Verdict::Load, Verdict::Rests]);
            assert_eq!(quiet.next_look(Duration::from_millis(100)), LOOK_MIN);
        }
    }

    #[test]
    fn a_heartbeat_that_is_not_answered_is_owed_its_answer() {
        let mut quiet = after_heartbeats(Side::Caller, Duration::from_millis(1));
        let said = quiet.hear(Side::Caller, 6, NOW + Duration::from_secs(180));
        assert_eq!(said, Said::Heartbeat);
        assert_eq!([quiet.look(PAUSE), quiet.look(PAUSE)], [Verdict::Load; 2]);
    }
}
