//! Hands what thaws a Machine to the proxy, so that it wakes the Machine without asking us.
//!
//! With the first view that calls a run started whose services suspend it, or that calls it suspending
//! or suspended, whoever wished that. The proxy keeps the descriptors as long as the run is the newest.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::linux::fs::MetadataExt;
use std::sync::Arc;

use perch_api::wire::{Autostop, MachineState};
use perch_core::lifecycle;
use perch_machine::{Freezer, Machine};
use perch_proxy::control::{LinkError, LinkSender, ToProxy};

use super::machine::{Command, Status};
use super::records::MachineRecord;
use super::world::World;

/// The runs whose descriptors a proxy has, by Machine.
#[derive(Debug, Default)]
pub(crate) struct Handed(BTreeMap<String, u64>);

impl Handed {
    /// Hands over what this app's Machines need and the proxy has not.
    pub(crate) async fn complete(
        &mut self,
        world: &World,
        sender: &mut LinkSender,
        app: &str,
    ) -> Result<(), LinkError> {
        for (id, machine) in self.missing(world, app) {
            let run = machine.run();
            let freezer = match machine.freezer() {
                Ok(freezer) => freezer,
                // It has just ended, or cannot be frozen; a start asks us then.
                Err(error) => {
                    tracing::debug!(machine = id, run, %error, "no freezer to hand over");
                    continue;
                }
            };
            self.0.insert(id.clone(), run);
            send(sender, id, run, &freezer).await?;
        }
        Ok(())
    }

    fn missing(&mut self, world: &World, app: &str) -> Vec<(String, Arc<Machine>)> {
        let catalog = world.keeper.read();
        let machines = catalog.machines_of(app).filter_map(|record| {
            let status = world.handle(&record.id)?.status();
            let needed = needs_freezer(record, &status);
            let machine = status.running.filter(|machine| needed && machine.run() == status.run)?;
            let known = self.0.get(&record.id) == Some(&machine.run());
            (!known).then(|| (record.id.clone(), machine))
        });
        let machines: Vec<_> = machines.collect();
        if !machines.is_empty() {
            // Those that were destroyed. Only now, so that nobody pays for it with each change.
            self.0.retain(|id, _| catalog.machines.contains_key(id));
        }
        machines
    }
}

fn needs_freezer(record: &MachineRecord, status: &Status) -> bool {
    match status.state {
        MachineState::Suspending | MachineState::Suspended => true,
        MachineState::Started => {
            let view = record.config.view();
            view.services.iter().any(|service| service.autostop == Autostop::Suspend)
        }
        _ => false,
    }
}

async fn send(
    sender: &mut LinkSender,
    machine: String,
    run: u64,
    freezer: &Freezer,
) -> Result<(), LinkError> {
    let failed = |source| LinkError::Io { what: "hand a freezer to", source };
    let file = std::fs::File::from(freezer.file.try_clone().map_err(failed)?);
    let inode = file.metadata().map_err(failed)?.st_ino();
    let (thaw, cpu) = (freezer.thaw.to_owned(), freezer.cpu.is_some());
    let message = ToProxy::Freezer { machine, run, thaw, inode, cpu };
    let mut descriptors = vec![freezer.file.as_fd()];
    descriptors.extend(freezer.cpu.iter().map(AsFd::as_fd));
    sender.send_with(&message, &descriptors).await
}

/// Looks whether all that is called suspended is frozen: an earlier proxy may have thawed it and died
/// before it could say so.
pub(crate) async fn look_for_thawed(world: &World) {
    for handle in world.handles() {
        if handle.status().state == MachineState::Suspended {
            handle.send(Command::LookWhetherFrozen).await;
        }
    }
}

/// What an adopted run is, by the word of the proxy that greeted us.
pub(crate) fn found(
    machine: &Machine,
    config_version: u64,
    thawed: &BTreeMap<String, u64>,
) -> lifecycle::Found {
    let run = machine.run();
    if machine.settle_freeze() {
        return lifecycle::Found::Frozen { run, config_version };
    }
    match thawed.get(&machine.spec().machine) == Some(&run) {
        true => lifecycle::Found::Thawed { run, config_version },
        false => lifecycle::Found::Running { run, config_version },
    }
}
