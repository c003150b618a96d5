//! `machine exec`: a program of a started Machine's image, run to its end.
//!
//! As with flyctl, its exit code is printed and not passed on; `fly ssh console -C` passes it on.

use super::super::Context;
use super::choose;
use crate::args::{AppArgs, Json, Select};
use crate::failure::{Failure, Outcome};
use crate::render;
use perch_api::wire::{ExecInput, MachineState};
use serde::Serialize;

/// Run a program in a started Machine
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// ID of the Machine, and the program with its arguments in one word
    #[arg(value_names = ["ID", "COMMAND"], num_args = 1..=2, required = true)]
    words: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    select: Select,
    #[command(flatten)]
    json: Json,
    /// Seconds until the program is killed; default is 60
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    timeout: i64,
}

/// What flyctl prints as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    exit_code: i32,
    stdout: &'a str,
    stderr: &'a str,
}

pub(crate) async fn run(context: &Context<'_>, args: Exec) -> Outcome {
    let (id, command) = match args.words.as_slice() {
        [id, command] => (Some(id.as_str()), command.clone()),
        [command] => (None, command.clone()),
        _ => {
            return Err(
                Failure::new("a command is required").hint("Write `fly machine exec ID COMMAND`")
            );
        }
    };
    let (app, machine) = choose::one(context, &args.app, id, args.select.select).await?;
    let id = machine.id;
    let timeout = u64::try_from(args.timeout).unwrap_or(0);
    let input = ExecInput { cmd: command, timeout, ..ExecInput::default() };
    let ran =
        context.interrupt.cut(async { Ok(context.client.exec_machine(&app, &id, &input).await?) });
    let ran = ran.await.map_err(|failure| match failure.is_interrupted() {
        true => failure,
        false => {
            let failure = failure.context(format!("could not exec command on machine {id}"));
            match machine.state {
                MachineState::Started => failure,
                _ => failure.hint(format!("Start it with `fly machine start {id}`")),
            }
        }
    })?;
    if context.wants_json(&args.json) {
        let shown = Shown { exit_code: ran.exit_code, stdout: &ran.stdout, stderr: &ran.stderr };
        return Ok(render::json(context.console, &shown)?);
    }
    if ran.exit_code != 0 {
        context.console.line(format!("Exit code: {}", ran.exit_code));
    }
    context.console.text(&ran.stdout);
    context.console.complaint(&ran.stderr);
    Ok(())
}
