//! Removes and measures directories that a Machine has filled, and visits those that it still fills.
//!
//! The standard library goes down one level by one call of itself, so 13,000 nested directories end the whole server.
//! This walk needs neither a stack nor a descriptor per level, and no path longer than a name; it writes nothing, so a
//! full disk does not stop it. A removal counts what it frees, for who watches the disk: free space that is the same as
//! before may have been given back by one and taken by another.
//!
//! A visit keeps a descriptor per level, so that the Machine can neither lead it elsewhere, by a link in the place of a
//! directory, nor to a name that is too long for a path, and it remembers nothing of what it has yet to see.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Two may remove the same tree, such as a start and the end of its Machine. Each finds less than before at each attempt.
const ATTEMPTS_MAX: usize = 100;
/// Blocks of `stat`, whatever those of the file system are.
const BLOCK_BYTES: u64 = 512;
const OPEN: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Far more than programs make, and few enough descriptors.
pub(crate) const LEVELS_MAX: usize = 512;

static FREED_BYTES: AtomicU64 = AtomicU64::new(0);
static FREED_INODES: AtomicU64 = AtomicU64::new(0);

/// What removing trees has given back to the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Of blocks.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// What this process has freed in all by removing what Machines have filled. It is counted once it is free: who asks for
/// this first and then what is free counts nothing twice that is taken.
pub fn freed() -> Freed {
    let (bytes, inodes) = (&FREED_BYTES, &FREED_INODES);
    Freed { bytes: bytes.load(Ordering::Acquire), inodes: inodes.load(Ordering::Acquire) }
}

/// Removes a directory and all that is in it. Links in it are removed and not followed.
pub(crate) fn remove_tree(top: &Path) -> io::Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        match empty(top).and_then(|()| fs::remove_dir(top)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && top.exists() => {}
            done => return done,
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "others change it all the time"))
}

/// What blocks all has that is below a directory, however deep. Nobody may change it meanwhile.
pub(crate) fn still_bytes(top: &Path) -> io::Result<u64> {
    let mut sum = 0;
    let enter = |dir: &OwnedFd| {
        let mut below = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let meta = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            sum += block_bytes(&meta);
            if is_dir(&meta) {
                below.push(name.to_owned());
            }
        }
        Ok(below)
    };
    walk(top, enter, |_, _| Ok(()))?;
    Ok(sum)
}

