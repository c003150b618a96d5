//! Raw streams into an app's network, for `fly proxy`: dialled inside the data plane, as the platform's own member of
//! that network.
//!
//! The source of the connection is `<prefix>::3` of the network, so that the data plane and the proxy judge it as
//! they judge a Machine of that network. What they do not judge is a connection straight to a Machine, since nothing
//! of it is forwarded; hence only what members of the network may call is dialled at all.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use perch_api::wire::{ApiError, IpKind, MachineState};
use rustix::net::sockopt::set_ipv6_freebind;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::{TcpSocket, TcpStream};

use crate::server::images::chain;
use crate::server::keeper::Catalog;
use crate::server::records::{AppRecord, IpRecord};
use crate::server::views;
use crate::server::world::World;

/// Connects to a name or address of the app's network; what sleeps is woken by the connection.
pub(crate) async fn open(
    world: &Arc<World>,
    app: &str,
    host: &str,
    port: u16,
) -> Result<TcpStream, ApiError> {
    let address = resolve(world, app, host)?;
    let source = source(&world.keeper.read(), app, address)?;
    let target = SocketAddr::new(address, port);
    let failed = |why: String| {
        ApiError::new(502, format!("could not connect to {target} for app {app}: {why}"))
    };
    connect(world, source, target).await.map_err(failed)
}

/// Connects inside the data plane, from an address that is the plane's own.
pub(super) async fn connect(
    world: &World,
    source: IpAddr,
    target: SocketAddr,
) -> Result<TcpStream, String> {
    let plane = world.plane.clone();
    let made = tokio::task::spawn_blocking(move || plane.enter(|| socket(source))).await;
    let entered = made.map_err(|error| error.to_string())?;
    let socket = entered.map_err(|error| chain(&error))?;
    let socket = socket.map_err(|error| error.to_string())?;
    socket.connect(target).await.map_err(|error| error.to_string())
}

