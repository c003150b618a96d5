//! Callers that break the rules, or use them up.

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;

use super::super::world::*;
use super::frames::*;

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "app.flycast")];

/// A Machine that counts whom it hears of.
async fn counting(world: &mut World) -> Rc<Cell<u32>> {
    let count = Rc::new(Cell::new(0));
    let counted = Rc::clone(&count);
    let port = machine(move |stream| {
        counted.set(counted.get() + 1);
        echo_heads(stream)
    })
    .await;
    world.publish(app("started", port)).await;
    count
}

/// Sends these fields as a request without a body.
async fn sent(world: &World, list: &[(&str, &str)]) -> Frame {
    let mut stream = world.connect().await;
    greet(&mut stream).await;
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(list));
    stream.write_all(&head).await.expect("the proxy reads");
    verdict(&mut stream, 1).await.expect("an answer comes")
}

fn with(field: (&'static str, &'static str)) -> Vec<(&'static str, &'static str)> {
    GOOD.iter().copied().chain([field]).collect()
}

fn replaced(field: (&'static str, &'static str)) -> Vec<(&'static str, &'static str)> {
    let others = GOOD.iter().copied().filter(|(name, _)| *name != field.0);
    // Pseudo fields come first.
    [field].into_iter().chain(others).collect()
}

/// `:status 400`, as the static table of HPACK has it (RFC 7541, appendix A).
fn is_400(frame: &Frame) -> bool {
    frame.kind == HEADERS && frame.payload.first() == Some(&(0x80 | 12))
}

#[test]
fn heads_that_could_be_read_in_two_ways_reach_no_machine() {
    run(|mut world| async move {
        let count = counting(&mut world).await;
        let heads = [
            with(("connection", "close")),
            with(("keep-alive", "1")),
            with(("proxy-connection", "close")),
            with(("upgrade", "h2c")),
            with(("transfer-encoding", "chunked")),
            with(("te", "gzip")),
            with(("X-Upper", "v")),
            with(("x y", "v")),
            with(("x:y", "v")),
            with(("", "v")),
            with(("x", "a\r\nevil: b")),
            with(("x", "a\nb")),
            with(("x", "a\0b")),
            with(("x\r\nevil", "v")),
            with(("x", " blank")),
            with((":path", "/again")),
            with((":unknown", "v")),
            with((":status", "200")),
            with(("host", "other.flycast")),
            with(("content-length", "5")),
            with(("content-length", "-1")),
            with(("content-length", "0, 0")),
            replaced((":path", "/ HTTP/1.1\r\nevil: b")),
            replaced((":path", "/a b")),
            replaced((":path", "")),
            replaced((":path", "relative")),
            replaced((":method", "GET / HTTP/1.1\r\nx:")),
            replaced((":method", "")),
            replaced((":scheme", "ftp\r\n")),
            replaced((":authority", "app.flycast\r\nevil: b")),
            replaced((":authority", "user@app.flycast")),
            replaced((":authority", "a b")),
            GOOD[..2].to_vec(),
            GOOD[1..].to_vec(),
            [&[("x", "before")], &GOOD[..]].concat(),
        ];
        for head in heads {
            let answer = sent(&world, &head).await;
            let refused = is_400(&answer)
                || (answer.kind == RST_STREAM && answer.code() == PROTOCOL_ERROR)
                || (answer.kind == GOAWAY && answer.code() != 0);
            assert!(refused, "{head:?}: {answer:?}");
        }
        assert_eq!(count.get(), 0);
        let answer = sent(&world, &GOOD).await;
        assert_eq!((answer.kind, answer.payload.first()), (HEADERS, Some(&(0x80 | 8))));
    });
}

#[test]
fn a_tunnel_is_not_implemented() {
    run(|mut world| async move {
        let count = counting(&mut world).await;
        let connect = [(":method", "CONNECT"), (":authority", "app.flycast:80")];
        let answer = sent(&world, &connect).await;
        assert!(matches!(answer.kind, HEADERS | RST_STREAM), "{answer:?}");
        assert_eq!(count.get(), 0);
    });
}

