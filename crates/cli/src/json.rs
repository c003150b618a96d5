//! JSON as Go's encoder writes it, every number as it came: what a server keeps as text, of whatever
//! length, is printed as that text.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A value whose order and numbers are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    /// A number, `true`, `false` or `null`, as it was written.
    Plain(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// The entries of an object in their order; of a key that comes twice both are kept.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl Json {
    /// Takes a value apart.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub(crate) fn of(value: &(impl Serialize + ?Sized)) -> serde_json::Result<Self> {
        Self::read(&serde_json::value::to_raw_value(value)?)
    }

    fn read(raw: &RawValue) -> serde_json::Result<Self> {
        let text = raw.get().trim();
        match text.as_bytes().first() {
            Some(b'{') => {
                let Entries(entries) = serde_json::from_str(text)?;
                let read = |(key, value)| Ok((key, Self::read(value)?));
                entries.into_iter().map(read).collect::<Result<_, _>>().map(Self::Object)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                items.into_iter().map(Self::read).collect::<Result<_, _>>().map(Self::List)
            }
            Some(b'"') => serde_json::from_str(text).map(Self::Text),
            _ => Ok(Self::Plain(text.to_owned())),
        }
    }

    /// As Go's encoder prints it with this indent: empty lists and objects on one line, `<`, `>`, `&`
    /// and the two line ends of Unicode escaped.
    pub(crate) fn pretty(&self, indent: &str) -> String {
        let mut out = String::new();
        self.write(&mut out, indent, 0);
        out
    }

    fn write(&self, out: &mut String, indent: &str, depth: usize) {
        match self {
            Self::Plain(text) => out.push_str(text),
            Self::Text(text) => write_text(out, text),
            Self::List(items) => {
                write_all(out, ("[", "]"), indent, depth, items, |out, item| {
                    item.write(out, indent, depth + 1);
                });
            }
            Self::Object(entries) => {
                write_all(out, ("{", "}"), indent, depth, entries, |out, (key, value)| {
                    write_text(out, key);
                    out.push_str(": ");
                    value.write(out, indent, depth + 1);
                });
            }
        }
    }

    /// What Go's `omitempty` leaves out of a field that is no pointer.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Plain(text) => matches!(text.as_str(), "null" | "false" | "0"),
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Object(entries) => entries.is_empty(),
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Plain(text) if text == "null")
    }

    pub(crate) fn null() -> Self {
        Self::Plain("null".to_owned())
    }
}

fn write_all<T>(
    out: &mut String,
    (open, close): (&str, &str),
    indent: &str,
    depth: usize,
    items: &[T],
    write: impl Fn(&mut String, &T),
) {
    let line = |out: &mut String, depth| {
        out.push('\n');
        out.push_str(&indent.repeat(depth));
    };
    out.push_str(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        line(out, depth + 1);
        write(out, item);
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push_str(close);
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(text) => RawValue::from_string(text.clone())
                .map_err(serde::ser::Error::custom)?
                .serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(entries) => serializer.collect_map(entries.iter().map(|(k, v)| (k, v))),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(text: &str) -> String {
        let raw: Box<RawValue> = serde_json::from_str(text).expect(text);
        Json::of(&raw).expect(text).pretty("    ")
    }

    #[test]
    fn numbers_survive_at_any_length_and_keys_keep_their_order() {
        let text = r#"{"z":12345678901234567890123,"a":[1.10,1e400,-0]}"#;
        let expected = "{\n    \"z\": 12345678901234567890123,\n    \"a\": [\n        1.10,\n        1e400,\n        -0\n    ]\n}";
        assert_eq!(printed(text), expected);
    }

    #[test]
    fn text_is_escaped_as_go_escapes_it() {
        let text = r#""<&>\u2028\u0001\t\u0008\u007fé\"\\""#;
        let expected = "\"\\u003c\\u0026\\u003e\\u2028\\u0001\\t\\b\u{7f}é\\\"\\\\\"";
        assert_eq!(printed(text), expected);
    }

    #[test]
    fn what_is_empty_stays_on_its_line() {
        assert_eq!(printed("[ {} , [] ]"), "[\n    {},\n    []\n]");
    }
}
