//! One app's balancer: which Machine gets a request, when Machines wake, when they sleep.
//!
//! There is one [`Balancer`] per app, in the proxy. Its *pools* are the sets of Machines that share
//! a published port; each pool and region is judged on its own (AS-34, AS-40). Callers wait in one
//! queue **per published port**, which belongs to the shell; the balancer knows only its length.
//!
//! ```text
//!            request to a port
//!                  │ route(port).choose()            no event, no lock, no message
//!      ┌───────────┼──────────────┐
//!   Admitted      Hold          Refuse ──► 503 PR01
//!      │           │ enqueue, Event::Demand{port, waiting}
//!      │           ▼
//!      │       Effect::Start ──► server ──► Event::StartDone, Event::PoolChanged
//!      │           ▼
//!      │       Effect::Admit{port, claim} ── the first of the queue goes on with this claim
//!      ▼           ▼
//!   connect, serve, claim.release() ──► Option<Edge> ──► Event::Edge
//!                                                          │ last one out, for auto_stop_after
//!                       server ◄── Effect::Stop ◄──────────┘ word closed in the same step
//! ```
//!
//! # How a shell drives it
//!
//! One owner. After **each** call of [`Balancer::handle_event`] and [`Balancer::handle_timeout`]:
//! call [`Balancer::poll_effect`] until it is `None` and do each effect before the next event, then
//! sleep until [`Balancer::poll_timeout`]. `now` never goes back.
//!
//! **A request** comes to `port`: `balancer.route(port)`; none: the port is not published. Then
//! [`Route::choose`] with [`Origin::SamePool`] if the caller is a Machine of this app, else
//! [`Origin::Caller`], and any mixed random number:
//! - `Admitted`: feed `edge`, if there is one, as [`Event::Edge`]; connect to
//!   [`Endpoint::target`]. When the request (or raw connection) ends, [`Claim::release`] and feed
//!   its edge. A connect that is refused within `start_timeout` of the run's start is retried *with
//!   the same claim*; if the Machine leaves the pool or its run changes meanwhile
//!   ([`Balancer::is_current`]), release the claim and choose again.
//! - `Hold(Wake)` or `Hold(Full)`: if the queue is at its limit, 503 with Retry-After; else append
//!   the caller and feed [`Event::Demand`] with the new length. The caller's own timer
//!   (`start_timeout`) and its disconnect remove it from the queue: feed `Demand` again. Neither
//!   ends a start (OQ-09). On its timer, PM03 if `choose` still says `Hold(Wake)`.
//! - `Refuse`: 503 at once (AS-73).
//!
//! A request that wants certain Machines (`crate::aim`): [`Balancer::choose_among`] in place of `choose`; who is
//! held waits in the queue of that Machine and port, and the same goes for [`Event::Aimed`], `AdmitAimed` and
//! `FailAimed` as for `Demand`, `Admit` and `Fail`.
//!
//! **Effects**:
//! - `Start`: take a slot of [`StartSlots`] (8 per host), then send `Start` to the server; report as
//!   cause the first caller in the queue of `port`. Its answer is [`Event::StartDone`] with the same
//!   attempt. While no server is connected, drop it: [`Event::ServerReady`] asks again.
//! - `Thaw`: write to the freezer of that run, feed [`Event::Thawed`], and tell the server, now or when
//!   there is one again.
//! - `Stop`: send it. Answer: [`Event::StopDone`]. Dropped in the same way.
//! - `Admit`: remove the first caller of the queue and let it go on as if it had been `Admitted`; the
//!   balancer has counted it out of `waiting` itself (send no `Demand`) and has seen the edge. Queue
//!   empty because the caller just left: release the claim (and feed its edge).
//! - `Fail`: answer and remove the first `waiters` of the queue; send no `Demand`.
//! - `Drained`: send it.
//! - `Vetoed`: write it down.
//!
//! **From the server**: `App` → [`Event::PoolChanged`] with all Machines (also those without
//! services: they are ignored); `StartDone`, `StopDone`, `Drain`, `Undrain` → the events of that
//! name; `RemoveApp` → `PoolChanged` with nothing, do the effects (it fails who waits), drop it.
//!
//! **Crashes.** *The server's* connection ends: [`Event::ServerLost`]. Routes and words stay: what
//! runs is served on; what was about to stop stays closed, because the stop may have been done.
//! A new server sends everything; at `SnapshotEnd` remove the apps that it did not name, then feed [`Event::ServerReady`]: attempts that were
//! never answered are forgotten and asked again where they are still needed. A view with a run that
//! the balancer knows changes neither counts nor idle clocks: adoption is no start. *The proxy*
//! dies: its successor makes new balancers (attempts are numbered by time, so those of a predecessor are others) and
//! gets the same snapshot; Machines that run are taken as used just now. The server reads what the
//! dead proxy had still sent before it sends that snapshot: a stop must not meet a successor that
//! believes the Machine is open; and it restores its lifecycles only when it is connected to a proxy
//! that lives, so that a drain has somebody to answer it. *A Machine* dies: its view
//! has another state or run; the word is closed, claims of the dead run are worthless but must still
//! be released (it does no harm), and their callers, if nothing was sent yet, choose again.
//!
//! # Rules
//!
//! - Asleep after `auto_stop_after` without load: the last one of a region; of several, the excess
//!   `running − (at or over soft + 1)`, the longest quiet first. Never below `min_machines_running`
//!   in the primary region; never one that is leased or cordoned (AS-31, AS-32, AS-35, MA-64).
//! - Excess that is loaded, for `auto_stop_after` without interruption: the least loaded is drained
//!   for [`DRAIN_TIMEOUT`] and put back if load remains (AS-63); one per region and
//!   `auto_stop_after`.
//! - A suspended Machine whose freezer the shell holds is thawed without asking anybody, also while no
//!   server is there; any other start is the server's.
//! - Where a service has checks, callers come only while all of them pass; who finds no such Machine
//!   waits (PX-64, PX-66). One that fails them is no capacity: what sleeps is woken in its place; one that
//!   has just come up counts as starting until it passes or fails (AS-76). It sleeps as others do, and before them.
//! - Starts wanted = ceil((in flight + waiting) / soft) − running − starting, of the Machines that
//!   sleep, each at most once at a time; judged while callers wait, and when a caller has to be let
//!   in at or over `soft_limit` (AS-71); suspended before stopped, then the last that fell asleep,
//!   then by ID (AS-67, AS-68); after all others a frozen one whose places resting connections have.
//!   Failed ones back off 1 s doubling to 60 s; when all have failed [`START_TRIES_MAX`] times in a
//!   row, who waits is told so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::Origin;
use crate::checks::Status;
use crate::ids::{MachineId, Region};
use crate::lifecycle::MachineState;
use crate::mutant::Mutant;
use crate::service::{PublishedPort, ServiceSpec};
use crate::time::Timestamp;

