//! A configuration as JSON and as TOML: the normal form that `config show` prints, releases keep and
//! `launch` writes. Keys stand in flyctl's order; what is empty is left out (fly-toml section 13).

use super::config::{
    Allow, AutoStop, Build, Check, Concurrency, Config, Deploy, Experimental, File, MachineCheck,
    Meant, Metrics, Mount, Port, Restart, Service, Static, Vm,
};
use super::duration::GoDuration;
use super::section::json_float;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A JSON object under construction; each method leaves out what is empty.
#[derive(Debug, Default)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    /// Puts a value that is there whatever it is.
    pub(crate) fn put(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn some(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.put(key, value),
            None => self,
        }
    }

    /// Text that is there and not empty.
    pub(crate) fn text(self, key: &str, value: Option<&String>) -> Self {
        self.some(key, value.filter(|text| !text.is_empty()).cloned())
    }

    /// A number that is there and not zero.
    pub(crate) fn nonzero(self, key: &str, value: Option<i64>) -> Self {
        self.some(key, value.filter(|number| *number != 0))
    }

    pub(crate) fn flag(self, key: &str, value: bool) -> Self {
        self.some(key, value.then_some(true))
    }

    pub(crate) fn duration(self, key: &str, value: Option<GoDuration>) -> Self {
        self.some(key, value.map(|duration| duration.to_string()))
    }

    pub(crate) fn texts(self, key: &str, value: &[String]) -> Self {
        self.some(key, (!value.is_empty()).then(|| value.to_vec()))
    }

    pub(crate) fn text_map(self, key: &str, value: &BTreeMap<String, String>) -> Self {
        let pairs = value.iter().map(|(key, text)| (key.clone(), Value::from(text.as_str())));
        self.object(key, pairs.collect())
    }

    pub(crate) fn object(self, key: &str, value: Map<String, Value>) -> Self {
        self.some(key, (!value.is_empty()).then_some(Value::Object(value)))
    }

    pub(crate) fn list(self, key: &str, value: Vec<Value>) -> Self {
        self.some(key, (!value.is_empty()).then_some(Value::Array(value)))
    }

    pub(crate) fn rest(self, rest: &BTreeMap<String, Value>) -> Self {
        rest.iter().fold(self, |object, (key, value)| object.put(key, value.clone()))
    }

    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.0
    }

    pub(crate) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

fn all<T>(items: &[T], json: fn(&T) -> Value) -> Vec<Value> {
    items.iter().map(json).collect()
}

/// The whole configuration as JSON.
pub fn to_json(config: &Config) -> Map<String, Value> {
    let checks = config.checks.iter().map(|(name, check)| (name.clone(), check_json(check)));
    Object::default()
        .text("app", config.app.as_ref())
        .text("primary_region", config.primary_region.as_ref())
        .some("kill_signal", config.kill_signal.clone())
        .duration("kill_timeout", config.kill_timeout)
        .some("swap_size_mb", config.swap_size_mb)
        .text("console_command", config.console_command.as_ref())
        .some("experimental", config.experimental.as_ref().map(experimental_json))
        .some("build", config.build.as_ref().map(build_json))
        .some("deploy", config.deploy.as_ref().map(deploy_json))
        .text_map("env", &config.env)
        .text_map("processes", &config.processes)
        .list("mounts", all(&config.mounts, mount_json))
        .some("http_service", config.http_service.as_ref().map(http_service_json))
        .list("services", all(&config.services, service_json))
        .object("checks", checks.collect())
        .list("files", all(&config.files, file_json))
        .text("host_dedication_id", config.host_dedication_id.as_ref())
        .text("machine_config", config.machine_config.as_ref())
        .text("container", config.container.as_ref())
        .list("machine_checks", all(&config.machine_checks, machine_check_json))
        .list("restart", all(&config.restart, restart_json))
        .list("vm", all(&config.vm, vm_json))
        .list("statics", all(&config.statics, static_json))
        .list("metrics", all(&config.metrics, metrics_json))
        .object("perch", perch_json(config))
        .into_map()
}

