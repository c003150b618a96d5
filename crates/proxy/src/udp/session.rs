//! One session: its place in a Machine, what waits for it, and how answers go back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use perch_core::balancer::Endpoint;
use perch_core::datagrams::{Backlog, SESSION_SILENCE};
use perch_core::ids::MachineId;
use perch_core::time::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::socket::{self, Exit, Sent, Upstream};
use super::tally::Loss;
use super::{Udp, WAITING_BYTES_MAX};
use crate::app::{App, Asked, NoPlace, Place, PortFacts, Ruling};
use crate::clock::Ticker;
use crate::control::Cause;
use crate::directory::{Destination, Target};
use crate::live::Seen;
use crate::shares::Share;
use crate::upstream::pace;
use crate::{Endpoints, clock, moderation};

/// See `SESSION_SILENCE`.
const SILENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { SESSION_SILENCE };
/// How long to wait for word that nobody listens. The Machine's kernel says so within the system call that
/// sends, unless others keep it from the processor; only the first datagrams to a run that never answers
/// wait for all of it.
const VERDICT_TIMEOUT: Duration = Duration::from_millis(20);
/// Who could not be woken is not tried again for one session before this.
const FAILED_PAUSE: Duration =
    if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };

/// A session whose program may listen by now knocks at least so often, however many others do.
const KNOCK_PAUSE_MAX: Duration = Duration::from_millis(250);

/// See the module's head.
pub(super) struct Session {
    udp: Rc<Udp>,
    ends: Endpoints,
    to: Destination,
    app: Rc<App>,
    facts: PortFacts,
    exit: Rc<Exit>,
    waiting: RefCell<Backlog>,
    /// While the Machine takes what comes.
    way: RefCell<Option<Rc<Way>>>,
    /// Something waits that the way did not take.
    changed: Notify,
    /// When the last datagram passed, in either direction.
    heard: Cell<Timestamp>,
    begun: Timestamp,
    _share: Share<IpAddr>,
}

thread_local! {
    /// How many sessions wait for a program to read there.
    static KNOCKERS: RefCell<BTreeMap<SocketAddrV4, u32>> = const { RefCell::new(BTreeMap::new()) };
}

/// One of those: all of a port together knock as often as one of them would.
struct Knocker(SocketAddrV4);

impl Knocker {
    fn new(target: SocketAddrV4) -> Self {
        KNOCKERS.with_borrow_mut(|all| *all.entry(target).or_insert(0) += 1);
        Self(target)
    }

    fn count(&self) -> u32 {
        KNOCKERS.with_borrow(|all| all.get(&self.0).copied().unwrap_or(1))
    }
}

impl Drop for Knocker {
    fn drop(&mut self) {
        KNOCKERS.with_borrow_mut(|all| {
            let Some(count) = all.get_mut(&self.0) else { return };
            *count -= 1;
            if *count == 0 {
                all.remove(&self.0);
            }
        });
    }
}

/// A place in a Machine, and the socket to it.
struct Way {
    place: Place,
    line: Rc<Line>,
}

/// A socket towards one run. It outlives a sleep of the run, which then sees the same session.
struct Line {
    run: (MachineId, u64, SocketAddrV4),
    socket: Upstream,
}

/// What a session does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Its Machine is gone or asleep, and there is something to send.
    Choose,
    End,
}

impl Session {
    /// `None`: there is no app.
    pub(super) fn new(
        udp: &Rc<Udp>,
        ends: Endpoints,
        to: Destination,
        facts: PortFacts,
        exit: Rc<Exit>,
        share: Share<IpAddr>,
    ) -> Option<Rc<Self>> {
        let Target::App(app) = &to.target else { return None };
        Some(Rc::new(Self {
            udp: Rc::clone(udp),
            ends,
            app: Rc::clone(app),
            to,
            facts,
            exit,
            waiting: RefCell::default(),
            way: RefCell::default(),
            changed: Notify::new(),
            heard: Cell::new(moderation::turn()),
            begun: moderation::turn(),
            _share: share,
        }))
    }

