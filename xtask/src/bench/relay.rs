//! The least that any proxy takes: one thread that passes bytes on between a caller and an upstream and looks at none of them.
//!
//! It parses, counts, limits and logs nothing, so what it costs is what the kernel takes for two connections; no proxy that reads
//! from sockets and writes to them can be expected below it. What it takes for a promise that it does not keep itself tells
//! that the promise can not be kept that way.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Context;
use rustix::event::epoll;
use rustix::fd::OwnedFd;

/// Read at once; a message of 64 KiB with its head in one go.
const BUFFER_BYTES: usize = 128 << 10;
/// The first line of all answers of the upstream, behind which a generator is told that the answer is the last.
const STATUS_LINE_BYTES: usize = b"HTTP/1.1 200 OK\r\n".len();
/// Events taken at once.
const EVENTS_MAX: usize = 256;
/// What epoll says for the two listeners; an end has twice the place of its pair, and one more for the upstream's.
const LISTENER: u64 = u64::MAX;
const CLOSING_LISTENER: u64 = u64::MAX - 1;

/// A caller and its upstream.
struct Pair {
    /// First the caller, then the upstream.
    ends: [End; 2],
    /// Whether the caller's connection is closed after the first answer.
    is_closing: bool,
    has_asked: bool,
}

struct End {
    stream: TcpStream,
    /// What it was too slow for.
    unsent: Vec<u8>,
    is_known_to_epoll: bool,
}

struct Relay {
    poll: OwnedFd,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    /// Upstream connections that have no caller, with the place where epoll knows them.
    idle: Vec<(usize, TcpStream)>,
    upstream: SocketAddr,
    buffer: Box<[u8]>,
}

/// Relays for ever as its configuration says: the address where connections are kept, the one where each is closed after one answer,
/// the upstream's.
pub(crate) fn relay(args: &[String]) -> anyhow::Result<bool> {
    let config = std::fs::read_to_string(args.first().context("no configuration given")?)?;
    let addresses: Vec<SocketAddr> =
        config.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [keeping, closing, upstream] = addresses[..] else {
        anyhow::bail!("wants three addresses")
    };
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let listeners = [TcpListener::bind(keeping)?, TcpListener::bind(closing)?];
    for (listener, name) in listeners.iter().zip([LISTENER, CLOSING_LISTENER]) {
        listener.set_nonblocking(true)?;
        epoll::add(&poll, listener, epoll::EventData::new_u64(name), epoll::EventFlags::IN)?;
    }
    let (pairs, free, idle) = (Vec::new(), Vec::new(), Vec::new());
    let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
    let mut relay = Relay { poll, pairs, free, idle, upstream, buffer };
    let mut events = Vec::with_capacity(EVENTS_MAX);
    loop {
        events.clear();
        match epoll::wait(&relay.poll, rustix::buffer::spare_capacity(&mut events), None) {
            // Whoever watches it with a debugger interrupts it.
            Err(rustix::io::Errno::INTR) => continue,
            waited => waited?,
        };
        for event in &events {
            match event.data.u64() {
                LISTENER => relay.accept(&listeners[0], false)?,
                CLOSING_LISTENER => relay.accept(&listeners[1], true)?,
                end => relay.serve(usize::try_from(end)?, event.flags),
            }
        }
    }
}

