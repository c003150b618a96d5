//! Starts a Machine that stands by for another one when that has failed for good: its program has crashed and is not
//! started again, or could not be started. On one host that is all that a standby can help with.
//!
//! It is started once for each such end, and only if nothing has happened to it since: what its owner stops then stays
//! stopped, and it goes back to standing by only by their hand (OQ-35).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perch_api::wire::{self, ApiError, MachineConfig, MachineState};
use perch_core::lifecycle::Happened;

use super::keeper::Catalog;
use super::machine::{self, Status};
use super::records::MachineRecord;
use super::schedule;
use super::world::World;

/// When those are looked at again that could not be started.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);
/// Events that tell what a Machine does; others may come after its end.
const OF_LIFE: [&str; 10] = [
    "launch", "start", "stop", "exit", "update", "restart", "destroy", "suspend", "resume", "adopt",
];

/// Whether a Machine may have failed for good, so that it is looked who stands by for it.
pub(super) fn concerns(happened: &Happened) -> bool {
    match happened {
        Happened::Exited { requested, restarting, .. } => !requested && !restarting,
        Happened::LaunchFailed { .. } => true,
        _ => false,
    }
}

/// Whether a Machine waits for others to fail: then it has no part in what its app serves.
pub(super) fn is_waiting(record: &MachineRecord, state: MachineState) -> bool {
    record.config.is_standby() && !machine::is_up(state)
}

/// Refuses standbys for what is not there. Those that a Machine had already may have gone meanwhile.
///
/// # Errors
/// 422 with the id.
pub(super) fn check(
    catalog: &Catalog,
    app: &str,
    id: &str,
    config: &MachineConfig,
) -> Result<(), ApiError> {
    let old = catalog.machines.get(id).map(|it| it.config.view().standbys.clone());
    let old = old.unwrap_or_default();
    for other in &config.view().standbys {
        if other == id {
            let reason = format!("config.standbys: machine {id} cannot stand by for itself");
            return Err(ApiError::invalid(reason));
        }
        let is_there = catalog.machines.get(other).is_some_and(|it| it.app == app);
        if !is_there && !old.contains(other) {
            let reason = format!("config.standbys: app {app} has no machine {other:?}");
            return Err(ApiError::invalid(reason));
        }
    }
    Ok(())
}

/// Starts those whose time has come, also because of what happened while no server was there, until the server ends.
pub(crate) async fn keep(world: Arc<World>) {
    let mut starts = BTreeMap::new();
    loop {
        starts.retain(|_, start: &mut tokio::task::JoinHandle<()>| !start.is_finished());
        for (id, cause) in due(&world) {
            let begin = schedule::begin_beside(&world, &id, cause);
            starts.entry(id).or_insert_with(begin);
        }
        tokio::select! {
            () = world.failed.notified() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = world.shutdown.cancelled() => return,
        }
    }
}

/// Ids of Machines to be started, and why.
fn due(world: &World) -> Vec<(String, String)> {
    let catalog = world.keeper.read();
    let standbys = catalog.machines.values().filter(|it| it.config.is_standby());
    let of = |id: &str| world.handle(id).map(|handle| handle.status());
    standbys.filter_map(|it| Some((it.id.clone(), wanted(&catalog, it, &of)?))).collect()
}

/// Why a standby is to be started; `None` while it is not.
fn wanted(
    catalog: &Catalog,
    standby: &MachineRecord,
    status: &impl Fn(&str) -> Option<Status>,
) -> Option<String> {
    let own = status(&standby.id)?;
    let is_down =
        matches!(own.state, MachineState::Created | MachineState::Stopped | MachineState::Failed);
    if !is_down || schedule::is_held(catalog, standby) {
        return None;
    }
    let last = newest(&own).map_or(i64::MIN, |event| event.timestamp);
    let made: jiff::Timestamp = standby.created_at.parse().unwrap_or_default();
    let failed = |id: &&String| {
        let end = status(id).and_then(|other| failure(&other));
        // Its own launch may follow within the same millisecond.
        end.is_some_and(|end| last < end.timestamp && made.as_millisecond() <= end.timestamp)
    };
    let view = standby.config.view();
    let other = view.standbys.iter().find(failed)?;
    Some(format!("standby for {other}, which has failed"))
}

/// The end of a Machine that is down because it has failed for good.
fn failure(status: &Status) -> Option<wire::Event> {
    if !matches!(status.state, MachineState::Stopped | MachineState::Failed) {
        return None;
    }
    let event = newest(status)?;
    let exit = event.request.as_ref()?.exit_event.as_ref()?;
    let failed =
        !exit.requested_stop && !exit.restarting && (exit.exit_code != 0 || exit.oom_killed);
    failed.then_some(event)
}

