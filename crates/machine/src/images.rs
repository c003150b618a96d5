//! Images: blobs by digest, manifests, tags, and layers unpacked once each.
//!
//! ```text
//!  blobs/<hex>        as pushed; the digest is checked before the name appears
//!  manifests/<hex>    media type of the blob of that name, which is a manifest
//!  tags/<app>/<tag>   digest of a manifest
//!  layers/<diff id>/  unpacked; appears by rename when complete
//!  shifted/<first id>/<diff id>/   copies of layers for one app, where the kernel cannot map ids; appear likewise
//!  scratch/           pushes and unpackings under way; emptied when the store opens
//! ```
//!
//! All calls block on the disk; an async caller uses `spawn_blocking`. The store opens no path that a client names.

mod parts;
mod prune;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, XattrFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::launch::{DISK_FULL, Fault, HOST_FAULT, is_disk_full};
use crate::{shift, unpack};
pub use parts::{Parts, parts};
pub use prune::Pruned;

/// Layers that are unpacked or copied at once; others wait. Each takes up to [`Limits::unpack_memory_bytes_max`], and more
/// than two make the disk slower, not faster.
const FILLS_MAX: usize = 2;
/// Longest answer of an unpacking process: the names of directories that hide others, each byte of them escaped, and room
/// for the rest.
const ANSWER_BYTES_MAX: u64 = 6 * unpack::OPAQUE_BYTES_MAX + (64 << 10);
/// Longest reason for a refused layer, in characters: names in it come from the layer.
const REASON_CHARS_MAX: usize = 1000;
/// What is kept of an unpacking process's last words.
const WORDS_BYTES_MAX: u64 = 4096;
/// On a small disk a tenth of it is kept free, if that is less than [`Limits::free_bytes_min`].
const FREE_PART: u64 = 10;
/// Longest app name or tag.
const NAME_BYTES_MAX: usize = 128;
/// The kernel takes at most this many layers.
const OVERLAY_LAYERS_MAX: usize = 500;

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
    /// Most memory that unpacking one layer takes, in bytes.
    pub unpack_memory_bytes_max: u64,
    /// Most layers in one image.
    pub layers_max: usize,
    /// Most uploads under way at once.
    pub uploads_max: usize,
    /// An upload that nobody touches for so long is ended.
    pub upload_idle_max: Duration,
    /// Bytes of the disk that no push or unpacking takes, so that Machines can still wake and write. On a disk of less
    /// than ten times as much, a tenth of it.
    pub free_bytes_min: u64,
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
            unpack_memory_bytes_max: GIB,
            layers_max: 128,
            uploads_max: 64,
            upload_idle_max: Duration::from_secs(600),
            free_bytes_min: GIB / 2,
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
    /// The disk has only what Machines need to wake and write.
    #[error(
        "not enough space on the server's disk: {needed} more bytes would leave less than {} MB free; make room, for \
         example with `fly apps destroy`, and repeat", free_min >> 20
    )]
    DiskFull {
        /// What was wanted.
        needed: u64,
        /// What must stay free.
        free_min: u64,
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
        /// What that is about.
        fault: Fault,
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

impl ImageError {
    /// The reason for people who call a Machine of the image, not its host: it names no file of the host.
    pub fn told(&self) -> String {
        match self {
            Self::DiskFull { .. } | Self::Unpack { fault: Fault::DiskFull, .. } => {
                DISK_FULL.to_owned()
            }
            Self::Io { source, .. } if is_disk_full(source) => DISK_FULL.to_owned(),
            Self::Io { .. } | Self::Unpack { fault: Fault::Host, .. } => HOST_FAULT.to_owned(),
            other => other.to_string(),
        }
    }
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

/// The parts of a manifest, index or config that are read; everything else is kept as pushed.
#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    os: String,
    architecture: String,
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    exposed_ports: Option<std::collections::BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
}

impl From<RunConfig> for ImageConfig {
    fn from(config: RunConfig) -> Self {
        Self {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            exposed_ports: config.exposed_ports.unwrap_or_default().into_keys().collect(),
            stop_signal: config.stop_signal.unwrap_or_default(),
        }
    }
}

/// This host in the words of images.
fn host_platform() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    ("linux", architecture)
}

/// Lower-case hexadecimal of a finished hash.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { doing, path, source }
}

fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    first && rest && name.len() <= NAME_BYTES_MAX
}

/// A push under way.
#[derive(Debug)]
struct Upload {
    path: PathBuf,
    file: File,
    hash: Sha256,
    len: u64,
    touched: Instant,
}

/// The store. Cheap to share behind an `Arc`; all methods take `&self`.
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    limits: Limits,
    uploads: Mutex<HashMap<String, Arc<Mutex<Upload>>>>,
    /// Shared by those who make or remove a directory of a layer, and had alone by who removes what nobody needs.
    filling: RwLock<()>,
    /// One lock per directory that is being made or removed, so that nobody makes the same twice.
    making: Mutex<HashMap<PathBuf, Weak<Mutex<()>>>>,
    /// How many more layers may be filled now.
    fills: Turns,
    /// Held while a manifest is stored, and while it is decided what no manifest needs.
    gate: Mutex<()>,
}

