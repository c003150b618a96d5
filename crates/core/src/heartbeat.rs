//! Heartbeats: small exchanges at a steady pace, by which both ends of a connection see that the other
//! is there. They are passed on like everything else, but nobody needs a Machine for them.
//!
//! ```text
//!          begins                answered             silence, then begins again: an interval
//!  leader ───────► ≤ 128 bytes ───────► ≤ 128 bytes ─────────────────────────────► ...
//! ```
//!
//! An exchange is a word of its leader and the answer of the other. After `KNOWN_AFTER` of them at
//! steady intervals, with nothing in between, those that follow are heartbeats. Whatever has another
//! size or comes at another time ends that at once, and it must be seen again from the start.
//!
//! Usually the caller leads. The Machine leads only where it speaks while it owes no answer: else a
//! worker that waits for its next job, and asks again as soon as it is told that there is none, would
//! look as if the Machine pinged it.

use std::time::Duration;

use crate::mutant::Mutant;
use crate::time::Timestamp;

/// What is asked or answered by a heartbeat has so many bytes at most: the longest frame of WebSocket
/// control is 125 and two of head, Redis' `PING` 14, PostgreSQL's `SELECT 1` 15 and its answer 60 to 90.
pub const BYTES_MAX: usize = 128;
/// An exchange is over when nobody has said anything for so long, and the Machine may sleep again. Long
/// enough for what a program does in the wake of an answer; short against any usual interval.
pub const GRACE: Duration = Duration::from_millis(500);
/// So many exchanges in a row are no accident.
const KNOWN_AFTER: u8 = 4;
/// Nothing is damped that comes more often than once a second, less a quarter for jitter.
const INTERVAL_MIN: Duration = Duration::from_millis(750);
/// An interval may differ from the first by a quarter of it, or by this: timers of programs are late.
const JITTER: Duration = Duration::from_secs(1);

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who has connected.
    Caller,
    /// Who has accepted.
    Machine,
}

/// What something that was said is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Use, as far as anybody knows.
    Use,
    /// Part of a heartbeat.
    Heartbeat,
    /// Use, on a connection that had heartbeats: they were counted as none.
    UseAgain,
}

/// What a connection's heartbeats look like, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who begins.
    pub leader: Side,
    /// How often.
    pub interval: Duration,
    /// What the caller says.
    pub caller_bytes: u8,
    /// What the Machine says.
    pub machine_bytes: u8,
}

/// What is known of a connection's rhythm. See the module's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    speaker: Option<Side>,
    /// When that one began to speak; before anybody has spoken, when the connection began.
    since: Timestamp,
    /// Of the exchanges in a row; `None`: what was said last was none.
    leader: Option<Side>,
    /// When the last of them began.
    begun: Timestamp,
    exchanges: u8,
    /// Between the first two.
    interval: Option<Duration>,
    sizes: [u8; 2],
    mutant: Mutant,
}

/// How some bytes fit to what was said before.
enum Piece {
    /// More of what was never small.
    More,
    /// The speaker has not finished, and has said so many bytes now.
    GoesOn(u8),
    Answers(u8),
    BeginsInTime(u8),
    Begins(u8),
    Large,
}

impl Pulse {
    pub(crate) fn new(begun: Timestamp, mutant: Mutant) -> Self {
        Self {
            speaker: None,
            since: begun,
            leader: None,
            begun: Timestamp::ZERO,
            exchanges: 0,
            interval: None,
            sizes: [0; 2],
            mutant,
        }
    }

