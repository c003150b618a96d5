//! Builds a run's root directory: layers with the Machine's ids under an overlay, `/sys`, the platform's files.
//!
//! All mounts live in the shim's own mount namespace below [`STAGE`], so they end with the shim and slow no other start
//! (500 overlays in one namespace raise each create from 7 to 25 ms). The stage is world-readable and outside the data
//! directory, because the container sets up its root with its own ids, which may not enter a directory of mode 0700.
//!
//! ```text
//!  /sys/bus                tmpfs, seen by this shim only
//!    l/0 … l/n             layers, lowest first, then the init layer
//!    fs/{upper,work}       the run's own files, with ids like the layers
//!    root                  the overlay: what the Machine sees as /
//!    bundle, state         for libcontainer
//! ```

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};
use rustix::pty::OpenptFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::ids::Ids;
use crate::launch::{LaunchSpec, RootFile};
use crate::sys;

/// Mount point of every shim's private tmpfs: a directory of sysfs that nobody here looks into, because nobody can remove
/// it. Who removes a directory detaches what others have mounted on it, in whatever namespace: with one below `/run`, the
/// end of one server broke the starts of another.
pub(crate) const STAGE: &str = "/sys/bus";

/// Largest `/etc/passwd` or `/etc/group` that is read.
const USER_FILE_BYTES_MAX: u64 = 1 << 20;

/// A step of preparing a root that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} {object}")]
pub(crate) struct StageError {
    doing: &'static str,
    object: String,
    #[source]
    source: io::Error,
}

impl StageError {
    /// Whether it is about a file that the Machine's config wants: its name says nothing of the host.
    pub(crate) fn is_of_image(&self) -> bool {
        self.object.starts_with("the file ")
    }
}

/// Names a step, for `map_err`.
pub(crate) fn step<E: Into<io::Error>>(
    doing: &'static str,
    object: impl ToString,
) -> impl FnOnce(E) -> StageError {
    move |source| StageError { doing, object: object.to_string(), source: source.into() }
}

/// A root directory that is ready, seen from outside.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// A user namespace that maps the Machine's ids.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    pub(crate) file: OwnedFd,
    /// Dropped late: its end costs a switch to another process, which a start need not wait for.
    _holder: sys::Holder,
}

/// Makes the user namespace of a Machine, by a child that does `errand` meanwhile.
pub(crate) fn user_namespace(
    spec: &LaunchSpec,
    errand: impl FnOnce(),
) -> Result<UserNamespace, StageError> {
    let holder = sys::Holder::spawn(errand).map_err(step("make", "a user namespace"))?;
    let process = format!("/proc/{}", holder.pid());
    let map = format!("0 {} {}", spec.uid_base, crate::bundle::IDS);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("{process}/{file}"), &map).map_err(step("write", file))?;
    }
    let file = fs::File::open(format!("{process}/ns/user"));
    let file = file.map_err(step("open", "the user namespace"))?.into();
    Ok(UserNamespace { file, _holder: holder })
}

/// Enters the Machine's network namespace, for good.
pub(crate) fn enter_network(netns: BorrowedFd<'_>) -> Result<(), StageError> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
        .map_err(step("enter", "the network namespace"))
}

/// Moves this process into a mount namespace of its own with an empty stage, and makes the stage the working directory.
pub(crate) fn enter() -> Result<(), StageError> {
    sys::unshare_mounts().map_err(step("make", "a mount namespace"))?;
    // Downstream, not private: what the host unmounts must not stay busy here.
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation).map_err(step("separate the mounts of", "/"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("perch", STAGE, "tmpfs", flags, c"mode=0755,size=16m")
        .map_err(step("mount a tmpfs on", STAGE))?;
    std::env::set_current_dir(STAGE).map_err(step("enter", STAGE))
}

/// Mounts the overlay and fills in what the platform adds.
pub(crate) fn build(
    spec: &LaunchSpec,
    secret_files: &[RootFile],
    user_namespace: BorrowedFd<'_>,
) -> Result<Root, StageError> {
    let lower = mount_layers(spec, user_namespace)?;
    mount_upper(spec, user_namespace)?;
    make_dir("root")?;
    sys::act_as(spec.uid_base).map_err(step("take the ids of", &spec.machine))?;
    let root = mount_overlay(&lower)
        .and_then(|()| open_root())
        .and_then(|root| fill(root, spec, secret_files));
    sys::act_as(0).map_err(step("give back the ids of", &spec.machine))?;
    root
}

fn mount_layers(spec: &LaunchSpec, user_namespace: BorrowedFd<'_>) -> Result<String, StageError> {
    make_dir("l")?;
    let mut names = Vec::new();
    for (number, layer) in spec.layers.iter().enumerate() {
        names.push(format!("l/{number}"));
        mount_own(spec.ids, layer, &format!("l/{number}"), user_namespace)?;
    }
    let init = format!("l/{}", spec.layers.len());
    // Not id-mapped: to the Machine its files belong to nobody, so it cannot write to them.
    let tree = clone_tree(&spec.init_layer)?;
    attach(&tree, &init)?;
    names.push(init);
    names.reverse();
    Ok(names.join(":"))
}

/// Every run has a fresh directory; the launcher removes those of former runs while the program runs already.
fn mount_upper(spec: &LaunchSpec, user_namespace: BorrowedFd<'_>) -> Result<(), StageError> {
    let (dir, owner) = (upper_dir(spec), Some(spec.uid_base));
    if let Err(error) = crate::tree::remove_tree(&dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(step("empty", dir.display())(error));
    }
    for name in ["upper", "work"] {
        let made = fs::DirBuilder::new().mode(0o755).recursive(true).create(dir.join(name));
        made.map_err(step("make", dir.join(name).display()))?;
        if spec.ids == Ids::Shifted {
            let given = std::os::unix::fs::chown(dir.join(name), owner, owner);
            given.map_err(step("give away", dir.join(name).display()))?;
        }
    }
    mount_own(spec.ids, &dir, "fs", user_namespace)
}

/// Where this run's own files are on disk.
pub(crate) fn upper_dir(spec: &LaunchSpec) -> PathBuf {
    spec.dir.join("fs").join(spec.run.to_string())
}

fn mount_overlay(lower: &str) -> Result<(), StageError> {
    // Volatile: nothing of this file system outlives the run, so nothing needs to reach the disk.
    let options = format!("lowerdir={lower},upperdir=fs/upper,workdir=fs/work,volatile");
    let options = std::ffi::CString::new(options).map_err(step("name", "the layers"))?;
    rustix::mount::mount("overlay", "root", "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(step("mount the overlay on", "root"))
}

pub(crate) fn clone_tree(source: &Path) -> Result<OwnedFd, StageError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, source, flags).map_err(step("open", source.display()))
}

