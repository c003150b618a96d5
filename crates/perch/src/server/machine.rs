//! One task per Machine: it owns the Machine's life and does what `core`'s lifecycle decides.
//!
//! Everything that can happen to a Machine arrives in its mailbox or is the end of its run, so all
//! of it has one order. What the task needs from the rest of the server is in [`World`]. Slow work
//! (launching, waiting, removing) runs beside it and comes back as a message.

mod freezing;
mod ledger;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_api::wire;
use perch_core::balancer::StopOutcome;
use perch_core::fault::{self, Point};
use perch_core::lifecycle::{
    Asleep, Effect, Event, Exit, Happened, InvalidTransition, Lease, Lifecycle, MachineState,
    NOT_STARTED, Resting, StartBy, StopBy,
};
use perch_core::time::Timestamp;
use perch_machine::ExitCause;
use tokio::sync::{oneshot, watch};

use super::arming::{self, Beginning};
use super::clock;
use super::cpu;
use super::history::{History, Source};
use super::launching::{self, Failure};
use super::leaving;
use super::limits;
use super::paging::Past;
use super::platform_log::Line;
use super::proxy_link::Waking;
use super::seat::{Desk, Handle, Mailbox, Post, Seat};
use super::standby;
use super::stored_config::Config;
use super::verdict::{Ended, LOST};
use super::workers::Workers;
use super::world::{World, lock};

/// How long a start by the proxy waits for others to give way before the proxy hears of it.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// A task with nothing to do leaves after this time, and looks again so often while somebody is on the way to it: what
/// follows soon finds it there.
const LEAVE_AFTER: Duration = Duration::from_secs(1);

/// Callers in quick succession get the same measurement: one costs 3 ms a GB.
const MEASURED_FOR: Duration = Duration::from_secs(1);

/// What others may ask of a Machine's task.
#[derive(Debug)]
pub(crate) enum Command {
    /// A user's wish; answered when it is durable.
    Ask { event: Event, source: Source, reply: oneshot::Sender<Result<(), Refused>> },
    /// The proxy's wish; answered by `StartDone` or `StopDone`.
    FromProxy { event: Event, cause: String, waking: Option<Box<Waking>>, session: u64 },
    /// A drain has ended, by the lifecycle's own token.
    Drained { token: u64 },
    /// Whether it is kept awake may have changed: who is told looks, so that nobody tells what was true before.
    LookWhetherKept,
    /// Something that is only recorded; answered when it can be read.
    Note { kind: &'static str, source: Source, cause: String, reply: oneshot::Sender<()> },
    /// The run takes what it may not have.
    Limit { run: u64, haste: Haste, reason: String },
    /// Send a signal to the program.
    Signal { number: i32, reply: oneshot::Sender<Result<(), String>> },
    /// Measure its memory; `None` when nothing of it runs.
    Memory { reply: oneshot::Sender<Option<perch_machine::Memory>> },
    /// Forks of its program have ended right after a thaw.
    WorkersEnded { run: u64, told: String },
    /// Some of its memory went to swap.
    PagedOut { run: u64, paged: perch_machine::PagedOut, why: Option<String> },
    /// The run that lives, for who joins it.
    Run { reply: oneshot::Sender<Option<Arc<perch_machine::Machine>>> },
    /// Stop, because memory is short and it sleeps.
    GiveWay { run: u64, reason: String },
    /// The proxy's start, after it was looked for room.
    Room {
        event: Event,
        cause: String,
        waking: Option<Box<Waking>>,
        session: u64,
        found: Result<(), String>,
    },
    /// List what runs.
    Processes { reply: oneshot::Sender<Result<Vec<perch_machine::Process>, String>> },
    /// The end of a launch.
    Launched { run: u64, result: Result<(Box<perch_machine::Machine>, Beginning), Failure> },
    /// A run stays frozen.
    ThawFailed { run: u64, reason: String },
    /// A proxy has ended that may have thawed the Machine without a word.
    LookWhetherFrozen,
    /// The end of a freeze, by the lifecycle's own token.
    FreezeEnded { token: u64, result: Result<(), String> },
    /// The end of a removal.
    Removed,
}

/// How a Machine is stopped that takes too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// As by a user.
    InGoodOrder,
    /// Killed: every moment costs others.
    AtOnce,
}

/// Why a user's wish was not granted, or not for sure.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It makes no sense now; nothing has happened.
    Invalid(InvalidTransition),
    /// The Machine obeys, but a server that starts now would know nothing of it.
    NotStored(wire::ApiError),
}

/// What everybody may know of a Machine at any time.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) state: wire::MachineState,
    pub(crate) run: u64,
    /// Whether a transition is in progress.
    pub(crate) settled: bool,
    pub(crate) history: Arc<History>,
    /// The run that lives.
    pub(crate) running: Option<Arc<perch_machine::Machine>>,
}

