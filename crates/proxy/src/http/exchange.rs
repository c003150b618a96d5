//! One request and its response, over two connections that are there already.
//!
//! The usual case, a request that was read whole, is one write, one read, one write. Only a request
//! whose body is still coming pays for moving both directions at once.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use perch_core::replay::BadReplay;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;

use super::body::{Framing, Progress};
use super::compress::{self, Compressed};
use super::head::{After, HEAD_BYTES_MAX, Request, Version};
use super::kept::Sending;
use super::replay::{self, Order};
use super::response::{self, Response, Signature};
use super::upgrade;
use super::watch::Watch;
use crate::buffer::{BUFFER_BYTES, Buffer, read_some, read_some_of};
use crate::line::Line;
use crate::moderation;
use crate::pipe::{self, BULK_BYTES, Pipe, Source};

/// Content up to this size is copied behind the head for one plain write; above, two slices cost less.
const JOIN_BYTES_MAX: usize = 16 * 1024;

/// What the kernel takes at once of a message, whatever the Machine does. While more is written it is watched for an
/// early answer: a body that is sent again has up to 1 MB.
const UNWATCHED_BYTES_MAX: usize = 16 * 1024;

/// What became of an exchange.
#[derive(Debug)]
pub(crate) enum Done {
    Answered {
        caller_after: After,
        machine_after: After,
    },
    /// Both sides speak another protocol from here on.
    Switched,
    /// Nothing was said to the caller: the request is wanted elsewhere.
    Replay {
        order: Result<Box<Order>, BadReplay>,
        machine_after: After,
    },
}

impl From<Response> for Done {
    fn from(response: Response) -> Self {
        let Response { caller_after, machine_after, .. } = response;
        Self::Answered { caller_after, machine_after }
    }
}

/// What is fixed for one exchange.
#[derive(Clone, Copy)]
struct Terms<'a> {
    request: &'a Request,
    /// The request's head as we wrote it, and what came with it of the body.
    message: &'a [u8],
    signature: Signature<'a>,
    line: &'a Line<'a>,
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
    /// Neither side said anything for `idle_timeout`, and nothing was answered yet.
    #[error("nothing was said for longer than idle_timeout allows")]
    Silent,
    /// The caller has gone, or the answer broke in the middle: nothing more can be said to anybody.
    #[error("the exchange was cut")]
    Cut,
}

/// A request as it goes out.
pub(crate) struct Message<'a> {
    /// Head, and what is there of its body.
    pub(crate) bytes: &'a [u8],
    /// The Machine gets them from here on; it knows the rest.
    pub(crate) from: usize,
    /// What of the body is still to come, and what was sent of it, so that a request which is to be sent again can go on
    /// from there.
    pub(crate) sending: Option<&'a mut Sending>,
}

/// Sends a request and brings back the response.
///
/// `answer` is scratch space, empty before; after a switch it has what the Machine has said since. What the caller sends meanwhile is added to
/// `ahead`, also when the exchange fails.
pub(crate) async fn exchange(
    (caller, (machine_read, mut machine_write)): (
        &mut TcpStream,
        (impl Source, impl AsyncWrite + Unpin),
    ),
    request: &Request,
    message: Message<'_>,
    scratch: (&mut Vec<u8>, &mut Vec<u8>),
    signature: Signature<'_>,
    line: &Line<'_>,
) -> Result<Done, Broken> {
    let Message { bytes: message, from, sending } = message;
    let mut unsent = &message[from..];
    if unsent.len() <= UNWATCHED_BYTES_MAX {
        if machine_write.write_all(unsent).await.is_err() {
            return Err(Broken::NoAnswer);
        }
        unsent = &[];
    }
    let is_sent = unsent.is_empty() && sending.is_none();
    line.set_uploads(!is_sent);
    let (answer, ahead) = scratch;
    let (caller_read, caller_write) = caller.split();
    let (written, last) = (Written::default(), Cell::new(false));
    let mut watch = Watch::new(caller_read.as_ref(), ahead, &written.all, &last, line);
    let caller = Caller { stream: caller_write, written: &written };
    let terms = Terms { request, message, signature, line };
    let download = pin!(download(caller, machine_read, terms, answer, &last));
    let work = async {
        if !is_sent {
            let rest = Rest { unsent, sending };
            return Box::pin(both_ways(watch, download, machine_write, rest, (&written, line)))
                .await;
        }
        watch.unless_left(download).await.unwrap_or(Err(Broken::Cut))
    };
    let broken = || if written.has_begun() { Broken::Cut } else { Broken::Silent };
    line.idle().unless_silent(work).await.unwrap_or_else(|| Err(broken()))
}

/// Waits for the answer and passes it on.
async fn download(
    mut caller: Caller<'_>,
    mut machine: impl Source,
    terms: Terms<'_>,
    answer: &mut Vec<u8>,
    last: &Cell<bool>,
) -> Result<Done, Broken> {
    let first = read_some(&mut machine, BUFFER_BYTES).await;
    let first = first.ok().filter(|buffer| !buffer.is_empty()).ok_or(Broken::NoAnswer)?;
    moderation::discount_large(first.len());
    moderation::before_write().await;
    let mut request = *terms.request;
    if last.get() {
        request.after = After::Close;
    }
    let terms = Terms { request: &request, ..terms };
    respond(&mut caller, &mut machine, terms, first, answer).await
}

