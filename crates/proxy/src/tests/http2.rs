//! HTTP/2 through the whole proxy: with a good client, and with frames that none would send.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::world::*;
use crate::control::FromProxy;

mod again;
pub(super) mod backend;
mod bounds;
mod frames;
mod hostile;
mod retiring;

pub(super) type Client = SendRequest<Bytes>;

/// A client whose connection is driven until it ends.
pub(super) async fn client(world: &World) -> (Client, oneshot::Receiver<Result<(), h2::Error>>) {
    client_over(world.connect().await).await
}

async fn client_over(stream: TcpStream) -> (Client, oneshot::Receiver<Result<(), h2::Error>>) {
    let shaken = h2::client::handshake(stream).await;
    let (client, connection) = shaken.expect("the proxy speaks HTTP/2");
    let (sender, ended) = oneshot::channel();
    spawn_local(async move {
        let outcome = connection.await;
        drop(sender.send(outcome));
    });
    (client, ended)
}

/// Sends a request that is written as in HTTP/1.1; its answer is too.
pub(super) async fn ask_as_lines(stream: TcpStream, text: String) -> String {
    let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
    let _connection = spawn_local(connection).abort_handle();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let mut words = lines.next().expect("a first line").split(' ');
    let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
    let fields: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let is =
        |name: &'static str| move |(known, _): &&(&str, &str)| known.eq_ignore_ascii_case(name);
    let host = fields.iter().find(is("host")).expect("a host").1;
    let mut request = Request::builder().method(method).uri(format!("http://{host}{path}"));
    for (name, value) in fields.iter().filter(|it| !is("host")(it) && !is("connection")(it)) {
        let value = http::HeaderValue::from_bytes(value.as_bytes()).expect("a value");
        request = request.header(name.to_ascii_lowercase(), value);
    }
    let request = request.body(()).expect("it is one");
    let mut ready = client.ready().await.expect("the connection is there");
    let (answer, mut sending) = ready.send_request(request, body.is_empty()).expect("it goes out");
    if !body.is_empty() {
        let content = Bytes::copy_from_slice(body.as_bytes());
        sending.send_data(content, true).expect("there is room");
    }
    let (answer, body) = read_answer(answer).await;
    let status = answer.status();
    let mut text =
        format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or(""));
    for (name, value) in answer.headers() {
        let word = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
        let name: Vec<_> = name.as_str().split('-').map(word).collect();
        text.push_str(&format!("{}: {}\r\n", name.join("-"), value.to_str().expect("text")));
    }
    format!("{text}\r\n{body}")
}

pub(super) fn request(method: &str, path: &str) -> Request<()> {
    let uri = format!("http://app.flycast{path}");
    Request::builder().method(method).uri(uri).body(()).expect("it is one")
}

pub(super) async fn ask(client: &Client, request: Request<()>) -> (Response<RecvStream>, String) {
    let mut ready = client.clone().ready().await.expect("the connection is there");
    let (answer, _) = ready.send_request(request, true).expect("it goes out");
    read_answer(answer).await
}

/// Sends a head; the body is still to come.
pub(super) async fn begin(
    client: &Client,
    request: Request<()>,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut ready = client.clone().ready().await.expect("the connection is there");
    ready.send_request(request, false).expect("it goes out")
}

