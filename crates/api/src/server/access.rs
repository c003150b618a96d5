//! What each call needs, and whether its caller may make it.
//!
//! [`rule`] is the one table: it matches every route without a catch-all, so that a new one does not
//! compile before somebody has decided. What only a body names (the organization of a new app, the
//! app of a new release) is checked by the handler that reads it, with the same functions.
//!
//! What a token must not see does not exist for it: the refusal is the very error that the backend
//! has for a name that nobody uses. An app-scoped token may still use what its app's own code can
//! reach in the network, since who deploys the app can run any code there.

use http::Method;

use super::route::{self, Part, Route};
use super::{Backend, Peer, Scope};
use crate::wire::{ApiError, App, Info, Organization};

/// Whether a call changes something, or reaches into an app's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject<'a> {
    /// An app that the path names.
    App(&'a str),
    /// A release, and by it its app.
    Release(&'a str),
    /// An organization that the path names.
    Organization(&'a str),
    /// Lists and facts: for every token, and the answer is cut to what it may see.
    Cut,
    /// Facts that are nobody's.
    Common,
    /// The body names it; the handler checks.
    Body,
    /// For processes of this host only.
    Host,
}

/// What a call needs.
pub(super) fn rule<'a>(route: &'a Route, method: &Method) -> (Effect, Subject<'a>) {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let effect = if reads { Effect::Read } else { Effect::Write };
    let subject = match route {
        Route::Apps if reads => Subject::Cut,
        Route::Apps | Route::Releases => Subject::Body,
        Route::App(app)
        | Route::Ips(app)
        | Route::Ip(app, _)
        | Route::Images(app)
        | Route::Proxy(app)
        | Route::Machines(app)
        | Route::Machine(app, _)
        | Route::MetadataKey(app, ..)
        | Route::Secrets(app)
        | Route::Secret(app, _)
        | Route::Volumes(app)
        | Route::Volume(app, _)
        | Route::ExtendVolume(app, _)
        | Route::Snapshots(app, _)
        | Route::AppReleases(app)
        | Route::CurrentRelease(app)
        | Route::Logs(app)
        | Route::AppDns(app)
        | Route::AppWhy(app)
        | Route::Console(app, _)
        | Route::Uploads(app)
        | Route::Upload(app, _)
        | Route::Blob(app, _)
        | Route::Manifest(app, _) => Subject::App(app),
        Route::MachinePart(app, _, part) => match part {
            Part::Start
            | Part::Stop
            | Part::Suspend
            | Part::Restart
            | Part::Signal
            | Part::Wait
            | Part::Cordon
            | Part::Uncordon
            | Part::Lease
            | Part::Ps
            | Part::Events
            | Part::Exec
            | Part::Metadata
            | Part::Busy => Subject::App(app),
        },
        Route::Release(id) => Subject::Release(id),
        Route::Organization(slug) | Route::OrganizationDns(slug) => Subject::Organization(slug),
        Route::Organizations | Route::Info | Route::WhyEvents | Route::Metrics => Subject::Cut,
        Route::Description | Route::Regions | Route::Registry | Route::Whoami => Subject::Common,
        Route::Keys | Route::Tokens | Route::Token(_) => Subject::Host,
    };
    (effect, subject)
}

/// A call of the API and what it needs, for documents and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// `GET`, …
    pub method: &'static str,
    /// Its path, with a name in braces for each part that varies.
    pub path: &'static str,
    /// Whether a token that may only read is refused.
    pub changes: bool,
    /// Who may make it, in one word: `app`, `release` and `organization` that the path names, or the
    /// `body`; `all` who have a token, with the answer `cut` to what the token is good for, or
    /// nobody but this `host`.
    pub whose: &'static str,
}

/// All calls of the API.
pub fn operations() -> Vec<Operation> {
    route::PATHS.iter().flat_map(|path| operations_of(path)).collect()
}

