//! One stream: a request, from its head to the end of its answer.

use std::ops::Deref;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::net::TcpStream;

use super::answer::{self, Signature};
use super::backend::{self, Backend};
use super::body::Body;
use super::connection::Shared;
use super::exchange::{self, Broken, Done, Terms, exchange};
use super::head::{self, Head};
use super::relay::{Sent, Whole, relay, trailing};
use crate::app::{App, Asked, NoPlace, Place, PortFacts, Protocol, Reuse, Ruling};
use crate::directory::{Destination, Directory};
use crate::http::connection::aimed::{self, Aimed};
use crate::http::connection::caller::Caller;
use crate::http::connection::replayed::{self, Issued};
use crate::http::connection::{
    Deadline, Failure, Hop, RETRY_AFTER_SECONDS, RequestId, TRIES_MAX, describe, find, https_of,
};
use crate::http::edit::Edit;
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
    let only_head = parts.method == http::Method::HEAD;
    let written = head::write(&parts, ended, &shared.forwarded, now / 1000);
    // A held request keeps one head, not two.
    drop(parts);
    match written {
        Ok(head) => {
            let call = Call { shared, id, respond, body: Body::new(recv), head, whole: None };
            call.serve(only_head).await;
        }
        Err(bad) => {
            let text = bad.to_string();
            let answer = (Reply::new(bad.status(), &text), false);
            reply(&shared, &id, &mut { respond }, answer).await;
        }
    }
    moderation::count();
}

struct Call {
    shared: Rc<Shared>,
    id: RequestId,
    respond: SendResponse<Bytes>,
    body: Body,
    head: Head,
    /// All of the body, if it was there before the request was sent.
    whole: Option<Whole>,
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::NoAnswer | Broken::Malformed | Broken::Unseen | Broken::NoHttp2 => {
                Self::Reply(502, broken.to_string())
            }
            Broken::Silent => Self::Reply(504, broken.to_string()),
            Broken::Cut => Self::Cut,
        }
    }
}

impl Call {
    async fn serve(mut self, only_head: bool) {
        let found = find(&self.shared.directory, &mut self.shared.to.borrow_mut(), &self.head.text);
        let (app, mut facts) = match found {
            Ok(found) => found,
            Err(reply) => return self.reply(reply, only_head).await,
        };
        if facts.guarded {
            match self.ruling(&app) {
                Ruling::Wake => {}
                Ruling::IfAwake => facts.awake_only = true,
                Ruling::Refused(text) => {
                    return self.reply(Reply::new(403, &text), only_head).await;
                }
            }
        }
        if facts.protocol == Protocol::HttpRedirected {
            app.counts.note_own(301);
            let location = https_of(&self.head.text);
            let mut reply = Reply::new(301, "use https");
            reply.location = Some(&location);
            return self.reply(reply, only_head).await;
        }
        let aimed = self.head.request.aimed.then(|| Aimed::of_head(&self.head.text));
        let hop = Hop { app, facts, aimed };
        let fresh = hop.app.replays.borrow().is_empty();
        let mut outcome = match fresh {
            true => self.forward(&hop).await,
            false => Box::pin(replayed::forward_as_before(&mut self, &hop)).await,
        };
        if let Err(Failure::Replay(issued)) = outcome {
            outcome = Box::pin(replayed::replay(&mut self, &hop.app, issued)).await;
        }
        if let Err(Failure::Reply(status, text) | Failure::Unreached(status, text, _)) = outcome {
            hop.app.log(None, &format!("{text} (request {})", self.id.as_str()));
            hop.app.counts.note_own(status);
            let mut reply = Reply::new(status, &text);
            reply.retry_after = (status == 503).then_some(RETRY_AFTER_SECONDS);
            self.reply(reply, only_head).await;
        }
    }

    #[cold]
    fn ruling(&self, app: &Rc<App>) -> Ruling {
        let to = self.shared.to.borrow();
        self.shared.directory.ruling(&to, (app, to.port()), Asked::Request(&self.head.text))
    }

