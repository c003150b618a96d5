//! System calls that have no safe wrapper, behind safe functions.
#![expect(
    unsafe_code,
    reason = "clone, mount_setattr, setfsuid, process_madvise, mallopt, malloc_trim, swapon, prctl and ioctls of loop devices and ext4 have no safe wrapper"
)]

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::filter::Instruction;

/// The C library's header has these, its Rust bindings do not.
const SWAP_FLAG_PREFER: i32 = 0x8000;
const SWAP_FLAG_PRIO_MASK: i32 = 0x7fff;
/// The C library's constant is too narrow for its value.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The same as elsewhere, in the width that the newer call takes.
const CLONE_PARENT: u64 = libc::CLONE_PARENT.unsigned_abs() as u64;
const CLONE_FILES: u64 = libc::CLONE_FILES.unsigned_abs() as u64;
const CHILD_ENDED: u64 = libc::SIGCHLD.unsigned_abs() as u64;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Closes all descriptors from 3 on. Only for the first lines of a process, when nothing owns them.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: called before this process has opened anything itself, so no `OwnedFd` loses its descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) }).map(drop)
}

/// Watches a pidfd for the end of its process. Needs a tokio runtime.
pub(crate) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` answers with the same open descriptor until it is dropped, with the registration.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(Into::into)
}

/// Watches a terminal for both directions. Needs a tokio runtime; the descriptor must not block.
pub(crate) fn watch_both(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let both = Interest::READABLE | Interest::WRITABLE;
    // SAFETY: as in `watch`.
    unsafe { AsyncFd::register_with_interest(fd, both) }.map_err(Into::into)
}

/// Makes standard output the same as `to`.
pub(crate) fn replace_stdout(to: &OwnedFd) -> io::Result<()> {
    // SAFETY: both descriptors are open; standard output stays open, it only refers to something else.
    check(unsafe { libc::c_long::from(libc::dup2(to.as_raw_fd(), libc::STDOUT_FILENO)) }).map(drop)
}

/// Gives this process its own mount namespace. The process must be single-threaded.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: NEWNS does not share or close descriptors; the hazard of `unshare` is FILES, which is not used.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(Into::into)
}

/// A child that does nothing but hold a new user namespace open. It dies when dropped.
#[derive(Debug)]
pub(crate) struct Holder(Pid);

impl Holder {
    /// Forks the child, which first does `errand`. The process must be single-threaded.
    pub(crate) fn spawn(errand: impl FnOnce()) -> io::Result<Self> {
        let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
        // SAFETY: a plain fork (no shared memory, no new stack) of a single-threaded process, so the child finds no lock
        // held by a thread that it does not have; it never returns.
        let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
        if pid == 0 {
            // SAFETY: touches no memory.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // A panic must not unwind into the parent's frames.
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(errand)));
            loop {
                // SAFETY: touches no memory.
                unsafe { libc::pause() };
            }
        }
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.map(Self).ok_or_else(|| io::Error::other("clone returned no process id"))
    }

    /// The child's process id.
    pub(crate) fn pid(&self) -> i32 {
        self.0.as_raw_nonzero().get()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // An error means that it is dead already; the wait then reaps it all the same.
        let killed = rustix::process::kill_process(self.0, rustix::process::Signal::KILL);
        let reaped = rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::empty());
        if let (Err(error), _) | (_, Err(error)) = (killed, reaped) {
            tracing::debug!(%error, "user namespace holder was gone already");
        }
    }
}

/// Forks a child that is born in `cgroup`, runs `act` and exits with its answer. A birth is cheap where a move waits for
/// all processors (5 to 20 ms). The process must be single-threaded.
pub(crate) fn fork_into(cgroup: BorrowedFd<'_>, act: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: all fields are integers, for which zero is the documented default.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    arguments.exit_signal = CHILD_ENDED;
    fork_with(arguments, act)
}

/// As [`fork_into`], but the child becomes one of this process's own parent, and tells that one of its end.
pub(crate) fn fork_beside(cgroup: BorrowedFd<'_>, act: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: as in `fork_into`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // The signal is that of this process; the kernel wants none here.
    arguments.flags = CLONE_INTO_CGROUP | CLONE_PARENT;
    arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    fork_with(arguments, act)
}

/// Forks a child that has the same descriptors as this process, now and later, until it calls [`unshare_files`]. `act`
/// must own none, as it would close it for both.
pub(crate) fn fork_sharing_files(act: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: as in `fork_into`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_FILES;
    arguments.exit_signal = CHILD_ENDED;
    fork_with(arguments, act)
}

/// Gives this process descriptors of its own: copies of all that it shares.
pub(crate) fn unshare_files() -> io::Result<()> {
    // SAFETY: no number loses its meaning in this process; the other one keeps its own.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) }.map_err(Into::into)
}

/// Takes a copied descriptor that nothing in this process owns.
pub(crate) fn take_copy(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks whether the number is one of an open descriptor, and changes nothing.
    check(unsafe { libc::c_long::from(libc::fcntl(number, libc::F_GETFD)) })?;
    // SAFETY: it is open. Its owner is in another process, in the memory that was not copied: it was opened after the fork.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Where the parts of this process's memory are; `struct prctl_mm_map` of `linux/prctl.h`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct MemoryMap {
    /// Begin and end.
    pub(crate) code: [u64; 2],
    pub(crate) data: [u64; 2],
    /// The end is not in `/proc`, and set here.
    pub(crate) heap: [u64; 2],
    pub(crate) stack_start: u64,
    pub(crate) arguments: [u64; 2],
    pub(crate) environment: [u64; 2],
    pub(crate) auxiliary: u64,
    pub(crate) auxiliary_size: u32,
    pub(crate) program: u32,
}

/// Shows these words, each ended by a NUL, as the arguments of this process. Others see them; the process itself does not.
pub(crate) fn show_arguments(words: Vec<u8>, mut map: MemoryMap) -> io::Result<()> {
    let words: &'static [u8] = words.leak();
    let end_of = |pointer: *const u8| u64::try_from(pointer.addr()).map_err(io::Error::other);
    map.arguments = [end_of(words.as_ptr_range().start)?, end_of(words.as_ptr_range().end)?];
    // SAFETY: asks where the heap ends, and changes nothing.
    map.heap[1] = end_of(unsafe { libc::sbrk(0) }.cast())?;
    // No program file.
    map.program = u32::MAX;
    let size = size_of::<MemoryMap>();
    let (map, command) = (&raw const map, libc::PR_SET_MM_MAP.unsigned_abs());
    // SAFETY: the kernel reads one structure, which is valid, and only remembers what it says, for others to see. All of it
    // is as before but for the arguments, which stay where they are.
    let done =
        unsafe { libc::prctl(libc::PR_SET_MM, libc::c_ulong::from(command), map, size, 0_usize) };
    check(done.into()).map(drop)
}

/// Forks a child in this process's own cgroup; else as [`fork_into`].
pub(crate) fn fork(act: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: as in `fork_into`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = CHILD_ENDED;
    fork_with(arguments, act)
}

/// `arguments` name no stack and share no memory.
fn fork_with(arguments: libc::clone_args, act: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: a plain fork (no shared memory, no new stack) of a single-threaded process, so the child finds no lock
    // held by a thread that it does not have. The structure lives through the call.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or(1);
        // SAFETY: ends the child at once, without the parent's exit handlers and destructors.
        unsafe { libc::_exit(code) }
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("clone returned no process id"))
}

/// How the process ended that a pidfd names: its wait status, once it is reaped. `None` as long as it is not, and where the
/// kernel does not tell (before Linux 6.15).
pub(crate) fn wait_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    /// The first of the kernel's `struct pidfd_info`.
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        status: i32,
    }
    const GET_INFO: libc::c_ulong = 0xc040_ff0b;
    const EXIT: u64 = 1 << 3;
    let mut info = Info { mask: EXIT, cgroup: 0, ids: [0; 11], status: 0 };
    ioctl(pidfd, GET_INFO, (&raw mut info).addr()).ok()?;
    (info.mask & EXIT != 0).then_some(info.status)
}

/// Gives this process the limits of another one.
pub(crate) fn copy_limits(from: i32) -> io::Result<()> {
    /// The kernel's `RLIM_NLIMITS`.
    const LIMITS: u32 = 16;
    for resource in 0..LIMITS {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let none = std::ptr::null::<libc::rlimit64>();
        let read = &raw mut limit;
        // SAFETY: the kernel writes one structure, which is valid; nothing new is given to it.
        check(unsafe { libc::syscall(libc::SYS_prlimit64, from, resource, none, read) })?;
        let (new, old) = (&raw const limit, std::ptr::null_mut::<libc::rlimit64>());
        // SAFETY: the kernel reads one structure, which is valid; process 0 is this one.
        check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new, old) })?;
    }
    Ok(())
}

/// Gives every signal its default effect and lets all come, as a program expects that has just begun.
pub(crate) fn usual_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: the default handler is no code of ours. Those that cannot be set are refused without effect.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: an empty set is written before it is read; no old set is asked for.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Installs a system call filter for this process and all that it becomes and starts.
pub(crate) fn install_filter(instructions: &[Instruction]) -> io::Result<()> {
    /// The kernel's `sock_fprog`.
    #[repr(C)]
    struct Program {
        len: u16,
        instructions: *const Instruction,
    }
    let len = u16::try_from(instructions.len()).map_err(io::Error::other)?;
    let program = Program { len, instructions: instructions.as_ptr() };
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the program points at `len` instructions that live through the call; the kernel copies them.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    check(set.into()).map(drop)
}

/// Makes the detached mount `tree` show its files' ids through the map of `user_namespace`.
pub(crate) fn map_ids(tree: &OwnedFd, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(tree, libc::MOUNT_ATTR_IDMAP, userns_fd)
}

/// Makes the detached mount `tree` one that nobody writes to and executes from.
pub(crate) fn make_read_only(tree: &OwnedFd) -> io::Result<()> {
    use libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
    let all = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    set_attributes(tree, all, 0)
}

fn set_attributes(tree: &OwnedFd, attr_set: u64, userns_fd: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the empty path and the structure live through the call, and the size is the structure's.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Makes files created from now on belong to `id` (user and group), without losing any right. An overlay keeps the
/// ids and rights of who mounts it for all that it does in its upper layer.
pub(crate) fn act_as(id: u32) -> io::Result<()> {
    // SAFETY: both calls take an integer and touch no memory. They report no failure; a privileged process has none,
    // and a file with an id that the mount does not map is refused by the kernel.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
    // The kernel took away the rights over files when the id left 0.
    let held = caps::read(None, caps::CapSet::Permitted).map_err(io::Error::other)?;
    caps::set(None, caps::CapSet::Effective, &held).map_err(io::Error::other)
}

/// Has all threads of this process allocate from so many heaps.
pub(crate) fn bound_heaps(count: i32) {
    // SAFETY: it sets a number, under the allocator's own lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, count) };
}

/// Gives the kernel back what this process has freed.
pub(crate) fn trim() {
    // SAFETY: it touches only what the allocator itself knows to be free.
    unsafe { libc::malloc_trim(0) };
}

/// What is to become of a range of another process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// To swap.
    PageOut,
    /// Back from swap.
    WillNeed,
}

/// Advises the kernel about memory of the process behind `pidfd`. Needs `CAP_SYS_NICE`, and the right to trace it.
pub(crate) fn advise(
    pidfd: &OwnedFd,
    range: &Range<u64>,
    advice: Advice,
) -> Result<(), rustix::io::Errno> {
    let too_large = |_| rustix::io::Errno::INVAL;
    let length = usize::try_from(range.end - range.start).map_err(too_large)?;
    let base = usize::try_from(range.start).map_err(too_large)?;
    let vector = libc::iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: length };
    let advice = match advice {
        Advice::PageOut => libc::MADV_PAGEOUT,
        Advice::WillNeed => libc::MADV_WILLNEED,
    };
    // SAFETY: the kernel reads the one vector and takes its address for one of the other process; neither advice changes
    // what any process reads there.
    let done = check(unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            &raw const vector,
            1_usize,
            advice,
            0_u32,
        )
    });
    done.map(drop)
        .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

/// Switches swap on; with a rank it is used before what has a lower one, or none.
pub(crate) fn swap_on(path: &CStr, rank: Option<u16>) -> io::Result<()> {
    let rank = rank.map_or(0, |rank| SWAP_FLAG_PREFER | (i32::from(rank) & SWAP_FLAG_PRIO_MASK));
    // SAFETY: the kernel reads the path, which lives through the call.
    check(unsafe { libc::c_long::from(libc::swapon(path.as_ptr(), rank)) }).map(drop)
}

/// Switches swap off.
pub(crate) fn swap_off(path: &CStr) -> io::Result<()> {
    // SAFETY: the kernel reads the path, which lives through the call.
    check(unsafe { libc::c_long::from(libc::swapoff(path.as_ptr())) }).map(drop)
}

const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4c07;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
/// The kernel undoes the loop when its last user goes.
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config` of `linux/loop.h`; all that is not named here is zero.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// Device, inode, device of the node, offset, limit of the size.
    places: [u64; 5],
    /// Number, kind and length of an encryption.
    former: [u32; 3],
    flags: u32,
    names_and_keys: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

