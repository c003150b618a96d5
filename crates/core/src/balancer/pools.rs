//! Which Machines belong together: routes per published port, pools per set of shared ports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::machine::Machine;
use super::route::WhenNone;
use super::{Balancer, Route};
use crate::ids::Region;
use crate::service::{PublishedPort, ServiceSpec};
use crate::time::Timestamp;

/// One pool in one region: what autostop judges (AS-34).
pub(super) type PoolKey = (PublishedPort, Region);

/// Ports of one pool that all lead to the same Machines.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) end: PublishedPort,
    pub(super) route: Arc<Route>,
}

/// What has to be remembered of a pool between events.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PoolClock {
    /// Since when there has been excess without interruption.
    pub(super) excess_since: Option<Timestamp>,
    /// When a loaded Machine was last taken out.
    pub(super) drained_at: Option<Timestamp>,
}

type Ranges = Vec<(PublishedPort, PublishedPort)>;

impl Balancer {
    /// Makes routes and pools anew from the Machines.
    pub(super) fn rebuild(&mut self) {
        let sets: BTreeSet<Ranges> = self.machines.values().map(ranges).collect();
        let pools = pools(&sets);
        for machine in self.machines.values_mut() {
            machine.pool = pools.get(&ranges(machine)).copied();
        }
        self.segments =
            segments(&sets).into_iter().filter_map(|(s, e)| self.segment(s, e)).collect();
        let alive: BTreeSet<PoolKey> = self.machines.values().filter_map(pool_key).collect();
        let clock = |key: &PoolKey| self.clocks.get(key).copied().unwrap_or_default();
        self.clocks = alive.into_iter().map(|key| (key, clock(&key))).collect();
    }

    fn segment(
        &self,
        start: PublishedPort,
        end: PublishedPort,
    ) -> Option<(PublishedPort, Segment)> {
        let publishing = || self.machines.values().filter(|m| m.publishes(start));
        publishing().next()?;
        let home = self.settings.region;
        let hold = publishing().any(|m| m.may_serve(start));
        let route = Route {
            endpoints: publishing()
                .filter(|m| self.serves_now(m, start))
                .filter_map(|m| m.endpoint(start, home))
                .map(Arc::new)
                .collect(),
            when_none: if hold { WhenNone::Hold } else { WhenNone::Refuse },
            relief: AtomicBool::new(false),
            mutant: self.mutant,
            stale_pick: AtomicUsize::new(usize::MAX),
        };
        Some((start, Segment { end, route: Arc::new(route) }))
    }

    /// Machines of one pool in one region.
    pub(super) fn members(&self, key: PoolKey) -> impl Iterator<Item = &Machine> {
        self.machines.values().filter(move |m| pool_key(m) == Some(key))
    }
}

pub(super) fn pool_key(machine: &Machine) -> Option<PoolKey> {
    machine.pool.map(|pool| (pool, machine.view.region))
}

/// The published ports of a Machine that is there.
fn ranges(machine: &Machine) -> Ranges {
    if !machine.is_there() {
        return Vec::new();
    }
    let mut ranges: Ranges =
        machine.view.services.iter().flat_map(ServiceSpec::published).collect();
    ranges.sort_unstable();
    ranges
}

/// Sets of ports that share a port belong to one pool, named by its lowest port.
fn pools(sets: &BTreeSet<Ranges>) -> BTreeMap<Ranges, PublishedPort> {
    let mut named: Vec<(&Ranges, PublishedPort)> =
        sets.iter().filter_map(|set| set.first().map(|first| (set, first.0))).collect();
    let mut changed = true;
    while changed {
        changed = false;
        for a in 0..named.len() {
            for b in 0..named.len() {
                if named[b].1 < named[a].1 && overlap(named[a].0, named[b].0) {
                    named[a].1 = named[b].1;
                    changed = true;
                }
            }
        }
    }
    named.into_iter().map(|(set, name)| (set.clone(), name)).collect()
}

fn overlap(a: &Ranges, b: &Ranges) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.0 <= y.1 && y.0 <= x.1))
}

/// Cuts all ports into ranges within which every port leads to the same Machines.
fn segments(sets: &BTreeSet<Ranges>) -> Ranges {
    let all = || sets.iter().flatten();
    let starts = all().map(|r| r.0);
    let after_ends = all().filter_map(|r| r.1.next());
    let cuts: Vec<_> = starts.chain(after_ends).collect::<BTreeSet<_>>().into_iter().collect();
    let ends = cuts.iter().skip(1).map(|next| next.previous()).chain([PublishedPort::MAX]);
    cuts.iter().copied().zip(ends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_that_share_a_port_are_one_pool_also_through_a_third() {
        let web = tcp(&[(80, 80), (443, 443)]);
        let admin = tcp(&[(8000, 8000)]);
        let both = tcp(&[(443, 443), (5000, 9000)]);
        let db = tcp(&[(70, 70), (5432, 5432)]);
        let apart = tcp(&[(10, 20)]);
        let sets: BTreeSet<Ranges> =
            [&web, &admin, &both, &db, &apart].into_iter().cloned().collect();
        let pools = pools(&sets);
        for member in [&web, &admin, &both, &db] {
            assert_eq!(pools[member], PublishedPort::tcp(70), "{member:?}");
        }
        assert_eq!(pools[&apart], PublishedPort::tcp(10));
    }

    #[test]
    fn ports_are_cut_where_anything_begins_or_ends() {
        let sets = BTreeSet::from([tcp(&[(10, 20)]), tcp(&[(15, 30), (65534, 65534)]), Vec::new()]);
        let wanted = tcp(&[(10, 14), (15, 20), (21, 30), (31, 65533), (65534, 65534)]);
        let rest = (PublishedPort::tcp(65535), PublishedPort::MAX);
        assert_eq!(segments(&sets), [wanted, vec![rest]].concat());
    }

    #[test]
    fn a_port_of_udp_is_another_than_that_of_tcp() {
        let (tcp, udp) = (PublishedPort::tcp(53), PublishedPort::udp(53));
        let sets = BTreeSet::from([vec![(tcp, tcp)], vec![(udp, udp)]]);
        let pools = pools(&sets);
        assert_eq!([pools[&vec![(tcp, tcp)]], pools[&vec![(udp, udp)]]], [tcp, udp]);
        assert!(segments(&sets).contains(&(udp, udp)));
    }

    fn tcp(ports: &[(u16, u16)]) -> Ranges {
        ports.iter().map(|(a, b)| (PublishedPort::tcp(*a), PublishedPort::tcp(*b))).collect()
    }
}
