//! Connections that rest in a Machine while it sleeps, and what happens when one of them goes on.
//!
//! They wake that very run, not just any Machine of the pool: their other end is there.

use std::time::Duration;

use super::machine::{Drain, Machine};
use super::{Balancer, Claim, Effect, Server};
use crate::admission::Origin;
use crate::ids::MachineId;
use crate::lifecycle::MachineState;
use crate::mutant::Mutant;
use crate::service::{Autostart, Autostop, ServiceSpec};
use crate::time::Timestamp;

/// Connections wait for this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recalled {
    pub(super) run: u64,
    /// [`Origin::Heartbeat`] only if all of them have nothing else to say.
    pub(super) by: Origin,
}

/// What becomes of the connections that wait.
enum Recall {
    /// Their Machine is awake, or gone for good.
    GoOn,
    /// It sleeps, and can be woken.
    Wake,
    /// Something is under way, or nobody could wake it.
    Wait,
}

impl Machine {
    /// Connections of a Machine rest only if it is frozen rather than stopped, and a byte may wake it.
    pub(super) fn naps(&self, service: &ServiceSpec) -> Option<Duration> {
        let suspends = self.autostop() == Autostop::Suspend;
        (suspends && service.autostart == Autostart::On).then(|| self.auto_stop_after())
    }

    fn recall(&self, run: u64, now: Timestamp) -> Recall {
        let suspends = self.autostop() == Autostop::Suspend;
        if self.view.run != run {
            return Recall::GoOn;
        }
        if self.view.state == MachineState::Suspended || self.is_being_suspended() {
            let resting = self.retry_at.is_some_and(|at| now < at);
            let woken = self.view.services.iter().any(|s| s.autostart == Autostart::On);
            return match self.start.is_none() && !resting && woken {
                true => Recall::Wake,
                false => Recall::Wait,
            };
        }
        // It may be frozen: only the next server knows, or the server is about to say so.
        let unknown = self.in_limbo || self.drain == Some(Drain::Answered);
        if unknown && suspends { Recall::Wait } else { Recall::GoOn }
    }
}

impl Balancer {
    /// Whether bytes may go to the Machine although its word is closed: who is inside stays when it is
    /// cordoned or drained, and whose run has ended learns it from the Machine's side.
    pub fn goes_on(&self, claim: &Claim, now: Timestamp) -> bool {
        let endpoint = claim.endpoint();
        let awake = |m: &Machine| matches!(m.recall(endpoint.run, now), Recall::GoOn);
        let machine = self.machines.get(&endpoint.machine);
        !claim.is_parked() && endpoint.word.is_of(endpoint.run) && machine.is_none_or(awake)
    }

    pub(super) fn on_recall(&mut self, id: MachineId, run: u64, by: Origin) {
        match self.machines.get_mut(&id) {
            Some(machine) => {
                let before = machine.recalled.filter(|r| r.run == run && r.by != Origin::Heartbeat);
                machine.recalled = before.or(Some(Recalled { run, by }));
            }
            None => self.effects.push_back(Effect::Recalled { machine: id }),
        }
    }

    /// Wakes what is recalled, and lets go on what is awake.
    pub(super) fn recall(&mut self, now: Timestamp) {
        let recalled = self.machines.values().filter_map(|m| Some((m.view.id, m.recalled?.run)));
        for (id, run) in recalled.collect::<Vec<_>>() {
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            match machine.recall(run, now) {
                Recall::GoOn => {
                    machine.recalled = None;
                    self.recalled_at = Some(now);
                    self.effects.push_back(Effect::Recalled { machine: id });
                }
                Recall::Wake if self.mutant == Mutant::RecallIgnored => {}
                Recall::Wake if self.server == Server::Ready || machine.can_be_thawed() => {
                    self.ask_start(id, None, now);
                }
                Recall::Wake | Recall::Wait => {}
            }
        }
    }
}
