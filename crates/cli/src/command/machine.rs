//! `machine list | status | start | stop | suspend`.

use super::Context;
use crate::args::{AppArgs, Machine as Command};
use crate::failure::{Failure, Outcome};
use crate::flytoml;
use crate::render;
use perch_api::wire::{
    CheckStatus, Event, GoDuration, LeaseInput, Machine, MachineFilter, Signal, StopInput,
    WaitQuery, WaitState,
};
use std::time::{Duration, Instant};

/// Commands on one Machine hold its lease no longer than this (MA-63).
const LEASE_SECONDS: u64 = 120;
/// The server waits at most so long for one call.
const WAIT_MAX: Duration = Duration::from_secs(60);
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
        Command::List { app, json, quiet } => list(context, &app, json.json, quiet).await,
        Command::Status { id, app, display_config } => {
            let id = id.ok_or_else(no_id)?;
            let (_, machine) = find(context, &app, &id).await?;
            match display_config {
                true => context.console.line(serde_json::to_string_pretty(&machine.config)?),
                false => print_status(context, &machine),
            }
            Ok(())
        }
        Command::Start { ids, app } => {
            for id in some_ids(ids)? {
                start(context, &app, &id).await?;
            }
            Ok(())
        }
        Command::Stop { ids, app, signal, timeout, wait_timeout } => {
            let input = stop_input(signal, timeout)?;
            let wait = wait_timeout.as_deref().map(flytoml::parse_duration).transpose()?;
            for id in some_ids(ids)? {
                stop(context, &app, &id, &input, wait).await?;
            }
            Ok(())
        }
        Command::Suspend { ids, app, wait_timeout } => {
            let wait = wait_timeout.as_deref().map(flytoml::parse_duration).transpose()?;
            for id in some_ids(ids)? {
                suspend(context, &app, &id, wait.filter(|wait| !wait.is_zero())).await?;
            }
            Ok(())
        }
    }
}

fn no_id() -> Failure {
    Failure::new("a machine ID must be specified when not running interactively")
        .hint("See them with `fly machine list`")
}

fn some_ids(ids: Vec<String>) -> Outcome<Vec<String>> {
    if ids.is_empty() { Err(no_id()) } else { Ok(ids) }
}

