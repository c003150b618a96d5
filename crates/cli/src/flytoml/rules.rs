//! `[[perch.allow]]` and `first_byte`: what cannot be meant (extensions of Perch, so these rules are ours).

use perch_core::policy::{self, Verdict, Who};

use super::check::one_of;
use super::config::{Allow, Config, Meant, Port, Service};
use super::section::Notes;

/// The server's limits.
const RULES_MAX: usize = 100;
const ENTRIES_MAX: usize = 100;

pub(crate) fn check(config: &Config, notes: &Notes<'_>) {
    for (index, service) in config.services.iter().enumerate() {
        check_first_byte(service, &format!("services[{index}].first_byte"), notes);
    }
    if RULES_MAX < config.allow.len() {
        let remedy = Some("put several callers into the `from` of one rule".to_owned());
        notes.invalid("perch.allow", format!("has more than {RULES_MAX} rules"), remedy);
    }
    for (index, rule) in config.allow.iter().enumerate() {
        check_rule(config, rule, &format!("perch.allow[{index}]"), notes);
    }
}

fn check_first_byte(service: &Service, path: &str, notes: &Notes<'_>) {
    let is_raw = service.ports.iter().all(|port| port.handlers.is_empty());
    if service.first_byte && (!is_raw || service.protocol.as_deref() == Some("udp")) {
        let text =
            "is for raw TCP: requests and datagrams wake nobody before they have come anyway";
        notes.invalid(path, text, Some("remove it".to_owned()));
    }
}

fn check_rule(config: &Config, rule: &Allow, path: &str, notes: &Notes<'_>) {
    check_service(config, rule, path, notes);
    for (key, list) in [("from", &rule.from), ("methods", &rule.methods), ("paths", &rule.paths)] {
        if ENTRIES_MAX < list.len() {
            let remedy = Some("write another rule for the others".to_owned());
            let text = format!("has more than {ENTRIES_MAX} entries");
            notes.invalid(&format!("{path}.{key}"), text, remedy);
        }
    }
    for error in rule.from.iter().filter_map(|who| who.parse::<Who>().err()) {
        let remedy = Some("write from = [\"app:web\"]".to_owned());
        notes.invalid(&format!("{path}.from"), error.to_string(), remedy);
    }
    for method in rule.methods.iter().filter(|method| !policy::is_method(method)) {
        let remedy = Some(format!("write methods = [\"{}\"]", method.trim().to_uppercase()));
        notes.invalid(&format!("{path}.methods"), format!("'{method}' is no method"), remedy);
    }
    for prefix in rule.paths.iter().filter(|prefix| !policy::is_path(prefix)) {
        let remedy = Some("write it from its / on, without .. // ? # or needless %".to_owned());
        notes.invalid(&format!("{path}.paths"), format!("'{prefix}' is no path"), remedy);
    }
    if let Some(then) = &rule.then
        && then.parse::<Verdict>().is_err()
    {
        let words = Verdict::ALL.map(Verdict::as_str);
        let text = format!("'{then}' is not what a rule can do");
        notes.invalid(&format!("{path}.then"), text, one_of("then", &words));
    }
}

/// The service must be there, and have requests if the rule looks at them.
fn check_service(config: &Config, rule: &Allow, path: &str, notes: &Notes<'_>) {
    let by_port = |number: i64| {
        let mut services = config.services.iter();
        services.find(|service| service.ports.iter().any(|port| port.has(number)))
    };
    let http = config.http_service.is_some();
    let (is_there, has_requests) = match rule.service {
        None => {
            let any = http || !config.services.is_empty();
            (any, http || config.services.iter().any(serves_http))
        }
        Some(Meant::Http) => (http, http),
        Some(Meant::Port(80 | 443)) if http => (true, true),
        Some(Meant::Port(number)) => {
            let service = by_port(number);
            (service.is_some(), service.is_some_and(serves_http))
        }
    };
    let wants_requests = !rule.methods.is_empty() || !rule.paths.is_empty();
    if !is_there {
        let text = match rule.service {
            None => "the file has no service that a rule could be about".to_owned(),
            Some(Meant::Http) => "the file has no http_service".to_owned(),
            Some(Meant::Port(number)) => format!("no service has the port {number}"),
        };
        let remedy = "write service = \"http_service\", or a port of one of the services";
        notes.invalid(&format!("{path}.service"), text, Some(remedy.to_owned()));
    } else if !has_requests && wants_requests {
        let key = if rule.paths.is_empty() { "methods" } else { "paths" };
        let text = "the rule fits nothing: the service has no http handler, so its callers send no requests";
        notes.invalid(&format!("{path}.{key}"), text, Some(format!("remove {key}")));
    }
}

