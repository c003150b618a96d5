//! A backend in memory: keeps just enough to see that every call arrives with what it carries.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use perch_api::server::{BodyStream, DeleteMachine, MachineTarget, TokenHolder};
use perch_api::wire::{
    ApiError, App, AppPatch, AppWhy, Asker, AssignIp, Busy, BusyInput, ConsoleInput, CreateApp,
    CreateRelease, CreateToken, CreateVolume, Descriptor, DnsAnswer, Event, ExecAnswer, ExecInput,
    ExtendVolume, ExtendedVolume, ImageInfo, Info, IpAssignment, LaunchInput, Lease, LeaseData,
    LeaseInput, LedgerEvent, LedgerPage, LedgerQuery, LogEntry, LogPage, LogQuery, Machine,
    MachineFilter, MachineState, ManifestInfo, NewToken, Organization, OrganizationRef, Process,
    Region, RegionPage, Release, RestartQuery, RotateKeys, Secret, SecretsAnswer, SignalInput,
    Snapshot, SourceKeys, StartAnswer, StopInput, Token, UpdateRelease, UpdateSecrets,
    UpdateVolume, UploadState, Volume, WaitQuery, WaitState,
};
use perch_api::{Backend, Peer};
use tokio::io::DuplexStream;
use tokio::sync::Notify;

type Result<T> = std::result::Result<T, ApiError>;

/// A blob that this backend refuses, as if its disk were full.
pub(super) const DISK_FULL_REPOSITORY: &str = "full";

#[derive(Default)]
pub(super) struct Memory {
    state: Mutex<State>,
    pub(super) changed: Notify,
    /// Waits that have begun and not ended.
    pub(super) waits: AtomicUsize,
    pub(super) wait_ended: Notify,
    /// Holders by what they send.
    pub(super) tokens: Mutex<BTreeMap<String, Arc<TokenHolder>>>,
}

#[derive(Default)]
pub(super) struct State {
    apps: BTreeMap<String, App>,
    ips: Vec<IpAssignment>,
    pub(super) machines: BTreeMap<String, Machine>,
    pub(super) lease: Option<LeaseData>,
    releases: Vec<Release>,
    secrets: BTreeMap<String, Secret>,
    volumes: BTreeMap<String, Volume>,
    pub(super) logs: Vec<LogEntry>,
    pub(super) uploads: BTreeMap<String, Vec<u8>>,
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, ManifestInfo>,
    /// What the last calls carried beside their subject.
    pub(super) seen: Vec<String>,
}

impl Memory {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    pub(super) fn revoke(&self, secret: &str) {
        self.tokens.lock().expect("no test panics with it").remove(secret);
        self.changed.notify_waiters();
    }

    fn saw(&self, text: impl Into<String>) {
        self.state().seen.push(text.into());
    }

    fn app(&self, name: &str) -> Result<App> {
        let missing = || ApiError::not_found(format!("Could not find App \"{name}\""));
        self.state().apps.get(name).cloned().ok_or_else(missing)
    }

    fn machine(&self, target: &MachineTarget) -> Result<Machine> {
        let missing = || ApiError::not_found("machine not found");
        self.state().machines.get(&target.id).cloned().ok_or_else(missing)
    }

    fn writable(&self, target: &MachineTarget) -> Result<Machine> {
        let machine = self.machine(target)?;
        match &self.state().lease {
            Some(lease) if target.nonce.as_deref() != Some(&lease.nonce) => {
                Err(ApiError::conflict(format!("lease currently held by {}", lease.owner)))
            }
            _ => Ok(machine),
        }
    }

    pub(super) fn set_state(&self, id: &str, to: MachineState) {
        if let Some(machine) = self.state().machines.get_mut(id) {
            machine.state = to;
        }
        self.changed.notify_waiters();
    }
}

struct WaitGuard<'a>(&'a Memory);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.waits.fetch_sub(1, Ordering::SeqCst);
        self.0.wait_ended.notify_one();
    }
}

