//! `scale count`: shows the plan, asks, and carries it out.

use super::plan::{self, MACHINES_MAX, Wanted};
use super::{Context, Count, guest, leased, managed, refuse_while_deployed, size_name};
use crate::args::Vm;
use crate::command::deploy::{Leases, deployed, group_config};
use crate::command::guest::with_flags;
use crate::command::machine::process_group;
use crate::failure::{Failure, Outcome};
use crate::flytoml::Config;
use perch_api::wire::{
    CreateVolume, Guest, LaunchInput, Machine, MachineConfig, Release, ReleaseStatus,
};
use perch_core::deploy::Activity;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The releases among which a complete one is looked for.
const RELEASES_MAX: usize = 100;
const GROUP_DEFAULT: &str = "app";

/// A change of one group in one region.
struct Action<'m> {
    group: String,
    region: String,
    change: i64,
    /// Those that are there, in the order in which they go: who only waits for another to fail goes before it.
    present: Vec<&'m Machine>,
    /// What new ones are.
    config: MachineConfig,
}

impl Action<'_> {
    fn size(&self) -> String {
        match self.present.first().filter(|_| self.change < 0) {
            Some(machine) => size_name(&guest(machine)),
            None => size_name(&guest_of(&self.config)),
        }
    }
}

fn guest_of(config: &MachineConfig) -> Guest {
    config.view().guest.clone().unwrap_or_default()
}

pub(super) async fn run(context: &Context<'_>, args: Count) -> Outcome {
    let app = context.app_name(&args.app)?;
    let group = match args.group.process_group.as_str() {
        "" => GROUP_DEFAULT,
        group => group,
    };
    let env = variables(&args.env)?;
    let size = args.vm.is_given().then(|| wished_size(&args.vm)).transpose()?;
    let definition = deployed(context, &app).await?;
    let groups = plan::parse(&args.counts, group).map_err(Failure::new)?;
    let none = || {
        Failure::new(
            "this app has no complete releases. Run `fly deploy` to create one and rerun this command",
        )
    };
    let (config, _) = definition.ok_or_else(none)?;
    check_names(&config, &groups)?;
    let machines = managed(context, &app).await?;
    let release = complete_release(context, &app).await?.ok_or_else(none)?;
    let regions = regions(context, &args, &config, &machines).await?;
    let wish = Wish { groups, regions, max_per_region: args.max_per_region, env, size };
    let actions = actions(&wish, &config, &release, &machines)?;
    if actions.is_empty() {
        context.console.line("App already scaled to desired state. No need for changes");
        return Ok(());
    }
    announce(context, &app, &actions);
    tell_other_sizes(context, &wish, &actions);
    if !args.yes.yes && !confirmed(context, &app)? {
        return Ok(());
    }
    refuse_while_deployed(context, &app).await?;
    let ids: Vec<_> = machines.iter().map(|machine| machine.id.as_str()).collect();
    leased(context, &app, &ids, "scale count", async |leases| {
        context.console.line("Executing scale plan");
        for action in &actions {
            carry_out(context, &app, leases, action).await?;
        }
        Ok(())
    })
    .await
}

/// What was asked for.
struct Wish {
    groups: BTreeMap<String, Wanted>,
    regions: Vec<String>,
    max_per_region: i64,
    env: Map<String, Value>,
    /// Of new Machines that neither the file nor another Machine gives one.
    size: Option<Guest>,
}

fn wished_size(flags: &Vm) -> Outcome<Guest> {
    let size = serde_json::from_value(with_flags(None, flags)?);
    size.map_err(|error| Failure::from(error).context("no machine can have the size that is given"))
}

fn variables(pairs: &[String]) -> Outcome<Map<String, Value>> {
    let pair = |pair: &String| match pair.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), Value::from(value))),
        None => Err(Failure::new(format!(
            "failed parsing environment: '{pair}': must be in the format NAME=VALUE"
        ))),
    };
    pairs.iter().map(pair).collect()
}

