//! What the server hears when it asks whom an app is awake for.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::spawn_local;

use super::world::*;
use crate::control::{FromProxy, Live, LiveCaller, Source, ToProxy};

/// Answers `/answered`, changes the protocol at `/ws`, and lets all others wait.
async fn program() -> u16 {
    machine(|mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let answer: &[u8] = match head.split([' ', '?']).nth(1) {
                Some("/answered") => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                Some("/ws") => {
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
                }
                _ => b"",
            };
            stream.write_all(answer).await.expect("the proxy reads");
        }
    })
    .await
}

async fn ask(world: &mut World, name: &str, callers_max: u32) -> Option<Live> {
    let question = ToProxy::Live { app: name.to_owned(), token: 7, callers_max };
    world.send(question).await;
    loop {
        if let FromProxy::Live { token, live } = world.heard().await {
            assert_eq!(token, 7);
            return live.map(|live| *live);
        }
    }
}

/// Asks until it is so.
async fn until(world: &mut World, callers_max: u32, is_so: impl Fn(&Live) -> bool) -> Live {
    loop {
        let live = ask(world, APP, callers_max).await.expect("the app is there");
        if is_so(&live) {
            return live;
        }
        tokio::task::yield_now().await;
    }
}

async fn send(world: &World, path: &str, more: &str) -> TcpStream {
    let mut caller = world.connect().await;
    let request = format!("GET {path}?secret=1 HTTP/1.1\r\nHost: app.flycast\r\n{more}\r\n");
    caller.write_all(request.as_bytes()).await.expect("the proxy reads");
    caller
}

fn request(caller: &LiveCaller) -> (&str, &str) {
    (caller.what.as_str(), caller.cause.request.as_deref().unwrap_or(""))
}

#[test]
fn each_kind_of_connection_is_told_while_it_is_load_and_who_only_is_connected_is_not() {
    run(|mut world| async move {
        world.publish(app("started", program().await)).await;
        let mut kept = send(&world, "/answered", "").await;
        read_head(&mut kept).await.expect("an answer comes");
        let unused = until(&mut world, 9, |live| live.machines[0].load == 0).await;
        assert!(unused.callers.is_empty(), "{unused:?}");
        let left = unused.machines[0].sleeps_in_ms.expect("it sleeps by itself");
        assert!(left <= 60_000, "{left}");

        let request_caller = send(&world, "/slow", "").await;
        until(&mut world, 9, |live| live.machines[0].load == 1).await;
        let upgrade = "Connection: Upgrade\r\nUpgrade: x\r\n";
        let mut socket = send(&world, "/ws", upgrade).await;
        read_head(&mut socket).await.expect("an answer comes");
        until(&mut world, 9, |live| live.machines[0].load == 2).await;
        let raw = TcpStream::connect(world.raw).await.expect("the proxy listens");
        let used = until(&mut world, 9, |live| live.machines[0].load == 3).await;
        let all: Vec<_> = used.callers.iter().map(request).collect();
        assert_eq!(all, [("request", "GET /slow"), ("upgraded", "GET /ws"), ("connection", "")]);
        assert_eq!((used.more, used.machines[0].sleeps_in_ms), (0, None));
        let first = &used.callers[0].cause;
        assert_eq!((&first.source, first.dest.port()), (&Source::Host, 80));
        assert_eq!(Some(first.caller_port), request_caller.local_addr().ok().map(|at| at.port()));

        drop((request_caller, socket, raw));
        let gone = until(&mut world, 9, |live| live.machines[0].load == 0).await;
        assert!(gone.callers.is_empty(), "{gone:?}");
        assert_eq!(ask(&mut world, "nobody", 9).await, None);
    });
}

#[test]
fn streams_of_http2_and_sessions_of_udp_are_told() {
    run(|mut world| async move {
        let mut view = app("started", program().await);
        view.machines[0].services[1].protocol = "udp".to_owned();
        let program = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        view.machines[0].services[1].internal_port =
            program.local_addr().expect("it is bound").port();
        world.publish(view).await;
        let (client, connection) =
            h2::client::handshake(world.connect().await).await.expect("it speaks HTTP/2");
        spawn_local(connection);
        let mut ready = client.ready().await.expect("the connection is there");
        let mut answers = Vec::new();
        for path in ["http://app.flycast/a", "http://app.flycast/b"] {
            let request = http::Request::get(path).body(()).expect("it is one");
            ready = ready.ready().await.expect("there is room");
            answers.push(ready.send_request(request, true).expect("it goes out"));
        }
        let used = until(&mut world, 9, |live| live.machines[0].load == 2).await;
        assert_eq!((used.callers.len(), used.callers[0].streams), (1, 2), "{used:?}");
        assert_eq!(used.callers[0].what, "http2");

        let caller = UdpSocket::bind("[::1]:0").await.expect("a port");
        caller.connect(world.udp).await.expect("an address");
        caller.send(b"hello").await.expect("it goes out");
        let used = until(&mut world, 9, |live| live.machines[0].load == 3).await;
        let what: Vec<_> = used.callers.iter().map(|caller| caller.what.as_str()).collect();
        assert_eq!(what, ["http2", "session"]);
        drop(answers);
    });
}

#[test]
fn of_many_callers_those_who_are_there_for_longest_are_told_and_the_others_counted() {
    run(|mut world| async move {
        world.publish(app("started", program().await)).await;
        let first = send(&world, "/first", "").await;
        until(&mut world, 1, |live| live.callers.len() == 1).await;
        let mut others = Vec::new();
        for _ in 0..1_300 {
            others.push(send(&world, "/later", "").await);
        }
        let full = until(&mut world, 3, |live| live.more == 1_298).await;
        assert_eq!(full.callers.len(), 3);
        assert_eq!(request(&full.callers[0]), ("request", "GET /first"));
        assert!(full.callers.windows(2).all(|two| two[1].age_ms <= two[0].age_ms), "{full:?}");
        let none = ask(&mut world, APP, 0).await.expect("the app is there");
        assert_eq!((none.callers.len(), none.more), (0, 1_301));
        drop(first);
    });
}

#[test]
fn who_waits_for_a_start_is_told_although_nothing_is_awake() {
    run(|mut world| async move {
        world.publish(app("stopped", program().await)).await;
        let mut caller = send(&world, "/held", "").await;
        let held = until(&mut world, 9, |live| live.waiting == 1).await;
        assert!(held.machines.is_empty(), "{held:?}");
        assert_eq!(request(&held.callers[0]), ("request", "GET /held"));
        caller.shutdown().await.expect("it is open");
        until(&mut world, 9, |live| live.waiting == 0).await;
        // Whatever the proxy said, if it did.
        let _all = caller.read_to_end(&mut Vec::new()).await.is_ok();
    });
}

#[test]
fn what_keeps_it_awake_beside_load_is_told_with_its_word() {
    run(|mut world| async move {
        let mut view = app("started", 1);
        for service in &mut view.machines[0].services {
            service.min_machines_running = 1;
        }
        world.publish(view.clone()).await;
        let reasons = |live: &Live| {
            let all = live.machines[0].reasons.iter().map(|reason| reason.kind.clone());
            all.collect::<Vec<_>>()
        };
        let kept = until(&mut world, 9, |live| !live.machines.is_empty()).await;
        assert_eq!(reasons(&kept), ["min_machines_running"]);
        view.machines[0].leased = true;
        view.revision += 1;
        world.publish(view).await;
        let held = until(&mut world, 9, |live| reasons(live) == ["held"]).await;
        assert_eq!(held.machines[0].sleeps_in_ms, None);
    });
}
