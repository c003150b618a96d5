//! From the words of the control connection to the types of `core`: parsed once, then trusted.

use std::time::Duration;

use perch_core::balancer::{self, MachineView};
use perch_core::checks::{CheckKind, CheckSpec, Times};
use perch_core::ids::BadId;
use perch_core::lifecycle::MachineState;
use perch_core::policy::{Policy, Rule, Verdict};
use perch_core::service::{
    Autostart, Autostop, Concurrency, Handler, PortSpec, ServiceSpec, Transport, Unit,
};

use crate::control;
use crate::interning::Interner;

/// Something that the server said makes no sense to us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadView {
    #[error("Machine {machine} cannot be understood")]
    Id {
        machine: String,
        #[source]
        source: BadId,
    },
    #[error("Machine {machine} is in the unknown state {state}")]
    State { machine: String, state: String },
}

pub(crate) fn machine(
    view: &control::MachineView,
    interner: &mut Interner<[ServiceSpec]>,
) -> Result<MachineView, BadView> {
    let bad_id = |source| BadView::Id { machine: view.id.clone(), source };
    let bad_state = || BadView::State { machine: view.id.clone(), state: view.state.clone() };
    let services = view.services.iter().map(service);
    Ok(MachineView {
        id: view.id.parse().map_err(bad_id)?,
        run: view.run,
        state: state(&view.state).ok_or_else(bad_state)?,
        region: view.region.parse().map_err(bad_id)?,
        link_ip: view.link_ip,
        config_version: view.config_version,
        cordoned: view.cordoned,
        leased: view.leased,
        primary: view.primary,
        services: interner.intern(services.collect::<Vec<_>>()),
    })
}

fn state(text: &str) -> Option<MachineState> {
    text.parse().ok()
}

fn service(view: &control::ServiceView) -> ServiceSpec {
    ServiceSpec {
        transport: transport(view),
        internal_port: view.internal_port,
        ports: view.ports.iter().map(port).collect(),
        autostop: match view.autostop {
            control::Autostop::Off => Autostop::Off,
            control::Autostop::Stop => Autostop::Stop,
            control::Autostop::Suspend => Autostop::Suspend,
        },
        autostart: if view.autostart { Autostart::On } else { Autostart::Off },
        min_machines_running: view.min_machines_running,
        concurrency: Concurrency {
            unit: match view.unit {
                control::Unit::Requests => Unit::Requests,
                control::Unit::Connections => Unit::Connections,
            },
            soft_limit: view.soft_limit,
            hard_limit: view.hard_limit,
        },
        auto_stop_after: Duration::from_millis(view.auto_stop_after_ms),
        start_timeout: Duration::from_millis(view.start_timeout_ms),
        checks: view.checks.iter().map(check).collect(),
    }
}

/// How a Machine sleeps, for the server.
pub(crate) fn shown_autostop(autostop: Autostop) -> control::Autostop {
    match autostop {
        Autostop::Off => control::Autostop::Off,
        Autostop::Stop => control::Autostop::Stop,
        Autostop::Suspend => control::Autostop::Suspend,
    }
}

pub(crate) fn check(view: &control::CheckView) -> CheckSpec {
    let kind = match &view.http {
        None => CheckKind::Tcp,
        Some(http) => CheckKind::Http {
            method: http.method.clone(),
            path: http.path.clone(),
            headers: http.headers.clone(),
        },
    };
    let times = Times {
        interval: Duration::from_millis(view.interval_ms),
        timeout: Duration::from_millis(view.timeout_ms),
        grace: Duration::from_millis(view.grace_ms),
    };
    CheckSpec { name: view.name.clone(), port: view.port, kind, times }
}

/// The rules of a service. What a newer server may mean by one that we cannot read we do not know: such a rule, and
/// all behind it, refuse.
pub(crate) fn policy(view: &control::ServiceView) -> Policy {
    let refuse =
        || Rule { from: [].into(), methods: [].into(), paths: [].into(), then: Verdict::Refuse };
    let rules = view.allow.iter().map(|rule| rule_of(rule).unwrap_or_else(refuse));
    Policy { rules: rules.collect() }
}

fn rule_of(view: &control::AllowView) -> Option<Rule> {
    let texts = |all: &[String]| all.iter().map(|text| text.as_str().into()).collect();
    let from = view.from.iter().map(|who| who.parse().ok());
    Some(Rule {
        from: from.collect::<Option<Vec<_>>>()?.into(),
        methods: texts(&view.methods),
        paths: texts(&view.paths),
        then: view.then.parse().ok()?,
    })
}

/// What carries a service; a server sends no other protocols than these two.
pub(crate) fn transport(view: &control::ServiceView) -> Transport {
    match view.protocol.as_str() {
        "udp" => Transport::Udp,
        _ => Transport::Tcp,
    }
}

fn port(view: &control::PortView) -> PortSpec {
    let handlers = view.handlers.iter().filter_map(|name| match name.as_str() {
        "http" => Some(Handler::Http),
        "tls" => Some(Handler::Tls),
        "pg_tls" => Some(Handler::PgTls),
        "proxy_proto" => Some(Handler::ProxyProto),
        _ => None,
    });
    PortSpec {
        start: view.start,
        end: view.end,
        handlers: handlers.collect(),
        force_https: view.force_https,
    }
}

pub(crate) fn start_outcome(outcome: control::StartOutcome) -> balancer::StartOutcome {
    match outcome {
        control::StartOutcome::Started { run } => balancer::StartOutcome::Started { run },
        control::StartOutcome::Failed { reason } => balancer::StartOutcome::Failed { reason },
        control::StartOutcome::Refused { reason } => balancer::StartOutcome::Refused { reason },
    }
}

pub(crate) fn stop_outcome(outcome: control::StopOutcome) -> balancer::StopOutcome {
    match outcome {
        control::StopOutcome::Stopped => balancer::StopOutcome::Stopped,
        control::StopOutcome::Suspended => balancer::StopOutcome::Suspended,
        control::StopOutcome::Refused { reason } => balancer::StopOutcome::Refused { reason },
    }
}

/// The reason of a stop for the Machine's events.
pub(crate) fn stop_reason(reason: balancer::StopReason) -> String {
    match reason {
        balancer::StopReason::Idle { quiet } => format!("no load for {quiet:.1?}"),
        balancer::StopReason::ExcessIdle { running, over, quiet } => format!(
            "excess capacity: {running} running, {over} at or over soft_limit, no load for {quiet:.1?}"
        ),
        balancer::StopReason::ExcessDrained => {
            "excess capacity: its load went elsewhere".to_owned()
        }
    }
}
