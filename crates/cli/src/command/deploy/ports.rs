//! The ports of an app as its callers meet them: which one to show, and those at which nobody answers.

use crate::flytoml::{Config, Port, Service};

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Speech {
    Http,
    Raw,
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
    fn of(port: &Port) -> Option<Self> {
        match port.handlers.as_slice() {
            [] => Some(Self::Raw),
            [only] if only == "http" => Some(Self::Http),
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
        }
    }
}

impl Reach {
    /// HTTP before raw TCP, port 80 before others, then the lowest.
    pub(super) fn of(config: &Config) -> Self {
        let groups = config.groups();
        let services: Vec<_> = groups.iter().flat_map(|group| config.services_of(group)).collect();
        let ports = services.iter().filter(|service| is_tcp(service)).flat_map(|it| &it.ports);
        let shown = ports.filter_map(|port| {
            let number = u16::try_from(port.port.or(port.start_port)?).ok()?;
            Some(Shown { number, speech: Speech::of(port)? })
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
    let services = config.services.iter().filter(|service| is_tcp(service));
    let ports = services.flat_map(|service| &service.ports);
    ports.filter(|port| Speech::of(port).is_none()).map(sentence).collect()
}

fn is_tcp(service: &Service) -> bool {
    service.protocol.as_deref() != Some("udp")
}

fn sentence(port: &Port) -> String {
    let number = match (port.port, port.start_port, port.end_port) {
        (None, Some(start), Some(end)) => format!("ports {start} to {end} are"),
        (port, start, _) => format!("port {} is", port.or(start).unwrap_or_default()),
    };
    let handlers = port.handlers.join(", ");
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
        let text = sentence(&Port { start_port, end_port, handlers, ..Port::default() });
        assert!(
            text.starts_with("ports 8000 to 8009 are not served: handler tls is not"),
            "{text}"
        );
    }
}
