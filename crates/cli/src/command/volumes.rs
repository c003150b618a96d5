//! `volumes`: what Machines keep, in flyctl's words.

mod snapshots;

use super::Context;
use crate::args::{AppArgs, Json, Vm, Yes};
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::flytoml::volume_gb;
use crate::{prompt, render};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use perch_api::wire::{CreateVolume, ExtendVolume, UpdateVolume, Volume};

/// States that `list` shows only with `--all`.
const HIDDEN: [&str; 5] =
    ["scheduling_destroy", "fork_cleanup", "waiting_for_detach", "pending_destroy", "destroying"];

/// Manage Fly Volumes. Volumes are persistent storage for Fly Machines
#[derive(Debug, Subcommand)]
pub(crate) enum Volumes {
    /// Create a new volume for an app
    Create(Create),
    /// Update a volume for an app
    Update {
        /// The volume
        #[arg(value_name = "VOLUME ID")]
        id: String,
        #[command(flatten)]
        app: AppArgs,
        /// Snapshot retention in days
        #[arg(long, default_value_t = 0)]
        snapshot_retention: u64,
        /// Activate/deactivate scheduled automatic snapshots
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        scheduled_snapshots: Option<bool>,
        #[command(flatten)]
        json: Json,
    },
    /// List the volumes associated with an app
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppArgs,
        /// Show all volumes including those in destroyed states
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Destroy one or more volumes
    #[command(visible_aliases = ["delete", "rm"])]
    Destroy {
        /// The volumes
        #[arg(value_name = "VOLUME ID")]
        ids: Vec<String>,
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        yes: Yes,
    },
    /// Extend a volume to the specified size
    Extend {
        /// The volume
        #[arg(value_name = "VOLUME ID")]
        id: Option<String>,
        #[command(flatten)]
        app: AppArgs,
        /// Target volume size in gigabytes; `+2` adds two
        #[arg(short, long, default_value = "")]
        size: String,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        json: Json,
    },
    /// Show the details of the specified volume
    Show {
        /// The volume
        #[arg(value_name = "VOLUME ID")]
        id: Option<String>,
        #[command(flatten)]
        app: AppArgs,
        #[command(flatten)]
        json: Json,
    },
    /// Fork the specified volume: make an independent copy of it
    Fork(Fork),
    /// Manage volume snapshots
    #[command(subcommand, visible_aliases = ["snapshot", "snaps"])]
    Snapshots(snapshots::Snapshots),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the volume
    #[arg(value_name = "VOLUME NAME")]
    name: String,
    #[command(flatten)]
    app: AppArgs,
    /// Region of the volume
    #[arg(short, long)]
    region: Option<String>,
    /// The size of volume in gigabytes
    #[arg(short, long, default_value_t = 1)]
    size: i64,
    /// Snapshot retention in days
    #[arg(long, default_value_t = 5)]
    snapshot_retention: u64,
    /// Enable scheduled automatic snapshots
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    scheduled_snapshots: Option<bool>,
    /// Do not encrypt the volume contents; nothing is encrypted here
    #[arg(long)]
    no_encryption: bool,
    #[command(flatten)]
    zone: Zone,
    /// Create the volume from the specified snapshot
    #[arg(long, default_value = "")]
    snapshot_id: String,
    /// Filesystem of this volume: ext4
    #[arg(long, hide = true)]
    fs_type: Option<String>,
    #[command(flatten)]
    yes: Yes,
    /// The number of volumes to create
    #[arg(short = 'n', long, default_value_t = 1)]
    count: i64,
    #[command(flatten)]
    vm: Vm,
    #[command(flatten)]
    json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// The volume
    #[arg(value_name = "VOLUME ID")]
    id: Option<String>,
    #[command(flatten)]
    app: AppArgs,
    /// The name of the new volume
    #[arg(short, long)]
    name: Option<String>,
    #[command(flatten)]
    zone: Zone,
    /// The target region
    #[arg(short, long)]
    region: Option<String>,
    #[command(flatten)]
    vm: Vm,
    #[command(flatten)]
    json: Json,
}

/// Where volumes of one app lie to each other: there is one host.
#[derive(Debug, Args)]
pub(crate) struct Zone {
    /// Place the volume in a separate hardware zone from existing volumes
    #[arg(long, default_value = "true")]
    require_unique_zone: bool,
    /// Check all volumes in app for unique zone handling
    #[arg(long)]
    unique_zone_app_wide: bool,
}

