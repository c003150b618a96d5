//! The typed caller of the API, over the server's Unix socket, or over TCP with a token.
//!
//! Each call has its own connection: on a Unix socket that costs some tens of microseconds, and
//! nothing is left to go stale while a deploy waits. Nothing is retried: the server answers 502 and 503 to nobody, so a failure means that the call should be looked at.

mod connection;
mod error;
mod push;
mod target;
mod trust;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::wire::{
    App, AppPage, AppPatch, AppWhy, Asker, AssignIp, ConsoleInput, CreateApp, CreateRelease,
    CreateToken, CreateVolume, DnsAnswer, Event, ExecAnswer, ExecInput, ExtendVolume,
    ExtendedVolume, ImageInfo, Info, IpAssignment, IpPage, LaunchInput, Lease, LeaseInput,
    LedgerPage, LedgerQuery, LogPage, LogQuery, Machine, MachineFilter, MetadataValue, NewToken,
    Organization, OrganizationAnswer, OrganizationPage, Process, RegionPage, Release,
    ReleaseAnswer, ReleasePage, RestartQuery, RotateKeys, Secret, SecretPage, SecretsAnswer,
    SignalInput, Snapshot, SourceKeys, StartAnswer, StopInput, Token, TokenPage, UpdateRelease,
    UpdateSecrets, UpdateVolume, Volume, WaitQuery, Whoami,
};

pub use connection::ProxyStream;
pub use error::ClientError;

use connection::Request;
use target::Target;

/// The result of a call.
pub type Result<T> = std::result::Result<T, ClientError>;

// Nothing that is answered at once takes longer; the long polls add what they ask for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
// A large volume is copied before the answer.
const COPY_TIMEOUT: Duration = Duration::from_secs(3600);

/// The typed caller of the API. Cheap to clone; makes no connection until the first call.
///
/// Methods that change a Machine take the nonce of the caller's lease, if it holds one. All methods
/// must run in a tokio runtime with I/O and time enabled; dropping a future closes its connection.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
}

impl Client {
    /// A client of the server that listens at `socket`.
    pub fn unix(socket: impl Into<PathBuf>) -> Self {
        Self { target: Target::Socket(socket.into()) }
    }

    /// A client of the server at `url`, such as `http://127.0.0.1:4280`, with the right of `token`.
    /// For `https://`, its certificate must descend from one in the PEM file `roots`, or else in the
    /// system's bundle.
    ///
    /// Nothing is checked before the first call, which then fails as [`ClientError::BadAddress`],
    /// [`ClientError::NoToken`], or [`ClientError::InTheClear`] when the token would travel
    /// unencrypted beyond this host.
    pub fn remote(url: impl Into<String>, token: Option<String>, roots: Option<PathBuf>) -> Self {
        Self { target: Target::remote(url.into(), token, roots) }
    }

    /// Lists the keys that sign `Fly-Src`. Only over the Unix socket, as the next ones.
    pub async fn list_keys(&self) -> Result<SourceKeys> {
        self.get("/perch/v1/keys".to_owned()).await
    }

    /// Makes another key.
    pub async fn rotate_keys(&self, input: RotateKeys) -> Result<SourceKeys> {
        self.send(Method::POST, "/perch/v1/keys".to_owned(), &input).await
    }

    /// Makes a token. Only over the Unix socket, as the next two.
    pub async fn create_token(&self, input: &CreateToken) -> Result<NewToken> {
        self.send(Method::POST, "/perch/v1/tokens".to_owned(), input).await
    }

    /// Lists tokens by name.
    pub async fn list_tokens(&self) -> Result<Vec<Token>> {
        Ok(self.get::<TokenPage>("/perch/v1/tokens".to_owned()).await?.tokens)
    }

    /// Ends a token, named by its id or its name.
    pub async fn revoke_token(&self, token: &str) -> Result<()> {
        self.command(Method::DELETE, format!("/perch/v1/tokens/{}", escape(token)), None).await
    }

    /// Makes an app.
    pub async fn create_app(&self, input: &CreateApp) -> Result<App> {
        self.send(Method::POST, "/v1/apps".to_owned(), input).await
    }

