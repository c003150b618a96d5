//! Replays that are remembered, so that a request goes where its app would send it (PX-50, PX-52).
//!
//! One cache per app that was called, keyed by host name and path. Best effort: it is bounded, and lost with the
//! proxy.

use std::time::Duration;

use super::Replay;
use crate::time::Timestamp;

/// Entries of one app; the one that ends first goes.
pub const ENTRIES_MAX: usize = 1_000;

/// Where requests of a host and below a path go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    host: String,
    /// Up to the `*`, with its slash.
    prefix: String,
    until: Timestamp,
    /// As its app has said.
    pub replay: Replay,
    /// Whether a caller may pass it by (PX-34).
    pub may_skip: bool,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Cache {
    entries: Vec<Entry>,
}

impl Cache {
    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Remembers a replay. `pattern` is `/path/*` or `host/path/*`, the `/*` may be left out; it must fit the
    /// request that was answered so, else nothing is remembered.
    pub fn store(
        &mut self,
        (host, path): (&str, &str),
        pattern: &str,
        (replay, may_skip): (Replay, bool),
        ttl: Duration,
        now: Timestamp,
    ) {
        let Some((wanted, prefix)) = split(pattern) else { return };
        let prefix = format!("{}/", prefix.trim_end_matches('*').trim_end_matches('/'));
        let fits = wanted.is_empty() || wanted.eq_ignore_ascii_case(host);
        if !fits || !is_below(path, &prefix) {
            return;
        }
        self.entries.retain(|e| now < e.until && !(e.host == host && e.prefix == prefix));
        if ENTRIES_MAX <= self.entries.len() {
            let first = (0..self.entries.len()).min_by_key(|at| self.entries[*at].until);
            drop(first.map(|at| self.entries.swap_remove(at)));
        }
        let host = host.to_owned();
        self.entries.push(Entry { host, prefix, until: now + ttl, replay, may_skip });
    }

    /// The entry with the longest path that this request fits.
    pub fn find(&self, (host, path): (&str, &str), now: Timestamp) -> Option<&Entry> {
        let fits = |e: &&Entry| now < e.until && e.host == host && is_below(path, &e.prefix);
        self.entries.iter().filter(fits).max_by_key(|e| e.prefix.len())
    }

    /// Forgets all that this request fits, and what has ended.
    pub fn forget(&mut self, (host, path): (&str, &str), now: Timestamp) {
        let fits = |e: &Entry| e.host == host && is_below(path, &e.prefix);
        self.entries.retain(|e| now < e.until && !fits(e));
    }
}

/// Host and path of a pattern.
fn split(pattern: &str) -> Option<(&str, &str)> {
    let at = pattern.find('/')?;
    Some(pattern.split_at(at))
}

/// `/a/` has `/a`, `/a?b` and `/a/b` below it, and not `/ab`.
fn is_below(path: &str, prefix: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    path.starts_with(prefix) || prefix.strip_suffix('/') == Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn to(app: &str) -> (Replay, bool) {
        (Replay { app: app.parse().ok(), ..Replay::default() }, false)
    }

    fn found(cache: &Cache, host: &str, path: &str, now: u64) -> Option<String> {
        let entry = cache.find((host, path), at(now))?;
        entry.replay.app.as_ref().map(ToString::to_string)
    }

    #[test]
    fn the_longest_path_of_the_host_wins_until_its_time_is_over() {
        let mut cache = Cache::default();
        cache.store(("h", "/a/b/c"), "/a/*", to("one"), TTL, at(0));
        cache.store(("h", "/a/b/c"), "H/a/b", to("two"), TTL * 2, at(0));
        assert_eq!(found(&cache, "h", "/a/x?q", 9).as_deref(), Some("one"));
        for path in ["/a/b", "/a/b?q=/", "/a/b/c"] {
            assert_eq!(found(&cache, "h", path, 9).as_deref(), Some("two"), "{path}");
        }
        for (host, path) in [("g", "/a/b"), ("h", "/ab"), ("h", "/"), ("h", "")] {
            assert_eq!(found(&cache, host, path, 9), None, "{host}{path}");
        }
        assert_eq!(found(&cache, "h", "/a/x", 10), None);
        cache.forget(("h", "/a/b/z"), at(11));
        assert!(cache.is_empty());
    }

    #[test]
    fn a_pattern_that_does_not_fit_its_own_request_is_not_remembered() {
        let mut cache = Cache::default();
        for pattern in ["/b/*", "other/a/*", "nothing", ""] {
            cache.store(("h", "/a"), pattern, to("x"), TTL, at(0));
        }
        assert!(cache.is_empty());
        cache.store(("h", "/a"), "/*", to("x"), TTL, at(0));
        assert_eq!(found(&cache, "h", "/z", 1).as_deref(), Some("x"));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut cache = Cache::default();
        for n in 0..ENTRIES_MAX as u64 + 5 {
            let path = format!("/{n}");
            cache.store(("h", &path), &path, to("x"), TTL + Duration::from_secs(n), at(0));
        }
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        assert_eq!(found(&cache, "h", "/4", 1), None, "those that end first went");
        assert!(found(&cache, "h", "/5", 1).is_some());
    }
}
