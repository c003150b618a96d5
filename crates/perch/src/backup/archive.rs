//! The file of a backup: a tar archive whose first member says what it is and whose last one has a checksum of each.
//!
//! ```text
//!  backup.json          format, release, schema, time
//!  store.db             apps, Machines, addresses, releases, tokens (hashed)
//!  images/…             blobs, manifests, tags
//!  machines/ID/…        events, with `--logs` also what the program printed
//!  perch.toml           the server's configuration, if there is one
//!  members.json         name, length and SHA-256 of each member before it
//! ```
//!
//! What is not of this form is refused before anything is made of it. `tar` can list and unpack it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Raised when an older release could not read what this one writes.
pub(crate) const FORMAT: u32 = 1;
/// First member.
pub(crate) const HEAD: &str = "backup.json";
/// Last member.
const MEMBERS: &str = "members.json";
/// Longest first member.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Longest last member: a million files.
const MEMBERS_BYTES_MAX: u64 = 256 << 20;
/// Longest part of a member's name: an app's or a tag's.
const NAME_BYTES_MAX: usize = 128;
/// Files of a Machine that a backup may have.
pub(crate) const MACHINE_FILES: [&str; 3] = ["events.jsonl", "log", "log.1"];

/// What the first member says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Of the file.
    pub(crate) format: u32,
    /// Release that wrote it.
    pub(crate) perch: String,
    /// Of the store.
    pub(crate) schema: u32,
    /// RFC 3339.
    pub(crate) created_at: String,
}

/// One file in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Reads through, and knows afterwards what and how much it was.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn member(self, name: &str) -> Member {
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Member { name: name.to_owned(), bytes: self.bytes, sha256 }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Writes an archive, member by member.
pub(crate) struct Writer<W: Write> {
    tar: tar::Builder<W>,
    members: Vec<Member>,
    mtime: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with the head. Every member gets `mtime` as its time.
    pub(crate) fn begin(to: W, head: &Head, mtime: u64) -> anyhow::Result<Self> {
        let mut writer = Self { tar: tar::Builder::new(to), members: Vec::new(), mtime };
        let text = serde_json::to_vec(head)?;
        writer.add(HEAD, text.len() as u64, text.as_slice())?;
        Ok(writer)
    }

    /// Adds the next `bytes` of a reader, and answers their checksum.
    pub(crate) fn add(&mut self, name: &str, bytes: u64, from: impl Read) -> io::Result<String> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(self.mtime);
        let mut from = Hashing::new(from.take(bytes));
        self.tar.append_data(&mut header, name, &mut from)?;
        let member = from.member(name);
        if member.bytes != bytes {
            return Err(io::Error::other(format!("{name} became shorter while it was read")));
        }
        let sha256 = member.sha256.clone();
        self.members.push(member);
        Ok(sha256)
    }

    /// Ends with the list of members.
    pub(crate) fn finish(mut self) -> anyhow::Result<W> {
        let text = serde_json::to_vec(&self.members)?;
        self.add(MEMBERS, text.len() as u64, text.as_slice())?;
        Ok(self.tar.into_inner()?)
    }
}

/// Says what a file is, without reading all of it.
///
/// # Errors
/// When it is no backup, or one that this release cannot read.
pub(crate) fn head(path: &Path) -> anyhow::Result<Head> {
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let no_backup = || format!("{} is no backup of perch", path.display());
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut entries = archive.entries().with_context(no_backup)?;
    let entry = entries.next().with_context(no_backup)?.with_context(no_backup)?;
    let named = entry.path().is_ok_and(|name| name == Path::new(HEAD));
    ensure!(named, "{}", no_backup());
    let mut text = Vec::new();
    entry.take(HEAD_BYTES_MAX).read_to_end(&mut text).with_context(no_backup)?;
    // The format first: the rest of a later one may be anything.
    let said: serde_json::Value = serde_json::from_slice(&text).with_context(no_backup)?;
    let format = said["format"].as_u64().with_context(no_backup)?;
    let known = perch_store::schema_known();
    let schema = said["schema"].as_u64().unwrap_or_default();
    ensure!(
        format <= u64::from(FORMAT) && schema <= u64::from(known),
        "{} was made by perch {} (format {format}, schema {schema}); this is perch {}, which knows format {FORMAT} and \
         schema {known}; restore it with the newer release",
        path.display(),
        said["perch"].as_str().unwrap_or("?"),
        env!("CARGO_PKG_VERSION")
    );
    serde_json::from_value(said).with_context(no_backup)
}

