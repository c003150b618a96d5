//! The quickstart's stage: a network namespace that stands for a host, a directory, a real server.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use super::guard::{Guard, Keep};

/// Everything that must be put back. Without [`Stage::strike`] the guard does it when this process is gone.
#[derive(Debug)]
pub(crate) struct Stage {
    exe: PathBuf,
    dir: PathBuf,
    server: Child,
    guard: Guard,
}

impl Stage {
    /// Makes the namespace and the directory, and starts the server in them.
    ///
    /// # Errors
    /// When something cannot be made, or the server does not become ready; it has then ended.
    pub(crate) fn set(wanted: Option<PathBuf>) -> anyhow::Result<Self> {
        let exe = std::env::current_exe().context("could not find this program's own path")?;
        let (dir, keep) = match wanted {
            Some(dir) => (make_dir(&dir)?, Keep::Yes),
            None => {
                (tempfile::Builder::new().prefix("perch-").tempdir_in("/tmp")?.keep(), Keep::No)
            }
        };
        println!("==> Starting a server in {} and a network namespace of its own", dir.display());
        let netns = perch_net::new_namespace().context("could not make a network namespace")?;
        let guard = Guard::post(&exe, &dir, keep, netns.as_fd())?;
        match start_server(&exe, &dir, netns.as_fd()) {
            Ok(server) => Ok(Self { exe, dir, server, guard }),
            Err(error) => {
                guard.relieve()?;
                Err(error)
            }
        }
    }

    /// Where apps' working directories are made.
    pub(crate) fn work_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        make_dir(&self.dir.join("work").join(name))
    }

    /// The API's socket, for `PERCH_SOCKET`.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("data/api.sock")
    }

    /// This program's own path.
    pub(crate) fn exe(&self) -> &Path {
        &self.exe
    }

    /// A `fly` command that talks to this server.
    pub(crate) fn fly<S: AsRef<OsStr>>(&self, dir: &Path, args: &[S]) -> Command {
        let mut command = Command::new(&self.exe);
        command.arg("fly").args(args).current_dir(dir).env("PERCH_SOCKET", self.socket());
        command
    }

    /// Stops everything and puts the host back as it was.
    ///
    /// # Errors
    /// When something stays behind; the message says what removes it.
    pub(crate) fn strike(mut self) -> anyhow::Result<()> {
        let status = self.guard.relieve()?;
        self.server.wait().context("could not wait for the server")?;
        anyhow::ensure!(status.success(), "something of {} is left", self.dir.display());
        Ok(())
    }
}

fn make_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("could not find {}", dir.display()))
}

fn start_server(
    exe: &Path,
    dir: &Path,
    netns: std::os::fd::BorrowedFd<'_>,
) -> anyhow::Result<Child> {
    let mut command = Command::new(exe);
    // A group of its own: Ctrl-C ends the quickstart, which then ends the server in good order.
    command.arg("server").arg("--data-dir").arg(dir.join("data")).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let spawned =
        perch_net::run_in(netns, || command.spawn()).context("could not enter the namespace")?;
    let mut server = spawned.context("could not start the server")?;
    let stderr = server.stderr.take().expect("stderr was asked for as a pipe");
    match await_ready(BufReader::new(stderr), &dir.join("server.log")) {
        Ok(()) => Ok(server),
        Err(error) => {
            server.wait().context("could not wait for the server")?;
            Err(error)
        }
    }
}

/// Reads until the line `ready SOCKET`; what follows goes to the log, as did what came before.
fn await_ready(mut stderr: BufReader<std::process::ChildStderr>, log: &Path) -> anyhow::Result<()> {
    let mut log =
        fs::File::create(log).with_context(|| format!("could not write {}", log.display()))?;
    let mut said = String::new();
    loop {
        let mut line = String::new();
        if stderr.read_line(&mut line).context("could not read from the server")? == 0 {
            anyhow::bail!("the server ended before it was ready: {}", said.trim());
        }
        log.write_all(line.as_bytes()).context("could not write the server's log")?;
        if line.starts_with("ready ") {
            break;
        }
        said.push_str(&line);
    }
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut log));
    Ok(())
}
