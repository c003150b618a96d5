//! Callers whose chunks are none. Whoever has not been answered hears 400 and the end of the connection, wherever in
//! the request it was; whoever has is reset; no Machine takes what it got for a whole request.

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::http2::backend::grpc;
use super::world::*;

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

/// What a Machine has got.
#[derive(Default)]
struct Got {
    /// Told when a first chunk has come.
    chunk: Notify,
    /// Told when all is over, unless what came was a whole request.
    broken: Notify,
}

/// A Machine that answers each head by `first`, waits for a chunk, and goes on to the end.
async fn saying(first: &'static str) -> (u16, Rc<Got>) {
    let got = Rc::new(Got::default());
    let told = Rc::clone(&got);
    let port = machine(move |mut stream| {
        let told = Rc::clone(&told);
        async move {
            read_head(&mut stream).await.expect("a request comes");
            stream.write_all(first.as_bytes()).await.expect("the proxy reads");
            let mut chunk = [0; CHUNK.len()];
            stream.read_exact(&mut chunk).await.expect("a chunk comes");
            assert_eq!(chunk, CHUNK.as_bytes());
            told.chunk.notify_one();
            let mut rest = Vec::new();
            // An end is as good as a reset.
            let _end = stream.read_to_end(&mut rest).await.is_err();
            assert_eq!(rest, b"", "nothing of a chunk that is none");
            told.broken.notify_one();
        }
    })
    .await;
    (port, got)
}

const CHUNK: &str = "5\r\nhello\r\n";
/// None of them goes on as a chunk or as the end.
const BAD: [&str; 5] = [
    "zz\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "2\r\nabc\r\n0\r\n\r\n",
    "0\r\nno field\r\n\r\n",
    "0\r\n\n",
];

fn assert_refused(answer: &str) {
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(head.contains("\r\nConnection: close"), "{answer}");
    assert_eq!(text, "malformed request body\n");
}

#[test]
fn one_that_comes_with_the_head_is_400_and_no_machine_hears_of_it() {
    for bad in BAD {
        run(|mut world| async move {
            let heard = Rc::new(Cell::new(false));
            let hears = Rc::clone(&heard);
            let port = machine(move |stream| {
                hears.set(true);
                echo_heads(stream)
            });
            world.publish(app("started", port.await)).await;
            assert_refused(&world.ask(&format!("{POST}{bad}")).await);
            assert_refused(&world.ask(&format!("{POST}{CHUNK}{bad}")).await);
            assert!(!heard.get());
        });
    }
}

#[test]
fn one_that_comes_with_a_later_request_of_the_connection_is_400_behind_the_answers_before_it() {
    run(|mut world| async move {
        world.publish(app("started", machine(echo_heads).await)).await;
        let mut stream = world.connect().await;
        let both = format!("GET /first HTTP/1.1\r\nHost: a\r\n\r\n{POST}zz\r\n");
        stream.write_all(both.as_bytes()).await.expect("the proxy reads");
        assert!(read_response(&mut stream).await.1.starts_with("GET /first "));
        assert_refused(&read_all(&mut stream).await);
    });
}

#[test]
fn one_that_comes_before_the_answer_is_400() {
    for bad in BAD {
        for first in ["", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
            run(|mut world| async move {
                let (port, got) = saying(first).await;
                world.publish(app("started", port)).await;
                let mut stream = world.connect().await;
                stream.write_all(POST.as_bytes()).await.expect("the proxy reads");
                let mut interim = vec![0; first.len()];
                stream.read_exact(&mut interim).await.expect("what is no answer yet");
                stream.write_all(CHUNK.as_bytes()).await.expect("the proxy reads");
                got.chunk.notified().await;
                stream.write_all(bad.as_bytes()).await.expect("the proxy reads");
                assert_refused(&read_all(&mut stream).await);
                got.broken.notified().await;
            });
        }
    }
}

#[test]
fn one_that_comes_behind_the_beginning_of_the_answer_ends_the_connection() {
    run(|mut world| async move {
        let (port, got) = saying("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        world.publish(app("started", port)).await;
        let mut stream = world.connect().await;
        stream.write_all(POST.as_bytes()).await.expect("the proxy reads");
        let head = read_head(&mut stream).await.expect("a head comes");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        stream.write_all(CHUNK.as_bytes()).await.expect("the proxy reads");
        got.chunk.notified().await;
        stream.write_all(b"zz\r\n").await.expect("the proxy reads");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect_err("a cut is no end");
        assert!(b"half".starts_with(&rest), "{rest:?}");
        got.broken.notified().await;
    });
}

/// Tells of the content of each stream, and answers none.
async fn listening(stream: TcpStream, got: Rc<Got>) {
    let mut connection = h2::server::handshake(stream).await.expect("the proxy speaks HTTP/2");
    while let Some(Ok((request, respond))) = connection.accept().await {
        let got = Rc::clone(&got);
        spawn_local(async move {
            let mut body = request.into_body();
            let content = body.data().await.expect("content").expect("it is good");
            assert_eq!(content, "hello");
            got.chunk.notify_one();
            body.data().await.expect("no end").expect_err("it is reset");
            got.broken.notify_one();
            drop(respond);
        });
    }
}

#[test]
fn machines_that_speak_http2_have_their_stream_reset() {
    for bad in BAD {
        run(|mut world| async move {
            let got = Rc::new(Got::default());
            let told = Rc::clone(&got);
            let port = machine(move |stream| listening(stream, Rc::clone(&told))).await;
            world.publish(grpc("started", port)).await;
            let mut stream = world.connect().await;
            let begun = format!("{POST}{CHUNK}");
            stream.write_all(begun.as_bytes()).await.expect("the proxy reads");
            got.chunk.notified().await;
            stream.write_all(bad.as_bytes()).await.expect("the proxy reads");
            assert_refused(&read_all(&mut stream).await);
            got.broken.notified().await;
        });
    }
}
