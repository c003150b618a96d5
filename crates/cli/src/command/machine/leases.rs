//! `machine leases view` and `clear`: who may change a Machine for a while.

use super::super::Context;
use super::{choose, event_time};
use crate::args::{AppArgs, Json, ManyMachines, Select};
use crate::failure::Outcome;
use crate::render;
use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use perch_api::ClientError;
use perch_api::wire::Lease;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Subcommand)]
pub(crate) enum Leases {
    /// Show the leases on Machines
    View(View),
    /// End the leases on Machines, whoever holds them
    Clear(ManyMachines),
}

#[derive(Debug, Args)]
pub(crate) struct View {
    /// IDs of the Machines
    ids: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    json: Json,
    #[command(flatten)]
    select: Select,
}

/// A lease with flyctl's keys.
#[derive(Debug, Serialize)]
struct Shown {
    status: String,
    data: ShownData,
    message: &'static str,
    code: &'static str,
}

#[derive(Debug, Serialize)]
struct ShownData {
    nonce: String,
    expires_at: i64,
    owner: String,
    description: String,
    version: String,
}

pub(super) async fn run(context: &Context<'_>, command: Leases) -> Outcome {
    match command {
        Leases::View(args) => view(context, args).await,
        Leases::Clear(args) => clear(context, args).await,
    }
}

async fn view(context: &Context<'_>, args: View) -> Outcome {
    let (app, machines) = choose::many(context, &args.app, &args.ids, args.select.select).await?;
    let mut leases = BTreeMap::new();
    for machine in machines {
        if let Some(lease) = lease_of(context, &app, &machine.id).await? {
            leases.insert(machine.id, lease);
        }
    }
    if context.wants_json(&args.json) {
        let shown: BTreeMap<_, _> =
            leases.into_iter().map(|(id, lease)| (id, Shown::from(lease))).collect();
        return Ok(render::json(context.console, &shown)?);
    }
    if leases.is_empty() {
        context.console.line("No leases found");
        return Ok(());
    }
    let rows: Vec<_> = leases.into_iter().map(|(id, lease)| row(id, lease)).collect();
    let headers = ["Machine", "Nonce", "Status", "Owner", "Expires"];
    render::table(context.console, "", &headers, &rows);
    Ok(())
}

fn row(id: String, lease: Lease) -> Vec<String> {
    let data = lease.data;
    let expires = event_time(data.expires_at.saturating_mul(1000), &TimeZone::system());
    vec![id, data.nonce, lease.status, data.owner, expires]
}

async fn clear(context: &Context<'_>, args: ManyMachines) -> Outcome {
    let (app, machines) = choose::many(context, &args.app, &args.ids, args.select.select).await?;
    for machine in machines {
        let id = &machine.id;
        if lease_of(context, &app, id).await?.is_none() {
            continue;
        }
        context.console.line(format!("clearing lease for machine {id}"));
        match context.client.clear_lease(&app, id).await {
            // It ended meanwhile.
            Err(error) if is_none(&error) => {}
            other => other?,
        }
    }
    context.console.line("Lease(s) cleared");
    Ok(())
}

async fn lease_of(context: &Context<'_>, app: &str, id: &str) -> Outcome<Option<Lease>> {
    match context.client.get_lease(app, id).await {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if is_none(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_none(error: &ClientError) -> bool {
    error.to_string().contains(" lease not found")
}

impl From<Lease> for Shown {
    fn from(lease: Lease) -> Self {
        let data = lease.data;
        let data = ShownData {
            nonce: data.nonce,
            expires_at: data.expires_at,
            owner: data.owner,
            description: data.description,
            version: data.version,
        };
        Self { status: lease.status, data, message: "", code: "" }
    }
}