/// Gives a Machine whose life begins or is restored as `life` its place; and a task, unless nothing is to be done.
pub(crate) fn settle(
    world: &Arc<World>,
    id: String,
    life: Lifecycle,
    history: History,
    running: Option<perch_machine::Machine>,
) -> Handle {
    // An earlier server may have died between a program's end and what follows from it.
    let may_leave = has_exited(&history) && world.goes_with_its_program(&id);
    let history = Arc::new(history);
    if running.is_none()
        && !may_leave
        && let Some(life) = life.rest()
    {
        return Handle::vacant(world, id, Rested { life, history });
    }
    let running = running.map(Arc::new);
    let status = Status { running: running.clone(), ..status_of(&life, history) };
    let (handle, seat, desk) = Handle::taken(world, id, status);
    let (mut task, mut mailbox) = Task::new(world.clone(), seat, life, desk);
    task.running = running;
    world.tracker.spawn(async move {
        task.do_effects().await;
        // Also by what was just heard of it.
        let exited = has_exited(&task.status.borrow().history);
        if exited {
            task.leave_if_done().await;
        }
        task.work(&mut mailbox).await;
    });
    handle
}

fn has_exited(history: &History) -> bool {
    history.newest().is_some_and(|event| event.kind == "exit")
}

fn status_of(life: &Lifecycle, history: Arc<History>) -> Status {
    let (state, run, settled) = (wire_state(life), life.run(), life.poll_timeout().is_none());
    Status { state, run, settled, history, running: None }
}

/// What is kept of a Machine's task while there is none.
#[derive(Debug)]
pub(crate) struct Rested {
    life: Resting,
    history: Arc<History>,
}

impl Rested {
    pub(crate) fn status(&self) -> Status {
        let (state, run) = (api_state(self.life.state()), self.life.run());
        Status { state, run, settled: true, history: self.history.clone(), running: None }
    }

    /// Makes the task anew.
    pub(crate) fn wake(self, world: Arc<World>, seat: Arc<Seat>, desk: Desk) {
        let tracker = world.tracker.clone();
        let (mut task, mut mailbox) = Task::new(world, seat, self.life.wake(), desk);
        // By reference: a future keeps room for what it was given and for what it makes of it.
        tracker.spawn(async move { task.work(&mut mailbox).await });
    }
}

struct Task {
    world: Arc<World>,
    seat: Arc<Seat>,
    id: String,
    life: Lifecycle,
    /// The run that lives.
    running: Option<Arc<perch_machine::Machine>>,
    status: watch::Sender<Status>,
    mailbox_sender: Post,
    /// Who caused what is being done now, for the Machine's events.
    source: Source,
    /// More about it, when the proxy asked.
    cause: String,
    /// Whom the proxy asks for.
    waking: Option<Box<Waking>>,
    /// The start that is under way.
    asked: Option<ledger::Asked>,
    /// Why it is stopped next, where its event says it.
    condemnation: Option<String>,
    /// Whether its directory is being removed: nothing is put into it any more.
    is_leaving: bool,
    /// What the pager believes.
    rest: Rest,
    /// How the run that lives began.
    beginning: Beginning,
    /// The last measurement of its memory, for callers in quick succession.
    measured: Arc<Mutex<Option<Measured>>>,
    /// Forks of its program, as they were when it was frozen.
    workers: Workers,
    /// The run that was killed for what it takes.
    condemned: Option<u64>,
    /// Its config, as of the last launch: so that it is read once for all who look while there is a task.
    config: Option<Config>,
}

/// What the proxy wants, why, and for whom.
type Wish = (Event, String, Option<Box<Waking>>);

/// Whether the pager was told that the Machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// An earlier server may have told its own.
    Unknown,
    Asleep,
    Awake,
}

/// When which run's memory was measured.
#[derive(Debug, Clone, Copy)]
struct Measured {
    at: Timestamp,
    run: u64,
    memory: perch_machine::Memory,
}

/// What wakes the task.
enum Woken {
    Command(Command),
    /// With the reason why nothing of the program was executed.
    Exited(u64, Exit, String),
    Timeout,
    Idle,
    Shutdown,
}

impl Task {
    fn new(world: Arc<World>, seat: Arc<Seat>, life: Lifecycle, desk: Desk) -> (Self, Mailbox) {
        let Desk { mailbox, post, status } = desk;
        let task = Self {
            world,
            id: seat.id().to_owned(),
            seat,
            life,
            running: None,
            status,
            mailbox_sender: post,
            source: Source::Platform,
            cause: String::new(),
            waking: None,
            asked: None,
            condemnation: None,
            is_leaving: false,
            rest: Rest::Unknown,
            beginning: Beginning::Cold,
            measured: Arc::default(),
            workers: Workers::default(),
            condemned: None,
            config: None,
        };
        (task, mailbox)
    }

    fn hold_config(&mut self) {
        let catalog = self.world.keeper.read();
        self.config = catalog.machines.get(&self.id).map(|record| record.config.read());
    }

    async fn work(&mut self, mailbox: &mut Mailbox) {
        self.hold_config();
        loop {
            match self.woken(mailbox).await {
                Woken::Command(command) => {
                    if self.on_command(command).await == Next::End {
                        return;
                    }
                }
                Woken::Exited(run, exit, reason) => {
                    fault::pass(Point::ServerExited);
                    if self.life.state() == MachineState::Replacing {
                        fault::pass(Point::ServerReplacing);
                    }
                    self.running = None;
                    // One that was killed asleep would keep their descriptors.
                    self.workers = Workers::default();
                    self.world.pager.gone(&self.id);
                    self.world.cpus.gone(&self.id);
                    self.world.proxy.end_drain(&self.id, run);
                    self.rest = Rest::Awake;
                    self.world.rest(&self.id).await;
                    self.because(Source::Platform, reason);
                    self.feed(Event::Exited { run, exit }).await;
                    super::api::busy_run_ended(&self.world, &self.id, run);
                    self.leave_if_done().await;
                }
                Woken::Timeout => {
                    self.because(Source::Platform, String::new());
                    self.life.handle_timeout(clock::now());
                    self.do_effects().await;
                    self.settle_behind();
                }
                Woken::Idle => {
                    if self.leave(mailbox) {
                        return;
                    }
                }
                Woken::Shutdown => return,
            }
        }
    }

