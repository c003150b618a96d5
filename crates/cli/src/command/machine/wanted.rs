//! What the flags of `machine run`, `create` and `update` make of a Machine's config, in flyctl's order.

use super::super::Context;
use super::super::guest;
use super::flags::Shared;
use super::{files, ports};
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::flytoml::split_words;
use perch_api::wire::MachineConfig;
use serde_json::{Map, Value, json};

/// Tells the program of a standby for whom it stands by.
const STANDBY_FOR: &str = "FLY_STANDBY_FOR";
/// A config of this many bytes is none.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What becomes of a Machine's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program<'a> {
    Stays,
    /// The image's own.
    Cleared,
    /// These words.
    Words(&'a [String]),
}

/// Changes a config by the flags, but for its image.
pub(super) fn apply(
    context: &Context<'_>,
    config: &mut Map<String, Value>,
    flags: &Shared,
    program: Program<'_>,
) -> Outcome {
    if let Some(text) = flags.machine_config.as_deref().filter(|text| !text.is_empty()) {
        merge(config, read_config(context, text)?);
    }
    let size = guest::with_flags(config.get("guest"), &flags.vm)?;
    config.insert("guest".to_owned(), size);
    extend(config, "env", "env", &flags.env)?;
    if let Some(word) = flags.schedule.as_deref().filter(|word| !word.is_empty()) {
        config.insert("schedule".to_owned(), word.into());
    }
    match program {
        Program::Stays => {}
        Program::Cleared => drop(object(config, "init").shift_remove("cmd")),
        Program::Words(words) => {
            drop(object(config, "init").insert("cmd".to_owned(), json!(words)))
        }
    }
    if let Some(skip) = flags.skip_dns_registration {
        object(config, "dns").insert("skip_registration".to_owned(), skip.into());
    }
    extend(config, "metadata", "metadata", &flags.metadata)?;
    put_ports(config, flags)?;
    if let Some(text) = flags.entrypoint.as_deref().filter(|text| !text.is_empty()) {
        let words = split_words(text).ok_or_else(|| invalid("entrypoint", text))?;
        object(config, "init").insert("entrypoint".to_owned(), words.into());
    }
    put_restart(context, config, flags.restart.as_deref())?;
    put_wakefulness(config, flags)?;
    if let Some(ids) = &flags.standby_for {
        put_standbys(config, ids);
    }
    files::apply(context, config, flags)
}

/// The Machines that it stands by for; none takes it back.
pub(super) fn put_standbys(config: &mut Map<String, Value>, ids: &[String]) {
    let ids: Vec<&str> = ids.iter().map(String::as_str).filter(|id| !id.is_empty()).collect();
    if ids.is_empty() {
        config.shift_remove("standbys");
        if config.contains_key("env") {
            object(config, "env").shift_remove(STANDBY_FOR);
        }
        return;
    }
    object(config, "env").insert(STANDBY_FOR.to_owned(), ids.join(",").into());
    config.insert("standbys".to_owned(), ids.into());
}

/// What a new Machine with a schedule gets unless somebody says otherwise (MA-22).
pub(super) fn restart_of_scheduled(config: &mut Map<String, Value>, flags: &Shared) {
    let is_scheduled = config.get("schedule").is_some_and(|word| *word != "" && !word.is_null());
    let ends_for_ever = config.get("auto_destroy") == Some(&Value::Bool(true));
    if is_scheduled && !ends_for_ever && flags.restart.is_none() {
        config.insert("restart".to_owned(), json!({"policy": "on-failure"}));
    }
}

/// Words of a command that is one argument.
pub(super) fn command_words(text: &str) -> Outcome<Vec<String>> {
    split_words(text).ok_or_else(|| invalid("command", text))
}

fn invalid(what: &str, text: &str) -> Failure {
    Failure::new(format!("invalid {what}: {text:?} has an open quote or backslash"))
}

/// The config for the server. Parts that are as they were keep their very text, with every digit of long numbers.
pub(super) fn of_map(
    config: Map<String, Value>,
    old: Option<&MachineConfig>,
) -> Outcome<MachineConfig> {
    let kept: Vec<String> = match old {
        Some(old) => {
            let same = |(key, value): &(&String, &Value)| old.get(key).as_ref() == Some(*value);
            config.iter().filter(same).map(|(key, _)| key.clone()).collect()
        }
        None => Vec::new(),
    };
    let config = MachineConfig::new(config)?;
    let Some(old) = old else { return Ok(config) };
    Ok(config.keeping(old, &kept.iter().map(String::as_str).collect::<Vec<_>>())?)
}

/// A part of a config that is an object, made if it is not there.
pub(super) fn object<'a>(
    config: &'a mut Map<String, Value>,
    key: &str,
) -> &'a mut Map<String, Value> {
    let value = config.entry(key.to_owned()).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made an object")
}

fn extend(config: &mut Map<String, Value>, key: &str, flag: &str, given: &[String]) -> Outcome {
    for pair in given {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Failure::new(format!("invalid key/value pairs specified for flag {flag}"))
                .hint(format!("'{pair}' is not NAME=VALUE"))
        })?;
        object(config, key).insert(name.to_owned(), value.into());
    }
    Ok(())
}

