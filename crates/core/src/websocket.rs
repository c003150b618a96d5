//! Frames of WebSockets (RFC 6455) as they pass by: where one ends, and whether there are only pings and pongs.
//!
//! Nothing is kept of them but the head of the frame that is under way. Extensions may use the reserved bits of data;
//! control frames are plain with all of them. What makes no sense is passed on like everything else, but from there on
//! nobody knows where a frame ends, and nothing is ever put between two.

use crate::heartbeat::Side;

/// A frame of control has so much content at most.
const CONTROL_BYTES_MAX: usize = 125;
/// The longest ping that a caller may send: head, mask and content.
pub const PING_BYTES_MAX: usize = 2 + 4 + CONTROL_BYTES_MAX;
/// The whole frame of a server that goes away (code 1001).
pub const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const MASKED: u8 = 0x80;
const HEAD_BYTES_MAX: usize = 14;

/// Follows one direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    side: Side,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of a head are there.
    Head { bytes: [u8; HEAD_BYTES_MAX], len: u8 },
    /// So many bytes of a frame's content are still to come.
    Content { opcode: u8, left: u64 },
    /// A close has passed: nothing may follow.
    Closed,
    /// This was no frame.
    Lost,
}

/// What some bytes were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// So many of them, from the first, end with a whole frame; 0: none ends in them.
    pub whole: usize,
    /// They are pings and pongs, or parts of them, and nothing else.
    pub only_pings: bool,
}

const BEGIN: State = State::Head { bytes: [0; HEAD_BYTES_MAX], len: 0 };

impl Frames {
    /// Those that this side will send; callers mask theirs, Machines do not.
    pub const fn of(side: Side) -> Self {
        Self { side, state: BEGIN }
    }

    /// Whether another frame may be put in here.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Head { len: 0, .. })
    }

    /// Whether a close has passed.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Takes what comes next.
    pub fn pass(&mut self, bytes: &[u8]) -> Passed {
        if matches!(self.state, State::Closed | State::Lost) {
            return Passed { whole: 0, only_pings: bytes.is_empty() };
        }
        let mut passed = Passed { whole: 0, only_pings: true };
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..], &mut passed.only_pings);
            if matches!(self.state, State::Head { len: 0, .. } | State::Closed) {
                passed.whole = at;
            }
            if matches!(self.state, State::Closed | State::Lost) {
                passed.only_pings = false;
                break;
            }
        }
        passed
    }

    /// How many bytes it has taken: at least one.
    fn step(&mut self, bytes: &[u8], only_pings: &mut bool) -> usize {
        match &mut self.state {
            State::Head { bytes: head, len } => {
                head[usize::from(*len)] = bytes[0];
                *len += 1;
                *only_pings &= matches!(head[0] & OPCODE, PING | PONG);
                let (head, len) = (*head, usize::from(*len));
                self.state = match parse(self.side, &head[..len]) {
                    Ok(None) => return 1,
                    Ok(Some((opcode, left))) => State::Content { opcode, left },
                    Err(NoFrame) => State::Lost,
                };
                self.end_content();
                1
            }
            State::Content { opcode, left } => {
                *only_pings &= matches!(*opcode, PING | PONG);
                let count = usize::try_from(*left).map_or(bytes.len(), |it| it.min(bytes.len()));
                *left -= count as u64;
                self.end_content();
                count
            }
            // What follows is not looked at.
            State::Closed | State::Lost => bytes.len(),
        }
    }

    fn end_content(&mut self) {
        if let State::Content { opcode, left: 0 } = self.state {
            self.state = if opcode == CLOSE { State::Closed } else { BEGIN };
        }
    }
}

/// These bytes begin no frame.
struct NoFrame;

