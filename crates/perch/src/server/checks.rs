//! Health checks as the server has them: what the proxy is to do, and what it has seen.
//!
//! The proxy does them and keeps callers away by itself, so results are kept here only to be shown. They are
//! in memory alone: a proxy tells each new server what it knows. Where both are new, a Machine that sleeps has
//! the result `warning` until its next run.

use std::collections::BTreeMap;
use std::sync::Mutex;

use perch_api::wire::{CheckStatus, ConfigView, HealthCheck, MachineState};
use perch_proxy::control::{CheckResult, CheckView, HttpCheckView};

use super::clock;
use super::machine::Status;
use super::records::MachineRecord;
use super::views::millis;
use super::world::{World, lock};

/// What proxies have told, by Machine.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<BTreeMap<String, Told>>);

#[derive(Debug)]
struct Told {
    run: u64,
    results: Vec<CheckResult>,
}

impl Health {
    /// Takes what a proxy says of a Machine's run.
    pub(super) fn note(&self, machine: &str, run: u64, results: Vec<CheckResult>) {
        lock(&self.0).insert(machine.to_owned(), Told { run, results });
    }

    /// The Machine is gone.
    pub(super) fn forget(&self, machine: &str) {
        lock(&self.0).remove(machine);
    }
}

/// The checks of one service, or with `None` those of none, for the proxy.
pub(super) fn views(view: &ConfigView, service: Option<usize>) -> Vec<CheckView> {
    let all = view.health_checks();
    all.into_iter().filter(|check| check.service == service).map(check_view).collect()
}

fn check_view(check: HealthCheck) -> CheckView {
    let http = check.http.map(|http| HttpCheckView {
        method: http.method,
        path: http.path,
        headers: http.headers,
    });
    CheckView {
        name: check.name,
        port: check.port,
        http,
        interval_ms: millis(check.interval),
        timeout_ms: millis(check.timeout),
        grace_ms: millis(check.grace),
    }
}

/// The checks of a Machine on the API; of one that sleeps as they were before.
pub(super) fn shown(
    world: &World,
    record: &MachineRecord,
    view: &ConfigView,
    status: &Status,
) -> Vec<CheckStatus> {
    let checks = view.health_checks();
    if checks.is_empty() {
        return Vec::new();
    }
    let told = lock(&world.health.0);
    let is_of_now = |told: &&Told| match status.state {
        MachineState::Started => told.run == status.run,
        state => !is_up(state),
    };
    let told = told.get(&record.id).filter(is_of_now);
    let result = |name: &str| told?.results.iter().find(|result| result.name == name);
    let shown = checks.into_iter().map(|check| match result(&check.name) {
        Some(result) => CheckStatus {
            name: check.name,
            status: result.status.clone(),
            output: result.output.clone(),
            updated_at: clock::stamp_at((result.since_unix_ms / 1_000).cast_signed()),
            asleep: !is_up(status.state),
        },
        None => unknown(check.name, record, status.state),
    });
    shown.collect()
}

/// Fly's words for a check that nobody has done yet.
fn unknown(name: String, record: &MachineRecord, state: MachineState) -> CheckStatus {
    CheckStatus {
        name,
        status: "warning".to_owned(),
        output: "waiting for status update".to_owned(),
        updated_at: record.updated_at.clone(),
        asleep: !is_up(state),
    }
}

/// Whether it runs or is about to, so that its checks are done.
fn is_up(state: MachineState) -> bool {
    match state {
        MachineState::Creating
        | MachineState::Starting
        | MachineState::Started
        | MachineState::Restarting
        | MachineState::Updating
        | MachineState::Replacing => true,
        MachineState::Created
        | MachineState::Stopping
        | MachineState::Stopped
        | MachineState::Suspending
        | MachineState::Suspended
        | MachineState::Failed
        | MachineState::Destroying
        | MachineState::Destroyed
        | MachineState::Replaced => false,
    }
}
