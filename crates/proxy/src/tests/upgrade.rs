//! Connections that change their protocol.

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::sleeper::{napping, stopping};
use super::world::*;
use crate::control::{FromProxy, ToProxy, Unit};

pub(super) const ASK: &str = "GET /ws HTTP/1.1\r\nHost: app.flycast\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
pub(super) const TAKEN: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\
                       Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nServer: x\r\n\r\n";

/// Takes the offer of each connection's first request, and sends back all that comes then, and its end.
pub(super) async fn socket_server() -> u16 {
    machine(|mut stream| async move {
        let Some(_head) = read_head(&mut stream).await else { return };
        stream.write_all(TAKEN).await.expect("the proxy reads");
        let (mut read, mut write) = stream.split();
        // Some callers of these tests reset.
        let _all = tokio::io::copy(&mut read, &mut write).await.is_ok();
    })
    .await
}

/// A connection that is a WebSocket already.
pub(super) async fn socket(world: &World) -> TcpStream {
    let mut caller = world.connect().await;
    caller.write_all(ASK.as_bytes()).await.expect("the proxy reads");
    let head = read_head(&mut caller).await.expect("a head comes");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    caller
}

/// More than a farewell, there and back.
pub(super) async fn echo(caller: &mut TcpStream) {
    caller.write_all(b"a question").await.expect("the proxy reads");
    echoed(caller).await;
}

async fn echoed(caller: &mut TcpStream) {
    let mut answer = [0; 10];
    caller.read_exact(&mut answer).await.expect("the Machine answers");
    assert_eq!(&answer, b"a question");
}

fn check_502(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    // Its id may have these digits.
    assert!(!answer.contains(" 101 "), "{answer}");
}

#[test]
fn a_switch_that_nobody_asked_for_is_502() {
    let ordinary = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for request in [
        ordinary,
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUpgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: irc\r\n\r\n",
    ] {
        run(|mut world| async move {
            world.publish(app("started", socket_server().await)).await;
            check_502(&world.ask(request).await);
        });
    }
}

#[test]
fn a_switch_that_is_malformed_is_502() {
    for answer in [
        "HTTP/1.1 101 X\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket, irc\r\n\r\n",
        "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade:\r\n\r\n",
        "HTTP/1.0 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        run(|mut world| async move {
            let port = machine(move |mut stream| async move {
                read_head(&mut stream).await.expect("a request comes");
                stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
                // Until the proxy has read it.
                let _closed = stream.read_u8().await.is_err();
            })
            .await;
            world.publish(app("started", port)).await;
            let request = ASK.replace("GET", "POST").replace("Upgrade\r\n", "Upgrade, close\r\n");
            check_502(&world.ask(&request).await);
        });
    }
}

#[test]
fn a_switch_before_the_request_was_sent_whole_is_502() {
    run(|mut world| async move {
        world.publish(app("started", socket_server().await)).await;
        let head = ASK.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n");
        let mut caller = world.connect().await;
        caller.write_all(head.as_bytes()).await.expect("the proxy reads");
        check_502(&read_all(&mut caller).await);
    });
}

#[test]
fn what_came_with_the_heads_is_lost_in_neither_direction() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let head = read_head(&mut stream).await.expect("a request comes");
            let lines =
                ["GET /ws HTTP/1.1\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"];
            assert!(lines.iter().all(|line| head.contains(line)), "{head}");
            assert!(head.contains("\r\nFly-Client-IP: ") && !head.contains("X-Hop"), "{head}");
            stream.write_all(&[TAKEN, b"at once"].concat()).await.expect("the proxy reads");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("it ends well");
            stream.write_all(&all).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = world.connect().await;
        let named = ASK.replace("n: Upgrade", "n: X-Hop, Upgrade, Fly-Client-IP\r\nX-Hop: 1");
        caller.write_all(format!("{named}too early").as_bytes()).await.expect("it reads");
        let head = read_head(&mut caller).await.expect("a head comes");
        assert_eq!(head.matches("Upgrade").count(), 2, "{head}");
        for line in [
            "HTTP/1.1 101 Switching Protocols\r\n",
            "\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n",
            "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
            "\r\nServer: perch/test\r\n",
            "\r\nFly-Request-Id: ",
        ] {
            assert!(head.contains(line), "{line:?} in {head}");
        }
        let mut first = [0; 7];
        caller.read_exact(&mut first).await.expect("it comes");
        assert_eq!(&first, b"at once");
        // Each side ends its direction alone.
        caller.write_all(b", and later").await.expect("the proxy reads");
        caller.shutdown().await.expect("it is open");
        assert_eq!(read_all(&mut caller).await, "too early, and later");
    });
}

