//! `scale`: how many Machines an app has in each group and region, and of what size they are.
//!
//! `count` makes and destroys Machines by a plan that is shown first ([`plan`]); it changes no configuration. A new
//! Machine is like the first of its group. `vm` and `memory` change the sizes that the Machines keep.

mod count;
mod plan;
mod show;
mod size;

use super::Context;
use crate::args::{AppArgs, Json, Vm, Yes};
use crate::failure::{Failure, Outcome};
use clap::{Args, Subcommand};
use perch_api::wire::{Guest, Machine, MachineFilter};
use std::time::Duration;

/// As flyctl's for single Machines; refreshed as long as the command works.
const LEASE: Duration = Duration::from_secs(30);

/// Scale application resources
#[derive(Debug, Subcommand)]
pub(crate) enum Scale {
    /// Change an app's VM count to the given value
    Count(Count),
    /// Show current resources
    Show {
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        json: Json,
    },
    /// Change an app's VM to a named size (eg. shared-cpu-1x, performance-1x, performance-2x...)
    Vm {
        /// The size
        size: String,
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        group: Group,
        /// Memory in MB for the VM
        #[arg(long, alias = "memory", default_value_t = 0)]
        vm_memory: u32,
    },
    /// Set VM memory
    Memory {
        /// A number of MB, or with a unit (1gb)
        memory: String,
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        group: Group,
    },
}

/// Which Machines.
#[derive(Debug, Args)]
pub(crate) struct Group {
    /// The process group
    #[arg(short = 'g', long, alias = "group", default_value = "", hide_default_value = true)]
    process_group: String,
}

/// `scale count`.
#[derive(Debug, Args)]
pub(crate) struct Count {
    /// N, +N or -N of one group, or GROUP=N of several
    #[arg(required = true, allow_negative_numbers = true)]
    counts: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    group: Group,
    #[command(flatten)]
    yes: Yes,
    /// Max number of VMs per region
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    max_per_region: i64,
    /// Comma separated list of regions to act on
    #[arg(short, long)]
    region: Option<String>,
    /// Environment variable NAME=VALUE of new Machines
    #[arg(short, long)]
    env: Vec<String>,
    #[command(flatten)]
    vm: Vm,
}

/// Runs the command.
pub(super) async fn run(context: &Context<'_>, command: Scale) -> Outcome {
    match command {
        Scale::Count(args) => count::run(context, args).await,
        Scale::Show { app, json } => show::run(context, &app, json.json).await,
        Scale::Vm { size, app, group, vm_memory } => {
            let wanted = size::Wanted { size: Some(size), memory_mb: vm_memory };
            size::run(context, &app, group.process_group, wanted).await
        }
        Scale::Memory { memory, app, group } => {
            let memory_mb = size::parse_memory(&memory)?;
            let wanted = size::Wanted { size: None, memory_mb };
            size::run(context, &app, group.process_group, wanted).await
        }
    }
}

/// The Machines that deploys treat as theirs, by id.
async fn managed(context: &Context<'_>, app: &str) -> Outcome<Vec<Machine>> {
    let all = context.client.list_machines(app, &MachineFilter::default()).await?;
    Ok(all.into_iter().filter(super::machine::is_managed).collect())
}

fn guest(machine: &Machine) -> Guest {
    machine.config.view().guest.clone().unwrap_or_default()
}

/// `shared-cpu-1x`.
fn size_name(guest: &Guest) -> String {
    let kind = if guest.cpu_kind == "shared" { "shared-cpu" } else { guest.cpu_kind.as_str() };
    format!("{kind}-{}x", guest.cpus)
}

/// Leases all, does something with them, and gives them back whatever happened.
async fn leased<T>(
    context: &Context<'_>,
    app: &str,
    ids: &[&str],
    what: &str,
    work: impl AsyncFnOnce(&super::deploy::Leases) -> Outcome<T>,
) -> Outcome<T> {
    let _until_given_back = context.interrupt.hold();
    let leases = super::deploy::Leases::new(LEASE, format!("fly {what}"));
    leases.acquire(context, app, ids).await?;
    let result = tokio::select! {
        result = work(&leases) => result,
        never = leases.keep_alive(context, app) => match never {},
    };
    leases.release_all(context, app).await;
    result
}

/// A deploy makes Machines that nobody leases yet: while one is at work, nothing is scaled.
async fn refuse_while_deployed(context: &Context<'_>, app: &str) -> Outcome {
    let newest = context.client.list_releases(app, 1).await?;
    match newest.first().filter(|release| release.in_progress) {
        Some(release) => Err(Failure::new(format!(
            "{} is deploying {app} (release {})",
            release.user, release.version
        ))
        .hint("Nothing was changed beyond what is said above. Try again when it is done")),
        None => Ok(()),
    }
}
