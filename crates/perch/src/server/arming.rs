//! The armed Machines of this host: stopped, with all of their next start done but the start of the program.
//!
//! ```text
//!  a stop by the proxy ─► core::arming ─► Arm ─► made, one after the other ─► kept ─► taken by a start
//!                                                                              └────► ended: Disarm, update, destroy
//! ```
//!
//! To everybody such a Machine is stopped. What is kept here is never what a start must have: a start takes it only if it
//! is equal, in every word, to what the start would make now, and does without if it is not. So whoever changes a
//! Machine may leave it to the next start to find that out; updates end it at once all the same, for its memory's sake.
//! A server that ends, in whatever way, lets go of the lines to all of them, and they end by themselves.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use perch_api::wire::{Autostop, MachineState};
use perch_core::arming::{Arming, Effect, Event};
use perch_core::fault::{self, Point};
use perch_core::ids::MachineId;
use perch_machine::{Going, LaunchError, LaunchSpec, Machine, Secrets};
use tokio::net::UnixListener;
use tokio::sync::{Notify, OwnedMutexGuard};

use super::clock;
use super::images::chain;
use super::inside;
use super::records::MachineRecord;
use super::world::{Records, World, lock};

/// How often it is looked whether there is memory for those that wait, and whether they do. A look costs 50 µs.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// What one takes at most: its two processes, mounts, cgroups and namespace.
const ARMED_BYTES: u64 = 1 << 20;

/// How a run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    Cold,
    /// By what was made ready.
    Armed,
}

/// What waits for a start.
#[derive(Debug)]
pub(crate) struct Ready {
    run: perch_machine::Armed,
    /// What it was made of.
    records: Records,
    /// The namespace that it is in.
    netns: Arc<OwnedFd>,
    /// Of `/.fly/api`: somebody waits for the start, and a socket takes as long to make as a process.
    inside: Option<UnixListener>,
}

/// Empty when nothing became of it. Whoever makes it holds the lock until it is made.
type Slot = Arc<tokio::sync::Mutex<Option<Ready>>>;

/// What waits for starts, and who is to.
#[derive(Debug)]
pub(crate) struct Armory {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    arming: Arming,
    slots: BTreeMap<MachineId, Slot>,
}

/// What is done next.
enum Job {
    Arm(MachineId, OwnedMutexGuard<Option<Ready>>),
    Disarm(Slot),
}

impl Armory {
    /// Keeps at most so many.
    pub(crate) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let state = State { arming: Arming::new(most), slots: BTreeMap::new() };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// A Machine was stopped because nobody needs it.
    pub(crate) fn stopped(&self, id: &str) {
        let Ok(machine) = id.parse() else { return };
        lock(&self.state).arming.handle_event(Event::Stopped { machine }, clock::now());
        self.changed.notify_one();
    }

    /// What is ready for a Machine that is to start; if it is being made, it is waited for.
    pub(crate) async fn take(&self, id: &str) -> Option<Ready> {
        let (machine, slot) = self.wanted(id)?;
        let ready = slot.lock().await.take();
        // Only now: whoever wants it, too, waits until it is made, and finds that it is gone.
        self.leave(machine, &slot);
        ready
    }

    /// The same without waiting, and only if it is this; else it stays.
    fn take_if(&self, id: &str, is_it: impl FnOnce(&Ready) -> bool) -> Option<Ready> {
        let machine = id.parse().ok()?;
        let slot = lock(&self.state).slots.get(&machine)?.clone();
        let mut ready = slot.try_lock().ok()?;
        if !ready.as_ref().is_some_and(is_it) {
            return None;
        }
        self.wanted(id);
        self.leave(machine, &slot);
        ready.take()
    }

    /// Ends what is ready for a Machine, if anything is, and returns when it has ended.
    pub(crate) async fn disarm(&self, id: &str) {
        if let Some(ready) = self.take(id).await {
            tracing::debug!(machine = id, "disarmed");
            ready.run.disarm().await;
        }
    }

    /// Ends all, because memory is short.
    pub(crate) fn give_way(&self) {
        lock(&self.state).arming.handle_event(Event::Short, clock::now());
        self.changed.notify_one();
    }

    /// Somebody wants it: it is not made any more, and what is being made stays until it is.
    fn wanted(&self, id: &str) -> Option<(MachineId, Slot)> {
        let machine = id.parse().ok()?;
        let mut state = lock(&self.state);
        state.arming.handle_event(Event::Awake { machine }, clock::now());
        Some((machine, state.slots.get(&machine)?.clone()))
    }

