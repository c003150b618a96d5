//! Why Machines are awake or asleep.

use perch_api::wire::{ApiError, LedgerPage, LedgerQuery};

use crate::server::world::World;

/// Reads a page of the ledger. Of an app that is gone what is still there is told.
pub(crate) async fn read_ledger(
    world: &World,
    query: &LedgerQuery,
) -> Result<LedgerPage, ApiError> {
    for app in query.apps.iter().flatten() {
        let is_there = world.keeper.read().apps.contains_key(app);
        if !is_there && world.ledger.newest(app, |_| true).is_none() {
            return Err(ApiError::no_app(app));
        }
    }
    Ok(world.ledger.read(query).await)
}
