//! What we answer about commands and flags of flyctl that we do not have, and in what those that we have
//! differ: the lines of `answers.txt`.

use crate::flyctl;

const LINES: &str = include_str!("answers.txt");

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) word: Word,
    pub(crate) text: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Same,
    Differs,
    /// Accepted, because it is so anyway.
    Always,
    /// Accepted, and said that it has no effect.
    Ignored,
    Refused,
}

/// One line: whose it is, of which flags, and what it says.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) commands: Vec<&'static str>,
    /// None for a line about the commands themselves.
    pub(crate) flags: Vec<&'static str>,
    pub(crate) answer: Answer,
}

/// The answer about a command: its own, or the refusal of what it is part of.
pub(crate) fn of_command(path: &str) -> Option<Answer> {
    let lines: Vec<_> = lines().filter(|line| line.flags.is_empty()).collect();
    let about = |at: &str| lines.iter().find(|line| line.commands.contains(&at));
    let mut above = flyctl::ancestors(path).filter_map(about).map(|line| line.answer);
    about(path).map(|line| line.answer).or_else(|| above.find(|it| it.word == Word::Refused))
}

/// The answer about a flag, given by its long name: of the command, of what it is part of, or of all.
pub(crate) fn of_flag(path: &str, name: &str) -> Option<Answer> {
    let lines: Vec<_> = lines().filter(|line| line.flags.contains(&name)).collect();
    let mut places = std::iter::once(path).chain(flyctl::ancestors(path)).chain(["*"]);
    places.find_map(|at| lines.iter().find(|line| line.commands.contains(&at))).map(|it| it.answer)
}

/// All lines.
pub(crate) fn lines() -> impl Iterator<Item = Line> {
    LINES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).filter_map(Line::read)
}

impl Line {
    fn read(line: &'static str) -> Option<Self> {
        let (subject, answer) = line.split_once(": ")?;
        let (commands, flags) = match subject.find(" --") {
            Some(at) => (&subject[..at], &subject[at + 1..]),
            None => (subject, ""),
        };
        let (word, text) = answer.split_once(' ').unwrap_or((answer, ""));
        let word = match word {
            "same" => Word::Same,
            "differs" => Word::Differs,
            "always" => Word::Always,
            "ignored" => Word::Ignored,
            "refused" => Word::Refused,
            _ => return None,
        };
        Some(Self {
            commands: commands.split(", ").collect(),
            flags: flags.split_whitespace().map(|flag| flag.trim_start_matches('-')).collect(),
            answer: Answer { word, text },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flyctl::Tree;
    use std::collections::BTreeSet;

    #[test]
    fn every_line_is_understood_and_no_command_or_flag_has_two() {
        let written = LINES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        assert_eq!(written.count(), lines().count(), "a line is not understood");
        let mut seen = BTreeSet::new();
        for line in lines() {
            for command in &line.commands {
                let flags = if line.flags.is_empty() { vec![""] } else { line.flags.clone() };
                for flag in flags {
                    assert!(seen.insert((*command, flag)), "two lines for {command} {flag}");
                }
            }
        }
    }

    #[test]
    fn every_line_is_about_something_that_flyctl_has() {
        let tree = Tree::read();
        for line in lines() {
            for command in line.commands.iter().filter(|command| **command != "*") {
                let known = tree.get(command).unwrap_or_else(|| panic!("no command {command}"));
                for flag in &line.flags {
                    let below = |path: &str| path.starts_with(&format!("{command} "));
                    let has = known.flag(flag).is_some()
                        || tree.iter().any(|(path, it)| below(path) && it.flag(flag).is_some());
                    assert!(has, "{command} has no --{flag}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_what_to_use_in_one_line_without_a_period() {
        for line in lines().filter(|line| line.answer.word != Word::Same) {
            let text = line.answer.text;
            assert!(text.len() > 10 && !text.ends_with('.'), "{:?}: {text}", line.commands);
        }
    }

    #[test]
    fn what_is_below_a_refused_command_is_refused_with_it() {
        let word = |path: &str| of_command(path).map(|answer| answer.word);
        assert_eq!(word("certs add"), Some(Word::Refused));
        assert_eq!(word("mpg databases extensions list"), Some(Word::Refused));
        assert_eq!(word("apps list"), Some(Word::Same));
        assert_eq!(word("frobnicate"), None);
        assert_eq!(of_flag("launch", "nixpacks").map(|it| it.word), Some(Word::Refused));
        assert_eq!(of_flag("deploy", "app"), None);
    }
}
