//! The sockets of UDP services: one in for all, one out for each service, one towards a Machine for each
//! session.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send,
    sendto, socket_with, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::Endpoints;

/// What nobody reads needs no buffer; the kernel makes the least of it.
const UNREAD_BUFFER_BYTES: usize = 0;

/// Waits for a datagram; its length, and who sent it to where.
pub(super) async fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, Endpoints)> {
    socket.async_io(Interest::READABLE, || receive_now(socket, buffer)).await
}

fn receive_now(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Endpoints)> {
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in6);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let received =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let caller = received.address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let dest = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv6OrigDstAddr(dest) => Some(SockaddrIn6::from(dest)),
        _ => None,
    });
    let dest = dest.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let plain = |at: SockaddrIn6| SocketAddr::from((at.ip(), at.port()));
    Ok((received.bytes, Endpoints { caller: plain(caller), dest: plain(dest) }))
}

/// Sends answers from the address and port that was asked.
#[derive(Debug)]
pub(super) struct Exit(OwnedFd);

impl Exit {
    /// A socket of its own. The address is no interface's, but is routed here; binding to it needs no
    /// privilege.
    pub(super) fn at(address: SocketAddr) -> io::Result<Self> {
        let SocketAddr::V6(address) = address else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let socket = datagrams(AddressFamily::INET6)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        // The resolver has port 53 of all addresses.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_ipv6_freebind(&socket, true)?;
        sockopt::set_socket_recv_buffer_size(&socket, UNREAD_BUFFER_BYTES)?;
        bind(&socket, &SocketAddrV6::new(*address.ip(), address.port(), 0, 0))?;
        Ok(Self(socket))
    }

    /// The socket by which the question came, for one that was sent to its own address.
    pub(super) fn of(socket: &UdpSocket) -> io::Result<Self> {
        socket.as_fd().try_clone_to_owned().map(Self)
    }

    /// Never waits.
    ///
    /// # Errors
    /// The kernel's; nothing was sent.
    pub(super) fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendto(&self.0, datagram, flags, &to)?;
        Ok(())
    }
}

/// A session's socket towards its Machine.
#[derive(Debug)]
pub(super) struct Upstream(UdpSocket);

impl Upstream {
    pub(super) fn new(target: SocketAddrV4) -> io::Result<Self> {
        let socket = datagrams(AddressFamily::INET)?;
        connect(&socket, &target)?;
        UdpSocket::from_std(std::net::UdpSocket::from(socket)).map(Self)
    }

    /// Never waits. What the kernel had to say of an earlier datagram is no reason to lose this one.
    ///
    /// # Errors
    /// The kernel's; nothing was sent. [`Sent::AfterRefusal`]: it was, but an earlier one was refused.
    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<Sent> {
        match self.send_once(datagram) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.send_once(datagram).map(|()| Sent::AfterRefusal)
            }
            sent => sent.map(|()| Sent::Whole),
        }
    }

    fn send_once(&self, datagram: &[u8]) -> io::Result<()> {
        send(&self.0, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for a datagram of the Machine and passes it on.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens; or the kernel's.
    pub(super) async fn pass_on(
        &self,
        mut pass: impl FnMut(&UdpSocket) -> io::Result<()>,
    ) -> io::Result<()> {
        self.0.async_io(Interest::READABLE | Interest::ERROR, || pass(&self.0)).await
    }

    /// What the kernel already knows: `Ok` if there is an answer.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing, `ConnectionRefused` when nobody listens.
    pub(super) fn look(&self) -> io::Result<()> {
        peek(&self.0)
    }

    /// Waits for an answer or an error, and leaves the answer where it is.
    pub(super) async fn listen(&self) -> io::Result<()> {
        self.0.async_io(Interest::READABLE | Interest::ERROR, || peek(&self.0)).await
    }
}

/// How a datagram went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Whole,
    AfterRefusal,
}

/// Reads one datagram if there is one.
pub(super) fn read(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket, buffer, RecvFlags::DONTWAIT)?.0)
}

fn peek(socket: &UdpSocket) -> io::Result<()> {
    recv(socket, &mut [0_u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK)?;
    Ok(())
}

fn datagrams(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::DGRAM, flags, None)?)
}
