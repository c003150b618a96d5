//! Volumes: what a Machine keeps beyond its runs.
//!
//! ```text
//!  volumes/<id>/image        sparse ext4, loop-mounted by the shim of the Machine that has it
//!  volumes/<id>/data/        instead, where there are no loop devices: a directory, its size is not enforced
//!  snapshots/<id>/…          the same names: a copy as of one moment
//! ```
//!
//! The mount lives in the shim's mount namespace and in the Machine's, the loop device clears itself, and the one writer
//! holds a lock on the image through the very file that the loop device holds: so after a SIGKILL of anybody everything
//! is gone at the moment when nothing can write any more, and not before (module `mount`).
//!
//! A directory appears whole, by rename: what ends in `.new` or `.gone` is nobody's. Until [`keep`] a file in it says that
//! no record may know of it yet. [`clear`] removes what is nobody's. This module knows neither names nor owners nor days of
//! retention.

mod freezer;
pub(crate) mod mount;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::enter::has_ended;
use crate::tree::{remove_tree, still_bytes};
use crate::{launch, stage, sys};

pub use freezer::main as freezer_main;

/// The file system of a volume.
const IMAGE: &str = "image";
/// What a volume is where it can have no file system of its own.
const DATA: &str = "data";
/// First of the ids that the files belong to, if it is not 0: where no mount maps ids.
const OWNER: &str = "owner";
/// How the names of directories end that are being made, and that are being removed.
const DRAFT: &str = "new";
const GONE: &str = "gone";
/// Beside what a volume consists of, until its maker has written down that there is one.
const UNKEPT: &str = "unkept";
const LOOP_CONTROL: &str = "/dev/loop-control";
/// Major number of loop devices.
const LOOP_MAJOR: u32 = 7;
/// How much is copied at once.
const COPY_BYTES: usize = 1 << 20;
/// What no copy takes of the disk, and the part of a small disk; the images' own reserve is the same.
const FREE_BYTES_MIN: u64 = 512 << 20;
const FREE_PART: u64 = 10;
/// Where system programs lie, whatever the server's own path is.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A volume as a run of a Machine gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id: a file name.
    pub id: String,
    /// Its directory on the host.
    pub dir: PathBuf,
    /// Where the Machine sees it; links in it are resolved inside the Machine's root.
    pub path: String,
}

/// How a volume is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// As a file system of its own.
    Image,
    /// As a directory of the host's file system: nothing limits its size.
    Directory,
}

/// What becomes of a volume's file system that was made longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// It is as long as it should be.
    Done,
    /// It grows before its Machine's next start.
    AtNextStart,
}

/// Why a path cannot be one that a volume is mounted on; `None` if it can.
pub fn bad_path(path: &str) -> Option<&'static str> {
    let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
    if !path.starts_with('/') || path.contains('\0') {
        return Some("the path of a mount is not absolute");
    }
    if parts.contains(&"..") {
        return Some("the path of a mount has .. in it");
    }
    match parts.first() {
        None => Some("a volume cannot be mounted on /"),
        Some(&("proc" | "sys" | "dev" | ".perch" | ".fly")) => {
            Some("a volume cannot be mounted on or below /proc, /sys, /dev, /.perch and /.fly")
        }
        Some(_) => None,
    }
}

/// Why volumes are directories here; `None` where they are file systems.
pub fn lacks_images() -> Option<String> {
    if let Err(error) = File::open(LOOP_CONTROL) {
        return Some(format!("there are no loop devices ({LOOP_CONTROL}: {error})"));
    }
    let missing = ["mkfs.ext4", "e2fsck", "resize2fs"]
        .into_iter()
        .find(|name| !PATH.split(':').any(|dir| Path::new(dir).join(name).is_file()));
    missing.map(|name| format!("{name} is missing (package e2fsprogs)"))
}

