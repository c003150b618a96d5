//! Files that the platform writes into a Machine before its program starts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{BadConfig, bad};
use super::{decode_base64, null_default, schema};

/// How many files one Machine may have, and how long all their contents together may be: a config is kept whole in the
/// store, and the contents of secrets in memory.
const FILES_MAX: usize = 100;
const BYTES_MAX: usize = 1024 * 1024;
const MODE_DEFAULT: u32 = 0o644;
/// Links, `..` and directories are for the Machine's own root to judge; this is what the kernel takes.
const PATH_BYTES_MAX: usize = 4095;

/// A file of a config (MA-49).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GuestFile {
    /// Where it is in the Machine; absolute.
    #[serde(deserialize_with = "null_default")]
    pub guest_path: String,
    /// Its content in base64.
    pub raw_value: Option<String>,
    /// The secret that has its content in base64.
    pub secret_name: Option<String>,
    /// A part of the image's own config; refused.
    #[schemars(transform = schema::nullable)]
    pub image_config: Option<String>,
    /// Permissions; absent or 0 = 0644.
    pub mode: Option<u32>,
}

/// What a file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// This.
    Bytes(Vec<u8>),
    /// The decoded value of this secret.
    Secret(String),
}

impl GuestFile {
    /// Permissions.
    pub fn mode(&self) -> u32 {
        self.mode.filter(|mode| *mode != 0).unwrap_or(MODE_DEFAULT)
    }

    /// What it contains; `None` for one that no config can have.
    pub fn content(&self) -> Option<FileContent> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        match (&self.raw_value, given(&self.secret_name)) {
            (Some(text), None) => decode_base64(text).map(FileContent::Bytes),
            (None, Some(name)) => Some(FileContent::Secret(name)),
            _ => None,
        }
    }

    fn check(&self, key: &str) -> Result<usize, BadConfig> {
        let path = self.guest_path.as_str();
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(bad(format!("{key}.guest_path"), "must be the absolute path of a file"));
        }
        if PATH_BYTES_MAX < path.len()
            || path.split('/').any(|name| name == ".." || 255 < name.len())
        {
            return Err(bad(format!("{key}.guest_path"), "is too long, or has `..` in it"));
        }
        if self.image_config.is_some() {
            return Err(bad(format!("{key}.image_config"), "is not here; use raw_value"));
        }
        if 0o7777 < self.mode() {
            return Err(bad(format!("{key}.mode"), "must be permissions, at most 0o7777"));
        }
        match self.content() {
            Some(FileContent::Bytes(bytes)) => Ok(bytes.len()),
            Some(FileContent::Secret(_)) => Ok(0),
            None => Err(bad(key, "needs either raw_value, which is base64, or secret_name")),
        }
    }
}

/// Refuses what could not be written.
pub(super) fn check(files: &[GuestFile]) -> Result<(), BadConfig> {
    if FILES_MAX < files.len() {
        return Err(bad("files", format!("are more than {FILES_MAX}")));
    }
    let mut length = 0;
    for (at, file) in files.iter().enumerate() {
        length += file.check(&format!("files[{at}]"))?;
        if files[..at].iter().any(|other| other.guest_path == file.guest_path) {
            return Err(bad(format!("files[{at}].guest_path"), "is there twice"));
        }
    }
    if BYTES_MAX < length {
        return Err(bad("files", format!("have more than {BYTES_MAX} bytes together")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::encode_base64;

    fn refused(change: impl FnOnce(&mut GuestFile), key: &str) {
        let mut file = GuestFile {
            guest_path: "/etc/app.conf".to_owned(),
            raw_value: Some("aGk=".to_owned()),
            ..GuestFile::default()
        };
        assert_eq!(check(std::slice::from_ref(&file)), Ok(()));
        change(&mut file);
        assert_eq!(check(&[file]).map_err(|error| error.key), Err(key.to_owned()));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_by_its_key() {
        refused(|file| file.guest_path = "etc/x".to_owned(), "files[0].guest_path");
        refused(|file| file.guest_path = "/etc/".to_owned(), "files[0].guest_path");
        refused(|file| file.guest_path = "/a/../b".to_owned(), "files[0].guest_path");
        refused(|file| file.guest_path = "/a\0".to_owned(), "files[0].guest_path");
        refused(|file| file.raw_value = Some("no base64!".to_owned()), "files[0]");
        refused(|file| file.raw_value = None, "files[0]");
        refused(|file| file.secret_name = Some("KEY".to_owned()), "files[0]");
        refused(|file| file.image_config = Some("x".to_owned()), "files[0].image_config");
        refused(|file| file.mode = Some(0o10000), "files[0].mode");
        let long = encode_base64(&vec![0; BYTES_MAX + 1]);
        refused(|file| file.raw_value = Some(long), "files");
    }

    #[test]
    fn the_same_path_twice_and_too_many_are_refused() {
        let file = |at: usize| GuestFile {
            guest_path: format!("/{at}"),
            secret_name: Some("KEY".to_owned()),
            ..GuestFile::default()
        };
        assert!(check(&[file(1), file(2)]).is_ok());
        assert!(check(&[file(1), file(1)]).is_err());
        assert!(check(&(0..=FILES_MAX).map(file).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn permissions_that_are_not_given_are_those_of_a_file_for_everybody_to_read() {
        assert_eq!(GuestFile::default().mode(), 0o644);
        assert_eq!(GuestFile { mode: Some(0o600), ..GuestFile::default() }.mode(), 0o600);
    }
}
