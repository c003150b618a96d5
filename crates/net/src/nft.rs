//! The dozen nft expressions that we use, as a small vocabulary for rules, sets and batches.
//!
//! A batch is one transaction: the kernel does all of it or nothing. Registers are 16 bytes wide
//! (`R1`, `R2`, …); a key that spans several of them is compared as one.

use crate::error::NetError;
use crate::netlink::{
    Attrs, Message, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, Socket, find_attr, parse_attrs,
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

const LIST_ELEM: u16 = 1;
const SET_CONSTANT_LEN: usize = 4;
const SET_INTERVAL: u32 = 0x4;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
const DYNSET_UPDATE: u32 = 1;
const LIMIT_UNIT_SECONDS: u64 = 1;
const LIMIT_OF_PACKETS: u32 = 0;
/// Matches what is over the limit.
const LIMIT_OVER: u32 = 1;
const NFGENMSG_LEN: usize = 4;

/// First 16-byte register.
pub(crate) const R1: u32 = 1;
/// Second 16-byte register; follows `R1` without a gap.
pub(crate) const R2: u32 = 2;
/// The four bytes behind the first four of `R1`; follows a key of 4 bytes without a gap.
pub(crate) const R1_SECOND_WORD: u32 = 9;
/// The first four bytes behind `R2`.
pub(crate) const R3_FIRST_WORD: u32 = 16;
/// The four bytes behind those.
pub(crate) const R3_SECOND_WORD: u32 = 17;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_SKGID: u32 = 11;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;

const CT_ESTABLISHED_OR_RELATED: u32 = 2 | 4;

/// Where the packet begins that an ICMPv6 error is about.
const INNER_PACKET: u32 = 8;

const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_CHECKSUM_OFFSET: u32 = 16;
const CHECKSUM_OF_INTERNET: u32 = 1;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
const TCP_URG: u8 = 0x20;
/// FIN, SYN, RST, ACK.
const TCP_FLAGS_THAT_TELL: u8 = 0x17;

/// Whose packets a table sees. What a table asks of connection tracking, the kernel then does for
/// every packet of its family in the whole namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    Both = 1,
    V4 = 2,
    V6 = 10,
}

/// Where a base chain sits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// How a comparison ends well.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cmp {
    Eq = 0,
    Neq = 1,
    Lte = 3,
    Gte = 5,
}

/// One field of a set's key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field {
    Ifname,
    Ipv4,
    Ipv6,
    Port,
}

impl Field {
    /// The number by which the `nft` program knows the type; it makes listings readable.
    fn kind(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Port => 13,
            Self::Ifname => 41,
        }
    }

    fn len(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Port => 2,
            Self::Ipv6 | Self::Ifname => 16,
        }
    }
}

/// A set's definition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [Field],
    pub(crate) kind: SetKind,
}

/// What a set's elements are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SetKind {
    Keys,
    /// An element covers everything from one key to another.
    Ranges,
    /// Rules add keys (see [`Rule::remember`]), which are forgotten so long after the last time. When
    /// there are too many, no more are added.
    Remembered {
        seconds: u32,
        len_max: u32,
    },
}

/// An element: a key, and in sets of ranges the last key that it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) key_end: Option<Vec<u8>>,
}

impl Element {
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        Self { key: join(parts), key_end: None }
    }
}

/// Joins the fields of a key, each padded to four bytes.
pub(crate) fn join(parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::new();
    for part in parts {
        key.extend_from_slice(part);
        key.resize(key.len().next_multiple_of(SET_CONSTANT_LEN), 0);
    }
    key
}

/// An interface's name as it appears in keys.
pub(crate) fn ifname(name: &str) -> [u8; 16] {
    let mut key = [0; 16];
    for (to, from) in key.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    key
}

/// One transaction on one table.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    family: Family,
    table: &'a str,
    messages: Vec<Message>,
}

impl<'a> Batch<'a> {
    /// On a table of both families.
    pub(crate) fn on(table: &'a str) -> Self {
        Self::on_family(Family::Both, table)
    }

