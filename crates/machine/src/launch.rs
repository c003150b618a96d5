//! Starts a Machine's shim, finds it again after a restart, and reads how it ended.
//!
//! Everything about one Machine lives in its directory:
//!
//! ```text
//!  spec.json   what was asked for, written before the shim starts
//!  shim.json   pids and start times of the shim and of the Machine's PID 1, written when the program runs
//!  exit.json   how the run ended, written by rename as the shim's last act
//!  log, log.1  what the program wrote (module `logs`)
//!  fs/         upper and work directory of the overlay, emptied at every start
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

use crate::cgroup::{Allowance, Cgroups};
use crate::ids::Ids;
use crate::process::{self, Process};
use crate::sys;

pub(crate) const SPEC_FILE: &str = "spec.json";
pub(crate) const SHIM_FILE: &str = "shim.json";
pub(crate) const EXIT_FILE: &str = "exit.json";
const LOCK_FILE: &str = "lock";
/// What the shim itself has to say, for people.
const SHIM_LOG: &str = "shim.log";

/// Version of the files between server and shim. A server adopts shims of its own and older versions.
const VERSION: u32 = 1;
/// Longest answer of a shim.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// How long a start may take before it is given up. A start takes 10 to 30 ms, on a host in great need a second.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the remains of a dead Machine may take to go, and how often that is looked at.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(10);
const CLEAN_INTERVAL: Duration = Duration::from_millis(2);
/// How long a half-started run that an earlier server left may take to show itself.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A file that the platform writes into a Machine's root before the program starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFile {
    /// Absolute path as the program sees it. Links in it are resolved inside the Machine's root.
    pub path: String,
    /// Content; it replaces what the image has there.
    pub content: Vec<u8>,
    /// Permission bits, for example `0o644`.
    pub mode: u32,
}

/// Everything a run of a Machine needs. Plain data, so that the shim reads the same from a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The Machine's id.
    pub machine: String,
    /// Number of this run, from 1.
    pub run: u64,
    /// Name of the app, for messages.
    pub app: String,
    /// The Machine's own directory (absolute).
    pub dir: PathBuf,
    /// Digest of the image's manifest, for messages.
    pub image: String,
    /// Unpacked layers of the image, lowest first (see `ImageStore::unpack`).
    pub layers: Vec<PathBuf>,
    /// Directory made by [`install_init`].
    pub init_layer: PathBuf,
    /// Program and arguments (see `ImageConfig::argv`).
    pub argv: Vec<String>,
    /// Environment. `PATH` gets a default when absent; a later entry wins over an earlier one of the same name.
    pub env: Vec<(String, String)>,
    /// Working directory; made when the image lacks it. Empty means `/`.
    pub workdir: String,
    /// User as an image gives it: empty, `name`, `uid`, each with an optional `:group`.
    pub user: String,
    /// Host name inside the Machine.
    pub hostname: String,
    /// The Machine's 6PN address, for messages.
    pub private_ip: Option<Ipv6Addr>,
    /// Files written into the root before the program starts (`/etc/hosts`, `/etc/resolv.conf`).
    pub files: Vec<RootFile>,
    /// First of the 65,536 user and group ids of the host that this Machine's ids map to.
    pub uid_base: u32,
    /// How the layers' files come to belong to those ids; [`Ids::Shifted`] wants layers of `ImageStore::shift`.
    #[serde(default)]
    pub ids: Ids,
    /// Memory limit in bytes; `None` sets none.
    pub memory_bytes: Option<u64>,
    /// Share of CPU in thousandths of one CPU (`1000` = one CPU); `None` sets none.
    pub cpu_millis: Option<u32>,
    /// Limit of processes and threads; `None` sets none.
    pub pids_max: Option<u64>,
    /// Signal by which this Machine is asked to stop (number).
    pub kill_signal: i32,
    /// Path below each cgroup hierarchy's root under which the Machine's own cgroup is made, normally `perch`.
    pub cgroup_parent: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The run it belongs to.
    pub run: u64,
    /// Exit code as a container reports it: the program's own, or 128 + signal.
    pub exit_code: i32,
    /// The signal that killed the program, if one did.
    pub signal: Option<i32>,
    /// Whether the kernel killed something in this Machine for lack of memory.
    pub oom_killed: bool,
    /// When it ended, microseconds since the Unix epoch.
    pub exited_at_us: u64,
    /// Why, as far as the platform knows.
    pub cause: ExitCause,
}