mod aimed;
mod few;
mod health;
mod machine;
mod outlook;
mod pools;
mod recall;
mod route;
mod slots;
mod start;
mod stop;
#[cfg(test)]
mod tests;
mod thaw;

use aimed::Waiting;
use few::Few;
use machine::{Drain, Machine, Turn};
use pools::{PoolClock, PoolKey, Segment};

pub use aimed::AimedChoice;
pub use outlook::{Outlook, Veto};
pub use route::{Admission, Choice, Claim, Edge, Endpoint, HoldReason, Pressure, Route};
pub use slots::StartSlots;

/// How long an excess Machine with load is kept out of rotation before it is put back (AS-63).
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// So long after connections were let go on, it is looked again for who may sleep.
const AFTER_RECALL: Duration = Duration::from_millis(1);
/// After so many failures in a row of every Machine, waiting callers are told: the first could be
/// chance, the second bad luck; with back-off three take at least 3 s.
pub const START_TRIES_MAX: u32 = 3;

/// What a balancer must know before its first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The region of the host that this proxy runs on.
    pub region: Region,
}

/// One Machine as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineView {
    /// The Machine.
    pub id: MachineId,
    /// Its current or last run; 0: never started.
    pub run: u64,
    /// Its state on the API.
    pub state: MachineState,
    /// Where it is.
    pub region: Region,
    /// Its address on its private link.
    pub link_ip: Ipv4Addr,
    /// The version of its newest config; a change forgives earlier failures to start.
    pub config_version: u64,
    /// Gets no traffic (PX-67).
    pub cordoned: bool,
    /// Somebody holds its lease: it is never put to sleep, but may be woken (MA-64).
    pub leased: bool,
    /// Whether its region is the primary one of the app (AS-64).
    pub primary: bool,
    /// What it publishes.
    pub services: Arc<[ServiceSpec]>,
}

