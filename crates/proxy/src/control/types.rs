//! The messages themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::checks::{CheckResult, CheckView};
use super::live::{AppCounts, Live};

/// Version of this protocol; a difference means that the two processes cannot work together.
pub const VERSION: u32 = 1;

/// Longest line either side accepts. An app of 1,000 Machines is about 0.6 MB.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// From the server to the proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProxy {
    /// Facts about the host; replaces the former ones.
    Settings(Settings),
    /// The whole view of one app; replaces the former one.
    App(AppView),
    /// The app is gone: open connections are kept, new ones are refused.
    RemoveApp {
        /// Its name.
        app: String,
    },
    /// Everything known has been sent; apps not named since the connection began are gone.
    SnapshotEnd,
    /// Answer to [`FromProxy::Start`].
    StartDone {
        /// Id of the Machine.
        machine: String,
        /// The attempt that this answers.
        attempt: u64,
        /// How it went.
        outcome: StartOutcome,
    },
    /// Answer to [`FromProxy::Stop`].
    StopDone {
        /// Id of the Machine.
        machine: String,
        /// The attempt that this answers.
        attempt: u64,
        /// How it went.
        outcome: StopOutcome,
    },
    /// Give the Machine no new work and say when nothing is in flight.
    Drain {
        /// Id of the Machine.
        machine: String,
        /// The run that is meant; another run is left alone.
        run: u64,
        /// Comes back in [`FromProxy::Drained`].
        token: u64,
        /// After this long `Drained` is sent with what is still in flight.
        timeout_ms: u64,
    },
    /// With it come one or two descriptors: what thaws this run, and its CPU time if `cpu` is set.
    Freezer {
        /// Id of the Machine.
        machine: String,
        /// The run; for any other they are worthless.
        run: u64,
        /// What to write to the first one.
        thaw: String,
        /// Inode of the first one: descriptors that do not fit their message are not used.
        inode: u64,
        /// Whether there is a second one, to read `cpu.stat` or `cpuacct.usage` from.
        #[serde(default)]
        cpu: bool,
    },
    /// The server lets another proxy put this run to sleep if nobody uses it here, and nobody has for its
    /// `auto_stop_after`; then it gets no new work here. Answered by [`FromProxy::Drained`] with what is in flight, or
    /// with 1 if it was used a moment ago: it goes on then.
    MayStop {
        /// Id of the Machine.
        machine: String,
        /// The run that is meant; of another run nobody here knows anything.
        run: u64,
        /// Comes back in [`FromProxy::Drained`].
        token: u64,
    },
    /// Another proxy serves the listeners from now on: accept nobody any more, answer each connection's next request as
    /// its last, put no Machine to sleep, and end when everybody has been served. Only to proxies that can
    /// ([`FromProxy::Hello`]); may be repeated.
    Retire {
        /// After this long, what is left is cut.
        bound_ms: u64,
    },
    /// Tell what an app is awake for just now; answered by [`FromProxy::Live`].
    Live {
        /// Its name.
        app: String,
        /// Comes back with the answer.
        token: u64,
        /// How many callers to list at most.
        callers_max: u32,
    },
    /// Tell what was served; answered by [`FromProxy::Counts`].
    Counts {
        /// Comes back with the answer.
        token: u64,
    },
    /// Give the Machine work again.
    Undrain {
        /// Id of the Machine.
        machine: String,
        /// The run that is meant.
        run: u64,
    },
}

