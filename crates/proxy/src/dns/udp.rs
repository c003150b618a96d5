//! Questions over UDP, on one socket for all addresses of the resolver: each comes with the address
//! that it was sent to, and is answered from there.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::in6_pktinfo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Questions(UdpSocket);

/// Who asks, and whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) from: SocketAddr,
    /// `None`: the socket has one address only, and was not told to say which.
    to: Option<Ipv6Addr>,
}

impl Questions {
    pub(super) fn new(fd: &OwnedFd) -> io::Result<Self> {
        super::udp_socket(fd).map(Self)
    }

    /// Waits for a datagram; its length and ends.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Ends)> {
        self.0.async_io(Interest::READABLE, || receive(&self.0, buffer)).await
    }

    /// Sends the answer back.
    pub(super) async fn answer(&self, answer: &[u8], ends: Ends) -> io::Result<usize> {
        let Some(to) = ends.to else { return self.0.send_to(answer, ends.from).await };
        self.0.async_io(Interest::WRITABLE, || send(&self.0, answer, ends.from, to)).await
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Ends)> {
    let mut control = nix::cmsg_space!(in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let received =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let from = received.address.ok_or(io::ErrorKind::AddrNotAvailable)?;
    let to = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_addr.s6_addr.into()),
        _ => None,
    });
    Ok((received.bytes, Ends { from: SocketAddrV6::from(from).into(), to }))
}

fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr, from: Ipv6Addr) -> io::Result<usize> {
    let SocketAddr::V6(to) = to else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
    let address = nix::libc::in6_addr { s6_addr: from.octets() };
    // By the route: callers' addresses are on links of their own.
    let info = in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
    let control = [ControlMessage::Ipv6PacketInfo(&info)];
    let to = Some(&SockaddrIn6::from(to));
    let flags = MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg(socket.as_raw_fd(), &[IoSlice::new(answer)], &control, flags, to)?)
}
