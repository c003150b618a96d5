//! The words of the Machines API for what a Machine is doing.

use std::fmt;
use std::str::FromStr;

/// A Machine's state, in the words of the Machines API (fly-semantics 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MachineState {
    /// Never started.
    Created,
    /// Being made.
    Creating,
    /// On its way up.
    Starting,
    /// Up.
    Started,
    /// On its way down.
    Stopping,
    /// Down.
    Stopped,
    /// Being frozen.
    Suspending,
    /// Frozen.
    Suspended,
    /// Down for a moment, coming back.
    Restarting,
    /// A new config is being applied.
    Updating,
    /// A new config is being applied to a Machine that was up.
    Replacing,
    /// Could not be started.
    Failed,
    /// The first launch failed; it will be destroyed.
    LaunchFailed,
    /// On its way out.
    Destroying,
    /// Gone.
    Destroyed,
}

/// A word that is no Machine state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a Machine state")]
pub struct BadState(String);

impl MachineState {
    /// All states.
    pub const ALL: [Self; 15] = [
        Self::Created,
        Self::Creating,
        Self::Starting,
        Self::Started,
        Self::Stopping,
        Self::Stopped,
        Self::Suspending,
        Self::Suspended,
        Self::Restarting,
        Self::Updating,
        Self::Replacing,
        Self::Failed,
        Self::LaunchFailed,
        Self::Destroying,
        Self::Destroyed,
    ];

    /// The word on the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Restarting => "restarting",
            Self::Updating => "updating",
            Self::Replacing => "replacing",
            Self::Failed => "failed",
            Self::LaunchFailed => "launch_failed",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
        }
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for MachineState {
    type Err = BadState;

    fn from_str(text: &str) -> Result<Self, BadState> {
        let found = Self::ALL.into_iter().find(|s| s.as_str() == text);
        found.ok_or_else(|| BadState(text.to_owned()))
    }
}
