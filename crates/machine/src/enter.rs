//! The companion of one program that joins a running Machine: `perch enter`.
//!
//! ```text
//!  server ── order, descriptors ──► enter ── fork ──► (born in the Machine's cgroup and process namespace)
//!     ▲                               │                 its namespaces, limits, user, capabilities, filter ─► program
//!     └── started | refused, ended ───┘
//! ```
//!
//! It stands outside the Machine, so a frozen Machine does not freeze it, and beside the shim, so that no reader, however
//! slow, delays the shim's work, and Machines that an older release started can be joined too. What it starts is never
//! more powerful than the Machine's own program: the same namespaces, cgroup and limits, the same bounds of capabilities,
//! `no_new_privs` and the very same system call filter, installed before anything of the Machine is executed.
//!
//! It lives as long as its program. When whoever holds the other end of its socket goes, it hangs up the program's
//! session, and kills it soon after.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability, CapsHashSet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::pipe::PipeFlags;
use rustix::process::{
    DumpableBehavior, Gid, Pid, PidfdFlags, Signal, Uid, WaitOptions, WaitStatus,
};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroups, Entrances};
use crate::{bundle, shim, sys};

/// What comes with an order: the Machine's PID 1, then standard input, output and error of the program.
pub(crate) const DESCRIPTORS: usize = 4;
/// Longest order: an environment may be as long as the kernel takes.
const ORDER_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// How long a program may take to end after its session was hung up.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// Asks for the program's immediate end.
pub(crate) const KILL: &[u8] = b"k";
/// Exit codes of shells for a program that cannot be executed, or is missing.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What is to be run, and where.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The Machine's PID 1, as the host sees it.
    pub(crate) init: i32,
    /// Its cgroup, relative to the root of each hierarchy.
    pub(crate) cgroup: PathBuf,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) workdir: String,
    /// In the Machine's own ids.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Whether the descriptors are a terminal, which becomes the session's own.
    pub(crate) terminal: bool,
}

/// What is answered, a line each.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// The program is executing.
    Started,
    /// It is not, and never will be.
    Refused(Refusal),
    /// It has ended.
    Ended {
        /// Its own exit code, or 128 + signal.
        code: i32,
        /// The signal that killed it.
        signal: Option<i32>,
    },
}

/// Why a program was not started.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    /// The Machine has ended.
    NotRunning,
    /// It may have no more processes.
    Full,
    /// The Machine's program cannot be executed: exit code of a shell, and the reason.
    Program(u8, String),
    /// Something of the host.
    Host(String),
}

/// Names a step of the host.
fn doing<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| Refusal::Host(format!("could not {doing}: {}", error.into()))
}

/// Entry point of `perch enter`. Call it first thing in `main`, before any thread or runtime exists: standard input is
/// the socket to the server.
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perch enter: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    sys::close_inherited()?;
    // The Machine's processes must not find in its child a way to this program's file and memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let control = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let mut control = UnixStream::from(control);
    let null = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    // Out of reach of what the server's terminal sends to its group.
    rustix::process::setsid()?;
    shim::usual_umask();
    shim::usual_priority();
    let descriptors = receive(&control)?;
    let order = read_order(&mut control)?;
    match start(order, descriptors) {
        Ok(child) => child.accompany(control),
        Err(refusal) => {
            tell(&mut control, &Word::Refused(refusal));
            Ok(())
        }
    }
}

/// Whether anybody is there to hear it; who went does not miss it.
fn tell(control: &mut UnixStream, word: &Word) -> bool {
    let text = serde_json::to_string(word).unwrap_or_default();
    control.write_all(format!("{text}\n").as_bytes()).is_ok()
}

/// Hands descriptors to the other side of a socket, with one byte.
pub(crate) fn send(
    socket: &UnixStream,
    descriptors: [std::os::fd::BorrowedFd<'_>; DESCRIPTORS],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut parcel = SendAncillaryBuffer::new(&mut space);
    if !parcel.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("descriptors do not fit into their message"));
    }
    let byte = [IoSlice::new(b"\n")];
    rustix::net::sendmsg(socket, &byte, &mut parcel, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: &UnixStream) -> io::Result<[OwnedFd; DESCRIPTORS]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut parcel = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut into, &mut parcel, RecvFlags::CMSG_CLOEXEC)?;
    let mut found = Vec::new();
    for message in parcel.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    found.try_into().map_err(|_| io::Error::other("the order came without its descriptors"))
}

