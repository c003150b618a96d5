//! What runs inside a Machine, read from `/proc`.

use serde::{Deserialize, Serialize};

/// A process of a Machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id as the Machine sees it.
    pub pid: i32,
    /// Command line, arguments separated by spaces.
    pub command: String,
    /// Working directory as the Machine sees it; empty when unreadable.
    pub directory: String,
    /// CPU time spent in the kernel, in clock ticks (1/100 s).
    pub stime: u64,
    /// Time since it started, in seconds.
    pub rtime: u64,
    /// CPU time spent altogether, in clock ticks (1/100 s).
    pub cpu: u64,
    /// Resident memory in bytes.
    pub rss: u64,
    /// TCP and UDP sockets that it listens on.
    pub listen_sockets: Vec<ListenSocket>,
}

/// A socket that a process listens on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenSocket {
    /// `tcp` or `udp`.
    pub proto: String,
    /// `address:port`; an IPv6 address in brackets.
    pub address: String,
}
