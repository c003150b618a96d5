//! Callers that leave, and callers that only end their side.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::world::*;
use crate::control::{AppView, FromProxy};

const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";

/// A Machine that writes `first` when it has read a head, `second` when it is told to, and then waits
/// for the proxy to close.
async fn in_two_parts(first: &'static [u8], second: &'static [u8]) -> (u16, Rc<Semaphore>) {
    let go_on = Rc::new(Semaphore::new(0));
    let told = Rc::clone(&go_on);
    let port = machine(move |mut stream| {
        let told = Rc::clone(&told);
        async move {
            read_head(&mut stream).await.expect("a request comes");
            stream.write_all(first).await.expect("the proxy reads");
            let (mut read, mut write) = stream.split();
            let told = async {
                told.acquire().await.expect("it is never closed").forget();
                let _gone = write.write_all(second).await.is_err();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = told => {}
                _ = read.read_u8() => {}
            }
        }
    })
    .await;
    (port, go_on)
}

/// Goes to sleep soon after nobody needs it.
fn sleepy(port: u16) -> AppView {
    let mut view = app("started", port);
    view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 200);
    view
}

async fn check_sleeps(world: &mut World) {
    let message = world.heard().await;
    assert!(matches!(message, FromProxy::Stop { .. }), "{message:?}");
}

#[test]
fn a_caller_that_resets_during_a_silent_stream_lets_the_machine_sleep() {
    run(|mut world| async move {
        let (port, _silent) = in_two_parts(STREAM, b"").await;
        world.publish(sleepy(port)).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        read_head(&mut caller).await.expect("the stream begins");
        caller.set_zero_linger().expect("it is open");
        drop(caller);
        check_sleeps(&mut world).await;
    });
}

#[test]
fn a_caller_that_closes_during_a_silent_stream_lets_the_machine_sleep_after_a_while() {
    run(|mut world| async move {
        let (port, _silent) = in_two_parts(STREAM, b"").await;
        world.publish(sleepy(port)).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        read_head(&mut caller).await.expect("the stream begins");
        let mut first = [0; 10];
        caller.read_exact(&mut first).await.expect("a chunk comes");
        drop(caller);
        check_sleeps(&mut world).await;
    });
}

#[test]
fn a_caller_that_closes_before_a_late_answer_lets_the_machine_sleep_after_a_while() {
    run(|mut world| async move {
        let (port, _silent) = in_two_parts(b"", b"").await;
        world.publish(sleepy(port)).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        drop(caller);
        check_sleeps(&mut world).await;
    });
}

#[test]
fn a_caller_that_leaves_behind_a_next_request_lets_the_machine_sleep() {
    run(|mut world| async move {
        let (port, _silent) = in_two_parts(STREAM, b"").await;
        world.publish(sleepy(port)).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        read_head(&mut caller).await.expect("the stream begins");
        let mut first = [0; 10];
        caller.read_exact(&mut first).await.expect("a chunk comes");
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        drop(caller);
        check_sleeps(&mut world).await;
    });
}

#[test]
fn a_caller_that_leaves_behind_more_than_a_request_is_missed_when_it_resets() {
    run(|mut world| async move {
        let (port, _silent) = in_two_parts(STREAM, b"").await;
        world.publish(sleepy(port)).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        read_head(&mut caller).await.expect("the stream begins");
        caller.write_all(&[b'x'; 40 * 1024]).await.expect("the kernel has room");
        caller.set_zero_linger().expect("it is open");
        drop(caller);
        check_sleeps(&mut world).await;
    });
}

#[test]
fn a_caller_that_leaves_while_its_upload_is_stuck_lets_the_machine_sleep() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            std::future::pending::<()>().await;
        })
        .await;
        world.publish(sleepy(port)).await;
        let mut caller = world.connect().await;
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";
        caller.write_all(head).await.expect("the proxy reads");
        fill(&mut caller).await;
        caller.set_zero_linger().expect("it is open");
        drop(caller);
        check_sleeps(&mut world).await;
    });
}

#[test]
fn who_has_ended_its_side_gets_its_answer_as_the_last() {
    run(|mut world| async move {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let (port, go_on) = in_two_parts(b"", answer).await;
        world.publish(app("started", port)).await;
        let mut caller = world.connect().await;
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        caller.write_all(request).await.expect("the proxy reads");
        caller.shutdown().await.expect("it is open");
        tokio::time::sleep(Duration::from_millis(20)).await;
        go_on.add_permits(1);
        let answer = read_all(&mut caller).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    });
}

#[test]
fn requests_before_the_end_of_a_side_are_all_answered() {
    run(|mut world| async move {
        world.publish(app("started", machine(echo_heads).await)).await;
        let mut caller = world.connect().await;
        let one = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
        caller.write_all(one.repeat(3).as_bytes()).await.expect("the proxy reads");
        tokio::time::sleep(Duration::from_millis(5)).await;
        caller.write_all(one.repeat(3).as_bytes()).await.expect("the proxy reads");
        caller.shutdown().await.expect("it is open");
        let answers = read_all(&mut caller).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 6, "{answers}");
    });
}

#[test]
fn a_request_sent_during_the_answer_to_the_former_is_answered() {
    run(|mut world| async move {
        let (port, go_on) = in_two_parts(STREAM, b"0\r\n\r\n").await;
        world.publish(app("started", port)).await;
        let mut caller = world.connect().await;
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        caller.write_all(request).await.expect("the proxy reads");
        read_head(&mut caller).await.expect("the stream begins");
        caller.write_all(&request[..10]).await.expect("the proxy reads");
        tokio::time::sleep(Duration::from_millis(5)).await;
        caller.write_all(&request[10..]).await.expect("the proxy reads");
        tokio::time::sleep(Duration::from_millis(5)).await;
        go_on.add_permits(2);
        let mut rest = vec![0; b"5\r\nfirst\r\n0\r\n\r\n".len()];
        caller.read_exact(&mut rest).await.expect("the stream ends");
        let head = read_head(&mut caller).await.expect("the second answer comes");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    });
}
