//! The streams of one invocation: data out, words err, answers in.
//!
//! Writing never fails a command: when the reader of our output has gone (`fly logs | head`), the
//! console remembers it, and long-running commands ask [`Console::is_closed`].

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Standard streams, or their stand-ins in tests.
pub struct Console {
    out: Mutex<Box<dyn Write + Send>>,
    err: Mutex<Box<dyn Write + Send>>,
    input: Mutex<Box<dyn BufRead + Send>>,
    interactive: bool,
    closed: AtomicBool,
}

impl Console {
    /// The process's own streams. Interactive means that stdin and stdout are terminals.
    pub fn of_process() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self {
            out: Mutex::new(Box::new(std::io::stdout())),
            err: Mutex::new(Box::new(std::io::stderr())),
            input: Mutex::new(Box::new(BufReader::new(std::io::stdin()))),
            interactive: terminal && std::io::stdin().is_terminal(),
            closed: AtomicBool::new(false),
        }
    }

    /// Streams given by the caller; not interactive, nothing to read.
    pub fn of_streams(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self {
            out: Mutex::new(out),
            err: Mutex::new(err),
            input: Mutex::new(Box::new(std::io::empty())),
            interactive: false,
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_interactive(&self) -> bool {
        self.interactive
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// What a console printed to stdout.
    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn text(&self) -> String {
            let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A console and what it prints; words for people go nowhere.
    pub(crate) fn captured() -> (Console, Captured) {
        let out = Captured::default();
        (Console::of_streams(Box::new(out.clone()), Box::new(std::io::sink())), out)
    }

    #[test]
    fn a_reader_that_went_away_is_remembered_and_fails_nothing() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let console = Console::of_streams(Box::new(Gone), Box::new(std::io::sink()));
        console.line("x");
        assert!(console.is_closed());
    }
}
