//! `machine destroy`: for ever, and of a running one only by force.

use super::super::Context;
use super::{choose, failed, image_text, leased, list_active};
use crate::args::{AppArgs, Select};
use crate::failure::{Failure, Outcome};
use crate::prompt;
use clap::Args;
use perch_api::wire::{Machine, MachineState};

#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// IDs of the Machines
    ids: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    select: Select,
    /// Kill what runs
    #[arg(short, long)]
    force: bool,
    /// Destroy all Machines of the app that have this image
    #[arg(short, long)]
    image: Option<String>,
}

pub(super) async fn run(context: &Context<'_>, args: Destroy) -> Outcome {
    let image = args.image.as_deref().map(str::trim).filter(|image| !image.is_empty());
    let (app, machines) = match image {
        Some(image) => with_image(context, &args.app, image).await?,
        None if args.ids.is_empty() => {
            let (app, machine) = choose::one(context, &args.app, None, args.select.select).await?;
            (app, vec![machine])
        }
        None => choose::many(context, &args.app, &args.ids, args.select.select).await?,
    };
    if machines.is_empty() {
        context.console.line("No machine to destroy, exiting");
        return Ok(());
    }
    // There is no lease on what is gone.
    machines.iter().try_for_each(|machine| check(machine, true))?;
    let of = |id: &str| machines.iter().find(|machine| machine.id == id);
    leased(context, &app, &machines, "machine destroy", async |id: &str, nonce: Option<&str>| {
        match of(id) {
            Some(machine) => destroy(context, &app, machine, args.force, nonce).await,
            None => Ok(()),
        }
    })
    .await
}

/// Those of the app that have the image, once the user has agreed.
async fn with_image(
    context: &Context<'_>,
    args: &AppArgs,
    image: &str,
) -> Outcome<(String, Vec<Machine>)> {
    let app = context.app_if_named(args)?.ok_or_else(|| {
        Failure::new("--image requires --app flag or must be run from app directory")
    })?;
    let mut machines = list_active(context, &app).await?;
    machines.retain(|machine| image_text(machine) == image);
    let ids: Vec<_> = machines.iter().map(|machine| machine.id.as_str()).collect();
    let question =
        format!("{} Machines ({}) will be destroyed, continue?", ids.len(), ids.join(","));
    if !ids.is_empty() && !prompt::confirm(context.console, &question)? {
        return Ok((app, Vec::new()));
    }
    Ok((app, machines))
}

async fn destroy(
    context: &Context<'_>,
    app: &str,
    machine: &Machine,
    force: bool,
    nonce: Option<&str>,
) -> Outcome {
    check(machine, force)?;
    let (id, state) = (&machine.id, machine.state);
    context.console.line(format!(
        "machine {id} was found and is currently in {state} state, attempting to destroy..."
    ));
    let destroyed = match force {
        true => context.client.kill_and_delete_machine(app, id, nonce).await,
        false => context.client.delete_machine(app, id, nonce).await,
    };
    destroyed.map_err(|error| failed(error, app, id, "destroy"))?;
    context.console.line(format!("{id} has been destroyed"));
    Ok(())
}

/// Whether the Machine may go in its state.
fn check(machine: &Machine, force: bool) -> Outcome {
    let (id, state) = (&machine.id, machine.state);
    let remedy = "either stop first or use --force flag";
    match state {
        MachineState::Destroyed => {
            Err(Failure::new(format!("machine {id} has already been destroyed")))
        }
        MachineState::Stopped | MachineState::Suspended => Ok(()),
        _ if force => Ok(()),
        MachineState::Started => {
            Err(Failure::new(format!("machine {id} currently started, {remedy}")))
        }
        _ => Err(Failure::new(format!(
            "machine {id} is in a {state} state and cannot be destroyed since it is not stopped or \
             suspended, {remedy}"
        ))),
    }
}