/// Unpacks a whole file into the directory `to`, where nothing is yet.
///
/// # Errors
/// When anything is not as the file's own checksums say; what lies in `to` is then of no use.
pub(crate) fn unpack(path: &Path, to: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
    let mut found = BTreeMap::new();
    let mut promised = None;
    for entry in archive.entries().with_context(|| cut(path))? {
        let mut entry = entry.with_context(|| damaged(path))?;
        let name = name_of(&entry).with_context(|| damaged(path))?;
        ensure!(promised.is_none(), "{}: {name} comes after its end", damaged(path));
        let size = entry.size();
        if name == MEMBERS {
            ensure!(size <= MEMBERS_BYTES_MAX, "{}: {MEMBERS} is too long", damaged(path));
            let members: Vec<Member> =
                serde_json::from_reader(&mut entry).with_context(|| damaged(path))?;
            promised = Some(members);
            continue;
        }
        let member = take_out(&mut entry, &name, to)?;
        ensure!(member.bytes == size, "{}: {name} is not whole", cut(path));
        ensure!(found.insert(name.clone(), member).is_none(), "{}: {name} twice", damaged(path));
    }
    let promised = promised.with_context(|| cut(path))?;
    compare(found, promised).with_context(|| damaged(path))
}

fn cut(path: &Path) -> String {
    format!("{} is cut short; nothing was restored", path.display())
}

fn damaged(path: &Path) -> String {
    format!("{} is damaged; nothing was restored", path.display())
}

/// The name of a regular file that a backup may have.
fn name_of(entry: &tar::Entry<'_, impl Read>) -> anyhow::Result<String> {
    let name = entry.path().context("a member has no readable name")?;
    let name = name.to_str().context("a member's name is no text")?.to_owned();
    ensure!(entry.header().entry_type().is_file(), "{name} is no regular file");
    ensure!(is_known(&name), "{name:?} is nothing that a backup has");
    Ok(name)
}

fn is_known(name: &str) -> bool {
    let hex = |it: &str| it.len() == 64 && it.bytes().all(|b| b.is_ascii_hexdigit());
    let word = |it: &str| {
        let first = it.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        first && it.bytes().all(rest) && it.len() <= NAME_BYTES_MAX
    };
    match *name.split('/').collect::<Vec<_>>() {
        [HEAD | MEMBERS | "store.db" | "perch.toml"] => true,
        ["images", "blobs" | "manifests", digest] => hex(digest),
        ["images", "tags", app, tag] => word(app) && word(tag),
        ["machines", id, file] => word(id) && MACHINE_FILES.contains(&file),
        _ => false,
    }
}

fn take_out(entry: &mut impl Read, name: &str, to: &Path) -> anyhow::Result<Member> {
    let target = to.join(name);
    let write = |entry: &mut Hashing<&mut dyn Read>| {
        if let Some(dir) = target.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut file = File::create_new(&target)?;
        io::copy(entry, &mut file)?;
        file.sync_data()
    };
    let mut entry = Hashing::new(entry as &mut dyn Read);
    write(&mut entry).with_context(|| format!("could not write {}", target.display()))?;
    Ok(entry.member(name))
}