/// What a balancer hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All Machines of the app, after any change of one.
    PoolChanged(Vec<MachineView>),
    /// So many callers wait in the queue of this port now: after each change of the queue's length
    /// that the balancer did not cause itself.
    Demand {
        /// The published port they called.
        port: PublishedPort,
        /// The length of the queue.
        waiting: usize,
    },
    /// So many of those who wait at this port are Machines of the same pool, whose calls are no use
    /// (AS-23): before [`Event::Demand`] whenever it is another number.
    OwnCalls {
        /// The published port they called.
        port: PublishedPort,
        /// How many of the queue.
        waiting: usize,
    },
    /// So many callers wait for exactly this Machine now ([`AimedChoice::Hold`]): after each change that
    /// the balancer did not cause itself.
    Aimed {
        /// The published port they called.
        port: PublishedPort,
        /// The Machine.
        machine: MachineId,
        /// How many.
        waiting: usize,
        /// How many of them are Machines of the same pool, whose calls are no use (AS-23).
        own: usize,
    },
    /// A claim or release made an edge.
    Edge(Edge),
    /// The server's answer to [`Effect::Start`].
    StartDone {
        /// The Machine.
        machine: MachineId,
        /// Of the effect.
        attempt: u64,
        /// What became of it.
        outcome: StartOutcome,
    },
    /// The server's answer to [`Effect::Stop`].
    StopDone {
        /// The Machine.
        machine: MachineId,
        /// Of the effect.
        attempt: u64,
        /// What became of it.
        outcome: StopOutcome,
    },
    /// The server wants the Machine to take no new work and to hear when it is empty.
    Drain {
        /// The Machine.
        machine: MachineId,
        /// Its run; a drain of an older run is answered at once.
        run: u64,
        /// Comes back with the answer.
        token: u64,
        /// How long to wait for what is in flight.
        timeout: Duration,
    },
    /// The server changed its mind.
    Undrain {
        /// The Machine.
        machine: MachineId,
        /// Its run.
        run: u64,
    },
    /// A connection that has a place in this run ([`Claim`]) wants to go on, and neither
    /// [`Claim::is_ready`] nor [`Balancer::goes_on`]. To be said again after a new balancer was made.
    Recall {
        /// The Machine.
        machine: MachineId,
        /// The run.
        run: u64,
        /// What it has to say: a heartbeat wakes, but keeps nobody awake.
        origin: Origin,
    },
    /// The shell holds what thaws this run of the Machine ([`Effect::Thaw`]).
    Freezer {
        /// The Machine.
        machine: MachineId,
        /// The run; of an earlier one it is worthless.
        run: u64,
    },
    /// What became of [`Effect::Thaw`].
    Thawed {
        /// The Machine.
        machine: MachineId,
        /// Of the effect.
        attempt: u64,
        /// What became of it.
        outcome: ThawOutcome,
    },
    /// What the checks of a service say now: the worst of them.
    Checked {
        /// The Machine.
        machine: MachineId,
        /// The run; of an earlier one it is worthless.
        run: u64,
        /// The index of the service in the Machine's list.
        service: usize,
        /// Of its checks.
        status: Status,
    },
    /// New callers go to another balancer, of a successor of this proxy: that one decides from now on who sleeps. It asks
    /// ([`Balancer::rests`]). This one wakes whom its own callers and connections need, for as long as it has any.
    Retired,
    /// The connection to the server is gone: no outstanding attempt will be answered.
    ServerLost,
    /// A server is there (again) and has told all that it knows.
    ServerReady,
}

/// What became of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartOutcome {
    /// The Machine runs, as this run.
    Started {
        /// The run.
        run: u64,
    },
    /// It could not be started: back-off, next candidate (AS-69).
    Failed {
        /// For people.
        reason: String,
    },
    /// Not now: no room, being destroyed, stopped by somebody. Not the Machine's fault.
    Refused {
        /// For people.
        reason: String,
    },
}

