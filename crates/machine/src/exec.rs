//! Runs a program in a running Machine, beside its own: for `exec` and for a console.
//!
//! The work of joining is done by a process of its own (module `enter`); what the program reads and writes goes straight
//! through pipes or a terminal of the Machine to whoever holds a [`Running`]. Dropping that hangs the program up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{Receiver, Sender};

use crate::enter::{self, Order, Refusal, Word};
use crate::launch::{self, Machine};
use crate::stage::Root;
use crate::user::{self, BadUser, User};
use crate::{bundle, secrets, sys};

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// Program and arguments; empty means the user's shell.
    pub argv: Vec<String>,
    /// User as an image gives it; `None` means the image's.
    pub user: Option<String>,
    /// A terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// Variables that the Machine's program has not.
    pub env: Vec<(String, String)>,
}

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The Machine has ended.
    #[error("the machine is not running")]
    NotRunning,
    /// The cgroup has as many processes as it may.
    #[error("the machine has as many processes as it may have")]
    Full,
    /// The image does not know the user.
    #[error("{0}")]
    User(String),
    /// A shell is wanted and the image has none.
    #[error("the machine's image has no shell")]
    NoShell,
    /// An argument or variable that no program can have.
    #[error("{0}")]
    Bad(&'static str),
    /// The program itself cannot be executed.
    #[error("{reason}")]
    Program {
        /// What a shell's exit code would be.
        code: u8,
        /// Why.
        reason: String,
    },
    /// Something of the host.
    #[error("could not run a program in the machine")]
    Host(#[source] io::Error),
}

/// A program in a Machine.
#[derive(Debug)]
pub struct Running {
    /// What it reads and writes.
    pub streams: Streams,
    /// How it ends.
    pub control: Control,
}

/// What a program reads and writes.
#[derive(Debug)]
pub enum Streams {
    /// Three pipes.
    Pipes {
        /// Dropped: the end of its input.
        stdin: Sender,
        /// What it says.
        stdout: Receiver,
        /// What it complains about.
        stderr: Receiver,
    },
    /// A terminal.
    Terminal(Arc<Terminal>),
}

/// The outer end of a terminal in a Machine.
#[derive(Debug)]
pub struct Terminal(AsyncFd<OwnedFd>);

/// The way to a program's companion. Dropped, the program is hung up, and soon killed.
#[derive(Debug)]
pub struct Control {
    socket: BufReader<UnixStream>,
    /// What has been read of a line, if a wait was cancelled.
    line: Vec<u8>,
}

impl Machine {
    /// Runs a program in this Machine, with the environment of its own program. Returns when it executes; takes a few
    /// milliseconds, and as long as it lasts in a frozen Machine. Needs a tokio runtime. Cancelling it ends the program.
    pub async fn exec(
        self: &Arc<Self>,
        request: &ExecRequest,
        secrets: &secrets::Secrets,
    ) -> Result<Running, ExecError> {
        check(request)?;
        let (machine, wanted) = (self.clone(), request.clone());
        let prepared = tokio::task::spawn_blocking(move || prepare(&machine, &wanted)).await;
        let (mut order, ends) = prepared.map_err(|error| host(io::Error::other(error)))??;
        add(&mut order.env, secrets.variables());
        add(&mut order.env, &request.env);
        let socket = self.spawn(&ends).map_err(host)?;
        let Ends { streams, .. } = ends;
        let mut control = Control { socket: BufReader::new(socket), line: Vec::new() };
        let order = enter::packed(&order).map_err(host)?;
        control.socket.get_mut().write_all(&order).await.map_err(host)?;
        match control.word().await.map_err(host)? {
            Word::Refused(refusal) => Err(refusal.into()),
            Word::Started => {
                Ok(Running { streams: streams.open(request.terminal).map_err(host)?, control })
            }
            Word::Ended { .. } => Err(host(io::Error::other("it ended before it began"))),
        }
    }

    /// Starts the companion and hands it the descriptors.
    fn spawn(&self, ends: &Ends) -> io::Result<UnixStream> {
        let init = self.init().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let (near, far) = StdStream::pair()?;
        let [stdin, stdout, stderr] = &ends.inner;
        enter::send(&near, [init.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
        let companion = Command::new("/proc/self/exe")
            .arg("enter")
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .spawn()?;
        launch::reap(companion)?;
        near.set_nonblocking(true)?;
        UnixStream::from_std(near)
    }
}

fn host(error: io::Error) -> ExecError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::SRCH) => ExecError::NotRunning,
        _ if error.kind() == io::ErrorKind::NotFound => ExecError::NotRunning,
        _ => ExecError::Host(error),
    }
}

impl From<Refusal> for ExecError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotRunning => Self::NotRunning,
            Refusal::Full => Self::Full,
            Refusal::Program(code, reason) => Self::Program { code, reason },
            Refusal::Host(reason) => Self::Host(io::Error::other(reason)),
        }
    }
}

impl From<BadUser> for ExecError {
    fn from(error: BadUser) -> Self {
        Self::User(error.to_string())
    }
}

