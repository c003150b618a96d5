//! What the proxy knows: apps, addresses, networks; filled by the server, read by every connection.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use perch_core::address;
use perch_core::admission::Origin;
use perch_core::balancer;
use perch_core::dns::{Member, Presence};
use perch_core::fault::{self, Point};
use perch_core::ids::{BadId, MachineId, ProcessGroup, Region};
use perch_core::policy;
use perch_core::service::{PublishedPort, ServiceSpec};
use tokio::sync::watch;

use crate::app::{App, Asked, Guard, PortFacts, Protocol, Reuse};
use crate::control::{
    AddressKind, AddressView, AppView, Cause, FromProxy, MachineView, NetworkView, PortView,
    ServiceView, Settings, Source, ToProxy, Unit,
};
use crate::crowd::NoSeat;
use crate::ending::Ending;
use crate::freezer::Freezer;
use crate::http::connection::describe;
use crate::http::treatment::Treatment;
use crate::identity::{Consent, Signer, Stamp};
use crate::interning::Interner;
use crate::proxy_header::ProxyHeader;
use crate::server_side::ServerSide;
use crate::{Endpoints, Options, convert};

/// Everything that connections look up.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) server: Rc<ServerSide>,
    pub(crate) ending: Rc<Ending>,
    state: RefCell<State>,
    region: RefCell<Rc<str>>,
    /// Grows with each change of addresses: a connection looks again when it has.
    generation: Cell<u64>,
    /// `Server` and `Via`, ready to write.
    signature: String,
    signer: Signer,
    /// Whether a server has ever told all that it knows.
    filled: watch::Sender<bool>,
    /// How long what is in flight may go on, when another proxy has taken the listeners over.
    retires: watch::Sender<Option<Duration>>,
}

#[derive(Debug, Default)]
struct State {
    apps: BTreeMap<Rc<str>, Known>,
    /// Counts the servers that have connected.
    servers: u32,
    addresses: HashMap<IpAddr, Vec<Address>>,
    machines_by_link: HashMap<Ipv4Addr, MachineId>,
    machines_by_private: HashMap<Ipv6Addr, MachineId>,
    /// Which app a Machine belongs to.
    owners: HashMap<MachineId, Rc<App>>,
    services: Interner<[ServiceSpec]>,
    groups: Interner<ProcessGroup>,
    metadata: Interner<[(String, String)]>,
    settings: Option<Settings>,
    /// The first 48 bits of each network's addresses.
    networks: HashMap<[u8; 6], u32>,
    /// Organization and name of each.
    orgs: HashMap<u32, (Rc<str>, Rc<str>)>,
}

/// What is kept of an app's view, beside what the app itself keeps.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) app: Rc<App>,
    /// The server that named it last.
    server: u32,
    revision: u64,
    pub(crate) network: u32,
    pub(crate) addresses: Box<[AddressView]>,
    machines: Box<[Ends]>,
    /// The Machines that DNS lists. One that we cannot understand is missing for callers too.
    pub(crate) shown: Arc<[Member]>,
}

/// The addresses of a Machine.
#[derive(Debug)]
struct Ends {
    machine: MachineId,
    link: Ipv4Addr,
    private: Ipv6Addr,
}

#[derive(Debug, Clone)]
struct Address {
    app: Rc<App>,
    kind: AddressKind,
    /// 0: everybody may call.
    network: u32,
}

/// Where a connection goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    App(Rc<App>),
    /// The Host field says.
    Shared,
    Nobody,
}

/// A connection's ends, and what they mean.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) endpoints: Endpoints,
    pub(crate) target: Target,
    source: Source,
    /// The calling Machine.
    caller: Option<(Rc<App>, MachineId)>,
    generation: u64,
}

impl Destination {
    /// The port that was called by a connection.
    pub(crate) fn port(&self) -> PublishedPort {
        PublishedPort::tcp(self.endpoints.dest.port())
    }

    /// The port that was called by a datagram.
    pub(crate) fn udp_port(&self) -> PublishedPort {
        PublishedPort::udp(self.endpoints.dest.port())
    }

