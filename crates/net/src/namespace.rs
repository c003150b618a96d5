//! Network namespaces: entering one on a thread of its own, making one, pinning one.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::{io, panic, thread};

use rustix::mount::UnmountFlags;
use rustix::thread::LinkNameSpaceType;

use crate::error::NetError;
use crate::netlink::Socket;
use crate::route;
use crate::sys;

/// Magic number of the file system that namespaces live on (`linux/magic.h`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Runs `work` on a new thread inside the network namespace `netns` and returns its result.
///
/// Sockets made by `work` belong to that namespace for ever, and a child process that it spawns
/// starts there. The calling thread and all others stay where they are. A child must not ask for
/// `PR_SET_PDEATHSIG`: its "parent" is this thread, which ends when `work` returns. A panic in
/// `work` continues in the caller.
///
/// # Errors
/// When the thread cannot be made or may not enter the namespace.
pub fn run_in<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetError> {
    on_thread(|| {
        rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|source| NetError::kernel("enter a network namespace", source))?;
        Ok(work())
    })
}

/// Makes a network namespace that can stand for a host of its own: loopback is up, and it lives as
/// long as the descriptor or a process in it.
///
/// # Errors
/// When the process is not privileged, or the kernel's.
pub fn new_namespace() -> Result<OwnedFd, NetError> {
    let bring_up = || Socket::open_route()?.apply(vec![route::switch_on("lo")], &[]);
    create(bring_up).map(|(netns, ())| netns)
}

/// Makes a namespace, runs `work` inside it, and returns a descriptor that keeps it alive.
pub(crate) fn create<T: Send>(
    work: impl FnOnce() -> Result<T, NetError> + Send,
) -> Result<(OwnedFd, T), NetError> {
    on_thread(|| {
        sys::unshare_network()
            .map_err(|source| NetError::kernel("create a network namespace", source))?;
        let netns = current()?;
        Ok((netns, work()?))
    })
}

/// Runs `work` on a thread that ends afterwards, so nothing that it does to itself stays.
pub(crate) fn on_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetError> + Send,
) -> Result<T, NetError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("perch-netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| NetError::kernel("start a thread", source))?;
        thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
    })
}

/// Whether two descriptors are of one namespace.
pub(crate) fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> Result<bool, NetError> {
    let identity = |fd| {
        let stat = rustix::fs::fstat(fd)
            .map_err(|source| NetError::kernel("look at a network namespace", source))?;
        Ok((stat.st_dev, stat.st_ino))
    };
    Ok(identity(a)? == identity(b)?)
}

/// Returns the network namespace of the calling thread.
pub(crate) fn current() -> Result<OwnedFd, NetError> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// Opens the namespace pinned at `pin`; `None` when nothing is pinned there (after a reboot the
/// file is there, the mount is not).
pub(crate) fn pinned(pin: &Path) -> Result<Option<OwnedFd>, NetError> {
    match fs::metadata(pin) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(file("read", pin, source)),
        Ok(_) => {}
    }
    let netns = open(pin)?;
    let stat = rustix::fs::fstatfs(&netns).map_err(|e| file("examine", pin, e.into()))?;
    Ok((stat.f_type as u64 == NSFS_MAGIC).then_some(netns))
}

/// Binds `netns` to the file `pin`, so that it outlives every process in it.
pub(crate) fn pin(netns: BorrowedFd<'_>, pin: &Path) -> Result<(), NetError> {
    File::create(pin).map_err(|source| file("create", pin, source))?;
    // The descriptor's link leads to the namespace itself, which may be bound like a file.
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    rustix::mount::mount_bind(source, pin).map_err(|source| file("mount", pin, source.into()))
}

/// Undoes [`pin`]; it is no error when nothing is there.
pub(crate) fn unpin(pin: &Path) -> Result<(), NetError> {
    while pinned(pin)?.is_some() {
        rustix::mount::unmount(pin, UnmountFlags::DETACH)
            .map_err(|source| file("unmount", pin, source.into()))?;
    }
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(file("remove", pin, source)),
        _ => Ok(()),
    }
}

/// Writes `value` to `/proc/sys/net/<name>` of the calling thread's namespace.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<(), NetError> {
    let path = Path::new("/proc/sys/net").join(name);
    fs::write(&path, value).map_err(|source| file("write", &path, source))
}

fn open(path: &Path) -> Result<OwnedFd, NetError> {
    let opened = File::open(path).map_err(|source| file("open", path, source))?;
    opened.as_fd().try_clone_to_owned().map_err(|source| file("open", path, source))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> NetError {
    NetError::File { what, path: path.to_owned(), source }
}
