//! UDP services: datagrams to published addresses, by sessions.
//!
//! All datagrams come in by one transparent socket that says to which address and port each was sent. Those
//! of one caller's address and port to one address and port are a *session*, which has a place in a Machine
//! as a raw connection has, and a port of its own on the Machine's link: by it the Machine tells callers
//! apart, as it sees no other address of them than the link's (FC-47).
//!
//! ```text
//!  first datagram ──► waits for a Machine: 16 datagrams, 64 KiB ──► is sent what waited, in order ──► open
//!                          ▲   nobody wakes: one pause, then anew        the next datagram finds the  │  │
//!                          └──────────────────────────────────────────── Machine gone or asleep ◄─────┘  │
//!                                        30 s without a datagram in either direction: over ◄─────────────┘
//! ```
//!
//! Answers leave by a socket that is bound to the address and port that the caller asked, one for all
//! sessions of that service. When the proxy dies its sessions are gone; what nobody has read yet waits in
//! the transparent socket, whose copy the server keeps, and begins new sessions at the successor.
//!
//! What is lost is counted, and told in the app's log at most once a second.

mod session;
mod socket;
mod tally;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use perch_core::balancer::Endpoint;
use perch_core::ids::MachineId;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, spawn_local};

use crate::app::{App, PortFacts, Protocol};
use crate::directory::{Destination, Directory, Target};
use crate::live::Seen;
use crate::server::Open;
use crate::shares::Shares;
use crate::{Endpoints, Options};
use session::Session;
use socket::Exit;
use tally::{Loss, Tally};

/// Sessions at once, where there are descriptors for so many: each takes two at most, and 3 kB.
pub(crate) const SESSIONS_MAX: usize = 4096;
/// Of them one source (a Machine, or the host in one network) has at most one in so many.
const SOURCES_MIN: usize = 4;
/// Bytes that wait for Machines, over all sessions.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// After so many datagrams everything else of the proxy has its turn.
const TURN: usize = 32;
/// Pause after an error of the socket, which means that memory ran out.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// Machines of which it is remembered that their programs listen; with more it is found out anew.
const LISTENING_LEN_MAX: usize = 4096;

/// See the module's head.
pub(crate) struct Udp {
    directory: Rc<Directory>,
    options: Rc<Options>,
    socket: UdpSocket,
    address: SocketAddr,
    sessions: RefCell<HashMap<Endpoints, Rc<Session>>>,
    sessions_max: usize,
    shares: Rc<Shares<IpAddr>>,
    exits: RefCell<HashMap<SocketAddr, Weak<Exit>>>,
    /// Bytes that wait for Machines.
    waiting: Cell<usize>,
    /// The run of each Machine and port whose program is known to listen.
    listening: RefCell<HashMap<(MachineId, u16), u64>>,
    /// For one datagram at a time, from one system call to the next.
    buffer: RefCell<Vec<u8>>,
    tally: Tally,
    /// Dropped with the last session.
    _open: Open,
}

/// Begins to serve the socket that was handed over, as soon as a server has told what there is.
pub(crate) fn start(
    listener: &OwnedFd,
    directory: &Rc<Directory>,
    options: &Rc<Options>,
    sessions_max: usize,
    open: Open,
) -> io::Result<(Rc<Udp>, AbortHandle)> {
    let socket = crate::dns::udp_socket(listener)?;
    let udp = Rc::new(Udp {
        directory: Rc::clone(directory),
        options: Rc::clone(options),
        address: socket.local_addr()?,
        socket,
        sessions: RefCell::default(),
        sessions_max,
        shares: Shares::new((sessions_max / SOURCES_MIN).max(1)),
        exits: RefCell::default(),
        waiting: Cell::new(0),
        listening: RefCell::default(),
        buffer: RefCell::new(vec![0; DATAGRAM_BYTES_MAX]),
        tally: Tally::default(),
        _open: open,
    });
    let receiving = spawn_local(Rc::clone(&udp).receive()).abort_handle();
    Ok((udp, receiving))
}

