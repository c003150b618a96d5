use super::*;

fn json(text: &str) -> Result<Order, BadReplay> {
    of_json(text.as_bytes())
}

fn fields(text: &str) -> Result<Order, BadReplay> {
    let head = format!("HTTP/1.1 200 OK\r\n{text}\r\n");
    Fields::of_head(head.as_bytes())?.order()
}

#[test]
fn the_json_form_has_every_documented_field() {
    let order = json(
        r#"{"app":"other","region":"iad,us","prefer_instance":"00000000000001","state":"s","elsewhere":true,
            "timeout":"2s","fallback":"force_self","transform":{"path":"/new?x=1","delete_headers":["cookie"],
            "set_headers":[{"name":"authorization","value":"Bearer x"},{"name":"Host","value":"other.flycast"}]}}"#,
    )
    .expect("it is good");
    assert!(order.replay.elsewhere && order.replay.state.as_deref() == Some("s"));
    let mut message = b"GET /old HTTP/1.1\r\nHost: x\r\nCookie: c\r\nA: b\r\n\r\n".to_vec();
    let head_len = message.len();
    order.transform.expect("there").edit().apply(&mut message, head_len);
    assert_eq!(
        String::from_utf8(message).expect("text"),
        "GET /new?x=1 HTTP/1.1\r\nA: b\r\nauthorization: Bearer x\r\nHost: other.flycast\r\n\r\n"
    );
}

#[test]
fn caches_are_read_in_both_forms() {
    let wanted =
        Caching::Store { pattern: "/a/*".to_owned(), ttl: Duration::from_secs(60), may_skip: true };
    let head = "fly-replay: app=x\r\nfly-replay-cache: /a/*\r\nfly-replay-cache-ttl-secs: 60\r\n\
                fly-replay-cache-allow-bypass: yes\r\n";
    assert_eq!(fields(head).expect("good").cache, Some(wanted.clone()));
    for text in [
        r#"{"app":"x","cache":{"prefix":"/a/*","ttl":60,"allow_bypass":true}}"#,
        r#"{"app":"x","cache":{"prefix":"/a/*","ttl":60},"allow_bypass":true}"#,
    ] {
        assert_eq!(json(text).expect(text).cache, Some(wanted.clone()));
    }
    for forget in [
        json(r#"{"app":"x","cache":{"invalidate":true}}"#),
        fields("fly-replay: app=x\r\nfly-replay-cache: invalidate\r\n"),
    ] {
        assert_eq!(forget.expect("good").cache, Some(Caching::Forget));
    }
}

#[test]
fn what_makes_no_sense_or_may_not_be_is_refused() {
    let transform = |text: &str| format!(r#"{{"app":"x","transform":{text}}}"#);
    let set = |name: &str, value: &str| {
        transform(&format!(r#"{{"set_headers":[{{"name":"{name}","value":"{value}"}}]}}"#))
    };
    let many = format!(r#"{{"set_headers":[{}]}}"#, [r#"{"name":"a","value":"b"}"#; 65].join(","));
    let texts = [
        String::new(),
        "[]".to_owned(),
        "{}".to_owned(),
        r#"{"app":"x","what":1}"#.to_owned(),
        r#"{"app":1}"#.to_owned(),
        r#"{"app":"x","state":"a\r\nb: c"}"#.to_owned(),
        transform(r#"{"path":"new"}"#),
        transform(r#"{"path":"/a b"}"#),
        transform(r#"{"path":"/a\r\nb: c"}"#),
        transform(r#"{"delete_headers":["content-length"]}"#),
        transform(r#"{"delete_headers":["Host"]}"#),
        transform(&many),
        set("Transfer-Encoding", "chunked"),
        set("connection", "close"),
        set("fly-client-ip", "::1"),
        set("Fly_Client_IP", "::1"),
        set("fly-replay-src", "x"),
        set("fly-src", "x"),
        set("a b", "x"),
        set("", "x"),
        set("a", r"x\r\nb: c"),
        set("a", &"x".repeat(9_000)),
        set("host", "a b"),
        r#"{"app":"x","cache":{"prefix":"/a","ttl":9}}"#.to_owned(),
        r#"{"app":"x","cache":{"ttl":10}}"#.to_owned(),
        r#"{"app":"x","state":"s","cache":{"prefix":"/a","ttl":10}}"#.to_owned(),
        format!(r#"{{"app":"x","state":"{}"}}"#, "s".repeat(70_000)),
        format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)),
    ];
    for text in texts {
        let error = json(&text).expect_err(&text);
        assert!(error.to_string().starts_with("PA03 ") && error.to_string().len() < 400, "{error}");
    }
    for head in [
        "fly-replay: app=x\r\nfly-replay: app=y\r\n",
        "fly-replay: \r\n",
        "fly-replay: app=x\r\nfly-replay-cache: /a\r\n",
        "fly-replay: app=x\r\nfly-replay-cache: /a\r\nfly-replay-cache-ttl-secs: 5\r\n",
        "fly-replay: app=x\r\nfly-replay-cache: a\r\nfly-replay-cache-ttl-secs: 50\r\n",
        "fly-replay: app=x;timeout=1s\r\nfly-replay-cache: /a\r\nfly-replay-cache-ttl-secs: 50\r\n",
    ] {
        fields(head).expect_err(head);
    }
}

#[test]
fn only_the_json_form_s_own_type_is_it() {
    assert!(is_json(b"application/vnd.fly.replay+json"));
    assert!(is_json(b" Application/Vnd.Fly.Replay+JSON ; charset=utf-8"));
    assert!(!is_json(b"application/json") && !is_json(b"application/vnd.fly.replay+jsonx"));
}
