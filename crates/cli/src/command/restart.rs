//! `apps restart`: the running Machines, one after the other, so that the others answer meanwhile.

use super::{Context, machine};
use crate::args::AppArgs;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use clap::Args;
use perch_api::wire::{Machine, MachineState, RestartQuery, WaitQuery, WaitState};
use std::time::{Duration, Instant};

/// flyctl waits as long for a Machine to be up again.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// The server waits at most so long for one call.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// Name of the app
    name: Option<String>,
    /// Kill the Machines instead of asking them to end
    #[arg(long)]
    force_stop: bool,
    /// Do not wait until health checks pass
    #[arg(long)]
    skip_health_checks: bool,
}

pub(super) async fn run(context: &Context<'_>, args: Restart) -> Outcome {
    let app = match args.name {
        Some(name) => name,
        None => context.app_name(&AppArgs::default()).map_err(|_| no_app())?,
    };
    context.client.get_app(&app).await?;
    let machines = machine::list_managed(context, &app).await?;
    // What is asleep stays asleep: it has nothing to begin anew.
    let is_started =
        |id: &str| machines.iter().any(|it| it.id == id && it.state == MachineState::Started);
    let query = RestartQuery { force_stop: args.force_stop, ..RestartQuery::default() };
    let checked =
        |id: &str| machines.iter().find(|it| it.id == id).filter(|_| !args.skip_health_checks);
    machine::leased(context, &app, &machines, "apps restart", async |id, nonce| {
        match is_started(id) {
            true => restart(context, &app, id, &query, checked(id), nonce).await,
            false => Ok(()),
        }
    })
    .await
}

fn no_app() -> Failure {
    Failure::new("no app name was provided, and none is available from the environment or fly.toml")
}

/// Restarts a Machine and waits until it is up, and until the checks pass of the one that is `checked`.
pub(super) async fn restart(
    context: &Context<'_>,
    app: &str,
    id: &str,
    query: &RestartQuery,
    checked: Option<&Machine>,
    nonce: Option<&str>,
) -> Outcome {
    let name = context.console.paint(Style::Bold, id);
    context.console.line(format!("Restarting machine {name}"));
    let restarted = context.client.restart_machine(app, id, query, nonce).await;
    restarted
        .map_err(|error| Failure::from(error).context(format!("could not restart machine {id}")))?;
    context.interrupt.cut(wait_started(context, app, id)).await?;
    if let Some(machine) = checked {
        let passed = context.interrupt.cut(machine::watch_checks(context, app, machine)).await;
        passed.map_err(|failure| failure.context("failed to wait for health checks to pass"))?;
    }
    context.console.line(format!("Machine {name} restarted successfully!"));
    Ok(())
}

async fn wait_started(context: &Context<'_>, app: &str, id: &str) -> Outcome {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        let query = WaitQuery::for_state(WaitState::Started, WAIT_MAX);
        match context.client.wait_machine(app, id, &query).await {
            Err(error) if error.status() == Some(408) => {}
            other => return Ok(other?),
        }
    }
    Err(Failure::new(format!("machine {id} did not start in time"))
        .hint(format!("Look at what it says with `fly logs -a {app}`")))
}
