//! A connection and its place: may what the caller says go to the Machine, and is it load?
//!
//! The same for raw TCP, for upgraded connections and for answers that go on for long. Two bits say what
//! moves and what is owed (`perch_core::quiet`); one timer looks at them. Heartbeats move nothing
//! (`perch_core::heartbeat`). When nothing moves the place is
//! given back as load, and the Machine may sleep:
//!
//! ```text
//!  load ── nothing moves, nothing is owed ──► parked ── the Machine speaks ─────────────► load
//!                                                └───── the caller speaks: wake, then ──► load
//! ```

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::task::{Poll, ready};
use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::heartbeat::{self, Said, Side};
use perch_core::quiet::{Quiet, Verdict};
use perch_core::websocket::PING_BYTES_MAX;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::app::{NoPlace, Place, PortFacts};
use crate::buffer::{BUFFER_BYTES, Buffer, read_some_of};
use crate::clock::Ticker;
use crate::directory::Destination;
use crate::idleness::Idleness;
use crate::moderation;
use crate::pipe::{self, Pipe};
use crate::presence::Presence;
use crate::tcp::unless_reset;
use crate::websocket::Socket;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    place: &'a Place,
    to: &'a Destination,
    presence: &'a Presence,
    naps: Option<Duration>,
    start_timeout: Duration,
    quiet: Cell<Quiet>,
    /// The caller does not take what the Machine has said: that is not the Machine's rest.
    stuck: Cell<bool>,
    /// The Machine does not take what the caller has said: it lies here, and only the Machine can end that.
    untaken: Cell<bool>,
    /// A part of the request is still to come.
    uploads: Cell<bool>,
    /// The caller has sent another request behind this one.
    ahead: Cell<bool>,
    changed: Notify,
    idle: Idleness,
    /// It is a WebSocket.
    socket: Option<Box<Socket>>,
}

impl<'a> Line<'a> {
    pub(crate) fn new(
        place: &'a Place,
        to: &'a Destination,
        facts: &PortFacts,
        presence: &'a Presence,
    ) -> Self {
        Self {
            place,
            to,
            presence,
            naps: place.naps(),
            start_timeout: facts.start_timeout,
            quiet: Cell::new(Quiet::begun(moderation::turn())),
            stuck: Cell::new(false),
            untaken: Cell::new(false),
            uploads: Cell::new(false),
            ahead: Cell::new(false),
            changed: Notify::new(),
            idle: Idleness::new(facts.idle()),
            socket: None,
        }
    }

    /// The same of a WebSocket.
    pub(crate) fn of_socket(self, socket: Option<Box<Socket>>) -> Self {
        Self { socket, ..self }
    }

    pub(crate) fn socket(&self) -> Option<&Socket> {
        self.socket.as_deref()
    }

    /// What may be said too seldom on it.
    pub(crate) fn idle(&self) -> &Idleness {
        &self.idle
    }