    async fn woken(&self, mailbox: &mut Mailbox) -> Woken {
        let due = self.life.poll_timeout().map(|(deadline, _why)| deadline.since(clock::now()));
        let idle = self.is_idle().then_some(LEAVE_AFTER);
        tokio::select! {
            command = mailbox.next() => command.map_or(Woken::Shutdown, Woken::Command),
            (run, exit, reason) = ended(self.running.clone()) => Woken::Exited(run, exit, reason),
            () = sleep_or_never(due) => Woken::Timeout,
            () = sleep_or_never(idle) => Woken::Idle,
            () = self.world.shutdown.cancelled() => Woken::Shutdown,
        }
    }

    /// Whether nothing comes by itself.
    fn is_idle(&self) -> bool {
        self.running.is_none() && !self.is_leaving && self.life.can_rest()
    }

    /// Whether the task has left its seat.
    fn leave(&self, mailbox: &Mailbox) -> bool {
        self.seat.leave(mailbox, &self.status, || {
            let life = self.life.rest()?;
            let mut history = Arc::default();
            self.status.send_modify(|status| history = std::mem::take(&mut status.history));
            Some(Rested { life, history })
        })
    }

    async fn on_command(&mut self, command: Command) -> Next {
        match command {
            Command::Ask { event, source, reply } => self.on_ask(event, source, reply).await,
            Command::FromProxy { event, cause, waking, session } => {
                if let Some(wish) = self.look_for_room((event, cause, waking), session) {
                    self.on_proxy(wish, session).await;
                }
            }
            Command::Room { event, cause, waking, session, found: Ok(()) } => {
                self.on_proxy((event, cause, waking), session).await;
            }
            Command::Room { event, session, found: Err(reason), .. } => {
                self.on_no_room(&event, session, reason);
            }
            Command::GiveWay { run, reason } => self.on_give_way(run, reason).await,
            // Whoever asked for the stop is still its cause.
            Command::Drained { token } => self.feed(Event::Drained { token }).await,
            Command::LookWhetherKept => self.look_whether_kept().await,
            Command::Note { kind, source, cause, reply } => {
                // Whoever asked for what is under way is still its cause.
                let before = (self.source.clone(), self.cause.clone());
                self.because(source, cause);
                self.record(wire::Event { kind: kind.to_owned(), ..self.event(self.request()) });
                self.because(before.0, before.1);
                // The asker may have gone.
                reply.send(()).ok();
            }
            Command::Limit { run, haste, reason } => self.on_limit(run, haste, &reason).await,
            Command::Signal { number, reply } => {
                // The asker may have gone; there is nobody else to tell.
                reply.send(self.signal(number)).ok();
            }
            Command::Run { reply } => {
                // The asker may have gone.
                reply.send(self.running.clone()).ok();
            }
            Command::Processes { reply } => self.list_processes(reply),
            Command::Memory { reply } => self.measure(reply),
            Command::WorkersEnded { run, told } => self.on_workers_ended(run, told),
            Command::PagedOut { run, paged, why } => self.on_paged_out(run, paged, why),
            Command::Launched { run, result } => self.on_launched(run, result).await,
            Command::ThawFailed { run, reason } => {
                self.feed(Event::ThawFailed { run, reason }).await;
            }
            Command::LookWhetherFrozen => {
                self.look_whether_frozen("thawed by a proxy that has ended since").await;
            }
            Command::FreezeEnded { token, result: Ok(()) } => {
                fault::pass(Point::ServerFrozen);
                self.pass_by(Point::InitFrozen);
                self.feed(Event::Frozen { token }).await;
            }
            Command::FreezeEnded { token, result: Err(reason) } => {
                self.feed(Event::FreezeFailed { token, reason }).await;
            }
            Command::Removed => {
                self.feed(Event::Removed).await;
                // Its last life is of no interest to anybody, and was noted once more by that.
                self.world.lives.forget(&self.id);
                return Next::End;
            }
        }
        Next::Go
    }

    async fn on_ask(
        &mut self,
        event: Event,
        source: Source,
        reply: oneshot::Sender<Result<(), Refused>>,
    ) {
        let ends_a_use = matches!(
            event,
            Event::Update { .. } | Event::Restart { .. } | Event::Stop(_) | Event::Suspend
        );
        if ends_a_use {
            // A proxy that has thawed it says so a moment later: whoever it let in is let out first.
            self.look_whether_frozen("thawed by the proxy").await;
        }
        self.because(source, String::new());
        if matches!(event, Event::Update { .. } | Event::Destroy) {
            self.disarm();
        }
        let taken = self.life.handle_event(event, clock::now()).map_err(Refused::Invalid);
        // Before the effects: after a crash a Machine that was being stopped is stopped to the end.
        let saved = self.world.lives.save(&self.id, self.life.stored()).await;
        // Also if that failed: on a full disk a stop or a removal is what makes room.
        self.do_effects().await;
        reply.send(taken.and(saved.map_err(Refused::NotStored))).ok();
    }

