//! The simulated proxy: the shell of the balancers as their head describes it, with queues, callers and
//! the host's limit of starts, and its own books, against which every decision is checked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::aim::Target;
use perch_core::balancer::{
    Admission, Balancer, Belief, Choice, Claim, Edge, Effect, Endpoint, Event, FailReason,
    MachineView, Settings, StartOutcome, StartSlots, StopReason, ThawOutcome,
};
use perch_core::checks::Status;
use perch_core::ids::{MachineId, Region};
use perch_core::lifecycle::MachineState;
use perch_core::service::PublishedPort;
use perch_core::time::Timestamp;

use crate::aimed::Aimed;
use crate::health::Watch;
use crate::plan::{START_TIMEOUT, id, index};
use crate::server::{AppTruth, End};
use crate::talk::Talk;
use crate::world::{Ev, ToProxy, ToServer, World};

/// The longest pause before a Machine that failed is started again (AS-69).
pub(crate) const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// One life of the proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// `None`: the app is destroyed.
    pub(crate) apps: Vec<Option<App>>,
    /// Machine and attempt.
    slots: StartSlots<(usize, u64)>,
    /// Apps that this server has spoken of.
    pub(crate) named: BTreeSet<usize>,
    /// What was sent and not answered, counted without the slots.
    pub(crate) sent: BTreeSet<(usize, u64)>,
    pub(crate) serving: BTreeMap<u64, Claim>,
    pub(crate) talks: BTreeMap<u64, Talk>,
    pub(crate) books: Vec<Book>,
    pub(crate) watches: BTreeMap<usize, Watch>,
    pub(crate) born_at: Timestamp,
    server_ready: bool,
}

/// One app, as the proxy holds it.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) balancer: Balancer,
    pub(crate) queues: BTreeMap<PublishedPort, VecDeque<u64>>,
    /// Who waits for one Machine, by port.
    pub(crate) aimed: BTreeMap<(PublishedPort, usize), Aimed>,
    /// How many of those were let in since somebody was from the queue of the port.
    pub(crate) overtaken: BTreeMap<PublishedPort, u32>,
}

impl App {
    fn new(balancer: Balancer) -> Self {
        let (queues, aimed) = (BTreeMap::new(), BTreeMap::new());
        Self { balancer, queues, aimed, overtaken: BTreeMap::new() }
    }

    /// Everybody who waits.
    pub(crate) fn queued(&self) -> impl Iterator<Item = u64> {
        let aimed = self.aimed.values().flat_map(|aimed| &aimed.names);
        self.queues.values().flatten().chain(aimed).copied()
    }
}

impl Proxy {
    pub(crate) fn balancer(&self, app: usize) -> Option<&Balancer> {
        self.apps[app].as_ref().map(|app| &app.balancer)
    }

    fn queue(&mut self, app: usize, port: PublishedPort) -> Option<&mut VecDeque<u64>> {
        self.apps[app].as_mut().and_then(|app| app.queues.get_mut(&port))
    }

    pub(crate) fn is_server_ready(&self) -> bool {
        self.server_ready
    }

    pub(crate) fn waiting(&self, app: usize, port: PublishedPort) -> usize {
        let queue = self.apps[app].as_ref().and_then(|app| app.queues.get(&port));
        queue.map_or(0, VecDeque::len)
    }
}

/// What the proxy's shell itself knows of a Machine, without the balancer.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    pub(crate) view: MachineView,
    /// The server speaks of it.
    pub(crate) there: bool,
    start: Option<u64>,
    /// The run that the server wants drained, and the token.
    drain: Option<(u64, u64)>,
    /// The run that is being stopped, and the attempt.
    stop: Option<(u64, u64)>,
    /// The run that was thawed, and the attempt, until the server has answered.
    pub(crate) thawed: Option<(u64, u64)>,
    /// When a request that counts last ended, or the run came up.
    pub(crate) used_at: Timestamp,
    /// When it last came up, for whatever.
    pub(crate) woke_at: Timestamp,
    /// When the load last ended that had some use in it.
    pub(crate) idle_from: Timestamp,
    /// Somebody has used it since there was no load.
    pub(crate) in_use: bool,
    /// Heartbeats have woken it, or are about to: that is no use.
    pub(crate) beats: bool,
    pub(crate) failures: u32,
    /// When something last gave a reason to wait before its next start.
    pub(crate) failed_at: Option<Timestamp>,
}

impl Book {
    /// It is up, or goes on.
    fn note_up(&mut self, now: Timestamp) {
        self.woke_at = now;
        if !self.beats {
            self.used_at = now;
        }
    }

    /// Whether a start or stop is under way.
    pub(crate) fn is_asked(&self) -> bool {
        self.start.is_some() || self.stop.is_some()
    }
}

/// Somebody with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) app: usize,
    pub(crate) port: PublishedPort,
    pub(crate) origin: Origin,
    /// How long the Machine works for it.
    pub(crate) work: Duration,
    /// It leaves the queue by itself after this.
    pub(crate) patience: Duration,
    pub(crate) came_at: Timestamp,
    /// The Machines that it wants, if it wants certain ones.
    pub(crate) target: Option<Target>,
    /// How often it was told that the one it waited for will not take it.
    pub(crate) tries: u32,
}

impl Caller {
    /// Who goes wherever there is room, and works and waits so long.
    pub(crate) fn anybody(
        app: usize,
        port: PublishedPort,
        origin: Origin,
        (work, patience): (Duration, Duration),
        came_at: Timestamp,
    ) -> Self {
        Self { app, port, origin, work, patience, came_at, target: None, tries: 0 }
    }
}

