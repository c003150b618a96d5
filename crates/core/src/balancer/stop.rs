//! Autostop: who may sleep (AS-30..43, AS-61..65 as DESIGN 4 has them).

use super::machine::{Drain, Machine};
use super::pools::{PoolKey, pool_key};
use super::{Balancer, DRAIN_TIMEOUT, Effect, Server, StopReason};
use crate::checks::Status;
use crate::ids::MachineId;
use crate::mutant::Mutant;
use crate::time::Timestamp;

/// A pool in one region, as the rules count it.
pub(super) struct Census {
    pub(super) running: usize,
    pub(super) over: usize,
    pub(super) excess: i64,
    pub(super) floor: usize,
}

impl Census {
    /// Whether one Machine less would still be within `min_machines_running` (AS-35).
    fn is_above_floor(&self, primary: bool) -> bool {
        !primary || self.floor < self.running
    }
}

impl Balancer {
    /// Puts to sleep what may sleep now, and ends drains that have done their work or their time.
    pub(super) fn sleep(&mut self, now: Timestamp) {
        if self.server == Server::Lost || self.retired {
            return;
        }
        let keys: Vec<PoolKey> = self.clocks.keys().copied().collect();
        for key in keys {
            self.finish_drains(key, now);
            while let Some((id, reason)) = self.idle_victim(key, now) {
                if !self.try_sleep(id, reason, now) {
                    break;
                }
            }
            self.mark_excess(key, now);
            self.drain_excess(key, now);
        }
    }

    pub(super) fn census(&self, key: PoolKey) -> Census {
        let counted = || self.members(key).filter(|m| m.is_counted());
        let (running, over) = (counted().count(), self.over(key));
        let one = i64::from(self.mutant != Mutant::ExcessOffByOne);
        let floor = match self.mutant {
            Mutant::FloorIgnored => 0,
            _ => counted().map(Machine::min_machines_running).max().unwrap_or(0),
        };
        Census { running, over, excess: running as i64 - (over as i64 + one), floor }
    }

    fn over(&self, key: PoolKey) -> usize {
        let everywhere = self.mutant == Mutant::OtherRegionsLoadCounted;
        let here = |m: &&Machine| pool_key(m) == Some(key) || (everywhere && m.pool == Some(key.0));
        let counted = self.machines.values().filter(here).filter(|m| m.is_counted());
        counted.filter(|m| m.is_over()).count()
    }

    /// The Machine that has been quiet longest, if its time is over and the pool can spare it.
    fn idle_victim(&self, key: PoolKey, now: Timestamp) -> Option<(MachineId, StopReason)> {
        let census = self.census(key);
        let due = self
            .members(key)
            .filter(|m| m.is_stoppable() && m.in_flight() == 0 && m.idle_at() <= now)
            .filter(|m| !self.is_awaited(m));
        // Who serves nobody goes first.
        let fit = |m: &Machine| m.worst_health() == Status::Passing;
        let victim = due.min_by_key(|m| (fit(m), m.quiet_since, m.view.id))?;
        if !census.is_above_floor(victim.view.primary) {
            return None;
        }
        let quiet = now.since(victim.quiet_since);
        let Census { running, over, excess, .. } = census;
        let reason = match running {
            1 => StopReason::Idle { quiet },
            _ if excess < 1 => return None,
            _ => StopReason::ExcessIdle { running, over, quiet },
        };
        Some((victim.view.id, reason))
    }

    /// Chooses and closes in one step: a request that came in the meantime keeps it awake.
    fn try_sleep(&mut self, id: MachineId, reason: StopReason, now: Timestamp) -> bool {
        let open = self.mutant == Mutant::VictimNotClosed;
        let Some(machine) = self.machines.get_mut(&id) else { return false };
        if !open && machine.close_if_idle(now).is_err() {
            return false;
        }
        self.ask_stop(id, reason, now);
        true
    }

    fn ask_stop(&mut self, id: MachineId, reason: StopReason, now: Timestamp) {
        let attempt = self.next_attempt(now);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.set_stop(attempt);
        let run = machine.view.run;
        self.effects.push_back(Effect::Stop { machine: id, run, attempt, reason });
    }

