//! The status lines of a rollout: one line per change, `GLYPH [1/2] TEXT`. On a terminal what is under way
//! is a live line with a spinner, and only what came of it stays.

use super::super::Context;
use crate::console::{Console, Progress, Style};

/// Where one Machine stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    None,
    Running,
    Done,
    Failed,
}

/// The line of one Machine among several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) index: usize,
    pub(super) total: usize,
}

impl Line {
    pub(super) fn print(self, context: &Context<'_>, mark: Mark, text: &str) {
        let console = context.console;
        if matches!(mark, Mark::Running) && console.is_live() {
            return self.show(context, text);
        }
        console.settle(self.index);
        console.line(self.text(console, mark, text));
    }

    /// What is under way, on a terminal only.
    pub(super) fn show(self, context: &Context<'_>, text: &str) {
        context.console.live(self.index, Progress::Spinner(self.numbered(text)));
    }

    /// Nothing of this Machine is under way any more.
    pub(super) fn end(self, context: &Context<'_>) {
        context.console.settle(self.index);
    }

    fn text(self, console: &Console, mark: Mark, text: &str) -> String {
        let glyph = match mark {
            Mark::None => " ".to_owned(),
            Mark::Running => ">".to_owned(),
            Mark::Done => console.paint(Style::Green, "✔"),
            Mark::Failed => console.paint(Style::Red, "✖"),
        };
        format!("{glyph} {}", self.numbered(text))
    }

    /// The index is there only when there are several, padded with zeros to one width.
    fn numbered(self, text: &str) -> String {
        if self.total < 2 {
            return text.to_owned();
        }
        let width = self.total.to_string().len();
        format!("[{:0width$}/{}] {text}", self.index + 1, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::captured;

    #[test]
    fn the_index_is_padded_and_left_out_when_alone() {
        let console = captured().0;
        assert_eq!(Line { index: 0, total: 1 }.text(&console, Mark::Done, "x"), "✔ x");
        assert_eq!(Line { index: 1, total: 12 }.text(&console, Mark::Running, "x"), "> [02/12] x");
    }
}
