//! Secrets of apps: names and digests go out, values only come in.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::{null_default, schema};

/// A secret, without its value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Secret {
    /// Name of the variable.
    pub name: String,
    /// Tells two values of one name apart, and nothing else about them.
    #[serde(deserialize_with = "null_default")]
    pub digest: String,
    /// When the name was first set, RFC 3339.
    #[serde(deserialize_with = "null_default")]
    pub created_at: String,
    /// When this value was set, RFC 3339.
    #[serde(deserialize_with = "null_default")]
    pub updated_at: String,
    /// How many of the app's Machines start with this value. Extension: flyctl guesses it by the
    /// times of releases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machines: Option<usize>,
}

/// Answer of `GET /v1/apps/{app}/secrets`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SecretPage {
    /// By name.
    #[serde(deserialize_with = "null_default")]
    pub secrets: Vec<Secret>,
}

/// A value on its way in. Prints as dots; a body that has something else there is refused without
/// repeating it.
#[derive(Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct SecretValue(#[schemars(regex(pattern = "^[^\\x00]*$"), length(max = 65536))] String);

impl SecretValue {
    /// Takes a value.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The value itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            _ => Err(de::Error::custom("the value of a secret must be a text")),
        }
    }
}

/// Body of `POST /v1/apps/{app}/secrets`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UpdateSecrets {
    /// New values by name; `None` unsets.
    #[schemars(default, extend("propertyNames" = {"pattern": "^[A-Za-z0-9_.-]{1,128}$"}))]
    #[schemars(transform = schema::nullable)]
    pub values: BTreeMap<String, Option<SecretValue>>,
}

impl<'de> Deserialize<'de> for UpdateSecrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Taken apart by hand: serde's own messages repeat what they did not expect.
        let Value::Object(mut body) = Value::deserialize(deserializer)? else {
            return Err(de::Error::custom("the body must be an object with values"));
        };
        let values = match body.remove("values") {
            Some(Value::Object(values)) => values,
            Some(Value::Null) | None => return Ok(Self::default()),
            Some(_) => return Err(de::Error::custom("values must be an object")),
        };
        let value = |(name, value)| match value {
            Value::Null => Ok((name, None)),
            Value::String(text) => Ok((name, Some(SecretValue(text)))),
            _ => Err(de::Error::custom(format!(
                "the value of secret {name:?} must be a text or null"
            ))),
        };
        Ok(Self { values: values.into_iter().map(value).collect::<Result<_, D::Error>>()? })
    }
}

/// Answer of `POST /v1/apps/{app}/secrets`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SecretsAnswer {
    /// All of the app's secrets by name.
    #[serde(deserialize_with = "null_default")]
    pub secrets: Vec<Secret>,
    /// Grows with each change; what `min_secrets_version` of a Machine means.
    pub version: u64,
}

/// Body of `POST /v1/apps/{app}/secrets/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetSecret {
    /// New value.
    pub value: SecretValue,
}

/// Answer of `POST /v1/apps/{app}/secrets/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SecretAnswer {
    /// The secret.
    #[serde(flatten)]
    pub secret: Secret,
    /// As in [`SecretsAnswer`].
    pub version: u64,
}

/// Answer of `DELETE /v1/apps/{app}/secrets/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SecretsVersion {
    /// As in [`SecretsAnswer`].
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_neither_printed_nor_repeated_in_a_refusal() {
        let body = r#"{"values": {"A": "hunter2", "B": null}}"#;
        let update: UpdateSecrets = serde_json::from_str(body).expect("well formed");
        assert_eq!(update.values["A"].as_ref().map(SecretValue::reveal), Some("hunter2"));
        assert_eq!(update.values["B"], None);
        assert!(!format!("{update:?}").contains("hunter2"));
        for body in [
            r#"{"values": {"A": ["hunter2"]}}"#,
            r#"{"values": {"A": 7262}}"#,
            r#"{"values": "hunter2"}"#,
            r#""hunter2""#,
        ] {
            let error = serde_json::from_str::<UpdateSecrets>(body).expect_err(body).to_string();
            assert!(!error.contains("hunter2") && !error.contains("7262"), "{error}");
        }
        for body in [r#"{"value": ["hunter2"]}"#, r#"{"value": {"hunter2": 1}}"#] {
            let error = serde_json::from_str::<SetSecret>(body).expect_err(body).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
