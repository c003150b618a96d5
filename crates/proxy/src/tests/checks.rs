//! Health checks: who gets callers, who is never touched, what the server hears.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::world::*;
use crate::control::{
    AppView, Autostop, CheckResult, CheckView, FromProxy, HttpCheckView, Link, StartOutcome,
    StopOutcome, ToProxy,
};

/// A program whose health a test decides.
#[derive(Debug, Default)]
struct Patient {
    sick: Cell<bool>,
    looked: RefCell<Vec<Instant>>,
    served: Cell<u32>,
}

impl Patient {
    async fn serve(self: Rc<Self>, mut stream: TcpStream) {
        while let Some(head) = read_head(&mut stream).await {
            let is_look = head.starts_with("GET /health ");
            let status = if is_look && self.sick.get() { "503 Sick" } else { "200 OK" };
            match is_look {
                true => self.looked.borrow_mut().push(Instant::now()),
                false => self.served.set(self.served.get() + 1),
            }
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nme");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn new(sick: bool) -> (Rc<Self>, u16) {
        let patient = Rc::new(Self { sick: Cell::new(sick), ..Self::default() });
        let own = Rc::clone(&patient);
        let port = machine(move |stream| Rc::clone(&own).serve(stream)).await;
        (patient, port)
    }

    /// Waits until it was looked at so often.
    async fn looked_at(&self, count: usize) {
        while self.looked.borrow().len() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn check(port: u16, interval: Duration) -> CheckView {
    let http =
        HttpCheckView { method: "GET".to_owned(), path: "/health".to_owned(), headers: Vec::new() };
    CheckView {
        name: "alive".to_owned(),
        port,
        http: Some(http),
        interval_ms: interval.as_millis() as u64,
        timeout_ms: 10_000,
        grace_ms: 0,
    }
}

const SOON: Duration = Duration::from_millis(10);

/// The app of [`app`] with a check on the service behind port 80.
fn checked(state: &str, port: u16, interval: Duration) -> AppView {
    let mut view = app(state, port);
    view.machines[0].services[0].checks = vec![check(port, interval)];
    view
}

/// The next results of this Machine, whatever else is said.
async fn results(link: &mut Link, id: &str) -> (u64, Vec<CheckResult>) {
    loop {
        match link.recv().await.expect("the proxy lives") {
            FromProxy::Checks { machine, run, results } if machine == id => return (run, results),
            _ => {}
        }
    }
}

/// Waits until the server has heard this status.
async fn hear(world: &mut World, id: &str, status: &str) -> CheckResult {
    loop {
        let (_, results) = results(&mut world.link, id).await;
        if let Some(found) = results.into_iter().find(|result| result.status == status) {
            return found;
        }
    }
}

/// Like [`World::heard`], without the results of checks.
async fn asked(world: &mut World) -> FromProxy {
    loop {
        match world.heard().await {
            FromProxy::Checks { .. } => {}
            other => return other,
        }
    }
}

#[test]
fn of_two_machines_the_one_whose_check_fails_gets_no_request_until_it_passes() {
    run(async |mut world| {
        let (one, one_port) = Patient::new(false).await;
        let (other, other_port) = Patient::new(false).await;
        let mut view = checked("started", one_port, SOON);
        let mut second = checked("started", other_port, SOON).machines.remove(0);
        second.id = "00000000000002".to_owned();
        second.private_ip = "fdaa:0:7:a7b:9:9:9:3".parse().expect("an address");
        let ids = [view.machines[0].id.clone(), second.id.clone()];
        view.machines.push(second);
        world.publish(view).await;
        hear(&mut world, &ids[0], "passing").await;
        hear(&mut world, &ids[1], "passing").await;
        one.sick.set(true);
        let found = hear(&mut world, &ids[0], "critical").await;
        assert_eq!(found.output, "status 503: me");
        let before = one.served.get();
        for _ in 0..50 {
            assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        }
        assert_eq!((one.served.get(), other.served.get() >= 50), (before, true));
        one.sick.set(false);
        hear(&mut world, &ids[0], "passing").await;
        while one.served.get() == before {
            assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
        }
    });
}

#[test]
fn a_request_waits_for_a_pass_and_is_then_answered() {
    run(async |mut world| {
        let (patient, port) = Patient::new(true).await;
        world.publish(checked("started", port, SOON)).await;
        hear(&mut world, MACHINE, "critical").await;
        let healed = async {
            patient.looked_at(5).await;
            patient.sick.set(false);
        };
        let (answer, ()) = tokio::join!(world.ask(GET), healed);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(patient.served.get(), 1);
    });
}

#[test]
fn who_waits_in_vain_is_told_that_no_check_passes() {
    run(async |mut world| {
        let (patient, port) = Patient::new(true).await;
        let mut view = checked("started", port, SOON);
        view.machines[0].services[0].start_timeout_ms = 200;
        world.publish(view).await;
        hear(&mut world, MACHINE, "critical").await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("PR01"), "{answer}");
        assert_eq!(patient.served.get(), 0);
    });
}

#[test]
fn a_check_at_the_top_keeps_nobody_away_and_neither_does_one_of_another_service() {
    run(async |mut world| {
        let (_, port) = Patient::new(true).await;
        let mut view = app("started", port);
        view.machines[0].checks = vec![check(port, SOON)];
        view.machines[0].services[1].checks = vec![check(port, SOON)];
        view.machines[0].services[1].checks[0].name = "raw".to_owned();
        world.publish(view).await;
        hear(&mut world, MACHINE, "critical").await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn after_a_start_the_request_waits_for_a_pass_and_tries_come_every_200_ms() {
    run(async |mut world| {
        let (patient, port) = Patient::new(true).await;
        let view = checked("stopped", port, Duration::from_secs(60));
        world.publish(view.clone()).await;
        let request = world.connect().await;
        let mut request = request;
        request.write_all(GET.as_bytes()).await.expect("the proxy reads");
        world.start(view, 0).await;
        patient.looked_at(4).await;
        patient.sick.set(false);
        assert!(read_all(&mut request).await.starts_with("HTTP/1.1 200"));
        let looked = patient.looked.borrow().clone();
        let pauses = looked.windows(2).map(|pair| pair[1] - pair[0]);
        // They are counted from try to try, so that one that came late is followed by one that came soon.
        let all: Duration = pauses.sum();
        let least = Duration::from_millis(100 * (looked.len() as u64 - 1));
        assert!(least <= all && all < Duration::from_secs(60), "{looked:?}");
    });
}

/// Machines that sleep after so long without load.
fn sleeper(port: u16, autostop: Autostop) -> AppView {
    let mut view = checked("started", port, SOON);
    for service in &mut view.machines[0].services {
        (service.autostop, service.auto_stop_after_ms) = (autostop, 200);
    }
    view
}

#[test]
fn checks_keep_nobody_awake_and_touch_no_sleeper() {
    for (autostop, asleep) in
        [(Autostop::Stop, StopOutcome::Stopped), (Autostop::Suspend, StopOutcome::Suspended)]
    {
        run(async |mut world| {
            let (patient, port) = Patient::new(false).await;
            let mut view = sleeper(port, autostop);
            world.publish(view.clone()).await;
            let FromProxy::Stop { machine, attempt, .. } = asked(&mut world).await else {
                panic!("a stop was expected");
            };
            let before = patient.looked.borrow().len();
            assert_ne!(before, 0);
            let state = if asleep == StopOutcome::Stopped { "stopped" } else { "suspended" };
            world.send(ToProxy::StopDone { machine, attempt, outcome: asleep.clone() }).await;
            view.machines[0].state = state.to_owned();
            view.revision += 1;
            world.send(ToProxy::App(view)).await;
            let woken = tokio::time::timeout(Duration::from_millis(300), asked(&mut world)).await;
            assert!(woken.is_err(), "{woken:?}");
            // One may have been on its way when the stop was asked for, and is cut.
            assert!(patient.looked.borrow().len() <= before + 1);
        });
    }
}

#[test]
fn after_a_resume_the_last_result_stands() {
    run(async |mut world| {
        let (patient, port) = Patient::new(false).await;
        let mut view = sleeper(port, Autostop::Suspend);
        view.machines[0].services[0].checks[0].interval_ms = 60_000;
        // The first look is over by then.
        view.machines[0].services[0].auto_stop_after_ms = 1_500;
        world.publish(view.clone()).await;
        let FromProxy::Stop { machine, attempt, .. } = asked(&mut world).await else {
            panic!("a stop was expected");
        };
        let outcome = StopOutcome::Suspended;
        world.send(ToProxy::StopDone { machine, attempt, outcome }).await;
        view.machines[0].state = "suspended".to_owned();
        view.revision += 1;
        world.send(ToProxy::App(view.clone())).await;
        patient.sick.set(true);
        let mut request = world.connect().await;
        request.write_all(GET.as_bytes()).await.expect("the proxy reads");
        let FromProxy::Start { machine, attempt, .. } = asked(&mut world).await else {
            panic!("a start was expected");
        };
        let outcome = StartOutcome::Started { run: view.machines[0].run };
        world.send(ToProxy::StartDone { machine, attempt, outcome }).await;
        assert!(read_all(&mut request).await.starts_with("HTTP/1.1 200"));
        assert_eq!(patient.looked.borrow().len(), 1, "nobody has looked again before the answer");
    });
}

#[test]
fn without_a_server_callers_are_kept_from_the_sick_and_the_next_server_hears_of_it() {
    run(async |world| {
        let mut world = world;
        let (patient, port) = Patient::new(false).await;
        let mut view = checked("started", port, SOON);
        view.machines[0].services[0].start_timeout_ms = 200;
        world.publish(view.clone()).await;
        hear(&mut world, MACHINE, "passing").await;
        let World { http, control, link, .. } = &world;
        let _ = (http, link);
        let (mut second, _) = Link::connect(control).await.expect("the proxy listens");
        // The first server is not heard any more; the second says nothing yet.
        patient.sick.set(true);
        let seen = patient.looked.borrow().len();
        patient.looked_at(seen + 2).await;
        let answer = world.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        second.send(&settings_with(|_| {})).await.expect("the proxy reads");
        second.send(&ToProxy::App(view)).await.expect("the proxy reads");
        second.send(&ToProxy::SnapshotEnd).await.expect("the proxy reads");
        let (run, results) = results(&mut second, MACHINE).await;
        assert_eq!((run, results[0].status.as_str()), (1, "critical"));
    });
}

#[test]
fn a_crash_begins_anew_and_a_check_that_is_removed_keeps_nobody_away() {
    run(async |mut world| {
        let (patient, port) = Patient::new(false).await;
        let mut view = checked("started", port, SOON);
        world.publish(view.clone()).await;
        hear(&mut world, MACHINE, "passing").await;
        patient.sick.set(true);
        view.machines[0].run = 2;
        view.revision += 1;
        world.send(ToProxy::App(view.clone())).await;
        loop {
            let (run, results) = results(&mut world.link, MACHINE).await;
            if run == 2 {
                assert_eq!(results[0].status, "critical", "it never passed in this run");
                break;
            }
        }
        view.machines[0].services[0].checks.clear();
        view.revision += 1;
        world.send(ToProxy::App(view)).await;
        assert!(world.ask(GET).await.starts_with("HTTP/1.1 200"));
    });
}