impl World {
    // ---- the proxy's life ---------------------------------------------------------------------

    pub(crate) fn start_proxy(&mut self) {
        if self.proxy.is_some() {
            return;
        }
        self.note("proxy starts");
        let settings = Settings { region: Region::LOCAL };
        let book = |index| Book {
            view: self.plan.view(index),
            there: false,
            start: None,
            drain: None,
            stop: None,
            thawed: None,
            used_at: Timestamp::ZERO,
            woke_at: Timestamp::ZERO,
            idle_from: Timestamp::ZERO,
            in_use: false,
            beats: false,
            failures: 0,
            failed_at: None,
        };
        let app = |gone: &AppTruth| {
            let balancer = Balancer::with_mutant(settings, self.mutant);
            (*gone != AppTruth::Gone).then(|| App::new(balancer))
        };
        self.proxy = Some(Proxy {
            apps: self.apps.iter().map(app).collect(),
            slots: StartSlots::with_mutant(self.plan.starts_max, self.mutant),
            named: BTreeSet::new(),
            sent: BTreeSet::new(),
            serving: BTreeMap::new(),
            talks: BTreeMap::new(),
            books: (0..self.truths.len()).map(book).collect(),
            watches: BTreeMap::new(),
            born_at: self.now,
            server_ready: false,
        });
        self.tell_all(&Event::ServerLost);
        for caller in std::mem::take(&mut self.backlog) {
            self.route(caller);
        }
    }

    pub(crate) fn kill_proxy(&mut self) {
        let Some(proxy) = self.proxy.take() else { return };
        self.note("proxy dies");
        let queued: Vec<u64> = proxy.apps.iter().flatten().flat_map(App::queued).collect();
        for caller in queued.into_iter().chain(proxy.serving.into_keys()) {
            self.callers.remove(&caller);
        }
        // What it had sent is read to its end, up to some point, before anybody takes its place.
        for message in self.cut_link_to_server() {
            self.on_message_to_server(message);
        }
        self.server_misses_proxy();
        let down_max = [20, 2_000][self.choices.below(2)];
        let down = self.choices.millis(1, down_max);
        self.later(down, Ev::StartProxy);
    }

    pub(crate) fn proxy_lost_server(&mut self) {
        if let Some(proxy) = &mut self.proxy {
            proxy.server_ready = false;
            proxy.slots.clear();
            proxy.sent.clear();
            for book in &mut proxy.books {
                (book.start, book.stop) = (None, None);
            }
            self.tell_all(&Event::ServerLost);
        }
    }

    pub(crate) fn on_message_to_proxy(&mut self, message: ToProxy) {
        if self.proxy.is_none() {
            return;
        }
        let (index, event) = match message {
            ToProxy::App { app, views } => {
                if let Some(proxy) = &mut self.proxy {
                    proxy.named.insert(app);
                }
                self.write_views(app, &views);
                self.balancer_event(app, Event::PoolChanged(views));
                return;
            }
            ToProxy::RemoveApp(app) => return self.remove_app(app),
            ToProxy::SnapshotEnd => {
                self.remove_unnamed_apps();
                if let Some(proxy) = &mut self.proxy {
                    proxy.server_ready = true;
                }
                return self.tell_all(&Event::ServerReady);
            }
            ToProxy::StartDone { index, attempt, outcome } => {
                self.write_start_done(index, attempt, &outcome);
                self.free_slot(index, attempt);
                (index, Event::StartDone { machine: id(index), attempt, outcome })
            }
            ToProxy::Freezer { index, run } => (index, Event::Freezer { machine: id(index), run }),
            ToProxy::StopDone { index, attempt, outcome } => {
                self.write_stop_done(index, attempt);
                (index, Event::StopDone { machine: id(index), attempt, outcome })
            }
            ToProxy::Drain { index, run, token, timeout } => {
                if let Some(proxy) = &mut self.proxy {
                    proxy.books[index].drain = Some((run, token));
                }
                (index, Event::Drain { machine: id(index), run, token, timeout })
            }
            ToProxy::Undrain { index, run } => (index, Event::Undrain { machine: id(index), run }),
        };
        self.balancer_event(self.plan.owner(index), event);
    }

    fn tell_all(&mut self, event: &Event) {
        for app in 0..self.plan.apps.len() {
            self.balancer_event(app, event.clone());
        }
    }

    /// The balancer hears that it has no Machine, answers who waits, and goes.
    fn remove_app(&mut self, app: usize) {
        self.write_views(app, &[]);
        self.balancer_event(app, Event::PoolChanged(Vec::new()));
        let Some(proxy) = &mut self.proxy else { return };
        let gone = proxy.apps[app].take();
        if gone.is_some_and(|gone| gone.queued().next().is_some()) {
            self.fail(&format!("app {app} is destroyed, but callers of it wait on"));
        }
    }

    /// A server that died may have removed an app without a word.
    fn remove_unnamed_apps(&mut self) {
        for app in 0..self.plan.apps.len() {
            if self.proxy.as_ref().is_some_and(|proxy| !proxy.named.contains(&app)) {
                self.remove_app(app);
            }
        }
    }

    // ---- the host's limit of starts -----------------------------------------------------------

    fn send_starts(&mut self) {
        while let Some((index, attempt)) = self.proxy.as_mut().and_then(|p| p.slots.poll()) {
            let Some(proxy) = &mut self.proxy else { return };
            proxy.sent.insert((index, attempt));
            let (sent, most) = (proxy.sent.len(), self.plan.starts_max);
            if most < sent {
                self.fail(&format!("{sent} starts are in flight, {most} are allowed"));
            }
            self.send_to_server(ToServer::Start { index, attempt });
        }
    }

