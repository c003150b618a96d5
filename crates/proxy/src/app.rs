//! One app in the proxy: its balancer, who waits for it, and its idle connections to Machines.
//!
//! This is the shell of `perch_core::balancer`, as that module's head describes. Events are handled
//! at once on the proxy's only thread; those that arise while effects are carried out (a place given
//! back, a waiter gone) queue up behind, so that the balancer is never entered twice. An app with nothing
//! to do is only data: a task that sleeps until the balancer's next timeout is there while there is one.

mod aimed;
mod alarm;
mod checks;
mod counts;
mod guard;
mod heartbeat;
mod live;
mod nap;
mod thaw;
mod wait;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::balancer::{
    Balancer, Choice, Claim, Effect, Endpoint, Event, FailReason, HoldReason, MachineView,
    Settings, StartOutcome, StopOutcome,
};
use perch_core::fault::{self, Point};
use perch_core::ids::{MachineId, Region};
use perch_core::ledger::Quota;
use perch_core::lifecycle::MachineState;
use perch_core::replay::cache::Cache;
use perch_core::service::{PublishedPort, Transport};
use perch_core::time::Timestamp;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::clock;
use crate::control::{Cause, FromProxy, PortView};
use crate::convert;
use crate::freezer::Freezer;
use crate::http::compress::Compressors;
use crate::http::treatment::Treatment;
use crate::proxy_header::ProxyHeader;
use crate::server_side::ServerSide;
use crate::upstream::Upstreams;

pub(crate) use guard::{Asked, Guard, Ruling};
pub(crate) use wait::{Wait, Wake};

/// Callers held for a wake, per app and port (DESIGN 3, 10,000 of 4 kB are 40 MB).
const HELD_MAX: usize = 10_000;
/// Callers held because everything is at `hard_limit` (PX-70).
const FULL_MAX: usize = 1_000;
/// How long those are held (PX-70).
const FULL_TIMEOUT: Duration = Duration::from_secs(30);
/// Waits, refusals and vetoes of one app that are told each second; more of them are counted. A hundred callers say
/// why an app is awake as well as ten thousand.
const NOTES_PER_SECOND: u32 = 100;

/// How a published port is served; the same for all Machines of the app that publish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortFacts {
    pub(crate) start: PublishedPort,
    pub(crate) end: PublishedPort,
    pub(crate) protocol: Protocol,
    pub(crate) start_timeout: Duration,
    pub(crate) reuse: Reuse,
    /// The program speaks HTTP/2 by prior knowledge (PX-81).
    pub(crate) h2_backend: bool,
    /// Each connection to the program begins with the PROXY protocol.
    pub(crate) header: Option<ProxyHeader>,
    /// What is done to answers.
    pub(crate) treatment: Option<Rc<Treatment>>,
    /// There are rules about callers ([`App::guards`]).
    pub(crate) guarded: bool,
    /// A raw connection wakes nobody before its first byte.
    pub(crate) first_byte: bool,
    /// The rules say that who calls now may wake nobody. Here, because here it takes no room in idle connections.
    pub(crate) awake_only: bool,
}

impl PortFacts {
    /// How long silence may last in a request.
    pub(crate) fn idle(&self) -> Option<Duration> {
        self.treatment.as_ref().and_then(|treatment| treatment.idle)
    }
}

/// What the bytes of a port are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    /// HTTP that is redirected to `https` (PX-86).
    HttpRedirected,
    /// Bytes as they come, behind a header of the PROXY protocol where one is wanted.
    Raw,
    /// Handlers that this version cannot do.
    Unsupported,
}

impl Protocol {
    pub(crate) fn of(port: &PortView, transport: Transport) -> Self {
        match port.handlers.as_slice() {
            [] => Self::Raw,
            // PX-89: handlers are for connections.
            _ if transport == Transport::Udp => Self::Unsupported,
            [only] if only == "http" && port.force_https => Self::HttpRedirected,
            [only] if only == "http" => Self::Http,
            [only] if only == "proxy_proto" => Self::Raw,
            _ => Self::Unsupported,
        }
    }
}

/// Whether connections to Machines serve several requests (PX-65).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    Pooled,
    OneRequest,
}

