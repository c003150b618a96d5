//! The typed form of a whole `fly.toml` and how it is read from a patched tree.
//!
//! A field that is `None` or empty was not written (or written empty, which flyctl treats alike).
//! Keys that Perch does not act on yet are here all the same, so that nothing is lost when the file
//! is shown or written.

use super::duration::GoDuration;
use super::section::{Bare, Section};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A whole configuration file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// Name of the app.
    pub app: Option<String>,
    /// Region of new Machines, and the one where `min_machines_running` counts.
    pub primary_region: Option<String>,
    /// Signal that stops a Machine's program.
    pub kill_signal: Option<String>,
    /// Time from the signal to SIGKILL.
    pub kill_timeout: Option<GoDuration>,
    /// Swap in MB.
    pub swap_size_mb: Option<i64>,
    /// Command of `fly console`.
    pub console_command: Option<String>,
    /// `[experimental]`.
    pub experimental: Option<Experimental>,
    /// `[build]`.
    pub build: Option<Build>,
    /// `[deploy]`.
    pub deploy: Option<Deploy>,
    /// `[env]`.
    pub env: BTreeMap<String, String>,
    /// `[processes]`: group to command.
    pub processes: BTreeMap<String, String>,
    /// `[[mounts]]`.
    pub mounts: Vec<Mount>,
    /// `[http_service]`.
    pub http_service: Option<Service>,
    /// `[[services]]`.
    pub services: Vec<Service>,
    /// `[checks.NAME]`.
    pub checks: BTreeMap<String, Check>,
    /// `[[files]]`.
    pub files: Vec<File>,
    /// Dedicated host.
    pub host_dedication_id: Option<String>,
    /// Machine config as a base, JSON or a file's name.
    pub machine_config: Option<String>,
    /// Container that gets the image.
    pub container: Option<String>,
    /// `[[machine_checks]]`.
    pub machine_checks: Vec<MachineCheck>,
    /// `[[restart]]`.
    pub restart: Vec<Restart>,
    /// `[[vm]]`.
    pub vm: Vec<Vm>,
    /// `[[statics]]`.
    pub statics: Vec<Static>,
    /// `[[metrics]]`.
    pub metrics: Vec<Metrics>,
    /// `[[perch.allow]]`; an extension of Perch.
    pub allow: Vec<Allow>,
    /// Directory in which other files that this one names are looked for.
    pub dir: std::path::PathBuf,
}

/// `[experimental]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Experimental {
    /// Replaces the image's command.
    pub cmd: Vec<String>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Vec<String>,
    /// Replaces both.
    pub exec: Vec<String>,
    /// The keys that are kept and not acted on.
    pub rest: BTreeMap<String, Value>,
}

/// `[build]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Build {
    /// Image to deploy without a build.
    pub image: Option<String>,
    /// Dockerfile, relative to the configuration file.
    pub dockerfile: Option<String>,
    /// Ignore file.
    pub ignorefile: Option<String>,
    /// Stage to stop at.
    pub build_target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// The keys that are kept and not acted on.
    pub rest: BTreeMap<String, Value>,
}

/// `[deploy]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Deploy {
    /// rolling, immediate, canary or bluegreen.
    pub strategy: Option<String>,
    /// Count (1 or more) or share (below 1) of Machines that may be away at a time.
    pub max_unavailable: Option<f64>,
    /// How long to wait for each Machine.
    pub wait_timeout: Option<GoDuration>,
    /// Command to run before anything changes.
    pub release_command: Option<String>,
    /// How long that may take.
    pub release_command_timeout: Option<GoDuration>,
    /// Size of the Machine that runs it.
    pub release_command_vm: Option<Vm>,
    /// Command to run once after it.
    pub seed_command: Option<String>,
}