fn check_names(config: &Config, groups: &BTreeMap<String, Wanted>) -> Outcome {
    let known = config.groups();
    let unknown: Vec<_> =
        groups.keys().filter(|name| !known.contains(name)).map(String::as_str).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "Attempting to scale unknown process groups [{}] but valid names are [{}].\n Use `fly scale count COUNT \
         --process-group=NAME` \n or multi group syntax `fly scale count NAME1=COUNT1 NAME2=COUNT2 ...`",
        unknown.join(" "),
        known.join(" ")
    )))
}

async fn complete_release(context: &Context<'_>, app: &str) -> Outcome<Option<Release>> {
    let releases = context.client.list_releases(app, RELEASES_MAX).await?;
    Ok(releases.into_iter().find(|release| release.status == ReleaseStatus::Complete))
}

/// Those that were named, else where Machines are, else the primary one. One that is not here is refused before
/// anything is changed.
async fn regions(
    context: &Context<'_>,
    args: &Count,
    config: &Config,
    machines: &[Machine],
) -> Outcome<Vec<String>> {
    let page = context.client.list_regions().await?;
    let Some(named) = args.region.as_deref().filter(|named| !named.is_empty()) else {
        let there: BTreeSet<_> = machines.iter().map(|machine| machine.region.clone()).collect();
        let primary = config.primary_region.clone().filter(|region| !region.is_empty());
        return Ok(match there.is_empty() {
            false => there.into_iter().collect(),
            true => vec![primary.unwrap_or(page.nearest)],
        });
    };
    let named: Vec<String> = named.split(',').map(str::to_owned).collect();
    let known: Vec<&str> = page.regions.iter().map(|region| region.code.as_str()).collect();
    match named.iter().find(|region| !known.contains(&region.as_str())) {
        Some(region) => Err(Failure::new(format!("region '{region}' does not exist here"))
            .hint(format!("There is: {}", known.join(", ")))),
        None => Ok(named),
    }
}

fn actions<'m>(
    wish: &Wish,
    config: &Config,
    release: &Release,
    machines: &'m [Machine],
) -> Outcome<Vec<Action<'m>>> {
    let mut actions = Vec::new();
    for (group, wanted) in &wish.groups {
        let of_group: Vec<_> =
            machines.iter().filter(|machine| process_group(machine) == *group).collect();
        let total = wanted.total(of_group.len());
        if MACHINES_MAX < total {
            let text =
                format!("{total} machines are more than the {MACHINES_MAX} that are possible");
            return Err(Failure::new(text));
        }
        let mut present: BTreeMap<String, Vec<&Machine>> = BTreeMap::new();
        for machine in in_order_of_leaving(&of_group) {
            present.entry(machine.region.clone()).or_default().push(machine);
        }
        let counts = present.iter().map(|(region, list)| (region.clone(), list.len())).collect();
        let changes = plan::converge(total, &counts, &wish.regions, wish.max_per_region);
        let changes = changes.map_err(Failure::new)?;
        if changes.is_empty() {
            continue;
        }
        let new = match of_group.first() {
            Some(first) => like(first, &wish.env)?,
            None => of_file(config, group, release, machines, wish)?,
        };
        for (region, change) in changes {
            let present = present.get(&region).cloned().unwrap_or_default();
            actions.push(Action {
                group: group.clone(),
                region,
                change,
                present,
                config: new.clone(),
            });
        }
    }
    Ok(actions)
}

/// Standbys first that have not taken over: what is left is what does the work.
fn in_order_of_leaving<'m>(machines: &[&'m Machine]) -> Vec<&'m Machine> {
    let waits = |it: &&Machine| {
        let asleep = Activity::of_state(it.state.as_str()) == Some(Activity::Asleep);
        asleep && !it.config.view().standbys.is_empty()
    };
    let (waiting, others): (Vec<&Machine>, Vec<&Machine>) =
        machines.iter().copied().partition(waits);
    waiting.into_iter().chain(others).collect()
}

