//! What a path, a query or a header may say.

use serde_json::{Value, json};

use crate::wire::schema::{DURATION, LABEL};

/// A parameter of a call.
pub(super) struct Parameter {
    place: &'static str,
    name: &'static str,
    about: &'static str,
    required: bool,
    schema: Value,
}

impl Parameter {
    pub(super) fn query(name: &'static str, schema: Value, about: &'static str) -> Self {
        Self { place: "query", name, about, required: false, schema }
    }

    pub(super) fn header(name: &'static str, schema: Value, about: &'static str) -> Self {
        Self { place: "header", name, about, required: false, schema }
    }

    pub(super) fn required(self) -> Self {
        Self { required: true, ..self }
    }

    pub(super) fn describe(&self) -> Value {
        json!({
            "name": self.name,
            "in": self.place,
            "required": self.required,
            "description": self.about,
            "schema": self.schema,
        })
    }
}

/// The parameters of a path, by their names in braces.
pub(super) fn of_path(path: &'static str) -> impl Iterator<Item = Parameter> {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    names.map(|(name, _)| {
        let (schema, about) = part(name);
        Parameter { place: "path", name, about, required: true, schema }
    })
}

/// What stands for a name in braces; any name for those that are not here.
fn part(name: &str) -> (Value, &'static str) {
    match name {
        "app" => (pattern(LABEL), "Name of an app."),
        "org" => (pattern(LABEL), "Slug of an organization."),
        "id" => (pattern("^[0-9a-f]{14}$"), "ID of a Machine."),
        "volume" => (pattern("^vol_[0-9a-z]{16}$"), "ID of a volume."),
        "ip" => {
            let schema = json!({"anyOf": [
                {"type": "string", "format": "ipv6"},
                {"type": "string", "format": "ipv4"},
            ]});
            (schema, "An address.")
        }
        "key" => (pattern("^[^\\x00-\\x1f\\x7f-\\x9f]{1,256}$"), "A metadata key."),
        "digest" => (pattern("^sha256:[0-9a-f]{64}$"), "Digest of a blob."),
        "reference" => (
            pattern("^([A-Za-z0-9_][A-Za-z0-9._-]{0,127}|sha256:[0-9a-f]{64})$"),
            "A tag or a digest.",
        ),
        _ => (
            json!({"type": "string", "maxLength": 128, "pattern": "^\\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$"}),
            "A name.",
        ),
    }
}

pub(super) fn text() -> Value {
    json!({"type": "string"})
}

/// Given as often as there are values; empty ones count as absent.
pub(super) fn texts() -> Value {
    json!({"type": "array", "items": text()})
}

pub(super) fn pattern(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

/// As the query reads it: empty counts as absent.
pub(super) fn flag() -> Value {
    json!({"enum": ["true", "false", "1", "0", ""], "type": "string"})
}

/// Empty counts as absent.
pub(super) fn number() -> Value {
    json!({"anyOf": [
        {"type": "integer", "minimum": 0, "maximum": crate::server::query::NUMBER_MAX},
        {"enum": [""], "type": "string"},
    ]})
}

/// A bare number means seconds.
pub(super) fn seconds() -> Value {
    let mut schema = number();
    if let Some(choices) = schema["anyOf"].as_array_mut() {
        choices.push(pattern(DURATION));
    }
    schema
}

pub(super) fn words(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}
