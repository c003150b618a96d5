//! A request body that arrives piece by piece, with a length limit and an idle limit.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::wire::ApiError;

// A pusher that sends nothing for so long is gone or stuck; a Unix socket has no slow path.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
// Twice the limit of an image's file system (MA-52), so that the backend's own, smaller limits
// decide.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// A request body that arrives piece by piece.
///
/// Reads end with an error when the body breaks off (`UnexpectedEof`), exceeds 16 GiB
/// (`FileTooLarge`), or nothing arrives for 30 s (`TimedOut`); [`ApiError::from_body`] makes them
/// an answer. What is not read is thrown away in the background when the stream is dropped: a
/// caller that still sends would else never see the answer.
#[derive(Debug)]
pub struct BodyStream(Reader);

/// Reads a body. Unlike [`BodyStream`] it may be dropped anywhere, also by a runtime that ends.
#[derive(Debug)]
struct Reader {
    source: Source,
    current: Bytes,
    bytes_left: u64,
    // Made with the first wait: most bodies are here with their head.
    idle: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Source {
    Http(Incoming),
    Memory(Bytes),
    Ended,
}

impl BodyStream {
    pub(super) fn new(body: Incoming) -> Self {
        Self(Reader::new(Source::Http(body)))
    }

    /// A body that is all here, for tests of backends.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self(Reader::new(Source::Memory(bytes.into())))
    }

    /// Whether it is known to be empty.
    pub(super) fn is_empty(&self) -> bool {
        self.0.source.is_empty()
    }

    /// Takes the next piece; `None` at the end. Never an empty piece. Safe to cancel.
    ///
    /// # Errors
    /// See the type.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.0.next_chunk().await
    }

    /// Takes all of it.
    ///
    /// # Errors
    /// 413 beyond `bytes_max`, else as [`ApiError::from_body`].
    pub(super) async fn read_all(&mut self, bytes_max: u64) -> Result<Vec<u8>, ApiError> {
        let mut all = Vec::new();
        while let Some(chunk) =
            self.next_chunk().await.map_err(|error| ApiError::from_body(&error))?
        {
            if bytes_max < (all.len() + chunk.len()) as u64 {
                let text = format!("this body may have at most {bytes_max} bytes");
                return Err(ApiError::too_large(text));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }
}

impl Reader {
    fn new(source: Source) -> Self {
        Self { source, current: Bytes::new(), bytes_left: BODY_BYTES_MAX, idle: None }
    }

    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.current))));
        }
        loop {
            let Poll::Ready(data) = self.source.poll_data(cx) else {
                ready!(self.poll_idle(cx));
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the body stalled",
                )));
            };
            if let Some(idle) = &mut self.idle {
                idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
            }
            match data? {
                Some(data) if data.is_empty() => {}
                Some(data) => return Poll::Ready(self.count(data).map(Some)),
                None => {
                    self.source = Source::Ended;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(IDLE_TIMEOUT)));
        idle.as_mut().poll(cx)
    }

    fn count(&mut self, data: Bytes) -> io::Result<Bytes> {
        match self.bytes_left.checked_sub(data.len() as u64) {
            Some(left) => self.bytes_left = left,
            None => {
                // Not worth reading to its end only to be polite.
                self.source = Source::Ended;
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the body is too long"));
            }
        }
        Ok(data)
    }
}

impl Source {
    fn is_empty(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Memory(bytes) => bytes.is_empty(),
            Self::Ended => true,
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let body = match self {
            Self::Http(body) => body,
            Self::Memory(bytes) => {
                let bytes = std::mem::take(bytes);
                return Poll::Ready(Ok(Some(bytes).filter(|bytes| !bytes.is_empty())));
            }
            Self::Ended => return Poll::Ready(Ok(None)),
        };
        match ready!(Pin::new(body).poll_frame(cx)) {
            None => Poll::Ready(Ok(None)),
            Some(Ok(frame)) => Poll::Ready(Ok(Some(frame.into_data().unwrap_or_default()))),
            Some(Err(error)) => {
                *self = Self::Ended;
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)))
            }
        }
    }
}

impl AsyncRead for BodyStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut self.get_mut().0;
        let Some(mut chunk) = ready!(this.poll_chunk(cx))? else { return Poll::Ready(Ok(())) };
        let taken = chunk.split_to(chunk.len().min(buf.remaining()));
        buf.put_slice(&taken);
        this.current = chunk;
        Poll::Ready(Ok(()))
    }
}

impl Drop for BodyStream {
    fn drop(&mut self) {
        let rest = std::mem::replace(&mut self.0, Reader::new(Source::Ended));
        // Outside of a runtime nothing sends any more.
        if !rest.source.is_empty()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(drain(rest));
        }
    }
}

/// Reads to the end, or to the first error: then it is over as well.
async fn drain(mut rest: Reader) {
    while let Ok(Some(_)) = rest.next_chunk().await {}
}
