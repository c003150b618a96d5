//! The server's desired state: all of it in memory, every change durable before it is answered.
//!
//! One writer at a time decides on the state as it is, commits to the store, and only then changes
//! memory; readers never see what is not durable. Everything here blocks (a commit is one fsync):
//! async callers go through [`Keeper::write`], which moves to a blocking thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use perch_api::wire::ApiError;
use perch_store::{CommitError, Put, Store, Txn};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ballast::Ballast;
use super::records::{
    AppRecord, BusyRecord, LeaseRecord, MachineRecord, NetworkRecord, ReleaseRecord, RetiredRecord,
    SecretRecord, SnapshotRecord, TokenRecord, VolumeRecord, Wish,
};

/// Machines of an app with which a config is compared: its process groups have each their own.
const SIBLINGS_MAX: usize = 16;

/// Everything the server knows that is not about running processes.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// By organization and name.
    pub(crate) networks: BTreeMap<(String, String), NetworkRecord>,
    pub(crate) apps: BTreeMap<String, AppRecord>,
    pub(crate) machines: BTreeMap<String, Arc<MachineRecord>>,
    /// By id.
    pub(crate) releases: BTreeMap<String, ReleaseRecord>,
    /// By address as text.
    pub(crate) retired: BTreeMap<String, RetiredRecord>,
    /// By Machine.
    pub(crate) leases: BTreeMap<String, LeaseRecord>,
    /// By Machine; also some whose time is over.
    pub(crate) busy: BTreeMap<String, BusyRecord>,
    /// By id.
    pub(crate) tokens: BTreeMap<String, TokenRecord>,
    /// By app, name and version.
    pub(crate) secrets: BTreeMap<(String, String, u64), SecretRecord>,
    /// By id.
    pub(crate) volumes: BTreeMap<String, VolumeRecord>,
    /// By id.
    pub(crate) snapshots: BTreeMap<String, SnapshotRecord>,
    /// The same Machines, and ids of releases, by app: each call about an app would else look at everybody's.
    machines_by_app: Siblings,
    release_ids: Index,
    /// Names of apps by their IPv6 addresses, each of which has one app: to give one more, or to publish it, would else
    /// take the longer the more there are.
    apps_by_address: BTreeMap<Ipv6Addr, String>,
}

/// Those of IPv6.
pub(crate) fn v6_of(ips: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = Ipv6Addr> {
    ips.filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None })
}

/// Machines by app, in order of their ids; an app without any is not in it.
#[derive(Debug, Default)]
struct Siblings(BTreeMap<String, Vec<Arc<MachineRecord>>>);

impl Siblings {
    fn put(&mut self, record: Arc<MachineRecord>) {
        let Some(machines) = self.0.get_mut(&record.app) else {
            self.0.insert(record.app.clone(), vec![record]);
            return;
        };
        match machines.binary_search_by(|other| other.id.cmp(&record.id)) {
            Ok(index) => machines[index] = record,
            Err(index) => {
                machines.reserve_exact(1);
                machines.insert(index, record);
            }
        }
    }

    fn remove(&mut self, app: &str, id: &str) {
        let Some(machines) = self.0.get_mut(app) else { return };
        machines.retain(|other| other.id != id);
        if machines.is_empty() {
            self.0.remove(app);
        }
    }

    fn of<'a>(&'a self, app: &str) -> impl Iterator<Item = &'a MachineRecord> + use<'a> {
        self.0.get(app).into_iter().flatten().map(Arc::as_ref)
    }
}

/// Ids by app; an app without any is not in it.
#[derive(Debug, Default)]
struct Index(BTreeMap<String, BTreeSet<String>>);

impl Index {
    fn add(&mut self, app: &str, id: &str) {
        match self.0.get_mut(app) {
            Some(ids) => drop(ids.insert(id.to_owned())),
            None => drop(self.0.insert(app.to_owned(), BTreeSet::from([id.to_owned()]))),
        }
    }

    fn remove(&mut self, app: &str, id: &str) {
        let Some(ids) = self.0.get_mut(app) else { return };
        ids.remove(id);
        if ids.is_empty() {
            self.0.remove(app);
        }
    }

    fn of<'a>(&'a self, app: &str) -> impl Iterator<Item = &'a String> + use<'a> {
        self.0.get(app).into_iter().flatten()
    }
}