    /// Whether a request restarts the idle clock of `app` (AS-23). A Machine of the app that does not
    /// publish the port itself is a caller as any other.
    pub(crate) fn origin(&self, app: &Rc<App>) -> Origin {
        self.origin_at(self.port(), app)
    }

    /// The same of a call of this port.
    pub(crate) fn origin_at(&self, port: PublishedPort, app: &Rc<App>) -> Origin {
        match &self.caller {
            Some((own, machine)) if Rc::ptr_eq(own, app) && app.publishes(*machine, port) => {
                Origin::SamePool
            }
            Some(_) | None => Origin::Caller,
        }
    }

    /// For the record of what somebody asked.
    pub(crate) fn cause_of(&self, asked: Asked<'_>) -> Cause {
        self.cause(match asked {
            Asked::Request(head) => describe(head),
            Asked::Bytes => None,
            Asked::Datagram => Some("a datagram".to_owned()),
        })
    }

    /// Somebody was turned away for want of places, and so many others since it was told last.
    #[cold]
    pub(crate) fn note_turned_away(&self, what: &str, why: NoSeat, others: u64) {
        let Target::App(app) = &self.target else { return };
        let caller = self.endpoints.caller.ip();
        let more = format!("({others} more since it was told)");
        app.log(None, &format!("{what} from {caller} was reset: {why} {more}"));
        app.note_turned_away(self.cause(None), why.to_string());
    }

    /// For the record of a wake.
    pub(crate) fn cause(&self, request: Option<String>) -> Cause {
        let (caller, caller_port) = (self.endpoints.caller.ip(), self.endpoints.caller.port());
        Cause {
            caller,
            caller_port,
            source: self.source.clone(),
            dest: self.endpoints.dest,
            request,
        }
    }
}

impl Directory {
    pub(crate) fn new(options: &Options) -> Rc<Self> {
        let region = Region::LOCAL.to_string();
        Rc::new(Self {
            server: ServerSide::new(),
            ending: Rc::new(Ending::new()),
            state: RefCell::default(),
            region: RefCell::new(region.into()),
            generation: Cell::new(0),
            signature: format!("Server: perch/{}\r\nVia: 1.1 perch\r\n", options.version),
            signer: Signer::default(),
            filled: watch::Sender::new(false),
            retires: watch::Sender::new(None),
        })
    }

    pub(crate) fn region(&self) -> Rc<str> {
        Rc::clone(&self.region.borrow())
    }

    pub(crate) fn signature(&self) -> &str {
        &self.signature
    }

    /// Whether a server has ever told all that it knows.
    pub(crate) fn is_filled(&self) -> bool {
        *self.filled.borrow()
    }

    /// Waits until a server has told all that it knows.
    pub(crate) async fn filled(&self) {
        let mut filled = self.filled.subscribe();
        filled.wait_for(|filled| *filled).await.expect("the sender lives as long as we do");
    }

    /// Waits until another proxy has taken the listeners over; how long what is in flight may go on.
    pub(crate) async fn retires(&self) -> Duration {
        let mut retires = self.retires.subscribe();
        let bound = retires.wait_for(Option::is_some).await;
        (*bound.expect("the sender lives as long as we do")).expect("it was waited for")
    }

    /// Finds out what a new connection or session is.
    pub(crate) fn resolve(&self, endpoints: Endpoints) -> Destination {
        let (source, caller) = self.source(endpoints.caller.ip());
        let target = self.target(endpoints);
        let generation = self.generation.get();
        Destination { endpoints, target, source, caller, generation }
    }

    /// Looks again if anything has changed since the connection was resolved.
    pub(crate) fn refresh(&self, to: &mut Destination) {
        if to.generation != self.generation.get() {
            to.generation = self.generation.get();
            to.target = self.target(to.endpoints);
        }
    }

