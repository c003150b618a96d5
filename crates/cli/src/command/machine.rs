//! The commands on single Machines: `list`, `status`, `start`, `stop` and `suspend` here, the others in files of
//! their own.

mod changes;
mod checks;
mod choose;
pub(crate) mod copy;
mod cordon;
pub(crate) mod destroy;
pub(crate) mod exec;
mod files;
mod flags;
mod image;
mod kill;
pub(crate) mod leases;
mod mounts;
mod ports;
pub(crate) mod restart;
pub(crate) mod run;
mod shape;
mod started;
pub(crate) mod update;
pub(crate) mod wait;
mod wanted;

pub(super) use checks::watch as watch_checks;
pub(super) use shape::machine as shaped;

use super::Context;
use crate::args::{AppArgs, Machine as Command};
use crate::failure::{Failure, Outcome};
use crate::flytoml;
use crate::{pager, render};
use cordon::Cordon;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use perch_api::wire::{
    CheckStatus, Depth, Event, GoDuration, LeaseInput, Machine, MachineConfig, MachineFilter,
    MachineState, Signal, StopInput, WaitQuery, WaitState,
};
use std::time::{Duration, Instant};

/// Commands on one Machine hold its lease no longer than this (MA-63).
const LEASE_SECONDS: u64 = 120;
/// The server waits at most so long for one call.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Process groups of Machines that are made for one command.
const PASSING_GROUPS: [&str; 3] = ["fly_app_release_command", "release_command", "fly_app_console"];
const LIST_HEADERS: [&str; 13] = [
    "ID",
    "Name",
    "State",
    "Checks",
    "Region",
    "Role",
    "Image",
    "IP Address",
    "Volume",
    "Created",
    "Last Updated",
    "Process Group",
    "Size",
];

pub(super) async fn run(context: &Context<'_>, command: Command) -> Outcome {
    match command {
        Command::List { app, json, quiet } => {
            list(context, &app, context.wants_json(&json), quiet).await
        }
        Command::Status { id, app, select, display_config } => {
            let (_, machine) = choose::one(context, &app, id.as_deref(), select.select).await?;
            match display_config {
                true => context.console.line(shape::config(&machine.config)?.pretty("  ")),
                false => print_status(context, &machine),
            }
            Ok(())
        }
        Command::Start { ids, app, select } => {
            let (app, machines) = choose::many(context, &app, &ids, select.select).await?;
            start(context, &app, &machines).await
        }
        Command::Stop { ids, app, select, signal, timeout, wait_timeout } => {
            let input = stop_input(signal, timeout)?;
            let wait = wait_timeout.as_deref().map(wait_length).transpose()?.flatten();
            let (app, machines) = choose::many(context, &app, &ids, select).await?;
            stop(context, &app, &machines, &input, wait).await
        }
        Command::Exec(args) => exec::run(context, args).await,
        Command::Suspend { ids, app, select, wait_timeout } => {
            let wait = wait_timeout.as_deref().map(wait_length).transpose()?.flatten();
            let (app, machines) = choose::many(context, &app, &ids, select.select).await?;
            suspend(context, &app, &machines, wait).await
        }
        Command::Run(args) => run::run(context, *args).await,
        Command::Create(args) => run::create(context, *args).await,
        Command::Clone(args) => copy::run(context, *args).await,
        Command::Update(args) => update::run(context, *args).await,
        Command::Restart(args) => restart::run(context, args).await,
        Command::Destroy(args) => destroy::run(context, args).await,
        Command::Kill(args) => kill::run(context, args).await,
        Command::Cordon(args) => cordon::run(context, args, Cordon::On).await,
        Command::Uncordon(args) => cordon::run(context, args, Cordon::Off).await,
        Command::Wait(args) => wait::run(context, args).await,
        Command::Leases(command) => leases::run(context, command).await,
    }
}

async fn list(context: &Context<'_>, args: &AppArgs, as_json: bool, quiet: bool) -> Outcome {
    let app = context.app_name(args)?;
    let machines = context.client.list_machines(&app, &MachineFilter::default()).await?;
    let console = context.console;
    if as_json {
        let list: Vec<_> = machines.iter().map(shaped).collect::<Result<_, _>>()?;
        return Ok(render::json(console, &list)?);
    }
    if machines.is_empty() {
        if !quiet {
            console.line(format!("No machines are available on this app {app}"));
        }
        return Ok(());
    }
    if quiet {
        let rows: Vec<_> = machines.iter().map(|machine| vec![machine.id.clone()]).collect();
        render::table(console, "", &[], &rows);
        return Ok(());
    }
    let count = machines.len();
    console.line(format!("{count} machines have been retrieved from app {app}.\n"));
    let rows: Vec<_> = machines.iter().map(list_row).collect();
    pager::print(console, context.env, &render::table_text(console, &app, &LIST_HEADERS, &rows));
    if !machines.iter().all(is_reachable) {
        console.line("* These Machines' hosts could not be reached.");
    }
    Ok(())
}

