//! What the server says of the present, and records of its ledger, in words.

use perch_api::wire::{AppWhy, CallerWhy, LedgerEvent, MachineWhy, Trigger};

/// Why an app is awake or asleep: a few lines for each Machine, then who is served.
pub(super) fn now(why: &AppWhy) -> Vec<String> {
    let mut lines: Vec<_> = why.machines.iter().flat_map(|it| machine(why, it)).collect();
    if !why.live {
        lines.push(format!(
            "who calls {} just now is not known: its proxy does not answer",
            why.app
        ));
    }
    if 0 < why.waiting {
        lines.push(format!("{} callers of {} wait for a Machine", why.waiting, why.app));
    }
    if !why.callers.is_empty() || 0 < why.callers_left_out {
        lines.push(format!("callers of {} now, longest first:", why.app));
    }
    lines.extend(why.callers.iter().map(caller));
    if 0 < why.callers_left_out {
        lines.push(format!("  and {} more", why.callers_left_out));
    }
    lines
}

fn machine(why: &AppWhy, machine: &MachineWhy) -> Vec<String> {
    let mut first = format!("{} {} is {}", why.app, machine.machine, machine.state);
    if let Some(sleep) = &machine.last_sleep {
        first += &format!(" since {}{}", sleep.timestamp, because(sleep));
    } else if let (Some(wake), "started") = (&machine.last_wake, machine.state.as_str()) {
        first += &format!(" since {}", wake.timestamp);
    }
    let mut lines = vec![first];
    lines.extend(outlook(machine));
    lines.extend(machine.reasons.iter().map(|reason| format!("  kept awake: {}", reason.text)));
    if 0 < machine.resting {
        lines.push(format!("  {} connections rest, which do not keep it awake", machine.resting));
    }
    if let Some(veto) = &machine.last_veto {
        lines.push(format!("  a sleep was due {}: {}", veto.timestamp, veto.reason));
    }
    if let Some(wake) = &machine.last_wake {
        let who = machine.first_caller.as_ref().and_then(|it| it.trigger.as_ref());
        let who = who.or(wake.trigger.as_ref()).map(by).unwrap_or_default();
        let from =
            if wake.from.is_empty() { String::new() } else { format!(" from {}", wake.from) };
        lines.push(format!("  last woken {}{from}{who}{}", wake.timestamp, took(wake)));
    }
    if let Some(caller) = &machine.first_caller {
        lines.push(format!("  its first caller waited{}", took(caller).replacen(" in", "", 1)));
    }
    lines
}

/// How long it will be awake, if that is known.
fn outlook(machine: &MachineWhy) -> Option<String> {
    if 0 < machine.load {
        return Some(match machine.load {
            1 => "  in use by 1 request, connection or session".to_owned(),
            load => format!("  in use by {load} requests, connections or sessions"),
        });
    }
    let how = if machine.sleeps_by == "suspend" { "suspended" } else { "stopped" };
    let unused = length(machine.unused_ms?);
    Some(match machine.sleeps_in_ms {
        Some(left) => {
            format!("  asleep ({how}) in {}: nobody has used it for {unused}", length(left))
        }
        None => format!("  nobody has used it for {unused}"),
    })
}

fn caller(caller: &CallerWhy) -> String {
    let what = match caller.what.as_str() {
        "request" if caller.trigger.method.is_empty() => " (a request)".to_owned(),
        "request" => String::new(),
        "upgraded" => " (changed to another protocol)".to_owned(),
        "connection" => " (raw TCP)".to_owned(),
        "http2" => format!(" (HTTP/2, {} streams)", caller.streams),
        "session" => " (UDP)".to_owned(),
        other => format!(" ({other})"),
    };
    let rests = if caller.resting { ", at rest" } else { "" };
    let who = by(&caller.trigger);
    let who = who.strip_prefix(" by ").unwrap_or(&who);
    format!("  {who}{what} for {}{rests}", length(caller.age_ms))
}

