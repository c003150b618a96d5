//! Which files images consist of, for whoever copies them while a server goes on with the store.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Digest, ImageError, ImageStore, Limits, entries, io_error};

/// Later than any file was written.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What some images consist of.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Files that must be copied, relative to the store's directory.
    pub files: Vec<PathBuf>,
    /// How many images they are.
    pub images: usize,
    /// Images of which something is missing, or cannot be read.
    pub broken: Vec<Digest>,
}

/// Finds what the images `used` in the store at `dir` consist of: blobs, manifests and tags. Layers are not among it:
/// they are unpacked anew. Nothing is changed; what is named here may be removed at any time by the server.
pub fn parts(dir: &Path, used: &BTreeSet<Digest>) -> Result<Parts, ImageError> {
    let store = ImageStore::at(dir, Limits::standard());
    let live = store.live(used, SystemTime::now() + NEVER)?;
    let there = |kind: &str, names: BTreeSet<String>| -> Vec<PathBuf> {
        let paths = names.into_iter().map(|name| Path::new(kind).join(name));
        paths.filter(|path| dir.join(path).exists()).collect()
    };
    let mut files = store.tags_of(&live.manifests)?;
    files.extend(there("manifests", live.manifests));
    files.extend(there("blobs", live.blobs));
    let broken: Vec<Digest> = used.iter().filter(|it| !store.is_whole(it)).cloned().collect();
    Ok(Parts { files, images: used.len() - broken.len(), broken })
}

impl ImageStore {
    fn is_whole(&self, digest: &Digest) -> bool {
        let parts =
            self.for_this_host(digest).and_then(|(_, manifest)| self.check_parts(&manifest));
        parts.is_ok()
    }

    /// Tags that point at one of these, relative to the store's directory.
    fn tags_of(&self, manifests: &BTreeSet<String>) -> Result<Vec<PathBuf>, ImageError> {
        let mut found = Vec::new();
        for app in entries(&self.dir.join("tags"))? {
            for tag in entries(&app)? {
                let text = fs::read_to_string(&tag).map_err(io_error("read", &tag))?;
                let points = text.parse::<Digest>().is_ok_and(|it| manifests.contains(it.hex()));
                let relative = tag.strip_prefix(&self.dir).map(Path::to_owned);
                found.extend(relative.ok().filter(|_| points));
            }
        }
        Ok(found)
    }
}
