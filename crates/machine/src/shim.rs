//! The keeper of one run of a Machine: `perch shim DIR`.
//!
//! ```text
//!  lock ─► namespaces, overlay ─► libcontainer create, start ─► answer ─► copy output … ─► reap ─► exit record
//! ```
//!
//! With `--armed` it waits after the start of the container, whose init waits too (module `gate`). A shim may have been
//! spawned before there was a Machine for it (module `blank`).
//!
//! It is single-threaded, because it forks without exec, and it is the parent of the Machine's PID 1: the kernel kills
//! that process when the shim dies. It lives in a session of its own and holds a lock on the Machine's directory, by
//! which others see that the run is alive. It decides nothing: who wants the Machine to end signals PID 1.

pub mod blank;
mod gate;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use perch_core::fault::{self, Point};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus};

use self::blank::Parked;
use crate::cgroup::{Cgroups, Entrances, Leaf};
use crate::files;
use crate::launch::{
    self, Answer, ExitCause, ExitRecord, Fault, LaunchSpec, RootFile, ShimState, Way,
};
use crate::log_rate::LogRate;
use crate::logs::{Lines, LogWriter};
use crate::secrets::{self, SECRETS_FD};
use crate::stage::{self, StageError};
use crate::user::{self, BadUser};
use crate::volumes::mount::{self, VolumeError};

/// The descriptor that init reports on.
pub(crate) const REPORT_FD: i32 = 3;
/// Longest packet from init.
const REPORT_BYTES_MAX: usize = 4096;
/// How much is read from a pipe at once: a pipe's usual capacity.
const READ_BYTES: usize = 64 * 1024;
/// Name under which libcontainer knows the container; its state directory is private to the shim.
const CONTAINER: &str = "machine";

/// Why the shim could not start its Machine.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error("could not {doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    User(#[from] BadUser),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("container runtime refused")]
    Container(#[from] Box<libcontainer::error::LibcontainerError>),
    #[error("{0}")]
    Program(String),
}

impl ShimError {
    fn fault(&self) -> Fault {
        if matches!(self, Self::User(_)) || matches!(self, Self::Volume(error) if error.is_users())
        {
            return Fault::Image;
        }
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            let io = error.downcast_ref::<io::Error>();
            if io.is_some_and(launch::is_disk_full) {
                return Fault::DiskFull;
            }
            if matches!(self, Self::Stage(step) if step.is_of_image())
                && io.is_some_and(is_in_the_way)
            {
                return Fault::Image;
            }
            cause = error.source();
        }
        Fault::Host
    }
}

/// Whether an image has something else where a file or directory is to be.
fn is_in_the_way(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::IsADirectory | Kind::NotADirectory | Kind::NotFound | Kind::PermissionDenied
    ) || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

fn doing<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> ShimError {
    move |source| ShimError::Io { doing, source: source.into() }
}

/// Entry point of `perch shim DIR [--armed]`. Call it first thing in `main`, before any thread or runtime exists: standard input
/// is the network namespace, standard output a socket: secrets come in, the answer to the launcher goes out.
pub fn main(dir: &Path, word: Option<&OsStr>) -> ExitCode {
    let way = match word {
        None => Way::AtOnce,
        Some(word) if word == Way::ARMED => Way::Armed,
        Some(_) => return ExitCode::FAILURE,
    };
    let Ok(answer) = Outlet::take() else { return ExitCode::FAILURE };
    usual_umask();
    usual_priority();
    let parent = require_spec(dir, way).map(|spec| spec.cgroup_parent);
    born_among_shims(parent.as_deref(), answer, |answer| {
        begin_session();
        run(dir, way, answer, None)
    })
}

/// Goes on in the cgroup of the shims below this parent, where there is one.
fn born_among_shims(
    parent: Result<&str, &io::Error>,
    answer: Outlet,
    run: impl FnOnce(Outlet) -> ExitCode,
) -> ExitCode {
    let group = parent.map_err(ToString::to_string);
    match group.and_then(|parent| Cgroups::of_shims(parent).map_err(|error| error.to_string())) {
        Ok(Some(group)) => run_in(group, answer, run),
        Ok(None) => run(answer),
        Err(error) => {
            eprintln!("stays in the server's cgroup: {error}");
            run(answer)
        }
    }
}

