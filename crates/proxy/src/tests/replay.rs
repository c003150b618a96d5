//! Answers that want the request replayed elsewhere (PX-40..52).

use std::cell::Cell;
use std::rc::Rc;

use nix::sys::socket::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::http2;
use super::routing::{OTHER, get, named, two};
use super::world::*;
use crate::control::{AppView, FromProxy, HttpView, SessionView, StartOutcome, ToProxy};

const TARGET: &str = "00000000000009";

/// Always answers so.
async fn says(answer: String) -> u16 {
    machine(move |mut stream| {
        let answer = answer.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

pub(super) fn order(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: 7\r\n\r\nswallow")
}

fn json(body: &str) -> String {
    let length = body.len();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.fly.replay+json\r\n";
    format!("{head}Content-Length: {length}\r\n\r\n{body}")
}

/// An app without addresses, in a network.
pub(super) fn hidden(name: &str, state: &str, internal_port: u16, network: u32) -> AppView {
    let mut view = app(state, internal_port);
    view.name = name.to_owned();
    view.network = network;
    view.addresses.clear();
    view.machines[0].id = TARGET.to_owned();
    view.machines[0].private_ip = "fdaa:0:7:a7b:9:9:9:9".parse().expect("an address");
    view.machines[0].link_ip = [127, 0, 0, 1].into();
    view
}

/// A world whose app always says this, and the app `target` of the same network, which tells what it gets.
async fn ordering(world: &mut World, answer: String) {
    let target = hidden("target", "started", named("target").await, NETWORK);
    world.send(ToProxy::App(target)).await;
    world.publish(app("started", says(answer).await)).await;
}

fn check(answer: &str, by: &str) {
    let is = answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("\r\n\r\n{by} "));
    assert!(is, "{answer}");
    assert!(!answer.contains("swallow"), "the order is not for the caller: {answer}");
}

#[test]
fn another_app_gets_the_request_as_it_was_with_who_sent_it() {
    run_each(|mut world| async move {
        ordering(&mut world, order("Fly-Replay: app=target;state=a=b c")).await;
        let answer = world.ask(&get("x: y\r\nfly-replay-src: forged\r\n")).await;
        check(&answer, "target");
        assert!(
            answer.contains("target GET /path HTTP/1.1\r\n") && answer.contains("\r\nx: y\r\n")
        );
        let source = format!("fly-replay-src: instance={MACHINE};region=lcl;t=");
        assert!(answer.contains(&source) && answer.contains(";state=a=b c\r\n"), "PX-10: {answer}");
        assert!(answer.contains("fly-replay-cache-status: miss\r\n"), "PX-12: {answer}");
        assert!(!answer.contains("forged"), "{answer}");
    });
}

#[test]
fn bodies_that_came_with_the_head_go_along() {
    run(|mut world| async move {
        ordering(&mut world, order("fly-replay: app=target")).await;
        let mut caller = world.connect().await;
        for count in 0..4 {
            let request =
                format!("POST /{count} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi");
            caller.write_all(request.as_bytes()).await.expect("the proxy reads");
            let (head, _) = read_response(&mut caller).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            // The target answers the body's two bytes with nothing: it reads heads.
            let mut caller_is_fresh = world.connect().await;
            std::mem::swap(&mut caller, &mut caller_is_fresh);
        }
    });
}

#[test]
fn the_json_form_changes_the_request() {
    run_each(|mut world| async move {
        let body = r#"{"app":"target","region":"any","transform":{"path":"/new?a=b","delete_headers":["x"],
            "set_headers":[{"name":"authorization","value":"Bearer z"}]}}"#;
        ordering(&mut world, json(body)).await;
        let answer = world.ask(&get("x: y\r\nAuthorization: old\r\n")).await;
        check(&answer, "target");
        assert!(
            answer.to_lowercase().contains("target get /new?a=b http/1.1\r\nhost: app.flycast\r\n"),
            "{answer}"
        );
        assert!(answer.contains("\r\nauthorization: Bearer z\r\n"), "{answer}");
        assert!(!answer.contains("x: y") && !answer.contains("old"), "{answer}");
    });
}

