//! What all tasks of the server share, and the actions that touch the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use perch_api::wire;
use perch_core::lifecycle::{self, Stored};
use perch_machine::Machine;
use perch_net::{Attach, Plane, Prefix48, Visible};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::history;
use super::images::Images;
use super::keeper::{Catalog, Change, Keeper};
use super::launching;
use super::machine::Handle;
use super::platform_log::PlatformLog;
use super::proxy_link::ProxyPort;
use super::records::{AppRecord, LifeRecord, MachineRecord, Wish};
use crate::config::Config;
use crate::paths::Paths;

/// Namespaces kept for Machines that sleep: 0.2 GB at the most.
const NAMESPACES_MAX: usize = 512;

/// After a flush of the host's tables, egress is back within this time.
const HOST_REFRESH_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);

/// Everything, shared.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) paths: Paths,
    pub(crate) config: Config,
    pub(crate) keeper: Keeper,
    pub(crate) images: Images,
    pub(crate) plane: Arc<Plane>,
    /// Where `perch-init` was unpacked.
    pub(crate) init_layer: std::path::PathBuf,
    /// Parent of the Machines' cgroups.
    pub(crate) cgroup_parent: String,
    pub(crate) proxy: ProxyPort,
    pub(crate) platform_log: PlatformLog,
    events: history::Writer,
    pub(crate) tracker: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    handles: Mutex<BTreeMap<String, Handle>>,
    /// The newest life of each Machine, durable or not yet.
    lives: Mutex<BTreeMap<String, Stored>>,
    /// Machines whose life is to be written behind.
    unsaved: Mutex<BTreeSet<String>>,
    saving: Notify,
    /// Launches under way at once; more wait their turn.
    launches: Semaphore,
    /// Namespaces of Machines, kept while they sleep: the next start needs no new link. A namespace
    /// and its link cost about 0.4 MB, hence [`NAMESPACES_MAX`].
    namespaces: Mutex<BTreeMap<String, Arc<OwnedFd>>>,
    /// Images of the runs that live or begin, by Machine; a Machine's record may name another one already.
    running_images: Mutex<BTreeMap<String, String>>,
    /// What is published at each address, so that unchanged ones are left alone.
    published: Mutex<BTreeMap<IpAddr, Vec<(u16, u16)>>>,
}

/// The parts of a [`World`] that are made before it.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) paths: Paths,
    pub(crate) config: Config,
    pub(crate) keeper: Keeper,
    pub(crate) images: Images,
    pub(crate) plane: Plane,
    pub(crate) init_layer: std::path::PathBuf,
    pub(crate) cgroup_parent: String,
    pub(crate) proxy: ProxyPort,
    pub(crate) events: history::Writer,
}

