//! The nft tables: a fixed dozen of rules over sets, whatever the number of Machines.
//!
//! Inside the plane, table `perch`:
//!
//! ```text
//! raw   every packet has its sender's own source, else it is dropped; tracked are only DNS, IPv4
//!       egress, and what is not TCP between a Machine and the host
//! fly   to a published address . port that the sender may see: to the transparent listener; a SYN
//!       that finds none is dropped, since a retry may find the successor
//! input what the plane itself answers: replies, DNS, echo requests; the rest is refused
//! forward within one /48; IPv4 from Machines to the world; the rest is refused
//! egress  IPv4 leaves under the plane's address; nothing new but TCP goes to the host by IPv6
//! ```
//!
//! On the host, two tables `perch_<outside>`: nothing new comes in from the plane, nothing new is
//! forwarded into it, its IPv4 leaves under the host's address. The one for IPv6 does without
//! connection tracking, which the kernel would do for every packet of the host: there it looks at
//! TCP's flags only. The plane itself opens nothing towards the host either, so that no private
//! traffic and no protection of the host depends on them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::address::Prefix48;
use crate::error::NetError;
use crate::listeners::TRANSPARENT_PORT;
use crate::netlink::Socket;
use crate::nft::{
    Batch, Cmp, Element, Family, Field, Hook, ICMP, ICMPV6, NFPROTO_IPV4, NFPROTO_IPV6, R1,
    R1_SECOND_WORD, R2, Rule, Set, TCP, UDP, ifname, join,
};
use crate::plane::PlaneConfig;

/// The table inside the plane.
pub(crate) const TABLE: &str = "perch";
/// The plane's end of the link to the host.
pub(crate) const INSIDE: &str = "host0";

use Field::{Ifname, Ipv4, Ipv6, Port};

/// Interface and IPv6 source that belong together.
pub(crate) const SOURCES6: Set = set("sources6", &[Ifname, Ipv6]);
/// Interface and IPv4 source that belong together.
pub(crate) const SOURCES4: Set = set("sources4", &[Ifname, Ipv4]);
/// Open networks, each paired with itself: nft compares two packet fields only through a set.
pub(crate) const NETWORKS: Set = set("networks", &[Ipv6, Ipv6]);
/// Network of the caller and address that it may see.
pub(crate) const VISIBLE6: Set = set("visible6", &[Ipv6, Ipv6]);
/// Addresses that everybody may see.
pub(crate) const PUBLIC6: Set = set("public6", &[Ipv6]);
/// IPv4 addresses that everybody may see.
pub(crate) const PUBLIC4: Set = set("public4", &[Ipv4]);
/// Published single ports; a hash, because nearly all are single.
pub(crate) const PORTS6: Set = set("ports6", &[Ipv6, Port]);
/// Published port ranges.
pub(crate) const RANGES6: Set = Set { ranges: true, ..set("ranges6", &[Ipv6, Port]) };
/// Like `PORTS6`.
pub(crate) const PORTS4: Set = set("ports4", &[Ipv4, Port]);
/// Like `RANGES6`.
pub(crate) const RANGES4: Set = Set { ranges: true, ..set("ranges4", &[Ipv4, Port]) };
/// `<prefix>::3` of each network.
pub(crate) const RESOLVERS: Set = set("resolvers", &[Ipv6]);
/// The host's own IPv4 addresses, which egress must not reach.
pub(crate) const HOST4: Set = set("host4", &[Ipv4]);

const SETS: [Set; 12] = [
    SOURCES6, SOURCES4, NETWORKS, VISIBLE6, PUBLIC6, PUBLIC4, PORTS6, RANGES6, PORTS4, RANGES4,
    RESOLVERS, HOST4,
];

const fn set(name: &'static str, fields: &'static [Field]) -> Set {
    Set { name, fields, ranges: false }
}

/// Set on packets that go to the listener; a mark does not survive a change of namespace, so no
/// sender can bring it along.
const MARK: u32 = 0x70;
const DNS_PORT: u16 = 53;

const PRIORITY_RAW: i32 = -300;
const PRIORITY_MANGLE: i32 = -150;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SRCNAT: i32 = 100;
/// Before the usual filters of the host's owner.
pub(crate) const PRIORITY_EARLY: i32 = -10;

const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// Types of ICMPv6 by which neighbours and routers find each other, redirects included.
const NEIGHBOUR_DISCOVERY: (u8, u8) = (133, 137);

