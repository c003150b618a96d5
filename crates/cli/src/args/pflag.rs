//! Makes clap read flags as pflag does, which flyctl's users and scripts rely on.

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, Command};

/// The same command, and all below it, with pflag's rules: booleans take an optional `=VALUE` in Go's
/// words, a value may begin with a hyphen, and the last of a repeated flag counts.
pub(super) fn like(command: Command) -> Command {
    command.args_override_self(true).mut_args(flag).mut_subcommands(like)
}

fn flag(arg: Arg) -> Arg {
    if arg.is_positional() {
        return arg;
    }
    match arg.get_action() {
        ArgAction::SetTrue => boolean(arg),
        ArgAction::Set | ArgAction::Append if takes_a_value(&arg) => arg.allow_hyphen_values(true),
        _ => arg,
    }
}

/// Those with an optional value take it after `=` only.
fn takes_a_value(arg: &Arg) -> bool {
    arg.get_num_args().is_none_or(|values| values.min_values() > 0)
}

fn boolean(arg: Arg) -> Arg {
    let default = match arg.get_default_values().first() {
        Some(value) if value == "true" => "true",
        _ => "false",
    };
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value(default)
        .hide_default_value(default == "false")
        .hide_possible_values(true)
        .value_parser(ValueParser::new(parse_bool))
}

/// The words of Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}
