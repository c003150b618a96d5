//! What the proxy is told: the catalog and the Machines' states in the proxy's own types.

use std::net::IpAddr;
use std::time::Duration;

use perch_api::wire;
use perch_core::service;
use perch_proxy::control::{
    AddressKind, AddressView, AllowView, AppView, Autostop, Cause, HttpView, MachineView,
    NetworkView, PortView, ServiceView, SessionView, Settings, SigningSeed, Source, Thaw, Unit,
};

use super::checks;
use super::clock;
use super::keeper::Catalog;
use super::launching;
use super::records::{AppRecord, IpRecord, MachineRecord};
use super::standby;
use super::world::World;
use crate::config::HostAccess;

/// Facts about this host.
pub(crate) fn settings(world: &World) -> Settings {
    let catalog = world.keeper.read();
    let network = |record: &super::records::NetworkRecord| NetworkView {
        id: record.id,
        prefix: launching::prefix(record.id),
        org: record.org.clone(),
        name: record.name.clone(),
    };
    Settings {
        region: world.config.region.clone(),
        resolvers: world.config.upstream_resolvers(),
        networks: catalog.networks.values().map(network).collect(),
        host_peers: host_peers(world, &catalog),
        public_domain: world.config.public_domain.clone(),
        starts_max: world.config.starts_max,
        notes: true,
        source_key: Some(SigningSeed(world.signing.seed())),
        caller_connections_max: world.config.caller_connections_max,
    }
}

/// Addresses with which the host itself calls (DESIGN 6: the default organization's default network).
pub(crate) fn host_peers(world: &World, catalog: &Catalog) -> Vec<IpAddr> {
    if world.config.host_access == HostAccess::None {
        return Vec::new();
    }
    let key = (world.config.default_org().to_owned(), "default".to_owned());
    let network = catalog.networks.get(&key);
    network.map(|network| IpAddr::V6(host_peer(network.id))).into_iter().collect()
}

/// The host's own address in a network: the form that peers have (PN-10), on host number 1.
pub(crate) fn host_peer(network_id: u32) -> std::net::Ipv6Addr {
    let [first, high, low, ..] = launching::prefix(network_id).segments();
    std::net::Ipv6Addr::new(first, high, low, 0xa7b, 1, 0, 0xa, 2)
}

/// The platform's own address in a network, `<prefix>::3` (PN-06); with it `fly proxy` calls.
pub(crate) fn platform_peer(network_id: u32) -> std::net::Ipv6Addr {
    let [first, high, low, ..] = launching::prefix(network_id).segments();
    std::net::Ipv6Addr::new(first, high, low, 0, 0, 0, 0, 3)
}

/// One app as it is now; `None` when it is gone.
pub(crate) fn app(world: &World, name: &str) -> Option<AppView> {
    let catalog = world.keeper.read();
    let record = catalog.apps.get(name)?;
    Some(AppView {
        name: name.to_owned(),
        network: record.network_id,
        // Views are made and sent by one task, in order; the clock only makes them grow.
        revision: clock::now().as_micros(),
        addresses: record.ips.iter().map(address).collect(),
        machines: catalog
            .machines_of(name)
            .filter_map(|it| machine(world, &catalog, record, it))
            .collect(),
    })
}

fn address(record: &IpRecord) -> AddressView {
    let kind = match record.kind {
        wire::IpKind::PrivateV6 => AddressKind::Private,
        wire::IpKind::V4 | wire::IpKind::V6 => AddressKind::Public,
        wire::IpKind::SharedV4 => AddressKind::Shared,
    };
    AddressView {
        ip: record.ip,
        kind,
        network: record.caller.as_ref().map_or(0, |network| network.id),
    }
}

fn machine(
    world: &World,
    catalog: &Catalog,
    app: &AppRecord,
    record: &MachineRecord,
) -> Option<MachineView> {
    let status = world.handle(&record.id)?.status();
    let leased = super::api::is_kept_awake(catalog, &record.id, status.run)
        || world.copying.is_of(&record.id);
    // Read once for all that is taken from it below.
    let _read = record.config.read();
    Some(MachineView {
        id: record.id.clone(),
        run: status.run,
        state: status.state.to_string(),
        region: record.region.clone(),
        group: record.group(),
        link_ip: record.link_ip,
        private_ip: record.private_ip,
        config_version: record.config_version,
        cordoned: record.cordoned,
        leased,
        primary: is_primary(world, app, record),
        skip_dns: skips_dns(record),
        metadata: record.config.view().metadata.clone(),
        services: services(world, record, status.state),
        checks: checks::views(&record.config.view(), None),
    })
}

/// AS-64: the primary region is the one that the config names, else this host's.
fn is_primary(world: &World, _app: &AppRecord, record: &MachineRecord) -> bool {
    let view = record.config.view();
    let named = view.env.get("PRIMARY_REGION");
    named.is_none_or(|region| *region == record.region) || record.region == world.config.region
}

fn skips_dns(record: &MachineRecord) -> bool {
    record.config.get("dns").is_some_and(|dns| dns["skip_registration"] == true)
}

