//! Callers over TCP: who they are, what they may do, and what they do not get to see.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perch_api::server::{Operation, Scope, TokenHolder, operations};
use perch_api::wire::{
    AssignIp, CreateApp, CreateRelease, CreateToken, IpKind, LaunchInput, LedgerQuery, Machine,
    MachineState, WaitQuery, WaitState,
};
use perch_api::{Client, serve_tcp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::memory::Memory;
use super::{Server, config};

/// A server with the app `web` of the organization `personal`, a Machine, a release and a blob in it,
/// the app `other` of `team`, and tokens; served over TCP as well.
struct Remote {
    server: Server,
    address: SocketAddr,
    machine: Machine,
}

impl Remote {
    async fn start() -> Self {
        let server = Server::start();
        let client = &server.client;
        for (name, org) in [("web", "personal"), ("web2", "personal"), ("other", "team")] {
            let (name, org_slug) = (name.to_owned(), org.to_owned());
            let input = CreateApp { name, org_slug, ..CreateApp::default() };
            client.create_app(&input).await.expect("app");
        }
        let machine =
            client.create_machine("web", &LaunchInput::new(config())).await.expect("machine");
        server.backend.set_state(&machine.id, MachineState::Started);
        let input = CreateRelease { app_name: "web".to_owned(), ..CreateRelease::default() };
        client.create_release(&input).await.expect("release");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        // Ends with the test's runtime.
        tokio::spawn(serve_tcp(
            listener,
            None,
            Arc::clone(&server.backend),
            std::future::pending(),
        ));
        let remote = Self { server, address, machine };
        remote.add("all", Scope::default());
        remote.add("reader", Scope { read_only: true, ..Scope::default() });
        remote.add("own-org", of(Some("personal"), None));
        remote.add("own-app", of(Some("personal"), Some("web")));
        remote.add("other-org", of(Some("team"), None));
        remote.add("other-app", of(Some("personal"), Some("web2")));
        remote
    }

    fn add(&self, name: &str, scope: Scope) {
        let holder = TokenHolder { id: format!("id-{name}"), name: name.to_owned(), scope };
        let mut tokens = self.server.backend.tokens.lock().expect("nobody panicked");
        tokens.insert(format!("perch_{name}"), Arc::new(holder));
    }

    fn client(&self, token: &str) -> Client {
        let token = Some(format!("perch_{token}"));
        Client::remote(format!("http://{}", self.address), token, None)
    }

    /// The status of a call made with a token, and its whole answer.
    async fn call(&self, operation: &Operation, token: Option<&str>) -> (u16, String) {
        let path = self.path(operation.path);
        let body = match operation.path {
            "/api/v1/releases" => r#"{"app_name":"web"}"#,
            "/v1/apps" => r#"{"name":"new","org_slug":"personal"}"#,
            "/v1/apps/{app}/ip_assignments" => r#"{"type":"private_v6","org_slug":"personal"}"#,
            _ => "{}",
        };
        let authorization = token
            .map_or_else(String::new, |token| format!("authorization: Bearer perch_{token}\r\n"));
        let request = format!(
            "{} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{authorization}\r\n{body}",
            operation.method,
            body.len()
        );
        let answer = self.raw(request.as_bytes()).await;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.unwrap_or_else(|| panic!("{operation:?}: {answer:?}")), answer)
    }

    fn path(&self, template: &str) -> String {
        let path = template
            .replace("{app}", "web")
            .replace("{id}", &self.machine.id)
            .replace("{org}", "personal")
            .replace("{release}", "r1")
            .replace("{ip}", "fdaa::2")
            .replace("{digest}", "sha256:00")
            .replace(['{', '}'], "");
        // Long polls end at once.
        format!("{path}?timeout=1&hold_ms=1")
    }

    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("connection");
        stream.write_all(bytes).await.expect("write");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("read");
        String::from_utf8(answer).expect("text")
    }
}

