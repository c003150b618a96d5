//! Machines: records here, their lives in their own tasks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use perch_api::server::{DeleteMachine, MachineTarget, Peer};
use perch_api::wire::{
    ApiError, BadHttpOption, LaunchInput, Lease, ListenSocket, Machine, MachineConfig,
    MachineFilter, MachineState, Process, RestartQuery, SignalInput, StartAnswer, StopInput,
    WaitQuery, WaitState,
};
use perch_core::address;
use perch_core::fault::{self, Point};
use perch_core::ids::{MachineId, NetworkId};
use perch_core::lifecycle::{Event, InvalidTransition, Lifecycle, StartBy, StopBy};
use tokio::sync::oneshot;

use super::leases;
use crate::server::clock;
use crate::server::history::{History, Source};
use crate::server::images::{Ready, Reference, api_error};
use crate::server::keeper::{Catalog, Change};
use crate::server::launching;
use crate::server::limits;
use crate::server::machine::{self, Command, Refused};
use crate::server::paging;
use crate::server::records::{LifeRecord, MachineRecord, Wish};
use crate::server::schedule;
use crate::server::seat::Handle;
use crate::server::secrets;
use crate::server::standby;
use crate::server::volumes;
use crate::server::world::World;

/// Number of this host in addresses (PN-11); more hosts come later.
const HOST: u16 = 1;
/// How long Machines may take to measure their memory.
const MEASURE_TIMEOUT: Duration = Duration::from_millis(500);
const KILL: i32 = rustix::process::Signal::KILL.as_raw();

/// Makes a Machine and, unless told otherwise, begins to start it.
pub(crate) async fn create(
    world: Arc<World>,
    peer: Peer,
    app: String,
    input: LaunchInput,
) -> Result<Machine, ApiError> {
    check_region(&world, &input.region)?;
    check_config(&input)?;
    let uid_base = world.host_ids.base(world.keeper.read().staying_app(&app)?.uid_slot);
    let ready = world.images.prepare(&app, &input.config.view().image, uid_base).await?;
    check_secrets(&world, &app, &input).await?;
    let _until_recorded = ready.claim.clone();
    let random = (clock::random(), clock::random());
    let id = MachineId::from_low_bits(random.0).to_string();
    if !input.skip_launch {
        // After the image, which may take longer than room is promised.
        room_for(&world, &id, limits::memory_bytes(&input.config)).await?;
    }
    let (name, wanted, region) = (app.clone(), input.clone(), world.config.region.clone());
    let birth = world.births.read().await;
    let recorded = world
        .keeper
        .write(move |catalog| {
            let record = plan(catalog, &name, &wanted, &ready, &region, random)?;
            runnable(&record, &ready)?;
            standby::check(catalog, &name, &record.id, &wanted.config)?;
            check_ports(&wanted.config)?;
            let (config, mut changes) =
                volumes::attach(catalog, &name, &record.id, &wanted.config)?;
            let record = MachineRecord { config: config.into(), ..record };
            changes.push(Change::PutMachine(Box::new(record.clone())));
            Ok((changes, record))
        })
        .await;
    let record = recorded.inspect_err(|_| world.pager.forget(&id))?;
    let living = brought_to_life(&world, peer.clone(), &record, input.lease_ttl).await;
    let (handle, lease) = match living {
        Ok(living) => living,
        Err(error) => {
            unmake(&world, &record.id).await;
            return Err(error);
        }
    };
    drop(birth);
    world.publish(&app).await;
    world.proxy.app_changed(app.clone());
    if !input.skip_launch {
        ask(&handle, Event::Start(StartBy::User), Source::User(peer)).await?;
    }
    let mut made = get(&world, &target(&app, &record.id))?;
    made.nonce = lease.map(|lease| lease.data.nonce);
    Ok(made)
}

/// A start that the key's absence will fail fails here, where its caller reads why.
async fn check_secrets(world: &Arc<World>, app: &str, input: &LaunchInput) -> Result<(), ApiError> {
    let pinned = secrets::pin(&world.keeper.read(), app, input)?;
    secrets::check_opens(world, app, pinned).await
}

