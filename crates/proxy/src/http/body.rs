//! Where a message ends: lengths and chunks.
//!
//! The proxy passes chunked bodies on as they came, and checks each byte of their framing strictly: a
//! body that two parsers could read differently never reaches a Machine.

use std::ops::Range;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// RFC 9112, 7.1.
    Chunked,
    /// Until the sender closes (responses only).
    Close,
}

/// The chunk framing is wrong or beyond our limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed chunked body")]
pub(crate) struct BadChunk;

/// Digits of a chunk's size; 15 hexadecimal digits cannot overflow.
const SIZE_DIGITS_MAX: u8 = 15;
/// Bytes of a chunk extension; nobody uses them, and the field is a way to waste our time.
const EXTENSION_BYTES_MAX: u16 = 256;
/// Bytes of all trailer fields together.
const TRAILER_BYTES_MAX: u16 = 8 * 1024;

/// Follows a body and knows what is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Length(u64),
    Chunked(Chunked),
    Close,
}

/// What a piece of input is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Bytes that belong to this body, with their framing.
    pub(crate) consumed: usize,
    /// Nothing more belongs to this body.
    pub(crate) done: bool,
}

impl Progress {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::default()),
            Framing::Close => Self::Close,
        }
    }

    /// Takes the next input; `on_data` hears which ranges of it are content.
    pub(crate) fn step(
        &mut self,
        input: &[u8],
        on_data: impl FnMut(Range<usize>),
    ) -> Result<Piece, BadChunk> {
        match self {
            Self::Length(left) => Ok(step_length(left, input, on_data)),
            Self::Chunked(chunked) => chunked.step(input, on_data, |_| {}),
            Self::Close => {
                let mut on_data = on_data;
                on_data(0..input.len());
                Ok(Piece { consumed: input.len(), done: false })
            }
        }
    }

    /// The same, and `on_trailer` hears each byte behind the last chunk, with the lines' ends.
    pub(crate) fn step_to_trailers(
        &mut self,
        input: &[u8],
        on_data: impl FnMut(Range<usize>),
        on_trailer: impl FnMut(u8),
    ) -> Result<Piece, BadChunk> {
        match self {
            Self::Chunked(chunked) => chunked.step(input, on_data, on_trailer),
            Self::Length(_) | Self::Close => self.step(input, on_data),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.state == State::Done,
            Self::Close => false,
        }
    }
}

fn step_length(left: &mut u64, input: &[u8], mut on_data: impl FnMut(Range<usize>)) -> Piece {
    let consumed = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    *left -= consumed as u64;
    on_data(0..consumed);
    Piece { consumed, done: *left == 0 }
}

/// A chunked body, byte by byte outside the content.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunked {
    state: State,
    size: u64,
    digits: u8,
    extra: u16,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    /// After blanks behind the size, which some senders leave there.
    SizeBlank,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataEnd,
    /// At the start of a trailer line.
    Trailer,
    TrailerName,
    TrailerLine,
    TrailerLineEnd,
    End,
    Done,
}

