//! Reads a Rust file well enough to check rules on it: text without comments and literals, lines
//! of tests, functions with their lengths. Not a parser; it knows strings, comments and braces.

/// A Rust file, three times with equal line numbers.
pub(crate) struct Source {
    /// As written.
    pub(crate) text: String,
    /// Comments and the contents of literals replaced by spaces.
    pub(crate) code: String,
    /// For each line, whether it is inside `#[cfg(test)]` or a file of tests.
    pub(crate) is_test: Vec<bool>,
}

/// One function and where its body is.
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// Line of the `fn` keyword, from 1.
    pub(crate) line: usize,
    /// Lines from `fn` to the closing brace, both counted.
    pub(crate) length: usize,
}

impl Source {
    /// Reads `text`; `all_test` marks a file that is a test as a whole.
    pub(crate) fn new(text: String, all_test: bool) -> Self {
        let code = mask(&text);
        let is_test = test_lines(&code, all_test);
        Self { text, code, is_test }
    }

    /// Lines of code outside tests, with their numbers from 1.
    pub(crate) fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().filter(|(i, _)| !self.is_test[*i]).map(|(i, l)| (i + 1, l))
    }

    /// All functions that have a body.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let bytes = self.code.as_bytes();
        words(&self.code)
            .filter(|(_, word)| *word == "fn")
            .filter_map(|(at, _)| {
                let name: String = self.code[at + 2..]
                    .trim_start()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let open = body_start(bytes, at)?;
                let close = matching_brace(bytes, open)?;
                let line = line_of(bytes, at);
                (!name.is_empty()).then(|| Function {
                    name,
                    line,
                    length: line_of(bytes, close) - line + 1,
                })
            })
            .collect()
    }
}

/// Identifiers and keywords of a text with their offsets.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(move |c| !is_word(c)).filter(|word| !word.is_empty()).map(|word| {
        let at = word.as_ptr() as usize - code.as_ptr() as usize;
        (at, word)
    })
}

/// Where the body's brace is, or `None` for a declaration or a function type.
fn body_start(code: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, byte) in code.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' | b'}' | b',' | b'=' if depth == 0 => return None,
            _ if depth < 0 => return None,
            _ => {}
        }
    }
    None
}

fn matching_brace(code: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn line_of(code: &[u8], at: usize) -> usize {
    code[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn test_lines(code: &str, all_test: bool) -> Vec<bool> {
    let mut lines = vec![all_test; code.lines().count()];
    let bytes = code.as_bytes();
    for (at, _) in code.match_indices("#[cfg(test)]") {
        let after = at + "#[cfg(test)]".len();
        let end = body_start(bytes, after).and_then(|open| matching_brace(bytes, open));
        let Some(end) = end else { continue };
        let (first, last) = (line_of(bytes, at), line_of(bytes, end));
        lines[first - 1..last].fill(true);
    }
    lines
}

/// Replaces comments and literals by spaces; newlines stay.
fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        blank(&mut out[at..end.unwrap_or(at)]);
        at = end.unwrap_or(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

/// The end of the comment or literal that starts at `at`, if one starts there.
fn literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => Some(at + find(rest, b"\n").unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(at + find(rest, b"*/").map_or(rest.len(), |n| n + 2)),
        [b'"', ..] => Some(at + 1 + quoted_len(&rest[1..], b'"')),
        [b'r', b'"' | b'#', ..] if !after_word => raw_end(bytes, at, 1),
        [b'b', b'r', b'"' | b'#', ..] if !after_word => raw_end(bytes, at, 2),
        [b'\'', b'\\', ..] => Some(at + 1 + quoted_len(&rest[1..], b'\'')),
        [b'\'', ..] => char_end(rest).map(|n| at + n),
        _ => None,
    }
}

/// The length of a character literal; `None` for a lifetime.
fn char_end(rest: &[u8]) -> Option<usize> {
    let close = rest.iter().skip(2).take(4).position(|byte| *byte == b'\'')? + 2;
    let inner = std::str::from_utf8(&rest[1..close]).ok()?;
    (inner.chars().count() == 1).then_some(close + 1)
}

/// The length up to and with the closing quote.
fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_end(bytes: &[u8], at: usize, prefix: usize) -> Option<usize> {
    let hashes = bytes[at + prefix..].iter().take_while(|byte| **byte == b'#').count();
    let open = at + prefix + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let rest = &bytes[open + 1..];
    Some(open + 1 + find(rest, &close).map_or(rest.len(), |n| n + close.len()))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lifetimes_stay() {
        let code = mask("let a = \"fn {\"; // unsafe\nfn f<'a>(x: &'a str) { '{' }\n");
        assert!(!code.contains("unsafe"));
        assert!(code.contains("<'a>"));
        assert_eq!(code.matches('{').count(), 1);
    }

    #[test]
    fn raw_strings_end_at_their_own_hashes() {
        let code = mask("r#\"a \" unsafe\"# + b");
        assert_eq!(code.trim(), "+ b");
    }

    #[test]
    fn a_function_is_counted_from_its_keyword_to_its_brace() {
        let source = Source::new("trait T { fn d(); }\nfn f() {\n  g();\n}\n".into(), false);
        let functions = source.functions();
        assert_eq!(functions.len(), 1);
        assert_eq!((functions[0].line, functions[0].length), (2, 3));
    }

    #[test]
    fn lines_of_a_test_module_are_not_product_lines() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  use x;\n}\nfn b() {}\n";
        let source = Source::new(text.into(), false);
        let lines: Vec<usize> = source.product_lines().map(|(n, _)| n).collect();
        assert_eq!(lines, [1, 6]);
    }
}
