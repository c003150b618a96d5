//! What the server tells systemd, or whatever speaks its protocol, and gets back from it.
//!
//! `READY=1`, and copies of the proxy's listeners for the descriptor store: when server and proxy
//! die together, connections wait in the listeners' queues for the next pair.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use perch_net::{NetError, Plane};
use perch_proxy::control::Listeners;
use sd_notify::NotifyState;

/// Variables by which the protocol reaches the server.
const VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

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

/// Descriptors that the service manager kept, by name. To be called once, at the start.
///
/// # Errors
/// When the variables that announce them are malformed.
pub(crate) fn kept() -> io::Result<Vec<(String, OwnedFd)>> {
    let announced = sd_notify::listen_fds_with_names()?;
    Ok(announced.filter_map(|(fd, name)| Some((name, perch_net::own_descriptor(fd)?))).collect())
}

/// The listeners among them, if they are complete and belong to this plane; an older plane's are
/// of no use.
///
/// # Errors
/// When one of them is no socket.
pub(crate) fn listeners(
    kept: Vec<(String, OwnedFd)>,
    plane: &Plane,
) -> Result<Option<Listeners>, NetError> {
    let Some(listeners) = by_name(kept) else { return Ok(None) };
    let inside = plane.holds(listeners.tcp6.as_fd())? && plane.holds(listeners.dns_udp.as_fd())?;
    Ok(inside.then_some(listeners))
}

/// A name that comes twice stands for the newest.
fn by_name(mut kept: Vec<(String, OwnedFd)>) -> Option<Listeners> {
    let mut take = |name: &str| {
        let at = kept.iter().rposition(|(kept, _fd)| kept == name)?;
        Some(kept.swap_remove(at).1)
    };
    let fds: Option<Vec<OwnedFd>> = Listeners::NAMES.into_iter().map(&mut take).collect();
    Listeners::from_fds(fds?).ok()
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

    fn sockets(names: &[&str]) -> Vec<(String, OwnedFd)> {
        let open = |name: &&str| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
            ((*name).to_owned(), OwnedFd::from(socket))
        };
        names.iter().map(open).collect()
    }

    #[test]
    fn listeners_are_found_by_name_in_any_order_among_others() {
        let mut names: Vec<&str> = Listeners::NAMES.to_vec();
        names.reverse();
        names.insert(2, "stranger");
        assert!(by_name(sockets(&names)).is_some());
    }

    #[test]
    fn an_incomplete_set_is_none() {
        assert!(by_name(sockets(&Listeners::NAMES[1..])).is_none());
        assert!(by_name(Vec::new()).is_none());
    }

    #[test]
    fn children_do_not_see_what_is_meant_for_the_server() {
        let mut command = Command::new("true");
        hide_from(&mut command);
        let removed = command.get_envs().filter(|(_name, value)| value.is_none()).count();
        assert_eq!(removed, VARIABLES.len());
    }
}
