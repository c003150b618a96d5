//! Images: what a reference resolves to, and the states of a push.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/apps/{app}/images?ref=`: REST twin of GraphQL's `app.image`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImageInfo {
    /// Stable id; the digest.
    pub id: String,
    /// Digest of the manifest, `sha256:…`.
    pub digest: String,
    /// Reference that pins the digest; goes into a Machine's `config.image`.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Bytes of all layers as pushed. A decimal text, as Fly has it.
    pub compressed_size: String,
}

/// What is known about a blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// `sha256:…`.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
}

/// A manifest with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestInfo {
    /// `sha256:…` of `bytes`.
    pub digest: String,
    /// Media type as pushed.
    pub media_type: String,
    /// Exactly as pushed.
    pub bytes: Vec<u8>,
}

/// A blob upload in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadState {
    /// Opaque id, chosen by the server; letters, digits, `-`, `_`, `.` only.
    pub id: String,
    /// Bytes received and kept so far.
    pub received: u64,
}