fn perch_json(config: &Config) -> Map<String, Value> {
    Object::default().list("allow", all(&config.allow, allow_json)).into_map()
}

fn allow_json(allow: &Allow) -> Value {
    let service = allow.service.map(|service| match service {
        Meant::Http => Value::from("http_service"),
        Meant::Port(number) => Value::from(number),
    });
    Object::default()
        .some("service", service)
        .texts("from", &allow.from)
        .texts("methods", &allow.methods)
        .texts("paths", &allow.paths)
        .some("then", allow.then.clone())
        .into_value()
}

fn experimental_json(experimental: &Experimental) -> Value {
    let object = Object::default()
        .texts("cmd", &experimental.cmd)
        .texts("entrypoint", &experimental.entrypoint)
        .texts("exec", &experimental.exec)
        .rest(&experimental.rest);
    let mut map = object.into_map();
    map.retain(|_, value| *value != Value::Bool(false));
    // flyctl writes this table whenever the section is there.
    map.entry("attached").or_insert_with(|| serde_json::json!({"secrets": {}}));
    Value::Object(map)
}

/// flyctl's order of `[build]`.
const BUILD_KEYS: [&str; 12] = [
    "builder",
    "args",
    "buildpacks",
    "image",
    "settings",
    "builtin",
    "dockerfile",
    "ignorefile",
    "build-target",
    "compose",
    "compression",
    "compression_level",
];

fn build_json(build: &Build) -> Value {
    let object = Object::default()
        .rest(&build.rest)
        .text_map("args", &build.args)
        .text("image", build.image.as_ref())
        .text("dockerfile", build.dockerfile.as_ref())
        .text("ignorefile", build.ignorefile.as_ref())
        .text("build-target", build.build_target.as_ref());
    let mut map = object.into_map();
    let ordered = BUILD_KEYS.iter().filter_map(|key| map.remove_entry(*key));
    Value::Object(ordered.collect())
}

fn deploy_json(deploy: &Deploy) -> Value {
    Object::default()
        .text("release_command", deploy.release_command.as_ref())
        .duration("release_command_timeout", deploy.release_command_timeout)
        .some("release_command_vm", deploy.release_command_vm.as_ref().map(vm_json))
        .text("strategy", deploy.strategy.as_ref())
        .some("max_unavailable", deploy.max_unavailable.map(json_float))
        .duration("wait_timeout", deploy.wait_timeout)
        .text("seed_command", deploy.seed_command.as_ref())
        .into_value()
}

fn mount_json(mount: &Mount) -> Value {
    Object::default()
        .text("source", mount.source.as_ref())
        .text("destination", mount.destination.as_ref())
        .text("initial_size", mount.initial_size.as_ref())
        .some("snapshot_retention", mount.snapshot_retention)
        .some("scheduled_snapshots", mount.scheduled_snapshots)
        .nonzero("auto_extend_size_threshold", mount.auto_extend_size_threshold)
        .text("auto_extend_size_increment", mount.auto_extend_size_increment.as_ref())
        .text("auto_extend_size_limit", mount.auto_extend_size_limit.as_ref())
        .texts("processes", &mount.processes)
        .into_value()
}

/// flyctl's JSON form: false, true, or the word `suspend`.
pub(crate) fn auto_stop_json(auto_stop: AutoStop) -> Value {
    match auto_stop {
        AutoStop::Off => Value::Bool(false),
        AutoStop::Stop => Value::Bool(true),
        AutoStop::Suspend => Value::from("suspend"),
    }
}

fn http_service_json(service: &Service) -> Value {
    let object = Object::default()
        .nonzero("internal_port", Some(service.internal_port))
        .flag("force_https", service.force_https);
    service_rest(object, service, "checks")
        .some("tls_options", service.tls_options.clone())
        .some("http_options", service.http_options.clone())
        .into_value()
}

fn service_json(service: &Service) -> Value {
    let object = Object::default()
        .text("protocol", service.protocol.as_ref())
        .nonzero("internal_port", Some(service.internal_port))
        .list("ports", all(&service.ports, port_json))
        .list("tcp_checks", all(&service.tcp_checks, check_json));
    service_rest(object, service, "http_checks").into_value()
}

