//! Leases: a lifetime that keys can hang on, prolonged by whoever holds it.
//!
//! Times are the caller's: milliseconds since 1970. A clock that was set back cannot prolong a
//! lease beyond its ttl from the new time on ([`Store::expire`] sees to it); one that was set
//! forward ends it early, which a holder must survive anyway.

use std::fmt;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::{CommitError, Store};

// A lease is for holding something for seconds or minutes; what shall last longer is a key.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// The number of a lease; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a lease call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeaseError {
    /// It has ended or never was.
    #[error("lease {0} not found")]
    NotFound(LeaseId),
    /// Zero, or more than a day.
    #[error("a lease lasts from 1 ms to 24 h")]
    BadTtl,
    /// The store could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<rusqlite::Error> for LeaseError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Commit(error.into())
    }
}

impl Store {
    /// Makes a lease that ends at `now_ms + ttl`.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn grant(&self, ttl: Duration, now_ms: u64) -> Result<LeaseId, LeaseError> {
        if ttl.as_millis() == 0 || TTL_MAX < ttl {
            return Err(LeaseError::BadTtl);
        }
        let (id, _) = self.writer().transact(|connection, _| {
            let id = next_id(connection)?;
            save(connection, id, ttl.as_millis() as u64, now_ms)?;
            Ok((id, Vec::new()))
        })?;
        Ok(id)
    }

    /// Prolongs a lease to `now_ms` plus its ttl.
    ///
    /// # Errors
    /// [`LeaseError::NotFound`] when it has ended, also when nobody called [`Store::expire`] since.
    pub fn keepalive(&self, id: LeaseId, now_ms: u64) -> Result<(), LeaseError> {
        let (found, _) = self.writer().transact(|connection, _| {
            let lease = load(connection, id)?.filter(|lease| now_ms < lease.deadline_ms);
            if let Some(lease) = &lease {
                save(connection, id, lease.ttl_ms, now_ms)?;
            }
            Ok((lease.is_some(), Vec::new()))
        })?;
        if found { Ok(()) } else { Err(LeaseError::NotFound(id)) }
    }

    /// Ends a lease and removes the keys that hang on it.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn revoke(&self, id: LeaseId) -> Result<(), LeaseError> {
        let mut writer = self.writer();
        let (found, change) = writer.transact(|connection, _| {
            let found = is_there(connection, id)?;
            Ok((found, end(connection, id)?))
        })?;
        change.into_iter().for_each(|change| self.watch.tell(change));
        if found { Ok(()) } else { Err(LeaseError::NotFound(id)) }
    }

    /// Ends all leases whose time is over, removes their keys, and says when to call it again.
    ///
    /// # Errors
    /// The store could not be written; nothing has ended.
    pub fn expire(&self, now_ms: u64) -> Result<Expired, CommitError> {
        let mut writer = self.writer();
        let (expired, change) = writer.transact(|connection, _| {
            let mut expired = Expired { ended: Vec::new(), next_deadline_ms: None };
            let mut removed = Vec::new();
            for lease in all(connection)? {
                let latest_ms = now_ms.saturating_add(lease.ttl_ms);
                if lease.deadline_ms <= now_ms {
                    removed.extend(end(connection, lease.id)?);
                    expired.ended.push(lease.id);
                    continue;
                }
                if latest_ms < lease.deadline_ms {
                    save(connection, lease.id, lease.ttl_ms, now_ms)?;
                }
                let deadline_ms = lease.deadline_ms.min(latest_ms);
                let next_ms = expired.next_deadline_ms.get_or_insert(deadline_ms);
                *next_ms = deadline_ms.min(*next_ms);
            }
            Ok((expired, removed))
        })?;
        change.into_iter().for_each(|change| self.watch.tell(change));
        Ok(expired)
    }
}

/// What [`Store::expire`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// Leases that ended now.
    pub ended: Vec<LeaseId>,
    /// When the next one ends unless it is prolonged.
    pub next_deadline_ms: Option<u64>,
}

struct Lease {
    id: LeaseId,
    ttl_ms: u64,
    deadline_ms: u64,
}

fn key(id: LeaseId) -> String {
    format!("\u{1}lease/{:020}", id.0)
}

/// Takes the next number; the counter is a row, so that the number of an ended lease does not come
/// back.
fn next_id(connection: &Connection) -> rusqlite::Result<LeaseId> {
    let query = "INSERT INTO entries (key, value, revision) \
                 VALUES (char(1) || 'lease-counter', x'', 1) \
                 ON CONFLICT (key) DO UPDATE SET revision = revision + 1 RETURNING revision";
    connection.prepare_cached(query)?.query_row([], |row| row.get(0))
}

fn save(connection: &Connection, id: LeaseId, ttl_ms: u64, now_ms: u64) -> rusqlite::Result<()> {
    let value = format!("{ttl_ms} {}", now_ms.saturating_add(ttl_ms));
    let query = "INSERT INTO entries (key, value, revision) VALUES (?1, ?2, 0) \
                 ON CONFLICT (key) DO UPDATE SET value = ?2";
    connection.prepare_cached(query)?.execute(params![key(id), value.into_bytes()])?;
    Ok(())
}

fn load(connection: &Connection, id: LeaseId) -> rusqlite::Result<Option<Lease>> {
    let mut query = connection.prepare_cached("SELECT value FROM entries WHERE key = ?1")?;
    let value = query.query_row([key(id)], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(value.and_then(|value| parse(id, &value)))
}

fn all(connection: &Connection) -> rusqlite::Result<Vec<Lease>> {
    let mut query = connection.prepare_cached(
        "SELECT key, value FROM entries \
         WHERE key >= char(1) || 'lease/' AND key < char(1) || 'lease0'",
    )?;
    let rows =
        query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let mut leases = Vec::new();
    for row in rows {
        let (key, value) = row?;
        let id = key.rsplit('/').next().and_then(|digits| digits.parse().ok()).map(LeaseId);
        leases.extend(id.and_then(|id| parse(id, &value)));
    }
    Ok(leases)
}

fn parse(id: LeaseId, value: &[u8]) -> Option<Lease> {
    let (ttl_ms, deadline_ms) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some(Lease { id, ttl_ms: ttl_ms.parse().ok()?, deadline_ms: deadline_ms.parse().ok()? })
}

pub(crate) fn is_there(connection: &Connection, id: LeaseId) -> rusqlite::Result<bool> {
    Ok(load(connection, id)?.is_some())
}

/// Removes a lease and its keys; answers the keys.
fn end(connection: &Connection, id: LeaseId) -> rusqlite::Result<Vec<String>> {
    connection.prepare_cached("DELETE FROM entries WHERE key = ?1")?.execute([key(id)])?;
    let mut query =
        connection.prepare_cached("DELETE FROM entries WHERE lease = ?1 RETURNING key")?;
    query.query_map([id], |row| row.get(0))?.collect()
}