    /// A datagram of the caller.
    pub(super) fn take(&self, datagram: &[u8]) {
        moderation::count_piece(datagram.len());
        let way = self.way.borrow().as_ref().map(Rc::clone);
        match way.filter(|way| way.is_open() && self.waiting.borrow().is_empty()) {
            Some(way) => self.send(&way, datagram),
            None => self.keep(datagram),
        }
    }

    fn send(&self, way: &Way, datagram: &[u8]) {
        self.heard.set(moderation::turn());
        match way.line.socket.send(datagram) {
            Ok(Sent::Whole) => {}
            Ok(Sent::AfterRefusal) => self.note_refused(way.place.endpoint()),
            Err(error) => {
                tracing::debug!(%error, "a Machine did not take a datagram");
                self.lose(Loss::Refused);
            }
        }
    }

    fn note_refused(&self, at: &Endpoint) {
        self.udp.note_refused(at);
        self.lose(Loss::Refused);
    }

    fn keep(&self, datagram: &[u8]) {
        let all = self.udp.waiting.get() + datagram.len();
        if all <= WAITING_BYTES_MAX && self.waiting.borrow_mut().push(datagram) {
            self.udp.waiting.set(all);
            self.changed.notify_one();
        } else {
            self.lose(Loss::Waiting);
        }
    }

    fn next_kept(&self) -> Option<Box<[u8]>> {
        let datagram = self.waiting.borrow_mut().pop()?;
        self.udp.waiting.set(self.udp.waiting.get() - datagram.len());
        Some(datagram)
    }

    fn lose(&self, loss: Loss) {
        self.udp.note_loss(self.ends, loss);
    }

    /// Runs the session to its end.
    pub(super) async fn serve(self: Rc<Self>) {
        let mut line = None;
        while !self.waiting.borrow().is_empty() {
            let next = match self.place().await {
                Ok(place) => self.attend(place, &mut line).await,
                Err(error) => self.fail(&error.to_string()).await,
            };
            if next == Next::End {
                break;
            }
        }
        self.udp.end(self.ends);
    }

    async fn place(&self) -> Result<Place, NoPlace> {
        let deadline = Instant::now() + self.facts.start_timeout;
        let port = self.to.udp_port();
        if self.facts.guarded {
            match self.udp.directory.ruling(&self.to, (&self.app, port), Asked::Datagram) {
                Ruling::Wake => {}
                Ruling::IfAwake => {
                    let note =
                        |app| self.udp.directory.note_not_awake(&self.to, app, Asked::Datagram);
                    let place = self.app.choose_awake(port, None);
                    return place.ok_or_else(|| note(&self.app));
                }
                Ruling::Refused(text) => return Err(NoPlace::Forbidden(text)),
            }
        }
        let origin = self.to.origin_at(port, &self.app);
        match self.app.choose(port, origin) {
            Ok(place) => Ok(place),
            Err(None) => {
                self.app.note_refused(self.cause());
                Err(NoPlace::Refused)
            }
            Err(Some(reason)) => {
                let cause = self.cause();
                self.app.hold(port, cause, origin, reason, deadline).await
            }
        }
    }

    /// What it is, if it is this app's.
    pub(super) fn seen(&self, app: &Rc<App>) -> Option<Seen> {
        let (ends, what, since) = (self.to.endpoints, "session", self.begun);
        let (streams, resting, request) = (0, false, None);
        Rc::ptr_eq(app, &self.app).then_some(Seen { ends, what, since, streams, resting, request })
    }

    /// For the record of a wake or refusal.
    fn cause(&self) -> Cause {
        self.to.cause(Some("a datagram".to_owned()))
    }

    /// What waits is lost; what comes during the pause has another try.
    async fn fail(&self, reason: &str) -> Next {
        while self.next_kept().is_some() {
            self.lose(Loss::NoMachine(reason.to_owned()));
        }
        tokio::time::sleep(FAILED_PAUSE).await;
        if self.waiting.borrow().is_empty() { Next::End } else { Next::Choose }
    }

