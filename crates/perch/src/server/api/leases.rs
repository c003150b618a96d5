//! Leases: who may change a Machine for a while (MA-60..64).

use std::sync::Arc;
use std::time::Duration;

use perch_api::server::{MachineTarget, Peer};
use perch_api::wire::{ApiError, Lease, LeaseData, LeaseInput};
use perch_core::lifecycle;

use crate::server::clock;
use crate::server::keeper::{Catalog, Change};
use crate::server::machine::Command;
use crate::server::records::LeaseRecord;
use crate::server::world::World;

/// Seconds when the caller names none (MA-63).
const TTL_DEFAULT: u64 = 120;
/// The longest lease: longer ones are a mistake that blocks everybody else.
const TTL_MAX: u64 = 3_600;

/// Takes a lease, or extends it with its nonce; 409 at once when somebody else has it.
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
                None => format!("{:016x}", clock::random()),
            };
            let lease = LeaseRecord {
                machine: wanted.id.clone(),
                nonce,
                expires_at: clock::unix_secs() + i64::try_from(ttl).unwrap_or(i64::MAX),
                owner: owner(peer),
                description: input.description,
            };
            Ok((vec![Change::PutLease(lease.clone())], lease))
        })
        .await?;
    announce(&world, &target, lifecycle::Lease::Held).await;
    world.tracker.spawn(expire(world.clone(), target.clone(), Duration::from_secs(ttl + 1)));
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

/// Who calls, as lease holders are named.
pub(super) fn owner(peer: Peer) -> String {
    match peer.pid {
        Some(pid) => format!("uid {} (pid {pid})", peer.uid),
        None => format!("uid {}", peer.uid),
    }
}

/// Looks again when the lease has ended, if nobody extended it.
async fn expire(world: Arc<World>, target: MachineTarget, after: Duration) {
    tokio::select! {
        () = tokio::time::sleep(after) => {}
        () = world.shutdown.cancelled() => return,
    }
    let ended = live(&world.keeper.read(), &target.id).is_none();
    if ended {
        announce(&world, &target, lifecycle::Lease::Free).await;
    }
}

async fn announce(world: &Arc<World>, target: &MachineTarget, lease: lifecycle::Lease) {
    if let Some(handle) = world.handle(&target.id) {
        handle.send(Command::Lease(lease)).await;
    }
    world.proxy.app_changed(target.app.clone());
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
    announce(&world, &target, lifecycle::Lease::Free).await;
    Ok(())
}

/// Refuses a change of a leased Machine without the lease's nonce (MA-61).
pub(crate) fn check(world: &World, target: &MachineTarget) -> Result<(), ApiError> {
    let catalog = world.keeper.read();
    match live(&catalog, &target.id) {
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

/// Whether somebody holds a Machine's lease now.
pub(crate) fn is_leased(world: &World, machine: &str) -> bool {
    live(&world.keeper.read(), machine).is_some()
}
