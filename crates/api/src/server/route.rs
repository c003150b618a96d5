//! Paths: what a request is about, before its method is looked at.

use std::net::IpAddr;

use http::Method;

use super::query::decode;
use crate::wire::ApiError;

// Longer than every valid name; keeps nonsense out of logs.
const NAME_BYTES_MAX: usize = 128;
// Fly's limit for keys is not documented; ours keeps a metadata map readable.
const KEY_BYTES_MAX: usize = 256;

/// Every path of the API, with a name in braces for each part that varies. A test sees to it that no
/// route is missing.
pub(super) const PATHS: &[&str] = &[
    "/v1/apps",
    "/v1/apps/{app}",
    "/v1/apps/{app}/ip_assignments",
    "/v1/apps/{app}/ip_assignments/{ip}",
    "/v1/apps/{app}/images",
    "/v1/apps/{app}/proxy",
    "/v1/apps/{app}/machines",
    "/v1/apps/{app}/machines/{id}",
    "/v1/apps/{app}/machines/{id}/start",
    "/v1/apps/{app}/machines/{id}/stop",
    "/v1/apps/{app}/machines/{id}/suspend",
    "/v1/apps/{app}/machines/{id}/restart",
    "/v1/apps/{app}/machines/{id}/signal",
    "/v1/apps/{app}/machines/{id}/wait",
    "/v1/apps/{app}/machines/{id}/cordon",
    "/v1/apps/{app}/machines/{id}/uncordon",
    "/v1/apps/{app}/machines/{id}/lease",
    "/v1/apps/{app}/machines/{id}/ps",
    "/v1/apps/{app}/machines/{id}/events",
    "/v1/apps/{app}/machines/{id}/exec",
    "/v1/apps/{app}/machines/{id}/metadata",
    "/v1/apps/{app}/machines/{id}/metadata/{key}",
    "/v1/apps/{app}/machines/{id}/busy",
    "/v1/apps/{app}/secrets",
    "/v1/apps/{app}/secrets/{name}",
    "/v1/apps/{app}/volumes",
    "/v1/apps/{app}/volumes/{volume}",
    "/v1/apps/{app}/volumes/{volume}/extend",
    "/v1/apps/{app}/volumes/{volume}/snapshots",
    "/v1/openapi.json",
    "/v1/platform/regions",
    "/api/v1/organizations",
    "/api/v1/organizations/{org}",
    "/api/v1/releases",
    "/api/v1/releases/{release}",
    "/api/v1/apps/{app}/releases",
    "/api/v1/apps/{app}/releases/current",
    "/api/v1/apps/{app}/logs",
    "/metrics",
    "/perch/v1/info",
    "/perch/v1/whoami",
    "/perch/v1/why/events",
    "/perch/v1/apps/{app}/dns",
    "/perch/v1/apps/{app}/why",
    "/perch/v1/apps/{app}/machines/{id}/console",
    "/perch/v1/organizations/{org}/dns",
    "/perch/v1/keys",
    "/perch/v1/tokens",
    "/perch/v1/tokens/{token}",
    "/v2/",
    "/v2/{app}/blobs/uploads/",
    "/v2/{app}/blobs/uploads/{upload}",
    "/v2/{app}/blobs/{digest}",
    "/v2/{app}/manifests/{reference}",
];

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Apps,
    App(String),
    Ips(String),
    Ip(String, IpAddr),
    Images(String),
    Proxy(String),
    Machines(String),
    Machine(String, String),
    MachinePart(String, String, Part),
    MetadataKey(String, String, String),
    Secrets(String),
    Secret(String, String),
    Volumes(String),
    Volume(String, String),
    ExtendVolume(String, String),
    Snapshots(String, String),
    Description,
    Regions,
    Organizations,
    Organization(String),
    Releases,
    Release(String),
    AppReleases(String),
    CurrentRelease(String),
    Logs(String),
    Info,
    Whoami,
    WhyEvents,
    Metrics,
    AppDns(String),
    AppWhy(String),
    Console(String, String),
    OrganizationDns(String),
    Keys,
    Tokens,
    Token(String),
    Registry,
    Uploads(String),
    Upload(String, String),
    Blob(String, String),
    Manifest(String, String),
}

/// The last part of a path below a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Start,
    Stop,
    Suspend,
    Restart,
    Signal,
    Wait,
    Cordon,
    Uncordon,
    Lease,
    Ps,
    Events,
    Exec,
    Metadata,
    Busy,
}