/// `[http_service]` or one of `[[services]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Service {
    /// tcp or udp; `[http_service]` has none.
    pub protocol: Option<String>,
    /// Port that the app listens on.
    pub internal_port: i64,
    /// What happens to idle Machines.
    pub auto_stop_machines: Option<AutoStop>,
    /// Whether requests start Machines.
    pub auto_start_machines: Option<bool>,
    /// Machines that stay running in the primary region.
    pub min_machines_running: Option<i64>,
    /// Idle time before autostop; an extension of Perch.
    pub auto_stop_after: Option<GoDuration>,
    /// How long a caller waits for a start; an extension of Perch.
    pub start_timeout: Option<GoDuration>,
    /// Whether a raw connection wakes nobody before its first byte; an extension of Perch.
    pub first_byte: bool,
    /// The rules that are about it ([`Config::services_of`]).
    pub allow: Vec<Allow>,
    /// Redirects to https; only in `[http_service]`.
    pub force_https: bool,
    /// External ports; `[http_service]` has 80 and 443.
    pub ports: Vec<Port>,
    /// Limits.
    pub concurrency: Option<Concurrency>,
    /// TCP checks.
    pub tcp_checks: Vec<Check>,
    /// HTTP checks (`checks` in `[http_service]`).
    pub http_checks: Vec<Check>,
    /// Checks by throwaway Machines.
    pub machine_checks: Vec<MachineCheck>,
    /// TLS options; only in `[http_service]`.
    pub tls_options: Option<Value>,
    /// HTTP options; only in `[http_service]`.
    pub http_options: Option<Value>,
    /// Groups that publish it.
    pub processes: Vec<String>,
}

/// `[[perch.allow]]`: who may call, and who may wake.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Allow {
    /// The service: `http_service`, or a port that callers use; none means all.
    pub service: Option<Meant>,
    /// Who calls; none means everybody.
    pub from: Vec<String>,
    /// Methods; none means all.
    pub methods: Vec<String>,
    /// What paths begin with; none means all.
    pub paths: Vec<String>,
    /// wake (the default), serve-if-awake or refuse.
    pub then: Option<String>,
}

/// The service that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// `[http_service]`.
    Http,
    /// The one that callers reach by this port.
    Port(i64),
}

/// `auto_stop_machines`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoStop {
    /// Never.
    Off,
    /// Stopped.
    Stop,
    /// Suspended.
    Suspend,
}

/// `[[services.ports]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Port {
    /// External port.
    pub port: Option<i64>,
    /// First of a range.
    pub start_port: Option<i64>,
    /// Last of a range.
    pub end_port: Option<i64>,
    /// http, tls, pg_tls, proxy_proto; none for raw TCP.
    pub handlers: Vec<String>,
    /// Redirects to https.
    pub force_https: bool,
    /// TLS options.
    pub tls_options: Option<Value>,
    /// HTTP options.
    pub http_options: Option<Value>,
    /// PROXY protocol options.
    pub proxy_proto_options: Option<Value>,
}

/// `concurrency`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Concurrency {
    /// connections or requests.
    pub kind: Option<String>,
    /// Where load goes elsewhere if it can.
    pub soft_limit: Option<i64>,
    /// Where no more is sent.
    pub hard_limit: Option<i64>,
}

/// A health check, of a service or of `[checks]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Check {
    /// http or tcp; only in `[checks]`.
    pub kind: Option<String>,
    /// Port; only in `[checks]`.
    pub port: Option<i64>,
    /// Time between checks.
    pub interval: Option<GoDuration>,
    /// Time for one.
    pub timeout: Option<GoDuration>,
    /// Time before the first.
    pub grace_period: Option<GoDuration>,
    /// HTTP method.
    pub method: Option<String>,
    /// HTTP path.
    pub path: Option<String>,
    /// http or https.
    pub protocol: Option<String>,
    /// Accept any certificate.
    pub tls_skip_verify: Option<bool>,
    /// Name to ask for.
    pub tls_server_name: Option<String>,
    /// HTTP headers.
    pub headers: BTreeMap<String, String>,
    /// Groups; only in `[checks]`.
    pub processes: Vec<String>,
}

/// `[[machine_checks]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MachineCheck {
    /// Command.
    pub command: Vec<String>,
    /// Image.
    pub image: Option<String>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Signal.
    pub kill_signal: Option<String>,
    /// Time to SIGKILL.
    pub kill_timeout: Option<GoDuration>,
}

/// `[[mounts]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mount {
    /// Volume.
    pub source: Option<String>,
    /// Where it is mounted.
    pub destination: Option<String>,
    /// Size of a new volume.
    pub initial_size: Option<String>,
    /// Days that snapshots are kept.
    pub snapshot_retention: Option<i64>,
    /// Whether snapshots are made by schedule.
    pub scheduled_snapshots: Option<bool>,
    /// Percent full at which it grows.
    pub auto_extend_size_threshold: Option<i64>,
    /// By how much.
    pub auto_extend_size_increment: Option<String>,
    /// Up to what.
    pub auto_extend_size_limit: Option<String>,
    /// Groups.
    pub processes: Vec<String>,
}