/// Brings the response, of which `input` is the beginning.
async fn respond(
    caller: &mut Caller<'_>,
    machine: &mut impl Source,
    terms: Terms<'_>,
    mut input: Buffer,
    answer: &mut Vec<u8>,
) -> Result<Done, Broken> {
    let mut response = loop {
        match response::rewrite(input.filled(), terms.request, terms.signature, answer) {
            Err(_) => return Err(Broken::Malformed),
            Ok(None) => read_more(machine, &mut input).await?,
            Ok(Some(interim)) if interim.is_interim() => {
                if interim.is_switch() && !may_switch(terms, answer) {
                    return Err(Broken::Malformed);
                }
                pass_interim(caller, terms.request, answer).await?;
                input.consume(interim.head_len);
                if interim.is_switch() {
                    terms.line.place().app().counts.note_answer(interim.status);
                    answer.extend_from_slice(input.filled());
                    return Ok(Done::Switched);
                }
            }
            Ok(Some(response)) if response.replay => {
                return Ok(Box::pin(take_order(machine, input, response)).await);
            }
            Ok(Some(response)) => break response,
        }
    };
    terms.line.place().app().counts.note_answer(response.status);
    input.consume(response.head_len);
    let mut body = Progress::new(response.framing);
    if terms.signature.treatment.is_some_and(|treatment| treatment.compress) {
        let request = (terms.request, terms.message);
        let own = &terms.line.place().app().compressors;
        if let Some(gzip) = compress::begin(request, &mut response, answer, own) {
            let version = terms.request.version;
            let compressed = Compressed { gzip, body, response, version };
            return Box::pin(compressed.pass(caller, machine, input, answer, terms.line)).await;
        }
    }
    let ended = pass_piece(caller, &mut body, &mut response, &input, answer).await?;
    drop(input);
    if ended {
        return Ok(response.into());
    }
    let line = terms.line;
    // Its end is another matter.
    line.place().note_answered();
    // A caller who was told a length is owed the rest; what has none may be silent for long.
    let rests = line.naps() && !matches!(response.framing, Framing::Length(_));
    let rest = pass_rest(caller, machine, body, response, answer, line);
    // Most answers are one piece, and do not pay for the state of more.
    if rests { Box::pin(line.along(rest)).await } else { Box::pin(rest).await }
}

#[cold]
async fn take_order(
    machine: &mut (impl AsyncRead + Unpin),
    input: Buffer,
    mut response: Response,
) -> Done {
    let order = replay::take(machine, input, &mut response).await;
    Done::Replay { order, machine_after: response.machine_after }
}

/// Whether the Machine may change the protocol now: it was asked to, and has been told all.
#[cold]
fn may_switch(terms: Terms<'_>, answer: &[u8]) -> bool {
    let head_len = terms.message.windows(4).position(|w| w == b"\r\n\r\n");
    let head = &terms.message[..head_len.unwrap_or(0)];
    !terms.line.uploads() && upgrade::is_offered(head, answer)
}

