//! One request: from its route to the backend and back.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::answer::{self, Answer, Outcome, done, json, json_with};
use super::query::Query;
use super::route::Route;
use super::{
    Backend, BodyStream, MachineTarget, Peer, Phase, Session, access, ended, lookup,
    machine_handler, openapi, reached, registry, secret_handler, token_ended, tunnel,
    volume_handler, why_handler,
};
use crate::wire::{
    ApiError, AppPage, AssignIp, CreateApp, CreateRelease, IpPage, LogPage, LogPageMeta, LogQuery,
    NONCE_HEADER, OrganizationAnswer, OrganizationPage, ReleaseAnswer, ReleasePage, TokenPage,
    object,
};

// A Machine's config with embedded files is the longest; the store takes 8 MiB.
const JSON_BYTES_MAX: u64 = 4 * 1024 * 1024;
// flyctl asks at once again with a 128 ms pause, so an empty page is held (and longer than a proxy
// would hold it is of no use to anybody).
const LOG_HOLD_DEFAULT: Duration = Duration::from_secs(10);
pub(super) const LOG_HOLD_MAX: Duration = Duration::from_secs(60);
// Up to here a number with a fraction is exact.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
const RELEASES_LEN_DEFAULT: u64 = 25;
const RELEASES_LEN_MAX: u64 = 1000;

/// A request with everything that its handler may need.
pub(super) struct Call<B> {
    pub(super) session: Arc<Session<B>>,
    pub(super) peer: Peer,
    pub(super) head: Parts,
    pub(super) body: BodyStream,
    pub(super) upgrade: OnUpgrade,
    /// Names the request in the log and in the answer.
    pub(super) id: String,
}

impl<B: Backend> Call<B> {
    pub(super) fn new(
        mut request: Request<Incoming>,
        session: Arc<Session<B>>,
        peer: Peer,
        id: String,
    ) -> Self {
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        Self { peer, session, head, body: BodyStream::new(body), upgrade, id }
    }

    pub(super) fn backend(&self) -> &B {
        &self.session.backend
    }

    pub(super) fn query(&self) -> Result<Query, ApiError> {
        Query::parse(self.head.uri.query().unwrap_or_default())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn target(&self, app: &str, id: &str) -> MachineTarget {
        let nonce = self.header(NONCE_HEADER.as_str()).filter(|nonce| !nonce.is_empty());
        MachineTarget { app: app.to_owned(), id: id.to_owned(), nonce: nonce.map(str::to_owned) }
    }

    /// Reads the body as JSON.
    pub(super) async fn read<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        from_json(&self.body.read_all(JSON_BYTES_MAX).await?)
    }

    /// Reads the body as JSON; an empty one is the default.
    pub(super) async fn read_or_default<T: DeserializeOwned + Default>(
        &mut self,
    ) -> Result<T, ApiError> {
        let bytes = self.body.read_all(JSON_BYTES_MAX).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(T::default());
        }
        from_json(&bytes)
    }
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Serde reads an array as the fields of a struct in their order; every body here is an object.
    if bytes.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| bad_body(&error))?;
        return Err(ApiError::invalid("the request's body is an array; it must be an object"));
    }
    let error = match all_of(bytes) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    // For JSON 2.0 is as whole as 2, and some programs know only one kind of number.
    match serde_json::from_slice(bytes).ok().and_then(whole) {
        Some(value) => all_of(value.to_string().as_bytes()).map_err(|error| bad_body(&error)),
        None => Err(bad_body(&error)),
    }
}

fn all_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = object::read(&mut json)?;
    json.end().map(|()| read)
}

/// The value with whole numbers written as such; `None` when they are already.
fn whole(mut value: Value) -> Option<Value> {
    fn make_whole(value: &mut Value) -> bool {
        match value {
            Value::Number(number) if number.is_f64() => {
                let exact = number.as_f64().filter(|it| it.fract() == 0.0 && it.abs() < WHOLE_MAX);
                exact.inspect(|exact| *number = (*exact as i64).into()).is_some()
            }
            Value::Array(list) => list.iter_mut().fold(false, |any, it| make_whole(it) | any),
            Value::Object(map) => map.values_mut().fold(false, |any, it| make_whole(it) | any),
            _ => false,
        }
    }
    make_whole(&mut value).then_some(value)
}

/// Broken JSON is 400; JSON that says what we cannot accept is 422, without a position that nobody
/// can see.
fn bad_body(error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    if !error.is_data() {
        return ApiError::bad_request(format!("the request's body is not JSON: {text}"));
    }
    ApiError::invalid(text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason))
}

