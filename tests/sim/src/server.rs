//! The simulated server and the Machines' programs: lifecycles, a store that is written behind, and
//! the truth about processes, which survives the server.

use std::collections::BTreeMap;
use std::time::Duration;

use perch_core::balancer::MachineView;
use perch_core::lifecycle::{
    AfterLoss, Asleep, Effect, Event, Exit, Found, Happened, Lease, Lifecycle, MachineState,
    StartBy, StopBy, Stored, Wish,
};

use crate::link::{Awaited, Port};
use crate::plan::{self, id};
use crate::world::{Ev, ToProxy, ToServer, World};

const CRASH: Exit = Exit { code: 1, signal: None, oom_killed: false };
const CLEAN: Exit = Exit { code: 0, signal: None, oom_killed: false };

/// One life of the server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) lives: BTreeMap<usize, Lifecycle>,
    /// All that was stored has been taken up.
    pub(crate) complete: bool,
    pub(crate) port: Port,
}

/// What is stored of an app itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppTruth {
    Exists,
    /// Somebody with the API waits until its Machines are gone; that is not stored.
    BeingDestroyed,
    Gone,
}

/// How far the end of a Machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nobody asked for it.
    None,
    /// Somebody was told that it is destroyed.
    Asked,
    /// Nothing of it is stored any more.
    Removed,
}

/// The truth about one Machine, and what is stored about it.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) process: Process,
    pub(crate) stored: Stored,
    pub(crate) runs_launched: u64,
    pub(crate) config_version: u64,
    pub(crate) leased: bool,
    pub(crate) cordoned: bool,
    pub(crate) end: End,
    /// Its check would pass.
    pub(crate) is_well: bool,
    /// The current run is being stopped because the proxy asked for it.
    stopped_by_proxy: bool,
    /// The server waits until nobody is inside.
    pub(crate) awaited: Option<Awaited>,
    /// One did that has died since; who is inside has that time still.
    pub(crate) promised: Option<Awaited>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    None,
    Launching { run: u64, config_version: u64 },
    Running { run: u64, config_version: u64 },
    Frozen { run: u64, config_version: u64 },
    Ended { run: u64, exit: Exit },
}

impl Process {
    pub(crate) fn is_running(self, wanted: u64) -> bool {
        matches!(self, Self::Running { run, .. } if run == wanted)
    }

    /// Something of it is there, be it frozen.
    pub(crate) fn is_alive(self) -> bool {
        match self {
            Self::Launching { .. } | Self::Running { .. } | Self::Frozen { .. } => true,
            Self::None | Self::Ended { .. } => false,
        }
    }
}

impl Truth {
    pub(crate) fn new() -> Self {
        let stored =
            Stored { state: MachineState::Created, run: 0, config_version: 1, wish: Wish::Down };
        Self {
            process: Process::None,
            stored,
            runs_launched: 0,
            config_version: 1,
            leased: false,
            cordoned: false,
            end: End::None,
            is_well: true,
            stopped_by_proxy: false,
            awaited: None,
            promised: None,
        }
    }

    fn found(&self, thawed: Option<u64>) -> Found {
        match self.process {
            Process::Running { run, config_version } if thawed == Some(run) => {
                Found::Thawed { run, config_version }
            }
            Process::None => Found::Nothing { was_up: AfterLoss::Launch },
            Process::Launching { run, config_version }
            | Process::Running { run, config_version } => Found::Running { run, config_version },
            Process::Frozen { run, config_version } => Found::Frozen { run, config_version },
            Process::Ended { run, exit } => Found::Ended { run, exit },
        }
    }
}

impl World {
    // ---- the server's life --------------------------------------------------------------------

