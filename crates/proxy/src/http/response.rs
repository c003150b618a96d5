//! Response heads: parsed strictly, written anew for the caller (PX-20, PX-22).

use std::mem::MaybeUninit;

use super::body::Framing;
use super::head::{
    After, HEAD_BYTES_MAX, HEADERS_MAX, Method, Request, Version, has_token, parse_length,
    write_field,
};
use super::treatment::Treatment;
use super::{replay, upgrade};
use crate::ending::Ending;

/// Switching Protocols.
const SWITCHING: u16 = 101;

/// The Machine's answer is no HTTP, or its framing is ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the Machine's response is malformed")]
pub(crate) struct BadResponse;

/// What we add to each response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signature<'a> {
    /// `Server: perch/VERSION` and `Via`, ready to write.
    pub(crate) fixed: &'a str,
    /// ULID and region.
    pub(crate) request_id: &'a str,
    /// Value of `Perch-Wake`, for a request that waited for a wake.
    pub(crate) wake: Option<&'a str>,
    /// Whether it must be the connection's last.
    pub(crate) ending: &'a Ending,
    /// What the port's options change.
    pub(crate) treatment: Option<&'a Treatment>,
}

/// A response as the exchange needs to know it; its head is written already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// The caller speaks HTTP/1.0: content goes out without its chunk framing.
    pub(crate) dechunk: bool,
    /// What to do with the caller's connection.
    pub(crate) caller_after: After,
    /// What to do with the Machine's connection.
    pub(crate) machine_after: After,
    /// Bytes of the head as it came.
    pub(crate) head_len: usize,
    /// It is not for the caller: the request is to be replayed (PX-40).
    pub(crate) replay: bool,
}

impl Response {
    /// 1xx: the response proper is still to come, unless it is [`Self::is_switch`].
    pub(crate) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }

    /// What follows is no HTTP.
    pub(crate) fn is_switch(&self) -> bool {
        self.status == SWITCHING
    }
}

/// Where the fields of one head are kept.
type Space<'b> = [MaybeUninit<httparse::Header<'b>>; HEADERS_MAX];
/// Nothing of it is written before it is used.
pub(crate) const SPACE: Space<'static> = [const { MaybeUninit::uninit() }; HEADERS_MAX];

/// A head as it came.
pub(crate) struct Parsed<'h, 'b> {
    /// Its bytes.
    pub(crate) len: usize,
    pub(crate) status: u16,
    /// Of HTTP/1.
    pub(crate) minor: u8,
    pub(crate) reason: &'b str,
    pub(crate) headers: &'h [httparse::Header<'b>],
}

impl<'h, 'b> Parsed<'h, 'b> {
    /// The one at the front of `input`; `None`: it is not complete yet.
    pub(crate) fn read(
        input: &'b [u8],
        space: &'h mut Space<'b>,
    ) -> Result<Option<Self>, BadResponse> {
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let len = match config.parse_response_with_uninit_headers(&mut parsed, input, space) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if input.len() < 4 * HEAD_BYTES_MAX => return Ok(None),
            Ok(httparse::Status::Partial) | Err(_) => return Err(BadResponse),
        };
        let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
            return Err(BadResponse);
        };
        let reason = parsed.reason.unwrap_or("");
        Ok(Some(Self { len, status, minor, reason, headers: parsed.headers }))
    }
}

