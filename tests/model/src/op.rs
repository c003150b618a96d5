//! Steps of a sequence: calls that name things by their place, so that they keep a meaning when others are left out.

use std::net::IpAddr;

use perch_api::wire::{AddressIntent, IpKind, ReleaseStatus};
use serde_json::{Value, json};

use crate::call::{Call, Launch, Target, Wish};
use crate::choices::Choices;
use crate::model::{App, Machine, Model, ORGANIZATIONS, TAG};

/// Names of the apps of a sequence.
const APPS: [&str; 4] = ["web", "db", "job-2", "x"];
/// Networks beside the default one. Networks are never removed, so there are few.
const NETWORKS: [&str; 3] = ["", "blue", "default"];
/// More Machines than this are not made in one app.
const MACHINES_MAX: usize = 4;
/// An address that nobody has.
const NOBODYS: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfdaa, 0, 9, 0, 1, 0, 0, 9));
/// Of a hundred steps, those that are to be refused.
const REFUSED_PERCENT: usize = 15;

/// A step with what befalls the server meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) fate: Fate,
}

/// What befalls the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Nothing,
    /// It is killed before the call.
    Before(Victim),
    /// It is killed while the call is under way.
    During {
        micros: u64,
    },
    /// It is killed as soon as it has answered.
    After(Victim),
}

/// Who is killed; the server is started again in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Server,
    Proxy,
    Both,
    /// The server, by a signal that lets it end in order.
    Politely,
    /// The server, and its successor while that is starting.
    Twice {
        millis: u64,
    },
}

/// What a caller knows of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nonce {
    None,
    Right,
    Wrong,
}

/// A Machine: the app by its name's place, and which of its Machines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    app: usize,
    machine: usize,
    nonce: Nonce,
    /// Whether the Machine is looked for in another app.
    elsewhere: bool,
}

/// What is done.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    CreateApp {
        app: usize,
        org: &'static str,
        network: &'static str,
        intent: AddressIntent,
    },
    BadApp {
        name: &'static str,
        org: &'static str,
        network: &'static str,
    },
    UpdateApp {
        app: usize,
        intent: Option<AddressIntent>,
    },
    DeleteApp {
        app: usize,
    },
    AssignIp {
        app: usize,
        kind: IpKind,
        org: &'static str,
        network: &'static str,
    },
    ReleaseIp {
        app: usize,
        of: usize,
        ip: usize,
    },
    ChangeSecrets {
        app: usize,
        changes: [(&'static str, Option<&'static str>); 2],
    },
    CreateMachine {
        app: usize,
        shape: Shape,
        how: How,
    },
    UpdateMachine {
        at: At,
        shape: Shape,
        skip_launch: bool,
        current: Nonce,
    },
    Wish {
        at: At,
        wish: Wish,
    },
    SetMetadata {
        at: At,
        key: &'static str,
        value: Option<&'static str>,
    },
    AcquireLease {
        at: At,
        ttl: u64,
    },
    ReleaseLease {
        at: At,
    },
    /// A lease of one second, and its end.
    ShortLease {
        at: At,
    },
    CreateRelease {
        app: usize,
        ttl: u64,
    },
    UpdateRelease {
        app: usize,
        release: usize,
        status: ReleaseStatus,
    },
    /// A request to the app's Flycast address, from the host.
    Visit {
        app: usize,
    },
}

/// How a Machine is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    skip_launch: bool,
    cordoned: bool,
    lease_ttl: u64,
    name: &'static str,
    region: &'static str,
}

/// Which config a Machine gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    Bare,
    Awake,
    Sleeper,
    /// Its program does not exist.
    Broken,
    Large,
    /// Its image does not exist.
    NoImage,
    /// As the app's first Machine: what scaling does.
    Same,
}

/// A service on port 80 with these keys besides.
fn service(more: &Value) -> Value {
    let ports = json!([{"port": 80, "handlers": ["http"]}]);
    let mut service = json!({"protocol": "tcp", "internal_port": 8081, "ports": ports});
    if let (Some(service), Some(more)) = (service.as_object_mut(), more.as_object()) {
        service.extend(more.clone());
    }
    json!([service])
}

