//! The proxy's end: everybody who waits learns of it, and nobody pays for it before.
//!
//! A connection looks at a flag when it is about to wait for a request or to answer one; only those
//! that wait already are woken. A proxy that has a successor begins softly: each connection's next answer is its last,
//! and only later is closed who has not asked meanwhile, since a request may be on its way at any time.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Whether the proxy is about to end.
#[derive(Debug)]
pub(crate) struct Ending {
    begun: AtomicBool,
    changed: Notify,
    closing: AtomicBool,
    closes: Notify,
    cutting: AtomicBool,
    cuts: Notify,
}

impl Ending {
    pub(crate) const fn new() -> Self {
        Self {
            begun: AtomicBool::new(false),
            changed: Notify::const_new(),
            closing: AtomicBool::new(false),
            closes: Notify::const_new(),
            cutting: AtomicBool::new(false),
            cuts: Notify::const_new(),
        }
    }

    /// Begins the end, and wakes all who wait for it.
    pub(crate) fn begin(&self) {
        self.begin_softly();
        self.closing.store(true, Ordering::Relaxed);
        self.closes.notify_waiters();
    }

    /// The same, and connections that would go on for ever have a few seconds.
    pub(crate) fn begin_to_cut(&self) {
        self.begin();
        self.cutting.store(true, Ordering::Relaxed);
        self.cuts.notify_waiters();
    }

    /// Whether upgraded connections end too.
    pub(crate) fn cuts_all(&self) -> bool {
        self.cutting.load(Ordering::Relaxed)
    }

    /// Completes when [`Self::cuts_all`] becomes true.
    pub(crate) fn cuts(&self) -> Notified<'_> {
        self.cuts.notified()
    }

    /// As [`Self::begin`], but connections that nobody uses stay until then.
    pub(crate) fn begin_softly(&self) {
        self.begun.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Whether who has no request under way is to go.
    pub(crate) fn closes_idle(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Completes when [`Self::closes_idle`] becomes true; else as [`Self::begins`].
    pub(crate) fn closes(&self) -> Notified<'_> {
        self.closes.notified()
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Completes at [`Self::begin_softly`]. Polled once, it wakes its task then even when it is not polled
    /// again: a task that looks at [`Self::has_begun`] whenever it is woken needs no more.
    pub(crate) fn begins(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
