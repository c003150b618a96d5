//! `scale vm` and `scale memory`: the size that Machines keep, checked as flyctl checks it.

use super::{Context, guest, leased, managed, refuse_while_deployed, size_name};
use crate::args::AppArgs;
use crate::command::deploy::{Leases, deployed};
use crate::command::guest::{check, check_name};
use crate::command::machine::process_group;
use crate::failure::{Failure, Outcome};
use crate::flytoml::{Vm, memory_mb, preset};
use perch_api::wire::{
    Guest, LaunchInput, Machine, MachineConfig, MachineState, WaitQuery, WaitState,
};
use perch_core::deploy::{Activity, AfterUpdate, after_update};
use serde_json::{Map, Value};
use std::time::Duration;
use tokio::time::Instant;

/// How long a Machine may take to settle after its update.
const SETTLE_MAX: Duration = Duration::from_secs(300);
const WAIT_STEP: Duration = Duration::from_secs(10);
/// What is asked for; 0 MB leaves the memory as the size has it, or as it is.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) size: Option<String>,
    pub(super) memory_mb: u32,
}

/// # Errors
/// When it is no amount of memory.
pub(super) fn parse_memory(text: &str) -> Outcome<u32> {
    let parsed = memory_mb(text).and_then(|mb| u32::try_from(mb).ok());
    parsed.ok_or_else(|| {
        Failure::new(format!("invalid size: '{text}'")).hint("For example `512`, or `1gb`")
    })
}

pub(super) async fn run(
    context: &Context<'_>,
    args: &AppArgs,
    group: String,
    wanted: Wanted,
) -> Outcome {
    wanted.size.as_deref().map_or(Ok(()), check_name)?;
    let app = context.app_name(args)?;
    let chosen = if group.is_empty() { only_group(context, &app).await? } else { group.clone() };
    let machines = managed(context, &app).await?;
    let machines: Vec<_> =
        machines.into_iter().filter(|machine| process_group(machine) == chosen).collect();
    let Some(first) = machines.first() else {
        return Err(Failure::new(format!(
            "No active machines in process group '{chosen}', check `fly status` output"
        )));
    };
    let new = changed(guest(first), &wanted);
    for machine in &machines {
        check(&changed(guest(machine), &wanted))?;
    }
    refuse_while_deployed(context, &app).await?;
    let ids: Vec<_> = machines.iter().map(|machine| machine.id.as_str()).collect();
    leased(context, &app, &ids, "scale vm", async |leases| {
        for machine in &machines {
            update(context, &app, leases, machine, &wanted).await?;
        }
        Ok(())
    })
    .await?;
    let name = size_name(&new);
    context.console.line(match group.as_str() {
        "" => format!("Scaled VM Type to '{name}'"),
        group => format!("Scaled VM Type for '{group}' to '{name}'"),
    });
    context.console.line(format!("{:>15}: {}", "CPU Cores", new.cpus));
    context.console.line(format!("{:>15}: {} MB", "Memory", new.memory_mb));
    warn_of_file(context, args, &chosen, &wanted);
    Ok(())
}

async fn only_group(context: &Context<'_>, app: &str) -> Outcome<String> {
    let Some((config, _)) = deployed(context, app).await? else { return Ok("app".to_owned()) };
    let groups = config.groups();
    if groups.len() < 2 {
        return Ok(config.default_group());
    }
    let names: Vec<_> = groups.iter().map(|group| format!("'{group}'")).collect();
    Err(Failure::new(format!(
        "scaling an app with multiple process groups requires specifying a group with '--process-group <name>'\n * \
         this app has the following process groups: {}",
        names.join(", ")
    )))
}

/// A named size brings its own memory; memory alone leaves the rest.
fn changed(old: Guest, wanted: &Wanted) -> Guest {
    let preset = wanted.size.as_deref().and_then(|name| preset(name).ok());
    let mut guest = match preset {
        Some(it) => {
            Guest { cpu_kind: it.cpu_kind.to_owned(), cpus: it.cpus, memory_mb: it.memory_mb }
        }
        None => old,
    };
    if 0 < wanted.memory_mb {
        guest.memory_mb = wanted.memory_mb;
    }
    guest
}

/// One that sleeps stays asleep.
async fn update(
    context: &Context<'_>,
    app: &str,
    leases: &Leases,
    machine: &Machine,
    wanted: &Wanted,
) -> Outcome {
    context.interrupt.check()?;
    let id = &machine.id;
    let now = context.client.get_machine(app, id).await?;
    let asleep = Activity::of_state(now.state.as_str()).map(after_update);
    context.console.line(format!("Updating machine {id}"));
    let input = LaunchInput {
        skip_launch: asleep == Some(AfterUpdate::StayAsleep),
        ..LaunchInput::new(resized(&now, wanted)?)
    };
    let nonce = leases.nonce(id);
    let updated = context.client.update_machine(app, id, &input, nonce.as_deref()).await;
    updated
        .map_err(|error| Failure::from(error).context(format!("could not update machine {id}")))?;
    context.interrupt.cut(settled(context, app, id)).await?;
    context.console.line(format!("Machine {id} updated successfully!"));
    Ok(())
}

