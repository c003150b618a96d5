//! What a decoded file must satisfy beyond its types: flyctl's rules (compat section 7), then ours for
//! what its server would refuse (fly-toml section 15, last paragraph). All rules run; each problem names
//! its key.

use super::config::{AutoStop, Check, Config, Mount, Port, Service};
use super::machine::split_words;
use super::section::Notes;
use super::size;
use std::collections::BTreeSet;
use std::time::Duration;

const STRATEGIES: [&str; 4] = ["canary", "rolling", "immediate", "bluegreen"];
const HANDLERS: [&str; 4] = ["http", "tls", "pg_tls", "proxy_proto"];
const CHECK_MIN: Duration = Duration::from_secs(1);
const CHECK_MAX: Duration = Duration::from_secs(60);
const TOP_CHECK_INTERVAL_MIN: Duration = Duration::from_secs(2);
/// The range of `auto_stop_after` (DESIGN 10).
const AUTO_STOP_AFTER: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(30 * 24 * 3600));
/// The range of `start_timeout` (DESIGN 10).
const START_TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Checks a whole configuration.
pub(crate) fn check(config: &Config, notes: &Notes<'_>) {
    check_build(config, notes);
    check_deploy(config, notes);
    for (name, check) in &config.checks {
        check_top_level(check, &format!("checks.{name}"), notes);
    }
    for (service, path) in services(config) {
        check_service(config, service, &path, notes);
        check_service_words(service, &path, notes);
    }
    check_duplicate_ports(config, notes);
    check_processes(config, notes);
    for (index, mount) in config.mounts.iter().enumerate() {
        check_mount(mount, &format!("mounts[{index}]"), notes);
    }
    check_mounts_per_group(config, notes);
    check_restart(config, notes);
    check_compression(config, notes);
    check_conversion(config, notes);
}

fn services(config: &Config) -> impl Iterator<Item = (&Service, String)> {
    let http = config.http_service.iter().map(|service| (service, "http_service".to_owned()));
    let listed = config.services.iter().enumerate();
    http.chain(listed.map(|(index, service)| (service, format!("services[{index}]"))))
}

fn check_build(config: &Config, notes: &Notes<'_>) {
    let Some(build) = &config.build else { return };
    let rest = |key: &str| build.rest.contains_key(key);
    let methods = [
        ("the 'image' option", build.image.is_some()),
        ("a buildpack", rest("builder") || rest("buildpacks")),
        ("a Dockerfile", build.dockerfile.is_some() || build.build_target.is_some()),
        ("the 'builtin' option", rest("builtin")),
    ];
    let used: Vec<_> = methods.iter().filter(|(_, used)| *used).map(|(name, _)| *name).collect();
    if used.len() > 1 {
        notes.warning("build", format!("more than one build method: {}", used.join(", ")), None);
    }
}

fn check_deploy(config: &Config, notes: &Notes<'_>) {
    let Some(deploy) = &config.deploy else { return };
    check_words(deploy.release_command.as_deref(), "deploy.release_command", notes);
    let Some(strategy) = deploy.strategy.as_deref().filter(|word| !word.is_empty()) else { return };
    if !STRATEGIES.contains(&strategy) {
        let text = format!("unknown strategy '{strategy}'");
        notes.error("deploy.strategy", text, one_of("strategy", &STRATEGIES));
    }
    if strategy == "canary" && !config.mounts.is_empty() {
        let remedy = Some("write strategy = \"rolling\"".to_owned());
        notes.error("deploy.strategy", "canary can not be used with volumes", remedy);
    }
}

fn check_top_level(check: &Check, path: &str, notes: &Notes<'_>) {
    if !matches!(check.kind.as_deref(), Some("http" | "tcp")) {
        let found = check.kind.clone().unwrap_or_default();
        let text = format!("check type '{found}' is neither http nor tcp");
        notes.error(&format!("{path}.type"), text, one_of("type", &["http", "tcp"]));
    }
    if check.interval.is_some_and(|interval| interval < TOP_CHECK_INTERVAL_MIN) {
        let remedy = Some("write interval = \"2s\" or more".to_owned());
        notes.error(&format!("{path}.interval"), "is below 2 seconds", remedy);
    }
    if check.timeout.is_some_and(|timeout| timeout > CHECK_MAX) {
        let remedy = Some("write timeout = \"60s\" or less".to_owned());
        notes.error(&format!("{path}.timeout"), "is above 60 seconds", remedy);
    }
}

fn check_service(config: &Config, service: &Service, path: &str, notes: &Notes<'_>) {
    if service.processes.is_empty() && !config.processes.is_empty() {
        let count = config.processes.len();
        let text = format!("the service names no processes, but the app has {count} of them");
        let remedy = Some(format!("write processes = [\"{}\"]", config.default_group()));
        notes.error(&format!("{path}.processes"), text, remedy);
    }
    check_group_names(config, &service.processes, path, notes);
    let stops = service.auto_stop_machines.is_some_and(|word| word != AutoStop::Off);
    if stops && service.auto_start_machines == Some(false) {
        let text = "Machines stop when idle and no request starts them again";
        let remedy = Some("write auto_start_machines = true".to_owned());
        notes.warning(&format!("{path}.auto_start_machines"), text, remedy);
    }
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
        notes.error(&format!("{path}.processes"), text, remedy);
    }
}