fn list_row(machine: &Machine) -> Vec<String> {
    let reachable = is_reachable(machine);
    let note = if reachable { "" } else { "*" };
    let known = |text: String| if reachable { text } else { String::new() };
    vec![
        format!("{}{note}", machine.id),
        machine.name.clone(),
        machine.state.to_string(),
        known(passing_text(&machine.checks)),
        machine.region.clone(),
        role(&machine.checks),
        known(image_text(machine)),
        known(machine.private_ip.to_string()),
        volume(&machine.config),
        known(machine.created_at.clone()),
        known(machine.updated_at.clone()),
        process_group(machine),
        size_text(machine),
    ]
}

/// Whether the Machine's host answers; nobody here is without, but servers of others may say so.
pub(super) fn is_reachable(machine: &Machine) -> bool {
    machine.host_status == "ok"
}

/// What the check with this name says, by which clusters tell who leads.
fn role(checks: &[CheckStatus]) -> String {
    let found = checks.iter().rev().find(|check| check.name == "role");
    found.map(|check| check.output.clone()).unwrap_or_default()
}

/// The id of the first volume.
fn volume(config: &MachineConfig) -> String {
    let mounts = config.get("mounts").unwrap_or_default();
    mounts[0]["volume"].as_str().unwrap_or_default().to_owned()
}

/// `repository:tag`, and the version that the image says it has.
pub(super) fn image_text(machine: &Machine) -> String {
    let image = &machine.image_ref;
    let version = image.labels.get("fly.version").and_then(|version| version.as_str());
    let version = version.filter(|version| !version.is_empty());
    let version = version.map(|version| format!(" ({version})")).unwrap_or_default();
    format!("{}:{}{version}", image.repository, image.tag)
}

fn size_text(machine: &Machine) -> String {
    let Some(guest) = machine.config.view().guest.clone() else { return String::new() };
    let size = match guest.cpu_kind.as_str() {
        "shared" => format!("shared-cpu-{}x", guest.cpus),
        "performance" => format!("performance-{}x", guest.cpus),
        _ => "unknown".to_owned(),
    };
    format!("{size}:{}MB", guest.memory_mb)
}

fn passing_text(checks: &[CheckStatus]) -> String {
    if checks.is_empty() {
        return String::new();
    }
    let passing = checks.iter().filter(|check| check.status == "passing").count();
    format!("{passing}/{}", checks.len())
}

/// `N total[, N passing][, N warning][, N critical]`, or nothing.
pub(super) fn checks_text(checks: &[CheckStatus]) -> String {
    if checks.is_empty() {
        return String::new();
    }
    let mut text = format!("{} total", checks.len());
    for status in ["passing", "warning", "critical"] {
        let count = checks.iter().filter(|check| check.status == status).count();
        if count > 0 {
            text.push_str(&format!(", {count} {status}"));
        }
    }
    text
}

/// The app's Machines of which deploys take care, without those that only run one command for them.
pub(super) async fn list_managed(context: &Context<'_>, app: &str) -> Outcome<Vec<Machine>> {
    let machines = list_active(context, app).await?;
    Ok(machines.into_iter().filter(is_managed).collect())
}

/// The app's Machines that serve it, whoever made them.
pub(super) async fn list_active(context: &Context<'_>, app: &str) -> Outcome<Vec<Machine>> {
    let mut machines = context.client.list_machines(app, &MachineFilter::default()).await?;
    machines.retain(|machine| {
        let gone = matches!(machine.state, MachineState::Destroyed | MachineState::Destroying);
        !gone && !PASSING_GROUPS.contains(&process_group(machine).as_str())
    });
    Ok(machines)
}

/// Whether deploys treat the Machine as theirs (DE-04).
pub(super) fn is_managed(machine: &Machine) -> bool {
    metadata(machine, "fly_platform_version") == "v2"
}

pub(super) fn process_group(machine: &Machine) -> String {
    let group = metadata(machine, "fly_process_group");
    if group.is_empty() { metadata(machine, "process_group") } else { group }
}

pub(super) fn metadata(machine: &Machine, key: &str) -> String {
    machine.config.view().metadata.get(key).cloned().unwrap_or_default()
}

