//! Leases: who may change a Machine for a while (MA-60..64).

use std::sync::Arc;
use std::time::Duration;

use perch_api::server::{MachineTarget, Peer};
use perch_api::wire::{ApiError, Lease, LeaseData, LeaseInput};

use crate::server::clock;
use crate::server::history::Source;
use crate::server::keeper::{Catalog, Change};
use crate::server::machine::Command;
use crate::server::records::LeaseRecord;
use crate::server::world::World;

/// Seconds when the caller names none (MA-63).
const TTL_DEFAULT: u64 = 120;
/// The longest lease: longer ones are a mistake that blocks everybody else. Who is busy for longer says so again.
pub(super) const TTL_MAX: u64 = 3_600;
/// Pause before an end that could not be stored is tried again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Takes a lease, or extends it with its nonce; 409 at once when somebody else has it, 404 when the one to extend has
/// ended: a refresh that its holder's end overtook would else hold a Machine for nobody.
pub(crate) async fn acquire(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    input: LeaseInput,
) -> Result<Lease, ApiError> {
    let ttl = if input.ttl == 0 { TTL_DEFAULT } else { input.ttl.min(TTL_MAX) };
    let wanted = target.clone();
    let lease = world
        .keeper
        .write(move |catalog| {
            catalog.machine(&wanted.app, &wanted.id)?;
            let held = live(catalog, &wanted.id);
            let nonce = match held {
                Some(lease) if wanted.nonce.as_deref() == Some(&lease.nonce) => lease.nonce.clone(),
                Some(lease) => return Err(held_by(lease)),
                None if wanted.nonce.is_some() => return Err(no_lease(&wanted)),
                None => format!("{:016x}", clock::random()),
            };
            let lease = LeaseRecord {
                machine: wanted.id.clone(),
                nonce,
                expires_at: clock::unix_secs() + i64::try_from(ttl).unwrap_or(i64::MAX),
                owner: peer.to_string(),
                description: input.description,
            };
            Ok((vec![Change::PutLease(lease.clone())], lease))
        })
        .await?;
    announce(&world, &target.app, &target.id).await;
    follow(&world, &target.app, &lease);
    Ok(answer(&world, &target, &lease))
}

/// Who has it, in flyctl's words.
fn held_by(lease: &LeaseRecord) -> ApiError {
    ApiError::conflict(format!(
        "lease currently held by {}, expires at {}",
        lease.owner,
        clock::stamp_at(lease.expires_at)
    ))
}

/// Sees to it that the Machine hears of the end of its lease, also of one that an earlier server gave.
pub(crate) fn follow(world: &Arc<World>, app: &str, lease: &LeaseRecord) {
    let left = time_left(lease.expires_at, clock::unix_secs());
    world.tracker.spawn(expire(world.clone(), app.to_owned(), lease.clone(), left));
}

/// A wall clock that was set back makes nothing longer than the longest.
pub(super) fn time_left(until: i64, now: i64) -> Duration {
    let left = u64::try_from(until.saturating_sub(now)).unwrap_or(0);
    Duration::from_secs(left.min(TTL_MAX) + 1)
}

/// Waits on a clock that nobody sets, then ends the lease whatever the wall clock says.
async fn expire(world: Arc<World>, app: String, lease: LeaseRecord, mut left: Duration) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            () = world.shutdown.cancelled() => return,
        }
        let ended = lease.clone();
        let removed = world.keeper.write(move |catalog| Ok((ending(catalog, &ended), ()))).await;
        if let Err(error) = &removed {
            tracing::warn!(machine = lease.machine, %error, "the record of an ended lease remains");
        }
        if removed.is_ok() || !is_leased(&world.keeper.read(), &lease.machine) {
            return announce(&world, &app, &lease.machine).await;
        }
        left = RETRY_INTERVAL;
    }
}

/// Removes the lease, unless it was given back or extended: a later one has a follower of its own.
fn ending(catalog: &Catalog, lease: &LeaseRecord) -> Vec<Change> {
    let is_same = catalog.leases.get(&lease.machine) == Some(lease);
    is_same.then(|| Change::DeleteLease(lease.machine.clone())).into_iter().collect()
}

/// Lets the Machine's task look for itself, so that the order of those who tell it does not matter.
pub(crate) async fn announce(world: &Arc<World>, app: &str, machine: &str) {
    if let Some(handle) = world.handle(machine) {
        handle.send(Command::LookWhetherKept).await;
    }
    world.proxy.app_changed(app.to_owned());
}

/// Reads the lease; its nonce is for its holder only.
pub(crate) fn get(world: &World, target: &MachineTarget) -> Result<Lease, ApiError> {
    let lease = {
        let catalog = world.keeper.read();
        catalog.machine(&target.app, &target.id)?;
        live(&catalog, &target.id).cloned().ok_or_else(|| no_lease(target))?
    };
    let mut shown = answer(world, target, &lease);
    if target.nonce.as_deref() != Some(&lease.nonce) {
        shown.data.nonce.clear();
    }
    Ok(shown)
}

