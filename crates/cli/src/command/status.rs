//! `status`: the app and its Machines, in as few calls as that takes.

use super::Context;
use super::apps::has_own_network;
use super::machine::{
    checks_text, depth_text, image_text, is_managed, is_reachable, metadata, process_group, shaped,
};
use crate::args::Status;
use crate::failure::{Failure, Outcome};
use crate::json::Json;
use crate::render;
use perch_api::wire::{App, Machine, MachineFilter, MachineState};
use serde_json::{Value, json};
use std::time::Duration;

/// Groups of Machines that come and go with one command.
const PASSING_GROUPS: [&str; 2] = ["fly_app_release_command", "fly_app_console"];
const RATES: std::ops::RangeInclusive<i64> = 1..=3600;
const HEADERS: [&str; 8] =
    ["Process", "ID", "Version", "Region", "State", "Role", "Checks", "Last Updated"];

pub(super) async fn run(context: &Context<'_>, args: Status) -> Outcome {
    let as_json = context.wants_json(&args.json);
    if args.watch && as_json {
        return Err(Failure::new("--watch and --json are not supported together"));
    }
    let name = context.app_name(&args.app)?;
    match (args.watch, as_json) {
        (true, _) => watch(context, &name, args.rate).await,
        (false, true) => print_json(context, &name).await,
        (false, false) => {
            let (app, machines) = look(context, &name).await?;
            print(context, &app, &machines);
            Ok(())
        }
    }
}

/// Shows it again and again until Ctrl-C.
async fn watch(context: &Context<'_>, name: &str, rate: i64) -> Outcome {
    if !context.console.is_interactive() {
        return Err(Failure::new("--watch is not supported for non-interactive sessions"));
    }
    let Some(seconds) = u64::try_from(rate).ok().filter(|_| RATES.contains(&rate)) else {
        return Err(Failure::new("--rate must be in the [1, 3600] range"));
    };
    let _until_ended = context.interrupt.hold();
    loop {
        let (app, machines) = context.interrupt.cut(look(context, name)).await?;
        // Clears the screen and begins at its first place.
        context.console.text("\x1b[2J\x1b[1;1H");
        let time = jiff::Timestamp::now().strftime("%H:%M:%S");
        context.console.line(format!("\x1b[1m{name}\x1b[0m at: \x1b[1m{time}\x1b[0m\n"));
        print(context, &app, &machines);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            // Ctrl-C is how a watch is meant to end.
            () = context.interrupt.pressed() => return Ok(()),
        }
    }
}

/// The app and those of its Machines that stay, both asked for at the same time.
async fn look(context: &Context<'_>, name: &str) -> Outcome<(App, Vec<Machine>)> {
    let filter = MachineFilter::default();
    let machines = context.client.list_machines(name, &filter);
    let (app, machines) = tokio::join!(context.client.get_app(name), machines);
    let app = app.map_err(|error| Failure::from(error).context("failed to get app"))?;
    let mut machines = machines?;
    machines.retain(stays);
    machines.sort_by(|a, b| b.id.cmp(&a.id));
    Ok((app, machines))
}

fn stays(machine: &Machine) -> bool {
    let passing = PASSING_GROUPS.contains(&process_group(machine).as_str())
        || metadata(machine, "process_group") == "release_command";
    !passing && !matches!(machine.state, MachineState::Destroyed | MachineState::Destroying)
}

fn print(context: &Context<'_>, app: &App, machines: &[Machine]) {
    let managed: Vec<_> = machines.iter().filter(|machine| is_managed(machine)).collect();
    let image = newest_image(&managed);
    let mut fields = vec![
        ("Name", app.name.clone()),
        ("Owner", app.organization.slug.clone()),
        ("Hostname", app.hostname.clone()),
        ("Image", image),
    ];
    if has_own_network(app) {
        fields.push(("Network", app.network.clone()));
    }
    render::vertical_table(context.console, "App", &fields);
    if !managed.is_empty() {
        let mut rows: Vec<_> = managed.iter().map(|machine| row(machine)).collect();
        rows.sort();
        render::table(context.console, "Machines", &HEADERS, &rows);
        print_notes(context, &managed);
    }
    if managed.len() < machines.len() {
        context.console.line(
            "Found machines that aren't part of Fly Launch, run fly machines list to see them.",
        );
    }
}

