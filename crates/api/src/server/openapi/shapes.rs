//! Schemas of what travels: one generator for what is read, one for what is written, since the same
//! type accepts more than it says.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Number, Value};

// Makes the name of a type's definition where it is read: it accepts more than it says.
const SENT: &str = ".request";

/// All schemas of the description.
pub(super) struct Shapes {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Default for Shapes {
    fn default() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        let requests = settings().for_deserialize().with_transform(RecursiveTransform(bounded));
        let answers = settings().for_serialize().with_transform(RecursiveTransform(plain));
        Self { requests: requests.into_generator(), answers: answers.into_generator() }
    }
}

impl Shapes {
    /// What a call reads.
    pub(super) fn request<T: JsonSchema>(&mut self) -> Value {
        let mut schema = self.requests.subschema_for::<T>().to_value();
        rename(&mut schema);
        schema
    }

    /// What a call says.
    pub(super) fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().to_value()
    }

    /// What they refer to, by name.
    pub(super) fn into_definitions(mut self) -> Map<String, Value> {
        let read = self.requests.take_definitions(true);
        let said = self.answers.take_definitions(true);
        let read = read.into_iter().map(|(name, mut schema)| {
            rename(&mut schema);
            (name + SENT, schema)
        });
        read.chain(said).collect::<BTreeMap<_, _>>().into_iter().collect()
    }
}

/// Refers to the definitions of what is read.
fn rename(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                reference.push_str(SENT);
            }
            map.values_mut().for_each(rename);
        }
        Value::Array(list) => list.iter_mut().for_each(rename),
        _ => {}
    }
}

/// Says in numbers what `format` says by name.
fn bounded(schema: &mut Schema) {
    let max: u64 = match schema.get("format").and_then(Value::as_str) {
        Some("uint16") => u16::MAX.into(),
        Some("uint32") => u32::MAX.into(),
        Some("uint64") => u64::MAX,
        _ => return,
    };
    let object = schema.ensure_object();
    object.entry("minimum").or_insert(0.into());
    object.entry("maximum").or_insert(Number::from(max).into());
}

/// Defaults are for who asks.
fn plain(schema: &mut Schema) {
    schema.remove("default");
}
