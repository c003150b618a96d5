//! The life of one Machine, decided on the server's side (fly-semantics 5.1, 5.3).
//!
//! ```text
//!            Start                Launched              Stop, Update, Destroy
//!  Created ──────────► Starting ───────────► Started ────────────────────────► Draining
//!  Stopped ◄───┐          │ LaunchFailed       │ Exited                           │ Drained, or time over
//!  Failed ◄────┼──────────┘                    ▼                                  ▼
//!              │                       by restart policy                       Stopping ── kill_timeout ─► Kill
//!              └─────────────────── Stopped or Restarting ◄── Exited ────────────┘
//!                                               │ back-off over, or Start
//!                                               └──► Starting (next run, newest config)
//!
//!            Suspend, or a stop by a proxy whose policy says so          Frozen
//!  Started ──────────────────────────────────────────────────► Suspending ─────► Suspended
//!     ▲ └─── the same run ◄── Start calls it off (AS-56) ◄─────────┘ │               │
//!     └───────────── the same run ◄── Start thaws it ◄───────────────┼───────────────┘
//!                                        FreezeFailed, or time over  └──► Stopping (AS-54)
//! ```
//!
//! What is stopped, updated or destroyed while it is suspended is thawed for its end: the next start
//! is a cold one (AS-105, AS-106).
//!
//! What was asked while the Machine is on its way down is remembered (`After`): a start during a
//! stop starts it again afterwards (AS-66), an update on the way down is launched if the Machine was
//! to come back. Every launch takes the newest config, so a wake during an update gets it. An update
//! of a Machine that is down leaves it down, unless the caller says otherwise (MA-02).
//!
//! # How a shell drives it
//!
//! One owner per Machine; after each call do all effects in order, then store
//! [`Lifecycle::stored`] if it changed. A user's request (`Start`, `Stop`, `Update`, `Restart`,
//! `Destroy`) is stored *before* it is acknowledged. A start by the proxy may be stored behind, so
//! that a wake writes nothing before its answer; a stop is stored before its `Signal` is sent, or a
//! new server would let callers into a program that is about to end.
//!
//! - `Announce`: tell the API's watchers and the proxy (a new `App` view), append to the events.
//! - `Drain`: ask the proxy; [`crate::drains`] says when that is over. `Signal` and `Freeze` of the run end it.
//! - `Launch`: start this run with this config. Feed `Launched`, or `LaunchFailed`, later `Exited`
//!   *after everything of the run has been reaped*. A `Kill` while the launch is going on ends it.
//! - `Freeze`: stop all of the run where it is; feed `Frozen` when nothing of it runs any more, or
//!   `FreezeFailed`. `Thaw`: let it go on, also if the freezing is still under way; feed `ThawFailed`
//!   if that cannot be done. Nothing waits for a thaw.
//! - `Signal`, `Kill`: to init; a run that is gone already is no error, `Exited` follows or has
//!   been fed.
//! - `Remove`: delete everything on disk and all addresses; then feed `Removed`.
//! - `StartDone`, `StopDone`: to the proxy.
//!
//! After a restart of the server, [`Lifecycle::restore`] takes what was stored and what was found: a
//! run that is still there is adopted (never a new run); what was interrupted is finished, of a stop by a drain of its
//! whole length. Events about a run that is not the current one are dropped.

use std::collections::VecDeque;
use std::time::Duration;

use crate::balancer::{StartOutcome, StopOutcome};
use crate::mutant::Mutant;
use crate::time::Timestamp;

mod rest;
mod restart;
mod state;

pub use rest::Resting;
pub use restart::{Exit, RETRIES_DEFAULT, RestartPolicy};
pub use state::{BadState, MachineState};

use restart::Restarts;

/// A launch that takes longer is given up: the documented time after which `starting` is presumed
/// stuck (MA-03).
pub const LAUNCH_TIMEOUT: Duration = Duration::from_secs(300);
/// A killed run that is not reaped yet is killed again after this: a process can be forked between
/// listing and killing where the kernel has no `cgroup.kill`.
pub const KILL_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A run that is not frozen by then is stopped instead (AS-54): freezing takes less than a millisecond,
/// but a process that waits for a disk can make it wait.
pub const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);
/// The exit code of a program that could not be started, as shells have it.
pub const NOT_STARTED: i32 = 127;
/// The proxy's own limit ends a drain; this much later we go on without its answer.
pub const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What the config says about starting and stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Number of the signal that asks the program to end (AS-51).
    pub kill_signal: i32,
    /// From that signal to SIGKILL.
    pub kill_timeout: Duration,
    /// How long work in flight may go on before the signal.
    pub drain_timeout: Duration,
    /// What follows an exit that nobody asked for.
    pub restart: RestartPolicy,
    /// How it sleeps when the proxy says that nobody needs it.
    pub sleep: SleepBy,
}

/// How a Machine that nobody needs is put to sleep (AS-02).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepBy {
    /// Its run ends.
    Stopping,
    /// Its run is frozen; where that fails it ends (AS-54).
    Suspending,
}

/// Who asks for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartBy {
    /// Somebody with the API, or the platform after a reboot.
    User,
    /// The balancer; answered by [`Effect::StartDone`].
    Proxy {
        /// Given back.
        attempt: u64,
    },
}

/// Who asks for a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopBy {
    /// Somebody with the API.
    User {
        /// Instead of the policy's signal.
        signal: Option<i32>,
        /// Instead of the policy's `kill_timeout`.
        timeout: Option<Duration>,
    },
    /// The balancer, which has closed the Machine and seen it empty; answered by
    /// [`Effect::StopDone`].
    Proxy {
        /// The run that is meant.
        run: u64,
        /// Given back.
        attempt: u64,
    },
}

/// What an update does to a Machine that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asleep {
    /// It stays down; the next start has the new config.
    Stays,
    /// It is started.
    Launches,
}

