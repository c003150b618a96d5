use super::*;

const TIMES: Times = Times {
    interval: Duration::from_secs(10),
    timeout: Duration::from_secs(2),
    grace: Duration::from_secs(5),
};

fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(millis * 1_000)
}

fn started(now: Timestamp) -> Check {
    let mut check = Check::new(TIMES);
    check.handle_event(Event::Started, now);
    check
}

/// The try that is wanted now.
fn probe(check: &mut Check) -> u64 {
    let Some(Effect::Probe { probe, .. }) = check.poll_effect() else {
        panic!("a try was expected: {check:?}");
    };
    probe
}

/// Ends the try that is wanted now.
fn answer(check: &mut Check, outcome: Outcome, now: Timestamp) {
    let probe = probe(check);
    check.handle_event(Event::Done { probe, outcome }, now);
}

#[test]
fn after_a_start_it_is_tried_every_200_ms_until_two_intervals_are_over() {
    let mut check = started(at(0));
    let mut tries = Vec::new();
    let mut now = at(0);
    while now < at(50_000) {
        tries.push(now.as_micros() / 1_000);
        answer(&mut check, Outcome::Failed, now + Duration::from_millis(1));
        now = check.poll_timeout().expect("it goes on");
        check.handle_timeout(now);
    }
    let fast: Vec<u64> = (0..=100).map(|number| number * 200).collect();
    assert_eq!(tries[..101], fast[..]);
    assert_eq!(tries[101..], [30_000, 40_000]);
}

#[test]
fn a_pass_ends_the_fast_tries() {
    let mut check = started(at(0));
    answer(&mut check, Outcome::Failed, at(1));
    check.handle_timeout(at(200));
    answer(&mut check, Outcome::Passed, at(203));
    assert_eq!(check.status(), Status::Passing);
    assert_eq!(check.poll_timeout(), Some(at(10_200)));
}

#[test]
fn failures_count_when_the_grace_period_is_over() {
    let mut check = started(at(0));
    answer(&mut check, Outcome::Failed, at(4_999));
    assert_eq!(check.status(), Status::Warning);
    check.handle_timeout(at(5_000));
    answer(&mut check, Outcome::Failed, at(5_000));
    assert_eq!(check.status(), Status::Critical);
    check.handle_timeout(at(5_200));
    answer(&mut check, Outcome::Passed, at(5_200));
    assert_eq!(check.status(), Status::Passing);
}

#[test]
fn without_a_grace_period_the_first_failure_counts() {
    let mut check = Check::new(Times { grace: Duration::ZERO, ..TIMES });
    check.handle_event(Event::Started, at(0));
    answer(&mut check, Outcome::Failed, at(0));
    assert_eq!(check.status(), Status::Critical);
}

#[test]
fn a_sleeper_is_not_touched_and_keeps_its_last_result() {
    let mut check = started(at(0));
    answer(&mut check, Outcome::Passed, at(1));
    check.handle_event(Event::Rested, at(2));
    check.handle_timeout(at(1_000_000));
    assert_eq!((check.poll_effect(), check.poll_timeout()), (None, None));
    assert_eq!(check.status(), Status::Passing);
}

#[test]
fn after_a_resume_the_last_result_stands_and_grace_begins_anew() {
    let mut check = started(at(0));
    answer(&mut check, Outcome::Passed, at(1));
    check.handle_event(Event::Rested, at(2));
    check.handle_event(Event::Resumed, at(60_000));
    assert_eq!((check.status(), check.poll_effect()), (Status::Passing, None));
    assert_eq!(check.poll_timeout(), Some(at(70_000)));
    check.handle_event(Event::Rested, at(61_000));
    let mut check = Check { times: Times { grace: Duration::from_secs(30), ..TIMES }, ..check };
    check.handle_event(Event::Resumed, at(100_000));
    check.handle_timeout(at(110_000));
    answer(&mut check, Outcome::Failed, at(110_001));
    assert_eq!(check.status(), Status::Passing, "it is in its grace period");
}

#[test]
fn a_critical_one_is_tried_at_once_after_a_resume_and_stays_critical_until_it_passes() {
    let mut check = started(at(0));
    answer(&mut check, Outcome::Failed, at(6_000));
    check.handle_event(Event::Rested, at(7_000));
    check.handle_event(Event::Resumed, at(60_000));
    answer(&mut check, Outcome::Failed, at(60_001));
    assert_eq!(check.status(), Status::Critical);
    assert_eq!(check.poll_timeout(), Some(at(60_200)));
}