/// One call of the API.
pub(super) fn operation(method: &str, path: &str) -> Option<Operation> {
    operations().into_iter().find(|it| (it.method, it.path) == (method, path))
}

fn operations_of(path: &'static str) -> Vec<Operation> {
    let Ok(route) = Route::parse(&route::example(path)) else { return Vec::new() };
    let methods = route.methods().split(", ");
    let operation = |method: &'static str| {
        let (effect, subject) = rule(&route, &method.parse().unwrap_or_default());
        Operation { method, path, changes: effect == Effect::Write, whose: subject.word() }
    };
    methods.map(operation).collect()
}

impl Subject<'_> {
    fn word(&self) -> &'static str {
        match self {
            Self::App(_) => "app",
            Self::Release(_) => "release",
            Self::Organization(_) => "organization",
            Self::Cut => "cut",
            Self::Common => "all",
            Self::Body => "body",
            Self::Host => "host",
        }
    }
}

/// Refuses a Machine everything but a look at itself, its own rest, and its own notes.
pub(super) fn check_machine(peer: &Peer, route: &Route, method: &Method) -> Result<(), ApiError> {
    let Peer::Machine(own) = peer else { return Ok(()) };
    let is_own = |app: &str, id: &str| app == own.app && id == own.id;
    let may = match route {
        Route::Machine(app, id) => is_own(app, id) && *method == Method::GET,
        Route::MachinePart(app, id, part) => {
            let part = matches!(
                part,
                Part::Stop | Part::Suspend | Part::Restart | Part::Metadata | Part::Busy
            );
            part && is_own(app, id)
        }
        Route::MetadataKey(app, id, _) => is_own(app, id),
        _ => false,
    };
    if may {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "from inside, machine {0} may only read itself, stop, suspend or restart itself, say that it is busy, and keep \
         its metadata: \
         /v1/apps/{1}/machines/{0}",
        own.id, own.app
    )))
}

