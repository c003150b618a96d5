//! What streams may take: places, and memory for answers that nobody reads.

use super::*;

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
