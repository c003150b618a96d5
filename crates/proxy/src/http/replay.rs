//! An answer that is an order to replay the request: its fields and its JSON form (PX-40..42, PX-50).

use std::time::Duration;

use h2::RecvStream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use perch_core::replay::{BadReplay, Replay};
use serde::Deserialize;
use tokio::io::AsyncRead;

use super::body::Progress;
use super::edit::Edit;
use super::head::{HEADERS_MAX, may_replace, valid_host, valid_target};
use super::response::Response;
use crate::buffer::{BUFFER_BYTES, Buffer, read_some};

/// The JSON form, without parameters.
const JSON: &[u8] = b"application/vnd.fly.replay+json";
/// Longest body of that form.
const JSON_BYTES_MAX: usize = 64 * 1024;
/// Names and values that a transform may bring, together: with the head that came they stay below what servers take.
const SET_BYTES_MAX: usize = 8 * 1024;
/// Fields that a transform may name.
const CHANGES_MAX: usize = 64;
/// The shortest time that is cached (PX-50).
const TTL_MIN: Duration = Duration::from_secs(10);
/// The longest: replays are cached at best effort.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest pattern of a cache.
const PATTERN_BYTES_MAX: usize = 1024;

/// What the Machine wants.
#[derive(Debug, PartialEq)]
pub(crate) struct Order {
    pub(crate) replay: Replay,
    pub(crate) transform: Option<Transform>,
    pub(crate) cache: Option<Caching>,
}

/// How the request is changed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Transform {
    path: Option<String>,
    drop: Vec<String>,
    set: Vec<(String, String)>,
}

impl Transform {
    pub(super) fn edit(&self) -> Edit {
        Edit { path: self.path.clone(), drop: self.drop.clone(), set: self.set.clone() }
    }
}

/// What is to be remembered of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Requests that fit the pattern go the same way for so long.
    Store { pattern: String, ttl: Duration, may_skip: bool },
    /// What is remembered for this request is forgotten.
    Forget,
}

/// Whether the value of a Content-Type is that of the JSON form.
pub(super) fn is_json(value: &[u8]) -> bool {
    let form = value.split(|byte| *byte == b';').next().unwrap_or_default();
    JSON.len() <= value.len() && form.trim_ascii().eq_ignore_ascii_case(JSON)
}

/// Takes the order out of an answer, of which `input` is the beginning, head included.
pub(crate) async fn take(
    machine: &mut (impl AsyncRead + Unpin),
    mut input: Buffer,
    response: &mut Response,
) -> Result<Box<Order>, BadReplay> {
    let fields = Fields::of_head(&input.filled()[..response.head_len])?;
    input.consume(response.head_len);
    let mut body = Progress::new(response.framing);
    let mut json = Vec::new();
    let whole = read_body(machine, input, &mut body, fields.json.then_some(&mut json)).await;
    if !whole {
        response.machine_after = super::head::After::Close;
    }
    let order = if fields.json { of_json(&json) } else { fields.order() };
    order.map(Box::new)
}

/// Whether an answer of HTTP/2 is an order.
pub(crate) fn is_order(status: StatusCode, headers: &HeaderMap) -> bool {
    let json = || headers.get_all(CONTENT_TYPE).iter().any(|it| is_json(it.as_bytes()));
    !status.is_informational() && (headers.contains_key("fly-replay") || json())
}

/// Takes the order out of one.
pub(crate) async fn take_fields(
    headers: &HeaderMap,
    body: &mut RecvStream,
) -> Result<Box<Order>, BadReplay> {
    let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let fields = Fields::of(fields)?;
    if !fields.json {
        return fields.order().map(Box::new);
    }
    let mut json = Vec::new();
    while json.len() <= JSON_BYTES_MAX
        && let Some(Ok(piece)) = body.data().await
    {
        json.extend_from_slice(&piece);
        // It fails when the stream has ended meanwhile: then there is nothing to open.
        let _released = body.flow_control().release_capacity(piece.len()).is_ok();
    }
    of_json(&json).map(Box::new)
}

