//! The streams of one invocation: data out, words err, and the terminal for questions.
//!
//! Writing never fails a command: when the reader of our output has gone (`fly logs | head`), the
//! console remembers it, and long-running commands ask [`Console::is_closed`].
//!
//! Colours, spinners and bars are for terminals only; into a pipe or a file go plain lines. What moves
//! stands below the last line, on stderr, and is taken away before anything else is written:
//!
//! ```text
//!   Machine 148e [app] was created                            a line that stays
//! ⠹ Waiting for 148e [app] to have state: started             live: drawn again ten times a second
//! ```
//!
//! The cursor is never hidden and rests where the live lines begin: a command that dies leaves nothing to
//! restore.

mod live;

use crate::env::{self, Environment};
use live::Area;
pub(crate) use live::Progress;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How often what moves is drawn again.
const FRAME: Duration = Duration::from_millis(100);
/// The live line of what the command waits for; those of Machines have their numbers.
const TASK: usize = usize::MAX;

/// Standard streams, or their stand-ins in tests.
pub struct Console {
    screen: Mutex<Screen>,
    input: Mutex<Box<dyn BufRead + Send>>,
    piped: bool,
    /// Where answers come from, if stdin and stdout are terminals.
    terminal: Option<File>,
    live: bool,
    out_colored: bool,
    err_colored: bool,
    columns: Option<usize>,
    closed: AtomicBool,
    /// Something moves.
    moved: Notify,
}

struct Screen {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    area: Option<Area>,
}

/// The ways out of a console, away from it.
pub(crate) struct Output {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Out,
    Err,
}

/// How a word is set off, where colours are; none carries a meaning of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    Bold = 1,
    Faint = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
    Cyan = 36,
}

impl Console {
    /// The process's own streams.
    pub fn of_process(env: &Environment) -> Self {
        Self::on(std::io::stdin(), std::io::stdout(), std::io::stderr(), env)
    }

    /// Streams that may be terminals. Interactive means that stdin and stdout are.
    pub fn on(
        input: impl Read + AsFd + Send + 'static,
        out: impl Write + AsFd + Send + 'static,
        err: impl Write + AsFd + Send + 'static,
        env: &Environment,
    ) -> Self {
        let able = env.get(env::TERM) != Some("dumb");
        let (out_terminal, err_terminal) = (is_terminal(&out), is_terminal(&err));
        let area = (able && out_terminal && err_terminal).then(|| Area::on(err.as_fd())).flatten();
        let columns =
            out_terminal.then(|| live::size(out.as_fd())).flatten().map(|size| size.columns);
        let interactive = out_terminal && is_terminal(&input);
        // Without a descriptor to spare nobody can be asked.
        let terminal = || input.as_fd().try_clone_to_owned().ok().map(File::from);
        Self {
            piped: is_piped(&input),
            terminal: interactive.then(terminal).flatten(),
            input: Mutex::new(Box::new(BufReader::new(input))),
            live: area.is_some(),
            out_colored: colored(env, able && out_terminal),
            err_colored: colored(env, able && err_terminal),
            columns,
            screen: Mutex::new(Screen { out: Box::new(out), err: Box::new(err), area }),
            closed: AtomicBool::new(false),
            moved: Notify::new(),
        }
    }

    /// Streams given by the caller; not interactive, nothing to read, no colours.
    pub fn of_streams(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Self {
        Self {
            screen: Mutex::new(Screen { out, err, area: None }),
            input: Mutex::new(Box::new(std::io::empty())),
            piped: false,
            terminal: None,
            live: false,
            out_colored: false,
            err_colored: false,
            columns: None,
            closed: AtomicBool::new(false),
            moved: Notify::new(),
        }
    }

    /// The same with something to read, as from a pipe.
    #[must_use]
    pub fn with_input(mut self, input: Box<dyn BufRead + Send>) -> Self {
        self.input = Mutex::new(input);
        self.piped = true;
        self
    }

    /// Whether something other than a terminal or `/dev/null` is to be read.
    pub(crate) fn is_piped(&self) -> bool {
        self.piped
    }

    /// Reads all of the input.
    ///
    /// # Errors
    /// When it cannot be read, has more than so many bytes, or is no text.
    pub(crate) fn read_all(&self, bytes_max: u64) -> std::io::Result<String> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        input.by_ref().take(bytes_max + 1).read_to_string(&mut text)?;
        if bytes_max < text.len() as u64 {
            let text = format!("Input exceeded max length of {bytes_max} bytes");
            return Err(std::io::Error::other(text));
        }
        Ok(text)
    }