/// What became of a thaw by the shell itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThawOutcome {
    /// The run goes on.
    Done,
    /// That run cannot be thawed any more: the server must be asked.
    Failed,
}

/// What became of a stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopOutcome {
    /// The run has ended.
    Stopped,
    /// The run is frozen.
    Suspended,
    /// It goes on.
    Refused {
        /// For people.
        reason: String,
    },
}

/// Why a Machine is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The last of its region, without load for so long (AS-32).
    Idle {
        /// How long.
        quiet: Duration,
    },
    /// One of too many, without load for so long (AS-31).
    ExcessIdle {
        /// Running Machines in the region, this one included.
        running: usize,
        /// Of them at or over `soft_limit`.
        over: usize,
        /// How long without load.
        quiet: Duration,
    },
    /// One of too many; its load went elsewhere (AS-63).
    ExcessDrained,
}

/// Why waiting callers are sent away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailReason {
    /// Every Machine failed to start, each several times: 503, PM01, with the last reason.
    StartsFailed {
        /// The reason of the last failure.
        last: String,
    },
    /// Nothing can serve the port any more: 503, PR01; or the port is no longer published.
    NothingToWake,
}

/// What a balancer wants done.
#[derive(Debug)]
pub enum Effect {
    /// Ask the server to start a Machine.
    Start {
        /// The Machine.
        machine: MachineId,
        /// To be given back with the answer.
        attempt: u64,
        /// Whose callers wait; the cause to report is the first of its queue. `None` when the pool
        /// wants one more because the running ones are busy.
        port: Option<PublishedPort>,
    },
    /// Thaw a suspended Machine at once, and feed [`Event::Thawed`]. The server hears of it
    /// afterwards as of a start with this attempt; until it has answered ([`Event::StartDone`]), its
    /// word that the run is suspended is old news.
    Thaw {
        /// The Machine.
        machine: MachineId,
        /// The run that is meant.
        run: u64,
        /// To be given back with the answer.
        attempt: u64,
        /// As in [`Effect::Start`].
        port: Option<PublishedPort>,
    },
    /// Ask the server to stop a Machine; it is closed and empty already.
    Stop {
        /// The Machine.
        machine: MachineId,
        /// The run that is meant.
        run: u64,
        /// To be given back with the answer.
        attempt: u64,
        /// For the record.
        reason: StopReason,
    },
    /// Take the first caller out of the queue of this port: this is its place. If the caller has
    /// just left, release the claim.
    Admit {
        /// The port.
        port: PublishedPort,
        /// The place; counted.
        claim: Claim,
    },
    /// As `Admit`, from the queue of those who wait for the claim's Machine at this port.
    AdmitAimed {
        /// The port.
        port: PublishedPort,
        /// The first caller's place.
        claim: Claim,
    },
    /// Send the first so many of those who wait for this Machine at this port away.
    FailAimed {
        /// The port.
        port: PublishedPort,
        /// The Machine.
        machine: MachineId,
        /// How many.
        waiters: usize,
        /// What to tell them.
        reason: FailReason,
    },
    /// All connections of this Machine for which [`Event::Recall`] was said may go on
    /// ([`Claim::go_on`]), or their run has ended.
    Recalled {
        /// The Machine.
        machine: MachineId,
    },
    /// Send the first so many callers of the queue away.
    Fail {
        /// The port.
        port: PublishedPort,
        /// How many.
        waiters: usize,
        /// What to tell them.
        reason: FailReason,
    },
    /// A sleep was due and does not happen: for the record, once until the Machine is used again.
    Vetoed {
        /// The Machine.
        machine: MachineId,
        /// The run that goes on.
        run: u64,
        /// Why.
        veto: Veto,
    },
    /// Answer a drain.
    Drained {
        /// The Machine.
        machine: MachineId,
        /// Of the drain.
        token: u64,
        /// What was still in flight when the time was over; else 0.
        in_flight: u64,
    },
}

/// Whether somebody would answer a start or stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Ready,
    Lost,
}