    /// A wish of a proxy that is gone is dropped: its successor lets callers in by what it was told, and asks anew.
    async fn on_proxy(&mut self, (event, cause, waking): Wish, session: u64) {
        let is_stop = matches!(event, Event::Stop(_));
        if !self.world.proxy.hears(session) {
            if is_stop {
                self.world.proxy.stop_is_void(&self.id, session);
            }
            return;
        }
        self.because(Source::Proxy, cause);
        self.waking = waking;
        if let Err(error) = self.life.handle_event(event, clock::now()) {
            tracing::warn!(machine = self.id, %error, "an event was refused");
        }
        if is_stop {
            fault::pass(Point::ServerStopHeard);
            // Else callers would, after a crash, be let into a program that is ending. A start is stored
            // behind: a wake writes nothing before its answer.
            if let Err(error) = self.world.lives.save(&self.id, self.life.stored()).await {
                tracing::error!(machine = self.id, %error, "a stop could not be stored");
            }
            fault::pass(Point::ServerStopSaved);
        }
        self.do_effects().await;
        self.settle_behind();
    }

    /// Before a start by the proxy begins a run; answers what can go on at once. A thaw needs no room.
    fn look_for_room(&self, (event, cause, waking): Wish, session: u64) -> Option<Wish> {
        let is_down = matches!(
            wire_state(&self.life),
            wire::MachineState::Created | wire::MachineState::Stopped | wire::MachineState::Failed
        );
        if !is_down || !matches!(event, Event::Start(_)) {
            return Some((event, cause, waking));
        }
        let most = self.world.memory_most(&self.id);
        // Callers must hear of it while they wait.
        let timeout = ROOM_TIMEOUT.min(self.world.start_timeout(&self.id) / 2);
        if !self.world.pager.is_slow() && self.world.pager.admit(&self.id, most).is_ok() {
            return Some((event, cause, waking));
        }
        let (world, id, mailbox) =
            (self.world.clone(), self.id.clone(), self.mailbox_sender.clone());
        self.world.tracker.spawn(async move {
            let found = world.room_for(&id, most, timeout).await;
            mailbox.send(Command::Room { event, cause, waking, session, found }).await.ok();
        });
        None
    }

    /// The proxy goes on asking as long as its callers wait.
    fn on_no_room(&mut self, event: &Event, session: u64, reason: String) {
        if !self.world.proxy.hears(session) {
            return;
        }
        self.because(Source::Platform, String::new());
        let mut request = self.request();
        request.details.insert("reason".to_owned(), reason.as_str().into());
        self.enter_no_room(&reason);
        self.record(wire::Event { kind: "no_room".to_owned(), ..self.event(request) });
        if let Event::Start(StartBy::Proxy { attempt }) = event {
            let reason = format!("insufficient_capacity: {reason}");
            let outcome = perch_core::balancer::StartOutcome::Refused { reason };
            self.world.proxy.start_done(&self.id, *attempt, outcome);
        }
    }

    async fn on_give_way(&mut self, run: u64, reason: String) {
        let sleeps = wire_state(&self.life) == wire::MachineState::Suspended;
        // The proxy may have thawed it; then it is in use.
        let is_frozen = self.running.as_ref().is_some_and(|machine| machine.is_frozen());
        if run != self.life.run() || !sleeps || !is_frozen {
            return;
        }
        self.because(Source::Platform, reason);
        self.feed(Event::Stop(StopBy::User { signal: None, timeout: None })).await;
    }

    /// Feeds what cannot be refused.
    async fn feed(&mut self, event: Event) {
        if let Err(error) = self.life.handle_event(event, clock::now()) {
            tracing::warn!(machine = self.id, %error, "an event was refused");
        }
        self.do_effects().await;
        self.settle_behind();
    }

    /// Who is on its way to an end can still be killed: it may take its time, and the disk of all.
    async fn on_limit(&mut self, run: u64, haste: Haste, reason: &str) {
        let lives = self.running.as_ref().is_some_and(|machine| machine.run() == run);
        let is_up = is_up(wire_state(&self.life));
        if !lives || (!is_up && haste == Haste::InGoodOrder) {
            return;
        }
        if self.condemned != Some(run) {
            self.because(Source::Platform, String::new());
            let mut request = self.request();
            request.details.insert("reason".to_owned(), reason.into());
            self.log(reason);
            self.condemnation = Some(reason.to_owned());
            self.record(wire::Event { kind: "limit".to_owned(), ..self.event(request) });
        }
        if is_up {
            self.feed(Event::Stop(StopBy::User { signal: None, timeout: None })).await;
        }
        if haste == Haste::AtOnce {
            self.condemned = Some(run);
            self.kill(run);
        }
    }

    /// A Machine with `auto_destroy` goes with its program, unless that is started again.
    async fn leave_if_done(&mut self) {
        let is_down = wire_state(&self.life) == wire::MachineState::Stopped;
        let is_over = || leaving::is_over(&self.status.borrow().history.newest_first());
        if !is_down || !self.world.goes_with_its_program(&self.id) || !is_over() {
            return;
        }
        self.because(Source::Platform, "auto_destroy".to_owned());
        self.feed(Event::Destroy).await;
    }