#[test]
fn a_request_that_upgrades_may_have_a_body() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            let mut body = [0; 5];
            stream.read_exact(&mut body).await.expect("a body comes");
            assert_eq!(&body, b"hello");
            stream.write_all(TAKEN).await.expect("the proxy reads");
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let head = ASK.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n");
        for (first, second) in [("hello", ""), ("he", "llo"), ("", "hello")] {
            let mut caller = world.connect().await;
            caller.write_all(format!("{head}{first}").as_bytes()).await.expect("it reads");
            caller.write_all(format!("{second}a question").as_bytes()).await.expect("it reads");
            read_head(&mut caller).await.expect("a head comes");
            echoed(&mut caller).await;
        }
    });
}

#[test]
fn any_other_answer_is_an_ordinary_one() {
    run(|mut world| async move {
        world.publish(app("started", machine(echo_heads).await)).await;
        let mut caller = world.connect().await;
        for _ in 0..2 {
            caller.write_all(ASK.as_bytes()).await.expect("the proxy reads");
            let (head, body) = read_response(&mut caller).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("pgrade"), "{head}");
            assert!(body.contains("\r\nUpgrade: websocket\r\n"), "{body}");
        }
    });
}

#[test]
fn an_offer_that_is_none_reaches_no_machine() {
    for fields in [
        "Upgrade: websocket",
        "Connection: upgrade",
        "Connection: upgrade\r\nUpgrade: h2c",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ",
        "Connection: upgrade\r\nUpgrade: HTTP/2.0, H2C",
        "Connection: upgrade\r\nUpgrade:",
    ] {
        run(|mut world| async move {
            world.publish(app("started", machine(echo_heads).await)).await;
            let mut caller = world.connect().await;
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            caller.write_all(request.as_bytes()).await.expect("the proxy reads");
            let (head, body) = read_response(&mut caller).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            let left = ["pgrade", "HTTP2", "Connection"].iter().any(|name| body.contains(name));
            assert!(!left, "{fields}: {body}");
        });
    }
}

#[test]
fn of_several_protocols_the_machine_takes_one() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let head = read_head(&mut stream).await.expect("a request comes");
            assert!(head.contains("\r\nUpgrade: irc/6.9, websocket\r\n"), "{head}");
            stream.write_all(TAKEN).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let offers = "Upgrade: h2c, irc/6.9\r\nX: y\r\nUpgrade: websocket";
        let mut caller = world.connect().await;
        let request = ASK.replace("Upgrade: websocket", offers);
        caller.write_all(request.as_bytes()).await.expect("the proxy reads");
        let answer = read_all(&mut caller).await;
        assert!(answer.contains("\r\nUpgrade: WebSocket\r\n"), "{answer}");
    });
}

#[test]
fn an_upgraded_connection_serves_no_other_request() {
    run(|mut world| async move {
        let count = Rc::new(Cell::new(0));
        let counter = Rc::clone(&count);
        let port = machine(move |mut stream| {
            counter.set(counter.get() + 1);
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    assert!(!head.contains("Connection: close"), "{head}");
                    stream.write_all(TAKEN).await.expect("the proxy reads");
                    let mut bytes = [0; 10];
                    stream.read_exact(&mut bytes).await.expect("a question comes");
                    stream.write_all(&bytes).await.expect("the proxy reads");
                }
            }
        })
        .await;
        let mut view = app("started", port);
        for unit in [Unit::Requests, Unit::Connections] {
            view.machines[0].services[0].unit = unit;
            view.revision += 1;
            world.publish(view.clone()).await;
            let mut caller = socket(&world).await;
            echo(&mut caller).await;
            caller.shutdown().await.expect("it is open");
            assert_eq!(read_all(&mut caller).await, "");
        }
        assert_eq!(count.get(), 2);
    });
}

