//! Starts Machines by their schedules; when, `core` decides.
//!
//! A time is taken in the store before the start is asked for, so that no crash makes it happen twice; the number of the
//! run that it begins tells a later server whether it happened at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perch_api::wire::{ApiError, MachineConfig, Schedule};
use perch_core::lifecycle::{Event, MachineState, StartBy};
use perch_core::schedule::{self, Hold, Period, Seen, Step, Taken};
use tokio::task::JoinHandle;

use super::api;
use super::clock;
use super::history::Source;
use super::keeper::{Catalog, Change};
use super::records::{MachineRecord, ScheduleRecord};
use super::world::World;

/// How late a start can be after the wall clock was set, and how long what has to wait waits for the next look.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);

/// What is noted of a new Machine: its own times count from now on.
pub(crate) fn from_now_on(config: &MachineConfig) -> Option<ScheduleRecord> {
    config.view().schedule.map(|_| ScheduleRecord { last: clock::unix_secs(), run: 0 })
}

/// What is noted of a Machine whose config becomes another one: a schedule that stays goes on, another one begins now.
pub(crate) fn after_update(old: &MachineRecord, new: &MachineConfig) -> Option<ScheduleRecord> {
    if old.config.schedule() == new.view().schedule {
        return old.schedule;
    }
    from_now_on(new)
}

