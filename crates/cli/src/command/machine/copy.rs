//! `machine clone`: a new Machine with the config of another one.

use super::super::{Context, guest};
use super::wanted::{self, object};
use super::{checks, choose, is_reachable, started};
use crate::args::{AppArgs, Select, Vm};
use crate::console::Style;
use crate::env;
use crate::failure::{Failure, Outcome};
use clap::Args;
use perch_api::wire::{LaunchInput, Machine, MachineConfig};
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(crate) struct Clone {
    /// ID of the Machine to clone
    id: Option<String>,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    select: Select,
    /// Region for the new Machine; default is that of the old one
    #[arg(short, long)]
    region: Option<String>,
    /// Name of the new Machine; generated if there is none
    #[arg(long)]
    name: Option<String>,
    /// Command of the new Machine
    #[arg(long)]
    override_cmd: Option<String>,
    /// The image's own command for the new Machine
    #[arg(long)]
    clear_cmd: bool,
    /// Keep the new Machine when its program ends
    #[arg(long)]
    clear_auto_destroy: bool,
    /// Do not wait until the new Machine is started
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    vm: Vm,
}

pub(super) async fn run(context: &Context<'_>, args: Clone) -> Outcome {
    context.app_name(&args.app)?;
    let (app, source) =
        choose::one(context, &args.app, args.id.as_deref(), args.select.select).await?;
    if !is_reachable(&source) {
        return Err(Failure::new("the machine is on an unreachable host, try again later"));
    }
    let console = context.console;
    let asked = args.region.clone().or_else(|| context.env.get(env::REGION).map(str::to_owned));
    let region = asked.filter(|it| !it.is_empty()).unwrap_or_else(|| source.region.clone());
    let bold = |text: &str| console.paint(Style::Bold, text);
    console.line(format!("Cloning Machine {} into region {}", bold(&source.id), bold(&region)));
    let input = LaunchInput {
        name: args.name.clone().unwrap_or_default(),
        region,
        ..LaunchInput::new(config(context, &source, &args)?)
    };
    let image = &source.config.view().image;
    console.line(format!("Provisioning a new Machine with image {image}..."));
    let made = context.client.create_machine(&app, &input).await?;
    console.line(format!("  Machine {} has been created...", bold(&made.id)));
    if args.detach {
        return Ok(());
    }
    console.line(format!("  Waiting for Machine {} to start...", bold(&made.id)));
    context.interrupt.cut(started::wait(context, &app, &made)).await?;
    let passed = context.interrupt.cut(checks::watch(context, &app, &made)).await;
    passed.map_err(|failure| match failure.is_interrupted() {
        true => failure,
        false => failure.context("error while watching health checks"),
    })?;
    console.line("Machine has been successfully cloned!");
    Ok(())
}

fn config(context: &Context<'_>, source: &Machine, args: &Clone) -> Outcome<MachineConfig> {
    let Value::Object(mut config) = serde_json::to_value(&source.config)? else {
        return Err(Failure::new(format!("the config of machine {} is no object", source.id)));
    };
    if !source.config.view().mounts.is_empty() {
        let id = &source.id;
        return Err(Failure::new(format!(
            "machine {id} has a volume, which only one Machine can have"
        ))
        .hint("Make one without volumes with `fly machine run`"));
    }
    let size = guest::with_flags(config.get("guest"), &args.vm)?;
    config.insert("guest".to_owned(), size);
    let command = args.override_cmd.as_deref().filter(|text| !text.is_empty());
    match (args.clear_cmd, command) {
        (true, _) => drop(object(&mut config, "init").shift_remove("cmd")),
        (false, Some(text)) => {
            let words = wanted::command_words(text)?;
            object(&mut config, "init").insert("cmd".to_owned(), json!(words));
        }
        (false, None) => {}
    }
    if args.clear_auto_destroy {
        config.shift_remove("auto_destroy");
    }
    if config.get("auto_destroy") == Some(&Value::Bool(true)) {
        context.console.line(
            "Auto destroy enabled and will destroy Machine on exit. Use --clear-auto-destroy to remove this setting.",
        );
    }
    wanted::of_map(config, Some(&source.config))
}
