//! Questions to the DNS server, for `fly dig`: asked over TCP inside the data plane, as the platform's own member of
//! the network that is meant, so that the answer is what a Machine of that network would get.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use perch_api::wire::{ApiError, Asker, DnsAnswer, DnsQuestion, DnsRecord};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::api::{apps, stream};
use crate::server::clock;
use crate::server::keeper::Catalog;
use crate::server::views;
use crate::server::world::World;

/// Where every Machine asks (PN-40).
const SERVER: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3)), 53);
/// The DNS server gives up on the host's resolvers before.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A name of more bytes than this, without the root's dot, does not fit into a message (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 253;

/// Asks for the records of a kind that a name has in a network.
pub(crate) async fn ask(
    world: &Arc<World>,
    asker: &Asker,
    name: &str,
    kind: &str,
) -> Result<DnsAnswer, ApiError> {
    let message = question(name, kind)?;
    let network = network(world, &world.keeper.read(), asker)?;
    let source = IpAddr::V6(views::platform_peer(network));
    let failed =
        |why: &str| ApiError::new(502, format!("could not ask {SERVER} for {name}: {why}"));
    let asked = tokio::time::timeout(TIMEOUT, exchange(world, source, &message)).await;
    let answer = asked.map_err(|_| failed("no answer within 10 s"))?.map_err(|why| failed(&why))?;
    Ok(wire_answer(&answer))
}

fn question(name: &str, kind: &str) -> Result<Message, ApiError> {
    let parsed =
        check_name(name).and_then(|()| Name::from_ascii(name).map_err(|it| it.to_string()));
    let parsed = parsed
        .map_err(|why| ApiError::invalid(format!("{name:?} is no name that DNS has: {why}")))?;
    let kind: RecordType =
        kind.parse().map_err(|_| ApiError::invalid(format!("{kind} is no type of record")))?;
    let mut message = Message::query();
    message.metadata.id = (clock::random() & 0xffff) as u16;
    let ours = name.trim_end_matches('.').to_ascii_lowercase().ends_with(".internal");
    message.metadata.recursion_desired = !ours;
    message.add_query(Query::query(parsed, kind));
    Ok(message)
}

/// Allows just the names that the API's description calls names: no escapes, no wildcards.
fn check_name(name: &str) -> Result<(), String> {
    if name.len() > LONGEST_NAME {
        return Err(format!("it has {} bytes; a name has at most {LONGEST_NAME}", name.len()));
    }
    let mut labels = name.strip_suffix('.').unwrap_or(name).split('.');
    match labels.find(|label| !is_label(label)) {
        Some("") => Err("one of its labels is empty".to_owned()),
        Some(label) => Err(format!(
            "label {label:?} has to be 1 to 63 letters, digits, \"_\" and \"-\", and not begin with \"-\""
        )),
        None => Ok(()),
    }
}

fn is_label(label: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=63).contains(&label.len()) && !label.starts_with('-') && label.bytes().all(known)
}

fn network(world: &World, catalog: &Catalog, asker: &Asker) -> Result<u32, ApiError> {
    match asker {
        Asker::App(name) => Ok(catalog.app(name)?.network_id),
        Asker::Organization(slug) if !world.config.organizations.contains(slug) => {
            Err(apps::unknown_organization(world, slug))
        }
        Asker::Organization(slug) => {
            let key = (slug.clone(), "default".to_owned());
            let network = catalog.networks.get(&key).map(|network| network.id);
            network.ok_or_else(|| {
                ApiError::not_found(format!(
                    "organization {slug} has no network yet; it gets one with its first app"
                ))
            })
        }
    }
}

