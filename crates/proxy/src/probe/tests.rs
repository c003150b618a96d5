use perch_core::checks::Times;
use tokio::net::{TcpListener, TcpSocket};

use super::*;

fn spec(kind: CheckKind) -> CheckSpec {
    let second = Duration::from_secs(1);
    let times = Times { interval: second, timeout: Duration::from_secs(20), grace: second };
    CheckSpec { name: "alive".to_owned(), port: 1, kind, times }
}

fn http(method: &str, headers: &[(&str, &str)]) -> CheckSpec {
    let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    spec(CheckKind::Http {
        method: method.to_owned(),
        path: "/health".to_owned(),
        headers: headers.iter().map(own).collect(),
    })
}

/// What a program that answers this makes of a check, and what it was asked.
async fn ask(spec: &CheckSpec, answer: &str) -> (Seen, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let std::net::SocketAddr::V4(target) = listener.local_addr().expect("it is bound") else {
        panic!("it is IPv4");
    };
    let serve = async {
        let (mut stream, _) = listener.accept().await.expect("somebody comes");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.expect("a request comes"));
        }
        // Of a long one only the beginning is read.
        drop(stream.write_all(answer.as_bytes()).await);
        String::from_utf8(request).expect("it is text")
    };
    tokio::join!(probe(target, spec, Duration::ZERO), serve)
}

async fn verdict(answer: &str) -> Seen {
    ask(&http("GET", &[]), answer).await.0
}

#[tokio::test]
async fn every_2xx_passes_and_nothing_else_does() {
    for status in ["200 OK", "204 No Content", "299 Odd"] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        assert!(verdict(&answer).await.is_ok(), "{status}");
    }
    for status in ["301 Moved", "404 Not Found", "500 No", "503 Busy"] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        let seen = verdict(&answer).await.expect_err(status);
        assert_eq!(seen, format!("status {}", &status[..3]), "redirects are not followed");
    }
}

#[tokio::test]
async fn the_body_is_the_output_however_it_is_framed_and_never_long() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let length = format!("{ok}Content-Length: 6\r\n\r\nfine \u{7}more");
    assert_eq!(verdict(&length).await, Ok("fine".to_owned()));
    let chunked = format!("{ok}Transfer-Encoding: chunked\r\n\r\n3\r\nfin\r\n1\r\ne\r\n0\r\n\r\n");
    assert_eq!(verdict(&chunked).await, Ok("fine".to_owned()));
    let closed = format!("HTTP/1.1 100 Continue\r\n\r\n{ok}\r\nfi\u{1b}[ne\nnext");
    assert_eq!(verdict(&closed).await, Ok("fi [ne\nnext".to_owned()));
    let failed = "HTTP/1.1 503 No\r\nContent-Length: 7\r\n\r\nno disk";
    assert_eq!(verdict(failed).await, Err("status 503: no disk".to_owned()));
    let long = format!("{ok}\r\n{}", "x".repeat(100_000));
    assert_eq!(verdict(&long).await.map(|text| text.len()), Ok(OUTPUT_BYTES_MAX));
}

#[tokio::test]
async fn what_is_no_answer_fails_and_says_why() {
    assert!(verdict("").await.expect_err("no answer").contains("closed"));
    assert!(verdict("SSH-2.0-OpenSSH\r\n").await.expect_err("other").contains("no HTTP/1.1"));
    let bad = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert!(verdict(bad).await.expect_err("bad chunks").contains("malformed"));
}

#[tokio::test]
async fn the_request_is_as_the_check_says() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (_, plain) = ask(&http("GET", &[]), ok).await;
    assert!(plain.starts_with("GET /health HTTP/1.1\r\nHost: 127.0.0.1:"), "{plain}");
    assert!(plain.contains("\r\nConnection: close\r\n"), "{plain}");
    let own = [("host", "my.app"), ("X-Forwarded-Proto", "https"), ("Connection", "upgrade")];
    let (_, own) = ask(&http("POST", &own), ok).await;
    assert!(own.starts_with("POST /health HTTP/1.1\r\n"), "{own}");
    assert!(own.contains("host: my.app\r\n") && !own.contains("Host:"), "{own}");
    assert!(own.contains("X-Forwarded-Proto: https\r\n"), "{own}");
    assert!(own.contains("Content-Length: 0\r\n") && !own.contains("upgrade"), "{own}");
}

#[tokio::test]
async fn a_head_request_has_no_body_to_wait_for() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n";
    assert_eq!(ask(&http("HEAD", &[]), answer).await.0, Ok(String::new()));
}

fn bound() -> (TcpSocket, SocketAddrV4) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let std::net::SocketAddr::V4(target) = socket.local_addr().expect("it is bound") else {
        panic!("it is IPv4");
    };
    (socket, target)
}

#[tokio::test]
async fn tcp_asks_for_a_connection_only_and_waits_for_one_as_long_as_it_may() {
    let (socket, target) = bound();
    let tcp = spec(CheckKind::Tcp);
    let refused = probe(target, &tcp, Duration::ZERO).await;
    assert!(refused.expect_err("nobody listens").contains("connect"));
    let late = async {
        tokio::task::yield_now().await;
        socket.listen(8).expect("it listens")
    };
    let (seen, _listener) = tokio::join!(probe(target, &tcp, Duration::from_secs(20)), late);
    assert!(seen.is_ok(), "{seen:?}");
    assert!(probe(target, &tcp, Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn a_program_that_says_nothing_has_failed_after_its_time() {
    let (socket, target) = bound();
    let _listener = socket.listen(8).expect("it listens");
    let mut check = http("GET", &[]);
    check.times.timeout = Duration::from_millis(10);
    let seen = probe(target, &check, Duration::ZERO).await;
    assert_eq!(seen, Err("GET /health: no answer within 10ms".to_owned()));
}
