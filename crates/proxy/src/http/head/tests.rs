use super::*;

fn forwarded() -> Forwarded {
    let endpoints = Endpoints {
        caller: "[fdaa:0:1:a7b:1::2]:50000".parse().expect("an address"),
        dest: "[fdaa:0:1:0:1::2]:80".parse().expect("an address"),
    };
    Forwarded::new(endpoints, "lcl")
}

fn rewritten(input: &str) -> (Request, String) {
    let mut out = Vec::new();
    let request = rewrite(input.as_bytes(), &forwarded(), 0, &mut out)
        .expect("the request is good")
        .expect("the head is complete");
    (request, String::from_utf8(out).expect("heads of these tests are text"))
}

fn check_refused(input: &str, reason: BadRequest) {
    let mut out = Vec::new();
    assert_eq!(rewrite(input.as_bytes(), &forwarded(), 0, &mut out), Err(reason), "{input:?}");
}

#[test]
fn ambiguous_framing_is_refused() {
    let refused = [
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", BadRequest::Framing),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1", BadRequest::Framing),
        ("Content-Length: 1\r\nContent-Length: 1", BadRequest::Framing),
        ("Content-Length: 1\r\nContent-Length: 2", BadRequest::Framing),
        ("Content-Length: 1, 1", BadRequest::Framing),
        ("Content-Length: +1", BadRequest::Framing),
        ("Content-Length: -1", BadRequest::Framing),
        ("Content-Length: 0x1", BadRequest::Framing),
        ("Content-Length: ", BadRequest::Framing),
        ("Content-Length: 1 1", BadRequest::Framing),
        ("Content-Length: 99999999999999999999", BadRequest::Framing),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", BadRequest::Framing),
        ("Transfer-Encoding: chunked, chunked", BadRequest::Coding),
        ("Transfer-Encoding: gzip, chunked", BadRequest::Coding),
        ("Transfer-Encoding: identity", BadRequest::Coding),
        ("Transfer-Encoding: xchunked", BadRequest::Coding),
        ("Transfer-Encoding : chunked", BadRequest::Malformed),
        (" Transfer-Encoding: chunked", BadRequest::Malformed),
        ("X: a\r\n Transfer-Encoding: chunked", BadRequest::Malformed),
        ("Transfer-Encoding: chunked\0", BadRequest::Malformed),
    ];
    for (fields, reason) in refused {
        check_refused(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"), reason);
    }
    check_refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", BadRequest::Framing);
}