    fn target(&self, endpoints: Endpoints) -> Target {
        let state = self.state.borrow();
        let network = state.network_of(endpoints.caller.ip());
        let visible = |a: &&Address| a.network == 0 || network == Some(a.network);
        let Some(entries) = state.addresses.get(&endpoints.dest.ip()) else {
            return Target::Nobody;
        };
        match entries.iter().find(visible) {
            Some(entry) if entry.kind == AddressKind::Shared => Target::Shared,
            Some(entry) => Target::App(Rc::clone(&entry.app)),
            None => Target::Nobody,
        }
    }

    /// The app that a Host field names at a shared address.
    pub(crate) fn app_by_host(&self, host: Option<&str>, at: IpAddr) -> Option<Rc<App>> {
        let state = self.state.borrow();
        let domain = &state.settings.as_ref()?.public_domain;
        let host = host?.to_ascii_lowercase();
        let host = host.split(':').next()?;
        let name = host.strip_suffix(domain.as_str())?.strip_suffix('.')?;
        let shared = state.addresses.get(&at)?;
        if !shared.iter().any(|a| a.kind == AddressKind::Shared && *a.app.name == *name) {
            return None;
        }
        state.apps.get(name).map(|known| Rc::clone(&known.app))
    }

    /// The app to which a Machine of `issuer` sends a request: of the same network, as if it called by itself (PX-47).
    pub(crate) fn replay_target(&self, issuer: &App, name: &str) -> Result<Rc<App>, String> {
        let state = self.state.borrow();
        let unknown = || format!("PA04 fly-replay names the app {name}, which does not exist");
        let from = state.apps.get(&*issuer.name).ok_or_else(unknown)?.network;
        let known = state.apps.get(name).ok_or_else(unknown)?;
        if known.network == from {
            return Ok(Rc::clone(&known.app));
        }
        let org = |network: u32| state.orgs.get(&network).map(|(org, _)| org);
        let what = match org(from).is_some() && org(from) == org(known.network) {
            true => "network",
            false => "organization",
        };
        Err(format!("PA05 fly-replay names the app {name}, which is of another {what}"))
    }

    fn source(&self, caller: IpAddr) -> (Source, Option<(Rc<App>, MachineId)>) {
        let state = self.state.borrow();
        if let Some((app, machine)) = state.machine_at(caller) {
            let (name, id) = (app.name.to_string(), machine.to_string());
            let source = Source::Machine { app: name, machine: id };
            return (source, Some((Rc::clone(app), machine)));
        }
        let host = state.settings.as_ref().is_some_and(|s| s.host_peers.contains(&caller));
        (if host { Source::Host } else { Source::Unknown }, None)
    }

