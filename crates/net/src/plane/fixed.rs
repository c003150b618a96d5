//! The parts of a plane that are there before any network: namespace, link to the host, tables;
//! and the inside of a Machine's namespace.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use super::state::State;
use super::{Attach, Inner, PlaneConfig, Prefix48, check_name};
use crate::access;
use crate::error::NetError;
use crate::firewall::{self, HOST4, INSIDE, TABLE};
use crate::listeners::BACKLOG_MAX;
use crate::namespace::{self, set_sysctl};
use crate::netlink::Socket;
use crate::nft;
use crate::route::{
    self, Destination, FAR_END, GATEWAY, LOOPBACK, MAC_FAR, MAC_PLANE, Via, all_of, only,
};

/// Name of the Machine's end of its link.
pub(super) const MACHINE_LINK: &str = "eth0";
/// Every Machine's route to all private networks.
const PRIVATE_NETWORKS: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 0)), 16);
const DEFAULT_V4: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
const IPV4_FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// See [`super::Plane::ensure`].
pub(super) fn ensure(config: &PlaneConfig) -> Result<(OwnedFd, Inner), NetError> {
    check_name(&config.outside)?;
    let mut host_route = Socket::open_route()?;
    let mut host_nft = Socket::open_netfilter()?;
    check_public_routes(&mut host_route, config)?;
    let netns = ensure_namespace(config)?;
    let (mut route, mut nft) = namespace::run_in(netns.as_fd(), prepare_plane)??;
    ensure_loopback(&mut route, config)?;
    ensure_link(&mut host_route, &mut route, netns.as_fd(), &config.outside)?;
    let outside = route::index_of(&mut host_route, &config.outside)?;
    let inside = route::index_of(&mut route, INSIDE)?;
    // The rules are there before a packet can be.
    refresh_host(config, &mut host_route, &mut host_nft, &mut nft)?;
    firewall::remove_former_host(&mut host_nft, &config.outside)?;
    bring_up_link(&mut host_route, &mut route, &config.outside)?;
    configure_inside(&mut route, config, inside)?;
    configure_outside(&mut host_route, config, outside)?;
    ensure_ipv4_forwarding()?;
    let state = State::load(&mut nft)?;
    Ok((netns, Inner { route, nft, host_route, host_nft, outside, inside, state }))
}

/// See [`super::Plane::refresh_host`]; renews the plane's rules as well.
pub(super) fn refresh_host(
    config: &PlaneConfig,
    host_route: &mut Socket,
    host_nft: &mut Socket,
    nft: &mut Socket,
) -> Result<(), NetError> {
    let mut addresses = route::ipv4_addresses(host_route)?;
    // At the very first call the link has no address yet.
    if !addresses.contains(&config.host_link.0) {
        addresses.push(config.host_link.0);
    }
    // The first time there is no such set yet.
    let stale = nft::elements(nft, TABLE, HOST4).unwrap_or_default();
    firewall::ensure_plane(nft, config, &addresses, &stale)?;
    access::ensure(host_nft, &config.outside, &config.host_access)?;
    firewall::ensure_host(host_nft, config)
}

/// What the host reaches by this plane whatever networks there are.
fn public_routes(config: &PlaneConfig, outside: u32) -> [(Destination, Via); 2] {
    let (_, plane) = config.host_link;
    [
        (all_of(config.public_v6), Via::Gateway(outside, GATEWAY.into())),
        (only(config.shared_v4.into()), Via::Gateway(outside, plane.into())),
    ]
}

/// Refuses before anything is made: replacing a route of another plane would take its callers away.
fn check_public_routes(host: &mut Socket, config: &PlaneConfig) -> Result<(), NetError> {
    let links = route::links(host)?;
    let own = links.iter().find(|link| link.name == config.outside).map(|link| link.index);
    for ((addr, len), _) in public_routes(config, 0) {
        let leads_to = route::leads_to(host, (addr, len))?;
        if let Some(other) = leads_to.into_iter().find(|link| Some(*link) != own) {
            let link = links.iter().find(|link| link.index == other);
            let link = link.map_or_else(|| "no link".to_owned(), |link| link.name.clone());
            return Err(NetError::RouteTaken { destination: format!("{addr}/{len}"), link });
        }
    }
    Ok(())
}

