//! What the balancer knows of one Machine: what the server says, what we asked for, who is inside.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use super::recall::Recalled;
use super::route::{Endpoint, Nearby};
use super::{Belief, MachineView};
use crate::admission::{AdmissionWord, Busy, Limits, Origin};
use crate::checks::Status;
use crate::heartbeat::GRACE;
use crate::ids::Region;
use crate::lifecycle::MachineState;
use crate::service::{Autostart, Autostop, PublishedPort, ServiceSpec};
use crate::time::Timestamp;

/// A start that the server has not answered by then counts as failed: longer than a launch may take
/// there (`LAUNCH_TIMEOUT`), a stop before it included.
const START_ANSWER_MAX: Duration = Duration::from_secs(900);
/// The first back-off after a failed start; doubles (AS-69).
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// The longest back-off (AS-69).
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// A run that ends sooner with callers inside counts as a failed start.
const PROVEN_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StartAsked {
    pub(super) attempt: u64,
    deadline: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StopAsked {
    pub(super) attempt: u64,
    run: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// One too many: to sleep if it becomes empty, else back into rotation.
    Excess { until: Timestamp },
    /// The server waits for an answer.
    Server { token: u64, until: Timestamp },
    /// The server was told; it will stop this run or call the drain off.
    Answered,
}

impl Drain {
    pub(super) fn is_by_server(self) -> bool {
        match self {
            Self::Server { .. } | Self::Answered => true,
            Self::Excess { .. } => false,
        }
    }
}

/// How readily a Machine can be woken; less is sooner (AS-68).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Readiness {
    Suspended,
    Down,
    BackingOff,
    GoingDown,
    BeingReplaced,
    /// Frozen when its checks did not pass, which stands until they do.
    Unfit,
    /// Frozen, and connections that rest in this run have all its places: awake it takes nobody, unless
    /// its program ends some of them.
    Full,
}

#[derive(Debug)]
struct Door {
    word: Arc<AdmissionWord>,
    limits: Limits,
    /// The worst of the service's checks in this run; without any it passes.
    health: Status,
    turn: Turn,
}

/// Which of those who wait for a place comes first, when one is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Who waits for this very Machine.
    Aimed,
    /// Who waits for any.
    Anybody,
}

impl Door {
    /// Who rests has a place too.
    fn has_room(&self, run: u64) -> bool {
        self.word.in_flight(run) < self.limits.hard()
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) view: MachineView,
    doors: Vec<Door>,
    /// The first port of its pool; `None`: it publishes nothing and is left alone (AS-41).
    pub(super) pool: Option<PublishedPort>,
    pub(super) quiet_since: Timestamp,
    pub(super) start: Option<StartAsked>,
    pub(super) stop: Option<StopAsked>,
    pub(super) drain: Option<Drain>,
    /// The run that the shell can thaw by itself.
    pub(super) freezer: Option<u64>,
    /// The attempt by which the shell thawed this run, until the server has answered it.
    pub(super) thawed: Option<u64>,
    /// The run for which connections wait that have a place in it.
    pub(super) recalled: Option<Recalled>,
    /// A heartbeat has woken it: it is awake at least until then.
    stay_until: Timestamp,
    pub(super) last_failure: String,
    pub(super) slept_at: Timestamp,
    up_since: Timestamp,
    /// A stop or drain was under way when the server vanished: closed until we know.
    pub(super) in_limbo: bool,
    failures: u32,
    pub(super) retry_at: Option<Timestamp>,
    /// The sleep of which it was told that it does not happen.
    pub(super) vetoed: Option<Timestamp>,
}

impl Machine {
    /// A Machine that was never heard of; [`Self::update`] with the same view completes it.
    pub(super) fn new(view: MachineView, now: Timestamp) -> Self {
        let doors = doors(&view.services);
        Self {
            // Never the state of `view`, so that a Machine found running is seen as new here.
            view: MachineView { state: MachineState::Created, run: 0, ..view },
            doors,
            pool: None,
            quiet_since: now,
            start: None,
            stop: None,
            drain: None,
            freezer: None,
            thawed: None,
            recalled: None,
            stay_until: Timestamp::ZERO,
            last_failure: String::new(),
            slept_at: Timestamp::ZERO,
            up_since: now,
            in_limbo: false,
            failures: 0,
            retry_at: None,
            vetoed: None,
        }
    }