impl World {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let launches = Semaphore::new(parts.config.starts_max as usize);
        Arc::new(Self {
            paths: parts.paths,
            config: parts.config,
            keeper: parts.keeper,
            images: parts.images,
            plane: Arc::new(parts.plane),
            init_layer: parts.init_layer,
            cgroup_parent: parts.cgroup_parent,
            proxy: parts.proxy,
            platform_log: PlatformLog::default(),
            events: parts.events,
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            handles: Mutex::default(),
            lives: Mutex::default(),
            unsaved: Mutex::default(),
            saving: Notify::new(),
            launches,
            namespaces: Mutex::default(),
            running_images: Mutex::default(),
            published: Mutex::default(),
        })
    }

    // ---- the Machines' tasks ------------------------------------------------------------------

    pub(crate) fn handle(&self, id: &str) -> Option<Handle> {
        lock(&self.handles).get(id).cloned()
    }

    pub(crate) fn add_handle(&self, id: String, handle: Handle) {
        lock(&self.handles).insert(id, handle);
    }

    pub(crate) fn remove_handle(&self, id: &str) {
        lock(&self.handles).remove(id);
    }

    /// A Machine changed: the proxy gets its app's new view.
    pub(crate) fn machine_changed(&self, id: &str) {
        let app = self.keeper.read().machines.get(id).map(|machine| machine.app.clone());
        if let Some(app) = app {
            self.proxy.app_changed(app);
        }
    }

    /// Appends to a Machine's events on disk, behind.
    pub(crate) fn append_event(&self, id: &str, event: &wire::Event) {
        self.events.append(self.paths.machine(id), event.clone());
    }

    /// Returns when all events are on disk.
    pub(crate) async fn flush_events(self: &Arc<Self>) {
        let world = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || world.events.flush()).await {
            tracing::warn!(%error, "events may be missing on disk");
        }
    }

    // ---- lives --------------------------------------------------------------------------------

    /// Makes a Machine's life durable before it returns.
    pub(crate) async fn save_life(&self, id: &str, stored: Stored) {
        lock(&self.lives).insert(id.to_owned(), stored);
        self.save([id.to_owned()].into()).await;
    }

    /// Makes a Machine's life durable soon.
    pub(crate) fn save_life_behind(&self, id: &str, stored: Stored) {
        if lock(&self.lives).insert(id.to_owned(), stored) != Some(stored) {
            lock(&self.unsaved).insert(id.to_owned());
            self.saving.notify_one();
        }
    }

    /// Writes lives behind until the server ends; several changes become one commit.
    pub(crate) async fn write_behind(&self) {
        loop {
            tokio::select! {
                () = self.saving.notified() => {}
                () = self.shutdown.cancelled() => break,
            }
            let ids = std::mem::take(&mut *lock(&self.unsaved));
            self.save(ids).await;
        }
        let ids = std::mem::take(&mut *lock(&self.unsaved));
        self.save(ids).await;
    }

    /// Commits what these Machines' lives are at the moment of the commit.
    async fn save(&self, ids: BTreeSet<String>) {
        let lives: BTreeMap<String, Stored> = {
            let all = lock(&self.lives);
            ids.iter().filter_map(|id| Some((id.clone(), *all.get(id)?))).collect()
        };
        let written =
            self.keeper.write(move |catalog| Ok((changed_lives(catalog, &lives), ()))).await;
        if let Err(error) = written {
            tracing::error!(%error, "the state of Machines could not be written");
        }
    }

    // ---- the host -----------------------------------------------------------------------------

    /// Starts a run of a Machine with its newest config, in a namespace of its own.
    ///
    /// # Errors
    /// With a text for the Machine's owner; nothing is left running.
    pub(crate) async fn launch(
        self: &Arc<Self>,
        id: &str,
        run: u64,
        config_version: u64,
    ) -> anyhow::Result<Machine> {
        let _turn = self.launches.acquire().await.context("the server is ending")?;
        let (world, id) = (self.clone(), id.to_owned());
        let prepared = tokio::task::spawn_blocking(move || world.prepare(&id, run, config_version));
        let (spec, netns) = prepared.await.context("the launch was interrupted")??;
        let launched = perch_machine::launch(&spec, netns.as_fd()).await?;
        let plane = self.plane.clone();
        self.tracker.spawn_blocking(move || plane.stock_up());
        Ok(launched)
    }

    /// Renews, until the server ends, what somebody may have flushed from the host's tables.
    pub(crate) async fn refresh_host(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(HOST_REFRESH_INTERVAL) => {}
                () = self.shutdown.cancelled() => return,
            }
            let plane = self.plane.clone();
            let done = tokio::task::spawn_blocking(move || plane.refresh_host()).await;
            if let Ok(Err(error)) = done {
                tracing::warn!(
                    error = super::images::chain(&error),
                    "could not renew the host's table"
                );
            }
        }
    }

    fn prepare(
        &self,
        id: &str,
        run: u64,
        config_version: u64,
    ) -> anyhow::Result<(perch_machine::LaunchSpec, Arc<OwnedFd>)> {
        let (record, app) = self.records(id)?;
        anyhow::ensure!(
            record.config_version >= config_version,
            "config {config_version} of Machine {id} is not stored"
        );
        let unpacked = self.images.own(&record.image, launching::uid_base(&app))?;
        let spec = launching::spec(self, &record, &app, run, unpacked)?;
        Ok((spec, self.namespace(&record)?))
    }

    /// The namespace of a Machine's earlier run, or a new one.
    fn namespace(&self, record: &MachineRecord) -> anyhow::Result<Arc<OwnedFd>> {
        if let Some(kept) = lock(&self.namespaces).get(&record.id) {
            return Ok(kept.clone());
        }
        let made =
            self.plane.attach(&attachment(record)).context("could not connect the Machine")?;
        let netns = Arc::new(made);
        lock(&self.namespaces).insert(record.id.clone(), netns.clone());
        Ok(netns)
    }

    /// A run ended: its namespace is kept for the next one, unless too many are.
    pub(crate) async fn rest(&self, id: &str) {
        lock(&self.running_images).remove(id);
        let keep = {
            let kept = lock(&self.namespaces);
            kept.contains_key(id) && kept.len() <= NAMESPACES_MAX
        };
        if !keep {
            self.detach(id).await;
        }
    }

    /// What a run is made of. Its image is noted before anybody can change the record.
    fn records(&self, id: &str) -> anyhow::Result<(MachineRecord, AppRecord)> {
        let catalog = self.keeper.read();
        let record = catalog.machines.get(id).cloned().context("the Machine is gone")?;
        let app = catalog.apps.get(&record.app).cloned().context("the app is gone")?;
        self.note_image(id, record.image.clone());
        Ok((record, app))
    }

    /// Notes with which image a Machine runs.
    pub(crate) fn note_image(&self, id: &str, image: String) {
        lock(&self.running_images).insert(id.to_owned(), image);
    }

    /// Images of all runs that live or begin.
    pub(crate) fn running_images(&self) -> BTreeSet<String> {
        lock(&self.running_images).values().cloned().collect()
    }

    /// Disconnects a Machine that has ended.
    pub(crate) async fn detach(&self, id: &str) {
        lock(&self.namespaces).remove(id);
        let (plane, name) = (self.plane.clone(), id.to_owned());
        let done = tokio::task::spawn_blocking(move || plane.detach(&name)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!(
                machine = id,
                error = super::images::chain(&error),
                "could not disconnect"
            );
        }
    }

    /// Deletes everything of a Machine that was destroyed.
    pub(crate) async fn remove_machine(&self, id: &str) {
        self.detach(id).await;
        if let Err(error) =
            perch_machine::remove(&self.paths.machine(id), &self.cgroup_parent).await
        {
            tracing::warn!(machine = id, error = super::images::chain(&error), "leftovers remain");
        }
        let app = self.keeper.read().machines.get(id).map(|machine| machine.app.clone());
        let gone = id.to_owned();
        let changes = vec![Change::DeleteMachine(gone.clone()), Change::DeleteLease(gone)];
        if let Err(error) = self.keeper.write(move |_| Ok((changes, ()))).await {
            tracing::error!(machine = id, %error, "the record of a destroyed Machine remains");
        }
        lock(&self.running_images).remove(id);
        lock(&self.lives).remove(id);
        self.remove_handle(id);
        if let Some(app) = app {
            self.publish(&app).await;
            self.proxy.app_changed(app);
        }
    }

    /// Brings what is published at an app's addresses in line with its Machines' services.
    pub(crate) async fn publish(&self, app: &str) {
        let wanted = self.wanted_ports(app);
        for (ip, ports, visible) in wanted {
            if lock(&self.published).get(&ip) == Some(&ports) {
                continue;
            }
            lock(&self.published).insert(ip, ports.clone());
            let plane = self.plane.clone();
            let done =
                tokio::task::spawn_blocking(move || plane.publish(ip, &ports, visible)).await;
            if let Ok(Err(error)) = done {
                lock(&self.published).remove(&ip);
                tracing::error!(%ip, error = super::images::chain(&error), "could not publish");
            }
        }
    }

    /// Refuses new connections to an address.
    pub(crate) async fn unpublish(&self, ip: IpAddr) {
        lock(&self.published).remove(&ip);
        let plane = self.plane.clone();
        let done = tokio::task::spawn_blocking(move || plane.unpublish(ip)).await;
        if let Ok(Err(error)) = done {
            tracing::error!(%ip, error = super::images::chain(&error), "could not unpublish");
        }
    }

    fn wanted_ports(&self, app: &str) -> Vec<Wanted> {
        let catalog = self.keeper.read();
        let Some(record) = catalog.apps.get(app) else { return Vec::new() };
        let own = published_ports(&catalog, app);
        let port = |ip: &super::records::IpRecord| {
            let visible = match &ip.caller {
                Some(network) => Visible::Network(Prefix48::of(launching::prefix(network.id))),
                None => Visible::Everyone,
            };
            let ports = match ip.kind {
                wire::IpKind::SharedV4 => shared_ports(&catalog, ip.ip),
                wire::IpKind::V4 | wire::IpKind::V6 | wire::IpKind::PrivateV6 => own.clone(),
            };
            (ip.ip, ports, visible)
        };
        record.ips.iter().map(port).collect()
    }
}

