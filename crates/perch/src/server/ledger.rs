//! The ledger of this host: what woke, held, refused and put to sleep. The newest records in memory, more of them in two
//! files that take turns, written behind by a thread of their own: a wake writes nothing before its answer.
//!
//! Nobody waits for the disk. What it does not take in time is in memory only, and the next line says how many are missing.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use perch_api::wire::{LedgerEvent, LedgerPage, LedgerQuery};
use perch_core::ledger::Ring;
use tokio::sync::watch;

use super::clock;
use super::metrics::Tally;
use super::world::lock;

pub(crate) mod entry;

/// Records in memory, which is what can be asked for: some days of a host with a few wakes a minute, 4 MB.
const RECORDS_MAX: usize = 8_192;
/// A file is turned when it is longer than this; there are two. About 10,000 records each.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Records that may wait for the disk.
const PENDING_MAX: usize = 4_096;
/// How long a record waits for those that follow it: somebody may wait for the processor behind whoever writes it.
const GATHER_TIME: Duration = Duration::from_millis(2);
/// Longest text of a reason; what failed may say much of itself.
const REASON_BYTES_MAX: usize = 1_024;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// By app: a flood of one washes nothing of others away.
    ring: Mutex<Ring<String, LedgerEvent>>,
    /// The newest id.
    last: watch::Sender<u64>,
    pending: SyncSender<Job>,
    unwritten: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Debug)]
enum Job {
    Append(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Ledger {
    /// Reads what earlier servers wrote in the directory, and goes on there.
    ///
    /// # Errors
    /// When no thread can be made. A file that cannot be read or written costs only what is in it.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let place = Place::of(data);
        let mut ring = Ring::new(RECORDS_MAX);
        for event in place.read() {
            ring.push(event.id, event.app.clone(), event);
        }
        let last = watch::Sender::new(ring.last());
        let (pending, jobs) = sync_channel(PENDING_MAX);
        let write = move || {
            let mut book = Book::new(place);
            while let Ok(job) = jobs.recv() {
                if matches!(job, Job::Append(_)) {
                    std::thread::sleep(GATHER_TIME);
                }
                book.take(std::iter::once(job).chain(jobs.try_iter()));
            }
        };
        std::thread::Builder::new().name("perch-ledger".to_owned()).spawn(write)?;
        let (ring, tally) = (Mutex::new(ring), Mutex::default());
        Ok(Self { ring, last, pending, unwritten: AtomicU64::new(0), tally })
    }

    /// Adds a record, of `unix_micros` or of now. Never blocks.
    pub(crate) fn enter(&self, mut event: LedgerEvent, unix_micros: Option<u64>) {
        let now = clock::unix().as_micros() as u64;
        // The proxy need not be trusted: an id far ahead would be the last of all.
        let micros = unix_micros.map_or(now, |it| it.min(now));
        event.timestamp = clock::stamp_micros(micros);
        cut(&mut event.reason);
        event.left_out += self.unwritten.swap(0, Ordering::Relaxed);
        lock(&self.tally).note(&event);
        let mut ring = lock(&self.ring);
        event.id = ring.number(micros);
        let missing = event.left_out + 1;
        let line = serde_json::to_vec(&event);
        ring.push(event.id, event.app.clone(), event);
        // Within the lock, so that the lines of the file are in order.
        let sent = line.is_ok_and(|mut line| {
            line.push(b'\n');
            self.pending.try_send(Job::Append(line)).is_ok()
        });
        self.last.send_replace(ring.last());
        drop(ring);
        if !sent {
            self.unwritten.fetch_add(missing, Ordering::Relaxed);
        }
    }

    /// The newest id.
    pub(crate) fn last(&self) -> u64 {
        *self.last.borrow()
    }

    /// Reads a page; holds an answer that would be empty.
    pub(crate) async fn read(&self, query: &LedgerQuery) -> LedgerPage {
        let mut changes = self.last.subscribe();
        let deadline = tokio::time::Instant::now() + query.hold;
        loop {
            changes.mark_unchanged();
            let page = self.page(query);
            if !page.events.is_empty() || query.after.is_none() {
                return page;
            }
            let changed = tokio::time::timeout_at(deadline, changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return page;
            }
        }
    }

    fn page(&self, query: &LedgerQuery) -> LedgerPage {
        let is_meant =
            |event: &&LedgerEvent| query.apps.as_ref().is_none_or(|apps| apps.contains(&event.app));
        let ring = lock(&self.ring);
        let meant = ring.after(query.after.unwrap_or(0)).map(|(_, event)| event).filter(is_meant);
        let events: Vec<_> = match query.after {
            Some(_) => meant.take(query.limit).cloned().collect(),
            None => {
                let mut newest: Vec<_> = meant.rev().take(query.limit).cloned().collect();
                newest.reverse();
                newest
            }
        };
        let is_cut = query.after.is_some() && events.len() == query.limit;
        let next = events.last().filter(|_| is_cut).map_or(ring.last(), |event| event.id);
        LedgerPage { events, next }
    }

    /// The newest record of an app for which this is so.
    pub(crate) fn newest(
        &self,
        app: &str,
        is_it: impl Fn(&LedgerEvent) -> bool,
    ) -> Option<LedgerEvent> {
        let ring = lock(&self.ring);
        ring.of(app).rev().find(|event| is_it(event)).cloned()
    }

    /// What was entered since this server began, in numbers.
    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    /// Reads the records of an app, newest first.
    pub(crate) fn read_of<T>(
        &self,
        app: &str,
        read: impl FnOnce(&mut dyn Iterator<Item = &LedgerEvent>) -> T,
    ) -> T {
        read(&mut lock(&self.ring).of(app).rev())
    }

    /// Returns when everything that was entered is in the file. Blocks.
    pub(crate) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.pending.send(Job::Flush(done)).is_ok() {
            // Its thread answers each flush; if it is gone there is nothing to wait for.
            wait.recv().ok();
        }
    }
}

