//! One stream: a request, from its head to the end of its answer.

use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use http::request::Parts;
use tokio::net::TcpStream;

use super::answer::{self, Signature};
use super::backend::{self, Backend};
use super::body::{Body, Piece};
use super::connection::Shared;
use super::exchange::{self, Broken, Terms, exchange};
use super::head::{self, Head};
use super::relay::{Sent, Whole, relay, trailing};
use crate::app::{App, Asked, NoPlace, Place, PortFacts, Protocol, Reuse, Ruling};
use crate::http::connection::{
    Deadline, RETRY_AFTER_SECONDS, RequestId, TRIES_MAX, describe, find, https_of,
};
use crate::http::head::{After, Method};
use crate::http::reply::Reply;
use crate::http::silent::{self, Silent};
use crate::idleness::Idleness;
use crate::upstream::{self, NoConnection, Upstream, Upstreams, Used};
use crate::{clock, moderation, tcp};

/// Serves a stream. Dropped, it gives everything back: its place, and the connection to the Machine.
pub(super) async fn serve(
    shared: Rc<Shared>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    moderation::count();
    let (parts, recv) = request.into_parts();
    let ended = recv.is_end_stream();
    let now = clock::unix_millis();
    let id = RequestId::new(&shared.directory.region(), now);
    let call = Call { shared, id, respond, body: Body::new(recv) };
    call.serve(parts, ended, now / 1000).await;
    moderation::count();
}

struct Call {
    shared: Rc<Shared>,
    id: RequestId,
    respond: SendResponse<Bytes>,
    body: Body,
}

/// Why a request was not answered by a Machine.
enum Failure {
    /// Nobody waits for an answer any more, or it was cut.
    Over,
    Reply(u16, String),
}

impl From<NoPlace> for Failure {
    fn from(reason: NoPlace) -> Self {
        Self::Reply(503, reason.to_string())
    }
}

impl From<NoConnection> for Failure {
    fn from(reason: NoConnection) -> Self {
        Self::Reply(503, reason.to_string())
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::NoAnswer | Broken::Malformed | Broken::Unseen | Broken::NoHttp2 => {
                Self::Reply(502, broken.to_string())
            }
            Broken::Silent => Self::Reply(504, broken.to_string()),
            Broken::Cut => Self::Over,
        }
    }
}

impl Call {
    async fn serve(mut self, parts: Parts, ended: bool, unix_secs: u64) {
        let only_head = parts.method == http::Method::HEAD;
        let written = head::write(&parts, ended, &self.shared.forwarded, unix_secs);
        // A held request keeps one head, not two.
        drop(parts);
        let head = match written {
            Ok(head) => head,
            Err(bad) => return self.reply(Reply::new(bad.status(), &bad.to_string()), false).await,
        };
        let found = find(&self.shared.directory, &mut self.shared.to.borrow_mut(), &head.text);
        let (app, facts) = match found {
            Ok(found) => found,
            Err(reply) => return self.reply(reply, only_head).await,
        };
        let awake_only = match facts.guarded {
            false => false,
            true => match self.ruling(&app, &head.text) {
                Ruling::Wake => false,
                Ruling::IfAwake => true,
                Ruling::Refused(text) => {
                    return self.reply(Reply::new(403, &text), only_head).await;
                }
            },
        };
        if facts.protocol == Protocol::HttpRedirected {
            app.counts.note_own(301);
            let location = https_of(&head.text);
            let mut reply = Reply::new(301, "use https");
            reply.location = Some(&location);
            return self.reply(reply, only_head).await;
        }
        let forwarded = match facts.h2_backend {
            false => self.forward(head, &app, (&facts, awake_only)).await,
            true => Box::pin(self.forward_on(head, &app, (&facts, awake_only))).await,
        };
        if let Err(Failure::Reply(status, text)) = forwarded {
            app.log(None, &format!("{text} (request {})", self.id.as_str()));
            app.counts.note_own(status);
            let mut reply = Reply::new(status, &text);
            reply.retry_after = (status == 503).then_some(RETRY_AFTER_SECONDS);
            self.reply(reply, only_head).await;
        }
    }

