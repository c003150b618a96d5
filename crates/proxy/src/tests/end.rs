//! How the proxy ends.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use super::world::*;
use crate::control::{Link, ToProxy};

const KEEP: &str = "GET /path HTTP/1.1\r\nHost: app.flycast\r\n\r\n";

/// Longer than any end in these tests needs.
const LONG: Duration = Duration::from_secs(10);

/// A Machine whose answers have to wait until they are let go.
struct Slow {
    port: u16,
    arrived: Rc<Semaphore>,
    go_on: Rc<Semaphore>,
}

impl Slow {
    async fn new() -> Self {
        let (arrived, go_on) = (Rc::new(Semaphore::new(0)), Rc::new(Semaphore::new(0)));
        let shared = (Rc::clone(&arrived), Rc::clone(&go_on));
        let port = machine(move |mut stream| {
            let (arrived, go_on) = shared.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    arrived.add_permits(1);
                    go_on.acquire().await.expect("it is never closed").forget();
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("the proxy reads");
                }
            }
        })
        .await;
        Self { port, arrived, go_on }
    }

    async fn got_requests(&self, count: u32) {
        self.arrived.acquire_many(count).await.expect("it is never closed").forget();
    }
}

/// Connects and sends without letting the proxy run.
fn connected_unseen(world: &World, request: &str) -> TcpStream {
    let mut stream = std::net::TcpStream::connect(world.http).expect("the proxy listens");
    stream.write_all(request.as_bytes()).expect("there is room");
    stream.set_nonblocking(true).expect("it is open");
    TcpStream::from_std(stream).expect("it is open")
}

async fn check_last_answer(stream: &mut TcpStream) {
    let answer = read_all(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[test]
fn what_outlives_the_time_of_an_end_is_left() {
    run(|mut world| async move {
        let slow = Slow::new().await;
        world.publish(app("started", slow.port)).await;
        let _caller = connected_unseen(&world, KEEP);
        slow.got_requests(1).await;
        let end = world.running.end(Duration::from_millis(50));
        tokio::time::timeout(LONG, end).await.expect("it gives up");
    });
}

#[test]
fn a_request_in_flight_is_answered_as_the_last_of_its_connection() {
    run(|mut world| async move {
        let slow = Slow::new().await;
        world.publish(app("started", slow.port)).await;
        let mut caller = connected_unseen(&world, KEEP);
        slow.got_requests(1).await;
        let rest = async {
            slow.go_on.add_permits(1);
            check_last_answer(&mut caller).await;
        };
        tokio::join!(world.running.end(LONG), rest);
    });
}

#[test]
fn a_held_caller_is_still_woken_for() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut caller = connected_unseen(&world, KEEP);
        let World { running, link, .. } = &mut world;
        let rest = async {
            start(link, view, 0).await;
            check_last_answer(&mut caller).await;
        };
        tokio::join!(running.end(LONG), rest);
    });
}

#[test]
fn idle_connections_are_closed_at_once_but_not_those_with_a_request_on_its_way() {
    run(|mut world| async move {
        world.publish(app("started", machine(echo_heads).await)).await;
        let (mut idle, mut busy) = (world.connect().await, world.connect().await);
        for stream in [&mut idle, &mut busy] {
            stream.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
            read_response(stream).await;
        }
        // Written at once, so the proxy has not seen it when the end begins.
        assert_eq!(busy.try_write(KEEP.as_bytes()).expect("there is room"), KEEP.len());
        let rest = async {
            assert_eq!(read_all(&mut idle).await, "");
            check_last_answer(&mut busy).await;
        };
        tokio::join!(world.running.end(LONG), rest);
    });
}

#[test]
fn who_is_in_the_accept_queue_is_served_and_who_comes_later_is_not() {
    run(|mut world| async move {
        world.publish(app("started", machine(echo_heads).await)).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200 OK"));
        let mut early: Vec<_> = (0..100).map(|_| connected_unseen(&world, KEEP)).collect();
        // Has connected, and will ask in a moment.
        let mut silent = connected_unseen(&world, "");
        let http = world.http;
        let rest = async {
            for caller in &mut early {
                check_last_answer(caller).await;
            }
            let mut late = TcpStream::connect(http).await.expect("the listener stays");
            late.write_all(KEEP.as_bytes()).await.expect("the kernel takes it");
            silent.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
            check_last_answer(&mut silent).await;
            let answer = late.try_read(&mut [0; 1]).expect_err("nobody accepts any more");
            assert_eq!(answer.kind(), std::io::ErrorKind::WouldBlock);
        };
        tokio::join!(world.running.end(LONG), rest);
    });
}

#[test]
fn a_second_signal_ends_at_once_and_resets_what_is_in_flight() {
    run(|_| async {
        let slow = Slow::new().await;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("proxy.sock");
        let control = UnixListener::bind(&path).expect("the path is free");
        let (listeners, [http, raw, ..]) = listeners();
        let (done, ended) = oneshot::channel();
        std::thread::spawn(move || done.send(crate::run(listeners, control, options(http))));
        // It watches for signals before it greets.
        let (mut link, _listeners) = Link::connect(&path).await.expect("the proxy listens");
        let view = ToProxy::App(app("started", slow.port));
        for message in [settings_with(|_| {}), view, ToProxy::SnapshotEnd] {
            link.send(&message).await.expect("the proxy reads");
        }
        let mut callers = Vec::new();
        for address in [http, raw] {
            let mut caller = TcpStream::connect(address).await.expect("the proxy listens");
            caller.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
            callers.push(caller);
        }
        slow.got_requests(2).await;
        for signal in [Signal::TERM, Signal::INT] {
            kill_process(getpid(), signal).expect("we may signal ourselves");
        }
        let ended = tokio::time::timeout(Duration::from_secs(3), ended).await;
        ended.expect("it does not wait").expect("it answers").expect("it ends well");
        for mut caller in callers {
            let error = caller.read_u8().await.expect_err("it was cut");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
}
