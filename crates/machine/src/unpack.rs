//! Unpacks one layer in a process whose root is the target directory: `perch unpack DIR`.
//!
//! The layer is somebody else's file, so this process first locks itself in: it changes its root to the (empty) target
//! and gives up every right but those over files. Names that would leave the target, or reach into it through a link,
//! are refused all the same. What comes out is a layer in overlayfs form: a deleted name is a character device 0/0. That
//! a directory hides all below needs a right that this process no longer has, so the parent marks those.
//!
//! Device files and named pipes are refused too, wherever they are: a Machine's `/dev` is its own, and files that are none
//! have no place in an image. Left out are extended attributes (file capabilities have no effect under no_new_privs).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use flate2::bufread::MultiGzDecoder;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};

use crate::bundle::IDS;
use crate::launch::{Fault, is_disk_full};
use crate::shim::chain;

/// Names of the variables that carry the limits.
pub(crate) const BYTES_VARIABLE: &str = "PERCH_UNPACK_BYTES_MAX";
pub(crate) const ENTRIES_VARIABLE: &str = "PERCH_UNPACK_ENTRIES_MAX";
pub(crate) const MEMORY_VARIABLE: &str = "PERCH_UNPACK_MEMORY_MAX";
pub(crate) const FREE_VARIABLE: &str = "PERCH_UNPACK_FREE_MIN";

/// Longest name; the kernel's own limit, less its final zero.
const PATH_BYTES_MAX: usize = 4095;
/// Most that the names of hiding directories take in the answer, which the parent holds in memory. Images have a few.
pub(crate) const OPAQUE_BYTES_MAX: u64 = 1 << 20;
/// Most of a name that is shown: names are as long as the layer likes.
const SHOWN_CHARS_MAX: usize = 200;
/// How many entries are made before it is looked at how much space is left.
const ENTRIES_PER_LOOK: u64 = 64;
/// Ids that a Machine does not have become this one, "nobody".
const NOBODY: u32 = 65_534;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const RESERVED: &[u8] = b".wh..wh.";

/// What the unpacking process tells its parent.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The layer is unpacked.
    Done {
        /// Hexadecimal sha256 of the uncompressed layer.
        diff_id: String,
        /// Directories that hide what lower layers have below them, relative to the target.
        opaque: Vec<PathBuf>,
    },
    /// It is refused or could not be written.
    Failed {
        /// Why.
        reason: String,
        /// What that is about.
        fault: Fault,
    },
}