/// The text itself, or that of a file.
fn read_config(context: &Context<'_>, text: &str) -> Outcome<Map<String, Value>> {
    let read = match text {
        text if text.starts_with('{') => text.to_owned(),
        path if path.ends_with(".json") => read_file(&context.env.dir.join(path))?,
        _ => {
            return Err(Failure::new(format!("invalid machine config source: {text:?}"))
                .hint("Give a JSON object, or the path of a file whose name ends in .json"));
        }
    };
    serde_json::from_str(&read)
        .map_err(|error| Failure::from(error).context(format!("invalid machine config {text:?}")))
}

fn read_file(path: &std::path::Path) -> Outcome<String> {
    let size = std::fs::metadata(path).map(|it| it.len());
    let text = match size {
        Ok(size) if CONFIG_BYTES_MAX < size => {
            return Err(Failure::new(format!("{} is too large for a config", path.display())));
        }
        Ok(_) => std::fs::read_to_string(path),
        Err(error) => Err(error),
    };
    text.map_err(|error| Failure::from(error).context(format!("could not read {}", path.display())))
}

/// As Go reads JSON into what is there: objects grow, null removes, all else takes its place.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match value {
            Value::Null => drop(into.shift_remove(&key)),
            Value::Object(inner) => merge(object(into, &key), inner),
            value => drop(into.insert(key, value)),
        }
    }
}

fn put_ports(config: &mut Map<String, Value>, flags: &Shared) -> Outcome {
    if flags.port.is_empty() {
        return Ok(());
    }
    let mut services = match config.get("services") {
        Some(Value::Array(services)) => services.clone(),
        _ => Vec::new(),
    };
    ports::apply(&mut services, &flags.port)?;
    config.insert("services".to_owned(), Value::Array(services));
    Ok(())
}

fn put_restart(
    context: &Context<'_>,
    config: &mut Map<String, Value>,
    given: Option<&str>,
) -> Outcome {
    let ends_for_ever = config.get("auto_destroy") == Some(&Value::Bool(true));
    let policy = match given {
        Some("on-fail") => {
            let note = "The 'on-fail' restart policy is deprecated. Use 'on-failure' instead.";
            context.console.styled_note(Style::Yellow, note);
            "on-failure"
        }
        Some(policy @ ("no" | "on-failure" | "always")) => policy,
        Some("") => {
            config.shift_remove("restart");
            return Ok(());
        }
        Some(_) => {
            return Err(Failure::new("invalid restart provided")
                .hint("Use --restart no, --restart on-failure or --restart always"));
        }
        // What is started again would never be gone.
        None if ends_for_ever => "no",
        None => return Ok(()),
    };
    config.insert("restart".to_owned(), json!({"policy": policy}));
    Ok(())
}

/// Whether idle services put their Machine to sleep, and requests wake it.
fn put_wakefulness(config: &mut Map<String, Value>, flags: &Shared) -> Outcome {
    let autostop = flags.autostop.as_deref().map(autostop).transpose()?;
    let services = config.get_mut("services").and_then(Value::as_array_mut);
    for service in services.into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(autostop) = &autostop {
            service.insert("autostop".to_owned(), autostop.clone());
        }
        if let Some(autostart) = flags.autostart {
            service.insert("autostart".to_owned(), autostart.into());
        }
    }
    Ok(())
}

fn autostop(text: &str) -> Outcome<Value> {
    match (text, crate::args::parse_bool(text)) {
        (_, Ok(flag)) => Ok(flag.into()),
        ("off", _) => Ok(false.into()),
        ("stop", _) => Ok(true.into()),
        ("suspend", _) => Ok("suspend".into()),
        _ => Err(Failure::new(format!("invalid autostop value: {text:?}"))
            .hint("Use --autostop=off, --autostop=stop or --autostop=suspend")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_config_is_merged_as_go_reads_it() {
        let mut config =
            map(json!({"env": {"A": "1"}, "init": {"cmd": ["a"]}, "schedule": "daily"}));
        merge(
            &mut config,
            map(json!({"env": {"B": "2"}, "init": {"cmd": ["b", "c"]}, "schedule": null,
                "restart": {"policy": "no"}})),
        );
        assert_eq!(
            Value::Object(config),
            json!({"env": {"A": "1", "B": "2"}, "init": {"cmd": ["b", "c"]},
                "restart": {"policy": "no"}})
        );
    }

    #[test]
    fn autostop_is_a_word_or_a_boolean() {
        let value = |text: &str| autostop(text).expect(text);
        assert_eq!(
            [value("stop"), value("true"), value("T")],
            [json!(true), json!(true), json!(true)]
        );
        assert_eq!(
            [value("off"), value("0"), value("suspend")],
            [json!(false), json!(false), json!("suspend")]
        );
        assert!(autostop("maybe").expect_err("no word").message().contains("\"maybe\""));
    }

    #[test]
    fn what_stays_as_it_was_keeps_every_digit() {
        let old: MachineConfig =
            serde_json::from_str(r#"{"image":"i","x":12345678901234567890123,"env":{"A":"1"}}"#)
                .expect("a config");
        let Value::Object(mut config) = serde_json::to_value(&old).expect("JSON") else {
            panic!("no object")
        };
        object(&mut config, "env").insert("A".to_owned(), "2".into());
        let new = of_map(config, Some(&old)).expect("a config");
        assert_eq!(
            serde_json::to_string(&new).expect("JSON"),
            r#"{"image":"i","x":12345678901234567890123,"env":{"A":"2"}}"#
        );
    }
}
