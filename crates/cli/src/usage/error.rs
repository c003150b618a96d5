//! What nobody understands, said as flyctl says it.

use super::words::Reading;
use crate::args::Fly;
use crate::console::Console;
use crate::flyctl::Tree;
use crate::help;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command, CommandFactory};
use std::error::Error;
use std::ffi::OsString;

/// A wrong command line.
#[derive(Debug)]
pub(crate) struct Wrong {
    message: String,
    hint: Option<String>,
    /// For a command that does not exist: whose help to read, which flyctl prints to stdout.
    see: Option<String>,
}

impl Wrong {
    pub(super) fn new(args: &[OsString], error: &clap::Error) -> Self {
        let mut root = Fly::command();
        root.build();
        let path = Reading::new(args, &root, &Tree::read()).path;
        let command = help::name(&path);
        let usage = help::usage(&root, &path);
        let word = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.as_str(),
            Some(ContextValue::Strings(all)) => all.first().map_or("", String::as_str),
            _ => "",
        };
        let (flag, value) = (word(ContextKind::InvalidArg), word(ContextKind::InvalidValue));
        let name = flag.split([' ', '=', '[']).next().unwrap_or_default();
        let message = match error.kind() {
            ErrorKind::InvalidSubcommand => {
                return Self::unknown(&command, word(ContextKind::InvalidSubcommand), error);
            }
            ErrorKind::UnknownArgument if !flag.starts_with('-') => match arity(&root, &path) {
                (_, Some(0)) => return Self::unknown(&command, flag, error),
                (least, most) => count(least, most, most.unwrap_or_default() + 1),
            },
            ErrorKind::UnknownArgument => unknown_flag(args, flag),
            ErrorKind::MissingRequiredArgument if flag.starts_with(['<', '[']) => {
                let (least, most) = arity(&root, &path);
                count(least, most, 0)
            }
            ErrorKind::MissingRequiredArgument => format!("required flag(s) {name:?} not set"),
            ErrorKind::InvalidValue if value.is_empty() => {
                format!("flag needs an argument: {name}")
            }
            ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                match name.starts_with('-') {
                    true => format!("invalid argument {value:?} for {name:?} flag{cause}"),
                    false => format!("invalid argument {value:?} for {command:?}{cause}"),
                }
            }
            _ => first_line(error),
        };
        Self { message, hint: Some(format!("Usage: {usage}")), see: None }
    }

    fn unknown(command: &str, word: &str, error: &clap::Error) -> Self {
        let similar = match error.get(ContextKind::SuggestedSubcommand) {
            Some(ContextValue::Strings(words)) => words.as_slice(),
            Some(ContextValue::String(word)) => std::slice::from_ref(word),
            _ => &[],
        };
        let hint = (!similar.is_empty())
            .then(|| format!("\nDid you mean this?\n\t{}", similar.join("\n\t")));
        let message = format!("unknown command {word:?} for {command:?}");
        Self { message, hint, see: Some(command.to_owned()) }
    }

    pub(super) fn print(&self, console: &Console) {
        console.error(&self.message);
        if let Some(hint) = &self.hint {
            console.note(format!("{hint}\n"));
        }
        if let Some(command) = &self.see {
            console.line(format!("Run '{command} --help' for usage.\n"));
        }
    }
}

fn unknown_flag(args: &[OsString], flag: &str) -> String {
    if flag.starts_with("--") {
        return format!("unknown flag: {}", flag.split('=').next().unwrap_or(flag));
    }
    let letter = flag.chars().nth(1).unwrap_or_default();
    let has =
        |word: &str| word.starts_with('-') && !word.starts_with("--") && word.contains(letter);
    let words = args.iter().map(|word| word.to_string_lossy());
    let group = words.into_iter().find(|word| has(word));
    format!("unknown shorthand flag: '{letter}' in {}", group.as_deref().unwrap_or(flag))
}

/// The least and the most arguments of a command; what follows `--` does not count.
fn arity(root: &Command, path: &[String]) -> (usize, Option<usize>) {
    let command = path.iter().try_fold(root, |at, name| at.find_subcommand(name)).unwrap_or(root);
    let arguments = || command.get_positionals().filter(|argument| !argument.is_last_set());
    let many = arguments().any(|argument| matches!(argument.get_action(), ArgAction::Append));
    let least = arguments().filter(|argument| argument.is_required_set()).count();
    (least, if many { None } else { Some(arguments().count()) })
}

/// How many arguments there may be, and how many there are, in cobra's words.
fn count(least: usize, most: Option<usize>, received: usize) -> String {
    match most {
        None => format!("requires at least {least} arg(s), only received {received}"),
        Some(most) if least == 0 => format!("accepts at most {most} arg(s), received {received}"),
        Some(most) if least == most => format!("accepts {least} arg(s), received {received}"),
        Some(most) => format!("accepts between {least} and {most} arg(s), received {received}"),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}
