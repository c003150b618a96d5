//! Whether the caller is still there, while the Machine works for it.
//!
//! A caller may leave by a reset: that ends the exchange at once. Or it ends its side, and then nobody
//! can tell who has gone from who has only asked all that it wanted to ask (`nc -N`, old clients). It
//! gets its answer: a write tells who has gone. While the Machine says nothing there is no write, so
//! such a caller is given up after a while; otherwise it would keep the Machine awake for ever.
//!
//! The end of a stream is behind all bytes before it. Therefore what comes ahead of its time is read,
//! as far as it may be a next request; behind more than that only a reset is seen.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::head::HEAD_BYTES_MAX;
use crate::buffer::Buffer;
use crate::line::Line;

/// A caller that has ended its side waits so long for the Machine's next byte. Most of these have gone,
/// and their requests take the places of others; tools that only ended their side are few.
const SILENCE_MAX: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

type Going<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// See the module's head.
pub(super) struct Watch<'a> {
    caller: &'a TcpStream,
    /// What the caller has sent ahead of its time.
    ahead: &'a mut Vec<u8>,
    ahead_max: usize,
    /// Bytes written to the caller so far.
    written: &'a Cell<u64>,
    ended: bool,
    /// Set when the caller has ended its side and sent no other request before.
    last: &'a Cell<bool>,
    /// Hears of what is ahead.
    line: &'a Line<'a>,
    /// Waits for a caller to go of whom nothing more is read, since so many bytes were written.
    going: Option<(u64, Going<'a>)>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        caller: &'a TcpStream,
        ahead: &'a mut Vec<u8>,
        written: &'a Cell<u64>,
        last: &'a Cell<bool>,
        line: &'a Line<'a>,
    ) -> Self {
        let ahead_max = HEAD_BYTES_MAX;
        if !ahead.is_empty() {
            line.note_ahead();
        }
        Self { caller, ahead, ahead_max, written, ended: false, last, line, going: None }
    }

    pub(super) fn caller(&self) -> &'a TcpStream {
        self.caller
    }

    /// The request has been passed on whole.
    pub(super) fn note_uploaded(&self) {
        self.line.set_uploads(false);
    }

    /// Takes in the beginning of a next request that was read elsewhere.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.line.note_ahead();
        }
        self.ahead.extend_from_slice(bytes);
    }

    /// Reads no more: what comes is no next request.
    pub(super) fn stop_reading(&mut self) {
        self.ahead_max = 0;
    }

    /// Runs `work`; `None`: the caller has left meanwhile.
    pub(super) async fn unless_left<T>(
        &mut self,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll_left(cx).map(|()| None),
        })
        .await
    }

    /// Waits for the caller's reset.
    pub(super) fn reset(&self) -> impl Future<Output = ()> + use<'a> {
        reset(self.caller)
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.ended
            && self.ahead.len() < self.ahead_max
            && ready!(self.poll_read_ahead(cx)).is_err()
        {
            return Poll::Ready(());
        }
        let (caller, written, ended) = (self.caller, self.written.get(), self.ended);
        let current = self.going.take().filter(|(since, _)| *since == written);
        let begin = || -> Going<'a> {
            if ended { Box::pin(reset_or_silence(caller)) } else { Box::pin(reset(caller)) }
        };
        let (_, going) = self.going.insert(current.unwrap_or_else(|| (written, begin())));
        going.as_mut().poll(cx)
    }

    /// Reads until nothing more comes ahead of its time.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.ahead.len() < self.ahead_max {
            // The usual case is that there is nothing: it needs no buffer.
            ready!(self.caller.poll_read_ready(cx))?;
            let mut buffer = Buffer::take();
            let left = self.ahead_max - self.ahead.len();
            if ready!(buffer.poll_fill_of(cx, self.caller, left))? == 0 {
                self.ended = true;
                self.last.set(self.ahead.is_empty());
                break;
            }
            self.ahead.extend_from_slice(buffer.filled());
            self.line.note_ahead();
        }
        Poll::Ready(Ok(()))
    }
}

async fn reset(caller: &TcpStream) {
    // Ignored: without the runtime nobody waits any more.
    let _over = caller.ready(Interest::ERROR).await.is_err();
}

async fn reset_or_silence(caller: &TcpStream) {
    // Ignored: the caller is given up in both cases.
    let _elapsed = tokio::time::timeout(SILENCE_MAX, reset(caller)).await.is_err();
}
