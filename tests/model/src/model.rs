//! What a server should be: apps with what hangs on them, and what each call does to them.
//!
//! The model is pure. [`Model::after`] tells for any call in any state how it is refused, or what it leads to, also
//! when the server is killed meanwhile. What only the server can choose (ids, addresses, nonces) is `None` until it was seen; the module
//! `meeting` learns it and then holds the server to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use perch_api::wire::{AddressIntent, IpKind, MachineState, ReleaseStatus};
use serde_json::Value;

use crate::call::Call;

mod machines;
mod releases;

/// Organizations of the server under test; the first is the default one.
pub(crate) const ORGANIZATIONS: [&str; 2] = ["personal", "acme"];
/// The host's region.
const REGION: &str = "lcl";
/// The tag under which each app has its image.
pub(crate) const TAG: &str = "m";

/// Everything that can be seen of a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) apps: BTreeMap<String, App>,
    /// Addresses that apps have or had: none is given twice on one day (FC-03).
    pub(crate) given: BTreeSet<IpAddr>,
    /// First three groups of each network's addresses, by organization and name.
    pub(crate) networks: BTreeMap<(String, String), [u16; 3]>,
    /// What the server shows of a secret, by app, name and value: always the same, and never of another one.
    pub(crate) digests: BTreeMap<(String, String, String), String>,
}

/// An app.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) org: String,
    pub(crate) network: String,
    pub(crate) intent: AddressIntent,
    pub(crate) number: i32,
    /// In order of allocation.
    pub(crate) ips: Vec<Ip>,
    /// In order of creation.
    pub(crate) machines: Vec<Machine>,
    /// Oldest first.
    pub(crate) releases: Vec<Release>,
    /// Values by name.
    pub(crate) secrets: BTreeMap<String, String>,
}

/// An address of an app.
#[derive(Debug, Clone)]
pub(crate) struct Ip {
    pub(crate) ip: Option<IpAddr>,
    pub(crate) kind: IpKind,
    /// Organization and network that may call it.
    pub(crate) caller: Option<(String, String)>,
}

/// A Machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) id: Option<String>,
    /// `None` while the server's choice is not known.
    pub(crate) name: Option<String>,
    pub(crate) config: Value,
    pub(crate) state: MachineState,
    pub(crate) cordoned: bool,
    /// `None` after a change until it was seen.
    pub(crate) version: Option<String>,
    /// Versions that it had.
    pub(crate) versions: BTreeSet<String>,
    pub(crate) private_ip: Option<Ipv6Addr>,
    pub(crate) lease: Option<Lease>,
    /// Kinds of its events, oldest first.
    pub(crate) events: Vec<String>,
    /// How many of them are surely on disk.
    pub(crate) events_on_disk: usize,
    /// Whether the server was killed since its events were seen: then the youngest may be lost.
    pub(crate) shaken: bool,
}

/// A lease on a Machine.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// `None` when the answer that told it was lost.
    pub(crate) nonce: Option<String>,
    pub(crate) description: String,
    pub(crate) ttl: u64,
    /// Owner and end, once seen.
    pub(crate) seen: Option<(String, i64)>,
}

/// A release.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) id: Option<String>,
    pub(crate) version: u64,
    pub(crate) status: ReleaseStatus,
    pub(crate) image: String,
    pub(crate) definition: Value,
    pub(crate) begun: bool,
    /// Whether its deploy still has the right to go on when nothing more is heard of it.
    pub(crate) led: bool,
}

/// How a call is refused: `…` in the text stands for what only the server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) text: String,
}

/// What a call leads to.
#[derive(Debug, Clone)]
pub(crate) struct Effect {
    /// What a server that was killed during the call may have come to, besides nothing at all.
    pub(crate) halfway: Vec<Model>,
    /// What a server may have come to that was killed as soon as it had answered; the last one is what was asked for.
    pub(crate) done: Vec<Model>,
}

/// What becomes of the model.
pub(crate) type After = Result<Effect, Refusal>;

