//! Connections to Machines that serve several requests, and programs that break their rules.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::task::spawn_local;

use super::world::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

/// A Machine that answers the first request of all by `first` and, a moment later, `later`; then each
/// with [`OK`]. Also counts its connections.
async fn careless(first: &'static str, later: &'static str) -> (u16, Rc<Cell<u32>>) {
    let (count, served) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let counter = Rc::clone(&count);
    let port = machine(move |mut stream| {
        counter.set(counter.get() + 1);
        let served = Rc::clone(&served);
        async move {
            stream.set_nodelay(true).expect("it is open");
            while read_head(&mut stream).await.is_some() {
                let answer = if served.replace(true) { OK } else { first };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                if answer == first {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let _closed = stream.write_all(later.as_bytes()).await.is_err();
                }
            }
        }
    })
    .await;
    (port, count)
}

/// Asks once, waits until the Machine has said everything, and asks again.
async fn check_second_is_clean(first: &'static str, request: &str) {
    let mut world = World::new().await;
    let (port, _) = careless(first, POISON).await;
    world.publish(app("started", port)).await;
    world.ask(request).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let answer = world.ask(GET).await;
    assert!(answer.ends_with("\r\n\r\nok"), "{first:?}: {answer}");
}

#[test]
fn bytes_that_nobody_asked_for_never_become_the_next_answer() {
    let head = "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    run(|_| async move {
        check_second_is_clean("HTTP/1.1 204 No Content\r\n\r\n", GET).await;
        check_second_is_clean("HTTP/1.1 304 Not Modified\r\n\r\n", GET).await;
        check_second_is_clean("HTTP/1.1 200 OK\r\nContent-Length: 94\r\n\r\n", head).await;
        check_second_is_clean(OK, GET).await;
    });
}

#[test]
fn a_connection_that_may_still_bring_a_body_is_not_used_again() {
    run(|mut world| async move {
        let (port, connections) =
            careless("HTTP/1.1 204 Odd\r\nContent-Length: 6\r\n\r\n", "").await;
        world.publish(app("started", port)).await;
        world.ask(GET).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        world.ask("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        world.ask(GET).await;
        world.ask(GET).await;
        assert_eq!(connections.get(), 3, "one each after the 204 and after HEAD, and one kept");
    });
}

/// A Machine whose connections answer one request well and the next one with noise.
async fn noisy() -> u16 {
    machine(|mut stream| async move {
        for answer in [OK, "<html>"] {
            if read_head(&mut stream).await.is_none() {
                return;
            }
            stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
        }
        std::future::pending::<()>().await;
    })
    .await
}

#[test]
fn a_malformed_answer_on_a_used_connection_is_asked_for_again_on_a_new_one() {
    run(|mut world| async move {
        world.publish(app("started", noisy().await)).await;
        for _ in 0..3 {
            let answer = world.ask(GET).await;
            assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
        }
    });
}

#[test]
fn what_must_not_be_sent_twice_is_not_repeated_after_a_malformed_answer() {
    run(|mut world| async move {
        world.publish(app("started", noisy().await)).await;
        assert!(world.ask(GET).await.ends_with("\r\n\r\nok"));
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let answer = world.ask(post).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    });
}

#[test]
fn many_who_waited_for_a_program_share_its_first_connections() {
    const CALLERS: u32 = 600;
    run(|mut world| async move {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let port = socket.local_addr().expect("it is bound").port();
        world.publish(app("started", port)).await;
        let mut callers = Vec::new();
        for _ in 0..CALLERS {
            let mut caller = world.connect().await;
            caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
            callers.push(caller);
        }
        let connections = Rc::new(Cell::new(0));
        let counter = Rc::clone(&connections);
        spawn_local(accept(socket.listen(1024).expect("a listener"), move |stream| {
            counter.set(counter.get() + 1);
            echo_heads(stream)
        }));
        for caller in &mut callers {
            let answer = read_all(caller).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
        assert!(connections.get() < CALLERS / 2, "{} connections", connections.get());
    });
}