impl Shape {
    fn config(self, name: &str, app: Option<&App>) -> Value {
        let image = format!("registry.perch/{name}:{TAG}");
        let no = json!({"policy": "no"});
        match self {
            Self::Bare => json!({"image": image, "restart": no}),
            Self::Awake => json!({
                "env": {"A": "b"}, "image": image, "restart": no,
                "services": service(&json!({"autostop": false, "autostart": true})),
                "metadata": {"fly_process_group": "app", "role": "web"},
            }),
            Self::Sleeper => json!({
                "image": image, "restart": no, "zeta": {"unknown": [null, 1.5]},
                "services": service(&json!({"autostop": true, "autostart": true})),
                "metadata": {"fly_process_group": "sleeper"},
            }),
            Self::Broken => {
                json!({"image": image, "restart": no, "init": {"exec": ["/missing"]}})
            }
            Self::Large => json!({
                "image": image, "guest": {"cpu_kind": "performance", "cpus": 2, "memory_mb": 4096},
                "stop_config": {"timeout": "10s", "signal": "SIGTERM"},
            }),
            Self::NoImage => json!({"image": format!("registry.perch/{name}:nope")}),
            Self::Same => {
                let first = app.and_then(|app| app.machines.first());
                first.map_or_else(|| Self::Bare.config(name, None), |it| it.config.clone())
            }
        }
    }
}

impl At {
    fn target(self, model: &Model) -> (Target, Option<&Machine>) {
        let name = APPS[self.app % APPS.len()];
        let machines = model.apps.get(name).map_or(&[][..], |app| &app.machines);
        let machine = machines.get(self.machine % machines.len().max(1));
        let id = machine.and_then(|machine| machine.id.clone());
        let lease = machine.and_then(|machine| machine.lease.as_ref());
        let nonce = match self.nonce {
            Nonce::None => None,
            Nonce::Right => lease.and_then(|lease| lease.nonce.clone()),
            Nonce::Wrong => Some("0123456789abcdef".to_owned()),
        };
        let app = if self.elsewhere { APPS[(self.app + 1) % APPS.len()] } else { name };
        let id = id.unwrap_or_else(|| "00000000000000".to_owned());
        (Target { app: app.to_owned(), id, nonce }, machine)
    }
}

impl Op {
    /// The call in this state; `None` for what is no call.
    pub(crate) fn aim(&self, model: &Model) -> Option<Call> {
        let name = |app: &usize| APPS[app % APPS.len()].to_owned();
        Some(match self {
            Self::CreateApp { app, org, network, intent } => {
                let (org, network) = ((*org).to_owned(), (*network).to_owned());
                Call::CreateApp { name: name(app), org, network, intent: *intent }
            }
            Self::BadApp { name, org, network } => Call::CreateApp {
                name: (*name).to_owned(),
                org: (*org).to_owned(),
                network: (*network).to_owned(),
                intent: AddressIntent::None,
            },
            Self::UpdateApp { app, intent } => Call::UpdateApp { app: name(app), intent: *intent },
            Self::DeleteApp { app } => Call::DeleteApp { app: name(app) },
            Self::AssignIp { app, kind, org, network } => {
                let (org, network) = ((*org).to_owned(), (*network).to_owned());
                Call::AssignIp { app: name(app), kind: *kind, org, network }
            }
            Self::ReleaseIp { app, of, ip } => {
                let ips = model.apps.get(&name(of)).map_or(&[][..], |app| &app.ips);
                let found = ips.get(ip % ips.len().max(1)).and_then(|ip| ip.ip);
                Call::ReleaseIp { app: name(app), ip: found.unwrap_or(NOBODYS) }
            }
            Self::ChangeSecrets { app, changes } => {
                let change = |(name, value): &(&str, Option<&str>)| {
                    ((*name).to_owned(), value.map(str::to_owned))
                };
                Call::ChangeSecrets { app: name(app), values: changes.iter().map(change).collect() }
            }
            Self::CreateRelease { app, ttl } => Call::CreateRelease {
                app: name(app),
                image: format!("registry.perch/{}:{TAG}", name(app)),
                definition: json!({"app": name(app), "n": model.given.len(), "null": null}),
                ttl: *ttl,
            },
            Self::UpdateRelease { app, release, status } => {
                let all = model.apps.get(&name(app)).map_or(&[][..], |app| &app.releases);
                let found = all.get(release % all.len().max(1)).and_then(|it| it.id.clone());
                let id = found.unwrap_or_else(|| "01NOBODYS".to_owned());
                Call::UpdateRelease { id, status: *status }
            }
            Self::Visit { .. } => return None,
            _ => return self.aim_at_machine(model),
        })
    }