    /// Calls `act` with who calls, as rules know callers.
    pub(crate) fn with_caller<T>(
        &self,
        to: &Destination,
        act: impl FnOnce(policy::Caller<'_>) -> T,
    ) -> T {
        if let Some((app, _)) = &to.caller {
            return self.with_app_as_caller(app, act);
        }
        let ip = to.endpoints.caller.ip();
        let network = self.network_of(ip).and_then(|id| self.names_of(id));
        let network = network.as_ref().map(|(org, name)| (&**org, &**name));
        act(policy::Caller { app: None, network, peer: peer_name(ip, &to.source) })
    }

    /// The same for a Machine of this app.
    pub(crate) fn with_app_as_caller<T>(
        &self,
        app: &App,
        act: impl FnOnce(policy::Caller<'_>) -> T,
    ) -> T {
        let network = self.state.borrow().apps.get(&*app.name).map(|known| known.network);
        let network = network.and_then(|id| self.names_of(id));
        let network = network.as_ref().map(|(org, name)| (&**org, &**name));
        act(policy::Caller { app: Some(&app.name), network, peer: None })
    }

    /// The organization of an app.
    pub(crate) fn org_of(&self, app: &App) -> Option<Rc<str>> {
        let network = self.state.borrow().apps.get(&*app.name)?.network;
        self.names_of(network).map(|(org, _)| org)
    }

    fn names_of(&self, network: u32) -> Option<(Rc<str>, Rc<str>)> {
        self.state.borrow().orgs.get(&network).cloned()
    }

    /// What requests of a connection say of their caller; `None`: nobody that we know.
    pub(crate) fn signed(&self, to: &Destination) -> Option<(Rc<Stamp>, Consent)> {
        let (caller, dest) = (to.endpoints.caller.ip(), to.endpoints.dest.ip());
        let state = self.state.borrow();
        let who = state.who(caller, &to.source)?;
        let entries = state.addresses.get(&dest).into_iter().flatten();
        let mut kinds = entries.map(|entry| entry.kind);
        let is_public = kinds.any(|kind| kind != AddressKind::Private);
        let consent = if is_public { Consent::Asked } else { Consent::Given };
        Some((self.signer.stamp(caller, &who), consent))
    }

    /// How many connections a caller may have.
    pub(crate) fn connections_max_of(&self, caller: IpAddr) -> usize {
        let state = self.state.borrow();
        match state.settings.as_ref().map_or(0, |settings| settings.caller_connections_max) {
            most @ 1.. if state.machine_at(caller).is_some() => most as usize,
            _ => usize::MAX,
        }
    }

    /// An app, and where it is called.
    pub(crate) fn find(&self, name: &str) -> Option<(Rc<App>, Box<[AddressView]>)> {
        let state = self.state.borrow();
        let known = state.apps.get(name)?;
        Some((Rc::clone(&known.app), known.addresses.clone()))
    }

    /// Calls `read` with all apps, for DNS.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&mut dyn Iterator<Item = &Known>) -> T) -> T {
        read(&mut self.state.borrow().apps.values())
    }

    /// Changes with every change of apps, addresses and networks.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// The network of an address of ours.
    pub(crate) fn network_of(&self, ip: IpAddr) -> Option<u32> {
        self.state.borrow().network_of(ip)
    }

    /// Where DNS questions go that are not ours.
    pub(crate) fn resolvers(&self) -> Vec<std::net::SocketAddr> {
        let state = self.state.borrow();
        state.settings.as_ref().map(|s| s.resolvers.clone()).unwrap_or_default()
    }

    /// A server has connected and begins to tell.
    pub(crate) fn begin_snapshot(&self) {
        self.state.borrow_mut().servers += 1;
    }

    /// The server is gone; what runs is served on.
    pub(crate) fn server_lost(&self) {
        self.server.lost();
        for app in self.apps() {
            app.handle(balancer::Event::ServerLost);
        }
    }

    /// Takes in what the server says.
    pub(crate) fn apply(&self, message: ToProxy, descriptors: Vec<OwnedFd>) {
        match message {
            ToProxy::Settings(settings) => self.set_settings(settings),
            ToProxy::App(view) => self.set_app(view),
            ToProxy::RemoveApp { app } => self.remove_app(&app),
            ToProxy::SnapshotEnd => self.end_snapshot(),
            ToProxy::StartDone { machine, attempt, outcome } => {
                let outcome = convert::start_outcome(outcome);
                if let Ok(id) = machine.parse() {
                    self.server.start_done(id, attempt);
                }
                self.for_machine(&machine, |app, id| app.start_done(id, attempt, outcome));
            }
            ToProxy::StopDone { machine, attempt, outcome } => {
                let outcome = convert::stop_outcome(outcome);
                self.for_machine(&machine, |app, id| app.stop_done(id, attempt, outcome));
            }
            ToProxy::Drain { machine, run, token, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                self.for_machine(&machine, |app, machine| {
                    app.handle(balancer::Event::Drain { machine, run, token, timeout });
                });
            }
            ToProxy::MayStop { machine, run, token } => {
                let in_flight = self.may_stop(&machine, run);
                self.server.tell(FromProxy::Drained { machine, token, in_flight });
            }
            ToProxy::Retire { bound_ms } => {
                fault::pass(Point::ProxyRetires);
                self.server.retire();
                for app in self.apps() {
                    app.handle(balancer::Event::Retired);
                }
                self.retires.send_replace(Some(Duration::from_millis(bound_ms)));
            }
            ToProxy::Freezer { machine, run, thaw, inode, .. } => {
                match Freezer::new(run, thaw, inode, descriptors) {
                    Some(freezer) => {
                        self.for_machine(&machine, |app, id| app.set_freezer(id, freezer));
                    }
                    None => tracing::error!(machine, "a freezer came without its descriptors"),
                }
            }
            ToProxy::Live { .. } | ToProxy::Counts { .. } => {
                debug_assert!(false, "its session answers it");
            }
            ToProxy::Undrain { machine, run } => self.for_machine(&machine, |app, machine| {
                app.handle(balancer::Event::Undrain { machine, run });
            }),
        }
    }

    /// What forbids that a run sleeps; 0: nothing, and it gets no new work from here.
    fn may_stop(&self, machine: &str, run: u64) -> u64 {
        let mut in_flight = 0;
        self.for_machine(machine, |app, id| in_flight = app.may_stop(id, run));
        in_flight
    }

    fn for_machine(&self, text: &str, act: impl FnOnce(&Rc<App>, MachineId)) {
        let found = {
            let state = self.state.borrow();
            let id = text.parse::<MachineId>().ok();
            id.and_then(|id| Some((Rc::clone(state.owners.get(&id)?), id)))
        };
        match found {
            Some((app, id)) => act(&app, id),
            None => tracing::debug!(machine = text, "message about an unknown Machine"),
        }
    }

    fn set_settings(&self, settings: Settings) {
        *self.region.borrow_mut() = settings.region.as_str().into();
        self.server.set_starts_max(settings.starts_max);
        self.server.set_notes(settings.notes);
        self.signer.set_key(settings.source_key.as_ref());
        let mut state = self.state.borrow_mut();
        state.networks = settings.networks.iter().map(|n| (prefix(n.prefix), n.id)).collect();
        let names = |n: &NetworkView| (n.id, (n.org.as_str().into(), n.name.as_str().into()));
        state.orgs = settings.networks.iter().map(names).collect();
        state.settings = Some(settings);
        self.generation.set(self.generation.get() + 1);
    }

    fn set_app(&self, view: AppView) {
        let mut machines = Vec::with_capacity(view.machines.len());
        for machine in &view.machines {
            let interner = &mut self.state.borrow_mut().services;
            match convert::machine(machine, interner) {
                Ok(machine) => machines.push(machine),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(app = view.name, %error, cause, "a Machine is left out");
                }
            }
        }
        let former = self.machines_of(&view.name);
        let Some(app) = self.note_app(&view) else { return };
        for gone in former.into_iter().filter(|id| machines.iter().all(|m| m.id != *id)) {
            self.server.forget(gone);
        }
        app.set_checks(&view, &machines);
        let guards: Box<[Guard]> = guards(&view);
        let mut ports = ports(&view);
        for port in &mut ports {
            port.guarded = guards.iter().any(|guard| guard.meets(port.start, port.end));
        }
        app.set_guards(guards);
        app.set_machines(machines, ports);
    }