impl Route {
    /// Reads a path.
    ///
    /// # Errors
    /// 404 for a path that Fly's API does not have either, 501 for one that Perch lacks, 400 for a
    /// broken name.
    pub(super) fn parse(path: &str) -> Result<Self, ApiError> {
        let trimmed = path.trim_matches('/');
        let segments = trimmed.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["v1", rest @ ..] => v1(rest),
            ["api", "v1", rest @ ..] => api_v1(rest),
            ["v2"] => Ok(Some(Self::Registry)),
            ["v2", rest @ ..] => registry(rest),
            ["perch", "v1", "info"] => Ok(Some(Self::Info)),
            ["perch", "v1", "whoami"] => Ok(Some(Self::Whoami)),
            ["metrics"] => Ok(Some(Self::Metrics)),
            ["perch", "v1", "why", "events"] => Ok(Some(Self::WhyEvents)),
            ["perch", "v1", "apps", app, "why"] => Ok(Some(Self::AppWhy(name(app)?))),
            ["perch", "v1", "apps", app, "dns"] => Ok(Some(Self::AppDns(name(app)?))),
            ["perch", "v1", "apps", app, "machines", id, "console"] => {
                Ok(Some(Self::Console(name(app)?, name(id)?)))
            }
            ["perch", "v1", "organizations", org, "dns"] => {
                Ok(Some(Self::OrganizationDns(name(org)?)))
            }
            ["perch", "v1", "keys"] => Ok(Some(Self::Keys)),
            ["perch", "v1", "tokens"] => Ok(Some(Self::Tokens)),
            ["perch", "v1", "tokens", token] => Ok(Some(Self::Token(name(token)?))),
            _ => Ok(None),
        }?
        .ok_or_else(|| ApiError::not_found(format!("there is no {path} in the API")))
    }

    /// The methods that it has handlers for.
    pub(super) fn methods(&self) -> &'static str {
        match self {
            Self::Apps
            | Self::Ips(_)
            | Self::Machines(_)
            | Self::Secrets(_)
            | Self::Volumes(_)
            | Self::Snapshots(..)
            | Self::Keys
            | Self::Tokens => "GET, POST",
            Self::Volume(..) => "GET, PUT, DELETE",
            Self::ExtendVolume(..) => "PUT",
            Self::App(_) => "GET, PATCH, DELETE",
            Self::Ip(..) | Self::Token(_) => "DELETE",
            Self::Machine(..) | Self::Secret(..) => "GET, POST, DELETE",
            Self::MachinePart(_, _, part) => part.methods(),
            Self::MetadataKey(..) => "POST, DELETE",
            Self::Proxy(_) | Self::Console(..) | Self::Releases | Self::Uploads(_) => "POST",
            Self::Release(_) => "PATCH",
            Self::Upload(..) => "GET, PATCH, PUT, DELETE",
            Self::Blob(..) => "HEAD",
            Self::Manifest(..) => "GET, HEAD, PUT",
            Self::Images(_)
            | Self::Description
            | Self::Regions
            | Self::Organizations
            | Self::Organization(_)
            | Self::AppReleases(_)
            | Self::CurrentRelease(_)
            | Self::Logs(_)
            | Self::Info
            | Self::Whoami
            | Self::WhyEvents
            | Self::Metrics
            | Self::AppDns(_)
            | Self::AppWhy(_)
            | Self::OrganizationDns(_)
            | Self::Registry => "GET",
        }
    }

    /// Whether it understands this method.
    pub(super) fn allows(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|name| name == method.as_str())
    }

    /// What 405 says that is possible: what has GET has HEAD, too.
    pub(super) fn allow_header(&self) -> String {
        let methods = self.methods();
        if self.allows(&Method::HEAD) {
            return methods.to_owned();
        }
        methods.replace("GET", "GET, HEAD")
    }

    /// For the registry's routes: the distribution's word for "not there".
    pub(super) fn registry_word(&self) -> Option<&'static str> {
        match self {
            Self::Registry | Self::Blob(..) => Some("BLOB_UNKNOWN"),
            Self::Uploads(_) | Self::Upload(..) => Some("BLOB_UPLOAD_UNKNOWN"),
            Self::Manifest(..) => Some("MANIFEST_UNKNOWN"),
            _ => None,
        }
    }
}

