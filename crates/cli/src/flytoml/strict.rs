//! What flyctl's strict mode finds: keys that its types do not have, on the patched tree, by their exact
//! names. It does not look inside services, vm, mounts and metrics, whose patched lists escape its walk,
//! and neither do we: a file that passes there passes here (compat section 9).

use super::tree::{Map, Node, Tree};

/// What may stand under a key.
enum Schema {
    /// Anything.
    Free,
    /// A table with these keys.
    Table(&'static [(&'static str, Schema)]),
    /// A list of such tables.
    List(&'static [(&'static str, Schema)]),
    /// A table of such tables by name.
    Named(&'static [(&'static str, Schema)]),
}

use Schema::{Free, List, Named, Table};

const DURATION: Schema = Table(&[("duration", Free)]);

const HTTP_CHECK: &[(&str, Schema)] = &[
    ("interval", DURATION),
    ("timeout", DURATION),
    ("grace_period", DURATION),
    ("method", Free),
    ("path", Free),
    ("protocol", Free),
    ("tls_skip_verify", Free),
    ("tls_server_name", Free),
    ("headers", Free),
];

const TOP_LEVEL_CHECK: &[(&str, Schema)] = &[
    ("port", Free),
    ("type", Free),
    ("interval", DURATION),
    ("timeout", DURATION),
    ("grace_period", DURATION),
    ("method", Free),
    ("path", Free),
    ("protocol", Free),
    ("tls_skip_verify", Free),
    ("tls_server_name", Free),
    ("headers", Free),
    ("processes", Free),
];

const MACHINE_CHECK: &[(&str, Schema)] = &[
    ("command", Free),
    ("image", Free),
    ("entrypoint", Free),
    ("kill_signal", Free),
    ("kill_timeout", DURATION),
];

const VM: &[(&str, Schema)] = &[
    ("size", Free),
    ("memory", Free),
    ("cpu_kind", Free),
    ("cpus", Free),
    ("memory_mb", Free),
    ("max_memory_mb", Free),
    ("gpus", Free),
    ("gpu_kind", Free),
    ("host_dedication_id", Free),
    ("persist_rootfs", Free),
    ("kernel_args", Free),
    ("processes", Free),
];

const HTTP_OPTIONS: &[(&str, Schema)] = &[
    ("compress", Free),
    ("response", Table(&[("headers", Free), ("pristine", Free)])),
    ("h2_backend", Free),
    ("idle_timeout", Free),
    ("headers_read_timeout", Free),
    (
        "replay_cache",
        List(&[
            ("path_prefix", Free),
            ("ttl_seconds", Free),
            ("type", Free),
            ("name", Free),
            ("allow_bypass", Free),
        ]),
    ),
];

const HTTP_SERVICE: &[(&str, Schema)] = &[
    ("internal_port", Free),
    ("force_https", Free),
    ("auto_stop_machines", Free),
    ("auto_start_machines", Free),
    ("min_machines_running", Free),
    // Extensions of Perch.
    ("auto_stop_after", Free),
    ("start_timeout", Free),
    ("processes", Free),
    ("concurrency", Table(&[("type", Free), ("hard_limit", Free), ("soft_limit", Free)])),
    ("tls_options", Table(&[("alpn", Free), ("versions", Free), ("default_self_signed", Free)])),
    ("http_options", Table(HTTP_OPTIONS)),
    ("checks", List(HTTP_CHECK)),
    ("machine_checks", List(MACHINE_CHECK)),
];

const EXPERIMENTAL: &[(&str, Schema)] = &[
    ("cmd", Free),
    ("entrypoint", Free),
    ("exec", Free),
    ("auto_rollback", Free),
    ("enable_consul", Free),
    ("enable_etcd", Free),
    ("lazy_load_images", Free),
    ("attached", Table(&[("secrets", Table(&[("export", Free)]))])),
    ("machine_config", Free),
];

const BUILD: &[(&str, Schema)] = &[
    ("builder", Free),
    ("args", Free),
    ("buildpacks", Free),
    ("image", Free),
    ("settings", Free),
    ("builtin", Free),
    ("dockerfile", Free),
    ("ignorefile", Free),
    ("build-target", Free),
    ("compose", Table(&[("file", Free)])),
    ("compression", Free),
    ("compression_level", Free),
];

const DEPLOY: &[(&str, Schema)] = &[
    ("strategy", Free),
    ("max_unavailable", Free),
    ("wait_timeout", DURATION),
    ("release_command", Free),
    ("release_command_timeout", DURATION),
    ("release_command_vm", Table(VM)),
    ("seed_command", Free),
];

const FILE: &[(&str, Schema)] = &[
    ("guest_path", Free),
    ("local_path", Free),
    ("secret_name", Free),
    ("raw_value", Free),
    ("processes", Free),
];

const STATIC: &[(&str, Schema)] = &[
    ("guest_path", Free),
    ("url_prefix", Free),
    ("tigris_bucket", Free),
    ("index_document", Free),
];

const ALLOW: &[(&str, Schema)] =
    &[("service", Free), ("from", Free), ("methods", Free), ("paths", Free), ("then", Free)];

