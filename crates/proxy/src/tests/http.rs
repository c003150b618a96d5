//! HTTP through the whole proxy.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::world::*;
use crate::control::{AddressKind, Autostop, FromProxy, Source, ToProxy, Unit};

/// A Machine that reads `request_len` bytes after the head and then says `answer`.
async fn scripted(answer: &'static str, close: bool) -> u16 {
    machine(move |mut stream| async move {
        while let Some(_head) = read_head(&mut stream).await {
            stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
            if close {
                return;
            }
        }
    })
    .await
}

#[test]
fn a_caller_gets_503_when_nothing_may_be_woken() {
    run(|mut world| async move {
        let mut app = app("stopped", 1);
        app.machines[0].services.iter_mut().for_each(|s| s.autostart = false);
        world.publish(app).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        assert!(answer.contains("\r\nRetry-After: ") && answer.contains("PR01"), "{answer}");
    });
}

#[test]
fn a_program_that_never_listens_is_reported_as_pr03() {
    run(|mut world| async move {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let mut app = app("started", port);
        app.machines[0].services.iter_mut().for_each(|s| s.start_timeout_ms = 1000);
        world.publish(app).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PR03"), "{answer}");
    });
}

#[test]
fn a_machine_that_never_starts_is_reported_as_pm03() {
    run(|mut world| async move {
        let mut app = app("stopped", 1);
        app.machines[0].services.iter_mut().for_each(|s| s.start_timeout_ms = 1000);
        world.publish(app).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PM03"), "{answer}");
    });
}

#[test]
fn start_timeout_is_for_the_start_and_the_wait_for_a_listener_together() {
    run(|mut world| async move {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let mut view = app("stopped", port);
        view.machines[0].services.iter_mut().for_each(|s| s.start_timeout_ms = 3000);
        world.publish(view.clone()).await;
        let since = std::time::Instant::now();
        let mut callers = [world.http, world.raw].map(|address| {
            let mut stream = std::net::TcpStream::connect(address).expect("the proxy listens");
            std::io::Write::write_all(&mut stream, GET.as_bytes()).expect("the kernel takes it");
            stream.set_nonblocking(true).expect("it is open");
            TcpStream::from_std(stream).expect("it is open")
        });
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        world.start(view, 0).await;
        let answer = read_all(&mut callers[0]).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PR03"), "{answer}");
        callers[1].read_u8().await.expect_err("nobody answered");
        let waited = since.elapsed().as_millis();
        // One behind the other they would be 4,500.
        assert!((2900..4500).contains(&waited), "it took {waited} ms");
    });
}

#[test]
fn the_id_in_an_answer_of_ours_is_the_one_in_the_log() {
    run(|mut world| async move {
        let port = scripted("no HTTP\r\n\r\n", true).await;
        world.publish(app("started", port)).await;
        let answer = world.ask(GET).await;
        let id = answer.lines().find_map(|line| line.strip_prefix("Fly-Request-Id: "));
        let id = id.expect("every answer has one").to_owned();
        let FromProxy::Log { text, .. } = world.link.recv().await.expect("it lives") else {
            panic!("a log line was expected");
        };
        assert!(text.contains(&id), "{id} in {text}");
    });
}

