//! The ledger of this host: what woke, held, refused and put to sleep. The newest records in memory, more of them in two
//! files that take turns, written behind by a thread of their own: a wake writes nothing before its answer.
//!
//! Nobody waits for the disk. What it does not take in time is in memory only, and the next line says how many are missing.
//! One reader is known to it (`server/spans.rs`): how far he has come lies beside the files, so that he goes on there
//! under the next server.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use perch_api::wire::{LedgerEvent, LedgerPage, LedgerQuery};
use tokio::sync::watch;

use super::clock;
use super::metrics::Tally;
use super::world::lock;

pub(crate) mod entry;
mod shelf;

use shelf::{Follower, Shelf};

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
    shelf: Mutex<Shelf>,
    /// The newest id.
    last: watch::Sender<u64>,
    pending: SyncSender<Job>,
    unwritten: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Debug)]
enum Job {
    Append(Vec<u8>),
    /// The follower has all up to this one.
    Follow(u64),
    Flush(SyncSender<()>),
}

impl Ledger {
    /// Reads what earlier servers wrote in the directory, and goes on there.
    ///
    /// # Errors
    /// When no thread can be made. A file that cannot be read or written costs only what is in it.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let place = Place::of(data);
        place.forget_follower();
        Self::read_at(place, None)
    }

    /// As [`Self::open`], for somebody who follows it ([`Self::follow`]): from where he was, or from now on.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn open_followed(
        data: &Path,
        is_meant: fn(&LedgerEvent) -> bool,
    ) -> io::Result<Self> {
        let place = Place::of(data);
        let at = place.follower().unwrap_or(u64::MAX);
        Self::read_at(place, Some(Follower { is_meant, at }))
    }

    fn read_at(place: Place, follower: Option<Follower>) -> io::Result<Self> {
        let (mut shelf, mut tally) = (Shelf::new(RECORDS_MAX, follower), Tally::default());
        for event in place.read() {
            tally.overtaken += u64::from(shelf.push(event));
        }
        let at = shelf.settle();
        let last = watch::Sender::new(shelf.ring.last());
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
        let (shelf, tally) = (Mutex::new(shelf), Mutex::new(tally));
        let ledger = Self { shelf, last, pending, unwritten: AtomicU64::new(0), tally };
        at.into_iter().for_each(|at| ledger.followed(at));
        Ok(ledger)
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
        let mut shelf = lock(&self.shelf);
        event.id = shelf.ring.number(micros);
        let missing = event.left_out + 1;
        let line = serde_json::to_vec(&event);
        let overtaken = shelf.push(event);
        // Within the lock, so that the lines of the file are in order.
        let sent = line.is_ok_and(|mut line| {
            line.push(b'\n');
            self.pending.try_send(Job::Append(line)).is_ok()
        });
        self.last.send_replace(shelf.ring.last());
        drop(shelf);
        if !sent {
            self.unwritten.fetch_add(missing, Ordering::Relaxed);
        }
        if overtaken {
            lock(&self.tally).overtaken += 1;
        }
    }

    /// Waits for the follower's next records: one or more, as many at the most. Nothing is lost if the wait is ended.
    pub(crate) async fn follow(&self, records_max: usize) -> Vec<LedgerEvent> {
        let mut changes = self.last.subscribe();
        loop {
            changes.mark_unchanged();
            let next = lock(&self.shelf).next(records_max);
            if !next.is_empty() {
                return next;
            }
            changes.changed().await.expect("the ledger holds what tells of changes");
        }
    }

    /// Lets the follower under the next server begin behind this record, if the disk takes it; else before it.
    pub(crate) fn followed(&self, id: u64) {
        if self.pending.try_send(Job::Follow(id)).is_err() {
            tracing::debug!("the disk has too much to do to keep how far the ledger was followed");
        }
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
        let ring = &lock(&self.shelf).ring;
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
        let ring = &lock(&self.shelf).ring;
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
        read(&mut lock(&self.shelf).ring.of(app).rev())
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
    /// How far the ledger was followed.
    followed: PathBuf,
}

impl Place {
    fn of(data: &Path) -> Self {
        let [now, before, followed] =
            ["ledger.jsonl", "ledger.1.jsonl", "ledger.followed"].map(|name| data.join(name));
        Self { now, before, followed }
    }

    /// How far somebody followed it under an earlier server.
    fn follower(&self) -> Option<u64> {
        fs::read_to_string(&self.followed).ok()?.trim_end().parse().ok()
    }

    fn keep_follower(&self, at: u64) -> io::Result<()> {
        let draft = self.followed.with_extension("followed.new");
        let mut file = fs::File::create(&draft)?;
        file.write_all(format!("{at}\n").as_bytes())?;
        // An empty one, after a power cut, would pass over what was not told.
        file.sync_data()?;
        fs::rename(draft, &self.followed)
    }

    /// Whoever follows it next begins then.
    fn forget_follower(&self) {
        match fs::remove_file(&self.followed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.followed.display(), %error, "could not remove it");
            }
            _ => {}
        }
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
        let (mut lines, mut followed, mut waiting) = (Vec::new(), None, Vec::new());
        for job in jobs {
            match job {
                Job::Append(line) => lines.extend_from_slice(&line),
                Job::Follow(at) => followed = Some(at),
                Job::Flush(done) => waiting.push(done),
            }
        }
        if !lines.is_empty()
            && let Err(error) = self.append(&lines)
        {
            tracing::debug!(%error, "the ledger is not written");
            self.file = None;
        }
        if let Some(Err(error)) = followed.map(|at| self.place.keep_follower(at)) {
            tracing::debug!(%error, "how far the ledger was followed is not written");
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
