//! Transactions: checks, puts, deletes, all or nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{Change, KEY_BYTES_MAX, LeaseId, Revision, TXN_OPS_MAX, VALUE_BYTES_MAX, lease};

/// What to do, if what must hold holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold, else nothing happens.
    pub checks: Vec<Check>,
    /// Keys to write.
    pub puts: Vec<Put>,
    /// Keys to remove, after the puts; those that are not there are no error.
    pub deletes: Vec<String>,
}

/// A condition on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Key.
    pub key: String,
    /// What it must be.
    pub expect: Expect,
}

/// What a key must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Not there.
    Absent,
    /// There, whatever its value.
    Present,
    /// Last written by this commit.
    Revision(Revision),
}

/// A key to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Lease to hang it on; it goes when the lease ends.
    pub lease: Option<LeaseId>,
}

/// Why a transaction was not applied. Nothing of it is there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A check did not hold.
    #[error("{key} was changed meanwhile")]
    Conflict {
        /// The key of the first check that did not hold.
        key: String,
    },
    /// A put names a lease that has ended.
    #[error("lease {0} has ended")]
    LeaseEnded(LeaseId),
    /// The disk is full.
    #[error("no space left on the disk of the store")]
    Full,
    /// A key, a value or the transaction exceeds its limit.
    #[error("{0}")]
    Limit(String),
    /// Reading or writing failed.
    #[error("could not write the store")]
    Io(#[source] Arc<rusqlite::Error>),
}

impl From<rusqlite::Error> for CommitError {
    fn from(error: rusqlite::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Io(Arc::new(error)) }
    }
}

pub(crate) fn is_full(error: &rusqlite::Error) -> bool {
    // SQLite reports a full disk under its shared-memory file as an I/O error of its own.
    let shm_size = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
    match error {
        rusqlite::Error::SqliteFailure(inner, _) => {
            inner.code == ErrorCode::DiskFull || inner.extended_code == shm_size
        }
        _ => false,
    }
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn check(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.checks.push(Check { key: key.into(), expect });
        self
    }

    /// Adds a key to write.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.puts.push(Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Adds a key to write that goes when `lease` ends.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Vec<u8>>,
        lease: LeaseId,
    ) -> Self {
        self.puts.push(Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Adds a key to remove.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.deletes.push(key.into());
        self
    }

    fn check_limits(&self) -> Result<(), CommitError> {
        let limit = |text: String| Err(CommitError::Limit(text));
        if TXN_OPS_MAX < self.checks.len() + self.puts.len() + self.deletes.len() {
            return limit(format!("a transaction has at most {TXN_OPS_MAX} parts"));
        }
        let checks = self.checks.iter().map(|check| &check.key);
        let puts = self.puts.iter().map(|put| &put.key);
        if let Some(key) = checks.chain(puts).chain(&self.deletes).find(|key| !is_good_key(key)) {
            let start: String = key.chars().take(40).collect();
            return limit(format!(
                "key {start:?} is empty, longer than {KEY_BYTES_MAX} bytes, or reserved"
            ));
        }
        match self.puts.iter().find(|put| VALUE_BYTES_MAX < put.value.len()) {
            Some(put) => {
                limit(format!("the value of {} is longer than {VALUE_BYTES_MAX} bytes", put.key))
            }
            None => Ok(()),
        }
    }
}

/// Keys below U+0002 are our own; U+10FFFF ends a prefix's range.
fn is_good_key(key: &str) -> bool {
    "\u{2}" <= key && key.len() <= KEY_BYTES_MAX && !key.contains('\u{10FFFF}')
}

/// The writing connection, with the revision that it reached.
#[derive(Debug)]
pub(crate) struct Writer {
    connection: Connection,
    revision: Revision,
}