/// A panic in another thread leaves nothing half-done that a lock protects.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bounded number of turns.
#[derive(Debug)]
struct Turns {
    left: Mutex<usize>,
    given_back: Condvar,
}

impl Turns {
    /// Waits for a turn; it ends with the answer.
    fn take(&self) -> Turn<'_> {
        let left = held(&self.left);
        let waited = self.given_back.wait_while(left, |left| *left == 0);
        *waited.unwrap_or_else(PoisonError::into_inner) -= 1;
        Turn(self)
    }
}

struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *held(&self.0.left) += 1;
        self.0.given_back.notify_one();
    }
}

impl ImageStore {
    /// Opens or makes the store in `dir` and removes what a crash left half-done.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, ImageError> {
        let scratch = dir.join("scratch");
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("empty", &scratch)(error));
            }
            Ok(()) | Err(_) => {}
        }
        for name in ["blobs", "manifests", "tags", "layers", "shifted", "scratch"] {
            let path = dir.join(name);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(io_error("make", &path))?;
        }
        Ok(Self::at(dir, limits))
    }

    /// The store in `dir` as it is, which somebody else may have open.
    fn at(dir: &Path, limits: Limits) -> Self {
        Self {
            dir: dir.to_owned(),
            limits,
            uploads: Mutex::default(),
            filling: RwLock::default(),
            making: Mutex::default(),
            fills: Turns { left: Mutex::new(FILLS_MAX), given_back: Condvar::new() },
            gate: Mutex::default(),
        }
    }

    /// The lock of a directory that is made or removed as a whole.
    fn maker(&self, path: &Path) -> Arc<Mutex<()>> {
        let mut making = held(&self.making);
        making.retain(|_, lock| 0 < lock.strong_count());
        if let Some(lock) = making.get(path).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        making.insert(path.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// What must stay free of this disk, and what is free.
    fn space(&self) -> Result<(u64, u64), ImageError> {
        let disk = rustix::fs::statvfs(&self.dir);
        let disk =
            disk.map_err(|error| io_error("look at the disk of", &self.dir)(error.into()))?;
        let free_min = self.limits.free_bytes_min.min(disk.f_blocks * disk.f_frsize / FREE_PART);
        Ok((free_min, disk.f_bavail * disk.f_frsize))
    }

    /// Refuses what would take the space that Machines need.
    fn check_space(&self, needed: u64) -> Result<(), ImageError> {
        let (free_min, free) = self.space()?;
        if free.saturating_sub(needed) < free_min {
            return Err(ImageError::DiskFull { needed, free_min });
        }
        Ok(())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.hex())
    }

    /// Size of a blob in bytes, if the store has it.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.blob_path(digest)).ok().map(|meta| meta.len())
    }

    /// Like [`ImageStore::blob_size`], for somebody who will rely on it: it counts as pushed now.
    pub fn claim_blob(&self, digest: &Digest) -> Result<Option<u64>, ImageError> {
        let _gate = held(&self.gate);
        let path = self.blob_path(digest);
        prune::touch(&path).map_err(io_error("claim", &path))?;
        Ok(self.blob_size(digest))
    }

    /// Begins an upload and returns its id.
    pub fn begin_upload(&self) -> Result<String, ImageError> {
        let id = random_id().map_err(io_error("name a file in", &self.dir))?;
        let path = self.dir.join("scratch").join(&id);
        self.check_space(0)?;
        self.end_idle_uploads();
        let mut uploads = held(&self.uploads);
        if uploads.len() >= self.limits.uploads_max {
            let limit = self.limits.uploads_max as u64;
            return Err(ImageError::TooLarge { what: "number of uploads".to_owned(), limit });
        }
        let file = File::create_new(&path).map_err(io_error("make", &path))?;
        let upload = Upload { path, file, hash: Sha256::new(), len: 0, touched: Instant::now() };
        uploads.insert(id.clone(), Arc::new(Mutex::new(upload)));
        Ok(id)
    }

    /// Ends uploads that nobody touched for long; their bytes are free again. To be called now and then.
    pub fn end_idle_uploads(&self) {
        let is_idle = |upload: &Arc<Mutex<Upload>>| {
            // One whose lock is held is being written to.
            upload.try_lock().is_ok_and(|it| self.limits.upload_idle_max <= it.touched.elapsed())
        };
        let idle: Vec<_> =
            held(&self.uploads).extract_if(|_, upload| is_idle(upload)).map(|(_, it)| it).collect();
        idle.iter().for_each(|upload| remove_quietly(&held(upload).path));
    }

    fn upload(&self, id: &str) -> Result<Arc<Mutex<Upload>>, ImageError> {
        let found = held(&self.uploads).get(id).cloned();
        found.ok_or_else(|| ImageError::UploadUnknown(id.to_owned()))
    }

    /// Appends to an upload and returns its new length. `offset`, when given, must be its present length. On any other
    /// error the upload is gone: what it took of a full disk is free again.
    pub fn append_upload(
        &self,
        id: &str,
        offset: Option<u64>,
        bytes: &[u8],
    ) -> Result<u64, ImageError> {
        let upload = self.upload(id)?;
        let mut upload = held(&upload);
        let at = upload.len;
        if let Some(given) = offset.filter(|given| *given != at) {
            return Err(ImageError::UploadOffset { id: id.to_owned(), at, given });
        }
        let appended = self.append(&mut upload, bytes);
        if appended.is_err() && held(&self.uploads).remove(id).is_some() {
            remove_quietly(&upload.path);
        }
        appended.map(|()| upload.len)
    }

    fn append(&self, upload: &mut Upload, bytes: &[u8]) -> Result<(), ImageError> {
        let (len, limit) = (bytes.len() as u64, self.limits.blob_bytes_max);
        if limit < upload.len + len {
            return Err(ImageError::TooLarge { what: "blob".to_owned(), limit });
        }
        self.check_space(len)?;
        upload.file.write_all(bytes).map_err(io_error("write", &upload.path))?;
        upload.hash.update(bytes);
        upload.len += len;
        upload.touched = Instant::now();
        Ok(())
    }

    /// Length of an upload so far.
    pub fn upload_len(&self, id: &str) -> Result<u64, ImageError> {
        let upload = self.upload(id)?;
        let len = held(&upload).len;
        Ok(len)
    }

    /// Ends an upload: checks the digest, then makes the blob visible. Returns its length. On error the upload is gone.
    pub fn finish_upload(&self, id: &str, digest: &Digest) -> Result<u64, ImageError> {
        let upload = held(&self.uploads).remove(id);
        let upload = upload.ok_or_else(|| ImageError::UploadUnknown(id.to_owned()))?;
        let upload = held(&upload);
        let actual = Digest(format!("sha256:{}", hex(upload.hash.clone())));
        let kept = match actual == *digest {
            true => self.keep_blob(&upload, digest),
            false => Err(ImageError::DigestMismatch { expected: digest.clone(), actual }),
        };
        if kept.is_err() {
            remove_quietly(&upload.path);
        }
        kept.map(|()| upload.len)
    }

    fn keep_blob(&self, upload: &Upload, digest: &Digest) -> Result<(), ImageError> {
        upload.file.sync_all().map_err(io_error("sync", &upload.path))?;
        let path = self.blob_path(digest);
        let _gate = held(&self.gate);
        fs::rename(&upload.path, &path).map_err(io_error("make", &path))
    }

    /// Drops an upload.
    pub fn cancel_upload(&self, id: &str) -> Result<(), ImageError> {
        let unknown = || ImageError::UploadUnknown(id.to_owned());
        let upload = held(&self.uploads).remove(id).ok_or_else(unknown)?;
        remove_quietly(&held(&upload).path);
        Ok(())
    }

    /// Stores a manifest or index and, when `reference` is a tag, points the tag of `app` at it. Refuses one whose blobs
    /// are missing, or a digest reference that differs from the content. Of an index, the manifest for this host's
    /// platform must be there; others may be missing.
    pub fn put_manifest(
        &self,
        app: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<ManifestInfo, ImageError> {
        let tag = self.tag_path(app, reference)?;
        let manifest = self.parse(bytes)?;
        self.check_space(bytes.len() as u64)?;
        let _gate = held(&self.gate);
        self.check_parts(&manifest)?;
        let mut hash = Sha256::new();
        hash.update(bytes);
        let digest = Digest(format!("sha256:{}", hex(hash)));
        if let Some(expected) = reference.parse().ok().filter(|expected| *expected != digest) {
            return Err(ImageError::DigestMismatch { expected, actual: digest });
        }
        let media_type = manifest.media_type.as_deref().unwrap_or(media_type);
        self.write_synced(&self.blob_path(&digest), bytes)?;
        self.write_synced(&self.manifest_path(&digest), media_type.as_bytes())?;
        if let Some(tag) = tag {
            self.write_synced(&tag, digest.to_string().as_bytes())?;
        }
        let (media_type, size) = (media_type.to_owned(), bytes.len() as u64);
        Ok(ManifestInfo { digest, media_type, size })
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("manifests").join(digest.hex())
    }

    /// Where a tag is kept; `None` when the reference is a digest.
    fn tag_path(&self, app: &str, reference: &str) -> Result<Option<PathBuf>, ImageError> {
        if !is_name(app) {
            return Err(ImageError::BadReference(app.to_owned()));
        }
        if reference.contains(':') {
            return reference.parse::<Digest>().map(|_| None);
        }
        if !is_name(reference) {
            return Err(ImageError::BadReference(reference.to_owned()));
        }
        let dir = self.dir.join("tags").join(app);
        fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
        Ok(Some(dir.join(reference)))
    }

    fn parse(&self, bytes: &[u8]) -> Result<Manifest, ImageError> {
        let limit = self.limits.manifest_bytes_max;
        if bytes.len() as u64 > limit {
            return Err(ImageError::TooLarge { what: "manifest".to_owned(), limit });
        }
        let manifest: Manifest = serde_json::from_slice(bytes)
            .map_err(|error| ImageError::BadManifest(error.to_string()))?;
        let layers_max = self.limits.layers_max.min(OVERLAY_LAYERS_MAX);
        if manifest.layers.len() > layers_max {
            let limit = layers_max as u64;
            return Err(ImageError::TooLarge { what: "number of layers".to_owned(), limit });
        }
        if manifest.config.is_none() && manifest.manifests.is_none() {
            let reason = "it has neither a config nor manifests (schema 1 is not supported)";
            return Err(ImageError::BadManifest(reason.to_owned()));
        }
        Ok(manifest)
    }

    fn check_parts(&self, manifest: &Manifest) -> Result<(), ImageError> {
        if let Some(children) = &manifest.manifests {
            let child = choose(children)?;
            return self.manifest(&child).map(drop);
        }
        let parts = manifest.layers.iter().chain(&manifest.config);
        for part in parts {
            let digest: Digest = part.digest.parse()?;
            if self.blob_size(&digest).is_none() {
                return Err(ImageError::BlobUnknown(digest));
            }
        }
        Ok(())
    }

    fn write_synced(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let name = random_id().map_err(io_error("name a file in", &self.dir))?;
        let draft = self.dir.join("scratch").join(name);
        let write = || {
            let mut file = File::create_new(&draft)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&draft, path)
        };
        write().map_err(|error| {
            remove_quietly(&draft);
            io_error("write", path)(error)
        })
    }

    /// Finds a manifest by tag (as pushed to `app`) or digest. It counts as pushed now: whoever asks is about to use it.
    pub fn resolve(&self, app: &str, reference: &str) -> Result<ManifestInfo, ImageError> {
        let unknown = || ImageError::ManifestUnknown(reference.to_owned());
        let _gate = held(&self.gate);
        let digest: Digest = match self.tag_path(app, reference)? {
            None => reference.parse()?,
            Some(tag) => match fs::read_to_string(&tag) {
                Ok(text) => text.parse()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
                Err(error) => return Err(io_error("read", &tag)(error)),
            },
        };
        let mark = self.manifest_path(&digest);
        let media_type = fs::read_to_string(&mark).map_err(|_| unknown())?;
        prune::touch(&mark).map_err(io_error("claim", &mark))?;
        let size = self.blob_size(&digest).ok_or_else(unknown)?;
        Ok(ManifestInfo { digest, media_type, size })
    }

    /// The bytes of a manifest.
    pub fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let known = self.manifest_path(digest).exists();
        if !known {
            return Err(ImageError::ManifestUnknown(digest.to_string()));
        }
        let path = self.blob_path(digest);
        fs::read(&path).map_err(io_error("read", &path))
    }

    /// How the image runs; of an index, the manifest for this host's platform.
    pub fn config(&self, digest: &Digest) -> Result<ImageConfig, ImageError> {
        let (_, manifest) = self.for_this_host(digest)?;
        let config = self.config_file(&manifest)?;
        Ok(config.config.unwrap_or_default().into())
    }

    fn for_this_host(&self, digest: &Digest) -> Result<(Digest, Manifest), ImageError> {
        let manifest = self.parse(&self.manifest(digest)?)?;
        let Some(children) = &manifest.manifests else {
            return Ok((digest.clone(), manifest));
        };
        let child = choose(children)?;
        let manifest = self.parse(&self.manifest(&child)?)?;
        if manifest.manifests.is_some() {
            return Err(ImageError::BadManifest("it is an index of indexes".to_owned()));
        }
        Ok((child, manifest))
    }

    fn config_file(&self, manifest: &Manifest) -> Result<ConfigFile, ImageError> {
        let config = manifest.config.as_ref().map(|config| config.digest.parse::<Digest>());
        let digest =
            config.ok_or_else(|| ImageError::BadManifest("it has no config".to_owned()))??;
        let limit = self.limits.manifest_bytes_max;
        let size =
            self.blob_size(&digest).ok_or_else(|| ImageError::BlobUnknown(digest.clone()))?;
        if size > limit {
            return Err(ImageError::TooLarge { what: "image config".to_owned(), limit });
        }
        let path = self.blob_path(&digest);
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        let config: ConfigFile = serde_json::from_slice(&bytes)
            .map_err(|error| ImageError::BadManifest(error.to_string()))?;
        check_platform(&config)?;
        Ok(config)
    }

    /// Unpacks what is not unpacked yet, each layer in a child process `/proc/self/exe unpack DIR` (see
    /// [`crate::unpack::main`]). Blocks until done; callers at the same time share the work.
    pub fn unpack(&self, digest: &Digest) -> Result<Unpacked, ImageError> {
        let (manifest_digest, manifest) = self.for_this_host(digest)?;
        let config = self.config_file(&manifest)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let reason = "its config names another number of layers".to_owned();
            return Err(ImageError::BadManifest(reason));
        }
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            layers.push(self.ensure_layer(&layer.digest.parse()?, &diff_id.parse()?)?);
        }
        let config = config.config.unwrap_or_default().into();
        Ok(Unpacked { layers, config, manifest: manifest_digest })
    }

    fn ensure_layer(&self, blob: &Digest, diff_id: &Digest) -> Result<PathBuf, ImageError> {
        let path = self.dir.join("layers").join(diff_id.hex());
        self.ensure_tree(&path, |draft| self.unpack_layer(blob, diff_id, draft))?;
        Ok(path)
    }

    /// Makes a directory unless it is there. A wake of what is there waits for nobody, and other images wait only for
    /// a turn.
    fn ensure_tree(
        &self,
        path: &Path,
        fill: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        if path.exists() {
            return Ok(());
        }
        let _filling = self.filling.read().unwrap_or_else(PoisonError::into_inner);
        let maker = self.maker(path);
        let _maker = held(&maker);
        if path.exists() {
            return Ok(());
        }
        let _turn = self.fills.take();
        self.make_tree(path, fill)
    }

    /// Makes the directory `path` by `fill`, whole or not at all.
    fn make_tree(
        &self,
        path: &Path,
        fill: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let name = random_id().map_err(io_error("name a file in", &self.dir))?;
        let draft = self.dir.join("scratch").join(name);
        let made = fs::DirBuilder::new().mode(0o755).create(&draft);
        made.map_err(io_error("make", &draft))?;
        let kept = fill(&draft).and_then(|()| {
            sync_tree(&draft).map_err(io_error("sync", &draft))?;
            fs::rename(&draft, path).map_err(io_error("make", path))
        });
        if kept.is_err()
            && let Err(error) = fs::remove_dir_all(&draft)
        {
            tracing::warn!(%error, path = %draft.display(), "could not remove a failed unpacking");
        }
        kept
    }

    /// The same image with layers whose files belong to the host's ids from `uid_base` on (see `Ids::Shifted`): copies,
    /// made once per layer and range. Blocks until done; callers at the same time share the work.
    pub fn shift(&self, unpacked: &Unpacked, uid_base: u32) -> Result<Unpacked, ImageError> {
        let range = self.shifted_path(uid_base);
        let copy_of = |layer: &PathBuf| range.join(layer.file_name().unwrap_or_default());
        let layers: Vec<PathBuf> = unpacked.layers.iter().map(copy_of).collect();
        // A start of what is there must not wait for the copying for another Machine of the app.
        if !layers.iter().all(|copy| copy.exists()) {
            let range_lock = self.maker(&range);
            let _alone_in_range = held(&range_lock);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&range);
            made.map_err(io_error("make", &range))?;
            for (layer, copy) in unpacked.layers.iter().zip(&layers) {
                self.ensure_tree(copy, |draft| self.copy_layer(layer, draft, uid_base))?;
            }
        }
        Ok(Unpacked { layers, ..unpacked.clone() })
    }

    fn copy_layer(&self, layer: &Path, draft: &Path, uid_base: u32) -> Result<(), ImageError> {
        self.check_space(0)?;
        let copied = shift::copy(layer, draft, uid_base).map_err(shift::ShiftError::into_io);
        copied.map_err(io_error("shift the owners of", layer))
    }

    fn shifted_path(&self, uid_base: u32) -> PathBuf {
        self.dir.join("shifted").join(uid_base.to_string())
    }

    /// Removes the copies made for one range. No Machine of that app may live.
    pub fn remove_shifted(&self, uid_base: u32) -> Result<(), ImageError> {
        let range = self.shifted_path(uid_base);
        let range_lock = self.maker(&range);
        let _alone_in_range = held(&range_lock);
        remove_tree(&range)
    }

    /// Whether there are copies for any range.
    pub fn has_shifted(&self) -> Result<bool, ImageError> {
        Ok(!entries(&self.dir.join("shifted"))?.is_empty())
    }

    /// Removes copies that nobody can use any more: those for ranges that are not among `uid_bases`, and those whose
    /// layer is gone. No Machine of such an app, or on such a layer, may live.
    pub fn retain_shifted(&self, uid_bases: &[u32]) -> Result<(), ImageError> {
        let _alone = self.filling.write().unwrap_or_else(PoisonError::into_inner);
        let kept: BTreeSet<OsString> =
            uid_bases.iter().map(|base| base.to_string().into()).collect();
        for range in entries(&self.dir.join("shifted"))? {
            if !range.file_name().is_some_and(|name| kept.contains(name)) {
                remove_tree(&range)?;
                continue;
            }
            let gone = |copy: &PathBuf| {
                let layer = copy.file_name().map(|name| self.dir.join("layers").join(name));
                layer.is_some_and(|layer| !layer.exists())
            };
            for copy in entries(&range)?.into_iter().filter(gone) {
                remove_tree(&copy)?;
            }
        }
        Ok(())
    }

    fn unpack_layer(
        &self,
        blob: &Digest,
        diff_id: &Digest,
        draft: &Path,
    ) -> Result<(), ImageError> {
        let refused = |reason: &str, fault| {
            let reason = unpack::shortened(reason, REASON_CHARS_MAX);
            ImageError::Unpack { layer: blob.clone(), reason, fault }
        };
        let path = self.blob_path(blob);
        let file = File::open(&path).map_err(|_| ImageError::BlobUnknown(blob.clone()))?;
        let answer = self
            .run_child(file, draft)
            .map_err(|error| refused(&error.to_string(), Fault::Host))?;
        match answer {
            unpack::Answer::Failed { reason, fault } => Err(refused(&reason, fault)),
            unpack::Answer::Done { diff_id: actual, .. } if actual != diff_id.hex() => {
                let text = format!("its content is sha256:{actual}, the config says {diff_id}");
                Err(refused(&text, Fault::Image))
            }
            unpack::Answer::Done { opaque, .. } => {
                let marked = opaque.iter().try_for_each(|dir| mark_opaque(draft, dir));
                marked.map_err(io_error("mark directories in", draft))
            }
        }
    }

    fn run_child(&self, blob: File, draft: &Path) -> io::Result<unpack::Answer> {
        let (free_min, _) = self.space().map_err(io::Error::other)?;
        let mut child = Command::new("/proc/self/exe")
            .arg("unpack")
            .arg(draft)
            .env_clear()
            .env(unpack::BYTES_VARIABLE, self.limits.layer_bytes_max.to_string())
            .env(unpack::ENTRIES_VARIABLE, self.limits.layer_entries_max.to_string())
            .env(unpack::MEMORY_VARIABLE, self.limits.unpack_memory_bytes_max.to_string())
            .env(unpack::FREE_VARIABLE, free_min.to_string())
            .stdin(blob)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let heard = hear(&mut child);
        let status = child.wait()?;
        let (answer, words) = heard?;
        serde_json::from_slice(&answer).map_err(|_| {
            // A library's last words are for us: who made the layer can do nothing with them.
            let words = String::from_utf8_lossy(&words);
            tracing::warn!(%status, words = words.trim(), "an unpacking process ended without an answer");
            let memory = self.limits.unpack_memory_bytes_max >> 20;
            io::Error::other(format!(
                "it is damaged, or unpacking it takes more than {memory} MB of memory ({status})"
            ))
        })
    }

    /// Forgets an app's tags. Blobs and layers stay until they are pruned.
    pub fn remove_app(&self, app: &str) -> Result<(), ImageError> {
        if !is_name(app) {
            return Err(ImageError::BadReference(app.to_owned()));
        }
        let dir = self.dir.join("tags").join(app);
        remove_tree(&dir)
    }

    /// Forgets the tags of all apps but these: of those that went with a crash, or while somebody pushed.
    pub fn retain_apps(&self, apps: &BTreeSet<String>) -> Result<(), ImageError> {
        let kept = |dir: &PathBuf| {
            let name = dir.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| apps.contains(name))
        };
        let gone = entries(&self.dir.join("tags"))?.into_iter().filter(|dir| !kept(dir));
        gone.into_iter().try_for_each(|dir| remove_tree(&dir))
    }
}

