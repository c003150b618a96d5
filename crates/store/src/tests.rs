//! Failure first: what must not be half-done, then what must be there.

use std::path::PathBuf;
use std::sync::Arc;

use super::*;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temporary directory") }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store.db")
    }

    fn open(&self) -> Store {
        Store::open(&self.path()).expect("open")
    }
}

fn put(key: &str, value: &str) -> Txn {
    Txn::new().put(key, value)
}

fn value(store: &Store, key: &str) -> Option<String> {
    let entry = store.get(key).expect("get")?;
    Some(String::from_utf8(entry.value).expect("text"))
}

fn keys(store: &Store, prefix: &str) -> Vec<String> {
    store.list(prefix).expect("list").into_iter().map(|entry| entry.key).collect()
}

#[test]
fn a_check_that_does_not_hold_leaves_nothing_behind() {
    let place = Place::new();
    let store = place.open();
    let first = store.commit(&put("a", "1")).expect("first");
    let second = store.commit(&put("a", "2")).expect("second");
    for txn in [
        put("b", "x").check("a", Expect::Absent),
        put("b", "x").check("a", Expect::Revision(first)),
        put("b", "x").delete("a").check("missing", Expect::Present),
        put("b", "x").check("missing", Expect::Revision(Revision(0))),
    ] {
        let key = txn.checks[0].key.clone();
        match store.commit(&txn) {
            Err(CommitError::Conflict { key: found }) => assert_eq!(found, key),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(value(&store, "a").as_deref(), Some("2"));
    assert_eq!(value(&store, "b"), None);
    assert_eq!(store.revision(), second, "a refused commit takes no revision");
}

#[test]
fn checks_see_what_was_there_before_the_transaction() {
    let place = Place::new();
    let store = place.open();
    let made = store.commit(&put("a", "1").check("a", Expect::Absent)).expect("absent");
    let changed = put("a", "2").check("a", Expect::Revision(made)).check("a", Expect::Present);
    let revision = store.commit(&changed).expect("unchanged since");
    assert_eq!(store.get("a").expect("get").expect("there").revision, revision);
}

#[test]
fn what_exceeds_a_limit_is_refused_and_named() {
    let place = Place::new();
    let store = place.open();
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let mut many = Txn::new();
    many.deletes = (0..=TXN_OPS_MAX).map(|index| index.to_string()).collect();
    for (txn, part) in [
        (put("", "x"), "\"\""),
        (put("\u{1}revision", "x"), "reserved"),
        (put("a\u{10FFFF}", "x"), "reserved"),
        (put(&long, "x"), "1024 bytes"),
        (Txn::new().delete("\u{1}revision"), "reserved"),
        (put("a", &"v".repeat(VALUE_BYTES_MAX + 1)), "value of a"),
        (many, "10000"),
    ] {
        let error = store.commit(&txn).expect_err(part);
        assert!(matches!(&error, CommitError::Limit(text) if text.contains(part)), "{error:?}");
    }
    assert_eq!(keys(&store, ""), Vec::<String>::new());
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing_half_done() {
    let place = Place::new();
    let store = place.open();
    store.commit(&put("old", "1")).expect("before");
    let pages: u32 = {
        let writer = store.writer();
        let connection = writer.connection();
        let pages = connection.pragma_query_value(None, "page_count", |row| row.get(0));
        let pages = pages.expect("page count");
        // The query answers with the limit that it has set.
        connection
            .pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, u32>(0))
            .expect("limit");
        pages
    };
    assert!(0 < pages);
    let big = put("new", &"x".repeat(100_000)).put("old", "2");
    assert!(matches!(store.commit(&big), Err(CommitError::Full)));
    assert_eq!(value(&store, "old").as_deref(), Some("1"));
    assert_eq!(value(&store, "new"), None);
    store.commit(&put("old", "3")).expect("what fits is kept on");
    assert_eq!(value(&store, "old").as_deref(), Some("3"));
}

#[test]
fn a_full_disk_fails_all_transactions_of_its_flush() {
    let place = Place::new();
    let store = place.open();
    let limit = |pages: u32| {
        let writer = store.writer();
        let update =
            writer.connection().pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()));
        update.expect("limit");
    };
    limit(1);
    let big = put("big", &"x".repeat(100_000));
    let results = store.commit_all(&[&put("a", "1"), &big, &put("b", "1")]);
    assert!(results.iter().all(|result| matches!(result, Err(CommitError::Full))), "{results:?}");
    assert_eq!((keys(&store, ""), store.revision()), (Vec::new(), Revision(0)));
    limit(1_000_000);
    assert_eq!(store.commit(&big).expect("space again"), Revision(1));
}