fn no_lease(target: &MachineTarget) -> ApiError {
    ApiError::not_found(format!("machine {} lease not found", target.id))
}

/// Gives the lease back.
pub(crate) async fn release(world: Arc<World>, target: MachineTarget) -> Result<(), ApiError> {
    let wanted = target.clone();
    world
        .keeper
        .write(move |catalog| {
            catalog.machine(&wanted.app, &wanted.id)?;
            match live(catalog, &wanted.id) {
                None => Err(no_lease(&wanted)),
                Some(lease) if wanted.nonce.as_deref() == Some(&lease.nonce) => {
                    Ok((vec![Change::DeleteLease(wanted.id.clone())], ()))
                }
                Some(lease) => Err(held_by(lease)),
            }
        })
        .await?;
    announce(&world, &target.app, &target.id).await;
    Ok(())
}

/// Ends the lease, whoever holds it: for one whose holder is gone and did not give it back. A holder that is still
/// there may go on until somebody else takes one; the Machine's events say who ended it.
pub(crate) async fn clear(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
) -> Result<(), ApiError> {
    let wanted = target.clone();
    world
        .keeper
        .write(move |catalog| {
            catalog.machine(&wanted.app, &wanted.id)?;
            live(catalog, &wanted.id).ok_or_else(|| no_lease(&wanted))?;
            Ok((vec![Change::DeleteLease(wanted.id.clone())], ()))
        })
        .await?;
    announce(&world, &target.app, &target.id).await;
    if let Some(handle) = world.handle(&target.id) {
        handle.note("lease cleared", Source::User(peer), String::new()).await;
    }
    Ok(())
}

/// Refuses a change of a leased Machine without the lease's nonce (MA-61), and of one that the app does not have.
pub(crate) fn check(world: &World, target: &MachineTarget) -> Result<(), ApiError> {
    check_in(&world.keeper.read(), target)
}

/// The same in the decision about the change: since the first look somebody may have taken a lease.
pub(super) fn check_in(catalog: &Catalog, target: &MachineTarget) -> Result<(), ApiError> {
    // First: who may see the app that is named learns nothing of another one's Machine.
    catalog.machine(&target.app, &target.id)?;
    match live(catalog, &target.id) {
        Some(lease) if target.nonce.as_deref() != Some(&lease.nonce) => Err(held_by(lease)),
        Some(_) | None => Ok(()),
    }
}

fn live<'a>(catalog: &'a Catalog, machine: &str) -> Option<&'a LeaseRecord> {
    catalog.leases.get(machine).filter(|lease| clock::unix_secs() < lease.expires_at)
}

fn answer(world: &World, target: &MachineTarget, lease: &LeaseRecord) -> Lease {
    let version = world.keeper.read().machines.get(&target.id).map(|it| it.instance_id.clone());
    Lease {
        status: "success".to_owned(),
        data: LeaseData {
            nonce: lease.nonce.clone(),
            expires_at: lease.expires_at,
            owner: lease.owner.clone(),
            description: lease.description.clone(),
            version: version.unwrap_or_default(),
        },
    }
}

/// Whether the proxy lets the Machine run, needed or not: somebody holds its lease, or it says that it is busy.
pub(crate) fn is_kept_awake(catalog: &Catalog, machine: &str, run: u64) -> bool {
    live(catalog, machine).is_some() || super::busy::of(catalog, machine, run).is_some()
}

/// The lease of a Machine that somebody holds now.
pub(super) fn held<'a>(catalog: &'a Catalog, machine: &str) -> Option<&'a LeaseRecord> {
    live(catalog, machine)
}

/// Whether somebody holds a Machine's lease now.
pub(crate) fn is_leased(catalog: &Catalog, machine: &str) -> bool {
    live(catalog, machine).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(expires_at: i64) -> LeaseRecord {
        let (nonce, owner, description) = ("n".to_owned(), "uid 0".to_owned(), String::new());
        LeaseRecord { machine: "m".to_owned(), nonce, expires_at, owner, description }
    }

    fn catalog(lease: LeaseRecord) -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutLease(lease));
        catalog
    }

    #[test]
    fn no_lease_is_followed_longer_than_the_longest_also_after_the_clock_was_set_back() {
        assert_eq!(time_left(1_013, 1_000), Duration::from_secs(14));
        assert_eq!(time_left(1_000_013, 1_000), Duration::from_secs(TTL_MAX + 1));
        assert_eq!(time_left(1_000, 1_000_000), Duration::from_secs(1));
        assert_eq!(time_left(0, 1_000), Duration::from_secs(1), "of who was busy and is not");
    }

    #[test]
    fn the_end_of_a_lease_ends_no_later_one() {
        assert_eq!(ending(&catalog(lease(10)), &lease(10)).len(), 1);
        assert!(ending(&catalog(lease(20)), &lease(10)).is_empty(), "it was extended");
        assert!(ending(&Catalog::default(), &lease(10)).is_empty(), "it was given back");
    }
}
