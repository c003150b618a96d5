//! Reading typed values out of tables, by the rules of Go's JSON decoder: keys in any letter case, what
//! a number may be, what nothing means. Every key that is asked for is known and its place is
//! remembered; what nobody asked for is unknown.

use super::duration::GoDuration;
use super::gotext;
use super::hint::without_indexes;
use super::problem::{Level, Problems};
use super::tree::{Entry, Map, Node, Span, Tree};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Nanoseconds of a second, the unit of our own keys.
const SECOND: f64 = 1e9;

/// What decoding collects beside the values.
#[derive(Debug)]
pub(crate) struct Notes<'a> {
    pub(crate) problems: RefCell<Problems<'a>>,
    /// Where each key stands, by its path.
    pub(crate) places: RefCell<BTreeMap<String, Span>>,
    /// Paths of keys that are not known, in the order met.
    pub(crate) unknown: RefCell<Vec<String>>,
}

/// What a bare number means as a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bare {
    /// Nanoseconds (T-22), and nobody means them.
    Nanoseconds,
    /// Nanoseconds that end every deploy at once.
    Useless,
    /// Seconds: keys of our own.
    Seconds,
}

/// A table being read.
pub(crate) struct Section<'n, 'a> {
    path: String,
    map: Map,
    pub(crate) notes: &'n Notes<'a>,
}

impl<'a> Notes<'a> {
    pub(crate) fn new(problems: Problems<'a>) -> Self {
        Self {
            problems: RefCell::new(problems),
            places: RefCell::default(),
            unknown: RefCell::default(),
        }
    }

    /// Notes a problem at a key; its place is the key's or the nearest enclosing one's.
    pub(crate) fn add(
        &self,
        level: Level,
        path: &str,
        text: impl Into<String>,
        remedy: Option<String>,
    ) {
        self.problems.borrow_mut().add(level, path, &self.place(path), text.into(), remedy);
    }

    pub(crate) fn invalid(&self, path: &str, text: impl Into<String>, remedy: Option<String>) {
        self.add(Level::Invalid, path, text, remedy);
    }

    pub(crate) fn warning(&self, path: &str, text: impl Into<String>, remedy: Option<String>) {
        self.add(Level::Warning, path, text, remedy);
    }

    fn wrong_type<T>(&self, path: &str, wanted: &str, found: &Tree, form: String) -> Option<T> {
        let text = format!("must be {wanted}, found {}", found.kind());
        let span = found.span.clone().or_else(|| self.place(path));
        self.problems.borrow_mut().shape(path, &span, text, Some(format!("write {form}")));
        None
    }

    fn bare_duration(&self, path: &str, key: &str, number: f64, bare: Bare) -> GoDuration {
        let (level, word) = match bare {
            Bare::Nanoseconds => (Level::Hint, "nanoseconds"),
            Bare::Useless => (Level::Refused, "nanoseconds"),
            Bare::Seconds => (Level::Hint, "seconds"),
        };
        let text = format!("{number} without a unit is read as {word}");
        self.add(level, path, text, Some(format!("write {key} = \"{number}s\"")));
        match bare {
            Bare::Seconds => GoDuration::from_nanos((number * SECOND) as i64),
            Bare::Nanoseconds | Bare::Useless => GoDuration::scaled(number, 1),
        }
    }

    pub(crate) fn place(&self, path: &str) -> Span {
        let places = self.places.borrow();
        let mut path = path;
        loop {
            if let Some(Some(span)) = places.get(path) {
                return Some(span.clone());
            }
            let cut = path.rfind(['.', '['])?;
            path = path.get(..cut)?;
        }
    }

    fn remember(&self, path: &str, span: Span) {
        self.places.borrow_mut().insert(path.to_owned(), span);
    }
}

impl<'n, 'a> Section<'n, 'a> {
    pub(crate) fn root(map: Map, notes: &'n Notes<'a>) -> Self {
        Self { path: String::new(), map, notes }
    }

