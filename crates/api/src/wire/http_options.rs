//! `http_options` of a port: what of them is obeyed, and what in them makes no sense.

use serde_json::Value;

/// What the `http` handler is asked for. Absent keys, and those that make no sense, have their defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpOptions {
    /// The program speaks HTTP/2 by prior knowledge (PX-81).
    pub h2_backend: bool,
    /// Answers are compressed for callers that want that (PX-87).
    pub compress: bool,
    /// Seconds without a byte after which a request or an upgraded connection ends; `None` or 0: never (PX-88, OQ-21).
    pub idle_timeout: Option<u32>,
    /// Fields of answers, by name: none of its name is passed on, these values are set (PX-21).
    pub response_headers: Vec<(String, Vec<String>)>,
    /// Whose replays are remembered by sessions (PX-51).
    pub replay_cache: Vec<ReplayCache>,
}

/// One of `replay_cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayCache {
    /// `/path`, or `host/path`.
    pub path_prefix: String,
    /// How long a session is remembered.
    pub ttl_seconds: u64,
    /// What tells sessions apart: a field of the request; otherwise a cookie.
    pub is_header: bool,
    /// Of the field or cookie.
    pub name: String,
    /// A caller may say that it wants to pass it by.
    pub allow_bypass: bool,
}

/// Something in `http_options` that cannot be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadHttpOption {
    /// Below `http_options`, as `response.headers.Via`.
    pub key: String,
    /// What is wrong.
    pub text: String,
    /// What to write instead.
    pub remedy: &'static str,
}

/// Longer values than this are a mistake: heads of answers are limited too.
const VALUE_BYTES_MAX: usize = 4 * 1024;
/// More fields than this are a mistake.
const FIELDS_MAX: usize = 64;

/// More rules than this are a mistake.
const RULES_MAX: usize = 64;
/// The shortest time that a replay is remembered (PX-52), and the longest.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 10..=24 * 3600;

/// They frame the message, or say what the connection is: only the proxy knows.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-encoding",
];
/// They are the proxy's own words, as is all that begins with `Fly-` or `Perch-`.
const OURS: [&str; 2] = ["server", "via"];

impl HttpOptions {
    /// Reads what is good, and tells what is not.
    pub fn read(options: &Value) -> (Self, Vec<BadHttpOption>) {
        let seconds = options.get("idle_timeout").and_then(Value::as_u64);
        let is_on = |key| options.get(key).and_then(Value::as_bool).unwrap_or(false);
        let mut read = Self {
            h2_backend: is_on("h2_backend"),
            compress: is_on("compress"),
            idle_timeout: seconds.filter(|it| *it != 0).and_then(|it| u32::try_from(it).ok()),
            response_headers: Vec::new(),
            replay_cache: Vec::new(),
        };
        let mut bad = Vec::new();
        let headers = options.get("response").and_then(|response| response.get("headers"));
        for (name, value) in headers.and_then(Value::as_object).into_iter().flatten() {
            match field(name, value, read.response_headers.len()) {
                Ok(values) => read.response_headers.push((name.clone(), values)),
                Err((text, remedy)) => {
                    let key = format!("response.headers.{name}");
                    bad.push(BadHttpOption { key, text, remedy });
                }
            }
        }
        let rules = options.get("replay_cache").and_then(Value::as_array);
        for (at, rule) in rules.into_iter().flatten().enumerate() {
            match replay_cache(rule, at) {
                Ok(rule) => read.replay_cache.push(rule),
                Err((key, text, remedy)) => {
                    bad.push(BadHttpOption {
                        key: format!("replay_cache[{at}].{key}"),
                        text,
                        remedy,
                    });
                }
            }
        }
        (read, bad)
    }
}

/// Otherwise which key is wrong, how, and what helps.
fn replay_cache(
    rule: &Value,
    before: usize,
) -> Result<ReplayCache, (&'static str, String, &'static str)> {
    let text = |key| rule.get(key).and_then(Value::as_str).unwrap_or_default();
    let (path_prefix, name) = (text("path_prefix"), text("name"));
    if before == RULES_MAX {
        let text = format!("is more than the {RULES_MAX}th rule");
        return Err(("path_prefix", text, "let the program send fly-replay-cache"));
    }
    let is_path = path_prefix.contains('/') && path_prefix.len() <= 1024;
    if !is_path || !path_prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        let text = format!("{path_prefix:?} is no path");
        return Err(("path_prefix", text, "write \"/\", a path, or a host and a path"));
    }
    let is_header = match text("type") {
        "header" => true,
        "cookie" => false,
        other => {
            let text = format!("unknown type {other:?}");
            return Err(("type", text, "write \"cookie\" or \"header\""));
        }
    };
    if name.is_empty() || 128 < name.len() || !name.bytes().all(is_token_byte) {
        let text = format!("{name:?} is no name of a cookie or field");
        return Err(("name", text, "use letters, digits and dashes"));
    }
    let ttl_seconds = rule.get("ttl_seconds").and_then(Value::as_u64).unwrap_or_default();
    if !TTL_SECONDS.contains(&ttl_seconds) {
        let text = format!("{} is not remembered", rule.get("ttl_seconds").unwrap_or(&Value::Null));
        return Err(("ttl_seconds", text, "write a number of seconds from 10 to 86400"));
    }
    let allow_bypass = rule.get("allow_bypass").and_then(Value::as_bool).unwrap_or(false);
    let (path_prefix, name) = (path_prefix.to_owned(), name.to_owned());
    Ok(ReplayCache { path_prefix, ttl_seconds, is_header, name, allow_bypass })
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn field(name: &str, value: &Value, before: usize) -> Result<Vec<String>, (String, &'static str)> {
    if before == FIELDS_MAX {
        return Err((format!("is more than the {FIELDS_MAX}th field"), "let the program set it"));
    }
    if name.is_empty() || 128 < name.len() || !name.bytes().all(is_token_byte) {
        return Err((format!("{name:?} is no name of a field"), "use letters, digits and dashes"));
    }
    let lower = name.to_ascii_lowercase();
    if FRAMING.contains(&lower.as_str()) {
        let text = format!("{name} says how an answer is sent, which is not known here");
        return Err((text, "remove it"));
    }
    if OURS.contains(&lower.as_str()) || lower.starts_with("fly-") || lower.starts_with("perch-") {
        return Err((format!("{name} is a field of the proxy's own"), "remove it"));
    }
    values(value)
}