#[test]
fn transactions_of_one_flush_succeed_and_fail_alone() {
    let place = Place::new();
    let store = place.open();
    let mut watch = store.watch("");
    let conflict = put("b", "2").check("b", Expect::Absent);
    let results =
        store.commit_all(&[&put("a", "1"), &put("b", "1"), &conflict, &Txn::new(), &put("c", "1")]);
    let revisions: Vec<_> = results.into_iter().map(Result::ok).collect();
    let revision = |number| Some(Revision(number));
    assert_eq!(revisions, [revision(1), revision(2), None, revision(2), revision(3)]);
    assert_eq!(value(&store, "b").as_deref(), Some("1"));
    let runtime = runtime();
    for number in 1..=3 {
        let change = runtime.block_on(watch.next()).expect("change");
        assert_eq!(change.revision, Revision(number));
    }
}

#[test]
fn prefixes_are_listed_in_byte_order_and_nothing_else() {
    let place = Place::new();
    let store = place.open();
    let txn = ["app/b", "app/a", "app/é", "app/~", "app", "apps/x", "aple"].into_iter();
    store.commit(&txn.fold(Txn::new(), |txn, key| txn.put(key, ""))).expect("commit");
    assert_eq!(keys(&store, "app/"), ["app/a", "app/b", "app/~", "app/é"]);
    assert_eq!(keys(&store, "").len(), 7);
    assert_eq!(keys(&store, "\u{1}"), Vec::<String>::new(), "our own keys are not shown");
    assert_eq!(store.get("\u{1}revision").expect("get"), None);
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let place = Place::new();
    let store = place.open();
    store.commit(&put("a", "1")).expect("commit");
    let lease = store.grant(Duration::from_secs(13), 1_000).expect("grant");
    store.commit(&Txn::new().put_leased("held", "x", lease)).expect("commit");
    drop(store);
    let store = place.open();
    assert_eq!((value(&store, "a").as_deref(), store.revision()), (Some("1"), Revision(2)));
    assert_eq!(store.get("held").expect("get").expect("there").lease, Some(lease));
    let next = store.grant(Duration::from_secs(1), 1_000).expect("grant");
    assert!(lease < next, "numbers do not come back");
}

#[test]
fn a_commit_survives_the_death_of_the_process() {
    let place = Place::new();
    let store = place.open();
    store.commit(&put("a", "1")).expect("commit");
    // What a killed process leaves: the files as they are now, without a close.
    let copy = Place::new();
    for name in ["store.db", "store.db-wal"] {
        std::fs::copy(place.dir.path().join(name), copy.dir.path().join(name)).expect(name);
    }
    assert_eq!(value(&copy.open(), "a").as_deref(), Some("1"));
}

#[test]
fn a_second_server_is_kept_out() {
    let place = Place::new();
    let store = place.open();
    let error = Store::open(&place.path()).expect_err("in use");
    assert!(matches!(&error, OpenError::InUse { path } if *path == place.path()), "{error:?}");
    drop(store);
    place.open();
}

#[test]
fn what_is_no_store_of_ours_is_not_touched() {
    let place = Place::new();
    std::fs::write(
        place.path(),
        "this is a letter to my aunt, not a database, and must stay as it is",
    )
    .expect("write");
    let error = Store::open(&place.path()).expect_err("no database");
    assert!(matches!(error, OpenError::Database { .. }), "{error:?}");
    let text = std::fs::read_to_string(place.path()).expect("read");
    assert!(text.starts_with("this is a letter"));
    let error = Store::open(&place.dir.path().join("missing/store.db")).expect_err("no directory");
    assert!(matches!(error, OpenError::Lock { .. }), "{error:?}");
}

