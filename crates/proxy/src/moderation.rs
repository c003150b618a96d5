//! Takes short rests under heavy load, so that more is done at each turn.
//!
//! A proxy that is nearly, but not quite, busy all the time looks for events again as soon as it has handled the last
//! one or two. Each look, and each caller and program that is woken for a single message, costs the processor several
//! times what the message costs. Network cards have the same trouble and the same cure: when much comes in, they
//! collect for some tens of microseconds before they interrupt.
//!
//! It begins when the thread has been busy for three quarters of the time with many messages, and ends when it is
//! busy for less than half of it or the messages become few: a caller who waits for each answer, or one large body, is
//! never made to wait. A proxy that others keep from its processor seems busy too; its rests are then the least of it.

use std::cell::RefCell;
use std::task::Poll;
use std::time::Duration;

use perch_core::time::Timestamp;

use crate::clock;

/// How long one rest is; the kernel adds up to as much again (its timer slack).
const REST: Duration = Duration::from_micros(50);
/// How long load is measured before anything changes.
const WINDOW: Duration = Duration::from_millis(5);
/// Fewer messages than this in a window are too few to be collected: two in the time of a rest.
const MESSAGES_MIN: u128 = 100;
/// Pieces of raw connections below this size are messages: a query, a row.
const SMALL_BYTES_MAX: usize = 2048;
/// Answers that begin with this much at least are large: to copy them costs more than all that resting saves. Measured with 64 KiB
/// on 64 connections: without rests 3 to 5 % less CPU, and two thirds of the median latency.
const LARGE_BYTES_MIN: usize = 16 * 1024;

thread_local! {
    static HERE: RefCell<Moderation> = RefCell::new(Moderation::new(clock::now()));
}

/// One request or answer was passed on by this thread.
pub(crate) fn count() {
    HERE.with_borrow_mut(|it| it.messages += 1);
}

/// One request came to this thread: counts it, and says when as [`turn`] does.
pub(crate) fn count_request() -> Timestamp {
    if cfg!(test) {
        count();
        return clock::now();
    }
    HERE.with_borrow_mut(|it| {
        it.messages += 1;
        it.busy_since
    })
}

/// One piece of a raw connection was passed on by this thread. Large ones are parts of a stream, which gains nothing
/// when it is made to wait.
pub(crate) fn count_piece(bytes: usize) {
    if bytes < SMALL_BYTES_MAX {
        count();
    }
}

/// The answer to a request that was counted begins with so many bytes. A large one gains nothing when it is made to wait, as
/// above: neither it, which is counted when it is over, nor its request are messages then.
pub(crate) fn discount_large(bytes: usize) {
    if LARGE_BYTES_MIN <= bytes {
        HERE.with_borrow_mut(|it| it.messages -= 2);
    }
}