fn begin_session() {
    if let Err(error) = rustix::process::setsid() {
        eprintln!("could not begin a session: {error}");
    }
}

fn require_spec(dir: &Path, way: Way) -> io::Result<LaunchSpec> {
    let name = match way {
        Way::AtOnce | Way::Blank => launch::SPEC_FILE,
        Way::Armed => launch::ARMED_FILE,
    };
    launch::require_spec_in(dir, name)
}

/// Goes on as a child that is born in the shims' cgroup: who kills all of the server's kills no shim, and with it its
/// Machine. This process is small and has done nothing yet, so a second birth costs less than a move (see `cgroup`). Whoever
/// started it reaps it at once; the child is reaped as an orphan, as every shim is whose server has been replaced.
fn run_in(group: OwnedFd, answer: Outlet, run: impl FnOnce(Outlet) -> ExitCode) -> ExitCode {
    // Out of the way of the descriptors that init will know; the child has it too.
    let moved = rustix::io::fcntl_dupfd_cloexec(&group, SECRETS_FD + 1);
    drop(group);
    let Ok(group) = moved else { return run(answer) };
    let mut work = Some((run, answer));
    let act = || work.take().map_or(1, |(run, answer)| i32::from(run(answer) != ExitCode::SUCCESS));
    match crate::sys::fork_into(group.as_fd(), act) {
        Ok(_child) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stays in the server's cgroup: {error}");
            work.map_or(ExitCode::FAILURE, |(run, answer)| run(answer))
        }
    }
}

/// `parked` is the child that a blank may have.
fn run(dir: &Path, way: Way, mut answer: Outlet, parked: Option<Parked>) -> ExitCode {
    let started = start(dir, way, &mut answer, parked);
    let started = started.and_then(|keeper| match way {
        Way::AtOnce | Way::Blank => Ok(Some(keeper)),
        Way::Armed => keeper.wait_for_go(&mut answer),
    });
    match started {
        Ok(Some(keeper)) => keeper.keep(&mut answer),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            answer.send(&Answer::Failed { reason: chain(&error), fault: error.fault() });
            ExitCode::FAILURE
        }
    }
}

/// The server goes before what it starts for others.
pub(crate) fn usual_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, 0) {
        eprintln!("could not give up the server's priority: {error}");
    }
}