async fn exchange(world: &World, source: IpAddr, message: &Message) -> Result<Message, String> {
    let bytes = message.to_vec().map_err(|error| error.to_string())?;
    let mut stream = stream::connect(world, source, SERVER).await?;
    let asked = async {
        let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = asked.await.map_err(|error| error.to_string())?;
    Message::from_vec(&answer).map_err(|error| format!("its answer is no DNS message: {error}"))
}

fn wire_answer(message: &Message) -> DnsAnswer {
    let head = &message.metadata;
    let flags = [
        ("qr", true),
        ("aa", head.authoritative),
        ("tc", head.truncation),
        ("rd", head.recursion_desired),
        ("ra", head.recursion_available),
        ("ad", head.authentic_data),
        ("cd", head.checking_disabled),
    ];
    let records = |records: &[Record]| records.iter().map(wire_record).collect();
    DnsAnswer {
        server: SERVER.ip(),
        id: head.id,
        opcode: "QUERY".to_owned(),
        status: status(head.response_code.into()),
        flags: flags.iter().filter(|(_, set)| *set).map(|(name, _)| (*name).to_owned()).collect(),
        question: message.queries.iter().map(wire_question).collect(),
        answer: records(&message.answers),
        authority: records(&message.authorities),
        additional: records(&message.additionals),
    }
}

/// The usual names; the others are numbers.
fn status(code: u16) -> String {
    const NAMES: [&str; 11] = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET",
        "NXRRSET", "NOTAUTH", "NOTZONE",
    ];
    NAMES.get(usize::from(code)).map_or_else(|| format!("RCODE{code}"), |name| (*name).to_owned())
}

fn wire_question(query: &Query) -> DnsQuestion {
    DnsQuestion {
        name: query.name().to_ascii(),
        class: query.query_class().to_string(),
        kind: query.query_type().to_string(),
    }
}

fn wire_record(record: &Record) -> DnsRecord {
    let texts = texts(&record.data);
    let data = match &record.data {
        RData::TXT(_) => texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(" "),
        data => data.to_string(),
    };
    DnsRecord {
        name: record.name.to_ascii(),
        ttl: record.ttl,
        class: record.dns_class.to_string(),
        kind: record.record_type().to_string(),
        data,
        texts,
    }
}

fn texts(data: &RData) -> Vec<String> {
    match data {
        RData::TXT(txt) => {
            txt.txt_data.iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect()
        }
        _ => Vec::new(),
    }
}

/// As zone files quote strings.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\{byte:03}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::TXT;

    #[test]
    fn what_is_no_name_is_refused() {
        for name in
            ["", ".", "-u", "a.-b.c", "*.a", "a\\.b", "a..b.", &"a".repeat(64), &"a.".repeat(127)]
        {
            assert_eq!(question(name, "AAAA").expect_err(name).code, 422, "{name}");
        }
    }

    #[test]
    fn what_the_description_calls_a_name_is_asked_for() {
        let longest = format!("{}a", "a.".repeat(126));
        for name in ["a", "a.", "_b._tcp.a-.Internal.", "0--", &"a".repeat(63), &longest] {
            assert!(question(name, "AAAA").is_ok(), "{name}");
        }
    }

    #[test]
    fn recursion_is_not_asked_for_our_own_names() {
        let wanted = |name| question(name, "TXT").expect(name).metadata.recursion_desired;
        assert!(!wanted("web.INTERNAL."));
        assert!(wanted("example.com."));
    }

    #[test]
    fn texts_are_told_as_they_are_and_as_zone_files_quote_them() {
        let data = RData::TXT(TXT::from_bytes(vec![b"a\"b\\", "\u{e9}".as_bytes()]));
        let name = Name::from_ascii("x.internal.").expect("a name");
        let record = wire_record(&Record::from_rdata(name, 5, data));
        assert_eq!(record.texts, ["a\"b\\", "\u{e9}"]);
        assert_eq!(record.data, r#""a\"b\\" "\195\169""#);
        assert_eq!((record.name.as_str(), record.kind.as_str()), ("x.internal.", "TXT"));
        assert_eq!((status(3), status(99)), ("NXDOMAIN".to_owned(), "RCODE99".to_owned()));
    }
}
