//! What travels on the connection of a console, both ways: frames.
//!
//! ```text
//!  kind: 1 byte │ length: 4 bytes, big-endian, at most 64 KiB │ content
//! ```
//!
//! The caller sends input, the end of input and sizes; the server sends output, complaints, signs of life, and as the last
//! frame how the program ended. A connection that ends without that was broken. Kinds that a side does not know it passes
//! over, so either may learn new ones first.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Most that one frame holds: a pipe's usual capacity.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

const INPUT: u8 = 1;
const INPUT_END: u8 = 2;
const RESIZE: u8 = 3;
const OUTPUT: u8 = 4;
const COMPLAINT: u8 = 5;
const ALIVE: u8 = 6;
const ENDED: u8 = 7;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What the program is to read.
    Input(Vec<u8>),
    /// There will be no more input.
    InputEnd,
    /// The terminal has this size now.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// What the program wrote.
    Output(Vec<u8>),
    /// What it wrote to standard error, where that is not the terminal.
    Complaint(Vec<u8>),
    /// Nothing; so that a connection whose other end is gone is noticed.
    Alive,
    /// The program has ended: its exit code, or 128 + signal.
    Ended(i32),
    /// A kind that is not known here.
    Unknown,
}

impl Frame {
    /// The frame's bytes. Content that is too long is for the caller to split.
    pub fn packed(&self) -> Vec<u8> {
        match self {
            Self::Input(bytes) => frame(INPUT, bytes),
            Self::InputEnd => frame(INPUT_END, &[]),
            Self::Resize { rows, columns } => {
                frame(RESIZE, &[rows.to_be_bytes(), columns.to_be_bytes()].concat())
            }
            Self::Output(bytes) => frame(OUTPUT, bytes),
            Self::Complaint(bytes) => frame(COMPLAINT, bytes),
            Self::Alive | Self::Unknown => frame(ALIVE, &[]),
            Self::Ended(code) => frame(ENDED, &code.to_be_bytes()),
        }
    }

    /// Reads a frame; `None` at the end of the connection. A cancelled call loses what it has read.
    ///
    /// # Errors
    /// When the connection breaks, also within a frame, or what comes is no frame.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        if from.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut head[1..]).await?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if FRAME_BYTES_MAX < length {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
        }
        let mut content = vec![0; length];
        from.read_exact(&mut content).await?;
        Self::of(head[0], content).map(Some)
    }

    fn of(kind: u8, content: Vec<u8>) -> io::Result<Self> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "a frame is broken");
        Ok(match (kind, content.as_slice()) {
            (INPUT, _) => Self::Input(content),
            (INPUT_END, _) => Self::InputEnd,
            (RESIZE, &[a, b, c, d]) => {
                let (rows, columns) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                Self::Resize { rows, columns }
            }
            (OUTPUT, _) => Self::Output(content),
            (COMPLAINT, _) => Self::Complaint(content),
            (ALIVE, _) => Self::Alive,
            (ENDED, &[a, b, c, d]) => Self::Ended(i32::from_be_bytes([a, b, c, d])),
            (RESIZE | ENDED, _) => return Err(broken()),
            _ => Self::Unknown,
        })
    }
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(5 + content.len());
    bytes.push(kind);
    bytes.extend(length.to_be_bytes());
    bytes.extend(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent() {
        let all = [
            Frame::Input(b"ls\n".to_vec()),
            Frame::Input(Vec::new()),
            Frame::InputEnd,
            Frame::Resize { rows: 24, columns: 300 },
            Frame::Output(vec![0; FRAME_BYTES_MAX]),
            Frame::Complaint(b"no".to_vec()),
            Frame::Alive,
            Frame::Ended(-1),
        ];
        let bytes: Vec<u8> = all.iter().flat_map(Frame::packed).collect();
        let mut bytes = bytes.as_slice();
        for frame in all {
            assert_eq!(Frame::read(&mut bytes).await.expect("a frame"), Some(frame));
        }
        assert_eq!(Frame::read(&mut bytes).await.expect("the end"), None);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused_and_what_is_new_is_passed_over() {
        let read = async |bytes: &[u8]| Frame::read(&mut &bytes[..]).await;
        assert!(read(&[INPUT, 0, 1, 0, 1]).await.is_err(), "too long");
        assert!(read(&[INPUT, 0, 0, 0, 2, 1]).await.is_err(), "cut");
        assert!(read(&[INPUT, 0]).await.is_err(), "cut");
        assert!(read(&[RESIZE, 0, 0, 0, 1, 1]).await.is_err(), "too short");
        assert_eq!(read(&[99, 0, 0, 0, 1, 1]).await.ok(), Some(Some(Frame::Unknown)));
    }
}
