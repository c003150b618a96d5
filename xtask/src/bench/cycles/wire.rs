//! Connections of callers: HTTP/1.1, as raw bytes too, and WebSockets.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::history::Failed;

/// An answer that takes longer is lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What a WebSocket is asked for, and how the program proves that it has read that (RFC 6455, 1.3).
const SWITCH: &str = "GET /ws HTTP/1.1\r\nHost: cycles\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const PROOF: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The code of a WebSocket's end that its Machine's end brings.
const GOING_AWAY: u16 = 1001;

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) failed: Failed,
    /// What was being done.
    phase: &'static str,
    pub(super) what: &'static str,
    text: String,
}

impl Failure {
    /// Of input or output.
    pub(super) fn of(phase: &'static str, error: &io::Error) -> Self {
        use io::ErrorKind as E;
        let (failed, what) = match error.kind() {
            E::ConnectionReset | E::BrokenPipe | E::ConnectionAborted => (Failed::Cut, "reset"),
            E::UnexpectedEof => (Failed::Cut, "closed without an answer"),
            E::ConnectionRefused => (Failed::Otherwise, "refused"),
            E::WouldBlock | E::TimedOut => (Failed::Otherwise, "no answer"),
            _ => (Failed::Otherwise, "failed otherwise"),
        };
        Self { failed, phase, what, text: error.to_string() }
    }

    /// An answer that is not the one that must come.
    pub(super) fn wrong(phase: &'static str, what: &'static str, text: String) -> Self {
        Self { failed: Failed::Otherwise, phase, what, text }
    }

    fn going_away() -> Self {
        let (failed, what) = (Failed::GoingAway, "going away");
        Self { failed, phase: "waiting for the answer", what, text: "close frame".to_owned() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} while {}: {}", self.what, self.phase, self.text)
    }
}

/// For what an answer waited, as far as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// For nothing, or it does not say.
    None,
    /// For the thaw of its Machine.
    Thaw,
    /// For its start.
    Start,
    /// For something else.
    Other,
}

impl Wait {
    /// From the header `Perch-Wake`.
    pub(super) fn of(header: Option<&str>) -> Self {
        match header {
            None => Self::None,
            Some(value) if value.starts_with("thaw;") => Self::Thaw,
            Some(value) if value.starts_with("start;") => Self::Start,
            Some(_) => Self::Other,
        }
    }
}

/// What is read of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) wait: Wait,
    /// The connection ends after it.
    pub(super) closes: bool,
    pub(super) count: u64,
}

/// The number in what the example app says.
pub(super) fn count(body: &str) -> Option<u64> {
    body.split_once("Request ")?.1.trim_end().trim_end_matches('.').parse().ok()
}

/// A connection to a port with or without a handler.
pub(super) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(super) fn to(address: SocketAddr) -> Result<Self, Failure> {
        let connect = || {
            let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(Self(BufReader::new(stream)))
        };
        connect().map_err(|error| Failure::of("connecting", &error))
    }

    /// Whether the other side has neither closed it nor said anything.
    pub(super) fn is_open(&self) -> bool {
        let stream = self.0.get_ref();
        let look = || {
            stream.set_nonblocking(true)?;
            let seen = stream.peek(&mut [0]);
            stream.set_nonblocking(false)?;
            seen
        };
        matches!(look(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.get_mut().write_all(bytes).map_err(|error| Failure::of("asking", &error))
    }

    /// Asks without waiting.
    pub(super) fn ask(&mut self, connection: &str) -> Result<(), Failure> {
        let text = format!("GET / HTTP/1.1\r\nHost: cycles\r\nConnection: {connection}\r\n\r\n");
        self.write(text.as_bytes())
    }

    /// The lines of a head, in small letters but for the first.
    fn head(&mut self, phase: &'static str) -> Result<Vec<String>, Failure> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line);
            match read.map_err(|error| Failure::of(phase, &error))? {
                0 => return Err(Failure::of(phase, &io::ErrorKind::UnexpectedEof.into())),
                _ => line.truncate(line.trim_end().len()),
            }
            match line.is_empty() {
                true => return Ok(lines),
                false if lines.is_empty() => lines.push(line),
                false => lines.push(line.to_ascii_lowercase()),
            }
        }
    }

    /// Waits for the answer.
    pub(super) fn answer(&mut self) -> Result<Answer, Failure> {
        let head = self.head("waiting for the answer")?;
        let value = |name: &str| head.iter().find_map(|line| line.strip_prefix(name));
        let length = value("content-length: ").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or_default()];
        let read = self.0.read_exact(&mut body);
        read.map_err(|error| Failure::of("reading the answer's body", &error))?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let closes = value("connection: ").is_some_and(|words| words.contains("close"));
        match (head.first(), count(&body)) {
            (Some(status), Some(count)) if status.contains(" 200 ") => {
                Ok(Answer { wait: Wait::of(value("perch-wake: ")), closes, count })
            }
            _ => Err(not_ok(&format!("{head:?} {}", body.trim()))),
        }
    }

    /// After an answer that closes, nothing but the end comes.
    pub(super) fn ends(mut self) -> Result<(), Failure> {
        const PHASE: &str = "waiting for the connection's end";
        match self.0.read(&mut [0]).map_err(|error| Failure::of(PHASE, &error))? {
            0 => Ok(()),
            _ => Err(Failure::wrong(PHASE, "more than one answer", String::new())),
        }
    }
}

