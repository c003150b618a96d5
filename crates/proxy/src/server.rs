//! Placeholder for the first commit of the interface.
use std::os::unix::net::UnixListener;

use crate::{Listeners, Options, ProxyError};

pub(crate) fn run(
    _listeners: Listeners,
    _control: UnixListener,
    _options: Options,
) -> Result<(), ProxyError> {
    Err(ProxyError::Runtime(std::io::ErrorKind::Unsupported.into()))
}
