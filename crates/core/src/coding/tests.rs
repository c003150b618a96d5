use super::*;

/// A message with these lines.
fn of(lines: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
    move |name| {
        let values: Vec<_> =
            lines.iter().filter(|(known, _)| *known == name).map(|(_, value)| *value).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }
}

type Lines = &'static [(&'static str, &'static str)];

fn planned(request: Lines, status: u16, length: Option<u64>, answer: Lines) -> Plan {
    plan(&of(request), Answer { status, length, fields: &of(answer) }, true)
}

fn change<'a>(plan: &'a Plan, name: &str) -> Option<Option<&'a str>> {
    plan.changes.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_deref())
}

const WANTS: Lines = &[("accept-encoding", "gzip")];

#[test]
fn who_is_asked_for_gzip_and_who_is_not() {
    let yes = [
        "gzip",
        "GZIP",
        "x-gzip",
        "gzip, deflate, br",
        "br;q=1.0, gzip;q=0.8, *;q=0.1",
        "*",
        "*;q=0.001",
        "deflate;q=0, *",
        "identity;q=0, gzip",
        "identity;q=0.5, gzip;q=0.5",
        " gzip ; q = 1.000 ",
        "gzip;q=0, gzip",
        "identity, gzip",
    ];
    for list in yes {
        assert!(accepts_gzip(list), "{list}");
    }
    let no = [
        "",
        ",",
        "identity",
        "br",
        "gzip;q=0",
        "gzip;q=0.000",
        "*;q=0",
        "gzip;q=0, *",
        "gzip;q=0.4, identity;q=0.5",
        "identity;q=0",
        "gzip;q=1.001",
        "gzip;q=2",
        "gzip;q=-1",
        "gzip;q=",
        "gzip;q=0.0001",
        "gzip;level=9",
        "gzip;q=x",
        "gzipped",
        "not gzip",
    ];
    for list in no {
        assert!(!accepts_gzip(list), "{list}");
    }
}

#[test]
fn a_compressed_answer_says_so_and_varies() {
    let answer: Lines = &[
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "1000"),
        ("accept-ranges", "bytes"),
        ("etag", "\"a\""),
        ("vary", "Cookie"),
        ("vary", "Origin"),
    ];
    let plan = planned(WANTS, 200, Some(1000), answer);
    assert!(plan.gzip);
    assert_eq!(change(&plan, "content-encoding"), Some(Some("gzip")));
    assert_eq!(change(&plan, "content-length"), Some(None));
    assert_eq!(change(&plan, "accept-ranges"), Some(None));
    assert_eq!(change(&plan, "etag"), Some(Some("W/\"a\"")));
    assert_eq!(change(&plan, "vary"), Some(Some("Cookie, Origin, Accept-Encoding")));
    let weak = planned(WANTS, 200, None, &[("content-type", "text/css"), ("etag", "W/\"a\"")]);
    assert_eq!(change(&weak, "etag"), None);
}

#[test]
fn who_does_not_want_it_is_told_that_others_may_get_it_otherwise() {
    let page: Lines = &[("content-type", "text/html")];
    for request in [&[] as Lines, &[("accept-encoding", "br")]] {
        let plan = planned(request, 200, None, page);
        let vary = ("vary", Some("Accept-Encoding".to_owned()));
        assert_eq!(plan, Plan { gzip: false, changes: vec![vary] });
    }
    let full = plan(&of(WANTS), Answer { status: 200, length: None, fields: &of(page) }, false);
    assert!(!full.gzip && full.changes.len() == 1);
    for vary in ["*", "accept-encoding", "Cookie,ACCEPT-ENCODING"] {
        assert_eq!(super::vary(Some(vary)), None, "{vary}");
    }
    assert_eq!(super::vary(Some(" ")), Some("Accept-Encoding".to_owned()));
}

#[test]
fn what_must_stay_as_it_is_stays() {
    const HTML: (&str, &str) = ("content-type", "text/html");
    let kept: &[(u16, Option<u64>, Lines)] = &[
        (200, None, &[]),
        (200, None, &[("content-type", "image/png")]),
        (200, None, &[("content-type", "text/event-stream")]),
        (200, None, &[("content-type", "application/grpc")]),
        (200, None, &[HTML, ("content-encoding", "br")]),
        (200, None, &[HTML, ("content-encoding", "identity")]),
        (200, None, &[HTML, ("cache-control", "public, No-Transform")]),
        (200, None, &[HTML, ("content-range", "bytes 0-9/10")]),
        (200, None, &[HTML, ("content-digest", "sha-256=:x:")]),
        (200, Some(LENGTH_MIN - 1), &[HTML]),
        (204, None, &[HTML]),
        (206, None, &[HTML]),
        (304, None, &[HTML]),
    ];
    for (status, length, answer) in kept {
        assert_eq!(
            planned(WANTS, *status, *length, answer),
            Plan::default(),
            "{status} {answer:?}"
        );
    }
    let untouched: Lines = &[("accept-encoding", "gzip"), ("cache-control", "no-transform")];
    assert!(!planned(untouched, 200, None, &[HTML]).gzip);
    assert!(planned(WANTS, 404, Some(LENGTH_MIN), &[HTML]).gzip);
}

#[test]
fn a_program_opts_out_by_a_coding_that_is_none() {
    let plan =
        planned(WANTS, 200, None, &[("content-type", "text/html"), ("content-encoding", "none")]);
    assert_eq!(plan, Plan { gzip: false, changes: vec![("content-encoding", None)] });
}

#[test]
fn types_that_are_text_are_known_whatever_their_parameters() {
    let yes = ["text/plain", "Application/JSON; charset=utf-8", "application/ld+json"];
    let also = ["image/svg+xml", "application/wasm", "font/ttf", "application/xhtml+xml"];
    assert!(yes.into_iter().chain(also).all(is_text));
    let no = ["", "text", "text/event-stream;x=y", "image/webp", "font/woff2", "video/mp4"];
    assert!(!no.into_iter().any(is_text) && !is_text("application/octet-stream"));
}

#[test]
fn an_app_takes_no_more_compressors_than_it_leaves_free() {
    let mut taken = [0; 8];
    let mut all = 0;
    for own in &mut taken {
        while has_room(*own, all) {
            (*own, all) = (*own + 1, all + 1);
        }
    }
    assert_eq!(taken, [64, 32, 16, 8, 4, 2, 1, 1]);
    assert!(!has_room(0, AT_ONCE_MAX) && !has_room(0, AT_ONCE_MAX + 1));
}
