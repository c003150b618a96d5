//! The address plan: which addresses networks, Machines, apps and links get (PN-01..11, FC-01..03).
//!
//! ```text
//! fdaa : nnnn : nnnn : a7b : hhhh : mmmm : mmmm : 2      a Machine (host hhhh)
//! fdaa : nnnn : nnnn :   0 :    1 :    0 :    0 : k      a Flycast address, k from 2
//! fdaa : nnnn : nnnn :   0 :    0 :    0 :    0 : 3      the resolver as peers see it
//! 172.16.0.0/16, a /31 per Machine                       the link: even our side, odd the Machine's
//! ```
//!
//! Functions get what is taken and a number that the caller drew; they draw nothing themselves.
//! *Taken* always includes what was released less than [`REUSE_AFTER`] ago, so that an old client
//! cannot meet a new owner; the caller keeps that list, because it outlives a boot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::ids::NetworkId;

/// How long a released address stays unused (FC-03).
pub const REUSE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The resolver as Machines see it, the same in every network.
pub const RESOLVER: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);
/// All links between the data plane and its Machines.
pub const LINKS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 0);
/// The first number of a Flycast address; 1 stays free for the gateway.
const FLYCAST_FIRST: u64 = 2;
/// Links are numbered from here: the first pair contains the network's own address.
const LINK_FIRST: u16 = 1;
/// Pairs in a /16.
const LINKS_MAX: u16 = 1 << 15;
/// How often a drawn number is mixed again before we look for a free one in order.
const DRAWS_MAX: u32 = 64;

/// Nothing is left to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// All links of this host are in use.
    #[error("no free link in 172.16.0.0/16: this host already has {LINKS_MAX} Machines")]
    NoLink,
    /// The pool is used up.
    #[error("no free address in {pool}")]
    NoAddress {
        /// The first address of the pool.
        pool: Ipv6Addr,
    },
    /// Network ids are used up.
    #[error("no free network ID")]
    NoNetwork,
}

/// The two ends of a Machine's private link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Our end: even.
    pub plane: Ipv4Addr,
    /// The Machine's end: odd.
    pub machine: Ipv4Addr,
}

impl Link {
    /// The link whose Machine has this address; `None` if the address is none of a Machine.
    pub fn of_machine(machine: Ipv4Addr) -> Option<Self> {
        let [a, b, c, d] = machine.octets();
        let ours = (a, b) == (172, 16) && d % 2 == 1;
        ours.then_some(Self { plane: Ipv4Addr::new(a, b, c, d - 1), machine })
    }
}

/// The /48 of a network.
pub fn prefix(network: NetworkId) -> Ipv6Addr {
    let number = network.as_u32();
    Ipv6Addr::new(0xfdaa, (number >> 16) as u16, number as u16, 0, 0, 0, 0, 0)
}

/// The network that an address belongs to; `None` outside `fdaa::/16` and for network 0.
pub fn network_of(address: Ipv6Addr) -> Option<NetworkId> {
    let [first, high, low, ..] = address.segments();
    if first != 0xfdaa {
        return None;
    }
    NetworkId::new(u32::from(high) << 16 | u32::from(low))
}

/// The resolver of a network as its peers see it (PN-06).
pub fn resolver(network: NetworkId) -> Ipv6Addr {
    let [first, high, low, ..] = prefix(network).segments();
    Ipv6Addr::new(first, high, low, 0, 0, 0, 0, 3)
}

/// Whether this is a Flycast address (FC-02).
pub fn is_flycast(address: Ipv6Addr) -> bool {
    let [first, _, _, a, b, ..] = address.segments();
    (first, a, b) == (0xfdaa, 0, 1)
}

/// An id for a new network. `taken` holds every id that was ever given: none is given twice (PN-61).
///
/// # Errors
/// [`AddressError::NoNetwork`] if all four billion are taken.
pub fn plan_network(taken: &BTreeSet<NetworkId>, random: u64) -> Result<NetworkId, AddressError> {
    let free = |number| NetworkId::new(number).filter(|id| !taken.contains(id));
    let number = draw(random, |n| free(n).is_some()).ok_or(AddressError::NoNetwork)?;
    free(number).ok_or(AddressError::NoNetwork)
}

