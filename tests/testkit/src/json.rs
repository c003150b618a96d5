//! What `fly … --json` says, as far as tests look at it.

use serde_json::Value;

/// A Machine of `fly machine list --json`.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its id.
    pub id: String,
    /// Its state in the API's words.
    pub state: String,
    /// The version of its configuration; changes with every update.
    pub instance_id: String,
    /// Its address in the private network.
    pub private_ip: String,
    /// Everything that was said.
    pub value: Value,
}

/// An address of `fly ips list --json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ip {
    /// The address.
    pub address: String,
    /// `v6`, `shared_v4` or `private_v6`.
    pub kind: String,
}

impl Machine {
    /// Takes one element of the list.
    pub fn new(value: &Value) -> Self {
        Self {
            id: text(value, "id"),
            state: text(value, "state"),
            instance_id: text(value, "instance_id"),
            private_ip: text(value, "private_ip"),
            value: value.clone(),
        }
    }

    /// How many events of this type are recorded.
    pub fn events(&self, kind: &str) -> usize {
        let events = self.value["events"].as_array().into_iter().flatten();
        events.filter(|event| event["type"] == kind).count()
    }
}

impl Ip {
    /// Takes one element of the list.
    pub fn new(value: &Value) -> Self {
        Self { address: text(value, "Address"), kind: text(value, "Type") }
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}
