//! Answers of a Machine, as we read and rewrite them and as hyper's client reads them.
//!
//! The first byte of the input says what was asked; the rest is what the Machine sends before it closes. What we
//! accept whole, hyper must accept with the same status and body; what we write must have one reading.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{follow, shown, within};
use crate::ending::Ending;
use crate::http::body::Framing;
use crate::http::head::{After, HEADERS_MAX, Method, Request, Version};
use crate::http::response::{self, Parsed, SPACE, Signature};

const INPUT_BYTES_MAX: usize = 64 * 1024;
const PIPE_BYTES: usize = 1 << 17;

/// Status and content.
type Answer = (u16, Vec<u8>);

pub(super) fn compare(input: &[u8]) {
    let Some((kind, sent)) = input.split_first() else { return };
    let sent = &sent[..sent.len().min(INPUT_BYTES_MAX)];
    let request = Request {
        version: if kind & 1 == 0 { Version::Http11 } else { Version::Http10 },
        method: if kind & 2 == 0 { Method::Idempotent } else { Method::Head },
        framing: Framing::None,
        after: After::Keep,
        upgrade: kind & 4 != 0,
        aimed: false,
        head_len: 0,
    };
    let Some(ours) = ours(&request, sent) else { return };
    let theirs = within(theirs(request.method, sent));
    if theirs.is_none() && is_odd(sent) {
        return;
    }
    assert_eq!(theirs, Some(ours), "{}", shown(sent));
}

/// `None`: it is refused, not whole, or no answer of HTTP.
fn ours(request: &Request, sent: &[u8]) -> Option<Answer> {
    static ENDING: Ending = Ending::new();
    let mut at = 0;
    loop {
        let fixed = "Server: perch/0\r\nVia: 1.1 perch\r\n";
        let signature =
            Signature { fixed, request_id: "01-lcl", wake: None, ending: &ENDING, treatment: None };
        let mut out = Vec::new();
        let answer = response::rewrite(&sent[at..], request, signature, &mut out).ok()??;
        at += answer.head_len;
        if !answer.replay {
            check_written(&out, answer.status);
        }
        if answer.is_switch() {
            return None;
        }
        let is_old = sent[at - answer.head_len..].starts_with(b"HTTP/1.0 ");
        if answer.framing == Framing::Chunked && is_old {
            assert_eq!(answer.machine_after, After::Close, "{}", shown(sent));
        }
        if answer.is_interim() {
            continue;
        }
        let rest = &sent[at..];
        if answer.framing == Framing::Close {
            return Some((answer.status, rest.to_vec()));
        }
        let whole = follow(answer.framing, [rest]).ok()?;
        let bytewise = follow(answer.framing, rest.chunks(1)).ok()?;
        assert_eq!(whole, bytewise, "{}", shown(rest));
        return Some((answer.status, whole?.0));
    }
}

/// What the caller gets has one reading.
fn check_written(out: &[u8], status: u16) {
    let mut space = SPACE;
    let parsed = Parsed::read(out, &mut space);
    let Ok(Some(parsed)) = parsed else { panic!("malformed: {}", shown(out)) };
    assert_eq!((parsed.len, parsed.status), (out.len(), status), "{}", shown(out));
    let framing = ["content-length", "transfer-encoding"];
    let names = parsed.headers.iter().map(|header| header.name.to_ascii_lowercase());
    let count = names.filter(|name| framing.contains(&name.as_str())).count();
    assert!(count <= 1, "framed twice: {}", shown(out));
    let lines = out.split(|byte| *byte == b'\n');
    let clean = |line: &[u8]| {
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        !text.contains(&b'\r') && !text.contains(&0)
    };
    assert!(lines.clone().all(clean), "{}", shown(out));
    assert_eq!(
        lines.count(),
        out.windows(2).filter(|w| w == b"\r\n").count() + 1,
        "{}",
        shown(out)
    );
}

/// `None`: hyper refuses.
async fn theirs(method: Method, sent: &[u8]) -> Option<Answer> {
    let (mut machine, client) = tokio::io::duplex(PIPE_BYTES);
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_headers(HEADERS_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(client)).await.ok()?;
    let name = if method == Method::Head { "HEAD" } else { "GET" };
    let request = hyper::Request::builder().method(name).uri("/").header("host", "a");
    let request = request.body(Empty::<Bytes>::new()).expect("it is a request");
    let asks = async move {
        let answer = sender.send_request(request).await.ok()?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok()?;
        Some((status, body.to_bytes().to_vec()))
    };
    let answers = async move {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            if !matches!(machine.read_buf(&mut asked).await, Ok(1..)) {
                return;
            }
        }
        if machine.write_all(sent).await.is_ok() && machine.shutdown().await.is_ok() {
            let mut rest = Vec::new();
            drop(machine.read_to_end(&mut rest).await);
        }
    };
    let (answer, _, ()) = tokio::join!(asks, connection, answers);
    answer
}

/// The list: what we take from Machines and hyper does not, chunks from a program that says HTTP/1.0. Its connection is
/// not used again (RFC 9112, 6.1).
fn is_odd(sent: &[u8]) -> bool {
    let lower = sent.to_ascii_lowercase();
    let has = |text: &[u8]| lower.windows(text.len()).any(|window| window == text);
    has(b"http/1.0") && has(b"transfer-encoding")
}
