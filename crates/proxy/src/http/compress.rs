//! Answers that go out compressed (`http_options.compress`, PX-87): `perch_core::coding` decides, `flate2` compresses.
//!
//! Content goes through as it comes, in bounded memory: what the compressor keeps back is flushed out whenever the Machine
//! pauses, so that whoever waits for the next line of a slow answer gets it. An answer that is here at once still is one
//! write. Only so many are compressed at once, of which an app has its share; the others go out as they are.

use std::cell::Cell;
use std::io::Write;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use flate2::Compression;
use flate2::write::GzEncoder;
use perch_core::coding::{self, Change, Fields, Plan};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::body::{Framing, Progress};
use super::edit::{Edit, values_of};
use super::exchange::{Broken, Done};
use super::head::{After, Method, Request, Version};
use super::response::Response;
use crate::buffer::{BUFFER_BYTES, Buffer, read_some};
use crate::line::Line;

/// nginx's choice too: higher levels take several times the CPU, which all apps share, for a few percent.
const LEVEL: u32 = 1;
/// So much is collected before it is written.
pub(crate) const PIECE_BYTES: usize = 16 * 1024;

thread_local! {
    /// Of all apps.
    static ALL: Cell<usize> = const { Cell::new(0) };
}

/// How many compressors one app has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Compressors(Rc<Cell<usize>>);

impl Compressors {
    fn have_room(&self) -> bool {
        coding::has_room(self.0.get(), ALL.get())
    }
}

/// The compressor of one answer.
#[derive(Debug)]
pub(crate) struct Gzip {
    encoder: GzEncoder<Vec<u8>>,
    /// It may keep something back.
    holds: bool,
    /// It is one of these.
    own: Compressors,
}

impl Gzip {
    /// One more of these.
    pub(crate) fn begin(own: &Compressors) -> Box<Self> {
        ALL.set(ALL.get() + 1);
        own.0.set(own.0.get() + 1);
        let encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
        Box::new(Self { encoder, holds: false, own: own.clone() })
    }

    pub(crate) fn write(&mut self, content: &[u8]) {
        self.holds |= !content.is_empty();
        self.encoder.write_all(content).expect("a vector takes everything");
    }

    /// Lets go of what was kept back.
    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.holds) {
            self.encoder.flush().expect("a vector takes everything");
        }
    }

    /// The end of the content.
    pub(crate) fn finish(&mut self) {
        self.encoder.try_finish().expect("a vector takes everything");
    }

    /// Bytes that wait to be taken.
    pub(crate) fn len(&self) -> usize {
        self.encoder.get_ref().len()
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.encoder.get_mut())
    }
}

impl Drop for Gzip {
    fn drop(&mut self) {
        ALL.set(ALL.get() - 1);
        self.own.0.set(self.own.0.get() - 1);
    }
}

/// Decides about an answer to this request, whose head is one that we wrote; `own` are those of its app.
pub(crate) fn plan(
    (request, head): (&Request, &[u8]),
    (status, framing): (u16, Framing),
    fields: Fields<'_>,
    own: &Compressors,
) -> Plan {
    let length = match framing {
        Framing::Length(length) => Some(length),
        Framing::None | Framing::Chunked | Framing::Close => None,
    };
    let possible = request.method != Method::Head && framing != Framing::None && own.have_room();
    let asked = |name: &str| values_of(head, name);
    coding::plan(&asked, coding::Answer { status, length, fields }, possible)
}

/// Begins to compress an answer, if it may be and its caller wants that. `answer` is its head as it was about to go out,
/// and is as it goes out then; `own` are the compressors of its app.
pub(super) fn begin(
    (request, message): (&Request, &[u8]),
    response: &mut Response,
    answer: &mut Vec<u8>,
    own: &Compressors,
) -> Option<Box<Gzip>> {
    let plan = {
        let said = |name: &str| values_of(answer, name);
        plan((request, message), (response.status, response.framing), &said, own)
    };
    let mut edit = edit_of(plan.changes);
    if plan.gzip {
        match request.version {
            Version::Http11 if response.framing == Framing::Chunked => {}
            Version::Http11 => {
                edit.set.push(("Transfer-Encoding".to_owned(), "chunked".to_owned()));
            }
            // Only the end of the connection tells where the content ends.
            Version::Http10 => {
                response.caller_after = After::Close;
                edit.set.push(("Connection".to_owned(), "close".to_owned()));
            }
        }
    }
    if edit != Edit::default() {
        let head_len = answer.len();
        edit.apply(answer, head_len);
    }
    plan.gzip.then(|| Gzip::begin(own))
}

fn edit_of(changes: Vec<Change>) -> Edit {
    let mut edit = Edit::default();
    for (name, value) in changes {
        match value {
            Some(value) => edit.set.push((shown(name), value)),
            None => edit.drop.push(name.to_owned()),
        }
    }
    edit
}

/// As fields are written by HTTP/1.1.
fn shown(name: &str) -> String {
    let mut upper = true;
    let letter = |letter: char| {
        let shown = if upper { letter.to_ascii_uppercase() } else { letter };
        upper = letter == '-';
        shown
    };
    name.chars().map(letter).collect()
}

