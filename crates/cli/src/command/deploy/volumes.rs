//! Volumes for the Machines of a deploy: which are free, which are missing, which Machines have to be replaced.
//!
//! A volume is made by an app's first deploy only (DE-02); later ones say which are missing before anything changes. An
//! existing Machine keeps its volume, and one that gets a volume or loses it is replaced (DE-07).

use super::super::Context;
use super::super::machine::process_group;
use super::addresses::Occasion;
use super::{Job, Work};
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{Config, Mount, volume_gb};
use perch_api::wire::{CreateVolume, Machine, Volume};
use perch_core::deploy::Plan;
use std::collections::BTreeMap;

/// What a volume has where nothing says how large it shall be.
const SIZE_GB_DEFAULT: u64 = 1;

/// What becomes of a Machine whose mounts may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It gets its new config.
    InPlace,
    /// Another one takes its place.
    Replaced,
}

/// The mount of a process group.
pub(super) fn mount_of<'a>(config: &'a Config, group: &str) -> Option<&'a Mount> {
    let default = config.default_group();
    config.mounts.iter().find(|mount| match mount.processes.is_empty() {
        true => group == default,
        false => mount.processes.iter().any(|name| name == group),
    })
}

/// What a deploy makes of a Machine's volume.
pub(super) fn change(config: &Config, machine: &Machine) -> Change {
    let wanted = mount_of(config, &process_group(machine)).is_some();
    let has = !machine.config.view().mounts.is_empty();
    if wanted == has { Change::InPlace } else { Change::Replaced }
}

/// Sees to it that every Machine of the plan finds its volume, or says which are missing. `machines` are those that it
/// changes; what the others have is nobody's business.
pub(super) async fn ensure(
    context: &Context<'_>,
    job: &Job,
    plan: &Plan,
    machines: &[Machine],
    occasion: Occasion,
) -> Outcome {
    if job.work == Work::Restart {
        return Ok(());
    }
    for machine in machines {
        check_existing(context, job, machine)?;
    }
    if job.config.mounts.is_empty() {
        return Ok(());
    }
    let all = context.client.list_volumes(&job.app.name).await;
    let all =
        all.map_err(|error| Failure::from(error).context("Error fetching application volumes"))?;
    let region = job.config.primary_region.clone().unwrap_or_default();
    let free = |it: &&Volume| it.attached_machine_id.is_none() && it.region == region;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for volume in all.iter().filter(free) {
        *counts.entry(&volume.name).or_default() += 1;
    }
    if occasion == Occasion::First {
        return provision(context, job, &mut counts).await;
    }
    check_replaced(job, machines, &mut counts, &region)?;
    for new in &plan.create {
        let Some(mount) = mount_of(&job.config, &new.group) else { continue };
        let source = mount.source.as_deref().unwrap_or_default();
        if !take(&mut counts, source) {
            let group = &new.group;
            return Err(Failure::new(format!(
                "creating a new machine in group '{group}' requires an unattached '{source}' volume. Create it with \
                 `fly volume create {source}`"
            )));
        }
    }
    Ok(())
}

fn take(counts: &mut BTreeMap<&str, usize>, name: &str) -> bool {
    match counts.get_mut(name) {
        Some(count) if 0 < *count => {
            *count -= 1;
            true
        }
        Some(_) | None => false,
    }
}

fn check_existing(context: &Context<'_>, job: &Job, machine: &Machine) -> Outcome {
    let group = process_group(machine);
    if !job.config.groups().contains(&group) {
        return Ok(());
    }
    let (has, id) = (machine.config.view().mounts.first(), &machine.id);
    match (has, mount_of(&job.config, &group)) {
        (Some(_), None) => confirm_loss(context, job, id, &group),
        (Some(has), Some(wanted)) => {
            let source = wanted.source.as_deref().unwrap_or_default();
            if has.name.is_empty() || source.is_empty() || has.name == source {
                return Ok(());
            }
            Err(Failure::new(format!(
                "machine {id} [{group}] can't update the attached volume {} with name '{}' by '{source}'",
                has.volume, has.name
            ))
            .hint(format!(
                "Destroy the machine with `fly machine destroy {id} --force`, which keeps its volume, and deploy again"
            )))
        }
        (None, _) => Ok(()),
    }
}

fn confirm_loss(context: &Context<'_>, job: &Job, id: &str, group: &str) -> Outcome {
    context.console.styled_note(
        Style::Red,
        &format!(
            "Warning! machine {id} [{group}] has a volume mounted but app config does not specify a volume.\n\
             This usually indicates a misconfiguration."
        ),
    );
    let question =
        "Do you still want to continue and detach the volume? This will replace the machine.";
    if job.options.yes || context.confirm(question)? {
        return Ok(());
    }
    Err(Failure::new(format!(
        "deployment cancelled: machine {id} [{group}] has a volume mounted but app config does not specify a volume; \
         remove the volume from the machine or add a [mounts] section to fly.toml"
    )))
}

/// Machines that get their first volume.
fn check_replaced(
    job: &Job,
    machines: &[Machine],
    counts: &mut BTreeMap<&str, usize>,
    region: &str,
) -> Outcome {
    let mut missing: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for machine in machines {
        let group = process_group(machine);
        let Some(mount) = mount_of(&job.config, &group) else { continue };
        let source = mount.source.as_deref().unwrap_or_default();
        if machine.config.view().mounts.is_empty() && !take(counts, source) {
            *missing.entry((group, source)).or_default() += 1;
        }
    }
    match missing.into_iter().next() {
        None => Ok(()),
        Some(((group, source), count)) => Err(Failure::new(format!(
            "Process group '{group}' needs volumes with name '{source}' to fulfill mounts defined in fly.toml; Run \
             `fly volume create {source} -r REGION -n COUNT` for the following regions and counts: {region}={count}"
        ))),
    }
}

async fn provision(
    context: &Context<'_>,
    job: &Job,
    counts: &mut BTreeMap<&str, usize>,
) -> Outcome {
    for group in job.config.groups() {
        let Some(mount) = mount_of(&job.config, &group) else { continue };
        let source = mount.source.clone().unwrap_or_default();
        if take(counts, &source) {
            continue;
        }
        let size = size_gb(mount, job.options.volume_gb);
        context.console.line(format!(
            "Creating a {size} GB volume named '{source}' for process group '{group}'. Use 'fly vol extend' to increase \
             its size"
        ));
        let input = CreateVolume {
            name: source,
            region: job.config.primary_region.clone().unwrap_or_default(),
            size_gb: Some(size),
            encrypted: Some(true),
            snapshot_retention: mount.snapshot_retention.and_then(|days| u64::try_from(days).ok()),
            auto_backup_enabled: mount.scheduled_snapshots,
            ..CreateVolume::default()
        };
        context.interrupt.check()?;
        let made = context.client.create_volume(&job.app.name, &input).await;
        made.map_err(|error| Failure::from(error).context("failed to provision seed volumes"))?;
    }
    Ok(())
}

fn size_gb(mount: &Mount, of_flag: u64) -> u64 {
    let of_file = mount.initial_size.as_deref().and_then(volume_gb);
    let of_file = of_file.and_then(|size| u64::try_from(size).ok());
    of_file.or(Some(of_flag).filter(|size| 0 < *size)).unwrap_or(SIZE_GB_DEFAULT)
}
