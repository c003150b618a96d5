//! After a start: what was stored meets what is really there.
//!
//! A run that lives is adopted and never started again. One that ended while no server looked gets
//! its exit event. One that was lost with the host comes back, except that Machines which sleep and
//! wake by themselves stay asleep until somebody needs them (DESIGN 8).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use anyhow::Context;
use perch_api::wire::Autostop;
use perch_core::lifecycle::{AfterLoss, Event, Found, Lease, Lifecycle, Stored};
use perch_machine::{ExitCause, Hierarchies, Machine};
use tokio::task::JoinSet;

use super::history::History;
use super::inside;
use super::launching;
use super::machine;
use super::records::{AppRecord, MachineRecord, Wish};
use super::world::World;
use super::{clock, freezers, images};

/// Parts in which Machines are looked at side by side: the runtime has two threads, and one part may have to wait for a
/// run that is still dying.
const PARTS: usize = 4;

/// What is looked at to find a run, the same for all Machines.
struct Scene {
    world: Arc<World>,
    hierarchies: Hierarchies,
    /// The runs that a proxy has thawed while no server was there, by Machine.
    thawed: BTreeMap<String, u64>,
    /// Names of what is in the directory of all Machines.
    present: BTreeSet<OsString>,
    kept_up: BTreeSet<String>,
}

/// What was found of one Machine.
struct Finding {
    record: Arc<MachineRecord>,
    found: Found,
    running: Option<Machine>,
    /// The last run that the Machine's directory knows of.
    last_run: u64,
}

/// Gives each stored Machine its place, and clears what belongs to none. `thawed` are the runs that a proxy has
/// thawed while no server was there.
///
/// Everything is looked at, and dead links are taken down, before the first task begins: a task may start its
/// Machine at once, and what it makes must not be taken for a leftover.
///
/// # Errors
/// When the host cannot be looked at.
pub(crate) async fn adopt_all(
    world: &Arc<World>,
    thawed: BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    let began = clock::now();
    let records: Vec<Arc<MachineRecord>> = world.keeper.read().machines.values().cloned().collect();
    let count = records.len();
    let scene = Scene {
        world: world.clone(),
        hierarchies: Hierarchies::find().context("could not look at the cgroups")?,
        thawed,
        present: present(world)?,
        kept_up: kept_up(&records).into_iter().map(str::to_owned).collect(),
    };
    let scene = Arc::new(scene);
    let findings = find_all(&scene, records).await?;
    remove_strangers(&scene, &findings).await;
    disconnect_dead(world, &findings).await;
    let running = findings.iter().filter(|it| it.running.is_some()).count();
    begin_all(world, findings).await?;
    let took = clock::now().since(began);
    tracing::info!(machines = count, running, took_ms = took.as_millis(), "took over");
    let mut ips = world.plane.published();
    ips.extend(world.keeper.read().apps.values().flat_map(AppRecord::addresses));
    world.settle(ips).await;
    Ok(())
}

fn present(world: &World) -> anyhow::Result<BTreeSet<OsString>> {
    let entries = std::fs::read_dir(world.paths.machines());
    let names = entries.and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect());
    names.context("could not list the Machines")
}

async fn find_all(
    scene: &Arc<Scene>,
    records: Vec<Arc<MachineRecord>>,
) -> anyhow::Result<Vec<Finding>> {
    let mut looking = JoinSet::new();
    for part in parts(records) {
        let scene = scene.clone();
        looking.spawn(async move {
            let mut findings = Vec::with_capacity(part.len());
            for record in part {
                findings.push(find(&scene, record).await);
            }
            findings
        });
    }
    let mut all = Vec::new();
    while let Some(findings) = looking.join_next().await {
        all.extend(findings.context("the look at the Machines was interrupted")?);
    }
    Ok(all)
}

async fn begin_all(world: &Arc<World>, findings: Vec<Finding>) -> anyhow::Result<()> {
    let mut beginning = JoinSet::new();
    for part in parts(findings) {
        let world = world.clone();
        beginning.spawn(async move { part.into_iter().for_each(|it| begin(&world, it)) });
    }
    while let Some(begun) = beginning.join_next().await {
        begun.context("the begin of the Machines' tasks was interrupted")?;
    }
    Ok(())
}

