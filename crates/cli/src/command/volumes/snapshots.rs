//! `volumes snapshots`.

use super::app_or_id;
use crate::args::{AppArgs, Json};
use crate::command::Context;
use crate::failure::{Failure, Outcome};
use crate::render;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use perch_api::wire::Snapshot;

/// Manage volume snapshots: copies of a volume as of one moment
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshots {
    /// List snapshots
    #[command(visible_alias = "ls")]
    List(Which),
    /// Create a volume snapshot
    Create(Which),
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The volume
    #[arg(value_name = "VOLUME ID")]
    id: String,
    /// Application name
    #[arg(short, long)]
    app: Option<String>,
    #[command(flatten)]
    json: Json,
}

impl Which {
    fn app(&self, context: &Context<'_>) -> Outcome<String> {
        let args = AppArgs { app: self.app.clone(), config: None };
        app_or_id(context, &args, true)
    }
}

pub(super) async fn run(context: &Context<'_>, command: Snapshots) -> Outcome {
    match command {
        Snapshots::List(which) => list(context, which).await,
        Snapshots::Create(which) => {
            let app = which.app(context)?;
            context.client.create_snapshot(&app, &which.id).await?;
            context.console.line(format!("Scheduled to snapshot volume {}", which.id));
            Ok(())
        }
    }
}

async fn list(context: &Context<'_>, which: Which) -> Outcome {
    let app = which.app(context)?;
    let snapshots = context.client.list_snapshots(&app, &which.id).await;
    let mut snapshots =
        snapshots.map_err(|error| Failure::from(error).context("failed retrieving snapshots"))?;
    snapshots.sort_by(|a, b| a.created_at.cmp(&b.created_at));
    if context.wants_json(&which.json) {
        return Ok(render::json(context.console, &snapshots)?);
    }
    if snapshots.is_empty() {
        context.console.note(format!("No snapshots available for volume {}", which.id));
        return Ok(());
    }
    let headers = ["ID", "Status", "Stored Size", "Vol Size", "Created At", "Retention Days"];
    render::table_with_numbers(
        context.console,
        "Snapshots",
        &headers,
        &rows(&snapshots),
        &[2, 3, 5],
    );
    let total = snapshots.iter().map(|it| it.size).sum();
    context.console.line(format!("Total stored size: {}", render::binary_size(total)));
    Ok(())
}

fn rows(snapshots: &[Snapshot]) -> Vec<Vec<String>> {
    let now = Timestamp::now();
    let row = |it: &Snapshot| {
        vec![
            it.id.clone(),
            it.status.clone(),
            render::binary_size(it.size),
            render::binary_size(it.volume_size),
            render::humanized_time(&it.created_at, now),
            it.retention_days.map(|days| days.to_string()).unwrap_or_default(),
        ]
    };
    snapshots.iter().map(row).collect()
}