/// Starts what is due, also what became due while no server was there, until the server ends.
pub(crate) async fn keep(world: Arc<World>) {
    let mut starts: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    loop {
        starts.retain(|_, start| !start.is_finished());
        let looked = look(&world, clock::unix_secs());
        for (record, step) in looked.due {
            if starts.contains_key(&record.id) {
                continue;
            }
            let id = record.id.clone();
            if let Some(start) = take(&world, record, step).await {
                starts.insert(id, start);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(looked.pause) => {}
            () = world.shutdown.cancelled() => return,
        }
    }
}

struct Looked {
    due: Vec<(MachineRecord, Step)>,
    /// Until the next look.
    pause: Duration,
}

fn look(world: &World, now: i64) -> Looked {
    let catalog = world.keeper.read();
    let mut looked = Looked { due: Vec::new(), pause: LOOK_INTERVAL };
    for record in catalog.machines.values() {
        let Some(schedule) = record.config.schedule() else { continue };
        let Some(handle) = world.handle(&record.id) else { continue };
        let status = handle.status();
        let state = status.state.to_string().parse().unwrap_or(MachineState::Destroyed);
        let seen = Seen { state, run: status.run, hold: hold(&catalog, record) };
        match step_of(record, schedule, seen, now) {
            Step::Wait { until } => {
                let wait = u64::try_from(until.saturating_sub(now)).unwrap_or(0);
                looked.pause = looked.pause.min(Duration::from_secs(wait));
            }
            Step::Later => {}
            step @ (Step::Pass(_) | Step::Start(_)) => {
                looked.due.push((MachineRecord::clone(record), step))
            }
        }
    }
    looked
}

fn hold(catalog: &Catalog, record: &MachineRecord) -> Hold {
    if is_held(catalog, record) { Hold::Held } else { Hold::Free }
}

/// Whether the platform leaves a Machine to somebody: who holds its lease, or removes its app.
pub(super) fn is_held(catalog: &Catalog, record: &MachineRecord) -> bool {
    let goes = catalog.apps.get(&record.app).is_none_or(|app| app.going);
    goes || api::is_leased(catalog, &record.id)
}

fn step_of(record: &MachineRecord, schedule: Schedule, seen: Seen, now: i64) -> Step {
    let period = match schedule {
        Schedule::Hourly => Period::Hourly,
        Schedule::Daily => Period::Daily,
        Schedule::Weekly => Period::Weekly,
        Schedule::Monthly => Period::Monthly,
    };
    match record.schedule {
        Some(ScheduleRecord { last, run }) => {
            schedule::step(period, &record.id, Taken { last, run }, seen, now)
        }
        // Of a server that took no notice of schedules: nobody was promised what has passed.
        None => Step::Pass(Taken { last: now, run: 0 }),
    }
}

/// Notes the time as done, and begins the start if one is due.
async fn take(world: &Arc<World>, record: MachineRecord, step: Step) -> Option<JoinHandle<()>> {
    let (taken, starts) = match step {
        Step::Start(taken) => (taken, true),
        Step::Pass(taken) => (taken, false),
        Step::Wait { .. } | Step::Later => return None,
    };
    let seen = record.clone();
    let noted = world.keeper.write(move |catalog| Ok(noting(catalog, &seen, taken))).await;
    match noted {
        Ok(true) if starts => {}
        Ok(_) => return None,
        Err(error) => {
            tracing::warn!(machine = record.id, %error, "a time of its schedule could not be noted");
            return None;
        }
    }
    let word = record.config.get("schedule").unwrap_or_default();
    let cause = format!("schedule {}", word.as_str().unwrap_or_default());
    Some(begin_beside(world, &record.id, cause)())
}

/// Nothing, if somebody has changed the Machine's schedule, or has taken its lease, since it was looked at.
fn noting(catalog: &Catalog, seen: &MachineRecord, taken: Taken) -> (Vec<Change>, bool) {
    let Some(now) = catalog.machines.get(&seen.id) else { return (Vec::new(), false) };
    let same = |it: &MachineRecord| (it.schedule, it.config.schedule());
    if same(now) != same(seen) || hold(catalog, now) == Hold::Held {
        return (Vec::new(), false);
    }
    let schedule = Some(ScheduleRecord { last: taken.last, run: taken.run });
    let record = MachineRecord { schedule, ..MachineRecord::clone(now) };
    (vec![Change::PutMachine(Box::new(record))], true)
}

/// Begins a start beside, when it is called; the launch's event has the cause.
pub(super) fn begin_beside(
    world: &Arc<World>,
    id: &str,
    cause: String,
) -> impl FnOnce() -> JoinHandle<()> + use<> {
    let (world, id) = (world.clone(), id.to_owned());
    move || {
        let tracker = world.tracker.clone();
        tracker.spawn(async move {
            let begun = tokio::select! {
                begun = begin(&world, &id, cause) => begun,
                () = world.shutdown.cancelled() => return,
            };
            if let Err(error) = begun {
                tracing::warn!(machine = id, %error, "the platform could not start it");
            }
        })
    }
}

/// What cannot begin now is still due at the next look.
async fn begin(world: &Arc<World>, id: &str, cause: String) -> Result<(), ApiError> {
    let Some(handle) = world.handle(id) else { return Ok(()) };
    if let Err(refused) = api::room_to_start(world, id).await {
        let told = handle.status().history.newest().is_some_and(|event| event.kind == "no_room");
        if !told {
            let source = Source::Because(refused.to_string());
            handle.note("no_room", source, String::new()).await;
        }
        return Err(refused);
    }
    api::ask(&handle, Event::Start(StartBy::User), Source::Because(cause)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::records::{LeaseRecord, tests as records};

    const DONE: ScheduleRecord = ScheduleRecord { last: 1_000, run: 0 };

    fn config(schedule: &str) -> MachineConfig {
        serde_json::from_str(&format!(r#"{{"image":"x","schedule":"{schedule}"}}"#)).expect("read")
    }

    fn machine(schedule: &str) -> MachineRecord {
        let config = config(schedule);
        MachineRecord { config: config.into(), schedule: Some(DONE), ..records::machine("m") }
    }

    fn catalog(record: &MachineRecord) -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutApp(records::app("web")));
        catalog.apply(Change::PutMachine(Box::new(record.clone())));
        catalog
    }

    fn lease(expires_at: i64) -> Change {
        let (nonce, owner, description) = ("n".to_owned(), String::new(), String::new());
        let machine = "m".to_owned();
        Change::PutLease(LeaseRecord { machine, nonce, expires_at, owner, description })
    }

    fn step_at(record: &MachineRecord, catalog: &Catalog, now: i64) -> Step {
        let hold = hold(catalog, record);
        let seen = Seen { state: MachineState::Stopped, run: 3, hold };
        step_of(record, record.config.schedule().expect("one"), seen, now)
    }

    #[test]
    fn a_lease_and_the_end_of_the_app_hold_a_start_back_and_a_cordon_does_not() {
        let record = MachineRecord { cordoned: true, ..machine("daily") };
        let mut catalog = catalog(&record);
        let now = 10 * 86_400;
        let start = Step::Start(Taken { last: now, run: 4 });
        assert_eq!(step_at(&record, &catalog, now), start, "a schedule is no request");
        catalog.apply(lease(i64::MAX));
        assert_eq!(step_at(&record, &catalog, now), Step::Later);
        catalog.apply(lease(0));
        assert_eq!(step_at(&record, &catalog, now), start, "that lease is over");
        catalog.apply(Change::PutApp(super::super::records::AppRecord {
            going: true,
            ..records::app("web")
        }));
        assert_eq!(step_at(&record, &catalog, now), Step::Later);
    }

    #[test]
    fn a_record_of_an_older_server_has_nothing_to_make_up_for() {
        let record = MachineRecord { schedule: None, ..machine("hourly") };
        let now = 2_000_000_000;
        assert_eq!(
            step_at(&record, &catalog(&record), now),
            Step::Pass(Taken { last: now, run: 0 })
        );
    }

    #[test]
    fn a_time_is_noted_once_and_not_of_a_machine_that_has_changed() {
        let seen = machine("daily");
        let taken = Taken { last: 5_000, run: 4 };
        let mut catalog = catalog(&seen);
        let (changes, noted) = noting(&catalog, &seen, taken);
        assert!(noted);
        changes.into_iter().for_each(|change| catalog.apply(change));
        assert_eq!(catalog.machines["m"].schedule, Some(ScheduleRecord { last: 5_000, run: 4 }));
        assert!(!noting(&catalog, &seen, taken).1, "it is noted already");
        let unchanged = |change: Change| {
            let mut catalog = self::catalog(&seen);
            catalog.apply(change);
            assert!(!noting(&catalog, &seen, taken).1);
        };
        unchanged(Change::PutMachine(Box::new(machine("weekly"))));
        unchanged(Change::PutMachine(Box::new(records::machine("m"))));
        unchanged(Change::DeleteMachine("m".to_owned()));
        unchanged(lease(i64::MAX));
    }

    #[test]
    fn an_update_keeps_what_was_done_and_another_schedule_begins_anew() {
        let old = machine("daily");
        assert_eq!(after_update(&old, &config("daily")), Some(DONE));
        let other = after_update(&old, &config("weekly")).expect("a schedule");
        assert!(DONE.last < other.last && other.run == 0, "{other:?}");
        assert_eq!(after_update(&old, &config("")), None);
    }

    #[test]
    fn what_was_done_survives_the_store_and_is_not_in_records_without_a_schedule() {
        let kept = serde_json::to_string(&machine("daily")).expect("JSON");
        assert!(kept.contains(r#""schedule":{"last":1000,"run":0}"#), "{kept}");
        assert_eq!(serde_json::from_str::<MachineRecord>(&kept).expect("read"), machine("daily"));
        let plain = serde_json::to_string(&records::machine("m")).expect("JSON");
        assert!(!plain.contains("schedule"), "{plain}");
        assert_eq!(
            serde_json::from_str::<MachineRecord>(&plain).expect("read"),
            records::machine("m")
        );
    }
}
