//! After a start: what was stored meets what is really there.
//!
//! A run that lives is adopted and never started again. One that ended while no server looked gets
//! its exit event. One that was lost with the host comes back, except that Machines which sleep and
//! wake by themselves stay asleep until somebody needs them (DESIGN 8).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;
use perch_api::wire::Autostop;
use perch_core::lifecycle::{AfterLoss, Event, Found, Lease, Lifecycle, Stored};
use perch_machine::{ExitCause, Machine};

use super::history::History;
use super::inside;
use super::launching;
use super::machine;
use super::records::{AppRecord, MachineRecord, Wish};
use super::world::World;
use super::{clock, freezers, images};

/// What was found of one Machine.
struct Finding {
    record: MachineRecord,
    found: Found,
    running: Option<Machine>,
    /// The last run that the Machine's directory knows of.
    last_run: u64,
}

/// Starts a task for each stored Machine, and clears what belongs to none. `thawed` are the runs that a proxy has
/// thawed while no server was there.
///
/// Everything is looked at, and dead links are taken down, before the first task begins: a task may start its
/// Machine at once, and what it makes must not be taken for a leftover.
///
/// # Errors
/// When the host cannot be looked at.
pub(crate) async fn adopt_all(
    world: &Arc<World>,
    thawed: &BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    let began = clock::now();
    let records: Vec<MachineRecord> = world.keeper.read().machines.values().cloned().collect();
    let kept_up: BTreeSet<&str> = kept_up(&records).into_iter().collect();
    let mut findings = Vec::new();
    for record in &records {
        findings.push(find(world, record, kept_up.contains(record.id.as_str()), thawed).await?);
    }
    remove_strangers(world, &records).await?;
    disconnect_dead(world, &findings).await;
    let running = findings.iter().filter(|it| it.running.is_some()).count();
    for finding in findings {
        begin(world, finding);
    }
    let took = clock::now().since(began);
    tracing::info!(machines = records.len(), running, took_ms = took.as_millis(), "took over");
    let mut ips = world.plane.published();
    ips.extend(world.keeper.read().apps.values().flat_map(AppRecord::addresses));
    world.settle(ips).await;
    Ok(())
}

async fn find(
    world: &Arc<World>,
    record: &MachineRecord,
    kept_up: bool,
    thawed: &BTreeMap<String, u64>,
) -> anyhow::Result<Finding> {
    let dir = world.paths.machine(&record.id);
    if let Err(error) = std::fs::create_dir_all(&dir) {
        // It is missing after a crash at the worst, and a full disk must not keep the server down: a start makes it.
        tracing::warn!(machine = record.id, %error, "could not make the directory");
    }
    let seen = perch_machine::adopt(&dir, &world.cgroup_parent).await.unwrap_or_else(|error| {
        let error = images::chain(&error);
        tracing::warn!(machine = record.id, error, "unreadable; taken as lost");
        None
    });
    let after_loss = if kept_up || !sleeps(record) { AfterLoss::Launch } else { AfterLoss::Sleep };
    let last_run = seen.as_ref().map_or(0, Machine::run);
    let (found, running) = look(record, seen, after_loss, thawed).await;
    Ok(Finding { record: record.clone(), found, running, last_run })
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
    let handle = machine::spawn(world.clone(), record.id.clone(), life, history, running);
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
    let state = record.life.state.parse().unwrap_or(perch_core::lifecycle::MachineState::Stopped);
    Stored {
        state,
        run: record.life.run.max(last_run),
        config_version: record.config_version,
        wish,
    }
}

/// Whether its services put it to sleep and wake it again.
fn sleeps(record: &MachineRecord) -> bool {
    let services = &record.config.view().services;
    let both = |service: &perch_api::wire::Service| {
        service.autostop != Autostop::Off && service.autostart.unwrap_or(true)
    };
    !services.is_empty() && services.iter().all(both)
}

/// Machines that `min_machines_running` keeps up, per app and group.
fn kept_up(records: &[MachineRecord]) -> Vec<&str> {
    let mut counted: std::collections::BTreeMap<(&str, &str), u32> =
        std::collections::BTreeMap::new();
    let mut kept = Vec::new();
    for record in records.iter().filter(|record| record.life.wish == Wish::Up) {
        let services = record.config.view().services.iter();
        let floor = services.filter_map(|service| service.min_machines_running).max().unwrap_or(0);
        let count = counted.entry((&record.app, record.group())).or_default();
        if *count < floor {
            *count += 1;
            kept.push(record.id.as_str());
        }
    }
    kept
}

/// Directories of Machines that no record names: a creation or removal that a crash cut short.
async fn remove_strangers(world: &Arc<World>, records: &[MachineRecord]) -> anyhow::Result<()> {
    let known: BTreeSet<&[u8]> = records.iter().map(|record| record.id.as_bytes()).collect();
    let entries =
        std::fs::read_dir(world.paths.machines()).context("could not list the Machines")?;
    for entry in entries {
        let entry = entry.context("could not list the Machines")?;
        let name = entry.file_name();
        if !known.contains(name.as_encoded_bytes()) {
            tracing::info!(machine = ?name, "removing what belongs to no Machine");
            remove_stranger(world, &entry.path()).await;
        }
    }
    Ok(())
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
