//! Connections to Machines: made when needed, kept for a few seconds, and the wait for a program that
//! does not listen yet.
//!
//! A program that was just started is tried again and again: each try is a connect, and the one that
//! succeeds carries the request, so the program sees no probe. One caller tries for all; the others
//! wait for it, and then connect by themselves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use perch_core::balancer::Endpoint;
use perch_core::ids::MachineId;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::app::{App, Place};
use crate::clock::Ticker;
use crate::http2::Backends;

/// How often idle connections that were not used for long are closed, while there are any.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The sweep at which one is closed: it is kept for three to four seconds (PX-65). Counting sweeps
/// spares each request two looks at a clock.
const SWEEPS_MAX: u64 = 4;
/// Idle connections per Machine and port.
const IDLE_LEN_MAX: usize = 1024;
/// A handshake over our own link takes microseconds: one that does not end at once met a full accept
/// queue, and a new one succeeds long before the kernel sends this one again (1 s).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(50);
/// Handshakes of a program that many waited for; the next ones come when these are over, and find the connections of those
/// that were answered meanwhile: a thousand at once would fill its accept queue, and most be made again.
const HANDSHAKES_MAX: usize = 64;
/// The longest wait for a handshake, after several timed out.
const HANDSHAKE_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoConnection {
    /// The run has ended: choose again.
    #[error("the Machine has gone")]
    Gone,
    /// It runs, but nobody accepts.
    #[error("PR03 the Machine runs, but nothing listens on {0}")]
    NotListening(std::net::SocketAddrV4),
    /// Our own limits.
    #[error("PC06 could not make a connection")]
    Io(#[source] io::Error),
}

/// A connection to a Machine, new or used.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    /// Served another request before: it may have been closed meanwhile.
    pub(crate) used: bool,
}

type Key = (MachineId, u16);

#[derive(Debug)]
struct Idle {
    run: u64,
    /// With the number of sweeps before it came.
    stack: Vec<(TcpStream, u64)>,
}

/// All of one app.
#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    idle: RefCell<BTreeMap<Key, Idle>>,
    sweeping: Cell<bool>,
    sweeps: Cell<u64>,
    readiness: RefCell<BTreeMap<Key, Rc<Readiness>>>,
    /// Those of HTTP/2.
    pub(crate) backends: Backends,
}

/// Whether a run's program listens, as far as we know.
#[derive(Debug)]
struct Readiness {
    run: u64,
    listens: Cell<bool>,
    trying: Cell<bool>,
    changed: Notify,
    handshakes: Semaphore,
}

/// Whether a connection may serve that another request has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Used {
    Welcome,
    Refused,
}

impl Upstreams {
    /// Takes the idle connection that was used last.
    pub(crate) fn take(&self, endpoint: &Endpoint) -> Option<Upstream> {
        let mut idle = self.idle.borrow_mut();
        let entry = idle.get_mut(&key(endpoint))?;
        if entry.run != endpoint.run {
            return None;
        }
        let (stream, _) = entry.stack.pop()?;
        Some(Upstream { stream, used: true })
    }