    /// The connection's heartbeats, once they are known.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        let (leader, interval) = (self.leader?, self.interval?);
        let [caller_bytes, machine_bytes] = self.sizes;
        let heartbeat = Heartbeat { leader, interval, caller_bytes, machine_bytes };
        self.is_known().then_some(heartbeat)
    }

    /// Whether so many bytes of this side would be part of a heartbeat now.
    pub fn expects(&self, side: Side, bytes: usize, now: Timestamp) -> bool {
        let known = match self.piece(side, bytes, now) {
            Piece::BeginsInTime(_) => KNOWN_AFTER <= self.exchanges,
            Piece::GoesOn(_) | Piece::Answers(_) => self.is_known(),
            Piece::More | Piece::Begins(_) | Piece::Large => false,
        };
        let pings = self.mutant == Mutant::PingIsUse && self.leader == Some(Side::Machine);
        known && self.mutant != Mutant::HeartbeatIsUse && !pings
    }

    /// This side has said so many bytes; none: it has ended.
    pub(crate) fn note(&mut self, side: Side, bytes: usize, now: Timestamp) -> Said {
        let before = self.is_known();
        match self.piece(side, bytes, now) {
            Piece::More => {}
            Piece::GoesOn(all) => self.sizes[side as usize] = all,
            Piece::Answers(size) => self.turn(side, size, now),
            Piece::BeginsInTime(size) => {
                self.interval.get_or_insert(now.since(self.begun));
                self.exchanges = self.exchanges.saturating_add(1);
                self.begun = now;
                self.turn(side, size, now);
            }
            Piece::Begins(size) if self.may_lead(side, now) => {
                (self.leader, self.begun) = (Some(side), now);
                (self.exchanges, self.interval) = (1, None);
                self.turn(side, size, now);
            }
            Piece::Begins(_) | Piece::Large => {
                (self.leader, self.exchanges, self.interval) = (None, 0, None);
                (self.speaker, self.since) = (Some(side), now);
            }
        }
        match (before, self.is_known()) {
            (_, true) => Said::Heartbeat,
            (true, false) => Said::UseAgain,
            (false, false) => Said::Use,
        }
    }

    fn is_known(&self) -> bool {
        KNOWN_AFTER < self.exchanges
    }

    fn turn(&mut self, side: Side, size: u8, now: Timestamp) {
        (self.speaker, self.since) = (Some(side), now);
        self.sizes[side as usize] = size;
    }

    fn piece(&self, side: Side, bytes: usize, now: Timestamp) -> Piece {
        let speaks = self.speaker == Some(side);
        if speaks && self.leader.is_none() && BYTES_MAX < bytes {
            return Piece::More;
        }
        let Some(size) = small(bytes) else { return Piece::Large };
        let goes_on = speaks && now.since(self.since) < GRACE;
        match (goes_on, self.leader) {
            (true, None) => Piece::More,
            (true, Some(_)) => {
                let all = usize::from(self.sizes[side as usize]) + bytes;
                small(all).map_or(Piece::Large, Piece::GoesOn)
            }
            (false, Some(leader)) if !speaks && leader != side => Piece::Answers(size),
            (false, Some(leader)) if !speaks && leader == side && self.is_in_time(now) => {
                Piece::BeginsInTime(size)
            }
            (false, Some(_) | None) => Piece::Begins(size),
        }
    }

    /// Whether the leader's next word may come now.
    fn is_in_time(&self, now: Timestamp) -> bool {
        if self.is_known() && self.mutant == Mutant::RhythmIgnored {
            return true;
        }
        let interval = now.since(self.begun);
        let first = self.interval.unwrap_or(interval);
        let jitter = JITTER.max(first / 4);
        // While it is frozen a Machine cannot be in time.
        let may_be_late = self.is_known() && self.leader == Some(Side::Machine);
        let late = first + jitter < interval && !may_be_late;
        let early = interval < INTERVAL_MIN || interval + jitter < first;
        !early && !late && GRACE <= now.since(self.since)
    }

    /// What a Machine says to who has asked is the answer, and what it says at once is a greeting.
    fn may_lead(&self, side: Side, now: Timestamp) -> bool {
        let unasked = self.speaker != Some(Side::Caller) && GRACE <= now.since(self.since);
        side == Side::Caller || unasked
    }
}

fn small(bytes: usize) -> Option<u8> {
    u8::try_from(bytes).ok().filter(|size| (1..=BYTES_MAX).contains(&usize::from(*size)))
}

#[cfg(test)]
mod tests;