fn newest(status: &Status) -> Option<wire::Event> {
    let all = status.history.newest_first();
    all.into_iter().find(|event| OF_LIFE.contains(&event.kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::history::History;
    use crate::server::keeper::Change;
    use crate::server::records::tests as records;

    fn standby(id: &str, others: &[&str]) -> MachineRecord {
        let config = serde_json::json!({"image": "x", "standbys": others}).to_string();
        let config = serde_json::from_str(&config).expect("read");
        let created_at = "1970-01-01T00:00:02Z".to_owned();
        MachineRecord { config, created_at, ..records::machine(id) }
    }

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        for record in [records::machine("a"), records::machine("b"), standby("s", &["a", "b"])] {
            catalog.apply(Change::PutMachine(Box::new(record)));
        }
        let elsewhere = MachineRecord { app: "other".to_owned(), ..records::machine("x") };
        catalog.apply(Change::PutMachine(Box::new(elsewhere)));
        catalog
    }

    /// At a second.
    fn event(id: &str, kind: &str) -> wire::Event {
        let timestamp = id.parse::<i64>().expect("a second") * 1_000;
        wire::Event { kind: kind.to_owned(), timestamp, ..wire::Event::default() }
    }

    fn exit(id: &str, exit_code: i32, restarting: bool, requested_stop: bool) -> wire::Event {
        let exit = wire::ExitEvent { exit_code, restarting, requested_stop, ..Default::default() };
        let request =
            wire::EventRequest { exit_event: Some(exit), ..wire::EventRequest::default() };
        wire::Event { request: Some(request), ..event(id, "exit") }
    }

    /// Oldest first.
    fn status(state: MachineState, events: &[wire::Event]) -> Status {
        let mut history = History::default();
        events.iter().cloned().for_each(|event| history.push(event));
        Status { state, run: 1, settled: true, history: Arc::new(history), running: None }
    }

    /// Whether the standby is started beside this `a`, with a `b` that runs.
    fn starts(a: Status, standby: Status) -> bool {
        let catalog = catalog();
        let wanted = wanted(&catalog, &catalog.machines["s"], &|id: &str| {
            Some(match id {
                "a" => a.clone(),
                "b" => status(MachineState::Started, &[event("1", "start")]),
                _ => standby.clone(),
            })
        });
        wanted.is_some()
    }

    const DOWN: MachineState = MachineState::Stopped;

    #[test]
    fn it_is_started_only_when_another_has_failed_for_good() {
        let a = |state, events: &[wire::Event]| {
            starts(status(state, events), status(MachineState::Created, &[]))
        };
        assert!(a(DOWN, &[event("1", "start"), exit("2", 1, false, false)]), "a crash");
        assert!(a(MachineState::Failed, &[exit("2", 127, false, false)]), "no program");
        let noted = [exit("2", 137, false, false), event("3", "cordon"), event("4", "page_out")];
        assert!(a(DOWN, &noted), "what is noted later is no life");
        assert!(!a(MachineState::Created, &[]), "it was never started");
        assert!(!a(MachineState::Started, &[event("1", "start")]));
        assert!(!a(MachineState::Restarting, &[exit("2", 1, true, false)]), "it comes back");
        assert!(!a(DOWN, &[exit("2", 0, false, false)]), "its work is done");
        assert!(!a(DOWN, &[exit("2", 130, false, true)]), "somebody stopped it");
        assert!(
            !a(DOWN, &[exit("2", 1, true, false), event("3", "stop")]),
            "stopped while it waited"
        );
        assert!(!a(MachineState::Starting, &[exit("2", 1, false, false), event("3", "launch")]));
    }

    #[test]
    fn it_is_started_once_for_each_failure() {
        let own = |state, events: &[wire::Event]| {
            starts(status(DOWN, &[exit("5", 1, false, false)]), status(state, events))
        };
        assert!(own(DOWN, &[event("1", "launch"), exit("4", 0, false, true)]), "it did so before");
        assert!(!own(MachineState::Started, &[event("6", "launch"), event("7", "start")]));
        assert!(!own(DOWN, &[event("6", "launch"), exit("7", 0, false, true)]), "it was stopped");
        assert!(!own(MachineState::Failed, &[event("6", "launch"), exit("7", 1, false, false)]));
        assert!(!own(DOWN, &[event("6", "update")]), "it was made a standby afterwards");
        assert!(own(DOWN, &[event("6", "cordon")]));
        for state in [MachineState::Suspended, MachineState::Stopping, MachineState::Destroying] {
            assert!(!own(state, &[]), "{state}");
        }
        assert!(
            !own(DOWN, &[event("5", "launch"), exit("5", 0, false, true)]),
            "at the same moment"
        );
        let early = exit("1", 1, false, false);
        assert!(!starts(status(DOWN, &[early]), status(MachineState::Created, &[])), "made later");
    }

    #[test]
    fn a_lease_and_the_end_of_the_app_hold_it_back() {
        let failed = |id: &str| match id {
            "s" => Some(status(MachineState::Created, &[])),
            _ => Some(status(DOWN, &[exit("5", 1, false, false)])),
        };
        let mut catalog = catalog();
        let told = wanted(&catalog, &catalog.machines["s"], &failed);
        assert_eq!(told.as_deref(), Some("standby for a, which has failed"));
        let going = super::super::records::AppRecord { going: true, ..records::app("web") };
        catalog.apply(Change::PutApp(going));
        assert_eq!(wanted(&catalog, &catalog.machines["s"], &failed), None);
    }

    #[test]
    fn it_stands_by_for_other_machines_of_its_app_only() {
        let catalog = catalog();
        let check = |id: &str, others: &[&str]| {
            super::check(&catalog, "web", id, &standby(id, others).config.read())
        };
        assert_eq!(check("new", &["a", "b"]), Ok(()));
        assert_eq!(check("a", &[]), Ok(()));
        for (id, others, word) in [
            ("new", &["a", "gone"][..], "no machine \"gone\""),
            ("new", &["x"], "no machine \"x\""),
            ("new", &[""], "no machine \"\""),
            ("a", &["a"], "itself"),
        ] {
            let refused = check(id, others).expect_err(word);
            assert_eq!(refused.code, 422);
            assert!(refused.error.contains(word), "{refused}");
        }
        // Or no update of a Machine whose other one was destroyed would go through.
        let mut later = self::catalog();
        later.apply(Change::DeleteMachine("a".to_owned()));
        let kept = standby("s", &["a"]).config.read();
        assert_eq!(super::check(&later, "web", "s", &kept), Ok(()));
        assert!(super::check(&later, "web", "b", &kept).is_err());
    }
}
