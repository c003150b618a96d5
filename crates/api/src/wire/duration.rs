//! Lengths of time as Go writes them: `"1m0s"`, or a bare number of nanoseconds.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::schema;

/// A length of time on the wire: text such as `"15s"` or `"1h30m"`; a bare number means
/// nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct GoDuration(pub Duration);

/// A text that is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time; write it like 300ms, 10s, 5m or 1h30m")]
pub struct BadDuration(String);

// Go counts nanoseconds in 64 signed bits.
const NANOS_MAX: u128 = i64::MAX as u128;

const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

impl FromStr for GoDuration {
    type Err = BadDuration;

    fn from_str(text: &str) -> Result<Self, BadDuration> {
        let bad = || BadDuration(text.to_owned());
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if rest.is_empty() {
            return Err(bad());
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let (part, tail) = take_part(rest).ok_or_else(bad)?;
            total = total.checked_add(part).ok_or_else(bad)?;
            rest = tail;
        }
        if NANOS_MAX < total.as_nanos() {
            return Err(bad());
        }
        Ok(Self(total))
    }
}

/// Splits `1.5h…` into its length and the rest.
fn take_part(text: &str) -> Option<(Duration, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| 0 < *end)?;
    let tail = &text[digits..];
    let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
    let (_, nanos_per_unit) = UNITS.iter().find(|(name, _)| *name == &tail[..unit_len])?;
    let nanos = text[..digits].parse::<f64>().ok()? * nanos_per_unit;
    let part = Duration::try_from_secs_f64((nanos / 1e9).abs()).ok()?;
    // Whole numbers take the exact road: floating point would give 299999999 ns for some of them.
    let exact =
        text[..digits].parse::<u64>().ok().and_then(|n| n.checked_mul(*nanos_per_unit as u64));
    Some((exact.map_or(part, Duration::from_nanos), &tail[unit_len..]))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000 {
            return write!(f, "{nanos}ns");
        }
        if nanos < 1_000_000 {
            return write!(f, "{}µs", decimal(nanos, 1_000));
        }
        if nanos < 1_000_000_000 {
            return write!(f, "{}ms", decimal(nanos, 1_000_000));
        }
        let (hours, minutes) = (self.0.as_secs() / 3600, self.0.as_secs() / 60 % 60);
        if 0 < hours {
            write!(f, "{hours}h")?;
        }
        if 0 < hours || 0 < minutes {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", decimal(nanos % 60_000_000_000, 1_000_000_000))
    }
}

/// Writes `value / unit` without trailing zeros.
fn decimal(value: u128, unit: u128) -> String {
    let width = unit.ilog10() as usize;
    let text = format!("{}.{:0width$}", value / unit, value % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for GoDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({"type": "string", "pattern": schema::DURATION});
        if generator.contract().is_serialize() {
            return text;
        }
        json_schema!({
            "description": "A length of time such as \"10s\" or \"1m30s\"; a bare number means nanoseconds.",
            "anyOf": [text, generator.subschema_for::<u64>()],
        })
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Nanos(u64),
            Text(String),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Nanos(nanos)) => Ok(Self(Duration::from_nanos(nanos))),
            Ok(Form::Text(text)) => text.parse().map_err(de::Error::custom),
            Err(_) => {
                Err(de::Error::custom("expected a length of time such as \"10s\", or nanoseconds"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, millis: u64, canonical: &str) {
        let parsed: GoDuration = text.parse().expect(text);
        assert_eq!(parsed.0, Duration::from_millis(millis), "{text}");
        assert_eq!(parsed.to_string(), canonical);
    }

    #[test]
    fn texts_that_are_no_length_are_refused() {
        for bad in ["", "10", "s", "-5s", "1.2.3s", "5 m", "10sm", "1d", "99999999999999h"] {
            let error = bad.parse::<GoDuration>().expect_err(bad);
            assert!(error.to_string().contains("5m"), "{error}");
        }
    }

    #[test]
    fn lengths_are_written_as_go_writes_them() {
        check("0", 0, "0s");
        check("300ms", 300, "300ms");
        check("1.5s", 1_500, "1.5s");
        check("60s", 60_000, "1m0s");
        check("1h30m", 5_400_000, "1h30m0s");
        check("1h", 3_600_000, "1h0m0s");
    }

    #[test]
    fn a_bare_number_is_nanoseconds() {
        let parsed: GoDuration = serde_json::from_str("15000000000").expect("number");
        assert_eq!(parsed.0, Duration::from_secs(15));
        assert_eq!(serde_json::to_string(&parsed).expect("json"), "\"15s\"");
        assert!(serde_json::from_str::<GoDuration>("-1").is_err());
    }
}
