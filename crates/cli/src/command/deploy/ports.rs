//! The ports of an app as its callers meet them: which one to show, and those at which nobody answers.

use crate::flytoml::{Config, Port, Service};

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Speech {
    Http,
    Raw,
    /// Datagrams.
    Udp,
}

/// The port by which an app is shown to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) number: u16,
    pub(super) speech: Speech,
}

/// What an app has to be called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It has no services.
    NoServices,
    /// It has services, and the proxy serves no port of theirs.
    NothingServed,
    At(Shown),
}

impl Speech {
    /// `None` when the proxy does not do what the handlers ask for and resets connections.
    fn of(service: &Service, port: &Port) -> Option<Self> {
        match port.handlers.as_slice() {
            [] if !is_tcp(service) => Some(Self::Udp),
            [] => Some(Self::Raw),
            _ if !is_tcp(service) => None,
            [only] if only == "http" => Some(Self::Http),
            [only] if only == "proxy_proto" => Some(Self::Raw),
            _ => None,
        }
    }
}

impl Shown {
    /// How a client names this port of a host, an address in brackets or a name.
    pub(super) fn at(self, host: &str) -> String {
        match (self.speech, self.number) {
            (Speech::Http, 80) => format!("http://{host}"),
            (Speech::Http, number) => format!("http://{host}:{number}"),
            (Speech::Raw, number) => format!("{host}:{number}"),
            (Speech::Udp, number) => format!("{host}:{number}/udp"),
        }
    }
}

impl Reach {
    /// HTTP before raw TCP before UDP, port 80 before others, then the lowest.
    pub(super) fn of(config: &Config) -> Self {
        let groups = config.groups();
        let services: Vec<_> = groups.iter().flat_map(|group| config.services_of(group)).collect();
        let ports = services.iter().flat_map(|it| it.ports.iter().map(move |port| (it, port)));
        let shown = ports.filter_map(|(service, port)| {
            let number = u16::try_from(port.port.or(port.start_port)?).ok()?;
            Some(Shown { number, speech: Speech::of(service, port)? })
        });
        match shown.min_by_key(|it| (it.speech, it.number != 80, it.number)) {
            Some(shown) => Self::At(shown),
            None if services.is_empty() => Self::NoServices,
            None => Self::NothingServed,
        }
    }
}

/// A sentence for each port that the file asks for and at which nobody answers.
pub(super) fn unserved(config: &Config) -> Vec<String> {
    // The port 443 that `[http_service]` implies is not asked for by a line of the file.
    let ports = config.services.iter().flat_map(|it| it.ports.iter().map(move |port| (it, port)));
    let unserved = ports.filter(|(service, port)| Speech::of(service, port).is_none());
    unserved.map(|(service, port)| sentence(service, port)).collect()
}

fn is_tcp(service: &Service) -> bool {
    service.protocol.as_deref() != Some("udp")
}

fn sentence(service: &Service, port: &Port) -> String {
    let number = match (port.port, port.start_port, port.end_port) {
        (None, Some(start), Some(end)) => format!("ports {start} to {end} are"),
        (port, start, _) => format!("port {} is", port.or(start).unwrap_or_default()),
    };
    let handlers = port.handlers.join(", ");
    if !is_tcp(service) {
        return format!(
            "{number} not served: UDP has no handlers (PX-89); remove {handlers} to have it served"
        );
    }
    if ["http", "proxy_proto"].iter().all(|it| port.handlers.iter().any(|handler| handler == it)) {
        return format!(
            "{number} not served: behind http a program learns its callers by X-Forwarded-For, not by \
             proxy_proto; remove one of the two"
        );
    }
    let handlers = match port.handlers.len() {
        1 => format!("handler {handlers} is"),
        _ => format!("handlers {handlers} are"),
    };
    format!("{number} not served: {handlers} not there yet; connections there are reset")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_named_as_a_whole() {
        let handlers = vec!["tls".to_owned()];
        let (start_port, end_port) = (Some(8000), Some(8009));
        let port = Port { start_port, end_port, handlers, ..Port::default() };
        let text = sentence(&Service::default(), &port);
        assert!(
            text.starts_with("ports 8000 to 8009 are not served: handler tls is not"),
            "{text}"
        );
        let udp = Service { protocol: Some("udp".to_owned()), ..Service::default() };
        let text = sentence(&udp, &port);
        assert!(
            text.ends_with(
                "are not served: UDP has no handlers (PX-89); remove tls to have it served"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_proxy_protocol_is_served_alone_and_not_behind_http() {
        let port = |handlers: &[&str]| {
            let handlers = handlers.iter().map(|it| (*it).to_owned()).collect();
            Port { port: Some(80), handlers, ..Port::default() }
        };
        let service = Service::default();
        assert_eq!(Speech::of(&service, &port(&["proxy_proto"])), Some(Speech::Raw));
        let both = port(&["http", "proxy_proto"]);
        assert_eq!(Speech::of(&service, &both), None);
        assert!(sentence(&service, &both).contains("remove one of the two"));
    }
}