    pub(crate) fn on_family(family: Family, table: &'a str) -> Self {
        let fixed = [0, 0, 0, SUBSYSTEM.to_be_bytes()[1]];
        let begin = Message::new("begin a batch".to_owned(), BATCH_BEGIN, 0, &fixed, &Attrs::new());
        Self { family, table, messages: vec![begin] }
    }

    pub(crate) fn add_table(&mut self) {
        let attrs = Attrs::new().text(1, self.table);
        self.push(format!("add table {}", self.table), NEWTABLE, NLM_F_CREATE, &attrs);
    }

    /// Deletes the table, which must exist (add it first to be sure).
    pub(crate) fn delete_table(&mut self) {
        let attrs = Attrs::new().text(1, self.table);
        self.push(format!("delete table {}", self.table), DELTABLE, 0, &attrs);
    }

    /// Adds a base chain of type `filter` that accepts what reaches its end.
    pub(crate) fn add_filter(&mut self, name: &str, hook: Hook, priority: i32) {
        self.add_base_chain(name, "filter", hook, priority);
    }

    /// Adds a base chain of type `nat`.
    pub(crate) fn add_nat(&mut self, name: &str, hook: Hook, priority: i32) {
        self.add_base_chain(name, "nat", hook, priority);
    }

    fn add_base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        let hook = Attrs::new().be32(1, hook as u32).be32(2, priority.cast_unsigned());
        let attrs = Attrs::new().text(1, self.table).text(3, name).nest(4, hook).text(7, kind);
        self.push(format!("add chain {name}"), NEWCHAIN, NLM_F_CREATE, &attrs);
    }

    /// Adds a chain that is only jumped to.
    pub(crate) fn add_chain(&mut self, name: &str) {
        let attrs = Attrs::new().text(1, self.table).text(3, name);
        self.push(format!("add chain {name}"), NEWCHAIN, NLM_F_CREATE, &attrs);
    }

    /// Deletes a chain, of whatever kind, that has no rules; whether or not it exists.
    pub(crate) fn delete_chain(&mut self, name: &str) {
        // Deleting what is not there would fail the whole batch.
        self.add_chain(name);
        let attrs = Attrs::new().text(1, self.table).text(3, name);
        self.push(format!("delete chain {name}"), DELCHAIN, 0, &attrs);
    }

    /// Adds a set; one that exists must have the same definition and keeps its elements.
    pub(crate) fn add_set(&mut self, id: u32, set: Set) {
        let kind = set.fields.iter().fold(0, |kind, field| kind << 6 | field.kind());
        let padded = |field: &Field| field.len().next_multiple_of(4);
        let len = match set.fields {
            [single] => single.len(),
            several => several.iter().map(padded).sum(),
        };
        let flags = match set.kind {
            SetKind::Keys => 0,
            SetKind::Ranges => SET_INTERVAL | SET_CONCAT,
            SetKind::Remembered { .. } => SET_TIMEOUT | SET_EVAL,
        };
        let mut attrs = Attrs::new()
            .text(1, self.table)
            .text(2, set.name)
            .be32(3, flags)
            .be32(4, kind)
            .be32(5, len)
            .be32(10, id);
        match set.kind {
            SetKind::Keys => {}
            SetKind::Ranges => {
                let field = |attrs: Attrs, field: &Field| {
                    attrs.nest(LIST_ELEM, Attrs::new().be32(1, field.len()))
                };
                let concat = set.fields.iter().fold(Attrs::new(), field);
                attrs = attrs.nest(9, Attrs::new().nest(2, concat));
            }
            SetKind::Remembered { seconds, len_max } => {
                let description = Attrs::new().be32(1, len_max);
                attrs = attrs.nest(9, description).be64(11, u64::from(seconds) * 1000);
            }
        }
        self.push(format!("add set {}", set.name), NEWSET, NLM_F_CREATE, &attrs);
    }

    /// Deletes all rules of the table.
    pub(crate) fn delete_rules(&mut self) {
        let attrs = Attrs::new().text(1, self.table);
        self.push(format!("delete the rules of {}", self.table), DELRULE, 0, &attrs);
    }

    pub(crate) fn add_rule(&mut self, rule: Rule) {
        let attrs = Attrs::new().text(1, self.table).text(2, rule.chain).nest(4, rule.body);
        let what = format!("add a rule to chain {}", rule.chain);
        self.push(what, NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &attrs);
    }

    /// Adds elements; those that exist already stay.
    pub(crate) fn add_elements(&mut self, set: Set, elements: &[Element]) {
        self.push_elements("add", set, elements, NEWSETELEM, NLM_F_CREATE);
    }

    /// Deletes elements, whether or not they exist.
    pub(crate) fn delete_elements(&mut self, set: Set, elements: &[Element]) {
        // Deleting what is not there would fail the whole batch.
        self.add_elements(set, elements);
        self.push_elements("delete", set, elements, DELSETELEM, 0);
    }

    fn push_elements(&mut self, verb: &str, set: Set, elements: &[Element], kind: u16, flags: u16) {
        // An attribute holds 64 KiB; an element takes at most 80 bytes.
        const ELEMENTS_PER_MESSAGE_MAX: usize = 500;
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE_MAX) {
            let list = chunk.iter().fold(Attrs::new(), |list, element| {
                let mut attrs = Attrs::new().nest(1, value(&element.key));
                if let Some(end) = &element.key_end {
                    attrs = attrs.nest(10, value(end));
                }
                list.nest(LIST_ELEM, attrs)
            });
            let attrs = Attrs::new().text(1, self.table).text(2, set.name).nest(3, list);
            self.push(format!("{verb} elements of set {}", set.name), kind, flags, &attrs);
        }
    }

    fn push(&mut self, what: String, kind: u16, flags: u16, attrs: &Attrs) {
        let fixed = [self.family as u8, 0, 0, 0];
        self.messages.push(Message::new(what, SUBSYSTEM << 8 | kind, flags, &fixed, attrs));
    }

    /// Commits the batch.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> Result<(), NetError> {
        if self.messages.len() == 1 {
            return Ok(());
        }
        // Refusals are reported without being asked for; one acknowledgement marks the end, so that
        // a large batch does not overflow the socket's buffer.
        if let Some(last) = self.messages.last_mut() {
            last.ask_for_ack();
        }
        let fixed = [0, 0, 0, SUBSYSTEM.to_be_bytes()[1]];
        let end = Message::new("commit".to_owned(), BATCH_END, 0, &fixed, &Attrs::new());
        self.messages.push(end);
        socket.apply(self.messages, &[])
    }
}

