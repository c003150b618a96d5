//! Calls about volumes.

use std::sync::Arc;

use perch_api::wire::{
    ApiError, CreateVolume, ExtendVolume, ExtendedVolume, Snapshot, UpdateVolume, Volume,
};
use perch_machine::volumes::{self as files, Growth};

use crate::server::clock;
use crate::server::copying::Copy;
use crate::server::keeper::{Catalog, Change};
use crate::server::records::{SnapshotRecord, VolumeRecord};
use crate::server::volumes::{
    blocking, dir, discard, machine_dir, remove, remove_old, settle, snapshot, snapshot_dir,
};
use crate::server::world::World;

/// What is made where no size is named (MA-91).
const SIZE_GB_DEFAULT: u64 = 3;
/// A file system of this length is made in a second; the file systems below have longer files.
const SIZE_GB_MAX: u64 = 4096;
/// Days for which snapshots are kept.
const RETENTION_DEFAULT: u64 = 5;
const RETENTION_MAX: u64 = 60;
const NAME_LEN_MAX: usize = 30;
/// Each is some files and a loop device; more than one host ever runs.
const VOLUMES_MAX: usize = 10_000;
/// Each is a whole copy at the worst.
const SNAPSHOTS_MAX: usize = 100;
/// The host's number among those of the server, as Fly tells zones.
const ZONE: &str = "0001";
const GIB: u64 = 1 << 30;

/// Lists an app's volumes by id.
pub(crate) fn list(world: &World, app: &str) -> Result<Vec<Volume>, ApiError> {
    let catalog = world.keeper.read();
    known(&catalog, app)?;
    Ok(catalog.volumes_of(app).map(|record| wire(world, record)).collect())
}

/// An app that is gone is known while there is a volume of it.
fn known(catalog: &Catalog, app: &str) -> Result<(), ApiError> {
    match catalog.volumes_of(app).next() {
        Some(_) => Ok(()),
        None => catalog.app(app).map(|_| ()),
    }
}

fn find(world: &World, app: &str, id: &str) -> Result<VolumeRecord, ApiError> {
    let catalog = world.keeper.read();
    known(&catalog, app)?;
    catalog.volume(app, id).cloned()
}

/// Reads a volume.
pub(crate) fn get(world: &World, app: &str, id: &str) -> Result<Volume, ApiError> {
    find(world, app, id).map(|record| wire(world, &record))
}

/// What a new volume begins with.
enum Source {
    Nothing,
    Volume(VolumeRecord),
    Snapshot(SnapshotRecord),
}

impl Source {
    fn find(catalog: &Catalog, app: &str, input: &CreateVolume) -> Result<Self, ApiError> {
        match (input.source_volume_id.as_str(), input.snapshot_id.as_str()) {
            ("", "") => Ok(Self::Nothing),
            (volume, "") => catalog.volume(app, volume).cloned().map(Self::Volume),
            ("", id) => {
                let org = &catalog.app(app)?.org;
                let own = |it: &&SnapshotRecord| it.app == app && it.org == *org;
                let found = catalog.snapshots.get(id).filter(own).cloned();
                let missing = || ApiError::not_found(format!("app {app} has no snapshot {id}"));
                found.map(Self::Snapshot).ok_or_else(missing)
            }
            _ => Err(ApiError::invalid("name a snapshot or a source volume, not both")),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Nothing => "",
            Self::Volume(it) => &it.name,
            Self::Snapshot(it) => &it.name,
        }
    }

    fn size_gb(&self) -> Option<u64> {
        match self {
            Self::Nothing => None,
            Self::Volume(it) => Some(it.size_gb),
            Self::Snapshot(it) => Some(it.size_gb),
        }
    }
}

/// Makes a volume.
pub(crate) async fn create(
    world: Arc<World>,
    app: String,
    input: CreateVolume,
) -> Result<Volume, ApiError> {
    // Who has the source, and how long it is, must not change between the plan and the copy.
    let turn = match input.source_volume_id.as_str() {
        "" => None,
        id => Some(world.volume_turns.take(&find(&world, &app, id)?.id).await),
    };
    let (record, source) = plan(&world, &app, &input)?;
    let to = dir(&world, &record.id);
    make(&world, &record, source).await?;
    drop(turn);
    let put = record.clone();
    let kept = world.keeper.write(move |catalog| {
        catalog.staying_app(&put.app)?;
        Ok((vec![Change::PutVolume(put)], ()))
    });
    if let Err(error) = kept.await {
        discard(to).await;
        return Err(error);
    }
    settle(to).await;
    Ok(wire(&world, &record))
}

