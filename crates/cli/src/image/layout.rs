//! OCI layouts: a directory, or a tar file of one.

use super::archive::Members;
use super::manifest::{Descriptor, Index, Manifest, digest_hex};
use super::{Blob, Content, Image, ImageError, MANIFEST_BYTES_MAX};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

const WANTED: &str = "an OCI layout";

/// A layout's files, however they are kept.
enum Files<'a> {
    Dir(&'a Path),
    Archive(&'a Members),
}

/// Opens a layout directory.
pub(super) fn open_dir(dir: &Path, tag: Option<&str>) -> Result<Image, ImageError> {
    open(&Files::Dir(dir), dir, tag)
}

/// Opens a tar file of a layout.
pub(super) fn open_archive(path: &Path) -> Result<Image, ImageError> {
    let members = Members::open(path)?;
    open(&Files::Archive(&members), path, None)
}

fn open(files: &Files<'_>, path: &Path, tag: Option<&str>) -> Result<Image, ImageError> {
    let index: Index = parse(&files.read("index.json", path)?, path)?;
    let mut chosen = index.choose(path, tag)?.clone();
    let mut bytes = files.read_blob(&chosen, path)?;
    if chosen.is_index() {
        let inner: Index = parse(&bytes, path)?;
        chosen = inner.for_host()?.clone();
        bytes = files.read_blob(&chosen, path)?;
    }
    let manifest: Manifest = parse(&bytes, path)?;
    let descriptors = std::iter::once(&manifest.config).chain(&manifest.layers);
    let blobs = descriptors.map(|descriptor| files.blob(descriptor, path));
    Ok(Image {
        blobs: blobs.collect::<Result<_, _>>()?,
        media_type: manifest.media_type.clone().unwrap_or(chosen.media_type),
        manifest: bytes,
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| not_a_layout(path, error.to_string()))
}

fn not_a_layout(path: &Path, reason: String) -> ImageError {
    ImageError::NotAnImage { path: path.to_owned(), wanted: WANTED, reason }
}

impl Files<'_> {
    /// A file's part of a file on disk: the file, where it begins, how long it is.
    fn part(&self, name: &str, path: &Path) -> Result<(Arc<File>, u64, u64), ImageError> {
        match self {
            Self::Archive(members) => members
                .part(name)
                .ok_or_else(|| not_a_layout(path, format!("it has no file {name}"))),
            Self::Dir(dir) => {
                let path = dir.join(name);
                let read = |source| ImageError::Read { path: path.clone(), source };
                let file = File::open(&path).map_err(read)?;
                let size = file.metadata().map_err(read)?.len();
                Ok((Arc::new(file), 0, size))
            }
        }
    }

    fn read(&self, name: &str, path: &Path) -> Result<Vec<u8>, ImageError> {
        let (file, offset, size) = self.part(name, path)?;
        if size > MANIFEST_BYTES_MAX {
            return Err(not_a_layout(path, format!("{name} has {size} bytes")));
        }
        read_part(&file, offset, size)
            .map_err(|source| ImageError::Read { path: path.join(name), source })
    }

    fn read_blob(&self, descriptor: &Descriptor, path: &Path) -> Result<Vec<u8>, ImageError> {
        self.read(&blob_name(descriptor, path)?, path)
    }

    fn blob(&self, descriptor: &Descriptor, path: &Path) -> Result<Blob, ImageError> {
        let name = blob_name(descriptor, path)?;
        let (file, offset, size) = self.part(&name, path)?;
        if size != descriptor.size {
            let wanted = descriptor.size;
            return Err(not_a_layout(path, format!("{name} has {size} bytes instead of {wanted}")));
        }
        let digest = descriptor.digest.clone();
        Ok(Blob { digest, size, content: Content::Part { file, offset } })
    }
}

/// The digest is checked, so that a manifest cannot name files elsewhere.
fn blob_name(descriptor: &Descriptor, path: &Path) -> Result<String, ImageError> {
    let digest = &descriptor.digest;
    let hex = digest_hex(digest)
        .ok_or_else(|| not_a_layout(path, format!("'{digest}' is not a sha256 digest")))?;
    Ok(format!("blobs/sha256/{hex}"))
}

/// Reads a part of a file without moving its cursor, which others may share.
pub(super) fn read_part(file: &File, offset: u64, size: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PartReader { file, offset, left: size }.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a part of a file by position.
pub(super) struct PartReader<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
    pub(super) left: u64,
}

impl Read for PartReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = std::os::unix::fs::FileExt::read_at(self.file, &mut buffer[..want], self.offset)?;
        if got == 0 && want > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}
