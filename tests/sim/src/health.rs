//! Health checks in the simulated world: whether programs are well, and the shell that asks them.
//!
//! The real [`Check`] runs here, as `app/checks.rs` of the proxy drives it: one per Machine of an app that is
//! checked, followed after each event of the balancer. Its results are the books against which it is judged who
//! gets callers.

use std::time::Duration;

use perch_core::balancer::{Claim, Event};
use perch_core::checks::{Check, Effect, Event as CheckEvent, Outcome, Status};
use perch_core::service::PublishedPort;
use perch_core::time::Timestamp;

use crate::plan::{id, index};
use crate::server::{End, Process};
use crate::world::{Ev, World};

/// A Machine that has been up for so long has a result that counts: grace, a try that hangs, an interval.
const JUDGED_AFTER: Duration = Duration::from_secs(15);

/// The check of one Machine.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The run that its results are about; 0: none yet.
    run: u64,
    is_up: bool,
    check: Check,
}

/// One try.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Try {
    machine: usize,
    run: u64,
    probe: u64,
    /// When the proxy began that tries.
    by: Timestamp,
}

impl World {
    // ---- programs -----------------------------------------------------------------------------

    /// Programs fall ill and recover, as long as there is chaos.
    pub(crate) fn weather(&mut self) {
        if !self.is_chaos() {
            return;
        }
        let machine = self.extras.below(self.truths.len());
        self.truths[machine].is_well = self.extras.chance(60);
        let pause = self.extras.millis(50, 3_000);
        self.later(pause, Ev::Weather);
    }

    /// From now on all are as they will stay.
    pub(crate) fn settle_health(&mut self) {
        for machine in 0..self.truths.len() {
            self.truths[machine].is_well = !self.stays_sick(machine);
        }
    }

    /// Only where another one is left.
    fn stays_sick(&self, machine: usize) -> bool {
        let app = self.plan.app_of(machine);
        let mut others = app.machines.clone().filter(|other| *other != machine);
        app.sick == Some(machine) && others.any(|other| self.truths[other].end == End::None)
    }

    fn is_sick(&self, machine: usize) -> bool {
        !self.truths[machine].is_well
    }

    /// Whether nothing keeps it from serving after healing.
    pub(crate) fn is_sound(&self, machine: usize) -> bool {
        self.truths[machine].end == End::None && !self.is_sick(machine)
    }

    // ---- the shell ----------------------------------------------------------------------------

    /// Brings the checks in line with what the balancer has decided, and the balancer with their results.
    pub(crate) fn follow_checks(&mut self, app: usize) {
        if !self.plan.apps[app].is_checked() {
            return;
        }
        for machine in self.plan.apps[app].machines.clone() {
            let Some(proxy) = &self.proxy else { return };
            let Some(balancer) = proxy.balancer(app) else { return };
            let up = balancer.checkable(id(machine));
            self.follow_check(machine, up);
            if let Some(event) = self.health_news(machine) {
                self.balancer_event(app, event);
            }
        }
    }

    fn follow_check(&mut self, machine: usize, up: Option<u64>) {
        let Some(run) = up else { return self.rest_check(machine) };
        let times = self.plan.app_of(machine).services[0].checks[0].times;
        let Some(proxy) = &mut self.proxy else { return };
        let new = || Watch { run: 0, is_up: false, check: Check::new(times) };
        let watch = proxy.watches.entry(machine).or_insert_with(new);
        if watch.is_up && watch.run == run {
            return;
        }
        let resumed = watch.run == run;
        (watch.run, watch.is_up) = (run, true);
        let now = self.now;
        watch.check.handle_event(CheckEvent::Rested, now);
        let event = if resumed { CheckEvent::Resumed } else { CheckEvent::Started };
        watch.check.handle_event(event, now);
        self.go_on_checking(machine);
    }

    /// Nobody touches it any more.
    pub(crate) fn rest_check(&mut self, machine: usize) {
        let now = self.now;
        let watch = self.proxy.as_mut().and_then(|proxy| proxy.watches.get_mut(&machine));
        if let Some(watch) = watch {
            watch.is_up = false;
            watch.check.handle_event(CheckEvent::Rested, now);
        }
    }

    fn health_news(&self, machine: usize) -> Option<Event> {
        let watch = self.proxy.as_ref()?.watches.get(&machine)?;
        let balancer = self.proxy.as_ref()?.balancer(self.plan.owner(machine))?;
        let (run, status) = (watch.run, watch.check.status());
        let current = balancer.belief(id(machine)).is_some_and(|belief| belief.run == run);
        let is_news = current && balancer.health(id(machine), 0)? != status;
        let machine = id(machine);
        is_news.then_some(Event::Checked { machine, run, service: 0, status })
    }

