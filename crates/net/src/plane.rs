//! The plane itself: what is wanted, and how to make it so.

mod fixed;
mod state;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

use crate::access::HostAccess;
use crate::address::{Prefix, Prefix48};
use crate::error::NetError;
use crate::firewall::{self, INSIDE, TABLE};
use crate::listeners::{self, Listeners, Listening};
use crate::namespace;
use crate::netlink::Socket;
use crate::nft::{self, Batch};
use crate::route::{self, GATEWAY, MAC_FAR, Via, all_of, only};
use crate::sys;
use state::{Machine, Published, State};

/// What distinguishes one plane from another on the same host.
///
/// Two planes must differ in `pin`, `outside` and `host_link`, and in their public prefix and
/// shared address: [`Plane::ensure`] refuses to take the host's routes from somebody else.
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
    /// Who on the host may call private networks of which the host is a member.
    pub host_access: HostAccess,
    /// How often a Machine may call.
    pub call_limits: CallLimits,
}

/// How often each Machine may call published addresses; what is beyond is dropped. 0: as often as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// New connections a second, after as many at once. The caller's kernel sends a dropped SYN again, after a second
    /// the first time.
    pub connections_per_second: u32,
    /// Datagrams to UDP services a second.
    pub datagrams_per_second: u32,
}

/// Machines that called too often in the last [`CalledOften::SECONDS`], by their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CalledOften {
    /// By connections.
    pub connections: Vec<Ipv6Addr>,
    /// By datagrams.
    pub datagrams: Vec<Ipv6Addr>,
}

impl CalledOften {
    /// How long it is known.
    pub const SECONDS: u32 = firewall::CALLED_OFTEN_SECONDS;
}

/// Who may call a published address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// Members of one network.
    Network(Prefix48),
    /// Members of every network, and the host.
    Everyone,
}

/// What is published at an address, by inclusive ranges in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports<'a> {
    /// For connections.
    pub tcp: &'a [(u16, u16)],
    /// For datagrams.
    pub udp: &'a [(u16, u16)],
}

impl<'a> Ports<'a> {
    /// Only these, of TCP.
    pub fn tcp(tcp: &'a [(u16, u16)]) -> Self {
        Self { tcp, udp: &[] }
    }
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
///
/// All methods block for at most some milliseconds and may be called from any thread.
#[derive(Debug)]
pub struct Plane {
    config: PlaneConfig,
    netns: OwnedFd,
    inner: Mutex<Inner>,
    /// Deletes links. Apart from `inner`, because the kernel waits tens of milliseconds in there
    /// after the link is gone for everybody else.
    sweeper: Mutex<Socket>,
    /// Namespaces made in advance.
    spare: Mutex<Vec<Spare>>,
}

/// A Machine's future namespace, and a socket inside it.
type Spare = (OwnedFd, Socket);

/// A namespace takes the kernel 0.6 ms, sometimes 10, and 0.3 MB; so many starts may come at once
/// on one host (DESIGN 4).
const SPARE_LEN_MAX: usize = 8;

/// The sockets, each bound to its namespace since it was opened, and what the kernel holds.
#[derive(Debug)]
struct Inner {
    route: Socket,
    nft: Socket,
    host_route: Socket,
    host_nft: Socket,
    /// Index of the host's end of the link, in the host's namespace.
    outside: u32,
    /// Index of the plane's end of that link.
    inside: u32,
    state: State,
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
    /// name in the config is unusable; [`NetError::RouteTaken`] when the host reaches a public
    /// address of the config elsewhere, and then nothing was made.
    pub fn ensure(config: &PlaneConfig) -> Result<Self, NetError> {
        let (netns, inner) = fixed::ensure(config)?;
        let sweeper = Mutex::new(namespace::run_in(netns.as_fd(), Socket::open_route)??);
        let (inner, spare) = (Mutex::new(inner), Mutex::default());
        let plane = Self { config: config.clone(), netns, inner, sweeper, spare };
        // The host's half is new after a reboot of the link; the plane's half is not.
        let networks = plane.lock().state.networks.clone();
        for (network, host_peer) in networks {
            plane.ensure_network(network, host_peer)?;
        }
        tracing::info!(outside = config.outside, "data plane is ready");
        Ok(plane)
    }

