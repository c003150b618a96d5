//! HTTP/2 by prior knowledge (PX-81): a connection at an `http` port whose first bytes are the preface.
//!
//! The crate `h2` does frames, HPACK, flow control and the limits that hostile callers meet; what a request is, is decided
//! where HTTP/1.1 decides it. Each stream is a task and a request of its own: its head is written as a head of HTTP/1.1
//! and goes through the same strict parser as everybody's, so both versions find the same app, carry the same fields and
//! are refused for the same reasons.
//!
//! ```text
//!  connection ─ accepts streams ─┬─ stream: head ─► a place ─► Machine, HTTP/1.1 or 2 ─► answer, trailers
//!             ─ idle: GOAWAY     ├─ stream …
//!             ─ the end: GOAWAY  └─ stream reset: its place and its connection to the Machine are given back
//! ```
//!
//! Streams in flight are load until they end, also silent ones; a connection without streams is none.

mod answer;
mod backend;
mod body;
mod compressed;
mod connection;
mod exchange;
mod head;
mod relay;
mod spoken;
mod stream;

pub(crate) use backend::{Backend, Backends, Shelf};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use connection::limits;
pub(crate) use connection::{Opening, begins, serve};
pub(crate) use exchange::Broken as Refusal;
pub(crate) use spoken::{Unspoken, speak};

/// The head for the Machine of such a request.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn write_head(
    parts: &http::request::Parts,
    ended: bool,
    forwarded: &crate::http::head::Forwarded,
) -> Result<Vec<u8>, crate::http::head::BadRequest> {
    head::write(parts, ended, forwarded, 0).map(|head| head.text)
}