/// Parses the head at the front of `input` and appends the head for the caller to `out`.
///
/// `None`: the head is not complete yet, and `out` is as it was.
pub(crate) fn rewrite(
    input: &[u8],
    request: &Request,
    signature: Signature<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<Response>, BadResponse> {
    let mut space = SPACE;
    let Some(parsed) = Parsed::read(input, &mut space)? else { return Ok(None) };
    let fields = Fields::collect(parsed.headers)?;
    let mut response = fields.response(parsed.status, parsed.minor, request, parsed.len)?;
    if signature.ending.has_begun() {
        response.caller_after = After::Close;
    }
    if response.replay {
        return Ok(Some(response));
    }
    write_status(out, parsed.status, parsed.reason);
    write_fields(parsed.headers, &fields, &response, out);
    if response.is_interim() {
        if response.is_switch() {
            write_switch(parsed.headers, signature, out);
        }
        out.extend_from_slice(b"\r\n");
    } else {
        write_signature(signature, out);
        write_connection(request, &response, out);
        if let Some(treatment) = signature.treatment {
            treatment.edit_lines(out);
        }
    }
    Ok(Some(response))
}

/// What must be known of all fields before one is passed on.
#[derive(Default)]
pub(crate) struct Fields {
    length: Option<u64>,
    chunked: bool,
    closes: bool,
    keeps: bool,
    connections: u32,
    replay: bool,
}

impl Fields {
    pub(crate) fn collect(headers: &[httparse::Header<'_>]) -> Result<Self, BadResponse> {
        let mut fields = Self::default();
        for header in headers {
            match Field::of(header.name) {
                Field::ContentLength => {
                    let length = parse_length(header.value).ok_or(BadResponse)?;
                    if fields.length.replace(length).is_some_and(|former| former != length) {
                        return Err(BadResponse);
                    }
                }
                Field::TransferEncoding => {
                    let chunked = header.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                    if fields.chunked || !chunked {
                        return Err(BadResponse);
                    }
                    fields.chunked = true;
                }
                Field::Connection => {
                    fields.connections += 1;
                    fields.closes |= has_token(header.value, "close");
                    fields.keeps |= has_token(header.value, "keep-alive");
                }
                Field::ContentType => fields.replay |= replay::is_json(header.value),
                Field::Replay => fields.replay = true,
                Field::HopByHop | Field::Ours | Field::Other => {}
            }
        }
        Ok(fields)
    }

    pub(crate) fn response(
        &self,
        status: u16,
        minor: u8,
        request: &Request,
        head_len: usize,
    ) -> Result<Response, BadResponse> {
        let unasked = status == SWITCHING && (!request.upgrade || minor == 0);
        if status < 100 || unasked || (self.chunked && self.length.is_some()) {
            return Err(BadResponse);
        }
        let framing = self.framing(status, request.method);
        let dechunk = framing == Framing::Chunked && request.version == Version::Http10;
        let doubtful = framing == Framing::None && self.may_have_body(request.method);
        // RFC 9112, 6.1: who sends chunks by HTTP/1.0 may mean another end of them.
        let machine_keeps = !self.closes && (minor == 1 || (self.keeps && !self.chunked));
        let caller_keeps = request.after == After::Keep && framing != Framing::Close && !dechunk;
        let after = |keep| if keep { After::Keep } else { After::Close };
        Ok(Response {
            status,
            framing,
            dechunk,
            caller_after: after(caller_keeps),
            machine_after: after(machine_keeps && framing != Framing::Close && !doubtful),
            head_len,
            replay: self.replay && 200 <= status,
        })
    }

    /// Whether a careless program sends a body behind an answer that has none. It would be taken for
    /// the next answer, so such a connection serves no other request.
    fn may_have_body(&self, method: Method) -> bool {
        method == Method::Head || self.chunked || self.length.is_some_and(|length| 0 < length)
    }

    fn framing(&self, status: u16, method: Method) -> Framing {
        if method == Method::Head || status < 200 || status == 204 || status == 304 {
            return Framing::None;
        }
        match self.length {
            _ if self.chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        }
    }
}

/// What we do with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    ContentLength,
    TransferEncoding,
    Connection,
    HopByHop,
    ContentType,
    Replay,
    /// Replaced by ours (PX-20).
    Ours,
    Other,
}

impl Field {
    pub(crate) fn of(name: &str) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            6 if is("server") => Self::Ours,
            7 if is("upgrade") => Self::HopByHop,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::HopByHop,
            10 if is("fly-replay") => Self::Replay,
            12 if is("content-type") => Self::ContentType,
            10 if is("perch-wake") => Self::Ours,
            14 if is("content-length") => Self::ContentLength,
            14 if is("fly-request-id") => Self::Ours,
            16 if is("proxy-connection") => Self::HopByHop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            _ => Self::Other,
        }
    }
}