/// What the balancer believes of one Machine, for people and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Belief {
    /// The state last heard.
    pub state: MachineState,
    /// The run last heard.
    pub run: u64,
    /// Whether new requests may enter.
    pub open: bool,
    /// Load over all services: in flight and not parked.
    pub in_flight: u64,
    /// Connections over all services that are parked ([`Claim::park`]).
    pub parked: u64,
    /// Whether a start or stop was asked for and not answered.
    pub asked: bool,
    /// Whether the server wants it empty.
    pub drained: bool,
    /// The worst of its services' checks.
    pub health: Status,
    /// Since when nobody has used it; the last use while somebody is inside.
    pub quiet_since: Timestamp,
}

/// Decides for all Machines of one app. See the module's head for how to drive it.
#[derive(Debug)]
pub struct Balancer {
    settings: Settings,
    server: Server,
    /// Another balancer decides who sleeps.
    retired: bool,
    machines: Few<MachineId, Machine>,
    segments: Few<PublishedPort, Segment>,
    clocks: Few<PoolKey, PoolClock>,
    waiting: BTreeMap<PublishedPort, usize>,
    own_calls: BTreeMap<PublishedPort, usize>,
    /// Who waits for one Machine, by port.
    aimed: BTreeMap<(PublishedPort, MachineId), Waiting>,
    last_attempt: u64,
    lots: u64,
    /// When connections were last let go on.
    recalled_at: Option<Timestamp>,
    effects: VecDeque<Effect>,
    timeout: Option<(Timestamp, &'static str)>,
    mutant: Mutant,
}

impl Balancer {
    /// A balancer that knows no Machine yet.
    pub fn new(settings: Settings) -> Self {
        Self::with_mutant(settings, Mutant::None)
    }

    /// With a planted bug, for the simulation.
    #[doc(hidden)]
    pub fn with_mutant(settings: Settings, mutant: Mutant) -> Self {
        Self {
            settings,
            server: Server::Ready,
            retired: false,
            machines: Few::new(),
            segments: Few::new(),
            clocks: Few::new(),
            waiting: BTreeMap::new(),
            own_calls: BTreeMap::new(),
            aimed: BTreeMap::new(),
            last_attempt: 0,
            lots: 0,
            recalled_at: None,
            effects: VecDeque::new(),
            timeout: None,
            mutant,
        }
    }

    /// Takes in one event. Drain [`Self::poll_effect`] before the next one.
    pub fn handle_event(&mut self, event: Event, now: Timestamp) {
        let is_edge = matches!(event, Event::Edge(_));
        match event {
            Event::PoolChanged(views) => self.on_pool_changed(views, now),
            Event::Demand { port, waiting } => self.on_demand(port, waiting),
            Event::OwnCalls { port, waiting } => drop(self.own_calls.insert(port, waiting)),
            Event::Aimed { port, machine, waiting, own } => {
                self.on_aimed(port, machine, Waiting { all: waiting, own });
            }
            Event::Edge(edge) => {
                self.on_edge(edge, now);
                if edge.pressure == Pressure::OverSoft {
                    self.on_pressure(edge.machine, edge.service, now);
                }
            }
            Event::StartDone { machine, attempt, outcome } => {
                self.on_start_done(machine, attempt, outcome, now);
            }
            Event::StopDone { machine, attempt, outcome } => {
                self.on_stop_done(machine, attempt, outcome, now);
            }
            Event::Drain { machine, run, token, timeout } => {
                self.on_drain(machine, run, token, now + timeout);
            }
            Event::Undrain { machine, run } => self.on_undrain(machine, run),
            Event::Recall { machine, run, origin } => self.on_recall(machine, run, origin),
            Event::Freezer { machine, run } => self.on_freezer(machine, run),
            Event::Thawed { machine, attempt, outcome } => {
                self.on_thawed(machine, attempt, outcome, now);
            }
            Event::Checked { machine, run, service, status } => {
                self.on_checked(machine, run, service, status);
            }
            Event::Retired => self.on_retired(now),
            Event::ServerLost => self.on_server_lost(),
            Event::ServerReady => self.on_server_ready(),
        }
        self.decide(now);
        if !is_edge {
            self.note_vetoes(now);
        }
        if !(is_edge && self.mutant == Mutant::TimerLost) {
            self.timeout = self.next_timeout(now);
        }
    }

