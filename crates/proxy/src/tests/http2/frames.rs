//! Frames by hand (RFC 9113, 4 and 6), for what no good client sends.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const ACK: u8 = 1;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it fits").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Literal fields that are not indexed, without Huffman codes (RFC 7541, 6.2.2).
pub(super) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            string(text.as_bytes(), &mut block);
        }
    }
    block
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    match text.len() {
        length @ 0..127 => out.push(u8::try_from(length).expect("it is small")),
        mut length => {
            out.push(127);
            length -= 127;
            while 128 <= length {
                out.push(u8::try_from(length % 128).expect("it is small") | 128);
                length /= 128;
            }
            out.push(u8::try_from(length).expect("it is small"));
        }
    }
    out.extend_from_slice(text);
}

/// A frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The code of a RST_STREAM or GOAWAY.
    pub(super) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// `None`: the connection has ended.
pub(super) async fn read_frame(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    let stream_id = u32::from_be_bytes(head[5..9].try_into().expect("four bytes"));
    Some(Frame { kind: head[3], flags: head[4], stream: stream_id, payload })
}

/// Says the preface and both sides' settings.
pub(super) async fn greet(stream: &mut TcpStream) {
    let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, ACK, 0, &[])].concat();
    stream.write_all(&greeting).await.expect("the proxy reads");
}

/// What became of a stream or of the connection: the first frame that says so.
pub(super) async fn verdict(connection: &mut TcpStream, stream: u32) -> Option<Frame> {
    while let Some(frame) = read_frame(connection).await {
        let of_stream = frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM);
        if of_stream || frame.kind == GOAWAY {
            return Some(frame);
        }
    }
    None
}
