//! Requests that say where they want to go (PX-30..33, PX-36): who takes them, and what they hear if nobody does.

use std::rc::Rc;
use std::time::Duration;

use perch_core::aim::{Aim, Among, Area, Must, Target};
use perch_core::balancer::HoldReason;
use perch_core::ids::MachineId;

use super::caller::Caller;
use super::{Deadline, Failure, Hop, Unreached, describe};
use crate::app::{App, Asked, NoPlace, Place};
use crate::http::edit::{Edit, value_of};

/// Tries of a forced Machine that is unknown or does not start (PX-36).
const TRIES_MAX: u32 = 3;
/// The pause between two: two seconds over all tries, in which a Machine that is being made appears.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };
/// Of a wrong ID so much is told to the Machine that takes the request instead.
const WANTED_BYTES_MAX: usize = 64;

const UNAVAILABLE: &str = "Fly-Preferred-Instance-Unavailable";

/// Where one request wants to go.
#[derive(Debug)]
pub(crate) struct Aimed {
    pub(super) aim: Aim,
    /// The Machine that should take it, as it was written.
    pub(super) wanted: String,
    /// How long to try to reach a Machine, if not for the port's `start_timeout`.
    pub(super) timeout: Option<Duration>,
}

impl Aimed {
    /// Reads a head that we wrote.
    pub(crate) fn of_head(head: &[u8]) -> Box<Self> {
        let field = |name| value_of(head, name);
        let machine = field("fly-force-instance-id").map(|text| (text, Must::Force));
        let machine =
            machine.or_else(|| field("fly-prefer-instance-id").map(|text| (text, Must::Prefer)));
        let areas = field("fly-force-region").map(|text| (Area::parse_list(text), Must::Force));
        let areas = areas.or_else(|| {
            field("fly-prefer-region").map(|text| (Area::parse_list(text), Must::Prefer))
        });
        let wanted = machine.map(|(text, _)| cut(text)).unwrap_or_default();
        let machine = machine.map(|(text, must)| (text.parse().ok(), must));
        Box::new(Self { aim: Aim { machine, areas, except: None }, wanted, timeout: None })
    }

    /// Tells the Machine that it is not the one that was wanted (PX-09), or that it is.
    pub(crate) fn note_place(&self, place: &Place, caller: &mut impl Caller) {
        let Some(wanted) = self.aim.preferred() else { return };
        let edit = match wanted == Some(place.endpoint().machine) {
            true => Edit::drop(UNAVAILABLE),
            false => Edit::set(UNAVAILABLE, self.wanted.clone()),
        };
        caller.edit_head(&edit);
    }
}

/// The beginning of a text that may be long.
fn cut(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(WANTED_BYTES_MAX).collect()
}

/// A place where the request wants to go; any for one that does not care.
pub(crate) async fn place(
    caller: &mut impl Caller,
    app: &Rc<App>,
    deadline: &mut Deadline,
    aimed: &Aimed,
) -> Result<Place, Failure> {
    if let Some(forced) = aimed.aim.forced() {
        let placed = forced_place(caller, app, deadline, (forced, aimed)).await;
        return placed.inspect_err(|failure| note_refused(caller, app, failure));
    }
    let port = caller.to().port();
    let mut last = None;
    for target in aimed.aim.targets() {
        let is_free = (target.among, target.except) == (Among::All, None);
        // As a region of one host is: whoever waits takes the first of its Machines then, and may wake another.
        let is_free =
            is_free || (matches!(target.among, Among::Area(_)) && app.allows_all(port, target));
        if is_free {
            return caller.place(app, deadline).await;
        }
        match place_among(caller, app, deadline, (target, Must::Prefer)).await? {
            Ok(place) => return Ok(place),
            Err(reason) => last = reason.or(last),
        }
    }
    let failure = last.map_or_else(nobody_there, Failure::from);
    note_refused(caller, app, &failure);
    Err(failure)
}

