//! Requests on one connection, as we read them and as hyper does.
//!
//! What we accept, hyper must accept, as the same requests: method, target, body, and how many there are. What we
//! refuse, hyper may accept only for a reason of [`excuse`], which is looked for in the bytes, not in our parser.

use std::cell::RefCell;
use std::convert::Infallible;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use super::reference::{read_body, read_head};
use super::{follow, forwarded, shown, within};
use crate::http::body::Framing;
use crate::http::head::{self, After, BadRequest, HEAD_BYTES_MAX, HEADERS_MAX};

/// More than any pipeline that says something new; hyper's answers to it fit into its pipe.
const INPUT_BYTES_MAX: usize = 32 * 1024;
const PIPE_BYTES: usize = 1 << 20;

/// One request as a Machine would get it.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    method: String,
    target: String,
    body: Vec<u8>,
}

/// Why we read no more.
#[derive(Debug)]
enum End {
    /// The rest is not whole.
    Incomplete,
    /// What was read says that it is the last.
    Last,
    /// The head that begins here is refused.
    Refused(BadRequest, usize),
    /// The chunked body that begins here is.
    BadBody(usize),
}

pub(super) fn compare(input: &[u8]) {
    let input = &input[..input.len().min(INPUT_BYTES_MAX)];
    let (ours, end) = ours(input);
    let theirs = within(theirs(input));
    for (at, message) in ours.iter().enumerate() {
        // Of targets hyper takes less than clients send; who refuses does not misread.
        if theirs.len() == at && !is_plain(&message.target) {
            return;
        }
        let same = theirs.get(at).is_some_and(|their| is_same(message, their));
        assert!(same, "request {at}: {message:?}, hyper {:?}: {}", theirs.get(at), shown(input));
    }
    if ours.len() < theirs.len() {
        let why = excuse(&end, input);
        assert!(why.is_some(), "hyper reads more, after {end:?}: {theirs:?}: {}", shown(input));
    }
}

fn ours(input: &[u8]) -> (Vec<Message>, End) {
    let (mut messages, mut at) = (Vec::new(), 0);
    let forwarded = forwarded();
    loop {
        let mut out = Vec::new();
        let request = match head::rewrite(&input[at..], &forwarded, 0, &mut out) {
            Ok(Some(request)) => request,
            Ok(None) => return (messages, End::Incomplete),
            Err(why) => return (messages, End::Refused(why, at)),
        };
        let sent = read_head(&out).unwrap_or_else(|| panic!("malformed: {}", shown(&out)));
        assert_eq!((sent.length, sent.framing), (out.len(), request.framing), "{}", shown(&out));
        assert_eq!(sent.values("host").len(), 1, "{}", shown(&out));
        at += usize::from(request.head_len);
        let (body, length) = match follow(request.framing, [&input[at..]]) {
            Ok(Some(whole)) => whole,
            Ok(None) => return (messages, End::Incomplete),
            Err(()) => return (messages, End::BadBody(at)),
        };
        at += length;
        messages.push(Message { method: sent.method, target: sent.target, body });
        if request.after == After::Close {
            return (messages, End::Last);
        }
    }
}

async fn theirs(input: &[u8]) -> Vec<Message> {
    let (mut caller, server) = tokio::io::duplex(PIPE_BYTES);
    caller.write_all(input).await.expect("there is room");
    caller.shutdown().await.expect("it is open");
    let heard = RefCell::new(Vec::new());
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        let heard = &heard;
        async move {
            let method = request.method().to_string();
            let target = request.uri().path_and_query().map(ToString::to_string);
            if let Ok(body) = request.into_body().collect().await {
                let (target, body) = (target.unwrap_or_default(), body.to_bytes().to_vec());
                heard.borrow_mut().push(Message { method, target, body });
            }
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.half_close(true).max_headers(HEADERS_MAX);
    // Its complaints about what follows are of no interest.
    let _ended = builder.serve_connection(TokioIo::new(server), service).await.is_ok();
    heard.into_inner()
}

fn is_same(ours: &Message, theirs: &Message) -> bool {
    // As its URIs have it, an empty path is a slash.
    let target = ours.target == theirs.target || ours.target == format!("/{}", theirs.target);
    ours.method == theirs.method && ours.body == theirs.body && target
}

/// As RFC 3986 has it, without what many clients send all the same.
fn is_plain(target: &str) -> bool {
    let others = b"-._~!$&'()*+,;=:@/?%[]";
    target.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
}

/// The list: why hyper may accept what we do not.
fn excuse(end: &End, input: &[u8]) -> Option<&'static str> {
    match end {
        End::Incomplete | End::Last => None,
        End::BadBody(at) => {
            let body = &input[*at..];
            read_body(Framing::Chunked, body).is_none().then_some("chunks, read strictly").or_else(
                || long_line(body).then_some("extensions above 256 bytes, trailers above 8 KiB"),
            )
        }
        End::Refused(why, at) => refused(*why, &input[*at..]),
    }
}

