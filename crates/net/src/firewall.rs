//! The nft tables: a fixed dozen of rules over sets, whatever the number of Machines.
//!
//! Inside the plane, table `perch` of both families:
//!
//! ```text
//! raw   every packet has its sender's own source, else it is dropped; of IPv4 only egress is tracked
//! services  of raw, for what opens something: to a published address . port that the sender may see:
//!       to the transparent listener; a SYN that finds none is dropped, since a retry may find the
//!       successor; UDP's to a socket of its own
//!       A Machine that opens more connections a second than it may, or sends more datagrams: they are
//!       dropped, and it is remembered for a while who that was
//! input what the plane itself answers: replies, DNS, echo requests; the rest is refused. Urgent data of TCP come in line
//!       with the rest (RFC 6093): a read would stop at their mark, which nobody tells from the end of what there is
//! forward within one /48; IPv4 from Machines to the world; the rest is refused
//! raw_out, to_host  nothing goes to the host by IPv6 but TCP that opens nothing, and answers
//! ```
//!
//! and table `perch` of IPv4, whose `egress` lets Machines' packets leave under the plane's address.
//!
//! Nothing in the plane may ask for the state of IPv6: the kernel would then take every packet of the
//! warm path through connection tracking and NAT, in four hooks of each write. For the same reason a
//! packet comes through one chain before it is routed, not through one for each purpose. What the host has asked
//! by UDP or ping is remembered in a set instead. Fragments hide nothing from these rules: TPROXY
//! makes the kernel put them together first.
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
    R1_SECOND_WORD, R2, R3_FIRST_WORD, R3_SECOND_WORD, Rule, Set, SetKind, TCP, UDP, ifname, join,
};
use crate::plane::{CallLimits, PlaneConfig};

/// Both tables inside the plane.
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
pub(crate) const RANGES6: Set = Set { kind: SetKind::Ranges, ..set("ranges6", &[Ipv6, Port]) };
/// Like `PORTS6`.
pub(crate) const PORTS4: Set = set("ports4", &[Ipv4, Port]);
/// Like `RANGES6`.
pub(crate) const RANGES4: Set = Set { kind: SetKind::Ranges, ..set("ranges4", &[Ipv4, Port]) };
/// Ports of UDP services, like `PORTS6`.
pub(crate) const UDP_PORTS6: Set = set("udp_ports6", &[Ipv6, Port]);
/// Like `RANGES6`.
pub(crate) const UDP_RANGES6: Set =
    Set { kind: SetKind::Ranges, ..set("udp_ranges6", &[Ipv6, Port]) };
/// `<prefix>::3` of each network.
pub(crate) const RESOLVERS: Set = set("resolvers", &[Ipv6]);
/// The host's own IPv4 addresses, which egress must not reach.
pub(crate) const HOST4: Set = set("host4", &[Ipv4]);

/// What the host has sent by UDP: its address, the other one, its port, the other one.
const ASKED6: Set = Set { kind: ASKED, ..set("asked6", &[Ipv6, Ipv6, Port, Port]) };
/// Whom the host has pinged: its address, the other one, the identifier.
const PINGED6: Set = Set { kind: ASKED, ..set("pinged6", &[Ipv6, Ipv6, Port]) };

/// How often each Machine calls, by its address; and those who did too often a moment ago.
const CALLS6: Set = Set { kind: CALLERS, ..set("calls6", &[Ipv6]) };
/// The same at the shared IPv4 address.
const CALLS4: Set = Set { kind: CALLERS, ..set("calls4", &[Ipv4]) };
/// The same of datagrams to UDP services.
const DATAGRAMS6: Set = Set { kind: CALLERS, ..set("datagrams6", &[Ipv6]) };
/// Who opened too many connections.
pub(crate) const CALLED_OFTEN6: Set = Set { kind: CALLERS, ..set("called_often6", &[Ipv6]) };
/// Who sent too many datagrams.
pub(crate) const SENT_OFTEN6: Set = Set { kind: CALLERS, ..set("sent_often6", &[Ipv6]) };

/// More Machines than a host has; each key takes some 200 bytes while its Machine calls.
const CALLERS: SetKind = SetKind::Remembered { seconds: CALLED_OFTEN_SECONDS, len_max: 65_536 };
/// So long it is remembered who called too often.
pub(crate) const CALLED_OFTEN_SECONDS: u32 = 10;

/// An answer may come so late: as long as connection tracking waits for one of a flow that has gone
/// both ways. Each key takes some 150 bytes: 10 MB at most for each of the two sets.
const ASKED: SetKind = SetKind::Remembered { seconds: 120, len_max: 65_536 };

