//! Connections that stay: the caller asks, the Machine answers, then nothing for a while, then again.

use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::balancer::{Claim, Event};
use perch_core::heartbeat::{GRACE, Said, Side};
use perch_core::quiet::{Quiet, Verdict};
use perch_core::time::Timestamp;

use crate::plan::{id, index};
use crate::server::Process;
use crate::world::{Ev, World};

/// Of the callers whose Machine may sleep under them, in percent.
const TALKERS: usize = 40;
/// Of these, callers that have something to say at a steady pace, in percent.
const BEATERS: usize = 40;
/// How often such a caller says something else in between, in percent.
const REAL_QUESTIONS: usize = 15;
/// What comes so soon after the last is no heartbeat.
const TOO_SOON: Duration = Duration::from_millis(700);
/// The size of all questions and answers.
const BYTES: usize = 10;
/// How long a Machine thinks about a heartbeat.
const BEAT_WORK: Duration = Duration::from_millis(1);
/// How often an answer is looked for that a frozen Machine owes: only a user freezes it then.
const FROZEN_PAUSE: Duration = Duration::from_secs(1);

/// One such connection.
#[derive(Debug)]
pub(crate) struct Talk {
    quiet: Quiet,
    /// Questions that are still to come.
    left: usize,
    /// Between two questions of a caller that has heartbeats.
    interval: Option<Duration>,
    /// The last question.
    asked_at: Timestamp,
    /// An answer is owed.
    asked: bool,
    /// The next question waits for the Machine.
    pub(crate) waits: bool,
}

impl World {
    /// Whether this caller stays; then the rest of its life is here.
    pub(crate) fn begin_talk(&mut self, name: u64) -> bool {
        let after = self.claim(name).and_then(|claim| claim.endpoint().naps);
        let origin = self.callers.get(&name).map(|caller| caller.origin);
        let (Some(after), Some(Origin::Caller)) = (after, origin) else { return false };
        // Who comes later is expected to be served soon.
        if !self.is_chaos() || !self.choices.chance(TALKERS) {
            return false;
        }
        let beats = self.choices.chance(BEATERS);
        let interval = beats.then(|| self.choices.millis(1_000, 4_000));
        let left = 1 + self.choices.below(if beats { 30 } else { 3 });
        let quiet = Quiet::with_mutant(self.mutant);
        let asked_at = Timestamp::ZERO;
        let talk = Talk { quiet, left, interval, asked_at, asked: false, waits: false };
        if let Some(proxy) = &mut self.proxy {
            proxy.talks.insert(name, talk);
        }
        self.later(Quiet::pause(after), Ev::Look(name));
        self.ask(name);
        true
    }

    fn claim(&self, name: u64) -> Option<&Claim> {
        self.proxy.as_ref()?.serving.get(&name)
    }

    /// The talk of a connection that still has its place.
    fn talk(&mut self, name: u64) -> Option<&mut Talk> {
        let proxy = self.proxy.as_mut()?;
        if !proxy.serving.contains_key(&name) {
            proxy.talks.remove(&name);
        }
        proxy.talks.get_mut(&name)
    }

    fn ask(&mut self, name: u64) {
        let now = self.now;
        let work = self.callers.get(&name).map_or(Duration::ZERO, |caller| caller.work);
        let Some(talk) = self.talk(name) else { return };
        (talk.asked, talk.waits) = (true, false);
        let too_soon = now.since(talk.asked_at) < TOO_SOON;
        talk.asked_at = now;
        let said = talk.quiet.hear(Side::Caller, BYTES, now);
        let work = if talk.interval.is_some() { BEAT_WORK } else { work };
        self.said(name, said, too_soon);
        self.later(work, Ev::Answer(name));
    }

    /// As the shell has it; whatever the balancer thinks of it, who asks again at once uses the Machine.
    fn said(&mut self, name: u64, said: Said, too_soon: bool) {
        if said == Said::UseAgain
            && let Some(claim) = self.claim(name)
        {
            claim.note_use();
        }
        if said != Said::Heartbeat || too_soon {
            self.note_use(name);
        }
    }

    /// As what the next word of this side counts.
    fn origin(&self, name: u64, side: Side) -> Origin {
        let talk = self.proxy.as_ref().and_then(|proxy| proxy.talks.get(&name));
        match talk.is_some_and(|talk| talk.quiet.expects(side, BYTES, self.now)) {
            true => Origin::Heartbeat,
            false => Origin::Caller,
        }
    }

    pub(crate) fn answer(&mut self, name: u64) {
        let Some(claim) = self.claim(name) else { return };
        let (machine, run) = (index(claim.endpoint().machine), claim.endpoint().run);
        let after = claim.endpoint().naps.unwrap_or_default();
        if let Process::Frozen { .. } = self.truths[machine].process {
            return self.later(FROZEN_PAUSE, Ev::Answer(name));
        }
        if !self.truths[machine].process.is_running(run) {
            return;
        }
        let now = self.now;
        let Some(talk) = self.talk(name) else { return };
        talk.asked = false;
        let too_soon = now.since(talk.asked_at) < TOO_SOON;
        let said = talk.quiet.hear(Side::Machine, BYTES, now);
        let (left, interval) = (talk.left, talk.interval);
        talk.left = left.saturating_sub(1);
        self.said(name, said, too_soon && interval.is_none());
        if left == 0 {
            return self.finish(name);
        }
        let pause = match interval {
            Some(_) if self.choices.chance(REAL_QUESTIONS) => self.choices.millis(1, 600),
            Some(interval) => interval,
            None => self.choices.millis(0, 3 * after.as_millis() as u64),
        };
        self.later(pause, Ev::Talk(name));
    }

