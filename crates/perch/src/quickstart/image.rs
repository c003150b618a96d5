//! Makes an OCI layout of the example app: one layer with one static program.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::embedded::HELLO;

/// Where the program lies in the image.
const PROGRAM: &str = "hello";
/// Every user may run it.
const PROGRAM_MODE: u32 = 0o755;

/// A blob's digest and length, as a manifest names it.
struct Blob {
    digest: String,
    size: usize,
}

/// Writes the layout into `dir`, which is made.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn write_layout(dir: &Path) -> anyhow::Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("could not make {}", blobs.display()))?;
    let layer = put(&blobs, &layer()?)?;
    let config = put(&blobs, &serde_json::to_vec(&config(&layer))?)?;
    let manifest = put(&blobs, &serde_json::to_vec(&manifest(&config, &layer))?)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest.digest,
            "size": manifest.size,
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    write(&dir.join("index.json"), &serde_json::to_vec(&index)?)?;
    write(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn layer() -> anyhow::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_size(HELLO.len() as u64);
    header.set_mode(PROGRAM_MODE);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, PROGRAM, HELLO).context("could not pack the example app")?;
    archive.into_inner().context("could not pack the example app")
}

fn config(layer: &Blob) -> serde_json::Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": [format!("/{PROGRAM}")], "ExposedPorts": {"8080/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    })
}

fn manifest(config: &Blob, layer: &Blob) -> serde_json::Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest,
            "size": config.size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.digest,
            "size": layer.size,
        }],
    })
}

fn put(blobs: &Path, bytes: &[u8]) -> anyhow::Result<Blob> {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    write(&blobs.join(&hex), bytes)?;
    Ok(Blob { digest: format!("sha256:{hex}"), size: bytes.len() })
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_names_a_blob_that_is_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_layout(dir.path()).expect("written");
        let read = |path: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
        };
        let blob = |digest: &str| dir.path().join("blobs/sha256").join(&digest["sha256:".len()..]);
        let index = read(&dir.path().join("index.json"));
        let manifest = read(&blob(index["manifests"][0]["digest"].as_str().expect("text")));
        for part in [&manifest["config"], &manifest["layers"][0]] {
            let path = blob(part["digest"].as_str().expect("text"));
            assert_eq!(
                fs::metadata(path).expect("there").len(),
                part["size"].as_u64().expect("number")
            );
        }
    }
}
