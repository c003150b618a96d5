//! `status`.

use super::Context;
use super::machine::{checks_text, is_managed, metadata, process_group};
use crate::args::Status;
use crate::failure::Outcome;
use crate::render;
use perch_api::wire::{App, Machine, MachineFilter, Release};
use serde_json::json;

const HEADERS: [&str; 8] =
    ["Process", "ID", "Version", "Region", "State", "Role", "Checks", "Last Updated"];

pub(super) async fn run(context: &Context<'_>, args: Status) -> Outcome {
    let name = context.app_name(&args.app)?;
    let app = context.client.get_app(&name).await?;
    let machines = context.client.list_machines(&name, &MachineFilter::default()).await?;
    let releases = context.client.list_releases(&name, 1).await?;
    match args.json.json {
        true => print_json(context, &app, &machines, releases.first()),
        false => {
            print(context, &app, &machines, releases.first());
            Ok(())
        }
    }
}

fn print(context: &Context<'_>, app: &App, machines: &[Machine], release: Option<&Release>) {
    let managed: Vec<_> = machines.iter().filter(|machine| is_managed(machine)).collect();
    let image = release.map_or("-".to_owned(), |_| image_text(&managed));
    let mut fields = vec![
        ("Name", app.name.clone()),
        ("Owner", app.organization.slug.clone()),
        ("Hostname", app.hostname.clone()),
        ("Image", image),
    ];
    if !matches!(app.network.as_str(), "" | "default") {
        fields.push(("Network", app.network.clone()));
    }
    render::vertical_table(context.console, "App", &fields);
    if !managed.is_empty() {
        let mut rows: Vec<_> = managed.iter().map(|machine| row(machine)).collect();
        rows.sort();
        render::table(context.console, "Machines", &HEADERS, &rows);
    }
    if managed.len() < machines.len() {
        context.console.line(
            "Found machines that aren't part of Fly Launch, run fly machines list to see them.",
        );
    }
}

/// `repository:tag` of the highest release.
fn image_text(machines: &[&Machine]) -> String {
    let version =
        |machine: &&&Machine| metadata(machine, "fly_release_version").parse::<u64>().ok();
    let newest = machines.iter().max_by_key(version);
    newest.map_or("-".to_owned(), |machine| {
        let image = &machine.image_ref;
        format!("{}:{}", image.repository, image.tag)
    })
}

fn row(machine: &Machine) -> Vec<String> {
    let group = process_group(machine);
    vec![
        if group.is_empty() { "<default>".to_owned() } else { group },
        machine.id.clone(),
        metadata(machine, "fly_release_version"),
        machine.region.clone(),
        machine.state.to_string(),
        String::new(),
        checks_text(&machine.checks),
        machine.updated_at.clone(),
    ]
}

/// Keys in alphabetical order, as flyctl's map has them.
fn print_json(
    context: &Context<'_>,
    app: &App,
    machines: &[Machine],
    release: Option<&Release>,
) -> Outcome {
    let organization = &app.organization;
    let value = json!({
        "AppURL": "",
        "Deployed": app.status == "deployed",
        "Hostname": app.hostname,
        "ID": app.id,
        "Machines": machines,
        "Name": app.name,
        "Organization": {
            "ID": organization.slug,
            "InternalNumericID": organization.internal_numeric_id.to_string(),
            "Name": organization.name,
            "Slug": organization.slug,
            "RawSlug": organization.slug,
            "PaidPlan": false,
        },
        "PlatformVersion": "machines",
        "Status": app.status,
        "Version": release.map_or(0, |release| release.version),
    });
    Ok(render::json(context.console, &value)?)
}
