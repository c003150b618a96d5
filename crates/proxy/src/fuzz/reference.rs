//! A plain reader of requests: strict, slow, and independent of ours.

use crate::http::body::Framing;

/// A request's head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) framing: Framing,
    /// Bytes up to the body.
    pub(crate) length: usize,
    fields: Vec<(String, Vec<u8>)>,
}

/// A whole request.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) length: usize,
}

impl Head {
    pub(crate) fn values(&self, name: &str) -> Vec<&[u8]> {
        let named = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_slice()).collect()
    }

    /// The target without scheme and authority.
    #[cfg(test)]
    pub(crate) fn origin_form(&self) -> String {
        let Some((_, rest)) = self.target.split_once("://").filter(|_| self.target[..1] != *"/")
        else {
            return self.target.clone();
        };
        let path = &rest[rest.find(['/', '?']).unwrap_or(rest.len())..];
        if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
    }
}

/// `None`: incomplete, or not strictly right.
#[cfg(test)]
pub(crate) fn read_message(input: &[u8]) -> Option<Message> {
    let head = read_head(input)?;
    let (body, consumed) = read_body(head.framing, &input[head.length..])?;
    let length = head.length + consumed;
    Some(Message { head, body, length })
}

/// `None`: incomplete, or not strictly right.
pub(crate) fn read_head(input: &[u8]) -> Option<Head> {
    let end = input.windows(4).position(|window| window == b"\r\n\r\n")?;
    let length = end + 4;
    let lines = split_lines(&input[..end])?;
    let (line, fields) = lines.split_first()?;
    let line = std::str::from_utf8(line).ok()?;
    let [method, target, version] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let versions = ["HTTP/1.0", "HTTP/1.1"];
    if !is_token(method.as_bytes()) || target.is_empty() || !versions.contains(&version) {
        return None;
    }
    let fields: Option<Vec<_>> = fields.iter().map(|line| read_field(line)).collect();
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut head = Head { method, target, framing: Framing::None, length, fields: fields? };
    let hosts = head.values("host").len();
    let hosts_ok = hosts == 1 || (hosts == 0 && version == "HTTP/1.0");
    head.framing = framing(&head, version)?;
    (hosts_ok && length <= 16 * 1024).then_some(head)
}

/// Lines that end in CR LF; no control character but HTAB is anywhere else.
fn split_lines(head: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut lines = vec![Vec::new()];
    let mut bytes = head.iter().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' if bytes.next() == Some(&b'\n') => lines.push(Vec::new()),
            b'\t' | b' '..=b'~' | 0x80.. => lines.last_mut()?.push(*byte),
            _ => return None,
        }
    }
    Some(lines)
}

fn read_field(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    is_token(name).then(|| (String::from_utf8_lossy(name).into_owned(), value.to_vec()))
}

fn is_token(bytes: &[u8]) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric() || special.contains(b))
}

fn framing(head: &Head, version: &str) -> Option<Framing> {
    match (&head.values("content-length")[..], &head.values("transfer-encoding")[..]) {
        ([], []) => Some(Framing::None),
        ([length], []) if length.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(length).ok()?.parse().ok().map(Framing::Length)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && version == "HTTP/1.1" => {
            Some(Framing::Chunked)
        }
        _ => None,
    }
}

/// Content and bytes used; `None`: incomplete, or not strictly right.
pub(crate) fn read_body(framing: Framing, input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let length = match framing {
        Framing::None => 0,
        Framing::Length(length) => usize::try_from(length).ok()?,
        Framing::Chunked => return read_chunks(input),
        Framing::Close => unreachable!("requests have an end"),
    };
    Some((input.get(..length)?.to_vec(), length))
}

fn read_chunks(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut at) = (Vec::new(), 0);
    loop {
        let line = line_at(input, &mut at)?;
        let (size, extension) =
            line.split_at(line.iter().position(|b| *b == b';').unwrap_or(line.len()));
        let size = std::str::from_utf8(size).ok()?.trim_end_matches([' ', '\t']);
        let is_hex = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex || extension.contains(&b'\r') {
            return None;
        }
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            break;
        }
        content.extend_from_slice(input.get(at..at.checked_add(size)?)?);
        at += size;
        if input.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let line = line_at(input, &mut at)?;
        if line.is_empty() {
            return Some((content, at));
        }
        read_field(&line)?;
    }
}

fn line_at(input: &[u8], at: &mut usize) -> Option<Vec<u8>> {
    let rest = &input[*at..];
    let length = rest.windows(2).position(|window| window == b"\r\n")?;
    *at += length + 2;
    let [line] = &split_lines(&rest[..length])?[..] else { return None };
    Some(line.clone())
}