    /// Lists apps, of one organization if named.
    pub async fn list_apps(&self, org_slug: Option<&str>) -> Result<Vec<App>> {
        let query = query_of(org_slug.map(|slug| ("org_slug", slug.to_owned())));
        Ok(self.get::<AppPage>(format!("/v1/apps{query}")).await?.apps)
    }

    /// Reads an app.
    pub async fn get_app(&self, app: &str) -> Result<App> {
        self.get(app_path(app, "")).await
    }

    /// Changes an app.
    pub async fn update_app(&self, app: &str, patch: &AppPatch) -> Result<App> {
        self.send(Method::PATCH, app_path(app, ""), patch).await
    }

    /// Removes an app and everything in it but its volumes; Machines that run are stopped first.
    pub async fn delete_app(&self, app: &str) -> Result<()> {
        self.delete_app_with_volumes(app, &[]).await
    }

    /// Removes an app and everything in it, and of its volumes these with their data.
    pub async fn delete_app_with_volumes(&self, app: &str, volumes: &[&str]) -> Result<()> {
        let ids = volumes.iter().map(|id| ("volume", (*id).to_owned()));
        let query = query_of([("force", "true".to_owned())].into_iter().chain(ids));
        self.command(Method::DELETE, app_path(app, &query), None).await
    }

    /// Lists an app's addresses in order of allocation.
    pub async fn list_ips(&self, app: &str) -> Result<Vec<IpAssignment>> {
        Ok(self.get::<IpPage>(app_path(app, "/ip_assignments")).await?.ips)
    }

    /// Gives an app an address.
    pub async fn assign_ip(&self, app: &str, input: &AssignIp) -> Result<IpAssignment> {
        self.send(Method::POST, app_path(app, "/ip_assignments"), input).await
    }

    /// Takes an address back.
    pub async fn release_ip(&self, app: &str, ip: IpAddr) -> Result<()> {
        self.command(Method::DELETE, app_path(app, &format!("/ip_assignments/{ip}")), None).await
    }

    /// Makes a Machine.
    pub async fn create_machine(&self, app: &str, input: &LaunchInput) -> Result<Machine> {
        self.send(Method::POST, app_path(app, "/machines"), input).await
    }

    /// Lists Machines.
    pub async fn list_machines(&self, app: &str, filter: &MachineFilter) -> Result<Vec<Machine>> {
        let query = query_of(filter_pairs(filter));
        self.get(app_path(app, &format!("/machines{query}"))).await
    }

    /// Reads a Machine.
    pub async fn get_machine(&self, app: &str, id: &str) -> Result<Machine> {
        self.get(machine_path(app, id, "")).await
    }

    /// Replaces a Machine's config.
    pub async fn update_machine(
        &self,
        app: &str,
        id: &str,
        input: &LaunchInput,
        nonce: Option<&str>,
    ) -> Result<Machine> {
        let request =
            Request::new(Method::POST, machine_path(app, id, "")).nonce(nonce).json(input)?;
        self.call(request).await
    }

    /// Removes a Machine that does not run.
    pub async fn delete_machine(&self, app: &str, id: &str, nonce: Option<&str>) -> Result<()> {
        self.command(Method::DELETE, machine_path(app, id, ""), nonce).await
    }

    /// Removes a Machine, killing it if it runs.
    pub async fn kill_and_delete_machine(
        &self,
        app: &str,
        id: &str,
        nonce: Option<&str>,
    ) -> Result<()> {
        self.command(Method::DELETE, machine_path(app, id, "?kill=true"), nonce).await
    }

    /// Begins to start a Machine. An answer with status `error` is a failed start.
    pub async fn start_machine(
        &self,
        app: &str,
        id: &str,
        nonce: Option<&str>,
    ) -> Result<StartAnswer> {
        self.call(Request::new(Method::POST, machine_path(app, id, "/start")).nonce(nonce)).await
    }

    /// Begins to stop a Machine.
    pub async fn stop_machine(
        &self,
        app: &str,
        id: &str,
        input: &StopInput,
        nonce: Option<&str>,
    ) -> Result<()> {
        let request =
            Request::new(Method::POST, machine_path(app, id, "/stop")).nonce(nonce).json(input)?;
        self.call::<IgnoredAny>(request).await.map(drop)
    }

