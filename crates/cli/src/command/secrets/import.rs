//! The lines that `secrets import` reads, as flyctl reads them.
//!
//! `NAME=VALUE` a line; `#` begins a comment, at a line's start or after a value; quotes around a value go; three double
//! quotes hold a value of several lines. Where flyctl loses a value without a word (three quotes that nobody closes) or
//! crashes (a value of one quote), this refuses or keeps it.

use std::collections::BTreeMap;

const TRIPLE: &str = "\"\"\"";

/// A value of several lines, not ended yet.
struct Open<'t> {
    name: &'t str,
    value: String,
}

/// Reads all pairs; the last of a name wins.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut values = BTreeMap::new();
    let mut open: Option<Open<'_>> = None;
    for line in text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)) {
        if let Some(mut value) = open.take() {
            match line.strip_suffix(TRIPLE) {
                Some(last) => {
                    values.insert(value.name.to_owned(), value.value + last);
                }
                None => {
                    value.value.push_str(line);
                    value.value.push('\n');
                    open = Some(value);
                }
            }
            continue;
        }
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| {
            format!("Secrets must be provided as NAME=VALUE pairs ({line} is invalid)")
        })?;
        let (name, value) = (name.trim(), without_comment(value.trim_start_matches(' ')));
        match value.strip_prefix(TRIPLE) {
            Some(rest) => match rest.strip_suffix(TRIPLE) {
                Some(inner) => drop(values.insert(name.to_owned(), inner.to_owned())),
                None => open = Some(Open { name, value: format!("{rest}\n") }),
            },
            None => drop(values.insert(name.to_owned(), unquoted(value).to_owned())),
        }
    }
    match open {
        Some(Open { name, .. }) => Err(format!("the value of {name} has no closing {TRIPLE}")),
        None => Ok(values),
    }
}

/// A `#` begins a comment unless an odd number of quotes stands before it.
fn without_comment(value: &str) -> &str {
    match value.split_once('#') {
        Some((before, _)) if before.matches('"').count() % 2 == 0 => before.trim_end_matches(' '),
        Some(_) | None => value,
    }
}

fn unquoted(value: &str) -> &str {
    let inner = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        assert_eq!(parse(text), Ok(expected.iter().map(pair).collect()), "{text:?}");
    }

    #[test]
    fn a_line_without_a_value_is_named() {
        let error = parse("A=b\nnonsense\nC=d").expect_err("no pair");
        assert_eq!(error, "Secrets must be provided as NAME=VALUE pairs (nonsense is invalid)");
        let error = parse("A=\"\"\"b\nc\n").expect_err("not closed");
        assert_eq!(error, "the value of A has no closing \"\"\"");
    }

    #[test]
    fn comments_empty_lines_and_other_line_ends_are_passed_over() {
        check("\n# A comment\n  \nA=b\n# Another\nC=d\n", &[("A", "b"), ("C", "d")]);
        check("A=b\r\nC=d\r\n", &[("A", "b"), ("C", "d")]);
        check("", &[]);
        check("A=\"b c\" # comment", &[("A", "b c")]);
        check("A=b # comment\nC=\"d # e\"\nE=#f", &[("A", "b"), ("C", "d # e"), ("E", "")]);
    }

    #[test]
    fn quotes_and_space_around_a_value_go() {
        check("A = b\nC=\"d e\"\nF='g'", &[("A", "b"), ("C", "d e"), ("F", "g")]);
        check("A=b,c\nD=e f\nG=h=i", &[("A", "b,c"), ("D", "e f"), ("G", "h=i")]);
        check("A=\"\nB='\nC=\"d'", &[("A", "\""), ("B", "'"), ("C", "\"d'")]);
    }

    #[test]
    fn three_quotes_hold_several_lines() {
        check("A=\"\"\"b\nc\n\nd\"\"\"\nE=f", &[("A", "b\nc\n\nd"), ("E", "f")]);
        check("A=\"\"\"b\"\"\"\nC = \"\"\"  d  \"\"\"", &[("A", "b"), ("C", "  d  ")]);
        check("A=\"\"\"\"\"\"", &[("A", "")]);
        check("A=\"\"\"\nb=c\n# d\n\"\"\"", &[("A", "\nb=c\n# d\n")]);
    }
}