/// What an unpacking process says until it ends, on both outputs. It has read somebody else's file and is not trusted: too
/// long an answer is none and ends it, and of its other words only the first are kept.
fn hear(child: &mut Child) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let silent = || io::Error::other("the unpacking process has no output");
    let stdout = child.stdout.take().ok_or_else(silent)?;
    let stderr = child.stderr.take().ok_or_else(silent)?;
    std::thread::scope(|scope| {
        let words = scope.spawn(|| read_start(stderr, WORDS_BYTES_MAX));
        let answer = read_start(stdout, ANSWER_BYTES_MAX + 1).and_then(|answer| {
            let fits = answer.len() as u64 <= ANSWER_BYTES_MAX;
            fits.then_some(answer).ok_or_else(|| io::Error::other("unpacking says too much"))
        });
        if answer.is_err() {
            // Before the thread is waited for, which reads until it ends.
            child.kill()?;
        }
        let answer = answer?;
        Ok((answer, words.join().unwrap_or_else(|_| Ok(Vec::new()))?))
    })
}

/// The first bytes of a stream, which is closed after them.
fn read_start(stream: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn remove_tree(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", dir)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let listed = fs::read_dir(dir).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
    });
    listed.map_err(io_error("list", dir))
}

fn remove_quietly(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "could not remove an upload");
    }
}

