//! What an app publishes: services, their ports, limits and sleep settings (AS-01..AS-08, PX-80..91).
//!
//! These are the decided values: defaults are filled in by whoever reads `fly.toml` or the Machine
//! config; the constants for that are here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::checks::CheckSpec;

/// `soft_limit` where nothing is configured (AS-24).
pub const SOFT_LIMIT_DEFAULT: u32 = 20;
/// `auto_stop_after` where nothing is configured (DESIGN 10).
pub const AUTO_STOP_AFTER_DEFAULT: Duration = Duration::from_secs(300);
/// The shortest `auto_stop_after`: below it a Machine would sleep between two clicks.
pub const AUTO_STOP_AFTER_MIN: Duration = Duration::from_millis(100);
/// The longest `auto_stop_after`; longer means "off".
pub const AUTO_STOP_AFTER_MAX: Duration = Duration::from_secs(30 * 86_400);
/// `start_timeout` where nothing is configured (AS-69).
pub const START_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// The shortest `start_timeout`.
pub const START_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// The longest `start_timeout`.
pub const START_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// What happens to a Machine that nobody uses (AS-02), ordered as AS-39 compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Autostop {
    /// It stays awake.
    Off,
    /// It is stopped; its root file system is fresh at the next start.
    Stop,
    /// It is suspended; where that is not possible it is stopped (AS-54).
    Suspend,
}

impl Autostop {
    /// The setting of a Machine with several services: off if any is off, else stop if any is stop
    /// (AS-65). `None` without services.
    pub fn combined(services: &[ServiceSpec]) -> Option<Self> {
        services.iter().map(|s| s.autostop).min()
    }
}

/// Whether a request may wake a Machine (AS-03, AS-73).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Autostart {
    /// A request wakes it.
    On,
    /// Only running Machines are used.
    Off,
}

/// What `soft_limit` and `hard_limit` count (AS-20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// HTTP requests in flight; an upgraded connection is one request for its life.
    Requests,
    /// Open connections; behind an `http` handler still requests in flight (DESIGN 4, LI-14).
    Connections,
}

/// Limits per Machine and service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Concurrency {
    /// What is counted.
    pub unit: Unit,
    /// From here on others are preferred and sleeping Machines are woken.
    pub soft_limit: u32,
    /// From here on the Machine gets nothing more; `None`: no such limit.
    pub hard_limit: Option<u32>,
}

/// What the proxy does with the bytes of a port (PX-80). An empty list is raw TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Handler {
    /// HTTP towards the client.
    Http,
    /// TLS is terminated.
    Tls,
    /// PostgreSQL's own TLS negotiation.
    PgTls,
    /// The PROXY protocol towards the Machine.
    ProxyProto,
}

/// What carries a service's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams; those of one caller's address and port are a session, which counts as a connection.
    Udp,
}

/// A published port as callers see it. TCP's and UDP's are apart: one Machine may publish port 53 of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPort(u32);

impl PublishedPort {
    /// The last of all.
    pub const MAX: Self = Self::udp(u16::MAX);
    /// Those of UDP come behind all of TCP.
    const UDP_FROM: u32 = 1 << 16;

    /// A port of TCP.
    pub const fn tcp(port: u16) -> Self {
        Self(port as u32)
    }

    /// A port of UDP.
    pub const fn udp(port: u16) -> Self {
        Self(Self::UDP_FROM | port as u32)
    }

    /// A port of either.
    pub const fn of(transport: Transport, port: u16) -> Self {
        match transport {
            Transport::Tcp => Self::tcp(port),
            Transport::Udp => Self::udp(port),
        }
    }

    /// Whose it is.
    pub const fn transport(self) -> Transport {
        if self.0 < Self::UDP_FROM { Transport::Tcp } else { Transport::Udp }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        (self.0 % Self::UDP_FROM) as u16
    }

    /// The next one in the order of all.
    pub(crate) fn next(self) -> Option<Self> {
        (self < Self::MAX).then_some(Self(self.0 + 1))
    }

    /// The one before it; the first is its own.
    pub(crate) fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport() {
            Transport::Tcp => write!(f, "{}", self.number()),
            Transport::Udp => write!(f, "{}/udp", self.number()),
        }
    }
}

/// Published ports `start..=end`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortSpec {
    /// First port, at least 1.
    pub start: u16,
    /// Last port, at least `start`.
    pub end: u16,
    /// In the order of the file; the order has no meaning.
    pub handlers: Vec<Handler>,
    /// Plain HTTP is answered with 301 to `https` (PX-86).
    pub force_https: bool,
}

impl PortSpec {
    /// Whether `port` is one of these.
    pub fn contains(&self, port: u16) -> bool {
        (self.start..=self.end).contains(&port)
    }
}

/// One service of a Machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceSpec {
    /// What carries it.
    pub transport: Transport,
    /// Where the program listens in the Machine.
    pub internal_port: u16,
    /// Where callers connect; empty: the service is not published.
    pub ports: Vec<PortSpec>,
    /// What happens when nobody uses it.
    pub autostop: Autostop,
    /// Whether a request may wake it.
    pub autostart: Autostart,
    /// So many stay running in the primary region (AS-04).
    pub min_machines_running: u32,
    /// Limits.
    pub concurrency: Concurrency,
    /// How long without load until it sleeps.
    pub auto_stop_after: Duration,
    /// How long a caller is held for a wake.
    pub start_timeout: Duration,
    /// Callers come only while all of them pass (MA-70, PX-66).
    pub checks: Arc<[CheckSpec]>,
}

impl ServiceSpec {
    /// Whether callers of `port` come to this service.
    pub fn publishes(&self, port: PublishedPort) -> bool {
        self.transport == port.transport() && self.ports.iter().any(|p| p.contains(port.number()))
    }

    /// Its ports, each range by its first and last.
    pub fn published(&self) -> impl Iterator<Item = (PublishedPort, PublishedPort)> {
        let of = |port| PublishedPort::of(self.transport, port);
        self.ports.iter().map(move |range| (of(range.start), of(range.end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_both_transports_are_apart_and_in_one_order() {
        let (tcp, udp) = (PublishedPort::tcp(53), PublishedPort::udp(53));
        assert_ne!(tcp, udp);
        assert_eq!([tcp.number(), udp.number()], [53, 53]);
        assert_eq!([tcp.to_string(), udp.to_string()], ["53", "53/udp"]);
        let last = PublishedPort::tcp(u16::MAX);
        assert_eq!(last.next(), Some(PublishedPort::udp(0)));
        assert_eq!(PublishedPort::udp(0).previous(), last);
        assert_eq!(PublishedPort::MAX.next(), None);
    }
}
