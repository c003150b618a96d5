//! A caller's connection: requests one after the other.

pub(crate) mod aimed;
pub(crate) mod caller;
mod onward;
mod remembered;
pub(crate) mod replayed;

use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use perch_core::ids::MachineId;
use perch_core::service::PublishedPort;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use self::aimed::Aimed;
use self::caller::Asking;
use self::replayed::Issued;
use super::body::Progress;
use super::exchange::{Broken, Done, Message, exchange};
use super::head::{self, After, BadRequest, Forwarded, HEAD_BYTES_MAX, Method, Request, Version};
use super::kept::Sending;
use super::reply::Reply;
use super::response::Signature;
use super::silent::{self, Silent};
use super::upgrade;
use crate::app::{App, Asked, NoPlace, Place, PortFacts, Protocol, Reuse, Ruling};
use crate::buffer::Buffer;
use crate::clock;
use crate::crowd::Idle;
use crate::directory::{Destination, Directory, Target};
use crate::http2;
use crate::line::Line;
use crate::moderation;
use crate::pipe::Source;
use crate::presence::What;
use crate::tcp::{self, Said, Stream};
use crate::upstream::{self, NoConnection, Upstream, Upstreams, Used};
use crate::websocket::Socket;

/// A caller may take so long for a head, and be idle so long between requests (PX-93).
const HEAD_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });
/// The first read of a request; more would be kept while it is held.
const FIRST_READ_BYTES: usize = 4 * 1024;
/// Scratch space that an idle connection keeps.
const SCRATCH_BYTES_MAX: usize = 2 * 1024;
/// What `Retry-After` says: long enough for a queue to drain, short enough to be tried.
pub(crate) const RETRY_AFTER_SECONDS: u32 = 5;
/// Tries of one request on Machines that vanish under it or close without an answer.
pub(crate) const TRIES_MAX: u32 = 5;
/// A Machine that refuses for so long is passed over, if another one would take the request: a program that was just
/// started listens sooner, or has the load to itself.
const REFUSED_MAX: Duration = Duration::from_millis(250);

/// Serves a connection until one side ends it; its `seat` is kept as long.
///
/// No `async fn`: the arguments of one are kept twice, and every idle connection pays for them.
pub(crate) fn serve(
    stream: TcpStream,
    directory: Rc<Directory>,
    to: Destination,
    idle: Rc<Idle>,
    seat: impl Sized,
) -> impl Future<Output = ()> {
    let forwarded = Forwarded::new(to.endpoints, &directory.region()).signed(directory.signed(&to));
    let ending = Rc::clone(&directory.ending);
    let pending = Vec::new();
    let mut connection =
        Connection { directory, to, forwarded, pending, turn: Turn::First, idle, shelf: None };
    let mut stream = Stream::new(stream);
    async move {
        // Moves in, and is dropped with the task.
        _ = &seat;
        let mut ends = pin!(ending.closes());
        // Once is enough, see there.
        let _begun =
            std::future::poll_fn(|cx| Poll::Ready(ends.as_mut().poll(cx))).await.is_ready();
        let mut scratch = Scratch::default();
        let mut alarm = pin!(tokio::time::sleep(HEAD_TIMEOUT));
        loop {
            let step = connection.serve_one(&mut stream, &mut scratch, alarm.as_mut()).await;
            scratch.shrink();
            match step {
                Ok(After::Keep) => connection.turn = Turn::Later,
                Ok(After::Close)
                    if connection.turn == Turn::Last && upstream::is_quiet(&stream.tcp) =>
                {
                    return;
                }
                Ok(After::Close) => return Box::pin(linger(&mut stream.tcp)).await,
                Err(Ended::Quietly) => return,
                Err(Ended::Http2) => {
                    let opening = connection.into_opening();
                    return Box::pin(http2::serve(&mut stream.tcp, opening)).await;
                }
                // A caller of HTTP/1.0 must not take a cut for the end of the answer.
                Err(Ended::Cut) => return tcp::reset(&stream.tcp),
            }
        }
    }
}

/// The connection is over without another word.
enum Ended {
    /// Between two requests, or by the caller's wish.
    Quietly,
    /// In the middle of an answer.
    Cut,
    /// What is pending begins a connection of HTTP/2.
    Http2,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Quietly
    }
}

