//! The process: its runtime, its sockets, its servers, its end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::Instant;

use crate::app::Protocol;
use crate::control::{FromProxy, Lines, LinkError, Listeners, ToProxy, encode, send_hello};
use crate::crowd::{Crowd, Idle, NoSeat};
use crate::directory::{Destination, Directory, Target};
use crate::live::Visitors;
use crate::{Endpoints, Options, ProxyError, dns, http, moderation, tcp, udp};

/// Connections of callers at once; more wait in the kernel's queue. 60,000 idle ones are 0.1 GB here.
const CONNECTIONS_MAX: u64 = 60_000;
/// Descriptors that are not for callers and their Machines: listeners, DNS, timers, spare.
const DESCRIPTORS_KEPT: u64 = 512;
/// Of so many pairs of descriptors and one more, that one is for a UDP session.
const CONNECTIONS_PER_SESSION: u64 = 15;
/// After this long without a first server a waiting caller is let go.
const FIRST_SERVER_TIMEOUT: Duration = Duration::from_secs(60);
/// What somebody who has a successor waits for before it closes connections that nobody uses: who is about to ask has
/// asked by then.
const IDLE_GRACE: Duration =
    if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(10) };
/// What is in flight may go on for so long after the first signal: the server kills a proxy after 5 s,
/// and a second is enough to reset what is left.
const END_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections taken out of the kernel's accept queue at the end; its longest queue unless the host's
/// `net.core.somaxconn` was raised.
const ACCEPT_QUEUE_MAX: usize = 4096;
/// What nobody waits for is told to the server so much later, so that its work does not take the processor
/// from the answer: on one core it took 0.7 ms from each thaw.
const REPORT_DELAY: Duration = Duration::from_millis(2);
/// What piled up meanwhile goes out by one write.
const BATCH: usize = 64;
/// Apps whose numbers are told by one line: 0.1 MB.
const COUNTS_AT_ONCE: usize = 512;
/// Pause after a failed accept, which means that descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked for idle connections while all places are taken.
const FULL_PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn run(
    listeners: Listeners,
    control: StdUnixListener,
    options: Options,
) -> Result<(), ProxyError> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(31)
        .on_thread_park(moderation::park)
        .on_thread_unpark(moderation::unpark)
        .build()
        .map_err(ProxyError::Runtime)?;
    LocalSet::new().block_on(&runtime, serve(listeners, control, options))
}

async fn serve(
    listeners: Listeners,
    control: StdUnixListener,
    options: Options,
) -> Result<(), ProxyError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ProxyError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ProxyError::Signals)?;
    let mut running = start(listeners, control, &options)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = running.retire() => {
            if ended == Retired::Empty {
                tracing::info!("everybody has been served; the proxy ends");
                return Ok(());
            }
        }
    }
    tracing::info!("the proxy ends");
    tokio::select! {
        () = running.end(END_TIMEOUT) => {}
        _ = terminate.recv() => tracing::info!("the proxy ends at once"),
        _ = interrupt.recv() => tracing::info!("the proxy ends at once"),
    }
    Ok(())
}

/// Spawns everything; the tasks end with the [`LocalSet`].
pub(crate) fn start(
    listeners: Listeners,
    control: StdUnixListener,
    options: &Options,
) -> Result<Running, ProxyError> {
    start_with(listeners, control, options, connections_max())
}

