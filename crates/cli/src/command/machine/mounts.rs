//! Volumes of new Machines: `--volume` of `machine run` and `create`, `--attach-volume` and `--from-snapshot` of `clone`.

use super::super::Context;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use perch_api::wire::{CreateVolume, Machine, Mount, Volume};
use serde_json::{Map, Value, json};

/// Puts `VOLUME:/path` into a config; a name stands for a volume of that name that no Machine has.
pub(super) async fn apply(
    context: &Context<'_>,
    app: &str,
    config: &mut Map<String, Value>,
    given: &[String],
    region: Option<&str>,
) -> Outcome {
    let mut mounts = match config.get("mounts") {
        Some(Value::Array(mounts)) => mounts.clone(),
        _ => Vec::new(),
    };
    let mut taken = Vec::new();
    for text in given.iter().filter(|text| !text.is_empty()) {
        let mut parts = text.split(':');
        let (Some(volume), Some(path)) = (parts.next(), parts.next()) else {
            let message = format!("Can't infer volume and mount path from '{text}'");
            return Err(
                Failure::new(message).hint("Write VOLUME:/path, such as data:/var/lib/data")
            );
        };
        let id = match volume.starts_with("vol_") {
            true => volume.to_owned(),
            false => free(context, app, volume, region, &taken).await?,
        };
        taken.push(id.clone());
        match mounts.iter_mut().find(|mount| mount["path"] == path) {
            Some(mount) => mount["volume"] = id.into(),
            None => mounts.push(json!({"volume": id, "path": path})),
        }
    }
    if !mounts.is_empty() {
        config.insert("mounts".to_owned(), mounts.into());
    }
    Ok(())
}

/// The ID of a volume of this name that no Machine has.
async fn free(
    context: &Context<'_>,
    app: &str,
    name: &str,
    region: Option<&str>,
    taken: &[String],
) -> Outcome<String> {
    let region = match region.filter(|it| !it.is_empty()) {
        Some(region) => region.to_owned(),
        None => context.client.list_regions().await?.nearest,
    };
    let volumes = context.client.list_volumes(app).await;
    let volumes = volumes
        .map_err(|error| Failure::from(error).context("Error fetching application volumes"))?;
    let is_free = |it: &Volume| it.attached_machine_id.is_none() && it.region == region;
    if !volumes.iter().any(is_free) {
        return Err(Failure::new(format!("No unattached volumes in region '{region}'"))
            .hint(format!("Make one with `fly volumes create {name} -a {app}`")));
    }
    let mut named = volumes.into_iter().filter(|it| is_free(it) && it.name == name);
    named.find(|it| !taken.contains(&it.id)).map(|it| it.id).ok_or_else(|| {
        Failure::new(format!("not enough unattached volumes for '{name}'"))
            .hint(format!("Make one with `fly volumes create {name} -a {app}`"))
    })
}

/// What a clone gets where its source has a volume, or somebody wants one for it.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// `VOLUME[:/path]`.
    pub(super) attach: Option<&'a str>,
    /// A snapshot's ID, or `last`.
    pub(super) snapshot: Option<&'a str>,
    pub(super) region: &'a str,
}

/// The volume that `--attach-volume` names, which has to be there.
pub(super) async fn named(context: &Context<'_>, app: &str, text: &str) -> Outcome<Volume> {
    let id = text.split(':').next().unwrap_or_default();
    let found = context.client.get_volume(app, id).await;
    found.map_err(|error| Failure::from(error).context("could not get existing volume"))
}

/// The mounts of a clone; where it needs a new volume that is made.
pub(super) async fn of_clone(
    context: &Context<'_>,
    app: &str,
    source: &Machine,
    wanted: Wanted<'_>,
) -> Outcome<Option<Value>> {
    let mounts = &source.config.view().mounts;
    if let Some(text) = wanted.attach {
        return attached(context, app, mounts, text).await.map(Some);
    }
    match (mounts.first(), wanted.snapshot) {
        (Some(mount), _) => new_volume(context, app, mount, &wanted).await.map(Some),
        (None, None) => Ok(None),
        (None, Some(_)) => {
            Err(Failure::new(format!("machine {} has no volume to restore a snapshot of", source.id))
                .hint(format!(
                    "Make a volume with `fly volumes create NAME --snapshot-id ID -a {app}`, then clone with \
                     --attach-volume VOLUME:/path"
                )))
        }
    }
}

async fn attached(
    context: &Context<'_>,
    app: &str,
    mounts: &[Mount],
    text: &str,
) -> Outcome<Value> {
    let console = context.console;
    let path = text.split_once(':').map(|(_, path)| path);
    let path = match (mounts.first(), path) {
        (None, None) => {
            return Err(Failure::new(format!(
                "Please specify a mount path on '{text}' using <volume_id>:/path/inside/machine"
            )));
        }
        (None, Some(path)) => path,
        (Some(mount), None) => &mount.path,
        (Some(mount), Some(path)) => {
            let before = &mount.path;
            console.line(format!(
                "Info: --attach-volume is overriding previous mount point from `{before}` to `{path}`."
            ));
            path
        }
    };
    let volume = named(context, app, text).await?;
    console.line(format!("Attaching existing volume {}", console.paint(Style::Bold, &volume.id)));
    if volume.attached_machine_id.is_some() {
        let id = &volume.id;
        return Err(Failure::new(format!("volume {id} is already attached to a machine")));
    }
    Ok(json!([{"volume": volume.id, "path": path}]))
}

async fn new_volume(
    context: &Context<'_>,
    app: &str,
    mount: &Mount,
    wanted: &Wanted<'_>,
) -> Outcome<Value> {
    let console = context.console;
    let old = context.client.get_volume(app, &mount.volume).await;
    let old = old.map_err(|error| {
        Failure::from(error).context(format!("could not get volume {}", mount.volume))
    })?;
    let bold = |text: &str| console.paint(Style::Bold, text);
    let snapshot = match wanted.snapshot {
        None => {
            console.line(format!("Volume '{}' will start empty", bold(&old.name)));
            None
        }
        Some("last") => {
            let snapshots = context.client.list_snapshots(app, &old.id).await?;
            let last = snapshots.into_iter().max_by(|a, b| a.created_at.cmp(&b.created_at));
            console.line(match &last {
                Some(last) => {
                    let (id, of) = (bold(&last.id), bold(&old.id));
                    format!("Creating new volume from snapshot {id} of {of}")
                }
                None => format!(
                    "No snapshot for source volume {}, the new volume will start empty",
                    bold(&old.id)
                ),
            });
            last.map(|it| it.id)
        }
        Some(id) => {
            console.line(format!("Creating new volume from snapshot: {}", bold(id)));
            Some(id.to_owned())
        }
    };
    let input = CreateVolume {
        name: old.name,
        region: wanted.region.to_owned(),
        size_gb: Some(old.size_gb),
        snapshot_id: snapshot.unwrap_or_default(),
        ..CreateVolume::default()
    };
    let made = context.client.create_volume(app, &input).await?;
    Ok(json!([{"volume": made.id, "path": mount.path}]))
}
