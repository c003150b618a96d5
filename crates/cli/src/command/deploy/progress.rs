//! The status lines of a rollout: one line per change, `GLYPH [1/2] TEXT`.

use super::super::Context;

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
        context.console.line(self.text(mark, text));
    }

    /// The index is there only when there are several, padded with zeros to one width.
    fn text(self, mark: Mark, text: &str) -> String {
        let glyph = match mark {
            Mark::None => " ",
            Mark::Running => ">",
            Mark::Done => "✔",
            Mark::Failed => "✖",
        };
        if self.total < 2 {
            return format!("{glyph} {text}");
        }
        let width = self.total.to_string().len();
        format!("{glyph} [{:0width$}/{}] {text}", self.index + 1, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_padded_and_left_out_when_alone() {
        assert_eq!(Line { index: 0, total: 1 }.text(Mark::Done, "x"), "✔ x");
        assert_eq!(Line { index: 1, total: 12 }.text(Mark::Running, "x"), "> [02/12] x");
    }
}
