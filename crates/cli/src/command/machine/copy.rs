//! `machine clone`: a new Machine with the config of another one.

use super::super::{Context, guest};
use super::wanted::{self, object};
use super::{checks, choose, is_reachable, mounts, started};
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
    /// Volume VOLUME[:/path] for the new Machine, which no other one has
    #[arg(long)]
    attach_volume: Option<String>,
    /// Snapshot that the new Machine's volume begins with: its ID, or `last` for the newest of the old one's
    #[arg(long)]
    from_snapshot: Option<String>,
    /// IDs of Machines, or `source`: the new one is not started until one of them has failed for good
    #[arg(long, value_delimiter = ',')]
    standby_for: Option<Vec<String>>,
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
    let region = region(context, &app, &source, &args, asked).await?;
    let bold = |text: &str| console.paint(Style::Bold, text);
    console.line(format!("Cloning Machine {} into region {}", bold(&source.id), bold(&region)));
    let mut config = config(context, &source, &args)?;
    let given = |text: &'_ Option<String>| text.clone().filter(|text| !text.is_empty());
    let (attach, snapshot) = (given(&args.attach_volume), given(&args.from_snapshot));
    let wanted = mounts::Wanted {
        attach: attach.as_deref(),
        snapshot: snapshot.as_deref(),
        region: &region,
    };
    if let Some(mounts) = mounts::of_clone(context, &app, &source, wanted).await? {
        config = config.with("mounts", &mounts)?;
    }
    let input = LaunchInput {
        name: args.name.clone().unwrap_or_default(),
        region,
        skip_launch: !config.view().standbys.is_empty(),
        ..LaunchInput::new(config)
    };
    let image = &source.config.view().image;
    console.line(format!("Provisioning a new Machine with image {image}..."));
    let made = context.client.create_machine(&app, &input).await?;
    console.line(format!("  Machine {} has been created...", bold(&made.id)));
    if args.detach {
        return Ok(());
    }
    if !input.skip_launch {
        console.line(format!("  Waiting for Machine {} to start...", bold(&made.id)));
        context.interrupt.cut(started::wait(context, &app, &made)).await?;
        let passed = context.interrupt.cut(checks::watch(context, &app, &made)).await;
        passed.map_err(|failure| match failure.is_interrupted() {
            true => failure,
            false => failure.context("error while watching health checks"),
        })?;
    }
    console.line("Machine has been successfully cloned!");
    Ok(())
}

/// That of the volume, of the flag, or of the source.
async fn region(
    context: &Context<'_>,
    app: &str,
    source: &Machine,
    args: &Clone,
    asked: Option<String>,
) -> Outcome<String> {
    let asked = asked.filter(|it| !it.is_empty());
    let Some(text) = args.attach_volume.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(asked.unwrap_or_else(|| source.region.clone()));
    };
    let volume = mounts::named(context, app, text).await?;
    match asked {
        Some(region) if region != volume.region => Err(Failure::new(format!(
            "specified region {region} but volume is in region {}, use the same region as the volume",
            volume.region
        ))),
        _ => Ok(volume.region),
    }
}

fn config(context: &Context<'_>, source: &Machine, args: &Clone) -> Outcome<MachineConfig> {
    let Value::Object(mut config) = serde_json::to_value(&source.config)? else {
        return Err(Failure::new(format!("the config of machine {} is no object", source.id)));
    };
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
    if let Some(ids) = &args.standby_for {
        let id = |id: &String| if id == "source" { source.id.clone() } else { id.clone() };
        wanted::put_standbys(&mut config, &ids.iter().map(id).collect::<Vec<_>>());
    }
    wanted::of_map(config, Some(&source.config))
}
