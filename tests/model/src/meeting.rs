//! The model meets what was seen: it must be equal, and what only the server could choose is learnt.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use perch_api::wire::{IpKind, LeaseData, Secret};
use serde_json::{Value, json};

use crate::call::Answer;
use crate::model::{App, Ip, Lease, Machine, Model, Release};
use crate::seen::{Seen, SeenApp};

/// Kinds of events that a Machine can have.
const EVENTS: [&str; 9] =
    ["launch", "start", "exit", "stop", "update", "destroy", "adopt", "cordon", "uncordon"];

impl Model {
    /// The model with all that was seen.
    ///
    /// # Errors
    /// Says where the server is different.
    pub(crate) fn meet(&self, seen: &Seen) -> Result<Self> {
        let mut met = self.clone();
        let (ours, theirs): (Vec<_>, Vec<_>) =
            (self.apps.keys().collect(), seen.apps.keys().collect());
        ensure!(ours == theirs, "apps: model {ours:?}, server {theirs:?}");
        let Self { apps, given, networks, digests } = &mut met;
        for (name, app) in apps {
            app.meet_secrets(name, &seen.apps[name].secrets, digests)
                .with_context(|| format!("app {name}"))?;
            app.meet(&seen.apps[name], given, networks).with_context(|| format!("app {name}"))?;
        }
        Ok(met)
    }
}

type Digests = std::collections::BTreeMap<(String, String, String), String>;
type Networks = std::collections::BTreeMap<(String, String), [u16; 3]>;

impl App {
    fn meet(
        &mut self,
        seen: &SeenApp,
        given: &mut BTreeSet<IpAddr>,
        networks: &mut Networks,
    ) -> Result<()> {
        self.check_facts(seen)?;
        self.meet_ips(seen, given, networks)?;
        self.meet_machines(seen)?;
        let network = (self.org.clone(), self.network.clone());
        for machine in &self.machines {
            let ip = machine.private_ip.context("it was just learnt")?;
            in_network(IpAddr::V6(ip), &network, networks)?;
        }
        self.meet_releases(seen)
    }

    fn check_facts(&self, seen: &SeenApp) -> Result<()> {
        let app = &seen.app;
        same("organization", &self.org, &app.organization.slug)?;
        same("network", &self.network, &app.network)?;
        same("intent", &self.intent, &app.address_intent)?;
        same("number", &self.number, &app.internal_numeric_id)?;
        same("machine_count", &self.machines.len(), &(app.machine_count as usize))?;
        let complete = self.releases.iter().any(Release::is_complete);
        same("status", &if complete { "deployed" } else { "pending" }, &app.status.as_str())?;
        same("latest_deploy", &complete, &app.latest_deploy.is_some())
    }

    fn meet_ips(
        &mut self,
        seen: &SeenApp,
        given: &mut BTreeSet<IpAddr>,
        networks: &mut Networks,
    ) -> Result<()> {
        let mut shown: Vec<&mut Ip> = self.ips.iter_mut().collect();
        shown.sort_by_key(|ip| ip.kind == IpKind::SharedV4);
        same("number of addresses", &shown.len(), &seen.ips.len())?;
        for (ip, theirs) in shown.into_iter().zip(&seen.ips) {
            same("kind of address", &ip.kind, &theirs.kind)?;
            let network = theirs.network.clone();
            let caller = network.map(|network| (network.organization, network.name));
            same("caller", &ip.caller, &caller)?;
            if ip.ip.is_none() && ip.kind != IpKind::SharedV4 {
                ensure!(given.insert(theirs.ip), "{} was somebody's today", theirs.ip);
            }
            learn("address", &mut ip.ip, theirs.ip)?;
            if let Some(caller) = &ip.caller {
                in_network(theirs.ip, caller, networks)?;
            }
        }
        Ok(())
    }

    fn meet_secrets(&self, app: &str, seen: &[Secret], digests: &mut Digests) -> Result<()> {
        let (ours, theirs): (Vec<_>, Vec<_>) =
            (self.secrets.keys().collect(), seen.iter().map(|secret| &secret.name).collect());
        ensure!(ours == theirs, "secrets: model {ours:?}, server {theirs:?}");
        for ((name, value), theirs) in self.secrets.iter().zip(seen) {
            let secret = (app.to_owned(), name.clone(), value.clone());
            if !digests.contains_key(&secret) {
                let twice = digests.iter().find(|(_, digest)| **digest == theirs.digest);
                ensure!(twice.is_none(), "the digest of {name} is also that of {twice:?}");
                ensure!(!theirs.digest.contains(value.as_str()), "{name} is shown");
                digests.insert(secret, theirs.digest.clone());
            } else {
                same("digest", &digests[&secret], &theirs.digest)?;
            }
        }
        Ok(())
    }

