//! What an app is awake for just now, in the words of the control connection.

use serde::{Deserialize, Serialize};

use super::types::{Autostop, Cause};

/// The kind of a [`Reason`] behind which the server knows more.
pub const HELD: &str = "held";
/// What is said of it by who does not know more.
pub const HELD_TEXT: &str = "somebody holds it awake";

/// What the proxy knows of an app at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Those that are awake.
    pub machines: Vec<LiveMachine>,
    /// Who is served or waits, since longest first.
    pub callers: Vec<LiveCaller>,
    /// So many more are not listed.
    pub more: u64,
    /// So many callers wait for a place.
    pub waiting: u64,
}

/// A Machine that is awake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveMachine {
    /// Its id.
    pub machine: String,
    /// The run that is up.
    pub run: u64,
    /// Requests, connections and sessions that keep it awake.
    pub load: u64,
    /// Connections that rest: they keep nobody awake.
    pub resting: u64,
    /// How long nobody has used it, in milliseconds; without meaning while there is load.
    pub unused_ms: u64,
    /// When it sleeps, in milliseconds, if nobody comes; `None`: not by itself.
    pub sleeps_in_ms: Option<u64>,
    /// How it will sleep.
    pub by: Autostop,
    /// It is drained, or being put to sleep.
    pub leaving: bool,
    /// What keeps it awake beside load.
    pub reasons: Vec<Reason>,
}

/// What was served of an app since the proxy began; only what is in flight can become less.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppCounts {
    /// Its name.
    pub app: String,
    /// In flight now, of all its Machines.
    pub concurrency: u64,
    /// Answers of Machines, by the first digit of their status, from 1.
    pub answers: [u64; 5],
    /// Answers of the proxy itself.
    pub own: [u64; 5],
    /// Connections of callers to addresses that are this app's alone.
    pub connects: u64,
    /// Those of them that have ended.
    pub disconnects: u64,
}

/// What keeps a Machine awake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// In one word: `no_services`, `autostop_off`, [`HELD`], `cordoned`, `min_machines_running`, `load_of_others`,
    /// `awaited`, `starting`, `no_server`.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// Somebody who is served, or waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveCaller {
    /// Who calls, and what for.
    pub cause: Cause,
    /// `request`; `upgraded`: a WebSocket or the like; `connection`: raw TCP; `http2`: a connection with streams;
    /// `session`: of UDP.
    pub what: String,
    /// Since when, in milliseconds before now.
    pub age_ms: u64,
    /// Streams in flight of an `http2`, else 0.
    pub streams: u32,
    /// It rests, and keeps nobody awake.
    pub resting: bool,
}
