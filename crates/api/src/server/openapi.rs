//! The API's description in OpenAPI 3.1: `GET /v1/openapi.json`.
//!
//! What travels is read off the wire types (`schemars`), who may call off the table of access, the
//! methods off the routes. Only what no type tells is written by hand, in [`calls`], one entry per
//! call: its sentence, query, status codes. Tests fail for a routed call without an entry and for an
//! entry without a route, and `cargo x test wire` tries whether all of it is true of a server.

mod call;
mod calls;
mod parameter;
mod shapes;

use std::sync::OnceLock;

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use super::access::{self, Operation};
use call::Call;
use shapes::Shapes;

/// The description as JSON. Made once, with the first question.
pub(super) fn document() -> Bytes {
    static DOCUMENT: OnceLock<Bytes> = OnceLock::new();
    DOCUMENT.get_or_init(|| description().to_string().into()).clone()
}

fn description() -> Value {
    let mut shapes = Shapes::default();
    let mut paths = Map::new();
    for call in calls::calls() {
        let operation = access::operation(call.method(), call.path());
        let described = describe(&call, operation.as_ref(), &mut shapes);
        let path = paths.entry(call.path()).or_insert_with(|| json!({}));
        path[call.method().to_lowercase()] = described;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Perch",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Fly's Machines API as far as Perch has it, the image pushes of the OCI \
                distribution, and calls of Perch's own. Lists are whole: nothing is paged but log lines. \
                Unknown keys of a body are ignored, those of a Machine's config are kept. Whatever \
                has GET has HEAD, too. Every answer has `fly-request-id`, which the log of the server \
                names with a failure; only a request whose address and headers have more than 64 KiB \
                together is answered by a bare 431 or 414. On the Unix socket no token is needed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token of `perch token create`. The scheme may be FlyV1, or Basic with \
                    the token as password.",
            }},
            "schemas": shapes.into_definitions(),
        },
    })
}

fn describe(call: &Call, operation: Option<&Operation>, shapes: &mut Shapes) -> Value {
    let mut described = call.describe(operation, shapes);
    if let Some(operation) = operation {
        described["x-perch-changes"] = operation.changes.into();
        described["x-perch-whose"] = operation.whose.into();
    }
    described
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn named(method: &str, path: &str) -> String {
        format!("{method} {path}")
    }

    #[test]
    fn every_routed_call_is_described_and_every_described_one_routed() {
        let routed: BTreeSet<String> =
            access::operations().iter().map(|it| named(it.method, it.path)).collect();
        let described: Vec<String> =
            calls::calls().iter().map(|it| named(it.method(), it.path())).collect();
        let once: BTreeSet<String> = described.iter().cloned().collect();
        assert_eq!(once.len(), described.len(), "openapi/calls.rs has a call twice");
        let missing: Vec<_> = routed.difference(&once).collect();
        let unrouted: Vec<_> = once.difference(&routed).collect();
        assert!(missing.is_empty(), "add to server/openapi/calls.rs what these do: {missing:?}");
        assert!(
            unrouted.is_empty(),
            "server/openapi/calls.rs describes what no route has: {unrouted:?}"
        );
    }

    #[test]
    fn whatever_is_referred_to_is_there() {
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        let found = document.pointer(reference.trim_start_matches('#'));
                        assert!(found.is_some(), "{reference} is not there");
                    }
                    map.values().for_each(|value| check(value, document));
                }
                Value::Array(list) => list.iter().for_each(|value| check(value, document)),
                _ => {}
            }
        }
        let document = description();
        check(&document, &document);
    }

    #[test]
    fn what_only_reads_takes_no_body_and_what_changes_can_be_forbidden() {
        let document = description();
        for operation in access::operations() {
            let described = &document["paths"][operation.path][operation.method.to_lowercase()];
            let name = named(operation.method, operation.path);
            let can_be_forbidden = operation.changes || operation.whose == "host";
            let is_described = !described["responses"]["403"].is_null();
            assert!(is_described || !can_be_forbidden, "{name}");
            assert!(operation.changes || described["requestBody"].is_null(), "{name}");
        }
    }

    /// Whether a schema of a query lets an empty value be.
    fn takes_empty(schema: &Value) -> bool {
        let any = |key: &str| schema[key].as_array().into_iter().flatten().any(takes_empty);
        let pattern = schema["pattern"].as_str();
        let words = schema["enum"].as_array();
        match (schema["type"].as_str(), words, pattern) {
            (Some("array"), ..) => takes_empty(&schema["items"]),
            (Some("string"), Some(words), _) => words.iter().any(|word| word == ""),
            (Some("string"), None, pattern) => pattern.is_none_or(|it| it.ends_with(")?$")),
            _ => any("anyOf"),
        }
    }

    #[test]
    fn what_a_query_need_not_say_it_may_say_as_nothing() {
        let document = description();
        let mut seen = 0;
        for operation in access::operations() {
            let described = &document["paths"][operation.path][operation.method.to_lowercase()];
            let parameters = described["parameters"].as_array().into_iter().flatten();
            for it in parameters.filter(|it| it["in"] == "query" && it["required"] == false) {
                seen += 1;
                assert!(
                    takes_empty(&it["schema"]),
                    "{} {}: {it}",
                    operation.method,
                    operation.path
                );
            }
        }
        assert!(20 < seen, "{seen} were found");
    }
}
