//! Wakes that the proxy does by itself, and how each Machine came up.

use std::rc::Rc;

use perch_core::balancer::{Event, MachineView, ThawOutcome};
use perch_core::fault::{self, Point};
use perch_core::ids::MachineId;
use perch_core::lifecycle::MachineState;
use perch_core::time::Timestamp;
use tokio::time::Instant;

use super::wait::Awaking;
use super::{App, Wake};
use crate::clock;
use crate::control::{Cause, Thaw};
use crate::freezer::Freezer;
use crate::server_side::OwnThaw;

impl App {
    /// The server has handed over what thaws a run.
    pub(crate) fn set_freezer(self: &Rc<Self>, machine: MachineId, freezer: Freezer) {
        let run = freezer.run();
        tracing::debug!(%machine, run, cpu_micros = freezer.cpu_micros(), "freezer taken");
        self.freezers.borrow_mut().insert(machine, freezer);
        self.handle(Event::Freezer { machine, run });
    }

    /// Thaws a run, and tells the server now or when there is one again. Connections from before its
    /// sleep are not used any more: its program may find at once that their time is over.
    pub(super) fn thaw(
        &self,
        machine: MachineId,
        run: u64,
        attempt: u64,
        cause: Option<Cause>,
    ) -> ThawOutcome {
        let (began, asked) = (Instant::now(), clock::now());
        fault::pass(Point::ProxyThawBegun);
        let thawed = match self.freezers.borrow().get(&machine) {
            Some(freezer) if freezer.run() == run => freezer.thaw(),
            Some(_) | None => return ThawOutcome::Failed,
        };
        fault::pass(Point::ProxyThawed);
        if let Err(error) = thawed {
            tracing::warn!(app = &*self.name, %machine, run, %error, "could not thaw a Machine");
            self.freezers.borrow_mut().remove(&machine);
            return ThawOutcome::Failed;
        }
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.upstreams.close(machine);
        self.note_thaw(machine, asked);
        self.server.thawed(machine, OwnThaw { attempt, thaw: Thaw { run, micros }, cause });
        ThawOutcome::Done
    }

    fn note_thaw(&self, machine: MachineId, asked: Timestamp) {
        let awaking = Awaking { by: Wake::Thaw, asked: Some(asked), up: Some(clock::now()) };
        self.wakes.borrow_mut().insert(machine, awaking);
        self.woken.borrow_mut().remove(&machine);
        for known in self.machines.borrow_mut().iter_mut().filter(|known| known.id == machine) {
            known.state = MachineState::Started;
        }
    }

    /// Compares with what was known, and forgets what is gone.
    pub(super) fn note_wakes(&self, machines: &[MachineView]) {
        let known = self.machines.borrow();
        let (mut wakes, mut woken) = (self.wakes.borrow_mut(), self.woken.borrow_mut());
        for machine in machines.iter().filter(|m| m.state == MachineState::Started) {
            let former = known.iter().find(|known| known.id == machine.id);
            if former.is_some_and(|f| f.run == machine.run && f.state == machine.state) {
                continue;
            }
            let same_run = former.is_some_and(|former| former.run == machine.run);
            let asleep = former.is_some_and(|former| {
                matches!(former.state, MachineState::Suspended | MachineState::Suspending)
            });
            let by = if same_run && asleep { Wake::Thaw } else { Wake::Start };
            let under_way = wakes.get(&machine.id).copied();
            // Of a start of ours it may be known already that it is over.
            let asked = under_way.and_then(|it| it.asked).filter(|_| former.is_some());
            let up = under_way.filter(|it| it.by == by).and_then(|it| it.up);
            let up = up.filter(|up| asked.is_some_and(|asked| asked <= *up));
            let awaking = Awaking { by, asked, up: up.or_else(|| Some(clock::now())) };
            wakes.insert(machine.id, awaking);
            woken.remove(&machine.id);
        }
        let is_there = |id: &MachineId| machines.iter().any(|m| m.id == *id);
        wakes.retain(|id, _| is_there(id));
        woken.retain(|id, _| is_there(id));
        self.freezers
            .borrow_mut()
            .retain(|id, freezer| machines.iter().any(|m| m.id == *id && m.run == freezer.run()));
    }

    /// The server is asked for a start.
    pub(super) fn note_asked(&self, machine: MachineId) {
        let awaking = Awaking { by: Wake::Start, asked: Some(clock::now()), up: None };
        self.wakes.borrow_mut().insert(machine, awaking);
    }

    /// It has done it.
    pub(super) fn note_up(&self, machine: MachineId) {
        if let Some(awaking) = self.wakes.borrow_mut().get_mut(&machine) {
            awaking.up.get_or_insert_with(clock::now);
        }
    }
}
