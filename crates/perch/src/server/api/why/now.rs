//! What an app is awake for just now: what the proxy knows, what the catalog knows, and the newest of the ledger.

use std::collections::{BTreeMap, BTreeSet};

use perch_api::wire::{
    ApiError, AppWhy, CallerWhy, LedgerEvent, MachineState, MachineWhy, WhyReason,
};
use perch_proxy::control::{Autostop, HELD, Live, LiveCaller, LiveMachine, Reason};

use super::is_of_the_living;
use crate::server::api::{busy, leases};
use crate::server::clock;
use crate::server::ledger::entry;
use crate::server::world::World;

const SLEEPS: [&str; 3] = ["stop", "suspend", "exit"];

/// Tells why the Machines of an app are awake or asleep.
pub(crate) async fn read_now(
    world: &World,
    app: &str,
    callers_max: u32,
) -> Result<AppWhy, ApiError> {
    if !world.keeper.read().apps.contains_key(app) {
        return Err(ApiError::no_app(app));
    }
    let live = world.proxy.live(app, callers_max).await;
    let is_live = live.is_some();
    let Live { machines, callers, more, waiting } = live.unwrap_or_default();
    let mut awake: BTreeMap<String, LiveMachine> =
        machines.into_iter().map(|machine| (machine.machine.clone(), machine)).collect();
    let mut said: Vec<_> = states(world, app);
    for machine in &mut said {
        if let Some(live) = awake.remove(&machine.machine) {
            tell_live(world, machine, live);
        }
    }
    tell_history(world, app, &mut said);
    let callers = callers.into_iter().map(told).collect();
    let app = app.to_owned();
    Ok(AppWhy { app, machines: said, live: is_live, callers, callers_left_out: more, waiting })
}

fn states(world: &World, app: &str) -> Vec<MachineWhy> {
    let catalog = world.keeper.read();
    let all = catalog.machines_of(app).filter_map(|record| {
        let state = world.handle(&record.id)?.status().state.to_string();
        Some(MachineWhy { machine: record.id.clone(), state, ..MachineWhy::default() })
    });
    all.collect()
}

fn tell_live(world: &World, machine: &mut MachineWhy, live: LiveMachine) {
    // The proxy may be a moment behind.
    if machine.state != MachineState::Started.to_string() {
        return;
    }
    let LiveMachine { run, load, resting, unused_ms, sleeps_in_ms, by, leaving, reasons, .. } =
        live;
    (machine.load, machine.resting) = (load, resting);
    machine.unused_ms = (load == 0).then_some(unused_ms);
    machine.sleeps_in_ms = sleeps_in_ms;
    let by = match by {
        Autostop::Off => "",
        Autostop::Stop => "stop",
        Autostop::Suspend => "suspend",
    };
    machine.sleeps_by = by.to_owned();
    for Reason { kind, text } in reasons {
        match kind == HELD {
            true => machine.reasons.extend(held(world, &machine.machine, run)),
            false => machine.reasons.push(WhyReason { kind, text }),
        }
    }
    if leaving {
        let text = "it takes nobody in: it is drained, or being put to sleep".to_owned();
        machine.reasons.push(WhyReason { kind: "leaving".to_owned(), text });
    }
}

/// Who holds a Machine awake that the proxy was told to leave alone.
pub(crate) fn held(world: &World, machine: &str, run: u64) -> Vec<WhyReason> {
    let catalog = world.keeper.read();
    let reason = |kind: &str, text: String| WhyReason { kind: kind.to_owned(), text };
    let mut held = Vec::new();
    if let Some(lease) = leases::held(&catalog, machine) {
        let until = clock::stamp_at(lease.expires_at);
        let what = match lease.description.as_str() {
            "" => String::new(),
            what => format!(" ({what})"),
        };
        held.push(reason("lease", format!("{} has its lease until {until}{what}", lease.owner)));
    }
    if let Some(busy) = busy::of(&catalog, machine, run) {
        let why = if busy.reason.is_empty() { "no reason given" } else { &busy.reason };
        held.push(reason("busy", format!("it says that it is busy until {}: {why}", busy.until)));
    }
    if world.copying.is_of(machine) {
        held.push(reason("copy", "its volume is being copied".to_owned()));
    }
    if held.is_empty() {
        // It ended a moment ago.
        held.push(reason("lease", "its lease was held until just now".to_owned()));
    }
    held
}

fn told(caller: LiveCaller) -> CallerWhy {
    let LiveCaller { cause, what, age_ms, streams, resting } = caller;
    let since = clock::unix().saturating_sub(std::time::Duration::from_millis(age_ms));
    CallerWhy {
        trigger: entry::caller(&cause),
        what,
        since: clock::stamp_micros(since.as_micros() as u64),
        age_ms,
        streams,
        resting,
    }
}

