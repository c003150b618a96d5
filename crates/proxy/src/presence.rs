//! What a connection is at, for who asks what keeps a Machine awake (`live`).
//!
//! Cells in memory that each request touches anyway. Nothing is copied and no clock is looked at for them: the head of
//! a request lies here while its answer is under way, and goes back to its connection afterwards.

use std::cell::{Cell, Ref, RefCell};
use std::ops::Deref;

use perch_core::time::Timestamp;

use crate::Endpoints;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Presence {
    ends: Cell<Option<Endpoints>>,
    doing: Cell<Doing>,
    head: RefCell<Vec<u8>>,
}

/// What a connection is at, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doing {
    pub(crate) what: What,
    /// It keeps its place and is no load.
    pub(crate) resting: bool,
    /// Of HTTP/2, in flight.
    pub(crate) streams: u32,
    pub(crate) since: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Its caller has asked for nothing.
    Nothing,
    Request,
    /// A WebSocket, or another protocol that a request has changed to.
    Upgraded,
    Raw,
    Streams,
}

impl Presence {
    pub(crate) fn new() -> Self {
        let nothing =
            Doing { what: What::Nothing, resting: false, streams: 0, since: Timestamp::ZERO };
        Self { ends: Cell::default(), doing: Cell::new(nothing), head: RefCell::default() }
    }

    pub(crate) fn set_ends(&self, ends: Endpoints) {
        self.ends.set(Some(ends));
    }

    pub(crate) fn ends(&self) -> Option<Endpoints> {
        self.ends.get()
    }

    pub(crate) fn doing(&self) -> Doing {
        self.doing.get()
    }

    /// It does this from now on.
    pub(crate) fn begin(&self, what: What, since: Timestamp) {
        self.doing.set(Doing { what, resting: false, streams: 0, since });
    }

    pub(crate) fn set_resting(&self, resting: bool) {
        self.doing.set(Doing { resting, ..self.doing.get() });
    }

    /// One stream more; the oldest of those that follow each other without a pause says since when.
    pub(crate) fn begin_stream(&self, now: Timestamp) {
        let mut doing = self.doing.get();
        if doing.what != What::Streams {
            doing = Doing { what: What::Streams, resting: false, streams: 0, since: now };
        }
        doing.streams += 1;
        self.doing.set(doing);
    }

    pub(crate) fn end_stream(&self) {
        let doing = self.doing.get();
        self.doing.set(Doing { streams: doing.streams.saturating_sub(1), ..doing });
    }

    /// Keeps a request's head here until the guard goes.
    pub(crate) fn show<'a>(&'a self, head: &'a mut Vec<u8>) -> Shown<'a> {
        drop(self.head.replace(std::mem::take(head)));
        Shown { presence: self, seen: Some(self.head.borrow()), back: head }
    }

    /// Keeps this for good.
    pub(crate) fn keep(&self, head: Vec<u8>) {
        drop(self.head.replace(head));
    }

    /// Reads the head, if there is one.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        read(&self.head.borrow())
    }
}

/// A head that lies in a [`Presence`].
pub(crate) struct Shown<'a> {
    presence: &'a Presence,
    /// `None` only inside `drop`.
    seen: Option<Ref<'a, Vec<u8>>>,
    back: &'a mut Vec<u8>,
}

impl Deref for Shown<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.seen.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.seen = None;
        *self.back = self.presence.head.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_seen_while_it_is_shown_and_goes_back() {
        let presence = Presence::new();
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        let place = head.as_ptr();
        {
            let shown = presence.show(&mut head);
            assert_eq!(&shown[..3], b"GET");
            assert_eq!(presence.read(<[u8]>::to_vec), b"GET / HTTP/1.1\r\n");
        }
        assert!(presence.read(<[u8]>::is_empty));
        assert_eq!((head.len(), head.as_ptr()), (16, place), "nothing was copied");
    }

    #[test]
    fn streams_are_counted_from_the_first_one_on() {
        let presence = Presence::new();
        let at = Timestamp::from_micros;
        presence.begin_stream(at(5));
        presence.begin_stream(at(9));
        presence.end_stream();
        let Doing { what, streams, since, .. } = presence.doing();
        assert_eq!((what, streams, since), (What::Streams, 1, at(5)));
        presence.begin(What::Nothing, at(11));
        presence.begin_stream(at(12));
        assert_eq!(presence.doing().since, at(12));
    }
}
