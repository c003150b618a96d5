//! Health checks of a config (MA-70..78): those of services, and those at the top level, which have names.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{BadConfig, bad};
use super::{ConfigView, GoDuration, MachineConfig, null_default, schema};

/// Tries of the checks of a Machine cost it work all day.
const CHECKS_MAX: usize = 50;
const HEADERS_MAX: usize = 32;
/// Of a path, or a header's value.
const TEXT_BYTES_MAX: usize = 2048;
/// Shorter ones are raised and longer ones lowered to these (MA-75).
const SERVICE_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Of those at the top level, whose interval flyctl lets be longer.
const TOP_BOUNDS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3600));
/// Where nothing is said (MA-74).
const TCP_TIMES: [Duration; 3] =
    [Duration::from_secs(15), Duration::from_secs(2), Duration::from_secs(1)];
const HTTP_TIMES: [Duration; 3] =
    [Duration::from_secs(10), Duration::from_secs(2), Duration::from_secs(5)];

/// A health check, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Check {
    /// `tcp` connects; `http` wants an answer with a status of 200 to 299.
    #[serde(rename = "type")]
    #[schemars(required, extend("enum" = ["tcp", "http"]))]
    pub kind: String,
    /// Port in the Machine; of a service's check its `internal_port`, if absent.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// From one try to the next; absent = 15 s for `tcp`, 10 s for `http`.
    pub interval: Option<GoDuration>,
    /// A try that takes longer has failed; absent = 2 s.
    pub timeout: Option<GoDuration>,
    /// Failures so soon after a start or resume do not count; absent = 1 s for `tcp`, 5 s for `http`.
    pub grace_period: Option<GoDuration>,
    /// `http` only; absent = GET.
    #[schemars(regex(pattern = "^[A-Za-z]{0,16}$"))]
    pub method: Option<String>,
    /// `http` only; absent = `/`.
    #[schemars(regex(pattern = "^(/[!-~]{0,2000})?$"))]
    pub path: Option<String>,
    /// `http`; there are no checks by `https`.
    #[schemars(extend("enum" = ["http", "", null]))]
    pub protocol: Option<String>,
    /// `http` only.
    #[serde(deserialize_with = "null_default")]
    #[schemars(length(max = 32), transform = schema::nullable)]
    pub headers: Vec<CheckHeader>,
}

/// A header of a check's request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckHeader {
    /// Its name.
    #[schemars(regex(pattern = "^[A-Za-z0-9-]{1,100}$"))]
    pub name: String,
    /// Each is sent as a header of its own.
    #[serde(default, deserialize_with = "null_default")]
    #[schemars(
        length(max = 8),
        inner(regex(pattern = "^[ -~]{0,2000}$")),
        transform = schema::nullable
    )]
    pub values: Vec<String>,
}

/// A health check of a Machine, with everything decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Unique within the Machine; of a service's check one like `servicecheck-00-http-8080` (MA-76).
    pub name: String,
    /// The index of its service in the config: then it keeps callers away.
    pub service: Option<usize>,
    /// Port in the Machine.
    pub port: u16,
    /// What is asked; `None`: nothing, a connection is enough.
    pub http: Option<HttpCheck>,
    /// From one try to the next.
    pub interval: Duration,
    /// A try that takes longer has failed.
    pub timeout: Duration,
    /// Failures so soon after a start or resume do not count.
    pub grace: Duration,
}

/// The request of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// In upper case.
    pub method: String,
    /// Begins with a slash.
    pub path: String,
    /// Name and value.
    pub headers: Vec<(String, String)>,
}

impl Check {
    fn read(value: &Value) -> Result<Self, String> {
        let check = Self::deserialize(value).map_err(|error| error.to_string())?;
        check.refuse()?;
        Ok(check)
    }

