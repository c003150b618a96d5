//! The clock, fine ticks, and random numbers: the only place of the proxy that asks the system for
//! them.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use perch_core::time::Timestamp;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Time since boot, host suspend included.
pub(crate) fn now() -> Timestamp {
    let now = clock_gettime(ClockId::Boottime);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    let now = Timestamp::from_micros(u64::try_from(micros).unwrap_or(0));
    #[cfg(test)]
    return now + AHEAD.get();
    #[cfg(not(test))]
    now
}

/// Wall time in microseconds since 1970, for people and records.
pub(crate) fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
thread_local! {
    static AHEAD: Cell<std::time::Duration> = const { Cell::new(std::time::Duration::ZERO) };
}

/// From now on it is so much later on this thread.
#[cfg(test)]
pub(crate) fn advance(length: std::time::Duration) {
    AHEAD.set(AHEAD.get() + length);
}

/// Waits shorter than the runtime's timer can (it counts whole milliseconds).
#[derive(Debug)]
pub(crate) struct Ticker(AsyncFd<OwnedFd>);

impl Ticker {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(deprecated, reason = "its successor is unsafe for types without I/O safety only")]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Waits for `length`, at least a nanosecond and less than a second.
    pub(crate) async fn wait(&self, length: Duration) -> io::Result<()> {
        let nanos = length.subsec_nanos().max(1);
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: nanos.into() },
        };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        self.0
            .async_io(Interest::READABLE, |timer| Ok(rustix::io::read(timer, &mut [0_u8; 8])?))
            .await?;
        Ok(())
    }
}

thread_local! {
    static STATE: Cell<u64> = Cell::new(seed());
}

fn seed() -> u64 {
    let mut bytes = [0_u8; 8];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // Only lots among equals and request ids depend on it; the time is better than nothing.
        Ok(_) | Err(_) => now().as_micros(),
    }
}

/// A well-mixed number, not for secrets (SplitMix64).
pub(crate) fn random() -> u64 {
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number that nobody outside can guess.
pub(crate) fn secret_u16() -> u16 {
    let mut bytes = [0_u8; 2];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(2) => u16::from_ne_bytes(bytes),
        Ok(_) | Err(_) => u16::try_from(random() & 0xffff).unwrap_or(0),
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    #[cfg(test)]
    let since = since + AHEAD.get();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whole seconds since 1970.
pub(crate) fn unix_secs() -> u64 {
    unix_millis() / 1000
}

/// Microseconds since 1970, for people and programs; nothing here is decided by it.
pub(crate) fn wall_micros() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()
}

/// Length of the text of a ULID.
pub(crate) const ULID_LEN: usize = 26;

/// A new ULID of this time: 48 bits of milliseconds, 80 random bits, in Crockford's base 32.
pub(crate) fn ulid(unix_millis: u64) -> [u8; ULID_LEN] {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let random_bits = (u128::from(random()) << 64 | u128::from(random())) >> 48;
    let mut value = (u128::from(unix_millis) & 0xffff_ffff_ffff) << 80 | random_bits;
    let mut text = [b'0'; ULID_LEN];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(value & 31) as usize];
        value >>= 5;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_order_of_time_and_differ() {
        let (first, second) = (ulid(unix_millis()), ulid(unix_millis()));
        assert!(first[..10] <= second[..10]);
        assert_ne!(first, second);
        assert!(first[0] <= b'7', "48 bits of time fit in ten digits");
    }
}