/// Answers a request, whatever it is.
pub(super) async fn handle<B: Backend>(call: Call<B>) -> Answer {
    let (method, uri) = (call.head.method.clone(), call.head.uri.clone());
    let (peer, session) = (call.peer.clone(), Arc::clone(&call.session));
    let (path, request) = (uri.path(), call.id.clone());
    let (outcome, form) = match Route::parse(path) {
        Ok(route) => {
            let form = Form { unknown: route.registry_word(), allowed: route.allow_header() };
            // Whoever removes an app removes the tokens for it, perhaps the one of this call.
            let outlives_its_token = matches!(route, Route::App(_)) && method == Method::DELETE;
            let outcome = tokio::select! {
                biased;
                outcome = dispatch(call, route) => outcome,
                () = token_ended(session.backend.as_ref(), &peer), if !outlives_its_token => {
                    Err(ended("the token"))
                }
            };
            (outcome, form)
        }
        Err(error) => {
            let unknown = path.starts_with("/v2/").then_some("NAME_INVALID");
            (Err(error), Form { unknown, allowed: String::new() })
        }
    };
    let error = match outcome {
        Ok(answer) => return answer,
        Err(error) => error,
    };
    let (code, text) = (error.code, &error.error);
    if 500 <= code && code != 501 {
        tracing::error!(%method, path, %peer, request, code, error = text, "API call failed");
    } else {
        tracing::debug!(%method, path, %peer, request, code, error = text, "API call refused");
    }
    form.refusal(&error)
}

/// How a route tells its errors.
struct Form {
    /// The distribution's word for 404, where its form is spoken.
    unknown: Option<&'static str>,
    /// What 405 says that is possible.
    allowed: String,
}

impl Form {
    fn refusal(&self, error: &ApiError) -> Answer {
        let answer = match self.unknown {
            Some(unknown) => answer::registry_refusal(error, unknown),
            None => answer::refusal(error),
        };
        if error.code == 405 { answer::with_allow(answer, &self.allowed) } else { answer }
    }
}

async fn dispatch<B: Backend>(mut call: Call<B>, route: Route) -> Outcome {
    if call.head.method == Method::HEAD && !route.allows(&Method::HEAD) {
        // The same answer; hyper leaves its body away.
        call.head.method = Method::GET;
    }
    let method = &call.head.method;
    if !route.allows(method) {
        let text = format!("{method} is not possible here; use {}", route.allow_header());
        return Err(ApiError::new(405, text));
    }
    access::check_machine(&call.peer, &route, method)?;
    access::check(call.backend(), &call.peer, access::rule(&route, method)).await?;
    match route {
        Route::Apps | Route::App(_) => apps(call, route).await,
        Route::Ips(_) | Route::Ip(..) => ips(call, route).await,
        Route::Images(_)
        | Route::Description
        | Route::Regions
        | Route::Organizations
        | Route::Organization(_)
        | Route::Info => facts(call, route).await,
        Route::Releases | Route::Release(_) | Route::AppReleases(_) | Route::CurrentRelease(_) => {
            releases(call, route).await
        }
        Route::Whoami | Route::AppDns(_) | Route::OrganizationDns(_) => {
            lookup::answer(call, route).await
        }
        Route::Keys | Route::Tokens | Route::Token(_) => tokens(call, route).await,
        Route::Secrets(_) | Route::Secret(..) => secret_handler::answer(call, route).await,
        Route::Volumes(_) | Route::Volume(..) | Route::ExtendVolume(..) | Route::Snapshots(..) => {
            volume_handler::answer(call, route).await
        }
        Route::Logs(app) => logs(call, app).await,
        Route::Metrics => why_handler::metrics(call).await,
        Route::WhyEvents => why_handler::events(call).await,
        Route::AppWhy(app) => why_handler::now(call, app).await,
        Route::Proxy(app) => tunnel::open(call, app).await,
        Route::Console(app, id) => tunnel::open_console(call, &app, &id).await,
        Route::Machines(_)
        | Route::Machine(..)
        | Route::MachinePart(..)
        | Route::MetadataKey(..) => machine_handler::answer(call, route).await,
        Route::Registry
        | Route::Uploads(_)
        | Route::Upload(..)
        | Route::Blob(..)
        | Route::Manifest(..) => registry::answer(call, route).await,
    }
}

/// A route that came to the wrong group of handlers: a mistake of ours, told as such.
pub(super) fn misrouted() -> Outcome {
    Err(ApiError::internal("the request came to the wrong handler"))
}

async fn apps<B: Backend>(mut call: Call<B>, route: Route) -> Outcome {
    let peer = call.peer.clone();
    match (call.head.method.clone(), route) {
        (Method::POST, Route::Apps) => {
            let mut input: CreateApp = call.read().await?;
            input.org_slug = access::org_of_new_app(&peer, input.org_slug)?;
            json_with(StatusCode::CREATED, &call.backend().create_app(peer, input).await?)
        }
        (Method::GET, Route::Apps) => {
            let query = call.query()?;
            let mut apps = call.backend().list_apps(peer.clone(), query.owned("org_slug")).await?;
            access::cut_apps(&peer, &mut apps);
            if let Some(role) = query.get("app_role") {
                apps.retain(|app| app.app_role == role);
            }
            json(&AppPage { total_apps: apps.len(), apps })
        }
        (Method::GET, Route::App(app)) => json(&call.backend().get_app(peer, app).await?),
        (Method::PATCH, Route::App(app)) => {
            let patch = call.read().await?;
            json(&call.backend().update_app(peer, app, patch).await?)
        }
        (Method::DELETE, Route::App(app)) => {
            let query = call.query()?;
            query.flag("force")?;
            let volumes = query.all("volume").filter(|id| !id.is_empty());
            let volumes = volumes.map(str::to_owned).collect();
            call.backend().delete_app(peer, app, volumes).await?;
            let mut answer = done()?;
            *answer.status_mut() = StatusCode::ACCEPTED;
            Ok(answer)
        }
        _ => misrouted(),
    }
}