    fn aim_at_machine(&self, model: &Model) -> Option<Call> {
        Some(match self {
            Self::CreateMachine { app, shape, how } => {
                let name = APPS[app % APPS.len()];
                let config = shape.config(name, model.apps.get(name));
                Call::CreateMachine { app: name.to_owned(), input: how.launch(config) }
            }
            Self::UpdateMachine { at, shape, skip_launch, current } => {
                let (target, machine) = at.target(model);
                let config = shape.config(&target.app, model.apps.get(&target.app));
                let input = How { skip_launch: *skip_launch, ..How::PLAIN }.launch(config);
                let current = match current {
                    Nonce::None => String::new(),
                    Nonce::Right => machine.and_then(|it| it.version.clone()).unwrap_or_default(),
                    Nonce::Wrong => "01ANOTHER".to_owned(),
                };
                Call::UpdateMachine { target, input, current }
            }
            Self::Wish { at, wish } => Call::Wish { target: at.target(model).0, wish: *wish },
            Self::SetMetadata { at, key, value } => Call::SetMetadata {
                target: at.target(model).0,
                key: (*key).to_owned(),
                value: value.map(str::to_owned),
            },
            Self::AcquireLease { at, ttl } => Call::AcquireLease {
                target: at.target(model).0,
                ttl: *ttl,
                description: format!("for {ttl}"),
            },
            Self::ShortLease { at } => Call::AcquireLease {
                target: at.target(model).0,
                ttl: 1,
                description: "short".to_owned(),
            },
            Self::ReleaseLease { at } => Call::ReleaseLease { target: at.target(model).0 },
            _ => return None,
        })
    }

    /// The app of a visit.
    pub(crate) fn visited(&self) -> Option<&'static str> {
        match self {
            Self::Visit { app } => Some(APPS[app % APPS.len()]),
            _ => None,
        }
    }
}

impl How {
    const PLAIN: Self =
        Self { skip_launch: true, cordoned: false, lease_ttl: 0, name: "", region: "" };

    fn launch(self, config: Value) -> Launch {
        Launch {
            config,
            skip_launch: self.skip_launch,
            cordoned: self.cordoned,
            lease_ttl: self.lease_ttl,
            name: self.name.to_owned(),
            region: self.region.to_owned(),
        }
    }
}

/// Draws the next steps: one, or several where a command of `fly` makes several calls.
pub(crate) fn draw(choices: &mut Choices, model: &Model) -> Vec<Step> {
    let ops = match choices.below(100) {
        0..5 => scale(choices, model),
        5..13 => visit(choices, model).into_iter().collect(),
        _ => vec![likely(choices, model)],
    };
    ops.into_iter().map(|op| Step { op, fate: fate(choices) }).collect()
}

/// The steps that destroy what is left.
pub(crate) fn end(choices: &mut Choices, model: &Model) -> Vec<Step> {
    let steps = end_quietly(model).into_iter();
    steps.map(|step| Step { fate: fate(choices), ..step }).collect()
}

/// The same while nothing befalls the server.
pub(crate) fn end_quietly(model: &Model) -> Vec<Step> {
    let left = (0..APPS.len()).filter(|app| model.apps.contains_key(APPS[*app]));
    left.map(|app| Step::quiet(Op::DeleteApp { app })).collect()
}

/// One of everything that stays for ever, such as a network: then only a leak makes a difference.
pub(crate) fn warm_up() -> Vec<Step> {
    let (intent, how) = (AddressIntent::None, How { skip_launch: false, ..How::PLAIN });
    let mut steps = Vec::new();
    for (app, org) in [(0, ORGANIZATIONS[0]), (1, ORGANIZATIONS[1])] {
        steps.push(Op::CreateApp { app, org, network: "blue", intent });
        steps.push(Op::AssignIp { app, kind: IpKind::PrivateV6, org: "", network: "" });
        steps.push(Op::CreateMachine { app, shape: Shape::Awake, how });
        steps.push(Op::DeleteApp { app });
    }
    steps.into_iter().map(Step::quiet).collect()
}

impl Step {
    fn quiet(op: Op) -> Self {
        Self { op, fate: Fate::Nothing }
    }
}

