//! Starts a Machine's shim, finds it again after a restart, and reads how it ended.
//!
//! Everything about one Machine lives in its directory:
//!
//! ```text
//!  spec.json   what was asked for, written before the shim starts
//!  shim.json   pids and start times of the shim and of the Machine's PID 1, written when the program runs
//!  exit.json   how the run ended, written by rename as the shim's last act
//!  lock        held by the living shim
//!  armed.json  what a run is made ready for that nobody has asked for yet (module `armed`)
//!  armed.lock  held by the shim of such a run until it becomes a run
//!  log, log.1  what the program wrote (module `logs`)
//!  fs/         upper and work directory of the overlay, emptied at every start
//! ```

mod armed;
mod blank;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use perch_core::fault::{self, Point};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::cgroup::{self, Allowance, Cgroups, Freezer, Hierarchies};
use crate::files::{self, Content};
use crate::ids::Ids;
use crate::process::{self, Process, Worker};
use crate::secrets::Secrets;
use crate::sys;
use crate::tree::remove_tree;
use crate::volumes::{self, Volume};

pub(crate) use blank::Order;

pub use armed::{Armed, Going, arm};
pub use blank::{Stock, launch_from};

/// The one variable that a shim keeps of its server's environment, in builds for tests.
pub const FAULTS_VARIABLE: &str = "PERCH_FAULTS";

pub(crate) const SPEC_FILE: &str = "spec.json";
pub(crate) const ARMED_FILE: &str = "armed.json";
pub(crate) const SHIM_FILE: &str = "shim.json";
pub(crate) const EXIT_FILE: &str = "exit.json";
const LOCK_FILE: &str = "lock";
const ARMED_LOCK_FILE: &str = "armed.lock";
/// Becomes [`SHIM_FILE`].
pub(crate) const ARMED_SHIM_FILE: &str = "armed-shim.json";
/// What the shim itself has to say, for people.
const SHIM_LOG: &str = "shim.log";

/// Longest answer of a shim.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// How long a start may take before it is given up. A start takes 10 to 30 ms, on a host in great need a second.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long after a start the files of former runs are left alone.
const DISCARD_DELAY: Duration = Duration::from_millis(50);
/// How long the remains of a dead Machine may take to go, and how often that is looked at.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(10);
const CLEAN_INTERVAL: Duration = Duration::from_millis(2);
/// How often a freeze that takes long is looked at; nothing tells of its end on every kind of host.
const FREEZE_INTERVAL: Duration = Duration::from_micros(200);
const FREEZE_INTERVAL_MAX: Duration = Duration::from_millis(20);
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

/// Everything a run of a Machine needs. Plain data, so that the shim reads the same from a file. What a later server needs
/// to adopt or end the run is always there; everything else has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The Machine's id.
    pub machine: String,
    /// Number of this run, from 1.
    pub run: u64,
    /// Name of the app, for messages.
    #[serde(default)]
    pub app: String,
    /// The Machine's own directory (absolute).
    pub dir: PathBuf,
    /// Digest of the image's manifest, for messages.
    #[serde(default)]
    pub image: String,
    /// Unpacked layers of the image, lowest first (see `ImageStore::unpack`).
    #[serde(default)]
    pub layers: Vec<PathBuf>,
    /// Directory made by [`install_init`].
    #[serde(default)]
    pub init_layer: PathBuf,
    /// Program and arguments (see `ImageConfig::argv`).
    #[serde(default)]
    pub argv: Vec<String>,
    /// Environment. `PATH` gets a default when absent; a later entry wins over an earlier one of the same name.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; made when the image lacks it. Empty means `/`.
    #[serde(default)]
    pub workdir: String,
    /// User as an image gives it: empty, `name`, `uid`, each with an optional `:group`.
    #[serde(default)]
    pub user: String,
    /// Host name inside the Machine.
    #[serde(default)]
    pub hostname: String,
    /// The Machine's 6PN address, for messages.
    #[serde(default)]
    pub private_ip: Option<Ipv6Addr>,
    /// Files written into the root before the program starts (`/etc/hosts`, `/etc/resolv.conf`).
    #[serde(default)]
    pub files: Vec<RootFile>,
    /// Directory that the Machine finds read-only at `/.fly`; `None` mounts none.
    #[serde(default)]
    pub inside: Option<PathBuf>,
    /// What it keeps beyond a run.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// First of the 65,536 user and group ids of the host that this Machine's ids map to.
    #[serde(default)]
    pub uid_base: u32,
    /// How the layers' files come to belong to those ids; [`Ids::Shifted`] wants layers of `ImageStore::shift`.
    #[serde(default)]
    pub ids: Ids,
    /// Memory limit in bytes; `None` sets none.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Swap in bytes beside that; `None` sets no limit.
    #[serde(default)]
    pub swap_bytes: Option<u64>,
    /// Most CPU time in thousandths of one CPU (`1000` = one CPU); `None` sets no limit.
    #[serde(default)]
    pub cpu_millis: Option<u32>,
    /// Part of the CPUs when others want them too, by cgroup v1's measure (1024 is what a program has by itself).
    #[serde(default)]
    pub cpu_shares: Option<u32>,
    /// Limit of processes and threads; `None` sets none.
    #[serde(default)]
    pub pids_max: Option<u64>,
    /// Signal by which this Machine is asked to stop (number).
    #[serde(default)]
    pub kill_signal: i32,
    /// How long it may take to end after that signal, in milliseconds.
    #[serde(default = "kill_timeout_ms_default")]
    pub kill_timeout_ms: u64,
    /// Path below each cgroup hierarchy's root under which the Machine's own cgroup is made, normally `perch`.
    pub cgroup_parent: String,
}

