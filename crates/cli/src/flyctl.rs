//! What flyctl has: every command and flag of it, from the list beside this file.
//!
//! It is read only when our own definitions do not know what was typed, and by the tests that compare the
//! two. The list is derived from flyctl's source and never edited by hand.

use std::collections::BTreeMap;

const LIST: &str = include_str!("flyctl.txt");

/// flyctl's commands by their whole name, such as `machine leases view`.
pub(crate) struct Tree(BTreeMap<&'static str, Command>);

/// One command.
#[derive(Debug, Default)]
pub(crate) struct Command {
    pub(crate) aliases: Vec<&'static str>,
    pub(crate) flags: Vec<Flag>,
}

/// One flag.
#[derive(Debug, Default)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) short: Option<char>,
    /// Long and short names that mean the same.
    pub(crate) aliases: Vec<&'static str>,
    /// Whether the next argument is its value, when none is joined to it.
    pub(crate) takes_value: bool,
    pub(crate) default: Option<&'static str>,
    pub(crate) is_bool: bool,
}

impl Tree {
    pub(crate) fn read() -> Self {
        let mut commands: BTreeMap<&'static str, Command> = BTreeMap::new();
        let mut path = "";
        for line in LIST.lines().filter(|line| !line.starts_with('#')) {
            match line.strip_prefix(' ') {
                Some(flag) => commands.entry(path).or_default().flags.push(Flag::read(flag)),
                None => {
                    path = &line[..end_of_path(line)];
                    let aliases = words(line, "alias=");
                    commands.insert(path, Command { aliases, flags: Vec::new() });
                }
            }
        }
        Self(commands)
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Command> {
        self.0.get(path)
    }

    /// A flag of any command below `path`.
    pub(crate) fn flag_below(&self, path: &str, name: &str) -> Option<&Flag> {
        let start = if path.is_empty() { String::new() } else { format!("{path} ") };
        let below = self.0.iter().filter(|(it, _)| it.starts_with(&start));
        below.flat_map(|(_, command)| command.flag(name)).next()
    }

    /// The whole name of what `word` means below `path`.
    pub(crate) fn child(&self, path: &str, word: &str) -> Option<&'static str> {
        let below = |name: &&&'static str| parent(name) == path;
        let named = |name: &&'static str| {
            last(name) == word || self.0.get(*name).is_some_and(|it| it.aliases.contains(&word))
        };
        self.0.keys().filter(below).find(|name| named(name)).copied()
    }

    /// Whether flyctl's own help leaves it out.
    #[cfg(test)]
    pub(crate) fn is_hidden(&self, path: &str) -> bool {
        let mut commands = LIST.lines().filter(|line| !line.starts_with([' ', '#']));
        let below =
            |line: &str| line.strip_prefix(path).is_some_and(|it| it.ends_with(" hidden=yes"));
        self.0.contains_key(path)
            && commands.any(|line| below(line) && end_of_path(line) == path.len())
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Command)> {
        self.0.iter().map(|(path, command)| (*path, command))
    }
}

impl Command {
    /// The flag with this long name or, if it has one letter, this shorthand.
    pub(crate) fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().find(|flag| flag.is_called(name))
    }
}

impl Flag {
    fn read(line: &'static str) -> Self {
        let mut words = line.split(' ');
        let first = words.next().unwrap_or_default().trim_start_matches("--");
        let (name, kind) = first.split_once('=').unwrap_or((first, ""));
        let short = words.next().and_then(|word| word.strip_prefix('-')?.chars().next());
        let value = |key: &str| self::words(line, key).first().copied();
        Self {
            name,
            short,
            aliases: self::words(line, "alias="),
            takes_value: !kind.is_empty() && value("bare=").is_none(),
            default: value("default="),
            is_bool: kind.is_empty(),
        }
    }

    pub(crate) fn is_called(&self, name: &str) -> bool {
        let mut letters = name.chars();
        let letter = letters.next().filter(|_| letters.next().is_none());
        self.name == name
            || self.aliases.contains(&name)
            || (letter.is_some() && self.short == letter)
    }

    /// Whether a value says no more than leaving the flag out.
    pub(crate) fn is_default(&self, value: &str) -> bool {
        value == self.default.unwrap_or(if self.is_bool { "false" } else { "" })
    }
}

fn end_of_path(line: &str) -> usize {
    line.find(" alias=").or(line.find(" hidden=")).unwrap_or(line.len())
}

/// The words, joined by commas, after each ` key=`.
fn words(line: &'static str, key: &str) -> Vec<&'static str> {
    let values = line.split(' ').filter_map(|word| word.strip_prefix(key));
    values.flat_map(|value| value.split(',')).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once(' ').map_or("", |(parent, _)| parent)
}

/// What a command is part of, nearest first: `machine leases`, `machine` of `machine leases view`.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(parent(path)), |path| Some(parent(path)))
        .take_while(|path| !path.is_empty())
}

/// The last word of a command's whole name.
pub(crate) fn last(path: &str) -> &str {
    path.rsplit(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_flyctls_commands_with_aliases_and_flags() {
        let tree = Tree::read();
        assert_eq!(tree.0.len(), 374);
        assert_eq!(tree.child("", "wg"), Some("wireguard"));
        assert_eq!(tree.child("machine leases", "view"), Some("machine leases view"));
        assert_eq!(tree.child("machine", "frobnicate"), None);
        let logs = tree.get("logs").expect("flyctl has logs");
        let machine = logs.flag("i").expect("an alias of its shorthand");
        assert_eq!((machine.name, machine.short), ("machine", Some('m')));
        assert!(machine.takes_value);
    }

    #[test]
    fn a_flag_knows_what_leaves_it_as_it_is() {
        let tree = Tree::read();
        let deploy = tree.get("deploy").expect("flyctl has deploy");
        let is_default = |name: &str, value: &str| {
            deploy.flag(name).expect("deploy has the flag").is_default(value)
        };
        assert!(is_default("compression", "gzip"));
        assert!(is_default("wg", "true") && !is_default("wg", "false"));
        assert!(is_default("local-only", "false") && !is_default("local-only", "true"));
        assert!(!deploy.flag("depot").expect("deploy has it").takes_value, "bare --depot is true");
    }
}