/// From the proxy to the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromProxy {
    /// First message; the listeners come with it.
    Hello {
        /// [`VERSION`] of the sender.
        version: u32,
        /// Process id of the proxy.
        pid: u32,
        /// Whether it can use [`ToProxy::Freezer`].
        #[serde(default)]
        thaws: bool,
        /// What it has thawed and no server has confirmed.
        #[serde(default)]
        thawed: Vec<ThawedRun>,
        /// Whether it can use [`ToProxy::Retire`] and [`ToProxy::MayStop`].
        #[serde(default)]
        retires: bool,
        /// The names of the listeners that come with it, in their order; empty: of a release that did not tell.
        #[serde(default)]
        listeners: Vec<String>,
    },
    /// It accepts nobody any more; answer to [`ToProxy::Retire`].
    Retired {
        /// Connections and sessions that go on.
        left: u64,
    },
    /// Somebody waits for this Machine: start it.
    Start {
        /// Id of the Machine.
        machine: String,
        /// Comes back in [`ToProxy::StartDone`].
        attempt: u64,
        /// Who caused it; `None`: the Machines that run are busy.
        cause: Option<Cause>,
        /// The proxy has thawed it already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        thawed: Option<Thaw>,
    },
    /// Nobody needs this Machine; it is closed to new work already.
    Stop {
        /// Id of the Machine.
        machine: String,
        /// The run that is meant.
        run: u64,
        /// Comes back in [`ToProxy::StopDone`].
        attempt: u64,
        /// Why, for the Machine's events.
        reason: String,
    },
    /// A drain has ended.
    Drained {
        /// Id of the Machine.
        machine: String,
        /// Of the [`ToProxy::Drain`] that this answers.
        token: u64,
        /// What is still in flight (0 unless the time ran out).
        in_flight: u64,
    },
    /// The results of a Machine's health checks, all of them: when one has changed, and to each new server.
    Checks {
        /// Id of the Machine.
        machine: String,
        /// The run that they are about.
        run: u64,
        /// By name.
        results: Vec<CheckResult>,
    },
    /// A line for the app's log, with the provider `proxy`.
    Log {
        /// The app.
        app: String,
        /// The Machine, when it is about one.
        machine: Option<String>,
        /// `info`, `warn` or `error`.
        level: String,
        /// The line.
        text: String,
        /// The kind of the event of the Machine that says the same, if there is one ([`HEARTBEAT`]).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        event: Option<String>,
    },
    /// Answer to [`ToProxy::Live`].
    Live {
        /// Of the question.
        token: u64,
        /// `None`: there is no such app here.
        live: Option<Box<Live>>,
    },
    /// A part of the answer to [`ToProxy::Counts`].
    Counts {
        /// Of the question.
        token: u64,
        /// Some of those apps that were ever called.
        apps: Vec<AppCounts>,
        /// There are no more.
        last: bool,
    },
    /// For the ledger; only to servers that take it ([`Settings::notes`]).
    Note(Box<Note>),
}

impl FromProxy {
    /// Tells what has happened; nobody waits for what the server does about it.
    pub(crate) fn is_report(&self) -> bool {
        matches!(
            self,
            Self::Log { .. }
                | Self::Note(_)
                | Self::Checks { .. }
                | Self::Start { thawed: Some(_), .. }
        )
    }
}

/// The event that names a connection whose heartbeats wake a Machine, or would.
pub const HEARTBEAT: &str = "heartbeat";

/// What the ledger says of callers who waited, of those who were sent away, and of sleeps that did not happen. Told
/// when it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What happened.
    pub kind: NoteKind,
    /// The app.
    pub app: String,
    /// The Machine, if it is about one.
    pub machine: Option<String>,
    /// Its run; 0: about none.
    pub run: u64,
    /// The caller.
    pub cause: Option<Cause>,
    /// `thaw` or `start`: what the caller waited for; `hold`: a place in a Machine that was up; empty: none of these.
    pub how: String,
    /// The first caller of the run that was woken for it.
    pub first: bool,
    /// Why, where there is more to say.
    pub reason: String,
    /// The whole wait, in microseconds.
    pub total_micros: u64,
    /// Its parts, in their order; they add up to it, or there are none.
    pub phases: Vec<PhaseTime>,
    /// When it was over, in microseconds since 1970.
    pub unix_micros: u64,
    /// So many others of the app were left out before this one: there were too many at once, or no server.
    pub left_out: u64,
}

impl Note {
    /// A sleep that the server itself lets not happen.
    pub fn veto(
        (app, machine, run): (String, String, u64),
        reason: String,
        unix_micros: u64,
    ) -> Self {
        Self { app, machine: Some(machine), run, reason, unix_micros, ..Self::of(NoteKind::Veto) }
    }

    /// One of which nothing more is known yet.
    pub(crate) fn of(kind: NoteKind) -> Self {
        Self {
            kind,
            app: String::new(),
            machine: None,
            run: 0,
            cause: None,
            how: String::new(),
            first: false,
            reason: String::new(),
            total_micros: 0,
            phases: Vec::new(),
            unix_micros: 0,
            left_out: 0,
        }
    }
}

