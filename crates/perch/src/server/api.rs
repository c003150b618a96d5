//! The API's backend: each call in the module of its resource.

mod apps;
mod busy;
mod dig;
mod exec;
mod ips;
mod leases;
mod logs;
mod machines;
mod releases;
mod secrets;
mod stream;
mod tokens;
mod volumes;
mod why;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use perch_api::server::{Backend, BodyStream, DeleteMachine, MachineTarget, Peer, TokenHolder};
use perch_api::wire::{
    ApiError, App, AppPatch, AppWhy, Asker, AssignIp, Busy, BusyInput, ConsoleInput, CreateApp,
    CreateRelease, CreateToken, CreateVolume, Descriptor, DnsAnswer, Event, ExecAnswer, ExecInput,
    ExtendVolume, ExtendedVolume, ImageInfo, Info, IpAssignment, LaunchInput, Lease, LeaseInput,
    LedgerPage, LedgerQuery, LogPage, LogQuery, Machine, MachineFilter, ManifestInfo, NewToken,
    Organization, Process, Region, RegionPage, Release, RestartQuery, RotateKeys, Secret,
    SecretsAnswer, SignalInput, Snapshot, SourceKeys, StartAnswer, StopInput, Token, UpdateRelease,
    UpdateSecrets, UpdateVolume, UploadState, Volume, WaitQuery,
};

use tokio::sync::watch;

use super::clock;
use super::history::Source;
use super::metrics;
use super::signing;
use super::views;
use super::world::World;

/// Answers the API from the world.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    world: Arc<World>,
    /// Tells calls under way that a token ended.
    token_ends: watch::Sender<()>,
}

impl Api {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, token_ends: watch::Sender::new(()) }
    }

    /// Runs a change to its end even if its caller goes away.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = self.world.tracker.spawn(work).await;
        done.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
    }

    fn organization(&self, slug: &str) -> Option<Organization> {
        let index = self.world.config.organizations.iter().position(|own| own == slug)?;
        Some(Organization {
            id: slug.to_owned(),
            internal_numeric_id: index as u64 + 1,
            slug: slug.to_owned(),
            raw_slug: slug.to_owned(),
            name: slug.to_owned(),
            personal: index == 0,
            ..Organization::default()
        })
    }

    /// Pushes are for apps that exist and stay; anybody else would fill the disk.
    fn check_app(&self, name: &str) -> Result<(), ApiError> {
        self.world.keeper.read().staying_app(name).map(|_| ())
    }
}

impl Backend for Api {
    type Stream = tokio::net::TcpStream;
    type Console = tokio::io::DuplexStream;

    fn authenticate(&self, secret: &str) -> Option<Arc<TokenHolder>> {
        tokens::authenticate(&self.world.keeper.read(), secret, clock::unix_secs()).map(Arc::new)
    }

    async fn token_ended(&self, id: String) {
        tokens::ended(&self.world, self.token_ends.subscribe(), &id).await;
    }

    async fn list_keys(&self, _peer: Peer) -> Result<SourceKeys, ApiError> {
        Ok(self.world.signing.list())
    }

    async fn rotate_keys(&self, _peer: Peer, input: RotateKeys) -> Result<SourceKeys, ApiError> {
        self.detached(signing::rotate(self.world.clone(), input.now)).await
    }

    async fn list_tokens(&self, _peer: Peer) -> Result<Vec<Token>, ApiError> {
        Ok(tokens::list(&self.world))
    }

    async fn create_token(&self, peer: Peer, input: CreateToken) -> Result<NewToken, ApiError> {
        let made = self.detached(tokens::create(self.world.clone(), input)).await?;
        tracing::info!(token = made.token.name, id = made.token.id, by = %peer, "token made");
        Ok(made)
    }

    async fn revoke_token(&self, peer: Peer, token: String) -> Result<(), ApiError> {
        let (ends, world, name) = (self.token_ends.clone(), self.world.clone(), token.clone());
        self.detached(async move {
            tokens::revoke(world, name).await?;
            ends.send_replace(());
            Ok(())
        })
        .await?;
        tracing::info!(token, by = %peer, "token revoked");
        Ok(())
    }

