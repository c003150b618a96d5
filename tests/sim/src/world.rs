//! One simulated world: time, what is on the agenda, and the course of events: chaos, healing, rest, a last request.

use std::collections::BTreeMap;
use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::aim::{Among, Target};
use perch_core::balancer::{MachineView, StartOutcome, StopOutcome, ThawOutcome};
use perch_core::ids::Region;
use perch_core::lifecycle::{Event, Exit, MachineState, StartBy, StopBy};
use perch_core::mutant::Mutant;
use perch_core::time::Timestamp;

use crate::choices::Choices;
use crate::health::Try;
use crate::link::{Link, Look};
use crate::plan::{AppPlan, PORTS, Plan, START_TIMEOUT, id};
use crate::proxy::{App, Caller, Proxy};
use crate::server::{AppTruth, End, Process, Server, Truth};

/// More steps than any world needs: beyond, something turns in circles.
const STEPS_MAX: u32 = 200_000;
/// After the last fault: back-offs (60 s), restarts (30 s), drains and kills are over.
const HEALING: Duration = Duration::from_secs(150);
/// Some of the long requests end then.
const LONG_ENDS: Duration = Duration::from_secs(20);
/// A deploy's lease on a Machine ends by itself after this (MA-63).
const LEASE: Duration = Duration::from_secs(13);
/// A request that finds nothing broken is answered within this: a stop under way takes up to 5 s,
/// the launch after it below 1 s, and each message up to 0.3 s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(8);
/// Where a check has to pass first: it fails in its grace period (3 s), hangs (2 s), or another Machine is woken in place of
/// one that is sick.
const CHECKED_WITHIN: Duration = Duration::from_secs(8);

/// What is on the agenda.
#[derive(Debug, Clone)]
pub(crate) enum Ev {
    Chaos,
    Heal,
    Load,
    OwnCall(usize),
    Rest,
    LastRequest,
    End,
    ToProxy {
        link: u64,
        message: ToProxy,
    },
    ToServer {
        link: u64,
        message: ToServer,
    },
    /// A connection has begun: the next of what it begins with.
    Tell {
        link: u64,
        step: usize,
    },
    /// The link breaks while server and proxy live, each notices, and the server connects anew.
    Break,
    ServerParts(u64),
    ProxyParts(u64),
    Reconnect(u64),
    LookAtDrain(Look),
    StartServer,
    StartProxy,
    Store(usize),
    Removed(usize),
    /// A deploy has this Machine's lease and has updated it.
    Deployed(usize),
    LeaseEnds(usize),
    Drained {
        index: usize,
        token: u64,
    },
    LaunchEnds {
        index: usize,
        run: u64,
        fails: bool,
    },
    FreezeEnds {
        index: usize,
        token: u64,
        fails: bool,
    },
    ProcessEnds {
        index: usize,
        run: u64,
        exit: Exit,
    },
    Connect(u64),
    Finish(u64),
    LeaveQueue(u64),
    LeaveAimed {
        name: u64,
        machine: usize,
    },
    Arrive(u64),
    /// Programs fall ill and recover; a check is due, and was tried.
    Weather,
    CheckIsDue(usize),
    Tried(Try),
    /// A connection that stays: its answer comes, the Machine pings, its caller says more, it is looked at.
    Answer(u64),
    Ping(u64),
    Talk(u64),
    Look(u64),
}

/// Server to proxy.
#[derive(Debug, Clone)]
pub(crate) enum ToProxy {
    App { app: usize, views: Vec<MachineView> },
    RemoveApp(usize),
    SnapshotEnd,
    StartDone { index: usize, attempt: u64, outcome: StartOutcome },
    StopDone { index: usize, attempt: u64, outcome: StopOutcome },
    Freezer { index: usize, run: u64 },
    Drain { index: usize, run: u64, token: u64, timeout: Duration },
    Undrain { index: usize, run: u64 },
}