/// A socket with this source, in the network namespace of the calling thread.
fn socket(source: IpAddr) -> std::io::Result<TcpSocket> {
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if source.is_ipv6() {
        // The address is ours by a route, not by a link.
        set_ipv6_freebind(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(source, 0))?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// With which address `target` is called on behalf of an app: the platform's in the app's network, or in the one
/// that the app has a Flycast address for.
fn source(catalog: &Catalog, app: &str, target: IpAddr) -> Result<IpAddr, ApiError> {
    let record = catalog.app(app)?;
    let home = || IpAddr::V6(views::platform_peer(record.network_id));
    if let Some((owner, ip)) = owner_of(catalog, target) {
        return match (&ip.caller, target) {
            (None, IpAddr::V4(_)) => Ok(Ipv4Addr::UNSPECIFIED.into()),
            (None, IpAddr::V6(_)) => Ok(home()),
            (Some(network), _) if network.id == record.network_id => Ok(home()),
            (Some(network), _) if owner.name == app => {
                Ok(IpAddr::V6(views::platform_peer(network.id)))
            }
            (Some(_), _) => Err(foreign(record, target)),
        };
    }
    let machine = catalog.machines.values().find(|it| IpAddr::V6(it.private_ip) == target);
    let theirs = machine.and_then(|it| catalog.apps.get(&it.app)).map(|it| it.network_id);
    if theirs == Some(record.network_id) { Ok(home()) } else { Err(foreign(record, target)) }
}

/// The app that has an address, and what it is to it. A shared one is anybody's.
fn owner_of(catalog: &Catalog, address: IpAddr) -> Option<(&AppRecord, &IpRecord)> {
    let mut all = catalog.apps.values().flat_map(|app| app.ips.iter().map(move |ip| (app, ip)));
    all.find(|(_, ip)| ip.ip == address)
}

fn foreign(app: &AppRecord, target: IpAddr) -> ApiError {
    ApiError::invalid(format!(
        "{target} cannot be called from the network of app {} (organization {}, network {}): it is neither a Machine \
         nor a Flycast address there, nor public; name an app of the network that has it by `-a`",
        app.name, app.org, app.network
    ))
}

/// `APP.flycast`, `ID.vm.APP.internal`, `APP.internal`, or an address; empty = the app's own Flycast address.
fn resolve(world: &World, app: &str, host: &str) -> Result<IpAddr, ApiError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let host = if host.is_empty() { format!("{app}.flycast") } else { host.to_ascii_lowercase() };
    if let Some(name) = host.strip_suffix(".flycast") {
        return flycast(&world.keeper.read(), app, name);
    }
    internal(world, &host).ok_or_else(|| {
        ApiError::not_found(format!(
            "no address for {host:?}; use APP.flycast, APP.internal, MACHINE.vm.APP.internal or an address"
        ))
    })
}

/// The Flycast address of app `name` that the network of `asker` may call, else its first one.
fn flycast(catalog: &Catalog, asker: &str, name: &str) -> Result<IpAddr, ApiError> {
    let (home, record) = (catalog.app(asker)?.network_id, catalog.app(name)?);
    let private: Vec<_> = record.ips.iter().filter(|it| it.kind == IpKind::PrivateV6).collect();
    let visible = |it: &&&IpRecord| it.caller.as_ref().is_some_and(|network| network.id == home);
    private.iter().find(visible).or(private.first()).map(|ip| ip.ip).ok_or_else(|| {
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
        state == Some(MachineState::Started)
    };
    let (only, app) = match name.split_once(".vm.") {
        Some((id, app)) => (Some(id), app),
        None => (None, name),
    };
    let mut machines = catalog.machines_of(app).filter(|it| only.is_none_or(|id| id == it.id));
    machines.find(|it| started(&it.id)).map(|it| IpAddr::V6(it.private_ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::keeper::Change;
    use crate::server::records::{NetworkRecord, tests as records};

    /// An app in a network of the same number, with a Flycast address for the network `caller`.
    fn add(catalog: &mut Catalog, name: &str, network: u32, caller: u32, ip: &str) {
        let caller = NetworkRecord { id: caller, org: "o".to_owned(), name: "n".to_owned() };
        let ip = IpRecord {
            ip: ip.parse().expect("a literal address"),
            kind: IpKind::PrivateV6,
            created_at: String::new(),
            caller: Some(caller),
        };
        let ips = vec![ip];
        let app = AppRecord { network_id: network, ips, ..records::app(name) };
        catalog.apply(Change::PutApp(app));
    }

    fn source_for(catalog: &Catalog, app: &str, target: &str) -> Option<String> {
        let target = target.parse().expect("a literal address");
        source(catalog, app, target).ok().map(|source| source.to_string())
    }

    fn two_networks() -> Catalog {
        let mut catalog = Catalog::default();
        add(&mut catalog, "web", 1, 1, "fdaa:0:1:0:1::1");
        add(&mut catalog, "other", 2, 2, "fdaa:0:2:0:1::1");
        catalog
    }

    #[test]
    fn each_app_is_called_from_its_own_network() {
        let catalog = two_networks();
        assert_eq!(source_for(&catalog, "web", "fdaa:0:1:0:1::1").as_deref(), Some("fdaa:0:1::3"));
        assert_eq!(
            source_for(&catalog, "other", "fdaa:0:2:0:1::1").as_deref(),
            Some("fdaa:0:2::3")
        );
    }

    #[test]
    fn nothing_is_called_from_a_network_that_may_not_call_it() {
        let mut catalog = two_networks();
        let mut machine = records::machine("m1");
        machine.private_ip = "fdaa:0:1:a7b:1:0:1:2".parse().expect("a literal address");
        catalog.apply(Change::PutMachine(Box::new(machine)));
        for target in ["fdaa:0:1:0:1::1", "fdaa:0:1:a7b:1:0:1:2", "fdaa:0:1::3", "::1", "127.0.0.1"]
        {
            assert_eq!(source_for(&catalog, "other", target), None, "{target}");
        }
        let own = source_for(&catalog, "web", "fdaa:0:1:a7b:1:0:1:2");
        assert_eq!(own.as_deref(), Some("fdaa:0:1::3"));
    }

    #[test]
    fn an_address_for_another_network_is_called_from_there_by_its_own_app_only() {
        let mut catalog = two_networks();
        add(&mut catalog, "shared", 1, 2, "fdaa:0:2:0:1::2");
        let address = "fdaa:0:2:0:1::2";
        assert_eq!(source_for(&catalog, "shared", address).as_deref(), Some("fdaa:0:2::3"));
        assert_eq!(source_for(&catalog, "other", address).as_deref(), Some("fdaa:0:2::3"));
        assert_eq!(source_for(&catalog, "web", address), None);
    }

    #[test]
    fn a_name_means_the_address_that_the_asking_apps_network_may_call() {
        let mut catalog = two_networks();
        let mut app = catalog.apps["web"].clone();
        let mut second = app.ips[0].clone();
        second.ip = "fdaa:0:2:0:1::7".parse().expect("a literal address");
        second.caller = Some(NetworkRecord { id: 2, ..second.caller.expect("private") });
        app.ips.push(second.clone());
        catalog.apply(Change::PutApp(app.clone()));
        assert_eq!(flycast(&catalog, "other", "web").expect("it has one"), second.ip);
        assert_eq!(flycast(&catalog, "web", "web").expect("it has one"), app.ips[0].ip);
        assert_eq!(flycast(&catalog, "web", "none").expect_err("no app").code, 404);
    }
}