    async fn create_app(&self, _peer: Peer, input: CreateApp) -> Result<App, ApiError> {
        self.detached(apps::create(self.world.clone(), input)).await
    }

    async fn list_apps(&self, _peer: Peer, org_slug: Option<String>) -> Result<Vec<App>, ApiError> {
        Ok(apps::list(&self.world, org_slug.as_deref()))
    }

    async fn get_app(&self, _peer: Peer, app: String) -> Result<App, ApiError> {
        apps::get(&self.world, &app)
    }

    async fn update_app(&self, _peer: Peer, app: String, patch: AppPatch) -> Result<App, ApiError> {
        self.detached(apps::update(self.world.clone(), app, patch)).await
    }

    async fn delete_app(
        &self,
        peer: Peer,
        app: String,
        volumes: Vec<String>,
    ) -> Result<(), ApiError> {
        let (ends, world) = (self.token_ends.clone(), self.world.clone());
        self.detached(async move {
            apps::delete(world, Source::User(peer), app, volumes).await?;
            ends.send_replace(());
            Ok(())
        })
        .await
    }

    async fn list_ips(&self, _peer: Peer, app: String) -> Result<Vec<IpAssignment>, ApiError> {
        ips::list(&self.world, &app)
    }

    async fn assign_ip(
        &self,
        _peer: Peer,
        app: String,
        input: AssignIp,
    ) -> Result<IpAssignment, ApiError> {
        self.detached(ips::assign(self.world.clone(), app, input)).await
    }

    async fn release_ip(&self, _peer: Peer, app: String, ip: IpAddr) -> Result<(), ApiError> {
        self.detached(ips::release(self.world.clone(), app, ip)).await
    }

    async fn create_machine(
        &self,
        peer: Peer,
        app: String,
        input: LaunchInput,
    ) -> Result<Machine, ApiError> {
        self.detached(machines::create(self.world.clone(), peer, app, input)).await
    }

    async fn list_machines(
        &self,
        _peer: Peer,
        app: String,
        filter: MachineFilter,
    ) -> Result<Vec<Machine>, ApiError> {
        let listed = machines::list(&self.world, &app, &filter)?;
        Ok(machines::measured(&self.world, listed).await)
    }

    async fn get_machine(&self, _peer: Peer, target: MachineTarget) -> Result<Machine, ApiError> {
        let got = machines::get(&self.world, &target)?;
        let measured = machines::measured(&self.world, vec![got]).await.pop();
        measured.ok_or_else(|| ApiError::internal("the Machine was lost on the way"))
    }