    // ---- what is ------------------------------------------------------------------------------

    pub(super) fn is_up(&self) -> bool {
        self.view.state == MachineState::Started
    }

    /// Its current run may still answer who is inside.
    pub(super) fn is_alive(&self) -> bool {
        match self.view.state {
            MachineState::Started
            | MachineState::Stopping
            | MachineState::Suspending
            | MachineState::Updating
            | MachineState::Replacing
            | MachineState::Destroying => true,
            MachineState::Created
            | MachineState::Creating
            | MachineState::Starting
            | MachineState::Stopped
            | MachineState::Suspended
            | MachineState::Restarting
            | MachineState::Failed
            | MachineState::LaunchFailed
            | MachineState::Destroyed => false,
        }
    }

    /// New requests may enter.
    pub(super) fn is_open(&self) -> bool {
        let leaving = self.stop.is_some() || self.drain.is_some() || self.in_limbo;
        self.is_up() && !leaving && !self.view.cordoned
    }

    /// Its health may be looked at. A drain by the server comes before a stop or suspend.
    pub(super) fn is_checkable(&self) -> bool {
        let leaving =
            self.stop.is_some() || self.in_limbo || self.drain.is_some_and(Drain::is_by_server);
        self.is_up() && !leaving
    }

    pub(super) fn health_of(&self, service: usize) -> Option<Status> {
        self.doors.get(service).map(|door| door.health)
    }

    /// Of the service behind `port`.
    pub(super) fn health_at(&self, port: PublishedPort) -> Status {
        self.door(port).map_or(Status::Passing, |door| door.health)
    }

    pub(super) fn worst_health(&self) -> Status {
        self.doors.iter().map(|door| door.health).max().unwrap_or(Status::Passing)
    }

    /// Whether that is something new.
    pub(super) fn set_health(&mut self, service: usize, status: Status) -> bool {
        let door = self.doors.get_mut(service);
        door.is_some_and(|door| std::mem::replace(&mut door.health, status) != status)
    }

    /// Of each service.
    pub(super) fn health(&self) -> Vec<Status> {
        self.doors.iter().map(|door| door.health).collect()
    }

    /// Only for planted bugs.
    pub(super) fn believe(&mut self, health: &[Status]) {
        let doors = self.doors.iter_mut().zip(health);
        doors.for_each(|(door, former)| door.health = *former);
    }

    /// What was found of an earlier run says nothing of this one.
    fn forget_health(&mut self) {
        for (door, service) in self.doors.iter_mut().zip(self.view.services.iter()) {
            door.health = unchecked(service);
        }
    }

    /// Has come up, and nobody knows yet whether it serves the port.
    pub(super) fn is_settling_at(&self, port: PublishedPort) -> bool {
        self.is_open() && self.health_at(port) == Status::Warning
    }

    /// Counted as running for autostop (AS-61).
    pub(super) fn is_counted(&self) -> bool {
        self.is_open() && !self.view.leased
    }

    /// On its way up and not open yet.
    pub(super) fn is_starting(&self) -> bool {
        let coming = matches!(self.view.state, MachineState::Starting | MachineState::Creating);
        !self.is_open() && !self.view.cordoned && (self.start.is_some() || coming)
    }

    /// Its start waits until its stop is over, which may take its whole `kill_timeout`. A suspend is
    /// called off by a start instead (AS-56).
    pub(super) fn is_starting_behind_a_stop(&self) -> bool {
        self.is_starting() && self.is_alive() && !self.is_being_suspended()
    }

    pub(super) fn is_being_suspended(&self) -> bool {
        let asked = self.stop.is_some() && self.autostop() == Autostop::Suspend;
        self.view.state == MachineState::Suspending || (self.is_up() && asked)
    }

    /// Out of rotation as one too many.
    pub(super) fn is_excess_drained(&self) -> bool {
        self.drain.is_some_and(|d| !d.is_by_server())
    }