/// One change of one record.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    PutNetwork(NetworkRecord),
    PutApp(AppRecord),
    DeleteApp(String),
    PutMachine(Box<MachineRecord>),
    DeleteMachine(String),
    PutRelease(Box<ReleaseRecord>),
    DeleteRelease(String),
    PutRetired(RetiredRecord),
    DeleteRetired(String),
    PutLease(LeaseRecord),
    DeleteLease(String),
    PutBusy(BusyRecord),
    DeleteBusy(String),
    PutToken(TokenRecord),
    DeleteToken(String),
    PutSecret(Box<SecretRecord>),
    /// App, name and version.
    DeleteSecret((String, String, u64)),
    PutVolume(VolumeRecord),
    DeleteVolume(String),
    PutSnapshot(SnapshotRecord),
    DeleteSnapshot(String),
}

/// Owns the catalog and its store.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    ballast: Ballast,
    catalog: RwLock<Catalog>,
    /// Held from the decision to the change in memory.
    writing: Mutex<()>,
    /// Whether every commit is refused, as with a full disk.
    #[cfg(test)]
    is_full: std::sync::atomic::AtomicBool,
}

impl Keeper {
    /// Reads everything that is stored.
    ///
    /// # Errors
    /// When the store cannot be read, or holds what this release does not understand.
    pub(crate) fn load(store: Store, ballast: Ballast) -> anyhow::Result<Self> {
        let mut catalog = Catalog::default();
        for record in read_all::<NetworkRecord>(&store, "network/")? {
            catalog.apply(Change::PutNetwork(record));
        }
        for record in read_all::<AppRecord>(&store, "app/")? {
            catalog.apply(Change::PutApp(record));
        }
        for record in read_all::<MachineRecord>(&store, "machine/")? {
            catalog.apply(Change::PutMachine(Box::new(record)));
        }
        for record in read_all::<ReleaseRecord>(&store, "release/")? {
            catalog.apply(Change::PutRelease(Box::new(record)));
        }
        for record in read_all::<RetiredRecord>(&store, "retired/")? {
            catalog.apply(Change::PutRetired(record));
        }
        for record in read_all::<LeaseRecord>(&store, "lease/")? {
            catalog.apply(Change::PutLease(record));
        }
        for record in read_all::<BusyRecord>(&store, "busy/")? {
            catalog.apply(Change::PutBusy(record));
        }
        for record in read_all::<TokenRecord>(&store, "token/")? {
            catalog.apply(Change::PutToken(record));
        }
        for record in read_all::<SecretRecord>(&store, "secret/")? {
            catalog.apply(Change::PutSecret(Box::new(record)));
        }
        for record in read_all::<VolumeRecord>(&store, "volume/")? {
            catalog.apply(Change::PutVolume(record));
        }
        for record in read_all::<SnapshotRecord>(&store, "snapshot/")? {
            catalog.apply(Change::PutSnapshot(record));
        }
        let inner = Inner {
            store,
            ballast,
            catalog: RwLock::new(catalog),
            writing: Mutex::new(()),
            #[cfg(test)]
            is_full: false.into(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A keeper of the store in this directory, for tests.
    #[cfg(test)]
    pub(crate) fn in_dir(dir: &std::path::Path) -> Self {
        let store = Store::open(&dir.join("store.db")).expect("a store");
        Self::load(store, Ballast::given_up(dir.join("ballast"))).expect("readable")
    }

    /// The state as it is. Hold it shortly and never across an await.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Catalog> {
        self.inner.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides on the present state and makes the changes durable, all or none. `decide` must not block.
    ///
    /// # Errors
    /// What `decide` answers; 507 when the disk is full; nothing has changed then.
    pub(crate) async fn write<T, F>(&self, decide: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&Catalog) -> Result<(Vec<Change>, T), ApiError> + Send + 'static,
    {
        let keeper = self.clone();
        let written = tokio::task::spawn_blocking(move || keeper.write_blocking(decide));
        written.await.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
    }

    /// As [`Keeper::write`], on this thread.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn write_blocking<T>(
        &self,
        decide: impl FnOnce(&Catalog) -> Result<(Vec<Change>, T), ApiError>,
    ) -> Result<T, ApiError> {
        let _writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (changes, answer) = decide(&self.read())?;
        if changes.is_empty() {
            return Ok(answer);
        }
        let txn = transaction(&changes).map_err(|error| ApiError::internal(error.to_string()))?;
        self.commit(&txn, changes.iter().all(Change::makes_room)).map_err(refused)?;
        let mut catalog = self.inner.catalog.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            catalog.apply(change);
        }
        self.renew_ballast();
        Ok(answer)
    }

    /// Sets aside what a commit on a full disk will need.
    pub(crate) fn renew_ballast(&self) {
        self.inner.ballast.renew();
    }

    /// Commits; what makes room is committed on a full disk too.
    fn commit(&self, txn: &Txn, makes_room: bool) -> Result<(), CommitError> {
        #[cfg(test)]
        if self.inner.is_full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(CommitError::Full);
        }
        loop {
            match self.inner.store.commit(txn) {
                Err(CommitError::Full) if makes_room && self.inner.ballast.drop_piece() => {}
                done => return done.map(drop),
            }
        }
    }

