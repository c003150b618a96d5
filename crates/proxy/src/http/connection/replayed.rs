//! Requests that a Machine wants replayed elsewhere (PX-40..52).
//!
//! ```text
//!  answer is an order ─► target: same app, or one of the same network ─► head changed ─► forwarded again
//!      ▲ at most 10                │ PA04, PA05                                │ nobody reached, with a fallback
//!      └───────────────────────────┴──────────── another order ◄───────────────┴─► back to whom it came from
//! ```
//!
//! A Machine can send a request only to apps of its own network, which it could call by itself: nobody reaches by a
//! replay what neither the caller nor the program that it has called may reach.

use std::rc::Rc;

use perch_core::aim::{Aim, Must};
use perch_core::ids::MachineId;
use perch_core::replay::{BadReplay, REPLAYS_MAX, Replay};
use tokio::time::Instant;

use super::aimed::Aimed;
use super::caller::Caller;
use super::remembered::Memory;
use super::{Failure, Hop, Unreached};
use crate::app::{App, Place, PortFacts, Protocol, Ruling};
use crate::clock;
use crate::http::edit::Edit;
use crate::http::head::HEAD_BYTES_MAX;
use crate::http::replay::Order;

/// Each transform may add to a head.
const HEAD_LEN_MAX: usize = 4 * HEAD_BYTES_MAX;
const SOURCE: &str = "fly-replay-src";
const FAILED: &str = "fly-replay-failed";
const CACHE_STATUS: &str = "fly-replay-cache-status";

/// An order, and who gave it.
#[derive(Debug)]
pub(crate) struct Issued {
    order: Result<Box<Order>, BadReplay>,
    app: Rc<App>,
    machine: MachineId,
}

impl Issued {
    pub(crate) fn new(order: Result<Box<Order>, BadReplay>, place: &Place) -> Box<Self> {
        Box::new(Self { order, app: Rc::clone(place.app()), machine: place.endpoint().machine })
    }

    fn region(&self) -> String {
        self.app.region_of(self.machine).map(|region| region.to_string()).unwrap_or_default()
    }

    /// PX-10.
    fn source(&self, state: Option<&str>) -> String {
        let (instance, region, micros) = (self.machine, self.region(), clock::wall_micros());
        let state = state.map(|state| format!(";state={state}")).unwrap_or_default();
        format!("instance={instance};region={region};t={micros}{state}")
    }
}

/// What a replayed request was before it was changed, and why it comes back.
struct Back {
    head: Vec<u8>,
    since: Instant,
    why: Unreached,
    fallback: Must,
}

/// Replays a request until somebody answers it (PX-45, PX-46).
pub(crate) async fn replay<C: Caller>(
    caller: &mut C,
    called: &Rc<App>,
    mut issued: Box<Issued>,
) -> Result<C::Answered, Failure> {
    let memory = Memory::of(called, caller.to().port());
    let status = memory.status(caller.head());
    for count in 1..=REPLAYS_MAX {
        let order = match &issued.order {
            Ok(order) => order,
            Err(bad) => return Err(Failure::Reply(502, bad.to_string())),
        };
        if !caller.recover() {
            return Err(too_much_to_replay());
        }
        let once = count == 1 && Rc::ptr_eq(called, &issued.app);
        memory.note(order, once, caller.head());
        let (head, since) = (caller.head().to_vec(), Instant::now());
        if let Some(transform) = &order.transform {
            caller.edit_head(&transform.edit());
        }
        let set = vec![
            (SOURCE.to_owned(), issued.source(order.replay.state.as_deref())),
            (CACHE_STATUS.to_owned(), status.to_owned()),
        ];
        prepare(caller, set);
        if HEAD_LEN_MAX < caller.head().len() {
            let text = "PA03 the replays have made the request's head larger than 64 KiB";
            return Err(Failure::Reply(502, text.to_owned()));
        }
        let issuer = (&issued.app, issued.machine, false);
        let sent = send_to(caller, issuer, &order.replay);
        match (Box::pin(sent).await, order.replay.fallback) {
            (Err(Failure::Replay(next)), _) => issued = next,
            (Err(Failure::Unreached(_, _, why)), Some(fallback)) => {
                let back = Back { head, since, why, fallback };
                return Box::pin(send_back(caller, &issued, back)).await;
            }
            (done, _) => return done,
        }
    }
    let text = format!("PA02 the request was replayed {REPLAYS_MAX} times");
    Err(Failure::Reply(502, text))
}

/// Forwards a request to where a replay names.
async fn send_to<C: Caller>(
    caller: &mut C,
    (issuer, machine, awake_only): (&Rc<App>, MachineId, bool),
    replay: &Replay,
) -> Result<C::Answered, Failure> {
    let app = match &replay.app {
        Some(name) => caller.directory().replay_target(issuer, name.as_str()),
        None => Ok(Rc::clone(issuer)),
    };
    let app = app.map_err(|text| Failure::Reply(502, text))?;
    let facts = replay_port(caller, &app)?;
    let except = replay.elsewhere.then_some(machine);
    let aim = Aim { except, ..replay.aim.clone() };
    let aimed = Aimed { aim, wanted: replay.wanted.clone(), timeout: replay.timeout };
    let mut hop = Hop { app, facts, aimed: Some(Box::new(aimed)) };
    if hop.facts.guarded && !Rc::ptr_eq(&hop.app, issuer) {
        obey_as(issuer, &mut hop, caller).map_err(|text| Failure::Reply(403, text))?;
    }
    hop.facts.awake_only |= awake_only;
    caller.forward(&hop).await
}