    pub(crate) fn is_interactive(&self) -> bool {
        self.terminal.is_some()
    }

    /// Where answers come from.
    pub(crate) fn terminal(&self) -> Option<&File> {
        self.terminal.as_ref()
    }

    /// Whether the reader of our output has gone away.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether lines can be drawn again in place.
    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Width of the terminal that data goes to.
    pub(crate) fn columns(&self) -> Option<usize> {
        self.columns
    }

    /// Prints a line of data.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        self.write(Stream::Out, &format!("{}\n", text.as_ref()));
    }

    /// Prints data as it is.
    pub(crate) fn text(&self, text: &str) {
        self.write(Stream::Out, text);
    }

    /// The input, for who reads it in its own way; there is none afterwards.
    pub(crate) fn take_input(&self) -> Box<dyn BufRead + Send> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *input, Box::new(std::io::empty()))
    }

    /// Both ways out, for who writes in its own way. Until they are given back, whatever else is printed is lost: it waits
    /// for no reader.
    pub(crate) fn take_output(&self) -> Output {
        let mut screen = self.screen();
        let out = std::mem::replace(&mut screen.out, Box::new(std::io::sink()));
        let err = std::mem::replace(&mut screen.err, Box::new(std::io::sink()));
        Output { out, err }
    }

    /// Takes back what [`Console::take_output`] gave, with what became of the last write.
    pub(crate) fn give_output(&self, output: Output, result: std::io::Result<()>) {
        let mut screen = self.screen();
        (screen.out, screen.err) = (output.out, output.err);
        drop(screen);
        self.remember(result);
    }

    /// Prints words as they are.
    pub(crate) fn complaint(&self, text: &str) {
        self.write(Stream::Err, text);
    }

    /// Prints a line of words for a person.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        self.write(Stream::Err, &format!("{}\n", text.as_ref()));
    }

    /// Prints a line of words in a style.
    pub(crate) fn styled_note(&self, style: Style, text: &str) {
        self.note(painted(self.err_colored, style, text));
    }

    /// Prints `Error: …`.
    pub(crate) fn error(&self, text: &str) {
        self.note(format!("{}{text}", painted(self.err_colored, Style::Red, "Error: ")));
    }

    /// A part of a line of data in a style.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        painted(self.out_colored, style, text)
    }

    /// Shows on a terminal what is waited for, until the guard is dropped.
    pub(crate) fn waiting(&self, text: impl Into<String>) -> Waiting<'_> {
        self.live(TASK, Progress::Spinner(text.into()));
        Waiting(self)
    }

    /// Shows on a terminal how far something is, until the guard is dropped.
    pub(crate) fn progress(&self, progress: Progress) -> Waiting<'_> {
        self.live(TASK, progress);
        Waiting(self)
    }

    /// Sets the live line of a number.
    pub(crate) fn live(&self, key: usize, progress: Progress) {
        self.redraw(|area| area.set(key, progress));
        self.moved.notify_one();
    }

    /// Takes the live line of a number away.
    pub(crate) fn settle(&self, key: usize) {
        self.redraw(|area| area.remove(key));
    }

    /// Takes all live lines away.
    pub(crate) fn settle_all(&self) {
        self.redraw(Area::clear);
    }

    /// Does something while what moves is drawn.
    pub(crate) async fn animate<T>(&self, work: impl Future<Output = T>) -> T {
        if !self.live {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = self.frame() => {}
            }
        }
    }

    /// The next picture; while nothing moves nothing wakes us.
    async fn frame(&self) {
        if self.screen().area.as_ref().is_none_or(Area::is_empty) {
            return self.moved.notified().await;
        }
        tokio::time::sleep(FRAME).await;
        self.redraw(Area::advance);
    }

    fn redraw(&self, change: impl FnOnce(&mut Area)) {
        let mut screen = self.screen();
        let Screen { err, area: Some(area), .. } = &mut *screen else { return };
        let text = area.changed(change);
        let result = err.write_all(text.as_bytes()).and_then(|()| err.flush());
        self.remember(result);
    }

    fn write(&self, stream: Stream, text: &str) {
        let result = self.screen().write(stream, text);
        self.remember(result);
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, result: std::io::Result<()>) {
        if result.is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }
}

