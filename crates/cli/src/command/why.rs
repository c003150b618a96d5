//! `why`: what Machines are awake or asleep for, just now and in the server's ledger.

use super::Context;
use crate::args::{AppArgs, Json};
use crate::failure::{Failure, Outcome};
use crate::render;
use clap::Args;
use perch_api::wire::{AppWhy, LedgerPage, LedgerQuery};
use std::time::Duration;

mod words;

/// Records that are read at once of what comes.
const LOOKED_AT: usize = 1_000;
/// How long the server keeps an empty answer: also how late we notice that our reader went away.
const HOLD: Duration = Duration::from_secs(10);

/// Say why Machines are awake or asleep
///
/// Tells of each Machine since when it is awake or asleep, in how long it sleeps, or what keeps it awake; who woke it
/// last, and how long each part of that caller's wait took; and who is served just now, longest first. With --events it prints the server's ledger instead: each wake, hold, refusal, stop, suspend and
/// page-out, and each sleep that was due and did not happen. Without an app that is the ledger of all.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The app; the one of -a or of the configuration file if nothing is said
    #[arg(value_name = "APP")]
    name: Option<String>,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    json: Json,
    /// Print records of the ledger, oldest first
    #[arg(short, long)]
    events: bool,
    /// Go on with what comes; only with --events
    #[arg(short, long)]
    follow: bool,
    /// How many records, at most 1000, or callers of an app, at most 100
    #[arg(short, long, default_value_t = 20)]
    number: usize,
}

pub(super) async fn run(context: &Context<'_>, args: Why) -> Outcome {
    if args.follow && !args.events {
        return Err(Failure::new("--follow is for --events").hint("Use fly why --events --follow"));
    }
    let app = match &args.name {
        Some(name) => Some(name.clone()),
        None => context.app_if_named(&args.app)?,
    };
    let as_json = context.wants_json(&args.json);
    if args.events {
        return events(context, app, &args, as_json).await;
    }
    let apps = match app {
        Some(app) => vec![app],
        None => context.client.list_apps(None).await?.into_iter().map(|app| app.name).collect(),
    };
    let callers_max = u32::try_from(args.number).unwrap_or(u32::MAX);
    let mut said: Vec<AppWhy> = Vec::new();
    for app in apps {
        said.push(context.client.read_why(&app, callers_max).await?);
    }
    if as_json {
        return Ok(render::json(context.console, &said)?);
    }
    said.iter().flat_map(words::now).for_each(|line| context.console.line(line));
    Ok(())
}

fn query(app: Option<String>, limit: usize) -> LedgerQuery {
    let apps = app.map(|app| vec![app]);
    LedgerQuery { apps, after: None, limit, hold: Duration::ZERO }
}

async fn events(context: &Context<'_>, app: Option<String>, args: &Why, as_json: bool) -> Outcome {
    let mut query = query(app, args.number.clamp(1, 1_000));
    let mut page = context.client.read_ledger(&query).await?;
    if as_json && !args.follow {
        return Ok(render::json(context.console, &page.events)?);
    }
    loop {
        print(context, &page, as_json)?;
        if !args.follow || context.console.is_closed() {
            return Ok(());
        }
        query = LedgerQuery { after: Some(page.next), limit: LOOKED_AT, hold: HOLD, ..query };
        page = context.client.read_ledger(&query).await?;
    }
}

fn print(context: &Context<'_>, page: &LedgerPage, as_json: bool) -> Outcome {
    for event in &page.events {
        let line = match as_json {
            // One a line: what follows has no end.
            true => serde_json::to_string(event)?,
            false => words::line(event),
        };
        context.console.line(line);
    }
    Ok(())
}
