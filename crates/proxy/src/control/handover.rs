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

pub(crate) fn listeners_from(fds: Vec<OwnedFd>) -> Result<Listeners, HandoverError> {
    Listeners::from_fds(fds)
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
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDOVER_COUNT))];
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
