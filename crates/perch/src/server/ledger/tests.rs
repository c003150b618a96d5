use super::*;

fn event(app: &str) -> LedgerEvent {
    LedgerEvent { app: app.to_owned(), kind: "wake".to_owned(), ..LedgerEvent::default() }
}

fn newest(limit: usize) -> LedgerQuery {
    LedgerQuery { limit, ..LedgerQuery::default() }
}

#[test]
fn a_later_server_reads_what_was_written_and_passes_over_a_line_that_was_cut_short() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open(dir.path()).expect("a thread");
    ["a", "b"].into_iter().for_each(|app| ledger.enter(event(app), None));
    ledger.flush();
    let first = ledger.page(&newest(9));
    drop(ledger);
    let path = dir.path().join("ledger.jsonl");
    let mut file = File::options().append(true).open(&path).expect("it is there");
    file.write_all(b"{\"id\":99,\"app\":\"to").expect("written");
    let ledger = Ledger::open(dir.path()).expect("a thread");
    assert_eq!(ledger.page(&newest(9)), first);
    ledger.enter(event("c"), Some(5));
    ledger.flush();
    drop(ledger);
    let page = Ledger::open(dir.path()).expect("a thread").page(&newest(9));
    let apps: Vec<_> = page.events.iter().map(|event| event.app.as_str()).collect();
    assert_eq!(apps, ["a", "b", "c"]);
    assert_eq!(page.next, page.events[2].id, "an early clock makes no early id");
    assert_eq!(page.events[2].timestamp, "1970-01-01T00:00:00.000005Z");
}

#[test]
fn the_files_stay_bounded_and_keep_the_newest() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut book = Book::new(Place::of(dir.path()));
    let reason = "x".repeat(1_000);
    for id in 1..=20_000 {
        let event = LedgerEvent { id, reason: reason.clone(), ..event("a") };
        let mut line = serde_json::to_vec(&event).expect("it can be written");
        line.push(b'\n');
        book.take(std::iter::once(Job::Append(line)));
    }
    let lengths = fs::read_dir(dir.path()).expect("a directory");
    let lengths: Vec<u64> =
        lengths.map(|file| file.and_then(|it| it.metadata()).expect("a file").len()).collect();
    assert_eq!(lengths.len(), 2);
    assert!(lengths.iter().all(|length| *length <= FILE_BYTES_MAX + 2_000), "{lengths:?}");
    let page = Ledger::open(dir.path()).expect("a thread").page(&newest(1));
    assert_eq!(page.events[0].id, 20_000);
}

#[test]
fn pages_follow_each_other_and_other_apps_are_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open(dir.path()).expect("a thread");
    for number in 0..6 {
        ledger.enter(event(if number % 2 == 0 { "a" } else { "b" }), None);
    }
    let apps = Some(vec!["a".to_owned()]);
    let mut query = LedgerQuery { apps, after: Some(0), limit: 2, hold: Duration::ZERO };
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let page = ledger.page(&query);
        assert!(page.events.iter().all(|event| event.app == "a"));
        sizes.push(page.events.len());
        query.after = Some(page.next);
    }
    assert_eq!(sizes, [2, 1, 0]);
    assert_eq!(query.after, Some(ledger.page(&newest(1)).next));
}

#[tokio::test]
async fn an_empty_page_is_held_until_there_is_something() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open(dir.path()).expect("a thread");
    ledger.enter(event("a"), None);
    let after = Some(ledger.page(&newest(1)).next);
    let hold = Duration::from_secs(3_600);
    let query = LedgerQuery { apps: Some(vec!["b".to_owned()]), after, limit: 5, hold };
    let (page, ()) = tokio::join!(ledger.read(&query), async {
        ledger.enter(event("a"), None);
        tokio::task::yield_now().await;
        ledger.enter(event("b"), None);
    });
    assert_eq!((page.events.len(), page.events[0].app.as_str()), (1, "b"));
    let at_once = LedgerQuery { after: Some(page.next), hold: Duration::ZERO, ..query };
    assert!(ledger.read(&at_once).await.events.is_empty());
}

fn is_wake(event: &LedgerEvent) -> bool {
    event.kind == "wake"
}

/// The apps of what the follower gets next, if anything; when nothing waits for the disk.
fn next(ledger: &Ledger, records_max: usize) -> Vec<String> {
    ledger.flush();
    lock(&ledger.shelf).next(records_max).into_iter().map(|event| event.app).collect()
}

#[tokio::test]
async fn a_follower_gets_each_record_that_he_wants_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open_followed(dir.path(), is_wake).expect("a thread");
    let other = || LedgerEvent { kind: "veto".to_owned(), ..event("other") };
    let (page, ()) = tokio::join!(ledger.follow(2), async {
        ledger.enter(other(), None);
        tokio::task::yield_now().await;
        ["a", "b", "c"].into_iter().for_each(|app| ledger.enter(event(app), None));
        ledger.enter(other(), None);
    });
    assert_eq!(page.into_iter().map(|it| it.app).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(next(&ledger, 2), ["c"]);
    assert!(next(&ledger, 2).is_empty());
}

#[test]
fn a_follower_goes_on_under_the_next_server_where_he_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Ledger::open_followed(dir.path(), is_wake).expect("a thread");
    let enter = |ledger: &Ledger, apps: &[&str]| {
        apps.iter().for_each(|app| ledger.enter(event(app), None));
        ledger.flush();
    };
    let before = Ledger::open(dir.path()).expect("a thread");
    enter(&before, &["early"]);
    drop(before);
    enter(&open(), &["a", "b", "c"]);
    let ledger = open();
    let page = lock(&ledger.shelf).next(2);
    assert_eq!((page.len(), page[0].app.as_str()), (2, "a"), "he begins with his first server");
    ledger.followed(page[0].id);
    enter(&ledger, &["d"]);
    assert_eq!(next(&open(), 9), ["b", "c", "d"]);
    drop(Ledger::open(dir.path()).expect("a thread"));
    assert!(next(&open(), 9).is_empty(), "a server without him forgets him");
    fs::write(dir.path().join("ledger.followed"), u64::MAX.to_string()).expect("written");
    let ledger = open();
    enter(&ledger, &["e"]);
    assert_eq!(next(&ledger, 9), ["e"], "nobody is ahead of the ledger");
}

#[test]
fn what_is_pushed_out_before_the_follower_had_it_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = Ledger::open_followed(dir.path(), is_wake).expect("a thread");
    ledger.enter(event("a"), None);
    ledger.enter(LedgerEvent { kind: "veto".to_owned(), ..event("a") }, None);
    assert_eq!(next(&ledger, 9).len(), 1);
    let fill = |count: usize| (0..count).for_each(|_| ledger.enter(event("a"), None));
    fill(RECORDS_MAX);
    assert_eq!(ledger.tally().overtaken, 0, "he had one, and did not want the other");
    fill(7);
    assert_eq!(ledger.tally().overtaken, 7);
    assert_eq!(next(&ledger, RECORDS_MAX).len(), RECORDS_MAX);
    fill(7);
    assert_eq!(ledger.tally().overtaken, 7);
}