fn print_notes(context: &Context<'_>, machines: &[&Machine]) {
    let standby = machines.iter().any(|machine| is_standby(machine));
    let unreachable = machines.iter().any(|machine| !is_reachable(machine));
    let mut notes: Vec<_> = machines.iter().filter_map(|machine| reason_text(machine)).collect();
    notes.extend(machines.iter().filter_map(|machine| rest_text(machine)));
    notes.sort();
    let cordoned = machines.iter().filter(|machine| machine.cordoned);
    let cordoned: Vec<_> = cordoned.map(|machine| machine.id.as_str()).collect();
    if standby || unreachable || !notes.is_empty() || !cordoned.is_empty() {
        context.console.line("Notes:");
    }
    for note in notes {
        context.console.line(note);
    }
    if standby {
        context
            .console
            .line("  † Standby machine (it will take over only in case of host hardware failure)");
    }
    if unreachable {
        context.console.line("  💀 The machine's host is unreachable");
    }
    if !cordoned.is_empty() {
        let ids = cordoned.join(", ");
        context.console.line(format!("  Cordoned: {ids} (no new requests, never started for one)"));
    }
}

/// Why a Machine that is down, or about to be restarted, is so; where there is more to say than its state.
fn reason_text(machine: &Machine) -> Option<String> {
    use MachineState::{Failed, Restarting, Stopped};
    if !matches!(machine.state, Failed | Restarting | Stopped) {
        return None;
    }
    let since = machine.events.iter().take_while(|event| event.kind != "start");
    let mut details = since.filter_map(|event| Some(&event.request.as_ref()?.details));
    let reason = details.find_map(|details| details.get("reason")?.as_str())?;
    Some(format!("  {}: {reason}", machine.id))
}

/// Where the memory of a Machine is that sleeps with it.
fn rest_text(machine: &Machine) -> Option<String> {
    let sleeps = machine.state == MachineState::Suspended;
    sleeps.then(|| Some(format!("  {}: {}", machine.id, depth_text(machine)?))).flatten()
}

fn is_standby(machine: &Machine) -> bool {
    let standbys = machine.config.get("standbys").unwrap_or_default();
    standbys.as_array().is_some_and(|ids| !ids.is_empty())
}

/// `repository:tag` of the highest release, by what the Machines carry.
fn newest_image(machines: &[&Machine]) -> String {
    let version = |machine: &Machine| metadata(machine, "fly_release_version").parse::<u64>().ok();
    let released = machines.iter().filter(|machine| version(machine).is_some_and(|v| 0 < v));
    let newest = released.max_by_key(|machine| version(machine));
    newest.map_or("-".to_owned(), |machine| image_text(machine))
}

fn row(machine: &Machine) -> Vec<String> {
    let mut group = process_group(machine);
    if group.is_empty() {
        group.push_str("<default>");
    }
    if is_standby(machine) {
        group.push('†');
    }
    if !is_reachable(machine) {
        group.push('💀');
    }
    vec![
        group,
        machine.id.clone(),
        metadata(machine, "fly_release_version"),
        machine.region.clone(),
        machine.state.to_string(),
        metadata(machine, "role"),
        checks_text(&machine.checks),
        machine.updated_at.clone(),
    ]
}

/// Keys in alphabetical order, as flyctl's map has them.
async fn print_json(context: &Context<'_>, name: &str) -> Outcome {
    let releases = context.client.list_releases(name, 1);
    let (looked, releases) = tokio::join!(look(context, name), releases);
    let (app, machines) = looked?;
    let managed = machines.iter().filter(|machine| is_managed(machine));
    let machines: Vec<_> = managed.map(shaped).collect::<Result<_, _>>()?;
    let version = releases?.first().map_or(0, |release| release.version);
    let mut entries = vec![
        ("AppURL", Json::of("")?),
        ("Deployed", Json::of(&(app.status == "deployed"))?),
        ("Hostname", Json::of(&app.hostname)?),
        ("ID", Json::of(&app.id)?),
        ("Machines", Json::List(machines)),
        ("Name", Json::of(&app.name)?),
    ];
    if has_own_network(&app) {
        entries.push(("Network", Json::of(&app.network)?));
    }
    entries.extend([
        ("Organization", Json::of(&organization_json(&app))?),
        ("PlatformVersion", Json::of("machines")?),
        ("Status", Json::of(&app.status)?),
        ("Version", Json::of(&version)?),
    ]);
    entries.sort_by_key(|(key, _)| *key);
    let entries = entries.into_iter().map(|(key, value)| (key.to_owned(), value));
    Ok(render::json(context.console, &Json::Object(entries.collect()))?)
}

fn organization_json(app: &App) -> Value {
    let organization = &app.organization;
    json!({
        "ID": organization.slug,
        "InternalNumericID": organization.internal_numeric_id.to_string(),
        "Name": organization.name,
        "Slug": organization.slug,
        "RawSlug": organization.slug,
        "PaidPlan": false,
    })
}