/// What a specification without the word means: the default of a Machine's config.
fn kill_timeout_ms_default() -> u64 {
    5_000
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
        /// What they are about.
        fault: Fault,
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

/// What a start failed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The image or its configuration: the reason is for whoever made it, and names nothing of the host.
    Image,
    /// The disk of the host is full.
    DiskFull,
    /// Something else of the host.
    Host,
}

/// Told instead of a reason that names the host's directories.
pub(crate) const DISK_FULL: &str = "no space is left on the host's disk";
pub(crate) const HOST_FAULT: &str = "the host could not start it; its events say why";

impl LaunchError {
    /// The reason for people who call the Machine, not its host: it names no file of the host.
    pub fn told(&self) -> String {
        match self {
            Self::BadSpec { reason, .. } | Self::Failed { reason, fault: Fault::Image, .. } => {
                reason.clone()
            }
            Self::AlreadyRunning { .. } => "an earlier run of it has not ended".to_owned(),
            Self::Failed { fault: Fault::DiskFull, .. } => DISK_FULL.to_owned(),
            Self::Io { source, .. } if is_disk_full(source) => DISK_FULL.to_owned(),
            Self::Failed { fault: Fault::Host, .. } | Self::Io { .. } => HOST_FAULT.to_owned(),
        }
    }
}

/// Whether this is what a full disk answers.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
    run: u64,
    shim: ProcessId,
    init: ProcessId,
}

/// A process id that cannot be taken for another's: with its start time in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pid: i32,
    started: u64,
}

impl ProcessId {
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
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

    /// Kills the process, if it is still the same.
    fn kill(self) -> io::Result<()> {
        let Some(pidfd) = self.open()? else { return Ok(()) };
        match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl ShimState {
    /// Describes the calling shim.
    pub(crate) fn of_this_shim(run: u64, init: Pid) -> io::Result<Self> {
        let shim = ProcessId::of(rustix::process::getpid())?;
        Ok(Self { run, shim, init: ProcessId::of(init)? })
    }

    fn lives(&self) -> Result<bool, LaunchError> {
        let dir = || PathBuf::from(format!("/proc/{}", self.shim.pid));
        self.shim
            .open()
            .map(|shim| shim.is_some())
            .map_err(|error| io_error("look at", &dir())(error))
    }
}

/// What a shim tells its launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The program is executing.
    Started(ShimState),
    /// All is ready, and the program waits for a word.
    Armed,
    /// What was ready has ended; the program has not been executed.
    Disarmed,
    /// It is this process, and waits for a Machine.
    Blank(ProcessId),
    /// The Machine is made, and its program about to be executed.
    Taken,
    /// There is no running program, for this reason.
    Failed {
        /// In words.
        reason: String,
        /// What the words are about.
        fault: Fault,
    },
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
        let cgroups = Place::of(&spec).cgroups()?;
        Self::alive(spec, state, cgroups)
    }

