//! Lines that the platform itself writes into an app's log: wakes, refusals, failed starts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

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

/// The newest lines of each app, in memory.
#[derive(Debug, Default)]
pub(crate) struct PlatformLog {
    apps: Mutex<BTreeMap<String, VecDeque<Line>>>,
}

impl PlatformLog {
    pub(crate) fn push(&self, app: &str, line: Line) {
        let mut apps = lock(&self.apps);
        let lines = apps.entry(app.to_owned()).or_default();
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(crate) fn of(&self, app: &str) -> Vec<Line> {
        lock(&self.apps).get(app).into_iter().flatten().cloned().collect()
    }

    pub(crate) fn forget(&self, app: &str) {
        lock(&self.apps).remove(app);
    }
}
