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
use std::time::Duration;

use anyhow::Context;
use perch_api::wire::{Autostop, MachineState};
use perch_core::arming::{Arming, Effect, Event};
use perch_core::fault::{self, Point};
use perch_core::ids::MachineId;
use perch_machine::{LaunchSpec, Machine, Secrets};
use tokio::sync::{Notify, OwnedMutexGuard};

use super::clock;
use super::inside;
use super::records::MachineRecord;
use super::world::{World, lock};

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
    /// The namespace that it is in.
    netns: Arc<OwnedFd>,
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
        let slot = self.remove(id)?;
        slot.lock().await.take()
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

    fn remove(&self, id: &str) -> Option<Slot> {
        let machine = id.parse().ok()?;
        let mut state = lock(&self.state);
        state.arming.handle_event(Event::Awake { machine }, clock::now());
        state.slots.remove(&machine)
    }

    /// What became of nothing leaves its place to others.
    fn lost(&self, machine: MachineId, slot: &Slot) {
        let mut state = lock(&self.state);
        if state.slots.get(&machine).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            state.slots.remove(&machine);
            state.arming.handle_event(Event::Lost { machine }, clock::now());
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
    /// Starts it, if that is what a start would make now.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) async fn start(
        self,
        spec: &LaunchSpec,
        netns: &Arc<OwnedFd>,
        secrets: &Secrets,
    ) -> anyhow::Result<Option<Machine>> {
        if Arc::ptr_eq(&self.netns, netns) && self.run.is_for(spec, secrets) {
            return Ok(self.run.start().await?);
        }
        tracing::debug!(machine = spec.machine, "what was armed is of the past");
        self.run.disarm().await;
        Ok(None)
    }
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
    match job {
        Job::Arm(machine, mut making) => match arm(world, &machine.to_string()).await {
            Ok(ready) => {
                tracing::debug!(%machine, "armed");
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
        shared.prepare(&records, status.run + 1)
    });
    let (mut spec, netns, secrets) = prepared.await.context("the server is ending")??;
    spec.inside = inside::place(world, id);
    let run = perch_machine::arm(&spec, netns.as_fd(), &secrets).await?;
    Ok(Ready { run, netns })
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