/// Shows all that is below a directory until told to break; what vanishes meanwhile is not shown.
///
/// # Errors
/// [`io::ErrorKind::InvalidFilename`] when directories are nested deeper than [`LEVELS_MAX`].
pub(crate) fn visit(top: &Path, mut show: impl FnMut(&Stat) -> ControlFlow<()>) -> io::Result<()> {
    let mut levels = vec![Dir::new(rustix::fs::open(top, OPEN, Mode::empty())?)?];
    while let Some(dir) = levels.last_mut() {
        let Some(entry) = dir.read().transpose()? else {
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let dir = dir.fd()?;
        let Ok(meta) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if show(&meta).is_break() {
            return Ok(());
        }
        if is_dir(&meta)
            && let Some(below) = open_below(dir, name)?
        {
            if levels.len() == LEVELS_MAX {
                return Err(io::ErrorKind::InvalidFilename.into());
            }
            levels.push(Dir::new(below)?);
        }
    }
    Ok(())
}

/// `None` when it is not there any more, or something else is.
fn open_below(dir: impl AsFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(dir, name, OPEN, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

pub(crate) fn is_dir(meta: &Stat) -> bool {
    FileType::from_raw_mode(meta.st_mode) == FileType::Directory
}

/// What blocks of the disk it has.
pub(crate) fn block_bytes(meta: &Stat) -> u64 {
    u64::try_from(meta.st_blocks).unwrap_or(0) * BLOCK_BYTES
}

/// A directory on the way from the top to where the walk is.
struct Level {
    identity: (u64, u64),
    /// Directories that are yet to be entered, the last one first.
    below: Vec<CString>,
}

/// Empties a directory.
fn empty(top: &Path) -> io::Result<()> {
    walk(top, remove_entries, |parent, name| Ok(unlink(parent, name, AtFlags::REMOVEDIR)?))
}

/// `enter` is called with each directory and answers which of those in it are to be entered; `leave` with a directory and
/// the name of one in it when all below that is done.
fn walk(
    top: &Path,
    mut enter: impl FnMut(&OwnedFd) -> io::Result<Vec<CString>>,
    leave: impl Fn(&OwnedFd, &CStr) -> io::Result<()>,
) -> io::Result<()> {
    let mut dir = rustix::fs::open(top, OPEN, Mode::empty())?;
    let mut levels = vec![Level { below: enter(&dir)?, identity: identity(&dir)? }];
    while let Some(level) = levels.last() {
        if let Some(name) = level.below.last() {
            dir = rustix::fs::openat(&dir, name, OPEN, Mode::empty())?;
            levels.push(Level { below: enter(&dir)?, identity: identity(&dir)? });
            continue;
        }
        levels.pop();
        let Some(parent) = levels.last_mut() else { break };
        let up = rustix::fs::openat(&dir, c"..", OPEN, Mode::empty())?;
        if identity(&up)? != parent.identity {
            return Err(io::Error::other("a directory was moved while others went through it"));
        }
        if let Some(name) = parent.below.pop() {
            leave(&up, &name)?;
        }
        dir = up;
    }
    Ok(())
}

/// Removes what can be removed at once.
fn remove_entries(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut below = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlink(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            done => {
                done?;
                continue;
            }
        }
        match unlink(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => below.push(name.to_owned()),
            done => done?,
        }
    }
    Ok(below)
}

fn identity(dir: &OwnedFd) -> io::Result<(u64, u64)> {
    let meta = rustix::fs::fstat(dir)?;
    Ok((meta.st_dev, meta.st_ino))
}

/// What is gone already need not be removed.
fn unlink(dir: impl AsFd, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    let frees = what_goes(&dir, name);
    match rustix::fs::unlinkat(dir, name, flags) {
        Ok(()) => {
            FREED_BYTES.fetch_add(frees.bytes, Ordering::Release);
            FREED_INODES.fetch_add(frees.inodes, Ordering::Release);
            Ok(())
        }
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is free without this name; a file with others stays.
fn what_goes(dir: impl AsFd, name: &CStr) -> Freed {
    let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
    let goes = found.filter(|meta| meta.st_nlink < 2 || is_dir(meta));
    goes.map_or(Freed::default(), |meta| Freed { bytes: block_bytes(&meta), inodes: 1 })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A thread of the server has eight times as much; one call of itself per level takes 160 bytes at least.
    const STACK_BYTES: usize = 256 << 10;
    const LEVELS: usize = 5_000;

    fn nest(top: &Path, levels: usize) -> io::Result<OwnedFd> {
        let mut dir = rustix::fs::open(top, OPEN, Mode::empty())?;
        for _ in 0..levels {
            rustix::fs::mkdirat(&dir, c"d", Mode::RWXU)?;
            dir = rustix::fs::openat(&dir, c"d", OPEN, Mode::empty())?;
        }
        Ok(dir)
    }

    #[test]
    fn thousands_of_nested_directories_need_no_stack() -> io::Result<()> {
        let dir = crate::scratch_dir("tree-deep")?;
        nest(&dir, LEVELS)?;
        let top = dir.clone();
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let removed = thread.spawn(move || remove_tree(&top))?.join();
        assert!(matches!(removed, Ok(Ok(()))), "{removed:?}");
        assert!(!dir.exists());
        Ok(())
    }

    #[test]
    fn all_goes_but_what_links_lead_to() -> io::Result<()> {
        let dir = crate::scratch_dir("tree")?;
        fs::create_dir(dir.join("kept"))?;
        fs::write(dir.join("kept/file"), "kept")?;
        let top = dir.join("top");
        for place in ["a/b/c", "a/d", "e/f", "empty"] {
            fs::create_dir_all(top.join(place))?;
            fs::write(top.join(place).with_file_name("file"), "gone")?;
        }
        std::os::unix::fs::symlink(dir.join("kept"), top.join("a/link"))?;
        remove_tree(&top)?;
        assert!(!top.exists());
        assert_eq!(fs::read_to_string(dir.join("kept/file"))?, "kept");
        assert_eq!(remove_tree(&top).map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
        std::os::unix::fs::symlink(dir.join("kept"), &top)?;
        assert!(remove_tree(&top).is_err(), "a link is no directory");
        remove_tree(&dir)
    }

    #[test]
    fn all_is_measured_however_deep_it_is_but_not_what_links_lead_to() -> io::Result<()> {
        let dir = crate::scratch_dir("tree-bytes")?;
        let top = dir.join("top");
        fs::create_dir(&top)?;
        fs::write(dir.join("linked"), vec![1; 1 << 20])?;
        let deepest = nest(&top, 2 * LEVELS_MAX)?;
        let without = still_bytes(&top)?;
        rustix::fs::symlinkat(dir.join("linked"), &deepest, c"link")?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&deepest, c"file", flags, Mode::RUSR)?;
        fs::File::from(file).write_all(&vec![1; 256 << 10])?;
        let grown = still_bytes(&top)? - without;
        assert!((256 << 10..512 << 10).contains(&grown), "{grown}");
        remove_tree(&dir)
    }

    #[test]
    fn a_visit_goes_no_deeper_than_it_may_and_follows_no_link() -> io::Result<()> {
        let dir = crate::scratch_dir("tree-visit")?;
        nest(&dir, LEVELS_MAX - 1)?;
        let mut shown = 0;
        let count = |_: &Stat| {
            shown += 1;
            ControlFlow::Continue(())
        };
        visit(&dir, count)?;
        assert_eq!(shown, LEVELS_MAX - 1);
        fs::rename(dir.join("d"), dir.join("e"))?;
        fs::create_dir(dir.join("d"))?;
        fs::rename(dir.join("e"), dir.join("d/d"))?;
        let deeper = visit(&dir, |_| ControlFlow::Continue(()));
        assert_eq!(deeper.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidFilename));
        visit(&dir, |_| ControlFlow::Break(()))?;
        std::os::unix::fs::symlink("/", dir.join("link"))?;
        let top = rustix::fs::open(&dir, OPEN, Mode::empty())?;
        for name in [c"link", c"gone"] {
            assert!(open_below(&top, name)?.is_none(), "{name:?} was a directory just now");
        }
        remove_tree(&dir)
    }

    #[test]
    fn what_is_freed_is_counted() -> io::Result<()> {
        let dir = crate::scratch_dir("tree-freed")?;
        fs::create_dir_all(dir.join("top/sub"))?;
        fs::write(dir.join("top/sub/file"), vec![1; 3 << 20])?;
        fs::write(dir.join("linked"), vec![1; 1 << 20])?;
        fs::hard_link(dir.join("linked"), dir.join("top/linked"))?;
        let top = rustix::fs::open(dir.join("top"), OPEN, Mode::empty())?;
        assert_eq!(what_goes(&top, c"linked"), Freed::default(), "it has another name");
        let before = freed();
        remove_tree(&dir.join("top"))?;
        // Other tests remove their own at the same time.
        let now = freed();
        assert!(3 << 20 <= now.bytes - before.bytes && 2 <= now.inodes - before.inodes);
        remove_tree(&dir)
    }
}