/// What a lifecycle hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Be up.
    Start(StartBy),
    /// Be down.
    Stop(StopBy),
    /// A new config, already stored.
    Update {
        /// Its version; larger than those before.
        config_version: u64,
        /// Its policy.
        policy: Policy,
        /// What happens if the Machine is down.
        asleep: Asleep,
    },
    /// Be frozen: a user's wish. The proxy's is a stop, by [`Policy::sleep`].
    Suspend,
    /// The answer to [`Effect::Freeze`]: nothing of the run goes on.
    Frozen {
        /// Of the effect.
        token: u64,
    },
    /// The other answer to [`Effect::Freeze`].
    FreezeFailed {
        /// Of the effect.
        token: u64,
        /// For people.
        reason: String,
    },
    /// Somebody else has thawed the run, which was suspended: a proxy that could not say so any more.
    Thawed {
        /// The run.
        run: u64,
    },
    /// The run cannot be thawed.
    ThawFailed {
        /// The run.
        run: u64,
        /// For people.
        reason: String,
    },
    /// Be down, and up again. A Machine that is down is started.
    Restart {
        /// Instead of the policy's signal.
        signal: Option<i32>,
        /// Instead of the policy's `kill_timeout`.
        timeout: Option<Duration>,
    },
    /// Go away for ever.
    Destroy,
    /// Somebody took or gave back the lease (MA-64).
    Lease(Lease),
    /// The run's program was started.
    Launched {
        /// The run.
        run: u64,
    },
    /// The run's program could not be started; nothing of it is left.
    LaunchFailed {
        /// The run.
        run: u64,
        /// For people.
        reason: String,
    },
    /// The run has ended and everything of it was reaped.
    Exited {
        /// The run.
        run: u64,
        /// How.
        exit: Exit,
    },
    /// The proxy's answer to [`Effect::Drain`].
    Drained {
        /// Of the effect.
        token: u64,
    },
    /// [`Effect::Remove`] is done.
    Removed,
}

/// Whether somebody holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Somebody does: the proxy's stops are refused.
    Held,
    /// Nobody does.
    Free,
}

/// What a lifecycle wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Something that users, watchers and the proxy see.
    Announce {
        /// The state now.
        state: MachineState,
        /// The current or last run.
        run: u64,
        /// What led to it.
        happened: Happened,
    },
    /// Ask the proxy to let nobody in and to wait for who is in.
    Drain {
        /// The run.
        run: u64,
        /// Given back in [`Event::Drained`].
        token: u64,
        /// How long at most.
        timeout: Duration,
    },
    /// The drain is called off.
    Undrain {
        /// The run.
        run: u64,
    },
    /// Start this run.
    Launch {
        /// The run.
        run: u64,
        /// With this config.
        config_version: u64,
    },
    /// Let nothing of the run go on.
    Freeze {
        /// The run.
        run: u64,
        /// Given back in [`Event::Frozen`] or [`Event::FreezeFailed`].
        token: u64,
    },
    /// Let the run go on.
    Thaw {
        /// The run.
        run: u64,
    },
    /// Send a signal to the run's program.
    Signal {
        /// The run.
        run: u64,
        /// The number.
        signal: i32,
    },
    /// End everything of the run now.
    Kill {
        /// The run.
        run: u64,
    },
    /// Delete everything.
    Remove,
    /// Answer the proxy.
    StartDone {
        /// Of the question.
        attempt: u64,
        /// What became of it.
        outcome: StartOutcome,
    },
    /// Answer the proxy.
    StopDone {
        /// Of the question.
        attempt: u64,
        /// What became of it.
        outcome: StopOutcome,
    },
}

/// The cause of an announcement; becomes the Machine's events (MA-10, MA-11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// A start was asked for.
    StartAsked(StartBy),
    /// A stop was asked for.
    StopAsked(StopBy),
    /// A suspend was asked for.
    SuspendAsked,
    /// It is frozen.
    Suspended,
    /// It could not be frozen, and is stopped instead (AS-54).
    SuspendFailed {
        /// For people.
        reason: String,
    },
    /// A suspend was called off by a start (AS-56).
    SuspendCalledOff,
    /// A start thawed it: no cold start (AS-108).
    Resumed,
    /// It could not be thawed, and is started anew (AS-104).
    ResumeFailed {
        /// For people.
        reason: String,
    },
    /// A new config was taken.
    Updated {
        /// Its version.
        config_version: u64,
    },
    /// A restart was asked for.
    RestartAsked,
    /// Destruction was asked for.
    DestroyAsked,
    /// A run begins (after a stop, an update, or a back-off).
    Launching,
    /// The run is up.
    Launched,
    /// It could not come up.
    LaunchFailed {
        /// For people.
        reason: String,
    },
    /// A run ended.
    Exited {
        /// How.
        exit: Exit,
        /// Whether we had asked for it (AS-53).
        requested: bool,
        /// Whether the restart policy brings it back.
        restarting: bool,
    },
    /// A new server found the run alive.
    Adopted,
    /// A new server found nothing of a run, and it is not started again (DESIGN 8).
    Lost,
    /// A stop was called off by a start.
    StopCalledOff,
    /// Everything is gone.
    Removed,
}

/// A request that makes no sense in this state: 412 (MA-06).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} a Machine that is {state}")]
pub struct InvalidTransition {
    /// The state.
    pub state: MachineState,
    /// What was asked.
    pub verb: &'static str,
}

/// What must survive the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The state on the API.
    pub state: MachineState,
    /// The last run.
    pub run: u64,
    /// The newest config.
    pub config_version: u64,
    /// Where the Machine was going.
    pub wish: Wish,
}

/// Where a Machine is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Up, or on its way up, or to be brought back.
    Up,
    /// Down, or on its way down.
    Down,
    /// Out.
    Gone,
}

/// What a new server finds of a Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its run is alive.
    Running {
        /// The run.
        run: u64,
        /// The config it was launched with.
        config_version: u64,
    },
    /// Its run is alive; it was suspended, and the proxy has thawed it because somebody needs it.
    Thawed {
        /// The run.
        run: u64,
        /// The config it was launched with.
        config_version: u64,
    },
    /// Its run is alive and frozen.
    Frozen {
        /// The run.
        run: u64,
        /// The config it was launched with.
        config_version: u64,
    },
    /// The run ended while nobody looked.
    Ended {
        /// The run.
        run: u64,
        /// How.
        exit: Exit,
    },
    /// The run's program could not be started.
    NotStarted {
        /// The run.
        run: u64,
        /// For people.
        reason: String,
    },
    /// Nothing: the host was rebooted, or the run was lost with its shim.
    Nothing {
        /// What to do with a Machine that was up.
        was_up: AfterLoss,
    },
}

/// What happens to a Machine that was up when everything was lost (DESIGN 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterLoss {
    /// It is started again.
    Launch,
    /// It sleeps until somebody needs it.
    Sleep,
}

