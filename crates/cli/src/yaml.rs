//! JSON values as YAML text, for `config show`, `config save` and `launch --yaml`, word for word as flyctl's converter writes them: plain where no YAML
//! parser of any version reads a plain word as something else, blocks for several lines, else double
//! quotes.

use serde_json::Value;

/// Words that mean something, in small letters.
const WORDS: [&str; 17] = [
    "", "~", "null", "true", "false", "y", "yes", "n", "no", "on", "off", ".inf", "+.inf", "-.inf",
    ".nan", "<<", "=",
];

/// The whole document.
pub(crate) fn of(value: &Value) -> String {
    let mut out = String::new();
    if is_nested(value) {
        nested(&mut out, value, 0);
    } else {
        plain(&mut out, value, 0);
        out.push('\n');
    }
    out
}

fn is_nested(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

/// Writes an object or a list, whose first line is indented already.
fn nested(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) => {
            for (index, (key, value)) in map.iter().enumerate() {
                begin(out, index, indent);
                // A key of several lines would be a block too; in quotes it is the same key.
                out.push_str(&if must_quote(key) || key.contains('\n') {
                    quoted(key)
                } else {
                    key.clone()
                });
                out.push(':');
                if is_nested(value) {
                    out.push('\n');
                    out.push_str(&" ".repeat(indent + 2));
                    nested(out, value, indent + 2);
                } else {
                    out.push(' ');
                    plain(out, value, indent);
                    out.push('\n');
                }
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                begin(out, index, indent);
                out.push_str("- ");
                if is_nested(value) {
                    nested(out, value, indent + 2);
                } else {
                    plain(out, value, indent);
                    out.push('\n');
                }
            }
        }
        _ => {}
    }
}

fn begin(out: &mut String, index: usize, indent: usize) {
    if 0 < index {
        out.push_str(&" ".repeat(indent));
    }
}

fn plain(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(text) if text.contains('\n') && can_be_block(text) => {
            block(out, text, indent + 2)
        }
        Value::String(text) if text.contains('\n') || must_quote(text) => {
            out.push_str(&quoted(text))
        }
        Value::String(text) => out.push_str(text),
        // Empty, or a number or a word, which YAML writes as JSON does.
        other => out.push_str(&other.to_string()),
    }
}

fn can_be_block(text: &str) -> bool {
    let start = text.trim_start_matches('\n');
    !start.is_empty()
        && !start.starts_with([' ', '\t'])
        && !text.chars().any(|c| is_special(c) && !matches!(c, '\t' | '\n'))
}

fn block(out: &mut String, text: &str, indent: usize) {
    out.push('|');
    let (body, mark) = match text.strip_suffix('\n') {
        None => (text, "-"),
        Some(body) if body.ends_with('\n') => (body, "+"),
        Some(body) => (body, ""),
    };
    out.push_str(mark);
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(&" ".repeat(indent));
            out.push_str(line);
        }
    }
}

fn must_quote(text: &str) -> bool {
    let small = text.to_ascii_lowercase();
    WORDS.contains(&small.as_str())
        || is_number(&small)
        || is_moment(&small)
        || text.starts_with(|c| ",[]{}#&*!|>'\"%@` \t".contains(c))
        || ["-", "---", "...", "?"]
            .iter()
            .any(|mark| text.strip_prefix(mark).is_some_and(ends_word))
        || after_each(text, ':').any(ends_word)
        || after_each(text, ' ')
            .chain(after_each(text, '\t'))
            .any(|it| it.is_empty() || it.starts_with('#'))
        || text.chars().any(is_special)
}

fn ends_word(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with([' ', '\t'])
}

/// What stands behind each place where a character is.
fn after_each(text: &str, c: char) -> impl Iterator<Item = &str> {
    text.match_indices(c).map(move |(at, _)| &text[at + c.len_utf8()..])
}

/// Characters that no plain text has.
fn is_special(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}'
            | '\u{fdd0}'..='\u{fdef}' | '\u{fffe}' | '\u{ffff}'
    )
}

/// Integers of base 2, 8, 10, 16 and 60, and fractions, with `_` anywhere; of any version of YAML.
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let of_base = |prefix: &str, digits: &str| {
        let rest = text.strip_prefix(prefix);
        rest.is_some_and(|it| !it.is_empty() && it.chars().all(|c| c == '_' || digits.contains(c)))
    };
    let hex = "0123456789abcdef";
    of_base("0b", "01") || of_base("0o", "01234567") || of_base("0x", hex) || is_decimal(text)
}

