//! Callers who want certain Machines, as `app/aimed.rs` and `connection/aimed.rs` of the proxy serve them: a queue for
//! each port and Machine beside that of the port, and what must hold for both.

use std::collections::VecDeque;
use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::aim::{Among, Target};
use perch_core::balancer::{Admission, AimedChoice, Claim, Event, FailReason};
use perch_core::checks::Status;
use perch_core::lifecycle::MachineState;
use perch_core::service::PublishedPort;

use crate::plan::{START_TIMEOUT, id, index};
use crate::proxy::{BACK_OFF_MAX, Book, Caller, Proxy, is_asleep, is_destroyed};
use crate::world::{Ev, World};

/// Who is told that its Machine will not take it chooses again, so often.
const TRIES_MAX: u32 = 3;

/// Those who wait for one Machine at one port.
#[derive(Debug, Default)]
pub(crate) struct Aimed {
    pub(crate) names: VecDeque<u64>,
    /// How many wait, and how many of them are of the same pool, as far as the balancer knows.
    told: (usize, usize),
    /// Who came by the queue of the port into this Machine since one of these was let in.
    overtaken: u32,
}

impl Proxy {
    pub(crate) fn waiting_for(&self, app: usize, port: PublishedPort, machine: usize) -> usize {
        let app = self.apps[app].as_ref();
        app.and_then(|app| app.aimed.get(&(port, machine))).map_or(0, |aimed| aimed.names.len())
    }

    fn aimed(&mut self, app: usize, port: PublishedPort, machine: usize) -> Option<&mut Aimed> {
        self.apps[app].as_mut().and_then(|app| app.aimed.get_mut(&(port, machine)))
    }
}

impl World {
    // ---- callers ------------------------------------------------------------------------------

    /// Whether this caller wants certain Machines; then it is seen to.
    pub(crate) fn route_aimed(&mut self, name: u64, caller: Caller) -> bool {
        let (Some(target), Some(proxy)) = (caller.target, &self.proxy) else { return false };
        let Some(balancer) = proxy.balancer(caller.app) else { return false };
        // As if it had not said so.
        let area = matches!(target.among, Among::Area(_));
        if area && balancer.allows_all(caller.port, target) {
            return false;
        }
        let (random, before) = (self.choices.any(), self.seats());
        let now = self.now;
        match balancer.choose_among(caller.port, caller.origin, random, target, now) {
            AimedChoice::Admitted(Admission { claim, edge }) => {
                self.check_target(&claim, target);
                self.check_admission(&claim, &before, Some(target));
                self.serve(name, claim);
                self.edge(edge);
            }
            AimedChoice::Hold { machine, .. } => {
                if !target.allows(machine, self.plan.region(index(machine))) {
                    self.fail(&format!("{machine} is to be waited for, but {target:?} is wanted"));
                }
                self.enqueue_aimed(name, caller, index(machine));
            }
            AimedChoice::Refuse => self.refuse_aimed(name, caller, target),
        }
        true
    }

    fn refuse_aimed(&mut self, name: u64, caller: Caller, target: Target) {
        let mut machines = self.plan.apps[caller.app].machines.clone();
        let is_meant = |m: usize| target.allows(id(m), self.plan.region(m)) && self.is_there(m);
        let wrongly = self.healed_at.is_some() && machines.any(is_meant);
        self.refused += u32::from(wrongly);
        self.callers.remove(&name);
    }

    fn enqueue_aimed(&mut self, name: u64, caller: Caller, machine: usize) {
        let app = self.proxy.as_mut().and_then(|p| p.apps[caller.app].as_mut());
        let Some(app) = app else { return };
        app.aimed.entry((caller.port, machine)).or_default().names.push_back(name);
        let wait = caller.patience.min(START_TIMEOUT);
        self.later(wait, Ev::LeaveAimed { name, machine });
        self.demand_aimed(caller.app, caller.port, machine);
    }

