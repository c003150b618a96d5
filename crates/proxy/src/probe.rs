//! One try of a health check: a connection, and for `http` a request (MA-71). It goes by the Machine's own
//! link and through nothing that counts, so it is never load and wakes nobody (AS-27).

use std::fmt::Write;
use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use perch_core::checks::{CheckKind, CheckSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::http::body::{Framing, Progress};
use crate::upstream;

/// Of what is seen so much is kept: enough for a line of JSON that says what is wrong.
const OUTPUT_BYTES_MAX: usize = 1024;
/// The longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES: usize = 2048;
const HEADERS_MAX: usize = 100;

/// What was seen: of a pass and of a failure.
pub(crate) type Seen = Result<String, String>;

/// Tries once. A program that does not listen is waited for as long as `patience`.
pub(crate) async fn probe(target: SocketAddrV4, spec: &CheckSpec, patience: Duration) -> Seen {
    let deadline = Instant::now() + spec.times.timeout;
    let patient_until = deadline.min(Instant::now() + patience);
    let connecting = upstream::connect_within(target, patient_until);
    let stream = match timeout_at(deadline, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("connect to port {}: {error}", spec.port)),
        Err(_) => return Err(format!("connect to port {}: {}", spec.port, too_long(spec))),
    };
    let CheckKind::Http { method, path, headers } = &spec.kind else {
        return Ok(format!("port {} accepts connections", spec.port));
    };
    let mut answer = Answer::default();
    let request = request(target, (method, path), headers);
    match timeout_at(deadline, answer.ask(stream, &request, method == "HEAD")).await {
        Ok(Ok(())) => answer.verdict(),
        Ok(Err(error)) => Err(format!("{method} {path}: {error}")),
        // The status is what counts; who streams for ever has said it.
        Err(_) if answer.status.is_some() => answer.verdict(),
        Err(_) => Err(format!("{method} {path}: {}", too_long(spec))),
    }
}

fn too_long(spec: &CheckSpec) -> String {
    format!("no answer within {:?}", spec.times.timeout)
}

fn request(
    target: SocketAddrV4,
    (method, path): (&str, &str),
    headers: &[(String, String)],
) -> String {
    let has = |name: &str| headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    let mut add = |name: &str, value: &str| {
        write!(text, "{name}: {value}\r\n").expect("a string takes everything");
    };
    if !has("host") {
        add("Host", &target.to_string());
    }
    if !has("user-agent") {
        add("User-Agent", "perch-health-check");
    }
    headers.iter().filter(|(name, _)| !is_ours(name)).for_each(|(name, value)| add(name, value));
    if has_body(method) {
        add("Content-Length", "0");
    }
    add("Connection", "close");
    text.push_str("\r\n");
    text
}

/// Headers that say where this message ends.
fn is_ours(name: &str) -> bool {
    ["connection", "content-length", "transfer-encoding"]
        .iter()
        .any(|it| name.eq_ignore_ascii_case(it))
}

fn has_body(method: &str) -> bool {
    matches!(method, "POST" | "PUT" | "PATCH")
}

/// What has come so far.
#[derive(Debug, Default)]
struct Answer {
    status: Option<u16>,
    output: Vec<u8>,
}

impl Answer {
    /// Reads until the body ends, or enough of it has come.
    async fn ask(&mut self, mut stream: TcpStream, request: &str, is_head: bool) -> io::Result<()> {
        stream.write_all(request.as_bytes()).await?;
        let mut input = Vec::new();
        let mut body = loop {
            let Some(head) = head(&input)? else {
                if read(&mut stream, &mut input).await? == 0 {
                    return Err(bad("the connection was closed before an answer came"));
                }
                continue;
            };
            input.drain(..head.length);
            // A word in between is no answer.
            if 200 <= head.status {
                self.status = Some(head.status);
                break Progress::new(if is_head { Framing::None } else { head.framing });
            }
        };
        loop {
            let output = &mut self.output;
            let taken = body.step(&input, |range| output.extend_from_slice(&input[range]));
            let done = taken.map_err(|_| bad("the body's chunks are malformed"))?.done;
            input.clear();
            if done || body.is_done() || OUTPUT_BYTES_MAX <= self.output.len() {
                return Ok(());
            }
            if read(&mut stream, &mut input).await? == 0 {
                return Ok(());
            }
        }
    }

    fn verdict(mut self) -> Seen {
        self.output.truncate(OUTPUT_BYTES_MAX);
        let text = String::from_utf8_lossy(&self.output);
        let text: String = text.chars().map(plain).collect();
        let mut text = text.trim().to_owned();
        match self.status {
            Some(200..=299) => Ok(text),
            Some(status) => {
                text.insert_str(
                    0,
                    &format!("status {status}{}", if text.is_empty() { "" } else { ": " }),
                );
                Err(text)
            }
            None => Err("no answer".to_owned()),
        }
    }
}

/// The output is shown in terminals: line ends stay, other controls do not.
fn plain(letter: char) -> char {
    if letter.is_control() && !matches!(letter, '\n' | '\t') { ' ' } else { letter }
}

async fn read(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<usize> {
    let mut piece = [0; READ_BYTES];
    let count = stream.read(&mut piece).await?;
    input.extend_from_slice(&piece[..count]);
    Ok(count)
}

struct Head {
    length: usize,
    status: u16,
    framing: Framing,
}

/// The head at the front, if all of it is there.
fn head(input: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let length = match parsed.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => return Err(bad("the answer is no HTTP/1.1")),
    };
    let status = parsed.code.ok_or_else(|| bad("the answer has no status"))?;
    Ok(Some(Head { length, status, framing: framing(status, parsed.headers) }))
}

fn framing(status: u16, headers: &[httparse::Header<'_>]) -> Framing {
    let value = |name: &str| {
        let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    if status < 200 || matches!(status, 204 | 304) {
        return Framing::None;
    }
    if value("transfer-encoding")
        .is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked"))
    {
        return Framing::Chunked;
    }
    let length = value("content-length").and_then(|length| length.trim().parse().ok());
    length.map_or(Framing::Close, Framing::Length)
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
