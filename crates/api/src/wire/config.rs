//! A Machine's config: exactly what the client sent, with a typed view beside it.
//!
//! flyctl reads configs back, changes a part and sends the whole again, and compares; therefore
//! unknown keys, `null` against absent and the order of keys survive. The view is parsed once, on
//! arrival, so that a config that exists has a valid view.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::allow::{self, Allow};
use super::http_options::{BadHttpOption, HttpOptions};
use super::{
    GoDuration, GuestFile, Schedule, Signal, file, null_default, object, schedule, schema,
    unless_empty,
};

// DESIGN 10: below 100 ms the timer is noise; beyond 30 days nobody means it.
const AUTO_STOP_AFTER: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(30 * 24 * 3600));
const START_TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// How long all keys and values of a Machine's metadata may be together: the proxy is told of them whenever something
/// about the app changes, and Machines set their own.
const METADATA_BYTES_MAX: usize = 16 * 1024;

/// A Machine's config as received, and what we understand of it.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineConfig {
    /// Each key once, in order of arrival.
    raw: Vec<(String, Text)>,
    view: ConfigView,
}

/// The text of one value. As a [`Value`] a long number would be rounded.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct Text(Box<RawValue>);

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Text {
    fn of(value: &Value) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self)
    }
}

/// A config that cannot be accepted: which key, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.{key}: {reason}")]
pub struct BadConfig {
    /// Path of the key, such as `services[0].internal_port`.
    pub key: String,
    /// What is wrong and what to write instead.
    pub reason: String,
}

/// What we understand of a config. Keys that are not here are kept in the raw form only.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigView {
    /// Image reference; never empty.
    pub image: String,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// What to execute instead of the image's own.
    pub init: Init,
    /// Size; `None` when the client sent none.
    pub guest: Option<Guest>,
    /// Metadata, such as `fly_process_group`.
    pub metadata: BTreeMap<String, String>,
    /// Services.
    pub services: Vec<Service>,
    /// Restart policy; `None` = `on-failure`.
    pub restart: Option<Restart>,
    /// How to stop.
    pub stop_config: StopConfig,
    /// How often it is started.
    pub schedule: Option<Schedule>,
    /// Ids of Machines: it is started when one of them fails.
    pub standbys: Vec<String>,
    /// Remove the Machine after its program ends.
    pub auto_destroy: bool,
    /// Files that are written into it before its program starts.
    pub files: Vec<GuestFile>,
    /// Health checks at the top level by name, as received ([`Self::health_checks`]).
    pub checks: Map<String, Value>,
    /// Volumes and where they are mounted.
    pub mounts: Vec<Mount>,
}

/// [`ConfigView::parse`] for the API's description: other keys are kept and not looked at.
#[derive(JsonSchema)]
#[schemars(rename = "MachineConfig")]
#[expect(dead_code, reason = "only its schema is used")]
struct ConfigShape {
    /// Image reference; never empty.
    #[schemars(length(min = 1))]
    image: String,
    /// Environment.
    env: Option<BTreeMap<String, String>>,
    /// What to execute instead of the image's own.
    init: Option<Init>,
    /// Size; filled in in answers.
    guest: Option<Guest>,
    /// Metadata, such as `fly_process_group`.
    metadata: Option<BTreeMap<String, String>>,
    /// Services.
    services: Option<Vec<Service>>,
    /// Restart policy; absent = `on-failure`.
    restart: Option<Restart>,
    /// How to stop.
    stop_config: Option<StopConfig>,
    /// Start it once in each period, at a time of its own, if it does not run.
    schedule: Option<Schedule>,
    /// Ids of Machines of the app: it is started when one of them fails for good.
    standbys: Option<Vec<String>>,
    /// Remove the Machine after its program ends.
    auto_destroy: Option<bool>,
    /// Files that are written into it before its program starts.
    files: Option<Vec<GuestFile>>,
    /// Health checks by name.
    #[schemars(extend("maxProperties" = 20))]
    checks: Option<super::check::Named>,
    /// A volume and where it is mounted; at most one.
    #[schemars(length(max = 1))]
    mounts: Option<Vec<MountShape>>,
}