/// Buffers for the heads that we write, kept between requests.
#[derive(Default)]
struct Scratch {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Scratch {
    fn shrink(&mut self) {
        for buffer in [&mut self.request, &mut self.answer] {
            buffer.clear();
            buffer.shrink_to(SCRATCH_BYTES_MAX);
        }
    }
}

struct Connection {
    directory: Rc<Directory>,
    to: Destination,
    forwarded: Forwarded,
    /// Read, but not parsed: the beginning of the next request.
    pending: Vec<u8>,
    turn: Turn,
    idle: Rc<Idle>,
    /// Connections to Machines that speak HTTP/2, of this caller.
    shelf: Option<Box<http2::Shelf>>,
}

/// Which request of a connection is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Who has just connected is about to ask: that is served even when the proxy ends.
    First,
    /// There may never be another.
    Later,
    /// There will be none: the caller said so, and all that it sent has been read.
    Last,
}

/// A request that was read, with its head rewritten in the scratch space.
struct Incoming {
    request: Request,
    /// Bytes of the head as we wrote it.
    head_len: usize,
    /// What is still to come of its body, or has come since; `None`: it came whole.
    sending: Option<Box<Sending>>,
    id: RequestId,
}

impl Incoming {
    /// Whether the next bytes of the caller are another request.
    fn is_read(&self) -> bool {
        self.sending.as_ref().is_none_or(|sending| sending.body.is_done())
    }

    /// Whether it may be sent a second time after a Machine has had it (PX-70).
    fn is_repeatable(&self) -> bool {
        self.request.method != Method::Other && self.is_kept()
    }

    /// Whether all that was sent of its body is still there.
    fn is_kept(&self) -> bool {
        self.sending.as_ref().is_none_or(|sending| sending.is_kept())
    }
}

/// One way of a request: where it goes.
pub(crate) struct Hop {
    pub(crate) app: Rc<App>,
    pub(crate) facts: PortFacts,
    pub(crate) aimed: Option<Box<Aimed>>,
}

impl Hop {
    /// How long to try to reach a Machine.
    pub(crate) fn timeout(&self) -> Duration {
        self.aimed.as_ref().and_then(|aimed| aimed.timeout).unwrap_or(self.facts.start_timeout)
    }
}

/// What is still to come of a body.
fn to_come(sending: &mut Option<Box<Sending>>) -> Option<&mut Sending> {
    sending.as_deref_mut().filter(|sending| !sending.body.is_done())
}

/// `Fly-Request-Id` of one request.
pub(crate) struct RequestId([u8; clock::ULID_LEN + 4]);

impl RequestId {
    /// `unix_millis`: now, as whoever has it already read it.
    pub(crate) fn new(region: &str, unix_millis: u64) -> Self {
        let mut text = [b'-'; clock::ULID_LEN + 4];
        text[..clock::ULID_LEN].copy_from_slice(&clock::ulid(unix_millis));
        // Regions have three letters; anything longer is cut rather than refused.
        for (to, from) in text[clock::ULID_LEN + 1..].iter_mut().zip(region.bytes()) {
            *to = from;
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("")
    }
}

impl Connection {
    async fn serve_one(
        &mut self,
        stream: &mut Stream,
        scratch: &mut Scratch,
        alarm: Pin<&mut Sleep>,
    ) -> Result<After, Ended> {
        let incoming = self.read(&mut stream.tcp, &mut scratch.request, alarm).await?;
        self.idle.presence.begin(What::Request, moderation::count_request());
        stream.midway = true;
        moderation::before_write().await;
        let done = match incoming {
            Ok(mut incoming) => {
                if incoming.request.after == After::Close {
                    self.turn = Turn::Last;
                }
                let done = self.answer(&mut stream.tcp, scratch, &mut incoming).await;
                if !incoming.is_read() || !self.pending.is_empty() {
                    self.turn = Turn::Later;
                }
                done
            }
            Err(bad) => Box::pin(self.refuse(&mut stream.tcp, bad)).await,
        };
        stream.midway = false;
        moderation::count();
        done
    }

    async fn answer(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
    ) -> Result<After, Ended> {
        let mut hop = match self.find(scratch, incoming) {
            Ok(hop) => hop,
            Err(reply) => return Box::pin(self.reply(stream, incoming, reply)).await,
        };
        if hop.facts.guarded
            && let Err(text) = self.obey(&mut hop, scratch)
        {
            return self.forbid(stream, incoming, text).await;
        }
        if hop.facts.protocol == Protocol::HttpRedirected {
            hop.app.counts.note_own(301);
            return Box::pin(self.redirect(stream, incoming, &scratch.request)).await;
        }
        let fresh = hop.app.replays.borrow().is_empty();
        let outcome = if fresh {
            self.forward(stream, scratch, incoming, &hop).await
        } else {
            let mut asking = Asking { connection: self, stream, scratch, incoming };
            Box::pin(replayed::forward_as_before(&mut asking, &hop)).await
        };
        match outcome {
            Ok(after) => Ok(after),
            Err(failure) => Box::pin(self.fail(stream, scratch, incoming, (&hop, failure))).await,
        }
    }

