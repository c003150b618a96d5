//! Request heads: parsed strictly, written anew for the Machine (PX-01..PX-08).

use std::mem::MaybeUninit;
use std::rc::Rc;

use super::body::Framing;
use super::upgrade;
use crate::Endpoints;
use crate::identity::{Consent, Stamp};

/// Longest head accepted; the same as Node's and HAProxy's default.
pub(crate) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header fields accepted in one message.
pub(crate) const HEADERS_MAX: usize = 128;

/// Why a request is refused before anybody sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("malformed request head")]
    Malformed,
    #[error("request head is too large")]
    TooLarge,
    /// Its beginning has come, and its end not in time.
    #[error("request head takes too long")]
    Slow,
    #[error("a request needs exactly one valid Host")]
    Host,
    #[error("ambiguous message framing")]
    Framing,
    #[error("unknown transfer coding")]
    Coding,
    /// In what came with the head.
    #[error("malformed request body")]
    Body,
    #[error("method not supported")]
    Method,
}

impl BadRequest {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::Host | Self::Framing | Self::Body => 400,
            Self::Slow => 408,
            Self::TooLarge => 431,
            Self::Coding | Self::Method => 501,
        }
    }
}

/// Version of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http10,
    Http11,
}

/// What happens to a connection after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Keep,
    Close,
}

/// What of the method matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Head,
    /// May be sent a second time (RFC 9110, 9.2.2).
    Idempotent,
    Other,
}

/// A request as the exchange needs to know it; its head is written already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) version: Version,
    pub(crate) method: Method,
    pub(crate) framing: Framing,
    pub(crate) after: After,
    /// It offers other protocols, and the Machine hears of them.
    pub(crate) upgrade: bool,
    /// It says where it wants to go: the head has it (PX-30..33).
    pub(crate) aimed: bool,
    /// Bytes of the head as it came; at most [`HEAD_BYTES_MAX`], and every connection has one of these.
    pub(crate) head_len: u16,
}

/// The headers that are the same for all requests of a connection, ready to write: formatting two
/// addresses takes as long as everything else that is done with a head.
#[derive(Debug)]
pub(crate) struct Forwarded {
    text: Box<str>,
    /// Where `text` goes on with our part of `X-Forwarded-For`, behind the caller's.
    addresses_at: u16,
    /// Where `text` goes on with the port, which a caller may set.
    port_at: u16,
    consent: Consent,
    /// `None`: nothing is known of the caller.
    stamp: Option<Rc<Stamp>>,
}

impl Forwarded {
    pub(crate) fn new(endpoints: Endpoints, region: &str) -> Self {
        let (caller, dest) = (endpoints.caller.ip(), endpoints.dest.ip());
        let port = endpoints.dest.port();
        let mut text = format!(
            "Fly-Client-IP: {caller}\r\nFly-Forwarded-Port: {port}\r\nFly-Region: {region}\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-SSL: off\r\nVia: 1.1 perch\r\nX-Forwarded-For: "
        );
        let short = |length| u16::try_from(length).expect("these are a few hundred bytes");
        let addresses_at = short(text.len());
        text.push_str(&format!("{caller}, {dest}\r\n"));
        let port_at = short(text.len());
        text.push_str(&format!("X-Forwarded-Port: {port}\r\n"));
        Self { text: text.into(), addresses_at, port_at, consent: Consent::Asked, stamp: None }
    }

    /// With what is known of the caller.
    pub(crate) fn signed(self, signed: Option<(Rc<Stamp>, Consent)>) -> Self {
        let Some((stamp, consent)) = signed else { return self };
        Self { stamp: Some(stamp), consent, ..self }
    }

    /// Who names no host (HTTP/1.0) means the address that it called; programs refuse an empty one.
    #[cold]
    fn write_host(&self, out: &mut Vec<u8>) {
        let addresses = &self.text[usize::from(self.addresses_at)..usize::from(self.port_at)];
        let dest = addresses.split_once(", ").map_or("", |(_caller, dest)| dest.trim_end());
        let port = self.text[usize::from(self.port_at)..].split_once(": ");
        let port = port.map_or("", |(_name, port)| port.trim_end());
        let dest = if dest.contains(':') { format!("[{dest}]") } else { dest.to_owned() };
        let host = if port == "80" { dest } else { format!("{dest}:{port}") };
        write_field(out, "Host", host.as_bytes());
    }

    /// What is said of the caller in a message that has waited is said as of now.
    pub(crate) fn renew(&self, message: &mut [u8]) {
        if let Some(stamp) = &self.stamp {
            stamp.renew(message);
        }
    }
}