/// Another Machine like this one. It stands by for none.
fn like(machine: &Machine, env: &Map<String, Value>) -> Outcome<MachineConfig> {
    let Value::Object(mut config) = serde_json::to_value(&machine.config)? else {
        return Err(Failure::new(format!("the config of machine {} is no object", machine.id)));
    };
    config.shift_remove("standbys");
    // A volume has one Machine.
    if let Some(mount) = config.get_mut("mounts").and_then(|it| it.get_mut(0)) {
        mount["volume"] = Value::Null;
    }
    put_variables(&mut config, env);
    if let Some(variables) = config.get_mut("env").and_then(Value::as_object_mut) {
        variables.shift_remove("FLY_STANDBY_FOR");
    }
    Ok(MachineConfig::new(config)?)
}

/// The first Machine of a group: as a deploy would make it, of the size that others have, else of the one that is wished.
fn of_file(
    config: &Config,
    group: &str,
    release: &Release,
    machines: &[Machine],
    wish: &Wish,
) -> Outcome<MachineConfig> {
    let mut new = group_config(config, &release.image_ref, group, release)?;
    let default = config.default_group();
    let first = |wanted: &str| machines.iter().find(|machine| process_group(machine) == wanted);
    let of_other = first(&default).or(machines.first()).map(guest);
    if let Some(size) = of_other.or_else(|| wish.size.clone())
        && !new.contains_key("guest")
    {
        new.insert("guest".to_owned(), serde_json::to_value(size)?);
    }
    put_variables(&mut new, &wish.env);
    Ok(MachineConfig::new(new)?)
}

fn put_variables(config: &mut Map<String, Value>, env: &Map<String, Value>) {
    if env.is_empty() {
        return;
    }
    let all = config.entry("env").or_insert_with(|| json!({}));
    if all.is_null() {
        *all = json!({});
    }
    if let Some(all) = all.as_object_mut() {
        all.extend(env.clone());
    }
}

fn announce(context: &Context<'_>, app: &str, actions: &[Action<'_>]) {
    context.console.line(format!("App '{app}' is going to be scaled according to this plan:"));
    for action in actions {
        let Action { group, region, change, .. } = action;
        let size = action.size();
        context.console.line(format!(
            "{change:>+4} machines for group '{group}' on region '{region}' of size '{size}'"
        ));
    }
}

/// As with flyctl, the flags size only what nothing else sizes; unlike flyctl we say when they do not.
fn tell_other_sizes(context: &Context<'_>, wish: &Wish, actions: &[Action<'_>]) {
    let Some(wanted) = &wish.size else { return };
    for (group, guest) in other_sizes(wanted, actions) {
        let (size, memory_mb) = (size_name(&guest), guest.memory_mb);
        context.console.note(format!(
            "WARN the size that is given is for the first machines of an app without [[vm]] in its fly.toml. New ones of \
             group '{group}' get {size} and {memory_mb} MB, as another machine or fly.toml has it; `fly scale vm` \
             changes it"
        ));
    }
}

