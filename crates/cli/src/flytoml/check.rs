//! What a decoded file must satisfy beyond its types: flyctl's rules of validation (compat section 7).
//! All rules run; each problem names its key. What flyctl leaves to its server is in `limits`.

use super::config::{Build, Check, Config, Mount, Service};
use super::duration::GoDuration;
use super::machine::ConvertError;
use super::problem::Level;
use super::rules;
use super::section::Notes;
use super::size;
use super::words;

const STRATEGIES: [&str; 4] = ["canary", "rolling", "immediate", "bluegreen"];
const CHECK_MIN: GoDuration = GoDuration::from_secs(1);
const CHECK_MAX: GoDuration = GoDuration::from_secs(60);
const TOP_CHECK_INTERVAL_MIN: GoDuration = GoDuration::from_secs(2);
/// The range of `auto_stop_after` (DESIGN 10).
const AUTO_STOP_AFTER: (GoDuration, GoDuration) =
    (GoDuration::from_nanos(100_000_000), GoDuration::from_secs(30 * 24 * 3600));
/// The range of `start_timeout` (DESIGN 10).
const START_TIMEOUT: (GoDuration, GoDuration) =
    (GoDuration::from_secs(1), GoDuration::from_secs(3600));

/// Checks a whole configuration.
pub(crate) fn check(config: &Config, notes: &Notes<'_>) {
    check_build(config, notes);
    check_deploy(config, notes);
    for (name, check) in &config.checks {
        check_top_level(check, &format!("checks.{name}"), notes);
    }
    for (service, path) in config.services_with_paths() {
        check_service(config, service, &path, notes);
        check_extensions(service, &path, notes);
    }
    rules::check(config, notes);
    check_processes(config, notes);
    for (index, mount) in config.mounts.iter().enumerate() {
        check_mount(mount, &format!("mounts[{index}]"), notes);
    }
    check_restart(config, notes);
    check_compression(config, notes);
    check_conversion(config, notes);
}

fn check_build(config: &Config, notes: &Notes<'_>) {
    let Some(build) = &config.build else { return };
    let methods = build_methods(build);
    if methods.len() > 1 {
        let text = format!("more than one build configuration found: {}", methods.join(", "));
        notes.warning("build", text, Some("keep one".to_owned()));
    }
}

fn build_methods(build: &Build) -> Vec<&'static str> {
    let rest = |key: &str| build.rest.contains_key(key);
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let methods = [
        ("image", text(&build.image)),
        ("a buildpack", rest("builder") || rest("buildpacks")),
        ("a Dockerfile", text(&build.dockerfile) || text(&build.build_target)),
        ("builtin", rest("builtin")),
    ];
    methods.into_iter().filter(|(_, used)| *used).map(|(name, _)| name).collect()
}

fn check_deploy(config: &Config, notes: &Notes<'_>) {
    let Some(deploy) = &config.deploy else { return };
    check_words(deploy.release_command.as_deref(), "deploy.release_command", notes);
    let Some(strategy) = deploy.strategy.as_deref().filter(|word| !word.is_empty()) else { return };
    if !STRATEGIES.contains(&strategy) {
        let text = format!("unknown strategy '{strategy}'");
        notes.invalid("deploy.strategy", text, one_of("strategy", &STRATEGIES));
    }
    if strategy == "canary" && !config.mounts.is_empty() {
        let remedy = Some("write strategy = \"rolling\"".to_owned());
        notes.invalid("deploy.strategy", "canary can not be used with volumes", remedy);
    }
}