    fn free_slot(&mut self, index: usize, attempt: u64) {
        if let Some(proxy) = &mut self.proxy {
            proxy.sent.remove(&(index, attempt));
            proxy.slots.finish(&(index, attempt));
            self.send_starts();
        }
    }

    // ---- books --------------------------------------------------------------------------------

    fn write_views(&mut self, app: usize, views: &[MachineView]) {
        let machines = self.plan.apps[app].machines.clone();
        let gone = machines.filter(|index| views.iter().all(|view| view.id != id(*index)));
        for index in gone {
            self.forget_machine(index);
        }
        let now = self.now;
        let inside: Vec<bool> =
            self.loads().iter().map(|(_, all)| all.iter().any(|n| *n > 0)).collect();
        let Some(proxy) = &mut self.proxy else { return };
        for view in views {
            let book = &mut proxy.books[index(view.id)];
            book.there = true;
            let old_news = view.state == MachineState::Suspended
                && book.thawed.is_some_and(|(run, _)| run == view.run);
            if old_news {
                book.view = MachineView { state: book.view.state, ..view.clone() };
                continue;
            }
            let moved = (book.view.state, book.view.run) != (view.state, view.run);
            if moved && view.state == MachineState::Started {
                book.note_up(now);
                book.beats = false;
            }
            if moved && book.view.state == MachineState::Started {
                book.failures += 1;
                book.failed_at = inside[index(view.id)].then_some(now).or(book.failed_at);
            }
            // A launch that the server began by itself; one that was asked for is answered.
            let failed =
                view.state == MachineState::Failed && book.view.state == MachineState::Starting;
            if moved && failed && book.start.is_none() {
                (book.failures, book.failed_at) = (book.failures + 1, Some(now));
            }
            if book.stop.is_some_and(|(run, _)| run != view.run || !is_going(view.state)) {
                book.stop = None;
            }
            if view.config_version != book.view.config_version {
                book.failures = 0;
            }
            book.view = view.clone();
        }
    }

    /// Nobody will answer for it any more.
    fn forget_machine(&mut self, index: usize) {
        let Some(proxy) = &mut self.proxy else { return };
        let book = &mut proxy.books[index];
        (book.there, book.stop, book.thawed) = (false, None, None);
        let asked = book.start.take();
        if let Some(attempt) = asked {
            self.free_slot(index, attempt);
        }
        self.rest_check(index);
    }

    fn write_start_done(&mut self, index: usize, attempt: u64, outcome: &StartOutcome) {
        let now = self.now;
        let Some(proxy) = &mut self.proxy else { return };
        let book = &mut proxy.books[index];
        if book.thawed.is_some_and(|(_, thawed)| thawed == attempt) {
            book.thawed = None;
        }
        if book.start == Some(attempt) {
            book.start = None;
            match outcome {
                StartOutcome::Started { .. } => book.woke_at = now,
                StartOutcome::Refused { .. } => book.failed_at = Some(now),
                StartOutcome::Failed { .. } => {
                    (book.failures, book.failed_at) = (book.failures + 1, Some(now));
                }
            }
        }
    }

    fn write_stop_done(&mut self, index: usize, attempt: u64) {
        let now = self.now;
        let Some(proxy) = &mut self.proxy else { return };
        let book = &mut proxy.books[index];
        if book.stop.is_some_and(|(_, a)| a == attempt) {
            book.stop = None;
            book.note_up(now);
        }
    }

    /// Load, counted by the shell itself, not by the words.
    pub(crate) fn inside(&self, index: usize, run: u64, service: Option<usize>) -> u32 {
        self.count(index, run, service, |claim| !claim.is_parked())
    }

    /// The same with those that are parked.
    fn seated(&self, index: usize, run: u64, service: Option<usize>) -> u32 {
        self.count(index, run, service, |_| true)
    }

    fn count(
        &self,
        index: usize,
        run: u64,
        service: Option<usize>,
        counts: fn(&Claim) -> bool,
    ) -> u32 {
        let Some(proxy) = &self.proxy else { return 0 };
        let here = proxy.serving.values().filter(|claim| counts(claim)).filter(|claim| {
            let endpoint = claim.endpoint();
            let service = service.is_none_or(|s| s == endpoint.service);
            endpoint.machine == id(index) && endpoint.run == run && service
        });
        here.count() as u32
    }

    // ---- callers ------------------------------------------------------------------------------

    pub(crate) fn arrive(&mut self, caller: Caller) {
        self.next_caller += 1;
        let name = self.next_caller;
        self.callers.insert(name, caller);
        self.come(name);
    }

    /// A caller comes, or chooses again.
    pub(crate) fn come(&mut self, name: u64) {
        if self.proxy.is_some() {
            self.route(name);
        } else {
            self.backlog.push(name);
        }
    }

    pub(crate) fn route(&mut self, name: u64) {
        let Some(caller) = self.callers.get(&name).copied() else { return };
        if self.route_aimed(name, caller) {
            return;
        }
        let random = self.choices.any();
        let before = self.seats();
        let Some(proxy) = &self.proxy else { return };
        let Some(balancer) = proxy.balancer(caller.app) else {
            // Nothing is routed to its addresses any more.
            self.callers.remove(&name);
            return;
        };
        match balancer.choose(caller.port, caller.origin, random) {
            Choice::Admitted(Admission { claim, edge }) => {
                self.check_admission(&claim, &before, None);
                self.serve(name, claim);
                self.edge(edge);
            }
            Choice::Hold(_) if caller.origin == Origin::SamePool => {
                self.callers.remove(&name);
            }
            Choice::Hold(_) => self.enqueue(name, caller),
            Choice::Refuse => {
                let empty = self.is_empty(caller.app);
                self.refused += u32::from(self.healed_at.is_some() && !empty);
                self.callers.remove(&name);
            }
        }
    }