/// Whether copies on the file system of the directory `dir` cost neither time nor space.
pub fn clones(dir: &Path) -> bool {
    let tried = || -> io::Result<()> {
        let (from, to) = (dir.join("clone-from.new"), dir.join("clone-to.new"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut source = options.open(&from)?;
        source.write_all(&[1; 4096])?;
        let cloned = options.open(&to).and_then(|target| {
            rustix::fs::ioctl_ficlone(&target, &source).map_err(io::Error::from)
        });
        fs::remove_file(from)?;
        fs::remove_file(to)?;
        cloned
    };
    tried().is_ok()
}

/// Makes an empty volume of `bytes` bytes as the directory `dir`.
pub fn make(dir: &Path, bytes: u64) -> io::Result<Backing> {
    appear(dir, |draft| match lacks_images() {
        Some(_) => {
            fs::DirBuilder::new().mode(0o755).create(draft.join(DATA))?;
            Ok(Backing::Directory)
        }
        None => {
            make_image(&draft.join(IMAGE), bytes)?;
            Ok(Backing::Image)
        }
    })
}

fn make_image(image: &Path, bytes: u64) -> io::Result<()> {
    new_file(image)?.set_len(bytes)?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-e", "remount-ro"]);
    // The image is all zero already, so nothing of it has to be written to be known.
    command.args(["-E", "lazy_itable_init=0,lazy_journal_init=1"]);
    finish("mkfs.ext4", command.arg(image).stdin(Stdio::null()), 0)
}

/// Makes the directory `dir` as a copy of the volume or snapshot `from`. `machine` is the directory of the Machine that
/// has it: what that has written is in the copy as of one moment, and while it takes the Machine may have to wait with
/// what it writes; where copies cost time, it waits.
pub fn copy(from: &Path, dir: &Path, machine: Option<&Path>, id: &str) -> io::Result<Backing> {
    let live = machine.map(|machine| Live::find(machine, id)).transpose()?.flatten();
    // Others may read meanwhile, but who writes unknown to the caller makes a copy of no one moment.
    let _held = match live {
        Some(_) => None,
        None => Some(mount::patient_share(from).map_err(unknown_writer)?),
    };
    match (backing(from)?, live) {
        (Backing::Image, live) => appear(dir, |draft| {
            copy_image(from, draft, live.as_ref())?;
            copy_owner(from, draft)?;
            Ok(Backing::Image)
        }),
        (Backing::Directory, Some(_)) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the volume is a directory, which cannot be copied as of one moment while a machine runs on it; \
             stop the machine first",
        )),
        (Backing::Directory, None) => appear(dir, |draft| {
            if !clones(draft) {
                check_space(draft, still_bytes(&from.join(DATA))?)?;
            }
            run_copy(&from.join(DATA), &draft.join(DATA))?;
            copy_owner(from, draft)?;
            Ok(Backing::Directory)
        }),
    }
}

fn unknown_writer(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::ResourceBusy,
            "something still writes to the volume; repeat when its machine runs or has stopped",
        ),
        _ => error,
    }
}

fn copy_owner(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from.join(OWNER), to.join(OWNER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// How the volume in `dir` is kept.
pub fn backing(dir: &Path) -> io::Result<Backing> {
    if dir.join(IMAGE).exists() {
        return Ok(Backing::Image);
    }
    match fs::metadata(dir.join(DATA))?.is_dir() {
        true => Ok(Backing::Directory),
        false => Err(io::Error::other("it has neither an image nor a directory of data")),
    }
}

/// Whether something on this host writes to the volume in `dir`, or still holds it.
pub fn is_used(dir: &Path) -> io::Result<bool> {
    match mount::lock(dir) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// How many bytes of the disk a volume or snapshot takes to which nobody writes.
pub fn stored_bytes(dir: &Path) -> io::Result<u64> {
    match backing(dir)? {
        Backing::Image => Ok(fs::metadata(dir.join(IMAGE))?.blocks() * 512),
        Backing::Directory => still_bytes(&dir.join(DATA)),
    }
}

/// Makes the volume in `dir` longer: at once if nobody has it mounted, or if the kernel can while `machine`'s Machine
/// runs; else [`settle`] does before the next start.
pub fn grow(dir: &Path, bytes: u64, machine: Option<&Path>, id: &str) -> io::Result<Growth> {
    if backing(dir)? == Backing::Directory {
        return Ok(Growth::Done);
    }
    let file = OpenOptions::new().write(true).open(dir.join(IMAGE))?;
    if file.metadata()?.len() < bytes {
        file.set_len(bytes)?;
        file.sync_all()?;
    }
    match machine.map(|machine| Live::find(machine, id)).transpose()?.flatten() {
        Some(live) => live.grow(bytes),
        None => match mount::lock(dir) {
            Ok(held) => lengthen(dir, &held).map(|()| Growth::Done),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Growth::AtNextStart),
            Err(error) => Err(error),
        },
    }
}

/// Before a start: makes the file system as long as its image. An error of the kind `WouldBlock` when something has the
/// volume and keeps it.
pub fn settle(dir: &Path) -> io::Result<()> {
    if backing(dir)? == Backing::Directory || !is_short(&File::open(dir.join(IMAGE))?)? {
        return Ok(());
    }
    lengthen(dir, &mount::patient_lock(dir)?)
}

/// Makes the file system as long as its image, whose lock is `held`.
fn lengthen(dir: &Path, held: &File) -> io::Result<()> {
    // Somebody else may have done it before the lock was ours.
    if !is_short(held)? {
        return Ok(());
    }
    let image = dir.join(IMAGE);
    // 1 says that something was put in order.
    finish("e2fsck", with_lock("e2fsck", held)?.args(["-f", "-p"]).arg(&image), 1)?;
    finish("resize2fs", with_lock("resize2fs", held)?.arg(&image), 0)
}

/// A program that has the lock too: it outlives a server that is killed, and nobody else may touch the image before it
/// ends.
fn with_lock(program: &str, held: &File) -> io::Result<Command> {
    let mut command = Command::new(program);
    command.stdin(held.try_clone()?);
    Ok(command)
}

/// Whether an image is longer than the file system in it.
fn is_short(image: &File) -> io::Result<bool> {
    // Less than a block group may be left over at the end, which no file system wants.
    Ok(ext4_bytes(image)? + (128 << 20) <= image.metadata()?.len())
}

/// Length of the file system in an image, as its superblock says.
fn ext4_bytes(file: &File) -> io::Result<u64> {
    let mut block = [0; 1024];
    file.read_exact_at(&mut block, 1024)?;
    let word = |at: usize| {
        u64::from(u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]))
    };
    if block[0x38..0x3a] != [0x53, 0xef] {
        return Err(io::Error::other("the image holds no ext4"));
    }
    let high = if word(0x60) & 0x80 == 0 { 0 } else { word(0x150) };
    Ok((high << 32 | word(4)) << (10 + word(0x18).min(6)))
}

