//! `--file-local`, `--file-literal`, `--file-secret`: files of a Machine, as `/path/inside=WHAT`.

use super::super::Context;
use super::flags::Shared;
use crate::failure::{Failure, Outcome};
use perch_api::wire::encode_base64;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A config takes less; a longer file is not read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Puts the given files into a config; one without a content is taken away.
pub(super) fn apply(
    context: &Context<'_>,
    config: &mut Map<String, Value>,
    flags: &Shared,
) -> Outcome {
    let mut given = Vec::new();
    for (path, name) in pairs("file-local", &flags.file_local)? {
        given.push((path, content(name, |name| Ok(raw(&read(&context.env.dir.join(name))?)))?));
    }
    for (path, text) in pairs("file-literal", &flags.file_literal)? {
        given.push((path, content(text, |text| Ok(raw(text.as_bytes())))?));
    }
    for (path, name) in pairs("file-secret", &flags.file_secret)? {
        given.push((path, content(name, |name| Ok(("secret_name", name.to_owned())))?));
    }
    if given.is_empty() {
        return Ok(());
    }
    let mut files = match config.get("files") {
        Some(Value::Array(files)) => files.clone(),
        _ => Vec::new(),
    };
    for (path, content) in given {
        files.retain(|file| file["guest_path"] != path);
        files.extend(content.map(|(key, value)| json!({"guest_path": path, key: value})));
    }
    config.insert("files".to_owned(), files.into());
    Ok(())
}

type Content = (&'static str, String);

fn content(text: &str, make: impl FnOnce(&str) -> Outcome<Content>) -> Outcome<Option<Content>> {
    if text.is_empty() { Ok(None) } else { make(text).map(Some) }
}

fn raw(bytes: &[u8]) -> Content {
    ("raw_value", encode_base64(bytes))
}

fn pairs<'a>(flag: &str, given: &'a [String]) -> Outcome<Vec<(&'a str, &'a str)>> {
    let pair = |text: &'a String| {
        let failed = |cause: String| Failure::new(cause).context(format!("failed to read {flag}"));
        match text.split_once('=') {
            None => Err(failed(format!("invalid {flag} argument {text}"))),
            Some((path, _)) if !path.starts_with('/') => {
                Err(failed(format!("guest path, {path}, must be absolute")))
            }
            Some(pair) => Ok(pair),
        }
    };
    given.iter().map(pair).collect()
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    let size = std::fs::metadata(path).map(|it| it.len());
    let bytes = match size {
        Ok(size) if FILE_BYTES_MAX < size => {
            let error = format!("{} is larger than 1 MiB, which no Machine takes", path.display());
            return Err(Failure::new(error).hint("Put it into the image"));
        }
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    bytes.map_err(|error| {
        let doing = format!("failed to read file-local: could not read file {}", path.display());
        Failure::from(error).context(doing)
    })
}
