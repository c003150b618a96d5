//! A request body that arrives piece by piece, with a length limit and an idle limit.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

// A pusher that sends nothing for so long is gone or stuck; a Unix socket has no slow path.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A request body that arrives piece by piece. Reads end with an error when the body breaks off, exceeds its
/// limit (`FileTooLarge`), or nothing arrives for 30 s (`TimedOut`).
#[derive(Debug)]
pub struct BodyStream {
    source: Source,
    current: Bytes,
    bytes_left: u64,
    idle: Pin<Box<Sleep>>,
}

#[derive(Debug)]
enum Source {
    Http(Incoming),
    Memory(Option<Bytes>),
}

impl BodyStream {
    pub(crate) fn new(body: Incoming, bytes_max: u64) -> Self {
        Self::over(Source::Http(body), bytes_max)
    }

    /// A body that is all here. For tests of backends; needs a tokio runtime like the other.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self::over(Source::Memory(Some(bytes.into())), u64::MAX)
    }

    fn over(source: Source, bytes_max: u64) -> Self {
        let idle = Box::pin(tokio::time::sleep(IDLE_TIMEOUT));
        Self { source, current: Bytes::new(), bytes_left: bytes_max, idle }
    }

    /// Takes the next piece; `None` at the end. Never an empty piece.
    ///
    /// # Errors
    /// See the type.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.current))));
        }
        loop {
            let frame = match self.source.poll_data(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(self.idle.as_mut().poll(cx));
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the body stalled for 30 s",
                    )));
                }
            };
            self.idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
            match frame.transpose()? {
                None => return Poll::Ready(Ok(None)),
                Some(data) if data.is_empty() => {}
                Some(data) => return Poll::Ready(self.count(data).map(Some)),
            }
        }
    }

    fn count(&mut self, data: Bytes) -> io::Result<Bytes> {
        match self.bytes_left.checked_sub(data.len() as u64) {
            Some(left) => self.bytes_left = left,
            None => {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "the body is longer than its limit",
                ));
            }
        }
        Ok(data)
    }
}

impl Source {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            Self::Memory(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Self::Http(body) => match ready!(Pin::new(body).poll_frame(cx)) {
                None => Poll::Ready(None),
                Some(Ok(frame)) => Poll::Ready(Some(Ok(frame.into_data().unwrap_or_default()))),
                Some(Err(error)) => {
                    Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, error))))
                }
            },
        }
    }
}

impl AsyncRead for BodyStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(mut chunk) = ready!(this.poll_chunk(cx))? else { return Poll::Ready(Ok(())) };
        let taken = chunk.split_to(chunk.len().min(buf.remaining()));
        buf.put_slice(&taken);
        this.current = chunk;
        Poll::Ready(Ok(()))
    }
}