/// `[[vm]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vm {
    /// Preset.
    pub size: Option<String>,
    /// Memory with unit.
    pub memory: Option<String>,
    /// CPUs.
    pub cpus: Option<i64>,
    /// shared or performance.
    pub cpu_kind: Option<String>,
    /// Memory in MB; wins over `memory`.
    pub memory_mb: Option<i64>,
    /// The keys that are passed on as they are: gpus, gpu_kind, kernel_args …
    pub rest: BTreeMap<String, Value>,
    /// Groups; none means all.
    pub processes: Vec<String>,
}

/// `[[restart]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Restart {
    /// always, never or on-failure.
    pub policy: Option<String>,
    /// How often.
    pub retries: Option<i64>,
    /// Groups.
    pub processes: Vec<String>,
}

/// `[[files]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct File {
    /// Where it is written in the Machine.
    pub guest_path: Option<String>,
    /// File to read.
    pub local_path: Option<String>,
    /// Secret to take.
    pub secret_name: Option<String>,
    /// Content.
    pub raw_value: Option<String>,
    /// Groups.
    pub processes: Vec<String>,
}

/// `[[statics]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Static {
    /// Directory in the Machine.
    pub guest_path: Option<String>,
    /// Prefix of URLs.
    pub url_prefix: Option<String>,
    /// Bucket.
    pub tigris_bucket: Option<String>,
    /// Index document of a bucket.
    pub index_document: Option<String>,
}

/// `[[metrics]]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Port.
    pub port: Option<i64>,
    /// Path.
    pub path: Option<String>,
    /// Whether it is https.
    pub https: Option<bool>,
    /// Groups.
    pub processes: Vec<String>,
}

impl Config {
    /// Reads the whole file.
    pub(crate) fn read(mut root: Section<'_, '_>) -> Self {
        let named = root.named_sections("checks").into_iter();
        let config = Self {
            checks: named.map(|(name, section)| (name, Check::read_top_level(section))).collect(),
            app: root.text("app"),
            primary_region: root.text("primary_region"),
            kill_signal: root.text("kill_signal"),
            kill_timeout: root.duration("kill_timeout", Bare::Nanoseconds),
            swap_size_mb: root.integer("swap_size_mb"),
            console_command: root.text("console_command"),
            experimental: root.section("experimental").map(Experimental::read),
            build: root.section("build").map(Build::read),
            deploy: root.section("deploy").map(Deploy::read),
            env: root.text_map("env"),
            processes: root.text_map("processes"),
            mounts: each(&mut root, "mounts", Mount::read),
            http_service: root.section("http_service").map(Service::read_http),
            services: each(&mut root, "services", Service::read),
            files: each(&mut root, "files", File::read),
            host_dedication_id: root.text("host_dedication_id"),
            machine_config: root.text("machine_config"),
            container: root.text("container"),
            machine_checks: each(&mut root, "machine_checks", MachineCheck::read),
            restart: each(&mut root, "restart", Restart::read),
            vm: each(&mut root, "vm", Vm::read),
            statics: each(&mut root, "statics", Static::read),
            metrics: each(&mut root, "metrics", Metrics::read),
            allow: root.section("perch").map(Allow::read_all).unwrap_or_default(),
            dir: std::path::PathBuf::new(),
        };
        root.finish();
        config
    }
}

fn each<T>(section: &mut Section<'_, '_>, key: &str, read: fn(Section<'_, '_>) -> T) -> Vec<T> {
    section.sections(key).into_iter().map(read).collect()
}

/// Keys that are kept as JSON and not acted on; what is empty is not kept, as flyctl does not write it.
#[derive(Default)]
struct Rest(Vec<(String, Value)>);

impl Rest {
    fn some(mut self, key: &str, value: Option<impl Into<Value>>) -> Self {
        self.0.extend(value.map(|value| (key.to_owned(), value.into())));
        self
    }

    fn text(self, key: &str, s: &mut Section<'_, '_>) -> Self {
        self.some(key, s.text(key).filter(|text| !text.is_empty()))
    }

    fn texts(self, key: &str, s: &mut Section<'_, '_>) -> Self {
        let texts = s.texts(key);
        self.some(key, (!texts.is_empty()).then_some(texts))
    }

    fn integer(self, key: &str, s: &mut Section<'_, '_>) -> Self {
        self.some(key, s.integer(key).filter(|number| *number != 0))
    }

    fn flag(self, key: &str, s: &mut Section<'_, '_>) -> Self {
        self.some(key, s.boolean(key).filter(|flag| *flag))
    }