/// Parses the head at the front of `input` and appends the head for the Machine to `out`. `unix_secs` is now.
///
/// `None`: the head is not complete yet, and `out` is as it was.
pub(crate) fn rewrite(
    input: &[u8],
    forwarded: &Forwarded,
    unix_secs: u64,
    out: &mut Vec<u8>,
) -> Result<Option<Request>, BadRequest> {
    let mut space = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let head_len = match parsed.parse_with_uninit_headers(input, &mut space) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(BadRequest::TooLarge),
        Err(_) => return Err(BadRequest::Malformed),
    };
    if has_bare_lf(&input[..head_len]) {
        return Err(BadRequest::Malformed);
    }
    let (Some(method), Some(path), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(BadRequest::Malformed);
    };
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let fields = Fields::collect(parsed.headers, version)?;
    let target = Target::parse(method, path)?;
    write_head(method, &target, parsed.headers, &fields, (forwarded, unix_secs), out);
    let (framing, after) = (fields.framing, fields.after(version));
    let (method, upgrade, aimed) = (method_of(method), fields.upgrades(), fields.aimed);
    let head_len = u16::try_from(head_len).map_err(|_| BadRequest::TooLarge)?;
    Ok(Some(Request { version, method, framing, after, upgrade, aimed, head_len }))
}

/// Whether somebody else than the caller may put this field into its request, or take it out.
pub(super) fn may_replace(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let known = !name.is_empty() && name.len() <= 256 && name.bytes().all(token);
    known && matches!(Field::of(name), Field::Host | Field::Aim | Field::Other)
}

/// Whether this may be the target of a request.
pub(super) fn valid_target(path: &str) -> bool {
    path.len() <= HEAD_BYTES_MAX / 2 && path.bytes().all(is_target_byte)
}

/// Whether this may be the value of Host.
pub(super) fn valid_host(value: &str) -> bool {
    is_host(value.as_bytes())
}

/// Lines end in CR LF; `httparse` takes LF alone too, and others may not.
fn has_bare_lf(head: &[u8]) -> bool {
    let first = head.first() == Some(&b'\n');
    // Without an early end this is a few vector instructions.
    head.windows(2).fold(first, |found, w| found | ((w[0] != b'\r') & (w[1] == b'\n')))
}

fn method_of(method: &str) -> Method {
    match method {
        "HEAD" => Method::Head,
        "GET" | "OPTIONS" | "TRACE" | "PUT" | "DELETE" => Method::Idempotent,
        _ => Method::Other,
    }
}

/// The request target, in origin form.
struct Target<'a> {
    path: &'a str,
    /// From an absolute target; wins over the Host field (RFC 9112, 3.2.2).
    authority: Option<&'a str>,
}

impl<'a> Target<'a> {
    fn parse(method: &str, target: &'a str) -> Result<Self, BadRequest> {
        if method == "CONNECT" || !method.bytes().all(is_method_byte) {
            return Err(BadRequest::Method);
        }
        if !target.bytes().all(is_target_byte) {
            return Err(BadRequest::Malformed);
        }
        if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
            return Ok(Self { path: target, authority: None });
        }
        let Some((scheme, rest)) = target.split_once("://") else {
            return Err(BadRequest::Malformed);
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let known = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        if !known || !is_host(authority.as_bytes()) || authority.is_empty() {
            return Err(BadRequest::Malformed);
        }
        Ok(Self { path, authority: Some(authority) })
    }
}

