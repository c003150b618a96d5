//! The upstream of `warm`: answers every request with 64 bytes, as fast as it reads.
//!
//! One thread and one epoll, because it shares a core with the generator: a thread per connection would spend that
//! core on switching, and the proxies would be judged by how their writes happen to meet the scheduler.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};
use rustix::event::epoll;

/// 64 bytes of body.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";

/// A head of the benchmark is 200 bytes with all that a proxy adds.
const HEAD_BYTES_MAX: usize = 4096;
/// Events taken at once.
const EVENTS_MAX: usize = 256;
/// What epoll says when the listener is ready; connections have their place in the list.
const LISTENER: u64 = u64::MAX;

/// A connection with the part of a head that has come.
struct Connection {
    stream: TcpStream,
    buffer: [u8; HEAD_BYTES_MAX],
    filled: usize,
}

/// Serves a port for ever.
pub(crate) fn upstream(args: &[String]) -> Result<bool> {
    let port: u16 = args.first().context("no port given")?.parse()?;
    let listener = TcpListener::bind(("0.0.0.0", port)).context("listening")?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            match event.data.u64() {
                LISTENER => accept(&listener, &poll, &mut connections)?,
                place => serve(&mut connections[usize::try_from(place)?]),
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &rustix::fd::OwnedFd,
    connections: &mut Vec<Option<Connection>>,
) -> Result<()> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let place = epoll::EventData::new_u64(connections.len() as u64);
    epoll::add(poll, &stream, place, epoll::EventFlags::IN)?;
    connections.push(Some(Connection { stream, buffer: [0; HEAD_BYTES_MAX], filled: 0 }));
    Ok(())
}

/// Answers what has come; a connection that breaks is forgotten, and closed with that.
fn serve(place: &mut Option<Connection>) {
    let Some(connection) = place else { return };
    match connection.answer() {
        Ok(Open::Yes) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Ok(Open::No) | Err(_) => *place = None,
    }
}

/// Whether the other side may send more.
enum Open {
    Yes,
    No,
}

impl Connection {
    fn answer(&mut self) -> std::io::Result<Open> {
        let read = self.stream.read(&mut self.buffer[self.filled..])?;
        if read == 0 {
            return Ok(Open::No);
        }
        self.filled += read;
        while let Some(end) = head_end(&self.buffer[..self.filled]) {
            self.stream.write_all(ANSWER)?;
            self.buffer.copy_within(end..self.filled, 0);
            self.filled -= end;
        }
        Ok(Open::Yes)
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_as_long_as_it_says() {
        let head = head_end(ANSWER).expect("it has a head");
        assert_eq!(ANSWER.len() - head, 64);
    }
}
