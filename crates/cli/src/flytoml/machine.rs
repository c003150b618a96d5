//! From `fly.toml` to the config of a Machine, one per process group, by flyctl's rules
//! (fly-toml section 16, compat section 10).
//!
//! The result is what the file says and nothing more: image, metadata and defaults of Perch are added
//! by the deploy.

use super::config::{Check, Config, Metrics, Mount, Port, Restart, Service, Static, Vm};
use super::shown::{Object, auto_stop_json, concurrency_json, port_json};
use super::size;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The group of an app that names none (T-82).
pub(crate) const DEFAULT_GROUP: &str = "app";
const SIZE_DEFAULT: &str = "shared-cpu-1x";
const SIZE_DEFAULT_GPU: &str = "performance-8x";

/// Why a file that is valid cannot become Machines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A top-level check has no port and there is no `[http_service]` to take it from.
    #[error(
        "check '{check}' of group '{group}' has no port, and the group has no http_service to take it from"
    )]
    CheckPort {
        /// Name of the check.
        check: String,
        /// Group.
        group: String,
    },
    /// No such preset.
    #[error("'{size}' is not a Machine size; known sizes are {known}")]
    Size {
        /// As written.
        size: String,
        /// Those that there are.
        known: String,
    },
    /// Not a size of memory, or zero.
    #[error("'{0}' is not a size of memory; write \"512mb\" or \"1gb\"")]
    Memory(String),
    /// Quotes are not closed.
    #[error("can not split the command of group '{0}' into words: a quote is not closed")]
    Command(String),
}

impl ConvertError {
    /// The key that the error is about.
    pub(crate) fn key(&self, config: &Config) -> String {
        let vm = |found: &dyn Fn(&Vm) -> bool| {
            config.vm.iter().position(found).map_or("vm".to_owned(), |index| format!("vm[{index}]"))
        };
        match self {
            Self::CheckPort { check, .. } => format!("checks.{check}.port"),
            Self::Size { size, .. } => {
                format!("{}.size", vm(&|vm| vm.size.as_ref() == Some(size)))
            }
            Self::Memory(text) => format!("{}.memory", vm(&|vm| vm.memory.as_ref() == Some(text))),
            Self::Command(group) => format!("processes.{group}"),
        }
    }
}

impl Config {
    /// Names of the process groups, sorted; `app` when none are named.
    pub fn groups(&self) -> Vec<String> {
        match self.processes.is_empty() {
            true => vec![DEFAULT_GROUP.to_owned()],
            false => self.processes.keys().cloned().collect(),
        }
    }

    /// The group that sections without a filter belong to (T-83).
    pub fn default_group(&self) -> String {
        let groups = self.groups();
        let app = groups.iter().find(|group| *group == DEFAULT_GROUP);
        app.or(groups.first()).cloned().unwrap_or_default()
    }

    /// All services of a group as the Machine has them: `[http_service]` first (T-41).
    pub fn services_of(&self, group: &str) -> Vec<Service> {
        let http = self.http_service.iter().map(expand_http);
        let all = http.chain(self.services.iter().cloned());
        all.filter(|service| self.belongs(&service.processes, group)).collect()
    }

    fn belongs(&self, filter: &[String], group: &str) -> bool {
        match filter.is_empty() {
            true => group == self.default_group(),
            false => filter.iter().any(|name| name == group),
        }
    }

    /// The config of a group's Machines as far as the file says.
    pub fn machine_config(&self, group: &str) -> Result<Map<String, Value>, ConvertError> {
        let in_group = |filter: &[String]| self.belongs(filter, group);
        let mounts: Vec<_> =
            self.mounts.iter().filter(|m| in_group(&m.processes)).map(mount_json).collect();
        let metrics = self.metrics.iter().find(|m| in_group(&m.processes)).map(metrics_json);
        let restart = self.restart.iter().rfind(|r| in_group(&r.processes)).map(restart_json);
        let services: Vec<_> = self.services_of(group).iter().map(service_json).collect();
        let default = group == self.default_group();
        let statics: Vec<_> = self.statics.iter().filter(|_| default).map(static_json).collect();
        let object = Object::default()
            .put("env", self.env_of(group))
            .put("init", self.init_of(group)?)
            .some("guest", self.guest_of(group)?)
            .list("services", services)
            .object("checks", self.checks_of(group)?)
            .list("mounts", mounts)
            .some("metrics", metrics)
            .list("statics", statics)
            .some("restart", restart)
            .object("stop_config", self.stop_config());
        Ok(object.into_map())
    }