    fn demand_aimed(&mut self, app: usize, port: PublishedPort, machine: usize) {
        let Some(proxy) = &self.proxy else { return };
        let waiting = proxy.waiting_for(app, port, machine);
        let own = self.own_calls(app, port, machine);
        if let Some(aimed) = self.proxy.as_mut().and_then(|p| p.aimed(app, port, machine)) {
            aimed.told = (waiting, own);
        }
        self.balancer_event(app, Event::Aimed { port, machine: id(machine), waiting, own });
    }

    fn own_calls(&self, app: usize, port: PublishedPort, machine: usize) -> usize {
        let app = self.proxy.as_ref().and_then(|proxy| proxy.apps[app].as_ref());
        let names = app.and_then(|app| app.aimed.get(&(port, machine))).map(|aimed| &aimed.names);
        let origins = names.into_iter().flatten().filter_map(|name| self.callers.get(name));
        origins.filter(|caller| caller.origin == Origin::SamePool).count()
    }

    pub(crate) fn leave_aimed(&mut self, name: u64, machine: usize) {
        let Some(caller) = self.callers.get(&name).copied() else { return };
        let aimed = self.proxy.as_mut().and_then(|p| p.aimed(caller.app, caller.port, machine));
        let Some(aimed) = aimed else { return };
        let Some(place) = aimed.names.iter().position(|n| *n == name) else { return };
        aimed.names.remove(place);
        self.callers.remove(&name);
        let patient = START_TIMEOUT <= caller.patience && self.is_sound(machine);
        if patient && self.healed_at.is_some_and(|at| at < caller.came_at) {
            self.fail(&format!("a caller waited for {} in vain", id(machine)));
        }
        self.demand_aimed(caller.app, caller.port, machine);
    }

    // ---- effects ------------------------------------------------------------------------------

    pub(crate) fn admit_aimed(&mut self, app: usize, port: PublishedPort, claim: Claim) {
        let machine = index(claim.endpoint().machine);
        let aimed = self.proxy.as_mut().and_then(|p| p.aimed(app, port, machine));
        let Some((name, counts)) = aimed.and_then(Aimed::let_in) else {
            self.fail(&format!("somebody is let into {}, but nobody waits for it", id(machine)));
            return;
        };
        if let Some(caller) = self.callers.get_mut(&name)
            && counts
        {
            caller.origin = Origin::Caller;
        }
        if let Some(target) = self.callers.get(&name).and_then(|caller| caller.target) {
            self.check_target(&claim, target);
        }
        self.check_limits(&claim);
        self.note_turn(app, port);
        self.serve(name, claim);
    }

    pub(crate) fn fail_aimed(
        &mut self,
        app: usize,
        port: PublishedPort,
        machine: usize,
        waiters: usize,
        reason: &FailReason,
    ) {
        self.check_hopeless_aimed(machine, port, reason);
        let aimed = self.proxy.as_mut().and_then(|p| p.aimed(app, port, machine));
        let Some(aimed) = aimed else { return };
        let away: Vec<u64> = aimed.names.drain(..waiters.min(aimed.names.len())).collect();
        for name in away {
            let Some(caller) = self.callers.get_mut(&name) else { continue };
            caller.tries += 1;
            match caller.tries < TRIES_MAX {
                true => self.later(Duration::ZERO, Ev::Arrive(name)),
                false => drop(self.callers.remove(&name)),
            }
        }
    }

    // ---- what must hold -----------------------------------------------------------------------

    fn check_target(&mut self, claim: &Claim, target: Target) {
        let machine = claim.endpoint().machine;
        if !target.allows(machine, self.plan.region(index(machine))) {
            self.fail(&format!("{machine} gets a caller who wanted {target:?}"));
        }
    }

    fn is_there(&self, machine: usize) -> bool {
        self.truths[machine].end == crate::server::End::None
    }

