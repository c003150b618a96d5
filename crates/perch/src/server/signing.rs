//! The key that signs `Fly-Src` (FC-41): made by the first server, kept in the data directory for root alone, given to the
//! proxy, and shown to each Machine as `/.fly/fly-src.pub` (FC-42).
//!
//! The file of the key says all that outlives a server: the newest key, and during a rotation the one before it and when
//! it began (`core::rotation`). It is in no backup: whoever has it can pretend to be any app, and a restored server makes
//! another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use perch_api::wire::{ApiError, SourceKey, SourceKeys};
use perch_core::rotation::{self, Stage};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::clock;
use super::world::{World, lock};

const SEED_BYTES: usize = 32;
/// In a Machine, below `/.fly`.
const SHOWN: &str = "fly-src.pub";
/// Timers do not run while the host sleeps; the wall clock is looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Signing {
    file: PathBuf,
    kept: Mutex<Kept>,
    changed: Notify,
}

/// What the file has.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Seed of the newest key, in hexadecimal.
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<Former>,
}

/// The key before the newest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Former {
    key: String,
    /// When the newest one came, in seconds since 1970.
    since: u64,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({})", if self.former.is_some() { "two keys" } else { "one key" })
    }
}

impl Signing {
    /// Reads the file, or makes the first key.
    ///
    /// # Errors
    /// When the file cannot be read or made, is not private, or has no key.
    pub(crate) fn open(file: PathBuf) -> anyhow::Result<Self> {
        let kept = match fs::metadata(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let kept = Kept { key: new_seed(), former: None };
                write(&file, &kept)
                    .with_context(|| format!("could not write the key {}", file.display()))?;
                kept
            }
            found => {
                let mode =
                    found.with_context(|| format!("could not look at {}", file.display()))?;
                anyhow::ensure!(
                    mode.mode() & 0o077 == 0,
                    "everybody may read {0}, the key that signs Fly-Src; run: chmod 600 {0}",
                    file.display()
                );
                read(&file)?
            }
        };
        Ok(Self { file, kept: Mutex::new(kept), changed: Notify::new() })
    }

    /// The seed that signs now, in hexadecimal.
    pub(crate) fn seed(&self) -> String {
        let kept = lock(&self.kept);
        kept.seeds(now()).0.to_owned()
    }

    /// Writes the keys into a Machine's directory, unless they are there.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn show(&self, dir: &Path) -> io::Result<()> {
        // Held over the write: else an older text could come last.
        let kept = lock(&self.kept);
        let (path, text) = (dir.join(SHOWN), kept.shown(now()));
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        let draft = dir.join("fly-src.pub.new");
        fs::write(&draft, &text)?;
        // The umask may have taken away what the Machine's users need.
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o644))?;
        fs::rename(draft, path)
    }

    /// The keys as Machines see them.
    pub(crate) fn list(&self) -> SourceKeys {
        let kept = lock(&self.kept);
        let now = now();
        let keys = kept.shown(now);
        let keys = keys.lines().enumerate().map(|(index, public)| SourceKey {
            public: public.to_owned(),
            signs: index == 0,
            until: kept.end_of(public, now).map(clock::stamp_at),
        });
        SourceKeys { keys: keys.collect() }
    }

    /// Makes another key: by a rotation, or at once, when the old one is forgotten.
    ///
    /// # Errors
    /// 409 while a rotation is under way, 500 when the disk does not take it.
    pub(crate) fn rotate(&self, at_once: bool) -> Result<(), ApiError> {
        let mut kept = lock(&self.kept);
        let now = now();
        if !at_once && let Some(end) = kept.end(now) {
            let end = clock::stamp_at(end);
            let text = format!(
                "a rotation is under way until {end}; wait for it, or replace all keys with `perch keys rotate --now`"
            );
            return Err(ApiError::conflict(text));
        }
        let former = Former { key: kept.key.clone(), since: now };
        let new = Kept { key: new_seed(), former: (!at_once).then_some(former) };
        write(&self.file, &new).map_err(|error| {
            ApiError::internal(format!("could not write {}: {error}", self.file.display()))
        })?;
        *kept = new;
        self.changed.notify_one();
        Ok(())
    }

    /// Forgets a key whose time is over.
    fn tidy_up(&self) -> io::Result<()> {
        let mut kept = lock(&self.kept);
        if kept.former.is_some() && kept.stage(now()).0 == Stage::Over {
            let new = Kept { former: None, ..kept.clone() };
            write(&self.file, &new)?;
            *kept = new;
        }
        Ok(())
    }

    /// How long everything stays as it is.
    fn pause(&self) -> Option<Duration> {
        lock(&self.kept).stage(now()).1
    }
}

