//! Lines at the foot of a terminal that are drawn again in place: what is waited for, how far a push is.
//!
//! Nothing is written here; each change answers the text that brings the terminal from the former picture
//! to the new one. The cursor stays at the beginning of the first live line.

use crate::render;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
/// More lines than this push what was printed out of sight.
const LINES_MAX: usize = 10;
const BAR_COLUMNS: usize = 24;
/// From the cursor to the end of the screen.
const ERASE: &str = "\r\x1b[J";

/// What a live line shows.
#[derive(Debug, Clone)]
pub(crate) enum Progress {
    /// Something whose end is not known.
    Spinner(String),
    /// Bytes of a known number.
    Bytes { label: String, done: Arc<AtomicU64>, total: u64 },
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) columns: usize,
    rows: usize,
}

/// The live lines of one terminal.
#[derive(Debug)]
pub(super) struct Area {
    terminal: OwnedFd,
    lines: BTreeMap<usize, Progress>,
    frame: usize,
    drawn: bool,
    /// Whether the line above is complete; a question's is not.
    fresh: bool,
}

impl Area {
    /// None where the terminal cannot be kept.
    pub(super) fn on(terminal: BorrowedFd<'_>) -> Option<Self> {
        let terminal = terminal.try_clone_to_owned().ok()?;
        Some(Self { terminal, lines: BTreeMap::new(), frame: 0, drawn: false, fresh: true })
    }

    pub(super) fn set(&mut self, key: usize, progress: Progress) {
        self.lines.insert(key, progress);
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.lines.remove(&key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.lines.clear();
    }

    pub(super) fn advance(&mut self) {
        self.frame += 1;
    }

    /// The text that shows a change.
    pub(super) fn changed(&mut self, change: impl FnOnce(&mut Self)) -> String {
        change(self);
        format!("{}{}", self.erased(), self.draw())
    }

    /// What goes before and after something else that is printed.
    pub(super) fn around(&mut self, fresh: bool) -> (String, String) {
        let before = self.erased().to_owned();
        self.fresh = fresh;
        (before, self.draw())
    }

    fn erased(&mut self) -> &'static str {
        if std::mem::take(&mut self.drawn) { ERASE } else { "" }
    }

    fn draw(&mut self) -> String {
        let size = size(self.terminal.as_fd()).unwrap_or(Size { columns: 80, rows: 24 });
        let count = LINES_MAX.min(size.rows.saturating_sub(1)).min(self.lines.len());
        if count == 0 || !self.fresh {
            return String::new();
        }
        self.drawn = true;
        // A full last column may wrap.
        let columns = size.columns.saturating_sub(1);
        let lines = self.lines.values().take(count);
        let lines: Vec<_> = lines.map(|it| render::cut(&it.text(self.frame), columns)).collect();
        let up = if count > 1 { format!("\x1b[{}A", count - 1) } else { String::new() };
        format!("{}\r{up}", lines.join("\n"))
    }
}

impl Progress {
    fn text(&self, frame: usize) -> String {
        match self {
            Self::Spinner(text) => format!("{} {text}", SPINNER[frame % SPINNER.len()]),
            Self::Bytes { label, done, total } => {
                let done = done.load(Ordering::Relaxed).min(*total);
                let share = |of: u64| (done * of).checked_div(*total).unwrap_or(of);
                let full = share(BAR_COLUMNS as u64) as usize;
                let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR_COLUMNS - full));
                let (percent, total) = (share(100), render::decimal_size(*total));
                format!("{label} {bar} {percent:>3} % of {total}")
            }
        }
    }
}

/// None for what has no size, such as a terminal of a test.
pub(super) fn size(terminal: BorrowedFd<'_>) -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    let known = 0 < size.ws_col && 0 < size.ws_row;
    known.then(|| Size { columns: size.ws_col.into(), rows: size.ws_row.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> Area {
        // No terminal: 80 columns and 24 rows are taken for granted.
        let file = tempfile::tempfile().expect("a temporary file");
        Area::on(file.as_fd()).expect("it can be kept")
    }

    #[test]
    fn lines_are_drawn_below_what_is_printed_and_the_cursor_rests_above_them() {
        let mut area = area();
        assert_eq!(area.changed(|it| it.set(0, Progress::Spinner("a".into()))), "⠋ a\r");
        let two = area.changed(|it| it.set(1, Progress::Spinner("b".into())));
        assert_eq!(two, "\r\x1b[J⠋ a\n⠋ b\r\x1b[1A");
        assert_eq!(area.around(true), (ERASE.to_owned(), "⠋ a\n⠋ b\r\x1b[1A".to_owned()));
        assert_eq!(area.changed(Area::clear), ERASE);
        assert_eq!(area.changed(Area::advance), "", "nothing is there to draw or to erase");
    }

    #[test]
    fn a_question_is_not_drawn_over() {
        let mut area = area();
        area.set(0, Progress::Spinner("a".into()));
        assert_eq!(area.around(false), (String::new(), String::new()));
        assert_eq!(area.changed(Area::advance), "");
    }

    #[test]
    fn a_line_is_cut_to_the_terminal_and_there_are_not_too_many() {
        let mut area = area();
        for key in 0..50 {
            area.set(key, Progress::Spinner("x".repeat(200)));
        }
        let text = area.changed(Area::advance);
        assert_eq!(text.lines().count(), LINES_MAX);
        assert_eq!(text.lines().next().map(|line| line.chars().count()), Some(79));
    }

    #[test]
    fn a_bar_is_full_at_the_end_and_for_nothing() {
        let bar = |done: u64, total| {
            let done = Arc::new(AtomicU64::new(done));
            Progress::Bytes { label: "Pushing".into(), done, total }.text(0)
        };
        assert_eq!(bar(1, 2), "Pushing ████████████░░░░░░░░░░░░  50 % of 1 kB");
        assert!(bar(7, 7).contains("100 %") && bar(0, 0).contains("100 %"));
    }
}