    fn meet_machines(&mut self, seen: &SeenApp) -> Result<()> {
        same("number of Machines", &self.machines.len(), &seen.machines.len())?;
        let known: BTreeSet<String> = self.machines.iter().filter_map(|it| it.id.clone()).collect();
        let mut new = seen.machines.iter().filter(|machine| !known.contains(&machine.id));
        for machine in &mut self.machines {
            let theirs = match &machine.id {
                Some(id) => seen.machines.iter().find(|machine| machine.id == *id),
                None => new.next(),
            };
            let theirs =
                theirs.with_context(|| format!("Machine {:?} is not there", machine.id))?;
            machine
                .meet(theirs, seen.leases.get(&theirs.id))
                .with_context(|| format!("Machine {}", theirs.id))?;
        }
        Ok(())
    }

    fn meet_releases(&mut self, seen: &SeenApp) -> Result<()> {
        same("number of releases", &self.releases.len(), &seen.releases.len())?;
        for (release, theirs) in self.releases.iter_mut().zip(seen.releases.iter().rev()) {
            same("release", &release.version, &theirs.version)?;
            same("status of release", &release.status, &theirs.status)?;
            same("image of release", &release.image, &theirs.image_ref)?;
            learn("id of release", &mut release.id, theirs.id.clone())?;
        }
        let current = self.releases.iter().rev().find(|release| release.begun);
        let ours = current.map(|release| (release.version, release.definition.clone()));
        let theirs = seen.current.as_ref();
        let theirs = theirs.map(|it| (it.version, it.definition.clone().unwrap_or_default()));
        same("current release", &ours, &theirs)
    }
}

impl Release {
    fn is_complete(&self) -> bool {
        self.status == perch_api::wire::ReleaseStatus::Complete
    }
}

impl Machine {
    fn meet(&mut self, theirs: &perch_api::wire::Machine, lease: Option<&LeaseData>) -> Result<()> {
        learn("id", &mut self.id, theirs.id.clone())?;
        learn("name", &mut self.name, theirs.name.clone())?;
        learn("private_ip", &mut self.private_ip, theirs.private_ip)?;
        same("state", &self.state, &theirs.state)?;
        same("cordoned", &self.cordoned, &theirs.cordoned)?;
        same("config", &shown(&self.config), &serde_json::to_value(&theirs.config)?)?;
        ensure!(!self.versions.contains(&theirs.instance_id), "it has its old instance_id again");
        learn("instance_id", &mut self.version, theirs.instance_id.clone())?;
        match (&mut self.lease, lease) {
            (None, None) => {}
            (Some(ours), Some(theirs)) => ours.meet(theirs)?,
            (ours, theirs) => same("lease", &ours.is_some(), &theirs.is_some())?,
        }
        let mut kinds: Vec<String> = theirs.events.iter().map(|event| event.kind.clone()).collect();
        kinds.reverse();
        self.meet_events(kinds)
    }

    /// After a kill the youngest may be missing, and the next server may have seen and done other things.
    fn meet_events(&mut self, theirs: Vec<String>) -> Result<()> {
        if self.shaken {
            let sure = &self.events[..self.events_on_disk.min(self.events.len())];
            let strange = theirs.iter().find(|kind| !EVENTS.contains(&kind.as_str()));
            ensure!(theirs.starts_with(sure), "events: model at least {sure:?}, server {theirs:?}");
            ensure!(strange.is_none(), "events: {strange:?} is none");
            (self.events, self.shaken) = (theirs, false);
            return Ok(());
        }
        same("events", &self.events, &theirs)
    }
}

impl Lease {
    fn meet(&mut self, theirs: &LeaseData) -> Result<()> {
        same("description of the lease", &self.description, &theirs.description)?;
        ensure!(theirs.nonce.is_empty(), "everybody is told the nonce of the lease");
        let seen = (theirs.owner.clone(), theirs.expires_at);
        if self.seen.is_none() {
            let left = theirs.expires_at - jiff::Timestamp::now().as_second();
            let most = i64::try_from(self.ttl)?;
            ensure!((most - 60..=most).contains(&left), "{left} s of {most} are left of the lease");
        }
        learn("lease", &mut self.seen, seen)
    }
}