fn serves_http(service: &Service) -> bool {
    let is_http = |port: &Port| port.handlers.iter().any(|handler| handler == "http");
    service.ports.iter().any(is_http)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::flytoml::{Loaded, parse};

    const HTTP: &str = "app = \"a\"\n[http_service]\ninternal_port = 80\n";
    const RAW: &str = "[[services]]\ninternal_port = 5432\n[[services.ports]]\nport = 5432\n";

    fn load(text: &str) -> Loaded {
        parse(Path::new("fly.toml"), text).expect("it is TOML")
    }

    /// The rule stands in line 9.
    fn check_refused(rule: &str, line: &str, words: &[&str]) {
        let loaded = load(&format!("{HTTP}{RAW}[[perch.allow]]\n{rule}\n"));
        let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
        assert!(loaded.has_errors() && loaded.cannot_run(), "{rule}: {problems:?}");
        let all = problems.join("\n");
        assert!(words.iter().all(|word| all.contains(word)), "{rule}: {all}");
        assert!(all.contains(line), "{rule}: {all} does not say {line}");
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_an_error_with_line_key_and_remedy() {
        check_refused("from = [\"web\"]", "9", &["perch.allow[0].from", "app:NAME", "app:web"]);
        check_refused("then = \"maybe\"", "9", &["perch.allow[0].then", "serve-if-awake"]);
        check_refused("methods = [\"get\"]", "9", &["methods", "\"GET\""]);
        check_refused("paths = [\"/a/../b\"]", "9", &["paths", "without .."]);
        check_refused("service = 81", "9", &["service", "no service has the port 81"]);
        check_refused("service = 5432\npaths = [\"/\"]", "10", &["no http handler", "remove"]);
        check_refused("service = \"web\"", "9", &["service", "http_service"]);
    }

    #[test]
    fn first_byte_is_for_raw_tcp() {
        let http = RAW.replace("port = 5432\n", "port = 5432\nhandlers = [\"http\"]\n");
        let with =
            |text: &str| text.replacen("internal_port", "first_byte = true\ninternal_port", 1);
        assert!(load(&format!("app = \"a\"\n{}", with(&http))).has_errors());
        assert!(!load(&format!("app = \"a\"\n{}", with(RAW))).has_errors());
    }

    #[test]
    fn rules_reach_the_services_that_they_are_about_and_are_shown_as_written() {
        let rules = "[[perch.allow]]\nservice = 5432\nfrom = [\"app:web\"]\n\
                     [[perch.allow]]\nservice = \"http_service\"\nfrom = [\"host\"]\nthen = \"serve-if-awake\"\n\
                     [[perch.allow]]\npaths = [\"/x\"]\nthen = \"refuse\"\n";
        let loaded = load(&format!("{HTTP}{RAW}{rules}"));
        assert!(!loaded.has_errors() && loaded.unknown.is_empty(), "{:?}", loaded.problems);
        let machine = loaded.config.machine_config("app").expect("it converts");
        let services = machine["services"].as_array().expect("a list");
        assert_eq!(
            services[0]["allow"].to_string(),
            r#"[{"from":["host"],"then":"serve-if-awake"},{"paths":["/x"],"then":"refuse"}]"#
        );
        assert_eq!(
            services[1]["allow"].to_string(),
            r#"[{"from":["app:web"],"then":"wake"},{"paths":["/x"],"then":"refuse"}]"#
        );
        let shown = crate::flytoml::to_toml(&loaded.config);
        let again = load(&shown);
        assert_eq!(again.config.allow, loaded.config.allow, "{shown}");
    }
}
