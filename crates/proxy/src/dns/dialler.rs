//! Questions by TCP, through one socket of the host's network namespace that is connected again and
//! again: the proxy itself cannot make one there.
//!
//! Whoever asks by TCP has got a truncated answer by UDP, which is rare; so questions wait for each
//! other. Dissolving the association (`connect` to no address) makes the socket as good as new, with
//! another port of its own the next time.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;

/// See the module's head.
pub(super) struct Dialler {
    socket: Mutex<OwnedFd>,
}

/// A connection that is dissolved when dropped, however the question ended.
struct Dialled<'a> {
    socket: &'a OwnedFd,
    stream: TcpStream,
}

impl Dialler {
    pub(super) fn new(socket: &OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(socket, true)?;
        Ok(Self { socket: Mutex::new(socket.try_clone()?) })
    }

    /// Sends a message and brings the answer; the caller bounds the time.
    pub(super) async fn ask(&self, message: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
        let socket = self.socket.lock().await;
        let mut dialled = Dialled::to(&socket, resolver).await?;
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), message].concat();
        dialled.stream.write_all(&framed).await?;
        let mut answer = vec![0; dialled.stream.read_u16().await?.into()];
        dialled.stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

impl<'a> Dialled<'a> {
    async fn to(socket: &'a OwnedFd, resolver: SocketAddr) -> io::Result<Self> {
        // A question that was given up while it connected has left the socket half way.
        rustix::net::connect_unspec(socket.as_fd())?;
        let copy = std::net::TcpStream::from(socket.try_clone()?);
        let stream = TcpSocket::from_std_stream(copy).connect(resolver).await?;
        Ok(Self { socket, stream })
    }
}

impl Drop for Dialled<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::net::connect_unspec(self.socket.as_fd()) {
            tracing::debug!(%error, "could not dissolve a connection to a resolver");
        }
    }
}