fn print_status(context: &Context<'_>, machine: &Machine) {
    let console = context.console;
    console.line(format!("Machine ID: {}", machine.id));
    console.line(format!("Instance ID: {}", machine.instance_id));
    console.line(format!("State: {}", machine.state));
    console.line(format!("HostStatus: {}", machine.host_status));
    if machine.cordoned {
        console.line("Cordoned: true");
    }
    console.line("");
    let view = machine.config.view();
    let guest = view.guest.clone().unwrap_or_default();
    let mut fields = vec![
        ("ID", machine.id.clone()),
        ("Instance ID", machine.instance_id.clone()),
        ("State", machine.state.to_string()),
        ("Image", image_text(machine)),
        ("Name", machine.name.clone()),
        ("Private IP", machine.private_ip.to_string()),
        ("Region", machine.region.clone()),
        ("Process Group", process_group(machine)),
        ("CPU Kind", guest.cpu_kind.clone()),
        ("vCPUs", guest.cpus.to_string()),
        ("Memory", guest.memory_mb.to_string()),
        ("Created", machine.created_at.clone()),
        ("Updated", machine.updated_at.clone()),
        ("Entrypoint", words_text(&view.init.entrypoint)),
        ("Command", words_text(&view.init.cmd)),
    ];
    if let Some(depth) = depth_text(machine) {
        fields.push(("Depth", depth));
    }
    if let Some(busy) = &machine.perch_busy {
        let reason = if busy.reason.is_empty() { "no reason given" } else { &busy.reason };
        fields.push(("Busy", format!("until {}: {reason}", busy.until)));
    }
    if !view.mounts.is_empty() {
        fields.push(("Volume", volume(&machine.config)));
    }
    render::vertical_table(console, "VM", &fields);
    print_checks(context, &machine.checks);
    let rows: Vec<_> = machine.events.iter().map(event_row).collect();
    let headers = ["State", "Event", "Source", "Timestamp", "Info"];
    render::table(console, "Event Logs", &headers, &rows);
}

