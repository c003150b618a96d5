//! Answers: what a Machine says in HTTP/1.1, and what we say ourselves, as fields of HTTP/2.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::http::head::{HEADERS_MAX, Request, has_token};
use crate::http::reply::Reply;
use crate::http::response::{self, BadResponse, Field, Fields, Parsed};
use crate::http::treatment::Treatment;

/// What we add to each answer.
#[derive(Clone, Copy)]
pub(super) struct Signature<'a> {
    pub(super) fixed: &'a HeaderMap,
    pub(super) request_id: &'a str,
    pub(super) wake: Option<&'a str>,
    /// What the port's options change.
    pub(super) treatment: Option<&'a Treatment>,
}

impl Signature<'_> {
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        if let Some(treatment) = self.treatment {
            treatment.edit_fields(headers);
        }
        for (name, value) in self.fixed {
            headers.append(name, value.clone());
        }
        append(headers, "fly-request-id", self.request_id);
        if let Some(wake) = self.wake {
            append(headers, "perch-wake", wake);
        }
    }
}

fn append(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append(HeaderName::from_static(name), value);
    }
}

/// A Machine's head: what the exchange needs, and what the caller gets.
pub(super) type Head = (response::Response, Response<()>);

/// Parses the head at the front of `input`; `None`: it is not complete yet.
pub(super) fn parse(
    input: &[u8],
    request: &Request,
    signature: Signature<'_>,
) -> Result<Option<Head>, BadResponse> {
    let mut space = response::SPACE;
    let Some(parsed) = Parsed::read(input, &mut space)? else { return Ok(None) };
    let (status, fields) = (parsed.status, Fields::collect(parsed.headers)?);
    let facts = fields.response(status, parsed.minor, request, parsed.len)?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| BadResponse)?;
    let headers = response.headers_mut();
    headers.reserve(parsed.headers.len() + 4);
    let connection = |h: &&httparse::Header<'_>| Field::of(h.name) == Field::Connection;
    let named =
        |name: &str| parsed.headers.iter().filter(connection).any(|h| has_token(h.value, name));
    let no_length = facts.is_interim() || status == 204;
    for header in parsed.headers.iter() {
        let pass = match Field::of(header.name) {
            // Twice the same is allowed there, and not here.
            Field::ContentLength => !no_length && !headers.contains_key(CONTENT_LENGTH),
            Field::ContentType | Field::Other => !named(header.name),
            Field::TransferEncoding | Field::Connection | Field::HopByHop => false,
            Field::Replay | Field::Ours => false,
        };
        if pass {
            append_field(headers, header)?;
        }
    }
    if !facts.is_interim() {
        signature.write(headers);
    }
    Ok(Some((facts, response)))
}

fn append_field(headers: &mut HeaderMap, field: &httparse::Header<'_>) -> Result<(), BadResponse> {
    let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadResponse)?;
    let value = HeaderValue::from_bytes(field.value).map_err(|_| BadResponse)?;
    headers.append(name, value);
    Ok(())
}

/// The fields behind a chunked body, from their first byte to the empty line.
pub(super) fn trailers(lines: &[u8]) -> Result<HeaderMap, BadResponse> {
    let mut space = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let fields = match httparse::parse_headers(lines, &mut space) {
        Ok(httparse::Status::Complete((_, fields))) => fields,
        Ok(httparse::Status::Partial) | Err(_) => return Err(BadResponse),
    };
    let mut headers = HeaderMap::new();
    for field in fields.iter().filter(|field| may_trail(field.name)) {
        append_field(&mut headers, field)?;
    }
    Ok(headers)
}

/// What frames, routes or signs a message says that at its front or not at all (RFC 9110, 6.5.1).
pub(super) fn may_trail(name: &str) -> bool {
    let of_request = ["host", "te", "trailer", "expect", "authorization", "cookie"];
    Field::of(name) == Field::Other
        && !of_request.iter().any(|other| name.eq_ignore_ascii_case(other))
        && !name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("fly-"))
}

/// An answer of our own; its text is the body.
pub(super) fn own(reply: &Reply<'_>, signature: Signature<'_>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, (reply.text.len() + 1).into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some(seconds) = reply.retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(location) = reply.location.and_then(|l| HeaderValue::from_str(l).ok()) {
        headers.insert(LOCATION, location);
    }
    signature.write(headers);
    response
}