    /// Load: parked connections are none.
    pub(super) fn in_flight(&self) -> u64 {
        self.doors.iter().map(|d| u64::from(d.word.load(self.view.run))).sum()
    }

    /// Connections that rest.
    pub(super) fn parked(&self) -> u64 {
        let all: u64 = self.doors.iter().map(|d| u64::from(d.word.in_flight(self.view.run))).sum();
        all - self.in_flight()
    }

    /// At or over `soft_limit` on any service (AS-65).
    pub(super) fn is_over(&self) -> bool {
        self.doors.iter().any(|d| d.limits.soft() <= d.word.load(self.view.run))
    }

    pub(super) fn autostop(&self) -> Autostop {
        Autostop::combined(&self.view.services).unwrap_or(Autostop::Off)
    }

    /// The longest of its services (DESIGN 10).
    pub(super) fn auto_stop_after(&self) -> Duration {
        let lengths = self.view.services.iter().map(|s| s.auto_stop_after);
        lengths.max().unwrap_or(Duration::MAX)
    }

    pub(super) fn min_machines_running(&self) -> usize {
        let floors = self.view.services.iter().map(|s| s.min_machines_running);
        floors.max().unwrap_or(0) as usize
    }

    /// May be put to sleep at all; load and clocks are another question.
    pub(super) fn is_stoppable(&self) -> bool {
        self.may_rest() && !self.view.leased
    }

    /// The same but for those who hold it awake.
    pub(super) fn may_rest(&self) -> bool {
        self.is_open() && self.start.is_none() && self.autostop() != Autostop::Off
    }

    fn service_for(&self, port: PublishedPort) -> Option<(usize, &ServiceSpec)> {
        self.view.services.iter().enumerate().find(|(_, s)| s.publishes(port))
    }

    pub(super) fn publishes(&self, port: PublishedPort) -> bool {
        self.is_there() && self.service_for(port).is_some()
    }

    pub(super) fn soft_limit(&self, port: PublishedPort) -> Option<u64> {
        self.door(port).map(|door| u64::from(door.limits.soft()))
    }

    /// Load of the service behind `port`.
    pub(super) fn load_at(&self, port: PublishedPort) -> u64 {
        self.door(port).map_or(0, |door| u64::from(door.word.load(self.view.run)))
    }

    /// The same for who waits: with all places taken there is no room for them, so it counts as at `soft_limit`
    /// at least, also if most of those inside rest.
    pub(super) fn carried_at(&self, port: PublishedPort) -> u64 {
        let soft = self.soft_limit(port).filter(|_| !self.has_room_at(port));
        self.load_at(port).max(soft.unwrap_or(0))
    }

    /// Whether one more may enter by this port while it is open.
    pub(super) fn has_room_at(&self, port: PublishedPort) -> bool {
        self.door(port).is_some_and(|door| door.has_room(self.view.run))
    }

    pub(super) fn turn_at(&self, port: PublishedPort) -> Turn {
        self.door(port).map_or(Turn::Aimed, |door| door.turn)
    }

    pub(super) fn set_turn(&mut self, service: usize, turn: Turn) {
        if let Some(door) = self.doors.get_mut(service) {
            door.turn = turn;
        }
    }

    fn door(&self, port: PublishedPort) -> Option<&Door> {
        self.service_for(port).and_then(|(index, _)| self.doors.get(index))
    }

    /// Neither gone nor going for ever.
    pub(super) fn is_there(&self) -> bool {
        match self.view.state {
            MachineState::LaunchFailed | MachineState::Destroying | MachineState::Destroyed => {
                false
            }
            MachineState::Created
            | MachineState::Creating
            | MachineState::Starting
            | MachineState::Started
            | MachineState::Stopping
            | MachineState::Stopped
            | MachineState::Suspending
            | MachineState::Suspended
            | MachineState::Restarting
            | MachineState::Updating
            | MachineState::Replacing
            | MachineState::Failed => true,
        }
    }

