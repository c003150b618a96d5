//! The system calls that PID 1 needs and the standard library does not offer, behind safe functions.
#![expect(
    unsafe_code,
    reason = "prctl, signals, seccomp and wait have no interface in the standard library"
)]

use std::ffi::{c_int, c_ulong, c_void};
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::filter::Instruction;

pub(crate) const ENOEXEC: i32 = 8;
pub(crate) const SIGCHLD: c_int = 17;
const SIGKILL: c_ulong = 9;
const SIGPIPE: c_int = 13;
const SIGNAL_MAX: c_int = 64;
/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: of this process's own making, and for ever if they were handled.
const FAULTS: [c_int; 6] = [4, 5, 7, 8, 11, 31];
const SIG_DFL: usize = 0;

const PR_SET_PDEATHSIG: c_int = 1;
const PR_SET_DUMPABLE: c_int = 4;
const PR_SET_SECCOMP: c_int = 22;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const SECCOMP_MODE_FILTER: c_ulong = 2;
const F_GETFD: c_int = 1;
const F_SETFD: c_int = 2;
const FD_CLOEXEC: c_int = 1;
const RLIMIT_CORE: c_int = 4;
const RLIMIT_NOFILE: c_int = 7;
const SIG_SETMASK: c_int = 2;
const WNOHANG: c_int = 1;
const POLLIN: i16 = 0x1;
const POLLHUP: i16 = 0x10;
const MSG_DONTWAIT: c_int = 0x40;
const MSG_NOSIGNAL: c_int = 0x4000;
const FOREVER: c_int = -1;

/// Descriptor of the socket to the shim.
const REPORT: c_int = 3;
/// Descriptor of the memory file with the program's secrets.
const SECRETS: c_int = 4;
const EBADF: i32 = 9;
const ENOTSOCK: i32 = 88;

/// The C library's `sigset_t`: 1,024 bits on Linux.
#[repr(C)]
struct SignalSet([u64; 16]);

#[repr(C)]
struct Rlimit {
    soft: u64,
    hard: u64,
}

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

#[repr(C)]
struct FilterProgram {
    len: u16,
    instructions: *const Instruction,
}

unsafe extern "C" {
    fn prctl(option: c_int, ...) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout_ms: c_int) -> c_int;
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigwaitinfo(set: *const SignalSet, info: *mut c_void) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn signal(signal: c_int, handler: usize) -> usize;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn getrlimit(resource: c_int, limit: *mut Rlimit) -> c_int;
    fn setrlimit(resource: c_int, limit: *const Rlimit) -> c_int;
    fn send(fd: c_int, bytes: *const c_void, len: usize, flags: c_int) -> isize;
    fn recv(fd: c_int, bytes: *mut c_void, len: usize, flags: c_int) -> isize;
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the kernel to kill this process when the shim dies, and fails if the shim is dead already.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: the option takes one integer and touches no memory.
    check(unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL) })?;
    let mut report = PollFd { fd: REPORT, events: 0, revents: 0 };
    // SAFETY: one valid entry, a count of one, no wait.
    check(unsafe { poll(&raw mut report, 1, 0) })?;
    if report.revents & POLLHUP != 0 {
        return Err(io::Error::other("the shim is gone"));
    }
    Ok(())
}

/// Keeps the program from inheriting the socket to the shim.
pub(crate) fn close_report_on_exec() -> io::Result<()> {
    // SAFETY: sets a flag of a descriptor, touches no memory.
    check(unsafe { fcntl(REPORT, F_SETFD, FD_CLOEXEC) })
}

/// Sends one packet to the shim. Errors are dropped: there is nobody else to tell.
pub(crate) fn send_report(bytes: &[u8]) {
    // SAFETY: pointer and length belong to one live slice.
    unsafe { send(REPORT, bytes.as_ptr().cast(), bytes.len(), MSG_NOSIGNAL) };
}

/// Whether the shim's word is there. Another launcher than the shim has no socket here, and nothing to wait for.
pub(crate) fn gate_is_open() -> io::Result<bool> {
    let mut word = [0u8; 8];
    // SAFETY: pointer and length belong to one live buffer.
    let got = unsafe { recv(REPORT, word.as_mut_ptr().cast(), word.len(), MSG_DONTWAIT) };
    if got > 0 {
        return Ok(true);
    }
    if got == 0 {
        return Err(io::Error::other("the shim is gone"));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
        _ if matches!(error.raw_os_error(), Some(EBADF | ENOTSOCK)) => Ok(true),
        _ => Err(error),
    }
}