    /// To be called at [`Self::poll_timeout`] or later; earlier does no harm.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.decide(now);
        self.note_vetoes(now);
        self.timeout = self.next_timeout(now);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and why; it moves after each event.
    pub fn poll_timeout(&self) -> Option<(Timestamp, &'static str)> {
        self.timeout
    }

    /// The Machines behind a published port; `None`: nobody publishes it. Good for one request,
    /// wrong to keep for longer.
    pub fn route(&self, port: PublishedPort) -> Option<&Arc<Route>> {
        let (_, segment) = self.segments.last_up_to(&port)?;
        (port <= segment.end).then_some(&segment.route)
    }

    /// [`Route::choose`] for a port; a port that nobody publishes is refused.
    pub fn choose(&self, port: PublishedPort, origin: Origin, random: u64) -> Choice {
        self.route(port).map_or(Choice::Refuse, |route| route.choose(origin, random))
    }

    /// Whether a claim's run is still alive, draining included: if not, nobody will ever answer there.
    pub fn is_current(&self, claim: &Claim) -> bool {
        let endpoint = claim.endpoint();
        let machine = self.machines.get(&endpoint.machine);
        machine.is_some_and(|m| m.is_alive() && m.view.run == endpoint.run)
    }

    /// What the balancer believes of a Machine; `None`: it knows none of that name.
    pub fn belief(&self, machine: MachineId) -> Option<Belief> {
        self.machines.get(&machine).map(Machine::belief)
    }

    /// Whether this run could sleep as far as this balancer knows: nobody is inside or waits to go on, and nobody was
    /// for its `auto_stop_after`. Of an unknown Machine or run it knows nothing that would keep it awake.
    pub fn rests(&self, machine: MachineId, run: u64, now: Timestamp) -> bool {
        let machine = self.machines.get(&machine).filter(|m| m.view.run == run);
        machine.is_none_or(|m| m.in_flight() == 0 && m.recalled.is_none() && m.idle_at() <= now)
    }

    /// Lets nobody in any more, for good: another balancer takes its place, and is asked by whoever is inside.
    pub fn shut(&self) {
        self.machines.values().for_each(Machine::shut);
    }

    /// The region this balancer calls its own.
    pub fn region(&self) -> Region {
        self.settings.region
    }

    /// Everything that follows from what is known now, in this order: what is over, who gets in,
    /// who must wake, who may sleep, who waits in vain.
    fn decide(&mut self, now: Timestamp) {
        self.expire(now);
        self.admit(now);
        self.wake_aimed(now);
        self.wake(now);
        self.recall(now);
        // Who has just been recalled is about to be load, and nobody should sleep before that is known.
        if self.recalled_at != Some(now) {
            self.sleep(now);
        }
        self.fail_aimed(now);
        self.fail_hopeless(now);
        self.listen_for_pressure(now);
    }

    fn on_pool_changed(&mut self, views: Vec<MachineView>, now: Timestamp) {
        let named: BTreeSet<MachineId> = views.iter().map(|view| view.id).collect();
        let mut new = Vec::new();
        for view in views {
            if let Some(known) = self.machines.get_mut(&view.id) {
                let former = (self.mutant == Mutant::FormerHealthBelieved).then(|| known.health());
                known.update(view, now);
                former.iter().for_each(|former| known.believe(former));
            } else {
                let mut machine = Machine::new(view.clone(), now);
                machine.update(view, now);
                new.push((machine.view.id, machine));
            }
        }
        let former = self.machines.take().into_iter();
        let (kept, gone): (Vec<_>, Vec<_>) = former.partition(|(id, _)| named.contains(id));
        self.machines = kept.into_iter().chain(new).collect();
        for (_, gone) in gone {
            gone.shut();
            self.answer_drain_of(&gone);
            if gone.recalled.is_some() {
                self.effects.push_back(Effect::Recalled { machine: gone.view.id });
            }
        }
        self.answer_empty_drains();
        self.rebuild();
    }

