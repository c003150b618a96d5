//! Where the processes are: an operator who kills all of the server's cgroup kills no Machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Process};

use crate::stage::{AWAKE, check_answer, on_host, private_app};

/// The root of the v2 tree, where this machine has one.
fn v2_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// A cgroup that is removed at the end.
struct Group(PathBuf);

impl Group {
    fn new(root: &Path) -> Result<Self> {
        let dir = root.join(format!("perch-e2e-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self(dir))
    }

    fn add(&self, process: &Process) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), process.pid.to_string())?)
    }

    fn pids(&self) -> Result<Vec<i32>> {
        let text = fs::read_to_string(self.0.join("cgroup.procs"))?;
        Ok(text.lines().flat_map(str::parse).collect())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What a test that failed left in it.
        drop(fs::write(self.0.join("cgroup.kill"), "1"));
        let removed = perch_testkit::wait_until("an empty cgroup", crate::stage::SOON, || {
            Ok(fs::remove_dir(&self.0).is_ok().then_some(()))
        });
        if let Err(error) = removed {
            println!("{error:#}");
        }
    }
}

fn pids(processes: &[Process]) -> Vec<i32> {
    let mut pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}

#[test]
fn who_kills_all_of_the_servers_cgroup_kills_no_machine() {
    on_host(|host: &mut Host| {
        let Some(root) = v2_root() else {
            println!("no cgroup v2 here: shims stay with their server");
            return Ok(());
        };
        let group = Group::new(&root)?;
        group.add(&host.server_process()?)?;
        for proxy in host.perch_processes("proxy") {
            group.add(&proxy)?;
        }
        let address = private_app(host, "web", AWAKE)?;
        let before = pids(&host.perch_processes("shim"));
        ensure!(before.len() == 2, "not two shims: {before:?}");
        ensure!(group.pids()?.iter().all(|pid| !before.contains(pid)), "a shim is with the server");
        // The server first: it would start another proxy.
        host.kill_server()?;
        let doomed = group.pids()?;
        for process in host.processes().iter().filter(|it| doomed.contains(&it.pid)) {
            process.kill()?;
        }
        host.start_server()?;
        ensure!(pids(&host.perch_processes("shim")) == before, "a Machine was started anew");
        check_answer(&host.get(&address, 80, "/")?, "Hello")
    });
}
