//! One app's only caller by UDP. Its session is load for 30 s, so it is patient.
//!
//! Datagrams may be lost by what is done to proxy and program, and only then may a caller have to send one again. All that is sent
//! while a Machine wakes is answered, in order.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::count::{Count, Place};
use super::dice::Dice;
use super::history::{History, Request};
use super::tally::Tally;
use super::way::{Sleep, Way};
use super::wire::{PATIENCE, Wait};

/// Who has no answer for so long sends again. A start takes a tenth of it on a busy machine.
const AGAIN: Duration = Duration::from_secs(5);
/// How often the caller looks whether it is time to end.
const LOOK: Duration = Duration::from_millis(200);
/// Most datagrams at once.
const BURST: u64 = 4;

/// Asks one app, again and again.
pub(super) struct Caller<'a> {
    app: usize,
    address: SocketAddr,
    sleep: Sleep,
    history: &'a History,
    socket: Option<UdpSocket>,
    count: Count,
    counted: Instant,
    /// Number of the last datagram.
    sent: u64,
    dice: Dice,
    pub(super) tally: Tally,
}

/// An answer.
struct Heard {
    /// The number that the program gave the datagram.
    count: u64,
    /// What the datagram said: its own number.
    number: u64,
}

impl<'a> Caller<'a> {
    pub(super) fn new(app: usize, address: SocketAddr, history: &'a History, seed: u64) -> Self {
        Self {
            app,
            address,
            sleep: Sleep::of(app),
            history,
            socket: None,
            count: Count::default(),
            counted: Instant::now(),
            sent: 0,
            dice: Dice::new(seed, app as u64),
            tally: Tally::default(),
        }
    }

    /// Calls until `end` is set.
    pub(super) fn call_until(&mut self, end: &AtomicBool) {
        loop {
            let due = Instant::now() + self.pause();
            while Instant::now() < due {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(LOOK.min(due.saturating_duration_since(Instant::now())));
            }
            let begun = Instant::now();
            if let Err(error) = self.burst(begun) {
                let text = format!("{} after {:?}: {error}", self.told(), begun.elapsed());
                self.tally.fault(Way::Udp, "failed", &text);
                self.socket = None;
            }
        }
    }

    /// Mostly about when the session ends and the Machine falls asleep.
    fn pause(&mut self) -> Duration {
        let ms = match self.dice.roll(8) {
            0 | 1 => self.dice.roll(500),
            2..=5 => 29_900 + self.dice.roll(500),
            _ => 30_400 + self.dice.roll(3000),
        };
        Duration::from_millis(ms)
    }

    /// Sends some at once and waits for all answers.
    fn burst(&mut self, begun: Instant) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) if self.dice.roll(4) != 0 => socket,
            _ => self.connected()?,
        };
        let mut open: Vec<u64> = (0..=self.dice.roll(BURST)).map(|at| self.sent + 1 + at).collect();
        let mut deadline = begun + AGAIN;
        self.send(&socket, &open)?;
        while !open.is_empty() {
            match hear(&socket, deadline)? {
                Some(heard) => self.take(&heard, &mut open, begun),
                None if begun + PATIENCE < Instant::now() => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                None => {
                    self.blame(open.len(), begun);
                    open = (0..open.len() as u64).map(|at| self.sent + 1 + at).collect();
                    self.send(&socket, &open)?;
                    deadline = Instant::now() + AGAIN;
                }
            }
        }
        self.socket = Some(socket);
        Ok(())
    }

    /// A socket that hears only whom it asks.
    fn connected(&self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.connect(self.address)?;
        Ok(socket)
    }

    fn send(&mut self, socket: &UdpSocket, numbers: &[u64]) -> io::Result<()> {
        for number in numbers {
            self.sent = *number;
            socket.send(number.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn take(&mut self, heard: &Heard, open: &mut Vec<u64>, begun: Instant) {
        let may_begin =
            self.sleep == Sleep::Stop || self.history.deployed(self.request(self.counted));
        let place = self.count.take(heard.count, may_begin);
        self.counted = begun;
        if let Place::Wrong(last) = place {
            let text = format!("{}: answer {} after answer {last}", self.told(), heard.count);
            self.tally.fault(Way::Udp, "lost, made twice, or begun anew", &text);
        }
        match open.iter().position(|number| *number == heard.number) {
            Some(place) => {
                if place != 0 {
                    let text = format!("{}: {} before {open:?}", self.told(), heard.number);
                    self.tally.fault(Way::Udp, "out of order", &text);
                }
                open.remove(place);
                let is_cold = self.sleep == Sleep::Stop && heard.count == 1;
                let wait = if is_cold { Wait::Start } else { Wait::None };
                self.tally.answer(Way::Udp, begun.elapsed(), wait);
            }
            None if heard.number <= self.sent => {
                self.tally.note(Way::Udp, "answered after it was sent again".to_owned());
            }
            None => {
                let text = format!("{}: {}", self.told(), heard.number);
                self.tally.fault(Way::Udp, "an answer to nothing", &text);
            }
        }
    }

    /// Who has lost these.
    fn blame(&mut self, count: usize, begun: Instant) {
        self.count.lose(count as u64);
        match self.history.lost(self.request(begun)) {
            Some(kind) => {
                let what = format!("sent again after {}", kind.name());
                (0..count).for_each(|_| self.tally.note(Way::Udp, what.clone()));
            }
            None => {
                let text = format!("{}: {count} after {:?}", self.told(), begun.elapsed());
                self.tally.fault(Way::Udp, "no answer, sent again", &text);
            }
        }
    }

    fn request(&self, begun: Instant) -> Request {
        let ended = Instant::now();
        Request { app: self.app, ends_with_its_program: false, begun, ended }
    }

    fn told(&self) -> String {
        let (app, address) = (self.app, self.address);
        format!("{} app{app} {address} UDP", super::time_of_day())
    }
}

/// The next answer, if one comes in time.
fn hear(socket: &UdpSocket, deadline: Instant) -> io::Result<Option<Heard>> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    socket.set_read_timeout(Some(left))?;
    let mut buffer = [0; 256];
    let length = match socket.recv(&mut buffer) {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let words: Vec<&str> = text.split(' ').collect();
    let [count, _sender, number] = words[..] else { return Err(io::Error::other(text)) };
    let parsed = count.parse().ok().zip(number.parse().ok());
    let (count, number) = parsed.ok_or_else(|| io::Error::other(text.clone()))?;
    Ok(Some(Heard { count, number }))
}
