//! Signals by name or number.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A signal that may be sent to a Machine. On the wire a name (`"SIGTERM"`) or a number (`15`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

/// A name or number outside the accepted list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "signal {0} is not accepted; use one of SIGHUP, SIGINT, SIGQUIT, SIGKILL, \
     SIGUSR1, SIGUSR2, SIGTERM, SIGSTOP"
)]
pub struct BadSignal(String);

// The union of what flyctl and the fly.toml reference name; numbers as on x86-64 and aarch64.
const SIGNALS: [(&str, i32); 8] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGTERM", 15),
    ("SIGSTOP", 19),
];

impl Signal {
    /// The polite request to stop that a Machine gets by default.
    pub const INT: Self = Self(2);
    /// The end without a chance to object.
    pub const KILL: Self = Self(9);

    /// The kernel's number.
    pub fn number(self) -> i32 {
        self.0
    }

    /// The name with its `SIG`.
    pub fn name(self) -> &'static str {
        SIGNALS.iter().find(|(_, number)| *number == self.0).map_or("SIG?", |(name, _)| name)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Signal {
    type Err = BadSignal;

    fn from_str(text: &str) -> Result<Self, BadSignal> {
        let upper = text.to_ascii_uppercase();
        SIGNALS
            .iter()
            .find(|(name, number)| {
                *name == upper || name[3..] == upper || number.to_string() == upper
            })
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| BadSignal(text.to_owned()))
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl JsonSchema for Signal {
    fn schema_name() -> Cow<'static, str> {
        "Signal".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let numbers = SIGNALS.map(|(_, number)| number);
        let in_any_case = |letter: char| format!("[{letter}{}]", letter.to_ascii_lowercase());
        let word = |text: &str| text.chars().map(in_any_case).collect::<String>();
        let names = SIGNALS.map(|(name, _)| word(&name[3..])).join("|");
        let digits = numbers.map(|number| number.to_string()).join("|");
        json_schema!({
            "description": "A signal by name or number.",
            "anyOf": [
                {"type": "integer", "enum": numbers},
                {"type": "string", "pattern": format!("^(({})?({names})|{digits})$", word("SIG"))},
            ],
        })
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(i64),
            Name(String),
        }
        let text = match Form::deserialize(deserializer) {
            Ok(Form::Number(number)) => number.to_string(),
            Ok(Form::Name(name)) => name,
            Err(_) => return Err(de::Error::custom("expected a signal's name or number")),
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// Body of `POST …/signal`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct SignalInput {
    /// What to send.
    pub signal: Signal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_signals_are_refused_with_the_list() {
        for bad in ["\"SIGSEGV\"", "11", "0", "\"\""] {
            let error = serde_json::from_str::<Signal>(bad).expect_err(bad).to_string();
            assert!(error.contains("SIGTERM"), "{error}");
        }
    }

    #[test]
    fn names_and_numbers_mean_the_same() {
        for good in ["\"SIGTERM\"", "\"term\"", "15", "\"15\""] {
            assert_eq!(serde_json::from_str::<Signal>(good).expect(good).name(), "SIGTERM");
        }
    }
}