impl Kept {
    fn stage(&self, now: u64) -> (Stage, Option<Duration>) {
        self.former.as_ref().map_or((Stage::Over, None), |it| rotation::stage(it.since, now))
    }

    /// The one that signs, and the other one that is shown.
    fn seeds(&self, now: u64) -> (&str, Option<&str>) {
        let former = self.former.as_ref().map(|former| former.key.as_str());
        match (self.stage(now).0, former) {
            (Stage::Begun, Some(former)) => (former, Some(&self.key)),
            (Stage::Turned, former) => (&self.key, former),
            (Stage::Begun, None) | (Stage::Over, _) => (&self.key, None),
        }
    }

    /// One public key a line, the one that signs first.
    fn shown(&self, now: u64) -> String {
        let (signs, other) = self.seeds(now);
        let line = |seed| format!("{}\n", public(seed).unwrap_or_default());
        line(signs) + &other.map(line).unwrap_or_default()
    }

    /// When the rotation ends that is under way.
    fn end(&self, now: u64) -> Option<i64> {
        let former = self.former.as_ref().filter(|_| self.stage(now).0 != Stage::Over)?;
        i64::try_from(former.since.saturating_add(rotation::OVERLAP.as_secs())).ok()
    }

    /// When this key is forgotten, as far as that is known.
    fn end_of(&self, shown: &str, now: u64) -> Option<i64> {
        let former = self.former.as_ref()?;
        self.end(now).filter(|_| public(&former.key).as_deref() == Some(shown))
    }
}

fn now() -> u64 {
    clock::unix_secs().unsigned_abs()
}

fn new_seed() -> String {
    hex(&clock::random_bytes::<SEED_BYTES>())
}