fn fate(choices: &mut Choices) -> Fate {
    let again = Victim::Twice { millis: choices.below(100) as u64 };
    let all = [Victim::Server, Victim::Both, Victim::Proxy, Victim::Politely, again];
    let victim = choices.of(&all);
    match choices.below(100) {
        0..4 => Fate::Before(victim),
        4..8 => Fate::During { micros: choices.below(4_000) as u64 },
        8..11 => Fate::After(victim),
        _ => Fate::Nothing,
    }
}

/// A step that is granted, but for a share.
fn likely(choices: &mut Choices, model: &Model) -> Op {
    let refused = choices.chance(REFUSED_PERCENT);
    let mut op = any(choices, model, refused);
    for _ in 0..30 {
        let is_refused = op.aim(model).is_some_and(|call| model.after(&call).is_err());
        if is_refused == refused {
            break;
        }
        op = any(choices, model, refused);
    }
    op
}

fn any(choices: &mut Choices, model: &Model, strange: bool) -> Op {
    let there: Vec<usize> =
        (0..APPS.len()).filter(|app| model.apps.contains_key(APPS[*app])).collect();
    let new = choices.below(APPS.len());
    if there.is_empty() || choices.chance(10) {
        return create_app(choices, new, strange);
    }
    let app = if choices.chance(95) { choices.of(&there) } else { new };
    let machines = model.apps.get(APPS[app]).map_or(0, |app| app.machines.len());
    match choices.below(100) {
        0..3 => Op::UpdateApp { app, intent: intent(choices) },
        3..6 => Op::DeleteApp { app },
        6..16 => assign(choices, app),
        16..22 => {
            let of = if choices.chance(80) { app } else { choices.of(&there) };
            Op::ReleaseIp { app, of, ip: choices.below(4) }
        }
        22..34 => {
            Op::ChangeSecrets { app, changes: [secret(choices, strange), secret(choices, false)] }
        }
        34..40 => Op::CreateRelease { app, ttl: choices.of(&[3_600, 0x7fff_ffff]) },
        40..47 => {
            let all = [
                ReleaseStatus::Pending,
                ReleaseStatus::Running,
                ReleaseStatus::Complete,
                ReleaseStatus::Failed,
                ReleaseStatus::Interrupted,
            ];
            Op::UpdateRelease { app, release: choices.below(3), status: choices.of(&all) }
        }
        _ if machines == 0 || (machines < MACHINES_MAX && choices.chance(20)) => {
            create_machine(choices, app, strange)
        }
        _ => to_machine(choices, app, strange),
    }
}

fn intent(choices: &mut Choices) -> Option<AddressIntent> {
    use AddressIntent as I;
    choices.of(&[None, Some(I::Public), Some(I::Private), Some(I::None)])
}

fn create_app(choices: &mut Choices, app: usize, strange: bool) -> Op {
    if strange && choices.chance(60) {
        return Op::BadApp {
            name: choices.of(&["web", "-a", "UP", "a.b", "", "x"]),
            org: choices.of(&["", "nobody"]),
            network: choices.of(&["", "9x", "a_b"]),
        };
    }
    let org = choices.of(&["", ORGANIZATIONS[0], ORGANIZATIONS[1]]);
    let intent = intent(choices).unwrap_or_default();
    Op::CreateApp { app, org, network: choices.of(&NETWORKS), intent }
}

fn assign(choices: &mut Choices, app: usize) -> Op {
    let all = [IpKind::PrivateV6, IpKind::PrivateV6, IpKind::V6, IpKind::SharedV4, IpKind::V4];
    let kind = choices.of(&all);
    let plain = choices.chance(60);
    let org = if plain { "" } else { choices.of(&["", "personal", "acme", "nobody"]) };
    let network = if plain { "" } else { choices.of(&["", "blue", "default", "1st"]) };
    Op::AssignIp { app, kind, org, network }
}

fn secret(choices: &mut Choices, strange: bool) -> (&'static str, Option<&'static str>) {
    let names = if strange { ["", "A B", "FLY_APP_NAME"] } else { ["KEY", "KEY", "db.url"] };
    (choices.of(&names), choices.of(&[Some("hidden-one"), Some("hidden-two"), None]))
}

