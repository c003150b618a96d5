//! Tasks that end and begin while timeouts come and go.

use std::time::Duration;

use perch_core::admission::Origin;
use perch_core::balancer::{MachineView, Settings, StopOutcome};
use perch_core::ids::{MachineId, Region};
use perch_core::lifecycle::MachineState;
use perch_core::service::Autostop;
use tokio::sync::mpsc::Receiver;
use tokio::task::LocalSet;

use super::*;
use crate::app::planted::{self, PORT};
use crate::control::FromProxy;
use crate::server_side::ServerSide;

const ID: MachineId = MachineId::from_low_bits(1);
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(20);

fn machine(state: MachineState, run: u64, auto_stop_after: Duration) -> MachineView {
    planted::machine(ID, state, run, (Autostop::Stop, auto_stop_after))
}

fn set(app: &Rc<App>, machine: MachineView) {
    app.set_machines(vec![machine], Box::default());
}

/// Runs a test with an app and what its server hears; a hang is a failure.
fn run_with<F: Future<Output = ()>>(test: impl FnOnce(Rc<App>, Receiver<FromProxy>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let work = async {
        let server = ServerSide::new();
        let told = server.connected();
        let settings = Settings { region: Region::LOCAL };
        let app = App::new("app", settings, server);
        tokio::time::timeout(PATIENCE, test(app, told)).await
    };
    let outcome = LocalSet::new().block_on(&runtime.expect("a runtime"), work);
    outcome.expect("the test does not hang");
}

/// The attempt of the stop that the server hears of next.
async fn stop(told: &mut Receiver<FromProxy>) -> u64 {
    match told.recv().await {
        Some(FromProxy::Stop { attempt, .. }) => attempt,
        other => panic!("a stop was expected, not {other:?}"),
    }
}

async fn ended(app: &App) {
    while app.has_alarm() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn an_app_whose_machines_sleep_has_no_task() {
    run_with(async |app, _told| {
        set(&app, machine(MachineState::Stopped, 1, SOON));
        assert!(!app.has_alarm());
        set(&app, machine(MachineState::Started, 2, SOON));
        assert!(app.has_alarm(), "it may have to sleep");
        set(&app, machine(MachineState::Stopped, 2, SOON));
        ended(&app).await;
    });
}

#[test]
fn what_comes_when_a_task_has_just_ended_is_seen_to_by_the_next() {
    run_with(async |app, mut told| {
        for run in 1..=3 {
            set(&app, machine(MachineState::Started, run, SOON));
            let attempt = stop(&mut told).await;
            // Its last timeout was this; nothing else has run since it ended.
            assert!(!app.has_alarm());
            app.stop_done(ID, attempt, StopOutcome::Stopped);
        }
    });
}

#[test]
fn a_stop_that_is_refused_is_asked_for_again() {
    run_with(async |app, mut told| {
        set(&app, machine(MachineState::Started, 1, SOON));
        for _ in 0..2 {
            let attempt = stop(&mut told).await;
            let reason = "not now".to_owned();
            app.stop_done(ID, attempt, StopOutcome::Refused { reason });
        }
        stop(&mut told).await;
    });
}

#[test]
fn load_that_outlasts_the_task_is_followed_by_another() {
    run_with(async |app, mut told| {
        set(&app, machine(MachineState::Started, 1, SOON));
        let place = app.choose(PORT, Origin::Caller).expect("a place");
        assert!(app.has_alarm(), "it finds out when it looks");
        ended(&app).await;
        assert!(told.try_recv().is_err(), "it is load");
        drop(place);
        assert!(app.has_alarm());
        stop(&mut told).await;
    });
}

#[test]
fn a_timeout_that_moves_to_sooner_is_kept() {
    run_with(async |app, mut told| {
        set(&app, machine(MachineState::Started, 1, LATE));
        // The task sleeps for an hour before it hears of it.
        tokio::task::yield_now().await;
        set(&app, machine(MachineState::Started, 1, SOON));
        stop(&mut told).await;
    });
}

#[test]
fn a_timeout_that_moves_to_later_is_not_early() {
    run_with(async |app, mut told| {
        set(&app, machine(MachineState::Started, 1, SOON));
        tokio::task::yield_now().await;
        set(&app, machine(MachineState::Started, 1, LATE));
        let first = app.alarm.0.borrow().as_ref().expect("a task").due.get();
        while app.alarm.0.borrow().as_ref().expect("a task").due.get() == first {
            tokio::task::yield_now().await;
        }
        assert!(told.try_recv().is_err(), "it is not time");
    });
}

#[test]
fn an_app_that_goes_takes_its_task_with_it() {
    run_with(async |app, _told| {
        set(&app, machine(MachineState::Started, 1, LATE));
        let alarm = Rc::downgrade(app.alarm.0.borrow().as_ref().expect("a task"));
        tokio::task::yield_now().await;
        drop(app);
        while alarm.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    });
}
