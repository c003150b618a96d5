//! Request heads: from fields of HTTP/2 to lines, which the parser of HTTP/1.1 then judges as it judges everybody's.
//!
//! What goes into a line passes [`Lines`], which refuses whatever could end or split one. `h2` has refused most of it
//! before, with a reset of the stream.

use http::header::{CONTENT_LENGTH, COOKIE, HOST, TE};
use http::request::Parts;
use http::{HeaderMap, Version};

use crate::http::body::is_token_byte;
use crate::http::head::{self, BadRequest, Forwarded, Request};

/// A request as the Machine gets it.
pub(super) struct Head {
    pub(super) request: Request,
    /// Lines, with the empty one.
    pub(super) text: Vec<u8>,
    /// The caller understands trailers (gRPC wants to hear that).
    pub(super) trailers: bool,
}

/// Writes the head for the Machine, as of now. `ended`: the request has no body.
pub(super) fn write(
    parts: &Parts,
    ended: bool,
    forwarded: &Forwarded,
    unix_secs: u64,
) -> Result<Head, BadRequest> {
    let lines = lines(parts, ended)?;
    let mut text = Vec::with_capacity(lines.len() + 512);
    let request = head::rewrite(&lines, forwarded, unix_secs, &mut text)?;
    let request = request.ok_or(BadRequest::Malformed)?;
    if usize::from(request.head_len) != lines.len() {
        return Err(BadRequest::Malformed);
    }
    Ok(Head { request, text, trailers: parts.headers.contains_key(TE) })
}

/// The request as a client of HTTP/1.1 would have sent it.
fn lines(parts: &Parts, ended: bool) -> Result<Vec<u8>, BadRequest> {
    debug_assert_eq!(parts.version, Version::HTTP_2, "others have their own parser");
    let target = parts.uri.path_and_query().ok_or(BadRequest::Method)?;
    let mut lines = Lines::begin(parts.method.as_str(), target.as_str())?;
    let headers = &parts.headers;
    let authority = parts.uri.authority();
    if let Some(authority) = authority {
        // RFC 9113, 8.3.1: who names two hosts wants to be two requests.
        let same = |host: &http::HeaderValue| {
            host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
        };
        if !headers.get_all(HOST).iter().all(same) {
            return Err(BadRequest::Host);
        }
        lines.field("host", authority.as_str().as_bytes())?;
    }
    for (name, value) in headers {
        let written = (*name == HOST && authority.is_some()) || *name == COOKIE || *name == TE;
        if !written {
            lines.field(name.as_str(), value.as_bytes())?;
        }
    }
    cookies(headers, &mut lines)?;
    match headers.get(CONTENT_LENGTH) {
        Some(length) if ended && length.as_bytes() != b"0" => return Err(BadRequest::Framing),
        None if !ended => lines.0.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Some(_) | None => {}
    }
    Ok(lines.end())
}

/// Crumbs become one field again (RFC 9113, 8.2.3).
fn cookies(headers: &HeaderMap, lines: &mut Lines) -> Result<(), BadRequest> {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(|v| v.as_bytes()).collect();
    if crumbs.is_empty() { Ok(()) } else { lines.field("cookie", &crumbs.join(&b"; "[..])) }
}

/// A head that is written line by line, and cannot be split by what is written.
struct Lines(Vec<u8>);

impl Lines {
    fn begin(method: &str, target: &str) -> Result<Self, BadRequest> {
        let whole = |text: &str| !text.is_empty() && !text.bytes().any(|b| b <= b' ' || b == 0x7f);
        if !whole(method) || !whole(target) {
            return Err(BadRequest::Malformed);
        }
        let mut lines = Vec::with_capacity(512);
        for part in [method, " ", target, " HTTP/1.1\r\n"] {
            lines.extend_from_slice(part.as_bytes());
        }
        Ok(Self(lines))
    }

    fn field(&mut self, name: &str, value: &[u8]) -> Result<(), BadRequest> {
        let name_byte = |byte: u8| is_token_byte(byte) && !byte.is_ascii_uppercase();
        let value_byte = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        // RFC 9113, 8.2.1 and 8.2.2.
        let bad = name.is_empty()
            || !name.bytes().all(name_byte)
            || !value.iter().all(value_byte)
            || blank(value.first())
            || blank(value.last())
            || is_of_connection(name);
        if bad {
            return Err(BadRequest::Malformed);
        }
        head::write_field(&mut self.0, name, value);
        Ok(())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

fn is_of_connection(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(name: &str, value: &[u8]) {
        let mut lines = Lines::begin("GET", "/").expect("it is one");
        assert_eq!(lines.field(name, value), Err(BadRequest::Malformed), "{name}: {value:?}");
    }

    #[test]
    fn nothing_that_could_split_a_head_becomes_a_line() {
        for value in ["a\rb", "a\nb", "a\r\nb: c", "a\0b", " a", "a\t", "\u{7f}"] {
            check_refused("x", value.as_bytes());
        }
        for name in ["", "X", "a b", "a:b", "a\r\n", "a\0", "connection", "transfer-encoding"] {
            check_refused(name, b"v");
        }
        for (method, target) in [("GET /", "/"), ("GET", "/ x"), ("GET", "/\r\n"), ("", "/")] {
            assert!(Lines::begin(method, target).is_err(), "{method} {target}");
        }
    }

    #[test]
    fn crumbs_of_cookies_become_one_field() {
        let request = http::Request::get("http://a.test/p?q").version(Version::HTTP_2);
        let request = request.header("cookie", "a=1").header("cookie", "b=2").body(());
        let (parts, ()) = request.expect("it is one").into_parts();
        let text = String::from_utf8(lines(&parts, true).expect("it is good")).expect("text");
        assert_eq!(text, "GET /p?q HTTP/1.1\r\nhost: a.test\r\ncookie: a=1; b=2\r\n\r\n");
    }

    #[test]
    fn two_hosts_are_refused_and_one_named_twice_is_not() {
        let of = |host: &str| {
            let request = http::Request::get("http://a.test/").version(Version::HTTP_2);
            let (parts, ()) =
                request.header("host", host).body(()).expect("it is one").into_parts();
            lines(&parts, true).map(drop)
        };
        assert_eq!(of("b.test"), Err(BadRequest::Host));
        assert_eq!(of("A.test"), Ok(()));
    }
}
