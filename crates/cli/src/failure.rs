//! How a command ends other than well: one type, printed at one place.

use crate::console::Console;
use crate::image::ImageError;
use perch_api::ClientError;
use std::fmt;

/// Exit code when no answer came in time.
const EXIT_DEADLINE: u8 = 126;
/// Exit code of a command that the user interrupted; nothing is printed.
const EXIT_INTERRUPTED: u8 = 127;

/// An error with its exit code and the hint that follows the message.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    hint: Option<String>,
    code: u8,
    /// Whether there is nothing to print.
    is_silent: bool,
}

/// What commands return.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { error: anyhow::anyhow!("{message}"), hint: None, code: 1, is_silent: false }
    }

    /// The user pressed Ctrl-C: silent, exit code 127.
    pub(crate) fn interrupted() -> Self {
        Self { code: EXIT_INTERRUPTED, is_silent: true, ..Self::new("interrupted") }
    }

    /// What the command ran elsewhere has failed and said why: silent, with its exit code.
    pub(crate) fn elsewhere(code: u8) -> Self {
        Self { code, is_silent: true, ..Self::new("a program failed") }
    }

    /// Adds what the user can do about it, printed on its own line.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what we were doing when it happened.
    pub(crate) fn context(mut self, doing: impl fmt::Display + Send + Sync + 'static) -> Self {
        self.error = self.error.context(doing);
        self
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.is_silent && self.code == EXIT_INTERRUPTED
    }

    /// The message with its causes, without the hint.
    pub(crate) fn message(&self) -> String {
        format!("{:#}", self.error)
    }

    /// Prints `Error: …` and the hint to stderr and answers with the exit code.
    pub(crate) fn print(&self, console: &Console) -> u8 {
        if self.is_silent {
            return self.code;
        }
        console.error(&self.message());
        if let Some(hint) = &self.hint {
            console.note(format!("{hint}\n"));
        }
        self.code
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    /// Errors that know what to do about themselves bring their hint along.
    fn from(error: E) -> Self {
        let error = error.into();
        let of_server = error.downcast_ref::<ClientError>().and_then(ClientError::hint);
        let hint = of_server.or_else(|| error.downcast_ref::<ImageError>()?.hint());
        let late = matches!(error.downcast_ref(), Some(ClientError::Timeout { .. }));
        Self { error, hint, code: if late { EXIT_DEADLINE } else { 1 }, is_silent: false }
    }
}

/// Builds the runtime that one command runs on.
pub(crate) fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_every_cause_once() {
        let failure = Failure::new("no such file").context("reading fly.toml");
        assert_eq!(failure.message(), "reading fly.toml: no such file");
    }
}