#[test]
fn a_newer_schema_is_refused_and_an_older_one_is_copied_before_it_is_changed() {
    let place = Place::new();
    let store = place.open();
    store.commit(&put("a", "1")).expect("commit");
    drop(store);
    let change = "UPDATE entries SET value = CAST('changed' AS BLOB) WHERE key = 'a';";
    let newer = [schema::MIGRATIONS[0], change];
    assert_eq!(
        value(&Store::open_with(&place.path(), &newer).expect("migrate"), "a").as_deref(),
        Some("changed")
    );

    let error = Store::open(&place.path()).expect_err("newer");
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error:?}");
    let copy = Place::new();
    std::fs::copy(place.dir.path().join("store.db.schema-1"), copy.path())
        .expect("the copy is there");
    assert_eq!(value(&copy.open(), "a").as_deref(), Some("1"));
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let place = Place::new();
    place.open().commit(&put("a", "1")).expect("commit");
    let broken = [schema::MIGRATIONS[0], "DELETE FROM entries; SELECT nonsense;"];
    for _ in 0..2 {
        let error = Store::open_with(&place.path(), &broken).expect_err("broken");
        assert!(matches!(error, OpenError::Database { .. }), "{error:?}");
    }
    assert_eq!(value(&place.open(), "a").as_deref(), Some("1"));
}

#[test]
fn a_lease_takes_its_keys_along() {
    let place = Place::new();
    let store = place.open();
    let (short, long) = (
        store.grant(Duration::from_secs(1), 0).expect("short"),
        store.grant(Duration::from_secs(9), 0).expect("long"),
    );
    let txn = put("free", "").put_leased("short", "", short).put_leased("long", "", long);
    store.commit(&txn).expect("commit");
    let mut watch = store.watch("");

    let early = store.expire(999).expect("expire");
    assert_eq!(early, Expired { ended: Vec::new(), next_deadline_ms: Some(1_000) });
    let late = store.expire(1_000).expect("expire");
    assert_eq!(late, Expired { ended: vec![short], next_deadline_ms: Some(9_000) });
    assert_eq!(keys(&store, ""), ["free", "long"]);
    store.revoke(long).expect("revoke");
    assert_eq!(keys(&store, ""), ["free"]);
    assert!(matches!(store.revoke(long), Err(LeaseError::NotFound(id)) if id == long));
    let runtime = runtime();
    assert_eq!(runtime.block_on(watch.next()).expect("change").deletes, ["short"]);
    assert_eq!(runtime.block_on(watch.next()).expect("change").deletes, ["long"]);

    let refused = store.commit(&Txn::new().put_leased("x", "", short));
    assert!(matches!(refused, Err(CommitError::LeaseEnded(id)) if id == short), "{refused:?}");
    assert_eq!(value(&store, "x"), None);
}

#[test]
fn a_lease_is_prolonged_only_while_it_lasts() {
    let place = Place::new();
    let store = place.open();
    let lease = store.grant(Duration::from_millis(100), 0).expect("grant");
    store.keepalive(lease, 99).expect("in time");
    assert_eq!(store.expire(150).expect("expire").next_deadline_ms, Some(199));
    assert!(matches!(store.keepalive(lease, 199), Err(LeaseError::NotFound(_))), "too late");
    for ttl in [Duration::ZERO, Duration::from_secs(24 * 3600 + 1)] {
        assert!(matches!(store.grant(ttl, 0), Err(LeaseError::BadTtl)));
    }
}

#[test]
fn a_clock_set_back_does_not_prolong_a_lease_beyond_its_ttl() {
    let place = Place::new();
    let store = place.open();
    store.grant(Duration::from_secs(10), 1_000_000).expect("grant");
    assert_eq!(store.expire(5_000).expect("expire").next_deadline_ms, Some(15_000));
    assert_eq!(store.expire(15_000).expect("expire").ended.len(), 1);
}

#[test]
fn a_key_written_again_without_a_lease_stays() {
    let place = Place::new();
    let store = place.open();
    let lease = store.grant(Duration::from_secs(1), 0).expect("grant");
    store.commit(&Txn::new().put_leased("a", "1", lease)).expect("leased");
    store.commit(&put("a", "2")).expect("free");
    store.revoke(lease).expect("revoke");
    assert_eq!(value(&store, "a").as_deref(), Some("2"));
}

