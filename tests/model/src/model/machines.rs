//! Machines and their leases.

use std::collections::BTreeSet;

use perch_api::wire::MachineState;
use serde_json::{Map, Value};

use super::{After, Effect, Lease, Machine, Model, REGION, Refusal, TAG, refuse};
use crate::call::{Launch, Target, Wish};

/// Seconds of a lease for whose length nobody asked, and of the longest one (MA-63).
const LEASE_SECONDS: (u64, u64) = (120, 3_600);

impl Lease {
    fn new(ttl: u64, description: &str) -> Self {
        let ttl = if ttl == 0 { LEASE_SECONDS.0 } else { ttl.min(LEASE_SECONDS.1) };
        Self { nonce: None, description: description.to_owned(), ttl, seen: None }
    }

    fn refuse<T>(&self) -> Result<T, Refusal> {
        let Some((owner, ends)) = &self.seen else {
            return refuse(409, "lease currently held by …, expires at …");
        };
        let ends = jiff::Timestamp::from_second(*ends).unwrap_or_default();
        refuse(409, format!("lease currently held by {owner}, expires at {ends}"))
    }
}

impl Machine {
    fn new(input: &Launch) -> Self {
        Self {
            id: None,
            name: (!input.name.is_empty()).then(|| input.name.clone()),
            config: input.config.clone(),
            state: MachineState::Created,
            cordoned: input.cordoned,
            version: None,
            versions: BTreeSet::new(),
            private_ip: None,
            lease: None,
            events: Vec::new(),
            events_on_disk: 0,
            shaken: false,
        }
    }

    /// Whether its services put it to sleep and wake it again.
    fn sleeps(&self) -> bool {
        let services = self.config["services"].as_array().map_or(&[][..], Vec::as_slice);
        !services.is_empty() && services.iter().all(|service| service["autostop"] == true)
    }

    /// Whether its program exists; else each start fails.
    fn can_run(&self) -> bool {
        self.config["init"]["exec"].is_null()
    }

    /// Whether it answers who visits its app.
    pub(crate) fn serves(&self) -> bool {
        let has_services = self.config["services"].is_array();
        has_services && !self.cordoned && self.state == MachineState::Started
    }

    fn is_down(&self) -> bool {
        matches!(self.state, MachineState::Created | MachineState::Stopped | MachineState::Failed)
    }

    fn happened(&mut self, kinds: &[&str]) {
        self.events.extend(kinds.iter().map(|&kind| kind.to_owned()));
    }

    /// A start that nothing interrupts, with the kind of event that tells of its beginning.
    fn start(&mut self, asked: &str) {
        let (state, end) = if self.can_run() {
            (MachineState::Started, "start")
        } else {
            (MachineState::Failed, "exit")
        };
        self.state = state;
        self.happened(&[asked, end]);
    }

    fn stop(&mut self) {
        match self.state {
            MachineState::Started => self.happened(&["stop", "exit"]),
            MachineState::Failed => self.happened(&["stop"]),
            _ => return,
        }
        self.state = MachineState::Stopped;
    }

    fn end_by_signal(&mut self) -> Result<(), Refusal> {
        if self.state != MachineState::Started {
            return refuse(412, format!("unable to signal machine: it is {}", self.state));
        }
        self.happened(&["exit"]);
        if self.config["restart"]["policy"] == "no" {
            self.state = MachineState::Stopped;
        } else {
            self.start("launch");
        }
        Ok(())
    }

    fn update(&mut self, config: &Value, skip_launch: bool) {
        self.config = config.clone();
        self.versions.extend(self.version.take());
        match (self.state, skip_launch) {
            (MachineState::Started, _) => {
                self.happened(&["update", "exit"]);
                self.start("launch");
            }
            (_, true) => self.happened(&["update"]),
            (_, false) => self.start("update"),
        }
    }

    /// Says who has the lease, if that is not the caller (MA-61).
    fn check_lease(&self, nonce: Option<&str>) -> Result<(), Refusal> {
        match &self.lease {
            Some(lease) if nonce.is_none() || nonce != lease.nonce.as_deref() => lease.refuse(),
            Some(_) | None => Ok(()),
        }
    }

    /// Itself, or what it is instead when the server died before the program ran: one that wakes by itself waits until
    /// somebody needs it (DESIGN 8).
    fn or_asleep(self) -> Vec<Self> {
        if self.sleeps() && self.state == MachineState::Started {
            return vec![Self { state: MachineState::Stopped, ..self.clone() }, self];
        }
        vec![self]
    }
}

impl Model {
    fn machine(&self, target: &Target) -> Result<&Machine, Refusal> {
        let Target { app, id, .. } = target;
        let of_app = self.apps.get(app).map_or(&[][..], |app| &app.machines);
        let found = of_app.iter().find(|machine| machine.id.as_ref() == Some(id));
        found.ok_or_else(|| Refusal::new(404, format!("machine not found: {id} in app {app}")))
    }

    /// A Machine that the caller may change.
    fn free_machine(&self, target: &Target) -> Result<Machine, Refusal> {
        let machine = self.machine(target)?;
        machine.check_lease(target.nonce.as_deref())?;
        Ok(machine.clone())
    }

