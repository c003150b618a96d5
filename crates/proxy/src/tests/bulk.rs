//! What comes in bulk, and goes through pipes.

use std::sync::LazyLock;

use rustix::net::SendFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::world::*;
use crate::pipe;

/// More than a pipe and both sockets' buffers can have in them.
const BYTES: usize = 24 << 20;

/// A request whose connection is kept.
const KEPT: &str = "GET /path HTTP/1.1\r\nHost: app.flycast\r\n\r\n";

/// Bytes of which none is where another could be.
fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..BYTES / 4).flat_map(|number| (number as u32).to_be_bytes()).collect());
    &CONTENT
}

fn head() -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n")
}

/// Whether an answer is a head and the content.
fn is_whole(answer: &[u8]) -> bool {
    answer.strip_suffix(content()).is_some_and(|head| head.ends_with(b"\r\n\r\n"))
}

async fn read_bytes(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.expect("it ends well");
    all
}

#[test]
fn raw_bytes_pass_whole_both_ways_and_the_ends_one_by_one() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            // All of one direction before the first of the other.
            let all = read_bytes(&mut stream).await;
            stream.write_all(&all).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let sent = content();
        caller.write_all(sent).await.expect("the proxy reads");
        caller.shutdown().await.expect("it is open");
        assert!(read_bytes(&mut caller).await == sent, "the same bytes in the same order");
        assert_ne!(pipe::idle_count(), 0, "they went through a pipe");
    });
}

#[test]
fn an_answer_passes_whole_and_the_connection_serves_the_next_request() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            for _ in 0..2 {
                let mut request = [0; 4096];
                if stream.read(&mut request).await.expect("the proxy asks") == 0 {
                    return;
                }
                stream.write_all(head().as_bytes()).await.expect("the proxy reads");
                stream.write_all(content()).await.expect("the proxy reads");
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = world.connect().await;
        for _ in 0..2 {
            caller.write_all(KEPT.as_bytes()).await.expect("the proxy reads");
            let mut answer = vec![0; 1];
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(caller.read_u8().await.expect("a head comes"));
            }
            let mut body = vec![0; BYTES];
            caller.read_exact(&mut body).await.expect("the body comes");
            assert!(body == content(), "the same bytes in the same order");
        }
        assert_ne!(pipe::idle_count(), 0, "they went through a pipe");
    });
}

#[test]
fn an_answer_that_ends_early_is_cut_and_what_is_behind_its_end_is_not_passed_on() {
    for (sent, whole) in [(BYTES - 1, false), (BYTES, true), (BYTES + 7, true)] {
        run(|mut world| async move {
            let port = machine(move |mut stream| async move {
                let mut request = [0; 4096];
                _ = stream.read(&mut request).await.expect("the proxy asks");
                let mut all = [head().as_bytes(), content()].concat();
                all.resize(head().len() + sent, b'!');
                // It may not be taken to the end.
                let _cut = stream.write_all(&all).await.is_err();
            })
            .await;
            world.publish(app("started", port)).await;
            let mut caller = world.connect().await;
            caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
            let mut answer = Vec::new();
            let read = caller.read_to_end(&mut answer).await;
            assert_eq!(read.is_ok(), whole, "a cut is no end");
            assert_eq!(is_whole(&answer), whole, "the same bytes in the same order");
        });
    }
}

#[test]
fn an_urgent_byte_in_a_stream_neither_stops_nor_ends_it() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            stream.write_all(content()).await.expect("the proxy reads");
            let sent = stream.async_io(Interest::WRITABLE, || {
                Ok(rustix::net::send(&stream, b"!", SendFlags::OOB)?)
            });
            assert_eq!(sent.await.expect("the proxy reads"), 1);
            stream.write_all(content()).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        // Nobody promises to pass the urgent one on.
        assert!(read_bytes(&mut caller).await == [content(), content()].concat());
    });
}

#[test]
fn who_finds_no_pipe_copies() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            stream.write_all(content()).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let taken = pipe::take_all();
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        assert!(read_bytes(&mut caller).await == content(), "the same bytes in the same order");
        assert_eq!(pipe::idle_count(), 0, "there was none");
        drop(taken);
    });
}

#[test]
fn a_caller_that_takes_nothing_keeps_a_pipe_and_gives_none_back_with_bytes_in_it() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            // Until nobody takes more.
            let _reset = stream.write_all(content()).await.is_err();
        })
        .await;
        world.publish(app("started", port)).await;
        let mut stuck = TcpStream::connect(world.raw).await.expect("the proxy listens");
        stuck.read_exact(&mut vec![0; 1 << 20]).await.expect("it is sent");
        wait_for(|| pipe::taken_count() == 1).await;
        // Others are not kept waiting by that.
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        assert!(read_bytes(&mut caller).await == content(), "the same bytes in the same order");
        drop(stuck);
        wait_for(|| pipe::taken_count() == 0).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        assert!(read_bytes(&mut caller).await == content(), "nothing of the former one is in it");
    });
}

async fn wait_for(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}
