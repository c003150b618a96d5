//! When a Machine is started without a request: by its schedule, or for another one that it stands by for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::bad;
use super::{BadConfig, MachineConfig, schema};

/// How often a Machine is started (MA-46).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(transform = schema::words(&["hourly", "daily", "weekly", "monthly", ""]))]
pub enum Schedule {
    /// Once an hour.
    Hourly,
    /// Once a day.
    Daily,
    /// Once a week.
    Weekly,
    /// Once a calendar month.
    Monthly,
}

impl MachineConfig {
    /// Refuses a schedule that is none, and standbys that are no list of ids; apart from the rest as the files are: of
    /// configs that were stored before somebody looked the view has none.
    ///
    /// # Errors
    /// With the words that there are.
    pub fn check_starts(&self) -> Result<(), BadConfig> {
        let given = self.get("schedule").unwrap_or_default();
        if self.view().schedule.is_none() && !matches!(given.as_str(), Some("")) && !given.is_null()
        {
            let reason = format!("{given} is none of hourly, daily, weekly and monthly");
            return Err(bad("schedule", reason));
        }
        let given = self.get("standbys").unwrap_or_default();
        let read = serde_json::from_value::<Option<Vec<String>>>(given);
        read.map(drop).map_err(|error| bad("standbys", error.to_string()))
    }
}

/// Does not refuse: earlier servers accepted and stored anything here.
pub(super) fn schedule(value: Option<&Value>) -> Option<Schedule> {
    // Not as any value: serde reads an object with the word as its key, too.
    let word = value?.as_str()?;
    Schedule::deserialize(Value::from(word)).ok()
}

/// The same for the Machines that it stands by for.
pub(super) fn standbys(value: Option<&Value>) -> Vec<String> {
    value.and_then(|value| Vec::deserialize(value).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> MachineConfig {
        serde_json::from_str(&format!(r#"{{"image":"a",{text}}}"#)).expect("read")
    }

    #[test]
    fn a_schedule_is_one_of_four_words() {
        let check = |text: &str, schedule: Option<Schedule>| {
            let config = config(text);
            assert_eq!(config.check_starts(), Ok(()), "{text}");
            assert_eq!(config.view().schedule, schedule, "{text}");
        };
        check(r#""schedule":"hourly""#, Some(Schedule::Hourly));
        check(r#""schedule":"daily""#, Some(Schedule::Daily));
        check(r#""schedule":"weekly""#, Some(Schedule::Weekly));
        check(r#""schedule":"monthly""#, Some(Schedule::Monthly));
        check(r#""schedule":"""#, None);
        check(r#""schedule":null"#, None);
        check(r#""env":null"#, None);
    }

    #[test]
    fn another_word_is_read_but_not_accepted_and_the_four_are_named() {
        for bad in [
            r#""fortnightly""#,
            r#""Daily""#,
            r#""0 3 * * *""#,
            "7",
            "true",
            "{}",
            r#"{"daily":null}"#,
        ] {
            let config = config(&format!(r#""schedule":{bad}"#));
            assert_eq!(config.view().schedule, None);
            let refused = config.check_starts().expect_err(bad).to_string();
            let all = ["config.schedule", bad, "hourly", "daily", "weekly", "monthly"];
            assert!(all.iter().all(|part| refused.contains(part)), "{refused}");
        }
    }

    #[test]
    fn standbys_are_a_list_of_texts() {
        let two = config(r#""standbys":["a","b"]"#);
        assert_eq!((two.check_starts(), two.view().standbys.len()), (Ok(()), 2));
        for none in ["null", "[]"] {
            let config = config(&format!(r#""standbys":{none}"#));
            assert_eq!((config.check_starts(), config.view().standbys.len()), (Ok(()), 0));
        }
        for bad in [r#""a""#, "[1]", "{}", "[null]"] {
            let config = config(&format!(r#""standbys":{bad}"#));
            assert_eq!(config.view().standbys.len(), 0);
            let refused = config.check_starts().expect_err(bad).to_string();
            assert!(refused.starts_with("config.standbys: "), "{refused}");
        }
    }
}