/// Last sleep, last wake, its first caller, and the veto since.
fn tell_history(world: &World, app: &str, machines: &mut [MachineWhy]) {
    let mut all: BTreeMap<String, Vec<LedgerEvent>> = BTreeMap::new();
    let wanted: BTreeSet<_> = machines.iter().map(|machine| machine.machine.clone()).collect();
    world.ledger.read_of(app, |newest| {
        for event in newest.filter(|event| wanted.contains(&event.machine)) {
            let own = all.entry(event.machine.clone()).or_default();
            if is_needed(own, event) {
                own.push(event.clone());
            }
        }
    });
    for machine in machines {
        let mut own = all.remove(&machine.machine).unwrap_or_default();
        own.retain(|event| is_of_the_living(world, event));
        tell_of(machine, &own);
    }
}

/// Whether a record says something that newer ones of its Machine do not.
fn is_needed(newer: &[LedgerEvent], event: &LedgerEvent) -> bool {
    let wake = newer.iter().find(|newer| newer.kind == "wake");
    let slept_before = wake.is_some_and(|wake| {
        newer.iter().any(|newer| SLEEPS.contains(&newer.kind.as_str()) && newer.id < wake.id)
    });
    if slept_before {
        return false;
    }
    match event.kind.as_str() {
        "wake" => wake.is_none(),
        "hold" => event.first,
        "veto" => wake.is_none() && !newer.iter().any(|newer| newer.kind == "veto"),
        kind => SLEEPS.contains(&kind),
    }
}

/// Of the records of one Machine, newest first.
fn tell_of(machine: &mut MachineWhy, newest: &[LedgerEvent]) {
    let awake = machine.state == MachineState::Started.to_string();
    let is_sleep = |event: &&LedgerEvent| SLEEPS.contains(&event.kind.as_str());
    let wake = newest.iter().find(|event| event.kind == "wake");
    let since = wake.map_or(0, |wake| wake.id);
    // Its first caller belongs to it who was let in since it fell asleep before: what the proxy tells is older than
    // what the server makes of it.
    let before = newest.iter().filter(is_sleep).find(|sleep| sleep.id < since);
    let before = before.map_or(0, |sleep| sleep.id);
    let caller = wake
        .and_then(|wake| newest.iter().find(|it| it.first && it.run == wake.run && before < it.id));
    let veto = newest.iter().find(|event| event.kind == "veto" && since < event.id);
    machine.last_sleep = newest.iter().find(is_sleep).filter(|_| !awake).cloned();
    machine.last_wake = wake.cloned();
    machine.first_caller = caller.cloned();
    machine.last_veto = veto.filter(|_| awake).cloned();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64, kind: &str, run: u64) -> LedgerEvent {
        let first = kind == "hold";
        LedgerEvent { id, kind: kind.to_owned(), run, first, ..LedgerEvent::default() }
    }

    fn told_of(state: &str, oldest_first: &[LedgerEvent]) -> MachineWhy {
        let mut needed = Vec::new();
        for event in oldest_first.iter().rev() {
            if is_needed(&needed, event) {
                needed.push(event.clone());
            }
        }
        let mut machine = MachineWhy { state: state.to_owned(), ..MachineWhy::default() };
        tell_of(&mut machine, &needed);
        machine
    }

    fn ids(machine: &MachineWhy) -> [Option<u64>; 4] {
        let MachineWhy { last_sleep, last_wake, first_caller, last_veto, .. } = machine;
        [last_sleep, last_wake, first_caller, last_veto].map(|it| it.as_ref().map(|it| it.id))
    }

    #[test]
    fn a_sleeper_tells_of_its_last_sleep_and_wake_and_the_caller_between_its_sleeps() {
        let all = [
            event(1, "suspend", 3),
            event(2, "hold", 3),
            event(3, "wake", 3),
            event(4, "veto", 3),
            event(5, "suspend", 3),
            // Told before the wake that it caused.
            event(6, "hold", 3),
            event(7, "wake", 3),
            event(8, "veto", 3),
            event(9, "veto", 3),
            event(10, "suspend", 3),
        ];
        assert_eq!(ids(&told_of("suspended", &all)), [Some(10), Some(7), Some(6), None]);
        assert_eq!(ids(&told_of("started", &all[..9])), [None, Some(7), Some(6), Some(9)]);
        assert_eq!(ids(&told_of("started", &all[..7])), [None, Some(7), Some(6), None]);
    }

    #[test]
    fn a_wake_without_a_caller_has_not_that_of_an_earlier_one() {
        let all =
            [event(1, "hold", 3), event(2, "wake", 3), event(3, "stop", 3), event(4, "wake", 4)];
        assert_eq!(ids(&told_of("started", &all)), [None, Some(4), None, None]);
        assert_eq!(ids(&told_of("created", &[])), [None; 4]);
    }
}
