//! As much HTTP/1.1 as an example needs: requests whose bodies are counted, answers with a length, a client that reads to the end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Longest line and most lines of a request head.
const LINE_BYTES_MAX: u64 = 8192;
const LINES_MAX: usize = 100;
/// Longest body that a request may have (it is only counted) and that `get` returns.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// Perch holds a caller up to a minute while a Machine wakes; `get` waits a little longer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(75);
const DNS_TIMEOUT: Duration = Duration::from_secs(5);
const DNS_ATTEMPTS: usize = 2;
const RECORD_A: u16 = 1;
const RECORD_AAAA: u16 = 28;

/// A request, as far as the server looks at it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// The client wants the connection closed after the answer.
    pub(crate) close: bool,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body_len: u64,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// An answer in plain text.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// More of them; one that is called `content-type` takes the place of ours.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(status: u16, text: String) -> Self {
        Self { status, headers: Vec::new(), body: text.into_bytes() }
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Header lines up to the empty one, names in lower case.
fn read_headers(reader: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("header without colon"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        if headers.len() > LINES_MAX {
            return Err(bad("too many headers"));
        }
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// The next request of a connection; `None` when the client has closed it.
pub(crate) fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let line = read_line(reader)?;
    if line.is_empty() {
        return Ok(None);
    }
    let words: Vec<_> = line.split(' ').collect();
    let [method, target, version] = words[..] else { return Err(bad("not a request line")) };
    let headers = read_headers(reader)?;
    let connection = header(&headers, "connection").unwrap_or_default().to_ascii_lowercase();
    let length = header(&headers, "content-length").and_then(|length| length.parse().ok());
    let body_len = length.unwrap_or(0);
    skip(reader, body_len)?;
    let close = connection == "close" || (version == "HTTP/1.0" && connection != "keep-alive");
    let (method, target) = (method.to_owned(), target.to_owned());
    Ok(Some(Request { method, target, close, headers, body_len }))
}

fn skip(reader: &mut impl BufRead, length: u64) -> io::Result<()> {
    if length > BODY_BYTES_MAX {
        return Err(bad("body is too long"));
    }
    io::copy(&mut reader.take(length), &mut io::sink()).map(drop)
}

/// Writes head and body in one piece.
pub(crate) fn write_response(
    mut stream: &TcpStream,
    request: &Request,
    response: &Response,
) -> io::Result<()> {
    let reason = match response.status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        _ => "Bad Gateway",
    };
    let connection = if request.close { "connection: close\r\n" } else { "" };
    let mut head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-length: {}\r\n{connection}",
        response.status,
        response.body.len()
    );
    if header(&response.headers, "content-type").is_none() {
        head.push_str("content-type: text/plain; charset=utf-8\r\n");
    }
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    if request.method != "HEAD" {
        bytes.extend_from_slice(&response.body);
    }
    stream.write_all(&bytes)
}

/// A parameter of a query, with `%XX` and `+` decoded.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    parameters(query, name).next()
}

/// All of this name.
pub(crate) fn parameters(query: &str, name: &str) -> impl Iterator<Item = String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(move |(known, _)| *known == name).map(|(_, value)| decode(value))
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Fetches an `http://` URL: status and body.
pub(crate) fn get(url: &str) -> io::Result<(u16, Vec<u8>)> {
    let rest =
        url.strip_prefix("http://").ok_or_else(|| bad("only http:// URLs can be fetched"))?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let mut stream = connect(authority)?;
    stream.set_read_timeout(Some(FETCH_TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    read_answer(&mut BufReader::new(stream))
}

fn read_answer(reader: &mut impl BufRead) -> io::Result<(u16, Vec<u8>)> {
    let line = read_line(reader)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| bad("the connection was closed without an answer"))?;
    let headers = read_headers(reader)?;
    let mut body = Vec::new();
    if header(&headers, "transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        read_chunks(reader, &mut body)?;
    } else {
        let length = header(&headers, "content-length").and_then(|length| length.parse().ok());
        let length: u64 = length.unwrap_or(BODY_BYTES_MAX);
        reader.take(length.min(BODY_BYTES_MAX)).read_to_end(&mut body)?;
    }
    Ok((status, body))
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = read_line(reader)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(digits, 16).map_err(|_| bad("bad chunk"))?;
        if length == 0 || body.len() as u64 + length > BODY_BYTES_MAX {
            return Ok(());
        }
        reader.take(length).read_to_end(body)?;
        read_line(reader)?;
    }
}

/// Connects to `host`, `host:port`, `[v6]` or `[v6]:port`, trying each address.
fn connect(authority: &str) -> io::Result<TcpStream> {
    let (host, port) = split_port(authority)?;
    let mut last = bad("the name has no address");
    for address in resolve(host)? {
        match TcpStream::connect_timeout(&SocketAddr::new(address, port), FETCH_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn split_port(authority: &str) -> io::Result<(&str, u16)> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or("80")),
        None => authority.split_once(':').unwrap_or((authority, "80")),
    };
    Ok((host, port.parse().map_err(|_| bad("bad port"))?))
}