    fn machines_of(&self, name: &str) -> Vec<MachineId> {
        let state = self.state.borrow();
        let machines = state.apps.get(name).into_iter().flat_map(|known| &known.machines);
        machines.map(|ends| ends.machine).collect()
    }

    /// Stores the view; `None` if it is older than what we have.
    fn note_app(&self, view: &AppView) -> Option<Rc<App>> {
        let mut state = self.state.borrow_mut();
        let (server, former) = (state.servers, state.apps.get(view.name.as_str()));
        if former.is_some_and(|known| known.server == server && view.revision < known.revision) {
            return None;
        }
        let app = match former {
            Some(known) => Rc::clone(&known.app),
            None => self.make_app(&view.name),
        };
        state.forget(&view.name);
        let known = state.known(&app, view);
        state.index(&known);
        state.apps.insert(Rc::clone(&app.name), known);
        self.generation.set(self.generation.get() + 1);
        Some(app)
    }

    fn make_app(&self, name: &str) -> Rc<App> {
        let region = self.region().parse().unwrap_or(Region::LOCAL);
        let settings = balancer::Settings { region };
        let app = App::new(name, settings, Rc::clone(&self.server));
        if self.server.is_retired() {
            app.handle(balancer::Event::Retired);
        }
        if self.server.is_ready() {
            app.handle(balancer::Event::ServerReady);
        }
        app
    }

