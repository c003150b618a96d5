//! Messages: one question in, one answer out.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{AAAA, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use perch_core::dns::{self, Answer, Kind, NEGATIVE_TTL_S, TTL_S, Transport};

/// What one UDP answer may have where the asker says nothing (RFC 1035).
const PLAIN_BYTES_MAX: u16 = 512;
/// What we offer and use at most over UDP: no fragments on any path (PN-44).
const UDP_BYTES_MAX: u16 = 1232;
/// Bytes of one string of a TXT record.
const TXT_STRING_BYTES_MAX: usize = 255;

/// What to do with a message.
#[derive(Debug)]
pub(crate) enum Verdict {
    Reply(Vec<u8>),
    /// Ask the host's resolvers.
    Forward(Box<Question>),
    /// Not worth an answer.
    Silence,
}

/// A query with exactly one question.
#[derive(Debug)]
pub(crate) struct Question {
    message: Message,
    query: Query,
}

impl Question {
    /// Reads a message; one that is no proper question is its own verdict.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Verdict> {
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(_) => return Err(malformed(bytes)),
        };
        if message.metadata.message_type != MessageType::Query {
            return Err(Verdict::Silence);
        }
        let only = match message.queries.as_slice() {
            [query] => Some(query.clone()),
            _ => None,
        };
        let code = match (&only, message.metadata.op_code) {
            (Some(_), OpCode::Query) => None,
            (None, OpCode::Query) => Some(ResponseCode::FormErr),
            (_, _) => Some(ResponseCode::NotImp),
        };
        match (only, code) {
            (Some(query), None) => Ok(Self { message, query }),
            (_, code) => {
                let code = code.unwrap_or(ResponseCode::FormErr);
                let (id, op_code) = (message.metadata.id, message.metadata.op_code);
                Err(reply(&Message::error_msg(id, op_code, code)))
            }
        }
    }

    pub(crate) fn name(&self) -> String {
        self.query.name().to_ascii()
    }

    pub(crate) fn kind(&self) -> Kind {
        if self.query.query_class() != DNSClass::IN {
            return Kind::Other;
        }
        match self.query.query_type() {
            RecordType::AAAA => Kind::Aaaa,
            RecordType::TXT => Kind::Txt,
            RecordType::ANY => Kind::Any,
            _ => Kind::Other,
        }
    }

    /// The asker belongs to no network of ours.
    pub(crate) fn refused(&self) -> Verdict {
        reply(&self.response(ResponseCode::Refused))
    }

    /// No resolver answered.
    pub(crate) fn failed(&self) -> Option<Vec<u8>> {
        self.response(ResponseCode::ServFail).to_vec().ok()
    }

    /// Turns the decision into a message.
    pub(crate) fn answered(self, answer: Answer, transport: Transport) -> Verdict {
        match answer {
            Answer::Forward => Verdict::Forward(Box::new(self)),
            Answer::Records(records) => {
                let mut response = self.authoritative(ResponseCode::NoError);
                response.add_answers(records.into_iter().map(|record| self.record(record)));
                self.fitted(&response, transport)
            }
            Answer::NoData => reply(&self.negative(ResponseCode::NoError)),
            Answer::NoName => reply(&self.negative(ResponseCode::NXDomain)),
        }
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut response = Message::response(0, OpCode::Query);
        response.metadata = Metadata::response_from_request(&self.message.metadata);
        response.metadata.recursion_available = true;
        response.metadata.response_code = code;
        response.add_query(self.query.clone());
        if self.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            response.set_edns(edns);
        }
        response
    }

    fn authoritative(&self, code: ResponseCode) -> Message {
        let mut response = self.response(code);
        response.metadata.authoritative = true;
        response
    }

    fn negative(&self, code: ResponseCode) -> Message {
        let mut response = self.authoritative(code);
        response.add_authority(soa(self.query.name()));
        response
    }

    fn record(&self, record: dns::Record) -> Record {
        let data = match record {
            dns::Record::Aaaa(ip) => RData::AAAA(AAAA(ip)),
            dns::Record::Txt(text) => {
                let strings: Vec<&[u8]> = text.as_bytes().chunks(TXT_STRING_BYTES_MAX).collect();
                RData::TXT(TXT::from_bytes(if strings.is_empty() { vec![b""] } else { strings }))
            }
        };
        Record::from_rdata(self.query.name().clone(), TTL_S, data)
    }

    /// The message, or its truncation when the asker cannot take so much over UDP.
    fn fitted(&self, response: &Message, transport: Transport) -> Verdict {
        let bytes_max = match (transport, &self.message.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_BYTES_MAX,
            (Transport::Udp, Some(edns)) => {
                edns.max_payload().clamp(PLAIN_BYTES_MAX, UDP_BYTES_MAX)
            }
        };
        match response.to_vec() {
            Ok(bytes) if bytes.len() <= usize::from(bytes_max) => Verdict::Reply(bytes),
            Ok(_) => reply(&response.truncate()),
            Err(_) => reply(&self.response(ResponseCode::ServFail)),
        }
    }

    /// The question as we ask it ourselves, under an id of ours.
    pub(crate) fn outgoing(&self, id: u16, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::query();
        message.metadata.id = id;
        message.metadata.recursion_desired = self.message.metadata.recursion_desired;
        message.metadata.checking_disabled = self.message.metadata.checking_disabled;
        message.add_query(self.query.clone());
        // Who asks over TCP can take more than one datagram of the usual size.
        let payload = match (transport, &self.message.edns) {
            (Transport::Tcp, _) => Some(4096),
            (Transport::Udp, Some(edns)) => Some(edns.max_payload().min(UDP_BYTES_MAX)),
            (Transport::Udp, None) => None,
        };
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            let dnssec = self.message.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
            edns.set_dnssec_ok(dnssec);
            message.set_edns(edns);
        }
        message.to_vec().ok()
    }

    /// A resolver's answer under the asker's id; `None` if it is no answer to this question.
    pub(crate) fn incoming(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut answer = Message::from_vec(bytes).ok()?;
        let same = answer.metadata.message_type == MessageType::Response
            && answer.queries.as_slice() == std::slice::from_ref(&self.query);
        if !same {
            return None;
        }
        answer.metadata.id = self.message.metadata.id;
        if self.message.edns.is_none() {
            answer.edns = None;
        }
        answer.to_vec().ok()
    }
}