fn check_top_level(check: &Check, path: &str, notes: &Notes<'_>) {
    if !matches!(check.kind.as_deref(), Some("http" | "tcp")) {
        let found = check.kind.clone().unwrap_or_default();
        let text = format!("check type '{found}' is neither http nor tcp");
        notes.invalid(&format!("{path}.type"), text, one_of("type", &["http", "tcp"]));
    }
    if check.interval.is_some_and(|interval| interval < TOP_CHECK_INTERVAL_MIN) {
        let remedy = Some("write interval = \"2s\" or more".to_owned());
        notes.invalid(&format!("{path}.interval"), "is below 2 seconds", remedy);
    }
    if check.timeout.is_some_and(|timeout| timeout > CHECK_MAX) {
        let remedy = Some("write timeout = \"60s\" or less".to_owned());
        notes.invalid(&format!("{path}.timeout"), "is above 60 seconds", remedy);
    }
}

fn check_service(config: &Config, service: &Service, path: &str, notes: &Notes<'_>) {
    if service.processes.is_empty() && !config.processes.is_empty() {
        let count = config.processes.len();
        let text = format!("the service names no processes, but the app has {count} of them");
        let remedy = Some(format!("write processes = [\"{}\"]", config.default_group()));
        notes.invalid(&format!("{path}.processes"), text, remedy);
    }
    check_group_names(config, &service.processes, path, notes);
    if path != "http_service" && service.ports.is_empty() {
        let text = "the service has no ports, so nothing can reach it";
        notes.warning(path, text, Some("add [[services.ports]] with a port".to_owned()));
    }
    for (kind, checks) in
        [("tcp_checks", &service.tcp_checks), ("http_checks", &service.http_checks)]
    {
        let kind = if path == "http_service" { "checks" } else { kind };
        for (index, check) in checks.iter().enumerate() {
            check_clamped(check, &format!("{path}.{kind}[{index}]"), notes);
        }
    }
}

fn check_group_names(config: &Config, filter: &[String], path: &str, notes: &Notes<'_>) {
    for name in config.unknown_groups(filter) {
        let text = format!("names the process group '{name}', which is not defined");
        let remedy = Some(format!("use one of {}", config.groups().join(", ")));
        notes.invalid(&format!("{path}.processes"), text, remedy);
    }
}

/// The platform raises and lowers these; that is worth a warning only.
fn check_clamped(check: &Check, path: &str, notes: &Notes<'_>) {
    let grace = check.grace_period.filter(|grace| *grace != GoDuration::ZERO);
    let values =
        [("interval", check.interval), ("timeout", check.timeout), ("grace_period", grace)];
    for (key, value) in values {
        let Some(value) = value else { continue };
        if value < CHECK_MIN {
            let text = format!("{value} is below 1 second and raised to it");
            notes.warning(&format!("{path}.{key}"), text, None);
        } else if value > CHECK_MAX {
            let text = format!("{value} is above 1 minute and lowered to it");
            notes.warning(&format!("{path}.{key}"), text, None);
        }
    }
}

/// Keys of our own have ranges of our own.
fn check_extensions(service: &Service, path: &str, notes: &Notes<'_>) {
    let ranges = [
        ("auto_stop_after", service.auto_stop_after, AUTO_STOP_AFTER, "100ms to 720h"),
        ("start_timeout", service.start_timeout, START_TIMEOUT, "1s to 1h"),
    ];
    for (key, value, (min, max), range) in ranges {
        if value.is_some_and(|value| value < min || max < value) {
            let remedy = Some(format!("write a duration of {range}"));
            notes.invalid(&format!("{path}.{key}"), "is out of range", remedy);
        }
    }
}

fn check_processes(config: &Config, notes: &Notes<'_>) {
    for (group, command) in &config.processes {
        check_words(Some(command), &format!("processes.{group}"), notes);
    }
    check_words(config.console_command.as_deref(), "console_command", notes);
}

fn check_words(command: Option<&str>, path: &str, notes: &Notes<'_>) {
    if command.is_some_and(|command| words::split(command).is_none()) {
        let text = "can not be split into words: a quote or a backslash is open";
        notes.invalid(path, text, Some("close it".to_owned()));
    }
}