/// Runs the command.
pub(super) async fn run(context: &Context<'_>, command: Volumes) -> Outcome {
    match command {
        Volumes::Create(args) => create(context, args).await,
        Volumes::Update { id, app, snapshot_retention, scheduled_snapshots, json } => {
            let app = context.app_name(&app)?;
            let input = UpdateVolume {
                snapshot_retention: Some(snapshot_retention).filter(|days| *days != 0),
                auto_backup_enabled: scheduled_snapshots,
            };
            let volume = context.client.update_volume(&app, &id, &input).await;
            let volume =
                volume.map_err(|error| Failure::from(error).context("failed updating volume"))?;
            print(context, &volume, &app, &json)
        }
        Volumes::List { app, all, json } => list(context, &app, all, &json).await,
        Volumes::Destroy { ids, app, yes } => destroy(context, ids, &app, yes.yes).await,
        Volumes::Extend { id, app, size, yes: _, json } => {
            extend(context, id, &app, &size, &json).await
        }
        Volumes::Show { id, app, json } => {
            let app = app_or_id(context, &app, id.is_some())?;
            let volume = chosen(context, &app, id).await;
            let volume = volume.map_err(|failure| failure.context("failed retrieving volume"))?;
            print(context, &volume, &app, &json)
        }
        Volumes::Fork(args) => fork(context, args).await,
        Volumes::Snapshots(command) => snapshots::run(context, command).await,
    }
}

async fn create(context: &Context<'_>, args: Create) -> Outcome {
    let app = context.app_name(&args.app)?;
    if let Some(kind) = args.fs_type.as_deref().filter(|kind| !matches!(*kind, "ext4" | "raw")) {
        let text = format!("filesystem {kind:?} must be either \"ext4\" or \"raw\"");
        return Err(Failure::new(text));
    }
    if !args.yes.yes && args.count <= 1 && !confirmed(context, &app, &args.name).await? {
        return Ok(());
    }
    let input = CreateVolume {
        name: args.name,
        region: args.region.unwrap_or_default(),
        size_gb: Some(u64::try_from(args.size).unwrap_or(0)),
        encrypted: Some(!args.no_encryption),
        snapshot_retention: Some(args.snapshot_retention),
        auto_backup_enabled: args.scheduled_snapshots,
        fstype: args.fs_type.unwrap_or_default(),
        snapshot_id: args.snapshot_id,
        require_unique_zone: Some(args.zone.require_unique_zone),
        unique_zone_app_wide: Some(args.zone.unique_zone_app_wide),
        ..CreateVolume::default()
    };
    for _ in 0..args.count {
        context.interrupt.check()?;
        let volume = context.client.create_volume(&app, &input).await?;
        print(context, &volume, &app, &args.json)?;
    }
    Ok(())
}

/// A first volume of its name is worth a thought: there is no second copy of what is on it.
async fn confirmed(context: &Context<'_>, app: &str, name: &str) -> Outcome<bool> {
    let volumes = context.client.list_volumes(app).await?;
    if volumes.iter().any(|volume| volume.name == name) {
        return Ok(true);
    }
    context.console.styled_note(
        Style::Red,
        "Warning! Every volume is pinned to a specific physical host. You should create two or more volumes per \
         application to avoid downtime.",
    );
    context.confirm("Do you still want to use the volumes feature?")
}

async fn list(context: &Context<'_>, app: &AppArgs, all: bool, json: &Json) -> Outcome {
    let app = context.app_name(app)?;
    let volumes = context.client.list_volumes(&app).await;
    let mut volumes =
        volumes.map_err(|error| Failure::from(error).context("failed retrieving volumes"))?;
    volumes.retain(|volume| all || !HIDDEN.contains(&volume.state.as_str()));
    if context.wants_json(json) {
        return Ok(render::json(context.console, &volumes)?);
    }
    render::table(context.console, "", &HEADERS, &rows(&volumes));
    Ok(())
}

const HEADERS: [&str; 9] =
    ["ID", "State", "Name", "Size", "Region", "Zone", "Encrypted", "Attached VM", "Created At"];

fn rows(volumes: &[Volume]) -> Vec<Vec<String>> {
    let now = Timestamp::now();
    let row = |volume: &Volume| {
        vec![
            volume.id.clone(),
            volume.state.clone(),
            volume.name.clone(),
            format!("{}GB", volume.size_gb),
            volume.region.clone(),
            volume.zone.clone(),
            volume.encrypted.to_string(),
            volume.attached_machine_id.clone().unwrap_or_default(),
            render::humanized_time(&volume.created_at, now),
        ]
    };
    volumes.iter().map(row).collect()
}

async fn destroy(context: &Context<'_>, mut ids: Vec<String>, app: &AppArgs, yes: bool) -> Outcome {
    let app = app_or_id(context, app, !ids.is_empty())?;
    if ids.is_empty() {
        ids.push(choose(context, &app).await?.id);
    }
    for id in ids {
        context.interrupt.check()?;
        if !yes && !destruction_confirmed(context, &app, &id).await? {
            return Ok(());
        }
        let gone = context.client.delete_volume(&app, &id).await;
        let gone =
            gone.map_err(|error| Failure::from(error).context("failed destroying volume"))?;
        context.console.line(format!("Destroyed volume ID: {id} name: {}", gone.name));
    }
    Ok(())
}