fn check_config(input: &LaunchInput) -> Result<(), ApiError> {
    let config = &input.config;
    let checked = config.check_objects().and_then(|()| config.check_files());
    let checked = checked.and_then(|()| config.check_metadata());
    let checked = checked.and_then(|()| config.check_starts());
    let checked = checked.and_then(|()| config.check_health_checks());
    checked.map_err(|error| ApiError::invalid(error.to_string()))
}

pub(super) fn check_region(world: &World, region: &str) -> Result<(), ApiError> {
    if region.is_empty() || region == world.config.region {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "region {region} has no host; this server is region {}",
        world.config.region
    )))
}

fn plan(
    catalog: &Catalog,
    app: &str,
    input: &LaunchInput,
    ready: &Ready,
    region: &str,
    random: (u64, u64),
) -> Result<MachineRecord, ApiError> {
    let record = catalog.staying_app(app)?;
    let network = NetworkId::new(record.network_id)
        .ok_or_else(|| ApiError::internal("network 0 in the store"))?;
    let ips = catalog.machines.values().map(|machine| machine.private_ip).collect();
    let links: BTreeSet<_> = catalog.machines.values().map(|machine| machine.link_ip).collect();
    let refused = |error: address::AddressError| {
        ApiError::new(503, error.to_string()).with_word("insufficient_capacity")
    };
    let id = MachineId::from_low_bits(random.0).to_string();
    if catalog.machines.contains_key(&id) {
        return Err(ApiError::internal("the drawn Machine ID is taken; repeat the call"));
    }
    let now = clock::stamp();
    Ok(MachineRecord {
        name: if input.name.is_empty() { generated_name(random.0) } else { input.name.clone() },
        id,
        app: app.to_owned(),
        region: region.to_owned(),
        config: input.config.clone().into(),
        config_version: 1,
        instance_id: clock::ulid(),
        image: ready.digest.clone(),
        private_ip: address::plan_machine(network, HOST, &ips, random.1).map_err(refused)?,
        link_ip: address::plan_link(&links).map_err(refused)?.machine,
        cordoned: input.skip_service_registration,
        secrets: secrets::pin(catalog, app, input)?,
        life: LifeRecord { state: MachineState::Created.to_string(), run: 0, wish: Wish::Down },
        schedule: schedule::from_now_on(&input.config),
        created_at: now.clone(),
        updated_at: now,
    })
}

/// Two words, as Fly names Machines.
fn generated_name(random: u64) -> String {
    const FIRST: [&str; 16] = [
        "autumn",
        "bold",
        "calm",
        "dawn",
        "empty",
        "frosty",
        "green",
        "hidden",
        "icy",
        "late",
        "misty",
        "nameless",
        "polished",
        "quiet",
        "silent",
        "wandering",
    ];
    const SECOND: [&str; 16] = [
        "bird", "brook", "cloud", "dew", "field", "fire", "frost", "glade", "haze", "hill", "lake",
        "leaf", "moon", "pond", "river", "star",
    ];
    let (a, b) = ((random & 15) as usize, (random >> 4 & 15) as usize);
    format!("{}-{}-{}", FIRST[a], SECOND[b], random >> 8 & 0xfff)
}

/// A Machine without a program would only fail later.
fn runnable(record: &MachineRecord, ready: &Ready) -> Result<(), ApiError> {
    launching::argv(record, &ready.config).map(|_| ()).map_err(api_error)
}

/// Nothing half-made stays: the record goes with all that there is of the Machine.
async fn unmake(world: &Arc<World>, id: &str) {
    match world.handle(id) {
        Some(handle) => {
            let asked = handle.ask(Event::Destroy, Source::Platform).await;
            tracing::debug!(machine = id, ?asked, "unmade");
        }
        None => world.remove_machine(id).await,
    }
}

async fn brought_to_life(
    world: &Arc<World>,
    peer: Peer,
    record: &MachineRecord,
    lease_ttl: u64,
) -> Result<(Handle, Option<Lease>), ApiError> {
    let handle = begin(world, record)?;
    let lease = lease_for(world, peer, record, lease_ttl).await?;
    Ok((handle, lease))
}