    fn enqueue(&mut self, name: u64, caller: Caller) {
        let app = self.proxy.as_mut().and_then(|p| p.apps[caller.app].as_mut());
        let Some(app) = app else { return };
        app.queues.entry(caller.port).or_default().push_back(name);
        let wait = caller.patience.min(START_TIMEOUT);
        self.later(wait, Ev::LeaveQueue(name));
        self.demand(caller.app, caller.port);
    }

    fn demand(&mut self, app: usize, port: PublishedPort) {
        let Some(proxy) = &self.proxy else { return };
        let waiting = proxy.waiting(app, port);
        self.balancer_event(app, Event::Demand { port, waiting });
    }

    pub(crate) fn leave_queue(&mut self, name: u64) {
        let Some(caller) = self.callers.get(&name).copied() else { return };
        let queue = self.proxy.as_mut().and_then(|p| p.queue(caller.app, caller.port));
        let Some(queue) = queue else { return };
        let Some(place) = queue.iter().position(|n| *n == name) else { return };
        queue.remove(place);
        self.callers.remove(&name);
        if START_TIMEOUT <= caller.patience && self.healed_at.is_some_and(|at| at < caller.came_at)
        {
            self.fail("a caller waited in vain though nothing is broken");
        }
        self.demand(caller.app, caller.port);
    }

    pub(crate) fn serve(&mut self, name: u64, claim: Claim) {
        if let Some(proxy) = &mut self.proxy {
            proxy.serving.insert(name, claim);
        }
        self.later(Duration::from_micros(100), Ev::Connect(name));
    }

    /// Tries to reach the program; the same claim is kept while the run is there.
    pub(crate) fn connect_to_machine(&mut self, name: u64) {
        let Some(proxy) = &self.proxy else { return };
        let Some(claim) = proxy.serving.get(&name) else { return };
        let (machine, run) = (index(claim.endpoint().machine), claim.endpoint().run);
        if self.truths[machine].process.is_running(run) {
            if !self.begin_talk(name) {
                let work = self.callers.get(&name).map_or(Duration::ZERO, |c| c.work);
                self.later(work, Ev::Finish(name));
            }
        } else if proxy.balancer(self.plan.owner(machine)).is_some_and(|b| b.is_current(claim)) {
            self.later(Duration::from_millis(20), Ev::Connect(name));
        } else {
            self.release(name);
            self.route(name);
        }
    }

    pub(crate) fn finish(&mut self, name: u64) {
        self.release(name);
        self.callers.remove(&name);
        self.served += 1;
    }

    fn release(&mut self, name: u64) {
        let now = self.now;
        let Some(proxy) = &mut self.proxy else { return };
        let Some(claim) = proxy.serving.remove(&name) else { return };
        // What those say who stay is noted when they say it.
        let counts = self.callers.get(&name).is_none_or(|c| c.origin == Origin::Caller)
            && !proxy.talks.contains_key(&name);
        let book = &mut proxy.books[index(claim.endpoint().machine)];
        if counts && book.view.run == claim.endpoint().run {
            (book.used_at, book.in_use) = (now, true);
        }
        let edge = claim.release();
        self.edge(edge);
    }

    /// The program of a run has ended; who was inside is cut off.
    pub(crate) fn proxy_sees_end(&mut self, machine: usize, run: u64) {
        let Some(proxy) = &self.proxy else { return };
        let inside = proxy.serving.iter().filter(|(_, claim)| {
            (claim.endpoint().machine, claim.endpoint().run) == (id(machine), run)
        });
        let cut: Vec<u64> = inside.map(|(name, _)| *name).collect();
        for name in cut {
            self.release(name);
            self.callers.remove(&name);
        }
    }

    // ---- the balancer -------------------------------------------------------------------------

    pub(crate) fn edge(&mut self, edge: Option<Edge>) {
        if let Some(edge) = edge {
            self.note_edge(&edge);
            self.balancer_event(self.plan.owner(index(edge.machine)), Event::Edge(edge));
        }
    }

    fn note_edge(&mut self, edge: &Edge) {
        // As long as there is load on another of its services, use goes on.
        let (machine, now) = (index(edge.machine), self.now);
        let empty = self.inside(machine, edge.run, None) == 0;
        let Some(proxy) = &mut self.proxy else { return };
        let book = &mut proxy.books[machine];
        if edge.change.load_to == 0 && book.in_use {
            (book.idle_from, book.in_use) = (now, !empty);
        }
    }

    fn balancer_mut(&mut self, app: usize) -> Option<&mut Balancer> {
        let app = self.proxy.as_mut().and_then(|proxy| proxy.apps[app].as_mut());
        app.map(|app| &mut app.balancer)
    }

    pub(crate) fn balancer_event(&mut self, app: usize, event: Event) {
        if self.is_noting() {
            self.note(&format!("balancer {app} hears {}", brief(&event)));
        }
        let now = self.now;
        if let Some(balancer) = self.balancer_mut(app) {
            balancer.handle_event(event, now);
            self.do_balancer_effects(app);
            self.follow_checks(app);
            self.check_somebody_wakes(app);
            self.check_aimed(app);
        }
    }

