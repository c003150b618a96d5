//! Percent-encoding in paths and queries.

use std::time::Duration;

use crate::wire::{ApiError, GoDuration};

// What every JSON reader keeps exactly.
pub(super) const NUMBER_MAX: u64 = (1 << 53) - 1;

/// A query, in order, decoded.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(&key.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// The first value of a key that is given and not empty.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, value)| name == key && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn owned(&self, key: &str) -> Option<String> {
        self.get(key).map(str::to_owned)
    }

    pub(super) fn required(&self, key: &str) -> Result<String, ApiError> {
        self.owned(key).ok_or_else(|| ApiError::bad_request(format!("the query needs {key}=…")))
    }

    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Pairs whose key is `prefix` and more, such as `metadata.role=web`.
    pub(super) fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .iter()
            .filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_str())))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ApiError> {
        match self.get(key) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(bad(key, other, "true or false")),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        let wanted = || format!("a number up to {NUMBER_MAX}");
        self.get(key)
            .map(|text| plain_number(text).ok_or_else(|| bad(key, text, &wanted())))
            .transpose()
    }

    /// A bare number means seconds here, unlike in bodies.
    pub(super) fn seconds(&self, key: &str) -> Result<Option<Duration>, ApiError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let length = match plain_number(text) {
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => text.parse::<GoDuration>().ok().map(|length| length.0),
        };
        length.map(Some).ok_or_else(|| bad(key, text, "a number of seconds"))
    }
}

fn plain_number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= NUMBER_MAX)
}

pub(super) fn bad(key: &str, value: &str, wanted: &str) -> ApiError {
    ApiError::bad_request(format!("the query has {key}={value}; it must be {wanted}"))
}

pub(super) fn decode(text: &str) -> Result<String, ApiError> {
    let broken = || ApiError::bad_request(format!("{text:?} is not valid percent-encoding"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits =
            digits.and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(broken)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| broken())?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_encoding_is_refused() {
        for bad in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert_eq!(decode(bad).expect_err(bad).code, 400);
        }
    }

    #[test]
    fn values_are_decoded_and_kept_in_order() {
        let query = Query::parse("state=a&state=b&x=%26+y&empty=&flag=true").expect("query");
        assert_eq!(query.all("state").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(query.get("x"), Some("& y"));
        assert_eq!(query.get("empty"), None);
        assert!(query.flag("flag").expect("flag") && !query.flag("other").expect("absent"));
        assert_eq!(query.flag("x").expect_err("no flag").code, 400);
    }

    #[test]
    fn seconds_may_be_a_number_or_a_length() {
        let query = Query::parse("a=13&b=1m0s&c=soon").expect("query");
        assert_eq!(query.seconds("a").expect("a"), Some(Duration::from_secs(13)));
        assert_eq!(query.seconds("b").expect("b"), Some(Duration::from_secs(60)));
        assert_eq!(query.seconds("c").expect_err("c").code, 400);
    }
}