/// Sends a whole body, as fast as it is taken.
pub(super) async fn send_all(mut sending: SendStream<Bytes>, mut body: Bytes) {
    while !body.is_empty() {
        sending.reserve_capacity(body.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await else {
            return;
        };
        let piece = body.split_to(room.min(body.len()));
        if sending.send_data(piece, body.is_empty()).is_err() {
            return;
        }
    }
}

pub(super) async fn read_answer(answer: ResponseFuture) -> (Response<RecvStream>, String) {
    let mut answer = answer.await.expect("an answer comes");
    let mut body = Vec::new();
    while let Some(piece) = answer.body_mut().data().await {
        let piece = piece.expect("the body is whole");
        let released = answer.body_mut().flow_control().release_capacity(piece.len());
        released.expect("it was taken");
        body.extend_from_slice(&piece);
    }
    (answer, String::from_utf8(body).expect("bodies of these tests are text"))
}

pub(super) fn field<'a>(answer: &'a Response<RecvStream>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

#[test]
fn a_machine_hears_who_calls_by_http2_and_no_copies_of_callers() {
    run(|mut world| async move {
        let seed = crate::control::SigningSeed("5a".repeat(32));
        world.send(settings_with(|settings| settings.source_key = Some(seed))).await;
        world.publish(app("started", machine(echo_heads).await)).await;
        let (client, _) = client(&world).await;
        let mut lying = request("GET", "/");
        for name in ["fly-src", "fly-src-signature", "fly_src"] {
            lying.headers_mut().insert(name, http::HeaderValue::from_static("x"));
        }
        let (_, head) = ask(&client, lying).await;
        assert!(head.contains("\r\nFly-Src: peer=host;org=personal;ts="), "{head}");
        assert_eq!(head.to_ascii_lowercase().matches("fly-src").count(), 2, "{head}");
    });
}

/// Answers at once, but for one path.
async fn half_silent() -> u16 {
    machine(|mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            if head.starts_with("GET /silent ") {
                return std::future::pending().await;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.expect("the proxy reads");
        }
    })
    .await
}

/// A Machine that says this to every head.
async fn saying(answer: &'static str) -> u16 {
    machine(move |mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[test]
fn who_finds_nobody_gets_503_as_in_http1() {
    run(|mut world| async move {
        let mut view = app("stopped", 1);
        view.machines[0].services.iter_mut().for_each(|s| s.autostart = false);
        world.publish(view).await;
        let (client, _) = client(&world).await;
        let (answer, text) = ask(&client, request("GET", "/")).await;
        assert_eq!((answer.status().as_u16(), field(&answer, "retry-after")), (503, "5"));
        assert!(text.starts_with("PR01 ") && text.ends_with('\n'), "{text}");
        assert!(!field(&answer, "fly-request-id").is_empty());
    });
}

#[test]
fn a_machine_without_an_answer_is_reported_as_pu02() {
    run(|mut world| async move {
        let port = saying("no HTTP\r\n\r\n").await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let (answer, text) = ask(&client, request("POST", "/")).await;
        assert_eq!(answer.status(), 502);
        assert!(text.starts_with("PU02 "), "{text}");
    });
}

#[test]
fn an_answer_that_breaks_resets_its_stream_only() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap_or_default();
            let answer: &[u8] = match head.contains(" /short ") {
                true => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
                false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            stream.write_all(answer).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let mut ready = client.clone().ready().await.expect("it is there");
        let (answer, _) = ready.send_request(request("GET", "/short"), true).expect("it goes");
        // What was not sent yet when it broke is not sent any more, the head too.
        let error = match answer.await {
            Err(error) => error,
            Ok(answer) => {
                let mut body = answer.into_body();
                loop {
                    let piece = body.data().await.expect("it does not end well");
                    if let Err(error) = piece {
                        break error;
                    }
                }
            }
        };
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
        assert_eq!(ask(&client, request("GET", "/")).await.1, "ok");
    });
}