    /// Begins to suspend a Machine.
    pub async fn suspend_machine(&self, app: &str, id: &str, nonce: Option<&str>) -> Result<()> {
        let request = Request::new(Method::POST, machine_path(app, id, "/suspend")).nonce(nonce);
        self.call::<IgnoredAny>(request).await.map(drop)
    }

    /// Begins to restart a Machine; one that is down is started.
    pub async fn restart_machine(
        &self,
        app: &str,
        id: &str,
        query: &RestartQuery,
        nonce: Option<&str>,
    ) -> Result<()> {
        let query = query_of(restart_pairs(query));
        self.command(Method::POST, machine_path(app, id, &format!("/restart{query}")), nonce).await
    }

    /// Sends a signal.
    pub async fn signal_machine(
        &self,
        app: &str,
        id: &str,
        input: SignalInput,
        nonce: Option<&str>,
    ) -> Result<()> {
        let request = Request::new(Method::POST, machine_path(app, id, "/signal"))
            .nonce(nonce)
            .json(&input)?;
        self.call::<IgnoredAny>(request).await.map(drop)
    }

    /// Waits for a state, at most `query.timeout` (1 to 60 s).
    ///
    /// # Errors
    /// [`ClientError::status`] is 408 when the time is over; wait again or give up.
    pub async fn wait_machine(&self, app: &str, id: &str, query: &WaitQuery) -> Result<()> {
        let text = query_of(wait_pairs(query));
        let request = Request::new(Method::GET, machine_path(app, id, &format!("/wait{text}")));
        self.call::<IgnoredAny>(request.extra_time(query.timeout)).await.map(drop)
    }

    /// Takes a Machine out of the proxy's choice.
    pub async fn cordon_machine(&self, app: &str, id: &str, nonce: Option<&str>) -> Result<()> {
        self.command(Method::POST, machine_path(app, id, "/cordon"), nonce).await
    }

    /// Undoes a cordon.
    pub async fn uncordon_machine(&self, app: &str, id: &str, nonce: Option<&str>) -> Result<()> {
        self.command(Method::POST, machine_path(app, id, "/uncordon"), nonce).await
    }

    /// Lists the processes in a Machine with their listening sockets.
    pub async fn list_processes(&self, app: &str, id: &str) -> Result<Vec<Process>> {
        self.get(machine_path(app, id, "/ps")).await
    }

    /// Lists a Machine's events, newest first.
    pub async fn list_events(&self, app: &str, id: &str) -> Result<Vec<Event>> {
        self.get(machine_path(app, id, "/events")).await
    }

    /// Reads a Machine's metadata.
    pub async fn get_metadata(&self, app: &str, id: &str) -> Result<BTreeMap<String, String>> {
        self.get(machine_path(app, id, "/metadata")).await
    }

    /// Sets one metadata entry.
    pub async fn set_metadata(
        &self,
        app: &str,
        id: &str,
        key: &str,
        value: &str,
        nonce: Option<&str>,
    ) -> Result<()> {
        let path = machine_path(app, id, &format!("/metadata/{}", escape(key)));
        let body = MetadataValue { value: value.to_owned() };
        let request = Request::new(Method::POST, path).nonce(nonce).json(&body)?;
        self.call::<IgnoredAny>(request).await.map(drop)
    }

    /// Removes one metadata entry.
    pub async fn delete_metadata(
        &self,
        app: &str,
        id: &str,
        key: &str,
        nonce: Option<&str>,
    ) -> Result<()> {
        let path = machine_path(app, id, &format!("/metadata/{}", escape(key)));
        self.command(Method::DELETE, path, nonce).await
    }

    /// Lists an app's volumes.
    pub async fn list_volumes(&self, app: &str) -> Result<Vec<Volume>> {
        self.get(app_path(app, "/volumes")).await
    }

    /// Makes a volume.
    pub async fn create_volume(&self, app: &str, input: &CreateVolume) -> Result<Volume> {
        let request = Request::new(Method::POST, app_path(app, "/volumes")).json(input)?;
        self.call(request.extra_time(COPY_TIMEOUT)).await
    }

