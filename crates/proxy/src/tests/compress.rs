//! Answers that go out compressed (`http_options.compress`, PX-87), read by callers that take them apart again.

use std::cell::RefCell;
use std::io::Write;
use std::rc::Rc;

use flate2::write::GzDecoder;
use perch_core::coding::AT_ONCE_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::http2::{backend, client, field, request};
use super::world::*;
use crate::control::{AddressKind, AppView, HttpView, ToProxy};
use crate::fuzz::follow;
use crate::http::body::Framing;

fn compressing(port: u16) -> AppView {
    let mut view = app("started", port);
    let http = HttpView { compress: true, ..HttpView::default() };
    view.machines[0].services[0].ports[0].http = Some(http);
    view
}

/// A Machine that says this to every head.
async fn saying(answer: impl Into<Vec<u8>>) -> u16 {
    let answer = Rc::new(answer.into());
    machine(move |mut stream| {
        let answer = Rc::clone(&answer);
        async move {
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Text that repeats itself, but not exactly.
fn text(bytes: usize) -> String {
    let mut text: String = (0..bytes / 8).map(|n| format!("line {n}\n")).collect();
    text.truncate(bytes);
    text
}

fn with_length(fields: &str, content: &str) -> String {
    let length = content.len();
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {length}\r\n\r\n{content}")
}

const HTML: &str = "Content-Type: text/html\r\n";

fn wanting(version: &str, more: &str) -> String {
    format!("GET / HTTP/{version}\r\nHost: app.flycast\r\nAccept-Encoding: gzip\r\n{more}\r\n")
}

fn unpacked(bytes: &[u8]) -> String {
    let mut decoder = GzDecoder::new(Vec::new());
    decoder.write_all(bytes).expect("it is gzip");
    String::from_utf8(decoder.finish().expect("it is whole")).expect("text")
}

/// Reads an answer in chunks: its head, and content.
async fn read_chunked(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let head = read_head(stream).await.expect("a head comes");
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    let mut framed = Vec::new();
    while !framed.ends_with(b"\r\n0\r\n\r\n") {
        framed.push(stream.read_u8().await.expect("it goes on"));
    }
    let (content, _) =
        follow(Framing::Chunked, [&framed[..]]).expect("good chunks").expect("a whole body");
    (head, content)
}

#[test]
fn an_answer_comes_in_chunks_of_gzip_and_the_connection_goes_on() {
    run(|mut world| async move {
        let content = text(300_000);
        let fields = format!("{HTML}ETag: \"a\"\r\nVary: Cookie\r\nAccept-Ranges: bytes\r\n");
        world.publish(compressing(saying(with_length(&fields, &content)).await)).await;
        let mut stream = world.connect().await;
        for _ in 0..3 {
            stream.write_all(wanting("1.1", "").as_bytes()).await.expect("the proxy reads");
            let (head, packed) = read_chunked(&mut stream).await;
            assert!(packed.len() * 3 < content.len(), "{} bytes", packed.len());
            assert!(unpacked(&packed) == content);
            for there in
                ["Content-Encoding: gzip", "Etag: W/\"a\"", "Vary: Cookie, Accept-Encoding"]
            {
                assert!(head.contains(&format!("\r\n{there}\r\n")), "{head}");
            }
            for gone in ["Content-Length", "Accept-Ranges", "ETag: \"a\""] {
                assert!(!head.contains(gone), "{head}");
            }
        }
    });
}

#[test]
fn who_does_not_want_it_or_asks_for_the_head_only_gets_what_the_program_said() {
    run(|mut world| async move {
        let content = text(1000);
        world.publish(compressing(saying(with_length(HTML, &content)).await)).await;
        let plain = world.ask(GET).await;
        assert!(plain.contains("\r\nVary: Accept-Encoding\r\n"), "{plain}");
        assert!(plain.contains("Content-Length: 1000\r\n") && plain.ends_with(&content), "{plain}");
        let refusing = wanting("1.1", "Connection: close\r\n").replace("gzip", "gzip;q=0, br");
        assert!(world.ask(&refusing).await.ends_with(&content));
    });
    run(|mut world| async move {
        let head_only =
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n";
        world.publish(compressing(saying(head_only).await)).await;
        let asked = wanting("1.1", "Connection: close\r\n").replace("GET", "HEAD");
        let answer = world.ask(&asked).await;
        assert!(answer.contains("Content-Length: 1000\r\n"), "{answer}");
        assert!(!answer.contains("gzip") && answer.ends_with("\r\n\r\n"), "{answer}");
    });
}

#[test]
fn what_is_packed_already_or_of_another_kind_goes_out_as_it_came() {
    for fields in
        ["Content-Type: image/png\r\n", "Content-Type: text/css\r\nContent-Encoding: br\r\n"]
    {
        run(async |mut world: World| {
            let content = text(1000);
            world.publish(compressing(saying(with_length(fields, &content)).await)).await;
            let answer = world.ask(&wanting("1.1", "Connection: close\r\n")).await;
            assert!(answer.ends_with(&content) && !answer.contains("Vary"), "{answer}");
        });
    }
}

#[test]
fn chunks_keep_their_trailers() {
    run(|mut world| async move {
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n\
            5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 7\r\n\r\n";
        world.publish(compressing(saying(answer).await)).await;
        let mut stream = world.connect().await;
        let asked = wanting("1.1", "Connection: close\r\n");
        stream.write_all(asked.as_bytes()).await.expect("the proxy reads");
        let head = read_head(&mut stream).await.expect("a head comes");
        assert_eq!(head.matches("chunked").count(), 1, "{head}");
        let mut framed = Vec::new();
        stream.read_to_end(&mut framed).await.expect("it ends well");
        assert!(framed.ends_with(b"\r\n0\r\nX-Sum: 7\r\n\r\n"), "{framed:?}");
        let (content, _) = follow(Framing::Chunked, [&framed[..]]).expect("good").expect("whole");
        assert_eq!(unpacked(&content), "hello world");
    });
}

#[test]
fn callers_of_http_1_0_and_answers_without_an_end_get_the_end_of_the_connection() {
    for answer in
        [with_length(HTML, &text(1000)), format!("HTTP/1.1 200 OK\r\n{HTML}\r\n{}", text(1000))]
    {
        run(async |mut world: World| {
            let port = machine(move |mut stream| {
                let answer = answer.clone();
                async move {
                    read_head(&mut stream).await.expect("a request comes");
                    stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
                }
            });
            world.publish(compressing(port.await)).await;
            let mut stream = world.connect().await;
            let asked = wanting("1.0", "Connection: keep-alive\r\n");
            stream.write_all(asked.as_bytes()).await.expect("the proxy reads");
            let head = read_head(&mut stream).await.expect("a head comes");
            assert!(head.contains("Connection: close\r\n") && !head.contains("chunked"), "{head}");
            let mut content = Vec::new();
            stream.read_to_end(&mut content).await.expect("it ends well");
            assert_eq!(unpacked(&content), text(1000));
            let mut stream = world.connect().await;
            stream.write_all(wanting("1.1", "").as_bytes()).await.expect("the proxy reads");
            assert_eq!(unpacked(&read_chunked(&mut stream).await.1), text(1000));
        });
    }
}

#[test]
fn an_answer_that_is_cut_is_no_whole_one() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            let answer = format!("HTTP/1.1 200 OK\r\n{HTML}Content-Length: 999\r\n\r\nhalf");
            stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
        });
        world.publish(compressing(port.await)).await;
        let mut stream = world.connect().await;
        stream.write_all(wanting("1.1", "").as_bytes()).await.expect("the proxy reads");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect_err("a cut is no end");
        assert!(!all.ends_with(b"0\r\n\r\n"), "{all:?}");
    });
}

