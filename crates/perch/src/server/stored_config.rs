//! A Machine's config as it is kept: the text of what its client sent, which takes a sixth of what it takes when it is
//! read.
//!
//! Most Machines sleep, and nobody looks at their configs. Who looks has the text read, and shares that with everybody
//! who looks as long as somebody holds it: a Machine's task does. What is asked of all Machines again and again is
//! noted beside the text. Machines of one app with the same config have one (DESIGN 8).

use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};

use perch_api::wire::{ConfigView, MachineConfig, Schedule};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use serde_json::value::RawValue;

use super::world::lock;

/// A config as text.
#[derive(Debug, Clone)]
pub(crate) struct StoredConfig(Arc<Kept>);

/// A config that was read. In a box: as long as somebody could ask for it again its place is kept.
pub(crate) type Config = Arc<Box<MachineConfig>>;

#[derive(Debug)]
struct Kept {
    text: Box<RawValue>,
    schedule: Option<Schedule>,
    is_standby: bool,
    read: Mutex<Weak<Box<MachineConfig>>>,
}

impl StoredConfig {
    /// The config itself.
    pub(crate) fn read(&self) -> Config {
        let mut last = lock(&self.0.read);
        if let Some(config) = last.upgrade() {
            return config;
        }
        let read = serde_json::from_str(self.0.text.get());
        let config = Arc::new(read.expect("it is the text of a config"));
        *last = Arc::downgrade(&config);
        config
    }

    /// What we understand of it.
    pub(crate) fn view(&self) -> View {
        View(self.read())
    }

    /// The value of a key, if it is there.
    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        self.read().get(key)
    }

    /// How often the Machine is started.
    pub(crate) fn schedule(&self) -> Option<Schedule> {
        self.0.schedule
    }

    /// Whether the Machine stands by for others.
    pub(crate) fn is_standby(&self) -> bool {
        self.0.is_standby
    }

    /// Takes the text of another one instead of its own, if both are the same.
    pub(crate) fn share(&mut self, other: &Self) -> bool {
        let same = self == other;
        if same {
            self.0 = other.0.clone();
        }
        same
    }
}

impl PartialEq for StoredConfig {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.text.get() == other.0.text.get()
    }
}

impl From<MachineConfig> for StoredConfig {
    fn from(config: MachineConfig) -> Self {
        let text = serde_json::value::to_raw_value(&config).expect("a config is made of texts");
        Self::of(text, &config)
    }
}

impl StoredConfig {
    fn of(text: Box<RawValue>, config: &MachineConfig) -> Self {
        let view = config.view();
        let (schedule, is_standby) = (view.schedule, !view.standbys.is_empty());
        Self(Arc::new(Kept { text, schedule, is_standby, read: Mutex::default() }))
    }
}

impl Serialize for StoredConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StoredConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        // What cannot be read later is refused now.
        let config = serde_json::from_str(text.get()).map_err(de::Error::custom)?;
        Ok(Self::of(text, &config))
    }
}

/// What we understand of a config.
#[derive(Debug)]
pub(crate) struct View(Config);

impl Deref for View {
    type Target = ConfigView;

    fn deref(&self) -> &ConfigView {
        self.0.view()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> StoredConfig {
        serde_json::from_str(text).expect("a config")
    }

    #[test]
    fn a_config_is_stored_as_it_was_received() {
        let text = r#"{"image":"x","other":12345678901234567890123,"env":{"b":"2","a":"1"}}"#;
        let stored = config(text);
        assert_eq!(serde_json::to_string(&stored).expect("text"), text);
        let made = StoredConfig::from(MachineConfig::clone(&stored.read()));
        assert_eq!(made, stored);
        assert_eq!((stored.view().env["a"].as_str(), stored.get("none")), ("1", None));
    }

    #[test]
    fn what_is_no_config_is_refused_when_it_is_loaded() {
        let bad = serde_json::from_str::<StoredConfig>(r#"{"image":"x","env":7}"#);
        assert!(bad.is_err_and(|error| error.to_string().contains("env")));
    }

    #[test]
    fn it_is_read_once_as_long_as_somebody_holds_it() {
        let stored = config(r#"{"image":"x"}"#);
        let first = stored.read();
        assert!(Arc::ptr_eq(&first, &stored.read()));
        drop(first);
        assert!(lock(&stored.0.read).upgrade().is_none(), "nobody holds it");
        assert_eq!(stored.view().image, "x");
    }

    #[test]
    fn equal_ones_share_their_text_and_others_do_not() {
        let (first, mut same) = (config(r#"{"image":"x"}"#), config(r#"{"image":"x"}"#));
        assert!(same.share(&first) && Arc::ptr_eq(&same.0, &first.0));
        let mut other = config(r#"{"image":"y"}"#);
        assert!(!other.share(&first));
        assert_eq!(other.view().image, "y");
    }
}
