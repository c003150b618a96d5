//! Small languages: questions to DNS, replays, where a request wants to go, and which coding its caller understands.

use std::net::Ipv6Addr;

use hickory_proto::op::Message;
use perch_core::aim::{AREAS_MAX, Aim, Area};
use perch_core::coding::accepts_gzip;
use perch_core::dns::{Answer, Record, Transport};
use perch_core::replay::Replay;

use super::{forwarded, shown};
use crate::dns::wire::{Question, Verdict};
use crate::http::head;

/// The largest answers that we give over UDP and TCP.
const ANSWER_BYTES_MAX: [(Transport, usize); 2] =
    [(Transport::Udp, 1232), (Transport::Tcp, u16::MAX as usize)];

pub(super) fn dns(input: &[u8]) {
    let question = match Question::parse(input) {
        Ok(question) => question,
        Err(verdict) => return check_reply(input, &verdict, usize::MAX),
    };
    let _name_and_kind = (question.name(), question.kind());
    check_reply(input, &question.refused(), ANSWER_BYTES_MAX[0].1);
    assert!(question.failed().is_some(), "{}", shown(input));
    for (transport, bytes_max) in ANSWER_BYTES_MAX {
        let asked = question.outgoing(7, transport);
        let asked = asked.unwrap_or_else(|| panic!("cannot be asked: {}", shown(input)));
        Message::from_vec(&asked).expect("we ask well");
        // Whatever a resolver says, it is an answer to this question or none.
        drop(question.incoming(input));
        for answer in answers() {
            let question = Question::parse(input).expect("it was one");
            check_reply(input, &question.answered(answer, transport), bytes_max);
        }
    }
}

fn answers() -> [Answer; 4] {
    let one = Record::Aaaa(Ipv6Addr::LOCALHOST);
    let text = Record::Txt("x".repeat(700));
    let many = (0..200).map(|n| Record::Aaaa(Ipv6Addr::from(n))).collect();
    [Answer::Records(vec![one, text]), Answer::Records(many), Answer::NoData, Answer::NoName]
}

/// A reply can be read, has the question's id, and is as small as it must be.
fn check_reply(input: &[u8], verdict: &Verdict, bytes_max: usize) {
    let Verdict::Reply(reply) = verdict else { return };
    assert!(reply.len() <= bytes_max, "{} bytes: {}", reply.len(), shown(input));
    let message = Message::from_vec(reply);
    let message = message.unwrap_or_else(|error| panic!("{error}: {}", shown(input)));
    let id = u16::from_be_bytes([input[0], input[1]]);
    assert_eq!(message.metadata.id, id, "{}", shown(input));
}

/// Of a header, and of a body.
pub(super) fn replay(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(replay) = Replay::parse(text)
    {
        check_aim(&replay.aim);
    }
    crate::http::replay::try_read(input);
}

/// Fields of a request that say where it goes: the input follows the first lines of a head.
pub(super) fn aim(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    assert!(Area::parse_list(&text).len() <= AREAS_MAX);
    let lines = [b"GET / HTTP/1.1\r\nHost: a\r\n", input, b"\r\n\r\n"].concat();
    let mut out = Vec::new();
    if let Ok(Some(request)) = head::rewrite(&lines, &forwarded(), 0, &mut out)
        && request.aimed
    {
        check_aim(&crate::http::connection::aim_of(&out));
    }
}

/// The value of `Accept-Encoding`, beside a plain reader of those lists that are as RFC 9110 has them.
pub(super) fn coding(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let accepts = accepts_gzip(&text);
    assert_eq!(accepts, accepts_gzip(&text.to_ascii_uppercase()), "{text:?}");
    assert_eq!(accepts, accepts_gzip(&format!("{text}, zstd, unknown;q=1")), "{text:?}");
    assert_eq!(accepts, accepts_gzip(&text.replace(',', " ,\t")), "{text:?}");
    assert!(!accepts || text.contains('*') || text.to_ascii_lowercase().contains("gzip"));
    let items: Option<Vec<_>> = text.split(',').map(plain_item).collect();
    let Some(items) = items else { return };
    let weight = |names: &[&str]| {
        let of_name = items.iter().filter(|(name, _)| names.contains(&name.as_str()));
        of_name.map(|(_, weight)| *weight).reduce(f64::max)
    };
    let gzip = weight(&["gzip", "x-gzip"]).or_else(|| weight(&["*"])).unwrap_or(0.0);
    let identity = weight(&["identity"]).unwrap_or(0.0);
    assert_eq!(accepts, 0.0 < gzip && identity <= gzip, "{text:?}");
}

/// One that makes sense: its name and weight.
fn plain_item(item: &str) -> Option<(String, f64)> {
    let (name, weight) = item.split_once(';').unwrap_or((item, "q=1"));
    let weight = weight.trim().to_ascii_lowercase();
    let weight = weight.strip_prefix("q=")?;
    let plain = weight.len() <= 5
        && (weight == "0" || weight == "1" || weight.starts_with("0.") || weight.starts_with("1."))
        && weight.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let weight: f64 = weight.parse().ok().filter(|weight| plain && *weight <= 1.0)?;
    Some((name.trim().to_ascii_lowercase(), weight))
}

fn check_aim(aim: &Aim) {
    // One more than areas: anywhere else, if need be.
    assert!(aim.targets().len() <= AREAS_MAX + 2, "{aim:?}");
}
