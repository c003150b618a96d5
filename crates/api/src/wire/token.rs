//! Tokens: who else may call, for what, until when. Extension; only processes of the host see these.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A token, without its secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Token {
    /// Stable id; also the first part of the token itself.
    pub id: String,
    /// Unique name, shown as the author of what its holder does.
    pub name: String,
    /// The only organization that it is good for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// The only app that it is good for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Whether it may change nothing.
    pub read_only: bool,
    /// Creation, RFC 3339.
    pub created_at: String,
    /// End, RFC 3339; absent = when it is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Whether it has ended.
    pub expired: bool,
}

/// Body of `POST /perch/v1/tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CreateToken {
    /// Wanted name; empty = one is made up.
    pub name: String,
    /// Only this organization.
    pub org: Option<String>,
    /// Only this app; it must be there, and the token goes with it.
    pub app: Option<String>,
    /// May change nothing.
    pub read_only: bool,
    /// Seconds that it is good for.
    pub expires_in: Option<u64>,
}

/// Answer of `POST /perch/v1/tokens`: the only time that the secret is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NewToken {
    /// What the server keeps.
    pub token: Token,
    /// What its holder sends.
    pub secret: String,
}

/// Answer of `GET /perch/v1/tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenPage {
    /// All of them, by name.
    pub tokens: Vec<Token>,
}