    fn settle_behind(&self) {
        self.world.lives.save_behind(&self.id, self.life.stored());
    }

    async fn on_launched(
        &mut self,
        run: u64,
        result: Result<(Box<perch_machine::Machine>, Beginning), Failure>,
    ) {
        self.because(Source::Platform, String::new());
        match result {
            Ok((machine, beginning)) => {
                fault::pass(Point::ServerLaunched);
                self.beginning = beginning;
                let machine = Arc::from(machine);
                self.world.pager.runs(&machine);
                self.world.cpus.awake(&machine, cpu::Past::Fresh);
                self.running = Some(machine);
                self.rest = Rest::Awake;
                self.feed(Event::Launched { run }).await;
            }
            Err(failure) => {
                tracing::warn!(machine = self.id, run, reason = failure.detail, "launch failed");
                self.world.pager.gone(&self.id);
                self.world.rest(&self.id).await;
                self.because(Source::Platform, failure.detail_within(&self.world.paths.data));
                self.feed(Event::LaunchFailed { run, reason: failure.told }).await;
            }
        }
    }

    fn because(&mut self, source: Source, cause: String) {
        self.source = source;
        self.cause = cause;
        self.waking = None;
    }

    async fn do_effects(&mut self) {
        loop {
            let mut effects: Vec<_> = std::iter::from_fn(|| self.life.poll_effect()).collect();
            if effects.is_empty() {
                break;
            }
            // Somebody waits for the program, and nobody for what is told of its start.
            effects.sort_by_key(|effect| !matches!(effect, Effect::Launch { .. }));
            for effect in effects {
                self.do_effect(effect).await;
            }
        }
        self.settle_rest();
        self.publish();
    }

