//! Removes what no image in use consists of.
//!
//! Everything is first moved into `scratch/`, in an order in which a crash at any step leaves only images that are
//! whole or unknown: tags, manifests, then layers and blobs that no manifest names any more. What is in `scratch/` is
//! deleted afterwards, by this process or by the next one that opens the store.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::TryLockError;
use std::time::SystemTime;

use super::{
    ConfigFile, Digest, ImageError, ImageStore, Manifest, entries, held, io_error, random_id,
};

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Digests of manifests and indexes.
    pub manifests: Vec<Digest>,
    /// Bytes of blobs; unpacked layers come on top.
    pub blob_bytes: u64,
}

/// What is to go, in the order in which it must go.
#[derive(Debug, Default)]
struct Doomed {
    tags: Vec<PathBuf>,
    manifests: Vec<PathBuf>,
    parts: Vec<PathBuf>,
}

/// What the kept images consist of, by the hexadecimal part of each digest.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) manifests: BTreeSet<String>,
    pub(super) blobs: BTreeSet<String>,
    layers: BTreeSet<String>,
}

impl ImageStore {
    /// Removes images that are neither in `used` nor were pushed or asked for since `unused_since`, and what only they
    /// consist of. Nothing is removed while somebody unpacks. Blocks until all is deleted.
    pub fn prune(
        &self,
        used: &BTreeSet<Digest>,
        unused_since: SystemTime,
    ) -> Result<Pruned, ImageError> {
        let alone = match self.filling.try_write() {
            Err(TryLockError::WouldBlock) => return Ok(Pruned::default()),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Ok(guard) => guard,
        };
        let gate = held(&self.gate);
        let doomed = self.doomed(used, unused_since)?;
        let pruned = doomed.pruned();
        let mut aside = Vec::new();
        let moved = doomed.steps().try_for_each(|path| {
            aside.push(self.set_aside(path)?);
            Ok(())
        });
        drop((gate, alone));
        aside.iter().for_each(|path| delete(path));
        moved.map(|()| pruned)
    }

    fn doomed(&self, used: &BTreeSet<Digest>, since: SystemTime) -> Result<Doomed, ImageError> {
        let live = self.live(used, since)?;
        let outside = |dir: &str, kept: &BTreeSet<String>| -> Result<Vec<PathBuf>, ImageError> {
            let all = entries(&self.dir.join(dir))?;
            Ok(all.into_iter().filter(|path| !kept.contains(name(path))).collect())
        };
        let mut parts = Vec::new();
        for range in entries(&self.dir.join("shifted"))? {
            let copies = entries(&range)?;
            parts.extend(copies.into_iter().filter(|copy| !live.layers.contains(name(copy))));
        }
        parts.extend(outside("layers", &live.layers)?);
        let blobs = outside("blobs", &live.blobs)?;
        parts.extend(blobs.into_iter().filter(|path| !is_young(path, since)));
        let manifests = outside("manifests", &live.manifests)?;
        Ok(Doomed { tags: self.dead_tags(&live)?, manifests, parts })
    }

    fn dead_tags(&self, live: &Live) -> Result<Vec<PathBuf>, ImageError> {
        let mut dead = Vec::new();
        for app in entries(&self.dir.join("tags"))? {
            for tag in entries(&app)? {
                let text = fs::read_to_string(&tag).map_err(io_error("read", &tag))?;
                let kept = text.parse::<Digest>().is_ok_and(|it| live.manifests.contains(it.hex()));
                if !kept {
                    dead.push(tag);
                }
            }
        }
        Ok(dead)
    }

