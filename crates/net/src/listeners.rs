//! The sockets that the proxy process works with.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_recv_buffer_size_force, set_socket_reuseaddr,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::NetError;
use crate::sys;

/// Port of the transparent listeners on the plane's loopback. Nothing else binds in there.
pub(crate) const TRANSPARENT_PORT: u16 = 10080;
const DNS_PORT: u16 = 53;

/// As many connections wait while no proxy lives: one pool's hold queue (10,000) and some. Each
/// costs the kernel about 5 kB. `net.core.somaxconn` of the plane is set to the same.
pub(crate) const BACKLOG_MAX: u16 = 16_384;

/// Datagrams to UDP services that nobody has read yet, and all that come while no proxy lives: of small
/// ones, which take the kernel 768 bytes each, some 10,000.
const UDP_BUFFER_BYTES: usize = 8 << 20;

/// Listening sockets, made inside the plane's namespace, non-blocking and close-on-exec.
///
/// On an accepted connection `getsockname()` is the address and port that the caller dialled.
#[derive(Debug)]
pub struct Listeners {
    /// Transparent TCP listener for Flycast and public IPv6 addresses.
    pub tcp6: OwnedFd,
    /// Transparent TCP listener for the shared IPv4 address.
    pub tcp4: OwnedFd,
    /// Transparent UDP socket for Flycast and public IPv6 addresses. Says with each datagram to which address
    /// and port it was sent (`IPV6_ORIGDSTADDR`).
    pub udp6: OwnedFd,
    /// DNS over UDP, port 53 of every address that the plane lets questions pass to: the resolver's
    /// and `<prefix>::3` of the asker's network. Says with each to which it was sent (`IPV6_PKTINFO`),
    /// and an answer must come from there.
    pub dns_udp: OwnedFd,
    /// DNS over TCP, listening.
    pub dns_tcp: OwnedFd,
}

/// One of [`Listeners`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// [`Listeners::tcp6`].
    Tcp6,
    /// [`Listeners::tcp4`].
    Tcp4,
    /// [`Listeners::udp6`].
    Udp6,
    /// [`Listeners::dns_udp`].
    DnsUdp,
    /// [`Listeners::dns_tcp`].
    DnsTcp,
}

/// Makes the sockets in the calling thread's namespace.
pub(crate) fn open() -> Result<Listeners, NetError> {
    Ok(Listeners {
        tcp6: open_one(Listening::Tcp6)?,
        tcp4: open_one(Listening::Tcp4)?,
        udp6: open_one(Listening::Udp6)?,
        dns_udp: open_one(Listening::DnsUdp)?,
        dns_tcp: open_one(Listening::DnsTcp)?,
    })
}

/// The same for one of them.
pub(crate) fn open_one(which: Listening) -> Result<OwnedFd, NetError> {
    let transparent_v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, TRANSPARENT_PORT));
    let resolver = SocketAddr::from((Ipv6Addr::UNSPECIFIED, DNS_PORT));
    match which {
        Listening::Tcp6 => tcp(transparent_v6),
        Listening::Tcp4 => tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, TRANSPARENT_PORT))),
        Listening::Udp6 => udp(transparent_v6),
        Listening::DnsUdp => questions(resolver),
        Listening::DnsTcp => tcp(resolver),
    }
}

fn questions(resolver: SocketAddr) -> Result<OwnedFd, NetError> {
    let socket = bound(SocketType::DGRAM, resolver)?;
    // A UDP service may be at port 53 of its own address, and answers from there.
    set_socket_reuseaddr(&socket, true).map_err(failed(resolver))?;
    sys::set_says_destination(socket.as_fd())
        .map_err(|source| NetError::kernel("ask for destinations of questions", source))?;
    Ok(socket)
}

fn tcp(addr: SocketAddr) -> Result<OwnedFd, NetError> {
    let socket = bound(SocketType::STREAM, addr)?;
    listen(&socket, i32::from(BACKLOG_MAX)).map_err(failed(addr))?;
    Ok(socket)
}

fn udp(addr: SocketAddr) -> Result<OwnedFd, NetError> {
    let socket = bound(SocketType::DGRAM, addr)?;
    let made = sys::set_says_original_destination(socket.as_fd());
    made.map_err(|source| NetError::kernel("ask for destinations of datagrams", source))?;
    set_socket_recv_buffer_size_force(&socket, UDP_BUFFER_BYTES).map_err(failed(addr))?;
    Ok(socket)
}

fn bound(kind: SocketType, addr: SocketAddr) -> Result<OwnedFd, NetError> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None).map_err(failed(addr))?;
    if kind == SocketType::STREAM {
        // Connections of a former listener may linger; a listener that lives still is an error.
        set_socket_reuseaddr(&socket, true).map_err(failed(addr))?;
    }
    let transparent = if addr.is_ipv4() {
        sys::set_transparent_v4(socket.as_fd())
    } else {
        set_ipv6_v6only(&socket, true).map_err(failed(addr))?;
        sys::set_transparent_v6(socket.as_fd())
    };
    transparent.map_err(|source| NetError::kernel(format!("make {addr} transparent"), source))?;
    bind(&socket, &addr).map_err(failed(addr))?;
    Ok(socket)
}

fn failed(addr: SocketAddr) -> impl Fn(rustix::io::Errno) -> NetError {
    move |errno| NetError::kernel(format!("listen on {addr}"), errno)
}