    fn remove_app(&self, name: &str) {
        for gone in self.machines_of(name) {
            self.server.forget(gone);
        }
        let removed = {
            let mut state = self.state.borrow_mut();
            state.forget(name);
            state.apps.remove(name)
        };
        self.generation.set(self.generation.get() + 1);
        if let Some(known) = removed {
            known.app.set_machines(Vec::new(), Box::default());
        }
    }

    fn end_snapshot(&self) {
        let gone: Vec<String> = {
            let state = self.state.borrow();
            let unnamed = state.apps.iter().filter(|(_, known)| known.server != state.servers);
            unnamed.map(|(name, _)| name.to_string()).collect()
        };
        for name in gone {
            self.remove_app(&name);
        }
        self.server.set_ready();
        for app in self.apps() {
            app.handle(balancer::Event::ServerReady);
            app.tell_all_checks();
        }
        self.filled.send_replace(true);
    }

    pub(crate) fn apps(&self) -> Vec<Rc<App>> {
        self.state.borrow().apps.values().map(|known| Rc::clone(&known.app)).collect()
    }
}

impl State {
    fn network_of(&self, ip: IpAddr) -> Option<u32> {
        match ip {
            IpAddr::V6(ip) => self.networks.get(&prefix(ip)).copied(),
            IpAddr::V4(_) => None,
        }
    }

    /// The caller in the words of `Fly-Src` (FC-40, FC-48).
    fn who(&self, caller: IpAddr, source: &Source) -> Option<String> {
        let network = match source {
            Source::Machine { app, .. } => self.apps.get(app.as_str()).map(|known| known.network),
            Source::Host | Source::Unknown => self.network_of(caller),
        };
        let (org, _) = self.orgs.get(&network?)?;
        match source {
            Source::Machine { app, machine } => {
                Some(format!("instance={machine};app={app};org={org}"))
            }
            Source::Host | Source::Unknown => {
                Some(format!("peer={};org={org}", peer_name(caller, source)?))
            }
        }
    }

    /// Removes an app's entries from all tables but `apps`.
    fn forget(&mut self, name: &str) {
        let Some(known) = self.apps.get(name) else { return };
        for address in &known.addresses {
            if let Some(entries) = self.addresses.get_mut(&address.ip) {
                entries.retain(|entry| *entry.app.name != *name);
                if entries.is_empty() {
                    self.addresses.remove(&address.ip);
                }
            }
        }
        for Ends { machine, link, private } in &known.machines {
            self.machines_by_link.remove(link);
            self.machines_by_private.remove(private);
            self.owners.remove(machine);
        }
    }

    fn index(&mut self, known: &Known) {
        for AddressView { ip, kind, network } in &known.addresses {
            let (app, kind, network) = (Rc::clone(&known.app), *kind, *network);
            let entries = self.addresses.entry(*ip).or_default();
            if entries.is_empty() {
                // Most addresses are one app's.
                entries.reserve_exact(1);
            }
            entries.push(Address { app, kind, network });
        }
        for Ends { machine, link, private } in &known.machines {
            self.machines_by_link.insert(*link, *machine);
            self.machines_by_private.insert(*private, *machine);
            self.owners.insert(*machine, Rc::clone(&known.app));
        }
    }

    fn machine_at(&self, ip: IpAddr) -> Option<(&Rc<App>, MachineId)> {
        let machine = match ip {
            IpAddr::V4(ip) => *self.machines_by_link.get(&ip)?,
            IpAddr::V6(ip) => *self.machines_by_private.get(&ip)?,
        };
        Some((self.owners.get(&machine)?, machine))
    }