    fn on_demand(&mut self, port: PublishedPort, waiting: usize) {
        if waiting == 0 {
            self.waiting.remove(&port);
            self.own_calls.remove(&port);
        } else {
            self.waiting.insert(port, waiting);
        }
        if self.mutant == Mutant::DisconnectCancelsStart && self.waiting.is_empty() {
            self.machines.values_mut().for_each(|m| m.start = None);
        }
    }

    fn on_edge(&mut self, edge: Edge, now: Timestamp) {
        let Some(machine) = self.machines.get_mut(&edge.machine) else { return };
        if machine.view.run != edge.run || edge.change.load_to != 0 {
            return;
        }
        let used = machine.take_used();
        let counts = match self.mutant {
            Mutant::IdleClockNotReset => false,
            Mutant::IdleClockResetByOwnCall => true,
            _ => used,
        };
        if counts {
            machine.quiet_since = now;
        }
        self.answer_empty_drains();
    }

    fn on_start_done(
        &mut self,
        id: MachineId,
        attempt: u64,
        outcome: StartOutcome,
        now: Timestamp,
    ) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.settle_thaw(attempt);
        let current = machine.start.is_some_and(|s| s.attempt == attempt);
        if !current && self.mutant != Mutant::LateCompletionAccepted {
            return;
        }
        machine.start = None;
        match outcome {
            StartOutcome::Started { run } => machine.on_started(run, now),
            StartOutcome::Failed { reason } => machine.on_start_failed(reason, now),
            StartOutcome::Refused { .. } => machine.on_start_refused(now),
        }
        self.rebuild();
    }