/// Passes on what comes behind the first piece.
async fn pass_rest(
    caller: &mut Caller<'_>,
    machine: &mut impl Source,
    mut body: Progress,
    mut response: Response,
    answer: &mut Vec<u8>,
    line: &Line<'_>,
) -> Result<Done, Broken> {
    loop {
        if let Progress::Length(left) = &mut body
            && let Some(machine) = machine.socket()
            && BULK_BYTES as u64 <= *left
        {
            let left_max = usize::try_from(*left).unwrap_or(usize::MAX);
            let pipe = pipe::read_bulk(machine, left_max, || true).await;
            if let Some(pipe) = pipe.map_err(|_| Broken::Cut)? {
                *left -= pipe.len() as u64;
                line.note_answered();
                line.until_taken(caller.pour(pipe, line)).await.map_err(|_| Broken::Cut)?;
                if *left == 0 {
                    return Ok(response.into());
                }
                continue;
            }
        }
        let input = read_some(machine, BUFFER_BYTES).await.map_err(|_| Broken::Cut)?;
        if input.is_empty() {
            return if body == Progress::Close { Ok(response.into()) } else { Err(Broken::Cut) };
        }
        line.note_answered();
        let piece = pass_piece(caller, &mut body, &mut response, &input, answer);
        if line.until_taken(piece).await? {
            return Ok(response.into());
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
    caller: &mut Caller<'_>,
    request: &Request,
    answer: &mut Vec<u8>,
) -> Result<(), Broken> {
    // Clients of HTTP/1.0 know no interim responses (RFC 9110, 15.2).
    if request.version == Version::Http11 {
        caller.write_all(answer).await.map_err(|_| Broken::Cut)?;
        caller.written.interim.set(caller.written.all.get());
    }
    answer.clear();
    Ok(())
}

/// What the Machine has still to get.
struct Rest<'a> {
    /// Of the message.
    unsent: &'a [u8],
    /// What the caller has still to send.
    sending: Option<&'a mut Sending>,
}

/// Why the request's body stopped.
enum Upload {
    Whole,
    CallerGone,
    BadBody,
    /// The Machine takes no more; it may have answered already.
    MachineGone,
}

async fn both_ways(
    mut watch: Watch<'_>,
    mut download: Pin<&mut impl Future<Output = Result<Done, Broken>>>,
    mut machine: impl AsyncWrite + Unpin,
    mut rest: Rest<'_>,
    (written, line): (&Written, &Line<'_>),
) -> Result<Done, Broken> {
    let uploaded = {
        let mut upload = pin!(upload(watch.caller(), &mut machine, &mut rest, line));
        let mut reset = pin!(watch.reset());
        std::future::poll_fn(|cx| {
            if let Poll::Ready(uploaded) = upload.as_mut().poll(cx) {
                return Poll::Ready(Ok(uploaded));
            }
            if let Poll::Ready(response) = download.as_mut().poll(cx) {
                return Poll::Ready(Err(response));
            }
            // A Machine that reads no more must not hide that nobody sends any more.
            reset.as_mut().poll(cx).map(|()| Ok(Upload::CallerGone))
        })
        .await
    };
    let response = match uploaded {
        Ok(Upload::Whole) => {
            watch.note_uploaded();
            if let Some(sending) = rest.sending {
                watch.add(&std::mem::take(&mut sending.next));
            }
            return watch.unless_left(download).await.unwrap_or(Err(Broken::Cut));
        }
        Ok(Upload::MachineGone) => {
            watch.stop_reading();
            watch.unless_left(download).await.unwrap_or(Err(Broken::Cut))
        }
        Ok(Upload::BadBody) if !written.has_begun() => Err(Broken::BadBody),
        Ok(Upload::BadBody | Upload::CallerGone) => Err(Broken::Cut),
        Err(response) => response,
    };
    // Answered before the end of the request: where the next one begins is not known.
    response.map(|done| match done {
        Done::Replay { order, .. } => Done::Replay { order, machine_after: After::Close },
        Done::Answered { .. } | Done::Switched => {
            Done::Answered { caller_after: After::Close, machine_after: After::Close }
        }
    })
}

async fn upload(
    caller: &TcpStream,
    machine: &mut (impl AsyncWrite + Unpin),
    Rest { unsent, sending }: &mut Rest<'_>,
    line: &Line<'_>,
) -> Upload {
    if machine.write_all(unsent).await.is_err() {
        return Upload::MachineGone;
    }
    let Some(sending) = sending else { return Upload::Whole };
    loop {
        let input = match read_some_of(caller, BUFFER_BYTES).await {
            Ok(input) if !input.is_empty() => input,
            Ok(_) | Err(_) => return Upload::CallerGone,
        };
        line.idle().note();
        let Ok(piece) = sending.body.step(input.filled(), |_| {}) else { return Upload::BadBody };
        let (content, next) = input.filled().split_at(piece.consumed);
        // Before the write: an answer may come in the middle of it, and then this one goes no further.
        sending.note(content, next);
        if machine.write_all(content).await.is_err() {
            return Upload::MachineGone;
        }
        if piece.done {
            return Upload::Whole;
        }
    }
}

/// Bytes that a caller has got.
#[derive(Default)]
struct Written {
    all: Cell<u64>,
    /// Up to the end of the last interim answer: behind these any other may come.
    interim: Cell<u64>,
}

impl Written {
    /// Whether the final answer has begun.
    fn has_begun(&self) -> bool {
        self.interim.get() != self.all.get()
    }

    fn add(&self, count: usize) {
        self.all.set(self.all.get() + count as u64);
    }
}

/// Counts what is written to a caller.
struct Caller<'a> {
    stream: WriteHalf<'a>,
    written: &'a Written,
}

impl Caller<'_> {
    async fn pour(&self, pipe: Pipe, line: &Line<'_>) -> io::Result<()> {
        let note = |written| {
            self.written.add(written);
            line.idle().note();
        };
        pipe.pour(self.stream.as_ref(), note).await
    }
}

impl AsyncWrite for Caller<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written.add(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces))?;
        self.written.add(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Else the head of each larger answer is a packet of its own, and wakes who waits for all of it.
    #[tokio::test]
    async fn a_head_and_its_content_are_written_by_one_call() {
        let listener = TcpListener::bind("[::1]:0").await.expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        let (stream, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut stream, _other) = (stream.expect("it listens"), accepted.expect("it is asked"));
        let written = Written::default();
        let mut caller = Caller { stream: stream.split().1, written: &written };
        let pieces = [IoSlice::new(b"head"), IoSlice::new(b"content")];
        let count = caller.write_vectored(&pieces).await.expect("there is room");
        assert_eq!((count, written.all.get()), (11, 11));
    }
}
