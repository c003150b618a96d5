//! Records of the ledger in words.

use perch_api::wire::{LedgerEvent, Machine, MachineState, Trigger};
use serde::Serialize;

use super::newest;

/// Why one Machine is awake or asleep.
#[derive(Debug, Serialize)]
pub(super) struct MachineWhy {
    app: String,
    machine: String,
    state: String,
    /// What keeps it awake as far as it is written down, or how it fell asleep.
    reasons: Vec<String>,
    /// What put it to sleep last.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_sleep: Option<LedgerEvent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_wake: Option<LedgerEvent>,
    /// The first caller who was let in after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_caller: Option<LedgerEvent>,
    /// The last sleep that was due and did not happen, since it woke.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_veto: Option<LedgerEvent>,
}

impl MachineWhy {
    pub(super) fn of(app: &str, machine: &Machine, events: &[LedgerEvent]) -> Self {
        let id = machine.id.as_str();
        let is = |kinds: &'static [&'static str]| {
            move |event: &LedgerEvent| kinds.contains(&event.kind.as_str())
        };
        let wake = newest(events, id, is(&["wake"]));
        let since = wake.map_or(0, |wake| wake.id);
        let awake = matches!(machine.state, MachineState::Started);
        let sleep = newest(events, id, is(&["stop", "suspend", "exit"]));
        // Its first caller belongs to it who was let in since it fell asleep before: what the proxy tells is older than
        // what the server makes of it.
        let before = newest(events, id, |it| is(&["stop", "suspend", "exit"])(it) && it.id < since);
        let before = before.map_or(0, |sleep| sleep.id);
        let caller = wake.and_then(|wake| {
            newest(events, id, |it| it.first && it.run == wake.run && before < it.id)
        });
        let veto = newest(events, id, |it| it.kind == "veto" && since < it.id);
        Self {
            app: app.to_owned(),
            machine: machine.id.clone(),
            state: machine.state.to_string(),
            reasons: if awake { kept_awake(machine) } else { Vec::new() },
            last_sleep: sleep.filter(|_| !awake).cloned(),
            last_wake: wake.cloned(),
            first_caller: caller.cloned(),
            last_veto: veto.filter(|_| awake).cloned(),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!("{} {} is {}", self.app, self.machine, self.state)];
        if let Some(sleep) = &self.last_sleep {
            lines[0] += &format!(" since {}{}", sleep.timestamp, because(sleep));
        }
        lines.extend(self.reasons.iter().map(|reason| format!("  kept awake: {reason}")));
        if let Some(veto) = &self.last_veto {
            lines.push(format!("  a sleep was due {}: {}", veto.timestamp, veto.reason));
        }
        if let Some(wake) = &self.last_wake {
            let who = self.first_caller.as_ref().and_then(|it| it.trigger.as_ref());
            let who = who.or(wake.trigger.as_ref()).map(by).unwrap_or_default();
            let from =
                if wake.from.is_empty() { String::new() } else { format!(" from {}", wake.from) };
            lines.push(format!("  last woken {}{from}{who}{}", wake.timestamp, took(wake)));
        }
        if let Some(caller) = &self.first_caller {
            lines.push(format!("  its first caller waited{}", took(caller).replacen(" in", "", 1)));
        }
        lines.join("\n")
    }
}

fn kept_awake(machine: &Machine) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(busy) = &machine.perch_busy {
        let why = if busy.reason.is_empty() { "no reason given" } else { &busy.reason };
        reasons.push(format!("it says that it is busy until {}: {why}", busy.until));
    }
    let view = machine.config.view();
    let services = &view.services;
    if services.is_empty() {
        reasons.push("it has no services, so nothing puts it to sleep".to_owned());
    } else if services.iter().any(|it| it.autostop == perch_api::wire::Autostop::Off) {
        reasons.push("auto_stop_machines is off on one of its services".to_owned());
    }
    let floor = services.iter().filter_map(|it| it.min_machines_running).max().unwrap_or(0);
    if 0 < floor {
        reasons.push(format!("min_machines_running = {floor}"));
    }
    if machine.cordoned {
        reasons.push("it is cordoned".to_owned());
    }
    reasons
}

/// One record in one line.
pub(super) fn line(event: &LedgerEvent) -> String {
    let LedgerEvent { timestamp, kind, app, machine, .. } = event;
    let mut line = format!("{timestamp} {kind:<8} {app}");
    for part in [machine.as_str(), event.how.as_str()].into_iter().filter(|it| !it.is_empty()) {
        line += &format!(" {part}");
    }
    if !event.from.is_empty() && matches!(kind.as_str(), "wake" | "hold") {
        line += &format!(" from {}", event.from);
    }
    line += &event.trigger.as_ref().map(by).unwrap_or_default();
    line += &took(event);
    if !event.reason.is_empty() && kind != "wake" {
        line += &format!(": {}", event.reason);
    }
    if event.left_out != 0 {
        line += &format!(" ({} more were left out before)", event.left_out);
    }
    line
}

