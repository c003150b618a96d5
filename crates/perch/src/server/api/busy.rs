//! What a Machine says of itself: that it is at work though no connection shows it (LI-05, AS-21).
//!
//! It is kept awake by the proxy like one whose lease somebody holds. The word is good until a time, so that a program
//! that died keeps nothing awake for long, and ends with the run in any case.

use std::sync::Arc;
use std::time::Duration;

use perch_api::server::{MachineTarget, Peer};
use perch_api::wire::{ApiError, Busy, BusyInput, MachineState};
use tokio::sync::oneshot;

use super::leases::{self, RETRY_INTERVAL, TTL_MAX, time_left};
use crate::server::clock;
use crate::server::history::Source;
use crate::server::keeper::{Catalog, Change};
use crate::server::machine::Command;
use crate::server::records::BusyRecord;
use crate::server::world::World;

const REASON_BYTES_MAX: usize = 200;

/// Keeps a started Machine awake for `ttl` seconds from now, whatever was said before.
pub(crate) async fn set(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    input: BusyInput,
) -> Result<Busy, ApiError> {
    check(&input)?;
    let wanted = target.clone();
    let owner = world.clone();
    let Said { record, is_followed, is_news } =
        world.keeper.write(move |catalog| decide(&owner, catalog, &wanted, input)).await?;
    if !is_followed {
        follow(&world, &target.app, &record);
    }
    if is_news {
        leases::announce(&world, &target.app, &target.id).await;
    }
    if let Err(late) = still_started(&world, &target).await {
        end(world, target).await?;
        return Err(late);
    }
    if let (true, Some(handle)) = (is_news, world.handle(&target.id)) {
        handle.note("busy", Source::User(peer), record.reason.clone()).await;
    }
    Ok(shown(&record))
}

fn check(input: &BusyInput) -> Result<(), ApiError> {
    if !(1..=TTL_MAX).contains(&input.ttl) {
        return Err(ApiError::invalid(format!("`ttl` must be 1 to {TTL_MAX} seconds")));
    }
    if REASON_BYTES_MAX < input.reason.len() || input.reason.chars().any(char::is_control) {
        let wanted = format!("`reason` must be at most {REASON_BYTES_MAX} bytes on one line");
        return Err(ApiError::invalid(wanted));
    }
    Ok(())
}

/// Whether the Machine is up although it may have been told to sleep before it heard that it is busy.
async fn still_started(world: &World, target: &MachineTarget) -> Result<(), ApiError> {
    let handle = world.handle(&target.id).ok_or_else(|| gone(target))?;
    // It hears one thing after the other: this answer comes after it has heard.
    let (reply, heard) = oneshot::channel();
    let is_there = handle.send(Command::Run { reply }).await && heard.await.is_ok();
    let state = handle.status().state;
    if is_there && state == MachineState::Started {
        Ok(())
    } else {
        Err(not_started(target, state))
    }
}

fn gone(target: &MachineTarget) -> ApiError {
    ApiError::not_found(format!("machine not found: {} in app {}", target.id, target.app))
}

fn not_started(target: &MachineTarget, state: MachineState) -> ApiError {
    let id = &target.id;
    ApiError::precondition(format!("machine {id} is {state}: only a started one can be busy"))
}

/// What was written down.
struct Said {
    record: BusyRecord,
    /// An earlier one is followed to its end already.
    is_followed: bool,
    is_news: bool,
}

fn decide(
    world: &World,
    catalog: &Catalog,
    target: &MachineTarget,
    input: BusyInput,
) -> Result<(Vec<Change>, Said), ApiError> {
    catalog.machine(&target.app, &target.id)?;
    let handle = world.handle(&target.id).ok_or_else(|| gone(target))?;
    let status = handle.status();
    if status.state != MachineState::Started {
        return Err(not_started(target, status.state));
    }
    let ttl = i64::try_from(input.ttl).unwrap_or(i64::MAX);
    let until = clock::unix_secs().saturating_add(ttl);
    let record =
        BusyRecord { machine: target.id.clone(), run: status.run, until, reason: input.reason };
    let is_followed = catalog.busy.contains_key(&target.id);
    // Who says something else each second would wash all other events away.
    let is_news = of(catalog, &target.id, status.run).is_none();
    Ok((vec![Change::PutBusy(record.clone())], Said { record, is_followed, is_news }))
}

/// Ends it before its time. Who is not busy is that already.
pub(crate) async fn end(world: Arc<World>, target: MachineTarget) -> Result<(), ApiError> {
    let wanted = target.clone();
    let ended = world
        .keeper
        .write(move |catalog| {
            catalog.machine(&wanted.app, &wanted.id)?;
            let changes = ended(catalog, &wanted.id);
            let any = !changes.is_empty();
            Ok((changes, any))
        })
        .await?;
    if ended {
        leases::announce(&world, &target.app, &target.id).await;
    }
    Ok(())
}

/// The record stays, without effect, for its follower to remove: else each new one would need another follower.
fn ended(catalog: &Catalog, machine: &str) -> Vec<Change> {
    let record = live(catalog, machine).cloned();
    record.map(|record| Change::PutBusy(BusyRecord { until: 0, ..record })).into_iter().collect()
}

