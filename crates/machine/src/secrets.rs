//! Variables of a program's environment, and files, that nothing but the Machine may see.
//!
//! ```text
//!  launcher ── socket ──► shim ── memory file, descriptor 4 ──► init ── environment ──► program
//!                           └──── file in memory, mounted where the Machine wants it
//! ```
//!
//! They are in no file, in no specification or bundle, in no command line, and in the environment of no process but the
//! program and what it starts. The shim passes them on unread. A launcher that dies half-way leaves too few bytes, and
//! then nothing is started.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::MemfdFlags;

use crate::launch::RootFile;

/// The descriptor that init reads them from. A pair of sockets had it before, so it is the lowest free one.
pub(crate) const SECRETS_FD: i32 = 4;
/// The length of what follows comes first.
const LENGTH_BYTES: usize = 8;
/// More than the kernel lets a program's environment be.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A byte is up to four in JSON; contents come from secrets, which are 64 kB at most each.
const FILES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Variables by name, and files. Prints without values and contents.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    variables: Vec<(String, String)>,
    files: Vec<RootFile>,
}

impl Secrets {
    /// Takes variables; a later one of the same name wins. They win over those of the specification too.
    pub fn new(variables: Vec<(String, String)>) -> Self {
        Self { variables, files: Vec::new() }
    }

    /// The same with files that replace what the image has there; they are in no file system but a memory's.
    #[must_use]
    pub fn with_files(self, files: Vec<RootFile>) -> Self {
        Self { files, ..self }
    }

    /// The last value of a name.
    pub fn value(&self, name: &str) -> Option<&str> {
        let mut named = self.variables.iter().rev().filter(|(known, _)| known == name);
        named.next().map(|(_, value)| value.as_str())
    }

    /// Names and values, for a process that joins the program.
    pub(crate) fn variables(&self) -> &[(String, String)] {
        &self.variables
    }

    /// Whether the kernel would take them apart differently.
    pub(crate) fn is_bad(&self) -> bool {
        let bad_name = |name: &str| name.is_empty() || name.contains(['=', '\0']);
        self.variables.iter().any(|(name, value)| bad_name(name) || value.contains('\0'))
            || self.files.iter().any(|file| !file.path.starts_with('/'))
    }

    /// `NAME=VALUE`, each ended by a NUL, after the length of it all; then the files as JSON, after its length.
    pub(crate) fn packed(&self) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH_BYTES];
        for (name, value) in &self.variables {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(b'=');
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        let length = (bytes.len() - LENGTH_BYTES) as u64;
        bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        let files = serde_json::to_vec(&self.files).expect("a list of plain data becomes JSON");
        bytes.extend((files.len() as u64).to_le_bytes());
        bytes.extend(files);
        bytes
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.variables.iter().map(|(name, _)| name);
        f.debug_list().entries(names).entries(self.files.iter().map(|file| &file.path)).finish()
    }
}

/// Reads what the launcher packed into a memory file at [`SECRETS_FD`] that survives exec.
pub(crate) fn receive(from: &mut impl Read) -> io::Result<OwnedFd> {
    let mut length = [0; LENGTH_BYTES];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if BYTES_MAX < length {
        return Err(io::Error::other("the environment is too long"));
    }
    let file = rustix::fs::memfd_create(c"environment", MemfdFlags::empty())?;
    if file.as_raw_fd() != SECRETS_FD {
        return Err(io::Error::other("descriptor 4 is taken"));
    }
    let mut file = File::from(file);
    if io::copy(&mut from.take(length), &mut file)? < length {
        return Err(io::Error::other("the launcher is gone"));
    }
    file.flush()?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file.into())
}

/// Reads the files that the launcher packed behind the variables.
pub(crate) fn receive_files(from: &mut impl Read) -> io::Result<Vec<RootFile>> {
    let mut length = [0; LENGTH_BYTES];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if FILES_BYTES_MAX < length {
        return Err(io::Error::other("the files are too long"));
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_printed() {
        let secrets = Secrets::new(vec![("KEY".to_owned(), "hunter2".to_owned())]);
        let text = format!("{secrets:?}");
        assert!(text.contains("KEY") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn what_would_be_taken_apart_differently_is_bad() {
        let bad = |name: &str, value: &str| {
            Secrets::new(vec![(name.to_owned(), value.to_owned())]).is_bad()
        };
        assert!(bad("", "x") && bad("A=B", "x") && bad("A\0", "x") && bad("A", "x\0y"));
        assert!(!bad("A", "x=y\nz"));
    }

    #[test]
    fn bytes_that_break_off_are_no_environment() {
        let packed = Secrets::new(vec![("A".to_owned(), "b".to_owned())]).packed();
        let files = [&[2, 0, 0, 0, 0, 0, 0, 0], b"[]".as_slice()].concat();
        assert_eq!(packed, [&[4, 0, 0, 0, 0, 0, 0, 0], b"A=b\0".as_slice(), &files].concat());
        assert!(receive_files(&mut files.as_slice()).is_ok_and(|files| files.is_empty()));
        assert!(receive_files(&mut &files[..9]).is_err(), "cut");
        for length in 0..LENGTH_BYTES {
            let error = receive(&mut &packed[..length]).expect_err("broken off");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        let absurd = u64::MAX.to_le_bytes();
        assert!(receive(&mut absurd.as_slice()).is_err());
    }
}