    /// Serves the port, or will, or can be woken for it: callers may wait.
    pub(super) fn may_serve(&self, port: PublishedPort) -> bool {
        let Some((_, service)) = self.service_for(port) else { return false };
        if !self.is_there() || self.view.cordoned {
            return false;
        }
        match self.view.state {
            MachineState::Started
            | MachineState::Creating
            | MachineState::Starting
            | MachineState::Restarting
            | MachineState::Updating
            | MachineState::Replacing => true,
            MachineState::Created
            | MachineState::Stopping
            | MachineState::Stopped
            | MachineState::Suspending
            | MachineState::Suspended
            | MachineState::Failed
            | MachineState::LaunchFailed
            | MachineState::Destroying
            | MachineState::Destroyed => service.autostart == Autostart::On,
        }
    }

    /// Whether and how readily it can be woken for `port` now (AS-68).
    pub(super) fn readiness(&self, port: PublishedPort, now: Timestamp) -> Option<Readiness> {
        let (_, service) = self.service_for(port)?;
        let backing_off = self.retry_at.is_some_and(|at| now < at);
        if service.autostart == Autostart::Off || self.view.cordoned || backing_off {
            return None;
        }
        let frozen = match (self.has_room_at(port), self.health_at(port)) {
            (true, Status::Passing) => Readiness::Suspended,
            (true, Status::Warning | Status::Critical) => Readiness::Unfit,
            (false, _) => Readiness::Full,
        };
        if self.is_being_suspended() {
            return Some(frozen);
        }
        match self.view.state {
            MachineState::Suspended => Some(frozen),
            MachineState::Created | MachineState::Stopped | MachineState::Failed => {
                Some(Readiness::Down)
            }
            MachineState::Restarting => Some(Readiness::BackingOff),
            MachineState::Stopping => Some(Readiness::GoingDown),
            MachineState::Started => self.stop.map(|_| Readiness::GoingDown),
            MachineState::Updating | MachineState::Replacing => Some(Readiness::BeingReplaced),
            MachineState::Creating
            | MachineState::Starting
            | MachineState::Suspending
            | MachineState::LaunchFailed
            | MachineState::Destroying
            | MachineState::Destroyed => None,
        }
    }

    /// Failed so often that waiting for its next try is no kindness.
    pub(super) fn has_given_up(&self, tries_max: u32, now: Timestamp) -> bool {
        let resting = self.retry_at.is_some_and(|at| now < at);
        !self.is_up() && self.start.is_none() && tries_max <= self.failures && resting
    }

    pub(super) fn belief(&self) -> Belief {
        Belief {
            state: self.view.state,
            run: self.view.run,
            open: self.is_open(),
            in_flight: self.in_flight(),
            parked: self.parked(),
            asked: self.start.is_some() || self.stop.is_some(),
            drained: self.drain.is_some_and(Drain::is_by_server),
            health: self.worst_health(),
            quiet_since: self.quiet_since,
        }
    }

    pub(super) fn endpoint(&self, port: PublishedPort, home: Region) -> Option<Endpoint> {
        let (index, service) = self.service_for(port)?;
        let door = self.doors.get(index)?;
        let home = self.view.region == home;
        self.is_up().then(|| Endpoint {
            machine: self.view.id,
            run: self.view.run,
            service: index,
            naps: self.naps(service),
            target: SocketAddrV4::new(self.view.link_ip, service.internal_port),
            nearby: if home { Nearby::SameRegion } else { Nearby::OtherRegion },
            limits: door.limits,
            word: Arc::clone(&door.word),
        })
    }

    // ---- what the server says -----------------------------------------------------------------

    /// Takes the server's newest view.
    pub(super) fn update(&mut self, view: MachineView, now: Timestamp) {
        let view = self.with_thaw(view);
        let (run, state) = (view.run, view.state);
        let moved = run != self.view.run || state != self.view.state;
        if moved && self.is_up() {
            self.on_down(now);
        }
        // After it: what ended a run together with its config was the update.
        if view.config_version != self.view.config_version {
            (self.failures, self.retry_at) = (0, None);
        }
        if run != self.view.run {
            (self.drain, self.in_limbo) = (None, false);
            self.forget_health();
        }
        if keys(&view.services) != keys(&self.view.services) {
            self.shut();
            self.doors = doors(&view.services);
        } else {
            set_limits(&mut self.doors, &self.view.services, &view.services);
        }
        self.view = view;
        self.settle_asked();
        if moved && self.is_up() {
            self.on_up(now);
        }
        if moved && self.failures == 0 {
            self.retry_at = None;
        }
        self.sync();
    }