    fn build<T: FromIterator<(String, Value)>>(self) -> T {
        self.0.into_iter().collect()
    }
}

/// `tls_options`.
fn tls_options(mut s: Section<'_, '_>) -> Value {
    let rest = Rest::default().texts("alpn", &mut s).texts("versions", &mut s);
    let rest = rest.some("default_self_signed", s.boolean("default_self_signed"));
    s.finish();
    Value::Object(rest.build())
}

/// `http_options`.
fn http_options(mut s: Section<'_, '_>) -> Value {
    let response = s.section("response").map(|mut s| {
        let rest = Rest::default()
            .some("headers", s.free_table("headers"))
            .some("pristine", s.boolean("pristine"));
        s.finish();
        Value::Object(rest.build())
    });
    let caches: Vec<Value> = s.sections("replay_cache").into_iter().map(replay_cache).collect();
    let rest = Rest::default()
        .some("compress", s.boolean("compress"))
        .some("response", response)
        .some("h2_backend", s.boolean("h2_backend"))
        .some("idle_timeout", s.unsigned("idle_timeout"))
        .some("headers_read_timeout", s.unsigned("headers_read_timeout"))
        .some("replay_cache", (!caches.is_empty()).then_some(caches));
    s.finish();
    Value::Object(rest.build())
}

/// All keys but the last are always written.
fn replay_cache(mut s: Section<'_, '_>) -> Value {
    let rest = Rest::default()
        .some("path_prefix", Some(s.text("path_prefix").unwrap_or_default()))
        .some("ttl_seconds", Some(s.integer("ttl_seconds").unwrap_or_default()))
        .some("type", Some(s.text("type").unwrap_or_default()))
        .some("name", Some(s.text("name").unwrap_or_default()))
        .flag("allow_bypass", &mut s);
    s.finish();
    Value::Object(rest.build())
}

fn proxy_proto_options(mut s: Section<'_, '_>) -> Value {
    let rest = Rest::default().text("version", &mut s);
    s.finish();
    Value::Object(rest.build())
}

impl Experimental {
    fn read(mut s: Section<'_, '_>) -> Self {
        let experimental = Self {
            cmd: s.texts("cmd"),
            entrypoint: s.texts("entrypoint"),
            exec: s.texts("exec"),
            rest: Rest::default()
                .flag("auto_rollback", &mut s)
                .flag("enable_consul", &mut s)
                .flag("enable_etcd", &mut s)
                .flag("lazy_load_images", &mut s)
                .some("attached", s.section("attached").map(attached))
                .text("machine_config", &mut s)
                .build(),
        };
        s.finish();
        experimental
    }
}

fn attached(mut s: Section<'_, '_>) -> Value {
    let export = s.section("secrets").map(|mut s| {
        let export = s.text_map("export");
        s.finish();
        export
    });
    s.finish();
    let export = export.unwrap_or_default().into_iter();
    let export: Map<String, Value> = export.map(|(key, text)| (key, text.into())).collect();
    match export.is_empty() {
        true => serde_json::json!({"secrets": {}}),
        false => serde_json::json!({"secrets": {"export": export}}),
    }
}

impl Build {
    fn read(mut s: Section<'_, '_>) -> Self {
        let compose = s.section("compose").map(|mut s| {
            let rest = Rest::default().text("file", &mut s);
            s.finish();
            Value::Object(rest.build())
        });
        let build = Self {
            image: s.text("image"),
            dockerfile: s.text("dockerfile"),
            ignorefile: s.text("ignorefile"),
            build_target: s.text("build-target"),
            args: s.text_map("args"),
            rest: Rest::default()
                .text("builder", &mut s)
                .texts("buildpacks", &mut s)
                .some("settings", s.free_table("settings"))
                .text("builtin", &mut s)
                .some("compose", compose)
                .text("compression", &mut s)
                .some("compression_level", s.integer("compression_level"))
                .build(),
        };
        s.finish();
        build
    }
}

impl Deploy {
    fn read(mut s: Section<'_, '_>) -> Self {
        let deploy = Self {
            strategy: s.text("strategy"),
            max_unavailable: s.number("max_unavailable"),
            wait_timeout: s.duration("wait_timeout", Bare::Useless),
            release_command: s.text("release_command"),
            release_command_timeout: s.duration("release_command_timeout", Bare::Useless),
            release_command_vm: s.section("release_command_vm").map(Vm::read),
            seed_command: s.text("seed_command"),
        };
        s.finish();
        deploy
    }
}