fn read_order(control: &mut UnixStream) -> io::Result<Order> {
    let mut length = [0; 8];
    control.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if ORDER_BYTES_MAX < length {
        return Err(io::Error::other("the order is too long"));
    }
    let mut bytes = Vec::new();
    control.take(length).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The order as it is sent, its length first.
pub(crate) fn packed(order: &Order) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(order)?;
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}

/// A program on its way into the Machine.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// Closed when the program executes; says before why it does not.
    report: File,
}

fn start(
    order: Order,
    [init, stdin, stdout, stderr]: [OwnedFd; DESCRIPTORS],
) -> Result<Child, Refusal> {
    let limits = sys::copy_limits(order.init);
    if has_ended(&init) {
        return Err(Refusal::NotRunning);
    }
    limits.map_err(doing("take over the limits"))?;
    // Not the Machine's present one: that of a sleeper would stay with what joins just after the Machine woke.
    std::fs::write("/proc/self/oom_score_adj", bundle::usual_oom_score().to_string())
        .map_err(doing("take the usual score"))?;
    let cgroups = Cgroups::find(&order.cgroup).map_err(doing("find the cgroups"))?;
    let (leaf, entrances) = cgroups.open().map_err(not_running_or("open the cgroups"))?;
    // Only for children; this process stays outside.
    rustix::thread::move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .map_err(not_running_or("enter the process namespace"))?;
    let (report, report_end) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(doing("make a pipe"))?;
    let stdio = [stdin, stdout, stderr];
    let act = move || {
        let refusal = become_program(&order, &init, &stdio, (&cgroups, entrances));
        let text = serde_json::to_vec(&refusal).unwrap_or_default();
        i32::from(File::from(report_end).write_all(&text).is_err()) + 1
    };
    let born = match &leaf {
        Some(leaf) => sys::fork_into(leaf.as_fd(), act),
        None => sys::fork(act),
    };
    let pid = born.map_err(not_born)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    Ok(Child { pid, pidfd: pidfd.map_err(doing("watch the program"))?, report: report.into() })
}

/// Whether the process behind it has.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| 0 < ready)
}

/// What the kernel answers for something that has just gone.
fn not_running_or<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| {
        let error = error.into();
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH | Errno::NOENT | Errno::NODEV) => Refusal::NotRunning,
            _ => doing(step)(error),
        }
    }
}

fn not_born(error: io::Error) -> Refusal {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::AGAIN) => Refusal::Full,
        // ENOMEM is what a process namespace answers whose first process has ended.
        Some(Errno::NOMEM | Errno::NODEV) => Refusal::NotRunning,
        _ => doing("make a process")(error),
    }
}

/// Becomes the program, step by step less powerful; comes back only to say why not.
fn become_program(
    order: &Order,
    init: &OwnedFd,
    stdio: &[OwnedFd; 3],
    cgroups: (&Cgroups, Entrances),
) -> Refusal {
    match enter_cgroups(cgroups).and_then(|()| confine(order, init, stdio)) {
        Ok(()) => execute(order),
        Err(refusal) => refusal,
    }
}

fn enter_cgroups((cgroups, entrances): (&Cgroups, Entrances)) -> Result<(), Refusal> {
    entrances.enter_oneself().map_err(not_running_or("enter the cgroups"))?;
    if cgroups.is_overfull() { Err(Refusal::Full) } else { Ok(()) }
}

