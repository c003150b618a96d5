//! Writes YAML in blocks, for `config show --yaml` and `launch --yaml`. Reading it is `flytoml`'s matter.

use serde_json::Value;

/// Words that mean something else than themselves.
const WORDS: [&str; 10] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"];

/// The value as a document.
pub(crate) fn of(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0);
    out
}

/// Writes a value whose lines begin at this depth.
fn write(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                indent(out, depth);
                write_entry(out, key, value, depth);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(out, depth);
                write_item(out, item, depth);
            }
        }
        _ => out.push_str(&format!("{}\n", scalar(value))),
    }
}

fn indent(out: &mut String, depth: usize) {
    out.push_str(&"  ".repeat(depth));
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn write_entry(out: &mut String, key: &str, value: &Value, depth: usize) {
    out.push_str(&text(key));
    match is_block(value) {
        true => {
            out.push_str(":\n");
            write(out, value, depth + 1);
        }
        false => out.push_str(&format!(": {}\n", scalar(value))),
    }
}

fn write_item(out: &mut String, item: &Value, depth: usize) {
    out.push_str("- ");
    match item {
        Value::Object(map) if !map.is_empty() => {
            for (index, (key, value)) in map.iter().enumerate() {
                if index > 0 {
                    indent(out, depth + 1);
                }
                write_entry(out, key, value, depth + 1);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, inner) in items.iter().enumerate() {
                if index > 0 {
                    indent(out, depth + 1);
                }
                write_item(out, inner, depth + 1);
            }
        }
        _ => out.push_str(&format!("{}\n", scalar(item))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text_of) => text(text_of),
        // Numbers, words, and what is empty are the same in JSON.
        other => other.to_string(),
    }
}

/// Text as it is where nobody can take it for something else, else in JSON's quotes.
fn text(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { Value::from(text).to_string() }
}

fn is_plain(text: &str) -> bool {
    let letter = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ' ' | ':' | ',' | '=')
    };
    let starts = |c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_');
    let length = |text: &str| {
        // `5s`, `1gb`: no number ends in these letters but a hexadecimal one.
        text.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && text.ends_with(['s', 'm', 'h', 'b'])
            && !text.starts_with("0x")
    };
    text.chars().all(letter)
        && (text.starts_with(starts) || length(text))
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains("  ")
        && !WORDS.contains(&text.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_are_indented_and_only_doubtful_text_is_quoted() {
        let value = json!({
            "app": "web", "kill_timeout": "5s", "port": 1, "empty": {},
            "env": {"A": "true", "B": "a: b", "C": "1.0", "D": "", "E": "x\ny", "F": "#"},
            "services": [{"ports": [80, 443], "name": "x y"}, "z"],
        });
        let expected = "app: web\nkill_timeout: 5s\nport: 1\nempty: {}\nenv:\n  A: \"true\"\n  \
                        B: \"a: b\"\n  C: \"1.0\"\n  D: \"\"\n  E: \"x\\ny\"\n  F: \"#\"\nservices:\n  \
                        - ports:\n      - 80\n      - 443\n    name: x y\n  - z\n";
        assert_eq!(of(&value), expected);
    }
}
