//! Heartbeats on open connections: passed on, named, and no reason to stay awake.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::world::*;
use crate::clock;
use crate::control::{AppView, Autostop, FromProxy, HEARTBEAT, StartOutcome, StopOutcome, ToProxy};

const INTERVAL: Duration = Duration::from_secs(30);
const AFTER_MS: u64 = 300;

#[test]
fn a_known_heartbeat_wakes_and_does_not_keep_awake() {
    run(|mut world| async move {
        let (mut view, mut caller) = connected(&mut world).await;
        for _ in 0..5 {
            beat(&mut caller).await;
        }
        is_named(&mut world).await;
        sleep(&mut world, &mut view).await;
        for _ in 0..3 {
            let asleep = beat_asleep(&mut world, &mut view, &mut caller).await;
            assert!(INTERVAL <= asleep, "{asleep:?}");
        }
        // What comes at another time is use.
        ask(&mut caller).await;
        wake(&mut world, &mut view).await;
        answered(&mut caller).await;
        let quiet = sleep(&mut world, &mut view).await;
        assert!(quiet < INTERVAL, "{quiet:?}");
        // Used, it is no longer known.
        let asleep = beat_asleep(&mut world, &mut view, &mut caller).await;
        assert!(asleep < INTERVAL, "{asleep:?}");
    });
}

#[test]
fn a_heartbeat_that_goes_on_as_a_query_is_use() {
    run(|mut world| async move {
        let (mut view, mut caller) = connected(&mut world).await;
        for _ in 0..5 {
            beat(&mut caller).await;
        }
        sleep(&mut world, &mut view).await;
        clock::advance(INTERVAL);
        ask(&mut caller).await;
        wake(&mut world, &mut view).await;
        answered(&mut caller).await;
        ask(&mut caller).await;
        answered(&mut caller).await;
        let quiet = sleep(&mut world, &mut view).await;
        assert!(quiet < INTERVAL, "{quiet:?}");
    });
}

#[test]
fn a_connection_that_the_machine_pings_lets_it_sleep() {
    run(|mut world| async move {
        let (cue, heard) = (Rc::new(Semaphore::new(0)), Rc::new(Semaphore::new(0)));
        let (cued, pongs) = (Rc::clone(&cue), Rc::clone(&heard));
        let port = machine(move |mut stream| {
            let (cued, pongs) = (Rc::clone(&cued), Rc::clone(&pongs));
            async move {
                stream.write_all(b"helo").await.expect("the proxy reads");
                loop {
                    cued.acquire().await.expect("it is never closed").forget();
                    stream.write_all(b"ping").await.expect("the proxy reads");
                    stream.read_exact(&mut [0; 4]).await.expect("the caller answers");
                    pongs.add_permits(1);
                }
            }
        })
        .await;
        world.publish(napping(port)).await;
        let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
        caller.read_exact(&mut [0; 4]).await.expect("the Machine greets");
        for _ in 0..6 {
            clock::advance(INTERVAL);
            cue.add_permits(1);
            caller.read_exact(&mut [0; 4]).await.expect("the Machine pings");
            caller.write_all(b"pong").await.expect("the proxy reads");
            heard.acquire().await.expect("it is never closed").forget();
        }
        // Nobody waits for an answer to an answer.
        let message = world.heard().await;
        assert!(matches!(message, FromProxy::Stop { .. }), "{message:?}");
    });
}

fn napping(port: u16) -> AppView {
    let mut view = app("started", port);
    for service in &mut view.machines[0].services {
        (service.autostop, service.auto_stop_after_ms) = (Autostop::Suspend, AFTER_MS);
    }
    view
}

async fn connected(world: &mut World) -> (AppView, TcpStream) {
    let port = machine(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _reset = tokio::io::copy(&mut read, &mut write).await.is_err();
    })
    .await;
    let view = napping(port);
    world.publish(view.clone()).await;
    (view, TcpStream::connect(world.raw).await.expect("the proxy listens"))
}

async fn ask(caller: &mut TcpStream) {
    caller.write_all(b"ping ping ping").await.expect("the proxy reads");
}

async fn answered(caller: &mut TcpStream) {
    let mut answer = [0; 14];
    caller.read_exact(&mut answer).await.expect("the Machine answers");
}

async fn beat(caller: &mut TcpStream) {
    clock::advance(INTERVAL);
    ask(caller).await;
    answered(caller).await;
}

async fn is_named(world: &mut World) {
    let message = world.link.recv().await.expect("the proxy lives");
    let FromProxy::Log { machine, text, event: Some(event), .. } = message else {
        panic!("no event: {message:?}");
    };
    assert_eq!((machine.as_deref(), event.as_str()), (Some(MACHINE), HEARTBEAT));
    assert!(text.contains("sends 14 bytes, against 14, every 30.0 s"), "{text}");
    assert!(text.contains(CALLER) && text.contains("port 5432"), "{text}");
}

/// Waits until the Machine is put to sleep, and says for how long nobody has used it.
async fn sleep(world: &mut World, view: &mut AppView) -> Duration {
    let FromProxy::Stop { machine, attempt, reason, .. } = world.heard().await else {
        panic!("it is not put to sleep");
    };
    view.machines[0].state = "suspended".to_owned();
    view.revision += 1;
    let outcome = StopOutcome::Suspended;
    world.send(ToProxy::StopDone { machine, attempt, outcome }).await;
    world.send(ToProxy::App(view.clone())).await;
    let quiet = reason.strip_prefix("no load for ").expect("nobody needs it");
    let number = quiet.trim_end_matches(char::is_alphabetic).parse().expect("a number");
    let unit = if quiet.ends_with("ms") { 0.001 } else { 1.0 };
    Duration::from_secs_f64(unit * f64::max(number, 0.0))
}

async fn wake(world: &mut World, view: &mut AppView) {
    let FromProxy::Start { machine, attempt, .. } = world.heard().await else {
        panic!("it is not woken");
    };
    view.machines[0].state = "started".to_owned();
    view.revision += 1;
    let outcome = StartOutcome::Started { run: 1 };
    world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
    world.send(ToProxy::App(view.clone())).await;
}

/// One beat that wakes the Machine; for how long nobody had used it when it slept again.
async fn beat_asleep(world: &mut World, view: &mut AppView, caller: &mut TcpStream) -> Duration {
    clock::advance(INTERVAL);
    ask(caller).await;
    wake(world, view).await;
    answered(caller).await;
    sleep(world, view).await
}