/// An answer that is an error.
pub(super) fn not_ok(said: &str) -> Failure {
    Failure::wrong("reading the answer", "answered with an error", said.to_owned())
}

/// An open WebSocket.
pub(super) struct Socket {
    connection: Connection,
    /// For what its opening waited.
    pub(super) wait: Wait,
}

impl Socket {
    pub(super) fn to(address: SocketAddr) -> Result<Self, Failure> {
        const PHASE: &str = "waiting for the WebSocket";
        let mut connection = Connection::to(address)?;
        connection.write(SWITCH.as_bytes())?;
        let head = connection.head(PHASE)?;
        let proven = format!("sec-websocket-accept: {PROOF}").to_ascii_lowercase();
        if !head.first().is_some_and(|status| status.contains(" 101 ")) || !head.contains(&proven) {
            return Err(not_ok(&format!("{head:?}")));
        }
        let wait = Wait::of(head.iter().find_map(|line| line.strip_prefix("perch-wake: ")));
        Ok(Self { connection, wait })
    }

    /// Whether nothing was said by the other side, not even an end.
    pub(super) fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    /// Sends a text and waits for what comes back.
    pub(super) fn ask(&mut self, text: &str) -> Result<Answer, Failure> {
        self.send(0x81, text.as_bytes())?;
        loop {
            let (first, bytes) = self.frame("waiting for the answer")?;
            match first {
                0x81 => {
                    let said = String::from_utf8_lossy(&bytes).into_owned();
                    let count = said.strip_suffix(&format!(" {text}")).and_then(|n| n.parse().ok());
                    let count = count.ok_or_else(|| not_ok(&said))?;
                    return Ok(Answer { wait: Wait::None, closes: false, count });
                }
                0x88 => return Err(closed(&bytes)),
                0x89 => self.send(0x8a, &bytes)?,
                _ => return Err(not_ok(&format!("a frame {first:#x} {bytes:?}"))),
            }
        }
    }

    /// Closes it as the standard has it.
    pub(super) fn close(mut self) -> Result<(), Failure> {
        self.send(0x88, &1000_u16.to_be_bytes())?;
        match self.frame("waiting for the close frame")? {
            (0x88, _) => self.connection.ends(),
            (first, bytes) => Err(not_ok(&format!("a frame {first:#x} {bytes:?}"))),
        }
    }

    /// A short frame, masked with zeros.
    fn send(&mut self, first: u8, bytes: &[u8]) -> Result<(), Failure> {
        let length = 0x80 | bytes.len() as u8;
        self.connection.write(&[&[first, length, 0, 0, 0, 0], bytes].concat())
    }

    fn frame(&mut self, phase: &'static str) -> Result<(u8, Vec<u8>), Failure> {
        let mut read = || {
            let mut head = [0; 2];
            self.connection.0.read_exact(&mut head)?;
            let mut bytes = vec![0; usize::from(head[1])];
            self.connection.0.read_exact(&mut bytes)?;
            Ok((head[0], bytes))
        };
        read().map_err(|error| Failure::of(phase, &error))
    }
}

fn closed(bytes: &[u8]) -> Failure {
    match bytes.first_chunk().map(|code| u16::from_be_bytes(*code)) {
        Some(GOING_AWAY) => Failure::going_away(),
        code => not_ok(&format!("a close frame with {code:?}")),
    }
}