/// What the rules of the app let a Machine of `issuer` do that sends a request on.
fn obey_as(issuer: &App, hop: &mut Hop, caller: &impl Caller) -> Result<(), String> {
    let ruling = {
        let to = caller.to();
        let at = (&hop.app, to.port());
        caller.directory().ruling_of_replay(&to, issuer, at, caller.head())
    };
    match ruling {
        Ruling::Wake => {}
        Ruling::IfAwake => hop.facts.awake_only = true,
        Ruling::Refused(text) => return Err(text),
    }
    Ok(())
}

/// PX-48: a service on the port that was called, whatever its addresses.
fn replay_port(caller: &impl Caller, app: &App) -> Result<PortFacts, Failure> {
    let port = caller.to().port();
    let facts = app.port(port);
    let facts = facts.filter(|f| matches!(f.protocol, Protocol::Http | Protocol::HttpRedirected));
    facts.ok_or_else(|| {
        let text = format!("PR04 the app {} serves no HTTP at port {port}", app.name);
        Failure::Unreached(503, text, Unreached::NoCandidate)
    })
}

/// Nobody was reached: the request as it was goes back to whom it came from, for the last time (PX-46).
async fn send_back<C: Caller>(
    caller: &mut C,
    issued: &Issued,
    back: Back,
) -> Result<C::Answered, Failure> {
    let Ok(order) = &issued.order else { return Err(Failure::Cut) };
    let told = failed(issued, &order.replay, &back);
    caller.replace_head(back.head);
    prepare(caller, vec![(FAILED.to_owned(), told)]);
    let facts = replay_port(caller, &issued.app)?;
    let (aim, wanted) = (Aim::at(issued.machine, back.fallback), issued.machine.to_string());
    let aimed = Some(Box::new(Aimed { aim, wanted, timeout: None }));
    let hop = Hop { app: Rc::clone(&issued.app), facts, aimed };
    match Box::pin(caller.forward(&hop)).await {
        Err(Failure::Replay(_)) => {
            let text = "PA03 a request that came back by its fallback cannot be replayed again";
            Err(Failure::Reply(502, text.to_owned()))
        }
        done => done,
    }
}

/// Forwards a request as its app has sent such ones before, or to the app itself (PX-50, PX-51).
pub(crate) async fn forward_as_before<C: Caller>(
    caller: &mut C,
    hop: &Hop,
) -> Result<C::Answered, Failure> {
    let memory = Memory::of(&hop.app, caller.to().port());
    let known = memory.find(caller.head());
    let known = known.filter(|known| hop.aimed.is_none() && !known.is_skipped(caller.head()));
    let Some(known) = known else { return caller.forward(hop).await };
    let head = caller.head().to_vec();
    prepare(caller, vec![(CACHE_STATUS.to_owned(), "hit".to_owned())]);
    // No Machine has said anything for this caller: who may wake nobody here may wake nobody there.
    let issuer = (&hop.app, MachineId::from_low_bits(0), hop.facts.awake_only);
    match Box::pin(send_to(caller, issuer, &known.replay)).await {
        Err(Failure::Unreached(..)) => {}
        // It names an app that is gone, or may not be reached any more.
        Err(Failure::Reply(_, text)) if text.starts_with("PA0") => {}
        done => return done,
    }
    caller.replace_head(head);
    memory.forget(caller.head());
    caller.forward(hop).await
}

/// Puts these fields into the head, and takes those out that another way of it has left.
fn prepare(caller: &mut impl Caller, set: Vec<(String, String)>) {
    let mut drop: Vec<String> =
        ["fly-preferred-instance-unavailable", FAILED].map(str::to_owned).into();
    if !caller.upgrades() {
        drop.push("connection".to_owned());
    }
    caller.edit_head(&Edit { path: None, drop, set });
}

/// PX-11.
fn failed(issued: &Issued, replay: &Replay, back: &Back) -> String {
    let elapsed = back.since.elapsed();
    let reason = match back.why {
        _ if replay.timeout.is_some_and(|timeout| timeout <= elapsed) => "timeout",
        Unreached::NoCandidate => "no_candidate",
        Unreached::Tried => "retries_exhausted",
    };
    let app = replay.app.as_ref().map_or(&*issued.app.name, |app| app.as_str());
    let (instance, source, elapsed) = (&replay.wanted, issued.machine, elapsed.as_millis());
    let region = issued.region();
    format!(
        "instance={instance};app={app};region={region};replay_source={source};reason={reason};elapsed_ms={elapsed}"
    )
}

fn too_much_to_replay() -> Failure {
    let text =
        "PA01 the request's body is longer than 1 MB, or too many are kept, and cannot be replayed";
    Failure::Reply(502, text.to_owned())
}