fn create_machine(choices: &mut Choices, app: usize, strange: bool) -> Op {
    let region = if strange { choices.of(&["", "fra"]) } else { choices.of(&["", "lcl"]) };
    let how = How {
        skip_launch: choices.chance(60),
        cordoned: choices.chance(15),
        lease_ttl: choices.of(&[0, 0, 0, 600, 100_000]),
        name: choices.of(&["", "", "anna"]),
        region,
    };
    Op::CreateMachine { app, shape: shape(choices, strange), how }
}

fn shape(choices: &mut Choices, strange: bool) -> Shape {
    use Shape as S;
    if strange && choices.chance(50) {
        return S::NoImage;
    }
    choices.of(&[S::Bare, S::Awake, S::Awake, S::Awake, S::Sleeper, S::Broken, S::Large])
}

fn to_machine(choices: &mut Choices, app: usize, strange: bool) -> Op {
    let nonce =
        if strange { choices.of(&[Nonce::None, Nonce::Right, Nonce::Wrong]) } else { Nonce::Right };
    let machine = choices.below(MACHINES_MAX);
    let at = At { app, machine, nonce, elsewhere: strange && choices.chance(20) };
    match choices.below(100) {
        0..18 => Op::UpdateMachine {
            at,
            shape: shape(choices, strange),
            skip_launch: choices.chance(60),
            current: choices.of(&[Nonce::None, Nonce::Right, Nonce::Wrong]),
        },
        18..30 => Op::Wish { at, wish: Wish::Start },
        30..42 => Op::Wish { at, wish: Wish::Stop },
        42..46 => Op::Wish { at, wish: Wish::Signal },
        46..54 => Op::Wish { at, wish: choices.of(&[Wish::Cordon, Wish::Uncordon]) },
        54..62 => Op::Wish { at, wish: choices.of(&[Wish::Delete, Wish::Kill]) },
        62..74 => Op::SetMetadata {
            at,
            key: choices.of(&["role", "fly_process_group", "k/ü"]),
            value: choices.of(&[None, Some("v"), Some("")]),
        },
        74..86 => Op::AcquireLease { at, ttl: choices.of(&[0, 600, 3_600, 86_400, 90_000]) },
        86..88 if choices.chance(25) => Op::ShortLease { at },
        _ => Op::ReleaseLease { at },
    }
}

/// A request to an app that answers, or what an app lacks that could.
fn visit(choices: &mut Choices, model: &Model) -> Option<Op> {
    let there = |app: &usize| model.apps.contains_key(APPS[*app]);
    let apps: Vec<usize> = (0..APPS.len()).filter(there).collect();
    let answers = |app: &usize| model.answering_address(APPS[*app]).is_some();
    let answering: Vec<usize> = apps.iter().copied().filter(answers).collect();
    if !answering.is_empty() {
        return Some(Op::Visit { app: choices.of(&answering) });
    }
    let serves = |app: &usize| model.apps[APPS[*app]].machines.iter().any(Machine::serves);
    let serving: Vec<usize> = apps.iter().copied().filter(serves).collect();
    if serving.is_empty() {
        let how = How { skip_launch: false, ..How::PLAIN };
        let app = apps.first().copied()?;
        return Some(Op::CreateMachine { app, shape: Shape::Awake, how });
    }
    let (app, org, network) = (choices.of(&serving), ORGANIZATIONS[0], "default");
    Some(Op::AssignIp { app, kind: IpKind::PrivateV6, org, network })
}

/// What `fly scale count` does: copies of the first Machine, or the end of the last ones under their leases.
fn scale(choices: &mut Choices, model: &Model) -> Vec<Op> {
    let fit = |app: &usize| model.apps.get(APPS[*app]).is_some_and(|app| !app.machines.is_empty());
    let there: Vec<usize> = (0..APPS.len()).filter(fit).collect();
    if there.is_empty() {
        return vec![likely(choices, model)];
    }
    let app = choices.of(&there);
    let count = model.apps[APPS[app]].machines.len();
    let wanted = choices.below(MACHINES_MAX + 1);
    let create = (count..wanted).map(|_| {
        let how = How { lease_ttl: 600, skip_launch: choices.chance(50), ..How::PLAIN };
        Op::CreateMachine { app, shape: Shape::Same, how }
    });
    let mut ops: Vec<Op> = create.collect();
    for machine in (wanted..count).rev() {
        let at = At { app, machine, nonce: Nonce::Right, elsewhere: false };
        ops.extend([Op::AcquireLease { at, ttl: 600 }, Op::Wish { at, wish: Wish::Kill }]);
    }
    ops
}