/// What is compressed, and how it is framed.
pub(super) struct Compressed {
    pub(super) gzip: Box<Gzip>,
    pub(super) body: Progress,
    pub(super) response: Response,
    pub(super) version: Version,
}

impl Compressed {
    /// Takes in what has come; says whether that was the end, which then is in `answer` too.
    fn take_in(
        &mut self,
        bytes: &[u8],
        trailing: &mut Vec<u8>,
        answer: &mut Vec<u8>,
    ) -> Result<bool, Broken> {
        let piece = self.body.step_to_trailers(
            bytes,
            |content| self.gzip.write(&bytes[content]),
            |byte| trailing.push(byte),
        );
        let piece = piece.map_err(|_| Broken::Cut)?;
        if piece.consumed < bytes.len() {
            self.response.machine_after = After::Close;
        }
        let done = piece.done || self.body.is_done();
        if done {
            self.end(trailing, answer);
        }
        Ok(done)
    }

    fn end(&mut self, trailing: &[u8], answer: &mut Vec<u8>) {
        self.gzip.finish();
        self.frame(answer);
        if self.version == Version::Http11 {
            answer.extend_from_slice(b"0\r\n");
            answer.extend_from_slice(if trailing.is_empty() { b"\r\n" } else { trailing });
        }
    }

    /// Adds what the compressor has to what goes out.
    fn frame(&mut self, answer: &mut Vec<u8>) {
        let content = self.gzip.take();
        match self.version {
            _ if content.is_empty() => {}
            Version::Http10 => answer.extend_from_slice(&content),
            Version::Http11 => {
                answer.extend_from_slice(format!("{:x}\r\n", content.len()).as_bytes());
                answer.extend_from_slice(&content);
                answer.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Passes the answer on, of whose content `input` is the beginning and whose head is in `answer`.
    pub(super) async fn pass(
        self,
        caller: &mut (impl AsyncWrite + Unpin),
        machine: &mut (impl AsyncRead + Unpin),
        input: Buffer,
        answer: &mut Vec<u8>,
        line: &Line<'_>,
    ) -> Result<Done, Broken> {
        // As of answers that go out as they are.
        let rests = line.naps() && !matches!(self.response.framing, Framing::Length(_));
        let work = self.pass_all(caller, machine, input, answer, line);
        if rests { line.along(work).await } else { work.await }
    }

    async fn pass_all(
        mut self,
        caller: &mut (impl AsyncWrite + Unpin),
        machine: &mut (impl AsyncRead + Unpin),
        mut input: Buffer,
        answer: &mut Vec<u8>,
        line: &Line<'_>,
    ) -> Result<Done, Broken> {
        let mut trailing = Vec::new();
        loop {
            let done = self.take_in(input.filled(), &mut trailing, answer)?;
            drop(input);
            if done {
                break;
            }
            if PIECE_BYTES <= self.gzip.len() {
                self.frame(answer);
                line.until_taken(write(caller, answer)).await?;
            }
            let mut reading = pin!(read_some(machine, BUFFER_BYTES));
            let read = match std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await
            {
                Poll::Ready(read) => read,
                Poll::Pending => {
                    self.gzip.flush();
                    self.frame(answer);
                    line.until_taken(write(caller, answer)).await?;
                    line.place().note_answered();
                    reading.await
                }
            };
            input = read.map_err(|_| Broken::Cut)?;
            if input.is_empty() {
                if self.body != Progress::Close {
                    return Err(Broken::Cut);
                }
                self.end(&trailing, answer);
                break;
            }
            line.note_answered();
            // Compressing takes long, as things go here: others have their turn in between.
            tokio::task::yield_now().await;
        }
        line.until_taken(write(caller, answer)).await?;
        Ok(self.response.into())
    }
}

async fn write(caller: &mut (impl AsyncWrite + Unpin), answer: &mut Vec<u8>) -> Result<(), Broken> {
    let written = if answer.is_empty() { Ok(()) } else { caller.write_all(answer).await };
    answer.clear();
    written.map_err(|_| Broken::Cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_http1_writes_them() {
        assert_eq!(shown("content-encoding"), "Content-Encoding");
        assert_eq!(shown("etag"), "Etag");
    }

    #[test]
    fn an_app_that_has_its_share_leaves_others_theirs() {
        let (one, other) = (Compressors::default(), Compressors::default());
        let mut all: Vec<_> =
            (0..coding::AT_ONCE_MAX / 2).map(|_| Gzip::begin(&one.clone())).collect();
        assert!(!one.have_room() && other.have_room());
        all.pop();
        assert!(one.have_room());
        drop(all);
        assert_eq!((one.0.get(), ALL.get()), (0, 0));
    }

    #[test]
    fn a_flush_lets_everything_out_and_none_is_needed_twice() {
        let mut gzip = Gzip::begin(&Compressors::default());
        gzip.write(b"hello");
        gzip.flush();
        let first = gzip.take();
        gzip.flush();
        assert!(gzip.take().is_empty());
        let mut content = [0; 5];
        let mut reader = flate2::read::GzDecoder::new(first.as_slice());
        std::io::Read::read_exact(&mut reader, &mut content).expect("it is all there");
        assert_eq!(&content, b"hello");
    }
}