    /// From now on refuses every commit as with a full disk, or no longer.
    #[cfg(test)]
    pub(crate) fn pretend_full(&self, is_full: bool) {
        self.inner.is_full.store(is_full, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Change {
    /// Whether something ends by it, or is on its way there.
    fn makes_room(&self) -> bool {
        match self {
            Self::PutMachine(it) => it.life.wish == Wish::Gone,
            Self::PutApp(it) => it.going,
            // It goes, or the Machine goes that had it.
            Self::PutVolume(it) => !it.is_there() || it.machine.is_none(),
            Self::DeleteVolume(_)
            | Self::DeleteSnapshot(_)
            | Self::DeleteApp(_)
            | Self::DeleteMachine(_)
            | Self::DeleteRelease(_)
            | Self::PutRetired(_)
            | Self::DeleteRetired(_)
            | Self::DeleteLease(_)
            | Self::DeleteBusy(_)
            | Self::DeleteToken(_)
            | Self::DeleteSecret(_) => true,
            Self::PutNetwork(_)
            | Self::PutRelease(_)
            | Self::PutLease(_)
            | Self::PutBusy(_)
            | Self::PutToken(_)
            | Self::PutSnapshot(_)
            | Self::PutSecret(_) => false,
        }
    }
}

impl Catalog {
    /// Makes one change in memory.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::PutNetwork(it) => {
                self.networks.insert((it.org.clone(), it.name.clone()), it);
            }
            Change::PutApp(mut it) => {
                it.ips.shrink_to_fit();
                self.delete_app(&it.name);
                let addresses = v6_of(it.ips.iter().map(|ip| ip.ip));
                self.apps_by_address.extend(addresses.map(|ip| (ip, it.name.clone())));
                self.apps.insert(it.name.clone(), it);
            }
            Change::DeleteApp(name) => self.delete_app(&name),
            Change::PutMachine(mut it) => {
                self.share_config(&mut it);
                let it: Arc<MachineRecord> = Arc::from(it);
                self.machines_by_app.put(it.clone());
                self.machines.insert(it.id.clone(), it);
            }
            Change::DeleteMachine(id) => {
                if let Some(it) = self.machines.remove(&id) {
                    self.machines_by_app.remove(&it.app, &id);
                }
            }
            Change::PutRelease(it) => {
                self.release_ids.add(&it.app, &it.id);
                self.releases.insert(it.id.clone(), *it);
            }
            Change::DeleteRelease(id) => {
                if let Some(it) = self.releases.remove(&id) {
                    self.release_ids.remove(&it.app, &id);
                }
            }
            Change::PutRetired(it) => drop(self.retired.insert(it.ip.to_string(), it)),
            Change::DeleteRetired(ip) => drop(self.retired.remove(&ip)),
            Change::PutLease(it) => drop(self.leases.insert(it.machine.clone(), it)),
            Change::DeleteLease(machine) => drop(self.leases.remove(&machine)),
            Change::PutBusy(it) => drop(self.busy.insert(it.machine.clone(), it)),
            Change::DeleteBusy(machine) => drop(self.busy.remove(&machine)),
            Change::PutToken(it) => drop(self.tokens.insert(it.id.clone(), it)),
            Change::DeleteToken(id) => drop(self.tokens.remove(&id)),
            Change::PutSecret(it) => drop(self.secrets.insert(it.key(), *it)),
            Change::DeleteSecret(key) => drop(self.secrets.remove(&key)),
            Change::PutVolume(it) => drop(self.volumes.insert(it.id.clone(), it)),
            Change::DeleteVolume(id) => drop(self.volumes.remove(&id)),
            Change::PutSnapshot(it) => drop(self.snapshots.insert(it.id.clone(), it)),
            Change::DeleteSnapshot(id) => drop(self.snapshots.remove(&id)),
        }
    }

