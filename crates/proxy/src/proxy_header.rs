//! The PROXY protocol towards Machines (PX-84): who calls and what was asked for, before the caller's first byte.
//!
//! The addresses are the caller's private one and the one that it called (FC-46). The header is the proxy's own word: it
//! is sent once for each connection, also to a Machine that was woken for it, and is nobody's use of the Machine.
//! The caller's connection is behind the header byte by byte; if it begins with one of its own, that is its content.

use std::net::{IpAddr, Ipv6Addr};

use crate::Endpoints;

/// Which of the two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyHeader {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Begins each header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of a caller.
const PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// TLVs of the range for own use: what `Fly-Src` says, and its signature, both as text (FC-40, FC-41).
const SOURCE: u8 = 0xe0;
const SOURCE_SIGNATURE: u8 = 0xe1;

impl ProxyHeader {
    /// The header of a connection between these. `said` of the caller, and its signature, if that is known: only the
    /// binary form has room for it.
    pub(crate) fn of(self, ends: Endpoints, said: Option<(&str, &str)>) -> Vec<u8> {
        match self {
            Self::V1 => text(ends),
            Self::V2 => binary(ends, said),
        }
    }
}

fn text(ends: Endpoints) -> Vec<u8> {
    let (caller, dest) = family(ends);
    let name = if caller.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (ends.caller.port(), ends.dest.port());
    format!("PROXY {name} {caller} {dest} {from} {to}\r\n").into_bytes()
}

/// What stands behind the addresses (TLVs) goes to the end of `facts`, whose length is written before it.
fn binary(ends: Endpoints, said: Option<(&str, &str)>) -> Vec<u8> {
    let mut facts = Vec::with_capacity(36);
    let (caller, dest) = family(ends);
    for ip in [caller, dest] {
        match ip {
            IpAddr::V4(ip) => facts.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => facts.extend_from_slice(&ip.octets()),
        }
    }
    for port in [ends.caller.port(), ends.dest.port()] {
        facts.extend_from_slice(&port.to_be_bytes());
    }
    for (kind, value) in said.into_iter().flat_map(|it| [(SOURCE, it.0), (SOURCE_SIGNATURE, it.1)])
    {
        let length = u16::try_from(value.len()).expect("what we say of a caller is short");
        facts.push(kind);
        facts.extend_from_slice(&length.to_be_bytes());
        facts.extend_from_slice(value.as_bytes());
    }
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[PROXY, if caller.is_ipv4() { TCP4 } else { TCP6 }]);
    let length = u16::try_from(facts.len()).expect("addresses and what we add fit into 64 KiB");
    header.extend_from_slice(&length.to_be_bytes());
    header.append(&mut facts);
    header
}

/// Both addresses in one family; the header has room for no other pair.
fn family(ends: Endpoints) -> (IpAddr, IpAddr) {
    let wide = |ip: IpAddr| -> Ipv6Addr {
        match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        }
    };
    match (ends.caller.ip().to_canonical(), ends.dest.ip().to_canonical()) {
        (IpAddr::V4(caller), IpAddr::V4(dest)) => (caller.into(), dest.into()),
        (caller, dest) => (wide(caller).into(), wide(dest).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn ends(caller: &str, dest: &str) -> Endpoints {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        Endpoints { caller: address(caller), dest: address(dest) }
    }

    #[test]
    fn a_line_names_the_callers_private_address_and_the_one_it_asked_for() {
        let of = |caller, dest| String::from_utf8(ProxyHeader::V1.of(ends(caller, dest), None));
        assert_eq!(
            of("[fdaa:0:7:a7b::2]:40000", "[fdaa:0:7:0:1::2]:5432").expect("it is text"),
            "PROXY TCP6 fdaa:0:7:a7b::2 fdaa:0:7:0:1::2 40000 5432\r\n"
        );
        assert_eq!(
            of("10.0.0.1:1", "[::ffff:192.0.2.10]:80").expect("it is text"),
            "PROXY TCP4 10.0.0.1 192.0.2.10 1 80\r\n"
        );
        // The longest that there may be has 107 bytes.
        let long = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        assert!(of(long, long).expect("it is text").len() <= 107);
    }

    #[test]
    fn the_binary_form_is_as_the_specification_draws_it() {
        let header = ProxyHeader::V2.of(ends("10.0.0.1:258", "192.0.2.10:80"), None);
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        expected.extend_from_slice(&[10, 0, 0, 1, 192, 0, 2, 10, 1, 2, 0, 80]);
        assert_eq!(header, expected);
        let header = ProxyHeader::V2.of(ends("[fdaa::1]:1", "192.0.2.10:80"), None);
        assert_eq!(header[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(header.len(), 16 + 36);
        assert_eq!(
            header[16 + 16..16 + 32],
            "::ffff:192.0.2.10".parse::<Ipv6Addr>().expect("one").octets()
        );
    }
}
