//! Connections that stay: the caller asks, the Machine answers, then nothing for a while, then again. On some
//! the Machine pings in between, and the caller answers that.

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
/// Of these, connections on which something is said at a steady pace, in percent.
const BEATERS: usize = 40;
/// Of these, connections on which it is the Machine that begins, in percent.
const PINGS: usize = 40;
/// How often such a caller says something else in between, in percent.
const REAL_QUESTIONS: usize = 15;
/// What comes so soon after the last is no heartbeat.
const TOO_SOON: Duration = Duration::from_millis(700);
/// The size of all questions and answers.
const BYTES: usize = 10;
/// How long either side thinks about a heartbeat.
const BEAT_WORK: Duration = Duration::from_millis(1);
/// How often it is looked for what a frozen Machine says next. An answer it owes only if a user froze it.
const FROZEN_PAUSE: Duration = Duration::from_secs(1);

/// One such connection.
#[derive(Debug)]
pub(crate) struct Talk {
    quiet: Quiet,
    /// Questions that are still to come.
    left: usize,
    beat: Option<Beat>,
    /// When the last exchange began.
    begun_at: Timestamp,
    /// When anybody last said something.
    heard_at: Timestamp,
    /// An answer is owed.
    asked: bool,
    /// What the caller says next answers a ping.
    pinged: bool,
    /// The caller's next word waits for the Machine.
    pub(crate) waits: bool,
}

