//! Passing sockets between processes, by SCM_RIGHTS.
//!
//! The server starts the proxy with one end of a socket pair as standard input and sends a
//! [`Handover`] through the other end; no descriptor number needs to be agreed upon.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Sockets of [`Listeners`].
const LISTENER_COUNT: usize = 9;
/// What a proxy has that does not name its listeners: those of the first release, before there were UDP services.
const UNNAMED: [&str; 8] = [
    "proxy-tcp6",
    "proxy-tcp4",
    "proxy-dns-udp",
    "proxy-dns-tcp",
    "proxy-forward4",
    "proxy-forward6",
    "proxy-forward-tcp4",
    "proxy-forward-tcp6",
];
/// Descriptors that one message brings at the most: later releases may have more listeners.
const DESCRIPTORS_MAX: usize = 32;
/// Sockets of [`Handover`].
const HANDOVER_COUNT: usize = LISTENER_COUNT + 1;
/// The one byte that carries the descriptors of a [`Handover`].
const HANDOVER_BYTE: u8 = b'P';

/// The sockets that a proxy serves. All were made by somebody with the privileges to do so.
#[derive(Debug)]
pub struct Listeners {
    /// Transparent TCP, IPv6, on `[::1]`.
    pub tcp6: OwnedFd,
    /// Transparent TCP, IPv4, on `127.0.0.1`.
    pub tcp4: OwnedFd,
    /// Transparent UDP, IPv6, on `[::1]`; says with each datagram where it was sent to.
    pub udp6: OwnedFd,
    /// DNS over UDP, port 53 of all addresses; says with each question to which one it was sent.
    pub dns_udp: OwnedFd,
    /// DNS over TCP, port 53 of all addresses.
    pub dns_tcp: OwnedFd,
    /// Unbound UDP socket of the host's namespace, IPv4, for forwarding DNS questions.
    pub forward_v4: OwnedFd,
    /// The same for IPv6.
    pub forward_v6: OwnedFd,
    /// Unconnected TCP socket of the host's namespace, IPv4, for questions that came by TCP.
    pub forward_tcp_v4: OwnedFd,
    /// The same for IPv6.
    pub forward_tcp_v6: OwnedFd,
}

impl Listeners {
    /// What each of [`Listeners::as_fds`] is called in a service manager's descriptor store, in the same order.
    pub const NAMES: [&str; LISTENER_COUNT] = [
        "proxy-tcp6",
        "proxy-tcp4",
        "proxy-udp6",
        "proxy-dns-udp",
        "proxy-dns-tcp",
        "proxy-forward4",
        "proxy-forward6",
        "proxy-forward-tcp4",
        "proxy-forward-tcp6",
    ];

    /// Duplicates all of them.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let [a, b, udp, c, d, e, f, g, h] = self.as_fds();
        Ok(Self {
            tcp6: a.try_clone_to_owned()?,
            tcp4: b.try_clone_to_owned()?,
            udp6: udp.try_clone_to_owned()?,
            dns_udp: c.try_clone_to_owned()?,
            dns_tcp: d.try_clone_to_owned()?,
            forward_v4: e.try_clone_to_owned()?,
            forward_v6: f.try_clone_to_owned()?,
            forward_tcp_v4: g.try_clone_to_owned()?,
            forward_tcp_v6: h.try_clone_to_owned()?,
        })
    }

    /// All of them, in the order of [`Listeners::NAMES`].
    pub fn as_fds(&self) -> [BorrowedFd<'_>; LISTENER_COUNT] {
        [
            self.tcp6.as_fd(),
            self.tcp4.as_fd(),
            self.udp6.as_fd(),
            self.dns_udp.as_fd(),
            self.dns_tcp.as_fd(),
            self.forward_v4.as_fd(),
            self.forward_v6.as_fd(),
            self.forward_tcp_v4.as_fd(),
            self.forward_tcp_v6.as_fd(),
        ]
    }

    /// Takes them by their names, the newest of each; `make` makes those that are missing. Others are closed.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn from_named<E>(
        mut named: NamedListeners,
        mut make: impl FnMut(&'static str) -> Result<OwnedFd, E>,
    ) -> Result<Self, E> {
        let mut take = |name: &'static str| match named.iter().rposition(|(it, _fd)| it == name) {
            Some(at) => Ok(named.swap_remove(at).1),
            None => make(name),
        };
        let [tcp6, tcp4, udp6, dns_udp, dns_tcp, v4, v6, tcp_v4, tcp_v6] = Self::NAMES;
        Ok(Self {
            tcp6: take(tcp6)?,
            tcp4: take(tcp4)?,
            udp6: take(udp6)?,
            dns_udp: take(dns_udp)?,
            dns_tcp: take(dns_tcp)?,
            forward_v4: take(v4)?,
            forward_v6: take(v6)?,
            forward_tcp_v4: take(tcp_v4)?,
            forward_tcp_v6: take(tcp_v6)?,
        })
    }

    /// All of them with their names.
    pub fn into_named(self) -> NamedListeners {
        let fds = [
            self.tcp6,
            self.tcp4,
            self.udp6,
            self.dns_udp,
            self.dns_tcp,
            self.forward_v4,
            self.forward_v6,
            self.forward_tcp_v4,
            self.forward_tcp_v6,
        ];
        Self::NAMES.map(str::to_owned).into_iter().zip(fds).collect()
    }

    /// Takes them in the order of [`Listeners::NAMES`].
    ///
    /// # Errors
    /// [`HandoverError::Count`] when there are fewer or more.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, HandoverError> {
        let got = fds.len();
        let Ok(fds) = <[OwnedFd; LISTENER_COUNT]>::try_from(fds) else {
            return Err(HandoverError::Count { got, wanted: LISTENER_COUNT });
        };
        let [
            tcp6,
            tcp4,
            udp6,
            dns_udp,
            dns_tcp,
            forward_v4,
            forward_v6,
            forward_tcp_v4,
            forward_tcp_v6,
        ] = fds;
        Ok(Self {
            tcp6,
            tcp4,
            udp6,
            dns_udp,
            dns_tcp,
            forward_v4,
            forward_v6,
            forward_tcp_v4,
            forward_tcp_v6,
        })
    }
}

