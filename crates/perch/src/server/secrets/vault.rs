//! Seals the values of secrets with a key that lies outside the data directory.
//!
//! The key is read anew at each use: who puts a lost file back need not restart anything. It is made when the first
//! secret is sealed, and never again while sealed values exist: a new key would hide that the old one is missing.
//! A sealed value is good for its own app, name and version only, and names its key, so that a wrong key is told from
//! damage.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::server::clock;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
/// Enough to tell values of one name apart; no more than that is shown.
const DIGEST_BYTES: usize = 8;

/// Where the key is, and how it is used.
#[derive(Debug)]
pub(crate) struct Vault {
    file: PathBuf,
    making: Mutex<()>,
}

/// Why values cannot be sealed or opened; each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("the key of the secrets, {0}, is missing; put it back from your backup. If it is lost, make a new one \
             (`umask 077; openssl rand -hex 32 > {0}`) and set the secrets again", file.display())]
    Missing { file: PathBuf },
    #[error("everybody may read {0}, the key of the secrets; run: chmod 600 {0}", file.display())]
    Open { file: PathBuf },
    #[error("{} is no key of secrets: it must hold {KEY_BYTES} bytes in hexadecimal; put the right file back", file.display())]
    NoKey { file: PathBuf },
    #[error("{0} is not the key that secret {name} was sealed with; put the right file back, or set {name} again", file.display())]
    WrongKey { file: PathBuf, name: String },
    #[error("the stored value of secret {name} is damaged; set {name} again")]
    Damaged { name: String },
    #[error("could not {doing} {}, the key of the secrets (key `secrets_key` of the server's configuration)", file.display())]
    Io {
        doing: &'static str,
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What a value belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) app: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: u64,
}

impl Place<'_> {
    /// Unambiguous: neither names of apps nor of secrets contain a NUL.
    fn bound(&self) -> Vec<u8> {
        format!("perch secret\0{}\0{}\0{}", self.app, self.name, self.version).into_bytes()
    }
}

/// A key in use. Prints as dots.
pub(crate) struct Key {
    cipher: XChaCha20Poly1305,
    digests: Hmac<Sha256>,
    /// Names the key without telling anything about it.
    id: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Vault {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file, making: Mutex::new(()) }
    }

    /// The key, for opening. Reads a file.
    ///
    /// # Errors
    /// When it is not there, not private, or no key.
    pub(crate) fn key(&self) -> Result<Key, VaultError> {
        let file = self.file.clone();
        let meta = match fs::metadata(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VaultError::Missing { file });
            }
            found => found.map_err(|error| self.failed("look at", error))?,
        };
        if meta.mode() & 0o077 != 0 {
            return Err(VaultError::Open { file });
        }
        let text = fs::read_to_string(&file).map_err(|error| self.failed("read", error))?;
        let bytes = unhex(text.trim()).and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok());
        bytes.map(|bytes| Key::new(&bytes)).ok_or(VaultError::NoKey { file })
    }

    /// The key, for sealing: made now if there is none. `is_first` says whether nothing sealed exists.
    ///
    /// # Errors
    /// As [`Vault::key`], and when it cannot be made.
    pub(crate) fn key_or_new(&self, is_first: impl FnOnce() -> bool) -> Result<Key, VaultError> {
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match self.key() {
            Err(VaultError::Missing { .. }) if is_first() => {
                self.make().map_err(|error| self.failed("make", error))?;
                tracing::info!(file = %self.file.display(), "made the key of the secrets; keep a copy of it");
                self.key()
            }
            found => found,
        }
    }

    /// Writes a new key where none is; all of it or nothing, also after a power cut.
    fn make(&self) -> io::Result<()> {
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        let draft = self.file.with_added_extension("new");
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
        let key = hex(&clock::random_bytes::<KEY_BYTES>());
        file.write_all(format!("{key}\n").as_bytes())?;
        file.sync_all()?;
        // Never over a file that came meanwhile.
        let linked = fs::hard_link(&draft, &self.file);
        fs::remove_file(&draft)?;
        linked?;
        File::open(dir)?.sync_all()
    }

    /// Opens a value that was sealed for this place.
    ///
    /// # Errors
    /// When the key is another one, or the value damaged.
    pub(crate) fn open(
        &self,
        key: &Key,
        place: Place<'_>,
        sealed: &Sealed,
    ) -> Result<String, VaultError> {
        let name = place.name.to_owned();
        if sealed.key != key.id {
            return Err(VaultError::WrongKey { file: self.file.clone(), name });
        }
        key.open(place, sealed).ok_or(VaultError::Damaged { name })
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> VaultError {
        VaultError::Io { doing, file: self.file.clone(), source }
    }
}

/// A sealed value, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sealed {
    /// Which key it was sealed with.
    key: String,
    /// Nonce and sealed bytes in hexadecimal.
    bytes: String,
}

impl Sealed {
    /// What no key opens.
    #[cfg(test)]
    pub(crate) fn pretended(text: &str) -> Self {
        Self { key: String::new(), bytes: hex(text.as_bytes()) }
    }
}

