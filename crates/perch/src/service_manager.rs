//! What the server tells systemd, or whatever speaks its protocol, and gets back from it.
//!
//! `READY=1`, and copies of the proxy's listeners for the descriptor store: when server and proxy
//! die together, connections wait in the listeners' queues for the next pair.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use perch_net::{NetError, Plane};
use perch_proxy::control::{Listeners, NamedListeners};
use sd_notify::NotifyState;

/// Variables by which the protocol reaches the server.
const VARIABLES: [&str; 5] = [
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    crate::server::handoff::VARIABLE,
];

/// Says that the server is ready, if a service manager listens.
///
/// # Errors
/// When `NOTIFY_SOCKET` is set and cannot be written to.
pub(crate) fn ready() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
}

/// Gives copies of the listeners to the service manager, if one listens, in place of former ones. What
/// is kept already is kept once.
///
/// # Errors
/// When `NOTIFY_SOCKET` is set and cannot be written to.
pub(crate) fn keep(listeners: &Listeners) -> io::Result<()> {
    for (name, fd) in Listeners::NAMES.into_iter().zip(listeners.as_fds()) {
        // Without polling: systemd drops a descriptor that reports an error, as a UDP socket may.
        let poll = NotifyState::Custom("FDPOLL=0");
        sd_notify::notify_with_fds(
            &[NotifyState::FdStore, NotifyState::FdName(name), poll],
            &[fd],
        )?;
    }
    Ok(())
}

/// Forgets what the service manager keeps.
///
/// # Errors
/// When `NOTIFY_SOCKET` is set and cannot be written to.
pub(crate) fn forget() -> io::Result<()> {
    for name in Listeners::NAMES {
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])?;
    }
    Ok(())
}

/// Gives a copy of one socket to the service manager, if one listens, in place of the one that it keeps by this name.
///
/// # Errors
/// When `NOTIFY_SOCKET` is set and cannot be written to.
pub(crate) fn keep_one(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])?;
    let poll = NotifyState::Custom("FDPOLL=0");
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name), poll], &[fd])
}

/// Says that another process takes this one's place, and is ready. Whatever speaks for the service comes from that one
/// then.
///
/// # Errors
/// When `NOTIFY_SOCKET` is set and cannot be written to.
pub(crate) fn succeeded_by(pid: u32) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::MainPid(pid), NotifyState::Ready])
}

/// Descriptors that the service manager kept, by name. To be called once, at the start.
///
/// # Errors
/// When the variables that announce them are malformed.
pub(crate) fn kept() -> io::Result<Vec<(String, OwnedFd)>> {
    let announced = sd_notify::listen_fds_with_names()?;
    Ok(announced.filter_map(|(fd, name)| Some((name, perch_net::own_descriptor(fd)?))).collect())
}

/// The listeners among them, if they belong to this plane; an older plane's are of no use. Those that an earlier
/// release had not are missing.
///
/// # Errors
/// When one of them is no socket.
pub(crate) fn listeners(
    mut kept: NamedListeners,
    plane: &Plane,
) -> Result<Option<NamedListeners>, NetError> {
    kept.retain(|(name, _fd)| Listeners::NAMES.contains(&name.as_str()));
    let mut of_the_plane = kept.iter().filter(|(name, _fd)| !name.contains("forward")).peekable();
    if of_the_plane.peek().is_none() {
        return Ok(None);
    }
    for (_name, fd) in of_the_plane {
        if !plane.holds(fd.as_fd())? {
            return Ok(None);
        }
    }
    Ok(Some(kept))
}

/// Takes the protocol's variables out of a child's environment: they are meant for the server.
pub(crate) fn hide_from(command: &mut Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_do_not_see_what_is_meant_for_the_server() {
        let mut command = Command::new("true");
        hide_from(&mut command);
        let removed = command.get_envs().filter(|(_name, value)| value.is_none()).count();
        assert_eq!(removed, VARIABLES.len());
    }
}
