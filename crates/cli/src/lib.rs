//! The `fly` program: arguments, `fly.toml`, commands and their output.
//!
//! It speaks flyctl's surface (commands, flags, words, exit codes) to a Perch server's API and does
//! nothing but that: no store, no runtime, no file of the server. Commands take resolved settings;
//! errors carry their cause and are printed at one place, here. Data goes to stdout, words about
//! progress and trouble to stderr, as flyctl divides them.

mod answers;
mod args;
mod command;
#[cfg(test)]
mod compat;
mod console;
mod env;
mod failure;
mod flyctl;
pub mod flytoml;
mod help;
mod image;
mod interrupt;
mod json;
pub mod manual;
mod pager;
mod prompt;
mod render;
mod usage;
mod yaml;

use std::ffi::OsString;
use std::process::ExitCode;

pub use console::Console;
pub use env::Environment;
/// Runs `fly` with the given arguments (the first is the program's name) and answers with flyctl's
/// exit codes: 0 done, 1 failed (also for wrong usage), 126 deadline exceeded, 127 interrupted.
///
/// Prints to the process's standard streams and blocks until the command has ended; it builds its
/// own single-threaded runtime, so it must not be called from within one.
pub fn run(args: Vec<OsString>, env: Environment) -> ExitCode {
    ExitCode::from(run_until(ctrl_c(), args, &env, &Console::of_process(&env)))
}

/// As [`run`], with the streams given, and a future that resolves when the user wants it to end: tests
/// read what was printed and press no keys.
pub fn run_until(
    interrupted: impl Future<Output = ()>,
    args: Vec<OsString>,
    env: &Environment,
    console: &Console,
) -> u8 {
    let parsed = match usage::parse(args, console) {
        Ok(parsed) => parsed,
        Err(stop) => return stop.print(console),
    };
    let env = env.with_token(parsed.global.access_token.as_deref());
    let command = |interrupt| command::dispatch(parsed, &env, console, interrupt);
    let result = failure::runtime().and_then(|runtime| {
        runtime.block_on(console.animate(interrupt::run(interrupted, command)))
    });
    console.settle_all();
    match result {
        Ok(()) => 0,
        Err(failure) => failure.print(console),
    }
}

async fn ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler Ctrl-C ends the process, which needs nothing of us.
        std::future::pending().await
    }
}
