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
use crate::control::{FromProxy, Link, ToProxy};
use crate::upstream::is_quiet;

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
            let mut early = early.iter_mut();
            check_last_answer(early.next().expect("the first of them")).await;
            // Before the answers to the others, which may take longer than it is waited for.
            silent.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
            let mut late = TcpStream::connect(http).await.expect("the listener stays");
            late.write_all(KEEP.as_bytes()).await.expect("the kernel takes it");
            for caller in early {
                check_last_answer(caller).await;
            }
            check_last_answer(&mut silent).await;
            let answer = late.try_read(&mut [0; 1]).expect_err("nobody accepts any more");
            assert_eq!(answer.kind(), std::io::ErrorKind::WouldBlock);
        };
        tokio::join!(world.running.end(LONG), rest);
    });
}

#[test]
fn a_retired_proxy_serves_whom_it_has_until_the_last_of_them_has_gone() {
    run(|mut world| async move {
        let slow = Slow::new().await;
        world.publish(app("started", slow.port)).await;
        let mut kept = connected_unseen(&world, KEEP);
        slow.got_requests(1).await;
        slow.go_on.add_permits(1);
        read_response(&mut kept).await;
        let mut busy = connected_unseen(&world, KEEP);
        slow.got_requests(1).await;
        let World { running, link, http, .. } = &mut world;
        let http = *http;
        let mut done = std::pin::pin!(running.retire());
        let rest = async {
            let retire = ToProxy::Retire { bound_ms: 3_600_000 };
            link.send(&retire).await.expect("the proxy reads");
            while !matches!(link.recv().await, Ok(FromProxy::Retired { left: 2 })) {}
            // The listener is another's now: nobody here accepts.
            let mut late = TcpStream::connect(http).await.expect("the listener stays");
            late.write_all(KEEP.as_bytes()).await.expect("the kernel takes it");
            kept.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
            slow.got_requests(1).await;
            slow.go_on.add_permits(2);
            check_last_answer(&mut kept).await;
            check_last_answer(&mut busy).await;
            let answer = late.try_read(&mut [0; 1]).expect_err("nobody accepts any more");
            assert_eq!(answer.kind(), std::io::ErrorKind::WouldBlock);
        };
        tokio::select! {
            _ = &mut done => panic!("somebody is served still"),
            () = rest => {}
        }
        drop((busy, kept));
        let ended = tokio::time::timeout(LONG, done).await.expect("nobody is left");
        assert_eq!(ended, crate::server::Retired::Empty);
    });
}

#[test]
fn a_retired_proxy_closes_connections_that_nobody_uses_only_after_a_while() {
    run(|mut world| async move {
        world.publish(app("started", machine(echo_heads).await)).await;
        let mut idle = world.connect().await;
        idle.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
        read_response(&mut idle).await;
        let World { running, link, .. } = &mut world;
        let retire = ToProxy::Retire { bound_ms: 3_600_000 };
        link.send(&retire).await.expect("the proxy reads");
        let begun = tokio::time::Instant::now();
        let (ended, rest) = tokio::join!(running.retire(), read_all(&mut idle));
        assert_eq!((ended, rest.as_str()), (crate::server::Retired::Empty, ""));
        assert!(Duration::from_millis(90) < begun.elapsed(), "closed at once");
    });
}

#[test]
fn what_outlives_the_bound_of_a_retired_proxy_is_left() {
    run(|mut world| async move {
        let slow = Slow::new().await;
        world.publish(app("started", slow.port)).await;
        let _caller = connected_unseen(&world, KEEP);
        slow.got_requests(1).await;
        let World { running, link, .. } = &mut world;
        link.send(&ToProxy::Retire { bound_ms: 50 }).await.expect("the proxy reads");
        let ended = tokio::time::timeout(LONG, running.retire()).await.expect("it gives up");
        assert_eq!(ended, crate::server::Retired::Late);
    });
}

#[test]
fn a_retired_proxy_lets_a_machine_sleep_only_if_nobody_uses_it_there() {
    run(|mut world| async move {
        let slow = Slow::new().await;
        let mut view = app("started", slow.port);
        // The longest counts.
        for service in &mut view.machines[0].services {
            service.auto_stop_after_ms = 500;
        }
        world.publish(view).await;
        let mut caller = connected_unseen(&world, KEEP);
        slow.got_requests(1).await;
        world.send(ToProxy::Retire { bound_ms: 3_600_000 }).await;
        world.send(may_stop(3)).await;
        assert_eq!(drained(&mut world, 3).await, 1, "somebody waits for an answer");
        slow.go_on.add_permits(1);
        read_response(&mut caller).await;
        world.send(may_stop(4)).await;
        assert_eq!(drained(&mut world, 4).await, 1, "it was used a moment ago");
        may_stop_at_last(&mut world, 5).await;
    });
}

#[test]
fn a_retired_proxy_has_closed_its_idle_connections_to_a_machine_that_it_lets_sleep() {
    run(|mut world| async move {
        let (give, mut given) = tokio::sync::mpsc::unbounded_channel();
        let port = machine(move |mut stream| {
            let give = give.clone();
            async move {
                read_head(&mut stream).await.expect("a request comes");
                stream.write_all(NO_CONTENT).await.expect("the proxy reads");
                give.send(stream).expect("the test waits");
            }
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 100);
        world.publish(view).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 204"));
        let kept = given.recv().await.expect("it was asked");
        assert!(is_quiet(&kept), "it is kept for the next request");
        world.send(ToProxy::Retire { bound_ms: 3_600_000 }).await;
        may_stop_at_last(&mut world, 1).await;
        assert!(!is_quiet(&kept), "the Machine would find its end when it wakes");
    });
}

const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

fn may_stop(token: u64) -> ToProxy {
    ToProxy::MayStop { machine: MACHINE.to_owned(), run: 1, token }
}

/// Asks by tokens from this one on, until it may.
async fn may_stop_at_last(world: &mut World, mut token: u64) {
    loop {
        world.send(may_stop(token)).await;
        if drained(world, token).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        token += 1;
    }
}

/// What is said to be in flight; and nobody is put to sleep meanwhile.
async fn drained(world: &mut World, wanted: u64) -> u64 {
    loop {
        match world.heard().await {
            FromProxy::Drained { token, in_flight, .. } if token == wanted => return in_flight,
            FromProxy::Stop { .. } => panic!("that is not ours to decide"),
            _ => {}
        }
    }
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
