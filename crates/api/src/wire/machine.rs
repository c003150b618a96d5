//! Machines, their events, leases and processes.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use super::{GoDuration, MachineConfig, Signal, null_default, schema, unless_empty};

/// A word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a state")]
pub struct BadState(String);

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant,)* }

        impl $name {
            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = BadState;

            fn from_str(text: &str) -> Result<Self, BadState> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(BadState(text.to_owned())),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "enum": [$($word),*]})
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

words! {
    /// State of a Machine, in the API's words.
    MachineState {
        /// Made, never started.
        Created = "created",
        /// Being made.
        Creating = "creating",
        /// Being started or resumed.
        Starting = "starting",
        /// Its program runs.
        Started = "started",
        /// Asked to stop.
        Stopping = "stopping",
        /// Not running.
        Stopped = "stopped",
        /// Being suspended.
        Suspending = "suspending",
        /// Frozen.
        Suspended = "suspended",
        /// Stopped in order to start again.
        Restarting = "restarting",
        /// A new config is being applied.
        Updating = "updating",
        /// A new version is being put in its place.
        Replacing = "replacing",
        /// An old version.
        Replaced = "replaced",
        /// Could not be started.
        Failed = "failed",
        /// Being removed.
        Destroying = "destroying",
        /// Removed.
        Destroyed = "destroyed",
    }
}

words! {
    /// State that `wait` can wait for.
    WaitState {
        /// Its program runs.
        Started = "started",
        /// Not running.
        Stopped = "stopped",
        /// Frozen.
        Suspended = "suspended",
        /// Removed.
        Destroyed = "destroyed",
        /// No transition in progress.
        Settled = "settled",
    }
}

/// The image of a Machine, taken apart for tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImageRef {
    /// Host part; empty for local images.
    #[serde(deserialize_with = "null_default")]
    pub registry: String,
    /// Name without registry and tag.
    #[serde(deserialize_with = "null_default")]
    pub repository: String,
    /// Tag.
    #[serde(deserialize_with = "null_default")]
    pub tag: String,
    /// `sha256:…`.
    #[serde(deserialize_with = "null_default")]
    pub digest: String,
    /// Labels of the image.
    #[serde(deserialize_with = "null_default")]
    pub labels: Map<String, Value>,
}

/// A Machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// 14 lower-case hexadecimal digits.
    pub id: String,
    /// Name for people.
    #[serde(default, deserialize_with = "null_default")]
    pub name: String,
    /// State.
    pub state: MachineState,
    /// Region code.
    #[serde(default, deserialize_with = "null_default")]
    pub region: String,
    /// Image.
    #[serde(default)]
    pub image_ref: ImageRef,
    /// Version of the config: changes with each update.
    #[serde(default, deserialize_with = "null_default")]
    pub instance_id: String,
    /// Address on the private network.
    pub private_ip: Ipv6Addr,
    /// Creation, `2006-01-02T15:04:05Z`; printed as it is.
    #[serde(default, deserialize_with = "null_default")]
    pub created_at: String,
    /// Last change, `2006-01-02T15:04:05Z`; printed as it is.
    #[serde(default, deserialize_with = "null_default")]
    pub updated_at: String,
    /// Config as received; `guest` is filled in in answers.
    pub config: MachineConfig,
    /// Newest first.
    #[serde(default, deserialize_with = "null_default")]
    pub events: Vec<Event>,
    /// Health checks.
    #[serde(default, deserialize_with = "null_default")]
    pub checks: Vec<CheckStatus>,
    /// Nonce of the lease made with it; only in the answer to its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// `ok`: flyctl treats everything else, and its absence, as a dead host.
    #[serde(default, deserialize_with = "null_default")]
    pub host_status: String,
    /// Whether the proxy sends it nothing new.
    #[serde(default, deserialize_with = "null_default")]
    pub cordoned: bool,
    /// Our addition: how deep it sleeps; absent on the way from one to the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perch_depth: Option<Depth>,
    /// Our addition: where its memory is; absent while nothing of it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perch_memory: Option<MachineMemory>,
    /// Our addition: what it says of itself while it is at work though no connection shows it (LI-05).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perch_busy: Option<Busy>,
}