    /// What cannot be done, with what to write instead.
    fn refuse(&self) -> Result<(), String> {
        if !matches!(self.kind.as_str(), "tcp" | "http") {
            return Err(format!("type {:?} is neither \"tcp\" nor \"http\"", self.kind));
        }
        if self.port == Some(0) {
            return Err("port 0 is no port; use 1 to 65535".to_owned());
        }
        match self.protocol.as_deref() {
            None | Some("" | "http") => {}
            Some("https") => {
                return Err(
                    "protocol \"https\" is not there; use \"http\", or type \"tcp\"".to_owned()
                );
            }
            Some(other) => return Err(format!("protocol {other:?} is not \"http\"")),
        }
        let method = self.method.as_deref().unwrap_or_default();
        if 16 < method.len() || !method.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(format!("method {method:?} is none; use letters as in \"GET\""));
        }
        let path = self.path.as_deref().unwrap_or_default();
        if !path.is_empty() && !path.starts_with('/') {
            return Err(format!(
                "path {path:?} must begin with a slash: write {:?}",
                format!("/{path}")
            ));
        }
        if TEXT_BYTES_MAX < path.len() || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            let limit = format!("at most {TEXT_BYTES_MAX} printable letters without blanks");
            return Err(format!("path must have {limit}; write others as %XX"));
        }
        self.refuse_headers()
    }

    fn refuse_headers(&self) -> Result<(), String> {
        if HEADERS_MAX < self.headers.len() {
            return Err(format!("there are more than {HEADERS_MAX} headers"));
        }
        for CheckHeader { name, values } in &self.headers {
            let is_token =
                |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte);
            if name.is_empty() || TEXT_BYTES_MAX < name.len() || !name.bytes().all(is_token) {
                return Err(format!("{name:?} is no name of a header"));
            }
            let is_plain = |value: &String| {
                value.len() <= TEXT_BYTES_MAX && !value.bytes().any(|byte| byte.is_ascii_control())
            };
            if !values.iter().all(is_plain) {
                return Err(format!("header {name} has a value that is too long or has line ends"));
            }
        }
        Ok(())
    }

    fn decided(self, name: String, service: Option<usize>, port: u16) -> HealthCheck {
        let is_http = self.kind == "http";
        let defaults = if is_http { HTTP_TIMES } else { TCP_TIMES };
        let [interval, timeout, grace] = defaults;
        let (min, max) = if service.is_some() { SERVICE_BOUNDS } else { TOP_BOUNDS };
        let length = |given: Option<GoDuration>, default| given.map_or(default, |given| given.0);
        let http = is_http.then(|| HttpCheck {
            method: given(self.method).unwrap_or_else(|| "GET".to_owned()).to_ascii_uppercase(),
            path: given(self.path).unwrap_or_else(|| "/".to_owned()),
            headers: self
                .headers
                .into_iter()
                .flat_map(|it| it.values.into_iter().map(move |value| (it.name.clone(), value)))
                .collect(),
        });
        let grace = length(self.grace_period, grace);
        HealthCheck {
            name,
            service,
            port: self.port.unwrap_or(port),
            http,
            interval: length(self.interval, interval).clamp(min, max),
            timeout: length(self.timeout, timeout).clamp(SERVICE_BOUNDS.0, SERVICE_BOUNDS.1),
            grace: if grace.is_zero() { grace } else { grace.clamp(SERVICE_BOUNDS.0, max) },
        }
    }
}

fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

impl ConfigView {
    /// The checks of services in their order, then those at the top level by name. What earlier servers
    /// stored and cannot be done is left out.
    pub fn health_checks(&self) -> Vec<HealthCheck> {
        let services = self.services.iter().enumerate();
        let all =
            services.flat_map(|(index, it)| it.checks.iter().map(move |check| (index, it, check)));
        let all = all.enumerate().filter_map(|(number, (index, service, check))| {
            let check = Check::read(check).ok()?;
            let port = check.port.unwrap_or(service.internal_port);
            let name = format!("servicecheck-{number:02}-{}-{port}", check.kind);
            Some(check.decided(name, Some(index), port))
        });
        let top = self.checks.iter().filter_map(|(name, check)| {
            let check = Check::read(check).ok()?;
            let port = check.port?;
            Some(check.decided(name.clone(), None, port))
        });
        all.chain(top).take(CHECKS_MAX).collect()
    }
}

impl MachineConfig {
    /// Refuses health checks that cannot be done; apart from the rest as the files are: of configs that were
    /// stored before somebody looked they are left out.
    ///
    /// # Errors
    /// The first that cannot be, with its key.
    pub fn check_health_checks(&self) -> Result<(), BadConfig> {
        let view = self.view();
        let mut count = 0;
        for (index, service) in view.services.iter().enumerate() {
            for (number, check) in service.checks.iter().enumerate() {
                let refuse = |why| bad(format!("services[{index}].checks[{number}]"), why);
                Check::read(check).map_err(refuse)?;
                count += 1;
            }
        }
        for (name, check) in &view.checks {
            let refuse = |why: String| bad(format!("checks.{name}"), why);
            let read = Check::read(check).map_err(refuse)?;
            if name.is_empty() || TEXT_BYTES_MAX < name.len() || name.chars().any(char::is_control)
            {
                return Err(bad("checks", format!("{name:?} is no name for a check")));
            }
            if read.port.is_none() {
                return Err(refuse("needs a port; write one from 1 to 65535".to_owned()));
            }
            count += 1;
        }
        match CHECKS_MAX < count {
            true => Err(bad("checks", format!("a Machine has at most {CHECKS_MAX} of all kinds"))),
            false => Ok(()),
        }
    }
}