/// What follows when the Machine is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Sleep,
    /// A start came during the stop.
    Wake,
    /// The stop is part of an update.
    Replace,
    Destroy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Stopped,
    Failed,
    Starting { deadline: Timestamp },
    Started { since: Timestamp },
    Draining { token: u64, deadline: Timestamp, after: After, stop: HowToStop, told: Told },
    Stopping { kill_at: Timestamp, after: After },
    Suspending { token: u64, deadline: Timestamp, step: SuspendStep },
    Suspended,
    Restarting { due: Timestamp },
    Destroying,
    Destroyed,
}

/// How far a suspend is; each step has its own token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SuspendStep {
    Draining,
    Freezing,
}

/// Whether the program of a Machine that is being drained has its signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    No,
    /// An earlier server may have sent it: it may end at any time.
    Maybe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HowToStop {
    signal: i32,
    timeout: Duration,
}

/// Decides for one Machine. See the module's head.
#[derive(Debug)]
pub struct Lifecycle {
    phase: Phase,
    policy: Policy,
    lease: Lease,
    run: u64,
    config_version: u64,
    running_version: u64,
    start_attempt: Option<u64>,
    stop_attempt: Option<u64>,
    /// The newest start that a proxy has asked for: attempts are numbered by the time of the wish, whichever proxy has it.
    start_heard: u64,
    tokens: u64,
    restarts: Restarts,
    effects: VecDeque<Effect>,
    mutant: Mutant,
}

impl Lifecycle {
    /// A Machine that was never started.
    pub fn new(config_version: u64, policy: Policy) -> Self {
        Self {
            phase: Phase::Created,
            policy,
            lease: Lease::Free,
            run: 0,
            config_version,
            running_version: 0,
            start_attempt: None,
            stop_attempt: None,
            start_heard: 0,
            tokens: 0,
            restarts: Restarts::default(),
            effects: VecDeque::new(),
            mutant: Mutant::None,
        }
    }

    /// A Machine after a restart of the server: `found` is what is really there.
    ///
    /// `stored.run` must not be below any run that was ever launched, or a number is used twice: a
    /// shell that stores behind takes the larger of the stored one and the one that the Machine's
    /// directory knows.
    pub fn restore(stored: Stored, policy: Policy, found: Found, now: Timestamp) -> Self {
        Self::restore_mutant(stored, policy, found, now, Mutant::None)
    }

    /// With a planted bug, for the simulation.
    #[doc(hidden)]
    pub fn restore_mutant(
        stored: Stored,
        policy: Policy,
        found: Found,
        now: Timestamp,
        mutant: Mutant,
    ) -> Self {
        let mut life = Self::new(stored.config_version, policy);
        life.mutant = mutant;
        life.run = stored.run;
        match found {
            Found::Running { run, config_version } => {
                life.adopt(stored, run, config_version, now);
            }
            Found::Thawed { run, config_version } => {
                life.adopt_thawed(stored, run, config_version, now);
            }
            Found::Frozen { run, config_version } => {
                life.adopt_frozen(stored, run, config_version, now);
            }
            // The last launch was stored, but had not begun.
            Found::Ended { run, .. } | Found::NotStarted { run, .. } if run < stored.run => {
                life.on_lost(stored, AfterLoss::Launch, now);
            }
            Found::Ended { run, exit } => {
                life.run = run.max(stored.run);
                life.on_down_after_restore(stored, exit, now);
            }
            Found::NotStarted { run, reason } => life.on_not_started(stored, run, reason, now),
            Found::Nothing { was_up } => life.on_lost(stored, was_up, now),
        }
        life
    }

    /// Switches a planted bug on, for the simulation.
    #[doc(hidden)]
    pub fn set_mutant(&mut self, mutant: Mutant) {
        self.mutant = mutant;
    }

    /// Takes in one event.
    ///
    /// # Errors
    /// [`InvalidTransition`] if a user asks for something that makes no sense now; nothing changed.
    /// The proxy is answered by effects instead, and events of older runs are dropped.
    pub fn handle_event(&mut self, event: Event, now: Timestamp) -> Result<(), InvalidTransition> {
        match event {
            Event::Start(by) => self.on_start(by, now)?,
            Event::Stop(StopBy::Proxy { run, attempt }) => self.on_proxy_stop(run, attempt, now),
            Event::Stop(by @ StopBy::User { signal, timeout }) => {
                self.on_user_stop(by, self.how_to_stop(signal, timeout), now)?;
            }
            Event::Update { config_version, policy, asleep } => {
                self.on_update(config_version, policy, asleep, now)?;
            }
            Event::Suspend => self.on_suspend(now)?,
            Event::Frozen { token } => self.on_frozen(token),
            Event::FreezeFailed { token, reason } => self.on_freeze_failed(token, reason, now),
            Event::Thawed { run } => self.on_thawed(run, now),
            Event::ThawFailed { run, reason } => self.on_thaw_failed(run, reason, now),
            Event::Restart { signal, timeout } => {
                self.on_restart(self.how_to_stop(signal, timeout), now)?;
            }
            Event::Destroy => self.on_destroy(now)?,
            Event::Lease(lease) => self.lease = lease,
            Event::Launched { run } => self.on_launched(run, now),
            Event::LaunchFailed { run, reason } => self.on_launch_failed(run, reason, now),
            Event::Exited { run, exit } => self.on_exited(run, exit, now),
            Event::Drained { token } => self.on_drained(token, now),
            Event::Removed => self.on_removed(),
        }
        Ok(())
    }

    /// To be called at [`Self::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let Some((deadline, _)) = self.poll_timeout() else { return };
        if now < deadline {
            return;
        }
        match self.phase {
            Phase::Starting { .. } => self.on_launch_timeout(now),
            Phase::Draining { after, stop, .. } => self.begin_stopping(stop, after, now),
            Phase::Stopping { after, .. } => self.kill(after, now),
            Phase::Suspending { step: SuspendStep::Draining, .. } => self.begin_freezing(now),
            Phase::Suspending { step: SuspendStep::Freezing, .. } => {
                self.stop_instead("it did not freeze in time".to_owned(), now);
            }
            Phase::Restarting { .. } => self.launch(now),
            Phase::Created
            | Phase::Stopped
            | Phase::Suspended
            | Phase::Failed
            | Phase::Started { .. }
            | Phase::Destroying
            | Phase::Destroyed => {}
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Timestamp, &'static str)> {
        match self.phase {
            Phase::Starting { deadline } => Some((deadline, "launch takes too long")),
            Phase::Draining { deadline, .. } => Some((deadline, "drain takes too long")),
            Phase::Stopping { kill_at, .. } => Some((kill_at, "kill timeout")),
            Phase::Suspending { deadline, .. } => Some((deadline, "suspend takes too long")),
            Phase::Restarting { due } => Some((due, "restart back-off")),
            Phase::Created
            | Phase::Stopped
            | Phase::Suspended
            | Phase::Failed
            | Phase::Started { .. }
            | Phase::Destroying
            | Phase::Destroyed => None,
        }
    }