pub(crate) fn attach(tree: &OwnedFd, target: &str) -> Result<(), StageError> {
    make_dir(target)?;
    rustix::mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(step("mount on", target))
}

/// Mounts a directory so that its files belong to the Machine.
fn mount_own(
    ids: Ids,
    source: &Path,
    target: &str,
    user_namespace: BorrowedFd<'_>,
) -> Result<(), StageError> {
    let tree = clone_tree(source)?;
    if ids == Ids::Mapped {
        sys::map_ids(&tree, user_namespace).map_err(step("map the ids of", source.display()))?;
    }
    attach(&tree, target)
}

fn make_dir(name: &str) -> Result<(), StageError> {
    fs::create_dir(name).map_err(step("make", name))
}

fn open_root() -> Result<Root, StageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("root", flags, Mode::empty());
    root.map(Root).map_err(step("open", "root"))
}

fn fill(root: Root, spec: &LaunchSpec, secret_files: &[RootFile]) -> Result<Root, StageError> {
    root.ensure_dir(&crate::bundle::workdir(spec))?;
    spec.files.iter().try_for_each(|file| root.write(file))?;
    if !secret_files.is_empty() {
        make_dir("files")?;
    }
    let numbered = secret_files.iter().enumerate();
    numbered.into_iter().try_for_each(|(number, file)| root.mount_file(number, file))?;
    if let Some(dir) = &spec.inside {
        root.mount_inside(dir)?;
    }
    let sys = root.ensure_dir("/sys")?;
    mount_sys(&sys)?;
    Ok(root)
}

