//! New connections that a Machine closes without an answer, for requests of HTTP/1.1 and of HTTP/2: how many, and the wait
//! until its run is known as ended (PX-70).

use std::time::Duration;

use perch_core::balancer::Endpoint;
use perch_core::ids::MachineId;

use crate::app::Place;

/// New connections that one run may close without an answer: a dying one can take two while it is killed, its sockets
/// are closed one by one.
const SILENT_MAX: u32 = 2;
/// How long a run that has closed so many has to be known as ended: the longest pause between two tries (AS-69).
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often it is looked at meanwhile; rare, so that nobody has to be told of each end.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What one request has met.
#[derive(Debug, Default)]
pub(crate) struct Silent {
    /// The first run that did so, and how often any did.
    first: Option<(MachineId, u64, u32)>,
}

impl Silent {
    /// Notes one more; whether the request may be sent again. It may have been a dying run's: if the next run does the
    /// same, or this one goes on, that is the program's doing.
    pub(crate) fn may_repeat(&mut self, place: &Place) -> bool {
        let Endpoint { machine, run, .. } = *place.endpoint();
        let (first, first_run, count) = self.first.unwrap_or((machine, run, 0));
        self.first = Some((first, first_run, count + 1));
        (first, first_run) == (machine, run) && count < SILENT_MAX
    }

    /// Whether all that is allowed was closed: the next try waits for [`until_ended`].
    pub(crate) fn is_spent(&self) -> bool {
        self.first.is_some_and(|(.., count)| SILENT_MAX <= count)
    }
}

/// Waits until a run is known as ended, or is not: the request is tried again in both cases.
pub(crate) async fn until_ended(place: &Place) {
    let ended = async {
        while place.is_current() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    // Ignored, as said.
    let _elapsed = tokio::time::timeout(PAUSE_MAX, ended).await.is_err();
}
