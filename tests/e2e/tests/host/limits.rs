//! What a Machine may use, and what happens to one that wants more.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, Network, wait_until};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SOON, check_answer, fly_toml, machine_processes, on, on_host, private_app,
    shell_image,
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
pub(crate) struct Group(Vec<(String, PathBuf)>);

impl Group {
    pub(crate) fn of(host: &Host, machine: &Machine) -> Result<Self> {
        let pid = wait_until("its program", SOON, || {
            Ok(machine_processes(host, &machine.id).iter().map(|it| it.pid).max())
        })?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        Ok(Self(lines.map(|(name, path)| (name.to_owned(), path.into())).collect()))
    }

    /// A file of the version that has the controller here.
    pub(crate) fn read(&self, controller: &str, v1: &str, v2: &str) -> Result<String> {
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

#[test]
fn who_fills_the_disk_is_stopped_and_named() {
    on(
        || Host::start_with(Network::Open, "auto_stop_after = \"1s\"\nroot_disk_mb = 48\n"),
        |host| {
            let neighbour = private_app(host, "quiet", AWAKE)?;
            let script = "busybox test -e /big && echo STALE; \
                          busybox dd if=/dev/zero of=/big bs=1M count=100; exec busybox sleep 1000";
            run_app(host, "filler", script, "")?;
            let machine = in_state(host, "filler", "stopped")?;
            check_limit(host, &machine, "and it may have 48 MB")?;
            check_answer(&host.get(&neighbour, 80, "/")?, "Hello")?;
            host.fly(&["machine", "start", &machine.id, "-a", "filler"])?.ok()?;
            wait_until("its second fill", SOON, || {
                Ok((only(host, "filler")?.events("limit") == 2).then_some(()))
            })?;
            let said = host.fly(&["logs", "--no-tail", "-a", "filler"])?.ok()?;
            ensure!(!said.contains("STALE"), "its root is not fresh: {said}");
            Ok(())
        },
    );
}

#[test]
fn below_the_reserve_of_the_host_the_machine_that_grows_is_killed() {
    on(small_disk, |host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        // Far below what it may have itself, and not going when asked.
        let script = "trap '' INT TERM; exec 3>/big; \
                      while busybox dd if=/dev/zero bs=1M count=4 >&3 2>/dev/null; do \
                      busybox usleep 20000; done; busybox sleep 1000";
        run_app(host, "filler", script, "kill_timeout = '300s'\n[[vm]]\n  memory = '2gb'\n")?;
        let machine = in_state(host, "filler", "stopped")?;
        check_limit(host, &machine, "less than its reserve of 30 MB")?;
        check_answer(&host.get(&neighbour, 80, "/")?, "Hello")
    });
}

#[test]
fn below_the_reserve_a_machine_that_fills_the_disk_while_it_is_stopping_is_killed() {
    on(small_disk, |host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        let script = "trap 'while busybox dd if=/dev/zero bs=1M count=4 >&3 2>/dev/null; do \
                      busybox usleep 20000; done; busybox sleep 1000' INT; exec 3>/big; \
                      echo READY; busybox sleep 1000 & wait; busybox sleep 1000";
        run_app(host, "filler", script, "kill_timeout = '300s'\n[[vm]]\n  memory = '2gb'\n")?;
        wait_until("its trap", SOON, || {
            let said = host.fly(&["logs", "--no-tail", "-a", "filler"])?.ok()?;
            Ok(said.contains("READY").then_some(()))
        })?;
        let id = only(host, "filler")?.id;
        host.fly(&["machine", "stop", &id, "-a", "filler"])?.ok()?;
        let machine = in_state(host, "filler", "stopped")?;
        check_limit(host, &machine, "less than its reserve of 30 MB")?;
        check_answer(&host.get(&neighbour, 80, "/")?, "Hello")
    });
}

/// A host whose data directory is on a disk of 300 MB.
fn small_disk() -> Result<Host> {
    let mut host = Host::bare(Network::Open)?;
    fs::create_dir(host.data_dir())?;
    let data = host.data_dir().to_string_lossy().into_owned();
    host.run("mount", &["-t", "tmpfs", "-o", "size=300m", "tmpfs", &data])?.ok()?;
    host.configure(QUICK_SLEEP);
    host.start_server()?;
    Ok(host)
}

/// An event names the limit, and so do status and log.
fn check_limit(host: &Host, machine: &Machine, reason: &str) -> Result<()> {
    ensure!(machine.events("limit") == 1, "not one event of a limit: {machine:?}");
    for said in [
        host.fly(&["machine", "status", &machine.id, "-a", "filler"])?.ok()?,
        host.fly(&["status", "-a", "filler"])?.ok()?,
        host.fly(&["logs", "--no-tail", "-a", "filler"])?.ok()?,
    ] {
        ensure!(said.contains(reason), "{said}");
    }
    Ok(())
}

#[test]
fn who_prints_without_end_is_not_blocked_and_the_log_says_what_was_dropped() {
    on_host(|host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        // 64 MB, which at the log's rate would take a minute.
        let script = "busybox yes 0123456789abcdef | busybox head -c 67108864; echo done >&2; \
                      exec busybox sleep 1000";
        run_app(host, "loud", script, "")?;
        let said = wait_until("the end of its words", SOON, || {
            let said = host.fly(&["logs", "--no-tail", "-a", "loud"])?.ok()?;
            Ok(said.contains("were dropped").then_some(said))
        })?;
        ensure!(said.contains("a Machine's log takes 1 MiB a second"), "{said}");
        check_answer(&host.get(&neighbour, 80, "/")?, "Hello")?;
        let machine = only(host, "loud")?;
        wait_until("its end", SOON, || {
            let running = machine_processes(host, &machine.id);
            let all: Vec<_> = running.iter().filter_map(|it| it.args.get(1).cloned()).collect();
            Ok(all.contains(&"sleep".to_owned()).then_some(()))
        })?;
        let dir = host.data_dir().join("machines").join(&machine.id);
        let bytes: u64 = ["log", "log.1"]
            .iter()
            .filter_map(|name| Some(fs::metadata(dir.join(name)).ok()?.len()))
            .sum();
        ensure!(bytes < 17 << 20, "the log has {bytes} bytes");
        Ok(())
    });
}

#[test]
fn server_and_proxy_go_before_machines() {
    on_host(|host| {
        private_app(host, "quiet", AWAKE)?;
        let nice = |pid: i32| -> Result<i32> {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let rest = stat.rsplit_once(')').context("no name")?.1;
            Ok(rest.split_whitespace().nth(16).context("no nice value")?.parse()?)
        };
        ensure!(nice(host.server_process()?.pid)? == -10, "the server is not first");
        for proxy in host.perch_processes("proxy") {
            ensure!(nice(proxy.pid)? == -10, "the proxy is not first");
        }
        for shim in host.perch_processes("shim") {
            ensure!(nice(shim.pid)? == 0, "a shim has the server's priority");
        }
        for process in machine_processes(host, &first(host, "quiet")?.id) {
            ensure!(nice(process.pid)? == 0, "a Machine has the server's priority");
        }
        Ok(())
    });
}
