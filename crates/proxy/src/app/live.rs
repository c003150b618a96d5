//! Which Machines are awake and for how long, in words.

use perch_core::balancer::{Outlook, Veto};
use perch_core::ids::MachineId;

use super::App;
use crate::clock;
use crate::control::{Cause, HELD, HELD_TEXT, LiveMachine, Reason};
use crate::convert;

impl App {
    /// Those that are awake, and how many callers wait for a place.
    pub(crate) fn live(&self) -> (Vec<LiveMachine>, u64) {
        let machines = self.machines.borrow();
        let awake = machines.iter().filter_map(|known| {
            let outlook = self.balancer.borrow().outlook(known.id)?;
            Some(self.shown(known.id, outlook))
        });
        let awake = awake.collect();
        let waiting = self.queues.borrow().values().map(|queue| queue.waiters.len()).sum::<usize>();
        let aimed = self.aimed.borrow().values().map(|queue| queue.waiters.len()).sum::<usize>();
        (awake, (waiting + aimed) as u64)
    }

    /// Shows who waits for a place.
    pub(crate) fn see_held(&self, mut see: impl FnMut(&Cause)) {
        let (queues, aimed) = (self.queues.borrow(), self.aimed.borrow());
        let waiters =
            queues.values().chain(aimed.values()).flat_map(|queue| queue.waiters.values());
        waiters.for_each(|waiter| see(&waiter.cause));
    }

    fn shown(&self, machine: MachineId, outlook: Outlook) -> LiveMachine {
        let Outlook { run, parked, quiet_since, due, by, leaving, vetoes, .. } = outlook;
        let load = outlook.load + self.uncounted(machine, run);
        let now = clock::now();
        let sleeps = load == 0 && vetoes.is_empty() && !leaving;
        LiveMachine {
            machine: machine.to_string(),
            run,
            load,
            resting: parked,
            unused_ms: millis(now.since(quiet_since)),
            sleeps_in_ms: sleeps.then(|| millis(due.since(now))),
            by: convert::shown_autostop(by),
            leaving,
            reasons: vetoes.into_iter().map(reason).collect(),
        }
    }
}

fn millis(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// What keeps a Machine awake, for people.
pub(super) fn reason(veto: Veto) -> Reason {
    let (kind, text) = match veto {
        Veto::NoServices => {
            ("no_services", "it has no services, so nothing puts it to sleep".to_owned())
        }
        Veto::AutostopOff => {
            ("autostop_off", "auto_stop_machines is off on one of its services".to_owned())
        }
        Veto::Held => (HELD, HELD_TEXT.to_owned()),
        Veto::Cordoned => ("cordoned", "it is cordoned".to_owned()),
        Veto::Floor { floor, running } => (
            "min_machines_running",
            format!("min_machines_running = {floor}, and {running} run in its region"),
        ),
        Veto::NoExcess { running, over } => (
            "load_of_others",
            format!(
                "{running} run, of which {over} are at or over soft_limit: none is one too many"
            ),
        ),
        Veto::Awaited => ("awaited", "callers wait until its health checks pass".to_owned()),
        Veto::Starting => ("starting", "its start was asked for and is not over".to_owned()),
        Veto::NoServer => ("no_server", "there is no server that could put it to sleep".to_owned()),
    };
    Reason { kind: kind.to_owned(), text }
}