impl Refusal {
    pub(crate) fn new(code: u16, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Whether a text of the server's says this.
    pub(crate) fn is_told_by(&self, text: &str) -> bool {
        let parts: Vec<&str> = self.text.split('…').collect();
        let mut rest = text;
        for (at, part) in parts.iter().enumerate() {
            let Some(found) = rest.find(part).filter(|found| 0 < at || *found == 0) else {
                return false;
            };
            rest = &rest[found + part.len()..];
        }
        rest.is_empty() || parts.last() == Some(&"")
    }
}

impl Effect {
    fn of(done: Model) -> Self {
        Self { halfway: Vec::new(), done: vec![done] }
    }
}

fn refuse<T>(code: u16, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, text))
}

impl Model {
    /// What a call leads to, or why it is refused.
    pub(crate) fn after(&self, call: &Call) -> After {
        match call {
            Call::CreateApp { name, org, network, intent } => {
                self.create_app(name, org, network, *intent)
            }
            Call::UpdateApp { app, intent } => {
                let mut after = self.clone();
                let app = after.app_mut(app)?;
                app.intent = intent.unwrap_or(app.intent);
                Ok(Effect::of(after))
            }
            Call::DeleteApp { app } => {
                let mut after = self.clone();
                after.app_mut(app)?;
                after.apps.remove(app);
                Ok(Effect::of(after))
            }
            Call::AssignIp { app, kind, org, network } => self.assign_ip(app, *kind, org, network),
            Call::ReleaseIp { app, ip } => self.release_ip(app, *ip),
            Call::ChangeSecrets { app, values } => self.change_secrets(app, values),
            Call::CreateMachine { app, input } => self.create_machine(app, input),
            Call::UpdateMachine { target, input, current } => {
                self.update_machine(target, input, current)
            }
            Call::Wish { target, wish } => self.wish(target, *wish),
            Call::SetMetadata { target, key, value } => {
                self.set_metadata(target, key, value.as_deref())
            }
            Call::AcquireLease { target, ttl, description } => {
                self.acquire_lease(target, *ttl, description)
            }
            Call::ReleaseLease { target } => self.release_lease(target),
            Call::CreateRelease { app, image, definition, ttl } => {
                self.create_release(app, image, definition, *ttl)
            }
            Call::UpdateRelease { id, status } => self.update_release(id, *status),
        }
    }

    /// The server was killed: events may be lost, and what is not yet known of its deeds may stay so.
    pub(crate) fn shaken(mut self) -> Self {
        for machine in self.apps.values_mut().flat_map(|app| &mut app.machines) {
            machine.shaken = true;
        }
        self
    }

    /// The Flycast address of an app that the host may call, if a Machine is there to answer.
    pub(crate) fn answering_address(&self, app: &str) -> Option<IpAddr> {
        let app = self.apps.get(app)?;
        let home = Some((ORGANIZATIONS[0].to_owned(), "default".to_owned()));
        let is_flycast = |ip: &&Ip| ip.kind == IpKind::PrivateV6 && ip.caller == home;
        let address = app.ips.iter().find(is_flycast)?.ip?;
        app.machines.iter().any(Machine::serves).then_some(address)
    }

    fn app(&self, name: &str) -> Result<&App, Refusal> {
        self.apps.get(name).ok_or_else(|| no_app(name))
    }

    fn app_mut(&mut self, name: &str) -> Result<&mut App, Refusal> {
        match self.apps.get_mut(name) {
            Some(app) => Ok(app),
            None => Err(no_app(name)),
        }
    }

