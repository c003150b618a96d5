//! A balancer that panics.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::world::*;
use crate::app::planted::{plant_panics, planted_panics};
use crate::control::{Autostop, FromProxy, StartOutcome, StopOutcome, ToProxy};

#[test]
fn callers_who_wait_when_the_balancer_panics_are_served_by_the_next() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        let FromProxy::Start { machine, attempt, .. } = world.heard().await else {
            panic!("a start was expected");
        };
        // The answer is lost with the balancer that asked; the next one asks again.
        plant_panics(1);
        let outcome = StartOutcome::Refused { reason: "not now".to_owned() };
        world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
        world.start(view, 0).await;
        assert_eq!(planted_panics(), 0);
        assert!(read_all(&mut caller).await.starts_with("HTTP/1.1 200 OK"));
    });
}

#[test]
fn an_app_whose_balancer_panics_twice_in_a_row_is_served_again_after_the_next_change() {
    run(|mut world| async move {
        let mut view = app("started", machine(echo_heads).await);
        plant_panics(2);
        world.publish(view.clone()).await;
        // Its server has said that it is ready, and that is an event, so it may be served already.
        let answer = world.ask(GET).await;
        assert_eq!(planted_panics(), 0, "{answer}");
        view.revision += 1;
        world.send(ToProxy::App(view)).await;
        while !world.ask(GET).await.starts_with("HTTP/1.1 200 OK") {}
    });
}

#[test]
fn a_machine_does_not_sleep_under_requests_that_only_a_former_balancer_counted() {
    run(|mut world| async move {
        let (arrived, finish) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let shared = (Rc::clone(&arrived), Rc::clone(&finish));
        let busy = Rc::new(Cell::new(false));
        let inside = Rc::clone(&busy);
        let port = machine(move |mut stream| {
            let ((arrived, finish), inside) = (shared.clone(), Rc::clone(&inside));
            async move {
                while read_head(&mut stream).await.is_some() {
                    inside.set(true);
                    arrived.notify_one();
                    finish.notified().await;
                    inside.set(false);
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer).await.expect("the proxy reads");
                }
            }
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 200);
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        arrived.notified().await;
        plant_panics(1);
        view.revision += 1;
        world.send(ToProxy::App(view)).await;
        let quiet = Duration::from_millis(500);
        let early = tokio::time::timeout(quiet, world.heard()).await;
        assert!(early.is_err() && busy.get(), "it was stopped under load: {early:?}");
        assert_eq!(planted_panics(), 0);
        finish.notify_one();
        assert!(read_all(&mut caller).await.starts_with("HTTP/1.1 200 OK"));
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}

#[test]
fn a_connection_that_rested_when_the_balancer_panicked_wakes_its_machine() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.expect("the proxy reads");
        })
        .await;
        let mut view = app("started", port);
        for service in &mut view.machines[0].services {
            (service.autostop, service.auto_stop_after_ms) = (Autostop::Suspend, 100);
        }
        world.publish(view).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let (question, mut answer) = (b"a question", [0; 10]);
        caller.write_all(question).await.expect("the proxy reads");
        caller.read_exact(&mut answer).await.expect("the Machine answers");
        // The next event is that the connection rests.
        plant_panics(1);
        let FromProxy::Stop { machine, attempt, .. } = world.heard().await else {
            panic!("a stop was expected");
        };
        assert_eq!(planted_panics(), 0);
        caller.write_all(question).await.expect("the proxy reads");
        assert!(matches!(world.heard().await, FromProxy::Start { .. }));
        let outcome = StopOutcome::Refused { reason: "it is needed".to_owned() };
        world.send(ToProxy::StopDone { machine, attempt, outcome }).await;
        caller.read_exact(&mut answer).await.expect("the Machine answers");
        // It is load now, which only the former balancer has counted.
        caller.write_all(question).await.expect("the proxy reads");
        caller.read_exact(&mut answer).await.expect("the Machine answers");
    });
}