/// The public key of a seed; `None`: it is none.
fn public(seed: &str) -> Option<String> {
    let digits = seed.as_bytes();
    if digits.len() != 2 * SEED_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    let bytes = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<Vec<_>>>()?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&bytes).ok()?;
    Some(hex(pair.public_key().as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &Path) -> anyhow::Result<Kept> {
    let text = fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
    let kept = serde_json::from_slice::<Kept>(&text).ok();
    let is_good = |kept: &Kept| {
        let former = kept.former.iter().map(|former| &former.key);
        former.chain([&kept.key]).all(|seed| public(seed).is_some())
    };
    kept.filter(is_good).with_context(|| {
        format!(
            "{0} has no key that signs Fly-Src; remove it, and the server makes another one",
            file.display()
        )
    })
}

/// All of it or nothing, also after a power cut.
fn write(file: &Path, kept: &Kept) -> io::Result<()> {
    let draft = file.with_added_extension("new");
    let mut options = OpenOptions::new();
    let mut open = options.create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
    open.write_all(&serde_json::to_vec(kept).map_err(io::Error::other)?)?;
    open.write_all(b"\n")?;
    open.sync_all()?;
    fs::rename(&draft, file)?;
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Makes another key, by a rotation or at once, and tells Machines and proxy.
///
/// # Errors
/// As [`Signing::rotate`].
pub(crate) async fn rotate(world: Arc<World>, at_once: bool) -> Result<SourceKeys, ApiError> {
    let owner = world.clone();
    let rotated = tokio::task::spawn_blocking(move || owner.signing.rotate(at_once)).await;
    rotated.map_err(|error| ApiError::internal(error.to_string()))??;
    show_all(&world).await;
    Ok(world.signing.list())
}

/// Tells Machines and proxy when a rotation goes on, until the server ends.
pub(crate) async fn keep(world: Arc<World>) {
    let mut told = world.signing.list();
    loop {
        if let Err(error) = world.signing.tidy_up() {
            tracing::warn!(%error, "could not forget a former key of Fly-Src");
        }
        let now = world.signing.list();
        if now != told {
            show_all(&world).await;
            told = now;
        }
        let pause = world.signing.pause().map(|left| left.min(LOOK_INTERVAL));
        let next = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = next => {}
            () = world.signing.changed.notified() => told = world.signing.list(),
            () = world.shutdown.cancelled() => return,
        }
    }
}

/// Machines first: nobody signs with what they do not know.
async fn show_all(world: &Arc<World>) {
    let ids: Vec<String> = world.keeper.read().machines.keys().cloned().collect();
    let owner = world.clone();
    let shown = tokio::task::spawn_blocking(move || {
        for id in &ids {
            super::inside::show_again(&owner, id);
        }
    });
    if let Err(error) = shown.await {
        tracing::error!(%error, "Machines were not shown the keys of Fly-Src");
    }
    world.proxy.networks_changed();
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn signing() -> (tempfile::TempDir, Signing) {
        let dir = tempfile::tempdir().expect("a directory");
        let signing = Signing::open(dir.path().join("fly-src.key")).expect("it is made");
        (dir, signing)
    }

    fn shown(signing: &Signing, now: u64) -> Vec<String> {
        lock(&signing.kept).shown(now).lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_key_is_made_once_for_root_alone() {
        let (_dir, signing) = signing();
        assert_eq!(fs::metadata(&signing.file).expect("there").mode() & 0o777, 0o600);
        let again = Signing::open(signing.file.clone()).expect("it is read");
        assert_eq!(again.seed(), signing.seed());
        assert!(!format!("{signing:?}").contains(&signing.seed()), "it is told to a log");
        fs::set_permissions(&signing.file, PermissionsExt::from_mode(0o640)).expect("ours");
        let error = Signing::open(signing.file.clone()).expect_err("not private").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_that_has_no_key_is_refused_with_a_remedy() {
        let (_dir, signing) = signing();
        for text in ["", "{}", r#"{"key":"5a"}"#, r#"{"key":"zz"}"#, "[]"] {
            fs::write(&signing.file, text).expect("ours");
            let error = Signing::open(signing.file.clone()).expect_err(text).to_string();
            assert!(error.contains("fly-src.key") && error.contains("remove it"), "{error}");
        }
    }

    #[test]
    fn both_keys_are_shown_for_a_day_and_the_signing_one_is_first() {
        let (_dir, signing) = signing();
        let old = shown(&signing, now());
        signing.rotate(false).expect("none is under way");
        let again = Signing::open(signing.file.clone()).expect("it outlives the server");
        assert_eq!(again.seed(), signing.seed());
        let begun = lock(&signing.kept).former.as_ref().expect("a former one").since;
        let both = shown(&signing, begun);
        assert_eq!((both.len(), &both[0]), (2, &old[0]), "the old one signs");
        let turned = shown(&signing, begun + DAY / 2);
        assert_eq!((&turned[0], &turned[1]), (&both[1], &both[0]), "the new one signs");
        assert_eq!(shown(&signing, begun + DAY), both[1..], "the old one is forgotten");
        assert_eq!(public(&signing.seed()), Some(both[0].clone()));
    }

    #[test]
    fn a_second_rotation_waits_unless_the_keys_are_replaced_at_once() {
        let (_dir, signing) = signing();
        signing.rotate(false).expect("none is under way");
        let error = signing.rotate(false).expect_err("one is under way");
        assert!(error.code == 409 && error.error.contains("--now"), "{error}");
        let both = shown(&signing, now());
        signing.rotate(true).expect("it is possible at any time");
        let one = shown(&signing, now());
        assert!(one.len() == 1 && !both.contains(&one[0]));
        assert_eq!(signing.list().keys.len(), 1);
    }

    #[test]
    fn a_key_whose_time_is_over_is_forgotten_on_the_disk_too() {
        let (_dir, signing) = signing();
        signing.rotate(false).expect("none is under way");
        signing.tidy_up().expect("a disk");
        assert!(read(&signing.file).expect("a key").former.is_some(), "it is too early");
        if let Some(former) = &mut lock(&signing.kept).former {
            former.since -= DAY;
        }
        signing.tidy_up().expect("a disk");
        assert!(read(&signing.file).expect("a key").former.is_none());
    }

    #[test]
    fn a_machine_is_shown_the_keys_and_only_changes_are_written() {
        let (dir, signing) = signing();
        signing.show(dir.path()).expect("a disk");
        let path = dir.path().join(SHOWN);
        let first = fs::metadata(&path).expect("it is there");
        assert_eq!(first.mode() & 0o777, 0o644);
        signing.show(dir.path()).expect("a disk");
        assert_eq!(fs::metadata(&path).expect("it is there").ino(), first.ino(), "written again");
        signing.rotate(false).expect("none is under way");
        signing.show(dir.path()).expect("a disk");
        assert_eq!(fs::read_to_string(&path).expect("text").lines().count(), 2);
    }
}