#[test]
fn an_address_of_nobody_is_reset() {
    run(|mut world| async move {
        let mut app = app("started", 1);
        app.addresses.clear();
        world.publish(app).await;
        let mut stream = world.connect().await;
        let error = stream.read_u8().await.expect_err("nobody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn an_address_of_another_network_is_reset() {
    run(|mut world| async move {
        let mut app = app("started", 1);
        app.addresses[0].network = NETWORK + 1;
        world.publish(app).await;
        let mut stream = world.connect().await;
        let error = stream.read_u8().await.expect_err("nobody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_malformed_answer_is_502_and_a_malformed_request_400() {
    run(|mut world| async move {
        let port = scripted("SSH-2.0-x\r\n\r\n", true).await;
        world.publish(app("started", port)).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway"), "{answer}");
        let smuggled = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\
                        Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        let answer = world.ask(smuggled).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "the connection ends: {answer}");
    });
}

#[test]
fn counting_connections_means_one_request_on_each() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let head = read_head(&mut stream).await.expect("a request comes");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            stream.write_all(answer.as_bytes()).await.expect("the proxy reads");
            assert!(read_head(&mut stream).await.is_none(), "a second request came");
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services[0].unit = Unit::Connections;
        world.publish(view).await;
        let mut stream = world.connect().await;
        for _ in 0..2 {
            let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(request).await.expect("the proxy reads");
            let (_, body) = read_response(&mut stream).await;
            assert!(body.ends_with("\r\nConnection: close\r\n\r\n"), "{body}");
        }
    });
}

#[test]
fn a_machine_that_no_deploy_manages_gets_requests_too() {
    run(|mut world| async move {
        for group in ["", "not a label"] {
            let mut view = app("started", machine(echo_heads).await);
            view.machines[0].group = group.to_owned();
            world.publish(view).await;
            let answer = world.ask(GET).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "group {group:?}: {answer}");
        }
    });
}

#[test]
fn a_running_machine_gets_the_request_with_our_headers() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        world.publish(app("started", port)).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for part in [
            "\r\nServer: perch/test\r\n",
            "\r\nVia: 1.1 perch\r\n",
            "\r\nFly-Request-Id: ",
            "GET /path?q HTTP/1.1\r\nHost: app.flycast\r\n",
            "\r\nFly-Client-IP: fdaa:0:7:a7b:1:2:3:2\r\n",
            "\r\nFly-Forwarded-Port: 80\r\n",
        ] {
            assert!(answer.contains(part), "{part:?} in {answer}");
        }
        assert!(!answer.contains("Perch-Wake"), "{answer}");
    });
}

#[test]
fn a_request_to_a_sleeping_app_wakes_it_and_is_answered() {
    run(|mut world| async move {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let view = app("stopped", address.port());
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        let FromProxy::Start { machine: id, attempt, cause, .. } = world.heard().await else {
            panic!("a start was expected");
        };
        let cause = cause.expect("a caller waits");
        assert_eq!((cause.source, cause.dest.port()), (Source::Host, 80));
        assert_eq!(cause.request.as_deref(), Some("GET /path"));
        let mut started = view;
        started.machines[0].state = "started".to_owned();
        started.machines[0].run = 1;
        let outcome = crate::control::StartOutcome::Started { run: 1 };
        world.send(ToProxy::StartDone { machine: id, attempt, outcome }).await;
        world.send(ToProxy::App(started)).await;
        // The program needs a moment until it listens.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let listener = TcpListener::bind(address).await.expect("still free");
        spawn_local(accept(listener, echo_heads));
        let answer = read_all(&mut caller).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nPerch-Wake: start;dur="), "{answer}");
        let FromProxy::Log { app, level, text, .. } = world.link.recv().await.expect("it lives")
        else {
            panic!("a log line was expected");
        };
        assert_eq!((app.as_str(), level.as_str()), (APP, "info"));
        assert!(
            text.starts_with("woke Machine 00000000000001 in ") && text.ends_with("GET /path"),
            "{text}"
        );
    });
}

#[test]
fn a_thousand_requests_to_a_sleeping_app_make_one_start_and_are_all_answered() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut callers = Vec::new();
        for _ in 0..1000 {
            let mut caller = world.connect().await;
            caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
            callers.push(caller);
        }
        world.start(view, 0).await;
        for mut caller in callers {
            let answer = read_all(&mut caller).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
        let more = tokio::time::timeout(std::time::Duration::from_millis(20), world.heard()).await;
        assert!(more.is_err(), "one start is enough: {more:?}");
    });
}

