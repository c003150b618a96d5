//! The stream between server and proxy: lines in, lines out, and the first one with descriptors.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::handover::{
    HandoverError, Listeners, NamedListeners, named, receive_fds, send_fds, send_listeners,
};
use super::types::{AppView, FromProxy, LINE_BYTES_MAX, ThawedRun, ToProxy, VERSION};

/// Read at once; a line is seldom longer.
const READ_BYTES: usize = 16 * 1024;
/// Descriptors whose messages have not been read to their ends: one message has two at the most.
const DESCRIPTORS_MAX: usize = 64;
/// Thaws that a greeting tells of, so that it stays a line; the others are told one by one after it.
const THAWED_MAX: usize = 10_000;

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
    greeting: Greeting,
}

/// What a proxy says of itself.
#[derive(Debug)]
struct Greeting {
    pid: u32,
    thaws: bool,
    thawed: Vec<ThawedRun>,
    retires: bool,
    listeners: Vec<String>,
}

impl Link {
    /// Connects to a proxy's control socket and takes its greeting with duplicates of its listeners.
    ///
    /// # Errors
    /// When nobody listens, or the other side is no proxy of our version. It sets no time limit: the
    /// caller does.
    pub async fn connect(path: &Path) -> Result<(Self, NamedListeners), LinkError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| LinkError::Io { what: "connect to", source })?;
        let mut buffer = vec![0; READ_BYTES];
        let (read, fds) = stream
            .async_io(Interest::READABLE, || receive_fds(stream.as_fd(), &mut buffer))
            .await
            .map_err(|source| LinkError::Io { what: "receive from", source })?;
        buffer.truncate(read);
        let (read_half, write_half) = stream.into_split();
        let lines = Lines::with_buffer(read_half, buffer, Descriptors::Refused);
        let mut receiver = LinkReceiver { lines };
        let mut greeting = greeting(receiver.recv().await?)?;
        let names = std::mem::take(&mut greeting.listeners);
        let listeners = named(names, fds).map_err(LinkError::Sockets)?;
        Ok((Self { sender: LinkSender { stream: write_half }, receiver, greeting }, listeners))
    }

    /// Process id of the proxy, by its own word.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.greeting.pid
    }

    /// Whether the proxy takes descriptors of freezers.
    #[must_use]
    pub fn thaws(&self) -> bool {
        self.greeting.thaws
    }

    /// Whether the proxy can leave its listeners to another one ([`ToProxy::Retire`]).
    #[must_use]
    pub fn retires(&self) -> bool {
        self.greeting.retires
    }

    /// What the proxy had thawed and told no server when it greeted.
    #[must_use]
    pub fn thawed(&self) -> &[ThawedRun] {
        &self.greeting.thawed
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

    /// Sends an app. One that fits into no message is as good as gone: what its Machines say of themselves must not
    /// cost the others the connection.
    ///
    /// # Errors
    /// When the proxy is gone. Not cancel-safe.
    pub async fn send_app(&mut self, view: AppView) -> Result<(), LinkError> {
        let app = view.name.clone();
        // Encoded whole before the first byte goes: after a refusal the stream is as before.
        match self.send(&ToProxy::App(view)).await {
            Err(error @ LinkError::TooLong) => {
                tracing::error!(app, %error, "the app cannot be served; shorten its services and metadata");
                self.send(&ToProxy::RemoveApp { app }).await
            }
            sent => sent,
        }
    }

    /// Sends one message with the descriptors that belong to it.
    ///
    /// # Errors
    /// See [`Link::send`].
    pub async fn send_with(
        &mut self,
        message: &ToProxy,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let line = encode(message)?;
        let failed = |source| LinkError::Io { what: "send to", source };
        let stream: &UnixStream = self.stream.as_ref();
        let send = || send_fds(stream.as_fd(), &line, descriptors);
        let sent = stream.async_io(Interest::WRITABLE, send).await.map_err(failed)?;
        self.stream.write_all(&line[sent..]).await.map_err(failed)
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
    scratch: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    policy: Descriptors,
}

/// Whether descriptors are taken that come with lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descriptors {
    Taken,
    /// From a process that we need not trust.
    Refused,
}

impl Lines {
    pub(crate) fn new(stream: OwnedReadHalf) -> Self {
        Self::with_buffer(stream, Vec::new(), Descriptors::Taken)
    }

    fn with_buffer(stream: OwnedReadHalf, buffer: Vec<u8>, policy: Descriptors) -> Self {
        let (scratch, descriptors) = (vec![0; READ_BYTES], VecDeque::new());
        Self { stream, buffer, searched: 0, scratch, descriptors, policy }
    }

    /// The descriptors that came with the line that was read last, in their order. Those of a line that
    /// could not be read stay in their way: the reader must look at what he gets.
    pub(crate) fn take_descriptors(&mut self, count: usize) -> Vec<OwnedFd> {
        let count = count.min(self.descriptors.len());
        self.descriptors.drain(..count).collect()
    }

    /// Drops all that were not taken.
    pub(crate) fn forget_descriptors(&mut self) {
        self.descriptors.clear();
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
            let read = self.receive().await;
            match read.map_err(|source| LinkError::Io { what: "receive from", source })? {
                0 => return Err(LinkError::Closed),
                _ => continue,
            }
        }
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let Self { stream, scratch, .. } = self;
        let stream: &UnixStream = (*stream).as_ref();
        let receive = || receive_fds(stream.as_fd(), scratch);
        let (read, descriptors) = stream.async_io(Interest::READABLE, receive).await?;
        self.buffer.extend_from_slice(&self.scratch[..read]);
        if self.policy == Descriptors::Taken {
            self.descriptors.extend(descriptors);
            self.descriptors.truncate(DESCRIPTORS_MAX);
        }
        Ok(read)
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
    mut thawed: Vec<ThawedRun>,
) -> Result<(), LinkError> {
    thawed.truncate(THAWED_MAX);
    let pid = std::process::id();
    let names = Listeners::NAMES.map(str::to_owned).to_vec();
    let (version, thaws, retires) = (VERSION, true, true);
    let hello = FromProxy::Hello { version, pid, thaws, thawed, retires, listeners: names };
    let hello = encode(&hello)?;
    let failed = |source| LinkError::Io { what: "greet from", source };
    let mut sent = stream
        .async_io(Interest::WRITABLE, || send_listeners(stream.as_fd(), &hello, listeners))
        .await
        .map_err(failed)?;
    while sent < hello.len() {
        stream.writable().await.map_err(failed)?;
        match stream.try_write(&hello[sent..]) {
            Ok(more) => sent += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
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

fn greeting(message: FromProxy) -> Result<Greeting, LinkError> {
    match message {
        FromProxy::Hello { version: VERSION, pid, thaws, thawed, retires, listeners } => {
            Ok(Greeting { pid, thaws, thawed, retires, listeners })
        }
        FromProxy::Hello { version, .. } => Err(LinkError::Version { got: version }),
        FromProxy::Retired { .. }
        | FromProxy::Start { .. }
        | FromProxy::Stop { .. }
        | FromProxy::Drained { .. }
        | FromProxy::Checks { .. }
        | FromProxy::Log { .. }
        | FromProxy::Live { .. }
        | FromProxy::Counts { .. }
        | FromProxy::Note(_) => Err(LinkError::Version { got: 0 }),
    }
}
