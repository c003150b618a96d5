//! The store: keys, values, revisions, compare-and-set, prefix watch, leases. No decisions, no
//! query language.
//!
//! SQLite implements it in one table (WAL, `synchronous=FULL`): what [`Store::commit`] has answered
//! is there after a power cut. Every commit gets the next [`Revision`]; each key remembers the
//! revision that wrote it, and a [`Check`] on it makes a commit conditional. Keys may hang on a
//! lease and go with it. A second implementation (etcd) must be able to follow, so nothing here is
//! more than etcd can do.
//!
//! [`Store`] blocks; [`StoreHandle`] runs commits on one thread and several of them in one disk
//! flush.

mod handle;
mod lease;
mod number;
mod schema;
mod snapshot;
mod txn;
mod watch;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

pub use handle::{HandleError, StoreHandle};
pub use lease::{Expired, LeaseError, LeaseId};
pub use snapshot::{schema_known, snapshot};
pub use txn::{Check, CommitError, Expect, Put, Txn};
pub use watch::{Change, Watch, WatchError};

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest value in bytes. A Machine config with embedded files is the largest thing that we keep.
pub const VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most checks, puts and deletes in one transaction: destroying an app of 1,000 Machines fits.
pub const TXN_OPS_MAX: usize = 10_000;

// Nobody else has the file open (see the lock); a checkpoint may hold it for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of a commit; 0 before the first. Grows by one with each commit that changes
/// something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Commit that wrote it last.
    pub revision: Revision,
    /// Lease on which it hangs.
    pub lease: Option<LeaseId>,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another server", path.display())]
    InUse {
        /// Database file.
        path: PathBuf,
    },
    /// It was written by a newer release.
    #[error(
        "{} has schema {found}, this release knows up to {known}; use the newer release",
        path.display()
    )]
    Newer {
        /// Database file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest we know.
        known: u32,
    },
    /// The disk is full.
    #[error("no space left for {}", path.display())]
    Full {
        /// Database file.
        path: PathBuf,
    },
    /// The lock file could not be made.
    #[error("could not lock {}", path.display())]
    Lock {
        /// Lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no database of ours, or reading or writing failed.
    #[error("could not open {}", path.display())]
    Database {
        /// Database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
}

/// Reading failed.
#[derive(Debug, thiserror::Error)]
#[error("could not read the store")]
pub struct ReadError(#[from] rusqlite::Error);

/// The store. Blocks; share it by `Arc`.
#[derive(Debug)]
pub struct Store {
    // Readers have a connection of their own, so that a `get` never waits for a disk flush.
    reader: Mutex<Connection>,
    writer: Mutex<txn::Writer>,
    watch: watch::Hub,
    // Held until the end: keeps a second server out.
    _lock: File,
}

impl Store {
    /// Opens or makes the store at `path`, migrating an older schema after copying the file beside
    /// it (`PATH.schema-N`). Makes `PATH.lock`.
    ///
    /// # Errors
    /// See [`OpenError`]; a failed migration leaves the old file as it was.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, schema::MIGRATIONS)
    }

    fn open_with(path: &Path, migrations: &[&str]) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let writer =
            connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        schema::prepare(&writer, path, migrations)?;
        let reader = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let writer = txn::Writer::new(writer).map_err(|source| database(path, source))?;
        Ok(Self {
            reader: Mutex::new(reader),
            writer: Mutex::new(writer),
            watch: watch::Hub::new(),
            _lock: lock,
        })
    }

    /// Reads one key.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(
            "SELECT key, value, revision, lease FROM entries \
             WHERE key = ?1 AND substr(key, 1, 1) <> char(1)",
        )?;
        Ok(query.query_row([key], entry).optional()?)
    }

    /// Reads all keys that begin with `prefix`, in byte order of the keys; `""` reads everything.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, prefix: &str) -> Result<Vec<Entry>, ReadError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(
            "SELECT key, value, revision, lease FROM entries \
             WHERE key >= ?1 AND key < ?2 ORDER BY key",
        )?;
        // U+10FFFF sorts after every key that we accept (see `txn`); \u{1} keys are our own.
        let first = prefix.max("\u{2}");
        let end = format!("{prefix}\u{10FFFF}");
        let rows = query.query_map([first, &end], entry)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.writer().revision()
    }

    /// Applies a transaction, all or nothing, and returns when it is on the disk.
    ///
    /// # Errors
    /// See [`CommitError`]. After any error nothing of it is there.
    pub fn commit(&self, txn: &Txn) -> Result<Revision, CommitError> {
        let mut results = self.commit_all(&[txn]);
        results.pop().expect("one result for each transaction")
    }

    /// Applies several independent transactions in order with one disk flush; each succeeds or
    /// fails alone, unless the flush itself fails: then all that had succeeded fail alike.
    pub fn commit_all(&self, txns: &[&Txn]) -> Vec<Result<Revision, CommitError>> {
        let mut writer = self.writer();
        let (results, changes) = writer.commit_all(txns);
        // Told under the writer's lock, so that watchers see revisions in order.
        for change in changes {
            self.watch.tell(change);
        }
        results
    }

    /// Watches keys that begin with `prefix`, from now on. To miss nothing: watch first, then list.
    pub fn watch(&self, prefix: &str) -> Watch {
        self.watch.subscribe(prefix)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, txn::Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: row.get(2)?, lease: row.get(3)? })
}

/// SQLite's own locks cannot be used for this: any close of the file in our process would drop
/// them.
fn lock(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let made = File::options().create(true).truncate(false).write(true).open(&lock_path);
    let file = made.map_err(|source| OpenError::Lock { path: lock_path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Lock { path: lock_path, source }),
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let open = || {
        let connection =
            Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        Ok(connection)
    };
    open().map_err(|source| database(path, source))
}

fn database(path: &Path, source: rusqlite::Error) -> OpenError {
    if txn::is_full(&source) {
        return OpenError::Full { path: path.to_owned() };
    }
    OpenError::Database { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