/// [`Check`] at the top level, for the API's description.
pub(super) type Named = BTreeMap<String, TopCheck>;

/// A health check at the top level: it is shown, and deploys wait for it; it keeps nobody away.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct TopCheck {
    /// Port in the Machine.
    #[schemars(range(min = 1))]
    port: u16,
    #[serde(flatten)]
    check: Check,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(services: Value, checks: Value) -> MachineConfig {
        let text = json!({"image": "a", "services": services, "checks": checks}).to_string();
        serde_json::from_str(&text).expect("it is a config")
    }

    #[test]
    fn names_ports_and_times_are_as_on_fly() {
        let second = |count| Duration::from_secs(count);
        let services = json!([
            {"internal_port": 8080, "checks": [
                {"type": "tcp"},
                {"type": "http", "method": "post", "path": "/up", "interval": "10ms", "timeout": "2m",
                 "grace_period": "0s", "headers": [{"name": "A", "values": ["1", "2"]}]},
            ]},
            {"internal_port": 5432, "checks": [{"type": "http", "port": 81, "grace_period": "5ms"}]},
        ]);
        let checks = json!({"up": {"type": "tcp", "port": 9, "interval": "1m30s"}});
        let config = config(services, checks);
        config.check_health_checks().expect("all can be done");
        let all = config.view().health_checks();
        let names: Vec<_> = all.iter().map(|it| it.name.as_str()).collect();
        let wanted = [
            "servicecheck-00-tcp-8080",
            "servicecheck-01-http-8080",
            "servicecheck-02-http-81",
            "up",
        ];
        assert_eq!(names, wanted);
        let times: Vec<_> = all.iter().map(|it| [it.interval, it.timeout, it.grace]).collect();
        assert_eq!(times[0], TCP_TIMES);
        assert_eq!(times[1], [second(1), second(60), second(0)], "MA-75");
        assert_eq!(times[2], [second(10), second(2), second(1)]);
        assert_eq!(times[3], [second(90), second(2), second(1)]);
        let http = all[1].http.clone().expect("it is http");
        assert_eq!((http.method.as_str(), http.path.as_str()), ("POST", "/up"));
        assert_eq!(http.headers, [("A".into(), "1".into()), ("A".into(), "2".into())]);
        assert_eq!(
            all.iter().map(|it| it.service).collect::<Vec<_>>(),
            [Some(0), Some(0), Some(1), None]
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_its_key_and_left_out_of_old_configs() {
        for (check, hint) in [
            (json!({}), "neither"),
            (json!({"type": "script"}), "neither"),
            (json!({"type": "http", "protocol": "https"}), "not there"),
            (json!({"type": "http", "protocol": "ftp"}), "ftp"),
            (json!({"type": "http", "path": "health"}), "\"/health\""),
            (json!({"type": "http", "path": "/a b"}), "%XX"),
            (json!({"type": "http", "path": "/a\r\nX: y"}), "%XX"),
            (json!({"type": "http", "method": "GET /"}), "GET"),
            (json!({"type": "http", "headers": [{"name": "a b", "values": []}]}), "no name"),
            (json!({"type": "http", "headers": [{"name": "a", "values": ["x\n"]}]}), "line ends"),
            (json!({"type": "tcp", "interval": "soon"}), "soon"),
            (json!({"type": "tcp", "port": 0}), "port 0"),
            (json!({"type": "tcp", "port": 70_000}), "70000"),
            (json!("tcp"), "string"),
        ] {
            let own =
                config(json!([{"internal_port": 80, "checks": [check.clone()]}]), json!(null));
            let error = own.check_health_checks().expect_err("it is refused").to_string();
            assert!(error.contains("services[0].checks[0]") && error.contains(hint), "{error}");
            assert!(own.view().health_checks().is_empty(), "{check}");
            let top = config(json!([]), json!({"up": check}));
            let error = top.check_health_checks().expect_err("it is refused").to_string();
            assert!(error.contains("checks.up") && error.contains(hint), "{error}");
        }
        let portless = config(json!([]), json!({"up": {"type": "tcp"}}));
        let error = portless.check_health_checks().expect_err("no port").to_string();
        assert!(error.contains("checks.up") && error.contains("port"), "{error}");
    }

    #[test]
    fn there_are_not_too_many() {
        let checks: Vec<_> = (0..=CHECKS_MAX).map(|_| json!({"type": "tcp"})).collect();
        let many = config(json!([{"internal_port": 80, "checks": checks}]), json!(null));
        assert!(many.check_health_checks().is_err());
        assert_eq!(many.view().health_checks().len(), CHECKS_MAX);
    }
}