#[test]
fn a_caller_that_leaves_while_held_leaves_the_queue_and_the_start_goes_on() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut leaver = world.connect().await;
        leaver.write_all(GET.as_bytes()).await.expect("the proxy reads");
        let mut stayer = world.connect().await;
        drop(leaver);
        stayer.write_all(GET.as_bytes()).await.expect("the proxy reads");
        world.start(view, 0).await;
        let answer = read_all(&mut stayer).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    });
}

#[test]
fn an_idle_machine_is_put_to_sleep_and_its_idle_connections_are_closed_first() {
    run(|mut world| async move {
        let closed = Rc::new(Cell::new(false));
        let seen = Rc::clone(&closed);
        let port = machine(move |stream| {
            let seen = Rc::clone(&seen);
            async move {
                echo_heads(stream).await;
                seen.set(true);
            }
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 150);
        world.publish(view).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        let FromProxy::Stop { machine, run, reason, .. } = world.heard().await else {
            panic!("a stop was expected");
        };
        assert_eq!((machine.as_str(), run), (MACHINE, 1));
        assert!(reason.contains("no load for"), "{reason}");
        // Nobody has answered: it does not wait for that.
        while !closed.get() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
}

/// The app with a second Machine, which calls; it publishes what `services` says.
pub(super) fn with_calling_machine(port: u16, publishes: bool) -> crate::control::AppView {
    let mut view = app("started", port);
    view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 1000);
    let mut caller = view.machines[0].clone();
    caller.id = "00000000000002".to_owned();
    caller.link_ip = std::net::Ipv4Addr::new(127, 0, 0, 2);
    let std::net::IpAddr::V6(address) = ip(CALLER) else { panic!("it is IPv6") };
    caller.private_ip = address;
    if !publishes {
        caller.services.clear();
    }
    view.machines.push(caller);
    view
}

#[test]
fn a_machine_of_the_app_that_serves_something_else_is_a_caller_as_any_other() {
    for (publishes, stops) in [(false, false), (true, true)] {
        run(|mut world| async move {
            let port = machine(echo_heads).await;
            world.publish(with_calling_machine(port, publishes)).await;
            let http = world.http;
            let calls = async {
                for _ in 0..40 {
                    let mut stream = TcpStream::connect(http).await.expect("the proxy listens");
                    stream.write_all(GET.as_bytes()).await.expect("the proxy reads");
                    read_all(&mut stream).await;
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            };
            let stopped = tokio::select! {
                message = world.heard() => matches!(message, FromProxy::Stop { .. }),
                () = calls => false,
            };
            assert_eq!(stopped, stops, "AS-23, publishing: {publishes}");
        });
    }
}

#[test]
fn requests_in_flight_keep_a_machine_awake() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            tokio::time::sleep(std::time::Duration::from_millis(900)).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.expect("the proxy reads");
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 300);
        world.publish(view).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        tokio::select! {
            // What comes behind the answer is no load any more.
            biased;
            answer = read_all(&mut caller) => assert!(answer.starts_with("HTTP/1.1 200")),
            message = world.heard() => panic!("nothing may be stopped under load: {message:?}"),
        }
    });
}

#[test]
fn at_the_hard_limit_requests_wait_for_a_place() {
    run(|mut world| async move {
        let inside = Rc::new(Cell::new(0));
        let counter = Rc::clone(&inside);
        let port = machine(move |mut stream| {
            let inside = Rc::clone(&counter);
            async move {
                while read_head(&mut stream).await.is_some() {
                    inside.set(inside.get() + 1);
                    assert!(inside.get() <= 2, "more requests inside than hard_limit");
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    inside.set(inside.get() - 1);
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer).await.expect("the proxy reads");
                }
            }
        })
        .await;
        let mut view = app("started", port);
        view.machines[0].services[0].soft_limit = 1;
        view.machines[0].services[0].hard_limit = Some(2);
        world.publish(view).await;
        let mut callers = Vec::new();
        for _ in 0..20 {
            let mut caller = world.connect().await;
            caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
            callers.push(caller);
        }
        for mut caller in callers {
            assert!(read_all(&mut caller).await.starts_with("HTTP/1.1 200"));
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    check_pipelined();
}

#[test]
fn a_busy_proxy_that_lets_others_read_first_answers_the_same() {
    crate::moderation::begin();
    check_pipelined();
}

fn check_pipelined() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        world.publish(app("started", port)).await;
        let mut stream = world.connect().await;
        let three = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
                     POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n\r\n\
                     GET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
        stream.write_all(three.as_bytes()).await.expect("the proxy reads");
        for path in ["GET /1 ", "POST /2 ", "GET /3 "] {
            let (_, body) = read_response(&mut stream).await;
            assert!(body.starts_with(path), "{path} in {body}");
        }
    });
}

