//! Tells systemd that the server is ready, where systemd asks (`NOTIFY_SOCKET`).

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `READY=1` if a service manager listens; otherwise does nothing.
///
/// # Errors
/// When `NOTIFY_SOCKET` is set and cannot be written to.
pub(crate) fn ready() -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_service_manager_nothing_is_sent() {
        // The variable is absent in test runs; setting it here would race with other tests.
        assert!(std::env::var_os("NOTIFY_SOCKET").is_some() || ready().is_ok());
    }
}
