//! What an image reference names, by its prefix.

use super::{Image, ImageError, archive, docker, layout};
use crate::env::Environment;
use std::path::{Path, PathBuf};

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// In the local Docker.
    Docker(String),
    /// A directory in the OCI layout, with a tag if it holds several images.
    OciDir { dir: PathBuf, tag: Option<String> },
    /// A tar file of such a directory.
    OciArchive(PathBuf),
    /// What `docker save` writes.
    DockerArchive(PathBuf),
}

impl Source {
    /// Understands `docker-daemon:NAME`, `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE`;
    /// anything else is a name that the local Docker has. Paths are relative to `dir`.
    pub(crate) fn parse(reference: &str, dir: &Path) -> Self {
        if let Some(path) = reference.strip_prefix("oci-archive:") {
            return Self::OciArchive(dir.join(path));
        }
        if let Some(path) = reference.strip_prefix("docker-archive:") {
            return Self::DockerArchive(dir.join(path));
        }
        if let Some(rest) = reference.strip_prefix("oci:") {
            return Self::parse_layout(rest, dir);
        }
        Self::Docker(reference.strip_prefix("docker-daemon:").unwrap_or(reference).to_owned())
    }

    /// A colon may belong to the directory's name: what exists as a whole is taken as a whole.
    fn parse_layout(rest: &str, dir: &Path) -> Self {
        let whole = dir.join(rest);
        match rest.rsplit_once(':') {
            Some((path, tag)) if !whole.is_dir() => {
                Self::OciDir { dir: dir.join(path), tag: Some(tag.to_owned()) }
            }
            _ => Self::OciDir { dir: whole, tag: None },
        }
    }

    /// Reads the image's manifest and finds its blobs. Blocks on files and on the Docker daemon.
    pub(crate) fn open(&self, env: &Environment) -> Result<Image, ImageError> {
        match self {
            Self::Docker(name) => docker::export(name, &docker::socket(env)),
            Self::OciDir { dir, tag } => layout::open_dir(dir, tag.as_deref()),
            Self::OciArchive(path) => layout::open_archive(path),
            Self::DockerArchive(path) => archive::open(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(text, Path::new("/app"))
    }

    #[test]
    fn a_reference_without_prefix_is_a_name_in_docker() {
        assert_eq!(parse("nginx:1.27"), Source::Docker("nginx:1.27".into()));
        assert_eq!(parse("docker-daemon:nginx"), Source::Docker("nginx".into()));
    }

    #[test]
    fn paths_are_relative_to_the_app_and_a_layout_may_name_a_tag() {
        assert_eq!(parse("oci-archive:a.tar"), Source::OciArchive("/app/a.tar".into()));
        assert_eq!(parse("docker-archive:/a.tar"), Source::DockerArchive("/a.tar".into()));
        let (dir, tag) = (PathBuf::from("/app/img"), Some("v1".to_owned()));
        assert_eq!(parse("oci:img:v1"), Source::OciDir { dir: dir.clone(), tag });
        assert_eq!(parse("oci:img"), Source::OciDir { dir, tag: None });
    }
}
