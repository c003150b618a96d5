//! Raw TCP through the whole proxy.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::sleeper::{LONG, napping};
use super::world::*;
use crate::control::{AppView, FromProxy, StartOutcome, ToProxy};

#[test]
fn each_side_can_end_its_direction_alone() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("it ends well");
            stream.write_all(&all).await.expect("the proxy reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        caller.write_all(b"question").await.expect("the proxy reads");
        caller.shutdown().await.expect("it is open");
        assert_eq!(read_all(&mut caller).await, "question");
    });
}

#[test]
fn a_connection_wakes_the_app_even_when_the_caller_says_nothing() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            stream.write_all(b"220 hello").await.expect("the proxy reads");
        })
        .await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        world.start(view, 0).await;
        assert_eq!(read_all(&mut caller).await, "220 hello");
    });
}

#[test]
fn a_port_with_handlers_that_are_not_there_resets_and_says_so_in_the_apps_log() {
    run(|mut world| async move {
        let mut view = app("started", 1);
        view.machines[0].services[1].ports[0].handlers = vec!["tls".to_owned()];
        world.publish(view).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let error = caller.read_u8().await.expect_err("nobody speaks TLS here");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let FromProxy::Log { app, text, .. } = world.link.recv().await.expect("it lives") else {
            panic!("a log line was expected");
        };
        assert_eq!(app, APP);
        assert!(text.starts_with("port 5432 is not served: its handlers"), "{text}");
    });
}

fn with_header(mut view: AppView, v2: bool) -> AppView {
    let port = &mut view.machines[0].services[1].ports[0];
    (port.handlers, port.proxy_proto_v2) = (vec!["proxy_proto".to_owned()], v2);
    view
}

/// Says what comes first, up to the end of a line, and then what it gets.
async fn reads_a_line(mut stream: TcpStream) {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.expect("a header comes"));
    }
    stream.write_all(&line).await.expect("the proxy reads");
    let (mut read, mut write) = stream.split();
    let _gone = tokio::io::copy(&mut read, &mut write).await.is_err();
}

fn line_of(caller: &TcpStream) -> String {
    let port = caller.local_addr().expect("it is connected").port();
    format!("PROXY TCP6 {CALLER} {FLYCAST} {port} 5432\r\n")
}

#[test]
fn a_program_learns_its_caller_by_the_proxy_protocol_before_the_first_byte() {
    run(|mut world| async move {
        let view = with_header(app("stopped", machine(reads_a_line).await), false);
        world.publish(view.clone()).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        // What it says by itself is content, also if it looks the same.
        caller.write_all(b"PROXY UNKNOWN\r\n").await.expect("the proxy reads");
        caller.shutdown().await.expect("it is open");
        world.start(view, 0).await;
        let header = line_of(&caller);
        assert_eq!(read_all(&mut caller).await, format!("{header}PROXY UNKNOWN\r\n"));
    });
}

#[test]
fn the_header_of_the_binary_form_is_ahead_of_the_content() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let mut header = [0; 16 + 36];
            stream.read_exact(&mut header).await.expect("a header comes");
            stream.write_all(&header).await.expect("the proxy reads");
        })
        .await;
        world.publish(with_header(app("started", port), true)).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let mut header = [0; 16 + 36];
        caller.read_exact(&mut header).await.expect("it is sent back");
        let at = caller.local_addr().expect("it is connected").port();
        assert_eq!(header[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24");
        assert_eq!(header[48..], [at.to_be_bytes(), 5432_u16.to_be_bytes()].concat());
    });
}

#[test]
fn the_header_comes_once_and_is_no_word_of_the_callers() {
    run(|mut world| async move {
        let mut view = with_header(napping(machine(reads_a_line).await), false);
        world.publish(view.clone()).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let mut line = vec![0; line_of(&caller).len()];
        caller.read_exact(&mut line).await.expect("it is sent back");
        assert_eq!(line, line_of(&caller).into_bytes());
        world.suspend(&mut view).await;
        caller.write_all(b"next").await.expect("the proxy reads");
        world.thaw(&mut view).await;
        let mut next = [0; 4];
        caller.read_exact(&mut next).await.expect("it is sent back");
        assert_eq!(&next, b"next");
    });
}

#[test]
fn a_header_that_nobody_answers_is_no_use_and_owes_nothing() {
    run(|mut world| async move {
        let port = machine(|silent| async move {
            std::future::pending::<()>().await;
            drop(silent);
        })
        .await;
        let mut view = with_header(napping(port), false);
        world.publish(view.clone()).await;
        let _caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        world.suspend(&mut view).await;
    });
}

