//! Volumes: who has which, and their files.
//!
//! A volume belongs to an app's name within an organization, and to at most one Machine, from the Machine's creation to its
//! removal (MA-34, MA-92). It goes when somebody asks for that, never with its Machine or its app: an app of the same name
//! and organization finds it again. That no two processes write to it is not decided here but by the lock on its image
//! (`perch_machine::volumes`); that nobody starts on it while it is copied, by its turn.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_api::wire::{ApiError, MachineConfig, Mount};
use perch_machine::volumes as files;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::clock;
use super::copying::Copy;
use super::keeper::{Catalog, Change};
use super::records::{MachineRecord, SnapshotRecord, VolumeRecord};
use super::world::{World, lock};

/// Between two looks at which snapshots are due, and which too old.
const SNAPSHOT_LOOK_INTERVAL: Duration = Duration::from_secs(600);
const DAY_SECS: i64 = 24 * 3600;

/// Turns at volumes: of starts, copies, growth and removal. An entry stays with the volume's id, some bytes each. Also at
/// other things with a name.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub(crate) async fn take(&self, id: &str) -> OwnedMutexGuard<()> {
        let turn = lock(&self.0).entry(id.to_owned()).or_default().clone();
        turn.lock_owned().await
    }
}

/// Where a volume's files are.
pub(crate) fn dir(world: &World, id: &str) -> PathBuf {
    world.paths.volumes().join(id)
}

/// Where a snapshot's files are.
pub(crate) fn snapshot_dir(world: &World, id: &str) -> PathBuf {
    world.paths.snapshots().join(id)
}

/// The directory of the Machine that has a volume.
pub(crate) fn machine_dir(world: &World, volume: &VolumeRecord) -> Option<PathBuf> {
    volume.machine.as_ref().map(|id| world.paths.machine(id))
}

/// Gives a new Machine the volume that its config names: by id, or any free one of that name. The config then has both.
///
/// # Errors
/// 422 when there is no such volume or the path is none, 412 when another Machine has it.
pub(crate) fn attach(
    catalog: &Catalog,
    app: &str,
    machine: &str,
    config: &MachineConfig,
) -> Result<(MachineConfig, Vec<Change>), ApiError> {
    let Some(mount) = only_mount(config)? else { return Ok((config.clone(), Vec::new())) };
    let volume = wanted(catalog, app, mount)?;
    if let Some(other) = &volume.machine {
        return Err(in_use(volume, other));
    }
    let attached = VolumeRecord { machine: Some(machine.to_owned()), ..volume.clone() };
    Ok((with_volume(config, volume)?, vec![Change::PutVolume(attached)]))
}

/// The config of an update, with the volume that the Machine has (MA-34).
///
/// # Errors
/// 422 when it would have another one, or none.
pub(crate) fn keep(
    catalog: &Catalog,
    old: &MachineRecord,
    config: &MachineConfig,
) -> Result<MachineConfig, ApiError> {
    let has = of_machine(catalog, old).next();
    let Some(mount) = only_mount(config)? else {
        return match has {
            None => Ok(config.clone()),
            Some(volume) => Err(changed(old, &format!("it has volume {}", volume.id))),
        };
    };
    let same = |volume: &&VolumeRecord| match mount.volume.as_str() {
        "" => volume.name == mount.name,
        word => volume.id == word || volume.name == word,
    };
    match has.filter(same) {
        Some(volume) => with_volume(config, volume),
        None => Err(changed(old, "the config names another volume than it has")),
    }
}

fn changed(machine: &MachineRecord, why: &str) -> ApiError {
    ApiError::invalid(format!(
        "the volume of machine {} cannot be changed by an update, and {why}; destroy the machine and \
         make another one with the volume",
        machine.id
    ))
}

fn only_mount(config: &MachineConfig) -> Result<Option<&Mount>, ApiError> {
    let mount = match config.view().mounts.as_slice() {
        [] => return Ok(None),
        [mount] => mount,
        _ => return Err(ApiError::invalid("config.mounts: a machine can have one volume")),
    };
    if let Some(reason) = files::bad_path(&mount.path) {
        return Err(ApiError::invalid(format!("config.mounts[0].path: {reason}")));
    }
    Ok(Some(mount))
}