/// Makes the host's routes again that somebody took away. What leads elsewhere by now is left alone.
pub(super) fn renew_routes(
    host: &mut Socket,
    config: &PlaneConfig,
    outside: u32,
    networks: impl Iterator<Item = Prefix48>,
) -> Result<(), NetError> {
    let whole =
        |network: Prefix48| (all_of(network.whole()), Via::Gateway(outside, GATEWAY.into()));
    let wanted = public_routes(config, outside).into_iter().chain(networks.map(whole));
    let mut missing = wanted.map(|(destination, via)| route::add_missing_route(destination, via));
    // One by one: a datagram with very many of them would be refused.
    missing.try_for_each(|message| host.apply(vec![message], &[libc::EEXIST]))
}

fn ensure_namespace(config: &PlaneConfig) -> Result<OwnedFd, NetError> {
    if let Some(netns) = namespace::pinned(&config.pin)? {
        tracing::debug!(pin = %config.pin.display(), "adopted the data plane's namespace");
        return Ok(netns);
    }
    let (netns, ()) = namespace::create(|| Ok(()))?;
    namespace::pin(netns.as_fd(), &config.pin)?;
    Ok(netns)
}

/// Runs inside the plane.
fn prepare_plane() -> Result<(Socket, Socket), NetError> {
    let backlog = BACKLOG_MAX.to_string();
    let settings = [
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/ip_forward", "1"),
        // New namespaces inherit the host's; sources are checked by set.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        // The proxy answers from ports of UDP services, and is nobody.
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("core/somaxconn", &backlog),
        ("ipv4/tcp_max_syn_backlog", &backlog),
        // A cookie's connection has no socket before its third packet, which then finds none: the
        // listener is elsewhere. When too many wait, a SYN is dropped, and is sent again.
        ("ipv4/tcp_syncookies", "0"),
        // Every connection of the plane ends on this host, over links that lose nothing: what the host
        // has chosen for long ways (BBR sets a pace, and timers for it) costs, and helps nobody.
        ("ipv4/tcp_congestion_control", "reno"),
    ];
    for (name, value) in settings {
        set_sysctl(name, value)?;
    }
    Ok((Socket::open_route()?, Socket::open_netfilter()?))
}

fn ensure_loopback(route: &mut Socket, config: &PlaneConfig) -> Result<(), NetError> {
    let mut messages = vec![
        route::switch_on("lo"),
        route::add_route(all_of(config.public_v6), Via::Here),
        route::add_route(only(config.shared_v4.into()), Via::Here),
    ];
    messages.extend(route::add_own6(LOOPBACK, config.dns));
    route.apply(messages, &[])
}

/// Makes the link between host and plane unless both ends are there.
fn ensure_link(
    host: &mut Socket,
    plane: &mut Socket,
    plane_netns: std::os::fd::BorrowedFd<'_>,
    outside: &str,
) -> Result<(), NetError> {
    let inside = route::links(plane)?.into_iter().any(|link| link.name == INSIDE);
    let found = route::links(host)?.into_iter().find(|link| link.name == outside);
    match found {
        Some(link) if link.mac != MAC_FAR => {
            return Err(NetError::NameTaken { name: outside.to_owned() });
        }
        Some(_) if inside => return Ok(()),
        Some(_) => host.apply(vec![route::delete_link(outside)], &[])?,
        None => {}
    }
    if inside {
        plane.apply(vec![route::delete_link(INSIDE)], &[libc::ENODEV])?;
    }
    host.apply(vec![route::add_veth_from_far(outside, INSIDE, plane_netns)], &[])
}

fn bring_up_link(host: &mut Socket, plane: &mut Socket, outside: &str) -> Result<(), NetError> {
    set_sysctl(&format!("ipv6/conf/{outside}/accept_ra"), "0")?;
    set_sysctl(&format!("ipv6/conf/{outside}/disable_ipv6"), "0")?;
    host.apply(route::bring_up(outside), &[])?;
    plane.apply(route::bring_up(INSIDE), &[])?;
    host.apply(vec![route::activate(outside)], &[])
}

fn configure_inside(route: &mut Socket, config: &PlaneConfig, inside: u32) -> Result<(), NetError> {
    let (host, plane) = config.host_link;
    let host_v6 = config.public_v6.last_but_one().into();
    let messages = vec![
        route::add_address(inside, (GATEWAY.into(), 64)),
        route::add_address_towards(inside, plane, host),
        route::add_neighbour(inside, host.into(), MAC_FAR),
        route::add_neighbour(inside, host_v6, MAC_FAR),
        route::add_route(only(host_v6), Via::Link(inside)),
        route::add_route(DEFAULT_V4, Via::Gateway(inside, host.into())),
    ];
    route.apply(messages, &[])
}