    /// [`Caller::forward`] to a Machine that speaks HTTP/1.1.
    async fn forward_in_lines(&mut self, hop: &Hop) -> Result<(), Failure> {
        let (mut tries, method) = (Tries::new(hop.timeout()), self.head.request.method);
        let mut message = Vec::new();
        loop {
            let place = self.any_place(hop, &mut tries).await?;
            if message.is_empty() || hop.aimed.is_some() {
                self.write_message(hop.facts.reuse, &mut message).await?;
            }
            let Some(mut machine) = self.connection(&place, &mut tries).await? else { continue };
            if !machine.used || place.has_waited() {
                self.shared.forwarded.renew(&mut message);
            }
            let machine_side = (&place, &mut machine.stream);
            let exchange = self.exchange(machine_side, &hop.facts, &message);
            match Box::pin(exchange).await {
                Ok(done) => return finish(&place, machine.stream, (hop.facts.reuse, method), done),
                Err(Broken::NoAnswer)
                    if self.is_repeatable() && tries.may_repeat(&place, machine.used) =>
                {
                    self.recover();
                    let pause = tries.pause(&place);
                    unless_left(&mut self.respond, &mut self.body, pause).await?;
                }
                Err(Broken::Malformed)
                    if machine.used && self.is_repeatable() && tries.may_repeat(&place, true) =>
                {
                    self.recover();
                }
                Err(broken) => {
                    tcp::reset(&machine.stream);
                    return Err(broken.into());
                }
            }
        }
    }

    /// [`Caller::forward`] to a Machine that speaks HTTP/2.
    async fn forward_on(&mut self, hop: &Hop) -> Result<(), Failure> {
        let mut tries = Tries::new(hop.timeout());
        loop {
            let place = self.any_place(hop, &mut tries).await?;
            self.take_whole().await;
            let Some((backend, used)) = self.backend(&place, &mut tries).await? else { continue };
            if !used || place.has_waited() {
                self.shared.forwarded.renew(&mut self.head.text);
            }
            let request = backend::request_of(&self.head.text, self.head.trailers);
            let request = request.map_err(|bad| Failure::Reply(bad.status(), bad.to_string()))?;
            let broken = match Box::pin(self.relay((&place, &hop.facts), &backend, request)).await {
                Ok(Done::Answered(_)) => return Ok(()),
                Ok(Done::Replay(order, _)) => {
                    place.note_answered();
                    return Err(Failure::Replay(Issued::new(order, &place)));
                }
                Err(broken) => broken,
            };
            let repeatable = match broken {
                Broken::Cut => return Err(Failure::Cut),
                Broken::Silent => false,
                Broken::Unseen => self.is_kept(),
                Broken::NoAnswer | Broken::Malformed | Broken::NoHttp2 => self.is_repeatable(),
            };
            backend.retire();
            if !repeatable || !tries.may_repeat(&place, used) {
                return Err(broken.into());
            }
            self.recover();
            unless_left(&mut self.respond, &mut self.body, tries.pause(&place)).await?;
        }
    }

    /// The caller's connection to the place's Machine, and whether it was there already; `None`: the Machine has gone.
    async fn backend(
        &mut self,
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
        place.app().upstreams.backends.note(&backend);
        self.shared.shelf.keep(place.endpoint(), &backend);
        Ok(Some((backend, false)))
    }

    async fn relay(
        &mut self,
        (place, facts): (&Place, &PortFacts),
        backend: &Backend,
        request: Request<()>,
    ) -> Result<Done, Broken> {
        place.note_connected();
        let wake = place.wake_header();
        let (fixed, request_id) = (&self.shared.signature, self.id.as_str());
        let treatment = facts.treatment.as_deref();
        let signature = Signature { fixed, request_id, wake: wake.as_deref(), treatment };
        let idle = Idleness::new(facts.idle());
        let terms = Terms { head: &self.head, signature, place, idle: &idle };
        let body = self.whole.as_ref().map_or(Sent::Rest(&mut self.body), Sent::Whole);
        let done = relay(&mut self.respond, backend.requests(), terms, request, body);
        idle.unless_silent(done).await.unwrap_or(Err(Broken::Silent))
    }

