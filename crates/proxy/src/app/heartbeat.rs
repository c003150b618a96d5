//! Names those whose heartbeats reach a Machine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::heartbeat::{Heartbeat, Side};
use perch_core::ids::MachineId;
use perch_core::time::Timestamp;

use super::Place;
use crate::control::{HEARTBEAT, Source};
use crate::directory::Destination;
use crate::moderation;

/// One event an hour and Machine: they are for people, and few are kept.
const NAMED_EVERY: Duration = Duration::from_secs(3600);

/// When each Machine's heartbeats were last named.
pub(super) type Named = RefCell<BTreeMap<MachineId, Timestamp>>;

impl Place {
    /// What was passed on as a heartbeat belongs to something else.
    pub(crate) fn note_use(&self, origin: Origin) {
        if origin == Origin::Caller {
            self.claim().note_use();
        }
    }

    /// Says whose heartbeat this is, unless it was said of this Machine lately.
    pub(crate) fn name_heartbeat(&self, heartbeat: Option<Heartbeat>, to: &Destination) {
        let Some(heartbeat) = heartbeat else { return };
        let (machine, now) = (self.endpoint().machine, moderation::turn());
        let named = &self.app.naps.named;
        if named.borrow().get(&machine).is_some_and(|at| now.since(*at) < NAMED_EVERY) {
            return;
        }
        let text = in_words(heartbeat, to);
        if self.app.server.log_event(&self.app.name, machine, HEARTBEAT, text) {
            let mut named = named.borrow_mut();
            named.retain(|_, at| now.since(*at) < NAMED_EVERY);
            named.insert(machine, now);
        }
    }
}

fn in_words(heartbeat: Heartbeat, to: &Destination) -> String {
    let Heartbeat { leader, interval, caller_bytes, machine_bytes } = heartbeat;
    let who = match to.cause(None).source {
        Source::Machine { app, machine } => format!("app {app}, Machine {machine}"),
        Source::Host => "the host".to_owned(),
        Source::Unknown => "somebody unknown".to_owned(),
    };
    let (caller, port) = (to.endpoints.caller, to.endpoints.dest.port());
    let (said, follows) = match leader {
        Side::Caller => ("sends", "wakes the Machine, but does not keep it awake"),
        Side::Machine => ("answers", "does not keep the Machine awake"),
    };
    let seconds = interval.as_secs_f64();
    format!(
        "{who} ({caller}) {said} {caller_bytes} bytes, against {machine_bytes}, every {seconds:.1} s on an open connection to \
         port {port}: a heartbeat, which {follows}"
    )
}