    async fn do_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Announce { happened, .. } => self.announce(happened),
            Effect::Drain { run, token, timeout } => {
                self.world.proxy.drain(&self.id, run, token, timeout, self.mailbox_sender.clone());
            }
            Effect::Undrain { run } => self.world.proxy.undrain(&self.id, run),
            Effect::Launch { run, config_version } => self.launch(run, config_version),
            Effect::Freeze { run, token } => {
                self.world.proxy.end_drain(&self.id, run);
                self.freeze(run, token);
            }
            Effect::Thaw { run } => self.thaw(run),
            Effect::Signal { run, signal } => {
                self.world.proxy.end_drain(&self.id, run);
                if let Err(error) = self.signal_run(run, signal) {
                    tracing::debug!(machine = self.id, run, error, "signal not delivered");
                }
                fault::pass(Point::ServerSignalSent);
                self.pass_by(Point::InitSignalled);
            }
            Effect::Kill { run } => self.kill(run),
            Effect::Remove => self.remove(),
            Effect::StartDone { attempt, outcome } => {
                fault::pass(Point::ServerStartDone);
                self.publish();
                self.world.proxy.start_done(&self.id, attempt, outcome);
            }
            Effect::StopDone { attempt, outcome } => {
                self.publish();
                if outcome == StopOutcome::Stopped {
                    self.arm_later();
                }
                if let StopOutcome::Refused { reason } = &outcome {
                    self.enter_veto(reason);
                }
                self.world.proxy.stop_done(&self.id, attempt, outcome);
            }
        }
    }

    /// The proxy has put it to sleep, and wakes it again.
    fn arm_later(&self) {
        let is_down = wire_state(&self.life) == wire::MachineState::Stopped;
        let catalog = self.world.keeper.read();
        if is_down && catalog.machines.get(&self.id).is_some_and(|it| arming::is_candidate(it)) {
            self.world.armory.stopped(&self.id);
        }
    }

    fn disarm(&self) {
        let (world, id) = (self.world.clone(), self.id.clone());
        self.world.tracker.spawn(async move { world.armory.disarm(&id).await });
    }

    fn launch(&mut self, run: u64, config_version: u64) {
        self.hold_config();
        let going = arming::go(&self.world, &self.id, run, config_version);
        let (world, id, mailbox) =
            (self.world.clone(), self.id.clone(), self.mailbox_sender.clone());
        self.world.tracker.spawn(async move {
            let launched = world.launch(&id, run, config_version, going).await;
            let result = launched.map(|(machine, beginning)| (Box::new(machine), beginning));
            let result = result.map_err(|error| Failure::of(&error));
            // A task that has ended was destroyed; its removal kills the run.
            mailbox.send(Command::Launched { run, result }).await.ok();
        });
    }

    /// It begins here, not beside: a thaw that is decided a moment later must come after it. A wait that such a
    /// thaw overtakes would have no end; who thaws ends it by what it then sees.
    fn freeze(&self, run: u64, token: u64) {
        fault::pass(Point::ServerFreezeBegun);
        self.world.cpus.lift(&self.id);
        let machine = self.running.clone().filter(|machine| machine.run() == run);
        let begun = match &machine {
            Some(machine) => machine.freeze().map_err(|error| super::images::chain(&error)),
            None => Err("that run has ended".to_owned()),
        };
        let (mailbox, shutdown) = (self.mailbox_sender.clone(), self.world.shutdown.clone());
        self.world.tracker.spawn(async move {
            let frozen = async {
                begun?;
                let machine = machine.ok_or_else(|| "that run has ended".to_owned())?;
                machine.frozen().await.map_err(|error| super::images::chain(&error))
            };
            let Some(result) = freezing::outcome(frozen, &shutdown).await else { return };
            mailbox.send(Command::FreezeEnded { token, result }).await.ok();
        });
    }

    fn thaw(&mut self, run: u64) {
        self.rest = Rest::Awake;
        let Some(machine) = self.running.as_ref().filter(|machine| machine.run() == run) else {
            return;
        };
        fault::pass(Point::ServerThawBegun);
        // Before the thaw: a page-out that is under way ends here.
        self.world.pager.woke(machine, !is_up(wire_state(&self.life)));
        self.world.cpus.awake(machine, cpu::Past::Unknown);
        let thawed = machine.thaw();
        fault::pass(Point::ServerThawed);
        self.pass_by(Point::InitThawed);
        self.workers.thawed(&self.world, run, &self.mailbox_sender);
        if let Err(error) = thawed {
            let reason = format!("could not thaw it: {}", super::images::chain(&error));
            let mailbox = self.mailbox_sender.clone();
            self.world.tracker.spawn(async move {
                mailbox.send(Command::ThawFailed { run, reason }).await.ok();
            });
        }
    }

    async fn look_whether_kept(&mut self) {
        let run = self.life.run();
        let is_kept = super::api::is_kept_awake(&self.world.keeper.read(), &self.id, run)
            || self.world.copying.is_of(&self.id);
        self.feed(Event::Lease(if is_kept { Lease::Held } else { Lease::Free })).await;
    }

    /// Whoever was let in by a proxy that has not said so, or never will, needs the Machine awake.
    async fn look_whether_frozen(&mut self, cause: &str) {
        let asleep = self.life.state() == perch_core::lifecycle::MachineState::Suspended;
        let awake = self.running.as_ref().filter(|machine| asleep && !machine.is_frozen());
        if let Some(run) = awake.map(|machine| machine.run()) {
            self.because(Source::Proxy, cause.to_owned());
            self.feed(Event::Thawed { run }).await;
        }
    }

    /// The Machine's PID 1 passes a place.
    fn pass_by(&self, point: Point) {
        if let Some(machine) = &self.running {
            fault::pass_by(point, machine.pid());
        }
    }

    fn signal_run(&self, run: u64, number: i32) -> Result<(), String> {
        match &self.running {
            Some(machine) if machine.run() == run => {
                self.world.cpus.lift(&self.id);
                machine.signal(number).map_err(|error| super::images::chain(&error))
            }
            Some(_) | None => Err("that run has ended".to_owned()),
        }
    }

    fn signal(&self, number: i32) -> Result<(), String> {
        if self.running.is_none() {
            return Err(format!("unable to signal machine: it is {}", wire_state(&self.life)));
        }
        self.signal_run(self.life.run(), number)
    }

    fn kill(&self, run: u64) {
        let Some(machine) = self.running.as_ref().filter(|machine| machine.run() == run) else {
            return;
        };
        self.world.cpus.lift(&self.id);
        if let Err(error) = machine.kill() {
            tracing::debug!(
                machine = self.id,
                run,
                error = super::images::chain(&error),
                "kill not delivered"
            );
        }
    }

    fn list_processes(&self, reply: oneshot::Sender<Result<Vec<perch_machine::Process>, String>>) {
        let machine = self.running.clone();
        self.world.tracker.spawn_blocking(move || {
            let listed = match machine {
                Some(machine) => machine.ps().map_err(|error| error.to_string()),
                None => Err("the Machine is not running".to_owned()),
            };
            reply.send(listed).ok();
        });
    }

    fn measure(&self, reply: oneshot::Sender<Option<perch_machine::Memory>>) {
        let (machine, measured, now) = (self.running.clone(), self.measured.clone(), clock::now());
        let Some(machine) = machine else {
            // The asker may have gone, here and below.
            reply.send(None).ok();
            return;
        };
        let fresh =
            |last: &Measured| last.run == machine.run() && now.since(last.at) < MEASURED_FOR;
        if let Some(last) = lock(&measured).filter(fresh) {
            reply.send(Some(last.memory)).ok();
            return;
        }
        self.world.tracker.spawn_blocking(move || {
            let memory = machine.memory().ok();
            let run = machine.run();
            *lock(&measured) = memory.map(|memory| Measured { at: clock::now(), run, memory });
            reply.send(memory).ok();
        });
    }

    fn on_paged_out(&mut self, run: u64, paged: perch_machine::PagedOut, why: Option<String>) {
        *lock(&self.measured) = None;
        if run != self.life.run() || self.running.is_none() {
            return;
        }
        self.because(Source::Platform, why.unwrap_or_default());
        self.enter_page_out(&paged);
        let mut request = self.request();
        request.details.insert("paged_out_bytes".to_owned(), paged.bytes.into());
        let resident = paged.memory.resident_bytes;
        request.details.insert("resident_bytes".to_owned(), resident.into());
        self.record(wire::Event { kind: "page_out".to_owned(), ..self.event(request) });
    }

    /// Whoever ends because the Machine ends is no news.
    fn on_workers_ended(&mut self, run: u64, told: String) {
        if run != self.life.run() || wire_state(&self.life) != wire::MachineState::Started {
            return;
        }
        self.because(Source::Platform, told);
        let event = self.event(self.request());
        self.record(wire::Event { kind: "workers_ended".to_owned(), ..event });
    }

    /// Tells the pager what it does not know yet.
    fn settle_rest(&mut self) {
        let Some(machine) = &self.running else { return };
        let is_asleep = wire_state(&self.life) == wire::MachineState::Suspended;
        let rest = if is_asleep { Rest::Asleep } else { Rest::Awake };
        let before = std::mem::replace(&mut self.rest, rest);
        if before == rest {
            return;
        }
        *lock(&self.measured) = None;
        match rest {
            Rest::Asleep => {
                self.workers.frozen(&self.world, machine.clone());
                self.world.cpus.asleep(machine);
                let past = if before == Rest::Awake { Past::Running } else { Past::Unknown };
                let mailbox = self.mailbox_sender.clone();
                self.world.pager.fell_asleep(machine.clone(), past, mailbox);
            }
            Rest::Awake | Rest::Unknown => {
                self.world.cpus.awake(machine, cpu::Past::Unknown);
                self.world.pager.woke(machine, !is_up(wire_state(&self.life)));
                self.workers.thawed(&self.world, machine.run(), &self.mailbox_sender);
            }
        }
    }

    fn remove(&mut self) {
        self.is_leaving = true;
        let (world, id, mailbox) =
            (self.world.clone(), self.id.clone(), self.mailbox_sender.clone());
        self.world.tracker.spawn(async move {
            world.remove_machine(&id).await;
            mailbox.send(Command::Removed).await.ok();
        });
    }

    fn announce(&mut self, happened: Happened) {
        self.enter_happened(&happened);
        if let Some(event) = self.event_of(&happened) {
            self.record(event);
        }
        self.publish();
        if standby::concerns(&happened) {
            self.world.failed.notify_one();
        }
    }

    /// Makes the state visible: to watchers of the API at once, to the proxy with the next view.
    fn publish(&self) {
        let (state, run) = (wire_state(&self.life), self.life.run());
        let settled = self.life.poll_timeout().is_none()
            && !matches!(state, wire::MachineState::Destroying | wire::MachineState::Starting);
        let changed = self.status.send_if_modified(|status| {
            let changed = status.state != state || status.run != run || status.settled != settled;
            (status.state, status.run, status.settled) = (state, run, settled);
            status.running.clone_from(&self.running);
            changed
        });
        // The proxy knows of the start that it asked for, and hears of it again when there is more to know.
        let is_its_own = state == wire::MachineState::Starting && self.source == Source::Proxy;
        if changed && !is_its_own {
            self.world.machine_changed(&self.id);
        }
    }

    fn record(&self, event: wire::Event) {
        tracing::info!(
            machine = self.id,
            event = event.kind,
            state = event.status,
            source = event.source,
            cause = self.cause,
        );
        if !self.is_leaving {
            self.world.append_event(&self.id, &event);
        }
        self.status.send_modify(|status| {
            Arc::make_mut(&mut status.history).push(event);
        });
    }

    fn event(&self, request: wire::EventRequest) -> wire::Event {
        wire::Event {
            id: clock::ulid(),
            status: wire_state(&self.life).to_string(),
            source: self.source.as_str().to_owned(),
            timestamp: clock::unix_ms(),
            request: Some(request).filter(|request| *request != wire::EventRequest::default()),
            ..wire::Event::default()
        }
    }

    /// The event that users see for an announcement (MA-10, MA-11); some are only states.
    fn event_of(&self, happened: &Happened) -> Option<wire::Event> {
        let kind =
            match happened {
                Happened::StartAsked(StartBy::User | StartBy::Proxy { .. })
                | Happened::Launching => "launch",
                Happened::StopAsked(StopBy::User { .. } | StopBy::Proxy { .. })
                | Happened::Lost => "stop",
                Happened::Updated { .. } => "update",
                Happened::RestartAsked => "restart",
                Happened::DestroyAsked => "destroy",
                Happened::Launched => "start",
                Happened::LaunchFailed { .. } | Happened::Exited { .. } => "exit",
                Happened::SuspendAsked | Happened::Suspended | Happened::SuspendFailed { .. } => {
                    "suspend"
                }
                Happened::Resumed | Happened::ResumeFailed { .. } => "resume",
                Happened::SuspendCalledOff => "start",
                Happened::Adopted => "adopt",
                Happened::StopCalledOff => "start",
                Happened::Removed => return None,
            };
        Some(wire::Event { kind: kind.to_owned(), ..self.event(self.request_of(happened)) })
    }

    fn request_of(&self, happened: &Happened) -> wire::EventRequest {
        match happened {
            Happened::Exited { exit, requested, restarting } => {
                let restarts = self.life.restart_count();
                let mut request = self.request();
                let words = if *requested { None } else { self.verdict(*exit, *restarting) };
                if let Some(words) = words {
                    self.log(&words);
                    request.details.insert("reason".to_owned(), words.into());
                }
                exit_request(request, *exit, *requested, *restarting, restarts)
            }
            Happened::LaunchFailed { reason } => {
                let exit = Exit { code: NOT_STARTED, signal: None, oom_killed: false };
                let mut request = self.request();
                request.details.insert("reason".to_owned(), reason.as_str().into());
                exit_request(request, exit, false, false, self.life.restart_count())
            }
            Happened::SuspendFailed { reason } | Happened::ResumeFailed { reason } => {
                let mut request = self.request();
                request.details.insert("reason".to_owned(), reason.as_str().into());
                request
            }
            Happened::Launched if self.beginning == Beginning::Armed => {
                let mut request = self.request();
                request.details.insert("armed".to_owned(), true.into());
                request
            }
            Happened::Lost => {
                let mut request = self.request();
                request.details.insert("reason".to_owned(), LOST.into());
                request
            }
            _ => self.request(),
        }
    }

    fn verdict(&self, exit: Exit, restarting: bool) -> Option<String> {
        let record = self.world.keeper.read().machines.get(&self.id).cloned()?;
        let due = self.life.poll_timeout().map(|(due, _why)| due.since(clock::now()));
        let ended = Ended {
            exit,
            memory_bytes: limits::of(&record).memory_bytes,
            policy: launching::policy(&record).restart,
            restarts: self.life.restart_count(),
            back_off: due.filter(|_| restarting),
            served_for: self.ran_for().filter(|_| !record.config.view().services.is_empty()),
        };
        ended.in_words()
    }

    /// Since its newest start.
    fn ran_for(&self) -> Option<Duration> {
        let events = self.status.borrow().history.newest_first();
        let start = events.iter().find(|event| event.kind == "start")?;
        u64::try_from(clock::unix_ms() - start.timestamp).ok().map(Duration::from_millis)
    }

    /// Into the app's log, beside what its programs say.
    fn log(&self, text: &str) {
        let app = self.world.keeper.read().machines.get(&self.id).map(|it| it.app.clone());
        let Some(app) = app else { return };
        let line = Line {
            timestamp: clock::stamp_micros(clock::unix().as_micros() as u64),
            machine: self.id.clone(),
            provider: "runner",
            level: "warn".to_owned(),
            text: text.to_owned(),
        };
        self.world.platform_log.push(&app, line);
    }

    /// Who caused what is being done, and why.
    fn request(&self) -> wire::EventRequest {
        let mut request = wire::EventRequest::default();
        if let Some((what, who)) = self.source.asker() {
            request.details.insert(what.to_owned(), who);
        }
        if !self.cause.is_empty() {
            request.details.insert("cause".to_owned(), self.cause.as_str().into());
        }
        request
    }
}

