//! Requests that say where they want to go (PX-30..33, PX-36, AS-80).

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::http::with_calling_machine;
use super::world::*;
use crate::control::{AppView, FromProxy, StartOutcome, ToProxy};

pub(super) const OTHER: &str = "00000000000002";

/// A request with these fields, on a connection of its own.
pub(super) fn get(fields: &str) -> String {
    format!("GET /path HTTP/1.1\r\nHost: app.flycast\r\n{fields}Connection: close\r\n\r\n")
}

/// Says who it is, and then the head that it got.
pub(super) async fn named(name: &'static str) -> u16 {
    machine(move |mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let body = format!("{name} {head}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Two Machines, one in each of these states; their programs are called `first` and `second`.
pub(super) async fn two(first: &str, second: &str) -> AppView {
    let mut view = app(first, named("first").await);
    let other = app(second, named("second").await).machines.remove(0);
    view.machines.push(other);
    view.machines[1].id = OTHER.to_owned();
    view
}

fn check(answer: &str, machine: &str) {
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("\r\n\r\n{machine} ")),
        "{answer}"
    );
}

#[test]
fn a_forced_machine_gets_the_request_and_sees_what_was_asked() {
    run_each(|mut world| async move {
        world.publish(two("started", "started").await).await;
        for (id, name) in [(MACHINE, "first"), (OTHER, "second")] {
            for _ in 0..8 {
                let answer = world.ask(&get(&format!("fly-force-instance-id: {id}\r\n"))).await;
                check(&answer, name);
                assert!(
                    answer.contains(&format!("fly-force-instance-id: {id}\r\n")),
                    "PX-36: {answer}"
                );
            }
        }
        let both =
            format!("Fly-Prefer-Instance-Id: {MACHINE}\r\nFly-Force-Instance-Id: {OTHER}\r\n");
        check(&world.ask(&get(&both)).await, "second");
    });
}

#[test]
fn a_named_machine_that_sleeps_is_woken_whatever_runs() {
    for kind in ["Force", "Prefer"] {
        run_each(|mut world| async move {
            let view = two("started", "stopped").await;
            world.publish(view.clone()).await;
            let request = get(&format!("Fly-{kind}-Instance-Id: {OTHER}\r\n"));
            let caller = world.begin(&request).await;
            world.start(view, 1).await;
            let answer = caller.answer().await;
            check(&answer, "second");
            assert!(answer.contains("Perch-Wake: start;"), "{answer}");
            assert!(!answer.contains("Unavailable"), "{answer}");
        });
    }
}

#[test]
fn the_record_of_such_a_wake_has_the_request_that_wanted_it() {
    run_each(|mut world| async move {
        world.publish(two("stopped", "stopped").await).await;
        let request = get(&format!("Fly-Force-Instance-Id: {OTHER}\r\n"));
        let _caller = world.begin(&request).await;
        let FromProxy::Start { machine, cause, .. } = world.heard().await else {
            panic!("a start was expected");
        };
        assert_eq!(machine, OTHER);
        assert_eq!(cause.and_then(|cause| cause.request).as_deref(), Some("GET /path"));
    });
}

#[test]
fn a_forced_machine_that_cannot_be_had_is_an_error_and_never_another_one() {
    run_each(|mut world| async move {
        let mut view = two("started", "started").await;
        view.machines[1].cordoned = true;
        world.publish(view).await;
        let forced = |id: &str| get(&format!("Fly-Force-Instance-Id: {id}\r\n"));
        let answer = world.ask(&forced(OTHER)).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PM08"), "PX-67: {answer}");
        for unknown in ["00000000000003", "x", "", &"f".repeat(10_000), "\u{e9}"] {
            let answer = world.ask(&forced(unknown)).await;
            assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("PR02"), "{answer}");
        }
    });
}

#[test]
fn a_forced_machine_that_does_not_start_is_an_error_and_a_preferred_one_is_not() {
    for (kind, wanted) in [("Force", "HTTP/1.1 503"), ("Prefer", "HTTP/1.1 200")] {
        run_each(|mut world| async move {
            world.publish(two("started", "stopped").await).await;
            let request = get(&format!("Fly-{kind}-Instance-Id: {OTHER}\r\n"));
            let caller = world.begin(&request).await;
            let FromProxy::Start { machine, attempt, .. } = world.heard().await else {
                panic!("a start was expected");
            };
            let outcome = StartOutcome::Failed { reason: "no such program".to_owned() };
            world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
            let answer = caller.answer().await;
            assert!(answer.starts_with(wanted), "{kind}: {answer}");
            if kind == "Force" {
                assert!(answer.contains("PM01") && answer.contains("no such program"), "{answer}");
            } else {
                check(&answer, "first");
                let told = format!("Fly-Preferred-Instance-Unavailable: {OTHER}\r\n");
                assert!(answer.contains(&told), "PX-09: {answer}");
            }
        });
    }
}

#[test]
fn another_machine_is_told_that_the_preferred_one_was_not_available() {
    run_each(|mut world| async move {
        let mut view = two("started", "stopped").await;
        view.machines[1].services.iter_mut().for_each(|s| s.autostart = false);
        world.publish(view).await;
        for unknown in [OTHER, "00000000000003", "not-an-id", &"f".repeat(5_000)] {
            let answer = world.ask(&get(&format!("Fly-Prefer-Instance-Id: {unknown}\r\n"))).await;
            check(&answer, "first");
            let told = &unknown[..unknown.len().min(64)];
            let told = format!("Fly-Preferred-Instance-Unavailable: {told}\r\n");
            assert!(answer.contains(&told), "PX-09: {answer}");
        }
        let forged =
            "Fly-Preferred-Instance-Unavailable: x\r\nfly_preferred-instance-unavailable: y\r\n";
        let answer = world.ask(&get(forged)).await;
        assert!(!answer.to_lowercase().contains("unavailable"), "only we say that: {answer}");
    });
}

