//! Answers that go on for long, and are silent at times.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::sleeper::{napping, stopping};
use super::world::*;
use crate::control::FromProxy;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
const EVENTS: &str = "GET /events HTTP/1.1\r\nHost: app.flycast\r\n\r\n";
const EVENT: &[u8; 12] = b"7\r\ndata: a\r\n";

/// Answers `/events` by `head`, sends an event whenever it is told to, and at last the end; answers
/// everything else at once.
async fn event_server(head: &'static str) -> (u16, Rc<Semaphore>) {
    let told = Rc::new(Semaphore::new(0));
    let tell = Rc::clone(&told);
    let port = machine(move |mut stream| {
        let told = Rc::clone(&told);
        async move {
            while let Some(request) = read_head(&mut stream).await {
                if !request.contains(" /events ") {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("the proxy reads");
                    continue;
                }
                stream.write_all(head.as_bytes()).await.expect("the proxy reads");
                while let Ok(permit) = told.acquire().await {
                    permit.forget();
                    if stream.write_all(EVENT).await.is_err() {
                        return;
                    }
                }
                stream.write_all(b"0\r\n\r\n").await.expect("the proxy reads");
            }
        }
    })
    .await;
    (port, tell)
}

async fn listener(world: &World) -> TcpStream {
    let mut caller = world.connect().await;
    caller.write_all(EVENTS.as_bytes()).await.expect("the proxy reads");
    read_head(&mut caller).await.expect("a head comes");
    caller
}

async fn event(caller: &mut TcpStream) {
    let mut bytes = [0; EVENT.len()];
    caller.read_exact(&mut bytes).await.expect("an event comes");
    assert_eq!(&bytes, EVENT);
}

#[test]
fn a_silent_stream_keeps_a_machine_awake_that_would_be_stopped() {
    run(|mut world| async move {
        let (port, _silent) = event_server(HEAD).await;
        world.publish(stopping(port)).await;
        let _caller = listener(&world).await;
        world.hears_nothing().await;
    });
}

#[test]
fn a_silent_stream_rests_and_goes_on_when_another_request_has_woken_its_machine() {
    for head in [HEAD, "HTTP/1.1 200 OK\r\n\r\n"] {
        run(|mut world| async move {
            let (port, tell) = event_server(head).await;
            let mut view = napping(port);
            world.publish(view.clone()).await;
            let (mut one, mut other) = (listener(&world).await, listener(&world).await);
            tell.add_permits(2);
            event(&mut one).await;
            event(&mut other).await;
            for _ in 0..2 {
                world.suspend(&mut view).await;
                let mut plain = world.connect().await;
                plain.write_all(GET.as_bytes()).await.expect("the proxy reads");
                world.thaw(&mut view).await;
                assert!(read_all(&mut plain).await.ends_with("\r\n\r\nok"));
                tell.add_permits(2);
                event(&mut one).await;
                event(&mut other).await;
            }
        });
    }
}

#[test]
fn a_stream_that_speaks_is_load() {
    run(|mut world| async move {
        let (port, tell) = event_server(HEAD).await;
        let mut view = napping(port);
        // Longer than a busy machine keeps this test from the processor.
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 1000);
        world.publish(view).await;
        let mut caller = listener(&world).await;
        let talk = async {
            let until = tokio::time::Instant::now() + Duration::from_millis(1500);
            while tokio::time::Instant::now() < until {
                tell.add_permits(1);
                event(&mut caller).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = talk => {}
            message = world.heard() => panic!("it was put to sleep: {message:?}"),
        }
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }), "it rests at last");
    });
}

#[test]
fn a_caller_who_takes_nothing_is_no_rest_of_the_machines() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("the proxy reads");
            fill(&mut stream).await;
            std::future::pending::<()>().await;
        })
        .await;
        world.publish(napping(port)).await;
        let _unread = listener(&world).await;
        world.hears_nothing().await;
    });
}

/// Sends this, and the Machine answers that: it must not be put to sleep.
async fn check_is_load(request: &'static str, answer: &'static str) {
    let mut world = World::new().await;
    let port = machine(move |mut stream| async move {
        read_head(&mut stream).await.expect("a request comes");
        stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
        std::future::pending::<()>().await;
    })
    .await;
    world.publish(napping(port)).await;
    let mut caller = world.connect().await;
    caller.write_all(request.as_bytes()).await.expect("the proxy reads");
    world.hears_nothing().await;
}

#[test]
fn an_answer_that_is_owed_is_load_however_long_it_is_silent() {
    let upload = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
    run(|_| async move {
        check_is_load(EVENTS, "").await;
        check_is_load(EVENTS, "HTTP/1.1 103 Early Hints\r\n\r\n").await;
        check_is_load(EVENTS, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").await;
        check_is_load(upload, HEAD).await;
    });
}

#[test]
fn who_has_asked_again_behind_a_stream_waits_for_both_answers() {
    run(|mut world| async move {
        let (port, tell) = event_server(HEAD).await;
        let mut view = napping(port);
        world.publish(view.clone()).await;
        let mut late = listener(&world).await;
        world.suspend(&mut view).await;
        late.write_all(GET.as_bytes()).await.expect("the kernel takes it");
        world.thaw(&mut view).await;
        world.hears_nothing().await;
        tell.close();
        assert!(read_all(&mut late).await.ends_with("\r\n\r\nok"));
    });
}

#[test]
fn a_caller_who_leaves_a_stream_that_rests_wakes_nobody() {
    run(|mut world| async move {
        let (port, _silent) = event_server(HEAD).await;
        let mut view = napping(port);
        world.publish(view.clone()).await;
        let (closes, resets) = (listener(&world).await, listener(&world).await);
        world.suspend(&mut view).await;
        drop(closes);
        resets.set_zero_linger().expect("it is open");
        drop(resets);
        world.hears_nothing().await;
    });
}

#[test]
fn a_stream_that_waited_for_its_machine_is_recorded_when_it_begins() {
    run(|mut world| async move {
        let (port, tell) = event_server(HEAD).await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        caller.write_all(EVENTS.as_bytes()).await.expect("the proxy reads");
        world.start(view, 0).await;
        let FromProxy::Log { text, .. } = world.link.recv().await.expect("it lives") else {
            panic!("a log line was expected");
        };
        assert!(text.ends_with(" for GET /events"), "{text}");
        read_head(&mut caller).await.expect("a head comes");
        tell.add_permits(1);
        event(&mut caller).await;
    });
}