/// What a [`Note`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// A caller waited.
    Hold,
    /// A caller was sent away by us.
    Refusal,
    /// A sleep was due and does not happen.
    Veto,
}

/// A part of a wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Its name (`perch_core::ledger::Phase`).
    pub name: String,
    /// How long it took, in microseconds.
    pub micros: u64,
}

/// A run that the proxy has thawed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawedRun {
    /// Id of the Machine.
    pub machine: String,
    /// The run.
    pub run: u64,
}

/// How the proxy thawed a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thaw {
    /// The run.
    pub run: u64,
    /// How long the write took.
    pub micros: u64,
}

/// The first caller that waits for a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Address of the caller.
    pub caller: IpAddr,
    /// Its port; 0: of a proxy that did not tell it.
    #[serde(default)]
    pub caller_port: u16,
    /// Who owns that address.
    pub source: Source,
    /// Address and port that were called.
    pub dest: SocketAddr,
    /// `METHOD path` (without the query, at most 256 bytes), if the port has the `http` handler; of a UDP
    /// service `a datagram`.
    pub request: Option<String>,
}

/// Owner of a caller's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// A Machine.
    Machine {
        /// Its app.
        app: String,
        /// Its id.
        machine: String,
    },
    /// The host itself.
    Host,
    /// Nobody that we know.
    Unknown,
}

/// How a start ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StartOutcome {
    /// The Machine's program runs (it may not listen yet).
    Started {
        /// Its new run.
        run: u64,
    },
    /// It was tried and failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// It was not tried: the Machine is gone, held by a lease, or there is no memory.
    Refused {
        /// Why.
        reason: String,
    },
}

/// How a stop ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StopOutcome {
    /// The Machine is stopped.
    Stopped,
    /// The Machine is suspended; its run goes on at the next start.
    Suspended,
    /// It goes on running.
    Refused {
        /// Why.
        reason: String,
    },
}

/// Facts about the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Region of this host.
    pub region: String,
    /// Where DNS questions about other names go, in this order; empty: they are refused.
    pub resolvers: Vec<SocketAddr>,
    /// All private networks.
    pub networks: Vec<NetworkView>,
    /// Addresses with which the host itself calls.
    pub host_peers: Vec<IpAddr>,
    /// Apps on shared addresses are called `APP.<public_domain>`.
    pub public_domain: String,
    /// Starts in flight at once, over all apps (DESIGN 4: 8).
    pub starts_max: u32,
    /// Whether the server takes [`FromProxy::Note`].
    #[serde(default)]
    pub notes: bool,
    /// Connections that one Machine may have at once; 0: as many as there are places.
    #[serde(default)]
    pub caller_connections_max: u32,
    /// What signs `Fly-Src` (FC-41); of a server that has none, nothing is said of callers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_key: Option<SigningSeed>,
}

/// The seed of an Ed25519 key, as 64 hexadecimal digits. Prints as dots.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SigningSeed(pub String);

impl fmt::Debug for SigningSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSeed(…)")
    }
}

/// A private network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// Its number, which is never 0.
    pub id: u32,
    /// First address of its /48.
    pub prefix: Ipv6Addr,
    /// Slug of the organization.
    pub org: String,
    /// Name within the organization.
    pub name: String,
}

/// All that the proxy knows about an app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppView {
    /// Its name.
    pub name: String,
    /// Its own network.
    pub network: u32,
    /// Grows with each change; an older view never replaces a newer one.
    pub revision: u64,
    /// Where it can be called.
    pub addresses: Vec<AddressView>,
    /// Its Machines, in any state.
    pub machines: Vec<MachineView>,
}

/// One address of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressView {
    /// The address.
    pub ip: IpAddr,
    /// What kind it is.
    pub kind: AddressKind,
    /// The network that may call it; 0 = everybody.
    pub network: u32,
}

/// Kind of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressKind {
    /// Flycast: callable from one network.
    Private,
    /// Belongs to this app alone, callable by everybody.
    Public,
    /// Belongs to many apps; the Host header chooses.
    Shared,
}