fn plan(
    world: &World,
    app: &str,
    input: &CreateVolume,
) -> Result<(VolumeRecord, Source), ApiError> {
    let catalog = world.keeper.read();
    let org = catalog.staying_app(app)?.org.clone();
    let source = Source::find(&catalog, app, input)?;
    let name = if input.name.is_empty() { source.name() } else { &input.name };
    check_name(name)?;
    super::machines::check_region(world, &input.region)?;
    if !matches!(input.fstype.as_str(), "" | "ext4") {
        return Err(ApiError::invalid("fstype must be \"ext4\"; there are no raw volumes here"));
    }
    let size_gb = input.size_gb.or(source.size_gb()).unwrap_or(SIZE_GB_DEFAULT);
    check_size(size_gb)?;
    if let Some(least) = source.size_gb().filter(|least| size_gb < *least) {
        return Err(ApiError::invalid(format!(
            "size_gb is {size_gb}; a copy is not smaller than its source, which has {least} GB"
        )));
    }
    let retention = input.snapshot_retention.unwrap_or(RETENTION_DEFAULT);
    check_retention(retention)?;
    if VOLUMES_MAX <= catalog.volumes.len() {
        return Err(ApiError::invalid(format!("this server already has {VOLUMES_MAX} volumes")));
    }
    let record = VolumeRecord {
        id: clock::word_id("vol_"),
        app: app.to_owned(),
        org,
        name: name.to_owned(),
        region: world.config.region.clone(),
        size_gb,
        state: VolumeRecord::CREATED.to_owned(),
        machine: None,
        created_at: clock::unix_secs(),
        snapshot_retention: retention,
        daily_snapshots: input.auto_backup_enabled.unwrap_or(world.clones_cheaply),
    };
    Ok((record, source))
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "name {name:?} is not possible: a volume's name has 1 to {NAME_LEN_MAX} lower-case letters, digits and underscores"
    )))
}

fn check_size(size_gb: u64) -> Result<(), ApiError> {
    if (1..=SIZE_GB_MAX).contains(&size_gb) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("size_gb is {size_gb}; a volume has 1 to {SIZE_GB_MAX} GB")))
}

fn check_retention(days: u64) -> Result<(), ApiError> {
    if (1..=RETENTION_MAX).contains(&days) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "snapshot_retention is {days}; snapshots are kept for 1 to {RETENTION_MAX} days"
    )))
}

/// Makes the files, while nobody else has a turn at the source.
async fn make(world: &Arc<World>, record: &VolumeRecord, source: Source) -> Result<(), ApiError> {
    let (to, bytes, id) = (dir(world, &record.id), record.size_gb * GIB, record.id.clone());
    let _copy = match &source {
        Source::Volume(it) => Copy::begin(world, it).await,
        Source::Nothing | Source::Snapshot(_) => None,
    };
    let (from, machine, name) = match source {
        Source::Nothing => return blocking(move || files::make(&to, bytes).map(drop)).await,
        Source::Volume(it) => (dir(world, &it.id), machine_dir(world, &it), it.id),
        Source::Snapshot(it) => (snapshot_dir(world, &it.id), None, it.id),
    };
    let made = to.clone();
    let copied = blocking(move || {
        files::copy(&from, &made, machine.as_deref(), &name)?;
        files::grow(&made, bytes, None, &id)
    });
    let copied = copied.await;
    if copied.is_err() {
        discard(to).await;
    }
    copied.map(drop)
}

/// Changes what is done with a volume's snapshots.
pub(crate) async fn update(
    world: Arc<World>,
    app: String,
    id: String,
    input: UpdateVolume,
) -> Result<Volume, ApiError> {
    if let Some(days) = input.snapshot_retention {
        check_retention(days)?;
    }
    find(&world, &app, &id)?;
    let (wanted, name) = (id.clone(), app.clone());
    let changed = move |catalog: &Catalog| {
        let mut record = catalog.volume(&name, &wanted)?.clone();
        record.snapshot_retention = input.snapshot_retention.unwrap_or(record.snapshot_retention);
        record.daily_snapshots = input.auto_backup_enabled.unwrap_or(record.daily_snapshots);
        Ok((vec![Change::PutVolume(record)], ()))
    };
    world.keeper.write(changed).await?;
    get(&world, &app, &id)
}

/// Removes a volume with its data; its snapshots stay for their days.
pub(crate) async fn delete(world: Arc<World>, app: String, id: String) -> Result<Volume, ApiError> {
    find(&world, &app, &id)?;
    let record = world.keeper.write(move |catalog| decide_delete(catalog, &app, &id)).await?;
    remove(&world, &record).await?;
    Ok(wire(&world, &record))
}