    /// The next question comes: through, or the Machine has to be woken for it.
    pub(crate) fn go_on(&mut self, name: u64) {
        let origin = self.origin(name, Side::Caller);
        if let Some(claim) = self.claim(name)
            && claim.is_parked()
        {
            self.check_nobody_else_is_needed(index(claim.endpoint().machine));
        }
        if self.is_ready(name) {
            return self.ask(name);
        }
        let Some(claim) = self.claim(name) else { return };
        let (machine, run) = (claim.endpoint().machine, claim.endpoint().run);
        if let Ok(edge) = claim.unpark(origin) {
            self.edge(edge);
            return self.ask(name);
        }
        if let Some(talk) = self.talk(name) {
            talk.waits = true;
        }
        if let Some(proxy) = &mut self.proxy {
            proxy.books[index(machine)].beats |= origin == Origin::Heartbeat;
        }
        let recall = Event::Recall { machine, run, origin };
        self.balancer_event(self.plan.owner(index(machine)), recall);
    }

    /// The balancer lets all go on who wait for this Machine.
    pub(crate) fn recalled(&mut self, machine: usize) {
        let Some(proxy) = &self.proxy else { return };
        let waiting = proxy.talks.iter().filter(|(name, talk)| {
            let claim = proxy.serving.get(name);
            talk.waits && claim.is_some_and(|c| c.endpoint().machine == id(machine))
        });
        for name in waiting.map(|(name, _)| *name).collect::<Vec<_>>() {
            let Some(claim) = self.claim(name) else { continue };
            let run = claim.endpoint().run;
            match claim.go_on(self.origin(name, Side::Caller)) {
                Ok(edge) => {
                    if matches!(self.truths[machine].process, Process::Frozen { run: r, .. } if r == run)
                    {
                        self.fail(&format!("a connection goes on into {}, frozen", id(machine)));
                    }
                    self.edge(edge);
                    // Nothing comes between here: who may not read now would be recalled for ever.
                    if !self.is_ready(name) {
                        self.fail("a connection was let go on, and may not read");
                    }
                    self.ask(name);
                }
                Err(_) => self.finish(name),
            }
        }
    }

    /// Whether the shell would read the caller's next bytes.
    fn is_ready(&self, name: u64) -> bool {
        let Some(claim) = self.claim(name) else { return false };
        let app = self.plan.owner(index(claim.endpoint().machine));
        let balancer = self.proxy.as_ref().and_then(|proxy| proxy.balancer(app));
        claim.is_ready() || balancer.is_some_and(|balancer| balancer.goes_on(claim, self.now))
    }

    pub(crate) fn look(&mut self, name: u64) {
        let Some(after) = self.claim(name).and_then(|claim| claim.endpoint().naps) else { return };
        let Some(talk) = self.talk(name) else { return };
        let pause = talk.quiet.next_look(after);
        let rests = talk.quiet.look(pause) == Verdict::Rests && !talk.waits;
        if rests && let Some(edge) = self.claim(name).map(Claim::park) {
            self.edge(edge);
        }
        self.later(self.next_look(name, after), Ev::Look(name));
    }

    /// Whoever it is that comes now to a Machine, it must not be awake for heartbeats alone.
    fn check_nobody_else_is_needed(&mut self, machine: usize) {
        let Some(proxy) = &self.proxy else { return };
        let book = &proxy.books[machine];
        let used_at = book.idle_from.max(book.used_at).max(book.woke_at);
        let idle_at = used_at + self.plan.app_of(machine).after().max(GRACE);
        let moments = idle_at + Duration::from_millis(1);
        let may_sleep = proxy.is_server_ready() && !book.view.leased && !book.is_asked();
        let idle = self.belief(machine).is_some_and(|b| b.open && !b.asked && b.in_flight == 0);
        if moments < self.now && may_sleep && idle && self.wrong_in_region(machine).is_none() {
            self.fail(&format!("{} is awake for nothing but heartbeats", id(machine)));
        }
    }

    fn next_look(&self, name: u64, after: Duration) -> Duration {
        let talk = self.proxy.as_ref().and_then(|proxy| proxy.talks.get(&name));
        talk.map_or_else(|| Quiet::pause(after), |talk| talk.quiet.next_look(after))
    }

    /// A byte is use.
    fn note_use(&mut self, name: u64) {
        let now = self.now;
        let Some(proxy) = &mut self.proxy else { return };
        let Some(claim) = proxy.serving.get(&name) else { return };
        let book = &mut proxy.books[index(claim.endpoint().machine)];
        if book.view.run == claim.endpoint().run {
            (book.used_at, book.in_use) = (now, true);
        }
    }

    /// Whether somebody waits for an answer of this run.
    pub(crate) fn owes(&self, machine: usize, run: u64) -> bool {
        let Some(proxy) = &self.proxy else { return false };
        proxy.talks.iter().any(|(name, talk)| {
            let claim = proxy.serving.get(name).map(Claim::endpoint);
            talk.asked && claim.is_some_and(|e| (e.machine, e.run) == (id(machine), run))
        })
    }

    /// Whether a connection waits for this Machine.
    pub(crate) fn is_recalled(&self, machine: usize) -> bool {
        let Some(proxy) = &self.proxy else { return false };
        proxy.talks.iter().any(|(name, talk)| {
            let claim = proxy.serving.get(name).map(Claim::endpoint);
            talk.waits && claim.is_some_and(|e| e.machine == id(machine))
        })
    }

    /// At the end nobody waits to go on.
    pub(crate) fn check_talks(&mut self) {
        let Some(proxy) = &self.proxy else { return };
        let waits = |(name, talk): (&u64, &Talk)| talk.waits && proxy.serving.contains_key(name);
        if proxy.talks.iter().any(waits) {
            self.fail("a connection waits for its Machine at the end");
        }
    }
}