const SETS: [Set; 21] = [
    SOURCES6,
    SOURCES4,
    NETWORKS,
    VISIBLE6,
    PUBLIC6,
    PUBLIC4,
    PORTS6,
    RANGES6,
    PORTS4,
    RANGES4,
    RESOLVERS,
    HOST4,
    ASKED6,
    PINGED6,
    UDP_PORTS6,
    UDP_RANGES6,
    CALLS6,
    CALLS4,
    DATAGRAMS6,
    CALLED_OFTEN6,
    SENT_OFTEN6,
];

const fn set(name: &'static str, fields: &'static [Field]) -> Set {
    Set { name, fields, kind: SetKind::Keys }
}

/// Set on packets that go to the listener; a mark does not survive a change of namespace, so no
/// sender can bring it along.
const MARK: u32 = 0x70;
/// Set on IPv4 that comes from the host for the plane's own address. Only what answers a Machine's
/// egress is then sent on; its connection is known, or nothing would have changed the destination.
const MARK_ANSWER: u32 = 0x71;
const DNS_PORT: u16 = 53;

const PRIORITY_RAW: i32 = -300;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SRCNAT: i32 = 100;
/// Before the usual filters of the host's owner.
pub(crate) const PRIORITY_EARLY: i32 = -10;

const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Unreachable, too big, time exceeded, parameter problem.
const ERRORS_V6: (u8, u8) = (1, 4);
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

