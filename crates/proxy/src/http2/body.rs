//! What a caller sends on one stream behind the head.
//!
//! It is taken out of `h2` as it comes, also while the request is held or the Machine reads slowly: frames of a few bytes
//! would cost many times their size there. How much that can be is the stream's window, which is only opened again
//! when the bytes have gone to the Machine. What has gone is kept as far as HTTP/1.1 keeps it, so that it can be sent again:
//! piece by piece from where it is kept, since a second copy would be beyond the bound of what all requests keep.

use std::task::{Context, Poll};

use h2::RecvStream;
use http::HeaderMap;

use crate::http::kept::Kept;

/// What is sent again goes out in pieces of so many bytes, of which one is in memory twice: as many as a caller sends ahead.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// See the module's head.
pub(super) struct Body {
    recv: RecvStream,
    content: Vec<u8>,
    end: End,
    /// What was given out.
    kept: Kept,
    /// So many of these bytes, the last ones, are given out again before anything else.
    repeats: usize,
    /// Bytes that were released.
    released: usize,
    /// So many of those that are given out next were released before.
    again: usize,
}

/// How it went on.
enum End {
    Open,
    Whole(HeaderMap),
    /// The caller has reset the stream, or has gone.
    Broken,
}

/// The next of a body.
pub(super) enum Piece {
    Content(Vec<u8>),
    /// Nothing more comes but these.
    End(HeaderMap),
    Broken,
}

impl Body {
    pub(super) fn new(recv: RecvStream) -> Self {
        let (content, kept) = (Vec::new(), Kept::default());
        Self { recv, content, end: End::Open, kept, repeats: 0, released: 0, again: 0 }
    }

    /// Of an answer, which is never sent again.
    pub(super) fn of_answer(recv: RecvStream) -> Self {
        Self { kept: Kept::nothing(), ..Self::new(recv) }
    }

