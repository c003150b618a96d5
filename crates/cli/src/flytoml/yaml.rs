//! YAML as flyctl's parser reads it (yaml.v3): plain words become numbers, booleans, dates or nothing by
//! its table, `<<` merges, anchors are followed. The parser tells events with places; here they become
//! the tree.
//!
//! Aliases are copies, so a few lines can stand for billions of values: what they may add is limited.

use super::tree::{DEPTH_MAX, clock_text, moment};
use super::tree::{Entry, Map, MapBuilder, Node, Place, Span, SyntaxError, Time, Tree};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as YamlSpan, StrInput, Tag};
use std::collections::HashMap;

/// Values that aliases may add: a hundred times what a large configuration has.
const ALIASED_MAX: usize = 10_000;

/// Parses the first document, which must be a mapping; no document at all is an empty one.
pub(crate) fn parse(text: &str) -> Result<Map, SyntaxError> {
    if let Some((byte, _)) = text.char_indices().find(|(_, c)| is_control(*c)) {
        return Err(SyntaxError::at_byte("control characters are not allowed", byte));
    }
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        bytes: Bytes::new(text),
        anchors: HashMap::new(),
        aliased: 0,
    };
    loop {
        let Some((event, _)) = reader.next()? else { return Ok(Map::default()) };
        match event {
            Event::DocumentStart(_) => break,
            Event::StreamEnd => return Ok(Map::default()),
            _ => {}
        }
    }
    let Some((event, span)) = reader.next()? else { return Ok(Map::default()) };
    let tree = reader.value(event, span, 0)?;
    match tree.node {
        Node::Table(map) => Ok(map),
        Node::Null => Ok(Map::default()),
        _ => Err(SyntaxError::at_byte("must be a mapping of keys and values", 0)),
    }
}

fn is_control(c: char) -> bool {
    let allowed = matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    (c.is_control() && !allowed) || matches!(c, '\u{fffe}' | '\u{ffff}')
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    bytes: Bytes,
    anchors: HashMap<usize, Tree>,
    aliased: usize,
}

/// Byte offsets of characters; the parser counts characters.
struct Bytes(Option<Vec<usize>>);

impl Bytes {
    fn new(text: &str) -> Self {
        Self((!text.is_ascii()).then(|| text.char_indices().map(|(byte, _)| byte).collect()))
    }

    fn of(&self, index: usize) -> usize {
        match &self.0 {
            Some(bytes) => bytes.get(index).or(bytes.last()).copied().unwrap_or(0),
            None => index,
        }
    }