pub(crate) fn random_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The manifest for this host among those of an index.
fn choose(children: &[Descriptor]) -> Result<Digest, ImageError> {
    let (os, architecture) = host_platform();
    let fits = |child: &&Descriptor| {
        let platform = child.platform.as_ref();
        platform.is_some_and(|platform| platform.os == os && platform.architecture == architecture)
    };
    // One without platform is taken only when there is no other.
    let lone = || children.first().filter(|child| children.len() == 1 && child.platform.is_none());
    let chosen = children.iter().find(fits).or_else(lone);
    chosen.map(|child| child.digest.parse()).unwrap_or_else(|| Err(wrong_platform(children)))
}

fn wrong_platform(children: &[Descriptor]) -> ImageError {
    let platforms = children.iter().filter_map(|child| child.platform.as_ref());
    let names: Vec<_> = platforms
        .filter(|platform| platform.os != "unknown")
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    let (os, architecture) = host_platform();
    ImageError::WrongPlatform { image: names.join(", "), host: format!("{os}/{architecture}") }
}

fn check_platform(config: &ConfigFile) -> Result<(), ImageError> {
    let (os, architecture) = host_platform();
    let other = |said: &str, here: &str| !said.is_empty() && said != here;
    if other(&config.os, os) || other(&config.architecture, architecture) {
        let image = format!("{}/{}", config.os, config.architecture);
        return Err(ImageError::WrongPlatform { image, host: format!("{os}/{architecture}") });
    }
    Ok(())
}