/// The 6PN address of a new Machine on host number `host` (PN-02, PN-11).
///
/// # Errors
/// [`AddressError::NoAddress`] if the host's part of the network is full.
pub fn plan_machine(
    network: NetworkId,
    host: u16,
    taken: &BTreeSet<Ipv6Addr>,
    random: u64,
) -> Result<Ipv6Addr, AddressError> {
    let [first, high, low, ..] = prefix(network).segments();
    let address = |machine: u32| {
        let (upper, lower) = ((machine >> 16) as u16, machine as u16);
        Ipv6Addr::new(first, high, low, 0xa7b, host, upper, lower, 2)
    };
    let number = draw(random, |n| n != 0 && !taken.contains(&address(n)));
    number.map(address).ok_or(AddressError::NoAddress { pool: prefix(network) })
}

/// Addresses that must not be given.
pub trait Taken {
    /// The largest of them in a range.
    fn largest_in(&self, range: &RangeInclusive<Ipv6Addr>) -> Option<Ipv6Addr>;

    /// Whether this is one of them.
    fn has(&self, address: &Ipv6Addr) -> bool;
}

impl Taken for BTreeSet<Ipv6Addr> {
    fn largest_in(&self, range: &RangeInclusive<Ipv6Addr>) -> Option<Ipv6Addr> {
        self.range(range.clone()).next_back().copied()
    }

    fn has(&self, address: &Ipv6Addr) -> bool {
        self.contains(address)
    }
}

/// Each with something that is known of it.
impl<T> Taken for BTreeMap<Ipv6Addr, T> {
    fn largest_in(&self, range: &RangeInclusive<Ipv6Addr>) -> Option<Ipv6Addr> {
        self.range(range.clone()).next_back().map(|(address, _)| *address)
    }

    fn has(&self, address: &Ipv6Addr) -> bool {
        self.contains_key(address)
    }
}

/// The next Flycast address of a network: beyond all that are in one of those `taken`, so that numbers are not reused
/// as long as there are others (FC-03). Looks at few of them, however many there are.
///
/// # Errors
/// [`AddressError::NoAddress`] if the network's Flycast part is full.
pub fn plan_flycast(network: NetworkId, taken: &[&dyn Taken]) -> Result<Ipv6Addr, AddressError> {
    let [first, high, low, ..] = prefix(network).segments();
    let base = u128::from(Ipv6Addr::new(first, high, low, 0, 1, 0, 0, 0));
    next_in(base, u64::from(u16::MAX), taken)
}

/// The next public address of a pool, a /48 on the host (DESIGN 11).
///
/// # Errors
/// [`AddressError::NoAddress`] if the pool is used up.
pub fn plan_public(pool: Ipv6Addr, taken: &[&dyn Taken]) -> Result<Ipv6Addr, AddressError> {
    next_in(u128::from(pool), u64::from(u32::MAX), taken)
}

/// The lowest free link; `taken` holds the Machines' ends.
///
/// # Errors
/// [`AddressError::NoLink`] if this host has as many Machines as there are links.
pub fn plan_link(taken: &BTreeSet<Ipv4Addr>) -> Result<Link, AddressError> {
    let links = (LINK_FIRST..LINKS_MAX).map(link);
    links.into_iter().find(|l| !taken.contains(&l.machine)).ok_or(AddressError::NoLink)
}

fn link(index: u16) -> Link {
    let plane = u32::from(LINKS) + u32::from(index) * 2;
    Link { plane: Ipv4Addr::from(plane), machine: Ipv4Addr::from(plane + 1) }
}

/// The number after the largest taken one; when that is beyond `last`, the lowest free one.
fn next_in(base: u128, last: u64, taken: &[&dyn Taken]) -> Result<Ipv6Addr, AddressError> {
    let at = |number: u64| Ipv6Addr::from(base + u128::from(number));
    let all = at(FLYCAST_FIRST)..=at(last);
    let Some(largest) = taken.iter().filter_map(|it| it.largest_in(&all)).max() else {
        return Ok(at(FLYCAST_FIRST));
    };
    if largest < at(last) {
        return Ok(Ipv6Addr::from(u128::from(largest) + 1));
    }
    let is_free = |address: &Ipv6Addr| taken.iter().all(|it| !it.has(address));
    let free = (FLYCAST_FIRST..=last).map(at).find(is_free);
    free.ok_or(AddressError::NoAddress { pool: Ipv6Addr::from(base) })
}