fn configure_outside(
    host_route: &mut Socket,
    config: &PlaneConfig,
    outside: u32,
) -> Result<(), NetError> {
    let (host, plane) = config.host_link;
    let mut messages = vec![
        route::add_address_towards(outside, host, plane),
        route::add_neighbour(outside, plane.into(), MAC_PLANE),
        route::add_neighbour(outside, GATEWAY.into(), MAC_PLANE),
    ];
    let public = public_routes(config, outside);
    messages.extend(public.map(|(destination, via)| route::add_route(destination, via)));
    messages.extend(route::add_own6(outside, config.public_v6.last_but_one()));
    host_route.apply(messages, &[])
}

/// Egress needs it. IPv6 forwarding is never touched: it would end SLAAC on the host.
fn ensure_ipv4_forwarding() -> Result<(), NetError> {
    let on = fs::read_to_string(IPV4_FORWARDING).is_ok_and(|text| text.trim() == "1");
    if on { Ok(()) } else { set_sysctl("ipv4/ip_forward", "1") }
}

/// Runs inside a Machine's new namespace; returns a socket in it.
pub(super) fn prepare_machine() -> Result<Socket, NetError> {
    let settings = [
        ("ipv6/conf/all/disable_ipv6", "0"),
        ("ipv6/conf/default/disable_ipv6", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        // In the Machine everybody may listen on port 80 and send echo requests.
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
        // All but "unreachable" are limited as by default: by it the proxy knows that nobody reads a UDP port yet.
        ("ipv4/icmp_ratemask", "6160"),
    ];
    for (name, value) in settings {
        set_sysctl(name, value)?;
    }
    Socket::open_route()
}

/// Switches the links of a Machine's namespace on.
pub(super) fn bring_up_machine(far: &mut Socket) -> Result<(), NetError> {
    let mut messages = vec![route::switch_on("lo")];
    messages.extend(route::bring_up(MACHINE_LINK));
    far.apply(messages, &[])
}

/// Gives a Machine's end of its link addresses and routes.
pub(super) fn configure_machine(
    far: &mut Socket,
    config: &PlaneConfig,
    attach: &Attach,
) -> Result<(), NetError> {
    let (plane_end, machine_end) = attach.link;
    let link = route::index_of(far, MACHINE_LINK)?;
    let gateway = Via::Gateway(link, GATEWAY.into());
    let mut messages = vec![
        route::add_address(link, (FAR_END.into(), 64)),
        route::add_address(link, (machine_end.into(), 31)),
        route::add_neighbour(link, GATEWAY.into(), MAC_PLANE),
        route::add_neighbour(link, plane_end.into(), MAC_PLANE),
        route::add_route(PRIVATE_NETWORKS, gateway),
        route::add_route(all_of(config.public_v6), gateway),
        route::add_route(DEFAULT_V4, Via::Gateway(link, plane_end.into())),
    ];
    messages.extend(route::add_own6(link, attach.private_ip));
    far.apply(messages, &[])
}

/// See [`super::Plane::remove_by_config`].
pub(super) fn remove(config: &PlaneConfig) -> Result<(), NetError> {
    check_name(&config.outside)?;
    if let Some(netns) = namespace::pinned(&config.pin)? {
        namespace::run_in(netns.as_fd(), empty_plane)??;
    }
    namespace::unpin(&config.pin)?;
    let mut host_route = Socket::open_route()?;
    let ours = |link: &route::Link| link.name == config.outside && link.mac == MAC_FAR;
    if route::links(&mut host_route)?.iter().any(ours) {
        host_route.apply(vec![route::delete_link(&config.outside)], &[libc::ENODEV])?;
    }
    let mut host_nft = Socket::open_netfilter()?;
    access::remove(&mut host_nft, &config.outside)?;
    firewall::remove_host(&mut host_nft, &config.outside)
}

/// Runs inside the plane: a process that stays there is left without links and rules.
fn empty_plane() -> Result<(), NetError> {
    let mut route = Socket::open_route()?;
    for link in route::links(&mut route)? {
        if link.index != LOOPBACK {
            route.apply(vec![route::delete_link(&link.name)], &[libc::ENODEV])?;
        }
    }
    firewall::remove_plane(&mut Socket::open_netfilter()?)
}
