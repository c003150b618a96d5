//! Bodies that are sent a second time, and what is counted of them meanwhile.

use super::super::replay::{hidden, order, ordering_to_who_refuses_early};
use super::*;
use crate::control::ToProxy;
use crate::http::kept;

/// Until nothing is kept any more.
async fn given_back() {
    while kept::all() != 0 {
        tokio::task::yield_now().await;
    }
}

/// Reads a body of which the head says the length.
async fn read_body(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let head = read_head(stream).await?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length?.parse().expect("a number")];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// Begins a request with a body of so many bytes.
async fn send(client: &Client, method: &str, length: usize) -> ResponseFuture {
    let mut asked = request(method, "/");
    asked.headers_mut().insert("content-length", length.into());
    let (answer, sending) = begin(client, asked).await;
    spawn_local(send_all(sending, vec![b'x'; length].into()));
    answer
}

/// A Machine that ends its first connection after so many bytes, and tells of the body that comes by others.
async fn ends_once_after(bytes: usize) -> u16 {
    let first = Cell::new(true);
    machine(move |mut stream| {
        let ends = first.replace(false);
        async move {
            if ends {
                let _some = stream.read_exact(&mut vec![0; bytes]).await.is_err();
                return;
            }
            while let Some(body) = read_body(&mut stream).await {
                let right = body.iter().all(|byte| *byte == b'x');
                let text = format!("{} bytes, right: {right}", body.len());
                let length = text.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}");
                stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
            }
        }
    })
    .await
}

#[test]
fn a_body_that_was_sent_in_part_or_whole_is_sent_again_if_it_may_be() {
    for (length, read) in [(10, 1), (50_000, 40_000), (1_000_000, 1), (1_000_000, 900_000)] {
        run(|mut world| async move {
            world.publish(app("started", ends_once_after(read).await)).await;
            let (client, _) = client(&world).await;
            let (answer, _) = read_answer(send(&client, "PUT", length).await).await;
            assert_eq!(answer.status(), 200, "{length} {read}");
            given_back().await;
        });
    }
    for (method, length) in [("POST", 50_000), ("PUT", 3 << 20)] {
        run(|mut world| async move {
            world.publish(app("started", ends_once_after(length - 10_000).await)).await;
            let (client, _) = client(&world).await;
            let (answer, text) = read_answer(send(&client, method, length).await).await;
            assert!(answer.status() == 502 && text.starts_with("PU02 "), "PX-70: {text}");
            given_back().await;
        });
    }
}

/// How a request ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Answer,
    Reset,
    Leave,
}

#[test]
fn a_replayed_body_counts_as_long_as_the_request_lasts() {
    const LENGTH: usize = 100_000;
    for end in [End::Answer, End::Reset, End::Leave] {
        run(|mut world| async move {
            let router = machine(|mut stream| async move {
                let body = read_body(&mut stream).await.expect("a body");
                assert_eq!(body.len(), LENGTH);
                let answer = order("fly-replay: app=target");
                stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
                std::future::pending().await
            });
            let (came, comes) = oneshot::channel();
            let (go, told) = oneshot::channel::<()>();
            let once = RefCell::new(Some((came, told)));
            let target = machine(move |mut stream| {
                let (came, told) = once.borrow_mut().take().expect("one connection");
                async move {
                    let body = read_body(&mut stream).await.expect("a body");
                    came.send(body.len()).expect("the test waits");
                    if told.await.is_ok() {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        stream.write_all(answer).await.expect("the proxy reads");
                    }
                    std::future::pending().await
                }
            });
            world.send(ToProxy::App(hidden("target", "started", target.await, NETWORK))).await;
            world.publish(app("started", router.await)).await;
            let stream = world.connect().await;
            let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            let connection = spawn_local(connection).abort_handle();
            let answer = send(&client, "POST", LENGTH).await;
            assert_eq!(comes.await, Ok(LENGTH));
            assert_eq!(kept::all(), LENGTH);
            match end {
                End::Answer => {
                    go.send(()).expect("the Machine waits");
                    assert_eq!(read_answer(answer).await.1, "ok");
                }
                End::Reset => drop(answer),
                End::Leave => connection.abort(),
            }
            given_back().await;
        });
    }
}

#[test]
fn an_early_answer_to_a_replayed_body_reaches_the_caller() {
    for ends in [true, false] {
        run(|mut world| async move {
            ordering_to_who_refuses_early(&mut world, ends).await;
            let (client, _) = client(&world).await;
            let (answer, text) = read_answer(send(&client, "POST", 1_000_000).await).await;
            assert!(answer.status() == 413 && text == "no", "ends {ends}: {text}");
        });
    }
}