#[test]
fn a_reset_of_the_machine_is_a_reset_for_the_caller() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            stream.read_u8().await.expect("a byte comes");
            stream.set_zero_linger().expect("it is open");
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        caller.write_all(b"x").await.expect("the proxy reads");
        let error = caller.read_u8().await.expect_err("the Machine cut it");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_callers_reset_is_seen_while_the_machine_reads_nothing() {
    run(|mut world| async move {
        let port = machine(|unread| async move {
            std::future::pending::<()>().await;
            drop(unread);
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 50);
        world.publish(view).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        fill(&mut caller).await;
        caller.set_zero_linger().expect("it is open");
        drop(caller);
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}

#[test]
fn a_machines_reset_is_seen_while_the_caller_reads_nothing() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            fill(&mut stream).await;
            stream.set_zero_linger().expect("it is open");
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 50);
        world.publish(view).await;
        let _unread = TcpStream::connect(world.raw).await.expect("the proxy listens");
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}

#[test]
fn who_is_inside_talks_on_while_nobody_may_enter() {
    run(|mut world| async move {
        let port = machine(echo_bytes).await;
        let mut view = app("started", port);
        world.publish(view.clone()).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        echo(&mut caller).await;
        view.machines[0].cordoned = true;
        view.revision += 1;
        world.send(ToProxy::App(view.clone())).await;
        settle(&mut world).await;
        echo(&mut caller).await;
        view.machines[0].cordoned = false;
        view.revision += 1;
        world.send(ToProxy::App(view)).await;
        settle(&mut world).await;
        world.send(drain(1, 1)).await;
        settle(&mut world).await;
        echo(&mut caller).await;
    });
}

/// Until the proxy has done what it was told: a drain of a run that is over is answered at once.
async fn settle(world: &mut World) {
    world.send(drain(0, 2)).await;
    assert!(matches!(world.heard().await, FromProxy::Drained { token: 2, .. }));
}

fn drain(run: u64, token: u64) -> ToProxy {
    let timeout_ms = PATIENCE.as_millis() as u64;
    ToProxy::Drain { machine: MACHINE.to_owned(), run, token, timeout_ms }
}

async fn echo_bytes(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await.expect("the proxy reads");
}

/// More than a farewell, there and back.
async fn echo(caller: &mut TcpStream) {
    caller.write_all(b"a question").await.expect("the proxy reads");
    let mut answer = [0; 10];
    caller.read_exact(&mut answer).await.expect("the Machine answers");
    assert_eq!(&answer, b"a question");
}

#[test]
fn an_open_connection_is_load_and_its_end_is_not() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let _closed = stream.read_u8().await.is_err();
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 200);
        world.publish(view).await;
        let caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let quiet = std::time::Duration::from_millis(500);
        let early = tokio::time::timeout(quiet, world.heard()).await;
        assert!(early.is_err(), "it was stopped under load: {early:?}");
        drop(caller);
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}

/// A resting connection whose Machine sleeps.
async fn resting(world: &mut World) -> (AppView, TcpStream) {
    let mut view = napping(machine(echo_bytes).await);
    world.publish(view.clone()).await;
    let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
    echo(&mut caller).await;
    world.suspend(&mut view).await;
    (view, caller)
}

#[test]
fn who_says_the_next_byte_is_named_as_the_one_who_wakes() {
    run(|mut world| async move {
        let (_, mut caller) = resting(&mut world).await;
        caller.write_all(b"a question").await.expect("the kernel takes it");
        let FromProxy::Start { cause, .. } = world.heard().await else {
            panic!("a start was expected");
        };
        let cause = cause.expect("the caller is known");
        let port = caller.local_addr().expect("it is connected").port();
        assert_eq!((cause.caller, cause.caller_port), (ip(CALLER), port));
        assert_eq!(cause.request.as_deref(), Some("the next byte of a connection"));
    });
}

/// As PostgreSQL's clients say goodbye.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

#[test]
fn who_closes_without_a_word_or_with_a_goodbye_wakes_nobody() {
    run(|mut world| async move {
        let (mut view, caller) = resting(&mut world).await;
        drop(caller);
        world.hears_nothing().await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        world.thaw(&mut view).await;
        echo(&mut caller).await;
        world.suspend(&mut view).await;
        // The end goes with it: what lies between two calls is the scheduler's.
        rustix::net::send(&caller, TERMINATE, rustix::net::SendFlags::MORE).expect("it is sent");
        drop(caller);
        world.hears_nothing().await;
    });
}

#[test]
fn the_end_of_a_goodbye_is_waited_for() {
    /// What a busy machine may do to some of them, it does not do to all.
    const TRIES: usize = 20;
    run(|mut world| async move {
        let (mut view, mut caller) = resting(&mut world).await;
        for _ in 0..TRIES {
            caller.write_all(TERMINATE).await.expect("the kernel takes it");
            // The proxy sees it, and not yet the end.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            drop(caller);
            let heard = tokio::time::timeout(LONG, world.heard());
            let Ok(FromProxy::Start { machine, attempt, .. }) = heard.await else { return };
            let outcome = StartOutcome::Started { run: view.machines[0].run };
            world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
            world.show(&mut view, "started").await;
            caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
            echo(&mut caller).await;
            world.suspend(&mut view).await;
        }
        panic!("each of them has woken it");
    });
}
