//! Builds OCI image layouts out of static binaries.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Archive, Entry, process};

/// An image with one layer.
#[derive(Debug, Clone)]
pub struct Image {
    layer: Archive,
    config: Value,
}

impl Image {
    /// An image without anything in it.
    pub fn empty() -> Self {
        Self { layer: Archive::default(), config: json!({}) }
    }

    /// The example app as `/hello`, started with `PORT=port`.
    pub fn hello(port: u16) -> Result<Self> {
        Self::hello_of(&hello_binary()?, port)
    }

    /// The same from this binary of it.
    pub fn hello_of(binary: &Path, port: u16) -> Result<Self> {
        let binary = fs::read(binary).context("reading the example app")?;
        let image = Self::empty().entry("hello", &Entry::File(binary, 0o755));
        Ok(image.entrypoint(&["/hello"]).env(&[&format!("PORT={port}")]))
    }

    /// Debian's static busybox as `/bin/busybox`, with `sh -c SCRIPT` as the command.
    pub fn shell(script: &str) -> Result<Self> {
        let path = process::which("busybox").context("busybox is not installed")?;
        let binary = fs::read(path).context("reading busybox")?;
        let image = Self::empty()
            .entry("bin", &Entry::Dir)
            .entry("tmp", &Entry::Dir)
            .entry("bin/busybox", &Entry::File(binary, 0o755))
            .entry("bin/sh", &Entry::Symlink("busybox".to_owned()));
        Ok(image.entrypoint(&["/bin/sh", "-c", script]))
    }

    /// A program of this machine as `/NAME`, with the libraries that it is linked with.
    pub fn program(program: &str, name: &str) -> Result<Self> {
        let path =
            process::which(program).with_context(|| format!("{program} is not installed"))?;
        let linked = Command::new("ldd").arg(&path).output().context("running ldd")?;
        let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
        let binary = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut image = Self::empty().entry(name, &Entry::File(binary, 0o755));
        let mut known = BTreeSet::new();
        for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
            image = image.copied(library, &mut known)?;
        }
        Ok(image)
    }

    /// Adds a file of this machine at its own path, and the directories above it.
    fn copied(mut self, file: &str, known: &mut BTreeSet<String>) -> Result<Self> {
        let inside = file.trim_start_matches('/');
        let ends = inside.match_indices('/').map(|(end, _)| end);
        for dir in ends.map(|end| &inside[..end]) {
            if known.insert(dir.to_owned()) {
                self = self.entry(dir, &Entry::Dir);
            }
        }
        if known.insert(inside.to_owned()) {
            let bytes = fs::read(file).with_context(|| format!("reading {file}"))?;
            self = self.entry(inside, &Entry::File(bytes, 0o755));
        }
        Ok(self)
    }

    /// All directories, files and symbolic links below `dir`, with their modes and owners.
    pub fn directory(dir: &Path) -> Result<Self> {
        let mut image = Self::empty();
        image.add_directory(dir, "")?;
        Ok(image)
    }

    fn add_directory(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        let mut entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for found in entries {
            let name = format!("{prefix}{}", found.file_name().to_string_lossy());
            let metadata = found.metadata()?;
            let entry = if metadata.is_symlink() {
                Entry::Symlink(fs::read_link(found.path())?.to_string_lossy().into_owned())
            } else if metadata.is_dir() {
                Entry::DirMode(metadata.permissions().mode() & 0o7777)
            } else {
                Entry::File(fs::read(found.path())?, metadata.permissions().mode() & 0o777)
            };
            let owner = metadata.uid();
            self.layer = std::mem::take(&mut self.layer).with_owner(&name, &entry, owner);
            if metadata.is_dir() {
                self.add_directory(&found.path(), &format!("{name}/"))?;
            }
        }
        Ok(())
    }

    /// Adds an entry to the layer.
    #[must_use]
    pub fn entry(mut self, name: &str, entry: &Entry) -> Self {
        self.layer = self.layer.with(name, entry);
        self
    }

    /// Sets who the program runs as.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.config["User"] = json!(user);
        self
    }

    /// Sets the program.
    #[must_use]
    pub fn entrypoint(mut self, argv: &[&str]) -> Self {
        self.config["Entrypoint"] = json!(argv);
        self
    }

    /// Sets the environment.
    #[must_use]
    pub fn env(mut self, pairs: &[&str]) -> Self {
        self.config["Env"] = json!(pairs);
        self
    }

    /// Writes the file that `docker save` makes, with this name for the image.
    pub fn write_docker_archive(self, name: &str, file: &Path) -> Result<()> {
        let layer = self.layer.finish();
        let config = config(&self.config, &layer);
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
        let archive = Archive::default()
            .with("manifest.json", &Entry::File(bytes(&manifest), 0o644))
            .with("config.json", &Entry::File(bytes(&config), 0o644))
            .with("layer.tar", &Entry::File(layer, 0o644));
        fs::write(file, archive.finish()).with_context(|| format!("writing {}", file.display()))
    }

    /// Writes a layout with tag `latest` into a new directory; returns what `--image` takes.
    pub fn write(self, dir: &Path) -> Result<String> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("making {}", blobs.display()))?;
        let layer = self.layer.finish();
        let config = config(&self.config, &layer);
        let layer = blob(&blobs, "application/vnd.oci.image.layer.v1.tar", &layer)?;
        let config = blob(&blobs, "application/vnd.oci.image.config.v1+json", &bytes(&config))?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [layer],
        });
        let media = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = blob(&blobs, media, &bytes(&manifest))?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(dir.join("index.json"), bytes(&index))?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(format!("oci:{}", dir.display()))
    }
}

/// The example app, built beside the binary under test or named by `HELLO_BIN`.
pub fn hello_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HELLO_BIN") {
        return Ok(PathBuf::from(path));
    }
    let perch = std::env::var_os("PERCH_BIN").context("PERCH_BIN is not set")?;
    Ok(PathBuf::from(perch).with_file_name("perch-hello"))
}

/// The configuration of an image with one layer.
fn config(config: &Value, layer: &[u8]) -> Value {
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Writes a blob and returns its descriptor.
fn blob(dir: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    let name = digest.strip_prefix("sha256:").unwrap_or(&digest);
    fs::write(dir.join(name), bytes).with_context(|| format!("writing blob {name}"))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_standard() {
        assert_eq!(
            digest(b"abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_layout_has_index_manifest_config_and_layer() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("image");
        let reference = Image::empty().entrypoint(&["/x"]).write(&path).expect("it is written");
        assert!(reference.starts_with("oci:/"));
        let blobs = fs::read_dir(path.join("blobs/sha256")).expect("it exists");
        assert_eq!(blobs.count(), 3);
    }
}