impl Part {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "start" => Self::Start,
            "stop" => Self::Stop,
            "suspend" => Self::Suspend,
            "restart" => Self::Restart,
            "signal" => Self::Signal,
            "wait" => Self::Wait,
            "cordon" => Self::Cordon,
            "uncordon" => Self::Uncordon,
            "lease" => Self::Lease,
            "ps" => Self::Ps,
            "events" => Self::Events,
            "exec" => Self::Exec,
            "metadata" => Self::Metadata,
            "busy" => Self::Busy,
            _ => return None,
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Start
            | Self::Stop
            | Self::Suspend
            | Self::Restart
            | Self::Signal
            | Self::Exec
            | Self::Cordon
            | Self::Uncordon => "POST",
            Self::Wait | Self::Ps | Self::Events | Self::Metadata => "GET",
            Self::Lease => "GET, POST, DELETE",
            Self::Busy => "PUT, DELETE",
        }
    }
}

/// A path of [`PATHS`] with something in each varying part.
pub(super) fn example(path: &str) -> String {
    let address = path.replace("{ip}", "fdaa::2").replace("{digest}", "sha256:00");
    address.replace(['{', '}'], "")
}

type Parsed = Result<Option<Route>, ApiError>;

fn v1(parts: &[&str]) -> Parsed {
    Ok(Some(match parts {
        ["apps"] => Route::Apps,
        ["openapi.json"] => Route::Description,
        ["platform", "regions"] => Route::Regions,
        ["apps", app] => Route::App(name(app)?),
        ["apps", app, "ip_assignments"] => Route::Ips(name(app)?),
        ["apps", app, "ip_assignments", ip] => Route::Ip(name(app)?, address(ip)?),
        ["apps", app, "images"] => Route::Images(name(app)?),
        ["apps", app, "proxy"] => Route::Proxy(name(app)?),
        ["apps", app, "machines"] => Route::Machines(name(app)?),
        ["apps", app, "machines", id, rest @ ..] => return machine(name(app)?, name(id)?, rest),
        ["apps", app, "secrets"] => Route::Secrets(name(app)?),
        ["apps", app, "secrets", secret] => Route::Secret(name(app)?, name(secret)?),
        ["apps", app, "volumes"] => Route::Volumes(name(app)?),
        ["apps", app, "volumes", id] => Route::Volume(name(app)?, name(id)?),
        ["apps", app, "volumes", id, "extend"] => Route::ExtendVolume(name(app)?, name(id)?),
        ["apps", app, "volumes", id, "snapshots"] => Route::Snapshots(name(app)?, name(id)?),
        ["apps", _, what @ ("secretkeys" | "certificates"), ..]
        | ["platform", what @ "placements"] => return Err(missing(what)),
        _ => return Ok(None),
    }))
}

fn machine(app: String, id: String, rest: &[&str]) -> Parsed {
    Ok(Some(match rest {
        [] => Route::Machine(app, id),
        ["metadata", metadata_key] => Route::MetadataKey(app, id, key(metadata_key)?),
        [what @ ("versions" | "memory")] => {
            return Err(missing(what));
        }
        [part] => return Ok(Part::parse(part).map(|part| Route::MachinePart(app, id, part))),
        _ => return Ok(None),
    }))
}

fn api_v1(parts: &[&str]) -> Parsed {
    Ok(Some(match parts {
        ["organizations"] => Route::Organizations,
        ["organizations", slug] => Route::Organization(name(slug)?),
        ["releases"] => Route::Releases,
        ["releases", id] => Route::Release(name(id)?),
        ["apps", app, "releases"] => Route::AppReleases(name(app)?),
        ["apps", app, "releases", "current"] => Route::CurrentRelease(name(app)?),
        ["apps", app, "logs"] => Route::Logs(name(app)?),
        [what @ "builds", ..] => return Err(missing(what)),
        _ => return Ok(None),
    }))
}

/// A repository may have several parts; what follows it is read from the end.
fn registry(parts: &[&str]) -> Parsed {
    let route: fn(String, String) -> Route = match parts {
        [repository @ .., "blobs", "uploads"] => {
            return Ok(Some(Route::Uploads(repository_name(repository)?)));
        }
        [_, .., "blobs", "uploads", _] => Route::Upload,
        [_, .., "blobs", _] => Route::Blob,
        [_, .., "manifests", _] => Route::Manifest,
        _ => return Ok(None),
    };
    let last = parts[parts.len() - 1];
    let length =
        if parts[parts.len() - 2] == "uploads" { parts.len() - 3 } else { parts.len() - 2 };
    Ok(Some(route(repository_name(&parts[..length])?, reference(last)?)))
}

fn missing(what: &str) -> ApiError {
    ApiError::not_implemented(format!("this version of Perch has no {what}"))
}

