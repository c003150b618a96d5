//! What an update changes, line by line of the config's JSON, as flyctl shows it.

use super::super::Context;
use super::shape;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use perch_api::wire::{Machine, MachineConfig};

/// Lines that stay around those that change.
const AROUND: usize = 2;
/// Longer configs are compared as a whole: the work grows with the product of both lengths.
const LINES_MAX: usize = 5_000;

/// Shows what changes and asks whether it may.
///
/// # Errors
/// When nothing changes, and as all questions.
pub(super) fn confirm(
    context: &Context<'_>,
    machine: &Machine,
    new: &MachineConfig,
) -> Outcome<bool> {
    let old = shape::config(&machine.config)?.pretty("  ");
    let new = shape::config(new)?.pretty("  ");
    if old == new {
        return Err(Failure::new("no config changes found")
            .hint("Name what to change, such as `--env NAME=VALUE` or `--vm-memory 512`"));
    }
    let console = context.console;
    let (id, name) =
        (console.paint(Style::Bold, &machine.id), console.paint(Style::Bold, &machine.name));
    console.line(format!("Configuration changes to be applied to machine: {id} ({name})\n"));
    for line in difference(&old, &new) {
        console.line(match line.as_bytes().first() {
            Some(b'+') => console.paint(Style::Green, &line),
            Some(b'-') => console.paint(Style::Red, &line),
            _ => line,
        });
    }
    console.line("");
    context.confirm("Apply changes?")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Same,
    Removed,
    Added,
}

fn difference(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let steps = steps(&old, &new);
    let near = |at: usize| {
        let from = at.saturating_sub(AROUND);
        let to = (at + AROUND + 1).min(steps.len());
        steps[from..to].iter().any(|(step, _)| *step != Step::Same)
    };
    let mut lines = Vec::new();
    let mut skipped = 0;
    for (at, (step, line)) in steps.iter().enumerate() {
        if *step == Step::Same && !near(at) {
            skipped += 1;
            continue;
        }
        lines.extend(left_out(&mut skipped));
        let mark = match step {
            Step::Same => ' ',
            Step::Removed => '-',
            Step::Added => '+',
        };
        lines.push(format!("{mark} \t{line}"));
    }
    lines.extend(left_out(&mut skipped));
    lines
}

fn left_out(skipped: &mut usize) -> Option<String> {
    let count = std::mem::take(skipped);
    (0 < count).then(|| format!("  \t... // {count} identical lines"))
}

/// The shortest way from one text to the other, removals before additions.
fn steps<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(Step, &'a str)> {
    let ahead = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let behind = |(a, b): &(&&str, &&str)| a == b;
    let behind =
        old[ahead..].iter().rev().zip(new[ahead..].iter().rev()).take_while(behind).count();
    let (a, b) = (&old[ahead..old.len() - behind], &new[ahead..new.len() - behind]);
    let mut all: Vec<_> = old[..ahead].iter().map(|line| (Step::Same, *line)).collect();
    match LINES_MAX < a.len() || LINES_MAX < b.len() {
        true => {
            all.extend(a.iter().map(|line| (Step::Removed, *line)));
            all.extend(b.iter().map(|line| (Step::Added, *line)));
        }
        false => all.extend(middle(a, b)),
    }
    all.extend(old[old.len() - behind..].iter().map(|line| (Step::Same, *line)));
    all
}

fn middle<'a>(a: &[&'a str], b: &[&'a str]) -> Vec<(Step, &'a str)> {
    // The longest common rest from each place on.
    let mut rest = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            rest[i][j] = match a[i] == b[j] {
                true => rest[i + 1][j + 1] + 1,
                false => rest[i + 1][j].max(rest[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut steps) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            steps.push((Step::Same, a[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || rest[i][j + 1] <= rest[i + 1][j]) {
            steps.push((Step::Removed, a[i]));
            i += 1;
        } else {
            steps.push((Step::Added, b[j]));
            j += 1;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_stand_between_two_that_stay_and_the_rest_is_counted() {
        let old = "{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3,\n  \"d\": 4,\n  \"e\": 5\n}";
        let new = "{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 7,\n  \"d\": 4,\n  \"e\": 5\n}";
        assert_eq!(
            difference(old, new),
            [
                "  \t... // 1 identical lines",
                "  \t  \"a\": 1,",
                "  \t  \"b\": 2,",
                "- \t  \"c\": 3,",
                "+ \t  \"c\": 7,",
                "  \t  \"d\": 4,",
                "  \t  \"e\": 5",
                "  \t... // 1 identical lines",
            ]
        );
        assert_eq!(difference("a\nb", "a\nb\nc"), ["  \ta", "  \tb", "+ \tc"]);
        assert_eq!(difference("", "x"), ["+ \tx"]);
    }
}