fn write_status(out: &mut Vec<u8>, status: u16, reason: &str) {
    out.extend_from_slice(b"HTTP/1.1 ");
    for digit in [status / 100, status / 10 % 10, status % 10] {
        // A parsed status has three digits.
        out.push(b'0' + u8::try_from(digit).unwrap_or(0));
    }
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_fields(
    headers: &[httparse::Header<'_>],
    fields: &Fields,
    response: &Response,
    out: &mut Vec<u8>,
) {
    let connection = |h: &&httparse::Header<'_>| Field::of(h.name) == Field::Connection;
    let named = |name: &str| {
        fields.connections != 0
            && headers.iter().filter(connection).any(|h| has_token(h.value, name))
    };
    // RFC 9110, 8.6.
    let mut length = !response.is_interim() && response.status != 204;
    for header in headers {
        let pass = match Field::of(header.name) {
            // Where it is there twice, they are equal.
            Field::ContentLength => std::mem::replace(&mut length, false),
            Field::TransferEncoding => response.framing == Framing::Chunked && !response.dechunk,
            Field::Connection | Field::HopByHop | Field::Ours | Field::Replay => false,
            Field::ContentType | Field::Other => !named(header.name),
        };
        if pass {
            write_field(out, header.name, header.value);
        }
    }
}

pub(super) fn write_signature(signature: Signature<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(signature.fixed.as_bytes());
    write_field(out, "Fly-Request-Id", signature.request_id.as_bytes());
    if let Some(wake) = signature.wake {
        write_field(out, "Perch-Wake", wake.as_bytes());
    }
}

/// An answer after all, with the protocol that was taken.
#[cold]
fn write_switch(headers: &[httparse::Header<'_>], signature: Signature<'_>, out: &mut Vec<u8>) {
    let taken = headers.iter().filter(|h| h.name.eq_ignore_ascii_case("upgrade"));
    upgrade::write_protocols(taken.map(|h| h.value), out);
    write_signature(signature, out);
}

fn write_connection(request: &Request, response: &Response, out: &mut Vec<u8>) {
    let line: &[u8] = match (response.caller_after, request.version) {
        (After::Close, _) => b"Connection: close\r\n\r\n",
        (After::Keep, Version::Http10) => b"Connection: keep-alive\r\n\r\n",
        (After::Keep, Version::Http11) => b"\r\n",
    };
    out.extend_from_slice(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    static ENDING: Ending = Ending::new();

    const SIGNATURE: Signature<'_> = Signature {
        fixed: "Server: perch/1\r\nVia: 1.1 perch\r\n",
        request_id: "01ARZ-lcl",
        wake: None,
        ending: &ENDING,
        treatment: None,
    };

    fn request() -> Request {
        Request {
            version: Version::Http11,
            method: Method::Idempotent,
            framing: Framing::None,
            after: After::Keep,
            upgrade: false,
            aimed: false,
            head_len: 0,
        }
    }

    fn rewritten(input: &str, request: Request) -> (Response, String) {
        let mut out = Vec::new();
        let response = rewrite(input.as_bytes(), &request, SIGNATURE, &mut out)
            .expect("the response is good")
            .expect("the head is complete");
        (response, String::from_utf8(out).expect("heads of these tests are text"))
    }

    fn check_refused(input: &str) {
        let mut out = Vec::new();
        let answer = rewrite(input.as_bytes(), &request(), SIGNATURE, &mut out);
        assert_eq!(answer, Err(BadResponse), "{input:?}");
    }

    #[test]
    fn ambiguous_or_unasked_responses_are_refused() {
        check_refused("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n");
        check_refused("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n");
        check_refused("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n");
        check_refused("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n");
        check_refused("HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n");
        check_refused("SSH-2.0-OpenSSH_9.2\r\n");
    }

    #[test]
    fn the_platform_signs_a_response() {
        let input = "HTTP/1.1 200 OK\r\nServer: x\r\nKeep-Alive: timeout=5\r\n\
                     Connection: keep-alive\r\nContent-Length: 2\r\nA: b\r\n\r\nhi";
        let (response, head) = rewritten(input, request());
        assert_eq!(
            head,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\nServer: perch/1\r\nVia: 1.1 perch\r\n\
             Fly-Request-Id: 01ARZ-lcl\r\n\r\n"
        );
        assert_eq!(response.framing, Framing::Length(2));
        assert_eq!((response.caller_after, response.machine_after), (After::Keep, After::Keep));
        assert_eq!(response.head_len, input.len() - 2);
    }

    #[test]
    fn responses_without_a_body_end_with_their_head() {
        let head_request = Request { method: Method::Head, ..request() };
        let with_length = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
        let (response, head) = rewritten(with_length, head_request);
        assert_eq!(response.framing, Framing::None);
        assert!(head.contains("Content-Length: 9"), "{head}");
        for status in ["204 No Content", "304 Not Modified"] {
            let (response, _) = rewritten(&format!("HTTP/1.1 {status}\r\n\r\n"), request());
            assert_eq!((response.framing, response.caller_after), (Framing::None, After::Keep));
        }
    }

    #[test]
    fn a_length_where_none_may_be_is_dropped() {
        for status in ["204 No Content", "103 Early Hints"] {
            let input = format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\nA: b\r\n\r\n");
            let (response, head) = rewritten(&input, request());
            assert!(!head.contains("Content-Length") && head.contains("A: b"), "{head}");
            assert_eq!(response.framing, Framing::None);
        }
        let (_, head) = rewritten("HTTP/1.1 304 X\r\nContent-Length: 3\r\n\r\n", request());
        assert!(head.contains("Content-Length: 3\r\n"), "{head}");
    }

    #[test]
    fn after_an_answer_whose_body_may_still_come_the_machines_connection_is_closed() {
        let after = |status: &str, field: &str, request| {
            rewritten(&format!("HTTP/1.1 {status}\r\n{field}\r\n"), request).0.machine_after
        };
        let head_request = Request { method: Method::Head, ..request() };
        assert_eq!(after("200 OK", "Content-Length: 0\r\n", head_request), After::Close);
        for status in ["204 No Content", "304 Not Modified"] {
            assert_eq!(after(status, "Content-Length: 9\r\n", request()), After::Close);
            assert_eq!(after(status, "Transfer-Encoding: chunked\r\n", request()), After::Close);
            assert_eq!(after(status, "Content-Length: 0\r\n", request()), After::Keep);
            assert_eq!(after(status, "", request()), After::Keep);
        }
    }

    #[test]
    fn of_two_equal_lengths_the_caller_gets_one() {
        let twice = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n";
        let (response, head) = rewritten(twice, request());
        assert_eq!(response.framing, Framing::Length(5));
        assert_eq!(head.matches("Content-Length").count(), 1, "RFC 9110, 8.6: {head}");
    }

    #[test]
    fn after_chunks_by_http_1_0_the_machines_connection_is_closed() {
        let fields = "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n";
        for (version, after) in [("1.0", After::Close), ("1.1", After::Keep)] {
            let (response, _) = rewritten(&format!("HTTP/{version} 200 OK\r\n{fields}"), request());
            assert_eq!(response.machine_after, after, "RFC 9112, 6.1");
        }
    }

    #[test]
    fn each_connection_field_names_fields_that_end_here() {
        let input = "HTTP/1.1 204 X\r\nConnection: X-Hop\r\nX-Hop: 1\r\nConnection: X-Two\r\n\
                     X-Two: 2\r\nA: b\r\n\r\n";
        let (_, head) = rewritten(input, request());
        assert!(!head.contains("X-Hop") && !head.contains("X-Two"), "{head}");
    }

    #[test]
    fn a_body_without_an_end_ends_both_connections() {
        let (response, head) = rewritten("HTTP/1.1 200 OK\r\n\r\n", request());
        assert_eq!(response.framing, Framing::Close);
        assert_eq!((response.caller_after, response.machine_after), (After::Close, After::Close));
        assert!(head.contains("Connection: close\r\n"), "{head}");
        let old = "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n";
        let (response, _) = rewritten(old, request());
        assert_eq!((response.caller_after, response.machine_after), (After::Keep, After::Close));
    }

    #[test]
    fn old_clients_get_content_without_chunks() {
        let old = Request { version: Version::Http10, ..request() };
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (response, head) = rewritten(chunked, old);
        assert!(response.dechunk && !head.contains("chunked"), "{head}");
        assert_eq!((response.caller_after, response.machine_after), (After::Close, After::Keep));
        let (_, head) = rewritten("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", old);
        assert!(head.contains("Connection: keep-alive\r\n"), "{head}");
    }

    #[test]
    fn an_interim_response_is_passed_on_unsigned() {
        let (response, head) = rewritten("HTTP/1.1 100 Continue\r\n\r\n", request());
        assert!(response.is_interim());
        assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    }
}