    /// Takes in what has come, and wakes for more.
    pub(super) fn take_in(&mut self, cx: &mut Context<'_>) {
        while matches!(self.end, End::Open) {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => self.content.extend_from_slice(&bytes),
                Poll::Ready(Some(Err(_))) => self.end = End::Broken,
                Poll::Ready(None) => match self.recv.poll_trailers(cx) {
                    Poll::Ready(Ok(trailers)) => {
                        self.end = End::Whole(trailers.unwrap_or_default())
                    }
                    Poll::Ready(Err(_)) => self.end = End::Broken,
                    Poll::Pending => return,
                },
                Poll::Pending => return,
            }
        }
    }

    /// All of the content, if it has come.
    pub(super) fn take_whole(&mut self) -> Option<(Vec<u8>, HeaderMap)> {
        let End::Whole(trailers) = &mut self.end else { return None };
        Some((std::mem::take(&mut self.content), std::mem::take(trailers)))
    }

    /// Takes in what has come; whether that was all, and nothing of it was given out before.
    pub(super) async fn is_whole(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            self.take_in(cx);
            Poll::Ready(self.repeats == 0 && matches!(self.end, End::Whole(_)))
        })
        .await
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        self.take_in(cx);
        if let Some(piece) = self.repeat() {
            return Poll::Ready(Piece::Content(piece));
        }
        if !self.content.is_empty() {
            let content = std::mem::take(&mut self.content);
            self.kept.push(&content, 0);
            return Poll::Ready(Piece::Content(content));
        }
        match &self.end {
            End::Open => Poll::Pending,
            End::Whole(trailers) => Poll::Ready(Piece::End(trailers.clone())),
            End::Broken => Poll::Ready(Piece::Broken),
        }
    }

    /// The next of what is given out again.
    fn repeat(&mut self) -> Option<Vec<u8>> {
        let kept = self.kept.bytes().filter(|_| 0 < self.repeats)?;
        let piece = &kept[kept.len() - self.repeats..];
        let piece = piece[..piece.len().min(PIECE_BYTES_MAX)].to_vec();
        self.repeats -= piece.len();
        Some(piece)
    }

    /// Whether all that was given out is still there.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.bytes().is_some()
    }

    /// Begins anew; `false`: what was given out is not there any more.
    pub(super) fn rewind(&mut self) -> bool {
        let Some(kept) = self.kept.bytes() else { return false };
        (self.repeats, self.again) = (kept.len(), self.released);
        true
    }

    /// So many bytes have gone to the Machine: the caller may send as many more.
    pub(super) fn release(&mut self, count: usize) {
        let before = count.min(self.again);
        self.again -= before;
        let count = count - before;
        self.released += count;
        // It fails when the stream has ended meanwhile: then there is nothing to open.
        let _released = self.recv.flow_control().release_capacity(count).is_ok();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use h2::{Reason, SendStream};

    use super::*;
    use crate::http::kept;

    /// A stream's body, who sends it, and what both need.
    async fn stream() -> (Body, SendStream<Bytes>, impl Sized) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (served, called) =
            tokio::join!(h2::server::handshake(ours), h2::client::handshake(theirs));
        let mut served = served.expect("it speaks HTTP/2");
        let (mut client, connection) = called.expect("it speaks HTTP/2");
        let connection = tokio::spawn(connection);
        let request = http::Request::post("http://a.test/").body(()).expect("it is one");
        let (answer, sending) = client.send_request(request, false).expect("it goes out");
        let (request, respond) = served.accept().await.expect("it comes").expect("it is good");
        let serving = tokio::spawn(async move { while served.accept().await.is_some() {} });
        let body = Body::new(request.into_body());
        (body, sending, (answer, respond, client, connection, serving))
    }

    /// The next bytes, at least so many; they have gone to the Machine.
    async fn take(body: &mut Body, count: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let piece = std::future::poll_fn(|cx| body.poll_next(cx)).await;
            let Piece::Content(piece) = piece else { panic!("it goes on") };
            assert!(piece.len() <= 64 * 1024, "{} bytes twice in memory", piece.len());
            body.release(piece.len());
            taken.extend_from_slice(&piece);
        }
        taken
    }

    #[tokio::test]
    async fn what_is_sent_again_is_counted_until_the_body_is_gone() {
        let (mut body, mut caller, _both) = stream().await;
        let content: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
        let (first, rest) = content.split_at(150_000);
        caller.send_data(first.to_vec().into(), false).expect("it goes out");
        assert!(take(&mut body, first.len()).await == first);
        for _ in 0..2 {
            assert!(body.rewind());
            assert_eq!(kept::all(), first.len(), "it is held");
            assert!(first.starts_with(&take(&mut body, 100_000).await));
            assert_eq!(kept::all(), first.len(), "it was sent again in part");
        }
        assert!(body.rewind());
        caller.send_data(rest.to_vec().into(), true).expect("it goes out");
        assert!(take(&mut body, content.len()).await == content);
        assert_eq!(kept::all(), content.len(), "and more came");
        assert!(body.rewind() && !body.is_whole().await, "there is no second copy");
        drop(body);
        assert_eq!(kept::all(), 0, "given back");
    }

    #[tokio::test]
    async fn a_body_that_breaks_or_becomes_too_long_gives_everything_back() {
        let (mut body, mut caller, _both) = stream().await;
        caller.send_data(vec![0; 1000].into(), false).expect("it goes out");
        take(&mut body, 1000).await;
        assert!(body.rewind());
        caller.send_reset(Reason::CANCEL);
        take(&mut body, 1000).await;
        assert!(matches!(std::future::poll_fn(|cx| body.poll_next(cx)).await, Piece::Broken));
        assert_eq!(kept::all(), 1000);
        drop(body);
        assert_eq!(kept::all(), 0);
        let (mut body, mut caller, _both) = stream().await;
        caller.send_data(vec![0; 2 << 20].into(), false).expect("it goes out");
        take(&mut body, 2 << 20).await;
        assert!(!body.is_kept() && !body.rewind());
        assert_eq!(kept::all(), 0);
    }
}
