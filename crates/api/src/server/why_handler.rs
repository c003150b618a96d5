//! Why Machines are awake or asleep: just now, in the ledger, and in numbers.

use std::time::Duration;

use super::answer::{Outcome, json, text};
use super::handler::{Call, LOG_HOLD_MAX};
use super::{Backend, Phase, access, reached};
use crate::wire::{ApiError, LedgerPage, LedgerQuery};

const EVENTS_LEN_DEFAULT: u64 = 100;
const EVENTS_LEN_MAX: u64 = 1000;
const CALLERS_LEN_DEFAULT: u64 = 20;
const CALLERS_LEN_MAX: u64 = 100;
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn now<B: Backend>(call: Call<B>, app: String) -> Outcome {
    let callers = call.query()?.number("callers")?.unwrap_or(CALLERS_LEN_DEFAULT);
    let callers_max = u32::try_from(callers.min(CALLERS_LEN_MAX)).unwrap_or(u32::MAX);
    json(&call.backend().read_why(call.peer.clone(), app, callers_max).await?)
}

pub(super) async fn events<B: Backend>(call: Call<B>) -> Outcome {
    let query = call.query()?;
    let limit = query.number("limit")?.unwrap_or(EVENTS_LEN_DEFAULT).clamp(1, EVENTS_LEN_MAX);
    let hold = query.number("hold_ms")?.map_or(Duration::ZERO, Duration::from_millis);
    let ledger_query = LedgerQuery {
        apps: apps(&call, query.owned("app")).await?,
        after: query.number("after")?,
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
        hold: hold.min(LOG_HOLD_MAX),
    };
    let next = ledger_query.after.unwrap_or(0);
    let mut phase = call.session.phase.clone();
    tokio::select! {
        page = call.backend().read_ledger(call.peer.clone(), ledger_query) => json(&page?),
        // The client reads on with the next server.
        () = reached(&mut phase, Phase::Draining) => {
            json(&LedgerPage { events: Vec::new(), next })
        }
    }
}

/// In the text that Prometheus reads.
pub(super) async fn metrics<B: Backend>(call: Call<B>) -> Outcome {
    let apps = apps(&call, call.query()?.owned("app")).await?;
    let metrics = call.backend().read_metrics(call.peer.clone(), apps).await?;
    Ok(text(METRICS_TYPE, metrics))
}

/// The apps that are meant, as far as the caller may see them; `None`: all, also those that are gone.
async fn apps<B: Backend>(
    call: &Call<B>,
    named: Option<String>,
) -> Result<Option<Vec<String>>, ApiError> {
    if let Some(app) = named {
        access::check_app(call.backend(), &call.peer, &app).await?;
        return Ok(Some(vec![app]));
    }
    if call.peer.sees_all() {
        return Ok(None);
    }
    let mut apps = call.backend().list_apps(call.peer.clone(), None).await?;
    access::cut_apps(&call.peer, &mut apps);
    Ok(Some(apps.into_iter().map(|app| app.name).collect()))
}
