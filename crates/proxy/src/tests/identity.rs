//! Who calls, as Machines are told.

use std::time::Duration;

use perch_core::base64::decode_base64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::*;
use crate::clock;
use crate::control::{AddressKind, AppView, SigningSeed, ToProxy};

const SEED: [u8; 32] = [0x5a; 32];

fn seed() -> SigningSeed {
    SigningSeed("5a".repeat(32))
}

/// A proxy with a key, before an app whose Machine tells what it has heard.
async fn publish(world: &mut World, change: impl FnOnce(&mut AppView)) {
    world.send(settings_with(|settings| settings.source_key = Some(seed()))).await;
    let mut view = app("started", machine(echo_heads).await);
    change(&mut view);
    world.publish(view).await;
}

/// All values of a field of a head.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

/// Who calls, by a head whose signature is good.
fn caller(head: &str) -> String {
    let (source, signature) = (values(head, "Fly-Src"), values(head, "Fly-Src-Signature"));
    let ([source], [signature]) = (source.as_slice(), signature.as_slice()) else {
        panic!("one of each: {head}");
    };
    let key = Ed25519KeyPair::from_seed_unchecked(&SEED).expect("a seed");
    let key = UnparsedPublicKey::new(&ED25519, key.public_key().as_ref());
    let signature = decode_base64(signature).expect("base64");
    key.verify(source.as_bytes(), &signature).expect("the signature is good");
    let (who, second) = source.rsplit_once(";ts=").expect("a time");
    let age = clock::unix_secs() - second.parse::<u64>().expect("seconds");
    assert!(age < 30, "{head}");
    who.to_owned()
}

#[test]
fn a_machine_hears_which_machine_calls_and_no_copies_of_callers() {
    run(|mut world| async move {
        world.send(settings_with(|settings| settings.host_peers = Vec::new())).await;
        publish(&mut world, |view| {
            let std::net::IpAddr::V6(caller) = ip(CALLER) else { panic!("it is IPv6") };
            view.machines[0].private_ip = caller;
        })
        .await;
        world
            .send(settings_with(|settings| {
                (settings.source_key, settings.host_peers) = (Some(seed()), Vec::new());
            }))
            .await;
        let lies = "Fly-Src: instance=x;app=x;org=x;ts=1\r\nfly-SRC-signature: x\r\nFly_Src: x\r\n\
                    FLY_SRC_SIGNATURE: x\r\nConnection: Fly-Src, Fly-Src-Signature, close\r\n\r\n";
        let request = GET.replace("Connection: close\r\n\r\n", lies);
        let answer = world.ask(&request).await;
        assert_eq!(caller(&answer), format!("instance={MACHINE};app={APP};org=personal"));
        assert!(!answer.contains(": x\r\n"), "{answer}");
    });
}

#[test]
fn who_is_no_machine_is_a_peer_and_who_is_unknown_is_nobody() {
    run(|mut world| async move {
        publish(&mut world, |_| {}).await;
        assert_eq!(caller(&world.ask(GET).await), "peer=host;org=personal");
        world
            .send(settings_with(|settings| {
                (settings.source_key, settings.host_peers) = (Some(seed()), Vec::new());
            }))
            .await;
        let answer = until(&world, |answer| values(answer, "Fly-Src").is_empty()).await;
        assert!(values(&answer, "Fly-Src-Signature").is_empty(), "{answer}");
        world.send(settings_with(|_| {})).await;
        until(&world, |answer| values(answer, "Fly-Src").is_empty()).await;
    });
}

/// Asks until an answer is so; what a server says takes effect when it was read.
async fn until(world: &World, is_so: impl Fn(&str) -> bool) -> String {
    loop {
        let answer = world.ask(GET).await;
        if is_so(&answer) {
            return answer;
        }
        tokio::task::yield_now().await;
    }
}