/// After a power cut a layer must be whole or absent.
fn sync_tree(dir: &Path) -> io::Result<()> {
    // What the child made is world-readable by its own modes; the directory above keeps others out.
    let top = File::open(dir)?;
    rustix::fs::syncfs(&top).map_err(Into::into)
}

/// Marks a directory so that overlayfs hides what lower layers have in it.
fn mark_opaque(root: &Path, dir: &Path) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let dir = rustix::fs::openat2(&root, dir, flags, Mode::empty(), resolve)?;
    rustix::fs::fsetxattr(&dir, shift::OPAQUE, b"y", XattrFlags::empty()).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn store(name: &str) -> Result<(ImageStore, PathBuf), Box<dyn std::error::Error>> {
        let dir = crate::scratch_dir(name)?;
        Ok((
            ImageStore::open(
                &dir,
                Limits { blob_bytes_max: 100, uploads_max: 2, ..Limits::standard() },
            )?,
            dir,
        ))
    }

    pub(super) fn digest_of(bytes: &[u8]) -> Digest {
        let mut hash = Sha256::new();
        hash.update(bytes);
        Digest(format!("sha256:{}", hex(hash)))
    }

    pub(super) fn push(store: &ImageStore, bytes: &[u8]) -> Result<Digest, ImageError> {
        let id = store.begin_upload()?;
        store.append_upload(&id, Some(0), bytes)?;
        store.finish_upload(&id, &digest_of(bytes))?;
        Ok(digest_of(bytes))
    }

    pub(super) type Tested = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn content_that_differs_from_its_digest_never_becomes_a_blob() -> Tested {
        let (store, dir) = store("mismatch")?;
        let id = store.begin_upload()?;
        store.append_upload(&id, None, b"evil")?;
        let wanted = digest_of(b"good");
        let error = store.finish_upload(&id, &wanted);
        assert!(matches!(error, Err(ImageError::DigestMismatch { .. })));
        assert_eq!(store.blob_size(&wanted), None);
        assert!(matches!(store.upload_len(&id), Err(ImageError::UploadUnknown(_))));
        assert_eq!(fs::read_dir(dir.join("scratch"))?.count(), 0);
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn uploads_are_bounded_in_number_size_and_place() -> Tested {
        let (store, dir) = store("bounds")?;
        let id = store.begin_upload()?;
        assert!(matches!(
            store.append_upload(&id, Some(5), b"x"),
            Err(ImageError::UploadOffset { at: 0, .. })
        ));
        let second = store.begin_upload()?;
        assert!(matches!(store.begin_upload(), Err(ImageError::TooLarge { .. })));
        store.cancel_upload(&second).expect("it was there");
        assert!(store.begin_upload().is_ok());
        Ok(fs::remove_dir_all(dir)?)
    }

    fn scratch(dir: &Path) -> io::Result<usize> {
        Ok(fs::read_dir(dir.join("scratch"))?.count())
    }

    #[test]
    fn an_upload_that_cannot_go_on_is_gone_at_once_and_a_wrong_offset_ends_nothing() -> Tested {
        let (store, dir) = store("broken-upload")?;
        let id = store.begin_upload()?;
        store.append_upload(&id, None, b"12345")?;
        assert!(store.append_upload(&id, Some(7), b"x").is_err());
        assert_eq!((store.upload_len(&id)?, scratch(&dir)?), (5, 1));
        let error = store.append_upload(&id, None, &[0; 101]);
        assert!(matches!(error, Err(ImageError::TooLarge { .. })));
        assert!(matches!(store.upload_len(&id), Err(ImageError::UploadUnknown(_))));
        assert_eq!(scratch(&dir)?, 0);
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn idle_uploads_end_and_their_files_go() -> Tested {
        let (mut store, dir) = store("idle-upload")?;
        let id = store.begin_upload()?;
        store.end_idle_uploads();
        assert!(store.append_upload(&id, None, b"x").is_ok());
        store.limits.upload_idle_max = Duration::ZERO;
        store.end_idle_uploads();
        assert!(matches!(store.upload_len(&id), Err(ImageError::UploadUnknown(_))));
        assert_eq!(scratch(&dir)?, 0);
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn a_push_leaves_the_space_that_machines_need() -> Tested {
        let (store, dir) = store("reserve")?;
        let config = push(&store, b"{}")?;
        let (_, free) = store.space()?;
        // More than a tenth of the disk is never kept free.
        let free_bytes_min = u64::MAX;
        let store =
            ImageStore { limits: Limits { free_bytes_min, ..store.limits.clone() }, ..store };
        let (free_min, _) = store.space()?;
        assert!(free_min < u64::MAX / 10);
        let needed = free.saturating_sub(free_min / 2);
        let error = store.check_space(needed).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("not enough space")));
        assert!(store.blob_size(&config).is_some());
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn what_is_unpacked_waits_for_no_other_unpacking() -> Tested {
        let (store, dir) = store("no-wait")?;
        let path = dir.join("layers").join(digest_of(b"there").hex());
        fs::create_dir(&path)?;
        let turns: Vec<_> = (0..FILLS_MAX).map(|_| store.fills.take()).collect();
        let other = store.maker(&dir.join("layers").join(digest_of(b"other").hex()));
        let _other = held(&other);
        let never = |_: &Path| Err(ImageError::NoCommand);
        // Were it to wait, this test would not end.
        store.ensure_tree(&path, never)?;
        let (layers, config) = (vec![path], ImageConfig::default());
        let copy = dir.join("shifted/7").join(digest_of(b"there").hex());
        fs::create_dir_all(copy)?;
        store.shift(&Unpacked { layers, config, manifest: digest_of(b"m") }, 7)?;
        drop(turns);
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn the_same_layer_is_made_once_and_others_beside_it() -> Tested {
        let (store, dir) = store("make-once")?;
        let paths = [b"one", b"two"].map(|name| dir.join("layers").join(digest_of(name).hex()));
        let made = std::sync::atomic::AtomicUsize::new(0);
        // Both layers are being made at the same time, or nobody passes.
        let both = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for path in paths.iter().chain(&paths) {
                scope.spawn(|| {
                    let fill = |_: &Path| {
                        both.wait();
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        Ok(())
                    };
                    store.ensure_tree(path, fill).expect("it can be made");
                });
            }
        });
        assert_eq!(made.into_inner(), 2);
        assert!(paths.iter().all(|path| path.is_dir()));
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn an_unpacking_process_that_never_stops_talking_is_not_listened_to() -> Tested {
        let talk = |script: &str| -> io::Result<(Vec<u8>, Vec<u8>)> {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let heard = hear(&mut child);
            child.wait()?;
            heard
        };
        let error = talk("trap '' PIPE; yes; exec sleep 1000").err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("says too much")));
        let (answer, words) = talk("echo answer; exec yes >&2")?;
        assert_eq!((answer.as_slice(), words.len() as u64), (&b"answer\n"[..], WORDS_BYTES_MAX));
        Ok(())
    }

    #[test]
    fn a_manifest_needs_its_blobs_and_then_answers_to_tag_and_digest() -> Tested {
        let (store, dir) = store("manifest")?;
        let config =
            br#"{"os":"linux","config":{"Cmd":["/x"],"Env":["A=1"]},"rootfs":{"diff_ids":[]}}"#;
        let text = format!(r#"{{"config":{{"digest":"{}"}},"layers":[]}}"#, digest_of(config));
        let missing = store.put_manifest("app", "v1", "m/t", text.as_bytes());
        assert!(matches!(missing, Err(ImageError::BlobUnknown(_))));
        push(&store, config)?;
        let info = store.put_manifest("app", "v1", "m/t", text.as_bytes())?;
        assert_eq!(store.resolve("app", "v1")?, info);
        assert_eq!(store.resolve("app", &info.digest.to_string())?, info);
        assert!(matches!(store.resolve("other", "v1"), Err(ImageError::ManifestUnknown(_))));
        assert_eq!(store.config(&info.digest)?.argv(None, None)?, ["/x"]);
        let wrong = store.put_manifest("app", &digest_of(b"x").to_string(), "m/t", text.as_bytes());
        assert!(matches!(wrong, Err(ImageError::DigestMismatch { .. })));
        store.put_manifest("gone", "v1", "m/t", text.as_bytes())?;
        store.retain_apps(&BTreeSet::from(["app".to_owned()]))?;
        assert!(store.resolve("gone", "v1").is_err(), "its tags were there before it");
        assert_eq!(store.resolve("app", "v1")?, info);
        store.remove_app("app")?;
        assert!(store.resolve("app", "v1").is_err());
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn names_that_are_paths_are_refused() -> Tested {
        let (store, dir) = store("names")?;
        for (app, reference) in
            [("../x", "v"), ("a", "../v"), ("a", ".v"), ("", "v"), ("a", "sha256:zz")]
        {
            assert!(store.resolve(app, reference).is_err(), "{app} {reference}");
        }
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn an_index_without_this_platform_names_those_it_has() {
        let child = |architecture: &str| Descriptor {
            digest: digest_of(architecture.as_bytes()).to_string(),
            platform: Some(Platform { os: "linux".into(), architecture: architecture.into() }),
        };
        let error = choose(&[child("mips"), child("s390x")]).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("linux/mips, linux/s390x")));
        let (_, here) = host_platform();
        assert_eq!(choose(&[child("mips"), child(here)]).ok(), Some(digest_of(here.as_bytes())));
    }

    #[test]
    fn an_entrypoint_from_outside_drops_the_images_command() -> Tested {
        let image = ImageConfig {
            entrypoint: vec!["e".into()],
            cmd: vec!["c".into()],
            ..ImageConfig::default()
        };
        let (x, y) = (vec!["x".to_owned()], vec!["y".to_owned()]);
        assert_eq!(image.argv(None, None)?, ["e", "c"]);
        assert_eq!(image.argv(None, Some(&y))?, ["e", "y"]);
        assert_eq!(image.argv(Some(&x), None)?, ["x"]);
        assert_eq!(image.argv(Some(&x), Some(&y))?, ["x", "y"]);
        assert!(matches!(ImageConfig::default().argv(None, None), Err(ImageError::NoCommand)));
        Ok(())
    }
}