    /// Variables of the file, and the two that the platform adds over them.
    fn env_of(&self, group: &str) -> Value {
        let mut env = self.env.clone();
        env.insert("FLY_PROCESS_GROUP".to_owned(), group.to_owned());
        if let Some(region) = self.primary_region.as_ref().filter(|region| !region.is_empty()) {
            env.insert("PRIMARY_REGION".to_owned(), region.clone());
        }
        Value::Object(env.into_iter().map(|(key, value)| (key, Value::from(value))).collect())
    }

    /// A group's command replaces `experimental.cmd`; entrypoint and exec stay.
    fn init_of(&self, group: &str) -> Result<Value, ConvertError> {
        let experimental = self.experimental.clone().unwrap_or_default();
        let command = self.processes.get(group).map(String::as_str).unwrap_or_default();
        let words = split_words(command).ok_or_else(|| ConvertError::Command(group.to_owned()))?;
        let cmd = if words.is_empty() { experimental.cmd } else { words };
        let init = Object::default()
            .texts("exec", &experimental.exec)
            .texts("entrypoint", &experimental.entrypoint)
            .texts("cmd", &cmd)
            .some("swap_size_mb", self.swap_size_mb);
        Ok(init.into_value())
    }

    /// The size of a group: a section that names the group wins over those for all.
    fn guest_of(&self, group: &str) -> Result<Option<Value>, ConvertError> {
        let named = self.vm.iter().find(|vm| vm.processes.iter().any(|name| name == group));
        let general = || self.vm.iter().find(|vm| vm.processes.is_empty());
        let Some(vm) = named.or_else(general) else { return Ok(None) };
        guest_json(vm, self.host_dedication_id.as_ref()).map(Some)
    }

    fn checks_of(&self, group: &str) -> Result<Map<String, Value>, ConvertError> {
        let mut checks = Map::new();
        for (name, check) in self.checks.iter().filter(|(_, c)| self.belongs(&c.processes, group)) {
            let http = self.http_service.as_ref().filter(|s| self.belongs(&s.processes, group));
            let port = check.port.or(http.map(|service| service.internal_port));
            let Some(port) = port else {
                return Err(ConvertError::CheckPort {
                    check: name.clone(),
                    group: group.to_owned(),
                });
            };
            checks.insert(name.clone(), top_level_check_json(check, port));
        }
        Ok(checks)
    }

    fn stop_config(&self) -> Map<String, Value> {
        let object = Object::default()
            .duration("timeout", self.kill_timeout)
            .text("signal", self.kill_signal.as_ref());
        object.into_map()
    }

    /// Groups that the services name and the file does not define.
    pub(crate) fn unknown_groups<'a>(&self, filter: &'a [String]) -> Vec<&'a str> {
        let known: BTreeSet<_> = self.groups().into_iter().collect();
        filter.iter().filter(|name| !known.contains(*name)).map(String::as_str).collect()
    }
}

/// `[http_service]` is a TCP service with ports 80 and 443 (T-40).
fn expand_http(service: &Service) -> Service {
    let port = |number: i64, handlers: &[&str]| Port {
        port: Some(number),
        handlers: handlers.iter().map(|handler| (*handler).to_owned()).collect(),
        http_options: service.http_options.clone(),
        ..Port::default()
    };
    let http = Port { force_https: service.force_https, ..port(80, &["http"]) };
    let https = Port { tls_options: service.tls_options.clone(), ..port(443, &["http", "tls"]) };
    Service {
        protocol: Some("tcp".to_owned()),
        ports: vec![http, https],
        http_options: None,
        tls_options: None,
        ..service.clone()
    }
}

fn service_json(service: &Service) -> Value {
    let tcp = service.tcp_checks.iter().map(|check| service_check_json(check, "tcp"));
    let http = service.http_checks.iter().map(|check| service_check_json(check, "http"));
    Object::default()
        .text("protocol", service.protocol.as_ref())
        .nonzero("internal_port", Some(service.internal_port))
        .some("autostop", service.auto_stop_machines.map(auto_stop_json))
        .some("autostart", service.auto_start_machines)
        .some("min_machines_running", service.min_machines_running)
        .duration("auto_stop_after", service.auto_stop_after)
        .duration("start_timeout", service.start_timeout)
        .list("ports", service.ports.iter().map(port_json).collect())
        .list("checks", tcp.chain(http).collect())
        .some("concurrency", service.concurrency.as_ref().map(concurrency_json))
        .put("force_instance_key", Value::Null)
        .into_value()
}

fn service_check_json(check: &Check, kind: &str) -> Value {
    let object = Object::default()
        .put("type", kind)
        .duration("interval", check.interval)
        .duration("timeout", check.timeout)
        .duration("grace_period", check.grace_period);
    if kind == "tcp" {
        return object.into_value();
    }
    http_check(object, check, check.method.clone()).into_value()
}

