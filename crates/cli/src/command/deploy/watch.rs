//! Watching a Machine come up: its state, whether it crashes, and where it listens (DE-34, DE-40..45).
//!
//! A Machine that listens on all its ports is up, and the watch ends at once. One that does not is
//! watched for the whole time: it may be slow, crash, or listen where the proxy does not connect.

use super::super::Context;
use super::Job;
use super::progress::{Line, Mark};
use crate::failure::{Failure, Outcome};
use crate::flytoml::Config;
use crate::render;
use perch_api::wire::{ExitEvent, LogQuery, Machine, MachineState, Process, WaitQuery, WaitState};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::Instant;

/// One wait call; between two we look whether the Machine crashes.
const WAIT_STEP: Duration = Duration::from_secs(2);
/// flyctl's window after a start (DE-34): a program that cannot run has shown it by then.
const SMOKE_WINDOW: Duration = Duration::from_secs(10);
/// Without a port to wait for; a program that cannot even begin ends within a second.
const SMOKE_WINDOW_WITHOUT_SERVICES: Duration = Duration::from_secs(3);
/// How long an app may take to listen (section 6.2), if no check grants it more.
const LISTEN_WINDOW: Duration = Duration::from_secs(15);
/// An app that listens on loopback on the right port has made up its mind.
const LISTEN_WINDOW_LOOPBACK: Duration = Duration::from_secs(2);
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(2);
/// Log lines shown with a crash.
const LOG_LINES: usize = 20;

/// What is looked at after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Crashes,
    CrashesAndListening,
}

/// One Machine being watched.
pub(super) struct Watch<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) job: &'a Job,
    pub(super) line: Line,
    pub(super) id: &'a str,
    /// `instance_id` after the change.
    pub(super) version: &'a str,
    pub(super) group: &'a str,
    /// Events up to this time are of earlier versions; milliseconds since 1970.
    pub(super) seen_ms: i64,
}

impl Watch<'_> {
    /// Waits for the new version to be started.
    pub(super) async fn wait_started(&self) -> Outcome {
        let Self { context, id, group, .. } = self;
        let wanted = format!("Waiting for {id} [{group}] to have state: started");
        self.line.print(context, Mark::Running, &wanted);
        let deadline = Instant::now() + self.job.options.wait_timeout;
        let mut query = WaitQuery::for_state(WaitState::Started, WAIT_STEP);
        query.version = Some(self.version.to_owned()).filter(|version| !version.is_empty());
        while Instant::now() < deadline {
            match context.client.wait_machine(&self.job.app.name, id, &query).await {
                Ok(()) => {
                    let text = format!("Machine {id} [{group}] has state: started");
                    self.line.print(context, Mark::None, &text);
                    return Ok(());
                }
                Err(error) if error.status() == Some(408) => self.fail_if_crashing().await?,
                Err(error) => return Err(error.into()),
            }
        }
        let wait = self.job.options.wait_text();
        Err(Failure::new("timeout reached waiting for machine's state to change").hint(format!(
            "The machine {id} took more than {wait} to reach \"started\". Raise --wait-timeout if it \
             needs longer"
        )))
    }

    /// Watches until the Machine listens on all its ports or the time is over.
    pub(super) async fn check(&self, check: Check) -> Outcome {
        let Self { context, id, group, .. } = self;
        let ports = expected_ports(&self.job.config, group);
        let text = format!("Checking that {id} [{group}] is up and running");
        self.line.print(context, Mark::Running, &text);
        let begun = Instant::now();
        let mut window = window(&self.job.config, &ports, check);
        let mut pause = POLL_FIRST;
        loop {
            let processes = context.client.list_processes(&self.job.app.name, id).await;
            let open = processes.as_deref().map(sockets).unwrap_or_default();
            let missing = uncovered(&ports, &open);
            if !ports.is_empty() && missing.is_empty() {
                return Ok(());
            }
            self.fail_if_crashing().await?;
            if only_loopback(&missing, &open) {
                window = window.min(LISTEN_WINDOW_LOOPBACK);
            }
            if window < begun.elapsed() {
                // A server that cannot list processes leaves us without a word to say (DE-43).
                if let (Check::CrashesAndListening, Ok(processes)) = (check, processes) {
                    warn(context, &missing, &processes);
                }
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(POLL_MAX);
        }
    }

    pub(super) async fn fail_if_crashing(&self) -> Outcome {
        let machine = self.context.client.get_machine(&self.job.app.name, self.id).await?;
        let has_services = !self.job.config.services_of(self.group).is_empty();
        let Some(reason) = verdict(&machine, self.seen_ms, has_services) else { return Ok(()) };
        let message = format!("smoke checks for {} failed: {reason}", self.id);
        Err(Failure::new(message).hint(self.last_lines().await))
    }

    /// What the Machine said last, and how to see more.
    async fn last_lines(&self) -> String {
        let (app, id) = (&self.job.app.name, self.id);
        let query = LogQuery { instance: Some(id.to_owned()), ..LogQuery::default() };
        let page = self.context.client.read_logs(app, &query).await.unwrap_or_default();
        let from = page.data.len().saturating_sub(LOG_LINES);
        let lines =
            page.data.iter().skip(from).map(|entry| format!("  {}", entry.attributes.message));
        let lines: Vec<_> = lines.collect();
        let more = format!(
            "See more with `fly logs -a {app} -m {id}` and `fly machine status {id} -a {app}`"
        );
        match lines.is_empty() {
            true => format!("It printed nothing. {more}"),
            false => format!("Its last lines:\n{}\n{more}", lines.join("\n")),
        }
    }
}