    /// Marks from the manifests that stay. An error leaves it open what a kept image needs, so nothing may go.
    pub(super) fn live(
        &self,
        used: &BTreeSet<Digest>,
        since: SystemTime,
    ) -> Result<Live, ImageError> {
        let known = entries(&self.dir.join("manifests"))?;
        let used: BTreeSet<&str> = used.iter().map(Digest::hex).collect();
        let stays = |path: &&PathBuf| used.contains(name(path)) || is_young(path, since);
        let mut open: Vec<String> =
            known.iter().filter(stays).map(|path| name(path).to_owned()).collect();
        let mut live = Live::default();
        while let Some(hex) = open.pop() {
            if !live.manifests.insert(hex.clone()) {
                continue;
            }
            live.blobs.insert(hex.clone());
            let Some(manifest) = self.read_json::<Manifest>(&hex)? else { continue };
            let children = manifest.manifests.iter().flatten();
            open.extend(children.filter_map(|child| hex_of(&child.digest)));
            self.mark_parts(&manifest, &mut live)?;
        }
        Ok(live)
    }

    fn mark_parts(&self, manifest: &Manifest, live: &mut Live) -> Result<(), ImageError> {
        let parts = manifest.layers.iter().chain(&manifest.config);
        live.blobs.extend(parts.filter_map(|part| hex_of(&part.digest)));
        let Some(config) = manifest.config.as_ref().and_then(|it| hex_of(&it.digest)) else {
            return Ok(());
        };
        if let Some(config) = self.read_json::<ConfigFile>(&config)? {
            live.layers.extend(config.rootfs.diff_ids.iter().filter_map(|it| hex_of(it)));
        }
        Ok(())
    }

    /// A small blob; `None` when it is not there or not what it should be: nothing can be unpacked by it then.
    fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        hex: &str,
    ) -> Result<Option<T>, ImageError> {
        let path = self.dir.join("blobs").join(hex);
        match fs::metadata(&path).map(|meta| meta.len()) {
            Ok(len) if len <= self.limits.manifest_bytes_max => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        }
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Takes something out of the store in one step.
    fn set_aside(&self, path: &Path) -> Result<PathBuf, ImageError> {
        let to = self.dir.join("scratch").join(random_id().map_err(io_error("name", path))?);
        fs::rename(path, &to).map_err(io_error("remove", path))?;
        // What comes after must not reach the disk before.
        if path.parent().is_some_and(|dir| dir.ends_with("manifests")) {
            let dir = self.dir.join("manifests");
            File::open(&dir).and_then(|it| it.sync_all()).map_err(io_error("sync", &dir))?;
        }
        Ok(to)
    }
}

impl Doomed {
    fn steps(&self) -> impl Iterator<Item = &Path> {
        self.tags.iter().chain(&self.manifests).chain(&self.parts).map(PathBuf::as_path)
    }

    fn pruned(&self) -> Pruned {
        let digest = |path: &PathBuf| format!("sha256:{}", name(path)).parse().ok();
        let blobs = self.parts.iter().filter(|path| is_in(path, "blobs"));
        Pruned {
            manifests: self.manifests.iter().filter_map(digest).collect(),
            blob_bytes: blobs.filter_map(|path| fs::metadata(path).ok()).map(|it| it.len()).sum(),
        }
    }
}

fn is_in(path: &Path, dir: &str) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with(dir))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn hex_of(digest: &str) -> Option<String> {
    digest.parse::<Digest>().ok().map(|digest| digest.hex().to_owned())
}

/// Whether it was written, or asked for, since then. What cannot be told is young.
fn is_young(path: &Path, since: SystemTime) -> bool {
    fs::metadata(path).and_then(|meta| meta.modified()).map_or(true, |at| since <= at)
}