/// Makes the plane's tables, or renews their rules and keeps the sets; one transaction for each.
pub(crate) fn ensure_plane(
    socket: &mut Socket,
    config: &PlaneConfig,
    host_addresses: &[Ipv4Addr],
    stale_host_addresses: &[Element],
) -> Result<(), NetError> {
    ensure_egress(socket, config)?;
    let mut batch = Batch::on(TABLE);
    batch.add_table();
    for (id, set) in (1..).zip(SETS) {
        batch.add_set(id, set);
    }
    add_chains(&mut batch);
    batch.delete_rules();
    // Until NAT had a table of its own, and until services had no hook of their own any more.
    for former in ["resolver", "egress", "fly"] {
        batch.delete_chain(former);
    }
    let rules = [
        raw_rules(config),
        raw_out_rules(),
        limit_rules(config.call_limits),
        service_rules(),
        udp_service_rules(),
        input_rules(config),
        forward_rules(),
        to_host_rules(),
    ];
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

/// NAT of one family only: by its being there, the kernel tracks all of that family.
fn ensure_egress(socket: &mut Socket, config: &PlaneConfig) -> Result<(), NetError> {
    let mut batch = Batch::on_family(Family::V4, TABLE);
    batch.add_table();
    batch.add_nat("egress", Hook::Postrouting, PRIORITY_SRCNAT);
    batch.delete_rules();
    let from_machines = Rule::on("egress").oif(Cmp::Eq, INSIDE).load_saddr4(R1);
    batch.add_rule(from_machines.cmp(Cmp::Neq, &config.host_link.1.octets()).masquerade());
    batch.commit(socket)
}

fn add_chains(batch: &mut Batch<'_>) {
    batch.add_filter("raw", Hook::Prerouting, PRIORITY_RAW);
    batch.add_filter("raw_out", Hook::Output, PRIORITY_RAW);
    batch.add_chain("own");
    batch.add_chain("services");
    batch.add_chain("ports4");
    batch.add_chain("ports6");
    batch.add_chain("catch6");
    batch.add_chain("catch4");
    batch.add_chain("udp6");
    batch.add_chain("catch_udp6");
    batch.add_chain("refuse");
    batch.add_filter("input", Hook::Input, PRIORITY_FILTER);
    batch.add_filter("forward", Hook::Forward, PRIORITY_FILTER);
    batch.add_chain("to_host");
    batch.add_chain("from_host");
    batch.add_chain("members");
}

fn raw_rules(config: &PlaneConfig) -> Vec<Rule> {
    let (_, plane_end) = config.host_link;
    let on = || Rule::on("raw");
    let from_host = || on().v4().iif(Cmp::Eq, INSIDE);
    vec![
        on().iif(Cmp::Eq, "lo").jump("own"),
        on().v6().load_iif().load_saddr6(R2).not_in_set(SOURCES6).count().drop(),
        on().v6().jump("services"),
        on().v6().accept(),
        // Answers from the world come under any source.
        from_host()
            .load_daddr4(R1)
            .cmp(Cmp::Eq, &plane_end.octets())
            .set_mark(MARK_ANSWER)
            .accept(),
        on().load_iif().load_saddr4(R2).not_in_set(SOURCES4).count().drop(),
        on().daddr4_in(LINKS.0, LINKS.1).notrack().accept(),
        on().load_daddr4(R1).in_set(PUBLIC4).notrack().jump("services"),
        Rule::on("own").jump("services"),
        Rule::on("own").accept(),
    ]
}

/// What the plane itself sends.
fn raw_out_rules() -> Vec<Rule> {
    let on = || Rule::on("raw_out");
    vec![
        // First what there is most of.
        on().proto(TCP).notrack().accept(),
        on().v4().notrack().accept(),
        on().oif(Cmp::Neq, INSIDE).accept(),
        // The kernel's own: answers to pings, refusals.
        on().proto(ICMPV6).accept(),
        answer_by_udp(on()).in_set(ASKED6).accept(),
        on().count().drop(),
    ]
}

/// Before the listeners hear of it. The host is one caller for many people, and is not limited.
fn limit_rules(limits: CallLimits) -> Vec<Rule> {
    let from_machine = |chain| Rule::on(chain).iif(Cmp::Neq, INSIDE);
    let mut rules = Vec::new();
    if let most @ 1.. = limits.connections_per_second {
        let v6 = from_machine("catch6").load_saddr6(R1).more_often(CALLS6, most);
        rules.push(v6.remember(CALLED_OFTEN6).count().drop());
        rules.push(from_machine("catch4").load_saddr4(R1).more_often(CALLS4, most).count().drop());
    }
    if let most @ 1.. = limits.datagrams_per_second {
        let v6 = from_machine("catch_udp6").load_saddr6(R1).more_often(DATAGRAMS6, most);
        rules.push(v6.remember(SENT_OFTEN6).count().drop());
    }
    rules
}

fn service_rules() -> Vec<Rule> {
    let tcp6 = || Rule::on("services").v6().proto(TCP);
    let ports4 = || Rule::on("ports4").load_daddr4(R1).load_dport(R1_SECOND_WORD);
    let ports6 = || Rule::on("ports6").load_daddr6(R1).load_dport(R2);
    let here6 = Ipv6Addr::LOCALHOST.octets();
    let here4 = Ipv4Addr::LOCALHOST.octets();
    let catch6 = Rule::on("catch6").tproxy(NFPROTO_IPV6, &here6, TRANSPARENT_PORT);
    let catch4 = Rule::on("catch4").v4().tproxy(NFPROTO_IPV4, &here4, TRANSPARENT_PORT);
    vec![
        // Who was let in is let on: the kernel finds an open connection's socket by itself, at an
        // address that is routed here. (Only SYN cookies would need more; the plane has none.)
        Rule::on("services").syn(Cmp::Neq).accept(),
        tcp6().load_saddr6(R1).mask48(R1).load_daddr6(R2).in_set(VISIBLE6).jump("ports6"),
        tcp6().load_daddr6(R1).in_set(PUBLIC6).jump("ports6"),
        // One look-up for what comes over links, instead of one for each set of ports.
        Rule::on("services").v4().proto(TCP).load_daddr4(R1).in_set(PUBLIC4).jump("ports4"),
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

/// The same for UDP services. There is none at an IPv4 address, which is shared by apps.
fn udp_service_rules() -> Vec<Rule> {
    let on = || Rule::on("services").v6().proto(UDP);
    let udp6 = || Rule::on("udp6").load_daddr6(R1).load_dport(R2);
    let catch = || Rule::on("catch_udp6");
    let socket = Ipv6Addr::LOCALHOST.octets();
    vec![
        on().load_saddr6(R1).mask48(R1).load_daddr6(R2).in_set(VISIBLE6).jump("udp6"),
        on().load_daddr6(R1).in_set(PUBLIC6).jump("udp6"),
        udp6().in_set(UDP_PORTS6).jump("catch_udp6"),
        udp6().in_set(UDP_RANGES6).jump("catch_udp6"),
        // Else the answer would not pass to the host.
        remember_udp(catch().iif(Cmp::Eq, INSIDE)),
        catch().tproxy(NFPROTO_IPV6, &socket, TRANSPARENT_PORT).set_mark(MARK).accept(),
        catch().count().drop(),
    ]
}

fn input_rules(config: &PlaneConfig) -> Vec<Rule> {
    let on = || Rule::on("input");
    let dns = || on().v6().load_daddr6(R1).cmp(Cmp::Eq, &config.dns.octets());
    let resolver = || {
        let own = on().v6().load_saddr6(R1).mask48(R1).load_daddr6(R2).in_set(VISIBLE6);
        own.load_daddr6(R1).in_set(RESOLVERS)
    };
    let echo6 = || on().v6().icmp(ICMPV6, ECHO_REQUEST_V6, ECHO_REQUEST_V6);
    let echo4 = || on().v4().icmp(ICMP, ECHO_REQUEST, ECHO_REQUEST);
    vec![
        // First what there is most of.
        on().plain().accept(),
        on().unmark_urgent(),
        // Untracked, so told by its flags: it cannot open a connection, and the kernel resets what
        // belongs to none.
        on().syn(Cmp::Neq).accept(),
        on().mark(MARK).accept(),
        on().iif(Cmp::Eq, "lo").accept(),
        remember_udp(on().v6().iif(Cmp::Eq, INSIDE).proto(UDP).dport(DNS_PORT)),
        dns().proto(UDP).dport(DNS_PORT).accept(),
        dns().proto(TCP).dport(DNS_PORT).accept(),
        resolver().proto(UDP).dport(DNS_PORT).accept(),
        resolver().proto(TCP).dport(DNS_PORT).accept(),
        on().v6().icmp(ICMPV6, ERRORS_V6.0, ERRORS_V6.1).accept(),
        // What Machines answer to the proxy's sessions; its sockets hear whom they are connected to. Nothing
        // else reads UDP at the plane's ends of links.
        on().v4().iif(Cmp::Neq, INSIDE).proto(UDP).daddr4_in(LINKS.0, LINKS.1).accept(),
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
    let members = Rule::on("members").load_saddr6(R1).mask48(R1).load_daddr6(R2).mask48(R2);
    let mut rules = vec![
        on().mark(MARK_ANSWER).accept(),
        on().v6().oif(Cmp::Eq, INSIDE).jump("to_host"),
        on().v6().iif(Cmp::Eq, INSIDE).jump("from_host"),
        on().v6().jump("members"),
        members.in_set(NETWORKS).accept(),
        Rule::on("members").jump("refuse"),
        on().iif(Cmp::Eq, INSIDE).jump("refuse"),
        on().load_daddr4(R1).in_set(HOST4).jump("refuse"),
    ];
    rules.extend(NO_EGRESS.map(|(addr, len)| on().daddr4_in(addr, len).jump("refuse")));
    rules.push(on().oif(Cmp::Eq, INSIDE).accept());
    rules.push(on().jump("refuse"));
    rules
}

/// What Machines send to the host by IPv6. Here as well as on the host, whose tables somebody may
/// flush: nothing opens a connection to the host, and what is not TCP was asked for.
fn to_host_rules() -> Vec<Rule> {
    let on = || Rule::on("to_host");
    let from_host = || Rule::on("from_host");
    let echo = |rule: Rule, kind| rule.icmp(ICMPV6, kind, kind);
    // An error says what it is about: a datagram of the host's to whoever sends the error.
    let about = on().icmp(ICMPV6, ERRORS_V6.0, ERRORS_V6.1).inner_proto(UDP);
    let about = about.load_iif().load_inner_daddr6(R2).in_set(SOURCES6);
    let about = about.load_inner_saddr6(R1).load_inner_daddr6(R2);
    vec![
        remember_udp(from_host().proto(UDP)),
        echo(from_host(), ECHO_REQUEST_V6)
            .load_saddr6(R1)
            .load_daddr6(R2)
            .load_echo_id(R3_FIRST_WORD)
            .remember(PINGED6),
        on().syn(Cmp::Eq).jump("refuse"),
        on().proto(TCP).jump("members"),
        answer_by_udp(on()).in_set(ASKED6).jump("members"),
        echo(on(), ECHO_REPLY_V6)
            .load_daddr6(R1)
            .load_saddr6(R2)
            .load_echo_id(R3_FIRST_WORD)
            .in_set(PINGED6)
            .jump("members"),
        about
            .load_inner_sport(R3_FIRST_WORD)
            .load_inner_dport(R3_SECOND_WORD)
            .in_set(ASKED6)
            .jump("members"),
        on().count().drop(),
    ]
}

/// The key of a datagram that comes from the host.
fn remember_udp(rule: Rule) -> Rule {
    let ends = rule.load_saddr6(R1).load_daddr6(R2);
    ends.load_sport(R3_FIRST_WORD).load_dport(R3_SECOND_WORD).remember(ASKED6)
}

/// The same key of the datagram that answers it.
fn answer_by_udp(rule: Rule) -> Rule {
    let ends = rule.proto(UDP).load_daddr6(R1).load_saddr6(R2);
    ends.load_dport(R3_FIRST_WORD).load_sport(R3_SECOND_WORD)
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

/// Removes the plane's tables, whether or not they exist.
pub(crate) fn remove_plane(socket: &mut Socket) -> Result<(), NetError> {
    remove_table(socket, TABLE)?;
    remove(socket, Family::V4, TABLE)
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