/// Why a Machine counts as crashing, from what happened after `seen_ms` (DE-34; the cases without a
/// restart are ours).
fn verdict(machine: &Machine, seen_ms: i64, has_services: bool) -> Option<String> {
    let newer = machine.events.iter().filter(|event| seen_ms < event.timestamp);
    let exit = newer.filter(|event| event.kind == "exit").find_map(|event| {
        let request = event.request.as_ref()?;
        let inner = || request.monitor_event.as_ref()?.exit_event.as_ref();
        Some((request.exit_event.as_ref().or_else(inner)?, request.restart_count.unwrap_or(0)))
    });
    if machine.state == MachineState::Failed {
        return Some(exit.map_or_else(|| start_error(machine), |(exit, _)| ended(exit)));
    }
    let (exit, restarts) = exit.filter(|(exit, _)| !exit.requested_stop)?;
    if exit.restarting && exit.exit_code != 0 && restarts > 1 {
        return Some(format!("the app appears to be crashing ({})", ended(exit)));
    }
    let over = machine.state == MachineState::Stopped && !exit.restarting;
    (over && (exit.exit_code != 0 || has_services)).then(|| ended(exit))
}

fn ended(exit: &ExitEvent) -> String {
    match exit.oom_killed {
        true => "the kernel killed its program for want of memory".to_owned(),
        false => format!("its program ended with exit code {}", exit.exit_code),
    }
}

/// The platform's own words about a start that failed.
fn start_error(machine: &Machine) -> String {
    let details = machine.events.iter().filter_map(|event| event.request.as_ref());
    let word = |key: &str| {
        details.clone().find_map(|request| request.details.get(key)?.as_str().map(str::to_owned))
    };
    let reason = ["error", "reason", "message"].iter().find_map(|key| word(key));
    reason.unwrap_or_else(|| "the machine could not be started".to_owned())
}

fn window(config: &Config, ports: &BTreeSet<u16>, check: Check) -> Duration {
    if ports.is_empty() {
        return SMOKE_WINDOW_WITHOUT_SERVICES;
    }
    if check == Check::Crashes {
        return SMOKE_WINDOW;
    }
    let services = config.http_service.iter().chain(&config.services);
    let checks = services.flat_map(|service| service.tcp_checks.iter().chain(&service.http_checks));
    let grace = checks.filter_map(|check| check.grace_period?.length()).max();
    grace.unwrap_or_default().max(LISTEN_WINDOW)
}

/// The internal ports of a group's TCP services (DE-41).
fn expected_ports(config: &Config, group: &str) -> BTreeSet<u16> {
    let services = config.services_of(group).into_iter();
    let tcp = services.filter(|service| service.protocol.as_deref() != Some("udp"));
    tcp.filter_map(|service| u16::try_from(service.internal_port).ok())
        .filter(|port| *port > 0)
        .collect()
}

