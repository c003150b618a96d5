//! One stream and its answer, over a connection to the Machine that is there already: HTTP/1.1.

use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::HeaderMap;
use perch_core::replay::BadReplay;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::answer::{self, Signature};
use super::body::{Body, Piece};
use super::compressed::{self, Lines};
use super::head::Head;
use crate::app::Place;
use crate::buffer::{BUFFER_BYTES, Buffer, read_some};
use crate::http::body::{Framing, Progress};
use crate::http::head::{After, HEAD_BYTES_MAX};
use crate::http::replay::{self, Order};
use crate::idleness::Idleness;

/// Bytes of a Machine's trailers; more than that the framing refuses.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// Interim answers that are passed on to one caller: they wait without limit in memory if it reads none.
const INTERIM_MAX: usize = 16;

/// Why an exchange ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The Machine ended the connection before a byte of its answer.
    #[error("PU02 the Machine closed the connection without an answer")]
    NoAnswer,
    /// The Machine answered with something else than HTTP.
    #[error("PU02 the Machine's answer is malformed")]
    Malformed,
    /// The Machine says that it has not looked at the request: another try is no second one.
    #[error("PU02 the Machine refused the request unseen")]
    Unseen,
    /// Neither side said anything for `idle_timeout`.
    #[error("nothing was said for longer than idle_timeout allows")]
    Silent,
    /// The Machine was to speak HTTP/2, and does not.
    #[error("PU01 the Machine does not speak HTTP/2, as h2_backend says it does")]
    NoHttp2,
    /// The caller has gone, or the answer broke in the middle and its stream was reset.
    #[error("the exchange was cut")]
    Cut,
}

/// What became of an exchange.
#[derive(Debug)]
pub(super) enum Done {
    /// What to do with the Machine's connection.
    Answered(After),
    /// Nothing was said to the caller: the request is wanted elsewhere (PX-40).
    Replay(Result<Box<Order>, BadReplay>, After),
}

impl Done {
    /// Of a connection on which nobody knows where a next request would begin.
    fn closing(self) -> Self {
        match self {
            Self::Answered(_) => Self::Answered(After::Close),
            Self::Replay(order, _) => Self::Replay(order, After::Close),
        }
    }
}

/// What is fixed for one exchange.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) head: &'a Head,
    pub(super) signature: Signature<'a>,
    pub(super) place: &'a Place,
    pub(super) idle: &'a Idleness,
}

/// The parts of a request's body as the Machine gets them, by the framing that its head names.
pub(super) fn frame(framing: Framing, piece: &[u8], out: &mut Vec<u8>) {
    if framing == Framing::Chunked {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(piece);
    }
}