/// Removes a volume or snapshot for good.
pub fn remove(dir: &Path) -> io::Result<()> {
    let gone = dir.with_extension(GONE);
    match fs::rename(dir, &gone) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    match remove_tree(&gone) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says that somebody has written down that there is this volume or snapshot: from here on only [`remove`] ends it.
pub fn keep(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(UNKEPT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes what a killed server left half-made, half-removed or unkept in `parent`. What `is_known` by its name is kept.
pub fn clear(parent: &Path, is_known: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let settled = if path.extension().is_some_and(|it| it == DRAFT || it == GONE) {
            if path.is_dir() { remove_tree(&path) } else { fs::remove_file(&path) }
        } else if !path.join(UNKEPT).exists() {
            Ok(())
        } else if name.to_str().is_some_and(&is_known) {
            keep(&path)
        } else {
            remove(&path)
        };
        if let Err(error) = settled {
            tracing::warn!(path = %path.display(), %error, "half a volume remains");
        }
    }
}

/// Lets a Machine write again that a killed server may have left waiting in the middle of a copy.
pub fn thaw(machine: &Path, id: &str) -> io::Result<()> {
    let Some(live) = Live::find(machine, id)? else { return Ok(()) };
    freezer::thaw(live.dir.as_fd())
}

/// A volume that a living Machine has mounted.
struct Live {
    dir: OwnedFd,
}

impl Live {
    fn find(machine: &Path, id: &str) -> io::Result<Option<Self>> {
        let Some((pid, shim)) = launch::shim_pid(machine)? else { return Ok(None) };
        let path = PathBuf::from(format!("/proc/{pid}/root{}/{}", stage::STAGE, mount::place(id)));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            // The number may have become another's before this.
            Ok(_) if has_ended(&shim) => Ok(None),
            Ok(dir) => Ok(Some(Self { dir })),
            Err(Errno::NOENT | Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The loop device below, or none: what is not ours must not be touched.
    fn device(&self) -> io::Result<Option<File>> {
        let device = rustix::fs::fstat(&self.dir)?.st_dev;
        if rustix::fs::major(device) != LOOP_MAJOR {
            return Ok(None);
        }
        let link = format!("/sys/dev/block/{LOOP_MAJOR}:{}", rustix::fs::minor(device));
        let name = fs::read_link(link)?;
        let name = name.file_name().ok_or_else(|| io::Error::other("the device has no name"))?;
        File::open(Path::new("/dev").join(name)).map(Some)
    }

    fn grow(&self, bytes: u64) -> io::Result<Growth> {
        let Some(device) = self.device()? else { return Ok(Growth::Done) };
        sys::renew_loop_size(device.as_fd())?;
        let block = u64::try_from(rustix::fs::fstatfs(&self.dir)?.f_bsize).unwrap_or(4096).max(1);
        match sys::grow_ext4(self.dir.as_fd(), bytes / block) {
            Ok(()) => Ok(Growth::Done),
            Err(error) => {
                tracing::info!(%error, "the kernel lets no mounted volume grow; it grows at the next start");
                Ok(Growth::AtNextStart)
            }
        }
    }
}

fn copy_image(from: &Path, draft: &Path, live: Option<&Live>) -> io::Result<()> {
    let source = File::open(from.join(IMAGE))?;
    let target = new_file(&draft.join(IMAGE))?;
    if let Some(live) = live {
        rustix::fs::syncfs(&live.dir)?;
    }
    // A clone is of one moment, as after a loss of power; the journal knows what to do with that.
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return target.sync_all();
    }
    check_space(draft, source.metadata()?.blocks() * 512)?;
    let frozen = match live {
        Some(live) if live.device()?.is_some() => Some(freezer::Frozen::begin(live.dir.as_fd())?),
        Some(_) | None => None,
    };
    copy_data(&source, &target)?;
    if let Some(frozen) = frozen {
        frozen.end()?;
    }
    target.sync_all()
}

/// Refuses what would take the space that Machines need to wake and write.
fn check_space(dir: &Path, needed: u64) -> io::Result<()> {
    let disk = rustix::fs::statvfs(dir)?;
    let free_min = FREE_BYTES_MIN.min(disk.f_blocks * disk.f_frsize / FREE_PART);
    if (disk.f_bavail * disk.f_frsize).saturating_sub(needed) < free_min {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// Copies what is not a hole.
fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let (mut source, mut target) = (source, target);
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, rustix::fs::SeekFrom::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        let mut part = io::BufReader::with_capacity(COPY_BYTES, source.take(end - data));
        io::copy(&mut part, &mut target)?;
        at = end;
    }
    Ok(())
}

fn run_copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=auto", "--"]).arg(from).arg(to).stdin(Stdio::null());
    finish("cp", &mut command, 0)
}

/// Makes a directory by filling another one that then gets its name. It is unkept.
fn appear<T>(dir: &Path, fill: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let draft = dir.with_extension(DRAFT);
    if let Some(parent) = dir.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let made = fs::DirBuilder::new().mode(0o700).create(&draft).and_then(|()| fill(&draft));
    let done = made.and_then(|made| {
        new_file(&draft.join(UNKEPT))?;
        fs::rename(&draft, dir)?;
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(made)
    });
    if done.is_err()
        && let Err(error) = remove_tree(&draft)
    {
        tracing::debug!(%error, path = %draft.display(), "half a volume goes with the next start");
    }
    done
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Runs a system program, whose input the caller sets; exit codes up to `code_max` are success.
fn finish(program: &str, command: &mut Command, code_max: i32) -> io::Result<()> {
    let output = command
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("could not run {program}: {error}"))
        })?;
    if output.status.code().is_some_and(|code| code <= code_max) {
        return Ok(());
    }
    let words = [output.stderr, output.stdout].concat();
    let words = String::from_utf8_lossy(&words);
    let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(io::Error::other(format!("{program} failed ({}): {}", output.status, last.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_hide_what_the_platform_mounts_are_refused() {
        for path in ["", "data", "/", "//.", "/a/../b", "/proc", "/sys/x", "/dev//shm", "/.perch"] {
            assert!(bad_path(path).is_some(), "{path:?}");
        }
        for path in
            ["/data", "/var/lib/postgresql/data", "/sysdata", "/a.b/../c".trim_end_matches("/../c")]
        {
            assert_eq!(bad_path(path), None, "{path:?}");
        }
    }

    #[test]
    fn what_is_half_made_or_half_removed_goes_and_nothing_else_does() -> io::Result<()> {
        let parent = crate::scratch_dir("volumes-clear")?;
        for name in ["vol_1", "vol_2.new", "vol_3.gone"] {
            fs::create_dir_all(parent.join(name).join(DATA))?;
        }
        clear(&parent, |_| false);
        let left: Vec<_> = fs::read_dir(&parent)?.flatten().map(|it| it.file_name()).collect();
        assert_eq!(left, ["vol_1"]);
        fs::remove_dir_all(parent)
    }

    #[test]
    fn what_is_whole_but_in_no_record_goes_unless_it_was_kept() -> io::Result<()> {
        let parent = crate::scratch_dir("volumes-unkept")?;
        let from = parent.join("vol_1");
        fs::create_dir_all(from.join(DATA))?;
        for name in ["vs_1", "vs_2", "vs_3"] {
            copy(&from, &parent.join(name), None, "vol_1")?;
        }
        keep(&parent.join("vs_3"))?;
        clear(&parent, |name| name == "vs_2");
        // Whoever has it by now is not asked a second time.
        clear(&parent, |_| false);
        let mut left: Vec<_> = fs::read_dir(&parent)?.flatten().map(|it| it.file_name()).collect();
        left.sort();
        assert_eq!(left, ["vol_1", "vs_2", "vs_3"]);
        fs::remove_dir_all(parent)
    }

    #[test]
    fn a_program_that_outlives_the_server_keeps_the_volume_it_works_on_locked() -> io::Result<()> {
        let dir = crate::scratch_dir("volumes-lengthen")?;
        make_image(&dir.join(IMAGE), 64 << 20)?;
        let bytes = 512 << 20;
        OpenOptions::new().write(true).open(dir.join(IMAGE))?.set_len(bytes)?;
        let held = mount::lock(&dir)?;
        let mut orphan = with_lock("sleep", &held)?.arg("1000").spawn()?;
        drop(held);
        let busy = (is_used(&dir)?, grow(&dir, bytes, None, "vol_1")?, settle(&dir));
        let untouched = is_short(&File::open(dir.join(IMAGE))?)?;
        orphan.kill()?;
        orphan.wait()?;
        assert_eq!((busy.0, busy.1), (true, Growth::AtNextStart));
        assert_eq!(busy.2.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        assert!(untouched, "two would have worked on it");
        settle(&dir)?;
        assert!(!is_short(&File::open(dir.join(IMAGE))?)?);
        fs::remove_dir_all(dir)
    }

    #[test]
    fn what_an_unknown_machine_writes_to_is_not_copied_but_others_may_read() -> io::Result<()> {
        let dir = crate::scratch_dir("volumes-used")?;
        let (from, to) = (dir.join("vol_1"), dir.join("vol_2"));
        fs::create_dir_all(&from)?;
        make_image(&from.join(IMAGE), 8 << 20)?;
        let writer = mount::lock(&from)?;
        let refused = copy(&from, &to, None, "vol_1").map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::ResourceBusy));
        assert!(!to.exists());
        drop(writer);
        let _reader = mount::patient_share(&from)?;
        assert_eq!(copy(&from, &to, None, "vol_1")?, Backing::Image);
        fs::remove_dir_all(dir)
    }

    #[test]
    fn a_volume_whose_directories_are_deep_is_copied_and_measured() -> io::Result<()> {
        let dir = crate::scratch_dir("volumes-deep")?;
        let (from, to) = (dir.join("vol_1"), dir.join("vs_1"));
        fs::create_dir_all(from.join(DATA).join(vec!["d"; 600].join("/")))?;
        assert_eq!(copy(&from, &to, None, "vol_1")?, Backing::Directory);
        assert!(stored_bytes(&to).is_ok());
        remove_tree(&dir)
    }

    #[test]
    fn a_copy_leaves_room_for_the_machines() -> io::Result<()> {
        let dir = crate::scratch_dir("volumes-space")?;
        let disk = rustix::fs::statvfs(&dir)?;
        let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
        // Others write to this disk meanwhile, though not as much as half of the reserve.
        let reserve = FREE_BYTES_MIN.min(all / FREE_PART);
        let refused =
            check_space(&dir, free.saturating_sub(reserve / 2)).map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::StorageFull));
        assert!(free < 2 * reserve || check_space(&dir, 0).is_ok());
        fs::remove_dir_all(dir)
    }

    #[test]
    fn holes_stay_holes_in_a_copy() -> io::Result<()> {
        let dir = crate::scratch_dir("volumes-copy")?;
        let source = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join("a"))?;
        source.set_len(64 << 20)?;
        source.write_all_at(b"here", 32 << 20)?;
        let target = new_file(&dir.join("b"))?;
        copy_data(&source, &target)?;
        let copied = File::open(dir.join("b"))?;
        let mut bytes = [0; 4];
        copied.read_exact_at(&mut bytes, 32 << 20)?;
        let meta = copied.metadata()?;
        assert_eq!((&bytes, meta.len()), (b"here", 64 << 20));
        assert!(meta.blocks() * 512 < 8 << 20, "{} blocks", meta.blocks());
        fs::remove_dir_all(dir)
    }
}
