//! What a program says when it wants a request replayed elsewhere (PX-40, PX-41).
//!
//! [`Replay::parse`] reads the value of `fly-replay`; whoever reads another form sets field by field
//! ([`Replay::set`]). Nothing here knows whether the target exists or may be reached.

pub mod cache;

use std::time::Duration;

use crate::aim::{Aim, Area, Must};
use crate::ids::AppName;

/// Longest `state`: it becomes part of a request's head.
pub const STATE_BYTES_MAX: usize = 4 * 1024;
/// Longest `timeout`, as long as `start_timeout` can be.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Replays of one request (PX-45).
pub const REPLAYS_MAX: u32 = 10;

/// The order makes no sense (PA03).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PA03 invalid fly-replay: {0}")]
pub struct BadReplay(pub String);

/// Where a request is to be replayed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Another app; `None`: the same one.
    pub app: Option<AppName>,
    /// A Machine, regions.
    pub aim: Aim,
    /// The preferred Machine as it was written.
    pub wanted: String,
    /// For the Machine that gets the request.
    pub state: Option<String>,
    /// Not the Machine that says so.
    pub elsewhere: bool,
    /// How long to try to reach a Machine.
    pub timeout: Option<Duration>,
    /// What becomes of the request if none is reached: it goes back to the Machine that said so, or, if it
    /// is only preferred, to any of its app.
    pub fallback: Option<Must>,
}

impl Replay {
    /// Reads `key=value;key="value"`.
    ///
    /// # Errors
    /// An unknown or repeated key, a value that is none, nothing at all.
    pub fn parse(text: &str) -> Result<Self, BadReplay> {
        let mut replay = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (key, value, after) = next_pair(rest)?;
            if seen.contains(&key) {
                return Err(bad(format!("{key} is there twice")));
            }
            seen.push(key);
            replay.set(key, &value)?;
            rest = after;
        }
        replay.check()?;
        Ok(replay)
    }

    /// Whether it may be remembered (PX-52).
    pub fn is_lasting(&self) -> bool {
        self.state.is_none() && self.timeout.is_none() && self.fallback.is_none()
    }

    /// Sets one field; empty ones are as good as none.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), BadReplay> {
        if value.is_empty() {
            return Ok(());
        }
        match key {
            "app" => self.app = Some(value.parse().map_err(|_| bad_value(key, value))?),
            "instance" => self.set_machine(value, Must::Force)?,
            "prefer_instance" => self.set_machine(value, Must::Prefer)?,
            "region" => self.aim.areas = Some((areas(value)?, Must::Force)),
            "state" if STATE_BYTES_MAX < value.len() || value.contains(char::is_control) => {
                return Err(bad(format!(
                    "state has control characters or more than {STATE_BYTES_MAX} bytes"
                )));
            }
            "state" => self.state = Some(value.to_owned()),
            "elsewhere" => self.elsewhere = truth(key, value)?,
            "timeout" => self.timeout = Some(duration(value).ok_or_else(|| bad_value(key, value))?),
            "fallback" => {
                self.fallback = Some(match value {
                    "force_self" => Must::Force,
                    "prefer_self" => Must::Prefer,
                    _ => return Err(bad_value(key, value)),
                });
            }
            _ => return Err(bad(format!("there is no field {}", cut(key)))),
        }
        Ok(())
    }

    /// Whether it says anything about where to go.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self) -> Result<(), BadReplay> {
        let aim = &self.aim;
        if self.app.is_none() && aim.machine.is_none() && aim.areas.is_none() && !self.elsewhere {
            return Err(bad("it names no app, instance, region or elsewhere".to_owned()));
        }
        Ok(())
    }

    fn set_machine(&mut self, value: &str, must: Must) -> Result<(), BadReplay> {
        if self.aim.machine.is_some() {
            return Err(bad("it has instance and prefer_instance".to_owned()));
        }
        self.wanted = cut(value);
        self.aim.machine = Some((value.parse().ok(), must));
        Ok(())
    }
}

fn bad(text: String) -> BadReplay {
    BadReplay(text)
}

fn bad_value(key: &str, value: &str) -> BadReplay {
    bad(format!("{key} cannot be {}", cut(value)))
}

/// The beginning of a text that a stranger wrote, for a message.
fn cut(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}

