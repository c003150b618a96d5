//! What a Machine does not take of what its caller sends.

use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::sleeper::napping;
use super::world::*;
use crate::control::{AppView, FromProxy};
use crate::pipe;

/// Says something when it is told to, and reads only when it is told again; then it has the last word.
async fn reads_late() -> (u16, Rc<Semaphore>) {
    let told = Rc::new(Semaphore::new(0));
    let tell = Rc::clone(&told);
    let port = machine(move |mut stream| {
        let told = Rc::clone(&told);
        async move {
            told.acquire().await.expect("it is open").forget();
            stream.write_all(b"x").await.expect("the proxy reads");
            told.acquire().await.expect("it is open").forget();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("it ends well");
            stream.write_all(b"y").await.expect("the proxy reads");
            std::future::pending::<()>().await;
        }
    })
    .await;
    (port, tell)
}

/// A caller who has sent more than its Machine takes, and is owed nothing.
async fn full(world: &mut World) -> (AppView, TcpStream, Rc<Semaphore>) {
    let (port, tell) = reads_late().await;
    let view = napping(port);
    world.publish(view.clone()).await;
    let mut caller = TcpStream::connect(world.raw).await.expect("the proxy listens");
    // Twice: on a busy machine nobody may have had a turn for a while.
    fill(&mut caller).await;
    fill(&mut caller).await;
    tell.add_permits(1);
    assert_eq!(caller.read_u8().await.expect("the Machine speaks"), b'x');
    (view, caller, tell)
}

/// Lets the Machine have all of it.
async fn take(caller: &mut TcpStream, tell: &Semaphore) {
    caller.shutdown().await.expect("it is open");
    tell.add_permits(1);
    assert_eq!(caller.read_u8().await.expect("the Machine has read all"), b'y');
}

#[test]
fn a_machine_stays_awake_until_it_has_taken_what_it_was_sent() {
    for copies in [false, true] {
        run(|mut world| async move {
            let taken = if copies { pipe::take_all() } else { Vec::new() };
            let (_, mut caller, tell) = full(&mut world).await;
            world.hears_nothing().await;
            take(&mut caller, &tell).await;
            assert!(matches!(world.heard().await, FromProxy::Stop { .. }), "it rests at last");
            drop(taken);
        });
    }
}

#[test]
fn what_a_machine_has_not_taken_wakes_it_whoever_has_put_it_to_sleep() {
    run(|mut world| async move {
        let (mut view, mut caller, tell) = full(&mut world).await;
        world.show(&mut view, "suspended").await;
        world.thaw(&mut view).await;
        take(&mut caller, &tell).await;
    });
}