impl Chunked {
    fn step(
        &mut self,
        input: &[u8],
        mut on_data: impl FnMut(Range<usize>),
        mut on_trailer: impl FnMut(u8),
    ) -> Result<Piece, BadChunk> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let rest = input.len() - at;
                let count = usize::try_from(self.size).map_or(rest, |size| size.min(rest));
                on_data(at..at + count);
                at += count;
                self.size -= count as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
            } else {
                if self.is_behind() {
                    on_trailer(input[at]);
                }
                self.state = self.next(input[at])?;
                at += 1;
            }
        }
        Ok(Piece { consumed: at, done: self.state == State::Done })
    }

    /// Behind the last chunk.
    fn is_behind(&self) -> bool {
        use State::{End, Trailer, TrailerLine, TrailerLineEnd, TrailerName};
        matches!(self.state, Trailer | TrailerName | TrailerLine | TrailerLineEnd | End)
    }

    fn next(&mut self, byte: u8) -> Result<State, BadChunk> {
        match (self.state, byte) {
            (State::Size, b'\r') if 0 < self.digits => Ok(State::SizeEnd),
            (State::Size, b' ' | b'\t') if 0 < self.digits => self.extension(State::SizeBlank),
            (State::Size, b';') if 0 < self.digits => self.extension(State::Extension),
            (State::Size, _) => self.digit(byte),
            (State::SizeBlank, b' ' | b'\t') => self.extension(State::SizeBlank),
            (State::SizeBlank, b';') => self.extension(State::Extension),
            (State::SizeBlank, b'\r') => Ok(State::SizeEnd),
            (State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.extension(State::Extension),
            (State::SizeEnd, b'\n') => Ok(self.after_size()),
            (State::DataCr, b'\r') => Ok(State::DataEnd),
            (State::DataEnd, b'\n') => {
                *self = Self::default();
                Ok(State::Size)
            }
            (State::Trailer, b'\r') => Ok(State::End),
            (State::Trailer | State::TrailerName, _) if is_token_byte(byte) => {
                self.trailer(State::TrailerName)
            }
            (State::TrailerName, b':') | (State::TrailerLine, b'\t' | b' '..=b'~' | 0x80..) => {
                self.trailer(State::TrailerLine)
            }
            (State::TrailerLine, b'\r') => Ok(State::TrailerLineEnd),
            (State::TrailerLineEnd, b'\n') => Ok(State::Trailer),
            (State::End, b'\n') => Ok(State::Done),
            _ => Err(BadChunk),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, BadChunk> {
        let value = (byte as char).to_digit(16).ok_or(BadChunk)?;
        if SIZE_DIGITS_MAX <= self.digits {
            return Err(BadChunk);
        }
        self.digits += 1;
        self.size = self.size * 16 + u64::from(value);
        Ok(State::Size)
    }

    fn extension(&mut self, next: State) -> Result<State, BadChunk> {
        self.extra += 1;
        if EXTENSION_BYTES_MAX < self.extra { Err(BadChunk) } else { Ok(next) }
    }

    fn trailer(&mut self, next: State) -> Result<State, BadChunk> {
        self.extra += 1;
        if TRAILER_BYTES_MAX < self.extra { Err(BadChunk) } else { Ok(next) }
    }

    fn after_size(&mut self) -> State {
        self.extra = 0;
        if self.size == 0 { State::Trailer } else { State::Data }
    }
}

/// RFC 9110, 5.6.2.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of `step` bytes; answers content, framed length and whether it ended.
    fn follow(
        framing: Framing,
        input: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, usize, bool), BadChunk> {
        let mut progress = Progress::new(framing);
        let (mut content, mut consumed) = (Vec::new(), 0);
        for piece in input.chunks(step) {
            let taken = progress.step(piece, |range| content.extend_from_slice(&piece[range]))?;
            consumed += taken.consumed;
            if taken.done {
                break;
            }
        }
        Ok((content, consumed, progress.is_done()))
    }

    fn check_refused(input: &[u8]) {
        for step in [1, 3, 1000] {
            assert_eq!(follow(Framing::Chunked, input, step), Err(BadChunk), "{input:?} by {step}");
        }
    }

    #[test]
    fn chunk_framing_that_parsers_disagree_about_is_refused() {
        check_refused(b"\r\n");
        check_refused(b"g\r\n");
        check_refused(b"-1\r\n");
        check_refused(b"+1\r\nx\r\n");
        check_refused(b"0x1\r\nx\r\n");
        check_refused(b"1\nx\r\n0\r\n\r\n");
        check_refused(b"1\r\nxy\r\n");
        check_refused(b"1\r\nx\n0\r\n\r\n");
        check_refused(b"1;a\nb\r\nx\r\n");
        check_refused(b"1;a\rb\r\nx\r\n");
        check_refused(b"0\r\n\n");
        check_refused(b"0\r\n folded\r\n\r\n");
        check_refused(b"0\r\nno colon\r\n\r\n");
        check_refused(b"0\r\nspace : x\r\n\r\n");
        check_refused(b"1 2\r\nx\r\n0\r\n\r\n");
        check_refused(b"0000000000000001\r\nx\r\n0\r\n\r\n");
        check_refused(b"fffffffffffffffff\r\n");
    }

    #[test]
    fn unbounded_extensions_and_trailers_are_refused() {
        check_refused(&[b"1;".as_slice(), &[b'a'; 300]].concat());
        check_refused(&[b"0\r\nname: ".as_slice(), &[b'a'; 9000]].concat());
    }

    #[test]
    fn a_chunked_body_ends_where_it_says_whatever_the_pieces() {
        let input = b"5;x=y\r\nhello\r\nA \r\n world\r\n12\r\n0\r\nTrailer: v\r\n\r\nNEXT";
        for step in 1..input.len() {
            let (content, consumed, done) =
                follow(Framing::Chunked, input, step).expect("the framing is right");
            assert_eq!(content, b"hello world\r\n12");
            assert_eq!((consumed, done), (input.len() - 4, true), "pieces of {step}");
        }
    }

    #[test]
    fn a_length_leaves_the_next_message_alone() {
        let followed = follow(Framing::Length(3), b"abcdef", 2);
        assert_eq!(followed, Ok((b"abc".to_vec(), 3, true)));
        assert_eq!(follow(Framing::Length(9), b"abc", 2), Ok((b"abc".to_vec(), 3, false)));
        assert!(Progress::new(Framing::None).is_done());
    }
}