    pub(crate) fn balancer_timeout(&mut self, app: usize) {
        let now = self.now;
        if let Some(balancer) = self.balancer_mut(app) {
            balancer.handle_timeout(now);
            if balancer.poll_timeout().is_some_and(|(at, _)| at <= now) {
                self.fail("the balancer asks for a timer that is already over");
            }
            self.do_balancer_effects(app);
            self.follow_checks(app);
        }
    }

    fn do_balancer_effects(&mut self, app: usize) {
        self.do_effects_of(app);
        while let Some((machine, attempt, outcome)) = self.thaws.pop() {
            let machine = id(machine);
            self.balancer_event(app, Event::Thawed { machine, attempt, outcome });
        }
    }

    fn do_effects_of(&mut self, app: usize) {
        while let Some(effect) = self.balancer_mut(app).and_then(Balancer::poll_effect) {
            self.note(&format!("balancer {app} wants {effect:?}"));
            match effect {
                Effect::Start { machine, attempt, port } => {
                    self.ask_start(index(machine), attempt, port);
                }
                Effect::Thaw { machine, run, attempt, port } => {
                    self.thaw_alone(index(machine), run, attempt, port);
                }
                Effect::Stop { machine, run, attempt, reason } => {
                    self.ask_stop(index(machine), run, attempt, reason);
                }
                Effect::Admit { port, claim } => self.admit(app, port, claim),
                Effect::AdmitAimed { port, claim } => self.admit_aimed(app, port, claim),
                Effect::FailAimed { port, machine, waiters, reason } => {
                    self.fail_aimed(app, port, index(machine), waiters, &reason);
                }
                Effect::Recalled { machine } => self.recalled(index(machine)),
                Effect::Fail { port, waiters, reason } => {
                    self.send_away(app, port, waiters, &reason);
                }
                Effect::Vetoed { machine, run, .. } => self.check_veto(app, machine, run),
                Effect::Drained { machine, token, in_flight } => {
                    self.answer_drain(index(machine), token, in_flight);
                }
            }
        }
    }

    /// It is told only of what could have slept otherwise.
    fn check_veto(&mut self, app: usize, machine: MachineId, run: u64) {
        let outlook = self.balancer_mut(app).and_then(|balancer| balancer.outlook(machine));
        // Who was recalled by the same event has gone on by now.
        let talks = self.count_talks(index(machine), run);
        if outlook.is_none_or(|it| it.run != run || talks < it.load || it.vetoes.is_empty()) {
            self.fail(&format!("{machine} could not have slept, and a veto is told of it"));
        }
    }

    fn count_talks(&self, machine: usize, run: u64) -> u64 {
        let Some(proxy) = &self.proxy else { return 0 };
        let endpoint = |name| proxy.serving.get(name).map(Claim::endpoint);
        let here = |e: &&Endpoint| (e.machine, e.run) == (id(machine), run);
        proxy.talks.keys().filter_map(endpoint).filter(here).count() as u64
    }

    fn ask_start(&mut self, machine: usize, attempt: u64, port: Option<PublishedPort>) {
        self.check_start(machine, port);
        if let Some(proxy) = &mut self.proxy {
            proxy.books[machine].start = Some(attempt);
            proxy.slots.ask((machine, attempt));
        }
        self.send_starts();
    }

    /// One write to its freezer, and then the server hears of it, now or later.
    fn thaw_alone(&mut self, machine: usize, run: u64, attempt: u64, port: Option<PublishedPort>) {
        self.check_start_of_one(machine);
        if let Some(port) = port {
            self.check_start_is_needed(machine, port);
        }
        let now = self.now;
        let alive = self.thaw_process(machine, run);
        let Some(proxy) = &mut self.proxy else { return };
        let book = &mut proxy.books[machine];
        if book.thawed.is_some_and(|(thawed, _)| thawed == run) {
            self.fail(&format!("{} is thawed a second time", id(machine)));
            return;
        }
        let outcome = match alive {
            true => ThawOutcome::Done,
            false => ThawOutcome::Failed,
        };
        if alive {
            book.thawed = Some((run, attempt));
            book.note_up(now);
            book.view.state = MachineState::Started;
            self.send_to_server(ToServer::Start { index: machine, attempt });
        }
        self.thaws.push((machine, attempt, outcome));
    }

    /// A server that has just come hears of all thaws that none has answered.
    pub(crate) fn tell_thaws(&mut self) {
        let Some(proxy) = &self.proxy else { return };
        let books = proxy.books.iter().enumerate();
        let thaws = books.filter_map(|(index, book)| Some((index, book.thawed?.1)));
        for (index, attempt) in thaws.collect::<Vec<_>>() {
            self.send_to_server(ToServer::Start { index, attempt });
        }
    }

    fn ask_stop(&mut self, machine: usize, run: u64, attempt: u64, reason: StopReason) {
        self.check_stop(machine, run, reason);
        self.rest_check(machine);
        if let Some(proxy) = &mut self.proxy {
            proxy.books[machine].stop = Some((run, attempt));
        }
        self.send_to_server(ToServer::Stop { index: machine, run, attempt });
    }

    fn admit(&mut self, app: usize, port: PublishedPort, claim: Claim) {
        let queue = self.proxy.as_mut().and_then(|p| p.queue(app, port));
        let Some(name) = queue.and_then(VecDeque::pop_front) else {
            self.fail("somebody is let in, but nobody waits");
            return;
        };
        // Several may be let in at once, so the order among Machines cannot be checked from here.
        self.check_limits(&claim);
        self.note_overtaken(app, port, index(claim.endpoint().machine));
        self.serve(name, claim);
    }

