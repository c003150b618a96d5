//! Connections that change to another protocol (RFC 9110, 7.8): WebSockets, and whatever else a caller
//! and a Machine agree upon.
//!
//! A caller offers protocols, the Machine may take one of them by a 101, and from there on bytes go both
//! ways as on raw TCP. Other versions of HTTP are never offered to a Machine: what came by them would
//! bear none of our headers. Without an offer that is left the request is an ordinary one.
//!
//! Everything here is rare, and off the way of other requests.

use std::io;

use tokio::net::TcpStream;

use super::body::is_token_byte;
use super::head::write_field;
use crate::app::{Place, PortFacts};
use crate::directory::Destination;
use crate::line::Line;
use crate::presence::Presence;
use crate::tcp::{Said, Stream, relay};
use crate::websocket::Socket;

/// The protocols of an Upgrade field that a Machine may hear of.
pub(super) fn protocols(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let items = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    items.filter(|item| is_protocol(item) && !is_http(item))
}

/// A name, and perhaps a version (RFC 9110, 7.8).
fn is_protocol(item: &[u8]) -> bool {
    let mut parts = item.split(|byte| *byte == b'/');
    let is_token = |part: &[u8]| !part.is_empty() && part.iter().all(|b| is_token_byte(*b));
    let name_and_version = [parts.next(), parts.next()];
    parts.next().is_none() && name_and_version.into_iter().flatten().all(is_token)
}

fn is_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
    [b"h2c".as_slice(), b"h2", b"http"].iter().any(|http| name.eq_ignore_ascii_case(http))
}

/// Writes the fields of a head that offers or takes these protocols.
#[cold]
pub(super) fn write_protocols<'a>(values: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let all: Vec<&[u8]> = values.flat_map(protocols).collect();
    write_field(out, "Connection", b"Upgrade");
    write_field(out, "Upgrade", &all.join(b", ".as_slice()));
}

/// Whether an answer takes what the request has offered, and nothing else. Both heads are as we wrote them.
#[cold]
pub(super) fn is_offered(request: &[u8], answer: &[u8]) -> bool {
    let offered: Vec<&[u8]> = written(request).collect();
    let is_one = |taken: &[u8]| offered.iter().any(|offer| offer.eq_ignore_ascii_case(taken));
    written(answer).next().is_some() && written(answer).all(is_one)
}

/// The protocols in a head that we wrote.
fn written(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = head.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.strip_prefix(b"Upgrade: ")).flat_map(protocols)
}

/// Whether the only protocol that a request offers is the WebSocket's: what was taken then is one.
#[cold]
pub(super) fn is_websocket(request: &[u8]) -> bool {
    let mut offered = written(request);
    let first = offered.next().is_some_and(|it| it.eq_ignore_ascii_case(b"websocket"));
    first && offered.next().is_none()
}

/// Serves the connection from the 101 on, until both sides have ended it.
pub(super) async fn serve(
    (caller, machine): (&mut TcpStream, TcpStream),
    (place, to, facts): (&Place, &Destination, &PortFacts),
    presence: &Presence,
    said: Said,
    socket: Option<Box<Socket>>,
) -> io::Result<()> {
    let mut machine = Stream::midway(machine);
    let line = Line::new(place, to, facts, presence).of_socket(socket);
    let relayed = line.idle().unless_silent(relay(caller, &mut machine.tcp, &line, said));
    // Who was silent for too long has nothing on its way that a reset would have to tell.
    let done = relayed.await.unwrap_or(Ok(()));
    // Who has heard the last word is not cut.
    let told = line.socket().is_some_and(Socket::has_told);
    let done = if told { Ok(()) } else { done };
    machine.midway = done.is_err();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> Vec<String> {
        let all = protocols(value.as_bytes());
        all.map(|item| String::from_utf8_lossy(item).into_owned()).collect()
    }

    #[test]
    fn no_other_http_is_offered_to_a_machine() {
        for value in [
            "h2c",
            "H2C",
            "h2",
            "HTTP/2.0",
            "h2c/1",
            "http/3, h2c",
            "",
            ",",
            "a b",
            "a/",
            "/1",
            "a/b/c",
        ] {
            assert_eq!(shown(value), Vec::<String>::new(), "{value:?}");
        }
        assert_eq!(shown("h2c, websocket ,\tIRC/6.9,"), ["websocket", "IRC/6.9"]);
    }

    #[test]
    fn only_what_was_offered_may_be_taken() {
        let taken = |offer: &str, taken: &str| {
            let head = |field: &str| format!("first line\r\n{field}A: b\r\n\r\n").into_bytes();
            is_offered(&head(offer), &head(taken))
        };
        assert!(taken("Upgrade: websocket\r\n", "Upgrade: WebSocket\r\n"));
        assert!(taken("Upgrade: a, b/1\r\n", "Upgrade: b/1\r\n"));
        assert!(!taken("Upgrade: a, b/1\r\n", "Upgrade: b\r\n"));
        assert!(!taken("Upgrade: a\r\n", "Upgrade: a, b\r\n"));
        assert!(!taken("Upgrade: a\r\n", "Upgrade: \r\n"));
        assert!(!taken("Upgrade: a\r\n", ""));
        assert!(!taken("", "Upgrade: a\r\n"));
    }
}
