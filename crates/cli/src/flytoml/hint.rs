//! Hints: what flyctl lets pass without a word and what then does something else than was meant. A hint
//! names the right form and changes neither verdict nor exit code (compat section 9).

use super::config::{AutoStop, Config, Service};
use super::problem::Level;
use super::section::Notes;
use super::strict;
use super::tree::{Map, Node, Tree};

/// Leftovers of the old platform that its tools wrote into many files; they never did harm.
const LEFTOVERS: [&str; 7] = [
    "script_checks",
    "restart_limit",
    "allowed_public_ports",
    "private_network",
    "enable_6pn",
    "kill_timeout",
    "metrics_port",
];

/// Keys that are written often and do not exist, by their path without indexes, and what to write.
const INVENTED: [(&str, &str); 27] = [
    ("http_services", "write [http_service], one table"),
    ("https_service", "write [http_service]; it serves https on port 443"),
    ("http", "write [http_service] with internal_port"),
    ("service", "write [[services]]"),
    ("http_service.port", "write internal_port"),
    (
        "http_service.ports",
        "remove it: [http_service] has ports 80 and 443; others go to [[services.ports]]",
    ),
    ("http_service.http_checks", "write [[http_service.checks]]"),
    ("http_service.tcp_checks", "write [[services]] with [[services.tcp_checks]]"),
    ("http_service.protocol", "remove it, or write [[services]] with protocol"),
    ("http_service.max_machines_running", MACHINE_COUNT),
    ("services.max_machines_running", MACHINE_COUNT),
    ("services.checks", "write [[services.http_checks]] or [[services.tcp_checks]]"),
    ("services.auto_machine_stop", "write auto_stop_machines"),
    ("services.auto_machine_start", "write auto_start_machines"),
    ("services.min_machine_running", "write min_machines_running"),
    ("services.ports.internal_port", "write internal_port in [[services]]"),
    ("autoscaling", SCALING),
    ("scale", SCALING),
    ("scaling", SCALING),
    ("resources", "write [[vm]] with cpus, cpu_kind and memory"),
    ("health_checks", "write [[http_service.checks]] with path"),
    ("healthcheck", "write [[http_service.checks]] with path"),
    ("volumes", "write [[mounts]] with source and destination"),
    ("cron", "run the job in a process group of its own, under [processes]"),
    ("deploy.strategies", "write strategy = \"rolling\" in [deploy]"),
    ("build.context", "remove it: the context is the directory that is deployed"),
    ("build.ignore_file", "write ignorefile"),
];
const MACHINE_COUNT: &str = "remove it: the number of Machines is set with `fly scale count`";
const SCALING: &str = "write auto_stop_machines, auto_start_machines and min_machines_running in \
                       [http_service]; the number of Machines is set with `fly scale count`";

/// Hints about keys, which also a file of the wrong shape gets.
pub(crate) fn about_keys(untouched: &Map, notes: &Notes<'_>) {
    let unknown = notes.unknown.borrow().clone();
    for path in &unknown {
        about_unknown(path, notes);
    }
    about_forms(untouched, notes);
}

fn hint(notes: &Notes<'_>, path: &str, text: impl Into<String>, remedy: impl Into<String>) {
    notes.add(Level::Hint, path, text, Some(remedy.into()));
}

fn about_unknown(path: &str, notes: &Notes<'_>) {
    const TEXT: &str = "is not known and has no effect";
    let plain = without_indexes(path);
    let (table, key) = plain.rsplit_once('.').unwrap_or(("", &plain));
    let leftover = LEFTOVERS.contains(&key) || plain == "services.tcp_checks.port";
    let moved = plain.starts_with("experimental.") && key == "metrics_path";
    if moved || (leftover && table != "vm") {
        return;
    }
    let invented = INVENTED.iter().find(|(known, _)| *known == plain).map(|(_, form)| *form);
    let remedy = invented.map(str::to_owned).or_else(|| likely_form(table, key));
    notes.add(Level::Hint, path, TEXT, remedy);
}

/// A key of this table in another spelling, or of another table.
fn likely_form(table: &str, key: &str) -> Option<String> {
    let near = |known: &&&str| {
        let distance = distance(&key.to_ascii_lowercase().replace('-', "_"), known);
        distance * 4 <= known.len()
    };
    if let Some(known) = strict::keys_of(table).iter().find(near) {
        return Some(match table {
            "" => format!("write [{known}] or {known}"),
            table => format!("write {known} in [{table}]"),
        });
    }
    if table.is_empty() {
        return None;
    }
    if strict::keys_of("").contains(&key) {
        return Some(format!(
            "move {key} out of [{table}]: what stands below a header belongs to that table, so keys \
             of the file itself stand above the first one"
        ));
    }
    let other = strict::TABLES.iter().find(|other| strict::keys_of(other).contains(&key))?;
    Some(format!("move {key} to [{other}]"))
}