/// A Machine that says one line at once, and another when it is told to.
async fn hesitating(go: Rc<Notify>) -> u16 {
    machine(move |mut stream| {
        let go = Rc::clone(&go);
        async move {
            read_head(&mut stream).await.expect("a request comes");
            let answer = format!("HTTP/1.1 200 OK\r\n{HTML}Content-Length: 10\r\n\r\n");
            let answer = answer.replace("Content-Length: 10", "Transfer-Encoding: chunked");
            stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
            stream.write_all(b"4\r\none\n\r\n").await.expect("the proxy reads");
            go.notified().await;
            stream.write_all(b"4\r\ntwo\n\r\n0\r\n\r\n").await.expect("the proxy reads");
        }
    })
    .await
}

/// What can be read so far.
#[derive(Default)]
struct Reader(RefCell<Option<GzDecoder<Vec<u8>>>>);

impl Reader {
    fn add(&self, bytes: &[u8]) -> String {
        let mut decoder = self.0.borrow_mut();
        let decoder = decoder.get_or_insert_with(|| GzDecoder::new(Vec::new()));
        decoder.write_all(bytes).expect("it is gzip");
        decoder.flush().expect("it is gzip");
        String::from_utf8(decoder.get_ref().clone()).expect("text")
    }
}

#[test]
fn who_waits_for_the_next_line_gets_the_one_before_it() {
    run(|mut world| async move {
        let go = Rc::new(Notify::new());
        world.publish(compressing(hesitating(Rc::clone(&go)).await)).await;
        let mut stream = world.connect().await;
        // Content without chunks is easier to read piece by piece.
        stream.write_all(wanting("1.0", "").as_bytes()).await.expect("the proxy reads");
        read_head(&mut stream).await.expect("a head comes");
        let reader = Reader::default();
        let mut so_far = String::new();
        while so_far != "one\n" {
            so_far = reader.add(&[stream.read_u8().await.expect("it goes on")]);
        }
        go.notify_one();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("it ends well");
        assert_eq!(reader.add(&rest), "one\ntwo\n");
    });
}

