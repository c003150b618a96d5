//! The async side: one thread commits for everybody, many transactions per disk flush.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, mem};

use tokio::sync::{mpsc, oneshot};

use super::{CommitError, Revision, Store, Txn};

// So many wishes may wait for the disk; beyond, callers wait for a place.
const QUEUE_LEN_MAX: usize = 1024;
// So many share one flush: a flush costs about a millisecond, a transaction some tens of
// microseconds.
const BATCH_LEN_MAX: usize = 64;

type Reply = oneshot::Sender<Result<Revision, CommitError>>;

/// The async handle. Cheap to clone; reads go to [`StoreHandle::store`] directly (they are memory
/// reads in practice). The thread ends when the last clone is gone.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    store: Arc<Store>,
    queue: mpsc::Sender<(Txn, Reply)>,
}

/// Why a commit through the handle failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HandleError {
    /// The store refused or failed; nothing of the transaction is there.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The committing thread is gone; whether the transaction is there is unknown.
    #[error("the store's thread has ended")]
    Ended,
}

impl StoreHandle {
    /// Starts the committing thread, named `store`. Join it after the last handle is gone to know
    /// that all is written.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn spawn(store: Arc<Store>) -> io::Result<(Self, JoinHandle<()>)> {
        let (queue, receiver) = mpsc::channel(QUEUE_LEN_MAX);
        let thread_store = Arc::clone(&store);
        let thread = std::thread::Builder::new().name("store".to_owned());
        let join = thread.spawn(move || run(&thread_store, receiver))?;
        Ok((Self { store, queue }, join))
    }

    /// The store, for reads and watches.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Applies a transaction and returns when it is on the disk. Once queued it is applied also if
    /// the caller goes away.
    ///
    /// # Errors
    /// See [`HandleError`].
    pub async fn commit(&self, txn: Txn) -> Result<Revision, HandleError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send((txn, reply)).await.map_err(|_| HandleError::Ended)?;
        Ok(answer.await.map_err(|_| HandleError::Ended)??)
    }
}

fn run(store: &Store, mut queue: mpsc::Receiver<(Txn, Reply)>) {
    let mut batch = Vec::with_capacity(BATCH_LEN_MAX);
    while 0 < queue.blocking_recv_many(&mut batch, BATCH_LEN_MAX) {
        let (txns, replies): (Vec<_>, Vec<_>) = mem::take(&mut batch).into_iter().unzip();
        let results = store.commit_all(&txns.iter().collect::<Vec<_>>());
        for (reply, result) in replies.into_iter().zip(results) {
            // The caller may have gone away; the transaction stands.
            drop(reply.send(result));
        }
    }
}