/// [`Mount`] for the API's description.
#[derive(JsonSchema)]
#[schemars(rename = "Mount")]
#[expect(dead_code, reason = "only its schema is used")]
struct MountShape {
    /// Id of a volume of the app that no other Machine has, or the name of one.
    volume: Option<String>,
    /// Name of the volume, which counts when there is no id.
    name: Option<String>,
    /// Absolute path in the Machine.
    path: String,
    /// Understood, not acted on.
    extend_threshold_percent: Option<u64>,
    /// Understood, not acted on.
    add_size_gb: Option<u64>,
    /// Understood, not acted on.
    size_gb_limit: Option<u64>,
}

/// A volume and where it is mounted. What is no text in the config is empty here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Id of the volume, or its name.
    pub volume: String,
    /// Name of the volume.
    pub name: String,
    /// Absolute path in the Machine.
    pub path: String,
}

impl JsonSchema for MachineConfig {
    fn schema_name() -> Cow<'static, str> {
        ConfigShape::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let received = ConfigShape::json_schema(generator);
        if generator.contract().is_deserialize() {
            return received;
        }
        // As it was received, also where we would write it otherwise.
        json_schema!({"$ref": "#/components/schemas/MachineConfig.request", "required": ["guest"]})
    }
}

/// What to execute instead of the image's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Init {
    /// Replaces everything.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub exec: Vec<String>,
    /// Replaces the image's entrypoint.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub entrypoint: Vec<String>,
    /// Replaces the image's command.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub cmd: Vec<String>,
    /// Wants a terminal.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub tty: bool,
}

/// Size of a Machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Guest {
    /// `shared` or `performance`.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub cpu_kind: String,
    /// CPUs.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub cpus: u32,
    /// Memory in MiB.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub memory_mb: u32,
}

impl Default for Guest {
    /// MA-50: shared, 1 CPU, 256 MB.
    fn default() -> Self {
        Self { cpu_kind: "shared".to_owned(), cpus: 1, memory_mb: 256 }
    }
}

/// What to do when a Machine's program ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restart {
    /// When to start again.
    #[serde(default)]
    pub policy: RestartPolicy,
    /// How often within 5 minutes; `None` = 10.
    #[serde(default)]
    pub max_retries: Option<u32>,
}

/// When to start again (MA-20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = schema::words(&["no", "never", "always", "on-failure", "on-fail", ""]))]
pub enum RestartPolicy {
    /// Never.
    #[serde(rename = "no", alias = "never")]
    No,
    /// Whatever the exit code.
    #[serde(rename = "always")]
    Always,
    /// After a failure.
    #[default]
    #[serde(rename = "on-failure", alias = "on-fail", alias = "")]
    OnFailure,
}

/// How to stop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StopConfig {
    /// Signal; `None` = SIGINT.
    #[serde(deserialize_with = "unless_empty")]
    #[schemars(transform = schema::empty_or_null)]
    pub signal: Option<Signal>,
    /// Time until SIGKILL; `None` = 5 s.
    #[serde(deserialize_with = "unless_empty")]
    #[schemars(transform = schema::empty_or_null)]
    pub timeout: Option<GoDuration>,
}

/// What the proxy does with an idle Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Autostop {
    /// Nothing.
    #[default]
    Off,
    /// Stops it.
    Stop,
    /// Suspends it.
    Suspend,
}

impl Serialize for Autostop {
    /// Writes `false`, `true` or `"suspend"`, as flyctl does.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::Stop => serializer.serialize_bool(true),
            Self::Suspend => serializer.serialize_str("suspend"),
        }
    }
}