    fn send_away(&mut self, app: usize, port: PublishedPort, waiters: usize, reason: &FailReason) {
        self.check_hopeless(app, port, reason);
        let queue = self.proxy.as_mut().and_then(|p| p.queue(app, port));
        let Some(queue) = queue else { return };
        let away: Vec<u64> = queue.drain(..waiters.min(queue.len())).collect();
        for name in away {
            self.callers.remove(&name);
        }
    }

    fn answer_drain(&mut self, machine: usize, token: u64, in_flight: u64) {
        let drain = self.proxy.as_ref().and_then(|p| p.books[machine].drain);
        let drain = drain.filter(|(_, t)| *t == token);
        let run = drain.map_or(0, |(run, _)| run);
        let inside = u64::from(self.inside(machine, run, None));
        // Of a Machine or run that is gone there is nothing to wait for.
        let book = self.proxy.as_ref().map(|proxy| &proxy.books[machine]);
        let has_moved = |view: &MachineView| drain.is_some_and(|(run, _)| view.run != run);
        let there = book.is_some_and(|book| book.there && !has_moved(&book.view));
        if there && inside != in_flight {
            self.fail(&format!("a drain is answered with {in_flight}, but {inside} are inside"));
        }
        self.send_to_server(ToServer::Drained { index: machine, token });
    }

    // ---- what must always hold ----------------------------------------------------------------

    /// Per Machine: open for new requests, load per service.
    fn loads(&self) -> Vec<(bool, Vec<u32>)> {
        self.per_service(Self::inside)
    }

    /// Per Machine: open for new requests, in flight per service.
    pub(crate) fn seats(&self) -> Vec<(bool, Vec<u32>)> {
        self.per_service(Self::seated)
    }

    fn per_service(
        &self,
        count: fn(&Self, usize, u64, Option<usize>) -> u32,
    ) -> Vec<(bool, Vec<u32>)> {
        let Some(proxy) = &self.proxy else { return Vec::new() };
        let load = |(index, book): (usize, &Book)| {
            let open = self.belief(index).is_some_and(|b| b.open);
            let services = 0..self.plan.app_of(index).services.len();
            (open, services.map(|s| count(self, index, book.view.run, Some(s))).collect())
        };
        proxy.books.iter().enumerate().map(load).collect()
    }

    /// What the proxy believes of a Machine.
    pub(crate) fn belief(&self, machine: usize) -> Option<Belief> {
        let balancer = self.proxy.as_ref()?.balancer(self.plan.owner(machine))?;
        balancer.belief(id(machine))
    }

    /// Nothing of the app is left that could answer.
    pub(crate) fn is_empty(&self, app: usize) -> bool {
        let mut machines = self.plan.apps[app].machines.clone();
        machines.all(|index| self.truths[index].end != End::None)
    }

    /// Never over `hard_limit`, never into a Machine that is being stopped or is not up.
    pub(crate) fn check_limits(&mut self, claim: &Claim) {
        self.check_fit(claim);
        let endpoint = claim.endpoint();
        let (machine, run, service) = (index(endpoint.machine), endpoint.run, endpoint.service);
        let others = self.seated(machine, run, Some(service));
        if self.plan.app_of(machine).hard() <= others {
            self.fail(&format!("{} gets one more than hard_limit", id(machine)));
        }
        let Some(proxy) = &self.proxy else { return };
        let book = &proxy.books[machine];
        if book.stop.is_some_and(|(stopping, _)| stopping == run) {
            self.fail(&format!("{} gets a request while it is being stopped", id(machine)));
        } else if !book.there || is_destroyed(book.view.state) {
            self.fail(&format!("{} gets a request though it is destroyed", id(machine)));
        } else if book.view.cordoned {
            self.fail(&format!("{} gets a request though it is cordoned", id(machine)));
        }
    }

    /// PX-61, PX-62: over soft only if all others of the region are; least loaded within the band; of those that the
    /// caller wants.
    pub(crate) fn check_admission(
        &mut self,
        claim: &Claim,
        before: &[(bool, Vec<u32>)],
        target: Option<Target>,
    ) {
        self.check_limits(claim);
        let (machine, service) = (index(claim.endpoint().machine), claim.endpoint().service);
        let (app, region) = (self.plan.app_of(machine), self.plan.region(machine));
        let (soft, hard) = (app.soft(), app.hard());
        let cost = |index: usize, load: u32| {
            (self.plan.region(index) != Region::LOCAL, soft <= load, load)
        };
        let chosen = before.get(machine).map(|(_, loads)| cost(machine, loads[service]));
        let usable =
            |(_, (open, loads)): &(usize, &(bool, Vec<u32>))| *open && loads[service] < hard;
        let meant = |m: usize| {
            let fits = self.fits(m, service);
            fits && target.is_none_or(|t| t.allows(id(m), self.plan.region(m)))
        };
        let own = before.iter().enumerate();
        let own = own.filter(|(index, _)| app.machines.contains(index) && meant(*index));
        let best = own.filter(usable);
        let best = best.map(|(index, (_, loads))| cost(index, loads[service]));
        if chosen > best.min() {
            self.fail(&format!("{} of {region} is not the best choice", id(machine)));
        }
    }

    /// Whether its check passes.
    fn fits(&self, machine: usize, service: usize) -> bool {
        let book = self.proxy.as_ref().map(|proxy| &proxy.books[machine]);
        book.is_some_and(|b| self.health_found(machine, b.view.run, service) == Status::Passing)
    }

