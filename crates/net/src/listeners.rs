//! The sockets that the proxy process works with.

use std::os::fd::OwnedFd;

/// Listening sockets, made inside the plane's namespace, non-blocking and close-on-exec.
///
/// On an accepted connection `getsockname()` is the address and port that the caller dialled.
#[derive(Debug)]
pub struct Listeners {
    /// Transparent TCP listener for Flycast and public IPv6 addresses.
    pub tcp6: OwnedFd,
    /// Transparent TCP listener for the shared IPv4 address.
    pub tcp4: OwnedFd,
    /// DNS over UDP on the resolver's address, port 53. The source of a query is the asker's own
    /// address, also for queries to `<prefix>::3`.
    pub dns_udp: OwnedFd,
    /// DNS over TCP, listening.
    pub dns_tcp: OwnedFd,
}