    /// A stop may be answered by the view itself. A start is not: somebody else's may have been
    /// faster, and then ours is still on its way and must not be sent a second time.
    fn settle_asked(&mut self) {
        let (run, state) = (self.view.run, self.view.state);
        let going = matches!(
            state,
            MachineState::Started | MachineState::Stopping | MachineState::Suspending
        );
        self.stop = self.stop.filter(|s| run == s.run && going);
    }

    fn on_up(&mut self, now: Timestamp) {
        self.up_since = now;
        self.begin_quiet(now);
        // In limbo it stays: the new server may say `started` before it says what it will do.
        (self.drain, self.retry_at) = (None, None);
    }

    /// The run ended. With callers inside and soon after it came up, it counts as a failed start:
    /// else a program that crashes on each request would be started without a pause.
    fn on_down(&mut self, now: Timestamp) {
        self.slept_at = now;
        let young = now.since(self.up_since) < PROVEN_AFTER;
        if !young {
            self.failures = 0;
        } else if self.is_open() && self.in_flight() > 0 {
            self.back_off("it ended while serving its first requests".to_owned(), now);
        }
    }

    pub(super) fn on_started(&mut self, run: u64, now: Timestamp) {
        // A resume goes on with the run that was frozen.
        let coming = matches!(
            self.view.state,
            MachineState::Starting | MachineState::Suspending | MachineState::Suspended
        );
        let newer = self.view.run < run || (self.view.run == run && coming);
        if newer {
            let view = MachineView { run, state: MachineState::Started, ..self.view.clone() };
            self.update(view, now);
        }
    }

    pub(super) fn on_start_failed(&mut self, reason: String, now: Timestamp) {
        self.back_off(reason, now);
    }

    /// Not its fault: asked again in a moment, without growing pauses.
    pub(super) fn on_start_refused(&mut self, now: Timestamp) {
        self.retry_at = Some(now + BACK_OFF_MIN);
    }

    /// The stop that we asked for is over, and this is how it sleeps.
    pub(super) fn on_asleep(&mut self, state: MachineState, now: Timestamp) {
        let same_run = self.stop.is_none_or(|s| s.run == self.view.run);
        self.stop = None;
        if same_run && self.is_up() {
            let view = MachineView { state, ..self.view.clone() };
            self.update(view, now);
        }
    }

    /// It goes on: its idle clock starts anew, so that we do not ask again at once.
    pub(super) fn on_stop_refused(&mut self, now: Timestamp) {
        self.stop = None;
        self.begin_quiet(now);
        self.sync();
    }

    /// Its idle clock starts anew, unless it is awake for nothing but heartbeats.
    fn begin_quiet(&mut self, now: Timestamp) {
        match self.recalled {
            Some(Recalled { run, by: Origin::Heartbeat }) if run == self.view.run => {
                self.stay_until = now + GRACE.min(self.auto_stop_after());
            }
            Some(_) | None => self.quiet_since = now,
        }
    }

    /// When it may be put to sleep, if nobody uses it before.
    pub(super) fn idle_at(&self) -> Timestamp {
        (self.quiet_since + self.auto_stop_after()).max(self.stay_until)
    }

    pub(super) fn on_server_lost(&mut self) {
        let leaving = self.stop.is_some() || self.drain.is_some_and(Drain::is_by_server);
        self.in_limbo |= leaving;
        (self.start, self.stop, self.drain) = (None, None, None);
        self.sync();
    }

    pub(super) fn on_server_ready(&mut self) {
        self.in_limbo = false;
        self.sync();
    }

    fn back_off(&mut self, reason: String, now: Timestamp) {
        let wait = BACK_OFF_MIN.saturating_mul(1 << self.failures.min(8)).min(BACK_OFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + wait);
        self.last_failure = reason;
    }

