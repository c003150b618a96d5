//! Frames of WebSockets: one reading however they come, and the same as that of who has all of them and a plain loop.

use perch_core::heartbeat::Side;
use perch_core::websocket::{Frames, Front, PING_BYTES_MAX};

use super::shown;

/// What was seen of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Where the last whole frame ends.
    whole: usize,
    only_pings: bool,
    is_between: bool,
    is_closed: bool,
}

/// The first byte says whose frames they are, and how long pieces are.
pub(super) fn follow(input: &[u8]) {
    let Some((how, bytes)) = input.split_first() else { return };
    let side = if how & 1 == 0 { Side::Caller } else { Side::Machine };
    let at_once = pass(side, [bytes]);
    assert_eq!(at_once, plain(side, bytes), "{side:?}: {}", shown(bytes));
    let length = usize::from(how >> 1).max(1);
    assert_eq!(pass(side, bytes.chunks(length)), at_once, "pieces of {length}: {}", shown(bytes));
    assert_eq!(pass(side, bytes.chunks(1)), at_once, "byte by byte: {}", shown(bytes));
    look_at_front(bytes);
}

fn pass<'a>(side: Side, pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let (mut frames, mut at) = (Frames::of(side), 0);
    let (mut whole, mut only_pings) = (0, true);
    for piece in pieces {
        let passed = frames.pass(piece);
        if passed.whole != 0 {
            whole = at + passed.whole;
        }
        only_pings &= passed.only_pings;
        at += piece.len();
    }
    Seen { whole, only_pings, is_between: frames.is_between(), is_closed: frames.is_closed() }
}

/// The same as RFC 6455, 5.2 says it.
fn plain(side: Side, bytes: &[u8]) -> Seen {
    let mut seen = Seen { whole: 0, only_pings: true, is_between: false, is_closed: false };
    loop {
        let rest = &bytes[seen.whole..];
        let Some(first) = rest.first() else { return Seen { is_between: true, ..seen } };
        let opcode = first & 0x0f;
        seen.only_pings &= opcode == 9 || opcode == 10;
        match plain_frame(side, rest) {
            Frame::None => return Seen { only_pings: false, ..seen },
            Frame::Part => return seen,
            Frame::Whole(length) => seen.whole += length,
        }
        if opcode == 8 {
            return Seen { only_pings: false, is_closed: true, ..seen };
        }
    }
}

enum Frame {
    None,
    Part,
    /// Of so many bytes.
    Whole(usize),
}

fn plain_frame(side: Side, bytes: &[u8]) -> Frame {
    let is_control = match bytes[0] & 0x0f {
        0..=2 => false,
        8..=10 if bytes[0] & 0xf0 == 0x80 => true,
        _ => return Frame::None,
    };
    let Some(second) = bytes.get(1) else { return Frame::Part };
    let short = second & 0x7f;
    if (0x80 <= *second) != (side == Side::Caller) || (is_control && 125 < short) {
        return Frame::None;
    }
    let more = if short == 127 { 8 } else { 2 * usize::from(short == 126) };
    let head = 2 + more + if side == Side::Caller { 4 } else { 0 };
    if bytes.len() < head {
        return Frame::Part;
    }
    let mut long = [0; 8];
    long[8 - more..].copy_from_slice(&bytes[2..2 + more]);
    let length = if more == 0 { u64::from(short) } else { u64::from_be_bytes(long) };
    match usize::try_from(length) {
        _ if i64::MAX.cast_unsigned() < length => Frame::None,
        Ok(length) if length <= bytes.len() - head => Frame::Whole(head + length),
        Ok(_) | Err(_) => Frame::Part,
    }
}

/// What is taken for a ping or pong is the first whole frame, and its answer is one as well.
fn look_at_front(bytes: &[u8]) {
    let front = Front::of(bytes);
    let is_ping = |side, frame: &[u8]| {
        let seen = plain(side, frame);
        seen.whole == frame.len() && seen.only_pings && seen.is_between
    };
    let good = match &front {
        Front::Ping { len, pong } => {
            let masked = &bytes[6..*len];
            let content = masked.iter().zip(bytes[2..6].iter().cycle()).map(|(a, b)| a ^ b);
            bytes[0] == 0x89
                && is_ping(Side::Caller, &bytes[..*len])
                && is_ping(Side::Machine, pong)
                && pong[0] == 0x8a
                && content.eq(pong[2..].iter().copied())
        }
        Front::Pong { len } => bytes[0] == 0x8a && is_ping(Side::Caller, &bytes[..*len]),
        Front::Part => {
            let seen = plain(Side::Caller, bytes);
            seen.whole == 0 && seen.only_pings && bytes.len() < PING_BYTES_MAX
        }
        Front::Other => {
            let whole = bytes
                .first()
                .is_some_and(|_| matches!(plain_frame(Side::Caller, bytes), Frame::Whole(_)));
            !(whole && matches!(bytes[0] & 0x0f, 9 | 10))
        }
    };
    assert!(good, "{front:?}: {}", shown(bytes));
}
