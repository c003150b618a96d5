//! The proxy's end: everybody who waits learns of it, and nobody pays for it before.
//!
//! A connection looks at a flag when it is about to wait for a request or to answer one; only those
//! that wait already are woken.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Whether the proxy is about to end.
#[derive(Debug)]
pub(crate) struct Ending {
    begun: AtomicBool,
    changed: Notify,
}

impl Ending {
    pub(crate) const fn new() -> Self {
        Self { begun: AtomicBool::new(false), changed: Notify::const_new() }
    }

    /// Begins the end, and wakes all who wait for it.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Completes at [`Self::begin`]. Polled once, it wakes its task then even when it is not polled
    /// again: a task that looks at [`Self::has_begun`] whenever it is woken needs no more.
    pub(crate) fn begins(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
