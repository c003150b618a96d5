//! Callers who want certain Machines: chosen from among those, or held for one of them.
//!
//! Whoever cannot enter at once waits for **one** Machine, in a queue of its own beside that of the port. The
//! Machine is woken for them, whatever the others do (AS-80); when it cannot take them they are told at once, and
//! choose again ([`Effect::FailAimed`]).

use super::machine::{Machine, Readiness, Turn};
use super::route::Pressure;
use super::{Admission, Balancer, Claim, Effect, FailReason, HoldReason, Server};
use crate::admission::Origin;
use crate::aim::Target;
use crate::checks::Status;
use crate::ids::MachineId;
use crate::mutant::Mutant;
use crate::service::PublishedPort;
use crate::time::Timestamp;

/// The answer to "who of these takes this request?".
#[derive(Debug)]
#[must_use = "an admitted claim must be released"]
pub enum AimedChoice {
    /// This Machine; already counted.
    Admitted(Admission),
    /// None at once: wait for this one ([`super::Event::Aimed`]).
    Hold {
        /// The best of them.
        machine: MachineId,
        /// Why one has to wait for it.
        reason: HoldReason,
    },
    /// None of them can take it, now or later.
    Refuse,
}

/// Who waits for one Machine at one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) all: usize,
    /// Of them Machines of the same pool.
    pub(super) own: usize,
}

impl Waiting {
    /// Without the first, who is let in as this. The queue's order is not known here: while anybody else waits,
    /// all count as use.
    fn without_first(self) -> (Origin, Self) {
        let origin = if self.own < self.all { Origin::Caller } else { Origin::SamePool };
        (origin, Self { all: self.all - 1, own: self.own.saturating_sub(1) })
    }
}

/// How good it is to wait for a Machine; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Prospect {
    /// It is on its way.
    Starting,
    Asleep(Readiness),
    /// It is up, and at `hard_limit`.
    Full,
    /// Something else is done with it, and then it may serve.
    Later,
}

impl Machine {
    fn prospect(&self, port: PublishedPort, now: Timestamp) -> Option<Prospect> {
        if !self.may_serve(port) {
            return None;
        }
        if self.is_starting() && !self.is_starting_behind_a_stop() {
            return Some(Prospect::Starting);
        }
        Some(match self.readiness(port, now) {
            Some(readiness) => Prospect::Asleep(readiness),
            None if self.is_open() => match self.health_at(port) {
                Status::Passing => Prospect::Full,
                Status::Warning => Prospect::Starting,
                Status::Critical => Prospect::Later,
            },
            None => Prospect::Later,
        })
    }
}

impl Balancer {
    /// Takes a place in one of the Machines that `target` allows, as [`super::Route::choose`] does among all.
    pub fn choose_among(
        &self,
        port: PublishedPort,
        origin: Origin,
        random: u64,
        target: Target,
        now: Timestamp,
    ) -> AimedChoice {
        let Some(route) = self.route(port) else { return AimedChoice::Refuse };
        let allowed = |id: MachineId| {
            let machine = self.machines.get(&id);
            machine.is_some_and(|m| target.allows(id, m.view.region))
        };
        let anybody = self.mutant == Mutant::TargetIgnored;
        let allowed_now = |e: &super::Endpoint| anybody || allowed(e.machine);
        if let Some(admission) = route.choose_allowed(origin, random, allowed_now) {
            return AimedChoice::Admitted(admission);
        }
        let candidates = self.machines.values().filter(|m| allowed(m.view.id));
        let ranked = candidates.filter_map(|m| {
            let far = m.view.region != self.settings.region;
            let given_up = m.has_given_up(1, now);
            Some((given_up, far, m.prospect(port, now)?, m.view.id))
        });
        match ranked.min() {
            Some((_, _, Prospect::Full, machine)) => {
                AimedChoice::Hold { machine, reason: HoldReason::Full }
            }
            Some((.., machine)) => AimedChoice::Hold { machine, reason: HoldReason::Wake },
            None => AimedChoice::Refuse,
        }
    }

    /// Whether all Machines that may serve the port, if there is one, are meant: then nobody waits for a certain one.
    pub fn allows_all(&self, port: PublishedPort, target: Target) -> bool {
        let mut serving = self.machines.values().filter(|m| m.may_serve(port)).peekable();
        serving.peek().is_some() && serving.all(|m| target.allows(m.view.id, m.view.region))
    }

    /// Whether another Machine than this one would take a request now.
    pub fn has_other(&self, port: PublishedPort, machine: MachineId) -> bool {
        self.route(port).is_some_and(|route| route.has_other(machine))
    }