impl Relay {
    /// All that wait.
    fn accept(&mut self, listener: &TcpListener, is_closing: bool) -> Result<()> {
        loop {
            let caller = match listener.accept() {
                Ok((caller, _)) => caller,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            caller.set_nonblocking(true)?;
            caller.set_nodelay(true)?;
            let place = self.pair_with_upstream(caller, is_closing)?;
            // What comes with its connection is passed on before epoll hears of the caller.
            let passed = self.pass(place, 0);
            self.settle(place, passed);
            self.watch(place)?;
        }
    }

    fn pair_with_upstream(&mut self, caller: TcpStream, is_closing: bool) -> Result<usize> {
        let (place, stream, is_known_to_epoll) = match self.idle.pop() {
            Some((place, stream)) => (place, stream, true),
            None => {
                let stream = TcpStream::connect(self.upstream)?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                let place = self.free.pop().unwrap_or(self.pairs.len());
                if place == self.pairs.len() {
                    self.pairs.push(None);
                }
                (place, stream, false)
            }
        };
        let caller = End { stream: caller, unsent: Vec::new(), is_known_to_epoll: false };
        let upstream = End { stream, unsent: Vec::new(), is_known_to_epoll };
        self.pairs[place] = Some(Pair { ends: [caller, upstream], is_closing, has_asked: false });
        Ok(place)
    }

    /// Lets epoll know of the ends that it does not know; not of a caller that is only to be answered.
    fn watch(&mut self, place: usize) -> Result<()> {
        let Some(pair) = &mut self.pairs[place] else { return Ok(()) };
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let is_only_answered = pair.is_closing && pair.has_asked;
        for (side, end) in pair.ends.iter_mut().enumerate() {
            let is_left_out = side == 0 && is_only_answered;
            if !end.is_known_to_epoll && !is_left_out {
                let name = epoll::EventData::new_u64((2 * place + side) as u64);
                epoll::add(&self.poll, &end.stream, name, flags)?;
                end.is_known_to_epoll = true;
            }
        }
        Ok(())
    }

    fn serve(&mut self, end: usize, flags: epoll::EventFlags) {
        let (place, side) = (end / 2, end % 2);
        // It may be over since an event before this one.
        let Some(Some(pair)) = self.pairs.get_mut(place) else { return };
        if flags.contains(epoll::EventFlags::OUT) && !pair.ends[side].unsent.is_empty() {
            let flushed = pair.ends[side].flush();
            let passed = flushed.and_then(|()| self.pass(place, 1 - side));
            self.settle(place, passed);
        }
        if flags.contains(epoll::EventFlags::IN) {
            let passed = self.pass(place, side);
            self.settle(place, passed);
        }
    }

    /// Passes on what has come from one side, until there is no more or the other does not take it.
    fn pass(&mut self, place: usize, from: usize) -> Result<Open> {
        let Some(pair) = &mut self.pairs[place] else { return Ok(Open::Yes) };
        loop {
            if !pair.ends[1 - from].unsent.is_empty() {
                return Ok(Open::Yes);
            }
            let read = match pair.ends[from].stream.read(&mut self.buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Open::Yes),
                read => read?,
            };
            if read == 0 {
                return Ok(Open::No);
            }
            let bytes = &self.buffer[..read];
            pair.has_asked |= from == 0;
            if from == 1 && pair.is_closing {
                let (status, rest) = bytes.split_at(STATUS_LINE_BYTES.min(read));
                pair.ends[0].send(&[status, b"Connection: close\r\n", rest].concat())?;
                return Ok(Open::Answered);
            }
            pair.ends[1 - from].send(bytes)?;
            // A read that is short has emptied the socket: what comes later is an event of its own.
            if read < self.buffer.len() {
                return Ok(Open::Yes);
            }
        }
    }

    /// Closes what is over; an upstream that has answered is kept for the next caller.
    fn settle(&mut self, place: usize, passed: Result<Open>) {
        let Some(pair) = self.pairs[place].take_if(|_| !matches!(passed, Ok(Open::Yes))) else {
            return;
        };
        let [_caller, upstream] = pair.ends;
        if matches!(passed, Ok(Open::Answered)) {
            self.idle.push((place, upstream.stream));
        } else {
            self.free.push(place);
        }
    }
}

/// Whether a pair goes on.
enum Open {
    Yes,
    /// It was for one answer only, which was small enough for one read.
    Answered,
    No,
}

impl End {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = match self.stream.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            sent => sent?,
        };
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            let sent = match self.stream.write(&self.unsent) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                sent => sent?,
            };
            self.unsent.drain(..sent);
        }
        Ok(())
    }
}
