//! What the plane holds, read back from the kernel's sets when a plane is adopted.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Prefix48, Visible};
use crate::error::NetError;
use crate::firewall::{self, INSIDE, TABLE};
use crate::netlink::Socket;
use crate::nft::{self, Batch, Element, Set};

/// Networks with the host's address in each, published addresses, Machines by interface.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) networks: BTreeMap<Prefix48, Option<Ipv6Addr>>,
    pub(super) published: BTreeMap<IpAddr, Published>,
    pub(super) machines: BTreeMap<String, Machine>,
}

/// What is published at one address: disjoint port ranges, and for whom.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) ports: Vec<(u16, u16)>,
    pub(super) udp_ports: Vec<(u16, u16)>,
    pub(super) visible: Vec<Visible>,
}

/// The sources that a Machine's interface may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) private_ip: Ipv6Addr,
    pub(super) link: Ipv4Addr,
}

impl State {
    pub(super) fn load(socket: &mut Socket) -> Result<Self, NetError> {
        let mut read = |set| nft::elements(socket, TABLE, set);
        let mut state = Self::default();
        for element in read(firewall::NETWORKS)? {
            if let Some((network, _)) = split_v6(&element.key) {
                state.networks.insert(Prefix48::of(network), None);
            }
        }
        state.load_sources(&read(firewall::SOURCES6)?, &read(firewall::SOURCES4)?);
        state.load_visible(&read(firewall::VISIBLE6)?);
        for set in [firewall::PUBLIC6, firewall::PUBLIC4] {
            for addr in read(set)?.iter().filter_map(|element| address(&element.key)) {
                state.published.entry(addr).or_default().visible.push(Visible::Everyone);
            }
        }
        let port_sets = [firewall::PORTS6, firewall::RANGES6, firewall::PORTS4, firewall::RANGES4];
        for set in port_sets {
            for (addr, range) in read(set)?.iter().filter_map(ports) {
                state.published.entry(addr).or_default().ports.push(range);
            }
        }
        for set in [firewall::UDP_PORTS6, firewall::UDP_RANGES6] {
            for (addr, range) in read(set)?.iter().filter_map(ports) {
                state.published.entry(addr).or_default().udp_ports.push(range);
            }
        }
        Ok(state)
    }

    fn load_sources(&mut self, sources6: &[Element], sources4: &[Element]) {
        let links4: BTreeMap<_, _> = sources4.iter().filter_map(source).collect();
        for (name, addr) in sources6.iter().filter_map(source) {
            let IpAddr::V6(private_ip) = addr else { continue };
            match links4.get(&name) {
                _ if name == INSIDE => {
                    if let Some(peer) = self.networks.get_mut(&Prefix48::of(private_ip)) {
                        *peer = Some(private_ip);
                    }
                }
                Some(IpAddr::V4(link)) => {
                    self.machines.insert(name, Machine { private_ip, link: *link });
                }
                _ => tracing::warn!(machine = name, "interface without a link address is ignored"),
            }
        }
    }

    fn load_visible(&mut self, visible: &[Element]) {
        for (network, addr) in visible.iter().filter_map(|element| split_v6(&element.key)) {
            let network = Prefix48::of(network);
            if addr != network.resolver() {
                let published = self.published.entry(addr.into()).or_default();
                published.visible.push(Visible::Network(network));
            }
        }
    }
}

impl Published {
    pub(super) fn add(&self, addr: IpAddr, batch: &mut Batch<'_>) {
        for (set, element) in self.elements(addr) {
            batch.add_elements(set, &[element]);
        }
    }

    pub(super) fn remove(&self, addr: IpAddr, batch: &mut Batch<'_>) {
        for (set, element) in self.elements(addr) {
            batch.delete_elements(set, &[element]);
        }
    }

    /// Whether the kernel would hold the same for both: what was read back has the order of its sets.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |ours: &[_], theirs: &[_]| merged(ours) == merged(theirs);
        same(&self.ports, &other.ports)
            && same(&self.udp_ports, &other.udp_ports)
            && self.visible == other.visible
    }

    fn elements(&self, addr: IpAddr) -> Vec<(Set, Element)> {
        let octets = octets(addr);
        let (single, ranges) = match addr {
            IpAddr::V4(_) => (firewall::PORTS4, firewall::RANGES4),
            IpAddr::V6(_) => (firewall::PORTS6, firewall::RANGES6),
        };
        let visible = self.visible.iter().map(|visible| match (visible, addr) {
            (Visible::Network(network), IpAddr::V6(addr)) => {
                (firewall::VISIBLE6, firewall::network_and(*network, addr))
            }
            (Visible::Everyone, IpAddr::V6(_)) => (firewall::PUBLIC6, address_key(addr)),
            (_, IpAddr::V4(_)) => (firewall::PUBLIC4, address_key(addr)),
        });
        let of = |single, ranges, &(first, last): &(u16, u16)| {
            if first == last {
                (single, Element::of(&[&octets, &first.to_be_bytes()]))
            } else {
                (ranges, firewall::port_range(&octets, (first, last)))
            }
        };
        let tcp = self.ports.iter().map(|ports| of(single, ranges, ports));
        let udp = self.udp_ports.iter();
        let udp = udp.map(|ports| of(firewall::UDP_PORTS6, firewall::UDP_RANGES6, ports));
        visible.chain(tcp).chain(udp).collect()
    }
}