    /// What becomes of a request that was not answered, or is wanted elsewhere.
    async fn fail(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
        (hop, mut failure): (&Hop, Failure),
    ) -> Result<After, Ended> {
        if let Failure::Replay(issued) = failure {
            let mut asking = Asking { connection: self, stream, scratch, incoming };
            failure = match Box::pin(replayed::replay(&mut asking, &hop.app, issued)).await {
                Ok(after) => return Ok(after),
                Err(failure) => failure,
            };
        }
        match failure {
            Failure::Over => Err(Ended::Quietly),
            Failure::Cut | Failure::Replay(_) => Err(Ended::Cut),
            Failure::Reply(status, text) | Failure::Unreached(status, text, _) => {
                self.settle(incoming);
                hop.app.log(None, &format!("{text} (request {})", incoming.id.as_str()));
                let mut reply = Reply::new(status, &text);
                hop.app.counts.note_own(status);
                reply.retry_after = (status == 503).then_some(RETRY_AFTER_SECONDS);
                self.reply(stream, incoming, reply).await
            }
        }
    }

    /// Reads a head and what came with it of the body.
    async fn read(
        &mut self,
        stream: &mut TcpStream,
        out: &mut Vec<u8>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Result<Incoming, BadRequest>, Ended> {
        // What was read with the former request may be a whole one already.
        if !self.pending.is_empty()
            && let Some(incoming) = self.parse_pending(out).transpose()
        {
            return Ok(incoming);
        }
        let now = Instant::now();
        let deadline = now + HEAD_TIMEOUT;
        self.idle.begin(now);
        loop {
            let input = before(deadline, alarm.as_mut(), self.read_after(stream)).await;
            let Some(input) = input else {
                return if self.pending.is_empty() {
                    Err(Ended::Quietly)
                } else {
                    Ok(Err(BadRequest::Slow))
                };
            };
            let input = input?;
            if input.len() == self.pending.len() {
                return Err(Ended::Quietly);
            }
            match self.parse(&input, out) {
                Ok(None) => self.pending = skip_empty_lines(input.filled()).to_vec(),
                Ok(Some(incoming)) => {
                    self.idle.end();
                    return Ok(Ok(incoming));
                }
                Err(_) if self.turn == Turn::First && http2::begins(input.filled()) => {
                    self.pending = input.filled().to_vec();
                    return Err(Ended::Http2);
                }
                Err(bad) => return Ok(Err(bad)),
            }
        }
    }

    fn into_opening(self) -> http2::Opening {
        let Self { directory, to, forwarded, pending, idle, .. } = self;
        http2::Opening { directory, to, forwarded, idle, read: pending }
    }

    /// Reads once; the buffer begins with what is pending, and has nothing more if there will be no
    /// next request. Owns no buffer while it waits.
    async fn read_after(&self, stream: &mut TcpStream) -> io::Result<Buffer> {
        let pending = self.pending.as_slice();
        std::future::poll_fn(|cx| {
            let mut buffer = Buffer::take();
            buffer.fill_from(pending);
            let bytes_max = if pending.is_empty() { FIRST_READ_BYTES } else { HEAD_BYTES_MAX };
            match buffer.poll_fill(cx, stream, bytes_max) {
                Poll::Pending if self.may_end() && upstream::is_quiet(stream) => {}
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => drop(read?),
            }
            Poll::Ready(Ok(buffer))
        })
        .await
    }

    /// Whether nobody expects anything of this connection any more, unless bytes wait in it.
    fn may_end(&self) -> bool {
        self.directory.ending.closes_idle() && self.turn == Turn::Later && self.pending.is_empty()
    }

    fn parse_pending(&mut self, out: &mut Vec<u8>) -> Result<Option<Incoming>, BadRequest> {
        let mut input = Buffer::take();
        input.fill_from(&self.pending);
        self.parse(&input, out)
    }

    /// On success the head and the body so far are in `out`, and the rest is pending.
    fn parse(&mut self, input: &Buffer, out: &mut Vec<u8>) -> Result<Option<Incoming>, BadRequest> {
        let bytes = skip_empty_lines(input.filled());
        let now = clock::unix_millis();
        let request = head::rewrite(bytes, &self.forwarded, now / 1000, out)?;
        let Some(request) = request else { return Ok(None) };
        let head_len = out.len();
        let rest = &bytes[usize::from(request.head_len)..];
        let mut body = Progress::new(request.framing);
        let piece = body.step(rest, |_| {}).map_err(|_| BadRequest::Body)?;
        out.extend_from_slice(&rest[..piece.consumed]);
        self.pending.clear();
        if piece.consumed < rest.len() {
            self.pending.extend_from_slice(&rest[piece.consumed..]);
        } else if self.pending.capacity() != 0 {
            self.pending = Vec::new();
        }
        let id = RequestId::new(&self.directory.region(), now);
        let sending = (!body.is_done()).then(|| Sending::new(body, piece.consumed));
        Ok(Some(Incoming { request, head_len, sending, id }))
    }

    /// The app of this request: of the address, or, at a shared one, of the Host field.
    fn find(&mut self, scratch: &Scratch, incoming: &Incoming) -> Result<Hop, Reply<'static>> {
        let head = scratch.request.as_slice();
        let (app, facts) = find(&self.directory, &mut self.to, head)?;
        let aimed = incoming.request.aimed.then(|| Aimed::of_head(head));
        Ok(Hop { app, facts, aimed })
    }

