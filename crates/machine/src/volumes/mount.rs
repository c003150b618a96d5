//! The shim's side: lock, loop device, mount, and its place in the Machine's root.
//!
//! The lock is `flock` on the open file that the loop device is given. The device keeps that file until its last mount
//! is gone, in the shim's namespace and in the Machine's: a new shim gets the lock when nothing can write any more.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::{Backing, DATA, IMAGE, LOOP_CONTROL, OWNER, Volume, backing};
use crate::bundle::IDS;
use crate::ids::Ids;
use crate::launch::LaunchSpec;
use crate::stage::{self, Root, StageError, step};
use crate::sys;

/// What is left of a former run goes within milliseconds; longer means that somebody else has the volume.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_INTERVAL: Duration = Duration::from_millis(1);
/// Between the question for a free device and its use somebody else may take it.
const LOOP_ATTEMPTS_MAX: usize = 100;

/// Why a volume could not be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("volume {0} is in use by another machine")]
    InUse(String),
    #[error("volume {volume} cannot be mounted on {path}")]
    Path {
        volume: String,
        path: String,
        #[source]
        source: StageError,
    },
    #[error("could not mount volume {volume}")]
    Mount {
        volume: String,
        #[source]
        source: StageError,
    },
    #[error("could not lock volume {volume}")]
    Lock {
        volume: String,
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    /// Whether its words are for the Machine's owner: they name nothing of the host.
    pub(crate) fn is_users(&self) -> bool {
        matches!(self, Self::InUse(_) | Self::Path { .. })
    }
}

/// Where the shim has a volume, below its stage.
pub(crate) fn place(id: &str) -> String {
    format!("v/{id}")
}

/// Takes the lock of the volume in `dir`; an error of the kind `WouldBlock` when somebody has it.
pub(super) fn lock(dir: &Path) -> io::Result<File> {
    lock_for(dir, FlockOperation::NonBlockingLockExclusive)
}

fn lock_for(dir: &Path, operation: FlockOperation) -> io::Result<File> {
    let file = match backing(dir)? {
        Backing::Image => OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(dir.join(IMAGE))?,
        Backing::Directory => File::open(dir.join(DATA))?,
    };
    rustix::fs::flock(&file, operation)?;
    Ok(file)
}

/// Mounts a run's volumes into its root, and answers the locks on them.
pub(crate) fn mount_all(
    spec: &LaunchSpec,
    root: &Root,
    user_namespace: BorrowedFd<'_>,
) -> Result<Vec<File>, VolumeError> {
    if spec.volumes.is_empty() {
        return Ok(Vec::new());
    }
    let mut locks = Vec::new();
    for volume in &spec.volumes {
        let held = patient_lock(&volume.dir).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => VolumeError::InUse(volume.id.clone()),
            _ => VolumeError::Lock { volume: volume.id.clone(), source },
        })?;
        let failed = |source| VolumeError::Mount { volume: volume.id.clone(), source };
        let tree = tree(spec, volume, &held, user_namespace).map_err(failed)?;
        sys::act_as(spec.uid_base)
            .map_err(step("take the ids of", &spec.machine))
            .map_err(failed)?;
        let mounted = root.mount(&tree, &volume.path);
        sys::act_as(0).map_err(step("give back the ids of", &spec.machine)).map_err(failed)?;
        mounted.map_err(|source| VolumeError::Path {
            volume: volume.id.clone(),
            path: volume.path.clone(),
            source,
        })?;
        locks.push(held);
    }
    Ok(locks)
}

/// Takes the lock of the volume in `dir` as soon as what is left of a former run is gone.
pub(super) fn patient_lock(dir: &Path) -> io::Result<File> {
    patient(dir, FlockOperation::NonBlockingLockExclusive)
}

/// The same for one that only reads: it keeps nobody from it who does likewise.
pub(super) fn patient_share(dir: &Path) -> io::Result<File> {
    patient(dir, FlockOperation::NonBlockingLockShared)
}

fn patient(dir: &Path, operation: FlockOperation) -> io::Result<File> {
    let begun = Instant::now();
    loop {
        match lock_for(dir, operation) {
            // The kernel tells nobody when a mount is gone.
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < LOCK_TIMEOUT =>
            {
                std::thread::sleep(LOCK_INTERVAL);
            }
            done => return done,
        }
    }
}