/// Reads the elements of a set.
pub(crate) fn elements(
    socket: &mut Socket,
    table: &str,
    set: Set,
) -> Result<Vec<Element>, NetError> {
    let attrs = Attrs::new().text(1, table).text(2, set.name);
    let what = format!("list elements of set {}", set.name);
    let kind = SUBSYSTEM << 8 | GETSETELEM;
    let message = Message::new(what, kind, NLM_F_DUMP, &[Family::Both as u8, 0, 0, 0], &attrs);
    let bodies = socket.query(message)?;
    let lists = bodies.iter().filter_map(|body| find_attr(body.get(NFGENMSG_LEN..)?, 3));
    Ok(lists.flat_map(parse_attrs).filter_map(|(_, element)| parse_element(element)).collect())
}

fn parse_element(attrs: &[u8]) -> Option<Element> {
    let key = find_attr(find_attr(attrs, 1)?, 1)?.to_vec();
    let key_end = find_attr(attrs, 10).and_then(|data| find_attr(data, 1)).map(<[u8]>::to_vec);
    Some(Element { key, key_end })
}

fn value(bytes: &[u8]) -> Attrs {
    Attrs::new().bytes(1, bytes)
}

/// A rule: conditions from left to right, then what to do.
#[derive(Debug)]
pub(crate) struct Rule {
    chain: &'static str,
    body: Attrs,
}

impl Rule {
    pub(crate) fn on(chain: &'static str) -> Self {
        Self { chain, body: Attrs::new() }
    }

    fn expr(mut self, name: &str, data: Attrs) -> Self {
        self.body = self.body.nest(LIST_ELEM, Attrs::new().text(1, name).nest(2, data));
        self
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expr("meta", Attrs::new().be32(1, register).be32(2, key))
    }

