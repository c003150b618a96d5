//! Keeps some shims spawned before there is a Machine for them (`blank_max`).
//!
//! To make one lets nobody else make a cgroup for some milliseconds, so it is done while nothing starts: a moment after
//! the last start has answered, one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perch_machine::Stock;

use super::world::World;

/// How long nothing may have started before the next one is made.
const REST: Duration = Duration::from_millis(250);

/// The stock, and whether somebody fills it.
#[derive(Debug)]
pub(crate) struct Blanks {
    stock: Stock,
    is_filled: AtomicBool,
}

impl Blanks {
    pub(crate) fn new(cgroup_parent: &str, len_max: u32) -> Self {
        let stock = Stock::new(cgroup_parent.to_owned(), len_max as usize);
        Self { stock, is_filled: AtomicBool::new(false) }
    }

    pub(crate) fn stock(&self) -> &Stock {
        &self.stock
    }
}

impl World {
    /// Fills the stock of blanks, behind. One that cannot be made is tried again after the next start.
    pub(crate) fn restock(self: &Arc<Self>) {
        if self.blanks.is_filled.swap(true, Ordering::AcqRel) {
            return;
        }
        let world = self.clone();
        self.tracker.spawn(async move {
            while world.rests().await {
                match world.blanks.stock.add().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        let error = super::images::chain(&error);
                        tracing::warn!(error, "starts take longer than they could");
                        break;
                    }
                }
            }
            world.blanks.is_filled.store(false, Ordering::Release);
        });
    }

    /// Returns when nothing has started for a moment; `false` when the server ends.
    async fn rests(&self) -> bool {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REST) => {}
                () = self.shutdown.cancelled() => return false,
            }
            if self.starts_under_way() == 0 {
                return true;
            }
        }
    }
}
