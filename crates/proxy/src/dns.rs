//! DNS.
use std::rc::Rc;

use crate::{Listeners, ProxyError, directory::Directory};

pub(crate) fn start(
    _listeners: &Rc<Listeners>,
    _directory: &Rc<Directory>,
) -> Result<(), ProxyError> {
    Ok(())
}