    /// The state on the API.
    pub fn state(&self) -> MachineState {
        match self.phase {
            Phase::Created => MachineState::Created,
            Phase::Stopped => MachineState::Stopped,
            Phase::Failed => MachineState::Failed,
            Phase::Starting { .. } => MachineState::Starting,
            Phase::Started { .. } => MachineState::Started,
            Phase::Draining { after, .. } | Phase::Stopping { after, .. } => match after {
                After::Sleep | After::Wake => MachineState::Stopping,
                After::Replace => MachineState::Replacing,
                After::Destroy => MachineState::Destroying,
            },
            Phase::Suspending { .. } => MachineState::Suspending,
            Phase::Suspended => MachineState::Suspended,
            Phase::Restarting { .. } => MachineState::Restarting,
            Phase::Destroying => MachineState::Destroying,
            Phase::Destroyed => MachineState::Destroyed,
        }
    }

    /// The current or last run; 0: never started.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The newest config.
    pub fn config_version(&self) -> u64 {
        self.config_version
    }

    /// The config of the current or last run; 0: never started.
    pub fn running_version(&self) -> u64 {
        self.running_version
    }

    /// When the current run came up; `None` unless it is up.
    pub fn started_at(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Started { since } => Some(since),
            _ => None,
        }
    }

    /// How often the restart policy has brought it back lately.
    pub fn restart_count(&self) -> usize {
        self.restarts.count()
    }

    /// What must survive the server.
    pub fn stored(&self) -> Stored {
        let wish = match self.phase {
            Phase::Starting { .. } | Phase::Started { .. } | Phase::Restarting { .. } => Wish::Up,
            Phase::Created
            | Phase::Stopped
            | Phase::Suspending { .. }
            | Phase::Suspended
            | Phase::Failed => Wish::Down,
            Phase::Draining { after, .. } | Phase::Stopping { after, .. } => match after {
                After::Sleep => Wish::Down,
                After::Wake | After::Replace => Wish::Up,
                After::Destroy => Wish::Gone,
            },
            Phase::Destroying | Phase::Destroyed => Wish::Gone,
        };
        Stored { state: self.state(), run: self.run, config_version: self.config_version, wish }
    }

    // ---- starts -------------------------------------------------------------------------------

    fn on_start(&mut self, by: StartBy, now: Timestamp) -> Result<(), InvalidTransition> {
        if let StartBy::Proxy { attempt } = by {
            self.start_heard = self.start_heard.max(attempt);
        }
        match (self.phase, by) {
            (Phase::Created | Phase::Stopped | Phase::Failed | Phase::Restarting { .. }, _) => {
                self.remember(by);
                self.begin_launch(Happened::StartAsked(by), now);
            }
            (Phase::Starting { .. }, _) => self.remember(by),
            (Phase::Started { .. }, StartBy::User) => {}
            (Phase::Started { .. }, StartBy::Proxy { attempt }) => {
                self.answer_start(attempt, StartOutcome::Started { run: self.run });
            }
            (Phase::Draining { after: After::Sleep, told: Told::No, .. }, StartBy::User) => {
                self.call_off_stop(now);
            }
            (Phase::Draining { .. } | Phase::Stopping { .. }, _) => {
                self.start_on_the_way_down(by)?;
            }
            (Phase::Suspending { step, .. }, _) => self.call_off_suspend(step, by, now),
            (Phase::Suspended, _) => self.resume(by, now),
            (Phase::Destroying | Phase::Destroyed, by) => self.refuse_start(by)?,
        }
        Ok(())
    }

    fn remember(&mut self, by: StartBy) {
        match by {
            StartBy::User => {}
            StartBy::Proxy { attempt } => self.start_attempt = Some(attempt),
        }
    }

    fn start_on_the_way_down(&mut self, by: StartBy) -> Result<(), InvalidTransition> {
        match &mut self.phase {
            Phase::Draining { after, .. } | Phase::Stopping { after, .. } => match *after {
                After::Sleep => *after = After::Wake,
                After::Destroy if self.mutant == Mutant::DestroyedMachineStarted => {
                    *after = After::Wake;
                }
                After::Wake | After::Replace => {}
                After::Destroy => return self.refuse_start(by),
            },
            _ => {}
        }
        self.remember(by);
        Ok(())
    }

    fn refuse_start(&mut self, by: StartBy) -> Result<(), InvalidTransition> {
        match by {
            StartBy::User => Err(InvalidTransition { state: self.state(), verb: "start" }),
            StartBy::Proxy { attempt } => {
                let reason = format!("the Machine is {}", self.state());
                self.answer_start(attempt, StartOutcome::Refused { reason });
                Ok(())
            }
        }
    }

    fn call_off_stop(&mut self, now: Timestamp) {
        self.effects.push_back(Effect::Undrain { run: self.run });
        self.phase = Phase::Started { since: now };
        self.finish_stop(StopOutcome::Refused { reason: "started again".to_owned() });
        self.announce(Happened::StopCalledOff);
    }

    fn call_off_suspend(&mut self, step: SuspendStep, by: StartBy, now: Timestamp) {
        let run = self.run;
        self.effects.push_back(match step {
            SuspendStep::Draining => Effect::Undrain { run },
            SuspendStep::Freezing => Effect::Thaw { run },
        });
        self.finish_stop(StopOutcome::Refused { reason: "started again".to_owned() });
        self.be_up_again(Happened::SuspendCalledOff, by, now);
    }

    /// The run goes on where it was. Nothing waits for the thaw: what is sent to the program meanwhile
    /// waits in its sockets.
    fn resume(&mut self, by: StartBy, now: Timestamp) {
        if self.mutant != Mutant::ResumeDoesNotThaw {
            self.effects.push_back(Effect::Thaw { run: self.run });
        }
        self.be_up_again(Happened::Resumed, by, now);
    }

    fn be_up_again(&mut self, happened: Happened, by: StartBy, now: Timestamp) {
        self.phase = Phase::Started { since: now };
        self.announce(happened);
        self.remember(by);
        self.finish_start(StartOutcome::Started { run: self.run });
    }

    fn launch(&mut self, now: Timestamp) {
        self.begin_launch(Happened::Launching, now);
    }

    /// The only place where a run begins; it always takes the newest config.
    fn begin_launch(&mut self, happened: Happened, now: Timestamp) {
        let config_version = self.launch_version();
        self.run += 1;
        self.running_version = config_version;
        self.phase = Phase::Starting { deadline: now + LAUNCH_TIMEOUT };
        self.announce(happened);
        self.effects.push_back(Effect::Launch { run: self.run, config_version });
    }

    fn launch_version(&self) -> u64 {
        let old = self.mutant == Mutant::WakeDuringDeployRunsOldConfig
            && self.start_attempt.is_some()
            && matches!(self.phase, Phase::Stopping { after: After::Replace, .. });
        if old { self.running_version } else { self.config_version }
    }

    fn on_launched(&mut self, run: u64, now: Timestamp) {
        if run != self.run {
            return;
        }
        match self.phase {
            Phase::Starting { .. } => self.on_up(now),
            // The kill came before there was anything to kill.
            Phase::Stopping { after, .. } => self.kill(after, now),
            _ => {}
        }
    }

    fn on_up(&mut self, now: Timestamp) {
        self.phase = Phase::Started { since: now };
        self.announce(Happened::Launched);
        self.finish_start(StartOutcome::Started { run: self.run });
    }

    fn on_launch_failed(&mut self, run: u64, reason: String, now: Timestamp) {
        if run != self.run {
            return;
        }
        match self.phase {
            Phase::Starting { .. } => {
                self.phase = Phase::Failed;
                self.announce(Happened::LaunchFailed { reason: reason.clone() });
                self.finish_start(StartOutcome::Failed { reason });
            }
            Phase::Stopping { after, .. } => {
                self.on_asked_end(Happened::LaunchFailed { reason }, after, now);
            }
            _ => {}
        }
    }

    fn on_launch_timeout(&mut self, now: Timestamp) {
        let reason = format!("did not start within {} s", LAUNCH_TIMEOUT.as_secs());
        self.finish_start(StartOutcome::Failed { reason });
        self.kill(After::Sleep, now);
    }

    // ---- stops --------------------------------------------------------------------------------

    fn how_to_stop(&self, signal: Option<i32>, timeout: Option<Duration>) -> HowToStop {
        HowToStop {
            signal: signal.unwrap_or(self.policy.kill_signal),
            timeout: timeout.unwrap_or(self.policy.kill_timeout),
        }
    }

    fn on_user_stop(
        &mut self,
        by: StopBy,
        stop: HowToStop,
        now: Timestamp,
    ) -> Result<(), InvalidTransition> {
        let happened = Happened::StopAsked(by);
        match &mut self.phase {
            Phase::Created | Phase::Stopped => {}
            Phase::Failed | Phase::Restarting { .. } => {
                self.phase = Phase::Stopped;
                self.announce(happened);
            }
            Phase::Starting { .. } => {
                self.refuse_waiting_start("stopped by a user");
                self.kill(After::Sleep, now);
                self.announce(happened);
            }
            Phase::Started { .. } => self.begin_draining(After::Sleep, stop, happened, now),
            Phase::Draining { after, .. } | Phase::Stopping { after, .. } => {
                if *after == After::Destroy {
                    return Err(InvalidTransition { state: self.state(), verb: "stop" });
                }
                *after = After::Sleep;
                self.refuse_waiting_start("stopped by a user");
                self.announce(happened);
            }
            Phase::Suspending { .. } | Phase::Suspended => {
                self.leave_suspend(After::Sleep, stop, now);
                self.announce(happened);
            }
            Phase::Destroying | Phase::Destroyed => {
                return Err(InvalidTransition { state: self.state(), verb: "stop" });
            }
        }
        Ok(())
    }

    fn on_proxy_stop(&mut self, run: u64, attempt: u64, now: Timestamp) {
        if let Err(why) = self.try_proxy_stop(run, attempt, now) {
            let outcome = StopOutcome::Refused { reason: why.to_owned() };
            self.effects.push_back(Effect::StopDone { attempt, outcome });
        }
    }

    fn try_proxy_stop(
        &mut self,
        run: u64,
        attempt: u64,
        now: Timestamp,
    ) -> Result<(), &'static str> {
        if run != self.run {
            return Err("another run");
        }
        match self.phase {
            Phase::Started { .. } if self.lease == Lease::Held => Err("leased"),
            // It may have waited for others' consent meanwhile. That caller was told that the Machine is awake.
            Phase::Started { .. } if attempt <= self.start_heard => Err("a caller came meanwhile"),
            Phase::Started { .. } => {
                self.stop_attempt = Some(attempt);
                match self.policy.sleep {
                    SleepBy::Stopping => {
                        self.begin_stopping(self.how_to_stop(None, None), After::Sleep, now);
                        self.announce(Happened::StopAsked(StopBy::Proxy { run, attempt }));
                    }
                    SleepBy::Suspending => {
                        self.begin_freezing(now);
                        self.announce(Happened::SuspendAsked);
                    }
                }
                Ok(())
            }
            Phase::Suspending { .. } => {
                self.stop_attempt = Some(attempt);
                Ok(())
            }
            Phase::Suspended => {
                let outcome = StopOutcome::Suspended;
                self.effects.push_back(Effect::StopDone { attempt, outcome });
                Ok(())
            }
            Phase::Draining { after: After::Sleep, .. }
            | Phase::Stopping { after: After::Sleep, .. } => {
                self.stop_attempt = Some(attempt);
                Ok(())
            }
            Phase::Draining { .. } | Phase::Stopping { .. } => Err("already being stopped"),
            Phase::Starting { .. } => Err("starting"),
            Phase::Created
            | Phase::Stopped
            | Phase::Failed
            | Phase::Restarting { .. }
            | Phase::Destroying
            | Phase::Destroyed => {
                let outcome = StopOutcome::Stopped;
                self.effects.push_back(Effect::StopDone { attempt, outcome });
                Ok(())
            }
        }
    }

    fn begin_draining(&mut self, after: After, stop: HowToStop, why: Happened, now: Timestamp) {
        self.drain(after, stop, Told::No, now);
        self.announce(why);
    }

    fn drain(&mut self, after: After, stop: HowToStop, told: Told, now: Timestamp) {
        let token = self.ask_drain();
        let deadline = now + self.policy.drain_timeout + DRAIN_GRACE;
        self.phase = Phase::Draining { token, deadline, after, stop, told };
    }

    fn ask_drain(&mut self) -> u64 {
        self.tokens += 1;
        let (token, timeout) = (self.tokens, self.policy.drain_timeout);
        self.effects.push_back(Effect::Drain { run: self.run, token, timeout });
        token
    }

    fn on_drained(&mut self, answered: u64, now: Timestamp) {
        match self.phase {
            Phase::Draining { token, after, stop, .. } if token == answered => {
                self.begin_stopping(stop, after, now);
            }
            Phase::Suspending { token, step: SuspendStep::Draining, .. } if token == answered => {
                self.begin_freezing(now);
            }
            _ => {}
        }
    }

    fn begin_stopping(&mut self, stop: HowToStop, after: After, now: Timestamp) {
        self.phase = Phase::Stopping { kill_at: now + stop.timeout, after };
        self.effects.push_back(Effect::Signal { run: self.run, signal: stop.signal });
    }

    fn kill(&mut self, after: After, now: Timestamp) {
        self.phase = Phase::Stopping { kill_at: now + KILL_AGAIN_AFTER, after };
        self.effects.push_back(Effect::Kill { run: self.run });
    }

    // ---- suspends -----------------------------------------------------------------------------

    fn on_suspend(&mut self, now: Timestamp) -> Result<(), InvalidTransition> {
        match self.phase {
            Phase::Started { .. } => {
                let token = self.ask_drain();
                let deadline = now + self.policy.drain_timeout + DRAIN_GRACE;
                self.phase = Phase::Suspending { token, deadline, step: SuspendStep::Draining };
                self.announce(Happened::SuspendAsked);
                Ok(())
            }
            Phase::Suspending { .. } | Phase::Suspended => Ok(()),
            Phase::Created
            | Phase::Stopped
            | Phase::Failed
            | Phase::Starting { .. }
            | Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::Restarting { .. }
            | Phase::Destroying
            | Phase::Destroyed => Err(InvalidTransition { state: self.state(), verb: "suspend" }),
        }
    }

    fn begin_freezing(&mut self, now: Timestamp) {
        self.tokens += 1;
        let (token, deadline) = (self.tokens, now + FREEZE_TIMEOUT);
        self.phase = Phase::Suspending { token, deadline, step: SuspendStep::Freezing };
        self.effects.push_back(Effect::Freeze { run: self.run, token });
    }

    fn on_frozen(&mut self, answered: u64) {
        let awaited = match self.phase {
            Phase::Suspending { token, step: SuspendStep::Freezing, .. } => token == answered,
            _ => self.mutant == Mutant::LateFreezeAccepted && self.started_at().is_some(),
        };
        if awaited {
            self.phase = Phase::Suspended;
            self.announce(Happened::Suspended);
            self.finish_stop(StopOutcome::Suspended);
        }
    }

    fn on_freeze_failed(&mut self, answered: u64, reason: String, now: Timestamp) {
        if let Phase::Suspending { token, step: SuspendStep::Freezing, .. } = self.phase
            && token == answered
        {
            self.stop_instead(reason, now);
        }
    }

    fn stop_instead(&mut self, reason: String, now: Timestamp) {
        self.leave_suspend(After::Sleep, self.how_to_stop(None, None), now);
        self.announce(Happened::SuspendFailed { reason });
    }

    /// To its end, by the way that its step allows. A signal sent before the thaw is the first thing
    /// that the program meets.
    fn leave_suspend(&mut self, after: After, stop: HowToStop, now: Timestamp) {
        if let Phase::Suspending { token, deadline, step: SuspendStep::Draining } = self.phase {
            self.phase = Phase::Draining { token, deadline, after, stop, told: Told::No };
        } else {
            self.begin_stopping(stop, after, now);
            self.effects.push_back(Effect::Thaw { run: self.run });
        }
    }

    fn on_thawed(&mut self, run: u64, now: Timestamp) {
        if run == self.run && self.phase == Phase::Suspended {
            self.resume(StartBy::User, now);
        }
    }

    fn on_thaw_failed(&mut self, run: u64, reason: String, now: Timestamp) {
        if run == self.run && self.started_at().is_some() {
            self.kill(After::Wake, now);
            self.announce(Happened::ResumeFailed { reason });
        }
    }

    // ---- exits --------------------------------------------------------------------------------

    fn on_exited(&mut self, run: u64, exit: Exit, now: Timestamp) {
        if run != self.run {
            return;
        }
        match self.phase {
            Phase::Starting { .. } => {
                // It was up and is gone already; the proxy must hear of both.
                self.on_up(now);
                self.on_unasked_exit(exit, now, now);
            }
            Phase::Started { since } => self.on_unasked_exit(exit, since, now),
            Phase::Draining { after, .. } | Phase::Stopping { after, .. } => {
                self.on_asked_exit(exit, after, now);
            }
            Phase::Suspending { .. } | Phase::Suspended => self.on_exit_asleep(exit),
            Phase::Created
            | Phase::Stopped
            | Phase::Failed
            | Phase::Restarting { .. }
            | Phase::Destroying
            | Phase::Destroyed => {}
        }
    }

    fn on_unasked_exit(&mut self, exit: Exit, since: Timestamp, now: Timestamp) {
        let back_off = self.restarts.after_exit(self.policy.restart, exit, since, now);
        self.phase = match back_off {
            Some(wait) => Phase::Restarting { due: now + wait },
            None => Phase::Stopped,
        };
        let restarting = back_off.is_some();
        self.announce(Happened::Exited { exit, requested: false, restarting });
    }

    /// It sleeps on: whoever needs it gets a cold start.
    fn on_exit_asleep(&mut self, exit: Exit) {
        self.phase = Phase::Stopped;
        self.announce(Happened::Exited { exit, requested: false, restarting: false });
        self.finish_stop(StopOutcome::Stopped);
    }

    fn on_asked_exit(&mut self, exit: Exit, after: After, now: Timestamp) {
        // MA-12: what comes next is shown by the announcement of the launch, not by this one.
        let happened = Happened::Exited { exit, requested: true, restarting: false };
        self.on_asked_end(happened, after, now);
    }

    fn on_asked_end(&mut self, happened: Happened, after: After, now: Timestamp) {
        if after == After::Sleep {
            self.phase = Phase::Stopped;
        }
        self.announce(happened);
        self.on_down(after, now);
    }

    fn on_down(&mut self, after: After, now: Timestamp) {
        self.finish_stop(StopOutcome::Stopped);
        self.restarts = Restarts::default();
        match after {
            After::Sleep => self.refuse_waiting_start("stopped"),
            After::Wake | After::Replace => self.launch(now),
            After::Destroy => self.begin_remove(),
        }
    }

    // ---- updates and the end ------------------------------------------------------------------

    fn on_update(
        &mut self,
        config_version: u64,
        policy: Policy,
        asleep: Asleep,
        now: Timestamp,
    ) -> Result<(), InvalidTransition> {
        if self.stored().wish == Wish::Gone {
            return Err(InvalidTransition { state: self.state(), verb: "update" });
        }
        let stop = self.how_to_stop(None, None);
        // Of two at once, the newer may be heard of first.
        if self.config_version <= config_version {
            self.config_version = config_version;
            self.policy = policy;
        }
        self.restarts = Restarts::default();
        let happened = Happened::Updated { config_version };
        match &mut self.phase {
            Phase::Created | Phase::Stopped | Phase::Failed => match asleep {
                Asleep::Stays => self.announce(happened),
                Asleep::Launches => self.begin_launch(happened, now),
            },
            Phase::Restarting { .. } => self.begin_launch(happened, now),
            Phase::Starting { .. } => {
                self.kill(After::Replace, now);
                self.announce(happened);
            }
            Phase::Started { .. } => self.begin_draining(After::Replace, stop, happened, now),
            Phase::Draining { after, .. } | Phase::Stopping { after, .. } => {
                if *after == After::Sleep && asleep == Asleep::Launches {
                    *after = After::Wake;
                }
                self.announce(happened);
            }
            Phase::Suspending { .. } | Phase::Suspended => {
                let after = match asleep {
                    Asleep::Stays => After::Sleep,
                    Asleep::Launches => After::Replace,
                };
                self.leave_suspend(after, stop, now);
                self.announce(happened);
            }
            Phase::Destroying | Phase::Destroyed => {}
        }
        Ok(())
    }

    /// A stop after which it is started, whoever asks for it or not; with the newest config, as every
    /// start.
    fn on_restart(&mut self, stop: HowToStop, now: Timestamp) -> Result<(), InvalidTransition> {
        let happened = Happened::RestartAsked;
        match &mut self.phase {
            Phase::Created | Phase::Stopped | Phase::Failed | Phase::Restarting { .. } => {
                self.begin_launch(happened, now);
            }
            Phase::Started { .. } => self.begin_draining(After::Wake, stop, happened, now),
            Phase::Draining { after: after @ After::Sleep, .. }
            | Phase::Stopping { after: after @ After::Sleep, .. } => {
                *after = After::Wake;
                self.announce(happened);
            }
            Phase::Suspending { .. } | Phase::Suspended => {
                self.leave_suspend(After::Wake, stop, now);
                self.announce(happened);
            }
            // It is on its way to a new run already.
            Phase::Starting { .. }
            | Phase::Draining { after: After::Wake | After::Replace, .. }
            | Phase::Stopping { after: After::Wake | After::Replace, .. } => {}
            Phase::Draining { after: After::Destroy, .. }
            | Phase::Stopping { after: After::Destroy, .. }
            | Phase::Destroying
            | Phase::Destroyed => {
                return Err(InvalidTransition { state: self.state(), verb: "restart" });
            }
        }
        Ok(())
    }

    fn on_destroy(&mut self, now: Timestamp) -> Result<(), InvalidTransition> {
        let stop = self.how_to_stop(None, None);
        self.refuse_waiting_start("being destroyed");
        let happened = Happened::DestroyAsked;
        match &mut self.phase {
            Phase::Created | Phase::Stopped | Phase::Failed | Phase::Restarting { .. } => {
                self.phase = Phase::Destroying;
                self.announce(happened);
                self.begin_remove();
            }
            Phase::Starting { .. } => {
                self.kill(After::Destroy, now);
                self.announce(happened);
            }
            Phase::Started { .. } => self.begin_draining(After::Destroy, stop, happened, now),
            Phase::Draining { after, .. } | Phase::Stopping { after, .. } => {
                *after = After::Destroy;
                self.announce(happened);
            }
            Phase::Suspending { step: SuspendStep::Draining, .. } => {
                self.leave_suspend(After::Destroy, stop, now);
                self.announce(happened);
            }
            Phase::Suspending { .. } | Phase::Suspended => {
                self.kill(After::Destroy, now);
                self.announce(happened);
            }
            Phase::Destroying => {}
            Phase::Destroyed => {
                return Err(InvalidTransition { state: self.state(), verb: "destroy" });
            }
        }
        Ok(())
    }

    fn begin_remove(&mut self) {
        self.phase = Phase::Destroying;
        self.effects.push_back(Effect::Remove);
    }

    fn on_removed(&mut self) {
        if self.phase == Phase::Destroying {
            self.phase = Phase::Destroyed;
            self.announce(Happened::Removed);
        }
    }

    // ---- after a restart of the server --------------------------------------------------------

    fn adopt(&mut self, stored: Stored, run: u64, config_version: u64, now: Timestamp) {
        let counted = self.mutant == Mutant::AdoptionCountsAsStart;
        self.run = if counted { run + 1 } else { run };
        self.running_version = config_version;
        self.phase = Phase::Started { since: now };
        let stop = self.how_to_stop(None, None);
        let adoption = on_adoption(stored, run, config_version);
        match adoption {
            Adoption::GoesOn if stored.state == MachineState::Suspending => {
                let token = self.ask_drain();
                let deadline = now + self.policy.drain_timeout + DRAIN_GRACE;
                self.phase = Phase::Suspending { token, deadline, step: SuspendStep::Draining };
            }
            Adoption::GoesOn => {}
            Adoption::Ends(after) if self.mutant == Mutant::AdoptionCutsDrain => {
                self.begin_stopping(stop, after, now);
            }
            // How much of its time is left is not stored.
            Adoption::Ends(after) => self.drain(after, stop, Told::Maybe, now),
        }
        // Not before: a proxy that hears `started` lets callers in.
        self.announce(match adoption {
            Adoption::Ends(After::Wake | After::Replace) => {
                Happened::Updated { config_version: self.config_version }
            }
            Adoption::Ends(After::Sleep | After::Destroy) | Adoption::GoesOn => Happened::Adopted,
        });
    }

    /// Whoever was let in by the proxy needs it up; what somebody else has asked for since goes on.
    fn adopt_thawed(&mut self, stored: Stored, run: u64, config_version: u64, now: Timestamp) {
        let asleep = matches!(stored.state, MachineState::Suspended | MachineState::Suspending);
        if asleep && stored.wish == Wish::Down {
            self.adopt_frozen(Stored { wish: Wish::Up, ..stored }, run, config_version, now);
        } else {
            self.adopt(stored, run, config_version, now);
        }
    }

    /// A start that was asked for, and what is going anyway, thaws it; else it sleeps on.
    fn adopt_frozen(&mut self, stored: Stored, run: u64, config_version: u64, now: Timestamp) {
        (self.run, self.running_version) = (run, config_version);
        self.phase = Phase::Suspended;
        let stop = self.how_to_stop(None, None);
        match (on_adoption(stored, run, config_version), stored.wish) {
            (Adoption::GoesOn, Wish::Up) => return self.resume(StartBy::User, now),
            (Adoption::GoesOn, _) => {}
            (Adoption::Ends(After::Destroy), _) => self.kill(After::Destroy, now),
            (Adoption::Ends(_), Wish::Down) => self.leave_suspend(After::Sleep, stop, now),
            (Adoption::Ends(after), _) => self.leave_suspend(after, stop, now),
        }
        self.announce(Happened::Adopted);
    }

    fn on_down_after_restore(&mut self, stored: Stored, exit: Exit, now: Timestamp) {
        let after = match (stored.wish, stored.state) {
            (Wish::Gone, _) => After::Destroy,
            (Wish::Down, MachineState::Stopping) => After::Sleep,
            (Wish::Down, state) => {
                self.phase = resting(state);
                return;
            }
            (Wish::Up, MachineState::Stopping | MachineState::Replacing) => After::Replace,
            (Wish::Up, _) => return self.on_unasked_exit(exit, now, now),
        };
        self.phase = Phase::Stopping { kill_at: now, after };
        self.on_asked_exit(exit, after, now);
    }

    /// As if this server had heard of it: a program that is not there is not tried again and again.
    fn on_not_started(&mut self, stored: Stored, run: u64, reason: String, now: Timestamp) {
        let going = matches!(stored.state, MachineState::Stopping | MachineState::Replacing);
        let was_starting = stored.wish == Wish::Up && !going;
        self.run = run;
        if stored.wish != Wish::Gone && (was_starting || stored.run < run) {
            self.phase = Phase::Starting { deadline: now };
            return self.on_launch_failed(run, reason, now);
        }
        let exit = Exit { code: NOT_STARTED, signal: None, oom_killed: false };
        self.on_down_after_restore(stored, exit, now);
    }

    fn on_lost(&mut self, stored: Stored, was_up: AfterLoss, now: Timestamp) {
        match (stored.wish, was_up) {
            (Wish::Gone, _) if stored.state == MachineState::Destroyed => {
                self.phase = Phase::Destroyed;
            }
            (Wish::Gone, _) => self.begin_remove(),
            (Wish::Up, AfterLoss::Launch) => self.launch(now),
            (Wish::Up, AfterLoss::Sleep) => self.lose(),
            (Wish::Down, _) if is_suspended(stored.state) => self.lose(),
            (Wish::Down, _) => self.phase = resting(stored.state),
        }
    }

    fn lose(&mut self) {
        self.phase = Phase::Stopped;
        self.announce(Happened::Lost);
    }

    // ---- answers ------------------------------------------------------------------------------

    fn announce(&mut self, happened: Happened) {
        let (state, run) = (self.state(), self.run);
        self.effects.push_back(Effect::Announce { state, run, happened });
    }

    fn refuse_waiting_start(&mut self, reason: &str) {
        self.finish_start(StartOutcome::Refused { reason: reason.to_owned() });
    }

    fn finish_start(&mut self, outcome: StartOutcome) {
        if let Some(attempt) = self.start_attempt.take() {
            self.answer_start(attempt, outcome);
        }
    }

    fn answer_start(&mut self, attempt: u64, outcome: StartOutcome) {
        self.effects.push_back(Effect::StartDone { attempt, outcome });
    }

    fn finish_stop(&mut self, outcome: StopOutcome) {
        if let Some(attempt) = self.stop_attempt.take() {
            self.effects.push_back(Effect::StopDone { attempt, outcome });
        }
    }
}