fn wanted<'a>(
    catalog: &'a Catalog,
    app: &str,
    mount: &Mount,
) -> Result<&'a VolumeRecord, ApiError> {
    let word = if mount.volume.is_empty() { &mount.name } else { &mount.volume };
    if word.is_empty() {
        return Err(ApiError::invalid("config.mounts[0] names no volume"));
    }
    let of_app = || catalog.volumes_of(app).filter(|it| it.is_there());
    if let Some(volume) = of_app().find(|it| it.id == *word) {
        return Ok(volume);
    }
    let named = || of_app().filter(|it| it.name == *word);
    let free = named().find(|it| it.machine.is_none()).or_else(|| named().next());
    free.ok_or_else(|| {
        ApiError::invalid(format!(
            "app {app} has no volume {word}; `fly volumes create NAME -a {app}` makes one"
        ))
    })
}

fn in_use(volume: &VolumeRecord, machine: &str) -> ApiError {
    let VolumeRecord { id, name, .. } = volume;
    ApiError::precondition(format!(
        "volume {id} ({name}) is already attached to machine {machine}; a volume has one machine at a time"
    ))
}

/// The same config with id and name of the volume in its mount.
fn with_volume(config: &MachineConfig, volume: &VolumeRecord) -> Result<MachineConfig, ApiError> {
    let mut mounts = config.get("mounts").unwrap_or_else(|| json!([]));
    if let Some(Value::Object(mount)) = mounts.get_mut(0) {
        mount.insert("volume".to_owned(), volume.id.clone().into());
        mount.insert("name".to_owned(), volume.name.clone().into());
    }
    config.with("mounts", &mounts).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Volumes of a Machine.
pub(crate) fn of_machine<'a, 'm>(
    catalog: &'a Catalog,
    machine: &'m MachineRecord,
) -> impl Iterator<Item = &'a VolumeRecord> + use<'a, 'm> {
    catalog.volumes_of(&machine.app).filter(|it| it.machine.as_ref() == Some(&machine.id))
}

/// What a Machine that goes leaves to the next one.
pub(crate) fn detached(catalog: &Catalog, machine: &MachineRecord) -> Vec<Change> {
    let free = |it: &VolumeRecord| VolumeRecord { machine: None, ..it.clone() };
    of_machine(catalog, machine).map(|it| Change::PutVolume(free(it))).collect()
}

/// What a run of a Machine gets.
pub(crate) fn for_run(world: &World, machine: &MachineRecord) -> Vec<perch_machine::Volume> {
    let catalog = world.keeper.read();
    let view = machine.config.view();
    let mount = |volume: &VolumeRecord| {
        let place = view.mounts.iter().find(|it| it.volume == volume.id)?;
        Some(perch_machine::Volume {
            id: volume.id.clone(),
            dir: dir(world, &volume.id),
            path: place.path.clone(),
        })
    };
    of_machine(&catalog, machine).filter_map(mount).collect()
}

/// After a start of the server: removes what is half-made, lets Machines write that a copy kept from it, and goes on with
/// removals.
pub(crate) async fn recover(world: Arc<World>) {
    let records: Vec<VolumeRecord> = world.keeper.read().volumes.values().cloned().collect();
    let looked = world.clone();
    let cleared = tokio::task::spawn_blocking(move || {
        files::clear(&looked.paths.volumes(), |id| looked.keeper.read().volumes.contains_key(id));
        files::clear(&looked.paths.snapshots(), |id| {
            looked.keeper.read().snapshots.contains_key(id)
        });
        for volume in &records {
            let Some(machine) = machine_dir(&looked, volume) else { continue };
            if let Err(error) = files::thaw(&machine, &volume.id) {
                tracing::warn!(volume = volume.id, %error, "a machine may wait for its volume");
            }
        }
        records
    });
    let Ok(records) = cleared.await else { return };
    for volume in records.iter().filter(|it| !it.is_there()) {
        if let Err(error) = remove(&world, volume).await {
            tracing::warn!(volume = volume.id, %error, "a volume that is being destroyed remains");
        }
    }
}

/// Removes the files, then the record, of a volume that is marked.
pub(crate) async fn remove(world: &Arc<World>, volume: &VolumeRecord) -> Result<(), ApiError> {
    let _turn = world.volume_turns.take(&volume.id).await;
    let dir = dir(world, &volume.id);
    blocking(move || files::remove(&dir)).await?;
    let id = volume.id.clone();
    world.keeper.write(move |_| Ok((vec![Change::DeleteVolume(id)], ()))).await
}

