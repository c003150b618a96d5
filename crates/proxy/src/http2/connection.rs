//! A caller's connection: accepts streams, and ends when nobody uses it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use super::backend::Shelf;
use super::stream;
use crate::crowd::{Idle, NoSeat, Room, Seat};
use crate::directory::{Destination, Directory};
use crate::http::head::{Forwarded, HEAD_BYTES_MAX};
use crate::moderation;

/// What every connection of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// So much of it is no request of HTTP/1.1.
const PREFACE_LEN_MIN: usize = b"PRI * HTTP/2".len();
/// A caller may take so long for the rest of the preface, and be so long without a stream (PX-93).
const IDLE_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_millis(700) } else { Duration::from_secs(60) };
/// Who was told to go away may take so long for it.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(4);
/// The same at the end of the proxy, for who has no stream: it may be frozen, and the next proxy waits for it.
const LAST_FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// The same while a successor serves already, until it is time to close who asks nothing: nobody waits for it.
const SOFT_FAREWELL_TIMEOUT: Duration = IDLE_TIMEOUT;
/// Streams at once; nginx's number. More are refused one by one, and clients wait with them.
const STREAMS_MAX: u32 = 128;
/// What a caller may send ahead on one stream: that is kept while the request is held.
const STREAM_WINDOW: u32 = 32 * 1024;
/// The same of all streams of a connection together: a body that waits for one Machine keeps no other body out.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// What is kept of an answer within its caller's window while the network does not take it.
const SEND_BYTES_MAX: usize = 32 * 1024;
/// Streams that a caller has reset before they were begun; one more ends the connection (rapid reset).
const RESET_UNSEEN_MAX: usize = 20;
/// Streams that a caller got reset for breaking the rules, in the life of a connection.
const RESET_BY_ERROR_MAX: usize = 256;
/// How many bytes below 256 the unread DATA frames of a connection may be together: 16,000 frames of a few bytes, as
/// streams of small messages have them while their Machine is slow.
const SMALL_FRAMES_BUDGET: usize = 4 * 1024 * 1024;

/// Whether a connection that begins so speaks HTTP/2.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    let length = bytes.len().min(PREFACE.len());
    PREFACE_LEN_MIN <= length && bytes[..length] == PREFACE[..length]
}

/// A connection as its first bytes were read.
pub(crate) struct Opening {
    pub(crate) directory: Rc<Directory>,
    pub(crate) to: Destination,
    pub(crate) forwarded: Forwarded,
    pub(crate) idle: Rc<Idle>,
    /// What was read.
    pub(crate) read: Vec<u8>,
}

/// What the streams of a connection share.
pub(super) struct Shared {
    pub(super) directory: Rc<Directory>,
    pub(super) to: RefCell<Destination>,
    pub(super) forwarded: Forwarded,
    /// `Server` and `Via`.
    pub(super) signature: HeaderMap,
    /// Connections to Machines that speak HTTP/2.
    pub(super) shelf: Shelf,
}

/// Serves a connection until one side ends it. Streams that are left then are reset.
pub(crate) async fn serve(tcp: &mut TcpStream, opening: Opening) {
    let Opening { directory, to, forwarded, idle, read } = opening;
    let ending = Rc::clone(&directory.ending);
    let (mut ends, mut closes) = (pin!(ending.begins()), pin!(ending.closes()));
    let signature = signature(directory.signature());
    let shared =
        Shared { directory, to: RefCell::new(to), forwarded, signature, shelf: Shelf::default() };
    let handshake = limits().handshake::<_, Bytes>(Resumed { tcp, read, at: 0 });
    let handshake = tokio::time::timeout(IDLE_TIMEOUT, handshake).await;
    let Ok(Ok(connection)) = handshake else { return };
    let now = Instant::now();
    let mut serving = Serving {
        connection,
        streams: JoinSet::new(),
        idle,
        room: None,
        quiet_since: Some(now),
        alarm: Box::pin(tokio::time::sleep_until(now + IDLE_TIMEOUT)),
        leaves: None,
    };
    let shared = Rc::new(shared);
    loop {
        let event = std::future::poll_fn(|cx| {
            // Before it is asked whether the end has begun: see `Ending::begins`.
            let _woken = (ends.as_mut().poll(cx).is_ready(), closes.as_mut().poll(cx).is_ready());
            if ending.closes_idle() {
                serving.leave(LAST_FAREWELL_TIMEOUT);
            } else if ending.has_begun() {
                serving.leave(SOFT_FAREWELL_TIMEOUT);
            }
            serving.poll_event(cx)
        });
        match event.await {
            Event::Request(request, mut respond) => match serving.seat() {
                Ok(seat) => {
                    let work = stream::serve(Rc::clone(&shared), request, respond);
                    serving.begin(seat, work);
                }
                Err(why) => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    serving.note_refused(&shared, why);
                }
            },
            Event::IdleTooLong => serving.leave(FAREWELL_TIMEOUT),
            Event::Over => return,
        }
    }
}

/// What one caller may ask of us.
pub(crate) fn limits() -> server::Builder {
    let mut limits = server::Builder::new();
    limits
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
        .max_local_error_reset_streams(Some(RESET_BY_ERROR_MAX))
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    limits
}