/// A Machine that reads a whole body of this many raw bytes, and answers with it.
async fn echo_body(length: usize) -> u16 {
    machine(move |mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            if head.contains("Expect:") {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("it reads");
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.expect("a body comes");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("it reads");
            stream.write_all(&body).await.expect("it reads");
        }
    })
    .await
}

#[test]
fn bodies_pass_whatever_their_framing_and_their_pieces() {
    const LENGTH: usize = 300_000;
    run(|mut world| async move {
        world.publish(app("started", echo_body(LENGTH).await)).await;
        let mut stream = world.connect().await;
        for _ in 0..2 {
            let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
            let body = "x".repeat(LENGTH);
            let (mut read, mut write) = stream.split();
            let send = async {
                write.write_all(head.as_bytes()).await.expect("the proxy reads");
                write.write_all(body.as_bytes()).await.expect("the proxy reads");
            };
            let receive = async {
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\n") {
                    answer.push(read.read_u8().await.expect("a head comes"));
                }
                let mut echoed = vec![0; LENGTH];
                read.read_exact(&mut echoed).await.expect("a body comes");
                assert!(echoed.iter().all(|b| *b == b'x'));
            };
            tokio::join!(send, receive);
        }
    });
}

#[test]
fn a_chunked_request_in_pieces_passes_and_the_next_one_follows() {
    run(|mut world| async move {
        let chunks = "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n";
        world.publish(app("started", echo_body(chunks.len()).await)).await;
        let mut stream = world.connect().await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let both = format!("{head}{chunks}{head}{chunks}");
        for piece in both.as_bytes().chunks(7) {
            stream.write_all(piece).await.expect("the proxy reads");
            tokio::task::yield_now().await;
        }
        for _ in 0..2 {
            let (_, body) = read_response(&mut stream).await;
            assert_eq!(body, chunks);
        }
    });
}

#[test]
fn a_caller_that_expects_100_gets_the_machines_own() {
    run(|mut world| async move {
        world.publish(app("started", echo_body(3).await)).await;
        let mut stream = world.connect().await;
        let head =
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("the proxy reads");
        let interim = read_head(&mut stream).await.expect("an interim response");
        assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"abc").await.expect("the proxy reads");
        assert_eq!(read_response(&mut stream).await.1, "abc");
    });
}

#[test]
fn an_answer_before_the_end_of_the_request_is_passed_on_and_ends_the_connection() {
    run(|mut world| async move {
        let port = scripted("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", false).await;
        world.publish(app("started", port)).await;
        let mut stream = world.connect().await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nxxx";
        stream.write_all(head.as_bytes()).await.expect("the proxy reads");
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413 Too Large\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nno"), "{answer}");
    });
}