/// Copies a volume as of one moment, and removes what is too old.
pub(crate) async fn snapshot(
    world: &Arc<World>,
    volume: &VolumeRecord,
) -> Result<SnapshotRecord, ApiError> {
    let turn = world.volume_turns.take(&volume.id).await;
    // Who has it may have changed until now, and may not before the copy is made.
    let volume = world.keeper.read().volume(&volume.app, &volume.id)?.clone();
    let id = super::clock::word_id("vs_");
    let (from, to) = (dir(world, &volume.id), snapshot_dir(world, &id));
    let (machine, name) = (machine_dir(world, &volume), volume.id.clone());
    let copy = Copy::begin(world, &volume).await;
    let made_at = clock::unix_secs();
    let made = to.clone();
    let copied = blocking(move || {
        files::copy(&from, &made, machine.as_deref(), &name)?;
        files::stored_bytes(&made)
    });
    let bytes = or_discard(copied.await, &to).await?;
    drop((turn, copy));
    let record = SnapshotRecord {
        id,
        volume: volume.id.clone(),
        app: volume.app.clone(),
        org: volume.org.clone(),
        name: volume.name.clone(),
        bytes,
        size_gb: volume.size_gb,
        created_at: made_at,
        retention_days: volume.snapshot_retention,
    };
    let put = record.clone();
    let kept = world.keeper.write(move |_| Ok((vec![Change::PutSnapshot(put)], ()))).await;
    or_discard(kept, &to).await?;
    settle(to).await;
    Ok(record)
}

/// After the record of these files was written. A server that is killed before does it at its next start.
pub(crate) async fn settle(dir: PathBuf) {
    if let Err(error) = blocking(move || files::keep(&dir)).await {
        tracing::warn!(%error, "the files of a volume still say that nobody may know of them");
    }
}

/// Removes files that get no record, because of what failed.
async fn or_discard<T>(done: Result<T, ApiError>, dir: &Path) -> Result<T, ApiError> {
    if done.is_err() {
        discard(dir.to_owned()).await;
    }
    done
}

/// Removes files that no record names.
pub(crate) async fn discard(dir: PathBuf) {
    if let Err(error) = blocking(move || files::remove(&dir)).await {
        tracing::warn!(%error, "files of a volume that was not made remain");
    }
}

/// Makes the snapshots that are due and removes those that are too old, until the server ends.
pub(crate) async fn keep_snapshots(world: Arc<World>) {
    loop {
        if let Err(error) = remove_old(&world).await {
            tracing::warn!(%error, "old snapshots remain");
        }
        let due = due(&world.keeper.read(), clock::unix_secs());
        for volume in due {
            if let Err(error) = snapshot(&world, &volume).await {
                tracing::warn!(volume = volume.id, %error, "no snapshot was made");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(SNAPSHOT_LOOK_INTERVAL) => {}
            () = world.shutdown.cancelled() => return,
        }
    }
}

fn due(catalog: &Catalog, now: i64) -> Vec<VolumeRecord> {
    let young = |volume: &VolumeRecord| {
        let newest = catalog.snapshots_of(&volume.id).map(|it| it.created_at).max();
        now < newest.unwrap_or(volume.created_at) + DAY_SECS
    };
    let wanted = catalog.volumes.values().filter(|it| it.daily_snapshots && it.is_there());
    wanted.filter(|it| !young(it)).cloned().collect()
}

/// Removes snapshots whose days are over.
pub(crate) async fn remove_old(world: &Arc<World>) -> Result<(), ApiError> {
    let now = clock::unix_secs();
    let old: Vec<String> = {
        let catalog = world.keeper.read();
        let over = |it: &&SnapshotRecord| {
            it.created_at + DAY_SECS * i64::try_from(it.retention_days).unwrap_or(i64::MAX >> 20)
                < now
        };
        catalog.snapshots.values().filter(over).map(|it| it.id.clone()).collect()
    };
    for id in old {
        // The files first: what no record names stays for ever when the server is killed in between.
        let dir = snapshot_dir(world, &id);
        blocking(move || files::remove(&dir)).await?;
        world.keeper.write(move |_| Ok((vec![Change::DeleteSnapshot(id)], ()))).await?;
    }
    Ok(())
}

/// Runs file work away from the tasks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(error.to_string()))?.map_err(|error| api_error(&error))
}