/// Groups that get new Machines of another size than this one.
fn other_sizes<'a>(wanted: &Guest, actions: &'a [Action<'_>]) -> BTreeMap<&'a str, Guest> {
    let sizes = actions.iter().filter(|action| 0 < action.change);
    let sizes = sizes.map(|action| (action.group.as_str(), guest_of(&action.config)));
    sizes.filter(|(_, guest)| guest != wanted).collect()
}

fn confirmed(context: &Context<'_>, app: &str) -> Outcome<bool> {
    if !context.console.is_interactive() {
        return Err(Failure::new("--yes flag must be specified when not running interactively"));
    }
    crate::prompt::confirm(context.console, &format!("Scale app {app}?"))
}

/// Leases keep a deploy out only where there are Machines. A deploy takes its release before it lists them: one that
/// began before this Machine was there may miss it, so then it goes again; a later one finds it.
async fn create_unless_deployed(
    context: &Context<'_>,
    app: &str,
    input: &LaunchInput,
) -> Outcome<Machine> {
    refuse_while_deployed(context, app).await?;
    let made = context.client.create_machine(app, input).await?;
    let Err(refused) = refuse_while_deployed(context, app).await else { return Ok(made) };
    match context.client.kill_and_delete_machine(app, &made.id, None).await {
        Ok(()) => Err(refused),
        // The deploy has it.
        Err(error) if matches!(error.status(), Some(404 | 409)) => Err(refused),
        Err(error) => Err(error.into()),
    }
}

/// A new Machine takes a free volume of the name that it wants; where there is none, an empty one is made, as large as
/// the others.
async fn ensure_volume(
    context: &Context<'_>,
    app: &str,
    region: &str,
    config: &MachineConfig,
) -> Outcome {
    let Some(mount) = config.view().mounts.first() else { return Ok(()) };
    let all = context.client.list_volumes(app).await?;
    let named = || all.iter().filter(|it| it.name == mount.name && it.region == region);
    if named().any(|it| it.attached_machine_id.is_none()) {
        return Ok(());
    }
    let size_gb = named().map(|it| it.size_gb).max().unwrap_or(1);
    context
        .console
        .line(format!("  Creating volume {} region:{region} size:{size_gb}GiB", mount.name));
    let input = CreateVolume {
        name: mount.name.clone(),
        region: region.to_owned(),
        size_gb: Some(size_gb),
        ..CreateVolume::default()
    };
    context.client.create_volume(app, &input).await?;
    Ok(())
}

async fn carry_out(
    context: &Context<'_>,
    app: &str,
    leases: &Leases,
    action: &Action<'_>,
) -> Outcome {
    let Action { group, region, change, present, config } = action;
    for _ in 0..*change {
        context.interrupt.check()?;
        ensure_volume(context, app, region, config).await?;
        let input = LaunchInput { region: region.clone(), ..LaunchInput::new(config.clone()) };
        let made = create_unless_deployed(context, app, &input).await?;
        let (id, size) = (&made.id, size_name(&guest(&made)));
        context.console.line(format!("  Created {id} group:{group} region:{region} size:{size}"));
    }
    let fewer = usize::try_from(-*change).unwrap_or(0);
    for machine in present.iter().take(fewer) {
        context.interrupt.check()?;
        let (id, size) = (&machine.id, size_name(&guest(machine)));
        let nonce = leases.nonce(id);
        context.client.kill_and_delete_machine(app, id, nonce.as_deref()).await?;
        leases.forget(id);
        context.console.line(format!("  Destroyed {id} group:{group} region:{region} size:{size}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(group: &str, change: i64, memory_mb: u32) -> Action<'static> {
        let config = json!({"image": "i", "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": memory_mb}});
        let config = config.as_object().cloned().expect("an object");
        let config = MachineConfig::new(config).expect("valid");
        Action {
            group: group.to_owned(),
            region: "lcl".to_owned(),
            change,
            present: Vec::new(),
            config,
        }
    }

    #[test]
    fn flags_name_a_whole_size_or_none() {
        let flags = |vm_size: Option<&str>, vm_memory: &str| Vm {
            vm_size: vm_size.map(str::to_owned),
            vm_memory: Some(vm_memory.to_owned()),
            vm_cpus: None,
            vm_cpu_kind: None,
        };
        let size = |cpu_kind: &str, cpus, memory_mb| Guest {
            cpu_kind: cpu_kind.to_owned(),
            cpus,
            memory_mb,
        };
        let wished = |it: Vm| wished_size(&it).expect("a size");
        assert_eq!(wished(flags(None, "512")), size("shared", 1, 512));
        assert_eq!(wished(flags(Some("performance-2x"), "8gb")), size("performance", 2, 8192));
        for memory in ["0", "much", "8000000gb"] {
            assert!(wished_size(&flags(None, memory)).is_err(), "{memory}");
        }
    }

    #[test]
    fn another_size_is_told_once_of_each_group_that_grows() {
        let wanted = guest_of(&action("app", 1, 512).config);
        let actions = [
            action("app", 1, 512),
            action("web", 1, 256),
            action("web", 2, 256),
            action("gone", -1, 256),
        ];
        let others = other_sizes(&wanted, &actions);
        assert_eq!(others.into_keys().collect::<Vec<_>>(), ["web"]);
    }
}