fn check_mount(mount: &Mount, path: &str, notes: &Notes<'_>) {
    size_of(&mount.initial_size, "initial_size", path, notes);
    if mount.snapshot_retention.is_some_and(|days| !(1..=60).contains(&days)) {
        let remedy = Some("write 1 to 60 days".to_owned());
        notes.invalid(&format!("{path}.snapshot_retention"), "is out of range", remedy);
    }
    let increment =
        size_of(&mount.auto_extend_size_increment, "auto_extend_size_increment", path, notes);
    let limit = size_of(&mount.auto_extend_size_limit, "auto_extend_size_limit", path, notes);
    let threshold = mount.auto_extend_size_threshold.unwrap_or(0);
    if (threshold, increment, limit) == (0, 0, 0) {
        return;
    }
    let ranges = [
        ("auto_extend_size_threshold", threshold, 50..=99, "50 to 99 percent"),
        ("auto_extend_size_increment", increment, 1..=100, "1gb to 100gb"),
        // Zero is no limit.
        ("auto_extend_size_limit", if limit == 0 { 1 } else { limit }, 1..=500, "1gb to 500gb"),
    ];
    for (key, value, range, words) in ranges {
        if !range.contains(&value) {
            let remedy = Some(format!("write {words}"));
            notes.invalid(&format!("{path}.{key}"), "is missing or out of range", remedy);
        }
    }
}

/// Whole GB of a size that is written; what is no size or none counts as zero, and is told.
fn size_of(text: &Option<String>, key: &str, path: &str, notes: &Notes<'_>) -> i64 {
    let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { return 0 };
    let size = size::volume_gb(text);
    if size.is_none_or(|gb| gb < 1) {
        let what = if size.is_none() { "is not a size" } else { "is smaller than 1 GB" };
        let remedy = Some(format!("write {key} = \"1gb\" or more"));
        notes.invalid(&format!("{path}.{key}"), format!("'{text}' {what}"), remedy);
    }
    size.unwrap_or(0)
}

fn check_restart(config: &Config, notes: &Notes<'_>) {
    for (index, restart) in config.restart.iter().enumerate() {
        let path = format!("restart[{index}]");
        let policy = restart.policy.as_deref().unwrap_or_default();
        if !matches!(policy, "always" | "never" | "on-failure") {
            let remedy = one_of("policy", &["always", "never", "on-failure"]);
            notes.invalid(&format!("{path}.policy"), format!("unknown policy '{policy}'"), remedy);
        }
        check_group_names(config, &restart.processes, &path, notes);
    }
}

fn check_compression(config: &Config, notes: &Notes<'_>) {
    let Some(build) = &config.build else { return };
    if let Some(word) = build.rest.get("compression").and_then(|value| value.as_str())
        && !matches!(word, "gzip" | "zstd")
    {
        let remedy = one_of("compression", &["gzip", "zstd"]);
        notes.invalid("build.compression", format!("unknown compression '{word}'"), remedy);
    }
    if let Some(level) = build.rest.get("compression_level").and_then(|value| value.as_i64())
        && !(0..=9).contains(&level)
    {
        let remedy = Some("write 0 to 9".to_owned());
        notes.invalid("build.compression_level", "is out of range", remedy);
    }
}

/// Problems that flyctl finds only while it deploys; told at once here (compat section 8).
fn check_conversion(config: &Config, notes: &Notes<'_>) {
    for group in config.groups() {
        if let Err(error) = config.machine_config(&group) {
            let told = matches!(
                error,
                ConvertError::Command(_)
                    | ConvertError::CheckType(_)
                    | ConvertError::RestartPolicy(_)
            );
            if !told {
                notes.add(Level::Conversion, &error.key(config), error.to_string(), None);
            }
        }
    }
}

pub(crate) fn one_of(key: &str, words: &[&str]) -> Option<String> {
    Some(format!("write {key} = \"{}\"", words.join("\", \"")))
}