/// The run is over, and what it said of itself. To be called when the Machine is no longer shown as started: what is
/// said of itself later is refused, and what was said before is here.
pub(crate) fn run_ended(world: &Arc<World>, machine: &str, run: u64) {
    let (owner, machine) = (world.clone(), machine.to_owned());
    world.tracker.spawn(async move {
        let id = machine.clone();
        let ended = owner.keeper.write(move |catalog| Ok(run_ended_in(catalog, &id, run))).await;
        match ended {
            Ok(None) => {}
            Ok(Some(app)) => leases::announce(&owner, &app, &machine).await,
            Err(error) => {
                tracing::warn!(machine, %error, "it has ended and is still written down as busy")
            }
        }
    });
}

fn run_ended_in(catalog: &Catalog, machine: &str, run: u64) -> (Vec<Change>, Option<String>) {
    if live(catalog, machine).is_none_or(|record| record.run != run) {
        return (Vec::new(), None);
    }
    let app = catalog.machines.get(machine).map(|it| it.app.clone());
    (ended(catalog, machine), app)
}

/// Sees to it that the Machine hears of the end, also of what was said to an earlier server.
pub(crate) fn follow(world: &Arc<World>, app: &str, record: &BusyRecord) {
    let left = time_left(record.until, clock::unix_secs());
    world.tracker.spawn(expire(world.clone(), app.to_owned(), record.machine.clone(), left));
}

/// One for each record, however often that is renewed.
async fn expire(world: Arc<World>, app: String, machine: String, mut left: Duration) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            () = world.shutdown.cancelled() => return,
        }
        let wanted = machine.clone();
        let removal = world.keeper.write(move |catalog| Ok(removal(catalog, &wanted))).await;
        left = match removal {
            Ok(None) => return leases::announce(&world, &app, &machine).await,
            Ok(Some(left)) => left,
            Err(error) => {
                tracing::warn!(machine, %error, "the record of a busy Machine remains");
                leases::announce(&world, &app, &machine).await;
                RETRY_INTERVAL
            }
        };
    }
}

/// Removes a record whose time is over, else says how long it has.
fn removal(catalog: &Catalog, machine: &str) -> (Vec<Change>, Option<Duration>) {
    if let Some(record) = live(catalog, machine) {
        return (Vec::new(), Some(time_left(record.until, clock::unix_secs())));
    }
    let is_there = catalog.busy.contains_key(machine);
    (is_there.then(|| Change::DeleteBusy(machine.to_owned())).into_iter().collect(), None)
}

fn live<'a>(catalog: &'a Catalog, machine: &str) -> Option<&'a BusyRecord> {
    catalog.busy.get(machine).filter(|record| lives(record, clock::unix_secs()))
}

/// After the wall clock was set back by much, what was said before it counts no more.
fn lives(record: &BusyRecord, now: i64) -> bool {
    let left = record.until.saturating_sub(now);
    0 < left && left <= i64::try_from(TTL_MAX).unwrap_or(i64::MAX)
}

fn shown(record: &BusyRecord) -> Busy {
    Busy { until: clock::stamp_at(record.until), reason: record.reason.clone() }
}

/// What this run of a Machine says of itself now. A run may have ended while no server was there to write it down.
pub(crate) fn of(catalog: &Catalog, machine: &str, run: u64) -> Option<Busy> {
    live(catalog, machine).filter(|record| record.run == run).map(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(until: i64) -> BusyRecord {
        BusyRecord { machine: "m".to_owned(), run: 3, until, reason: "a report".to_owned() }
    }

    fn catalog(record: BusyRecord) -> Catalog {
        let mut catalog = Catalog::default();
        catalog.apply(Change::PutBusy(record));
        catalog
    }

    fn refused(ttl: u64, reason: &str) -> bool {
        check(&BusyInput { ttl, reason: reason.to_owned() }).is_err()
    }

    #[test]
    fn times_and_reasons_have_bounds() {
        assert!(!refused(1, "") && !refused(TTL_MAX, "a report"));
        assert!(refused(0, "") && refused(TTL_MAX + 1, ""));
        assert!(refused(1, "two\nlines") && refused(1, &"x".repeat(REASON_BYTES_MAX + 1)));
    }

    #[test]
    fn what_is_renewed_is_followed_on_and_what_is_over_is_removed() {
        let now = clock::unix_secs();
        let (changes, left) = removal(&catalog(record(now + 100)), "m");
        assert!(changes.is_empty() && left.is_some_and(|left| left.as_secs() > 90));
        let (changes, left) = removal(&catalog(record(now - 1)), "m");
        assert!(changes.len() == 1 && left.is_none());
        let (changes, left) = removal(&Catalog::default(), "m");
        assert!(changes.is_empty() && left.is_none());
    }

    #[test]
    fn what_ended_early_has_no_effect_but_keeps_its_follower() {
        let mut catalog = catalog(record(clock::unix_secs() + 100));
        assert!(of(&catalog, "m", 3).is_some());
        assert!(of(&catalog, "m", 4).is_none(), "the next run has not said so");
        for change in ended(&catalog, "m") {
            catalog.apply(change);
        }
        assert!(of(&catalog, "m", 3).is_none() && catalog.busy.contains_key("m"));
        assert!(ended(&catalog, "m").is_empty());
    }

    #[test]
    fn the_end_of_a_run_ends_what_that_run_said() {
        let catalog = catalog(record(clock::unix_secs() + 100));
        assert_eq!(run_ended_in(&catalog, "m", 3).0.len(), 1);
        assert!(run_ended_in(&catalog, "m", 2).0.is_empty(), "an earlier run");
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_time_longer() {
        assert!(lives(&record(4_600), 1_000) && !lives(&record(4_601), 1_000));
        assert!(!lives(&record(1_000), 1_000));
    }
}
