//! Upgrade in place: another program takes this server's place, and then its proxy's, while everybody is served.
//!
//! ```text
//!  asked ─► the new program is tried ─► this server ends, its proxy goes on ─► the new one starts ─► ready
//!    │         │ it cannot serve             and this process waits beside         │ it ends, or is too slow
//!    │         ▼                                                                   ▼
//!    │      refused, nothing has changed                           this program begins again, as it was
//!    └── by `perch server --upgrade`, which hears how it goes, or by SIGUSR2
//! ```
//!
//! Callers of running and suspended Machines notice nothing of it, since the proxy serves them by itself; who needs a
//! start waits. The lock, the API's sockets, those inside Machines and the proxy's listeners go over as they are.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use perch_core::fault::{self, Point};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use super::handoff::{self, Asker, DONE, FAILED, Left, Note, READY};
use super::lock::DirLock;
use crate::paths::Paths;
use crate::{process, service_manager};

/// How long the new program may take to say what it is.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a new server may take until it serves: with thousands of Machines, on a slow disk, it is some seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a new server may take to end on demand: less than the service manager waits for us (`TimeoutStopSec` of the
/// unit), since what is left of it then would go on.
const END_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a running server may take to notice that it was asked.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for the next word: the longest step is the start of a new server, and then of the former again.
const WORD_TIMEOUT: Duration = Duration::from_secs(600);
/// How the answer to a trial begins; version and schema of the store follow.
const TRIAL_ANSWER: &str = "perch-server";

/// A program that was tried and may take this server's place.
#[derive(Debug)]
pub(crate) struct Successor {
    exe: PathBuf,
    version: String,
    pub(crate) asker: Asker,
}

/// What a program answers that is tried.
pub(crate) fn answer_trial() -> String {
    format!("{TRIAL_ANSWER} {} {}", env!("CARGO_PKG_VERSION"), perch_store::schema_known())
}

/// Finds out who asked and tries the program that is meant; [`None`] if it cannot serve, which the asker has heard.
/// Blocks.
pub(crate) fn prepare(paths: &Paths) -> Option<Successor> {
    let (asker, named) = asker(paths);
    let tried = named.map_or_else(own_program, Ok).and_then(|exe| {
        let version = try_program(&exe).with_context(|| exe.display().to_string())?;
        Ok((exe, version))
    });
    match tried {
        Ok((exe, version)) => {
            let own = env!("CARGO_PKG_VERSION");
            asker.say(&format!("replacing perch {own} by perch {version} ({})", exe.display()));
            Some(Successor { exe, version, asker })
        }
        Err(error) => {
            asker.failed(&format!(
                "not upgraded: {error:#}; perch {} (pid {}) goes on",
                env!("CARGO_PKG_VERSION"),
                std::process::id()
            ));
            None
        }
    }
}

/// Who waits at the socket, and the program that he names.
fn asker(paths: &Paths) -> (Asker, Option<PathBuf>) {
    let Ok(stream) = UnixStream::connect(paths.upgrade_socket()) else { return Default::default() };
    stream.set_read_timeout(Some(NOTICE_TIMEOUT)).ok();
    let mut name = String::new();
    let read = stream.try_clone().and_then(|it| BufReader::new(it).read_line(&mut name));
    let name = name.trim_end_matches('\n');
    let named = (read.is_ok() && !name.is_empty()).then(|| PathBuf::from(name));
    (Asker(Some(stream)), named)
}

/// What lies now where this program was started from.
fn own_program() -> anyhow::Result<PathBuf> {
    let exe = fs::read_link("/proc/self/exe").context("could not find this program's own path")?;
    let text = exe.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| exe.clone(), PathBuf::from))
}

/// The arguments of this process.
fn arguments() -> impl Iterator<Item = std::ffi::OsString> {
    std::env::args_os().skip(1)
}

