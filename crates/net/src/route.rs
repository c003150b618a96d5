//! Links, addresses, routes and neighbours, as messages.
//!
//! Every link of the plane is a point-to-point veth with the same two hardware addresses and
//! permanent neighbour entries, so nobody has to ask for or answer neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::address::Prefix;
use crate::error::NetError;
use crate::netlink::{
    Attrs, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Socket,
    find_attr,
};

/// The gateway on every link: the plane's end.
pub(crate) const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The other end of every link.
pub(crate) const FAR_END: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Hardware address of the plane's end of every link; locally administered.
pub(crate) const MAC_PLANE: [u8; 6] = [0x02, b'p', b'r', b'c', b'h', 1];
/// Hardware address of the other end.
pub(crate) const MAC_FAR: [u8; 6] = [0x02, b'p', b'r', b'c', b'h', 2];

/// WireGuard between hosts takes 80 bytes of an Ethernet frame's 1,500.
const MTU: u32 = 1420;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const IFINFO_LEN: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFF_UP: u32 = 1;

const IFADDR_LEN: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u8 = 2;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

const RTMSG_LEN: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A link that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Via {
    /// Straight out of the link.
    Link(u32),
    /// To a gateway on the link.
    Gateway(u32, IpAddr),
    /// To this namespace itself: every address of the prefix is local (AnyIP).
    Here,
    /// To this namespace itself by an address of that link; goes when the link goes.
    Own(u32),
}

/// A destination, IPv4 or IPv6, with its length in bits.
pub(crate) type Destination = (IpAddr, u8);

pub(crate) fn all_of(prefix: Prefix) -> Destination {
    (IpAddr::V6(prefix.addr), prefix.len)
}

pub(crate) fn only(addr: IpAddr) -> Destination {
    (addr, full_len(addr))
}

/// Makes a veth pair from the plane, both ends down: `name` here, `far` in `far_netns`.
pub(crate) fn add_veth(name: &str, far: &str, far_netns: BorrowedFd<'_>) -> Message {
    veth((name, MAC_PLANE), (far, MAC_FAR), far_netns)
}

/// The same from the host, whose end is the far one.
pub(crate) fn add_veth_from_far(name: &str, plane: &str, plane_netns: BorrowedFd<'_>) -> Message {
    veth((name, MAC_FAR), (plane, MAC_PLANE), plane_netns)
}

fn veth(near: (&str, [u8; 6]), other: (&str, [u8; 6]), other_netns: BorrowedFd<'_>) -> Message {
    let fd = other_netns.as_raw_fd().cast_unsigned();
    let peer = end(other).u32(IFLA_NET_NS_FD, fd);
    let data = Attrs::new().nest_behind(VETH_INFO_PEER, &[0; IFINFO_LEN], &peer);
    let info = Attrs::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, data);
    let attrs = end(near).nest(IFLA_LINKINFO, info);
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    Message::new(format!("create link {}", near.0), RTM_NEWLINK, flags, &[0; IFINFO_LEN], &attrs)
}

fn end((name, mac): (&str, [u8; 6])) -> Attrs {
    Attrs::new().text(IFLA_IFNAME, name).u32(IFLA_MTU, MTU).bytes(IFLA_ADDRESS, &mac)
}

/// Keeps the kernel from inventing a link-local address, then switches the link on.
pub(crate) fn bring_up(name: &str) -> Vec<Message> {
    let mode = Attrs::new().u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
    let family = Attrs::new().nest(u16::from(AF_INET6), mode);
    let quiet = Attrs::new().text(IFLA_IFNAME, name).nest(IFLA_AF_SPEC, family);
    let what = format!("configure link {name}");
    vec![Message::new(what, RTM_NEWLINK, NLM_F_ACK, &[0; IFINFO_LEN], &quiet), switch_on(name)]
}