#[test]
fn a_preferred_machine_at_its_hard_limit_is_not_waited_for() {
    run_each(|mut world| async move {
        let mut view = two("started", "started").await;
        let inside = Rc::new(Notify::new());
        let entered = Rc::clone(&inside);
        let slow = machine(move |mut stream| {
            let entered = Rc::clone(&entered);
            async move {
                read_head(&mut stream).await.expect("a request comes");
                entered.notify_one();
                // Until the caller has gone.
                let _over = stream.read_u8().await.is_err();
            }
        })
        .await;
        view.machines[1].services[0].internal_port = slow;
        view.machines[1].services[0].hard_limit = Some(1);
        world.publish(view).await;
        let force = get(&format!("Fly-Force-Instance-Id: {OTHER}\r\n"));
        let caller = world.begin(&force).await;
        inside.notified().await;
        let answer = world.ask(&get(&format!("Fly-Prefer-Instance-Id: {OTHER}\r\n"))).await;
        check(&answer, "first");
        assert!(answer.contains("Fly-Preferred-Instance-Unavailable"), "{answer}");
        drop(caller);
    });
}

#[test]
fn regions_are_tried_in_order_and_forced_ones_have_no_fallback() {
    run_each(|mut world| async move {
        let mut view = two("started", "started").await;
        view.machines[1].region = "fra".to_owned();
        world.publish(view).await;
        for (fields, machine) in [
            ("Fly-Prefer-Region: fra\r\n", "second"),
            ("Fly-Prefer-Region: sjc,eu,lcl\r\n", "second"),
            ("Fly-Prefer-Region: lcl,fra\r\n", "first"),
            ("Fly-Prefer-Region: sjc\r\n", "first"),
            ("Fly-Prefer-Region: !!,\r\n", "first"),
            ("Fly-Force-Region: ams,FRA\r\n", "second"),
            ("Fly-Force-Region: any\r\n", "first"),
            ("Fly-Prefer-Region: fra\r\nFly-Force-Region: lcl\r\n", "first"),
        ] {
            let answer = world.ask(&get(fields)).await;
            let wanted = answer.starts_with("HTTP/1.1 200")
                && (answer.contains(&format!("\r\n\r\n{machine} ")) || fields.contains("any"));
            assert!(wanted, "{fields}: {answer}");
        }
        for fields in ["Fly-Force-Region: ams\r\n", "Fly-Force-Region: us,nowhere,,\r\n"] {
            let answer = world.ask(&get(fields)).await;
            assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PR04"), "{answer}");
        }
    });
}

#[test]
fn a_preferred_region_is_woken() {
    run_each(|mut world| async move {
        let mut view = two("started", "stopped").await;
        view.machines[1].region = "fra".to_owned();
        world.publish(view.clone()).await;
        let caller = world.begin(&get("Fly-Prefer-Region: fra\r\n")).await;
        world.start(view, 1).await;
        check(&caller.answer().await, "second");
    });
}

#[test]
fn who_leaves_while_a_named_machine_wakes_leaves_nothing_behind() {
    run_each(|mut world| async move {
        let view = two("started", "stopped").await;
        world.publish(view.clone()).await;
        let force = get(&format!("Fly-Force-Instance-Id: {OTHER}\r\n"));
        let gone = world.begin(&force).await;
        let waits = world.begin(&force).await;
        drop(gone);
        world.start(view, 1).await;
        check(&waits.answer().await, "second");
        check(&world.ask(&force).await, "second");
    });
}

#[test]
fn many_and_strange_fields_do_no_harm() {
    run_each(|mut world| async move {
        world.publish(two("started", "started").await).await;
        let many: String = (0..100).map(|n| format!("Fly-Prefer-Region: r{n}\r\n")).collect();
        for fields in [
            many,
            format!("Fly-Prefer-Region: {}\r\n", "eu,".repeat(4_000)),
            format!("Fly-Prefer-Instance-Id: {OTHER}\r\n").repeat(40),
            format!("Connection: fly-force-instance-id\r\nFly-Force-Instance-Id: {OTHER}\r\n"),
            "fly_force_instance_id: x\r\n".to_owned(),
            "Fly-Force-Instance-Id_: x\r\n".to_owned(),
        ] {
            let answer = world.ask(&get(&fields)).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{fields:.80}: {answer:.200}");
        }
    });
}

#[test]
fn calls_of_the_same_pool_that_had_to_wait_for_their_machine_do_not_keep_it_awake() {
    run_each(|mut world| async move {
        let slow = machine(|mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let mut view = with_calling_machine(slow, true);
        view.machines.iter_mut().for_each(|m| m.services[0].hard_limit = Some(1));
        world.publish(view).await;
        let (http, request) = (world.http, get(&format!("Fly-Force-Instance-Id: {MACHINE}\r\n")));
        let call = async || {
            let mut stream = TcpStream::connect(http).await.expect("the proxy listens");
            stream.write_all(request.as_bytes()).await.expect("the proxy reads");
            assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
        };
        let calls = async {
            loop {
                // Of two at once one has to wait.
                tokio::join!(call(), call());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let is_it = |heard: &FromProxy| matches!(heard, FromProxy::Stop { machine, .. } if machine == MACHINE);
        let stopped = async { while !is_it(&world.heard().await) {} };
        tokio::select! {
            () = calls => {}
            () = stopped => {}
        }
    });
}
