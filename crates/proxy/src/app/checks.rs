//! Health checks of an app's Machines: done here, while the Machine runs, so that callers are kept from a
//! sick one also while no server lives.
//!
//! One task per check and run, which sleeps until the next try. It ends in the same step in which the
//! balancer gives a Machine to sleep, before anybody can freeze it: a try that is under way is cut. An app
//! without checks has nothing of this but a flag.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::{Rc, Weak};
use std::time::Duration;

use perch_core::balancer::{Event, MachineView};
use perch_core::checks::{self, Check, CheckSpec, Effect, Outcome, Status};
use perch_core::ids::MachineId;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::App;
use crate::control::{AppView, CheckResult, CheckView, FromProxy};
use crate::{clock, convert, probe};

/// All of one app.
#[derive(Debug, Default)]
pub(super) struct Checks {
    any: Cell<bool>,
    /// Something has happened since they were looked at, more than a request that came or went.
    stale: Cell<bool>,
    machines: RefCell<BTreeMap<MachineId, Watched>>,
}

/// A Machine that has checks.
#[derive(Debug)]
struct Watched {
    link_ip: Ipv4Addr,
    /// The run that the results are about; 0: none yet.
    run: u64,
    /// Whether its tasks are there.
    is_up: bool,
    checks: Vec<Rc<One>>,
}

/// One check of a Machine.
#[derive(Debug)]
struct One {
    machine: MachineId,
    /// The index of its service, if it has one: then it keeps callers away.
    service: Option<usize>,
    spec: CheckSpec,
    check: RefCell<Check>,
    output: RefCell<String>,
    /// What it says is other than the server knows.
    untold: Cell<bool>,
    told_at: Cell<Option<Instant>>,
    since_unix_ms: Cell<u64>,
    task: RefCell<Option<AbortHandle>>,
}

/// The index of its service, if it has one, and what to do.
type Wanted = (Option<usize>, CheckSpec);

/// The checks of Machines that are of no service.
type Others<'a> = BTreeMap<MachineId, &'a [CheckView]>;

fn others(view: &AppView) -> Others<'_> {
    let checked = view.machines.iter().filter(|machine| !machine.checks.is_empty());
    checked.filter_map(|it| Some((it.id.parse().ok()?, it.checks.as_slice()))).collect()
}

/// The checks of a Machine: those of its services, then the others.
fn wanted(others: &Others<'_>, machine: &MachineView) -> Vec<Wanted> {
    let services = machine.services.iter().enumerate();
    let own = services
        .flat_map(|(index, it)| it.checks.iter().map(move |spec| (Some(index), spec.clone())));
    let others = others.get(&machine.id).into_iter().copied().flatten();
    own.chain(others.map(|it| (None, convert::check(it)))).collect()
}

/// A check that fails with another text each time tells it so often at most.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// As long as nothing was seen.
const NOTHING_SEEN: &str = "waiting for status update";

impl Checks {
    pub(super) fn are_any(&self) -> bool {
        self.any.get()
    }

    pub(super) fn look_again(&self) {
        self.stale.set(true);
    }

    /// Whether they are to be looked at; says so once.
    pub(super) fn are_stale(&self) -> bool {
        self.stale.replace(false) && self.any.get()
    }

    /// Nobody touches this Machine any more.
    pub(super) fn rest(&self, machine: MachineId) {
        if let Some(watched) = self.machines.borrow_mut().get_mut(&machine) {
            watched.rest();
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.machines.get_mut().values_mut().for_each(Watched::rest);
    }
}

impl Watched {
    fn nothing() -> Self {
        Self { link_ip: Ipv4Addr::UNSPECIFIED, run: 0, is_up: false, checks: Vec::new() }
    }

    /// Begins anew where there are other checks than before.
    fn take_in(&mut self, machine: &MachineView, wanted: Vec<Wanted>) {
        self.link_ip = machine.link_ip;
        let is_same = |(one, (service, spec)): (&Rc<One>, &Wanted)| {
            one.service == *service && one.spec == *spec
        };
        if self.checks.len() != wanted.len() || !self.checks.iter().zip(&wanted).all(is_same) {
            self.rest();
            self.run = 0;
            let new = |(service, spec)| One::new(machine.id, service, spec);
            self.checks = wanted.into_iter().map(new).collect();
        }
    }

    /// Its Machine is gone; it is not kept.
    fn end(&mut self) -> bool {
        self.rest();
        false
    }

    fn rest(&mut self) {
        if std::mem::take(&mut self.is_up) {
            self.checks.iter().for_each(|one| one.rest());
        }
    }

    /// The worst of a service's checks.
    fn health(&self, service: usize) -> Option<Status> {
        let own = self.checks.iter().filter(|one| one.service == Some(service));
        own.map(|one| one.status()).max()
    }
}

impl One {
    fn new(machine: MachineId, service: Option<usize>, spec: CheckSpec) -> Rc<Self> {
        Rc::new(Self {
            machine,
            service,
            check: RefCell::new(Check::new(spec.times)),
            spec,
            output: RefCell::new(NOTHING_SEEN.to_owned()),
            untold: Cell::new(false),
            told_at: Cell::new(None),
            since_unix_ms: Cell::new(clock::unix_millis()),
            task: RefCell::default(),
        })
    }

    fn status(&self) -> Status {
        self.check.borrow().status()
    }

    fn hear(&self, event: checks::Event) {
        self.check.borrow_mut().handle_event(event, clock::now());
    }