#[test]
fn a_caller_of_http2_gets_the_same_and_as_soon() {
    run(|mut world| async move {
        let go = Rc::new(Notify::new());
        world.publish(compressing(hesitating(Rc::clone(&go)).await)).await;
        let (caller, _) = client(&world).await;
        let mut asked = request("GET", "/");
        asked.headers_mut().insert("accept-encoding", http::HeaderValue::from_static("br, gzip"));
        let mut ready = caller.clone().ready().await.expect("the connection is there");
        let (answer, _) = ready.send_request(asked, true).expect("it goes out");
        let mut answer = answer.await.expect("an answer comes");
        assert_eq!(
            (field(&answer, "content-encoding"), field(&answer, "vary")),
            ("gzip", "Accept-Encoding")
        );
        let reader = Reader::default();
        let mut so_far = String::new();
        while so_far != "one\n" {
            let piece = answer.body_mut().data().await.expect("it goes on");
            so_far = reader.add(&piece.expect("a piece"));
        }
        go.notify_one();
        while let Some(piece) = answer.body_mut().data().await {
            so_far = reader.add(&piece.expect("a piece"));
        }
        assert_eq!(so_far, "one\ntwo\n");
    });
}

/// A whole answer by HTTP/2: content and trailers.
async fn fetch(world: &World, path: &str) -> (http::HeaderMap, Vec<u8>, Option<http::HeaderMap>) {
    let (caller, _) = client(world).await;
    let mut asked = request("GET", path);
    asked.headers_mut().insert("accept-encoding", http::HeaderValue::from_static("gzip"));
    let mut ready = caller.ready().await.expect("the connection is there");
    let (answer, _) = ready.send_request(asked, true).expect("it goes out");
    let (parts, mut body) = answer.await.expect("an answer comes").into_parts();
    let mut content = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.expect("the body is whole");
        body.flow_control().release_capacity(piece.len()).expect("it was taken");
        content.extend_from_slice(&piece);
    }
    (parts.headers, content, body.trailers().await.expect("the end is good"))
}

#[test]
fn large_answers_to_callers_of_http2_are_whole() {
    let content = text(3_000_000);
    run(async |mut world: World| {
        world.publish(compressing(saying(with_length(HTML, &content)).await)).await;
        let (headers, packed, _) = fetch(&world, "/").await;
        assert!(!headers.contains_key("content-length") && unpacked(&packed) == content);
    });
}

#[test]
fn machines_that_speak_http2_have_their_answers_compressed_for_both_kinds_of_callers() {
    run(|mut world| async move {
        let mut view = compressing(machine(backend::page).await);
        view.machines[0].services[0].ports[0].h2_backend = true;
        world.publish(view).await;
        let (headers, packed, trailers) = fetch(&world, "/").await;
        assert_eq!(headers["content-encoding"], "gzip");
        assert_eq!(unpacked(&packed), backend::PAGE.repeat(100));
        assert_eq!(trailers.expect("they come")["x-sum"], "7");
        let mut stream = world.connect().await;
        let asked = wanting("1.1", "Connection: close\r\n");
        stream.write_all(asked.as_bytes()).await.expect("the proxy reads");
        let head = read_head(&mut stream).await.expect("a head comes");
        assert!(head.to_ascii_lowercase().contains("content-encoding: gzip"), "{head}");
        let mut framed = Vec::new();
        stream.read_to_end(&mut framed).await.expect("it ends well");
        let (content, _) = follow(Framing::Chunked, [&framed[..]]).expect("good").expect("whole");
        assert_eq!(unpacked(&content), backend::PAGE.repeat(100));
        assert!(framed.ends_with(b"x-sum: 7\r\n\r\n"), "the trailers come");
    });
}

/// An app at a shared address, whose answers never end.
fn endless(name: &str, port: u16) -> AppView {
    let mut view = compressing(port);
    view.name = name.to_owned();
    (view.addresses[0].kind, view.addresses[0].network) = (AddressKind::Shared, 0);
    view
}

/// Asks an app, and says whether its answer is compressed.
async fn begin_of(world: &World, app: &str) -> (TcpStream, bool) {
    let mut stream = world.connect().await;
    let asked = wanting("1.1", "").replace("app.flycast", &format!("{app}.perch.test"));
    stream.write_all(asked.as_bytes()).await.expect("the proxy reads");
    let head = read_head(&mut stream).await.expect("a head comes");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    (stream, head.contains("\r\nContent-Encoding: gzip\r\n"))
}

#[test]
fn an_app_whose_answers_never_end_leaves_compressors_to_others() {
    run(|mut world| async move {
        let port = hesitating(Rc::new(Notify::new())).await;
        let mut other = endless("other", port);
        other.machines[0].id = "00000000000009".to_owned();
        other.machines[0].private_ip = "fdaa:0:7:a7b:9:9:9:9".parse().expect("an address");
        world.send(ToProxy::App(other)).await;
        world.publish(endless("app", port)).await;
        let mut taken = Vec::new();
        for _ in 0..AT_ONCE_MAX / 2 {
            let (stream, compressed) = begin_of(&world, "app").await;
            assert!(compressed, "{} were", taken.len());
            taken.push(stream);
        }
        assert!(!begin_of(&world, "app").await.1, "it has its share");
        let (_others, compressed) = begin_of(&world, "other").await;
        assert!(compressed, "the other app has none");
        taken.clear();
        // The proxy hears of who has left a little later.
        while !begin_of(&world, "app").await.1 {}
    });
}