/// Proxy to server.
#[derive(Debug, Clone)]
pub(crate) enum ToServer {
    Start { index: usize, attempt: u64 },
    Stop { index: usize, run: u64, attempt: u64 },
    Drained { index: usize, token: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Chaos,
    Calm,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) mutant: Mutant,
    pub(crate) choices: Choices,
    /// For what only some worlds have.
    pub(crate) extras: Choices,
    /// For what happens to the link.
    pub(crate) breaks: Choices,
    pub(crate) plan: Plan,
    pub(crate) now: Timestamp,
    pub(crate) server: Option<Server>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) truths: Vec<Truth>,
    pub(crate) apps: Vec<AppTruth>,
    pub(crate) link: Link,
    pub(crate) callers: BTreeMap<u64, Caller>,
    /// Thaws by the proxy that its balancer has not heard of yet.
    pub(crate) thaws: Vec<(usize, u64, ThawOutcome)>,
    pub(crate) next_caller: u64,
    /// Connections made while there was no proxy wait in the kernel's queue.
    pub(crate) backlog: Vec<u64>,
    pub(crate) served: u64,
    pub(crate) refused: u32,
    pub(crate) healed_at: Option<Timestamp>,
    pub(crate) agenda: BTreeMap<(Timestamp, u64), Ev>,
    entries: u64,
    phase: Phase,
    chaos_until: Timestamp,
    long: Vec<u64>,
    last: Vec<u64>,
    violation: Option<String>,
    notes: Option<Vec<String>>,
}

/// How a world ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) served: u64,
}

/// Whether to write down what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notes {
    Keep,
    Drop,
}

/// Runs the world of a seed to its end or to its first violation.
pub(crate) fn run(seed: u64, mutant: Mutant, notes: Notes) -> Outcome {
    let mut world = World::new(seed, mutant, notes);
    world.start_server();
    world.start_proxy();
    world.connect();
    world.later(Duration::ZERO, Ev::Chaos);
    world.later(Duration::ZERO, Ev::Weather);
    if world.plan.breaks {
        world.later(Duration::ZERO, Ev::Break);
    }
    let mut steps = 0;
    while world.violation.is_none() && world.step() {
        steps += 1;
        if steps == STEPS_MAX {
            world.fail("it goes on and on");
        }
    }
    let notes = world.notes.take().unwrap_or_default();
    Outcome { violation: world.violation, notes, served: world.served }
}

impl World {
    fn new(seed: u64, mutant: Mutant, notes: Notes) -> Self {
        let (mut choices, mut extras) = (Choices::from_seed(seed), Choices::from_seed(!seed));
        let mut breaks = Choices::from_seed(seed.rotate_left(32));
        let plan = Plan::draw(&mut choices, &mut extras, &mut breaks);
        let now = Timestamp::from_micros(1_000_000);
        Self {
            mutant,
            choices,
            extras,
            breaks,
            now,
            server: None,
            proxy: None,
            truths: (0..plan.machines()).map(|_| Truth::new()).collect(),
            apps: plan.apps.iter().map(|_| AppTruth::Exists).collect(),
            link: Link::default(),
            callers: BTreeMap::new(),
            thaws: Vec::new(),
            next_caller: 0,
            backlog: Vec::new(),
            served: 0,
            refused: 0,
            healed_at: None,
            agenda: BTreeMap::new(),
            entries: 0,
            phase: Phase::Chaos,
            chaos_until: now + plan.chaos,
            long: Vec::new(),
            last: Vec::new(),
            violation: None,
            notes: (notes == Notes::Keep).then(Vec::new),
            plan,
        }
    }

    // ---- time ---------------------------------------------------------------------------------

    pub(crate) fn later(&mut self, wait: Duration, event: Ev) {
        self.entries += 1;
        self.agenda.insert((self.now + wait, self.entries), event);
    }

    pub(crate) fn at(&mut self, micros: u64, event: Ev) {
        self.entries += 1;
        self.agenda.insert((Timestamp::from_micros(micros), self.entries), event);
    }