impl Udp {
    async fn receive(self: Rc<Self>) {
        // Until then everything waits in the socket.
        self.directory.filled().await;
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            if let Err(error) = self.take_turn(&mut buffer).await {
                tracing::warn!(%error, "could not receive a datagram");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn take_turn(self: &Rc<Self>, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..TURN {
            let (length, ends) = socket::receive(&self.socket, buffer).await?;
            self.take(ends, &buffer[..length]);
        }
        Ok(())
    }

    fn take(self: &Rc<Self>, ends: Endpoints, datagram: &[u8]) {
        let known = self.sessions.borrow().get(&ends).map(Rc::clone);
        let session = known.or_else(|| self.begin(ends));
        if let Some(session) = session {
            session.take(datagram);
        }
    }

    fn begin(self: &Rc<Self>, ends: Endpoints) -> Option<Rc<Session>> {
        if self.sessions_max <= self.sessions.borrow().len() {
            self.note_loss(ends, Loss::Sessions);
            return None;
        }
        let Some(share) = self.shares.take(ends.caller.ip()) else {
            self.note_loss(ends, Loss::Sessions);
            return None;
        };
        let to = self.resolve(ends);
        let facts = served(&to)?;
        let exit = match self.exit(ends.dest) {
            Ok(exit) => exit,
            Err(error) => {
                tracing::warn!(%error, dest = %ends.dest, "could not make a socket for answers");
                self.note_loss(ends, Loss::Sessions);
                return None;
            }
        };
        let session = Session::new(self, ends, to, facts, exit, share)?;
        self.sessions.borrow_mut().insert(ends, Rc::clone(&session));
        spawn_local(Rc::clone(&session).serve());
        Some(session)
    }

    fn end(&self, ends: Endpoints) {
        let ended = self.sessions.borrow_mut().remove(&ends);
        drop(ended);
        let mut exits = self.exits.borrow_mut();
        // Of the session that ends one is still there.
        if exits.get(&ends.dest).is_some_and(|exit| exit.strong_count() <= 1) {
            exits.remove(&ends.dest);
        }
    }

    fn resolve(&self, ends: Endpoints) -> Destination {
        let ends = match &self.options.rewrite_endpoints {
            Some(rewrite) => rewrite(ends),
            None => ends,
        };
        self.directory.resolve(ends)
    }

    fn exit(&self, at: SocketAddr) -> io::Result<Rc<Exit>> {
        if let Some(exit) = self.exits.borrow().get(&at).and_then(Weak::upgrade) {
            return Ok(exit);
        }
        let exit = match at == self.address {
            true => Exit::of(&self.socket)?,
            false => Exit::at(at)?,
        };
        let exit = Rc::new(exit);
        self.exits.borrow_mut().insert(at, Rc::downgrade(&exit));
        Ok(exit)
    }

    /// Shows the sessions that an app has or that wait for it.
    pub(crate) fn see(&self, app: &Rc<App>, mut see: impl FnMut(Seen)) {
        let sessions = self.sessions.borrow();
        sessions.values().filter_map(|session| session.seen(app)).for_each(&mut see);
    }

    fn listens(&self, at: &Endpoint) -> bool {
        self.listening.borrow().get(&(at.machine, at.target.port())) == Some(&at.run)
    }

    fn note_listens(&self, at: &Endpoint) {
        let mut listening = self.listening.borrow_mut();
        if listening.len() == LISTENING_LEN_MAX {
            listening.clear();
        }
        listening.insert((at.machine, at.target.port()), at.run);
    }

    /// It was wrong, or is not so any more.
    fn note_refused(&self, at: &Endpoint) {
        self.listening.borrow_mut().remove(&(at.machine, at.target.port()));
    }

    fn note_loss(self: &Rc<Self>, ends: Endpoints, loss: Loss) {
        if self.tally.note(ends, loss) {
            spawn_local(tally::report(Rc::clone(self)));
        }
    }
}

/// How the port is served, if it is by us.
fn served(to: &Destination) -> Option<PortFacts> {
    let Target::App(app) = &to.target else { return None };
    let facts = app.port(to.udp_port())?;
    if facts.protocol == Protocol::Raw {
        return Some(facts);
    }
    tracing::debug!(app = &*app.name, "a UDP service with handlers is not served");
    None
}
