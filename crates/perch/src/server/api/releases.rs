//! Releases: what was deployed when, by whom; and the right to deploy, which one release of an app has at a time.
//!
//! A release in progress is led by whoever made it, for as long as that client is heard of: by a `PATCH`, or by its
//! leases on the app's Machines (MA-63). While it is led, no other release of the app begins. One that nobody leads
//! any more is marked interrupted; its deploy may still go on with it, until another one has begun.

use std::sync::Arc;
use std::time::Duration;

use perch_api::server::Peer;
use perch_api::wire::{ApiError, CreateRelease, Release, ReleaseStatus, UpdateRelease};

use crate::server::clock;
use crate::server::keeper::{Catalog, Change};
use crate::server::records::{ReleaseLease, ReleaseRecord};
use crate::server::world::World;

/// How often dead deploys are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Seconds without a word after which a deploy is dead, unless it says otherwise (DESIGN 3).
const LEASE_SECS: u64 = 13;
/// The longest lease: longer ones are a mistake that blocks everybody else.
const LEASE_SECS_MAX: u64 = 3_600;
/// Releases kept per app; older ones are forgotten.
const RELEASES_MAX: usize = 100;

/// Begins a release, unless another one of the app is in progress.
pub(crate) async fn create(
    world: Arc<World>,
    peer: Peer,
    input: CreateRelease,
) -> Result<Release, ApiError> {
    let decide = move |catalog: &Catalog| decide_create(catalog, peer, input, clock::unix_secs());
    let made = world.keeper.write(decide).await?;
    Ok(wire_release(&made))
}

fn decide_create(
    catalog: &Catalog,
    peer: Peer,
    input: CreateRelease,
    now: i64,
) -> Result<(Vec<Change>, ReleaseRecord), ApiError> {
    let app = catalog.staying_app(&input.app_name)?;
    let earlier = catalog.releases_of(&app.name);
    if let Some(leader) = earlier.iter().find(|it| is_led(catalog, it, now)) {
        return Err(led_by(leader));
    }
    let ttl = if input.lease_ttl == 0 { LEASE_SECS } else { input.lease_ttl.min(LEASE_SECS_MAX) };
    let record = ReleaseRecord {
        id: clock::ulid(),
        app: app.name.clone(),
        version: earlier.first().map_or(0, |newest| newest.version) + 1,
        status: ReleaseStatus::Pending,
        strategy: input.strategy,
        user: peer.user(),
        created_at: clock::stamp_at(now),
        image: input.image,
        definition: input.definition,
        lease: Some(renewed(ReleaseLease { owner: peer.to_string(), ttl, expires_at: now }, now)),
        begun: false,
    };
    let mut changes: Vec<_> =
        earlier.iter().filter(|it| is_in_progress(it)).map(|it| interruption(it)).collect();
    changes.push(Change::PutRelease(Box::new(record.clone())));
    let old = earlier.iter().skip(RELEASES_MAX - 1);
    changes.extend(old.map(|it| Change::DeleteRelease(it.id.clone())));
    Ok((changes, record))
}

/// Who has the right to deploy, in the words that the holder of a Machine's lease is named with.
fn led_by(release: &ReleaseRecord) -> ApiError {
    let lease = release.lease.as_ref();
    ApiError::conflict(format!(
        "lease on app {} currently held by {} since {} (release {}), expires at {} unless refreshed",
        release.app,
        lease.map_or(release.user.as_str(), |lease| lease.owner.as_str()),
        release.created_at,
        release.version,
        lease.map_or_else(String::new, |lease| clock::stamp_at(lease.expires_at)),
    ))
}

fn renewed(lease: ReleaseLease, now: i64) -> ReleaseLease {
    let expires_at = now.saturating_add(i64::try_from(lease.ttl).unwrap_or(i64::MAX));
    ReleaseLease { expires_at, ..lease }
}

fn is_in_progress(release: &ReleaseRecord) -> bool {
    matches!(release.status, ReleaseStatus::Pending | ReleaseStatus::Running)
}

/// Whether its deploy lives.
fn is_led(catalog: &Catalog, release: &ReleaseRecord, now: i64) -> bool {
    let lease = release.lease.as_ref();
    let by_machine = || {
        let mut held =
            catalog.machines_of(&release.app).filter_map(|it| catalog.leases.get(&it.id));
        held.any(|it| now < it.expires_at && lease.is_none_or(|lease| lease.owner == it.owner))
    };
    is_in_progress(release) && (lease.is_some_and(|it| now < it.expires_at) || by_machine())
}

/// Moves a release on, or says that its deploy lives.
pub(crate) async fn update(
    world: Arc<World>,
    id: String,
    input: UpdateRelease,
) -> Result<Release, ApiError> {
    let decide =
        move |catalog: &Catalog| decide_update(catalog, &id, input.status, clock::unix_secs());
    let changed = world.keeper.write(decide).await?;
    Ok(wire_release(&changed))
}

