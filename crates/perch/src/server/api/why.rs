//! Why Machines are awake or asleep.

mod now;

use perch_api::wire::{ApiError, LedgerEvent, LedgerPage, LedgerQuery};

use crate::server::world::World;

pub(crate) use now::{held, read_now};

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
    let mut page = world.ledger.read(query).await;
    if query.apps.is_some() {
        page.events.retain(|event| is_of_the_living(world, event));
    }
    Ok(page)
}

/// Whether it is not about an earlier app of the same name, which may have been somebody else's.
fn is_of_the_living(world: &World, event: &LedgerEvent) -> bool {
    const SECONDS_LEN: usize = "2026-01-01T00:00:00".len();
    let known = world.keeper.read();
    let Some(app) = known.apps.get(&event.app) else { return true };
    let seconds = |stamp: &str| stamp.get(..SECONDS_LEN).unwrap_or_default().to_owned();
    seconds(&app.created_at) <= seconds(&event.timestamp)
}