#[test]
fn a_watch_sees_its_prefix_in_order_and_says_when_it_missed_some() {
    let place = Place::new();
    let store = place.open();
    store.commit(&put("app/before", "")).expect("commit");
    let mut watch = store.watch("app/");
    store.commit(&put("other", "")).expect("commit");
    let gone_again =
        put("app/a", "1").put("other", "").put("app/short", "").delete("app/short").delete("none");
    store.commit(&gone_again).expect("commit");
    let runtime = runtime();
    let change = runtime.block_on(watch.next()).expect("change");
    assert_eq!(change.revision, Revision(3));
    assert_eq!(change.puts.iter().map(|put| put.key.as_str()).collect::<Vec<_>>(), ["app/a"]);
    assert_eq!(change.deletes, ["app/short"]);

    let txns: Vec<_> = (0..1030).map(|index| put("app/n", &index.to_string())).collect();
    store.commit_all(&txns.iter().collect::<Vec<_>>());
    assert!(matches!(runtime.block_on(watch.next()), Err(WatchError::Lagged(6..))));
    assert!(runtime.block_on(watch.next()).is_ok(), "it goes on");
    drop(store);
    while runtime.block_on(watch.next()).is_ok() {}
    assert_eq!(runtime.block_on(watch.next()), Err(WatchError::Closed));
}

#[test]
fn a_get_does_not_wait_for_a_commit() {
    let place = Place::new();
    let store = place.open();
    store.commit(&put("a", "1")).expect("commit");
    let _writing = store.writer();
    assert_eq!(value(&store, "a").as_deref(), Some("1"));
}

#[test]
fn the_handle_commits_for_many_callers_and_ends_with_the_last() {
    let place = Place::new();
    let (handle, thread) = StoreHandle::spawn(Arc::new(place.open())).expect("thread");
    let runtime = runtime();
    runtime.block_on(async {
        let commit = |index: u32| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.commit(put(&format!("k{index}"), "x")).await })
        };
        let tasks: Vec<_> = (0..200).map(commit).collect();
        let mut revisions = Vec::new();
        for task in tasks {
            revisions.push(task.await.expect("task").expect("commit"));
        }
        revisions.sort_unstable();
        assert_eq!(revisions, (1..=200).map(Revision).collect::<Vec<_>>());
        let conflict = handle.commit(put("k0", "y").check("k0", Expect::Absent)).await;
        assert!(matches!(conflict, Err(HandleError::Commit(CommitError::Conflict { .. }))));
    });
    assert_eq!(keys(handle.store(), "k").len(), 200);
    drop(handle);
    drop(runtime);
    thread.join().expect("the thread ends by itself");
}

/// Needs root: a real file system that is really full.
#[test]
fn a_file_system_without_space_is_named_and_the_store_goes_on_afterwards() {
    let place = Place::new();
    let dir = place.dir.path();
    let mount = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).arg(dir).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !mount("mount", &["-t", "tmpfs", "-o", "size=512k", "perch-store-test"]) {
        assert!(std::env::var_os("E2E_REQUIRED").is_none(), "mounting a tmpfs needs root");
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let outcome = std::panic::catch_unwind(|| fill_and_go_on(dir));
    assert!(mount("umount", &[]), "the tmpfs is taken away");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn fill_and_go_on(dir: &Path) {
    let store = Store::open(&dir.join("store.db")).expect("open");
    store.commit(&put("old", "1")).expect("before");
    let ballast = dir.join("ballast");
    // Writes until the file system takes no more.
    std::fs::write(&ballast, vec![0; 1024 * 1024]).expect_err("full");
    let big = put("new", &"x".repeat(50_000)).put("old", "2");
    let error = store.commit(&big).expect_err("full");
    assert!(matches!(error, CommitError::Full), "{error:?}");
    assert_eq!((value(&store, "old").as_deref(), value(&store, "new")), (Some("1"), None));
    std::fs::remove_file(&ballast).expect("remove");
    store.commit(&big).expect("space again");
    drop(store);
    let store = Store::open(&dir.join("store.db")).expect("open again");
    assert_eq!(value(&store, "old").as_deref(), Some("2"));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("runtime")
}
