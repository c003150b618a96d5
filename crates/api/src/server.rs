//! HTTP in, calls of a [`Backend`] out.
//!
//! A connection is accepted with its peer's uid, a request is parsed into a route, the route's
//! handler reads query and body, calls the backend and writes JSON. Everything has a limit:
//! connections, heads, bodies, the time that a stalled sender gets. When the caller goes away the
//! backend's future is dropped.

mod answer;
mod backend;
mod body;
mod handler;
mod machine_handler;
mod query;
mod registry;
mod route;
mod tunnel;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use backend::{Backend, BackendFuture, DeleteMachine, MachineTarget, Peer};
pub use body::BodyStream;

use handler::Call;

// Each long poll and each `fly proxy` stream holds one. Beyond, callers wait in the listener's
// backlog.
const CONNECTIONS_MAX: u32 = 512;
// Also ends connections that are kept open and not used.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
// A deploy's next call may come to the next server; what has begun gets this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
// Out of descriptors or memory: somebody must close something first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    peer: Peer,
    phase: watch::Receiver<Phase>,
    // Held by the connection and by the stream that it may turn into.
    permit: Arc<OwnedSemaphorePermit>,
}

/// Serves the API on `listener` until `shutdown` resolves; then accepts nothing new, gives what has
/// begun 2 s, and returns when every connection is closed. Whoever can connect may do everything:
/// the socket's mode is the guard.
pub async fn serve<B: Backend>(
    listener: UnixListener,
    backend: Arc<B>,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    let (phase, phase_receiver) = watch::channel(Phase::Serving);
    let accepting = async {
        loop {
            let permit =
                Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let stream = accept(&listener).await;
            spawn_connection(stream, &backend, phase_receiver.clone(), permit);
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
    }
    drop(listener);
    phase.send_replace(Phase::Draining);
    if tokio::time::timeout(DRAIN_TIMEOUT, places.acquire_many(CONNECTIONS_MAX)).await.is_err() {
        phase.send_replace(Phase::Closing);
        drop(places.acquire_many(CONNECTIONS_MAX).await);
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn spawn_connection<B: Backend>(
    stream: UnixStream,
    backend: &Arc<B>,
    phase: watch::Receiver<Phase>,
    permit: OwnedSemaphorePermit,
) {
    let peer = match peer_of(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "could not tell who calls the API");
            return;
        }
    };
    let backend = Arc::clone(backend);
    let session = Arc::new(Session { backend, peer, phase, permit: Arc::new(permit) });
    tokio::spawn(run_connection(stream, session));
}

fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}

async fn run_connection<B: Backend>(stream: UnixStream, session: Arc<Session<B>>) {
    let mut phase = session.phase.clone();
    let service = service_fn(|request: http::Request<Incoming>| {
        let session = Arc::clone(&session);
        async move { Ok::<_, Infallible>(handler::handle(Call::new(request, session)).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = reached(&mut phase, Phase::Draining) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = reached(&mut phase, Phase::Closing) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, uid = session.peer.uid, "API connection ended");
    }
}

/// Resolves when the server has come to `wanted`.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // An error means that the server itself is gone.
    drop(phase.wait_for(|phase| wanted <= *phase).await);
}