/// Destinations that egress never reaches: this network, links, loopback, link-local with most
/// clouds' metadata service, multicast and reserved ones, and the metadata services that are
/// elsewhere (Azure's, Alibaba's, Oracle's).
const NO_EGRESS: [([u8; 4], u32); 8] = [
    ([0, 0, 0, 0], 8),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    LINKS,
    ([224, 0, 0, 0], 3),
    ([168, 63, 129, 16], 32),
    ([100, 100, 100, 200], 32),
    ([192, 0, 0, 192], 32),
];
/// The Machines' private links.
const LINKS: ([u8; 4], u32) = ([172, 16, 0, 0], 16);

pub(crate) fn source6(link: &str, addr: Ipv6Addr) -> Element {
    Element::of(&[&ifname(link), &addr.octets()])
}

pub(crate) fn source4(link: &str, addr: Ipv4Addr) -> Element {
    Element::of(&[&ifname(link), &addr.octets()])
}

pub(crate) fn network_and(network: Prefix48, addr: Ipv6Addr) -> Element {
    Element::of(&[&network.first().octets(), &addr.octets()])
}

/// An element of a set of ranges.
pub(crate) fn port_range(addr: &[u8], (first, last): (u16, u16)) -> Element {
    let key_end = Some(join(&[addr, &last.to_be_bytes()]));
    Element { key: join(&[addr, &first.to_be_bytes()]), key_end }
}

/// Makes the plane's table, or renews its rules and keeps its sets; one transaction.
pub(crate) fn ensure_plane(
    socket: &mut Socket,
    config: &PlaneConfig,
    host_addresses: &[Ipv4Addr],
    stale_host_addresses: &[Element],
) -> Result<(), NetError> {
    let mut batch = Batch::on(TABLE);
    batch.add_table();
    for (id, set) in (1..).zip(SETS) {
        batch.add_set(id, set);
    }
    add_chains(&mut batch);
    batch.delete_rules();
    let rules =
        [raw_rules(config), fly_rules(), nat_rules(config), input_rules(config), forward_rules()];
    for rule in rules.into_iter().flatten() {
        batch.add_rule(rule);
    }
    batch.delete_elements(HOST4, stale_host_addresses);
    let host: Vec<_> = host_addresses.iter().map(|addr| Element::of(&[&addr.octets()])).collect();
    batch.add_elements(HOST4, &host);
    batch.add_elements(SOURCES4, &[source4(INSIDE, config.host_link.0)]);
    batch.add_elements(SOURCES6, &[source6(INSIDE, config.public_v6.last_but_one())]);
    batch.commit(socket)
}

fn add_chains(batch: &mut Batch<'_>) {
    batch.add_filter("raw", Hook::Prerouting, PRIORITY_RAW);
    batch.add_filter("raw_out", Hook::Output, PRIORITY_RAW);
    batch.add_filter("fly", Hook::Prerouting, PRIORITY_MANGLE);
    batch.add_chain("ports4");
    batch.add_chain("ports6");
    batch.add_chain("catch6");
    batch.add_chain("catch4");
    batch.add_chain("refuse");
    batch.add_nat("resolver", Hook::Prerouting, PRIORITY_DSTNAT);
    batch.add_nat("egress", Hook::Postrouting, PRIORITY_SRCNAT);
    batch.add_filter("input", Hook::Input, PRIORITY_FILTER);
    batch.add_filter("forward", Hook::Forward, PRIORITY_FILTER);
}

fn raw_rules(config: &PlaneConfig) -> Vec<Rule> {
    let (_, plane_end) = config.host_link;
    let on = || Rule::on("raw");
    let out = || Rule::on("raw_out");
    vec![
        on().iif(Cmp::Eq, "lo").accept(),
        on().v6().load_iif().load_saddr6(R2).not_in_set(SOURCES6).count().drop(),
        // Answers from the world come under any source; they belong to a tracked connection.
        on().v4().iif(Cmp::Eq, INSIDE).load_daddr4(R1).cmp(Cmp::Eq, &plane_end.octets()).accept(),
        on().v4().load_iif().load_saddr4(R2).not_in_set(SOURCES4).count().drop(),
        on().v6().load_daddr6(R1).cmp(Cmp::Eq, &config.dns.octets()).accept(),
        on().v6().load_daddr6(R1).in_set(RESOLVERS).accept(),
        on().proto(TCP).v6().notrack().accept(),
        on().v4().daddr4_in(LINKS.0, LINKS.1).notrack().accept(),
        on().v4().load_daddr4(R1).in_set(PUBLIC4).notrack(),
        // To and from the host: what is new is told from answers, see `nat_rules`.
        on().v6().iif(Cmp::Eq, INSIDE).accept(),
        on().v6().load_ifname(INSIDE).load_daddr6(R2).in_set(SOURCES6).accept(),
        on().v6().notrack(),
        out().v6().load_saddr6(R1).cmp(Cmp::Eq, &config.dns.octets()).accept(),
        out().proto(TCP).notrack().accept(),
        out().v6().oif(Cmp::Eq, INSIDE).accept(),
        out().notrack(),
    ]
}