    fn alive(spec: LaunchSpec, state: ShimState, cgroups: Cgroups) -> Result<Self, LaunchError> {
        let alive = Alive::open(state).map_err(io_error("watch", &spec.dir))?;
        Ok(Self { spec, pid: state.init.pid, cgroups, alive })
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

    /// Whether the run had ended before it was adopted. Its end is then known soon: [`Machine::wait`] waits at most
    /// for what is left of it to die.
    pub fn is_over(&self) -> bool {
        self.alive.is_none()
    }

    pub(crate) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Waits until the run has ended and everything of it is reaped. May be called more than once and by several
    /// tasks; cancelling a wait loses nothing.
    pub async fn wait(&self) -> Result<ExitRecord, LaunchError> {
        if let Some(alive) = &self.alive {
            readable(&alive.shim).await.map_err(io_error("wait for", &self.spec.dir))?;
            reap_ended(alive.shim.get_ref());
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
        clean(&Place::of(&self.spec), &self.cgroups).await?;
        let record = ExitRecord {
            run: self.spec.run,
            exit_code: 137,
            signal: None,
            oom_killed: false,
            exited_at_us: crate::shim::now_us(),
            cause: ExitCause::ShimLost,
        };
        // Without the file the next server concludes the same.
        if let Err(error) = files::write(&self.spec.dir, EXIT_FILE, &record) {
            tracing::warn!(%error, machine = self.spec.machine, "the end of a run is not written down");
        }
        Ok(record)
    }

    /// The Machine's PID 1; `None` when it had ended already when this run was found.
    pub(crate) fn init(&self) -> Option<&OwnedFd> {
        self.alive.as_ref()?.init.as_ref().map(AsyncFd::get_ref)
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
        // SIGKILL to PID 1 takes the rest of its namespace along, as soon as it has its turn among them.
        self.cgroups.kill_rest().map_err(|source| SignalError::Send { machine, signal: 9, source })
    }

    /// Begins to stop everything in the Machine where it is; its memory and its sockets stay. Of this and
    /// [`Machine::thaw`], the later call holds, whatever is waited for meanwhile.
    pub fn freeze(&self) -> io::Result<()> {
        self.cgroups.freeze()
    }

    /// Waits until nothing of it runs: usually less than a millisecond after [`Machine::freeze`], longer while a
    /// process waits for a disk, for ever if a thaw comes before. Cancelling the wait changes nothing.
    pub async fn frozen(&self) -> io::Result<()> {
        let mut wait = FREEZE_INTERVAL;
        while !self.cgroups.is_frozen()? {
            tokio::time::sleep(wait).await;
            wait = (2 * wait).min(FREEZE_INTERVAL_MAX);
        }
        Ok(())
    }

    /// Lets a frozen Machine go on. Nothing has to be waited for: what is sent to it meanwhile waits in its sockets.
    pub fn thaw(&self) -> io::Result<()> {
        self.cgroups.thaw()
    }

    /// Opens what thaws this run, for a process that has no access to cgroups.
    ///
    /// # Errors
    /// When the run is over, or this host cannot freeze.
    pub fn freezer(&self) -> io::Result<Freezer> {
        self.cgroups.freezer()
    }

    /// Whether it is frozen now; `false` also for a run that has ended.
    pub fn is_frozen(&self) -> bool {
        self.alive.is_some() && self.cgroups.is_frozen().unwrap_or(false)
    }

    /// The same for a run that was just adopted: who began a freeze that is still under way is gone, so it is called
    /// off. Else it would end some time, and nobody would know.
    pub fn settle_freeze(&self) -> bool {
        let settled = self.alive.is_some().then(|| self.cgroups.settle_freeze());
        settled.unwrap_or(Ok(false)).unwrap_or_else(|error| {
            tracing::warn!(machine = self.spec.machine, %error, "could not call a freeze off");
            false
        })
    }

    /// Lists the workers among the Machine's processes: those that a process of the same name forked. Reads `/proc` (about
    /// 20 µs a process); empty for a run that has ended.
    pub fn workers(&self) -> Vec<Worker> {
        if self.alive.is_none() {
            return Vec::new();
        }
        process::workers(&self.cgroups.pids())
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

/// Reaps a shim that has ended if it is this process's child: from birth on a host without v2, and as process 1 of a
/// container, which inherits orphans. Whoever else waits for it may have been first.
fn reap_ended(shim: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    if let Err(errno) = waitid(WaitId::PidFd(shim.as_fd()), options) {
        tracing::trace!(%errno, "the shim is reaped already, or by another process");
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
    let LaunchSpec { memory_bytes, swap_bytes, cpu_millis, cpu_shares, pids_max: pids, .. } = *spec;
    Allowance { memory_bytes, swap_bytes, cpu_millis, cpu_shares, pids }
}

/// As much of a run as is needed to end it.
#[derive(Debug)]
struct Place {
    machine: String,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Place {
    fn of(spec: &LaunchSpec) -> Self {
        let (machine, dir) = (spec.machine.clone(), spec.dir.clone());
        Self { machine, dir, cgroup: cgroup_path(spec) }
    }

    /// Where a run must be whose specification is lost: directory and cgroup have the Machine's name.
    fn by_name(dir: &Path, cgroup_parent: &str) -> Self {
        let name = dir.file_name().unwrap_or_default();
        let cgroup = Path::new(cgroup_parent).join(name);
        Self { machine: name.to_string_lossy().into_owned(), dir: dir.to_owned(), cgroup }
    }

    fn cgroups(&self) -> Result<Cgroups, LaunchError> {
        Cgroups::find(&self.cgroup).map_err(io_error("find the cgroups of", &self.dir))
    }

    fn is_locked(&self) -> Result<bool, LaunchError> {
        is_locked(&self.dir).map_err(io_error("lock", &self.dir))
    }

    fn failed(&self, reason: &str) -> LaunchError {
        let (machine, reason) = (self.machine.clone(), reason.to_owned());
        LaunchError::Failed { machine, reason, fault: Fault::Host }
    }
}

/// Takes the lock that a living shim holds. It goes with the file, that is with the process.
pub(crate) fn lock(dir: &Path) -> io::Result<File> {
    lock_file(dir, LOCK_FILE)
}

/// Takes the lock of a shim whose run nobody has asked for yet. It does not make the Machine one that runs.
pub(crate) fn lock_armed(dir: &Path) -> io::Result<File> {
    lock_file(dir, ARMED_LOCK_FILE)
}

/// Removes what tells that a run was made ready. Who holds the lock goes on holding it.
pub(crate) fn forget_armed(dir: &Path) -> io::Result<()> {
    [ARMED_FILE, ARMED_LOCK_FILE, ARMED_SHIM_FILE].iter().try_for_each(
        |name| match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        },
    )
}

/// What tells of a run that was made ready tells of the run from here on. Needs no space on the disk. What else tells of
/// the former run stays: everybody looks by the run's number.
pub(crate) fn become_run(dir: &Path) -> io::Result<()> {
    fs::rename(dir.join(ARMED_FILE), dir.join(SPEC_FILE))?;
    fs::rename(dir.join(ARMED_SHIM_FILE), dir.join(SHIM_FILE))
}

fn lock_file(dir: &Path, name: &str) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(name))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Whether a shim holds the lock. Needs no space on the disk.
fn is_locked(dir: &Path) -> io::Result<bool> {
    is_file_locked(dir, LOCK_FILE)
}

fn is_file_locked(dir: &Path, name: &str) -> io::Result<bool> {
    let file = match OpenOptions::new().write(true).open(dir.join(name)) {
        Err(error) if files::is_absence(&error) => return Ok(false),
        opened => opened?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Whether a run of the Machine in `dir` lives, or its end is not written down yet. Changes nothing.
pub fn lives(dir: &Path) -> Result<bool, LaunchError> {
    is_locked(dir).map_err(io_error("lock", dir))
}

/// First of the host's ids with which the newest run of the Machine in `dir` was started, if that can be told.
pub fn uid_base(dir: &Path) -> Option<u32> {
    require_spec(dir).ok().map(|spec| spec.uid_base)
}

/// Process id of the living shim of the Machine in `dir`, if one lives.
pub(crate) fn shim_pid(dir: &Path) -> io::Result<Option<(i32, OwnedFd)>> {
    match files::read::<ShimState>(&dir.join(SHIM_FILE))? {
        Content::Known(state) => Ok(state.shim.open()?.map(|pidfd| (state.shim.pid, pidfd))),
        Content::Absent | Content::Unreadable(_) => Ok(None),
    }
}

/// Who holds a lock, as far as the kernel tells: some file systems have other device numbers there.
fn lock_holder(dir: &Path, name: &str) -> io::Result<Option<Pid>> {
    let file = fs::metadata(dir.join(name))?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let id = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = fs::read_to_string("/proc/locks")?;
    // "1: FLOCK  ADVISORY  WRITE 4711 fd:00:123 0 EOF"
    let fields = locks.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let mut held = fields.filter(|it| it.get(1) == Some(&"FLOCK") && it.get(5) == Some(&&*id));
    let pid = held.find_map(|it| it.get(4)?.parse().ok().and_then(Pid::from_raw));
    // This process has it for a moment when it looks whether somebody has it.
    Ok(pid.filter(|pid| *pid != rustix::process::getpid()))
}

/// Writes down what is to run, for a process that starts in `dir`.
pub(crate) fn write_spec(spec: &LaunchSpec) -> io::Result<()> {
    files::write(&spec.dir, SPEC_FILE, spec)
}

/// The specification, for a process that cannot work without.
pub(crate) fn require_spec(dir: &Path) -> io::Result<LaunchSpec> {
    require_spec_in(dir, SPEC_FILE)
}

/// The same from another of a Machine's files.
pub(crate) fn require_spec_in(dir: &Path, name: &str) -> io::Result<LaunchSpec> {
    match files::read(&dir.join(name))? {
        Content::Known(spec) => Ok(spec),
        Content::Absent => Err(io::Error::other("there is none")),
        Content::Unreadable(why) => Err(io::Error::other(why)),
    }
}

fn read_spec(dir: &Path) -> Result<Content<LaunchSpec>, LaunchError> {
    let path = dir.join(SPEC_FILE);
    files::read(&path).map_err(io_error("read", &path))
}

fn read_record(spec: &LaunchSpec) -> Result<Option<ExitRecord>, LaunchError> {
    let path = spec.dir.join(EXIT_FILE);
    let record: Content<ExitRecord> = files::read(&path).map_err(io_error("read", &path))?;
    Ok(record.known(&path).filter(|record| record.run == spec.run))
}

fn read_state(dir: &Path) -> Result<Content<ShimState>, LaunchError> {
    let path = dir.join(SHIM_FILE);
    files::read(&path).map_err(io_error("read", &path))
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
    for dir in [layer.as_path(), parent] {
        // The umask may have taken away what the Machine's users need.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
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
/// calling thread is busy for less than one. What [`arm`] made ready in the directory has to be gone, or is about to go. Cancelling it may leave a run that [`adopt`] finds.
pub async fn launch(spec: &LaunchSpec, netns: BorrowedFd<'_>) -> Result<Machine, LaunchError> {
    launch_with(spec, netns, &Secrets::default()).await
}

/// As [`launch`], with variables that are in no file and that no process but the program has in its environment.
pub async fn launch_with(
    spec: &LaunchSpec,
    netns: BorrowedFd<'_>,
    secrets: &Secrets,
) -> Result<Machine, LaunchError> {
    begin(spec, secrets).await?;
    go_on(spec, netns, secrets).await
}

/// Makes the directory tell of the run that is to be.
async fn begin(spec: &LaunchSpec, secrets: &Secrets) -> Result<(), LaunchError> {
    check(spec, secrets)?;
    clear_former_run(spec).await?;
    write_spec(spec).map_err(io_error("write", &spec.dir.join(SPEC_FILE)))?;
    fault::pass(Point::ServerSpecWritten);
    Ok(())
}

/// Starts what [`begin`] wrote down.
async fn go_on(
    spec: &LaunchSpec,
    netns: BorrowedFd<'_>,
    secrets: &Secrets,
) -> Result<Machine, LaunchError> {
    let spawned = spawn_shim(spec, netns, Way::AtOnce);
    let spawned = spawned.map_err(io_error("start the shim of", &spec.dir))?;
    fault::pass(Point::ServerShimSpawned);
    let answer = async { hear(&mut greet(spawned, secrets).await?).await };
    let reason = match within(START_TIMEOUT, answer).await {
        Ok(Answer::Started(state)) => return begun(spec, state),
        other => reason_of(spec, other),
    };
    end(&Place::of(spec)).await?;
    Err(failed(spec, reason))
}

fn begun(spec: &LaunchSpec, state: ShimState) -> Result<Machine, LaunchError> {
    discard_former_files(spec);
    Machine::new(spec.clone(), state)
}

/// What a shim is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The program is to run.
    AtOnce,
    /// All is to be ready for it.
    Armed,
    /// The program is to run, and the launcher to hear when it is about to (module `blank`).
    Blank,
}

impl Way {
    /// The shim's last argument, if it has one.
    pub(crate) const ARMED: &str = "--armed";
}

/// An answer that comes in time.
async fn within(
    timeout: Duration,
    answer: impl Future<Output = io::Result<Answer>>,
) -> io::Result<Answer> {
    let late = |_| io::Error::other(format!("no answer within {} s", timeout.as_secs()));
    tokio::time::timeout(timeout, answer).await.map_err(late)?
}

/// Why an answer is not the one that was hoped for.
fn reason_of(spec: &LaunchSpec, answer: io::Result<Answer>) -> (String, Fault) {
    match answer {
        Ok(Answer::Failed { reason, fault: Fault::Image }) => (reason, Fault::Image),
        Ok(Answer::Failed { reason, fault }) => (reason + &last_words(spec), fault),
        Ok(other) => (format!("the shim answered out of turn: {other:?}"), Fault::Host),
        Err(error) => (error.to_string() + &last_words(spec), Fault::Host),
    }
}

fn failed(spec: &LaunchSpec, (reason, fault): (String, Fault)) -> LaunchError {
    LaunchError::Failed { machine: spec.machine.clone(), reason, fault }
}

/// Finds what cannot work before anything is made.
fn check(spec: &LaunchSpec, secrets: &Secrets) -> Result<(), LaunchError> {
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
    if secrets.is_bad() {
        return bad("a secret has no name, an = in its name, or a NUL byte");
    }
    if spec.uid_base == 0 || spec.uid_base.checked_add(crate::bundle::IDS).is_none() {
        return bad("the range of user ids is outside what the kernel has");
    }
    if !spec.dir.is_absolute() || spec.files.iter().any(|file| !file.path.starts_with('/')) {
        return bad("a path is not absolute");
    }
    if let Some(reason) = spec.volumes.iter().find_map(|it| volumes::bad_path(&it.path)) {
        return bad(reason);
    }
    let id = spec.machine.as_str();
    let is_ours = id == cgroup::SHIMS || id.starts_with(cgroup::blank::PREFIX);
    if id.is_empty() || id.contains('/') || id.starts_with('.') || is_ours {
        return bad("the machine id is not a file name, or not free");
    }
    Ok(())
}

/// Makes the directory, refuses while a run lives in it, and removes what tells of the former one.
async fn clear_former_run(spec: &LaunchSpec) -> Result<(), LaunchError> {
    ensure_over(spec).await?;
    remove_record(spec)
}

/// Makes the directory, and refuses while a run lives in it. Nothing runs there afterwards.
async fn ensure_over(spec: &LaunchSpec) -> Result<(), LaunchError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&spec.dir).map_err(io_error("make", &spec.dir))?;
    armed::end(&Place::of(spec)).await?;
    match read_spec(&spec.dir)? {
        Content::Absent => {}
        Content::Known(former) => {
            let place = Place::of(&former);
            if place.is_locked()? {
                let (machine, run) = (spec.machine.clone(), former.run);
                return Err(LaunchError::AlreadyRunning { machine, run });
            }
            if read_record(&former)?.is_none() {
                clean(&place, &place.cgroups()?).await?;
            }
        }
        Content::Unreadable(why) => end_unknown(&Place::of(spec), &why).await?,
    }
    Ok(())
}

fn remove_record(spec: &LaunchSpec) -> Result<(), LaunchError> {
    [SHIM_FILE, EXIT_FILE].iter().try_for_each(|name| remove_file(&spec.dir.join(name)))
}

fn remove_file(path: &Path) -> Result<(), LaunchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Starts the shim with a socket to it as its standard output.
fn spawn_shim(
    spec: &LaunchSpec,
    netns: BorrowedFd<'_>,
    way: Way,
) -> io::Result<(Child, StdStream)> {
    let (near, far) = StdStream::pair()?;
    let mut command = role_command("shim");
    command
        .arg(&spec.dir)
        .args((way == Way::Armed).then_some(Way::ARMED))
        .stdin(netns.try_clone_to_owned()?)
        .stdout(OwnedFd::from(far))
        .stderr(shim_log(spec)?);
    Ok((command.spawn()?, near))
}

/// This program in another role, without the server's environment.
pub(crate) fn role_command(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(role).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    #[cfg(debug_assertions)]
    command.envs(std::env::var_os(FAULTS_VARIABLE).map(|dir| (FAULTS_VARIABLE, dir)));
    command
}

/// An empty file for what a shim has to say.
fn shim_log(spec: &LaunchSpec) -> io::Result<File> {
    let path = spec.dir.join(SHIM_LOG);
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)
}

/// The way to a shim that lives.
type Line = BufReader<UnixStream>;

/// Tells the shim the secrets.
async fn greet((shim, stream): (Child, StdStream), secrets: &Secrets) -> io::Result<Line> {
    stream.set_nonblocking(true)?;
    let mut answer = UnixStream::from_std(stream)?;
    reap(shim)?;
    answer.write_all(&secrets.packed()).await?;
    Ok(BufReader::new(answer))
}

/// Reads the shim's next answer.
async fn hear(shim: &mut Line) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    // Up to the end of the line, not of the file: a container that hangs half-made holds the other end open.
    shim.take(ANSWER_BYTES_MAX).read_until(b'\n', &mut bytes).await?;
    if bytes.is_empty() {
        return Err(io::Error::other("the shim ended without an answer"));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Reaps the shim, or another child, when it ends, as long as this runtime lives.
pub(crate) fn reap(shim: Child) -> io::Result<()> {
    let pid = i32::try_from(shim.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the shim has no process id"))?;
    let pidfd = sys::watch(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)?;
    tokio::spawn(async move {
        match readable(&pidfd).await {
            Ok(()) => reap_ended(pidfd.get_ref()),
            Err(error) => tracing::warn!(%error, "could not watch a shim"),
        }
        drop(shim);
    });
    Ok(())
}

/// What a shim that failed left on its standard error: the container runtime's complaints too.
fn last_words(spec: &LaunchSpec) -> String {
    let text = fs::read_to_string(spec.dir.join(SHIM_LOG)).unwrap_or_default();
    let last: Vec<_> = text.lines().rev().take(3).collect();
    last.into_iter().rev().map(|line| format!("; {line}")).collect()
}

/// Removes the files of former runs, away from the start's path: whoever waits for the start needs the processor and the
/// disk first.
fn discard_former_files(spec: &LaunchSpec) {
    let (dir, run) = (spec.dir.join("fs"), spec.run);
    let discard = move || {
        for path in former_files(&dir, run) {
            if let Err(error) = remove_tree(&path) {
                tracing::warn!(%error, path = %path.display(), "could not remove the files of a former run");
            }
        }
    };
    tokio::spawn(async {
        tokio::time::sleep(DISCARD_DELAY).await;
        // If it is cut off by the end of the process, the next start does it.
        tokio::task::spawn_blocking(discard).await.ok();
    });
}

/// The files of runs before this one. It may be over already, and the next one there.
fn former_files(dir: &Path, run: u64) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_former = |entry: &fs::DirEntry| {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
        number.is_none_or(|number| number < run)
    };
    entries.filter(is_former).map(|entry| entry.path()).collect()
}

/// Finds the run that the Machine directory `dir` tells of: a living one, or one that has ended and whose exit record
/// still lies there (its [`Machine::wait`] returns at once). `None` when nothing was ever started or all is removed.
///
/// What cannot be known, because a file is damaged or of a later version, is killed: no run lives that nobody can name.
/// `cgroup_parent` is where to look for a run whose own specification is lost (see [`LaunchSpec::cgroup_parent`]).
pub async fn adopt(dir: &Path, cgroup_parent: &str) -> Result<Option<Machine>, LaunchError> {
    let hierarchies = Hierarchies::find().map_err(io_error("find the cgroups of", dir))?;
    adopt_among(&hierarchies, dir, cgroup_parent).await
}

/// The same for one of many Machines.
///
/// # Errors
/// As of [`adopt`].
pub async fn adopt_among(
    hierarchies: &Hierarchies,
    dir: &Path,
    cgroup_parent: &str,
) -> Result<Option<Machine>, LaunchError> {
    armed::end(&Place::by_name(dir, cgroup_parent)).await?;
    let spec = match read_spec(dir)? {
        Content::Absent => return Ok(None),
        Content::Known(spec) => spec,
        Content::Unreadable(why) => {
            end_unknown(&Place::by_name(dir, cgroup_parent), &why).await?;
            return Ok(None);
        }
    };
    match tokio::time::timeout(SETTLE_TIMEOUT, settled(&spec)).await {
        Ok(Ok(Content::Known(state))) => {
            let cgroups = hierarchies.at(&cgroup_path(&spec));
            return Machine::alive(spec, state, cgroups).map(Some);
        }
        Ok(Ok(Content::Absent)) => {}
        Ok(Ok(Content::Unreadable(why))) => end_unknown(&Place::of(&spec), &why).await?,
        Ok(Err(error)) => return Err(error),
        Err(_) => end_unknown(&Place::of(&spec), "its shim neither starts it nor ends").await?,
    }
    let cgroups = hierarchies.at(&cgroup_path(&spec));
    Ok(Some(Machine { spec, pid: 0, cgroups, alive: None }))
}

/// What the living shim of a run says of itself, once it does; absent when none lives.
async fn settled(spec: &LaunchSpec) -> Result<Content<ShimState>, LaunchError> {
    // A shim that is still starting shows itself soon; there is nothing to be notified by.
    while Place::of(spec).is_locked()? {
        match read_state(&spec.dir)? {
            // One that has died may have left this to another, which becomes the run just now.
            Content::Known(state) if state.run == spec.run && state.lives()? => {
                return Ok(Content::Known(state));
            }
            Content::Unreadable(why) => return Ok(Content::Unreadable(why)),
            Content::Known(_) | Content::Absent => tokio::time::sleep(CLEAN_INTERVAL).await,
        }
    }
    Ok(Content::Absent)
}

async fn end_unknown(place: &Place, why: &str) -> Result<(), LaunchError> {
    tracing::warn!(machine = place.machine, why, "what ran cannot be known; it is killed");
    end(place).await
}

/// Kills what lives of a run and waits until it is gone, its shim too.
async fn end(place: &Place) -> Result<(), LaunchError> {
    if let Err(error) = kill_shim(place) {
        tracing::debug!(%error, machine = place.machine, "its shim ends with the rest");
    }
    clean(place, &place.cgroups()?).await?;
    let unlocked = async {
        while place.is_locked()? {
            tokio::time::sleep(CLEAN_INTERVAL).await;
        }
        Ok(())
    };
    let timeout = |_| place.failed("its shim does not end");
    tokio::time::timeout(CLEAN_TIMEOUT, unlocked).await.map_err(timeout)?
}

/// Kills the shim by what it wrote about itself, else as the holder of the lock.
fn kill_shim(place: &Place) -> io::Result<()> {
    let state = read_state(&place.dir).map_err(io::Error::other)?;
    let shim = match state {
        Content::Known(state) => state.shim.open()?,
        Content::Absent | Content::Unreadable(_) => None,
    };
    // What is written may be of the run before.
    let shim = shim.map_or_else(|| open_holder(&place.dir, LOCK_FILE), |shim| Ok(Some(shim)))?;
    let Some(shim) = shim else { return Ok(()) };
    rustix::process::pidfd_send_signal(&shim, Signal::KILL).map_err(Into::into)
}

fn open_holder(dir: &Path, name: &str) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = lock_holder(dir, name)? else { return Ok(None) };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    // Looked at again after opening: by now another process may have the number.
    Ok((lock_holder(dir, name)? == Some(pid)).then_some(pidfd))
}

/// Kills what is left in the cgroups and removes them; they can be removed only when the last process is gone.
async fn clean(place: &Place, cgroups: &Cgroups) -> Result<(), LaunchError> {
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
        Ok(done) => done.map_err(io_error("clean up after", &place.dir)),
        Err(_) => Err(place.failed("processes of a former run do not die")),
    }
}

/// Removes everything of a Machine: kills what still lives, removes its cgroups and its directory. Idempotent; works
/// whatever the directory holds, and on a full disk. `cgroup_parent` as for [`adopt`].
pub async fn remove(dir: &Path, cgroup_parent: &str) -> Result<(), LaunchError> {
    armed::end(&Place::by_name(dir, cgroup_parent)).await?;
    let spec = read_spec(dir)?.known(&dir.join(SPEC_FILE));
    end(&spec.map_or_else(|| Place::by_name(dir, cgroup_parent), |spec| Place::of(&spec))).await?;
    let owned = dir.to_owned();
    let removed = tokio::task::spawn_blocking(move || remove_whatever(&owned)).await;
    match removed.map_err(io::Error::other).and_then(|removed| removed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", dir)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a directory, or the file that is there instead.
fn remove_whatever(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => remove_tree(path),
        false => fs::remove_file(path),
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
        inside: None,
        volumes: Vec::new(),
        uid_base: 100_000,
        ids: Ids::Mapped,
        memory_bytes: None,
        swap_bytes: None,
        cpu_millis: None,
        cpu_shares: None,
        pids_max: None,
        kill_signal: 2,
        kill_timeout_ms: 5_000,
        cgroup_parent: "perch-test".into(),
    }
}

/// A run of a test, without processes, whose cgroup is this directory.
#[cfg(test)]
pub(crate) fn test_machine(dir: &Path, run: u64) -> Machine {
    let spec = LaunchSpec { dir: dir.to_owned(), run, ..test_spec() };
    Machine { spec, pid: 0, cgroups: Cgroups::of_test(dir), alive: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut LaunchSpec), words: &str) {
        let mut spec = test_spec();
        change(&mut spec);
        let error = check(&spec, &Secrets::default())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }

    #[test]
    fn files_of_a_later_run_are_not_former_ones() -> io::Result<()> {
        let dir = crate::scratch_dir("former-files")?;
        for name in ["2", "9", "10", "11", "draft"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let mut former = former_files(&dir, 10);
        former.sort();
        assert_eq!(former, ["2", "9", "draft"].map(|name| dir.join(name)));
        fs::remove_dir_all(dir)
    }

    #[test]
    fn a_specification_that_cannot_work_is_refused_with_its_reason() {
        refused(|spec| spec.argv.clear(), "no program");
        refused(|spec| spec.argv.push("a\0b".into()), "NUL");
        refused(|spec| spec.env.push(("A=B".into(), String::new())), "variable");
        refused(|spec| spec.uid_base = u32::MAX - 5, "user ids");
        refused(|spec| spec.dir = "relative".into(), "absolute");
        refused(|spec| spec.machine = "../x".into(), "file name");
        refused(|spec| spec.machine = "shims".into(), "not free");
        refused(|spec| spec.machine = "blank-1".into(), "not free");
        assert!(check(&test_spec(), &Secrets::default()).is_ok());
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
        assert!(adopt(&dir, "perch-test").await.is_ok_and(|found| found.is_none()));
        assert!(remove(&dir, "perch-test").await.is_ok());
        assert!(remove(&dir, "perch-test").await.is_ok());
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
