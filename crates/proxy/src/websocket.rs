//! What the proxy says on a WebSocket by itself.
//!
//! ```text
//!  the caller pings while its connection rests ──► its pong; nobody is woken, nothing counts as use
//!  the Machine is about to end, or the proxy   ──► close 1001 between two frames, then the end (AS-52, AS-63)
//! ```
//!
//! Awake, pings and pongs of both sides pass as they come, and are no use of the Machine either (DESIGN 4).

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use perch_core::heartbeat::Side;
use perch_core::websocket::{Frames, Front, GOING_AWAY, PING_BYTES_MAX, Passed};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::Place;
use crate::buffer::{BUFFER_BYTES, Buffer, read_some_of};
use crate::ending::Ending;
use crate::http::silent;
use crate::line::Line;
use crate::moderation;

/// A caller that was told that its Machine goes has so long to end the connection.
const FAREWELL_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(2) };
/// Who cannot say anything to a Machine any more, or hears that it is gone, waits so long for what is said about it.
const NEWS_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Socket {
    up: Cell<Frames>,
    down: Cell<Frames>,
    /// The beginning of a caller's ping, whose rest has not come yet.
    held: RefCell<Vec<u8>>,
    told: Cell<bool>,
    ending: Rc<Ending>,
}

impl Socket {
    pub(crate) fn new(ending: &Rc<Ending>) -> Box<Self> {
        Box::new(Self {
            up: Cell::new(Frames::of(Side::Caller)),
            down: Cell::new(Frames::of(Side::Machine)),
            held: RefCell::default(),
            told: Cell::new(false),
            ending: Rc::clone(ending),
        })
    }

    /// Follows what goes to the Machine; whether it is only pings and pongs.
    pub(crate) fn asks(&self, bytes: &[u8]) -> bool {
        follow(&self.up, bytes).only_pings
    }

    /// Whether the caller was told that its Machine goes.
    pub(crate) fn has_told(&self) -> bool {
        self.told.get()
    }

    /// Puts what is held to the front of what was read.
    pub(crate) fn begin(&self, buffer: &mut Buffer) {
        buffer.fill_from(&self.held.borrow());
    }

    /// What was held has been read.
    pub(crate) fn forget(&self) {
        if !self.held.borrow().is_empty() {
            self.held.take();
        }
    }

    /// Answers the pings that wait. `true`: nothing else does. While the caller is `stuck` in what the Machine says, a
    /// part of a frame may not be written yet.
    pub(crate) async fn answer_pings(
        &self,
        caller: &TcpStream,
        stuck: &Cell<bool>,
    ) -> io::Result<bool> {
        let may_answer = || self.down.get().is_between() && !stuck.get();
        if !self.up.get().is_between() || !may_answer() {
            return Ok(false);
        }
        let mut bytes = [0; PING_BYTES_MAX];
        let held = self.held.borrow().len();
        bytes[..held].copy_from_slice(&self.held.borrow());
        let count = caller.peek(&mut bytes[held..]).await?;
        // The connection may have changed meanwhile.
        if count == 0 || !may_answer() {
            return Ok(false);
        }
        let len = match Front::of(&bytes[..held + count]) {
            Front::Other => return Ok(false),
            Front::Part => held + count,
            Front::Pong { len } => len,
            Front::Ping { len, pong } => match caller.try_write(&pong) {
                Ok(written) if written == pong.len() => len,
                // In the middle of a frame nothing else can be said.
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let part = len == held + count && Front::of(&bytes[..len]) == Front::Part;
        consume(caller, len - held)?;
        self.forget();
        if part {
            self.held.borrow_mut().extend_from_slice(&bytes[..len]);
        }
        Ok(true)
    }

    /// Passes on what the Machine says, and tells the caller before it ends.
    pub(crate) async fn answer(
        &self,
        line: &Line<'_>,
        machine: &TcpStream,
        caller: &mut (impl AsyncWrite + Unpin),
        said: Vec<u8>,
    ) -> io::Result<()> {
        follow(&self.down, &said);
        line.until_taken(caller.write_all(&said)).await?;
        drop(said);
        loop {
            if self.goes(line.place()) && self.down.get().is_between() {
                return self.tell(caller).await;
            }
            let read = tokio::select! {
                biased;
                read = read_some_of(machine, BUFFER_BYTES) => read,
                () = self.until_going(line.place()) => continue,
            };
            let Some(bytes) = read.as_ref().ok().filter(|bytes| !bytes.is_empty()) else {
                return self.end(line, caller, read.map(drop)).await;
            };
            let passed = follow(&self.down, bytes.filled());
            line.hear_machine(bytes.len(), passed.only_pings);
            moderation::count_piece(bytes.len());
            let ends = self.goes(line.place()) && passed.whole != 0 && !self.down.get().is_closed();
            let count = if ends { passed.whole } else { bytes.len() };
            line.until_taken(caller.write_all(&bytes.filled()[..count])).await?;
            if ends {
                return self.tell(caller).await;
            }
        }
    }

    /// The Machine has ended the connection: by itself, or because it ends.
    async fn end(
        &self,
        line: &Line<'_>,
        caller: &mut (impl AsyncWrite + Unpin),
        ended: io::Result<()>,
    ) -> io::Result<()> {
        let between = self.down.get().is_between();
        if between && !self.goes(line.place()) {
            silent::until_ended(line.place()).await;
        }
        if between && self.goes(line.place()) {
            return self.tell(caller).await;
        }
        ended?;
        caller.shutdown().await
    }

    /// The last word. The caller answers it and ends the connection, and so ends what waits here.
    async fn tell(&self, caller: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        self.told.set(true);
        caller.write_all(&GOING_AWAY).await?;
        caller.shutdown().await?;
        tokio::time::sleep(FAREWELL_TIMEOUT).await;
        Err(io::ErrorKind::TimedOut.into())
    }

    fn goes(&self, place: &Place) -> bool {
        self.ending.cuts_all() || place.goes()
    }

    /// Waits for the Machine's end or the proxy's; for ever if one of them is known already.
    async fn until_going(&self, place: &Place) {
        if self.goes(place) {
            return std::future::pending().await;
        }
        tokio::select! {
            () = self.ending.cuts() => {}
            () = place.until_going() => {}
        }
    }

    /// What becomes of an error while somebody still has to hear why.
    pub(crate) async fn give_time(&self) {
        tokio::time::sleep(NEWS_TIMEOUT).await;
    }
}

fn follow(frames: &Cell<Frames>, bytes: &[u8]) -> Passed {
    let mut now = frames.get();
    let passed = now.pass(bytes);
    frames.set(now);
    passed
}

/// Takes bytes that were looked at before.
fn consume(caller: &TcpStream, count: usize) -> io::Result<()> {
    let mut bytes = [0; PING_BYTES_MAX];
    let read = caller.try_read(&mut bytes[..count])?;
    if read == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