    /// What the app's rules let this caller do; refused, why.
    #[cold]
    fn obey(&self, hop: &mut Hop, scratch: &Scratch) -> Result<(), String> {
        let asked = Asked::Request(&scratch.request);
        match self.directory.ruling(&self.to, (&hop.app, self.to.port()), asked) {
            Ruling::Wake => Ok(()),
            Ruling::IfAwake => {
                hop.facts.awake_only = true;
                Ok(())
            }
            Ruling::Refused(text) => Err(text),
        }
    }

    fn forbid<'a>(
        &'a self,
        stream: &'a mut TcpStream,
        incoming: &'a Incoming,
        text: String,
    ) -> Pin<Box<impl Future<Output = Result<After, Ended>> + use<'a>>> {
        Box::pin(async move { self.reply(stream, incoming, Reply::new(403, &text)).await })
    }

    /// A place for who may wake nobody.
    fn awake_place(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
        hop: &Hop,
    ) -> Result<Place, Failure> {
        aimed::awake_place(&mut Asking { connection: self, stream, scratch, incoming }, hop)
    }

    async fn forward(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
        hop: &Hop,
    ) -> Result<After, Failure> {
        if hop.facts.h2_backend {
            return Box::pin(self.forward_on(stream, scratch, incoming, hop)).await;
        }
        // One that upgrades has its own word there, and serves no other request either.
        if hop.facts.reuse == Reuse::OneRequest && !incoming.request.upgrade {
            let end = incoming.head_len - b"\r\n".len();
            scratch.request.splice(end..end, *b"Connection: close\r\n");
            incoming.head_len += b"Connection: close\r\n".len();
        }
        let mut tries = Tries::new(hop.timeout());
        loop {
            let place = match &hop.aimed {
                _ if hop.facts.awake_only => self.awake_place(stream, scratch, incoming, hop)?,
                None if tries.trouble.is_none() => {
                    self.place(stream, scratch, &hop.app, &mut tries.deadline).await?
                }
                _ => Box::pin(self.any_place(stream, scratch, incoming, hop, &mut tries)).await?,
            };
            let Some(mut machine) =
                tries.connection(hop, &place, (incoming, self.to.port()), stream).await?
            else {
                continue;
            };
            if !machine.used || place.has_waited() {
                self.forwarded.renew(&mut scratch.request);
            }
            place.note_connected();
            // A held or idle caller does not pay for the state of an exchange: 1 kB.
            scratch.answer.clear();
            let (line, sides) = ((&place, &hop.facts), machine.stream.split());
            let exchange = self.exchange(stream, scratch, incoming, line, (sides, 0));
            match Box::pin(exchange).await {
                Ok(Done::Answered { caller_after, machine_after }) => {
                    place.note_answered();
                    put_back(machine.stream, machine_after, &place, (incoming, &hop.facts));
                    return Ok(caller_after);
                }
                Ok(Done::Replay { order, machine_after }) => {
                    place.note_answered();
                    put_back(machine.stream, machine_after, &place, (incoming, &hop.facts));
                    return Err(Failure::Replay(Issued::new(order, &place)));
                }
                Ok(Done::Switched) => {
                    place.note_answered();
                    let sides = (stream, machine.stream);
                    let served = self.switch(sides, std::mem::take(scratch), &place, &hop.facts);
                    return Err(served.await);
                }
                Err(Broken::NoAnswer) if tries.may_repeat(incoming, &place, machine.used) => {
                    self.recover(scratch, incoming);
                    Box::pin(tries.pause(&place, stream)).await?;
                }
                // The answer may be what an earlier request left behind; nothing of it was passed on.
                Err(Broken::Malformed)
                    if machine.used && tries.may_repeat(incoming, &place, true) =>
                {
                    self.recover(scratch, incoming);
                }
                Err(broken) => return Err(Failure::from(broken)),
            }
        }
    }

    /// Makes the message whole as far as its body was read; `false`: what was sent of it is not there any more.
    fn recover(&mut self, scratch: &mut Scratch, incoming: &mut Incoming) -> bool {
        let kept = incoming.sending.as_mut().is_none_or(|s| s.recover(&mut scratch.request));
        self.settle(incoming);
        kept
    }

    /// A body that has come whole, and what came with its end.
    fn settle(&mut self, incoming: &mut Incoming) {
        if let Some(sending) = incoming.sending.as_mut().filter(|sending| sending.body.is_done()) {
            self.pending.append(&mut sending.next);
        }
    }

    /// Serves another protocol, to the end of the connection.
    fn switch<'a>(
        &'a mut self,
        sides: (&'a mut TcpStream, TcpStream),
        scratch: Scratch,
        place: &'a Place,
        facts: &'a PortFacts,
    ) -> Pin<Box<impl Future<Output = Failure> + use<'a>>> {
        let by_caller = std::mem::take(&mut self.pending);
        let presence = &self.idle.presence;
        presence.begin(What::Upgraded, moderation::turn());
        presence.keep(essence(&scratch.request));
        let said = Said { by_caller, by_machine: scratch.answer };
        let line = (place, &self.to, facts);
        let is_websocket = upgrade::is_websocket(&scratch.request);
        let socket = is_websocket.then(|| Socket::new(&self.directory.ending));
        Box::pin(async move {
            let served = upgrade::serve(sides, line, presence, said, socket).await;
            if served.is_ok() { Failure::Over } else { Failure::Cut }
        })
    }

    async fn place(
        &self,
        stream: &TcpStream,
        scratch: &mut Scratch,
        app: &Rc<App>,
        deadline: &mut Deadline,
    ) -> Result<Place, Failure> {
        let origin = self.to.origin(app);
        let reason = match app.choose(self.to.port(), origin) {
            Ok(place) => return Ok(place),
            Err(None) => {
                app.note_refused(self.to.cause(describe(&scratch.request)));
                return Err(NoPlace::Refused.into());
            }
            Err(Some(reason)) => reason,
        };
        scratch.request.shrink_to_fit();
        scratch.answer = Vec::new();
        let cause = self.to.cause(describe(&scratch.request));
        let hold = Box::pin(app.hold(self.to.port(), cause, origin, reason, deadline.at()));
        Ok(unless_left(stream, hold).await??)
    }

    /// A place in another Machine than the one that has failed, else any.
    async fn place_beside(
        &self,
        stream: &TcpStream,
        scratch: &mut Scratch,
        app: &Rc<App>,
        tries: &mut Tries,
    ) -> Result<Place, Failure> {
        let port = self.to.port();
        let beside = tries
            .trouble
            .as_ref()
            .and_then(|trouble| app.choose_beside(port, self.to.origin(app), trouble.avoid));
        match beside {
            Some(place) => Ok(place),
            None => self.place(stream, scratch, app, &mut tries.deadline).await,
        }
    }

    /// A place for a request that was tried elsewhere, or is aimed, or may be either.
    async fn any_place(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
        hop: &Hop,
        tries: &mut Tries,
    ) -> Result<Place, Failure> {
        let Some(aimed) = &hop.aimed else {
            return self.place_beside(stream, scratch, &hop.app, tries).await;
        };
        scratch.answer = Vec::new();
        let mut asking = Asking { connection: self, stream, scratch, incoming };
        let place = aimed::place(&mut asking, &hop.app, &mut tries.deadline, aimed).await?;
        aimed.note_place(&place, &mut asking);
        Ok(place)
    }

    /// The Machine gets the message from its byte `from` on.
    async fn exchange(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
        (place, facts): (&Place, &PortFacts),
        (machine, from): ((impl Source, impl AsyncWrite + Unpin), usize),
    ) -> Result<Done, Broken> {
        let line = Line::new(place, &self.to, facts, &self.idle.presence);
        let wake = place.wake_header();
        let signature = Signature {
            fixed: self.directory.signature(),
            request_id: incoming.id.as_str(),
            wake: wake.as_deref(),
            ending: &self.directory.ending,
            treatment: facts.treatment.as_deref(),
        };
        let head = self.idle.presence.show(&mut scratch.request);
        let sending = to_come(&mut incoming.sending);
        let message = Message { bytes: &head, from, sending };
        let spaces = (&mut scratch.answer, &mut self.pending);
        let request = &incoming.request;
        exchange((stream, machine), request, message, spaces, signature, &line).await
    }

    async fn refuse(&self, stream: &mut TcpStream, bad: BadRequest) -> Result<After, Ended> {
        let text = bad.to_string();
        let reply = Reply::new(bad.status(), &text);
        let request = (Version::Http11, Method::Other, After::Close);
        let id = RequestId::new(&self.directory.region(), clock::unix_millis());
        self.send(stream, reply, request, &id).await
    }

    async fn reply(
        &self,
        stream: &mut TcpStream,
        incoming: &Incoming,
        reply: Reply<'_>,
    ) -> Result<After, Ended> {
        let request = &incoming.request;
        // A body that nobody reads would be taken for the next request.
        let last = !incoming.is_read() || self.directory.ending.has_begun();
        let after = if last { After::Close } else { request.after };
        let request = (request.version, request.method, after);
        self.send(stream, reply, request, &incoming.id).await
    }

    async fn send(
        &self,
        stream: &mut TcpStream,
        reply: Reply<'_>,
        (version, method, after): (Version, Method, After),
        id: &RequestId,
    ) -> Result<After, Ended> {
        let signature = Signature {
            fixed: self.directory.signature(),
            request_id: id.as_str(),
            wake: None,
            ending: &self.directory.ending,
            treatment: None,
        };
        let mut out = Vec::new();
        reply.write(version, method, after, signature, &mut out);
        stream.write_all(&out).await?;
        Ok(after)
    }

    /// PX-86.
    async fn redirect(
        &self,
        stream: &mut TcpStream,
        incoming: &Incoming,
        head: &[u8],
    ) -> Result<After, Ended> {
        let location = https_of(head);
        let mut reply = Reply::new(301, "use https");
        reply.location = Some(&location);
        self.reply(stream, incoming, reply).await
    }
}