/// How deep it sleeps and where its memory is, if the server says so.
pub(super) fn depth_text(machine: &Machine) -> Option<String> {
    let mut text = match machine.perch_depth? {
        Depth::Started => "started",
        Depth::SuspendedResident => "suspended, resident",
        Depth::SuspendedPagedOut => "suspended, paged out",
        Depth::Stopped => "stopped",
    }
    .to_owned();
    if let Some(memory) = machine.perch_memory {
        text.push_str(&format!(", {} in memory", megabytes(memory.resident_bytes)));
        if 0 < memory.swapped_bytes {
            text.push_str(&format!(", {} in swap", megabytes(memory.swapped_bytes)));
        }
        if 0 < memory.swap_store_bytes {
            let store = megabytes(memory.swap_store_bytes);
            text.push_str(&format!(" (which takes {store} of memory)"));
        }
    }
    Some(text)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A JSON array, or nothing.
fn words_text(words: &[String]) -> String {
    match words {
        [] => String::new(),
        words => serde_json::to_string(words).unwrap_or_default(),
    }
}

fn print_checks(context: &Context<'_>, checks: &[CheckStatus]) {
    if checks.is_empty() {
        return;
    }
    let now = Timestamp::now();
    let row = |check: &CheckStatus| {
        let time = render::relative_time(&check.updated_at, now);
        vec![check.name.clone(), super::checks::status(check), time, check.output.clone()]
    };
    let rows: Vec<_> = checks.iter().map(row).collect();
    let title = format!("Checks [{}]", passing_text(checks));
    render::table(context.console, &title, &["Name", "Status", "Last Updated", "Output"], &rows);
}

fn event_row(event: &Event) -> Vec<String> {
    vec![
        event.status.clone(),
        event.kind.clone(),
        event.source.clone(),
        event_time(event.timestamp, &TimeZone::system()),
        event_info(event),
    ]
}

/// As Go's `RFC3339Nano` in local time: a fraction without zeros at its end, `Z` for UTC.
fn event_time(milliseconds: i64, zone: &TimeZone) -> String {
    let Ok(time) = Timestamp::from_millisecond(milliseconds) else { return String::new() };
    let time = time.to_zoned(zone.clone());
    let zone =
        if time.offset().is_zero() { "Z".to_owned() } else { time.strftime("%:z").to_string() };
    let fraction = time.strftime("%.3f").to_string();
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{}{fraction}{zone}", time.strftime("%Y-%m-%dT%H:%M:%S"))
}

/// The exit, as flyctl prints it, and what only we know: who asked, why, and how long it took.
fn event_info(event: &Event) -> String {
    let Some(request) = &event.request else { return String::new() };
    let mut parts = Vec::new();
    let inner = || request.monitor_event.as_ref()?.exit_event.as_ref();
    if let Some(exit) = request.exit_event.as_ref().or_else(inner) {
        parts.push(format!("exit_code={}", exit.exit_code));
        parts.push(format!("oom_killed={}", exit.oom_killed));
        parts.push(format!("requested_stop={}", exit.requested_stop));
    }
    for (key, value) in &request.details {
        match value {
            serde_json::Value::String(text) => parts.push(format!("{key}={text}")),
            serde_json::Value::Number(number) => parts.push(format!("{key}={number}")),
            serde_json::Value::Bool(flag) => parts.push(format!("{key}={flag}")),
            _ => {}
        }
    }
    parts.join(",")
}

async fn start(context: &Context<'_>, app: &str, machines: &[Machine]) -> Outcome {
    leased(context, app, machines, "machine start", async |id: &str, nonce: Option<&str>| {
        let waiting = context.console.waiting(format!("Starting {id}"));
        let answer = context.client.start_machine(app, id, nonce).await;
        drop(waiting);
        let answer = answer.map_err(|error| failed(error, app, id, "start"))?;
        if answer.status == "error" {
            let message = format!("machine could not be started: {}", answer.message);
            return Err(Failure::new(message).hint(format!(
                "`fly logs -a {app} -m {id}` and `fly machine status {id} -a {app}` tell more"
            )));
        }
        context.console.line(format!("{id} has been started"));
        Ok(())
    })
    .await
}

fn stop_input(signal: Option<String>, timeout: Option<i64>) -> Outcome<StopInput> {
    let signal = signal.filter(|signal| !signal.is_empty());
    let signal = signal.as_deref().map(str::parse::<Signal>).transpose()?;
    // flyctl takes no notice of what is no length of time.
    let seconds = timeout.and_then(|seconds| u64::try_from(seconds).ok()).filter(|s| 0 < *s);
    let timeout = seconds.map(|seconds| GoDuration(Duration::from_secs(seconds)));
    Ok(StopInput { signal, timeout })
}

/// How long to wait; zero is not at all.
fn wait_length(text: &str) -> Outcome<Option<Duration>> {
    let length = flytoml::parse_duration(text).map_err(|error| {
        let message =
            format!("invalid argument \"{text}\" for \"-w, --wait-timeout\" flag: {error}");
        Failure::new(message).hint("Write it with a unit, such as 30s or 2m")
    })?;
    Ok(Some(length).filter(|length| !length.is_zero()))
}

async fn stop(
    context: &Context<'_>,
    app: &str,
    machines: &[Machine],
    input: &StopInput,
    wait: Option<Duration>,
) -> Outcome {
    leased(context, app, machines, "machine stop", async |id: &str, nonce: Option<&str>| {
        context.console.line(format!("Sending kill signal to machine {id}..."));
        let stopped = context.client.stop_machine(app, id, input, nonce).await;
        stopped.map_err(|error| failed(error, app, id, "stop"))?;
        if let Some(limit) = wait {
            context.interrupt.cut(wait_for(context, app, id, WaitState::Stopped, limit)).await?;
        }
        context.console.line(format!("{id} has been successfully stopped"));
        Ok(())
    })
    .await
}

async fn suspend(
    context: &Context<'_>,
    app: &str,
    machines: &[Machine],
    wait: Option<Duration>,
) -> Outcome {
    leased(context, app, machines, "machine suspend", async |id: &str, nonce: Option<&str>| {
        let asked = context.client.suspend_machine(app, id, nonce).await;
        asked.map_err(|error| failed(error, app, id, "suspend"))?;
        if let Some(limit) = wait {
            let reached = wait_for(context, app, id, WaitState::Suspended, limit);
            context.interrupt.cut(reached).await?;
        }
        let word = if wait.is_some() { "has been" } else { "is being" };
        context.console.line(format!("{id} {word} suspended"));
        Ok(())
    })
    .await
}

fn failed(error: perch_api::ClientError, app: &str, id: &str, what: &str) -> Failure {
    match error.status() {
        Some(404) => choose::not_found(error, app, id),
        _ => Failure::from(error).context(format!("could not {what} machine {id}")),
    }
}

/// Waits as long as was asked for, in as many calls as that takes.
async fn wait_for(
    context: &Context<'_>,
    app: &str,
    id: &str,
    state: WaitState,
    limit: Duration,
) -> Outcome {
    let deadline = Instant::now() + limit;
    let _waiting = context.console.waiting(format!("Waiting for {id} to have state: {state}"));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.clamp(Duration::from_secs(1), WAIT_MAX);
        let query = WaitQuery::for_state(state, timeout);
        match context.client.wait_machine(app, id, &query).await {
            Err(error) if error.status() == Some(408) && timeout < left => {}
            Err(error) if error.status() == Some(408) => {
                return Err(not_in_time(app, id, state, limit));
            }
            other => return Ok(other?),
        }
    }
}

