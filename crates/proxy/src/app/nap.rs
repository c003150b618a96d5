//! Connections that rest while their Machine sleeps: given back as load when nothing moves, and counted
//! again with the next byte, for which the Machine is woken first.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use perch_core::admission::{Origin, Refusal};
use perch_core::balancer::{Balancer, Edge, Event, HoldReason};
use perch_core::ids::MachineId;
use perch_core::time::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::heartbeat::Named;
use super::{App, NoPlace, Place};
use crate::clock;
use crate::control::Cause;

/// A Machine with resting connections is at work if it used more than one part in so many of a processor
/// since its load ended: a server that only waits uses a tenth of that.
const WORK_SHARE: u32 = 50;
/// Less is never work, however short the time: the look itself, a timer, a keep-alive.
const WORK_MIN: Duration = Duration::from_millis(5);

/// Why the Machine is woken, and who is told that it is awake.
type Waiting = Vec<(Cause, oneshot::Sender<()>)>;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Naps {
    waiting: RefCell<BTreeMap<(MachineId, u64), Waiting>>,
    pub(super) named: Named,
    /// What each Machine with resting connections had used when its load ended, and when that was.
    work: RefCell<BTreeMap<MachineId, (Timestamp, u64)>>,
}

impl Naps {
    /// For a new balancer.
    pub(super) fn recalls(&self) -> Vec<Event> {
        let waiting = self.waiting.borrow();
        waiting
            .keys()
            .map(|(machine, run)| (*machine, *run))
            .map(|(machine, run)| Event::Recall { machine, run, origin: Origin::Caller })
            .collect()
    }

    /// Of the first connection that waits for this Machine.
    pub(super) fn cause(&self, machine: MachineId) -> Option<Cause> {
        let waiting = self.waiting.borrow();
        let (_, first) = waiting.range((machine, 0)..=(machine, u64::MAX)).next()?;
        first.first().map(|(cause, _)| cause.clone())
    }

    pub(super) fn go_on(&self, machine: MachineId) {
        let mut waiting = self.waiting.borrow_mut();
        let keys: Vec<_> =
            waiting.range((machine, 0)..=(machine, u64::MAX)).map(|(key, _)| *key).collect();
        for (_, sender) in keys.iter().filter_map(|key| waiting.remove(key)).flatten() {
            // Who has left meanwhile has left.
            sender.send(()).ok();
        }
    }
}

impl App {
    /// Load has ended, and connections rest: what the program does from here on is its own work. If it
    /// was no use, its work began when the last use ended.
    pub(super) fn note_end_of_load(&self, machine: MachineId, used: bool) {
        if used || !self.naps.work.borrow().contains_key(&machine) {
            self.note_work(machine);
        }
    }

    /// Its own work begins here.
    fn note_work(&self, machine: MachineId) {
        let used = self.freezers.borrow().get(&machine).and_then(|freezer| freezer.cpu_micros());
        let mut work = self.naps.work.borrow_mut();
        match used {
            Some(used) => drop(work.insert(machine, (clock::now(), used))),
            None => drop(work.remove(&machine)),
        }
    }

    /// Whether a Machine with resting connections does something of its own. Looks once per decision.
    pub(super) fn is_at_work(&self, machine: MachineId, run: u64) -> bool {
        if !self.has_resting(machine, run) {
            return false;
        }
        let before = self.naps.work.borrow().get(&machine).copied();
        self.note_work(machine);
        let after = self.naps.work.borrow().get(&machine).copied();
        let (Some((since, before)), Some((now, after))) = (before, after) else { return false };
        is_work(now.since(since), Duration::from_micros(after.saturating_sub(before)))
    }

    /// Whether connections rest in this run, also if only a former balancer has counted them.
    fn has_resting(&self, machine: MachineId, run: u64) -> bool {
        let rest = |balancer: &Balancer| {
            balancer.belief(machine).is_some_and(|b| b.run == run && b.parked != 0)
        };
        rest(&self.balancer.borrow()) || self.former.borrow().iter().any(rest)
    }
}

fn is_work(time: Duration, used: Duration) -> bool {
    (time / WORK_SHARE).max(WORK_MIN) < used
}

impl Place {
    /// See `Endpoint::naps`.
    pub(crate) fn naps(&self) -> Option<Duration> {
        self.endpoint().naps
    }

    /// Whether bytes may go to the Machine: an open word is enough, only a closed one is thought over.
    pub(crate) fn is_ready(&self) -> bool {
        let claim = self.claim();
        claim.is_ready() || self.app.balancer.borrow().goes_on(claim, clock::now())
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.claim().is_parked()
    }

    /// Is no load from now on.
    pub(crate) fn park(&self) {
        self.feed(self.claim().park());
    }

    /// Is load again, unless the Machine sleeps or falls asleep.
    pub(crate) fn unpark(&self, origin: Origin) -> Result<(), Refusal> {
        self.claim().unpark(origin).map(|edge| self.feed(edge))
    }

    /// Waits until the Machine is awake again, and wakes it; it is load then. The wake is recorded as if
    /// it was a request's.
    pub(crate) async fn recall(
        &self,
        origin: Origin,
        deadline: Instant,
        cause: Cause,
    ) -> Result<(), NoPlace> {
        if self.is_awake_only() {
            self.app.note_turned_away(cause, NoPlace::NotAwake.to_string());
            return Err(NoPlace::NotAwake);
        }
        let begun = clock::now();
        let (machine, run) = (self.endpoint().machine, self.endpoint().run);
        let (sender, receiver) = oneshot::channel();
        let waiter = (cause.clone(), sender);
        self.app.naps.waiting.borrow_mut().entry((machine, run)).or_default().push(waiter);
        self.app.handle(Event::Recall { machine, run, origin });
        match tokio::time::timeout_at(deadline, receiver).await {
            Ok(_) => {}
            Err(_elapsed) => {
                self.app.note_refusal(Some(begun), cause, &NoPlace::NotStarted);
                return Err(NoPlace::NotStarted);
            }
        }
        let edge = self.claim().go_on(origin).map_err(|_| NoPlace::Refused)?;
        self.feed(edge);
        if origin == Origin::Heartbeat {
            // It is not load that ends the next time, so what it uses is measured from here.
            self.app.note_work(machine);
        }
        self.set_wait(begun, HoldReason::Wake, cause);
        self.note_answered();
        Ok(())
    }

    fn feed(&self, edge: Option<Edge>) {
        if let Some(edge) = edge {
            self.app.handle(Event::Edge(edge));
        }
    }
}

#[cfg(test)]
mod tests;
