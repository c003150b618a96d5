use Side::{Caller, Machine};

use super::*;

/// One connection, and the time in milliseconds.
struct Talk {
    pulse: Pulse,
    millis: u64,
}

impl Talk {
    fn new() -> Self {
        let begun = Timestamp::from_micros(1_000_000_000);
        Self { pulse: Pulse::new(begun, Mutant::None), millis: 1_000_000 }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.millis * 1_000)
    }

    fn after(&mut self, millis: u64, side: Side, bytes: usize) -> Said {
        self.millis += millis;
        let (expected, before) = (self.pulse.expects(side, bytes, self.now()), self.pulse);
        let said = self.pulse.note(side, bytes, self.now());
        assert_eq!(expected, said == Said::Heartbeat, "{before:?} {side:?} {bytes}");
        said
    }

    /// An exchange that begins so long after the last one, and is answered a millisecond later.
    fn exchange(&mut self, interval: u64, leader: Side) -> [Said; 2] {
        let other = if leader == Caller { Machine } else { Caller };
        [self.after(interval - 1, leader, 6), self.after(1, other, 7)]
    }

    /// The same for all of these intervals: what was said last.
    fn exchanges(&mut self, intervals: &[u64], leader: Side) -> Said {
        let all = intervals.iter().map(|interval| self.exchange(*interval, leader)[1]);
        all.last().expect("there is one")
    }

    fn known(leader: Side) -> Self {
        let mut talk = Self::new();
        assert_eq!(talk.exchanges(&[30_000; 5], leader), Said::Heartbeat);
        talk
    }
}

#[test]
fn the_fifth_small_exchange_at_a_steady_pace_is_a_heartbeat_whoever_begins() {
    for leader in [Caller, Machine] {
        let mut talk = Talk::new();
        for _ in 0..4 {
            assert_eq!(talk.exchange(30_000, leader), [Said::Use; 2]);
            assert_eq!(talk.pulse.heartbeat(), None);
        }
        assert_eq!(talk.exchange(30_000, leader), [Said::Heartbeat; 2]);
        let heartbeat = talk.pulse.heartbeat().expect("it is known");
        let sizes = (heartbeat.caller_bytes, heartbeat.machine_bytes);
        assert_eq!(sizes, if leader == Caller { (6, 7) } else { (7, 6) });
        assert_eq!((heartbeat.leader, heartbeat.interval), (leader, Duration::from_secs(30)));
    }
}

#[test]
fn an_interval_may_differ_by_a_quarter_or_a_second_from_the_first() {
    let check = |first: u64, next: u64, wanted: Said| {
        let mut talk = Talk::new();
        talk.exchanges(&[first; 4], Caller);
        assert_eq!(talk.exchange(next, Caller)[0], wanted, "{next} after {first}");
    };
    for (first, early, late) in [(30_000, 22_500, 37_500), (2_000, 1_000, 3_000)] {
        check(first, early, Said::Heartbeat);
        check(first, early - 1, Said::Use);
        check(first, late, Said::Heartbeat);
        check(first, late + 1, Said::Use);
    }
    check(1_000, 750, Said::Heartbeat);
    check(1_000, 749, Said::Use);
}

#[test]
fn drift_is_measured_from_the_first_interval() {
    let mut talk = Talk::new();
    let said = talk.exchanges(&[1, 10_000, 11_200, 12_400, 12_500], Caller);
    assert_eq!(said, Said::Heartbeat);
    assert_eq!(talk.exchange(12_501, Caller)[0], Said::UseAgain);
}

#[test]
fn what_comes_more_often_than_once_a_second_is_use() {
    let mut talk = Talk::new();
    assert_eq!(talk.exchanges(&[749; 40], Caller), Said::Use);
}

#[test]
fn what_is_larger_is_use_on_either_side() {
    for (asked, answered) in [(129, 7), (6, 129)] {
        let mut talk = Talk::new();
        for _ in 0..10 {
            assert_eq!(talk.after(30_000, Caller, asked), Said::Use);
            assert_eq!(talk.after(1, Machine, answered), Said::Use);
        }
        let mut talk = Talk::known(Caller);
        let said = [talk.after(29_999, Caller, asked), talk.after(1, Machine, answered)];
        assert!(said.contains(&Said::UseAgain), "{said:?}");
    }
    let mut talk = Talk::new();
    for _ in 0..4 {
        talk.after(30_000, Caller, 128);
        talk.after(1, Machine, 128);
    }
    assert_eq!(talk.after(30_000, Caller, 128), Said::Heartbeat);
    assert_eq!(talk.after(1, Machine, 128), Said::Heartbeat);
}

