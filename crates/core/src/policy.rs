//! Who may call a service, and who may wake it: rules that a deploy gives (`[[perch.allow]]` in `fly.toml`).
//!
//! The first rule that fits a call decides. Where there are rules and none fits, the call is refused; where there are
//! none, everybody whom the network lets in may call and wake.

use std::fmt;
use std::str::FromStr;

use crate::ids::AppName;

/// What a caller may do, from the most to the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Call, and wake a Machine for it.
    Wake,
    /// Call while a Machine is awake and has room; such calls keep none awake.
    ServeIfAwake,
    /// Nothing.
    Refuse,
}

impl Verdict {
    /// All.
    pub const ALL: [Self; 3] = [Self::Wake, Self::ServeIfAwake, Self::Refuse];

    /// The word in files and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::ServeIfAwake => "serve-if-awake",
            Self::Refuse => "refuse",
        }
    }
}

/// What is no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} must be wake, serve-if-awake or refuse")]
pub struct BadVerdict(String);

impl FromStr for Verdict {
    type Err = BadVerdict;

    fn from_str(text: &str) -> Result<Self, BadVerdict> {
        let found = Self::ALL.into_iter().find(|verdict| verdict.as_str() == text);
        found.ok_or_else(|| BadVerdict(text.chars().take(80).collect()))
    }
}

/// Whom a rule means.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// The Machines of this app: `app:NAME`.
    App(AppName),
    /// Everybody in this network, `network:NAME` in the organization of the app that is called, or `network:ORG/NAME`.
    Network {
        /// `None`: that of the app that is called.
        org: Option<Box<str>>,
        /// Its name.
        name: Box<str>,
    },
    /// Somebody who is no Machine: `peer:NAME`, or `host`.
    Peer(Box<str>),
}

/// What cannot be read as somebody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names nobody: it must be app:NAME, network:NAME, network:ORG/NAME, peer:NAME or host"
)]
pub struct BadWho(String);

/// A name as organizations, networks and peers have it.
fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=63).contains(&text.len()) && text.bytes().all(good)
}

impl FromStr for Who {
    type Err = BadWho;

    fn from_str(text: &str) -> Result<Self, BadWho> {
        let bad = || BadWho(text.chars().take(80).collect());
        let name = |name: &str| is_name(name).then(|| name.into()).ok_or_else(bad);
        if text == "host" {
            return Ok(Self::Peer("host".into()));
        }
        match text.split_once(':').ok_or_else(bad)? {
            ("app", app) => app.parse().map(Self::App).map_err(|_| bad()),
            ("peer", peer) => name(peer).map(Self::Peer),
            ("network", network) => match network.split_once('/') {
                Some((org, network)) => {
                    Ok(Self::Network { org: Some(name(org)?), name: name(network)? })
                }
                None => Ok(Self::Network { org: None, name: name(network)? }),
            },
            _ => Err(bad()),
        }
    }
}

/// Whether this can be a method in a rule: it is compared as it is written, and all that anybody sends is upper case.
pub fn is_method(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
    (1..=32).contains(&text.len()) && text.bytes().all(good)
}

/// Whether this can be a path in a rule: it begins with a slash, and all programs read it alike.
pub fn is_path(text: &str) -> bool {
    let good = |byte: u8| b' ' < byte && !matches!(byte, b'?' | b'#' | 0x7f);
    text.starts_with('/') && text.len() <= 256 && text.bytes().all(good) && !is_unclear(text)
}

/// One rule. What is empty fits everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Who calls: one of these.
    pub from: Box<[Who]>,
    /// The method of a request, as it is written: one of these. With one, the rule fits requests only.
    pub methods: Box<[Box<str>]>,
    /// What the path of a request begins with, by whole segments: one of these. With one, the rule fits requests only.
    pub paths: Box<[Box<str>]>,
    /// What follows.
    pub then: Verdict,
}