impl Machine {
    pub(super) fn add(&self, name: &str, batch: &mut Batch<'_>) {
        batch.add_elements(firewall::SOURCES6, &[firewall::source6(name, self.private_ip)]);
        batch.add_elements(firewall::SOURCES4, &[firewall::source4(name, self.link)]);
    }

    pub(super) fn remove(&self, name: &str, batch: &mut Batch<'_>) {
        batch.delete_elements(firewall::SOURCES6, &[firewall::source6(name, self.private_ip)]);
        batch.delete_elements(firewall::SOURCES4, &[firewall::source4(name, self.link)]);
    }
}

/// Sorts port ranges and joins those that touch or overlap, as the kernel's set demands.
pub(super) fn merged(ports: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

pub(super) fn address_key(addr: IpAddr) -> Element {
    Element::of(&[&octets(addr)])
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn address(key: &[u8]) -> Option<IpAddr> {
    match key.len() {
        4 => key.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => key.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}

/// Splits a key of two IPv6 addresses.
fn split_v6(key: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let (first, second) = key.split_first_chunk::<16>()?;
    Some((Ipv6Addr::from(*first), Ipv6Addr::from(*second.first_chunk::<16>()?)))
}

/// Splits a key of an interface's name and an address.
fn source(element: &Element) -> Option<(String, IpAddr)> {
    let (name, addr) = element.key.split_first_chunk::<16>()?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some((String::from_utf8_lossy(name).into_owned(), address(addr)?))
}

/// Splits a key of an address and a port; the end of the range comes from the second key.
fn ports(element: &Element) -> Option<(IpAddr, (u16, u16))> {
    let port = |key: &[u8]| {
        let (addr, port) = key.split_last_chunk::<4>()?;
        Some((address(addr)?, u16::from_be_bytes([port[0], port[1]])))
    };
    let (addr, first) = port(&element.key)?;
    let last = element.key_end.as_deref().and_then(port).map_or(first, |(_, last)| last);
    Some((addr, (first, last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_that_touch_or_overlap_become_one() {
        assert_eq!(merged(&[]), []);
        assert_eq!(merged(&[(80, 80), (80, 80)]), [(80, 80)]);
        assert_eq!(merged(&[(443, 443), (80, 80)]), [(80, 80), (443, 443)]);
        assert_eq!(merged(&[(1, 10), (11, 20), (15, 17)]), [(1, 20)]);
        assert_eq!(merged(&[(1, 65535), (65535, 65535)]), [(1, 65535)]);
    }

    #[test]
    fn the_order_in_which_the_kernel_lists_ports_makes_no_difference() {
        let of = |ports: &[(u16, u16)], visible| Published {
            ports: ports.to_vec(),
            udp_ports: Vec::new(),
            visible: vec![visible],
        };
        let read = of(&[(8000, 8100), (80, 80)], Visible::Everyone);
        assert!(read.is_same(&of(&[(80, 80), (8000, 8100)], Visible::Everyone)));
        assert!(!read.is_same(&of(&[(80, 80)], Visible::Everyone)));
        let with_udp = Published {
            udp_ports: vec![(53, 53)],
            ..of(&[(80, 80), (8000, 8100)], Visible::Everyone)
        };
        assert!(!read.is_same(&with_udp));
        let network = Visible::Network(Prefix48::of("fdaa:1:2::".parse().expect("an address")));
        assert!(!read.is_same(&of(&[(80, 80), (8000, 8100)], network)));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let addr: IpAddr = "fdaa:1:2:0:1::5".parse().expect("a literal address");
        let network = Prefix48::of("fdaa:1:2::".parse().expect("a literal address"));
        let written = Published {
            ports: vec![(80, 80), (8000, 8100)],
            udp_ports: vec![(53, 53)],
            visible: vec![Visible::Network(network)],
        };
        let elements = written.elements(addr);
        assert_eq!(
            split_v6(&elements[0].1.key),
            Some((network.first(), "fdaa:1:2:0:1::5".parse().expect("a literal address")))
        );
        assert_eq!(ports(&elements[1].1), Some((addr, (80, 80))));
        assert_eq!(ports(&elements[2].1), Some((addr, (8000, 8100))));
        assert_eq!(elements[3].0.name, firewall::UDP_PORTS6.name);
        assert_eq!(ports(&elements[3].1), Some((addr, (53, 53))));
        assert_eq!(
            source(&firewall::source4("m1", Ipv4Addr::new(172, 16, 0, 1))),
            Some(("m1".to_owned(), IpAddr::from([172, 16, 0, 1])))
        );
    }
}
