//! `ssh console`: a shell or another program in a started Machine, at the caller's own terminal.
//!
//! There is no SSH in it: the server starts the program in the Machine and carries its terminal over the API. The
//! caller's terminal is in raw mode meanwhile; its settings come back however the command ends, except by SIGKILL.

mod console;

use super::{Context, machine};
use crate::args::{AppArgs, Org};
use crate::failure::{Failure, Outcome};
use crate::{env, prompt};
use perch_api::wire::{CheckStatus, Machine, MachineState};

/// Programs for which flyctl makes a terminal though one was not asked for.
const SHELLS: [&str; 4] = ["sh", "/bin/sh", "bash", "/bin/bash"];

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Ssh {
    /// Run a shell or another program in a started Machine
    Console(SshConsole),
}

#[derive(Debug, clap::Args)]
pub(crate) struct SshConsole {
    /// Address of the Machine, instead of its ID
    host: Option<String>,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    org: Org,
    /// Program and arguments in one word, instead of a shell
    #[arg(short = 'C', long)]
    command: Option<String>,
    /// ID of the Machine
    #[arg(long)]
    machine: Option<String>,
    /// Choose the Machine from a list
    #[arg(short, long)]
    select: bool,
    /// Only this region
    #[arg(short, long)]
    region: Option<String>,
    /// Print nothing but what the program does
    #[arg(short, long)]
    quiet: bool,
    /// Address of the Machine, instead of its ID
    #[arg(short = 'A', long)]
    address: Option<String>,
    /// Make a terminal; there always is one for a shell
    #[arg(long)]
    pty: bool,
    /// User that the program runs as
    #[arg(short, long, default_value = "root")]
    user: String,
    /// Only this process group
    #[arg(short = 'g', long, visible_alias = "group")]
    process_group: Option<String>,
}

pub(crate) async fn run(context: &Context<'_>, command: Ssh) -> Outcome {
    let Ssh::Console(args) = command;
    let app = context.app_name(&args.app)?;
    let machine = chosen(context, &app, &args).await?;
    let cmd = args.command.clone().unwrap_or_default();
    let is_shell = SHELLS.contains(&cmd.as_str());
    if is_shell && !args.pty {
        context
            .console
            .note("Warning: a terminal is made because the command is a shell; say so with --pty");
    }
    let wanted = console::Wanted {
        app,
        machine: machine.id,
        cmd,
        user: args.user,
        terminal: args.command.is_none() || args.pty || is_shell,
        // flyctl says it on stderr, whether it is a terminal or not.
        greeting: (!args.quiet).then(|| format!("Connecting to {}...", machine.private_ip)),
    };
    console::run(context, wanted).await
}

/// The Machine that is meant: one of those that are started.
async fn chosen(context: &Context<'_>, app: &str, args: &SshConsole) -> Outcome<Machine> {
    if args.select && args.machine.is_some() {
        return Err(Failure::new("--machine can't be used with -s/--select"));
    }
    let mut machines = started(context, app, args).await?;
    if let Some(id) = &args.machine {
        let found = machines.into_iter().find(|machine| machine.id == *id);
        return found.ok_or_else(|| {
            Failure::new(format!("--machine={id:?} not found/started"))
                .hint(format!("Start it with `fly machine start {id}`"))
        });
    }
    if let Some(address) = args.address.as_ref().or(args.host.as_ref()) {
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        let is_it = |machine: &Machine| {
            let name = format!("{}.vm.{app}.internal", machine.id);
            bare.parse() == Ok(machine.private_ip) || bare == name || bare == machine.id
        };
        let found = machines.into_iter().find(is_it);
        return found.ok_or_else(|| {
            Failure::new(format!(
                "host unavailable at {address}: no started Machine of app {app} has it"
            ))
            .hint(format!("See them with `fly machine list -a {app}`"))
        });
    }
    let at = match (args.select, machines.len()) {
        (true, 2..) => {
            let options: Vec<_> = machines.iter().map(|it| option(it, &machines)).collect();
            prompt::select(context.console, "Select VM:", 0, &options)
                .map_err(|failure| failure.context("selecting VM"))?
        }
        _ => 0,
    };
    let count = machines.len();
    let machine = machines.swap_remove(at);
    let (id, region) = (&machine.id, &machine.region);
    // Not to stdout, where flyctl says it: that is the program's.
    match (args.select, count) {
        (true, 1) => context
            .console
            .note(format!("Only one machine available, selecting {id} in region {region}")),
        (false, 2..) => {
            context.console.note(format!("No machine specified, using {id} in region {region}"));
        }
        _ => {}
    }
    Ok(machine)
}

/// The app's started Machines, of one region and group if they are named.
async fn started(context: &Context<'_>, app: &str, args: &SshConsole) -> Outcome<Vec<Machine>> {
    let mut machines = machine::list_active(context, app).await?;
    machines.retain(|machine| machine.state == MachineState::Started);
    if machines.is_empty() {
        return Err(Failure::new(format!(
            "app {app} has no started VMs.\nIt may be unhealthy or not have been deployed yet.\nTry the following \
             command to verify:\n\nfly status"
        ))
        .hint("One that sleeps is started with `fly machine start ID`; a console wakes nothing"));
    }
    let region = args.region.as_deref().or_else(|| context.env.get(env::REGION));
    if let Some(region) = region {
        machines.retain(|machine| machine.region == region);
        if machines.is_empty() {
            return Err(Failure::new(format!("app {app} has no VMs in region {region}")));
        }
    }
    if let Some(group) = &args.process_group {
        machines.retain(|it| machine::process_group(it) == *group);
        if machines.is_empty() {
            return Err(Failure::new(format!("app {app} has no VMs in process group {group}")));
        }
    }
    Ok(machines)
}

/// A Machine in the list to choose from, as flyctl has it.
fn option(machine: &Machine, all: &[Machine]) -> String {
    let Machine { id, name, region, private_ip, .. } = machine;
    let role = |check: &CheckStatus| match check.status.as_str() {
        "passing" => format!(" ({})", check.output),
        _ => " (error)".to_owned(),
    };
    let role = machine.checks.iter().find(|check| check.name == "role").map(role);
    let group = machine::process_group(machine);
    let several = all.iter().any(|it| machine::process_group(it) != group);
    let group = if several { format!(" ({group})") } else { String::new() };
    format!("{region}: {id} {private_ip} {name}{}{group}", role.unwrap_or_default())
}