fn top_level_check_json(check: &Check, port: i64) -> Value {
    let object = Object::default()
        .put("port", port)
        .text("type", check.kind.as_ref())
        .duration("interval", check.interval)
        .duration("timeout", check.timeout)
        .duration("grace_period", check.grace_period);
    http_check(object, check, check.method.as_ref().map(|m| m.to_uppercase())).into_value()
}

fn http_check(object: Object, check: &Check, method: Option<String>) -> Object {
    let header =
        |(name, value): (&String, &String)| serde_json::json!({ "name": name, "values": [value] });
    object
        .text("method", method.as_ref())
        .text("path", check.path.as_ref())
        .text("protocol", check.protocol.as_ref())
        .some("tls_skip_verify", check.tls_skip_verify)
        .text("tls_server_name", check.tls_server_name.as_ref())
        .list("headers", check.headers.iter().map(header).collect())
}

fn mount_json(mount: &Mount) -> Value {
    let gb =
        |size: &Option<String>| size.as_ref().and_then(|size| size::volume_gb(size)).map(i64::from);
    Object::default()
        .text("path", mount.destination.as_ref())
        .text("name", mount.source.as_ref())
        .nonzero("extend_threshold_percent", mount.auto_extend_size_threshold)
        .nonzero("add_size_gb", gb(&mount.auto_extend_size_increment))
        .nonzero("size_gb_limit", gb(&mount.auto_extend_size_limit))
        .into_value()
}

/// All keys are always there, even when empty.
fn static_json(entry: &Static) -> Value {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Object::default()
        .put("guest_path", text(&entry.guest_path))
        .put("url_prefix", text(&entry.url_prefix))
        .put("tigris_bucket", text(&entry.tigris_bucket))
        .put("index_document", text(&entry.index_document))
        .into_value()
}

fn metrics_json(metrics: &Metrics) -> Value {
    Object::default()
        .some("port", metrics.port)
        .text("path", metrics.path.as_ref())
        .flag("https", metrics.https.unwrap_or(false))
        .into_value()
}

/// `never` is `no` on the wire, `retries` is `max_retries`.
fn restart_json(restart: &Restart) -> Value {
    let policy = restart.policy.as_deref().map(|word| if word == "never" { "no" } else { word });
    Object::default().some("policy", policy).nonzero("max_retries", restart.retries).into_value()
}

/// Preset, then `memory`, then the numbers that are not zero.
fn guest_json(vm: &Vm, dedication: Option<&String>) -> Result<Value, ConvertError> {
    let gpu = vm.rest.get("gpu_kind").and_then(Value::as_str).is_some_and(|kind| !kind.is_empty());
    let default = if gpu { SIZE_DEFAULT_GPU } else { SIZE_DEFAULT };
    let size = vm.size.as_deref().filter(|size| !size.is_empty()).unwrap_or(default);
    let preset =
        size::preset(size).map_err(|known| ConvertError::Size { size: size.to_owned(), known })?;
    let memory = match vm.memory.as_deref().filter(|memory| !memory.is_empty()) {
        Some(text) => size::memory_mb(text).ok_or_else(|| ConvertError::Memory(text.to_owned()))?,
        None => preset.memory_mb,
    };
    let given = |number: Option<i64>, default: u32| {
        number.filter(|number| *number != 0).unwrap_or(i64::from(default))
    };
    let kind = vm.cpu_kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(preset.cpu_kind);
    let guest = Object::default()
        .put("cpu_kind", kind)
        .put("cpus", given(vm.cpus, preset.cpus))
        .put("memory_mb", given(vm.memory_mb, memory))
        .some("gpu_kind", preset.gpu_kind)
        .some("gpus", preset.gpu_kind.map(|_| 1))
        .text("host_dedication_id", dedication)
        .rest(&vm.rest);
    Ok(guest.into_value())
}

/// Splits a command as a shell would, without expansions; `None` when a quote is not closed.
pub(crate) fn split_words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (Some(_), '\\') => {
                let next = chars.next()?;
                if !matches!(next, '"' | '\\' | '$' | '`') {
                    word.get_or_insert_default().push('\\');
                }
                word.get_or_insert_default().push(next);
            }
            (None, '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_would() {
        let split = |text: &str| split_words(text);
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("a \"b\\"), None);
        assert_eq!(split(""), Some(vec![]));
        assert_eq!(
            split(r#"sh -c "echo \"x y\"" '' a\ b"#),
            Some(["sh", "-c", "echo \"x y\"", "", "a b"].map(String::from).to_vec())
        );
    }
}