/// Opcode and length of content behind this head; `None`: it is not whole.
fn parse(side: Side, head: &[u8]) -> Result<Option<(u8, u64)>, NoFrame> {
    let (first, rest) = head.split_first().ok_or(NoFrame)?;
    let opcode = first & OPCODE;
    let is_control = CLOSE <= opcode;
    let plain = first & FIN != 0 && first & RESERVED == 0;
    if !matches!(opcode, 0..=2 | CLOSE..=PONG) || (is_control && !plain) {
        return Err(NoFrame);
    }
    let Some(second) = rest.first() else { return Ok(None) };
    let (masked, short) = (second & MASKED != 0, second & !MASKED);
    if masked != (side == Side::Caller) || (is_control && CONTROL_BYTES_MAX < usize::from(short)) {
        return Err(NoFrame);
    }
    let more = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if masked { 4 } else { 0 };
    if head.len() < 2 + more + mask {
        return Ok(None);
    }
    let long = head[2..2 + more].iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    let length = if more == 0 { u64::from(short) } else { long };
    if length >> 63 != 0 {
        return Err(NoFrame);
    }
    Ok(Some((opcode, length)))
}

/// What a sleeping Machine's caller says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Front {
    /// A ping of so many bytes, and the pong that answers it.
    Ping {
        /// Bytes of the whole frame.
        len: usize,
        /// The whole frame of the answer.
        pong: Vec<u8>,
    },
    /// A pong of so many bytes: nobody answers it.
    Pong {
        /// Bytes of the whole frame.
        len: usize,
    },
    /// The beginning of one of both.
    Part,
    /// Something that is for the Machine.
    Other,
}

