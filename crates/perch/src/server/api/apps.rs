//! Apps: creation with its network, and removal with everything that hangs on them.

use std::collections::BTreeSet;
use std::sync::Arc;

use perch_api::wire::{ApiError, App, AppPatch, CreateApp, OrganizationRef, ReleaseStatus};
use perch_core::address;
use perch_core::ids::{AppName, NetworkId, NetworkName};
use perch_core::lifecycle::Event;

use crate::config::HostAccess;
use crate::server::clock;
use crate::server::history::Source;
use crate::server::keeper::{Catalog, Change};
use crate::server::records::{AppRecord, NetworkRecord, RetiredRecord, TokenRecord, VolumeRecord};
use crate::server::views;
use crate::server::volumes;
use crate::server::world::World;

/// Apps that surely have a range of host ids of their own (module `host_ids`).
const UID_SLOTS_MAX: u32 = 16_000;

/// Makes an app, and its network if that is new.
pub(crate) async fn create(world: Arc<World>, input: CreateApp) -> Result<App, ApiError> {
    let name: AppName = input
        .name
        .parse()
        .map_err(|error: perch_core::ids::BadId| ApiError::invalid(error.to_string()))?;
    let org = or_default(&input.org_slug, world.config.default_org());
    if !world.config.organizations.contains(&org) {
        return Err(unknown_organization(&world, &org));
    }
    let network: NetworkName = or_default(&input.network, "default")
        .parse()
        .map_err(|error: perch_core::ids::BadId| ApiError::invalid(error.to_string()))?;
    let random = clock::random();
    let made = world
        .keeper
        .write(move |catalog| decide_create(catalog, &name, &org, network.as_str(), &input, random))
        .await?;
    if let Some(network) = made.new_network {
        open_network(&world, &network).await?;
        world.proxy.networks_changed();
    }
    world.proxy.app_changed(made.name.clone());
    get(&world, &made.name)
}

struct Made {
    name: String,
    new_network: Option<NetworkRecord>,
}

fn decide_create(
    catalog: &Catalog,
    name: &AppName,
    org: &str,
    network: &str,
    input: &CreateApp,
    random: u64,
) -> Result<(Vec<Change>, Made), ApiError> {
    if catalog.apps.contains_key(name.as_str()) {
        return Err(name_taken(name));
    }
    let known = catalog.networks.get(&(org.to_owned(), network.to_owned())).cloned();
    let new_network =
        if known.is_some() { None } else { Some(plan_network(catalog, org, network, random)?) };
    let home =
        known.as_ref().or(new_network.as_ref()).ok_or_else(|| ApiError::internal("no network"))?;
    let app = AppRecord {
        name: name.to_string(),
        number: next_number(catalog),
        org: org.to_owned(),
        network: network.to_owned(),
        network_id: home.id,
        intent: input.address_intent,
        created_at: clock::stamp(),
        ips: Vec::new(),
        uid_slot: free_uid_slot(catalog)?,
        going: false,
        going_volumes: Vec::new(),
        secrets_version: 0,
    };
    let mut changes = vec![Change::PutApp(app)];
    changes.extend(new_network.clone().map(Change::PutNetwork));
    Ok((changes, Made { name: name.to_string(), new_network }))
}

fn name_taken(name: &AppName) -> ApiError {
    ApiError::invalid(format!("Name has already been taken: there is an app {name} on this server"))
        .with_word("name_taken")
}

/// A new network of an organization; its id is never one that was given before (PN-61).
pub(crate) fn plan_network(
    catalog: &Catalog,
    org: &str,
    name: &str,
    random: u64,
) -> Result<NetworkRecord, ApiError> {
    let taken: BTreeSet<NetworkId> =
        catalog.networks.values().filter_map(|network| NetworkId::new(network.id)).collect();
    let id = address::plan_network(&taken, random)
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(NetworkRecord { id: id.as_u32(), org: org.to_owned(), name: name.to_owned() })
}