#[test]
fn a_json_order_may_come_in_pieces_and_chunks_but_not_without_end() {
    for (filler, wanted) in [(10, "HTTP/1.1 200"), (100_000, "HTTP/1.1 502")] {
        run_each(|mut world| async move {
            let port = machine(move |mut stream| async move {
                read_head(&mut stream).await.expect("a request");
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.fly.replay+json; x=y\r\n\
                            Transfer-Encoding: chunked\r\n\r\n";
                let text = format!("{{\"app\":\"target\"{}}}", " ".repeat(filler));
                let mut pieces = vec![head.to_owned()];
                pieces.extend(text.as_bytes().chunks(5_000).map(|chunk| {
                    format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk))
                }));
                pieces.push("0\r\n\r\n".to_owned());
                for piece in pieces {
                    if stream.write_all(piece.as_bytes()).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let target = hidden("target", "started", named("target").await, NETWORK);
            world.send(ToProxy::App(target)).await;
            world.publish(app("started", port)).await;
            let answer = world.ask(&get("")).await;
            assert!(answer.starts_with(wanted), "{answer}");
        });
    }
}

#[test]
fn a_machine_that_is_named_is_woken_and_elsewhere_is_another_one() {
    for to in [format!("instance={OTHER}"), "elsewhere=true".to_owned()] {
        let to = to.as_str();
        run_each(|mut world| async move {
            let mut view = two("started", "stopped").await;
            let router = says(order(&format!("fly-replay: {to}"))).await;
            view.machines[0].services.iter_mut().for_each(|s| s.internal_port = router);
            world.publish(view.clone()).await;
            let caller = world.begin(&get("")).await;
            world.start(view, 1).await;
            check(&caller.answer().await, "second");
        });
    }
}

#[test]
fn apps_of_other_networks_and_unknown_ones_are_out_of_reach() {
    run_each(|mut world| async move {
        let secret = named("secret").await;
        world.send(settings_with(|s| s.networks[1].org = "other".to_owned())).await;
        world.send(ToProxy::App(hidden("foreign", "started", secret, LOOPBACK_NETWORK))).await;
        world.publish(app("started", says(order("fly-replay: app=foreign")).await)).await;
        let answer = world.ask(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PA05"), "{answer}");
        assert!(answer.contains("another organization") && !answer.contains("secret"), "{answer}");
        world.send(settings_with(|_| {})).await;
        let answer = world.ask(&get("")).await;
        assert!(answer.contains("PA05") && answer.contains("another network"), "{answer}");
    });
    run_each(|mut world| async move {
        ordering(&mut world, order("fly-replay: app=nobody")).await;
        let answer = world.ask(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PA04"), "{answer}");
    });
}

#[test]
fn a_machine_of_another_app_is_nobody() {
    run_each(|mut world| async move {
        ordering(&mut world, order(&format!("fly-replay: instance={TARGET}"))).await;
        let answer = world.ask(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PR02"), "{answer}");
    });
}

#[test]
fn what_one_host_cannot_do_is_said() {
    run_each(|mut world| async move {
        ordering(&mut world, order("fly-replay: app=target;region=\"ams,us\"")).await;
        let answer = world.ask(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PR04"), "{answer}");
    });
}

#[test]
fn an_order_that_makes_no_sense_is_pa03() {
    for answer in [
        order("fly-replay: what=ever"),
        order("fly-replay: "),
        order("fly-replay: app=target\r\nfly-replay: app=target"),
        json("{\"app\":"),
        json(
            r#"{"app":"target","transform":{"set_headers":[{"name":"content-length","value":"9"}]}}"#,
        ),
    ] {
        let answer = answer.as_str();
        run_each(|mut world| async move {
            ordering(&mut world, answer.to_owned()).await;
            let said = world.ask(&get("")).await;
            assert!(said.starts_with("HTTP/1.1 502") && said.contains("PA03"), "{answer}: {said}");
        });
    }
}

#[test]
fn replays_in_a_circle_end() {
    run_each(|mut world| async move {
        let seen = Rc::new(Cell::new(0));
        let count = Rc::clone(&seen);
        let port = machine(move |mut stream| {
            let count = Rc::clone(&count);
            async move {
                while read_head(&mut stream).await.is_some() {
                    count.set(count.get() + 1);
                    let order = order("fly-replay: app=app");
                    stream.write_all(order.as_bytes()).await.expect("the proxy reads");
                }
            }
        })
        .await;
        world.publish(app("started", port)).await;
        let answer = world.ask(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PA02"), "PX-45: {answer}");
        assert_eq!(seen.get(), 11, "the first time and ten replays");
    });
}

/// Reads head and body, and answers how long the body was and whether it is the right one.
async fn counts_bodies(mut stream: TcpStream) {
    while let Some(head) = read_head(&mut stream).await {
        let length = head.lines().find_map(|line| {
            line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned)
        });
        let mut body = vec![0; length.map_or(0, |text| text.parse().expect("a number"))];
        stream.read_exact(&mut body).await.expect("the body comes");
        let right = body.iter().zip(0_u32..).all(|(byte, at)| *byte == pattern(at));
        let text = format!("target got {} bytes, right: {right}", body.len());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
    }
}

fn pattern(at: u32) -> u8 {
    (at % 251) as u8
}

/// A router that gives its order after so many bytes of the body, and the caller's answer.
async fn body_of(world: &mut World, length: usize, read_first: usize) -> String {
    let port = machine(move |mut stream| async move {
        read_head(&mut stream).await.expect("a request");
        let mut some = vec![0; read_first];
        stream.read_exact(&mut some).await.expect("a part of the body");
        stream.write_all(order("fly-replay: app=target").as_bytes()).await.expect("it reads");
        // Bytes that nobody reads would make a reset of the close.
        let _rest = stream.read_to_end(&mut Vec::new()).await.is_err();
    })
    .await;
    let target = machine(counts_bodies).await;
    world.send(ToProxy::App(hidden("target", "started", target, NETWORK))).await;
    world.publish(app("started", port)).await;
    let body: Vec<u8> = (0..length as u32).map(pattern).collect();
    let mut caller = world.connect().await;
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    let (mut read, mut write) = caller.split();
    let sent = async {
        let _cut = write.write_all(&[head.as_bytes(), &body].concat()).await.is_err();
    };
    let mut answer = vec![0; 4096];
    let received = async {
        let length = read.read(&mut answer).await.unwrap_or(0);
        answer.truncate(length);
    };
    tokio::join!(sent, received);
    String::from_utf8(answer).expect("it is text")
}

const WHOLE: usize = 1_000_000;
/// Lengths of bodies, and how much of each was read when the order came.
const ORDERS_COME: [(usize, usize); 5] =
    [(10, 10), (10_000, 0), (WHOLE, 0), (WHOLE, 500_000), (WHOLE, WHOLE)];

fn assert_replayed(answer: &str, (length, read_first): (usize, usize)) {
    let wanted = format!("target got {length} bytes, right: true");
    assert!(answer.contains(&wanted), "{length} {read_first}: {answer}");
}

#[test]
fn a_body_of_up_to_a_megabyte_is_replayed_wherever_it_was_when_the_order_came() {
    for (length, read_first) in ORDERS_COME {
        run(|mut world| async move {
            let answer = body_of(&mut world, length, read_first).await;
            assert_replayed(&answer, (length, read_first));
        });
    }
}

/// Refuses each request by its head, and either ends the connection with the body unread or keeps it. The kernel takes
/// little of that body, as behind a link that is not loopback.
async fn refuses_early(ends: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    nix::sys::socket::setsockopt(&listener, sockopt::TcpMaxSeg, &536).expect("small segments");
    nix::sys::socket::setsockopt(&listener, sockopt::RcvBuf, &4096).expect("a small buffer");
    let serve = move |mut stream: TcpStream| async move {
        read_head(&mut stream).await.expect("a request");
        let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno";
        stream.write_all(answer).await.expect("the proxy reads");
        if !ends {
            std::future::pending::<()>().await;
        }
    };
    spawn_local(accept(listener, serve));
    port
}

/// A world whose app reads a body of a million bytes and has it replayed to who [refuses it early](refuses_early).
pub(super) async fn ordering_to_who_refuses_early(world: &mut World, ends: bool) {
    let target = hidden("target", "started", refuses_early(ends).await, NETWORK);
    world.send(ToProxy::App(target)).await;
    let router = machine(|mut stream| async move {
        read_head(&mut stream).await.expect("a request");
        let mut body = vec![0; 1_000_000];
        stream.read_exact(&mut body).await.expect("a body");
        let answer = order("fly-replay: app=target");
        stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
    });
    world.publish(app("started", router.await)).await;
}

#[test]
fn an_early_answer_to_a_replayed_body_reaches_the_caller() {
    for ends in [true, false] {
        run(|mut world| async move {
            ordering_to_who_refuses_early(&mut world, ends).await;
            let mut caller = world.connect().await;
            let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
            caller.write_all(head.as_bytes()).await.expect("the proxy reads");
            caller.write_all(&vec![b'x'; 1_000_000]).await.expect("the proxy reads");
            let (head, body) = read_response(&mut caller).await;
            assert!(head.starts_with("HTTP/1.1 413 ") && body == "no", "ends {ends}: {head}{body}");
        });
    }
}

#[test]
fn a_longer_body_is_pa01() {
    run(|mut world| async move {
        let answer = body_of(&mut world, 3 << 20, 2 << 20).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PA01"), "PX-44: {answer}");
    });
}

#[test]
fn who_is_not_reached_sends_the_request_back_once() {
    for (kind, reason) in
        [("force_self", "retries_exhausted"), ("prefer_self", "retries_exhausted")]
    {
        run_each(|mut world| async move {
            let back = move |mut stream: TcpStream| async move {
                while let Some(head) = read_head(&mut stream).await {
                    let answer = match head.contains("fly-replay-failed: ") {
                        false => order(&format!(
                            "fly-replay: app=target;instance={TARGET};fallback={kind};state=s"
                        )),
                        true => {
                            let body = format!("back {head}");
                            let length = body.len();
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
                        }
                    };
                    stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
                }
            };
            let port = machine(back).await;
            world.send(ToProxy::App(hidden("target", "stopped", 1, NETWORK))).await;
            world.publish(app("started", port)).await;
            let caller = world.begin(&get("")).await;
            let FromProxy::Start { machine, attempt, .. } = world.heard().await else {
                panic!("a start was expected");
            };
            let outcome = StartOutcome::Failed { reason: "no".to_owned() };
            world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
            let answer = caller.answer().await;
            check(&answer, "back");
            let told = format!("fly-replay-failed: instance={TARGET};app=target;");
            let why = format!(";replay_source={MACHINE};reason={reason};elapsed_ms=");
            assert!(answer.contains(&told) && answer.contains(&why), "PX-11: {answer}");
            assert!(!answer.contains("fly-replay-src"), "the request as it was: {answer}");
        });
    }
}

#[test]
fn a_request_that_came_back_is_not_replayed_again() {
    run_each(|mut world| async move {
        ordering(&mut world, order("fly-replay: region=ams;fallback=force_self")).await;
        let answer = world.ask(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PA03"), "PX-46: {answer}");
    });
}

#[test]
fn a_timeout_fails_sooner() {
    run_each(|mut world| async move {
        world.send(ToProxy::App(hidden("target", "stopped", 1, NETWORK))).await;
        world
            .publish(app("started", says(order("fly-replay: app=target;timeout=50ms")).await))
            .await;
        let answer = world.ask(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PM03"), "{answer}");
    });
}

/// A router that counts what it is asked, and always answers so.
async fn counting(answer: String) -> (u16, Rc<Cell<u32>>) {
    let asked = Rc::new(Cell::new(0));
    let count = Rc::clone(&asked);
    let port = machine(move |mut stream| {
        let (answer, count) = (answer.clone(), Rc::clone(&count));
        async move {
            while read_head(&mut stream).await.is_some() {
                count.set(count.get() + 1);
                stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
            }
        }
    })
    .await;
    (port, asked)
}

#[test]
fn a_cached_replay_does_not_ask_its_app_again() {
    run_each(|mut world| async move {
        let (port, asked) = counting(order(
            "fly-replay: app=target\r\nfly-replay-cache: /path/*\r\nfly-replay-cache-ttl-secs: 60\r\n\
             fly-replay-cache-allow-bypass: yes",
        ))
        .await;
        let target = hidden("target", "started", named("target").await, NETWORK);
        world.send(ToProxy::App(target.clone())).await;
        world.publish(app("started", port)).await;
        let first = world.ask(&get("")).await;
        assert!(
            first.contains("fly-replay-cache-status: miss") && first.contains("fly-replay-src")
        );
        let second = world.ask(&get("")).await;
        check(&second, "target");
        assert!(second.contains("fly-replay-cache-status: hit"), "PX-12: {second}");
        assert!(!second.contains("fly-replay-src"), "PX-10: {second}");
        assert_eq!(asked.get(), 1, "PX-50");
        let skipped = world.ask(&get("fly-replay-cache-control: skip\r\n")).await;
        assert!(skipped.contains("fly-replay-cache-status: bypass"), "PX-34: {skipped}");
        let elsewhere = get("").replace("/path", "/pathology").replace("/pathology H", "/other H");
        world.ask(&elsewhere).await;
        let host = get("").replace("app.flycast", "other.test");
        world.ask(&host).await;
        assert_eq!(asked.get(), 4, "per host name and path");
        // Its target goes: the app is asked again, whose word it is.
        world.send(ToProxy::RemoveApp { app: "target".to_owned() }).await;
        let gone = world.ask(&get("")).await;
        assert!(gone.contains("PA04"), "{gone}");
        assert_eq!(asked.get(), 5);
    });
}

/// A router whose replays are remembered by sessions: by a cookie, and below `/api` by a field.
fn with_sessions(port: u16, allow_bypass: bool) -> AppView {
    let rule = |path_prefix: &str, name: &str, is_header| SessionView {
        path_prefix: path_prefix.to_owned(),
        ttl_seconds: 60,
        is_header,
        name: name.to_owned(),
        allow_bypass,
    };
    let replay_cache = vec![rule("/", "sid", false), rule("/api", "Authorization", true)];
    let mut view = app("started", port);
    view.machines[0].services[0].ports[0].http =
        Some(HttpView { replay_cache, ..HttpView::default() });
    view
}

#[test]
fn a_session_that_was_replayed_goes_there_at_once() {
    run_each(|mut world| async move {
        let (port, asked) = counting(order("fly-replay: app=target")).await;
        let target = hidden("target", "started", named("target").await, NETWORK);
        world.send(ToProxy::App(target)).await;
        world.publish(with_sessions(port, true)).await;
        let cookie = |value: &str| get(&format!("Cookie: a=b; sid={value}\r\n"));
        let api =
            |value: &str| get(&format!("authorization: {value}\r\n")).replace("/path", "/api/x?y");
        // Requests, and how often the router was asked after each.
        for (request, status, count) in [
            (cookie("1"), "miss", 1),
            (cookie("1"), "hit", 1),
            (cookie("1").replace("/path", "/other"), "hit", 1),
            (cookie("2"), "miss", 2),
            (get(""), "miss", 3),
            (get("Cookie: sid=\r\n"), "miss", 4),
            (get("Cookie: xsid=1; SID=1\r\n"), "miss", 5),
            (cookie("1").replace("app.flycast", "other.test"), "miss", 6),
            (api("z"), "miss", 7),
            (api("z"), "hit", 7),
            (api("y"), "miss", 8),
            (cookie("1").replace("/path", "/api"), "miss", 9),
            (
                cookie("1").replace("Cookie", "fly-replay-cache-control: skip\r\nCookie"),
                "bypass",
                10,
            ),
        ] {
            let answer = world.ask(&request).await;
            check(&answer, "target");
            let told = format!("fly-replay-cache-status: {status}\r\n");
            assert!(answer.contains(&told), "{request}{answer}");
            assert_eq!(asked.get(), count, "{request}");
        }
        world.send(ToProxy::RemoveApp { app: "target".to_owned() }).await;
        assert!(world.ask(&cookie("1")).await.contains("PA04"), "its app is asked again");
        assert_eq!(asked.get(), 11);
    });
}

#[test]
fn a_session_is_not_remembered_where_more_than_its_way_was_said_nor_passed_by_where_nobody_may() {
    for fields in ["fly-replay: app=target;state=s", "fly-replay: app=target;timeout=5s"] {
        run(|mut world| async move {
            let (port, asked) = counting(order(fields)).await;
            let target = hidden("target", "started", named("target").await, NETWORK);
            world.send(ToProxy::App(target)).await;
            world.publish(with_sessions(port, false)).await;
            for count in 1..3 {
                check(&world.ask(&get("Cookie: sid=1\r\n")).await, "target");
                assert_eq!(asked.get(), count, "PX-52");
            }
        });
    }
    run(|mut world| async move {
        let (port, asked) = counting(order("fly-replay: app=target")).await;
        let target = hidden("target", "started", named("target").await, NETWORK);
        world.send(ToProxy::App(target)).await;
        world.publish(with_sessions(port, false)).await;
        for _ in 0..2 {
            world.ask(&get("Cookie: sid=1\r\nfly-replay-cache-control: skip\r\n")).await;
        }
        assert_eq!(asked.get(), 1, "PX-34");
    });
}

#[test]
fn the_target_invalidates_by_a_replay_back() {
    let by_path = "fly-replay: app=target\r\nfly-replay-cache: /\r\nfly-replay-cache-ttl-secs: 60";
    for fields in [by_path, "fly-replay: app=target"] {
        run_each(|mut world| async move {
            let (port, asked) = counting(order(fields)).await;
            let back = order("fly-replay: app=app\r\nfly-replay-cache: invalidate");
            world.send(ToProxy::App(hidden("target", "started", says(back).await, NETWORK))).await;
            world.publish(with_sessions(port, false)).await;
            for wanted in [6, 12] {
                // To the target, back, to the target, back … until it is enough; nothing is remembered after it.
                assert!(world.ask(&get("Cookie: sid=1\r\n")).await.contains("PA02"));
                assert_eq!(asked.get(), wanted, "not by the cache");
            }
        });
    }
}

/// The same order by a Machine that speaks HTTP/2, whose target does not.
#[test]
fn machines_that_speak_http2_have_their_orders_obeyed_for_both_kinds_of_callers() {
    for path in ["/field", "/json"] {
        run_each(|mut world| async move {
            let mut view = app("started", machine(orders).await);
            view.machines[0].services[0].ports[0].h2_backend = true;
            let target = hidden("target", "started", named("target").await, NETWORK);
            world.send(ToProxy::App(target)).await;
            world.publish(view).await;
            let answer = world.ask(&get("te: trailers\r\n").replace("/path", path)).await;
            check(&answer, "target");
            assert!(answer.contains(&format!("fly-replay-src: instance={MACHINE};")), "{answer}");
            assert!(answer.matches("trailers").count() <= 1, "said once or not at all: {answer}");
        });
    }
}

async fn orders(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let json = request.uri().path() == "/json";
        let (name, value) = match json {
            false => ("fly-replay", "app=target"),
            true => ("content-type", "application/vnd.fly.replay+json"),
        };
        let answer = http::Response::builder().header(name, value).body(()).expect("it is one");
        let mut sending = respond.send_response(answer, false).expect("it goes out");
        for piece in [r#"{"app":"#, r#""target"}"#] {
            sending.send_data(piece.as_bytes().into(), false).expect("it goes out");
        }
        sending.send_data("".into(), true).expect("it goes out");
    }
}

/// [`body_of`] by HTTP/2.
async fn streamed(world: &mut World, length: usize, read_first: usize) -> String {
    let port = machine(move |mut stream| async move {
        let head = read_head(&mut stream).await.expect("a request");
        assert!(head.contains(&format!("content-length: {length}\r\n")), "{head}");
        let mut some = vec![0; read_first];
        stream.read_exact(&mut some).await.expect("a part of the body");
        stream.write_all(order("fly-replay: app=target").as_bytes()).await.expect("it reads");
        let _rest = stream.read_to_end(&mut Vec::new()).await.is_err();
    })
    .await;
    let target = machine(counts_bodies).await;
    world.send(ToProxy::App(hidden("target", "started", target, NETWORK))).await;
    world.publish(app("started", port)).await;
    let (client, _) = http2::client(world).await;
    let mut asked = http2::request("POST", "/");
    asked.headers_mut().insert("content-length", length.into());
    let (answer, sending) = http2::begin(&client, asked).await;
    spawn_local(http2::send_all(sending, (0..length as u32).map(pattern).collect()));
    let (answer, text) = http2::read_answer(answer).await;
    format!("{} {text}", answer.status())
}

#[test]
fn a_body_that_came_by_http2_is_replayed_wherever_it_was_when_the_order_came() {
    for (length, read_first) in ORDERS_COME {
        run(|mut world| async move {
            let answer = streamed(&mut world, length, read_first).await;
            assert_replayed(&answer, (length, read_first));
        });
    }
    run(|mut world| async move {
        let answer = streamed(&mut world, 3 << 20, 2 << 20).await;
        assert!(answer.starts_with("502") && answer.contains("PA01"), "PX-44: {answer}");
    });
}