/// Starts the task of a Machine that was never started.
fn begin(world: &Arc<World>, record: &MachineRecord) -> Result<Handle, ApiError> {
    let dir = world.paths.machine(&record.id);
    std::fs::create_dir_all(&dir).map_err(|error| {
        ApiError::internal(format!("could not make {}: {error}", dir.display()))
    })?;
    let life = Lifecycle::new(record.config_version, launching::policy(record));
    let handle = machine::settle(world, record.id.clone(), life, History::default(), None);
    world.add_handle(record.id.clone(), handle.clone());
    Ok(handle)
}

async fn lease_for(
    world: &Arc<World>,
    peer: Peer,
    record: &MachineRecord,
    ttl: u64,
) -> Result<Option<Lease>, ApiError> {
    if ttl == 0 {
        return Ok(None);
    }
    let input = perch_api::wire::LeaseInput { ttl, description: "created".to_owned() };
    leases::acquire(world.clone(), peer, target(&record.app, &record.id), input).await.map(Some)
}

fn target(app: &str, id: &str) -> MachineTarget {
    MachineTarget { app: app.to_owned(), id: id.to_owned(), nonce: None }
}

/// Replaces a Machine's config.
pub(crate) async fn update(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    input: LaunchInput,
) -> Result<Machine, ApiError> {
    leases::check(&world, &target)?;
    check_config(&input)?;
    let uid_base = world.host_ids.base(world.keeper.read().staying_app(&target.app)?.uid_slot);
    let ready = world.images.prepare(&target.app, &input.config.view().image, uid_base).await?;
    check_secrets(&world, &target.app, &input).await?;
    let _until_recorded = ready.claim.clone();
    let handle = handle(&world, &target)?;
    let skip_launch = input.skip_launch;
    let wanted = target.clone();
    let record =
        world.keeper.write(move |catalog| decide_update(catalog, &wanted, input, &ready)).await?;
    fault::pass(Point::ServerUpdateSaved);
    let event = Event::Update {
        config_version: record.config_version,
        policy: launching::policy(&record),
        asleep: machine::asleep(skip_launch),
    };
    ask(&handle, event, Source::User(peer)).await?;
    world.publish(&target.app).await;
    world.proxy.app_changed(target.app.clone());
    get(&world, &target)
}

/// Refuses `http_options` that cannot be obeyed.
fn check_ports(config: &MachineConfig) -> Result<(), ApiError> {
    for (number, service) in config.view().services.iter().enumerate() {
        for (port, it) in service.ports.iter().enumerate() {
            if let Some(BadHttpOption { key, text, remedy }) = it.http().1.first() {
                return Err(ApiError::invalid(format!(
                    "config.services[{number}].ports[{port}].http_options.{key}: {text}; {remedy}"
                )));
            }
        }
    }
    Ok(())
}

/// The image may have taken its time: what was true before is looked at again.
fn decide_update(
    catalog: &Catalog,
    target: &MachineTarget,
    input: LaunchInput,
    ready: &Ready,
) -> Result<(Vec<Change>, MachineRecord), ApiError> {
    leases::check_in(catalog, target)?;
    let pinned = secrets::pin(catalog, &target.app, &input)?;
    let old = catalog.machine(&target.app, &target.id)?;
    standby::check(catalog, &target.app, &target.id, &input.config)?;
    check_ports(&input.config)?;
    let config = volumes::keep(catalog, old, &input.config)?;
    let record = updated(old, LaunchInput { config, ..input }, ready)?;
    let record = MachineRecord { secrets: pinned, ..record };
    runnable(&record, ready)?;
    let mut changes = secrets::forgotten_with(catalog, &target.app, Some(&record), None);
    changes.push(Change::PutMachine(Box::new(record.clone())));
    Ok((changes, record))
}

fn updated(
    old: &MachineRecord,
    input: LaunchInput,
    ready: &Ready,
) -> Result<MachineRecord, ApiError> {
    if !input.current_version.is_empty() && input.current_version != old.instance_id {
        return Err(ApiError::conflict(format!(
            "machine {} is at version {}, not {}: somebody changed it meanwhile",
            old.id, old.instance_id, input.current_version
        )));
    }
    Ok(MachineRecord {
        schedule: schedule::after_update(old, &input.config),
        config: input.config.into(),
        config_version: old.config_version + 1,
        instance_id: clock::ulid(),
        image: ready.digest.clone(),
        updated_at: clock::stamp(),
        ..old.clone()
    })
}

