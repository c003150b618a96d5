//! Reading typed values out of tables: every key that is asked for is known, and its place is
//! remembered; what nobody asked for is unknown.

use super::duration;
use super::gotext;
use super::problem::Problems;
use super::tree::{Entry, Map, Node, Span, Tree};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

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
    /// Go's decoder takes nanoseconds, and flyctl keeps it so.
    Nanoseconds,
    /// Nobody means nanoseconds in these keys; we read seconds and say so (T-28).
    SecondsWithWarning,
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

    /// Notes an error at a key; its place is the key's or the nearest enclosing one's.
    pub(crate) fn error(&self, path: &str, text: impl Into<String>, remedy: Option<String>) {
        self.problems.borrow_mut().error(path, &self.place(path), text.into(), remedy);
    }

    pub(crate) fn warning(&self, path: &str, text: impl Into<String>, remedy: Option<String>) {
        self.problems.borrow_mut().warning(path, &self.place(path), text.into(), remedy);
    }

    fn place(&self, path: &str) -> Span {
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

    /// This table's own path.
    pub(crate) fn own_path(&self) -> &str {
        &self.path
    }

    /// Takes a key's value; `null` counts as absent. Keys in another letter case are taken too, as
    /// Go's decoder does.
    fn take(&mut self, key: &str) -> Option<(String, Tree)> {
        let exact = self.map.0.iter().position(|entry| entry.key == key);
        let loose = || self.map.0.iter().position(|entry| entry.key.eq_ignore_ascii_case(key));
        let Entry { key: written, key_span, value } = self.map.0.remove(exact.or_else(loose)?);
        let path = self.path(key);
        if written != key {
            self.notes.unknown.borrow_mut().push(self.path(&written));
        }
        self.notes.remember(&path, value.span.clone().or(key_span));
        match value.node {
            Node::Null => None,
            _ => Some((path, value)),
        }
    }

    fn wrong_type<T>(&self, path: &str, wanted: &str, found: &Tree, form: String) -> Option<T> {
        let text = format!("must be {wanted}, found {}", found.kind());
        self.notes.error(path, text, Some(format!("write {form}")));
        None
    }

    pub(crate) fn text(&mut self, key: &str) -> Option<String> {
        let (path, value) = self.take(key)?;
        match value.node {
            Node::Text(text) => Some(text),
            _ => {
                let form = format!("{key} = \"{}\"", gotext::print(&value.node));
                self.wrong_type(&path, "a string", &value, form)
            }
        }
    }

    pub(crate) fn integer(&mut self, key: &str) -> Option<i64> {
        let (path, value) = self.take(key)?;
        match &value.node {
            Node::Integer(number) => Some(*number),
            Node::Float(number) if number.fract() == 0.0 => Some(*number as i64),
            node => {
                let printed = gotext::print(node);
                let number = printed.parse::<f64>().map_or(0, |number| number as i64);
                self.wrong_type(&path, "a whole number", &value, format!("{key} = {number}"))
            }
        }
    }

    pub(crate) fn number(&mut self, key: &str) -> Option<f64> {
        let (path, value) = self.take(key)?;
        match value.node {
            Node::Integer(number) => Some(number as f64),
            Node::Float(number) => Some(number),
            _ => self.wrong_type(&path, "a number", &value, format!("{key} = 0.33")),
        }
    }

    pub(crate) fn boolean(&mut self, key: &str) -> Option<bool> {
        let (path, value) = self.take(key)?;
        match value.node {
            Node::Bool(flag) => Some(flag),
            _ => self.wrong_type(&path, "true or false", &value, format!("{key} = true")),
        }
    }

    /// A list of strings; absent is an empty list.
    pub(crate) fn texts(&mut self, key: &str) -> Vec<String> {
        let Some((path, value)) = self.take(key) else { return Vec::new() };
        let texts = match &value.node {
            Node::List(items) => items.iter().map(as_text).collect(),
            _ => None,
        };
        let form = format!("{key} = [\"{}\"]", first_text(&value));
        texts
            .or_else(|| self.wrong_type(&path, "a list of strings", &value, form))
            .unwrap_or_default()
    }

    /// A table of strings; absent is an empty table.
    pub(crate) fn text_map(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let Some(section) = self.section(key) else { return map };
        for Entry { key, key_span, value } in section.map.0 {
            let path = format!("{}.{key}", section.path);
            self.notes.remember(&path, value.span.clone().or(key_span));
            match as_text(&value) {
                Some(text) => drop(map.insert(key, text)),
                None => {
                    let form = format!("{key} = \"{}\"", gotext::print(&value.node));
                    self.wrong_type::<()>(&path, "a string", &value, form);
                }
            }
        }
        map
    }

    pub(crate) fn duration(&mut self, key: &str, bare: Bare) -> Option<Duration> {
        let (path, value) = self.take(key)?;
        let number = match &value.node {
            Node::Text(text) => {
                let bad = |error| self.notes.error(&path, format!("{error}"), duration_form(key));
                return duration::parse(text).map_err(bad).ok();
            }
            Node::Integer(number) if *number >= 0 => *number as f64,
            Node::Float(number) if *number >= 0.0 => *number,
            _ => return self.wrong_type(&path, "a duration", &value, format!("{key} = \"10s\"")),
        };
        if bare == Bare::Nanoseconds {
            return Some(Duration::from_nanos(number as u64));
        }
        let text = format!("{number} without a unit is taken as seconds");
        self.notes.warning(&path, text, Some(format!("write {key} = \"{number}s\"")));
        Duration::try_from_secs_f64(number).ok()
    }

    /// A table under a key.
    pub(crate) fn section(&mut self, key: &str) -> Option<Section<'n, 'a>> {
        let (path, value) = self.take(key)?;
        match value.node {
            Node::Table(map) => Some(Section { path, map, notes: self.notes }),
            _ => self.wrong_type(&path, "a table", &value, format!("[{path}]")),
        }
    }

    /// A list of tables under a key; absent is an empty list.
    pub(crate) fn sections(&mut self, key: &str) -> Vec<Section<'n, 'a>> {
        let Some((path, value)) = self.take(key) else { return Vec::new() };
        let Node::List(items) = value.node else {
            self.wrong_type::<()>(&path, "a list of tables", &value, format!("[[{path}]]"));
            return Vec::new();
        };
        let numbered = items.into_iter().enumerate();
        numbered.filter_map(|(index, item)| self.item(format!("{path}[{index}]"), item)).collect()
    }

    fn item(&self, path: String, item: Tree) -> Option<Section<'n, 'a>> {
        self.notes.remember(&path, item.span.clone());
        match item.node {
            Node::Table(map) => Some(Section { path, map, notes: self.notes }),
            _ => self.wrong_type(&path, "a table", &item, "a table for each item".to_owned()),
        }
    }

    /// Tables by name, as `[checks.NAME]`.
    pub(crate) fn named_sections(&mut self, key: &str) -> Vec<(String, Section<'n, 'a>)> {
        let Some(mut section) = self.section(key) else { return Vec::new() };
        let names: Vec<_> = section.map.0.iter().map(|entry| entry.key.clone()).collect();
        let named = |name: String| Some((name.clone(), section.section(&name)?));
        names.into_iter().filter_map(named).collect()
    }

    /// A key's value as JSON, for keys whose content is free.
    pub(crate) fn json(&mut self, key: &str) -> Option<serde_json::Value> {
        let (_, value) = self.take(key)?;
        Some(as_json(&value.node))
    }

    /// Ends reading: all keys that nobody asked for are unknown.
    pub(crate) fn finish(self) {
        let mut unknown = self.notes.unknown.borrow_mut();
        unknown.extend(self.map.0.iter().map(|entry| self.path(&entry.key)));
        for entry in &self.map.0 {
            self.notes.remember(&self.path(&entry.key), entry.key_span.clone());
        }
    }
}

fn as_text(tree: &Tree) -> Option<String> {
    match &tree.node {
        Node::Text(text) => Some(text.clone()),
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

fn duration_form(key: &str) -> Option<String> {
    Some(format!("write a number with a unit (ns, us, ms, s, m, h), such as {key} = \"10s\""))
}

fn as_json(node: &Node) -> serde_json::Value {
    use serde_json::Value as Json;
    match node {
        Node::Null => Json::Null,
        Node::Bool(flag) => Json::Bool(*flag),
        Node::Integer(number) => Json::from(*number),
        Node::Float(number) => Json::from(*number),
        Node::Text(text) | Node::Time(text) => Json::from(text.as_str()),
        Node::List(items) => items.iter().map(|item| as_json(&item.node)).collect(),
        Node::Table(map) => {
            let pairs = map.0.iter().map(|entry| (entry.key.clone(), as_json(&entry.value.node)));
            Json::Object(pairs.collect())
        }
    }
}
