//! `services list`: what an app's Machines publish.

use super::{Context, machine};
use crate::args::AppArgs;
use crate::failure::Outcome;
use crate::render;
use clap::Subcommand;
use perch_api::wire::{Machine, Port, Service};
use std::collections::{BTreeMap, BTreeSet};

const HEADERS: [&str; 7] =
    ["Protocol", "Ports", "Handlers", "Force HTTPS", "Process Group", "Regions", "Machines"];

#[derive(Debug, Subcommand)]
pub(crate) enum Services {
    /// List the services of an app's Machines
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppArgs,
    },
}

/// A published port, as far as it is shown; what is equal is one row.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Published {
    protocol: String,
    ports: (u16, u16),
    internal_port: u16,
    handlers: String,
    force_https: bool,
}

/// Who publishes it.
#[derive(Debug, Default)]
struct Publishers {
    groups: BTreeSet<String>,
    regions: BTreeSet<String>,
    machines: usize,
}

pub(super) async fn run(context: &Context<'_>, command: Services) -> Outcome {
    let Services::List { app } = command;
    let app = context.app_name(&app)?;
    let machines = machine::list_active(context, &app).await?;
    if machines.is_empty() {
        context.console.note("No machines found");
        return Ok(());
    }
    let rows: Vec<_> = by_port(&machines).iter().map(row).collect();
    render::table(context.console, "Services", &HEADERS, &rows);
    Ok(())
}

fn by_port(machines: &[Machine]) -> BTreeMap<Published, Publishers> {
    let mut all: BTreeMap<Published, Publishers> = BTreeMap::new();
    for machine in machines {
        for service in &machine.config.view().services {
            for published in service.ports.iter().filter_map(|port| published(service, port)) {
                let publishers = all.entry(published).or_default();
                publishers.groups.insert(machine::process_group(machine));
                publishers.regions.insert(machine.region.clone());
                publishers.machines += 1;
            }
        }
    }
    all
}

fn published(service: &Service, port: &Port) -> Option<Published> {
    Some(Published {
        protocol: service.protocol.to_uppercase(),
        ports: port.range()?,
        internal_port: service.internal_port,
        handlers: port.handlers.join(",").to_uppercase(),
        force_https: port.force_https,
    })
}

fn row((published, publishers): (&Published, &Publishers)) -> Vec<String> {
    let ports = match published.ports {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let joined = |words: &BTreeSet<String>| words.iter().cloned().collect::<Vec<_>>().join(",");
    vec![
        published.protocol.clone(),
        format!("{ports} => {}", published.internal_port),
        format!("[{}]", published.handlers),
        if published.force_https { "True" } else { "False" }.to_owned(),
        joined(&publishers.groups),
        joined(&publishers.regions),
        publishers.machines.to_string(),
    ]
}
