//! `machine restart`: down and up again; what sleeps is started.

use super::super::{Context, restart};
use super::{choose, is_reachable, leased, stop_input};
use crate::args::AppArgs;
use crate::failure::{Failure, Outcome};
use clap::Args;
use perch_api::wire::RestartQuery;

#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// IDs of the Machines
    ids: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    /// Choose the Machines from a list
    #[arg(long, hide = true)]
    select: bool,
    /// Signal to send instead of the configured one
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds until the Machine is killed
    #[arg(long)]
    time: Option<i64>,
    /// Kill the Machines instead of asking them to end
    #[arg(long)]
    force: bool,
    /// Do not wait for health checks
    #[arg(long)]
    skip_health_checks: bool,
}

pub(super) async fn run(context: &Context<'_>, args: Restart) -> Outcome {
    let stop = stop_input(args.signal, args.time)?;
    let query = RestartQuery { force_stop: args.force, signal: stop.signal, timeout: stop.timeout };
    let (app, machines) = choose::many(context, &args.app, &args.ids, args.select).await?;
    let with_checks = |id: &str| {
        let machine = machines.iter().find(|machine| machine.id == id);
        machine.filter(|machine| !args.skip_health_checks && is_reachable(machine))
    };
    leased(context, &app, &machines, "machine restart", async |id: &str, nonce: Option<&str>| {
        let restarted = restart::restart(context, &app, id, &query, with_checks(id), nonce).await;
        restarted.map_err(|failure| within(failure, id))
    })
    .await
}

/// Ctrl-C is no failure of the restart.
fn within(failure: Failure, id: &str) -> Failure {
    match failure.is_interrupted() {
        true => failure,
        false => failure.context(format!("failed to restart machine {id}")),
    }
}