impl<'de> Deserialize<'de> for Autostop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null | Value::Bool(false) => Ok(Self::Off),
            Value::Bool(true) => Ok(Self::Stop),
            Value::String(text) => match text.as_str() {
                "off" => Ok(Self::Off),
                "stop" => Ok(Self::Stop),
                "suspend" => Ok(Self::Suspend),
                _ => Err(de::Error::custom("autostop must be \"off\", \"stop\" or \"suspend\"")),
            },
            _ => Err(de::Error::custom("autostop must be \"off\", \"stop\" or \"suspend\"")),
        }
    }
}

impl JsonSchema for Autostop {
    fn schema_name() -> Cow<'static, str> {
        "Autostop".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What the proxy does with an idle Machine: true stops it.",
            "enum": [null, false, true, "off", "stop", "suspend"],
        })
    }
}

/// A service that a Machine publishes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// `tcp` or `udp`.
    #[serde(default = "tcp", deserialize_with = "null_tcp")]
    #[schemars(extend("enum" = ["tcp", "udp", "", null]), transform = schema::nullable)]
    pub protocol: String,
    /// Port inside the Machine.
    #[serde(deserialize_with = "port")]
    #[schemars(range(min = 1))]
    pub internal_port: u16,
    /// What to do when idle.
    #[serde(default)]
    pub autostop: Autostop,
    /// Whether a request starts a sleeping Machine; `None` = false here, other than in a
    /// fly.toml (AS-08, AS-03).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// How many stay awake in the primary region; `None` = 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_machines_running: Option<u32>,
    /// Ports outside.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub ports: Vec<Port>,
    /// Limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Idle time before a stop; `None` = the server's default. Extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_stop_after: Option<GoDuration>,
    /// How long a caller is held during a wake; `None` = 60 s. Extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeout: Option<GoDuration>,
    /// Who may call and wake: the first rule that fits decides, and whom none fits is refused; none: whom the network
    /// lets in. Extension.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), transform = schema::nullable)]
    pub allow: Vec<Allow>,
    /// A raw connection wakes nobody before its first byte. Extension.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_false")]
    #[schemars(transform = schema::nullable)]
    pub first_byte: bool,
    /// Health checks, as received ([`ConfigView::health_checks`]): callers come while all pass.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<super::Check>", length(max = 20), transform = schema::nullable)]
    pub checks: Vec<Value>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn tcp() -> String {
    "tcp".to_owned()
}

fn null_tcp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    Ok(if text.is_empty() { tcp() } else { text })
}

/// A port, or a range of ports, outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("anyOf" = [
    {"required": ["port"], "properties": {"port": {"type": "integer", "minimum": 1}}},
    {"required": ["start_port", "end_port"], "properties": {
        "start_port": {"type": "integer", "minimum": 1}, "end_port": {"type": "integer", "minimum": 1},
    }},
]))]
pub struct Port {
    /// One port.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "optional_port")]
    pub port: Option<u16>,
    /// First of a range.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "optional_port")]
    pub start_port: Option<u16>,
    /// Last of a range.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "optional_port")]
    pub end_port: Option<u16>,
    /// `http`, `tls`, `pg_tls`, `proxy_proto`, `edge_http`.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub handlers: Vec<String>,
    /// Redirect plain HTTP.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub force_https: bool,
    /// Of the `http` handler, as received; [`HttpOptions`] says what of them is obeyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_options: Option<Value>,
    /// Of the `proxy_proto` handler, as received; `version` is obeyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_proto_options: Option<Value>,
}

impl Port {
    /// First and last port, both included; `None` when the entry names none.
    pub fn range(&self) -> Option<(u16, u16)> {
        match (self.port, self.start_port, self.end_port) {
            (Some(port), _, _) => Some((port, port)),
            (None, Some(start), Some(end)) if start <= end => Some((start, end)),
            _ => None,
        }
    }

