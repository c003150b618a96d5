//! `[[files]]` of a configuration file, as a Machine's config has them.

use crate::failure::{Failure, Outcome};
use crate::flytoml::Config;
use crate::flytoml::File;
use perch_api::wire::{decode_base64, encode_base64};
use serde_json::{Value, json};
use std::path::Path;

/// Files that are longer no server takes.
const BYTES_MAX: u64 = 1024 * 1024;

/// The files of a group, in order; of those for the same path the last counts.
pub(super) fn of_group(config: &Config, group: &str) -> Outcome<Vec<Value>> {
    let mut files: Vec<(String, Value)> = Vec::new();
    for file in config.files.iter().filter(|file| config.belongs(&file.processes, group)) {
        let path = file.guest_path.clone().unwrap_or_default();
        let value = content(file, &config.dir)
            .map_err(|failure| failure.context(format!("could not use the file for {path}")))?;
        files.retain(|(known, _)| *known != path);
        // One without content takes back what stands before it.
        if let Some((key, value)) = value {
            files.push((path.clone(), json!({"guest_path": path, key: value})));
        }
    }
    Ok(files.into_iter().map(|(_, value)| value).collect())
}

/// flyctl's order where several are given.
fn content(file: &File, dir: &Path) -> Outcome<Option<(&'static str, String)>> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(local) = given(&file.local_path) {
        let path = dir.join(&local);
        let read = || {
            let length = std::fs::metadata(&path)?.len();
            if BYTES_MAX < length {
                return Err(std::io::Error::other(format!("it has more than {BYTES_MAX} bytes")));
            }
            std::fs::read(&path)
        };
        let bytes = read().map_err(|error| {
            Failure::from(error).context(format!("could not read file {local}"))
        })?;
        return Ok(Some(("raw_value", encode_base64(&bytes))));
    }
    if let Some(secret) = given(&file.secret_name) {
        return Ok(Some(("secret_name", secret)));
    }
    Ok(given(&file.raw_value).map(|text| ("raw_value", encode_base64(&plain(&text)))))
}

/// The documents say base64, flyctl takes the text as it is (CT-16): what decodes to text is taken as base64.
fn plain(text: &str) -> Vec<u8> {
    let decoded = decode_base64(text).filter(|bytes| std::str::from_utf8(bytes).is_ok());
    decoded.unwrap_or_else(|| text.as_bytes().to_vec())
}