    fn delete_app(&mut self, name: &str) {
        let Some(app) = self.apps.remove(name) else { return };
        v6_of(app.ips.iter().map(|ip| ip.ip)).for_each(|ip| drop(self.apps_by_address.remove(&ip)));
    }

    /// Names of apps by their IPv6 addresses.
    pub(crate) fn apps_by_address(&self) -> &BTreeMap<Ipv6Addr, String> {
        &self.apps_by_address
    }

    /// The apps that may have one of these addresses.
    pub(crate) fn apps_at(&self, ips: &[IpAddr]) -> Vec<&AppRecord> {
        // Those of IPv4 are shared.
        if ips.iter().any(IpAddr::is_ipv4) {
            return self.apps.values().collect();
        }
        let names = v6_of(ips.iter().copied()).filter_map(|ip| self.apps_by_address.get(&ip));
        let names: BTreeSet<&String> = names.collect();
        names.into_iter().filter_map(|name| self.apps.get(name)).collect()
    }

    /// Lets a Machine have its config together with others of its app.
    fn share_config(&self, record: &mut MachineRecord) {
        let others = self.machines_of(&record.app).take(SIBLINGS_MAX);
        for other in others {
            if record.config.share(&other.config) {
                return;
            }
        }
    }

    /// An app, or 404.
    pub(crate) fn app(&self, name: &str) -> Result<&AppRecord, ApiError> {
        self.apps.get(name).ok_or_else(|| ApiError::no_app(name))
    }

    /// An app to which something is to be added, or 404; 409 while it is being destroyed.
    pub(crate) fn staying_app(&self, name: &str) -> Result<&AppRecord, ApiError> {
        let app = self.app(name)?;
        if app.going {
            return Err(ApiError::conflict(format!(
                "app {name} is being destroyed; `fly apps destroy {name}` goes on with it"
            )));
        }
        Ok(app)
    }

    /// A Machine of an app, or 404.
    pub(crate) fn machine(&self, app: &str, id: &str) -> Result<&MachineRecord, ApiError> {
        let found = self.machines.get(id).filter(|machine| machine.app == app).map(Arc::as_ref);
        found.ok_or_else(|| ApiError::not_found(format!("machine not found: {id} in app {app}")))
    }

    /// Machines of an app, by id.
    pub(crate) fn machines_of<'a>(
        &'a self,
        app: &str,
    ) -> impl Iterator<Item = &'a MachineRecord> + use<'a> {
        self.machines_by_app.of(app)
    }

    /// Values of an app's secrets, by name and version.
    pub(crate) fn secrets_of<'a>(&'a self, app: &'a str) -> impl Iterator<Item = &'a SecretRecord> {
        let all = self.secrets.range((app.to_owned(), String::new(), 0)..);
        all.map(|(_, record)| record).take_while(move |record| record.app == app)
    }

    /// Volumes of an app, by id; of one that is gone, too.
    pub(crate) fn volumes_of<'a, 'n>(
        &'a self,
        app: &'n str,
    ) -> impl Iterator<Item = &'a VolumeRecord> + use<'a, 'n> {
        let org = self.apps.get(app).map(|app| app.org.as_str());
        let own = move |it: &&VolumeRecord| it.app == app && org.is_none_or(|org| org == it.org);
        self.volumes.values().filter(own)
    }

    /// A volume of an app that is not on its way out, or 404.
    pub(crate) fn volume(&self, app: &str, id: &str) -> Result<&VolumeRecord, ApiError> {
        let found = self.volumes_of(app).find(|it| it.id == id && it.is_there());
        found.ok_or_else(|| ApiError::not_found(format!("volume not found: {id} in app {app}")))
    }

    /// Snapshots of a volume.
    pub(crate) fn snapshots_of<'a>(
        &'a self,
        volume: &'a str,
    ) -> impl Iterator<Item = &'a SnapshotRecord> {
        self.snapshots.values().filter(move |it| it.volume == volume)
    }

    /// Releases of an app, newest first.
    pub(crate) fn releases_of(&self, app: &str) -> Vec<&ReleaseRecord> {
        let mut found: Vec<_> =
            self.release_ids.of(app).filter_map(|id| self.releases.get(id)).collect();
        found.sort_by_key(|release| std::cmp::Reverse(release.version));
        found
    }
}

