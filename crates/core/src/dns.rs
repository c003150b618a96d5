//! DNS answers: a question, who asks, and what is known, to records (PN-20..48, FC-04).
//!
//! Everything is answered from the *network of the asker* (PN-48): the caller looks the network up
//! by source address and passes it; apps of other networks do not exist. `.internal` and `.flycast`
//! are never forwarded, nor are reverse questions for `fdaa::/16`; everything else is
//! [`Answer::Forward`].
//!
//! Not here: the wire format, TC and TCP, forwarding, and the split of TXT into strings of 255 bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::Arc;

use crate::address;
use crate::ids::{AppName, MachineId, NetworkId, ProcessGroup, Region};

/// Seconds that a record may be kept (fly-semantics 4.2).
pub const TTL_S: u32 = 5;
/// Seconds that "there is none" may be kept (PN-45).
pub const NEGATIVE_TTL_S: u32 = 1;
/// So many addresses go into one UDP answer; over TCP all (PN-46).
pub const UDP_ADDRESSES_MAX: usize = 32;

/// What is known, by network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// Each network's part.
    pub networks: BTreeMap<NetworkId, Zone>,
}

/// What one network sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// Apps whose Machines are in this network.
    pub apps: BTreeMap<AppName, Arc<[Member]>>,
    /// Flycast addresses that this network may call; the app may be in another one (FC-13).
    pub flycast: BTreeMap<AppName, BTreeSet<Ipv6Addr>>,
}

/// One Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub id: MachineId,
    /// Where it is.
    pub region: Region,
    /// Its process group; `None` for a Machine that no deploy manages (MA-38).
    pub group: Option<Arc<ProcessGroup>>,
    /// Its 6PN address.
    pub private_ip: Ipv6Addr,
    /// Whether it runs: only those are listed (PN-40).
    pub presence: Presence,
    /// Keys and values for `_metadata` names (PN-26).
    pub metadata: Arc<[(String, String)]>,
}

/// Whether a Machine is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Listed everywhere.
    Started,
    /// Listed only under `all.`.
    Asleep,
}

/// The record type that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv6 addresses.
    Aaaa,
    /// Texts.
    Txt,
    /// Both.
    Any,
    /// Anything else: there are none under our names.
    Other,
}

/// Who asks, and for which transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The network of the source address.
    pub network: NetworkId,
    /// The asker's own region, for `nearest`.
    pub region: Region,
    /// How much fits.
    pub transport: Transport,
    /// Any number; chooses the order of addresses (PN-46).
    pub random: u64,
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// At most [`UDP_ADDRESSES_MAX`] addresses.
    Udp,
    /// All.
    Tcp,
}

/// What to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Authoritative; TTL [`TTL_S`].
    Records(Vec<Record>),
    /// The name exists and has nothing of this type: NOERROR with SOA.
    NoData,
    /// There is no such name: NXDOMAIN with SOA.
    NoName,
    /// Not ours: ask the host's resolvers.
    Forward,
}

/// One record, always of the name that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// AAAA.
    Aaaa(Ipv6Addr),
    /// TXT; may be longer than 255 bytes.
    Txt(String),
}

/// Answers one question. `name` may have any case and a final dot.
pub fn answer(name: &str, kind: Kind, asker: Asker, directory: &Directory) -> Answer {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let mut labels: Vec<&str> = name.split('.').collect();
    let suffix = labels.pop();
    let empty = Zone::default();
    let zone = directory.networks.get(&asker.network).unwrap_or(&empty);
    match suffix {
        Some("internal") => answer_internal(&labels, kind, asker, zone),
        Some("flycast") => answer_flycast(&labels, kind, asker, zone),
        _ if name.ends_with(".a.a.d.f.ip6.arpa") => Answer::NoName,
        _ => Answer::Forward,
    }
}

/// What a name stands for, before the type is looked at.
enum Content {
    Addresses(Vec<Ipv6Addr>, Order),
    Text(String),
}

enum Order {
    Shuffled,
    AsGiven,
}

fn answer_flycast(labels: &[&str], kind: Kind, asker: Asker, zone: &Zone) -> Answer {
    let [app] = labels else {
        return if labels.is_empty() { Answer::NoData } else { Answer::NoName };
    };
    let Some(addresses) = app.parse().ok().and_then(|app: AppName| zone.flycast.get(&app)) else {
        return Answer::NoName;
    };
    let addresses = addresses.iter().copied().collect();
    of_kind(Content::Addresses(addresses, Order::Shuffled), kind, asker)
}

fn answer_internal(labels: &[&str], kind: Kind, asker: Asker, zone: &Zone) -> Answer {
    let Some((&last, before)) = labels.split_last() else { return Answer::NoData };
    let content = if last.starts_with('_') {
        platform_name(before, last, asker.network, zone)
    } else {
        let members = last.parse().ok().and_then(|app: AppName| zone.apps.get(&app));
        members.and_then(|members| app_name(before, asker.region, members))
    };
    content.map_or(Answer::NoName, |content| of_kind(content, kind, asker))
}

