//! Tells of Machines that call too often, whom the kernel holds back (`PlaneConfig::call_limits`).
//!
//! The kernel remembers them for some seconds, and is asked a little more often than that. Each is told of once, and again
//! when it has called too often after a while in which it had not.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use perch_net::CalledOften;

use super::clock;
use super::platform_log::Line;
use super::world::World;

/// More often than they are forgotten.
const INTERVAL: Duration = Duration::from_secs(CalledOften::SECONDS as u64 / 2);

/// Looks until the server ends; never where nobody is held back.
pub(crate) async fn watch(world: Arc<World>) {
    let config = &world.config;
    if config.caller_connections_per_second == 0 && config.caller_datagrams_per_second == 0 {
        return;
    }
    let mut known = [BTreeSet::new(), BTreeSet::new()];
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = world.shutdown.cancelled() => return,
        }
        let plane = world.plane.clone();
        let CalledOften { connections, datagrams } =
            match tokio::task::spawn_blocking(move || plane.called_often()).await {
                Ok(Ok(often)) => often,
                Ok(Err(error)) => {
                    tracing::debug!(
                        error = super::images::chain(&error),
                        "nobody knows who calls too often"
                    );
                    continue;
                }
                Err(_) => return,
            };
        let (calls, sends) =
            (config.caller_connections_per_second, config.caller_datagrams_per_second);
        let told = [
            (connections, format!("opens more than {calls} connections")),
            (datagrams, format!("sends more than {sends} datagrams")),
        ];
        for ((often, what), known) in told.into_iter().zip(&mut known) {
            let now: BTreeSet<Ipv6Addr> = often.into_iter().collect();
            now.difference(known).for_each(|caller| tell(&world, *caller, &what));
            *known = now;
        }
    }
}

/// In the log of the app whose Machine it is.
fn tell(world: &World, caller: Ipv6Addr, what: &str) {
    let found = {
        let catalog = world.keeper.read();
        let mut machines = catalog.machines.values();
        let own = machines.find(|machine| machine.private_ip == caller);
        own.map(|machine| (machine.app.clone(), machine.id.clone()))
    };
    let machine = found.as_ref().map(|(_, id)| id.as_str());
    tracing::warn!(%caller, machine, what, "a Machine calls too often");
    let Some((app, machine)) = found else { return };
    let timestamp = clock::stamp_micros(clock::unix().as_micros() as u64);
    let text = format!("the Machine {what} a second to apps; what is beyond is dropped");
    let line = Line { timestamp, machine, provider: "proxy", level: "warn".to_owned(), text };
    world.platform_log.push(&app, line);
}