async fn ips<B: Backend>(mut call: Call<B>, route: Route) -> Outcome {
    let peer = call.peer.clone();
    match (call.head.method.clone(), route) {
        (Method::GET, Route::Ips(app)) => {
            json(&IpPage { ips: call.backend().list_ips(peer, app).await? })
        }
        (Method::POST, Route::Ips(app)) => {
            let input: AssignIp = call.read().await?;
            if !input.org_slug.is_empty() {
                access::check_org(&peer, &input.org_slug)?;
            }
            json(&call.backend().assign_ip(peer, app, input).await?)
        }
        (Method::DELETE, Route::Ip(app, ip)) => {
            call.backend().release_ip(peer, app, ip).await?;
            done()
        }
        _ => misrouted(),
    }
}

async fn facts<B: Backend>(call: Call<B>, route: Route) -> Outcome {
    let peer = call.peer.clone();
    match route {
        Route::Images(app) => {
            let reference = call.query()?.required("ref")?;
            json(&call.backend().resolve_image(peer, app, reference).await?)
        }
        Route::Description => Ok(answer::json_text(openapi::document())),
        Route::Regions => json(&call.backend().list_regions(peer).await?),
        Route::Organizations => {
            let mut organizations = call.backend().list_organizations(peer.clone()).await?;
            access::cut_organizations(&peer, &mut organizations);
            json(&OrganizationPage { organizations })
        }
        Route::Organization(slug) => {
            let organization = call.backend().get_organization(peer, slug).await?;
            json(&OrganizationAnswer { organization })
        }
        Route::Info => {
            let mut info = call.backend().info(peer.clone()).await?;
            access::cut_info(&peer, &mut info);
            json(&info)
        }
        _ => misrouted(),
    }
}

async fn releases<B: Backend>(mut call: Call<B>, route: Route) -> Outcome {
    let peer = call.peer.clone();
    match route {
        Route::Releases => {
            let input: CreateRelease = call.read().await?;
            access::check_app(call.backend(), &peer, &input.app_name).await?;
            let release = call.backend().create_release(peer, input).await?;
            json_with(StatusCode::CREATED, &ReleaseAnswer { release })
        }
        Route::Release(id) => {
            let input = call.read().await?;
            json(&call.backend().update_release(peer, id, input).await?)
        }
        Route::AppReleases(app) => {
            let limit = call.query()?.number("limit")?.unwrap_or(RELEASES_LEN_DEFAULT);
            let limit = limit.clamp(1, RELEASES_LEN_MAX) as usize;
            let releases = call.backend().list_releases(peer, app, limit).await?;
            json(&ReleasePage { releases })
        }
        Route::CurrentRelease(app) => json(&call.backend().current_release(peer, app).await?),
        _ => misrouted(),
    }
}

async fn tokens<B: Backend>(mut call: Call<B>, route: Route) -> Outcome {
    let peer = call.peer.clone();
    match (call.head.method.clone(), route) {
        (Method::GET, Route::Keys) => json(&call.backend().list_keys(peer).await?),
        (Method::POST, Route::Keys) => {
            let input = call.read().await?;
            json(&call.backend().rotate_keys(peer, input).await?)
        }
        (Method::GET, Route::Tokens) => {
            json(&TokenPage { tokens: call.backend().list_tokens(peer).await? })
        }
        (Method::POST, Route::Tokens) => {
            let input = call.read().await?;
            json_with(StatusCode::CREATED, &call.backend().create_token(peer, input).await?)
        }
        (Method::DELETE, Route::Token(token)) => {
            call.backend().revoke_token(peer, token).await?;
            done()
        }
        _ => misrouted(),
    }
}

async fn logs<B: Backend>(call: Call<B>, app: String) -> Outcome {
    let query = call.query()?;
    let hold = query.number("hold_ms")?.map_or(LOG_HOLD_DEFAULT, Duration::from_millis);
    let log_query = LogQuery {
        next_token: query.owned("next_token").unwrap_or_default(),
        instance: query.owned("instance"),
        region: query.owned("region"),
        hold: hold.min(LOG_HOLD_MAX),
    };
    let next_token = log_query.next_token.clone();
    let mut phase = call.session.phase.clone();
    tokio::select! {
        page = call.backend().read_logs(call.peer.clone(), app, log_query) => json(&page?),
        // The client reads on with the next server.
        () = reached(&mut phase, Phase::Draining) => {
            json(&LogPage { data: Vec::new(), meta: LogPageMeta { next_token } })
        }
    }
}