    fn payload(self, base: u32, offset: u32, len: u32, register: u32) -> Self {
        let attrs = Attrs::new().be32(1, register).be32(2, base).be32(3, offset).be32(4, len);
        self.expr("payload", attrs)
    }

    /// Compares `R1`.
    pub(crate) fn cmp(self, op: Cmp, bytes: &[u8]) -> Self {
        self.expr("cmp", Attrs::new().be32(1, R1).be32(2, op as u32).nest(3, value(bytes)))
    }

    fn mask(self, register: u32, mask: &[u8]) -> Self {
        let len = u32::try_from(mask.len()).expect("a mask has at most 16 bytes");
        let zero = vec![0; mask.len()];
        let attrs = Attrs::new().be32(1, register).be32(2, register).be32(3, len);
        self.expr("bitwise", attrs.nest(4, value(mask)).nest(5, value(&zero)))
    }

    fn immediate(self, register: u32, bytes: &[u8]) -> Self {
        self.expr("immediate", Attrs::new().be32(1, register).nest(2, value(bytes)))
    }

    /// IPv6 packets.
    pub(crate) fn v6(self) -> Self {
        self.meta(META_NFPROTO, R1).cmp(Cmp::Eq, &[NFPROTO_IPV6])
    }

    /// IPv4 packets.
    pub(crate) fn v4(self) -> Self {
        self.meta(META_NFPROTO, R1).cmp(Cmp::Eq, &[NFPROTO_IPV4])
    }

    /// Packets of one transport protocol.
    pub(crate) fn proto(self, proto: u8) -> Self {
        self.meta(META_L4PROTO, R1).cmp(Cmp::Eq, &[proto])
    }

    pub(crate) fn iif(self, op: Cmp, name: &str) -> Self {
        self.meta(META_IIFNAME, R1).cmp(op, &ifname(name))
    }

    pub(crate) fn oif(self, op: Cmp, name: &str) -> Self {
        self.meta(META_OIFNAME, R1).cmp(op, &ifname(name))
    }

    /// Packets of a socket that this user made; one without a socket matches none.
    pub(crate) fn sender_user(self, uid: u32) -> Self {
        self.meta(META_SKUID, R1).cmp(Cmp::Eq, &uid.to_ne_bytes())
    }

    /// Packets of a socket that was made under this group.
    pub(crate) fn sender_group(self, gid: u32) -> Self {
        self.meta(META_SKGID, R1).cmp(Cmp::Eq, &gid.to_ne_bytes())
    }

    /// IPv6 destinations that begin with these bytes.
    pub(crate) fn daddr6_begins(self, bytes: [u8; 2]) -> Self {
        self.payload(BASE_NETWORK, 24, 2, R1).cmp(Cmp::Eq, &bytes)
    }

    /// Loads the incoming interface's name into `R1`.
    pub(crate) fn load_iif(self) -> Self {
        self.meta(META_IIFNAME, R1)
    }

    pub(crate) fn load_saddr6(self, register: u32) -> Self {
        self.payload(BASE_NETWORK, 8, 16, register)
    }

    pub(crate) fn load_daddr6(self, register: u32) -> Self {
        self.payload(BASE_NETWORK, 24, 16, register)
    }

    pub(crate) fn load_saddr4(self, register: u32) -> Self {
        self.payload(BASE_NETWORK, 12, 4, register)
    }

    pub(crate) fn load_daddr4(self, register: u32) -> Self {
        self.payload(BASE_NETWORK, 16, 4, register)
    }

    /// Loads the source port; two bytes, the rest of the word is zero.
    pub(crate) fn load_sport(self, register: u32) -> Self {
        self.payload(BASE_TRANSPORT, 0, 2, register)
    }

    /// Loads the destination port in the same way.
    pub(crate) fn load_dport(self, register: u32) -> Self {
        self.payload(BASE_TRANSPORT, 2, 2, register)
    }

    /// Loads the identifier of an echo request or reply in the same way.
    pub(crate) fn load_echo_id(self, register: u32) -> Self {
        self.payload(BASE_TRANSPORT, 4, 2, register)
    }