fn fly_rules() -> Vec<Rule> {
    let tcp6 = || Rule::on("fly").v6().proto(TCP);
    let ports4 = || Rule::on("ports4").load_daddr4(R1).load_dport(R1_SECOND_WORD);
    let ports6 = || Rule::on("ports6").load_daddr6(R1).load_dport(R2);
    let here6 = Ipv6Addr::LOCALHOST.octets();
    let here4 = Ipv4Addr::LOCALHOST.octets();
    let catch6 = Rule::on("catch6").tproxy(NFPROTO_IPV6, &here6, TRANSPARENT_PORT);
    let catch4 = Rule::on("catch4").v4().tproxy(NFPROTO_IPV4, &here4, TRANSPARENT_PORT);
    vec![
        // Who was let in is let on: the kernel finds an open connection's socket by itself, at an
        // address that is routed here. (Only SYN cookies would need more; the plane has none.)
        Rule::on("fly").syn(Cmp::Neq).accept(),
        tcp6().load_saddr6(R1).mask48(R1).load_daddr6(R2).in_set(VISIBLE6).jump("ports6"),
        tcp6().load_daddr6(R1).in_set(PUBLIC6).jump("ports6"),
        // One look-up for what comes over links, instead of one for each set of ports.
        Rule::on("fly").v4().proto(TCP).load_daddr4(R1).in_set(PUBLIC4).jump("ports4"),
        ports4().in_set(PORTS4).jump("catch4"),
        ports4().in_set(RANGES4).jump("catch4"),
        ports6().in_set(PORTS6).jump("catch6"),
        ports6().in_set(RANGES6).jump("catch6"),
        catch6.set_mark(MARK).accept(),
        Rule::on("catch6").syn(Cmp::Eq).count().drop(),
        catch4.set_mark(MARK).accept(),
        Rule::on("catch4").syn(Cmp::Eq).count().drop(),
    ]
}

fn nat_rules(config: &PlaneConfig) -> Vec<Rule> {
    let resolver = || {
        let mine = Rule::on("resolver").v6().load_saddr6(R1).mask48(R1).load_daddr6(R2);
        mine.in_set(VISIBLE6).load_daddr6(R1).in_set(RESOLVERS)
    };
    let dns = config.dns.octets();
    let from_machines = Rule::on("egress").v4().oif(Cmp::Eq, INSIDE).load_saddr4(R1);
    vec![
        resolver().proto(UDP).dport(DNS_PORT).dnat6(&dns),
        resolver().proto(TCP).dport(DNS_PORT).dnat6(&dns),
        from_machines.cmp(Cmp::Neq, &config.host_link.1.octets()).masquerade(),
        // Such a chain sees the first packet of a tracked connection only: answers pass.
        Rule::on("egress").v6().oif(Cmp::Eq, INSIDE).count().drop(),
    ]
}

fn input_rules(config: &PlaneConfig) -> Vec<Rule> {
    let on = || Rule::on("input");
    let dns = || on().v6().load_daddr6(R1).cmp(Cmp::Eq, &config.dns.octets());
    let echo6 = || on().v6().icmp(ICMPV6, ECHO_REQUEST_V6, ECHO_REQUEST_V6);
    let echo4 = || on().v4().icmp(ICMP, ECHO_REQUEST, ECHO_REQUEST);
    vec![
        on().mark(MARK).accept(),
        // Untracked, so told by its flags: it cannot open a connection, and the kernel resets what
        // belongs to none.
        on().syn(Cmp::Neq).accept(),
        on().iif(Cmp::Eq, "lo").accept(),
        on().established().accept(),
        dns().proto(UDP).dport(DNS_PORT).accept(),
        dns().proto(TCP).dport(DNS_PORT).accept(),
        // Unreachable, too big, time exceeded, parameter problem.
        on().v6().icmp(ICMPV6, 1, 4).accept(),
        on().v4().icmp(ICMP, 3, 3).accept(),
        on().v4().icmp(ICMP, 11, 12).accept(),
        // FC-05: with nothing running.
        echo6().load_daddr6(R1).in_set(PUBLIC6).accept(),
        echo6().load_saddr6(R1).mask48(R1).load_daddr6(R2).in_set(VISIBLE6).accept(),
        echo6().load_daddr6(R1).cmp(Cmp::Eq, &config.dns.octets()).accept(),
        echo4().load_daddr4(R1).in_set(PUBLIC4).accept(),
        on().jump("refuse"),
        // FC-30: at once. A TCP caller is sent a reset, not an ICMP error: one that arrives while
        // `connect` still holds its socket is taken for a passing trouble, and costs a second.
        Rule::on("refuse").reset(),
        Rule::on("refuse").proto(UDP).reject_port(),
        Rule::on("refuse").prohibit(),
    ]
}

