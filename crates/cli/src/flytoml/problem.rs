//! What can be wrong with a configuration file, and how it is told: file, line, column, key, what is
//! wrong, and what to write instead.

use super::tree::Span;
use std::fmt;

/// A file with more problems than this is not read to the end by anybody.
const PROBLEMS_MAX: usize = 1_000;

/// A problem found in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it stops.
    pub level: Level,
    /// Line and column, both from 1, where the text tells; columns count characters.
    pub at: Option<(usize, usize)>,
    /// The key, as `http_service.checks[0].interval`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub text: String,
    /// What to write instead, where we know.
    pub remedy: Option<String>,
}

/// What a problem stops. The first four are flyctl's, the other two ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The file can not be understood: a value of the wrong type (compat section 6).
    Shape,
    /// A rule of validation is broken (compat section 7).
    Invalid,
    /// The file is valid and can not become Machines (compat section 8).
    Conversion,
    /// Is told by validation and stops nothing.
    Warning,
    /// flyctl leaves it to its server to refuse; here `deploy` does.
    Refused,
    /// Passes everywhere and hardly does what was meant.
    Hint,
}

/// Collects problems with the places they are at.
#[derive(Debug)]
pub(crate) struct Problems<'a> {
    source: &'a str,
    list: Vec<Problem>,
}

impl Problem {
    /// Whether `config validate` fails because of it.
    pub fn is_error(&self) -> bool {
        matches!(self.level, Level::Shape | Level::Invalid | Level::Conversion)
    }
}

impl<'a> Problems<'a> {
    pub(crate) fn new(source: &'a str) -> Self {
        Self { source, list: Vec::new() }
    }

    pub(crate) fn shape(&mut self, key: &str, span: &Span, text: String, remedy: Option<String>) {
        self.add(Level::Shape, key, span, text, remedy);
    }

    pub(crate) fn has(&self, level: Level) -> bool {
        self.list.iter().any(|problem| problem.level == level)
    }

    pub(crate) fn into_list(self) -> Vec<Problem> {
        self.list
    }

    pub(crate) fn add(
        &mut self,
        level: Level,
        key: &str,
        span: &Span,
        text: String,
        remedy: Option<String>,
    ) {
        if self.list.len() < PROBLEMS_MAX {
            let at = span.as_ref().map(|span| position(self.source, span.start));
            self.list.push(Problem { level, at, key: key.to_owned(), text, remedy });
        }
    }
}

impl fmt::Display for Problem {
    /// `LINE:COLUMN: KEY: TEXT; REMEDY`, without the parts that are not known. The caller puts the
    /// file's name in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.at {
            write!(f, "{line}:{column}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// Line and column (from 1) of a byte in a text.
pub(crate) fn position(source: &str, byte: usize) -> (usize, usize) {
    let before = source.get(..byte).unwrap_or(source);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[line_start..].chars().count() + 1;
    (before.matches('\n').count() + 1, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_lines_and_characters_from_one() {
        assert_eq!(position("a = 1\nö = 2", 0), (1, 1));
        assert_eq!(position("a = 1\nö = 2", 6), (2, 1));
        assert_eq!(position("a = 1\nö = 2", 9), (2, 3));
        assert_eq!(position("x", 99), (1, 2));
    }
}