/// The same with so many places for callers.
pub(crate) fn start_with(
    listeners: Listeners,
    control: StdUnixListener,
    options: &Options,
    connections_max: u32,
) -> Result<Running, ProxyError> {
    let directory = Directory::new(options);
    let sessions_max = sessions_max(connections_max);
    let listeners = Rc::new(listeners);
    let crowd = Crowd::new(connections_max as usize);
    let limit = crowd.limit();
    let options = Rc::new(options.clone());
    let door = Door { directory: Rc::clone(&directory), options, limit, crowd };
    let mut accepting = Vec::new();
    for (name, fd) in [("IPv6", &listeners.tcp6), ("IPv4", &listeners.tcp4)] {
        let failed = |source| ProxyError::Listener { name, source };
        let listener = tcp_listener(fd).map_err(failed)?;
        accepting.push(spawn_local(accept(listener, door.clone())).abort_handle());
    }
    let failed = |source| ProxyError::Listener { name: "UDP", source };
    let (open, closed) = mpsc::channel(1);
    let udp =
        udp::start(&listeners.udp6, &directory, &door.options, sessions_max, Open(open.clone()));
    let (udp, receiving) = udp.map_err(failed)?;
    accepting.push(receiving);
    let answering = dns::start(&listeners, &directory, Open(open))?;
    let failed = |source| ProxyError::Listener { name: "control", source };
    control.set_nonblocking(true).map_err(failed)?;
    let control = UnixListener::from_std(control).map_err(failed)?;
    // What is kept here must not keep the socket open: a successor waits for its end.
    let (crowd, udp) = (Rc::clone(&door.crowd), Rc::downgrade(&udp));
    let visitors = Rc::new(Visitors { directory, crowd, udp });
    spawn_local(accept_servers(control, visitors, Rc::clone(&listeners)));
    Ok(Running { door, listeners, accepting, answering, closed, connections_max })
}

/// A proxy that serves.
pub(crate) struct Running {
    door: Door,
    listeners: Rc<Listeners>,
    accepting: Vec<AbortHandle>,
    /// DNS.
    answering: [AbortHandle; 2],
    /// Has an end when nobody waits for a datagram any more.
    closed: mpsc::Receiver<Infallible>,
    connections_max: u32,
}

/// Held as long as somebody waits for datagrams.
#[derive(Debug, Clone)]
pub(crate) struct Open(
    #[expect(dead_code, reason = "what counts is that it lives")] mpsc::Sender<Infallible>,
);

/// How a proxy with a successor has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retired {
    /// Everybody has been served.
    Empty,
    /// Not everybody has in time.
    Late,
}

impl Running {
    /// Waits until another proxy has taken the listeners over, and then until everybody has been served here.
    pub(crate) async fn retire(&mut self) -> Retired {
        let bound = self.door.directory.retires().await;
        let deadline = Instant::now() + bound;
        for task in self.accepting.drain(..).chain(self.answering.clone()) {
            // It is between two callers: each has a task of its own already.
            task.abort();
        }
        let ending = Rc::clone(&self.door.directory.ending);
        ending.begin_softly();
        let left = self.door.crowd.len() as u64;
        tracing::info!(left, "another proxy has the listeners");
        self.door.directory.server.tell(FromProxy::Retired { left });
        let closing = async {
            tokio::time::sleep(IDLE_GRACE.min(bound)).await;
            ending.begin();
            std::future::pending().await
        };
        let everybody = async {
            self.door.crowd.emptied().await;
            // None is ever sent.
            while self.closed.recv().await.is_some() {}
        };
        tokio::select! {
            () = everybody => Retired::Empty,
            () = tokio::time::sleep_until(deadline) => Retired::Late,
            never = closing => never,
        }
    }

    fn empty_queues(&self) {
        for fd in [&self.listeners.tcp6, &self.listeners.tcp4] {
            if let Err(error) = self.door.empty_queue(fd) {
                tracing::warn!(%error, "could not accept who waits");
            }
        }
    }

    /// Accepts nobody any more, and waits until everybody has been served.
    pub(crate) async fn end(&mut self, timeout: Duration) {
        for task in self.accepting.drain(..) {
            // It is between two connections: an accepted one has its own task already.
            task.abort();
        }
        self.door.directory.ending.begin_to_cut();
        // Who waits in the queue of one that is retired is its successor's.
        if !self.door.directory.server.is_retired() {
            self.empty_queues();
        }
        if tokio::time::timeout(timeout, self.door.crowd.emptied()).await.is_err() {
            let left = self.connections_max as usize - self.door.limit.available_permits();
            tracing::warn!(left, "connections are cut");
        }
    }
}