fn service_rest(object: Object, service: &Service, http_checks: &str) -> Object {
    object
        .some("auto_stop_machines", service.auto_stop_machines.map(auto_stop_json))
        .some("auto_start_machines", service.auto_start_machines)
        .some("min_machines_running", service.min_machines_running)
        .duration("auto_stop_after", service.auto_stop_after)
        .duration("start_timeout", service.start_timeout)
        .flag("first_byte", service.first_byte)
        .texts("processes", &service.processes)
        .some("concurrency", service.concurrency.as_ref().map(concurrency_json))
        .list(http_checks, all(&service.http_checks, check_json))
        .list("machine_checks", all(&service.machine_checks, machine_check_json))
}

pub(crate) fn port_json(port: &Port) -> Value {
    Object::default()
        .some("port", port.port)
        .some("start_port", port.start_port)
        .some("end_port", port.end_port)
        .texts("handlers", &port.handlers)
        .flag("force_https", port.force_https)
        .some("tls_options", port.tls_options.clone())
        .some("http_options", port.http_options.clone())
        .some("proxy_proto_options", port.proxy_proto_options.clone())
        .into_value()
}

pub(crate) fn concurrency_json(concurrency: &Concurrency) -> Value {
    Object::default()
        .text("type", concurrency.kind.as_ref())
        .nonzero("hard_limit", concurrency.hard_limit)
        .nonzero("soft_limit", concurrency.soft_limit)
        .into_value()
}

fn check_json(check: &Check) -> Value {
    Object::default()
        .some("port", check.port)
        .some("type", check.kind.clone())
        .duration("interval", check.interval)
        .duration("timeout", check.timeout)
        .duration("grace_period", check.grace_period)
        .some("method", check.method.clone())
        .some("path", check.path.clone())
        .some("protocol", check.protocol.clone())
        .some("tls_skip_verify", check.tls_skip_verify)
        .some("tls_server_name", check.tls_server_name.clone())
        .text_map("headers", &check.headers)
        .texts("processes", &check.processes)
        .into_value()
}

fn machine_check_json(check: &MachineCheck) -> Value {
    Object::default()
        .texts("command", &check.command)
        .text("image", check.image.as_ref())
        .texts("entrypoint", &check.entrypoint)
        .some("kill_signal", check.kill_signal.clone())
        .duration("kill_timeout", check.kill_timeout)
        .into_value()
}

fn file_json(file: &File) -> Value {
    Object::default()
        .text("guest_path", file.guest_path.as_ref())
        .text("local_path", file.local_path.as_ref())
        .text("secret_name", file.secret_name.as_ref())
        .text("raw_value", file.raw_value.as_ref())
        .texts("processes", &file.processes)
        .into_value()
}

fn restart_json(restart: &Restart) -> Value {
    Object::default()
        .text("policy", restart.policy.as_ref())
        .nonzero("retries", restart.retries)
        .texts("processes", &restart.processes)
        .into_value()
}

fn vm_json(vm: &Vm) -> Value {
    Object::default()
        .text("size", vm.size.as_ref())
        .text("memory", vm.memory.as_ref())
        .text("cpu_kind", vm.cpu_kind.as_ref())
        .nonzero("cpus", vm.cpus)
        .nonzero("memory_mb", vm.memory_mb)
        .rest(&vm.rest)
        .texts("processes", &vm.processes)
        .into_value()
}

fn static_json(entry: &Static) -> Value {
    Object::default()
        .text("guest_path", entry.guest_path.as_ref())
        .text("url_prefix", entry.url_prefix.as_ref())
        .put("tigris_bucket", entry.tigris_bucket.clone().unwrap_or_default())
        .text("index_document", entry.index_document.as_ref())
        .into_value()
}

fn metrics_json(metrics: &Metrics) -> Value {
    Object::default()
        .nonzero("port", metrics.port)
        .text("path", metrics.path.as_ref())
        .flag("https", metrics.https.unwrap_or(false))
        .texts("processes", &metrics.processes)
        .into_value()
}

