//! What the API asks of whoever keeps the state.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{BodyStream, Peer, TokenHolder};
use crate::wire::{
    ApiError, App, AppPatch, AppWhy, Asker, AssignIp, Busy, BusyInput, ConsoleInput, CreateApp,
    CreateRelease, CreateToken, CreateVolume, Descriptor, DnsAnswer, Event, ExecAnswer, ExecInput,
    ExtendVolume, ExtendedVolume, ImageInfo, Info, IpAssignment, LaunchInput, Lease, LeaseInput,
    LedgerPage, LedgerQuery, LogPage, LogQuery, Machine, MachineFilter, ManifestInfo, NewToken,
    Organization, Process, RegionPage, Release, RestartQuery, RotateKeys, Secret, SecretsAnswer,
    SignalInput, Snapshot, SourceKeys, StartAnswer, StopInput, Token, UpdateRelease, UpdateSecrets,
    UpdateVolume, UploadState, Volume, WaitQuery,
};

/// A Machine that a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineTarget {
    /// App named in the path.
    pub app: String,
    /// Machine named in the path.
    pub id: String,
    /// The `fly-machine-lease-nonce` header; a changing call on a leased Machine needs it, else
    /// 409.
    pub nonce: Option<String>,
}

/// How to remove a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeleteMachine {
    /// Kill it if it runs (`kill` or `force`); else a running Machine is 412.
    pub force: bool,
}

/// The future of a [`Backend`] call.
pub trait BackendFuture<T>: Future<Output = Result<T, ApiError>> + Send {}

impl<T, F: Future<Output = Result<T, ApiError>> + Send> BackendFuture<T> for F {}

