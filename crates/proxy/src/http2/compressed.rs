//! Answers that go out compressed (`http_options.compress`, PX-87), to callers of HTTP/2: see [`crate::http::compress`].

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::io::AsyncRead;

use super::answer;
use super::body::Piece;
use super::exchange::{Broken, Terms, send};
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::http::body::{Framing, Progress};
use crate::http::compress::{self, Gzip, PIECE_BYTES};
use crate::idleness::Idleness;

/// Begins to compress an answer, if it may be and its caller wants that; its fields then say so.
pub(super) fn begin(
    terms: Terms<'_>,
    framing: Framing,
    response: &mut Response<()>,
) -> Option<Box<Gzip>> {
    if !terms.signature.treatment.is_some_and(|treatment| treatment.compress) {
        return None;
    }
    let own = &terms.place.app().compressors;
    let plan = {
        let headers = response.headers();
        let said = |name: &str| joined(headers, name);
        let request = (&terms.head.request, terms.head.text.as_slice());
        compress::plan(request, (response.status().as_u16(), framing), &said, own)
    };
    let headers = response.headers_mut();
    for (name, value) in plan.changes {
        match value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            Some(value) => drop(headers.insert(HeaderName::from_static(name), value)),
            None => drop(headers.remove(name)),
        }
    }
    plan.gzip.then(|| Gzip::begin(own))
}

/// All values of a field, joined by commas.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Vec<_> =
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// Passes on content, of which `next` brings one piece after the other.
pub(super) async fn pass(
    stream: &mut SendStream<Bytes>,
    mut gzip: Box<Gzip>,
    idle: &Idleness,
    mut next: impl FnMut(&mut Context<'_>) -> Poll<Piece>,
) -> Result<(), Broken> {
    loop {
        let piece = match std::future::poll_fn(|cx| Poll::Ready(next(cx))).await {
            Poll::Ready(piece) => piece,
            Poll::Pending => {
                gzip.flush();
                send(stream, gzip.take().into(), false).await?;
                std::future::poll_fn(|cx| match next(cx) {
                    Poll::Ready(piece) => Poll::Ready(Ok(piece)),
                    Poll::Pending => stream.poll_reset(cx).map(|_| Err(Broken::Cut)),
                })
                .await?
            }
        };
        match piece {
            Piece::Content(content) => {
                idle.note();
                gzip.write(&content);
                if PIECE_BYTES <= gzip.len() {
                    send(stream, gzip.take().into(), false).await?;
                }
                // Compressing takes long, as things go here: others have their turn in between.
                tokio::task::yield_now().await;
            }
            Piece::End(trailers) => {
                gzip.finish();
                let last = trailers.is_empty();
                send(stream, gzip.take().into(), last).await?;
                let sent = if last { Ok(()) } else { stream.send_trailers(trailers) };
                return sent.map_err(|_| Broken::Cut);
            }
            Piece::Broken => return Err(Broken::Cut),
        }
    }
}

/// The content of an answer that comes in HTTP/1.1.
pub(super) struct Lines<R> {
    machine: R,
    body: Progress,
    /// Read, but not looked at; nothing is kept while more is waited for.
    input: Option<Buffer>,
    trailing: Vec<u8>,
    clean: bool,
    done: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// `input` is its beginning.
    pub(super) fn new(machine: R, body: Progress, input: Buffer) -> Self {
        let input = (!input.is_empty()).then_some(input);
        Self { machine, body, input, trailing: Vec::new(), clean: false, done: false }
    }

    /// Whether the Machine's connection has no more than it should.
    pub(super) fn is_clean(&self) -> bool {
        self.clean
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        loop {
            if self.done {
                return Poll::Ready(self.end());
            }
            let input = match self.input.take() {
                Some(input) => input,
                None => match ready!(self.poll_read(cx)) {
                    Ok(input) => input,
                    Err(_) => return Poll::Ready(Piece::Broken),
                },
            };
            let ended = input.is_empty();
            if ended && self.body == Progress::Close {
                return Poll::Ready(Piece::End(HeaderMap::new()));
            }
            let content = if ended { None } else { self.take_in(&input) };
            match content {
                None => return Poll::Ready(Piece::Broken),
                Some(content) if content.is_empty() => {}
                Some(content) => return Poll::Ready(Piece::Content(content)),
            }
        }
    }

    fn end(&self) -> Piece {
        if self.trailing.len() <= b"\r\n".len() {
            return Piece::End(HeaderMap::new());
        }
        answer::trailers(&self.trailing).map_or(Piece::Broken, Piece::End)
    }

    /// Owns no buffer while it waits; an empty one is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Buffer>> {
        let mut buffer = Buffer::take();
        ready!(buffer.poll_fill(cx, &mut self.machine, BUFFER_BYTES))?;
        Poll::Ready(Ok(buffer))
    }

    fn take_in(&mut self, input: &Buffer) -> Option<Vec<u8>> {
        let (bytes, trailing) = (input.filled(), &mut self.trailing);
        let mut content = Vec::with_capacity(bytes.len());
        let piece = self.body.step_to_trailers(
            bytes,
            |range| content.extend_from_slice(&bytes[range]),
            |byte| trailing.push(byte),
        );
        let piece = piece.ok()?;
        self.clean = piece.consumed == bytes.len();
        self.done = piece.done;
        Some(content)
    }
}