    /// Gives a connection back for the next request.
    pub(crate) fn keep(app: &Rc<App>, place: &Place, stream: TcpStream) {
        app.upstreams.push(place.endpoint(), stream);
        if !app.upstreams.sweeping.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(app)));
        }
    }

    fn push(&self, endpoint: &Endpoint, stream: TcpStream) {
        let mut idle = self.idle.borrow_mut();
        let run = endpoint.run;
        let entry = idle.entry(key(endpoint)).or_insert_with(|| Idle { run, stack: Vec::new() });
        if entry.run != run {
            *entry = Idle { run, stack: Vec::new() };
        }
        if entry.stack.len() < IDLE_LEN_MAX {
            entry.stack.push((stream, self.sweeps.get()));
        }
    }

    /// Closes the idle connections of a Machine: it is about to sleep.
    pub(crate) fn close(&self, machine: MachineId) {
        self.idle.borrow_mut().retain(|(id, _), _| *id != machine);
        self.backends.retire(|of| of == machine);
    }

    /// Forgets everything about runs that are not `up`.
    pub(crate) fn retain(&self, up: impl Fn(MachineId, u64) -> bool) {
        self.idle.borrow_mut().retain(|(id, _), idle| up(*id, idle.run));
        self.readiness.borrow_mut().retain(|(id, _), known| up(*id, known.run));
    }

    fn drop_expired(&self) {
        let sweeps = self.sweeps.get() + 1;
        self.sweeps.set(sweeps);
        let mut idle = self.idle.borrow_mut();
        for entry in idle.values_mut() {
            entry.stack.retain(|(_, before)| sweeps < before + SWEEPS_MAX);
        }
        idle.retain(|_, entry| !entry.stack.is_empty());
        self.sweeping.set(!idle.is_empty());
    }

    fn readiness(&self, endpoint: &Endpoint) -> Rc<Readiness> {
        let mut known = self.readiness.borrow_mut();
        let entry = known.entry(key(endpoint)).or_insert_with(|| Readiness::of(endpoint.run));
        if entry.run != endpoint.run {
            *entry = Readiness::of(endpoint.run);
        }
        Rc::clone(entry)
    }
}

impl Readiness {
    fn of(run: u64) -> Rc<Self> {
        Rc::new(Self {
            run,
            listens: Cell::new(false),
            trying: Cell::new(false),
            changed: Notify::new(),
            handshakes: Semaphore::new(HANDSHAKES_MAX),
        })
    }
}

fn key(endpoint: &Endpoint) -> Key {
    (endpoint.machine, endpoint.target.port())
}

async fn sweep(app: std::rc::Weak<App>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(app) = app.upgrade() else { return };
        app.upstreams.drop_expired();
        if !app.upstreams.sweeping.get() {
            return;
        }
    }
}

/// Whether nothing has come on an idle connection, neither an end nor bytes that nobody asked for.
pub(crate) fn is_quiet(stream: &TcpStream) -> bool {
    peek(stream) == Err(Errno::AGAIN)
}

/// The same as far as the kernel has told us already: asks it only if it has told something since the
/// last read.
pub(crate) fn seems_quiet(stream: &TcpStream) -> bool {
    let seen = stream.try_io(Interest::READABLE, || Ok(peek(stream)?));
    seen.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Asks the kernel whether a byte or the end has come, and leaves it where it is.
///
/// # Errors
/// `AGAIN` if nothing has come; or what became of the connection.
pub(crate) fn peek(stream: &TcpStream) -> Result<(), Errno> {
    recv(stream.as_fd(), &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(())
}

/// Makes a new connection, and waits until `deadline` for a program that does not listen yet. Who has waited may get one
/// that was used meanwhile.
pub(crate) async fn connect(
    place: &Place,
    deadline: Instant,
    used: Used,
) -> Result<Upstream, NoConnection> {
    let target = place.endpoint().target;
    let readiness = place.app().upstreams.readiness(place.endpoint());
    if readiness.listens.get() || !readiness.trying.get() {
        // Boxed here and below: thousands may wait behind this, and would each keep the room for it.
        match Box::pin(try_connect(target, HANDSHAKE_TIMEOUT)).await {
            Ok(stream) => {
                readiness.succeeded();
                return Ok(stream.into());
            }
            Err(error) if is_ours(&error) => return Err(NoConnection::Io(error)),
            Err(_) => readiness.listens.set(false),
        }
    }
    Box::pin(wait_and_connect(place, &readiness, deadline, used)).await
}

impl From<TcpStream> for Upstream {
    fn from(stream: TcpStream) -> Self {
        Self { stream, used: false }
    }
}

impl Readiness {
    fn succeeded(&self) {
        if !self.listens.replace(true) {
            self.changed.notify_waiters();
        }
    }
}

async fn wait_and_connect(
    place: &Place,
    readiness: &Readiness,
    deadline: Instant,
    used: Used,
) -> Result<Upstream, NoConnection> {
    let target = place.endpoint().target;
    while Instant::now() < deadline {
        if !place.is_current() {
            return Err(NoConnection::Gone);
        }
        if readiness.trying.get() {
            follow(readiness, deadline).await;
        } else if let Some(stream) = Box::pin(lead(place, readiness, deadline)).await? {
            return Ok(stream.into());
        }
        if readiness.listens.get() {
            let turn = tokio::time::timeout_at(deadline, readiness.handshakes.acquire()).await;
            let Ok(_turn) = turn else { break };
            if !place.is_current() || !readiness.listens.get() {
                continue;
            }
            let idle = || place.app().upstreams.take(place.endpoint());
            if used == Used::Welcome
                && let Some(idle) = std::iter::from_fn(idle).find(|it| is_quiet(&it.stream))
            {
                return Ok(idle);
            }
            match Box::pin(try_connect(target, HANDSHAKE_TIMEOUT)).await {
                Ok(stream) => return Ok(stream.into()),
                Err(error) if is_ours(&error) => return Err(NoConnection::Io(error)),
                Err(_) => readiness.listens.set(false),
            }
        }
    }
    Err(NoConnection::NotListening(target))
}

/// How often followers look whether their Machine is still there.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

async fn follow(readiness: &Readiness, deadline: Instant) {
    let until = deadline.min(Instant::now() + FOLLOW_INTERVAL);
    // Ignored: the caller looks again in both cases.
    let _elapsed = tokio::time::timeout_at(until, readiness.changed.notified()).await.is_err();
}

/// Gives up the lead however the attempt ends, so that a follower can take it.
struct Lead<'a>(&'a Readiness);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.0.trying.set(false);
        self.0.changed.notify_waiters();
    }
}

