//! When a Machine that is awake falls asleep, or what keeps it awake: for people, nothing is decided by it.
//!
//! The same rules as in `stop`, asked ahead: what would be, if nobody came or left any more.

use super::machine::Machine;
use super::pools::{PoolKey, pool_key};
use super::{Balancer, Effect, Server};
use crate::checks::Status;
use crate::ids::MachineId;
use crate::service::Autostop;
use crate::time::Timestamp;

/// What keeps a Machine awake although nobody uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Veto {
    /// It publishes nothing, so nothing puts it to sleep (AS-41).
    NoServices,
    /// `auto_stop_machines` is off on one of its services (AS-02).
    AutostopOff,
    /// Somebody holds it awake: a lease, or its own word that it is busy (MA-64).
    Held,
    /// It is cordoned (AS-61).
    Cordoned,
    /// `min_machines_running` of its region (AS-35).
    Floor {
        /// The number that is kept.
        floor: usize,
        /// Machines that run in the region.
        running: usize,
    },
    /// With the load of the others none is one too many (AS-31).
    NoExcess {
        /// Machines that run in the region.
        running: usize,
        /// Of them at or over `soft_limit`.
        over: usize,
    },
    /// Callers wait until its checks pass.
    Awaited,
    /// Its start was asked for and not answered.
    Starting,
    /// There is no server that could put it to sleep.
    NoServer,
}

impl Veto {
    /// Whether a sleep that was due is worth a record: the others last, and say so in the configuration.
    fn is_told(self) -> bool {
        match self {
            Self::Held | Self::Floor { .. } | Self::NoExcess { .. } => true,
            Self::NoServices
            | Self::AutostopOff
            | Self::Cordoned
            | Self::Awaited
            | Self::Starting
            | Self::NoServer => false,
        }
    }
}

/// What is to be said of a Machine that is awake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// The run that is up.
    pub run: u64,
    /// Requests, connections and sessions that keep it awake.
    pub load: u64,
    /// Connections that rest: they keep their place and are no load.
    pub parked: u64,
    /// Since when nobody has used it; the last use while somebody is inside.
    pub quiet_since: Timestamp,
    /// When its time without load is over, if there is none until then.
    pub due: Timestamp,
    /// How it will sleep.
    pub by: Autostop,
    /// It is on its way to sleep, or drained for something else.
    pub leaving: bool,
    /// What keeps it awake, load or not.
    pub vetoes: Vec<Veto>,
}

impl Balancer {
    /// What is to be said of a Machine; `None`: it is not awake, or not known.
    pub fn outlook(&self, id: MachineId) -> Option<Outlook> {
        let machine = self.machines.get(&id).filter(|machine| machine.is_up())?;
        Some(Outlook {
            run: machine.view.run,
            load: machine.in_flight(),
            parked: machine.parked(),
            quiet_since: machine.quiet_since,
            due: machine.idle_at(),
            by: machine.autostop(),
            leaving: machine.stop.is_some() || machine.drain.is_some() || machine.in_limbo,
            vetoes: self.vetoes(machine),
        })
    }

    fn vetoes(&self, machine: &Machine) -> Vec<Veto> {
        let Some(key) = pool_key(machine) else { return vec![Veto::NoServices] };
        let own = [
            (machine.autostop() == Autostop::Off, Veto::AutostopOff),
            (machine.view.leased, Veto::Held),
            (machine.view.cordoned, Veto::Cordoned),
            (self.is_awaited(machine), Veto::Awaited),
            (machine.start.is_some(), Veto::Starting),
            (self.server == Server::Lost, Veto::NoServer),
        ];
        let own = own.into_iter().filter_map(|(is_so, veto)| is_so.then_some(veto));
        own.chain(self.pool_veto(key, machine)).collect()
    }

    /// What the others of its pool and region mean for it.
    fn pool_veto(&self, key: PoolKey, machine: &Machine) -> Option<Veto> {
        if !machine.is_stoppable() {
            return None;
        }
        let census = self.census(key);
        let before = self.idle_before(key, machine);
        let (running, over) = (census.running, census.over);
        if machine.view.primary && running.saturating_sub(before) <= census.floor {
            return Some(Veto::Floor { floor: census.floor, running });
        }
        // Of those without load the last may sleep too, unless another one has too much.
        let spare = if over == 0 { running } else { usize::try_from(census.excess).unwrap_or(0) };
        (spare <= before).then_some(Veto::NoExcess { running, over })
    }

    /// How many others of its pool would sleep before it.
    fn idle_before(&self, key: PoolKey, machine: &Machine) -> usize {
        let order = |m: &Machine| (m.worst_health() == Status::Passing, m.quiet_since, m.view.id);
        let idle = self.members(key).filter(|m| m.is_stoppable() && m.in_flight() == 0);
        idle.filter(|other| order(other) < order(machine)).count()
    }

    /// Tells of sleeps that are due and do not happen, each once.
    pub(super) fn note_vetoes(&mut self, now: Timestamp) {
        let due = |m: &&Machine| m.may_rest() && m.in_flight() == 0 && m.idle_at() <= now;
        let due = self.machines.values().filter(due).filter(|m| m.vetoed != Some(m.idle_at()));
        let vetoed = due.filter_map(|m| {
            let veto = self.vetoes(m).into_iter().find(|veto| veto.is_told())?;
            Some((m.view.id, veto))
        });
        let vetoed: Vec<_> = vetoed.collect();
        for (id, veto) in vetoed {
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            machine.vetoed = Some(machine.idle_at());
            let run = machine.view.run;
            self.effects.push_back(Effect::Vetoed { machine: id, run, veto });
        }
    }
}