#[derive(Debug, thiserror::Error)]
enum UnpackError {
    #[error("could not {doing}")]
    Step {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("could not read the archive")]
    Archive(#[source] io::Error),
    #[error("could not unpack {}", shown(name))]
    Write {
        name: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is refused: {reason}", shown(name))]
    Refused { name: PathBuf, reason: &'static str },
    #[error(
        "{} is refused: it is {kind}; build the image without it: a Machine has its own /dev",
        shown(name)
    )]
    Special { name: PathBuf, kind: &'static str },
    #[error("layer has more than {limit} {what}")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("no space on the server's disk: {} MB must stay free for what runs there", free_min >> 20)]
    DiskFull { free_min: u64 },
}

impl UnpackError {
    fn fault(&self) -> Fault {
        match self {
            Self::DiskFull { .. } => Fault::DiskFull,
            Self::Write { source, .. } if is_disk_full(source) => Fault::DiskFull,
            Self::Step { .. } => Fault::Host,
            Self::Archive(_)
            | Self::Write { .. }
            | Self::Refused { .. }
            | Self::Special { .. }
            | Self::TooLarge { .. } => Fault::Image,
        }
    }
}

/// A name as it is put into a message.
fn shown(name: &Path) -> String {
    shortened(&format!("{name:?}"), SHOWN_CHARS_MAX)
}

/// The beginning of a text, with a mark where something is left out.
pub(crate) fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}… ({} bytes in all)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

fn step<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> UnpackError {
    move |source| UnpackError::Step { doing, source: source.into() }
}

/// Entry point of `perch unpack DIR`. Call it first thing in `main`, before any thread or runtime exists: standard input
/// is the layer's blob, standard output the answer to the parent.
pub fn main(dir: &Path) -> ExitCode {
    crate::shim::usual_priority();
    let answer = match confine(dir).and_then(|limits| unpack(io::stdin().lock(), limits)) {
        Ok(answer) => answer,
        Err(error) => Answer::Failed { reason: chain(&error), fault: error.fault() },
    };
    let sent = serde_json::to_vec(&answer).map_err(io::Error::from);
    match sent.and_then(|text| io::stdout().write_all(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    bytes: u64,
    entries: u64,
    /// What must stay free of the disk.
    free: u64,
}

fn confine(dir: &Path) -> Result<Limits, UnpackError> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let missing = || step("read the limits")(io::Error::from(io::ErrorKind::InvalidInput));
    let bytes = number(BYTES_VARIABLE).ok_or_else(missing)?;
    let entries = number(ENTRIES_VARIABLE).ok_or_else(missing)?;
    let memory = number(MEMORY_VARIABLE).ok_or_else(missing)?;
    let free = number(FREE_VARIABLE).ok_or_else(missing)?;
    rustix::process::chroot(dir).map_err(step("change the root to the target"))?;
    rustix::process::chdir("/").map_err(step("enter the target"))?;
    rustix::process::umask(Mode::empty());
    drop_privileges().map_err(step("drop privileges"))?;
    // Names and compression windows are as large as the layer says; what they take must not come from the Machines.
    let memory = Rlimit { current: Some(memory), maximum: Some(memory) };
    setrlimit(Resource::As, memory).map_err(step("limit its memory"))?;
    Ok(Limits { bytes, entries, free })
}

/// Keeps the rights over files and nothing else.
fn drop_privileges() -> io::Result<()> {
    use caps::{CapSet, Capability};
    let kept = [
        Capability::CAP_CHOWN,
        Capability::CAP_DAC_OVERRIDE,
        Capability::CAP_FOWNER,
        Capability::CAP_FSETID,
    ];
    let kept = caps::CapsHashSet::from(kept);
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept).map_err(io::Error::other)?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    rustix::thread::set_no_new_privs(true).map_err(Into::into)
}

fn unpack(blob: impl Read + 'static, limits: Limits) -> Result<Answer, UnpackError> {
    let stream = decompress(blob).map_err(UnpackError::Archive)?;
    let mut archive = Archive::new(Hashed { stream, hash: Sha256::new(), left: limits.bytes });
    let mut target = Target::open(limits)?;
    for entry in archive.entries().map_err(|error| read_error(error, limits))? {
        target.add(&mut entry.map_err(|error| read_error(error, limits))?)?;
    }
    let opaque = target.finish()?;
    let mut rest = archive.into_inner();
    // The digest covers what follows the end mark too.
    io::copy(&mut rest, &mut io::sink()).map_err(|error| read_error(error, limits))?;
    Ok(Answer::Done { diff_id: crate::images::hex(rest.hash), opaque })
}

fn read_error(error: io::Error, limits: Limits) -> UnpackError {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return UnpackError::TooLarge { what: "bytes", limit: limits.bytes };
    }
    UnpackError::Archive(error)
}

/// Recognises the compression by its first bytes, as the media type is only a claim.
fn decompress(blob: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut blob = BufReader::with_capacity(256 * 1024, blob);
    let start = io::BufRead::fill_buf(&mut blob)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(Zstd::new(blob))
        }
        _ => Box::new(blob),
    })
}

/// A zstd file: frames one after the other, some of which are to be skipped.
struct Zstd<S> {
    source: S,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<S: io::BufRead> Zstd<S> {
    fn new(source: S) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Goes to the next frame with content; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = (&mut self.source).take(u64::from(length));
                    io::copy(&mut skipped, &mut io::sink())?;
                }
                Err(error) => return Err(bad_zstd(&error)),
            }
        }
        Ok(false)
    }
}

fn bad_zstd(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl<S: io::BufRead> Read for Zstd<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = self.decoder.read(buffer)?;
            if len > 0 || buffer.is_empty() {
                return Ok(len);
            }
            if !self.in_frame || self.decoder.is_finished() {
                self.in_frame = self.next_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            let strategy = BlockDecodingStrategy::UptoBytes(buffer.len());
            let decoded = self.decoder.decode_blocks(&mut self.source, strategy);
            decoded.map_err(|error| bad_zstd(&error))?;
        }
    }
}

/// Counts and digests what passes.
struct Hashed<R> {
    stream: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.stream.read(buffer)?;
        self.left = self.left.checked_sub(len as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.hash.update(&buffer[..len]);
        Ok(len)
    }
}