async fn lead(
    place: &Place,
    readiness: &Readiness,
    deadline: Instant,
) -> Result<Option<TcpStream>, NoConnection> {
    readiness.trying.set(true);
    let _lead = Lead(readiness);
    let ticker = Ticker::new().map_err(NoConnection::Io)?;
    let since = Instant::now();
    let mut handshake = HANDSHAKE_TIMEOUT;
    while Instant::now() < deadline && place.is_current() {
        match try_connect(place.endpoint().target, handshake).await {
            Ok(stream) => {
                readiness.listens.set(true);
                return Ok(Some(stream));
            }
            Err(error) if is_ours(&error) => return Err(NoConnection::Io(error)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                handshake = (handshake * 2).min(HANDSHAKE_TIMEOUT_MAX);
            }
            Err(_) => {}
        }
        ticker.wait(pace(since.elapsed())).await.map_err(NoConnection::Io)?;
    }
    Ok(None)
}

/// The pause between two tries: a native program listens within a millisecond, an interpreter within
/// 60; each try costs about 40 us, so the pace slows down.
pub(crate) fn pace(elapsed: Duration) -> Duration {
    match elapsed.as_millis() {
        0..50 => Duration::from_micros(100),
        50..1_000 => Duration::from_millis(1),
        1_000..10_000 => Duration::from_millis(10),
        _ => Duration::from_millis(100),
    }
}

/// Connects, and waits as long as that for a program that does not listen yet; once at least.
pub(crate) async fn connect_within(
    target: std::net::SocketAddrV4,
    until: Instant,
) -> io::Result<TcpStream> {
    let since = Instant::now();
    let mut ticker = None;
    loop {
        let refused = match TcpStream::connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if until <= Instant::now() || is_ours(&refused) {
            return Err(refused);
        }
        let ticker = match &ticker {
            Some(ticker) => ticker,
            None => ticker.insert(Ticker::new()?),
        };
        ticker.wait(pace(since.elapsed())).await?;
    }
}

async fn try_connect(
    target: std::net::SocketAddrV4,
    handshake_timeout: Duration,
) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(handshake_timeout, TcpStream::connect(target)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Errors that say something about us, not about the Machine.
fn is_ours(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|c| c.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_slow_down_with_time() {
        let at = |millis| pace(Duration::from_millis(millis));
        assert_eq!(at(49), Duration::from_micros(100));
        assert_eq!(at(50), Duration::from_millis(1));
        assert_eq!(at(1_000), Duration::from_millis(10));
        assert_eq!(at(60_000), Duration::from_millis(100));
    }
}