/// The platform raises and lowers these; that is worth a warning only.
fn check_clamped(check: &Check, path: &str, notes: &Notes<'_>) {
    let grace = check.grace_period.filter(|grace| !grace.is_zero());
    let values =
        [("interval", check.interval), ("timeout", check.timeout), ("grace_period", grace)];
    for (key, value) in values {
        let Some(value) = value else { continue };
        if value < CHECK_MIN {
            notes.warning(&format!("{path}.{key}"), "is below 1 second and raised to it", None);
        } else if value > CHECK_MAX {
            notes.warning(&format!("{path}.{key}"), "is above 1 minute and lowered to it", None);
        }
    }
}

/// Words and numbers that flyctl leaves to its server.
fn check_service_words(service: &Service, path: &str, notes: &Notes<'_>) {
    let protocol = service.protocol.as_deref().unwrap_or_default();
    if !matches!(protocol, "" | "tcp" | "udp") {
        let text = format!("unknown protocol '{protocol}'");
        notes.error(&format!("{path}.protocol"), text, one_of("protocol", &["tcp", "udp"]));
    }
    // Zero means that the key is missing, which flyctl's own old files have.
    if service.internal_port != 0 {
        check_port(Some(service.internal_port), &format!("{path}.internal_port"), notes);
    } else if path == "http_service" || !service.ports.is_empty() {
        let remedy = Some("write internal_port = 8080".to_owned());
        notes.warning(&format!("{path}.internal_port"), "is missing, so nothing answers", remedy);
    }
    for (index, port) in service.ports.iter().enumerate() {
        check_port_words(port, &format!("{path}.ports[{index}]"), notes);
    }
    check_limits(service, path, notes);
    let ranges = [
        ("auto_stop_after", service.auto_stop_after, AUTO_STOP_AFTER, "100ms to 720h"),
        ("start_timeout", service.start_timeout, START_TIMEOUT, "1s to 1h"),
    ];
    for (key, value, (min, max), range) in ranges {
        if value.is_some_and(|value| value < min || max < value) {
            let remedy = Some(format!("write a duration of {range}"));
            notes.error(&format!("{path}.{key}"), "is out of range", remedy);
        }
    }
}

fn check_port_words(port: &Port, path: &str, notes: &Notes<'_>) {
    check_port(port.port, &format!("{path}.port"), notes);
    check_port(port.start_port.filter(|port| *port != 0), &format!("{path}.start_port"), notes);
    check_port(port.end_port, &format!("{path}.end_port"), notes);
    if let (Some(start), Some(end)) = (port.start_port, port.end_port)
        && end < start
    {
        let text = format!("the range ends ({end}) before it starts ({start})");
        notes.error(&format!("{path}.end_port"), text, Some("swap the two".to_owned()));
    }
    for handler in &port.handlers {
        if !HANDLERS.contains(&handler.as_str()) {
            let text = format!("unknown handler '{handler}'");
            let remedy = Some(format!("use {}", HANDLERS.join(", ")));
            notes.error(&format!("{path}.handlers"), text, remedy);
        }
    }
}

fn check_port(port: Option<i64>, path: &str, notes: &Notes<'_>) {
    let Some(port) = port else { return };
    if !(1..=65535).contains(&port) {
        let remedy = Some("write a port from 1 to 65535".to_owned());
        notes.error(path, format!("port {port} is out of range"), remedy);
    }
}

fn check_limits(service: &Service, path: &str, notes: &Notes<'_>) {
    if service.min_machines_running.is_some_and(|count| count < 0) {
        let remedy = Some("write 0 or more".to_owned());
        notes.error(&format!("{path}.min_machines_running"), "is negative", remedy);
    }
    let Some(limits) = &service.concurrency else { return };
    let kind = limits.kind.as_deref().unwrap_or_default();
    if !matches!(kind, "" | "connections" | "requests") {
        let text = format!("unknown concurrency type '{kind}'");
        let remedy = one_of("type", &["requests", "connections"]);
        notes.error(&format!("{path}.concurrency.type"), text, remedy);
    }
    for (key, value) in [("soft_limit", limits.soft_limit), ("hard_limit", limits.hard_limit)] {
        if value.is_some_and(|value| value < 0) {
            let remedy = Some("write 0 or more".to_owned());
            notes.error(&format!("{path}.concurrency.{key}"), "is negative", remedy);
        }
    }
    if let (Some(soft), Some(hard)) = (limits.soft_limit, limits.hard_limit)
        && hard > 0
        && hard < soft
    {
        let text = format!("soft_limit {soft} is above hard_limit {hard} and lowered to it");
        notes.warning(&format!("{path}.concurrency.soft_limit"), text, None);
    }
}