fn of(org: Option<&str>, app: Option<&str>) -> Scope {
    Scope { org: org.map(str::to_owned), app: app.map(str::to_owned), read_only: false }
}

/// Each call gets a server of its own, since some remove what the next one needs.
async fn check_all(token: Option<&str>, wanted: impl Fn(&Operation, u16) -> bool) {
    for operation in operations() {
        let (status, answer) = Remote::start().await.call(&operation, token).await;
        assert!(wanted(&operation, status), "{operation:?} by {token:?}: {answer}");
    }
}

#[tokio::test]
async fn without_a_good_token_every_call_is_401() {
    check_all(None, |_, status| status == 401).await;
    check_all(Some("garbage"), |_, status| status == 401).await;
}

#[tokio::test]
async fn a_token_for_something_else_finds_nothing_here() {
    let hidden = |operation: &Operation, status| match operation.whose {
        "app" | "release" => status == 404,
        "host" => status == 403,
        "cut" | "all" => status == 200,
        "organization" => true,
        // A token of one app makes no others.
        "body" => matches!(status, 403 | 404),
        other => panic!("nobody knows what {other} means"),
    };
    check_all(Some("other-org"), hidden).await;
    check_all(Some("other-app"), hidden).await;
    let strange =
        |operation: &Operation, status| operation.whose != "organization" || status == 404;
    check_all(Some("other-org"), strange).await;
}

#[tokio::test]
async fn a_token_that_may_only_read_changes_nothing() {
    check_all(Some("reader"), |operation, status| {
        let refused = operation.changes || operation.whose == "host";
        (status == 403) == refused && status != 401
    })
    .await;
}

#[tokio::test]
async fn a_token_of_the_very_thing_is_let_through() {
    let let_through = |operation: &Operation, status| {
        (status == 403) == (operation.whose == "host") && status != 401
    };
    check_all(Some("all"), let_through).await;
    check_all(Some("own-org"), let_through).await;
    check_all(Some("own-app"), |operation, status| {
        let_through(operation, status) || operation.path == "/v1/apps" && operation.changes
    })
    .await;
}

#[tokio::test]
async fn an_app_that_must_not_be_seen_is_told_as_one_that_is_not_there() {
    let remote = Remote::start().await;
    let client = remote.client("other-org");
    let hidden = client.get_app("web").await.expect_err("hidden").to_string();
    let absent = client.get_app("wec").await.expect_err("absent").to_string();
    assert_eq!(hidden.replace("web", "wec"), absent);
    let hidden = client.current_release("web").await.expect_err("hidden").to_string();
    assert_eq!(hidden.replace("web", "wec"), absent);
}

#[tokio::test]
async fn lists_and_facts_are_cut_to_what_the_token_is_good_for() {
    let remote = Remote::start().await;
    for (token, apps, organizations) in [
        ("all", vec!["other", "web", "web2"], 2),
        ("own-org", vec!["web", "web2"], 1),
        ("own-app", vec!["web"], 1),
        ("other-org", vec!["other"], 1),
    ] {
        let client = remote.client(token);
        let seen = client.list_apps(None).await.expect("list");
        assert_eq!(seen.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), apps, "{token}");
        assert_eq!(client.list_organizations().await.expect("list").len(), organizations);
        // The backend says for which apps it was asked.
        let query = LedgerQuery { limit: 1, ..LedgerQuery::default() };
        let ledger = client.read_ledger(&query).await.expect("page");
        let asked = if token == "all" { String::new() } else { apps.join(",") };
        assert_eq!(ledger.events[0].app, asked, "{token}");
        let info = client.info().await.expect("info");
        assert!(info.pid == 0 && info.data_dir.as_os_str().is_empty(), "{info:?}");
        assert_eq!(info.default_org == "team", token == "other-org", "{info:?}");
    }
}