/// The app of a request with this head, as we wrote it, to there.
pub(crate) fn find(
    directory: &Directory,
    to: &mut Destination,
    head: &[u8],
) -> Result<(Rc<App>, PortFacts), Reply<'static>> {
    directory.refresh(to);
    let app = match &to.target {
        Target::App(app) => Rc::clone(app),
        Target::Shared => directory
            .app_by_host(host_of(head), to.endpoints.dest.ip())
            .ok_or(Reply::new(404, "no app has this name here"))?,
        Target::Nobody => return Err(Reply::new(404, "no app has this address any more")),
    };
    let facts = app.port(to.port());
    let facts = facts.ok_or(Reply::new(404, "the app does not publish this port"))?;
    Ok((app, facts))
}

/// Why a request was not forwarded, or no other can follow it.
pub(crate) enum Failure {
    /// The connection was upgraded, and has ended well.
    Over,
    Cut,
    Reply(u16, String),
    /// The same, and no Machine has heard of the request.
    Unreached(u16, String, Unreached),
    /// A Machine wants it replayed elsewhere.
    Replay(Box<Issued>),
}

/// Why no Machine was reached, in the words of PX-46.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreached {
    NoCandidate,
    Tried,
}

impl From<NoPlace> for Failure {
    fn from(reason: NoPlace) -> Self {
        let what = match reason {
            NoPlace::Refused | NoPlace::NotAwake => Unreached::NoCandidate,
            _ => Unreached::Tried,
        };
        Self::Unreached(503, reason.to_string(), what)
    }
}

