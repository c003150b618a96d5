//! WebSockets: what the proxy says on them by itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use perch_core::websocket::GOING_AWAY;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::sleeper::{LONG, napping, stopping};
use super::upgrade::{TAKEN, socket};
use super::world::*;
use crate::control::{AppView, FromProxy};

const TEXT: &[u8] = b"\x81\x05hello";
/// "hello" as callers say it, with a mask of zeros.
const ASKED: &[u8] = b"\x81\x85\0\0\0\0hello";
const PING: &[u8] = b"\x89\x82\x01\x01\x01\x01\x60\x63";
const PONG: &[u8] = b"\x8a\x02ab";

/// The program's end of one WebSocket.
struct Program {
    says: UnboundedSender<Vec<u8>>,
    heard: Rc<RefCell<Vec<u8>>>,
}

impl Program {
    /// A Machine that takes one WebSocket, says what it is told to, and notes what it hears. It resets the connection when it is told
    /// to say nothing.
    async fn start() -> (u16, Self) {
        let (says, told) = unbounded_channel::<Vec<u8>>();
        let heard = Rc::new(RefCell::new(Vec::new()));
        let (told, noted) = (Rc::new(RefCell::new(Some(told))), Rc::clone(&heard));
        let port = machine(move |stream| {
            let told = told.borrow_mut().take().expect("one connection comes");
            serve(stream, told, Rc::clone(&noted))
        })
        .await;
        (port, Self { says, heard })
    }

    fn say(&self, bytes: &[u8]) {
        self.says.send(bytes.to_vec()).expect("it listens");
    }

    /// Waits until it has heard this, and no more.
    async fn hears(&self, bytes: &[u8]) {
        while self.heard.borrow().len() < bytes.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(*self.heard.borrow(), bytes);
    }
}

async fn serve(
    mut stream: TcpStream,
    mut told: UnboundedReceiver<Vec<u8>>,
    heard: Rc<RefCell<Vec<u8>>>,
) {
    read_head(&mut stream).await.expect("a request comes");
    stream.write_all(TAKEN).await.expect("the proxy reads");
    let mut bytes = [0; 256];
    loop {
        tokio::select! {
            count = stream.read(&mut bytes) => match count {
                Ok(count) if count != 0 => heard.borrow_mut().extend_from_slice(&bytes[..count]),
                Ok(_) | Err(_) => return,
            },
            said = told.recv() => match said {
                Some(said) if said.is_empty() => return stream.set_zero_linger().expect("it is open"),
                Some(said) => stream.write_all(&said).await.expect("the proxy reads"),
                None => return,
            },
        }
    }
}

async fn reads(caller: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    caller.read_exact(&mut bytes).await.expect("something comes");
    assert_eq!(bytes, expected);
}

async fn ends_with(caller: &mut TcpStream, expected: &[u8]) {
    let mut bytes = Vec::new();
    caller.read_to_end(&mut bytes).await.expect("it ends well");
    assert_eq!(bytes, expected);
}

/// A WebSocket to a Machine that is up.
async fn connected(world: &mut World) -> (AppView, Program, TcpStream) {
    let (port, program) = Program::start().await;
    let view = stopping(port);
    world.publish(view.clone()).await;
    let caller = socket(world).await;
    (view, program, caller)
}

/// A WebSocket that rests, under a Machine that sleeps.
async fn asleep(world: &mut World) -> (AppView, Program, TcpStream) {
    let (port, program) = Program::start().await;
    let mut view = napping(port);
    world.publish(view.clone()).await;
    let mut caller = socket(world).await;
    program.say(TEXT);
    reads(&mut caller, TEXT).await;
    world.suspend(&mut view).await;
    (view, program, caller)
}

#[test]
fn a_caller_is_told_that_its_machine_goes_before_it_does() {
    for state in ["stopping", "stopped", "replacing", "destroying"] {
        run(|mut world| async move {
            let (mut view, program, mut caller) = connected(&mut world).await;
            program.say(TEXT);
            reads(&mut caller, TEXT).await;
            world.show(&mut view, state).await;
            ends_with(&mut caller, &GOING_AWAY).await;
            // It takes its leave of the program too.
            caller.write_all(b"\x88\x82\0\0\0\0\x03\xe9").await.expect("somebody reads");
            drop(caller);
            program.hears(b"\x88\x82\0\0\0\0\x03\xe9").await;
        });
    }
}

#[test]
fn the_last_word_comes_between_two_frames_and_behind_whole_ones() {
    run(|mut world| async move {
        let (mut view, program, mut caller) = connected(&mut world).await;
        program.say(&TEXT[..3]);
        reads(&mut caller, &TEXT[..3]).await;
        world.show(&mut view, "stopping").await;
        let more = tokio::time::timeout(Duration::from_millis(100), caller.read_u8()).await;
        assert!(more.is_err(), "in the middle of a frame: {more:?}");
        program.say(&[&TEXT[3..], TEXT, &TEXT[..2]].concat());
        ends_with(&mut caller, &[&TEXT[3..], TEXT, &GOING_AWAY].concat()).await;
    });
}

#[test]
fn who_has_had_a_close_or_no_frames_gets_none() {
    for said in [&b"\x88\x02\x03\xe8"[..], b"no frame", b"\x81\x85 masked"] {
        run(|mut world| async move {
            let (mut view, program, mut caller) = connected(&mut world).await;
            program.say(said);
            reads(&mut caller, said).await;
            world.show(&mut view, "stopping").await;
            drop(program);
            ends_with(&mut caller, b"").await;
        });
    }
}

