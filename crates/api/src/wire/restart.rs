//! Restarting a Machine.

use super::{GoDuration, Signal};

/// Query of `POST …/restart`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestartQuery {
    /// Kill it at once, instead of asking it to end.
    pub force_stop: bool,
    /// Instead of the signal of its config.
    pub signal: Option<Signal>,
    /// From that signal to the kill, instead of that of its config.
    pub timeout: Option<GoDuration>,
}