/// A caller, as far as the network tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The app whose Machine it is.
    pub app: Option<&'a str>,
    /// Organization and name of the network that it calls from.
    pub network: Option<(&'a str, &'a str)>,
    /// Its name, if it is no Machine.
    pub peer: Option<&'a str>,
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// By whom.
    pub caller: Caller<'a>,
    /// Organization of the app that is called.
    pub org: &'a str,
    /// Method and path (a query does not count); `None`: bytes or datagrams.
    pub request: Option<(&'a str, &'a str)>,
}

/// Why a call may do no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There are no rules.
    NoRules,
    /// The rule with this number, from 1.
    Rule(usize),
    /// No rule fits.
    NoneFits,
    /// The path can be read in two ways, and rules look at paths.
    UnclearPath,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules => f.write_str("there are no rules"),
            Self::Rule(number) => write!(f, "by rule {number}"),
            Self::NoneFits => f.write_str("no rule fits"),
            Self::UnclearPath => {
                f.write_str("its path can be read in two ways (//, /./, /../, needless %), which rules with paths refuse")
            }
        }
    }
}

/// The rules of a service, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    /// See there.
    pub rules: Box<[Rule]>,
}

impl Policy {
    /// What a call may do, and why.
    pub fn decide(&self, call: &Call<'_>) -> (Verdict, Reason) {
        if self.rules.is_empty() {
            return (Verdict::Wake, Reason::NoRules);
        }
        let path = call.request.map(|(_, path)| without_query(path));
        let looks_at_paths = self.rules.iter().any(|rule| !rule.paths.is_empty());
        if looks_at_paths && path.is_some_and(is_unclear) {
            return (Verdict::Refuse, Reason::UnclearPath);
        }
        match self.rules.iter().position(|rule| rule.fits(call)) {
            Some(index) => (self.rules[index].then, Reason::Rule(index + 1)),
            None => (Verdict::Refuse, Reason::NoneFits),
        }
    }
}

impl Rule {
    fn fits(&self, call: &Call<'_>) -> bool {
        let from = self.from.is_empty() || self.from.iter().any(|who| who.is(call));
        from && self.fits_request(call.request)
    }

    fn fits_request(&self, request: Option<(&str, &str)>) -> bool {
        if self.methods.is_empty() && self.paths.is_empty() {
            return true;
        }
        let Some((method, path)) = request else { return false };
        let path = without_query(path);
        let method_fits = self.methods.is_empty() || self.methods.iter().any(|it| **it == *method);
        method_fits && (self.paths.is_empty() || self.paths.iter().any(|it| begins(path, it)))
    }
}

impl Who {
    fn is(&self, call: &Call<'_>) -> bool {
        match self {
            Self::App(app) => call.caller.app == Some(app.as_str()),
            Self::Peer(peer) => call.caller.peer == Some(peer),
            Self::Network { org, name } => {
                let org = org.as_deref().unwrap_or(call.org);
                call.caller.network == Some((org, name))
            }
        }
    }
}

fn without_query(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

/// Whether a path begins with whole segments; `/api` with `/api`, `/api/x` and `/api;x`, not `/apis`.
fn begins(path: &str, prefix: &str) -> bool {
    let Some(rest) = path.strip_prefix(prefix) else { return false };
    rest.is_empty() || prefix.ends_with('/') || rest.starts_with(['/', ';'])
}

/// Whether programs differ about what a path means: `/a//b`, `/a/../b`, `/%61`, `/a\b`.
fn is_unclear(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    let is_odd = |(index, segment): (usize, &&str)| match segment.split(';').next() {
        Some("." | "..") => true,
        Some("") => index != last || !segment.is_empty(),
        _ => false,
    };
    segments.iter().enumerate().any(is_odd) || path.contains('\\') || has_needless_escape(path)
}

/// Whether something is escaped that need not be, or that would be read as another `/`.
fn has_needless_escape(path: &str) -> bool {
    path.split('%').skip(1).any(|rest| {
        let byte = rest.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        byte.is_none_or(|byte| {
            byte.is_ascii_alphanumeric() || byte < b' ' || b"-._~/\\;%".contains(&byte)
        })
    })
}

#[cfg(test)]
mod tests;
