//! Proxies that have left their listeners to another one, and serve on whom they have.
//!
//! ```text
//!  current ──► renamed ──► connected anew ──► its successor serves: told to retire ──► empty, or late ──► ended
//! ```
//!
//! A server that is killed anywhere on this way has a successor that finds them by their names. One of an earlier
//! release that cannot retire ends as it always has: what is in flight in it has some seconds.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use perch_core::fault::{self, Point};
use perch_proxy::control::{LinkError, LinkSender, Listeners, ToProxy};
use tokio::sync::watch;

use super::{RESPAWN_PAUSE, Role, Standing, connect, do_stop, session};
use crate::process;
use crate::server::proxy_port::{Serving, Which};
use crate::server::world::World;

/// Names that a successor gets anew: answers to questions that were forwarded come back by them.
const OWN: [&str; 2] = ["proxy-forward4", "proxy-forward6"];

/// Gives the proxy that has the listeners its other names; answers what its successor gets. Without all of that it stays
/// what it is, since nobody would be accepted any more.
pub(super) fn retire(
    world: &Arc<World>,
    pid: u32,
    listeners: Option<Listeners>,
) -> Option<Listeners> {
    let next = match listeners.as_ref().map(|it| for_successor(world, it)) {
        Some(Ok(next)) => next,
        missing => {
            let error = missing.and_then(Result::err).unwrap_or_else(|| anyhow!("none are known"));
            let error = format!("{error:#}");
            tracing::error!(error, "the proxy cannot be replaced: its successor has no listeners");
            return listeners;
        }
    };
    let paths = &world.paths;
    // In this order: a server that finds only the first done takes it for the one that has the listeners.
    let renamed = std::fs::rename(paths.proxy_record(), paths.retired_record(pid)).and_then(|()| {
        fault::pass(Point::ServerProxyRenamed);
        std::fs::rename(paths.proxy_socket(), paths.retired_socket(pid))
    });
    fault::pass(Point::ServerProxyRetired);
    if let Err(error) = renamed {
        tracing::error!(%error, "the proxy cannot be replaced");
        take_back(world);
        return listeners;
    }
    world.proxy.set_process(None);
    let (number, wire, answers) = world.proxy.retire_current();
    let kept = world.clone();
    world.tracker.spawn(async move {
        keep(kept.clone(), pid, (number, wire, answers), None).await;
        // With nobody to serve it ends so soon that what it said may be lost with its connection. It has not if we end.
        if !kept.shutdown.is_cancelled() {
            kept.proxy.note_none_left(pid);
        }
    });
    Some(next)
}

/// Copies of a proxy's listeners, but with sockets of its own where these must be.
fn for_successor(world: &World, listeners: &Listeners) -> anyhow::Result<Listeners> {
    let mut named = listeners.try_clone().context("could not copy them")?.into_named();
    named.retain(|(name, _)| !OWN.contains(&name.as_str()));
    Listeners::from_named(named, |name| super::make_listener(world, name))
}

/// Gives the proxy that has the listeners its record back, if a server came no further than to the record's other name.
/// To be called before it is looked for: it may greet late, and is not to be taken for a retired one meanwhile.
pub(crate) fn take_back(world: &World) {
    let paths = &world.paths;
    if !paths.proxy_socket().exists() || process::recall(&paths.proxy_record()).is_some() {
        return;
    }
    let lives = |pid: &u32| process::recall(&paths.retired_record(*pid)).is_some();
    let halfway = |pid: &u32| !paths.retired_socket(*pid).exists() && lives(pid);
    if let Some(pid) = paths.retired_proxies().into_iter().find(halfway)
        && let Err(error) = std::fs::rename(paths.retired_record(pid), paths.proxy_record())
    {
        tracing::error!(%error, pid, "could not write down which process the proxy is");
    }
}

/// One that an earlier server has left; [`None`]: it lives, and is slow.
pub(crate) type Found = (u32, Option<Standing>);

/// Those that an earlier server has left, beside the one that has the listeners.
pub(crate) async fn find(world: &Arc<World>) -> Vec<Found> {
    let mut found = Vec::new();
    for pid in world.paths.retired_proxies() {
        let record = world.paths.retired_record(pid);
        match connect(&world.paths.retired_socket(pid)).await {
            Ok(standing) => found.push((pid, Some(standing))),
            Err(LinkError::Version { .. }) => forget(world, pid),
            Err(_) if process::recall(&record).is_some() => found.push((pid, None)),
            Err(_) => forget(world, pid),
        }
    }
    found
}

