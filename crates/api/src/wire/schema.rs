//! What the types on the wire accept beyond what their Rust types tell, for the API's description.
//!
//! The fields name these functions beside serde's attributes that they explain. A wrong one is found
//! by the description's test against a running server.

use schemars::Schema;
use serde_json::{Map, Value, json};

/// Names of apps and organizations.
pub(crate) const LABEL: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// The same, where an empty text means "not given".
pub(crate) const LABEL_OR_EMPTY: &str = "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$";
/// Names of networks, or nothing.
pub(crate) const NETWORK_OR_EMPTY: &str = "^([A-Za-z][A-Za-z0-9-]{0,62})?$";
/// A line for people. Its 200 bytes can be fewer characters.
pub(crate) const LINE: &str = "^[^\\x00-\\x1f\\x7f-\\x9f]{0,200}$";
/// Lengths of time in text. Longer ones are understood, too.
pub(crate) const DURATION: &str =
    "^\\+?(0|(([0-9]{1,6}(\\.[0-9]{0,9})?|\\.[0-9]{1,9})(ns|us|µs|ms|s|m|h)){1,2})$";

/// `null` counts as absent.
pub(crate) fn nullable(schema: &mut Schema) {
    also(schema, json!({"type": "null"}));
}

/// `""` and `null` count as absent.
pub(crate) fn empty_or_null(schema: &mut Schema) {
    also(schema, json!({"enum": ["", null]}));
}

/// One of these words, which may be more than the names that we write.
pub(crate) fn words(words: &'static [&'static str]) -> impl FnMut(&mut Schema) {
    move |schema| {
        let object = schema.ensure_object();
        object.retain(|key, _| key == "description");
        object.insert("enum".to_owned(), json!(words));
    }
}

/// Wraps what a value may be; what is said about it stays outside.
fn also(schema: &mut Schema, other: Value) {
    let object = schema.ensure_object();
    let told = ["description", "default"].into_iter();
    let outside: Map<String, Value> =
        told.filter_map(|key| Some((key.to_owned(), object.remove(key)?))).collect();
    let mut choices = match object.remove("anyOf") {
        Some(Value::Array(choices)) if object.is_empty() => choices,
        Some(choices) => {
            object.insert("anyOf".to_owned(), choices);
            vec![Value::Object(std::mem::take(object))]
        }
        None => vec![Value::Object(std::mem::take(object))],
    };
    choices.push(other);
    object.insert("anyOf".to_owned(), Value::Array(choices));
    object.extend(outside);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_absent_is_one_choice_more() {
        let mut schema = schemars::json_schema!({"description": "d", "$ref": "#/x"});
        nullable(&mut schema);
        let wanted = json!({"description": "d", "anyOf": [{"$ref": "#/x"}, {"type": "null"}]});
        assert_eq!(schema.clone().to_value(), wanted);
        empty_or_null(&mut schema);
        assert_eq!(schema.to_value()["anyOf"][2], json!({"enum": ["", null]}));
    }
}