    pub(crate) fn check_is_due(&mut self, machine: usize) {
        let now = self.now;
        let watch = self.proxy.as_mut().and_then(|proxy| proxy.watches.get_mut(&machine));
        if let Some(watch) = watch {
            watch.check.handle_timeout(now);
            self.go_on_checking(machine);
        }
    }

    fn go_on_checking(&mut self, machine: usize) {
        let Some(proxy) = &mut self.proxy else { return };
        let by = proxy.born_at;
        let Some(watch) = proxy.watches.get_mut(&machine) else { return };
        let (run, wanted) = (watch.run, watch.check.poll_effect());
        let due = watch.check.poll_timeout();
        if let Some(due) = due {
            self.later(due.since(self.now), Ev::CheckIsDue(machine));
        }
        if let Some(Effect::Probe { probe, .. }) = wanted {
            let process = self.truths[machine].process;
            let is_frozen = matches!(process, Process::Frozen { run: frozen, .. } if frozen == run);
            if is_frozen && self.proxy_is_told() {
                self.fail(&format!("{} is asked for its health while it is frozen", id(machine)));
            }
            let timeout = self.plan.app_of(machine).services[0].checks[0].times.timeout;
            let hangs = self.is_chaos() && self.extras.chance(10);
            let length = if hangs { timeout } else { self.extras.millis(1, 50).min(timeout) };
            self.later(length, Ev::Tried(Try { machine, run, probe, by }));
        }
    }

    /// The answer of a try that was called off may still come: it counts for nothing.
    pub(crate) fn on_tried(&mut self, tried: Try) {
        let Try { machine, run, probe, by } = tried;
        let truth = &self.truths[machine];
        let passes = truth.process.is_running(run) && truth.is_well;
        let outcome = if passes { Outcome::Passed } else { Outcome::Failed };
        let now = self.now;
        let Some(proxy) = self.proxy.as_mut().filter(|proxy| proxy.born_at == by) else { return };
        let Some(watch) = proxy.watches.get_mut(&machine) else { return };
        watch.check.handle_event(CheckEvent::Done { probe, outcome }, now);
        self.go_on_checking(machine);
        self.follow_checks(self.plan.owner(machine));
    }

    // ---- what must hold -----------------------------------------------------------------------

    /// What the shell itself has found of a service of this run.
    pub(crate) fn health_found(&self, machine: usize, run: u64, service: usize) -> Status {
        if service != 0 || !self.plan.app_of(machine).is_checked() {
            return Status::Passing;
        }
        let watch = self.proxy.as_ref().and_then(|proxy| proxy.watches.get(&machine));
        watch.filter(|w| w.run == run).map_or(Status::Warning, |w| w.check.status())
    }

    /// PX-64: callers come only where the check passes.
    pub(crate) fn check_fit(&mut self, claim: &Claim) {
        let endpoint = claim.endpoint();
        let found = self.health_found(index(endpoint.machine), endpoint.run, endpoint.service);
        if found != Status::Passing {
            let text = format!("{} gets a caller though its check is {found:?}", endpoint.machine);
            self.fail(&text);
        }
    }

    /// Whether callers wait for this Machine to pass, who would wait longer if it slept.
    pub(crate) fn is_awaited(&self, machine: usize, run: u64) -> bool {
        let services = self.plan.app_of(machine).services.iter().enumerate();
        let mut ports = services
            .filter(|(index, _)| self.health_found(machine, run, *index) != Status::Passing);
        ports.any(|(_, service)| {
            service.published().any(|(port, _)| self.anybody_waits_for(machine, port))
        })
    }

    fn anybody_waits_for(&self, machine: usize, port: PublishedPort) -> bool {
        let Some(proxy) = &self.proxy else { return false };
        let app = self.plan.owner(machine);
        proxy.waiting(app, port) != 0 || proxy.waiting_for(app, port, machine) != 0
    }

    /// At rest what is believed of a Machine's health is what its program is.
    pub(crate) fn check_health_at_rest(&mut self, machine: usize) {
        let (Some(proxy), Some(belief)) = (&self.proxy, self.belief(machine)) else { return };
        let is_old = JUDGED_AFTER < self.now.since(proxy.books[machine].woke_at);
        if !self.plan.app_of(machine).is_checked() || !belief.open || !is_old {
            return;
        }
        let wanted = if self.is_sick(machine) { Status::Critical } else { Status::Passing };
        if belief.health != wanted {
            self.fail(&format!("{} is {wanted:?}, but believed {:?}", id(machine), belief.health));
        }
    }
}
