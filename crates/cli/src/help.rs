//! Help in flyctl's layout, from our definitions: what it is, usage, aliases, commands, flags.

use clap::{Arg, ArgAction, Command};
use std::any::TypeId;
use std::path::PathBuf;

/// Columns of help where there is no terminal to ask.
const COLUMNS_DEFAULT: usize = 80;
/// Wider lines are hard to read.
const COLUMNS_MAX: usize = 120;
/// A description is not squeezed into fewer columns than this.
const DESCRIPTION_MIN: usize = 24;
/// flyctl pads the names of commands to at least this.
const NAME_MIN: usize = 11;

/// flyctl's groups of commands of `fly` itself; what is in none comes after them.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Deploying apps & machines", &["apps", "deploy", "launch", "machine", "status"]),
    ("Configuration & scaling", &["config", "image", "ips", "scale", "secrets", "volumes"]),
    (
        "Monitoring & managing things",
        &[
            "checks",
            "console",
            "dig",
            "incidents",
            "logs",
            "ping",
            "proxy",
            "releases",
            "services",
            "sftp",
            "ssh",
            "why",
            "wireguard",
        ],
    ),
    ("Access control", &["auth", "orgs", "tokens"]),
    ("Help & troubleshooting", &["docs", "doctor", "platform"]),
];

/// The command's whole name: `fly apps list`.
pub(crate) fn name(path: &[String]) -> String {
    std::iter::once("fly").chain(path.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// The line after `Usage:`.
pub(crate) fn usage(root: &Command, path: &[String]) -> String {
    let command = find(root, path);
    let name = name(path);
    if is_group(command) {
        return format!("{name} [command]");
    }
    let arguments = command.get_positionals().filter(|arg| !arg.is_hide_set()).map(placeholder);
    let words = std::iter::once(name).chain(arguments).chain(["[flags]".to_owned()]);
    words.collect::<Vec<_>>().join(" ")
}

/// All of the help of the command that `path` leads to. `root` has to be built.
pub(crate) fn text(root: &Command, path: &[String], columns: Option<usize>) -> String {
    let columns = columns.unwrap_or(COLUMNS_DEFAULT).min(COLUMNS_MAX);
    let command = find(root, path);
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let mut sections =
        vec![wrapped(about.trim(), 0, columns), format!("Usage:\n  {}", usage(root, path))];
    let aliases: Vec<_> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        let names = std::iter::once(command.get_name()).chain(aliases);
        sections.push(format!("Aliases:\n  {}", names.collect::<Vec<_>>().join(", ")));
    }
    if let Some(examples) = command.get_after_help() {
        sections.push(format!("Examples:\n{}", examples.to_string().trim_end()));
    }
    if path.is_empty() {
        sections.extend(groups(command));
    } else if is_group(command) {
        sections.push(commands("Available Commands:", command, |_| true));
    }
    let own = flags(command, false);
    sections.push(format!("Flags:\n{}", table(own, columns)));
    if !path.is_empty() {
        sections.push(format!("Global Flags:\n{}", table(flags(command, true), columns)));
    }
    if is_group(command) {
        let name = name(path);
        sections
            .push(format!("Use \"{name} [command] --help\" for more information about a command."));
    }
    sections.retain(|section| !section.is_empty());
    format!("{}\n", sections.join("\n\n"))
}

fn find<'a>(root: &'a Command, path: &[String]) -> &'a Command {
    path.iter().fold(root, |command, name| command.find_subcommand(name).unwrap_or(command))
}

fn is_group(command: &Command) -> bool {
    command.has_subcommands()
}

fn placeholder(arg: &Arg) -> String {
    let name = arg.get_id().as_str().replace('_', "-");
    let many = matches!(arg.get_action(), ArgAction::Append);
    let dots = if many { "..." } else { "" };
    match arg.is_required_set() {
        true => format!("<{name}>{dots}"),
        false => format!("[{name}]{dots}"),
    }
}

fn groups(command: &Command) -> Vec<String> {
    let in_group = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let groups =
        GROUPS.iter().map(|(title, names)| commands(title, command, |name| names.contains(&name)));
    let rest = commands("Additional Commands:", command, |name| !in_group(name));
    groups.chain([rest]).collect()
}

/// Names and descriptions of subcommands below a title; nothing where there is none.
fn commands(title: &str, command: &Command, is_wanted: impl Fn(&str) -> bool) -> String {
    let mut shown: Vec<_> = command.get_subcommands().filter(|it| !it.is_hide_set()).collect();
    shown.sort_by_key(|it| it.get_name());
    let width = shown.iter().map(|it| it.get_name().len()).max().unwrap_or(0).max(NAME_MIN);
    shown.retain(|it| is_wanted(it.get_name()));
    // clap has the same words for every level, flyctl has the command at the top only.
    shown.retain(|it| it.get_name() != "help" || command.get_name() == "fly");
    let line = |it: &&Command| {
        let about = match it.get_name() {
            "help" => "Help about any command".to_owned(),
            _ => it.get_about().map(ToString::to_string).unwrap_or_default(),
        };
        format!("\n  {:<width$} {about}", it.get_name())
    };
    let lines: String = shown.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("{title}{lines}") }
}

