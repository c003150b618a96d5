//! Copies an unpacked layer so that its owners lie in one app's id range: the way below kernel 5.19.
//!
//! The source is what module `unpack` left behind: no device but the marks of deleted names, ids below 65,536, and
//! nobody writes to it any more. Its names and links are still somebody else's, so every name is opened below its root
//! and no link is followed.
//!
//! Kept: modes with their set-id bits (a change of owner clears them, so they come after it), times, hard links, marks of
//! deleted names, and the mark of a directory that hides all below it. Left out knowingly: all other extended attributes.
//! `security.capability` names the root of the user namespace that it is good for, and a change of owner clears it;
//! under no_new_privs no file capability has an effect. Access lists name owners, and unpacking makes none.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use crate::bundle::IDS;

/// The mark of a directory that hides what lower layers have below it.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// Ids that a Machine does not have become this one, "nobody".
const NOBODY: u32 = 65_534;

/// Why a copy failed, with the name in the layer.
#[derive(Debug, thiserror::Error)]
#[error("could not copy {name:?} of the layer")]
pub(crate) struct ShiftError {
    name: PathBuf,
    #[source]
    source: io::Error,
}

impl ShiftError {
    /// As one error of the kind of its cause.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::new(self.source.kind(), format!("{self}: {}", self.source))
    }
}

/// Copies the directory `from` into the empty directory `to`; every owner is raised by `base`.
pub(crate) fn copy(from: &Path, to: &Path, base: u32) -> Result<(), ShiftError> {
    let failed = |name: &Path| {
        let name = name.to_owned();
        move |source| ShiftError { name, source }
    };
    let mut copier = Copier::open(from, to, base).map_err(failed(Path::new("/")))?;
    while let Some(dir) = copier.todo.pop() {
        copier.copy_dir(&dir).map_err(failed(&dir))?;
    }
    copier.set_times().map_err(failed(Path::new("/")))
}

struct Copier {
    from: OwnedFd,
    to: OwnedFd,
    base: u32,
    /// Directories that are made but not filled, relative to the root.
    todo: Vec<PathBuf>,
    /// Times of directories, which filling them changes.
    times: Vec<(PathBuf, Timestamps)>,
    /// Files with several names: where the first one is.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copier {
    fn open(from: &Path, to: &Path, base: u32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from = rustix::fs::openat(CWD, from, flags, Mode::empty())?;
        let to = rustix::fs::openat(CWD, to, flags, Mode::empty())?;
        let root = PathBuf::from(".");
        let mut copier = Self {
            from,
            to,
            base,
            todo: vec![root.clone()],
            times: Vec::new(),
            linked: HashMap::new(),
        };
        let stat = rustix::fs::statat(&copier.from, ".", AtFlags::empty())?;
        copier.finish_dir(&root, &stat)?;
        Ok(copier)
    }

    fn copy_dir(&mut self, path: &Path) -> io::Result<()> {
        let (from, to) = (open_dir(&self.from, path)?, open_dir(&self.to, path)?);
        for entry in Dir::read_from(&from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            self.copy_entry(&from, &to, name, path)?;
        }
        Ok(())
    }

    fn copy_entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        path: PathBuf,
    ) -> io::Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            self.finish_dir(&path, &stat)?;
            self.todo.push(path);
            return Ok(());
        }
        if 1 < stat.st_nlink {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return link(&self.to, first, to, name);
            }
            self.linked.insert((stat.st_dev, stat.st_ino), path);
        }
        match kind {
            FileType::RegularFile => self.copy_file(from, to, name, &stat),
            FileType::Symlink => self.copy_symlink(from, to, name, &stat),
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                rustix::fs::mknodat(to, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(Into::into)
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no layer has such a file")),
        }
    }

    fn copy_file(&self, from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut from = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
        let write =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut to = File::from(rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
        // Within the kernel, and without any copying on file systems that share extents.
        io::copy(&mut from, &mut to)?;
        let (uid, gid) = self.owner(stat);
        rustix::fs::fchown(&to, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&to, mode(stat))?;
        rustix::fs::futimens(&to, &times(stat)).map_err(Into::into)
    }

    fn copy_symlink(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let target = rustix::fs::readlinkat(from, name, Vec::new())?;
        rustix::fs::symlinkat(target, to, name)?;
        let (uid, gid) = self.owner(stat);
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
    }

    fn finish_dir(&mut self, path: &Path, stat: &Stat) -> io::Result<()> {
        let (from, to) = (open_dir(&self.from, path)?, open_dir(&self.to, path)?);
        let (uid, gid) = self.owner(stat);
        rustix::fs::fchown(&to, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&to, mode(stat))?;
        let mut value = [0; 1];
        match rustix::fs::fgetxattr(&from, OPAQUE, &mut value) {
            Ok(len) => rustix::fs::fsetxattr(&to, OPAQUE, &value[..len], XattrFlags::empty())?,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        self.times.push((path.to_owned(), times(stat)));
        Ok(())
    }

    fn set_times(&self) -> io::Result<()> {
        self.times.iter().try_for_each(|(path, times)| {
            let dir = open_dir(&self.to, path)?;
            rustix::fs::futimens(&dir, times).map_err(Into::into)
        })
    }

    fn owner(&self, stat: &Stat) -> (Uid, Gid) {
        let raise = |id: u32| self.base + if id < IDS { id } else { NOBODY };
        (Uid::from_raw(raise(stat.st_uid)), Gid::from_raw(raise(stat.st_gid)))
    }
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos };
    Timestamps { last_access: time, last_modification: time }
}

fn open_dir(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).map_err(Into::into)
}

/// A further name of a file that is copied already.
fn link(root: &OwnedFd, first: &Path, to: &OwnedFd, name: &CStr) -> io::Result<()> {
    let (Some(dir), Some(file)) = (first.parent(), first.file_name()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let dir = open_dir(root, dir)?;
    rustix::fs::linkat(&dir, file, to, name, AtFlags::empty()).map_err(Into::into)
}
