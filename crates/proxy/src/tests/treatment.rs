//! What `http_options` do to answers.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http2::{ask, backend, client, field, request};
use super::upgrade::{echo, socket, socket_server};
use super::world::*;
use crate::control::{AppView, HttpView};

/// A Machine whose answers are treated so.
fn treated(port: u16, http: HttpView) -> AppView {
    let mut view = app("started", port);
    view.machines[0].services[0].ports[0].http = Some(http);
    view
}

fn fields(fields: &[(&str, &[&str])]) -> HttpView {
    let own = |values: &[&str]| values.iter().map(ToString::to_string).collect();
    let response_headers = fields.iter().map(|(name, values)| (name.to_string(), own(values)));
    HttpView { response_headers: response_headers.collect(), ..HttpView::default() }
}

fn silent_for(idle: Duration) -> HttpView {
    HttpView { idle_timeout_ms: Some(idle.as_millis() as u64), ..HttpView::default() }
}

/// Longer than a busy machine keeps a test from the processor.
const IDLE: Duration = Duration::from_millis(900);
/// So many pieces with such pauses take longer than that.
const PIECES: usize = 12;
const PAUSE: Duration = Duration::from_millis(100);

async fn answering(answer: &'static [u8]) -> u16 {
    machine(move |mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            stream.write_all(answer).await.expect("the proxy reads");
        }
    })
    .await
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nx-powered-by: them\r\nSET-cookie: a=1\r\n\
    Cache-Control: no-store\r\n\r\nbody";

fn wanted() -> HttpView {
    fields(&[
        ("X-Powered-By", &[]),
        ("Set-Cookie", &["b=2", "c=3"]),
        ("Content-Security-Policy", &["default-src 'self'"]),
        ("got", &["ours"]),
    ])
}

#[test]
fn fields_of_answers_are_removed_replaced_and_added() {
    run(|mut world| async move {
        world.publish(treated(answering(ANSWER).await, wanted())).await;
        let answer = world.ask(GET).await;
        for there in ["Set-Cookie: b=2\r\n", "Set-Cookie: c=3\r\n", "Cache-Control: no-store\r\n"] {
            assert!(answer.contains(there), "{answer}");
        }
        assert!(answer.contains("Content-Security-Policy: default-src 'self'\r\n"), "{answer}");
        assert!(answer.contains("Via: 1.1 perch\r\n"), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("powered"), "{answer}");
        assert!(!answer.contains("a=1") && answer.ends_with("\r\n\r\nbody"), "{answer}");
    });
}

#[test]
fn callers_of_http2_get_the_same_fields_from_machines_of_both_kinds() {
    run(|mut world| async move {
        world.publish(treated(answering(ANSWER).await, wanted())).await;
        let (caller, _) = client(&world).await;
        let (answer, body) = ask(&caller, request("GET", "/")).await;
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["b=2", "c=3"]);
        assert_eq!((field(&answer, "x-powered-by"), body.as_str()), ("", "body"));
        assert_eq!(field(&answer, "via"), "1.1 perch");
    });
    run(|mut world| async move {
        let mut view = treated(machine(backend::echo).await, wanted());
        view.machines[0].services[0].ports[0].h2_backend = true;
        world.publish(view).await;
        let (caller, _) = client(&world).await;
        let (answer, _) = ask(&caller, request("GET", "/")).await;
        assert_eq!(field(&answer, "got"), "ours");
        assert_eq!(field(&answer, "content-security-policy"), "default-src 'self'");
    });
}

#[test]
fn a_request_on_which_nothing_is_said_for_too_long_is_504() {
    run(|mut world| async move {
        let port = machine(|silent| async move {
            std::future::pending::<()>().await;
            drop(silent);
        })
        .await;
        world.publish(treated(port, silent_for(IDLE))).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
        assert!(answer.contains("idle_timeout"), "{answer}");
        let (caller, _) = client(&world).await;
        let (answer, text) = ask(&caller, request("GET", "/")).await;
        assert!(answer.status() == 504 && text.contains("idle_timeout"), "{text}");
    });
}

#[test]
fn silence_behind_an_interim_answer_is_504_too() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a request comes");
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("the proxy reads");
            std::future::pending().await
        })
        .await;
        world.publish(treated(port, silent_for(IDLE))).await;
        let answer = world.ask(GET).await;
        let last = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or_default();
        assert!(last.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
    });
}

#[test]
fn an_answer_that_falls_silent_is_cut_and_one_that_goes_on_is_not() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            let head = read_head(&mut stream).await.expect("a request comes");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {PIECES}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("so");
            let count = if head.contains("/whole") { PIECES } else { 3 };
            for _ in 0..count {
                tokio::time::sleep(PAUSE).await;
                stream.write_all(b"x").await.expect("the proxy reads");
            }
            std::future::pending::<()>().await;
        })
        .await;
        world.publish(treated(port, silent_for(IDLE))).await;
        let whole = world.ask(&GET.replace("/path", "/whole")).await;
        assert!(whole.ends_with(&format!("\r\n\r\n{}", "x".repeat(PIECES))), "{whole}");
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        let mut all = Vec::new();
        caller.read_to_end(&mut all).await.expect_err("a cut is no end");
        assert!(all.ends_with(b"\r\n\r\nxxx"), "{all:?}");
    });
}

#[test]
fn a_websocket_on_which_nothing_is_said_ends_and_one_that_talks_does_not() {
    run(|mut world| async move {
        world.publish(treated(socket_server().await, silent_for(IDLE))).await;
        let mut caller = socket(&world).await;
        for _ in 0..PIECES {
            tokio::time::sleep(PAUSE).await;
            echo(&mut caller).await;
        }
        assert_eq!(read_all(&mut caller).await, "");
    });
}
