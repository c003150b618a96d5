//! What flyctl lets pass and what then cannot run. flyctl leaves it to its server; here `deploy` refuses
//! it, while `config validate` judges as flyctl does and gives a hint (fly-toml section 15, last
//! paragraph).

use super::check::one_of;
use super::config::{Check, Config, Port, Service};
use super::problem::Level;
use super::section::Notes;
use perch_api::wire::{BadHttpOption, HttpOptions};
use serde_json::Value;
use std::collections::BTreeSet;

const HANDLERS: [&str; 4] = ["http", "tls", "pg_tls", "proxy_proto"];

/// Notes everything in a valid configuration that cannot run.
pub(crate) fn check(config: &Config, notes: &Notes<'_>) {
    for (service, path) in config.services_with_paths() {
        check_service(service, &path, notes);
    }
    for (name, check) in &config.checks {
        check_request(check, &format!("checks.{name}"), notes);
    }
    check_duplicate_ports(config, notes);
    check_mounts_per_group(config, notes);
    if config.compose_file().is_some_and(|file| file.is_file()) {
        let remedy = "write one [processes] group for each of its services";
        refuse(notes, "build.compose", "compose files are not run here", remedy);
    }
}

fn refuse(notes: &Notes<'_>, path: &str, text: impl Into<String>, remedy: impl Into<String>) {
    notes.add(Level::Refused, path, text, Some(remedy.into()));
}

fn check_service(service: &Service, path: &str, notes: &Notes<'_>) {
    let protocol = service.protocol.as_deref().unwrap_or_default();
    if !matches!(protocol, "" | "tcp" | "udp") {
        let text = format!("unknown protocol '{protocol}'");
        let remedy = one_of("protocol", &["tcp", "udp"]);
        notes.add(Level::Refused, &format!("{path}.protocol"), text, remedy);
    }
    // Zero means that the key is missing, which flyctl's own old files have.
    if service.internal_port != 0 {
        check_port(Some(service.internal_port), &format!("{path}.internal_port"), notes);
    } else if path == "http_service" || !service.ports.is_empty() {
        let remedy = Some("write internal_port = 8080".to_owned());
        let text = "is missing, so nothing answers";
        notes.add(Level::Hint, &format!("{path}.internal_port"), text, remedy);
    }
    check_http_options(service.http_options.as_ref(), path, notes);
    for (index, port) in service.ports.iter().enumerate() {
        check_external_port(port, &format!("{path}.ports[{index}]"), notes);
    }
    check_numbers(service, path, notes);
    let key = if path == "http_service" { "checks" } else { "http_checks" };
    for (index, check) in service.http_checks.iter().enumerate() {
        check_request(check, &format!("{path}.{key}[{index}]"), notes);
    }
}

/// What a health check asks.
fn check_request(check: &Check, path: &str, notes: &Notes<'_>) {
    match check.protocol.as_deref() {
        None | Some("" | "http") => {}
        Some("https") => {
            let remedy = "use protocol = \"http\", or a check of type tcp";
            refuse(notes, &format!("{path}.protocol"), "checks by https are not there", remedy);
        }
        Some(other) => {
            let text = format!("unknown protocol '{other}'");
            refuse(notes, &format!("{path}.protocol"), text, "use protocol = \"http\"");
        }
    }
    let own = check.path.as_deref().unwrap_or_default();
    if !own.is_empty() && !own.starts_with('/') {
        let remedy = format!("write path = \"/{own}\"");
        refuse(notes, &format!("{path}.path"), "does not begin with a slash", remedy);
    }
}