    #[cold]
    fn ruling(&self, app: &Rc<App>, head: &[u8]) -> Ruling {
        let to = self.shared.to.borrow();
        self.shared.directory.ruling(&to, (app, to.port()), Asked::Request(head))
    }

    async fn forward(
        &mut self,
        mut head: Head,
        app: &Rc<App>,
        (facts, awake_only): (&PortFacts, bool),
    ) -> Result<(), Failure> {
        note_connection(&mut head, facts.reuse);
        let mut tries = Tries::new(facts.start_timeout, awake_only);
        let (mut message, mut whole) = (Vec::new(), false);
        loop {
            let place = self.place(&head.text, app, &mut tries).await?;
            if message.is_empty() {
                message.extend_from_slice(&head.text);
                whole = self.body.is_whole().await;
                if whole {
                    self.add_body(&head, &mut message)?;
                }
            }
            let repeatable = whole && head.request.method != Method::Other;
            let Some(mut machine) = self.connection(app, &place, &mut tries, repeatable).await?
            else {
                continue;
            };
            if !machine.used || place.has_waited() {
                self.shared.forwarded.renew(&mut message);
            }
            let machine_side = (&place, &mut machine.stream);
            let exchange = self.exchange(&head, machine_side, facts, &message, whole);
            match Box::pin(exchange).await {
                Ok(after) => {
                    finish(app, &place, machine.stream, (facts.reuse, after), head.request.method);
                    return Ok(());
                }
                Err(Broken::NoAnswer) if repeatable && tries.may_repeat(&place, machine.used) => {
                    let pause = tries.pause(&place);
                    unless_left(&mut self.respond, &mut self.body, pause).await?;
                }
                Err(Broken::Malformed)
                    if machine.used && repeatable && tries.may_repeat(&place, true) => {}
                Err(broken) => {
                    tcp::reset(&machine.stream);
                    return Err(broken.into());
                }
            }
        }
    }

    /// [`Self::forward`] to a Machine that speaks HTTP/2.
    async fn forward_on(
        &mut self,
        mut head: Head,
        app: &Rc<App>,
        (facts, awake_only): (&PortFacts, bool),
    ) -> Result<(), Failure> {
        let mut tries = Tries::new(facts.start_timeout, awake_only);
        let mut whole = None;
        loop {
            let place = self.place(&head.text, app, &mut tries).await?;
            if whole.is_none() && self.body.is_whole().await {
                whole = Some(self.whole_body()?);
            }
            let Some((backend, used)) = self.backend(app, &place, &mut tries).await? else {
                continue;
            };
            if !used || place.has_waited() {
                self.shared.forwarded.renew(&mut head.text);
            }
            let request = backend::request_of(&head.text, head.trailers);
            let request = request.map_err(|bad| Failure::Reply(bad.status(), bad.to_string()))?;
            let broken =
                match Box::pin(self.relay(&head, (&place, facts), &backend, request, &whole)).await
                {
                    Ok(()) => return Ok(()),
                    Err(broken) => broken,
                };
            let repeatable = match broken {
                Broken::Cut => return Err(Failure::Over),
                Broken::Silent => false,
                Broken::Unseen => whole.is_some(),
                Broken::NoAnswer | Broken::Malformed | Broken::NoHttp2 => {
                    whole.is_some() && head.request.method != Method::Other
                }
            };
            backend.retire();
            if !repeatable || !tries.may_repeat(&place, used) {
                return Err(broken.into());
            }
            unless_left(&mut self.respond, &mut self.body, tries.pause(&place)).await?;
        }
    }

    /// The caller's connection to the place's Machine, and whether it was there already; `None`: the Machine has gone.
    async fn backend(
        &mut self,
        app: &Rc<App>,
        place: &Place,
        tries: &mut Tries,
    ) -> Result<Option<(Rc<Backend>, bool)>, Failure> {
        if let Some(backend) = self.shared.shelf.take(place.endpoint()) {
            return Ok(Some((backend, true)));
        }
        // Streams that waited together share what the first of them makes.
        let shared = Rc::clone(&self.shared);
        let turn = shared.shelf.turn(place.endpoint());
        let _turn = unless_left(&mut self.respond, &mut self.body, turn).await?;
        if let Some(backend) = self.shared.shelf.take(place.endpoint()) {
            return Ok(Some((backend, true)));
        }
        let Some(upstream) = self.connect(place, tries).await? else { return Ok(None) };
        let begun = Backend::begin(upstream, place.endpoint().machine).await;
        let backend = begun.map_err(|_| Failure::from(Broken::NoHttp2))?;
        app.upstreams.backends.note(&backend);
        self.shared.shelf.keep(place.endpoint(), &backend);
        Ok(Some((backend, false)))
    }