fn decide_update(
    catalog: &Catalog,
    id: &str,
    status: ReleaseStatus,
    now: i64,
) -> Result<(Vec<Change>, ReleaseRecord), ApiError> {
    let found = catalog.releases.get(id).cloned();
    let old = found.ok_or_else(|| ApiError::no_release(id))?;
    check_move(catalog, &old, status)?;
    let status = match (old.status, status) {
        // A refresh that was under way when the rollout began.
        (ReleaseStatus::Running, ReleaseStatus::Pending) => ReleaseStatus::Running,
        (_, wanted) => wanted,
    };
    let record = ReleaseRecord {
        status,
        begun: old.begun || matches!(status, ReleaseStatus::Running | ReleaseStatus::Complete),
        lease: old.lease.map(|lease| renewed(lease, now)),
        ..old
    };
    Ok((vec![Change::PutRelease(Box::new(record.clone()))], record))
}

/// Refuses to wake the dead: a release that ended, or that another one has taken the place of.
fn check_move(
    catalog: &Catalog,
    release: &ReleaseRecord,
    status: ReleaseStatus,
) -> Result<(), ApiError> {
    let (app, version) = (&release.app, release.version);
    let newest = catalog.releases_of(app).first().map_or(0, |newest| newest.version);
    let goes_on = matches!(status, ReleaseStatus::Pending | ReleaseStatus::Running);
    match release.status {
        ReleaseStatus::Interrupted if version < newest => Err(ApiError::conflict(format!(
            "release {version} of app {app} was interrupted: nothing was heard of its deploy for too long, and \
             release {newest} has taken its place"
        ))),
        ReleaseStatus::Complete | ReleaseStatus::Failed if goes_on => {
            Err(ApiError::conflict(format!("release {version} of app {app} has ended")))
        }
        _ => Ok(()),
    }
}

/// Until the server ends, gives up the releases of deploys that died.
pub(crate) async fn mark_interrupted(world: Arc<World>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = world.shutdown.cancelled() => return,
        }
        if interruptions(&world.keeper.read(), clock::unix_secs()).is_empty() {
            continue;
        }
        let decide = |catalog: &Catalog| Ok((interruptions(catalog, clock::unix_secs()), ()));
        if let Err(error) = world.keeper.write(decide).await {
            tracing::warn!(%error, "a dead deploy's release stays running");
        }
    }
}

fn interruptions(catalog: &Catalog, now: i64) -> Vec<Change> {
    let dead = |it: &&ReleaseRecord| is_in_progress(it) && !is_led(catalog, it, now);
    catalog.releases.values().filter(dead).map(interruption).collect()
}

fn interruption(release: &ReleaseRecord) -> Change {
    let status = ReleaseStatus::Interrupted;
    Change::PutRelease(Box::new(ReleaseRecord { status, ..release.clone() }))
}

/// Lists releases, newest first.
pub(crate) fn list(world: &World, app: &str, limit: usize) -> Result<Vec<Release>, ApiError> {
    let catalog = world.keeper.read();
    catalog.app(app)?;
    Ok(catalog.releases_of(app).into_iter().take(limit).map(wire_release).collect())
}