fn read_all<T: DeserializeOwned>(store: &Store, prefix: &str) -> anyhow::Result<Vec<T>> {
    let parse = |entry: perch_store::Entry| {
        serde_json::from_slice(&entry.value).map_err(|error| {
            anyhow::anyhow!("the stored record {} is unreadable: {error}", entry.key)
        })
    };
    store.list(prefix)?.into_iter().map(parse).collect()
}

fn transaction(changes: &[Change]) -> serde_json::Result<Txn> {
    let mut txn = Txn::default();
    for change in changes {
        match change {
            Change::PutNetwork(it) => put(&mut txn, format!("network/{}/{}", it.org, it.name), it)?,
            Change::PutApp(it) => put(&mut txn, format!("app/{}", it.name), it)?,
            Change::DeleteApp(name) => txn.deletes.push(format!("app/{name}")),
            Change::PutMachine(it) => put(&mut txn, format!("machine/{}", it.id), it)?,
            Change::DeleteMachine(id) => txn.deletes.push(format!("machine/{id}")),
            Change::PutRelease(it) => put(&mut txn, format!("release/{}", it.id), it)?,
            Change::DeleteRelease(id) => txn.deletes.push(format!("release/{id}")),
            Change::PutRetired(it) => put(&mut txn, format!("retired/{}", it.ip), it)?,
            Change::DeleteRetired(ip) => txn.deletes.push(format!("retired/{ip}")),
            Change::PutLease(it) => put(&mut txn, format!("lease/{}", it.machine), it)?,
            Change::DeleteLease(machine) => txn.deletes.push(format!("lease/{machine}")),
            Change::PutBusy(it) => put(&mut txn, format!("busy/{}", it.machine), it)?,
            Change::DeleteBusy(machine) => txn.deletes.push(format!("busy/{machine}")),
            Change::PutToken(it) => put(&mut txn, format!("token/{}", it.id), it)?,
            Change::DeleteToken(id) => txn.deletes.push(format!("token/{id}")),
            Change::PutSecret(it) => put(&mut txn, secret_key(&it.key()), it)?,
            Change::DeleteSecret(key) => txn.deletes.push(secret_key(key)),
            Change::PutVolume(it) => put(&mut txn, format!("volume/{}", it.id), it)?,
            Change::DeleteVolume(id) => txn.deletes.push(format!("volume/{id}")),
            Change::PutSnapshot(it) => put(&mut txn, format!("snapshot/{}", it.id), it)?,
            Change::DeleteSnapshot(id) => txn.deletes.push(format!("snapshot/{id}")),
        }
    }
    Ok(txn)
}

fn secret_key((app, name, version): &(String, String, u64)) -> String {
    format!("secret/{app}/{name}/{version:020}")
}

fn put(txn: &mut Txn, key: String, record: &impl Serialize) -> serde_json::Result<()> {
    txn.puts.push(Put { key, value: serde_json::to_vec(record)?, lease: None });
    Ok(())
}

