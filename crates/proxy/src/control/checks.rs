//! Health checks in the words of the control connection.

use serde::{Deserialize, Serialize};

/// One health check; the proxy does it while the Machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// Unique within its Machine.
    pub name: String,
    /// Port in the Machine.
    pub port: u16,
    /// What is asked; `None`: that it can be connected to is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheckView>,
    /// From one try to the next, in milliseconds.
    pub interval_ms: u64,
    /// A try that takes longer has failed, in milliseconds.
    pub timeout_ms: u64,
    /// So long after a start or resume failures do not count, in milliseconds.
    pub grace_ms: u64,
}

/// The request of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCheckView {
    /// In upper case.
    pub method: String,
    /// Begins with a slash.
    pub path: String,
    /// More headers, one value each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// What the proxy knows of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Of the [`CheckView`].
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What was seen, at most 1 KiB.
    pub output: String,
    /// Since when the status is this one: milliseconds since 1970 (MA-77).
    pub since_unix_ms: u64,
}
