//! What a server leaves to the process that takes its place: descriptors with names, in a file that only they two have.
//!
//! Its number is in the environment. The descriptors are open in both for a moment, so nobody who listens is ever
//! refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::Context;
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

/// Variable with the file's number.
pub(crate) const VARIABLE: &str = "PERCH_HANDOFF";
/// Names of descriptors: the data directory's lock, the API's sockets, who asked for the upgrade, and by what the
/// former server hears that it is not needed any more.
pub(crate) const LOCK: &str = "lock";
pub(crate) const API: &str = "api";
pub(crate) const API_TCP: &str = "api-tcp";
pub(crate) const ASKER: &str = "asker";
pub(crate) const READY: &str = "ready";

/// Descriptors by name.
pub(crate) type Left = Vec<(String, OwnedFd)>;

/// What is written down beside the descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Release of the server that leaves.
    pub(crate) version: String,
    /// Its process id.
    pub(crate) pid: u32,
    /// Why the one that should have followed it did not: this one is the former again.
    pub(crate) failure: Option<String>,
}

impl Note {
    /// Of this process.
    pub(crate) fn own(failure: Option<String>) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { version, pid: std::process::id(), failure }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Letter {
    note: Note,
    descriptors: BTreeMap<String, i32>,
}

/// What was left to this process.
#[derive(Debug)]
pub(crate) struct Handoff {
    pub(crate) note: Note,
    pub(crate) left: Left,
    /// Who asked for the upgrade, if he still listens.
    pub(crate) asker: Asker,
    /// Says by one byte that this server is ready, and ends when the former one has.
    pub(crate) ready: Option<UnixStream>,
}

impl Handoff {
    /// Takes what was left, if anything was. To be called once, at the start, by a process with one thread.
    ///
    /// # Errors
    /// When the variable is there and means nothing.
    pub(crate) fn take() -> anyhow::Result<Option<Self>> {
        let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let letter = number.and_then(perch_net::own_descriptor);
        let letter = letter.with_context(|| format!("{VARIABLE} names no descriptor"))?;
        let Letter { note, descriptors } =
            read(letter).context("could not read what the former server has left")?;
        let mut left = Vec::with_capacity(descriptors.len());
        for (name, number) in descriptors {
            let fd = perch_net::own_descriptor(number)
                .with_context(|| format!("the former server has left no {name}"))?;
            rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
            left.push((name, fd));
        }
        let asker = Asker(take_named(&mut left, ASKER).map(UnixStream::from));
        let ready = take_named(&mut left, READY).map(UnixStream::from);
        Ok(Some(Self { note, left, asker, ready }))
    }
}

/// Takes one out.
pub(crate) fn take_named(left: &mut Left, name: &str) -> Option<OwnedFd> {
    let at = left.iter().position(|(it, _)| it == name)?;
    Some(left.swap_remove(at).1)
}

fn read(letter: OwnedFd) -> anyhow::Result<Letter> {
    let mut file = File::from(letter);
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Puts what this command is born with into its environment. The answer must live until the command runs, and not
/// longer: nobody else is to be born with it.
///
/// # Errors
/// When the process has no descriptor left.
pub(crate) fn equip(command: &mut Command, note: Note, left: &Left) -> io::Result<Vec<OwnedFd>> {
    let (mut copies, mut descriptors) = (Vec::new(), BTreeMap::new());
    for (name, fd) in left {
        // Not closed by the exec.
        let copy = rustix::io::dup(fd)?;
        descriptors.insert(name.clone(), copy.as_raw_fd());
        copies.push(copy);
    }
    let mut letter = File::from(rustix::fs::memfd_create("handoff", MemfdFlags::empty())?);
    letter.write_all(&serde_json::to_vec(&Letter { note, descriptors })?)?;
    command.env(VARIABLE, letter.as_raw_fd().to_string());
    copies.push(letter.into());
    Ok(copies)
}

/// Who asked for an upgrade, and hears how it goes. Nobody, if a signal did.
#[derive(Debug, Default)]
pub(crate) struct Asker(pub(crate) Option<UnixStream>);

impl Asker {
    /// Says something on the way.
    pub(crate) fn say(&self, text: &str) {
        self.write("", text);
    }

    /// Says how it ended.
    pub(crate) fn done(&self, text: &str) {
        tracing::info!("{text}");
        self.write(DONE, text);
    }

    /// Says that it did not come about.
    pub(crate) fn failed(&self, text: &str) {
        tracing::error!("{text}");
        self.write(FAILED, text);
    }

    fn write(&self, mark: &str, text: &str) {
        let Some(mut stream) = self.0.as_ref() else { return };
        // He may have gone.
        stream.write_all(format!("{mark}{}\n", text.replace('\n', " ")).as_bytes()).ok();
    }

    /// A copy for the process that goes on.
    pub(crate) fn leave(&self) -> Option<(String, OwnedFd)> {
        let copy = self.0.as_ref()?.as_fd().try_clone_to_owned().ok()?;
        Some((ASKER.to_owned(), copy))
    }
}

/// How the last line begins that the asker hears.
pub(crate) const DONE: &str = "done ";
pub(crate) const FAILED: &str = "failed ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_written_down_by_name() {
        let (mine, theirs) = UnixStream::pair().expect("a pair");
        let left = vec![(READY.to_owned(), theirs.into())];
        let mut command = Command::new("true");
        let copies = equip(&mut command, Note::own(Some("why".to_owned())), &left).expect("copies");
        let number = command.get_envs().find(|(name, _)| *name == VARIABLE).and_then(|it| it.1);
        let letter = copies.last().expect("the letter");
        assert_eq!(number, Some(letter.as_raw_fd().to_string().as_str().as_ref()));
        let letter = read(letter.try_clone().expect("a copy")).expect("it was written");
        assert_eq!(letter.note.failure.as_deref(), Some("why"));
        assert_eq!(letter.descriptors[READY], copies[0].as_raw_fd());
        drop(mine);
    }

    #[test]
    fn who_asked_hears_one_line_of_each_thing() {
        let (mut mine, theirs) = UnixStream::pair().expect("a pair");
        let asker = Asker(Some(theirs));
        asker.say("first");
        asker.failed("because\nof that");
        drop(asker);
        let mut heard = String::new();
        mine.read_to_string(&mut heard).expect("it was said");
        assert_eq!(heard, "first\nfailed because of that\n");
    }
}
