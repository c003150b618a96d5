//! What streams may take: places, and memory for answers that nobody reads.

use std::pin::Pin;
use std::task::{Context, Waker};

use super::super::crowd::{caller, connect_from};
use super::*;
use crate::control::ToProxy;

/// A Machine that has heads, and answers none.
async fn silent() -> u16 {
    machine(|mut stream| async move {
        while read_head(&mut stream).await.is_some() {}
        std::future::pending().await
    })
    .await
}

#[test]
fn each_stream_but_the_first_of_a_connection_takes_a_place_as_a_connection_does() {
    run(|_| async {
        // Two of eight places are one source's share.
        let mut world = World::with_places(8).await;
        world.publish(app("started", silent().await)).await;
        let (client, _) = client(&world).await;
        let (_first, mut sending) = begin(&client, request("POST", "/first")).await;
        let (second, _) = begin(&client, request("POST", "/second")).await;
        let (third, _) = begin(&client, request("POST", "/third")).await;
        let refused = third.await.expect_err("it has its share");
        assert_eq!(refused.reason(), Some(Reason::REFUSED_STREAM));
        sending.send_reset(Reason::CANCEL);
        drop(second);
        loop {
            // The place of a stream that was reset is free when its task has ended.
            let (next, _) = begin(&client, request("POST", "/next")).await;
            let waits = tokio::time::timeout(Duration::from_millis(100), next).await;
            if waits.is_err() {
                return;
            }
        }
    });
}

/// Begins so many streams that are not answered, of which the last so many are refused.
async fn flood(client: &Client, count: usize, refused: usize) -> Vec<Pin<Box<ResponseFuture>>> {
    let mut answers = Vec::new();
    for _ in 0..count {
        let mut ready = client.clone().ready().await.expect("the connection is there");
        let (answer, _) = ready.send_request(request("GET", "/silent"), true).expect("it goes out");
        answers.push(Box::pin(answer));
    }
    for answer in answers.split_off(count - refused) {
        let error = answer.await.expect_err("there is no place for it");
        assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
    }
    check_waiting(&mut answers);
    answers
}

fn check_waiting(answers: &mut [Pin<Box<ResponseFuture>>]) {
    let mut context = Context::from_waker(Waker::noop());
    for answer in answers {
        assert!(answer.as_mut().poll(&mut context).is_pending());
    }
}

#[test]
fn an_app_has_half_of_all_places_also_by_streams() {
    run(|_| async {
        let mut world = World::with_places(16).await;
        world.publish(app("started", half_silent().await)).await;
        let known = client_over(connect_from(9, world.http).await).await.0;
        // Which app it is is known when this is answered.
        ask(&known, request("GET", "/")).await;
        let mut waiting = flood(&known, 1, 0).await;
        let mut clients = Vec::new();
        for source in 1..=3 {
            let client = client_over(connect_from(source, world.http).await).await.0;
            waiting.extend(flood(&client, 1, 0).await);
            clients.push(client);
        }
        // Each source may have four places, and the app eight of all.
        for (client, count, refused) in [(0, 4, 1), (1, 3, 2), (2, 2, 2)] {
            waiting.extend(flood(&clients[client], count, refused).await);
        }
        check_waiting(&mut waiting);
        drop((clients.remove(0), waiting));
        loop {
            // Its places are free when its tasks have ended.
            let mut ready = clients[1].clone().ready().await.expect("the connection is there");
            let (next, _) = ready.send_request(request("GET", "/silent"), true).expect("it goes");
            if tokio::time::timeout(Duration::from_millis(100), next).await.is_err() {
                return;
            }
        }
    });
}

#[test]
fn a_machine_has_no_more_streams_than_connections() {
    run(|_| async {
        let mut world = World::with_places(40).await;
        let limited = settings_with(|settings| {
            (settings.caller_connections_max, settings.notes) = (3, true);
        });
        world.send(limited).await;
        world.send(ToProxy::App(app("started", half_silent().await))).await;
        world.publish(caller()).await;
        let (others, _) = client_over(connect_from(2, world.http).await).await;
        ask(&others, request("GET", "/")).await;
        let mut others = flood(&others, 5, 0).await;
        let (client, _) = client_over(connect_from(1, world.http).await).await;
        let _waiting = flood(&client, 5, 2).await;
        check_waiting(&mut others);
        let told = loop {
            if let FromProxy::Note(note) = world.heard().await {
                break note.reason;
            }
        };
        assert!(told.contains("as many connections as it may have"), "{told}");
    });
}

#[test]
fn interim_answers_without_end_are_cut_off() {
    run(|mut world| async move {
        let port = machine(|mut stream| async move {
            read_head(&mut stream).await.expect("a head comes");
            while stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
        })
        .await;
        world.publish(app("started", port)).await;
        let (client, _) = client(&world).await;
        let (answer, text) = ask(&client, request("POST", "/")).await;
        assert_eq!(answer.status(), 502);
        assert!(text.starts_with("PU02 "), "{text}");
    });
}