fn forward_rules() -> Vec<Rule> {
    let on = || Rule::on("forward");
    let mut rules = vec![
        on().established().accept(),
        // Here as well as on the host, whose tables somebody may flush: nothing opens a connection
        // to the host. What is not TCP is held back in `nat_rules`.
        on().v6().oif(Cmp::Eq, INSIDE).syn(Cmp::Eq).jump("refuse"),
        on().v6().load_saddr6(R1).mask48(R1).load_daddr6(R2).mask48(R2).in_set(NETWORKS).accept(),
        on().v6().jump("refuse"),
        on().iif(Cmp::Eq, INSIDE).jump("refuse"),
        on().load_daddr4(R1).in_set(HOST4).jump("refuse"),
    ];
    rules.extend(NO_EGRESS.map(|(addr, len)| on().daddr4_in(addr, len).jump("refuse")));
    rules.push(on().oif(Cmp::Eq, INSIDE).accept());
    rules.push(on().jump("refuse"));
    rules
}

/// Makes the host's tables anew, each in one transaction.
pub(crate) fn ensure_host(socket: &mut Socket, config: &PlaneConfig) -> Result<(), NetError> {
    let table = host_table(&config.outside);
    for (family, rules) in [(Family::V4, host_rules4(config)), (Family::V6, host_rules6(config))] {
        let mut batch = Batch::on_family(family, &table);
        batch.add_table();
        batch.add_filter("input", Hook::Input, PRIORITY_EARLY);
        batch.add_filter("forward", Hook::Forward, PRIORITY_EARLY);
        if matches!(family, Family::V4) {
            batch.add_nat("egress", Hook::Postrouting, PRIORITY_SRCNAT);
        }
        batch.delete_rules();
        for rule in rules {
            batch.add_rule(rule);
        }
        batch.commit(socket)?;
    }
    Ok(())
}

fn host_rules4(config: &PlaneConfig) -> Vec<Rule> {
    let link = config.outside.as_str();
    let (input, forward) = (|| Rule::on("input"), || Rule::on("forward"));
    let plane_end = config.host_link.1.octets();
    vec![
        input().iif(Cmp::Eq, link).established().accept(),
        input().iif(Cmp::Eq, link).count().drop(),
        forward().oif(Cmp::Eq, link).established().accept(),
        forward().oif(Cmp::Eq, link).count().drop(),
        forward().iif(Cmp::Eq, link).load_saddr4(R1).cmp(Cmp::Neq, &plane_end).drop(),
        Rule::on("egress")
            .oif(Cmp::Neq, link)
            .load_saddr4(R1)
            .cmp(Cmp::Eq, &plane_end)
            .masquerade(),
    ]
}

/// Nothing in here may ask for a connection's state: see the module's head.
fn host_rules6(config: &PlaneConfig) -> Vec<Rule> {
    let link = config.outside.as_str();
    let (input, forward) = (|| Rule::on("input"), || Rule::on("forward"));
    let (first, last) = NEIGHBOUR_DISCOVERY;
    vec![
        input().iif(Cmp::Eq, link).syn(Cmp::Eq).count().drop(),
        // All neighbours on this link are told by us.
        input().iif(Cmp::Eq, link).icmp(ICMPV6, first, last).count().drop(),
        // Even where the host forwards IPv6 for somebody else.
        forward().iif(Cmp::Eq, link).count().drop(),
        forward().oif(Cmp::Eq, link).count().drop(),
    ]
}

/// Removes a table of both families, whether or not it exists.
pub(crate) fn remove_table(socket: &mut Socket, table: &str) -> Result<(), NetError> {
    remove(socket, Family::Both, table)
}

/// Removes the host's tables, whether or not they exist.
pub(crate) fn remove_host(socket: &mut Socket, outside: &str) -> Result<(), NetError> {
    remove(socket, Family::V4, &host_table(outside))?;
    remove(socket, Family::V6, &host_table(outside))?;
    remove_former_host(socket, outside)
}

/// Removes the one table for both families that was there before those two.
pub(crate) fn remove_former_host(socket: &mut Socket, outside: &str) -> Result<(), NetError> {
    remove_table(socket, &host_table(outside))
}

fn remove(socket: &mut Socket, family: Family, table: &str) -> Result<(), NetError> {
    let mut batch = Batch::on_family(family, table);
    batch.add_table();
    batch.delete_table();
    batch.commit(socket)
}

/// The name of both tables on the host, for the plane whose link is called `outside`.
fn host_table(outside: &str) -> String {
    format!("perch_{outside}")
}
