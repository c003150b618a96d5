//! Whether an answer goes out compressed, and what its fields say then (`http_options.compress`, PX-87).
//!
//! Only gzip: every client knows it. What a program has compressed is left alone, and a program says `Content-Encoding:
//! none` where it wants that too. Streams of events are left alone as well: each would keep a compressor for hours.

/// Shorter contents than this many bytes gain less than they cost.
pub const LENGTH_MIN: u64 = 256;

/// Answers of all apps that are compressed at once: each takes some 400 kB.
pub const AT_ONCE_MAX: usize = 128;

/// Whether one answer more is compressed, of an app that has `own` of `all` that are now.
///
/// An app takes no more than it leaves free: alone it has half of all, beside that one the next has a quarter. So answers that
/// never end keep their own app's from being compressed, and not those of others.
pub fn has_room(own: usize, all: usize) -> bool {
    own < AT_ONCE_MAX.saturating_sub(all)
}

/// Of a message: the value of a field by its name in lower case; fields that are there several times are one list,
/// joined by commas (RFC 9110, 5.3).
pub type Fields<'a> = &'a dyn Fn(&str) -> Option<String>;

/// An answer, as far as it matters here.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// Final, as `200`.
    pub status: u16,
    /// Bytes of its content, where they are known.
    pub length: Option<u64>,
    /// Its fields.
    pub fields: Fields<'a>,
}

/// A field of the answer, by its name in lower case: `None` takes it out, a value replaces all of its name.
pub type Change = (&'static str, Option<String>);

/// What is done to an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its content is compressed by gzip.
    pub gzip: bool,
    /// Its fields; those that frame the message are the caller's business.
    pub changes: Vec<Change>,
}

/// Decides about one answer. `possible`: it brings content, and there is room for one more compressor.
pub fn plan(request: Fields<'_>, answer: Answer<'_>, possible: bool) -> Plan {
    match (answer.fields)("content-encoding") {
        Some(coding) if coding.trim().eq_ignore_ascii_case("none") => {
            return Plan { gzip: false, changes: vec![("content-encoding", None)] };
        }
        Some(_) => return Plan::default(),
        None => {}
    }
    if !may_change(answer) {
        return Plan::default();
    }
    let mut changes = Vec::new();
    // Also where it is not compressed: another caller gets it otherwise.
    if let Some(vary) = vary((answer.fields)("vary").as_deref()) {
        changes.push(("vary", Some(vary)));
    }
    let gzip = possible
        && accepts_gzip(&request("accept-encoding").unwrap_or_default())
        && !names(request("cache-control").as_deref(), "no-transform");
    if gzip {
        changes.push(("content-encoding", Some("gzip".to_owned())));
        changes.push(("content-length", None));
        changes.push(("accept-ranges", None));
        if let Some(tag) = (answer.fields)("etag").filter(|tag| tag.trim().starts_with('"')) {
            changes.push(("etag", Some(format!("W/{}", tag.trim()))));
        }
    }
    Plan { gzip, changes }
}

/// Whether compression would leave an answer what it is.
fn may_change(answer: Answer<'_>) -> bool {
    let has = |name| (answer.fields)(name).is_some();
    // Parts of a content, and digests of it, are about the bytes as they came.
    let of_bytes = ["content-range", "content-digest", "repr-digest", "digest", "content-md5"];
    !matches!(answer.status, ..200 | 204..=206 | 304)
        && answer.length.is_none_or(|length| LENGTH_MIN <= length)
        && !of_bytes.into_iter().any(has)
        && !names((answer.fields)("cache-control").as_deref(), "no-transform")
        && (answer.fields)("content-type").is_some_and(|kind| is_text(&kind))
}

/// Whether content of this type has much to be left out: text, and the few binary forms that are as loose as text.
pub fn is_text(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some((kind, form)) = kind.split_once('/') else { return false };
    match kind {
        "text" => form != "event-stream",
        "application" => {
            let known = [
                "ecmascript",
                "graphql",
                "javascript",
                "json",
                "rtf",
                "toml",
                "vnd.ms-fontobject",
                "wasm",
                "x-javascript",
                "x-ndjson",
                "x-yaml",
                "xml",
                "yaml",
            ];
            known.contains(&form) || is_suffixed(form)
        }
        "font" => matches!(form, "ttf" | "otf" | "sfnt" | "collection"),
        "image" => matches!(form, "bmp" | "x-icon" | "vnd.microsoft.icon") || is_suffixed(form),
        "model" | "message" => is_suffixed(form),
        _ => false,
    }
}

fn is_suffixed(form: &str) -> bool {
    ["+json", "+xml", "+text", "+yaml"].into_iter().any(|suffix| form.ends_with(suffix))
}

/// Whether a list of directives or field names has this one.
fn names(list: Option<&str>, wanted: &str) -> bool {
    let name = |item: &str| item.split('=').next().unwrap_or_default().trim().to_owned();
    list.is_some_and(|list| list.split(',').any(|item| name(item).eq_ignore_ascii_case(wanted)))
}

/// What `Vary` must say; `None`: it says that already.
fn vary(said: Option<&str>) -> Option<String> {
    const OURS: &str = "Accept-Encoding";
    match said.map(str::trim).filter(|said| !said.is_empty()) {
        None => Some(OURS.to_owned()),
        Some(said) if names(Some(said), OURS) || names(Some(said), "*") => None,
        Some(said) => Some(format!("{said}, {OURS}")),
    }
}

/// Whether the value of `Accept-Encoding` allows gzip, and does not want the content as it is rather than that
/// (RFC 9110, 12.5.3). An item that makes no sense allows nothing.
pub fn accepts_gzip(list: &str) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for item in list.split(',') {
        let (coding, weight) = item.split_once(';').map_or((item, None), |(c, w)| (c, Some(w)));
        let weight = weight.map_or(Some(1000), weight_of).unwrap_or(0);
        let slot = match coding.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => &mut gzip,
            "*" => &mut any,
            "identity" => &mut identity,
            _ => continue,
        };
        *slot = Some(slot.map_or(weight, |former: u16| former.max(weight)));
    }
    // What is not named is allowed by `*` only; as it is, a content is always allowed, and liked least.
    let gzip = gzip.or(any).unwrap_or(0);
    0 < gzip && identity.unwrap_or(0) <= gzip
}

/// `q=0.5` in thousandths.
fn weight_of(text: &str) -> Option<u16> {
    let (name, value) = text.split_once('=')?;
    let value = value.trim();
    let (whole, rest) = value.split_once('.').unwrap_or((value, ""));
    let digits = rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    if !name.trim().eq_ignore_ascii_case("q") || !digits {
        return None;
    }
    let rest: u16 = format!("{rest:0<3}").parse().ok()?;
    match (whole, rest) {
        ("0", rest) => Some(rest),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