impl Key {
    fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let part = |what: &str| {
            let mut mac = mac_of(bytes);
            mac.update(what.as_bytes());
            mac.finalize().into_bytes()
        };
        Self {
            cipher: XChaCha20Poly1305::new(&<[u8; KEY_BYTES]>::from(part("seal")).into()),
            digests: mac_of(&part("digest")),
            id: hex(&part("id")[..DIGEST_BYTES]),
        }
    }

    /// Seals a value for its place.
    pub(crate) fn seal(&self, place: Place<'_>, value: &str) -> Sealed {
        let nonce = clock::random_bytes::<NONCE_BYTES>();
        let payload = Payload { msg: value.as_bytes(), aad: &place.bound() };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload);
        // It fails beyond 256 GB only.
        let sealed = sealed.expect("a value is shorter than what the cipher takes");
        Sealed { key: self.id.clone(), bytes: hex(&[nonce.as_slice(), &sealed].concat()) }
    }

    fn open(&self, place: Place<'_>, sealed: &Sealed) -> Option<String> {
        let bytes = unhex(&sealed.bytes)?;
        let (nonce, msg) = bytes.split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload { msg, aad: &place.bound() };
        let opened = self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()?;
        String::from_utf8(opened).ok()
    }

    /// Tells values of one app's secret apart. Without the key nobody can try guesses against it.
    pub(crate) fn digest(&self, app: &str, name: &str, value: &str) -> String {
        let mut mac = self.digests.clone();
        mac.update(format!("{app}\0{name}\0").as_bytes());
        mac.update(value.as_bytes());
        hex(&mac.finalize().into_bytes()[..DIGEST_BYTES])
    }
}

fn mac_of(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("an HMAC takes keys of every length")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const PLACE: Place<'static> = Place { app: "web", name: "KEY", version: 3 };

    fn vault() -> (tempfile::TempDir, Vault) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vault = Vault::new(dir.path().join("etc/secrets.key"));
        (dir, vault)
    }

    #[test]
    fn the_key_is_made_once_for_root_alone_and_only_when_nothing_is_sealed() {
        let (_dir, vault) = vault();
        let missing = vault.key_or_new(|| false).expect_err("sealed values exist").to_string();
        assert!(missing.contains("secrets.key") && missing.contains("backup"), "{missing}");
        assert!(matches!(vault.key(), Err(VaultError::Missing { .. })));
        let first = vault.key_or_new(|| true).expect("made");
        assert_eq!(fs::metadata(&vault.file).expect("there").mode() & 0o7777, 0o600);
        assert_eq!(vault.key_or_new(|| true).expect("read").id, first.id);
        let left = fs::read_dir(vault.file.parent().expect("one")).expect("there").count();
        assert_eq!(left, 1, "a draft is left");
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let (_dir, vault) = vault();
        vault.key_or_new(|| true).expect("made");
        let mode = |mode| fs::set_permissions(&vault.file, PermissionsExt::from_mode(mode));
        for open in [0o640, 0o604] {
            mode(open).expect("ours");
            let error = vault.key().expect_err("not private").to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
        mode(0o600).expect("ours");
        for text in ["", "abc", "zz", &"a".repeat(62), &"g".repeat(64)] {
            fs::write(&vault.file, text).expect("ours");
            assert!(matches!(vault.key(), Err(VaultError::NoKey { .. })), "{text}");
        }
    }

    #[test]
    fn a_value_is_good_for_its_own_place_only() {
        let (_dir, vault) = vault();
        let key = vault.key_or_new(|| true).expect("made");
        let sealed = key.seal(PLACE, "hunter2");
        assert_eq!(vault.open(&key, PLACE, &sealed).expect("opened"), "hunter2");
        assert!(!serde_json::to_string(&sealed).expect("JSON").contains("hunter2"));
        assert_ne!(key.seal(PLACE, "hunter2"), sealed, "the nonce is another one");
        for place in [
            Place { app: "api", ..PLACE },
            Place { name: "OTHER", ..PLACE },
            Place { version: 4, ..PLACE },
        ] {
            let error = vault.open(&key, place, &sealed).expect_err("another place");
            assert!(matches!(error, VaultError::Damaged { .. }), "{error}");
        }
        for at in [0, sealed.bytes.len() - 1] {
            let mut bytes = sealed.bytes.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let changed =
                Sealed { bytes: String::from_utf8(bytes).expect("hex"), ..sealed.clone() };
            assert!(vault.open(&key, PLACE, &changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let (_dir, vault) = vault();
        let sealed = vault.key_or_new(|| true).expect("made").seal(PLACE, "hunter2");
        fs::write(&vault.file, "7".repeat(64)).expect("ours");
        let error = vault.open(&vault.key().expect("a key"), PLACE, &sealed).expect_err("wrong");
        let text = error.to_string();
        assert!(text.contains("secrets.key is not the key") && text.contains("KEY"), "{text}");
    }

    #[test]
    fn a_digest_tells_values_apart_and_needs_the_key() {
        let key = Key::new(&[7; KEY_BYTES]);
        let digest = key.digest("web", "KEY", "a");
        assert_eq!(digest.len(), 16);
        assert_eq!(digest, key.digest("web", "KEY", "a"));
        assert_ne!(digest, key.digest("web", "KEY", "b"));
        assert_ne!(digest, key.digest("web", "OTHER", "a"));
        assert_ne!(digest, Key::new(&[8; KEY_BYTES]).digest("web", "KEY", "a"));
    }
}