    /// Nothing of a plane: for tests of those who hold one and do not use it. Nobody can enter it.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    #[doc(hidden)]
    pub fn of_nothing(config: PlaneConfig) -> Result<Self, NetError> {
        let failed = |source| NetError::kernel("open /dev/null", source);
        let netns = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let (route, nft) = (Socket::open_route()?, Socket::open_netfilter()?);
        let (host_route, host_nft) = (Socket::open_route()?, Socket::open_netfilter()?);
        let (outside, inside, state) = (0, 0, State::default());
        let inner = Inner { route, nft, host_route, host_nft, outside, inside, state };
        Ok(Self {
            config,
            netns: netns.map_err(failed)?,
            inner: Mutex::new(inner),
            sweeper: Mutex::new(Socket::open_route()?),
            spare: Mutex::default(),
        })
    }

    /// Makes the proxy's sockets. Call it only when no proxy holds such sockets (it then answers
    /// "address in use"): a living one hands over its own.
    ///
    /// # Errors
    /// When a socket cannot be made, for example because a living proxy holds one.
    pub fn listeners(&self) -> Result<Listeners, NetError> {
        self.enter(listeners::open)?
    }

    /// Who called too often a moment ago.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn called_often(&self) -> Result<CalledOften, NetError> {
        let read = |socket: &mut Socket, set| {
            let elements = nft::elements(socket, TABLE, set)?;
            let addr = |element: nft::Element| {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(element.key.get(..16)?).ok()?))
            };
            Ok::<_, NetError>(elements.into_iter().filter_map(addr).collect())
        };
        self.enter(|| {
            let mut socket = Socket::open_netfilter()?;
            let connections = read(&mut socket, firewall::CALLED_OFTEN6)?;
            Ok(CalledOften { connections, datagrams: read(&mut socket, firewall::SENT_OFTEN6)? })
        })?
    }

    /// Makes one of them; the others may be held by a living proxy.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listener(&self, which: Listening) -> Result<OwnedFd, NetError> {
        self.enter(|| listeners::open_one(which))?
    }

    /// Whether a socket was made inside this plane, and not in one that is gone.
    ///
    /// # Errors
    /// When the descriptor is no socket.
    pub fn holds(&self, socket: BorrowedFd<'_>) -> Result<bool, NetError> {
        let theirs = sys::namespace_of(socket)
            .map_err(|source| NetError::kernel("find a socket's namespace", source))?;
        namespace::same(theirs.as_fd(), self.netns.as_fd())
    }

    /// Opens a network: its Flycast addresses and resolver exist, its Machines may reach each
    /// other, the host has a route to it. With `host_peer` the host is a member under that address.
    ///
    /// Idempotent; a different `host_peer` replaces the former one.
    ///
    /// # Errors
    /// [`NetError::ForeignAddress`] when `host_peer` is not in the network; or the kernel's.
    pub fn ensure_network(
        &self,
        network: Prefix48,
        host_peer: Option<Ipv6Addr>,
    ) -> Result<(), NetError> {
        if let Some(addr) = host_peer.filter(|addr| !network.contains(*addr)) {
            return Err(NetError::ForeignAddress { addr: addr.into() });
        }
        let inner = &mut *self.lock();
        let former = inner.state.networks.get(&network).copied().flatten();
        if let Some(former) = former.filter(|former| Some(*former) != host_peer) {
            inner.remove_host_peer(former)?;
        }
        inner.route.apply(
            vec![
                route::add_route(all_of(network.flycast()), Via::Here),
                route::add_route(only(network.resolver().into()), Via::Here),
            ],
            &[],
        )?;
        let mut batch = Batch::on(TABLE);
        let own = firewall::network_and(network, network.first());
        batch.add_elements(firewall::NETWORKS, &[own]);
        let resolver = network.resolver();
        batch.add_elements(firewall::RESOLVERS, &[state::address_key(resolver.into())]);
        batch.add_elements(firewall::VISIBLE6, &[firewall::network_and(network, resolver)]);
        batch.commit(&mut inner.nft)?;
        if let Some(addr) = host_peer {
            inner.add_host_peer(addr)?;
        }
        let via = Via::Gateway(inner.outside, GATEWAY.into());
        inner.host_route.apply(vec![route::add_route(all_of(network.whole()), via)], &[])?;
        inner.state.networks.insert(network, host_peer);
        Ok(())
    }

    /// Closes a network. Its Machines and addresses should be gone before. Idempotent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_network(&self, network: Prefix48) -> Result<(), NetError> {
        let inner = &mut *self.lock();
        let Some(host_peer) = inner.state.networks.get(&network).copied() else { return Ok(()) };
        if let Some(addr) = host_peer {
            inner.remove_host_peer(addr)?;
        }
        let via = Via::Gateway(inner.outside, GATEWAY.into());
        let host_route = route::delete_route(all_of(network.whole()), via);
        inner.host_route.apply(vec![host_route], &[libc::ESRCH])?;
        let mut batch = Batch::on(TABLE);
        let (own, resolver) = (network.first(), network.resolver());
        batch.delete_elements(firewall::NETWORKS, &[firewall::network_and(network, own)]);
        batch.delete_elements(firewall::RESOLVERS, &[state::address_key(resolver.into())]);
        batch.delete_elements(firewall::VISIBLE6, &[firewall::network_and(network, resolver)]);
        batch.commit(&mut inner.nft)?;
        let routes = vec![
            route::delete_route(all_of(network.flycast()), Via::Here),
            route::delete_route(only(resolver.into()), Via::Here),
        ];
        inner.route.apply(routes, &[libc::ESRCH])?;
        inner.state.networks.remove(&network);
        Ok(())
    }

    /// Sends new TCP connections and datagrams to `addr` on any of these ports to the listeners,
    /// for those who may see it; datagrams to an IPv4 address, which is shared by apps, to none. Replaces what was published at `addr`, in one step. With no ports
    /// the address answers pings only.
    ///
    /// # Errors
    /// [`NetError::ForeignAddress`] when `addr` is neither a Flycast address of an open network nor
    /// in the public pool nor the shared address; [`NetError::NotForOneNetwork`] when it is an IPv4
    /// address for one network; or the kernel's.
    pub fn publish(
        &self,
        addr: IpAddr,
        ports: Ports<'_>,
        visible: Visible,
    ) -> Result<(), NetError> {
        let inner = &mut *self.lock();
        if !self.owns(&inner.state, addr) {
            return Err(NetError::ForeignAddress { addr });
        }
        if addr.is_ipv4() && visible != Visible::Everyone {
            return Err(NetError::NotForOneNetwork { addr });
        }
        let udp_ports = if addr.is_ipv4() { Vec::new() } else { state::merged(ports.udp) };
        let wanted =
            Published { ports: state::merged(ports.tcp), udp_ports, visible: vec![visible] };
        if inner.state.published.get(&addr).is_some_and(|former| former.is_same(&wanted)) {
            return Ok(());
        }
        let mut batch = Batch::on(TABLE);
        if let Some(former) = inner.state.published.get(&addr) {
            former.remove(addr, &mut batch);
        }
        wanted.add(addr, &mut batch);
        batch.commit(&mut inner.nft)?;
        inner.state.published.insert(addr, wanted);
        Ok(())
    }

    fn owns(&self, state: &State, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => addr == self.config.shared_v4,
            IpAddr::V6(addr) => {
                let network = Prefix48::of(addr);
                let flycast =
                    state.networks.contains_key(&network) && network.flycast().contains(addr);
                flycast || self.config.public_v6.contains(addr)
            }
        }
    }

    /// Refuses new connections to `addr` from now on; open ones live on. Idempotent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unpublish(&self, addr: IpAddr) -> Result<(), NetError> {
        let inner = &mut *self.lock();
        let Some(former) = inner.state.published.get(&addr) else { return Ok(()) };
        let mut batch = Batch::on(TABLE);
        former.remove(addr, &mut batch);
        batch.commit(&mut inner.nft)?;
        inner.state.published.remove(&addr);
        Ok(())
    }

    /// Lists what is published, also by an earlier process.
    pub fn published(&self) -> Vec<IpAddr> {
        self.lock().state.published.keys().copied().collect()
    }

    /// Lists the open networks, also those opened by an earlier process.
    pub fn networks(&self) -> Vec<Prefix48> {
        self.lock().state.networks.keys().copied().collect()
    }

    /// Lists the names of attached Machines, also those attached by an earlier process. A Machine
    /// that died is listed until it is detached.
    pub fn attached(&self) -> Vec<String> {
        self.lock().state.machines.keys().cloned().collect()
    }

    /// Makes a Machine's network namespace and connects it. The namespace lives as long as the
    /// returned descriptor or a process in it.
    ///
    /// What had the same name before is disconnected, so do not attach a Machine that still runs.
    /// A namespace whose processes have ended is clean: it may serve the next run of the same
    /// Machine, which then needs no new attachment.
    ///
    /// # Errors
    /// [`NetError::BadName`], [`NetError::ForeignAddress`] when the network is not open, or the
    /// kernel's. After an error the Machine is not attached.
    pub fn attach(&self, attach: &Attach) -> Result<OwnedFd, NetError> {
        check_name(&attach.name)?;
        let network = Prefix48::of(attach.private_ip);
        if !self.lock().state.networks.contains_key(&network) {
            return Err(NetError::ForeignAddress { addr: attach.private_ip.into() });
        }
        let spare = self.lock_spare().pop();
        let (netns, mut far) = match spare {
            Some(spare) => spare,
            None => namespace::create(fixed::prepare_machine)?,
        };
        // Held to the end: a detach of the same name comes before all of this or after it.
        let inner = &mut *self.lock();
        let link = self.make_link(inner, &attach.name, netns.as_fd())?;
        let attached = inner.configure_machine(&self.config, attach, link, &mut far);
        if attached.is_err() {
            self.sweep(link)?;
        }
        attached.map(|()| netns)
    }

    /// Makes some namespaces in advance, so that the next Machines attach in half the time. To be
    /// called when nothing is urgent, for example after a start.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stock_up(&self) -> Result<(), NetError> {
        while self.lock_spare().len() < SPARE_LEN_MAX {
            let spare = namespace::create(fixed::prepare_machine)?;
            let mut stock = self.lock_spare();
            // Several launches stock up at once, and one of them was first.
            if stock.len() < SPARE_LEN_MAX {
                stock.push(spare);
            }
        }
        Ok(())
    }

    /// Makes a Machine's link in place of a former one, and returns its index.
    fn make_link(
        &self,
        inner: &mut Inner,
        name: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<u32, NetError> {
        inner.forget_machine(name)?;
        let make = || vec![route::add_veth(name, fixed::MACHINE_LINK, netns)];
        match inner.route.apply(make(), &[]) {
            Err(error) if error.is_errno(libc::EEXIST) => {
                self.sweep_found(inner.machine_link(name)?)?;
                inner.route.apply(make(), &[])?;
            }
            made => made?,
        }
        route::index_of(&mut inner.route, name)
    }

    /// Disconnects a Machine. Idempotent. Its addresses are closed at once; then the call waits
    /// for the kernel to take the link down (tens of milliseconds), in nobody's way: whoever
    /// attaches under the same name meanwhile keeps the new link.
    ///
    /// # Errors
    /// [`NetError::BadName`] or the kernel's.
    pub fn detach(&self, name: &str) -> Result<(), NetError> {
        check_name(name)?;
        let link = {
            let inner = &mut *self.lock();
            inner.forget_machine(name)?;
            inner.machine_link(name)?
        };
        self.sweep_found(link)
    }

    fn sweep_found(&self, link: Option<u32>) -> Result<(), NetError> {
        link.map_or(Ok(()), |link| self.sweep(link))
    }

    /// Deletes the very link that is meant. By its name it could be the next one of that name, and
    /// the kernel gives no index twice until two thousand million links were made.
    fn sweep(&self, link: u32) -> Result<(), NetError> {
        let mut sweeper = self.sweeper.lock().unwrap_or_else(PoisonError::into_inner);
        sweeper.apply(vec![route::delete_link_at(link)], &[libc::ENODEV])
    }

    /// Renews what depends on the host: its nft table and its routes, which somebody may have
    /// flushed, and the list of its own addresses, which egress must not reach. A route that leads
    /// elsewhere by now is left alone. Cheap; to be called now and then.
    ///
    /// # Errors
    /// The kernel's.
    pub fn refresh_host(&self) -> Result<(), NetError> {
        let inner = &mut *self.lock();
        fixed::refresh_host(
            &self.config,
            &mut inner.host_route,
            &mut inner.host_nft,
            &mut inner.nft,
        )?;
        let networks = inner.state.networks.keys().copied();
        fixed::renew_routes(&mut inner.host_route, &self.config, inner.outside, networks)
    }

    /// The plane's namespace.
    pub fn netns_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Runs `work` on a new thread inside the plane's namespace; see [`crate::run_in`].
    ///
    /// # Errors
    /// When the thread cannot be made or may not enter the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        namespace::run_in(self.netns_fd(), work)
    }

    /// Removes the plane: links, tables, routes, the pin. Processes inside keep an empty namespace.
    /// IPv4 forwarding on the host stays on, since others may rely on it by now.
    ///
    /// # Errors
    /// The kernel's; calling it (or [`Plane::remove_by_config`]) again goes on where it stopped.
    pub fn remove(self) -> Result<(), NetError> {
        Self::remove_by_config(&self.config)
    }

    /// Like [`Plane::remove`] without making or adopting anything first. Idempotent. The calling
    /// thread's network namespace is the host.
    ///
    /// # Errors
    /// As [`Plane::remove`].
    pub fn remove_by_config(config: &PlaneConfig) -> Result<(), NetError> {
        fixed::remove(config)
    }

    fn lock_spare(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one transaction of the kernel followed by one of memory, so a panic
        // between two changes leaves nothing half-done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add_host_peer(&mut self, addr: Ipv6Addr) -> Result<(), NetError> {
        self.host_route.apply(route::add_own6(self.outside, addr).into(), &[])?;
        let plane = vec![
            route::add_neighbour(self.inside, addr.into(), MAC_FAR),
            route::add_route(only(addr.into()), Via::Link(self.inside)),
        ];
        self.route.apply(plane, &[])?;
        let mut batch = Batch::on(TABLE);
        batch.add_elements(firewall::SOURCES6, &[firewall::source6(INSIDE, addr)]);
        batch.commit(&mut self.nft)
    }

    fn remove_host_peer(&mut self, addr: Ipv6Addr) -> Result<(), NetError> {
        let mut batch = Batch::on(TABLE);
        batch.delete_elements(firewall::SOURCES6, &[firewall::source6(INSIDE, addr)]);
        batch.commit(&mut self.nft)?;
        let plane = route::delete_route(only(addr.into()), Via::Link(self.inside));
        self.route.apply(vec![plane], &[libc::ESRCH])?;
        let host = route::delete_own6(self.outside, addr).into();
        self.host_route.apply(host, &[libc::ESRCH, libc::EADDRNOTAVAIL])
    }

    /// Configures both ends of a Machine's link and lets its sources in.
    fn configure_machine(
        &mut self,
        config: &PlaneConfig,
        attach: &Attach,
        link: u32,
        far: &mut Socket,
    ) -> Result<(), NetError> {
        self.route.apply(route::bring_up(&attach.name), &[])?;
        fixed::bring_up_machine(far)?;
        self.route.apply(vec![route::activate(&attach.name)], &[])?;
        self.configure_near_end(attach, link)?;
        fixed::configure_machine(far, config, attach)?;
        let machine = Machine { private_ip: attach.private_ip, link: attach.link.1 };
        let mut batch = Batch::on(TABLE);
        machine.add(&attach.name, &mut batch);
        batch.commit(&mut self.nft)?;
        self.state.machines.insert(attach.name.clone(), machine);
        Ok(())
    }

    fn configure_near_end(&mut self, attach: &Attach, link: u32) -> Result<(), NetError> {
        let (plane_end, machine_end) = attach.link;
        let private_ip = attach.private_ip.into();
        let messages = vec![
            route::add_address(link, (GATEWAY.into(), 64)),
            route::add_address(link, (plane_end.into(), 31)),
            route::add_neighbour(link, private_ip, MAC_FAR),
            route::add_neighbour(link, machine_end.into(), MAC_FAR),
            route::add_route(only(private_ip), Via::Link(link)),
        ];
        self.route.apply(messages, &[])
    }

    /// Finds a Machine's link; it may be gone with the Machine's namespace.
    fn machine_link(&mut self, name: &str) -> Result<Option<u32>, NetError> {
        match route::index_of(&mut self.route, name) {
            Err(error) if error.is_errno(libc::ENODEV) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Closes a Machine's sources: nothing that it sends gets further.
    fn forget_machine(&mut self, name: &str) -> Result<(), NetError> {
        let Some(machine) = self.state.machines.get(name) else { return Ok(()) };
        let mut batch = Batch::on(TABLE);
        machine.remove(name, &mut batch);
        batch.commit(&mut self.nft)?;
        self.state.machines.remove(name);
        Ok(())
    }
}

/// Checks a name that becomes an interface's.
fn check_name(name: &str) -> Result<(), NetError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let reserved = ["lo", INSIDE, ".", "..", "all", "default"].contains(&name);
    if reserved || !(1..=15).contains(&name.len()) || !name.bytes().all(plain) {
        return Err(NetError::BadName { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for bad in ["", ".", "..", "lo", "host0", "all", "a/b", "a b", "sixteen-bytes-xx"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["perch0", "148e21e6b46e89", "m.1_a-b", "fifteen-bytes-x"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