/// Says that a file is needed: it is young again. What is gone is not there to be needed.
pub(super) fn touch(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(file) => file.set_modified(SystemTime::now()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn delete(path: &Path) {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let deleted = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = deleted {
        tracing::warn!(%error, path = %path.display(), "not deleted yet; the next start will");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tested, digest_of, push, store};
    use super::*;
    use std::time::Duration;

    /// Pushes an image of one layer and makes as if it was unpacked.
    fn image(store: &ImageStore, app: &str, content: &str) -> Result<Digest, ImageError> {
        let layer = push(store, content.as_bytes())?;
        let diff_id = digest_of(format!("unpacked {content}").as_bytes());
        let config = format!(r#"{{"rootfs":{{"diff_ids":["{diff_id}"]}}}}"#);
        let config = push(store, config.as_bytes())?;
        let text =
            format!(r#"{{"config":{{"digest":"{config}"}},"layers":[{{"digest":"{layer}"}}]}}"#);
        let dir = store.dir.join("layers").join(diff_id.hex());
        fs::create_dir_all(dir.join("bin")).map_err(io_error("make", &dir))?;
        Ok(store.put_manifest(app, "latest", "m/t", text.as_bytes())?.digest)
    }

    /// Whether the image is there with all that it consists of.
    fn is_whole(store: &ImageStore, digest: &Digest) -> bool {
        let Ok((_, manifest)) = store.for_this_host(digest) else { return false };
        let Ok(config) = store.config_file(&manifest) else { return false };
        let layer = |id: &String| {
            id.parse::<Digest>().ok().map(|id| store.dir.join("layers").join(id.hex()))
        };
        store.check_parts(&manifest).is_ok()
            && config.rootfs.diff_ids.iter().filter_map(layer).all(|dir| dir.join("bin").exists())
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(60)
    }

    fn used(digests: &[&Digest]) -> BTreeSet<Digest> {
        digests.iter().map(|digest| (*digest).clone()).collect()
    }

    fn count(store: &ImageStore, dir: &str) -> usize {
        fs::read_dir(store.dir.join(dir)).map_or(0, Iterator::count)
    }

    #[test]
    fn what_no_used_image_consists_of_goes_and_the_rest_stays() -> Tested {
        let (store, dir) = store("prune")?;
        let (kept, gone) = (image(&store, "web", "one")?, image(&store, "old", "two")?);
        let pruned = store.prune(&used(&[&kept]), later())?;
        assert_eq!(pruned.manifests, std::slice::from_ref(&gone));
        assert!(0 < pruned.blob_bytes);
        assert!(is_whole(&store, &kept));
        assert!(store.resolve("old", "latest").is_err() && store.manifest(&gone).is_err());
        let counts = ["blobs", "manifests", "layers", "scratch"].map(|dir| count(&store, dir));
        assert_eq!(counts, [3, 1, 1, 0]);
        assert_eq!(store.prune(&used(&[&kept]), later())?, Pruned::default());
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn what_two_images_share_stays_with_the_one_that_is_used() -> Tested {
        let (store, dir) = store("prune-shared")?;
        let kept = image(&store, "web", "one")?;
        let layer = digest_of(b"one");
        let text = format!(
            r#"{{"config":{{"digest":"{}"}},"layers":[{{"digest":"{layer}"}}]}}"#,
            push(&store, br#"{"os":"linux"}"#)?
        );
        let gone = store.put_manifest("old", "v1", "m/t", text.as_bytes())?.digest;
        assert_eq!(store.prune(&used(&[&kept]), later())?.manifests, [gone]);
        assert!(is_whole(&store, &kept));
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn the_images_of_a_used_index_stay() -> Tested {
        let (store, dir) = store("prune-index")?;
        let child = image(&store, "web", "one")?;
        let (os, arch) = super::super::host_platform();
        let text = format!(
            r#"{{"manifests":[{{"digest":"{child}","platform":{{"os":"{os}","architecture":"{arch}"}}}}]}}"#
        );
        let index = store.put_manifest("web", "v1", "m/t", text.as_bytes())?.digest;
        assert_eq!(store.prune(&used(&[&index]), later())?.manifests, []);
        assert!(is_whole(&store, &index));
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn what_was_pushed_or_asked_for_lately_is_spared() -> Tested {
        let (store, dir) = store("prune-young")?;
        let (asked, other) = (image(&store, "web", "one")?, image(&store, "old", "two")?);
        let blob = push(&store, b"a layer whose manifest is still to come")?;
        let lonely = push(&store, b"a layer whose manifest never came")?;
        let old = SystemTime::now() - Duration::from_secs(3600);
        for path in entries(&dir.join("manifests"))?.into_iter().chain(entries(&dir.join("blobs"))?)
        {
            File::open(path)?.set_modified(old)?;
        }
        assert!(store.claim_blob(&blob)?.is_some());
        store.resolve("web", "latest")?;
        let pruned = store.prune(&BTreeSet::new(), old + Duration::from_secs(1))?;
        assert_eq!(pruned.manifests, [other]);
        assert!(is_whole(&store, &asked));
        assert!(store.blob_size(&blob).is_some() && store.blob_size(&lonely).is_none());
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn a_crash_at_any_step_leaves_images_whole_or_unknown() -> Tested {
        for crash_after in 0.. {
            let (store, dir) = store("prune-crash")?;
            let (kept, gone) = (image(&store, "web", "one")?, image(&store, "old", "two")?);
            let doomed = store.doomed(&used(&[&kept]), later())?;
            let steps: Vec<_> = doomed.steps().take(crash_after).collect();
            steps.iter().try_for_each(|path| store.set_aside(path).map(drop))?;
            let crashed = steps.len() == crash_after;
            drop(store);
            let limits = super::super::Limits::standard();
            let store = ImageStore::open(&dir, limits)?;
            assert!(is_whole(&store, &kept), "after {crash_after} steps");
            let known = store.manifest(&gone).is_ok();
            assert_eq!(known, is_whole(&store, &gone), "after {crash_after} steps");
            store.prune(&used(&[&kept]), later())?;
            assert_eq!(count(&store, "blobs"), 3, "after {crash_after} steps the rest goes");
            assert!(is_whole(&store, &image(&store, "old", "two")?), "it can be pushed again");
            fs::remove_dir_all(dir)?;
            if !crashed {
                return Ok(());
            }
        }
        Ok(())
    }

    #[test]
    fn nothing_goes_while_somebody_unpacks() -> Tested {
        let (store, dir) = store("prune-unpacking")?;
        let digest = image(&store, "web", "one")?;
        let unpacking = store.filling.read();
        assert_eq!(store.prune(&BTreeSet::new(), later())?, Pruned::default());
        drop(unpacking);
        assert_eq!(store.prune(&BTreeSet::new(), later())?.manifests, [digest]);
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn a_broken_manifest_stops_nobody() -> Tested {
        let (store, dir) = store("prune-broken")?;
        let (broken, gone) = (image(&store, "web", "one")?, image(&store, "old", "two")?);
        fs::write(store.blob_path(&broken), "no JSON")?;
        assert_eq!(store.prune(&used(&[&broken]), later())?.manifests, [gone]);
        Ok(fs::remove_dir_all(dir)?)
    }

    #[test]
    fn pushes_beside_prunes_are_whole_or_told_what_is_missing() -> Tested {
        let (store, dir) = store("prune-race")?;
        // A rendezvous for each round: a loop without one holds the lock nearly always, and a push may never get it.
        let (begin, begun) = std::sync::mpsc::sync_channel(0);
        std::thread::scope(|scope| {
            let store = &store;
            scope.spawn(move || {
                for () in begun {
                    store.prune(&BTreeSet::new(), later()).expect("it can be pruned");
                }
            });
            for round in 0..50 {
                begin.send(()).expect("somebody prunes");
                match image(store, "web", &format!("image {round}")) {
                    Ok(_) | Err(ImageError::BlobUnknown(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            drop(begin);
        });
        store.prune(&BTreeSet::new(), later())?;
        assert_eq!((count(&store, "manifests"), count(&store, "blobs")), (0, 0));
        Ok(fs::remove_dir_all(dir)?)
    }
}