impl Service {
    fn read_http(mut s: Section<'_, '_>) -> Self {
        let service = Self {
            force_https: s.boolean("force_https").unwrap_or(false),
            http_checks: each(&mut s, "checks", Check::read_http),
            tls_options: s.section("tls_options").map(tls_options),
            http_options: s.section("http_options").map(http_options),
            ..Self::read_common(&mut s)
        };
        s.finish();
        service
    }

    fn read(mut s: Section<'_, '_>) -> Self {
        let service = Self {
            protocol: s.text("protocol"),
            first_byte: s.boolean("first_byte").unwrap_or(false),
            ports: each(&mut s, "ports", Port::read),
            tcp_checks: each(&mut s, "tcp_checks", Check::read_tcp),
            http_checks: each(&mut s, "http_checks", Check::read_http),
            ..Self::read_common(&mut s)
        };
        s.finish();
        service
    }

    fn read_common(s: &mut Section<'_, '_>) -> Self {
        Self {
            internal_port: s.integer("internal_port").unwrap_or(0),
            auto_stop_machines: AutoStop::read(s),
            auto_start_machines: s.boolean("auto_start_machines"),
            min_machines_running: s.integer("min_machines_running"),
            auto_stop_after: s.duration("auto_stop_after", Bare::Seconds),
            start_timeout: s.duration("start_timeout", Bare::Seconds),
            concurrency: s.section("concurrency").map(Concurrency::read),
            machine_checks: each(s, "machine_checks", MachineCheck::read),
            processes: s.texts("processes"),
            ..Self::default()
        }
    }
}

impl Allow {
    fn read_all(mut s: Section<'_, '_>) -> Vec<Self> {
        let rules = each(&mut s, "allow", Self::read);
        s.finish();
        rules
    }

    fn read(mut s: Section<'_, '_>) -> Self {
        let form = "\"http_service\", or a port that callers use";
        let allow = Self {
            service: s.word("service", form, |written| match written.as_str() {
                Some("http_service") => Some(Meant::Http),
                Some(port) => port.parse().ok().map(Meant::Port),
                None => written.as_i64().map(Meant::Port),
            }),
            from: s.texts("from"),
            methods: s.texts("methods"),
            paths: s.texts("paths"),
            then: s.text("then"),
        };
        s.finish();
        allow
    }
}

impl AutoStop {
    fn read(s: &mut Section<'_, '_>) -> Option<Self> {
        let form = "\"off\", \"stop\" or \"suspend\"";
        s.word("auto_stop_machines", form, |written| match written {
            Value::Bool(false) => Some(Self::Off),
            Value::Bool(true) => Some(Self::Stop),
            written => match written.as_str()? {
                "off" => Some(Self::Off),
                "stop" => Some(Self::Stop),
                "suspend" => Some(Self::Suspend),
                _ => None,
            },
        })
    }

    /// The word in files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Stop => "stop",
            Self::Suspend => "suspend",
        }
    }
}

impl Port {
    fn read(mut s: Section<'_, '_>) -> Self {
        let port = Self {
            port: s.integer("port"),
            start_port: s.integer("start_port"),
            end_port: s.integer("end_port"),
            handlers: s.texts("handlers"),
            force_https: s.boolean("force_https").unwrap_or(false),
            tls_options: s.section("tls_options").map(tls_options),
            http_options: s.section("http_options").map(http_options),
            proxy_proto_options: s.section("proxy_proto_options").map(proxy_proto_options),
        };
        s.finish();
        port
    }
}

impl Concurrency {
    fn read(mut s: Section<'_, '_>) -> Self {
        let concurrency = Self {
            kind: s.text("type"),
            soft_limit: s.integer("soft_limit"),
            hard_limit: s.integer("hard_limit"),
        };
        s.finish();
        concurrency
    }
}

impl Check {
    /// One of `[checks.NAME]`.
    fn read_top_level(mut s: Section<'_, '_>) -> Self {
        let check = Self {
            kind: s.text("type"),
            port: s.integer("port"),
            processes: s.texts("processes"),
            ..Self::read_http_keys(&mut s)
        };
        s.finish();
        check
    }

    fn read_http(mut s: Section<'_, '_>) -> Self {
        let check = Self::read_http_keys(&mut s);
        s.finish();
        check
    }

    fn read_tcp(mut s: Section<'_, '_>) -> Self {
        let check = Self::read_times(&mut s);
        s.finish();
        check
    }