    async fn update_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: LaunchInput,
    ) -> Result<Machine, ApiError> {
        self.detached(machines::update(self.world.clone(), peer, target, input)).await
    }

    async fn delete_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        how: DeleteMachine,
    ) -> Result<(), ApiError> {
        self.detached(machines::delete(self.world.clone(), peer, target, how)).await
    }

    async fn start_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
    ) -> Result<StartAnswer, ApiError> {
        self.detached(machines::start(self.world.clone(), peer, target)).await
    }

    async fn stop_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: StopInput,
    ) -> Result<(), ApiError> {
        self.detached(machines::stop(self.world.clone(), peer, target, input)).await
    }

    async fn suspend_machine(&self, peer: Peer, target: MachineTarget) -> Result<(), ApiError> {
        self.detached(machines::suspend(self.world.clone(), peer, target)).await
    }

    async fn restart_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        query: RestartQuery,
    ) -> Result<(), ApiError> {
        self.detached(machines::restart(self.world.clone(), peer, target, query)).await
    }

    async fn signal_machine(
        &self,
        _peer: Peer,
        target: MachineTarget,
        input: SignalInput,
    ) -> Result<(), ApiError> {
        machines::signal(&self.world, &target, input).await
    }

    async fn wait_machine(
        &self,
        _peer: Peer,
        target: MachineTarget,
        query: WaitQuery,
    ) -> Result<(), ApiError> {
        machines::wait(&self.world, &target, &query).await
    }

    async fn cordon_machine(&self, peer: Peer, target: MachineTarget) -> Result<(), ApiError> {
        self.detached(machines::cordon(self.world.clone(), peer, target, true)).await
    }

    async fn uncordon_machine(&self, peer: Peer, target: MachineTarget) -> Result<(), ApiError> {
        self.detached(machines::cordon(self.world.clone(), peer, target, false)).await
    }

    async fn list_processes(
        &self,
        _peer: Peer,
        target: MachineTarget,
    ) -> Result<Vec<Process>, ApiError> {
        machines::processes(&self.world, &target).await
    }

    async fn exec_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: ExecInput,
    ) -> Result<ExecAnswer, ApiError> {
        exec::exec(self.world.clone(), peer, target, input).await
    }

    async fn open_console(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: ConsoleInput,
    ) -> Result<Self::Console, ApiError> {
        exec::console(self.world.clone(), peer, target, input).await
    }

    async fn list_events(
        &self,
        _peer: Peer,
        target: MachineTarget,
    ) -> Result<Vec<Event>, ApiError> {
        Ok(machines::get(&self.world, &target)?.events)
    }

    async fn get_metadata(
        &self,
        _peer: Peer,
        target: MachineTarget,
    ) -> Result<BTreeMap<String, String>, ApiError> {
        let catalog = self.world.keeper.read();
        Ok(catalog.machine(&target.app, &target.id)?.config.view().metadata.clone())
    }

    async fn set_metadata(
        &self,
        _peer: Peer,
        target: MachineTarget,
        key: String,
        value: Option<String>,
    ) -> Result<(), ApiError> {
        self.detached(machines::set_metadata(self.world.clone(), target, key, value)).await
    }

    async fn set_busy(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: BusyInput,
    ) -> Result<Busy, ApiError> {
        self.detached(busy::set(self.world.clone(), peer, target, input)).await
    }

    async fn end_busy(&self, _peer: Peer, target: MachineTarget) -> Result<(), ApiError> {
        self.detached(busy::end(self.world.clone(), target)).await
    }

    async fn list_secrets(
        &self,
        _peer: Peer,
        app: String,
        min_version: u64,
    ) -> Result<Vec<Secret>, ApiError> {
        secrets::list(&self.world, &app, min_version)
    }

    async fn update_secrets(
        &self,
        peer: Peer,
        app: String,
        input: UpdateSecrets,
    ) -> Result<SecretsAnswer, ApiError> {
        let names: Vec<_> = input.values.keys().cloned().collect();
        let answer = self.detached(secrets::update(self.world.clone(), app.clone(), input)).await?;
        let version = answer.version;
        tracing::info!(app, ?names, version, by = %peer, "secrets changed");
        Ok(answer)
    }

    async fn list_volumes(&self, _peer: Peer, app: String) -> Result<Vec<Volume>, ApiError> {
        volumes::list(&self.world, &app)
    }

    async fn create_volume(
        &self,
        peer: Peer,
        app: String,
        input: CreateVolume,
    ) -> Result<Volume, ApiError> {
        let made = self.detached(volumes::create(self.world.clone(), app, input)).await?;
        tracing::info!(volume = made.id, by = %peer, "volume made");
        Ok(made)
    }

    async fn get_volume(&self, _peer: Peer, app: String, id: String) -> Result<Volume, ApiError> {
        volumes::get(&self.world, &app, &id)
    }

    async fn update_volume(
        &self,
        _peer: Peer,
        app: String,
        id: String,
        input: UpdateVolume,
    ) -> Result<Volume, ApiError> {
        self.detached(volumes::update(self.world.clone(), app, id, input)).await
    }

    async fn delete_volume(&self, peer: Peer, app: String, id: String) -> Result<Volume, ApiError> {
        let gone = self.detached(volumes::delete(self.world.clone(), app, id)).await?;
        tracing::info!(volume = gone.id, by = %peer, "volume removed");
        Ok(gone)
    }

    async fn extend_volume(
        &self,
        _peer: Peer,
        app: String,
        id: String,
        input: ExtendVolume,
    ) -> Result<ExtendedVolume, ApiError> {
        self.detached(volumes::extend(self.world.clone(), app, id, input)).await
    }

    async fn list_snapshots(
        &self,
        _peer: Peer,
        app: String,
        id: String,
    ) -> Result<Vec<Snapshot>, ApiError> {
        volumes::list_snapshots(&self.world, &app, &id)
    }

    async fn create_snapshot(
        &self,
        _peer: Peer,
        app: String,
        id: String,
    ) -> Result<Snapshot, ApiError> {
        self.detached(volumes::create_snapshot(self.world.clone(), app, id)).await
    }

    async fn acquire_lease(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: LeaseInput,
    ) -> Result<Lease, ApiError> {
        self.detached(leases::acquire(self.world.clone(), peer, target, input)).await
    }

    async fn get_lease(&self, _peer: Peer, target: MachineTarget) -> Result<Lease, ApiError> {
        leases::get(&self.world, &target)
    }

    async fn clear_lease(&self, peer: Peer, target: MachineTarget) -> Result<(), ApiError> {
        self.detached(leases::clear(self.world.clone(), peer, target)).await
    }

    async fn release_lease(&self, _peer: Peer, target: MachineTarget) -> Result<(), ApiError> {
        self.detached(leases::release(self.world.clone(), target)).await
    }

    async fn list_regions(&self, _peer: Peer) -> Result<RegionPage, ApiError> {
        let code = self.world.config.region.clone();
        let region =
            Region { code: code.clone(), name: format!("This host ({code})"), ..Region::default() };
        Ok(RegionPage { regions: vec![region], nearest: code })
    }

    async fn list_organizations(&self, _peer: Peer) -> Result<Vec<Organization>, ApiError> {
        let mut slugs = self.world.config.organizations.clone();
        slugs.sort();
        Ok(slugs.iter().filter_map(|slug| self.organization(slug)).collect())
    }

    async fn get_organization(&self, _peer: Peer, slug: String) -> Result<Organization, ApiError> {
        self.organization(&slug).ok_or_else(|| apps::unknown_organization(&self.world, &slug))
    }

    async fn create_release(&self, peer: Peer, input: CreateRelease) -> Result<Release, ApiError> {
        self.detached(releases::create(self.world.clone(), peer, input)).await
    }

    async fn update_release(
        &self,
        _peer: Peer,
        id: String,
        input: UpdateRelease,
    ) -> Result<Release, ApiError> {
        self.detached(releases::update(self.world.clone(), id, input)).await
    }

    async fn app_of_release(&self, id: String) -> Result<String, ApiError> {
        let catalog = self.world.keeper.read();
        let release = catalog.releases.get(&id).ok_or_else(|| ApiError::no_release(&id))?;
        Ok(release.app.clone())
    }

    async fn list_releases(
        &self,
        _peer: Peer,
        app: String,
        limit: usize,
    ) -> Result<Vec<Release>, ApiError> {
        releases::list(&self.world, &app, limit)
    }

    async fn current_release(&self, _peer: Peer, app: String) -> Result<Release, ApiError> {
        releases::current(&self.world, &app)
    }

    async fn read_logs(
        &self,
        _peer: Peer,
        app: String,
        query: LogQuery,
    ) -> Result<LogPage, ApiError> {
        logs::read(self.world.clone(), app, query).await
    }

    async fn resolve_image(
        &self,
        _peer: Peer,
        app: String,
        reference: String,
    ) -> Result<ImageInfo, ApiError> {
        self.check_app(&app)?;
        self.world.images.resolve(&app, &reference).await
    }

    async fn head_blob(
        &self,
        _peer: Peer,
        _repository: String,
        digest: String,
    ) -> Result<Descriptor, ApiError> {
        self.world.images.head_blob(digest).await
    }

    async fn start_upload(&self, _peer: Peer, repository: String) -> Result<UploadState, ApiError> {
        self.check_app(&repository)?;
        self.world.images.start_upload().await
    }

    async fn get_upload(
        &self,
        _peer: Peer,
        _repository: String,
        id: String,
    ) -> Result<UploadState, ApiError> {
        self.world.images.get_upload(id).await
    }

    async fn append_upload(
        &self,
        _peer: Peer,
        _repository: String,
        id: String,
        body: BodyStream,
    ) -> Result<UploadState, ApiError> {
        self.world.images.append_upload(id, body).await
    }

    async fn finish_upload(
        &self,
        _peer: Peer,
        _repository: String,
        id: String,
        digest: String,
    ) -> Result<Descriptor, ApiError> {
        self.world.images.finish_upload(id, digest).await
    }

    async fn cancel_upload(
        &self,
        _peer: Peer,
        _repository: String,
        id: String,
    ) -> Result<(), ApiError> {
        self.world.images.cancel_upload(id).await
    }

    async fn put_manifest(
        &self,
        _peer: Peer,
        repository: String,
        reference: String,
        media_type: String,
        bytes: Vec<u8>,
    ) -> Result<Descriptor, ApiError> {
        self.check_app(&repository)?;
        self.world.images.put_manifest(repository, reference, media_type, bytes).await
    }

    async fn get_manifest(
        &self,
        _peer: Peer,
        repository: String,
        reference: String,
    ) -> Result<ManifestInfo, ApiError> {
        self.world.images.get_manifest(repository, reference).await
    }

    async fn open_stream(
        &self,
        _peer: Peer,
        app: String,
        host: String,
        port: u16,
    ) -> Result<Self::Stream, ApiError> {
        stream::open(&self.world, &app, &host, port).await
    }

    async fn resolve_name(
        &self,
        _peer: Peer,
        asker: Asker,
        name: String,
        kind: String,
    ) -> Result<DnsAnswer, ApiError> {
        dig::ask(&self.world, &asker, &name, &kind).await
    }

    async fn read_why(
        &self,
        _peer: Peer,
        app: String,
        callers_max: u32,
    ) -> Result<AppWhy, ApiError> {
        why::read_now(&self.world, &app, callers_max).await
    }

    async fn read_metrics(
        &self,
        peer: Peer,
        apps: Option<Vec<String>>,
    ) -> Result<String, ApiError> {
        for app in apps.iter().flatten() {
            self.check_app(app)?;
        }
        let reader = if peer.sees_all() { metrics::Reader::OfAll } else { metrics::Reader::OfSome };
        Ok(metrics::write(&self.world, apps.as_deref(), reader).await)
    }

    async fn read_ledger(&self, _peer: Peer, query: LedgerQuery) -> Result<LedgerPage, ApiError> {
        why::read_ledger(&self.world, &query).await
    }

    async fn info(&self, _peer: Peer) -> Result<Info, ApiError> {
        let world = &self.world;
        let host_addresses = views::host_peers(world, &world.keeper.read());
        Ok(Info {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            region: world.config.region.clone(),
            data_dir: world.paths.data.clone(),
            public_domain: world.config.public_domain.clone(),
            host_addresses,
            shared_v4: Some(IpAddr::V4(world.config.shared_v4)),
            default_org: world.config.default_org().to_owned(),
            pid: std::process::id(),
        })
    }
}

pub(crate) use apps::{finish_removals, open_network, plan_network};
pub(crate) use busy::{follow as follow_busy, run_ended as busy_run_ended};
pub(crate) use leases::{
    announce as announce_kept, follow as follow_lease, is_kept_awake, is_leased,
};
pub(crate) use machines::{ask, room_to_start};
pub(crate) use releases::mark_interrupted;
pub(crate) use why::held as why_held;