    /// The path of a key in this table.
    pub(crate) fn path(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    /// Takes what is written under a key in any letter case, in the order in which Go's decoder sees
    /// it: the table was written as JSON with its keys sorted.
    fn take(&mut self, key: &str) -> (String, Vec<Tree>) {
        let path = self.path(key);
        let mut found = Vec::new();
        let mut index = 0;
        while let Some(entry) = self.map.0.get(index) {
            match is_same_key(&entry.key, key) {
                true => found.push(self.map.0.remove(index)),
                false => index += 1,
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        for Entry { key: written, key_span, value } in &found {
            if written != key {
                self.notes.unknown.borrow_mut().push(self.path(written));
            }
            self.notes.remember(&path, value.span.clone().or(key_span.clone()));
        }
        (path, found.into_iter().map(|entry| entry.value).collect())
    }

    /// Whether one of these keys is written, whatever its value.
    pub(crate) fn mentions(&self, keys: &[&str]) -> bool {
        let mut written = self.map.0.iter().map(|entry| entry.key.as_str());
        written.any(|written| keys.iter().any(|key| is_same_key(written, key)))
    }

    /// Reads the values of a key one after the other; the last one counts, also when it is nothing.
    fn last<T>(&mut self, key: &str, read: impl Fn(&str, &Tree) -> Option<T>) -> Option<T> {
        let (path, values) = self.take(key);
        let read = values.iter().map(|value| match value.node {
            Node::Null => None,
            _ => read(&path, value),
        });
        read.last().flatten()
    }

    /// The values of a key as one. One that is not of the wanted kind is all there is, so that the
    /// caller refuses it.
    fn merged(&mut self, key: &str, wanted: fn(&Node) -> bool) -> Option<(String, Tree)> {
        let (path, mut values) = self.take(key);
        let fine = |value: &Tree| wanted(&value.node) || matches!(value.node, Node::Null);
        let merged = match values.iter().position(|value| !fine(value)) {
            Some(wrong) => values.swap_remove(wrong),
            None => values.into_iter().reduce(merge)?,
        };
        (!matches!(merged.node, Node::Null)).then_some((path, merged))
    }

    pub(crate) fn text(&mut self, key: &str) -> Option<String> {
        let notes = self.notes;
        self.last(key, |path, value| {
            let form = || format!("{key} = \"{}\"", gotext::print(&value.node));
            as_text(value).or_else(|| notes.wrong_type(path, "a string", value, form()))
        })
    }

    pub(crate) fn integer(&mut self, key: &str) -> Option<i64> {
        self.whole_number(key, "a whole number")
    }

    /// An integer of 0 to 2^32-1.
    pub(crate) fn unsigned(&mut self, key: &str) -> Option<u32> {
        self.whole_number(key, "a whole number from 0 to 4294967295")
    }

    fn whole_number<T: std::str::FromStr>(&mut self, key: &str, wanted: &str) -> Option<T> {
        let notes = self.notes;
        self.last(key, |path, value| {
            let literal = gotext::json_number(&value.node);
            let number = literal.and_then(|literal| literal.parse().ok());
            number.or_else(|| {
                let printed = gotext::print(&value.node);
                let likely = printed.parse::<f64>().map_or(0, |number| number as i64);
                notes.wrong_type(path, wanted, value, format!("{key} = {}", likely.max(0)))
            })
        })
    }

    pub(crate) fn number(&mut self, key: &str) -> Option<f64> {
        let notes = self.notes;
        self.last(key, |path, value| {
            let literal = gotext::json_number(&value.node);
            let number = literal.and_then(|literal| literal.parse().ok());
            number.or_else(|| notes.wrong_type(path, "a number", value, format!("{key} = 0.33")))
        })
    }

    pub(crate) fn boolean(&mut self, key: &str) -> Option<bool> {
        let notes = self.notes;
        self.last(key, |path, value| match value.node {
            Node::Bool(flag) => Some(flag),
            _ => {
                let word = matches!(&value.node, Node::Text(text) if text == "false");
                notes.wrong_type(path, "true or false", value, format!("{key} = {}", !word))
            }
        })
    }

    /// A list of strings; absent is an empty list, nothing in it an empty string.
    pub(crate) fn texts(&mut self, key: &str) -> Vec<String> {
        let Some((path, value)) = self.merged(key, is_list) else { return Vec::new() };
        let element = |item: &Tree| match item.node {
            Node::Null => Some(String::new()),
            _ => as_text(item),
        };
        let texts = match &value.node {
            Node::List(items) => items.iter().map(element).collect(),
            _ => None,
        };
        let form = format!("{key} = [\"{}\"]", first_text(&value));
        texts
            .or_else(|| self.notes.wrong_type(&path, "a list of strings", &value, form))
            .unwrap_or_default()
    }

    /// A table of strings; absent is an empty table, nothing in it an empty string.
    pub(crate) fn text_map(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let Some(section) = self.section(key) else { return map };
        for Entry { key, key_span, value } in &section.map.0 {
            let path = section.path(key);
            section.notes.remember(&path, value.span.clone().or(key_span.clone()));
            let text = match value.node {
                Node::Null => Some(String::new()),
                _ => as_text(value),
            };
            match text {
                Some(text) => drop(map.insert(key.clone(), text)),
                None => {
                    let form = format!("{key} = \"{}\"", gotext::print(&value.node));
                    section.notes.wrong_type::<()>(&path, "a string", value, form);
                }
            }
        }
        map
    }

    pub(crate) fn duration(&mut self, key: &str, bare: Bare) -> Option<GoDuration> {
        let notes = self.notes;
        self.last(key, |path, value| match &value.node {
            Node::Text(_) | Node::Time(_) => {
                let text = as_text(value).unwrap_or_default();
                let bad = |error| {
                    let remedy = Some(duration_form(key));
                    notes.add(Level::Shape, path, format!("{error}"), remedy);
                };
                GoDuration::parse(&text).map_err(bad).ok()
            }
            node => match gotext::json_number(node).and_then(|literal| literal.parse().ok()) {
                Some(number) => Some(notes.bare_duration(path, key, number, bare)),
                None => notes.wrong_type(path, "a duration", value, format!("{key} = \"10s\"")),
            },
        })
    }

    /// A table under a key.
    pub(crate) fn section(&mut self, key: &str) -> Option<Section<'n, 'a>> {
        let (path, value) = self.merged(key, is_table)?;
        match value.node {
            Node::Table(map) => Some(Section { path, map, notes: self.notes }),
            _ => self.notes.wrong_type(
                &path,
                "a table",
                &value,
                format!("[{}]", without_indexes(&path)),
            ),
        }
    }

    /// A list of tables under a key; absent is an empty list.
    pub(crate) fn sections(&mut self, key: &str) -> Vec<Section<'n, 'a>> {
        let Some((path, value)) = self.merged(key, is_list) else { return Vec::new() };
        let Node::List(items) = value.node else {
            let form = format!("[[{}]]", without_indexes(&path));
            self.notes.wrong_type::<()>(&path, "a list of tables", &value, form);
            return Vec::new();
        };
        let numbered = items.into_iter().enumerate();
        numbered.filter_map(|(index, item)| self.item(format!("{path}[{index}]"), item)).collect()
    }

    fn item(&self, path: String, item: Tree) -> Option<Section<'n, 'a>> {
        self.notes.remember(&path, item.span.clone());
        match item.node {
            Node::Table(map) => Some(Section { path, map, notes: self.notes }),
            _ => self.notes.wrong_type(&path, "a table", &item, "a table for each item".to_owned()),
        }
    }

    /// Tables by name, as `[checks.NAME]`; names are as written.
    pub(crate) fn named_sections(&mut self, key: &str) -> Vec<(String, Section<'n, 'a>)> {
        let Some(section) = self.section(key) else { return Vec::new() };
        let mut named = Vec::new();
        for entry in section.map.0 {
            let path = format!("{}.{}", section.path, entry.key);
            self.notes.remember(&path, entry.value.span.clone().or(entry.key_span));
            match entry.value.node {
                Node::Table(map) => {
                    named.push((entry.key, Section { path, map, notes: self.notes }));
                }
                _ => {
                    let form = format!("[{path}]");
                    self.notes.wrong_type::<()>(&path, "a table", &entry.value, form);
                }
            }
        }
        named
    }

    /// One of several words; `read` knows them, `form` names them.
    pub(crate) fn word<T>(
        &mut self,
        key: &str,
        form: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let notes = self.notes;
        self.last(key, |path, value| {
            let written = as_json(&value.node);
            read(&written).or_else(|| {
                let remedy = Some(format!("write {key} = {form}"));
                notes.add(Level::Shape, path, format!("{written} is not one of its words"), remedy);
                None
            })
        })
    }

    /// A table whose content is free; absent or empty is none.
    pub(crate) fn free_table(&mut self, key: &str) -> Option<Value> {
        let section = self.section(key)?;
        for entry in &section.map.0 {
            let span = entry.key_span.clone().or(entry.value.span.clone());
            self.notes.remember(&section.path(&entry.key), span);
        }
        (!section.map.0.is_empty()).then(|| as_json(&Node::Table(section.map)))
    }

    /// Ends reading: all keys that nobody asked for are unknown.
    pub(crate) fn finish(self) {
        let mut unknown = self.notes.unknown.borrow_mut();
        unknown.extend(self.map.0.iter().map(|entry| self.path(&entry.key)));
        for entry in &self.map.0 {
            let span = entry.key_span.clone().or(entry.value.span.clone());
            self.notes.remember(&self.path(&entry.key), span);
        }
    }
}

/// Go's decoder takes a key in any letter case, also of the two letters beyond ASCII that fold into it.
fn is_same_key(written: &str, key: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        'K' => 'k',
        c => c.to_ascii_lowercase(),
    };
    written == key || (written.len() >= key.len() && written.chars().map(fold).eq(key.chars()))
}

fn is_list(node: &Node) -> bool {
    matches!(node, Node::List(_))
}

fn is_table(node: &Node) -> bool {
    matches!(node, Node::Table(_))
}

/// What Go's decoder leaves in a value that is decoded twice, under two spellings of its key: tables
/// and the items of lists are filled further; anything else stands there twice, and the later one
/// counts after both were read.
fn merge(old: Tree, new: Tree) -> Tree {
    let Tree { node, span } = new;
    let node = match (old.node, node) {
        (Node::Table(old), Node::Table(new)) => Node::Table(merge_tables(old, new)),
        (Node::List(old), Node::List(new)) => {
            let mut old = old.into_iter();
            let merged = new.into_iter().map(|new| match old.next() {
                Some(old) => merge(old, new),
                None => new,
            });
            Node::List(merged.collect())
        }
        (_, new) => new,
    };
    Tree { node, span }
}

fn merge_tables(mut old: Map, new: Map) -> Map {
    for entry in new.0 {
        let nested = |node: &Node| matches!(node, Node::Table(_) | Node::List(_));
        let same = old.0.iter().position(|known| known.key == entry.key);
        match same.filter(|&at| nested(&old.0[at].value.node) && nested(&entry.value.node)) {
            Some(at) => {
                let before = old.0.remove(at);
                old.0.push(Entry { value: merge(before.value, entry.value), ..before });
            }
            None => old.0.push(entry),
        }
    }
    old
}

pub(crate) fn as_text(tree: &Tree) -> Option<String> {
    match &tree.node {
        Node::Text(text) => Some(text.clone()),
        Node::Time(time) => Some(time.json.clone()),
        _ => None,
    }
}

fn first_text(value: &Tree) -> String {
    match &value.node {
        Node::List(items) => {
            items.first().map(|item| gotext::print(&item.node)).unwrap_or_default()
        }
        node => gotext::print(node),
    }
}

fn duration_form(key: &str) -> String {
    format!("write a number with a unit (ns, us, ms, s, m, h), such as {key} = \"10s\"")
}

/// A number as Go's decoder has it in free values: a float, written without a fraction where it has none.
pub(crate) fn json_float(number: f64) -> Value {
    const WHOLE: f64 = 9_007_199_254_740_992.0;
    match number.fract() == 0.0 && number.abs() < WHOLE {
        true => Value::from(number as i64),
        false => Value::from(number),
    }
}

fn as_json(node: &Node) -> Value {
    match node {
        Node::Null => Value::Null,
        Node::Bool(flag) => Value::Bool(*flag),
        Node::Integer(number) => json_float(*number as f64),
        Node::Unsigned(number) => json_float(*number as f64),
        Node::Float(number) => json_float(*number),
        Node::Text(text) => Value::from(text.as_str()),
        Node::Time(time) => Value::from(time.json.as_str()),
        Node::List(items) => items.iter().map(|item| as_json(&item.node)).collect(),
        Node::Table(map) => {
            let pairs = map.0.iter().map(|entry| (entry.key.clone(), as_json(&entry.value.node)));
            Value::Object(pairs.collect())
        }
    }
}
