//! Callers who want certain Machines: their queues, one for each Machine and port.
//!
//! The same rules as for the queue of a port (`perch_core::balancer`, "How a shell drives it").

use std::rc::Rc;

use perch_core::admission::Origin;
use perch_core::aim::{Among, Target};
use perch_core::balancer::{AimedChoice, Claim, Event, FailReason, HoldReason};
use perch_core::ids::MachineId;
use perch_core::service::PublishedPort;
use tokio::time::Instant;

use super::{App, NoPlace, Place, Waiter, bounds};
use crate::clock;
use crate::control::Cause;

impl App {
    /// [`App::choose`] among some Machines; says for which one to wait.
    pub(crate) fn choose_among(
        self: &Rc<Self>,
        port: PublishedPort,
        origin: Origin,
        target: Target,
    ) -> Result<Place, Option<(MachineId, HoldReason)>> {
        let (random, now) = (clock::random(), clock::now());
        let choice = self.balancer.borrow().choose_among(port, origin, random, target, now);
        match choice {
            AimedChoice::Admitted(admission) => {
                let place = self.guard(admission.claim);
                if let Some(edge) = admission.edge {
                    self.handle(Event::Edge(edge));
                }
                Ok(place)
            }
            AimedChoice::Hold { machine, reason } => Err(Some((machine, reason))),
            AimedChoice::Refuse => Err(None),
        }
    }

    /// Takes a place in any Machine but this one, if there is one at once.
    pub(crate) fn choose_beside(
        self: &Rc<Self>,
        port: PublishedPort,
        origin: Origin,
        machine: MachineId,
    ) -> Option<Place> {
        let target = Target { among: Among::All, except: Some(machine) };
        self.choose_among(port, origin, target).ok()
    }

    /// Whether no Machine of this port is ruled out.
    pub(crate) fn allows_all(&self, port: PublishedPort, target: Target) -> bool {
        self.balancer.borrow().allows_all(port, target)
    }

    /// Whether some Machine takes callers now.
    pub(crate) fn is_up(&self, port: PublishedPort) -> bool {
        self.has_other(port, MachineId::from_low_bits(0))
    }

    /// Whether another Machine than this one would take a request now.
    pub(crate) fn has_other(&self, port: PublishedPort, machine: MachineId) -> bool {
        self.balancer.borrow().has_other(port, machine)
    }

    /// [`App::hold`] for one Machine.
    pub(crate) async fn hold_for(
        self: &Rc<Self>,
        machine: MachineId,
        cause: Cause,
        origin: Origin,
        reason: HoldReason,
        deadline: Instant,
    ) -> Result<Place, NoPlace> {
        let since = Instant::now();
        let (deadline, waiting_max) = bounds(reason, deadline, since);
        // Only requests say whom they want.
        let (port, begun) = (PublishedPort::tcp(cause.dest.port()), clock::now());
        if waiting_max <= self.waiting(port) + self.waiting_aimed(port) {
            return Err(NoPlace::QueueFull);
        }
        let (sender, answer) = tokio::sync::oneshot::channel();
        let number = self.last_ticket.get() + 1;
        self.last_ticket.set(number);
        let waiter = Waiter { since: begun, cause, origin, answer: sender };
        self.aimed.borrow_mut().entry((port, machine)).or_default().push(number, waiter);
        let mut ticket = AimedTicket { app: Rc::clone(self), port, machine, number };
        self.announce_aimed(port, machine);
        let outcome = tokio::time::timeout_at(deadline, answer).await;
        let waiter = ticket.leave();
        let (outcome, cause) = match outcome {
            Ok(Ok((outcome, cause))) => (outcome, Some(cause)),
            Ok(Err(_)) => (Err(NoPlace::Refused), None),
            Err(_) if reason == HoldReason::Full => {
                (Err(NoPlace::StayedFull), waiter.map(|it| it.cause))
            }
            Err(_) => (Err(self.not_started(port, since)), waiter.map(|it| it.cause)),
        };
        match (&outcome, cause) {
            (Ok(place), Some(cause)) => place.set_wait(begun, reason, cause),
            // Another Machine may take it.
            (Err(why), Some(cause)) => self.note_end(begun, cause, why.to_string()),
            (_, None) => {}
        }
        outcome
    }

