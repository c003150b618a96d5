//! What one world looks like before anything happens: the apps, their Machines, and how bad things are.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

use perch_core::aim::{Among, Area, Target};
use perch_core::balancer::MachineView;
use perch_core::checks::{CheckKind, CheckSpec, Times};
use perch_core::ids::{MachineId, Region};
use perch_core::lifecycle::{MachineState, Policy, RestartPolicy, SleepBy};
use perch_core::service::{
    Autostart, Autostop, Concurrency, PortSpec, PublishedPort, ServiceSpec, Transport, Unit,
};

use crate::choices::Choices;

/// The ports that callers may use; the same number twice, of which each is a service of its own.
pub(crate) const PORTS: [PublishedPort; 2] = [PublishedPort::tcp(80), PublishedPort::udp(80)];
/// How long a caller waits, as the shell's own timer has it.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// DESIGN 4: starts in flight per host.
const STARTS_MAX: usize = 8;

/// The constants of a world.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) apps: Vec<AppPlan>,
    /// Starts in flight at once, over all apps.
    pub(crate) starts_max: usize,
    /// In percent.
    pub(crate) launch_fails: usize,
    /// In percent, of signals that a program ignores.
    pub(crate) deaf: usize,
    /// Views are sent as of the end of an event, not as of each announcement.
    pub(crate) coalesced: bool,
    /// The longest delay of a message between server and proxy.
    pub(crate) link_ms_max: u64,
    /// The link breaks while server and proxy live.
    pub(crate) breaks: bool,
    pub(crate) chaos: Duration,
}

/// The constants of one app.
#[derive(Debug)]
pub(crate) struct AppPlan {
    /// Its Machines among those of the world.
    pub(crate) machines: Range<usize>,
    regions: Vec<Region>,
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) policy: Policy,
    /// In percent, of callers who want certain Machines.
    aimed: usize,
    /// Its check fails for good after healing; all the others pass.
    pub(crate) sick: Option<usize>,
}

impl AppPlan {
    /// `first` is the first of its Machines.
    fn draw(choices: &mut Choices, first: usize) -> Self {
        let count = 1 + choices.below(5);
        let two_regions = choices.chance(40);
        let regions = (0..count).map(|_| region(two_regions && choices.chance(50))).collect();
        let services = 1 + usize::from(choices.chance(25));
        let service = service(choices);
        let sleep = match service.autostop {
            Autostop::Suspend => SleepBy::Suspending,
            Autostop::Off | Autostop::Stop => SleepBy::Stopping,
        };
        Self {
            machines: first..first + count,
            regions,
            services: PORTS[..services].iter().map(|p| on_port(&service, *p)).collect(),
            policy: Policy { sleep, ..policy(choices) },
            aimed: 0,
            sick: None,
        }
    }

    /// What some apps have and others have not.
    fn draw_extras(&mut self, extras: &mut Choices) {
        self.aimed = [0, 10, 50, 90][extras.below(4)];
        if extras.chance(50) {
            // The other service, if there is one, is not checked.
            self.services[0].checks = [check(extras)].into();
            let sick = self.machines.start + extras.below(self.machines.len());
            self.sick = (1 < self.machines.len() && extras.chance(50)).then_some(sick);
        }
    }

    /// Whether Machines have a check, which is of their first service.
    pub(crate) fn is_checked(&self) -> bool {
        !self.services[0].checks.is_empty()
    }

    /// The Machines that a caller wants, if it wants certain ones.
    pub(crate) fn target(&self, extras: &mut Choices) -> Option<Target> {
        if !extras.chance(self.aimed) {
            return None;
        }
        let one = id(self.machines.start + extras.below(self.machines.len()));
        Some(match extras.below(8) {
            0 => Target { among: Among::All, except: Some(one) },
            1 | 2 => Target { among: Among::Area(Area::Region(region(true))), except: None },
            3 => Target { among: Among::Area(Area::Region(region(false))), except: Some(one) },
            _ => Target { among: Among::Machine(one), except: None },
        })
    }

    pub(crate) fn soft(&self) -> u32 {
        self.services[0].concurrency.soft_limit
    }

    pub(crate) fn hard(&self) -> u32 {
        self.services[0].concurrency.hard_limit.unwrap_or(u32::MAX)
    }

    pub(crate) fn after(&self) -> Duration {
        self.services[0].auto_stop_after
    }

    pub(crate) fn floor(&self) -> usize {
        self.services[0].min_machines_running as usize
    }
}

