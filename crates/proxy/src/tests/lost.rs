//! Requests that must not be lost: Machines that refuse, vanish, or end a connection before a byte of their answer
//! (PX-70, AS-69).

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::routing::{named, two};
use super::world::*;
use crate::control::{AppView, FromProxy, StartOutcome, ToProxy};

/// Reads so much of each connection and ends it; counts them.
async fn ends_after(bytes: usize) -> (u16, Rc<Cell<u32>>) {
    let count = Rc::new(Cell::new(0));
    let seen = Rc::clone(&count);
    let port = machine(move |mut stream| {
        seen.set(seen.get() + 1);
        async move {
            let _some = stream.read_exact(&mut vec![0; bytes]).await.is_err();
        }
    })
    .await;
    (port, count)
}

/// Two Machines that are up; the first one's program is this, the second one's answers.
async fn beside(port: u16) -> AppView {
    let mut view = two("started", "started").await;
    view.machines[0].services.iter_mut().for_each(|s| s.internal_port = port);
    view
}

#[test]
fn a_machine_that_ends_connections_without_an_answer_is_passed_over() {
    run(|mut world| async move {
        let (port, seen) = ends_after(1).await;
        world.publish(beside(port).await).await;
        for _ in 0..20 {
            let answer = world.ask(GET).await;
            assert!(answer.contains("\r\n\r\nsecond "), "{answer}");
        }
        assert!(seen.get() != 0, "it was never asked");
    });
}

#[test]
fn what_may_have_been_done_is_not_done_twice() {
    run(|mut world| async move {
        let (port, seen) = ends_after(1).await;
        world.publish(app("started", port)).await;
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
        let answer = world.ask(post).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PU02"), "PX-70: {answer}");
        assert_eq!(seen.get(), 1);
    });
}

#[test]
fn a_machine_that_refuses_is_passed_over_whatever_the_method() {
    run(|mut world| async move {
        // Nobody else gets this port, and nobody listens there.
        let bound = TcpSocket::new_v4().expect("a socket");
        bound.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let port = bound.local_addr().expect("bound").port();
        world.publish(beside(port).await).await;
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        for _ in 0..6 {
            let answer = world.ask(post).await;
            assert!(answer.contains("\r\n\r\nsecond "), "PX-70: {answer}");
        }
    });
}

/// Says how long the body of each request was, if it is the right one.
async fn measures(mut stream: TcpStream) {
    while let Some(head) = read_head(&mut stream).await {
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |text| text.parse().expect("a number"))];
        stream.read_exact(&mut body).await.expect("the body comes");
        let text =
            format!("{} bytes, right: {}", body.len(), body.iter().all(|byte| *byte == b'x'));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
    }
}

/// A PUT of so many bytes to a Machine that ends connections after the first `read` bytes, beside one that takes it.
async fn put(world: &mut World, length: usize, read: usize) -> String {
    let (port, _) = ends_after(read).await;
    let mut view = beside(port).await;
    let good = machine(measures).await;
    view.machines[1].services.iter_mut().for_each(|s| s.internal_port = good);
    // So that the bad one is asked first.
    view.machines[1].region = "fra".to_owned();
    world.publish(view).await;
    let mut caller = world.connect().await;
    let head = format!("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    caller.write_all(head.as_bytes()).await.expect("the proxy reads");
    let (mut read, mut write) = caller.split();
    let body = vec![b'x'; length];
    let sent = async { write.write_all(&body).await.is_ok() };
    let mut answer = Vec::new();
    let received = async {
        // What comes before the end of the body may be followed by a reset.
        while !is_whole(&answer) && read.read_buf(&mut answer).await.is_ok_and(|count| count != 0) {
        }
    };
    tokio::join!(sent, received);
    String::from_utf8(answer).expect("it is text")
}

/// Whether this is an answer, to its end.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    length.is_some_and(|length| length.parse().is_ok_and(|length: usize| length <= body.len()))
}

#[test]
fn a_body_that_was_sent_in_part_or_whole_is_sent_again() {
    for (length, read) in [(10, 1), (50_000, 40_000), (1_000_000, 1), (1_000_000, 900_000)] {
        run(|mut world| async move {
            let answer = put(&mut world, length, read).await;
            assert!(answer.contains(&format!("{length} bytes, right: true")), "{length}: {answer}");
        });
    }
}

#[test]
fn a_body_that_is_too_long_to_keep_is_not_sent_again() {
    run(|mut world| async move {
        let answer = put(&mut world, 3 << 20, 2 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PU02"), "{answer}");
    });
}

#[test]
fn a_start_that_fails_tries_the_next_machine() {
    run(|mut world| async move {
        let mut view = two("stopped", "stopped").await;
        let port = named("either").await;
        for machine in &mut view.machines {
            machine.services.iter_mut().for_each(|s| s.internal_port = port);
        }
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        let FromProxy::Start { machine, attempt, .. } = world.heard().await else {
            panic!("a start was expected");
        };
        let outcome = StartOutcome::Failed { reason: "no".to_owned() };
        let other = usize::from(machine == MACHINE);
        world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
        world.start(view, other).await;
        assert!(read_all(&mut caller).await.contains("\r\n\r\neither "), "AS-69");
    });
}
