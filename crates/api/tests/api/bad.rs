//! What is malformed, too long, not there or not allowed.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use perch_api::{Client, ClientError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::Server;

/// Sends a request and looks at the status and at a part of the answer.
async fn check(server: &Server, line: &str, body: &str, code: u16, part: &str) {
    let answer = server.request(line, "", body).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{line}: {answer}");
    assert!(answer.contains(part), "{line}: {answer}");
    assert!(answer.contains("application/json"), "{line}: {answer}");
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_answered_in_json() {
    let server = Server::start();
    check(&server, "GET /", "", 404, r#"{"error":"#).await;
    check(&server, "GET /v1/nothing", "", 404, "/v1/nothing").await;
    check(&server, "GET /v1/apps/a/secretkeys", "", 501, "no secretkeys").await;
    let echo = r#"{"values": {"A": ["hunter2"]}}"#;
    check(&server, "POST /v1/apps/a/secrets", echo, 422, "must be a text or null").await;
    check(&server, "GET /v1/apps/a/secrets?show_secrets=true", "", 403, "not shown").await;
    check(&server, "GET /v1/apps/a/secrets?version=x", "", 400, "version").await;
    check(&server, "GET /v1/apps/%2e%2e", "", 400, "cannot be a name").await;
    check(&server, "PUT /v1/apps", "", 405, "use GET, HEAD, POST").await;
    check(&server, "BREW /v1/apps/a/machines/m/start", "", 405, "allow: POST").await;
    check(&server, "DELETE /v1/apps/a/ip_assignments/1.2.3", "", 400, "not an IP address").await;
}

#[tokio::test]
async fn whatever_has_get_answers_head_with_the_same_head_and_no_body() {
    let server = Server::with_app().await;
    for path in ["/v1/apps", "/v1/apps/web", "/v1/apps/none", "/v1/openapi.json"] {
        let of_get = server.request(&format!("GET {path}"), "", "").await;
        let of_head = server.request(&format!("HEAD {path}"), "", "").await;
        let (wanted, body) = of_get.split_once("\r\n\r\n").expect("a head");
        let (head, rest) = of_head.split_once("\r\n\r\n").expect("a head");
        let without_date = |head: &str| {
            head.lines()
                .filter(|line| !line.starts_with("date") && !line.contains("-request-id"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!((without_date(head), rest), (without_date(wanted), ""), "{path}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{path}: {head}");
    }
    check(&server, "POST /v1/openapi.json", "", 405, "allow: GET, HEAD\r\n").await;
}

#[tokio::test]
async fn bodies_that_cannot_be_accepted_say_why() {
    let server = Server::with_app().await;
    check(&server, "POST /v1/apps", "", 400, "not JSON").await;
    check(&server, "POST /v1/apps", "{\"name\":", 400, "not JSON").await;
    check(&server, "POST /v1/apps", "{\"name\":7}", 422, "invalid type: integer").await;
    check(&server, "PATCH /v1/apps/web", " [null]", 422, "must be an object").await;
    check(&server, "PATCH /v1/apps/web", "[null", 400, "not JSON").await;
    let machines = "POST /v1/apps/web/machines";
    check(&server, machines, "{}", 422, "missing field `config`").await;
    check(&server, machines, r#"{"config":{}}"#, 422, "config.image: is required").await;
    let port = r#"{"config":{"image":"a","services":[{"internal_port":70000}]}}"#;
    check(&server, machines, port, 422, r#"70000 is not a port; use 1 to 65535"}"#).await;
    check(&server, "POST /v1/apps/web/ip_assignments", r#"{"type":"v5"}"#, 422, "private_v6").await;
    check(&server, "POST /v1/apps/web/machines/m/signal", r#"{"signal":99}"#, 422, "SIGTERM").await;
    assert!(server.backend.state().machines.is_empty());
}

#[tokio::test]
async fn queries_that_cannot_be_accepted_say_why() {
    let server = Server::with_app().await;
    check(&server, "GET /v1/apps/web/machines/m/wait?state=happy", "", 400, "settled").await;
    check(&server, "GET /v1/apps/web/machines/m/wait?timeout=soon", "", 400, "seconds").await;
    check(&server, "GET /v1/apps/web/machines?state=happy", "", 400, "state=happy").await;
    check(&server, "GET /v1/apps/web/machines?metadata=x", "", 400, "KEY=VALUE").await;
    check(&server, "GET /v1/apps/web/images", "", 400, "ref=").await;
    check(&server, "GET /api/v1/apps/web/releases?limit=-1", "", 400, "a number").await;
    check(&server, "DELETE /v1/apps/web?force=perhaps", "", 400, "true or false").await;
    assert!(server.client.get_app("web").await.is_ok(), "nothing was deleted");
}

#[tokio::test]
async fn a_stream_needs_its_header_and_a_place_to_go() {
    let server = Server::with_app().await;
    let upgrade = "upgrade: tcp\r\nconnection: upgrade\r\n";
    for (query, headers, code) in [
        ("?host=h&port=80", "", 426),
        ("?host=h&port=0", upgrade, 400),
        ("?host=h&port=70000", upgrade, 400),
        ("?host=h", upgrade, 400),
        ("?port=80", upgrade, 400),
    ] {
        let request =
            format!("POST /v1/apps/web/proxy{query} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let mut stream = UnixStream::connect(&server.socket).await.expect("connection");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("read");
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {code}"), "{query}");
    }
    let refused = server.client.open_stream("nobody", "h", 80).await.expect_err("no app");
    assert_eq!(refused.status(), Some(404));
}

#[tokio::test]
async fn a_body_beyond_its_limit_is_refused_and_its_sender_hears_it() {
    let server = Server::start();
    let body = format!("{{\"name\":\"{}\"}}", "a".repeat(6 * 1024 * 1024));
    check(&server, "POST /v1/apps", &body, 413, "at most 4194304 bytes").await;
    let manifest = "a".repeat(6 * 1024 * 1024);
    let answer =
        server.request("PUT /v2/web/manifests/x", "content-type: a/b\r\n", &manifest).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("SIZE_INVALID"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_no_http_or_too_long_ends_the_connection() {
    let server = Server::start();
    assert!(server.raw("hello\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let long =
        format!("GET /v1/apps HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(1024 * 1024));
    let mut stream = UnixStream::connect(&server.socket).await.expect("connection");
    // The server may hang up before everything is written.
    drop(stream.write_all(long.as_bytes()).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert!(server.client.info().await.is_ok(), "others are served on");
}

#[tokio::test]
async fn no_server_no_permission_and_a_long_path_are_told_apart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let absent = Client::unix(dir.path().join("api.sock")).info().await.expect_err("absent");
    assert!(matches!(absent, ClientError::NotRunning { .. }), "{absent:?}");
    assert!(absent.hint().is_some_and(|hint| hint.contains("perch server")));

    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).expect("socket"));
    let refused = Client::unix(&stale).info().await.expect_err("stale");
    assert!(matches!(refused, ClientError::NotRunning { .. }), "{refused:?}");

    let long = Client::unix(PathBuf::from(format!("/tmp/{}", "a".repeat(103))))
        .info()
        .await
        .expect_err("long");
    assert!(matches!(long, ClientError::PathTooLong { .. }), "{long:?}");
    assert!(long.to_string().contains("108 bytes"), "{long}");
    assert!(long.hint().is_some_and(|hint| hint.contains("--data-dir")));
}

#[tokio::test]
async fn a_socket_of_another_user_is_denied() {
    let server = Server::start();
    let private = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(&server.socket, private).expect("mode");
    match server.client.info().await {
        Err(error @ ClientError::Denied { .. }) => {
            assert!(error.hint().is_some_and(|hint| hint.contains("sudo")))
        }
        // Root may open every socket.
        outcome => assert!(outcome.is_ok(), "{outcome:?}"),
    }
}

/// Plays a server that answers every call with `answer`.
async fn against(answer: &'static str) -> ClientError {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).expect("socket");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("connection");
        let mut buffer = [0; 4096];
        assert!(0 < stream.read(&mut buffer).await.expect("request"));
        stream.write_all(answer.as_bytes()).await.expect("write");
    });
    Client::unix(&socket).info().await.expect_err("bad answer")
}

#[tokio::test]
async fn answers_that_break_the_contract_are_told_apart() {
    let broken = against("").await;
    assert!(
        matches!(&broken, ClientError::Broken { call, .. } if call == "GET /perch/v1/info"),
        "{broken:?}"
    );
    let cut = against("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{").await;
    assert!(matches!(cut, ClientError::Broken { .. }), "{cut:?}");
    let nonsense = against("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").await;
    assert!(matches!(nonsense, ClientError::BadAnswer { .. }), "{nonsense:?}");
    let plain = against("HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\noops").await;
    assert_eq!(plain.to_string(), "request returned non-2xx status: 500: oops");
    let message =
        against("HTTP/1.1 422 No\r\ncontent-length: 27\r\n\r\n{\"error\":\"a\",\"message\":\"b\"}")
            .await;
    assert_eq!(message.to_string(), "b");
}
