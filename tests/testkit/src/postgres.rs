//! As much of PostgreSQL's protocol as tests need: simple queries and notices, on a connection that nothing reopens.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One connection as role `postgres` of database `postgres`. Whatever breaks it is an error; there is no second one.
#[derive(Debug)]
pub struct Postgres {
    stream: TcpStream,
    /// The process that serves it, as the server said when it began.
    pub backend: i32,
    notices: Vec<String>,
}

impl Postgres {
    /// Connects, in the network of the calling thread, and waits until the server is ready for queries.
    pub fn connect(address: SocketAddr, limit: Duration) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, limit)
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        let start = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        stream.write_all(&length(start.len()).to_be_bytes())?;
        stream.write_all(start)?;
        let mut new = Self { stream, backend: 0, notices: Vec::new() };
        new.until_ready().context("logging in")?;
        Ok(new)
    }

    /// Runs a query; returns the first column of its rows.
    pub fn query(&mut self, sql: &str) -> Result<Vec<String>> {
        self.send(sql)?;
        self.until_ready().with_context(|| format!("`{sql}`"))
    }

    /// Sends a query and does not wait; `receive` does.
    pub fn send(&mut self, sql: &str) -> Result<()> {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&length(sql.len() + 1).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        self.stream.write_all(&message).with_context(|| format!("sending `{sql}`"))
    }

    /// The answer to what was sent.
    pub fn receive(&mut self) -> Result<Vec<String>> {
        self.until_ready()
    }

    /// Waits for the next notification; returns its payload.
    pub fn notification(&mut self) -> Result<String> {
        while self.notices.is_empty() {
            let (kind, body) = self.message()?;
            self.note(kind, &body)?;
        }
        Ok(self.notices.remove(0))
    }

    /// Reads to the end of an answer.
    fn until_ready(&mut self) -> Result<Vec<String>> {
        let mut rows = Vec::new();
        let mut complaint = None;
        loop {
            let (kind, body) = self.message()?;
            match kind {
                b'Z' => break,
                b'D' => rows.push(first_column(&body)?),
                // Nothing comes after what is fatal but the end.
                b'E' if body.starts_with(b"SFATAL") => bail!("the server says {}", readable(&body)),
                b'E' => complaint = Some(readable(&body)),
                b'K' => self.backend = number(&body, 0)?,
                _ => self.note(kind, &body)?,
            }
        }
        match complaint {
            Some(text) => bail!("the server says {text}"),
            None => Ok(rows),
        }
    }

    /// Keeps a notification; a connection that the server ends is an error, whatever else it says is not.
    fn note(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        match kind {
            b'A' => {
                let texts = readable(body.get(4..).unwrap_or_default());
                let payload = texts.split(' ').nth(1).unwrap_or_default();
                self.notices.push(payload.to_owned());
                Ok(())
            }
            b'E' => bail!("the server says {}", readable(body)),
            _ => Ok(()),
        }
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).context("reading from the server")?;
        let length = usize::try_from(number(&head, 1)?)?;
        let mut body = vec![0; length.checked_sub(4).context("a message without a length")?];
        self.stream.read_exact(&mut body).context("reading from the server")?;
        Ok((head[0], body))
    }
}

/// The length that a message states counts itself.
fn length(body: usize) -> u32 {
    u32::try_from(body + 4).unwrap_or(u32::MAX)
}

fn number(bytes: &[u8], at: usize) -> Result<i32> {
    let four = bytes.get(at..at + 4).context("a message ends too early")?;
    Ok(i32::from_be_bytes(four.try_into()?))
}

/// Empty for NULL, and for a row without columns.
fn first_column(row: &[u8]) -> Result<String> {
    if row.starts_with(&[0, 0]) {
        return Ok(String::new());
    }
    let length = usize::try_from(number(row, 2)?).unwrap_or_default();
    let value = row.get(6..6 + length).context("a row ends too early")?;
    Ok(String::from_utf8_lossy(value).into_owned())
}

/// Texts that end with zeros, as one line.
fn readable(bytes: &[u8]) -> String {
    let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    let parts: Vec<_> = parts.map(String::from_utf8_lossy).collect();
    parts.join(" ")
}