    /// Whether it was its place.
    fn leave(&self, machine: MachineId, slot: &Slot) -> bool {
        let mut state = lock(&self.state);
        let is_its = state.slots.get(&machine).is_some_and(|known| Arc::ptr_eq(known, slot));
        is_its && state.slots.remove(&machine).is_some()
    }

    /// What became of nothing leaves its place to others.
    fn lost(&self, machine: MachineId, slot: &Slot) {
        if self.leave(machine, slot) {
            lock(&self.state).arming.handle_event(Event::Lost { machine }, clock::now());
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        state.arming.handle_timeout(clock::now());
        while let Some(effect) = state.arming.poll_effect() {
            match effect {
                Effect::Arm { machine } => {
                    let slot = Slot::default();
                    let Ok(making) = slot.clone().try_lock_owned() else { continue };
                    state.slots.insert(machine, slot);
                    return Some(Job::Arm(machine, making));
                }
                Effect::Disarm { machine } => {
                    if let Some(slot) = state.slots.remove(&machine) {
                        return Some(Job::Disarm(slot));
                    }
                }
            }
        }
        None
    }

    /// How long nothing is to be done.
    fn pause(&self) -> Option<Duration> {
        let state = lock(&self.state);
        let look = (!state.slots.is_empty()).then_some(LOOK_INTERVAL);
        let due = state.arming.poll_timeout().map(|(due, _why)| due.since(clock::now()));
        [look, due].into_iter().flatten().min()
    }

    /// Those whose shim or init has died while they waited are no longer counted.
    fn forget_dead(&self) {
        let slots: Vec<_> =
            lock(&self.state).slots.iter().map(|(id, slot)| (*id, slot.clone())).collect();
        for (machine, slot) in slots {
            let is_dead = |ready: &Ready| !ready.run.waits();
            let dead = slot.try_lock().is_ok_and(|ready| ready.as_ref().is_some_and(is_dead));
            if dead {
                tracing::debug!(%machine, "what was armed has died");
                self.lost(machine, &slot);
            }
        }
    }
}

impl Ready {
    /// Whether a start by these records would make what is ready, which is known without making anything.
    fn is_for(&self, records: &Records, run: u64, netns: &Arc<OwnedFd>) -> bool {
        Arc::ptr_eq(&self.netns, netns) && self.run.spec().run == run && self.records == *records
    }

    /// Starts it, without waiting for anybody. `None` if it had ended before.
    ///
    /// # Errors
    /// When the program cannot be started.
    fn go(self, world: &Arc<World>) -> Result<Option<Going>, LaunchError> {
        let spec = self.run.spec();
        if let Some(listener) = self.inside {
            inside::serve(world, &spec.app, &spec.machine, listener);
        }
        self.run.go()
    }

    /// Starts it, if it equals what a start would make now; it may, though its records have changed.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) async fn start_if_equal(
        self,
        world: &Arc<World>,
        spec: &LaunchSpec,
        netns: &Arc<OwnedFd>,
        secrets: &Secrets,
    ) -> anyhow::Result<Option<Machine>> {
        if Arc::ptr_eq(&self.netns, netns) && self.run.is_for(spec, secrets) {
            let Some(going) = self.go(world)? else { return Ok(None) };
            return Ok(going.started().await?);
        }
        tracing::debug!(machine = spec.machine, "what was armed is of the past");
        self.run.disarm().await;
        Ok(None)
    }
}

/// Lets the program of an armed Machine go on before anything else is done about its start. `None` if it is not armed, or
/// anything is in the way; what comes next then finds out what.
pub(crate) fn go(world: &Arc<World>, id: &str, run: u64, config_version: u64) -> Option<Going> {
    let records = world.records(id).ok()?;
    let netns = world.kept_namespace(id)?;
    if records.machine.config_version < config_version {
        return None;
    }
    let ready = world.armory.take_if(id, |ready| ready.is_for(&records, run, &netns))?;
    ready.go(world).unwrap_or_else(|error| {
        tracing::debug!(machine = id, error = chain(&error), "what was armed does not start");
        None
    })
}

/// Arms and disarms until the server ends.
pub(crate) async fn keep(world: Arc<World>) {
    loop {
        while let Some(job) = world.armory.next_job() {
            if world.shutdown.is_cancelled() {
                return;
            }
            act(&world, job).await;
        }
        let pause = world.armory.pause();
        tokio::select! {
            () = world.armory.changed.notified() => continue,
            () = super::machine::sleep_or_never(pause) => {}
            () = world.shutdown.cancelled() => return,
        }
        look(&world).await;
    }
}

