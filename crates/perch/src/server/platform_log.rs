//! Lines that the platform itself writes into an app's log: wakes, refusals, failed starts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use super::clock;
use super::world::lock;

/// Lines kept per app; the Machines' own logs are files and much longer.
const LINES_MAX: usize = 500;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// RFC 3339 with microseconds.
    pub(crate) timestamp: String,
    /// Empty when it is about the whole app.
    pub(crate) machine: String,
    /// `proxy` or `runner`.
    pub(crate) provider: &'static str,
    pub(crate) level: String,
    pub(crate) text: String,
}

/// How far somebody has read an app's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Which series of lines; a restart or a new app of the same name begins another.
    pub(crate) series: u64,
    /// Lines of it that were read.
    pub(crate) read: u64,
}

#[derive(Debug)]
struct Series {
    id: u64,
    /// Lines that came before the oldest one kept.
    gone: u64,
    lines: VecDeque<Line>,
}

/// The newest lines of each app, in memory.
#[derive(Debug, Default)]
pub(crate) struct PlatformLog {
    apps: Mutex<BTreeMap<String, Series>>,
}

impl PlatformLog {
    pub(crate) fn push(&self, app: &str, line: Line) {
        let mut apps = lock(&self.apps);
        let new = || Series { id: clock::random(), gone: 0, lines: VecDeque::new() };
        let series = apps.entry(app.to_owned()).or_insert_with(new);
        if series.lines.len() == LINES_MAX {
            series.lines.pop_front();
            series.gone += 1;
        }
        series.lines.push_back(line);
    }

    /// The lines after `mark`, and the mark after them.
    pub(crate) fn since(&self, app: &str, mark: Option<Mark>) -> (Vec<Line>, Option<Mark>) {
        let apps = lock(&self.apps);
        let Some(series) = apps.get(app) else { return (Vec::new(), mark) };
        let read = mark.filter(|mark| mark.series == series.id).map_or(0, |mark| mark.read);
        let skipped = usize::try_from(read.saturating_sub(series.gone)).unwrap_or(usize::MAX);
        let lines: Vec<Line> = series.lines.iter().skip(skipped).cloned().collect();
        let end = Mark { series: series.id, read: series.gone + series.lines.len() as u64 };
        (lines, Some(end))
    }

    pub(crate) fn forget(&self, app: &str) {
        lock(&self.apps).remove(app);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: usize) -> Line {
        let text = text.to_string();
        Line {
            timestamp: String::new(),
            machine: String::new(),
            provider: "proxy",
            level: String::new(),
            text,
        }
    }

    #[test]
    fn a_mark_skips_what_was_read_and_nothing_of_another_series() {
        let log = PlatformLog::default();
        assert_eq!(log.since("a", None), (Vec::new(), None));
        (0..LINES_MAX).for_each(|number| log.push("a", line(number)));
        let (all, mark) = log.since("a", None);
        assert_eq!(all.len(), LINES_MAX);
        assert!(log.since("a", mark).0.is_empty());
        log.push("a", line(LINES_MAX));
        assert_eq!(log.since("a", mark).0, [line(LINES_MAX)]);
        log.forget("a");
        log.push("a", line(7));
        assert_eq!(log.since("a", mark).0, [line(7)]);
    }
}
