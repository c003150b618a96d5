//! Splitting a command into words by the rules of the library that flyctl uses: quotes, backslashes and
//! comments as in a shell, nothing else of a shell.

/// The words, or none when a quote or a backslash is left open.
///
/// Inside double quotes a backslash makes any next character literal; a `#` at the start of a word makes
/// the rest of the line a comment.
pub(crate) fn split(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().push(chars.next()?),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t' | '\r' | '\n') => words.extend(word.take()),
            (None, '#') if word.is_none() => drop(chars.by_ref().find(|c| *c == '\n')),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_quote_or_backslash_is_refused() {
        for command in ["a 'b", "a \"b\\", "a \\", "'"] {
            assert_eq!(split(command), None, "{command}");
        }
    }

    /// T-84.
    #[test]
    fn commands_are_split_as_flyctl_splits_them() {
        let check = |command: &str, words: &[&str]| {
            assert_eq!(split(command), Some(words.iter().map(|w| (*w).to_owned()).collect()));
        };
        check("", &[]);
        check(r#"sh -c "echo \"x y\"" '' a\ b"#, &["sh", "-c", "echo \"x y\"", "", "a b"]);
        check(r#""a\n" 'a\n'"#, &["an", "a\\n"]);
        check("a#b # c 'd\ne", &["a#b", "e"]);
        check("a\u{a0}b\u{b}c", &["a\u{a0}b\u{b}c"]);
    }
}