/// Lets through what could be a name; whether it is one the backend knows.
fn name(text: &str) -> Result<String, ApiError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let dots_only = text.bytes().all(|byte| byte == b'.');
    if NAME_BYTES_MAX < text.len() || dots_only || !text.bytes().all(good) {
        let start: String = text.chars().take(40).collect();
        return Err(ApiError::bad_request(format!("{start:?} cannot be a name")));
    }
    Ok(text.to_owned())
}

fn repository_name(parts: &[&str]) -> Result<String, ApiError> {
    let parts = parts.iter().map(|part| name(part)).collect::<Result<Vec<_>, _>>()?.join("/");
    if parts.is_empty() || NAME_BYTES_MAX < parts.len() {
        return Err(ApiError::bad_request("the path names no repository").with_word("NAME_INVALID"));
    }
    Ok(parts)
}

/// A digest, or a name.
fn reference(text: &str) -> Result<String, ApiError> {
    match text.split_once(':') {
        Some((algorithm, value)) => Ok(format!("{}:{}", name(algorithm)?, name(value)?)),
        None => name(text),
    }
}

fn key(text: &str) -> Result<String, ApiError> {
    if text.is_empty() || KEY_BYTES_MAX < text.len() || text.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!(
            "a metadata key has 1 to {KEY_BYTES_MAX} printable bytes"
        )));
    }
    Ok(text.to_owned())
}

fn address(text: &str) -> Result<IpAddr, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request(format!("{text:?} is not an IP address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(path: &str, code: u16) {
        assert_eq!(Route::parse(path).expect_err(path).code, code, "{path}");
    }

    #[test]
    fn paths_that_are_not_there_or_not_ours_are_told_apart() {
        check_refused("/", 404);
        check_refused("/graphql", 404);
        check_refused("/v1/apps/a/b", 404);
        check_refused("/v1/apps/a/machines/m/dance", 404);
        check_refused("/v1/apps/a/volumes/v/steps", 404);
        check_refused("/v1/apps/a/certificates", 501);
        check_refused("/v1/apps/a/machines/m/versions", 501);
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for path in [
            "/v1/apps/%2e%2e",
            "/v1/apps/a%2Fb",
            "/v1/apps/a%00",
            "/v1/apps//machines",
            "/v1/apps/%zz",
        ] {
            check_refused(path, 400);
        }
        check_refused(&format!("/v1/apps/{}", "a".repeat(129)), 400);
        check_refused("/v1/apps/a/ip_assignments/nonsense", 400);
        check_refused("/v2/a/../b/blobs/sha256:00", 400);
    }

    /// Names of an enum's variants, as this file has them.
    fn variants(of: &str) -> Vec<&'static str> {
        let source = include_str!("route.rs");
        let (_, body) = source.split_once(&format!("enum {of} {{\n")).expect("it is here");
        let (body, _) = body.split_once("\n}").expect("it ends");
        body.lines().map(|line| line.trim().split(['(', ',']).next().unwrap_or_default()).collect()
    }

    #[test]
    fn every_route_has_its_path_in_the_list() {
        let routes = PATHS.iter().map(|path| Route::parse(&example(path)).expect(path));
        let seen: Vec<String> = routes.map(|route| format!("{route:?}")).collect();
        for route in variants("Route") {
            assert!(
                seen.iter().any(|text| text.split('(').next() == Some(route)),
                "no path for {route}"
            );
        }
        for part in variants("Part") {
            assert!(
                seen.iter().any(|text| text.ends_with(&format!(" {part})"))),
                "no path for {part}"
            );
        }
    }

    #[test]
    fn addresses_may_be_escaped_or_not() {
        let wanted = Route::Ip("a".to_owned(), "fdaa::2".parse().expect("address"));
        assert_eq!(Route::parse("/v1/apps/a/ip_assignments/fdaa::2"), Ok(wanted.clone()));
        assert_eq!(Route::parse("/v1/apps/a/ip_assignments/fdaa%3A%3A2"), Ok(wanted));
    }

    #[test]
    fn repositories_may_have_several_parts() {
        let blob = Route::Blob("a/b".to_owned(), "sha256:00".to_owned());
        assert_eq!(Route::parse("/v2/a/b/blobs/sha256:00"), Ok(blob));
        let upload = Route::Upload("a".to_owned(), "u-1".to_owned());
        assert_eq!(Route::parse("/v2/a/blobs/uploads/u-1"), Ok(upload));
        assert_eq!(Route::parse("/v2/a/blobs/uploads/"), Ok(Route::Uploads("a".to_owned())));
        assert_eq!(Route::parse("/v2/"), Ok(Route::Registry));
    }
}