impl From<NoConnection> for Failure {
    fn from(reason: NoConnection) -> Self {
        Self::Unreached(503, reason.to_string(), Unreached::Tried)
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::NoAnswer | Broken::Malformed => Self::Reply(502, broken.to_string()),
            Broken::Silent => Self::Reply(504, broken.to_string()),
            Broken::BadBody => Self::Reply(400, broken.to_string()),
            Broken::Cut => Self::Cut,
        }
    }
}

/// When waiting for a Machine and for its program to listen ends, both together; the clock starts when
/// one of them is needed.
pub(crate) struct Deadline {
    timeout: Duration,
    since: Option<Instant>,
}

impl Deadline {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, since: None }
    }

    pub(crate) fn at(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now) + self.timeout
    }

    /// When half of the time is over.
    fn halfway(&mut self) -> Instant {
        self.at() - self.timeout / 2
    }
}

/// How often one request is tried, and on what kind of connection.
struct Tries {
    left: u32,
    /// A used connection failed: the next one is new.
    fresh: bool,
    /// Boxed because it is rare.
    trouble: Option<Box<Trouble>>,
    deadline: Deadline,
}

/// What went wrong with one request so far.
struct Trouble {
    /// The Machine that it was, which others come before.
    avoid: MachineId,
    silent: Silent,
}

