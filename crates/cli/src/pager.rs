//! Tables that are wider than the terminal go through a pager that scrolls sideways.

use crate::console::Console;
use crate::env::{self, Environment};
use crate::render;
use std::io::Write;
use std::process::{Command, Stdio};

/// flyctl's, when the user has chosen none.
const LESS: [&str; 5] = ["-R", "-S", "-X", "-+F", "-PUse left/right arrows to scroll; q to quit"];

/// Prints the text, through a pager if a line of it does not fit.
pub(crate) fn print(console: &Console, env: &Environment, text: &str) {
    let wide = |columns| text.lines().any(|line| columns < render::width(line));
    if !console.columns().is_some_and(wide) || through_pager(console, env, text).is_none() {
        console.text(text);
    }
}

/// Answers nothing when there is no pager.
fn through_pager(console: &Console, env: &Environment, text: &str) -> Option<()> {
    let mut command = command(env)?;
    let terminal = console.terminal()?.try_clone().ok()?;
    let mut pager = command.stdin(Stdio::piped()).stdout(terminal).spawn().ok()?;
    if let Some(mut input) = pager.stdin.take() {
        // A pager that was left early reads no more, which is the user's right.
        input.write_all(text.as_bytes()).unwrap_or_default();
    }
    pager.wait().ok().map(drop)
}

/// `PAGER`, where an empty one and `cat` mean none; else `less`.
fn command(env: &Environment) -> Option<Command> {
    match env.vars.get(env::PAGER).map(|pager| pager.trim()) {
        Some("" | "cat") => None,
        Some(pager) => {
            let mut command = Command::new("sh");
            command.args(["-c", pager]);
            Some(command)
        }
        None => {
            let mut command = Command::new("less");
            command.args(LESS);
            Some(command)
        }
    }
}
