//! One request and its response, over two connections that are there already.
//!
//! The usual case, a request that was read whole, is one write, one read, one write. Only a request
//! whose body is still coming pays for moving both directions at once.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::body::Progress;
use super::head::{After, HEAD_BYTES_MAX, Request, Version};
use super::response::{self, Response, Signature};
use crate::buffer::{BUFFER_BYTES, Buffer, read_some};

/// Content up to this size is copied behind the head for one plain write; above, two slices cost less.
const JOIN_BYTES_MAX: usize = 16 * 1024;

/// What became of an exchange.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) caller_after: After,
    pub(crate) machine_after: After,
    /// Bytes of the caller's next request, read together with this one's body.
    pub(crate) next: Vec<u8>,
}

/// Why an exchange ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The Machine ended the connection before a byte of its answer: it may not have seen the request.
    #[error("PU02 the Machine closed the connection without an answer")]
    NoAnswer,
    /// The Machine answered with something else than HTTP.
    #[error("PU02 the Machine's answer is malformed")]
    Malformed,
    /// The request's body is malformed, and nothing was answered yet.
    #[error("malformed request body")]
    BadBody,
    /// The caller has gone, or the answer broke in the middle: nothing more can be said to anybody.
    #[error("the exchange was cut")]
    Cut,
}

/// Sends the request in `head` (with what is there of its body) and brings back the response.
///
/// `answer` is scratch space; it is empty before and after.
pub(crate) async fn exchange(
    caller: &mut TcpStream,
    machine: &mut TcpStream,
    request: &Request,
    message: (&[u8], Progress),
    answer: &mut Vec<u8>,
    signature: Signature<'_>,
) -> Result<Done, Broken> {
    let (bytes, body) = message;
    if machine.write_all(bytes).await.is_err() {
        return Err(Broken::NoAnswer);
    }
    if !body.is_done() {
        return Box::pin(both_ways(caller, machine, request, body, answer, signature)).await;
    }
    let first = first_answer(caller, machine).await?;
    let response = respond(caller, machine, request, first, answer, signature).await?;
    let (caller_after, machine_after) = (response.caller_after, response.machine_after);
    Ok(Done { caller_after, machine_after, next: Vec::new() })
}

/// Waits for the first bytes of the answer, and notices a caller who leaves meanwhile.
async fn first_answer(caller: &TcpStream, machine: &mut TcpStream) -> Result<Buffer, Broken> {
    let mut watching = true;
    let first = std::future::poll_fn(|cx| {
        let mut buffer = Buffer::take();
        if let Poll::Ready(read) = buffer.poll_fill(cx, machine, BUFFER_BYTES) {
            return Poll::Ready(read.map(|_| Some(buffer)));
        }
        if watching && caller.poll_read_ready(cx).is_ready() {
            if has_left(caller, cx) {
                return Poll::Ready(Ok(None));
            }
            // The next request is there already; the end of the stream cannot be seen behind it.
            watching = false;
        }
        Poll::Pending
    });
    match first.await {
        Ok(Some(buffer)) if !buffer.is_empty() => Ok(buffer),
        Ok(Some(_)) | Err(_) => Err(Broken::NoAnswer),
        Ok(None) => Err(Broken::Cut),
    }
}

/// Whether the other side has ended its stream, as far as the kernel has told us.
pub(crate) fn has_left(stream: &TcpStream, cx: &mut Context<'_>) -> bool {
    match pin!(stream.ready(Interest::READABLE)).poll(cx) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        Poll::Ready(Err(_)) => true,
        Poll::Pending => false,
    }
}

/// Brings the response, of which `input` is the beginning.
async fn respond(
    caller: &mut (impl AsyncWrite + Unpin),
    machine: &mut (impl AsyncRead + Unpin),
    request: &Request,
    mut input: Buffer,
    answer: &mut Vec<u8>,
    signature: Signature<'_>,
) -> Result<Response, Broken> {
    let mut response = loop {
        match response::rewrite(input.filled(), request, signature, answer) {
            Err(_) => return Err(Broken::Malformed),
            Ok(None) => read_more(machine, &mut input).await?,
            Ok(Some(interim)) if interim.is_interim() => {
                pass_interim(caller, request, answer).await?;
                input.consume(interim.head_len);
            }
            Ok(Some(response)) => break response,
        }
    };
    input.consume(response.head_len);
    let mut body = Progress::new(response.framing);
    loop {
        let ended = pass_piece(caller, &mut body, &mut response, &input, answer).await?;
        drop(input);
        if ended {
            return Ok(response);
        }
        input = read_some(machine, BUFFER_BYTES).await.map_err(|_| Broken::Cut)?;
        if input.is_empty() {
            return if body == Progress::Close { Ok(response) } else { Err(Broken::Cut) };
        }
    }
}