    /// Of the IPv6 packet that an ICMPv6 error is about: its protocol is this one.
    pub(crate) fn inner_proto(self, proto: u8) -> Self {
        self.payload(BASE_TRANSPORT, INNER_PACKET + 6, 1, R1).cmp(Cmp::Eq, &[proto])
    }

    /// Of that packet, loads the source address.
    pub(crate) fn load_inner_saddr6(self, register: u32) -> Self {
        self.payload(BASE_TRANSPORT, INNER_PACKET + 8, 16, register)
    }

    /// Of that packet, loads the destination address.
    pub(crate) fn load_inner_daddr6(self, register: u32) -> Self {
        self.payload(BASE_TRANSPORT, INNER_PACKET + 24, 16, register)
    }

    /// Of that packet, loads the source port.
    pub(crate) fn load_inner_sport(self, register: u32) -> Self {
        self.payload(BASE_TRANSPORT, INNER_PACKET + 40, 2, register)
    }

    /// Of that packet, loads the destination port.
    pub(crate) fn load_inner_dport(self, register: u32) -> Self {
        self.payload(BASE_TRANSPORT, INNER_PACKET + 42, 2, register)
    }

    pub(crate) fn dport(self, port: u16) -> Self {
        self.load_dport(R1).cmp(Cmp::Eq, &port.to_be_bytes())
    }

    /// Keeps the first 48 bits of the address in `register`.
    pub(crate) fn mask48(self, register: u32) -> Self {
        let mut mask = [0; 16];
        mask[..6].fill(0xff);
        self.mask(register, &mask)
    }