    /// One start at a time per Machine, and no more than the demand needs.
    fn check_start(&mut self, machine: usize, port: Option<PublishedPort>) {
        self.check_start_of_one(machine);
        if self.proxy.as_ref().is_some_and(|proxy| !proxy.server_ready) {
            self.fail("a start is asked for without a server");
        } else if let Some(port) = port {
            self.check_start_is_needed(machine, port);
        } else if !self.is_recalled(machine) && self.has_room_at_home(self.plan.owner(machine)) {
            self.fail("a start because of load though one has room");
        }
    }

    fn check_start_of_one(&mut self, machine: usize) {
        let Some(proxy) = &self.proxy else { return };
        if !proxy.books[machine].there || is_destroyed(proxy.books[machine].view.state) {
            self.fail(&format!("{} is to be started though it is destroyed", id(machine)));
            return;
        }
        if proxy.books[machine].start.is_some() {
            self.fail(&format!("{} is started a second time at once", id(machine)));
        }
    }

    /// PX-62: other regions are no relief.
    fn has_room_at_home(&self, app: usize) -> bool {
        let (loads, app) = (self.seats(), &self.plan.apps[app]);
        let mut here = app.machines.clone().filter(|m| self.plan.region(*m) == Region::LOCAL);
        here.any(|m| loads[m].0 && self.fits(m, 0) && loads[m].1.iter().all(|l| *l < app.soft()))
    }

    fn check_start_is_needed(&mut self, machine: usize, port: PublishedPort) {
        let Some(proxy) = &self.proxy else { return };
        let app = self.plan.owner(machine);
        if proxy.waiting_for(app, port, machine) != 0 {
            return;
        }
        let waiting = proxy.waiting(app, port) as u32;
        let app = &self.plan.apps[app];
        let service = app.services.iter().position(|s| s.publishes(port)).unwrap_or(0);
        let (loads, seats) = (self.loads(), self.seats());
        let open = || app.machines.clone().filter(|m| loads[*m].0 && self.fits(*m, service));
        let settling = |m: &usize| {
            loads[*m].0
                && self.health_found(*m, proxy.books[*m].view.run, service) == Status::Warning
        };
        let settling = app.machines.clone().filter(settling);
        let carried = open().map(|m| {
            let (load, is_full) = (loads[m].1[service], app.hard() <= seats[m].1[service]);
            // Where nobody fits in, it is no matter how many of those inside rest.
            if is_full { load.max(app.soft()) } else { load }
        });
        let demand = waiting + carried.sum::<u32>();
        let books = app.machines.clone().map(|m| (m, &proxy.books[m]));
        let starting = books.filter(|(index, book)| {
            // A start behind a stop may take long; then another one is welcome.
            let behind = is_going(book.view.state) || book.view.state == MachineState::Replacing;
            let asked = book.start.is_some() && !behind;
            let coming = asked || book.view.state == MachineState::Starting;
            let ends = !book.there || is_destroyed(book.view.state);
            coming && !ends && !loads[*index].0 && !book.view.cordoned
        });
        let there = open().count() + settling.count() + starting.count();
        if demand.div_ceil(app.soft()) as usize <= there {
            self.fail(&format!("a start for {demand} requests though {there} are there"));
        }
    }

    /// AS-85: who waits while nobody has a place for him is a reason to wake one that sleeps, also if those
    /// who have the places rest.
    fn check_somebody_wakes(&mut self, app: usize) {
        let Some(proxy) = self.proxy.as_ref().filter(|proxy| proxy.server_ready) else { return };
        let Some(queues) = proxy.apps[app].as_ref().map(|app| &app.queues) else { return };
        let Some((port, _)) = queues.iter().find(|(_, queue)| !queue.is_empty()) else { return };
        let plan = &self.plan.apps[app];
        let service = plan.services.iter().position(|s| s.publishes(*port)).unwrap_or(0);
        let seats = self.seats();
        let beliefs = || plan.machines.clone().filter_map(|m| Some((m, self.belief(m)?)));
        let run = |m: usize| proxy.books[m].view.run;
        let settles = |m: usize| self.health_found(m, run(m), service) == Status::Warning;
        let takes = |m: usize| self.fits(m, service) && seats[m].1[service] < plan.hard();
        let has_room = |m: usize| seats[m].0 && (takes(m) || settles(m));
        let moves = |belief: Belief| belief.asked || !belief.open && !is_asleep(belief.state);
        if beliefs().any(|(m, belief)| has_room(m) || moves(belief)) {
            return;
        }
        let rests = |at: Timestamp| self.now.since(at) <= BACK_OFF_MAX;
        let sleeper = beliefs().find(|(m, belief)| {
            let book = &proxy.books[*m];
            let may = book.there && !book.view.cordoned && !book.failed_at.is_some_and(rests);
            may && is_asleep(belief.state)
        });
        if let Some((machine, _)) = sleeper {
            self.fail(&format!("nobody wakes {} for those who wait at {port}", id(machine)));
        }
    }