    pub(crate) fn start_server(&mut self) {
        if self.server.is_some() {
            return;
        }
        self.note("server starts");
        let port = Port::new(self.mutant);
        self.server = Some(Server { lives: BTreeMap::new(), complete: false, port });
        self.find_proxy();
        for index in 0..self.truths.len() {
            let truth = &self.truths[index];
            if truth.end == End::Removed {
                continue;
            }
            let policy = self.plan.app_of(index).policy;
            let (mut stored, found) = (truth.stored, self.found(index));
            // The Machine's directory knows it.
            stored.run = stored.run.max(truth.runs_launched);
            let life = match (stored.state, stored.run, &found) {
                (MachineState::Created, 0, Found::Nothing { .. }) => {
                    let mut life = Lifecycle::new(stored.config_version, policy);
                    life.set_mutant(self.mutant);
                    life
                }
                _ => Lifecycle::restore_mutant(stored, policy, found, self.now, self.mutant),
            };
            let lease = if truth.leased { Lease::Held } else { Lease::Free };
            if let Some(server) = &mut self.server {
                server.lives.insert(index, life);
            }
            self.life_event(index, Event::Lease(lease));
        }
        if let Some(server) = &mut self.server {
            server.complete = true;
        }
        self.begin_session();
    }

    /// What is there, with what the proxy says in its greeting.
    fn found(&self, index: usize) -> Found {
        let greeted = self.proxy.as_ref().filter(|_| self.link.is_up);
        let unreported = greeted.and_then(|proxy| proxy.books[index].thawed);
        self.truths[index].found(unreported.map(|(run, _)| run))
    }

    /// A proxy that died may have thawed what it could not tell of any more.
    pub(crate) fn look_for_thawed(&mut self) {
        for index in 0..self.truths.len() {
            let asleep = self.life(index).is_some_and(|l| l.state() == MachineState::Suspended);
            if let Process::Running { run, .. } = self.truths[index].process
                && asleep
            {
                self.life_event(index, Event::Thawed { run });
            }
        }
    }

    pub(crate) fn kill_server(&mut self) {
        if self.server.take().is_none() {
            return;
        }
        self.note("server dies");
        for truth in &mut self.truths {
            truth.promised = truth.awaited.take().or(truth.promised);
        }
        for app in &mut self.apps {
            if *app == AppTruth::BeingDestroyed {
                *app = AppTruth::Exists;
            }
        }
        // What it had sent can still be read, up to some point.
        for message in self.cut_link_to_proxy() {
            self.on_message_to_proxy(message);
        }
        self.proxy_lost_server();
        let down = self.choices.millis(10, 5_000);
        self.later(down, Ev::StartServer);
    }

    pub(crate) fn server_timeouts(&mut self) {
        for index in 0..self.truths.len() {
            if let Some(life) = self.life(index)
                && life.poll_timeout().is_some_and(|(at, _)| at <= self.now)
            {
                let now = self.now;
                if let Some(life) = self.life_mut(index) {
                    life.handle_timeout(now);
                }
                self.do_life_effects(index, Durable::Behind);
            }
        }
    }

    pub(crate) fn life(&self, index: usize) -> Option<&Lifecycle> {
        self.server.as_ref().and_then(|s| s.lives.get(&index))
    }

    fn life_mut(&mut self, index: usize) -> Option<&mut Lifecycle> {
        self.server.as_mut().and_then(|s| s.lives.get_mut(&index))
    }

    // ---- what people do -----------------------------------------------------------------------

    pub(crate) fn user_update(&mut self, index: usize) {
        if self.server.is_none() || self.truths[index].end != End::None {
            return;
        }
        let config_version = self.truths[index].config_version + 1;
        self.truths[index].config_version = config_version;
        self.note(&format!("machine {index}: update to config {config_version}"));
        let (policy, asleep) = (self.plan.app_of(index).policy, Asleep::Stays);
        self.user_event(index, Event::Update { config_version, policy, asleep });
    }

    pub(crate) fn user_event(&mut self, index: usize, event: Event) {
        self.handle_life_event(index, event, Durable::First);
    }

    pub(crate) fn set_lease(&mut self, index: usize, leased: bool) {
        if self.server.is_some() && self.truths[index].end != End::Removed {
            self.truths[index].leased = leased;
            let lease = if leased { Lease::Held } else { Lease::Free };
            self.user_event(index, Event::Lease(lease));
            self.send_app(self.plan.owner(index), None);
        }
    }

    pub(crate) fn set_cordon(&mut self, index: usize, cordoned: bool) {
        if self.server.is_some() {
            self.truths[index].cordoned = cordoned;
            self.send_app(self.plan.owner(index), None);
        }
    }

