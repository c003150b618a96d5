//! Server, proxy, shim and init end at each step of what a Machine goes through; nothing is lost and nothing doubled.
//!
//! The steps are named in the code (`perch_core::fault`), and the binary lists them: one that is added there is tried
//! here, and one that nothing passes any more fails.

mod others;
mod paging;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Network, Process, wait_until};
use tempfile::TempDir;

use crate::limits::only;
use crate::stage::{SOON, check_answer, hello_image, machine_processes, on, one_machine_of};

/// Asked for at length, each step is tried so often.
const ROUNDS_LONG: usize = 5;

const QUICK: &str = "auto_stop_after = \"200ms\"\narmed_max = 0\nblank_max = 0\n";
/// The same with Machines that are armed.
const ARMING: &str = "auto_stop_after = \"200ms\"\narmed_max = 8\nblank_max = 0\n";
/// The same with shims that are spawned before there is a Machine for them.
const AHEAD: &str = "auto_stop_after = \"200ms\"\narmed_max = 0\nblank_max = 1\n";

/// A step and when it is passed, as `perch faults` prints them, and who ends then.
#[derive(Clone)]
struct Step {
    name: String,
    during: String,
    who: String,
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
    /// Lets it end who is to: the one that passes, or one that only stands by, whose number is what is answered.
    fn lay(&self, host: &Host, faults: &Path, app: &str) -> Result<Option<i32>> {
        let victim = self.victim(host, app)?;
        // As the server knows it, which is in a namespace of processes.
        let status = victim.map(|pid| fs::read_to_string(format!("/proc/{pid}/status")));
        let status = status.transpose()?.unwrap_or_default();
        let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let inner = inner.and_then(|all| all.split_whitespace().last()).unwrap_or_default();
        let draft = faults.join("draft");
        fs::write(&draft, inner)?;
        fs::rename(draft, faults.join(&self.name))?;
        Ok(victim)
    }

    fn victim(&self, host: &Host, app: &str) -> Result<Option<i32>> {
        if self.name.starts_with(&self.who) {
            return Ok(None);
        }
        let id = only(host, app)?.id;
        let found = match self.who.as_str() {
            "server" => vec![host.server_process()?],
            "proxy" => host.perch_processes("proxy"),
            "shim" => shims_of(host, &id),
            _ => machine_processes(host, &id),
        };
        let pid = found.iter().map(|it| it.pid).min();
        Ok(Some(pid.with_context(|| format!("no {} of {app}", self.who))?))
    }

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
        let applies = lowers() || self.who != "reclaim";
        applies && ["page-out", "read-back"].contains(&self.during.as_str())
    }

    /// Tried by `in_place`.
    fn is_of_an_upgrade(&self) -> bool {
        self.during == "upgrade"
    }

    fn is_of_a_life(&self) -> bool {
        let others = self.is_of_arming() || self.is_of_paging() || self.is_of_an_upgrade();
        !others && !self.is_ahead() && self.who != "reclaim"
    }
}

/// A host whose processes look into this directory at each step.
pub(crate) fn armed(faults: &TempDir, config: &str) -> Result<Host> {
    // The proxy is nobody.
    fs::set_permissions(faults.path(), fs::Permissions::from_mode(0o777))?;
    let mut host = Host::bare(Network::Open)?;
    host.configure(config);
    host.equip_server("PERCH_FAULTS", &faults.path().to_string_lossy());
    host.start_server()?;
    Ok(host)
}

fn walk(host: &mut Host, faults: &Path, chosen: impl Fn(&Step) -> bool) -> Result<()> {
    let Some(mut steps) = all_steps(host)? else { return Ok(()) };
    steps.retain(chosen);
    ensure!(10 < steps.len(), "these are not all steps");
    try_all(host, faults, &steps)
}

/// All that the binary has; `None`, said, when it has none.
fn all_steps(host: &Host) -> Result<Option<Vec<Step>>> {
    let list = host.perch(&["faults"])?;
    if !list.status.success() {
        let required = std::env::var_os("E2E_REQUIRED").is_some_and(|it| it == "1");
        ensure!(!required, "must not be skipped: {list}");
        println!(
            "skipped: this binary was built without debug assertions, so it has no such steps"
        );
        return Ok(None);
    }
    let list = list.ok()?;
    let steps = list.lines().filter_map(|line| {
        let (name, during) = line.split_once(' ')?;
        let (who, _) = name.split_once('.')?;
        Some(Step { name: name.to_owned(), during: during.to_owned(), who: who.to_owned() })
    });
    let steps: Vec<Step> = steps.collect();
    ensure!(20 < steps.len(), "these are not all steps: {list}");
    Ok(Some(steps))
}

fn try_all(host: &mut Host, faults: &Path, steps: &[Step]) -> Result<()> {
    deploy(host, "neighbour", "off")?;
    let neighbour = machine_processes(host, &only(host, "neighbour")?.id);
    let rounds = if std::env::var_os("PERCH_LONG").is_some() { ROUNDS_LONG } else { 1 };
    for _ in 0..rounds {
        for step in steps {
            // An app of its own: after some failures in a row the balancer gives a Machine a rest.
            let app = format!("{}-{}", step.name.replace('.', "-"), step.who);
            let tried = if step.is_of_paging() {
                paging::try_step(host, faults, step, &app)
            } else {
                try_step(host, faults, step, &app)
            };
            tried.with_context(|| format!("{} at {}", step.who, step.name))?;
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
    one_machine_of(host, app, &hello_image(host)?, &service).map(drop)
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
    let victim = step.lay(host, faults, app)?;
    let mut call = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    await_passed(&file, victim)?;
    if step.who == "server" {
        host.await_server_end()?;
        host.start_server()?;
    }
    // Who is cut off by the death of its own proxy or server is told so; it is the next one that counts.
    call.wait()?;
    check_answer(&host.get(&address, 80, "/")?, "Hello").context("the next request")?;
    check_true(host, app, step.is_of_arming())
}

/// Waits until the step is passed and who stood by has ended.
fn await_passed(file: &Path, victim: Option<i32>) -> Result<()> {
    wait_until("the step to be passed", SOON, || Ok((!file.exists()).then_some(())))?;
    let Some(pid) = victim else { return Ok(()) };
    wait_until("who stood by to end", SOON, || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Ok((status.is_empty() || status.contains("(zombie)")).then_some(()))
    })
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

/// Whether room in a sleeper is made by a lower limit, as on v1.
fn lowers() -> bool {
    Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
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
        let found = (running, shims_of(host, &machine.id).len());
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

fn shims_of(host: &Host, id: &str) -> Vec<Process> {
    let dir = format!("machines/{id}");
    let mut shims = host.perch_processes("shim");
    shims.retain(|it| it.args.iter().any(|arg| arg.ends_with(&dir)));
    shims
}