fn api_error(error: &io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApiError::disk_full(
            "the disk of the data directory is full; nothing was changed; make room and repeat",
        ),
        io::ErrorKind::ResourceBusy | io::ErrorKind::TimedOut => {
            ApiError::precondition(error.to_string())
        }
        _ => ApiError::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::tests as records;

    fn catalog(volumes: &[VolumeRecord]) -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        for volume in volumes {
            catalog.apply(Change::PutVolume(volume.clone()));
        }
        catalog
    }

    fn config(mounts: &str) -> MachineConfig {
        serde_json::from_str(&format!(r#"{{"image":"x","mounts":{mounts}}}"#)).expect("a config")
    }

    fn refused(catalog: &Catalog, mounts: &str, code: u16, words: &str) {
        let error = attach(catalog, "web", "m", &config(mounts)).expect_err(mounts);
        assert_eq!(error.code, code, "{mounts}: {error}");
        assert!(error.to_string().contains(words), "{mounts}: {error}");
    }

    #[test]
    fn a_volume_is_given_by_id_or_by_name_and_to_one_machine_only() {
        let free = records::volume("vol_1", "data", None);
        let taken = records::volume("vol_0", "data", Some("other"));
        let both = catalog(&[free.clone(), taken]);
        for mounts in [r#"[{"name":"data","path":"/d"}]"#, r#"[{"volume":"vol_1","path":"/d"}]"#] {
            let (config, changes) = attach(&both, "web", "m", &config(mounts)).expect(mounts);
            assert_eq!(config.view().mounts[0].volume, "vol_1");
            assert_eq!(config.view().mounts[0].name, "data");
            assert!(
                matches!(&changes[..], [Change::PutVolume(it)] if it.machine.as_deref() == Some("m"))
            );
        }
        refused(&both, r#"[{"volume":"vol_0","path":"/d"}]"#, 412, "attached to machine other");
        refused(&both, r#"[{"volume":"vol_9","path":"/d"}]"#, 422, "no volume vol_9");
        refused(&both, r#"[{"volume":"vol_1","path":"/"}]"#, 422, "path");
        refused(&both, r#"[{"path":"/d"}]"#, 422, "names no volume");
        refused(
            &both,
            r#"[{"name":"data","path":"/d"},{"name":"data","path":"/e"}]"#,
            422,
            "one volume",
        );
        refused(&both, "[5]", 422, "path");
    }

    #[test]
    fn an_app_of_the_same_name_in_another_organization_finds_nothing() {
        let foreign =
            VolumeRecord { org: "other".to_owned(), ..records::volume("vol_1", "data", None) };
        refused(&catalog(&[foreign]), r#"[{"name":"data","path":"/d"}]"#, 422, "no volume data");
    }

    #[test]
    fn an_update_keeps_the_volume() {
        let catalog = catalog(&[records::volume("vol_1", "data", Some("m"))]);
        let old = records::machine("m");
        let kept =
            keep(&catalog, &old, &config(r#"[{"name":"data","path":"/new"}]"#)).expect("kept");
        assert_eq!(kept.view().mounts[0].volume, "vol_1");
        for mounts in
            ["[]", r#"[{"name":"other","path":"/d"}]"#, r#"[{"volume":"vol_2","path":"/d"}]"#]
        {
            assert_eq!(keep(&catalog, &old, &config(mounts)).expect_err(mounts).code, 422);
        }
        let without = records::machine("n");
        assert!(keep(&catalog, &without, &config("[]")).is_ok());
        assert!(keep(&catalog, &without, &config(r#"[{"name":"data","path":"/d"}]"#)).is_err());
    }

    #[tokio::test]
    async fn a_copy_goes_when_what_comes_after_it_fails_and_else_stays() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let made = parent.path().join("vs_1");
        std::fs::create_dir_all(made.join("data")).expect("a copy");
        or_discard(Ok(()), &made).await.expect("it went well");
        assert!(made.exists());
        let failed: Result<u64, _> = Err(ApiError::internal("it could not be measured"));
        assert_eq!(or_discard(failed, &made).await.expect_err("what failed").code, 500);
        assert!(!made.exists());
    }

    #[test]
    fn a_snapshot_is_due_a_day_after_the_last_one() {
        let volume =
            VolumeRecord { daily_snapshots: true, ..records::volume("vol_1", "data", None) };
        let mut catalog = catalog(&[volume]);
        assert!(due(&catalog, DAY_SECS - 1).is_empty());
        assert_eq!(due(&catalog, DAY_SECS).len(), 1);
        catalog.apply(Change::PutSnapshot(records::snapshot("vs_1", "vol_1", DAY_SECS)));
        assert!(due(&catalog, DAY_SECS + 5).is_empty());
        assert_eq!(due(&catalog, 2 * DAY_SECS).len(), 1);
    }
}
