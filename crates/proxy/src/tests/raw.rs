//! Raw TCP through the whole proxy.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::*;
use crate::control::{FromProxy, ToProxy};

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
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 100);
        world.publish(view).await;
        let caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let quiet = std::time::Duration::from_millis(300);
        let early = tokio::time::timeout(quiet, world.heard()).await;
        assert!(early.is_err(), "it was stopped under load: {early:?}");
        drop(caller);
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}
