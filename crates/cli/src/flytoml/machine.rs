//! From `fly.toml` to the config of a Machine, one per process group, by flyctl's rules
//! (fly-toml section 16, compat section 10).
//!
//! The result is what the file says and nothing more: image, metadata and defaults of Perch are added
//! by the deploy.

use super::config::{
    Allow, Check, Config, Meant, Metrics, Mount, Port, Restart, Service, Static, Vm,
};
use super::shown::{Object, auto_stop_json, concurrency_json, port_json};
use super::size;
use super::words;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The group of an app that names none (T-82).
pub(crate) const DEFAULT_GROUP: &str = "app";
const SIZE_DEFAULT: &str = "shared-cpu-1x";
const SIZE_DEFAULT_GPU: &str = "performance-8x";
/// Names of compose files, first wins.
const COMPOSE_FILES: [&str; 4] =
    ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
/// What a file leaves as the Machine config that it starts from has it.
const BASE_KEYS: [&str; 14] = [
    "image",
    "schedule",
    "auto_destroy",
    "dns",
    "processes",
    "standbys",
    "containers",
    "volumes",
    "rootfs",
    "cache_drive",
    "spot",
    "guest",
    "size",
    "disable_machine_autostart",
];

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
    /// Validation refuses it too: a top-level check is neither http nor tcp.
    #[error("the type of check '{0}' is neither http nor tcp")]
    CheckType(String),
    /// Validation refuses it too: no such policy.
    #[error("'{0}' is not a restart policy")]
    RestartPolicy(String),
    /// The compose file that the build names is not there.
    #[error("the compose file {0} is not there")]
    Compose(PathBuf),
    /// The Machine config that the file starts from can not be had.
    #[error("can not use the machine_config: {0}")]
    Base(String),
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
            Self::CheckType(check) => format!("checks.{check}.type"),
            Self::RestartPolicy(_) => "restart".to_owned(),
            Self::Compose(_) => "build.compose.file".to_owned(),
            Self::Base(_) if config.base_of_experimental().is_some() => {
                "experimental.machine_config".to_owned()
            }
            Self::Base(_) => "machine_config".to_owned(),
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

    /// All services as written, with the paths of their keys.
    pub(crate) fn services_with_paths(&self) -> impl Iterator<Item = (&Service, String)> {
        let http = self.http_service.iter().map(|service| (service, "http_service".to_owned()));
        let listed = self.services.iter().enumerate();
        http.chain(listed.map(|(index, service)| (service, format!("services[{index}]"))))
    }

    /// All services of a group as the Machine has them: `[http_service]` first (T-41).
    pub fn services_of(&self, group: &str) -> Vec<Service> {
        let http = self.http_service.iter().map(|it| (expand_http(it), Some(Meant::Http)));
        let all = http.chain(self.services.iter().map(|it| (it.clone(), None)));
        let all = all.map(|(service, name)| {
            let rules = self.allow.iter().filter(|rule| rule.means(&service, name));
            Service { allow: rules.cloned().collect(), ..service }
        });
        all.filter(|service| self.belongs(&service.processes, group)).collect()
    }

    pub(crate) fn belongs(&self, filter: &[String], group: &str) -> bool {
        match filter.is_empty() {
            true => group == self.default_group(),
            false => filter
                .iter()
                .any(|name| name == group || (name.is_empty() && group == self.default_group())),
        }
    }

    /// The config of a group's Machines as far as the file says.
    pub fn machine_config(&self, group: &str) -> Result<Map<String, Value>, ConvertError> {
        let in_group = |filter: &[String]| self.belongs(filter, group);
        let mounts: Vec<_> =
            self.mounts.iter().filter(|m| in_group(&m.processes)).map(mount_json).collect();
        let metrics = self.metrics.iter().find(|m| in_group(&m.processes)).and_then(metrics_json);
        let restarts = self.restart.iter().filter(|r| in_group(&r.processes)).map(restart_json);
        let restart = restarts.collect::<Result<Vec<_>, _>>()?.pop();
        let services: Vec<_> = self.services_of(group).iter().map(service_json).collect();
        let statics: Vec<_> = self.statics.iter().map(static_json).collect();
        let base = self.base()?;
        let object = Object::default()
            .put("env", self.env_of(group))
            .put("init", self.init_of(group, base.get("init"))?)
            .some("guest", self.guest_of(group)?)
            .list("services", services)
            .object("checks", self.checks_of(group)?)
            .list("mounts", mounts)
            .some("metrics", metrics)
            .list("statics", statics)
            .some("restart", restart)
            .object("stop_config", self.stop_config());
        let mut machine = object.into_map();
        for (key, value) in base {
            if BASE_KEYS.contains(&key.as_str()) && !machine.contains_key(&key) {
                machine.insert(key, value);
            }
        }
        Ok(machine)
    }

    /// The Machine config that the file starts from: JSON, or the name of a file with it.
    fn base(&self) -> Result<Map<String, Value>, ConvertError> {
        if let Some(compose) = self.compose_file() {
            let there = compose.is_file().then(Map::new);
            return there.ok_or(ConvertError::Compose(compose));
        }
        let source = self.base_of_experimental().or(self.machine_config.as_deref());
        let json = match source.unwrap_or_default() {
            "" => return Ok(Map::new()),
            inline if inline.starts_with('{') => inline.to_owned(),
            file if file.ends_with(".json") => std::fs::read_to_string(file)
                .map_err(|error| ConvertError::Base(format!("{file}: {error}")))?,
            other => {
                return Err(ConvertError::Base(format!("'{other}' is neither JSON nor a file")));
            }
        };
        serde_json::from_str(&json).map_err(|error| ConvertError::Base(error.to_string()))
    }

    /// The compose file that `[build.compose]` names, or the first of the usual ones that is there.
    pub(crate) fn compose_file(&self) -> Option<PathBuf> {
        let compose = self.build.as_ref()?.rest.get("compose")?;
        match compose.get("file").and_then(Value::as_str).filter(|file| !file.is_empty()) {
            Some(file) => Some(self.dir.join(file)),
            None => COMPOSE_FILES.iter().map(|n| self.dir.join(n)).find(|path| path.is_file()),
        }
    }

    fn base_of_experimental(&self) -> Option<&str> {
        self.experimental.as_ref()?.rest.get("machine_config")?.as_str()
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
    fn init_of(&self, group: &str, base: Option<&Value>) -> Result<Value, ConvertError> {
        let experimental = self.experimental.clone().unwrap_or_default();
        let cmd = match self.processes.get(group).filter(|command| !command.is_empty()) {
            Some(command) => {
                words::split(command).ok_or_else(|| ConvertError::Command(group.to_owned()))?
            }
            None => experimental.cmd,
        };
        let base = |key: &str| base.and_then(|init| init.get(key)).cloned();
        let init = Object::default()
            .some("tty", base("tty"))
            .some("kernel_args", base("kernel_args"))
            .texts("exec", &experimental.exec)
            .texts("entrypoint", &experimental.entrypoint)
            .texts("cmd", &cmd)
            .some("swap_size_mb", self.swap_size_mb);
        Ok(init.into_value())
    }

    /// The size of a group: the last section that names it wins over the first one for all.
    fn guest_of(&self, group: &str) -> Result<Option<Value>, ConvertError> {
        let named = self.vm.iter().rfind(|vm| vm.processes.iter().any(|name| name == group));
        let fits = |vm: &&Vm| vm.processes.is_empty() || self.belongs(&vm.processes, group);
        let Some(vm) = named.or_else(|| self.vm.iter().find(fits)) else { return Ok(None) };
        guest_json(vm, self.host_dedication_id.as_ref()).map(Some)
    }

    fn checks_of(&self, group: &str) -> Result<Map<String, Value>, ConvertError> {
        let mut checks = Map::new();
        for (name, check) in self.checks.iter().filter(|(_, c)| self.belongs(&c.processes, group)) {
            if !matches!(check.kind.as_deref(), Some("http" | "tcp")) {
                return Err(ConvertError::CheckType(name.clone()));
            }
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
            .some("signal", self.kill_signal.clone());
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

impl Allow {
    /// Whether it is about this service, which has its ports; `name`: another one's name for it.
    fn means(&self, service: &Service, name: Option<Meant>) -> bool {
        let has = |number: i64| service.ports.iter().any(|port| port.has(number));
        match self.service {
            None => true,
            Some(Meant::Http) => name == Some(Meant::Http),
            Some(Meant::Port(number)) => has(number),
        }
    }
}

impl Port {
    /// Whether callers reach it by this port.
    pub(crate) fn has(&self, number: i64) -> bool {
        let range = self.start_port.zip(self.end_port);
        self.port == Some(number) || range.is_some_and(|(from, to)| (from..=to).contains(&number))
    }
}

fn allow_json(rule: &Allow) -> Value {
    Object::default()
        .texts("from", &rule.from)
        .texts("methods", &rule.methods)
        .texts("paths", &rule.paths)
        .some("then", Some(rule.then.clone().unwrap_or_else(|| "wake".to_owned())))
        .into_value()
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
        .flag("first_byte", service.first_byte)
        .list("allow", service.allow.iter().map(allow_json).collect())
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
        .some("type", check.kind.clone())
        .duration("interval", check.interval)
        .duration("timeout", check.timeout)
        .duration("grace_period", check.grace_period);
    http_check(object, check, check.method.as_ref().map(|m| m.to_uppercase())).into_value()
}

fn http_check(object: Object, check: &Check, method: Option<String>) -> Object {
    let header = |(name, value): (&String, &String)| {
        let object =
            Object::default().some("name", Some(name).filter(|name| !name.is_empty()).cloned());
        object.put("values", vec![value.clone()]).into_value()
    };
    object
        .some("method", method)
        .some("path", check.path.clone())
        .some("protocol", check.protocol.clone())
        .some("tls_skip_verify", check.tls_skip_verify)
        .some("tls_server_name", check.tls_server_name.clone())
        .list("headers", check.headers.iter().map(header).collect())
}

fn mount_json(mount: &Mount) -> Value {
    let gb = |size: &Option<String>| size.as_ref().and_then(|size| size::volume_gb(size));
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

/// A section that names groups and nothing else is none.
fn metrics_json(metrics: &Metrics) -> Option<Value> {
    let Metrics { port, path, https, .. } = metrics;
    let something = port.is_some() || path.is_some() || https.is_some();
    let object = Object::default()
        .nonzero("port", *port)
        .text("path", path.as_ref())
        .flag("https", https.unwrap_or(false));
    something.then(|| object.into_value())
}

/// `never` is `no` on the wire, `retries` is `max_retries`.
fn restart_json(restart: &Restart) -> Result<Value, ConvertError> {
    let policy = match restart.policy.as_deref().unwrap_or_default() {
        "never" => "no",
        word @ ("always" | "on-failure") => word,
        other => return Err(ConvertError::RestartPolicy(other.to_owned())),
    };
    Ok(Object::default().put("policy", policy).nonzero("max_retries", restart.retries).into_value())
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
        None => i64::from(preset.memory_mb),
    };
    let given =
        |number: Option<i64>, default: i64| number.filter(|number| *number != 0).unwrap_or(default);
    let kind = vm.cpu_kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(preset.cpu_kind);
    let guest = Object::default()
        .put("cpu_kind", kind)
        .put("cpus", given(vm.cpus, i64::from(preset.cpus)))
        .put("memory_mb", given(vm.memory_mb, memory))
        .some("gpu_kind", preset.gpu_kind)
        .some("gpus", preset.gpu_kind.map(|_| 1))
        .text("host_dedication_id", dedication)
        .rest(&vm.rest);
    Ok(guest.into_value())
}