    /// Until the session is over, or has to go elsewhere.
    async fn attend(&self, place: Place, line: &mut Option<Rc<Line>>) -> Next {
        let own = match line_to(place.endpoint(), line) {
            Ok(own) => own,
            Err(error) => return self.fail(&error.to_string()).await,
        };
        let way = Rc::new(Way { place, line: own });
        if !self.udp.listens(way.place.endpoint()) {
            match self.until_listening(&way).await {
                Ok(true) => self.udp.note_listens(way.place.endpoint()),
                Ok(false) => return Next::Choose,
                Err(error) => {
                    let target = way.place.endpoint().target;
                    drop(way);
                    tracing::debug!(%error, %target, "nobody listens");
                    let reason = format!("the Machine runs, but no program reads UDP at {target}");
                    return self.fail(&reason).await;
                }
            }
        }
        // From here to the next await nothing can come in between.
        while let Some(datagram) = self.next_kept() {
            self.send(&way, &datagram);
        }
        way.place.note_connected();
        way.place.note_answered();
        self.heard.set(moderation::turn());
        *self.way.borrow_mut() = Some(Rc::clone(&way));
        let next = self.relay(&way).await;
        self.way.borrow_mut().take();
        next
    }

    /// Sends the first datagram until nobody says that it reached no program: `false` when the run has
    /// ended before.
    async fn until_listening(&self, way: &Way) -> io::Result<bool> {
        let ticker = Ticker::new()?;
        let since = Instant::now();
        let knocker = Knocker::new(way.place.endpoint().target);
        while way.place.is_current() {
            let Some(first) = self.waiting.borrow().first().map(Box::<[u8]>::from) else {
                return Ok(true);
            };
            if self.is_taken(way, &first).await {
                self.next_kept();
                return Ok(true);
            }
            if self.facts.start_timeout < since.elapsed() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let pause = pace(since.elapsed()) * knocker.count();
            ticker.wait(pause.min(KNOCK_PAUSE_MAX)).await?;
        }
        Ok(false)
    }

    /// Whether a datagram has reached a program, as far as its kernel tells.
    async fn is_taken(&self, way: &Way, datagram: &[u8]) -> bool {
        let socket = &way.line.socket;
        if socket.send(datagram).is_err() {
            return false;
        }
        match socket.look() {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        match tokio::time::timeout(VERDICT_TIMEOUT, socket.listen()).await {
            Ok(heard) => heard.is_ok(),
            Err(_elapsed) => true,
        }
    }

    async fn relay(&self, way: &Way) -> Next {
        let mut silence = pin!(tokio::time::sleep(SILENCE));
        loop {
            tokio::select! {
                biased;
                () = self.answers(way) => {}
                () = self.changed.notified() => {
                    // It may have been said before the way was open.
                    if !self.waiting.borrow().is_empty() {
                        return Next::Choose;
                    }
                }
                () = silence.as_mut() => {
                    let silent = clock::now().since(self.heard.get());
                    let Some(left) = SILENCE.checked_sub(silent).filter(|left| !left.is_zero())
                    else {
                        return Next::End;
                    };
                    silence.as_mut().reset(Instant::now() + left);
                }
            }
        }
    }

    /// Passes the Machine's next datagram to the caller.
    async fn answers(&self, way: &Way) {
        let passed = way.line.socket.pass_on(|socket| {
            let buffer = &mut *self.udp.buffer.borrow_mut();
            let length = socket::read(socket, buffer)?;
            self.heard.set(moderation::turn());
            if let Err(error) = self.exit.send(&buffer[..length], self.ends.caller) {
                tracing::debug!(%error, "a caller did not take an answer");
                self.lose(Loss::Refused);
            }
            Ok(())
        });
        if let Err(error) = passed.await {
            tracing::debug!(%error, "a Machine refused a datagram");
            self.note_refused(way.place.endpoint());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        while self.next_kept().is_some() {}
    }
}

impl Way {
    /// Whether the run takes datagrams, or may: one that sleeps or is gone does not.
    fn is_open(&self) -> bool {
        self.place.is_ready() && self.place.is_current()
    }
}

/// The socket to this run: the former one if it is the same.
fn line_to(at: &Endpoint, line: &mut Option<Rc<Line>>) -> io::Result<Rc<Line>> {
    let run = (at.machine, at.run, at.target);
    if let Some(former) = line.as_ref().filter(|former| former.run == run) {
        return Ok(Rc::clone(former));
    }
    let own = Rc::new(Line { run, socket: Upstream::new(at.target)? });
    *line = Some(Rc::clone(&own));
    Ok(own)
}
