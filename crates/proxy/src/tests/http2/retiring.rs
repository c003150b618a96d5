//! Streams at a proxy that has a successor.

use std::pin::pin;

use tokio::io::AsyncWriteExt;

use super::super::world::*;
use super::frames::*;
use super::half_silent;
use crate::control::{FromProxy, ToProxy};

fn get(stream: u32, path: &str) -> Vec<u8> {
    let head =
        [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "app.flycast")];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(&head))
}

/// `:status 200`, as the static table of HPACK has it (RFC 7541, appendix A).
fn is_200(frame: &Frame) -> bool {
    frame.kind == HEADERS && frame.payload.first() == Some(&(0x80 | 8))
}

#[test]
fn streams_that_come_before_its_goaway_is_understood_are_served() {
    run(|mut world| async move {
        world.publish(app("started", half_silent().await)).await;
        let mut caller = world.connect().await;
        greet(&mut caller).await;
        let both = [get(1, "/silent"), get(3, "/")].concat();
        caller.write_all(&both).await.expect("the proxy reads");
        let answer = verdict(&mut caller, 3).await.expect("it is answered");
        assert!(is_200(&answer), "{answer:?}");
        let World { running, link, .. } = &mut world;
        let mut done = pin!(running.retire());
        let rest = async {
            let retire = ToProxy::Retire { bound_ms: 3_600_000 };
            link.send(&retire).await.expect("the proxy reads");
            while !matches!(link.recv().await, Ok(FromProxy::Retired { left: 1 })) {}
            let farewell = verdict(&mut caller, 5).await.expect("it is told");
            assert_eq!((farewell.kind, farewell.code()), (GOAWAY, 0));
            for stream in [5, 7] {
                caller.write_all(&get(stream, "/")).await.expect("the proxy reads");
                let answer = verdict(&mut caller, stream).await.expect("it is answered");
                assert!(is_200(&answer), "{answer:?}");
            }
        };
        tokio::select! {
            _ = &mut done => panic!("a stream is under way"),
            () = rest => {}
        }
        drop(caller);
        assert_eq!(done.await, crate::server::Retired::Empty);
    });
}