    fn create_app(&self, name: &str, org: &str, network: &str, intent: AddressIntent) -> After {
        if !is_label(name) {
            let rule = "1 to 63 lower-case letters, digits and inner dashes";
            return refuse(422, format!("{name:?} is not an app name: {rule}"));
        }
        let org = if org.is_empty() { ORGANIZATIONS[0] } else { org };
        if !ORGANIZATIONS.contains(&org) {
            let all = ORGANIZATIONS.join(", ");
            let key = "key `organizations` of the server's configuration";
            let text =
                format!("there is no organization {org:?} on this server; there is: {all} ({key})");
            return refuse(404, text);
        }
        let network = if network.is_empty() { "default" } else { network };
        check_network(network)?;
        if self.apps.contains_key(name) {
            let text =
                format!("Name has already been taken: there is an app {name} on this server");
            return refuse(422, text);
        }
        let number = self.apps.values().map(|app| app.number).max().unwrap_or(0) + 1;
        let app = App {
            org: org.to_owned(),
            network: network.to_owned(),
            intent,
            number,
            ips: Vec::new(),
            machines: Vec::new(),
            releases: Vec::new(),
            secrets: BTreeMap::new(),
        };
        let mut after = self.clone();
        after.apps.insert(name.to_owned(), app);
        Ok(Effect::of(after))
    }

    fn assign_ip(&self, app: &str, kind: IpKind, org: &str, network: &str) -> After {
        let mut after = self.clone();
        let app = after.app_mut(app)?;
        let caller = match kind {
            IpKind::PrivateV6 => Some(calling_network(app, org, network)?),
            IpKind::V4 | IpKind::V6 | IpKind::SharedV4 => None,
        };
        if app.ips.iter().any(|ip| ip.kind == kind && ip.caller == caller) {
            return Ok(Effect::of(after));
        }
        if kind == IpKind::V4 {
            return refuse(
                422,
                "a dedicated public IPv4 cannot be had here; use `fly ips allocate-v4 --shared` for the shared one, or \
                 `fly ips allocate-v6 --private` for a private address",
            );
        }
        app.ips.push(Ip { ip: None, kind, caller });
        Ok(Effect::of(after))
    }

    fn change_secrets(&self, app: &str, values: &BTreeMap<String, Option<String>>) -> After {
        for name in values.keys() {
            let good =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            if name.is_empty() || !name.bytes().all(good) {
                return refuse(422, format!("{name:?} cannot be a secret's name: it has …"));
            }
            if name == "FLY_APP_NAME" {
                return refuse(422, format!("{name} is set by the platform; choose another name"));
            }
        }
        let mut after = self.clone();
        let app = after.app_mut(app)?;
        for (name, value) in values {
            match value {
                Some(value) => app.secrets.insert(name.clone(), value.clone()),
                None => app.secrets.remove(name),
            };
        }
        Ok(Effect::of(after))
    }

    fn release_ip(&self, name: &str, ip: IpAddr) -> After {
        let mut after = self.clone();
        let app = after.app_mut(name)?;
        let Some(at) = app.ips.iter().position(|own| own.ip == Some(ip)) else {
            let hint = format!("`fly ips list -a {name}` shows its addresses");
            return refuse(404, format!("{ip} is not an address of app {name}; {hint}"));
        };
        app.ips.remove(at);
        Ok(Effect::of(after))
    }
}

fn no_app(name: &str) -> Refusal {
    Refusal::new(404, format!("Could not find App \"{name}\""))
}

/// Which network may call an address (FC-13, FC-19).
fn calling_network(app: &App, org: &str, network: &str) -> Result<(String, String), Refusal> {
    let (org, network) = match (org, network) {
        ("", "") => (app.org.as_str(), app.network.as_str()),
        ("", network) => (app.org.as_str(), network),
        (org, "") => (org, "default"),
        (org, network) => (org, network),
    };
    if !ORGANIZATIONS.contains(&org) {
        let default = ORGANIZATIONS[0];
        let text = format!(
            "there is no organization {org:?} on this server; the default one is {default}"
        );
        return refuse(404, text);
    }
    check_network(network)?;
    Ok((org.to_owned(), network.to_owned()))
}

fn is_label(text: &str) -> bool {
    let good = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=63).contains(&text.len())
        && text.bytes().all(good)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn check_network(name: &str) -> Result<(), Refusal> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if first && name.len() <= 63 && name.bytes().all(good) {
        return Ok(());
    }
    let rule = "1 to 63 letters, digits and dashes, first a letter";
    refuse(422, format!("{name:?} is not a network name: {rule}"))
}