impl Plan {
    /// `extras` and `breaks` were added later, and leave older worlds' other choices as they were.
    pub(crate) fn draw(choices: &mut Choices, extras: &mut Choices, breaks: &mut Choices) -> Self {
        let mut apps: Vec<AppPlan> = Vec::new();
        for _ in 0..[1, 1, 2, 4][choices.below(4)] {
            let first = apps.last().map_or(0, |app| app.machines.end);
            apps.push(AppPlan::draw(choices, first));
        }
        apps.iter_mut().for_each(|app| app.draw_extras(extras));
        Self {
            apps,
            starts_max: [1, 2, STARTS_MAX, STARTS_MAX][choices.below(4)],
            launch_fails: [0, 0, 10, 50][choices.below(4)],
            deaf: [0, 0, 30][choices.below(3)],
            coalesced: choices.chance(50),
            link_ms_max: [8, 8, 300][choices.below(3)],
            breaks: breaks.chance(50),
            chaos: choices.millis(20_000, 65_000),
        }
    }

    /// What the server says of a Machine that was just made.
    pub(crate) fn view(&self, index: usize) -> MachineView {
        MachineView {
            id: id(index),
            run: 0,
            state: MachineState::Created,
            region: self.region(index),
            link_ip: Ipv4Addr::new(172, 16, 0, 2 * index as u8 + 3),
            config_version: 1,
            cordoned: false,
            leased: false,
            primary: self.region(index) == Region::LOCAL,
            services: self.app_of(index).services.as_slice().into(),
        }
    }

    /// Number of Machines, over all apps.
    pub(crate) fn machines(&self) -> usize {
        self.apps.last().map_or(0, |app| app.machines.end)
    }

    /// The number of the app that a Machine belongs to.
    pub(crate) fn owner(&self, machine: usize) -> usize {
        self.apps.partition_point(|app| app.machines.end <= machine)
    }

    pub(crate) fn app_of(&self, machine: usize) -> &AppPlan {
        &self.apps[self.owner(machine)]
    }

    pub(crate) fn region(&self, machine: usize) -> Region {
        let app = self.app_of(machine);
        app.regions[machine - app.machines.start]
    }
}

/// The identity of the Machine with this index, and back.
pub(crate) fn id(index: usize) -> MachineId {
    MachineId::from_low_bits(index as u64)
}

/// The index of a Machine.
pub(crate) fn index(id: MachineId) -> usize {
    id.as_u64() as usize
}

fn region(far: bool) -> Region {
    let name = if far { "ams" } else { Region::LOCAL.as_str() }.to_owned();
    name.parse().expect("three letters")
}

fn service(choices: &mut Choices) -> ServiceSpec {
    let soft_limit = 1 + choices.below(4) as u32;
    let hard = soft_limit + choices.below(3) as u32;
    ServiceSpec {
        transport: Transport::Tcp,
        internal_port: 8080,
        ports: Vec::new(),
        autostop: [Autostop::Stop, Autostop::Suspend][choices.below(2)],
        autostart: Autostart::On,
        min_machines_running: [0, 0, 1, 2][choices.below(4)],
        concurrency: Concurrency {
            unit: Unit::Requests,
            soft_limit,
            hard_limit: choices.chance(60).then_some(hard),
        },
        auto_stop_after: choices.millis(500, 15_000),
        start_timeout: START_TIMEOUT,
        checks: std::sync::Arc::default(),
    }
}

fn check(extras: &mut Choices) -> CheckSpec {
    let times = Times {
        interval: extras.millis(500, 5_000),
        timeout: extras.millis(100, 2_000),
        grace: [Duration::ZERO, extras.millis(100, 3_000)][extras.below(2)],
    };
    CheckSpec { name: "alive".to_owned(), port: 8080, kind: CheckKind::Tcp, times }
}

fn on_port(service: &ServiceSpec, published: PublishedPort) -> ServiceSpec {
    let (transport, port) = (published.transport(), published.number());
    let port_spec = PortSpec { start: port, end: port, handlers: Vec::new(), force_https: false };
    let (internal_port, ports) = (8000 + port, vec![port_spec]);
    ServiceSpec { transport, internal_port, ports, ..service.clone() }
}

fn policy(choices: &mut Choices) -> Policy {
    let restart = [
        RestartPolicy::No,
        RestartPolicy::OnFailure { retries_max: 10 },
        RestartPolicy::OnFailure { retries_max: 1 },
    ];
    Policy {
        kill_signal: 2,
        kill_timeout: choices.millis(100, 5_000),
        drain_timeout: choices.millis(1_000, 10_000),
        restart: restart[choices.below(3)],
        sleep: SleepBy::Stopping,
    }
}
