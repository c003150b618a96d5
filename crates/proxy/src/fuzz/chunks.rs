//! Chunked bodies: one reading however they come, and the same as the strict reader's.

use super::reference::read_body;
use super::{follow, shown};
use crate::http::body::Framing;

/// The first byte says how long pieces are.
pub(super) fn split(input: &[u8]) {
    let Some((length, body)) = input.split_first() else { return };
    let at_once = follow(Framing::Chunked, [body]);
    let length = usize::from(*length).max(1);
    let in_pieces = follow(Framing::Chunked, body.chunks(length));
    assert_eq!(in_pieces, at_once, "pieces of {length}: {}", shown(body));
    let bytewise = follow(Framing::Chunked, body.chunks(1));
    assert_eq!(bytewise, at_once, "byte by byte: {}", shown(body));
    if let Ok(Some(read)) = at_once {
        assert_eq!(read_body(Framing::Chunked, body), Some(read), "{}", shown(body));
    }
}
