//! Records of the ledger as spans, in the JSON encoding of OTLP.
//!
//! Each wake, and each wait of a caller, is a trace of its own: one span, and below it its phases one behind the other,
//! which add up to it. Ids are made of the record's own, so that what is told twice is the same span.

use perch_api::wire::{LedgerEvent, Trigger};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// Whether it becomes spans.
pub(super) fn is_told(event: &LedgerEvent) -> bool {
    matches!(event.kind.as_str(), "wake" | "hold" | "failed")
}

/// The body of a request that exports these records.
pub(super) fn request(region: &str, events: &[LedgerEvent]) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    let spans: Vec<Value> = events.iter().flat_map(|event| spans(region, event)).collect();
    let resource = [
        attribute("service.name", "perch"),
        attribute("service.version", version),
        attribute("cloud.region", region),
    ];
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": {"name": "perch", "version": version}, "spans": spans}],
    }]})
}

fn spans(region: &str, event: &LedgerEvent) -> Vec<Value> {
    // The id is when it was over.
    let begin = event.id.saturating_sub(event.total_micros);
    let root = id(region, event.id, 0, 8);
    let trace = id(region, event.id, u64::MAX, 16);
    let mut whole = span(&trace, &root, &event.kind, (begin, event.total_micros));
    whole["attributes"] = attributes(event).into();
    if event.kind == "failed" {
        whole["status"] = json!({"code": ERROR, "message": event.reason});
    }
    let mut all = vec![whole];
    let mut from = begin;
    for (place, phase) in (1..).zip(&event.phases) {
        let own = id(region, event.id, place, 8);
        let mut part = span(&trace, &own, &phase.name, (from, phase.micros));
        part["parentSpanId"] = root.clone().into();
        all.push(part);
        from += phase.micros;
    }
    all
}

fn span(trace: &str, own: &str, name: &str, (begin, micros): (u64, u64)) -> Value {
    let nanos = |micros: u64| format!("{micros}000");
    json!({
        "traceId": trace,
        "spanId": own,
        "name": name,
        "kind": INTERNAL,
        "startTimeUnixNano": nanos(begin),
        "endTimeUnixNano": nanos(begin + micros),
    })
}

fn attributes(event: &LedgerEvent) -> Vec<Value> {
    let nobody = Trigger::default();
    let by = event.trigger.as_ref().unwrap_or(&nobody);
    let run = if event.run == 0 { String::new() } else { event.run.to_string() };
    let port = if by.port == 0 { String::new() } else { by.port.to_string() };
    let first = if event.kind == "hold" { event.first.to_string() } else { String::new() };
    let all = [
        ("perch.app", event.app.as_str()),
        ("perch.machine", &event.machine),
        ("perch.run", &run),
        ("perch.from", &event.from),
        ("perch.how", &event.how),
        ("perch.first", &first),
        ("perch.reason", &event.reason),
        ("perch.trigger", &by.kind),
        ("perch.trigger.app", &by.app),
        ("perch.trigger.machine", &by.machine),
        ("client.address", &by.address),
        ("client.port", &port),
        ("http.request.method", &by.method),
        ("url.path", &by.path),
    ];
    let known = all.into_iter().filter(|(_, value)| !value.is_empty());
    known.map(|(key, value)| attribute(key, value)).collect()
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// So many bytes that are this record's own, in hexadecimal digits.
fn id(region: &str, record: u64, place: u64, bytes: usize) -> String {
    let digest = Sha256::new()
        .chain_update(region.as_bytes())
        .chain_update(record.to_be_bytes())
        .chain_update(place.to_be_bytes())
        .finalize();
    digest.iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use perch_api::wire::LedgerPhase;

    use super::*;

    fn wait() -> LedgerEvent {
        let phase = |name: &str, micros| LedgerPhase { name: name.to_owned(), micros };
        LedgerEvent {
            id: 1_700_000_000_000_500,
            app: "web".to_owned(),
            machine: "00000000000001".to_owned(),
            run: 3,
            kind: "hold".to_owned(),
            how: "start".to_owned(),
            first: true,
            trigger: Some(Trigger { method: "GET".to_owned(), port: 7, ..Trigger::default() }),
            total_micros: 500,
            phases: vec![phase("wake", 300), phase("connect", 50), phase("answer", 150)],
            ..LedgerEvent::default()
        }
    }

    #[test]
    fn phases_are_children_one_behind_the_other_that_add_up_to_the_whole() {
        let body = request("lcl", &[wait()]);
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("a list");
        let time = |span: &Value, key: &str| {
            span[key].as_str().expect("a text").parse::<u64>().expect("a number")
        };
        let [root, children @ ..] = spans.as_slice() else { panic!("{body}") };
        assert_eq!(root["name"], "hold");
        assert_eq!(time(root, "startTimeUnixNano"), 1_700_000_000_000_000_000);
        let mut from = time(root, "startTimeUnixNano");
        for (child, name) in children.iter().zip(["wake", "connect", "answer"]) {
            assert_eq!(
                (child["name"].as_str(), &child["parentSpanId"]),
                (Some(name), &root["spanId"])
            );
            assert_eq!(child["traceId"], root["traceId"]);
            assert_eq!(time(child, "startTimeUnixNano"), from);
            from = time(child, "endTimeUnixNano");
        }
        assert_eq!((from, children.len()), (time(root, "endTimeUnixNano"), 3));
    }

    #[test]
    fn ids_are_as_long_as_they_must_be_and_nobody_elses() {
        let body = request("lcl", &[wait(), LedgerEvent { id: 9, ..wait() }]);
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("a list");
        let mut ids: Vec<_> = spans.iter().filter_map(|span| span["spanId"].as_str()).collect();
        assert!(ids.iter().all(|id| id.len() == 16));
        assert!(spans.iter().all(|span| span["traceId"].as_str().is_some_and(|id| id.len() == 32)));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 8);
        assert_eq!(body, request("lcl", &[wait(), LedgerEvent { id: 9, ..wait() }]));
        assert_ne!(body, request("fra", &[wait(), LedgerEvent { id: 9, ..wait() }]));
    }

    #[test]
    fn what_is_not_known_is_not_said_and_failures_are() {
        let told = attributes(&wait());
        assert!(told.contains(&attribute("perch.first", "true")));
        assert!(told.contains(&attribute("client.port", "7")));
        assert!(!told.iter().any(|it| it["key"] == "perch.reason"));
        let failed = LedgerEvent { kind: "failed".to_owned(), reason: "no".to_owned(), ..wait() };
        assert_eq!(spans("lcl", &failed)[0]["status"], json!({"code": 2, "message": "no"}));
        assert!(is_told(&failed) && !is_told(&LedgerEvent { kind: "veto".to_owned(), ..wait() }));
    }
}
