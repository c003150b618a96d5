//! A copy of the store as it is at one moment, also while a server writes to it.

use std::path::Path;

use rusqlite::OpenFlags;

use super::{OpenError, connect, database, schema};

/// The newest schema that this release knows.
pub fn schema_known() -> u32 {
    schema::newest(schema::MIGRATIONS)
}

/// Copies the store at `path` into the new file `target`, in its own schema, and answers which that is. Writers go on
/// meanwhile; the copy has all that was committed before and nothing that came after.
///
/// # Errors
/// When there is no store, it is of a newer release, or the copy cannot be written; what is left of `target` is then of
/// no use.
pub fn snapshot(path: &Path, target: &Path) -> Result<u32, OpenError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let version = schema::check(&connection, path, schema::MIGRATIONS)?;
    let copied = connection.execute("VACUUM INTO ?1", [target.to_string_lossy()]);
    copied.map_err(|source| database(target, source))?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::super::{Put, Store, Txn};
    use super::*;

    fn put(store: &Store, key: &str) {
        let put = Put { key: key.to_owned(), value: key.as_bytes().to_vec(), lease: None };
        let txn = Txn { puts: vec![put], ..Txn::default() };
        store.commit(&txn).expect("committed");
    }

    #[test]
    fn a_copy_has_what_was_committed_before_it_while_the_store_is_open() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, copy) = (dir.path().join("store.db"), dir.path().join("copy.db"));
        let store = Store::open(&path).expect("opened");
        put(&store, "before");
        assert_eq!(snapshot(&path, &copy).expect("copied"), schema_known());
        put(&store, "after");
        let copy = Store::open(&copy).expect("opened");
        let keys: Vec<String> =
            copy.list("").expect("readable").into_iter().map(|entry| entry.key).collect();
        assert_eq!(keys, ["before"]);
        assert_eq!(copy.revision().0, 1);
    }

    #[test]
    fn a_store_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, copy) = (dir.path().join("store.db"), dir.path().join("copy.db"));
        assert!(snapshot(&path, &copy).is_err());
        assert!(!path.exists() && !copy.exists());
    }

    #[test]
    fn a_store_of_a_newer_release_is_not_copied() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, copy) = (dir.path().join("store.db"), dir.path().join("copy.db"));
        drop(Store::open(&path).expect("made"));
        let connection = rusqlite::Connection::open(&path).expect("opened");
        connection.pragma_update(None, "user_version", 1_000).expect("written");
        drop(connection);
        let error = snapshot(&path, &copy).expect_err("newer").to_string();
        assert!(error.contains("schema 1000"), "{error}");
        assert!(!copy.exists());
    }
}
