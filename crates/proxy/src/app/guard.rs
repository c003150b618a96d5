//! Rules about callers (`perch_core::policy`) at the ports of an app that has some.
//!
//! Machines of one app may differ, as during a deploy: then the rules of all of them count, and the strictest answer.

use std::rc::Rc;
use std::sync::Arc;

use perch_core::admission::Origin;
use perch_core::aim::Target;
use perch_core::policy::{Call, Caller, Policy, Reason, Verdict};
use perch_core::service::PublishedPort;

use super::{App, NoPlace, Place};
use crate::control::ServiceView;
use crate::convert;
use crate::directory::{Destination, Directory};

/// The rules of some ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) start: PublishedPort,
    pub(crate) end: PublishedPort,
    policy: Arc<Policy>,
}

impl Guard {
    /// Those of a service, for each of its ports.
    pub(crate) fn of(service: &ServiceView) -> Vec<Self> {
        if service.allow.is_empty() {
            return Vec::new();
        }
        let (transport, policy) = (convert::transport(service), Arc::new(convert::policy(service)));
        let guard = |port: &crate::control::PortView| Self {
            start: PublishedPort::of(transport, port.start),
            end: PublishedPort::of(transport, port.end),
            policy: Arc::clone(&policy),
        };
        service.ports.iter().map(guard).collect()
    }

    /// Whether it is about one of these ports.
    pub(crate) fn meets(&self, start: PublishedPort, end: PublishedPort) -> bool {
        self.start <= end && start <= self.end
    }
}

/// What a caller asks for, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked<'a> {
    /// A request with this head, as we wrote it.
    Request(&'a [u8]),
    /// A raw connection.
    Bytes,
    Datagram,
}

/// What follows from the rules.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    Wake,
    IfAwake,
    /// Why, for the caller.
    Refused(String),
}

impl App {
    pub(crate) fn set_guards(&self, guards: Box<[Guard]>) {
        *self.guards.borrow_mut() = guards;
    }

    /// The strictest answer.
    pub(crate) fn judge(&self, port: PublishedPort, call: &Call<'_>) -> (Verdict, Reason) {
        let guards = self.guards.borrow();
        let meant = guards.iter().filter(|guard| guard.meets(port, port));
        let answers = meant.map(|guard| guard.policy.decide(call));
        answers.max_by_key(|(verdict, _)| *verdict).unwrap_or((Verdict::Wake, Reason::NoRules))
    }

    /// A place for who may wake nobody, in one of these Machines, if there is one at once.
    pub(crate) fn choose_awake(
        self: &Rc<Self>,
        port: PublishedPort,
        targets: Option<&[Target]>,
    ) -> Option<Place> {
        // It is load, and no use: it does not begin the idle time anew.
        let origin = Origin::SamePool;
        let place = match targets {
            None => self.choose(port, origin).ok(),
            Some(targets) => {
                targets.iter().find_map(|target| self.choose_among(port, origin, *target).ok())
            }
        };
        place.inspect(|place| place.awake_only.set(true))
    }
}

impl Place {
    /// Whether the caller may wake nobody.
    pub(crate) fn is_awake_only(&self) -> bool {
        self.awake_only.get()
    }
}

impl Directory {
    /// What the rules of `app` say of a caller at a port that is guarded; a refusal is told to the ledger.
    pub(crate) fn ruling(
        &self,
        to: &Destination,
        (app, port): (&Rc<App>, PublishedPort),
        asked: Asked<'_>,
    ) -> Ruling {
        self.with_caller(to, |caller| self.rule(to, caller, (app, port), asked))
    }

    /// The same of a request that a Machine of `issuer` sends on: as if it called by itself.
    pub(crate) fn ruling_of_replay(
        &self,
        to: &Destination,
        issuer: &App,
        (app, port): (&Rc<App>, PublishedPort),
        head: &[u8],
    ) -> Ruling {
        self.with_app_as_caller(issuer, |caller| {
            self.rule(to, caller, (app, port), Asked::Request(head))
        })
    }

    fn rule(
        &self,
        to: &Destination,
        caller: Caller<'_>,
        (app, port): (&Rc<App>, PublishedPort),
        asked: Asked<'_>,
    ) -> Ruling {
        let request = match asked {
            // What cannot be read fits no rule that looks at paths.
            Asked::Request(head) => Some(first_words(head).unwrap_or(("", "//"))),
            Asked::Bytes | Asked::Datagram => None,
        };
        let org = self.org_of(app).unwrap_or_default();
        let (verdict, reason) = app.judge(port, &Call { caller, org: &org, request });
        match verdict {
            Verdict::Wake => Ruling::Wake,
            Verdict::ServeIfAwake => Ruling::IfAwake,
            Verdict::Refuse => {
                let (name, who) = (&app.name, in_words(caller));
                let text = format!("the rules of app {name} refuse this call of {who}: {reason}");
                app.note_turned_away(to.cause_of(asked), text.clone());
                Ruling::Refused(text)
            }
        }
    }

    /// Nobody is awake for who may wake nobody.
    pub(crate) fn note_not_awake(&self, to: &Destination, app: &App, asked: Asked<'_>) -> NoPlace {
        app.note_turned_away(to.cause_of(asked), NoPlace::NotAwake.to_string());
        NoPlace::NotAwake
    }
}

/// Method and target.
fn first_words(head: &[u8]) -> Option<(&str, &str)> {
    let end = head.iter().position(|byte| *byte == b'\r')?;
    let mut words = std::str::from_utf8(&head[..end]).ok()?.split(' ');
    Some((words.next()?, words.next()?))
}

fn in_words(caller: Caller<'_>) -> String {
    match (caller.app, caller.peer) {
        (Some(app), _) => format!("app {app}"),
        (None, Some("host")) => "the host".to_owned(),
        (None, Some(peer)) => format!("peer {peer}"),
        (None, None) => "somebody unknown".to_owned(),
    }
}