#[test]
fn a_program_that_ends_by_itself_says_nothing_by_us() {
    run(|mut world| async move {
        let (_, program, mut caller) = connected(&mut world).await;
        drop(program);
        ends_with(&mut caller, b"").await;
    });
}

#[test]
fn a_reset_of_a_run_that_has_ended_is_a_farewell() {
    run(|mut world| async move {
        let (mut view, program, mut caller) = connected(&mut world).await;
        program.say(b"");
        // What the server knows comes a little later.
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.show(&mut view, "stopped").await;
        ends_with(&mut caller, &GOING_AWAY).await;
    });
}

#[test]
fn the_proxys_own_end_is_told_too() {
    run(|mut world| async move {
        let (_, _program, mut caller) = connected(&mut world).await;
        tokio::join!(world.running.end(LONG), ends_with(&mut caller, &GOING_AWAY));
    });
}

#[test]
fn a_socket_of_a_machine_that_was_just_started_is_not_told_that_it_goes() {
    run(|mut world| async move {
        let (port, program) = Program::start().await;
        let view = app("stopped", port);
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        caller.write_all(super::upgrade::ASK.as_bytes()).await.expect("the proxy reads");
        world.start(view, 0).await;
        read_head(&mut caller).await.expect("a head comes");
        program.say(TEXT);
        reads(&mut caller, TEXT).await;
    });
}

#[test]
fn pings_are_answered_while_the_machine_sleeps_and_wake_nobody() {
    run(|mut world| async move {
        let (mut view, program, mut caller) = asleep(&mut world).await;
        let pong: &[u8] = b"\x8a\x80\0\0\0\0";
        for said in [PING, &[PING, pong, PING].concat()] {
            caller.write_all(said).await.expect("the proxy reads");
            reads(&mut caller, PONG).await;
        }
        reads(&mut caller, PONG).await;
        // One that comes in pieces is answered when it is whole.
        for piece in PING.chunks(3) {
            caller.write_all(piece).await.expect("the proxy reads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        reads(&mut caller, PONG).await;
        world.hears_nothing().await;
        // What is for the Machine wakes it, and it hears of no ping.
        caller.write_all(&[PING, ASKED].concat()).await.expect("the proxy reads");
        reads(&mut caller, PONG).await;
        world.thaw(&mut view).await;
        program.hears(ASKED).await;
    });
}

#[test]
fn what_begins_as_a_ping_and_is_none_reaches_the_machine_whole() {
    for said in [&b"\x89\x02ab"[..], b"\x89\xfe\0\x7f"] {
        run(|mut world| async move {
            let (mut view, program, mut caller) = asleep(&mut world).await;
            caller.write_all(&said[..1]).await.expect("the proxy reads");
            world.hears_nothing().await;
            caller.write_all(&said[1..]).await.expect("the proxy reads");
            world.thaw(&mut view).await;
            program.hears(said).await;
        });
    }
}

#[test]
fn a_caller_who_leaves_within_a_ping_wakes_nobody() {
    run(|mut world| async move {
        let (_, program, mut caller) = asleep(&mut world).await;
        caller.write_all(&PING[..4]).await.expect("the proxy reads");
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(caller);
        world.hears_nothing().await;
        program.hears(&PING[..4]).await;
    });
}

#[test]
fn in_the_middle_of_a_frame_of_the_machines_a_ping_is_the_machines_to_answer() {
    run(|mut world| async move {
        let (port, program) = Program::start().await;
        let mut view = napping(port);
        world.publish(view.clone()).await;
        let mut caller = socket(&world).await;
        program.say(&TEXT[..4]);
        reads(&mut caller, &TEXT[..4]).await;
        world.suspend(&mut view).await;
        caller.write_all(PING).await.expect("the proxy reads");
        world.thaw(&mut view).await;
        program.hears(PING).await;
    });
}

#[test]
fn pings_of_both_sides_keep_nobody_awake() {
    run(|mut world| async move {
        let (port, program) = Program::start().await;
        world.publish(napping(port)).await;
        let mut caller = socket(&world).await;
        let pings = async {
            loop {
                caller.write_all(PING).await.expect("the proxy reads");
                program.say(b"\x89\x00");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = pings => {}
            message = world.heard() => assert!(matches!(message, FromProxy::Stop { .. })),
        }
    });
}

#[test]
fn a_ping_of_http2_wakes_nobody_and_is_no_load() {
    run(|mut world| async move {
        let mut view = napping(1);
        world.publish(view.clone()).await;
        let (_requests, mut connection) =
            h2::client::handshake(world.connect().await).await.expect("the proxy speaks HTTP/2");
        let mut pings = connection.ping_pong().expect("nobody else has it");
        tokio::task::spawn_local(async move { drop(connection.await) });
        let asleep = Cell::new(false);
        let talk = async {
            while !asleep.get() {
                pings.ping(h2::Ping::opaque()).await.expect("a pong comes");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let sleep = async {
            world.suspend(&mut view).await;
            asleep.set(true);
        };
        tokio::join!(sleep, talk);
        for _ in 0..3 {
            pings.ping(h2::Ping::opaque()).await.expect("a pong comes");
        }
        let heard = tokio::time::timeout(LONG, world.heard()).await;
        assert!(heard.is_err(), "{heard:?}");
    });
}