/// Sleeps until the shim says something, or is gone.
pub(crate) fn wait_for_shim() -> io::Result<()> {
    let mut report = PollFd { fd: REPORT, events: POLLIN, revents: 0 };
    // SAFETY: one valid entry, a count of one.
    match check(unsafe { poll(&raw mut report, 1, FOREVER) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads the program's secrets and closes their file. Another launcher than the shim may give none.
pub(crate) fn take_secrets() -> io::Result<Vec<u8>> {
    // SAFETY: reads a flag of a descriptor, touches no memory.
    if let Err(error) = check(unsafe { fcntl(SECRETS, F_GETFD) }) {
        return if error.raw_os_error() == Some(EBADF) { Ok(Vec::new()) } else { Err(error) };
    }
    // SAFETY: it is open, and this process, which has only begun, has opened nothing itself that could own it.
    let mut file = unsafe { File::from_raw_fd(SECRETS) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn all_signals() -> SignalSet {
    let mut set = MaybeUninit::<SignalSet>::uninit();
    // SAFETY: sigfillset writes the whole set and cannot fail for a valid pointer.
    unsafe {
        sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Gives every signal its default effect, which the program inherits. A server that was started by `nohup`, or in the
/// background of a script, ignores some, and a program that ignores its `kill_signal` would have to be killed.
pub(crate) fn default_signals() {
    // SIGPIPE stays as the standard library wants it here; it gives it back to what it starts.
    for number in (1..=SIGNAL_MAX).filter(|number| *number != SIGPIPE) {
        // SAFETY: the default handler is no code of ours. Those that cannot be set (SIGKILL, SIGSTOP, the C library's
        // own) are refused without effect.
        unsafe { signal(number, SIG_DFL) };
    }
}

/// Those that came before `block_signals`: bit N is signal N + 1.
static EARLY: AtomicU64 = AtomicU64::new(0);

extern "C" fn note(number: c_int) {
    EARLY.fetch_or(1 << (number - 1), Ordering::Relaxed);
}

/// Notes every signal from here on that somebody may send on purpose: the kernel drops those that PID 1 does not handle.
/// What is started has the default effects again, as always with a handler.
pub(crate) fn note_signals() {
    let is_fault = |number: &c_int| FAULTS.contains(number);
    let others = (1..=SIGNAL_MAX).filter(|number| !is_fault(number));
    for number in others.filter(|number| ![SIGPIPE, SIGCHLD].contains(number)) {
        // SAFETY: the handler is one atomic operation. Those that cannot be handled are refused without effect.
        unsafe { signal(number, note as *const () as usize) };
    }
}

/// The numbers that were noted, each once.
pub(crate) fn take_noted() -> impl Iterator<Item = c_int> {
    let noted = EARLY.swap(0, Ordering::Relaxed);
    (1..=SIGNAL_MAX).filter(move |number| noted & (1 << (number - 1)) != 0)
}

/// Blocks all signals, so that `next_signal` gets them.
pub(crate) fn block_signals() -> io::Result<()> {
    // SAFETY: the set is initialised; no old set is asked for.
    check(unsafe { sigprocmask(SIG_SETMASK, &all_signals(), std::ptr::null_mut()) })
}

/// Waits for a signal and returns its number.
pub(crate) fn next_signal() -> c_int {
    loop {
        // SAFETY: the set is initialised; a null info is allowed.
        let signal = unsafe { sigwaitinfo(&all_signals(), std::ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn send_signal(pid: c_int, signal: c_int) {
    // SAFETY: touches no memory. The pid is a child that has not been reaped, so it is not reused.
    unsafe { kill(pid, signal) };
}

/// Reaps one ended child: its id and raw wait status.
pub(crate) fn reap_one() -> Option<(c_int, c_int)> {
    let mut status = 0;
    // SAFETY: the status pointer is valid.
    let pid = unsafe { waitpid(-1, &raw mut status, WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Keeps the program, which has the same user, from reading this process's memory, from writing to it, and from taking
/// its descriptors. An exec begins anew, so the program itself is as debuggable as ever.
pub(crate) fn hide() -> io::Result<()> {
    let none: c_ulong = 0;
    // SAFETY: the option takes one integer and touches no memory.
    check(unsafe { prctl(PR_SET_DUMPABLE, none) })
}

/// Lets a crash write no core file, unless the program raises the limit itself: a Machine that crashes again and again
/// would fill the host's disk.
pub(crate) fn leave_no_cores() -> io::Result<()> {
    let mut limit = Rlimit { soft: 0, hard: 0 };
    // SAFETY: the pointer is valid and has the C layout of `struct rlimit` on 64-bit Linux.
    check(unsafe { getrlimit(RLIMIT_CORE, &raw mut limit) })?;
    limit.soft = 0;
    // SAFETY: as above; the kernel only reads.
    check(unsafe { setrlimit(RLIMIT_CORE, &raw const limit) })
}

/// Sets soft and hard limit of open files to at most `max`.
pub(crate) fn limit_open_files(max: u64) -> io::Result<()> {
    let mut limit = Rlimit { soft: 0, hard: 0 };
    // SAFETY: the pointer is valid and has the C layout of `struct rlimit` on 64-bit Linux.
    check(unsafe { getrlimit(RLIMIT_NOFILE, &raw mut limit) })?;
    let allowed = limit.hard.min(max);
    let limit = Rlimit { soft: allowed, hard: allowed };
    // SAFETY: as above; the kernel only reads.
    check(unsafe { setrlimit(RLIMIT_NOFILE, &raw const limit) })
}

/// Forbids set-user-ID programs to gain anything.
pub(crate) fn forbid_new_privileges() -> io::Result<()> {
    let (one, none): (c_ulong, c_ulong) = (1, 0);
    // SAFETY: the option takes integers and touches no memory.
    check(unsafe { prctl(PR_SET_NO_NEW_PRIVS, one, none, none, none) })
}

/// Installs the system call filter for this process and all its children.
pub(crate) fn install_filter(instructions: &[Instruction]) -> io::Result<()> {
    let len = u16::try_from(instructions.len()).map_err(io::Error::other)?;
    let program = FilterProgram { len, instructions: instructions.as_ptr() };
    // SAFETY: the program points at `len` instructions that live through the call; the kernel copies them.
    check(unsafe { prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program) })
}