/// Two services of one group can not share an external port.
fn check_duplicate_ports(config: &Config, notes: &Notes<'_>) {
    for group in config.groups() {
        let mut seen: BTreeSet<(String, i64)> = BTreeSet::new();
        for (index, service) in config.services_of(&group).iter().enumerate() {
            let udp = service.protocol.as_deref() == Some("udp");
            let protocol = if udp { "udp" } else { "tcp" };
            for port in service.ports.iter().filter_map(|port| port.port) {
                if !seen.insert((protocol.to_owned(), port)) {
                    let offset = usize::from(config.http_service.is_some());
                    let path = format!("services[{}].ports", index.saturating_sub(offset));
                    let text = format!("another service of group '{group}' has port {port} too");
                    notes.warning(&path, text, Some("the first one gets it".to_owned()));
                }
            }
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
    if command.is_some_and(|command| split_words(command).is_none()) {
        let remedy = Some("close it".to_owned());
        notes.error(path, "can not be split into words: a quote is open", remedy);
    }
}

fn check_mount(mount: &Mount, path: &str, notes: &Notes<'_>) {
    if let Some(text) = mount.initial_size.as_deref().filter(|text| !text.is_empty()) {
        check_size(text, "initial_size", None, path, notes);
    }
    if mount.snapshot_retention.is_some_and(|days| !(1..=60).contains(&days)) {
        let remedy = Some("write 1 to 60 days".to_owned());
        notes.error(&format!("{path}.snapshot_retention"), "is out of range", remedy);
    }
    let threshold = mount.auto_extend_size_threshold.unwrap_or(0);
    let increment = mount.auto_extend_size_increment.as_deref().unwrap_or_default();
    let limit = mount.auto_extend_size_limit.as_deref().unwrap_or_default();
    if threshold == 0 && increment.is_empty() && limit.is_empty() {
        return;
    }
    if !(50..=99).contains(&threshold) {
        let remedy = Some("write 50 to 99 percent".to_owned());
        notes.error(&format!("{path}.auto_extend_size_threshold"), "is out of range", remedy);
    }
    check_size(increment, "auto_extend_size_increment", Some(100), path, notes);
    if !limit.is_empty() {
        check_size(limit, "auto_extend_size_limit", Some(500), path, notes);
    }
}

fn check_size(text: &str, key: &str, max: Option<u32>, path: &str, notes: &Notes<'_>) {
    let size = size::volume_gb(text);
    let fine = size.is_some_and(|gb| 1 <= gb && max.is_none_or(|max| gb <= max));
    if !fine {
        let range = max.map_or("1gb or more".to_owned(), |max| format!("1gb to {max}gb"));
        let remedy = Some(format!("write {key} = \"1gb\", of {range}"));
        notes.error(
            &format!("{path}.{key}"),
            format!("'{text}' is not a size it can have"),
            remedy,
        );
    }
}

fn check_mounts_per_group(config: &Config, notes: &Notes<'_>) {
    for group in config.groups() {
        let mounts = config.mounts.iter().filter(|mount| match mount.processes.is_empty() {
            true => group == config.default_group(),
            false => mount.processes.contains(&group),
        });
        if mounts.count() > 1 {
            let text = format!("group '{group}' has more than one mount");
            notes.error("mounts", text, Some("keep one for each group".to_owned()));
        }
    }
}

fn check_restart(config: &Config, notes: &Notes<'_>) {
    for (index, restart) in config.restart.iter().enumerate() {
        let path = format!("restart[{index}]");
        let policy = restart.policy.as_deref().unwrap_or_default();
        if !matches!(policy, "always" | "never" | "on-failure") {
            let remedy = one_of("policy", &["always", "never", "on-failure"]);
            notes.error(&format!("{path}.policy"), format!("unknown policy '{policy}'"), remedy);
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
        notes.error("build.compression", format!("unknown compression '{word}'"), remedy);
    }
    if let Some(level) = build.rest.get("compression_level").and_then(|value| value.as_i64())
        && !(0..=9).contains(&level)
    {
        let remedy = Some("write 0 to 9".to_owned());
        notes.error("build.compression_level", "is out of range", remedy);
    }
}

/// Problems that flyctl finds only while it deploys; told at once here (compat section 8).
fn check_conversion(config: &Config, notes: &Notes<'_>) {
    for group in config.groups() {
        if let Err(error) = config.machine_config(&group) {
            let key = error.key(config);
            // A command that does not split has its own message already.
            if !key.starts_with("processes.") {
                notes.error(&key, error.to_string(), None);
            }
        }
    }
}

fn one_of(key: &str, words: &[&str]) -> Option<String> {
    Some(format!("write {key} = \"{}\"", words.join("\", \"")))
}
