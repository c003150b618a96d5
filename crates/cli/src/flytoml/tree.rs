//! The untyped form of a configuration file: values that remember where they stood in the text.
//!
//! TOML, JSON and YAML all become this tree; the legacy spellings are patched on it, then it is decoded.
//! A value moved by a patch keeps its place, so an error about it still names the right line.

use std::collections::HashMap;
use std::ops::Range;
use toml_edit::{Datetime, Document, Formatted, InlineTable, Item, Key, Offset, TableLike};
use toml_edit::{RawString, Value as TomlValue};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// Deeper than any configuration; each level costs frames of the stack.
pub(crate) const DEPTH_MAX: usize = 100;
/// The longest path of a known key has five.
const KEY_PARTS_MAX: usize = 20;

/// Byte range in the file's text; none for values that a patch made up.
pub(crate) type Span = Option<Range<usize>>;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) node: Node,
    pub(crate) span: Span,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Integer(i64),
    /// An integer of YAML beyond 63 bits.
    Unsigned(u64),
    Float(f64),
    Text(String),
    Time(Time),
    List(Vec<Tree>),
    Table(Map),
}

/// A date or time, in the two forms that Go gives it.
#[derive(Debug, Clone)]
pub(crate) struct Time {
    /// As JSON text.
    pub(crate) json: String,
    /// As `fmt` prints it.
    pub(crate) go: String,
}

/// The language of a file; numbers in durations depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Toml,
    Json,
    Yaml,
}

/// A table: entries in the order of the file. Known keys are few, so lookups scan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Map(pub(crate) Vec<Entry>);

/// A key with its place, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Tree,
}

/// A table under construction, which finds keys again without a scan: files may have many of them.
#[derive(Debug, Default)]
pub(crate) struct MapBuilder {
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
}

/// Why a text can not be read: the message and where it happened.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) message: String,
    pub(crate) at: Place,
}

/// Where a syntax error is: a byte of the text, or a line and column (both from 1).
#[derive(Debug)]
pub(crate) enum Place {
    Byte(usize),
    Line(usize, usize),
}

impl SyntaxError {
    pub(crate) fn at_byte(message: impl Into<String>, byte: usize) -> Self {
        Self { message: message.into(), at: Place::Byte(byte) }
    }
}

impl Map {
    pub(crate) fn get(&self, key: &str) -> Option<&Tree> {
        self.0.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Tree> {
        self.0.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.value)
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Entry> {
        let index = self.0.iter().position(|entry| entry.key == key)?;
        Some(self.0.remove(index))
    }

    /// Puts a value; an existing one is replaced at its place in the order.
    pub(crate) fn put(&mut self, entry: Entry) {
        match self.0.iter_mut().find(|old| old.key == entry.key) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }
}

impl MapBuilder {
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Puts a value; an existing one is replaced at its place in the order.
    pub(crate) fn put(&mut self, entry: Entry) {
        match self.index.get(&entry.key) {
            Some(&index) => self.entries[index] = entry,
            None => {
                self.index.insert(entry.key.clone(), self.entries.len());
                self.entries.push(entry);
            }
        }
    }

    pub(crate) fn build(self) -> Map {
        Map(self.entries)
    }
}

impl Tree {
    pub(crate) fn text(text: impl Into<String>, span: Span) -> Self {
        Self { node: Node::Text(text.into()), span }
    }

    pub(crate) fn integer(number: i64, span: Span) -> Self {
        Self { node: Node::Integer(number), span }
    }

    pub(crate) fn list(items: Vec<Self>, span: Span) -> Self {
        Self { node: Node::List(items), span }
    }

    pub(crate) fn table(map: Map, span: Span) -> Self {
        Self { node: Node::Table(map), span }
    }

    pub(crate) fn as_table(&self) -> Option<&Map> {
        match &self.node {
            Node::Table(map) => Some(map),
            _ => None,
        }
    }