/// What is said at a steady pace.
#[derive(Debug, Clone, Copy)]
struct Beat {
    leader: Side,
    interval: Duration,
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
        let beat = beats.then(|| self.draw_beat());
        let left = 1 + self.choices.below(if beats { 30 } else { 3 });
        let talk = Talk {
            quiet: Quiet::with_mutant(self.mutant),
            left,
            beat,
            begun_at: Timestamp::ZERO,
            heard_at: self.now,
            asked: false,
            pinged: false,
            waits: false,
        };
        if let Some(proxy) = &mut self.proxy {
            proxy.talks.insert(name, talk);
        }
        self.later(Quiet::pause(after), Ev::Look(name));
        self.ask(name);
        true
    }

    fn draw_beat(&mut self) -> Beat {
        let interval = self.choices.millis(1_000, 4_000);
        let leader = if self.choices.chance(PINGS) { Side::Machine } else { Side::Caller };
        Beat { leader, interval }
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

    /// The caller's next word gets through.
    fn speak(&mut self, name: u64) {
        let Some(talk) = self.talk(name) else { return };
        talk.waits = false;
        match std::mem::take(&mut talk.pinged) {
            true => self.pong(name),
            false => self.ask(name),
        }
    }

    fn ask(&mut self, name: u64) {
        let now = self.now;
        let work = self.callers.get(&name).map_or(Duration::ZERO, |caller| caller.work);
        let Some(talk) = self.talk(name) else { return };
        talk.asked = true;
        let too_soon = now.since(talk.begun_at) < TOO_SOON;
        (talk.begun_at, talk.heard_at) = (now, now);
        let said = talk.quiet.hear(Side::Caller, BYTES, now);
        let work = if talk.beat.is_some() { BEAT_WORK } else { work };
        self.said(name, said, too_soon);
        self.later(work, Ev::Answer(name));
    }

    /// The Machine says something unasked, as soon as it is awake.
    pub(crate) fn ping(&mut self, name: u64) {
        let Some(machine) = self.speaker(name, Ev::Ping(name)) else { return };
        let parked = self.claim(name).is_some_and(Claim::is_parked);
        if parked {
            self.check_nobody_else_is_needed(machine);
        }
        let (now, origin) = (self.now, self.origin(name, Side::Machine));
        let Some(talk) = self.talk(name) else { return };
        (talk.asked, talk.pinged) = (false, true);
        let too_soon = now.since(talk.begun_at) < TOO_SOON;
        (talk.begun_at, talk.heard_at) = (now, now);
        let said = talk.quiet.hear(Side::Machine, BYTES, now);
        self.said(name, said, too_soon);
        // It may have been closed since.
        let edge = self.claim(name).filter(|_| parked).map(|claim| claim.unpark(origin));
        self.edge(edge.and_then(Result::ok).flatten());
        self.later(BEAT_WORK, Ev::Talk(name));
    }

    /// Once the pings are known nobody waits for an answer to this answer.
    fn pong(&mut self, name: u64) {
        let now = self.now;
        let Some(talk) = self.talk(name) else { return };
        talk.heard_at = now;
        let said = talk.quiet.hear(Side::Caller, BYTES, now);
        talk.asked = said != Said::Heartbeat;
        self.said(name, said, false);
        self.exchanged(name);
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
        if self.speaker(name, Ev::Answer(name)).is_none() {
            return;
        }
        let now = self.now;
        let Some(talk) = self.talk(name) else { return };
        (talk.asked, talk.heard_at) = (false, now);
        let too_soon = now.since(talk.begun_at) < TOO_SOON;
        let said = talk.quiet.hear(Side::Machine, BYTES, now);
        let beats = talk.beat.is_some();
        self.said(name, said, too_soon && !beats);
        self.exchanged(name);
    }

    /// The Machine that has the floor; frozen, it is asked again later.
    fn speaker(&mut self, name: u64, again: Ev) -> Option<usize> {
        let endpoint = self.claim(name)?.endpoint();
        let (machine, run) = (index(endpoint.machine), endpoint.run);
        if let Process::Frozen { .. } = self.truths[machine].process {
            self.later(FROZEN_PAUSE, again);
            return None;
        }
        self.truths[machine].process.is_running(run).then_some(machine)
    }

    /// Both have spoken: who does so next, and when.
    fn exchanged(&mut self, name: u64) {
        let after = self.claim(name).and_then(|claim| claim.endpoint().naps).unwrap_or_default();
        let Some(talk) = self.talk(name) else { return };
        let (left, beat) = (talk.left, talk.beat);
        talk.left = left.saturating_sub(1);
        if left == 0 {
            return self.finish(name);
        }
        let question = Ev::Talk(name);
        let (pause, next) = match beat {
            Some(_) if self.choices.chance(REAL_QUESTIONS) => {
                (self.choices.millis(1, 600), question)
            }
            Some(Beat { leader: Side::Caller, interval }) => (interval, question),
            Some(Beat { leader: Side::Machine, interval }) => (interval, Ev::Ping(name)),
            None => (self.choices.millis(0, 3 * after.as_millis() as u64), question),
        };
        self.later(pause, next);
    }

    /// The caller says something: it gets through, or the Machine has to be woken for it.
    pub(crate) fn go_on(&mut self, name: u64) {
        let origin = self.origin(name, Side::Caller);
        if let Some(claim) = self.claim(name)
            && claim.is_parked()
        {
            self.check_nobody_else_is_needed(index(claim.endpoint().machine));
        }
        if self.is_ready(name) {
            return self.speak(name);
        }
        let Some(claim) = self.claim(name) else { return };
        let (machine, run) = (claim.endpoint().machine, claim.endpoint().run);
        if let Ok(edge) = claim.unpark(origin) {
            self.edge(edge);
            return self.speak(name);
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
                    let process = self.truths[machine].process;
                    let frozen = matches!(process, Process::Frozen { run: r, .. } if r == run);
                    if frozen && self.proxy_is_told() {
                        self.fail(&format!("a connection goes on into {}, frozen", id(machine)));
                    }
                    self.edge(edge);
                    // Nothing comes between here, unless one of them leaves as the last whom a drain waits for: who
                    // may not read now would be recalled for ever.
                    let drained = self.belief(machine).is_some_and(|belief| belief.drained);
                    if !drained && !self.is_ready(name) {
                        self.fail("a connection was let go on, and may not read");
                    }
                    self.speak(name);
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
        let now = self.now;
        let Some(after) = self.claim(name).and_then(|claim| claim.endpoint().naps) else { return };
        let Some(talk) = self.talk(name) else { return };
        let pause = talk.quiet.next_look(after);
        let rests = talk.quiet.look(pause) == Verdict::Rests && !talk.waits;
        let owed = talk.asked || talk.waits;
        let silent = now.since(talk.heard_at);
        if !rests && !owed && Quiet::pause(after) * 2 < silent {
            self.fail("a connection is load on which nobody waits for anything");
            return;
        }
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
        let awaited = self.is_awaited(machine, book.view.run);
        let may_sleep =
            proxy.is_server_ready() && !book.view.leased && !book.is_asked() && !awaited;
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
