//! What all tasks of the server share, and the actions that touch the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use perch_api::wire;
use perch_core::fault::{self, Point};
use perch_core::service::START_TIMEOUT_DEFAULT;
use perch_machine::{Going, Machine, Secrets};
use perch_net::{Attach, Plane};
use tokio::sync::{Notify, RwLock, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arming::{Armory, Beginning};
use super::blanks::Blanks;
use super::checks::Health;
use super::copying::Copying;
use super::cpu::Cpus;
use super::guest_files;
use super::history;
use super::host_ids::HostIds;
use super::images::Images;
use super::inside::{self, Inside};
use super::keeper::{Catalog, Change, Keeper};
use super::launching;
use super::ledger::Ledger;
use super::lives::Lives;
use super::paging::Pager;
use super::platform_log::PlatformLog;
use super::proxy_port::ProxyPort;
use super::publishing::Published;
use super::records::{AppRecord, MachineRecord, SecretRecord};
use super::seat::Handle;
use super::secrets;
use super::secrets::vault::Vault;
use super::signing::Signing;
use super::volumes;
use crate::config::Config;
use crate::paths::Paths;

/// Namespaces kept for Machines that sleep: 0.2 GB at the most.
const NAMESPACES_MAX: usize = 512;

/// How often a start that waits for memory looks for it.
const ROOM_INTERVAL: std::time::Duration = std::time::Duration::from_millis(50);

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
    /// Which of the host's ids Machines use.
    pub(crate) host_ids: HostIds,
    pub(crate) proxy: ProxyPort,
    pub(crate) vault: Vault,
    pub(crate) signing: Signing,
    pub(crate) platform_log: PlatformLog,
    pub(crate) volume_turns: volumes::Turns,
    pub(crate) copying: Copying,
    /// Turns at apps that are being removed, by name: who comes second must not go on with a later app of that name.
    pub(crate) removals: volumes::Turns,
    /// Whether copies of volumes take neither time nor space.
    pub(crate) clones_cheaply: bool,
    events: history::Writer,
    pub(crate) ledger: Ledger,
    pub(crate) pager: Pager,
    pub(crate) cpus: Cpus,
    pub(crate) armory: Armory,
    pub(crate) tracker: TaskTracker,
    /// The server ends.
    pub(crate) shutdown: CancellationToken,
    /// It is about to: the API answers whom it has accepted, and nobody else, while everything it needs for that works.
    pub(crate) closing: CancellationToken,
    handles: Mutex<BTreeMap<String, Handle>>,
    pub(crate) lives: Lives,
    /// Held for reading while a new Machine has a record and no task yet. Whoever must find every Machine by its
    /// task writes, once: those that came before it are then found.
    pub(crate) births: RwLock<()>,
    /// Launches under way at once; more wait their turn.
    launches: Semaphore,
    pub(super) blanks: Blanks,
    /// Namespaces of Machines, kept while they sleep: the next start needs no new link. A namespace
    /// and its link cost about 0.4 MB, hence [`NAMESPACES_MAX`].
    namespaces: Mutex<BTreeMap<String, Arc<OwnedFd>>>,
    /// Images of the runs that live or begin, by Machine; a Machine's record may name another one already.
    running_images: Mutex<BTreeMap<String, String>>,
    published: Published,
    pub(crate) inside: Inside,
    /// Told when a Machine may have failed for good.
    pub(crate) failed: Notify,
    pub(crate) health: Health,
    /// Sockets that a server before this one has left, by name, until they are wanted.
    left: Mutex<BTreeMap<String, OwnedFd>>,
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
    pub(crate) host_ids: HostIds,
    pub(crate) proxy: ProxyPort,
    pub(crate) vault: Vault,
    pub(crate) signing: Signing,
    pub(crate) events: history::Writer,
    pub(crate) ledger: Ledger,
    pub(crate) pager: Pager,
}