/// Switches a link on.
pub(crate) fn switch_on(name: &str) -> Message {
    let mut fixed = [0; IFINFO_LEN];
    fixed[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    fixed[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    let attrs = Attrs::new().text(IFLA_IFNAME, name);
    Message::new(format!("switch on link {name}"), RTM_NEWLINK, NLM_F_ACK, &fixed, &attrs)
}

/// Makes a link that just got its carrier pass packets now.
///
/// When the second end of a veth comes up, the first one is activated by a kernel worker, some
/// milliseconds later or, under load, many; until then it drops what it is given, and a lost SYN
/// costs a second. A change of the queue's length activates the queue at once, on every kernel.
/// The link has no queue, so the length means nothing; it only must not be the default of 1,000.
pub(crate) fn activate(name: &str) -> Message {
    const ANY_OTHER_LEN: u32 = 999;
    let attrs = Attrs::new().text(IFLA_IFNAME, name).u32(IFLA_TXQLEN, ANY_OTHER_LEN);
    let what = format!("activate link {name}");
    Message::new(what, RTM_NEWLINK, NLM_F_ACK, &[0; IFINFO_LEN], &attrs)
}

/// Deletes a link; with a veth its other end goes too.
pub(crate) fn delete_link(name: &str) -> Message {
    let attrs = Attrs::new().text(IFLA_IFNAME, name);
    let what = format!("delete link {name}");
    Message::new(what, RTM_DELLINK, NLM_F_ACK, &[0; IFINFO_LEN], &attrs)
}

/// Deletes the link of that index.
pub(crate) fn delete_link_at(index: u32) -> Message {
    let mut fixed = [0; IFINFO_LEN];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let what = format!("delete link number {index}");
    Message::new(what, RTM_DELLINK, NLM_F_ACK, &fixed, &Attrs::new())
}

/// Lists the links of the socket's namespace.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, NetError> {
    let fixed = [0; IFINFO_LEN];
    let message =
        Message::new("list links".to_owned(), RTM_GETLINK, NLM_F_DUMP, &fixed, &Attrs::new());
    Ok(socket.query(message)?.iter().filter_map(|body| parse_link(body)).collect())
}

/// Finds the index of a link by its name.
pub(crate) fn index_of(socket: &mut Socket, name: &str) -> Result<u32, NetError> {
    let attrs = Attrs::new().text(IFLA_IFNAME, name);
    let what = format!("find link {name}");
    let message = Message::new(what.clone(), RTM_GETLINK, NLM_F_ACK, &[0; IFINFO_LEN], &attrs);
    let answers = socket.query(message)?;
    let link = answers.first().and_then(|body| parse_link(body));
    link.map(|link| link.index)
        .ok_or_else(|| NetError::kernel(what, std::io::Error::from_raw_os_error(libc::ENODEV)))
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(*body.get(4..)?.first_chunk::<4>()?);
    let attrs = body.get(IFINFO_LEN..)?;
    let name = find_attr(attrs, IFLA_IFNAME)?.strip_suffix(b"\0")?;
    let mac = find_attr(attrs, IFLA_ADDRESS).unwrap_or_default().to_vec();
    Some(Link { index, name: String::from_utf8_lossy(name).into_owned(), mac })
}

/// Adds an address to a link, without duplicate address detection.
pub(crate) fn add_address(link: u32, (addr, len): Destination) -> Message {
    let attrs = Attrs::new().bytes(IFA_LOCAL, &octets(addr)).bytes(IFA_ADDRESS, &octets(addr));
    address(link, (addr, len), RTM_NEWADDR, &attrs)
}

/// Adds an IPv6 address that takes packets when the call returns.
///
/// The kernel's worker for new addresses makes the local route only later; a packet before that is
/// taken for one to be forwarded, and lost. So the route is made here. The route that the kernel
/// would derive from the prefix would compete with it and is left out.
pub(crate) fn add_own6(link: u32, addr: Ipv6Addr) -> [Message; 2] {
    let attrs = Attrs::new()
        .bytes(IFA_LOCAL, &addr.octets())
        .bytes(IFA_ADDRESS, &addr.octets())
        .u32(IFA_FLAGS, u32::from(IFA_F_NODAD) | IFA_F_NOPREFIXROUTE);
    let own = only(addr.into());
    [address(link, own, RTM_NEWADDR, &attrs), add_route(own, Via::Own(link))]
}

/// Undoes [`add_own6`].
pub(crate) fn delete_own6(link: u32, addr: Ipv6Addr) -> [Message; 2] {
    let octets = addr.octets();
    let attrs = Attrs::new().bytes(IFA_LOCAL, &octets).bytes(IFA_ADDRESS, &octets);
    let own = only(addr.into());
    // In this order: the kernel takes its own route along, and the other one is ours.
    [address(link, own, RTM_DELADDR, &attrs), delete_route(own, Via::Own(link))]
}

/// Adds an IPv4 address whose link has just one other end.
pub(crate) fn add_address_towards(link: u32, addr: Ipv4Addr, other_end: Ipv4Addr) -> Message {
    let attrs =
        Attrs::new().bytes(IFA_LOCAL, &addr.octets()).bytes(IFA_ADDRESS, &other_end.octets());
    address(link, only(IpAddr::V4(addr)), RTM_NEWADDR, &attrs)
}

fn address(link: u32, (addr, len): Destination, kind: u16, attrs: &Attrs) -> Message {
    let mut fixed = [family(addr), len, IFA_F_NODAD, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&link.to_ne_bytes());
    let (verb, flags) = match kind {
        RTM_NEWADDR => ("add", NLM_F_CREATE | NLM_F_REPLACE),
        _ => ("delete", 0),
    };
    Message::new(format!("{verb} address {addr}"), kind, NLM_F_ACK | flags, &fixed, attrs)
}

/// Lists the IPv4 addresses of the socket's namespace.
pub(crate) fn ipv4_addresses(socket: &mut Socket) -> Result<Vec<Ipv4Addr>, NetError> {
    let fixed = [AF_INET, 0, 0, 0, 0, 0, 0, 0];
    let what = "list addresses".to_owned();
    let message = Message::new(what, RTM_GETADDR, NLM_F_DUMP, &fixed, &Attrs::new());
    let parse = |body: &Vec<u8>| {
        let octets = find_attr(body.get(IFADDR_LEN..)?, IFA_LOCAL)?.first_chunk::<4>()?;
        (body[0] == AF_INET).then_some(Ipv4Addr::from(*octets))
    };
    Ok(socket.query(message)?.iter().filter_map(parse).collect())
}

/// Adds or replaces a route.
pub(crate) fn add_route(destination: Destination, via: Via) -> Message {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    route("add", destination, via, RTM_NEWROUTE, flags)
}

/// Adds a route where there is none to that destination, whoever made it; else the kernel answers `EEXIST`.
pub(crate) fn add_missing_route(destination: Destination, via: Via) -> Message {
    route("add", destination, via, RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
}

/// Links to which the main table's routes to exactly this destination lead; 0 stands for none.
pub(crate) fn leads_to(
    socket: &mut Socket,
    (addr, len): Destination,
) -> Result<Vec<u32>, NetError> {
    let mut fixed = [0; RTMSG_LEN];
    fixed[0] = family(addr);
    let what = format!("list routes to {addr}/{len}");
    let message = Message::new(what, RTM_GETROUTE, NLM_F_DUMP, &fixed, &Attrs::new());
    let link = |body: &Vec<u8>| {
        let attrs = body.get(RTMSG_LEN..)?;
        let number = |kind| Some(u32::from_ne_bytes(*find_attr(attrs, kind)?.first_chunk::<4>()?));
        let table = number(RTA_TABLE).unwrap_or_else(|| u32::from(body[4]));
        let is_it = body[1] == len
            && table == u32::from(RT_TABLE_MAIN)
            && find_attr(attrs, RTA_DST) == Some(&octets(addr)[..]);
        is_it.then(|| number(RTA_OIF).unwrap_or(0))
    };
    Ok(socket.query(message)?.iter().filter_map(link).collect())
}

/// Takes a route away.
pub(crate) fn delete_route(destination: Destination, via: Via) -> Message {
    route("delete", destination, via, RTM_DELROUTE, NLM_F_ACK)
}

fn route(verb: &str, (addr, len): Destination, via: Via, kind: u16, flags: u16) -> Message {
    let (table, scope, class) = match via {
        Via::Link(_) => (RT_TABLE_MAIN, RT_SCOPE_LINK, RTN_UNICAST),
        Via::Gateway(..) => (RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RTN_UNICAST),
        // The local table is asked first; there the public pool would swallow the host's address,
        // which is one of the pool's.
        Via::Here if addr.is_ipv6() => (RT_TABLE_MAIN, RT_SCOPE_HOST, RTN_LOCAL),
        Via::Here | Via::Own(_) => (RT_TABLE_LOCAL, RT_SCOPE_HOST, RTN_LOCAL),
    };
    let fixed = [family(addr), len, 0, 0, table, RTPROT_STATIC, scope, class, 0, 0, 0, 0];
    let attrs = match len {
        0 => Attrs::new(),
        _ => Attrs::new().bytes(RTA_DST, &octets(addr)),
    };
    let attrs = match via {
        Via::Link(link) | Via::Own(link) => attrs.u32(RTA_OIF, link),
        Via::Gateway(link, gateway) => {
            attrs.u32(RTA_OIF, link).bytes(RTA_GATEWAY, &octets(gateway))
        }
        Via::Here => attrs.u32(RTA_OIF, LOOPBACK),
    };
    Message::new(format!("{verb} route {addr}/{len}"), kind, flags, &fixed, &attrs)
}

/// The loopback link has this index in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// Pins the hardware address of a neighbour.
pub(crate) fn add_neighbour(link: u32, addr: IpAddr, mac: [u8; 6]) -> Message {
    let mut fixed = [0; 12];
    fixed[0] = family(addr);
    fixed[4..8].copy_from_slice(&link.to_ne_bytes());
    fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let attrs = Attrs::new().bytes(NDA_DST, &octets(addr)).bytes(NDA_LLADDR, &mac);
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    Message::new(format!("add neighbour {addr}"), RTM_NEWNEIGH, flags, &fixed, &attrs)
}

fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn full_len(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}
