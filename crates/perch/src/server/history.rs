//! A Machine's events: the newest in memory, all recent ones in a bounded file of this host.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use perch_api::Peer;
use perch_api::wire;
use serde_json::Value;

/// Events kept in memory and shown; older ones nobody asks for.
const EVENTS_MAX: usize = 50;
/// Of these, so many are of usual sleeps and wakes where there are others: a Machine that is woken each second does not
/// push out in a minute why it crashed or who changed it. Half, so that what it does just now is seen as well.
const USUAL_MAX: usize = EVENTS_MAX / 2;
/// What autostop and autostart ask for all the time.
const ASKED: [&str; 4] = ["launch", "stop", "suspend", "resume"];
/// What comes of it, and with it.
const FOLLOWS: [&str; 6] = ["start", "exit", "suspend", "resume", "page_out", "workers_ended"];
/// The file is written anew with what memory holds when it grows beyond this.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Name of the file in the Machine's directory.
const FILE: &str = "events.jsonl";

/// Who caused an event (MA-10, MA-14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Somebody with the API.
    User(Peer),
    /// The platform itself.
    Platform,
    /// The platform, for a reason that its event tells.
    Because(String),
    /// Autostop and autostart.
    Proxy,
}

impl Source {
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::User(Peer::Machine(_)) => "machine",
            Self::User(Peer::Local { .. } | Peer::Token(_)) => "user",
            Self::Platform | Self::Because(_) => "flyd",
            Self::Proxy => "proxy",
        }
    }

    /// Which user it was, or why, as a detail of the event.
    pub(crate) fn asker(&self) -> Option<(&'static str, Value)> {
        match self {
            Self::User(Peer::Local { uid, .. }) => Some(("uid", (*uid).into())),
            Self::User(Peer::Token(holder)) => Some(("token", holder.name.as_str().into())),
            Self::User(Peer::Machine(own)) => Some(("machine", own.id.as_str().into())),
            Self::Because(cause) => Some(("cause", cause.as_str().into())),
            Self::Platform | Self::Proxy => None,
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
        if self.events.len() <= EVENTS_MAX {
            return;
        }
        let usual = || self.events.iter().enumerate().filter(|(_, event)| is_usual(event));
        match usual().count() {
            0..=USUAL_MAX => self.events.pop_back(),
            _ => usual().next_back().map(|(at, _)| at).and_then(|at| self.events.remove(at)),
        };
    }

    pub(crate) fn newest(&self) -> Option<&wire::Event> {
        self.events.front()
    }

    /// How the last run ended of which it is known.
    pub(crate) fn last_exit(&self) -> Option<&wire::ExitEvent> {
        self.events.iter().find_map(|event| event.request.as_ref()?.exit_event.as_ref())
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

/// Whether it is of a sleep or a wake that went as it should, without anybody's doing.
fn is_usual(event: &wire::Event) -> bool {
    let request = event.request.as_ref();
    let failed = request.is_some_and(|it| {
        // A page-out that somebody's need led to has a cause.
        it.details.contains_key("reason")
            || (event.kind == "page_out" && it.details.contains_key("cause"))
            || it.exit_event.as_ref().is_some_and(|exit| !exit.requested_stop)
    });
    let is = |source: &Source| event.source == source.as_str();
    let is_kind = |kinds: &[&str]| kinds.contains(&event.kind.as_str());
    let asked = is(&Source::Proxy) && is_kind(&ASKED);
    let follows = (is(&Source::Proxy) || is(&Source::Platform)) && is_kind(&FOLLOWS);
    !failed && (asked || follows)
}

/// How long an event waits for those that follow it: somebody waits for the wake that it tells of, and is on the CPU's list
/// behind whoever writes it.
const GATHER_TIME: Duration = Duration::from_millis(2);
/// Events that may wait for the disk; beyond, they are only in memory.
const PENDING_MAX: usize = 4_096;

/// Writes events behind, in order, on a thread of its own: a wake writes nothing before its answer.
#[derive(Debug)]
pub(crate) struct Writer {
    pending: SyncSender<Job>,
}

#[derive(Debug)]
enum Job {
    Append(PathBuf, Box<wire::Event>),
    Flush(SyncSender<()>),
}

impl Writer {
    /// Starts the thread; it ends with the last writer.
    ///
    /// # Errors
    /// When no thread can be made.
    pub(crate) fn start() -> io::Result<Self> {
        let (pending, jobs) = sync_channel(PENDING_MAX);
        let write = move || {
            while let Ok(job) = jobs.recv() {
                if matches!(job, Job::Append(..)) {
                    std::thread::sleep(GATHER_TIME);
                }
                do_job(job);
                jobs.try_iter().for_each(do_job);
            }
        };
        std::thread::Builder::new().name("perch-events".to_owned()).spawn(write)?;
        Ok(Self { pending })
    }

    /// Never blocks.
    pub(crate) fn append(&self, dir: PathBuf, event: wire::Event) {
        if self.pending.try_send(Job::Append(dir, Box::new(event))).is_err() {
            tracing::warn!("the disk is too slow for events; one is only in memory");
        }
    }

    /// Returns when everything that was appended is written. Blocks.
    pub(crate) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.pending.send(Job::Flush(done)).is_ok() {
            // Its thread answers each flush; if it is gone there is nothing to wait for.
            wait.recv().ok();
        }
    }
}

fn do_job(job: Job) {
    match job {
        Job::Append(dir, event) => {
            if let Err(error) = append(&dir, &event) {
                tracing::debug!(dir = %dir.display(), %error, "event not written");
            }
        }
        // Whoever asked may have stopped waiting.
        Job::Flush(done) => drop(done.send(())),
    }
}

/// Appends one event to the file, which stays bounded.
///
/// # Errors
/// When the disk refuses; the event is then only in memory.
fn append(dir: &Path, event: &wire::Event) -> io::Result<()> {
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

    fn caused(id: usize, kind: &str, source: Source) -> wire::Event {
        let source = source.as_str().to_owned();
        wire::Event { kind: kind.to_owned(), source, ..event(id) }
    }

    /// Of a Machine that a ping wakes each second.
    fn usual(id: usize) -> wire::Event {
        let round =
            [("launch", Source::Proxy), ("start", Source::Platform), ("stop", Source::Proxy)];
        let Some((kind, source)) = round.get(id % 4) else {
            let exit = wire::ExitEvent { requested_stop: true, ..Default::default() };
            let request = wire::EventRequest { exit_event: Some(exit), ..Default::default() };
            let exit = caused(id, "exit", Source::Platform);
            return wire::Event { request: Some(request), ..exit };
        };
        caused(id, kind, source.clone())
    }

    fn ids(history: &History) -> Vec<usize> {
        let number = |event: &wire::Event| event.id.parse().expect("a number");
        history.events.iter().map(number).collect()
    }

    #[test]
    fn usual_sleeps_and_wakes_push_out_none_but_their_own_kind() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut history = History::default();
        let mut push = |event: wire::Event| {
            append(dir.path(), &event).expect("written");
            history.push(event);
        };
        push(wire::Event { source: "user".to_owned(), ..event(0) });
        let exit = wire::ExitEvent { exit_code: 1, ..Default::default() };
        let request = wire::EventRequest { exit_event: Some(exit), ..Default::default() };
        let crash = caused(1, "exit", Source::Platform);
        push(wire::Event { request: Some(request), ..crash });
        push(caused(2, "heartbeat", Source::Proxy));
        let reason = [("reason".to_owned(), "no room".into())].into_iter().collect();
        let request = wire::EventRequest { details: reason, ..Default::default() };
        let failed = caused(3, "suspend", Source::Platform);
        push(wire::Event { request: Some(request), ..failed });
        (4..5_000).for_each(|id| push(usual(id)));
        let kept: Vec<usize> = (4_954..5_000).rev().chain([3, 2, 1, 0]).collect();
        assert_eq!(ids(&history), kept);
        assert_eq!(ids(&History::read(dir.path())), kept, "and a later server has the same");
        (5_000..5_040).for_each(|id| history.push(event(id)));
        let seen = ids(&history);
        assert_eq!((seen.len(), seen[0]), (EVENTS_MAX, 5_039));
        let usual = history.events.iter().filter(|event| is_usual(event)).count();
        assert_eq!(usual, 10, "where there is much else, they go as everything does");
    }

    #[test]
    fn a_page_out_is_usual_when_its_time_has_come_and_not_when_somebody_needed_the_memory() {
        let page_out = |key: &str| {
            let details = [(key.to_owned(), "x".into())].into_iter().collect();
            let request = wire::EventRequest { details, ..Default::default() };
            wire::Event { request: Some(request), ..caused(1, "page_out", Source::Platform) }
        };
        assert!(is_usual(&page_out("paged_out_bytes")));
        assert!(!is_usual(&page_out("cause")));
    }

    #[test]
    fn after_a_flush_everything_is_on_disk_in_order() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let writer = Writer::start().expect("a thread");
        for id in 0..20 {
            writer.append(dir.path().to_owned(), event(id));
        }
        writer.flush();
        let events = History::read(dir.path()).newest_first();
        let ids: Vec<&str> = events.iter().rev().map(|event| event.id.as_str()).collect();
        assert_eq!(ids, (0..20).map(|id| id.to_string()).collect::<Vec<_>>());
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