    fn span(&self, span: YamlSpan) -> Span {
        Some(self.of(span.start.index())..self.of(span.end.index()))
    }
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, YamlSpan)>, SyntaxError> {
        let failed = |error: ScanError| SyntaxError {
            message: error.info().to_owned(),
            at: Place::Line(error.marker().line(), error.marker().col() + 1),
        };
        self.parser.next_event().transpose().map_err(failed)
    }

    fn expect(&mut self) -> Result<(Event<'t>, YamlSpan), SyntaxError> {
        self.next()?.ok_or_else(|| SyntaxError::at_byte("the document ends too early", 0))
    }

    fn value(&mut self, event: Event<'t>, at: YamlSpan, depth: usize) -> Result<Tree, SyntaxError> {
        let error =
            |message: &str| Err(SyntaxError::at_byte(message, self.bytes.of(at.start.index())));
        if depth > DEPTH_MAX {
            return error("the values are nested too deeply");
        }
        let span = self.bytes.span(at);
        let (node, anchor) = match event {
            Event::Alias(id) => return self.alias(id, span),
            Event::Scalar(text, style, anchor, tag) => {
                let node = scalar(&text, style, tag.as_deref());
                (node.map_err(|message| self.error(message, at))?, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping(depth)?, anchor),
            _ => return error("a value is missing"),
        };
        let tree = Tree { node, span };
        if anchor > 0 {
            self.anchors.insert(anchor, tree.clone());
        }
        Ok(tree)
    }

    fn error(&self, message: impl Into<String>, at: YamlSpan) -> SyntaxError {
        SyntaxError::at_byte(message, self.bytes.of(at.start.index()))
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<Tree, SyntaxError> {
        let byte = span.as_ref().map_or(0, |span| span.start);
        let Some(tree) = self.anchors.get(&id) else {
            return Err(SyntaxError::at_byte("the value of an anchor contains itself", byte));
        };
        self.aliased += count(tree);
        match self.aliased <= ALIASED_MAX {
            true => Ok(Tree { node: tree.node.clone(), span }),
            false => Err(SyntaxError::at_byte("the document has too many aliases", byte)),
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.expect()? {
                (Event::SequenceEnd, _) => return Ok(Node::List(items)),
                (event, span) => items.push(self.value(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        let mut map = MapBuilder::default();
        let mut merged = None;
        loop {
            let (key_event, key_at) = self.expect()?;
            let key = match key_event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, anchor, tag) => {
                    let key = key_text(&text, style, tag.as_deref(), depth)
                        .map_err(|message| self.error(message, key_at))?;
                    if anchor > 0 {
                        let tree = Tree::text(text.as_ref(), self.bytes.span(key_at));
                        self.anchors.insert(anchor, tree);
                    }
                    key
                }
                Event::Alias(id) => self.alias_key(id, key_at)?,
                _ => return Err(self.error("a key must be a word", key_at)),
            };
            let (event, span) = self.expect()?;
            let value = self.value(event, span, depth + 1)?;
            match key {
                Key::Merge if merged.is_none() => merged = Some((value, span)),
                Key::Word(word) if !map.contains(&word) => {
                    map.put(Entry { key: word, key_span: self.bytes.span(key_at), value });
                }
                Key::Nothing => {}
                Key::Merge | Key::Word(_) => {
                    return Err(self.error("the key stands here twice", key_at));
                }
            }
        }
        if let Some((value, at)) = merged {
            merge(&mut map, value).map_err(|message| self.error(message, at))?;
        }
        Ok(Node::Table(map.build()))
    }

    fn alias_key(&mut self, id: usize, at: YamlSpan) -> Result<Key, SyntaxError> {
        match self.alias(id, self.bytes.span(at))?.node {
            Node::Text(text) => Ok(Key::Word(text)),
            _ => Err(self.error("a key must be a word", at)),
        }
    }
}

fn count(tree: &Tree) -> usize {
    match &tree.node {
        Node::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        Node::Table(map) => 1 + map.0.iter().map(|entry| count(&entry.value)).sum::<usize>(),
        _ => 1,
    }
}

enum Key {
    Word(String),
    Merge,
    /// `~: x` at the top, which counts for nothing.
    Nothing,
}

/// At the top every plain word is a key; further in, flyctl knows only keys that are strings.
fn key_text(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    depth: usize,
) -> Result<Key, String> {
    if text == "<<" && style == ScalarStyle::Plain && tag.is_none() {
        return Ok(Key::Merge);
    }
    match scalar(text, style, tag)? {
        Node::Text(text) => Ok(Key::Word(text)),
        Node::Null if depth == 0 => Ok(Key::Nothing),
        _ if depth == 0 => Ok(Key::Word(text.to_owned())),
        _ => Err(format!("the key {text} is not a string; write \"{text}\"")),
    }
}

/// Keys of the mapping itself win over merged ones, earlier merged ones over later.
fn merge(map: &mut MapBuilder, value: Tree) -> Result<(), String> {
    let tables = match value.node {
        Node::Table(table) => vec![Some(table)],
        Node::List(items) => items.into_iter().map(Tree::into_table).collect(),
        _ => vec![None],
    };
    for table in tables {
        let wanted = "<< needs a mapping, or a list of mappings";
        for entry in table.ok_or(wanted)?.0 {
            if !map.contains(&entry.key) {
                map.put(entry);
            }
        }
    }
    Ok(())
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Node, String> {
    let core = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
    match (core, style) {
        (None, ScalarStyle::Plain) if tag.is_none() => Ok(plain(text, true)),
        (None, _) | (Some("str"), _) => Ok(Node::Text(text.to_owned())),
        (Some("float"), _) => match plain(text, false) {
            Node::Integer(number) => Ok(Node::Float(number as f64)),
            Node::Float(number) => Ok(Node::Float(number)),
            _ => Err(format!("{text} is not a number")),
        },
        (Some(kind), _) => tagged(text, kind),
    }
}

fn tagged(text: &str, kind: &str) -> Result<Node, String> {
    if !matches!(kind, "int" | "bool" | "null" | "timestamp" | "binary") {
        return Ok(Node::Text(text.to_owned()));
    }
    let node = plain(text, kind == "timestamp");
    let fits = matches!(
        (&node, kind),
        (Node::Integer(_) | Node::Unsigned(_), "int")
            | (Node::Bool(_), "bool")
            | (Node::Null, "null")
            | (Node::Time(_), "timestamp")
    );
    fits.then_some(node).ok_or_else(|| format!("{text} can not be read as !!{kind}"))
}

/// What a word without quotes is.
fn plain(text: &str, times: bool) -> Node {
    match text {
        "true" | "True" | "TRUE" => return Node::Bool(true),
        "false" | "False" | "FALSE" => return Node::Bool(false),
        "" | "~" | "null" | "Null" | "NULL" => return Node::Null,
        ".nan" | ".NaN" | ".NAN" => return Node::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Node::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Node::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let number = match text.as_bytes().first() {
        Some(b'.') => text.parse().ok().map(Node::Float),
        Some(b'0'..=b'9' | b'+' | b'-') => {
            let time = times.then(|| timestamp(text)).flatten().map(Node::Time);
            time.or_else(|| number(&text.replace('_', "")))
        }
        _ => None,
    };
    number.unwrap_or_else(|| Node::Text(text.to_owned()))
}

fn number(text: &str) -> Option<Node> {
    if let Some(integer) = integer(text) {
        let unsigned = || u64::try_from(integer).ok().map(Node::Unsigned);
        return i64::try_from(integer)
            .ok()
            .map(Node::Integer)
            .or_else(unsigned)
            .or_else(|| float(text));
    }
    float(text)
}

/// An integer with Go's prefixes; a leading zero alone means octal.
fn integer(text: &str) -> Option<i128> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_str() {
        hex if hex.starts_with("0x") => (16, &hex[2..]),
        octal if octal.starts_with("0o") => (8, &octal[2..]),
        binary if binary.starts_with("0b") => (2, &binary[2..]),
        octal if octal.len() > 1 && octal.starts_with('0') => (8, &octal[1..]),
        decimal => (10, decimal),
    };
    let unsigned = !digits.starts_with(['+', '-']);
    let value = i128::from_str_radix(digits, base).ok().filter(|_| unsigned)?;
    Some(sign * value)
}

/// Digits with at most one point and an exponent.
fn float(text: &str) -> Option<Node> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let fine = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    let starts = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let value = (starts && digits.chars().all(fine)).then(|| text.parse::<f64>().ok())??;
    value.is_finite().then_some(Node::Float(value))
}

/// A date, or a moment with its offset; a moment without one is in UTC.
fn timestamp(text: &str) -> Option<Time> {
    let end = text.find(['T', 't', ' ']).unwrap_or(text.len());
    let (date, rest) = text.split_at(end);
    let mut fields = date.split('-');
    let mut field = |lens: std::ops::RangeInclusive<usize>| {
        let field = fields.next()?;
        let fine = lens.contains(&field.len()) && field.bytes().all(|b| b.is_ascii_digit());
        fine.then(|| field.parse::<i16>().ok())?
    };
    let (year, month, day) = (field(4..=4)?, field(1..=2)?, field(1..=2)?);
    let month_day = (i8::try_from(month).ok()?, i8::try_from(day).ok()?);
    let date = jiff::civil::Date::new(year, month_day.0, month_day.1).ok()?;
    if fields.next().is_some() {
        return None;
    }
    let date = date.to_string();
    if rest.is_empty() {
        return Some(moment(&date, "00:00:00", 0));
    }
    let zoned = !rest.starts_with(' ');
    let (clock, zone) = match zoned {
        true => rest[1..].split_at(rest[1..].find(['Z', '+', '-'])?),
        false => (&rest[1..], "Z"),
    };
    Some(moment(&date, &clock_of(clock)?, offset_minutes(zone)?))
}

fn clock_of(text: &str) -> Option<String> {
    let (whole, fraction) = text.split_once(['.', ',']).unwrap_or((text, "0"));
    let parts: Vec<&str> = whole.split(':').collect();
    let [hour, minute, second] = parts.as_slice() else { return None };
    let field = |text: &str, max: u8| {
        let fine = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        fine.then(|| text.parse::<u8>().ok().filter(|value| *value <= max))?
    };
    let digits = fraction.bytes().all(|b| b.is_ascii_digit()) && !fraction.is_empty();
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos = digits.then(|| nanos.parse::<u32>().ok())??;
    Some(clock_text(field(hour, 23)?, field(minute, 59)?, field(second, 59)?, nanos))
}

fn offset_minutes(zone: &str) -> Option<i16> {
    if zone == "Z" {
        return Some(0);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let fine = hours.len() == 2 && minutes.len() == 2;
    let hours = hours.parse::<i16>().ok().filter(|hours| fine && *hours <= 24)?;
    let minutes = minutes.parse::<i16>().ok().filter(|minutes| *minutes < 60)?;
    Some((hours * 60 + minutes) * if zone.starts_with('-') { -1 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flytoml::gotext;

    fn printed(text: &str) -> String {
        gotext::print(&Node::Table(parse(text).expect("the text is YAML")))
    }

    fn refused(text: &str) -> String {
        parse(text).map(|_| ()).expect_err("the text is not fine").message
    }

    #[test]
    fn few_lines_that_stand_for_billions_of_values_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let item = format!("*a{}, ", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", item.repeat(9)));
        }
        assert_eq!(refused(&text), "the document has too many aliases");
    }

    #[test]
    fn a_deep_nest_is_refused_and_costs_no_stack() {
        assert!(parse(&"[".repeat(100_000)).is_err());
        let deep = format!("a: {}{}", "[".repeat(200), "]".repeat(200));
        assert_eq!(refused(&deep), "the values are nested too deeply");
    }

    #[test]
    fn what_flyctl_can_not_read_is_refused() {
        assert_eq!(refused("a: 1\na: 2"), "the key stands here twice");
        assert_eq!(refused("a: b\u{7f}"), "control characters are not allowed");
        assert_eq!(refused("- a"), "must be a mapping of keys and values");
        assert_eq!(refused("env:\n  1: x"), "the key 1 is not a string; write \"1\"");
        assert_eq!(refused("a: &x [*x]"), "the value of an anchor contains itself");
        assert_eq!(refused("a:\n  <<: 1"), "<< needs a mapping, or a list of mappings");
        assert!(parse("a: [1").is_err() && parse("a: 'b").is_err() && parse("a: b: c").is_err());
    }

    #[test]
    fn words_become_numbers_booleans_dates_or_nothing_by_its_table() {
        for (word, go) in [
            ("yes", "yes"),
            ("on", "on"),
            ("True", "true"),
            ("~", "<nil>"),
            ("", "<nil>"),
            ("1_000", "1000"),
            ("0x10", "16"),
            ("0777", "511"),
            ("08", "8"),
            ("0o17", "15"),
            ("1e3", "1000"),
            ("-1.5", "-1.5"),
            (".5", "0.5"),
            (".inf", "+Inf"),
            ("18446744073709551615", "18446744073709551615"),
            ("1:30", "1:30"),
            ("2001-12-14", "2001-12-14 00:00:00 +0000 UTC"),
            ("2001-12-14t21:59:43.10-05:00", "2001-12-14 21:59:43.1 -0500 -0500"),
            ("2001-13-14", "2001-13-14"),
            ("'1'", "1"),
            ("!!str 1", "1"),
        ] {
            assert_eq!(printed(&format!("a: {word}")), format!("map[a:{go}]"), "{word}");
        }
    }

    #[test]
    fn merged_keys_give_way_to_those_that_are_written() {
        let text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  <<: [*x, *y]\n  a: 0\n";
        assert_eq!(printed(text), "map[x:map[a:1 b:2] y:map[b:3 c:4] z:map[a:0 b:2 c:4]]");
    }

    #[test]
    fn places_count_bytes_though_the_parser_counts_characters() {
        let text = "ö: ü\nkey: value\n";
        let map = parse(text).expect("it is YAML");
        let span = map.0[1].value.span.clone().expect("it has a place");
        assert_eq!(&text[span], "value");
    }
}