/// The end of it.
pub(super) fn frame_end(framing: Framing, trailers: &HeaderMap, out: &mut Vec<u8>) {
    if framing != Framing::Chunked {
        return;
    }
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter().filter(|(name, _)| answer::may_trail(name.as_str())) {
        let line_len = name.as_str().len() + value.len() + 4;
        // What the other side would have to refuse is left out.
        if line_len <= TRAILER_BYTES_MAX
            && !value.as_bytes().iter().any(|b| *b < b' ' && *b != b'\t')
        {
            crate::http::head::write_field(out, name.as_str(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Sends `message` (head, and the body if it was there whole) and the rest of the body, and brings back the answer.
pub(super) async fn exchange(
    respond: &mut SendResponse<Bytes>,
    machine: &mut TcpStream,
    terms: Terms<'_>,
    message: &[u8],
    rest: Option<&mut Body>,
) -> Result<Done, Broken> {
    if machine.write_all(message).await.is_err() {
        return Err(Broken::NoAnswer);
    }
    let (read, write) = machine.split();
    let mut download = pin!(download(respond, read, terms));
    let Some(body) = rest else { return download.await };
    let mut upload = pin!(upload(body, write, terms));
    let mut uploaded = None;
    let answered = std::future::poll_fn(|cx| {
        if uploaded.is_none()
            && let Poll::Ready(done) = upload.as_mut().poll(cx)
        {
            uploaded = Some(done);
        }
        if matches!(uploaded, Some(Upload::CallerGone)) {
            return Poll::Ready(Err(Broken::Cut));
        }
        download.as_mut().poll(cx)
    });
    let done = answered.await?;
    // Else it was answered before the end of the request.
    Ok(if matches!(uploaded, Some(Upload::Whole)) { done } else { done.closing() })
}

/// How the request's body ended.
enum Upload {
    Whole,
    CallerGone,
    /// The Machine takes no more; it may have answered already.
    MachineGone,
}

async fn upload(body: &mut Body, mut machine: impl AsyncWrite + Unpin, terms: Terms<'_>) -> Upload {
    let framing = terms.head.request.framing;
    // `h2` has compared the length with the content; a Machine must not depend on that.
    let mut left = match framing {
        Framing::Length(length) => length,
        Framing::None => 0,
        Framing::Chunked | Framing::Close => u64::MAX,
    };
    let mut out = Vec::new();
    loop {
        out.clear();
        let (count, last) = match std::future::poll_fn(|cx| body.poll_next(cx)).await {
            Piece::Content(piece) => {
                let count = piece.len();
                let Some(less) = left.checked_sub(count as u64) else { return Upload::CallerGone };
                left = less;
                frame(framing, &piece, &mut out);
                (count, false)
            }
            Piece::End(trailers) => {
                if left != 0 && matches!(framing, Framing::Length(_)) {
                    return Upload::CallerGone;
                }
                frame_end(framing, &trailers, &mut out);
                (0, true)
            }
            Piece::Broken => return Upload::CallerGone,
        };
        terms.idle.note();
        if write_all(body, &mut machine, &out).await.is_err() {
            return Upload::MachineGone;
        }
        if last {
            return Upload::Whole;
        }
        body.release(count);
    }
}

/// Writes, and takes in meanwhile what the caller sends.
async fn write_all(
    body: &mut Body,
    machine: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut write = pin!(machine.write_all(bytes));
    std::future::poll_fn(|cx| {
        let written = write.as_mut().poll(cx);
        if written.is_pending() {
            body.take_in(cx);
        }
        written
    })
    .await
}

/// Waits for the answer and passes it on.
async fn download(
    respond: &mut SendResponse<Bytes>,
    mut machine: impl AsyncRead + Unpin,
    terms: Terms<'_>,
) -> Result<Done, Broken> {
    let reset = |cx: &mut Context<'_>| respond.poll_reset(cx).map(drop);
    let mut input = read(&mut machine, reset).await?;
    if input.is_empty() {
        return Err(Broken::NoAnswer);
    }
    let mut interim = 0;
    let (mut facts, response) = loop {
        let parsed = answer::parse(input.filled(), &terms.head.request, terms.signature);
        match parsed.map_err(|_| Broken::Malformed)? {
            None => read_more(respond, &mut machine, &mut input).await?,
            Some((facts, response)) if facts.is_interim() => {
                input.consume(facts.head_len);
                interim += 1;
                if INTERIM_MAX < interim {
                    return Err(Broken::Malformed);
                }
                // A caller that takes none of these has gone, which is noticed below.
                let _sent = respond.send_informational(response).is_ok();
            }
            Some(head) => break head,
        }
    };
    if facts.replay {
        let order = Box::pin(replay::take(&mut machine, input, &mut facts));
        let order = unless_reset(respond, order).await?;
        return Ok(Done::Replay(order, facts.machine_after));
    }
    input.consume(facts.head_len);
    terms.place.app().counts.note_answer(facts.status);
    terms.place.note_answered();
    pass(respond, machine, (facts, response), input, terms).await.map(Done::Answered)
}

/// Runs `work`, unless the caller resets the stream.
pub(super) async fn unless_reset<T>(
    respond: &mut SendResponse<Bytes>,
    work: impl Future<Output = T>,
) -> Result<T, Broken> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        respond.poll_reset(cx).map(|_| Err(Broken::Cut))
    })
    .await
}

/// Reads, unless the caller resets the stream.
async fn read(
    machine: &mut (impl AsyncRead + Unpin),
    mut reset: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Result<Buffer, Broken> {
    let mut read = pin!(read_some(machine, BUFFER_BYTES));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(read) = read.as_mut().poll(cx) {
            return Poll::Ready(read.map_err(|_| Broken::NoAnswer));
        }
        reset(cx).map(|()| Err(Broken::Cut))
    })
    .await
}

async fn read_more(
    respond: &mut SendResponse<Bytes>,
    machine: &mut (impl AsyncRead + Unpin),
    input: &mut Buffer,
) -> Result<(), Broken> {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(read) = input.poll_fill(cx, machine, HEAD_BYTES_MAX) {
            return Poll::Ready(match read {
                Ok(0) | Err(_) => Err(Broken::NoAnswer),
                Ok(_) => Ok(()),
            });
        }
        respond.poll_reset(cx).map(|_| Err(Broken::Cut))
    })
    .await
}