    /// Somebody is told that the Machine is destroyed; what is left to do goes on without them.
    pub(crate) fn destroy_machine(&mut self, index: usize) {
        if self.life(index).is_some() {
            self.note(&format!("machine {index}: destroy"));
            self.truths[index].end = End::Asked;
            self.user_event(index, Event::Destroy);
        }
    }

    /// As the API does it: all Machines are destroyed, and when the last is gone, so is the app.
    pub(crate) fn destroy_app(&mut self, app: usize) {
        if self.server.is_none() || self.apps[app] != AppTruth::Exists {
            return;
        }
        self.note(&format!("app {app}: destroy"));
        self.apps[app] = AppTruth::BeingDestroyed;
        for index in self.plan.apps[app].machines.clone() {
            self.destroy_machine(index);
        }
        self.remove_app_when_empty(app);
    }

    fn remove_app_when_empty(&mut self, app: usize) {
        let mut machines = self.plan.apps[app].machines.clone();
        let empty = machines.all(|index| self.truths[index].end == End::Removed);
        if empty && self.apps[app] == AppTruth::BeingDestroyed {
            self.note(&format!("app {app}: gone"));
            self.apps[app] = AppTruth::Gone;
            self.send_to_proxy(ToProxy::RemoveApp(app));
        }
    }

    /// Everything of a Machine is gone from the disk; it leaves the store and the API.
    pub(crate) fn on_removed(&mut self, index: usize) {
        if self.life(index).is_none() {
            return;
        }
        if self.truths[index].end == End::None {
            self.fail(&format!("{} is removed, but nobody destroyed it", id(index)));
        }
        self.life_event(index, Event::Removed);
        if self.life(index).is_none_or(|life| life.state() != MachineState::Destroyed) {
            return;
        }
        let process = self.truths[index].process;
        if process.is_alive() {
            self.fail(&format!("{} is removed, but {process:?}", id(index)));
        }
        self.truths[index].end = End::Removed;
        if let Some(server) = &mut self.server {
            server.lives.remove(&index);
        }
        let app = self.plan.owner(index);
        self.send_app(app, None);
        self.remove_app_when_empty(app);
    }

    // ---- what the proxy asks ------------------------------------------------------------------

    pub(crate) fn on_message_to_server(&mut self, message: ToServer) {
        match message {
            ToServer::Start { index, attempt } => {
                self.life_event(index, Event::Start(StartBy::Proxy { attempt }));
            }
            ToServer::Stop { index, run, attempt } => {
                let up =
                    |w: &Self| w.life(index).is_some_and(|l| l.state() == MachineState::Started);
                let was_up = up(self);
                let stop = Event::Stop(StopBy::Proxy { run, attempt });
                self.handle_life_event(index, stop, Durable::First);
                if was_up && !up(self) {
                    self.truths[index].stopped_by_proxy = true;
                    self.check_nobody_cut(index, run);
                }
            }
            ToServer::Drained { index, token } => {
                self.note(&format!("machine {index}: a drain is answered"));
                self.drain_is_answered(token);
            }
        }
    }

    pub(crate) fn life_event(&mut self, index: usize, event: Event) {
        self.handle_life_event(index, event, Durable::Behind);
    }

    fn handle_life_event(&mut self, index: usize, event: Event, durable: Durable) {
        let now = self.now;
        let Some(life) = self.life_mut(index) else { return };
        // A refusal (412) is an answer, too.
        let refused = life.handle_event(event, now).is_err();
        if refused {
            self.note(&format!("machine {index}: refused"));
        }
        self.do_life_effects(index, durable);
    }

    // ---- what a lifecycle wants ---------------------------------------------------------------

    fn do_life_effects(&mut self, index: usize, durable: Durable) {
        if durable == Durable::First {
            self.store(index);
        } else {
            let behind = self.choices.millis(0, 500);
            self.later(behind, Ev::Store(index));
        }
        let next = |w: &mut Self| w.life_mut(index).and_then(Lifecycle::poll_effect);
        while let Some(effect) = next(self) {
            self.do_life_effect(index, effect);
        }
    }

