//! Watching a prefix: commits in order, bounded.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Put, Revision};

// A watcher that is 1,024 commits behind has to list again anyway; the commits are shared, not
// copied.
const BACKLOG_LEN_MAX: usize = 1024;

/// What one commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its number.
    pub revision: Revision,
    /// Keys written.
    pub puts: Vec<Put>,
    /// Keys removed.
    pub deletes: Vec<String>,
}

/// Why a watch has nothing more to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher was too slow; so many commits were missed. List again; the watch goes on.
    #[error("{0} commits were missed")]
    Lagged(u64),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// Commits that touch a prefix, in order.
#[derive(Debug)]
pub struct Watch {
    prefix: String,
    receiver: broadcast::Receiver<std::sync::Arc<Change>>,
}

impl Watch {
    /// Waits for the next commit that touches the prefix; only its matching keys are in the answer.
    /// Safe to cancel.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn next(&mut self) -> Result<Change, WatchError> {
        loop {
            let change = match self.receiver.recv().await {
                Ok(change) => change,
                Err(RecvError::Lagged(missed)) => return Err(WatchError::Lagged(missed)),
                Err(RecvError::Closed) => return Err(WatchError::Closed),
            };
            if let Some(change) = self.matching(&change) {
                return Ok(change);
            }
        }
    }

    fn matching(&self, change: &Change) -> Option<Change> {
        let puts = change.puts.iter().filter(|put| put.key.starts_with(&self.prefix));
        let deletes = change.deletes.iter().filter(|key| key.starts_with(&self.prefix));
        let own = Change {
            revision: change.revision,
            puts: puts.cloned().collect(),
            deletes: deletes.cloned().collect(),
        };
        Some(own).filter(|own| !own.puts.is_empty() || !own.deletes.is_empty())
    }
}

#[derive(Debug)]
pub(crate) struct Hub(broadcast::Sender<std::sync::Arc<Change>>);

impl Hub {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG_LEN_MAX))
    }

    pub(crate) fn subscribe(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), receiver: self.0.subscribe() }
    }

    pub(crate) fn tell(&self, change: Change) {
        // Nobody watching is fine.
        drop(self.0.send(std::sync::Arc::new(change)));
    }
}