    // ---- what we do ---------------------------------------------------------------------------

    pub(super) fn set_start(&mut self, attempt: u64, now: Timestamp) {
        self.start = Some(StartAsked { attempt, deadline: now + START_ANSWER_MAX });
    }

    pub(super) fn set_stop(&mut self, attempt: u64) {
        self.stop = Some(StopAsked { attempt, run: self.view.run });
        self.drain = None;
    }

    pub(super) fn set_drain(&mut self, drain: Drain) {
        self.drain = Some(drain);
        self.sync();
    }

    pub(super) fn clear_drain(&mut self) {
        self.drain = None;
        self.sync();
    }

    /// Closes all its words if nobody is inside and nobody was since the clock was set; otherwise
    /// changes nothing. A request either came before, and keeps it awake, or finds it closed.
    pub(super) fn close_if_idle(&mut self, now: Timestamp) -> Result<(), Busy> {
        for index in 0..self.doors.len() {
            if let Err(busy) = self.doors[index].word.close_if_idle(self.view.run) {
                if busy == Busy::Used && self.take_used() {
                    self.quiet_since = now;
                }
                self.sync();
                return Err(busy);
            }
        }
        Ok(())
    }

    /// Whether a request that counts came since the last look.
    pub(super) fn take_used(&self) -> bool {
        // Every word must be asked, so no short cut.
        self.doors.iter().map(|d| d.word.take_used()).fold(false, |any, used| any | used)
    }

    /// Lets nobody in any more, for good.
    pub(super) fn shut(&self) {
        for door in &self.doors {
            door.word.close();
        }
    }

    pub(super) fn expire_start(&mut self, now: Timestamp) {
        if self.start.is_some_and(|s| s.deadline <= now) {
            self.start = None;
            self.back_off("the server did not answer".to_owned(), now);
        }
    }

    /// Makes the words say what is true.
    fn sync(&self) {
        for door in &self.doors {
            if self.is_open() {
                door.word.open(self.view.run);
            } else {
                door.word.close();
            }
        }
    }

    pub(super) fn next_timeout(&self, now: Timestamp) -> Option<(Timestamp, &'static str)> {
        let drain = self.drain.and_then(|drain| match drain {
            Drain::Excess { until } => Some((until, "excess drain ends")),
            Drain::Server { until, .. } => Some((until, "drain ends")),
            Drain::Answered => None,
        });
        let start = self.start.map(|s| (s.deadline, "start not answered"));
        let retry = self.retry_at.map(|at| (at, "start back-off ends"));
        let resting = self.may_rest() && self.in_flight() == 0;
        let idle = resting.then(|| (self.idle_at(), "idle long enough"));
        let all = [drain, start, retry, idle];
        all.into_iter().flatten().filter(|(at, _)| now < *at).min()
    }
}

fn doors(services: &[ServiceSpec]) -> Vec<Door> {
    let new = |s: &ServiceSpec| Door {
        word: Arc::new(AdmissionWord::new_closed()),
        limits: limits(s),
        health: unchecked(s),
        turn: Turn::Aimed,
    };
    services.iter().map(new).collect()
}

fn set_limits(doors: &mut [Door], former: &[ServiceSpec], services: &[ServiceSpec]) {
    for (door, (former, service)) in doors.iter_mut().zip(former.iter().zip(services)) {
        door.limits = limits(service);
        if former.checks != service.checks {
            door.health = unchecked(service);
        }
    }
}

/// As long as nobody has looked.
fn unchecked(service: &ServiceSpec) -> Status {
    if service.checks.is_empty() { Status::Passing } else { Status::Warning }
}

fn limits(service: &ServiceSpec) -> Limits {
    Limits::new(service.concurrency.soft_limit, service.concurrency.hard_limit)
}

/// What makes a service the same one in a newer view.
fn keys(services: &[ServiceSpec]) -> Vec<(u16, Vec<(PublishedPort, PublishedPort)>)> {
    let key = |s: &ServiceSpec| (s.internal_port, s.published().collect::<Vec<_>>());
    services.iter().map(key).collect()
}
