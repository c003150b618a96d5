//! Small languages: questions to DNS, replays, and where a request wants to go.

use std::net::Ipv6Addr;

use hickory_proto::op::Message;
use perch_core::aim::{AREAS_MAX, Aim, Area};
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

fn check_aim(aim: &Aim) {
    // One more than areas: anywhere else, if need be.
    assert!(aim.targets().len() <= AREAS_MAX + 2, "{aim:?}");
}