    /// Whether it may be sent a second time after a Machine has had it (PX-70).
    fn is_repeatable(&self) -> bool {
        self.head.request.method != Method::Other && self.is_kept()
    }

    /// Whether all that was sent of its body is still there.
    fn is_kept(&self) -> bool {
        self.whole.is_some() || self.body.is_kept()
    }

    /// Takes all of the body, if it has come and nothing of it was sent.
    async fn take_whole(&mut self) {
        if self.whole.is_none()
            && self.body.is_whole().await
            && let Some((content, trailers)) = self.body.take_whole()
        {
            self.whole = Some(Whole { content: content.into(), trailers: trailing(trailers) });
        }
    }

    /// The head, and the body if it has come whole.
    async fn write_message(&mut self, reuse: Reuse, message: &mut Vec<u8>) -> Result<(), Failure> {
        message.clear();
        message.extend_from_slice(&self.head.text);
        note_connection(message, self.head.trailers, reuse);
        self.take_whole().await;
        if let Some(whole) = &self.whole {
            let framing = self.head.request.framing;
            if !whole.content.is_empty() {
                exchange::frame(framing, &whole.content, message);
            }
            exchange::frame_end(framing, &whole.trailers, message);
        }
        Ok(())
    }

    /// A place for one try.
    async fn any_place(&mut self, hop: &Hop, tries: &mut Tries) -> Result<Place, Failure> {
        if hop.facts.awake_only {
            return aimed::awake_place(self, hop);
        }
        let Some(aimed) = &hop.aimed else {
            return self.place(&hop.app, &mut tries.deadline).await;
        };
        let place = Box::pin(aimed::place(self, &hop.app, &mut tries.deadline, aimed)).await?;
        aimed.note_place(&place, self);
        Ok(place)
    }

