//! The types on the wire, one file per resource.
//!
//! They promise JSON shapes to strangers and nothing else: every field that Fly's client may omit
//! has a default, `null` counts as absent, unknown keys are ignored, lists are never `null` in
//! answers. Points in time are RFC 3339 texts, except where Fly's contract has integers (event time
//! in milliseconds, lease end in seconds). Domain types live in `core`; whoever implements the
//! backend converts.

mod allow;
mod app;
mod caller;
mod check;
mod config;
mod dns;
mod duration;
mod error;
mod exec;
mod file;
mod http_options;
mod image;
mod log;
mod machine;
pub(crate) mod object;
mod platform;
mod release;
mod restart;
mod schedule;
pub(crate) mod schema;
mod secret;
mod signal;
mod source_key;
mod token;
mod volume;
mod why;

pub use allow::Allow;
pub use app::{
    AddressIntent, App, AppPage, AppPatch, AssignIp, CreateApp, IpAssignment, IpKind, IpNetwork,
    IpPage, OrganizationRef,
};
pub use caller::Whoami;
pub use check::{Check, CheckHeader, HealthCheck, HttpCheck};
pub use config::{
    Autostop, BadConfig, Concurrency, ConfigView, Guest, Init, LimitUnit, MachineConfig, Mount,
    Port, Restart, RestartPolicy, Service, StopConfig,
};
pub use dns::{Asker, DnsAnswer, DnsQuestion, DnsRecord};
pub use duration::{BadDuration, GoDuration};
pub use error::{ApiError, Done};
pub(crate) use error::{ErrorBody, RegistryErrors};
pub use exec::{ConsoleInput, ExecAnswer, ExecInput};
pub use file::{FileContent, GuestFile};
pub use http_options::{BadHttpOption, HttpOptions, ReplayCache};
pub use image::{Descriptor, ImageInfo, ManifestInfo, UploadState};
pub use log::{LogAttributes, LogEntry, LogEvent, LogMeta, LogPage, LogPageMeta, LogQuery};
pub use machine::{
    BadState, Busy, BusyInput, CheckStatus, Depth, Event, EventRequest, ExitEvent, ImageRef,
    LaunchInput, Lease, LeaseData, LeaseInput, ListenSocket, Machine, MachineFilter, MachineMemory,
    MachineState, MetadataValue, MonitorEvent, Process, StartAnswer, StopInput, WaitQuery,
    WaitState,
};
pub use platform::{Info, Organization, OrganizationAnswer, OrganizationPage, Region, RegionPage};
pub use release::{
    CreateRelease, Release, ReleaseAnswer, ReleasePage, ReleaseStatus, UpdateRelease,
};
pub use restart::RestartQuery;
pub use schedule::Schedule;
pub use secret::{
    Secret, SecretAnswer, SecretPage, SecretValue, SecretsAnswer, SecretsVersion, SetSecret,
    UpdateSecrets,
};
pub use signal::{BadSignal, Signal, SignalInput};
pub use source_key::{RotateKeys, SourceKey, SourceKeys};
pub use token::{CreateToken, NewToken, Token, TokenPage};
pub use volume::{CreateVolume, ExtendVolume, ExtendedVolume, Snapshot, UpdateVolume, Volume};
pub use why::{
    AppWhy, CallerWhy, LedgerEvent, LedgerPage, LedgerPhase, LedgerQuery, MachineWhy, Trigger,
    WhyReason,
};

pub use perch_core::base64::{decode_base64, encode_base64};

use http::HeaderName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// The header that proves possession of a lease.
pub(crate) const NONCE_HEADER: HeaderName = HeaderName::from_static("fly-machine-lease-nonce");

/// Reads `null` as the default, as Go does.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads `""`, which flyctl sends for "not given", as `null`.
fn unless_empty<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        value => serde_json::from_value(value).map(Some).map_err(de::Error::custom),
    }
}