#[test]
fn a_request_reaches_the_machine_as_one_of_http1_with_our_fields() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let mut request = request("GET", "/path?q=%20");
        for (name, value) in [
            ("te", "trailers"),
            ("x-forwarded-for", "10.0.0.1"),
            ("fly-client-ip", "forged"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
        ] {
            request.headers_mut().append(name, value.parse().expect("a value"));
        }
        let (answer, head) = ask(&client, request).await;
        assert!(head.starts_with("GET /path?q=%20 HTTP/1.1\r\nhost: app.flycast\r\n"), "{head}");
        for part in [
            "\r\nTE: trailers\r\nConnection: TE\r\n",
            &format!("\r\nX-Forwarded-For: 10.0.0.1, {CALLER}, {FLYCAST}\r\n"),
            &format!("\r\nFly-Client-IP: {CALLER}\r\n"),
            "\r\ncookie: a=1; b=2\r\n",
        ] {
            assert!(head.contains(part), "{part:?} in {head}");
        }
        assert!(!head.contains("forged") && !head.contains("ransfer-"), "{head}");
        assert_eq!(field(&answer, "server"), "perch/test");
        assert_eq!(field(&answer, "via"), "1.1 perch");
        assert!(field(&answer, "fly-request-id").ends_with("-lcl"));
        assert_eq!(field(&answer, "perch-wake"), "");
    });
}

#[test]
fn streams_are_held_together_while_their_machine_starts() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        world.publish(app("stopped", port)).await;
        let (client, _) = client(&world).await;
        let asked: Vec<_> = (0..20)
            .map(|n| {
                let client = client.clone();
                let work = async move { ask(&client, request("GET", &format!("/{n}"))).await };
                spawn_local(work)
            })
            .collect();
        world.start(app("stopped", port), 0).await;
        for (n, answer) in asked.into_iter().enumerate() {
            let (answer, head) = answer.await.expect("no panic");
            assert!(head.starts_with(&format!("GET /{n} ")), "{head}");
            assert!(field(&answer, "perch-wake").starts_with("start;dur="), "{answer:?}");
        }
    });
}

#[test]
fn a_held_stream_that_is_reset_leaves_the_queue() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let mut view = app("stopped", port);
        view.machines[0].services.iter_mut().for_each(|s| s.hard_limit = Some(1));
        world.publish(view.clone()).await;
        let (client, _) = client(&world).await;
        let (given_up, mut sending) = begin(&client, request("POST", "/gone")).await;
        let FromProxy::Start { machine, attempt, .. } = world.heard().await else {
            panic!("a start was expected");
        };
        sending.send_reset(Reason::CANCEL);
        drop(given_up);
        // The answer shows that the reset, which went before, was read.
        let mut head = world.connect().await;
        head.write_all(b"BAD\r\n\r\n").await.expect("the proxy reads");
        read_all(&mut head).await;
        view.machines[0].run += 1;
        view.machines[0].state = "started".to_owned();
        view.revision += 1;
        let outcome = crate::control::StartOutcome::Started { run: view.machines[0].run };
        let done = crate::control::ToProxy::StartDone { machine, attempt, outcome };
        world.send(done).await;
        world.send(crate::control::ToProxy::App(view)).await;
        // With a hard_limit of one, the place has to be free.
        let (_, head) = ask(&client, request("GET", "/next")).await;
        assert!(head.starts_with("GET /next "), "{head}");
    });
}