/// Writes head (if it is still in `answer`) and a piece of the body; says whether that was the last.
async fn pass_piece(
    caller: &mut (impl AsyncWrite + Unpin),
    body: &mut Progress,
    response: &mut Response,
    input: &Buffer,
    answer: &mut Vec<u8>,
) -> Result<bool, Broken> {
    let bytes = input.filled();
    let dechunk = response.dechunk;
    let join = dechunk || bytes.len() <= JOIN_BYTES_MAX;
    let piece = body
        .step(bytes, |content| {
            if dechunk {
                answer.extend_from_slice(&bytes[content]);
            }
        })
        .map_err(|_| Broken::Cut)?;
    if piece.consumed < bytes.len() {
        // The Machine sent more than it announced: whatever that is, it is no next response.
        response.machine_after = After::Close;
    }
    let mut content = &bytes[..piece.consumed];
    if join {
        if !dechunk {
            answer.extend_from_slice(content);
        }
        content = &[];
    }
    let written = write_both(caller, answer, content).await;
    answer.clear();
    written.map_err(|_| Broken::Cut)?;
    Ok(piece.done || body.is_done())
}

/// Writes two slices, by one call as long as the kernel takes them whole.
async fn write_both(
    stream: &mut (impl AsyncWrite + Unpin),
    mut first: &[u8],
    mut second: &[u8],
) -> io::Result<()> {
    while !first.is_empty() && !second.is_empty() {
        let written = stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_first = written.min(first.len());
        first = &first[of_first..];
        second = &second[written - of_first..];
    }
    if !first.is_empty() {
        stream.write_all(first).await?;
    }
    if !second.is_empty() {
        stream.write_all(second).await?;
    }
    Ok(())
}

async fn read_more(
    machine: &mut (impl AsyncRead + Unpin),
    input: &mut Buffer,
) -> Result<(), Broken> {
    let read = std::future::poll_fn(|cx| input.poll_fill(cx, machine, HEAD_BYTES_MAX)).await;
    match read {
        Ok(0) | Err(_) => Err(Broken::NoAnswer),
        Ok(_) => Ok(()),
    }
}

async fn pass_interim(
    caller: &mut (impl AsyncWrite + Unpin),
    request: &Request,
    answer: &mut Vec<u8>,
) -> Result<(), Broken> {
    // Clients of HTTP/1.0 know no interim responses (RFC 9110, 15.2).
    if request.version == Version::Http11 {
        caller.write_all(answer).await.map_err(|_| Broken::Cut)?;
    }
    answer.clear();
    Ok(())
}

/// Why the request's body stopped.
enum Upload {
    Whole(Vec<u8>),
    CallerGone,
    BadBody,
    /// The Machine takes no more; it may have answered already.
    MachineGone,
}

async fn both_ways(
    caller: &mut TcpStream,
    machine: &mut TcpStream,
    request: &Request,
    body: Progress,
    answer: &mut Vec<u8>,
    signature: Signature<'_>,
) -> Result<Done, Broken> {
    let (mut caller_read, caller_write) = caller.split();
    let (mut machine_read, mut machine_write) = machine.split();
    let answered = Cell::new(false);
    let mut caller_write = Noted { stream: caller_write, written: &answered };
    let mut upload = pin!(upload(&mut caller_read, &mut machine_write, body));
    let mut download = pin!(async {
        let first = read_some(&mut machine_read, BUFFER_BYTES).await;
        let first = first.ok().filter(|buffer| !buffer.is_empty()).ok_or(Broken::NoAnswer)?;
        respond(&mut caller_write, &mut machine_read, request, first, answer, signature).await
    });
    let mut uploaded = None;
    let outcome = std::future::poll_fn(|cx| {
        if uploaded.is_none()
            && let Poll::Ready(upload) = upload.as_mut().poll(cx)
        {
            match upload {
                Upload::CallerGone => return Poll::Ready(Err(Broken::Cut)),
                Upload::BadBody if answered.get() => return Poll::Ready(Err(Broken::Cut)),
                Upload::BadBody => return Poll::Ready(Err(Broken::BadBody)),
                Upload::Whole(_) | Upload::MachineGone => uploaded = Some(upload),
            }
        }
        download.as_mut().poll(cx)
    });
    let response = outcome.await?;
    Ok(match uploaded {
        Some(Upload::Whole(next)) => Done {
            caller_after: response.caller_after,
            machine_after: response.machine_after,
            next,
        },
        // Answered before the end of the request: where the next one begins is not known.
        _ => Done { caller_after: After::Close, machine_after: After::Close, next: Vec::new() },
    })
}

async fn upload(
    caller: &mut (impl AsyncRead + Unpin),
    machine: &mut (impl AsyncWrite + Unpin),
    mut body: Progress,
) -> Upload {
    loop {
        let input = match read_some(caller, BUFFER_BYTES).await {
            Ok(input) if !input.is_empty() => input,
            Ok(_) | Err(_) => return Upload::CallerGone,
        };
        let Ok(piece) = body.step(input.filled(), |_| {}) else { return Upload::BadBody };
        let (content, next) = input.filled().split_at(piece.consumed);
        if machine.write_all(content).await.is_err() {
            return Upload::MachineGone;
        }
        if piece.done {
            return Upload::Whole(next.to_vec());
        }
    }
}

/// Remembers whether anything was written.
struct Noted<'a, S> {
    stream: S,
    written: &'a Cell<bool>,
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written.set(true);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