const ROOT: &[(&str, Schema)] = &[
    ("app", Free),
    ("primary_region", Free),
    ("kill_signal", Free),
    ("kill_timeout", DURATION),
    ("swap_size_mb", Free),
    ("console_command", Free),
    ("experimental", Table(EXPERIMENTAL)),
    ("build", Table(BUILD)),
    ("deploy", Table(DEPLOY)),
    ("env", Free),
    ("processes", Free),
    ("mounts", Free),
    ("http_service", Table(HTTP_SERVICE)),
    ("services", Free),
    ("checks", Named(TOP_LEVEL_CHECK)),
    ("files", List(FILE)),
    ("host_dedication_id", Free),
    ("machine_config", Free),
    ("container", Free),
    ("machine_checks", List(MACHINE_CHECK)),
    ("restart", List(&[("policy", Free), ("retries", Free), ("processes", Free)])),
    ("vm", Free),
    ("statics", List(STATIC)),
    ("metrics", Free),
    // An extension of Perch.
    ("perch", Table(&[("allow", List(ALLOW))])),
];

/// Tables whose keys are often written somewhere else.
pub(crate) const TABLES: [&str; 7] =
    ["http_service", "vm", "mounts", "deploy", "build", "services", "services.ports"];

/// The keys that a table knows, by its path without indexes; none for a table that is not known.
pub(crate) fn keys_of(table: &str) -> Vec<&'static str> {
    let known = match table {
        "" => ROOT,
        "http_service" => HTTP_SERVICE,
        "http_service.checks" | "services.http_checks" => HTTP_CHECK,
        "vm" => VM,
        "deploy" => DEPLOY,
        "build" => BUILD,
        "files" => FILE,
        "statics" => STATIC,
        "experimental" => EXPERIMENTAL,
        "services" => return SERVICE.to_vec(),
        "services.ports" => return PORT.to_vec(),
        "services.tcp_checks" => return vec!["interval", "timeout", "grace_period"],
        "http_service.concurrency" | "services.concurrency" => {
            return vec!["type", "soft_limit", "hard_limit"];
        }
        "perch.allow" => ALLOW,
        "mounts" => return MOUNT.to_vec(),
        "metrics" => return vec!["port", "path", "https", "processes"],
        _ if table.starts_with("checks.") => TOP_LEVEL_CHECK,
        _ => &[],
    };
    known.iter().map(|(key, _)| *key).collect()
}

const SERVICE: [&str; 14] = [
    "protocol",
    "internal_port",
    "auto_stop_machines",
    "auto_start_machines",
    "min_machines_running",
    "auto_stop_after",
    "start_timeout",
    "first_byte",
    "ports",
    "concurrency",
    "tcp_checks",
    "http_checks",
    "machine_checks",
    "processes",
];
const PORT: [&str; 8] = [
    "port",
    "start_port",
    "end_port",
    "handlers",
    "force_https",
    "tls_options",
    "http_options",
    "proxy_proto_options",
];
const MOUNT: [&str; 9] = [
    "source",
    "destination",
    "initial_size",
    "snapshot_retention",
    "scheduled_snapshots",
    "auto_extend_size_threshold",
    "auto_extend_size_increment",
    "auto_extend_size_limit",
    "processes",
];

/// The keys of a patched file that are not known, in its order.
pub(crate) fn unknown(root: &Map) -> Vec<String> {
    let mut unknown = Vec::new();
    keys("", root, ROOT, &mut unknown);
    unknown
}

fn keys(path: &str, map: &Map, known: &[(&str, Schema)], unknown: &mut Vec<String>) {
    for entry in &map.0 {
        let path = match path {
            "" => entry.key.clone(),
            path => format!("{path}.{}", entry.key),
        };
        match known.iter().find(|(key, _)| *key == entry.key) {
            Some((_, schema)) => walk(&path, &entry.value, schema, unknown),
            None => unknown.push(path),
        }
    }
}

fn walk(path: &str, value: &Tree, schema: &Schema, unknown: &mut Vec<String>) {
    match (schema, &value.node) {
        (Table(known), Node::Table(map)) => keys(path, map, known, unknown),
        (List(known), Node::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                if let Node::Table(map) = &item.node {
                    keys(&format!("{path}[{index}]"), map, known, unknown);
                }
            }
        }
        (Named(known), Node::Table(map)) => {
            for entry in &map.0 {
                if let Node::Table(table) = &entry.value.node {
                    keys(&format!("{path}.{}", entry.key), table, known, unknown);
                }
            }
        }
        // A value of the wrong type has no keys to look at.
        (Free | Table(_) | List(_) | Named(_), _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flytoml::tree::parse_toml;

    /// flyctl's own strict test, as compat section 9 tells it.
    #[test]
    fn the_walk_goes_where_flyctls_goes() {
        let text = "[http_machine]\na = 1\n\
            [http_service]\n[[http_service.checks]]\nprocesses = [\"a\"]\n\
            [http_service.concurrency]\nprocesses = [\"a\"]\n\
            [http_service.http_options]\nxyz = 1\nresponse.headers.X = \"free\"\n\
            [[http_service.machine_checks]]\nprocesses = [\"a\"]\ngrace_period = \"1s\"\n\
            [deploy]\nprocesses = [\"a\"]\nrelease_command_vm.cpus = 1\n\
            [checks.a]\nname = \"a\"\n[env]\nfree = \"1\"\n[[vm]]\nswap_size_mb = 1\n\
            [App]\nx = 1\n";
        let map = parse_toml(text).expect("the text is TOML");
        assert_eq!(
            unknown(&map),
            [
                "http_machine",
                "http_service.checks[0].processes",
                "http_service.concurrency.processes",
                "http_service.http_options.xyz",
                "http_service.machine_checks[0].processes",
                "http_service.machine_checks[0].grace_period",
                "deploy.processes",
                "checks.a.name",
                "App",
            ]
        );
    }
}