#[test]
fn heads_that_are_no_request_are_refused() {
    check_refused("GET / HTTP/1.1\r\n\r\n", BadRequest::Host);
    check_refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", BadRequest::Host);
    check_refused("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", BadRequest::Host);
    check_refused("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BadRequest::Host);
    check_refused("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Method);
    check_refused("GET a HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Malformed);
    check_refused("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadRequest::Malformed);
    check_refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadRequest::Malformed);
    check_refused(&format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(16384)), BadRequest::TooLarge);
    let many = "X: a\r\n".repeat(HEADERS_MAX + 1);
    check_refused(&format!("GET / HTTP/1.1\r\n{many}\r\n"), BadRequest::TooLarge);
}

#[test]
fn an_incomplete_head_leaves_no_trace() {
    let mut out = b"kept".to_vec();
    let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for length in 0..whole.len() {
        assert_eq!(rewrite(&whole[..length], &forwarded(), 0, &mut out), Ok(None));
    }
    assert_eq!(out, b"kept");
}

#[test]
fn the_machine_learns_who_called_and_nobody_can_pretend() {
    let (request, head) = rewritten(
        "GET /a?b=c HTTP/1.1\r\nHost: app.flycast\r\nFly-Client-IP: 1.2.3.4\r\nFly-Region: xxx\r\n\
         Fly-Src: instance=evil\r\nFly-Src-Signature: x\r\nX-Forwarded-For: 9.9.9.9\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Port: 444\r\nFly-Forwarded-Port: 1\r\nA: b\r\n\r\nrest",
    );
    assert_eq!(
        head,
        "GET /a?b=c HTTP/1.1\r\nHost: app.flycast\r\nX-Forwarded-Port: 444\r\nA: b\r\n\
         Fly-Client-IP: fdaa:0:1:a7b:1::2\r\nFly-Forwarded-Port: 80\r\nFly-Region: lcl\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-SSL: off\r\nVia: 1.1 perch\r\n\
         X-Forwarded-For: 9.9.9.9, fdaa:0:1:a7b:1::2, fdaa:0:1:0:1::2\r\n\r\n"
    );
    assert_eq!(request.framing, Framing::None);
    assert_eq!(request.method, Method::Idempotent);
    assert_eq!(request.after, After::Keep);
}

#[test]
fn names_that_cgi_takes_for_ours_are_dropped() {
    let ours = [
        "Fly_Client_IP",
        "fly-client_ip",
        "FLY_REGION",
        "Fly_Src",
        "Fly_Src_Signature",
        "Fly_Forwarded_Port",
        "Fly_Request_Id",
        "X_Forwarded_For",
        "X_Forwarded-Port",
        "x_forwarded_proto",
        "X_Forwarded_SSL",
        "Content_Length",
        "Transfer_Encoding",
    ];
    for name in ours {
        let (request, head) =
            rewritten(&format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: 66\r\nA_b: c\r\n\r\n"));
        assert!(!head.contains("66"), "{name} in {head}");
        assert!(head.contains("A_b: c\r\n") && head.contains("X-Forwarded-Port: 80"), "{head}");
        assert_eq!(request.framing, Framing::None);
    }
}

#[test]
fn a_target_passes_as_it_came_although_it_should_have_been_encoded() {
    for target in ["/a^b`c\\d\"e", "/<>{}|", "/?q=<a>^\"`", "/\u{e9}/\u{4e2d}?\u{fc}"] {
        let (_, head) = rewritten(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(head.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{target:?}: {head}");
    }
    for target in ["/a#b", "/a\u{1}", "/a\u{7f}", "/a\tb"] {
        check_refused(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), BadRequest::Malformed);
    }
}

#[test]
fn fields_between_the_caller_and_us_stay_between_us() {
    let (request, head) = rewritten(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop, Content-Length, Host\r\n\
         X-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: close\r\n\
         Content-Length: 3\r\n\r\n",
    );
    assert_eq!(request.after, After::Close);
    assert_eq!(request.framing, Framing::Length(3));
    assert!(head.contains("Content-Length: 3\r\n") && head.contains("Host: a\r\n"), "{head}");
    for name in ["X-Hop", "Keep-Alive", "TE:", "Proxy-Connection", "\r\nConnection"] {
        assert!(!head.contains(name), "{name} in {head}");
    }
}

#[test]
fn an_absolute_target_replaces_the_host() {
    let (_, head) = rewritten("GET http://b:80?q HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("GET /?q HTTP/1.1\r\nHost: b:80\r\nFly-"), "{head}");
}

#[test]
fn old_clients_are_served_and_close_by_default() {
    let (request, head) = rewritten("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((request.version, request.after), (Version::Http10, After::Close));
    assert!(head.contains("HTTP/1.1\r\nHost: [fdaa:0:1:0:1::2]\r\n"), "{head}");
    let (request, _) = rewritten("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert_eq!(request.after, After::Keep);
}

#[test]
fn an_upgrade_is_offered_anew_however_it_was_written() {
    for fields in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nConnection: keep-alive, X-Hop\r\nX-Hop: a",
        "Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: upgrade, Upgrade, Host",
    ] {
        let (request, head) = rewritten(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        assert!(request.upgrade && request.after == After::Keep);
        assert!(
            head.contains("\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nFly-"),
            "{head}"
        );
        assert!(!head.contains("X-Hop"), "{head}");
    }
}

#[test]
fn an_offer_of_h2c_is_not_taken_and_not_passed_on() {
    let (request, head) = rewritten(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    );
    assert_eq!(request.after, After::Keep);
    assert!(!head.contains("Upgrade") && !head.contains("HTTP2"), "{head}");
}