/// Whatever the server's is: what is made for a Machine is for its users, and its program begins with this one.
pub(crate) fn usual_umask() {
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

/// The way back to the launcher; the last answer closes it.
#[derive(Debug)]
struct Outlet(Option<File>);

impl Outlet {
    /// Closes what was inherited by mistake and takes standard output for itself.
    fn take() -> io::Result<Self> {
        crate::sys::close_inherited()?;
        // Keeps descriptor 3, which init will know, free of this one.
        let report =
            rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let answer = rustix::io::fcntl_dupfd_cloexec(io::stdout(), SECRETS_FD + 1)?;
        let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        crate::sys::replace_stdout(&null)?;
        drop(report);
        Ok(Self(Some(answer.into())))
    }

    /// Whether nobody will read the answer.
    fn is_closed(&self) -> bool {
        let Some(file) = &self.0 else { return true };
        let mut fds = [PollFd::new(file, PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::ERR | PollFlags::HUP;
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(gone)
    }

    /// The program's secrets, for init to read, and the Machine's secret files.
    fn receive_secrets(&mut self) -> io::Result<(OwnedFd, Vec<RootFile>)> {
        let file = self.0.as_mut().ok_or_else(|| io::Error::other("the launcher is gone"))?;
        Ok((secrets::receive(file)?, secrets::receive_files(file)?))
    }

    fn send(&mut self, answer: &Answer) {
        self.tell(answer);
        self.0 = None;
    }

    /// Answers without being the last word.
    fn tell(&self, answer: &Answer) {
        let Some(mut file) = self.0.as_ref() else { return };
        let text = serde_json::to_string(answer).map_err(io::Error::from);
        let sent = text.and_then(|text| file.write_all(format!("{text}\n").as_bytes()));
        if let Err(error) = sent {
            eprintln!("could not answer the launcher: {error}");
        }
    }
}

/// A started container.
struct Keeper {
    spec: LaunchSpec,
    cgroups: Cgroups,
    pid: Pid,
    pidfd: OwnedFd,
    report: OwnedFd,
    output: [(File, Lines); 2],
    log: LogWriter,
    rate: LogRate,
    /// Whether init waits at its gate.
    waits: bool,
    started: bool,
    /// What it says of itself, if that was written down while it waited.
    state: Option<ShimState>,
    reported: Option<Report>,
    /// How PID 1 itself ended.
    status: Option<WaitStatus>,
    lock: File,
    /// One writer each: for an image the loop device keeps the lock, too, until the last mount of it is gone.
    _volumes: Vec<File>,
}

/// What init says.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    Waiting,
    Started,
    Failed(String),
    Exit { code: i32, signal: i32 },
}

fn start(
    dir: &Path,
    way: Way,
    answer: &mut Outlet,
    parked: Option<Parked>,
) -> Result<Keeper, ShimError> {
    let (report, init_report) = report_socket().map_err(doing("make the report socket"))?;
    if way == Way::AtOnce {
        gate::open(&report)?;
    }
    let (secrets, files) = answer.receive_secrets().map_err(doing("receive the secrets"))?;
    let netns = rustix::io::fcntl_dupfd_cloexec(io::stdin(), SECRETS_FD + 1);
    let netns = netns.map_err(doing("take the network namespace"))?;
    let (lock, point) = match way {
        Way::AtOnce | Way::Blank => (launch::lock(dir), Point::ShimLocked),
        Way::Armed => (launch::lock_armed(dir), Point::ShimArming),
    };
    let lock = lock.map_err(doing("lock the machine's directory"))?;
    fault::pass(point);
    if answer.is_closed() {
        // A successor of the launcher may have given this run up already.
        return Err(ShimError::Program("the launcher is gone".to_owned()));
    }
    let spec = require_spec(dir, way).map_err(doing("read the specification"))?;
    if let Err(error) = crate::complaints::to_stderr() {
        eprintln!("could not watch the container runtime: {error}");
    }
    let given = Given { netns, for_init: (init_report, secrets), files, parked };
    let keeper = create(spec, given, report, lock)?;
    if way == Way::Blank {
        // Until here the launcher may begin anew, as nothing of the program has been executed.
        answer.tell(&Answer::Taken);
        gate::open(&keeper.report)?;
    }
    Ok(keeper)
}

/// What a start has beside its specification.
struct Given {
    netns: OwnedFd,
    /// Init's end of the report socket, and the secrets, under the numbers that it knows.
    for_init: (OwnedFd, OwnedFd),
    files: Vec<RootFile>,
    parked: Option<Parked>,
}

fn create(
    spec: LaunchSpec,
    given: Given,
    report: OwnedFd,
    lock: File,
) -> Result<Keeper, ShimError> {
    let Given { netns, for_init, files: secret_files, mut parked } = given;
    let log = LogWriter::open(&spec.dir).map_err(doing("open the log"))?;
    let cgroups = Cgroups::find(&launch::cgroup_path(&spec)).map_err(doing("find cgroups"))?;
    let allowance = launch::allowance(&spec);
    let leaf = cgroups.prepare(allowance).map_err(doing("make the cgroup"))?;
    let entrances = match &mut parked {
        Some(parked) => parked.take_name(&cgroups).map(|()| Entrances::none())?,
        None => cgroups.prepare_v1(allowance).map_err(doing("set the limits"))?,
    };
    let user_namespace = stage::user_namespace(&spec, || entrances.warm_up())?;
    stage::enter_network(netns.as_fd())?;
    stage::enter()?;
    let root = stage::build(&spec, &secret_files, user_namespace.file.as_fd())?;
    let volumes = mount::mount_all(&spec, &root, user_namespace.file.as_fd())?;
    let user = user::resolve(&spec.user, &root.read("/etc/passwd"), &root.read("/etc/group"))?;
    drop(root);
    let path = format!("/proc/self/fd/{}", user_namespace.file.as_raw_fd());
    let resources = leaf.is_none().then(|| crate::bundle::resources(allowance));
    let root = format!("{}/root", stage::STAGE);
    write_bundle(&crate::bundle::config(&spec, &user, &root, &path, resources))?;
    let owner = (spec.uid_base + user.uid, spec.uid_base + user.gid);
    let (stdout, stdout_end) = output_pipe(owner).map_err(doing("make the output pipe"))?;
    let (stderr, stderr_end) = output_pipe(owner).map_err(doing("make the output pipe"))?;
    let pid = match (&leaf, parked) {
        (Some(leaf), Some(parked)) => {
            let pid = parked.run(leaf, netns.as_fd(), stdout_end, stderr_end)?;
            // Now that init alone is inside, and waits at its gate.
            cgroups.prepare_v1(allowance).map_err(doing("set the limits"))?;
            pid
        }
        (Some(leaf), None) => run_born_in(leaf, stdout_end, stderr_end, entrances)?,
        (None, _) => run_container(stdout_end, stderr_end, Parent::Caller, |_| Ok(()))?,
    };
    fault::pass(Point::ShimCreated);
    fault::pass_by(Point::InitCreated, pid.as_raw_nonzero().get());
    drop((for_init, user_namespace));
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(doing("watch init"))?;
    let output = [(stdout, Lines::new("stdout")), (stderr, Lines::new("stderr"))];
    Ok(Keeper {
        spec,
        cgroups,
        pid,
        pidfd,
        report,
        output,
        log,
        rate: LogRate::new(Instant::now()),
        waits: false,
        started: false,
        state: None,
        reported: None,
        status: None,
        lock,
        _volumes: volumes,
    })
}

/// A packet socket whose far end is descriptor 3 and survives exec.
fn report_socket() -> io::Result<(OwnedFd, OwnedFd)> {
    let (far, near) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    if far.as_raw_fd() != REPORT_FD {
        return Err(io::Error::other("descriptor 3 is taken"));
    }
    rustix::io::fcntl_setfd(&far, FdFlags::empty())?;
    // Leaves the next descriptor to the secrets.
    let near = rustix::io::fcntl_dupfd_cloexec(near, SECRETS_FD + 1)?;
    Ok((near, far))
}

/// A pipe that the Machine's user may also open by name: `/dev/stdout` is a link to it.
fn output_pipe(owner: (u32, u32)) -> io::Result<(File, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
    rustix::fs::fchown(&write, Some(uid), Some(gid))?;
    Ok((read.into(), write))
}

fn write_bundle(config: &serde_json::Value) -> Result<(), ShimError> {
    let text = serde_json::to_vec(config).map_err(doing("write the bundle"))?;
    fs::create_dir_all("bundle").map_err(doing("make the bundle"))?;
    fs::create_dir_all("state").map_err(doing("make the state directory"))?;
    fs::write("bundle/config.json", text).map_err(doing("write the bundle"))
}

/// Whose child the Machine's PID 1 becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// Of the process that calls libcontainer.
    Caller,
    /// Of that process's own parent.
    CallersParent,
}

/// Runs the container from a child that is born in the Machine's cgroup, so that nobody has to be moved there. PID 1
/// becomes a child of this process all the same.
fn run_born_in(
    leaf: &Leaf,
    stdout: OwnedFd,
    stderr: OwnedFd,
    entrances: Entrances,
) -> Result<Pid, ShimError> {
    let (answer, answer_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(doing("make a pipe"))?;
    let work = move || {
        let made = run_container(stdout, stderr, Parent::CallersParent, |pid| entrances.enter(pid));
        tell_pid(answer_end, made)
    };
    let forked = leaf.shown_alone(Path::new("cgroup.procs"), || {
        let child =
            crate::sys::fork_into(leaf.as_fd(), work).map_err(doing("be born in the cgroup"))?;
        let waited = rustix::process::waitpid(Some(child), WaitOptions::empty());
        waited.map_err(doing("wait for the container runtime"))
    });
    let ended = forked.map_err(doing("show the container runtime its cgroup"))??;
    container_pid(answer, ended)
}

/// Says what became of the container; the caller's exit code.
fn tell_pid(answer: OwnedFd, made: Result<Pid, ShimError>) -> i32 {
    let text = match made {
        Ok(pid) => format!("pid {}", pid.as_raw_nonzero()),
        Err(error) => chain(&error),
    };
    i32::from(File::from(answer).write_all(text.as_bytes()).is_err())
}

/// What [`tell_pid`] said, in a process that has ended like this.
fn container_pid(answer: OwnedFd, ended: impl std::fmt::Debug) -> Result<Pid, ShimError> {
    let mut text = String::new();
    // The container may still hold the other end: no end of file, but all that was written is there.
    match File::from(answer).read_to_string(&mut text) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            return Err(doing("read the container runtime's answer")(error));
        }
        Ok(_) | Err(_) => {}
    }
    if text.is_empty() {
        text = format!("the container runtime ended without an answer: {ended:?}");
    }
    let pid = text.strip_prefix("pid ").and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    pid.ok_or(ShimError::Program(text))
}