    pub(crate) fn into_table(self) -> Option<Map> {
        match self.node {
            Node::Table(map) => Some(map),
            _ => None,
        }
    }

    /// What the value is, in the words of an error message.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.node {
            Node::Null => "nothing",
            Node::Bool(_) => "a boolean",
            Node::Integer(_) | Node::Unsigned(_) | Node::Float(_) => "a number",
            Node::Text(_) => "a string",
            Node::Time(_) => "a date",
            Node::List(_) => "a list",
            Node::Table(_) => "a table",
        }
    }
}

/// Parses TOML 1.0; what 1.1 added and flyctl refuses is refused (compat section 3).
pub(crate) fn parse_toml(text: &str) -> Result<Map, SyntaxError> {
    if text.starts_with('\u{feff}') {
        return Err(SyntaxError::at_byte("a byte order mark is not allowed here; remove it", 0));
    }
    refuse_long_keys(text)?;
    let document = Document::parse(text).map_err(|error| {
        SyntaxError::at_byte(error.message(), error.span().map_or(0, |span| span.start))
    })?;
    let mut newer = None;
    let map = Toml { text, depth: 0, newer: &mut newer }.table(document.as_table());
    newer.map_or(Ok(map), Err)
}

/// Each part of a dotted key is a table in a table. The parser limits how deep values nest, and not
/// this: its recursion would cost the stack.
fn refuse_long_keys(text: &str) -> Result<(), SyntaxError> {
    let mut parts = 1;
    for token in Source::new(text).lex() {
        parts = match token.kind() {
            TokenKind::Dot => parts + 1,
            TokenKind::Atom
            | TokenKind::Whitespace
            | TokenKind::LiteralString
            | TokenKind::BasicString => parts,
            _ => 1,
        };
        if parts > KEY_PARTS_MAX {
            return Err(SyntaxError::at_byte("the key has too many parts", token.span().start()));
        }
    }
    Ok(())
}

/// Walks a document of TOML; the first thing that flyctl's parser refuses is remembered.
struct Toml<'t, 'n> {
    text: &'t str,
    depth: usize,
    newer: &'n mut Option<SyntaxError>,
}

