//! Autostart: who must wake (AS-67..74, AS-85).

use std::cmp::Reverse;
use std::sync::atomic::Ordering;

use super::machine::{Machine, Readiness};
use super::{Balancer, Effect, Server};
use crate::checks::Status;
use crate::ids::MachineId;
use crate::mutant::Mutant;
use crate::service::PublishedPort;
use crate::time::Timestamp;

/// What a port's Machines carry and what they are asked for.
struct Demand {
    waiting: u64,
    in_flight: u64,
    running: u64,
    starting: u64,
    soft: u64,
}

impl Demand {
    /// ceil(demand / soft) − running − starting.
    fn starts_wanted(&self) -> usize {
        let wanted = (self.waiting + self.in_flight).div_ceil(self.soft);
        wanted.saturating_sub(self.running + self.starting) as usize
    }
}

impl Balancer {
    /// Asks for as many starts as those who wait need.
    pub(super) fn wake(&mut self, now: Timestamp) {
        let segments: Vec<(PublishedPort, PublishedPort)> =
            self.segments.iter().map(|(s, g)| (*s, g.end)).collect();
        for (start, end) in segments {
            if self.waiting.range(start..=end).next().is_some() {
                self.wake_for(start, end, now);
            }
        }
    }

    /// A caller was let in at or over `soft_limit`, because all that run are (AS-71). Load alone, as
    /// long as nobody new comes, wakes nothing: it does not move, so autostop would put to sleep as
    /// excess what was woken, for ever.
    pub(super) fn on_pressure(&mut self, id: MachineId, service: usize, now: Timestamp) {
        let Some(machine) = self.machines.get(&id) else { return };
        let ports = machine.view.services.get(service).map(|s| s.published().collect::<Vec<_>>());
        for (first, _) in ports.unwrap_or_default() {
            let segment = self.segments.last_up_to(&first);
            if let Some((start, end)) = segment.map(|(start, s)| (*start, s.end)) {
                self.wake_for(start, end, now);
            }
        }
    }

    /// Lets the warm path report pressure wherever something could relieve it.
    pub(super) fn listen_for_pressure(&self, now: Timestamp) {
        for (start, segment) in self.segments.iter() {
            let publishing = || self.machines.values().filter(|m| m.publishes(*start));
            let drained = publishing().any(Machine::is_excess_drained);
            let spare = drained || self.next_to_wake(*start, now).is_some();
            let coming = |m: &Machine| m.is_starting() || m.is_settling_at(*start);
            let relief = spare && !publishing().any(coming);
            segment.route.relief.store(relief, Ordering::Release);
        }
    }

    fn wake_for(&mut self, start: PublishedPort, end: PublishedPort, now: Timestamp) {
        let caller = self.waiting.range(start..=end).next().map(|(port, _)| *port);
        for _ in 0..self.demand(start, end, now).starts_wanted() {
            if self.put_back(start) {
                self.admit_waiting(now);
                if self.waiting.range(start..=end).next().is_none() {
                    return;
                }
            } else if let Some((_, id)) = self.next_to_wake(start, now) {
                self.ask_start(id, caller, now);
            } else {
                return;
            }
        }
    }

    fn demand(&self, start: PublishedPort, end: PublishedPort, now: Timestamp) -> Demand {
        let publishing = || self.machines.values().filter(|m| m.publishes(start));
        let open = || publishing().filter(|m| self.is_capacity(m, start));
        let waiting: usize = self.waiting.range(start..=end).map(|(_, waiting)| waiting).sum();
        let carried = |m: &Machine| match self.mutant {
            Mutant::RestingTakesNoPlace => m.load_at(start),
            _ => m.carried_at(start),
        };
        let in_flight: u64 = open().map(carried).sum();
        let starting = match self.mutant {
            Mutant::StartIssuedTwice => 0,
            _ => self.starting(start, now),
        };
        Demand {
            waiting: waiting as u64,
            in_flight,
            running: open().count() as u64,
            starting,
            soft: publishing().filter_map(|m| m.soft_limit(start)).min().unwrap_or(1),
        }
    }

    /// Starts that will be over soon. One that waits behind a stop counts only while there is nothing
    /// better to wake: callers must not wait for a slow stop while another Machine just sleeps.
    fn starting(&self, port: PublishedPort, now: Timestamp) -> u64 {
        let next = self.next_to_wake(port, now);
        let better = next.is_some_and(|(readiness, _)| readiness < Readiness::GoingDown);
        let publishing = self.machines.values().filter(|m| m.publishes(port) && m.is_starting());
        let starting = publishing.filter(|m| !(better && m.is_starting_behind_a_stop())).count();
        let settling =
            self.machines.values().filter(|m| m.publishes(port) && m.is_settling_at(port));
        (starting + settling.count()) as u64
    }

    /// A Machine that was being drained as one too many is needed after all, if it can take anybody.
    fn put_back(&mut self, port: PublishedPort) -> bool {
        let drained = |m: &&mut Machine| {
            m.publishes(port)
                && m.is_excess_drained()
                && m.has_room_at(port)
                && m.health_at(port) == Status::Passing
        };
        let found = self.machines.values_mut().find(drained);
        found.map(Machine::clear_drain).is_some()
    }

    /// Suspended before stopped, then the one that fell asleep last, then by ID (AS-68); after all others
    /// those in which nobody else can enter, wherever they are.
    fn next_to_wake(&self, port: PublishedPort, now: Timestamp) -> Option<(Readiness, MachineId)> {
        let alone = self.server == Server::Lost;
        let twice = self.mutant == Mutant::StartIssuedTwice;
        let free = |m: &&Machine| {
            m.is_there() && (twice || m.start.is_none()) && (!alone || m.can_be_thawed())
        };
        let ranked = self.machines.values().filter(free).filter_map(|m| {
            let readiness = m.readiness(port, now)?;
            let far = m.view.region != self.settings.region;
            let full = matches!(readiness, Readiness::Full | Readiness::Unfit);
            Some((full, far, readiness, Reverse(m.slept_at), m.view.id))
        });
        ranked.min().map(|(_, _, readiness, _, id)| (readiness, id))
    }

    pub(super) fn ask_start(&mut self, id: MachineId, port: Option<PublishedPort>, now: Timestamp) {
        let attempt = self.next_attempt(now);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.set_start(attempt, now);
        let run = machine.view.run;
        self.effects.push_back(match machine.can_be_thawed() {
            true => Effect::Thaw { machine: id, run, attempt, port },
            false => Effect::Start { machine: id, attempt, port },
        });
    }
}