fn run_container(
    stdout: OwnedFd,
    stderr: OwnedFd,
    parent: Parent,
    before_start: impl FnOnce(Pid) -> io::Result<()>,
) -> Result<Pid, ShimError> {
    let null = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let builder = ContainerBuilder::new(CONTAINER.to_owned(), SyscallType::Linux)
        .with_root_path(format!("{}/state", stage::STAGE))
        .map_err(Box::new)?
        .with_preserved_fds(2)
        .with_stdin(null.map_err(doing("open /dev/null"))?)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .as_init(format!("{}/bundle", stage::STAGE))
        .with_systemd(false)
        .as_sibling(parent == Parent::CallersParent)
        .with_detach(true);
    let mut container = builder.build().map_err(Box::new)?;
    let pid = container.pid().map(|pid| pid.as_raw()).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| ShimError::Program("container has no process".to_owned()))?;
    before_start(pid).map_err(doing("set the limits"))?;
    container.start().map_err(Box::new)?;
    Ok(pid)
}

impl Keeper {
    /// Copies output until the Machine has ended, then leaves the exit record.
    fn keep(mut self, answer: &mut Outlet) -> ExitCode {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match self.wait_for_event() {
                Ok(ended) => {
                    self.read_report();
                    self.answer(answer);
                    self.reap();
                    if self.rate.rest(Instant::now()).is_none() {
                        self.copy(&mut buffer);
                    }
                    let word = self.rate.word(Instant::now());
                    self.say(word);
                    if ended {
                        return self.finish(answer, &mut buffer);
                    }
                }
                Err(error) => {
                    eprintln!("could not wait: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }

    /// Waits until there is something to do; true when PID 1 has ended.
    fn wait_for_event(&self) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        if self.reported.is_none() {
            fds.push(PollFd::new(&self.report, PollFlags::IN));
        }
        let now = Instant::now();
        let rest = self.rate.rest(now);
        for (pipe, _) in self.output.iter().filter(|_| rest.is_none()) {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        let timeout = rest.or_else(|| self.rate.until_word(now));
        let timeout = timeout.and_then(|length| Timespec::try_from(length).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(fds[0].revents().contains(PollFlags::IN)),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn read_report(&mut self) {
        let mut packet = [0; REPORT_BYTES_MAX];
        while let Ok((len, _)) = rustix::net::recv(&self.report, &mut packet, RecvFlags::DONTWAIT) {
            match parse_report(&packet[..len]) {
                Some(Report::Waiting) => self.waits = true,
                Some(Report::Started) => self.started = true,
                Some(last) => self.reported = Some(last),
                None => break,
            }
        }
    }

    /// Tells the launcher, once it is known whether the program runs.
    fn answer(&mut self, answer: &mut Outlet) {
        if answer.0.is_none() {
            return;
        }
        if let Some(Report::Failed(reason)) = &self.reported {
            answer.send(&Answer::Failed { reason: reason.clone(), fault: Fault::Image });
        } else if self.started {
            let state = ShimState::of_this_shim(self.spec.run, self.pid);
            let written = state.and_then(|state| {
                files::write(&self.spec.dir, launch::SHIM_FILE, &state).map(|()| state)
            });
            let failed = |error| {
                let error = doing::<io::Error>("write shim.json")(error);
                Answer::Failed { reason: chain(&error), fault: error.fault() }
            };
            answer.send(&written.map_or_else(failed, Answer::Started));
            fault::pass(Point::ShimAnswered);
            fault::pass_by(Point::InitStarted, self.pid.as_raw_nonzero().get());
        }
    }

    /// Reaps what has ended: PID 1, and the processes that helped to make the container. Whether there was one of these.
    fn reap(&mut self) -> bool {
        let mut helper = false;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            match pid == self.pid {
                true => self.status = Some(status),
                false => helper = true,
            }
        }
        helper
    }

    fn copy(&mut self, buffer: &mut [u8]) -> bool {
        let mut more = false;
        for (pipe, lines) in &mut self.output {
            let Ok(len) = pipe.read(buffer) else { continue };
            let text = lines.take(&buffer[..len], SystemTime::now());
            more |= len > 0;
            if !self.rate.admits(&text, Instant::now()) {
                continue;
            }
            if let Err(error) = self.log.append(&text) {
                eprintln!("could not write the log: {error}");
            }
        }
        more
    }

    /// Writes a line of our own into the log.
    fn say(&mut self, words: Option<String>) {
        let Some(words) = words else { return };
        let line = Lines::new("stderr").take(format!("{words}\n").as_bytes(), SystemTime::now());
        if let Err(error) = self.log.append(&line) {
            eprintln!("could not write the log: {error}");
        }
    }

    fn finish(mut self, answer: &mut Outlet, buffer: &mut [u8]) -> ExitCode {
        self.reap();
        while self.copy(buffer) {}
        for (_, lines) in &mut self.output {
            let rest = lines.finish(SystemTime::now());
            if let Err(error) = self.log.append(&rest) {
                eprintln!("could not write the log: {error}");
            }
        }
        let word = self.rate.last_word();
        self.say(word);
        let record = self.record();
        fault::pass(Point::ShimEnded);
        let written = files::write(&self.spec.dir, launch::EXIT_FILE, &record);
        fault::pass(Point::ShimRecorded);
        let reason = "the machine ended before its program was started".to_owned();
        answer.send(&Answer::Failed { reason, fault: Fault::Host });
        if let Err(error) = self.cgroups.remove() {
            eprintln!("could not remove the cgroups: {error}");
        }
        match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("could not write exit.json: {error}");
                ExitCode::FAILURE
            }
        }
    }

    fn record(&self) -> ExitRecord {
        let (exit_code, signal) = match &self.reported {
            Some(Report::Exit { code, signal }) => (*code, (*signal > 0).then_some(*signal)),
            Some(Report::Failed(_) | Report::Started | Report::Waiting) | None => {
                codes(self.status)
            }
        };
        let cause = match &self.reported {
            Some(Report::Failed(reason)) => ExitCause::NotExecuted(reason.clone()),
            _ => ExitCause::Exited,
        };
        // A program that outlived a child's end and says that all is well had none.
        let oom_killed = exit_code != 0 && self.cgroups.oom_kills() > 0;
        ExitRecord {
            run: self.spec.run,
            exit_code,
            signal,
            oom_killed,
            exited_at_us: now_us(),
            cause,
        }
    }
}

/// Exit code and signal of PID 1 itself, when it could not report the program's.
fn codes(status: Option<WaitStatus>) -> (i32, Option<i32>) {
    let Some(status) = status else { return (128, None) };
    match status.terminating_signal() {
        Some(signal) => (128 + signal, Some(signal)),
        None => (status.exit_status().unwrap_or(128), None),
    }
}

/// Microseconds since the Unix epoch.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn parse_report(packet: &[u8]) -> Option<Report> {
    let text = String::from_utf8_lossy(packet);
    let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
    match word {
        "waiting" => Some(Report::Waiting),
        "started" => Some(Report::Started),
        "failed" => Some(Report::Failed(rest.to_owned())),
        "exit" => {
            let (code, signal) = rest.split_once(' ')?;
            Some(Report::Exit { code: code.parse().ok()?, signal: signal.parse().ok()? })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_init_are_understood_and_others_ignored() {
        assert_eq!(parse_report(b"started"), Some(Report::Started));
        assert_eq!(parse_report(b"waiting"), Some(Report::Waiting));
        assert_eq!(parse_report(b"exit 137 9"), Some(Report::Exit { code: 137, signal: 9 }));
        assert_eq!(
            parse_report(b"failed no such file"),
            Some(Report::Failed("no such file".into()))
        );
        assert_eq!(parse_report(b""), None);
        assert_eq!(parse_report(b"exit x y"), None);
    }

    #[test]
    fn the_chain_names_each_cause_once() {
        let error = doing("open the log")(io::Error::other("disk is gone"));
        assert_eq!(chain(&error), "could not open the log: disk is gone");
    }
}