/// `_apps`, `_api`, `_instances` (PN-28, PN-34, PN-36).
fn platform_name(before: &[&str], last: &str, network: NetworkId, zone: &Zone) -> Option<Content> {
    match (before, last) {
        ([], "_apps") => Some(Content::Text(join(zone.apps.keys()))),
        ([], "_api") => Some(Content::Addresses(vec![address::resolver(network)], Order::AsGiven)),
        ([], "_instances") => Some(Content::Text(instances(zone, Listed::Started))),
        (["all"], "_instances") => Some(Content::Text(instances(zone, Listed::All))),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    Started,
    All,
}

impl Listed {
    fn has(self, member: &Member) -> bool {
        self == Self::All || member.presence == Presence::Started
    }
}

/// Names below one app (PN-20..26, PN-30, PN-32).
fn app_name(before: &[&str], near: Region, members: &[Member]) -> Option<Content> {
    let started = |keep: &dyn Fn(&Member) -> bool| {
        let kept = members.iter().filter(|m| Listed::Started.has(m) && keep(m));
        Some(Content::Addresses(kept.map(|m| m.private_ip).collect(), Order::Shuffled))
    };
    match before {
        [] | ["global"] => started(&|_| true),
        ["vms"] => Some(Content::Text(vms(members, Listed::Started))),
        ["all", "vms"] => Some(Content::Text(vms(members, Listed::All))),
        ["regions"] => Some(Content::Text(regions(members, Listed::Started))),
        ["all", "regions"] => Some(Content::Text(regions(members, Listed::All))),
        [top, "nearest", "of"] => nearest(top, near, members),
        [id, "vm"] => {
            let id: MachineId = id.parse().ok().filter(|id| members.iter().any(|m| m.id == *id))?;
            started(&|m| m.id == id)
        }
        [group, "process"] => {
            let is_it = |own: &ProcessGroup| own.as_str().eq_ignore_ascii_case(group);
            let has = |m: &Member| m.group.as_deref().is_some_and(is_it);
            members.iter().any(has).then(|| started(&has)).flatten()
        }
        [value, key, "kv", "_metadata"] => {
            let has = |m: &Member| has_metadata(m, key, value);
            members.iter().any(has).then(|| started(&has)).flatten()
        }
        [region] => {
            let region: Region = region.parse().ok()?;
            let known = members.iter().any(|m| m.region == region);
            known.then(|| started(&|m| m.region == region)).flatten()
        }
        _ => None,
    }
}

fn has_metadata(member: &Member, key: &str, value: &str) -> bool {
    let mut pairs = member.metadata.iter();
    pairs.any(|(k, v)| k.eq_ignore_ascii_case(key) && v.eq_ignore_ascii_case(value))
}

/// `top<N>.nearest.of`: same region first; on one host there is no other distance (PN-23).
fn nearest(top: &str, near: Region, members: &[Member]) -> Option<Content> {
    let count: usize = top.strip_prefix("top")?.parse().ok()?;
    let mut started: Vec<&Member> = members.iter().filter(|m| Listed::Started.has(m)).collect();
    started.sort_by_key(|m| (m.region != near, m.region, m.id));
    let addresses = started.into_iter().take(count).map(|m| m.private_ip).collect();
    Some(Content::Addresses(addresses, Order::AsGiven))
}

fn vms(members: &[Member], listed: Listed) -> String {
    let listed = members.iter().filter(|m| listed.has(m));
    join(listed.map(|m| format!("{} {}", m.id, m.region)))
}

fn regions(members: &[Member], listed: Listed) -> String {
    let listed = members.iter().filter(|m| listed.has(m));
    join(listed.map(|m| m.region).collect::<BTreeSet<_>>())
}

fn instances(zone: &Zone, listed: Listed) -> String {
    let all = zone.apps.iter().flat_map(|(app, members)| members.iter().map(move |m| (app, m)));
    let texts = all
        .filter(|(_, m)| listed.has(m))
        .map(|(app, m)| format!("id={},app={app},ip={},region={}", m.id, m.private_ip, m.region));
    texts.collect::<Vec<_>>().join(";")
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn of_kind(content: Content, kind: Kind, asker: Asker) -> Answer {
    let records: Vec<Record> = match (content, kind) {
        (Content::Addresses(addresses, order), Kind::Aaaa | Kind::Any) => {
            arrange(addresses, order, asker).into_iter().map(Record::Aaaa).collect()
        }
        (Content::Text(text), Kind::Txt | Kind::Any) => vec![Record::Txt(text)],
        (Content::Addresses(..), Kind::Txt | Kind::Other)
        | (Content::Text(_), Kind::Aaaa | Kind::Other) => Vec::new(),
    };
    if records.is_empty() { Answer::NoData } else { Answer::Records(records) }
}

fn arrange(mut addresses: Vec<Ipv6Addr>, order: Order, asker: Asker) -> Vec<Ipv6Addr> {
    match order {
        Order::Shuffled => shuffle(&mut addresses, asker.random),
        Order::AsGiven => {}
    }
    if asker.transport == Transport::Udp {
        addresses.truncate(UDP_ADDRESSES_MAX);
    }
    addresses
}

/// Fisher and Yates, with a linear congruential generator: order is fairness here, not secrecy.
fn shuffle(addresses: &mut [Ipv6Addr], random: u64) {
    let mut state = random;
    for last in (1..addresses.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = (state >> 33) as usize % (last + 1);
        addresses.swap(last, other);
    }
}

#[cfg(test)]
mod tests;