    /// AS-31, AS-32, AS-35, AS-60..64 as DESIGN 4 has them.
    fn check_stop(&mut self, machine: usize, run: u64, reason: StopReason) {
        let Some(proxy) = &self.proxy else { return };
        let book = &proxy.books[machine];
        let quiet = self.now.since(book.used_at);
        let wrong = if self.inside(machine, run, None) > 0 {
            Some("with load")
        } else if self.owes(machine, run) {
            Some("with an answer owed")
        } else if book.view.leased || book.view.cordoned {
            Some("though it is leased or cordoned")
        } else if !proxy.server_ready {
            Some("without a server")
        } else if self.is_awaited(machine, run) {
            Some("under those who wait for it")
        } else if reason != StopReason::ExcessDrained && quiet < self.plan.app_of(machine).after() {
            Some("too early")
        } else {
            self.wrong_in_region(machine)
        };
        if let Some(wrong) = wrong {
            self.fail(&format!("{} is stopped {wrong} ({reason:?})", id(machine)));
        }
    }

    pub(crate) fn wrong_in_region(&self, machine: usize) -> Option<&'static str> {
        let (app, region) = (self.plan.owner(machine), self.plan.region(machine));
        let (others, over) = self.census(app, region, Some(machine));
        let running = others + 1;
        let primary = region == Region::LOCAL;
        if primary && others < self.plan.apps[app].floor() {
            return Some("below the floor");
        }
        let excess = running as i64 - (over as i64 + 1);
        (running > 1 && excess < 1).then_some("though it is needed")
    }

    /// Counted Machines of a region without `except`, and those of them at or over soft.
    pub(crate) fn census(
        &self,
        app: usize,
        region: Region,
        except: Option<usize>,
    ) -> (usize, usize) {
        let Some(proxy) = &self.proxy else { return (0, 0) };
        let (loads, app) = (self.loads(), &self.plan.apps[app]);
        let counted = |index: &usize| {
            let here = self.plan.region(*index) == region && Some(*index) != except;
            here && loads[*index].0 && !proxy.books[*index].view.leased
        };
        let counted: Vec<usize> = app.machines.clone().filter(counted).collect();
        let is_over = |index: &&usize| loads[**index].1.iter().any(|l| app.soft() <= *l);
        (counted.len(), counted.iter().filter(is_over).count())
    }

    /// Callers are sent away only when every Machine has failed again and again.
    fn check_hopeless(&mut self, app: usize, port: PublishedPort, reason: &FailReason) {
        let Some(proxy) = &self.proxy else { return };
        let books = || self.plan.apps[app].machines.clone().map(|m| &proxy.books[m]);
        let usable = |b: &&Book| b.there && !b.view.cordoned && !is_destroyed(b.view.state);
        match reason {
            FailReason::NothingToWake => {
                if books().any(|b| usable(&b)) {
                    self.fail(&format!("callers of {port} are sent away: {reason:?}"));
                }
            }
            FailReason::StartsFailed { .. } => {
                if books().filter(usable).any(|b| b.failures < 3) {
                    self.fail(&format!("callers of {port} are sent away too early: {reason:?}"));
                }
            }
        }
    }

    /// After each event: what the words say is what the shell has counted.
    pub(crate) fn check_counts(&mut self) {
        let Some(proxy) = &self.proxy else { return };
        for (index, book) in proxy.books.iter().enumerate() {
            let Some(belief) = self.belief(index) else { continue };
            let inside = u64::from(self.inside(index, belief.run, None));
            let used_at = book.used_at.max(book.idle_from).max(book.woke_at);
            if belief.run == book.view.run
                && belief.open
                && belief.in_flight == 0
                && used_at < belief.quiet_since
            {
                let quiet = belief.quiet_since;
                self.fail(&format!("{}: used {used_at}, but quiet since {quiet}", id(index)));
                return;
            }
            if belief.run == book.view.run && belief.in_flight != inside {
                let text = format!("{}: {} counted, {inside} inside", id(index), belief.in_flight);
                self.fail(&text);
                return;
            }
        }
    }

    /// The proxy's own stop must never end a request. A connection that rested when the stop was asked for may
    /// wait meanwhile, or have gone on into a Machine that the proxy knows to be on its way down: it is cut where
    /// a freeze fails (AS-54).
    pub(crate) fn check_nobody_cut(&mut self, machine: usize, run: u64) {
        if self.has_requests(machine, run) {
            self.fail(&format!("{} is ended with requests inside", id(machine)));
        }
    }

    /// Whether somebody is inside who has not rested there while it was on its way down.
    pub(crate) fn has_requests(&self, machine: usize, run: u64) -> bool {
        let Some(proxy) = &self.proxy else { return false };
        let book = &proxy.books[machine];
        let up = book.view.state == MachineState::Started && book.stop.is_none();
        let rested = |name, claim: &Claim| {
            let talk = proxy.talks.get(name);
            talk.is_some_and(|talk| claim.is_parked() || talk.waits || !up)
        };
        let mut requests = proxy.serving.iter().filter(|(name, claim)| !rested(name, claim));
        requests.any(|(_, c)| (c.endpoint().machine, c.endpoint().run) == (id(machine), run))
    }
}

pub(crate) fn is_destroyed(state: MachineState) -> bool {
    matches!(state, MachineState::Destroying | MachineState::Destroyed)
}

pub(crate) fn is_asleep(state: MachineState) -> bool {
    use MachineState as S;
    matches!(state, S::Created | S::Stopped | S::Suspended | S::Failed)
}

fn is_going(state: MachineState) -> bool {
    matches!(state, MachineState::Started | MachineState::Stopping)
}

fn brief(event: &Event) -> String {
    match event {
        Event::PoolChanged(views) => {
            let view = |v: &MachineView| format!("{} {} run {}", v.id.as_u64(), v.state, v.run);
            views.iter().map(view).collect::<Vec<_>>().join(", ")
        }
        other => format!("{other:?}"),
    }
}