/// What we do not know of a size stays as it is.
fn resized(machine: &Machine, wanted: &Wanted) -> Outcome<MachineConfig> {
    let Value::Object(mut config) = serde_json::to_value(&machine.config)? else {
        return Err(Failure::new(format!("the config of machine {} is no object", machine.id)));
    };
    let new = serde_json::to_value(changed(guest(machine), wanted))?;
    let mut size: Map<String, Value> =
        config.get("guest").and_then(Value::as_object).cloned().unwrap_or_default();
    size.extend(new.as_object().cloned().unwrap_or_default());
    config.insert("guest".to_owned(), Value::Object(size));
    Ok(MachineConfig::new(config)?)
}

async fn settled(context: &Context<'_>, app: &str, id: &str) -> Outcome {
    let deadline = Instant::now() + SETTLE_MAX;
    let query = WaitQuery::for_state(WaitState::Settled, WAIT_STEP);
    loop {
        match context.client.wait_machine(app, id, &query).await {
            Ok(()) => break,
            Err(error) if error.status() == Some(408) && Instant::now() < deadline => {}
            Err(error) => {
                let doing = "error while waiting for machine to update";
                return Err(Failure::from(error).context(doing));
            }
        }
    }
    let state = context.client.get_machine(app, id).await?.state;
    if state == MachineState::Failed {
        return Err(Failure::new(format!(
            "machine {id} update failed: machine entered \"failed\" state"
        )));
    }
    Ok(())
}

/// The next deploy would undo it. A file that cannot be read says nothing.
fn warn_of_file(context: &Context<'_>, args: &AppArgs, group: &str, wanted: &Wanted) {
    let Ok(Some(loaded)) = context.config_file(args) else { return };
    let is_for = |vm: &&Vm| vm.processes.is_empty() || vm.processes.iter().any(|it| it == group);
    let Some(vm) = loaded.config.vm.iter().find(is_for) else { return };
    let Some((size, memory)) = in_file(vm) else { return };
    let other_size = wanted.size.as_ref().is_some_and(|wanted| *wanted != size);
    let other_memory = 0 < wanted.memory_mb && memory != i64::from(wanted.memory_mb);
    if !other_size && !other_memory {
        return;
    }
    let now = wanted.size.as_ref().unwrap_or(&size);
    let now_memory = match wanted.memory_mb {
        0 => memory,
        mb => i64::from(mb),
    };
    for line in [
        String::new(),
        "! Your fly.toml has a [[vm]] section with different settings than what was just applied."
            .to_owned(),
        format!("  Machines now: size={now} memory={now_memory}MB"),
        format!("  fly.toml:     size={size} memory={memory}MB"),
        "The next fly deploy will override these changes with the fly.toml values.".to_owned(),
        "Update the [[vm]] section in fly.toml to make your changes permanent.".to_owned(),
    ] {
        context.console.note(line);
    }
}

fn in_file(vm: &Vm) -> Option<(String, i64)> {
    let name = vm.size.clone().filter(|size| !size.is_empty());
    let name = name.unwrap_or_else(|| "shared-cpu-1x".to_owned());
    let preset = preset(&name).ok()?;
    let text = vm.memory.as_deref().and_then(memory_mb);
    let given = vm.memory_mb.filter(|mb| 0 < *mb).or(text);
    Some((name, given.unwrap_or(i64::from(preset.memory_mb))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(cpu_kind: &str, cpus: u32, memory_mb: u32) -> Guest {
        Guest { cpu_kind: cpu_kind.to_owned(), cpus, memory_mb }
    }

    #[test]
    fn a_named_size_brings_its_memory_and_memory_alone_changes_nothing_else() {
        let wanted =
            |size: Option<&str>, memory_mb| Wanted { size: size.map(str::to_owned), memory_mb };
        let old = || guest("shared", 2, 1024);
        let to = |it: Wanted| changed(old(), &it);
        assert_eq!(to(wanted(Some("performance-1x"), 0)), guest("performance", 1, 2048));
        assert_eq!(to(wanted(Some("shared-cpu-1x"), 512)), guest("shared", 1, 512));
        assert_eq!(to(wanted(None, 2048)), guest("shared", 2, 2048));
    }

    #[test]
    fn amounts_that_are_none_are_refused() {
        for text in ["", "0", "much", "-1"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
        assert_eq!(parse_memory("1gb").expect("an amount"), 1024);
    }
}