    fn rest(&self) {
        self.hear(checks::Event::Rested);
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Whether there is something new to tell.
    fn note(&self, before: Status, output: String) -> bool {
        let status = self.status();
        if status != before {
            self.since_unix_ms.set(clock::unix_millis());
        }
        // In its grace period a failure is seen and does not count; a pass that says something else each
        // time is not worth a message.
        let other = self.output.replace(output) != *self.output.borrow();
        self.untold.set(self.untold.get() || other);
        let now = Instant::now();
        let is_due = self.told_at.get().is_none_or(|told| told + TELL_INTERVAL <= now);
        let tells = status != before || (status != Status::Passing && self.untold.get() && is_due);
        if tells {
            self.told_at.set(Some(now));
            self.untold.set(false);
        }
        tells
    }

    fn result(&self) -> CheckResult {
        CheckResult {
            name: self.spec.name.clone(),
            status: self.status().as_str().to_owned(),
            output: self.output.borrow().clone(),
            since_unix_ms: self.since_unix_ms.get(),
        }
    }
}

impl App {
    /// Takes in what is to be checked, before the balancer hears of the same Machines. What was known of a
    /// check that is as before stays.
    pub(crate) fn set_checks(&self, view: &AppView, machines: &[MachineView]) {
        let mut known = self.checks.machines.borrow_mut();
        let is_there = |id: &MachineId| machines.iter().any(|machine| machine.id == *id);
        known.retain(|id, watched| is_there(id) || watched.end());
        let others = others(view);
        for machine in machines {
            let wanted = wanted(&others, machine);
            if !wanted.is_empty() {
                let watched = known.entry(machine.id).or_insert_with(Watched::nothing);
                watched.take_in(machine, wanted);
            } else if let Some(mut gone) = known.remove(&machine.id) {
                gone.rest();
            }
        }
        self.checks.any.set(!known.is_empty());
    }

    /// Brings the checks in line with what the balancer has decided, and the balancer with their results.
    pub(super) fn follow_checks(self: &Rc<Self>) {
        let mut news = Vec::new();
        for (id, watched) in self.checks.machines.borrow_mut().iter_mut() {
            let up = self.balancer.borrow().checkable(*id);
            match up {
                None => watched.rest(),
                Some(run) if watched.is_up && watched.run == run => {}
                Some(run) => self.begin_checks(watched, run),
            }
            news.extend(self.health_news(*id, watched));
        }
        for event in news {
            self.handle(event);
        }
    }

    fn begin_checks(self: &Rc<Self>, watched: &mut Watched, run: u64) {
        watched.rest();
        let event = match watched.run == run {
            true => checks::Event::Resumed,
            false => checks::Event::Started,
        };
        (watched.run, watched.is_up) = (run, true);
        for one in &watched.checks {
            if event == checks::Event::Started {
                one.since_unix_ms.set(clock::unix_millis());
                NOTHING_SEEN.clone_into(&mut one.output.borrow_mut());
            }
            one.hear(event);
            let target = SocketAddrV4::new(watched.link_ip, one.spec.port);
            let task = run_check(Rc::downgrade(self), Rc::clone(one), target);
            *one.task.borrow_mut() = Some(tokio::task::spawn_local(task).abort_handle());
        }
    }

    /// What the balancer does not know yet.
    fn health_news(&self, machine: MachineId, watched: &Watched) -> Vec<Event> {
        let services: BTreeSet<usize> =
            watched.checks.iter().filter_map(|one| one.service).collect();
        let balancer = self.balancer.borrow();
        let run = watched.run;
        let current = balancer.belief(machine).is_some_and(|belief| belief.run == run);
        let news = services.into_iter().filter(|_| current).filter_map(|service| {
            let status = watched.health(service)?;
            let known = balancer.health(machine, service)?;
            (known != status).then_some(Event::Checked { machine, run, service, status })
        });
        news.collect()
    }

    /// A try is over.
    fn note_check(self: &Rc<Self>, one: &One, number: u64, seen: probe::Seen) {
        let (outcome, output) = match seen {
            Ok(output) => (Outcome::Passed, output),
            Err(output) => (Outcome::Failed, output),
        };
        let before = one.status();
        one.hear(checks::Event::Done { probe: number, outcome });
        if !one.note(before, output) {
            return;
        }
        // The first pass after a start is no news.
        if before != one.status() && [before, one.status()].contains(&Status::Critical) {
            let (status, name) = (one.status().as_str(), &one.spec.name);
            let text = format!("health check {name} is {status}: {}", one.output.borrow());
            let level = if one.status() == Status::Critical { "warn" } else { "info" };
            self.server.log(level, &self.name, Some(one.machine), text);
        }
        self.tell_checks(one.machine);
        self.follow_checks();
    }

    /// Tells the server what is known of one Machine's checks.
    fn tell_checks(&self, machine: MachineId) {
        let known = self.checks.machines.borrow();
        let Some(watched) = known.get(&machine).filter(|watched| watched.run != 0) else { return };
        let results = watched.checks.iter().map(|one| one.result()).collect();
        let machine = machine.to_string();
        self.server.tell(FromProxy::Checks { machine, run: watched.run, results });
    }

    /// Tells a new server everything.
    pub(crate) fn tell_all_checks(&self) {
        let machines: Vec<_> = self.checks.machines.borrow().keys().copied().collect();
        machines.into_iter().for_each(|machine| self.tell_checks(machine));
    }
}

async fn run_check(app: Weak<App>, one: Rc<One>, target: SocketAddrV4) {
    loop {
        let wanted = one.check.borrow_mut().poll_effect();
        if let Some(Effect::Probe { probe: number, patience }) = wanted {
            let seen = probe::probe(target, &one.spec, patience).await;
            let Some(app) = app.upgrade() else { return };
            app.note_check(&one, number, seen);
            continue;
        }
        let Some(due) = one.check.borrow().poll_timeout() else { return };
        tokio::time::sleep_until(Instant::now() + due.since(clock::now())).await;
        one.check.borrow_mut().handle_timeout(clock::now());
    }
}