#[test]
fn pieces_of_one_word_count_together() {
    let mut talk = Talk::known(Caller);
    assert_eq!(talk.after(29_999, Caller, 100), Said::Heartbeat);
    assert_eq!(talk.after(1, Caller, 28), Said::Heartbeat);
    assert_eq!(talk.after(1, Caller, 1), Said::UseAgain);
    let mut talk = Talk::known(Caller);
    talk.after(29_999, Caller, 6);
    assert_eq!(talk.after(499, Machine, 6), Said::Heartbeat);
    assert_eq!(talk.after(499, Machine, 6), Said::Heartbeat);
    assert_eq!(talk.after(1, Machine, 6), Said::UseAgain, "that is another word");
}

#[test]
fn another_exchange_in_between_ends_it_and_it_must_be_seen_anew() {
    let mut talk = Talk::known(Caller);
    assert_eq!(talk.exchange(10_000, Caller), [Said::UseAgain, Said::Use]);
    assert_eq!(talk.pulse.heartbeat(), None);
    assert_eq!(talk.exchanges(&[30_000; 3], Caller), Said::Use);
    assert_eq!(talk.exchange(30_000, Caller)[0], Said::Heartbeat);
}

#[test]
fn who_is_not_answered_and_asks_again_has_no_heartbeat() {
    let mut talk = Talk::new();
    for _ in 0..10 {
        assert_eq!(talk.after(30_000, Caller, 6), Said::Use);
    }
    let mut talk = Talk::known(Caller);
    assert_eq!(talk.after(30_000, Caller, 6), Said::Heartbeat);
    assert_eq!(talk.after(30_000, Caller, 6), Said::UseAgain);
    let mut talk = Talk::new();
    for _ in 0..10 {
        assert_eq!(talk.after(30_000, Machine, 6), Said::Use, "a ticker is none either");
    }
}

#[test]
fn who_asks_again_at_once_waits_and_is_not_pinged() {
    // A worker whose `BRPOP list 30` ends with nothing, or its long poll.
    let mut talk = Talk::new();
    talk.after(1, Caller, 20);
    for _ in 0..20 {
        assert_eq!(talk.after(30_000, Machine, 5), Said::Use);
        assert_eq!(talk.after(1, Caller, 20), Said::Use);
    }
    // Also if the server has greeted it.
    let mut talk = Talk::new();
    talk.after(499, Machine, 20);
    talk.after(1, Caller, 20);
    for _ in 0..20 {
        assert_eq!(talk.after(30_000, Machine, 5), Said::Use);
        assert_eq!(talk.after(1, Caller, 20), Said::Use);
    }
}

#[test]
fn both_may_have_their_own_rhythm_as_long_as_it_is_the_same() {
    let mut talk = Talk::new();
    let mut said = Vec::new();
    for _ in 0..6 {
        said.push(talk.after(20_000, Caller, 8));
        said.push(talk.after(10_000, Machine, 8));
    }
    assert_eq!(said[7], Said::Use);
    assert!(said[8..].iter().all(|said| *said == Said::Heartbeat), "{said:?}");
}

#[test]
fn a_machine_that_was_frozen_may_ping_late_but_never_early() {
    let mut talk = Talk::known(Machine);
    assert_eq!(talk.exchange(3_600_000, Machine), [Said::Heartbeat; 2]);
    assert_eq!(talk.exchange(22_499, Machine)[0], Said::UseAgain);
    let mut talk = Talk::known(Caller);
    assert_eq!(talk.exchange(3_600_000, Caller)[0], Said::UseAgain);
}

#[test]
fn a_query_to_a_machine_that_pings_is_use() {
    let mut talk = Talk::known(Machine);
    assert_eq!(talk.after(10_000, Caller, 20), Said::UseAgain);
    assert_eq!(talk.after(1, Machine, 20), Said::Use);
}

#[test]
fn an_end_is_no_heartbeat() {
    assert_eq!(Talk::known(Caller).after(29_999, Caller, 0), Said::UseAgain);
    assert_eq!(Talk::known(Caller).after(0, Machine, 0), Said::UseAgain);
}