/// Why nobody takes a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    #[error("PR01 no Machine can take the request")]
    Refused,
    #[error("too many requests wait already")]
    QueueFull,
    #[error("PM03 no Machine started in time")]
    NotStarted,
    #[error("PR01 the health checks of no Machine pass")]
    Unhealthy,
    #[error("no Machine is awake, and the app's rules let this caller wake none")]
    NotAwake,
    #[error("{0}")]
    Forbidden(String),
    #[error("PM03 no Machine started in time: {0}")]
    StartsRefused(String),
    #[error("PR04 every Machine stayed at its hard_limit")]
    StayedFull,
    #[error("PM01 no Machine could be started: {0}")]
    StartsFailed(String),
}

impl NoPlace {
    fn of(reason: &FailReason) -> Self {
        match reason {
            FailReason::StartsFailed { last } => Self::StartsFailed(last.clone()),
            FailReason::NothingToWake => Self::Refused,
        }
    }
}

/// A request's place in a Machine; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// `None` only inside `drop`.
    claim: Option<Claim>,
    app: Rc<App>,
    /// What the caller has waited for, until it is told.
    wait: RefCell<Option<Box<Wait>>>,
    /// The caller may wake nobody, and keeps nobody awake.
    awake_only: Cell<bool>,
}

impl Place {
    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.claim().endpoint()
    }

    /// Whether the run that this place belongs to is still up.
    pub(crate) fn is_current(&self) -> bool {
        self.app.balancer.borrow().is_current(self.claim())
    }

    /// Whether the run that this place belongs to is about to end, or has: not if it falls asleep.
    pub(crate) fn goes(&self) -> bool {
        use MachineState::{Started, Starting, Suspended, Suspending, Updating};
        let Endpoint { machine, run, .. } = *self.endpoint();
        let machines = self.app.machines.borrow();
        let stays = [Starting, Started, Suspending, Suspended, Updating];
        match machines.iter().find(|it| it.id == machine) {
            // Of a run that was just started the news comes later than the run.
            Some(it) => run < it.run || (run == it.run && !stays.contains(&it.state)),
            None => true,
        }
    }

    /// Waits for that.
    pub(crate) async fn until_going(&self) {
        loop {
            let changed = self.app.changed.notified();
            if self.goes() {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn app(&self) -> &Rc<App> {
        &self.app
    }

    fn claim(&self) -> &Claim {
        self.claim.as_ref().expect("a place holds its claim until it is dropped")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.note_unanswered();
        if let Some(edge) = self.claim.take().and_then(Claim::release) {
            self.app.handle(Event::Edge(edge));
        }
    }
}

/// What becomes of who waits, whose cause comes back.
type Answer = (Result<Place, NoPlace>, Cause);

#[derive(Debug)]
struct Waiter {
    since: Timestamp,
    cause: Cause,
    origin: Origin,
    answer: oneshot::Sender<Answer>,
}

/// Who waits at one port, in the order they came.
#[derive(Debug, Default)]
struct Queue {
    waiters: BTreeMap<u64, Waiter>,
    /// How many of them are Machines of the same pool.
    own: usize,
    /// As the balancer heard last.
    own_told: usize,
}

impl Queue {
    fn push(&mut self, number: u64, waiter: Waiter) {
        self.own += usize::from(waiter.origin == Origin::SamePool);
        self.waiters.insert(number, waiter);
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&number)?;
        self.own -= usize::from(waiter.origin == Origin::SamePool);
        Some(waiter)
    }

    fn pop(&mut self) -> Option<Waiter> {
        let first = *self.waiters.first_key_value()?.0;
        self.remove(first)
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) name: Rc<str>,
    balancer: RefCell<Balancer>,
    /// Balancers that panicked while requests were in flight, which only they have counted.
    former: RefCell<Vec<Balancer>>,
    /// The run of each Machine whose wake was recorded.
    woken: RefCell<BTreeMap<MachineId, u64>>,
    /// How each came up last.
    wakes: RefCell<BTreeMap<MachineId, wait::Awaking>>,
    quota: Cell<Quota>,
    pub(crate) counts: counts::Counts,
    /// What thaws them.
    freezers: RefCell<BTreeMap<MachineId, Freezer>>,
    naps: nap::Naps,
    /// When and why the server last let none start.
    refused: RefCell<Option<(Instant, String)>>,
    /// As of the last change, for a balancer that must begin anew.
    machines: RefCell<Vec<MachineView>>,
    /// Some of them may be about to end.
    changed: Notify,
    events: RefCell<VecDeque<Event>>,
    busy: Cell<bool>,
    queues: RefCell<BTreeMap<PublishedPort, Queue>>,
    /// Who waits for one Machine, by port.
    aimed: RefCell<BTreeMap<(PublishedPort, MachineId), Queue>>,
    last_ticket: Cell<u64>,
    ports: RefCell<Box<[PortFacts]>>,
    /// Rules about callers.
    guards: RefCell<Box<[Guard]>>,
    pub(crate) upstreams: Upstreams,
    pub(crate) compressors: Compressors,
    /// Where its Machines have sent requests before.
    pub(crate) replays: RefCell<Cache>,
    server: Rc<ServerSide>,
    /// When the balancer wants to be asked again.
    timeout: Cell<Option<Timestamp>>,
    alarm: alarm::Slot,
    checks: checks::Checks,
}

/// When who is held since then gives up, and how many may wait so.
fn bounds(reason: HoldReason, deadline: Instant, since: Instant) -> (Instant, usize) {
    match reason {
        HoldReason::Wake => (deadline, HELD_MAX),
        HoldReason::Full => (deadline.min(since + FULL_TIMEOUT), FULL_MAX),
    }
}

impl App {
    pub(crate) fn new(name: &str, settings: Settings, server: Rc<ServerSide>) -> Rc<Self> {
        Rc::new(Self {
            name: name.into(),
            balancer: RefCell::new(Balancer::new(settings)),
            former: RefCell::default(),
            woken: RefCell::default(),
            wakes: RefCell::default(),
            quota: Cell::new(Quota::new(NOTES_PER_SECOND)),
            counts: counts::Counts::default(),
            freezers: RefCell::default(),
            naps: nap::Naps::default(),
            refused: RefCell::default(),
            machines: RefCell::default(),
            changed: Notify::new(),
            events: RefCell::default(),
            busy: Cell::new(false),
            queues: RefCell::default(),
            aimed: RefCell::default(),
            last_ticket: Cell::new(0),
            ports: RefCell::default(),
            guards: RefCell::default(),
            upstreams: Upstreams::default(),
            compressors: Compressors::default(),
            replays: RefCell::default(),
            server,
            timeout: Cell::default(),
            alarm: alarm::Slot::default(),
            checks: checks::Checks::default(),
        })
    }

    /// Replaces what is known of its Machines and ports.
    pub(crate) fn set_machines(
        self: &Rc<Self>,
        machines: Vec<MachineView>,
        ports: Box<[PortFacts]>,
    ) {
        self.upstreams.retain(|id, run| {
            machines.iter().any(|m| m.id == id && m.run == run && m.state == MachineState::Started)
        });
        self.note_wakes(&machines);
        *self.ports.borrow_mut() = ports;
        self.handle(Event::PoolChanged(machines));
    }

    /// How a port is served, if it is published.
    pub(crate) fn port(&self, port: PublishedPort) -> Option<PortFacts> {
        self.ports.borrow().iter().find(|p| (p.start..=p.end).contains(&port)).cloned()
    }

    /// Whether this Machine publishes the port.
    pub(crate) fn publishes(&self, machine: MachineId, port: PublishedPort) -> bool {
        let machines = self.machines.borrow();
        let mut own = machines.iter().filter(|m| m.id == machine).flat_map(|m| &*m.services);
        own.any(|service| service.publishes(port))
    }

    /// Where a Machine is.
    pub(crate) fn region_of(&self, machine: MachineId) -> Option<Region> {
        let machines = self.machines.borrow();
        machines.iter().find(|view| view.id == machine).map(|view| view.region)
    }

    /// Takes a place if there is one at once; else says why one should wait, or that it is no use.
    pub(crate) fn choose(
        self: &Rc<Self>,
        port: PublishedPort,
        origin: Origin,
    ) -> Result<Place, Option<HoldReason>> {
        let choice = self.balancer.borrow().choose(port, origin, clock::random());
        match choice {
            Choice::Admitted(admission) => {
                let place = self.guard(admission.claim);
                if let Some(edge) = admission.edge {
                    self.handle(Event::Edge(edge));
                }
                Ok(place)
            }
            Choice::Hold(reason) => Err(Some(reason)),
            Choice::Refuse => Err(None),
        }
    }

    fn guard(self: &Rc<Self>, claim: Claim) -> Place {
        let (app, wait) = (Rc::clone(self), RefCell::default());
        Place { claim: Some(claim), app, wait, awake_only: Cell::new(false) }
    }

    /// Waits for a place after [`App::choose`] had none; leaves the queue when dropped.
    pub(crate) async fn hold(
        self: &Rc<Self>,
        port: PublishedPort,
        cause: Cause,
        origin: Origin,
        reason: HoldReason,
        deadline: Instant,
    ) -> Result<Place, NoPlace> {
        let since = Instant::now();
        let (deadline, waiting_max) = bounds(reason, deadline, since);
        let begun = clock::now();
        if waiting_max <= self.waiting(port) {
            self.note_refusal(None, cause, &NoPlace::QueueFull);
            return Err(NoPlace::QueueFull);
        }
        let (mut ticket, answer) = self.enqueue(port, cause, origin, begun);
        let outcome = tokio::time::timeout_at(deadline, answer).await;
        let waiter = ticket.leave();
        let (outcome, cause) = match outcome {
            Ok(Ok((outcome, cause))) => (outcome, Some(cause)),
            Ok(Err(_)) => (Err(NoPlace::Refused), None),
            Err(_) => (self.choose_late(port, origin, since), waiter.map(|it| it.cause)),
        };
        match (&outcome, cause) {
            (Ok(place), Some(cause)) => place.set_wait(begun, reason, cause),
            (Err(why), Some(cause)) => self.note_refusal(Some(begun), cause, why),
            (_, None) => {}
        }
        outcome
    }

    /// For who has waited since then, when his time is over.
    fn choose_late(
        self: &Rc<Self>,
        port: PublishedPort,
        origin: Origin,
        since: Instant,
    ) -> Result<Place, NoPlace> {
        self.choose(port, origin).map_err(|reason| match reason {
            Some(HoldReason::Wake) => self.not_started(port, since),
            Some(HoldReason::Full) => NoPlace::StayedFull,
            None => NoPlace::Refused,
        })
    }

    /// What a caller is told who waits since then.
    fn not_started(&self, port: PublishedPort, since: Instant) -> NoPlace {
        if self.checks.are_any() && self.balancer.borrow().is_unfit(port) {
            return NoPlace::Unhealthy;
        }
        match &*self.refused.borrow() {
            Some((at, reason)) if since <= *at => NoPlace::StartsRefused(reason.clone()),
            Some(_) | None => NoPlace::NotStarted,
        }
    }

    fn enqueue(
        self: &Rc<Self>,
        port: PublishedPort,
        cause: Cause,
        origin: Origin,
        since: Timestamp,
    ) -> (Ticket, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let number = self.last_ticket.get() + 1;
        self.last_ticket.set(number);
        let waiter = Waiter { since, cause, origin, answer: sender };
        self.queues.borrow_mut().entry(port).or_default().push(number, waiter);
        self.announce_demand(port);
        (Ticket { app: Rc::clone(self), port, number }, receiver)
    }

    fn waiting(&self, port: PublishedPort) -> usize {
        self.queues.borrow().get(&port).map_or(0, |queue| queue.waiters.len())
    }

    fn announce_demand(self: &Rc<Self>, port: PublishedPort) {
        let (own, told) = match self.queues.borrow_mut().get_mut(&port) {
            Some(queue) => (queue.own, std::mem::replace(&mut queue.own_told, queue.own)),
            None => (0, 0),
        };
        if own != 0 || told != 0 {
            self.handle(Event::OwnCalls { port, waiting: own });
        }
        self.handle(Event::Demand { port, waiting: self.waiting(port) });
    }

    /// Feeds one event and carries out what follows from it.
    pub(crate) fn handle(self: &Rc<Self>, event: Event) {
        if !matches!(event, Event::Edge(_)) {
            self.checks.look_again();
        }
        match &event {
            Event::PoolChanged(machines) => {
                *self.machines.borrow_mut() = machines.clone();
                self.changed.notify_waiters();
            }
            // Only where somebody rests: the last of others pays nothing for it.
            Event::Edge(edge) if edge.change.load_to == 0 && edge.change.to != 0 => {
                self.note_end_of_load(edge.machine, edge.change.used);
            }
            _ => {}
        }
        if self.busy.replace(true) {
            self.events.borrow_mut().push_back(event);
        } else {
            self.decide(|balancer| take_in(balancer, event));
        }
    }

    fn handle_timeout(self: &Rc<Self>) {
        debug_assert!(!self.busy.get(), "timers run between events");
        self.busy.set(true);
        self.decide(|balancer| balancer.handle_timeout(clock::now()));
    }

    /// Runs the balancer until nothing is left to do. A panic in it ends this app's decisions only:
    /// they begin anew, once, from what is known.
    fn decide(self: &Rc<Self>, first: impl FnOnce(&mut Balancer)) {
        let mut first = Some(first);
        for _ in 0..2 {
            let run = || {
                if let Some(first) = first.take() {
                    first(&mut self.balancer.borrow_mut());
                    self.drain_effects();
                }
                while let Some(event) = self.next_event() {
                    take_in(&mut self.balancer.borrow_mut(), event);
                    self.drain_effects();
                }
            };
            if catch_unwind(AssertUnwindSafe(run)).is_ok() {
                break;
            }
            tracing::error!(app = &*self.name, "the balancer panicked and begins anew");
            self.begin_anew();
        }
        self.busy.set(false);
        self.note_timeout();
        if self.checks.are_stale() {
            self.follow_checks();
        }
    }

    /// Makes a new balancer, and queues the events that it needs before others.
    fn begin_anew(&self) {
        let settings = Settings { region: self.balancer.borrow().region() };
        let former = self.balancer.replace(Balancer::new(settings));
        // Else bytes would go by its words into a Machine that the new one has put to sleep.
        former.shut();
        self.former.borrow_mut().push(former);
        self.checks.look_again();
        self.forget_former();
        let mut events = self.events.borrow_mut();
        events.clear();
        events.push_back(Event::PoolChanged(self.machines.borrow().clone()));
        for (machine, freezer) in self.freezers.borrow().iter() {
            events.push_back(Event::Freezer { machine: *machine, run: freezer.run() });
        }
        if self.server.is_retired() {
            events.push_back(Event::Retired);
        }
        if self.server.is_ready() {
            events.push_back(Event::ServerReady);
        }
        events.extend(self.naps.recalls());
        for (port, queue) in self.queues.borrow().iter() {
            events.push_back(Event::OwnCalls { port: *port, waiting: queue.own });
            events.push_back(Event::Demand { port: *port, waiting: queue.waiters.len() });
        }
        events.extend(self.aimed_events());
    }

    /// Drops those former balancers that count nobody any more.
    fn forget_former(&self) {
        let machines = self.machines.borrow();
        self.former.borrow_mut().retain(|former| {
            let beliefs = machines.iter().filter_map(|m| former.belief(m.id));
            beliefs.map(|belief| belief.in_flight + belief.parked).sum::<u64>() != 0
        });
    }

    /// Requests in flight that the balancer does not know of: it has begun anew since they came.
    fn uncounted(&self, machine: MachineId, run: u64) -> u64 {
        if self.former.borrow().is_empty() {
            return 0;
        }
        self.forget_former();
        let former = self.former.borrow();
        let beliefs = former.iter().filter_map(|former| former.belief(machine));
        beliefs.filter(|belief| belief.run == run).map(|belief| belief.in_flight).sum()
    }

    fn next_event(&self) -> Option<Event> {
        self.events.borrow_mut().pop_front()
    }

    fn drain_effects(self: &Rc<Self>) {
        loop {
            let effect = self.balancer.borrow_mut().poll_effect();
            let Some(effect) = effect else { return };
            self.perform(effect);
        }
    }

    fn perform(self: &Rc<Self>, effect: Effect) {
        self.checks.look_again();
        match effect {
            Effect::Start { machine, attempt, port } => {
                self.note_asked(machine);
                self.server.ask_start(machine, attempt, self.cause(port, machine));
            }
            Effect::Thaw { machine, run, attempt, port } => {
                let outcome = self.thaw(machine, run, attempt, self.cause(port, machine));
                self.events.borrow_mut().push_back(Event::Thawed { machine, attempt, outcome });
            }
            Effect::Stop { machine, run, attempt, .. } if self.uncounted(machine, run) != 0 => {
                let reason = "requests are in flight".to_owned();
                self.note_veto(machine, run, reason.clone());
                let outcome = StopOutcome::Refused { reason };
                self.events.borrow_mut().push_back(Event::StopDone { machine, attempt, outcome });
            }
            // A balancer that panicked may have wanted it before it heard of that.
            Effect::Stop { machine, attempt, .. } if self.server.is_retired() => {
                let outcome = StopOutcome::Refused { reason: "another proxy decides".to_owned() };
                self.events.borrow_mut().push_back(Event::StopDone { machine, attempt, outcome });
            }
            Effect::Stop { machine, run, attempt, .. } if self.is_at_work(machine, run) => {
                let reason = "its program is at work".to_owned();
                self.note_veto(machine, run, reason.clone());
                let outcome = StopOutcome::Refused { reason };
                self.events.borrow_mut().push_back(Event::StopDone { machine, attempt, outcome });
            }
            Effect::Stop { machine, run, attempt, reason } => {
                self.checks.rest(machine);
                self.upstreams.close(machine);
                let reason = convert::stop_reason(reason);
                let machine = machine.to_string();
                fault::pass(Point::ProxyStopAsked);
                self.server.tell(FromProxy::Stop { machine, run, attempt, reason });
            }
            Effect::Admit { port, claim } => self.admit(port, claim),
            Effect::AdmitAimed { port, claim } => self.admit_aimed(port, claim),
            Effect::FailAimed { port, machine, waiters, reason } => {
                self.fail_aimed(port, machine, waiters, &reason);
            }
            Effect::Recalled { machine } => self.naps.go_on(machine),
            Effect::Fail { port, waiters, reason } => self.fail(port, waiters, &reason),
            Effect::Vetoed { machine, run, veto } => {
                self.note_veto(machine, run, live::reason(veto).text);
            }
            Effect::Drained { machine, token, in_flight } => {
                self.checks.rest(machine);
                self.upstreams.close(machine);
                let machine = machine.to_string();
                self.server.tell(FromProxy::Drained { machine, token, in_flight });
            }
        }
    }

    /// What forbids another proxy to let this run sleep: what is in flight, or 1 for what was a moment ago. If it is
    /// nothing the run gets no new work from here, until the server calls that off or it has slept.
    pub(crate) fn may_stop(self: &Rc<Self>, machine: MachineId, run: u64) -> u64 {
        let (now, balancer) = (clock::now(), self.balancer.borrow());
        let in_flight = balancer.belief(machine).filter(|belief| belief.run == run);
        let in_flight = in_flight.map_or(0, |belief| belief.in_flight);
        let rests = balancer.rests(machine, run, now);
        drop(balancer);
        let in_flight = in_flight + self.uncounted(machine, run);
        if in_flight != 0 || !rests || self.is_at_work(machine, run) {
            return in_flight.max(1);
        }
        // What it says of its end nobody waits for: this token is no drain of the server's.
        self.handle(Event::Drain { machine, run, token: 0, timeout: Duration::ZERO });
        0
    }

    fn cause(&self, port: Option<PublishedPort>, machine: MachineId) -> Option<Cause> {
        let Some(port) = port else { return self.naps.cause(machine) };
        if let Some(cause) = self.cause_of_aimed(port, machine) {
            return Some(cause);
        }
        let queues = self.queues.borrow();
        let queue = queues.get(&port)?;
        queue.waiters.first_key_value().map(|(_, waiter)| waiter.cause.clone())
    }

    fn admit(self: &Rc<Self>, port: PublishedPort, claim: Claim) {
        // A place that nobody takes any more is given back by its own drop.
        let place = self.guard(claim);
        if let Some(waiter) = self.pop(port) {
            drop(waiter.answer.send((Ok(place), waiter.cause)));
        }
    }

    fn fail(&self, port: PublishedPort, waiters: usize, reason: &FailReason) {
        for _ in 0..waiters {
            let Some(waiter) = self.pop(port) else { return };
            drop(waiter.answer.send((Err(NoPlace::of(reason)), waiter.cause)));
        }
    }

    fn pop(&self, port: PublishedPort) -> Option<Waiter> {
        self.queues.borrow_mut().get_mut(&port)?.pop()
    }

    /// A line for the app's own log.
    pub(crate) fn log(&self, machine: Option<MachineId>, text: &str) {
        tracing::debug!(app = &*self.name, ?machine, text, "request failed");
        self.server.log("warn", &self.name, machine, text.to_owned());
    }

    pub(crate) fn start_done(
        self: &Rc<Self>,
        machine: MachineId,
        attempt: u64,
        outcome: StartOutcome,
    ) {
        fault::pass(Point::ProxyStartHeard);
        if let StartOutcome::Refused { reason } = &outcome {
            *self.refused.borrow_mut() = Some((Instant::now(), reason.clone()));
        }
        if matches!(outcome, StartOutcome::Started { .. }) {
            self.note_up(machine);
        }
        self.handle(Event::StartDone { machine, attempt, outcome });
    }

    pub(crate) fn stop_done(
        self: &Rc<Self>,
        machine: MachineId,
        attempt: u64,
        outcome: StopOutcome,
    ) {
        fault::pass(Point::ProxyStopHeard);
        self.handle(Event::StopDone { machine, attempt, outcome });
    }
}

/// A place in the queue; leaves it when dropped.
#[derive(Debug)]
struct Ticket {
    app: Rc<App>,
    port: PublishedPort,
    number: u64,
}

impl Ticket {
    /// Who waited, if he still did.
    fn leave(&mut self) -> Option<Waiter> {
        let removed = {
            let mut queues = self.app.queues.borrow_mut();
            queues.get_mut(&self.port).and_then(|queue| queue.remove(self.number))
        };
        if removed.is_some() {
            self.app.announce_demand(self.port);
        }
        removed
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(Waiter { since, cause, .. }) = self.leave() {
            self.app.note_left(since, cause);
        }
    }
}

fn take_in(balancer: &mut Balancer, event: Event) {
    #[cfg(test)]
    planted::panic_if_planted();
    balancer.handle_event(event, clock::now());
}

/// A bug for tests: the balancer itself has none that we could use.
#[cfg(test)]
pub(crate) mod planted {
    use std::cell::Cell;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use perch_core::balancer::MachineView;
    use perch_core::ids::{MachineId, Region};
    use perch_core::lifecycle::MachineState;
    use perch_core::service::{
        Autostart, Autostop, Concurrency, PortSpec, PublishedPort, ServiceSpec, Transport, Unit,
    };

    /// Of [`machine`]; what goes there is raw.
    pub(crate) const PORT: PublishedPort = PublishedPort::tcp(5432);

    /// A Machine of one service, which sleeps in this way after so long.
    pub(crate) fn machine(
        id: MachineId,
        state: MachineState,
        run: u64,
        (autostop, auto_stop_after): (Autostop, Duration),
    ) -> MachineView {
        let number = PORT.number();
        let port =
            PortSpec { start: number, end: number, handlers: Vec::new(), force_https: false };
        let service = ServiceSpec {
            transport: Transport::Tcp,
            internal_port: number,
            ports: vec![port],
            autostop,
            autostart: Autostart::On,
            min_machines_running: 0,
            concurrency: Concurrency { unit: Unit::Connections, soft_limit: 20, hard_limit: None },
            auto_stop_after,
            start_timeout: Duration::from_secs(60),
            checks: std::sync::Arc::default(),
        };
        MachineView {
            id,
            run,
            state,
            region: Region::LOCAL,
            link_ip: Ipv4Addr::LOCALHOST,
            config_version: 1,
            cordoned: false,
            leased: false,
            primary: true,
            services: [service].into(),
        }
    }

    thread_local! {
        static PANICS: Cell<u32> = const { Cell::new(0) };
    }

    /// The balancers of this thread panic at their next events.
    pub(crate) fn plant_panics(count: u32) {
        PANICS.set(count);
    }

    pub(crate) fn planted_panics() -> u32 {
        PANICS.get()
    }

    pub(super) fn panic_if_planted() {
        if let Some(left) = PANICS.get().checked_sub(1) {
            PANICS.set(left);
            panic!("a planted bug");
        }
    }
}