#[test]
fn a_reset_of_one_side_is_a_reset_for_the_other() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            stream.write_all(TAKEN).await.expect("the proxy reads");
            stream.read_u8().await.expect("a byte comes");
            stream.set_zero_linger().expect("it is open");
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = socket(&world).await;
        caller.write_all(b"x").await.expect("the proxy reads");
        let error = caller.read_u8().await.expect_err("the Machine cut it");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn who_reads_slowly_holds_the_other_side_back_and_loses_nothing() {
    const BYTES: u64 = 64 * 1024 * 1024;
    run(|mut world| async move {
        let sent = Rc::new(Cell::new(0));
        let counter = Rc::clone(&sent);
        let port = machine(move |mut stream| {
            let sent = Rc::clone(&counter);
            async move {
                read_head(&mut stream).await.expect("a request comes");
                stream.write_all(TAKEN).await.expect("the proxy reads");
                let piece = vec![b'x'; 256 * 1024];
                while sent.get() < BYTES {
                    sent.set(sent.get() + piece.len() as u64);
                    stream.write_all(&piece).await.expect("the proxy reads");
                }
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = socket(&world).await;
        let mut before = u64::MAX;
        while before != sent.get() {
            before = sent.get();
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(before < BYTES / 2, "{before} bytes were taken of the Machine");
        let came = tokio::io::copy(&mut caller, &mut tokio::io::sink()).await;
        assert_eq!(came.expect("it ends well"), BYTES);
    });
}

#[test]
fn an_upgraded_connection_has_a_place_for_its_life() {
    run(|mut world| async move {
        let mut view = app("started", socket_server().await);
        view.machines[0].services[0].soft_limit = 1;
        view.machines[0].services[0].hard_limit = Some(1);
        world.publish(view).await;
        let mut first = socket(&world).await;
        let mut second = world.connect().await;
        second.write_all(ASK.as_bytes()).await.expect("the proxy reads");
        echo(&mut first).await;
        let mut early = [0; 1];
        let early = tokio::time::timeout(super::sleeper::LONG, second.read(&mut early)).await;
        assert!(early.is_err(), "two were inside: {early:?}");
        drop(first);
        read_head(&mut second).await.expect("a head comes");
        echo(&mut second).await;
    });
}

#[test]
fn a_drain_waits_for_it_and_leaves_it_alone() {
    run(|mut world| async move {
        world.publish(app("started", socket_server().await)).await;
        let mut caller = socket(&world).await;
        let machine = MACHINE.to_owned();
        world.send(ToProxy::Drain { machine, run: 1, token: 1, timeout_ms: 200 }).await;
        echo(&mut caller).await;
        let heard = world.heard().await;
        assert!(matches!(heard, FromProxy::Drained { in_flight: 1, .. }), "{heard:?}");
        echo(&mut caller).await;
    });
}

#[test]
fn it_keeps_a_machine_awake_that_would_be_stopped() {
    run(|mut world| async move {
        world.publish(stopping(socket_server().await)).await;
        let mut caller = socket(&world).await;
        echo(&mut caller).await;
        world.hears_nothing().await;
        drop(caller);
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}

#[test]
fn it_rests_under_a_machine_that_is_suspended_and_its_next_byte_wakes_that() {
    run(|mut world| async move {
        let mut view = napping(socket_server().await);
        world.publish(view.clone()).await;
        let mut silent = socket(&world).await;
        let mut caller = socket(&world).await;
        echo(&mut caller).await;
        for _ in 0..2 {
            world.suspend(&mut view).await;
            caller.write_all(b"a question").await.expect("the kernel takes it");
            let mut early = [0; 1];
            tokio::select! {
                () = world.thaw(&mut view) => {}
                _ = caller.read(&mut early) => panic!("it was asked before it was awake"),
            }
            echoed(&mut caller).await;
        }
        echo(&mut silent).await;
    });
}

#[test]
fn a_question_without_an_answer_keeps_it_awake() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            stream.write_all(TAKEN).await.expect("the proxy reads");
            let mut bytes = [0; 10];
            stream.read_exact(&mut bytes).await.expect("a question comes");
            std::future::pending::<()>().await;
        })
        .await;
        world.publish(napping(port)).await;
        let mut caller = socket(&world).await;
        caller.write_all(b"a question").await.expect("the proxy reads");
        world.hears_nothing().await;
    });
}

/// As a client sends it whose page is left: status 1001, masked with zeros.
const GOING_AWAY: &[u8] = b"\x88\x82\0\0\0\0\x03\xe9";

#[test]
fn who_closes_it_and_leaves_wakes_nobody() {
    run(|mut world| async move {
        let mut view = napping(socket_server().await);
        world.publish(view.clone()).await;
        let (closing, gone) = (socket(&world).await, socket(&world).await);
        world.suspend(&mut view).await;
        // The end goes with it: what lies between two calls is the scheduler's.
        rustix::net::send(&closing, GOING_AWAY, rustix::net::SendFlags::MORE).expect("it is sent");
        drop((closing, gone));
        world.hears_nothing().await;
    });
}