/// What the API asks of whoever keeps the state. One method per call.
///
/// The server has parsed bodies and queries and checked lengths; names in paths are one to 128
/// letters, digits, `-`, `_` or `.`, not yet valid names. An error becomes the answer. A call's
/// future is dropped when its caller disconnects: a change that must not be half-done has to be
/// handed to a task of the backend's own.
pub trait Backend: Send + Sync + 'static {
    /// A raw byte stream to an address inside an app's network.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The frames of a console (module `console`).
    type Console: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The holder of a token as of now; `None` when it is unknown, revoked or ended. Called for each
    /// request over TCP, so it must not block.
    fn authenticate(&self, secret: &str) -> Option<Arc<TokenHolder>>;
    /// Resolves when the token with this id is revoked, or its time is over.
    fn token_ended(&self, id: String) -> impl Future<Output = ()> + Send;
    /// Lists the keys that sign `Fly-Src`, the one that signs first.
    fn list_keys(&self, peer: Peer) -> impl BackendFuture<SourceKeys>;
    /// Makes another one; 409 while two are in use, unless all are replaced.
    fn rotate_keys(&self, peer: Peer, input: RotateKeys) -> impl BackendFuture<SourceKeys>;
    /// Lists tokens by name.
    fn list_tokens(&self, peer: Peer) -> impl BackendFuture<Vec<Token>>;
    /// Makes a token; 422 when its name is taken.
    fn create_token(&self, peer: Peer, input: CreateToken) -> impl BackendFuture<NewToken>;
    /// Ends a token, named by its id or its name.
    fn revoke_token(&self, peer: Peer, token: String) -> impl BackendFuture<()>;

    /// Makes an app; 422 with the word `name_taken` when the name is.
    fn create_app(&self, peer: Peer, input: CreateApp) -> impl BackendFuture<App>;
    /// Lists apps, of one organization if named, by name.
    fn list_apps(&self, peer: Peer, org_slug: Option<String>) -> impl BackendFuture<Vec<App>>;
    /// Reads an app.
    fn get_app(&self, peer: Peer, app: String) -> impl BackendFuture<App>;
    /// Changes an app.
    fn update_app(&self, peer: Peer, app: String, patch: AppPatch) -> impl BackendFuture<App>;
    /// Removes an app with its addresses, Machines and releases, and of its volumes these; Machines
    /// that run are stopped first. 404 when a volume is not its own; then nothing is removed.
    fn delete_app(&self, peer: Peer, app: String, volumes: Vec<String>) -> impl BackendFuture<()>;

    /// Lists an app's addresses in order of allocation.
    fn list_ips(&self, peer: Peer, app: String) -> impl BackendFuture<Vec<IpAssignment>>;
    /// Gives an app an address.
    fn assign_ip(
        &self,
        peer: Peer,
        app: String,
        input: AssignIp,
    ) -> impl BackendFuture<IpAssignment>;
    /// Takes an address back; 404 when it is not this app's.
    fn release_ip(&self, peer: Peer, app: String, ip: IpAddr) -> impl BackendFuture<()>;

    /// Makes a Machine and, unless `skip_launch`, begins to start it.
    fn create_machine(
        &self,
        peer: Peer,
        app: String,
        input: LaunchInput,
    ) -> impl BackendFuture<Machine>;
    /// Lists Machines.
    fn list_machines(
        &self,
        peer: Peer,
        app: String,
        filter: MachineFilter,
    ) -> impl BackendFuture<Vec<Machine>>;
    /// Reads a Machine; a destroyed one stays readable for a while.
    fn get_machine(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<Machine>;
    /// Replaces a Machine's config.
    fn update_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: LaunchInput,
    ) -> impl BackendFuture<Machine>;
    /// Removes a Machine.
    fn delete_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        how: DeleteMachine,
    ) -> impl BackendFuture<()>;
    /// Begins to start a Machine.
    fn start_machine(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<StartAnswer>;
    /// Begins to stop a Machine.
    fn stop_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: StopInput,
    ) -> impl BackendFuture<()>;
    /// Begins to suspend a Machine.
    fn suspend_machine(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<()>;
    /// Begins to restart a Machine; one that is down is started.
    fn restart_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        query: RestartQuery,
    ) -> impl BackendFuture<()>;
    /// Sends a signal.
    fn signal_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: SignalInput,
    ) -> impl BackendFuture<()>;
    /// Resolves when one of the states is reached. Waits without an end of its own: the server
    /// drops it after `query.timeout` and answers 408.
    fn wait_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        query: WaitQuery,
    ) -> impl BackendFuture<()>;
    /// Sends a Machine nothing new.
    fn cordon_machine(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<()>;
    /// Undoes a cordon.
    fn uncordon_machine(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<()>;
    /// Lists the processes in a Machine; 412 when it is not started.
    fn list_processes(&self, peer: Peer, target: MachineTarget)
    -> impl BackendFuture<Vec<Process>>;
    /// Runs a program in a started Machine to its end; 412 when the Machine is not started, 408 when the program
    /// takes longer than it may.
    fn exec_machine(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: ExecInput,
    ) -> impl BackendFuture<ExecAnswer>;
    /// Begins a console in a started Machine. Dropping it hangs its program up.
    fn open_console(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: ConsoleInput,
    ) -> impl BackendFuture<Self::Console>;
    /// Lists a Machine's events, newest first.
    fn list_events(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<Vec<Event>>;
    /// Reads a Machine's metadata.
    fn get_metadata(
        &self,
        peer: Peer,
        target: MachineTarget,
    ) -> impl BackendFuture<BTreeMap<String, String>>;
    /// Sets one metadata entry, or removes it with `None`; no restart, no new version (MA-01).
    fn set_metadata(
        &self,
        peer: Peer,
        target: MachineTarget,
        key: String,
        value: Option<String>,
    ) -> impl BackendFuture<()>;

    /// Keeps a started Machine awake for a while because it says that it is at work (LI-05).
    fn set_busy(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: BusyInput,
    ) -> impl BackendFuture<Busy>;
    /// Ends that before its time.
    fn end_busy(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<()>;

    /// Lists an app's secrets by name, without values; 422 when they have not reached `min_version`.
    fn list_secrets(
        &self,
        peer: Peer,
        app: String,
        min_version: u64,
    ) -> impl BackendFuture<Vec<Secret>>;
    /// Sets and unsets secrets, all or none. Machines start with them after their next update.
    fn update_secrets(
        &self,
        peer: Peer,
        app: String,
        input: UpdateSecrets,
    ) -> impl BackendFuture<SecretsAnswer>;

    /// Lists an app's volumes by id.
    fn list_volumes(&self, peer: Peer, app: String) -> impl BackendFuture<Vec<Volume>>;
    /// Makes a volume: empty, or as a copy.
    fn create_volume(
        &self,
        peer: Peer,
        app: String,
        input: CreateVolume,
    ) -> impl BackendFuture<Volume>;
    /// Reads a volume.
    fn get_volume(&self, peer: Peer, app: String, id: String) -> impl BackendFuture<Volume>;
    /// Changes what is done with a volume's snapshots.
    fn update_volume(
        &self,
        peer: Peer,
        app: String,
        id: String,
        input: UpdateVolume,
    ) -> impl BackendFuture<Volume>;
    /// Removes a volume with its data; 412 while a Machine has it.
    fn delete_volume(&self, peer: Peer, app: String, id: String) -> impl BackendFuture<Volume>;
    /// Makes a volume longer.
    fn extend_volume(
        &self,
        peer: Peer,
        app: String,
        id: String,
        input: ExtendVolume,
    ) -> impl BackendFuture<ExtendedVolume>;
    /// Lists a volume's snapshots, oldest first.
    fn list_snapshots(
        &self,
        peer: Peer,
        app: String,
        id: String,
    ) -> impl BackendFuture<Vec<Snapshot>>;
    /// Copies a volume as of one moment.
    fn create_snapshot(&self, peer: Peer, app: String, id: String) -> impl BackendFuture<Snapshot>;

    /// Takes a lease, or extends it when `target.nonce` is its nonce; 409 at once when somebody
    /// else has it.
    fn acquire_lease(
        &self,
        peer: Peer,
        target: MachineTarget,
        input: LeaseInput,
    ) -> impl BackendFuture<Lease>;
    /// Reads the lease; 404 with a text ending in ` lease not found`.
    fn get_lease(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<Lease>;
    /// Gives the lease back.
    fn release_lease(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<()>;
    /// Ends the lease, whoever holds it.
    fn clear_lease(&self, peer: Peer, target: MachineTarget) -> impl BackendFuture<()>;

    /// Lists regions.
    fn list_regions(&self, peer: Peer) -> impl BackendFuture<RegionPage>;
    /// Lists organizations by slug.
    fn list_organizations(&self, peer: Peer) -> impl BackendFuture<Vec<Organization>>;
    /// Reads an organization.
    fn get_organization(&self, peer: Peer, slug: String) -> impl BackendFuture<Organization>;

    /// Records a release.
    fn create_release(&self, peer: Peer, input: CreateRelease) -> impl BackendFuture<Release>;
    /// Moves a release on.
    fn update_release(
        &self,
        peer: Peer,
        id: String,
        input: UpdateRelease,
    ) -> impl BackendFuture<Release>;
    /// The app of a release; 404 as [`ApiError::no_release`].
    fn app_of_release(&self, id: String) -> impl BackendFuture<String>;
    /// Lists releases, newest first, at most `limit`.
    fn list_releases(
        &self,
        peer: Peer,
        app: String,
        limit: usize,
    ) -> impl BackendFuture<Vec<Release>>;
    /// Reads the newest release, with its definition; 404 = none.
    fn current_release(&self, peer: Peer, app: String) -> impl BackendFuture<Release>;

    /// Reads log lines after `query.next_token`. When there are none it waits for one up to
    /// `query.hold`, then answers an empty page.
    fn read_logs(&self, peer: Peer, app: String, query: LogQuery) -> impl BackendFuture<LogPage>;

    /// Resolves an image reference; 404 with a text that says what to do.
    fn resolve_image(
        &self,
        peer: Peer,
        app: String,
        reference: String,
    ) -> impl BackendFuture<ImageInfo>;
    /// Says whether a blob is there; 404 = no.
    fn head_blob(
        &self,
        peer: Peer,
        repository: String,
        digest: String,
    ) -> impl BackendFuture<Descriptor>;
    /// Begins an upload.
    fn start_upload(&self, peer: Peer, repository: String) -> impl BackendFuture<UploadState>;
    /// Reads how far an upload is.
    fn get_upload(
        &self,
        peer: Peer,
        repository: String,
        id: String,
    ) -> impl BackendFuture<UploadState>;
    /// Appends to an upload. On an error of the body the bytes until then may stay; `received`
    /// says.
    fn append_upload(
        &self,
        peer: Peer,
        repository: String,
        id: String,
        body: BodyStream,
    ) -> impl BackendFuture<UploadState>;
    /// Ends an upload whose last bytes are already appended; 400 when the digest differs, and
    /// nothing stays.
    fn finish_upload(
        &self,
        peer: Peer,
        repository: String,
        id: String,
        digest: String,
    ) -> impl BackendFuture<Descriptor>;
    /// Drops an upload.
    fn cancel_upload(&self, peer: Peer, repository: String, id: String) -> impl BackendFuture<()>;
    /// Keeps a manifest under a tag or its digest; 404 when a blob that it names is missing.
    fn put_manifest(
        &self,
        peer: Peer,
        repository: String,
        reference: String,
        media_type: String,
        bytes: Vec<u8>,
    ) -> impl BackendFuture<Descriptor>;
    /// Reads a manifest by tag or digest.
    fn get_manifest(
        &self,
        peer: Peer,
        repository: String,
        reference: String,
    ) -> impl BackendFuture<ManifestInfo>;

    /// Connects to `host`, a name or address as seen from the app's network, waking what sleeps.
    fn open_stream(
        &self,
        peer: Peer,
        app: String,
        host: String,
        port: u16,
    ) -> impl BackendFuture<Self::Stream>;
    /// Asks the DNS server of a network. The kind is `A`, `AAAA`, `CNAME` or `TXT`; the name is any
    /// text.
    fn resolve_name(
        &self,
        peer: Peer,
        asker: Asker,
        name: String,
        kind: String,
    ) -> impl BackendFuture<DnsAnswer>;
    /// Tells why the Machines of an app are awake or asleep just now, with so many callers at most.
    fn read_why(&self, peer: Peer, app: String, callers_max: u32) -> impl BackendFuture<AppWhy>;

    /// Writes the metrics in the text that Prometheus reads, of these apps only if they are given.
    fn read_metrics(&self, peer: Peer, apps: Option<Vec<String>>) -> impl BackendFuture<String>;

    /// Reads the ledger behind `query.after`. When there is nothing it waits for a record up to `query.hold`, then
    /// answers an empty page.
    fn read_ledger(&self, peer: Peer, query: LedgerQuery) -> impl BackendFuture<LedgerPage>;
    /// Tells facts about this server.
    fn info(&self, peer: Peer) -> impl BackendFuture<Info>;
}