    /// Does what comes next; false: nothing does.
    fn step(&mut self) -> bool {
        let agenda = self.agenda.keys().next().map(|(at, _)| *at);
        let timer = self.next_timer();
        let next = [agenda, timer].into_iter().flatten().min();
        let Some(next) = next else { return false };
        self.now = self.now.max(next);
        if timer == Some(next) {
            self.fire_timers();
        } else if let Some((_, event)) = self.agenda.pop_first() {
            if matches!(event, Ev::End) {
                self.check_answered();
                return false;
            }
            self.handle(event);
        }
        self.check_counts();
        true
    }

    fn next_timer(&self) -> Option<Timestamp> {
        let proxy = self.proxy.iter().flat_map(|p| p.apps.iter().flatten());
        let proxy = proxy.filter_map(|app| app.balancer.poll_timeout());
        let server = self.server.iter().flat_map(|s| s.lives.values());
        let server = server.filter_map(|life| life.poll_timeout());
        server.chain(proxy).map(|(at, _)| at).min()
    }

    fn fire_timers(&mut self) {
        let now = self.now;
        for app in 0..self.plan.apps.len() {
            let balancer = self.proxy.as_ref().and_then(|p| p.balancer(app));
            let due = balancer.and_then(|balancer| balancer.poll_timeout());
            if due.is_some_and(|(at, _)| at <= now) {
                self.balancer_timeout(app);
            }
        }
        self.server_timeouts();
    }

    fn handle(&mut self, event: Ev) {
        match event {
            Ev::Chaos => self.chaos(),
            Ev::Heal => self.heal(),
            Ev::Load => self.load(),
            Ev::OwnCall(app) => self.own_call(app),
            Ev::Rest => self.rest(),
            Ev::LastRequest => self.last_request(),
            Ev::End => {}
            Ev::ToProxy { link, message } => self.proxy_hears(link, message),
            Ev::ToServer { link, message } => self.server_hears(link, message),
            Ev::Tell { link, step } => self.tell(link, step),
            Ev::Break => self.break_link(),
            Ev::ServerParts(link) => self.server_parts(link),
            Ev::ProxyParts(link) => self.proxy_parts(link),
            Ev::Reconnect(link) => self.reconnect(link),
            Ev::LookAtDrain(look) => self.look_at_drain(look),
            Ev::StartServer => self.start_server(),
            Ev::StartProxy => self.spawn_proxy(),
            Ev::Store(index) => self.store(index),
            Ev::Removed(index) => self.on_removed(index),
            Ev::Deployed(index) => self.on_deployed(index),
            Ev::LeaseEnds(index) => self.set_lease(index, false),
            Ev::Drained { index, token } => self.life_event(index, Event::Drained { token }),
            Ev::LaunchEnds { index, run, fails } => self.on_launch_ends(index, run, fails),
            Ev::FreezeEnds { index, token, fails } => self.on_freeze_ends(index, token, fails),
            Ev::ProcessEnds { index, run, exit } => self.end_process(index, run, exit),
            Ev::Connect(name) => self.connect_to_machine(name),
            Ev::Finish(name) => self.finish(name),
            Ev::LeaveQueue(name) => self.leave_queue(name),
            Ev::LeaveAimed { name, machine } => self.leave_aimed(name, machine),
            Ev::Arrive(name) => self.come(name),
            Ev::Weather => self.weather(),
            Ev::CheckIsDue(machine) => self.check_is_due(machine),
            Ev::Tried(tried) => self.on_tried(tried),
            Ev::Answer(name) => self.answer(name),
            Ev::Ping(name) => self.ping(name),
            Ev::Talk(name) => self.go_on(name),
            Ev::Look(name) => self.look(name),
        }
    }