fn not_in_time(app: &str, id: &str, state: WaitState, limit: Duration) -> Failure {
    let (verb, remedy) = match state {
        WaitState::Stopped => ("stop", ". --timeout 10 kills it after 10 s"),
        WaitState::Suspended => ("suspend", ""),
        WaitState::Started | WaitState::Destroyed | WaitState::Settled => ("end", ""),
    };
    let given = flytoml::format_duration(limit);
    Failure::new(format!("machine {id} did not {verb} within the wait timeout")).hint(format!(
        "It was asked {given} ago and may still do so: `fly machine status {id} -a {app}`{remedy}"
    ))
}

/// Takes the leases of all Machines, does the work on one after the other, and gives the leases back
/// whatever happened. After Ctrl-C nothing more is begun.
pub(super) async fn leased(
    context: &Context<'_>,
    app: &str,
    machines: &[Machine],
    what: &str,
    work: impl AsyncFn(&str, Option<&str>) -> Outcome,
) -> Outcome {
    let _until_given_back = context.interrupt.hold();
    let mut nonces = Vec::new();
    let mut result = Ok(());
    for machine in machines.iter().filter(|machine| is_reachable(machine)) {
        result = context.interrupt.check();
        if result.is_ok() {
            match lease(context, app, &machine.id, what).await {
                Ok(nonce) => nonces.push((machine.id.as_str(), nonce)),
                Err(failure) => result = Err(failure),
            }
        }
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        let nonce_of = |id: &str| nonces.iter().find(|(of, _)| *of == id).map(|(_, n)| n.as_str());
        result = work_on_each(context, machines, &nonce_of, &work).await;
    }
    for (id, nonce) in &nonces {
        release(context, app, id, nonce).await;
    }
    result
}

async fn work_on_each<'n>(
    context: &Context<'_>,
    machines: &[Machine],
    nonce_of: &impl Fn(&str) -> Option<&'n str>,
    work: &impl AsyncFn(&str, Option<&str>) -> Outcome,
) -> Outcome {
    for machine in machines {
        context.interrupt.check()?;
        work(&machine.id, nonce_of(&machine.id)).await?;
    }
    Ok(())
}

async fn lease(context: &Context<'_>, app: &str, id: &str, what: &str) -> Outcome<String> {
    let input = LeaseInput { ttl: LEASE_SECONDS, description: format!("fly {what}") };
    let lease = context.client.acquire_lease(app, id, &input).await;
    let lease = lease.map_err(|error| match error.status() {
        Some(404) => choose::not_found(error, app, id),
        _ => Failure::from(error).context(format!("could not lease machine {id}")),
    })?;
    Ok(lease.data.nonce)
}

/// A lease that cannot be given back ends by itself; it is said, and the command goes on.
async fn release(context: &Context<'_>, app: &str, id: &str, nonce: &str) {
    match context.client.release_lease(app, id, nonce).await {
        Ok(()) => {}
        Err(error) if error.status() == Some(404) => {}
        Err(error) => {
            context.console.note(format!("could not give back the lease on {id}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_time_is_local_and_its_fraction_has_no_zeros_at_its_end() {
        let utc = |ms| event_time(ms, &TimeZone::UTC);
        assert_eq!(utc(1_704_164_645_678), "2024-01-02T03:04:05.678Z");
        assert_eq!(utc(1_704_164_645_600), "2024-01-02T03:04:05.6Z");
        assert_eq!(utc(1_704_164_645_000), "2024-01-02T03:04:05Z");
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(event_time(1_704_164_645_010, &east), "2024-01-02T05:04:05.01+02:00");
    }

    #[test]
    fn a_wait_has_a_unit_and_zero_is_none() {
        assert_eq!(wait_length("1m30s").ok(), Some(Some(Duration::from_secs(90))));
        assert_eq!(wait_length("0").ok(), Some(None));
        for bad in ["5", "soon", "-1s"] {
            let message = wait_length(bad).expect_err(bad).message();
            assert!(message.contains("-w, --wait-timeout"), "{message}");
        }
    }
}