async fn act(world: &Arc<World>, job: Job) {
    let begun = Instant::now();
    match job {
        Job::Arm(machine, mut making) => match arm(world, &machine.to_string()).await {
            Ok(ready) => {
                let took_ms = begun.elapsed().as_secs_f64() * 1000.0;
                tracing::debug!(%machine, took_ms, "armed");
                *making = Some(ready);
            }
            Err(error) => {
                tracing::debug!(%machine, error = format!("{error:#}"), "not armed");
                let slot = OwnedMutexGuard::mutex(&making).clone();
                world.armory.lost(machine, &slot);
            }
        },
        Job::Disarm(slot) => {
            // One that is still being made ends as soon as it is.
            world.tracker.spawn(async move {
                let ready = slot.lock().await.take();
                if let Some(ready) = ready {
                    ready.run.disarm().await;
                }
            });
        }
    }
}

async fn look(world: &Arc<World>) {
    world.armory.forget_dead();
    if !has_room(world, ARMED_BYTES).await {
        world.armory.give_way();
    }
}

async fn has_room(world: &Arc<World>, bytes: u64) -> bool {
    let world = world.clone();
    let looked = tokio::task::spawn_blocking(move || world.pager.has_room(bytes)).await;
    looked.unwrap_or(false)
}

/// Makes the next run of a stopped Machine ready.
async fn arm(world: &Arc<World>, id: &str) -> anyhow::Result<Ready> {
    let status = world.handle(id).context("the Machine is gone")?.status();
    anyhow::ensure!(status.state == MachineState::Stopped, "the Machine is {}", status.state);
    if !has_room(world, ARMED_BYTES).await {
        world.armory.give_way();
        anyhow::bail!("memory is short");
    }
    fault::pass(Point::ServerArmBegun);
    let (shared, name) = (world.clone(), id.to_owned());
    let prepared = tokio::task::spawn_blocking(move || {
        let records = shared.peek(&name)?;
        anyhow::ensure!(is_candidate(&records.machine), "it is not one to be armed");
        let (spec, netns, secrets) = shared.prepare(&records, status.run + 1)?;
        Ok((records, spec, netns, secrets))
    });
    let (records, mut spec, netns, secrets) = prepared.await.context("the server is ending")??;
    spec.inside = inside::place(world, id);
    let run = perch_machine::arm(&spec, netns.as_fd(), &secrets).await?;
    // Only now: if the Machine had begun to run meanwhile, the socket is that run's.
    let inside = inside::prepare(world, id).map(|(_, listener)| listener);
    Ok(Ready { run, records, netns, inside })
}

/// Whether a Machine may be armed: the proxy stops it and starts it again, and nothing of it is anybody else's while it is
/// stopped. A volume is: it can be read, copied and given to another Machine then.
pub(crate) fn is_candidate(record: &MachineRecord) -> bool {
    let view = record.config.view();
    let sleeps = view
        .services
        .iter()
        .all(|service| service.autostop == Autostop::Stop && service.autostart.unwrap_or(true));
    let is_simple = view.mounts.is_empty() && view.standbys.is_empty() && !view.auto_destroy;
    sleeps && !view.services.is_empty() && is_simple
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::tests as records;

    fn check(config: &str, candidate: bool) {
        let mut record = records::machine("m");
        record.config = serde_json::from_str(config).expect("a config");
        assert_eq!(is_candidate(&record), candidate, "{config}");
    }

    #[test]
    fn only_who_is_stopped_and_started_by_the_proxy_is_armed() {
        let service =
            |words: &str| format!(r#"{{"internal_port":80,"ports":[{{"port":80}}],{words}}}"#);
        let stops = service(r#""autostop":"stop","autostart":true"#);
        let with = |more: &str| format!(r#"{{"image":"x","services":[{stops}]{more}}}"#);
        check(&with(""), true);
        check(r#"{"image":"x"}"#, false);
        for words in [
            r#""autostop":"suspend","autostart":true"#,
            r#""autostop":"off","autostart":true"#,
            r#""autostop":"stop","autostart":false"#,
        ] {
            let other = service(words);
            check(&format!(r#"{{"image":"x","services":[{stops},{other}]}}"#), false);
        }
        check(&with(r#","auto_destroy":true"#), false);
        check(&with(r#","mounts":[{"volume":"vol_1","path":"/data"}]"#), false);
    }

    #[tokio::test]
    async fn who_begins_to_start_is_not_armed_any_more() {
        let armory = Armory::new(4);
        armory.stopped("00000000000001");
        assert!(armory.pause().is_some());
        assert!(armory.take("00000000000001").await.is_none());
        assert!(armory.next_job().is_none() && armory.pause().is_none());
    }
}
