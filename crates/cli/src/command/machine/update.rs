//! `machine update`: another config for the same Machine, shown as a difference and applied once it is agreed to.

use super::super::{Context, guest};
use super::flags::Shared;
use super::wanted::{self, Program};
use super::{changes, checks, choose, image, is_reachable, leased, started};
use crate::args::{Select, Yes};
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use clap::Args;
use perch_api::wire::{LaunchInput, Machine, MachineConfig, MachineState};
use serde_json::Value;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// ID of the Machine
    id: Option<String>,
    #[command(flatten)]
    shared: Shared,
    /// Another image, as of `fly deploy --image`, or a directory to build in
    #[arg(short, long)]
    image: Option<String>,
    #[command(flatten)]
    yes: Yes,
    #[command(flatten)]
    select: Select,
    /// Do not start the Machine if it sleeps
    #[arg(long)]
    skip_start: bool,
    /// Do not wait for health checks
    #[arg(long)]
    skip_health_checks: bool,
    /// Command to run instead of the image's; empty takes it away
    #[arg(short = 'C', long)]
    command: Option<String>,
    /// Seconds to wait for the Machine
    #[arg(long, default_value_t = 300)]
    wait_timeout: u64,
    /// Only build the image
    #[arg(long, hide = true)]
    build_only: bool,
}

pub(super) async fn run(context: &Context<'_>, args: Update) -> Outcome {
    let (app, machine) =
        choose::one(context, &args.shared.app, args.id.as_deref(), args.select.select).await?;
    if !is_reachable(&machine) {
        return Err(Failure::new("the machine is on an unreachable host, try again later"));
    }
    let machines = [machine];
    leased(context, &app, &machines, "machine update", async |id: &str, nonce: Option<&str>| {
        // Somebody may have changed it before the lease.
        let machine = context.client.get_machine(&app, id).await?;
        let Some(config) = new_config(context, &app, &machine, &args).await? else {
            return Ok(());
        };
        apply(context, &app, &machine, config, nonce, &args).await
    })
    .await
}

/// The config that the Machine is to have; none when the user does not agree, or only wanted an image.
async fn new_config(
    context: &Context<'_>,
    app: &str,
    machine: &Machine,
    args: &Update,
) -> Outcome<Option<MachineConfig>> {
    let Value::Object(mut config) = serde_json::to_value(&machine.config)? else {
        return Err(Failure::new(format!("the config of machine {} is no object", machine.id)));
    };
    let words;
    let program = match args.command.as_deref().map(str::trim) {
        None => Program::Stays,
        Some("") => Program::Cleared,
        Some(text) => {
            words = wanted::command_words(text)?;
            Program::Words(&words)
        }
    };
    wanted::apply(context, &mut config, &args.shared, program)?;
    let named = args.image.as_deref().filter(|image| !image.is_empty());
    let named = named.or(args.shared.dockerfile.as_ref().map(|_| "."));
    if let Some(reference) = named {
        let image = image::find(context, app, reference, &args.shared).await?;
        config.insert("image".to_owned(), image.into());
    }
    if args.build_only {
        return Ok(None);
    }
    let config = wanted::of_map(config, Some(&machine.config))?;
    if !args.yes.yes && !changes::confirm(context, machine, &config)? {
        context.console.line("No changes to apply");
        return Ok(None);
    }
    Ok(Some(config))
}

async fn apply(
    context: &Context<'_>,
    app: &str,
    machine: &Machine,
    config: MachineConfig,
    nonce: Option<&str>,
    args: &Update,
) -> Outcome {
    let id = &machine.id;
    if let Some(size) = &config.view().guest {
        guest::check(size)?;
    }
    let name = context.console.paint(Style::Bold, id);
    context.console.line(format!("Updating machine {name}"));
    // A standby is started when the other one fails.
    let skip_launch = args.skip_start || !config.view().standbys.is_empty();
    let input = LaunchInput { skip_launch, ..LaunchInput::new(config) };
    let updated = context.client.update_machine(app, id, &input, nonce).await;
    updated
        .map_err(|error| Failure::from(error).context(format!("could not update machine {id}")))?;
    let limit = match args.wait_timeout {
        0 => started::START_MAX,
        seconds => Duration::from_secs(seconds),
    };
    let settled = started::settled(context, app, id, "settled", limit);
    let settled = context.interrupt.cut(settled).await;
    let now =
        settled.map_err(|failure| within(failure, "error while waiting for machine to update"))?;
    let Some(now) = now else { return Err(Failure::new(format!("machine {id} is gone"))) };
    if now.state == MachineState::Failed {
        return Err(Failure::new(format!(
            "machine {id} update failed: machine entered \"failed\" state"
        )));
    }
    if now.state == MachineState::Started && !args.skip_health_checks && !args.shared.detach {
        let passed = context.interrupt.cut(checks::watch(context, app, &now)).await;
        passed.map_err(|failure| within(failure, "failed to wait for health checks to pass"))?;
    }
    context.console.line(format!("Machine {name} updated successfully!"));
    context.console.line("\nMonitor machine status here:");
    context.console.line(format!("fly machine status {id} -a {app}"));
    Ok(())
}

/// Ctrl-C is no failure of the wait.
fn within(failure: Failure, doing: &'static str) -> Failure {
    if failure.is_interrupted() { failure } else { failure.context(doing) }
}
