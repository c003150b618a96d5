//! Every call of the client arrives and comes back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use perch_api::wire::{
    AddressIntent, AppPatch, Asker, AssignIp, ConsoleInput, CreateApp, CreateRelease, CreateVolume,
    ExecInput, ExtendVolume, GoDuration, IpKind, LaunchInput, LeaseInput, LedgerQuery, LogEntry,
    LogQuery, MachineFilter, MachineState, ReleaseStatus, RestartQuery, SecretValue, SignalInput,
    StopInput, UpdateRelease, UpdateSecrets, UpdateVolume, WaitQuery, WaitState, Whoami,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Server, config};

#[tokio::test]
async fn apps_are_made_read_changed_and_removed() {
    let server = Server::start();
    let input = CreateApp {
        name: "web".to_owned(),
        address_intent: AddressIntent::Private,
        ..Default::default()
    };
    let app = server.client.create_app(&input).await.expect("create");
    assert_eq!((app.name.as_str(), app.address_intent), ("web", AddressIntent::Private));
    assert!(server.seen().starts_with("uid "), "the peer's uid arrives");

    let taken = server.client.create_app(&input).await.expect_err("taken");
    assert_eq!((taken.status(), taken.word()), (Some(422), Some("name_taken")));

    let patch = AppPatch { address_intent: Some(AddressIntent::None) };
    let changed = server.client.update_app("web", &patch).await.expect("patch");
    assert_eq!(changed.address_intent, AddressIntent::None);
    assert_eq!(server.client.list_apps(Some("a b&c")).await.expect("list").len(), 1);
    assert_eq!(server.seen(), "org Some(\"a b&c\")");
    server.client.delete_app("web").await.expect("delete");
    assert_eq!(server.seen(), "with volumes []");
    assert_eq!(server.client.get_app("web").await.expect_err("gone").status(), Some(404));

    server.client.create_app(&input).await.expect("create");
    server.client.delete_app_with_volumes("web", &["vol_1", "a&b"]).await.expect("delete");
    assert_eq!(server.seen(), r#"with volumes ["vol_1", "a&b"]"#);
}

#[tokio::test]
async fn what_flyctl_says_beyond_what_we_know_changes_nothing() {
    let server = Server::with_app().await;
    let body = r#"{"name":"new","org_slug":"","network":"","app_role_id":"","extra":{"a":[1]}}"#;
    let made = server.request("POST /v1/apps?wait=true", "", body).await;
    assert!(made.starts_with("HTTP/1.1 201") && made.contains(r#""name":"new""#), "{made}");
    let all = server.request("GET /v1/apps?org_slug=&app_role=&verbose=1", "", "").await;
    assert!(all.contains(r#""total_apps":2"#), "{all}");
    let of_role = server.request("GET /v1/apps?app_role=postgres_cluster", "", "").await;
    assert!(of_role.contains(r#""total_apps":0,"apps":[]"#), "{of_role}");
    let organizations = server.request("GET /api/v1/organizations?admin=false", "", "").await;
    assert!(organizations.starts_with("HTTP/1.1 200"), "{organizations}");
    let launch = r#"{"config":{"image":"hello","size":"shared"},"skip_secrets":true,"min_secrets_version":null,"lease_ttl":30}"#;
    let machine = server.request("POST /v1/apps/web/machines", "", launch).await;
    assert!(machine.starts_with("HTTP/1.1 200") && machine.contains(r#""nonce":"#), "{machine}");
}

#[tokio::test]
async fn a_whole_number_may_be_written_with_a_fraction_and_other_bytes_stay() {
    let server = Server::with_app().await;
    let path = "POST /v1/apps/web/machines";
    let service = |port: &str| {
        format!(
            r#"{{"config":{{"image":"a","x":12345678901234567890123,"services":[{{"internal_port":{port}}}]}},"lease_ttl":30.0}}"#
        )
    };
    let made = server.request(path, "", &service("8080.0")).await;
    assert!(made.starts_with("HTTP/1.1 200") && made.contains(r#""internal_port":8080"#), "{made}");
    let refused = server.request(path, "", &service("8080.5")).await;
    assert!(refused.starts_with("HTTP/1.1 422"), "{refused}");
    let plain = service("8080").replace("30.0", "30");
    let kept = server.request(path, "", &plain).await;
    assert!(kept.contains(r#""x":12345678901234567890123"#), "{kept}");
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let server = Server::with_app().await;
    let id = |answer: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix("fly-request-id: "));
        line.unwrap_or_else(|| panic!("no id: {answer}")).to_owned()
    };
    let mut seen = std::collections::BTreeSet::new();
    for path in ["/v1/apps", "/v1/apps/none", "/v1/none", "/v2/", "/v2/web/manifests/x"] {
        seen.insert(id(&server.request(&format!("GET {path}"), "", "").await));
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

#[tokio::test]
async fn addresses_are_given_listed_and_taken_back() {
    let server = Server::with_app().await;
    let input = AssignIp::of_kind(IpKind::PrivateV6);
    let given = server.client.assign_ip("web", &input).await.expect("assign");
    assert_eq!(server.client.list_ips("web").await.expect("list")[0], given);
    server.client.release_ip("web", given.ip).await.expect("release");
    assert_eq!(
        server.client.release_ip("web", given.ip).await.expect_err("twice").status(),
        Some(404)
    );
}

#[tokio::test]
async fn a_config_comes_back_as_it_was_sent_with_the_guest_filled_in() {
    let (server, machine) = Server::with_machine().await;
    let read = server.client.get_machine("web", &machine.id).await.expect("get");
    let keys: Vec<_> = read.config.keys().collect();
    assert_eq!(keys, ["zeta", "image", "metadata", "guest"]);
    assert_eq!(read.config.get("zeta"), Some(serde_json::Value::Null));
    assert_eq!(read.config.get("guest").expect("filled in")["memory_mb"], 256);
    let kept = server.backend.state().machines[&machine.id].config.clone();
    assert_eq!(kept.get("guest"), Some(serde_json::Value::Null), "the backend keeps what was sent");
}

#[tokio::test]
async fn machines_are_listed_by_filter() {
    let (server, _) = Server::with_machine().await;
    let filter = MachineFilter {
        include_deleted: true,
        region: Some("lcl".to_owned()),
        state: Some(MachineState::Created),
        metadata: vec![("role".to_owned(), "a=b&c".to_owned())],
    };
    let machines = server.client.list_machines("web", &filter).await.expect("list");
    assert_eq!(machines.len(), 1);
    assert_eq!(server.seen(), format!("{filter:?}"));
    let answer = server.request("GET /v1/apps/web/machines?metadata.role=x", "", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(server.seen().contains(r#"[("role", "x")]"#), "{}", server.seen());
}

#[tokio::test]
async fn machines_are_started_stopped_signalled_cordoned_and_removed() {
    let (server, machine) = Server::with_machine().await;
    let (client, id) = (&server.client, machine.id.as_str());
    let answer = client.start_machine("web", id, None).await.expect("start");
    assert_eq!(answer.previous_state, "created");
    let refused = client.delete_machine("web", id, None).await.expect_err("runs");
    assert_eq!(refused.status(), Some(412));

    let input = SignalInput { signal: "SIGUSR1".parse().expect("signal") };
    client.signal_machine("web", id, input, None).await.expect("signal");
    assert_eq!(server.seen(), "SIGUSR1");
    client.cordon_machine("web", id, None).await.expect("cordon");
    assert!(client.get_machine("web", id).await.expect("get").cordoned);
    client.uncordon_machine("web", id, None).await.expect("uncordon");
    assert!(!client.get_machine("web", id).await.expect("get").cordoned);

    let timeout = Some(GoDuration(Duration::from_secs(10)));
    client.stop_machine("web", id, &StopInput { signal: None, timeout }, None).await.expect("stop");
    assert_eq!(server.seen(), "None Some(GoDuration(10s))");
    let empty = server.request(&format!("POST /v1/apps/web/machines/{id}/stop"), "", "").await;
    assert!(empty.contains(r#"{"ok":true}"#), "{empty}");
    let flyctl = format!(r#"{{"id":"{id}","signal":"","timeout":"5s"}}"#);
    let empty = server.request(&format!("POST /v1/apps/web/machines/{id}/stop"), "", &flyctl).await;
    assert!(empty.contains(r#"{"ok":true}"#), "{empty}");

    assert_eq!(client.list_processes("web", id).await.expect("ps")[0].command, "init");
    assert_eq!(client.list_events("web", id).await.expect("events")[0].kind, "launch");
    client.kill_and_delete_machine("web", id, None).await.expect("delete");
    assert_eq!(client.get_machine("web", id).await.expect_err("gone").status(), Some(404));
}

#[tokio::test]
async fn metadata_is_set_and_removed_whatever_its_key() {
    let (server, machine) = Server::with_machine().await;
    let (client, id) = (&server.client, machine.id.as_str());
    client.set_metadata("web", id, "a/b c?", "1", None).await.expect("set");
    assert_eq!(client.get_metadata("web", id).await.expect("get")["a/b c?"], "1");
    client.delete_metadata("web", id, "a/b c?", None).await.expect("delete");
    assert_eq!(client.get_metadata("web", id).await.expect("get").len(), 1);
}

#[tokio::test]
async fn a_restart_carries_how_to_stop() {
    let (server, machine) = Server::with_machine().await;
    let query = RestartQuery {
        force_stop: true,
        signal: Some("SIGUSR1".parse().expect("signal")),
        timeout: Some(GoDuration(Duration::from_millis(1500))),
    };
    server.client.restart_machine("web", &machine.id, &query, None).await.expect("restart");
    assert_eq!(server.seen(), format!("restart {} {query:?}", machine.id));
    let path = format!("POST /v1/apps/web/machines/{}/restart", machine.id);
    assert!(server.request(&path, "", "").await.starts_with("HTTP/1.1 200"));
    assert_eq!(server.seen(), format!("restart {} {:?}", machine.id, RestartQuery::default()));
    for query in ["?force_stop=perhaps", "?signal=SIGWHAT", "?timeout=soon"] {
        let refused = server.request(&format!("{path}{query}"), "", "").await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{query}: {refused}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up_by_an_app_or_an_organization() {
    let server = Server::with_app().await;
    let (app, org) = (Asker::App("web".to_owned()), Asker::Organization("personal".to_owned()));
    let answer = server.client.resolve_name(&app, "a&b.internal.", "TXT").await.expect("answer");
    assert_eq!(answer.status, "NXDOMAIN");
    assert_eq!(server.seen(), "App(\"web\") TXT a&b.internal.");
    server.client.resolve_name(&org, "web.flycast.", "aaaa").await.expect("answer");
    assert_eq!(server.seen(), "Organization(\"personal\") AAAA web.flycast.");
    for query in ["", "?name=", "?name=x&type=MX", &format!("?name={}", "a".repeat(1025))] {
        let path = format!("GET /perch/v1/apps/web/dns{query}");
        let refused = server.request(&path, "", "").await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{query}: {refused}");
    }
}

#[tokio::test]
async fn the_ledger_is_read_with_what_was_asked() {
    let server = Server::with_app().await;
    let hold = Duration::from_millis(5);
    let apps = Some(vec!["web".to_owned()]);
    let query = LedgerQuery { apps, after: Some(3), limit: 9, hold };
    let page = server.client.read_ledger(&query).await.expect("page");
    assert_eq!((page.events[0].app.as_str(), page.next), ("web", 7));
    assert_eq!(server.seen(), format!("{query:?}"));
    let answer = server.request("GET /perch/v1/why/events?limit=0&hold_ms=99999999", "", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let all = LedgerQuery { apps: None, after: None, limit: 1, hold: Duration::from_secs(60) };
    assert_eq!(server.seen(), format!("{all:?}"));
}

#[tokio::test]
async fn metrics_are_text_and_of_one_app_if_that_is_asked() {
    let server = Server::with_app().await;
    let all = server.request("GET /metrics", "", "").await;
    assert!(all.starts_with("HTTP/1.1 200"), "{all}");
    let lower = all.to_ascii_lowercase();
    assert!(lower.contains("content-type: text/plain; version=0.0.4"), "{all}");
    assert!(all.ends_with("up 1\n# None\n"), "{all}");
    let one = server.request("GET /metrics?app=web", "", "").await;
    assert!(one.ends_with("# Some([\"web\"])\n"), "{one}");
}

#[tokio::test]
async fn why_is_asked_of_one_app_with_a_bound_on_callers() {
    let server = Server::with_app().await;
    let why = server.client.read_why("web", 7).await.expect("answer");
    assert_eq!((why.app.as_str(), why.live), ("web", true));
    assert_eq!(server.seen(), "web 7");
    for (query, callers) in [("", 20), ("?callers=5000", 100), ("?callers=0", 0)] {
        let path = format!("GET /perch/v1/apps/web/why{query}");
        let answer = server.request(&path, "", "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(server.seen(), format!("web {callers}"));
    }
}

#[tokio::test]
async fn a_caller_on_the_socket_is_its_user() {
    let server = Server::start();
    let caller = server.client.whoami().await.expect("answer");
    let uid = caller.uid.expect("it is told");
    let wanted = Whoami { user: format!("uid {uid}"), uid: Some(uid), ..Whoami::default() };
    assert_eq!(caller, wanted);
}

#[tokio::test]
async fn a_leased_machine_is_changed_by_its_holder_only() {
    let (server, machine) = Server::with_machine().await;
    let (client, id) = (&server.client, machine.id.as_str());
    let none = client.get_lease("web", id).await.expect_err("none");
    assert!(none.to_string().ends_with(" lease not found"), "{none}");

    let input = LeaseInput { ttl: 13, description: "deploy".to_owned() };
    let lease = client.acquire_lease("web", id, &input).await.expect("lease");
    assert_eq!((lease.data.expires_at, lease.data.description.as_str()), (13, "deploy"));
    let update = LaunchInput::new(config());
    let refused = client.update_machine("web", id, &update, None).await.expect_err("leased");
    assert_eq!(refused.status(), Some(409));
    assert!(refused.to_string().contains("lease currently held by"), "{refused}");
    let again = client.acquire_lease("web", id, &input).await.expect_err("leased");
    assert_eq!(again.status(), Some(409));

    let nonce = lease.data.nonce.as_str();
    let updated = client.update_machine("web", id, &update, Some(nonce)).await.expect("holder");
    assert_eq!(updated.instance_id, "v2");
    let refreshed = client.refresh_lease("web", id, &input, nonce).await.expect("refresh");
    assert_eq!(refreshed.data.nonce, nonce);
    client.release_lease("web", id, nonce).await.expect("release");
    client.update_machine("web", id, &update, None).await.expect("free");
}

#[tokio::test]
async fn a_lease_lasts_what_the_query_or_the_body_says_and_never_for_ever() {
    let (server, machine) = Server::with_machine().await;
    let path = format!("/v1/apps/web/machines/{}/lease", machine.id);
    for (query, body, wanted) in [
        ("?ttl=13", "", 13),
        ("?ttl=30s", "{\"ttl\":5}", 30),
        ("", "{\"ttl\":5}", 5),
        ("", "", 120),
        ("?ttl=86401", "", 3600),
    ] {
        server.backend.state().lease = None;
        let answer = server.request(&format!("POST {path}{query}"), "", body).await;
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        assert!(answer.contains(&format!("\"expires_at\":{wanted},")), "{answer}");
    }
}

#[tokio::test]
async fn a_wait_ends_when_the_state_is_reached() {
    let (server, machine) = Server::with_machine().await;
    let query = WaitQuery::for_state(WaitState::Started, Duration::from_secs(60));
    let waiting = server.client.wait_machine("web", &machine.id, &query);
    tokio::pin!(waiting);
    // Polls the wait until the backend has seen it, then lets the state come.
    let begun = async {
        while server.backend.waits.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut waiting => panic!("the state is not reached yet"),
        () = begun => {}
    }
    server.backend.set_state(&machine.id, MachineState::Started);
    waiting.await.expect("reached");
}

#[tokio::test]
async fn a_wait_that_is_over_is_408() {
    let (server, machine) = Server::with_machine().await;
    let query = WaitQuery {
        states: vec![WaitState::Stopped, WaitState::Destroyed],
        ..WaitQuery::for_state(WaitState::Started, Duration::from_millis(1))
    };
    let over = server.client.wait_machine("web", &machine.id, &query).await.expect_err("over");
    assert_eq!(over.status(), Some(408));
    assert!(over.to_string().contains("stopped or destroyed within 1 s"), "{over}");
}

#[tokio::test]
async fn a_wait_is_dropped_when_its_caller_goes_away() {
    let (server, machine) = Server::with_machine().await;
    let mut stream = UnixStream::connect(&server.socket).await.expect("connection");
    let request = format!(
        "GET /v1/apps/web/machines/{}/wait?state=stopped HTTP/1.1\r\nhost: x\r\n\r\n",
        machine.id
    );
    stream.write_all(request.as_bytes()).await.expect("write");
    while server.backend.waits.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    tokio::time::timeout(Duration::from_secs(10), server.backend.wait_ended.notified())
        .await
        .expect("dropped");
}

#[tokio::test]
async fn logs_are_held_until_there_is_a_line() {
    let server = Server::with_app().await;
    let query = LogQuery {
        hold: Duration::from_secs(60),
        instance: Some("m".to_owned()),
        ..Default::default()
    };
    let reading = server.client.read_logs("web", &query);
    tokio::pin!(reading);
    let begun = async {
        while server.seen() != format!("{query:?}") {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut reading => panic!("there is no line yet"),
        () = begun => {}
    }
    server.backend.state().logs.push(LogEntry { id: "1".to_owned(), ..Default::default() });
    server.backend.changed.notify_waiters();
    let page = reading.await.expect("page");
    assert_eq!((page.data.len(), page.meta.next_token.as_str()), (1, "1"));

    let rest = LogQuery { next_token: page.meta.next_token, ..LogQuery::default() };
    assert!(server.client.read_logs("web", &rest).await.expect("at once").data.is_empty());
    let answer = server.request("GET /api/v1/apps/web/logs?hold_ms=99999999", "", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && server.seen().contains("hold: 60s"),
        "{}",
        server.seen()
    );
}

#[tokio::test]
async fn releases_are_recorded_and_moved_on() {
    let server = Server::with_app().await;
    let none = server.client.current_release("web").await.expect_err("none");
    assert_eq!(none.status(), Some(404));
    let definition = json!({"z": 1, "a": null});
    let input = CreateRelease {
        app_name: "web".to_owned(),
        image: "hello".to_owned(),
        definition: definition.clone(),
        ..Default::default()
    };
    let release = server.client.create_release(&input).await.expect("create");
    let update = UpdateRelease { status: ReleaseStatus::Complete, metadata: json!(null) };
    let moved = server.client.update_release(&release.id, &update).await.expect("update");
    assert_eq!(moved.status, ReleaseStatus::Complete);
    let current = server.client.current_release("web").await.expect("current");
    assert_eq!(current.definition, Some(definition));
    server.client.create_release(&input).await.expect("second");
    let newest = server.client.list_releases("web", 1).await.expect("list");
    assert_eq!((newest.len(), newest[0].version), (1, 2));
}

#[tokio::test]
async fn secrets_come_in_and_only_their_names_go_out() {
    let server = Server::with_app().await;
    let values = [("A", Some("hunter2")), ("B", Some("")), ("GONE", None)];
    let values = values.map(|(name, value)| (name.to_owned(), value.map(SecretValue::new)));
    let update = UpdateSecrets { values: values.into() };
    let answer = server.client.update_secrets("web", &update).await.expect("update");
    assert_eq!((answer.version, answer.secrets.len()), (7, 2));
    let listed = server.client.list_secrets("web").await.expect("list");
    assert_eq!(listed, answer.secrets);
    assert_eq!(server.seen(), "secrets from 0");
    let page = server.request("GET /v1/apps/web/secrets?version=3", "", "").await;
    assert!(page.contains("\"secrets\":[{\"name\":\"A\",\"digest\":\"len:7\""), "{page}");
    assert!(!page.contains("hunter2"), "{page}");
    assert_eq!(server.seen(), "secrets from 3");
    let one = server.request("GET /v1/apps/web/secrets/A", "", "").await;
    assert!(one.contains("{\"name\":\"A\""), "{one}");
    let body = r#"{"value": "four"}"#;
    let set = server.request("POST /v1/apps/web/secrets/C", "", body).await;
    assert!(set.contains("\"digest\":\"len:4\"") && set.contains("\"version\":7"), "{set}");
    let gone = server.request("DELETE /v1/apps/web/secrets/C", "", "").await;
    assert!(gone.ends_with("{\"version\":7}"), "{gone}");
    let none = server.request("GET /v1/apps/web/secrets/C", "", "").await;
    assert!(none.starts_with("HTTP/1.1 404") && none.contains("no secret C"), "{none}");
}

#[tokio::test]
async fn volumes_are_made_shown_grown_copied_and_removed() {
    let server = Server::with_app().await;
    let client = &server.client;
    let input =
        CreateVolume { name: "data".to_owned(), size_gb: Some(2), ..CreateVolume::default() };
    let volume = client.create_volume("web", &input).await.expect("made");
    assert_eq!(server.seen(), format!("{input:?}"));
    assert_eq!(client.list_volumes("web").await.expect("list"), std::slice::from_ref(&volume));
    assert_eq!(client.get_volume("web", "vol_1").await.expect("get"), volume);
    let update = UpdateVolume { snapshot_retention: Some(9), auto_backup_enabled: None };
    let updated = client.update_volume("web", "vol_1", &update).await.expect("updated");
    assert_eq!(updated.snapshot_retention, 9);
    let longer = ExtendVolume { size_gb: 7 };
    let extended = client.extend_volume("web", "vol_1", &longer).await.expect("extended");
    assert_eq!((extended.volume.size_gb, extended.needs_restart), (7, true));
    assert_eq!(client.create_snapshot("web", "vol_1").await.expect("copied").id, "vs_1");
    let snapshots = client.list_snapshots("web", "vol_1").await.expect("snapshots");
    assert_eq!(snapshots[0].volume_size, 2 << 30);
    let shown = server.request("GET /v1/apps/web/volumes/vol_1", "", "").await;
    assert!(shown.contains(r#""encrypted":false,"attached_machine_id":null"#), "{shown}");
    assert!(!shown.contains("size_not_enforced"), "{shown}");
    assert_eq!(client.delete_volume("web", "vol_1").await.expect("removed").name, "data");
    assert!(client.get_volume("web", "vol_1").await.is_err());
}

#[tokio::test]
async fn facts_are_told() {
    let server = Server::start();
    let client = &server.client;
    assert_eq!(client.info().await.expect("info").region, "lcl");
    assert_eq!(client.list_regions().await.expect("regions").nearest, "lcl");
    assert_eq!(client.list_organizations().await.expect("organizations")[0].slug, "personal");
    assert!(client.get_organization("acme").await.expect("organization").billable);
    let image = client.resolve_image("web", "a/b:c@sha256:00").await.expect("image");
    assert_eq!(image.reference, "a/b:c@sha256:00");
}

#[tokio::test]
async fn a_stream_is_copied_both_ways_and_half_closed() {
    let server = Server::with_app().await;
    let mut stream = server.client.open_stream("web", "web.flycast", 80).await.expect("stream");
    assert_eq!(server.seen(), "web.flycast 80");
    stream.write_all(b"hello").await.expect("write");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.expect("read");
    assert_eq!(&answer, b"HELLO");
    stream.shutdown().await.expect("half close");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("rest");
    assert_eq!(rest, b"BYE");
}

#[tokio::test]
async fn a_program_is_run_with_what_the_call_carries() {
    let server = Server::with_app().await;
    let input = ExecInput {
        cmd: "ls 'a b'".to_owned(),
        stdin: "in".to_owned(),
        timeout: 7,
        ..ExecInput::default()
    };
    let answer = server.client.exec_machine("web", "m", &input).await.expect("answer");
    assert_eq!((answer.exit_code, answer.stdout.as_str()), (3, r#"["ls", "a b"] "in" 7"#));
    let unclosed = ExecInput { cmd: "'".to_owned(), ..ExecInput::default() };
    let refused = server.client.exec_machine("web", "m", &unclosed).await.expect_err("a quote");
    assert_eq!(refused.status(), Some(422));
}

#[tokio::test]
async fn a_console_is_asked_for_with_its_size_and_becomes_a_stream() {
    let server = Server::with_app().await;
    let input = ConsoleInput {
        cmd: "sh -c 'a & b'".to_owned(),
        user: "app".to_owned(),
        terminal: Some((24, 300)),
        term: "xterm-256color".to_owned(),
    };
    let mut stream = server.client.open_console("web", "m", &input).await.expect("stream");
    assert_eq!(server.seen(), format!("{input:?}"));
    stream.write_all(b"frames").await.expect("write");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await.expect("read");
    assert_eq!(&answer, b"FRAMES");
    let refused = server.client.open_console("nobody", "m", &input).await.expect_err("no app");
    assert_eq!(refused.status(), Some(404));
}

#[tokio::test]
async fn a_server_that_ends_answers_long_polls_and_closes_streams() {
    let (mut server, machine) = Server::with_machine().await;
    let mut stream = server.client.open_stream("web", "h", 1).await.expect("stream");
    let client = server.client.clone();
    let waiting = tokio::spawn(async move {
        let query = WaitQuery::for_state(WaitState::Stopped, Duration::from_secs(60));
        client.wait_machine("web", &machine.id, &query).await
    });
    let client = server.client.clone();
    let reading = tokio::spawn(async move {
        let query = LogQuery { hold: Duration::from_secs(60), ..LogQuery::default() };
        client.read_logs("web", &query).await
    });
    while server.backend.waits.load(Ordering::SeqCst) == 0 || !server.seen().contains("LogQuery") {
        tokio::task::yield_now().await;
    }
    drop(server.stop.take());
    let over = waiting.await.expect("task").expect_err("ended");
    assert_eq!(over.status(), Some(408));
    assert!(reading.await.expect("task").expect("page").data.is_empty());
    (&mut server.task).await.expect("ends");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("closed");
    assert!(server.client.info().await.is_err());
}

/// Reads an answer that says how long it is, and says whether the connection ends with it.
async fn is_last(stream: &mut UnixStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    stream.read_exact(&mut body).await.expect("a body");
    head.contains("\r\nconnection: close\r\n")
}

const ASK: &[u8] = b"GET /perch/v1/info HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_server_that_ends_answers_whom_it_has_accepted() {
    let mut server = Server::start();
    let mut early = UnixStream::connect(&server.socket).await.expect("connection");
    // Accepted after it.
    server.client.info().await.expect("answer");
    drop(server.stop.take());
    while UnixStream::connect(&server.socket).await.is_ok() {
        tokio::task::yield_now().await;
    }
    early.write_all(ASK).await.expect("it is read");
    assert!(is_last(&mut early).await);
    (&mut server.task).await.expect("ends");
    assert_eq!(early.read(&mut [0]).await.expect("an end"), 0);
}

#[tokio::test]
async fn a_request_that_meets_the_end_of_the_server_on_a_used_connection_is_answered() {
    for _ in 0..20 {
        let mut server = Server::start();
        let mut used = UnixStream::connect(&server.socket).await.expect("connection");
        used.write_all(ASK).await.expect("it is read");
        assert!(!is_last(&mut used).await);
        used.write_all(ASK).await.expect("it is read");
        drop(server.stop.take());
        is_last(&mut used).await;
        (&mut server.task).await.expect("ends");
    }
}

#[tokio::test]
async fn the_end_of_the_server_waits_for_who_has_begun_to_ask_and_not_for_the_silent() {
    let mut server = Server::start();
    let connect = async || UnixStream::connect(&server.socket).await.expect("connection");
    let mut silent = [connect().await, connect().await];
    let mut asking = [connect().await, connect().await];
    for used in [&mut silent[1], &mut asking[1]] {
        used.write_all(ASK).await.expect("it is read");
        assert!(!is_last(used).await);
    }
    let (part, rest) = ASK.split_at(9);
    for stream in &mut asking {
        stream.write_all(part).await.expect("it is read");
    }
    // Accepted after them.
    server.client.info().await.expect("answer");
    drop(server.stop.take());
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0]).await.expect("an end"), 0);
    }
    // When the server waits no longer for anybody these are at an end too.
    for stream in &mut asking {
        stream.write_all(rest).await.expect("it is read");
        assert!(is_last(stream).await);
    }
    (&mut server.task).await.expect("ends");
}
