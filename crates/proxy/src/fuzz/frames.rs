//! Frames of HTTP/2 from a caller: served by `h2` within our limits, each request's head written for a Machine. Nothing
//! panics, and what is answered is no more than the input is worth.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{forwarded, shown};
use crate::http2::limits;

/// A connection that is asked again so often turns in circles.
const ROUNDS_MAX: usize = 100_000;
/// Bytes that we answer to each byte of a caller, at most, above the first settings.
const ANSWER_FACTOR: usize = 100;
const ANSWER_BYTES_MIN: usize = 4 * 1024;

pub(super) fn serve(input: &[u8]) {
    let mut serving = Box::pin(run(input));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    for _ in 0..ROUNDS_MAX {
        let before = woken.0.load(Ordering::Relaxed);
        if serving.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return;
        }
        if woken.0.load(Ordering::Relaxed) == before {
            // All input is there: whoever waits now waits for ever, as for a body that was not sent.
            return;
        }
    }
    panic!("it goes on and on: {}", shown(input));
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn run(input: &[u8]) {
    let mut written = 0;
    let wire = Wire { input, at: 0, written: &mut written };
    let Ok(mut connection) = limits().handshake::<_, Bytes>(wire).await else { return };
    let mut streams = 0;
    while let Some(Ok((request, respond))) = connection.accept().await {
        streams += 1;
        answer(request, respond);
    }
    drop(connection);
    // A frame that begins a stream has at least ten bytes.
    assert!(streams * 10 <= input.len(), "{streams} streams: {}", shown(input));
    let most = ANSWER_BYTES_MIN + input.len() * ANSWER_FACTOR;
    assert!(written <= most, "{written} bytes for {}: {}", input.len(), shown(input));
}

fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let status = match crate::http2::write_head(&parts, body.is_end_stream(), &forwarded()) {
        Ok(text) => {
            let head = super::reference::read_head(&text);
            assert!(head.is_some_and(|head| head.length == text.len()), "{}", shown(&text));
            200
        }
        Err(bad) => bad.status(),
    };
    let response = Response::builder().status(status).body(()).expect("it is a status");
    if let Ok(mut stream) = respond.send_response(response, false) {
        drop(stream.send_data(Bytes::from_static(b"hello"), true));
    }
}

/// All that a caller sends, and then its end.
struct Wire<'a> {
    input: &'a [u8],
    at: usize,
    written: &'a mut usize,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = into.remaining().min(self.input.len() - self.at);
        into.put_slice(&self.input[self.at..self.at + count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        *self.written += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