impl Toml<'_, '_> {
    fn table(&mut self, table: &dyn TableLike) -> Map {
        let mut entries = Vec::with_capacity(table.len());
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let start = table.iter().find_map(|(key, _)| table.key(key)?.span());
            self.refuse("the tables are nested too deeply", start.map_or(0, |span| span.start));
            self.depth -= 1;
            return Map::default();
        }
        for (key, item) in table.iter() {
            let key_span = table.key(key).and_then(Key::span);
            entries.push(Entry { key: key.to_owned(), key_span, value: self.item(item) });
        }
        self.depth -= 1;
        Map(entries)
    }

    fn item(&mut self, item: &Item) -> Tree {
        let node = match item {
            Item::None => Node::Null,
            Item::Value(value) => return self.value(value),
            Item::Table(table) => Node::Table(self.table(table)),
            Item::ArrayOfTables(tables) => Node::List(
                tables.iter().map(|table| Tree::table(self.table(table), table.span())).collect(),
            ),
        };
        Tree { node, span: item.span() }
    }

    fn value(&mut self, value: &TomlValue) -> Tree {
        let node = match value {
            TomlValue::String(text) => {
                self.refuse_hex_escape(text);
                Node::Text(text.value().clone())
            }
            TomlValue::Integer(number) => Node::Integer(*number.value()),
            TomlValue::Float(number) => Node::Float(*number.value()),
            TomlValue::Boolean(flag) => Node::Bool(*flag.value()),
            TomlValue::Datetime(time) => self.time(time),
            TomlValue::Array(items) => {
                Node::List(items.iter().map(|item| self.value(item)).collect())
            }
            TomlValue::InlineTable(table) => {
                self.refuse_newlines(table);
                Node::Table(self.table(table))
            }
        };
        Tree { node, span: value.span() }
    }

    fn time(&mut self, time: &Formatted<Datetime>) -> Node {
        let span = time.span().unwrap_or_default();
        let written = self.text.get(span.clone()).unwrap_or_default();
        if time.value().time.is_some_and(|time| time.second.is_none()) {
            self.refuse("seconds are missing", span.start);
        }
        let Some(offset) = time.value().offset else { return Node::Time(local_time(written)) };
        Node::Time(instant(time.value(), offset))
    }

    /// An inline table is one line, without a comma at its end.
    fn refuse_newlines(&mut self, table: &InlineTable) {
        let start = table.span().map_or(0, |span| span.start);
        let mut parts = vec![table.trailing().clone()];
        for (path, value) in table.get_values() {
            let decors = path.iter().flat_map(|key| [key.leaf_decor(), key.dotted_decor()]);
            let decors = decors.chain(std::iter::once(value.decor()));
            parts.extend(decors.flat_map(|d| [d.prefix(), d.suffix()]).flatten().cloned());
        }
        if parts.iter().any(|part| self.raw(part).contains('\n')) {
            self.refuse("an inline table must stand on one line", start);
        } else if table.trailing_comma() {
            self.refuse("an inline table must not end with a comma", start);
        }
    }

    fn raw<'a>(&'a self, part: &'a RawString) -> &'a str {
        let by_span = || self.text.get(part.span()?);
        part.as_str().or_else(by_span).unwrap_or_default()
    }

    fn refuse_hex_escape(&mut self, text: &Formatted<String>) {
        let Some(span) = text.span() else { return };
        let written = self.text.get(span.clone()).unwrap_or_default();
        if !written.starts_with('"') {
            return;
        }
        let mut chars = written.char_indices();
        while let Some((_, c)) = chars.next() {
            if c == '\\'
                && let Some((at, 'x')) = chars.next()
            {
                self.refuse("unknown escape \\x", span.start + at - 1);
            }
        }
    }

    fn refuse(&mut self, message: &str, byte: usize) {
        self.newer.get_or_insert_with(|| SyntaxError::at_byte(message, byte));
    }
}

/// A local date or time is kept as written, with the `T` that the specification wants.
fn local_time(written: &str) -> Time {
    let text: String =
        written.chars().map(|c| if c == ' ' || c == 't' { 'T' } else { c }).collect();
    Time { json: text.clone(), go: text }
}

/// A moment of TOML.
fn instant(time: &Datetime, offset: Offset) -> Time {
    let date = time.date.map(|date| date.to_string()).unwrap_or_default();
    let clock = time.time.map_or_else(String::new, |time| {
        let second = time.second.unwrap_or(0);
        clock_text(time.hour, time.minute, second, time.nanosecond.unwrap_or(0))
    });
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => minutes,
    };
    moment(&date, &clock, minutes)
}

/// Hours, minutes, seconds, and as many decimals as needed.
pub(crate) fn clock_text(hour: u8, minute: u8, second: u8, nanosecond: u32) -> String {
    let fraction = format!(".{nanosecond:09}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{hour:02}:{minute:02}:{second:02}{fraction}")
}

/// A moment: RFC 3339 in JSON, Go's own form elsewhere.
pub(crate) fn moment(date: &str, clock: &str, offset_minutes: i16) -> Time {
    if offset_minutes == 0 {
        return Time { json: format!("{date}T{clock}Z"), go: format!("{date} {clock} +0000 UTC") };
    }
    let sign = if offset_minutes < 0 { '-' } else { '+' };
    let (hours, minutes) = (offset_minutes.abs() / 60, offset_minutes.abs() % 60);
    let zone = format!("{sign}{hours:02}{minutes:02}");
    let json = format!("{date}T{clock}{sign}{hours:02}:{minutes:02}");
    Time { json, go: format!("{date} {clock} {zone} {zone}") }
}
