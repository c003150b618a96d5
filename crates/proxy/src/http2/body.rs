//! What a caller sends on one stream behind the head.
//!
//! It is taken out of `h2` as it comes, also while the request is held or the Machine reads slowly: frames of a few bytes
//! would cost many times their size there. How much that can be is the stream's window, which is only opened again
//! when the bytes have gone to the Machine. What has gone is kept as far as HTTP/1.1 keeps it, so that it can be sent again.

use std::task::{Context, Poll};

use h2::RecvStream;
use http::HeaderMap;

use crate::http::kept::Kept;

/// See the module's head.
pub(super) struct Body {
    recv: RecvStream,
    content: Vec<u8>,
    end: End,
    /// What was given out.
    kept: Kept,
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
        Self { recv, content, end: End::Open, kept, released: 0, again: 0 }
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

    /// Takes in what has come; whether that was all.
    pub(super) async fn is_whole(&mut self) -> bool {
        std::future::poll_fn(|cx| {
            self.take_in(cx);
            Poll::Ready(matches!(self.end, End::Whole(_)))
        })
        .await
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        self.take_in(cx);
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

    /// Begins anew; `false`: what was given out is not there any more.
    pub(super) fn rewind(&mut self) -> bool {
        let Some(kept) = self.kept.take() else { return false };
        self.content.splice(..0, kept);
        self.again = self.released;
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
