//! The API in memory: enough state that commands meet what they would meet, and switches for trouble.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// A server that ends with the test's process; its socket goes with the fixture's directory.
pub(crate) struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    apps: BTreeMap<String, Value>,
    addresses: BTreeMap<String, Vec<Value>>,
    machines: Vec<Value>,
    releases: Vec<Value>,
    leases: BTreeMap<String, Value>,
    /// By name: value, version, and how many updates of Machines there were before.
    secrets: BTreeMap<String, Value>,
    secrets_version: u64,
    volumes: Vec<Value>,
    blobs: BTreeSet<String>,
    image_error: Option<String>,
    deploys_next: bool,
    machine_error: Option<String>,
    release_error: Option<String>,
    taken_over_by: Option<String>,
    crash: Option<String>,
    listen: Option<String>,
    clock_ms: i64,
    interruption: Option<Interruption>,
    /// What is told instead of the usual caller, regions and organizations.
    caller: Option<Value>,
    regions: Option<Value>,
    listed_organizations: Option<Value>,
    dns: BTreeMap<String, Value>,
    /// Path and query of the last call.
    asked: String,
    /// Names of organizations beyond the default one.
    organizations: Vec<String>,
    /// Log lines beyond those of a crash.
    log: Vec<Value>,
    /// Machines stay as they are when they are asked to stop.
    ignores_stops: bool,
    /// Method and path of every call.
    calls: Vec<String>,
    /// The one Machine's own text, with numbers that no value here can hold.
    machine_text: Option<String>,
}

/// Whom to tell as soon as a call with this method comes whose path, with `$` for its end, has this part.
struct Interruption {
    method: &'static str,
    part: &'static str,
    tell: tokio::sync::oneshot::Sender<()>,
}

struct Request {
    method: String,
    path: Vec<String>,
    query: BTreeMap<String, String>,
    /// Path and query as they came.
    target: String,
    nonce: Option<String>,
    body: Value,
    raw: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Value,
}

impl Server {
    pub(crate) fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("the socket is free");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self(state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no handler panics")
    }

    pub(crate) fn apps(&self) -> Vec<String> {
        self.state().apps.keys().cloned().collect()
    }

    /// The kinds of an app's addresses.
    pub(crate) fn addresses(&self, app: &str) -> Vec<String> {
        let state = self.state();
        let addresses = state.addresses.get(app).into_iter().flatten();
        addresses.map(|ip| ip["type"].as_str().unwrap_or_default().to_owned()).collect()
    }

    pub(crate) fn age_addresses(&self, created_at: &str) {
        for ip in self.state().addresses.values_mut().flatten() {
            ip["created_at"] = created_at.into();
        }
    }

    pub(crate) fn machines(&self, app: &str) -> Vec<Value> {
        let state = self.state();
        state.machines.iter().filter(|machine| machine["app"] == app).cloned().collect()
    }

    pub(crate) fn set_state(&self, id: &str, word: &str) {
        self.state().machine(id).expect("it exists")["state"] = word.into();
    }

    /// As if the newest release were still being rolled out.
    pub(crate) fn keep_deploying(&self) {
        let mut state = self.state();
        let release = state.releases.last_mut().expect("there is one");
        (release["in_progress"], release["user"]) = (true.into(), "alice".into());
    }

    /// A deploy begins as soon as the next Machine is made.
    pub(crate) fn deploy_with_next_machine(&self) {
        self.state().deploys_next = true;
    }

    /// As if a Machine started with this version of the secrets.
    pub(crate) fn set_secrets_of(&self, id: &str, version: u64) {
        self.state().machine(id).expect("it exists")["secrets"] = version.into();
    }