    /// A connection to the place's Machine; `None`: the Machine has gone, choose again.
    async fn connection(
        &mut self,
        place: &Place,
        tries: &mut Tries,
    ) -> Result<Option<Upstream>, Failure> {
        if !tries.fresh {
            let quiet =
                if self.is_repeatable() { upstream::seems_quiet } else { upstream::is_quiet };
            while let Some(used) = place.app().upstreams.take(place.endpoint()) {
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
        (place, machine): (&Place, &mut TcpStream),
        facts: &PortFacts,
        message: &[u8],
    ) -> Result<Done, Broken> {
        place.note_connected();
        let wake = place.wake_header();
        let (fixed, request_id) = (&self.shared.signature, self.id.as_str());
        let treatment = facts.treatment.as_deref();
        let signature = Signature { fixed, request_id, wake: wake.as_deref(), treatment };
        let idle = Idleness::new(facts.idle());
        let terms = Terms { head: &self.head, signature, place, idle: &idle };
        let rest = if self.whole.is_some() { None } else { Some(&mut self.body) };
        let done = exchange(&mut self.respond, machine, terms, message, rest);
        idle.unless_silent(done).await.unwrap_or(Err(Broken::Silent))
    }

    async fn reply(&mut self, answer: Reply<'_>, only_head: bool) {
        reply(&self.shared, &self.id, &mut self.respond, (answer, only_head)).await;
    }
}

impl Caller for Call {
    type Answered = ();

    fn directory(&self) -> &Directory {
        &self.shared.directory
    }

    fn to(&self) -> impl Deref<Target = Destination> {
        self.shared.to.borrow()
    }

    fn head(&self) -> &[u8] {
        &self.head.text
    }

    fn edit_head(&mut self, edit: &Edit) {
        let head_len = self.head.text.len();
        edit.apply(&mut self.head.text, head_len);
    }

    fn replace_head(&mut self, head: Vec<u8>) {
        self.head.text = head;
    }

    /// HTTP/2 has none of this.
    fn upgrades(&self) -> bool {
        false
    }

    fn recover(&mut self) -> bool {
        self.whole.is_some() || self.body.rewind()
    }

    async fn unless_left<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        unless_left(&mut self.respond, &mut self.body, work).await
    }

    async fn place(&mut self, app: &Rc<App>, deadline: &mut Deadline) -> Result<Place, Failure> {
        let (origin, port) = {
            let to = self.shared.to.borrow();
            (to.origin(app), to.port())
        };
        let cause = || self.shared.to.borrow().cause(describe(&self.head.text));
        let reason = match app.choose(port, origin) {
            Ok(place) => return Ok(place),
            Err(None) => {
                app.note_refused(cause());
                return Err(NoPlace::Refused.into());
            }
            Err(Some(reason)) => reason,
        };
        let hold = Box::pin(app.hold(port, cause(), origin, reason, deadline.at()));
        Ok(self.unless_left(hold).await??)
    }

    async fn forward(&mut self, hop: &Hop) -> Result<(), Failure> {
        match hop.facts.h2_backend {
            false => self.forward_in_lines(hop).await,
            true => Box::pin(self.forward_on(hop)).await,
        }
    }
}

async fn reply(
    shared: &Shared,
    id: &RequestId,
    respond: &mut SendResponse<Bytes>,
    (reply, only_head): (Reply<'_>, bool),
) {
    let (fixed, request_id) = (&shared.signature, id.as_str());
    let signature = Signature { fixed, request_id, wake: None, treatment: None };
    let response = answer::own(&reply, signature);
    // Errors below: the caller has gone.
    let Ok(mut stream) = respond.send_response(response, only_head) else { return };
    if !only_head {
        let text = Bytes::from(format!("{}\n", reply.text));
        let _sent = exchange::send(&mut stream, text, true).await.is_ok();
    }
}

/// What belongs to the connection to the Machine is ours to say.
fn note_connection(head: &mut Vec<u8>, trailers: bool, reuse: Reuse) {
    let lines: &[u8] = match (trailers, reuse) {
        (false, Reuse::Pooled) => return,
        (false, Reuse::OneRequest) => b"Connection: close\r\n",
        (true, Reuse::Pooled) => b"TE: trailers\r\nConnection: TE\r\n",
        (true, Reuse::OneRequest) => b"TE: trailers\r\nConnection: TE, close\r\n",
    };
    let end = head.len() - b"\r\n".len();
    head.splice(end..end, lines.iter().copied());
}

/// Gives a connection back, or ends it, as HTTP/1.1 does.
fn finish(
    place: &Place,
    machine: TcpStream,
    (reuse, method): (Reuse, Method),
    done: Done,
) -> Result<(), Failure> {
    let (after, order) = match done {
        Done::Answered(after) => (after, None),
        Done::Replay(order, after) => (after, Some(order)),
    };
    match (reuse, after) {
        (Reuse::Pooled, After::Keep) if !place.is_parked() => {
            Upstreams::keep(place.app(), place, machine);
        }
        (Reuse::Pooled, After::Close) if method != Method::Head => {}
        // The answer is here whole. An ordinary close would leave a local port waiting for a minute.
        _ => tcp::reset(&machine),
    }
    let Some(order) = order else { return Ok(()) };
    place.note_answered();
    Err(Failure::Replay(Issued::new(order, place)))
}

/// How often one request is tried (PX-70), as HTTP/1.1 does.
struct Tries {
    left: u32,
    /// A used connection failed: the next one is new.
    fresh: bool,
    silent: Silent,
    deadline: Deadline,
}

impl Tries {
    fn new(timeout: Duration) -> Self {
        let deadline = Deadline::new(timeout);
        Self { left: TRIES_MAX, fresh: false, silent: Silent::default(), deadline }
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
        respond.poll_reset(cx).map(|_| Err(Failure::Cut))
    })
    .await
}
