//! Durations as Go writes and reads them (`1m21s`, `500ms`, `-1h0m0s`), which is what flyctl's files and
//! wire use: signed 64-bit nanoseconds.

use std::fmt;
use std::time::Duration;

const NANOS_PER_SEC: u64 = 1_000_000_000;
/// The magnitude of Go's least duration, about 292 years.
const MAGNITUDE_MAX: u64 = 1 << 63;

/// A duration of a file: nanoseconds, which flyctl lets be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct GoDuration(i64);

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
    /// Below zero, where only a length of time makes sense.
    #[error("negative duration '{0}'")]
    Negative(String),
}

impl GoDuration {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// So many nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// So many seconds; beyond 292 years the longest duration that there is.
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(NANOS_PER_SEC as i64))
    }

    /// A number of units, as Go multiplies: the fraction of the number is cut off before, and what does
    /// not fit wraps around.
    pub(crate) fn scaled(number: f64, unit: i64) -> Self {
        Self(go_integer(number).wrapping_mul(unit))
    }

    /// Parses `1h2m3.5s` by Go's rules; `"0"` needs no unit, a sign may stand in front.
    pub fn parse(text: &str) -> Result<Self, BadDuration> {
        let invalid = || BadDuration::Invalid(text.to_owned());
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if unsigned == "0" {
            return Ok(Self::ZERO);
        }
        let magnitude = parse_magnitude(text, unsigned)?;
        match (negative, i64::try_from(magnitude)) {
            (false, Ok(nanos)) => Ok(Self(nanos)),
            (true, Ok(nanos)) => Ok(Self(-nanos)),
            (true, Err(_)) => Ok(Self(i64::MIN)),
            (false, Err(_)) => Err(invalid()),
        }
    }

    /// As a length of time, if it is not negative.
    pub fn length(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl fmt::Display for GoDuration {
    /// As Go's `String` does: `1m21s`, `3m0s`, `1.5s`, `500ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        f.write_str(&format_nanos(self.0.unsigned_abs()))
    }
}

impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// Parses a length of time, as flags have it.
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let duration = GoDuration::parse(text)?;
    duration.length().ok_or_else(|| BadDuration::Negative(text.to_owned()))
}

/// Prints a length of time as Go does.
pub fn format(duration: Duration) -> String {
    GoDuration::from(duration).to_string()
}

/// A float as Go's conversion to `int64` has it on amd64: cut off, and the least integer when it does
/// not fit.
pub(crate) fn go_integer(number: f64) -> i64 {
    // 2^63 is the first float that does not fit, -2^63 the last one that does.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    match (-LIMIT..LIMIT).contains(&number) {
        true => number as i64,
        false => i64::MIN,
    }
}

fn parse_magnitude(text: &str, unsigned: &str) -> Result<u64, BadDuration> {
    let invalid = || BadDuration::Invalid(text.to_owned());
    let mut rest = unsigned;
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let (part, after) = parse_part(text, rest)?;
        total = total.checked_add(part).filter(|sum| *sum <= MAGNITUDE_MAX).ok_or_else(invalid)?;
        rest = after;
    }
    Ok(total)
}

/// One number with its unit, and what follows it.
fn parse_part<'a>(text: &str, rest: &'a str) -> Result<(u64, &'a str), BadDuration> {
    let invalid = || BadDuration::Invalid(text.to_owned());
    let digits_end = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, after) = rest.split_at(digits_end(rest));
    let (fraction, after) = match after.strip_prefix('.') {
        Some(after) => after.split_at(digits_end(after)),
        None => ("", after),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(invalid());
    }
    let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
    let (unit, after) = after.split_at(unit_end);
    let unit = unit_nanos(text, unit)?;
    let whole: u64 = match whole {
        "" => 0,
        digits => digits.parse().map_err(|_| invalid())?,
    };
    let part = whole.checked_mul(unit).filter(|part| *part <= MAGNITUDE_MAX).ok_or_else(invalid)?;
    Ok((part.saturating_add(fraction_nanos(fraction, unit)), after))
}

/// Precision below a nanosecond is cut off, and digits beyond what fits 63 bits are not looked at.
fn fraction_nanos(digits: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0u64, 1f64);
    for digit in digits.bytes() {
        let next = value.checked_mul(10).map(|value| value + u64::from(digit - b'0'));
        let Some(next) = next.filter(|next| *next <= i64::MAX as u64) else { break };
        (value, scale) = (next, scale * 10.0);
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

fn unit_nanos(text: &str, unit: &str) -> Result<u64, BadDuration> {
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

fn format_nanos(nanos: u64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, size) in [("ns", 1), ("µs", 1_000), ("ms", 1_000_000)] {
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

/// `value / unit` with as many decimals as needed and no trailing zeros.
fn decimal(value: u64, unit: u64) -> String {
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
        let bad = |text: &str| GoDuration::parse(text).map_err(|error| error.to_string());
        assert_eq!(bad(""), Err("invalid duration ''".into()));
        assert_eq!(bad("-"), Err("invalid duration '-'".into()));
        assert_eq!(bad("5"), Err("missing unit in duration '5'".into()));
        assert_eq!(bad("5 s"), Err("unknown unit ' s' in duration '5 s'".into()));
        assert_eq!(bad("5sec"), Err("unknown unit 'sec' in duration '5sec'".into()));
        assert_eq!(bad("1d"), Err("unknown unit 'd' in duration '1d'".into()));
        assert_eq!(bad("1.2.3s"), Err("missing unit in duration '1.2.3s'".into()));
        assert_eq!(bad("."), Err("invalid duration '.'".into()));
        assert_eq!(bad("9999999999h"), Err("invalid duration '9999999999h'".into()));
        let negative = parse("-1s").map_err(|error| error.to_string());
        assert_eq!(negative, Err("negative duration '-1s'".into()));
    }

    /// Compat section 5, durations: compound, signed, printed back as Go does.
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
            ("-0", "0s"),
            (".5s", "500ms"),
            ("+1h", "1h0m0s"),
            ("-1m30s", "-1m30s"),
            ("-9223372036854775808ns", "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(
                GoDuration::parse(text).map(|d| d.to_string()),
                Ok(printed.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn numbers_that_do_not_fit_end_where_go_ends() {
        assert_eq!(GoDuration::scaled(1e300, 1).to_string(), "-2562047h47m16.854775808s");
        assert_eq!(GoDuration::scaled(1500.9, 1_000_000).to_string(), "1.5s");
    }
}