/// The fields of a text of lines that is ours.
fn signature(text: &str) -> HeaderMap {
    let fields = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.parse::<HeaderName>().ok()?, value.parse::<HeaderValue>().ok()?))
    });
    fields.collect()
}

/// What happens to a connection.
#[expect(clippy::large_enum_variant, reason = "it lives for one turn of the loop")]
enum Event {
    Request(Request<RecvStream>, SendResponse<Bytes>),
    IdleTooLong,
    Over,
}

struct Serving<'a> {
    connection: server::Connection<Resumed<'a>, Bytes>,
    /// Ended with the connection.
    streams: JoinSet<()>,
    idle: Rc<Idle>,
    /// Where streams get their places, once there were two at a time.
    room: Option<Rc<Room>>,
    /// When the last stream has ended.
    quiet_since: Option<Instant>,
    /// Set anew when it rings early, not for each stream.
    alarm: Pin<Box<Sleep>>,
    /// The caller was told to go away, and how long it may take when nothing is in flight.
    leaves: Option<Duration>,
}

/// What a stream takes of all callers' places: nothing, for the first one of a connection.
struct StreamSeat(#[expect(dead_code, reason = "given back when dropped")] Option<Seat>);

impl Serving<'_> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self.connection.poll_accept(cx) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                return Poll::Ready(Event::Request(request, respond));
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "a connection of HTTP/2 broke");
                return Poll::Ready(Event::Over);
            }
            Poll::Ready(None) => return Poll::Ready(Event::Over),
            Poll::Pending => {}
        }
        while let Poll::Ready(Some(done)) = self.streams.poll_join_next(cx) {
            self.idle.presence.end_stream();
            if let Err(error) = done {
                tracing::error!(%error, "a stream's task failed");
            }
        }
        // The end of an answer may still wait for a caller that reads slowly.
        let is_quiet = self.streams.is_empty() && !self.connection.has_streams();
        if is_quiet && self.quiet_since.is_none() {
            let now = Instant::now();
            self.quiet_since = Some(now);
            self.idle.begin(now);
            if let Some(timeout) = self.leaves {
                self.alarm.as_mut().reset(now + timeout);
            }
        }
        self.poll_idle(cx)
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        while self.alarm.as_mut().poll(cx).is_ready() {
            if self.leaves.is_some() && self.quiet_since.is_some() {
                return Poll::Ready(Event::Over);
            }
            let now = Instant::now();
            let deadline = self.quiet_since.unwrap_or(now) + IDLE_TIMEOUT;
            if deadline <= now {
                return Poll::Ready(Event::IdleTooLong);
            }
            self.alarm.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// An error: its source, its app or all callers together have as much in flight as they may.
    fn seat(&mut self) -> Result<StreamSeat, NoSeat> {
        if self.streams.is_empty() {
            return Ok(StreamSeat(None));
        }
        if self.room.is_none() {
            self.room = self.idle.room();
        }
        let room = self.room.as_ref().ok_or(NoSeat::All)?;
        room.seat().map(|seat| StreamSeat(Some(seat)))
    }

    /// The app's log and the ledger hear of it, unless they did a moment ago.
    #[cold]
    fn note_refused(&self, shared: &Shared, why: NoSeat) {
        if let Some(others) = self.room.as_ref().and_then(|room| room.turned_away()) {
            shared.to.borrow().note_turned_away("a stream of HTTP/2", why, others);
        }
    }

    fn begin(&mut self, seat: StreamSeat, work: impl Future<Output = ()> + 'static) {
        self.idle.end();
        self.idle.presence.begin_stream(moderation::turn());
        self.quiet_since = None;
        self.streams.spawn_local(async move {
            work.await;
            drop(seat);
        });
    }

    /// Lets what is in flight go on, and no more begin than the caller has sent before it understands that. Said again,
    /// only a shorter time is something new.
    fn leave(&mut self, timeout: Duration) {
        if self.leaves.is_none() {
            self.connection.graceful_shutdown();
        }
        if self.leaves.is_none_or(|leaves| timeout < leaves) {
            self.leaves = Some(timeout);
            self.alarm.as_mut().reset(Instant::now() + timeout);
        }
    }
}

/// A connection of which something was read already.
struct Resumed<'a> {
    tcp: &'a mut TcpStream,
    read: Vec<u8>,
    at: usize,
}

impl AsyncRead for Resumed<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut *self.tcp).poll_read(cx, into);
        }
        let count = into.remaining().min(self.read.len() - self.at);
        into.put_slice(&self.read[self.at..self.at + count]);
        self.at += count;
        if self.at == self.read.len() {
            self.read = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Resumed<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tcp).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_preface_begins_http2() {
        assert!(begins(PREFACE) && begins(&PREFACE[..PREFACE_LEN_MIN]));
        assert!(begins(&[PREFACE, b"frames"].concat()));
        assert!(!begins(b"PRI * HTTP/"));
        assert!(!begins(b"PRI * HTTP/2.0\r\nHost: x\r\n\r\n"));
        assert!(!begins(b"GET / HTTP/2.0\r\n\r\n"));
    }
}
