//! Requests that only ask: who the caller is, and what the DNS server of a network says.

use super::answer::{Outcome, json};
use super::handler::{Call, misrouted};
use super::route::Route;
use super::{Backend, Peer};
use crate::wire::{ApiError, Asker, Whoami};

// The longest name that DNS has, as text with every byte escaped.
const NAME_BYTES_MAX: usize = 1024;
const KINDS: [&str; 4] = ["A", "AAAA", "CNAME", "TXT"];

pub(super) async fn answer<B: Backend>(call: Call<B>, route: Route) -> Outcome {
    match route {
        Route::Whoami => json(&whoami(&call.peer)),
        Route::AppDns(app) => ask(call, Asker::App(app)).await,
        Route::OrganizationDns(slug) => ask(call, Asker::Organization(slug)).await,
        _ => misrouted(),
    }
}

fn whoami(peer: &Peer) -> Whoami {
    let caller = Whoami { user: peer.user(), ..Whoami::default() };
    match peer {
        Peer::Local { uid, .. } => Whoami { uid: Some(*uid), ..caller },
        Peer::Machine(own) => Whoami { app: Some(own.app.clone()), ..caller },
        Peer::Token(holder) => Whoami {
            token: Some(holder.name.clone()),
            org: holder.scope.org.clone(),
            app: holder.scope.app.clone(),
            read_only: holder.scope.read_only,
            ..caller
        },
    }
}

async fn ask<B: Backend>(call: Call<B>, asker: Asker) -> Outcome {
    let query = call.query()?;
    let name = query.required("name")?;
    if NAME_BYTES_MAX < name.len() {
        return Err(ApiError::bad_request("the name is longer than any name in DNS"));
    }
    let kind = query.get("type").unwrap_or("AAAA").to_ascii_uppercase();
    if !KINDS.contains(&kind.as_str()) {
        return Err(super::query::bad("type", &kind, &format!("one of {}", KINDS.join(", "))));
    }
    json(&call.backend().resolve_name(call.peer.clone(), asker, name, kind).await?)
}
