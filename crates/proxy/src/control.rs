//! What server and proxy say to each other: one JSON object per line on a Unix stream.
//!
//! The server connects, the proxy listens. The first line from the proxy is [`FromProxy::Hello`], which
//! carries duplicates of all its listeners, so that a server that lost them can start a successor of
//! this proxy later. The server then sends [`ToProxy::Settings`], every app, [`ToProxy::SnapshotEnd`],
//! and after that each change. The server is the authority on the states of Machines; the proxy's
//! balancer decides wakes and sleeps and asks for them.
//!
//! Unknown fields are ignored and unknown messages are logged and skipped, so that a server and a proxy
//! of neighbouring releases can work together during an upgrade.

mod checks;
mod handover;
mod link;
mod live;
mod types;

pub use checks::{CheckResult, CheckView, HttpCheckView};
pub use handover::{Handover, HandoverError, Listeners, NamedListeners};
pub(crate) use link::{Lines, encode, send_hello};
pub use link::{Link, LinkError, LinkReceiver, LinkSender};
pub use live::{AppCounts, HELD, HELD_TEXT, Live, LiveCaller, LiveMachine, Reason};
pub use types::{
    AddressKind, AddressView, AllowView, AppView, Autostop, Cause, FromProxy, HEARTBEAT, HttpView,
    LINE_BYTES_MAX, MachineView, NetworkView, Note, NoteKind, PhaseTime, PortView, ServiceView,
    SessionView, Settings, SigningSeed, Source, StartOutcome, StopOutcome, Thaw, ThawedRun,
    ToProxy, Unit, VERSION,
};
