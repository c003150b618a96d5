//! The schema, its version, and the way forward from older ones.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{OpenError, database};

/// Migration N leads from schema N to N + 1; the version is SQLite's `user_version`.
///
/// Keys that begin with U+0001 are our own: `\1revision` has the store's revision, `\1lease/ID` a
/// lease, whose value is `TTL_MS DEADLINE_MS`.
pub(crate) const MIGRATIONS: &[&str] = &["
    CREATE TABLE entries (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        revision INTEGER NOT NULL,
        lease INTEGER
    ) WITHOUT ROWID, STRICT;
    CREATE INDEX entries_by_lease ON entries (lease) WHERE lease IS NOT NULL;
    INSERT INTO entries (key, value, revision) VALUES (char(1) || 'revision', x'', 0);
"];

/// Brings the database to the newest schema.
pub(crate) fn prepare(
    connection: &Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<(), OpenError> {
    let found = check(connection, path, migrations)?;
    if 0 < found && found < newest(migrations) {
        copy(connection, path, found)?;
    }
    migrate(connection, found, migrations).map_err(|source| database(path, source))
}

/// The schema to which these migrations lead.
pub(crate) fn newest(migrations: &[&str]) -> u32 {
    u32::try_from(migrations.len()).expect("a handful of migrations")
}

/// The database's schema, unless it is newer than what we know.
pub(crate) fn check(
    connection: &Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<u32, OpenError> {
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    let found = found.map_err(|source| database(path, source))?;
    let known = newest(migrations);
    if known < found {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    }
    Ok(found)
}

/// Copies the file before a migration, so that an older release can be put back.
fn copy(connection: &Connection, path: &Path, version: u32) -> Result<(), OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".schema-{version}"));
    let copy_path = PathBuf::from(name);
    // A copy that is there already comes from a migration that failed after it: the newest state
    // counts.
    match std::fs::remove_file(&copy_path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(OpenError::Lock { path: copy_path, source: error });
        }
        _ => {}
    }
    let target = copy_path.to_string_lossy();
    connection.execute("VACUUM INTO ?1", [target]).map_err(|source| database(path, source))?;
    Ok(())
}

fn migrate(connection: &Connection, found: u32, migrations: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    for migration in &migrations[found as usize..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", migrations.len() as u32)?;
    transaction.commit()
}