    fn on_stop_done(&mut self, id: MachineId, attempt: u64, outcome: StopOutcome, now: Timestamp) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let current = machine.stop.is_some_and(|s| s.attempt == attempt);
        if !current && self.mutant != Mutant::LateCompletionAccepted {
            return;
        }
        match outcome {
            StopOutcome::Stopped => machine.on_asleep(MachineState::Stopped, now),
            StopOutcome::Suspended => machine.on_asleep(MachineState::Suspended, now),
            StopOutcome::Refused { .. } => machine.on_stop_refused(now),
        }
        self.rebuild();
    }

    fn on_drain(&mut self, id: MachineId, run: u64, token: u64, until: Timestamp) {
        // The view may already say `stopping`: what counts is who is inside.
        let machine = self.machines.get_mut(&id).filter(|m| m.view.run == run);
        let Some(machine) = machine else {
            self.effects.push_back(Effect::Drained { machine: id, token, in_flight: 0 });
            return;
        };
        machine.set_drain(Drain::Server { token, until });
        self.answer_empty_drains();
    }

    fn on_undrain(&mut self, id: MachineId, run: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if machine.view.run == run && machine.drain.is_some_and(Drain::is_by_server) {
            machine.clear_drain();
        }
    }

    fn on_retired(&mut self, now: Timestamp) {
        self.retired = true;
        for machine in self.machines.values_mut() {
            if machine.is_excess_drained() {
                machine.clear_drain();
            }
            // Nobody heeds it any more, and callers would wait for an answer that may never come.
            if machine.stop.is_some() {
                machine.on_stop_refused(now);
            }
        }
    }

    fn on_server_lost(&mut self) {
        self.server = Server::Lost;
        self.machines.values_mut().for_each(Machine::on_server_lost);
    }

    fn on_server_ready(&mut self) {
        self.server = Server::Ready;
        self.machines.values_mut().for_each(Machine::on_server_ready);
    }

    /// The server waits for Machines to become empty; tells it of those that are.
    fn answer_empty_drains(&mut self) {
        for machine in self.machines.values_mut() {
            if let Some(Drain::Server { token, .. }) = machine.drain
                && machine.in_flight() == 0
            {
                machine.drain = Some(Drain::Answered);
                let id = machine.view.id;
                self.effects.push_back(Effect::Drained { machine: id, token, in_flight: 0 });
            }
        }
    }

    fn answer_drain_of(&mut self, gone: &Machine) {
        if let Some(Drain::Server { token, .. }) = gone.drain {
            let machine = gone.view.id;
            self.effects.push_back(Effect::Drained { machine, token, in_flight: 0 });
        }
    }

    /// Ends what has had its time.
    fn expire(&mut self, now: Timestamp) {
        for machine in self.machines.values_mut() {
            if let Some(Drain::Server { token, until }) = machine.drain
                && until <= now
            {
                machine.drain = Some(Drain::Answered);
                let (machine, in_flight) = (machine.view.id, machine.in_flight());
                self.effects.push_back(Effect::Drained { machine, token, in_flight });
            }
            machine.expire_start(now);
        }
    }

    /// Lets waiting callers in wherever there is room, each with the same step as a new one.
    fn admit_waiting(&mut self, now: Timestamp) {
        let ports: Vec<PublishedPort> = self.waiting.keys().copied().collect();
        for port in ports {
            while let Some(admission) = self.admit_one(port) {
                let claim = admission.claim;
                self.note_admitted(&claim, Turn::Aimed);
                self.effects.push_back(Effect::Admit { port, claim });
                if let Some(edge) = admission.edge {
                    self.on_edge(edge, now);
                }
            }
        }
    }

    fn admit_one(&mut self, port: PublishedPort) -> Option<Admission> {
        let waiting = *self.waiting.get(&port)?;
        self.lots += 1;
        let route = self.route(port)?;
        // The queue's order is not known here: while anybody else waits, all count as use.
        let own = self.own_calls.get(&port).copied().unwrap_or(0);
        let origin = if own < waiting { Origin::Caller } else { Origin::SamePool };
        let admission = match route.choose(origin, self.lots) {
            Choice::Admitted(admission) => Some(admission),
            Choice::Hold(HoldReason::Full) if self.mutant == Mutant::HardLimitIgnoredOnRelease => {
                route.force()
            }
            Choice::Hold(_) | Choice::Refuse => None,
        }?;
        if let Some(own) = self.own_calls.get_mut(&port) {
            *own = own.saturating_sub(1);
        }
        self.on_demand(port, waiting - 1);
        Some(admission)
    }

    /// Tells callers who wait in vain: nothing publishes or can ever serve their port, or every
    /// Machine has failed to start again and again.
    fn fail_hopeless(&mut self, now: Timestamp) {
        let ports: Vec<_> = self.waiting.iter().map(|(p, w)| (*p, *w)).collect();
        for (port, waiters) in ports {
            if let Some(reason) = self.hopeless(port, now) {
                self.on_demand(port, 0);
                self.effects.push_back(Effect::Fail { port, waiters, reason });
            }
        }
    }

    fn hopeless(&self, port: PublishedPort, now: Timestamp) -> Option<FailReason> {
        let serving = || self.machines.values().filter(|m| m.may_serve(port));
        if serving().next().is_none() {
            let forgotten = self.mutant == Mutant::CallersOfDestroyedAppForgotten;
            if forgotten && !self.machines.values().any(Machine::is_there) {
                return None;
            }
            return Some(FailReason::NothingToWake);
        }
        let tries_max = match self.mutant {
            Mutant::StartFailureDropsQueue => 1,
            _ => START_TRIES_MAX,
        };
        let failed = |m: &Machine| m.has_given_up(tries_max, now);
        let dropped = self.mutant == Mutant::StartFailureDropsQueue && serving().any(failed);
        let last = serving().filter(|m| failed(m)).map(|m| m.last_failure.clone()).next_back()?;
        let all = serving().all(failed);
        (all || dropped).then_some(FailReason::StartsFailed { last })
    }

    /// A number by the time of the wish in microseconds. Wishes of different balancers can thus be told apart, and the server
    /// knows the order of them: of proxies that follow each other or go on side by side, and of one that has begun anew.
    fn next_attempt(&mut self, now: Timestamp) -> u64 {
        self.last_attempt = now.as_micros().max(self.last_attempt + 1);
        self.last_attempt
    }

    fn next_timeout(&self, now: Timestamp) -> Option<(Timestamp, &'static str)> {
        let of_machines = self.machines.values().filter_map(|m| m.next_timeout(now));
        let recalled = self.recalled_at.filter(|at| *at == now);
        let recalled = recalled.map(|at| (at + AFTER_RECALL, "connections were recalled"));
        of_machines.chain(self.pool_timeouts(now)).chain(recalled).filter(|(at, _)| now < *at).min()
    }
}
