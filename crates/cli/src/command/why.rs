//! `why`: what Machines are awake or asleep for, from their states and the server's ledger.

use super::Context;
use crate::args::{AppArgs, Json};
use crate::failure::{Failure, Outcome};
use crate::render;
use clap::Args;
use perch_api::wire::{LedgerEvent, LedgerPage, LedgerQuery, Machine, MachineFilter};
use std::time::Duration;

mod words;

/// Records that tell of the last sleep and wake of each Machine, unless hundreds of callers came since.
const LOOKED_AT: usize = 1_000;
/// How long the server keeps an empty answer: also how late we notice that our reader went away.
const HOLD: Duration = Duration::from_secs(10);

/// Say why Machines are awake or asleep
///
/// Tells of each Machine since when it is awake or asleep and why, who woke it last, and how long each part of that
/// caller's wait took. With --events it prints the server's ledger instead: each wake, hold, refusal, stop, suspend and
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
    /// How many records, at most 1000
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
    let mut said = Vec::new();
    for app in apps {
        said.extend(look(context, &app).await?);
    }
    if as_json {
        return Ok(render::json(context.console, &said)?);
    }
    said.iter().for_each(|machine| context.console.line(machine.text()));
    Ok(())
}

/// All Machines of an app, with what the ledger has of them.
async fn look(context: &Context<'_>, app: &str) -> Outcome<Vec<words::MachineWhy>> {
    let filter = MachineFilter::default();
    let query = query(Some(app.to_owned()), LOOKED_AT);
    let machines = context.client.list_machines(app, &filter);
    let (machines, page) = tokio::join!(machines, context.client.read_ledger(&query));
    let page = page?;
    let of = |machine: Machine| words::MachineWhy::of(app, &machine, &page.events);
    Ok(machines?.into_iter().map(of).collect())
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

/// The newest of these for which it is so.
fn newest<'a>(
    events: &'a [LedgerEvent],
    machine: &str,
    is_it: impl Fn(&LedgerEvent) -> bool,
) -> Option<&'a LedgerEvent> {
    events.iter().rev().find(|event| event.machine == machine && is_it(event))
}
