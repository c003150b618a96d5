//! UDP services through the whole proxy, on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::spawn_local;

use super::world::*;
use crate::control::{AppView, FromProxy, ToProxy};

/// The app, whose one service is at port 5432 of UDP, beside the HTTP of port 80.
fn view(state: &str, internal_port: u16) -> AppView {
    let mut view = app(state, internal_port);
    view.machines[0].services[1].protocol = "udp".to_owned();
    view
}

async fn caller(world: &World) -> UdpSocket {
    let socket = UdpSocket::bind("[::1]:0").await.expect("a port");
    socket.connect(world.udp).await.expect("an address");
    socket
}

/// A Machine's program that reads UDP, and its port.
async fn program() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let port = socket.local_addr().expect("it is bound").port();
    (socket, port)
}

async fn say(socket: &UdpSocket, text: &str) {
    socket.send(text.as_bytes()).await.expect("it goes out");
}

async fn hear(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).await.expect("something comes");
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
}

/// Answers what comes with itself.
async fn echo(socket: UdpSocket) {
    loop {
        let (text, from) = hear(&socket).await;
        socket.send_to(text.as_bytes(), from).await.expect("it goes out");
    }
}

/// The next line of the app's log that is about lost datagrams.
async fn told_of_loss(world: &mut World) -> String {
    loop {
        match world.link.recv().await.expect("the proxy lives") {
            FromProxy::Log { text, .. } if text.starts_with("lost datagrams") => return text,
            _ => {}
        }
    }
}

/// Until the proxy has read all that was sent: it answers DNS by the same thread.
async fn settle(world: &World) {
    let asker = UdpSocket::bind("[::1]:0").await.expect("a port");
    for _ in 0..4 {
        let question = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x03app\x07flycast\0\0\x1c\0\x01";
        asker.send_to(question, world.dns_udp).await.expect("it goes out");
        hear(&asker).await;
    }
}

#[test]
fn what_comes_while_the_machine_starts_reaches_it_in_order_and_its_answers_come_back() {
    run(|mut world| async move {
        let (program, port) = program().await;
        let view = view("stopped", port);
        world.publish(view.clone()).await;
        let caller = caller(&world).await;
        for text in ["one", "two", "three"] {
            say(&caller, text).await;
        }
        settle(&world).await;
        world.start(view, 0).await;
        let mut peer = None;
        for text in ["one", "two", "three"] {
            let (heard, from) = hear(&program).await;
            assert_eq!(heard, text);
            assert_eq!(*peer.get_or_insert(from), from, "a session has one port");
        }
        program.send_to(b"answer", peer.expect("a peer")).await.expect("it goes out");
        let (answer, from) = hear(&caller).await;
        assert_eq!((answer.as_str(), from), ("answer", world.udp));
        say(&caller, "four").await;
        assert_eq!(hear(&program).await.0, "four");
    });
}

#[test]
fn a_program_that_does_not_listen_yet_loses_nothing() {
    run(|mut world| async move {
        let (placeholder, port) = program().await;
        drop(placeholder);
        world.publish(view("started", port)).await;
        let caller = caller(&world).await;
        say(&caller, "early").await;
        say(&caller, "next").await;
        settle(&world).await;
        let program = UdpSocket::bind(("127.0.0.1", port)).await.expect("nobody else has it");
        assert_eq!(hear(&program).await.0, "early");
        assert_eq!(hear(&program).await.0, "next");
    });
}

#[test]
fn of_a_flood_while_waking_the_first_are_kept_and_the_others_counted() {
    run(|mut world| async move {
        let (program, port) = program().await;
        let view = view("stopped", port);
        world.publish(view.clone()).await;
        let caller = caller(&world).await;
        for number in 0..20 {
            say(&caller, &number.to_string()).await;
        }
        let text = told_of_loss(&mut world).await;
        assert!(text.starts_with("lost datagrams to port"), "{text}");
        assert!(text.contains(" 4 while their Machine woke"), "{text}");
        // The start was asked before; it is another message of the same stream.
        let mut view = view;
        view.machines[0].state = "started".to_owned();
        view.machines[0].run = 1;
        view.revision += 1;
        world.send(ToProxy::App(view)).await;
        for number in 0..16 {
            assert_eq!(hear(&program).await.0, number.to_string());
        }
    });
}