    /// What the `http` handler is asked for, and what of that cannot be done.
    pub fn http(&self) -> (HttpOptions, Vec<BadHttpOption>) {
        self.http_options.as_ref().map_or_else(Default::default, HttpOptions::read)
    }

    /// Whether the PROXY protocol is spoken in its binary form (PX-84).
    pub fn proxy_proto_v2(&self) -> bool {
        let options = self.proxy_proto_options.as_ref();
        options.is_some_and(|options| options.get("version").is_some_and(|it| it == "v2"))
    }
}

/// Limits of a service, per Machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Concurrency {
    /// What is counted.
    #[serde(rename = "type", deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub unit: LimitUnit,
    /// Never more than this; `None` or 0 = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
    /// Prefer others from here on; `None` or 0 = 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_limit: Option<u32>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(transform = schema::words(&["connections", "requests", ""]))]
pub enum LimitUnit {
    /// Connections.
    #[default]
    #[serde(alias = "")]
    Connections,
    /// Requests.
    Requests,
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let number = i64::deserialize(deserializer)?;
    u16::try_from(number)
        .ok()
        .filter(|port| 0 < *port)
        .ok_or_else(|| de::Error::custom(format!("{number} is not a port; use 1 to 65535")))
}

fn optional_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let Some(number) = Option::<i64>::deserialize(deserializer)? else { return Ok(None) };
    if number == 0 {
        return Ok(None);
    }
    port(de::value::I64Deserializer::<D::Error>::new(number)).map(Some)
}

