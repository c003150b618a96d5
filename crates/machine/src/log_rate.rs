//! How fast a Machine may write its log.
//!
//! Beyond the limit lines are dropped and counted, and one line says how many. Whoever writes without end is not read
//! without end either: that would cost the host a processor. Its pipe is read again after a short rest, so that it
//! waits, but never for long.

use std::time::{Duration, Instant};

/// Bytes a second that are kept. At this rate the two files of a log last 16 s; a program at its usual work stays far
/// below.
const BYTES_PER_SECOND: u64 = 1 << 20;
/// What may come at once: half of what is kept, so that a burst leaves something of what was before.
const BURST_BYTES: u64 = 8 << 20;
/// How long a pipe is left alone that is over the limit: at 64 KiB a time that is 13 MB/s, for 2 % of a processor.
const REST: Duration = Duration::from_millis(5);
/// How often it is said what was dropped.
const WORD_INTERVAL: Duration = Duration::from_secs(1);

/// The limit of one Machine.
#[derive(Debug)]
pub(crate) struct LogRate {
    left: u64,
    filled_at: Instant,
    dropped: Dropped,
    /// When what was dropped is said.
    word_at: Option<Instant>,
    rest_until: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

impl LogRate {
    pub(crate) fn new(now: Instant) -> Self {
        let dropped = Dropped::default();
        Self { left: BURST_BYTES, filled_at: now, dropped, word_at: None, rest_until: None }
    }

    /// Whether these lines are kept. If not, the pipe is to be left alone until [`Self::rest`] is over.
    pub(crate) fn admits(&mut self, lines: &[u8], now: Instant) -> bool {
        self.fill(now);
        let bytes = lines.len() as u64;
        if bytes <= self.left {
            self.left -= bytes;
            return true;
        }
        self.dropped.lines += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.dropped.bytes += bytes;
        self.word_at.get_or_insert(now + WORD_INTERVAL);
        self.rest_until = Some(now + REST);
        false
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled_at).as_micros();
        let more = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(BYTES_PER_SECOND);
        self.left = self.left.saturating_add(more / 1_000_000).min(BURST_BYTES);
        self.filled_at = now;
    }

    /// How long the pipes are to be left alone.
    pub(crate) fn rest(&self, now: Instant) -> Option<Duration> {
        let left = self.rest_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// How long until there is something to say, if there is.
    pub(crate) fn until_word(&self, now: Instant) -> Option<Duration> {
        self.word_at.map(|at| at.saturating_duration_since(now))
    }

    /// What was dropped, when it is time to say so.
    pub(crate) fn word(&mut self, now: Instant) -> Option<String> {
        self.word_at.filter(|at| *at <= now)?;
        self.last_word()
    }

    /// What was dropped and has not been said.
    pub(crate) fn last_word(&mut self) -> Option<String> {
        self.word_at = None;
        let Dropped { lines, bytes } = std::mem::take(&mut self.dropped);
        let text = format!(
            "perch: {lines} lines ({bytes} bytes) were dropped: a Machine's log takes {} MiB a second",
            BYTES_PER_SECOND >> 20
        );
        (0 < bytes).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = &[b'\n'; 1024];

    #[test]
    fn a_burst_is_kept_and_what_follows_is_counted() {
        let start = Instant::now();
        let mut rate = LogRate::new(start);
        let kept = (0..10_000).filter(|_| rate.admits(LINE, start)).count() as u64;
        assert_eq!(kept, BURST_BYTES / 1024);
        assert!(rate.rest(start).is_some_and(|rest| rest <= REST));
        assert_eq!(rate.word(start), None, "not for each line");
        let later = start + WORD_INTERVAL;
        assert_eq!(rate.rest(later), None);
        let dropped = (10_000 - kept) * 1024;
        let word = rate.word(later).expect("something was dropped");
        assert!(word.contains(&format!("{dropped} lines ({dropped} bytes)")), "{word}");
        assert_eq!(rate.last_word(), None, "it is said once");
    }

    #[test]
    fn after_a_second_there_is_room_for_another_mebibyte() {
        let start = Instant::now();
        let mut rate = LogRate::new(start);
        while rate.admits(LINE, start) {}
        let later = start + Duration::from_secs(1);
        let kept = (0..10_000).filter(|_| rate.admits(LINE, later)).count() as u64;
        assert_eq!(kept, BYTES_PER_SECOND / 1024);
    }

    #[test]
    fn who_writes_little_is_never_limited() {
        let start = Instant::now();
        let mut rate = LogRate::new(start);
        let all = (0..100_000).all(|ms| rate.admits(LINE, start + Duration::from_millis(ms)));
        assert!(all && rate.until_word(start).is_none());
    }
}
