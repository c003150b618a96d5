//! Callers that take places from others.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::world::*;
use crate::control::{AddressKind, AppView, FromProxy, ToProxy};

const KEEP: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// Longer than a connection must be idle to be closed for another.
const IDLE: Duration = Duration::from_millis(80);

/// Connects from this address of loopback.
pub(super) async fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    try_from(last, to).await.expect("there is a place")
}

async fn try_from(last: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    let from = SocketAddr::new(Ipv4Addr::new(127, 0, 9, last).into(), 0);
    socket.bind(from).expect("all of 127/8 is ours");
    socket.connect(to).await
}

/// An app whose Machine calls from the first of those addresses.
pub(super) fn caller() -> AppView {
    let mut caller = app("started", 1);
    caller.name = "caller".to_owned();
    caller.addresses.clear();
    caller.machines[0].id = "00000000000009".to_owned();
    caller.machines[0].link_ip = Ipv4Addr::new(127, 0, 9, 1);
    caller.machines[0].private_ip = "fdaa:0:7::9".parse().expect("an address");
    caller
}

async fn ask(stream: &mut TcpStream) {
    stream.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
    let (head, _) = read_response(stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
}

/// The reset comes with the connection or right after it.
async fn check_refused(connected: std::io::Result<TcpStream>) {
    let error = match connected {
        Ok(mut stream) => stream.read_u8().await.expect_err("there is no place for it"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn one_caller_has_a_share_of_all_places_and_others_have_the_rest() {
    run(|_| async {
        let mut world = World::with_places(40).await;
        world.publish(app("started", machine(echo_heads).await)).await;
        let mut greedy = Vec::new();
        for _ in 0..60 {
            greedy.push(try_from(1, world.raw).await);
        }
        let mut other = connect_from(2, world.http).await;
        ask(&mut other).await;
        for beyond in greedy.drain(10..) {
            check_refused(beyond).await;
        }
    });
}

#[test]
fn a_machine_has_as_many_connections_as_it_may_have_and_others_are_not_counted() {
    run(|_| async {
        let mut world = World::with_places(40).await;
        let limited = settings_with(|settings| {
            (settings.caller_connections_max, settings.notes) = (3, true);
        });
        world.send(limited).await;
        world.send(ToProxy::App(app("started", machine(echo_heads).await))).await;
        world.publish(caller()).await;
        // All of it is known when this is answered.
        ask(&mut connect_from(3, world.http).await).await;
        let mut greedy = Vec::new();
        for _ in 0..5 {
            greedy.push(try_from(1, world.raw).await);
        }
        let mut others = Vec::new();
        for _ in 0..8 {
            others.push(connect_from(2, world.raw).await);
        }
        for beyond in greedy.drain(3..) {
            check_refused(beyond).await;
        }
        let told = loop {
            if let FromProxy::Note(note) = world.heard().await {
                break note.reason;
            }
        };
        assert!(told.contains("as many connections as it may have"), "{told}");
    });
}

#[test]
fn one_app_has_half_of_all_places_and_its_idle_connections_make_room_for_its_next_ones() {
    run(|_| async {
        let mut world = World::with_places(16).await;
        world.publish(app("started", machine(echo_heads).await)).await;
        let mut first = connect_from(1, world.http).await;
        ask(&mut first).await;
        let mut raw = Vec::new();
        for n in 0..7 {
            raw.push(connect_from(n / 3 + 1, world.raw).await);
        }
        tokio::time::sleep(IDLE).await;
        let _next = connect_from(4, world.raw).await;
        assert_eq!(read_all(&mut first).await, "", "it was idle");
        check_refused(try_from(4, world.raw).await).await;
    });
}

#[test]
fn who_asks_in_vain_for_more_places_does_not_keep_others_from_theirs() {
    run(|_| async {
        let mut world = World::with_places(32).await;
        world.publish(app("started", machine(echo_heads).await)).await;
        let mut busy = Vec::new();
        for _ in 0..8 {
            busy.push(connect_from(1, world.raw).await);
        }
        let mut idle = Vec::new();
        for _ in 0..8 {
            let mut stream = connect_from(2, world.http).await;
            ask(&mut stream).await;
            idle.push(stream);
        }
        tokio::time::sleep(IDLE).await;
        // Nothing of it is idle.
        check_refused(try_from(1, world.raw).await).await;
        ask(&mut connect_from(2, world.http).await).await;
    });
}

#[test]
fn the_longest_idle_connection_of_a_caller_makes_room_for_its_next_one() {
    run(|_| async {
        let mut world = World::with_places(8).await;
        world.publish(app("started", machine(echo_heads).await)).await;
        let (mut old, mut young) =
            (connect_from(1, world.http).await, connect_from(1, world.http).await);
        ask(&mut young).await;
        ask(&mut old).await;
        tokio::time::sleep(IDLE).await;
        ask(&mut young).await;
        let mut next = connect_from(1, world.http).await;
        ask(&mut next).await;
        assert_eq!(read_all(&mut old).await, "", "it was idle longest");
        ask(&mut young).await;
    });
}

#[test]
fn when_all_places_are_taken_the_longest_idle_connections_are_closed() {
    run(|_| async {
        let mut world = World::with_places(8).await;
        let mut view = app("started", machine(echo_heads).await);
        // Which app is meant is not known before somebody asks: none has a share.
        view.addresses[0].kind = AddressKind::Shared;
        world.publish(view).await;
        let mut silent = Vec::new();
        for n in 0..8 {
            silent.push(connect_from(n / 2 + 1, world.http).await);
        }
        let mut other = connect_from(9, world.http).await;
        other.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
        // Silent connections make room.
        read_response(&mut other).await;
    });
}

#[test]
fn requests_under_way_are_never_closed_for_others() {
    run(|_| async {
        let mut world = World::with_places(8).await;
        let port = machine(|mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                tokio::time::sleep(4 * IDLE).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(answer).await.expect("the proxy reads");
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let mut busy = [connect_from(1, world.http).await, connect_from(1, world.http).await];
        for stream in &mut busy {
            stream.write_all(KEEP.as_bytes()).await.expect("the proxy reads");
        }
        tokio::time::sleep(2 * IDLE).await;
        check_refused(try_from(1, world.http).await).await;
        for stream in &mut busy {
            let (head, _) = read_response(stream).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        }
    });
}