/// Listeners of a proxy of any release, each with its name of [`Listeners::NAMES`].
pub type NamedListeners = Vec<(String, OwnedFd)>;

/// Gives the listeners of a greeting their names.
pub(crate) fn named(
    names: Vec<String>,
    fds: Vec<OwnedFd>,
) -> Result<NamedListeners, HandoverError> {
    let names = match (names.is_empty(), fds.len()) {
        (true, LISTENER_COUNT) => Listeners::NAMES.map(str::to_owned).to_vec(),
        (true, _) => UNNAMED.map(str::to_owned).to_vec(),
        (false, _) => names,
    };
    let (got, wanted) = (fds.len(), names.len());
    if got != wanted {
        return Err(HandoverError::Count { got, wanted });
    }
    Ok(names.into_iter().zip(fds).collect())
}

/// Everything that a new proxy process is given.
#[derive(Debug)]
pub struct Handover {
    /// What it serves.
    pub listeners: Listeners,
    /// Where the server will connect.
    pub control: UnixListener,
}

impl Handover {
    /// Sends duplicates of all sockets in one message.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn send(&self, stream: &UnixStream) -> Result<(), HandoverError> {
        let mut fds = self.listeners.as_fds().to_vec();
        fds.push(self.control.as_fd());
        let sent = send_fds(stream.as_fd(), &[HANDOVER_BYTE], &fds).map_err(HandoverError::Io)?;
        debug_assert_eq!(sent, 1, "a stream takes one byte whole");
        Ok(())
    }

    /// Waits for what [`Handover::send`] sends; `stream` is the process's standard input.
    ///
    /// # Errors
    /// When the other side closes first or sends something else.
    pub fn receive(stream: BorrowedFd<'_>) -> Result<Self, HandoverError> {
        let mut byte = [0_u8; 1];
        let (read, mut fds) = receive_fds(stream, &mut byte).map_err(HandoverError::Io)?;
        if read == 0 {
            return Err(HandoverError::Closed);
        }
        let got = fds.len();
        let (HANDOVER_COUNT, Some(control)) = (got, fds.pop()) else {
            return Err(HandoverError::Count { got, wanted: HANDOVER_COUNT });
        };
        Ok(Self { listeners: Listeners::from_fds(fds)?, control: UnixListener::from(control) })
    }
}

/// Why sockets did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The kernel refused.
    #[error("could not pass the proxy's sockets")]
    Io(#[source] io::Error),
    /// The other side ended first.
    #[error("the other side closed before it sent the proxy's sockets")]
    Closed,
    /// The other side is something else.
    #[error("{got} sockets instead of {wanted} were passed to the proxy")]
    Count {
        /// How many came.
        got: usize,
        /// How many should have come.
        wanted: usize,
    },
}

pub(crate) fn send_listeners(
    stream: BorrowedFd<'_>,
    bytes: &[u8],
    listeners: &Listeners,
) -> io::Result<usize> {
    send_fds(stream, bytes, &listeners.as_fds())
}

pub(crate) fn send_fds(
    stream: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDOVER_COUNT))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

pub(crate) fn receive_fds(
    stream: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let read =
        recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((read.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(count: usize) -> Vec<OwnedFd> {
        let open = |_| std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback").into();
        (0..count).map(open).collect()
    }

    #[test]
    fn listeners_of_an_earlier_release_are_kept_and_what_it_did_not_have_is_made() {
        let former = named(Vec::new(), sockets(UNNAMED.len())).expect("they are complete");
        let mut made = Vec::new();
        let all = Listeners::from_named(former, |name| {
            made.push(name);
            sockets(1).pop().ok_or(())
        });
        assert!(all.is_ok());
        assert_eq!(made, ["proxy-udp6"]);
    }

    #[test]
    fn listeners_of_a_later_release_are_found_among_others_by_their_names() {
        let mut names: Vec<String> =
            Listeners::NAMES.iter().rev().map(ToString::to_string).collect();
        names.insert(3, "proxy-of-tomorrow".to_owned());
        let count = names.len();
        let later = named(names, sockets(count)).expect("they are complete");
        assert!(Listeners::from_named(later, |name| Err(name.to_owned())).is_ok());
    }

    #[test]
    fn a_greeting_without_all_of_its_listeners_is_none() {
        assert!(named(Vec::new(), sockets(UNNAMED.len() - 1)).is_err());
        assert!(named(vec!["proxy-tcp6".to_owned()], sockets(2)).is_err());
    }
}