impl Writer {
    pub(crate) fn new(connection: Connection) -> rusqlite::Result<Self> {
        let query = "SELECT revision FROM entries WHERE key = char(1) || 'revision'";
        let revision = connection.query_row(query, [], |row| row.get(0))?;
        Ok(Self { connection, revision })
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    #[cfg(test)]
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Applies transactions with one flush; also tells what changed.
    pub(crate) fn commit_all(
        &mut self,
        txns: &[&Txn],
    ) -> (Vec<Result<Revision, CommitError>>, Vec<Change>) {
        let mut changes = Vec::new();
        match self.try_commit_all(txns, &mut changes) {
            Ok((results, revision)) => {
                self.revision = revision;
                (results, changes)
            }
            // Each must fail, also those that had failed for a reason of their own: they may be
            // tried again.
            Err(error) => (txns.iter().map(|_| Err(error.clone())).collect(), Vec::new()),
        }
    }

    fn try_commit_all(
        &mut self,
        txns: &[&Txn],
        changes: &mut Vec<Change>,
    ) -> Result<(Vec<Result<Revision, CommitError>>, Revision), CommitError> {
        let before = self.revision;
        let mut revision = before;
        let mut outer =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut results = Vec::with_capacity(txns.len());
        for txn in txns {
            let inner = outer.savepoint()?;
            let result = apply(&inner, txn, Revision(revision.0 + 1));
            match result {
                Ok(change) => {
                    inner.commit()?;
                    revision = change.as_ref().map_or(revision, |change| change.revision);
                    changes.extend(change);
                    results.push(Ok(revision));
                }
                Err(error @ (CommitError::Full | CommitError::Io(_))) => return Err(error),
                // Dropping the savepoint rolls it back.
                Err(error) => results.push(Err(error)),
            }
        }
        if revision != before {
            let query = "UPDATE entries SET revision = ?1 WHERE key = char(1) || 'revision'";
            outer.prepare_cached(query)?.execute([revision])?;
        }
        outer.commit()?;
        Ok((results, revision))
    }

    /// Runs work of the lease module in a transaction of its own, with the revision for its
    /// changes.
    pub(crate) fn transact<T>(
        &mut self,
        work: impl FnOnce(&Connection, Revision) -> Result<(T, Vec<String>), CommitError>,
    ) -> Result<(T, Option<Change>), CommitError> {
        let next = Revision(self.revision.0 + 1);
        let outer =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let (answer, removed) = work(&outer, next)?;
        if removed.is_empty() {
            outer.commit()?;
            return Ok((answer, None));
        }
        let query = "UPDATE entries SET revision = ?1 WHERE key = char(1) || 'revision'";
        outer.prepare_cached(query)?.execute([next])?;
        outer.commit()?;
        self.revision = next;
        Ok((answer, Some(Change { revision: next, puts: Vec::new(), deletes: removed })))
    }
}

/// Applies one transaction; `None` = it changed nothing.
fn apply(
    connection: &Connection,
    txn: &Txn,
    revision: Revision,
) -> Result<Option<Change>, CommitError> {
    txn.check_limits()?;
    for check in &txn.checks {
        require(connection, check)?;
    }
    for put in &txn.puts {
        write(connection, put, revision)?;
    }
    let mut change = Change { revision, puts: txn.puts.clone(), deletes: Vec::new() };
    for key in &txn.deletes {
        let removed =
            connection.prepare_cached("DELETE FROM entries WHERE key = ?1")?.execute([key])?;
        if 0 < removed {
            change.deletes.push(key.clone());
        }
    }
    let deleted: BTreeSet<_> = change.deletes.iter().collect();
    change.puts.retain(|put| !deleted.contains(&put.key));
    Ok(Some(change).filter(|change| !change.puts.is_empty() || !change.deletes.is_empty()))
}

fn require(connection: &Connection, check: &Check) -> Result<(), CommitError> {
    let mut query = connection.prepare_cached("SELECT revision FROM entries WHERE key = ?1")?;
    let found = query.query_row([&check.key], |row| row.get(0)).optional()?;
    let holds = match check.expect {
        Expect::Absent => found.is_none(),
        Expect::Present => found.is_some(),
        Expect::Revision(revision) => found == Some(revision),
    };
    if holds { Ok(()) } else { Err(CommitError::Conflict { key: check.key.clone() }) }
}

fn write(connection: &Connection, put: &Put, revision: Revision) -> Result<(), CommitError> {
    if let Some(id) = put.lease
        && !lease::is_there(connection, id)?
    {
        return Err(CommitError::LeaseEnded(id));
    }
    let mut query = connection.prepare_cached(
        "INSERT INTO entries (key, value, revision, lease) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3, lease = ?4",
    )?;
    query.execute(params![put.key, put.value, revision, put.lease])?;
    Ok(())
}