/// Lists an app's Machines.
pub(crate) fn list(
    world: &World,
    app: &str,
    filter: &MachineFilter,
) -> Result<Vec<Machine>, ApiError> {
    let catalog = world.keeper.read();
    catalog.app(app)?;
    let all = catalog.machines_of(app).filter_map(|record| wire_machine(world, &catalog, record));
    Ok(all.filter(|machine| matches(machine, filter)).collect())
}

fn matches(machine: &Machine, filter: &MachineFilter) -> bool {
    let metadata = &machine.config.view().metadata;
    let gone = matches!(machine.state, MachineState::Destroyed | MachineState::Destroying);
    (filter.include_deleted || !gone)
        && filter.region.as_ref().is_none_or(|region| *region == machine.region)
        && filter.state.is_none_or(|state| state == machine.state)
        && filter.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value))
}

/// Reads one Machine.
pub(crate) fn get(world: &World, target: &MachineTarget) -> Result<Machine, ApiError> {
    let catalog = world.keeper.read();
    let record = catalog.machine(&target.app, &target.id)?;
    wire_machine(world, &catalog, record).ok_or_else(|| not_found(target))
}

fn not_found(target: &MachineTarget) -> ApiError {
    ApiError::not_found(format!("machine not found: {} in app {}", target.id, target.app))
}

fn wire_machine(world: &World, catalog: &Catalog, record: &MachineRecord) -> Option<Machine> {
    let status = world.handle(&record.id)?.status();
    let config = record.config.read();
    let reference = Reference::parse(&config.view().image);
    Some(Machine {
        id: record.id.clone(),
        name: record.name.clone(),
        state: status.state,
        region: record.region.clone(),
        image_ref: reference.image_ref(&record.image),
        instance_id: record.instance_id.clone(),
        private_ip: record.private_ip,
        created_at: record.created_at.clone(),
        updated_at: record.updated_at.clone(),
        config: MachineConfig::clone(&config),
        events: status.history.newest_first(),
        checks: super::super::checks::shown(world, record, config.view(), &status),
        nonce: None,
        host_status: "ok".to_owned(),
        cordoned: record.cordoned,
        perch_depth: None,
        perch_memory: None,
        perch_busy: super::busy::of(catalog, &record.id, status.run),
    })
}

/// Adds how deep Machines sleep and where their memory is.
pub(crate) async fn measured(world: &World, machines: Vec<Machine>) -> Vec<Machine> {
    let deadline = tokio::time::Instant::now() + MEASURE_TIMEOUT;
    // All are asked before the first is waited for.
    let mut asked = Vec::new();
    for machine in machines {
        let answer = ask_memory(world, &machine, deadline).await;
        asked.push((machine, answer));
    }
    let swap = paging::swap();
    let mut done = Vec::new();
    for (mut machine, answer) in asked {
        let memory = match answer {
            Some(answer) => tokio::time::timeout_at(deadline, answer).await,
            None => Ok(Ok(None)),
        };
        // One that does not answer in time is shown without.
        let memory = memory.ok().and_then(Result::ok).flatten();
        (machine.perch_depth, machine.perch_memory) = paging::shown(machine.state, memory, swap);
        done.push(machine);
    }
    done
}

async fn ask_memory(
    world: &World,
    machine: &Machine,
    deadline: tokio::time::Instant,
) -> Option<oneshot::Receiver<Option<perch_machine::Memory>>> {
    if !matches!(machine.state, MachineState::Started | MachineState::Suspended) {
        return None;
    }
    let handle = world.handle(&machine.id)?;
    let (reply, answer) = oneshot::channel();
    let sent = tokio::time::timeout_at(deadline, handle.send(Command::Memory { reply })).await;
    sent.is_ok_and(|sent| sent).then_some(answer)
}