impl Root {
    /// The root of a process, which may be in another mount namespace.
    pub(crate) fn of_process(pid: i32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty());
        root.map(Self).map_err(Into::into)
    }

    /// Whether there is a file at a path that somebody may execute.
    pub(crate) fn has_program(&self, path: &str) -> bool {
        let found = self.open(path, OFlags::PATH).map(fs::File::from);
        found
            .and_then(|file| file.metadata())
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }

    /// Makes a new terminal of this root's own: its two ends.
    pub(crate) fn make_terminal(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        /// `DEVPTS_SUPER_MAGIC`: a program with enough rights could have put something else there.
        const DEVPTS: u64 = 0x1cd1;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let master = rustix::fs::openat2(&self.0, "/dev/pts/ptmx", flags, Mode::empty(), resolve)?;
        if u64::try_from(rustix::fs::fstatfs(&master)?.f_type) != Ok(DEVPTS) {
            return Err(io::Error::other("/dev/pts is none"));
        }
        rustix::pty::unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        Ok((master, slave))
    }

    /// Opens a path as the Machine would: links, `..` and absolute targets stay inside its root.
    fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve).map_err(Into::into)
    }

    fn open_dir(&self, path: &str) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Mounts `tree` on a directory of the Machine, which is made if it is missing. What is there is hidden.
    pub(crate) fn mount(&self, tree: &OwnedFd, path: &str) -> Result<(), StageError> {
        let target = self.ensure_dir(path)?;
        self.check_may_be_hidden(&target).map_err(step("mount", path))?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", &target, "", flags).map_err(step("mount", path))
    }

    /// Makes a directory and its parents. A parent that is a link out of nowhere is an error.
    fn ensure_dir(&self, path: &str) -> Result<OwnedFd, StageError> {
        let mut known = String::from("/");
        let mut dir = self.open_dir("/").map_err(step("open", "/"))?;
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            known = format!("{}/{name}", known.trim_end_matches('/'));
            dir = match self.open_dir(&known) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))
                        .map_err(step("make", &known))?;
                    self.open_dir(&known)
                }
                found => found,
            }
            .map_err(step("open", &known))?;
        }
        Ok(dir)
    }

    /// Replaces a file. What had its name, a link for example, is removed and not followed.
    fn write(&self, file: &RootFile) -> Result<(), StageError> {
        let object = format!("the file {}", file.path);
        let (parent, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let dir = self
            .ensure_dir(parent)
            .map_err(|error| StageError { object: object.clone(), ..error })?;
        self.check_is_theirs(&dir).map_err(step("make", &object))?;
        match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(step("replace", &object)(error)),
        }
        let made = make_file(&dir, name, file.mode).map_err(step("make", &object))?;
        fs::File::from(made).write_all(&file.content).map_err(step("write", &object))
    }

    /// Who could replace the platform's init would be without its filter.
    fn check_is_theirs(&self, dir: &OwnedFd) -> io::Result<()> {
        let init = crate::bundle::INIT.rsplit_once('/').map_or("/", |(dir, _)| dir);
        self.check_is_not(dir, init)
    }

    /// A link of the image may have led a path to where the platform's init is.
    fn check_may_be_hidden(&self, dir: &OwnedFd) -> io::Result<()> {
        self.check_is_theirs(dir)?;
        self.check_is_not(dir, "/")
    }

    fn check_is_not(&self, dir: &OwnedFd, path: &str) -> io::Result<()> {
        let (own, dir) = match self.open_dir(path) {
            Ok(own) => (rustix::fs::fstat(&own)?, rustix::fs::fstat(dir)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if (own.st_dev, own.st_ino) == (dir.st_dev, dir.st_ino) {
            let text = format!("{path} belongs to the platform");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(())
    }

    /// Puts a file whose content is in memory in the place of one in the root.
    fn mount_file(&self, number: usize, file: &RootFile) -> Result<(), StageError> {
        let object = format!("the file {}", file.path);
        self.write(&RootFile { content: Vec::new(), ..file.clone() })?;
        let name = format!("files/{number}");
        let held = make_file(CWD, &name, file.mode).map_err(step("make", &object))?;
        fs::File::from(held).write_all(&file.content).map_err(step("write", &object))?;
        let tree = clone_tree(Path::new(&name))?;
        let target = self.open(&file.path, OFlags::PATH | OFlags::NOFOLLOW);
        let target = target.map_err(step("open", &object))?;
        move_onto(&tree, &target).map_err(step("mount", &object))
    }

    /// Mounts a directory of the platform's own. What the image has in its place, a link for example, goes.
    fn mount_inside(&self, dir: &Path) -> Result<(), StageError> {
        /// In the root itself, so that no other directory of the image is on its way.
        const NAME: &str = ".fly";
        let failed = || step::<rustix::io::Errno>("make", "/.fly");
        let (flags, resolve) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS);
        let open = || {
            let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            rustix::fs::openat2(&self.0, NAME, flags, Mode::empty(), resolve)
        };
        let target = match open() {
            Ok(target) => target,
            Err(error) => {
                if error != rustix::io::Errno::NOENT {
                    rustix::fs::unlinkat(&self.0, NAME, AtFlags::empty()).map_err(failed())?;
                }
                rustix::fs::mkdirat(&self.0, NAME, Mode::from_raw_mode(0o755)).map_err(failed())?;
                open().map_err(failed())?
            }
        };
        let tree = clone_tree(dir)?;
        sys::make_read_only(&tree).map_err(step("protect", "/.fly"))?;
        move_onto(&tree, &target).map_err(step("mount", "/.fly"))
    }

    /// Reads a small regular file; what is missing or no file is empty.
    pub(crate) fn read(&self, path: &str) -> String {
        let opened = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK);
        let Ok(file) = opened.map(fs::File::from) else { return String::new() };
        let mut text = String::new();
        let regular = file.metadata().is_ok_and(|meta| meta.is_file());
        match file.take(USER_FILE_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) if regular => text,
            Ok(_) | Err(_) => String::new(),
        }
    }
}

/// Makes a new file with exactly these permissions.
fn make_file(dir: impl AsFd, name: &str, mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    Ok(file)
}

fn move_onto(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

/// Mounts `/sys` read-only. It is done here and not in the container, because only who owns the network namespace may,
/// and that is the host.
fn mount_sys(target: &OwnedFd) -> Result<(), StageError> {
    let failed = || step::<rustix::io::Errno>("mount", "/sys");
    let context = rustix::mount::fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed())?;
    rustix::mount::fsconfig_create(context.as_fd()).map_err(failed())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed())?;
    move_onto(&mount, target).map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_is_where_no_directory_can_be_removed() -> io::Result<()> {
        const SYSFS_MAGIC: u64 = 0x6265_6572;
        let found = rustix::fs::statfs(STAGE)?;
        assert_eq!(u64::try_from(found.f_type).ok(), Some(SYSFS_MAGIC));
        Ok(())
    }
}
