//! What the HTTP/1 parser must never do, over generated and mutated messages.
//!
//! Three readers look at each message: ours, a plain strict one written for these tests, and hyper's.
//! What ours accepts, both others must accept and read in the same way; so must they what we would
//! send to a Machine. A failure names its seed: `PERCH_SEED=n` runs that one alone.

pub(super) mod generator;

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use generator::Dice;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::*;
use crate::fuzz::reference::{self, Message, read_body, read_head, read_message};
use crate::fuzz::{follow, forwarded, shown};
use crate::http::body::Framing;
use crate::http::head::{self, BadRequest, HEADERS_MAX, Request};

/// Messages per property: half a second without optimisation. 500,000 have passed.
const CASES: u64 = 20_000;

/// Runs one case per seed.
fn for_seeds(cases: u64, check: impl Fn(&mut Dice)) {
    let only = std::env::var("PERCH_SEED").ok().map(|text| text.parse().expect("a number"));
    let seeds = only.map_or(0..cases, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&mut Dice::new(seed))));
        if let Err(panic) = outcome {
            eprintln!("the seed is {seed}");
            resume_unwind(panic);
        }
    }
}

fn rewrite(input: &[u8]) -> Result<Option<(Request, Vec<u8>)>, BadRequest> {
    let mut out = Vec::new();
    let request = head::rewrite(input, &forwarded(), 0, &mut out)?;
    Ok(request.map(|request| (request, out)))
}

#[test]
fn what_our_parser_accepts_two_others_read_in_the_same_way() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let accepted = std::cell::Cell::new(0);
    for_seeds(CASES, |dice| {
        let input = dice.message();
        let Ok(Some((request, out))) = rewrite(&input) else { return };
        let head = read_head(&input).unwrap_or_else(|| panic!("too lax: {}", shown(&input)));
        assert_eq!(head.length, usize::from(request.head_len), "{}", shown(&input));
        assert_eq!(head.framing, request.framing, "{}", shown(&input));
        let body = &input[head.length..];
        check_forwarded(&input, &head, &out);
        let ours = follow(request.framing, [body]);
        if let Ok(Some((content, consumed))) = ours {
            accepted.set(accepted.get() + 1);
            // Of targets hyper takes less than clients send; who refuses does not misread.
            if head.target.contains(['<', '>', '`']) {
                return;
            }
            assert_eq!(read_body(head.framing, body), Some((content.clone(), consumed)));
            let theirs = runtime.block_on(hyper_reads(&input[..head.length + consumed]));
            let (method, theirs) = theirs.unwrap_or_else(|| panic!("hyper: {}", shown(&input)));
            assert_eq!((method, theirs), (head.method, content), "{}", shown(&input));
        }
    });
    let few = CASES / 4;
    let only_one = std::env::var("PERCH_SEED").is_ok();
    assert!(only_one || few < accepted.get(), "only {} were compared", accepted.get());
}

/// The head for the Machine says the same, once, to a strict reader.
fn check_forwarded(input: &[u8], head: &reference::Head, out: &[u8]) {
    let sent = read_head(out).unwrap_or_else(|| panic!("malformed: {}", shown(out)));
    assert_eq!(sent.length, out.len(), "{}", shown(input));
    assert_eq!((&sent.method, sent.framing), (&head.method, head.framing), "{}", shown(input));
    assert_eq!(sent.target, head.origin_form(), "{}", shown(input));
    assert_eq!(sent.values("host").len(), 1, "{}", shown(out));
    assert_eq!(sent.values("x-free"), head.values("x-free"), "{}", shown(input));
}

