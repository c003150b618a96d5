//! Puts everything back when the quickstart ends, however it ends: `perch strike keep|remove DIR`.
//!
//! It is a process of its own whose standard input only the quickstart holds open, so that SIGKILL and a panic are
//! noticed like the end of the play. It lives in a process group of its own, out of the terminal's reach.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use anyhow::Context;

/// Whether the directory stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The user named it.
    Yes,
    /// We made it.
    No,
}

impl Keep {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "keep",
            Self::No => "remove",
        }
    }
}

/// The waiting process. Dropping it lets it begin without anybody waiting for it.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts it inside the stage's namespace, before there is anything to put back.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn post(
        exe: &Path,
        dir: &Path,
        keep: Keep,
        netns: BorrowedFd<'_>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(exe);
        command.arg("strike").arg(keep.word()).arg(dir).stdin(Stdio::piped()).process_group(0);
        let spawned = perch_net::run_in(netns, || command.spawn());
        let spawned = spawned.context("could not enter the namespace")?;
        Ok(Self(spawned.context("could not start what puts everything back")?))
    }

    /// Lets it put everything back and waits for that.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(crate) fn relieve(mut self) -> anyhow::Result<ExitStatus> {
        // Waiting closes its standard input first.
        self.0.wait().context("could not wait for what puts everything back")
    }
}

/// Entry point of `perch strike keep|remove DIR`.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let [word, dir] = args else {
        return crate::usage("error: perch strike is started by quickstart only\n");
    };
    // An error is an end of the input too.
    io::copy(&mut io::stdin(), &mut io::sink()).ok();
    match strike(Path::new(dir), word == Keep::No.word()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(io::stderr(), format!("error: {error:#}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn strike(dir: &Path, remove: bool) -> anyhow::Result<()> {
    let mut down = Command::new("/proc/self/exe");
    down.args(["down", "--purge", "--data-dir"]).arg(dir.join("data")).stdin(Stdio::null());
    let output = down.output().context("could not run perch down")?;
    tell(io::stdout(), &output.stdout);
    tell(io::stderr(), &output.stderr);
    let log = dir.join("server.log");
    anyhow::ensure!(
        output.status.success(),
        "perch down failed; the server's log is {}",
        log.display()
    );
    if remove {
        fs::remove_dir_all(dir).with_context(|| format!("could not remove {}", dir.display()))?;
    }
    Ok(())
}

/// The terminal may be gone, and what is to be done must be done all the same.
fn tell(mut to: impl Write, text: &[u8]) {
    to.write_all(text).ok();
}