fn malformed(bytes: &[u8]) -> Verdict {
    // Bit 7 of byte 2 marks responses; answering those could make two servers talk for ever.
    match bytes {
        [high, low, flags, ..] if bytes.len() >= 12 && flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([*high, *low]);
            reply(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr))
        }
        _ => Verdict::Silence,
    }
}

fn reply(message: &Message) -> Verdict {
    message.to_vec().map_or(Verdict::Silence, Verdict::Reply)
}

/// The authority of our names, so that "there is none" is kept for a moment only (PN-45).
fn soa(name: &Name) -> Record {
    let zone = name.trim_to(1);
    let seconds = i32::try_from(TTL_S).unwrap_or(1);
    let data = SOA::new(zone.clone(), zone.clone(), 1, seconds, seconds, seconds, NEGATIVE_TTL_S);
    Record::from_rdata(zone, NEGATIVE_TTL_S, RData::SOA(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: RecordType) -> Question {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        Question::parse(&message.to_vec().expect("it can be written")).expect("it is a question")
    }

    fn replied(verdict: Verdict) -> Message {
        let Verdict::Reply(bytes) = verdict else { panic!("a reply was expected: {verdict:?}") };
        Message::from_vec(&bytes).expect("our answers can be read")
    }

    #[test]
    fn what_is_no_question_gets_an_error_or_silence() {
        assert!(matches!(Question::parse(b"x"), Err(Verdict::Silence)));
        let mut response = Message::response(7, OpCode::Query);
        let bytes = response.to_vec().expect("it can be written");
        assert!(matches!(Question::parse(&bytes), Err(Verdict::Silence)));
        response.metadata.message_type = MessageType::Query;
        let bytes = response.to_vec().expect("it can be written");
        let error = replied(Question::parse(&bytes).expect_err("it has no question"));
        assert_eq!(error.metadata.response_code, ResponseCode::FormErr);
        let garbage = [0, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 255];
        let error = replied(Question::parse(&garbage).expect_err("it is cut short"));
        assert_eq!((error.metadata.id, error.metadata.response_code), (7, ResponseCode::FormErr));
    }

    #[test]
    fn no_name_and_no_data_carry_an_authority_that_is_soon_forgotten() {
        for (answer, code) in
            [(Answer::NoName, ResponseCode::NXDomain), (Answer::NoData, ResponseCode::NoError)]
        {
            let asked = question("x.flycast.", RecordType::AAAA);
            let message = replied(asked.answered(answer, Transport::Udp));
            assert_eq!(message.metadata.response_code, code);
            assert!(message.metadata.authoritative && message.answers.is_empty());
            assert_eq!(message.authorities[0].ttl, NEGATIVE_TTL_S);
            assert_eq!(message.authorities[0].name.to_ascii(), "flycast.");
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_a_datagram_is_truncated_and_whole_over_tcp() {
        let records = || {
            let all = (0..32).map(|n| dns::Record::Aaaa(std::net::Ipv6Addr::from(n)));
            Answer::Records(all.collect())
        };
        let asked = question("x.internal.", RecordType::AAAA);
        let message = replied(asked.answered(records(), Transport::Udp));
        assert!(message.metadata.truncation && message.answers.is_empty());
        let asked = question("x.internal.", RecordType::AAAA);
        let message = replied(asked.answered(records(), Transport::Tcp));
        assert_eq!((message.metadata.truncation, message.answers.len()), (false, 32));
    }

    #[test]
    fn an_answer_to_something_else_is_not_passed_on() {
        let asked = question("example.com.", RecordType::A);
        let mut other = Message::response(9, OpCode::Query);
        other
            .add_query(Query::query(Name::from_ascii("evil.com.").expect("a name"), RecordType::A));
        assert_eq!(asked.incoming(&other.to_vec().expect("it can be written")), None);
        other.queries = vec![asked.query.clone()];
        let passed = asked.incoming(&other.to_vec().expect("it can be written"));
        let passed = Message::from_vec(&passed.expect("it is the answer")).expect("readable");
        assert_eq!(passed.metadata.id, 7);
    }
}
