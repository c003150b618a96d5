//! Names and identities, checked once at the border: a value of these types is valid.
//!
//! All parse with [`FromStr`] and print with [`fmt::Display`] in the same form. Fields are private,
//! so there is no other way in.

use std::fmt;
use std::str::FromStr;

/// A text that is not what the caller said it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {kind}: {rule}")]
pub struct BadId {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

impl BadId {
    fn new(kind: &'static str, rule: &'static str, text: &str) -> Self {
        // The text may come from a stranger and be long; a message shows its beginning.
        Self { kind, text: text.chars().take(80).collect(), rule }
    }

    /// What the text should have been, for hints: `use` + rule.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let ok: fn(&str) -> bool = $ok;
                if !ok(text) {
                    return Err(BadId::new($kind, $rule, text));
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

text_id!(
    /// The name of an app, unique on an installation; also its DNS label.
    AppName,
    "an app name",
    "1 to 63 lower-case letters, digits and inner dashes",
    is_label
);
text_id!(
    /// The short name of an organization.
    OrgSlug,
    "an organization",
    "1 to 63 lower-case letters, digits and inner dashes",
    is_label
);
text_id!(
    /// The name of a private network within an organization (PN-61).
    NetworkName,
    "a network name",
    "1 to 63 letters, digits and dashes, first a letter",
    |t| (1..=63).contains(&t.len())
        && t.starts_with(|c: char| c.is_ascii_alphabetic())
        && t.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
);
text_id!(
    /// The name of a process group, `app` unless a file says otherwise.
    ProcessGroup,
    "a process group",
    "1 to 63 letters, digits, dashes and underscores",
    |t| (1..=63).contains(&t.len())
        && t.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
);

impl NetworkName {
    /// The network that every organization has.
    pub fn default_network() -> Self {
        Self("default".to_owned())
    }

    /// Whether this is the network that every organization has.
    pub fn is_default(&self) -> bool {
        self.0 == "default"
    }
}

/// The identity of a Machine: 14 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(u64);

impl MachineId {
    /// Makes an id from the low 56 bits of a number, for instance a random one.
    pub const fn from_low_bits(number: u64) -> Self {
        Self(number & 0x00ff_ffff_ffff_ffff)
    }

    /// The id as a number below 2^56.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl FromStr for MachineId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::new("a Machine ID", "14 digits 0-9 and a-f", text);
        let hex = text.len() == 14 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hex {
            return Err(bad());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}", self.0)
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity of a private network: the 32 bits after `fdaa` in its addresses; never 0 (PN-11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(u32);

impl NetworkId {
    /// Makes an id; `None` for 0, which no network has.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The 32 bits.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

impl FromStr for NetworkId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let number = text.parse().ok().and_then(Self::new);
        number.ok_or_else(|| BadId::new("a network ID", "a number from 1 to 4294967295", text))
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A region code: three lower-case letters, a label of a host (OQ-28).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region([u8; 3]);

impl Region {
    /// The region of an installation that names none.
    pub const LOCAL: Self = Self(*b"lcl");

    /// The three letters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a region holds three ASCII letters")
    }
}

impl FromStr for Region {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let letters = <[u8; 3]>::try_from(text.as_bytes()).ok();
        let valid = letters.filter(|l| l.iter().all(u8::is_ascii_lowercase));
        valid.map(Self).ok_or_else(|| BadId::new("a region", "three lower-case letters", text))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr + fmt::Display>(good: &[&str], bad: &[&str])
    where
        T::Err: fmt::Debug,
    {
        for text in good {
            assert_eq!(text.parse::<T>().expect(text).to_string(), *text);
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text:?} must be refused");
        }
    }

    #[test]
    fn only_valid_names_become_ids() {
        let long = "a".repeat(64);
        check::<AppName>(&["a", "my-app-2", "0x"], &["", "A", "a.b", "-a", "a-", "a_b", &long]);
        check::<NetworkName>(&["default", "Net-1"], &["", "1net", "net_1", "é"]);
        check::<ProcessGroup>(&["app", "web_2", "Worker"], &["", "a b", "a.b"]);
        check::<MachineId>(
            &["00000000000001", "d8914e5bd66e38"],
            &["", "d8914e5bd66e3", "D8914e5bd66e38", "+8914e5bd66e38", "d8914e5bd66e381"],
        );
        check::<NetworkId>(&["1", "4294967295"], &["0", "-1", "4294967296", "x"]);
        check::<Region>(&["lcl", "ams"], &["", "AMS", "am", "am1", "éa"]);
    }

    #[test]
    fn the_error_names_the_object_and_the_rule() {
        let error = "My App".parse::<AppName>().expect_err("a space is not allowed");
        assert_eq!(
            error.to_string(),
            "\"My App\" is not an app name: 1 to 63 lower-case letters, digits and inner dashes"
        );
    }
}