#[test]
fn what_was_under_way_when_it_fell_asleep_counts_for_nothing() {
    let mut check = started(at(0));
    let old = probe(&mut check);
    check.handle_event(Event::Rested, at(1));
    check.handle_event(Event::Done { probe: old, outcome: Outcome::Passed }, at(2));
    assert_eq!((check.status(), check.poll_timeout()), (Status::Warning, None));
    check.handle_event(Event::Started, at(3));
    check.handle_event(Event::Done { probe: old, outcome: Outcome::Passed }, at(4));
    assert_eq!(check.status(), Status::Warning);
}

#[test]
fn a_new_run_begins_without_a_result() {
    let mut check = started(at(0));
    answer(&mut check, Outcome::Passed, at(1));
    check.handle_event(Event::Started, at(2));
    assert_eq!(check.status(), Status::Warning);
    probe(&mut check);
}

#[test]
fn only_fast_tries_wait_for_a_program_that_does_not_listen_yet() {
    let mut check = started(at(0));
    let patient = Some(Effect::Probe { probe: 1, patience: FAST_INTERVAL });
    assert_eq!(check.poll_effect(), patient);
    check.handle_event(Event::Done { probe: 1, outcome: Outcome::Passed }, at(1));
    check.handle_timeout(at(10_000));
    assert_eq!(check.poll_effect(), Some(Effect::Probe { probe: 2, patience: Duration::ZERO }));
}

/// Random lives: whatever happens, the promises of the module's head hold.
#[test]
fn any_life_keeps_the_rules() {
    for seed in 0..2_000 {
        live(seed);
    }
}

struct Life {
    random: u64,
    now: Timestamp,
    check: Check,
    up: bool,
    under_way: Option<u64>,
    began: Timestamp,
    last_try: Option<Timestamp>,
}

fn live(seed: u64) {
    let mut life = Life {
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        now: at(1_000),
        check: Check::new(TIMES),
        up: false,
        under_way: None,
        began: at(0),
        last_try: None,
    };
    for _ in 0..200 {
        life.step();
        life.look();
    }
}

impl Life {
    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn step(&mut self) {
        let millis = self.draw(3_000);
        self.now = self.now + Duration::from_millis(millis);
        let before = self.check.status();
        match self.draw(8) {
            0 => self.begin(Event::Started),
            1 if !self.up => {
                self.begin(Event::Resumed);
                assert_eq!(self.check.status(), before, "the last result stands");
            }
            2 => {
                self.check.handle_event(Event::Rested, self.now);
                self.up = false;
                assert_eq!(self.check.status(), before);
            }
            3 => self.done(Outcome::Failed, before),
            4 => self.done(Outcome::Passed, before),
            5 => {
                let stale = Event::Done { probe: 1_000_000, outcome: Outcome::Failed };
                self.check.handle_event(stale, self.now);
                assert_eq!(self.check.status(), before);
            }
            _ => {
                self.now = self.check.poll_timeout().unwrap_or(self.now).max(self.now);
                self.check.handle_timeout(self.now);
            }
        }
    }

    fn begin(&mut self, event: Event) {
        self.check.handle_event(event, self.now);
        (self.up, self.under_way, self.last_try) = (true, None, None);
        self.began = self.now;
    }

    fn done(&mut self, outcome: Outcome, before: Status) {
        let Some(probe) = self.under_way.take() else { return };
        self.check.handle_event(Event::Done { probe, outcome }, self.now);
        let wanted = match outcome {
            _ if !self.up => before,
            Outcome::Passed => Status::Passing,
            Outcome::Failed if self.now < self.began + TIMES.grace => before,
            Outcome::Failed => Status::Critical,
        };
        assert_eq!(self.check.status(), wanted);
    }

    fn look(&mut self) {
        if let Some(Effect::Probe { probe, .. }) = self.check.poll_effect() {
            assert!(self.up, "a sleeper was touched");
            assert_eq!(self.under_way, None, "two tries at once");
            let soon = self.last_try.map(|last| self.now.since(last));
            assert!(soon.is_none_or(|since| FAST_INTERVAL <= since), "{soon:?}");
            (self.under_way, self.last_try) = (Some(probe), Some(self.now));
        }
        if !self.up {
            assert_eq!(self.check.poll_timeout(), None);
        } else if self.under_way.is_none() {
            assert!(self.check.poll_timeout().is_some(), "a Machine that runs is looked at again");
        }
    }
}