#[tokio::test]
async fn a_token_reaches_no_other_organization_by_what_a_body_names() {
    let remote = Remote::start().await;
    let client = remote.client("own-org");
    let mut address = AssignIp::of_kind(IpKind::PrivateV6);
    address.org_slug = "team".to_owned();
    assert_eq!(client.assign_ip("web", &address).await.expect_err("not its").status(), Some(404));
    let mut app = CreateApp { name: "new".to_owned(), ..CreateApp::default() };
    app.org_slug = "team".to_owned();
    assert_eq!(client.create_app(&app).await.expect_err("not its").status(), Some(404));
    app.org_slug.clear();
    assert_eq!(client.create_app(&app).await.expect("its own").organization.slug, "personal");
    assert_eq!(remote.server.seen(), "token own-org");
}

#[tokio::test]
async fn a_wait_ends_when_its_token_does() {
    let remote = Remote::start().await;
    let backend = Arc::clone(&remote.server.backend);
    let (client, id) = (remote.client("all"), remote.machine.id.clone());
    let query = WaitQuery {
        states: vec![WaitState::Stopped],
        timeout: Duration::from_secs(60),
        version: None,
        from_event_id: None,
    };
    let waiting = tokio::spawn(async move { client.wait_machine("web", &id, &query).await });
    while backend.waits.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    backend.revoke("perch_reader");
    assert!(!waiting.is_finished(), "another token's end is none of its business");
    backend.revoke("perch_all");
    let error = waiting.await.expect("no panic").expect_err("revoked");
    assert_eq!(error.status(), Some(401), "{error}");
    backend.wait_ended.notified().await;
    assert_eq!(backend.waits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn who_removes_an_app_is_answered_although_the_token_goes_with_it() {
    let remote = Remote::start().await;
    let client = remote.client("own-app");
    client.delete_app("web").await.expect("removed");
    let error = client.get_app("web").await.expect_err("the token is gone");
    assert_eq!(error.status(), Some(401), "{error}");
}

#[tokio::test]
async fn a_stream_ends_when_its_token_does() {
    let remote = Remote::start().await;
    let mut stream =
        remote.client("own-app").open_stream("web", "db.internal", 5432).await.expect("stream");
    stream.write_all(b"hello").await.expect("write");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.expect("read");
    assert_eq!(&answer, b"HELLO");
    remote.server.backend.revoke("perch_own-app");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("an end");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn of_a_stranger_no_body_is_read() {
    let remote = Remote::start().await;
    let head =
        "PUT /v2/web/blobs/uploads/u HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n";
    let answer = remote.raw(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let lower = answer.to_ascii_lowercase();
    assert!(lower.contains("connection: close") && lower.contains("www-authenticate: basic"));
}

#[tokio::test]
async fn a_head_without_end_is_refused_by_its_length() {
    let remote = Remote::start().await;
    let mut stream = TcpStream::connect(remote.address).await.expect("connection");
    let line = format!("x: {}\r\n", "a".repeat(1000));
    let mut sent = stream.write_all(b"GET / HTTP/1.1\r\n").await.map(|()| 0);
    // It ends with an error: the server answers 431 and closes.
    while let Ok(bytes) = sent {
        assert!(bytes < 16 * 1024 * 1024, "the server reads for ever");
        sent = stream.write_all(line.as_bytes()).await.map(|()| bytes + line.len());
    }
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked_over_the_socket_only() {
    let remote = Remote::start().await;
    let input = CreateToken { name: "ci".to_owned(), ..CreateToken::default() };
    let local = &remote.server.client;
    assert_eq!(local.create_token(&input).await.expect("made").token.name, "ci");
    assert_eq!(local.list_tokens().await.expect("listed").len(), 1);
    local.revoke_token("ci").await.expect("revoked");
    assert_eq!(remote.server.seen(), "revoke ci");
    let far = remote.client("all");
    assert_eq!(far.create_token(&input).await.expect_err("far").status(), Some(403));
    assert_eq!(far.list_tokens().await.expect_err("far").status(), Some(403));
    assert_eq!(far.revoke_token("ci").await.expect_err("far").status(), Some(403));
}

/// A connection from this address of the loopback network.
async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from.parse().expect("an address"), 0)).expect("bound");
    socket.connect(to).await.expect("connection")
}

/// What the server says on a connection until it closes it.
async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end as well.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).expect("text")
}