impl World {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let lives = Lives::new(parts.keeper.clone());
        let launches = Semaphore::new(parts.config.starts_max as usize);
        let armory = Armory::new(parts.config.armed_max);
        let cpus = Cpus::new(parts.config.cpu_yield);
        let blanks = Blanks::new(&parts.cgroup_parent, parts.config.blank_max);
        let clones_cheaply = perch_machine::volumes::clones(&parts.paths.data);
        Arc::new(Self {
            volume_turns: volumes::Turns::default(),
            copying: Copying::default(),
            removals: volumes::Turns::default(),
            clones_cheaply,
            paths: parts.paths,
            config: parts.config,
            keeper: parts.keeper,
            images: parts.images,
            plane: Arc::new(parts.plane),
            init_layer: parts.init_layer,
            cgroup_parent: parts.cgroup_parent,
            host_ids: parts.host_ids,
            proxy: parts.proxy,
            vault: parts.vault,
            signing: parts.signing,
            platform_log: PlatformLog::default(),
            events: parts.events,
            ledger: parts.ledger,
            pager: parts.pager,
            cpus,
            armory,
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            closing: CancellationToken::new(),
            handles: Mutex::default(),
            lives,
            births: RwLock::new(()),
            launches,
            blanks,
            namespaces: Mutex::default(),
            running_images: Mutex::default(),
            published: Published::default(),
            inside: Inside::default(),
            failed: Notify::new(),
            health: Health::default(),
            left: Mutex::default(),
        })
    }

    /// One without a data plane, in a directory of its own.
    #[cfg(test)]
    pub(crate) fn of_test(dir: &std::path::Path, proxy: ProxyPort) -> Arc<Self> {
        let (paths, config) = (Paths::new(Some(dir)).expect("short"), Config::default());
        let store = perch_store::Store::open(&paths.store()).expect("it can be made");
        let ballast = super::ballast::Ballast::given_up(paths.ballast());
        let limits = perch_machine::ImageLimits::standard();
        let images = perch_machine::ImageStore::open(&paths.images(), limits).expect("a store");
        let (memory, reserve) = (config.memory, config.memory_reserve);
        let capacity = super::capacity::Capacity { memory, reserve, ceilings: Default::default() };
        let plane = Plane::of_nothing(super::plane_config(&paths, &config));
        Self::new(Parts {
            keeper: Keeper::load(store, ballast).expect("nothing is stored"),
            images: Images::new(images, perch_machine::Ids::default()),
            plane: plane.expect("descriptors"),
            init_layer: paths.init(),
            cgroup_parent: "perch-test".to_owned(),
            host_ids: HostIds::new(None, &[]),
            proxy,
            vault: Vault::new(dir.join("key")),
            signing: Signing::open(paths.signing_key()).expect("it can be made"),
            events: history::Writer::start().expect("a thread"),
            ledger: Ledger::open(&paths.data).expect("a thread"),
            pager: Pager::start(None, capacity).expect("a thread"),
            paths,
            config,
        })
    }

    /// Sockets of a server before this one.
    pub(crate) fn inherit(&self, left: impl IntoIterator<Item = (String, OwnedFd)>) {
        lock(&self.left).extend(left);
    }

    pub(crate) fn take_left(&self, name: &str) -> Option<OwnedFd> {
        lock(&self.left).remove(name)
    }

    /// Closes those that nobody wanted: of Machines that have ended.
    pub(crate) fn drop_left(&self) {
        lock(&self.left).clear();
    }

    // ---- the Machines' tasks ------------------------------------------------------------------

    pub(crate) fn handle(&self, id: &str) -> Option<Handle> {
        lock(&self.handles).get(id).cloned()
    }

    pub(crate) fn handles(&self) -> Vec<Handle> {
        lock(&self.handles).values().cloned().collect()
    }

    pub(crate) fn add_handle(&self, id: String, handle: Handle) {
        lock(&self.handles).insert(id, handle);
    }

    pub(crate) fn remove_handle(&self, id: &str) {
        self.health.forget(id);
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

    /// The same for the ledger.
    pub(crate) async fn flush_ledger(self: &Arc<Self>) {
        let world = self.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || world.ledger.flush()).await {
            tracing::warn!(%error, "the ledger may be incomplete on disk");
        }
    }

    // ---- the host -----------------------------------------------------------------------------

    /// Starts a run of a Machine with its newest config, in a namespace of its own; or goes on with one that was armed,
    /// which takes no place among the starts.
    ///
    /// # Errors
    /// With a text for the Machine's owner; nothing is left running.
    pub(crate) async fn launch(
        self: &Arc<Self>,
        id: &str,
        run: u64,
        config_version: u64,
        going: Option<Going>,
    ) -> anyhow::Result<(Machine, Beginning)> {
        if let Some(going) = going
            && let Some(machine) = going.started().await?
        {
            return Ok((machine, Beginning::Armed));
        }
        let volume_ids: Vec<String> = {
            let catalog = self.keeper.read();
            let machine = catalog.machines.get(id).context("the Machine is gone")?;
            volumes::of_machine(&catalog, machine).map(|it| it.id.clone()).collect()
        };
        // Before a place among the starts, which nobody who waits for a copy should take up.
        let mut volume_turns = Vec::new();
        for id in &volume_ids {
            volume_turns.push(self.volume_turns.take(id).await);
        }
        let _turn = self.launches.acquire().await.context("the server is ending")?;
        fault::pass(Point::ServerLaunchBegun);
        let ready = self.armory.take(id).await;
        let records = self.records(id)?;
        anyhow::ensure!(
            records.machine.config_version >= config_version,
            "config {config_version} of Machine {id} is not stored"
        );
        let world = self.clone();
        let prepared = tokio::task::spawn_blocking(move || world.prepare(&records, run));
        let (mut spec, netns, secrets) = prepared.await.context("the launch was interrupted")??;
        spec.inside = inside::place(self, &spec.machine);
        if let Some(ready) = ready
            && let Some(machine) = ready.start_if_equal(self, &spec, &netns, &secrets).await?
        {
            return Ok((machine, Beginning::Armed));
        }
        spec.inside = inside::listen(self, &spec.app, &spec.machine);
        let stock = self.blanks.stock();
        let launched = perch_machine::launch_from(&spec, netns.as_fd(), &secrets, stock).await;
        self.restock();
        let launched = launched?;
        let plane = self.plane.clone();
        self.tracker.spawn_blocking(move || plane.stock_up());
        Ok((launched, Beginning::Cold))
    }

    /// Launches that have a place, or wait for nothing else any more.
    pub(crate) fn starts_under_way(&self) -> usize {
        (self.config.starts_max as usize).saturating_sub(self.launches.available_permits())
    }

    /// The most memory that a Machine may have.
    pub(crate) fn memory_most(&self, id: &str) -> u64 {
        let catalog = self.keeper.read();
        catalog.machines.get(id).map_or(0, |record| super::limits::of(record).memory_bytes)
    }

    /// How long callers wait for its start.
    pub(crate) fn start_timeout(&self, id: &str) -> std::time::Duration {
        let catalog = self.keeper.read();
        let Some(record) = catalog.machines.get(id) else { return START_TIMEOUT_DEFAULT };
        let view = record.config.view();
        let each = view
            .services
            .iter()
            .map(|service| service.start_timeout.map_or(START_TIMEOUT_DEFAULT, |length| length.0));
        each.max().unwrap_or(START_TIMEOUT_DEFAULT)
    }

    /// Waits until there is memory for a Machine that takes so much at most; those who sleep give way for it.
    ///
    /// # Errors
    /// With what is there, after `timeout`.
    pub(crate) async fn room_for(
        self: &Arc<Self>,
        id: &str,
        most: u64,
        timeout: std::time::Duration,
    ) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let (world, id) = (self.clone(), id.to_owned());
            let looked = tokio::task::spawn_blocking(move || world.pager.admit(&id, most)).await;
            match looked.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(()) => return Ok(()),
                Err(reason) if deadline <= tokio::time::Instant::now() => return Err(reason),
                Err(_) => {
                    self.armory.give_way();
                    tokio::time::sleep(ROOM_INTERVAL).await;
                }
            }
        }
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

    /// All that a run with this record needs, but for its own socket.
    pub(crate) fn prepare(
        &self,
        records: &Records,
        run: u64,
    ) -> anyhow::Result<(perch_machine::LaunchSpec, Arc<OwnedFd>, Secrets)> {
        let Records { machine: record, app, sealed } = records;
        let secrets = secrets::open(&self.vault, sealed)?;
        let files =
            guest_files::secret(record, &secrets).map_err(launching::unlaunchable(&record.id))?;
        let secrets = secrets.with_files(files);
        let unpacked = self.images.own(&record.image, self.host_ids.base(app.uid_slot))?;
        let spec = launching::spec(self, record, app, run, unpacked)?;
        for volume in &spec.volumes {
            // A start finds what is in the way of its volume by itself, and says so.
            if let Err(error) = perch_machine::volumes::settle(&volume.dir) {
                tracing::warn!(volume = volume.id, %error, "the volume's file system is not as long as it should be");
            }
        }
        Ok((spec, self.namespace(record)?, secrets))
    }

    /// The namespace of a Machine's earlier run, or a new one.
    fn namespace(&self, record: &MachineRecord) -> anyhow::Result<Arc<OwnedFd>> {
        if let Some(kept) = self.kept_namespace(&record.id) {
            return Ok(kept);
        }
        let made =
            self.plane.attach(&attachment(record)).context("could not connect the Machine")?;
        let netns = Arc::new(made);
        lock(&self.namespaces).insert(record.id.clone(), netns.clone());
        Ok(netns)
    }

    pub(crate) fn kept_namespace(&self, id: &str) -> Option<Arc<OwnedFd>> {
        lock(&self.namespaces).get(id).cloned()
    }

    /// A run ended: its namespace is kept for the next one, unless too many are.
    pub(crate) async fn rest(&self, id: &str) {
        lock(&self.running_images).remove(id);
        self.inside.close(id);
        let keep = {
            let kept = lock(&self.namespaces);
            kept.contains_key(id) && kept.len() <= NAMESPACES_MAX
        };
        if !keep {
            self.detach(id).await;
        }
    }

    /// What a run is made of. Its image is noted before anybody can change the record.
    pub(crate) fn records(&self, id: &str) -> anyhow::Result<Records> {
        let catalog = self.keeper.read();
        let found = Records::of(&catalog, id)?;
        self.note_image(id, found.machine.image.clone());
        Ok(found)
    }

    /// The same for a run that may never begin: while its Machine is stopped, the record keeps the image.
    pub(crate) fn peek(&self, id: &str) -> anyhow::Result<Records> {
        Records::of(&self.keeper.read(), id)
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

    /// Whether a Machine is to be removed when its program has ended.
    pub(crate) fn goes_with_its_program(&self, id: &str) -> bool {
        let catalog = self.keeper.read();
        catalog.machines.get(id).is_some_and(|machine| machine.config.view().auto_destroy)
    }

    /// Deletes everything of a Machine that was destroyed.
    pub(crate) async fn remove_machine(self: &Arc<Self>, id: &str) {
        self.armory.disarm(id).await;
        self.detach(id).await;
        // An event that is still to be written would come into a directory that is being emptied.
        self.flush_events().await;
        if let Err(error) =
            perch_machine::remove(&self.paths.machine(id), &self.cgroup_parent).await
        {
            tracing::warn!(machine = id, error = super::images::chain(&error), "leftovers remain");
        }
        let app = self.keeper.read().machines.get(id).map(|machine| machine.app.clone());
        let gone = id.to_owned();
        let removed = move |catalog: &Catalog| Ok((removal(catalog, gone), ()));
        if let Err(error) = self.keeper.write(removed).await {
            tracing::error!(machine = id, %error, "the record of a destroyed Machine remains");
        }
        lock(&self.running_images).remove(id);
        self.lives.forget(id);
        self.pager.forget(id);
        self.remove_handle(id);
        if let Some(app) = app {
            self.publish(&app).await;
            self.proxy.app_changed(app);
        }
    }

    /// Brings what is published at an app's addresses in line with the catalog.
    pub(crate) async fn publish(self: &Arc<Self>, app: &str) {
        let ips = self.keeper.read().apps.get(app).map(AppRecord::addresses);
        self.settle(ips.unwrap_or_default()).await;
    }

    /// Brings what is published at these addresses in line with the catalog: nothing, where no app has them.
    pub(crate) async fn settle(self: &Arc<Self>, ips: Vec<IpAddr>) {
        let world = self.clone();
        let settle = move || world.published.settle(&*world.plane, &world.keeper, &ips);
        if let Err(error) = tokio::task::spawn_blocking(settle).await {
            tracing::error!(%error, "could not publish");
        }
    }
}