/// A number for which `free` holds: by lot, then the next ones in order.
fn draw(random: u64, free: impl Fn(u32) -> bool) -> Option<u32> {
    let mut lot = random;
    for _ in 0..DRAWS_MAX {
        lot = mix(lot);
        let number = (lot >> 32) as u32;
        if free(number) {
            return Some(number);
        }
    }
    let start = (lot >> 32) as u32;
    (0..=u32::MAX).map(|step| start.wrapping_add(step)).find(|&number| free(number))
}

/// One step of SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkId {
        NetworkId::new(0x0003_9018).expect("not zero")
    }

    fn address(text: &str) -> Ipv6Addr {
        text.parse().expect("a valid address in a test")
    }

    #[test]
    fn addresses_look_as_in_flys_documents() {
        assert_eq!(prefix(network()), address("fdaa:3:9018::"));
        assert_eq!(resolver(network()), address("fdaa:3:9018::3"));
        let flycast = plan_flycast(network(), &[]).expect("the network is empty");
        assert_eq!(flycast, address("fdaa:3:9018:0:1::2"));
        assert!(is_flycast(flycast) && !is_flycast(resolver(network())));
        let machine = plan_machine(network(), 7, &BTreeSet::new(), 1).expect("empty").segments();
        assert_eq!((machine[3], machine[4], machine[7]), (0xa7b, 7, 2));
        assert_eq!(network_of(flycast), Some(network()));
        assert_eq!(network_of(address("fdaa::3")), None);
        assert_eq!(network_of(address("2001:db8:5::2")), None);
    }

    #[test]
    fn a_released_flycast_number_comes_back_only_when_all_others_are_taken() {
        let mut taken =
            BTreeSet::from([address("fdaa:3:9018:0:1::2"), address("fdaa:3:9018:0:1::9")]);
        assert_eq!(plan_flycast(network(), &[&taken]), Ok(address("fdaa:3:9018:0:1::a")));
        taken.insert(address("fdaa:3:9018:0:1::ffff"));
        assert_eq!(plan_flycast(network(), &[&taken]), Ok(address("fdaa:3:9018:0:1::3")));
        taken.extend((2..=0xffff_u16).map(|k| Ipv6Addr::new(0xfdaa, 3, 0x9018, 0, 1, 0, 0, k)));
        assert!(plan_flycast(network(), &[&taken]).is_err());
    }

    #[test]
    fn a_public_address_comes_from_the_pool() {
        let pool = address("2001:db8:5::");
        assert_eq!(plan_public(pool, &[]), Ok(address("2001:db8:5::2")));
        let taken = BTreeSet::from([address("2001:db8:5::2"), address("2001:db8:6::7")]);
        assert_eq!(plan_public(pool, &[&taken]), Ok(address("2001:db8:5::3")));
    }

    #[test]
    fn networks_and_machines_are_never_given_twice() {
        let (mut networks, mut machines) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..100 {
            // The same random number each time: the plan must find another one by itself.
            assert!(networks.insert(plan_network(&networks, 42).expect("plenty")));
            assert!(machines.insert(plan_machine(network(), 1, &machines, 42).expect("plenty")));
        }
    }

    #[test]
    fn links_are_pairs_of_even_and_odd_and_the_lowest_free_is_taken() {
        let first = plan_link(&BTreeSet::new()).expect("empty");
        assert_eq!((first.plane, first.machine), ([172, 16, 0, 2].into(), [172, 16, 0, 3].into()));
        assert_eq!(Link::of_machine(first.machine), Some(first));
        assert_eq!(Link::of_machine(first.plane), None);
        let mut taken = BTreeSet::from([first.machine]);
        assert_eq!(plan_link(&taken).expect("plenty").machine, Ipv4Addr::new(172, 16, 0, 5));
        taken.extend((LINK_FIRST..LINKS_MAX).map(|i| link(i).machine));
        assert_eq!(plan_link(&taken), Err(AddressError::NoLink));
        taken.remove(&Ipv4Addr::new(172, 16, 255, 255));
        assert_eq!(plan_link(&taken).expect("one is free").plane, Ipv4Addr::new(172, 16, 255, 254));
    }
}
