//! OCI and Docker manifests: as much as is needed to find an image's blobs.

use super::ImageError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// How much of a blob is read and hashed at once.
const READ_BYTES: usize = 64 * 1024;

/// Annotation that carries the tag in a layout's index.
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// An index, or the `index.json` of a layout.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

/// A manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What points to a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// Operating system and processor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
}

impl Descriptor {
    pub(super) fn is_index(&self) -> bool {
        INDEX_TYPES.contains(&self.media_type.as_str())
    }

    pub(super) fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(TAG_ANNOTATION).map(String::as_str)
    }
}

impl Index {
    /// The image of a tag, or the only one.
    pub(super) fn choose(&self, path: &Path, tag: Option<&str>) -> Result<&Descriptor, ImageError> {
        let path = path.to_owned();
        let tags: Vec<_> = self.manifests.iter().filter_map(Descriptor::tag).collect();
        let known = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
        if let Some(tag) = tag {
            let tagged = self.manifests.iter().find(|manifest| manifest.tag() == Some(tag));
            return tagged.ok_or(ImageError::NoTag { path, tag: tag.to_owned(), known });
        }
        match self.manifests.as_slice() {
            [] => {
                let reason = "its index names no image".to_owned();
                Err(ImageError::NotAnImage { path, wanted: "an OCI layout", reason })
            }
            [only] => Ok(only),
            // Several entries without tags are the platforms of one image.
            several if several.iter().all(|manifest| manifest.tag().is_none()) => self.for_host(),
            _ => Err(ImageError::ManyImages { path, known }),
        }
    }

    /// The variant for this host's processor; server and caller share the host.
    pub(super) fn for_host(&self) -> Result<&Descriptor, ImageError> {
        let arch = host_architecture();
        let fits = |manifest: &&Descriptor| match &manifest.platform {
            Some(platform) => platform.os == "linux" && platform.architecture == arch,
            None => self.manifests.len() == 1,
        };
        let platforms = self.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
        let known: Vec<_> = platforms.map(|p| format!("{}/{}", p.os, p.architecture)).collect();
        let error = ImageError::NoPlatform { arch, known: known.join(", ") };
        self.manifests.iter().find(fits).ok_or(error)
    }
}

fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `sha256:` of some bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes).as_slice())
}

/// `sha256:` of all that a reader gives, and how much it was.
pub(super) fn digest_reader(mut reader: impl std::io::Read) -> std::io::Result<(String, u64)> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((named(hash.finalize().as_slice()), size)),
            Ok(len) => {
                hash.update(&buffer[..len]);
                size += len as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn named(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The file name under `blobs/sha256`, if it is a digest at all.
pub(super) fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let good = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    good.then_some(hex)
}
