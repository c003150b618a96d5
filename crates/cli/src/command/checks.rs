//! `checks list`: the last result of each health check that the server knows.

use super::{Context, machine};
use crate::args::{AppArgs, Json};
use crate::failure::Outcome;
use crate::render;
use clap::Subcommand;
use jiff::Timestamp;
use perch_api::wire::{CheckStatus, Machine};
use std::collections::BTreeMap;

const HEADERS: [&str; 5] = ["Name", "Status", "Machine", "Last Updated", "Output"];

#[derive(Debug, Subcommand)]
pub(crate) enum Checks {
    /// List health checks
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppArgs,
        /// Only checks of this name
        #[arg(long)]
        check_name: Option<String>,
        #[command(flatten)]
        json: Json,
    },
}

pub(super) async fn run(context: &Context<'_>, command: Checks) -> Outcome {
    let Checks::List { app, check_name, json } = command;
    let app = context.app_name(&app)?;
    let mut machines = machine::list_active(context, &app).await?;
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    if context.wants_json(&json) {
        let all: BTreeMap<_, _> = machines.iter().map(|it| (&it.id, &it.checks)).collect();
        return Ok(render::json(context.console, &all)?);
    }
    let wanted = |check: &&CheckStatus| check_name.as_ref().is_none_or(|name| *name == check.name);
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for machine in &mut machines {
        machine.checks.sort_by(|a, b| a.name.cmp(&b.name));
        rows.extend(machine.checks.iter().filter(wanted).map(|check| row(machine, check, now)));
    }
    context.console.line(format!("Health Checks for {app}"));
    context.console.line(render::simple_table(&HEADERS, &rows));
    Ok(())
}

/// One that sleeps is shown as it was.
pub(super) fn status(check: &CheckStatus) -> String {
    match check.asleep {
        true => format!("{} (asleep)", check.status),
        false => check.status.clone(),
    }
}

fn row(machine: &Machine, check: &CheckStatus, now: Timestamp) -> Vec<String> {
    vec![
        check.name.clone(),
        status(check),
        machine.id.clone(),
        render::relative_time(&check.updated_at, now),
        check.output.clone(),
    ]
}
