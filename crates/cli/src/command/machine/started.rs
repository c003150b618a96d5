//! Waiting until a Machine that was told to start has started, or has come to its end.

use super::super::Context;
use crate::failure::{Failure, Outcome};
use crate::flytoml;
use perch_api::ClientError;
use perch_api::wire::{Machine, MachineState, RestartPolicy, WaitQuery, WaitState};
use std::time::{Duration, Instant};

/// flyctl waits as long for a new Machine.
pub(super) const START_MAX: Duration = Duration::from_secs(300);
/// The server waits at most so long for one call.
const CALL_MAX: Duration = Duration::from_secs(60);

/// Waits for a start. A program that has ended by itself without a failure has started.
pub(super) async fn wait(context: &Context<'_>, app: &str, machine: &Machine) -> Outcome {
    let id = &machine.id;
    match settled(context, app, id, "started", START_MAX).await? {
        Some(now) if now.state == MachineState::Started => Ok(()),
        Some(now) => ended(app, &now),
        // Only one that goes with its program is gone already.
        None => Ok(()),
    }
}

/// Waits until a Machine is started or in another state that it keeps; answers it as it then is, unless it is gone.
pub(super) async fn settled(
    context: &Context<'_>,
    app: &str,
    id: &str,
    wanted: &str,
    limit: Duration,
) -> Outcome<Option<Machine>> {
    let deadline = Instant::now() + limit;
    let _waiting = context.console.waiting(format!("Waiting for {id} to have state: {wanted}"));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.clamp(Duration::from_secs(1), CALL_MAX);
        let query = WaitQuery {
            states: vec![WaitState::Started, WaitState::Settled],
            ..WaitQuery::for_state(WaitState::Started, timeout)
        };
        match unless_gone(context.client.wait_machine(app, id, &query).await) {
            Ok(None) => return Ok(None),
            Ok(Some(())) => return Ok(unless_gone(context.client.get_machine(app, id).await)?),
            Err(error) if error.status() == Some(408) && timeout < left => {}
            Err(error) if error.status() == Some(408) => return Err(late(id, wanted, limit)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn unless_gone<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Err(error) if error.status() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

fn late(id: &str, wanted: &str, limit: Duration) -> Failure {
    let limit = flytoml::format_duration(limit);
    Failure::new("timeout reached waiting for machine's state to change")
        .hint(format!("The machine {id} took more than {limit} to reach \"{wanted}\""))
}

/// A Machine that is down again: whether its program has failed.
fn ended(app: &str, machine: &Machine) -> Outcome {
    let id = &machine.id;
    let exit = machine.events.iter().find(|event| event.kind == "exit");
    let exit = exit.and_then(|event| event.request.as_ref()?.exit_event.as_ref());
    let hint =
        format!("`fly logs -a {app} -m {id}` and `fly machine status {id} -a {app}` tell more");
    match exit {
        Some(exit) if exit.exit_code == 0 || exit.requested_stop => Ok(()),
        Some(_) if policy(machine) == RestartPolicy::No => Err(Failure::new(
            "machine failed to reach desired start state, and restart policy was set to no restart",
        )
        .hint(hint)),
        Some(exit) => Err(Failure::new(format!(
            "machine {id} did not start: its program ended with exit code {}",
            exit.exit_code
        ))
        .hint(hint)),
        None => {
            let state = machine.state;
            Err(Failure::new(format!("machine {id} did not start: it is {state}")).hint(hint))
        }
    }
}

fn policy(machine: &Machine) -> RestartPolicy {
    machine.config.view().restart.as_ref().map(|it| it.policy).unwrap_or_default()
}
