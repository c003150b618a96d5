//! Where connections come from: the Unix socket of this host, or TCP.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::hearing::{Heard, Hearing};
use super::{MachineCaller, Peer, Tls};

// A caller that takes or confirms nothing for so long is gone, or wants us to wait for ever.
const TCP_SILENCE_MAX: Duration = Duration::from_secs(30);
// Shorter than the half hour or less after which routers forget a silent connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// A connection's bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// What tells who calls.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// The socket has told already.
    Known(Peer),
    /// Each request must bring a token.
    Stranger(IpAddr),
}

/// How a kind of listener accepts.
pub(super) trait Listener: Send {
    /// What it accepts.
    type Stream;
    /// Connections at once; more wait in the listener's backlog.
    const CONNECTIONS_MAX: u32;
    /// How long a head may take, and a connection may be kept open and not used.
    const HEAD_TIMEOUT: Duration;

    /// Waits for the next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// Makes it ready for requests, and heard.
    fn open(
        &self,
        stream: Self::Stream,
        hearing: Hearing,
    ) -> impl Future<Output = io::Result<Box<dyn Stream>>> + Send + use<Self> + 'static;
    /// Who is at its other end.
    fn origin(&self, stream: &Self::Stream) -> io::Result<Origin>;
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    // Each long poll and each `fly proxy` stream holds one.
    const CONNECTIONS_MAX: u32 = 512;
    const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }

    fn open(
        &self,
        stream: UnixStream,
        hearing: Hearing,
    ) -> impl Future<Output = io::Result<Box<dyn Stream>>> + Send + use<> + 'static {
        std::future::ready(Ok(Box::new(Heard::new(stream, hearing)) as Box<dyn Stream>))
    }

    fn origin(&self, stream: &UnixStream) -> io::Result<Origin> {
        let credentials = stream.peer_cred()?;
        Ok(Origin::Known(Peer::Local { uid: credentials.uid(), pid: credentials.pid() }))
    }
}

/// The socket that a Machine finds inside.
pub(super) struct Inside {
    pub(super) listener: Arc<UnixListener>,
    pub(super) caller: Arc<MachineCaller>,
}

impl Listener for Inside {
    type Stream = UnixStream;
    // A Machine asks for little at a time, and there may be thousands.
    const CONNECTIONS_MAX: u32 = 8;
    const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

    async fn next(&self) -> io::Result<UnixStream> {
        self.listener.next().await
    }

    fn open(
        &self,
        stream: UnixStream,
        hearing: Hearing,
    ) -> impl Future<Output = io::Result<Box<dyn Stream>>> + Send + use<> + 'static {
        self.listener.open(stream, hearing)
    }

    fn origin(&self, _: &UnixStream) -> io::Result<Origin> {
        Ok(Origin::Known(Peer::Machine(Arc::clone(&self.caller))))
    }
}

/// A TCP listener, with TLS or without.
pub(super) struct Strangers {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<Tls>,
}

impl Listener for Strangers {
    type Stream = TcpStream;
    // Of its own, so that strangers who fill it do not keep the host's own people out.
    const CONNECTIONS_MAX: u32 = 256;
    // Half of the other's: here anybody can open connections and say nothing.
    const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

    async fn next(&self) -> io::Result<TcpStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    fn open(
        &self,
        stream: TcpStream,
        hearing: Hearing,
    ) -> impl Future<Output = io::Result<Box<dyn Stream>>> + Send + use<> + 'static {
        let (tls, stream) = (self.tls.clone(), Heard::new(stream, hearing));
        async move {
            Ok(match tls {
                Some(tls) => Box::new(tls.accept(stream).await?) as Box<dyn Stream>,
                None => Box::new(stream),
            })
        }
    }

    fn origin(&self, stream: &TcpStream) -> io::Result<Origin> {
        stream.set_nodelay(true)?;
        // Covers a reader that stalls, too: the kernel counts the time that a window stays closed.
        let millis = u32::try_from(TCP_SILENCE_MAX.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(stream, millis)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, TCP_KEEPALIVE)?;
        Ok(Origin::Stranger(stream.peer_addr()?.ip()))
    }
}