/// Makes a network exist on this host.
pub(crate) async fn open_network(
    world: &Arc<World>,
    network: &NetworkRecord,
) -> Result<(), ApiError> {
    let is_hosts = network.org == world.config.default_org()
        && network.name == "default"
        && world.config.host_access != HostAccess::None;
    let host_peer = is_hosts.then(|| views::host_peer(network.id));
    let prefix = perch_net::Prefix48::of(crate::server::launching::prefix(network.id));
    let plane = world.plane.clone();
    let opened = tokio::task::spawn_blocking(move || plane.ensure_network(prefix, host_peer)).await;
    opened
        .map_err(|error| ApiError::internal(error.to_string()))?
        .map_err(|error| ApiError::internal(crate::server::images::chain(&error)))
}

fn next_number(catalog: &Catalog) -> i32 {
    catalog.apps.values().map(|app| app.number).max().unwrap_or(0) + 1
}

fn free_uid_slot(catalog: &Catalog) -> Result<u32, ApiError> {
    let taken: BTreeSet<u32> = catalog.apps.values().map(|app| app.uid_slot).collect();
    let free = (0..UID_SLOTS_MAX).find(|slot| !taken.contains(slot));
    free.ok_or_else(|| ApiError::invalid(format!("this server already has {UID_SLOTS_MAX} apps")))
}

/// Lists apps by name.
pub(crate) fn list(world: &World, org: Option<&str>) -> Vec<App> {
    let catalog = world.keeper.read();
    let wanted = catalog.apps.values().filter(|app| org.is_none_or(|org| org == app.org));
    wanted.map(|app| wire_app(world, &catalog, app)).collect()
}

/// Reads one app.
pub(crate) fn get(world: &World, name: &str) -> Result<App, ApiError> {
    let catalog = world.keeper.read();
    Ok(wire_app(world, &catalog, catalog.app(name)?))
}

/// Changes an app's wish for addresses.
pub(crate) async fn update(
    world: Arc<World>,
    name: String,
    patch: AppPatch,
) -> Result<App, ApiError> {
    let wanted = name.clone();
    world
        .keeper
        .write(move |catalog| {
            let mut app = catalog.staying_app(&wanted)?.clone();
            app.intent = patch.address_intent.unwrap_or(app.intent);
            Ok((vec![Change::PutApp(app)], ()))
        })
        .await?;
    get(&world, &name)
}

/// Removes an app: its addresses refuse at once, its Machines are destroyed, then those of its volumes that are named,
/// then its records. What cut an earlier removal short does not matter; it is gone on with.
pub(crate) async fn delete(
    world: Arc<World>,
    source: Source,
    name: String,
    volumes: Vec<String>,
) -> Result<(), ApiError> {
    let wanted = name.clone();
    world.keeper.write(move |catalog| begin_removal(catalog, &wanted, volumes)).await?;
    let _turn = world.removals.take(&name).await;
    let app = still_going(&world.keeper.read(), &name)?.clone();
    world.settle(app.addresses()).await;
    destroy_machines(&world, source, &name).await?;
    destroy_volumes(&world, &name).await?;
    world.images.remove_own(world.host_ids.base(app.uid_slot)).await?;
    // Before the name is free: a new app of this name has tags of its own.
    world.images.remove_app(name.clone()).await?;
    let gone = name.clone();
    world.keeper.write(move |catalog| Ok((removal(catalog, &gone)?, ()))).await?;
    world.platform_log.forget(&name);
    world.proxy.app_changed(name);
    Ok(())
}

/// From here on nothing is added to the app, and which volumes go is known also after a start.
fn begin_removal(
    catalog: &Catalog,
    name: &str,
    volumes: Vec<String>,
) -> Result<(Vec<Change>, ()), ApiError> {
    let mut going = AppRecord { going: true, ..catalog.app(name)?.clone() };
    for id in volumes {
        // Of a removal that was cut short: its record may be gone already.
        if going.going_volumes.contains(&id) {
            continue;
        }
        if !catalog.volumes_of(name).any(|it| it.id == id) {
            return Err(ApiError::not_found(format!("volume not found: {id} in app {name}")));
        }
        going.going_volumes.push(id);
    }
    Ok((vec![Change::PutApp(going)], ()))
}

/// Another call may have removed the app since this one began to; the name may be a new app's by now.
fn still_going<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a AppRecord, ApiError> {
    catalog.apps.get(name).filter(|app| app.going).ok_or_else(|| ApiError::no_app(name))
}

