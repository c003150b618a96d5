//! `machine cordon` and `uncordon`: whether the proxy gives a Machine anything new (PX-67).

use super::super::Context;
use super::{choose, leased};
use crate::args::ManyMachines;
use crate::failure::Outcome;

/// What is done to the Machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cordon {
    On,
    Off,
}

pub(super) async fn run(context: &Context<'_>, args: ManyMachines, cordon: Cordon) -> Outcome {
    let (app, machines) = choose::many(context, &args.app, &args.ids, args.select.select).await?;
    let (verb, what) = match cordon {
        Cordon::On => ("Activating", "machine cordon"),
        Cordon::Off => ("Deactivating", "machine uncordon"),
    };
    leased(context, &app, &machines, what, async |id: &str, nonce: Option<&str>| {
        context.console.line(format!("{verb} cordon on machine {id}..."));
        match cordon {
            Cordon::On => context.client.cordon_machine(&app, id, nonce).await?,
            Cordon::Off => context.client.uncordon_machine(&app, id, nonce).await?,
        }
        context.console.line("done!");
        Ok(())
    })
    .await
}