/// Reads the newest release that was begun, with its definition.
pub(crate) fn current(world: &World, app: &str) -> Result<Release, ApiError> {
    let catalog = world.keeper.read();
    catalog.app(app)?;
    let releases = catalog.releases_of(app);
    let newest = releases.iter().find(|release| release.begun);
    let newest = newest.ok_or_else(|| ApiError::not_found(format!("app {app} has no release")))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::{LeaseRecord, tests as records};

    const ALICE: Peer = Peer::Local { uid: 1000, pid: Some(10) };
    const BOB: Peer = Peer::Local { uid: 1001, pid: Some(11) };

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        catalog
    }

    fn begin(catalog: &mut Catalog, peer: Peer, now: i64) -> Result<ReleaseRecord, ApiError> {
        let input = CreateRelease { app_name: "web".to_owned(), ..CreateRelease::default() };
        let (changes, record) = decide_create(catalog, peer, input, now)?;
        changes.into_iter().for_each(|change| catalog.apply(change));
        Ok(record)
    }

    fn set(
        catalog: &mut Catalog,
        id: &str,
        status: ReleaseStatus,
        now: i64,
    ) -> Result<ReleaseStatus, ApiError> {
        let (changes, record) = decide_update(catalog, id, status, now)?;
        changes.into_iter().for_each(|change| catalog.apply(change));
        Ok(record.status)
    }

    fn status(catalog: &Catalog, id: &str) -> ReleaseStatus {
        catalog.releases[id].status
    }

    #[test]
    fn a_second_release_is_refused_while_the_first_is_led_and_told_by_whom_since_when() {
        let mut catalog = catalog();
        let first = begin(&mut catalog, ALICE, 0).expect("nobody deploys");
        let refused = begin(&mut catalog, BOB, 12).expect_err("alice deploys");
        assert_eq!(refused.code, 409);
        let text = refused.to_string();
        for part in ["uid 1000", "pid 10", "since 1970-01-01T00:00:00Z", "app web"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
        set(&mut catalog, &first.id, ReleaseStatus::Running, 12).expect("hers");
        assert!(begin(&mut catalog, BOB, 24).is_err(), "she was heard of at 12");
        set(&mut catalog, &first.id, ReleaseStatus::Complete, 24).expect("hers");
        assert_eq!(begin(&mut catalog, BOB, 24).expect("she is done").version, 2);
    }

    #[test]
    fn a_deploy_that_died_is_interrupted_and_blocks_nobody() {
        let mut catalog = catalog();
        let first = begin(&mut catalog, ALICE, 0).expect("nobody deploys");
        assert!(interruptions(&catalog, 12).is_empty());
        assert_eq!(interruptions(&catalog, 13).len(), 1);
        let second = begin(&mut catalog, BOB, 13).expect("alice is gone");
        assert_eq!(status(&catalog, &first.id), ReleaseStatus::Interrupted);
        let late = set(&mut catalog, &first.id, ReleaseStatus::Running, 14);
        assert_eq!(late.expect_err("bob deploys").code, 409);
        assert_eq!(status(&catalog, &second.id), ReleaseStatus::Pending);
    }

    #[test]
    fn a_deploy_that_was_only_silent_goes_on_when_nobody_took_its_place() {
        let mut catalog = catalog();
        let first = begin(&mut catalog, ALICE, 0).expect("nobody deploys");
        interruptions(&catalog, 60).into_iter().for_each(|change| catalog.apply(change));
        assert_eq!(status(&catalog, &first.id), ReleaseStatus::Interrupted);
        let back = set(&mut catalog, &first.id, ReleaseStatus::Running, 61);
        assert_eq!(back.expect("hers"), ReleaseStatus::Running);
        assert!(begin(&mut catalog, BOB, 62).is_err());
    }

    #[test]
    fn leases_on_machines_keep_their_own_holders_release_alive_only() {
        let mut catalog = catalog();
        begin(&mut catalog, ALICE, 0).expect("nobody deploys");
        catalog.apply(Change::PutMachine(Box::new(records::machine("m1"))));
        let lease = |peer: Peer| LeaseRecord {
            machine: "m1".to_owned(),
            nonce: "n".to_owned(),
            expires_at: 100,
            owner: peer.to_string(),
            description: String::new(),
        };
        catalog.apply(Change::PutLease(lease(BOB)));
        assert_eq!(interruptions(&catalog, 20).len(), 1, "bob's lease is not alice's deploy");
        catalog.apply(Change::PutLease(lease(ALICE)));
        assert!(interruptions(&catalog, 99).is_empty());
        assert_eq!(interruptions(&catalog, 100).len(), 1);
    }

    #[test]
    fn a_release_does_not_go_back() {
        let mut catalog = catalog();
        let first = begin(&mut catalog, ALICE, 0).expect("nobody deploys");
        set(&mut catalog, &first.id, ReleaseStatus::Running, 1).expect("hers");
        let refreshed = set(&mut catalog, &first.id, ReleaseStatus::Pending, 2);
        assert_eq!(refreshed.expect("hers"), ReleaseStatus::Running);
        set(&mut catalog, &first.id, ReleaseStatus::Failed, 3).expect("hers");
        let again = set(&mut catalog, &first.id, ReleaseStatus::Running, 4);
        assert_eq!(again.expect_err("it has ended").code, 409);
    }

    #[test]
    fn a_lease_length_that_is_absurd_is_bounded() {
        let mut catalog = catalog();
        let input = CreateRelease {
            app_name: "web".to_owned(),
            lease_ttl: u64::MAX,
            ..CreateRelease::default()
        };
        let (changes, _) = decide_create(&catalog, ALICE, input, 0).expect("nobody deploys");
        changes.into_iter().for_each(|change| catalog.apply(change));
        assert!(begin(&mut catalog, BOB, 3_599).is_err());
        assert!(begin(&mut catalog, BOB, 3_600).is_ok());
    }

    #[test]
    fn records_of_older_servers_are_read() {
        let mut old =
            serde_json::to_value(begin(&mut catalog(), ALICE, 0).expect("nobody deploys"))
                .expect("JSON");
        let fields = old.as_object_mut().expect("an object");
        fields.remove("lease");
        fields.remove("begun");
        let read: ReleaseRecord = serde_json::from_value(old).expect("readable");
        assert!(read.begun && read.lease.is_none());
        assert!(!is_led(&catalog(), &read, 0), "nobody can be waiting for it");
    }
}
