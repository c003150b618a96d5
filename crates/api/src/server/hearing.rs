//! Whether bytes have come on a connection that are not part of a request yet: the end of the server waits for who has
//! begun to ask, and not for who is silent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Of one connection. Clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Hearing(Arc<watch::Sender<bool>>);

impl Hearing {
    /// What has come until now was understood.
    pub(super) fn taken_up(&self) {
        self.set(false);
    }

    /// Resolves when everything that has come was understood.
    pub(super) async fn all_taken_up(&self) {
        // An error means that the sender is gone, which is here.
        drop(self.0.subscribe().wait_for(|begun| !begun).await);
    }

    fn set(&self, begun: bool) {
        self.0.send_if_modified(|now| std::mem::replace(now, begun) != begun);
    }
}

/// The bytes of a connection, which notes that some have come.
#[derive(Debug)]
pub(super) struct Heard<S> {
    stream: S,
    hearing: Hearing,
}

impl<S> Heard<S> {
    pub(super) fn new(stream: S, hearing: Hearing) -> Self {
        Self { stream, hearing }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if before < buf.filled().len() {
            self.hearing.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