/// What becomes of a run that is found alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adoption {
    GoesOn,
    Ends(After),
}

/// A start by the proxy may be younger than the last stored state: then the truth is what runs
/// (DESIGN 8). A stop that had begun is finished, even if the Machine is wanted again: the program may
/// have its signal already and end at any time. It may have none, and callers inside: they get the time of a drain.
fn on_adoption(stored: Stored, run: u64, config_version: u64) -> Adoption {
    let going = matches!(stored.state, MachineState::Stopping | MachineState::Replacing);
    match stored.wish {
        Wish::Gone => Adoption::Ends(After::Destroy),
        Wish::Down if going && run == stored.run => Adoption::Ends(After::Sleep),
        Wish::Up if going && run == stored.run => Adoption::Ends(After::Replace),
        Wish::Up | Wish::Down if config_version != stored.config_version => {
            Adoption::Ends(After::Replace)
        }
        Wish::Up | Wish::Down => Adoption::GoesOn,
    }
}

/// Whether there was a run that a loss ended.
fn is_suspended(state: MachineState) -> bool {
    matches!(state, MachineState::Suspending | MachineState::Suspended)
}

/// The phase of a Machine that was stored as down.
fn resting(state: MachineState) -> Phase {
    match state {
        MachineState::Created | MachineState::Creating => Phase::Created,
        MachineState::Failed | MachineState::LaunchFailed => Phase::Failed,
        MachineState::Starting
        | MachineState::Started
        | MachineState::Stopping
        | MachineState::Stopped
        | MachineState::Suspending
        | MachineState::Suspended
        | MachineState::Restarting
        | MachineState::Updating
        | MachineState::Replacing
        | MachineState::Destroying
        | MachineState::Destroyed => Phase::Stopped,
    }
}

#[cfg(test)]
mod tests;
