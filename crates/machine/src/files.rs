//! The files by which server and shim know of a run: written whole, read with doubt.
//!
//! None is synced: a wake must not wait for the disk, and after a power cut no run is alive. So a file may come back
//! empty or cut, and then it tells of no run: whoever reads it kills what may still live and goes on. One that a later
//! version has written is treated alike, because what it means is not known. A lack of descriptors or memory is an
//! error instead: it passes, and must not cost a living Machine its life.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of all files. A server knows those of its own and older versions; a field that is added needs a default.
const VERSION: u32 = 1;

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content<T> {
    /// There is none.
    Absent,
    /// It can be relied on.
    Known(T),
    /// It is damaged, or of a later version; the text says which.
    Unreadable(String),
}

impl<T> Content<T> {
    /// What is known; that something is unreadable is logged.
    pub(crate) fn known(self, path: &Path) -> Option<T> {
        match self {
            Self::Absent => None,
            Self::Known(value) => Some(value),
            Self::Unreadable(why) => {
                tracing::warn!(path = %path.display(), why, "a file of a run is unreadable");
                None
            }
        }
    }
}

#[derive(Serialize)]
struct Stamped<'a, T> {
    version: u32,
    #[serde(flatten)]
    value: &'a T,
}

#[derive(Deserialize)]
struct Stamp {
    /// The first version did not write it everywhere.
    #[serde(default)]
    version: u32,
}

/// Writes a file so that it appears at once and whole.
pub(crate) fn write<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let text = serde_json::to_vec(&Stamped { version: VERSION, value })?;
    let draft = dir.join(format!("{name}.new"));
    let mut options = OpenOptions::new();
    let mut file: File =
        options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&text)?;
    fs::rename(draft, dir.join(name))
}

/// Reads a file.
///
/// # Errors
/// When it cannot be said now what the file says.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Content<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(parse(&bytes).map_or_else(Content::Unreadable, Content::Known)),
        Err(error) if is_absence(&error) => Ok(Content::Absent),
        Err(error) if is_lasting(&error) => Ok(Content::Unreadable(error.to_string())),
        Err(error) => Err(error),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let Stamp { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if VERSION < version {
        return Err(format!("it is of version {version}, this program knows up to {VERSION}"));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Whether there is no such file, or a file where its directory should be.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether reading it again would end alike.
fn is_lasting(error: &io::Error) -> bool {
    let lasting = [Errno::IO, Errno::ISDIR, Errno::UCLEAN, Errno::NODATA];
    lasting.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Said {
        run: u64,
    }

    fn check(text: &str, known: bool) -> io::Result<()> {
        let dir = crate::scratch_dir("files")?;
        fs::write(dir.join("said.json"), text)?;
        let content: Content<Said> = read(&dir.join("said.json"))?;
        fs::remove_dir_all(dir)?;
        match content {
            Content::Known(said) => assert!(known && said == Said { run: 7 }, "{text:?}"),
            Content::Unreadable(why) => assert!(!known, "{text:?}: {why}"),
            Content::Absent => panic!("{text:?} is there"),
        }
        Ok(())
    }

    #[test]
    fn damaged_files_and_those_of_later_versions_are_unreadable_but_no_errors() -> io::Result<()> {
        check("", false)?;
        check("\0\0\0\0", false)?;
        check(r#"{"version":1,"ru"#, false)?;
        check(r#"{"version":1}"#, false)?;
        check(r#"{"version":2,"run":7}"#, false)?;
        check(r#"{"version":1,"run":7,"more":true}"#, true)?;
        check(r#"{"run":7}"#, true)
    }

    #[test]
    fn what_is_written_is_read_and_what_is_no_file_is_unreadable() -> io::Result<()> {
        let dir = crate::scratch_dir("files-written")?;
        write(&dir, "said.json", &Said { run: 3 })?;
        assert_eq!(read(&dir.join("said.json"))?, Content::Known(Said { run: 3 }));
        assert_eq!(read::<Said>(&dir.join("other.json"))?, Content::Absent);
        assert!(matches!(read::<Said>(&dir)?, Content::Unreadable(_)));
        fs::remove_dir_all(dir)
    }
}
