//! Images: read where the caller has them, pushed to the server over `/v2/`.
//!
//! ```text
//! reference ─source─► docker daemon ─┐
//!                     archive ───────┼─► Image { manifest, blobs } ─push─► tag at the server
//!                     OCI layout ────┘
//! ```
//!
//! The server opens no path that a client names (DESIGN 5), so everything is read here. Nothing is
//! pulled from registries yet, and the messages say so.

mod archive;
mod build;
mod docker;
mod layout;
mod manifest;
mod push;
mod source;

use std::path::PathBuf;

pub(crate) use build::{BuildOptions, build};
pub(crate) use push::push;
pub(crate) use source::Source;

/// Manifests, indexes and image configs are small; a larger one is not what it says.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// An image ready to be pushed.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) media_type: String,
    /// Config and layers, in the order of the manifest.
    pub(crate) blobs: Vec<Blob>,
}

/// A blob and where its bytes are.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) content: Content,
}

/// Where the bytes of a blob are.
#[derive(Debug)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// A part of a file; the file stays open, so it may be a nameless temporary one.
    Part {
        file: std::sync::Arc<std::fs::File>,
        offset: u64,
    },
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not {wanted}: {reason}")]
    NotAnImage { path: PathBuf, wanted: &'static str, reason: String },
    #[error("{path} is compressed; decompress it first, for example with `gunzip`")]
    Compressed { path: PathBuf },
    #[error("{path} has no image tagged '{tag}'; it has {known}")]
    NoTag { path: PathBuf, tag: String, known: String },
    #[error("{path} has several images; name one with {path}:TAG, of {known}")]
    ManyImages { path: PathBuf, known: String },
    #[error("the image has no variant for linux/{arch}; it has {known}")]
    NoPlatform { arch: &'static str, known: String },
    #[error("the Docker daemon has no image '{name}'")]
    NotInDocker { name: String },
    #[error("could not talk to the Docker daemon at {socket}")]
    Docker {
        socket: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the Docker daemon refused to export '{name}': {reason}")]
    DockerRefused { name: String, reason: String },
    #[error("there is no program to build a Dockerfile with")]
    NoBuilder,
    #[error("{program} could not build the image: {reason}")]
    BuildFailed { program: &'static str, reason: String },
    #[error("there is no Dockerfile at {path}, and no image is named")]
    NoDockerfile { path: PathBuf },
}

impl ImageError {
    /// What the user can do, with exact commands.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotInDocker { name } => Some(format!(
                "Perch does not pull from registries yet. Get the image into Docker with `docker pull \
                 {name}`, or copy it once with `skopeo copy docker://{name} oci:./image` and deploy \
                 with `--image oci:./image`"
            )),
            Self::Docker { .. } => Some(
                "An image without a prefix is looked for in the local Docker. Start it, or name an \
                 image in a file: `--image oci:DIR[:TAG]`, `--image oci-archive:FILE`, `--image \
                 docker-archive:FILE` (perch does not pull from registries yet)"
                    .to_owned(),
            ),
            Self::NoBuilder => Some(
                "Install one (`apt-get install docker.io` or `apt-get install buildah`), or build \
                 elsewhere and name the result: `docker save IMAGE -o image.tar` there, then `fly \
                 deploy --image docker-archive:image.tar`"
                    .to_owned(),
            ),
            Self::NoDockerfile { .. } => Some(
                "Name an image with `--image` (a name in the local Docker, oci:DIR[:TAG], \
                 oci-archive:FILE or docker-archive:FILE), or write a Dockerfile"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

impl Image {
    /// The lowest TCP port that the image's config exposes. A config that cannot be read exposes
    /// nothing: the server is the one to refuse it.
    pub(crate) fn exposed_port(&self) -> Option<u16> {
        let config = match &self.blobs.first()?.content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Part { file, offset } => {
                let size = self.blobs.first()?.size.min(MANIFEST_BYTES_MAX);
                layout::read_part(file, *offset, size).ok()?
            }
        };
        let config: serde_json::Value = serde_json::from_slice(&config).ok()?;
        let ports = config["config"]["ExposedPorts"].as_object()?.keys();
        let tcp = |port: &String| port.strip_suffix("/tcp").unwrap_or(port).parse::<u16>().ok();
        ports.filter_map(tcp).min()
    }
}
