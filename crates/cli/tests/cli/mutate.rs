//! Files by chance: pieces of real ones, cut, doubled, and strewn with what parsers trip over. And the
//! promises that hold for every one of them. Used by the tests, with a few thousand files, and by the
//! example `fly-toml-fuzz`, for as long as one likes.

use perch_cli::flytoml::{self, Level};
use serde_json::{Value, json};
use std::path::Path;

/// What parsers of TOML, JSON and YAML trip over, and forms that flyctl treats in its own way.
const TOKENS: [&[u8]; 76] = [
    b"\"",
    b"'",
    b"\n",
    b"\r",
    b"\r\n",
    b"[",
    b"]",
    b"[[",
    b"]]",
    b"{",
    b"}",
    b"=",
    b".",
    b",",
    b"#",
    b" ",
    b"\t",
    b"\"\"\"",
    b"'''",
    b"\\",
    b"\\u00e9",
    b"\\e",
    b"\\x41",
    b"\\ud800",
    b"0",
    b"01",
    b"1_000",
    b"_",
    b"0x",
    b"1e5",
    b"1e999",
    b"inf",
    b"nan",
    b"-",
    b"true",
    b"null",
    b"\xc3\xa9",
    b"\xff",
    b"\x00",
    b"\x7f",
    b"\xef\xbb\xbf",
    b":",
    b": ",
    b"<<: *a\n",
    b"&a ",
    b"*a",
    b"~",
    b"|\n",
    b">-\n",
    b"!!int ",
    b"---\n",
    b"- ",
    b"? ",
    b"99999999999999999999",
    b"-9223372036854775808",
    b"9007199254740993",
    b"1979-05-27T07:32:00Z",
    b"07:32:00",
    b"{a=1}",
    b"[1,]",
    b"a.b = 1\n",
    b"app = \"x\"\n",
    b"[env]\n",
    b"[[env]]\n",
    b"[services]\n",
    b"processes = []\n",
    b"kill_timeout = 5\n",
    b"[http_service.checks.x]\n",
    b"[[HTTP_Service]]\n",
    b"[Http_Service]\n",
    b"\"-9223372036854775808ns\"",
    b"concurrency = \"20,25\"\n",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
    b"\"1h2m3.5s\"",
    b"MEMORY = 512\n",
];

/// One file of each language that has every section, so that chance finds them all.
const SEEDS: [(&str, &str); 3] = [
    ("fly.toml", include_str!("seed.toml")),
    ("fly.json", include_str!("seed.json")),
    ("fly.yaml", include_str!("seed.yaml")),
];
/// A piece of a file; small ones are read quickly and mutations in them still meet each other.
const PIECE_BYTES: usize = 1_200;

/// A small generator of numbers; a seed replays a run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or(0)
    }

    fn of<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

/// Files to start from: our own, and further ones.
pub(crate) fn seeds(further: Vec<(String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let own = SEEDS.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    own.chain(further).collect()
}

/// A name, which tells the language, and the content of a file by chance.
pub(crate) fn file<'s>(random: &mut Random, seeds: &'s [(String, Vec<u8>)]) -> (&'s str, Vec<u8>) {
    let (name, seed) = &seeds[random.below(seeds.len())];
    let start = random.below(seed.len().saturating_sub(PIECE_BYTES) + 1);
    let line = seed[..start].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut bytes: Vec<u8> = match random.below(3) {
        0 => seed.clone(),
        _ => seed[line..].iter().copied().take(PIECE_BYTES).collect(),
    };
    for _ in 0..random.below(6) {
        mutate(random, &mut bytes, seeds);
    }
    (name, bytes)
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[(String, Vec<u8>)]) {
    let at = random.below(bytes.len() + 1);
    match random.below(10) {
        0..5 => {
            let token = random.of(&TOKENS.map(|token| token));
            bytes.splice(at..at, token.iter().copied());
        }
        5 | 6 => {
            let end = (at + 1 + random.below(5)).min(bytes.len());
            bytes.drain(at.min(end)..end);
        }
        7 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] = u8::try_from(random.below(256)).unwrap_or(0);
        }
        8 => double_a_line(random, bytes),
        _ => {
            let (_, other) = &seeds[random.below(seeds.len())];
            let from = random.below(other.len());
            let piece = other[from..].iter().copied().take(random.below(80));
            bytes.splice(at..at, piece.collect::<Vec<_>>());
        }
    }
}

fn double_a_line(random: &mut Random, bytes: &mut Vec<u8>) {
    let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let line = lines[random.below(lines.len())].clone();
    let at = random.below(lines.len());
    lines.insert(at, line);
    *bytes = lines.join(&b'\n');
}

/// What must hold for any file at all; says what does not.
pub(crate) fn check(name: &str, bytes: &[u8]) -> Result<(), String> {
    let Ok(loaded) = flytoml::parse_bytes(Path::new(name), bytes) else { return Ok(()) };
    let described = flytoml::described(&loaded);
    if loaded.problems.iter().any(|problem| problem.level == Level::Shape) {
        return match described["config"].is_null() && loaded.has_errors() {
            true => Ok(()),
            false => Err("a file without a shape has a configuration".to_owned()),
        };
    }
    let config = Value::Object(flytoml::to_json(&loaded.config));
    if !has_large_number(&config) {
        same("fly.json", &config.to_string(), &config)?;
    }
    if !has_null(&config) {
        same("fly.toml", &flytoml::to_toml(&loaded.config), &config)?;
    }
    Ok(())
}

fn same(name: &str, printed: &str, config: &Value) -> Result<(), String> {
    let again = flytoml::parse(Path::new(name), printed)
        .map_err(|error| format!("what we print is not read: {error}\n{printed}"))?;
    let again = Value::Object(flytoml::to_json(&again.config));
    match without_nothing(&again) == without_nothing(config) {
        true => Ok(()),
        false => Err(format!("{name} came back as another\n{config}\n{again}\n{printed}")),
    }
}

/// A `[build]` or service that had only unknown keys is kept as an empty one, as flyctl keeps it, and
/// an empty one is dropped, as flyctl drops it.
fn without_nothing(config: &Value) -> Value {
    let is_nothing = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    let mut map = config.as_object().cloned().unwrap_or_default();
    if let Some(Value::Array(services)) = map.get_mut("services") {
        services.retain(|service| !is_nothing(service));
    }
    map.retain(|key, value| match key.as_str() {
        "build" => !is_nothing(value),
        "services" => *value != json!([]),
        _ => true,
    });
    Value::Object(map)
}

/// Numbers of JSON are floats, here as in flyctl: beyond 2^53 they are not exact.
fn has_large_number(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_some_and(|number| number.abs() >= 9e15),
        Value::Array(items) => items.iter().any(has_large_number),
        Value::Object(map) => map.values().any(has_large_number),
        _ => false,
    }
}

/// TOML has no word for nothing.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(map) => map.values().any(has_null),
        _ => false,
    }
}
