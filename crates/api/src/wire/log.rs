//! Log lines, as flyctl polls them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogEntry {
    /// Unique within its app.
    pub id: String,
    /// The line and where it comes from.
    pub attributes: LogAttributes,
}

/// The line and where it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogAttributes {
    /// RFC 3339 with a fraction.
    pub timestamp: String,
    /// Text without its line end.
    pub message: String,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// Machine id; empty for lines about the whole app.
    pub instance: String,
    /// Region code.
    pub region: String,
    /// Source.
    pub meta: LogMeta,
}

/// Source of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogMeta {
    /// Machine id.
    pub instance: String,
    /// Region code.
    pub region: String,
    /// Who wrote it.
    pub event: LogEvent,
}

/// Who wrote a line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogEvent {
    /// `app`, `runner`, `proxy` or `health`.
    pub provider: String,
}

/// A page of lines, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogPage {
    /// Lines, oldest first; may be empty.
    pub data: Vec<LogEntry>,
    /// Where to go on.
    pub meta: LogPageMeta,
}

/// Where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogPageMeta {
    /// Token for the next page; empty = keep the former one.
    pub next_token: String,
}

/// Query of `GET /api/v1/apps/{app}/logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Token of the former page; empty = from the oldest line kept.
    pub next_token: String,
    /// Only this Machine.
    pub instance: Option<String>,
    /// Only this region.
    pub region: Option<String>,
    /// How long to hold an answer that would be empty. `hold_ms` on the wire, our extension; 0
    /// answers at once.
    pub hold: Duration,
}