    pub(crate) fn release_statuses(&self, app: &str) -> Vec<String> {
        let state = self.state();
        let releases = state.releases.iter().filter(|release| release["app_name"] == app);
        releases.map(|release| release["status"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The values of the secrets by name.
    pub(crate) fn secrets(&self) -> Vec<(String, String)> {
        let state = self.state();
        let value = |it: &Value| it["v"].as_str().unwrap_or_default().to_owned();
        state.secrets.iter().map(|(name, it)| (name.clone(), value(it))).collect()
    }

    pub(crate) fn leases(&self) -> usize {
        self.state().leases.len()
    }

    pub(crate) fn lease_by(&self, id: &str, owner: &str, description: &str) {
        let data = json!({"nonce": "theirs", "expires_at": 2_000_000_000, "owner": owner,
            "description": description});
        self.state().leases.insert(id.to_owned(), data);
    }

    pub(crate) fn refuse_images(&self, why: &str) {
        self.state().image_error = Some(why.to_owned());
    }

    pub(crate) fn refuse_machines(&self, why: &str) {
        self.state().machine_error = Some(why.to_owned());
    }

    /// As if somebody else deploys every app.
    pub(crate) fn refuse_releases(&self, why: &str) {
        self.state().release_error = Some(why.to_owned());
    }

    /// As if another deploy has begun as soon as a Machine was made.
    pub(crate) fn take_over_after_a_machine(&self, why: &str) {
        self.state().taken_over_by = Some(why.to_owned());
    }

    pub(crate) fn crash_from_now_on(&self, last_line: &str) {
        self.state().crash = Some(last_line.to_owned());
    }

    /// Resolves once when such a call has come, before it is answered.
    pub(crate) fn when_called(
        &self,
        method: &'static str,
        part: &'static str,
    ) -> impl Future<Output = ()> + use<> {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.state().interruption = Some(Interruption { method, part, tell });
        async {
            if told.await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Gives an app a volume.
    pub(crate) fn add_volume(&self, app: &str, id: &str, name: &str) {
        let mut state = self.state();
        state.volumes.push(json!({"id": id, "name": name, "size_gb": 1, "region": "lcl",
            "state": "created", "zone": "0001", "encrypted": false, "attached_machine_id": null,
            "attached_alloc_id": null, "created_at": "2026-01-01T00:00:00Z", "host_dedication_id": "",
            "snapshot_retention": 5, "auto_backup_enabled": false, "host_status": "ok"}));
        let count = state.volumes.len();
        state.apps.get_mut(app).expect("it exists")["volume_count"] = count.into();
    }

    /// What is known of a volume.
    pub(crate) fn volume(&self, id: &str) -> Value {
        let state = self.state();
        state.volumes.iter().find(|it| it["id"] == id).cloned().unwrap_or_default()
    }

    /// Gives a volume to a Machine.
    pub(crate) fn attach_volume(&self, id: &str, machine: &str) {
        for volume in self.state().volumes.iter_mut().filter(|it| it["id"] == id) {
            volume["attached_machine_id"] = machine.into();
        }
    }

    /// The ids of all volumes.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let state = self.state();
        state.volumes.iter().filter_map(|it| it["id"].as_str().map(str::to_owned)).collect()
    }

    pub(crate) fn add_organization(&self, slug: &str) {
        self.state().organizations.push(slug.to_owned());
    }

    /// Changes what the server answers about a Machine.
    pub(crate) fn edit_machine(&self, id: &str, edit: impl FnOnce(&mut Value)) {
        edit(self.state().machine(id).expect("it exists"));
    }

    /// Changes the first address of an app.
    pub(crate) fn edit_address(&self, app: &str, edit: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        edit(state.addresses.get_mut(app).and_then(|list| list.first_mut()).expect("it has one"));
    }

    pub(crate) fn edit_app(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        edit(self.state().apps.get_mut(name).expect("it exists"));
    }

    /// From now on there is one Machine, whose JSON is this text.
    pub(crate) fn answer_machine_with(&self, text: &str) {
        self.state().machine_text = Some(text.to_owned());
    }

    pub(crate) fn log(&self, attributes: Value) {
        self.state().log.push(json!({"id": "1", "attributes": attributes}));
    }

    pub(crate) fn ignore_stops(&self) {
        self.state().ignores_stops = true;
    }

    /// The calls since the last time.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    pub(crate) fn set_caller(&self, caller: Value) {
        self.state().caller = Some(caller);
    }

    pub(crate) fn set_regions(&self, regions: Value) {
        self.state().regions = Some(regions);
    }

    pub(crate) fn set_organizations(&self, organizations: Value) {
        self.state().listed_organizations = Some(organizations);
    }

    /// What DNS answers to a type; without it that there is no such name.
    pub(crate) fn set_dns(&self, kind: &str, answer: Value) {
        self.state().dns.insert(kind.to_owned(), answer);
    }

    /// Path and query of the last call.
    pub(crate) fn asked(&self) -> String {
        self.state().asked.clone()
    }

    /// Sets a value in each Machine.
    pub(crate) fn set_in_machines(&self, key: &str, value: &Value) {
        self.state().machines.iter_mut().for_each(|machine| machine[key] = value.clone());
    }

    /// Of long ago, and with an image whose name does not change from run to run.
    pub(crate) fn age_releases(&self, created_at: &str) {
        for release in &mut self.state().releases {
            release["created_at"] = created_at.into();
            release["image_ref"] = "web:deployment-1".into();
        }
    }

    pub(crate) fn listen_on(&self, address: &str) {
        self.state().listen = Some(address.to_owned());
    }
}

fn serve(stream: UnixStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let Some(request) = read_request(&mut reader) else { return };
    let head = request.method == "HEAD";
    let (answer, text) = {
        let mut state = state.lock().expect("no handler panics");
        state.interrupt(&request);
        (state.answer(&request), state.text(&request))
    };
    let body = if answer.body.is_null() { String::new() } else { answer.body.to_string() };
    let body = text.unwrap_or(body);
    let mut text = format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", answer.status, body.len());
    for (name, value) in answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("connection: close\r\n\r\n");
    if !head {
        text.push_str(&body);
    }
    // The client may have gone; then nobody misses the answer.
    drop(reader.get_mut().write_all(text.as_bytes()));
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (mut length, mut nonce) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "fly-machine-lease-nonce" => nonce = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut raw = vec![0; length];
    reader.read_exact(&mut raw).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    Some(Request {
        method,
        target: target.clone(),
        path: path.split('/').skip(1).map(str::to_owned).collect(),
        query: pairs.map(|(k, v)| (k.to_owned(), v.replace("%3A", ":"))).collect(),
        nonce,
        body: serde_json::from_slice(&raw).unwrap_or(Value::Null),
        raw,
    })
}

fn ok(body: Value) -> Answer {
    Answer { status: 200, headers: Vec::new(), body }
}

fn error(status: u16, text: &str) -> Answer {
    Answer { status, headers: Vec::new(), body: json!({"error": text}) }
}

fn with(status: u16, name: &'static str, value: String) -> Answer {
    Answer { status, headers: vec![(name, value)], body: Value::Null }
}

impl State {
    fn interrupt(&mut self, request: &Request) {
        let is_it = |it: &mut Interruption| {
            it.method == request.method && format!("{}$", request.path.join("/")).contains(it.part)
        };
        if let Some(it) = self.interruption.take_if(is_it) {
            // Nobody listens any more when the command has ended by itself.
            it.tell.send(()).ok();
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        self.calls.push(format!("{} /{}", request.method, request.path.join("/")));
        let query = request.query.iter().map(|(key, value)| format!("{key}={value}"));
        self.asked = format!("{}?{}", request.path.join("/"), query.collect::<Vec<_>>().join("&"));
        let path: Vec<_> = request.path.iter().map(String::as_str).collect();
        match (request.method.as_str(), path.as_slice()) {
            ("GET", ["perch", "v1", "info"]) => {
                ok(json!({"version": "0", "region": "lcl", "default_org": "personal",
                    "host_addresses": ["fdaa::2"]}))
            }
            ("GET", ["perch", "v1", "whoami"]) => {
                let usual = || json!({"user": "uid 7", "uid": 7});
                ok(self.caller.clone().unwrap_or_else(usual))
            }
            ("GET", ["perch", "v1", _, _, "dns"]) => self.answer_dns(request),
            ("GET", ["v1", "platform", "regions"]) if self.regions.is_some() => {
                ok(self.regions.clone().unwrap_or_default())
            }
            ("GET", ["api", "v1", "organizations"]) if self.listed_organizations.is_some() => {
                ok(json!({"organizations": self.listed_organizations}))
            }
            ("GET", ["v1", "platform", "regions"]) => {
                let there = json!({"code": "rmt", "name": "Elsewhere"});
                ok(json!({"Regions": [{"code": "lcl", "name": "Here"}, there], "Nearest": "lcl"}))
            }
            ("GET", ["api", "v1", "organizations"]) => {
                ok(json!({"organizations": self.organizations()}))
            }
            ("GET", ["api", "v1", "organizations", slug]) => {
                match self.organizations().into_iter().find(|org| org["slug"] == *slug) {
                    Some(org) => ok(json!({"organization": org})),
                    None => error(404, &format!("organization not found: {slug}")),
                }
            }
            ("GET", ["v1", "apps"]) => ok(json!({"apps": self.listed_apps(&request.query)})),
            ("POST", ["v1", "apps"]) => self.create_app(&request.body),
            ("GET", ["v1", "apps", app]) => match self.apps.get(*app) {
                Some(app) => ok(app.clone()),
                None => error(404, &format!("Could not find App \"{app}\"")),
            },
            ("DELETE", ["v1", "apps", app]) => {
                self.apps.remove(*app);
                let is_named = |it: &str| request.target.contains(&format!("volume={it}"));
                self.volumes.retain(|it| !it["id"].as_str().is_some_and(is_named));
                ok(json!({"ok": true}))
            }
            // As it is for a token of one organization.
            (_, ["v1", "apps", app, "volumes", ..]) if !self.apps.contains_key(*app) => {
                error(404, &format!("Could not find App \"{app}\""))
            }
            (_, ["v1", "apps", _, "volumes", rest @ ..]) => self.answer_volumes(request, rest),
            (_, ["v1", "apps", app, "ip_assignments", rest @ ..]) => {
                self.answer_addresses(request, app, rest)
            }
            ("GET", ["v1", "apps", _, "images"]) => self.resolve(&request.query["ref"]),
            (_, ["v1", "apps", app, "machines", rest @ ..]) => {
                self.answer_machines(request, app, rest)
            }
            (_, ["v1", "apps", _, "secrets"]) => self.answer_secrets(request),
            (_, ["api", "v1", ..]) => self.answer_releases(request, &path[2..]),
            (_, ["v2", _, rest @ ..]) => self.answer_registry(request, rest),
            _ => error(404, "no such route"),
        }
    }

    fn answer_volumes(&mut self, request: &Request, rest: &[&str]) -> Answer {
        match (request.method.as_str(), rest) {
            ("GET", []) => ok(self.volumes.clone().into()),
            ("POST", []) => {
                let mut made = self.volumes[0].clone();
                made["id"] = format!("vol_{}", self.volumes.len() + 1).into();
                for (key, value) in request.body.as_object().into_iter().flatten() {
                    made[key] = value.clone();
                }
                self.volumes.push(made.clone());
                ok(made)
            }
            ("GET", [id]) => match self.volumes.iter().find(|it| it["id"] == *id) {
                Some(volume) => ok(volume.clone()),
                None => error(404, &format!("volume not found: {id}")),
            },
            ("GET", ["vol_1", "snapshots"]) => ok(json!([
                {"id": "vs_new", "created_at": "2026-02-01T00:00:00Z", "status": "created"},
                {"id": "vs_old", "created_at": "2026-01-01T00:00:00Z", "status": "created"},
            ])),
            ("GET", [_, "snapshots"]) => ok(json!([])),
            _ => error(404, "no such route"),
        }
    }

    fn text(&self, request: &Request) -> Option<String> {
        let text = self.machine_text.as_ref()?;
        let path: Vec<_> = request.path.iter().map(String::as_str).collect();
        match (request.method.as_str(), path.as_slice()) {
            ("GET", ["v1", "apps", _, "machines"]) => Some(format!("[{text}]")),
            ("GET", ["v1", "apps", _, "machines", _]) => Some(text.clone()),
            _ => None,
        }
    }

    fn organizations(&self) -> Vec<Value> {
        let personal = json!({"slug": "personal", "name": "Personal", "personal": true});
        let others = self.organizations.iter();
        let others = others.map(|slug| json!({"slug": slug, "name": slug.to_uppercase()}));
        std::iter::once(personal).chain(others).collect()
    }

    fn listed_apps(&self, query: &BTreeMap<String, String>) -> Vec<Value> {
        let org = query.get("org_slug");
        let apps = self
            .apps
            .iter()
            .filter(|(_, app)| org.is_none_or(|org| app["organization"]["slug"] == org.as_str()));
        let counted = |(name, app): (&String, &Value)| {
            let machines = self.machines.iter().filter(|machine| machine["app"] == name.as_str());
            let mut app = app.clone();
            app["machine_count"] = machines.count().into();
            app
        };
        apps.map(counted).collect()
    }

    fn answer_dns(&self, request: &Request) -> Answer {
        let missing = json!({"server": "fdaa::3", "id": 7, "opcode": "QUERY", "status": "NXDOMAIN",
            "flags": ["qr", "aa", "rd", "ra"]});
        ok(self.dns.get(&request.query["type"]).cloned().unwrap_or(missing))
    }

    fn create_app(&mut self, body: &Value) -> Answer {
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        if self.apps.contains_key(&name) {
            let text = format!("Name has already been taken: {name}");
            let body = json!({"error": text, "status": "name_taken"});
            return Answer { status: 422, headers: Vec::new(), body };
        }
        let network = match body["network"].as_str() {
            None | Some("") => "default",
            Some(network) => network,
        };
        let organization = json!({"slug": body["org_slug"], "name": "Personal",
            "internal_numeric_id": 7});
        let app = json!({"id": name, "name": name, "status": "pending", "network": network,
            "internal_numeric_id": 42, "hostname": format!("{name}.perch.test"),
            "organization": organization, "address_intent": body["address_intent"]});
        self.apps.insert(name, app.clone());
        ok(app)
    }

    fn answer_secrets(&mut self, request: &Request) -> Answer {
        if request.method == "POST" {
            self.secrets_version += 1;
            for (name, value) in request.body["values"].as_object().into_iter().flatten() {
                let version = self.secrets_version;
                match value {
                    Value::Null => drop(self.secrets.remove(name)),
                    _ => drop(
                        self.secrets.insert(name.clone(), json!({"v": value, "version": version})),
                    ),
                }
            }
        }
        let pins: Vec<u64> =
            self.machines.iter().map(|it| it["secrets"].as_u64().unwrap_or(0)).collect();
        let wire = |(name, secret): (&String, &Value)| {
            let version = secret["version"].as_u64().unwrap_or(0);
            let machines = pins.iter().filter(|pin| version <= **pin).count();
            json!({"name": name, "digest": format!("d{version}"), "machines": machines})
        };
        let secrets: Vec<Value> = self.secrets.iter().map(wire).collect();
        ok(json!({"secrets": secrets, "version": self.secrets_version}))
    }

    fn answer_addresses(&mut self, request: &Request, app: &str, rest: &[&str]) -> Answer {
        let list = self.addresses.entry(app.to_owned()).or_default();
        match (request.method.as_str(), rest) {
            ("GET", []) => ok(json!({"ips": list})),
            ("POST", []) => {
                let (ip, region) = match request.body["type"].as_str() {
                    Some("private_v6") => ("fdaa::1", "global"),
                    Some("v6") => ("2001:db8::2", "global"),
                    _ => ("192.0.2.10", ""),
                };
                let address = json!({"ip": ip, "type": request.body["type"], "region": region,
                    "created_at": "2026-01-01T00:00:00Z"});
                list.push(address.clone());
                ok(address)
            }
            (_, [ip]) => {
                list.retain(|address| address["ip"] != *ip);
                ok(json!({"ok": true}))
            }
            _ => error(404, "no such route"),
        }
    }

    fn resolve(&self, reference: &str) -> Answer {
        match &self.image_error {
            Some(why) => error(422, why),
            None => ok(json!({"id": "x", "digest": "sha256:0", "ref": reference})),
        }
    }

    fn answer_machines(&mut self, request: &Request, app: &str, rest: &[&str]) -> Answer {
        match (request.method.as_str(), rest) {
            ("GET", []) => {
                let machines = self.machines.iter().filter(|machine| machine["app"] == app);
                ok(machines.cloned().collect())
            }
            ("POST", []) => self.create_machine(request, app),
            (method, [id, action @ ..]) => {
                let held = self.leases.get(*id).and_then(|lease| lease["nonce"].as_str());
                if action != ["lease"]
                    && method != "GET"
                    && held.is_some_and(|held| Some(held) != request.nonce.as_deref())
                {
                    return error(409, "the machine is leased");
                }
                match self.machine(id) {
                    Some(_) => self.answer_machine(request, id, action),
                    None => error(404, &format!("machine not found: {id} in app {app}")),
                }
            }
            _ => error(404, "no such route"),
        }
    }

    fn machine(&mut self, id: &str) -> Option<&mut Value> {
        self.machines.iter_mut().find(|machine| machine["id"] == id)
    }

    fn create_machine(&mut self, request: &Request, app: &str) -> Answer {
        if let Some(why) = &self.machine_error {
            return error(422, why);
        }
        let number = |it: &Value| it["id"].as_str()?.strip_prefix('m')?.parse::<usize>().ok();
        let newest = self.machines.iter().filter_map(number).max();
        let id = format!("m{}", newest.map_or(0, |number| number + 1));
        let machine = json!({"id": id, "app": app, "name": id, "private_ip": "fdaa::3",
            "image_ref": {"repository": app, "tag": "t"}, "events": [], "host_status": "ok",
            "state": "created"});
        self.machines.push(machine);
        let mut machine = self.launch(&id, request);
        if std::mem::take(&mut self.deploys_next) {
            let release = self.releases.last_mut().expect("there is one");
            (release["in_progress"], release["user"]) = (true.into(), "alice".into());
        }
        if request.body["lease_ttl"].as_u64().is_some_and(|seconds| 0 < seconds) {
            self.leases.insert(id.clone(), json!({"nonce": "made"}));
            machine["nonce"] = "made".into();
        }
        ok(machine)
    }

    /// Applies a config: the Machine starts, crashes, or stays asleep.
    fn launch(&mut self, id: &str, request: &Request) -> Value {
        self.clock_ms += 1;
        let (now, crash, secrets) = (self.clock_ms, self.crash.is_some(), self.secrets_version);
        let machine = self.machine(id).expect("it exists");
        machine["config"] = request.body["config"].clone();
        machine["instance_id"] = format!("v{now}").into();
        machine["secrets"] = secrets.into();
        machine["region"] = "lcl".into();
        if let Some(name) = request.body["name"].as_str().filter(|name| !name.is_empty()) {
            machine["name"] = name.into();
        }
        if request.body["skip_launch"] == true {
            return machine.clone();
        }
        let exit = json!({"type": "exit", "timestamp": now, "status": "stopped",
            "request": {"exit_event": {"exit_code": 3}}});
        let start = json!({"type": "start", "timestamp": now, "status": "started"});
        machine["state"] = if crash { "stopped" } else { "started" }.into();
        let events = machine["events"].as_array_mut().expect("it is a list");
        events.insert(0, if crash { exit } else { start });
        machine.clone()
    }

    fn answer_machine(&mut self, request: &Request, id: &str, action: &[&str]) -> Answer {
        let done = ok(json!({"ok": true}));
        match (request.method.as_str(), action) {
            ("GET", []) => ok(self.machine(id).cloned().unwrap_or_default()),
            ("POST", []) => ok(self.launch(id, request)),
            ("DELETE", []) => {
                self.machines.retain(|machine| machine["id"] != id);
                self.leases.remove(id);
                done
            }
            (_, ["lease"]) => self.answer_lease(request, id),
            ("POST", ["start"]) => {
                self.machine(id).expect("it exists")["state"] = "started".into();
                ok(json!({"previous_state": "stopped"}))
            }
            ("POST", [verb @ ("cordon" | "uncordon")]) => {
                self.machine(id).expect("it exists")["cordoned"] = (*verb == "cordon").into();
                done
            }
            ("POST", ["signal"]) => {
                let machine = self.machine(id).expect("it exists");
                if machine["state"] != "started" {
                    return error(412, "unable to signal machine: it is stopped");
                }
                machine["signal"] = request.body["signal"].clone();
                done
            }
            ("POST", ["restart"]) => {
                self.machine(id).expect("it exists")["restart"] = json!(request.query);
                let how = request.query["force_stop"].clone();
                self.machine(id).expect("it exists")["force_stop"] = how.into();
                done
            }
            ("POST", ["stop"]) => {
                if !self.ignores_stops {
                    self.machine(id).expect("it exists")["state"] = "stopped".into();
                }
                done
            }
            ("GET", ["wait"]) => {
                let wanted = request.query["state"].clone();
                let reached =
                    |machine: &mut Value| wanted == "settled" || machine["state"] == wanted;
                match self.machine(id).is_some_and(reached) {
                    true => done,
                    false => error(408, "not in time"),
                }
            }
            ("GET", ["ps"]) => {
                let address = self.listen.clone().unwrap_or_else(|| "0.0.0.0:8080".to_owned());
                let sockets = json!([{"proto": "tcp", "address": address}]);
                ok(json!([{"pid": 2, "command": "hello", "listen_sockets": sockets}]))
            }
            _ => error(404, "no such route"),
        }
    }

    fn answer_lease(&mut self, request: &Request, id: &str) -> Answer {
        let held = self.leases.get(id).cloned();
        let ours = held.as_ref().is_none_or(|lease| lease["nonce"] == json!(request.nonce));
        match (request.method.as_str(), held) {
            ("GET", Some(data)) => ok(json!({"status": "success", "data": data})),
            ("POST", Some(data)) if !ours => {
                let owner = data["owner"].as_str().unwrap_or_default();
                error(409, &format!("lease currently held by {owner}"))
            }
            ("POST", _) => {
                let data = json!({"nonce": format!("n-{id}"), "owner": "me"});
                self.leases.insert(id.to_owned(), data.clone());
                ok(json!({"status": "success", "data": data}))
            }
            ("DELETE", Some(_)) if ours || request.query.contains_key("force") => {
                self.leases.remove(id);
                ok(json!({"ok": true}))
            }
            _ => error(404, " lease not found"),
        }
    }

    fn answer_releases(&mut self, request: &Request, path: &[&str]) -> Answer {
        match (request.method.as_str(), path) {
            ("POST", ["releases"]) if self.release_error.is_some() => {
                error(409, self.release_error.as_deref().unwrap_or_default())
            }
            ("PATCH", ["releases", _])
                if self.taken_over_by.is_some() && !self.machines.is_empty() =>
            {
                error(409, self.taken_over_by.as_deref().unwrap_or_default())
            }
            ("POST", ["releases"]) => {
                let version = self.releases.len() + 1;
                let mut release: Map<_, _> = request.body.as_object().cloned().unwrap_or_default();
                release.insert("id".into(), version.to_string().into());
                release.insert("version".into(), version.into());
                release.insert("user".into(), "uid 7".into());
                release.insert("status".into(), "pending".into());
                release.insert("image_ref".into(), request.body["image"].clone());
                release.insert("created_at".into(), "2026-01-01T00:00:00Z".into());
                self.releases.push(Value::Object(release.clone()));
                ok(json!({"release": release}))
            }
            ("PATCH", ["releases", id]) => {
                let index: usize = id.parse().unwrap_or(1);
                let release = &mut self.releases[index - 1];
                release["status"] = request.body["status"].clone();
                let (app, release) = (release["app_name"].clone(), release.clone());
                let app = self.apps.get_mut(app.as_str().unwrap_or_default()).expect("it exists");
                app["status"] = "deployed".into();
                app["latest_deploy"] = jiff::Timestamp::now().to_string().into();
                ok(release)
            }
            ("GET", ["apps", app, "releases", "current"]) => {
                match self.releases.iter().rev().find(|release| release["app_name"] == *app) {
                    Some(release) => ok(release.clone()),
                    None => error(404, "there is no release yet"),
                }
            }
            ("GET", ["apps", _, "releases"]) => {
                ok(json!({"releases": self.releases.iter().rev().collect::<Vec<_>>()}))
            }
            ("GET", ["apps", _, "logs"]) => {
                let crash = self.crash.iter();
                let crash = crash.map(|line| json!({"id": "1", "attributes": {"message": line}}));
                let instance = request.query.get("instance");
                let region = request.query.get("region");
                let meant = |line: &&Value| {
                    let is = |key: &str, wanted: Option<&String>| {
                        wanted.is_none_or(|wanted| line["attributes"][key] == wanted.as_str())
                    };
                    is("instance", instance) && is("region", region)
                };
                let lines: Vec<_> = crash.chain(self.log.iter().filter(meant).cloned()).collect();
                ok(json!({"data": lines, "meta": {"next_token": "t"}}))
            }
            _ => error(404, "no such route"),
        }
    }

    fn answer_registry(&mut self, request: &Request, rest: &[&str]) -> Answer {
        match (request.method.as_str(), rest) {
            ("HEAD", ["blobs", digest]) => match self.blobs.contains(*digest) {
                true => ok(Value::Null),
                false => error(404, "unknown blob"),
            },
            ("POST", ["blobs", "uploads", ""]) => {
                with(202, "location", "/v2/x/blobs/uploads/1".to_owned())
            }
            ("PUT", ["blobs", "uploads", _]) => {
                assert!(!request.raw.is_empty(), "a blob has bytes");
                self.blobs.insert(request.query["digest"].clone());
                with(201, "docker-content-digest", request.query["digest"].clone())
            }
            ("PUT", ["manifests", _]) => with(201, "docker-content-digest", "sha256:0".to_owned()),
            _ => error(404, "no such route"),
        }
    }
}