fn values(value: &Value) -> Result<Vec<String>, (String, &'static str)> {
    const REMEDY: &str = "write false, a text, or a list of texts";
    let items = match value {
        Value::Bool(false) => return Ok(Vec::new()),
        Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let text = |item: &Value| match item {
        Value::String(text) => Ok(text.trim().to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err((format!("{other} is no value of a field"), REMEDY)),
    };
    let values = items.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    match values.iter().find(|it| VALUE_BYTES_MAX < it.len() || it.chars().any(char::is_control)) {
        Some(_) => {
            Err((format!("is longer than {VALUE_BYTES_MAX} bytes, or no single line"), REMEDY))
        }
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn headers(headers: &Value) -> (HttpOptions, Vec<BadHttpOption>) {
        HttpOptions::read(&json!({"response": {"headers": headers}}))
    }

    #[test]
    fn false_removes_a_text_sets_and_a_list_sets_several() {
        let (read, bad) = headers(&json!({"A": false, "B": " one ", "C": ["x", 2], "D": 3}));
        assert_eq!(bad, []);
        let texts = |values: &[&str]| values.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let of = |name: &str, values: &[&str]| (name.to_owned(), texts(values));
        assert_eq!(
            read.response_headers,
            [of("A", &[]), of("B", &["one"]), of("C", &["x", "2"]), of("D", &["3"])]
        );
    }

    #[test]
    fn what_frames_an_answer_or_is_ours_cannot_be_changed() {
        for name in ["Content-Length", "transfer-encoding", "CONNECTION", "Via", "server"] {
            let (read, bad) = headers(&json!({name: false, "Good": "x"}));
            assert_eq!((read.response_headers.len(), bad.len()), (1, 1), "{name}");
            assert_eq!(bad[0].key, format!("response.headers.{name}"));
        }
        for (name, value) in [
            ("Fly-Request-Id", json!("x")),
            ("perch-wake", json!("x")),
            ("a b", json!("x")),
            ("", json!("x")),
            ("A", json!(true)),
            ("A", json!({"b": "c"})),
            ("A", json!([["x"]])),
            ("A", json!("x\r\nB: c")),
        ] {
            let (read, bad) = headers(&json!({name: value}));
            assert_eq!((read.response_headers.len(), bad.len()), (0, 1), "{name:?}: {value}");
        }
    }

    #[test]
    fn rules_about_sessions_are_read_or_named_with_what_is_wrong() {
        let good = json!({"path_prefix": "/", "ttl_seconds": 10, "type": "cookie", "name": "s"});
        let read = |rule: &Value| HttpOptions::read(&json!({"replay_cache": [good, rule]}));
        let (options, bad) = read(&json!({"path_prefix": "h.test/api", "ttl_seconds": 86400,
            "type": "header", "name": "Authorization", "allow_bypass": true}));
        assert_eq!((options.replay_cache.len(), bad), (2, Vec::new()));
        assert!(options.replay_cache[1].is_header && options.replay_cache[1].allow_bypass);
        for (key, value) in [
            ("path_prefix", json!("path")),
            ("path_prefix", json!("/a b")),
            ("path_prefix", json!("")),
            ("type", json!("Cookie")),
            ("type", json!(null)),
            ("name", json!("a b")),
            ("name", json!("")),
            ("ttl_seconds", json!(9)),
            ("ttl_seconds", json!(-1)),
            ("ttl_seconds", json!("60")),
        ] {
            let mut rule = good.clone();
            rule[key] = value.clone();
            let (options, bad) = read(&rule);
            assert_eq!((options.replay_cache.len(), bad.len()), (1, 1), "{key} {value}");
            assert_eq!(bad[0].key, format!("replay_cache[1].{key}"));
        }
    }

    #[test]
    fn an_idle_timeout_of_nothing_is_none() {
        let idle = |value: Value| HttpOptions::read(&json!({"idle_timeout": value})).0.idle_timeout;
        assert_eq!([idle(json!(60)), idle(json!(0)), idle(json!("60"))], [Some(60), None, None]);
    }
}