/// Address, TCP ports, and who may call.
type Wanted = (IpAddr, Vec<(u16, u16)>, Visible);

/// What a mutex guards, also after a panic elsewhere.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn changed_lives(catalog: &Catalog, lives: &BTreeMap<String, Stored>) -> Vec<Change> {
    let changed = |(id, stored): (&String, &Stored)| {
        let mut record = catalog.machines.get(id)?.clone();
        let life = life_record(*stored);
        if record.life == life {
            return None;
        }
        record.life = life;
        Some(Change::PutMachine(Box::new(record)))
    };
    lives.iter().filter_map(changed).collect()
}

/// The storage form of a Machine's life.
pub(crate) fn life_record(stored: Stored) -> LifeRecord {
    let wish = match stored.wish {
        lifecycle::Wish::Up => Wish::Up,
        lifecycle::Wish::Down => Wish::Down,
        lifecycle::Wish::Gone => Wish::Gone,
    };
    LifeRecord { state: stored.state.to_string(), run: stored.run, wish }
}

/// Where a Machine is connected.
pub(crate) fn attachment(record: &MachineRecord) -> Attach {
    let machine = record.link_ip;
    let plane = std::net::Ipv4Addr::from(u32::from(machine) & !1);
    Attach { name: record.id.clone(), private_ip: record.private_ip, link: (plane, machine) }
}