/// Two descriptors for each connection; what we may have is the parent's decision.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of descriptors stays as it was");
    }
}

/// As many callers as there are pairs of descriptors for, but for those of UDP sessions.
fn connections_max() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let descriptors = limit.current.unwrap_or(u64::MAX);
    let pairs = descriptors.saturating_sub(DESCRIPTORS_KEPT) / 2;
    let pairs = pairs - pairs / (CONNECTIONS_PER_SESSION + 1);
    u32::try_from(pairs.clamp(1, CONNECTIONS_MAX)).unwrap_or(1)
}

/// UDP sessions beside so many connections.
fn sessions_max(connections_max: u32) -> usize {
    let beside = u64::from(connections_max) / CONNECTIONS_PER_SESSION;
    usize::try_from(beside).unwrap_or(usize::MAX).clamp(1, udp::SESSIONS_MAX)
}

/// A caller whose host vanished without a word would keep its Machine awake for ever; after this it
/// is noticed. Frozen callers answer by their kernel.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Accepted sockets inherit all options, which saves calls for each.
pub(crate) fn tcp_listener(fd: &OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(fd.try_clone()?);
    listener.set_nonblocking(true)?;
    sockopt::set_tcp_nodelay(&listener, true)?;
    sockopt::set_socket_keepalive(&listener, true)?;
    sockopt::set_tcp_keepidle(&listener, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&listener, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&listener, KEEPALIVE_PROBES)?;
    TcpListener::from_std(listener)
}

