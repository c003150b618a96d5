//! Who calls, as the server sees it. Extension: Fly has it by GraphQL.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answer of `GET /perch/v1/whoami`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Whoami {
    /// The caller in words, as events and releases name it: `uid 0`, `token ci`.
    pub user: String,
    /// User id of a caller on the Unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Name of the token of a caller over TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The only organization that the token is good for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// The only app that the token is good for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Whether the token may change nothing.
    pub read_only: bool,
}