#[test]
fn callers_are_told_apart_and_have_sessions_of_their_own() {
    run(|mut world| async move {
        let (program, port) = program().await;
        world.publish(view("started", port)).await;
        spawn_local(echo(program));
        let (first, second) = (caller(&world).await, caller(&world).await);
        for round in 0..3 {
            say(&first, &format!("a{round}")).await;
            say(&second, &format!("b{round}")).await;
            assert_eq!(hear(&first).await.0, format!("a{round}"));
            assert_eq!(hear(&second).await.0, format!("b{round}"));
        }
    });
}

#[test]
fn a_session_is_load_until_it_has_been_silent() {
    run(|mut world| async move {
        let (program, port) = program().await;
        let mut view = view("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 500);
        world.publish(view).await;
        spawn_local(echo(program));
        let caller = caller(&world).await;
        let pause = Duration::from_millis(100);
        for _ in 0..8 {
            say(&caller, "there").await;
            hear(&caller).await;
            let early = tokio::time::timeout(pause, world.heard()).await;
            assert!(early.is_err(), "it was stopped under load: {early:?}");
        }
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}

#[test]
fn the_next_datagram_of_a_session_goes_to_the_next_run() {
    run(|mut world| async move {
        let (first, port) = program().await;
        let view = view("started", port);
        world.publish(view.clone()).await;
        let caller = caller(&world).await;
        say(&caller, "to the first").await;
        let (_, peer) = hear(&first).await;
        first.send_to(b"answer", peer).await.expect("it goes out");
        hear(&caller).await;
        let (second, port) = program().await;
        let mut view = view;
        view.machines[0].state = "stopped".to_owned();
        view.machines[0].services.iter_mut().for_each(|s| s.internal_port = port);
        view.revision += 1;
        world.send(ToProxy::App(view.clone())).await;
        settle(&world).await;
        say(&caller, "to the second").await;
        world.start(view, 0).await;
        let (text, peer) = hear(&second).await;
        assert_eq!(text, "to the second");
        second.send_to(b"answer", peer).await.expect("it goes out");
        assert_eq!(hear(&caller).await.0, "answer");
    });
}

#[test]
fn sessions_are_limited_for_all_and_for_each_caller_and_what_is_beyond_is_counted() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = tokio::task::LocalSet::new();
    let test = async {
        // A fifteenth of them for sessions, of which a caller has a quarter.
        let mut world = World::with_places(120).await;
        let (program, port) = program().await;
        world.publish(view("started", port)).await;
        spawn_local(echo(program));
        let callers = [caller(&world).await, caller(&world).await, caller(&world).await];
        for caller in &callers {
            say(caller, "hello").await;
        }
        hear(&callers[0]).await;
        hear(&callers[1]).await;
        let text = told_of_loss(&mut world).await;
        assert!(text.contains(" 1 beyond the limit of sessions (8,"), "{text}");
        // The others go on, and places come free.
        say(&callers[0], "again").await;
        assert_eq!(hear(&callers[0]).await.0, "again");
        loop {
            say(&callers[2], "now").await;
            let pause = Duration::from_millis(50);
            if tokio::time::timeout(pause, hear(&callers[2])).await.is_ok() {
                return;
            }
        }
    };
    let test = async { tokio::time::timeout(PATIENCE, test).await };
    local.block_on(&runtime.expect("a runtime"), test).expect("the test does not hang");
}

#[test]
fn a_port_of_tcp_takes_no_datagrams_and_one_of_udp_no_connections() {
    run(|mut world| async move {
        let (program, port) = program().await;
        world.publish(view("started", port)).await;
        let stream = tokio::net::TcpStream::connect(world.raw).await.expect("the proxy listens");
        let mut byte = [0];
        stream.readable().await.expect("it is open");
        let error = stream.try_read(&mut byte).expect_err("no such service");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

        let mut both = app("started", port);
        both.revision = 2;
        world.send(ToProxy::App(both)).await;
        let caller = caller(&world).await;
        say(&caller, "nobody").await;
        settle(&world).await;
        let mut again = view("started", port);
        again.revision = 3;
        world.send(ToProxy::App(again)).await;
        settle(&world).await;
        say(&caller, "somebody").await;
        assert_eq!(hear(&program).await.0, "somebody");
    });
}