fn question(token: &str) -> String {
    format!(
        "GET /v1/platform/regions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer perch_{token}\r\n\r\n"
    )
}

/// Asks on a connection that stays; returns the first line of the answer.
async fn status(stream: &mut TcpStream, token: &str) -> String {
    stream.write_all(question(token).as_bytes()).await.expect("write");
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.expect("read"));
    }
    String::from_utf8(line).expect("text")
}

#[tokio::test]
async fn one_stranger_does_not_hold_all_places() {
    let remote = Remote::start().await;
    let mut slow = Vec::new();
    for _ in 0..32 {
        let mut stream = connect("127.0.0.2", remote.address).await;
        stream.write_all(b"GET / HTT").await.expect("write");
        slow.push(stream);
    }
    assert_eq!(rest(connect("127.0.0.2", remote.address).await).await, "", "one too many");
    let mut other = connect("127.0.0.3", remote.address).await;
    assert!(status(&mut other, "all").await.contains(" 200 "), "others are let in");
    // Whoever shows a token is no stranger and leaves a place to the next one.
    let mut known = slow.pop().expect("a connection");
    known
        .write_all(b"P/1.1\r\nhost: x\r\nauthorization: Bearer perch_all\r\n\r\n")
        .await
        .expect("write");
    assert_eq!(known.read_u8().await.expect("an answer"), b'H');
    let mut next = connect("127.0.0.2", remote.address).await;
    assert!(status(&mut next, "all").await.contains(" 200 "), "its place is free");
}

#[tokio::test]
async fn one_token_does_not_hold_all_places() {
    let remote = Remote::start().await;
    let mut held = Vec::new();
    for _ in 0..128 {
        let mut stream = connect("127.0.0.1", remote.address).await;
        assert!(status(&mut stream, "all").await.contains(" 200 "));
        held.push(stream);
    }
    let mut stream = connect("127.0.0.1", remote.address).await;
    stream.write_all(question("all").as_bytes()).await.expect("write");
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("the token all has 128 connections already"), "{answer}");
    let mut stream = connect("127.0.0.1", remote.address).await;
    assert!(status(&mut stream, "reader").await.contains(" 200 "), "another token is let in");
}

#[tokio::test]
async fn a_stranger_who_brings_no_token_in_time_is_hung_up_on() {
    let remote = Remote::start().await;
    let mut stream = connect("127.0.0.1", remote.address).await;
    stream.write_all(b"GET / HTTP/1.1\r\nauthorization: Bearer perch_a").await.expect("write");
    // Less than what a slow head may take of somebody who is known.
    let ended = tokio::time::timeout(Duration::from_secs(12), rest(stream)).await;
    assert_eq!(ended.as_deref(), Ok(""));
}

mod tls {
    use std::path::PathBuf;

    use perch_api::server::{BadTls, Tls};

    use super::*;

    fn file(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/api/tls").join(name)
    }

    /// A secured server, and its address.
    async fn start() -> (Remote, SocketAddr) {
        let remote = Remote::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tls = Tls::read(&file("certificate.pem"), &file("key.pem")).expect("a pair");
        let backend = Arc::clone(&remote.server.backend);
        tokio::spawn(serve_tcp(listener, Some(tls), backend, std::future::pending()));
        (remote, address)
    }

    fn client(url: String, roots: &str) -> Client {
        Client::remote(url, Some("perch_all".to_owned()), Some(file(roots)))
    }

    async fn check_refused(client: Client, words: &str) {
        let error = client.info().await.expect_err(words);
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", cause.unwrap_or_default());
        assert!(text.contains(words), "{text} lacks {words}");
    }