/// Lets a program read what it would be started with; its version if it could go on from here.
fn try_program(exe: &Path) -> anyhow::Result<String> {
    let mut command = Command::new(exe);
    command.args(arguments()).arg("--trial").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    service_manager::hide_from(&mut command);
    let mut child = command.spawn().context("could not start the program")?;
    let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    if !process::ends_within(&pidfd, TRIAL_TIMEOUT) {
        child.kill()?;
        child.wait()?;
        anyhow::bail!("it does not say what it is within {} s", TRIAL_TIMEOUT.as_secs());
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let Some((version, schema)) = trial_answer(&said) else {
        let error = String::from_utf8_lossy(&output.stderr);
        let error = error.lines().next().unwrap_or_default();
        anyhow::bail!("it cannot take over ({}): {error}", output.status);
    };
    let own = perch_store::schema_known();
    anyhow::ensure!(
        own <= schema,
        "perch {version} understands the store up to schema {schema}, and this one has {own}; take a later release"
    );
    Ok(version)
}

fn trial_answer(said: &str) -> Option<(String, u32)> {
    let mut words = said.lines().next()?.split(' ');
    let (mark, version, schema) = (words.next()?, words.next()?, words.next()?);
    (mark == TRIAL_ANSWER).then_some(())?;
    Some((version.to_owned(), schema.parse().ok()?))
}

/// Starts the new server and ends when it is ready; else begins again as what this one was.
///
/// # Errors
/// When neither can be.
pub(crate) fn hand_on(successor: Successor, mut left: Left) -> anyhow::Result<()> {
    left.extend(successor.asker.leave());
    fault::pass(Point::ServerGivenUp);
    let failure = match follow(&successor, &left) {
        Ok(()) => return Ok(()),
        Err(failure) => format!("{failure:#}"),
    };
    tracing::error!(failure, "the new server did not come up; the former one begins again");
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments());
    let copies = handoff::equip(&mut command, Note::own(Some(failure)), &left)?;
    let error = command.exec();
    drop(copies);
    Err(error).context("could not begin again")
}

