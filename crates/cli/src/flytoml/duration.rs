//! Durations as Go writes and reads them (`1m21s`, `500ms`), which is what flyctl's files and wire use.

use std::time::Duration;

const NANOS_PER_SEC: u128 = 1_000_000_000;
/// Go's durations are 64-bit nanoseconds: about 292 years.
const NANOS_MAX: u128 = i64::MAX as u128;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// Not a number with a unit at all.
    #[error("invalid duration '{0}'")]
    Invalid(String),
    /// A number without its unit.
    #[error("missing unit in duration '{0}'")]
    MissingUnit(String),
    /// A unit other than ns, us, ms, s, m, h.
    #[error("unknown unit '{unit}' in duration '{text}'")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The unit in it.
        unit: String,
    },
    /// Below zero: nothing here lasts less than no time.
    #[error("negative duration '{0}'")]
    Negative(String),
}

/// Parses `1h2m3.5s`; `"0"` needs no unit. Precision below a nanosecond is cut off.
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let invalid = || BadDuration::Invalid(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.starts_with('-') {
        return Err(BadDuration::Negative(text.to_owned()));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos: u128 = 0;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_len);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let unit_nanos = unit_nanos(text, unit)?;
        let part = scaled(number, unit_nanos).ok_or_else(invalid)?;
        nanos = nanos.checked_add(part).filter(|sum| *sum <= NANOS_MAX).ok_or_else(invalid)?;
        rest = after;
    }
    Ok(from_nanos(nanos))
}

/// Prints a duration as Go's `String` does: `1m21s`, `3m0s`, `1.5s`, `500ms`, `0s`.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, size) in [("ns", 1u128), ("µs", 1_000), ("ms", 1_000_000)] {
        if nanos < size * 1_000 {
            return format!("{}{unit}", decimal(nanos, size));
        }
    }
    let (minutes, rest) = (nanos / (60 * NANOS_PER_SEC), nanos % (60 * NANOS_PER_SEC));
    let seconds = decimal(rest, NANOS_PER_SEC);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn unit_nanos(text: &str, unit: &str) -> Result<u128, BadDuration> {
    match unit {
        "ns" => Ok(1),
        "us" | "µs" | "μs" => Ok(1_000),
        "ms" => Ok(1_000_000),
        "s" => Ok(NANOS_PER_SEC),
        "m" => Ok(60 * NANOS_PER_SEC),
        "h" => Ok(3600 * NANOS_PER_SEC),
        "" => Err(BadDuration::MissingUnit(text.to_owned())),
        _ => Err(BadDuration::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() }),
    }
}

/// `number * unit` where number is digits with at most one point.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mut total: u128 = match whole {
        "" => 0,
        digits => digits.parse::<u128>().ok()?.checked_mul(unit)?,
    };
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        total += u128::from(digit - b'0') * place;
    }
    Some(total)
}

fn from_nanos(nanos: u128) -> Duration {
    let secs = u64::try_from(nanos / NANOS_PER_SEC).unwrap_or(u64::MAX);
    let subsec = u32::try_from(nanos % NANOS_PER_SEC).unwrap_or(0);
    Duration::new(secs, subsec)
}

/// `value / unit` with as many decimals as needed and no trailing zeros.
fn decimal(value: u128, unit: u128) -> String {
    let (whole, mut rest) = (value / unit, value % unit);
    let mut text = whole.to_string();
    let mut place = unit;
    if rest > 0 {
        text.push('.');
    }
    while rest > 0 {
        place /= 10;
        text.push_str(&(rest / place).to_string());
        rest %= place;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_duration_is_refused_with_the_reason() {
        let bad = |text: &str| parse(text).map_err(|error| error.to_string());
        assert_eq!(bad(""), Err("invalid duration ''".into()));
        assert_eq!(bad("5"), Err("missing unit in duration '5'".into()));
        assert_eq!(bad("5 s"), Err("unknown unit ' s' in duration '5 s'".into()));
        assert_eq!(bad("1d"), Err("unknown unit 'd' in duration '1d'".into()));
        assert_eq!(bad("1.2.3s"), Err("invalid duration '1.2.3s'".into()));
        assert_eq!(bad("."), Err("missing unit in duration '.'".into()));
        assert_eq!(bad("-1s"), Err("negative duration '-1s'".into()));
        assert_eq!(bad("9999999999h"), Err("invalid duration '9999999999h'".into()));
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (text, printed) in [
            ("81s", "1m21s"),
            ("3m", "3m0s"),
            ("1h2m3.5s", "1h2m3.5s"),
            ("1500ms", "1.5s"),
            ("500ms", "500ms"),
            ("10us", "10µs"),
            ("1.5us", "1.5µs"),
            ("7ns", "7ns"),
            ("0", "0s"),
            (".5s", "500ms"),
            ("+1h", "1h0m0s"),
        ] {
            assert_eq!(parse(text).map(format), Ok(printed.to_owned()), "{text}");
        }
    }
}