fn check_external_port(port: &Port, path: &str, notes: &Notes<'_>) {
    check_port(port.port, &format!("{path}.port"), notes);
    check_port(port.start_port.filter(|port| *port != 0), &format!("{path}.start_port"), notes);
    check_port(port.end_port, &format!("{path}.end_port"), notes);
    if let (Some(start), Some(end)) = (port.start_port, port.end_port)
        && end < start
    {
        let text = format!("the range ends ({end}) before it starts ({start})");
        refuse(notes, &format!("{path}.end_port"), text, "swap the two");
    }
    for handler in port.handlers.iter().filter(|handler| !HANDLERS.contains(&handler.as_str())) {
        let text = format!("unknown handler '{handler}'");
        let remedy = format!("use {}", HANDLERS.join(", "));
        refuse(notes, &format!("{path}.handlers"), text, remedy);
    }
    check_proxy_proto(port, path, notes);
    check_http_options(port.http_options.as_ref(), path, notes);
}

/// PX-21.
fn check_http_options(options: Option<&Value>, path: &str, notes: &Notes<'_>) {
    let Some(options) = options else { return };
    for BadHttpOption { key, text, remedy } in HttpOptions::read(options).1 {
        refuse(notes, &format!("{path}.http_options.{key}"), text, remedy);
    }
}

/// PX-84.
fn check_proxy_proto(port: &Port, path: &str, notes: &Notes<'_>) {
    let version = port.proxy_proto_options.as_ref().and_then(|options| options.get("version"));
    let Some(version) = version.filter(|version| !["", "v1", "v2"].iter().any(|it| version == it))
    else {
        return;
    };
    let text = format!("unknown version {version} of the PROXY protocol");
    let remedy = "write version = \"v2\" for the binary form, or \"v1\"";
    refuse(notes, &format!("{path}.proxy_proto_options.version"), text, remedy);
}

fn check_port(port: Option<i64>, path: &str, notes: &Notes<'_>) {
    if let Some(port) = port.filter(|port| !(1..=65535).contains(port)) {
        let text = format!("port {port} is out of range");
        refuse(notes, path, text, "write a port from 1 to 65535");
    }
}

fn check_numbers(service: &Service, path: &str, notes: &Notes<'_>) {
    let limits = service.concurrency.clone().unwrap_or_default();
    let kind = limits.kind.as_deref().unwrap_or_default();
    if !matches!(kind, "" | "connections" | "requests") {
        let text = format!("unknown concurrency type '{kind}'");
        let remedy = one_of("type", &["requests", "connections"]);
        notes.add(Level::Refused, &format!("{path}.concurrency.type"), text, remedy);
    }
    for (key, value) in [
        ("min_machines_running", service.min_machines_running),
        ("concurrency.soft_limit", limits.soft_limit),
        ("concurrency.hard_limit", limits.hard_limit),
    ] {
        if value.is_some_and(|value| value < 0) {
            refuse(notes, &format!("{path}.{key}"), "is negative", "write 0 or more");
        }
    }
}

/// Two services of one group can not share an external port; the first one gets it.
fn check_duplicate_ports(config: &Config, notes: &Notes<'_>) {
    for group in config.groups() {
        let mut seen: BTreeSet<(bool, i64)> = BTreeSet::new();
        let services = config.services_with_paths();
        for (service, path) in services.filter(|(s, _)| config.belongs(&s.processes, &group)) {
            let udp = service.protocol.as_deref() == Some("udp");
            let web = [Some(80), Some(443)];
            let listed: Vec<_> = service.ports.iter().map(|port| port.port).collect();
            let ports = if path == "http_service" { web.to_vec() } else { listed };
            for port in ports.into_iter().flatten().filter(|port| !seen.insert((udp, *port))) {
                let text = format!("another service of group '{group}' has port {port} too");
                let remedy = Some("the first one gets it; remove one".to_owned());
                notes.add(Level::Hint, &format!("{path}.ports"), text, remedy);
            }
        }
    }
}

fn check_mounts_per_group(config: &Config, notes: &Notes<'_>) {
    for group in config.groups() {
        let mounts = config.mounts.iter().filter(|m| config.belongs(&m.processes, &group));
        if mounts.count() > 1 {
            let text = format!("group '{group}' has more than one mount");
            refuse(notes, "mounts", text, "keep one for each group");
        }
    }
}