/// Passes on the final answer, of whose body `input` is the beginning.
async fn pass(
    respond: &mut SendResponse<Bytes>,
    machine: impl AsyncRead + Unpin,
    (facts, mut response): answer::Head,
    input: Buffer,
    terms: Terms<'_>,
) -> Result<After, Broken> {
    let body = Progress::new(facts.framing);
    let ended = body.is_done();
    let gzip = compressed::begin(terms, facts.framing, &mut response);
    let mut stream = respond.send_response(response, ended).map_err(|_| Broken::Cut)?;
    if ended {
        return Ok(if input.is_empty() { facts.machine_after } else { After::Close });
    }
    let passed = match gzip {
        None => pass_body(&mut stream, machine, body, input, terms.idle).await,
        Some(gzip) => {
            let mut lines = Lines::new(machine, body, input);
            let next = |cx: &mut Context<'_>| lines.poll_next(cx);
            let passed = Box::pin(compressed::pass(&mut stream, gzip, terms.idle, next)).await;
            passed.map(|()| lines.is_clean())
        }
    };
    if passed.is_err() {
        stream.send_reset(Reason::INTERNAL_ERROR);
    }
    Ok(if passed? { facts.machine_after } else { After::Close })
}

/// Says whether the Machine's connection has no more than it should.
async fn pass_body(
    stream: &mut SendStream<Bytes>,
    mut machine: impl AsyncRead + Unpin,
    mut body: Progress,
    mut input: Buffer,
    idle: &Idleness,
) -> Result<bool, Broken> {
    let mut trailing = Vec::new();
    loop {
        idle.note();
        let bytes = input.filled();
        let mut content = BytesMut::new();
        let piece = body.step_to_trailers(
            bytes,
            |range| content.extend_from_slice(&bytes[range]),
            |byte| trailing.push(byte),
        );
        let piece = piece.map_err(|_| Broken::Cut)?;
        let (clean, done) = (piece.consumed == bytes.len(), piece.done);
        drop(input);
        let ends_here = done && trailing.len() <= b"\r\n".len();
        send(stream, content.freeze(), ends_here).await?;
        if ends_here {
            return Ok(clean);
        }
        if done {
            let trailers = answer::trailers(&trailing).map_err(|_| Broken::Cut)?;
            stream.send_trailers(trailers).map_err(|_| Broken::Cut)?;
            return Ok(clean);
        }
        let reset = |cx: &mut Context<'_>| stream.poll_reset(cx).map(drop);
        input = read(&mut machine, reset).await.map_err(|_| Broken::Cut)?;
        if input.is_empty() {
            if body != Progress::Close {
                return Err(Broken::Cut);
            }
            send(stream, Bytes::new(), true).await?;
            return Ok(false);
        }
    }
}

/// Sends content as far as the caller takes it; memory is bounded by its window and ours.
pub(super) async fn send(
    stream: &mut SendStream<Bytes>,
    mut content: Bytes,
    last: bool,
) -> Result<(), Broken> {
    while !content.is_empty() {
        stream.reserve_capacity(content.len());
        if stream.capacity() == 0 {
            let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
            granted.and_then(Result::ok).ok_or(Broken::Cut)?;
            continue;
        }
        let piece = content.split_to(stream.capacity().min(content.len()));
        let last = last && content.is_empty();
        stream.send_data(piece, last).map_err(|_| Broken::Cut)?;
        if last {
            return Ok(());
        }
    }
    if last {
        stream.send_data(Bytes::new(), true).map_err(|_| Broken::Cut)?;
    }
    Ok(())
}