fn confine(
    order: &Order,
    init: &OwnedFd,
    [stdin, stdout, stderr]: &[OwnedFd; 3],
) -> Result<(), Refusal> {
    use ThreadNameSpaceType as Kind;
    let kinds = Kind::USER
        | Kind::MOUNT
        | Kind::NETWORK
        | Kind::HOST_NAME_AND_NIS_DOMAIN_NAME
        | Kind::INTER_PROCESS_COMMUNICATION;
    rustix::thread::move_into_thread_name_spaces(init.as_fd(), kinds)
        .map_err(not_running_or("enter the namespaces"))?;
    rustix::process::setsid().map_err(doing("begin a session"))?;
    rustix::stdio::dup2_stdin(stdin).map_err(doing("give the program its input"))?;
    rustix::stdio::dup2_stdout(stdout).map_err(doing("give the program its output"))?;
    rustix::stdio::dup2_stderr(stderr).map_err(doing("give the program its output"))?;
    if order.terminal {
        rustix::process::ioctl_tiocsctty(stdin).map_err(doing("take the terminal"))?;
    }
    become_user(order)?;
    // A directory that is gone, or not this user's, must not keep anybody from looking why.
    if std::env::set_current_dir(&order.workdir).is_err() {
        std::env::set_current_dir("/").map_err(doing("enter /"))?;
    }
    sys::usual_signals();
    rustix::thread::set_no_new_privs(true).map_err(doing("forbid new privileges"))?;
    sys::install_filter(&crate::filter::program()).map_err(doing("install the filter"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(doing("die with its companion"))
}

/// As the bundle has it for the Machine's own program.
fn become_user(order: &Order) -> Result<(), Refusal> {
    let failed = |error: caps::errors::CapsError| {
        Refusal::Host(format!("could not drop capabilities: {error}"))
    };
    let kept: CapsHashSet =
        bundle::CAPABILITIES.iter().filter_map(|name| name.parse::<Capability>().ok()).collect();
    let bounds = caps::read(None, CapSet::Bounding).map_err(failed)?;
    for dropped in bounds.difference(&kept) {
        caps::drop(None, CapSet::Bounding, *dropped).map_err(failed)?;
    }
    let groups: Vec<_> = order.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(order.uid), Gid::from_raw(order.gid));
    rustix::thread::set_thread_groups(&groups).map_err(doing("take the user's groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(doing("take the user's group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(doing("become the user"))?;
    let held = if order.uid == 0 { kept } else { CapsHashSet::new() };
    let nothing = CapsHashSet::new();
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Inheritable, &nothing).map_err(failed)?;
    caps::set(None, CapSet::Effective, &held).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &held).map_err(failed)
}

fn execute(order: &Order) -> Refusal {
    let Some((program, args)) = order.argv.split_first() else {
        return Refusal::Program(NOT_FOUND, "no program is given".to_owned());
    };
    let env = order.env.iter().map(|(name, value)| (name, value));
    let error = Command::new(program).args(args).env_clear().envs(env).exec();
    let (code, reason) = match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') && PathBuf::from(program).exists() => {
            (NOT_FOUND, format!("program {program:?} needs an interpreter that the image lacks"))
        }
        io::ErrorKind::NotFound if program.contains('/') => {
            (NOT_FOUND, format!("program {program:?} does not exist in the Machine"))
        }
        io::ErrorKind::NotFound => {
            (NOT_FOUND, format!("program {program:?} was not found in PATH"))
        }
        io::ErrorKind::PermissionDenied => {
            (NOT_EXECUTABLE, format!("program {program:?} is not executable"))
        }
        _ => (NOT_EXECUTABLE, format!("program {program:?} could not be started: {error}")),
    };
    Refusal::Program(code, reason)
}

impl Child {
    fn accompany(mut self, mut control: UnixStream) -> io::Result<()> {
        let mut text = Vec::new();
        self.await_report(&control)?;
        self.report.read_to_end(&mut text)?;
        if let Ok(refusal) = serde_json::from_slice(&text) {
            self.reap()?;
            tell(&mut control, &Word::Refused(refusal));
            return Ok(());
        }
        // If nobody is there any more, the end of the socket says so below.
        tell(&mut control, &Word::Started);
        let mut is_heard = true;
        let mut deadline = None;
        loop {
            match self.await_event(&control, is_heard, deadline)? {
                Event::Ended => break,
                Event::Due => {
                    self.signal(Signal::KILL);
                    deadline = None;
                }
                Event::Control => {
                    let mut byte = [0];
                    if matches!(control.read(&mut byte), Ok(1)) {
                        self.signal(Signal::KILL);
                    } else {
                        is_heard = false;
                        self.signal(Signal::HUP);
                        // So that one that is stopped hears it, and the other descriptors of its terminal are closed.
                        self.signal(Signal::CONT);
                        deadline = Some(Instant::now() + HANGUP_GRACE);
                    }
                }
            }
        }
        let status = self.reap()?;
        let signal = status.terminating_signal();
        let code = signal.map_or_else(|| status.exit_status().unwrap_or(128), |it| 128 + it);
        if is_heard {
            tell(&mut control, &Word::Ended { code, signal });
        }
        Ok(())
    }

