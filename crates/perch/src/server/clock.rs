//! The one place of the binary that reads clocks and draws random numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use perch_core::time::Timestamp;

/// Time since boot, host suspend included, for decisions.
pub(crate) fn now() -> Timestamp {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let micros = u64::try_from(time.tv_nsec).unwrap_or_default() / 1_000;
    Timestamp::from_micros(seconds * 1_000_000 + micros)
}

/// Wall time since 1970, for people and records.
pub(crate) fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Whole seconds since 1970.
pub(crate) fn unix_secs() -> i64 {
    i64::try_from(unix().as_secs()).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> i64 {
    i64::try_from(unix().as_millis()).unwrap_or(i64::MAX)
}

/// `2006-01-02T15:04:05Z`, as Machines and releases are stamped.
pub(crate) fn stamp() -> String {
    stamp_at(unix_secs())
}

/// The same for a given second.
pub(crate) fn stamp_at(unix_secs: i64) -> String {
    jiff::Timestamp::from_second(unix_secs).map_or_else(|_| String::new(), |at| at.to_string())
}

/// RFC 3339 with microseconds.
pub(crate) fn stamp_micros(unix_micros: u64) -> String {
    let micros = i64::try_from(unix_micros).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros)
        .map_or_else(|_| String::new(), |at| format!("{at:.6}"))
}

/// 64 random bits.
pub(crate) fn random() -> u64 {
    u64::from_ne_bytes(random_bytes())
}

/// Random bytes, good enough for secrets.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0_u8; N];
    // The kernel's source cannot fail once it is seeded, which it is long before a server starts.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert!(filled == Ok(bytes.len()), "the kernel gives random numbers");
    bytes
}

/// A new id of 16 letters and digits behind a word, as Fly names volumes.
pub(crate) fn word_id(word: &str) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let bits = u128::from(random()) << 64 | u128::from(random());
    let digits = (0..16).map(|at| char::from(DIGITS[(bits >> (at * 5)) as usize & 31]));
    word.chars().chain(digits).collect()
}

/// A new id that sorts by time: 26 characters of Crockford's base 32 (the ULID form).
pub(crate) fn ulid() -> String {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let time = u128::from(unix().as_millis() as u64 & ((1 << 48) - 1));
    let random = (u128::from(random()) << 16) | u128::from(random() & 0xffff);
    let bits = (time << 80) | random;
    (0..26).rev().map(|at| char::from(DIGITS[(bits >> (at * 5)) as usize & 31])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ulid_has_26_characters_and_begins_with_its_time() {
        let (a, b) = (ulid(), ulid());
        assert_eq!(a.len(), 26);
        assert_ne!(a, b);
        assert_eq!(a[..6], b[..6]);
    }

    #[test]
    fn stamps_have_the_form_that_flyctl_prints() {
        assert_eq!(stamp_at(0), "1970-01-01T00:00:00Z");
        assert_eq!(stamp_micros(1_500_000), "1970-01-01T00:00:01.500000Z");
    }
}
