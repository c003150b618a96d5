//! HTTP/1.1 towards callers and Machines.
//!
//! One connection is one task. Per message there is one read and one write: the head is parsed where
//! it was read, written anew into a second buffer with our headers, and what came of the body goes
//! out with it. Heads are never passed on as they came, so two parsers cannot disagree about them;
//! framing that is ambiguous is refused (400, and the connection ends).
//!
//! ```text
//!  read head ─► parse, rewrite ─► a place in a Machine ─► upstream connection ─► write head+body
//!      ▲            │ bad: 400        │ none: held            │ refused: again       │
//!      │            ▼                 ▼ too long: 503         ▼ too long: 503        ▼
//!      └── next ◄─────────────── response head ─► rewrite ─► write ─► rest of the bodies
//!                                    └ 101: bytes both ways, no HTTP any more
//! ```

pub(crate) mod body;
pub(crate) mod compress;
pub(crate) mod connection;
pub(crate) mod edit;
mod exchange;
pub(crate) mod head;
pub(crate) mod kept;
pub(crate) mod replay;
pub(crate) mod reply;
pub(crate) mod response;
pub(crate) mod silent;
pub(crate) mod treatment;
mod upgrade;
mod watch;