    /// Until the program executes or does not. A frozen Machine may take its time; whoever waits may go.
    fn await_report(&self, control: &UnixStream) -> io::Result<()> {
        loop {
            let mut fds = [
                PollFd::new(&self.report, PollFlags::IN),
                PollFd::new(control, PollFlags::IN | PollFlags::RDHUP),
            ];
            ignore_interrupts(poll(&mut fds, None))?;
            if !fds[1].revents().is_empty() {
                self.signal(Signal::KILL);
                return Ok(());
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
        }
    }

    fn await_event(
        &self,
        control: &UnixStream,
        is_heard: bool,
        deadline: Option<Instant>,
    ) -> io::Result<Event> {
        loop {
            let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
            let left = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            if is_heard {
                fds.push(PollFd::new(control, PollFlags::IN | PollFlags::RDHUP));
            }
            let ready = ignore_interrupts(poll(&mut fds, left.as_ref()))?;
            if !fds[0].revents().is_empty() {
                return Ok(Event::Ended);
            }
            if fds.get(1).is_some_and(|it| !it.revents().is_empty()) {
                return Ok(Event::Control);
            }
            if ready == 0 && deadline.is_some_and(|it| it <= Instant::now()) {
                return Ok(Event::Due);
            }
        }
    }

    /// To the program and its group. It has not been reaped, so its number is nobody else's.
    fn signal(&self, signal: Signal) {
        let group = rustix::process::kill_process_group(self.pid, signal);
        if let Err(error) = group.or_else(|_| rustix::process::kill_process(self.pid, signal)) {
            eprintln!("perch enter: could not signal the program: {error}");
        }
    }

    fn reap(&self) -> io::Result<WaitStatus> {
        loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(status),
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What a companion waits for.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Ended,
    Control,
    Due,
}

fn ignore_interrupts(polled: Result<usize, Errno>) -> io::Result<usize> {
    match polled {
        Err(Errno::INTR) => Ok(0),
        polled => polled.map_err(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_and_its_descriptors_arrive_as_they_were_sent() -> io::Result<()> {
        let (near, mut far) = UnixStream::pair()?;
        let null = File::open("/dev/null")?;
        send(&near, [null.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()])?;
        let order = Order {
            init: 7,
            cgroup: "perch/m".into(),
            argv: vec!["ls".to_owned()],
            env: vec![("A".to_owned(), "b\n".to_owned())],
            workdir: "/".to_owned(),
            uid: 1,
            gid: 2,
            groups: vec![3],
            terminal: true,
        };
        let bytes = packed(&order)?;
        let sender = std::thread::spawn(move || (&near).write_all(&bytes));
        receive(&far)?;
        let read = read_order(&mut far)?;
        assert_eq!((read.init, read.argv, read.env), (7, order.argv, order.env));
        assert!(sender.join().is_ok_and(|sent| sent.is_ok()));
        Ok(())
    }

    #[test]
    fn what_is_no_order_is_refused() -> io::Result<()> {
        let (mut near, mut far) = UnixStream::pair()?;
        near.write_all(&u64::MAX.to_le_bytes())?;
        assert!(read_order(&mut far).is_err());
        near.write_all(b"x")?;
        assert!(receive(&far).is_err());
        Ok(())
    }

    #[test]
    fn a_dead_machine_is_told_from_a_full_one() {
        let told = |errno: Errno| not_born(errno.into());
        assert_eq!(told(Errno::AGAIN), Refusal::Full);
        assert_eq!(told(Errno::NOMEM), Refusal::NotRunning);
        assert!(matches!(told(Errno::PERM), Refusal::Host(_)));
    }
}