/// Removes a Machine; a running one only by force.
pub(crate) async fn delete(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    how: DeleteMachine,
) -> Result<(), ApiError> {
    leases::check(&world, &target)?;
    let handle = handle(&world, &target)?;
    let state = handle.status().state;
    let down = matches!(
        state,
        MachineState::Created
            | MachineState::Stopped
            | MachineState::Suspended
            | MachineState::Failed
    );
    if !down && !how.force {
        return Err(ApiError::precondition(format!(
            "machine {} is {state}; stop it first, or remove it by force",
            target.id
        )));
    }
    ask(&handle, Event::Destroy, Source::User(peer)).await
}

/// Begins to start a Machine.
pub(crate) async fn start(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
) -> Result<StartAnswer, ApiError> {
    leases::check(&world, &target)?;
    let handle = handle(&world, &target)?;
    let pinned = world.keeper.read().machine(&target.app, &target.id)?.secrets;
    secrets::check_opens(&world, &target.app, pinned).await?;
    let previous = handle.status().state;
    room_to_start(&world, &target.id).await?;
    ask(&handle, Event::Start(StartBy::User), Source::User(peer)).await?;
    Ok(StartAnswer {
        message: String::new(),
        status: String::new(),
        previous_state: previous.to_string(),
    })
}

/// Waits until a start of a Machine fits into memory; one that has a run needs no more.
///
/// # Errors
/// 503, as a caller of the app would get.
pub(crate) async fn room_to_start(world: &Arc<World>, id: &str) -> Result<(), ApiError> {
    let state = world.handle(id).map(|handle| handle.status().state);
    match state {
        Some(MachineState::Created | MachineState::Stopped | MachineState::Failed) => {
            room_for(world, id, world.memory_most(id)).await
        }
        _ => Ok(()),
    }
}

/// Waits until a start fits into memory, as long as a caller of the app would; at most as long as most would.
async fn room_for(world: &Arc<World>, id: &str, most: u64) -> Result<(), ApiError> {
    let timeout = world.start_timeout(id).min(perch_core::service::START_TIMEOUT_DEFAULT);
    let found = world.room_for(id, most, timeout).await;
    found.map_err(|reason| ApiError::new(503, reason).with_word("insufficient_capacity"))
}

/// Begins to stop a Machine.
pub(crate) async fn stop(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    input: StopInput,
) -> Result<(), ApiError> {
    leases::check(&world, &target)?;
    let by = StopBy::User {
        signal: input.signal.map(perch_api::wire::Signal::number),
        timeout: input.timeout.map(|length| length.0),
    };
    ask(&handle(&world, &target)?, Event::Stop(by), Source::User(peer)).await
}

/// Begins to suspend a Machine; 412 unless it is started, suspending or suspended (MA-06).
pub(crate) async fn suspend(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
) -> Result<(), ApiError> {
    leases::check(&world, &target)?;
    ask(&handle(&world, &target)?, Event::Suspend, Source::User(peer)).await
}

/// Begins to restart a Machine. By force nothing is asked of its program.
pub(crate) async fn restart(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    query: RestartQuery,
) -> Result<(), ApiError> {
    leases::check(&world, &target)?;
    let signal = query.signal.map(perch_api::wire::Signal::number);
    let event = Event::Restart {
        signal: if query.force_stop { Some(KILL) } else { signal },
        timeout: query.timeout.map(|length| length.0),
    };
    ask(&handle(&world, &target)?, event, Source::User(peer)).await
}

/// Sends a signal to a Machine's program.
pub(crate) async fn signal(
    world: &World,
    target: &MachineTarget,
    input: SignalInput,
) -> Result<(), ApiError> {
    leases::check(world, target)?;
    let (reply, answer) = oneshot::channel();
    let number = input.signal.number();
    handle(world, target)?.send(Command::Signal { number, reply }).await;
    let answered = answer.await.map_err(|_| not_found(target))?;
    answered.map_err(ApiError::precondition)
}