    // ---- excess with load ---------------------------------------------------------------------

    fn mark_excess(&mut self, key: PoolKey, now: Timestamp) {
        let excess = 1 <= self.census(key).excess;
        if let Some(clock) = self.clocks.get_mut(&key) {
            clock.excess_since = excess.then(|| clock.excess_since.unwrap_or(now));
        }
    }

    /// Takes the least loaded Machine out of rotation if there has been one too many for long.
    fn drain_excess(&mut self, key: PoolKey, now: Timestamp) {
        let Some((id, at)) = self.excess_victim(key) else { return };
        if now < at {
            return;
        }
        if let Some(clock) = self.clocks.get_mut(&key) {
            clock.drained_at = Some(now);
        }
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.set_drain(Drain::Excess { until: now + DRAIN_TIMEOUT });
        }
        self.mark_excess(key, now);
    }

    /// Which loaded Machine is one too many, and when it may be drained.
    fn excess_victim(&self, key: PoolKey) -> Option<(MachineId, Timestamp)> {
        let clock = self.clocks.get(&key)?;
        let since = clock.excess_since?;
        let census = self.census(key);
        // Those without load sleep by their own clocks; what remains is excess with load.
        let idle = self.members(key).filter(|m| m.is_stoppable() && m.in_flight() == 0).count();
        if census.excess <= idle as i64 || self.members(key).any(Machine::is_excess_drained) {
            return None;
        }
        let loaded = self.members(key).filter(|m| m.is_stoppable() && m.in_flight() > 0);
        let victim = loaded.min_by_key(|m| (m.in_flight(), m.quiet_since, m.view.id))?;
        if !census.is_above_floor(victim.view.primary) {
            return None;
        }
        let last = clock.drained_at.map_or(since, |drained| drained.max(since));
        Some((victim.view.id, last + victim.auto_stop_after()))
    }

    fn finish_drains(&mut self, key: PoolKey, now: Timestamp) {
        let drained = self.members(key).filter_map(|m| match m.drain {
            Some(Drain::Excess { until }) => Some((m.view.id, m.in_flight(), until)),
            Some(Drain::Server { .. } | Drain::Answered) | None => None,
        });
        let drained: Vec<_> = drained.collect();
        for (id, in_flight, until) in drained {
            if in_flight == 0 {
                self.finish_drain(key, id, now);
            } else if until <= now {
                self.end_drain_in_vain(id, now);
            }
        }
    }

    /// Empty: asleep, if it is still one too many. It is closed and not counted as running.
    fn finish_drain(&mut self, key: PoolKey, id: MachineId, now: Timestamp) {
        let census = self.census(key);
        let awaited = self.machines.get(&id).is_some_and(|m| self.is_awaited(m));
        let Some(machine) = self.machines.get_mut(&id) else { return };
        // The census leaves it out; with it excess is one more, and must be at least one.
        let spare = 0 <= census.excess;
        let floor = census.floor.max(machine.min_machines_running());
        let above = !machine.view.primary || floor <= census.running;
        let free = machine.start.is_none() && !machine.view.leased && !machine.view.cordoned;
        let free = free && !awaited;
        if spare && above && free && 1 <= census.running {
            self.ask_stop(id, StopReason::ExcessDrained, now);
        } else {
            machine.clear_drain();
        }
    }

    /// Load remains: back into rotation, nothing is cut (AS-63).
    fn end_drain_in_vain(&mut self, id: MachineId, now: Timestamp) {
        if self.mutant == Mutant::DrainCutsLoad {
            self.ask_stop(id, StopReason::ExcessDrained, now);
        } else if let Some(machine) = self.machines.get_mut(&id) {
            machine.clear_drain();
        }
    }

    /// When the rules of pools, not of single Machines, have to be looked at again.
    pub(super) fn pool_timeouts(
        &self,
        now: Timestamp,
    ) -> impl Iterator<Item = (Timestamp, &'static str)> {
        let victims = self.clocks.keys().filter_map(|key| self.excess_victim(*key));
        victims.map(|(_, at)| (at, "excess long enough")).filter(move |(at, _)| now < *at)
    }
}