    /// Who waits longest for this Machine.
    pub(super) fn cause_of_aimed(&self, port: PublishedPort, machine: MachineId) -> Option<Cause> {
        let queues = self.aimed.borrow();
        let queue = queues.get(&(port, machine))?;
        queue.waiters.first_key_value().map(|(_, waiter)| waiter.cause.clone())
    }

    pub(super) fn admit_aimed(self: &Rc<Self>, port: PublishedPort, claim: Claim) {
        let machine = claim.endpoint().machine;
        // A place that nobody takes any more is given back by its own drop.
        let place = self.guard(claim);
        if let Some(waiter) = self.pop_aimed(port, machine) {
            drop(waiter.answer.send((Ok(place), waiter.cause)));
        }
    }

    pub(super) fn fail_aimed(
        &self,
        port: PublishedPort,
        machine: MachineId,
        waiters: usize,
        reason: &FailReason,
    ) {
        for _ in 0..waiters {
            let Some(waiter) = self.pop_aimed(port, machine) else { return };
            drop(waiter.answer.send((Err(NoPlace::of(reason)), waiter.cause)));
        }
    }

    /// What a new balancer must hear.
    pub(super) fn aimed_events(&self) -> Vec<Event> {
        let queues = self.aimed.borrow();
        let events = queues.iter().map(|((port, machine), queue)| {
            let (waiting, own) = (queue.waiters.len(), queue.own);
            Event::Aimed { port: *port, machine: *machine, waiting, own }
        });
        events.collect()
    }

    fn pop_aimed(&self, port: PublishedPort, machine: MachineId) -> Option<Waiter> {
        let mut queues = self.aimed.borrow_mut();
        let queue = queues.get_mut(&(port, machine))?;
        let waiter = queue.pop();
        if queue.waiters.is_empty() {
            queues.remove(&(port, machine));
        }
        waiter
    }

    fn waiting_aimed(&self, port: PublishedPort) -> usize {
        let queues = self.aimed.borrow();
        let of_port = queues.iter().filter(|((at, _), _)| *at == port);
        of_port.map(|(_, queue)| queue.waiters.len()).sum()
    }

    fn announce_aimed(self: &Rc<Self>, port: PublishedPort, machine: MachineId) {
        let queued = {
            let queues = self.aimed.borrow();
            queues.get(&(port, machine)).map(|queue| (queue.waiters.len(), queue.own))
        };
        let (waiting, own) = queued.unwrap_or_default();
        self.handle(Event::Aimed { port, machine, waiting, own });
    }
}

/// A place in the queue of a Machine; leaves it when dropped.
#[derive(Debug)]
struct AimedTicket {
    app: Rc<App>,
    port: PublishedPort,
    machine: MachineId,
    number: u64,
}

impl AimedTicket {
    fn leave(&mut self) -> Option<Waiter> {
        let key = (self.port, self.machine);
        let removed = {
            let mut queues = self.app.aimed.borrow_mut();
            let removed = queues.get_mut(&key).and_then(|queue| queue.remove(self.number));
            if queues.get(&key).is_some_and(|queue| queue.waiters.is_empty()) {
                queues.remove(&key);
            }
            removed
        };
        if removed.is_some() {
            self.app.announce_aimed(self.port, self.machine);
        }
        removed
    }
}

impl Drop for AimedTicket {
    fn drop(&mut self) {
        if let Some(Waiter { since, cause, .. }) = self.leave() {
            self.app.note_left(since, cause);
        }
    }
}
