//! `machine kill`: SIGKILL for a Machine's program; what follows is up to its restart policy.

use super::super::Context;
use super::{choose, failed};
use crate::args::OneMachine;
use crate::failure::{Failure, Outcome};
use perch_api::wire::{MachineState, Signal, SignalInput};

pub(super) async fn run(context: &Context<'_>, args: OneMachine) -> Outcome {
    let (app, machine) =
        choose::one(context, &args.app, args.id.as_deref(), args.select.select).await?;
    let (id, state) = (&machine.id, machine.state);
    if state == MachineState::Destroyed {
        return Err(Failure::new(format!("machine {id} has already been destroyed")));
    }
    context.console.line(format!(
        "machine {id} was found and is currently in a {state} state, attempting to kill..."
    ));
    let input = SignalInput { signal: Signal::KILL };
    let killed = context.client.signal_machine(&app, id, input, None).await;
    killed.map_err(|error| failed(error, &app, id, "kill"))?;
    context.console.line("kill signal has been sent");
    Ok(())
}
