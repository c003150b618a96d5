//! As much of WebSockets (RFC 6455) as an example needs: each whole message is answered with one.

use std::io::{self, Read, Write};

/// What a server adds to the caller's key before it proves that it has read it.
const PROOF: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const MESSAGE_BYTES_MAX: u64 = 64 << 10;

/// Kinds of frames.
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The first byte of a frame that is a whole message.
const WHOLE: u8 = 0x80;
/// The second byte of a frame whose bytes are masked.
const MASKED: u8 = 0x80;

/// Why a conversation is ended from here.
const PROTOCOL_ERROR: u16 = 1002;
const UNSUPPORTED: u16 = 1003;
const TOO_LARGE: u16 = 1009;

/// The head that changes a connection into a WebSocket.
pub(crate) fn head(key: &str) -> String {
    let proof = base64(&sha1(format!("{key}{PROOF}").as_bytes()));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {proof}\r\n\r\n"
    )
}

/// Answers messages until one side ends the conversation; an error where that is the end of the connection.
pub(crate) fn converse(
    reader: &mut impl Read,
    mut writer: impl Write,
    mut answer: impl FnMut(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    loop {
        let (first, bytes) = match read_frame(reader)? {
            Ok(frame) => frame,
            Err(code) => return write_frame(&mut writer, CLOSE, &code.to_be_bytes()),
        };
        match first & !WHOLE {
            _ if first & WHOLE == 0 => {
                return write_frame(&mut writer, CLOSE, &UNSUPPORTED.to_be_bytes());
            }
            kind @ (TEXT | BINARY) => write_frame(&mut writer, kind, &answer(&bytes))?,
            PING => write_frame(&mut writer, PONG, &bytes)?,
            PONG => {}
            CLOSE => return write_frame(&mut writer, CLOSE, bytes.get(..2).unwrap_or_default()),
            _ => return write_frame(&mut writer, CLOSE, &PROTOCOL_ERROR.to_be_bytes()),
        }
    }
}

/// First byte and content of a frame, or the code with which such a one is refused.
fn read_frame(reader: &mut impl Read) -> io::Result<Result<(u8, Vec<u8>), u16>> {
    let mut head = [0; 2];
    reader.read_exact(&mut head)?;
    if head[1] & MASKED == 0 {
        return Ok(Err(PROTOCOL_ERROR));
    }
    let length = match head[1] & !MASKED {
        126 => u64::from(u16::from_be_bytes(read(reader)?)),
        127 => u64::from_be_bytes(read(reader)?),
        short => u64::from(short),
    };
    if MESSAGE_BYTES_MAX < length {
        return Ok(Err(TOO_LARGE));
    }
    let mask: [u8; 4] = read(reader)?;
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes)?;
    for (byte, mask) in bytes.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Ok((head[0], bytes)))
}

fn read<const LENGTH: usize>(reader: &mut impl Read) -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write_frame(writer: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let mut frame = vec![WHOLE | kind];
    match (u8::try_from(bytes.len()), u16::try_from(bytes.len())) {
        (Ok(length), _) if length < 126 => frame.push(length),
        (_, Ok(length)) => {
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((bytes.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(bytes);
    writer.write_all(&frame)
}

/// FIPS 180-1. It is broken for signatures; the protocol only wants to see that the key was read.
fn sha1(text: &[u8]) -> [u8; 20] {
    let mut padded = text.to_vec();
    padded.push(0x80);
    padded.resize(padded.len().next_multiple_of(64), 0);
    if padded.len() < text.len() + 9 {
        padded.resize(padded.len() + 64, 0);
    }
    let end = padded.len() - 8;
    padded[end..].copy_from_slice(&(text.len() as u64 * 8).to_be_bytes());
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        mix(&mut state, block);
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn mix(state: &mut [u32; 5], block: &[u8]) {
    let mut words = [0_u32; 80];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    for at in 16..80 {
        let mixed = words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16];
        words[at] = mixed.rotate_left(1);
    }
    let [mut a, mut b, mut c, mut d, mut e] = *state;
    for (at, word) in words.iter().enumerate() {
        let (chosen, constant) = match at / 20 {
            0 => ((b & c) | (!b & d), 0x5a82_7999),
            1 => (b ^ c ^ d, 0x6ed9_eba1),
            2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc_u32),
            _ => (b ^ c ^ d, 0xca62_c1d6),
        };
        let sum = a.rotate_left(5).wrapping_add(chosen).wrapping_add(e);
        let next = sum.wrapping_add(constant).wrapping_add(*word);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    for (value, more) in state.iter_mut().zip([a, b, c, d, e]) {
        *value = value.wrapping_add(more);
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = (0..3)
            .fold(0_usize, |word, at| word << 8 | usize::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let letter = char::from(LETTERS[word >> (18 - 6 * at) & 63]);
            text.push(if at <= group.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes back for these bytes.
    fn said(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let echo = |message: &[u8]| [b"got ", message].concat();
        drop(converse(&mut &bytes[..], &mut out, echo));
        out
    }

    #[test]
    fn the_key_of_the_standard_has_the_proof_of_the_standard() {
        let head = head("dGhlIHNhbXBsZSBub25jZQ==");
        assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    }

    #[test]
    fn digests_are_right_whatever_the_length_leaves_for_the_padding() {
        let hex = |length: usize| {
            let digest = sha1(&vec![b'a'; length]);
            digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex(0), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(hex(55), "c1c8bbdc22796e28c0e15163d20899b65621d65a");
        assert_eq!(hex(56), "c2db330f6083854c99d4b5bfb6e8f29f201be699");
        assert_eq!(hex(64), "0098ba824b5c16427bd7a1122a5a442a25ec644d");
    }

    #[test]
    fn messages_are_answered_pings_are_said_back_and_a_close_ends_it() {
        assert_eq!(said(b"\x81\x82\x01\x01\x01\x01ij"), b"\x81\x06got hk");
        assert_eq!(said(b"\x89\x81\0\0\0\0x"), b"\x8a\x01x");
        assert_eq!(said(b"\x88\x82\0\0\0\0\x03\xe8\x81\x80\0\0\0\0"), b"\x88\x02\x03\xe8");
    }

    #[test]
    fn what_is_not_understood_ends_it_with_the_reason() {
        let closed = |code: u16| [&b"\x88\x02"[..], &code.to_be_bytes()].concat();
        assert_eq!(said(b"\x81\x00"), closed(PROTOCOL_ERROR));
        assert_eq!(said(b"\x01\x80\0\0\0\0"), closed(UNSUPPORTED));
        assert_eq!(said(b"\x81\xff\0\0\0\0\0\x02\0\0\0\0\0\0"), closed(TOO_LARGE));
    }

    #[test]
    fn long_messages_have_their_length_in_two_bytes() {
        let bytes = vec![b'x'; 300];
        let out = said(&[&b"\x82\xfe\x01\x2c\0\0\0\0"[..], &bytes].concat());
        assert_eq!(out[..8], *b"\x82\x7e\x01\x30got ");
        assert_eq!(out.len(), 4 + 304);
    }
}
