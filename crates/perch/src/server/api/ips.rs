//! Addresses of apps: allocation by the plan, release with a day of rest.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use perch_api::wire::{ApiError, AssignIp, IpAssignment, IpKind, IpNetwork};
use perch_core::address::{self, Taken};
use perch_core::ids::NetworkId;

use super::apps;
use crate::server::clock;
use crate::server::keeper::{Catalog, Change, v6_of};
use crate::server::records::{AppRecord, IpRecord, NetworkRecord, RetiredRecord};
use crate::server::world::World;

/// What the shared address's creation is shown as (blueprint: `Jan 1 0001 00:00`).
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Lists an app's addresses in order of allocation, the shared one last.
pub(crate) fn list(world: &World, app: &str) -> Result<Vec<IpAssignment>, ApiError> {
    let catalog = world.keeper.read();
    let mut ips: Vec<IpAssignment> = catalog.app(app)?.ips.iter().map(wire_ip).collect();
    ips.sort_by_key(|ip| ip.shared);
    Ok(ips)
}

/// Gives an app an address; one that it has already is answered again (FC-08).
pub(crate) async fn assign(
    world: Arc<World>,
    app: String,
    input: AssignIp,
) -> Result<IpAssignment, ApiError> {
    let settings = Settings {
        default_org: world.config.default_org().to_owned(),
        public_v6: world.config.public_v6,
        shared_v4: IpAddr::V4(world.config.shared_v4),
        organizations: world.config.organizations.clone(),
    };
    let name = app.clone();
    let made = world.keeper.write(move |catalog| decide(catalog, &name, &input, &settings)).await?;
    if let Some(network) = &made.new_network {
        apps::open_network(&world, network).await?;
        world.proxy.networks_changed();
    }
    world.publish(&app).await;
    world.proxy.app_changed(app);
    Ok(wire_ip(&made.ip))
}

struct Settings {
    default_org: String,
    public_v6: Ipv6Addr,
    shared_v4: IpAddr,
    organizations: Vec<String>,
}

struct Made {
    ip: IpRecord,
    new_network: Option<NetworkRecord>,
}

fn decide(
    catalog: &Catalog,
    name: &str,
    input: &AssignIp,
    settings: &Settings,
) -> Result<(Vec<Change>, Made), ApiError> {
    let app = catalog.staying_app(name)?;
    let (caller, new_network) = match input.kind {
        IpKind::PrivateV6 => calling_network(catalog, app, input, settings)?,
        IpKind::V4 | IpKind::V6 | IpKind::SharedV4 => (None, None),
    };
    if let Some(ip) = app.ips.iter().find(|ip| ip.kind == input.kind && ip.caller == caller) {
        return Ok((Vec::new(), Made { ip: ip.clone(), new_network: None }));
    }
    let ip = match (input.kind, &caller) {
        (IpKind::PrivateV6, Some(network)) => IpAddr::V6(plan_private(catalog, network)?),
        (IpKind::V6, _) => IpAddr::V6(plan_public(catalog, settings.public_v6)?),
        (IpKind::SharedV4, _) => settings.shared_v4,
        (IpKind::V4 | IpKind::PrivateV6, _) => return Err(no_dedicated_v4()),
    };
    let created_at =
        if input.kind == IpKind::SharedV4 { ZERO_TIME.to_owned() } else { clock::stamp() };
    let record = IpRecord { ip, kind: input.kind, created_at, caller };
    let mut app = app.clone();
    app.ips.push(record.clone());
    let mut changes = vec![Change::PutApp(app)];
    changes.extend(rested(catalog));
    changes.extend(new_network.clone().map(Change::PutNetwork));
    Ok((changes, Made { ip: record, new_network }))
}

fn no_dedicated_v4() -> ApiError {
    ApiError::invalid(
        "a dedicated public IPv4 cannot be had here; use `fly ips allocate-v4 --shared` for the shared one, \
         or `fly ips allocate-v6 --private` for a private address",
    )
}

type Calling = (Option<NetworkRecord>, Option<NetworkRecord>);