fn refused(error: CommitError) -> ApiError {
    match error {
        CommitError::Full => ApiError::disk_full(
            "the disk of the data directory is full; nothing was stored; make room and repeat",
        ),
        CommitError::Limit(text) => ApiError::too_large(text),
        CommitError::Conflict { key } => ApiError::conflict(format!("{key} was changed meanwhile")),
        other @ (CommitError::LeaseEnded(_) | CommitError::Io(_)) => {
            ApiError::internal(other.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(id: u32) -> NetworkRecord {
        NetworkRecord { id, org: "personal".to_owned(), name: format!("n{id}") }
    }

    fn keeper(dir: &std::path::Path) -> Keeper {
        Keeper::in_dir(dir)
    }

    #[test]
    fn only_what_ends_something_may_use_the_ballast() {
        let ends = Change::DeleteApp("web".to_owned());
        let ended = Change::PutRetired(RetiredRecord {
            ip: std::net::Ipv6Addr::LOCALHOST.into(),
            released_at: 0,
        });
        assert!([ends, ended].iter().all(Change::makes_room));
        assert!(!Change::PutNetwork(network(1)).makes_room());
    }

    #[test]
    fn the_addresses_of_all_apps_are_known_and_none_that_was_given_back() {
        use crate::server::records::tests as records;
        let all = |catalog: &Catalog| -> Vec<String> {
            catalog.apps_by_address().iter().map(|(ip, app)| format!("{ip} {app}")).collect()
        };
        let app = |name: &str, ips: &[&str]| Change::PutApp(records::app_at(name, ips));
        let mut catalog = Catalog::default();
        for change in [app("web", &["fd00::3", "fd00::4", "10.0.0.1"]), app("db", &["fd00::5"])] {
            catalog.apply(change);
        }
        assert_eq!(all(&catalog), ["fd00::3 web", "fd00::4 web", "fd00::5 db"]);
        catalog.apply(app("web", &["fd00::4", "fd00::6"]));
        catalog.apply(Change::DeleteApp("db".to_owned()));
        assert_eq!(all(&catalog), ["fd00::4 web", "fd00::6 web"]);
        let names = |ips: &[&str]| -> Vec<String> {
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
            catalog.apps_at(&ips).into_iter().map(|app| app.name.clone()).collect()
        };
        assert_eq!(names(&["fd00::6", "fd00::4"]), ["web"]);
        assert!(names(&["fd00::5", "fd00::3"]).is_empty());
    }

    #[test]
    fn an_app_has_its_own_machines_and_releases_and_none_that_are_gone() {
        use crate::server::records::tests as records;
        let mut catalog = Catalog::default();
        for id in ["m2", "m1", "m3"] {
            catalog.apply(Change::PutMachine(Box::new(records::machine(id))));
        }
        for (app, version) in [("web", 1), ("web", 2), ("db", 1)] {
            catalog.apply(Change::PutRelease(Box::new(records::release(app, version, ""))));
        }
        catalog.apply(Change::DeleteMachine("m2".to_owned()));
        catalog.apply(Change::DeleteRelease("web-2".to_owned()));
        let ids: Vec<&str> = catalog.machines_of("web").map(|it| it.id.as_str()).collect();
        assert_eq!(ids, ["m1", "m3"]);
        let releases = |app| catalog.releases_of(app).iter().map(|it| it.version).collect();
        let (web, db): (Vec<u64>, Vec<u64>) = (releases("web"), releases("db"));
        assert_eq!((web, db, catalog.machines_of("db").count()), (vec![1], vec![1], 0));
    }

    #[test]
    fn machines_of_an_app_with_the_same_config_have_it_once() {
        use crate::server::records::tests as records;
        let mut catalog = Catalog::default();
        for id in ["m1", "m2"] {
            catalog.apply(Change::PutMachine(Box::new(records::machine(id))));
        }
        let elsewhere = MachineRecord { app: "db".to_owned(), ..records::machine("m3") };
        catalog.apply(Change::PutMachine(Box::new(elsewhere)));
        let read = |id: &str| catalog.machines[id].config.read();
        let first = read("m1");
        assert!(Arc::ptr_eq(&first, &read("m2")) && !Arc::ptr_eq(&first, &read("m3")));
    }

    #[test]
    fn a_refused_decision_changes_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keeper = keeper(dir.path());
        let refused: Result<(), _> = keeper.write_blocking(|_| Err(ApiError::conflict("no")));
        assert_eq!(refused.expect_err("refused").code, 409);
        assert!(keeper.read().networks.is_empty());
    }

    #[test]
    fn what_was_answered_is_there_after_the_next_start() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = keeper(dir.path());
        first.write_blocking(|_| Ok((vec![Change::PutNetwork(network(7))], ()))).expect("written");
        drop(first);
        assert_eq!(keeper(dir.path()).read().networks.len(), 1);
    }
}
