//! Servers that come and go.

use std::os::unix::net::UnixStream;

use super::world::*;
use crate::control::{
    Autostop, FromProxy, Handover, HandoverError, LINE_BYTES_MAX, Link, Listeners, ThawedRun,
    ToProxy,
};

#[test]
fn a_new_server_gets_the_listeners_and_is_asked_again_for_what_is_needed() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        tokio::io::AsyncWriteExt::write_all(&mut caller, GET.as_bytes()).await.expect("it reads");
        assert!(matches!(world.heard().await, FromProxy::Start { .. }));
        let (link, listeners) = Link::connect(&world.control).await.expect("the proxy listens");
        let tcp6 = listeners.into_iter().find(|(name, _)| name == "proxy-tcp6").expect("it came");
        let copy = std::net::TcpListener::from(tcp6.1);
        assert_eq!(copy.local_addr().expect("it is bound"), world.http);
        world.link = link;
        world.send(settings_with(|_| {})).await;
        world.publish(view.clone()).await;
        world.start(view, 0).await;
        assert!(read_all(&mut caller).await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn what_runs_is_served_while_no_server_is_there_and_apps_not_named_again_are_gone() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        world.publish(app("started", port)).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        let (link, _listeners) = Link::connect(&world.control).await.expect("the proxy listens");
        drop(std::mem::replace(&mut world.link, link));
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        world.send(ToProxy::SnapshotEnd).await;
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let mut stream = world.connect().await;
        let gone = tokio::io::AsyncReadExt::read_u8(&mut stream).await.expect_err("it is gone");
        assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn an_app_that_fits_into_no_message_is_gone_and_the_others_are_served_on() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let view = app("started", port);
        world.publish(view.clone()).await;
        let mut long = view.clone();
        long.machines[0].metadata.insert("k".to_owned(), "v".repeat(LINE_BYTES_MAX));
        let (mut sender, receiver) = world.link.into_split();
        sender.send_app(long).await.expect("the connection goes on");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let mut stream = tokio::net::TcpStream::connect(world.http).await.expect("it listens");
        let gone = tokio::io::AsyncReadExt::read_u8(&mut stream).await.expect_err("it is gone");
        assert_eq!(gone.kind(), std::io::ErrorKind::ConnectionReset);
        sender.send_app(view).await.expect("the connection goes on");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let mut stream = tokio::net::TcpStream::connect(world.http).await.expect("it listens");
        tokio::io::AsyncWriteExt::write_all(&mut stream, GET.as_bytes()).await.expect("it reads");
        assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
        drop((sender, receiver));
    });
}

#[test]
fn a_suspended_machine_is_thawed_here_and_every_server_hears_of_it_until_one_answers() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let mut view = app("suspended", port);
        view.machines[0].run = 4;
        view.machines[0].services.iter_mut().for_each(|s| s.autostop = Autostop::Suspend);
        let freezer = tempfile::NamedTempFile::new().expect("a file");
        world.send(ToProxy::App(view.clone())).await;
        let (mut sender, receiver) = world.link.into_split();
        hand_over(&mut sender, freezer.as_file(), 4).await;
        sender.send(&ToProxy::SnapshotEnd).await.expect("the proxy reads");
        // Both arrive before the proxy hears that the server is gone.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        drop((sender, receiver));
        let mut caller = tokio::net::TcpStream::connect(world.http).await.expect("it listens");
        tokio::io::AsyncWriteExt::write_all(&mut caller, GET.as_bytes()).await.expect("it reads");
        let answer = read_all(&mut caller).await;
        assert!(answer.contains("\r\nPerch-Wake: thaw;dur="), "{answer}");
        assert_eq!(std::fs::read(freezer.path()).expect("readable"), b"0");

        let (link, _listeners) = Link::connect(&world.control).await.expect("the proxy listens");
        let thawed = [ThawedRun { machine: MACHINE.to_owned(), run: 4 }];
        assert_eq!((link.thaws(), link.thawed()), (true, &thawed[..]));
        world.link = link;
        let FromProxy::Start { attempt, thawed: Some(thaw), .. } = world.heard().await else {
            panic!("it is not told of the thaw");
        };
        assert_eq!(thaw.run, 4);
        let outcome = crate::control::StartOutcome::Started { run: 4 };
        let machine = MACHINE.to_owned();
        world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
        world.publish(view).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let (link, _listeners) = Link::connect(&world.control).await.expect("the proxy listens");
        assert_eq!(link.thawed(), []);
    });
}

async fn hand_over(sender: &mut crate::control::LinkSender, file: &std::fs::File, run: u64) {
    use std::os::fd::AsFd;
    let inode = rustix::fs::fstat(file).expect("a file").st_ino;
    let (machine, thaw) = (MACHINE.to_owned(), "0".to_owned());
    let message = ToProxy::Freezer { machine, run, thaw, inode, cpu: false };
    sender.send_with(&message, &[file.as_fd()]).await.expect("the proxy reads");
}

#[test]
fn a_drain_is_answered_when_the_last_request_has_ended() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.expect("it reads");
        })
        .await;
        world.publish(app("started", port)).await;
        let mut caller = world.connect().await;
        tokio::io::AsyncWriteExt::write_all(&mut caller, GET.as_bytes()).await.expect("it reads");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let machine = MACHINE.to_owned();
        world.send(ToProxy::Drain { machine, run: 1, token: 5, timeout_ms: 5000 }).await;
        let drained = world.heard().await;
        let machine = MACHINE.to_owned();
        assert_eq!(drained, FromProxy::Drained { machine, token: 5, in_flight: 0 });
        assert!(read_all(&mut caller).await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_handover_brings_all_sockets_in_their_order() {
    let udp = || std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let tcp = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let (tcp6, forward_v6) = (tcp(), udp());
    let (tcp6_at, forward_at) = (tcp6.local_addr(), forward_v6.local_addr());
    let listeners = Listeners {
        tcp6: tcp6.into(),
        tcp4: tcp().into(),
        udp6: udp().into(),
        dns_udp: udp().into(),
        dns_tcp: tcp().into(),
        forward_v4: udp().into(),
        forward_v6: forward_v6.into(),
        forward_tcp_v4: udp().into(),
        forward_tcp_v6: udp().into(),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let control = std::os::unix::net::UnixListener::bind(&path).expect("the path is free");
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    Handover { listeners, control }.send(&ours).expect("the other side is there");
    let stdin = std::os::fd::AsFd::as_fd(&theirs);
    let received = Handover::receive(stdin).expect("it was sent");
    let tcp6 = std::net::TcpListener::from(received.listeners.tcp6);
    assert_eq!(tcp6.local_addr().ok(), tcp6_at.ok());
    let forward_v6 = std::net::UdpSocket::from(received.listeners.forward_v6);
    assert_eq!(forward_v6.local_addr().ok(), forward_at.ok());
    let control = received.control.local_addr().expect("it is bound");
    assert_eq!(control.as_pathname(), Some(path.as_path()));
    drop(ours);
    assert!(matches!(Handover::receive(stdin), Err(HandoverError::Closed)));
}