/// Of a standby none while it waits; the proxy neither starts nor stops one (AS-42).
fn services(world: &World, record: &MachineRecord, state: wire::MachineState) -> Vec<ServiceView> {
    let view = record.config.view();
    if standby::is_waiting(record, state) {
        return Vec::new();
    }
    let services = view.services.iter().enumerate();
    let services = services.map(|(index, it)| ServiceView {
        checks: checks::views(&view, Some(index)),
        ..service_view(world, it)
    });
    let mut services: Vec<_> = services.collect();
    if !view.standbys.is_empty() {
        for service in &mut services {
            (service.autostop, service.autostart) = (Autostop::Off, false);
        }
    }
    services
}

fn service_view(world: &World, service: &wire::Service) -> ServiceView {
    let concurrency = service.concurrency.clone().unwrap_or_default();
    let positive = |limit: Option<u32>| limit.filter(|limit| 0 < *limit);
    let hard_limit = positive(concurrency.hard_limit);
    let soft_limit = positive(concurrency.soft_limit).unwrap_or(service::SOFT_LIMIT_DEFAULT);
    let stop_after =
        service.auto_stop_after.map_or(world.config.auto_stop_after.0, |length| length.0);
    let start_timeout =
        service.start_timeout.map_or(service::START_TIMEOUT_DEFAULT, |length| length.0);
    ServiceView {
        protocol: service.protocol.clone(),
        internal_port: service.internal_port,
        ports: service.ports.iter().filter_map(port_view).collect(),
        autostop: match service.autostop {
            wire::Autostop::Off => Autostop::Off,
            wire::Autostop::Stop => Autostop::Stop,
            wire::Autostop::Suspend => Autostop::Suspend,
        },
        autostart: service.autostart.unwrap_or(unset(service)),
        min_machines_running: service.min_machines_running.unwrap_or(0),
        soft_limit: hard_limit.map_or(soft_limit, |hard| soft_limit.min(hard)),
        hard_limit,
        unit: match concurrency.unit {
            wire::LimitUnit::Requests => Unit::Requests,
            wire::LimitUnit::Connections => Unit::Connections,
        },
        auto_stop_after_ms: millis(stop_after),
        start_timeout_ms: millis(start_timeout),
        checks: Vec::new(),
        allow: service.allow.iter().map(allow_view).collect(),
        first_byte: service.first_byte,
    }
}

fn allow_view(rule: &wire::Allow) -> AllowView {
    let wire::Allow { from, methods, paths, .. } = rule.clone();
    AllowView { from, methods, paths, then: rule.then().to_owned() }
}

/// CT-04: absent on the API means false, but a service with no setting at all is started by its callers.
fn unset(service: &wire::Service) -> bool {
    service.autostop == wire::Autostop::Off && service.min_machines_running.is_none()
}

fn port_view(port: &wire::Port) -> Option<PortView> {
    let (start, end) = port.range()?;
    let (http, _bad) = port.http();
    let treated = http.idle_timeout.is_some()
        || http.compress
        || !http.response_headers.is_empty()
        || !http.replay_cache.is_empty();
    Some(PortView {
        start,
        end,
        handlers: port.handlers.clone(),
        force_https: port.force_https,
        h2_backend: http.h2_backend,
        proxy_proto_v2: port.proxy_proto_v2(),
        http: treated.then_some(HttpView {
            idle_timeout_ms: http.idle_timeout.map(|seconds| u64::from(seconds) * 1000),
            response_headers: http.response_headers,
            compress: http.compress,
            replay_cache: http.replay_cache.into_iter().map(session_view).collect(),
        }),
    })
}

fn session_view(rule: wire::ReplayCache) -> SessionView {
    let wire::ReplayCache { path_prefix, ttl_seconds, is_header, name, allow_bypass } = rule;
    SessionView { path_prefix, ttl_seconds, is_header, name, allow_bypass }
}

pub(super) fn millis(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Whether somebody calls as the platform itself: by `fly proxy`.
pub(crate) fn is_platform(caller: IpAddr) -> bool {
    let IpAddr::V6(caller) = caller else { return false };
    let network = perch_core::address::network_of(caller);
    network.is_some_and(|network| platform_peer(network.as_u32()) == caller)
}

/// Who caused a wake, and how the proxy did it if it has.
pub(crate) fn wake_text(cause: Option<&Cause>, thawed: Option<Thaw>) -> String {
    let by_byte = || "the next byte of an open connection".to_owned();
    let cause = match thawed {
        Some(_) => cause.map_or_else(by_byte, cause_text),
        None => cause.map_or_else(String::new, cause_text),
    };
    match thawed {
        Some(Thaw { micros, .. }) => {
            let millis = Duration::from_micros(micros).as_secs_f64() * 1000.0;
            format!("{cause}; thawed by the proxy in {millis:.2} ms")
        }
        None => cause,
    }
}

/// Who caused a wake, in words for the Machine's events.
pub(crate) fn cause_text(cause: &Cause) -> String {
    let who = match &cause.source {
        Source::Machine { app, machine } => format!("app {app}, Machine {machine}"),
        Source::Host => "the host".to_owned(),
        Source::Unknown if is_platform(cause.caller) => "`fly proxy`".to_owned(),
        Source::Unknown => "somebody unknown".to_owned(),
    };
    let what = cause.request.as_deref().unwrap_or("a connection");
    format!("{what} at {} by {who} ({})", cause.dest, cause.caller)
}
