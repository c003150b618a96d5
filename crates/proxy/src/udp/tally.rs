//! Datagrams that were lost, and why: counted, and told to the apps in question now and then.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use perch_core::datagrams::{WAITING_BYTES_MAX, WAITING_MAX};

use super::{Target, Udp};
use crate::Endpoints;

/// So often an app is told, at most.
const REPORT_INTERVAL: Duration =
    if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };
/// Services of which the losses of one interval are told; those of more are not.
const SERVICES_MAX: usize = 1024;

/// Why a datagram was lost.
#[derive(Debug, Clone)]
pub(super) enum Loss {
    /// Too many wait for their Machine already.
    Waiting,
    /// No session can be begun.
    Sessions,
    /// No Machine can be woken, in these words.
    NoMachine(String),
    /// The Machine's or the caller's end takes no more, or nobody listens.
    Refused,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Tally {
    lost: RefCell<HashMap<SocketAddr, Counts>>,
    reporting: Cell<bool>,
}

#[derive(Debug)]
struct Counts {
    /// One of those who sent them.
    ends: Endpoints,
    waiting: u64,
    sessions: u64,
    no_machine: u64,
    reason: String,
    refused: u64,
}

impl Tally {
    /// Counts; `true` if somebody has to report it.
    pub(super) fn note(&self, ends: Endpoints, loss: Loss) -> bool {
        let mut lost = self.lost.borrow_mut();
        if lost.len() == SERVICES_MAX && !lost.contains_key(&ends.dest) {
            return false;
        }
        let counts = lost.entry(ends.dest).or_insert_with(|| Counts::of(ends));
        match loss {
            Loss::Waiting => counts.waiting += 1,
            Loss::Sessions => counts.sessions += 1,
            Loss::Refused => counts.refused += 1,
            Loss::NoMachine(reason) => {
                counts.no_machine += 1;
                counts.reason = reason;
            }
        }
        !self.reporting.replace(true)
    }
}

impl Counts {
    fn of(ends: Endpoints) -> Self {
        let (waiting, sessions, no_machine, refused) = (0, 0, 0, 0);
        Self { ends, waiting, sessions, no_machine, reason: String::new(), refused }
    }

    fn text(&self, sessions_max: usize) -> String {
        let port = self.ends.dest.port();
        let mut text = format!("lost datagrams to port {port}/udp:");
        let parts = [
            (
                self.waiting,
                format!(
                    "while their Machine woke (each session keeps {WAITING_MAX} and {} KiB)",
                    WAITING_BYTES_MAX >> 10
                ),
            ),
            (
                self.sessions,
                format!("beyond the limit of sessions ({sessions_max}, a quarter for each caller)"),
            ),
            (self.no_machine, format!("without a Machine ({})", self.reason)),
            (self.refused, "that one end did not take".to_owned()),
        ];
        let some = parts.iter().filter(|(count, _)| 0 < *count);
        for (index, (count, words)) in some.enumerate() {
            let comma = if index == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _written = write!(text, "{comma} {count} {words}").is_ok();
        }
        text
    }
}

/// Tells what was lost, until nothing more is.
pub(super) async fn report(udp: Rc<Udp>) {
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        let lost = std::mem::take(&mut *udp.tally.lost.borrow_mut());
        if lost.is_empty() {
            udp.tally.reporting.set(false);
            return;
        }
        for counts in lost.values() {
            if let Target::App(app) = &udp.resolve(counts.ends).target {
                app.log(None, &counts.text(udp.sessions_max));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_by_its_reasons() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let ends = Endpoints { caller: at("[fdaa::1]:5"), dest: at("[fdaa::2]:53") };
        let tally = Tally::default();
        assert!(tally.note(ends, Loss::Waiting), "the first has to be reported");
        assert!(!tally.note(ends, Loss::Waiting), "the others with it");
        assert!(!tally.note(ends, Loss::NoMachine("PR01".to_owned())));
        let lost = tally.lost.borrow();
        let text = lost.values().next().expect("it was counted").text(64);
        let wanted = "lost datagrams to port 53/udp: 2 while their Machine woke (each session keeps 16 and \
                      64 KiB), 1 without a Machine (PR01)";
        assert_eq!(text, wanted);
    }
}