impl MachineConfig {
    /// Refuses files that cannot be written. Apart from the rest, since configs that were stored before somebody looked
    /// have to be read: of those the view has no files.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn check_files(&self) -> Result<(), BadConfig> {
        let Some(value) = self.get("files") else { return Ok(()) };
        files(&Map::from_iter([("files".to_owned(), value)])).map(drop)
    }

    /// Refuses arrays where objects belong, which serde reads as their fields in order; apart from the rest as the
    /// files are.
    ///
    /// # Errors
    /// With the key.
    pub fn check_objects(&self) -> Result<(), BadConfig> {
        self.check_object::<Init>("init")?;
        self.check_object::<Guest>("guest")?;
        self.check_object::<Restart>("restart")?;
        self.check_object::<StopConfig>("stop_config")?;
        self.check_object::<Vec<Service>>("services")?;
        self.check_object::<Vec<GuestFile>>("files")?;
        self.check_object::<Vec<Map<String, Value>>>("mounts")
    }

    fn check_object<T: DeserializeOwned>(&self, key: &str) -> Result<(), BadConfig> {
        let value = self.get(key).unwrap_or_default();
        let read = object::read::<Option<T>, _>(&value);
        read.map(drop).map_err(|error| bad(key, error.to_string()))
    }

    /// Refuses metadata that are too long; apart from the rest as the files are.
    ///
    /// # Errors
    /// With the limit.
    pub fn check_metadata(&self) -> Result<(), BadConfig> {
        let lengths = self.view.metadata.iter().map(|(key, value)| key.len() + value.len());
        if METADATA_BYTES_MAX < lengths.sum() {
            let reason =
                format!("keys and values have more than {METADATA_BYTES_MAX} bytes together");
            return Err(bad("metadata", reason));
        }
        Ok(())
    }

    /// Makes a config of values.
    ///
    /// # Errors
    /// A key that we understand has a value that we cannot accept.
    pub fn new(values: Map<String, Value>) -> Result<Self, BadConfig> {
        let text = |(key, value): (String, Value)| match Text::of(&value) {
            Ok(text) => Ok((key, text)),
            Err(error) => Err(bad(key, error.to_string())),
        };
        Self::of_texts(values.into_iter().map(text).collect::<Result<_, _>>()?)
    }

    fn of_texts(raw: Vec<(String, Text)>) -> Result<Self, BadConfig> {
        let view = ConfigView::parse(&values(&raw)?)?;
        Ok(Self { raw, view })
    }

    /// What we understand of it.
    pub fn view(&self) -> &ConfigView {
        &self.view
    }

    /// The value of a key, if it is there; numbers that no 64 bits hold are rounded.
    pub fn get(&self, key: &str) -> Option<Value> {
        // Every text was read once, when the config was made.
        serde_json::from_str(self.text(key)?.0.get()).ok()
    }

    /// Its keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.raw.iter().map(|(key, _)| key.as_str())
    }

    fn text(&self, key: &str) -> Option<&Text> {
        self.raw.iter().find(|(name, _)| name == key).map(|(_, text)| text)
    }

    /// The same config with one key set, or changed in its place.
    ///
    /// # Errors
    /// As [`MachineConfig::new`].
    pub fn with(&self, key: &str, value: &Value) -> Result<Self, BadConfig> {
        let mut raw = self.raw.clone();
        put(&mut raw, key, Text::of(value).map_err(|error| bad(key, error.to_string()))?);
        Self::of_texts(raw)
    }

    /// The same config with these keys as they are in another one, where that has them.
    ///
    /// # Errors
    /// As [`MachineConfig::new`].
    pub fn keeping(&self, other: &Self, keys: &[&str]) -> Result<Self, BadConfig> {
        let mut raw = self.raw.clone();
        for key in keys {
            if let Some(text) = other.text(key) {
                put(&mut raw, key, text.clone());
            }
        }
        Self::of_texts(raw)
    }

    /// The same config with one metadata entry set, or removed with `None`.
    ///
    /// # Errors
    /// As [`MachineConfig::new`]; when an entry is set, as [`MachineConfig::check_metadata`].
    pub fn with_metadata(&self, key: &str, value: Option<&str>) -> Result<Self, BadConfig> {
        let had = self.get("metadata");
        let mut metadata = had.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
        match value {
            Some(value) => metadata.insert(key.to_owned(), value.into()),
            None => metadata.shift_remove(key),
        };
        let changed = self.with("metadata", &Value::Object(metadata))?;
        // Metadata that were too long already can be shortened one by one.
        if value.is_some() {
            changed.check_metadata()?;
        }
        Ok(changed)
    }

    /// Fills in the guest that flyctl dereferences without a look.
    pub(crate) fn fill_guest(&mut self) {
        if self.view.guest.is_some() {
            return;
        }
        let Guest { cpu_kind, cpus, memory_mb } = Guest::default();
        let guest = json!({"cpu_kind": cpu_kind, "cpus": cpus, "memory_mb": memory_mb});
        if let Ok(text) = Text::of(&guest) {
            put(&mut self.raw, "guest", text);
            self.view.guest = Some(Guest::default());
        }
    }
}

/// Sets a key in its place, or at the end.
fn put(raw: &mut Vec<(String, Text)>, key: &str, text: Text) {
    match raw.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = text,
        None => raw.push((key.to_owned(), text)),
    }
}

fn values(raw: &[(String, Text)]) -> Result<Map<String, Value>, BadConfig> {
    let value = |(key, text): &(String, Text)| match serde_json::from_str(text.0.get()) {
        Ok(value) => Ok((key.clone(), value)),
        Err(error) => Err(bad(key.as_str(), error.to_string())),
    };
    raw.iter().map(value).collect()
}

impl Serialize for MachineConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.raw.iter().map(|(key, text)| (key, text)))
    }
}

impl<'de> Deserialize<'de> for MachineConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = deserializer.deserialize_map(Texts)?;
        Self::of_texts(raw).map_err(de::Error::custom)
    }
}

/// Reads an object without its values; of a key that comes twice the last value counts.
struct Texts;

impl<'de> de::Visitor<'de> for Texts {
    type Value = Vec<(String, Text)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a config, which is an object")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut raw = Vec::new();
        while let Some((key, text)) = map.next_entry::<String, Text>()? {
            put(&mut raw, &key, text);
        }
        Ok(raw)
    }
}

