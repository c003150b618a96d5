//! `regions`, which is `platform regions`, and `regions list`: where an app's Machines are.

use super::{Context, machine, platform};
use crate::args::{AppArgs, Json};
use crate::console::Style;
use crate::failure::Outcome;
use crate::render;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Regions {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the regions that an app's Machines are in
    List {
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        json: Json,
    },
}

pub(super) async fn run(context: &Context<'_>, args: Regions) -> Outcome {
    match args.command {
        None => platform::regions(context, context.wants_json(&args.json)).await,
        Some(Command::List { app, json }) => list(context, &app, context.wants_json(&json)).await,
    }
}

async fn list(context: &Context<'_>, args: &AppArgs, as_json: bool) -> Outcome {
    let app = context.app_name(args)?;
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for it in machine::list_managed(context, &app).await? {
        groups.entry(machine::process_group(&it)).or_default().insert(it.region);
    }
    if as_json {
        let group = |(name, regions)| json!({"Name": name, "Regions": regions});
        let groups: Vec<Value> = groups.iter().map(group).collect();
        return Ok(render::json(context.console, &json!({"ProcessGroupRegions": groups}))?);
    }
    for (group, regions) in groups {
        let regions: Vec<String> = regions.into_iter().collect();
        let group = context.console.paint(Style::Bold, &group);
        context.console.line(format!("Regions [{group}]: {}", regions.join(", ")));
    }
    Ok(())
}