    pub(crate) fn place(&self) -> &'a Place {
        self.place
    }

    /// Whether it may rest at all.
    pub(crate) fn naps(&self) -> bool {
        self.naps.is_some()
    }

    pub(crate) fn set_uploads(&self, uploads: bool) {
        self.uploads.set(uploads);
    }

    pub(crate) fn uploads(&self) -> bool {
        self.uploads.get()
    }

    /// The caller has sent another request already, and waits for both answers.
    pub(crate) fn note_ahead(&self) {
        if !self.ahead.replace(true) {
            self.changed.notify_one();
        }
    }

    fn note(&self, note: impl FnOnce(&mut Quiet)) {
        let mut quiet = self.quiet.get();
        note(&mut quiet);
        self.quiet.set(quiet);
    }

    pub(crate) fn note_asked(&self) {
        self.idle.note();
        self.note(Quiet::note_asked);
    }

    /// The Machine has said something: it is awake, or was when it said that.
    pub(crate) fn note_answered(&self) {
        self.idle.note();
        self.note(Quiet::note_answered);
        if self.place.is_parked() {
            self.unpark(self.origin());
        }
    }

    /// The same where the Machine may answer a heartbeat, or have some of its own.
    pub(crate) fn hear_answer(&self, bytes: usize) {
        let rested = self.place.is_parked().then(|| self.origin_of(Side::Machine, bytes));
        self.hear(Side::Machine, bytes);
        if let Some(origin) = rested {
            self.unpark(origin);
        }
    }

    /// The same of a WebSocket, on which pings and pongs are nobody's use.
    pub(crate) fn hear_machine(&self, bytes: usize, only_pings: bool) {
        match only_pings {
            true => self.idle.note(),
            false => self.hear_answer(bytes),
        }
    }

    fn hear_caller(&self, bytes: &[u8]) {
        match &self.socket {
            Some(socket) if socket.asks(bytes) => self.idle.note(),
            _ => self.hear(Side::Caller, bytes.len()),
        }
    }

    fn hear(&self, side: Side, bytes: usize) {
        self.idle.note();
        let mut quiet = self.quiet.get();
        let said = quiet.hear(side, bytes, moderation::turn());
        self.quiet.set(quiet);
        match said {
            Said::Use => {}
            Said::Heartbeat => self.place.name_heartbeat(quiet.heartbeat(), self.to),
            Said::UseAgain => self.place.note_use(self.origin()),
        }
    }

    /// As what the next so many bytes of this side count.
    fn origin_of(&self, side: Side, bytes: usize) -> Origin {
        match self.quiet.get().expects(side, bytes, moderation::turn()) {
            true => Origin::Heartbeat,
            false => self.origin(),
        }
    }

    /// Runs a write to the caller.
    pub(crate) async fn until_taken<T>(&self, write: impl Future<Output = T>) -> T {
        self.stuck.set(true);
        let written = write.await;
        self.stuck.set(false);
        written
    }

    /// Runs a write to the Machine. The caller's next bytes, which would wake it, are not looked at before that is over.
    pub(crate) async fn until_passed_on<T>(&self, write: impl Future<Output = T>) -> T {
        self.untaken.set(true);
        let written = write.await;
        self.untaken.set(false);
        written
    }

    /// Runs `work`, and rests meanwhile whenever nothing moves.
    pub(crate) async fn along<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.rest() => match never {},
        }
    }

    /// Gives the place back as load whenever nothing moves. One timer, however much is said.
    pub(crate) async fn rest(&self) -> Infallible {
        let Some(after) = self.naps else { return std::future::pending().await };
        loop {
            let pause = self.quiet.get().next_look(after);
            tokio::time::sleep(pause).await;
            if self.look(pause) == Verdict::Load {
                // Somebody with the API puts it to sleep whatever is under way.
                if self.untaken.get() && !self.place.is_ready() && !self.place.is_awake_only() {
                    self.recall_or_log().await;
                }
                continue;
            }
            self.place.park();
            self.presence.set_resting(true);
            while self.place.is_parked() && !self.ahead.get() {
                self.changed.notified().await;
            }
            if self.place.is_parked() {
                self.recall_or_log().await;
            }
        }
    }

    async fn recall_or_log(&self) {
        if let Err(error) = self.recall(self.origin()).await {
            self.log(&error);
        }
    }

    fn look(&self, pause: Duration) -> Verdict {
        let mut verdict = Verdict::Load;
        self.note(|quiet| {
            if self.stuck.get() || self.uploads.get() || self.ahead.get() {
                quiet.note_stuck();
            } else if self.untaken.get() {
                quiet.note_untaken();
            }
            verdict = quiet.look(pause);
        });
        verdict
    }

    /// Waits for the caller's next bytes and reads them when the Machine is awake; nothing is read
    /// before. What a caller says who is about to close wakes nobody.
    pub(crate) async fn read(&self, caller: &TcpStream) -> io::Result<Buffer> {
        loop {
            let read = std::future::poll_fn(|cx| {
                ready!(caller.poll_read_ready(cx))?;
                if !self.place.is_ready() {
                    return Poll::Ready(Ok(None));
                }
                let mut buffer = self.begin_buffer();
                ready!(buffer.poll_fill_of(cx, caller, BUFFER_BYTES - PING_BYTES_MAX))?;
                Poll::Ready(io::Result::Ok(Some(buffer)))
            });
            if let Some(buffer) = read.await? {
                self.socket.iter().for_each(|socket| socket.forget());
                self.hear_caller(buffer.filled());
                return Ok(buffer);
            }
            if Box::pin(self.rouse(caller)).await? == Roused::LeftAlone {
                let mut left = self.begin_buffer();
                left.fill_from(read_some_of(caller, BUFFER_BYTES - PING_BYTES_MAX).await?.filled());
                self.socket.iter().for_each(|socket| socket.forget());
                return Ok(left);
            }
        }
    }

    /// The same of what comes in bulk; `None`: it is to be read in the ordinary way.
    pub(crate) async fn read_bulk(&self, caller: &TcpStream) -> io::Result<Option<Pipe>> {
        let may = || self.socket.is_none() && self.place.is_ready();
        let pipe = pipe::read_bulk(caller, usize::MAX, may).await?;
        pipe.iter().for_each(|pipe| self.hear(Side::Caller, pipe.len()));
        Ok(pipe)
    }

    /// With what was read of a WebSocket already.
    fn begin_buffer(&self) -> Buffer {
        let mut buffer = Buffer::take();
        if let Some(socket) = &self.socket {
            socket.begin(&mut buffer);
        }
        buffer
    }

    async fn rouse(&self, caller: &TcpStream) -> io::Result<Roused> {
        if let Some(socket) = &self.socket
            && socket.answer_pings(caller, &self.stuck).await?
        {
            self.idle.note();
            return Ok(Roused::Answered);
        }
        let mut bytes = [0; heartbeat::BYTES_MAX + 1];
        let count = caller.peek(&mut bytes).await?;
        if count == 0 {
            return Ok(Roused::LeftAlone);
        }
        let origin = self.origin_of(Side::Caller, count);
        if self.unpark(origin) {
            return Ok(Roused::Awake);
        }
        if count <= FAREWELL_BYTES_MAX && is_leaving(caller).await? {
            return Ok(Roused::LeftAlone);
        }
        match unless_reset(caller, self.recall(origin)).await {
            Some(Ok(())) => Ok(Roused::Awake),
            Some(Err(error)) => {
                self.log(&error);
                Err(io::ErrorKind::ConnectionReset.into())
            }
            None => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn unpark(&self, origin: Origin) -> bool {
        let unparked = self.place.unpark(origin).is_ok();
        if unparked {
            self.presence.set_resting(false);
            self.changed.notify_one();
        }
        unparked
    }

    /// Wakes the Machine; load again.
    async fn recall(&self, origin: Origin) -> Result<(), NoPlace> {
        let deadline = Instant::now() + self.start_timeout;
        let cause = self.to.cause(Some("the next byte of a connection".to_owned()));
        self.place.recall(origin, deadline, cause).await?;
        self.presence.set_resting(false);
        self.changed.notify_one();
        Ok(())
    }

    fn origin(&self) -> Origin {
        match self.place.is_awake_only() {
            true => Origin::SamePool,
            false => self.to.origin(self.place.app()),
        }
    }

    fn log(&self, error: &NoPlace) {
        self.place.app().log(Some(self.place.endpoint().machine), &error.to_string());
    }
}

/// What follows from a caller's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roused {
    /// The Machine is awake: they may be read.
    Awake,
    /// They are passed on, and it sleeps on: it finds them when it wakes.
    LeftAlone,
    /// They were a WebSocket's pings: there is no more of them.
    Answered,
}

/// A pool that closes a connection says so by so many bytes at most (PostgreSQL 5, MySQL 5); a WebSocket
/// that is closed with a code and no reason takes all 8.
const FAREWELL_BYTES_MAX: usize = 8;
/// The end follows a farewell within this: measured 90 us, 158 us at the 95th percentile.
const FAREWELL_WAIT: Duration = Duration::from_micros(300);

/// Whether the caller has ended its side, or does so at once.
async fn is_leaving(caller: &TcpStream) -> io::Result<bool> {
    if caller.ready(Interest::READABLE).await?.is_read_closed() {
        return Ok(true);
    }
    Ticker::new()?.wait(FAREWELL_WAIT).await?;
    Ok(caller.ready(Interest::READABLE).await?.is_read_closed())
}
