//! Tar files of images: where each member lies, and what `docker save` writes.

use super::layout::{PartReader, read_part};
use super::manifest::{
    CONFIG_TYPE, Descriptor, LAYER_TYPE, MANIFEST_TYPE, Manifest, digest, digest_reader,
};
use super::{Blob, Content, Image, ImageError, MANIFEST_BYTES_MAX};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

const WANTED: &str = "a Docker archive";
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A tar file and where its members lie in it, so that large ones are read once, while pushed.
pub(super) struct Members {
    path: PathBuf,
    file: Arc<File>,
    parts: BTreeMap<String, (u64, u64)>,
}

/// An entry of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

impl Members {
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read { path: path.to_owned(), source };
        Self::of_file(File::open(path).map_err(read)?, path)
    }

    /// Lists a file that is open; the path is for messages only.
    pub(super) fn of_file(file: File, path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read { path: path.to_owned(), source };
        if read_part(&file, 0, 2).is_ok_and(|magic| magic == GZIP_MAGIC) {
            return Err(ImageError::Compressed { path: path.to_owned() });
        }
        let mut parts = BTreeMap::new();
        let mut links = Vec::new();
        let mut tar = tar::Archive::new(&file);
        for entry in tar.entries_with_seek().map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = plain_name(&entry.path().map_err(read)?);
            match (entry.header().entry_type(), entry.link_name().map_err(read)?) {
                (kind, _) if kind.is_file() => {
                    parts.insert(name, (entry.raw_file_position(), entry.size()));
                }
                // Older Docker saves a layer once and links to it; the target is inside the archive.
                (kind, Some(target)) if kind.is_symlink() => {
                    let parent = Path::new(&name).parent().map(Path::to_owned).unwrap_or_default();
                    links.push((name, plain_name(&parent.join(target))));
                }
                (kind, Some(target)) if kind.is_hard_link() => {
                    links.push((name, plain_name(&target)));
                }
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(part) = parts.get(&target).copied() {
                parts.insert(name, part);
            }
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), parts })
    }

    pub(super) fn part(&self, name: &str) -> Option<(Arc<File>, u64, u64)> {
        let (offset, size) = *self.parts.get(&plain_name(Path::new(name)))?;
        Some((self.file.clone(), offset, size))
    }

    fn required(&self, name: &str) -> Result<(Arc<File>, u64, u64), ImageError> {
        self.part(name).ok_or_else(|| self.bad(format!("it has no file {name}")))
    }

    fn read_small(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (file, offset, size) = self.required(name)?;
        if size > MANIFEST_BYTES_MAX {
            return Err(self.bad(format!("{name} has {size} bytes")));
        }
        read_part(&file, offset, size)
            .map_err(|source| ImageError::Read { path: self.path.clone(), source })
    }

    fn bad(&self, reason: String) -> ImageError {
        ImageError::NotAnImage { path: self.path.clone(), wanted: WANTED, reason }
    }
}

/// A member's name without `.` and `..`, so that links and manifests meet. Members are looked up
/// by it and never written anywhere, so a wrong name finds nothing.
fn plain_name(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}

/// Opens what `docker save` wrote.
pub(super) fn open(path: &Path) -> Result<Image, ImageError> {
    image_of(&Members::open(path)?)
}

/// The image of a `docker save` archive, with a manifest made for it: such archives have none.
pub(super) fn image_of(members: &Members) -> Result<Image, ImageError> {
    let saved: Vec<SavedImage> = serde_json::from_slice(&members.read_small("manifest.json")?)
        .map_err(|error| members.bad(error.to_string()))?;
    let [saved] = saved.as_slice() else {
        return Err(members.bad(format!("it has {} images instead of one", saved.len())));
    };
    let config = members.read_small(&saved.config)?;
    let mut descriptors = Vec::new();
    let mut blobs = vec![Blob {
        digest: digest(&config),
        size: config.len() as u64,
        content: Content::Bytes(config),
    }];
    for name in &saved.layers {
        let (file, offset, size) = members.required(name)?;
        let read = |source| ImageError::Read { path: members.path.clone(), source };
        let reader = PartReader { file: &file, offset, left: size };
        let (digest, size) = digest_reader(reader).map_err(read)?;
        let magic = read_part(&file, offset, size.min(2)).map_err(read)?;
        let suffix = if magic == GZIP_MAGIC { "+gzip" } else { "" };
        descriptors.push(descriptor(&format!("{LAYER_TYPE}{suffix}"), &digest, size));
        blobs.push(Blob { digest, size, content: Content::Part { file, offset } });
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST_TYPE.to_owned()),
        config: descriptor(CONFIG_TYPE, &blobs[0].digest, blobs[0].size),
        layers: descriptors,
    };
    let manifest = serde_json::to_vec(&manifest).map_err(|error| members.bad(error.to_string()))?;
    Ok(Image { manifest, media_type: MANIFEST_TYPE.to_owned(), blobs })
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Descriptor {
    let (media_type, digest) = (media_type.to_owned(), digest.to_owned());
    Descriptor { media_type, digest, size, platform: None, annotations: None }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// What `docker save` would write: some files and one image with one layer.
    pub(in crate::image) fn saved(files: &[(&str, &[u8])], layer: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let manifest = format!(r#"[{{"Config": "c.json", "Layers": ["{layer}"]}}]"#);
        let config = br#"{"config": {"ExposedPorts": {"9000/tcp": {}, "8081/tcp": {}}}}"#;
        let own = [("manifest.json", manifest.as_bytes()), ("c.json", config.as_slice())];
        for (name, content) in own.iter().chain(files) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).expect("memory takes it");
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "b/link.tar", "../layer.tar").expect("memory takes it");
        tar.into_inner().expect("memory takes it")
    }

    fn open_bytes(bytes: &[u8]) -> Result<Image, ImageError> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("the disk takes it");
        std::io::Seek::rewind(&mut file).expect("it is a file");
        image_of(&Members::of_file(file, Path::new("image.tar"))?)
    }

    #[test]
    fn a_file_that_is_no_image_is_refused_with_the_reason() {
        let text = |bytes: &[u8]| open_bytes(bytes).expect_err("it is none").to_string();
        assert!(text(&[0x1f, 0x8b, 8, 0]).contains("decompress it first"));
        let empty = tar::Builder::new(Vec::new()).into_inner().expect("memory takes it");
        assert_eq!(text(&empty), "image.tar is not a Docker archive: it has no file manifest.json");
        let missing = saved(&[], "gone.tar");
        assert_eq!(text(&missing), "image.tar is not a Docker archive: it has no file gone.tar");
    }

    #[test]
    fn layers_get_digests_a_manifest_and_their_links_are_followed() {
        for layer in ["layer.tar", "b/link.tar"] {
            let image = open_bytes(&saved(&[("layer.tar", b"abc")], layer)).expect("it is whole");
            let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
            assert_eq!(image.blobs[1].digest, abc);
            assert_eq!(image.blobs[1].size, 3);
            assert_eq!(image.exposed_port(), Some(8081));
            let manifest: Manifest = serde_json::from_slice(&image.manifest).expect("it is ours");
            assert_eq!(manifest.layers[0].digest, abc);
            assert_eq!(manifest.config.digest, image.blobs[0].digest);
        }
    }
}