    fn spawn_proxy(&mut self) {
        if self.server.is_none() {
            // Nobody is there to spawn one.
            self.later(Duration::from_secs(1), Ev::StartProxy);
            return;
        }
        if self.proxy.is_none() {
            self.proxy_has_ended();
        }
        self.start_proxy();
        self.connect();
    }

    // ---- chaos --------------------------------------------------------------------------------

    pub(crate) fn is_chaos(&self) -> bool {
        self.phase == Phase::Chaos
    }

    fn chaos(&mut self) {
        if self.chaos_until <= self.now {
            self.later(Duration::ZERO, Ev::Heal);
            return;
        }
        let index = self.choices.below(self.truths.len());
        match self.choices.below(100) {
            0..42 => self.burst(),
            42..50 => {
                let app = self.choices.below(self.plan.apps.len());
                self.call_from(Origin::SamePool, app, 0);
            }
            50..52 => self.deploy(self.plan.owner(index)),
            52..54 => self.destroy_machine(index),
            54..55 => self.destroy_app(self.plan.owner(index)),
            55..59 => {
                self.user_event(index, Event::Stop(StopBy::User { signal: None, timeout: None }))
            }
            59..60 => self.user_event(index, Event::Restart { signal: None, timeout: None }),
            60..64 => self.user_event(index, Event::Start(StartBy::User)),
            64..72 => self.user_update(index),
            72..78 => self.toggle_lease(index),
            78..81 => self.toggle_cordon(index),
            81..86 => self.kill_server(),
            86..91 => self.kill_proxy(),
            91..96 => self.crash_process(index),
            96..99 => self.user_event(index, Event::Suspend),
            _ => {}
        }
        let pause = if self.choices.chance(25) {
            self.choices.millis(500, 10_000)
        } else {
            self.choices.millis(0, 400)
        };
        self.later(pause, Ev::Chaos);
    }

    fn toggle_lease(&mut self, index: usize) {
        let leased = self.truths[index].leased;
        self.set_lease(index, !leased);
    }

    fn toggle_cordon(&mut self, index: usize) {
        let cordoned = self.truths[index].cordoned;
        self.set_cordon(index, !cordoned);
    }

    /// Machine after Machine: lease, update, wait, give the lease back.
    fn deploy(&mut self, app: usize) {
        if self.apps[app] == AppTruth::Exists {
            self.deploy_to(self.plan.apps[app].machines.start);
        }
    }

    fn deploy_to(&mut self, index: usize) {
        self.set_lease(index, true);
        self.user_update(index);
        let length = self.choices.millis(100, 3_000);
        self.later(length, Ev::Deployed(index));
    }

    fn on_deployed(&mut self, index: usize) {
        if self.server.is_none() {
            // The deploy fails; its lease ends by itself (DESIGN 3).
            return self.later(LEASE, Ev::LeaseEnds(index));
        }
        self.set_lease(index, false);
        let next = index + 1;
        if self.is_chaos() && self.plan.app_of(index).machines.contains(&next) {
            self.deploy_to(next);
        }
    }

    fn burst(&mut self) {
        let app = self.choices.below(self.plan.apps.len());
        let service = self.choices.below(self.plan.apps[app].services.len());
        for _ in 0..=self.choices.below(8) {
            self.call_from(Origin::Caller, app, service);
        }
    }

    fn call_from(&mut self, origin: Origin, app: usize, service: usize) {
        let patience =
            if self.choices.chance(20) { self.choices.millis(1, 800) } else { START_TIMEOUT };
        let work = if self.choices.chance(15) {
            self.choices.millis(1_000, 20_000)
        } else {
            self.choices.millis(1, 200)
        };
        let (port, came_at, tries) = (PORTS[service], self.now, 0);
        let target = self.plan.apps[app].target(&mut self.extras);
        self.arrive(Caller { app, port, origin, work, patience, came_at, target, tries });
    }

    // ---- after chaos --------------------------------------------------------------------------