/// The directory that is filled.
struct Target {
    root: OwnedFd,
    limits: Limits,
    /// Entries so far, and directories that no entry mentions: one name may imply two thousand.
    entries: u64,
    /// Bytes written so far: a sparse file writes what the archive does not hold.
    written: u64,
    /// The directory of the last entry, which the next one usually shares.
    last: Option<(PathBuf, OwnedFd)>,
    /// Modification times of directories, which filling them would change.
    times: BTreeMap<PathBuf, u64>,
    opaque: Vec<PathBuf>,
    opaque_bytes: u64,
}

/// What an entry's header says, checked.
struct Meta {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: u64,
}

impl Target {
    fn open(limits: Limits) -> Result<Self, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).map_err(step("open the target"))?;
        let (times, opaque) = (BTreeMap::new(), Vec::new());
        let (entries, written, opaque_bytes) = (0, 0, 0);
        Ok(Self { root, limits, entries, written, last: None, times, opaque, opaque_bytes })
    }

    /// One more file or directory.
    fn count(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        let limit = self.limits.entries;
        if limit < self.entries {
            return Err(UnpackError::TooLarge { what: "files", limit });
        }
        if self.entries % ENTRIES_PER_LOOK == 1 { self.check_space(0) } else { Ok(()) }
    }

    /// Refuses to take the space that Machines need.
    fn check_space(&self, needed: u64) -> Result<(), UnpackError> {
        let disk = rustix::fs::fstatvfs(&self.root).map_err(step("look at the disk"))?;
        let (free, free_min) = (disk.f_bavail * disk.f_frsize, self.limits.free);
        if free.saturating_sub(needed) < free_min {
            return Err(UnpackError::DiskFull { free_min });
        }
        Ok(())
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        self.count()?;
        let name = clean(&entry.path_bytes())?;
        let meta = meta(entry).map_err(UnpackError::Archive)?;
        let Some(last) = name.file_name().map(|last| last.as_encoded_bytes().to_vec()) else {
            // The root itself.
            return set_meta(&self.root, &meta, &name);
        };
        let parent = name.parent().unwrap_or(Path::new("")).to_owned();
        let dir = self.parent(&parent)?;
        let failed = |source: io::Error| UnpackError::Write { name: name.clone(), source };
        if last == OPAQUE {
            return self.hide_below(parent);
        }
        if last.starts_with(WHITEOUT) {
            return match whiteout(&dir, &last).map_err(failed)? {
                Some(own) => self.hide_below(parent.join(own)),
                None => Ok(()),
            };
        }
        let file = Path::new(name.file_name().unwrap_or_default());
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                make_room(&dir, file).map_err(failed)?;
                self.write_file(&dir, file, entry, &meta, &name)
            }
            EntryType::Directory => {
                if make_dir(&dir, file).map_err(failed)? == Under::Whiteout {
                    self.hide_below(name.clone())?;
                }
                self.times.insert(name.clone(), meta.mtime);
                set_meta(&open_dir(&dir, file).map_err(failed)?, &meta, &name)
            }
            EntryType::Symlink => {
                make_room(&dir, file).map_err(failed)?;
                let link = entry.link_name_bytes().unwrap_or_default();
                make_symlink(&dir, file, &link, &meta).map_err(failed)
            }
            EntryType::Link => {
                let link = entry.link_name_bytes().unwrap_or_default();
                make_room(&dir, file).map_err(failed)?;
                self.hard_link(&dir, file, &clean(&link)?).map_err(failed)
            }
            EntryType::Char | EntryType::Block => {
                Err(UnpackError::Special { name, kind: "a device" })
            }
            EntryType::Fifo => Err(UnpackError::Special { name, kind: "a named pipe" }),
            // Headers of formats that carry nothing we use.
            _ => Ok(()),
        }
    }

    /// Opens a parent directory without following links, making what the layer does not mention.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd, UnpackError> {
        let failed = |source| UnpackError::Write { name: path.to_owned(), source };
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return dir.try_clone().map_err(failed);
        }
        let mut dir = self.root.try_clone().map_err(failed)?;
        let mut walked = PathBuf::new();
        for component in path.components() {
            let name = Path::new(component.as_os_str());
            walked.push(name);
            dir = match open_dir(&dir, name) {
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound || is_whiteout(&dir, name) =>
                {
                    self.count()?;
                    if make_dir(&dir, name).map_err(failed)? == Under::Whiteout {
                        self.hide_below(walked.clone())?;
                    }
                    open_dir(&dir, name).map_err(failed)?
                }
                Err(error) if is_link_error(&error) => {
                    let reason = "its directory is a link or a file";
                    return Err(UnpackError::Refused { name: path.to_owned(), reason });
                }
                opened => opened.map_err(failed)?,
            };
        }
        self.last = Some((path.to_owned(), dir.try_clone().map_err(failed)?));
        Ok(dir)
    }

    /// A directory hides what the lower layers have in it.
    fn hide_below(&mut self, dir: PathBuf) -> Result<(), UnpackError> {
        self.opaque_bytes += dir.as_os_str().len() as u64 + 1;
        if OPAQUE_BYTES_MAX < self.opaque_bytes {
            let what = "bytes of names of directories that hide others";
            return Err(UnpackError::TooLarge { what, limit: OPAQUE_BYTES_MAX });
        }
        self.opaque.push(dir);
        Ok(())
    }

    fn write_file<R: Read>(
        &mut self,
        dir: &OwnedFd,
        file: &Path,
        entry: &mut Entry<'_, R>,
        meta: &Meta,
        name: &Path,
    ) -> Result<(), UnpackError> {
        let failed = |source: io::Error| UnpackError::Write { name: name.to_owned(), source };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(dir, file, flags, Mode::from_raw_mode(0o600));
        let mut out = File::from(made.map_err(|error| failed(error.into()))?);
        let limit = self.limits.bytes;
        if limit - self.written < entry.size() {
            return Err(UnpackError::TooLarge { what: "bytes", limit });
        }
        if 0 < entry.size() {
            self.check_space(entry.size())?;
        }
        let copied = io::copy(&mut entry.take(limit - self.written), &mut out);
        self.written += copied.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => read_error(error, self.limits),
            _ => failed(error),
        })?;
        let set = || {
            rustix::fs::fchown(out.as_fd(), Some(meta.uid), Some(meta.gid))?;
            rustix::fs::fchmod(out.as_fd(), meta.mode)?;
            rustix::fs::futimens(out.as_fd(), &times(meta.mtime))
        };
        set().map_err(|error| failed(error.into()))
    }

    fn hard_link(&self, dir: &OwnedFd, name: &Path, to: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let parent = rustix::fs::openat2(&self.root, parent, flags, Mode::empty(), resolve)?;
        let file = to.file_name().ok_or(io::ErrorKind::InvalidData)?;
        rustix::fs::linkat(&parent, file, dir, name, AtFlags::empty()).map_err(Into::into)
    }

    fn finish(self) -> Result<Vec<PathBuf>, UnpackError> {
        for (name, mtime) in self.times.iter().rev() {
            let failed = |source| UnpackError::Write { name: name.clone(), source };
            let times = times(*mtime);
            match rustix::fs::utimensat(&self.root, name, &times, AtFlags::SYMLINK_NOFOLLOW) {
                // A later entry replaced the directory.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(self.opaque)
    }
}

/// A mark that something of the lower layers is gone. It never concerns this layer's own files: where it has a directory
/// of that name, that one is answered, and has to hide what is below it.
fn whiteout<'a>(dir: &OwnedFd, name: &'a [u8]) -> io::Result<Option<&'a Path>> {
    use std::os::unix::ffi::OsStrExt;
    if name.starts_with(RESERVED) {
        return Ok(None);
    }
    let hidden = &name[WHITEOUT.len()..];
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "deletes no name"));
    }
    match rustix::fs::mknodat(dir, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::EXIST) => {
            let own = Path::new(std::ffi::OsStr::from_bytes(hidden));
            Ok(open_dir(dir, own).is_ok().then_some(own))
        }
        made => made.map(|()| None).map_err(Into::into),
    }
}

