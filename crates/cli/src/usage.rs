//! From words to a command, and what is said when they are none.
//!
//! ```text
//! arguments ─clap─► command
//!     │ not understood
//!     ├─ a command of flyctl that is not here ─► one line: not here, what to use instead; exit 1
//!     ├─ a flag of flyctl that is not here ────► the same, or it is left out with a note and all is read again
//!     └─ anything else ────────────────────────► flyctl's own words; exit 1
//! ```
//!
//! Our definitions always come first: what clap knows is never looked up.

mod error;
mod words;

use crate::answers::{self, Word};
use crate::args::{self, Fly};
use crate::console::Console;
use crate::flyctl::{Flag, Tree};
use crate::help;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;
use words::Reading;

/// Why parsing ended without a command.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Help was asked for.
    Help(String),
    /// A command or flag of flyctl's that is not here, and what to use instead.
    Refused(String),
    /// Neither flyctl nor we know it.
    Wrong(error::Wrong),
}

/// Reads the arguments; notes about flags without effect go to the console.
pub(crate) fn parse(mut given: Vec<OsString>, console: &Console) -> Result<Fly, Stop> {
    loop {
        let error = match args::read(&given) {
            Ok(fly) => return Ok(fly),
            Err(error) => error,
        };
        match look_up(&given, &error, console)? {
            Some(without) => {
                without.note.iter().for_each(|note| console.note(note));
                given = without.args;
            }
            None => return Err(Stop::Wrong(error::Wrong::new(&given, &error))),
        }
    }
}

/// The arguments without a flag that changes nothing.
struct Without {
    args: Vec<OsString>,
    note: Option<String>,
}

/// What flyctl would make of arguments that our definitions do not understand.
fn look_up(
    args: &[OsString],
    error: &clap::Error,
    console: &Console,
) -> Result<Option<Without>, Stop> {
    let mut root = Fly::command();
    root.build();
    let tree = Tree::read();
    let reading = Reading::new(args, &root, &tree);
    let path = reading.path.join(" ");
    if reading.known < reading.path.len() {
        return Err(Stop::Refused(refusal(&path)));
    }
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Stop::Help(help::text(&root, &reading.path, console.columns())))
        }
        // cobra's own, of the program and not of its commands.
        ErrorKind::UnknownArgument if path.is_empty() && is_version(given(error)) => {
            let program = args.iter().take(1).cloned();
            Ok(Some(silently(program.chain(["version".into()]).collect())))
        }
        ErrorKind::UnknownArgument => match unknown_flag(&tree, &path, error) {
            Some(flag) => without(args, &root, &tree, flag).map(Some),
            // What clap makes of `-q=true`.
            None if given(error) == "-=" => Ok(reading.without_value(args, None).map(silently)),
            None => Ok(None),
        },
        ErrorKind::TooManyValues => {
            let flag = given(error).split(['=', '[', ' ']).next();
            Ok(reading.without_value(args, flag).map(silently))
        }
        _ => Ok(None),
    }
}

fn is_version(flag: &str) -> bool {
    matches!(flag, "--version" | "-v")
}

fn silently(args: Vec<OsString>) -> Without {
    Without { args, note: None }
}

/// The argument that clap stumbled over.
fn given(error: &clap::Error) -> &str {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(given)) => given,
        _ => "",
    }
}

/// `fly X is not here: …`
fn refusal(path: &str) -> String {
    let refused = answers::of_command(path).filter(|answer| answer.word == Word::Refused);
    let text = refused.map_or("it may come later", |answer| answer.text);
    format!("`fly {path}` is not here: {text}")
}

/// The flag that clap stumbled over, if flyctl has it there.
fn unknown_flag<'a>(tree: &'a Tree, path: &str, error: &clap::Error) -> Option<&'a Flag> {
    let name = given(error).strip_prefix('-')?.trim_start_matches('-').split('=').next()?;
    tree.get(path)?.flag(name)
}

/// Leaves a flag out if nothing is lost by it, else refuses it.
fn without(
    args: &[OsString],
    root: &clap::Command,
    tree: &Tree,
    flag: &Flag,
) -> Result<Without, Stop> {
    let reading = Reading::new(args, root, tree);
    let path = reading.path.join(" ");
    let (rest, value) = reading.without(args, flag);
    let name = flag.name;
    let answer = answers::of_flag(&path, name);
    let says_nothing = value.is_some_and(|value| flag.is_default(&value));
    let note = match answer.map(|answer| (answer.word, answer.text)) {
        _ if says_nothing => None,
        Some((Word::Always, _)) => None,
        Some((Word::Ignored, text)) => Some(format!("note: --{name} has no effect: {text}")),
        Some((_, text)) => {
            return Err(Stop::Refused(format!("`fly {path} --{name}` is not here: {text}")));
        }
        None => {
            let text =
                format!("`fly {path} --{name}` is not here: it may come later; leave it out");
            return Err(Stop::Refused(text));
        }
    };
    Ok(Without { args: rest, note })
}

impl Stop {
    /// Prints help to stdout with exit code 0, or the error to stderr with flyctl's exit code 1.
    pub(crate) fn print(&self, console: &Console) -> u8 {
        match self {
            Self::Help(text) => {
                console.text(text);
                return 0;
            }
            Self::Refused(text) => console.error(text),
            Self::Wrong(wrong) => wrong.print(console),
        }
        1
    }
}

#[cfg(test)]
mod tests;