async fn accept(listener: TcpListener, door: Door) {
    loop {
        let place = door.place().await;
        match listener.accept().await {
            Ok((stream, caller)) => {
                place.keep();
                door.enter(stream, caller);
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What every new caller passes.
#[derive(Clone)]
struct Door {
    directory: Rc<Directory>,
    options: Rc<Options>,
    limit: Rc<Semaphore>,
    crowd: Rc<Crowd>,
}

impl Door {
    /// Waits for a place, and closes who does not use his.
    async fn place(&self) -> Vacant<'_> {
        loop {
            if let Ok(permit) = self.limit.try_acquire() {
                permit.forget();
                return Vacant(&self.crowd);
            }
            self.crowd.make_room();
            if let Ok(Ok(permit)) = tokio::time::timeout(FULL_PAUSE, self.limit.acquire()).await {
                permit.forget();
                return Vacant(&self.crowd);
            }
        }
    }

    /// Serves a caller, who has a place.
    fn enter(&self, stream: TcpStream, caller: SocketAddr) {
        let most = self.directory.connections_max_of(caller.ip());
        let Some(mut newcomer) = self.crowd.receive(caller.ip(), most) else {
            let to = self.destination(&stream, caller);
            self.turn_away(&stream, to, NoSeat::Caller);
            return self.crowd.give_back();
        };
        let known = self.destination(&stream, caller);
        if let Some(Target::App(app)) = known.as_ref().map(|(to, _)| &to.target)
            && !self.crowd.settle(&mut newcomer, Rc::as_ptr(app).addr())
        {
            self.turn_away(&stream, known, NoSeat::App);
            return self.crowd.give_back();
        }
        let seat = Permit { crowd: Rc::clone(&self.crowd), number: newcomer.number };
        let idle = Rc::clone(&newcomer.idle);
        let directory = Rc::clone(&self.directory);
        let task = match known {
            Some((to, Route::Http)) => {
                idle.presence.set_ends(to.endpoints);
                let seat = (Visit::of(&to), seat);
                spawn_local(http::connection::serve(stream, directory, to, idle, seat))
            }
            to => {
                let options = Rc::clone(&self.options);
                spawn_local(async move {
                    serve_one(stream, caller, directory, (to, &options), idle).await;
                    drop(seat);
                })
            }
        };
        self.crowd.enter(newcomer, task.abort_handle());
    }

    /// Resets a caller for whom there is no place. The app's log and the ledger hear of it, unless they did a moment ago.
    fn turn_away(&self, stream: &TcpStream, to: Option<(Destination, Route)>, why: NoSeat) {
        tcp::reset(stream);
        let Some((to, _)) = to else { return };
        if let Some(others) = self.crowd.turned_away() {
            to.note_turned_away("a connection", why, others);
        }
    }

    /// Where a caller wants to go; `None`: that is not known yet. Nearly all are told at once to HTTP, and have a task that
    /// is no larger than that needs.
    fn destination(&self, stream: &TcpStream, caller: SocketAddr) -> Option<(Destination, Route)> {
        if !self.directory.is_filled() {
            return None;
        }
        let to = self.directory.resolve(endpoints(stream, caller, &self.options)?);
        let route = route(&to);
        Some((to, route))
    }

    /// Serves who is connected as far as he knows, although we have not accepted him yet.
    fn empty_queue(&self, listener: &OwnedFd) -> io::Result<()> {
        for _ in 0..ACCEPT_QUEUE_MAX {
            let Ok(permit) = self.limit.try_acquire() else { return Ok(()) };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let stream = match rustix::net::accept_with(listener, flags) {
                Ok(stream) => std::net::TcpStream::from(stream),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let Ok(caller) = stream.peer_addr() else { continue };
            let stream = TcpStream::from_std(stream)?;
            permit.forget();
            self.enter(stream, caller);
        }
        Ok(())
    }
}

/// A place for whoever is accepted next; given back when dropped.
struct Vacant<'a>(&'a Crowd);

impl Vacant<'_> {
    /// Somebody has it now.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Vacant<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// One of [`connections_max`].
struct Permit {
    crowd: Rc<Crowd>,
    number: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.crowd.leave(self.number);
        self.crowd.give_back();
    }
}

async fn serve_one(
    stream: TcpStream,
    caller: SocketAddr,
    directory: Rc<Directory>,
    (known, options): (Option<(Destination, Route)>, &Options),
    idle: Rc<Idle>,
) {
    let (to, route) = match known {
        Some(known) => known,
        None => match find(&stream, caller, &directory, options).await {
            Some(found) => found,
            None => return,
        },
    };
    idle.presence.set_ends(to.endpoints);
    let visit = Visit::of(&to);
    match route {
        Route::Http => Box::pin(http::connection::serve(stream, directory, to, idle, visit)).await,
        Route::Raw(app, facts) => {
            Box::pin(tcp::serve(stream, (directory, idle), to, app, facts)).await;
            drop(visit);
        }
        Route::Unsupported(app) => {
            let port = to.endpoints.dest.port();
            app.log(None, &format!("port {port} is not served: its handlers are not there yet"));
            tcp::reset(&stream);
        }
        Route::Nobody => {
            tracing::debug!(endpoints = ?to.endpoints, "a connection that nobody serves");
            tcp::reset(&stream);
        }
    }
}

/// Waits until a server has said who is there.
async fn find(
    stream: &TcpStream,
    caller: SocketAddr,
    directory: &Rc<Directory>,
    options: &Options,
) -> Option<(Destination, Route)> {
    let endpoints = endpoints(stream, caller, options)?;
    if !directory.is_filled() {
        let filled = Box::pin(tokio::time::timeout(FIRST_SERVER_TIMEOUT, directory.filled()));
        // Ignored: without a server there is no app, so the connection is reset below.
        let _elapsed = filled.await.is_err();
    }
    let to = directory.resolve(endpoints);
    let route = route(&to);
    Some((to, route))
}

/// `None`: the connection has ended already.
fn endpoints(stream: &TcpStream, caller: SocketAddr, options: &Options) -> Option<Endpoints> {
    let endpoints = Endpoints { caller, dest: stream.local_addr().ok()? };
    Some(match &options.rewrite_endpoints {
        Some(rewrite) => rewrite(endpoints),
        None => endpoints,
    })
}

/// A connection, as it is counted.
struct Visit(Rc<crate::app::App>);

impl Visit {
    /// Of a shared address nobody knows yet whom it is for.
    fn of(to: &Destination) -> Option<Self> {
        let Target::App(app) = &to.target else { return None };
        app.counts.note_connect();
        Some(Self(Rc::clone(app)))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.counts.note_disconnect();
    }
}

/// How a new connection is served.
enum Route {
    Http,
    Raw(Rc<crate::app::App>, crate::app::PortFacts),
    Unsupported(Rc<crate::app::App>),
    Nobody,
}

fn route(to: &Destination) -> Route {
    match &to.target {
        Target::App(app) => match app.port(to.port()) {
            Some(facts) => match facts.protocol {
                Protocol::Http | Protocol::HttpRedirected => Route::Http,
                Protocol::Raw => Route::Raw(Rc::clone(app), facts),
                Protocol::Unsupported => Route::Unsupported(Rc::clone(app)),
            },
            None => Route::Nobody,
        },
        // Only HTTP says which app is meant.
        Target::Shared => Route::Http,
        Target::Nobody => Route::Nobody,
    }
}

/// Serves one server at a time; the newest wins.
async fn accept_servers(control: UnixListener, visitors: Rc<Visitors>, listeners: Rc<Listeners>) {
    let mut former: Option<AbortHandle> = None;
    loop {
        let stream = match control.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept a server");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Some(former) = former.take() {
            former.abort();
        }
        visitors.directory.server_lost();
        let session = session(stream, Rc::clone(&visitors), Rc::clone(&listeners));
        former = Some(spawn_local(session).abort_handle());
    }
}

async fn session(stream: UnixStream, visitors: Rc<Visitors>, listeners: Rc<Listeners>) {
    tracing::info!("a server has connected");
    if let Err(error) = talk(stream, &visitors, &listeners).await {
        tracing::info!(%error, "the server is gone");
    }
    visitors.directory.server_lost();
}

async fn talk(
    stream: UnixStream,
    visitors: &Rc<Visitors>,
    listeners: &Listeners,
) -> Result<(), LinkError> {
    let directory = &visitors.directory;
    send_hello(&stream, listeners, directory.server.thawed_runs()).await?;
    let (read, write) = stream.into_split();
    directory.begin_snapshot();
    let outbox = directory.server.connected();
    tokio::select! {
        done = listen(Lines::new(read), visitors) => done,
        done = speak(write, outbox) => done,
    }
}

async fn listen(mut lines: Lines, visitors: &Rc<Visitors>) -> Result<(), LinkError> {
    loop {
        match lines.next::<ToProxy>().await {
            Ok(ToProxy::Counts { token }) => {
                spawn_local(count(Rc::clone(visitors), token));
            }
            Ok(ToProxy::Live { app, token, callers_max }) => {
                let callers_max = usize::try_from(callers_max).unwrap_or(usize::MAX);
                spawn_local(answer(Rc::clone(visitors), app, token, callers_max));
            }
            Ok(message) => {
                let descriptors = lines.take_descriptors(descriptors_of(&message));
                visitors.directory.apply(message, descriptors);
            }
            Err(LinkError::Message(error)) => {
                tracing::error!(%error, "a message of the server is skipped");
                lines.forget_descriptors();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Beside everything else: nothing that is asked of us waits for it.
async fn answer(visitors: Rc<Visitors>, app: String, token: u64, callers_max: usize) {
    let live = visitors.of(&app, callers_max).await.map(Box::new);
    visitors.directory.server.tell(FromProxy::Live { token, live });
}

/// In pieces that fit a line, between which everybody else has his turn.
async fn count(visitors: Rc<Visitors>, token: u64) {
    let apps = visitors.directory.apps();
    for apps in apps.chunks(COUNTS_AT_ONCE) {
        let apps = apps.iter().filter_map(|app| app.counted()).collect();
        visitors.directory.server.tell(FromProxy::Counts { token, apps, last: false });
        tokio::task::yield_now().await;
    }
    let last = FromProxy::Counts { token, apps: Vec::new(), last: true };
    visitors.directory.server.tell(last);
}

/// How many come with it.
fn descriptors_of(message: &ToProxy) -> usize {
    match message {
        ToProxy::Freezer { cpu, .. } => 1 + usize::from(*cpu),
        _ => 0,
    }
}

async fn speak(
    mut stream: tokio::net::unix::OwnedWriteHalf,
    mut outbox: mpsc::Receiver<FromProxy>,
) -> Result<(), LinkError> {
    let mut messages = Vec::with_capacity(BATCH);
    while outbox.recv_many(&mut messages, BATCH).await != 0 {
        await_company(&mut messages, &mut outbox, Instant::now() + REPORT_DELAY).await;
        let mut lines = Vec::new();
        for message in messages.drain(..) {
            lines.extend_from_slice(&encode(&message)?);
        }
        let sent = stream.write_all(&lines).await;
        sent.map_err(|source| LinkError::Io { what: "send from", source })?;
    }
    Err(LinkError::Closed)
}

/// Keeps messages that nobody waits for until there is one that somebody does, at the longest until then.
async fn await_company(
    messages: &mut Vec<FromProxy>,
    outbox: &mut mpsc::Receiver<FromProxy>,
    until: Instant,
) {
    while messages.len() < BATCH && messages.iter().all(FromProxy::is_report) {
        let more = outbox.recv_many(messages, BATCH - messages.len());
        if !matches!(tokio::time::timeout_at(until, more).await, Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::control::Thaw;

    fn start(attempt: u64, thawed: bool) -> FromProxy {
        let thawed = thawed.then_some(Thaw { run: 1, micros: 1 });
        FromProxy::Start { machine: String::new(), attempt, cause: None, thawed }
    }

    fn attempts(messages: &[FromProxy]) -> Vec<u64> {
        let attempt = |message: &FromProxy| match message {
            FromProxy::Start { attempt, .. } => *attempt,
            other => panic!("{other:?}"),
        };
        messages.iter().map(attempt).collect()
    }

    #[tokio::test]
    async fn a_thaw_is_told_when_its_answer_had_time_or_with_a_start_that_somebody_waits_for() {
        let (sender, mut outbox) = mpsc::channel(BATCH);
        let mut messages = vec![start(1, true)];
        let far = Instant::now() + Duration::from_secs(3600);
        {
            let mut waits = pin!(await_company(&mut messages, &mut outbox, far));
            let mut context = Context::from_waker(Waker::noop());
            assert!(waits.as_mut().poll(&mut context).is_pending());
            sender.send(start(2, true)).await.expect("there is room");
            assert!(waits.as_mut().poll(&mut context).is_pending());
            sender.send(start(3, false)).await.expect("there is room");
            waits.await;
        }
        assert_eq!(attempts(&messages), [1, 2, 3]);
        messages.truncate(1);
        await_company(&mut messages, &mut outbox, Instant::now()).await;
        assert_eq!(attempts(&messages), [1]);
    }

    #[tokio::test]
    async fn who_waits_for_a_start_waits_for_nothing_else() {
        let (_sender, mut outbox) = mpsc::channel(BATCH);
        let mut messages = vec![start(1, false)];
        let far = Instant::now() + Duration::from_secs(3600);
        await_company(&mut messages, &mut outbox, far).await;
        assert_eq!(attempts(&messages), [1]);
    }

    #[test]
    fn who_cannot_be_served_at_the_end_keeps_no_place() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let options = Options { version: "test".to_owned(), rewrite_endpoints: None };
        let crowd = Crowd::new(4);
        let (directory, limit) = (Directory::new(&options), crowd.limit());
        let door = Door { directory, options: Rc::new(options), limit, crowd };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("it is bound");
        let _caller = std::net::TcpStream::connect(at).expect("there is a queue");
        let ended = runtime.handle().clone();
        drop(runtime);
        // Where nothing can be waited for any more no socket becomes a stream.
        let _inside = ended.enter();
        door.empty_queue(&listener.into()).expect_err("it cannot be served");
        assert_eq!(door.limit.available_permits(), 4);
    }
}
