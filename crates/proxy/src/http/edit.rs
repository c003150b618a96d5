//! Changes to a head that we wrote: fields put into it, taken out of it, another path.
//!
//! Only for requests that are routed in a special way: it copies the head.

use super::head::write_field;

/// What to change. Names are compared without case; what is put in replaces fields of its name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// Path and query.
    pub(super) path: Option<String>,
    pub(super) drop: Vec<String>,
    pub(super) set: Vec<(String, String)>,
}

impl Edit {
    pub(super) fn set(name: &str, value: String) -> Self {
        Self { set: vec![(name.to_owned(), value)], ..Self::default() }
    }

    pub(super) fn drop(name: &str) -> Self {
        Self { drop: vec![name.to_owned()], ..Self::default() }
    }

    fn drops(&self, name: &[u8]) -> bool {
        let set = self.set.iter().map(|(name, _)| name);
        self.drop.iter().chain(set).any(|other| other.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Changes the head at the front of `message`, which has `head_len` bytes; returns its new length.
    pub(crate) fn apply(&self, message: &mut Vec<u8>, head_len: usize) -> usize {
        let mut out = Vec::with_capacity(message.len() + 256);
        let mut lines = lines(&message[..head_len]);
        let first = lines.next().unwrap_or_default();
        match (&self.path, split_first(first)) {
            (Some(path), Some((method, version))) => {
                out.extend_from_slice(method);
                out.push(b' ');
                out.extend_from_slice(path.as_bytes());
                out.push(b' ');
                out.extend_from_slice(version);
            }
            _ => out.extend_from_slice(first),
        }
        out.extend_from_slice(b"\r\n");
        for line in lines {
            if !self.drops(name_of(line)) {
                out.extend_from_slice(line);
                out.extend_from_slice(b"\r\n");
            }
        }
        for (name, value) in &self.set {
            write_field(&mut out, name, value.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        let new_len = out.len();
        out.extend_from_slice(&message[head_len..]);
        *message = out;
        new_len
    }
}

/// The value of the first field of this name in a head that we wrote; empty if it is no text.
pub(crate) fn value_of<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let line =
        lines(head).skip(1).find(|line| name_of(line).eq_ignore_ascii_case(name.as_bytes()))?;
    Some(value_in(line, name))
}

/// The values of all fields of this name in a head that we wrote, joined by commas; what is no text is empty.
pub(crate) fn values_of(head: &[u8], name: &str) -> Option<String> {
    let of_name = |line: &&[u8]| name_of(line).eq_ignore_ascii_case(name.as_bytes());
    let values: Vec<_> =
        lines(head).skip(1).filter(of_name).map(|line| value_in(line, name)).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// The value in the line of a field of this name; empty if it is no text.
fn value_in<'a>(line: &'a [u8], name: &str) -> &'a str {
    let value = line.get(name.len() + 1..).unwrap_or_default();
    std::str::from_utf8(value).unwrap_or_default().trim()
}

/// The lines of a head without their ends, up to the empty one.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines =
        head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.take_while(|line| !line.is_empty())
}

fn name_of(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
    &line[..end]
}

/// Method and version.
fn split_first(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = line.iter().position(|byte| *byte == b' ')?;
    let last = line.iter().rposition(|byte| *byte == b' ')?;
    (first < last).then(|| (&line[..first], &line[last + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] =
        b"GET /a?b HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\na: 3\r\n\r\nbody: a\r\n\r\n";

    fn head_len() -> usize {
        MESSAGE.len() - b"body: a\r\n\r\n".len()
    }

    fn edited(edit: &Edit) -> String {
        let mut message = MESSAGE.to_vec();
        let new_len = edit.apply(&mut message, head_len());
        assert_eq!(&message[new_len..], b"body: a\r\n\r\n");
        String::from_utf8(message[..new_len].to_vec()).expect("it is text")
    }

    #[test]
    fn fields_are_replaced_and_dropped_whatever_their_case() {
        let edit = Edit { drop: vec!["b".to_owned()], ..Edit::set("A", "4".to_owned()) };
        assert_eq!(edited(&edit), "GET /a?b HTTP/1.1\r\nHost: x\r\nA: 4\r\n\r\n");
        assert_eq!(edited(&Edit::drop("nothing")).as_bytes(), &MESSAGE[..head_len()]);
    }

    #[test]
    fn the_path_is_replaced_with_its_query() {
        let edit = Edit { path: Some("/c".to_owned()), ..Edit::default() };
        assert!(edited(&edit).starts_with("GET /c HTTP/1.1\r\nHost: x\r\n"));
    }

    #[test]
    fn values_are_found_in_the_head_only() {
        assert_eq!(value_of(MESSAGE, "b"), Some("2"));
        assert_eq!(value_of(MESSAGE, "A"), Some("1"));
        assert_eq!(value_of(MESSAGE, "body"), None);
        assert_eq!(values_of(MESSAGE, "a").as_deref(), Some("1, 3"));
        assert_eq!(values_of(MESSAGE, "body"), None);
        assert_eq!(value_of(b"GET / HTTP/1.1\r\nA: \xe9\r\n\r\n", "a"), Some(""));
        assert_eq!(value_of(MESSAGE, "GET /a?b HTTP/1.1"), None);
    }
}
