//! The streams of one invocation: data out, words err, answers in.
//!
//! Writing never fails a command: when the reader of our output has gone (`fly logs | head`), the
//! console remembers it, and long-running commands ask [`Console::is_closed`].

use crate::env::Environment;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Standard streams, or their stand-ins in tests.
pub struct Console {
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    input: Mutex<Box<dyn BufRead + Send>>,
    interactive: bool,
    color: bool,
    closed: AtomicBool,
}

impl Console {
    /// The process's own streams. Interactive means that stdin and stdout are terminals.
    pub fn of_process(env: &Environment) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self {
            out: Mutex::new(Box::new(std::io::stdout())),
            err: Mutex::new(Box::new(std::io::stderr())),
            input: Mutex::new(Box::new(BufReader::new(std::io::stdin()))),
            interactive: terminal && std::io::stdin().is_terminal(),
            color: env.wants_color(terminal),
            closed: AtomicBool::new(false),
        }
    }

    /// Streams given by the caller; not interactive, without colour, nothing to read.
    pub fn of_streams(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self {
            out: Mutex::new(out),
            err: Mutex::new(err),
            input: Mutex::new(Box::new(std::io::empty())),
            interactive: false,
            color: false,
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_interactive(&self) -> bool {
        self.interactive
    }

    pub(crate) fn has_color(&self) -> bool {
        self.color
    }

    /// Whether the reader of our output has gone away.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Prints a line of data.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        self.write(&self.out, &format!("{}\n", text.as_ref()));
    }

    /// Prints data as it is.
    pub(crate) fn text(&self, text: &str) {
        self.write(&self.out, text);
    }

    /// Prints a line of words for a person.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        self.write(&self.err, &format!("{}\n", text.as_ref()));
    }

    /// Asks a yes/no question, which needs a terminal; anything but y or yes is a no.
    pub(crate) fn confirm(&self, question: &str) -> bool {
        self.write(&self.out, &format!("? {question} (y/N) "));
        matches!(self.read_line().to_lowercase().as_str(), "y" | "yes")
    }

    fn read_line(&self) -> String {
        let mut line = String::new();
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        // An unreadable or ended input is an empty answer, which every question takes as no.
        if input.read_line(&mut line).is_err() {
            line.clear();
        }
        line.trim().to_owned()
    }

    fn write(&self, stream: &Mutex<Box<dyn Write + Send>>, text: &str) {
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        let result = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
        if result.is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }
}