/// External TCP ports of an app's Machines, merged and sorted.
fn published_ports(catalog: &Catalog, app: &str) -> Vec<(u16, u16)> {
    let machines = catalog.machines_of(app).filter(|machine| machine.life.wish != Wish::Gone);
    let services = machines.flat_map(|machine| &machine.config.view().services);
    let ports =
        services.filter(|service| service.protocol == "tcp").flat_map(|service| &service.ports);
    merged(ports.filter_map(wire::Port::range).collect())
}

/// Ports of all apps that share an address.
fn shared_ports(catalog: &Catalog, ip: IpAddr) -> Vec<(u16, u16)> {
    let sharers = catalog.apps.values().filter(|app| app.ips.iter().any(|own| own.ip == ip));
    merged(sharers.flat_map(|app| published_ports(catalog, &app.name)).collect())
}

fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(start) <= u32::from(last.1) + 1 => last.1 = last.1.max(end),
            Some(_) | None => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_and_adjacent_ranges_become_one() {
        assert_eq!(merged(vec![(443, 443), (80, 80), (80, 80)]), vec![(80, 80), (443, 443)]);
        assert_eq!(merged(vec![(10, 20), (15, 30), (31, 40)]), vec![(10, 40)]);
        assert_eq!(merged(vec![(65_535, 65_535), (1, 65_535)]), vec![(1, 65_535)]);
        assert_eq!(merged(Vec::new()), Vec::new());
    }
}