/// Method and content as hyper's server understands them; `None`: it refuses.
async fn hyper_reads(input: &[u8]) -> Option<(String, Vec<u8>)> {
    let (mut caller, server) = tokio::io::duplex(1 << 20);
    caller.write_all(input).await.expect("there is room");
    caller.shutdown().await.expect("it is open");
    let heard = std::cell::RefCell::new(None);
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        let heard = &heard;
        async move {
            let method = request.method().to_string();
            if let Ok(body) = request.into_body().collect().await {
                *heard.borrow_mut() = Some((method, body.to_bytes().to_vec()));
            }
            Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.half_close(true).max_headers(HEADERS_MAX);
    // Its complaints about what follows are of no interest.
    let _ended = builder.serve_connection(TokioIo::new(server), service).await.is_ok();
    heard.into_inner()
}

#[test]
fn a_chunked_body_has_one_reading_however_it_comes() {
    let whole = std::cell::Cell::new(0);
    for_seeds(CASES, |dice| {
        let body = dice.chunked_mutated();
        let at_once = follow(Framing::Chunked, [&body[..]]);
        let pieces = dice.pieces(&body);
        assert_eq!(follow(Framing::Chunked, pieces.iter().copied()), at_once, "{}", shown(&body));
        if let Ok(Some(read)) = at_once {
            whole.set(whole.get() + 1);
            assert_eq!(read_body(Framing::Chunked, &body), Some(read), "{}", shown(&body));
        }
    });
    assert!(CASES / 4 < whole.get() || std::env::var("PERCH_SEED").is_ok());
}

#[test]
fn noise_is_refused_or_waited_for_but_never_a_panic() {
    for_seeds(CASES, |dice| {
        let noise = dice.noise();
        if let Ok(Some((request, _))) = rewrite(&noise) {
            assert!(read_head(&noise).is_some(), "{}", shown(&noise));
            drop(follow(request.framing, [&noise[usize::from(request.head_len)..]]));
        }
        drop(follow(Framing::Chunked, [&noise[..]]));
    });
}

#[test]
fn a_head_is_too_large_or_not_however_it_comes() {
    for length in [16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 20_000, 40_000] {
        let rest = length - "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(rest));
        assert_eq!(head.len(), length);
        let fits = length <= 16 * 1024;
        assert_eq!(rewrite(head.as_bytes()).is_ok(), fits, "{length}");
        // Without its last byte it is still waited for only if it can still fit.
        assert_eq!(rewrite(&head.as_bytes()[..length - 1]).is_ok(), fits, "{length}");
    }
}

/// What must end a connection, as field lines and as whole heads.
fn refused_heads() -> Vec<Vec<u8>> {
    let fields: [&[u8]; 24] = [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4",
        b"Content-Length: 4\r\nContent-Length: 4",
        b"Content-Length: 4\r\nContent-Length: 5",
        b"Content-Length: 4, 4",
        b"Content-Length: +4",
        b"Content-Length: 4 4",
        b"Content-Length:",
        b"Content-Length : 4",
        b"Content-Length\t: 4",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding : chunked",
        b"X: a\r\n b: c",
        b"X: a\r\n\tTransfer-Encoding: chunked",
        b"X: a\nTransfer-Encoding: chunked",
        b"X: a\rTransfer-Encoding: chunked",
        b"X: a\0b",
        b"X\0: a",
        b": a",
        b"no colon",
        b"Host: a",
    ];
    let mut heads: Vec<Vec<u8>> = fields
        .iter()
        .map(|f| [b"POST / HTTP/1.1\r\nHost: a\r\n", *f, b"\r\n\r\nbody"].concat())
        .collect();
    let whole: [&[u8]; 14] = [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a:b:c\r\n\r\n",
    ];
    heads.extend(whole.iter().map(|head| head.to_vec()));
    heads.push(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(16 * 1024)).into_bytes());
    heads
}

#[test]
fn what_is_refused_ends_its_connection_and_reaches_no_machine() {
    run(|mut world| async move {
        let port = machine(|_| async { panic!("a refused request came through") }).await;
        world.publish(app("started", port)).await;
        for head in refused_heads() {
            let mut stream = world.connect().await;
            let next = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
            stream.write_all(&[&head, next.as_slice()].concat()).await.expect("it reads");
            let answer = read_all(&mut stream).await;
            let refused = ["HTTP/1.1 400 ", "HTTP/1.1 431 ", "HTTP/1.1 501 "];
            assert!(refused.iter().any(|r| answer.starts_with(r)), "{} {answer}", shown(&head));
            assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{} {answer}", shown(&head));
        }
    });
}

#[test]
fn a_machine_gets_method_target_framing_and_body_as_they_were_sent() {
    /// Messages through real sockets, each in random pieces.
    const MESSAGES: u64 = 300;
    run(|mut world| async move {
        let (heard, mut messages) = tokio::sync::mpsc::unbounded_channel();
        let port = machine(move |stream| record(stream, heard.clone())).await;
        world.publish(app("started", port)).await;
        let mut stream = world.connect().await;
        // Pieces go out one by one, and at once.
        stream.set_nodelay(true).expect("it is open");
        for seed in 0..MESSAGES {
            let mut dice = Dice::new(seed);
            let input = dice.plain_message();
            for piece in dice.pieces(&input) {
                stream.write_all(piece).await.expect("the proxy reads");
                if dice.below(4) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let answer = read_response(&mut stream).await;
            assert!(answer.0.starts_with("HTTP/1.1 200"), "seed {seed}: {}", answer.0);
            let sent = read_message(&input).expect("plain messages are good");
            let came: Message = messages.recv().await.expect("the Machine lives");
            assert_eq!(came.head.method, sent.head.method, "seed {seed}");
            assert_eq!(came.head.target, sent.head.origin_form(), "seed {seed}");
            assert_eq!(came.head.framing, sent.head.framing, "seed {seed}");
            assert_eq!(came.body, sent.body, "seed {seed}");
        }
    });
}

/// Reads messages with the strict reader and answers each.
async fn record(
    mut stream: tokio::net::TcpStream,
    heard: tokio::sync::mpsc::UnboundedSender<Message>,
) {
    let mut input = Vec::new();
    while stream.read_buf(&mut input).await.is_ok_and(|count| 0 < count) {
        let Some(message) = read_message(&input) else { continue };
        assert_eq!(message.length, input.len(), "one message at a time");
        input.clear();
        heard.send(message).expect("the test listens");
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.expect("the proxy reads");
    }
}
