//! A Machine's events: the newest in memory, all recent ones in a bounded file of this host.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use perch_api::wire;

/// Events kept in memory and shown; older ones nobody asks for.
const EVENTS_MAX: usize = 50;
/// The file is written anew with what memory holds when it grows beyond this.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Name of the file in the Machine's directory.
const FILE: &str = "events.jsonl";

/// Who caused an event (MA-10, MA-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Somebody with the API.
    User,
    /// The platform itself.
    Platform,
    /// Autostop and autostart.
    Proxy,
}

impl Source {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Platform => "flyd",
            Self::Proxy => "proxy",
        }
    }
}

/// The newest events, newest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    events: VecDeque<wire::Event>,
}

impl History {
    pub(crate) fn push(&mut self, event: wire::Event) {
        self.events.push_front(event);
        self.events.truncate(EVENTS_MAX);
    }

    pub(crate) fn newest_first(&self) -> Vec<wire::Event> {
        self.events.iter().cloned().collect()
    }

    /// Reads what an earlier server wrote. Lines that a crash cut short are passed over.
    pub(crate) fn read(dir: &Path) -> Self {
        let text = fs::read_to_string(path(dir)).unwrap_or_default();
        let mut history = Self::default();
        for event in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            history.push(event);
        }
        history
    }
}

/// Appends one event to the file, which stays bounded.
///
/// # Errors
/// When the disk refuses; the event is then only in memory.
pub(crate) fn append(dir: &Path, event: &wire::Event) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path(dir))?;
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    file.write_all(&line)?;
    if FILE_BYTES_MAX < file.metadata()?.len() {
        return shorten(dir);
    }
    Ok(())
}

fn shorten(dir: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    for event in History::read(dir).events.iter().rev() {
        serde_json::to_writer(&mut text, event)?;
        text.push(b'\n');
    }
    let new = dir.join("events.new");
    fs::write(&new, text)?;
    fs::rename(new, path(dir))
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: usize) -> wire::Event {
        wire::Event { id: id.to_string(), kind: "start".to_owned(), ..wire::Event::default() }
    }

    #[test]
    fn the_file_stays_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for id in 0..5_000 {
            append(dir.path(), &event(id)).expect("written");
        }
        assert!(fs::metadata(path(dir.path())).expect("there").len() <= FILE_BYTES_MAX + 4096);
        let events = History::read(dir.path()).newest_first();
        assert_eq!((events.len(), events[0].id.as_str()), (EVENTS_MAX, "4999"));
    }

    #[test]
    fn a_line_cut_short_by_a_crash_is_passed_over() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        append(dir.path(), &event(1)).expect("written");
        let mut file = File::options().append(true).open(path(dir.path())).expect("there");
        file.write_all(b"{\"id\":\"2\",\"ty").expect("written");
        assert_eq!(History::read(dir.path()).newest_first().len(), 1);
    }
}
