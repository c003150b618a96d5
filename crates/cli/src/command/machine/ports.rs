//! `--port`: what services become of `PORT[:MACHINE_PORT][/PROTOCOL[:HANDLER]...]`.

use crate::failure::{Failure, Outcome};
use serde_json::{Map, Value, json};

/// One value of the flag.
#[derive(Debug, PartialEq, Eq)]
struct Published {
    first: i64,
    /// Only of a range.
    last: Option<i64>,
    internal: i64,
    protocol: String,
    handlers: Vec<String>,
}

/// The services with the given ports added, changed or taken away; one without a port is none.
pub(super) fn apply(services: &mut Vec<Value>, given: &[String]) -> Outcome {
    for text in given {
        let published = Published::parse(text)?;
        put(service_of(services, &published), &published);
    }
    services.retain(|service| service["ports"].as_array().is_some_and(|ports| !ports.is_empty()));
    Ok(())
}

fn service_of<'a>(services: &'a mut Vec<Value>, published: &Published) -> &'a mut Value {
    let is_it = |service: &Value| {
        let protocol = service["protocol"].as_str().filter(|it| !it.is_empty()).unwrap_or("tcp");
        service["internal_port"] == published.internal && protocol == published.protocol
    };
    let at = services.iter().position(is_it).unwrap_or_else(|| {
        let (protocol, port) = (&published.protocol, published.internal);
        services.push(json!({"protocol": protocol, "internal_port": port, "ports": []}));
        services.len() - 1
    });
    &mut services[at]
}

fn put(service: &mut Value, published: &Published) {
    if published.handlers == ["-"] {
        service["ports"] = json!([]);
        return;
    }
    let entry = published.entry();
    let Some(ports) = service["ports"].as_array_mut() else {
        service["ports"] = json!([entry]);
        return;
    };
    let key = if published.last.is_some() { "start_port" } else { "port" };
    let is_it = |port: &&mut Value| port[key] == published.first;
    match ports.iter_mut().find(is_it).and_then(Value::as_object_mut) {
        // Its other options stay.
        Some(port) => port.extend(entry),
        None => ports.push(Value::Object(entry)),
    }
}

impl Published {
    fn parse(text: &str) -> Outcome<Self> {
        let (ports, rest) = text.split_once('/').unwrap_or((text, "tcp"));
        if rest.contains('/') {
            return Err(wrong("port must be at most two elements (ports/protocol:handler)"));
        }
        let mut words = rest.split(':').map(str::to_owned);
        let protocol = words.next().unwrap_or_default();
        let handlers = words.collect();
        let (first, last, internal) = match ports.split(':').collect::<Vec<_>>().as_slice() {
            [port] => (number(port, "port")?, None, None),
            [outside, inside] => {
                let inside = number(inside, "machine (internal) port")?;
                let (first, last) = outside_ports(outside)?;
                (first, last, Some(inside))
            }
            _ => {
                let message = "port definition must be at most 2 elements (external:internal)";
                return Err(wrong(message));
            }
        };
        // As flyctl: no port of the Machine's, or 0, is the same as outside.
        let internal = internal.filter(|port| *port != 0).unwrap_or(first);
        Ok(Self { first, last, internal, protocol, handlers })
    }

    fn entry(&self) -> Map<String, Value> {
        let mut entry = Map::new();
        match self.last {
            None => drop(entry.insert("port".to_owned(), self.first.into())),
            Some(last) => {
                entry.insert("start_port".to_owned(), self.first.into());
                entry.insert("end_port".to_owned(), last.into());
            }
        }
        entry.insert("handlers".to_owned(), self.handlers.clone().into());
        entry
    }
}

fn outside_ports(text: &str) -> Outcome<(i64, Option<i64>)> {
    match text.split('-').collect::<Vec<_>>().as_slice() {
        [port] => Ok((number(port, "external port")?, None)),
        [start, end] => Ok((
            number(start, "start port for port range")?,
            Some(number(end, "end port for port range")?),
        )),
        _ => Err(wrong("external port must be at most 2 elements (port, or range start-end)")),
    }
}

fn number(text: &str, what: &str) -> Outcome<i64> {
    text.parse().map_err(|_| wrong(format!("invalid {what}: {text:?} is no number")))
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(message.into())
        .hint("For example `--port 443:8080/tcp:http:tls` or `--port 80/tcp:-`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(services: Value, given: &[&str]) -> Outcome<Value> {
        let Value::Array(mut services) = services else { panic!("a list is needed") };
        let given: Vec<_> = given.iter().map(|text| (*text).to_owned()).collect();
        apply(&mut services, &given)?;
        Ok(Value::Array(services))
    }

    #[test]
    fn what_is_no_port_is_refused_by_its_part() {
        for (text, part) in [
            ("http", "invalid port: \"http\""),
            ("80:x", "invalid machine (internal) port"),
            ("x:80", "invalid external port"),
            ("x-9:80", "invalid start port"),
            ("8-x:80", "invalid end port"),
            ("1-2-3:80", "external port must be at most 2 elements"),
            ("1:2:3", "port definition must be at most 2 elements"),
            ("80/tcp/http", "port must be at most two elements"),
            ("", "invalid port: \"\""),
        ] {
            let message = applied(json!([]), &[text]).expect_err(text).message();
            assert!(message.starts_with(part), "{text}: {message}");
        }
    }

    #[test]
    fn ports_make_services_and_those_with_one_port_of_the_machine_are_one() {
        assert_eq!(
            applied(
                json!([]),
                &["80:8080/tcp:http", "443:8080/tcp:http:tls", "53/udp", "7000-7010:9"]
            )
            .expect("ports"),
            json!([
                {"protocol": "tcp", "internal_port": 8080, "ports": [
                    {"port": 80, "handlers": ["http"]}, {"port": 443, "handlers": ["http", "tls"]}]},
                {"protocol": "udp", "internal_port": 53, "ports": [{"port": 53, "handlers": []}]},
                {"protocol": "tcp", "internal_port": 9, "ports": [
                    {"start_port": 7000, "end_port": 7010, "handlers": []}]},
            ])
        );
    }

    #[test]
    fn a_port_that_is_there_is_changed_and_a_dash_takes_its_service_away() {
        let old = json!([
            {"protocol": "tcp", "internal_port": 8080, "autostop": true,
                "ports": [{"port": 80, "handlers": [], "force_https": true}]},
            {"internal_port": 9, "ports": [{"port": 9}]},
        ]);
        assert_eq!(
            applied(old, &["80:8080/tcp:http", "9/tcp:-"]).expect("ports"),
            json!([{"protocol": "tcp", "internal_port": 8080, "autostop": true,
                "ports": [{"port": 80, "handlers": ["http"], "force_https": true}]}])
        );
    }
}
