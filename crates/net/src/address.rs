//! Prefixes as types, so that an address never stands in for its network.

use std::fmt;
use std::net::Ipv6Addr;

const NETWORK_MASK: u128 = u128::MAX << 80;

/// The /48 of a private network (PN-01, PN-02).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix48(Ipv6Addr);

impl Prefix48 {
    /// Returns the /48 that contains `addr`; any address of a network names the network.
    pub fn of(addr: Ipv6Addr) -> Self {
        Self(Ipv6Addr::from_bits(addr.to_bits() & NETWORK_MASK))
    }

    /// Returns the first address of the network.
    pub fn first(self) -> Ipv6Addr {
        self.0
    }

    /// Says whether `addr` lies in the network.
    pub fn contains(self, addr: Ipv6Addr) -> bool {
        Self::of(addr) == self
    }

    /// Returns `<prefix>::3`, the resolver's second address (PN-06).
    pub(crate) fn resolver(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.to_bits() | 3)
    }

    /// Returns `<prefix>:0:1::/80`, where Flycast addresses lie (FC-02).
    pub(crate) fn flycast(self) -> Prefix {
        Prefix { addr: Ipv6Addr::from_bits(self.0.to_bits() | 1 << 48), len: 80 }
    }

    pub(crate) fn whole(self) -> Prefix {
        Prefix { addr: self.0, len: 48 }
    }
}

impl fmt::Display for Prefix48 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/48", self.0)
    }
}

/// An IPv6 prefix of any length. Bits behind `len` are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// First address.
    pub addr: Ipv6Addr,
    /// Length in bits, 0 to 128; more counts as 128.
    pub len: u8,
}

impl Prefix {
    pub(crate) fn contains(self, addr: Ipv6Addr) -> bool {
        (self.addr.to_bits() ^ addr.to_bits()) & !self.host_bits() == 0
    }

    /// Returns the last address but one, which the host's end of the link takes.
    pub(crate) fn last_but_one(self) -> Ipv6Addr {
        Ipv6Addr::from_bits((self.addr.to_bits() | self.host_bits()) & !1)
    }

    fn host_bits(self) -> u128 {
        u128::MAX.checked_shr(u32::from(self.len)).unwrap_or(0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Ipv6Addr {
        text.parse().expect("a literal address")
    }

    #[test]
    fn any_address_of_a_network_names_it() {
        let prefix = Prefix48::of(addr("fdaa:2:45b:a7b:174:db43:d3c6:2"));
        assert_eq!(prefix.to_string(), "fdaa:2:45b::/48");
        assert!(prefix.contains(addr("fdaa:2:45b:0:1::11")));
        assert!(!prefix.contains(addr("fdaa:2:45c:0:1::11")));
    }

    #[test]
    fn resolver_and_flycast_lie_where_the_rules_say() {
        let prefix = Prefix48::of(addr("fdaa:0:18::"));
        assert_eq!(prefix.resolver(), addr("fdaa:0:18::3"));
        assert_eq!(prefix.flycast(), Prefix { addr: addr("fdaa:0:18:0:1::"), len: 80 });
    }

    #[test]
    fn a_prefix_contains_its_own_addresses_only() {
        let pool = Prefix { addr: addr("2001:db8:5::"), len: 48 };
        assert!(pool.contains(addr("2001:db8:5::1")));
        assert!(!pool.contains(addr("2001:db8:6::1")));
        assert!(Prefix { addr: addr("::1"), len: 128 }.contains(addr("::1")));
        assert!(!Prefix { addr: addr("::1"), len: 128 }.contains(addr("::2")));
    }

    #[test]
    fn the_hosts_end_takes_the_last_address_but_one() {
        let prefix = Prefix { addr: addr("2001:db8:5::"), len: 48 };
        assert_eq!(prefix.last_but_one(), addr("2001:db8:5:ffff:ffff:ffff:ffff:fffe"));
        assert_eq!(Prefix { addr: addr("::1"), len: 128 }.last_but_one(), addr("::"));
    }
}