/// Whether this layer said before that what the lower ones have there is gone. It can have no other devices.
fn is_whiteout(dir: &OwnedFd, name: &Path) -> bool {
    let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::CharacterDevice)
}

/// A name without `.` components; empty for the root. Refuses what would lead outside.
fn clean(name: &[u8]) -> Result<PathBuf, UnpackError> {
    use std::os::unix::ffi::OsStrExt;
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let refused = |reason| Err(UnpackError::Refused { name: name.to_owned(), reason });
    if name.as_os_str().len() > PATH_BYTES_MAX {
        return refused("the name is too long");
    }
    let mut cleaned = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => cleaned.push(part),
            Component::CurDir => {}
            Component::ParentDir => return refused("the name contains '..'"),
            Component::RootDir | Component::Prefix(_) => return refused("the name is absolute"),
        }
    }
    Ok(cleaned)
}

fn meta<R: Read>(entry: &Entry<'_, R>) -> io::Result<Meta> {
    let header = entry.header();
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id < IDS).unwrap_or(NOBODY);
    Ok(Meta {
        mode: Mode::from_raw_mode(header.mode()? & 0o7777),
        uid: Uid::from_raw(id(header.uid()?)),
        gid: Gid::from_raw(id(header.gid()?)),
        mtime: header.mtime()?,
    })
}