#[test]
fn content_that_is_not_as_long_as_announced_resets_the_stream() {
    run(|mut world| async move {
        counting(&mut world).await;
        for content in ["four", "sixsix"] {
            let mut stream = world.connect().await;
            greet(&mut stream).await;
            let mut head = with(("content-length", "5"));
            head[0].1 = "POST";
            let frames = [
                frame(HEADERS, END_HEADERS, 1, &fields(&head)),
                frame(DATA, END_STREAM, 1, content.as_bytes()),
            ];
            stream.write_all(&frames.concat()).await.expect("the proxy reads");
            let answer = verdict(&mut stream, 1).await.expect("an answer comes");
            assert_eq!((answer.kind, answer.code()), (RST_STREAM, PROTOCOL_ERROR), "{answer:?}");
        }
    });
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    run(|mut world| async move {
        let count = counting(&mut world).await;
        let long = "v".repeat(15 * 1024);
        let answer =
            sent(&world, &[&GOOD[..], &[("x", &long), ("y", "v".repeat(900).as_str())]].concat())
                .await;
        // `:status 431` is not in the static table.
        let refused = answer.kind == HEADERS && answer.payload.first() != Some(&(0x80 | 8));
        assert!(refused || answer.kind == RST_STREAM, "{answer:?}");
        let many: Vec<(&str, &str)> = GOOD.into_iter().chain([("x", "v"); 129]).collect();
        let answer = sent(&world, &many).await;
        assert!(
            answer.kind == HEADERS && answer.payload.first() != Some(&(0x80 | 8)),
            "{answer:?}"
        );
        assert_eq!(count.get(), 0);
    });
}

#[test]
fn who_resets_streams_as_fast_as_he_opens_them_is_sent_away() {
    run(|mut world| async move {
        counting(&mut world).await;
        let mut stream = world.connect().await;
        greet(&mut stream).await;
        let mut flood = Vec::new();
        for n in 0..500 {
            let id = 2 * n + 1;
            flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &fields(&GOOD)));
            flood.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
        }
        // It may be sent away before all is written.
        let _written = stream.write_all(&flood).await.is_ok();
        let mut last = None;
        while let Some(frame) = read_frame(&mut stream).await {
            last = (frame.kind == GOAWAY).then(|| frame.code()).or(last);
        }
        assert_eq!(last, Some(ENHANCE_YOUR_CALM));
    });
}

#[test]
fn more_streams_than_allowed_are_refused_one_by_one() {
    run(|mut world| async move {
        world.publish(app("stopped", 1)).await;
        let mut stream = world.connect().await;
        greet(&mut stream).await;
        let heads: Vec<u8> = (0..130)
            .flat_map(|n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &fields(&GOOD)))
            .collect();
        stream.write_all(&heads).await.expect("the proxy reads");
        const REFUSED_STREAM: u32 = 7;
        for id in [257, 259] {
            let answer = verdict(&mut stream, id).await.expect("an answer comes");
            assert_eq!((answer.kind, answer.code()), (RST_STREAM, REFUSED_STREAM), "{answer:?}");
        }
    });
}

#[test]
fn pings_and_settings_are_answered_one_by_one_whatever_their_number() {
    run(|mut world| async move {
        counting(&mut world).await;
        let mut stream = world.connect().await;
        greet(&mut stream).await;
        let (mut read, mut write) = stream.into_split();
        let count = 20_000;
        let flood = tokio::task::spawn_local(async move {
            let pair = [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])].concat();
            write.write_all(&pair.repeat(count)).await.expect("the proxy reads");
            write
        });
        let mut pongs = 0;
        while pongs < count {
            let mut head = [0; 9];
            tokio::io::AsyncReadExt::read_exact(&mut read, &mut head).await.expect("it goes on");
            let mut payload = vec![0; usize::from(head[2])];
            tokio::io::AsyncReadExt::read_exact(&mut read, &mut payload).await.expect("whole");
            pongs += usize::from(head[3] == PING && head[4] == ACK);
        }
        flood.await.expect("no panic");
    });
}

#[test]
fn the_preface_may_come_byte_by_byte_and_only_first() {
    run(|mut world| async move {
        counting(&mut world).await;
        let mut stream = world.connect().await;
        for byte in PREFACE {
            stream.write_all(&[*byte]).await.expect("the proxy reads");
            tokio::task::yield_now().await;
        }
        let rest = [
            frame(SETTINGS, 0, 0, &[]),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&GOOD)),
        ];
        stream.write_all(&rest.concat()).await.expect("the proxy reads");
        let answer = verdict(&mut stream, 1).await.expect("an answer comes");
        assert_eq!((answer.kind, answer.flags & END_HEADERS), (HEADERS, END_HEADERS));
        let mut later = world.connect().await;
        later.write_all(b"GET / HTTP/1.1\r\nHost: app.flycast\r\n\r\n").await.expect("it reads");
        read_response(&mut later).await;
        later.write_all(PREFACE).await.expect("the proxy reads");
        let answer = read_all(&mut later).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    });
}