    fn do_life_effect(&mut self, index: usize, effect: Effect) {
        self.note(&format!("machine {index}: {effect:?}"));
        match effect {
            Effect::Announce { state, run, happened } => {
                self.check_announced(index, state, run, &happened);
                let exact = (!self.plan.coalesced).then_some((index, state, run));
                self.send_app(self.plan.owner(index), exact);
            }
            Effect::Drain { run, token, timeout } => self.ask_drain(index, run, token, timeout),
            Effect::Undrain { run } => self.call_off_drain(index, run),
            Effect::Launch { run, config_version } => self.launch(index, run, config_version),
            Effect::Freeze { run, token } => self.freeze(index, run, token),
            Effect::Thaw { run } => self.thaw(index, run),
            Effect::Signal { run, .. } => self.signal(index, run),
            Effect::Kill { run } => self.kill(index, run),
            Effect::Remove => {
                let length = self.choices.millis(1, 300);
                self.later(length, Ev::Removed(index));
            }
            Effect::StartDone { attempt, outcome } => {
                self.send_to_proxy(ToProxy::StartDone { index, attempt, outcome });
            }
            Effect::StopDone { attempt, outcome } => {
                self.send_to_proxy(ToProxy::StopDone { index, attempt, outcome });
            }
        }
    }

    pub(crate) fn store(&mut self, index: usize) {
        if let Some(life) = self.life(index) {
            self.truths[index].stored = life.stored();
        }
    }

    /// Sends all views of an app; the Machine of `exact` as it was announced, not as it is by now.
    fn send_app(&mut self, app: usize, exact: Option<(usize, MachineState, u64)>) {
        if !self.is_told_later(app) {
            self.say_app(app, exact);
        }
    }

    /// The same, now.
    pub(crate) fn say_app(&mut self, app: usize, exact: Option<(usize, MachineState, u64)>) {
        let Some(server) = &self.server else { return };
        if !server.complete || self.apps[app] == AppTruth::Gone {
            return;
        }
        let view = |(index, life): (&usize, &Lifecycle)| {
            let (index, truth) = (*index, &self.truths[*index]);
            let now = (index, life.state(), life.run());
            let (_, state, run) = exact.filter(|(i, ..)| *i == index).unwrap_or(now);
            MachineView {
                run,
                state,
                config_version: life.config_version(),
                cordoned: truth.cordoned,
                leased: truth.leased,
                ..self.plan.view(index)
            }
        };
        let machines = self.plan.apps[app].machines.clone();
        let views: Vec<_> = server.lives.range(machines).map(view).collect();
        let asleep = views.iter().filter(|view| view.state == MachineState::Suspended);
        let freezers: Vec<_> = asleep.map(|view| (plan::index(view.id), view.run)).collect();
        self.say_to_proxy(ToProxy::App { app, views });
        for (index, run) in freezers {
            self.say_to_proxy(ToProxy::Freezer { index, run });
        }
    }

    // ---- programs -----------------------------------------------------------------------------

    fn launch(&mut self, index: usize, run: u64, config_version: u64) {
        self.check_launch(index, run, config_version);
        let truth = &mut self.truths[index];
        truth.runs_launched = run;
        truth.stopped_by_proxy = false;
        truth.process = Process::Launching { run, config_version };
        let fails = self.is_chaos() && self.choices.chance(self.plan.launch_fails);
        let length = self.choices.millis(1, 800);
        self.later(length, Ev::LaunchEnds { index, run, fails });
    }

    pub(crate) fn on_launch_ends(&mut self, index: usize, run: u64, fails: bool) {
        let Process::Launching { run: current, config_version } = self.truths[index].process else {
            return;
        };
        if current != run {
            return;
        }
        // To a server that found the run on its way, a failure looks like an exit.
        let starting = self.life(index).is_some_and(|l| l.state() == MachineState::Starting);
        if !fails {
            self.truths[index].process = Process::Running { run, config_version };
            self.life_event(index, Event::Launched { run });
        } else if starting {
            self.truths[index].process = Process::None;
            self.life_event(index, Event::LaunchFailed { run, reason: "no".to_owned() });
        } else {
            self.end_process(index, run, CRASH);
        }
    }