    /// Neither queue starves the other: while one waits, the other has at most what fits into a Machine, twice.
    pub(crate) fn note_overtaken(&mut self, app: usize, port: PublishedPort, machine: usize) {
        let hard = self.plan.apps[app].hard();
        let Some(proxy) = &mut self.proxy else { return };
        if let Some(own) = proxy.apps[app].as_mut() {
            own.overtaken.remove(&port);
        }
        let Some(aimed) = proxy.aimed(app, port, machine) else { return };
        aimed.overtaken += u32::from(!aimed.names.is_empty());
        let starves = hard.saturating_mul(2) < aimed.overtaken;
        if starves {
            self.fail(&format!("who waits for {} starves", id(machine)));
        }
    }

    fn note_turn(&mut self, app: usize, port: PublishedPort) {
        let plan = &self.plan.apps[app];
        let most = plan.hard().saturating_mul(2 * plan.machines.len() as u32);
        let Some(proxy) = &mut self.proxy else { return };
        let waiting = proxy.waiting(app, port);
        let Some(own) = proxy.apps[app].as_mut() else { return };
        let overtaken = own.overtaken.entry(port).or_default();
        *overtaken = if waiting == 0 { 0 } else { *overtaken + 1 };
        if most < *overtaken {
            self.fail(&format!("who waits at {port} for anybody starves"));
        }
    }

    /// Nobody is told that a Machine will not take them while it may.
    fn check_hopeless_aimed(&mut self, machine: usize, port: PublishedPort, reason: &FailReason) {
        let Some(proxy) = &self.proxy else { return };
        let book = &proxy.books[machine];
        let usable = may_take(book);
        let wrong = match reason {
            FailReason::NothingToWake => usable,
            FailReason::StartsFailed { .. } => book.failures == 0,
        };
        if wrong {
            let text = format!("who waits for {} at {port} is sent away: {reason:?}", id(machine));
            self.fail(&text);
        }
    }

    /// AS-80: a Machine that somebody waits for lets them in, is on its way, or they are told.
    pub(crate) fn check_aimed(&mut self, app: usize) {
        let Some(proxy) = &self.proxy else { return };
        let Some(own) = &proxy.apps[app] else { return };
        let waiting = own.aimed.iter().filter(|(_, aimed)| !aimed.names.is_empty());
        let wrong = waiting.map(|((port, machine), _)| (*port, *machine));
        let wrong = wrong.filter_map(|(port, machine)| {
            Some((machine, self.wrong_with_waiting(proxy, port, machine)?))
        });
        let wrong = wrong.collect::<Vec<_>>();
        for (machine, text) in wrong {
            self.fail(&format!("somebody waits for {}, {text}", id(machine)));
        }
    }

    fn wrong_with_waiting(
        &self,
        proxy: &Proxy,
        port: PublishedPort,
        machine: usize,
    ) -> Option<&'static str> {
        let (plan, book) = (self.plan.app_of(machine), &proxy.books[machine]);
        if !may_take(book) {
            return Some("which will never take them");
        }
        let belief = self.belief(machine)?;
        let service = plan.services.iter().position(|s| s.publishes(port)).unwrap_or(0);
        let fits = self.health_found(machine, belief.run, service) == Status::Passing;
        let has_room = self.seats()[machine].1[service] < plan.hard();
        if belief.open && fits && has_room {
            return Some("which has room");
        }
        let rests = book.failed_at.is_some_and(|at| self.now.since(at) <= BACK_OFF_MAX);
        let sleeps = is_asleep(belief.state) && !belief.asked && !rests;
        (sleeps && proxy.is_server_ready()).then_some("and nobody wakes it")
    }
}

impl Aimed {
    /// The first, and whether it counts as use: beside others all do, and the balancer does not know who came first.
    fn let_in(&mut self) -> Option<(u64, bool)> {
        let (all, own) = self.told;
        (self.overtaken, self.told) = (0, (all.saturating_sub(1), own.saturating_sub(1)));
        Some((self.names.pop_front()?, own < all))
    }
}

fn may_take(book: &Book) -> bool {
    let gone = is_destroyed(book.view.state) || book.view.state == MachineState::LaunchFailed;
    book.there && !book.view.cordoned && !gone
}