/// One Machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its id.
    pub id: String,
    /// Its last run; 0 = never started.
    pub run: u64,
    /// State in the words of the API (`created`, `started`, `stopped`, …).
    pub state: String,
    /// Its region.
    pub region: String,
    /// Its process group, for DNS; empty where no deploy manages it (MA-38).
    pub group: String,
    /// Where the proxy reaches it.
    pub link_ip: Ipv4Addr,
    /// Its 6PN address.
    pub private_ip: Ipv6Addr,
    /// Version of its config.
    pub config_version: u64,
    /// Gets no traffic (PX-67).
    pub cordoned: bool,
    /// Somebody holds its lease: it is never stopped by us.
    pub leased: bool,
    /// In the app's primary region: counts for `min_machines_running`.
    pub primary: bool,
    /// Not listed in DNS (PN-41).
    #[serde(default)]
    pub skip_dns: bool,
    /// Its metadata, for `_metadata` names (PN-26).
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// What it serves.
    pub services: Vec<ServiceView>,
    /// Health checks that no service has: they keep nobody away (MA-70).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckView>,
}

/// One service of a Machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Port inside the Machine.
    pub internal_port: u16,
    /// Ports outside.
    pub ports: Vec<PortView>,
    /// May it be put to sleep, and how.
    pub autostop: Autostop,
    /// May a caller wake it.
    pub autostart: bool,
    /// Machines of the primary region kept running.
    pub min_machines_running: u32,
    /// Load from which traffic prefers others.
    pub soft_limit: u32,
    /// Load at which it gets no more.
    pub hard_limit: Option<u32>,
    /// What load counts.
    pub unit: Unit,
    /// Idle time before sleep, in milliseconds.
    pub auto_stop_after_ms: u64,
    /// How long a caller is held, in milliseconds.
    pub start_timeout_ms: u64,
    /// Health checks: callers come while all pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckView>,
    /// Who may call and wake; none: whom the network lets in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<AllowView>,
    /// A raw connection wakes nobody before its first byte.
    #[serde(default)]
    pub first_byte: bool,
}

/// A rule about callers (`perch_core::policy`), in words. What is empty fits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllowView {
    /// `app:NAME`, …
    pub from: Vec<String>,
    /// Methods of requests.
    pub methods: Vec<String>,
    /// What paths of requests begin with.
    pub paths: Vec<String>,
    /// `wake`, `serve-if-awake` or `refuse`.
    pub then: String,
}

/// Ports outside, and what happens there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    /// First port.
    pub start: u16,
    /// Last port.
    pub end: u16,
    /// `http`, …; empty = raw TCP (PX-80).
    pub handlers: Vec<String>,
    /// Plain HTTP is redirected (PX-86).
    pub force_https: bool,
    /// The program speaks HTTP/2 by prior knowledge (PX-81).
    #[serde(default)]
    pub h2_backend: bool,
    /// The PROXY protocol in its binary form, where `handlers` has it (PX-84).
    #[serde(default)]
    pub proxy_proto_v2: bool,
    /// What is done to answers; `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpView>,
}

/// What `http_options` ask to be done to answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpView {
    /// Silence for so many milliseconds ends a request or an upgraded connection (PX-88).
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// Fields by name: none of this name is passed on, these values are set (PX-21).
    #[serde(default)]
    pub response_headers: Vec<(String, Vec<String>)>,
    /// Answers are compressed for callers that want that (PX-87).
    #[serde(default)]
    pub compress: bool,
    /// Whose replays are remembered by sessions (PX-51).
    #[serde(default)]
    pub replay_cache: Vec<SessionView>,
}

/// What makes requests one session, for replays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// `/path`, or `host/path`.
    pub path_prefix: String,
    /// How long a session is remembered.
    pub ttl_seconds: u64,
    /// A field of the request tells sessions apart; otherwise a cookie.
    pub is_header: bool,
    /// Of the field or cookie.
    pub name: String,
    /// A caller may say that it wants to pass it by.
    pub allow_bypass: bool,
}

/// What happens to an idle Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Autostop {
    /// Nothing.
    Off,
    /// It is stopped.
    Stop,
    /// It is suspended.
    Suspend,
}

/// What counts as load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// HTTP requests in flight.
    Requests,
    /// Open connections (behind the `http` handler: requests too, DESIGN 4).
    Connections,
}
