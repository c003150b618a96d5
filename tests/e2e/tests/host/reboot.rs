//! The host goes down and comes back: the data directory is all that is left (DESIGN 8).

use std::fs;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};

use crate::stage::{AWAKE, SOON, check_answer, on_host, private_app};

/// Would sleep later than this test takes.
const IDLE: &str = "\
[http_service]
  internal_port = 8081
  force_https = false
  auto_stop_machines = \"stop\"
  auto_start_machines = true
  auto_stop_after = \"10m\"
";

const FREEZES: &str = "\
[http_service]
  internal_port = 8081
  force_https = false
  auto_stop_machines = \"suspend\"
  auto_start_machines = true
";

const WHY: &str = "the host was restarted";

#[test]
fn after_a_reboot_machines_are_as_they_were_but_those_that_callers_wake_sleep() {
    on_host(|host| {
        private_app(host, "awake", AWAKE)?;
        let idle = private_app(host, "idle", IDLE)?;
        private_app(host, "kept", &format!("{IDLE}  min_machines_running = 1\n"))?;
        let frozen = private_app(host, "frozen", FREEZES)?;
        private_app(host, "down", AWAKE)?;
        for machine in host.machines("down")? {
            host.fly(&["machine", "stop", &machine.id, "-a", "down", "-w", "30s"])?.ok()?;
        }
        host.wait_all("frozen", "suspended", SOON)?;
        for app in ["awake", "idle", "kept"] {
            host.wait_all(app, "started", SOON)?;
        }
        reboot(host)?;
        host.wait_all("awake", "started", SOON)?;
        wait_until("the one that is kept up", SOON, || {
            Ok((host.states("kept")? == ["started", "stopped"]).then_some(()))
        })?;
        for app in ["idle", "frozen", "down"] {
            ensure!(host.states(app)? == ["stopped", "stopped"], "{app}: {:?}", host.states(app)?);
        }
        for app in ["idle", "frozen"] {
            let said = host.fly(&["status", "-a", app])?.ok()?;
            ensure!(said.contains(WHY), "{app} does not say why: {said}");
        }
        let said = host.fly(&["status", "-a", "down"])?.ok()?;
        ensure!(!said.contains(WHY), "a user stopped these: {said}");
        check_answer(&host.get(&idle, 80, "/")?, "Request 1.")?;
        check_answer(&host.get(&frozen, 80, "/")?, "Request 1.").context("AS-105")
    });
}

/// Takes everything away that a reboot takes: processes, the pinned namespace with all links, cgroups.
fn reboot(host: &mut Host) -> Result<()> {
    let ids: Vec<String> = fs::read_dir(host.data_dir().join("machines"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    host.kill_server()?;
    for process in host.processes() {
        // A child dies with its parent; what is gone already is as good.
        drop(process.kill());
    }
    wait_until("the end of all processes", SOON, || Ok(host.processes().is_empty().then_some(())))?;
    let pin = host.data_dir().join("netns").to_string_lossy().into_owned();
    host.run("umount", &[&pin])?.ok()?;
    for id in ids {
        // Groups of other hosts come and go while it looks.
        let find =
            "find /sys/fs/cgroup -ignore_readdir_race -depth -type d -name \"$0\" -exec rmdir {} +";
        host.run("sh", &["-c", find, &id])?.ok()?;
    }
    host.start_server()
}