fn areas(value: &str) -> Result<Vec<Area>, BadReplay> {
    let areas = Area::parse_list(value);
    if areas.is_empty() { Err(bad_value("region", value)) } else { Ok(areas) }
}

fn truth(key: &str, value: &str) -> Result<bool, BadReplay> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(bad_value(key, value)),
    }
}

/// The first pair, and what is behind it.
fn next_pair(text: &str) -> Result<(&str, String, &str), BadReplay> {
    let (key, rest) =
        text.split_once('=').ok_or_else(|| bad(format!("{} has no value", cut(text))))?;
    let (value, rest) = match rest.trim_start().strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let (value, after) = rest.split_once(';').unwrap_or((rest, ""));
            return Ok((key.trim(), value.trim().to_owned(), after.trim_start()));
        }
    };
    let after = rest.trim_start();
    match after.strip_prefix(';') {
        Some(after) => Ok((key.trim(), value, after.trim_start())),
        None if after.is_empty() => Ok((key.trim(), value, "")),
        None => Err(bad(format!("something follows the quoted {}", cut(key)))),
    }
}

/// The text up to the closing quote, and what is behind it.
fn unquote(text: &str) -> Result<(String, &str), BadReplay> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            plain => value.push(plain),
        }
    }
    Err(bad("a quote does not end".to_owned()))
}

/// `800ms`, `10s`, `1m30s`; more than nothing, at most [`TIMEOUT_MAX`].
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let unit_len = after.find(|char: char| char.is_ascii_digit()).unwrap_or(after.len());
        let millis = match &after[..unit_len] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &after[unit_len..];
    }
    (!total.is_zero()).then(|| total.min(TIMEOUT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aim::Among;

    fn parsed(text: &str) -> Replay {
        Replay::parse(text).expect(text)
    }

    #[test]
    fn every_field_is_read() {
        let replay = parsed(
            "app=other ; region=\"sjc,any\";prefer_instance=00000000000001;state=a=b c;elsewhere=true;\
             timeout=1m800ms;fallback=prefer_self",
        );
        assert_eq!(replay.app.as_ref().map(AppName::as_str), Some("other"));
        assert_eq!(replay.wanted, "00000000000001");
        assert_eq!(replay.state.as_deref(), Some("a=b c"));
        assert!(replay.elsewhere);
        assert_eq!(replay.timeout, Some(Duration::from_millis(60_800)));
        assert_eq!(replay.fallback, Some(Must::Prefer));
        let among: Vec<_> = replay.aim.targets().into_iter().map(|t| t.among).collect();
        assert!(matches!(among[..], [Among::Machine(_), Among::Area(_), Among::Area(Area::Any)]));
        assert_eq!(
            parsed("region=sjc").aim.areas.map(|(areas, must)| (areas.len(), must)),
            Some((1, Must::Force))
        );
    }

    #[test]
    fn a_quoted_value_may_have_anything() {
        let replay = parsed(r#"state="a;b=\"c\\" ; app=x"#);
        assert_eq!(replay.state.as_deref(), Some(r#"a;b="c\"#));
        assert!(replay.app.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let long = format!("app=x;state={}", "s".repeat(STATE_BYTES_MAX + 1));
        for text in [
            "",
            ";",
            "app",
            "app=",
            "state=x",
            "app=A B",
            "app=x;app=y",
            "region=\"sjc",
            "region=\"sjc\"x",
            "region=!!",
            "elsewhere=yes",
            "elsewhere=false",
            "timeout=10;app=x",
            "timeout=0s;app=x",
            "timeout=99999999999999999999s;app=x",
            "timeout=s;app=x",
            "fallback=self;app=x",
            "instance=a;prefer_instance=b",
            "unknown=1;app=x",
            "app=x;state=a\u{7}",
            &long,
        ] {
            let error = Replay::parse(text).expect_err(text);
            assert!(
                error.to_string().starts_with("PA03 ") && error.to_string().len() < 300,
                "{error}"
            );
        }
    }

    #[test]
    fn no_text_of_few_signs_makes_it_panic() {
        const SIGNS: &[&str] =
            &["app", "=", ";", "\"", "\\", "x", " ", "\u{e9}", "timeout", "1s", "region", ","];
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..(seed % 12) {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                text.push_str(SIGNS[(seed >> 33) as usize % SIGNS.len()]);
            }
            seed = seed.wrapping_add(1);
            drop(Replay::parse(&text));
        }
    }
}
