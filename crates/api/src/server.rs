//! HTTP in, calls of a [`Backend`] out.
//!
//! A connection is accepted with its peer's uid, or, over TCP, with nothing: then each request must
//! bring a token before anything else of it is looked at. A request is parsed into a route, the
//! route's handler reads query and body, calls the backend and writes JSON. Everything has a limit:
//! connections (of all, of one stranger, of one token), heads, bodies, the time that a stalled sender
//! or reader gets. When the caller goes
//! away, or its token ends, the backend's future is dropped.

mod access;
mod answer;
mod backend;
mod body;
mod credential;
mod handler;
mod hearing;
mod listener;
mod lookup;
mod machine_handler;
mod openapi;
mod peer;
mod query;
mod registry;
mod route;
mod secret_handler;
mod share;
mod tls;
mod tunnel;
mod volume_handler;
mod why_handler;

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

pub use access::{Operation, operations};
pub use backend::{Backend, BackendFuture, DeleteMachine, MachineTarget};
pub use body::BodyStream;
pub use peer::{MachineCaller, Peer, Scope, TokenHolder};
pub use tls::{BadTls, Tls};

use crate::wire::ApiError;
use answer::Answer;
use handler::Call;
use hearing::Hearing;
use listener::{Inside, Listener, Origin, Strangers, Stream};
use share::{Holder, Share, Shares};

// A deploy's next call may come to the next server; what has begun gets this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
// Who has connected and asks has begun by then, and so has who goes on asking on a connection that was used before.
const QUIET_TIMEOUT: Duration = Duration::from_millis(200);
// Out of descriptors or memory: somebody must close something first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
// From the first packet to a good token, with the handshake of TLS between: some packets both ways.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(5);
// For a head, while no token is known; bodies come in pieces of this size at the most.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How far the server is with ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Answer what has begun, then close.
    Draining,
    /// Close at once.
    Closing,
}

/// What a connection's requests share.
struct Session<B> {
    backend: Arc<B>,
    origin: Origin,
    phase: watch::Receiver<Phase>,
    hearing: Hearing,
    // Held by the connection and by the stream that it may turn into.
    permit: Arc<OwnedSemaphorePermit>,
    // Over TCP.
    shares: Arc<Shares>,
    share: Mutex<Option<Share>>,
}

/// Serves the API on `listener` until `shutdown` resolves; then accepts nothing new, answers whom it has accepted if they
/// begin to ask within 200 ms, for which they have 2 s, and returns when every connection is closed. Whoever can connect
/// may do everything: the socket's mode is the guard.
pub async fn serve<B: Backend>(
    listener: UnixListener,
    backend: Arc<B>,
    shutdown: impl Future<Output = ()>,
) {
    serve_on(listener, backend, shutdown).await;
}

/// As [`serve`], for strangers: every request needs a token, and may do what the token is good for.
/// Without TLS everybody on the way reads the tokens.
pub async fn serve_tcp<B: Backend>(
    listener: TcpListener,
    tls: Option<Tls>,
    backend: Arc<B>,
    shutdown: impl Future<Output = ()>,
) {
    serve_on(Strangers { listener, tls }, backend, shutdown).await;
}

/// As [`serve`], for a Machine at the socket that it finds inside: it may ask about itself only.
pub async fn serve_machine<B: Backend>(
    listener: Arc<UnixListener>,
    caller: MachineCaller,
    backend: Arc<B>,
    shutdown: impl Future<Output = ()>,
) {
    serve_on(Inside { listener, caller: Arc::new(caller) }, backend, shutdown).await;
}

