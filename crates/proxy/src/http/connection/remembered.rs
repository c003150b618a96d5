//! Replays that an app has ordered before, remembered by path and by session (PX-50..52).

use std::rc::Rc;

use perch_core::replay::Replay;
use perch_core::replay::cache::{By, Rule, Session};
use perch_core::service::PublishedPort;
use ring::digest;

use super::{describe_target, host_of};
use crate::app::App;
use crate::clock;
use crate::http::edit::{value_of, values_of};
use crate::http::replay::{Caching, Order};
use crate::http::treatment::Treatment;

/// What a caller says who wants to pass the cache by (PX-34).
const CACHE_CONTROL: &str = "fly-replay-cache-control";

/// What is known of the requests to one port of the app that was called.
pub(super) struct Memory {
    app: Rc<App>,
    treatment: Option<Rc<Treatment>>,
}

/// Where a request went before.
pub(super) struct Known {
    pub(super) replay: Replay,
    may_skip: bool,
}

impl Known {
    /// Whether the caller passes it by.
    pub(super) fn is_skipped(&self, head: &[u8]) -> bool {
        let skip =
            || value_of(head, CACHE_CONTROL).is_some_and(|it| it.eq_ignore_ascii_case("skip"));
        self.may_skip && skip()
    }
}

impl Memory {
    pub(super) fn of(app: &Rc<App>, port: PublishedPort) -> Self {
        let treatment = app.port(port).and_then(|facts| facts.treatment);
        Self { app: Rc::clone(app), treatment }
    }

    /// What is remembered of requests like this one; of its session, before its path.
    pub(super) fn find(&self, head: &[u8]) -> Option<Known> {
        let ((host, path), now) = (route(head)?, clock::now());
        let replays = self.app.replays.borrow();
        if let Some((rule, session)) = self.session(head, (&host, path))
            && let Some(replay) = replays.find_session((rule, &host), session, now)
        {
            return Some(Known { replay: replay.clone(), may_skip: rule.may_skip });
        }
        let entry = replays.find((&host, path), now)?;
        Some(Known { replay: entry.replay.clone(), may_skip: entry.may_skip })
    }

    pub(super) fn forget(&self, head: &[u8]) {
        let (Some((host, path)), now) = (route(head), clock::now()) else { return };
        let mut replays = self.app.replays.borrow_mut();
        replays.forget((&host, path), now);
        if let Some((rule, session)) = self.session(head, (&host, path)) {
            replays.forget_session((rule, &host), session, now);
        }
    }

    /// PX-12, for who gets a request that did not go by the cache.
    pub(super) fn status(&self, head: &[u8]) -> &'static str {
        match self.find(head) {
            Some(known) if known.is_skipped(head) => "bypass",
            Some(_) | None => "miss",
        }
    }

    /// Remembers what the called app itself has said (`once`), and forgets what whoever got the request says (PX-52).
    pub(super) fn note(&self, order: &Order, once: bool, head: &[u8]) {
        if matches!(order.cache, Some(Caching::Forget)) {
            return self.forget(head);
        }
        let (Some((host, path)), true) = (route(head), once) else { return };
        let (mut replays, now) = (self.app.replays.borrow_mut(), clock::now());
        if let Some(Caching::Store { pattern, ttl, may_skip }) = &order.cache {
            replays.store((&host, path), pattern, (order.replay.clone(), *may_skip), *ttl, now);
        }
        if order.transform.is_none()
            && order.replay.is_lasting()
            && let Some((rule, session)) = self.session(head, (&host, path))
        {
            replays.store_session((rule, &host), session, order.replay.clone(), now);
        }
    }

    /// Of which session a request to there is.
    fn session(&self, head: &[u8], route: (&str, &str)) -> Option<(&Rule, Session)> {
        let rule = Rule::of(&self.treatment.as_ref()?.sessions, route)?;
        let value = match &rule.by {
            By::Header(name) => value_of(head, name)?.to_owned(),
            By::Cookie(name) => cookie(&values_of(head, "cookie")?, name)?.to_owned(),
        };
        // It may be a password, and long.
        let digest = digest::digest(&digest::SHA256, value.as_bytes());
        let session = digest.as_ref().try_into().ok()?;
        (!value.is_empty()).then_some((rule, session))
    }
}

/// The first cookie of this name.
fn cookie<'a>(cookies: &'a str, name: &str) -> Option<&'a str> {
    let pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// Host name without its port, and path.
fn route(head: &[u8]) -> Option<(String, &str)> {
    const HOST_BYTES_MAX: usize = 256;
    let host = host_of(head).filter(|host| host.len() <= HOST_BYTES_MAX)?;
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        Some(_) | None => host,
    };
    Some((name.to_ascii_lowercase(), describe_target(head)?))
}