/// Resolves when one of the wanted states is reached.
pub(crate) async fn wait(
    world: &World,
    target: &MachineTarget,
    query: &WaitQuery,
) -> Result<(), ApiError> {
    let Some(handle) = world.handle(&target.id) else { return gone(target, query) };
    world.keeper.read().machine(&target.app, &target.id)?;
    let mut status = handle.watch();
    loop {
        {
            let now = status.borrow_and_update();
            let counts = happened_after(query, &now.history) && is_version(world, target, query);
            if counts && query.states.iter().any(|it| reached(*it, now.state, now.settled)) {
                return Ok(());
            }
        }
        if status.changed().await.is_err() {
            return gone(target, query);
        }
    }
}

/// Ids of events sort by time.
fn happened_after(query: &WaitQuery, history: &History) -> bool {
    let Some(from) = &query.from_event_id else { return true };
    history.newest().is_some_and(|event| *from < event.id)
}

fn is_version(world: &World, target: &MachineTarget, query: &WaitQuery) -> bool {
    let Some(version) = &query.version else { return true };
    let catalog = world.keeper.read();
    catalog.machines.get(&target.id).is_some_and(|machine| machine.instance_id == *version)
}

fn gone(target: &MachineTarget, query: &WaitQuery) -> Result<(), ApiError> {
    if query.states.contains(&WaitState::Destroyed) { Ok(()) } else { Err(not_found(target)) }
}

fn reached(wanted: WaitState, state: MachineState, settled: bool) -> bool {
    match wanted {
        WaitState::Started => state == MachineState::Started,
        WaitState::Stopped => state == MachineState::Stopped,
        WaitState::Suspended => state == MachineState::Suspended,
        WaitState::Destroyed => state == MachineState::Destroyed,
        WaitState::Settled => settled,
    }
}

/// Gives a Machine no more traffic, or again.
pub(crate) async fn cordon(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    cordoned: bool,
) -> Result<(), ApiError> {
    leases::check(&world, &target)?;
    let handle = handle(&world, &target)?;
    let wanted = target.clone();
    world.keeper.write(move |catalog| decide_cordon(catalog, &wanted, cordoned)).await?;
    let kind = if cordoned { "cordon" } else { "uncordon" };
    handle.note(kind, Source::User(peer), String::new()).await;
    world.proxy.app_changed(target.app);
    Ok(())
}

fn decide_cordon(
    catalog: &Catalog,
    target: &MachineTarget,
    cordoned: bool,
) -> Result<(Vec<Change>, ()), ApiError> {
    leases::check_in(catalog, target)?;
    let mut record = catalog.machine(&target.app, &target.id)?.clone();
    record.cordoned = cordoned;
    Ok((vec![Change::PutMachine(Box::new(record))], ()))
}

/// Sets or removes one metadata entry; no new version (MA-01).
pub(crate) async fn set_metadata(
    world: Arc<World>,
    target: MachineTarget,
    key: String,
    value: Option<String>,
) -> Result<(), ApiError> {
    leases::check(&world, &target)?;
    world.keeper.write(move |catalog| decide_metadata(catalog, &target, &key, value)).await
}

fn decide_metadata(
    catalog: &Catalog,
    target: &MachineTarget,
    key: &str,
    value: Option<String>,
) -> Result<(Vec<Change>, ()), ApiError> {
    leases::check_in(catalog, target)?;
    let mut record = catalog.machine(&target.app, &target.id)?.clone();
    let changed = record.config.read().with_metadata(key, value.as_deref());
    record.config = changed.map_err(|error| ApiError::invalid(error.to_string()))?.into();
    Ok((vec![Change::PutMachine(Box::new(record))], ()))
}

/// Lists what runs in a Machine.
pub(crate) async fn processes(
    world: &World,
    target: &MachineTarget,
) -> Result<Vec<Process>, ApiError> {
    let (reply, answer) = oneshot::channel();
    handle(world, target)?.send(Command::Processes { reply }).await;
    let listed = answer.await.map_err(|_| not_found(target))?.map_err(ApiError::precondition)?;
    Ok(listed.into_iter().map(wire_process).collect())
}

