//! Raw streams into an app's network, for `fly proxy`: dialled inside the data plane, as the host.

use std::net::{IpAddr, SocketAddr};

use perch_api::wire::{ApiError, IpKind};
use tokio::net::TcpStream;

use crate::server::views;
use crate::server::world::World;

/// Connects to a name or address of the app's network; what sleeps is woken by the connection.
pub(crate) async fn open(
    world: &World,
    app: &str,
    host: &str,
    port: u16,
) -> Result<TcpStream, ApiError> {
    let address = resolve(world, app, host)?;
    check_reachable(world, app, address)?;
    let target = SocketAddr::new(address, port);
    TcpStream::connect(target).await.map_err(|error| {
        ApiError::new(502, format!("could not connect to {target} for app {app}: {error}"))
    })
}

/// The connection is the host's own, a member of the default organization's default network; through it nobody
/// reaches what is not Perch's.
fn check_reachable(world: &World, app: &str, address: IpAddr) -> Result<(), ApiError> {
    let catalog = world.keeper.read();
    let is_public = catalog
        .apps
        .values()
        .flat_map(|app| &app.ips)
        .any(|ip| ip.ip == address && ip.caller.is_none());
    let own = views::host_peers(world, &catalog).into_iter().find_map(network_of);
    if is_public || (own.is_some() && network_of(address) == own) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{address} is not in the network of this host (organization {}, network default), which `fly proxy` of app \
         {app} uses; call it from a Machine of its own network",
        world.config.default_org()
    )))
}

fn network_of(address: IpAddr) -> Option<perch_core::ids::NetworkId> {
    match address {
        IpAddr::V6(address) => perch_core::address::network_of(address),
        IpAddr::V4(_) => None,
    }
}

/// `APP.flycast`, `ID.vm.APP.internal`, `APP.internal`, or an address; empty = the app's own Flycast address.
fn resolve(world: &World, app: &str, host: &str) -> Result<IpAddr, ApiError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let host = if host.is_empty() { format!("{app}.flycast") } else { host.to_ascii_lowercase() };
    if let Some(name) = host.strip_suffix(".flycast") {
        return flycast(world, name);
    }
    internal(world, &host).ok_or_else(|| {
        ApiError::not_found(format!(
            "no address for {host:?}; use APP.flycast, APP.internal, MACHINE.vm.APP.internal or an address"
        ))
    })
}

fn flycast(world: &World, name: &str) -> Result<IpAddr, ApiError> {
    let catalog = world.keeper.read();
    let record = catalog.app(name)?;
    let private = record.ips.iter().find(|ip| ip.kind == IpKind::PrivateV6);
    private.map(|ip| ip.ip).ok_or_else(|| {
        ApiError::not_found(format!(
            "app {name} has no Flycast address; give it one with `fly ips allocate-v6 --private -a {name}`"
        ))
    })
}

/// The first started Machine that a name under `.internal` means (PN-20, PN-24).
fn internal(world: &World, host: &str) -> Option<IpAddr> {
    let name = host.strip_suffix(".internal")?;
    let catalog = world.keeper.read();
    let started = |id: &str| {
        let state = world.handle(id).map(|handle| handle.status().state);
        state == Some(perch_api::wire::MachineState::Started)
    };
    let (only, app) = match name.split_once(".vm.") {
        Some((id, app)) => (Some(id), app),
        None => (None, name),
    };
    let mut machines = catalog.machines_of(app).filter(|it| only.is_none_or(|id| id == it.id));
    machines.find(|it| started(&it.id)).map(|it| IpAddr::V6(it.private_ip))
}