/// Whether the task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Go,
    End,
}

fn exit_request(
    request: wire::EventRequest,
    exit: Exit,
    requested: bool,
    restarting: bool,
    restarts: usize,
) -> wire::EventRequest {
    let exit_event = wire::ExitEvent {
        exit_code: exit.code,
        guest_exit_code: exit.code,
        guest_signal: exit.signal.unwrap_or(0),
        oom_killed: exit.oom_killed,
        requested_stop: requested,
        restarting,
        signal: exit.signal.unwrap_or(0),
        exited_at: clock::stamp(),
    };
    wire::EventRequest {
        exit_event: Some(exit_event.clone()),
        monitor_event: Some(wire::MonitorEvent { exit_event: Some(exit_event) }),
        restart_count: Some(u32::try_from(restarts).unwrap_or(u32::MAX)),
        ..request
    }
}

async fn ended(machine: Option<Arc<perch_machine::Machine>>) -> (u64, Exit, String) {
    let Some(machine) = machine else { return std::future::pending().await };
    match machine.wait().await {
        Ok(record) => {
            let exit = exit_of(&record);
            let reason = match record.cause {
                // Of one that was armed. The start that follows tells its callers.
                ExitCause::NotExecuted(reason) => reason,
                ExitCause::Exited | ExitCause::ShimLost => String::new(),
            };
            (record.run, exit, reason)
        }
        Err(error) => {
            tracing::error!(
                error = super::images::chain(&error),
                "the end of a run could not be read"
            );
            (machine.run(), Exit { code: 255, signal: None, oom_killed: false }, String::new())
        }
    }
}