/// What ended a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// The program ended, by itself or by a signal.
    Exited,
    /// The program could not be executed; the text names it and says why.
    NotExecuted(String),
    /// The shim died, and the Machine with it; exit code and signal are not known.
    ShimLost,
}

/// Why a Machine could not be started. The texts are shown to users.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification cannot work.
    #[error("cannot start machine {machine}: {reason}")]
    BadSpec {
        /// The Machine.
        machine: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A run of this Machine is alive already.
    #[error("machine {machine} is already running (run {run})")]
    AlreadyRunning {
        /// The Machine.
        machine: String,
        /// The run that lives.
        run: u64,
    },
    /// The container could not be made, or the program not executed.
    #[error("could not start machine {machine}: {reason}")]
    Failed {
        /// The Machine.
        machine: String,
        /// The shim's own words.
        reason: String,
    },
    /// A file or process operation failed.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Why a signal was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The run has ended.
    #[error("machine {0} is not running")]
    NotRunning(String),
    /// The kernel refused.
    #[error("could not send signal {signal} to machine {machine}")]
    Send {
        /// The Machine.
        machine: String,
        /// The signal's number.
        signal: i32,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Where the living shim and the Machine's PID 1 are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimState {
    version: u32,
    run: u64,
    shim: ProcessId,
    init: ProcessId,
}

/// A process id that cannot be taken for another's: with its start time in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ProcessId {
    pid: i32,
    started: u64,
}

impl ProcessId {
    fn of(pid: Pid) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        Ok(Self { pid, started: process::start_time(pid)? })
    }

    /// A descriptor of the process, if it is still the same.
    fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after opening: a descriptor of another process that took the number would be noticed.
        let same = process::start_time(self.pid).is_ok_and(|started| started == self.started);
        Ok(same.then_some(pidfd))
    }
}

impl ShimState {
    /// Describes the calling shim.
    pub(crate) fn of_this_shim(run: u64, init: Pid) -> io::Result<Self> {
        let shim = ProcessId::of(rustix::process::getpid())?;
        Ok(Self { version: VERSION, run, shim, init: ProcessId::of(init)? })
    }
}

/// What a shim tells its launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The program is executing.
    Started(ShimState),
    /// There is no running program, for this reason.
    Failed(String),
}

/// A run of a Machine, alive or ended. Dropping it changes nothing about the run.
#[derive(Debug)]
pub struct Machine {
    spec: LaunchSpec,
    pid: i32,
    cgroups: Cgroups,
    /// `None` for a run whose shim had ended when it was found.
    alive: Option<Alive>,
}

#[derive(Debug)]
struct Alive {
    shim: AsyncFd<OwnedFd>,
    /// `None` when PID 1 had ended already; its shim is about to write down how.
    init: Option<AsyncFd<OwnedFd>>,
}

impl Alive {
    /// Needs a tokio runtime. `None` when the shim is gone: then its record is there, or never will be.
    fn open(state: ShimState) -> io::Result<Option<Self>> {
        let Some(shim) = state.shim.open()? else { return Ok(None) };
        let init = state.init.open()?.map(sys::watch).transpose()?;
        Ok(Some(Self { shim: sys::watch(shim)?, init }))
    }
}

impl Machine {
    fn new(spec: LaunchSpec, state: ShimState) -> Result<Self, LaunchError> {
        let cgroups = find_cgroups(&spec)?;
        let alive = Alive::open(state).map_err(io_error("watch", &spec.dir))?;
        Ok(Self { spec, pid: state.init.pid, cgroups, alive })
    }

    fn ended(spec: LaunchSpec) -> Result<Self, LaunchError> {
        let cgroups = find_cgroups(&spec)?;
        Ok(Self { spec, pid: 0, cgroups, alive: None })
    }

    /// What this run was started with.
    pub fn spec(&self) -> &LaunchSpec {
        &self.spec
    }

    /// The run's number.
    pub fn run(&self) -> u64 {
        self.spec.run
    }