/// Looks a name up: a literal, `/etc/hosts`, then the first name server of `/etc/resolv.conf`. The C library's resolver
/// does not work in a static program.
fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let listed = in_hosts(&hosts, host);
    if !listed.is_empty() {
        return Ok(listed);
    }
    let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server =
        resolvers.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let server: IpAddr = server.ok_or_else(|| bad("no name server in /etc/resolv.conf"))?;
    let mut found = ask(server, host, RECORD_AAAA)?;
    found.extend(ask(server, host, RECORD_A)?);
    if found.is_empty() {
        return Err(bad("the name does not exist"));
    }
    Ok(found)
}

fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let entries = hosts.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word == name).then_some(address)
    });
    entries.collect()
}

fn ask(server: IpAddr, name: &str, record: u16) -> io::Result<Vec<IpAddr>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect((server, 53))?;
    socket.set_read_timeout(Some(DNS_TIMEOUT))?;
    let query = query(name, record);
    let mut last = bad("no answer");
    for _ in 0..DNS_ATTEMPTS {
        socket.send(&query)?;
        let mut reply = [0; 4096];
        match socket.recv(&mut reply) {
            Ok(len) => return addresses(&reply[..len], record).ok_or_else(|| bad("bad DNS reply")),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A question with recursion wanted. The socket is connected and new for each question, so the id carries nothing.
fn query(name: &str, record: u16) -> Vec<u8> {
    let mut query = vec![0x50, 0x45, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(u8::try_from(label.len().min(63)).unwrap_or(63));
        query.extend(label.bytes().take(63));
    }
    query.push(0);
    query.extend(record.to_be_bytes());
    query.extend([0, 1]);
    query
}

fn addresses(reply: &[u8], wanted: u16) -> Option<Vec<IpAddr>> {
    let word = |at: usize| Some(u16::from_be_bytes(reply.get(at..at + 2)?.try_into().ok()?));
    let answers = word(6)?;
    let mut at = skip_name(reply, 12)? + 4;
    let mut found = Vec::new();
    for _ in 0..answers {
        at = skip_name(reply, at)?;
        let (record, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = reply.get(at + 10..at + 10 + length)?;
        match (record, data.len()) {
            (RECORD_A, 4) if wanted == RECORD_A => {
                found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?));
            }
            (RECORD_AAAA, 16) if wanted == RECORD_AAAA => {
                found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?));
            }
            _ => {}
        }
        at += 10 + length;
    }
    Some(found)
}

/// The position after a name, which ends with an empty label or a pointer.
fn skip_name(reply: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *reply.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_and_its_body_skipped() -> io::Result<()> {
        let text = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.0\r\n\r\n";
        let mut reader = &text[..];
        let first = read_request(&mut reader)?.ok_or_else(|| bad("none"))?;
        let second = read_request(&mut reader)?.ok_or_else(|| bad("none"))?;
        assert_eq!((first.target.as_str(), first.close), ("/a", false));
        assert_eq!((second.target.as_str(), second.close), ("/b", true));
        assert!(read_request(&mut reader)?.is_none());
        Ok(())
    }

    #[test]
    fn garbage_is_refused() {
        assert!(read_request(&mut &b"nonsense\r\n\r\n"[..]).is_err());
        assert!(
            read_request(&mut &b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"[..]).is_err()
        );
    }

    #[test]
    fn answers_in_chunks_are_put_together() -> io::Result<()> {
        let text =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(read_answer(&mut &text[..])?, (200, b"abcd".to_vec()));
        Ok(())
    }

    #[test]
    fn parameters_are_decoded() {
        assert_eq!(parameter("a=1&url=http%3A%2F%2Fx+y%", "url").as_deref(), Some("http://x y%"));
        assert_eq!(parameter("a=1", "url"), None);
    }

    #[test]
    fn authorities_with_and_without_port_are_split() -> io::Result<()> {
        assert_eq!(split_port("app.flycast")?, ("app.flycast", 80));
        assert_eq!(split_port("[fdaa::1]:8080")?, ("fdaa::1", 8080));
        assert_eq!(split_port("[fdaa::1]")?, ("fdaa::1", 80));
        assert!(split_port("x:y").is_err());
        Ok(())
    }

    #[test]
    fn addresses_are_read_from_a_reply_and_a_short_one_is_refused() {
        let mut reply = query("a.internal", RECORD_AAAA);
        reply[7] = 1;
        reply.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 5, 0, 16]);
        reply.extend([0xfd, 0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        let expected: Vec<IpAddr> = "fdaa::9".parse().into_iter().collect();
        assert_eq!(addresses(&reply, RECORD_AAAA), Some(expected));
        assert_eq!(addresses(&reply[..20], RECORD_AAAA), None);
    }
}