/// Finds what the kernel would take apart differently.
fn check(request: &ExecRequest) -> Result<(), ExecError> {
    let user = request.user.iter();
    if request.argv.iter().chain(user).any(|word| word.contains('\0')) {
        return Err(ExecError::Bad("an argument contains a NUL byte"));
    }
    let bad = |(name, value): &(String, String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    if request.env.iter().any(bad) {
        return Err(ExecError::Bad("a variable has no name, an = in its name, or a NUL byte"));
    }
    if request.argv.first().is_some_and(String::is_empty) {
        return Err(ExecError::Bad("no program is given"));
    }
    Ok(())
}

/// The last of a name wins.
fn add(env: &mut Vec<(String, String)>, more: &[(String, String)]) {
    for (name, value) in more {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
}

/// Descriptors of a program before it runs.
struct Ends {
    /// The program's own: input, output, error.
    inner: [OwnedFd; 3],
    streams: Outer,
}

/// The other ends.
enum Outer {
    Pipes([OwnedFd; 3]),
    Terminal(OwnedFd),
}

impl Outer {
    fn open(self, size: Option<TerminalSize>) -> io::Result<Streams> {
        match self {
            Self::Pipes([stdin, stdout, stderr]) => Ok(Streams::Pipes {
                stdin: Sender::from_owned_fd(stdin)?,
                stdout: Receiver::from_owned_fd(stdout)?,
                stderr: Receiver::from_owned_fd(stderr)?,
            }),
            Self::Terminal(master) => {
                let terminal = Terminal(sys::watch_both(master)?);
                if let Some(size) = size {
                    terminal.resize(size)?;
                }
                Ok(Streams::Terminal(Arc::new(terminal)))
            }
        }
    }
}

/// Everything that is read from the Machine, and made in it, before the program. Blocks.
fn prepare(machine: &Machine, request: &ExecRequest) -> Result<(Order, Ends), ExecError> {
    let (spec, init) = (machine.spec(), machine.pid());
    let root = Root::of_process(init).map_err(host)?;
    let name = request.user.as_deref().unwrap_or(&spec.user);
    let passwd = root.read("/etc/passwd");
    let user = user::resolve(name, &passwd, &root.read("/etc/group"))?;
    let argv = match request.argv.as_slice() {
        [] => vec![shell(&root, &passwd, &user).ok_or(ExecError::NoShell)?],
        argv => argv.to_vec(),
    };
    let owner = (spec.uid_base + user.uid, spec.uid_base + user.gid);
    let ends = match request.terminal {
        Some(size) => terminal(&root, owner.0, size),
        None => pipes(owner),
    };
    let order = Order {
        init,
        cgroup: launch::cgroup_path(spec),
        argv,
        env: bundle::variables(spec, &user),
        workdir: bundle::workdir(spec),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        terminal: request.terminal.is_some(),
    };
    Ok((order, ends.map_err(host)?))
}

/// The user's own shell if it is there, else a usual one.
fn shell(root: &Root, passwd: &str, user: &User) -> Option<String> {
    let id = user.uid.to_string();
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = lines.find(|line| line.get(2) == Some(&id.as_str()));
    let own = entry.and_then(|line| line.get(6).copied()).unwrap_or_default();
    let is_shell = !own.ends_with("/nologin") && !own.ends_with("/false");
    let own = Some(own).filter(|own| own.starts_with('/') && is_shell);
    let mut all = own.into_iter().chain(["/bin/bash", "/bin/sh"]);
    all.find(|path| root.has_program(path)).map(str::to_owned)
}

fn terminal(root: &Root, owner: u32, size: TerminalSize) -> io::Result<Ends> {
    let (master, slave) = root.make_terminal()?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(owner)), None)?;
    rustix::termios::tcsetwinsize(&slave, winsize(size))?;
    let inner = [slave.try_clone()?, slave.try_clone()?, slave];
    Ok(Ends { inner, streams: Outer::Terminal(master) })
}

fn winsize(size: TerminalSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Pipes that the program's user may also open by name: `/dev/stdout` is a link to one.
fn pipes((uid, gid): (u32, u32)) -> io::Result<Ends> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let ((stdin, input), (output, stdout), (errors, stderr)) = (pipe()?, pipe()?, pipe()?);
    let inner = [stdin, stdout, stderr];
    for end in &inner {
        rustix::fs::fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(Ends { inner, streams: Outer::Pipes([input, output, errors]) })
}

impl Terminal {
    /// Reads what the program shows; 0 at the end, when nobody has the terminal any more.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?));
            match read {
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Ok(0);
                }
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    /// Types: as much as fits, at least a byte.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return written;
            }
        }
    }

    /// Changes the size; the program is told by SIGWINCH.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        rustix::termios::tcsetwinsize(self.0.get_ref(), winsize(size)).map_err(Into::into)
    }
}

impl Control {
    /// Waits for the program's end: its exit code, or 128 + signal, and the signal. May be cancelled and called again.
    pub async fn ended(&mut self) -> io::Result<(i32, Option<i32>)> {
        match self.word().await? {
            Word::Ended { code, signal } => Ok((code, signal)),
            Word::Started | Word::Refused(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks for the program's immediate end.
    pub fn kill(&self) -> io::Result<()> {
        self.socket.get_ref().try_write(enter::KILL).map(drop)
    }

    async fn word(&mut self) -> io::Result<Word> {
        self.socket.read_until(b'\n', &mut self.line).await?;
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Err(io::Error::other("its companion is gone"));
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(argv: &[&str], env: &[(&str, &str)]) -> ExecRequest {
        ExecRequest {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            user: None,
            terminal: None,
            env: env.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        }
    }

    #[test]
    fn what_no_program_can_have_is_refused() {
        for bad in [
            request(&["a\0"], &[]),
            request(&[""], &[]),
            request(&["a"], &[("", "x")]),
            request(&["a"], &[("A=B", "x")]),
            request(&["a"], &[("A", "\0")]),
        ] {
            assert!(matches!(check(&bad), Err(ExecError::Bad(_))), "{bad:?}");
        }
        assert!(check(&request(&[], &[])).is_ok());
    }

    #[test]
    fn a_later_variable_of_the_same_name_wins() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut env = vec![pair("A", "1"), pair("B", "2")];
        add(&mut env, &[pair("B", "3"), pair("C", "4")]);
        assert_eq!(env, [pair("A", "1"), pair("B", "3"), pair("C", "4")]);
    }
}
