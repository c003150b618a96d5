//! `machine wait`: until a Machine is in a state, in as many calls as that takes.

use super::super::Context;
use super::choose;
use crate::args::OneMachine;
use crate::failure::{Failure, Outcome};
use crate::flytoml;
use clap::Args;
use perch_api::ClientError;
use perch_api::wire::{WaitQuery, WaitState};
use std::time::{Duration, Instant};

/// The server waits at most so long for one call.
const CALL_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    machine: OneMachine,
    /// State to wait for: started, stopped, suspended, destroyed, or settled, which is any of them
    #[arg(long, default_value = "settled")]
    state: String,
    /// How long to wait, such as 30s
    #[arg(short, long, default_value = "5m0s")]
    wait_timeout: String,
}

pub(super) async fn run(context: &Context<'_>, args: Wait) -> Outcome {
    let limit = length(&args.wait_timeout)?;
    if args.state.is_empty() {
        return Err(Failure::new("state cannot be empty"));
    }
    let given = args.machine;
    let (app, machine) =
        choose::one(context, &given.app, given.id.as_deref(), given.select.select).await?;
    let wanted = Wanted { app, id: machine.id, word: args.state, limit };
    let Wanted { app, id, word, .. } = &wanted;
    let given = flytoml::format_duration(limit);
    context.console.line(format!("Waiting up to {given} for machine {id} to reach {word:?}..."));
    let state = word.parse().map_err(|_| wanted.no_state())?;
    context.interrupt.cut(wait(context, &wanted, state)).await?;
    let reached = match state {
        WaitState::Settled => {
            let now = context.client.get_machine(app, id).await.map_err(|error| {
                Failure::from(error).context(format!(
                    "machine {id} reached settled state but could not fetch final state"
                ))
            })?;
            now.state.to_string()
        }
        _ => word.clone(),
    };
    context.console.line(format!("Machine {id} reached state {reached:?}"));
    Ok(())
}

struct Wanted {
    app: String,
    id: String,
    word: String,
    limit: Duration,
}

/// Waits; no limit is a limit of zero.
async fn wait(context: &Context<'_>, wanted: &Wanted, state: WaitState) -> Outcome {
    let Wanted { app, id, word, limit } = wanted;
    let deadline = Instant::now() + *limit;
    let _waiting = context.console.waiting(format!("Waiting for {id} to be {word}"));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            if limit.is_zero() { CALL_MAX } else { left.clamp(Duration::from_secs(1), CALL_MAX) };
        match context.client.wait_machine(app, id, &WaitQuery::for_state(state, timeout)).await {
            Ok(()) => return Ok(()),
            // What is gone is destroyed.
            Err(error) if error.status() == Some(404) && state == WaitState::Destroyed => {
                return Ok(());
            }
            Err(error) if error.status() == Some(408) && (limit.is_zero() || timeout < left) => {}
            Err(error) => return Err(wanted.not_reached(error)),
        }
    }
}

impl Wanted {
    fn sentence(&self) -> String {
        let limit = flytoml::format_duration(self.limit);
        format!("machine {} did not reach {:?} within {limit}", self.id, self.word)
    }

    fn not_reached(&self, error: ClientError) -> Failure {
        if error.status() != Some(408) {
            return Failure::from(error).context(self.sentence());
        }
        let Self { app, id, .. } = self;
        Failure::new(self.sentence())
            .hint(format!("See what it does with `fly machine status {id} -a {app}`"))
    }

    fn no_state(&self) -> Failure {
        let message = format!("{}: {:?} is no state to wait for", self.sentence(), self.word);
        Failure::new(message)
            .hint("Wait for started, stopped, suspended, destroyed or settled with --state")
    }
}

fn length(text: &str) -> Outcome<Duration> {
    flytoml::parse_duration(text).map_err(|error| {
        let message =
            format!("invalid argument \"{text}\" for \"-w, --wait-timeout\" flag: {error}");
        Failure::new(message).hint("Write it with a unit, such as 30s or 2m")
    })
}