/// Under heavy load lets all others who have something to read do that before the caller of this writes: the
/// processor then runs the kernel's long way out many times in a row, not by turns with its way in.
pub(crate) async fn before_write() {
    let mut waits = HERE.with_borrow(|it| it.rests);
    std::future::poll_fn(|cx| {
        if !std::mem::take(&mut waits) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The thread has nothing to do and is about to wait for events. Rests first if the load is high.
pub(crate) fn park() {
    if HERE.with_borrow_mut(|it| it.park(clock::now())) {
        std::thread::sleep(REST);
    }
}

/// The thread has events to handle.
pub(crate) fn unpark() {
    HERE.with_borrow_mut(|it| it.busy_since = clock::now());
}

/// When this thread last began to handle events: the time of what is read now, as far as it matters to
/// who counts in seconds, without a look at the clock.
pub(crate) fn turn() -> Timestamp {
    if cfg!(test) { clock::now() } else { HERE.with_borrow(|it| it.busy_since) }
}

/// As under heavy load, for the rest of this thread's life.
#[cfg(test)]
pub(crate) fn begin() {
    HERE.with_borrow_mut(|it| it.rests = true);
}

/// What one thread knows of its load.
#[derive(Debug)]
struct Moderation {
    window_since: Timestamp,
    busy_since: Timestamp,
    busy: Duration,
    /// Below zero where large answers were discounted that are not counted yet.
    messages: i64,
    rests: bool,
}

impl Moderation {
    const fn new(now: Timestamp) -> Self {
        let (busy, messages, rests) = (Duration::ZERO, 0, false);
        Self { window_since: now, busy_since: now, busy, messages, rests }
    }

    /// Nothing is left to be done; whether to rest before looking for more.
    fn park(&mut self, now: Timestamp) -> bool {
        self.busy += now.since(self.busy_since);
        let window = now.since(self.window_since);
        if WINDOW <= window {
            let most_of_it = if self.rests { window / 2 } else { window / 4 * 3 };
            let messages = u128::try_from(self.messages).unwrap_or(0);
            let enough = WINDOW.as_micros() * messages >= window.as_micros() * MESSAGES_MIN;
            self.rests = enough && most_of_it <= self.busy;
            (self.window_since, self.busy, self.messages) = (now, Duration::ZERO, 0);
        }
        // Asked again without anything in between, it has not been busy meanwhile.
        self.busy_since = now;
        self.rests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(1_000_000 + micros)
    }

    /// Turns of 100 us for a while, so much of each busy with so many messages; whether it rests then.
    fn after(it: &mut Moderation, from: u64, busy: u64, messages: i64) -> bool {
        let mut rests = false;
        for turn in 0..150 {
            let begin = from + turn * 100;
            it.busy_since = at(begin);
            it.messages += messages;
            rests = it.park(at(begin + busy));
        }
        rests
    }

    #[test]
    fn only_a_busy_thread_with_many_messages_rests() {
        let new = || Moderation::new(at(0));
        assert!(after(&mut new(), 0, 80, 4));
        assert!(!after(&mut new(), 0, 60, 4), "it has time left");
        assert!(!after(&mut new(), 0, 99, 1), "one large answer");
        assert!(!after(&mut new(), 0, 1, 0), "nobody is there");
    }

    #[test]
    fn who_rests_goes_on_while_it_is_busy_for_half_of_the_time() {
        let mut it = Moderation::new(at(0));
        assert!(after(&mut it, 0, 80, 4));
        assert!(after(&mut it, 15_000, 60, 4), "resting made room, which is no reason to stop");
        assert!(!after(&mut it, 30_000, 40, 4));
        assert!(!after(&mut it, 45_000, 60, 4));
    }

    #[test]
    fn large_answers_are_no_messages() {
        let messages = || HERE.with_borrow(|it| it.messages);
        for (bytes, counted) in [(LARGE_BYTES_MIN, 0), (LARGE_BYTES_MIN - 1, 20)] {
            HERE.with_borrow_mut(|it| it.messages = 0);
            // Ten at once, as the proxy counts them.
            (0..10).for_each(|_| count());
            (0..10).for_each(|_| discount_large(bytes));
            (0..10).for_each(|_| count());
            assert_eq!(messages(), counted, "{bytes} bytes");
        }
    }

    #[tokio::test]
    async fn under_load_all_read_before_anybody_writes() {
        begin();
        let log = RefCell::new(Vec::new());
        let one = || async {
            log.borrow_mut().push("read");
            before_write().await;
            log.borrow_mut().push("write");
        };
        tokio::join!(one(), one());
        assert_eq!(log.into_inner(), ["read", "read", "write", "write"]);
    }

    #[test]
    fn a_long_silence_ends_it_at_once() {
        let mut it = Moderation::new(at(0));
        assert!(after(&mut it, 0, 80, 4));
        it.busy_since = at(5_000_000);
        it.messages += 1;
        assert!(!it.park(at(5_000_010)));
    }
}