/// As people say it: two units are enough.
fn length(millis: u64) -> String {
    let seconds = millis / 1_000;
    match seconds {
        0..60 => format!("{seconds}.{} s", millis % 1_000 / 100),
        60..3_600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
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
    use perch_api::wire::{LedgerPhase, WhyReason};

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

    fn trigger() -> Trigger {
        held().trigger.unwrap_or_default()
    }

    fn why(machine: MachineWhy) -> AppWhy {
        let machine = MachineWhy { machine: "m0".to_owned(), ..machine };
        let (app, machines) = ("quotes".to_owned(), vec![machine]);
        AppWhy { app, machines, live: true, ..AppWhy::default() }
    }

    fn check(why: &AppWhy, expected: &[&str]) {
        assert_eq!(now(why), expected);
    }

    #[test]
    fn a_machine_that_sleeps_tells_since_when_and_who_woke_it_last() {
        let woken = LedgerEvent { trigger: None, first: false, phases: Vec::new(), ..held() };
        let wake = LedgerEvent { timestamp: "T1".to_owned(), total_micros: 490, ..woken.clone() };
        let reason = "no load for 1.0s".to_owned();
        let sleep = LedgerEvent { timestamp: "T3".to_owned(), reason, ..woken };
        let machine = MachineWhy {
            state: "suspended".to_owned(),
            last_sleep: Some(sleep),
            last_wake: Some(wake),
            first_caller: Some(held()),
            ..MachineWhy::default()
        };
        check(
            &why(machine),
            &[
                "quotes m0 is suspended since T3: no load for 1.0s",
                "  last woken T1 from suspended by app web, Machine m1 with GET / at [fdaa::9]:80 \
                 in 0.49 ms",
                "  its first caller waited 1.53 ms (wake 0.50 ms, answer 1.03 ms)",
            ],
        );
    }

    #[test]
    fn one_that_nobody_uses_says_when_it_sleeps_or_what_forbids_it() {
        let unused = MachineWhy {
            state: "started".to_owned(),
            unused_ms: Some(79_000),
            sleeps_in_ms: Some(41_000),
            sleeps_by: "suspend".to_owned(),
            ..MachineWhy::default()
        };
        let first = "quotes m0 is started";
        let asleep = "  asleep (suspended) in 41.0 s: nobody has used it for 1 m 19 s";
        check(&why(unused.clone()), &[first, asleep]);
        let text = "min_machines_running = 1, and 1 run in its region".to_owned();
        let reasons = vec![WhyReason { kind: "min_machines_running".to_owned(), text }];
        let kept = MachineWhy { sleeps_in_ms: None, reasons, resting: 2, ..unused };
        check(
            &why(kept),
            &[
                first,
                "  nobody has used it for 1 m 19 s",
                "  kept awake: min_machines_running = 1, and 1 run in its region",
                "  2 connections rest, which do not keep it awake",
            ],
        );
    }

    #[test]
    fn who_keeps_it_awake_is_listed_and_the_rest_counted() {
        let machine = MachineWhy { state: "started".to_owned(), load: 9, ..MachineWhy::default() };
        let caller = |what: &str, age_ms| {
            let trigger = match what {
                "upgraded" | "request" => trigger(),
                _ => Trigger { method: String::new(), kind: "host".to_owned(), ..trigger() },
            };
            let what = what.to_owned();
            CallerWhy { trigger, what, age_ms, streams: 3, ..CallerWhy::default() }
        };
        let callers = vec![
            caller("request", 90_061_000),
            caller("upgraded", 3_660_000),
            caller("connection", 61_000),
            CallerWhy { resting: true, ..caller("http2", 1_999) },
            caller("session", 50),
        ];
        let used = AppWhy { callers, callers_left_out: 4, waiting: 2, ..why(machine) };
        let web = "  app web, Machine m1 with GET / at [fdaa::9]:80";
        check(
            &used,
            &[
                "quotes m0 is started",
                "  in use by 9 requests, connections or sessions",
                "2 callers of quotes wait for a Machine",
                "callers of quotes now, longest first:",
                &format!("{web} for 1 d 1 h"),
                &format!("{web} (changed to another protocol) for 1 h 1 m"),
                "  the host at [fdaa::9]:80 (raw TCP) for 1 m 1 s",
                "  the host at [fdaa::9]:80 (HTTP/2, 3 streams) for 1.9 s, at rest",
                "  the host at [fdaa::9]:80 (UDP) for 0.0 s",
                "  and 4 more",
            ],
        );
        let silent = AppWhy { live: false, ..why(MachineWhy::default()) };
        assert!(now(&silent)[1].contains("does not answer"), "{:?}", now(&silent));
    }
}
