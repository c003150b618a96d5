//! Pipes between two sockets: what comes in bulk goes from one to the other without being copied.
//!
//! As with buffers, a connection owns a pipe only while there are bytes in it; an empty one belongs to all connections of the
//! thread. There are few: who finds none copies.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::{AsyncRead, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use crate::upstream::peek;

/// A piece of this size says that there is more to come: the next one goes through a pipe.
pub(crate) const BULK_BYTES: usize = 32 * 1024;
/// What one pipe can have in it: more would be told in too large pieces, and keep others waiting.
const PIPE_BYTES: usize = 256 * 1024;
/// Pipes of a thread at once, each with two descriptors: somebody who takes nothing keeps one. The kernel lets a user have
/// 64 MiB in pipes, and proxies that were replaced have theirs until they end.
const PIPES_MAX: usize = 48;

thread_local! {
    static POOL: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// Bytes on their way from one socket to another; an empty one goes back to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// `None` only inside `drop`.
    ends: Option<Ends>,
    len: usize,
}

impl Pipe {
    /// `None`: all are taken, or the kernel gives no more.
    fn take() -> Option<Self> {
        let pooled = POOL.with_borrow_mut(Vec::pop);
        if pooled.is_none() && PIPES_MAX <= TAKEN.get() {
            return None;
        }
        let ends = pooled.or_else(|| Ends::new().ok())?;
        TAKEN.set(TAKEN.get() + 1);
        Some(Self { ends: Some(ends), len: 0 })
    }

    /// Bytes in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes in what has come on a socket, `bytes_max` at most; says how much.
    fn fill(&mut self, from: &TcpStream, bytes_max: usize) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let take = || {
            let count = bytes_max.min(PIPE_BYTES);
            let (from, to) = (from.as_fd(), ends.write.as_fd());
            splice(from, None, to, None, count, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
        };
        let count = from.try_io(Interest::READABLE, || match take() {
            // In front of an urgent byte too; then nobody says again that there is something behind it.
            Err(Errno::AGAIN) => {
                peek(from)?;
                match take() {
                    Err(Errno::AGAIN) => Ok(0),
                    taken => Ok(taken?),
                }
            }
            taken => Ok(taken?),
        })?;
        self.len += count;
        Ok(count)
    }

    /// Waits until all is written; `on_written` hears of each piece.
    pub(crate) async fn pour(
        mut self,
        to: &TcpStream,
        on_written: impl Fn(usize),
    ) -> io::Result<()> {
        while self.len != 0 {
            let Some(ends) = &self.ends else { break };
            let written = std::future::poll_fn(|cx| {
                loop {
                    ready!(to.poll_write_ready(cx))?;
                    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                    let written = to.try_io(Interest::WRITABLE, || {
                        Ok(splice(ends.read.as_fd(), None, to.as_fd(), None, self.len, flags)?)
                    });
                    match written {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        written => return Poll::Ready(written),
                    }
                }
            });
            match written.await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    self.len -= written;
                    on_written(written);
                }
            }
        }
        Ok(())
    }
}

impl Ends {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Of a user who has too much in pipes already new ones are so small that copying costs less.
        fcntl_setpipe_size(&write, PIPE_BYTES)?;
        Ok(Self { read, write })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        TAKEN.set(TAKEN.get() - 1);
        // What is left in it belongs to nobody else.
        if let Some(ends) = self.ends.take()
            && self.len == 0
        {
            POOL.with_borrow_mut(|pool| pool.push(ends));
        }
    }
}

/// Where an answer comes from.
pub(crate) trait Source: AsyncRead + Unpin {
    /// The socket that bytes may be taken from past us, if what it brings is the answer as it is.
    fn socket(&self) -> Option<&TcpStream>;
}

impl Source for ReadHalf<'_> {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.as_ref())
    }
}

/// Waits for bytes without owning a pipe meanwhile, and takes `bytes_max` of them at most. `None`: they are to be copied, since
/// `may` says so when they are there, or there is no pipe, or what comes is none for a pipe: the end, or an urgent byte,
/// in front of which the kernel takes nothing more into one.
pub(crate) async fn read_bulk(
    from: &TcpStream,
    bytes_max: usize,
    may: impl Fn() -> bool,
) -> io::Result<Option<Pipe>> {
    let mut waits = true;
    std::future::poll_fn(|cx| {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let pipe = if may() { Pipe::take() } else { None };
            let Some(mut pipe) = pipe else { return Poll::Ready(Ok(None)) };
            match pipe.fill(from, bytes_max) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !std::mem::take(&mut waits) {
                        return Poll::Ready(Ok(None));
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Ok(None)),
                Ok(_) => return Poll::Ready(Ok(Some(pipe))),
            }
        }
    })
    .await
}

/// Pipes that belong to nobody.
#[cfg(test)]
pub(crate) fn idle_count() -> usize {
    POOL.with_borrow(Vec::len)
}

/// Pipes that somebody has.
#[cfg(test)]
pub(crate) fn taken_count() -> usize {
    TAKEN.get()
}

/// Leaves none.
#[cfg(test)]
pub(crate) fn take_all() -> Vec<Pipe> {
    std::iter::from_fn(Pipe::take).collect()
}