/// That a Machine is at work, and is not put to sleep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Busy {
    /// When that is over: `2006-01-02T15:04:05Z`.
    pub until: String,
    /// What it is at work with, for people.
    pub reason: String,
}

/// Body of `PUT …/busy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BusyInput {
    /// For how long from now, 1 to 3,600 seconds; each call replaces the one before.
    #[schemars(range(min = 1, max = 3600))]
    pub ttl: u64,
    /// What it is at work with, for people: at most 200 bytes on one line.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(regex(pattern = schema::LINE), transform = schema::nullable)]
    pub reason: String,
}

words! {
    /// How deep a Machine sleeps.
    Depth {
        /// Not at all.
        Started = "started",
        /// Frozen, its memory where it was.
        SuspendedResident = "suspended_resident",
        /// Frozen, most of its memory in swap.
        SuspendedPagedOut = "suspended_paged_out",
        /// Nothing of it runs.
        Stopped = "stopped",
    }
}

/// Where a Machine's memory is, as measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MachineMemory {
    /// In RAM; what several processes share is counted once in all.
    pub resident_bytes: u64,
    /// As much of that as no file has.
    pub anonymous_bytes: u64,
    /// In swap.
    pub swapped_bytes: u64,
    /// RAM that compressed swap (zram) takes for that.
    pub swap_store_bytes: u64,
}

/// Result of a health check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CheckStatus {
    /// Name.
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What the check saw.
    pub output: String,
    /// RFC 3339: when the status became this one (MA-77).
    pub updated_at: String,
    /// Our addition: the Machine sleeps, and this is how it was before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub asleep: bool,
}

/// Something that happened to a Machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Event {
    /// Unique within its Machine.
    #[serde(deserialize_with = "null_default")]
    pub id: String,
    /// `launch`, `start`, `exit`, `stop`, `update`, `cordon`, `destroy` …
    #[serde(rename = "type")]
    pub kind: String,
    /// State or outcome.
    pub status: String,
    /// `user`, `flyd` (the platform) or `proxy`.
    pub source: String,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Details.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<EventRequest>,
}

/// Details of an event.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EventRequest {
    /// Every `exit` event has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_event: Option<ExitEvent>,
    /// The same once more, where older clients look.
    #[serde(rename = "MonitorEvent", skip_serializing_if = "Option::is_none")]
    pub monitor_event: Option<MonitorEvent>,
    /// Starts after failures since the last good run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
    /// Our additions: who asked (`uid` of a process of the host, or name of a `token`), why (`cause`),
    /// what failed (`reason`), whether a start was made ready ahead (`armed`).
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// Wrapper that Fly has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MonitorEvent {
    /// The exit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_event: Option<ExitEvent>,
}

/// How a Machine's program ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExitEvent {
    /// Exit code; 128 + signal when killed by one.
    pub exit_code: i32,
    /// Exit code of the program itself.
    pub guest_exit_code: i32,
    /// Signal that ended the program; 0 = none. -1 with Fly when unknown.
    pub guest_signal: i32,
    /// Whether the kernel ended it for want of memory.
    pub oom_killed: bool,
    /// Whether somebody asked for the stop.
    pub requested_stop: bool,
    /// Whether it is started again.
    pub restarting: bool,
    /// Signal that was sent; 0 = none.
    pub signal: i32,
    /// RFC 3339.
    pub exited_at: String,
}

/// Body of `POST …/machines` (create) and `POST …/machines/{id}` (update).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LaunchInput {
    /// Whole config; an update replaces the old one.
    pub config: MachineConfig,
    /// Region; empty = this host's.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub region: String,
    /// Name; empty = generated.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub name: String,
    /// Leave it `created`, or asleep as it is.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub skip_launch: bool,
    /// Create it cordoned.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub skip_service_registration: bool,
    /// Create it with a lease of so many seconds, at most 3600; 0 = none.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub lease_ttl: u64,
    /// Update only if the Machine's `instance_id` is this one; empty = always.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub current_version: String,
    /// The app's secrets must be at least this version; 0 = whatever they are.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub min_secrets_version: u64,
    /// Start it without the app's secrets.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub skip_secrets: bool,
}

