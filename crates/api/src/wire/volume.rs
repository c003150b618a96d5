//! Volumes and their snapshots.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{null_default, schema};

/// A volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Volume {
    /// `vol_…`.
    pub id: String,
    /// What `[mounts] source` names; several volumes of an app may have one name.
    pub name: String,
    /// `created`; `pending_destroy` while it is removed.
    #[serde(deserialize_with = "null_default")]
    pub state: String,
    /// Size in GiB.
    pub size_gb: u64,
    /// Region of its host.
    #[serde(deserialize_with = "null_default")]
    pub region: String,
    /// Its host.
    #[serde(deserialize_with = "null_default")]
    pub zone: String,
    /// Whether its content is encrypted: never, whatever was asked for.
    pub encrypted: bool,
    /// The Machine that has it.
    pub attached_machine_id: Option<String>,
    /// Always null.
    pub attached_alloc_id: Option<String>,
    /// When it was made, RFC 3339.
    #[serde(deserialize_with = "null_default")]
    pub created_at: String,
    /// Always empty.
    #[serde(deserialize_with = "null_default")]
    pub host_dedication_id: String,
    /// For how many days its snapshots are kept.
    pub snapshot_retention: u64,
    /// Whether a snapshot is made each day.
    pub auto_backup_enabled: bool,
    /// `ok`.
    #[serde(deserialize_with = "null_default")]
    pub host_status: String,
    /// `false`, with the reason, where the host can only give it a directory. Extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_not_enforced: Option<String>,
}

/// Body of `POST /v1/apps/{app}/volumes`. Other keys of Fly's are understood and mean nothing on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("anyOf" = [
    {"required": ["name"], "properties": {
        "name": {"type": "string", "minLength": 1},
        "snapshot_id": {"enum": ["", null]}, "source_volume_id": {"enum": ["", null]},
    }},
    {"required": ["snapshot_id"], "properties": {
        "snapshot_id": {"type": "string", "minLength": 1}, "source_volume_id": {"enum": ["", null]},
    }},
    {"required": ["source_volume_id"], "properties": {
        "source_volume_id": {"type": "string", "minLength": 1}, "snapshot_id": {"enum": ["", null]},
    }},
]))]
pub struct CreateVolume {
    /// Name: lower-case letters, digits and underscores; that of the source without one.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = "^[a-z0-9_]{0,30}$"), transform = schema::nullable)]
    pub name: String,
    /// Region; empty = this host's.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    #[schemars(transform = schema::nullable)]
    pub region: String,
    /// Size in GiB; absent = 3, or that of the source.
    #[schemars(range(min = 1, max = 4096))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_gb: Option<u64>,
    /// Understood; nothing is encrypted here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// For how many days snapshots are kept; absent = 5.
    #[schemars(range(min = 1, max = 60))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_retention: Option<u64>,
    /// Whether a snapshot is made each day; absent = where it costs no space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_backup_enabled: Option<bool>,
    /// `ext4`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    #[schemars(regex(pattern = "^(ext4)?$"), transform = schema::nullable)]
    pub fstype: String,
    /// Snapshot that it begins with.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    #[schemars(transform = schema::nullable)]
    pub snapshot_id: String,
    /// Volume that it begins as a copy of.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    #[schemars(transform = schema::nullable)]
    pub source_volume_id: String,
    /// Understood; there is one host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_unique_zone: Option<bool>,
    /// Understood; there is one host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_zone_app_wide: Option<bool>,
}

/// Body of `PUT /v1/apps/{app}/volumes/{volume}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpdateVolume {
    /// For how many days snapshots are kept.
    #[schemars(range(min = 1, max = 60))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_retention: Option<u64>,
    /// Whether a snapshot is made each day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_backup_enabled: Option<bool>,
}

/// Body of `PUT /v1/apps/{app}/volumes/{volume}/extend`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExtendVolume {
    /// New size in GiB; not less than the present one.
    #[schemars(range(min = 1, max = 4096))]
    pub size_gb: u64,
}

/// Answer of `PUT /v1/apps/{app}/volumes/{volume}/extend`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExtendedVolume {
    /// The volume.
    pub volume: Volume,
    /// Whether its Machine sees the new size only after its next start.
    pub needs_restart: bool,
}

/// A copy of a volume as of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Snapshot {
    /// `vs_…`.
    pub id: String,
    /// Bytes that it takes on the disk; those that it shares with others count in each.
    pub size: u64,
    /// Bytes of the volume.
    pub volume_size: u64,
    /// Always empty.
    #[serde(deserialize_with = "null_default")]
    pub digest: String,
    /// When it was made, RFC 3339.
    #[serde(deserialize_with = "null_default")]
    pub created_at: String,
    /// `created`.
    #[serde(deserialize_with = "null_default")]
    pub status: String,
    /// For how many days it is kept.
    pub retention_days: Option<u64>,
}
