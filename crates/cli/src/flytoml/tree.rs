//! The untyped form of a configuration file: values that remember where they stood in the text.
//!
//! TOML and JSON both become this tree; the legacy spellings are patched on it, then it is decoded.
//! A value moved by a patch keeps its place, so an error about it still names the right line.

use std::ops::Range;
use toml_edit::{Document, Item, TableLike, Value as TomlValue};

/// Byte range in the file's text; none for values that a patch made up or that came from JSON.
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
    Float(f64),
    Text(String),
    /// A TOML date or time, as written.
    Time(String),
    List(Vec<Tree>),
    Table(Map),
}

/// A table: entries in the order of the file. Keys are few, so lookups scan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Map(pub(crate) Vec<Entry>);

/// A key with its place, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Tree,
}

/// Why a text is not TOML or JSON: the message and the byte where it happened.
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

    /// What the value is, in the words of an error message.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.node {
            Node::Null => "null",
            Node::Bool(_) => "a boolean",
            Node::Integer(_) | Node::Float(_) => "a number",
            Node::Text(_) => "a string",
            Node::Time(_) => "a date",
            Node::List(_) => "a list",
            Node::Table(_) => "a table",
        }
    }
}

/// Parses TOML.
pub(crate) fn parse_toml(text: &str) -> Result<Map, SyntaxError> {
    let document = Document::parse(text).map_err(|error| SyntaxError {
        message: error.message().to_owned(),
        at: Place::Byte(error.span().map_or(0, |span| span.start)),
    })?;
    Ok(table_like(document.as_table()))
}

/// Parses JSON; values carry no places.
pub(crate) fn parse_json(text: &str) -> Result<Map, SyntaxError> {
    let error = |error: serde_json::Error| SyntaxError {
        message: error.to_string(),
        at: Place::Line(error.line(), error.column()),
    };
    let map: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(error)?;
    Ok(json_map(map))
}

fn table_like(table: &dyn TableLike) -> Map {
    let entry = |(key, item): (&str, &Item)| Entry {
        key: key.to_owned(),
        key_span: table.key(key).and_then(toml_edit::Key::span),
        value: item_tree(item),
    };
    Map(table.iter().map(entry).collect())
}

fn item_tree(item: &Item) -> Tree {
    let node = match item {
        Item::None => Node::Null,
        Item::Value(value) => return value_tree(value),
        Item::Table(table) => Node::Table(table_like(table)),
        Item::ArrayOfTables(tables) => Node::List(
            tables.iter().map(|table| Tree::table(table_like(table), table.span())).collect(),
        ),
    };
    Tree { node, span: item.span() }
}

fn value_tree(value: &TomlValue) -> Tree {
    let node = match value {
        TomlValue::String(text) => Node::Text(text.value().clone()),
        TomlValue::Integer(number) => Node::Integer(*number.value()),
        TomlValue::Float(number) => Node::Float(*number.value()),
        TomlValue::Boolean(flag) => Node::Bool(*flag.value()),
        TomlValue::Datetime(time) => Node::Time(time.value().to_string()),
        TomlValue::Array(items) => Node::List(items.iter().map(value_tree).collect()),
        TomlValue::InlineTable(table) => Node::Table(table_like(table)),
    };
    Tree { node, span: value.span() }
}

fn json_map(map: serde_json::Map<String, serde_json::Value>) -> Map {
    let entry = |(key, value)| Entry { key, key_span: None, value: json_tree(value) };
    Map(map.into_iter().map(entry).collect())
}

fn json_tree(value: serde_json::Value) -> Tree {
    use serde_json::Value as Json;
    let node = match value {
        Json::Null => Node::Null,
        Json::Bool(flag) => Node::Bool(flag),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Node::Integer(integer),
            None => Node::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Node::Text(text),
        Json::Array(items) => Node::List(items.into_iter().map(json_tree).collect()),
        Json::Object(map) => Node::Table(json_map(map)),
    };
    Tree { node, span: None }
}