    /// Process id of the Machine's PID 1 as the host sees it; 0 when the run had ended before it was adopted.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until the run has ended and everything of it is reaped. May be called more than once and by several
    /// tasks; cancelling a wait loses nothing.
    pub async fn wait(&self) -> Result<ExitRecord, LaunchError> {
        if let Some(alive) = &self.alive {
            readable(&alive.shim).await.map_err(io_error("wait for", &self.spec.dir))?;
        }
        match read_record(&self.spec)? {
            Some(record) => Ok(record),
            None => self.bury().await,
        }
    }

    /// After a shim died without a record: sees to it that the Machine is dead too, and writes the record.
    async fn bury(&self) -> Result<ExitRecord, LaunchError> {
        if let Some(alive) = &self.alive {
            self.cgroups.kill().map_err(io_error("kill", &self.spec.dir))?;
            if let Some(init) = &alive.init {
                readable(init).await.map_err(io_error("wait for", &self.spec.dir))?;
            }
        }
        clean(&self.spec, &self.cgroups).await?;
        let record = ExitRecord {
            run: self.spec.run,
            exit_code: 137,
            signal: None,
            oom_killed: false,
            exited_at_us: crate::shim::now_us(),
            cause: ExitCause::ShimLost,
        };
        write_whole(&self.spec.dir, EXIT_FILE, &record)
            .map_err(io_error("write", &self.spec.dir.join(EXIT_FILE)))?;
        Ok(record)
    }

