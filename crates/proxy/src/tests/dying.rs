//! Runs that end under a request: whoever may be asked again is, and nobody is asked for ever.

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use super::world::*;
use crate::control::ToProxy;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A program that reads requests and closes all connections but the `answered` first without a word about the last
/// one; counts those, and tells of each.
struct Silent {
    port: u16,
    closed: Rc<Cell<u32>>,
    told: Rc<Notify>,
}

/// What of its requests a program answers.
#[derive(Debug, Clone, Copy)]
enum Answers {
    Nothing,
    /// The first request of its first connection.
    First,
    /// All after so many connections.
    After(u32),
}

async fn silent(answers: Answers) -> Silent {
    let (closed, told) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
    let (counter, teller, connections) = (Rc::clone(&closed), Rc::clone(&told), Cell::new(0));
    let port = machine(move |mut stream| {
        let (counter, teller, before) =
            (Rc::clone(&counter), Rc::clone(&teller), connections.get());
        connections.set(before + 1);
        async move {
            let mut left = match answers {
                Answers::First if before == 0 => 1,
                Answers::After(count) if count <= before => u32::MAX,
                _ => 0,
            };
            while read_head(&mut stream).await.is_some() {
                if left == 0 {
                    drop(stream);
                    counter.set(counter.get() + 1);
                    return teller.notify_one();
                }
                left -= 1;
                stream.write_all(OK.as_bytes()).await.expect("the proxy reads");
            }
        }
    })
    .await;
    Silent { port, closed, told }
}

#[test]
fn a_dying_run_that_takes_two_connections_costs_nobody_an_answer() {
    run(|mut world| async move {
        let dying = silent(Answers::Nothing).await;
        world.publish(app("started", dying.port)).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        while dying.closed.get() < 2 {
            dying.told.notified().await;
        }
        let mut ended = app("stopped", machine(echo_heads).await);
        ended.machines[0].run = 1;
        ended.revision += 1;
        world.send(ToProxy::App(ended.clone())).await;
        world.start(ended, 0).await;
        let answer = read_all(&mut caller).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(dying.closed.get(), 2);
    });
}

#[test]
fn who_listens_again_before_its_end_is_known_gets_the_request() {
    run(|mut world| async move {
        for answers in [Answers::After(1), Answers::After(2)] {
            let program = silent(answers).await;
            world.publish(app("started", program.port)).await;
            let answer = world.ask(GET).await;
            assert!(answer.ends_with("\r\n\r\nok"), "{answers:?}: {answer}");
            world = World::new().await;
        }
    });
}

#[test]
fn a_pooled_connection_and_a_new_one_may_both_be_a_dying_runs() {
    run(|mut world| async move {
        let dying = silent(Answers::First).await;
        world.publish(app("started", dying.port)).await;
        assert!(world.ask(GET).await.ends_with("\r\n\r\nok"));
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        while dying.closed.get() < 2 {
            dying.told.notified().await;
        }
        let mut next = app("started", machine(echo_heads).await);
        next.machines[0].run = 2;
        next.revision += 1;
        world.send(ToProxy::App(next)).await;
        let answer = read_all(&mut caller).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    });
}

#[test]
fn a_program_that_goes_on_and_never_answers_is_asked_three_times() {
    run(|mut world| async move {
        let program = silent(Answers::Nothing).await;
        world.publish(app("started", program.port)).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("PU02"), "{answer}");
        assert_eq!(program.closed.get(), 3);
    });
}

#[test]
fn a_request_that_two_runs_die_of_is_given_to_no_third() {
    run(|mut world| async move {
        let (first, second) = (silent(Answers::Nothing).await, silent(Answers::Nothing).await);
        world.publish(app("started", first.port)).await;
        let mut caller = world.connect().await;
        caller.write_all(GET.as_bytes()).await.expect("the proxy reads");
        first.told.notified().await;
        let mut next = app("started", second.port);
        next.machines[0].run = 2;
        next.revision += 1;
        world.send(ToProxy::App(next)).await;
        let answer = read_all(&mut caller).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(second.closed.get(), 1);
    });
}

#[test]
fn what_must_not_be_sent_twice_is_not_even_if_a_run_dies_of_it() {
    run(|mut world| async move {
        let program = silent(Answers::Nothing).await;
        world.publish(app("started", program.port)).await;
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let answer = world.ask(post).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert_eq!(program.closed.get(), 1);
    });
}
