//! The Machines' lives in the store: what somebody asked for before it is answered, the rest soon after.
//!
//! What could not be written stays unsaved and is tried again, so that the store catches up when it can.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perch_api::wire::ApiError;
use perch_core::lifecycle::{self, Stored};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::keeper::{Catalog, Change, Keeper};
use super::records::{LifeRecord, MachineRecord, Wish};
use super::world::lock;

/// Pause before what could not be written is tried again: a full disk is not emptied faster by asking.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// So long changes gather before they are written behind: a commit in the middle of a start holds up the start's own
/// files, and a start makes several changes.
const GATHER_TIME: Duration = Duration::from_millis(20);

/// The newest life of each Machine, durable or not yet.
#[derive(Debug)]
pub(crate) struct Lives {
    keeper: Keeper,
    newest: Arc<Mutex<BTreeMap<String, Stored>>>,
    /// Machines whose life is to be written behind.
    unsaved: Mutex<BTreeSet<String>>,
    saving: Notify,
}

impl Lives {
    pub(crate) fn new(keeper: Keeper) -> Self {
        let unsaved = Mutex::default();
        Self { keeper, newest: Arc::default(), unsaved, saving: Notify::new() }
    }

    /// Makes a Machine's life durable before it returns.
    ///
    /// # Errors
    /// When it could not be written; it is then written behind, as soon as it can be.
    pub(crate) async fn save(&self, id: &str, stored: Stored) -> Result<(), ApiError> {
        lock(&self.newest).insert(id.to_owned(), stored);
        self.write([id.to_owned()].into()).await
    }

    /// Makes a Machine's life durable soon.
    pub(crate) fn save_behind(&self, id: &str, stored: Stored) {
        if lock(&self.newest).insert(id.to_owned(), stored) != Some(stored) {
            self.owe([id.to_owned()].into());
        }
    }

    /// Forgets a Machine that is gone.
    pub(crate) fn forget(&self, id: &str) {
        lock(&self.newest).remove(id);
    }

    /// Writes lives behind until the server ends; several changes become one commit.
    pub(crate) async fn write_behind(&self, shutdown: &CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            let owed = async {
                tokio::time::sleep(pause).await;
                self.saving.notified().await;
                tokio::time::sleep(GATHER_TIME).await;
            };
            tokio::select! {
                () = owed => {}
                () = shutdown.cancelled() => {}
            }
            let written = self.write_unsaved().await;
            if shutdown.is_cancelled() {
                return;
            }
            pause = if written { Duration::ZERO } else { RETRY_INTERVAL };
        }
    }

    /// Whether nothing is owed to the store any more.
    async fn write_unsaved(&self) -> bool {
        let ids = std::mem::take(&mut *lock(&self.unsaved));
        let written = self.write(ids).await;
        if let Err(error) = &written {
            tracing::error!(%error, "the state of Machines could not be written");
        }
        written.is_ok()
    }

    /// Commits what these Machines' lives are at the moment of the commit.
    async fn write(&self, ids: BTreeSet<String>) -> Result<(), ApiError> {
        let (newest, wanted) = (self.newest.clone(), ids.clone());
        // Read where commits have their order: who waits for its turn here must not undo a later life.
        let decide = move |catalog: &Catalog| {
            let newest = lock(&newest);
            let lives = wanted.iter().filter_map(|id| Some((id, *newest.get(id)?)));
            Ok((changed_lives(catalog, lives), ()))
        };
        let written = self.keeper.write(decide).await;
        if written.is_err() {
            self.owe(ids);
        }
        written
    }

    fn owe(&self, ids: BTreeSet<String>) {
        lock(&self.unsaved).extend(ids);
        self.saving.notify_one();
    }
}

fn changed_lives<'a>(
    catalog: &Catalog,
    lives: impl Iterator<Item = (&'a String, Stored)>,
) -> Vec<Change> {
    let changed = |(id, stored): (&String, Stored)| {
        let mut record = MachineRecord::clone(catalog.machines.get(id)?);
        let life = life_record(stored);
        if record.life == life {
            return None;
        }
        record.life = life;
        Some(Change::PutMachine(Box::new(record)))
    };
    lives.filter_map(changed).collect()
}

/// The storage form of a Machine's life.
fn life_record(stored: Stored) -> LifeRecord {
    let wish = match stored.wish {
        lifecycle::Wish::Up => Wish::Up,
        lifecycle::Wish::Down => Wish::Down,
        lifecycle::Wish::Gone => Wish::Gone,
    };
    LifeRecord { state: stored.state.to_string(), run: stored.run, wish }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use perch_core::lifecycle::MachineState;

    use super::*;
    use crate::server::records::tests as records;

    fn stopped() -> Stored {
        let (state, wish) = (MachineState::Stopped, lifecycle::Wish::Down);
        Stored { state, run: 3, config_version: 1, wish }
    }

    fn keeper(dir: &std::path::Path) -> Keeper {
        let keeper = Keeper::in_dir(dir);
        let machine = Change::PutMachine(Box::new(records::machine("m")));
        keeper.write_blocking(|_| Ok((vec![machine], ()))).expect("written");
        keeper
    }

    fn run(keeper: &Keeper) -> u64 {
        keeper.read().machines["m"].life.run
    }

    #[tokio::test]
    async fn a_life_that_could_not_be_written_is_an_error_and_written_later() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keeper = keeper(dir.path());
        let lives = Lives::new(keeper.clone());
        keeper.pretend_full(true);
        let refused = lives.save("m", stopped()).await.expect_err("the disk is full");
        assert_eq!((refused.code, run(&keeper)), (507, 0));
        assert!(!lives.write_unsaved().await, "it is owed, and the disk is still full");

        keeper.pretend_full(false);
        assert!(lives.write_unsaved().await);
        assert_eq!(run(&keeper), 3);
    }

    #[tokio::test]
    async fn who_waited_for_its_turn_undoes_no_later_life() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keeper = keeper(dir.path());
        let lives = Lives::new(keeper.clone());
        let (begun, is_begun) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let other = keeper.clone();
        let commit = std::thread::spawn(move || {
            other.write_blocking(|_| {
                begun.send(()).expect("the test waits");
                may_go_on.recv().expect("the test lets go");
                Ok((Vec::new(), ()))
            })
        });
        is_begun.recv().expect("the commit begins");

        lives.save_behind("m", Stored { run: 1, ..stopped() });
        let mut behind = std::pin::pin!(lives.write_unsaved());
        let waits = std::future::poll_fn(|cx| Poll::Ready(behind.as_mut().poll(cx).is_pending()));
        assert!(waits.await, "another commit is under way");
        lives.save_behind("m", stopped());
        go_on.send(()).expect("the commit waits");
        commit.join().expect("no panic").expect("written");
        assert!(behind.await);
        assert_eq!(run(&keeper), 3);
    }

    #[tokio::test]
    async fn what_is_owed_is_written_when_the_server_ends() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keeper = keeper(dir.path());
        let lives = Lives::new(keeper.clone());
        lives.save_behind("m", stopped());
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        lives.write_behind(&shutdown).await;
        assert_eq!(run(&keeper), 3);
    }
}