/// Stands in for SHA-256, so that the tests need none.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format!("len:{}", bytes.len())
}

impl Backend for Memory {
    type Stream = DuplexStream;
    type Console = DuplexStream;

    fn authenticate(&self, secret: &str) -> Option<Arc<TokenHolder>> {
        self.tokens.lock().expect("no test panics with it").get(secret).cloned()
    }

    async fn token_ended(&self, id: String) {
        loop {
            let changed = self.changed.notified();
            let tokens = self.tokens.lock().expect("no test panics with it").clone();
            if !tokens.values().any(|holder| holder.id == id) {
                return;
            }
            changed.await;
        }
    }

    async fn list_keys(&self, _: Peer) -> Result<SourceKeys> {
        Ok(SourceKeys::default())
    }

    async fn rotate_keys(&self, _: Peer, input: RotateKeys) -> Result<SourceKeys> {
        self.saw(format!("rotate {}", input.now));
        Ok(SourceKeys::default())
    }

    async fn list_tokens(&self, _: Peer) -> Result<Vec<Token>> {
        Ok(vec![Token { name: "ci".to_owned(), ..Token::default() }])
    }

    async fn create_token(&self, _: Peer, input: CreateToken) -> Result<NewToken> {
        let token = Token { name: input.name, ..Token::default() };
        Ok(NewToken { token, secret: "perch_1".to_owned() })
    }

    async fn revoke_token(&self, _: Peer, token: String) -> Result<()> {
        self.saw(format!("revoke {token}"));
        Ok(())
    }

    async fn create_app(&self, peer: Peer, input: CreateApp) -> Result<App> {
        if self.state().apps.contains_key(&input.name) {
            return Err(ApiError::invalid("Name has already been taken").with_word("name_taken"));
        }
        self.saw(peer.user());
        let app = App {
            id: input.name.clone(),
            name: input.name.clone(),
            network: input.network,
            organization: OrganizationRef { slug: input.org_slug, ..OrganizationRef::default() },
            address_intent: input.address_intent,
            status: "pending".to_owned(),
            ..App::default()
        };
        self.state().apps.insert(input.name, app.clone());
        Ok(app)
    }

    async fn list_apps(&self, _: Peer, org_slug: Option<String>) -> Result<Vec<App>> {
        self.saw(format!("org {org_slug:?}"));
        Ok(self.state().apps.values().cloned().collect())
    }

    async fn get_app(&self, _: Peer, app: String) -> Result<App> {
        self.app(&app)
    }

    async fn update_app(&self, _: Peer, app: String, patch: AppPatch) -> Result<App> {
        let mut changed = self.app(&app)?;
        changed.address_intent = patch.address_intent.unwrap_or(changed.address_intent);
        self.state().apps.insert(app, changed.clone());
        Ok(changed)
    }

