//! Wakes without the server: a suspended Machine whose freezer the shell holds.
//!
//! Only a Machine of which the server has said that it is suspended: while it is still suspending, the
//! server may be about to freeze it, and a thaw that comes before that would be undone. Such a Machine is
//! woken by the server, which calls the suspend off (AS-56).

use super::machine::Machine;
use super::{Balancer, MachineView, ThawOutcome};
use crate::ids::MachineId;
use crate::lifecycle::MachineState;
use crate::mutant::Mutant;
use crate::time::Timestamp;

impl Machine {
    /// Frozen for sure, and the shell holds what thaws this very run.
    pub(super) fn can_be_thawed(&self) -> bool {
        self.view.state == MachineState::Suspended && self.freezer == Some(self.view.run)
    }

    /// The server's view, except that a run which the shell has thawed goes on until the server has
    /// heard of it.
    pub(super) fn with_thaw(&mut self, view: MachineView) -> MachineView {
        if view.run != self.view.run {
            (self.thawed, self.freezer) = (None, self.freezer.filter(|run| *run == view.run));
        }
        match view.state {
            MachineState::Suspended if self.thawed.is_some() => {
                MachineView { state: MachineState::Started, ..view }
            }
            _ => view,
        }
    }

    /// The server has heard of the thaw.
    pub(super) fn settle_thaw(&mut self, attempt: u64) {
        self.thawed = self.thawed.filter(|thawed| *thawed != attempt);
    }
}

impl Balancer {
    pub(super) fn on_freezer(&mut self, id: MachineId, run: u64) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.freezer = Some(run);
        }
    }

    pub(super) fn on_thawed(
        &mut self,
        id: MachineId,
        attempt: u64,
        outcome: ThawOutcome,
        now: Timestamp,
    ) {
        let forgotten = self.mutant == Mutant::ThawForgotten;
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if machine.start.is_none_or(|s| s.attempt != attempt) {
            return;
        }
        machine.start = None;
        match outcome {
            ThawOutcome::Done => {
                machine.thawed = (!forgotten).then_some(attempt);
                let run = machine.view.run;
                machine.on_started(run, now);
            }
            ThawOutcome::Failed => machine.freezer = None,
        }
        self.rebuild();
    }
}
