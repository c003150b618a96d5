//! Connections that stay: the caller asks, the Machine answers, then nothing for a while, then again.

use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::balancer::{Claim, Event};
use perch_core::quiet::{Quiet, Verdict};

use crate::plan::{id, index};
use crate::server::Process;
use crate::world::{Ev, World};

/// Of the callers whose Machine may sleep under them, in percent.
const TALKERS: usize = 40;
/// How often an answer is looked for that a frozen Machine owes: only a user freezes it then.
const FROZEN_PAUSE: Duration = Duration::from_secs(1);

/// One such connection.
#[derive(Debug)]
pub(crate) struct Talk {
    quiet: Quiet,
    /// Questions that are still to come.
    left: usize,
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
        let left = 1 + self.choices.below(3);
        let quiet = Quiet::with_mutant(self.mutant);
        let talk = Talk { quiet, left, asked: false, waits: false };
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
        let work = self.callers.get(&name).map_or(Duration::ZERO, |caller| caller.work);
        let Some(talk) = self.talk(name) else { return };
        (talk.asked, talk.waits) = (true, false);
        talk.quiet.note_asked();
        self.note_use(name);
        self.later(work, Ev::Answer(name));
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
        self.note_use(name);
        let Some(talk) = self.talk(name) else { return };
        talk.asked = false;
        talk.quiet.note_answered();
        if talk.left == 0 {
            return self.finish(name);
        }
        talk.left -= 1;
        let pause = self.choices.millis(0, 3 * after.as_millis() as u64);
        self.later(pause, Ev::Talk(name));
    }

    /// The next question comes: through, or the Machine has to be woken for it.
    pub(crate) fn go_on(&mut self, name: u64) {
        if self.is_ready(name) {
            return self.ask(name);
        }
        let Some(claim) = self.claim(name) else { return };
        let (machine, run) = (claim.endpoint().machine, claim.endpoint().run);
        if let Ok(edge) = claim.unpark(Origin::Caller) {
            self.edge(edge);
            return self.ask(name);
        }
        if let Some(talk) = self.talk(name) {
            talk.waits = true;
        }
        self.balancer_event(self.plan.owner(index(machine)), Event::Recall { machine, run });
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
            match claim.go_on(Origin::Caller) {
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
        let pause = Quiet::pause(after);
        let Some(talk) = self.talk(name) else { return };
        let rests = talk.quiet.look(pause) == Verdict::Rests && !talk.waits;
        if rests && let Some(edge) = self.claim(name).map(Claim::park) {
            self.edge(edge);
        }
        self.later(pause, Ev::Look(name));
    }

    /// A byte is use.
    fn note_use(&mut self, name: u64) {
        let now = self.now;
        let Some(proxy) = &mut self.proxy else { return };
        let Some(claim) = proxy.serving.get(&name) else { return };
        let book = &mut proxy.books[index(claim.endpoint().machine)];
        if book.view.run == claim.endpoint().run {
            book.used_at = now;
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