/// Each flag's left side and its description, by name.
fn flags(command: &Command, global: bool) -> Vec<(String, String)> {
    let root = command.get_name() == "fly";
    let shown = command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set());
    let mut shown: Vec<_> = shown
        .filter(|arg| root || arg.is_global_set() == global)
        .filter(|arg| !is_help(arg))
        .collect();
    shown.sort_by_key(|arg| arg.get_long());
    let mut lines: Vec<_> = shown
        .into_iter()
        .map(|arg| (arg.get_long().unwrap_or_default(), (left(arg), description(arg))))
        .collect();
    if !global {
        let help = format!("help for {}", command.get_name());
        lines.push(("help", ("  -h, --help".to_owned(), help)));
        lines.sort_by_key(|(name, _)| *name);
    }
    lines.into_iter().map(|(_, line)| line).collect()
}

fn is_help(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong)
}

fn left(arg: &Arg) -> String {
    let short = match arg.get_short() {
        Some(short) => format!("-{short}, "),
        None => "    ".to_owned(),
    };
    let long = arg.get_long().unwrap_or_default();
    let kind = kind(arg);
    let space = if kind.is_empty() { "" } else { " " };
    format!("  {short}--{long}{space}{kind}")
}

/// flyctl's word for what a flag takes; nothing for a boolean.
fn kind(arg: &Arg) -> &'static str {
    if !matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        return "";
    }
    let parser = arg.get_value_parser();
    let is = |id: TypeId| parser.type_id() == id;
    let numbers = [
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<i32>(),
        TypeId::of::<i64>(),
        TypeId::of::<usize>(),
    ];
    if is(TypeId::of::<bool>()) {
        ""
    } else if matches!(arg.get_action(), ArgAction::Append) {
        if arg.get_value_delimiter().is_some() { "strings" } else { "stringArray" }
    } else if numbers.into_iter().any(is) {
        "int"
    } else if is(TypeId::of::<f64>()) {
        "float"
    } else if is(TypeId::of::<String>()) || is(TypeId::of::<PathBuf>()) {
        "string"
    } else {
        "value"
    }
}

fn description(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let default = arg.get_default_values().first().map(|value| value.to_string_lossy());
    match default.as_deref() {
        None | Some("false" | "") => help,
        Some(value) if kind(arg) == "string" => format!("{help} (default \"{value}\")"),
        Some(value) => format!("{help} (default {value})"),
    }
}

fn table(lines: Vec<(String, String)>, columns: usize) -> String {
    let width = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0) + 3;
    let line = |(left, right): &(String, String)| {
        format!("{left:<width$}{}", wrapped(right, width, columns))
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Text whose lines fit beside an indentation that the first one has already.
fn wrapped(text: &str, indent: usize, columns: usize) -> String {
    let width = columns.saturating_sub(indent).max(DESCRIPTION_MIN);
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        lines.push(String::new());
        for word in paragraph.split_whitespace() {
            let line = lines.last_mut().expect("one was pushed");
            let long = !line.is_empty() && width < line.chars().count() + 1 + word.chars().count();
            match (line.is_empty(), long) {
                (true, _) => line.push_str(word),
                (false, false) => line.push_str(&format!(" {word}")),
                (false, true) => lines.push(word.to_owned()),
            }
        }
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Fly;
    use clap::CommandFactory;

    fn help(path: &[&str], columns: Option<usize>) -> String {
        let mut root = Fly::command();
        root.build();
        let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
        text(&root, &path, columns)
    }

    #[test]
    fn a_command_has_usage_aliases_flags_with_kinds_and_global_flags() {
        let expected = "\
List apps

Usage:
  fly apps list [flags]

Aliases:
  list, ls

Flags:
  -h, --help         help for list
  -j, --json         JSON output
  -o, --org string   The organization
  -q, --quiet        Names only

Global Flags:
  -t, --access-token string   Token for a server that is reached over TCP
      --verbose               Verbose output
";
        assert_eq!(help(&["apps", "list"], None), expected);
    }

    #[test]
    fn a_group_lists_its_commands_and_says_how_to_go_on() {
        let help = help(&["apps"], None);
        assert!(
            help.contains("\nUsage:\n  fly apps [command]\n\nAliases:\n  apps, app\n"),
            "{help}"
        );
        assert!(help.contains("\nAvailable Commands:\n  create      Create an app\n"), "{help}");
        assert!(help.ends_with(
            "\nUse \"fly apps [command] --help\" for more information about a command.\n"
        ));
    }

    #[test]
    fn long_descriptions_are_wrapped_at_the_terminals_width_within_limits() {
        let longest = |columns| {
            let help = help(&["deploy"], columns);
            help.lines().map(|line| line.chars().count()).max()
        };
        assert!(longest(None) <= Some(COLUMNS_DEFAULT));
        assert!(longest(Some(500)) <= Some(COLUMNS_MAX));
        assert!(longest(Some(60)) < longest(Some(120)));
    }
}
