//! `scale show`: what an app has, by group.

use super::{Context, guest, managed};
use crate::args::AppArgs;
use crate::command::machine::process_group;
use crate::failure::Outcome;
use crate::render;
use perch_api::wire::{Guest, Machine};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const HEADERS: [&str; 6] = ["Name", "Count", "Kind", "CPUs", "Memory", "Regions"];

/// A group: its Machines by region, and the size of the first, which stands for all.
struct Group {
    name: String,
    count: usize,
    guest: Guest,
    regions: BTreeMap<String, usize>,
}

pub(super) async fn run(context: &Context<'_>, args: &AppArgs, as_json: bool) -> Outcome {
    let app = context.app_name(args)?;
    let groups = groups(&managed(context, &app).await?);
    if as_json {
        let object = |group: &Group| -> Value {
            json!({"Process": group.name, "Count": group.count, "CPUKind": group.guest.cpu_kind,
                "CPUs": group.guest.cpus, "Memory": group.guest.memory_mb, "Regions": group.regions})
        };
        return Ok(render::json(context.console, &groups.iter().map(object).collect::<Vec<_>>())?);
    }
    context.console.line(format!("VM Resources for app: {app}\n"));
    let rows: Vec<_> = groups.iter().map(row).collect();
    render::table(context.console, "Groups", &HEADERS, &rows);
    Ok(())
}

fn groups(machines: &[Machine]) -> Vec<Group> {
    let mut groups: BTreeMap<String, Vec<&Machine>> = BTreeMap::new();
    for machine in machines {
        groups.entry(process_group(machine)).or_default().push(machine);
    }
    let group = |(name, machines): (String, Vec<&Machine>)| {
        let mut regions = BTreeMap::new();
        for machine in &machines {
            *regions.entry(machine.region.clone()).or_default() += 1;
        }
        Group { name, count: machines.len(), guest: guest(machines[0]), regions }
    };
    groups.into_iter().map(group).collect()
}

fn row(group: &Group) -> Vec<String> {
    let region = |(name, count): (&String, &usize)| match count {
        1 => name.clone(),
        count => format!("{name}({count})"),
    };
    vec![
        group.name.clone(),
        group.count.to_string(),
        group.guest.cpu_kind.clone(),
        group.guest.cpus.to_string(),
        format!("{} MB", group.guest.memory_mb),
        group.regions.iter().map(region).collect::<Vec<_>>().join(","),
    ]
}
