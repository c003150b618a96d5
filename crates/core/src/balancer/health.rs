//! Health of services, and what follows from it for who gets callers (MA-70, PX-64, PX-66).
//!
//! The warm path knows nothing of it: a Machine whose check does not pass has no place in the route of its
//! port, which is made anew when that changes.

use super::Balancer;
use super::machine::Machine;
use crate::checks::Status;
use crate::ids::MachineId;
use crate::mutant::Mutant;
use crate::service::PublishedPort;

impl Balancer {
    pub(super) fn on_checked(&mut self, id: MachineId, run: u64, service: usize, status: Status) {
        let machine = self.machines.get_mut(&id);
        let Some(machine) = machine.filter(|m| m.view.run == run) else { return };
        if machine.set_health(service, status) {
            self.rebuild();
        }
    }

    /// Whether callers of the port may go there.
    pub(super) fn serves_now(&self, machine: &Machine, port: PublishedPort) -> bool {
        machine.health_at(port) == Status::Passing || self.mutant == Mutant::UnfitServes
    }

    /// Takes callers of the port, or would if there was room.
    pub(super) fn is_capacity(&self, machine: &Machine, port: PublishedPort) -> bool {
        let counts = self.mutant == Mutant::UnfitIsCapacity || self.serves_now(machine, port);
        machine.is_open() && counts
    }

    /// Callers wait for it to pass: it must not fall asleep under them.
    pub(super) fn is_awaited(&self, machine: &Machine) -> bool {
        if self.mutant == Mutant::AwaitedSleeps {
            return false;
        }
        let anybody = self.waiting.keys();
        let aimed = self.aimed.keys().filter(|(_, id)| *id == machine.view.id);
        let ports = anybody.chain(aimed.map(|(port, _)| port));
        let mut own = ports.filter(|port| machine.publishes(**port));
        own.any(|port| machine.health_at(*port) != Status::Passing)
    }

    /// The run of a Machine whose health may be looked at: it is up, and nobody is about to put it to sleep.
    pub fn checkable(&self, machine: MachineId) -> Option<u64> {
        self.machines.get(&machine).filter(|m| m.is_checkable()).map(|m| m.view.run)
    }

    /// What is known of the checks of one service of a Machine; `None`: there is no such service.
    pub fn health(&self, machine: MachineId, service: usize) -> Option<Status> {
        self.machines.get(&machine)?.health_of(service)
    }

    /// Whether a Machine that is up publishes the port and gets no callers, because its checks do not pass.
    pub fn is_unfit(&self, port: PublishedPort) -> bool {
        let mut publishing = self.machines.values().filter(|m| m.publishes(port) && m.is_open());
        publishing.any(|m| m.health_at(port) != Status::Passing)
    }
}