/// Refuses what the caller's token is not good for.
pub(super) async fn check<B: Backend>(
    backend: &B,
    peer: &Peer,
    (effect, subject): (Effect, Subject<'_>),
) -> Result<(), ApiError> {
    // What a Machine may do has been looked at already.
    let Peer::Token(holder) = peer else { return Ok(()) };
    if subject == Subject::Host {
        return Err(ApiError::forbidden(
            "tokens and keys are made on the server's host only, with `perch token` and `perch keys`",
        ));
    }
    if holder.scope.read_only && effect == Effect::Write {
        return Err(ApiError::forbidden(format!("the token {} may only read", holder.name)));
    }
    match subject {
        Subject::App(app) => check_app(backend, peer, app).await,
        Subject::Release(id) => check_release(backend, peer, id).await,
        Subject::Organization(slug) => check_org(peer, slug),
        Subject::Cut | Subject::Common | Subject::Body | Subject::Host => Ok(()),
    }
}

/// Refuses an app that the caller must not see as if it were not there.
pub(super) async fn check_app<B: Backend>(
    backend: &B,
    peer: &Peer,
    name: &str,
) -> Result<(), ApiError> {
    let Some(scope) = peer.scope() else { return Ok(()) };
    if scope.app.as_deref().is_some_and(|own| own != name) {
        return Err(ApiError::no_app(name));
    }
    if scope.app.is_none() && scope.org.is_none() {
        return Ok(());
    }
    let app = backend.get_app(peer.clone(), name.to_owned()).await?;
    if sees(scope, &app) { Ok(()) } else { Err(ApiError::no_app(name)) }
}

async fn check_release<B: Backend>(backend: &B, peer: &Peer, id: &str) -> Result<(), ApiError> {
    let app = backend.app_of_release(id.to_owned()).await?;
    check_app(backend, peer, &app).await.map_err(|_| ApiError::no_release(id))
}

/// Refuses an organization that the caller must not see as if it were not there.
pub(super) fn check_org(peer: &Peer, slug: &str) -> Result<(), ApiError> {
    match peer.scope().and_then(|scope| scope.org.as_deref()) {
        Some(own) if own != slug => Err(ApiError::not_found(format!(
            "there is no organization {slug:?} for the {}; it is good for {own}",
            peer.user()
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The organization of a new app: the token's own when the body names none.
pub(super) fn org_of_new_app(peer: &Peer, slug: String) -> Result<String, ApiError> {
    let Some(scope) = peer.scope() else { return Ok(slug) };
    if scope.app.is_some() {
        return Err(ApiError::forbidden(format!("the {} is good for one app only", peer.user())));
    }
    match &scope.org {
        Some(own) if slug.is_empty() => Ok(own.clone()),
        Some(_) => check_org(peer, &slug).map(|()| slug),
        None => Ok(slug),
    }
}

/// Whether an app is within the scope.
pub(super) fn sees(scope: &Scope, app: &App) -> bool {
    scope.app.as_ref().is_none_or(|own| *own == app.name)
        && scope.org.as_ref().is_none_or(|own| *own == app.organization.slug)
}

/// Leaves of a list of apps what the caller may see.
pub(super) fn cut_apps(peer: &Peer, apps: &mut Vec<App>) {
    if let Some(scope) = peer.scope() {
        apps.retain(|app| sees(scope, app));
    }
}

/// Leaves of a list of organizations what the caller may see.
pub(super) fn cut_organizations(peer: &Peer, organizations: &mut Vec<Organization>) {
    organizations.retain(|organization| check_org(peer, &organization.slug).is_ok());
}

/// Leaves of the facts what the caller may see: nothing about the host, and for a token of one
/// organization that one as the default.
pub(super) fn cut_info(peer: &Peer, info: &mut Info) {
    let Some(scope) = peer.scope() else { return };
    info.data_dir.clear();
    info.pid = 0;
    info.host_addresses.clear();
    if let Some(org) = &scope.org {
        info.default_org.clone_from(org);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::MachineCaller;
    use std::sync::Arc;

    #[test]
    fn a_machine_may_do_these_calls_about_itself_and_none_about_others() {
        let peer = |app: &str, id: &str| Peer::Machine(Arc::new(MachineCaller::new(app, id)));
        let may = |peer: &Peer, it: &Operation| {
            let route = Route::parse(&route::example(it.path)).expect("a path of ours");
            check_machine(peer, &route, &it.method.parse().expect("a method")).is_ok()
        };
        let own = peer("app", "id");
        let line = |it: &Operation| format!("{} {}", it.method, it.path);
        let allowed: Vec<_> = operations().iter().filter(|it| may(&own, it)).map(line).collect();
        let one = "/v1/apps/{app}/machines/{id}";
        let expected = [
            format!("GET {one}"),
            format!("POST {one}/stop"),
            format!("POST {one}/suspend"),
            format!("POST {one}/restart"),
            format!("GET {one}/metadata"),
            format!("POST {one}/metadata/{{key}}"),
            format!("DELETE {one}/metadata/{{key}}"),
            format!("PUT {one}/busy"),
            format!("DELETE {one}/busy"),
        ];
        assert_eq!(allowed, expected);
        for other in [peer("app", "other"), peer("other", "id")] {
            assert!(!operations().iter().any(|it| may(&other, it)), "{other}");
        }
    }

    #[test]
    fn the_table_of_all_calls_is_what_was_reviewed() {
        let line = |it: Operation| {
            let effect = if it.changes { "changes" } else { "reads" };
            format!("{:<7} {:<45} {effect:<8} {}\n", it.method, it.path, it.whose)
        };
        let table: String = operations().into_iter().map(line).collect();
        assert_eq!(
            table,
            include_str!("access.txt"),
            "if this is meant, make it the file:\n{table}"
        );
    }
}
