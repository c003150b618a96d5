//! The upstream of `warm` and `proxy`: answers every request with 64 bytes, or 64 KiB at `/64k`, as fast as it reads. At the port after
//! that it sends zeros without end to whoever connects, and at the next one it answers calls of gRPC (`grpc`).
//!
//! One thread and one epoll, because it shares a core with the generator: a thread per connection would spend that
//! core on switching, and the proxies would be judged by how their writes happen to meet the scheduler.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};
use rustix::event::epoll;

/// Said after the port: listens only after a datagram came to that port from inside.
pub(super) const WAIT: &str = "wait";

/// 64 bytes of body.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";

/// What a request for the large body begins with.
const LARGE: &[u8] = b"GET /64k ";
const LARGE_BYTES: usize = 64 << 10;

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
    /// What the caller was too slow for.
    unsent: Vec<u8>,
}

/// Serves a port for ever.
pub(crate) fn upstream(args: &[String]) -> Result<bool> {
    let port: u16 = args.first().context("no port given")?.parse()?;
    if args.get(1).is_some_and(|word| word == WAIT) {
        UdpSocket::bind(("127.0.0.1", port))?.recv(&mut [0]).context("waiting for a word")?;
    }
    let listener = TcpListener::bind(("0.0.0.0", port)).context("listening")?;
    let stream = TcpListener::bind(("0.0.0.0", port + 1)).context("listening")?;
    std::thread::spawn(move || stream.incoming().flatten().for_each(send_zeros));
    let calls = TcpListener::bind(("0.0.0.0", port + 2)).context("listening")?;
    std::thread::spawn(move || super::grpc::serve(calls));
    let large = large();
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
                place => serve(&mut connections[usize::try_from(place)?], &large),
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
    let edges = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(poll, &stream, place, edges)?;
    let (buffer, unsent) = ([0; HEAD_BYTES_MAX], Vec::new());
    connections.push(Some(Connection { stream, buffer, filled: 0, unsent }));
    Ok(())
}

/// Sends zeros to one caller until it goes away.
fn send_zeros(mut stream: TcpStream) {
    let zeros = vec![0; LARGE_BYTES];
    while stream.write_all(&zeros).is_ok() {}
}

/// The large answer.
fn large() -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE_BYTES}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; LARGE_BYTES]].concat()
}

/// Answers what has come; a connection that breaks is forgotten, and closed with that.
fn serve(place: &mut Option<Connection>, large: &[u8]) {
    let Some(connection) = place else { return };
    match connection.answer(large) {
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
    /// Until there is nothing to read, or the caller does not take what it asked for.
    fn answer(&mut self, large: &[u8]) -> std::io::Result<Open> {
        // A read that is short has emptied the socket: what comes later is an event of its own.
        let mut is_empty = false;
        loop {
            self.flush()?;
            while let Some(end) = head_end(&self.buffer[..self.filled]) {
                let answer = if self.buffer.starts_with(LARGE) { large } else { ANSWER };
                self.buffer.copy_within(end..self.filled, 0);
                self.filled -= end;
                self.send(answer)?;
            }
            if is_empty {
                return Ok(Open::Yes);
            }
            let room = HEAD_BYTES_MAX - self.filled;
            let read = self.stream.read(&mut self.buffer[self.filled..])?;
            if read == 0 {
                return Ok(Open::No);
            }
            self.filled += read;
            is_empty = read < room;
        }
    }

    fn send(&mut self, answer: &[u8]) -> std::io::Result<()> {
        let sent = match self.stream.write(answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            sent => sent?,
        };
        self.unsent.extend_from_slice(&answer[sent..]);
        self.flush()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while !self.unsent.is_empty() {
            let sent = self.stream.write(&self.unsent)?;
            self.unsent.drain(..sent);
        }
        Ok(())
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