    async fn delete_app(&self, _: Peer, app: String, volumes: Vec<String>) -> Result<()> {
        self.app(&app)?;
        self.saw(format!("with volumes {volumes:?}"));
        self.state().apps.remove(&app);
        let is_for_it = |holder: &TokenHolder| holder.scope.app.as_deref() == Some(&app);
        self.tokens.lock().expect("no test panics with it").retain(|_, it| !is_for_it(it));
        self.changed.notify_waiters();
        // Whoever waits for the token's end hears of it first.
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn list_ips(&self, _: Peer, app: String) -> Result<Vec<IpAssignment>> {
        self.app(&app)?;
        Ok(self.state().ips.clone())
    }

    async fn assign_ip(&self, _: Peer, app: String, input: AssignIp) -> Result<IpAssignment> {
        self.app(&app)?;
        let ip = IpAssignment {
            ip: "fdaa:0:1:0:1::2".parse().expect("address"),
            kind: input.kind,
            region: "global".to_owned(),
            service_name: String::new(),
            shared: false,
            created_at: "2026-01-02T03:04:05Z".to_owned(),
            network: None,
        };
        self.state().ips.push(ip.clone());
        Ok(ip)
    }

    async fn release_ip(&self, _: Peer, _: String, ip: IpAddr) -> Result<()> {
        let mut state = self.state();
        let before = state.ips.len();
        state.ips.retain(|assignment| assignment.ip != ip);
        if state.ips.len() == before {
            Err(ApiError::not_found("not an address of this app"))
        } else {
            Ok(())
        }
    }

    async fn create_machine(&self, _: Peer, app: String, input: LaunchInput) -> Result<Machine> {
        self.app(&app)?;
        let machine = Machine {
            id: format!("{:014x}", self.state().machines.len() + 1),
            name: input.name,
            state: MachineState::Created,
            region: "lcl".to_owned(),
            image_ref: Default::default(),
            instance_id: "v1".to_owned(),
            private_ip: Ipv6Addr::LOCALHOST,
            created_at: String::new(),
            updated_at: String::new(),
            config: input.config,
            events: Vec::new(),
            checks: Vec::new(),
            nonce: (0 < input.lease_ttl).then(|| "n-create".to_owned()),
            host_status: "ok".to_owned(),
            cordoned: input.skip_service_registration,
            perch_depth: None,
            perch_memory: None,
            perch_busy: None,
        };
        self.state().machines.insert(machine.id.clone(), machine.clone());
        Ok(machine)
    }

    async fn list_machines(
        &self,
        _: Peer,
        _: String,
        filter: MachineFilter,
    ) -> Result<Vec<Machine>> {
        self.saw(format!("{filter:?}"));
        Ok(self.state().machines.values().cloned().collect())
    }

    async fn get_machine(&self, _: Peer, target: MachineTarget) -> Result<Machine> {
        self.machine(&target)
    }

    async fn update_machine(
        &self,
        _: Peer,
        target: MachineTarget,
        input: LaunchInput,
    ) -> Result<Machine> {
        let mut machine = self.writable(&target)?;
        machine.config = input.config;
        machine.instance_id = "v2".to_owned();
        self.state().machines.insert(target.id, machine.clone());
        Ok(machine)
    }

    async fn delete_machine(
        &self,
        _: Peer,
        target: MachineTarget,
        how: DeleteMachine,
    ) -> Result<()> {
        if self.writable(&target)?.state == MachineState::Started && !how.force {
            return Err(ApiError::precondition("machine is started; stop it first, or force"));
        }
        self.state().machines.remove(&target.id);
        Ok(())
    }

    async fn start_machine(&self, _: Peer, target: MachineTarget) -> Result<StartAnswer> {
        let previous_state = self.writable(&target)?.state.to_string();
        self.set_state(&target.id, MachineState::Started);
        Ok(StartAnswer { previous_state, ..StartAnswer::default() })
    }

    async fn stop_machine(&self, _: Peer, target: MachineTarget, input: StopInput) -> Result<()> {
        self.writable(&target)?;
        self.saw(format!("{:?} {:?}", input.signal.map(|signal| signal.name()), input.timeout));
        self.set_state(&target.id, MachineState::Stopped);
        Ok(())
    }

    async fn suspend_machine(&self, _: Peer, target: MachineTarget) -> Result<()> {
        self.writable(&target)?;
        self.set_state(&target.id, MachineState::Suspended);
        Ok(())
    }

    async fn restart_machine(
        &self,
        _: Peer,
        target: MachineTarget,
        query: RestartQuery,
    ) -> Result<()> {
        self.writable(&target)?;
        self.saw(format!("restart {} {query:?}", target.id));
        Ok(())
    }

    async fn signal_machine(
        &self,
        _: Peer,
        target: MachineTarget,
        input: SignalInput,
    ) -> Result<()> {
        self.writable(&target)?;
        self.saw(input.signal.name());
        Ok(())
    }

    async fn list_secrets(&self, _: Peer, app: String, min: u64) -> Result<Vec<Secret>> {
        self.app(&app)?;
        self.saw(format!("secrets from {min}"));
        Ok(self.state().secrets.values().cloned().collect())
    }

    async fn update_secrets(
        &self,
        _: Peer,
        app: String,
        input: UpdateSecrets,
    ) -> Result<SecretsAnswer> {
        self.app(&app)?;
        for (name, value) in input.values {
            match value {
                Some(value) => {
                    let digest = format!("len:{}", value.reveal().len());
                    let secret = Secret { name: name.clone(), digest, ..Secret::default() };
                    self.state().secrets.insert(name, secret);
                }
                None => drop(self.state().secrets.remove(&name)),
            }
        }
        let secrets = self.state().secrets.values().cloned().collect();
        Ok(SecretsAnswer { secrets, version: 7 })
    }

    async fn list_volumes(&self, _: Peer, app: String) -> Result<Vec<Volume>> {
        self.app(&app)?;
        Ok(self.state().volumes.values().cloned().collect())
    }

    async fn create_volume(&self, _: Peer, app: String, input: CreateVolume) -> Result<Volume> {
        self.app(&app)?;
        self.saw(format!("{input:?}"));
        let size_gb = input.size_gb.unwrap_or(3);
        let id = "vol_1".to_owned();
        let volume = Volume { id: id.clone(), name: input.name, size_gb, ..Volume::default() };
        self.state().volumes.insert(id, volume.clone());
        Ok(volume)
    }

    async fn get_volume(&self, _: Peer, app: String, id: String) -> Result<Volume> {
        self.app(&app)?;
        self.state().volumes.get(&id).cloned().ok_or_else(|| ApiError::not_found("no volume"))
    }

    async fn update_volume(
        &self,
        peer: Peer,
        app: String,
        id: String,
        input: UpdateVolume,
    ) -> Result<Volume> {
        let volume = self.get_volume(peer, app, id.clone()).await?;
        let snapshot_retention = input.snapshot_retention.unwrap_or(volume.snapshot_retention);
        let volume = Volume { snapshot_retention, ..volume };
        self.state().volumes.insert(id, volume.clone());
        Ok(volume)
    }

    async fn delete_volume(&self, _: Peer, app: String, id: String) -> Result<Volume> {
        self.app(&app)?;
        self.state().volumes.remove(&id).ok_or_else(|| ApiError::not_found("no volume"))
    }

    async fn extend_volume(
        &self,
        peer: Peer,
        app: String,
        id: String,
        input: ExtendVolume,
    ) -> Result<ExtendedVolume> {
        let volume = self.get_volume(peer, app, id).await?;
        let volume = Volume { size_gb: input.size_gb, ..volume };
        Ok(ExtendedVolume { volume, needs_restart: true })
    }

    async fn list_snapshots(&self, peer: Peer, app: String, id: String) -> Result<Vec<Snapshot>> {
        let volume = self.get_volume(peer, app, id).await?;
        Ok(vec![Snapshot { volume_size: volume.size_gb << 30, ..Snapshot::default() }])
    }

    async fn create_snapshot(&self, peer: Peer, app: String, id: String) -> Result<Snapshot> {
        self.get_volume(peer, app, id).await?;
        Ok(Snapshot { id: "vs_1".to_owned(), ..Snapshot::default() })
    }

    async fn wait_machine(&self, _: Peer, target: MachineTarget, query: WaitQuery) -> Result<()> {
        self.waits.fetch_add(1, Ordering::SeqCst);
        let _guard = WaitGuard(self);
        loop {
            let changed = self.changed.notified();
            let state = self.machine(&target)?.state;
            let reached = |wanted: &WaitState| wanted.as_str() == state.as_str();
            if query.states.iter().any(reached) {
                return Ok(());
            }
            changed.await;
        }
    }

    async fn cordon_machine(&self, _: Peer, target: MachineTarget) -> Result<()> {
        let mut machine = self.writable(&target)?;
        machine.cordoned = true;
        self.state().machines.insert(target.id, machine);
        Ok(())
    }

    async fn uncordon_machine(&self, _: Peer, target: MachineTarget) -> Result<()> {
        let mut machine = self.writable(&target)?;
        machine.cordoned = false;
        self.state().machines.insert(target.id, machine);
        Ok(())
    }

    async fn list_processes(&self, _: Peer, target: MachineTarget) -> Result<Vec<Process>> {
        self.machine(&target)?;
        Ok(vec![Process { pid: 1, command: "init".to_owned(), ..Process::default() }])
    }

    async fn list_events(&self, _: Peer, target: MachineTarget) -> Result<Vec<Event>> {
        self.machine(&target)?;
        Ok(vec![Event { kind: "launch".to_owned(), timestamp: 1, ..Event::default() }])
    }

    async fn get_metadata(
        &self,
        _: Peer,
        target: MachineTarget,
    ) -> Result<BTreeMap<String, String>> {
        Ok(self.machine(&target)?.config.view().metadata.clone())
    }

    async fn set_metadata(
        &self,
        _: Peer,
        target: MachineTarget,
        key: String,
        value: Option<String>,
    ) -> Result<()> {
        let mut machine = self.writable(&target)?;
        let changed = machine.config.with_metadata(&key, value.as_deref());
        machine.config = changed.map_err(|error| ApiError::invalid(error.to_string()))?;
        self.state().machines.insert(target.id, machine);
        Ok(())
    }

    async fn set_busy(&self, _: Peer, target: MachineTarget, input: BusyInput) -> Result<Busy> {
        self.machine(&target)?;
        Ok(Busy { until: "2026-01-01T00:00:00Z".to_owned(), reason: input.reason })
    }

    async fn end_busy(&self, _: Peer, target: MachineTarget) -> Result<()> {
        self.machine(&target).map(drop)
    }

    async fn acquire_lease(
        &self,
        _: Peer,
        target: MachineTarget,
        input: LeaseInput,
    ) -> Result<Lease> {
        self.writable(&target)?;
        let data = LeaseData {
            nonce: "n-1".to_owned(),
            expires_at: i64::try_from(input.ttl).expect("short"),
            owner: "uid 0".to_owned(),
            description: input.description,
            version: "v1".to_owned(),
        };
        self.state().lease = Some(data.clone());
        Ok(Lease { status: "success".to_owned(), data })
    }

    async fn get_lease(&self, _: Peer, target: MachineTarget) -> Result<Lease> {
        let missing = || ApiError::not_found(format!("machine {} lease not found", target.id));
        let data = self.state().lease.clone().ok_or_else(missing)?;
        Ok(Lease { status: "success".to_owned(), data: LeaseData { nonce: String::new(), ..data } })
    }

    async fn clear_lease(&self, _: Peer, target: MachineTarget) -> Result<()> {
        let missing = || ApiError::not_found(format!("machine {} lease not found", target.id));
        self.state().lease.take().map(drop).ok_or_else(missing)
    }

    async fn release_lease(&self, _: Peer, target: MachineTarget) -> Result<()> {
        self.writable(&target)?;
        self.state().lease = None;
        Ok(())
    }

    async fn list_regions(&self, _: Peer) -> Result<RegionPage> {
        let region = Region { code: "lcl".to_owned(), ..Region::default() };
        Ok(RegionPage { regions: vec![region], nearest: "lcl".to_owned() })
    }

    async fn list_organizations(&self, _: Peer) -> Result<Vec<Organization>> {
        let of = |slug: &str| Organization { slug: slug.to_owned(), ..Organization::default() };
        Ok(vec![of("personal"), of("team")])
    }

    async fn get_organization(&self, _: Peer, slug: String) -> Result<Organization> {
        Ok(Organization { slug, ..Organization::default() })
    }

    async fn create_release(&self, _: Peer, input: CreateRelease) -> Result<Release> {
        self.app(&input.app_name)?;
        let mut state = self.state();
        let release = Release {
            id: format!("r{}", state.releases.len() + 1),
            version: state.releases.len() as u64 + 1,
            image_ref: input.image,
            definition: Some(input.definition),
            ..Release::default()
        };
        state.releases.insert(0, release.clone());
        Ok(release)
    }

    async fn update_release(&self, _: Peer, id: String, input: UpdateRelease) -> Result<Release> {
        let mut state = self.state();
        let found = state.releases.iter_mut().find(|release| release.id == id);
        let release = found.ok_or_else(|| ApiError::not_found("release not found"))?;
        release.status = input.status;
        Ok(release.clone())
    }

    async fn app_of_release(&self, id: String) -> Result<String> {
        let known = self.state().releases.iter().any(|release| release.id == id);
        if known { Ok("web".to_owned()) } else { Err(ApiError::no_release(&id)) }
    }

    async fn list_releases(&self, _: Peer, _: String, limit: usize) -> Result<Vec<Release>> {
        Ok(self.state().releases.iter().take(limit).cloned().collect())
    }

    async fn current_release(&self, _: Peer, app: String) -> Result<Release> {
        let missing = || ApiError::not_found(format!("app {app} has no release"));
        self.state().releases.first().cloned().ok_or_else(missing)
    }

    async fn read_logs(&self, _: Peer, _: String, query: LogQuery) -> Result<LogPage> {
        self.saw(format!("{query:?}"));
        let start: usize = query.next_token.parse().unwrap_or(0);
        let page = || {
            let state = self.state();
            let data: Vec<_> = state.logs.iter().skip(start).cloned().collect();
            let mut page = LogPage { data, ..LogPage::default() };
            page.meta.next_token = state.logs.len().to_string();
            page
        };
        let changed = self.changed.notified();
        if page().data.is_empty() {
            // An answer without lines follows when the time is over.
            drop(tokio::time::timeout(query.hold, changed).await);
        }
        Ok(page())
    }

    async fn read_why(&self, _: Peer, app: String, callers_max: u32) -> Result<AppWhy> {
        self.saw(format!("{app} {callers_max}"));
        Ok(AppWhy { app, live: true, ..AppWhy::default() })
    }

    async fn read_metrics(&self, _: Peer, apps: Option<Vec<String>>) -> Result<String> {
        Ok(format!("up 1\n# {apps:?}\n"))
    }

    async fn read_ledger(&self, _: Peer, query: LedgerQuery) -> Result<LedgerPage> {
        self.saw(format!("{query:?}"));
        let app = query.apps.unwrap_or_default().join(",");
        Ok(LedgerPage { events: vec![LedgerEvent { app, ..LedgerEvent::default() }], next: 7 })
    }

    async fn resolve_image(&self, _: Peer, _: String, reference: String) -> Result<ImageInfo> {
        Ok(ImageInfo { reference, ..ImageInfo::default() })
    }

    async fn head_blob(&self, _: Peer, _: String, digest: String) -> Result<Descriptor> {
        let missing = || ApiError::not_found(format!("blob {digest} not found"));
        let size =
            self.state().blobs.get(&digest).map(|bytes| bytes.len() as u64).ok_or_else(missing)?;
        Ok(Descriptor { digest, size })
    }

    async fn start_upload(&self, _: Peer, _: String) -> Result<UploadState> {
        let mut state = self.state();
        let id = format!("u{}", state.uploads.len());
        state.uploads.insert(id.clone(), Vec::new());
        Ok(UploadState { id, received: 0 })
    }

    async fn get_upload(&self, _: Peer, _: String, id: String) -> Result<UploadState> {
        let received = self.state().uploads.get(&id).map(|bytes| bytes.len() as u64);
        let received = received.ok_or_else(|| ApiError::not_found("upload not found"))?;
        Ok(UploadState { id, received })
    }

    async fn append_upload(
        &self,
        peer: Peer,
        repository: String,
        id: String,
        mut body: BodyStream,
    ) -> Result<UploadState> {
        self.get_upload(peer.clone(), repository.clone(), id.clone()).await?;
        if repository == DISK_FULL_REPOSITORY {
            let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(ApiError::from_body(&error));
        }
        while let Some(chunk) =
            body.next_chunk().await.map_err(|error| ApiError::from_body(&error))?
        {
            if let Some(bytes) = self.state().uploads.get_mut(&id) {
                bytes.extend_from_slice(&chunk);
            }
        }
        self.get_upload(peer, repository, id).await
    }

    async fn finish_upload(
        &self,
        _: Peer,
        _: String,
        id: String,
        digest: String,
    ) -> Result<Descriptor> {
        let bytes = self
            .state()
            .uploads
            .remove(&id)
            .ok_or_else(|| ApiError::not_found("upload not found"))?;
        let size = bytes.len() as u64;
        if digest_of(&bytes) != digest {
            return Err(ApiError::bad_request("the digest differs"));
        }
        self.state().blobs.insert(digest.clone(), bytes);
        Ok(Descriptor { digest, size })
    }

    async fn cancel_upload(&self, _: Peer, _: String, id: String) -> Result<()> {
        let removed = self.state().uploads.remove(&id);
        removed.map(drop).ok_or_else(|| ApiError::not_found("upload not found"))
    }

    async fn put_manifest(
        &self,
        _: Peer,
        _: String,
        reference: String,
        media_type: String,
        bytes: Vec<u8>,
    ) -> Result<Descriptor> {
        let manifest = ManifestInfo { digest: digest_of(&bytes), media_type, bytes };
        let descriptor =
            Descriptor { digest: manifest.digest.clone(), size: manifest.bytes.len() as u64 };
        self.state().manifests.insert(reference, manifest);
        Ok(descriptor)
    }

    async fn get_manifest(&self, _: Peer, _: String, reference: String) -> Result<ManifestInfo> {
        let missing = || ApiError::not_found("manifest unknown");
        self.state().manifests.get(&reference).cloned().ok_or_else(missing)
    }

    /// Answers everything in capital letters, and ends when the caller has.
    async fn open_stream(
        &self,
        _: Peer,
        app: String,
        host: String,
        port: u16,
    ) -> Result<DuplexStream> {
        self.app(&app)?;
        self.saw(format!("{host} {port}"));
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(shout(far));
        Ok(near)
    }

    async fn exec_machine(
        &self,
        _: Peer,
        target: MachineTarget,
        input: ExecInput,
    ) -> Result<ExecAnswer> {
        self.app(&target.app)?;
        let stdout = format!("{:?} {:?} {}", input.argv()?, input.stdin, input.timeout);
        Ok(ExecAnswer { stdout, exit_code: 3, ..ExecAnswer::default() })
    }

    /// Shouts, whatever the frames mean.
    async fn open_console(
        &self,
        _: Peer,
        target: MachineTarget,
        input: ConsoleInput,
    ) -> Result<DuplexStream> {
        self.app(&target.app)?;
        self.saw(format!("{input:?}"));
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(shout(far));
        Ok(near)
    }

    async fn resolve_name(
        &self,
        _: Peer,
        asker: Asker,
        name: String,
        kind: String,
    ) -> Result<DnsAnswer> {
        self.saw(format!("{asker:?} {kind} {name}"));
        Ok(DnsAnswer { status: "NXDOMAIN".to_owned(), ..DnsAnswer::default() })
    }

    async fn info(&self, _: Peer) -> Result<Info> {
        Ok(Info { version: "0.1.0".to_owned(), region: "lcl".to_owned(), ..Info::default() })
    }
}

async fn shout(mut stream: DuplexStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 4096];
    while let Ok(count) = stream.read(&mut buffer).await
        && 0 < count
    {
        let text = buffer[..count].to_ascii_uppercase();
        if stream.write_all(&text).await.is_err() {
            return;
        }
    }
    drop(stream.write_all(b"BYE").await);
}
