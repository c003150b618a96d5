//! Callers of HTTP/1.1 at Machines that speak HTTP/2 (`h2_backend`).

use std::cell::Cell;
use std::rc::Rc;

use h2::Reason;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http2::backend::{counted, echo, grpc};
use super::world::*;

const POST: &str = "POST /x HTTP/1.1\r\nHost: app.flycast\r\nConnection: close\r\n";

/// What comes of chunks, and what is behind them.
fn unchunked(answer: &str) -> (String, String) {
    let (_, mut rest) = answer.split_once("\r\n\r\n").expect("a head");
    let mut content = String::new();
    loop {
        let (size, more) = rest.split_once("\r\n").expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a number");
        if size == 0 {
            return (content, more.to_owned());
        }
        content.push_str(&more[..size]);
        rest = more[size..].strip_prefix("\r\n").expect("the end of a chunk");
    }
}

#[test]
fn a_request_of_http1_becomes_a_stream_and_wakes_its_machine() {
    run(|mut world| async move {
        let (view, connections) = counted("stopped").await;
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        let request = "GET /a?b HTTP/1.1\r\nHost: app.flycast\r\n\r\n";
        caller.write_all(request.as_bytes()).await.expect("the proxy reads");
        world.start(view, 0).await;
        caller.write_all(&[request, GET].concat().into_bytes()).await.expect("the proxy reads");
        let answers = read_all(&mut caller).await;
        let got = format!("got: GET http://app.flycast/a?b trailers {CALLER}\r\n");
        assert_eq!(answers.matches(&got).count(), 2, "{answers}");
        assert_eq!(answers.matches("grpc-status: 0\r\n").count(), 3, "{answers}");
        assert!(answers.contains("Perch-Wake: ") && !answers.contains("theirs"), "{answers}");
        assert_eq!(connections.get(), 1, "one connection serves its caller");
    });
}

#[test]
fn bodies_and_trailers_go_both_ways_in_either_framing() {
    for (fields, sent, trailer) in [
        ("Content-Length: 5\r\n", "hello", ""),
        ("Transfer-Encoding: chunked\r\n", "2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", ""),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\nX-End: 1\r\n\r\n", "x-end: 1\r\n"),
    ] {
        // At once, and in two pieces.
        for cut in [0, 1, sent.len() - 1] {
            run(|mut world| async move {
                world.publish(grpc("started", machine(echo).await)).await;
                let mut caller = world.connect().await;
                let all = format!("{POST}{fields}\r\n{sent}");
                let (first, rest) = all.split_at(all.len() - cut);
                caller.write_all(first.as_bytes()).await.expect("the proxy reads");
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                caller.write_all(rest.as_bytes()).await.expect("the proxy reads");
                let (content, behind) = unchunked(&read_all(&mut caller).await);
                assert_eq!(content, "hello", "{fields} {cut}");
                assert!(
                    behind.contains("grpc-status: 0\r\n") && behind.contains(trailer),
                    "{behind}"
                );
            });
        }
    }
}

#[test]
fn large_bodies_pass_whole_though_their_windows_are_small() {
    const BYTES: usize = 3 << 20;
    run(|mut world| async move {
        world.publish(grpc("started", machine(echo).await)).await;
        let mut caller = world.connect().await;
        let (mut read, mut write) = caller.split();
        let send = async {
            let head = format!("{POST}Content-Length: {BYTES}\r\n\r\n");
            write.write_all(head.as_bytes()).await.expect("the proxy reads");
            write.write_all(&vec![b'x'; BYTES]).await.expect("the proxy reads");
        };
        let receive = async {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.expect("it ends well");
            String::from_utf8(all).expect("text")
        };
        let ((), answer) = tokio::join!(send, receive);
        let (content, _) = unchunked(&answer);
        assert!(content.len() == BYTES && content.bytes().all(|byte| byte == b'x'));
    });
}

#[test]
fn a_machine_that_does_not_speak_http2_is_pu01_for_callers_of_http1_too() {
    run(|mut world| async move {
        world.publish(grpc("started", machine(echo_heads).await)).await;
        let answer = world.ask(&GET.replace("GET", "POST")).await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
        assert!(answer.contains("PU01 "), "{answer}");
    });
}

#[test]
fn a_stream_that_is_refused_unseen_is_tried_again_also_one_that_may_not_be_repeated() {
    for (refused, status) in [(2, "200 OK"), (100, "502 Bad Gateway")] {
        run(|mut world| async move {
            let count = Rc::new(Cell::new(0));
            let port = machine(move |stream| refusing(stream, Rc::clone(&count), refused)).await;
            world.publish(grpc("started", port)).await;
            let answer = world.ask(&GET.replace("GET", "POST")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert_eq!(answer.contains("unseen"), refused == 100, "{answer}");
        });
    }
}

/// Refuses the first streams of all connections together.
async fn refusing(stream: TcpStream, count: Rc<Cell<u32>>, refused: u32) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        count.set(count.get() + 1);
        if count.get() <= refused {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        respond.send_response(Response::new(()), true).expect("it goes out");
    }
}
