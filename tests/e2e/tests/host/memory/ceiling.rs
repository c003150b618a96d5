//! A host below a limit of memory that its own `/proc/meminfo` does not tell of, as a container is.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};

use super::*;

const V1: &str = "/sys/fs/cgroup/memory";

/// A memory cgroup which is all that a host sees of that hierarchy.
pub(super) struct Ceiling {
    dir: PathBuf,
    limit_mib: u64,
}

impl Ceiling {
    pub(super) fn new(limit_mib: u64) -> Self {
        let dir = PathBuf::from(format!("{V1}/perch-test-ceiling-{}", std::process::id()));
        Self { dir, limit_mib }
    }

    /// A host with a server below it, or, where v1 does not count memory, with one that is told to count on no more. Where there is swap nobody has to stop, which is not what is asked here.
    pub(super) fn host(&self, config: &str) -> Result<Host> {
        if !fs::exists(format!("{V1}/memory.limit_in_bytes"))? {
            println!("this machine has no v1 memory controller: the server is told of the limit");
            return without_swap(&format!("memory = \"{}MiB\"\n{config}", self.limit_mib));
        }
        let mut host = bare_without_swap()?;
        host.configure(config);
        fs::create_dir(&self.dir).context("making a memory cgroup")?;
        fs::write(self.dir.join("memory.limit_in_bytes"), (self.limit_mib << 20).to_string())?;
        host.run("mount", &["--bind", &self.dir.to_string_lossy(), V1])?.ok()?;
        host.start_server()?;
        for process in host.processes().iter().filter(|it| it.args.iter().any(|a| a == "server")) {
            fs::write(self.dir.join("cgroup.procs"), process.pid.to_string())?;
        }
        Ok(host)
    }

    /// The Machines say of themselves whether they were.
    pub(super) fn check_nobody_else_was_killed(&self) -> Result<()> {
        if self.dir.exists() {
            let control = fs::read_to_string(self.dir.join("memory.oom_control"))?;
            ensure!(
                control.contains("oom_kill 0\n"),
                "the kernel killed below the limit: {control}"
            );
        }
        Ok(())
    }
}

/// After the host: what was in it has to be gone.
impl Drop for Ceiling {
    fn drop(&mut self) {
        let gone = wait_until("an empty cgroup", SOON, || {
            Ok((fs::remove_dir(&self.dir).is_ok() || !self.dir.exists()).then_some(()))
        });
        if gone.is_err() {
            eprintln!("left behind: {}", self.dir.display());
        }
    }
}