fn times(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Owner, then mode (changing the owner clears set-id bits). The descriptor may be of the "path only" kind.
fn set_meta(file: &OwnedFd, meta: &Meta, name: &Path) -> Result<(), UnpackError> {
    let set = || {
        rustix::fs::chownat(file, "", Some(meta.uid), Some(meta.gid), AtFlags::EMPTY_PATH)?;
        rustix::fs::chmodat(file, ".", meta.mode, AtFlags::empty())
    };
    set().map_err(|error| UnpackError::Write { name: name.to_owned(), source: error.into() })
}

fn open_dir(dir: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(Into::into)
}

fn is_link_error(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::LOOP.raw_os_error()) || code == Some(Errno::NOTDIR.raw_os_error())
}

/// Makes a directory unless there is one; anything else of that name goes.
fn make_dir(dir: &OwnedFd, name: &Path) -> io::Result<Under> {
    let make = || rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755));
    match make() {
        Err(Errno::EXIST) if open_dir(dir, name).is_ok() => Ok(Under::Lower),
        Err(Errno::EXIST) => {
            let under = if is_whiteout(dir, name) { Under::Whiteout } else { Under::Lower };
            make_room(dir, name)?;
            make().map(|()| under).map_err(Into::into)
        }
        made => made.map(|()| Under::Lower).map_err(Into::into),
    }
}

/// What a directory of this layer is laid over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Under {
    /// What the lower layers have there.
    Lower,
    /// Nothing: this layer says that what they have there is gone.
    Whiteout,
}

/// Removes what an earlier entry of the same layer put there.
fn make_room(dir: &OwnedFd, name: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            use std::os::fd::AsRawFd;
            // No /proc in here; the directory is entered instead, and nothing else uses the working directory.
            rustix::process::fchdir(dir)?;
            tracing::trace!(fd = dir.as_raw_fd(), "a file replaces a directory");
            std::fs::remove_dir_all(name)
        }
        Err(error) => Err(error.into()),
    }
}

fn make_symlink(dir: &OwnedFd, name: &Path, to: &[u8], meta: &Meta) -> io::Result<()> {
    rustix::fs::symlinkat(to, dir, name)?;
    rustix::fs::chownat(dir, name, Some(meta.uid), Some(meta.gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::utimensat(dir, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_outside_are_refused() {
        for name in ["/etc/passwd", "../x", "a/../../x", "a/.."] {
            assert!(clean(name.as_bytes()).is_err(), "{name}");
        }
        assert_eq!(clean(b"./a/./b/").ok(), Some(PathBuf::from("a/b")));
        assert_eq!(clean(b"./").ok(), Some(PathBuf::new()));
        assert!(clean(&[b'x'; PATH_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn more_bytes_than_allowed_are_an_error_not_an_end() {
        let mut stream = Hashed { stream: &[0_u8; 10][..], hash: Sha256::new(), left: 9 };
        let error = io::copy(&mut stream, &mut io::sink()).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::FileTooLarge));
    }

    #[test]
    fn compressions_are_recognised_by_their_content() -> io::Result<()> {
        let text = b"layer".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text)?;
        let gzip = gzip.finish()?;
        let frame = |text: &[u8]| {
            ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest)
        };
        // zstd files may hold several frames, and some to be skipped.
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let zstd = [&skipped[..], &frame(&text[..2000]), &skipped, &frame(&text[2000..])].concat();
        for packed in [text.clone(), gzip, zstd] {
            let mut out = Vec::new();
            decompress(io::Cursor::new(packed))?.read_to_end(&mut out)?;
            assert!(out == text);
        }
        Ok(())
    }

    #[test]
    fn garbage_that_claims_to_be_zstd_is_an_error() -> io::Result<()> {
        let bytes = [0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff];
        let mut out = Vec::new();
        assert!(decompress(io::Cursor::new(bytes))?.read_to_end(&mut out).is_err());
        Ok(())
    }
}