#[test]
fn at_a_public_address_only_who_wants_it_is_named() {
    run(|mut world| async move {
        publish(&mut world, |view| {
            (view.addresses[0].kind, view.addresses[0].network) = (AddressKind::Public, 0);
        })
        .await;
        let answer = world.ask(GET).await;
        assert!(values(&answer, "Fly-Src").is_empty(), "{answer}");
        let asking = GET.replace("Connection", "fly-src-optin: *\r\nConnection");
        assert_eq!(caller(&world.ask(&asking).await), "peer=host;org=personal");
        let not_quite = GET.replace("Connection", "Fly-Src-OptIn: no\r\nConnection");
        assert!(values(&world.ask(&not_quite).await, "Fly-Src").is_empty());
    });
}

#[test]
fn a_request_that_was_held_is_signed_when_it_goes_on() {
    run(|mut world| async move {
        world.send(settings_with(|settings| settings.source_key = Some(seed()))).await;
        let view = app("stopped", machine(echo_heads).await);
        world.publish(view.clone()).await;
        let mut held = world.connect().await;
        let body = format!("Fly-Src: {}\r\n", "x".repeat(200));
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        held.write_all(request.as_bytes()).await.expect("the proxy reads");
        let heard = world.heard().await;
        clock::advance(Duration::from_secs(60));
        let crate::control::FromProxy::Start { machine, attempt, .. } = heard else {
            panic!("{heard:?}");
        };
        let mut view = view;
        (view.machines[0].run, view.machines[0].state) = (1, "started".to_owned());
        view.revision += 1;
        let outcome = crate::control::StartOutcome::Started { run: 1 };
        world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
        world.send(ToProxy::App(view)).await;
        assert_eq!(caller(&read_all(&mut held).await), "peer=host;org=personal");
    });
}

#[test]
fn requests_of_one_connection_are_signed_anew_each_second() {
    run(|mut world| async move {
        publish(&mut world, |_| {}).await;
        let mut stream = world.connect().await;
        let mut seconds = Vec::new();
        for _ in 0..2 {
            let request = GET.replace("Connection: close\r\n", "");
            stream.write_all(request.as_bytes()).await.expect("the proxy reads");
            let (_, head) = read_response(&mut stream).await;
            caller(&head);
            seconds.push(values(&head, "Fly-Src")[0].to_owned());
            clock::advance(Duration::from_secs(40));
        }
        assert_ne!(seconds[0], seconds[1]);
    });
}

/// Writes back what a header of the PROXY protocol's version 2 has behind its first 16 bytes.
async fn echo_header(mut stream: tokio::net::TcpStream) {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await.expect("a header comes");
    let mut facts = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut facts).await.expect("all of it comes");
    stream.write_all(&facts).await.expect("the proxy reads");
}

#[test]
fn a_raw_connection_says_who_calls_by_the_proxy_protocol() {
    run(|mut world| async move {
        let port = machine(echo_header).await;
        world.send(settings_with(|settings| settings.source_key = Some(seed()))).await;
        let mut view = app("started", port);
        let raw = &mut view.machines[0].services[1].ports[0];
        (raw.handlers, raw.proxy_proto_v2) = (vec!["proxy_proto".to_owned()], true);
        world.publish(view).await;
        let mut stream = tokio::net::TcpStream::connect(world.raw).await.expect("it listens");
        let mut facts = Vec::new();
        stream.read_to_end(&mut facts).await.expect("it comes");
        // Behind two addresses of IPv6 and two ports.
        let mut rest = &facts[36..];
        let mut head = String::new();
        for (kind, name) in [(0xe0, "Fly-Src"), (0xe1, "Fly-Src-Signature")] {
            let length = usize::from(u16::from_be_bytes([rest[1], rest[2]]));
            assert_eq!(rest[0], kind);
            let value = std::str::from_utf8(&rest[3..3 + length]).expect("text");
            head += &format!("{name}: {value}\r\n");
            rest = &rest[3 + length..];
        }
        assert!(rest.is_empty());
        assert_eq!(caller(&head), "peer=host;org=personal");
    });
}