/// The Machine and its app. Without an app's name all apps are looked through, so that an id is
/// enough (flyctl's "app optional").
async fn find(context: &Context<'_>, args: &AppArgs, id: &str) -> Outcome<(String, Machine)> {
    if let Ok(app) = context.app_name(args) {
        let machine = context.client.get_machine(&app, id).await.map_err(|error| {
            let missing = error.status() == Some(404);
            let message = format!("machine {id} was not found in app '{app}'");
            if missing { Failure::new(message) } else { error.into() }
        })?;
        return Ok((app, machine));
    }
    for app in context.client.list_apps(None).await? {
        match context.client.get_machine(&app.name, id).await {
            Ok(machine) => return Ok((app.name, machine)),
            Err(error) if error.status() == Some(404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::new(format!("machine {id} was not found in any app")))
}

async fn list(context: &Context<'_>, args: &AppArgs, as_json: bool, quiet: bool) -> Outcome {
    let app = context.app_name(args)?;
    let machines = context.client.list_machines(&app, &MachineFilter::default()).await?;
    let console = context.console;
    if as_json {
        return Ok(render::json(console, &machines)?);
    }
    if machines.is_empty() {
        if !quiet {
            console.line(format!("No machines are available on this app {app}"));
        }
        return Ok(());
    }
    if quiet {
        machines.iter().for_each(|machine| console.line(&machine.id));
        return Ok(());
    }
    let count = machines.len();
    console.line(format!("{count} machines have been retrieved from app {app}.\n"));
    let rows: Vec<_> = machines.iter().map(list_row).collect();
    render::table(console, &app, &LIST_HEADERS, &rows);
    Ok(())
}

fn list_row(machine: &Machine) -> Vec<String> {
    vec![
        machine.id.clone(),
        machine.name.clone(),
        machine.state.to_string(),
        passing_text(&machine.checks),
        machine.region.clone(),
        String::new(),
        image_text(machine),
        machine.private_ip.to_string(),
        String::new(),
        machine.created_at.clone(),
        machine.updated_at.clone(),
        process_group(machine),
        size_text(machine),
    ]
}

fn image_text(machine: &Machine) -> String {
    format!("{}:{}", machine.image_ref.repository, machine.image_ref.tag)
}

fn size_text(machine: &Machine) -> String {
    let guest = machine.config.view().guest.clone().unwrap_or_default();
    let kind = if guest.cpu_kind == "shared" { "shared-cpu" } else { guest.cpu_kind.as_str() };
    format!("{kind}-{}x:{}MB", guest.cpus, guest.memory_mb)
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
    console.line(format!("HostStatus: {}\n", machine.host_status));
    let view = machine.config.view();
    let guest = view.guest.clone().unwrap_or_default();
    let list = |words: &[String]| serde_json::to_string(words).unwrap_or_default();
    let fields = [
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
        ("Entrypoint", list(&view.init.entrypoint)),
        ("Command", list(&view.init.cmd)),
    ];
    render::vertical_table(console, "VM", &fields);
    let rows: Vec<_> = machine.events.iter().map(event_row).collect();
    let headers = ["State", "Event", "Source", "Timestamp", "Info"];
    render::table(console, "Event Logs", &headers, &rows);
}

fn event_row(event: &Event) -> Vec<String> {
    let time = jiff::Timestamp::from_millisecond(event.timestamp);
    let time = time.map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string());
    vec![
        event.status.clone(),
        event.kind.clone(),
        event.source.clone(),
        time.unwrap_or_default(),
        event_info(event),
    ]
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

async fn start(context: &Context<'_>, args: &AppArgs, id: &str) -> Outcome {
    let (app, _) = find(context, args, id).await?;
    let _leased = context.interrupt.hold();
    let waiting = context.console.waiting(format!("Starting {id}"));
    let nonce = lease(context, &app, id, "machine start").await?;
    let answer = context.client.start_machine(&app, id, Some(&nonce)).await;
    release(context, &app, id, &nonce).await;
    drop(waiting);
    let answer = answer
        .map_err(|error| Failure::from(error).context(format!("could not start machine {id}")))?;
    if answer.status == "error" {
        let message = format!("machine could not be started: {}", answer.message);
        return Err(Failure::new(message).context(format!("could not start machine {id}")));
    }
    context.console.line(format!("{id} has been started"));
    Ok(())
}

fn stop_input(signal: Option<String>, timeout: Option<u32>) -> Outcome<StopInput> {
    let signal = signal.as_deref().map(str::parse::<Signal>).transpose()?;
    let seconds = |seconds| GoDuration(Duration::from_secs(u64::from(seconds)));
    Ok(StopInput { signal, timeout: timeout.map(seconds) })
}

async fn stop(
    context: &Context<'_>,
    args: &AppArgs,
    id: &str,
    input: &StopInput,
    wait: Option<Duration>,
) -> Outcome {
    context.console.line(format!("Sending kill signal to machine {id}..."));
    let (app, _) = find(context, args, id).await?;
    let _leased = context.interrupt.hold();
    let nonce = lease(context, &app, id, "machine stop").await?;
    let stopped = context.client.stop_machine(&app, id, input, Some(&nonce)).await;
    let waited = match (&stopped, wait) {
        (Ok(()), Some(limit)) if !limit.is_zero() => {
            let reached = wait_for(context, &app, id, WaitState::Stopped, limit);
            context.interrupt.cut(reached).await
        }
        _ => Ok(()),
    };
    release(context, &app, id, &nonce).await;
    stopped
        .map_err(|error| Failure::from(error).context(format!("could not stop machine {id}")))?;
    waited?;
    context.console.line(format!("{id} has been successfully stopped"));
    Ok(())
}

async fn suspend(
    context: &Context<'_>,
    args: &AppArgs,
    id: &str,
    wait: Option<Duration>,
) -> Outcome {
    let (app, _) = find(context, args, id).await?;
    let _leased = context.interrupt.hold();
    let nonce = lease(context, &app, id, "machine suspend").await?;
    let asked = context.client.suspend_machine(&app, id, Some(&nonce)).await;
    let waited = match (&asked, wait) {
        (Ok(()), Some(limit)) => {
            let reached = wait_for(context, &app, id, WaitState::Suspended, limit);
            context.interrupt.cut(reached).await
        }
        _ => Ok(()),
    };
    release(context, &app, id, &nonce).await;
    asked
        .map_err(|error| Failure::from(error).context(format!("could not suspend machine {id}")))?;
    waited?;
    let word = if wait.is_some() { "has been" } else { "is being" };
    context.console.line(format!("{id} {word} suspended"));
    Ok(())
}

async fn wait_for(
    context: &Context<'_>,
    app: &str,
    id: &str,
    state: WaitState,
    limit: Duration,
) -> Outcome {
    let deadline = Instant::now() + limit;
    let _waiting = context.console.waiting(format!("Waiting for {id} to have state: stopped"));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = format!("machine {id} was not {} in time", state.as_str());
            return Err(Failure::deadline(message));
        }
        let timeout = left.clamp(Duration::from_secs(1), WAIT_MAX);
        let query = WaitQuery::for_state(state, timeout);
        match context.client.wait_machine(app, id, &query).await {
            Err(error) if error.status() == Some(408) => {}
            other => return Ok(other?),
        }
    }
}

async fn lease(context: &Context<'_>, app: &str, id: &str, what: &str) -> Outcome<String> {
    let input = LeaseInput { ttl: LEASE_SECONDS, description: format!("fly {what}") };
    let lease = context.client.acquire_lease(app, id, &input).await;
    let lease = lease
        .map_err(|error| Failure::from(error).context(format!("could not lease machine {id}")))?;
    Ok(lease.data.nonce)
}

/// A lease that cannot be given back ends by itself; it is said, and the command goes on.
async fn release(context: &Context<'_>, app: &str, id: &str, nonce: &str) {
    if let Err(error) = context.client.release_lease(app, id, nonce).await {
        context.console.note(format!("could not give back the lease on {id}: {error}"));
    }
}