fn ioctl(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: usize) -> io::Result<libc::c_long> {
    // SAFETY: the callers below give each request what it takes: nothing, a number, or the address of a structure of
    // theirs that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, argument) })
}

/// Number of a loop device that nobody uses, as far as is known now.
pub(crate) fn free_loop(control: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(ioctl(control, LOOP_CTL_GET_FREE, 0)?).map_err(io::Error::other)
}

/// Puts `file` behind a loop device until the device's last user goes. The device holds the file's description, and with
/// it every lock on it.
pub(crate) fn begin_loop(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
        block_size: 0,
        places: [0; 5],
        former: [0; 3],
        flags: LO_FLAGS_AUTOCLEAR,
        names_and_keys: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    ioctl(device, LOOP_CONFIGURE, (&raw const config).addr()).map(drop)
}

/// Tells a loop device that its file has grown.
pub(crate) fn renew_loop_size(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl(device, LOOP_SET_CAPACITY, 0).map(drop)
}

/// Makes everything written reach the device, and lets nothing more be written until [`thaw_files`].
pub(crate) fn freeze_files(dir: BorrowedFd<'_>) -> io::Result<()> {
    ioctl(dir, FIFREEZE, 0).map(drop)
}

/// Undoes [`freeze_files`]. Invalid input when the file system is not frozen.
pub(crate) fn thaw_files(dir: BorrowedFd<'_>) -> io::Result<()> {
    ioctl(dir, FITHAW, 0).map(drop)
}

/// Makes a mounted ext4 so many blocks long.
pub(crate) fn grow_ext4(dir: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    ioctl(dir, EXT4_IOC_RESIZE_FS, (&raw const blocks).addr()).map(drop)
}

/// Keeps every signal that can be kept from ending this process, until it ends by itself.
pub(crate) fn outlast_signals() -> io::Result<()> {
    // SAFETY: a signal set is plain memory, for which zero is valid; both calls write and read only it.
    let result = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut())
    };
    check(libc::c_long::from(result)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_dies_when_dropped() {
        let Ok(holder) = Holder::spawn(|| ()) else {
            return; // User namespaces are forbidden for this user.
        };
        let pid = holder.0;
        drop(holder);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