    /// Sends a signal to the program (through the Machine's PID 1, which forwards it).
    pub fn signal(&self, signal: i32) -> Result<(), SignalError> {
        let gone = || SignalError::NotRunning(self.spec.machine.clone());
        let failed =
            |source| SignalError::Send { machine: self.spec.machine.clone(), signal, source };
        let init = self.alive.as_ref().and_then(|alive| alive.init.as_ref()).ok_or_else(gone)?;
        let known = Signal::from_named_raw(signal);
        let known = known.ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        match rustix::process::pidfd_send_signal(init.get_ref(), known) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err(gone()),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Kills everything in the Machine at once, frozen or not.
    pub fn kill(&self) -> Result<(), SignalError> {
        self.signal(Signal::KILL.as_raw())?;
        let machine = self.spec.machine.clone();
        // SIGKILL to PID 1 takes the rest of its namespace along; a v1-frozen process dies only when thawed.
        self.cgroups.thaw().map_err(|source| SignalError::Send { machine, signal: 9, source })
    }

    /// Lists the Machine's processes with their listening sockets. Does not wake or disturb them. Reads `/proc`
    /// (about 0.1 ms a process); empty for a run that has ended.
    pub fn ps(&self) -> io::Result<Vec<Process>> {
        if self.alive.is_none() {
            return Ok(Vec::new());
        }
        match process::list(self.pid, &self.cgroups.pids()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed,
        }
    }
}

async fn readable(fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    // The readiness stays set: a process that has ended stays ended.
    fd.readable().await.map(|mut guard| guard.retain_ready())
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::Io { doing, path, source }
}

/// The Machine's cgroup, relative to the root of each hierarchy.
pub(crate) fn cgroup_path(spec: &LaunchSpec) -> PathBuf {
    Path::new(&spec.cgroup_parent).join(&spec.machine)
}

/// The limits of a run.
pub(crate) fn allowance(spec: &LaunchSpec) -> Allowance {
    let LaunchSpec { memory_bytes, cpu_millis, pids_max: pids, .. } = *spec;
    Allowance { memory_bytes, cpu_millis, pids }
}

fn find_cgroups(spec: &LaunchSpec) -> Result<Cgroups, LaunchError> {
    Cgroups::find(&cgroup_path(spec)).map_err(io_error("find the cgroups of", &spec.dir))
}

/// Takes the lock that a living shim holds. It goes with the file, that is with the process.
pub(crate) fn lock(dir: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Whether a shim holds the lock.
fn is_locked(dir: &Path) -> io::Result<bool> {
    match lock(dir) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Writes a file so that it appears at once and whole. Not synced: after a power cut no run is alive anyway.
pub(crate) fn write_whole<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let draft = dir.join(format!("{name}.new"));
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    serde_json::to_writer(&file, value)?;
    fs::rename(draft, dir.join(name))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn read_spec(dir: &Path) -> io::Result<Option<LaunchSpec>> {
    read_json(&dir.join(SPEC_FILE))
}

fn read_record(spec: &LaunchSpec) -> Result<Option<ExitRecord>, LaunchError> {
    let path = spec.dir.join(EXIT_FILE);
    let record: Option<ExitRecord> = read_json(&path).map_err(io_error("read", &path))?;
    Ok(record.filter(|record| record.run == spec.run))
}

fn read_state(spec: &LaunchSpec) -> Result<Option<ShimState>, LaunchError> {
    let path = spec.dir.join(SHIM_FILE);
    let state: Option<ShimState> = read_json(&path).map_err(io_error("read", &path))?;
    Ok(state.filter(|state| state.run == spec.run))
}

/// Writes the init binary below `dir` once per content, and returns the layer directory for
/// [`LaunchSpec::init_layer`]. Idempotent; `dir` is made if missing.
pub fn install_init(dir: &Path, binary: &[u8]) -> io::Result<PathBuf> {
    let name: String =
        Sha256::digest(binary).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let layer = dir.join(format!("init-{name}"));
    let file = layer.join(crate::bundle::INIT.trim_start_matches('/'));
    let parent = file.parent().unwrap_or(&layer);
    if fs::metadata(&file).is_ok_and(|meta| meta.len() == binary.len() as u64) {
        return Ok(layer);
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    let draft = parent.join("init.new");
    fs::write(&draft, binary)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    fs::rename(draft, &file)?;
    Ok(layer)
}

/// Starts a run: spawns `/proc/self/exe shim DIR` and returns when the program is executing. The calling program's
/// `main` must hand `shim DIR` to [`crate::shim::main`].
///
/// `netns` is the network namespace that the Machine joins. Needs a tokio runtime; takes about 10 ms, of which the
/// calling thread is busy for less than one. Cancelling it may leave a run that [`adopt`] finds.
pub async fn launch(spec: &LaunchSpec, netns: BorrowedFd<'_>) -> Result<Machine, LaunchError> {
    check(spec)?;
    clear_former_run(spec).await?;
    write_whole(&spec.dir, SPEC_FILE, spec)
        .map_err(io_error("write", &spec.dir.join(SPEC_FILE)))?;
    let spawned = spawn_shim(spec, netns).map_err(io_error("start the shim of", &spec.dir))?;
    let reason = match tokio::time::timeout(START_TIMEOUT, read_answer(spawned)).await {
        Ok(Ok(Answer::Started(state))) => {
            discard_former_files(spec);
            return Machine::new(spec.clone(), state);
        }
        Ok(Ok(Answer::Failed(reason))) => reason + &last_words(spec),
        Ok(Err(error)) => error.to_string() + &last_words(spec),
        Err(_) => format!("no answer within {} s", START_TIMEOUT.as_secs()),
    };
    end(spec).await?;
    Err(failed(spec, reason))
}

fn failed(spec: &LaunchSpec, reason: String) -> LaunchError {
    LaunchError::Failed { machine: spec.machine.clone(), reason }
}

/// Finds what cannot work before anything is made.
fn check(spec: &LaunchSpec) -> Result<(), LaunchError> {
    let bad = |reason: &str| {
        Err(LaunchError::BadSpec { machine: spec.machine.clone(), reason: reason.to_owned() })
    };
    let words = spec.argv.iter().chain(spec.env.iter().flat_map(|(name, value)| [name, value]));
    let mut words = words.chain([&spec.workdir, &spec.user, &spec.hostname]);
    if spec.argv.first().is_none_or(String::is_empty) {
        return bad("no program is given");
    }
    if words.any(|word| word.contains('\0')) {
        return bad("an argument or variable contains a NUL byte");
    }
    if spec.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
        return bad("an environment variable has no name or an = in it");
    }
    if spec.uid_base == 0 || spec.uid_base.checked_add(crate::bundle::IDS).is_none() {
        return bad("the range of user ids is outside what the kernel has");
    }
    if !spec.dir.is_absolute() || spec.files.iter().any(|file| !file.path.starts_with('/')) {
        return bad("a path is not absolute");
    }
    if spec.machine.is_empty() || spec.machine.contains('/') || spec.machine.starts_with('.') {
        return bad("the machine id is not a file name");
    }
    Ok(())
}

/// Makes the directory, and refuses while a run lives in it.
async fn clear_former_run(spec: &LaunchSpec) -> Result<(), LaunchError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&spec.dir).map_err(io_error("make", &spec.dir))?;
    let former = read_spec(&spec.dir).map_err(io_error("read", &spec.dir.join(SPEC_FILE)))?;
    if let Some(former) = former {
        if is_locked(&spec.dir).map_err(io_error("lock", &spec.dir))? {
            let (machine, run) = (spec.machine.clone(), former.run);
            return Err(LaunchError::AlreadyRunning { machine, run });
        }
        if read_record(&former)?.is_none() {
            clean(&former, &find_cgroups(&former)?).await?;
        }
    }
    for name in [SHIM_FILE, EXIT_FILE] {
        remove_file(&spec.dir.join(name))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), LaunchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn spawn_shim(spec: &LaunchSpec, netns: BorrowedFd<'_>) -> io::Result<Child> {
    let words = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(spec.dir.join(SHIM_LOG))?;
    Command::new("/proc/self/exe")
        .arg("shim")
        .arg(&spec.dir)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(netns.try_clone_to_owned()?)
        .stdout(Stdio::piped())
        .stderr(words)
        .spawn()
}

async fn read_answer(mut shim: Child) -> io::Result<Answer> {
    let answer = shim.stdout.take().ok_or_else(|| io::Error::other("the shim has no output"))?;
    let answer = pipe::Receiver::from_owned_fd(answer.into())?;
    reap(shim)?;
    let mut bytes = Vec::new();
    // Up to the end of the line, not of the file: a container that hangs half-made holds the other end open.
    BufReader::new(answer.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut bytes).await?;
    if bytes.is_empty() {
        return Err(io::Error::other("the shim ended without an answer"));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Reaps the shim when it ends, as long as this runtime lives.
fn reap(mut shim: Child) -> io::Result<()> {
    let pid = i32::try_from(shim.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the shim has no process id"))?;
    let pidfd = sys::watch(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)?;
    tokio::spawn(async move {
        let waited = readable(&pidfd).await.and_then(|()| shim.wait());
        if let Err(error) = waited {
            tracing::warn!(%error, "could not reap a shim");
        }
    });
    Ok(())
}

/// What a shim that failed left on its standard error: the container runtime's complaints too.
fn last_words(spec: &LaunchSpec) -> String {
    let text = fs::read_to_string(spec.dir.join(SHIM_LOG)).unwrap_or_default();
    let last: Vec<_> = text.lines().rev().take(3).collect();
    last.into_iter().rev().map(|line| format!("; {line}")).collect()
}

/// Removes the files of former runs, away from the start's path.
fn discard_former_files(spec: &LaunchSpec) {
    let (dir, kept) = (spec.dir.join("fs"), spec.run.to_string());
    tokio::task::spawn_blocking(move || {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name() != kept.as_str()) {
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(%error, path = %entry.path().display(), "could not remove the files of a former run");
            }
        }
    });
}

/// Finds the run that the Machine directory `dir` tells of: a living one, or one that has ended and whose exit record
/// still lies there (its [`Machine::wait`] returns at once). `None` when nothing was ever started or all is removed.
pub async fn adopt(dir: &Path) -> Result<Option<Machine>, LaunchError> {
    let spec_file = dir.join(SPEC_FILE);
    let Some(spec) = read_spec(dir).map_err(io_error("read", &spec_file))? else {
        return Ok(None);
    };
    let settled = async {
        // A shim that is still starting shows itself soon; there is nothing to be notified by.
        while is_locked(dir).map_err(io_error("lock", dir))? {
            if let Some(state) = read_state(&spec)? {
                return Ok(Some(state));
            }
            tokio::time::sleep(CLEAN_INTERVAL).await;
        }
        Ok(None)
    };
    match tokio::time::timeout(SETTLE_TIMEOUT, settled).await {
        Ok(Ok(Some(state))) => Machine::new(spec, state).map(Some),
        Ok(Ok(None)) => Machine::ended(spec).map(Some),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(failed(&spec, "its shim neither starts it nor ends".to_owned())),
    }
}

/// Kills what lives of a run and waits until it is gone, its shim too.
async fn end(spec: &LaunchSpec) -> Result<(), LaunchError> {
    if let Some(shim) = read_state(spec)?.map(|state| state.shim) {
        let open = shim.open().map_err(io_error("find the shim of", &spec.dir))?;
        if let Some(shim) = open
            && let Err(error) = rustix::process::pidfd_send_signal(&shim, Signal::KILL)
        {
            tracing::debug!(%error, "the shim has just ended by itself");
        }
    }
    clean(spec, &find_cgroups(spec)?).await?;
    let unlocked = async {
        while is_locked(&spec.dir).map_err(io_error("lock", &spec.dir))? {
            tokio::time::sleep(CLEAN_INTERVAL).await;
        }
        Ok(())
    };
    let timeout = |_| failed(spec, "its shim does not end".to_owned());
    tokio::time::timeout(CLEAN_TIMEOUT, unlocked).await.map_err(timeout)?
}

/// Kills what is left in the cgroups and removes them; they can be removed only when the last process is gone.
async fn clean(spec: &LaunchSpec, cgroups: &Cgroups) -> Result<(), LaunchError> {
    let cleaned = async {
        loop {
            cgroups.kill()?;
            match cgroups.remove() {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                other => break other,
            }
            tokio::time::sleep(CLEAN_INTERVAL).await;
        }
    };
    match tokio::time::timeout(CLEAN_TIMEOUT, cleaned).await {
        Ok(done) => done.map_err(io_error("clean up after", &spec.dir)),
        Err(_) => Err(failed(spec, "processes of a former run do not die".to_owned())),
    }
}

/// Removes everything of a Machine: kills what still lives, removes its cgroups and its directory. Idempotent.
pub async fn remove(dir: &Path) -> Result<(), LaunchError> {
    let spec = read_spec(dir).map_err(io_error("read", &dir.join(SPEC_FILE)))?;
    if let Some(spec) = spec {
        end(&spec).await?;
    }
    let owned = dir.to_owned();
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(owned)).await;
    match removed.map_err(io::Error::other).and_then(|removed| removed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", dir)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
pub(crate) fn test_spec() -> LaunchSpec {
    LaunchSpec {
        machine: "0123456789abcd".into(),
        run: 1,
        app: "app".into(),
        dir: "/nonexistent".into(),
        image: String::new(),
        layers: Vec::new(),
        init_layer: PathBuf::new(),
        argv: vec!["/bin/true".into()],
        env: Vec::new(),
        workdir: String::new(),
        user: String::new(),
        hostname: "h".into(),
        private_ip: None,
        files: Vec::new(),
        uid_base: 100_000,
        ids: Ids::Mapped,
        memory_bytes: None,
        cpu_millis: None,
        pids_max: None,
        kill_signal: 2,
        cgroup_parent: "perch-test".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut LaunchSpec), words: &str) {
        let mut spec = test_spec();
        change(&mut spec);
        let error = check(&spec).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }

    #[test]
    fn a_specification_that_cannot_work_is_refused_with_its_reason() {
        refused(|spec| spec.argv.clear(), "no program");
        refused(|spec| spec.argv.push("a\0b".into()), "NUL");
        refused(|spec| spec.env.push(("A=B".into(), String::new())), "variable");
        refused(|spec| spec.uid_base = u32::MAX - 5, "user ids");
        refused(|spec| spec.dir = "relative".into(), "absolute");
        refused(|spec| spec.machine = "../x".into(), "file name");
        assert!(check(&test_spec()).is_ok());
    }

    #[test]
    fn one_lock_at_a_time() -> io::Result<()> {
        let dir = crate::scratch_dir("lock")?;
        assert!(!is_locked(&dir)?);
        let held = lock(&dir)?;
        assert!(is_locked(&dir)?);
        drop(held);
        assert!(!is_locked(&dir)?);
        fs::remove_dir_all(dir)
    }

    #[tokio::test]
    async fn a_directory_without_a_run_adopts_nothing_and_removes_quietly() -> io::Result<()> {
        let dir = crate::scratch_dir("adopt")?;
        assert!(adopt(&dir).await.is_ok_and(|found| found.is_none()));
        assert!(remove(&dir).await.is_ok());
        assert!(remove(&dir).await.is_ok());
        Ok(())
    }

    #[test]
    fn init_is_installed_once_per_content() -> io::Result<()> {
        let dir = crate::scratch_dir("init")?;
        let layer = install_init(&dir, b"one")?;
        assert_eq!(install_init(&dir, b"one")?, layer);
        assert_ne!(install_init(&dir, b"two")?, layer);
        assert_eq!(fs::read(layer.join(".perch/init"))?, b"one");
        fs::remove_dir_all(dir)
    }
}