async fn destroy_machines(world: &Arc<World>, source: Source, app: &str) -> Result<(), ApiError> {
    // Machines that were recorded before the app was marked have their tasks after this.
    drop(world.births.write().await);
    let ids: Vec<String> =
        world.keeper.read().machines_of(app).map(|machine| machine.id.clone()).collect();
    let handles: Vec<_> = ids.iter().filter_map(|id| world.handle(id)).collect();
    for handle in &handles {
        // One that is gone already, or going, is as wished.
        handle.ask(Event::Destroy, source.clone()).await;
    }
    for handle in handles {
        let mut status = handle.watch();
        // Its task ends, and with it the channel, when everything of the Machine is gone.
        while status.changed().await.is_ok() {}
    }
    match ids.iter().find(|id| world.handle(id).is_some()) {
        None => Ok(()),
        Some(id) => Err(ApiError::new(
            503,
            format!("the server is ending; Machine {id} and app {app} go when it is back"),
        )),
    }
}

/// Removes the volumes that go with an app: no Machine has them any more, and whoever may ask for it again still can.
async fn destroy_volumes(world: &Arc<World>, app: &str) -> Result<(), ApiError> {
    let name = app.to_owned();
    for volume in world.keeper.write(move |catalog| mark_volumes(catalog, &name)).await? {
        volumes::remove(world, &volume).await?;
    }
    Ok(())
}

fn mark_volumes(
    catalog: &Catalog,
    app: &str,
) -> Result<(Vec<Change>, Vec<VolumeRecord>), ApiError> {
    let ids = &catalog.app(app)?.going_volumes;
    let named = catalog.volumes_of(app).filter(|it| ids.contains(&it.id));
    let gone: Vec<_> = named.map(VolumeRecord::going).collect();
    Ok((gone.iter().cloned().map(Change::PutVolume).collect(), gone))
}

/// After a start: goes on with the removals that the last end cut short.
pub(crate) async fn finish_removals(world: Arc<World>) {
    let going: Vec<String> = {
        let catalog = world.keeper.read();
        catalog.apps.values().filter(|app| app.going).map(|app| app.name.clone()).collect()
    };
    for app in going {
        if let Err(error) = delete(world.clone(), Source::Platform, app.clone(), Vec::new()).await {
            tracing::warn!(app, %error, "an app that is being destroyed remains");
        }
    }
}

fn removal(catalog: &Catalog, name: &str) -> Result<Vec<Change>, ApiError> {
    let app = still_going(catalog, name)?;
    let mut changes = vec![Change::DeleteApp(name.to_owned())];
    changes.extend(catalog.releases_of(name).iter().map(|it| Change::DeleteRelease(it.id.clone())));
    // A later app of this name is another one.
    let of_app = |it: &&TokenRecord| it.app.as_deref() == Some(name);
    let tokens = catalog.tokens.values().filter(of_app);
    changes.extend(tokens.map(|it| Change::DeleteToken(it.id.clone())));
    changes.extend(catalog.secrets_of(name).map(|it| Change::DeleteSecret(it.key())));
    changes.extend(catalog.machines_of(name).map(|it| Change::DeleteMachine(it.id.clone())));
    changes.extend(catalog.machines_of(name).flat_map(|it| volumes::detached(catalog, it)));
    let released_at = clock::unix_secs();
    let own = app.ips.iter().filter(|ip| ip.kind != perch_api::wire::IpKind::SharedV4);
    changes.extend(own.map(|ip| Change::PutRetired(RetiredRecord { ip: ip.ip, released_at })));
    Ok(changes)
}

/// 404 with the organizations that there are.
pub(crate) fn unknown_organization(world: &World, slug: &str) -> ApiError {
    ApiError::not_found(format!(
        "there is no organization {slug:?} on this server; there is: {} (key `organizations` of the server's configuration)",
        world.config.organizations.join(", ")
    ))
}

