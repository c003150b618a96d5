//! Server, proxy, shim and init end at each step of what a Machine goes through; nothing is lost and nothing doubled.
//!
//! The steps are named in the code (`perch_core::fault`), and the binary lists them: one that is added there is tried
//! here, and one that nothing passes any more fails.

mod paging;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Network, Process, wait_until};
use tempfile::TempDir;

use crate::limits::only;
use crate::stage::{SOON, check_answer, fly_toml, hello_image, machine_processes, on};

/// Asked for at length, each step is tried so often.
const ROUNDS_LONG: usize = 5;

const QUICK: &str = "auto_stop_after = \"200ms\"\narmed_max = 0\nblank_max = 0\n";
/// The same with Machines that are armed.
const ARMING: &str = "auto_stop_after = \"200ms\"\narmed_max = 8\nblank_max = 0\n";
/// The same with shims that are spawned before there is a Machine for them.
const AHEAD: &str = "auto_stop_after = \"200ms\"\narmed_max = 0\nblank_max = 1\n";

/// A step and when it is passed, as `perch faults` prints them.
struct Step {
    name: String,
    during: String,
}

#[test]
fn whoever_ends_at_whatever_step_no_machine_is_lost_or_doubled() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(|| armed(&faults, QUICK), |host| walk(host, faults.path(), Step::is_of_a_life));
}

#[test]
fn whoever_ends_at_whatever_step_of_arming_no_machine_is_lost_or_doubled() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(|| armed(&faults, ARMING), |host| walk(host, faults.path(), Step::is_of_arming));
}

#[test]
fn whoever_ends_at_whatever_step_of_a_start_by_a_blank_no_machine_is_lost_or_doubled() {
    let Ok(faults) = tempfile::Builder::new().prefix("perch-faults-").tempdir() else {
        panic!("no directory");
    };
    on(|| armed(&faults, AHEAD), |host| walk(host, faults.path(), Step::is_by_blank));
}

impl Step {
    fn is_ahead(&self) -> bool {
        ["blank", "start-blank"].contains(&self.during.as_str())
    }

    /// Its own steps, and those of a usual start that follow them.
    fn is_by_blank(&self) -> bool {
        let follows = ["shim.locked", "shim.created", "shim.answered", "init.created"];
        let applies = parks() || !self.name.starts_with("parked.");
        applies && (self.is_ahead() || follows.contains(&self.name.as_str()))
    }

    fn is_of_arming(&self) -> bool {
        ["arm", "start-armed"].contains(&self.during.as_str())
    }

    fn is_of_paging(&self) -> bool {
        ["page-out", "read-back"].contains(&self.during.as_str())
    }

    fn is_of_a_life(&self) -> bool {
        !self.is_of_arming() && !self.is_of_paging() && !self.is_ahead()
    }
}

/// A host whose processes look into this directory at each step.
fn armed(faults: &TempDir, config: &str) -> Result<Host> {
    // The proxy is nobody.
    fs::set_permissions(faults.path(), fs::Permissions::from_mode(0o777))?;
    let mut host = Host::bare(Network::Open)?;
    host.configure(config);
    host.equip_server("PERCH_FAULTS", &faults.path().to_string_lossy());
    host.start_server()?;
    Ok(host)
}

fn walk(host: &mut Host, faults: &Path, chosen: impl Fn(&Step) -> bool) -> Result<()> {
    let list = host.perch(&["faults"])?;
    if !list.status.success() {
        let required = std::env::var_os("E2E_REQUIRED").is_some_and(|it| it == "1");
        ensure!(!required, "must not be skipped: {list}");
        println!(
            "skipped: this binary was built without debug assertions, so it has no such steps"
        );
        return Ok(());
    }
    let list = list.ok()?;
    let steps = list.lines().filter_map(|line| {
        let (name, during) = line.split_once(' ')?;
        Some(Step { name: name.to_owned(), during: during.to_owned() })
    });
    let mut steps: Vec<Step> = steps.collect();
    ensure!(20 < steps.len(), "these are not all steps: {list}");
    steps.retain(chosen);
    ensure!(10 < steps.len(), "these are not all steps: {list}");
    deploy(host, "neighbour", "off")?;
    let neighbour = machine_processes(host, &only(host, "neighbour")?.id);
    let rounds = if std::env::var_os("PERCH_LONG").is_some() { ROUNDS_LONG } else { 1 };
    for _ in 0..rounds {
        for step in &steps {
            // An app of its own: after some failures in a row the balancer gives a Machine a rest.
            let app = step.name.replace('.', "-");
            let tried = if step.is_of_paging() {
                paging::try_step(host, faults, step, &app)
            } else {
                try_step(host, faults, step, &app)
            };
            tried.with_context(|| format!("at {}", step.name))?;
            host.fly(&["apps", "destroy", &app, "--yes"])?.ok()?;
        }
    }
    let still = machine_processes(host, &only(host, "neighbour")?.id);
    let pids = |all: &[Process]| all.iter().map(|it| it.pid).collect::<Vec<_>>();
    ensure!(pids(&still) == pids(&neighbour), "the neighbour was started anew");
    ensure!(host.perch_processes("shim").len() == 1, "shims are left");
    Ok(())
}

