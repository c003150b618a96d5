//! The simulated proxy: the shell of the balancer as its head describes it, with queues and callers,
//! and its own books, against which every decision is checked.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::balancer::{
    Admission, Balancer, Choice, Claim, Edge, Effect, Event, FailReason, MachineView, Settings,
    StartOutcome, StopReason,
};
use perch_core::ids::Region;
use perch_core::lifecycle::MachineState;
use perch_core::time::Timestamp;

use crate::plan::{START_TIMEOUT, id, index};
use crate::world::{Ev, ToProxy, ToServer, World};

/// One life of the proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) balancer: Balancer,
    pub(crate) queues: BTreeMap<u16, VecDeque<u64>>,
    pub(crate) serving: BTreeMap<u64, Claim>,
    pub(crate) books: Vec<Book>,
    server_ready: bool,
}

/// What the proxy's shell itself knows of a Machine, without the balancer.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    pub(crate) view: MachineView,
    start: Option<u64>,
    /// The run that is being stopped, and the attempt.
    stop: Option<(u64, u64)>,
    /// When a request that counts last ended, or the run came up.
    used_at: Timestamp,
    failures: u32,
}

/// Somebody with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) port: u16,
    pub(crate) origin: Origin,
    /// How long the Machine works for it.
    pub(crate) work: Duration,
    /// It leaves the queue by itself after this.
    pub(crate) patience: Duration,
    pub(crate) came_at: Timestamp,
}

impl World {
    // ---- the proxy's life ---------------------------------------------------------------------

    pub(crate) fn start_proxy(&mut self) {
        if self.proxy.is_some() {
            return;
        }
        self.note("proxy starts");
        let first_attempt = self.now.as_micros();
        let settings = Settings { region: Region::LOCAL, first_attempt };
        let book = |index| Book {
            view: self.plan.view(index),
            start: None,
            stop: None,
            used_at: Timestamp::ZERO,
            failures: 0,
        };
        self.proxy = Some(Proxy {
            balancer: Balancer::with_mutant(settings, self.mutant),
            queues: BTreeMap::new(),
            serving: BTreeMap::new(),
            books: (0..self.truths.len()).map(book).collect(),
            server_ready: false,
        });
        self.balancer_event(Event::ServerLost);
        for caller in std::mem::take(&mut self.backlog) {
            self.route(caller);
        }
    }

    pub(crate) fn kill_proxy(&mut self) {
        let Some(proxy) = self.proxy.take() else { return };
        self.note("proxy dies");
        let queued = proxy.queues.into_values().flatten();
        for caller in queued.chain(proxy.serving.into_keys()) {
            self.callers.remove(&caller);
        }
        // What it had sent is read to its end, up to some point, before anybody takes its place.
        for message in self.cut_link_to_server() {
            self.on_message_to_server(message);
        }
        let down_max = [20, 2_000][self.choices.below(2)];
        let down = self.choices.millis(1, down_max);
        self.later(down, Ev::StartProxy);
    }

    pub(crate) fn proxy_lost_server(&mut self) {
        if let Some(proxy) = &mut self.proxy {
            proxy.server_ready = false;
            for book in &mut proxy.books {
                (book.start, book.stop) = (None, None);
            }
            self.balancer_event(Event::ServerLost);
        }
    }

    pub(crate) fn on_message_to_proxy(&mut self, message: ToProxy) {
        if self.proxy.is_none() {
            return;
        }
        let event = match message {
            ToProxy::App(views) => {
                self.write_views(&views);
                Event::PoolChanged(views)
            }
            ToProxy::SnapshotEnd => {
                if let Some(proxy) = &mut self.proxy {
                    proxy.server_ready = true;
                }
                Event::ServerReady
            }
            ToProxy::StartDone { index, attempt, outcome } => {
                self.write_start_done(index, attempt, &outcome);
                Event::StartDone { machine: id(index), attempt, outcome }
            }
            ToProxy::StopDone { index, attempt, outcome } => {
                self.write_stop_done(index, attempt);
                Event::StopDone { machine: id(index), attempt, outcome }
            }
            ToProxy::Drain { index, run, token, timeout } => {
                Event::Drain { machine: id(index), run, token, timeout }
            }
            ToProxy::Undrain { index, run } => Event::Undrain { machine: id(index), run },
        };
        self.balancer_event(event);
    }