fn or_default(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

fn wire_app(world: &World, catalog: &Catalog, app: &AppRecord) -> App {
    let releases = catalog.releases_of(&app.name);
    let deployed = releases.iter().find(|release| release.status == ReleaseStatus::Complete);
    let machine_count = catalog.machines_of(&app.name).count();
    let org = world.config.organizations.iter().position(|slug| *slug == app.org).unwrap_or(0);
    App {
        id: app.name.clone(),
        name: app.name.clone(),
        internal_numeric_id: app.number,
        network: app.network.clone(),
        status: if deployed.is_some() { "deployed" } else { "pending" }.to_owned(),
        machine_count: u32::try_from(machine_count).unwrap_or(u32::MAX),
        volume_count: u32::try_from(catalog.volumes_of(&app.name).count()).unwrap_or(u32::MAX),
        organization: OrganizationRef {
            slug: app.org.clone(),
            name: app.org.clone(),
            internal_numeric_id: i32::try_from(org + 1).unwrap_or(1),
        },
        hostname: format!("{}.{}", app.name, world.config.public_domain),
        address_intent: app.intent,
        created_at: app.created_at.clone(),
        latest_deploy: deployed.map(|release| release.created_at.clone()),
        app_role: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::tests as records;

    fn with_volumes() -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        catalog.apply(Change::PutVolume(records::volume("vol_1", "data", Some("m"))));
        catalog.apply(Change::PutVolume(records::volume("vol_2", "data", None)));
        let foreign = records::volume("vol_3", "data", None);
        let org = "other".to_owned();
        catalog.apply(Change::PutVolume(VolumeRecord { org, ..foreign }));
        catalog
    }

    fn begin(catalog: &mut Catalog, volumes: &[&str]) -> Result<(), ApiError> {
        let volumes = volumes.iter().map(|id| (*id).to_owned()).collect();
        let (changes, _) = begin_removal(catalog, "web", volumes)?;
        changes.into_iter().for_each(|change| catalog.apply(change));
        Ok(())
    }

    fn going(catalog: &Catalog) -> Vec<String> {
        let (_, gone) = mark_volumes(catalog, "web").expect("the app is there");
        assert!(gone.iter().all(|it| !it.is_there() && it.machine.is_none()));
        gone.into_iter().map(|it| it.id).collect()
    }

    #[test]
    fn a_volume_that_is_not_the_apps_own_ends_its_removal_before_it_begins() {
        for foreign in ["vol_3", "vol_9"] {
            let mut catalog = with_volumes();
            let refused = begin(&mut catalog, &["vol_1", foreign]).expect_err(foreign);
            assert_eq!((refused.code, catalog.apps["web"].going), (404, false), "{refused}");
        }
    }

    #[test]
    fn volumes_go_with_their_app_only_when_they_are_named() {
        let mut catalog = with_volumes();
        begin(&mut catalog, &[]).expect("it begins");
        assert_eq!(going(&catalog), Vec::<String>::new());
        begin(&mut catalog, &["vol_1", "vol_1"]).expect("it begins again");
        assert_eq!(going(&catalog), ["vol_1"]);
    }

    #[test]
    fn a_removal_that_another_one_overtook_leaves_a_new_app_of_the_name_alone() {
        let mut catalog = with_volumes();
        begin(&mut catalog, &[]).expect("it begins");
        let gone = removal(&catalog, "web").expect("it is on its way");
        gone.into_iter().for_each(|change| catalog.apply(change));
        catalog.apply(Change::PutApp(records::app("web")));
        assert_eq!(removal(&catalog, "web").expect_err("another app").code, 404);
    }

    #[test]
    fn a_removal_that_was_cut_short_still_knows_which_volumes_go() {
        let mut catalog = with_volumes();
        begin(&mut catalog, &["vol_1"]).expect("it begins");
        let kept = serde_json::to_vec(&catalog.apps["web"]).expect("a record");
        catalog.apply(Change::PutApp(serde_json::from_slice(&kept).expect("the same")));
        begin(&mut catalog, &[]).expect("it is gone on with");
        assert_eq!(going(&catalog), ["vol_1"]);
    }

    #[test]
    fn a_removal_that_is_asked_for_again_goes_on_when_its_volumes_are_gone_already() {
        let mut catalog = with_volumes();
        begin(&mut catalog, &["vol_1"]).expect("it begins");
        catalog.apply(Change::DeleteVolume("vol_1".to_owned()));
        begin(&mut catalog, &["vol_1", "vol_2"]).expect("it is gone on with");
        assert_eq!(going(&catalog), ["vol_2"]);
        assert_eq!(begin(&mut catalog, &["vol_9"]).expect_err("none of its own").code, 404);
    }
}
