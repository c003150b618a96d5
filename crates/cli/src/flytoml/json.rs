//! JSON with the place of every value. serde_json judges the text; then a walk over what is known to be
//! well formed notes the places, which serde_json does not tell.

use super::tree::{DEPTH_MAX, Dialect, Entry, Map, MapBuilder, Node, Place, SyntaxError, Tree};
use serde::de::IgnoredAny;

/// What an escape that is no character becomes, as in Go.
const REPLACEMENT: &str = "\u{fffd}";

/// Parses an object. Of a key that stands twice the last counts, and all numbers are floats, as Go
/// reads them.
pub(crate) fn parse(text: &str) -> Result<Map, SyntaxError> {
    let error = |error: serde_json::Error| SyntaxError {
        message: error.to_string(),
        at: Place::Line(error.line(), error.column()),
    };
    serde_json::from_str::<IgnoredAny>(text).map_err(error)?;
    let mut walk = Walk { text, at: 0, depth: 0 };
    let tree = walk.value()?;
    tree.into_table().ok_or_else(|| SyntaxError::at_byte("must be a JSON object", 0))
}

struct Walk<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
}

impl<'t> Walk<'t> {
    fn value(&mut self) -> Result<Tree, SyntaxError> {
        let start = self.skip_space();
        if self.depth > DEPTH_MAX {
            return Err(SyntaxError::at_byte("the values are nested too deeply", start));
        }
        self.depth += 1;
        let node = match self.peek() {
            b'{' => Node::Table(self.object()?),
            b'[' => Node::List(self.array()?),
            b'"' => Node::Text(self.string()?),
            b't' => self.word(4, Node::Bool(true)),
            b'f' => self.word(5, Node::Bool(false)),
            b'n' => self.word(4, Node::Null),
            _ => self.number()?,
        };
        self.depth -= 1;
        Ok(Tree { node, span: Some(start..self.at) })
    }

    fn object(&mut self) -> Result<Map, SyntaxError> {
        let mut map = MapBuilder::default();
        self.at += 1;
        while self.is_not_at(b'}') {
            let start = self.skip_space();
            let key = self.string()?;
            let key_span = Some(start..self.at);
            // The colon.
            self.skip_space();
            self.at += 1;
            map.put(Entry { key, key_span, value: self.value()? });
            self.skip_comma();
        }
        self.at += 1;
        Ok(map.build())
    }

    fn array(&mut self) -> Result<Vec<Tree>, SyntaxError> {
        let mut items = Vec::new();
        self.at += 1;
        while self.is_not_at(b']') {
            items.push(self.value()?);
            self.skip_comma();
        }
        self.at += 1;
        Ok(items)
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        self.at += 1;
        while !matches!(self.peek(), b'"' | 0) {
            self.at += if self.peek() == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        let written = self.text.get(start..self.at).unwrap_or("\"\"");
        let strict = serde_json::from_str(written);
        let inner = || written.get(1..written.len() - 1).unwrap_or_default();
        strict.or_else(|_| Ok(unescape(inner())))
    }

    fn word(&mut self, len: usize, node: Node) -> Node {
        self.at += len;
        node
    }

    fn number(&mut self) -> Result<Node, SyntaxError> {
        let start = self.at;
        while matches!(self.peek(), b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') {
            self.at += 1;
        }
        let number = self.text.get(start..self.at).and_then(|written| written.parse::<f64>().ok());
        let number = number.filter(|number| number.is_finite());
        number
            .map(Node::Float)
            .ok_or_else(|| SyntaxError::at_byte("the number is out of range", start))
    }

    /// The byte here; at the end, which a well-formed text does not reach inside a value, zero.
    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    fn skip_space(&mut self) -> usize {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
        self.at
    }

    fn skip_comma(&mut self) {
        self.skip_space();
        if self.peek() == b',' {
            self.at += 1;
        }
    }

    fn is_not_at(&mut self, end: u8) -> bool {
        self.skip_space();
        self.peek() != end && self.peek() != 0
    }
}

/// Resolves the escapes of a string that has half a surrogate pair.
fn unescape(inner: &str) -> String {
    let pieces = inner.split("\\u");
    let fix = |(index, piece): (usize, &str)| match index {
        0 => simple(piece),
        _ => match piece.split_at_checked(4) {
            Some((hex, rest)) => {
                let code = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
                let code = code.map_or(REPLACEMENT.to_owned(), String::from);
                format!("{code}{}", simple(rest))
            }
            None => REPLACEMENT.to_owned(),
        },
    };
    pieces.enumerate().map(fix).collect()
}

fn simple(piece: &str) -> String {
    serde_json::from_str(&format!("\"{piece}\"")).unwrap_or_else(|_| piece.to_owned())
}

impl Dialect {
    /// By the file's suffix: `.json`, `.yaml`, anything else is TOML (T-02).
    pub(crate) fn of_path(path: &std::path::Path) -> Self {
        let name = path.as_os_str().as_encoded_bytes();
        match () {
            () if name.ends_with(b".json") => Self::Json,
            () if name.ends_with(b".yaml") => Self::Yaml,
            () => Self::Toml,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(text: &str) -> String {
        let map = parse(text).expect("the text is JSON");
        super::super::gotext::print(&Node::Table(map))
    }

    #[test]
    fn what_is_not_an_object_is_refused_at_its_place() {
        for (text, place) in [("", (1, 0)), ("{\"a\": }", (1, 7)), ("{\"a\": 1,}", (1, 9))] {
            let error = parse(text).expect_err("it is not JSON");
            assert!(matches!(error.at, Place::Line(l, c) if (l, c) == place), "{text}: {error:?}");
        }
        assert!(
            parse("[1]").is_err() && parse("null").is_err() && parse("{\"a\": 1e999}").is_err()
        );
    }

    #[test]
    fn values_know_where_they_stand_and_the_last_of_equal_keys_counts() {
        let text = "{\n  \"a\": [1, {\"b\": \"x\"}],\n  \"a\": {\"c\": true}\n}";
        let map = parse(text).expect("it is JSON");
        let place = map.0[0].value.span.clone().expect("it has a place");
        assert_eq!(&text[place], "{\"c\": true}");
        assert_eq!(printed(text), "map[a:map[c:true]]");
    }

    #[test]
    fn half_a_surrogate_pair_becomes_the_replacement_character() {
        assert_eq!(printed("{\"a\": \"x\\ud800y\\n\\u0041\"}"), "map[a:x\u{fffd}y\nA]");
    }
}
