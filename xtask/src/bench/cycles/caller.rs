//! One app's only caller: it knows which answer must come next.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::tally::Tally;

/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// How an app sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleep {
    /// Its program ends.
    Stop,
    /// Its program is frozen.
    Suspend,
}

impl Sleep {
    /// Of the app with this number.
    pub(super) fn of(number: usize) -> Self {
        if number.is_multiple_of(2) { Self::Stop } else { Self::Suspend }
    }

    /// The word in `fly.toml`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Suspend => "suspend",
        }
    }

    /// The state of a Machine that sleeps so.
    pub(super) fn state(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Suspend => "suspended",
        }
    }
}

/// How to ask.
#[derive(Debug, Clone, Copy)]
enum Way {
    Http,
    Kept,
    Tcp,
    /// A raw connection that stays open while the Machine sleeps. Only under suspend: it keeps others awake.
    KeptTcp,
    Two,
}

/// Asks one app, again and again.
pub(super) struct Caller {
    app: String,
    address: SocketAddr,
    sleep: Sleep,
    kept: Option<Connection>,
    kept_tcp: Option<Connection>,
    /// How many requests the program has answered since it began.
    count: u64,
    dice: u64,
    pub(super) tally: Tally,
}

struct Connection(BufReader<TcpStream>);

/// What is read of an answer.
struct Answer {
    status: u16,
    woken: bool,
    count: Option<u64>,
    body: String,
}

impl Caller {
    pub(super) fn new(app: String, address: SocketAddr, sleep: Sleep, number: u64) -> Self {
        let dice = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let tally = Tally::default();
        Self { app, address, sleep, kept: None, kept_tcp: None, count: 0, dice, tally }
    }

    /// Calls until `end` is set.
    pub(super) fn call_until(&mut self, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            let (pause, way) = (self.pause(), self.way());
            std::thread::sleep(pause);
            let started = Instant::now();
            let asked = match way {
                Way::Http => self.http(),
                Way::Kept => self.kept(),
                Way::Tcp => self.tcp(),
                Way::KeptTcp => self.kept_tcp(),
                Way::Two => self.two(),
            };
            if let Err(error) = asked {
                let what = kind_of(&error);
                let took = started.elapsed();
                let text =
                    format!("{} {way:?} after a pause of {pause:?}, {took:?}: {error}", self.app);
                self.tally.fault(what, text);
                // What happened to the request that failed is not known.
                (self.kept, self.kept_tcp, self.count) = (None, None, u64::MAX);
            }
        }
    }

    fn roll(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % below
    }

    /// Half of the time about when the Machine falls asleep; else before, or long after.
    fn pause(&mut self) -> Duration {
        let us = match self.roll(8) {
            0 => self.roll(90_000),
            1..=5 => 95_000 + self.roll(50_000),
            _ => 145_000 + self.roll(250_000),
        };
        Duration::from_micros(us)
    }

    fn way(&mut self) -> Way {
        match (self.roll(5), self.sleep) {
            (0, _) => Way::Http,
            (1, _) => Way::Kept,
            (2, _) => Way::Two,
            (3, Sleep::Suspend) => Way::KeptTcp,
            (_, _) => Way::Tcp,
        }
    }

    fn connect(&self, port: u16) -> io::Result<Connection> {
        Connection::to(SocketAddr::new(self.address.ip(), port))
    }

    fn http(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let mut connection = self.connect(80)?;
        connection.ask("close")?;
        let answer = connection.answer()?;
        self.take("HTTP, new connection", &answer, started);
        connection.ends()
    }

    fn kept(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let mut connection = match self.kept.take() {
            Some(connection) => connection,
            None => self.connect(80)?,
        };
        connection.ask("keep-alive")?;
        let answer = connection.answer()?;
        self.kept = Some(connection);
        self.take("HTTP, kept connection", &answer, started);
        Ok(())
    }

    fn tcp(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let mut connection = self.connect(81)?;
        connection.ask("close")?;
        let answer = connection.answer()?;
        self.take("TCP, new connection", &answer, started);
        connection.ends()
    }

    fn kept_tcp(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let mut connection = match self.kept_tcp.take() {
            Some(connection) => connection,
            None => self.connect(81)?,
        };
        connection.ask("keep-alive")?;
        let answer = connection.answer()?;
        self.kept_tcp = Some(connection);
        self.take("TCP, kept connection", &answer, started);
        Ok(())
    }

    /// Two at once, by HTTP and by TCP: both wait for the same wake.
    fn two(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let (mut one, mut two) = (self.connect(80)?, self.connect(81)?);
        one.ask("close")?;
        two.ask("close")?;
        let (first, second) = (one.answer()?, two.answer()?);
        // Which of them came first is not known.
        let swapped = second.count < first.count;
        let (first, second) = if swapped { (second, first) } else { (first, second) };
        self.take("two at once", &first, started);
        self.take("two at once", &second, started);
        one.ends()?;
        two.ends()
    }

    /// Checks an answer: it must be the one after the last, or the first after a cold start.
    fn take(&mut self, kind: &'static str, answer: &Answer, started: Instant) {
        let took = started.elapsed();
        if answer.status != 200 {
            let text = format!("{} {kind} after {took:?}: {}", self.app, answer.body.trim());
            self.count = u64::MAX;
            return self.tally.fault("answered with an error", text);
        }
        let Some(count) = answer.count else {
            let text = format!("{} {kind}: {}", self.app, answer.body);
            return self.tally.fault("not the program's answer", text);
        };
        let next = self.count.checked_add(1);
        let cold = self.sleep == Sleep::Stop && count == 1;
        let unknown = self.count == 0 || next.is_none();
        if !cold && !unknown && Some(count) != next {
            let text = format!("{} {kind}: request {count} follows {}", self.app, self.count);
            self.tally.fault("lost, made twice, or started anew", text);
        }
        self.count = count;
        self.tally.answer(kind, took, answer.woken || cold);
    }
}

impl Connection {
    fn to(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, connection: &str) -> io::Result<()> {
        let text = format!("GET / HTTP/1.1\r\nHost: cycles\r\nConnection: {connection}\r\n\r\n");
        self.0.get_mut().write_all(text.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|word| word.parse().ok());
        let (mut woken, mut length) = (false, 0);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            let Some((name, value)) = line.split_once(':') else { break };
            woken |= name == "perch-wake";
            if name == "content-length" {
                length = value.trim().parse().unwrap_or_default();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let count = body
            .split_once("Request ")
            .and_then(|(_, rest)| rest.trim_end().trim_end_matches('.').parse().ok());
        Ok(Answer { status: status.unwrap_or_default(), woken, count, body })
    }

    /// After an answer that closes, nothing but the end comes.
    fn ends(mut self) -> io::Result<()> {
        match self.0.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::other("more than one answer")),
        }
    }
}

fn kind_of(error: &io::Error) -> &'static str {
    use io::ErrorKind as E;
    match error.kind() {
        E::ConnectionReset | E::BrokenPipe | E::ConnectionAborted => "reset",
        E::ConnectionRefused => "refused",
        E::UnexpectedEof => "closed without an answer",
        E::WouldBlock | E::TimedOut => "no answer",
        _ => "failed otherwise",
    }
}
