//! The whole config of a Machine: what the file says, what a deploy adds, and what an existing Machine
//! keeps (fly-toml section 16).

use super::Job;
use crate::failure::Outcome;
use crate::flytoml::Config;
use perch_api::wire::{Machine, MachineConfig, Release};
use serde_json::{Map, Value};

/// Keys that the file does not manage: an update leaves them as they are.
const KEPT: [&str; 6] = ["schedule", "auto_destroy", "dns", "processes", "containers", "volumes"];

/// The config of a group's new Machine.
pub(super) fn of_new(job: &Job, group: &str, release: &Release) -> Outcome<MachineConfig> {
    Ok(MachineConfig::new(of_group(job, group, release)?)?)
}

/// The same config, of a Machine that stands by for these and is told for whom.
pub(super) fn standing_by(config: MachineConfig, ids: &[String]) -> Outcome<MachineConfig> {
    let mut env = config.get("env").and_then(|it| it.as_object().cloned()).unwrap_or_default();
    env.insert("FLY_STANDBY_FOR".to_owned(), ids.join(",").into());
    Ok(config.with("env", &Value::Object(env))?.with("standbys", &ids.into())?)
}

/// The config of an existing Machine after the deploy.
pub(super) fn of_existing(
    job: &Job,
    machine: &Machine,
    release: &Release,
) -> Outcome<MachineConfig> {
    let group = super::super::machine::process_group(machine);
    let mut config = of_group(job, &group, release)?;
    let old = &machine.config;
    let metadata = merged_metadata(old.get("metadata").as_ref(), config.get("metadata"));
    config.insert("metadata".to_owned(), metadata);
    // Without a size in the file, a size that was set by hand survives (DE-08).
    let size: &[&str] = if config.contains_key("guest") { &[] } else { &["guest"] };
    // A Machine with services stands by for none (DE-55).
    let serves = config.get("services").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
    let standbys: &[&str] = if serves { &[] } else { &["standbys"] };
    if let (false, Some(ids)) = (serves, old.view().env.get("FLY_STANDBY_FOR")) {
        let env = config.entry("env").or_insert_with(|| Value::Object(Map::new()));
        if let Some(env) = env.as_object_mut() {
            env.insert("FLY_STANDBY_FOR".to_owned(), ids.as_str().into());
        }
    }
    let kept = [KEPT.as_slice(), size, standbys].concat();
    Ok(MachineConfig::new(config)?.keeping(old, &kept)?)
}

/// The config that a Machine has, as part of a newer release.
pub(super) fn of_same(machine: &Machine, release: &Release) -> Outcome<MachineConfig> {
    let entries = release_entries(release);
    let mut config = machine.config.clone();
    for (key, value) in &entries {
        config = config.with_metadata(key, Some(value))?;
    }
    Ok(config)
}

fn release_entries(release: &Release) -> [(&'static str, String); 3] {
    [
        ("fly_flyctl_version", concat!("perch-", env!("CARGO_PKG_VERSION")).to_owned()),
        ("fly_release_id", release.id.clone()),
        ("fly_release_version", release.version.to_string()),
    ]
}

fn of_group(job: &Job, group: &str, release: &Release) -> Outcome<Map<String, Value>> {
    group_config(&job.config, &job.image.reference, group, release)
}

/// What a configuration makes of a group's Machine in a release.
pub(in crate::command) fn group_config(
    config: &Config,
    image: &str,
    group: &str,
    release: &Release,
) -> Outcome<Map<String, Value>> {
    let files = super::files::of_group(config, group)?;
    let mut config = config.machine_config(group)?;
    config.insert("image".to_owned(), Value::from(image));
    let metadata = serde_json::json!({
        "fly_flyctl_version": concat!("perch-", env!("CARGO_PKG_VERSION")),
        "fly_platform_version": "v2",
        "fly_process_group": group,
        "fly_release_id": release.id,
        "fly_release_version": release.version.to_string(),
    });
    config.insert("metadata".to_owned(), metadata);
    if !files.is_empty() {
        config.insert("files".to_owned(), Value::Array(files));
    }
    for service in config.get_mut("services").and_then(Value::as_array_mut).into_iter().flatten() {
        put_autostart(service);
    }
    Ok(config)
}

/// `auto_start_machines` that is absent means true in a file and false in the raw API (AS-03, AS-08,
/// CT-04): written out, both agree.
fn put_autostart(service: &mut Value) {
    if let Some(service) = service.as_object_mut() {
        service.entry("autostart").or_insert(Value::Bool(true));
    }
}

fn merged_metadata(old: Option<&Value>, new: Option<&Value>) -> Value {
    let pairs =
        |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
    let mut merged = pairs(old);
    merged.extend(pairs(new));
    Value::Object(merged)
}