impl ConfigView {
    fn parse(raw: &Map<String, Value>) -> Result<Self, BadConfig> {
        let view = Self {
            image: field(raw, "image")?,
            env: field(raw, "env")?,
            init: field(raw, "init")?,
            guest: field(raw, "guest")?,
            metadata: field(raw, "metadata")?,
            services: services(raw)?,
            restart: field(raw, "restart")?,
            stop_config: field(raw, "stop_config")?,
            schedule: schedule::schedule(raw.get("schedule")),
            standbys: schedule::standbys(raw.get("standbys")),
            auto_destroy: field(raw, "auto_destroy")?,
            files: files(raw).unwrap_or_default(),
            checks: field(raw, "checks")?,
            mounts: field::<Vec<Value>>(raw, "mounts")?.iter().map(mount).collect(),
        };
        if view.image.is_empty() {
            return Err(bad("image", "is required; name the image that the Machine runs"));
        }
        Ok(view)
    }
}

fn files(raw: &Map<String, Value>) -> Result<Vec<GuestFile>, BadConfig> {
    let files: Vec<GuestFile> = field(raw, "files")?;
    file::check(&files)?;
    Ok(files)
}

pub(super) fn bad(key: impl Into<String>, reason: impl Into<String>) -> BadConfig {
    BadConfig { key: key.into(), reason: reason.into() }
}

fn field<T: DeserializeOwned + Default>(
    raw: &Map<String, Value>,
    key: &str,
) -> Result<T, BadConfig> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => T::deserialize(value).map_err(|error| bad(key, error.to_string())),
    }
}

/// Does not refuse: earlier servers accepted and stored anything here.
fn mount(value: &Value) -> Mount {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    Mount { volume: text("volume"), name: text("name"), path: text("path") }
}

fn services(raw: &Map<String, Value>) -> Result<Vec<Service>, BadConfig> {
    let values: Vec<Value> = field(raw, "services")?;
    values.iter().enumerate().map(|(index, value)| service(index, value)).collect()
}

fn service(index: usize, value: &Value) -> Result<Service, BadConfig> {
    let path = format!("services[{index}]");
    let service =
        Service::deserialize(value).map_err(|error| bad(path.as_str(), error.to_string()))?;
    if !matches!(service.protocol.as_str(), "tcp" | "udp") {
        return Err(bad(format!("{path}.protocol"), "must be \"tcp\" or \"udp\""));
    }
    if service.ports.iter().any(|port| port.range().is_none()) {
        return Err(bad(format!("{path}.ports"), "each needs port, or start_port up to end_port"));
    }
    check_length(&path, "auto_stop_after", service.auto_stop_after, AUTO_STOP_AFTER)?;
    check_length(&path, "start_timeout", service.start_timeout, START_TIMEOUT)?;
    allow::check(&path, &service.allow)?;
    Ok(service)
}