fn is_decimal(text: &str) -> bool {
    let number = match text.split_once('e') {
        Some((number, exponent)) => {
            let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return false;
            }
            number
        }
        None => text,
    };
    let of_digits = |it: &str| it.chars().all(|c| c == '_' || c.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() {
        return !fraction.is_empty() && of_digits(fraction);
    }
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or_default();
    let minutes = |it: &str| match it.as_bytes() {
        [digit] => digit.is_ascii_digit(),
        [ten, digit] => (b'0'..=b'5').contains(ten) && digit.is_ascii_digit(),
        _ => false,
    };
    first.starts_with(|c: char| c.is_ascii_digit())
        && of_digits(first)
        && parts.all(minutes)
        && of_digits(fraction)
}

/// A date, or a date and a time, in small letters.
fn is_moment(text: &str) -> bool {
    let mut rest = Scan(text);
    if !(rest.digits(4..=4)
        && rest.is('-')
        && rest.digits(1..=2)
        && rest.is('-')
        && rest.digits(1..=2))
    {
        return false;
    }
    if rest.0.is_empty() {
        return true;
    }
    if !(rest.is('t') || rest.space()) {
        return false;
    }
    let time = rest.digits(1..=2) && rest.is(':') && rest.digits(1..=2) && rest.is(':');
    if !(time && rest.digits(1..=2)) {
        return false;
    }
    if rest.is('.') {
        rest.0 = rest.0.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    rest.space();
    rest.0.is_empty() || rest.0 == "z" || rest.is_zone()
}

/// What is left of a text that is read from its start.
struct Scan<'t>(&'t str);

impl Scan<'_> {
    fn is(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn digits(&mut self, count: std::ops::RangeInclusive<usize>) -> bool {
        let found = self.0.bytes().take(*count.end()).take_while(u8::is_ascii_digit).count();
        self.0 = &self.0[found..];
        count.contains(&found)
    }

    fn space(&mut self) -> bool {
        let rest = self.0.trim_start();
        let some = rest.len() < self.0.len();
        self.0 = rest;
        some
    }

    fn is_zone(&mut self) -> bool {
        let hours = (self.is('+') || self.is('-')) && self.digits(1..=2);
        hours && (self.0.is_empty() || self.is(':') && self.digits(1..=2) && self.0.is_empty())
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_special(c) && c <= '\u{9f}' => {
                out.push_str(&format!("\\x{:02X}", u32::from(c)))
            }
            c if is_special(c) => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(value: Value, expected: &str) {
        assert_eq!(of(&value), expected);
    }

    #[test]
    fn words_that_some_yaml_reads_as_something_else_are_quoted() {
        for word in [
            "",
            "null",
            "True",
            "y",
            "No",
            "oFF",
            "0",
            "+42",
            "-1_234",
            "11:22",
            "0b11",
            "0664",
            "0o17",
            "0xFE_FF",
            "3.14",
            "-.3",
            "6.",
            "1E+9",
            "120:30:40.56",
            "-.inf",
            ".NaN",
            "2026-01-02",
            "2026-1-2T3:04:05.6Z",
            "2026-01-02 03:04:05 +1:00",
            " x",
            "x ",
            "- x",
            "-",
            "---",
            "? x",
            "a: b",
            "a:",
            "a #b",
            "#a",
            "*a",
            "'a",
            "@a",
            "<<",
            "=",
            "\u{7f}",
        ] {
            check(json!({"k": word}), &format!("k: {}\n", quoted(word)));
        }
        for word in [
            "hello, world",
            "truer",
            "f",
            "12:60",
            "0b",
            "0x",
            "0xfg",
            "+ 1",
            "1.2.3",
            "1e",
            "-x",
            "a:b",
            "a#b",
            "2026-01-02x",
            "fra",
            "8080/tcp",
            "été",
        ] {
            check(json!({"k": word}), &format!("k: {word}\n"));
        }
        check(json!("a\tb"), "\"a\\tb\"\n");
        check(json!("\u{1}\u{feff}"), "\"\\x01\\uFEFF\"\n");
    }

    #[test]
    fn objects_and_lists_are_indented_by_two() {
        check(
            json!({"a": {"b": [1, {"c": true, "d": [["x"]]}]}, "e": {}, "f": [], "8": null}),
            "a:\n  b:\n    - 1\n    - c: true\n      d:\n        - - x\ne: {}\nf: []\n\"8\": null\n",
        );
    }

    #[test]
    fn several_lines_are_a_block_unless_it_could_not_say_them() {
        check(json!({"a": {"b": "x\ny"}}), "a:\n  b: |-\n    x\n    y\n");
        check(json!(["x\n\ny\n"]), "- |\n  x\n\n  y\n");
        check(json!({"b": "x\n\n", "c": 1}), "b: |+\n  x\n\nc: 1\n");
        check(json!({"b": "\n x"}), "b: \"\\n x\"\n");
        check(json!({"b": "\n"}), "b: \"\\n\"\n");
    }
}
