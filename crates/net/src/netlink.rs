//! The one builder and one socket for both netlink families that we speak: routes and nft.
//!
//! A [`Message`] knows in words what it does, so that a refusal names the object. Attributes are
//! values that nest; nothing is patched afterwards.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::error::NetError;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER_LEN: usize = 16;

/// The kernel answers a request before `send` returns; this only bounds a defect.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_BUFFER_LEN: usize = 32 * 1024;

/// A list of attributes, ready to be appended to a message or nested in another attribute.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attrs(Vec<u8>);

impl Attrs {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// A number in the host's byte order, as route netlink has it.
    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as nft has it.
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Nested attributes behind a fixed header, as a veth's peer has them.
    pub(crate) fn nest_behind(self, kind: u16, fixed: &[u8], inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &[fixed, &inner.0].concat())
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("attributes are a few hundred bytes");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// One request. Its sequence number is set when it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    what: String,
    bytes: Vec<u8>,
}

impl Message {
    /// `what` completes "could not …"; `fixed` is the family's header, a multiple of 4 bytes long.
    pub(crate) fn new(what: String, kind: u16, flags: u16, fixed: &[u8], attrs: &Attrs) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        bytes.extend_from_slice(&attrs.0);
        let len = u32::try_from(bytes.len()).expect("a message is far below 4 GiB");
        bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        Self { what, bytes }
    }

    fn set_seq(&mut self, seq: u32) {
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
    }

    pub(crate) fn ask_for_ack(&mut self) {
        let flags = self.flags() | NLM_F_ACK;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]])
    }

    fn wants_ack(&self) -> bool {
        self.flags() & NLM_F_ACK != 0
    }
}

/// A netlink socket. It stays in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
}

impl Socket {
    pub(crate) fn open_route() -> Result<Self, NetError> {
        // Protocol 0 of the family is NETLINK_ROUTE.
        Self::open(None)
    }

    pub(crate) fn open_netfilter() -> Result<Self, NetError> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, NetError> {
        let failed = |source| NetError::kernel("open a netlink socket", source);
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
            .map_err(failed)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(failed)?;
        Ok(Self { fd, seq: 0 })
    }

    /// Sends `messages` in one datagram and waits for every acknowledgement that they ask for.
    /// Returns the first refusal, except those with an error number in `forgiven`.
    pub(crate) fn apply(
        &mut self,
        messages: Vec<Message>,
        forgiven: &[i32],
    ) -> Result<(), NetError> {
        let first_seq = self.send(messages.iter().cloned())?;
        let mut open = messages.iter().filter(|message| message.wants_ack()).count();
        let mut refusal = None;
        while 0 < open {
            for reply in self.receive(first_seq)? {
                let Some(errno) = reply.errno() else { continue };
                let index = (reply.seq - first_seq) as usize;
                let Some(message) = messages.get(index) else { continue };
                if errno != 0 && !message.wants_ack() {
                    return Err(refused(message, errno));
                }
                open = open.saturating_sub(1);
                if errno != 0 && !forgiven.contains(&errno) {
                    refusal.get_or_insert_with(|| refused(message, errno));
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Sends a dump or a get and returns the bodies (behind the netlink header) of all answers.
    pub(crate) fn query(&mut self, message: Message) -> Result<Vec<Vec<u8>>, NetError> {
        let first_seq = self.send([message.clone()].into_iter())?;
        let mut bodies = Vec::new();
        loop {
            for reply in self.receive(first_seq)? {
                match reply.errno() {
                    Some(0) => return Ok(bodies),
                    Some(errno) => return Err(refused(&message, errno)),
                    None if reply.kind == NLMSG_DONE => return Ok(bodies),
                    None => bodies.push(reply.body),
                }
            }
        }
    }

    fn send(&mut self, messages: impl Iterator<Item = Message>) -> Result<u32, NetError> {
        let first_seq = self.seq.wrapping_add(1);
        let mut datagram = Vec::new();
        for mut message in messages {
            self.seq = self.seq.wrapping_add(1);
            message.set_seq(self.seq);
            datagram.extend_from_slice(&message.bytes);
        }
        send(self.fd.as_fd(), &datagram, SendFlags::empty())
            .map_err(|source| NetError::kernel("send to the kernel", source))?;
        Ok(first_seq)
    }

    /// Receives one datagram; answers to requests before `first_seq` (left behind by an early
    /// return) are dropped.
    fn receive(&mut self, first_seq: u32) -> Result<Vec<Reply>, NetError> {
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        let (len, _) = recv(self.fd.as_fd(), &mut buffer[..], RecvFlags::empty())
            .map_err(|source| NetError::kernel("hear from the kernel", source))?;
        Ok(parse_replies(&buffer[..len.min(RECEIVE_BUFFER_LEN)])
            .filter(|reply| first_seq <= reply.seq)
            .collect())
    }
}

fn refused(message: &Message, errno: i32) -> NetError {
    NetError::kernel(message.what.clone(), io::Error::from_raw_os_error(errno))
}

struct Reply {
    kind: u16,
    seq: u32,
    body: Vec<u8>,
}

impl Reply {
    /// The positive error number of an acknowledgement (0 is success); `None` for other answers.
    fn errno(&self) -> Option<i32> {
        let code = self.body.first_chunk::<4>().filter(|_| self.kind == NLMSG_ERROR)?;
        Some(-i32::from_ne_bytes(*code))
    }
}

fn parse_replies(mut rest: &[u8]) -> impl Iterator<Item = Reply> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER_LEN>()?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let seq = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let body = rest.get(HEADER_LEN..len)?.to_vec();
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Reply { kind, seq, body })
    })
}

/// Walks the attributes in `rest`, which came from the kernel; stops at anything malformed.
pub(crate) fn parse_attrs(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the first attribute of that kind.
pub(crate) fn find_attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    parse_attrs(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_nested_and_found_again() {
        let attrs = Attrs::new().text(3, "perch0").nest(18, Attrs::new().u8(8, 1).be32(9, 7));
        assert_eq!(attrs.0.len() % 4, 0);
        assert_eq!(find_attr(&attrs.0, 3), Some(&b"perch0\0"[..]));
        let inner = find_attr(&attrs.0, 18).expect("the nested attribute is there");
        assert_eq!(find_attr(inner, 8), Some(&[1][..]));
        assert_eq!(find_attr(inner, 9), Some(&[0, 0, 0, 7][..]));
        assert_eq!(find_attr(inner, 10), None);
    }

    #[test]
    fn malformed_input_ends_the_walk() {
        assert_eq!(parse_attrs(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(parse_attrs(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(parse_attrs(&[0, 0, 0, 0]).count(), 0);
        assert_eq!(parse_replies(&[0; 16]).count(), 0);
        assert_eq!(parse_replies(&[16; 20]).count(), 0);
    }

    #[test]
    fn a_refusal_names_what_was_attempted() {
        let mut socket = Socket::open_route().expect("anybody may open a route socket");
        let attrs = Attrs::new().text(3, "perch-no-such");
        let message = Message::new("find it".to_owned(), 18, NLM_F_ACK, &[0; 16], &attrs);
        let error = socket.query(message).expect_err("there is no such link");
        assert_eq!(error.to_string(), "could not find it");
    }
}
