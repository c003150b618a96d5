//! Questions to the DNS server of a network, and its answers. Extension: Fly's client asks its server
//! through a tunnel.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// By whose network a name is looked up; a part of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asker {
    /// That of an app.
    App(String),
    /// The default one of an organization.
    Organization(String),
}

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DnsQuestion {
    /// The name, with its last dot.
    pub name: String,
    /// `IN`.
    pub class: String,
    /// `A`, `AAAA`, `CNAME` or `TXT`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DnsRecord {
    /// Whose it is, with the last dot.
    pub name: String,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// `IN`.
    pub class: String,
    /// `AAAA`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says, as zone files have it.
    pub data: String,
    /// The strings of a `TXT` record, without quotes; else empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
}

/// Answer of `GET …/dns`: the message of the DNS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DnsAnswer {
    /// Who answered.
    pub server: IpAddr,
    /// Number of the message.
    pub id: u16,
    /// `QUERY`.
    pub opcode: String,
    /// `NOERROR`, `NXDOMAIN`, …
    pub status: String,
    /// Those that are set, of `qr aa tc rd ra ad cd`.
    pub flags: Vec<String>,
    /// What was asked.
    pub question: Vec<DnsQuestion>,
    /// What is so.
    pub answer: Vec<DnsRecord>,
    /// Who says it.
    pub authority: Vec<DnsRecord>,
    /// What else helps.
    pub additional: Vec<DnsRecord>,
}

impl Default for DnsAnswer {
    fn default() -> Self {
        Self {
            server: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            id: 0,
            opcode: String::new(),
            status: String::new(),
            flags: Vec::new(),
            question: Vec::new(),
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        }
    }
}
