//! Machines that speak HTTP/2 (`h2_backend`).

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::super::world::*;
use super::{ask, begin, client, field, read_answer, request};
use crate::control::{AppView, FromProxy};

pub(in crate::tests) fn grpc(state: &str, port: u16) -> AppView {
    let mut view = app(state, port);
    view.machines[0].services[0].ports[0].h2_backend = true;
    view
}

/// Answers each stream by its body, and trailers; the fields that it got are in `got`.
pub(in crate::tests) async fn echo(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        spawn_local(async move {
            match request.uri().path() {
                "/refused" => return respond.send_reset(Reason::REFUSED_STREAM),
                "/broken" => return respond.send_reset(Reason::INTERNAL_ERROR),
                _ => {}
            }
            let text = |name: &str| {
                request.headers().get(name).map_or("", |value| value.to_str().expect("text"))
            };
            let got = format!(
                "{} {} {} {}",
                request.method(),
                request.uri(),
                text("te"),
                text("fly-client-ip")
            );
            let answer = Response::builder().header("got", got).header("server", "theirs");
            let answer = answer.body(()).expect("it is one");
            let mut sending = respond.send_response(answer, false).expect("it goes out");
            let mut body = request.into_body();
            while let Some(Ok(piece)) = body.data().await {
                let released = body.flow_control().release_capacity(piece.len());
                released.expect("it was taken");
                sending.send_data(piece, false).expect("it goes out");
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a value"));
            if let Ok(Some(theirs)) = body.trailers().await {
                trailers.extend(theirs);
            }
            sending.send_trailers(trailers).expect("it goes out");
        });
    }
}

/// What [`page`] says a hundred times.
pub(in crate::tests) const PAGE: &str = "a line that comes again and again\n";

/// Answers each stream by a text without a length, and a trailer.
pub(in crate::tests) async fn page(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let answer = Response::builder().header("content-type", "text/plain").body(());
        let mut sending = respond.send_response(answer.expect("it is one"), false).expect("so");
        for _ in 0..100 {
            sending.send_data(Bytes::from_static(PAGE.as_bytes()), false).expect("it goes out");
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().expect("a value"));
        sending.send_trailers(trailers).expect("it goes out");
    }
}

/// Counts connections.
pub(in crate::tests) async fn counted(state: &str) -> (AppView, Rc<Cell<u32>>) {
    let count = Rc::new(Cell::new(0));
    let counting = Rc::clone(&count);
    let port = machine(move |stream| {
        counting.set(counting.get() + 1);
        echo(stream)
    })
    .await;
    (grpc(state, port), count)
}

#[test]
fn a_machine_that_does_not_speak_it_is_reported_as_pu01() {
    run(|mut world| async move {
        let port = machine(echo_heads).await;
        world.publish(grpc("started", port)).await;
        let (client, _) = client(&world).await;
        let (answer, text) = ask(&client, request("POST", "/")).await;
        assert_eq!(answer.status(), 502);
        assert!(text.starts_with("PU0"), "{text}");
    });
}

#[test]
fn what_the_machine_resets_unseen_is_tried_again_and_other_resets_are_told() {
    run(|mut world| async move {
        let (view, connections) = counted("started").await;
        world.publish(view).await;
        let (client, _) = client(&world).await;
        let (answer, text) = ask(&client, request("POST", "/refused")).await;
        assert_eq!(answer.status(), 502);
        assert!(text.starts_with("PU02 ") && 1 < connections.get(), "{text}");
        let before = connections.get();
        let (answer, _) = ask(&client, request("POST", "/broken")).await;
        assert_eq!((answer.status().as_u16(), connections.get()), (502, before + 1));
    });
}

#[test]
fn streams_share_a_connection_and_pass_bodies_and_trailers_both_ways() {
    run(|mut world| async move {
        let (view, connections) = counted("stopped").await;
        world.publish(view.clone()).await;
        let (client, _) = client(&world).await;
        let asked: Vec<_> = (0..10)
            .map(|n| {
                let client = client.clone();
                spawn_local(async move {
                    let mut head = request("POST", &format!("/svc.S/M{n}?q"));
                    head.headers_mut().insert("te", "trailers".parse().expect("a value"));
                    let (answer, mut body) = begin(&client, head).await;
                    body.send_data(Bytes::from("x".repeat(1000)), false).expect("there is room");
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-last", n.to_string().parse().expect("a value"));
                    body.send_trailers(trailers).expect("it goes out");
                    read_answer(answer).await
                })
            })
            .collect();
        world.start(view, 0).await;
        for (n, answer) in asked.into_iter().enumerate() {
            let (mut answer, text) = answer.await.expect("no panic");
            assert_eq!(text.len(), 1000);
            let got = format!("POST http://app.flycast/svc.S/M{n}?q trailers {CALLER}");
            assert_eq!(field(&answer, "got"), got);
            assert_eq!(field(&answer, "server"), "perch/test");
            assert!(field(&answer, "perch-wake").starts_with("start;dur="));
            let trailers = answer.body_mut().trailers().await.expect("whole").expect("some");
            assert_eq!(trailers.get("grpc-status").expect("it was sent"), "0");
            assert_eq!(trailers.get("x-last").expect("it was sent"), &n.to_string());
        }
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn both_sides_talk_by_turns_and_a_reset_reaches_the_machine() {
    run(|mut world| async move {
        let (mut view, _) = counted("started").await;
        view.machines[0].services.iter_mut().for_each(|s| s.auto_stop_after_ms = 100);
        world.publish(view).await;
        let (client, _) = client(&world).await;
        let (answer, mut sending) = begin(&client, request("POST", "/talk")).await;
        let mut body = answer.await.expect("it answers at once").into_body();
        for letter in b'a'..=b'z' {
            let piece = Bytes::copy_from_slice(&[letter]);
            sending.send_data(piece.clone(), false).expect("there is room");
            assert_eq!(body.data().await.expect("more").expect("it is whole"), piece);
        }
        sending.send_reset(Reason::CANCEL);
        // The stream was load until then.
        assert!(matches!(world.heard().await, FromProxy::Stop { .. }));
    });
}

#[test]
fn a_program_of_it_that_listens_late_gets_the_request() {
    run(|mut world| async move {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = free.local_addr().expect("bound");
        drop(free);
        world.publish(grpc("started", at.port())).await;
        let (client, _) = client(&world).await;
        let asked = spawn_local(async move { ask(&client, request("POST", "/late")).await });
        tokio::task::yield_now().await;
        let listener = TcpListener::bind(at).await.expect("the port is free");
        spawn_local(accept(listener, echo));
        let (answer, _) = asked.await.expect("no panic");
        assert!(field(&answer, "got").contains("/late"), "{answer:?}");
    });
}
