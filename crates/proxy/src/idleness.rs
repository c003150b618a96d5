//! How long nothing may be said in a request or on an upgraded connection (`idle_timeout`, PX-88).
//!
//! Whoever passes bytes on counts, which costs an addition; one timer per limited connection looks whether the count
//! has changed. A connection that rests while its Machine sleeps is silent too: its limit goes on.

use std::cell::Cell;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// So many looks in a limit: silence ends a connection at the limit, or an eighth of it later.
const LOOKS: u32 = 8;
/// The shortest time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(1);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Idleness {
    limit: Option<Duration>,
    said: Cell<u32>,
}

impl Idleness {
    /// `None`: silence is not limited.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self { limit, said: Cell::new(0) }
    }

    /// Something was said by somebody.
    pub(crate) fn note(&self) {
        self.said.set(self.said.get().wrapping_add(1));
    }

    /// Runs `work`; `None`: nothing was said for too long.
    pub(crate) async fn unless_silent<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let Some(limit) = self.limit else { return Some(work.await) };
        let mut work = pin!(work);
        let mut silence = Box::pin(self.silence(limit));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            silence.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    async fn silence(&self, limit: Duration) {
        let mut looks = Looks { before: self.said.get(), silent: 0 };
        while !looks.look(self.said.get()) {
            tokio::time::sleep((limit / LOOKS).max(LOOK_MIN)).await;
        }
    }
}

/// What was seen.
#[derive(Debug)]
struct Looks {
    before: u32,
    /// Looks in a row that found nothing new.
    silent: u32,
}

impl Looks {
    /// Whether nothing was said for a whole limit.
    fn look(&mut self, said: u32) -> bool {
        self.silent = if said == self.before { self.silent + 1 } else { 0 };
        self.before = said;
        LOOKS < self.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_in_all_looks_of_a_limit_is_too_long() {
        let mut looks = Looks { before: 0, silent: 0 };
        // The first look is at the beginning.
        let silent = (0..LOOKS).map(|_| looks.look(0)).filter(|ends| *ends).count();
        assert_eq!(silent, 0);
        assert!(!looks.look(1), "something was said at last");
        assert!((0..LOOKS).all(|_| !looks.look(1)));
        assert!(looks.look(1));
    }
}
