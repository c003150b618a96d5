//! What a Machine may use, and what happens to one that wants more.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, wait_until};

use crate::stage::{
    AWAKE, SOON, check_answer, fly_toml, machine_processes, on_host, private_app, shell_image,
};

/// Ends for good when it ends.
const NEVER: &str = "[[restart]]\n  policy = 'never'\n";

#[test]
fn the_guest_of_a_machine_is_what_its_cgroups_allow() {
    on_host(|host| {
        let vm = "[[vm]]\n  memory = '512mb'\n  cpus = 2\n  cpu_kind = 'performance'\n";
        private_app(host, "big", &format!("{AWAKE}\n{vm}"))?;
        private_app(host, "small", AWAKE)?;
        let big = Group::of(host, &first(host, "big")?)?;
        ensure!(big.read("memory", "memory.limit_in_bytes", "memory.max")? == "536870912");
        ensure!(big.read("cpu", "cpu.cfs_quota_us", "cpu.max")?.starts_with("200000"));
        ensure!(big.is_one_of("cpu", ("cpu.shares", "2048"), ("cpu.weight", "200"))?);
        ensure!(big.read("pids", "pids.max", "pids.max")? == "8192");
        let small = Group::of(host, &first(host, "small")?)?;
        ensure!(small.read("memory", "memory.limit_in_bytes", "memory.max")? == "268435456");
        ensure!(small.is_one_of("cpu", ("cpu.shares", "64"), ("cpu.weight", "7"))?);
        Ok(())
    });
}

#[test]
fn lack_of_memory_is_named_in_events_status_and_log() {
    on_host(|host| {
        let script = "busybox tail /dev/zero";
        run_app(host, "hungry", script, NEVER)?;
        let machine = in_state(host, "hungry", "stopped")?;
        let exit = last_exit(&machine)?;
        ensure!(exit["oom_killed"] == true && exit["exit_code"] == 137, "MA-28: {exit}");
        let status = host.fly(&["machine", "status", &machine.id, "-a", "hungry"])?.ok()?;
        ensure!(status.contains("oom_killed=true"), "{status}");
        for said in [
            status,
            host.fly(&["status", "-a", "hungry"])?.ok()?,
            host.fly(&["logs", "--no-tail", "-a", "hungry"])?.ok()?,
        ] {
            ensure!(said.contains("more than its 256 MB of memory"), "{said}");
        }
        Ok(())
    });
}

#[test]
fn a_fork_bomb_ends_at_its_own_limit_and_neighbours_answer() {
    on_host(|host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        // Each child sleeps, so that the number of processes is what is limited.
        let script = "while :; do busybox sleep 1000 & done 2>/dev/null";
        run_app(host, "bomb", script, "")?;
        let group = Group::of(host, &only(host, "bomb")?)?;
        // Whichever comes first: no number or no memory for another process.
        wait_until("no room for another process", SOON, || {
            let now: u64 = group.read("pids", "pids.current", "pids.current")?.parse()?;
            let limit: u64 = group.read("pids", "pids.max", "pids.max")?.parse()?;
            ensure!(now <= limit && limit == 4096, "{now} of {limit}");
            let numbers = group.read("pids", "pids.events", "pids.events")?;
            let memory = group.read("memory", "memory.oom_control", "memory.events")?;
            let events = format!("{numbers}\n{memory}");
            let refused = |line: &str| {
                line.split_once(' ').is_some_and(|(name, count)| {
                    matches!(name, "max" | "oom_kill") && count.trim() != "0"
                })
            };
            Ok(events.lines().any(refused).then_some(()))
        })?;
        check_answer(&host.get(&neighbour, 80, "/")?, "Hello")?;
        let machine = only(host, "bomb")?;
        host.fly(&["machine", "stop", &machine.id, "-a", "bomb", "-w", "60s"])?.ok()?;
        check_answer(&host.get(&neighbour, 80, "/")?, "Hello")
    });
}

/// Deploys one Machine that runs a script; nobody calls it.
pub(crate) fn run_app(host: &Host, app: &str, script: &str, sections: &str) -> Result<()> {
    let image = shell_image(host, app, script)?;
    let dir = host.app_dir(app, &fly_toml(app, &image, sections))?;
    host.fly(&["apps", "create", app])?.ok()?;
    // A program that ends at once makes the deploy fail; that it was tried is what counts here.
    drop(host.fly_in(&dir, &["deploy", "--ha=false", "--detach"])?);
    Ok(())
}

fn first(host: &Host, app: &str) -> Result<Machine> {
    host.machines(app)?.into_iter().next().context("no Machine")
}

pub(crate) fn only(host: &Host, app: &str) -> Result<Machine> {
    let machines = host.machines(app)?;
    ensure!(machines.len() == 1, "not one Machine: {machines:?}");
    machines.into_iter().next().context("no Machine")
}

/// The app's Machine as soon as it is in this state.
pub(crate) fn in_state(host: &Host, app: &str, state: &str) -> Result<Machine> {
    host.wait_all(app, state, SOON)?;
    only(host, app)
}

/// How the newest run ended that is written down.
pub(crate) fn last_exit(machine: &Machine) -> Result<serde_json::Value> {
    let events = machine.value["events"].as_array().context("no events")?;
    let exit = events.iter().find(|event| event["type"] == "exit").context("no exit")?;
    Ok(exit["request"]["exit_event"].clone())
}

/// The cgroups of a Machine's program.
struct Group(Vec<(String, PathBuf)>);

impl Group {
    fn of(host: &Host, machine: &Machine) -> Result<Self> {
        let pid = wait_until("its program", SOON, || {
            Ok(machine_processes(host, &machine.id).iter().map(|it| it.pid).max())
        })?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        Ok(Self(lines.map(|(name, path)| (name.to_owned(), path.into())).collect()))
    }

    /// A file of the version that has the controller here.
    fn read(&self, controller: &str, v1: &str, v2: &str) -> Result<String> {
        let by_v1 = self.0.iter().find(|(names, _)| names.split(',').any(|it| it == controller));
        let (root, own, file) = match by_v1 {
            Some((names, own)) => (Path::new("/sys/fs/cgroup").join(names), own, v1),
            None => {
                let own = self.0.iter().find(|(names, _)| names.is_empty());
                (PathBuf::from("/sys/fs/cgroup"), &own.context("no v2")?.1, v2)
            }
        };
        let path = root.join(own.strip_prefix("/")?).join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().to_owned())
    }

    fn is_one_of(&self, controller: &str, v1: (&str, &str), v2: (&str, &str)) -> Result<bool> {
        let value = self.read(controller, v1.0, v2.0)?;
        Ok(value == v1.1 || value == v2.1)
    }
}