fn compare(mut found: BTreeMap<String, Member>, promised: Vec<Member>) -> anyhow::Result<()> {
    for member in promised {
        match found.remove(&member.name) {
            None => bail!("{} is missing", member.name),
            Some(there) if there != member => {
                bail!("{} is not what its checksum says", member.name);
            }
            Some(_) => {}
        }
    }
    match found.into_keys().next() {
        None => Ok(()),
        Some(name) => bail!("{name} has no checksum"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(format: u32) -> Head {
        let (perch, created_at) = ("9.9.9".to_owned(), String::new());
        Head { format, perch, schema: perch_store::schema_known(), created_at }
    }

    fn written(head: &Head, members: &[(&str, &str)]) -> Vec<u8> {
        let mut writer = Writer::begin(Vec::new(), head, 0).expect("begun");
        for (name, text) in members {
            writer.add(name, text.len() as u64, text.as_bytes()).expect("added");
        }
        writer.finish().expect("finished")
    }

    fn usual() -> Vec<u8> {
        written(&head_of(FORMAT), &[("store.db", "apps"), ("machines/0a/events.jsonl", "{}")])
    }

    /// Unpacks bytes as a file; answers what the store is then, or the error.
    fn unpacked(bytes: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (file, to) = (dir.path().join("file"), dir.path().join("to"));
        std::fs::write(&file, bytes).expect("written");
        std::fs::create_dir(&to).expect("made");
        let done = head(&file).and_then(|_| unpack(&file, &to));
        done.map_err(|error| format!("{error:#}"))?;
        Ok(std::fs::read_to_string(to.join("store.db")).expect("it is there"))
    }

    #[test]
    fn what_was_written_is_unpacked() {
        assert_eq!(unpacked(&usual()), Ok("apps".to_owned()));
    }

    #[test]
    fn wherever_a_file_is_cut_it_is_refused() {
        let whole = usual();
        // The last two blocks only say that nothing follows, and the block before is filled up with zeros.
        for length in (0..whole.len() - 1536).step_by(97) {
            let error = unpacked(&whole[..length]).expect_err("cut");
            assert!(
                error.contains("cut short")
                    || error.contains("damaged")
                    || error.contains("no backup"),
                "{error}"
            );
        }
    }

    #[test]
    fn whichever_byte_of_content_is_changed_the_file_is_refused() {
        let whole = usual();
        for needle in ["apps", "{}", "store.db", "9.9.9"] {
            let at = whole.windows(needle.len()).position(|part| part == needle.as_bytes());
            let mut bytes = whole.clone();
            bytes[at.expect("it is in it")] ^= 1;
            let error = unpacked(&bytes).expect_err(needle);
            assert!(error.contains("damaged") || error.contains("no backup"), "{needle}: {error}");
        }
    }

    #[test]
    fn a_file_of_a_newer_release_is_refused_by_its_head() {
        let error = unpacked(&written(&head_of(FORMAT + 1), &[])).expect_err("newer");
        assert!(error.contains("perch 9.9.9") && error.contains("newer release"), "{error}");
        let newer = Head { schema: u32::MAX, ..head_of(FORMAT) };
        let error = unpacked(&written(&newer, &[])).expect_err("newer");
        assert!(error.contains("schema 4294967295"), "{error}");
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["etc/passwd", "machines/0a/spec.json", "images/blobs/x", "images/tags/a/.b"] {
            let error = unpacked(&written(&head_of(FORMAT), &[(name, "x")])).expect_err(name);
            assert!(error.contains("nothing that a backup has"), "{name}: {error}");
        }
        for name in
            ["../store.db", "/store.db", "machines/../log", "images/tags/../x", "store.db/x"]
        {
            assert!(!is_known(name), "{name}");
        }
    }

    #[test]
    fn a_link_is_no_member() {
        let mut tar = tar::Builder::new(Vec::new());
        let text = serde_json::to_vec(&head_of(FORMAT)).expect("JSON");
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, HEAD, text.as_slice()).expect("added");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "store.db", "/etc/shadow").expect("added");
        let error = unpacked(&tar.into_inner().expect("written")).expect_err("a link");
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        let mut writer = Writer::begin(Vec::new(), &head_of(FORMAT), 0).expect("begun");
        assert!(writer.add("store.db", 5, b"four".as_slice()).is_err());
    }
}