    /// Nothing breaks any more; time for what is broken to come back.
    fn heal(&mut self) {
        self.note("healing");
        self.phase = Phase::Calm;
        self.settle_health();
        self.start_server();
        self.spawn_proxy();
        for index in 0..self.truths.len() {
            self.set_lease(index, false);
            self.set_cordon(index, false);
        }
        self.later(HEALING, Ev::Load);
    }

    /// Requests that stay; some of them end later, so that load ends up anywhere.
    fn load(&mut self) {
        self.note("load that stays");
        self.healed_at = Some(self.now);
        for app in 0..self.plan.apps.len() {
            self.load_app(app);
            self.own_call(app);
        }
        let after = self.plan.apps.iter().map(AppPlan::after).max().unwrap_or_default();
        self.later(LONG_ENDS + START_TIMEOUT + 4 * after, Ev::Rest);
    }

    fn load_app(&mut self, app: usize) {
        for _ in 0..self.choices.below(2 * self.plan.apps[app].machines.len() + 2) {
            let ends = self.choices.chance(50);
            let work = if ends { LONG_ENDS } else { Duration::from_secs(100_000) };
            let (port, came_at) = (PORTS[0], self.now);
            let (origin, patience) = (Origin::Caller, Duration::from_secs(50));
            self.arrive(Caller::anybody(app, port, origin, (work, patience), came_at));
            if !ends {
                self.long.push(self.next_caller);
            }
        }
    }

    /// The app calls itself more often than it may sleep (AS-23).
    fn own_call(&mut self, app: usize) {
        let (port, came_at) = (PORTS[0], self.now);
        let (origin, work) = (Origin::SamePool, Duration::from_millis(1));
        self.arrive(Caller::anybody(app, port, origin, (work, work), came_at));
        self.later(self.plan.apps[app].after() / 3, Ev::OwnCall(app));
    }

    /// Load has been the same for long: belief must equal the world, and who may sleep must sleep.
    fn rest(&mut self) {
        self.note("at rest");
        for index in 0..self.truths.len() {
            self.check_belief(index);
        }
        for app in 0..self.plan.apps.len() {
            for region in ["lcl", "ams"] {
                self.check_asleep(app, region.parse().expect("three letters"));
            }
        }
        self.check_slots();
        for name in std::mem::take(&mut self.long) {
            self.finish(name);
        }
        self.later(Duration::from_secs(1), Ev::LastRequest);
    }

    fn last_request(&mut self) {
        let mut starts = 0;
        for app in 0..self.plan.apps.len() {
            let services = self.plan.apps[app].services.len();
            starts += services;
            for port in PORTS.into_iter().take(services) {
                let came_at = self.now;
                let (origin, work) = (Origin::Caller, Duration::from_millis(10));
                let times = (work, START_TIMEOUT);
                self.arrive(Caller::anybody(app, port, origin, times, came_at));
                self.last.push(self.next_caller);
            }
            starts += self.want_each(app);
        }
        // Starts beyond the host's limit come one after the other.
        let rounds = starts.div_ceil(self.plan.starts_max) as u32;
        self.later(rounds * (ANSWERED_WITHIN + CHECKED_WITHIN), Ev::End);
    }

    /// The last request to each Machine by name; returns how many. Where connections rest, they may have all places.
    fn want_each(&mut self, app: usize) -> usize {
        let machines = self.plan.apps[app].machines.clone();
        let free = |m: &usize| self.belief(*m).is_some_and(|belief| belief.parked == 0);
        let sound: Vec<usize> = machines.filter(|m| self.is_sound(*m) && free(m)).collect();
        for machine in &sound {
            let target = Target { among: Among::Machine(id(*machine)), except: None };
            let times = (Duration::from_millis(10), START_TIMEOUT);
            let caller = Caller::anybody(app, PORTS[0], Origin::Caller, times, self.now);
            self.arrive(Caller { target: Some(target), ..caller });
            self.last.push(self.next_caller);
        }
        sound.len()
    }