async fn serve_on<L: Listener, B: Backend>(
    listener: L,
    backend: Arc<B>,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(L::CONNECTIONS_MAX as usize));
    let shares = Arc::new(Shares::default());
    let (phase, phase_receiver) = watch::channel(Phase::Serving);
    let accepting = async {
        loop {
            let permit =
                Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let stream = accept(&listener).await;
            let session = session(&listener, &stream, &backend, &phase_receiver, permit, &shares);
            if let Some(session) = session {
                spawn_connection(&listener, stream, session);
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
    drop(listener);
    phase.send_replace(Phase::Draining);
    let all_closed = places.acquire_many(L::CONNECTIONS_MAX);
    if tokio::time::timeout(DRAIN_TIMEOUT, all_closed).await.is_err() {
        phase.send_replace(Phase::Closing);
        drop(places.acquire_many(L::CONNECTIONS_MAX).await);
    }
}

async fn accept<L: Listener>(listener: &L) -> L::Stream {
    loop {
        match listener.next().await {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Who is at the other end of a new connection; `None` when it may not stay.
fn session<L: Listener, B: Backend>(
    listener: &L,
    stream: &L::Stream,
    backend: &Arc<B>,
    phase: &watch::Receiver<Phase>,
    permit: OwnedSemaphorePermit,
    shares: &Arc<Shares>,
) -> Option<Session<B>> {
    let origin = match listener.origin(stream) {
        Ok(origin) => origin,
        Err(error) => {
            tracing::warn!(%error, "could not tell who calls the API");
            return None;
        }
    };
    let share = match origin {
        Origin::Known(_) => None,
        Origin::Stranger(address) => match shares.take(Holder::of_address(address)) {
            Some(share) => Some(share),
            None => {
                tracing::debug!(%address, "too many API connections without a token");
                return None;
            }
        },
    };
    let (backend, permit, shares) = (Arc::clone(backend), Arc::new(permit), Arc::clone(shares));
    Some(Session {
        backend,
        origin,
        phase: phase.clone(),
        hearing: Hearing::default(),
        permit,
        shares,
        share: Mutex::new(share),
    })
}

fn spawn_connection<L: Listener, B: Backend>(listener: &L, stream: L::Stream, session: Session<B>) {
    let session = Arc::new(session);
    let deadline = Instant::now() + STRANGER_TIMEOUT;
    let opening = listener.open(stream, session.hearing.clone());
    tokio::spawn(async move {
        let working = async {
            let opened = tokio::select! {
                biased;
                opened = opening => opened,
                () = session.is_over() => return,
            };
            session.hearing.taken_up();
            match opened {
                Ok(stream) => run_connection(stream, Arc::clone(&session), L::HEAD_TIMEOUT).await,
                Err(error) => tracing::debug!(%error, "no API connection came about"),
            }
        };
        tokio::select! {
            () = working => {}
            () = session.stays_strange(deadline) => {
                tracing::debug!("an API connection brought no token in time");
            }
        }
    });
}

async fn run_connection<B: Backend>(
    stream: Box<dyn Stream>,
    session: Arc<Session<B>>,
    head_timeout: Duration,
) {
    let mut phase = session.phase.clone();
    let service = service_fn(|request: Request<Incoming>| {
        let session = Arc::clone(&session);
        async move { Ok::<_, Infallible>(answer_one(request, session).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head_timeout);
    builder.max_buf_size(BUFFER_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    let outcome = tokio::select! {
        // What has come by the end is read before.
        biased;
        outcome = connection.as_mut() => outcome,
        () = session.is_over() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = reached(&mut phase, Phase::Closing) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, origin = ?session.origin, "API connection ended");
    }
}

async fn answer_one<B: Backend>(request: Request<Incoming>, session: Arc<Session<B>>) -> Answer {
    session.hearing.taken_up();
    let (id, phase, hearing) = (request_id(), session.phase.clone(), session.hearing.clone());
    let answer = match session.peer(&request) {
        Ok(peer) => handler::handle(Call::new(request, session, peer, id.clone())).await,
        // The body is left unread, and with it the connection ends: a stranger has sent it.
        Err(error) => answer::stranger(&error),
    };
    // And its body.
    hearing.taken_up();
    let mut answer = answer::with_request_id(answer, &id);
    if Phase::Draining <= *phase.borrow() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Unique on this host for long enough to find a request in the log.
fn request_id() -> String {
    static REQUESTS: AtomicU64 = AtomicU64::new(1);
    format!("{}-{}", std::process::id(), REQUESTS.fetch_add(1, Ordering::Relaxed))
}

impl<B: Backend> Session<B> {
    /// Who makes this request.
    fn peer(&self, request: &Request<Incoming>) -> Result<Peer, ApiError> {
        if let Origin::Known(peer) = &self.origin {
            return Ok(peer.clone());
        }
        let token = credential::token(request.headers()).ok_or_else(|| {
            ApiError::unauthorized(
                "this server wants a token; make one on its host with `perch token create` and set PERCH_TOKEN",
            )
        })?;
        let holder = self.backend.authenticate(&token);
        let holder = holder.ok_or_else(|| ended("the token is unknown"))?;
        self.count_for(&holder)?;
        Ok(Peer::Token(holder))
    }

    /// Counts the connection for the token that it has shown.
    fn count_for(&self, token: &TokenHolder) -> Result<(), ApiError> {
        let (mut share, holder) = (self.share(), Holder::Token(token.id.clone()));
        if share.as_ref().is_some_and(|share| *share.holder() == holder) {
            return Ok(());
        }
        let max = holder.places_max();
        let taken = self.shares.take(holder).ok_or_else(|| {
            let text = format!("the token {} has {max} connections already", token.name);
            ApiError::new(429, text)
        })?;
        *share = Some(taken);
        Ok(())
    }

    /// Resolves when the server ends and the caller is silent, or takes too long. Who has connected is about to ask, and
    /// would find his request unread; of what he has begun to send the rest is to come.
    async fn is_over(&self) {
        let mut phase = self.phase.clone();
        reached(&mut phase, Phase::Draining).await;
        tokio::time::sleep(QUIET_TIMEOUT).await;
        tokio::select! {
            () = self.hearing.all_taken_up() => {}
            () = reached(&mut phase, Phase::Closing) => {}
        }
    }

    /// Resolves when the connection is still a stranger's at the deadline.
    async fn stays_strange(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
        let is_strange =
            self.share().as_ref().is_some_and(|share| matches!(share.holder(), Holder::Address(_)));
        if !is_strange {
            std::future::pending().await
        }
    }

    fn share(&self) -> MutexGuard<'_, Option<Share>> {
        // What it holds is whole whatever its holder was about.
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 401 for a token that is, or just became, worth nothing.
fn ended(what: &str) -> ApiError {
    ApiError::unauthorized(format!(
        "{what}, was revoked, or has expired; make another one on the server's host with `perch token create`"
    ))
}

/// Resolves when the caller's token ends; never for a process of this host.
async fn token_ended<B: Backend>(backend: &B, peer: &Peer) {
    match peer {
        Peer::Local { .. } | Peer::Machine(_) => std::future::pending().await,
        Peer::Token(holder) => backend.token_ended(holder.id.clone()).await,
    }
}

/// Resolves when the server has come to `wanted`.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // An error means that the server itself is gone.
    drop(phase.wait_for(|phase| wanted <= *phase).await);
}
