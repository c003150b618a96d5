//! Runs Machines: keeps images, unpacks them, starts a container for each run and watches over it.
//!
//! ```text
//!  server ──launch(spec, netns)──► shim (one process per run) ──libcontainer──► init (PID 1) ──► program
//!     │ pidfd, files in the Machine's directory      │ overlay, cgroups, log, exit record
//!     └──adopt(dir) after a restart──────────────────┘
//! ```
//!
//! A shim outlives the server that started it: a new server finds it again with [`adopt`]. When the shim dies,
//! the kernel kills the Machine's PID 1 with it, so a Machine is never without its keeper.
//!
//! This crate does no routing, knows no addresses but those it is given, and decides nothing: restart policies,
//! stop timeouts and states are decided elsewhere.

pub mod enter;
pub mod exec;
pub mod ids;
pub mod images;
pub mod launch;
pub mod logs;
pub mod memory;
pub mod process;
pub mod secrets;
pub mod shim;
pub mod swap;
pub mod unpack;
pub mod volumes;

mod bundle;
mod cgroup;
mod complaints;
mod disk;
mod files;
mod halt;
mod log_rate;
// The very filter that init installs: who joins a Machine must not be able to do more than its program.
#[path = "../../init/src/filter.rs"]
mod filter;
mod shift;
mod stage;
mod sys;
mod tree;
mod user;

pub use cgroup::ceiling::{Ceiling, Ceilings};
pub use cgroup::idle::Cpu;
pub use cgroup::reclaim::main as reclaim_main;
pub use cgroup::{Freezer, Hierarchies};
pub use disk::{DiskUse, INODE_BYTES};
pub use exec::{ExecError, ExecRequest, Running, Streams, Terminal, TerminalSize};
pub use ids::{Ids, Probed, probe};
pub use images::{
    Digest, ImageConfig, ImageError, ImageStore, Limits as ImageLimits, Pruned, Unpacked,
};
pub use launch::{
    Armed, ExitCause, ExitRecord, FAULTS_VARIABLE, Fault, Going, LaunchError, LaunchSpec, Machine,
    RootFile, SignalError, Stock, adopt, adopt_among, arm, install_init, launch, launch_from,
    launch_with, lives, remove, uid_base,
};
pub use memory::{Memory, PagedOut, Swap};
pub use process::{ListenSocket, Process, Worker, WorkerEnd};
pub use secrets::Secrets;
pub use tree::{Freed, freed};
pub use volumes::Volume;

/// A new directory below the system's temporary one, for a test.
#[cfg(test)]
fn scratch_dir(name: &str) -> std::io::Result<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("perch-machine-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}