/// A place for who may wake nobody.
pub(crate) fn awake_place(caller: &mut impl Caller, hop: &Hop) -> Result<Place, Failure> {
    let targets = hop.aimed.as_ref().map(|aimed| aimed.aim.targets());
    let place = hop.app.choose_awake(caller.to().port(), targets.as_deref());
    let place = place.ok_or_else(|| {
        let (to, asked) = (caller.to(), Asked::Request(caller.head()));
        caller.directory().note_not_awake(&to, &hop.app, asked)
    })?;
    if let Some(aimed) = &hop.aimed {
        aimed.note_place(&place, caller);
    }
    Ok(place)
}

fn note_refused(caller: &impl Caller, app: &App, failure: &Failure) {
    if let Failure::Reply(_, text) | Failure::Unreached(_, text, _) = failure {
        app.note_turned_away(caller.to().cause(describe(caller.head())), text.clone());
    }
}

/// Only one Machine will do.
async fn forced_place(
    caller: &mut impl Caller,
    app: &Rc<App>,
    deadline: &mut Deadline,
    (machine, aimed): (Option<MachineId>, &Aimed),
) -> Result<Place, Failure> {
    let port = caller.to().port();
    let mut last = None;
    for attempt in 0..TRIES_MAX {
        if attempt != 0 {
            caller.unless_left(Box::pin(tokio::time::sleep(PAUSE))).await?;
        }
        let Some(machine) = machine else { continue };
        let target = Target { among: Among::Machine(machine), except: aimed.aim.except };
        match place_among(caller, app, deadline, (target, Must::Force)).await? {
            Ok(place) => return Ok(place),
            Err(reason @ (None | Some(NoPlace::StartsFailed(_) | NoPlace::Refused))) => {
                last = reason.or(last);
            }
            Err(Some(reason)) => return Err(reason.into()),
        }
    }
    Err(match (last, machine) {
        (Some(NoPlace::StartsFailed(reason)), _) => NoPlace::StartsFailed(reason).into(),
        (_, Some(machine)) if app.publishes(machine, port) => {
            let text = format!(
                "PM08 Machine {machine} cannot be started: it is cordoned, going, or autostart is off"
            );
            Failure::Unreached(503, text, Unreached::NoCandidate)
        }
        _ => {
            let text = format!("PR02 the app has no Machine {} at this port", aimed.wanted);
            Failure::Unreached(502, text, Unreached::NoCandidate)
        }
    })
}

/// A place in one of the Machines that are meant. Inside: why there is none; `None` if nothing there serves
/// the port. One Machine that is only preferred is not waited for when it is full, and for half of the time
/// when it sleeps: another one has to have a chance.
async fn place_among(
    caller: &mut impl Caller,
    app: &Rc<App>,
    deadline: &mut Deadline,
    (target, must): (Target, Must),
) -> Result<Result<Place, Option<NoPlace>>, Failure> {
    let (port, origin) = {
        let to = caller.to();
        (to.port(), to.origin(app))
    };
    let one = matches!(target.among, Among::Machine(_));
    let preferred = one && must == Must::Prefer;
    let mut last = None;
    for _ in 0..if one { 1 } else { TRIES_MAX } {
        let (machine, reason) = match app.choose_among(port, origin, target) {
            Ok(place) => return Ok(Ok(place)),
            Err(None) => break,
            Err(Some(hold)) => hold,
        };
        if preferred && reason == HoldReason::Full {
            return Ok(Err(Some(NoPlace::StayedFull)));
        }
        let cause = caller.to().cause(describe(caller.head()));
        let until = if preferred { deadline.halfway() } else { deadline.at() };
        let hold = Box::pin(app.hold_for(machine, cause, origin, reason, until));
        match caller.unless_left(hold).await? {
            Ok(place) => return Ok(Ok(place)),
            Err(failed @ (NoPlace::StartsFailed(_) | NoPlace::Refused)) => last = Some(failed),
            Err(other) => return Ok(Err(Some(other))),
        }
    }
    Ok(Err(last))
}

/// One host is one region; a request that must go to another cannot be served here.
fn nobody_there() -> Failure {
    let text = "PR04 no Machine of the app serves this port where the request must go";
    Failure::Unreached(503, text.to_owned(), Unreached::NoCandidate)
}
