//! Answers that the proxy gives by itself.

use std::fmt::Write as _;

use super::head::{After, Method, Text, Version};
use super::response::{Signature, write_signature};

/// An answer of our own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply<'a> {
    pub(crate) status: u16,
    /// A sentence for people; it begins with the code of `fly-semantics` 3.7 where there is one.
    pub(crate) text: &'a str,
    /// Seconds, for `Retry-After`.
    pub(crate) retry_after: Option<u32>,
    pub(crate) location: Option<&'a str>,
}

impl<'a> Reply<'a> {
    pub(crate) fn new(status: u16, text: &'a str) -> Self {
        Self { status, text, retry_after: None, location: None }
    }

    /// Writes head and body.
    pub(crate) fn write(
        &self,
        version: Version,
        method: Method,
        after: After,
        signature: Signature<'_>,
        out: &mut Vec<u8>,
    ) {
        let mut text = Text(out);
        // Writing into a vector cannot fail.
        let _ok = write!(text, "HTTP/1.1 {} {}\r\n", self.status, reason(self.status)).is_ok();
        let _ok = write!(text, "Content-Length: {}\r\n", self.text.len() + 1).is_ok();
        if let Some(seconds) = self.retry_after {
            let _ok = write!(text, "Retry-After: {seconds}\r\n").is_ok();
        }
        if let Some(location) = self.location {
            let _ok = write!(text, "Location: {location}\r\n").is_ok();
        }
        out.extend_from_slice(b"Content-Type: text/plain; charset=utf-8\r\n");
        write_signature(signature, out);
        match (after, version) {
            (After::Close, _) => out.extend_from_slice(b"Connection: close\r\n"),
            (After::Keep, Version::Http10) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            (After::Keep, Version::Http11) => {}
        }
        out.extend_from_slice(b"\r\n");
        if method != Method::Head {
            out.extend_from_slice(self.text.as_bytes());
            out.push(b'\n');
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        301 => "Moved Permanently",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}
