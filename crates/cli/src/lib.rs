//! The `fly` program: arguments, `fly.toml`, commands and their output.
//!
//! It speaks flyctl's surface (commands, flags, words, exit codes) to a Perch server's API and does
//! nothing but that: no store, no runtime, no file of the server. Commands take resolved settings;
//! errors carry their cause and are printed at one place, here. Data goes to stdout, words about
//! progress and trouble to stderr, as flyctl divides them.

mod args;
mod command;
mod console;
mod env;
mod failure;
pub mod flytoml;
mod image;
mod render;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

pub use console::Console;
pub use env::Environment;
use failure::{Failure, Outcome};

/// Longer than giving back a few leases takes, shorter than a person's patience.
const INTERRUPT_GRACE: Duration = Duration::from_millis(500);

/// Runs `fly` with the given arguments (the first is the program's name) and answers with flyctl's
/// exit codes: 0 done, 1 failed (also for wrong usage), 126 deadline exceeded, 127 interrupted.
///
/// Prints to the process's standard streams and blocks until the command has ended; it builds its
/// own single-threaded runtime, so it must not be called from within one.
pub fn run(args: Vec<OsString>, env: Environment) -> ExitCode {
    ExitCode::from(run_with(args, &env, &Console::of_process()))
}

/// As [`run`], with the streams given: tests read what was printed.
pub fn run_with(args: Vec<OsString>, env: &Environment, console: &Console) -> u8 {
    let parsed = match args::parse(args) {
        Ok(parsed) => parsed,
        Err(stop) => return stop.print(console),
    };
    let result = failure::runtime().and_then(|runtime| {
        runtime.block_on(interruptible(command::dispatch(parsed, env, console)))
    });
    match result {
        Ok(()) => 0,
        Err(failure) => failure.print(console),
    }
}

/// Runs a command until Ctrl-C; then it gets a moment to give back what it holds, which a deploy does.
async fn interruptible(command: impl Future<Output = Outcome>) -> Outcome {
    let mut command = std::pin::pin!(command);
    tokio::select! {
        biased;
        result = &mut command => return result,
        _ = tokio::signal::ctrl_c() => {}
    }
    // A command that ends by itself in this moment has its own word about how it ended.
    let ended = tokio::time::timeout(INTERRUPT_GRACE, command).await;
    ended.unwrap_or_else(|_| Err(Failure::interrupted()))
}