/// What must be known of all fields before one is written.
struct Fields<'a> {
    framing: Framing,
    host: Option<&'a [u8]>,
    hosts: u32,
    closes: bool,
    keeps: bool,
    forwarded_port: bool,
    connection: Option<&'a [u8]>,
    connections: u32,
    /// A Connection field names an upgrade.
    names_upgrade: bool,
    /// An Upgrade field offers something that we pass on.
    offers: bool,
    aimed: bool,
    /// Wants `Fly-Src` at a public address too (FC-43).
    opts_in: bool,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>], version: Version) -> Result<Self, BadRequest> {
        let mut fields = Self {
            framing: Framing::None,
            host: None,
            hosts: 0,
            closes: false,
            keeps: false,
            forwarded_port: false,
            connection: None,
            connections: 0,
            names_upgrade: false,
            offers: false,
            aimed: false,
            opts_in: false,
        };
        let mut framing = RequestFraming::default();
        for header in headers {
            fields.note(header, &mut framing)?;
        }
        fields.framing = framing.decide(version)?;
        // A client of HTTP/1.0 offers in vain (RFC 9110, 7.8).
        fields.offers &= version == Version::Http11;
        fields.check(version)?;
        Ok(fields)
    }

    fn note(
        &mut self,
        header: &httparse::Header<'a>,
        framing: &mut RequestFraming,
    ) -> Result<(), BadRequest> {
        match Field::of(header.name) {
            Field::Host => {
                self.hosts += 1;
                self.host = Some(header.value);
            }
            Field::ContentLength => framing.length(header.value)?,
            Field::TransferEncoding => framing.coding(header.value)?,
            Field::Connection => {
                self.connections += 1;
                self.connection = Some(header.value);
                self.closes |= has_token(header.value, "close");
                self.keeps |= has_token(header.value, "keep-alive");
                self.names_upgrade |= has_token(header.value, "upgrade");
            }
            Field::Upgrade => self.offers |= upgrade::protocols(header.value).next().is_some(),
            Field::ForwardedPort => self.forwarded_port = true,
            Field::Aim => self.aimed = true,
            Field::OptIn => self.opts_in |= header.value.trim_ascii() == b"*",
            Field::ForwardedFor | Field::HopByHop | Field::Ours | Field::Other => {}
        }
        Ok(())
    }

    fn check(&self, version: Version) -> Result<(), BadRequest> {
        let host_count_ok = self.hosts == 1 || (self.hosts == 0 && version == Version::Http10);
        if !host_count_ok || !self.host.is_none_or(is_host) {
            return Err(BadRequest::Host);
        }
        Ok(())
    }

    /// Not taking an offer is a valid answer; a Machine hears of it only as the RFC wants it.
    fn upgrades(&self) -> bool {
        self.names_upgrade && self.offers
    }

    fn after(&self, version: Version) -> After {
        let keep = match version {
            Version::Http10 => self.keeps && !self.closes,
            Version::Http11 => !self.closes,
        };
        if keep { After::Keep } else { After::Close }
    }

    /// Whether a Connection field names this one as hop-by-hop.
    fn names(&self, headers: &[httparse::Header<'_>], name: &str) -> bool {
        match self.connections {
            0 => false,
            1 => self.connection.is_some_and(|value| has_token(value, name)),
            _ => headers
                .iter()
                .filter(|h| Field::of(h.name) == Field::Connection)
                .any(|h| has_token(h.value, name)),
        }
    }
}

/// Collects what the framing fields say, and refuses what is not clear (RFC 9112, 6.3).
#[derive(Default)]
struct RequestFraming {
    length: Option<u64>,
    chunked: bool,
}

impl RequestFraming {
    fn length(&mut self, value: &[u8]) -> Result<(), BadRequest> {
        let length = parse_length(value).ok_or(BadRequest::Framing)?;
        if self.length.replace(length).is_some() {
            return Err(BadRequest::Framing);
        }
        Ok(())
    }

    fn coding(&mut self, value: &[u8]) -> Result<(), BadRequest> {
        if self.chunked {
            return Err(BadRequest::Framing);
        }
        if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(BadRequest::Coding);
        }
        self.chunked = true;
        Ok(())
    }

    fn decide(self, version: Version) -> Result<Framing, BadRequest> {
        match (self.chunked, self.length, version) {
            (false, None, _) => Ok(Framing::None),
            (false, Some(length), _) => Ok(Framing::Length(length)),
            (true, None, Version::Http11) => Ok(Framing::Chunked),
            (true, ..) => Err(BadRequest::Framing),
        }
    }
}

