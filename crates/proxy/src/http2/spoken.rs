//! A stream to a Machine that speaks HTTP/2, read and written as if it was a connection of HTTP/1.1.
//!
//! So a caller of HTTP/1.1 is served by the engine of HTTP/1.1 whatever its Machine speaks: it judges, signs, edits,
//! replays and ends answers by the same rules, and each side makes the other wait for as long as it takes nothing.

use std::cell::Cell;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::answer;
use super::backend::{Backend, request_of};
use super::exchange::Broken;
use super::relay::{broken, trailing};
use crate::http::body::{Framing, Progress};
use crate::http::head::{BadRequest, Method, write_field};
use crate::pipe::Source;

/// Why a stream did not begin.
pub(crate) enum Unspoken {
    /// The head cannot be said in HTTP/2.
    Bad(BadRequest),
    Broken(Broken),
}

/// Why the answer did not come, for who has only seen that it did not.
pub(super) type Fault = Rc<Cell<Option<Broken>>>;

/// Begins a request with this head, which we wrote; its body is written as the framing says.
pub(crate) async fn speak(
    backend: &Backend,
    head: &[u8],
    framing: Framing,
    method: Method,
) -> Result<(Answer, Question, Fault), Unspoken> {
    let request = request_of(head, true).map_err(Unspoken::Bad)?;
    let failed = |error: h2::Error| Unspoken::Broken(broken(&error));
    let mut requests = backend.requests().ready().await.map_err(failed)?;
    let body = Progress::new(framing);
    let (answer, stream) = requests.send_request(request, body.is_done()).map_err(failed)?;
    let fault = Fault::default();
    let ended = body.is_done();
    let content = BytesMut::new();
    let question = Question { stream, body, trailing: Vec::new(), content, taken: None, ended };
    let answer = Answer {
        state: State::Head(answer),
        out: Vec::new(),
        at: 0,
        only_head: method == Method::Head,
        fault: Rc::clone(&fault),
    };
    Ok((answer, question, fault))
}

/// Takes the request's body in the framing of HTTP/1.1.
pub(crate) struct Question {
    stream: SendStream<bytes::Bytes>,
    body: Progress,
    trailing: Vec<u8>,
    /// Of the write that is under way.
    content: BytesMut,
    /// So many bytes of input that one has.
    taken: Option<usize>,
    ended: bool,
}

impl Question {
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { body, content, trailing, .. } = self;
        body.step_to_trailers(
            bytes,
            |range| content.extend_from_slice(&bytes[range]),
            |byte| trailing.push(byte),
        )
        .map_err(|_| io::ErrorKind::InvalidData)?;
        self.taken = Some(bytes.len());
        Ok(bytes.len())
    }

    /// Sends as much as the Machine takes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.content.is_empty() {
            self.stream.reserve_capacity(self.content.len());
            let capacity = self.stream.capacity().min(self.content.len());
            if capacity == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Poll::Ready(Err(gone())),
                }
            }
            let piece = self.content.split_to(capacity).freeze();
            self.stream.send_data(piece, false).map_err(|_| gone())?;
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        let trailers = match self.trailing.len() {
            0..=2 => HeaderMap::new(),
            _ => answer::trailers(&self.trailing).map_err(|_| io::ErrorKind::InvalidData)?,
        };
        let sent = match trailers.is_empty() {
            true => self.stream.send_data(bytes::Bytes::new(), true),
            false => self.stream.send_trailers(trailers),
        };
        sent.map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl AsyncWrite for Question {
    /// Polled again, it must be with the same bytes.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = match self.taken {
            Some(taken) => taken,
            None => self.take(bytes)?,
        };
        ready!(self.poll_send(cx))?;
        if self.body.is_done() && !self.ended {
            self.end()?;
        }
        self.taken = None;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Gives the answer as HTTP/1.1 would have it.
pub(crate) struct Answer {
    state: State,
    /// Not read yet, from `at` on.
    out: Vec<u8>,
    at: usize,
    only_head: bool,
    fault: Fault,
}

enum State {
    Head(ResponseFuture),
    Body {
        recv: RecvStream,
        chunked: bool,
        /// Content that is in `out`: the Machine may send as much again when it has been read.
        held: usize,
    },
    Over,
}

impl Answer {
    /// Fills `out`; empty, the answer is over.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (self.at, self.out) = (0, std::mem::take(&mut self.out));
        self.out.clear();
        match &mut self.state {
            State::Head(_) => self.poll_head(cx),
            State::Body { .. } => self.poll_body(cx),
            State::Over => Poll::Ready(Ok(())),
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Head(answer) = &mut self.state else { return Poll::Ready(Ok(())) };
        if let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
            write_head(interim.status(), interim.headers(), &mut self.out);
            self.out.extend_from_slice(b"\r\n");
            return Poll::Ready(Ok(()));
        }
        let (parts, recv) = match ready!(Pin::new(answer).poll(cx)) {
            Ok(answer) => Response::into_parts(answer),
            Err(error) => {
                self.fault.set(Some(broken(&error)));
                return Poll::Ready(Err(gone()));
            }
        };
        write_head(parts.status, &parts.headers, &mut self.out);
        let bodiless = self.only_head || matches!(parts.status.as_u16(), 204 | 304);
        let chunked = !bodiless && !parts.headers.contains_key(CONTENT_LENGTH);
        if chunked {
            self.out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        self.out.extend_from_slice(b"\r\n");
        self.state = State::Body { recv, chunked, held: 0 };
        Poll::Ready(Ok(()))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Body { recv, chunked, held } = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        // It fails when the stream has ended meanwhile: then there is nothing to open.
        let _released = recv.flow_control().release_capacity(std::mem::take(held)).is_ok();
        loop {
            match ready!(recv.poll_data(cx)) {
                // One without content would be the end of chunks.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    *held = data.len();
                    if *chunked {
                        write!(self.out, "{:x}\r\n", data.len())?;
                    }
                    self.out.extend_from_slice(&data);
                    if *chunked {
                        self.out.extend_from_slice(b"\r\n");
                    }
                    return Poll::Ready(Ok(()));
                }
                Some(Err(_)) => return Poll::Ready(Err(gone())),
                None => break,
            }
        }
        let trailers = ready!(recv.poll_trailers(cx)).map_err(|_| gone())?;
        if *chunked {
            self.out.extend_from_slice(b"0\r\n");
            for (name, value) in &trailing(trailers.unwrap_or_default()) {
                write_field(&mut self.out, name.as_str(), value.as_bytes());
            }
            self.out.extend_from_slice(b"\r\n");
        }
        self.state = State::Over;
        Poll::Ready(Ok(()))
    }
}

fn write_head(status: StatusCode, headers: &HeaderMap, out: &mut Vec<u8>) {
    let reason = status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    for (name, value) in headers {
        write_field(out, name.as_str(), value.as_bytes());
    }
}

impl Source for Answer {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Answer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.out.len() <= self.at {
            ready!(self.poll_more(cx))?;
        }
        let rest = &self.out[self.at..];
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}