/// How a run ended, for the lifecycle.
pub(crate) fn exit_of(record: &perch_machine::ExitRecord) -> Exit {
    Exit { code: record.exit_code, signal: record.signal, oom_killed: record.oom_killed }
}

pub(super) async fn sleep_or_never(due: Option<Duration>) {
    match due {
        Some(length) => tokio::time::sleep(length).await,
        None => std::future::pending().await,
    }
}

fn wire_state(life: &Lifecycle) -> wire::MachineState {
    api_state(life.state())
}

fn api_state(state: MachineState) -> wire::MachineState {
    // The API has one word less: a failed first launch is `failed` too.
    state.as_str().parse().unwrap_or(wire::MachineState::Failed)
}

/// Whether a run lives that nobody has asked to end.
pub(crate) fn is_up(state: wire::MachineState) -> bool {
    matches!(state, wire::MachineState::Started | wire::MachineState::Suspending)
}

/// Whether an update starts a sleeping Machine.
pub(crate) fn asleep(skip_launch: bool) -> Asleep {
    if skip_launch { Asleep::Stays } else { Asleep::Launches }
}

#[cfg(test)]
impl Default for Rested {
    /// A Machine that was never started.
    fn default() -> Self {
        let policy = launching::policy(&super::records::tests::machine("m"));
        let life = Lifecycle::new(1, policy).rest().expect("nothing is under way");
        Self { life, history: Arc::default() }
    }
}