#[test]
fn a_stream_that_is_reset_gives_its_connection_to_the_machine_back() {
    run(|mut world| async move {
        let (sender, gone) = oneshot::channel();
        let (arrived_sender, arrived) = oneshot::channel();
        let senders = RefCell::new(Some((sender, arrived_sender)));
        let port = machine(move |mut stream| {
            let (sender, arrived) = senders.borrow_mut().take().expect("one connection");
            async move {
                read_head(&mut stream).await.expect("a head comes");
                arrived.send(()).expect("the test waits");
                let read = stream.read(&mut [0; 1]).await;
                let ended = read.map_or(true, |count| count == 0);
                sender.send(ended).expect("the test waits");
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let mut ready = client.ready().await.expect("it is there");
        let (answer, mut sending) =
            ready.send_request(request("GET", "/"), true).expect("it goes out");
        arrived.await.expect("the Machine is asked");
        sending.send_reset(Reason::CANCEL);
        drop(answer);
        assert!(gone.await.expect("the Machine hears"), "bytes came");
    });
}

#[test]
fn trailers_go_both_ways_and_a_body_without_a_length_in_chunks() {
    run(|mut world| async move {
        let (sender, received) = oneshot::channel();
        let sender = RefCell::new(Some(sender));
        let port = machine(move |mut stream| {
            let sender = sender.borrow_mut().take();
            async move {
                let head = read_head(&mut stream).await.expect("a head comes");
                let body = read_head(&mut stream).await.expect("a body comes");
                let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                              5\r\nhello\r\n0\r\nX-Sum: 5\r\nGrpc-Status: 0\r\nContent-Length: 9\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
                drop(sender.map(|sender| sender.send(head + &body)));
                read_head(&mut stream).await;
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let (answer, mut body) = begin(&client, request("POST", "/")).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", "of it".parse().expect("a value"));
        trailers.insert("content-length", "7".parse().expect("a value"));
        body.send_data(Bytes::from_static(b"0123456789"), false).expect("there is room");
        body.send_trailers(trailers).expect("it goes out");
        let (mut answer, text) = read_answer(answer).await;
        assert_eq!(text, "hello");
        let trailers = answer.body_mut().trailers().await.expect("they come").expect("some");
        assert_eq!(trailers.get("x-sum").expect("it was sent"), "5");
        assert_eq!(trailers.get("grpc-status").expect("it was sent"), "0");
        assert_eq!(trailers.len(), 2, "{trailers:?}");
        let got = received.await.expect("the Machine was asked");
        assert!(got.contains("\r\nTransfer-Encoding: chunked\r\n"), "{got}");
        let content: String = got.split("\r\n\r\n").nth(1).expect("a body").to_owned();
        assert!(content.ends_with("0\r\nx-end: of it"), "{got}");
    });
}

#[test]
fn both_sides_talk_by_turns_on_one_stream() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a head comes");
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head).await.expect("the proxy reads");
            let mut piece = [0; 6];
            loop {
                stream.read_exact(&mut piece[..3]).await.expect("more comes");
                if piece.starts_with(b"0") {
                    break;
                }
                stream.read_exact(&mut piece[3..]).await.expect("more comes");
                stream.write_all(&piece).await.expect("the proxy reads");
            }
            stream.write_all(b"0\r\n\r\n").await.expect("the proxy reads");
            read_head(&mut stream).await;
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let (answer, mut sending) = begin(&client, request("POST", "/")).await;
        let mut body = answer.await.expect("the head comes before the body is sent").into_body();
        for letter in b'a'..=b'z' {
            let piece = Bytes::copy_from_slice(&[letter]);
            sending.send_data(piece.clone(), false).expect("there is room");
            let echoed = body.data().await.expect("more comes").expect("it is whole");
            assert_eq!(echoed, piece);
        }
        sending.send_data(Bytes::new(), true).expect("it goes out");
        let end = body.data().await;
        assert!(end.is_none_or(|end| end.is_ok_and(|bytes| bytes.is_empty())));
    });
}

#[test]
fn large_bodies_go_both_ways_whatever_the_windows() {
    const BYTES: usize = 3 * 1024 * 1024;
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            while let Some(head) = read_head(&mut stream).await {
                assert!(head.contains(&format!("\r\ncontent-length: {BYTES}\r\n")), "{head}");
                let mut body = vec![0; BYTES];
                stream.read_exact(&mut body).await.expect("it comes whole");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.expect("the proxy reads");
                stream.write_all(&body).await.expect("the proxy reads");
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let mut request = request("POST", "/");
        request.headers_mut().insert("content-length", BYTES.into());
        let (answer, mut sending) = begin(&client, request).await;
        let sent: String = (0..BYTES).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
        sending.send_data(Bytes::from(sent.clone()), true).expect("it is queued");
        let (_, got) = read_answer(answer).await;
        assert!(got == sent, "{} bytes of {BYTES}", got.len());
    });
}

#[test]
fn answers_without_a_body_have_none() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            while let Some(head) = read_head(&mut stream).await {
                let answer: &[u8] = match head.split(' ').next() {
                    Some("HEAD") => b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n",
                    Some("PUT") => b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
                    _ => b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n",
                };
                stream.write_all(answer).await.expect("the proxy reads");
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        for (method, status, length) in [("HEAD", 200, "99"), ("PUT", 204, ""), ("GET", 304, "")] {
            let (answer, body) = ask(&client, request(method, "/")).await;
            assert_eq!((answer.status().as_u16(), body.as_str()), (status, ""), "{method}");
            assert_eq!(field(&answer, "content-length"), length, "{method}");
        }
    });
}