    // ---- books --------------------------------------------------------------------------------

    fn write_views(&mut self, views: &[MachineView]) {
        let now = self.now;
        let Some(proxy) = &mut self.proxy else { return };
        for (book, view) in proxy.books.iter_mut().zip(views) {
            let moved = (book.view.state, book.view.run) != (view.state, view.run);
            if moved && view.state == MachineState::Started {
                book.used_at = now;
            }
            if moved && book.view.state == MachineState::Started {
                book.failures += 1;
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

    fn write_start_done(&mut self, index: usize, attempt: u64, outcome: &StartOutcome) {
        let Some(proxy) = &mut self.proxy else { return };
        let book = &mut proxy.books[index];
        if book.start == Some(attempt) {
            book.start = None;
            match outcome {
                StartOutcome::Started { .. } | StartOutcome::Refused { .. } => {}
                StartOutcome::Failed { .. } => book.failures += 1,
            }
        }
    }

    fn write_stop_done(&mut self, index: usize, attempt: u64) {
        let now = self.now;
        let Some(proxy) = &mut self.proxy else { return };
        let book = &mut proxy.books[index];
        if book.stop.is_some_and(|(_, a)| a == attempt) {
            book.stop = None;
            book.used_at = now;
        }
    }

    /// Counted by the shell itself, not by the words.
    pub(crate) fn inside(&self, index: usize, run: u64, service: Option<usize>) -> u32 {
        let Some(proxy) = &self.proxy else { return 0 };
        let here = proxy.serving.values().filter(|claim| {
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
        if self.proxy.is_some() {
            self.route(name);
        } else {
            self.backlog.push(name);
        }
    }

    pub(crate) fn route(&mut self, name: u64) {
        let Some(caller) = self.callers.get(&name).copied() else { return };
        let random = self.choices.any();
        let before = self.loads();
        let Some(proxy) = &self.proxy else { return };
        match proxy.balancer.choose(caller.port, caller.origin, random) {
            Choice::Admitted(Admission { claim, edge }) => {
                self.check_admission(&claim, &before);
                self.serve(name, claim);
                self.edge(edge);
            }
            Choice::Hold(_) if caller.origin == Origin::SamePool => {
                self.callers.remove(&name);
            }
            Choice::Hold(_) => self.enqueue(name, caller),
            Choice::Refuse => {
                self.refused += u32::from(self.healed_at.is_some());
                self.callers.remove(&name);
            }
        }
    }

    fn enqueue(&mut self, name: u64, caller: Caller) {
        let Some(proxy) = &mut self.proxy else { return };
        proxy.queues.entry(caller.port).or_default().push_back(name);
        let wait = caller.patience.min(START_TIMEOUT);
        self.later(wait, Ev::LeaveQueue(name));
        self.demand(caller.port);
    }

    fn demand(&mut self, port: u16) {
        let Some(proxy) = &self.proxy else { return };
        let waiting = proxy.queues.get(&port).map_or(0, VecDeque::len);
        self.balancer_event(Event::Demand { port, waiting });
    }

    pub(crate) fn leave_queue(&mut self, name: u64) {
        let Some(caller) = self.callers.get(&name).copied() else { return };
        let Some(queue) = self.proxy.as_mut().and_then(|p| p.queues.get_mut(&caller.port)) else {
            return;
        };
        let Some(place) = queue.iter().position(|n| *n == name) else { return };
        queue.remove(place);
        self.callers.remove(&name);
        if START_TIMEOUT <= caller.patience && self.healed_at.is_some_and(|at| at < caller.came_at)
        {
            self.fail("a caller waited in vain though nothing is broken");
        }
        self.demand(caller.port);
    }

    fn serve(&mut self, name: u64, claim: Claim) {
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
            let work = self.callers.get(&name).map_or(Duration::ZERO, |c| c.work);
            self.later(work, Ev::Finish(name));
        } else if proxy.balancer.is_current(claim) {
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
        let counts = self.callers.get(&name).is_none_or(|c| c.origin == Origin::Caller);
        let book = &mut proxy.books[index(claim.endpoint().machine)];
        if counts && book.view.run == claim.endpoint().run {
            book.used_at = now;
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

    fn edge(&mut self, edge: Option<Edge>) {
        if let Some(edge) = edge {
            self.balancer_event(Event::Edge(edge));
        }
    }

    pub(crate) fn balancer_event(&mut self, event: Event) {
        if self.is_noting() {
            self.note(&format!("balancer hears {}", brief(&event)));
        }
        let now = self.now;
        if let Some(proxy) = &mut self.proxy {
            proxy.balancer.handle_event(event, now);
            self.do_balancer_effects();
        }
    }

    pub(crate) fn balancer_timeout(&mut self) {
        let now = self.now;
        if let Some(proxy) = &mut self.proxy {
            proxy.balancer.handle_timeout(now);
            if proxy.balancer.poll_timeout().is_some_and(|(at, _)| at <= now) {
                self.fail("the balancer asks for a timer that is already over");
            }
            self.do_balancer_effects();
        }
    }

    fn do_balancer_effects(&mut self) {
        while let Some(effect) = self.proxy.as_mut().and_then(|p| p.balancer.poll_effect()) {
            self.note(&format!("balancer wants {effect:?}"));
            match effect {
                Effect::Start { machine, attempt, port } => {
                    self.ask_start(index(machine), attempt, port);
                }
                Effect::Stop { machine, run, attempt, reason } => {
                    self.ask_stop(index(machine), run, attempt, reason);
                }
                Effect::Admit { port, claim } => self.admit(port, claim),
                Effect::Fail { port, waiters, reason } => self.send_away(port, waiters, &reason),
                Effect::Drained { machine, token, in_flight } => {
                    self.answer_drain(index(machine), token, in_flight);
                }
            }
        }
    }

    fn ask_start(&mut self, machine: usize, attempt: u64, port: Option<u16>) {
        self.check_start(machine, port);
        if let Some(proxy) = &mut self.proxy {
            proxy.books[machine].start = Some(attempt);
        }
        self.send_to_server(ToServer::Start { index: machine, attempt });
    }

    fn ask_stop(&mut self, machine: usize, run: u64, attempt: u64, reason: StopReason) {
        self.check_stop(machine, run, reason);
        if let Some(proxy) = &mut self.proxy {
            proxy.books[machine].stop = Some((run, attempt));
        }
        self.send_to_server(ToServer::Stop { index: machine, run, attempt });
    }

    fn admit(&mut self, port: u16, claim: Claim) {
        let queue = self.proxy.as_mut().and_then(|p| p.queues.get_mut(&port));
        let Some(name) = queue.and_then(VecDeque::pop_front) else {
            self.fail("somebody is let in, but nobody waits");
            return;
        };
        // Several may be let in at once, so the order among Machines cannot be checked from here.
        self.check_limits(&claim);
        self.serve(name, claim);
    }

    fn send_away(&mut self, port: u16, waiters: usize, reason: &FailReason) {
        self.check_hopeless(port, reason);
        let Some(queue) = self.proxy.as_mut().and_then(|p| p.queues.get_mut(&port)) else { return };
        let away: Vec<u64> = queue.drain(..waiters.min(queue.len())).collect();
        for name in away {
            self.callers.remove(&name);
        }
    }

    fn answer_drain(&mut self, machine: usize, token: u64, in_flight: u64) {
        let run = self.proxy.as_ref().map_or(0, |p| p.books[machine].view.run);
        let inside = u64::from(self.inside(machine, run, None));
        if inside != in_flight {
            self.fail(&format!("a drain is answered with {in_flight}, but {inside} are inside"));
        }
        self.send_to_server(ToServer::Drained { index: machine, token });
    }

    // ---- what must always hold ----------------------------------------------------------------

    /// Per Machine: open for new requests, in flight per service.
    fn loads(&self) -> Vec<(bool, Vec<u32>)> {
        let Some(proxy) = &self.proxy else { return Vec::new() };
        let load = |(index, book): (usize, &Book)| {
            let open = proxy.balancer.belief(id(index)).is_some_and(|b| b.open);
            let services = 0..self.plan.services.len();
            (open, services.map(|s| self.inside(index, book.view.run, Some(s))).collect())
        };
        proxy.books.iter().enumerate().map(load).collect()
    }

    /// Never over `hard_limit`, never into a Machine that is being stopped or is not up.
    fn check_limits(&mut self, claim: &Claim) {
        let endpoint = claim.endpoint();
        let (machine, run, service) = (index(endpoint.machine), endpoint.run, endpoint.service);
        let others = self.inside(machine, run, Some(service));
        if self.plan.hard() <= others {
            self.fail(&format!("{} gets one more than hard_limit", id(machine)));
        }
        let Some(proxy) = &self.proxy else { return };
        let book = &proxy.books[machine];
        if book.stop.is_some_and(|(stopping, _)| stopping == run) {
            self.fail(&format!("{} gets a request while it is being stopped", id(machine)));
        } else if book.view.cordoned {
            self.fail(&format!("{} gets a request though it is cordoned", id(machine)));
        }
    }

    /// PX-61, PX-62: over soft only if all others of the region are; least loaded within the band.
    fn check_admission(&mut self, claim: &Claim, before: &[(bool, Vec<u32>)]) {
        self.check_limits(claim);
        let (soft, hard) = (self.plan.soft(), self.plan.hard());
        let (machine, service) = (index(claim.endpoint().machine), claim.endpoint().service);
        let region = self.plan.machines[machine];
        let cost = |index: usize, load: u32| {
            (self.plan.machines[index] != Region::LOCAL, soft <= load, load)
        };
        let chosen = before.get(machine).map(|(_, loads)| cost(machine, loads[service]));
        let usable =
            |(_, (open, loads)): &(usize, &(bool, Vec<u32>))| *open && loads[service] < hard;
        let best = before.iter().enumerate().filter(usable);
        let best = best.map(|(index, (_, loads))| cost(index, loads[service]));
        if chosen > best.min() {
            self.fail(&format!("{} of {region} is not the best choice", id(machine)));
        }
    }

    /// One start at a time per Machine, and no more than the demand needs.
    fn check_start(&mut self, machine: usize, port: Option<u16>) {
        let Some(proxy) = &self.proxy else { return };
        if proxy.books[machine].start.is_some() {
            self.fail(&format!("{} is started a second time at once", id(machine)));
            return;
        }
        if !proxy.server_ready {
            self.fail("a start is asked for without a server");
        } else if let Some(port) = port {
            self.check_start_is_needed(port);
        } else if self.has_room_at_home() {
            self.fail("a start because of load though one has room");
        }
    }

    /// PX-62: other regions are no relief.
    fn has_room_at_home(&self) -> bool {
        let loads = self.loads();
        let mut here = loads.iter().zip(&self.plan.machines).filter(|(_, r)| **r == Region::LOCAL);
        here.any(|((open, loads), _)| *open && loads.iter().all(|l| *l < self.plan.soft()))
    }

    fn check_start_is_needed(&mut self, port: u16) {
        let Some(proxy) = &self.proxy else { return };
        let service = self.plan.services.iter().position(|s| s.publishes(port)).unwrap_or(0);
        let waiting = proxy.queues.get(&port).map_or(0, VecDeque::len) as u32;
        let loads = self.loads();
        let open = || loads.iter().filter(|(open, _)| *open);
        let demand = waiting + open().map(|(_, loads)| loads[service]).sum::<u32>();
        let starting = proxy.books.iter().enumerate().filter(|(index, book)| {
            // A start behind a stop may take long; then another one is welcome.
            let behind = is_going(book.view.state) || book.view.state == MachineState::Replacing;
            let asked = book.start.is_some() && !behind;
            let coming = asked || book.view.state == MachineState::Starting;
            coming && !loads[*index].0 && !book.view.cordoned
        });
        let there = open().count() + starting.count();
        if demand.div_ceil(self.plan.soft()) as usize <= there {
            self.fail(&format!("a start for {demand} requests though {there} are there"));
        }
    }

    /// AS-31, AS-32, AS-35, AS-60..64 as DESIGN 4 has them.
    fn check_stop(&mut self, machine: usize, run: u64, reason: StopReason) {
        let Some(proxy) = &self.proxy else { return };
        let book = &proxy.books[machine];
        let quiet = self.now.since(book.used_at);
        let wrong = if self.inside(machine, run, None) > 0 {
            Some("with load")
        } else if book.view.leased || book.view.cordoned {
            Some("though it is leased or cordoned")
        } else if !proxy.server_ready {
            Some("without a server")
        } else if reason != StopReason::ExcessDrained && quiet < self.plan.after() {
            Some("too early")
        } else {
            self.wrong_in_region(machine)
        };
        if let Some(wrong) = wrong {
            self.fail(&format!("{} is stopped {wrong} ({reason:?})", id(machine)));
        }
    }

    fn wrong_in_region(&self, machine: usize) -> Option<&'static str> {
        let region = self.plan.machines[machine];
        let (others, over) = self.census(region, Some(machine));
        let running = others + 1;
        let primary = region == Region::LOCAL;
        if primary && others < self.plan.floor() {
            return Some("below the floor");
        }
        let excess = running as i64 - (over as i64 + 1);
        (running > 1 && excess < 1).then_some("though it is needed")
    }

    /// Counted Machines of a region without `except`, and those of them at or over soft.
    pub(crate) fn census(&self, region: Region, except: Option<usize>) -> (usize, usize) {
        let Some(proxy) = &self.proxy else { return (0, 0) };
        let loads = self.loads();
        let counted = |index: &usize| {
            let here = self.plan.machines[*index] == region && Some(*index) != except;
            here && loads[*index].0 && !proxy.books[*index].view.leased
        };
        let counted: Vec<usize> = (0..loads.len()).filter(counted).collect();
        let is_over = |index: &&usize| loads[**index].1.iter().any(|l| self.plan.soft() <= *l);
        (counted.len(), counted.iter().filter(is_over).count())
    }

    /// Callers are sent away only when every Machine has failed again and again.
    fn check_hopeless(&mut self, port: u16, reason: &FailReason) {
        let Some(proxy) = &self.proxy else { return };
        match reason {
            FailReason::NothingToWake => {
                if proxy.books.iter().any(|b| !b.view.cordoned) {
                    self.fail(&format!("callers of {port} are sent away: {reason:?}"));
                }
            }
            FailReason::StartsFailed { .. } => {
                let candidates = || proxy.books.iter().filter(|b| !b.view.cordoned);
                if candidates().any(|b| b.failures < 3) {
                    self.fail(&format!("callers of {port} are sent away too early: {reason:?}"));
                }
            }
        }
    }

    /// After each event: what the words say is what the shell has counted.
    pub(crate) fn check_counts(&mut self) {
        let Some(proxy) = &self.proxy else { return };
        for (index, book) in proxy.books.iter().enumerate() {
            let Some(belief) = proxy.balancer.belief(id(index)) else { continue };
            let inside = u64::from(self.inside(index, belief.run, None));
            if belief.run == book.view.run && belief.in_flight != inside {
                let text = format!("{}: {} counted, {inside} inside", id(index), belief.in_flight);
                self.fail(&text);
                return;
            }
        }
    }

    /// The proxy's own stop must never end a request.
    pub(crate) fn check_nobody_cut(&mut self, machine: usize, run: u64) {
        if self.inside(machine, run, None) > 0 {
            self.fail(&format!("{} is ended with requests inside", id(machine)));
        }
    }
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