/// What a run is made of, as of one moment: equal ones make equal runs.
#[derive(Debug, PartialEq)]
pub(crate) struct Records {
    pub(crate) machine: Arc<MachineRecord>,
    app: AppRecord,
    sealed: Vec<SecretRecord>,
}

impl Records {
    fn of(catalog: &Catalog, id: &str) -> anyhow::Result<Self> {
        let machine = catalog.machines.get(id).cloned().context("the Machine is gone")?;
        let app = catalog.apps.get(&machine.app).cloned().context("the app is gone")?;
        let sealed = secrets::of_machine(catalog, &machine);
        Ok(Self { machine, app, sealed })
    }
}

/// A Machine's records, and the secrets that only it started with.
fn removal(catalog: &Catalog, id: String) -> Vec<Change> {
    let app = catalog.machines.get(&id).map(|machine| machine.app.as_str());
    let secrets = app.map(|app| secrets::forgotten_with(catalog, app, None, Some(&id)));
    let mut changes = secrets.unwrap_or_default();
    changes.extend(
        catalog.machines.get(&id).map(|it| volumes::detached(catalog, it)).unwrap_or_default(),
    );
    changes.extend([
        Change::DeleteMachine(id.clone()),
        Change::DeleteLease(id.clone()),
        Change::DeleteBusy(id),
    ]);
    changes
}

/// What a mutex guards, also after a panic elsewhere.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a Machine is connected.
pub(crate) fn attachment(record: &MachineRecord) -> Attach {
    let machine = record.link_ip;
    let plane = std::net::Ipv4Addr::from(u32::from(machine) & !1);
    Attach { name: record.id.clone(), private_ip: record.private_ip, link: (plane, machine) }
}