    /// Lets callers in for whom there is room, into each Machine from both queues by turns: neither starves the other
    /// at `hard_limit`.
    pub(super) fn admit(&mut self, now: Timestamp) {
        if self.mutant != Mutant::AimedStarved {
            let theirs = |m: &Machine, port| m.turn_at(port) == Turn::Aimed;
            self.admit_aimed(theirs, now);
        }
        self.admit_waiting(now);
        self.admit_aimed(|_, _| true, now);
    }

    /// Lets callers in who wait for a Machine that has room, where it may be.
    fn admit_aimed(&mut self, may: impl Fn(&Machine, PublishedPort) -> bool, now: Timestamp) {
        for ((port, machine), _) in self.aimed() {
            if !self.machines.get(&machine).is_some_and(|m| may(m, port)) {
                continue;
            }
            if let Some(machine) = self.machines.get_mut(&machine)
                && machine.is_excess_drained()
            {
                machine.clear_drain();
            }
            while let Some(Admission { claim, edge }) = self.admit_aimed_one(port, machine) {
                self.note_admitted(&claim, Turn::Anybody);
                self.effects.push_back(Effect::AdmitAimed { port, claim });
                if let Some(edge) = edge {
                    self.on_edge(edge, now);
                }
            }
        }
    }

    /// Next time those come first.
    pub(super) fn note_admitted(&mut self, claim: &Claim, next: Turn) {
        let endpoint = claim.endpoint();
        if let Some(machine) = self.machines.get_mut(&endpoint.machine) {
            machine.set_turn(endpoint.service, next);
        }
    }

    fn admit_aimed_one(&mut self, port: PublishedPort, machine: MachineId) -> Option<Admission> {
        let (origin, left) = self.aimed.get(&(port, machine))?.without_first();
        let origin = match self.mutant {
            Mutant::AimedOwnCallIsUse => Origin::Caller,
            _ => origin,
        };
        let route = self.route(port)?;
        let anywhere = self.mutant == Mutant::AimedAdmittedElsewhere;
        let meant = |e: &super::Endpoint| anywhere || e.machine == machine;
        let admission = route.choose_allowed(origin, 0, meant)?;
        self.on_aimed(port, machine, left);
        Some(admission)
    }

    pub(super) fn on_aimed(&mut self, port: PublishedPort, machine: MachineId, waiting: Waiting) {
        if waiting.all == 0 {
            self.aimed.remove(&(port, machine));
        } else {
            self.aimed.insert((port, machine), waiting);
        }
    }

    /// Starts the Machines that somebody waits for.
    pub(super) fn wake_aimed(&mut self, now: Timestamp) {
        if self.mutant == Mutant::AimedDemandIgnored {
            return;
        }
        for ((port, id), _) in self.aimed() {
            let Some(machine) = self.machines.get(&id) else { continue };
            let asleep = machine.publishes(port) && machine.readiness(port, now).is_some();
            let answered = self.server == Server::Ready || machine.can_be_thawed();
            if asleep && machine.start.is_none() && answered {
                self.ask_start(id, Some(port), now);
            }
        }
    }

    /// Tells callers whose Machine will not take them: it is gone, may not be woken, or has failed to start.
    pub(super) fn fail_aimed(&mut self, now: Timestamp) {
        for ((port, machine), Waiting { all: waiters, .. }) in self.aimed() {
            if let Some(reason) = self.hopeless_aimed(port, machine, now) {
                self.aimed.remove(&(port, machine));
                if self.mutant == Mutant::AimedForgotten {
                    continue;
                }
                self.effects.push_back(Effect::FailAimed { port, machine, waiters, reason });
            }
        }
    }

    fn hopeless_aimed(
        &self,
        port: PublishedPort,
        id: MachineId,
        now: Timestamp,
    ) -> Option<FailReason> {
        let Some(machine) = self.machines.get(&id).filter(|m| m.may_serve(port)) else {
            return Some(FailReason::NothingToWake);
        };
        let failed = machine.has_given_up(1, now);
        failed.then(|| FailReason::StartsFailed { last: machine.last_failure.clone() })
    }

    fn aimed(&self) -> Vec<((PublishedPort, MachineId), Waiting)> {
        self.aimed.iter().map(|(key, waiting)| (*key, *waiting)).collect()
    }
}

impl super::Route {
    fn has_other(&self, machine: MachineId) -> bool {
        self.endpoints.iter().any(|e| e.machine != machine && e.cost().is_some())
    }

    /// [`super::Route::choose`] among some. Whoever has chosen a Machine is no reason to wake another.
    pub(super) fn choose_allowed(
        &self,
        origin: Origin,
        random: u64,
        allowed: impl Fn(&super::Endpoint) -> bool,
    ) -> Option<Admission> {
        for _ in 0..=self.endpoints.len() {
            let endpoint = &self.endpoints[self.pick(random, &allowed)?];
            if let Ok(change) = endpoint.word.claim(endpoint.run, endpoint.limits, origin) {
                return Some(endpoint.admission(change, Pressure::None));
            }
        }
        None
    }
}
