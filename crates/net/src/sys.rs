//! The few calls that no safe wrapper offers.
#![expect(
    unsafe_code,
    reason = "unshare, socket options and born descriptors have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::thread::UnshareFlags;

/// Moves the calling thread, and no other, into a new network namespace.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: needed because `unshare` is unsafe in general (file descriptor tables, mounts). With
    // only CLONE_NEWNET the kernel replaces this thread's network namespace and touches no memory
    // and no descriptor that other threads share.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Moves the calling thread, and no other, into a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: needed as above. CLONE_NEWNS also gives this thread its own root and working
    // directory; the thread is a short one made for this and nothing else runs on it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    Ok(())
}

/// Lets a socket accept connections to addresses that are not the host's.
pub(crate) fn set_transparent_v6(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT)
}

/// Like [`set_transparent_v6`] for IPv4.
pub(crate) fn set_transparent_v4(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(fd, libc::SOL_IP, libc::IP_TRANSPARENT)
}

/// Lets an IPv6 socket say with each datagram to which address it was sent.
pub(crate) fn set_says_destination(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO)
}

/// Lets a transparent IPv6 socket say with each datagram to which address and port it was sent.
pub(crate) fn set_says_original_destination(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(fd, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR)
}

fn set_flag(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: needed because rustix knows none of these options. `on` outlives the call, `len` is
    // its size, and the borrowed descriptor is open.
    let answer =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const on).cast(), len) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over a descriptor that this process was born with, so that it is closed when dropped.
///
/// To be called at most once for a number, before the process opens anything of its own there;
/// answers [`None`] for the standard streams and for what is not open.
pub fn own_descriptor(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: needed to ask about a mere number; `fcntl(F_GETFD)` touches no memory.
    if number <= libc::STDERR_FILENO || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: needed because ownership of a number cannot be proved. It is open, and by this
    // function's contract nothing else in this process owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The network namespace that a socket belongs to.
pub(crate) fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `SIOCGSKNS` of `linux/sockios.h`, which libc lacks.
    const SIOCGSKNS: libc::Ioctl = 0x894C;
    // SAFETY: needed because rustix has no such call. It takes no argument, and the borrowed
    // descriptor is open.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: needed to own what the kernel just opened for us; nobody else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