impl LaunchInput {
    /// Asks for a Machine with this config, with nothing else said.
    pub fn new(config: MachineConfig) -> Self {
        Self {
            config,
            region: String::new(),
            name: String::new(),
            skip_launch: false,
            skip_service_registration: false,
            lease_ttl: 0,
            current_version: String::new(),
            min_secrets_version: 0,
            skip_secrets: false,
        }
    }
}

/// Which Machines to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineFilter {
    /// Also those destroyed not long ago.
    pub include_deleted: bool,
    /// Only this region.
    pub region: Option<String>,
    /// Only this state.
    pub state: Option<MachineState>,
    /// Only those whose metadata has all of these.
    pub metadata: Vec<(String, String)>,
}

/// Answer of `POST …/start`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StartAnswer {
    /// Text for people.
    #[serde(deserialize_with = "null_default")]
    pub message: String,
    /// `error` means that the start failed.
    #[serde(deserialize_with = "null_default")]
    pub status: String,
    /// State before.
    #[serde(deserialize_with = "null_default")]
    pub previous_state: String,
}

/// Body of `POST …/stop`; may be empty.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StopInput {
    /// Signal; absent = the config's, else SIGINT.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "unless_empty")]
    #[schemars(transform = schema::empty_or_null)]
    pub signal: Option<Signal>,
    /// Time until SIGKILL; absent = the config's, else 5 s.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "unless_empty")]
    #[schemars(transform = schema::empty_or_null)]
    pub timeout: Option<GoDuration>,
}

/// Query of `GET …/wait`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitQuery {
    /// Any of these will do; never empty in a backend's hands.
    pub states: Vec<WaitState>,
    /// How long to wait, 1 to 60 s; the server ends the wait with 408.
    pub timeout: Duration,
    /// Only this version (`instance_id`) counts.
    pub version: Option<String>,
    /// Only what happened after this event counts.
    pub from_event_id: Option<String>,
}

impl WaitQuery {
    /// Waits for one state.
    pub fn for_state(state: WaitState, timeout: Duration) -> Self {
        Self { states: vec![state], timeout, version: None, from_event_id: None }
    }
}

/// Query and body of `POST …/lease`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LeaseInput {
    /// Seconds; 0 = the server's default (120 s).
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub ttl: u64,
    /// What for.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub description: String,
}

/// Answer of the lease calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Lease {
    /// `success`.
    pub status: String,
    /// The lease.
    pub data: LeaseData,
}

/// A lease on a Machine: while it lasts, changes need its nonce.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LeaseData {
    /// Secret that proves possession; empty in the answer to somebody who only looks.
    pub nonce: String,
    /// Seconds since 1970.
    pub expires_at: i64,
    /// Who holds it.
    pub owner: String,
    /// What for.
    pub description: String,
    /// The Machine's `instance_id`.
    pub version: String,
}

/// A process in a Machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Process {
    /// Process id inside the Machine.
    pub pid: i32,
    /// CPU seconds in the kernel.
    pub stime: u64,
    /// Seconds since it started.
    pub rtime: u64,
    /// Command line.
    pub command: String,
    /// Working directory.
    pub directory: String,
    /// CPU seconds altogether.
    pub cpu: u64,
    /// Resident memory in bytes.
    pub rss: u64,
    /// Sockets on which it listens.
    pub listen_sockets: Vec<ListenSocket>,
}

/// A listening socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListenSocket {
    /// `tcp`, `tcp6` …
    pub proto: String,
    /// `ADDRESS:PORT`, IPv6 in brackets.
    pub address: String,
}

/// Body of `POST …/metadata/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetadataValue {
    /// New value.
    pub value: String,
}