    /// Reads a volume.
    pub async fn get_volume(&self, app: &str, id: &str) -> Result<Volume> {
        self.get(app_path(app, &format!("/volumes/{}", escape(id)))).await
    }

    /// Changes what is done with a volume's snapshots.
    pub async fn update_volume(&self, app: &str, id: &str, input: &UpdateVolume) -> Result<Volume> {
        self.send(Method::PUT, app_path(app, &format!("/volumes/{}", escape(id))), input).await
    }

    /// Removes a volume with its data.
    pub async fn delete_volume(&self, app: &str, id: &str) -> Result<Volume> {
        self.call(Request::new(Method::DELETE, app_path(app, &format!("/volumes/{}", escape(id)))))
            .await
    }

    /// Makes a volume longer.
    pub async fn extend_volume(
        &self,
        app: &str,
        id: &str,
        input: &ExtendVolume,
    ) -> Result<ExtendedVolume> {
        let path = app_path(app, &format!("/volumes/{}/extend", escape(id)));
        self.send(Method::PUT, path, input).await
    }

    /// Lists a volume's snapshots.
    pub async fn list_snapshots(&self, app: &str, id: &str) -> Result<Vec<Snapshot>> {
        self.get(app_path(app, &format!("/volumes/{}/snapshots", escape(id)))).await
    }

    /// Copies a volume as of one moment.
    pub async fn create_snapshot(&self, app: &str, id: &str) -> Result<Snapshot> {
        let path = app_path(app, &format!("/volumes/{}/snapshots", escape(id)));
        self.call(Request::new(Method::POST, path).extra_time(COPY_TIMEOUT)).await
    }

    /// Lists an app's secrets by name, without values.
    pub async fn list_secrets(&self, app: &str) -> Result<Vec<Secret>> {
        Ok(self.get::<SecretPage>(app_path(app, "/secrets")).await?.secrets)
    }

    /// Sets and unsets secrets, all or none.
    pub async fn update_secrets(&self, app: &str, input: &UpdateSecrets) -> Result<SecretsAnswer> {
        self.send(Method::POST, app_path(app, "/secrets"), input).await
    }

    /// Takes a lease for `input.ttl` seconds.
    ///
    /// # Errors
    /// [`ClientError::status`] is 409 when somebody else holds it; the text says who and until
    /// when.
    pub async fn acquire_lease(&self, app: &str, id: &str, input: &LeaseInput) -> Result<Lease> {
        self.lease(app, id, input, None).await
    }

    /// Extends a lease; the nonce stays the same. [`ClientError::status`] is 404 when it has ended.
    pub async fn refresh_lease(
        &self,
        app: &str,
        id: &str,
        input: &LeaseInput,
        nonce: &str,
    ) -> Result<Lease> {
        self.lease(app, id, input, Some(nonce)).await
    }

    async fn lease(
        &self,
        app: &str,
        id: &str,
        input: &LeaseInput,
        nonce: Option<&str>,
    ) -> Result<Lease> {
        let path = machine_path(app, id, &format!("/lease?ttl={}", input.ttl));
        self.call(Request::new(Method::POST, path).nonce(nonce).json(input)?).await
    }

    /// Reads the lease of a Machine; [`ClientError::status`] is 404 when there is none.
    pub async fn get_lease(&self, app: &str, id: &str) -> Result<Lease> {
        self.get(machine_path(app, id, "/lease")).await
    }

    /// Gives a lease back.
    pub async fn release_lease(&self, app: &str, id: &str, nonce: &str) -> Result<()> {
        self.command(Method::DELETE, machine_path(app, id, "/lease"), Some(nonce)).await
    }

    /// Ends the lease of a Machine, whoever holds it.
    pub async fn clear_lease(&self, app: &str, id: &str) -> Result<()> {
        self.command(Method::DELETE, machine_path(app, id, "/lease?force=true"), None).await
    }

    /// Lists regions.
    pub async fn list_regions(&self) -> Result<RegionPage> {
        self.get("/v1/platform/regions".to_owned()).await
    }

    /// Lists organizations.
    pub async fn list_organizations(&self) -> Result<Vec<Organization>> {
        Ok(self.get::<OrganizationPage>("/api/v1/organizations".to_owned()).await?.organizations)
    }