fn sockets(processes: &[Process]) -> Vec<SocketAddr> {
    let all = processes.iter().flat_map(|process| &process.listen_sockets);
    let tcp = all.filter(|socket| socket.proto.starts_with("tcp"));
    tcp.filter_map(|socket| socket.address.parse().ok()).collect()
}

/// Ports that the proxy cannot reach: it connects by IPv4 over the Machine's own link, so neither
/// loopback nor a 6PN address will do (DE-42, DE-45).
fn uncovered(ports: &BTreeSet<u16>, open: &[SocketAddr]) -> Vec<u16> {
    let reachable = |socket: &SocketAddr| match socket.ip() {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    let covers = |port: u16| open.iter().any(|socket| socket.port() == port && reachable(socket));
    ports.iter().copied().filter(|port| !covers(*port)).collect()
}

fn only_loopback(missing: &[u16], open: &[SocketAddr]) -> bool {
    !missing.is_empty()
        && missing.iter().all(|port| open.iter().any(|socket| socket.port() == *port))
}

fn warn(context: &Context<'_>, missing: &[u16], processes: &[Process]) {
    if missing.is_empty() {
        return;
    }
    let console = context.console;
    console.note(
        "WARNING The app is not listening on the expected address and will not be reachable by \
         fly-proxy.",
    );
    console.note("You can fix this by configuring your app to listen on the following addresses:");
    missing.iter().for_each(|port| console.note(format!("  - 0.0.0.0:{port}")));
    let rows: Vec<_> = processes.iter().filter_map(listener_row).collect();
    match rows.is_empty() {
        true => console.note("No process inside the machine listens on a TCP port."),
        false => {
            console.note("Found these processes inside the machine with open listening sockets:");
            console.note(render::simple_table(&["Process", "Addresses"], &rows));
        }
    }
    console.note("");
}

fn listener_row(process: &Process) -> Option<Vec<String>> {
    let tcp = process.listen_sockets.iter().filter(|socket| socket.proto.starts_with("tcp"));
    let addresses: Vec<_> = tcp.map(|socket| socket.address.clone()).collect();
    (!addresses.is_empty()).then(|| vec![process.command.clone(), addresses.join(", ")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn machine(state: &str, exit: serde_json::Value, restarts: u32) -> Machine {
        let event = json!({"type": "exit", "status": "stopped", "source": "flyd", "timestamp": 10,
            "request": {"exit_event": exit, "restart_count": restarts}});
        let machine = json!({"id": "1", "state": state, "private_ip": "fdaa::1",
            "config": {"image": "x"}, "events": [event]});
        serde_json::from_value(machine).expect("it is a Machine")
    }

    #[test]
    fn a_program_that_fails_again_and_again_is_crashing() {
        let exit = json!({"exit_code": 1, "restarting": true});
        assert_eq!(verdict(&machine("starting", exit.clone(), 1), 0, true), None);
        let crash = verdict(&machine("starting", exit.clone(), 2), 0, true);
        assert!(crash.is_some_and(|text| text.contains("crashing")));
        assert_eq!(verdict(&machine("starting", exit, 2), 10, true), None, "an older version's");
    }

    #[test]
    fn a_program_that_just_ends_fails_unless_it_had_nothing_to_serve() {
        let fine = json!({"exit_code": 0});
        assert_eq!(verdict(&machine("stopped", fine.clone(), 0), 0, false), None);
        assert!(verdict(&machine("stopped", fine, 0), 0, true).is_some());
        let asked = json!({"exit_code": 130, "requested_stop": true});
        assert_eq!(verdict(&machine("stopped", asked, 0), 0, true), None);
    }

    #[test]
    fn only_addresses_that_the_proxy_can_reach_count_as_listening() {
        let ports = BTreeSet::from([80]);
        let missing = |address: &str| uncovered(&ports, &[address.parse().expect("an address")]);
        assert!(missing("0.0.0.0:80").is_empty());
        assert!(missing("[::]:80").is_empty());
        assert!(missing("172.16.0.3:80").is_empty());
        for address in ["127.0.0.1:80", "[::1]:80", "[fdaa::3]:80", "0.0.0.0:81"] {
            assert_eq!(missing(address), [80], "{address}");
        }
    }
}
