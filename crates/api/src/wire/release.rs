//! Releases: what was deployed when, by whom.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{null_default, schema};

/// How far a release is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseStatus {
    /// Recorded, not begun.
    #[default]
    Pending,
    /// Being rolled out.
    Running,
    /// Rolled out.
    Complete,
    /// Given up by its deploy.
    Failed,
    /// Its deploy ended without a word.
    Interrupted,
}

impl fmt::Display for ReleaseStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        })
    }
}

/// A release.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Release {
    /// Stable id.
    pub id: String,
    /// 1 for the first release of an app, then one more each.
    pub version: u64,
    /// Whether it completed.
    pub stable: bool,
    /// Whether it is being rolled out.
    pub in_progress: bool,
    /// How far it is.
    pub status: ReleaseStatus,
    /// `ROLLING`, `IMMEDIATE` … as the client named it.
    #[serde(deserialize_with = "null_default")]
    pub strategy: String,
    /// Who deployed: the caller's login name or uid.
    #[serde(deserialize_with = "null_default")]
    pub user: String,
    /// Creation, RFC 3339.
    pub created_at: String,
    /// Image reference.
    #[serde(deserialize_with = "null_default")]
    pub image_ref: String,
    /// The app's whole configuration as the client sent it; only in the answer for one release.
    /// Extension: Fly has it by GraphQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<Value>,
}

/// Body of `POST /api/v1/releases`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CreateRelease {
    /// App.
    pub app_name: String,
    /// Whole configuration of the app, as JSON.
    pub definition: Value,
    /// Image reference.
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub image: String,
    /// `ROLLING`, `IMMEDIATE` …
    #[serde(deserialize_with = "null_default")]
    #[schemars(transform = schema::nullable)]
    pub strategy: String,
    /// Seconds that the release counts as in progress after each word of its deploy (a `PATCH`, or a
    /// lease on one of the app's Machines), at most 3600; 0 means 13. No other release can begin
    /// meanwhile. Extension.
    pub lease_ttl: u64,
}

/// Body of `PATCH /api/v1/releases/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UpdateRelease {
    /// New status. Naming `running` again says only that the deploy lives.
    pub status: ReleaseStatus,
    /// Ignored.
    #[serde(default)]
    pub metadata: Value,
}

/// `{"release": …}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseAnswer {
    /// The release.
    pub release: Release,
}

/// `{"releases": […]}`, newest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReleasePage {
    /// Newest first.
    pub releases: Vec<Release>,
}