/// Reads the body, if somebody wants it; says whether all of it is there and nothing more.
async fn read_body(
    machine: &mut (impl AsyncRead + Unpin),
    mut input: Buffer,
    body: &mut Progress,
    mut json: Option<&mut Vec<u8>>,
) -> bool {
    while !body.is_done() {
        let bytes = input.filled();
        let stepped = body.step(bytes, |content| {
            if let Some(json) = &mut json {
                json.extend_from_slice(&bytes[content]);
            }
        });
        let Ok(piece) = stepped else { return false };
        let done = piece.done || body.is_done();
        if done || json.as_ref().is_none_or(|json| JSON_BYTES_MAX < json.len()) {
            return done && piece.consumed == bytes.len();
        }
        input = match read_some(machine, BUFFER_BYTES).await {
            Ok(input) if !input.is_empty() => input,
            Ok(_) | Err(_) => return false,
        };
    }
    input.is_empty()
}

/// What the head says.
#[derive(Debug, Default)]
struct Fields {
    json: bool,
    replay: Option<String>,
    cache: Option<String>,
    ttl: Option<String>,
    may_skip: Option<String>,
}

impl Fields {
    fn of_head(head: &[u8]) -> Result<Self, BadReplay> {
        let mut space = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut space);
        parsed.parse(head).map_err(|_| bad("the head is malformed"))?;
        Self::of(parsed.headers.iter().map(|header| (header.name, header.value)))
    }

    fn of<'a>(all: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, BadReplay> {
        let mut fields = Self::default();
        for (name, value) in all {
            let slot = match name.to_ascii_lowercase().as_str() {
                "content-type" => {
                    fields.json |= is_json(value);
                    continue;
                }
                "fly-replay" => &mut fields.replay,
                "fly-replay-cache" => &mut fields.cache,
                "fly-replay-cache-ttl-secs" => &mut fields.ttl,
                "fly-replay-cache-allow-bypass" => &mut fields.may_skip,
                _ => continue,
            };
            let value = std::str::from_utf8(value).map_err(|_| bad("it is no UTF-8"))?;
            if slot.replace(value.trim().to_owned()).is_some() {
                return Err(bad("a fly-replay field is there twice"));
            }
        }
        Ok(fields)
    }

    fn order(self) -> Result<Order, BadReplay> {
        let replay = Replay::parse(self.replay.as_deref().unwrap_or_default())?;
        let cache = match self.cache.as_deref() {
            None => None,
            Some("invalidate") => Some(Caching::Forget),
            Some(pattern) => {
                let ttl = self.ttl.and_then(|text| text.parse().ok());
                let may_skip = matches!(self.may_skip.as_deref(), Some("yes" | "true"));
                Some(store(pattern, ttl, may_skip)?)
            }
        };
        check(Order { replay, transform: None, cache })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    app: Option<String>,
    instance: Option<String>,
    prefer_instance: Option<String>,
    region: Option<String>,
    state: Option<String>,
    elsewhere: Option<bool>,
    timeout: Option<String>,
    fallback: Option<String>,
    transform: Option<JsonTransform>,
    cache: Option<JsonCache>,
    allow_bypass: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonTransform {
    path: Option<String>,
    #[serde(default)]
    delete_headers: Vec<String>,
    #[serde(default)]
    set_headers: Vec<JsonHeader>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonCache {
    prefix: Option<String>,
    ttl: Option<u64>,
    #[serde(default)]
    invalidate: bool,
    #[serde(default)]
    allow_bypass: bool,
}

/// Reads the two forms, for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn try_read(input: &[u8]) {
    let _json = of_json(input).is_ok();
    let lines = [b"HTTP/1.1 200 OK\r\nfly-replay: ", input, b"\r\n\r\n"].concat();
    let _field = Fields::of_head(&lines).and_then(Fields::order).is_ok();
}

fn of_json(body: &[u8]) -> Result<Order, BadReplay> {
    if JSON_BYTES_MAX < body.len() {
        return Err(bad("the JSON has more than 64 KiB"));
    }
    let json: Json = serde_json::from_slice(body)
        .map_err(|error| BadReplay(format!("the JSON: {error:.200}")))?;
    let mut replay = Replay::default();
    for (key, value) in [
        ("app", &json.app),
        ("instance", &json.instance),
        ("prefer_instance", &json.prefer_instance),
        ("region", &json.region),
        ("state", &json.state),
        ("timeout", &json.timeout),
        ("fallback", &json.fallback),
    ] {
        replay.set(key, value.as_deref().unwrap_or_default())?;
    }
    replay.elsewhere = json.elsewhere.unwrap_or(false);
    replay.check()?;
    let may_skip = json.allow_bypass.unwrap_or(false);
    let cache = json.cache.map(|cache| cache.caching(may_skip)).transpose()?;
    let transform = json.transform.map(JsonTransform::checked).transpose()?;
    check(Order { replay, transform, cache })
}

impl JsonCache {
    fn caching(self, may_skip: bool) -> Result<Caching, BadReplay> {
        if self.invalidate {
            return Ok(Caching::Forget);
        }
        store(self.prefix.as_deref().unwrap_or_default(), self.ttl, may_skip || self.allow_bypass)
    }
}

impl JsonTransform {
    /// Nothing that changes where the message ends, or that only we may say.
    fn checked(self) -> Result<Transform, BadReplay> {
        if self.path.as_deref().is_some_and(|path| !path.starts_with('/') || !valid_target(path)) {
            return Err(bad("transform.path is no path"));
        }
        let set: Vec<_> = self.set_headers.into_iter().map(|h| (h.name, h.value)).collect();
        let names = set.iter().map(|(name, _)| name).chain(&self.delete_headers);
        if let Some(name) = names.clone().find(|name| !may_replace(name)) {
            return Err(BadReplay(format!("transform may not change the header {name:.64}")));
        }
        let bytes: usize = set.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        if CHANGES_MAX < names.count() || SET_BYTES_MAX < bytes {
            return Err(bad("transform has more than 64 headers or 8 KiB"));
        }
        let value_ok = |value: &str| !value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f);
        let host_ok =
            |name: &str, value: &str| !name.eq_ignore_ascii_case("host") || valid_host(value);
        if !set.iter().all(|(name, value)| value_ok(value) && host_ok(name, value)) {
            return Err(bad("transform.set_headers has a value that no header can have"));
        }
        let drops_host = self.delete_headers.iter().any(|name| name.eq_ignore_ascii_case("host"));
        if drops_host {
            return Err(bad("transform may not delete Host"));
        }
        Ok(Transform { path: self.path, drop: self.delete_headers, set })
    }
}

fn store(pattern: &str, ttl: Option<u64>, may_skip: bool) -> Result<Caching, BadReplay> {
    let ttl = ttl.map(Duration::from_secs).filter(|ttl| TTL_MIN <= *ttl);
    let ttl = ttl.ok_or_else(|| bad("a cache needs a ttl of 10 seconds or more"))?.min(TTL_MAX);
    let known = pattern.contains('/') && pattern.len() <= PATTERN_BYTES_MAX;
    if !known || !pattern.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad("a cache needs a path, or a host and a path, of at most 1024 bytes"));
    }
    Ok(Caching::Store { pattern: pattern.to_owned(), ttl, may_skip })
}

/// PX-52.
fn check(order: Order) -> Result<Order, BadReplay> {
    let Order { replay, transform, cache } = &order;
    let stored = matches!(cache, Some(Caching::Store { .. }));
    if stored && !(replay.is_lasting() && transform.is_none()) {
        return Err(bad("with a cache there can be no state, timeout, fallback or transform"));
    }
    Ok(order)
}

fn bad(text: &str) -> BadReplay {
    BadReplay(text.to_owned())
}

#[cfg(test)]
mod tests;