    /// Reads an organization.
    pub async fn get_organization(&self, slug: &str) -> Result<Organization> {
        let path = format!("/api/v1/organizations/{}", escape(slug));
        Ok(self.get::<OrganizationAnswer>(path).await?.organization)
    }

    /// Records a release.
    pub async fn create_release(&self, input: &CreateRelease) -> Result<Release> {
        let answer: ReleaseAnswer =
            self.send(Method::POST, "/api/v1/releases".to_owned(), input).await?;
        Ok(answer.release)
    }

    /// Moves a release on.
    pub async fn update_release(&self, id: &str, input: &UpdateRelease) -> Result<Release> {
        self.send(Method::PATCH, format!("/api/v1/releases/{}", escape(id)), input).await
    }

    /// Lists releases, newest first, at most `limit`.
    pub async fn list_releases(&self, app: &str, limit: usize) -> Result<Vec<Release>> {
        let path = format!("/api/v1/apps/{}/releases?limit={limit}", escape(app));
        Ok(self.get::<ReleasePage>(path).await?.releases)
    }

    /// Reads the newest release with its definition; [`ClientError::status`] is 404 when there is
    /// none.
    pub async fn current_release(&self, app: &str) -> Result<Release> {
        self.get(format!("/api/v1/apps/{}/releases/current", escape(app))).await
    }

    /// Reads a page of log lines; holds an empty answer for `query.hold`.
    pub async fn read_logs(&self, app: &str, query: &LogQuery) -> Result<LogPage> {
        let text = query_of(log_pairs(query));
        let request = Request::new(Method::GET, format!("/api/v1/apps/{}/logs{text}", escape(app)));
        self.call(request.extra_time(query.hold)).await
    }

    /// Resolves an image reference to a pinned one.
    pub async fn resolve_image(&self, app: &str, reference: &str) -> Result<ImageInfo> {
        let query = query_of([("ref", reference.to_owned())]);
        self.get(app_path(app, &format!("/images{query}"))).await
    }

    /// Opens a raw stream to `host`, a name or address as seen from the app's network; wakes what
    /// sleeps.
    pub async fn open_stream(&self, app: &str, host: &str, port: u16) -> Result<ProxyStream> {
        let query = query_of([("host", host.to_owned()), ("port", port.to_string())]);
        let request = Request::new(Method::POST, app_path(app, &format!("/proxy{query}")));
        connection::upgrade(&self.target, request).await
    }

    /// Runs a program in a started Machine to its end.
    pub async fn exec_machine(&self, app: &str, id: &str, input: &ExecInput) -> Result<ExecAnswer> {
        let request = Request::new(Method::POST, machine_path(app, id, "/exec"));
        self.call(request.extra_time(Duration::from_secs(input.timeout.max(60))).json(input)?).await
    }

    /// Begins a console in a started Machine; what travels on the stream are the frames of [`crate::console`].
    pub async fn open_console(
        &self,
        app: &str,
        id: &str,
        input: &ConsoleInput,
    ) -> Result<ProxyStream> {
        let mut pairs = vec![
            ("cmd", input.cmd.clone()),
            ("user", input.user.clone()),
            ("term", input.term.clone()),
        ];
        if let Some((rows, columns)) = input.terminal {
            pairs.extend([
                ("tty", "true".to_owned()),
                ("rows", rows.to_string()),
                ("columns", columns.to_string()),
            ]);
        }
        let (app, id, query) = (escape(app), escape(id), query_of(pairs));
        let path = format!("/perch/v1/apps/{app}/machines/{id}/console{query}");
        connection::upgrade(&self.target, Request::new(Method::POST, path)).await
    }

    /// Tells facts about the server.
    pub async fn info(&self) -> Result<Info> {
        self.get("/perch/v1/info".to_owned()).await
    }

    /// Tells who the caller is.
    pub async fn whoami(&self) -> Result<Whoami> {
        self.get("/perch/v1/whoami".to_owned()).await
    }