    /// The answer comes late, at times later than the lifecycle waits for it.
    fn freeze(&mut self, index: usize, wanted: u64, token: u64) {
        self.end_drain(index, wanted);
        let fails = self.choices.chance(self.plan.launch_fails);
        if let Process::Running { run, config_version } = self.truths[index].process
            && run == wanted
            && !fails
        {
            self.truths[index].process = Process::Frozen { run, config_version };
        }
        let late = self.is_chaos() && self.choices.chance(10);
        let length =
            if late { self.choices.millis(5_000, 15_000) } else { self.choices.millis(1, 50) };
        self.later(length, Ev::FreezeEnds { index, token, fails });
    }

    pub(crate) fn on_freeze_ends(&mut self, index: usize, token: u64, fails: bool) {
        let event = match fails {
            true => Event::FreezeFailed { token, reason: "no".to_owned() },
            false => Event::Frozen { token },
        };
        self.life_event(index, event);
    }

    fn thaw(&mut self, index: usize, wanted: u64) {
        if let Process::Frozen { run, config_version } = self.truths[index].process
            && run == wanted
        {
            self.truths[index].process = Process::Running { run, config_version };
        }
    }

    /// By the proxy: `false` if that run is not there any more.
    pub(crate) fn thaw_process(&mut self, index: usize, wanted: u64) -> bool {
        self.thaw(index, wanted);
        // What ends the run from now on is somebody else's wish.
        self.truths[index].stopped_by_proxy = false;
        self.truths[index].process.is_running(wanted)
    }

    fn signal(&mut self, index: usize, run: u64) {
        self.end_drain(index, run);
        if !self.choices.chance(self.plan.deaf) {
            let length = self.choices.millis(1, 3_000);
            self.later(length, Ev::ProcessEnds { index, run, exit: CLEAN });
        }
    }

    fn kill(&mut self, index: usize, run: u64) {
        self.truths[index].awaited = None;
        self.check_promise(index, run);
        self.later(Duration::from_millis(1), Ev::ProcessEnds { index, run, exit: CRASH });
    }

    pub(crate) fn crash_process(&mut self, index: usize) {
        if let Process::Running { run, .. } | Process::Frozen { run, .. } =
            self.truths[index].process
        {
            let exit = if self.choices.chance(30) { CLEAN } else { CRASH };
            self.note(&format!("machine {index}: program ends by itself"));
            self.end_process(index, run, exit);
        }
    }

    pub(crate) fn end_process(&mut self, index: usize, ended: u64, exit: Exit) {
        match self.truths[index].process {
            Process::Launching { run, .. }
            | Process::Running { run, .. }
            | Process::Frozen { run, .. }
                if run == ended => {}
            _ => return,
        }
        if self.truths[index].stopped_by_proxy {
            self.check_nobody_cut(index, ended);
        }
        self.truths[index].process = Process::Ended { run: ended, exit };
        self.truths[index].awaited = None;
        self.truths[index].promised = None;
        self.proxy_sees_end(index, ended);
        self.life_event(index, Event::Exited { run: ended, exit });
    }

    // ---- what must always hold ----------------------------------------------------------------

    fn check_launch(&mut self, index: usize, run: u64, config_version: u64) {
        if self.truths[index].end != End::None {
            self.fail(&format!("{} is launched though it is destroyed", id(index)));
        }
        let truth = &self.truths[index];
        let (newest, last) = (truth.config_version, truth.runs_launched);
        if truth.process.is_alive() {
            self.fail(&format!("{} is launched twice at the same time", id(index)));
        }
        if run <= last {
            self.fail(&format!("{}: run {run} is launched after run {last}", id(index)));
        }
        if config_version != newest {
            self.fail(&format!("{} runs config {config_version}, not {newest}", id(index)));
        }
    }

    fn check_announced(&mut self, index: usize, state: MachineState, run: u64, why: &Happened) {
        let launched = self.truths[index].runs_launched;
        // Callers are let in (again): what ends the run now is not that stop.
        self.truths[index].stopped_by_proxy &= state != MachineState::Started;
        self.truths[index].promised.take_if(|_| state == MachineState::Started);
        if state == MachineState::Started && run != launched {
            self.fail(&format!(
                "{} is started as run {run}, but {launched} is last ({why:?})",
                id(index)
            ));
        }
    }
}

/// When the store is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// Before the answer: somebody's wish.
    First,
    /// Some time later.
    Behind,
}