fn refused(why: BadRequest, rest: &[u8]) -> Option<&'static str> {
    let head = Lines::of(rest);
    let codings = head.values("transfer-encoding");
    let lengths = head.values("content-length");
    let reason = match why {
        BadRequest::TooLarge => {
            let large = HEAD_BYTES_MAX <= rest.len() || HEADERS_MAX < head.fields.len();
            (large, "a head above 16 KiB, or of more than 128 fields")
        }
        BadRequest::Method => {
            let signs = |b: &u8| b.is_ascii_alphanumeric() || b"-_".contains(b);
            let odd = head.method == b"CONNECT" || !head.method.iter().all(signs);
            (odd, "CONNECT, or a method of other signs than letters, digits, - and _")
        }
        BadRequest::Host => {
            let one = matches!(head.values("host")[..], [value] if value.iter().all(|b| is_host_byte(*b)));
            let odd =
                !one || read_head(rest).is_none_or(|head| !is_address(head.values("host")[0]));
            (odd, "Host not once, or no host")
        }
        BadRequest::Framing => {
            let plain =
                |v: &&[u8]| !v.is_empty() && v.len() < 16 && v.iter().all(u8::is_ascii_digit);
            let odd = 1 < codings.len() + lengths.len()
                || !lengths.iter().all(plain)
                || (!codings.is_empty() && head.is_old);
            (odd, "framing fields twice, both, of HTTP/1.0, or no plain number")
        }
        BadRequest::Coding => {
            let odd = codings.iter().any(|value| !value.eq_ignore_ascii_case(b"chunked"));
            (odd, "other transfer codings than chunked")
        }
        BadRequest::Slow | BadRequest::Body => (false, "a head alone has no time and no body"),
        BadRequest::Malformed => (head.is_lax(), "LF alone, or a target of another form"),
    };
    reason.0.then_some(reason.1)
}

fn long_line(body: &[u8]) -> bool {
    let behind = body.windows(5).position(|w| w == b"\r\n0\r\n" || w.starts_with(b"0\r\n"));
    let trailers = behind.map_or(0, |at| body.len() - at);
    let mut lines = body.split(|byte| *byte == b'\n');
    8 * 1024 < trailers || lines.any(|line| 256 < line.len())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

/// Whether nothing about it is odd: letters, digits, dots and dashes, and perhaps a port; neither is empty.
fn is_address(host: &[u8]) -> bool {
    let mut parts = host.splitn(2, |byte| *byte == b':');
    let name = parts.next().unwrap_or_default();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-.".contains(b);
    let number = |port: &[u8]| (1..5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
    !name.is_empty() && name.iter().all(plain) && parts.next().is_none_or(number)
}

/// A head, read as laxly as anybody might.
struct Lines<'a> {
    method: &'a [u8],
    target: &'a [u8],
    is_old: bool,
    has_bare_lf: bool,
    fields: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Lines<'a> {
    fn of(rest: &'a [u8]) -> Self {
        let mut length = 0;
        let mut lines = Vec::new();
        for line in rest.split_inclusive(|byte| *byte == b'\n') {
            length += line.len();
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            match (text.is_empty(), lines.is_empty()) {
                (true, true) => {}
                (true, false) => break,
                (false, _) => lines.push(text),
            }
        }
        let head = &rest[..length];
        let bare = |(at, byte): (usize, &u8)| *byte == b'\n' && (at == 0 || head[at - 1] != b'\r');
        let has_bare_lf = head.iter().enumerate().any(bare);
        let mut lines = lines.into_iter();
        let mut parts = lines.next().unwrap_or_default().splitn(3, |byte| *byte == b' ');
        let mut part = || parts.next().unwrap_or_default();
        let (method, target, is_old) = (part(), part(), part() == b"HTTP/1.0");
        let field = |line: &'a [u8]| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        };
        Self { method, target, is_old, has_bare_lf, fields: lines.filter_map(field).collect() }
    }

    fn values(&self, name: &str) -> Vec<&'a [u8]> {
        let named = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| *value).collect()
    }

    fn is_lax(&self) -> bool {
        let mut schemes = [&b"http://"[..], b"https://"].into_iter();
        let rest = schemes.find_map(|scheme| self.target.strip_prefix(scheme));
        let absolute = rest.is_some_and(|rest| {
            let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
            end != 0 && is_address(&rest[..end])
        });
        let odd = |byte: &u8| matches!(byte, b'#' | 0x7f);
        let clean = self.target.first() == Some(&b'/') || absolute;
        self.has_bare_lf || !clean || self.target.iter().any(odd)
    }
}