    /// IPv4 destinations inside `addr/len`.
    pub(crate) fn daddr4_in(self, addr: [u8; 4], len: u32) -> Self {
        let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0).to_be_bytes();
        self.load_daddr4(R1).mask(R1, &mask).cmp(Cmp::Eq, &addr)
    }

    /// ICMP or ICMPv6 types from `first` to `last`.
    pub(crate) fn icmp(self, proto: u8, first: u8, last: u8) -> Self {
        let rule = self.proto(proto).payload(BASE_TRANSPORT, 0, 1, R1);
        rule.cmp(Cmp::Gte, &[first]).cmp(Cmp::Lte, &[last])
    }

    /// TCP segments that ask for a new connection (`Eq`), or all others (`Neq`).
    pub(crate) fn syn(self, op: Cmp) -> Self {
        let rule = self.proto(TCP).payload(BASE_TRANSPORT, TCP_FLAGS_OFFSET, 1, R1);
        rule.mask(R1, &[TCP_FLAGS_THAT_TELL]).cmp(op, &[TCP_SYN])
    }

    /// TCP segments of open connections, but for those that mark something as urgent.
    pub(crate) fn plain(self) -> Self {
        let rule = self.proto(TCP).payload(BASE_TRANSPORT, TCP_FLAGS_OFFSET, 1, R1);
        rule.mask(R1, &[TCP_SYN | TCP_ACK | TCP_URG]).cmp(Cmp::Eq, &[TCP_ACK])
    }

    /// TCP segments that mark something as urgent lose the mark.
    pub(crate) fn unmark_urgent(self) -> Self {
        let rule = self.proto(TCP).payload(BASE_TRANSPORT, TCP_FLAGS_OFFSET, 1, R1);
        let rule = rule.mask(R1, &[TCP_URG]).cmp(Cmp::Eq, &[TCP_URG]);
        // A whole word of the checksum.
        let (offset, len) = (TCP_FLAGS_OFFSET - 1, 2);
        let rule = rule.payload(BASE_TRANSPORT, offset, len, R1).mask(R1, &[u8::MAX, !TCP_URG]);
        let write = Attrs::new().be32(5, R1).be32(2, BASE_TRANSPORT).be32(3, offset).be32(4, len);
        rule.expr("payload", write.be32(6, CHECKSUM_OF_INTERNET).be32(7, TCP_CHECKSUM_OFFSET))
    }

    /// Packets of tracked connections that exist.
    pub(crate) fn established(self) -> Self {
        let bits = CT_ESTABLISHED_OR_RELATED.to_ne_bytes();
        let rule = self.expr("ct", Attrs::new().be32(1, R1).be32(2, 0));
        rule.mask(R1, &bits).cmp(Cmp::Neq, &[0; 4])
    }

    pub(crate) fn mark(self, mark: u32) -> Self {
        self.meta(META_MARK, R1).cmp(Cmp::Eq, &mark.to_ne_bytes())
    }

    /// The key that begins in `R1` is in the set.
    pub(crate) fn in_set(self, set: Set) -> Self {
        self.expr("lookup", Attrs::new().text(1, set.name).be32(2, R1))
    }

    /// The key that begins in `R1` is not in the set.
    pub(crate) fn not_in_set(self, set: Set) -> Self {
        self.expr("lookup", Attrs::new().text(1, set.name).be32(2, R1).be32(5, 1))
    }

    /// Remembers the key that begins in `R1`; ends the rule when the set is full.
    pub(crate) fn remember(self, set: Set) -> Self {
        let attrs = Attrs::new().text(1, set.name).be32(3, DYNSET_UPDATE).be32(4, R1);
        self.expr("dynset", attrs)
    }

    /// The key that begins in `R1` comes more often than so many times a second, after as many at once. Each key has a
    /// count of its own, which is forgotten with the key; what the set has no room for is never too often.
    pub(crate) fn more_often(self, set: Set, per_second: u32) -> Self {
        let limit = Attrs::new()
            .be64(1, u64::from(per_second))
            .be64(2, LIMIT_UNIT_SECONDS)
            .be32(3, per_second)
            .be32(4, LIMIT_OF_PACKETS)
            .be32(5, LIMIT_OVER);
        let count = Attrs::new().text(1, "limit").nest(2, limit);
        let attrs = Attrs::new().text(1, set.name).be32(3, DYNSET_UPDATE).be32(4, R1);
        self.expr("dynset", attrs.nest(7, count))
    }

    pub(crate) fn count(self) -> Self {
        self.expr("counter", Attrs::new())
    }

    pub(crate) fn notrack(self) -> Self {
        self.expr("notrack", Attrs::new())
    }

    pub(crate) fn set_mark(self, mark: u32) -> Self {
        let rule = self.immediate(R1, &mark.to_ne_bytes());
        rule.expr("meta", Attrs::new().be32(2, META_MARK).be32(3, R1))
    }

    /// Hands the packet to the transparent listener at `addr`; ends the rule when there is none.
    pub(crate) fn tproxy(self, family: u8, addr: &[u8], port: u16) -> Self {
        let rule = self.immediate(R1, addr).immediate(R2, &port.to_be_bytes());
        let attrs = Attrs::new().be32(1, u32::from(family)).be32(2, R1).be32(3, R2);
        rule.expr("tproxy", attrs)
    }

    pub(crate) fn masquerade(self) -> Self {
        self.expr("masq", Attrs::new())
    }

    /// Answers a TCP segment with a reset.
    pub(crate) fn reset(self) -> Self {
        self.proto(TCP).expr("reject", Attrs::new().be32(1, 1).u8(2, 0))
    }

    /// Answers "port unreachable".
    pub(crate) fn reject_port(self) -> Self {
        self.expr("reject", Attrs::new().be32(1, 2).u8(2, 1))
    }

    /// Answers "administratively prohibited"; a caller sees it at once as a denied permission.
    pub(crate) fn prohibit(self) -> Self {
        self.expr("reject", Attrs::new().be32(1, 2).u8(2, 3))
    }

    pub(crate) fn accept(self) -> Self {
        self.verdict(Attrs::new().be32(1, 1))
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(Attrs::new().be32(1, 0))
    }

    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(Attrs::new().be32(1, (-3_i32).cast_unsigned()).text(2, chain))
    }

    fn verdict(self, verdict: Attrs) -> Self {
        let data = Attrs::new().nest(2, verdict);
        self.expr("immediate", Attrs::new().be32(1, 0).nest(2, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_padded_to_words() {
        assert_eq!(join(&[&[1, 2, 3, 4], &80_u16.to_be_bytes()]), [1, 2, 3, 4, 0, 80, 0, 0]);
        assert_eq!(ifname("eth0")[..5], *b"eth0\0");
        assert_eq!(ifname("0123456789abcdefgh")[15], 0);
    }
}