/// Starts the new server and waits until it is ready.
fn follow(successor: &Successor, left: &Left) -> anyhow::Result<()> {
    let (ours, theirs) = UnixStream::pair().context("could not make a socket pair")?;
    let mut all = Vec::with_capacity(left.len() + 1);
    for (name, fd) in left {
        all.push((name.clone(), fd.try_clone()?));
    }
    all.push((READY.to_owned(), theirs.into()));
    let mut command = Command::new(&successor.exe);
    command.args(arguments()).stdin(Stdio::null());
    let copies = handoff::equip(&mut command, Note::own(None), &all)?;
    let child = command.spawn();
    drop((copies, all));
    fault::pass(Point::ServerFollowed);
    let mut child =
        child.with_context(|| format!("could not start {}", successor.exe.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(wait_for(&mut child, ours));
    if outcome.is_err() {
        child.kill().ok();
        let status = child.wait().context("could not wait for the new server")?;
        return outcome.with_context(|| format!("perch {} ended ({status})", successor.version));
    }
    Ok(())
}

async fn wait_for(child: &mut Child, ready: UnixStream) -> anyhow::Result<()> {
    ready.set_nonblocking(true)?;
    let mut ready = tokio::net::UnixStream::from_std(ready)?;
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let told = tokio::select! {
        told = tokio::time::timeout(READY_TIMEOUT, ready.read_u8()) => told,
        _ = term.recv() => return end_instead(child, END_TIMEOUT),
        _ = int.recv() => return end_instead(child, END_TIMEOUT),
    };
    let told =
        told.map_err(|_| anyhow::anyhow!("it was not ready within {} s", READY_TIMEOUT.as_secs()))?;
    told.map_err(|_| anyhow::anyhow!("it was not ready before that"))?;
    if let Err(error) = service_manager::succeeded_by(child.id()) {
        tracing::warn!(%error, "could not tell the service manager who is the server now");
    }
    Ok(())
}

/// Somebody wants the server to end, whichever it is. Blocks.
fn end_instead(child: &mut Child, limit: Duration) -> anyhow::Result<()> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    process::signal(&pidfd, Signal::TERM)?;
    if !process::ends_within(&pidfd, limit) {
        let seconds = limit.as_secs();
        tracing::warn!(seconds, "the new server takes too long to end; it is killed");
        child.kill()?;
    }
    child.wait()?;
    Ok(())
}

// ---- the command --------------------------------------------------------------------------------

/// `perch server --upgrade`: asks the server of this data directory to be replaced by this program, and says what it
/// hears. Blocks.
///
/// # Errors
/// When none runs, it cannot do that, or it goes on as it was, with the reason.
pub(crate) fn ask(paths: &Paths) -> anyhow::Result<()> {
    let server = running(paths)?;
    let _turn = take_turn(paths)?;
    let socket = paths.upgrade_socket();
    fs::remove_file(&socket).or_else(missing_is_fine)?;
    let listener = UnixListener::bind(&socket)
        .with_context(|| format!("could not bind {}", socket.display()))?;
    let heard = ask_at(&listener, server);
    fs::remove_file(&socket).or_else(missing_is_fine)?;
    heard
}

fn missing_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The server that has the data directory; only if it understands the signal, which ends those that do not.
fn running(paths: &Paths) -> anyhow::Result<Pid> {
    let dir = paths.data.display();
    let none = || format!("no server runs with {dir}; start one: perch server --data-dir {dir}");
    let pid = DirLock::holder(&paths.lock()).and_then(Pid::from_raw).with_context(none)?;
    let number = pid.as_raw_nonzero().get();
    let holds = process::holders(&paths.lock());
    anyhow::ensure!(!holds.is_empty(), none());
    let status = fs::read_to_string(format!("/proc/{number}/status")).ok().with_context(none)?;
    anyhow::ensure!(
        catches(&status, Signal::USR2),
        "the server with {dir} (pid {number}) is of a release that cannot be upgraded in place, or is just starting; \
         restart it: its Machines go on, and what is in flight in its proxy has 4 s"
    );
    Ok(pid)
}

/// Whether a process has a handler for a signal.
fn catches(status: &str, signal: Signal) -> bool {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// One at a time.
fn take_turn(paths: &Paths) -> anyhow::Result<File> {
    let path = paths.data.join("upgrade.lock");
    let file = File::create(&path).with_context(|| format!("could not open {}", path.display()))?;
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.map_err(|_| anyhow::anyhow!("another upgrade is under way; wait for its end"))?;
    Ok(file)
}

fn ask_at(listener: &UnixListener, server: Pid) -> anyhow::Result<()> {
    let exe = std::env::current_exe().context("could not find this program's own path")?;
    rustix::process::kill_process(server, Signal::USR2).context("could not signal the server")?;
    let limit = Timespec::try_from(NOTICE_TIMEOUT).expect("some seconds are a time");
    let noticed = rustix::event::poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit))?;
    anyhow::ensure!(noticed != 0, "the server does not answer; see its log");
    let (mut stream, _) = listener.accept()?;
    writeln!(stream, "{}", exe.display())?;
    stream.set_read_timeout(Some(WORD_TIMEOUT))?;
    for line in BufReader::new(stream).lines() {
        let line = line.context("the server says nothing more; see its log")?;
        if let Some(text) = line.strip_prefix(DONE) {
            println!("{text}");
            return Ok(());
        }
        if let Some(text) = line.strip_prefix(FAILED) {
            anyhow::bail!("{text}");
        }
        println!("{line}");
    }
    anyhow::bail!("server and successor ended without a word; see the log, and start the server")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_program_is_known_by_what_it_answers() {
        let (version, schema) = trial_answer(&answer_trial()).expect("our own");
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        assert_eq!(schema, perch_store::schema_known());
        assert_eq!(trial_answer("hello 1 2"), None);
        assert_eq!(trial_answer(""), None);
    }

    #[test]
    fn a_new_server_that_does_not_end_on_demand_is_killed() {
        let mut deaf = Command::new("sh");
        deaf.args(["-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]);
        let mut deaf = deaf.stdout(Stdio::piped()).spawn().expect("a shell is there");
        let mut said = [0; 5];
        deaf.stdout.take().expect("piped").read_exact(&mut said).expect("it begins");
        end_instead(&mut deaf, Duration::from_millis(10)).expect("it is ours");
        assert!(!deaf.wait().expect("it has ended").success());
    }

    #[test]
    fn a_server_is_only_signalled_if_it_listens() {
        let status = |mask: &str| format!("SigIgn:\t0\nSigCgt:\t{mask}\n");
        assert!(catches(&status("0000000000000800"), Signal::USR2));
        assert!(!catches(&status("0000000000000400"), Signal::USR2));
        assert!(!catches("", Signal::USR2));
    }
}