impl Output {
    /// Prints data that need not be text.
    pub(crate) fn output_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Prints somebody else's words, which need not be text.
    pub(crate) fn complaint_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.err.write_all(bytes)?;
        self.err.flush()
    }
}

impl Drop for Console {
    /// A command that panics takes its live lines with it.
    fn drop(&mut self) {
        self.settle_all();
    }
}

/// A live line that goes when this is dropped.
pub(crate) struct Waiting<'a>(&'a Console);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.settle(TASK);
    }
}

impl Screen {
    /// Live lines make room first and come back below.
    fn write(&mut self, stream: Stream, text: &str) -> std::io::Result<()> {
        let (before, after) = match &mut self.area {
            Some(area) => area.around(text.ends_with('\n')),
            None => Default::default(),
        };
        self.err.write_all(before.as_bytes())?;
        let to = match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        };
        to.write_all(text.as_bytes())?;
        to.flush()?;
        self.err.write_all(after.as_bytes())?;
        self.err.flush()
    }
}

/// As flyctl decides it: a character device has nothing for us.
fn is_piped(stream: &impl AsFd) -> bool {
    let stat = rustix::fs::fstat(stream);
    stat.is_ok_and(|it| !rustix::fs::FileType::from_raw_mode(it.st_mode).is_char_device())
}

fn is_terminal(stream: &impl AsFd) -> bool {
    rustix::termios::isatty(stream)
}

/// flyctl's rule: `CLICOLOR_FORCE` wins, then `NO_COLOR` and `CLICOLOR=0`, then what the stream is.
fn colored(env: &Environment, able: bool) -> bool {
    let forced = env.get(env::CLICOLOR_FORCE).is_some_and(|value| value != "0");
    let disabled = env.get(env::NO_COLOR).is_some() || env.get(env::CLICOLOR) == Some("0");
    forced || (able && !disabled)
}

fn painted(colored: bool, style: Style, text: &str) -> String {
    match colored {
        true => format!("\x1b[{}m{text}\x1b[0m", style as u8),
        false => text.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;
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

    /// As [`captured`], with the colours of a terminal.
    pub(crate) fn colorful() -> (Console, Captured) {
        let (mut console, out) = captured();
        console.out_colored = true;
        (console, out)
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

    #[test]
    fn colours_follow_the_terminal_unless_variables_say_otherwise() {
        let colored = |vars: &[(&str, &str)], able| {
            let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            colored(&Environment { dir: "/".into(), vars: BTreeMap::from_iter(vars) }, able)
        };
        assert!(colored(&[], true) && !colored(&[], false));
        assert!(!colored(&[("NO_COLOR", "1")], true) && colored(&[("NO_COLOR", "")], true));
        assert!(!colored(&[("CLICOLOR", "0")], true) && colored(&[("CLICOLOR", "1")], true));
        assert!(colored(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false));
        assert!(!colored(&[("CLICOLOR_FORCE", "0")], false));
    }
}