/// One that was found, with its place.
pub(crate) type Placed = (Found, RetiredPlace);

/// Gives those that were found their places: what Machines want from now on is asked of them, too.
pub(crate) fn place(world: &World, found: Vec<Found>) -> Vec<Placed> {
    found.into_iter().map(|it| (it, world.proxy.add_retired())).collect()
}

/// Serves those that were found. Not before every Machine has its task: one that has none is none that the proxy is told of,
/// which would end what it has to it.
pub(crate) fn keep_found(world: &Arc<World>, placed: Vec<Placed>) {
    for ((pid, standing), place) in placed {
        world.tracker.spawn(keep(world.clone(), pid, place, standing));
    }
}

pub(crate) type RetiredPlace =
    (u64, Arc<crate::server::proxy_port::Wire>, tokio::sync::mpsc::Receiver<ToProxy>);

/// Keeps one connected until it or the server ends.
async fn keep(
    world: Arc<World>,
    pid: u32,
    (number, wire, mut answers): RetiredPlace,
    mut found: Option<Standing>,
) {
    let process = process::recall(&world.paths.retired_record(pid));
    let lives =
        || process.as_ref().is_some_and(|it| !process::ends_within(it, std::time::Duration::ZERO));
    while !world.shutdown.is_cancelled() {
        let connected = match found.take() {
            Some(standing) => Ok(standing),
            None => connect(&world.paths.retired_socket(pid)).await,
        };
        if let Ok((link, _)) = connected {
            let ended = session(&world, link, &mut answers, Role::Retired(number, &wire)).await;
            // What was meant for this connection would confuse the next.
            while answers.try_recv().is_ok() {}
            // An end of the connection says nothing of what is in flight there: only that of the process does, below.
            for stop in world.proxy.parted() {
                do_stop(&world, stop);
            }
            if let Err(error) = ended {
                tracing::debug!(pid, %error, "a retired proxy's connection ended");
            }
        }
        if !world.shutdown.is_cancelled() {
            if !lives() {
                break;
            }
            tokio::time::sleep(RESPAWN_PAUSE).await;
        }
    }
    if lives() {
        // The server ends, and its successor finds it.
        return;
    }
    world.proxy.remove_retired(number);
    for stop in world.proxy.gone(Which::Retired(number)) {
        do_stop(&world, stop);
    }
    if !world.shutdown.is_cancelled() {
        tracing::info!(pid, "a retired proxy has ended");
        forget(&world, pid);
    }
}

/// Of one that lives nothing can be understood.
fn forget(world: &World, pid: u32) {
    let record = world.paths.retired_record(pid);
    if let Some(stranger) = process::recall(&record) {
        super::kill(&stranger);
    }
    for file in [world.paths.retired_socket(pid), record] {
        remove(&file);
    }
}

fn remove(file: &Path) {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let file = file.display();
            tracing::warn!(%error, %file, "could not remove what a retired proxy left");
        }
        Ok(()) | Err(_) => {}
    }
}

/// Waits until another proxy than this has the listeners and was told everything.
pub(super) async fn has_successor(serving: &mut watch::Receiver<Option<Serving>>, pid: u32) {
    let other = serving.wait_for(|now| now.is_some_and(|now| now.pid != pid)).await.is_ok();
    if !other {
        // The server ends.
        std::future::pending().await
    }
}

/// Tells it that it has a successor.
pub(super) async fn tell(
    world: &Arc<World>,
    sender: &mut LinkSender,
    pid: u32,
    retires: bool,
) -> Result<(), LinkError> {
    let bound = world.config.upgrade_drain_max.0;
    fault::pass(Point::ServerProxyFollowed);
    if retires {
        let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        return sender.send(&ToProxy::Retire { bound_ms }).await;
    }
    tracing::warn!(pid, "a proxy of an earlier release cannot go on beside its successor; it ends");
    if let Some(process) = process::recall(&world.paths.retired_record(pid)) {
        world.tracker.spawn_blocking(move || super::end(&process));
    }
    Ok(())
}

/// All of them that live.
pub(crate) fn processes(world: &World) -> Vec<OwnedFd> {
    let pids = world.paths.retired_proxies();
    pids.into_iter().filter_map(|pid| process::recall(&world.paths.retired_record(pid))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_successor_gets_anew_is_among_the_listeners() {
        assert!(OWN.iter().all(|name| Listeners::NAMES.contains(name)));
    }
}