/// Digits only: no sign, no list, nothing that overflows.
pub(crate) fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() || 18 < digits.len() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Whether a comma list holds this token.
pub(crate) fn has_token(value: &[u8], token: &str) -> bool {
    value
        .split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Of all registered methods, and no more: not every parser takes every token.
fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// What ends a target, or never belongs in one. Clients send much else that should have been encoded
/// (curl passes on what was typed); there is only one way to read it, so it passes as it came.
fn is_target_byte(byte: u8) -> bool {
    !matches!(byte, 0..=b' ' | b'#' | 0x7f)
}

/// A host and port as they may appear in a Host field; empty is allowed by the RFC.
fn is_host(value: &[u8]) -> bool {
    let (name_ok, port) = match value.strip_prefix(b"[") {
        Some(rest) => {
            let end = rest.iter().position(|byte| *byte == b']').unwrap_or(rest.len());
            let ip = std::str::from_utf8(&rest[..end]).ok();
            let is_ip = ip.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
            (is_ip && end < rest.len(), rest.get(end + 1..).unwrap_or_default())
        }
        None => {
            let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
            let (name, port) = value.split_at(end);
            (name.iter().all(|b| is_name_byte(*b)) && (!name.is_empty() || port.is_empty()), port)
        }
    };
    name_ok && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

fn is_port(text: &[u8]) -> bool {
    std::str::from_utf8(text)
        .is_ok_and(|text| !text.starts_with('+') && text.parse::<u16>().is_ok())
}

/// What we do with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    ForwardedFor,
    ForwardedPort,
    HopByHop,
    /// Says where the request wants to go, and is passed on (PX-36).
    Aim,
    /// The caller wants to be known (PX-35); passed on.
    OptIn,
    /// Set by us alone; what a client sends is dropped (PX-02, FC-44).
    Ours,
    Other,
}

impl Field {
    /// CGI and its heirs (WSGI, PHP) read `Fly_Client_IP` as `Fly-Client-IP`: what they would take for
    /// ours or for framing is dropped.
    fn of(name: &str) -> Self {
        let field = Self::exactly(name);
        // The lengths of the names below; nearly all fields have another one.
        let suspect = field == Self::Other && matches!(name.len(), 7 | 10 | 13..=18 | 21..=23 | 34);
        if !suspect || !name.contains('_') || Self::exactly(&name.replace('_', "-")) == Self::Other
        {
            return field;
        }
        Self::Ours
    }

    fn exactly(name: &str) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => Self::HopByHop,
            4 if is("host") => Self::Host,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("fly-src") => Self::Ours,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::HopByHop,
            10 if is("fly-region") || is("perch-wake") => Self::Ours,
            13 if is("fly-client-ip") => Self::Ours,
            13 if is("fly-src-optin") => Self::OptIn,
            14 if is("content-length") => Self::ContentLength,
            14 if is("fly-request-id") || is("fly-replay-src") => Self::Ours,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            15 if is("x-forwarded-ssl") => Self::Ours,
            16 if is("x-forwarded-port") => Self::ForwardedPort,
            16 if is("proxy-connection") => Self::HopByHop,
            16 if is("fly-force-region") => Self::Aim,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("fly-prefer-region") => Self::Aim,
            17 if is("x-forwarded-proto") || is("fly-src-signature") => Self::Ours,
            17 if is("fly-replay-failed") => Self::Ours,
            18 if is("fly-forwarded-port") => Self::Ours,
            21 if is("fly-force-instance-id") => Self::Aim,
            22 if is("fly-prefer-instance-id") => Self::Aim,
            23 if is("fly-replay-cache-status") => Self::Ours,
            34 if is("fly-preferred-instance-unavailable") => Self::Ours,
            _ => Self::Other,
        }
    }
}

fn write_head(
    method: &str,
    target: &Target<'_>,
    headers: &[httparse::Header<'_>],
    fields: &Fields<'_>,
    (forwarded, unix_secs): (&Forwarded, u64),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    if !target.path.starts_with('/') && target.authority.is_some() {
        out.push(b'/');
    }
    out.extend_from_slice(target.path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = target.authority {
        write_field(out, "Host", authority.as_bytes());
    }
    for header in headers {
        let pass = match Field::of(header.name) {
            Field::Host => target.authority.is_none(),
            Field::ContentLength
            | Field::ForwardedPort
            | Field::Aim
            | Field::OptIn
            | Field::Other => true,
            Field::TransferEncoding
            | Field::Connection
            | Field::Upgrade
            | Field::ForwardedFor
            | Field::HopByHop
            | Field::Ours => false,
        };
        if pass && (is_end_to_end(header.name) || !fields.names(headers, header.name)) {
            write_field(out, header.name, header.value);
        }
    }
    if fields.hosts == 0 && target.authority.is_none() {
        forwarded.write_host(out);
    }
    if fields.framing == Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if fields.upgrades() {
        let offers = headers.iter().filter(|h| Field::of(h.name) == Field::Upgrade);
        upgrade::write_protocols(offers.map(|h| h.value), out);
    }
    if let Some(stamp) = &forwarded.stamp
        && (forwarded.consent == Consent::Given || fields.opts_in)
    {
        stamp.write(unix_secs, out);
    }
    write_forwarded(headers, fields, forwarded, out);
    out.extend_from_slice(b"\r\n");
}

/// Fields that a Connection field cannot take away from the Machine.
fn is_end_to_end(name: &str) -> bool {
    matches!(Field::of(name), Field::Host | Field::ContentLength)
}

fn write_forwarded(
    headers: &[httparse::Header<'_>],
    fields: &Fields<'_>,
    forwarded: &Forwarded,
    out: &mut Vec<u8>,
) {
    let text = forwarded.text.as_bytes();
    out.extend_from_slice(&text[..usize::from(forwarded.addresses_at)]);
    for header in headers.iter().filter(|h| Field::of(h.name) == Field::ForwardedFor) {
        out.extend_from_slice(header.value);
        out.extend_from_slice(b", ");
    }
    let end = if fields.forwarded_port { forwarded.port_at.into() } else { text.len() };
    out.extend_from_slice(&text[usize::from(forwarded.addresses_at)..end]);
}

pub(crate) fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Formats into bytes without a string between.
pub(crate) struct Text<'a>(pub(crate) &'a mut Vec<u8>);

impl std::fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