impl Tries {
    fn new(timeout: Duration) -> Self {
        Self { left: TRIES_MAX, fresh: false, trouble: None, deadline: Deadline::new(timeout) }
    }

    /// A connection to the place's Machine; `None`: the Machine has gone, choose again.
    async fn connection(
        &mut self,
        hop: &Hop,
        place: &Place,
        (incoming, port): (&Incoming, PublishedPort),
        caller: &TcpStream,
    ) -> Result<Option<Upstream>, Failure> {
        if !self.fresh
            && let Some(used) = pooled(&hop.app, place, incoming)
        {
            return Ok(Some(used));
        }
        let machine = place.endpoint().machine;
        let deadline = self.deadline.at();
        let passed_over =
            self.trouble.is_none() && hop.aimed.is_none() && hop.app.has_other(port, machine);
        let until = if passed_over { deadline.min(Instant::now() + REFUSED_MAX) } else { deadline };
        // What is rare is boxed: its state would make every idle connection larger.
        let used =
            if self.fresh || incoming.request.upgrade { Used::Refused } else { Used::Welcome };
        // Twice, since it would keep its argument twice.
        let connecting = Box::pin(upstream::connect(place, until, used));
        let connected = Box::pin(tcp::unless_reset(caller, connecting)).await;
        match connected.ok_or(Failure::Cut)? {
            Ok(upstream) => Ok(Some(upstream)),
            Err(NoConnection::Gone) if 0 < self.left => {
                self.left -= 1;
                Ok(None)
            }
            Err(NoConnection::NotListening(_)) if until < deadline => {
                self.trouble_with(machine);
                Ok(None)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Whether the request may be sent again after a Machine gave no answer (PX-70).
    fn may_repeat(&mut self, incoming: &Incoming, place: &Place, used: bool) -> bool {
        if self.left == 0 || !incoming.is_repeatable() {
            return false;
        }
        self.left -= 1;
        self.fresh = true;
        if used {
            return true;
        }
        self.trouble_with(place.endpoint().machine).silent.may_repeat(place)
    }

    fn trouble_with(&mut self, avoid: MachineId) -> &mut Trouble {
        let new = || Box::new(Trouble { avoid, silent: Silent::default() });
        let trouble = self.trouble.get_or_insert_with(new);
        trouble.avoid = avoid;
        trouble
    }

    /// Waits until a run that has closed all that it may without an answer is known as ended, or is not.
    async fn pause(&self, place: &Place, caller: &TcpStream) -> Result<(), Failure> {
        if !self.trouble.as_ref().is_some_and(|trouble| trouble.silent.is_spent()) {
            return Ok(());
        }
        tcp::unless_reset(caller, silent::until_ended(place)).await.ok_or(Failure::Cut)
    }
}

/// An idle connection on which nothing has come that nobody asked for; what cannot be repeated goes
/// only over one that is surely alive.
fn pooled(app: &App, place: &Place, incoming: &Incoming) -> Option<Upstream> {
    loop {
        let used = app.upstreams.take(place.endpoint())?;
        let quiet =
            if incoming.is_repeatable() { upstream::seems_quiet } else { upstream::is_quiet };
        if quiet(&used.stream) {
            return Some(used);
        }
    }
}

/// What becomes of the connection to the Machine behind an answer that is here whole.
fn put_back(
    stream: TcpStream,
    after: After,
    place: &Place,
    (incoming, facts): (&Incoming, &PortFacts),
) {
    // Kept ones are closed after 4 s.
    let may_keep = facts.idle().is_none_or(|limit| Duration::from_secs(4) <= limit);
    match (facts.reuse, after) {
        // A Machine that sleeps is left with no idle connection.
        (Reuse::Pooled, After::Keep) if may_keep && !place.is_parked() => {
            Upstreams::keep(place.app(), place, stream);
        }
        (Reuse::Pooled, After::Close) if incoming.request.method != Method::Head => {}
        // An ordinary close would leave a local port waiting for a minute; to one Machine there are 28,000 of them.
        _ => tcp::reset(&stream),
    }
}

/// Runs `work` until `deadline`, by an alarm that is set already: one that rings early is set anew, so
/// that a busy connection sets one a minute instead of one for each request.
async fn before<T>(
    deadline: Instant,
    mut alarm: Pin<&mut Sleep>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(None);
            }
            alarm.as_mut().reset(deadline);
        }
        Poll::Pending
    })
    .await
}