    fn known(&mut self, app: &Rc<App>, view: &AppView) -> Known {
        let ends = view.machines.iter().filter_map(|machine| {
            let (link, private) = (machine.link_ip, machine.private_ip);
            Some(Ends { machine: machine.id.parse().ok()?, link, private })
        });
        let machines = ends.collect();
        let listed = view.machines.iter().filter(|machine| !machine.skip_dns);
        let shown = listed.filter_map(|machine| self.member(machine).ok()).collect();
        let addresses = view.addresses.as_slice().into();
        let (server, revision, network) = (self.servers, view.revision, view.network);
        Known { app: Rc::clone(app), server, revision, network, addresses, machines, shown }
    }

    /// As DNS wants it.
    fn member(&mut self, view: &MachineView) -> Result<Member, BadId> {
        let group = view.group.parse::<ProcessGroup>().ok();
        let metadata: Vec<_> =
            view.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Member {
            id: view.id.parse()?,
            region: view.region.parse()?,
            group: group.map(|group| self.groups.intern(group)),
            private_ip: view.private_ip,
            presence: if view.state == "started" { Presence::Started } else { Presence::Asleep },
            metadata: self.metadata.intern(metadata),
        })
    }
}

/// What a caller is called that is no Machine.
fn peer_name(caller: IpAddr, source: &Source) -> Option<&'static str> {
    let IpAddr::V6(ip) = caller else { return None };
    match source {
        Source::Host => Some("host"),
        Source::Unknown if address::network_of(ip).map(address::resolver) == Some(ip) => {
            Some("fly-proxy")
        }
        Source::Unknown | Source::Machine { .. } => None,
    }
}

fn prefix(ip: Ipv6Addr) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = ip.octets();
    [a, b, c, d, e, f]
}

/// How each published port is served; of Machines that differ, the first counts, and the longest wait.
fn ports(view: &AppView) -> Box<[PortFacts]> {
    let services = view.machines.iter().flat_map(|m| &m.services);
    let mut ports: Vec<PortFacts> = Vec::new();
    for facts in services.flat_map(service_ports) {
        match ports.iter_mut().find(|p| (p.start, p.end) == (facts.start, facts.end)) {
            Some(known) => {
                known.start_timeout = known.start_timeout.max(facts.start_timeout);
                known.first_byte |= facts.first_byte;
            }
            None => ports.push(facts),
        }
    }
    ports.into()
}

/// All rules, each set of them once.
fn guards(view: &AppView) -> Box<[Guard]> {
    let services = view.machines.iter().flat_map(|machine| &machine.services);
    let mut guards: Vec<Guard> = Vec::new();
    for guard in services.flat_map(Guard::of) {
        if !guards.contains(&guard) {
            guards.push(guard);
        }
    }
    guards.into()
}

fn service_ports(service: &ServiceView) -> impl Iterator<Item = PortFacts> {
    let transport = convert::transport(service);
    let reuse = match service.unit {
        Unit::Requests => Reuse::Pooled,
        Unit::Connections => Reuse::OneRequest,
    };
    let start_timeout = Duration::from_millis(service.start_timeout_ms);
    service.ports.iter().map(move |port| PortFacts {
        start: PublishedPort::of(transport, port.start),
        end: PublishedPort::of(transport, port.end),
        protocol: Protocol::of(port, transport),
        start_timeout,
        reuse,
        h2_backend: port.h2_backend,
        header: proxy_header(port),
        treatment: port.http.as_ref().map(Treatment::of),
        guarded: false,
        first_byte: service.first_byte,
        awake_only: false,
    })
}

/// PX-84.
fn proxy_header(port: &PortView) -> Option<ProxyHeader> {
    let wanted = port.handlers.iter().any(|handler| handler == "proxy_proto");
    let version = if port.proxy_proto_v2 { ProxyHeader::V2 } else { ProxyHeader::V1 };
    wanted.then_some(version)
}