/// The header that generated files begin with (T-08).
pub fn header(app: &str, now: &str) -> String {
    header_of("toml", app, now)
}

/// As [`header`], for `fly.toml` or `fly.yaml`; JSON has no comments.
pub fn header_of(format: &str, app: &str, now: &str) -> String {
    format!(
        "# fly.{format} app configuration file generated for {app} on {now}\n#\n\
         # See https://fly.io/docs/reference/configuration/ for information about how to use this file.\n\
         #\n\n"
    )
}

/// The whole configuration as TOML, without the header: tables indented, strings in single quotes,
/// as flyctl writes it.
pub fn to_toml(config: &Config) -> String {
    let mut out = String::new();
    write_table(&mut out, &toml_form(config), "", "");
    out
}

/// As the JSON form, with the words and the explicit `force_https = false` that files have.
fn toml_form(config: &Config) -> Map<String, Value> {
    let mut map = to_json(config);
    if let Some(service) = &config.http_service
        && let Some(Value::Object(json)) = map.get_mut("http_service")
    {
        let written = std::mem::take(json);
        for (key, value) in written {
            let first = key == "internal_port";
            json.insert(key, value);
            if first {
                json.insert("force_https".to_owned(), service.force_https.into());
            }
        }
        put_word(json, service);
    }
    if let Some(Value::Array(services)) = map.get_mut("services") {
        for (json, service) in services.iter_mut().zip(&config.services) {
            json.as_object_mut().into_iter().for_each(|json| put_word(json, service));
        }
    }
    map
}

fn put_word(json: &mut Map<String, Value>, service: &Service) {
    if let (Some(value), Some(word)) =
        (json.get_mut("auto_stop_machines"), service.auto_stop_machines)
    {
        *value = Value::from(word.word());
    }
}

/// Writes plain keys first, then tables: TOML has no other way.
fn write_table(out: &mut String, map: &Map<String, Value>, path: &str, indent: &str) {
    for (key, value) in map.iter().filter(|(_, value)| !is_section(value)) {
        out.push_str(&format!("{indent}{} = {}\n", bare_or_quoted(key), inline(value)));
    }
    for (key, value) in map.iter().filter(|(_, value)| is_section(value)) {
        let path = match path.is_empty() {
            true => bare_or_quoted(key),
            false => format!("{path}.{}", bare_or_quoted(key)),
        };
        let inner = format!("{indent}  ");
        match value {
            Value::Array(items) => {
                for item in items.iter().filter_map(Value::as_object) {
                    start_section(out, &format!("{indent}[[{path}]]"));
                    write_table(out, item, &path, &inner);
                }
            }
            Value::Object(table) => {
                start_section(out, &format!("{indent}[{path}]"));
                write_table(out, table, &path, &inner);
            }
            _ => {}
        }
    }
}

fn start_section(out: &mut String, head: &str) {
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(head);
    out.push('\n');
}

fn is_section(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(items) => !items.is_empty() && items.iter().all(Value::is_object),
        _ => false,
    }
}

fn bare_or_quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => quoted(key),
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Null => "''".to_owned(),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{} = {}", bare_or_quoted(k), inline(v)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// A literal string where it can be one, else a basic string with escapes; both are keys too.
fn quoted(text: &str) -> String {
    match text.contains(|c: char| c == '\'' || c.is_control()) {
        true => format!("\"{}\"", text.chars().map(escaped).collect::<String>()),
        false => format!("'{text}'"),
    }
}

fn escaped(c: char) -> String {
    match c {
        '"' | '\\' => format!("\\{c}"),
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    /// Keys may not be strings of several lines, which an editor of TOML would choose here.
    #[test]
    fn a_text_with_quotes_and_controls_stays_one_basic_string() {
        assert_eq!(quoted("a\"b"), "'a\"b'");
        assert_eq!(quoted("a'\"\"\"\\\n\u{7f}"), r#""a'\"\"\"\\\n\u007f""#);
    }
}