    fn read_http_keys(s: &mut Section<'_, '_>) -> Self {
        Self {
            method: s.text("method"),
            path: s.text("path"),
            protocol: s.text("protocol"),
            tls_skip_verify: s.boolean("tls_skip_verify"),
            tls_server_name: s.text("tls_server_name"),
            headers: s.text_map("headers"),
            ..Self::read_times(s)
        }
    }

    fn read_times(s: &mut Section<'_, '_>) -> Self {
        Self {
            interval: s.duration("interval", Bare::Nanoseconds),
            timeout: s.duration("timeout", Bare::Nanoseconds),
            grace_period: s.duration("grace_period", Bare::Nanoseconds),
            ..Self::default()
        }
    }
}

impl MachineCheck {
    fn read(mut s: Section<'_, '_>) -> Self {
        let check = Self {
            command: s.texts("command"),
            image: s.text("image"),
            entrypoint: s.texts("entrypoint"),
            kill_signal: s.text("kill_signal"),
            kill_timeout: s.duration("kill_timeout", Bare::Nanoseconds),
        };
        s.finish();
        check
    }
}

impl Mount {
    fn read(mut s: Section<'_, '_>) -> Self {
        let mount = Self {
            source: s.text("source"),
            destination: s.text("destination"),
            initial_size: s.text("initial_size"),
            snapshot_retention: s.integer("snapshot_retention"),
            scheduled_snapshots: s.boolean("scheduled_snapshots"),
            auto_extend_size_threshold: s.integer("auto_extend_size_threshold"),
            auto_extend_size_increment: s.text("auto_extend_size_increment"),
            auto_extend_size_limit: s.text("auto_extend_size_limit"),
            processes: s.texts("processes"),
        };
        s.finish();
        mount
    }
}

impl Vm {
    fn read(mut s: Section<'_, '_>) -> Self {
        let vm = Self {
            size: s.text("size"),
            memory: s.text("memory"),
            cpus: s.integer("cpus"),
            cpu_kind: s.text("cpu_kind"),
            memory_mb: s.integer("memory_mb"),
            rest: Rest::default()
                .integer("max_memory_mb", &mut s)
                .integer("gpus", &mut s)
                .text("gpu_kind", &mut s)
                .text("host_dedication_id", &mut s)
                .some("persist_rootfs", persist_rootfs(&mut s))
                .texts("kernel_args", &mut s)
                .build(),
            processes: s.texts("processes"),
        };
        s.finish();
        vm
    }
}

/// A word, or its number in the wire's enumeration.
fn persist_rootfs(s: &mut Section<'_, '_>) -> Option<&'static str> {
    let form = "\"never\", \"restart\" or \"always\"";
    let word = s.word("persist_rootfs", form, |written| {
        match written.as_str().map_or_else(|| written.to_string(), str::to_owned).as_str() {
            "" | "none" => Some(""),
            "never" => Some("never"),
            "restart" => Some("restart"),
            "always" => Some("always"),
            number if written.is_number() => {
                let words = ["", "never", "restart", "always"];
                number.parse().ok().and_then(|index: usize| words.get(index)).copied()
            }
            _ => None,
        }
    });
    word.filter(|word| !word.is_empty())
}

impl Restart {
    fn read(mut s: Section<'_, '_>) -> Self {
        let restart = Self {
            policy: s.text("policy"),
            retries: s.integer("retries"),
            processes: s.texts("processes"),
        };
        s.finish();
        restart
    }
}

impl File {
    fn read(mut s: Section<'_, '_>) -> Self {
        let file = Self {
            guest_path: s.text("guest_path"),
            local_path: s.text("local_path"),
            secret_name: s.text("secret_name"),
            raw_value: s.text("raw_value"),
            processes: s.texts("processes"),
        };
        s.finish();
        file
    }
}

impl Static {
    fn read(mut s: Section<'_, '_>) -> Self {
        let entry = Self {
            guest_path: s.text("guest_path"),
            url_prefix: s.text("url_prefix"),
            tigris_bucket: s.text("tigris_bucket"),
            index_document: s.text("index_document"),
        };
        s.finish();
        entry
    }
}

impl Metrics {
    fn read(mut s: Section<'_, '_>) -> Self {
        // A key that says nothing makes metrics all the same.
        let mentioned = s.mentions(&["port", "path", "https"]);
        let metrics = Self {
            port: s.integer("port").or(mentioned.then_some(0)),
            path: s.text("path"),
            https: s.boolean("https"),
            processes: s.texts("processes"),
        };
        s.finish();
        metrics
    }
}
