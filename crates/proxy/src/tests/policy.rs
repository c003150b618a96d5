//! Rules about callers: who may call, and who may wake.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http2::{ask, client, request};
use super::world::*;
use crate::control::{AllowView, AppView, FromProxy, NoteKind};

fn rule(from: &[&str], paths: &[&str], then: &str) -> AllowView {
    let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
    AllowView { from: texts(from), methods: Vec::new(), paths: texts(paths), then: then.to_owned() }
}

/// The test's calls are the host's.
fn guard(mut view: AppView, rules: &[AllowView]) -> AppView {
    for service in &mut view.machines[0].services {
        service.allow = rules.to_vec();
    }
    view
}

async fn publish(world: &mut World, view: AppView) {
    world.send(settings_with(|settings| settings.notes = true)).await;
    world.publish(view).await;
}

/// Fails if anything but a refusal is heard first.
async fn refusal(world: &mut World) -> String {
    let heard = world.heard().await;
    match heard {
        FromProxy::Note(note) if note.kind == NoteKind::Refusal => {
            assert!(note.cause.is_some(), "{note:?}");
            note.reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_is_refused_gets_403_with_the_reason_and_wakes_nobody() {
    run(|mut world| async move {
        publish(&mut world, guard(app("stopped", 1), &[rule(&["app:web"], &[], "wake")])).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(answer.contains("refuse this call of the host: no rule fits"), "{answer}");
        let reason = refusal(&mut world).await;
        assert!(answer.ends_with(&format!("{reason}\n")), "{reason}");
    });
}

#[test]
fn who_may_wake_wakes_and_the_path_decides() {
    run(|mut world| async move {
        let rules = [rule(&["host"], &["/path"], "wake"), rule(&[], &[], "refuse")];
        let view = guard(app("stopped", machine(echo_heads).await), &rules);
        publish(&mut world, view.clone()).await;
        let other = GET.replace("/path?q", "/other");
        assert!(world.ask(&other).await.contains("by rule 2"));
        refusal(&mut world).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        world.start(view, 0).await;
        assert!(read_all(&mut caller).await.starts_with("HTTP/1.1 200"));
        for odd in ["//path", "/x/../path", "/%70ath"] {
            let answer = world.ask(&GET.replace("/path?q", odd)).await;
            assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("two ways"), "{answer}");
        }
    });
}

#[test]
fn who_is_served_only_if_somebody_is_awake_wakes_nobody_and_keeps_nobody_awake() {
    run(|mut world| async move {
        let rules = [rule(&["host"], &[], "serve-if-awake")];
        let mut view = guard(app("stopped", machine(echo_heads).await), &rules);
        for service in &mut view.machines[0].services {
            service.auto_stop_after_ms = 400;
        }
        publish(&mut world, view.clone()).await;
        let answer = world.ask(GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: "),
            "{answer}"
        );
        assert!(answer.contains("let this caller wake none"), "{answer}");
        assert!(refusal(&mut world).await.contains("wake none"));
        (view.machines[0].run, view.machines[0].state) = (1, "started".to_owned());
        view.revision += 1;
        world.publish(view).await;
        let stops = async {
            loop {
                if let FromProxy::Stop { .. } = heard_of(&mut world.link).await {
                    return;
                }
            }
        };
        let http = world.http;
        let calls = async {
            let mut answered = 0;
            loop {
                let mut stream = tokio::net::TcpStream::connect(http).await.expect("it listens");
                stream.write_all(GET.as_bytes()).await.expect("it reads");
                answered += u32::from(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
                tokio::time::sleep(Duration::from_millis(20)).await;
                if 1_000_000 < answered {
                    return;
                }
            }
        };
        tokio::select! {
            () = stops => {}
            () = calls => {}
        }
    });
}

#[test]
fn who_may_wake_nobody_wakes_no_machine_that_speaks_http2_either() {
    run(|mut world| async move {
        let mut view = guard(app("stopped", 1), &[rule(&["host"], &[], "serve-if-awake")]);
        view.machines[0].services[0].ports[0].h2_backend = true;
        publish(&mut world, view).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        refusal(&mut world).await;
    });
}

async fn heard_of(link: &mut crate::control::Link) -> FromProxy {
    link.recv().await.expect("the proxy lives")
}

#[test]
fn a_raw_caller_who_is_refused_is_cut_off_before_anybody_wakes() {
    run(|mut world| async move {
        let rules = [rule(&["host"], &["/"], "wake"), rule(&["app:web"], &[], "wake")];
        publish(&mut world, guard(app("stopped", 1), &rules)).await;
        let mut raw = tokio::net::TcpStream::connect(world.raw).await.expect("the proxy listens");
        assert!(raw.read(&mut [0; 8]).await.is_err(), "it is reset");
        assert!(refusal(&mut world).await.contains("no rule fits"), "raw bytes have no path");
    });
}

#[test]
fn each_stream_of_http2_is_judged_by_its_own_path() {
    run(|mut world| async move {
        let rules =
            [rule(&["host"], &["/path"], "wake"), rule(&["host"], &["/idle"], "serve-if-awake")];
        let view = guard(app("stopped", machine(echo_heads).await), &rules);
        publish(&mut world, view.clone()).await;
        let (client, _) = client(&world).await;
        let (answer, text) = ask(&client, request("GET", "/other")).await;
        assert!(answer.status() == 403 && text.contains("the host: no rule fits"), "{text}");
        assert!(text.contains(&refusal(&mut world).await), "{text}");
        let (answer, text) = ask(&client, request("GET", "/idle")).await;
        assert!(answer.status() == 503 && text.contains("wake none"), "{text}");
        refusal(&mut world).await;
        let waking = async { ask(&client, request("GET", "/path")).await.0.status() };
        let (status, ()) = tokio::join!(waking, start(&mut world.link, view, 0));
        assert_eq!(status, 200);
        assert_eq!(ask(&client, request("GET", "/idle")).await.0.status(), 200);
        assert_eq!(ask(&client, request("GET", "/other")).await.0.status(), 403);
    });
}

#[test]
fn datagrams_of_who_is_refused_wake_nobody_and_reach_nobody() {
    for (from, woken) in [("app:web", false), ("host", true)] {
        run(|mut world| async move {
            let program = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            let port = program.local_addr().expect("it is bound").port();
            let mut view = guard(app("stopped", port), &[rule(&[from], &[], "wake")]);
            view.machines[0].services[1].protocol = "udp".to_owned();
            publish(&mut world, view.clone()).await;
            let caller = tokio::net::UdpSocket::bind("[::1]:0").await.expect("a port");
            caller.connect(world.udp).await.expect("an address");
            caller.send(b"hello").await.expect("it goes out");
            if woken {
                world.start(view, 0).await;
                let length = program.recv(&mut [0; 16]).await.expect("it comes");
                assert_eq!(length, 5);
            } else {
                assert!(refusal(&mut world).await.contains("no rule fits"));
                (view.machines[0].run, view.machines[0].state) = (1, "started".to_owned());
                view.revision += 1;
                world.publish(view).await;
                caller.send(b"again").await.expect("it goes out");
                let quiet = Duration::from_millis(300);
                let heard = tokio::time::timeout(quiet, program.recv(&mut [0; 16])).await;
                assert!(heard.is_err(), "{heard:?}");
            }
        });
    }
}

#[test]
fn a_service_may_want_the_first_byte_before_it_wakes() {
    run(|mut world| async move {
        let greets = |mut stream: tokio::net::TcpStream| async move {
            let byte = stream.read_u8().await.expect("the caller's byte comes");
            stream.write_u8(byte + 1).await.expect("it reads");
        };
        let mut view = app("stopped", machine(greets).await);
        view.machines[0].services[1].first_byte = true;
        world.publish(view.clone()).await;
        let silent = tokio::net::TcpStream::connect(world.raw).await.expect("the proxy listens");
        let leaves = tokio::net::TcpStream::connect(world.raw).await.expect("the proxy listens");
        drop(leaves);
        let quiet = Duration::from_millis(300);
        let heard = tokio::time::timeout(quiet, world.heard()).await;
        assert!(heard.is_err(), "{heard:?}");
        let mut speaks = silent;
        speaks.write_u8(4).await.expect("the proxy reads");
        world.start(view, 0).await;
        assert_eq!(speaks.read_u8().await.expect("an answer comes"), 5);
    });
}

#[test]
fn rules_of_machines_that_differ_all_count() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let mut view = guard(app("started", port), &[rule(&["app:web"], &[], "wake")]);
        let mut other = app("started", port).machines.remove(0);
        other.id = "00000000000002".to_owned();
        other.private_ip = "fdaa:0:7:a7b:9:9:9:3".parse().expect("an address");
        view.machines.insert(0, other);
        publish(&mut world, view).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 403"));
    });
}

#[test]
fn a_rule_that_cannot_be_read_refuses() {
    run(|mut world| async move {
        let rules = [rule(&["tribe:x"], &[], "wake"), rule(&[], &[], "wake")];
        publish(&mut world, guard(app("started", 1), &rules)).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 403"));
    });
}