fn check_length(
    path: &str,
    key: &str,
    value: Option<GoDuration>,
    (min, max): (Duration, Duration),
) -> Result<(), BadConfig> {
    match value {
        Some(GoDuration(length)) if !(min..=max).contains(&length) => {
            let reason = format!("must be between {} and {}", GoDuration(min), GoDuration(max));
            Err(bad(format!("{path}.{key}"), reason))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MachineConfig, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn check_refused(text: &str, key: &str, hint: &str) {
        let error = parse(text).expect_err(text);
        assert!(error.contains(key) && error.contains(hint), "{text}: {error}");
    }

    #[test]
    fn a_config_that_cannot_be_accepted_names_its_key() {
        check_refused("{}", "config.image", "required");
        check_refused(r#"{"image":""}"#, "config.image", "required");
        check_refused(r#"{"image":7}"#, "config.image", "string");
        check_refused(r#"{"image":"a","env":{"A":1}}"#, "config.env", "string");
        let service = |inner: &str| {
            format!(r#"{{"image":"a","services":[{{"internal_port":80}},{{{inner}}}]}}"#)
        };
        let at = "config.services[1]";
        check_refused(&service(r#""internal_port":0"#), at, "use 1 to 65535");
        check_refused(&service(r#""internal_port":70000"#), at, "70000 is not a port");
        check_refused(&service(r#""internal_port":-1"#), at, "-1 is not a port");
        check_refused(&service(r#""protocol":"tcp""#), at, "internal_port");
        check_refused(
            &service(r#""internal_port":80,"protocol":"sctp""#),
            "services[1].protocol",
            "udp",
        );
        check_refused(
            &service(r#""internal_port":80,"ports":[{"start_port":9,"end_port":8}]"#),
            at,
            "start_port",
        );
        check_refused(&service(r#""internal_port":80,"ports":[{}]"#), at, "port");
        check_refused(&service(r#""internal_port":80,"autostop":"maybe""#), at, "suspend");
        check_refused(
            &service(r#""internal_port":80,"auto_stop_after":"5ms""#),
            "auto_stop_after",
            "720h",
        );
        check_refused(
            &service(r#""internal_port":80,"start_timeout":"2h""#),
            "start_timeout",
            "1h0m0s",
        );
        check_refused(
            r#"{"image":"a","restart":{"policy":"sometimes"}}"#,
            "config.restart",
            "on-failure",
        );
        check_refused(
            r#"{"image":"a","stop_config":{"signal":"SIGSEGV"}}"#,
            "config.stop_config",
            "SIGTERM",
        );
    }

    #[test]
    fn unknown_keys_nulls_and_order_survive() {
        let text =
            r#"{"zeta":null,"image":"a","env":null,"new":{"b":1,"a":[null,1.5]},"guest":null}"#;
        let config = parse(text).expect(text);
        assert_eq!(serde_json::to_string(&config).expect("json"), text);
    }

    #[test]
    fn numbers_that_nobody_here_can_hold_survive_changes_and_the_way_through_other_configs() {
        let kept = r#""new":{"id":12345678901234567890123,"share":1.10,"big":1e30}"#;
        let text = format!(r#"{{"image":"a",{kept}}}"#);
        let config = parse(&text).expect("valid");
        assert_eq!(serde_json::to_string(&config).expect("json"), text);
        let mut changed = config.with_metadata("k", Some("v")).expect("valid");
        changed.fill_guest();
        assert!(serde_json::to_string(&changed).expect("json").contains(kept));
        let other = parse(r#"{"image":"b","new":1}"#).expect("valid");
        let other = other.keeping(&config, &["new", "absent"]).expect("valid");
        assert_eq!(
            serde_json::to_string(&other).expect("json"),
            format!(r#"{{"image":"b",{kept}}}"#)
        );
    }

    #[test]
    fn of_a_key_that_comes_twice_the_last_value_counts() {
        let config = parse(r#"{"image":"a","x":1,"image":"b"}"#).expect("valid");
        assert_eq!(config.view().image, "b");
        assert_eq!(serde_json::to_string(&config).expect("json"), r#"{"image":"b","x":1}"#);
    }

    #[test]
    fn a_changed_key_keeps_its_place() {
        let config = parse(r#"{"env":{},"image":"a","x":1}"#).expect("config");
        let changed = config.with("image", &"b".into()).expect("valid");
        assert_eq!(changed.view().image, "b");
        assert_eq!(
            serde_json::to_string(&changed).expect("json"),
            r#"{"env":{},"image":"b","x":1}"#
        );
    }

    #[test]
    fn the_view_reads_what_flyctl_sends() {
        let config = parse(
            r#"{"image":"a","services":[{"protocol":"tcp","internal_port":8080,"autostop":true,
            "autostart":true,"min_machines_running":0,"ports":[{"port":80,"handlers":["http"]},
            {"port":443,"handlers":["http","tls"]}],"force_instance_key":null,"auto_stop_after":"2s",
            "concurrency":{"type":"requests","soft_limit":200}}],"restart":{"policy":"on-failure"}}"#,
        )
        .expect("config");
        let service = &config.view().services[0];
        assert_eq!(service.autostop, Autostop::Stop);
        assert_eq!(service.auto_stop_after, Some(GoDuration(Duration::from_secs(2))));
        assert_eq!(service.ports[1].range(), Some((443, 443)));
        let concurrency = service.concurrency.as_ref().expect("concurrency");
        assert_eq!((concurrency.unit, concurrency.soft_limit), (LimitUnit::Requests, Some(200)));
    }

    #[test]
    fn autostop_is_written_as_flyctl_writes_it() {
        for (text, back) in
            [("\"off\"", "false"), ("\"stop\"", "true"), ("\"suspend\"", "\"suspend\"")]
        {
            let autostop: Autostop = serde_json::from_str(text).expect(text);
            assert_eq!(serde_json::to_string(&autostop).expect("json"), back);
        }
    }

    #[test]
    fn a_missing_guest_is_filled_in_for_answers() {
        let mut config = parse(r#"{"image":"a","guest":null}"#).expect("config");
        config.fill_guest();
        assert_eq!(config.get("guest").expect("filled in")["memory_mb"], 256);
    }

    #[test]
    fn metadata_is_set_and_removed() {
        let config = parse(r#"{"image":"a","metadata":{"a":"1"}}"#).expect("config");
        let config = config.with_metadata("b", Some("2")).expect("valid");
        let config = config.with_metadata("a", None).expect("valid");
        assert_eq!(config.get("metadata"), Some(json!({"b": "2"})));
    }

    #[test]
    fn an_array_where_an_object_belongs_is_read_but_not_accepted() {
        let of = |key: &str, value: Value| {
            parse(&json!({"image": "a", key: value}).to_string()).expect("read").check_objects()
        };
        let port = json!({"internal_port": 80, "ports": [[443]]});
        let concurrency = json!({"internal_port": 80, "concurrency": ["requests"]});
        for (key, array) in [
            ("init", json!([["/bin/sh"]])),
            ("guest", json!(["shared", 1, 256])),
            ("restart", json!(["no"])),
            ("stop_config", json!([])),
            ("services", json!([["tcp", 80]])),
            ("services", json!([port])),
            ("services", json!([concurrency])),
            ("files", json!([["/a", "YQ=="]])),
            ("mounts", json!([["vol_1", "data", "/data"]])),
        ] {
            let refused = of(key, array.clone()).expect_err(key);
            assert_eq!(refused.key, key, "{array}");
            assert!(refused.reason.starts_with("invalid type: sequence"), "{array}: {refused}");
        }
        assert_eq!(of("guest", Value::Null), Ok(()));
        assert_eq!(
            of("services", json!([{"internal_port": 80, "ports": [{"port": 443}]}])),
            Ok(())
        );
    }

    #[test]
    fn metadata_that_are_too_long_are_read_and_shortened_but_neither_set_nor_accepted() {
        let half = "v".repeat(METADATA_BYTES_MAX / 2 - 1);
        let of = |a: &str, b: &str| {
            parse(&json!({"image": "a", "metadata": {"a": a, "b": b}}).to_string()).expect("read")
        };
        let full = of(&half, &half);
        assert_eq!(full.check_metadata(), Ok(()));
        let refused = full.with_metadata("c", Some("")).expect_err("a key counts too");
        assert!(refused.to_string().contains("16384 bytes"), "{refused}");
        let long = of(&half, &format!("{half}v"));
        assert_eq!(long.check_metadata().expect_err("too long").key, "metadata");
        let shorter = long.with_metadata("b", None).expect("removed");
        shorter.with_metadata("c", Some(&half)).expect("there is room again");
    }
}