#[test]
fn answers_without_length_and_answers_in_chunks_pass_to_new_and_old_callers() {
    run(|mut world| async move {
        let close = scripted("HTTP/1.1 200 OK\r\n\r\nuntil the end", true).await;
        let mut view = app("started", close);
        world.publish(view.clone()).await;
        assert!(world.ask(GET).await.ends_with("\r\n\r\nuntil the end"));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let port = scripted(chunked, false).await;
        view.machines[0].services.iter_mut().for_each(|s| s.internal_port = port);
        view.machines[0].run = 2;
        view.revision = 2;
        world.send(ToProxy::App(view)).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let answer = world.ask(GET).await;
        assert!(answer.ends_with("\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "{answer}");
        let answer = world.ask("GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("\r\n\r\nabcde") && !answer.contains("chunked"), "{answer}");
    });
}

#[test]
fn a_head_request_keeps_the_connection_usable() {
    run(|mut world| async move {
        let port = scripted("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", false).await;
        world.publish(app("started", port)).await;
        let mut stream = world.connect().await;
        for _ in 0..2 {
            let request = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
            stream.write_all(request).await.expect("the proxy reads");
            let head = read_head(&mut stream).await.expect("a head comes");
            assert!(head.contains("Content-Length: 99\r\n"), "{head}");
        }
    });
}

/// A Machine whose connections serve one request each, although they do not say so.
async fn forgetful() -> (u16, Rc<Cell<u32>>) {
    let served = Rc::new(Cell::new(0));
    let counter = Rc::clone(&served);
    let port = machine(move |mut stream: TcpStream| {
        let served = Rc::clone(&counter);
        async move {
            read_head(&mut stream).await.expect("a request comes");
            served.set(served.get() + 1);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.expect("the proxy reads");
            // Read the next request and close without a word, as a program does whose idle timer
            // fires just then.
            let mut next = [0; 1];
            let _closed = stream.read(&mut next).await.is_ok();
        }
    })
    .await;
    (port, served)
}

#[test]
fn a_pooled_connection_that_dies_under_a_request_is_replaced() {
    run(|mut world| async move {
        let (port, served) = forgetful().await;
        world.publish(app("started", port)).await;
        for _ in 0..3 {
            assert!(world.ask(GET).await.ends_with("\r\n\r\nok"));
        }
        assert_eq!(served.get(), 3);
    });
}

#[test]
fn the_host_field_chooses_the_app_at_a_shared_address() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        let mut view = app("started", port);
        view.addresses[0].kind = AddressKind::Shared;
        view.addresses[0].network = 0;
        world.publish(view).await;
        let ask =
            |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = world.ask(&ask("App.perch.test:80")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for host in ["other.perch.test", "perch.test", "app", "appxperch.test", ""] {
            let answer = world.ask(&ask(host)).await;
            assert!(answer.starts_with("HTTP/1.1 404 Not Found"), "{host}: {answer}");
        }
    });
}

#[test]
fn force_https_redirects_without_waking_anything() {
    run(|mut world| async move {
        let mut view = app("stopped", 1);
        view.machines[0].services[0].ports[0].force_https = true;
        view.machines[0].services[0].autostop = Autostop::Off;
        world.publish(view).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 301 Moved Permanently\r\n"), "{answer}");
        assert!(answer.contains("\r\nLocation: https://app.flycast/path?q\r\n"), "{answer}");
    });
}

#[test]
fn a_held_request_needs_less_than_four_kilobytes() {
    use crate::http::connection::serve;
    /// As large as what a connection's task keeps for the crowd and for its app's counts.
    type Seat = [usize; 4];
    fn future_size<A, B, C, D, F>(_: impl Fn(A, B, C, D, Seat) -> F) -> usize {
        size_of::<F>()
    }
    // All of it: there is nothing around this future.
    let connection = future_size(serve);
    assert!(connection <= 1320, "a connection's task has {connection} bytes");
}

#[test]
fn a_head_that_does_not_end_is_408_and_a_caller_who_asks_nothing_is_let_go() {
    run(|mut world| async move {
        world.publish(app("stopped", 1)).await;
        let mut slow = world.connect().await;
        let mut silent = world.connect().await;
        slow.write_all(b"GET / HTTP/1.1\r\nHost: app.flycast\r\n").await.expect("it reads");
        let drip = async {
            // Each byte in time does not make the whole of it so.
            while slow.write_all(b"X").await.is_ok() {
                tokio::select! {
                    _ = slow.readable() => return,
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
            }
        };
        drip.await;
        let answer = read_all(&mut slow).await;
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        assert_eq!(read_all(&mut silent).await, "");
    });
}