fn cut(text: &mut String) {
    let mut length = REASON_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    text.truncate(length);
}

/// Where the files are.
#[derive(Debug)]
struct Place {
    now: PathBuf,
    before: PathBuf,
}

impl Place {
    fn of(data: &Path) -> Self {
        Self { now: data.join("ledger.jsonl"), before: data.join("ledger.1.jsonl") }
    }

    /// All records, oldest first. Lines that a crash cut short are passed over.
    fn read(&self) -> Vec<LedgerEvent> {
        let mut events = Vec::new();
        for path in [&self.before, &self.now] {
            let mut bytes = Vec::new();
            // More than we ever write is not ours.
            let opened = File::open(path).map(|file| file.take(2 * FILE_BYTES_MAX));
            match opened.and_then(|mut file| file.read_to_end(&mut bytes)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "could not read it"),
            }
            let lines = bytes.split(|byte| *byte == b'\n');
            events.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
        }
        events
    }
}

/// The file that is written.
struct Book {
    place: Place,
    /// With its length.
    file: Option<(File, u64)>,
}

impl Book {
    fn new(place: Place) -> Self {
        Self { place, file: None }
    }

    fn take(&mut self, jobs: impl Iterator<Item = Job>) {
        let (mut lines, mut waiting) = (Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Append(line) => lines.extend_from_slice(&line),
                Job::Flush(done) => waiting.push(done),
            }
        }
        if !lines.is_empty()
            && let Err(error) = self.append(&lines)
        {
            tracing::debug!(%error, "the ledger is not written");
            self.file = None;
        }
        // Whoever asked may have stopped waiting.
        for done in waiting {
            done.send(()).ok();
        }
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let (file, length) = match &mut self.file {
            Some(open) => open,
            None => self.file.insert(open(&self.place.now)?),
        };
        file.write_all(lines)?;
        *length += lines.len() as u64;
        if FILE_BYTES_MAX < *length {
            self.file = None;
            fs::rename(&self.place.now, &self.place.before)?;
        }
        Ok(())
    }
}

/// Opens for appending; a line that a crash cut short is ended first, so that it spoils no other.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = File::options().create(true).append(true).read(true).open(path)?;
    let mut length = file.metadata()?.len();
    if 0 < length {
        let mut last = [0_u8];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            file.write_all(b"\n")?;
            length += 1;
        }
    }
    Ok((file, length))
}

#[cfg(test)]
mod tests;
