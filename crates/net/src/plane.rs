//! The plane itself: what is wanted, and how to make it so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use crate::address::{Prefix, Prefix48};
use crate::error::NetError;
use crate::listeners::Listeners;

/// What distinguishes one plane from another on the same host.
///
/// Two planes must differ in `pin`, `outside` and `host_link`, and in their public prefix and
/// shared address when the host is to reach both.
#[derive(Debug, Clone)]
pub struct PlaneConfig {
    /// File that the namespace is bound to, so that it outlives every process.
    pub pin: PathBuf,
    /// Name of the host's end of the link, `perch0` by default; at most 15 bytes. Also names the
    /// host's nft table: `perch_<outside>`.
    pub outside: String,
    /// IPv4 of the link between host and plane: the host's end, the plane's end.
    pub host_link: (Ipv4Addr, Ipv4Addr),
    /// Public IPv6 pool. Its last address but one belongs to the host's end of the link.
    pub public_v6: Prefix,
    /// The shared public IPv4 address.
    pub shared_v4: Ipv4Addr,
    /// The resolver's address, `fdaa::3`.
    pub dns: Ipv6Addr,
}

/// Who may call a published address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// Members of one network.
    Network(Prefix48),
    /// Members of every network, and the host.
    Everyone,
}

/// One Machine's place in the plane.
#[derive(Debug, Clone)]
pub struct Attach {
    /// Interface name in the plane, for example the Machine's id; at most 15 bytes, unique.
    pub name: String,
    /// The Machine's 6PN address; its /48 is its network.
    pub private_ip: Ipv6Addr,
    /// IPv4 of the private link: the plane's end (even), the Machine's end (odd), one /31.
    pub link: (Ipv4Addr, Ipv4Addr),
}

/// A data plane that exists. Dropping it leaves the kernel's part as it is.
#[derive(Debug)]
pub struct Plane {
    config: PlaneConfig,
    netns: OwnedFd,
}

impl Plane {
    /// Makes the plane, or adopts the one that is pinned, and brings its fixed parts up to date.
    ///
    /// Idempotent. The calling thread's network namespace is the host. An adopted plane keeps its
    /// networks, published addresses and Machines, and traffic goes on meanwhile. On the host it
    /// makes the link, its routes and one nft table, and switches IPv4 forwarding on.
    ///
    /// # Errors
    /// When the process is not privileged, the kernel lacks a feature (see [`crate::doctor`]), or a
    /// name in the config is unusable.
    pub fn ensure(config: &PlaneConfig) -> Result<Self, NetError> {
        pending(config)
    }

    /// Makes the proxy's sockets. Call it only when no proxy holds such sockets (it then answers
    /// "address in use"): a living one hands over its own.
    pub fn listeners(&self) -> Result<Listeners, NetError> {
        pending(&self.config)
    }

    /// Opens a network: its Flycast addresses and resolver exist, its Machines may reach each
    /// other, the host has a route to it. With `host_peer` the host is a member under that address.
    ///
    /// Idempotent; a different `host_peer` replaces the former one.
    pub fn ensure_network(
        &self,
        network: Prefix48,
        host_peer: Option<Ipv6Addr>,
    ) -> Result<(), NetError> {
        pending(&(network, host_peer))
    }

    /// Closes a network. Its Machines and addresses should be gone before. Idempotent.
    pub fn remove_network(&self, network: Prefix48) -> Result<(), NetError> {
        pending(&network)
    }

    /// Sends new TCP connections to `addr` on any of the inclusive port ranges to the listeners,
    /// for those who may see it. Replaces what was published at `addr`, in one step. With no ports
    /// the address answers pings only.
    pub fn publish(
        &self,
        addr: IpAddr,
        ports: &[(u16, u16)],
        visible: Visible,
    ) -> Result<(), NetError> {
        pending(&(addr, ports, visible))
    }

    /// Refuses new connections to `addr` from now on; open ones live on. Idempotent.
    pub fn unpublish(&self, addr: IpAddr) -> Result<(), NetError> {
        pending(&addr)
    }

    /// Lists what is published, also by an earlier process.
    pub fn published(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    /// Lists the open networks, also those opened by an earlier process.
    pub fn networks(&self) -> Vec<Prefix48> {
        Vec::new()
    }

    /// Makes a Machine's network namespace and connects it. The namespace lives as long as the
    /// returned descriptor or a process in it.
    ///
    /// What had the same name before is disconnected, so do not attach a Machine that still runs.
    pub fn attach(&self, attach: &Attach) -> Result<OwnedFd, NetError> {
        pending(attach)
    }

    /// Lists the names of attached Machines, also those attached by an earlier process.
    pub fn attached(&self) -> Result<Vec<String>, NetError> {
        pending(&self.config)
    }

    /// Disconnects a Machine. Idempotent.
    pub fn detach(&self, name: &str) -> Result<(), NetError> {
        pending(&name)
    }

    /// The plane's namespace.
    pub fn netns_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Runs `work` on a new thread inside the plane's namespace; see [`crate::run_in`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        crate::namespace::run_in(self.netns_fd(), work)
    }

    /// Removes the plane: links, tables, routes, the pin. Processes inside keep an empty namespace.
    /// IPv4 forwarding on the host stays on, since others may rely on it by now.
    pub fn remove(self) -> Result<(), NetError> {
        Self::remove_by_config(&self.config)
    }

    /// Like [`Plane::remove`] without making or adopting anything first. Idempotent. The calling
    /// thread's network namespace is the host.
    pub fn remove_by_config(config: &PlaneConfig) -> Result<(), NetError> {
        pending(config)
    }
}

fn pending<T>(what: &impl std::fmt::Debug) -> Result<T, NetError> {
    let source = std::io::Error::from(std::io::ErrorKind::Unsupported);
    Err(NetError::Kernel { what: format!("{what:?}"), source })
}
