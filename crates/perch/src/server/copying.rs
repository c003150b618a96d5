//! Machines whose volumes are being copied: they are not put to sleep meanwhile.
//!
//! While a volume is held still for its copy, a program that writes to it waits in the kernel and cannot be frozen; its
//! suspend would end as a stop. For the proxy such a Machine is like one whose lease somebody holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use perch_api::wire::MachineState;
use tokio::sync::oneshot;

use super::api;
use super::machine::Command;
use super::records::VolumeRecord;
use super::world::{World, lock};

/// How many copies are being made of the volume of each Machine.
#[derive(Debug, Default)]
pub(crate) struct Copying(Mutex<BTreeMap<String, u32>>);

impl Copying {
    /// Whether the Machine's volume is being copied.
    pub(crate) fn is_of(&self, machine: &str) -> bool {
        lock(&self.0).contains_key(machine)
    }

    fn begin(&self, machine: &str) {
        *lock(&self.0).entry(machine.to_owned()).or_default() += 1;
    }

    fn end(&self, machine: &str) {
        let mut all = lock(&self.0);
        let Some(count) = all.get_mut(machine) else { return };
        *count -= 1;
        if *count == 0 {
            all.remove(machine);
        }
    }
}

/// A copy that is being made; the Machine may sleep again when this is dropped.
#[derive(Debug)]
pub(crate) struct Copy {
    world: Arc<World>,
    app: String,
    machine: String,
}

impl Copy {
    /// Keeps the Machine that has the volume awake if it is; one that is falling asleep sleeps when this returns.
    pub(crate) async fn begin(world: &Arc<World>, volume: &VolumeRecord) -> Option<Self> {
        let machine = volume.machine.clone()?;
        world.copying.begin(&machine);
        let copy = Self { world: world.clone(), app: volume.app.clone(), machine };
        copy.announce().await;
        copy.settled().await;
        Some(copy)
    }

    async fn announce(&self) {
        api::announce_kept(&self.world, &self.app, &self.machine).await;
    }

    async fn settled(&self) {
        let Some(handle) = self.world.handle(&self.machine) else { return };
        let mut status = handle.watch();
        // It hears one thing after the other: this answer comes after it has heard of the copy.
        let (reply, heard) = oneshot::channel();
        if handle.send(Command::Run { reply }).await && heard.await.is_ok() {
            // A Machine that is gone meanwhile does not sleep either.
            status.wait_for(|status| status.state != MachineState::Suspending).await.ok();
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.world.copying.end(&self.machine);
        let (world, app, machine) = (self.world.clone(), self.app.clone(), self.machine.clone());
        self.world.tracker.spawn(async move { api::announce_kept(&world, &app, &machine).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_kept_until_the_last_copy_is_made() {
        let copying = Copying::default();
        copying.begin("a");
        copying.begin("a");
        copying.end("a");
        assert!(copying.is_of("a") && !copying.is_of("b"));
        copying.end("a");
        assert!(!copying.is_of("a"));
    }
}