/// At most [`PARTS`] of about the same length.
fn parts<T>(mut all: Vec<T>) -> Vec<Vec<T>> {
    let len = all.len().div_ceil(PARTS).max(1);
    let mut parts = Vec::with_capacity(PARTS);
    while !all.is_empty() {
        parts.push(all.split_off(all.len().saturating_sub(len)));
    }
    parts
}

async fn find(scene: &Scene, record: Arc<MachineRecord>) -> Finding {
    let world = &scene.world;
    let dir = world.paths.machine(&record.id);
    if !scene.present.contains(OsStr::new(&record.id))
        && let Err(error) = std::fs::create_dir_all(&dir)
    {
        // It is missing after a crash at the worst, and a full disk must not keep the server down: a start makes it.
        tracing::warn!(machine = record.id, %error, "could not make the directory");
    }
    let seen = perch_machine::adopt_among(&scene.hierarchies, &dir, &world.cgroup_parent).await;
    let seen = seen.unwrap_or_else(|error| {
        let error = images::chain(&error);
        tracing::warn!(machine = record.id, error, "unreadable; taken as lost");
        None
    });
    let comes_back = scene.kept_up.contains(&record.id) || !sleeps(&record);
    let was_up = if comes_back { AfterLoss::Launch } else { AfterLoss::Sleep };
    let last_run = seen.as_ref().map_or(0, Machine::run);
    let (found, running) = look(&record, seen, was_up, &scene.thawed).await;
    Finding { record, found, running, last_run }
}

fn begin(world: &Arc<World>, finding: Finding) {
    let Finding { record, found, running, last_run } = finding;
    let policy = launching::policy(&record);
    let mut life = Lifecycle::restore(stored(&record, last_run), policy, found, clock::now());
    if super::api::is_kept_awake(&world.keeper.read(), &record.id, last_run) {
        // A lease never makes sense of an event that could be refused.
        life.handle_event(Event::Lease(Lease::Held), clock::now()).ok();
    }
    if let Some(running) = &running {
        world.note_image(&record.id, running.spec().image.clone());
        inside::listen(world, &record.app, &record.id);
    }
    let history = History::read(&world.paths.machine(&record.id));
    let handle = machine::settle(world, record.id.clone(), life, history, running);
    world.add_handle(record.id.clone(), handle);
    let lease = world.keeper.read().leases.get(&record.id).cloned();
    if let Some(lease) = lease {
        super::api::follow_lease(world, &record.app, &lease);
    }
    let busy = world.keeper.read().busy.get(&record.id).cloned();
    if let Some(busy) = busy {
        super::api::follow_busy(world, &record.app, &busy);
    }
}

async fn look(
    record: &MachineRecord,
    seen: Option<Machine>,
    was_up: AfterLoss,
    thawed: &BTreeMap<String, u64>,
) -> (Found, Option<Machine>) {
    let Some(found) = seen else { return (Found::Nothing { was_up }, None) };
    if found.is_over() {
        let ended = ended(&found).await;
        return (ended.unwrap_or(Found::Nothing { was_up }), None);
    }
    let version = found.spec().env.iter().rev().find(|(name, _)| name == "FLY_MACHINE_VERSION");
    let newest = version.is_some_and(|(_, version)| *version == record.instance_id);
    let config_version =
        if newest { record.config_version } else { record.config_version.saturating_sub(1) };
    (freezers::found(&found, config_version, thawed), Some(found))
}

/// How a run ended that is over; `None` when it was lost. May wait until what is left of it has died.
async fn ended(run: &Machine) -> Option<Found> {
    let exit = match run.wait().await {
        Ok(exit) => exit,
        Err(error) => {
            let (machine, error) = (&run.spec().machine, images::chain(&error));
            tracing::warn!(machine, error, "its end is unknown; taken as lost");
            return None;
        }
    };
    match exit.cause {
        // The shim is never lost alone: the host went down, or somebody killed everything.
        ExitCause::ShimLost => None,
        ExitCause::Exited => Some(Found::Ended { run: run.run(), exit: machine::exit_of(&exit) }),
        ExitCause::NotExecuted(reason) => Some(Found::NotStarted { run: run.run(), reason }),
    }
}

