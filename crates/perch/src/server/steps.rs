//! How long each step of the server's start takes, for its log (`PERCH_LOG=debug`).

use perch_core::time::Timestamp;

use super::clock;

/// A start that is under way.
#[derive(Debug)]
pub(crate) struct Steps {
    since: Timestamp,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        Self { since: clock::now() }
    }

    /// Logs how long it took since the step before.
    pub(crate) fn done(&mut self, step: &'static str) {
        let now = clock::now();
        tracing::debug!(step, took_ms = now.since(self.since).as_millis(), "a step of the start");
        self.since = now;
    }
}
