//! What the ledger is told, and what callers are.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::*;
use crate::control::{FromProxy, Note, NoteKind, Source};

/// The next note; starts on the way are done.
async fn note(world: &mut World) -> Note {
    loop {
        if let FromProxy::Note(note) = world.heard().await {
            return *note;
        }
    }
}

async fn world_with_notes(world: &mut World) {
    world.send(settings_with(|settings| settings.notes = true)).await;
}

fn check_sum(note: &Note) {
    let sum: u64 = note.phases.iter().map(|phase| phase.micros).sum();
    assert_eq!(sum, note.total_micros, "{note:?}");
}

#[test]
fn who_waited_for_a_start_is_told_with_phases_that_add_up_and_in_the_header() {
    run(|mut world| async move {
        world_with_notes(&mut world).await;
        let view = app("stopped", machine(echo_heads).await);
        world.publish(view.clone()).await;
        let mut callers = [world.connect().await, world.connect().await];
        for caller in &mut callers {
            caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        }
        world.start(view, 0).await;
        for caller in &mut callers {
            let answer = read_all(caller).await;
            assert!(answer.contains("\r\nPerch-Wake: start;dur="), "{answer}");
        }
        let notes = [note(&mut world).await, note(&mut world).await];
        assert_eq!(notes.iter().filter(|note| note.first).count(), 1, "{notes:?}");
        for (note, caller) in notes.iter().zip(&callers) {
            check_sum(note);
            assert_eq!((note.kind, note.how.as_str(), note.run), (NoteKind::Hold, "start", 1));
            assert_eq!(note.machine.as_deref(), Some(MACHINE));
            let cause = note.cause.as_ref().expect("somebody called");
            assert_eq!((&cause.source, cause.dest.port()), (&Source::Host, 80));
            assert_eq!(cause.request.as_deref(), Some("GET /path"));
            assert_ne!(cause.caller_port, 0, "{caller:?}");
        }
        let answer = world.ask(GET).await;
        assert!(!answer.contains("Perch-Wake"), "{answer}");
    });
}

#[test]
fn who_waited_for_room_is_told_as_a_hold() {
    run(|mut world| async move {
        world_with_notes(&mut world).await;
        let slow = |mut stream: tokio::net::TcpStream| async move {
            let head = read_head(&mut stream).await.expect("a request comes");
            if head.starts_with("POST") {
                stream.read_u8().await.expect("its body comes");
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.expect("it reads");
        };
        let mut view = app("started", machine(slow).await);
        for service in &mut view.machines[0].services {
            (service.soft_limit, service.hard_limit) = (1, Some(1));
        }
        world.publish(view).await;
        let mut first = world.connect().await;
        let post = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\n";
        first.write_all(post).await.expect("the proxy reads");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let mut second = world.connect().await;
        second.write_all(GET.as_bytes()).await.expect("the proxy reads");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        first.write_all(b"x").await.expect("the proxy reads");
        first.read_to_end(&mut Vec::new()).await.expect("it ends");
        let answer = read_all(&mut second).await;
        assert!(answer.contains("\r\nPerch-Wake: hold;dur="), "{answer}");
        let note = note(&mut world).await;
        check_sum(&note);
        assert_eq!((note.kind, note.how.as_str(), note.first), (NoteKind::Hold, "hold", false));
    });
}

#[test]
fn who_is_sent_away_and_who_leaves_are_told_with_the_reason() {
    run(|mut world| async move {
        world_with_notes(&mut world).await;
        let mut view = app("stopped", 1);
        world.publish(view.clone()).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        assert!(matches!(world.heard().await, FromProxy::Start { .. }));
        drop(caller);
        let left = note(&mut world).await;
        assert_eq!((left.kind, left.reason.as_str()), (NoteKind::Hold, "the caller left"));
        for service in &mut view.machines[0].services {
            service.autostart = false;
        }
        view.revision += 1;
        world.publish(view).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 503"));
        let refused = note(&mut world).await;
        assert_eq!(refused.kind, NoteKind::Refusal);
        assert!(refused.reason.starts_with("PR01"), "{refused:?}");
        assert_eq!(refused.cause.and_then(|cause| cause.request).as_deref(), Some("GET /path"));
    });
}

#[test]
fn nobody_else_says_what_a_request_waited_for() {
    run(|mut world| async move {
        let lying = |mut stream: tokio::net::TcpStream| async move {
            let head = read_head(&mut stream).await.expect("a request comes");
            assert!(!head.to_ascii_lowercase().contains("perch-wake"), "{head}");
            let answer = "HTTP/1.1 200 OK\r\nperch-WAKE: thaw;dur=0.1\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("it reads");
        };
        world.publish(app("started", machine(lying).await)).await;
        let request = GET.replace("Connection", "Perch-Wake: start;dur=9\r\nConnection");
        let answer = world.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("perch-wake"), "{answer}");
    });
}
