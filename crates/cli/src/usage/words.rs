//! Which command the words mean, told without understanding all of them.
//!
//! As flyctl does it: flags are skipped, with the next word if it is their value, and each other word
//! that names a subcommand leads deeper.

use crate::flyctl::{Flag, Tree};
use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;

/// What was read.
#[derive(Debug)]
pub(super) struct Reading {
    /// The canonical names that lead to the command.
    pub(super) path: Vec<String>,
    /// How many of them our definitions have.
    pub(super) known: usize,
    /// Each flag: where it is, its name without dashes, and where its value is if that is a word of its own.
    flags: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    at: usize,
    long: bool,
    /// The name, or the shorthands that are grouped.
    name: String,
    joined: Option<String>,
    value_at: Option<usize>,
}

impl Reading {
    pub(super) fn new(args: &[OsString], root: &Command, tree: &Tree) -> Self {
        let mut reading = Self { path: Vec::new(), known: 0, flags: Vec::new() };
        let mut place = Place { ours: Some(root), tree, path: String::new() };
        let mut deeper = true;
        let mut at = 1;
        while let Some(word) = args.get(at).map(|word| word.to_string_lossy().into_owned()) {
            if word == "--" {
                break;
            }
            match Token::read(at, &word) {
                Some(mut token) => {
                    if token.joined.is_none() && place.takes_value(&token) {
                        at += 1;
                        token.value_at = args.get(at).map(|_| at);
                    }
                    reading.flags.push(token);
                }
                None if word == "help" && deeper && place.is_group() => {}
                None => deeper = deeper && reading.enter(&mut place, &word),
            }
            at += 1;
        }
        reading
    }

    /// Goes to the subcommand that a word names, if it names one.
    fn enter<'a>(&mut self, place: &mut Place<'a>, word: &str) -> bool {
        let ours = place.ours.and_then(|command| command.find_subcommand(word));
        let name = match ours {
            Some(command) => command.get_name().to_owned(),
            None => match place.tree.child(&place.path, word) {
                Some(path) => crate::flyctl::last(path).to_owned(),
                None => return false,
            },
        };
        self.known += usize::from(ours.is_some());
        self.path.push(name);
        *place = Place { ours, tree: place.tree, path: self.path.join(" ") };
        true
    }

    /// The arguments with a boolean that is given with a value, as the flag alone or left out: pflag takes
    /// both. The last shorthand with a value, if no flag is named.
    pub(super) fn without_value(
        &self,
        args: &[OsString],
        flag: Option<&str>,
    ) -> Option<Vec<OsString>> {
        let mut args = args.to_vec();
        let named = |token: &Token| match flag {
            Some(flag) => flag.trim_start_matches('-') == token.name,
            None => !token.long,
        };
        let token = self.flags.iter().rfind(|token| token.joined.is_some() && named(token))?;
        match token.joined.as_deref()? {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => {
                let dashes = if token.long { "--" } else { "-" };
                args[token.at] = format!("{dashes}{}", token.name).into();
            }
            "false" | "0" | "f" | "F" | "FALSE" | "False" => _ = args.remove(token.at),
            _ => return None,
        }
        Some(args)
    }

    /// The arguments without a flag, in whichever way it is given, and the last value it was given.
    pub(super) fn without(
        &self,
        args: &[OsString],
        flag: &Flag,
    ) -> (Vec<OsString>, Option<String>) {
        let mut kept: Vec<Option<OsString>> = args.iter().cloned().map(Some).collect();
        let mut value = None;
        let is_named = |name: &str| {
            name == flag.name
                || flag.aliases.contains(&name)
                || name.chars().eq(flag.short.iter().copied())
        };
        for token in &self.flags {
            let letter = |c: &char| !token.long && is_named(c.encode_utf8(&mut [0; 4]));
            let letters: String = token.name.chars().filter(|c| !letter(c)).collect();
            let with_value =
                flag.takes_value && token.name.chars().next().is_some_and(|c| letter(&c));
            if token.long && is_named(&token.name) || letters.is_empty() || with_value {
                let of_word = token.value_at.map(|at| args[at].to_string_lossy().into_owned());
                value = token.joined.clone().or(of_word).or(value);
                kept[token.at] = None;
                token.value_at.into_iter().for_each(|at| kept[at] = None);
            } else if letters.len() < token.name.len() {
                kept[token.at] = Some(format!("-{letters}").into());
            }
        }
        (kept.into_iter().flatten().collect(), value)
    }
}

impl Token {
    fn read(at: usize, word: &str) -> Option<Self> {
        let name = word.strip_prefix('-').filter(|name| !name.is_empty())?;
        let long = name.starts_with('-');
        let (name, joined) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let name = name.trim_start_matches('-').to_owned();
        Some(Self { at, long, name, joined, value_at: None })
    }
}

/// Where the reading stands, in our definitions as far as they go and in flyctl's.
struct Place<'a> {
    ours: Option<&'a Command>,
    tree: &'a Tree,
    path: String,
}

impl Place<'_> {
    fn is_group(&self) -> bool {
        self.ours.is_some_and(Command::has_subcommands)
    }

    fn takes_value(&self, token: &Token) -> bool {
        if token.long {
            return self.flag_takes_value(&token.name);
        }
        // Of grouped shorthands the first that takes a value takes the rest of the word, if there is any.
        let letters: Vec<char> = token.name.chars().collect();
        let takes = |c: &char| self.flag_takes_value(c.encode_utf8(&mut [0; 4]));
        letters.iter().position(takes).is_some_and(|at| at + 1 == letters.len())
    }

    fn flag_takes_value(&self, name: &str) -> bool {
        if name == "t" || name == "access-token" {
            return true;
        }
        let ours = self.ours.and_then(|it| it.get_arguments().find(|arg| is_called(arg, name)));
        match ours {
            Some(arg) => {
                let sets = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
                sets && !arg.is_require_equals_set()
            }
            None => {
                let here = self.tree.get(&self.path).and_then(|command| command.flag(name));
                // Before the name of a subcommand stands what belongs to that.
                let flag = here.or_else(|| self.tree.flag_below(&self.path, name));
                flag.is_some_and(|flag| flag.takes_value)
            }
        }
    }
}

fn is_called(arg: &Arg, name: &str) -> bool {
    let longs = arg.get_long_and_visible_aliases().unwrap_or_default();
    let hidden = arg.get_all_aliases().unwrap_or_default();
    let shorts = arg.get_short_and_visible_aliases().unwrap_or_default();
    let mut letters = name.chars();
    let letter = letters.next().filter(|_| letters.next().is_none());
    longs.contains(&name) || hidden.contains(&name) || letter.is_some_and(|c| shorts.contains(&c))
}