fn deploy(host: &Host, app: &str, auto_stop: &str) -> Result<()> {
    let service = format!(
        "[http_service]\n  internal_port = 8081\n  force_https = false\n  auto_stop_machines = '{auto_stop}'\n  \
         auto_start_machines = true\n"
    );
    let dir = host.app_dir(app, &fly_toml(app, &hello_image(host)?, &service))?;
    let launch = ["launch", "--flycast", "--copy-config", "--name", app, "--ha=false", "--yes"];
    host.fly_in(&dir, &launch)?.ok().map(drop)
}

fn try_step(host: &mut Host, faults: &Path, step: &Step, app: &str) -> Result<()> {
    let (auto_stop, before) = match step.during.as_str() {
        "start" | "start-blank" => ("stop", Some("stopped")),
        // It is passed by itself, a moment after a start.
        "blank" => ("stop", Some("stopped")),
        // It is passed by itself, a moment after the stop.
        "arm" => ("stop", None),
        "start-armed" => ("stop", Some("stopped")),
        // The call that passes it wakes the Machine first, if it must.
        "stop" => ("stop", None),
        "suspend" => ("suspend", None),
        "resume" => ("suspend", Some("suspended")),
        "update" => ("off", Some("started")),
        other => bail!("nobody knows how to pass what is passed during `{other}`"),
    };
    deploy(host, app, auto_stop)?;
    if let Some(state) = before {
        host.wait_all(app, state, SOON)?;
    }
    if step.during == "start-armed" {
        crate::armed::await_armed(host, app)?;
    }
    if step.is_ahead() {
        await_blank(host)?;
    }
    let (file, address) = (faults.join(&step.name), host.flycast(app)?);
    let mut call = match step.during.as_str() {
        "update" => update(host, app)?,
        _ => host.command("curl", &["-gsSm65", &format!("http://[{address}]/")]),
    };
    fs::write(&file, "")?;
    let mut call = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_until("the step to be passed", SOON, || Ok((!file.exists()).then_some(())))?;
    if step.name.starts_with("server.") {
        host.await_server_end()?;
        host.start_server()?;
    }
    // Who is cut off by the death of its own proxy or server is told so; it is the next one that counts.
    call.wait()?;
    check_answer(&host.get(&address, 80, "/")?, "Hello").context("the next request")?;
    check_true(host, app, step.is_of_arming())
}

/// Waits until a shim waits for a Machine: its parked child is where it should be, which is what it waits for itself.
fn await_blank(host: &Host) -> Result<()> {
    wait_until("a blank shim", SOON, || {
        let is_parked = |it: &Process| {
            let groups = fs::read_to_string(format!("/proc/{}/cgroup", it.pid));
            groups.is_ok_and(|groups| !parks() || groups.contains("/blank-"))
        };
        Ok(host.perch_processes("blank").iter().any(is_parked).then_some(()))
    })
}

/// Whether this host has cgroups that are entered ahead.
fn parks() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    [" - cgroup ", " - cgroup2 "].iter().all(|kind| mounts.contains(kind))
}

/// A call that gives a Machine a config that differs in nothing but a word.
fn update(host: &Host, app: &str) -> Result<Command> {
    let machine = only(host, app)?;
    let mut config = machine.value["config"].clone();
    config["env"]["NEW"] = "yes".into();
    let body = serde_json::json!({ "config": config }).to_string();
    let socket = host.socket().to_string_lossy().into_owned();
    let url = format!("http://perch/v1/apps/{app}/machines/{}", machine.id);
    let json = "Content-Type: application/json";
    let args = ["-sSm65", "--unix-socket", &socket, "-H", json, "-d", &body, &url];
    Ok(host.command("curl", &args))
}

/// What is said of an app's Machine is what runs of it: PID 1 and the program, once, under one shim; or nothing.
fn check_true(host: &Host, app: &str, arms: bool) -> Result<()> {
    wait_until("the Machine to be what it is said to be", SOON, || {
        let machine = only(host, app)?;
        let running = machine_processes(host, &machine.id).len();
        let dir = format!("machines/{}", machine.id);
        let shims = host.perch_processes("shim");
        let shims = shims.iter().filter(|it| it.args.iter().any(|arg| arg.ends_with(&dir))).count();
        let found = (running, shims);
        let expected = match machine.state.as_str() {
            "started" | "suspended" => (2, 1),
            // Armed: PID 1 without the program.
            "stopped" if arms && found == (1, 1) => (1, 1),
            "stopped" => (0, 0),
            other => bail!("it is {other}"),
        };
        ensure!(found == expected, "{app} is {} with {found:?} processes and shims", machine.state);
        Ok((only(host, app)?.state == machine.state).then_some(()))
    })
}