/// A start is stored behind, so the Machine's directory may know of a later run than the store.
fn stored(record: &MachineRecord, last_run: u64) -> Stored {
    let wish = match record.life.wish {
        Wish::Up => perch_core::lifecycle::Wish::Up,
        Wish::Down => perch_core::lifecycle::Wish::Down,
        Wish::Gone => perch_core::lifecycle::Wish::Gone,
    };
    use perch_core::lifecycle::MachineState;
    let state = record.life.state.parse().unwrap_or(MachineState::Stopped);
    let was_going = matches!(state, MachineState::Stopping | MachineState::Replacing);
    // What was going was the run that is stored; whoever came then has started another.
    let is_another = record.life.run < last_run;
    let state = if was_going && is_another { MachineState::Started } else { state };
    Stored {
        state,
        run: record.life.run.max(last_run),
        config_version: record.config_version,
        wish,
    }
}

/// Whether its services put it to sleep and wake it again.
fn sleeps(record: &MachineRecord) -> bool {
    let view = record.config.view();
    let services = &view.services;
    let both = |service: &perch_api::wire::Service| {
        service.autostop != Autostop::Off && service.autostart.unwrap_or(true)
    };
    !services.is_empty() && services.iter().all(both)
}

/// Machines that `min_machines_running` keeps up, per app and group.
fn kept_up(records: &[Arc<MachineRecord>]) -> Vec<&str> {
    let mut counted: std::collections::BTreeMap<(&str, String), u32> =
        std::collections::BTreeMap::new();
    let mut kept = Vec::new();
    for record in records.iter().filter(|record| record.life.wish == Wish::Up) {
        let view = record.config.view();
        let floor = view
            .services
            .iter()
            .filter_map(|service| service.min_machines_running)
            .max()
            .unwrap_or(0);
        let count = counted.entry((&record.app, record.group())).or_default();
        if *count < floor {
            *count += 1;
            kept.push(record.id.as_str());
        }
    }
    kept
}

/// Directories of Machines that no record names: a creation or removal that a crash cut short.
async fn remove_strangers(scene: &Scene, findings: &[Finding]) {
    let known: BTreeSet<&[u8]> = findings.iter().map(|it| it.record.id.as_bytes()).collect();
    for name in &scene.present {
        if !known.contains(name.as_encoded_bytes()) {
            tracing::info!(machine = ?name, "removing what belongs to no Machine");
            remove_stranger(&scene.world, &scene.world.paths.machines().join(name)).await;
        }
    }
}

/// What cannot be removed now stays for the next start: it must not keep everybody else's Machines down.
async fn remove_stranger(world: &World, dir: &std::path::Path) {
    if let Err(error) = perch_machine::remove(dir, &world.cgroup_parent).await {
        let error = images::chain(&error);
        tracing::warn!(dir = %dir.display(), error, "leftovers remain");
    }
}

/// Takes down the links of Machines that do not run.
async fn disconnect_dead(world: &Arc<World>, findings: &[Finding]) {
    let running = findings.iter().filter(|it| it.running.is_some());
    let running: BTreeSet<&str> = running.map(|it| it.record.id.as_str()).collect();
    for name in world.plane.attached() {
        if !running.contains(name.as_str()) {
            world.detach(&name).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_finished_of_the_run_that_it_was_meant_for_and_of_no_later_one() {
        use perch_core::lifecycle::MachineState;
        let mut record = crate::server::records::tests::machine("m");
        (record.life.state, record.life.run) = ("stopping".to_owned(), 4);
        assert_eq!(stored(&record, 4).state, MachineState::Stopping);
        assert_eq!(stored(&record, 5).state, MachineState::Started);
        assert_eq!(stored(&record, 5).run, 5);
    }

    #[test]
    fn nothing_is_lost_when_machines_are_looked_at_in_parts() {
        for count in [0, 1, 3, 4, 5, 101] {
            let parts = parts((0..count).collect());
            assert!(parts.len() <= PARTS && parts.iter().all(|part| !part.is_empty()));
            let mut all = parts.concat();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }
}