    #[tokio::test]
    async fn a_server_that_cannot_prove_its_name_gets_no_token() {
        let (remote, address) = start().await;
        check_refused(client(format!("https://{address}"), "other.pem"), "certificate").await;
        check_refused(client(format!("https://{address}"), "key.pem"), "PEM").await;
        check_refused(client(format!("https://{address}"), "none.pem"), "none.pem").await;
        check_refused(client(format!("https://{}", remote.address), "certificate.pem"), "").await;
        check_refused(client(format!("http://{address}"), "certificate.pem"), "").await;
    }

    #[tokio::test]
    async fn calls_and_streams_go_through_tls() {
        let (_remote, address) = start().await;
        for host in ["127.0.0.1", "localhost"] {
            let client = client(format!("https://{host}:{}", address.port()), "certificate.pem");
            assert_eq!(client.list_apps(None).await.expect("apps").len(), 3);
            let mut stream = client.open_stream("web", "db.internal", 5432).await.expect("stream");
            stream.write_all(b"hello").await.expect("write");
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.expect("read");
            assert_eq!(&answer, b"HELLO");
        }
    }

    #[tokio::test]
    async fn the_end_of_the_server_waits_for_who_has_begun_a_handshake_and_not_for_the_silent() {
        let backend = Arc::new(Memory::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tls = Tls::read(&file("certificate.pem"), &file("key.pem")).expect("a pair");
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let server = tokio::spawn(serve_tcp(listener, Some(tls), backend, shutdown));
        let connect = async || TcpStream::connect(address).await.expect("connection");
        let (mut begun, mut silent) = (connect().await, connect().await);
        // How a record of a handshake begins.
        begun.write_all(&[22, 3, 1]).await.expect("it is read");
        // Accepted after them, and understood.
        check_refused(client(format!("https://{address}"), "other.pem"), "certificate").await;
        drop(stop);
        tokio::select! {
            read = silent.read_u8() => drop(read.expect_err("an end")),
            _ = begun.read_u8() => panic!("who speaks is ended first"),
        }
        server.await.expect("ends");
    }

    #[tokio::test]
    async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
        let remote = Remote::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let tls = Tls::read(&file("certificate.pem"), &file("key.pem")).expect("a pair");
        let backend = Arc::clone(&remote.server.backend);
        tokio::spawn(serve_tcp(listener, Some(tls.clone()), backend, std::future::pending()));
        let old = client(url.clone(), "certificate.pem");
        let mut stream = old.open_stream("web", "db.internal", 5432).await.expect("stream");
        check_refused(client(url.clone(), "next.pem"), "certificate").await;
        tls.replace(&Tls::read(&file("next.pem"), &file("next-key.pem")).expect("a pair"));
        client(url.clone(), "next.pem").info().await.expect("the new one");
        check_refused(client(url, "certificate.pem"), "certificate").await;
        stream.write_all(b"hello").await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'H', "what was open goes on");
    }

    #[test]
    fn files_that_are_no_pair_are_refused_by_name() {
        let refused = |certificate: &str, key: &str| {
            Tls::read(&file(certificate), &file(key)).expect_err(certificate)
        };
        assert!(matches!(refused("key.pem", "key.pem"), BadTls::Empty { .. }));
        assert!(matches!(refused("other.pem", "key.pem"), BadTls::Pair { .. }));
        assert!(matches!(refused("certificate.pem", "certificate.pem"), BadTls::Pem { .. }));
        assert!(refused("none.pem", "key.pem").to_string().contains("none.pem"));
    }
}

#[tokio::test]
async fn a_caller_with_a_token_is_told_its_name_and_what_it_is_good_for() {
    let remote = Remote::start().await;
    let caller = remote.client("own-app").whoami().await.expect("answer");
    assert_eq!((caller.user.as_str(), caller.uid), ("token own-app", None));
    let scope = (caller.token.as_deref(), caller.org.as_deref(), caller.app.as_deref());
    assert_eq!(scope, (Some("own-app"), Some("personal"), Some("web")));
    assert!(!caller.read_only);
    assert!(remote.client("reader").whoami().await.expect("answer").read_only);
}
