//! The keys that sign `Fly-Src`. Extension; only processes of the host see these.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answer of `GET` and `POST /perch/v1/keys`: the public keys as Machines see them in `/.fly/fly-src.pub`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SourceKeys {
    /// The one that signs, and during a rotation the other one.
    pub keys: Vec<SourceKey>,
}

/// A key that signs `Fly-Src`, did a short time ago, or soon will.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SourceKey {
    /// The public key: 64 hexadecimal digits.
    pub public: String,
    /// Whether it signs now.
    pub signs: bool,
    /// When it is forgotten, RFC 3339; absent = with the next rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// Body of `POST /perch/v1/keys`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RotateKeys {
    /// Forget the old key at once, because somebody else has it. What it has signed is good for nothing then.
    pub now: bool,
}