/// A config as it is shown: with a guest.
fn shown(config: &Value) -> Value {
    let mut shown = config.clone();
    if shown["guest"].is_null() {
        shown["guest"] = json!({"cpu_kind": "shared", "cpus": 1, "memory_mb": 256});
    }
    shown
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: &T, theirs: &T) -> Result<()> {
    ensure!(ours == theirs, "{what}: model {ours:?}, server {theirs:?}");
    Ok(())
}

fn learn<T: PartialEq + std::fmt::Debug>(
    what: &str,
    ours: &mut Option<T>,
    theirs: T,
) -> Result<()> {
    match ours {
        Some(known) => same(what, known, &theirs),
        None => {
            *ours = Some(theirs);
            Ok(())
        }
    }
}

/// All addresses of a network begin alike, and other networks' do not.
fn in_network(ip: IpAddr, network: &(String, String), networks: &mut Networks) -> Result<()> {
    let IpAddr::V6(ip) = ip else { return Ok(()) };
    let [a, b, c, ..] = ip.segments();
    if let Some(known) = networks.get(network) {
        return same("network of the address", known, &[a, b, c]);
    }
    let taken = networks.iter().find(|(_, prefix)| **prefix == [a, b, c]);
    ensure!(taken.is_none(), "{ip} of {network:?} is in the network of {taken:?}");
    networks.insert(network.clone(), [a, b, c]);
    Ok(())
}

/// Holds an answer against the model that has met the server after it, and learns what only the answer tells.
///
/// # Errors
/// Says what is wrong with the answer.
pub(crate) fn check_answer(answer: &Answer, before: &Model, after: &mut Model) -> Result<()> {
    match answer {
        Answer::App(app) => {
            let known = after.apps.get(&app.name).context("its app")?;
            same("number in the answer", &known.number, &app.internal_numeric_id)?;
            same("intent in the answer", &known.intent, &app.address_intent)
        }
        Answer::Ip(ip) => {
            let mut all = after.apps.values().flat_map(|app| &app.ips);
            let known = all.any(|known| known.ip == Some(ip.ip) && known.kind == ip.kind);
            ensure!(known, "the answer tells of {}, which no app has", ip.ip);
            Ok(())
        }
        Answer::Machine(machine) => {
            let known = machine_mut(after, &machine.id).context("its Machine")?;
            same("instance_id in the answer", &known.version, &Some(machine.instance_id.clone()))?;
            same("private_ip in the answer", &known.private_ip, &Some(machine.private_ip))?;
            if let Some(nonce) = &machine.nonce {
                let lease = known.lease.as_mut().context("a nonce without a lease")?;
                lease.nonce = Some(nonce.clone());
            }
            Ok(())
        }
        Answer::Release(release) => {
            let mut all = after.apps.values().flat_map(|app| &app.releases);
            let known = all.find(|known| known.id.as_deref() == Some(&release.id));
            let known = known.context("its release")?;
            same("status in the answer", &known.status, &release.status)
        }
        Answer::Lease(lease) => {
            let ended = Some((lease.data.owner.clone(), lease.data.expires_at));
            let mut all = after.apps.values_mut().flat_map(|app| &mut app.machines);
            let is_it = |it: &&mut Machine| it.version.as_ref() == Some(&lease.data.version);
            let known = all.find(is_it).and_then(|machine| machine.lease.as_mut());
            let known = known.context("its lease")?;
            same("lease in the answer", &known.seen, &ended)?;
            learn("nonce of the lease", &mut known.nonce, lease.data.nonce.clone())
        }
        Answer::Secrets { app, secrets } => {
            let known = after.apps.get(app).context("the app of the secrets")?;
            known.meet_secrets(app, secrets, &mut after.digests.clone())
        }
        Answer::Previous(state) => {
            let all = before.apps.values().flat_map(|app| &app.machines);
            let known = all.into_iter().any(|machine| machine.state.as_str() == state);
            ensure!(known, "no Machine was {state}");
            Ok(())
        }
        Answer::Done | Answer::Refused { .. } | Answer::Lost => Ok(()),
    }
}

fn machine_mut<'a>(model: &'a mut Model, id: &str) -> Option<&'a mut Machine> {
    let mut all = model.apps.values_mut().flat_map(|app| &mut app.machines);
    all.find(|machine| machine.id.as_deref() == Some(id))
}
