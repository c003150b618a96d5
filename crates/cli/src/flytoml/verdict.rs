//! What `config validate` answers, in the corpus's words.

use super::problem::{Level, Problem};
use std::fmt;

/// What flyctl makes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Validates without a word.
    Accept,
    /// Validates with a warning.
    AcceptWarn,
    /// Validates, and then cannot become Machines.
    AcceptThenDeployFails,
    /// A value has the wrong type.
    RejectShape,
    /// A rule is broken.
    RejectValidate,
    /// The text cannot be parsed.
    RejectParse,
}

impl Verdict {
    /// The worst of what was found; a text that cannot be parsed has no problems to look at.
    pub(crate) fn of(problems: &[Problem]) -> Self {
        let has = |level: Level| problems.iter().any(|problem| problem.level == level);
        match () {
            () if has(Level::Shape) => Self::RejectShape,
            () if has(Level::Invalid) => Self::RejectValidate,
            () if has(Level::Conversion) => Self::AcceptThenDeployFails,
            () if has(Level::Warning) => Self::AcceptWarn,
            () => Self::Accept,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::AcceptWarn => "accept-warn",
            Self::AcceptThenDeployFails => "accept-then-deploy-fails",
            Self::RejectShape => "reject-shape",
            Self::RejectValidate => "reject-validate",
            Self::RejectParse => "reject-parse",
        })
    }
}