impl Front {
    /// Looks at what a caller has sent between two frames, as far as it has come: at least one byte.
    pub fn of(bytes: &[u8]) -> Self {
        let Some(first) = bytes.first() else { return Self::Other };
        if !matches!(first & OPCODE, PING | PONG) {
            return Self::Other;
        }
        let head = &bytes[..bytes.len().min(2 + 4)];
        let (opcode, length) = match parse(Side::Caller, head) {
            Err(NoFrame) => return Self::Other,
            Ok(None) => return Self::Part,
            Ok(Some((opcode, length))) => (opcode, usize::try_from(length).unwrap_or(usize::MAX)),
        };
        let len = head.len() + length;
        let Some(content) = bytes.get(head.len()..len) else { return Self::Part };
        if opcode == PONG {
            return Self::Pong { len };
        }
        let mask = head[2..].iter().cycle();
        // At most 125, see `parse`.
        let mut pong = vec![FIN | PONG, u8::try_from(length).unwrap_or_default()];
        pong.extend(content.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        Self::Ping { len, pong }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with this first byte and so much content.
    fn frame(side: Side, first: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![first];
        let masked = if side == Side::Caller { MASKED } else { 0 };
        match length {
            0..=125 => frame.push(masked | length as u8),
            126..=65535 => {
                frame.push(masked | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                frame.push(masked | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        if side == Side::Caller {
            frame.extend_from_slice(&[1, 2, 3, 4]);
        }
        frame.extend((0..length).map(|at| at as u8));
        frame
    }

    /// The same bytes for ever; enough to try many cases.
    fn noise(mut seed: u64) -> impl FnMut() -> u8 {
        move || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u8
        }
    }

    #[test]
    fn ends_of_frames_are_found_however_they_come() {
        for side in [Side::Caller, Side::Machine] {
            let frames: Vec<_> =
                [(0x81, 0), (0x02, 5), (0x89, 125), (0xc1, 126), (0x80, 70_000), (0x8a, 0)]
                    .iter()
                    .map(|(first, length)| frame(side, *first, *length))
                    .collect();
            let all = frames.concat();
            let ends: Vec<usize> = frames
                .iter()
                .scan(0, |at, frame| {
                    *at += frame.len();
                    Some(*at)
                })
                .collect();
            for step in [1, 2, 3, 7, 130, 4096, all.len()] {
                let (mut follow, mut at) = (Frames::of(side), 0);
                for piece in all.chunks(step) {
                    let passed = follow.pass(piece);
                    let last = ends.iter().rfind(|end| at < **end && **end <= at + piece.len());
                    assert_eq!(passed.whole, last.map_or(0, |end| end - at), "{side:?} by {step}");
                    at += piece.len();
                    assert_eq!(follow.is_between(), ends.contains(&at));
                }
            }
        }
    }

    #[test]
    fn only_pings_and_pongs_are_that() {
        let pings = [frame(Side::Machine, 0x89, 4), frame(Side::Machine, 0x8a, 0)].concat();
        for step in 1..=pings.len() {
            let mut follow = Frames::of(Side::Machine);
            assert!(pings.chunks(step).all(|piece| follow.pass(piece).only_pings));
        }
        let mixed = [pings, frame(Side::Machine, 0x82, 3)].concat();
        assert!(!Frames::of(Side::Machine).pass(&mixed).only_pings);
        let mut follow = Frames::of(Side::Machine);
        follow.pass(&mixed[..mixed.len() - 1]);
        assert!(
            !follow.pass(&mixed[mixed.len() - 1..]).only_pings,
            "the rest of a message is none"
        );
    }

    #[test]
    fn after_a_close_or_nonsense_nothing_is_put_in() {
        let mut follow = Frames::of(Side::Machine);
        assert_eq!(follow.pass(&GOING_AWAY).whole, GOING_AWAY.len());
        assert!(follow.is_closed() && !follow.is_between());
        assert_eq!(follow.pass(&[0x81, 0]), Passed { whole: 0, only_pings: false });
        for bad in [&[0x83, 0][..], &[0x8b, 0], &[0x81, 0x80], &[0x09, 0], &[0xc9, 0], &[0x89, 126]]
        {
            let mut follow = Frames::of(Side::Machine);
            follow.pass(bad);
            follow.pass(&[0x81, 0]);
            assert!(!follow.is_between() && !follow.is_closed(), "{bad:?}");
        }
        let mut follow = Frames::of(Side::Machine);
        follow.pass(&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!follow.is_between(), "too long for anybody");
        let mut unmasked = Frames::of(Side::Caller);
        unmasked.pass(&[0x81, 0]);
        assert!(!unmasked.is_between());
    }

    #[test]
    fn noise_is_followed_without_an_end_and_each_cut_gives_the_same() {
        for seed in 0..2000 {
            let mut next = noise(seed);
            let bytes: Vec<u8> = (0..64).map(|_| next()).collect();
            let mut whole = Frames::of(Side::Caller);
            whole.pass(&bytes);
            for cut in 0..bytes.len() {
                let mut parts = Frames::of(Side::Caller);
                parts.pass(&bytes[..cut]);
                parts.pass(&bytes[cut..]);
                assert_eq!(parts, whole, "{seed} {cut}");
                match Front::of(&bytes[..cut]) {
                    Front::Ping { len, pong } => assert!(len <= cut && pong.len() + 4 == len),
                    Front::Pong { len } => assert!(len <= cut),
                    Front::Part | Front::Other => {}
                }
            }
        }
    }

    #[test]
    fn a_ping_is_answered_with_its_own_words() {
        let mut ping = vec![0x89, 0x85, 1, 2, 3, 4];
        ping.extend(b"hello".iter().zip([1, 2, 3, 4, 1]).map(|(byte, mask)| byte ^ mask));
        let pong = b"\x8a\x05hello".to_vec();
        assert_eq!(Front::of(&ping), Front::Ping { len: 11, pong: pong.clone() });
        assert_eq!(Front::of(&[&ping[..], b"more"].concat()), Front::Ping { len: 11, pong });
        assert!((1..ping.len()).all(|cut| Front::of(&ping[..cut]) == Front::Part));
        assert_eq!(Front::of(&[0x8a, 0x80, 0, 0, 0, 0]), Front::Pong { len: 6 });
        for other in [&[0x81, 0x80, 0, 0, 0, 0][..], &[0x88, 0x80], &[0x89, 0], &[0x89, 0xfe], &[9]]
        {
            assert_eq!(Front::of(other), Front::Other, "{other:?}");
        }
        let long = frame(Side::Caller, 0x89, CONTROL_BYTES_MAX);
        assert_eq!(long.len(), PING_BYTES_MAX);
        assert!(matches!(Front::of(&long), Front::Ping { len: PING_BYTES_MAX, .. }));
    }
}