#[test]
fn streams_without_a_body_use_connections_to_the_machine_again() {
    run(|mut world| async move {
        let connections = Rc::new(Cell::new(0));
        let count = Rc::clone(&connections);
        let port = machine(move |stream| {
            count.set(count.get() + 1);
            echo_heads(stream)
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        for _ in 0..10 {
            ask(&client, request("GET", "/")).await;
        }
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn a_program_that_listens_late_gets_the_request() {
    run(|mut world| async move {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = free.local_addr().expect("bound");
        drop(free);
        world.publish(app("started", at.port())).await;
        let (client, _) = client(&world).await;
        let asked = spawn_local(async move { ask(&client, request("GET", "/late")).await });
        tokio::task::yield_now().await;
        let listener = TcpListener::bind(at).await.expect("the port is free");
        spawn_local(accept(listener, echo_heads));
        let (_, head) = asked.await.expect("no panic");
        assert!(head.starts_with("GET /late "), "{head}");
    });
}

#[test]
fn an_open_connection_without_streams_lets_its_machine_sleep() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 100);
        world.publish(view).await;
        let (client, _) = client(&world).await;
        ask(&client, request("GET", "/")).await;
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
        drop(client);
    });
}

#[test]
fn who_has_no_stream_for_long_is_told_to_go_away() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        world.publish(app("started", port)).await;
        let (client, ended) = client(&world).await;
        ask(&client, request("GET", "/")).await;
        ended.await.expect("it ends").expect("without an error");
        assert!(client.ready().await.is_err(), "it takes requests");
    });
}

#[test]
fn the_end_of_the_proxy_lets_streams_finish_and_refuses_new_ones() {
    run(|mut world| async move {
        let (sender, go_on) = oneshot::channel::<()>();
        let (arrived_sender, arrived) = oneshot::channel();
        let waits = RefCell::new(Some((go_on, arrived_sender)));
        let port = machine(move |mut stream| {
            let first = waits.borrow_mut().take();
            async move {
                if let Some((go_on, arrived)) = first {
                    read_head(&mut stream).await.expect("a head comes");
                    arrived.send(()).expect("the test waits");
                    go_on.await.expect("it is let go");
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("the proxy reads");
                }
                echo_heads(stream).await;
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, ended) = client(&world).await;
        let asked = {
            let client = client.clone();
            spawn_local(async move { ask(&client, request("GET", "/")).await })
        };
        arrived.await.expect("the Machine is asked");
        let refused = spawn_local(async move {
            loop {
                // Before the GOAWAY has come it is served.
                let Ok(mut ready) = client.clone().ready().await else { return };
                let Ok((answer, _)) = ready.send_request(request("GET", "/new"), true) else {
                    return;
                };
                match answer.await {
                    Ok(answer) => assert_eq!(answer.status(), 200),
                    Err(error) if error.is_go_away() || error.is_reset() => return,
                    Err(error) => panic!("not refused: {error}"),
                }
            }
        });
        let ends = world.running.end(Duration::from_secs(10));
        let checks = async {
            refused.await.expect("no panic");
            sender.send(()).expect("the Machine waits");
            assert_eq!(asked.await.expect("no panic").1, "ok");
            ended.await.expect("it ends").expect("without an error");
        };
        tokio::join!(ends, checks);
    });
}