    // ---- what must hold at rest ---------------------------------------------------------------

    fn check_belief(&mut self, index: usize) {
        if self.truths[index].end != End::None {
            return self.check_destroyed(index);
        }
        let (Some(life), Some(_)) = (self.life(index), &self.proxy) else {
            self.fail("server or proxy did not come back");
            return;
        };
        let (state, run) = (life.state(), life.run());
        let truth = &self.truths[index];
        let really = matches!(truth.process, Process::Running { .. });
        let said = state == MachineState::Started;
        let frozen = matches!(truth.process, Process::Frozen { .. });
        let called_frozen = state == MachineState::Suspended;
        let other_run = really && !truth.process.is_running(run);
        if really != said || frozen != called_frozen || other_run {
            let text = format!("{}: {state} run {run}, but {:?}", id(index), truth.process);
            self.fail(&text);
            return;
        }
        let Some(belief) = self.belief(index) else {
            self.fail("the balancer lost a Machine");
            return;
        };
        if (belief.state, belief.run) != (state, run) || belief.asked {
            let text =
                format!("{}: {state} run {run}, but the balancer believes {belief:?}", id(index));
            self.fail(&text);
        } else if said && belief.drained {
            self.fail(&format!("{} is awake, and drained for nobody", id(index)));
        }
        self.check_health_at_rest(index);
    }

    /// Who was told that it is destroyed was told the truth, whatever crashed meanwhile.
    fn check_destroyed(&mut self, index: usize) {
        let truth = &self.truths[index];
        if truth.end != End::Removed || truth.process.is_alive() {
            let text =
                format!("{} was destroyed, but {:?}, {:?}", id(index), truth.end, truth.process);
            self.fail(&text);
        } else if self.belief(index).is_some() {
            self.fail(&format!("{} was destroyed, but the balancer knows it", id(index)));
        }
    }

    /// A start that nobody answers would take room from all apps for ever.
    fn check_slots(&mut self) {
        let sent = self.proxy.as_ref().map_or(0, |proxy| proxy.sent.len());
        if 0 < sent {
            self.fail(&format!("{sent} starts are in flight at rest"));
        }
    }

    /// DESIGN 4: nobody is awake who may sleep.
    fn check_asleep(&mut self, app: usize, region: Region) {
        let (running, over) = self.census(app, region, None);
        let plan = &self.plan.apps[app];
        let idle = |index: &usize| {
            let here = self.plan.region(*index) == region;
            here && self.belief(*index).is_some_and(|b| b.open && b.in_flight == 0)
        };
        let idle = plan.machines.clone().filter(idle).count();
        let spare = region != Region::LOCAL || plan.floor() < running;
        let excess = running as i64 - (over as i64 + 1);
        if idle > 0 && spare && (running == 1 || 1 <= excess) {
            let text = format!("{region}: {idle} of {running} are idle and awake ({over} over)");
            self.fail(&text);
        }
    }

    fn check_answered(&mut self) {
        let waiting = self.last.iter().any(|name| self.callers.contains_key(name));
        if waiting {
            self.fail("a request at rest was not answered");
        } else if self.refused > 0 {
            self.fail("a request was refused though nothing is broken");
        }
        let apps = self.proxy.iter().flat_map(|p| p.apps.iter().flatten());
        if apps.flat_map(App::queued).next().is_some() {
            self.fail("callers wait at the end");
        }
        self.check_talks();
    }

    // ---- notes --------------------------------------------------------------------------------

    pub(crate) fn fail(&mut self, text: &str) {
        self.note(&format!("VIOLATION {text}"));
        if self.violation.is_none() {
            self.violation = Some(format!("{} {text}", self.now));
        }
    }

    pub(crate) fn is_noting(&self) -> bool {
        self.notes.is_some()
    }

    pub(crate) fn note(&mut self, text: &str) {
        if let Some(notes) = &mut self.notes {
            notes.push(format!("{} {text}", self.now));
        }
    }
}
