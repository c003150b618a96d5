//! Which Machines a command is about: named by id, or chosen from a list at a terminal.

use super::super::Context;
use super::{process_group, role};
use crate::args::AppArgs;
use crate::failure::{Failure, Outcome};
use crate::prompt;
use perch_api::ClientError;
use perch_api::wire::{CheckStatus, Machine, MachineFilter, MachineState};

/// Apps that are asked at a time for a Machine whose app nobody named.
const ASKED_AT_A_TIME: usize = 32;

/// The Machine that a command is about, and its app.
pub(super) async fn one(
    context: &Context<'_>,
    args: &AppArgs,
    id: Option<&str>,
    select: bool,
) -> Outcome<(String, Machine)> {
    let app = check(context, args, id.is_some(), select)?;
    match (id, app) {
        (Some(id), Some(app)) => Ok((app.clone(), get(context, &app, id).await?)),
        (Some(id), None) => find(context, id).await,
        (None, app) => {
            let app = app.unwrap_or_default();
            let mut machines = listed(context, &app).await?;
            let options: Vec<_> = machines.iter().map(option).collect();
            let chosen = prompt::select(context.console, "Select a machine:", 0, &options)?;
            Ok((app, machines.swap_remove(chosen)))
        }
    }
}

/// The Machines that a command is about, and their app.
pub(super) async fn many(
    context: &Context<'_>,
    args: &AppArgs,
    ids: &[String],
    select: bool,
) -> Outcome<(String, Vec<Machine>)> {
    let app = check(context, args, !ids.is_empty(), select)?;
    let (first, app, rest) = match (ids, app) {
        ([], app) => return chosen(context, app.unwrap_or_default()).await,
        (ids, Some(app)) => (None, app, ids),
        // The first one tells the app of all.
        ([id, rest @ ..], None) => {
            let (app, machine) = find(context, id).await?;
            (Some(machine), app, rest)
        }
    };
    let mut machines: Vec<_> = first.into_iter().collect();
    for id in rest {
        machines.push(get(context, &app, id).await?);
    }
    Ok((app, machines))
}

async fn chosen(context: &Context<'_>, app: String) -> Outcome<(String, Vec<Machine>)> {
    let machines = listed(context, &app).await?;
    let options: Vec<_> = machines.iter().map(option).collect();
    let chosen = prompt::select_many(context.console, "Select machines:", &options)?;
    if chosen.is_empty() {
        return Err(Failure::new("no machines selected")
            .hint("Press space at each one that is meant, then Enter"));
    }
    let is_chosen = |(at, machine)| chosen.contains(&at).then_some(machine);
    Ok((app, machines.into_iter().enumerate().filter_map(is_chosen).collect()))
}

/// Whether there is something to act on, and the app if it is known.
fn check(
    context: &Context<'_>,
    args: &AppArgs,
    named: bool,
    select: bool,
) -> Outcome<Option<String>> {
    let app = context.app_if_named(args)?;
    let message = match (named, select, &app) {
        (true, true, _) => "machine IDs can't be used with --select",
        (_, true, None) => "an app name must be specified to use --select",
        (false, _, None) => "a machine ID or an app name is required",
        (false, _, Some(_)) if !context.console.is_interactive() => {
            "a machine ID must be specified when not running interactively"
        }
        _ => return Ok(app),
    };
    let hint = match app {
        Some(app) => format!("See them with `fly machine list -a {app}`"),
        None => "See them with `fly machine list -a APP`".to_owned(),
    };
    Err(Failure::new(message).hint(hint))
}

async fn listed(context: &Context<'_>, app: &str) -> Outcome<Vec<Machine>> {
    let machines = context.client.list_machines(app, &MachineFilter::default()).await;
    let mut machines = machines
        .map_err(|error| Failure::from(error).context("could not get a list of machines"))?;
    if machines.is_empty() {
        return Err(Failure::new(format!("the app {app} has no machines"))
            .hint(format!("`fly deploy -a {app}` makes them")));
    }
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(machines)
}

/// A Machine in a list to choose from.
pub(super) fn option(machine: &Machine) -> String {
    let group = process_group(machine);
    let group = if group.is_empty() { group } else { format!(", process group '{group}'") };
    let role = role_of_started(machine);
    let role = if role.is_empty() { role } else { format!(", role '{role}'") };
    let Machine { id, name, state, region, .. } = machine;
    format!("{id} {name} ({state}, region {region}{group}{role})")
}

fn role_of_started(machine: &Machine) -> String {
    let tells = |check: &&CheckStatus| check.name == "role";
    match machine.checks.iter().find(tells) {
        Some(check) if machine.state == MachineState::Started && check.status != "passing" => {
            "error".to_owned()
        }
        Some(_) if machine.state == MachineState::Started => role(&machine.checks),
        _ => String::new(),
    }
}

async fn get(context: &Context<'_>, app: &str, id: &str) -> Outcome<Machine> {
    context.client.get_machine(app, id).await.map_err(|error| not_found(error, app, id))
}

/// flyctl's words for a Machine that is not there.
pub(super) fn not_found(error: ClientError, app: &str, id: &str) -> Failure {
    if error.status() == Some(404) && error.to_string().contains("machine") {
        return Failure::new(format!("machine {id} was not found in app '{app}'"))
            .hint(format!("See those that are there with `fly machine list -a {app}`"));
    }
    Failure::from(error).context(format!("could not get machine {id}"))
}

/// The Machine with this id in any app: flyctl's "app optional".
async fn find(context: &Context<'_>, id: &str) -> Outcome<(String, Machine)> {
    let apps = context.client.list_apps(None).await?;
    let apps: Vec<_> = apps.into_iter().filter(|app| 0 < app.machine_count).collect();
    for apps in apps.chunks(ASKED_AT_A_TIME) {
        let ask = |app: &perch_api::wire::App| {
            let name = app.name.clone();
            async move { (context.client.get_machine(&name, id).await, name) }
        };
        for (answer, app) in super::super::all(apps.iter().map(ask)).await {
            match answer {
                Ok(machine) => return Ok((app, machine)),
                Err(error) if error.status() == Some(404) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Err(Failure::new(format!("machine {id} was not found in any app"))
        .hint("See an app's Machines with `fly machine list -a APP`"))
}