/// Runs `work` unless the caller ends its side first. Nothing was done for it yet, so whoever has
/// ended its side counts as gone.
async fn unless_left<T>(caller: &TcpStream, work: impl Future<Output = T>) -> Result<T, Failure> {
    let mut work = pin!(work);
    let mut watching = true;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if watching && caller.poll_read_ready(cx).is_ready() {
            if has_ended(caller, cx) {
                return Poll::Ready(Err(Failure::Cut));
            }
            // The next request is there already; the end of the stream cannot be seen behind it.
            watching = false;
        }
        Poll::Pending
    })
    .await
}

/// Whether the caller has ended its side, as far as the kernel has told us.
fn has_ended(stream: &TcpStream, cx: &mut Context<'_>) -> bool {
    match pin!(stream.ready(Interest::READABLE)).poll(cx) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        Poll::Ready(Err(_)) => true,
        Poll::Pending => false,
    }
}

/// Clients may send empty lines before a request (RFC 9112, 2.2).
fn skip_empty_lines(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes
}

/// `METHOD path` of a rewritten head, without the query.
pub(crate) fn describe(head: &[u8]) -> Option<String> {
    const LEN_MAX: usize = 256;
    let line = first_line(head)?;
    let (method, _) = line.split_once(' ')?;
    let path = describe_target(head)?.split('?').next()?;
    let mut text = format!("{method} {path}");
    let mut length = LEN_MAX.min(text.len());
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    text.truncate(length);
    Some(text)
}

/// What of a head is kept for as long as another protocol is spoken: enough for [`describe`] and [`host_of`].
fn essence(head: &[u8]) -> Vec<u8> {
    let request = describe(head).unwrap_or_default();
    let host = host_of(head).unwrap_or_default();
    format!("{request} HTTP/1.1\r\nHost: {host}\r\n").into_bytes()
}

fn describe_target(head: &[u8]) -> Option<&str> {
    first_line(head)?.split(' ').nth(1)
}

fn first_line(head: &[u8]) -> Option<&str> {
    let end = head.iter().position(|b| *b == b'\r')?;
    std::str::from_utf8(&head[..end]).ok()
}

/// The value of the Host field of a head that we wrote.
pub(crate) fn host_of(head: &[u8]) -> Option<&str> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.len() >= 5 && line[..5].eq_ignore_ascii_case(b"host:"))?;
    std::str::from_utf8(&line[5..]).ok().map(str::trim)
}

/// Where a redirected request finds the same over `https` (PX-86).
pub(crate) fn https_of(head: &[u8]) -> String {
    let host = host_of(head).unwrap_or("");
    let path = describe_target(head).unwrap_or("/");
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |h| h.0);
    format!("https://{name}{path}")
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Ends our side and waits shortly for the caller's end, so that our last answer is not lost to a
/// reset because of bytes that we did not read.
async fn linger(stream: &mut TcpStream) {
    const LINGER: Duration = Duration::from_secs(1);
    const BYTES_MAX: usize = 256 * 1024;
    if stream.shutdown().await.is_err() {
        return;
    }
    let drain = async {
        let mut left = BYTES_MAX;
        while let Ok(buffer) = crate::buffer::read_some(stream, left).await {
            left = left.saturating_sub(buffer.len());
            if buffer.is_empty() || left == 0 {
                return;
            }
        }
    };
    // Ignored: the connection is closed in both cases.
    let _elapsed = tokio::time::timeout(LINGER, drain).await.is_err();
}

/// Where a request with this head, which we wrote, wants to go.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn aim_of(head: &[u8]) -> perch_core::aim::Aim {
    aimed::Aimed::of_head(head).aim
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_a_wake_has_method_and_path_but_no_query() {
        let head = b"GET /a/b?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(describe(head).as_deref(), Some("GET /a/b"));
        let long = format!("GET /{} HTTP/1.1\r\n", "\u{e9}".repeat(300));
        assert!(describe(long.as_bytes()).is_some_and(|text| text.len() <= 256));
    }

    #[test]
    fn the_host_is_found_whatever_its_case() {
        assert_eq!(
            host_of(b"GET / HTTP/1.1\r\nX: y\r\nhOsT: a.test:80\r\n\r\n"),
            Some("a.test:80")
        );
        assert_eq!(host_of(b"GET / HTTP/1.1\r\nX-Host: y\r\n\r\n"), None);
    }
}
