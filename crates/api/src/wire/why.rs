//! Why Machines are awake or asleep: just now, and in the ledger of what woke, held, refused and put to sleep, by whom,
//! and how long it took. Extension: Fly tells nobody.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One record of the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LedgerEvent {
    /// Grows with each record of this host; microseconds since 1970 where nothing else came at the same time.
    pub id: u64,
    /// When it was over: RFC 3339 with microseconds.
    pub timestamp: String,
    /// The app.
    pub app: String,
    /// The Machine; empty: about none.
    pub machine: String,
    /// The Machine's run; 0 = about none.
    pub run: u64,
    /// `wake`: a Machine came up; `hold`: a caller waited; `refusal`: a caller was sent away; `veto`: a sleep was due and
    /// did not happen; `stop`, `suspend`, `page_out`; `exit`: its program ended by itself; `failed`: it could not be
    /// woken.
    pub kind: String,
    /// How deep it slept before: `started`, `suspended`, `paged_out`, `armed` or `stopped`; empty where that says nothing.
    pub from: String,
    /// What a caller waited for: `thaw`, `start`, or `hold` for a place in a Machine that was up.
    pub how: String,
    /// Whether it is the first caller of the run that was woken for it.
    pub first: bool,
    /// Who caused it; not given where nobody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// Why, for people; may be empty.
    pub reason: String,
    /// How long it took: a caller's whole wait, or a wake. Microseconds; 0 = not measured.
    pub total_micros: u64,
    /// What it consisted of, in order: of a wait `queue`, `wake`, `admit`, `connect`, `answer`; of a wake `thaw` or
    /// `start`. They add up to `total_micros`.
    pub phases: Vec<LedgerPhase>,
    /// So many other records were left out before this one, because there were too many at once.
    pub left_out: u64,
}

/// A part of a wait or wake.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LedgerPhase {
    /// Its name.
    pub name: String,
    /// How long it took, in microseconds.
    pub micros: u64,
}

/// Who caused something. What is not known is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Trigger {
    /// `machine`: of an app here; `host`; `peer`: somebody else in the network; `operator`: by the API; `platform`;
    /// `proxy`: nobody called.
    pub kind: String,
    /// The calling app.
    pub app: String,
    /// The calling Machine.
    pub machine: String,
    /// Address of the caller.
    pub address: String,
    /// Port of the caller.
    pub port: u16,
    /// Address and port that were called.
    pub destination: String,
    /// Method of the request.
    pub method: String,
    /// Path of the request, without its query.
    pub path: String,
    /// Which operator: `uid N` of this host, or `token NAME`.
    pub who: String,
}

/// Answer of `GET /perch/v1/apps/{app}/why`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AppWhy {
    /// The app.
    pub app: String,
    /// Its Machines.
    pub machines: Vec<MachineWhy>,
    /// Whether the proxy has answered: else nothing is known of what goes on just now, and all below is empty.
    pub live: bool,
    /// Whom the app serves, and who waits for it: those that keep it awake first, of these who is there for longest.
    pub callers: Vec<CallerWhy>,
    /// So many more are not listed.
    pub callers_left_out: u64,
    /// So many callers wait for a Machine.
    pub waiting: u64,
}

/// Why one Machine is awake or asleep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MachineWhy {
    /// The Machine.
    pub machine: String,
    /// Its state.
    pub state: String,
    /// Requests, connections and sessions that keep it awake just now.
    pub load: u64,
    /// Connections that rest: they keep their place in it and do not keep it awake.
    pub resting: u64,
    /// How long nobody has used it, in milliseconds; not given: somebody does, or it is not awake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused_ms: Option<u64>,
    /// In so many milliseconds it sleeps if nobody comes; not given: not by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleeps_in_ms: Option<u64>,
    /// How it sleeps then: `stop` or `suspend`; else empty.
    pub sleeps_by: String,
    /// What keeps it awake beside its load.
    pub reasons: Vec<WhyReason>,
    /// What put it to sleep last, if it is asleep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sleep: Option<LedgerEvent>,
    /// Its last wake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_wake: Option<LedgerEvent>,
    /// The first caller who was let in after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_caller: Option<LedgerEvent>,
    /// The last sleep that was due and did not happen since it woke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_veto: Option<LedgerEvent>,
}

/// What keeps a Machine awake.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WhyReason {
    /// In one word: `no_services`, `autostop_off`, `lease`, `busy`, `copy` of its volume, `cordoned`,
    /// `min_machines_running`, `load_of_others`, `awaited` until its checks pass, `starting`, `leaving`, `no_server`.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// Somebody who is served, or waits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CallerWhy {
    /// Who calls, and what for.
    pub trigger: Trigger,
    /// `request`; `upgraded`: a WebSocket or the like; `connection`: raw TCP; `http2`: a connection with streams;
    /// `session`: of UDP.
    pub what: String,
    /// Since when: RFC 3339.
    pub since: String,
    /// The same in milliseconds before now.
    pub age_ms: u64,
    /// Streams in flight of an `http2`, else 0.
    pub streams: u32,
    /// It rests, and keeps nobody awake.
    pub resting: bool,
}

/// Answer of `GET /perch/v1/why/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LedgerPage {
    /// Records, oldest first; may be empty.
    pub events: Vec<LedgerEvent>,
    /// What to give as `after` next.
    pub next: u64,
}

/// Query of `GET /perch/v1/why/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerQuery {
    /// Only of these apps; on the wire `app`, one.
    pub apps: Option<Vec<String>>,
    /// Only behind this id, the oldest first; `None`: the newest.
    pub after: Option<u64>,
    /// At most so many.
    pub limit: usize,
    /// How long to hold an answer that would be empty. `hold_ms` on the wire; 0 answers at once.
    pub hold: Duration,
}