/// Mounts a volume on the stage, and answers what the Machine gets of it: the same with its own ids.
fn tree(
    spec: &LaunchSpec,
    volume: &Volume,
    held: &File,
    user_namespace: BorrowedFd<'_>,
) -> Result<OwnedFd, StageError> {
    let place = place(&volume.id);
    fs::create_dir_all("v").map_err(step("make", "v"))?;
    let source = match backing(&volume.dir).map_err(step("find", &volume.id))? {
        Backing::Image => mount_image(held).map_err(step("mount the image of", &volume.id))?,
        Backing::Directory => stage::clone_tree(&volume.dir.join(DATA))?,
    };
    stage::attach(&source, &place)?;
    let dir = File::open(&place).map_err(step("open", &place))?;
    // Programs want their data directory empty at first, and e2fsck makes it anew when it needs it.
    match rustix::fs::unlinkat(&dir, "lost+found", AtFlags::REMOVEDIR) {
        Ok(()) | Err(_) => {}
    }
    give(spec, volume, &dir).map_err(step("give away", &volume.id))?;
    let tree = stage::clone_tree(Path::new(&place))?;
    if spec.ids == Ids::Mapped {
        sys::map_ids(&tree, user_namespace).map_err(step("map the ids of", &volume.id))?;
    }
    Ok(tree)
}

/// Makes the files belong to the ids that the Machine will have: other ones than last time when the app, the kernel or
/// the host is another.
fn give(spec: &LaunchSpec, volume: &Volume, dir: &File) -> io::Result<()> {
    let file = volume.dir.join(OWNER);
    let text = fs::read_to_string(&file).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok("0".to_owned()),
        _ => Err(error),
    })?;
    let former: u32 = text.trim().parse().map_err(io::Error::other)?;
    let wanted = match spec.ids {
        Ids::Mapped => 0,
        Ids::Shifted => spec.uid_base,
    };
    if former == wanted {
        return Ok(());
    }
    give_entry(dir, c"", former, wanted)?;
    give_below(dir, former, wanted)?;
    let draft = volume.dir.join("owner.new");
    fs::write(&draft, wanted.to_string())?;
    fs::rename(draft, file)
}

fn give_below(dir: &File, former: u32, wanted: u32) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        give_entry(dir, entry.file_name(), former, wanted)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, entry.file_name(), flags, Mode::empty()) {
            Ok(below) => give_below(&below.into(), former, wanted)?,
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Changes an owner that lies in the former range; so a walk that was cut short can be gone on with.
fn give_entry(dir: &File, name: &CStr, former: u32, wanted: u32) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let meta = rustix::fs::statat(dir, name, flags)?;
    let moved = |id: u32| match id.checked_sub(former) {
        Some(own) if own < IDS => wanted + own,
        Some(_) | None => id,
    };
    let (uid, gid) = (moved(meta.st_uid), moved(meta.st_gid));
    if (uid, gid) == (meta.st_uid, meta.st_gid) {
        return Ok(());
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), flags)?;
    if !rustix::fs::FileType::from_raw_mode(meta.st_mode).is_symlink() && meta.st_mode & 0o6000 != 0
    {
        // The change of owner cleared them.
        rustix::fs::chmodat(
            dir,
            name,
            Mode::from_raw_mode(meta.st_mode & 0o7777),
            AtFlags::empty(),
        )?;
    }
    Ok(())
}

fn mount_image(image: &File) -> io::Result<OwnedFd> {
    let (device, name) = begin_loop(image)?;
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", &name)?;
    // What is deleted inside becomes a hole in the image: the host has the room again.
    rustix::mount::fsconfig_set_flag(context.as_fd(), "discard")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // From here on the mount keeps the device.
    drop(device);
    Ok(mount)
}

fn begin_loop(image: &File) -> io::Result<(File, String)> {
    let control = OpenOptions::new().read(true).write(true).open(LOOP_CONTROL)?;
    for _ in 0..LOOP_ATTEMPTS_MAX {
        let name = format!("/dev/loop{}", sys::free_loop(control.as_fd())?);
        let device = OpenOptions::new().read(true).write(true).open(&name)?;
        match sys::begin_loop(device.as_fd(), image.as_fd()) {
            Ok(()) => return Ok((device, name)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("others take each free loop device first"))
}
