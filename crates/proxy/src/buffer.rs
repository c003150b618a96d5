//! Read buffers, shared by all connections of the thread.
//!
//! A connection owns a buffer only while it has bytes in it: a read takes one from the pool, and gives
//! it back when the kernel has nothing. An idle or held connection therefore costs none.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Measured: copies of 64 KiB bodies need a third of the CPU that 16 KiB buffers need. Beside such a body there is room for
/// its head, which spares a read and a write.
pub(crate) const BUFFER_BYTES: usize = 72 * 1024;
/// Buffers kept for reuse (18 MB); more are in use only at once with as many active connections.
const POOL_LEN_MAX: usize = 256;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A byte buffer with a consumed front; returns to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Empty only inside `drop`.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn take() -> Self {
        let pooled = POOL.with_borrow_mut(Vec::pop);
        let bytes = pooled.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
        Self { bytes, start: 0, end: 0 }
    }

    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len(), "consumes what is there");
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Appends as much as fits and says how much that was.
    pub(crate) fn fill_from(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.bytes.len() - self.end);
        self.bytes[self.end..self.end + count].copy_from_slice(&bytes[..count]);
        self.end += count;
        count
    }

    /// Reads once, at most `bytes_max`; `Ok(0)` = the other side ended.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        let limit = self.bytes.len().min(self.end.saturating_add(bytes_max));
        if limit == self.end {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let mut read = ReadBuf::new(&mut self.bytes[self.end..limit]);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        let count = read.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// The same from a stream that is shared with others.
    pub(crate) fn poll_fill_of(
        &mut self,
        cx: &mut Context<'_>,
        stream: &TcpStream,
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        let limit = self.bytes.len().min(self.end.saturating_add(bytes_max));
        if limit == self.end {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match try_read(stream, &mut self.bytes[self.end..limit]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.end += count;
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }
}

/// Reads what is there. Less than there is room for means that this was all: as in Tokio's own reads,
/// the next one waits without asking the kernel again. A mark of urgent data would end a read, too; the plane's tables
/// let none come this far.
fn try_read(stream: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let mut count = None;
    let outcome = stream.try_io(Interest::READABLE, || {
        let (read, _) = rustix::net::recv(stream.as_fd(), &mut *room, RecvFlags::empty())?;
        count = Some(read);
        if (1..room.len()).contains(&read) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match count {
        Some(read) => Ok(read),
        None => outcome.map(|()| 0),
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        POOL.with_borrow_mut(|pool| {
            if pool.len() < POOL_LEN_MAX {
                pool.push(bytes);
            }
        });
    }
}

/// Waits for bytes without owning a buffer meanwhile; an empty buffer = the other side ended.
pub(crate) async fn read_some(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> io::Result<Buffer> {
    std::future::poll_fn(|cx| {
        let mut buffer = Buffer::take();
        ready!(buffer.poll_fill(cx, stream, bytes_max))?;
        Poll::Ready(Ok(buffer))
    })
    .await
}

/// The same from a stream that is shared with others.
pub(crate) async fn read_some_of(stream: &TcpStream, bytes_max: usize) -> io::Result<Buffer> {
    std::future::poll_fn(|cx| {
        let mut buffer = Buffer::take();
        ready!(buffer.poll_fill_of(cx, stream, bytes_max))?;
        Poll::Ready(Ok(buffer))
    })
    .await
}