    /// The same with a Machine put in the place of the one that has its id, or at the end.
    fn with(&self, app: &str, machine: Machine) -> Self {
        let mut after = self.clone();
        if let Some(app) = after.apps.get_mut(app) {
            let same = |it: &&mut Machine| it.id.is_some() && it.id == machine.id;
            match app.machines.iter_mut().find(same) {
                Some(place) => *place = machine,
                None => app.machines.push(machine),
            }
        }
        after
    }

    fn with_each(&self, app: &str, machines: Vec<Machine>) -> Vec<Self> {
        machines.into_iter().map(|machine| self.with(app, machine)).collect()
    }

    fn effect(&self, app: &str, halfway: Vec<Machine>, done: Machine) -> Effect {
        let done = self.with_each(app, done.or_asleep());
        Effect { halfway: self.with_each(app, halfway), done }
    }

    fn check_image(&self, app: &str, config: &Value) -> Result<(), Refusal> {
        self.app(app)?;
        let image = config["image"].as_str().unwrap_or_default();
        if image.ends_with(&format!(":{TAG}")) {
            return Ok(());
        }
        let hint = "push it with `fly deploy --image` (docker-daemon:, oci:, oci-archive: or docker-archive:); \
                    pulling from registries is not supported yet";
        refuse(404, format!("image {image} is not on this server; {hint}"))
    }

    pub(super) fn create_machine(&self, app: &str, input: &Launch) -> After {
        let region = &input.region;
        if !region.is_empty() && region != REGION {
            let text = format!("region {region} has no host; this server is region {REGION}");
            return refuse(422, text);
        }
        self.check_image(app, &input.config)?;
        let mut machine = Machine::new(input);
        let mut halfway = vec![machine.clone()];
        if 0 < input.lease_ttl {
            machine.lease = Some(Lease::new(input.lease_ttl, "created"));
            halfway.push(machine.clone());
        }
        if !input.skip_launch {
            machine.start("launch");
        }
        Ok(self.effect(app, halfway, machine))
    }

    pub(super) fn update_machine(&self, target: &Target, input: &Launch, current: &str) -> After {
        let mut machine = self.free_machine(target)?;
        self.check_image(&target.app, &input.config)?;
        let version = machine.version.clone().unwrap_or_default();
        if !current.is_empty() && current != version {
            let (id, why) = (&target.id, "somebody changed it meanwhile");
            return refuse(
                409,
                format!("machine {id} is at version {version}, not {current}: {why}"),
            );
        }
        // A Machine that is down may have the config and no start yet; a run is replaced by the next server.
        let mut halfway = Vec::new();
        if machine.is_down() {
            let mut stored = machine.clone();
            let state = stored.state;
            stored.update(&input.config, true);
            halfway.push(Machine { state, ..stored });
        }
        machine.update(&input.config, input.skip_launch);
        Ok(self.effect(&target.app, halfway, machine))
    }

    pub(super) fn wish(&self, target: &Target, wish: Wish) -> After {
        let mut machine = self.free_machine(target)?;
        let before = machine.state;
        match wish {
            // It may be a Machine that sleeps by itself: what runs is left alone.
            Wish::Start if before == MachineState::Started => {
                return Ok(Effect::of(self.clone()));
            }
            Wish::Start => machine.start("launch"),
            Wish::Stop => machine.stop(),
            Wish::Signal => machine.end_by_signal()?,
            Wish::Cordon | Wish::Uncordon => {
                machine.cordoned = wish == Wish::Cordon;
                machine.happened(&[if machine.cordoned { "cordon" } else { "uncordon" }]);
                return Ok(Effect::of(self.with(&target.app, machine)));
            }
            Wish::Delete if !machine.is_down() => {
                let hint = "stop it first, or remove it by force";
                return refuse(412, format!("machine {} is {before}; {hint}", target.id));
            }
            Wish::Delete | Wish::Kill => {
                let mut after = self.clone();
                let app = after.app_mut(&target.app)?;
                app.machines.retain(|machine| machine.id.as_ref() != Some(&target.id));
                return Ok(Effect::of(after));
            }
        }
        Ok(self.effect(&target.app, Vec::new(), machine))
    }

    pub(super) fn set_metadata(&self, target: &Target, key: &str, value: Option<&str>) -> After {
        let mut machine = self.free_machine(target)?;
        let had: Option<&Map<String, Value>> = machine.config["metadata"].as_object();
        let mut entries = had.cloned().unwrap_or_default();
        match value {
            Some(value) => drop(entries.insert(key.to_owned(), value.into())),
            None => drop(entries.shift_remove(key)),
        }
        machine.config["metadata"] = Value::Object(entries);
        Ok(Effect::of(self.with(&target.app, machine)))
    }

    pub(super) fn acquire_lease(&self, target: &Target, ttl: u64, description: &str) -> After {
        let mut machine = self.free_machine(target)?;
        if machine.lease.is_none() && target.nonce.is_some() {
            return refuse(404, format!("machine {} lease not found", target.id));
        }
        let nonce = machine.lease.take().and_then(|lease| lease.nonce);
        machine.lease = Some(Lease { nonce, ..Lease::new(ttl, description) });
        Ok(Effect::of(self.with(&target.app, machine)))
    }

    pub(super) fn release_lease(&self, target: &Target) -> After {
        let mut machine = self.machine(target)?.clone();
        if machine.lease.is_none() {
            return refuse(404, format!("machine {} lease not found", target.id));
        }
        machine.check_lease(target.nonce.as_deref())?;
        machine.lease = None;
        Ok(Effect::of(self.with(&target.app, machine)))
    }
}