/// How many letters differ.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut before = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = before + usize::from(from != *to);
            before = row[j + 1];
            row[j + 1] = replaced.min(before + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

/// Forms that how-to texts show and that are refused: the error says what is wrong, this what to write.
fn about_forms(root: &Map, notes: &Notes<'_>) {
    if let Some(service) = root.get("http_service").and_then(Tree::as_table) {
        if let Some(checks) = service.get("checks").and_then(Tree::as_table) {
            for check in &checks.0 {
                let path = format!("http_service.checks.{}", check.key);
                let text = "checks of [http_service] have no names";
                hint(notes, &path, text, "write [[http_service.checks]]");
            }
        }
        about_concurrency(service, "http_service", "http_service", notes);
    }
    if let Some(Tree { node: Node::List(services), .. }) = root.get("services") {
        for (index, service) in services.iter().enumerate() {
            let Some(service) = service.as_table() else { continue };
            about_concurrency(service, &format!("services[{index}]"), "services", notes);
        }
    }
}

fn about_concurrency(service: &Map, path: &str, header: &str, notes: &Notes<'_>) {
    if let Some(Tree { node: Node::List(_), .. }) = service.get("concurrency") {
        let remedy = format!("write [{header}.concurrency], one table");
        hint(notes, &format!("{path}.concurrency"), "is a list", remedy);
    }
}

/// Hints about what a valid configuration does.
pub(crate) fn about_meaning(config: &Config, notes: &Notes<'_>) {
    for (service, path) in config.services_with_paths() {
        about_service(service, &path, notes);
    }
    about_one_that_stays_awake(config, notes);
    for name in config.env.keys().filter(|name| name.starts_with("FLY_")) {
        let text = "names that begin with FLY_ are the platform's, which may write over it";
        hint(notes, &format!("env.{name}"), text, "choose another name");
    }
}

fn about_service(service: &Service, path: &str, notes: &Notes<'_>) {
    let stops = service.auto_stop_machines.is_some_and(|word| word != AutoStop::Off);
    if stops && service.auto_start_machines == Some(false) {
        let text = "Machines stop when idle and no request starts them again";
        let remedy = "write auto_start_machines = true";
        hint(notes, &format!("{path}.auto_start_machines"), text, remedy);
    }
    let limits = service.concurrency.clone().unwrap_or_default();
    if let (Some(soft), Some(hard)) = (limits.soft_limit, limits.hard_limit)
        && 0 < hard
        && hard < soft
    {
        let text = format!("hard_limit {hard} is below soft_limit {soft}, which is lowered to it");
        let remedy = format!("write hard_limit = {soft} or more");
        hint(notes, &format!("{path}.concurrency.hard_limit"), text, remedy);
    }
}

/// One service of a group that does not stop Machines keeps all of them awake (AS-39).
fn about_one_that_stays_awake(config: &Config, notes: &Notes<'_>) {
    let stops =
        |service: &Service| service.auto_stop_machines.is_some_and(|word| word != AutoStop::Off);
    for group in config.groups() {
        let services: Vec<_> = config
            .services_with_paths()
            .filter(|(service, _)| config.belongs(&service.processes, &group))
            .collect();
        let Some((_, stopping)) = services.iter().find(|(service, _)| stops(service)) else {
            continue;
        };
        for (_, path) in services.iter().filter(|(service, _)| !stops(service)) {
            let text = format!(
                "this service stops no Machine, so those of group '{group}' never stop, whatever \
                 {stopping} says"
            );
            let remedy = "write auto_stop_machines here too";
            hint(notes, &format!("{path}.auto_stop_machines"), text, remedy);
        }
    }
}

/// The hint for an app that has private addresses only: nobody answers https there (FC-22, LI-01).
pub(crate) fn about_private_app(config: &Config, notes: &Notes<'_>) {
    const TEXT: &str = "the app has private addresses only, where https answers nobody";
    let http = config.http_service.as_ref().filter(|service| service.force_https);
    if http.is_some() {
        hint(notes, "http_service.force_https", TEXT, "write force_https = false");
    }
    for (service, path) in config.services_with_paths() {
        for (index, _) in service.ports.iter().enumerate().filter(|(_, port)| port.force_https) {
            let path = format!("{path}.ports[{index}].force_https");
            hint(notes, &path, TEXT, "write force_https = false");
        }
    }
}

/// `services[0].ports[1].x` as `services.ports.x`.
pub(crate) fn without_indexes(path: &str) -> String {
    let mut plain = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => plain.push(c),
            _ => {}
        }
    }
    plain
}