    async fn relay(
        &mut self,
        head: &Head,
        (place, facts): (&Place, &PortFacts),
        backend: &Backend,
        request: Request<()>,
        whole: &Option<Whole>,
    ) -> Result<(), Broken> {
        place.note_connected();
        let wake = place.wake_header();
        let (fixed, request_id) = (&self.shared.signature, self.id.as_str());
        let treatment = facts.treatment.as_deref();
        let signature = Signature { fixed, request_id, wake: wake.as_deref(), treatment };
        let idle = Idleness::new(facts.idle());
        let terms = Terms { head, signature, place, idle: &idle };
        let body = whole.as_ref().map_or(Sent::Rest(&mut self.body), Sent::Whole);
        let done = relay(&mut self.respond, backend.requests(), terms, request, body);
        idle.unless_silent(done).await.unwrap_or(Err(Broken::Silent))
    }

    /// All of the body, which has come.
    fn whole_body(&mut self) -> Result<Whole, Failure> {
        let mut whole = Whole::default();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            match self.body.poll_next(&mut context) {
                Poll::Ready(Piece::Content(piece)) => whole.content = piece.into(),
                Poll::Ready(Piece::End(trailers)) => {
                    whole.trailers = trailing(trailers);
                    return Ok(whole);
                }
                Poll::Ready(Piece::Broken) | Poll::Pending => return Err(Failure::Over),
            }
        }
    }

    /// Adds what came of the body, which is all of it.
    fn add_body(&mut self, head: &Head, message: &mut Vec<u8>) -> Result<(), Failure> {
        let framing = head.request.framing;
        let whole = self.whole_body()?;
        if !whole.content.is_empty() {
            exchange::frame(framing, &whole.content, message);
        }
        exchange::frame_end(framing, &whole.trailers, message);
        Ok(())
    }

    async fn place(
        &mut self,
        head: &[u8],
        app: &Rc<App>,
        tries: &mut Tries,
    ) -> Result<Place, Failure> {
        let (origin, port) = {
            let to = self.shared.to.borrow();
            (to.origin(app), to.port())
        };
        if tries.awake_only {
            let none = || {
                let (to, asked) = (self.shared.to.borrow(), Asked::Request(head));
                self.shared.directory.note_not_awake(&to, app, asked)
            };
            return Ok(app.choose_awake(port, None).ok_or_else(none)?);
        }
        let reason = match app.choose(port, origin) {
            Ok(place) => return Ok(place),
            Err(None) => {
                app.note_refused(self.shared.to.borrow().cause(describe(head)));
                return Err(NoPlace::Refused.into());
            }
            Err(Some(reason)) => reason,
        };
        let cause = self.shared.to.borrow().cause(describe(head));
        let hold = Box::pin(app.hold(port, cause, origin, reason, tries.deadline.at()));
        Ok(unless_left(&mut self.respond, &mut self.body, hold).await??)
    }

    /// A connection to the place's Machine; `None`: the Machine has gone, choose again.
    async fn connection(
        &mut self,
        app: &Rc<App>,
        place: &Place,
        tries: &mut Tries,
        repeatable: bool,
    ) -> Result<Option<Upstream>, Failure> {
        if !tries.fresh {
            let quiet = if repeatable { upstream::seems_quiet } else { upstream::is_quiet };
            while let Some(used) = app.upstreams.take(place.endpoint()) {
                if quiet(&used.stream) {
                    return Ok(Some(used));
                }
            }
        }
        let connected = self.connect(place, tries).await?;
        Ok(connected.map(|stream| Upstream { stream, used: false }))
    }

    async fn connect(
        &mut self,
        place: &Place,
        tries: &mut Tries,
    ) -> Result<Option<TcpStream>, Failure> {
        let connecting = Box::pin(upstream::connect(place, tries.deadline.at(), Used::Refused));
        match unless_left(&mut self.respond, &mut self.body, connecting).await? {
            Ok(upstream) => Ok(Some(upstream.stream)),
            Err(NoConnection::Gone) if 0 < tries.left => {
                tries.left -= 1;
                Ok(None)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn exchange(
        &mut self,
        head: &Head,
        (place, machine): (&Place, &mut TcpStream),
        facts: &PortFacts,
        message: &[u8],
        whole: bool,
    ) -> Result<After, Broken> {
        place.note_connected();
        let wake = place.wake_header();
        let (fixed, request_id) = (&self.shared.signature, self.id.as_str());
        let treatment = facts.treatment.as_deref();
        let signature = Signature { fixed, request_id, wake: wake.as_deref(), treatment };
        let idle = Idleness::new(facts.idle());
        let terms = Terms { head, signature, place, idle: &idle };
        let rest = if whole { None } else { Some(&mut self.body) };
        let done = exchange(&mut self.respond, machine, terms, message, rest);
        idle.unless_silent(done).await.unwrap_or(Err(Broken::Silent))
    }

    async fn reply(&mut self, reply: Reply<'_>, only_head: bool) {
        let (fixed, request_id) = (&self.shared.signature, self.id.as_str());
        let response =
            answer::own(&reply, Signature { fixed, request_id, wake: None, treatment: None });
        // Errors below: the caller has gone.
        let Ok(mut stream) = self.respond.send_response(response, only_head) else { return };
        if !only_head {
            let text = Bytes::from(format!("{}\n", reply.text));
            let _sent = exchange::send(&mut stream, text, true).await.is_ok();
        }
    }
}

/// What belongs to the connection to the Machine is ours to say.
fn note_connection(head: &mut Head, reuse: Reuse) {
    let lines: &[u8] = match (head.trailers, reuse) {
        (false, Reuse::Pooled) => return,
        (false, Reuse::OneRequest) => b"Connection: close\r\n",
        (true, Reuse::Pooled) => b"TE: trailers\r\nConnection: TE\r\n",
        (true, Reuse::OneRequest) => b"TE: trailers\r\nConnection: TE, close\r\n",
    };
    let end = head.text.len() - b"\r\n".len();
    head.text.splice(end..end, lines.iter().copied());
}

/// Gives a connection back, or ends it, as HTTP/1.1 does.
fn finish(app: &Rc<App>, place: &Place, machine: TcpStream, after: (Reuse, After), method: Method) {
    match after {
        (Reuse::Pooled, After::Keep) if !place.is_parked() => Upstreams::keep(app, place, machine),
        (Reuse::Pooled, After::Close) if method != Method::Head => {}
        // The answer is here whole. An ordinary close would leave a local port waiting for a minute.
        _ => tcp::reset(&machine),
    }
}

/// How often one request is tried (PX-70), as HTTP/1.1 does.
struct Tries {
    left: u32,
    /// A used connection failed: the next one is new.
    fresh: bool,
    silent: Silent,
    deadline: Deadline,
    /// The caller may wake nobody.
    awake_only: bool,
}

impl Tries {
    fn new(timeout: Duration, awake_only: bool) -> Self {
        let deadline = Deadline::new(timeout);
        Self { left: TRIES_MAX, fresh: false, silent: Silent::default(), deadline, awake_only }
    }

    /// Whether a repeatable request is sent again after a Machine gave no answer.
    fn may_repeat(&mut self, place: &Place, used: bool) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.fresh = true;
        used || self.silent.may_repeat(place)
    }

    /// Waits until a run that has closed all that it may without an answer is known as ended, or is not.
    async fn pause(&self, place: &Place) {
        if self.silent.is_spent() {
            silent::until_ended(place).await;
        }
    }
}

/// Runs `work` unless the caller resets the stream, and takes in its body meanwhile.
async fn unless_left<T>(
    respond: &mut SendResponse<Bytes>,
    body: &mut Body,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        body.take_in(cx);
        respond.poll_reset(cx).map(|_| Err(Failure::Over))
    })
    .await
}