fn decide_delete(
    catalog: &Catalog,
    app: &str,
    id: &str,
) -> Result<(Vec<Change>, VolumeRecord), ApiError> {
    let record = catalog.volume(app, id)?;
    if let Some(machine) = &record.machine {
        return Err(ApiError::precondition(format!(
            "volume is currently bound to machine: {machine}; destroy the machine first, the volume stays"
        )));
    }
    let going = record.going();
    Ok((vec![Change::PutVolume(going.clone())], going))
}

/// Makes a volume longer.
pub(crate) async fn extend(
    world: Arc<World>,
    app: String,
    id: String,
    input: ExtendVolume,
) -> Result<ExtendedVolume, ApiError> {
    check_size(input.size_gb)?;
    find(&world, &app, &id)?;
    let _turn = world.volume_turns.take(&id).await;
    let record = find(&world, &app, &id)?;
    if input.size_gb < record.size_gb {
        return Err(ApiError::invalid(format!(
            "volume {id} has {} GB; a volume can only grow",
            record.size_gb
        )));
    }
    let (place, machine) = (dir(&world, &id), machine_dir(&world, &record));
    let (bytes, name) = (input.size_gb * GIB, id.clone());
    let growth = blocking(move || files::grow(&place, bytes, machine.as_deref(), &name)).await?;
    let (wanted, of) = (id.clone(), app.clone());
    let longer = move |catalog: &Catalog| {
        let record = catalog.volume(&of, &wanted)?.clone();
        Ok((vec![Change::PutVolume(VolumeRecord { size_gb: input.size_gb, ..record })], ()))
    };
    world.keeper.write(longer).await?;
    let volume = get(&world, &app, &id)?;
    Ok(ExtendedVolume { volume, needs_restart: growth == Growth::AtNextStart })
}

/// Lists a volume's snapshots, oldest first; also of one that is gone.
pub(crate) fn list_snapshots(
    world: &World,
    app: &str,
    id: &str,
) -> Result<Vec<Snapshot>, ApiError> {
    let catalog = world.keeper.read();
    let org = catalog.apps.get(app).map(|app| &app.org);
    let own = |it: &&SnapshotRecord| it.app == app && org.is_none_or(|org| it.org == *org);
    let mut found: Vec<_> = catalog.snapshots_of(id).filter(own).collect();
    if found.is_empty() {
        known(&catalog, app)?;
        catalog.volume(app, id)?;
    }
    found.sort_by_key(|it| it.created_at);
    Ok(found.into_iter().map(wire_snapshot).collect())
}

/// Copies a volume as of one moment.
pub(crate) async fn create_snapshot(
    world: Arc<World>,
    app: String,
    id: String,
) -> Result<Snapshot, ApiError> {
    let record = find(&world, &app, &id)?;
    remove_old(&world).await?;
    if SNAPSHOTS_MAX <= world.keeper.read().snapshots_of(&id).count() {
        return Err(ApiError::precondition(format!(
            "volume {id} already has {SNAPSHOTS_MAX} snapshots; the oldest go after their days"
        )));
    }
    snapshot(&world, &record).await.map(|it| wire_snapshot(&it))
}

fn wire(world: &World, record: &VolumeRecord) -> Volume {
    let backing = files::backing(&dir(world, &record.id));
    let directory = matches!(backing, Ok(files::Backing::Directory));
    let why = || {
        "it is a directory of the host, because a file system of its own could not be made for it"
            .to_owned()
    };
    Volume {
        id: record.id.clone(),
        name: record.name.clone(),
        state: record.state.clone(),
        size_gb: record.size_gb,
        region: record.region.clone(),
        zone: ZONE.to_owned(),
        encrypted: false,
        attached_machine_id: record.machine.clone(),
        attached_alloc_id: None,
        created_at: clock::stamp_at(record.created_at),
        host_dedication_id: String::new(),
        snapshot_retention: record.snapshot_retention,
        auto_backup_enabled: record.daily_snapshots,
        host_status: "ok".to_owned(),
        size_not_enforced: directory.then(why),
    }
}

fn wire_snapshot(record: &SnapshotRecord) -> Snapshot {
    Snapshot {
        id: record.id.clone(),
        size: record.bytes,
        volume_size: record.size_gb * GIB,
        digest: String::new(),
        created_at: clock::stamp_at(record.created_at),
        status: "created".to_owned(),
        retention_days: Some(record.retention_days),
    }
}