fn wire_process(process: perch_machine::Process) -> Process {
    let socket = |socket: perch_machine::ListenSocket| ListenSocket {
        proto: socket.proto,
        address: socket.address,
    };
    Process {
        pid: process.pid,
        stime: process.stime,
        rtime: process.rtime,
        command: process.command,
        directory: process.directory,
        cpu: process.cpu,
        rss: process.rss,
        listen_sockets: process.listen_sockets.into_iter().map(socket).collect(),
    }
}

fn handle(world: &World, target: &MachineTarget) -> Result<Handle, ApiError> {
    world.keeper.read().machine(&target.app, &target.id)?;
    world.handle(&target.id).ok_or_else(|| not_found(target))
}

/// Asks a Machine for something, and turns a refusal into an answer of the API.
pub(crate) async fn ask(handle: &Handle, event: Event, source: Source) -> Result<(), ApiError> {
    match handle.ask(event, source).await {
        Some(Ok(())) => Ok(()),
        Some(Err(Refused::Invalid(InvalidTransition { state, verb }))) => {
            Err(ApiError::precondition(format!("unable to {verb} machine: it is {state}")))
        }
        Some(Err(Refused::NotStored(cause))) => Err(not_stored(cause)),
        None => Err(ApiError::not_found("machine not found: it was destroyed meanwhile")),
    }
}

/// The caller must not take for done what a restart of the server would undo.
fn not_stored(cause: ApiError) -> ApiError {
    let error = format!(
        "the machine obeys, but a restart of the server would undo it, because it could not be stored: {}",
        cause.error
    );
    ApiError { error, ..cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::{LeaseRecord, tests as records};

    #[test]
    fn a_config_with_an_array_for_an_object_is_refused() {
        let check = |guest: &str| {
            let text = format!(r#"{{"config": {{"image": "a", "guest": {guest}}}}}"#);
            check_config(&serde_json::from_str(&text).expect("read"))
        };
        assert_eq!(check(r#"{"cpus": 1}"#), Ok(()));
        let refused = check(r#"["shared", 1, 256]"#).expect_err("an array");
        assert_eq!(refused.code, 422);
        assert!(refused.error.contains("config.guest"), "{refused}");
    }

    /// A Machine that somebody leased after the first look at its lease.
    fn leased_meanwhile() -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        catalog.apply(Change::PutMachine(Box::new(records::machine("m"))));
        catalog.apply(Change::PutLease(LeaseRecord {
            machine: "m".to_owned(),
            nonce: "theirs".to_owned(),
            expires_at: i64::MAX,
            owner: "uid 7 (pid 8)".to_owned(),
            description: String::new(),
        }));
        catalog
    }

    fn ready() -> Ready {
        let config =
            perch_machine::ImageConfig { cmd: vec!["/x".to_owned()], ..Default::default() };
        Ready { digest: "sha256:0".to_owned(), config, claim: "".into() }
    }

    /// A change without the nonce is refused and says who has the lease; with it, it is made (MA-61).
    fn check(what: &str, decide: impl Fn(&MachineTarget) -> Result<usize, ApiError>) {
        let stranger = target("web", "m");
        let refused = decide(&stranger).expect_err(what);
        assert_eq!(refused.code, 409, "{what}: {refused}");
        assert!(refused.to_string().contains("uid 7 (pid 8)"), "{what}: {refused}");
        let elsewhere = target("other", "m");
        let refused = decide(&elsewhere).expect_err(what);
        assert_eq!(refused.code, 404, "{what}: who has the lease is not for other apps: {refused}");
        let holder = MachineTarget { nonce: Some("theirs".to_owned()), ..stranger };
        assert_eq!(decide(&holder).expect(what), 1, "{what}");
    }

    #[test]
    fn a_lease_that_somebody_took_during_the_call_forbids_the_change() {
        let (catalog, ready) = (leased_meanwhile(), ready());
        let input = || LaunchInput::new(MachineConfig::clone(&records::machine("m").config.read()));
        check("update", |target| Ok(decide_update(&catalog, target, input(), &ready)?.0.len()));
        check("cordon", |target| Ok(decide_cordon(&catalog, target, true)?.0.len()));
        let value = || Some("v".to_owned());
        check("metadata", |target| Ok(decide_metadata(&catalog, target, "k", value())?.0.len()));
    }
}