fn because(event: &LedgerEvent) -> String {
    let who = event.trigger.as_ref().filter(|it| it.kind != "proxy").map(by).unwrap_or_default();
    let why = if event.reason.is_empty() { String::new() } else { format!(": {}", event.reason) };
    format!("{who}{why}")
}

fn by(trigger: &Trigger) -> String {
    let who = match trigger.kind.as_str() {
        "machine" => format!("app {}, Machine {}", trigger.app, trigger.machine),
        "host" => "the host".to_owned(),
        "operator" => format!("an operator ({})", trigger.who),
        "platform" => "the platform".to_owned(),
        "proxy" => "the proxy".to_owned(),
        _ => format!("{} in the network", trigger.address),
    };
    let what = match (trigger.method.as_str(), trigger.destination.as_str()) {
        ("", "") => String::new(),
        ("", to) => format!(" at {to}"),
        (method, to) => format!(" with {method} {} at {to}", trigger.path),
    };
    format!(" by {who}{what}")
}

fn took(event: &LedgerEvent) -> String {
    if event.total_micros == 0 {
        return String::new();
    }
    let millis = |micros: u64| format!("{}.{:02} ms", micros / 1_000, micros % 1_000 / 10);
    let phases = event.phases.iter().map(|it| format!("{} {}", it.name, millis(it.micros)));
    let phases = match event.phases.len() {
        0 | 1 => String::new(),
        _ => format!(" ({})", phases.collect::<Vec<_>>().join(", ")),
    };
    format!(" in {}{phases}", millis(event.total_micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use perch_api::wire::LedgerPhase;

    fn held() -> LedgerEvent {
        let phase = |name: &str, micros| LedgerPhase { name: name.to_owned(), micros };
        let trigger = Trigger {
            kind: "machine".to_owned(),
            app: "web".to_owned(),
            machine: "m1".to_owned(),
            destination: "[fdaa::9]:80".to_owned(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            ..Trigger::default()
        };
        LedgerEvent {
            id: 9,
            timestamp: "T2".to_owned(),
            app: "quotes".to_owned(),
            machine: "m0".to_owned(),
            run: 3,
            kind: "hold".to_owned(),
            from: "suspended".to_owned(),
            how: "thaw".to_owned(),
            first: true,
            trigger: Some(trigger),
            total_micros: 1_530,
            phases: vec![phase("wake", 500), phase("answer", 1_030)],
            ..LedgerEvent::default()
        }
    }

    #[test]
    fn a_record_is_one_line() {
        assert_eq!(
            line(&held()),
            "T2 hold     quotes m0 thaw from suspended by app web, Machine m1 with GET / at \
             [fdaa::9]:80 in 1.53 ms (wake 0.50 ms, answer 1.03 ms)"
        );
        let refusal = LedgerEvent {
            kind: "refusal".to_owned(),
            reason: "PR01 nobody".to_owned(),
            left_out: 4,
            ..LedgerEvent::default()
        };
        let expected = " refusal  : PR01 nobody (4 more were left out before)";
        assert_eq!(line(&refusal), expected);
    }

    #[test]
    fn a_machine_that_sleeps_tells_since_when_and_who_woke_it_last() {
        // Entered after the wait that it ended.
        let wake = LedgerEvent {
            id: 10,
            timestamp: "T1".to_owned(),
            kind: "wake".to_owned(),
            trigger: None,
            first: false,
            total_micros: 490,
            phases: Vec::new(),
            ..held()
        };
        let sleep = LedgerEvent {
            id: 11,
            timestamp: "T3".to_owned(),
            kind: "suspend".to_owned(),
            reason: "no load for 1.0s".to_owned(),
            ..LedgerEvent { trigger: None, first: false, ..held() }
        };
        let older = LedgerEvent { id: 4, total_micros: 7, ..held() };
        let asleep = LedgerEvent { id: 5, ..sleep.clone() };
        let machine = serde_json::json!({"id": "m0", "state": "suspended", "private_ip": "fdaa::7", "config": {"image": "x"}});
        let machine: Machine = serde_json::from_value(machine).expect("a Machine");
        let why = MachineWhy::of("quotes", &machine, &[older, asleep, held(), wake, sleep]);
        assert_eq!(
            why.text(),
            "quotes m0 is suspended since T3: no load for 1.0s\n  last woken T1 from suspended by app \
             web, Machine m1 with GET / at [fdaa::9]:80 in 0.49 ms\n  its first caller waited \
             1.53 ms (wake 0.50 ms, answer 1.03 ms)"
        );
    }
}