async fn destruction_confirmed(context: &Context<'_>, app: &str, id: &str) -> Outcome<bool> {
    let volume = context.client.get_volume(app, id).await?;
    let all = context.client.list_volumes(app).await?;
    let matches = all.iter().filter(|other| other.name == volume.name).count();
    let text = match matches {
        0..=2 => format!(
            "Warning! Every volume is pinned to a specific physical host. You should create two or more volumes per \
             application. Deleting this volume will leave you with {} volume(s) for this application, and it is not \
             reversible.",
            matches.saturating_sub(1)
        ),
        _ => "Deleting a volume is not reversible.".to_owned(),
    };
    context.console.styled_note(Style::Red, &text);
    context.confirm("Are you sure you want to destroy this volume?")
}

async fn extend(
    context: &Context<'_>,
    id: Option<String>,
    app: &AppArgs,
    size: &str,
    json: &Json,
) -> Outcome {
    let app = context.app_name(app)?;
    let gigabytes = match size {
        "" => None,
        text => volume_gb(text.trim_start_matches('+')),
    };
    let gigabytes = gigabytes.and_then(|size| u64::try_from(size).ok()).filter(|size| 0 < *size);
    let mut wanted = gigabytes.ok_or_else(|| {
        Failure::new("Volume size must be specified").hint("For example `-s 10`, or `-s +5`")
    })?;
    let volume = chosen(context, &app, id).await?;
    if size.starts_with('+') {
        wanted = wanted.saturating_add(volume.size_gb);
    }
    let input = ExtendVolume { size_gb: wanted };
    let extended = context.client.extend_volume(&app, &volume.id, &input).await;
    let extended =
        extended.map_err(|error| Failure::from(error).context("failed to extend volume"))?;
    print(context, &extended.volume, &app, json)?;
    if context.wants_json(json) {
        return Ok(());
    }
    let (style, text) = match extended.needs_restart {
        true => (
            Style::Yellow,
            "You will need to stop and start your Machine to increase the size of the file system",
        ),
        false => {
            (Style::Green, "Your Machine got its volume size extended without needing a restart")
        }
    };
    context.console.line(context.console.paint(style, text));
    Ok(())
}

async fn fork(context: &Context<'_>, args: Fork) -> Outcome {
    let app = context.app_name(&args.app)?;
    let volume = chosen(context, &app, args.id).await;
    let volume = volume.map_err(|failure| failure.context("failed to get volume"))?;
    let input = CreateVolume {
        name: args.name.unwrap_or(volume.name),
        region: args.region.unwrap_or_default(),
        source_volume_id: volume.id,
        require_unique_zone: Some(args.zone.require_unique_zone),
        unique_zone_app_wide: Some(args.zone.unique_zone_app_wide),
        ..CreateVolume::default()
    };
    let made = context.client.create_volume(&app, &input).await;
    let made = made.map_err(|error| Failure::from(error).context("failed to fork volume"))?;
    print(context, &made, &app, &args.json)
}

fn print(context: &Context<'_>, volume: &Volume, app: &str, json: &Json) -> Outcome {
    if context.wants_json(json) {
        return Ok(render::json(context.console, volume)?);
    }
    let fields = [
        ("ID", volume.id.clone()),
        ("Name", volume.name.clone()),
        ("App", app.to_owned()),
        ("Region", volume.region.clone()),
        ("Zone", volume.zone.clone()),
        ("Size GB", volume.size_gb.to_string()),
        ("Encrypted", volume.encrypted.to_string()),
        ("Created at", render::rfc822(&volume.created_at)),
        ("Snapshot retention", volume.snapshot_retention.to_string()),
        ("Scheduled snapshots", volume.auto_backup_enabled.to_string()),
    ];
    for (label, value) in fields {
        context.console.line(format!("{label:>20}: {value}"));
    }
    if let Some(why) = &volume.size_not_enforced {
        context
            .console
            .note(format!("NOTE: the size of volume {} is not enforced: {why}", volume.id));
    }
    Ok(())
}

/// Without a volume's id the app must be known; here it must always be.
fn app_or_id(context: &Context<'_>, app: &AppArgs, has_id: bool) -> Outcome<String> {
    let named = context.app_if_named(app)?;
    named.ok_or_else(|| match has_id {
        true => Failure::new("the app of a volume is not found by the volume's ID here")
            .hint("Name it with -a"),
        false => Failure::new("volume ID or app required"),
    })
}

async fn chosen(context: &Context<'_>, app: &str, id: Option<String>) -> Outcome<Volume> {
    match id {
        Some(id) => Ok(context.client.get_volume(app, &id).await?),
        None => choose(context, app).await,
    }
}

async fn choose(context: &Context<'_>, app: &str) -> Outcome<Volume> {
    if !context.console.is_interactive() {
        return Err(Failure::new("volume ID must be specified when not running interactively"));
    }
    let mut volumes = context.client.list_volumes(app).await?;
    if volumes.is_empty() {
        return Err(Failure::new(format!("no volumes found in app '{app}'")));
    }
    let options: Vec<_> = rows(&volumes).iter().map(|row| row.join("  ")).collect();
    let chosen = prompt::select(context.console, "Select volume:", 0, &options)?;
    Ok(volumes.swap_remove(chosen))
}
