//! Requests that say where they want to go (PX-30..33, PX-36): who takes them, and what they hear if nobody does.

use std::rc::Rc;
use std::time::Duration;

use perch_core::aim::{Aim, Among, Area, Must, Target};
use perch_core::balancer::HoldReason;
use perch_core::ids::MachineId;
use tokio::net::TcpStream;

use super::{Connection, Deadline, Failure, Incoming, Scratch, Unreached, describe, unless_left};
use crate::app::{App, NoPlace, Place};
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
pub(super) struct Aimed {
    pub(super) aim: Aim,
    /// The Machine that should take it, as it was written.
    pub(super) wanted: String,
    /// How long to try to reach a Machine, if not for the port's `start_timeout`.
    pub(super) timeout: Option<Duration>,
}

impl Aimed {
    /// Reads a head that we wrote.
    pub(super) fn of_head(head: &[u8]) -> Box<Self> {
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
    pub(super) fn note_place(&self, place: &Place, incoming: &mut Incoming, message: &mut Vec<u8>) {
        let Some(wanted) = self.aim.preferred() else { return };
        let edit = match wanted == Some(place.endpoint().machine) {
            true => Edit::drop(UNAVAILABLE),
            false => Edit::set(UNAVAILABLE, self.wanted.clone()),
        };
        incoming.head_len = edit.apply(message, incoming.head_len);
    }
}

/// The beginning of a text that may be long.
fn cut(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(WANTED_BYTES_MAX).collect()
}

impl Connection {
    /// A place where the request wants to go; [`Connection::place`] for one that does not care.
    pub(super) async fn aimed_place(
        &self,
        stream: &TcpStream,
        scratch: &mut Scratch,
        app: &Rc<App>,
        deadline: &mut Deadline,
        aimed: &Aimed,
    ) -> Result<Place, Failure> {
        scratch.answer = Vec::new();
        if let Some(forced) = aimed.aim.forced() {
            let placed = self.forced_place(stream, scratch, app, deadline, (forced, aimed)).await;
            return placed.inspect_err(|failure| self.note_refused(app, scratch, failure));
        }
        let port = self.to.port();
        let mut last = None;
        for target in aimed.aim.targets() {
            let is_free = (target.among, target.except) == (Among::All, None);
            // As a region of one host is: whoever waits takes the first of its Machines then, and may wake another.
            let is_free =
                is_free || (matches!(target.among, Among::Area(_)) && app.allows_all(port, target));
            if is_free {
                return self.place(stream, scratch, app, deadline).await;
            }
            match self.place_among(stream, scratch, app, deadline, (target, Must::Prefer)).await? {
                Ok(place) => return Ok(place),
                Err(reason) => last = reason.or(last),
            }
        }
        let failure = last.map_or_else(nobody_there, Failure::from);
        self.note_refused(app, scratch, &failure);
        Err(failure)
    }

    fn note_refused(&self, app: &Rc<App>, scratch: &Scratch, failure: &Failure) {
        if let Failure::Reply(_, text) | Failure::Unreached(_, text, _) = failure {
            app.note_turned_away(self.to.cause(describe(&scratch.request)), text.clone());
        }
    }

    /// Only one Machine will do.
    async fn forced_place(
        &self,
        stream: &TcpStream,
        scratch: &Scratch,
        app: &Rc<App>,
        deadline: &mut Deadline,
        (machine, aimed): (Option<MachineId>, &Aimed),
    ) -> Result<Place, Failure> {
        let port = self.to.port();
        let mut last = None;
        for attempt in 0..TRIES_MAX {
            if attempt != 0 {
                unless_left(stream, Box::pin(tokio::time::sleep(PAUSE))).await?;
            }
            let Some(machine) = machine else { continue };
            let target = Target { among: Among::Machine(machine), except: aimed.aim.except };
            match self.place_among(stream, scratch, app, deadline, (target, Must::Force)).await? {
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
        &self,
        stream: &TcpStream,
        scratch: &Scratch,
        app: &Rc<App>,
        deadline: &mut Deadline,
        (target, must): (Target, Must),
    ) -> Result<Result<Place, Option<NoPlace>>, Failure> {
        let origin = self.to.origin(app);
        let port = self.to.port();
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
            let cause = self.to.cause(describe(&scratch.request));
            let until = if preferred { deadline.halfway() } else { deadline.at() };
            let hold = Box::pin(app.hold_for(machine, cause, origin, reason, until));
            match unless_left(stream, hold).await? {
                Ok(place) => return Ok(Ok(place)),
                Err(failed @ (NoPlace::StartsFailed(_) | NoPlace::Refused)) => last = Some(failed),
                Err(other) => return Ok(Err(Some(other))),
            }
        }
        Ok(Err(last))
    }
}

/// One host is one region; a request that must go to another cannot be served here.
fn nobody_there() -> Failure {
    let text = "PR04 no Machine of the app serves this port where the request must go";
    Failure::Unreached(503, text.to_owned(), Unreached::NoCandidate)
}