    /// Asks the DNS server of a network for records of a kind: `A`, `AAAA`, `CNAME` or `TXT`.
    pub async fn resolve_name(&self, asker: &Asker, name: &str, kind: &str) -> Result<DnsAnswer> {
        let whose = match asker {
            Asker::App(app) => format!("apps/{}", escape(app)),
            Asker::Organization(slug) => format!("organizations/{}", escape(slug)),
        };
        let query = query_of([("name", name.to_owned()), ("type", kind.to_owned())]);
        self.get(format!("/perch/v1/{whose}/dns{query}")).await
    }

    /// Tells why the Machines of an app are awake or asleep just now, with so many callers, at most 100.
    pub async fn read_why(&self, app: &str, callers_max: u32) -> Result<AppWhy> {
        let query = query_of([("callers", callers_max.to_string())]);
        self.get(format!("/perch/v1/apps/{}/why{query}", escape(app))).await
    }

    /// Reads the ledger; of `query.apps` only the first counts.
    pub async fn read_ledger(&self, query: &LedgerQuery) -> Result<LedgerPage> {
        let mut pairs = vec![("limit", query.limit.to_string())];
        pairs.push(("hold_ms", query.hold.as_millis().to_string()));
        pairs.extend(query.after.map(|after| ("after", after.to_string())));
        let app = query.apps.iter().flatten().next();
        pairs.extend(app.map(|app| ("app", app.clone())));
        let path = format!("/perch/v1/why/events{}", query_of(pairs));
        self.call(Request::new(Method::GET, path).extra_time(query.hold)).await
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T> {
        self.call(Request::new(Method::GET, path)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: &impl Serialize,
    ) -> Result<T> {
        self.call(Request::new(method, path).json(body)?).await
    }

    async fn command(&self, method: Method, path: String, nonce: Option<&str>) -> Result<()> {
        self.call::<IgnoredAny>(Request::new(method, path).nonce(nonce)).await.map(drop)
    }

    async fn call<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        connection::call(&self.target, request).await?.json()
    }
}

fn app_path(app: &str, rest: &str) -> String {
    format!("/v1/apps/{}{rest}", escape(app))
}

fn machine_path(app: &str, id: &str, rest: &str) -> String {
    format!("/v1/apps/{}/machines/{}{rest}", escape(app), escape(id))
}

fn filter_pairs(filter: &MachineFilter) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    if filter.include_deleted {
        pairs.push(("include_deleted", "true".to_owned()));
    }
    pairs.extend(filter.region.iter().map(|region| ("region", region.clone())));
    pairs.extend(filter.state.iter().map(|state| ("state", state.to_string())));
    pairs.extend(filter.metadata.iter().map(|(key, value)| ("metadata", format!("{key}={value}"))));
    pairs
}

fn restart_pairs(query: &RestartQuery) -> Vec<(&'static str, String)> {
    let mut pairs = vec![("force_stop", query.force_stop.to_string())];
    pairs.extend(query.signal.map(|signal| ("signal", signal.to_string())));
    pairs.extend(query.timeout.map(|timeout| ("timeout", timeout.to_string())));
    pairs
}

fn wait_pairs(query: &WaitQuery) -> Vec<(&'static str, String)> {
    let mut pairs: Vec<_> = query.states.iter().map(|state| ("state", state.to_string())).collect();
    pairs.push(("timeout", query.timeout.as_secs().to_string()));
    pairs.extend(query.version.iter().map(|version| ("version", version.clone())));
    pairs.extend(query.from_event_id.iter().map(|id| ("from_event_id", id.clone())));
    pairs
}

fn log_pairs(query: &LogQuery) -> Vec<(&'static str, String)> {
    let mut pairs = vec![("next_token", query.next_token.clone())];
    pairs.push(("hold_ms", query.hold.as_millis().to_string()));
    pairs.extend(query.instance.iter().map(|id| ("instance", id.clone())));
    pairs.extend(query.region.iter().map(|region| ("region", region.clone())));
    pairs
}

/// Writes `?a=b&c=d`, or nothing.
fn query_of(pairs: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let parts: Vec<_> =
        pairs.into_iter().map(|(key, value)| format!("{key}={}", escape(&value))).collect();
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

/// Percent-encodes everything but unreserved characters, so that no name can change a path or
/// query.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