/// Which network may call: the app's own unless the caller names another (FC-13, FC-19); a named one that
/// does not exist yet is made (PN-60).
fn calling_network(
    catalog: &Catalog,
    app: &AppRecord,
    input: &AssignIp,
    settings: &Settings,
) -> Result<Calling, ApiError> {
    let (org, name) = match (input.org_slug.as_str(), input.network.as_str()) {
        ("", "") => (app.org.as_str(), app.network.as_str()),
        ("", network) => (app.org.as_str(), network),
        (org, "") => (org, "default"),
        (org, network) => (org, network),
    };
    if !settings.organizations.iter().any(|own| own == org) {
        return Err(ApiError::not_found(format!(
            "there is no organization {org:?} on this server; the default one is {}",
            settings.default_org
        )));
    }
    name.parse::<perch_core::ids::NetworkName>()
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    if let Some(network) = catalog.networks.get(&(org.to_owned(), name.to_owned())) {
        return Ok((Some(network.clone()), None));
    }
    let network = apps::plan_network(catalog, org, name, clock::random())?;
    Ok((Some(network.clone()), Some(network)))
}

fn plan_private(catalog: &Catalog, network: &NetworkRecord) -> Result<Ipv6Addr, ApiError> {
    let id =
        NetworkId::new(network.id).ok_or_else(|| ApiError::internal("network 0 in the store"))?;
    let taken: [&dyn Taken; 2] = [catalog.apps_by_address(), &resting(catalog)];
    address::plan_flycast(id, &taken).map_err(|error| ApiError::invalid(error.to_string()))
}

fn plan_public(catalog: &Catalog, pool: Ipv6Addr) -> Result<Ipv6Addr, ApiError> {
    let taken: [&dyn Taken; 2] = [catalog.apps_by_address(), &resting(catalog)];
    address::plan_public(pool, &taken).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Addresses released less than a day ago (FC-03).
fn resting(catalog: &Catalog) -> BTreeSet<Ipv6Addr> {
    let resting = catalog.retired.values().filter(|it| !is_rested(it));
    v6_of(resting.map(|it| it.ip)).collect()
}

fn is_rested(record: &RetiredRecord) -> bool {
    let rest = i64::try_from(address::REUSE_AFTER.as_secs()).unwrap_or(i64::MAX);
    record.released_at.saturating_add(rest) < clock::unix_secs()
}

/// Records that are no longer needed.
fn rested(catalog: &Catalog) -> Vec<Change> {
    let old = catalog.retired.values().filter(|it| is_rested(it));
    old.map(|it| Change::DeleteRetired(it.ip.to_string())).collect()
}

/// Takes an address back: new connections are refused at once.
pub(crate) async fn release(world: Arc<World>, app: String, ip: IpAddr) -> Result<(), ApiError> {
    let name = app.clone();
    world
        .keeper
        .write(move |catalog| {
            let mut record = catalog.app(&name)?.clone();
            let at = record.ips.iter().position(|own| own.ip == ip);
            let at = at.ok_or_else(|| not_yours(&name, ip))?;
            let shared = record.ips.remove(at).kind == IpKind::SharedV4;
            let mut changes = vec![Change::PutApp(record)];
            if !shared {
                changes.push(Change::PutRetired(RetiredRecord {
                    ip,
                    released_at: clock::unix_secs(),
                }));
            }
            Ok((changes, ()))
        })
        .await?;
    // The shared one stays as long as another app has it.
    world.settle(vec![ip]).await;
    world.proxy.app_changed(app);
    Ok(())
}

fn not_yours(app: &str, ip: IpAddr) -> ApiError {
    ApiError::not_found(format!(
        "{ip} is not an address of app {app}; `fly ips list -a {app}` shows its addresses"
    ))
}

fn wire_ip(record: &IpRecord) -> IpAssignment {
    let shared = record.kind == IpKind::SharedV4;
    IpAssignment {
        ip: record.ip,
        kind: record.kind,
        region: if shared { String::new() } else { "global".to_owned() },
        service_name: String::new(),
        shared,
        created_at: record.created_at.clone(),
        network: record.caller.as_ref().map(|network| IpNetwork {
            name: network.name.clone(),
            organization: network.org.clone(),
        }),
    }
}
