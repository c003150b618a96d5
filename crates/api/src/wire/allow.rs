//! Rules about the callers of a service. Extension.

use perch_core::policy::{self, Verdict, Who};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{BadConfig, bad};
use super::{null_default, schema};

/// Rules of one service; more are a mistake.
const RULES_MAX: usize = 100;
/// Entries of one list in a rule.
const ENTRIES_MAX: usize = 100;

/// One rule. What is empty fits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Allow {
    /// Who calls: `app:NAME`, `network:NAME`, `network:ORG/NAME`, `peer:NAME` or `host`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), transform = schema::nullable)]
    pub from: Vec<String>,
    /// Methods of requests.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), transform = schema::nullable)]
    pub methods: Vec<String>,
    /// What the paths of requests begin with, by whole segments.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), transform = schema::nullable)]
    pub paths: Vec<String>,
    /// What follows; absent = wake.
    #[serde(deserialize_with = "null_default")]
    #[schemars(extend("enum" = ["wake", "serve-if-awake", "refuse", "", null]), transform = schema::nullable)]
    pub then: String,
}

impl Allow {
    /// What follows, in the server's word.
    pub fn then(&self) -> &str {
        if self.then.is_empty() { Verdict::Wake.as_str() } else { &self.then }
    }
}

/// Refuses what cannot be meant.
pub(super) fn check(service: &str, rules: &[Allow]) -> Result<(), BadConfig> {
    if RULES_MAX < rules.len() {
        return Err(bad(format!("{service}.allow"), format!("has at most {RULES_MAX} rules")));
    }
    rules
        .iter()
        .enumerate()
        .try_for_each(|(index, rule)| check_rule(&format!("{service}.allow[{index}]"), rule))
}

fn check_rule(path: &str, rule: &Allow) -> Result<(), BadConfig> {
    for (key, list) in [("from", &rule.from), ("methods", &rule.methods), ("paths", &rule.paths)] {
        if ENTRIES_MAX < list.len() {
            return Err(bad(format!("{path}.{key}"), format!("has at most {ENTRIES_MAX} entries")));
        }
    }
    for who in &rule.from {
        who.parse::<Who>().map_err(|error| bad(format!("{path}.from"), error.to_string()))?;
    }
    if let Some(method) = rule.methods.iter().find(|method| !policy::is_method(method)) {
        let text = format!("{method:?} is no method; write it in upper case");
        return Err(bad(format!("{path}.methods"), text));
    }
    if let Some(prefix) = rule.paths.iter().find(|path| !policy::is_path(path)) {
        let text = format!("{prefix:?} is no path; write it from its / on, without .. // ? or %");
        return Err(bad(format!("{path}.paths"), text));
    }
    let then = rule.then().parse::<Verdict>();
    then.map(drop).map_err(|error| bad(format!("{path}.then"), error.to_string()))
}

#[cfg(test)]
mod tests {
    use crate::wire::MachineConfig;

    fn parse(rule: &str) -> Result<MachineConfig, String> {
        let text = format!(
            r#"{{"image":"a","services":[{{"internal_port":80,"allow":[{{}},{{{rule}}}]}}]}}"#
        );
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused_with_its_place() {
        for (rule, key, hint) in [
            (r#""from":["web"]"#, "from", "app:NAME"),
            (r#""methods":["get"]"#, "methods", "upper case"),
            (r#""paths":["admin"]"#, "paths", "from its /"),
            (r#""paths":["/a/../b"]"#, "paths", "without .."),
            (r#""then":"maybe""#, "then", "serve-if-awake"),
        ] {
            let error = parse(rule).expect_err(rule);
            let place = format!("services[0].allow[1].{key}");
            assert!(error.contains(&place) && error.contains(hint), "{rule}: {error}");
        }
        let good = r#""from":["app:web","host"],"methods":null,"paths":["/a"],"then":"refuse""#;
        let view = parse(good).expect("it is good");
        let allow = &view.view().services[0].allow;
        assert_eq!((allow[0].then(), allow[1].then()), ("wake", "refuse"));
    }
}
