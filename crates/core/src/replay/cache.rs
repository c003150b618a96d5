//! Replays that are remembered, so that a request goes where its app would send it (PX-50..52).
//!
//! One cache per app that was called, keyed by host name and path, and by sessions where the app has [`Rule`]s about
//! them. Best effort: it is bounded, and lost with the proxy.

use std::collections::BTreeMap;
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

/// Sessions of one app; the quarter that ends first goes.
pub const SESSIONS_MAX: usize = 10_000;

/// Below which path requests with the same cookie or header are one session (PX-51).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Empty: any.
    host: String,
    prefix: String,
    /// What tells sessions apart.
    pub by: By,
    /// How long a session is remembered from the replay on.
    pub ttl: Duration,
    /// Whether a caller may pass it by (PX-34).
    pub may_skip: bool,
}

/// What tells sessions apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The value of a cookie of this name.
    Cookie(String),
    /// The value of a field of this name.
    Header(String),
}

impl Rule {
    /// `pattern` is `/path` or `host/path`; `None`: it is neither.
    pub fn new(pattern: &str, by: By, ttl: Duration, may_skip: bool) -> Option<Self> {
        let (host, prefix) = split(pattern)?;
        let (host, prefix) = (host.to_ascii_lowercase(), as_prefix(prefix));
        Some(Self { host, prefix, by, ttl, may_skip })
    }

    /// The one with the longest path that a request fits.
    pub fn of<'r>(rules: &'r [Self], (host, path): (&str, &str)) -> Option<&'r Self> {
        let is_host = |rule: &Self| rule.host.is_empty() || rule.host == host;
        let fits = |rule: &&Self| is_host(rule) && is_below(path, &rule.prefix);
        rules.iter().filter(fits).max_by_key(|rule| (rule.prefix.len(), !rule.host.is_empty()))
    }

    fn key(&self, host: &str, session: Session) -> SessionKey {
        let by = match &self.by {
            By::Cookie(name) => format!("cookie {name}"),
            By::Header(name) => format!("header {}", name.to_ascii_lowercase()),
        };
        (host.to_owned(), self.prefix.clone(), by, session)
    }
}

/// A digest of what tells a session apart: it may be a password.
pub type Session = [u8; 32];

/// Host, prefix, what by, and which.
type SessionKey = (String, String, String, Session);

/// See the module's head.
#[derive(Debug, Default)]
pub struct Cache {
    entries: Vec<Entry>,
    sessions: BTreeMap<SessionKey, (Timestamp, Replay)>,
}

impl Cache {
    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.sessions.is_empty()
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
        let prefix = as_prefix(prefix);
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

    /// Remembers where a session of this host goes.
    pub fn store_session(
        &mut self,
        (rule, host): (&Rule, &str),
        session: Session,
        replay: Replay,
        now: Timestamp,
    ) {
        if SESSIONS_MAX <= self.sessions.len() {
            let mut ends: Vec<_> = self.sessions.values().map(|(until, _)| *until).collect();
            ends.sort_unstable();
            let first = ends[SESSIONS_MAX / 4].max(now);
            self.sessions.retain(|_, (until, _)| first < *until);
        }
        self.sessions.insert(rule.key(host, session), (now + rule.ttl, replay));
    }

    /// Where it goes.
    pub fn find_session(
        &self,
        (rule, host): (&Rule, &str),
        session: Session,
        now: Timestamp,
    ) -> Option<&Replay> {
        let (until, replay) = self.sessions.get(&rule.key(host, session))?;
        (now < *until).then_some(replay)
    }

    /// Forgets it, and what has ended.
    pub fn forget_session(
        &mut self,
        (rule, host): (&Rule, &str),
        session: Session,
        now: Timestamp,
    ) {
        self.sessions.remove(&rule.key(host, session));
        self.sessions.retain(|_, (until, _)| now < *until);
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

/// `/a/` of `/a`, `/a/` and `/a/*`.
fn as_prefix(path: &str) -> String {
    format!("{}/", path.trim_end_matches('*').trim_end_matches('/'))
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

    fn by_cookie(pattern: &str) -> Rule {
        Rule::new(pattern, By::Cookie("s".to_owned()), TTL, false).expect("it has a path")
    }

    #[test]
    fn the_rule_with_the_longest_path_says_what_a_session_is() {
        let rules = ["/", "/api", "H.test/api", "h.test/"].map(by_cookie);
        let of = |host, path| Rule::of(&rules, (host, path));
        assert_eq!(of("g", "/x"), Some(&rules[0]));
        assert_eq!(of("g", "/api/x?y"), Some(&rules[1]));
        assert_eq!(of("h.test", "/api"), Some(&rules[2]));
        assert_eq!(of("h.test", "/apis"), Some(&rules[3]));
        assert_eq!(Rule::of(&rules[1..3], ("h.test", "/")), None);
        assert_eq!(Rule::new("path", By::Cookie(String::new()), TTL, false), None);
    }

    #[test]
    fn a_session_is_of_one_host_and_one_rule_until_its_time_is_over() {
        let mut cache = Cache::default();
        let (rule, other) = (by_cookie("/"), by_cookie("/api"));
        cache.store_session((&rule, "h"), [1; 32], to("one").0, at(0));
        let found =
            |rule, host, session, now| cache.find_session((rule, host), session, at(now)).is_some();
        assert!(found(&rule, "h", [1; 32], 9));
        assert!(!found(&rule, "h", [1; 32], 10) && !found(&rule, "h", [2; 32], 9));
        assert!(!found(&rule, "g", [1; 32], 9) && !found(&other, "h", [1; 32], 9));
        cache.forget_session((&rule, "h"), [1; 32], at(1));
        assert!(cache.is_empty());
    }

    #[test]
    fn sessions_do_not_grow_without_end() {
        let (mut cache, rule) = (Cache::default(), by_cookie("/"));
        let session = |n: u64| {
            let mut session = [0; 32];
            session[..8].copy_from_slice(&n.to_le_bytes());
            session
        };
        let count = SESSIONS_MAX as u64 * 2;
        for n in 0..count {
            let now = Timestamp::from_micros(n);
            cache.store_session((&rule, "h"), session(n), to("x").0, now);
            assert!(cache.sessions.len() <= SESSIONS_MAX);
        }
        let found = |n| cache.find_session((&rule, "h"), session(n), at(1)).is_some();
        assert!(!found(0) && found(count - 1));
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
