//! A Machine in JSON as flyctl prints it: keys in the order of its structures, what they leave out left
//! out, maps sorted. What flyctl does not know follows in the order in which it was stored.

use crate::json::Json;
use perch_api::wire::{Machine, MachineConfig};

/// How a value is laid out.
#[derive(Debug)]
enum Shape {
    /// As it is.
    Any,
    /// An object for any keys, which are sorted.
    Map(&'static Shape),
    List(&'static Shape),
    /// An object with keys in this order.
    Struct(&'static [Field]),
}

type Field = (&'static str, Leave, &'static Shape);

/// When a field is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// When it is empty, zero or false.
    Empty,
    /// When it is null: a pointer in Go.
    Null,
    /// Never; this stands for what is absent.
    Never(&'static str),
}

use Leave::{Empty, Never, Null};
use Shape::{Any, List, Map, Struct};

static MACHINE: Shape = Struct(&[
    ("id", Empty, &Any),
    ("name", Empty, &Any),
    ("state", Empty, &Any),
    ("region", Empty, &Any),
    ("image_ref", Never("{}"), &IMAGE),
    ("instance_id", Empty, &Any),
    ("version", Empty, &Any),
    ("private_ip", Empty, &Any),
    ("created_at", Empty, &Any),
    ("updated_at", Empty, &Any),
    ("config", Null, &CONFIG),
    ("events", Empty, &List(&EVENT)),
    ("checks", Empty, &List(&CHECK)),
    ("nonce", Empty, &Any),
    ("host_status", Empty, &Any),
    ("cordoned", Never("false"), &Any),
    ("containers", Empty, &Any),
    ("incomplete_config", Null, &CONFIG),
]);

static IMAGE: Shape = Struct(&[
    ("registry", Empty, &Any),
    ("repository", Empty, &Any),
    ("tag", Empty, &Any),
    ("digest", Empty, &Any),
    ("labels", Empty, &Map(&Any)),
]);

static EVENT: Shape = Struct(&[
    ("type", Empty, &Any),
    ("status", Empty, &Any),
    ("request", Null, &REQUEST),
    ("source", Empty, &Any),
    ("timestamp", Empty, &Any),
]);

static REQUEST: Shape = Struct(&[
    ("exit_event", Null, &EXIT),
    ("MonitorEvent", Null, &Struct(&[("exit_event", Null, &EXIT)])),
    ("restart_count", Empty, &Any),
]);

static EXIT: Shape = Struct(&[
    ("exit_code", Empty, &Any),
    ("guest_exit_code", Empty, &Any),
    ("guest_signal", Empty, &Any),
    ("oom_killed", Empty, &Any),
    ("requested_stop", Empty, &Any),
    ("restarting", Empty, &Any),
    ("signal", Empty, &Any),
    ("exited_at", Never("\"0001-01-01T00:00:00Z\""), &Any),
]);

static CHECK: Shape = Struct(&[
    ("name", Empty, &Any),
    ("status", Empty, &Any),
    ("output", Empty, &Any),
    ("updated_at", Null, &Any),
]);

static CONFIG: Shape = Struct(&[
    ("env", Empty, &Map(&Any)),
    ("init", Never("{}"), &INIT),
    ("guest", Null, &GUEST),
    ("metadata", Empty, &Map(&Any)),
    ("mounts", Empty, &List(&MOUNT)),
    ("services", Empty, &List(&SERVICE)),
    (
        "metrics",
        Null,
        &Struct(&[("port", Empty, &Any), ("path", Empty, &Any), ("https", Empty, &Any)]),
    ),
    ("checks", Empty, &Map(&CHECK_CONFIG)),
    ("statics", Empty, &List(&STATIC)),
    ("image", Empty, &Any),
    ("files", Empty, &List(&FILE)),
    ("schedule", Empty, &Any),
    ("auto_destroy", Empty, &Any),
    ("restart", Null, &Struct(&[("policy", Empty, &Any), ("max_retries", Empty, &Any)])),
    ("dns", Null, &Any),
    ("processes", Empty, &Any),
    ("standbys", Empty, &Any),
    ("stop_config", Null, &Struct(&[("timeout", Null, &Any), ("signal", Null, &Any)])),
    ("containers", Empty, &Any),
    ("volumes", Empty, &Any),
    ("rootfs", Null, &Any),
    ("cache_drive", Null, &Any),
    ("spot", Null, &Any),
    ("size", Empty, &Any),
    ("disable_machine_autostart", Null, &Any),
]);

static INIT: Shape = Struct(&[
    ("exec", Empty, &Any),
    ("entrypoint", Empty, &Any),
    ("cmd", Empty, &Any),
    ("tty", Empty, &Any),
    ("swap_size_mb", Null, &Any),
    ("kernel_args", Empty, &Any),
]);

static GUEST: Shape = Struct(&[
    ("cpu_kind", Empty, &Any),
    ("cpus", Empty, &Any),
    ("memory_mb", Empty, &Any),
    ("max_memory_mb", Empty, &Any),
    ("gpus", Empty, &Any),
    ("gpu_kind", Empty, &Any),
    ("host_dedication_id", Empty, &Any),
    ("persist_rootfs", Empty, &Any),
    ("kernel_args", Empty, &Any),
]);

static MOUNT: Shape = Struct(&[
    ("encrypted", Empty, &Any),
    ("path", Empty, &Any),
    ("size_gb", Empty, &Any),
    ("volume", Empty, &Any),
    ("name", Empty, &Any),
    ("extend_threshold_percent", Empty, &Any),
    ("add_size_gb", Empty, &Any),
    ("size_gb_limit", Empty, &Any),
]);

static SERVICE: Shape = Struct(&[
    ("protocol", Empty, &Any),
    ("internal_port", Empty, &Any),
    ("autostop", Null, &Any),
    ("autostart", Null, &Any),
    ("min_machines_running", Null, &Any),
    ("ports", Empty, &List(&PORT)),
    ("checks", Empty, &List(&CHECK_CONFIG)),
    ("concurrency", Null, &CONCURRENCY),
    ("force_instance_key", Never("null"), &Any),
    ("force_instance_description", Null, &Any),
]);

static CONCURRENCY: Shape =
    Struct(&[("type", Empty, &Any), ("hard_limit", Empty, &Any), ("soft_limit", Empty, &Any)]);

static PORT: Shape = Struct(&[
    ("port", Null, &Any),
    ("start_port", Null, &Any),
    ("end_port", Null, &Any),
    ("handlers", Empty, &Any),
    ("force_https", Empty, &Any),
    ("tls_options", Null, &TLS),
    ("http_options", Null, &HTTP),
    ("proxy_proto_options", Null, &Struct(&[("version", Empty, &Any)])),
]);

static TLS: Shape = Struct(&[
    ("alpn", Empty, &Any),
    ("versions", Empty, &Any),
    ("default_self_signed", Null, &Any),
]);

static HTTP: Shape = Struct(&[
    ("compress", Null, &Any),
    ("response", Null, &Struct(&[("headers", Empty, &Map(&Any)), ("pristine", Null, &Any)])),
    ("h2_backend", Null, &Any),
    ("idle_timeout", Null, &Any),
    ("headers_read_timeout", Null, &Any),
    ("replay_cache", Empty, &Any),
]);

static CHECK_CONFIG: Shape = Struct(&[
    ("port", Null, &Any),
    ("type", Null, &Any),
    ("kind", Null, &Any),
    ("interval", Null, &Any),
    ("timeout", Null, &Any),
    ("grace_period", Null, &Any),
    ("method", Null, &Any),
    ("path", Null, &Any),
    ("protocol", Null, &Any),
    ("tls_skip_verify", Null, &Any),
    ("tls_server_name", Null, &Any),
    ("headers", Empty, &List(&Struct(&[("name", Empty, &Any), ("values", Empty, &Any)]))),
]);

static STATIC: Shape = Struct(&[
    ("guest_path", Never("\"\""), &Any),
    ("url_prefix", Never("\"\""), &Any),
    ("tigris_bucket", Never("\"\""), &Any),
    ("index_document", Never("\"\""), &Any),
]);

static FILE: Shape = Struct(&[
    ("guest_path", Empty, &Any),
    ("raw_value", Null, &Any),
    ("secret_name", Null, &Any),
    ("image_config", Null, &Any),
    ("mode", Empty, &Any),
]);

/// The Machine, in flyctl's form.
pub(in crate::command) fn machine(machine: &Machine) -> serde_json::Result<Json> {
    Ok(MACHINE.lay_out(Json::of(machine)?))
}

/// Its config alone.
pub(super) fn config(config: &MachineConfig) -> serde_json::Result<Json> {
    Ok(CONFIG.lay_out(Json::of(config)?))
}

impl Shape {
    fn lay_out(&self, value: Json) -> Json {
        match (self, value) {
            (Map(inner), Json::Object(mut entries)) => {
                entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                let entry = |(key, value)| (key, inner.lay_out(value));
                Json::Object(entries.into_iter().map(entry).collect())
            }
            (List(inner), Json::List(items)) => {
                Json::List(items.into_iter().map(|item| inner.lay_out(item)).collect())
            }
            (Struct(fields), Json::Object(entries)) => lay_out_fields(fields, entries),
            // What is null or of another kind than flyctl expects stays as it is stored.
            (Any | Map(_) | List(_) | Struct(_), value) => value,
        }
    }
}

fn lay_out_fields(fields: &[Field], mut entries: Vec<(String, Json)>) -> Json {
    let mut out = Vec::new();
    for (name, leave, shape) in fields {
        let at = entries.iter().position(|(key, _)| key == name);
        let value = at.map_or_else(Json::null, |at| entries.remove(at).1);
        let value = match leave {
            Empty if value.is_empty() => continue,
            Null if value.is_null() => continue,
            Never(absent) if value.is_null() => Json::Plain((*absent).to_owned()),
            _ => shape.lay_out(value),
        };
        out.push(((*name).to_owned(), value));
    }
    out.extend(entries);
    Json::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out(shape: &Shape, text: &str) -> String {
        let raw: Box<serde_json::value::RawValue> = serde_json::from_str(text).expect(text);
        let value = Json::of(&raw).expect(text);
        serde_json::to_string(&shape.lay_out(value)).expect(text)
    }

    #[test]
    fn known_keys_come_in_flyctls_order_and_unknown_ones_after_them() {
        let config = r#"{"x":12345678901234567890123,"image":"i","env":{"B":"2","A":"1"},"schedule":"",
            "services":[{"auto_stop_after":"5s","autostart":false,"internal_port":80,"protocol":"tcp",
            "ports":[{"force_https":false,"handlers":["http"],"port":80}]}]}"#;
        assert_eq!(
            laid_out(&CONFIG, config),
            r#"{"env":{"A":"1","B":"2"},"init":{},"services":[{"protocol":"tcp","internal_port":80,"autostart":false,"ports":[{"port":80,"handlers":["http"]}],"force_instance_key":null,"auto_stop_after":"5s"}],"image":"i","x":12345678901234567890123}"#
        );
    }

    #[test]
    fn what_go_always_prints_is_there() {
        assert_eq!(laid_out(&MACHINE, "{}"), r#"{"image_ref":{},"cordoned":false}"#);
        let exit = r#"{"oom_killed":false,"exit_code":3}"#;
        assert_eq!(laid_out(&EXIT, exit), r#"{"exit_code":3,"exited_at":"0001-01-01T00:00:00Z"}"#);
    }
}
