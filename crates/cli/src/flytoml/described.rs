//! A file as one object, in the shape in which the reference corpus keeps what flyctl makes of files:
//! verdict, normalised configuration, Machine configuration of each group, kind of public address.

use super::config::{Config, Port};
use super::problem::Problem;
use super::shown::to_json;
use super::{Level, Loaded};
use serde_json::{Map, Value, json};

/// Everything about a file.
pub fn described(loaded: &Loaded) -> Value {
    let shapeless = loaded.problems.iter().any(|problem| problem.level == Level::Shape);
    let config = (!shapeless).then(|| Value::Object(to_json(&loaded.config)));
    let machines = if shapeless { Map::new() } else { machines(&loaded.config) };
    let unknown: Vec<&String> = loaded.strict_unknown.iter().map(|(key, _)| key).collect();
    let why = loaded
        .problems
        .iter()
        .find(|problem| problem.is_error())
        .or_else(|| loaded.problems.iter().find(|problem| problem.level == Level::Warning));
    json!({
        "app": loaded.config.app.clone().unwrap_or_default(),
        "config": config,
        "file": loaded.path.file_name().map(|name| name.to_string_lossy()),
        "ip_type": if shapeless { "" } else { ip_type(&loaded.config) },
        "machines": machines,
        "strict_unknown": unknown,
        "verdict": loaded.verdict().to_string(),
        "why": why.map(Problem::to_string).unwrap_or_default(),
    })
}

/// The Machines of the groups that have some; a group that fails is a problem of the file.
fn machines(config: &Config) -> Map<String, Value> {
    let groups = config.groups().into_iter();
    let machine = |group: String| {
        let machine = config.machine_config(&group).ok()?;
        Some((group, Value::Object(machine)))
    };
    groups.filter_map(machine).collect()
}

/// Which public address the services need (compat section 10): a shared one serves http on 80 and https
/// on 443, nothing else.
fn ip_type(config: &Config) -> &'static str {
    let dedicated = config.services.iter().any(|service| match service.protocol.as_deref() {
        Some("udp") => true,
        Some("tcp") => service.ports.iter().any(needs_own_address),
        _ => false,
    });
    if dedicated { "dedicated" } else { "shared" }
}

fn needs_own_address(port: &Port) -> bool {
    let handlers: Vec<&str> = port.handlers.iter().map(String::as_str).collect();
    has_other_ports(port)
        || (contains(port, 80) && handlers != ["http"])
        || (contains(port, 443) && handlers != ["http", "tls"] && handlers != ["tls", "http"])
}

fn range(port: &Port) -> Option<(i64, i64)> {
    let one = port.start_port.or(port.end_port);
    one.map(|_| (port.start_port.unwrap_or(0), port.end_port.unwrap_or(65535)))
}

fn contains(port: &Port, number: i64) -> bool {
    port.port == Some(number)
        || range(port).is_some_and(|(start, end)| (start..=end).contains(&number))
}

fn has_other_ports(port: &Port) -> bool {
    if port.port.is_some_and(|number| number != 80 && number != 443) {
        return true;
    }
    let Some((start, end)) = range(port) else { return false };
    let inside = |number: i64| (start..=end).contains(&number);
    match end.saturating_sub(start).saturating_add(1) {
        3.. => true,
        2 => !inside(80) || !inside(443),
        1 => !inside(80) && !inside(443),
        _ => false,
    }
}
