//! What of a request's body was sent, kept so that it can be sent again (PX-44, PX-70).
//!
//! Only for bodies that did not come whole with their head; those are in the message anyway. No more is kept than
//! has been sent, and it is given up when it becomes too much: for one request, or for all.

use std::cell::Cell;

use super::body::Progress;

/// Of one request.
pub(crate) const KEPT_BYTES_MAX: usize = 1 << 20;
/// Of all requests together; the next one is sent without being kept.
const ALL_BYTES_MAX: usize = 64 << 20;

thread_local! {
    static ALL: Cell<usize> = const { Cell::new(0) };
}

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    bytes: Vec<u8>,
    lost: bool,
}

impl Kept {
    /// Keeps nothing.
    pub(crate) fn nothing() -> Self {
        Self { bytes: Vec::new(), lost: true }
    }

    /// `before` bytes more are in the message.
    pub(crate) fn push(&mut self, bytes: &[u8], before: usize) {
        let all = ALL.get();
        let fits = before + self.bytes.len() + bytes.len() <= KEPT_BYTES_MAX
            && all + bytes.len() <= ALL_BYTES_MAX;
        if self.lost || !fits {
            self.give_up();
            return;
        }
        ALL.set(all + bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// All of them, which are kept on; `None`: they are not there any more.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        (!self.lost).then_some(&self.bytes)
    }

    fn give_up(&mut self) {
        self.lost = true;
        self.release();
        self.bytes = Vec::new();
    }

    fn release(&self) {
        ALL.set(ALL.get().saturating_sub(self.bytes.len()));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.release();
    }
}

/// What was kept and is in the message now: counted as before, until the request is over.
#[derive(Debug, Default)]
struct Recovered {
    bytes: usize,
}

impl Drop for Recovered {
    fn drop(&mut self) {
        ALL.set(ALL.get().saturating_sub(self.bytes));
    }
}

/// A body that is still coming.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) body: Progress,
    kept: Kept,
    recovered: Recovered,
    /// Bytes of it that are in the message.
    before: usize,
    /// The beginning of the next request, which came with its end.
    pub(super) next: Vec<u8>,
}

impl Sending {
    /// `before` bytes of the body are in the message.
    pub(super) fn new(body: Progress, before: usize) -> Box<Self> {
        let mut kept = Kept::default();
        // What is known to be too long is not kept at all.
        kept.lost = matches!(body, Progress::Length(left) if (KEPT_BYTES_MAX - before.min(KEPT_BYTES_MAX)) as u64 <= left);
        let recovered = Recovered::default();
        Box::new(Self { body, kept, recovered, before, next: Vec::new() })
    }

    /// Whether all that was sent is still there.
    pub(super) fn is_kept(&self) -> bool {
        !self.kept.lost
    }

    /// Takes what was read: `content` is about to be sent, and `next` is behind the body.
    pub(super) fn note(&mut self, content: &[u8], next: &[u8]) {
        self.kept.push(content, self.before);
        self.next.extend_from_slice(next);
    }

    /// Puts what was sent behind the message, which then is whole as far as the body has come. `false`: it is not
    /// there any more.
    pub(super) fn recover(&mut self, message: &mut Vec<u8>) -> bool {
        if self.kept.lost {
            return false;
        }
        let bytes = std::mem::take(&mut self.kept.bytes);
        message.extend_from_slice(&bytes);
        self.before += bytes.len();
        self.recovered.bytes += bytes.len();
        true
    }
}

/// What all requests of this thread keep.
#[cfg(test)]
pub(crate) fn all() -> usize {
    ALL.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sending() -> Box<Sending> {
        Sending::new(Progress::Length(1000), 0)
    }

    #[test]
    fn what_was_sent_is_there_again_and_more_than_a_megabyte_is_not() {
        let mut sent = sending();
        sent.note(b"ab", b"");
        sent.note(b"cd", b"next");
        let mut message = b"head".to_vec();
        assert!(sent.recover(&mut message));
        assert!(message == b"headabcd" && sent.next == b"next");
        sent.note(&vec![0; KEPT_BYTES_MAX - 4], b"");
        assert!(!sent.kept.lost);
        sent.note(b"x", b"");
        assert!(sent.kept.lost && sent.kept.bytes.capacity() == 0);
        assert!(!sent.recover(&mut message) && message == b"headabcd");
        assert!(Sending::new(Progress::Length(KEPT_BYTES_MAX as u64), 0).kept.lost);
    }

    #[test]
    fn all_requests_together_keep_no_more_than_their_bound() {
        let mut all: Vec<_> = (0..ALL_BYTES_MAX / KEPT_BYTES_MAX + 1).map(|_| sending()).collect();
        for sent in &mut all {
            sent.note(&vec![0; KEPT_BYTES_MAX], b"");
        }
        assert_eq!(all.iter().filter(|sent| sent.kept.lost).count(), 1);
        assert_eq!(ALL.get(), ALL_BYTES_MAX);
        assert!(all[0].recover(&mut Vec::new()));
        assert_eq!(ALL.get(), ALL_BYTES_MAX, "what is in a message is still there");
        drop(all);
        assert_eq!(ALL.get(), 0, "given back");
    }
}
