//! The stream between server and proxy: lines in, lines out, and the first one with descriptors.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::handover::{HandoverError, Listeners, listeners_from, receive_fds, send_listeners};
use super::types::{FromProxy, LINE_BYTES_MAX, ToProxy, VERSION};

/// Read at once; a line is seldom longer.
const READ_BYTES: usize = 16 * 1024;

/// Why the connection between server and proxy failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens there, or the stream broke.
    #[error("could not {what} the proxy")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The other side ended.
    #[error("the proxy closed the control connection")]
    Closed,
    /// A line is longer than [`LINE_BYTES_MAX`].
    #[error("a control message is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// A message cannot be written or read.
    #[error("a control message is malformed")]
    Message(#[source] serde_json::Error),
    /// The first message is not a greeting of our version.
    #[error("the proxy speaks version {got} of the control protocol instead of {VERSION}")]
    Version {
        /// Its version; 0 = it did not greet.
        got: u32,
    },
    /// The listeners did not come.
    #[error("the proxy's greeting came without its sockets")]
    Sockets(#[source] HandoverError),
}

/// The server's end.
#[derive(Debug)]
pub struct Link {
    sender: LinkSender,
    receiver: LinkReceiver,
    pid: u32,
}

impl Link {
    /// Connects to a proxy's control socket and takes its greeting with duplicates of its listeners.
    ///
    /// # Errors
    /// When nobody listens, or the other side is no proxy of our version. It sets no time limit: the
    /// caller does.
    pub async fn connect(path: &Path) -> Result<(Self, Listeners), LinkError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| LinkError::Io { what: "connect to", source })?;
        let mut buffer = vec![0; READ_BYTES];
        let (read, fds) = stream
            .async_io(Interest::READABLE, || receive_fds(stream.as_fd(), &mut buffer))
            .await
            .map_err(|source| LinkError::Io { what: "receive from", source })?;
        buffer.truncate(read);
        let listeners = listeners_from(fds).map_err(LinkError::Sockets)?;
        let (read_half, write_half) = stream.into_split();
        let mut receiver = LinkReceiver { lines: Lines::with_buffer(read_half, buffer) };
        let pid = greeting(receiver.recv().await?)?;
        Ok((Self { sender: LinkSender { stream: write_half }, receiver, pid }, listeners))
    }

    /// Process id of the proxy, by its own word.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends one message.
    ///
    /// # Errors
    /// When the proxy is gone or the message is too long. Not cancel-safe.
    pub async fn send(&mut self, message: &ToProxy) -> Result<(), LinkError> {
        self.sender.send(message).await
    }

    /// Waits for one message; cancel-safe.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when the proxy ended.
    pub async fn recv(&mut self) -> Result<FromProxy, LinkError> {
        self.receiver.recv().await
    }

    /// Separates both directions for two tasks.
    #[must_use]
    pub fn into_split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }
}

/// The server's sending half.
#[derive(Debug)]
pub struct LinkSender {
    stream: OwnedWriteHalf,
}

impl LinkSender {
    /// See [`Link::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, message: &ToProxy) -> Result<(), LinkError> {
        let line = encode(message)?;
        self.stream
            .write_all(&line)
            .await
            .map_err(|source| LinkError::Io { what: "send to", source })
    }
}

/// The server's receiving half.
#[derive(Debug)]
pub struct LinkReceiver {
    lines: Lines,
}

impl LinkReceiver {
    /// See [`Link::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&mut self) -> Result<FromProxy, LinkError> {
        self.lines.next().await
    }
}

/// Reads lines and parses them.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were searched for a line's end already.
    searched: usize,
}

impl Lines {
    pub(crate) fn new(stream: OwnedReadHalf) -> Self {
        Self::with_buffer(stream, Vec::new())
    }

    fn with_buffer(stream: OwnedReadHalf, buffer: Vec<u8>) -> Self {
        Self { stream, buffer, searched: 0 }
    }

    /// Waits for the next line; cancel-safe, because what was read stays in the buffer.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        loop {
            if let Some(line) = self.take_line() {
                return serde_json::from_slice(&line).map_err(LinkError::Message);
            }
            if LINE_BYTES_MAX < self.buffer.len() {
                return Err(LinkError::TooLong);
            }
            self.buffer.reserve(READ_BYTES);
            let read = self.stream.read_buf(&mut self.buffer).await;
            match read.map_err(|source| LinkError::Io { what: "receive from", source })? {
                0 => return Err(LinkError::Closed),
                _ => continue,
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + at + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

/// The proxy's first message, with its listeners.
pub(crate) async fn send_hello(
    stream: &UnixStream,
    listeners: &Listeners,
) -> Result<(), LinkError> {
    let hello = encode(&FromProxy::Hello { version: VERSION, pid: std::process::id() })?;
    let failed = |source| LinkError::Io { what: "greet from", source };
    let sent = stream
        .async_io(Interest::WRITABLE, || send_listeners(stream.as_fd(), &hello, listeners))
        .await
        .map_err(failed)?;
    if sent < hello.len() {
        return Err(failed(io::ErrorKind::WriteZero.into()));
    }
    Ok(())
}

pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>, LinkError> {
    let mut line = serde_json::to_vec(message).map_err(LinkError::Message)?;
    line.push(b'\n');
    if LINE_BYTES_MAX < line.len() {
        return Err(LinkError::TooLong);
    }
    Ok(line)
}

fn greeting(message: FromProxy) -> Result<u32, LinkError> {
    match message {
        FromProxy::Hello { version: VERSION, pid } => Ok(pid),
        FromProxy::Hello { version, .. } => Err(LinkError::Version { got: version }),
        FromProxy::Start { .. }
        | FromProxy::Stop { .. }
        | FromProxy::Drained { .. }
        | FromProxy::Log { .. } => Err(LinkError::Version { got: 0 }),
    }
}
