//! Releases: what was deployed when, by whom.

use std::sync::Arc;
use std::time::Duration;

use perch_api::server::Peer;
use perch_api::wire::{ApiError, CreateRelease, Release, ReleaseStatus, UpdateRelease};

use crate::server::clock;
use crate::server::keeper::{Catalog, Change};
use crate::server::records::ReleaseRecord;
use crate::server::world::World;

/// How often dead deploys are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A deploy that is younger may not have taken its first lease.
const SILENCE_SECS: i64 = 60;
/// Releases kept per app; older ones are forgotten.
const RELEASES_MAX: usize = 100;

/// Records a release.
pub(crate) async fn create(
    world: Arc<World>,
    peer: Peer,
    input: CreateRelease,
) -> Result<Release, ApiError> {
    let made = world
        .keeper
        .write(move |catalog| {
            let app = catalog.app(&input.app_name)?;
            let earlier = catalog.releases_of(&app.name);
            let record = ReleaseRecord {
                id: clock::ulid(),
                app: app.name.clone(),
                version: earlier.first().map_or(0, |newest| newest.version) + 1,
                status: ReleaseStatus::Pending,
                strategy: input.strategy,
                user: format!("uid {}", peer.uid),
                created_at: clock::stamp(),
                image: input.image,
                definition: input.definition,
            };
            let mut changes = vec![Change::PutRelease(Box::new(record.clone()))];
            let old = earlier.iter().skip(RELEASES_MAX - 1);
            changes.extend(old.map(|it| Change::DeleteRelease(it.id.clone())));
            Ok((changes, record))
        })
        .await?;
    Ok(wire_release(&made))
}

/// Moves a release on.
pub(crate) async fn update(
    world: Arc<World>,
    id: String,
    input: UpdateRelease,
) -> Result<Release, ApiError> {
    let changed = world
        .keeper
        .write(move |catalog| {
            let found = catalog.releases.get(&id);
            let mut record = found
                .cloned()
                .ok_or_else(|| ApiError::not_found(format!("there is no release {id}")))?;
            record.status = input.status;
            Ok((vec![Change::PutRelease(Box::new(record.clone()))], record))
        })
        .await?;
    Ok(wire_release(&changed))
}

/// Until the server ends, gives up the releases of deploys that died: running, and none of their app's Machines
/// is leased any more (a living deploy extends its leases every 4 s, MA-63).
pub(crate) async fn mark_interrupted(world: Arc<World>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = world.shutdown.cancelled() => return,
        }
        if dead(&world.keeper.read()).is_empty() {
            continue;
        }
        if let Err(error) = world.keeper.write(|catalog| Ok((interruptions(catalog), ()))).await {
            tracing::warn!(%error, "a dead deploy's release stays running");
        }
    }
}

fn interruptions(catalog: &Catalog) -> Vec<Change> {
    let interrupted = |record: &ReleaseRecord| {
        let status = ReleaseStatus::Interrupted;
        Change::PutRelease(Box::new(ReleaseRecord { status, ..record.clone() }))
    };
    dead(catalog).into_iter().map(interrupted).collect()
}

/// Releases whose deploy has not been heard of for longer than its leases last.
fn dead(catalog: &Catalog) -> Vec<&ReleaseRecord> {
    let now = clock::unix_secs();
    let is_old = |release: &ReleaseRecord| {
        let made: Option<jiff::Timestamp> = release.created_at.parse().ok();
        made.is_none_or(|made| made.as_second() + SILENCE_SECS < now)
    };
    let is_led = |release: &ReleaseRecord| {
        let mut machines = catalog.machines_of(&release.app);
        machines.any(|it| catalog.leases.get(&it.id).is_some_and(|lease| now <= lease.expires_at))
    };
    let running = catalog.releases.values().filter(|it| it.status == ReleaseStatus::Running);
    running.filter(|it| is_old(it) && !is_led(it)).collect()
}

/// Lists releases, newest first.
pub(crate) fn list(world: &World, app: &str, limit: usize) -> Result<Vec<Release>, ApiError> {
    let catalog = world.keeper.read();
    catalog.app(app)?;
    Ok(catalog.releases_of(app).into_iter().take(limit).map(wire_release).collect())
}

/// Reads the newest release with its definition.
pub(crate) fn current(world: &World, app: &str) -> Result<Release, ApiError> {
    let catalog = world.keeper.read();
    catalog.app(app)?;
    let releases = catalog.releases_of(app);
    let newest =
        releases.first().ok_or_else(|| ApiError::not_found(format!("app {app} has no release")))?;
    Ok(Release { definition: Some(newest.definition.clone()), ..wire_release(newest) })
}

fn wire_release(record: &ReleaseRecord) -> Release {
    Release {
        id: record.id.clone(),
        version: record.version,
        stable: record.status == ReleaseStatus::Complete,
        in_progress: record.status == ReleaseStatus::Running,
        status: record.status,
        strategy: record.strategy.clone(),
        user: record.user.clone(),
        created_at: record.created_at.clone(),
        image_ref: record.image.clone(),
        definition: None,
    }
}
