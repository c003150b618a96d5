//! Suspend: frozen with all memory and sockets, and going on where it was (fly-semantics 1.7).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Machine, wait_until};
use rustix::process::{Pid, Signal};

use crate::stage::{
    AWAKE, SOON, check_answer, fly_toml, hello_image, machine_processes, on_host, one_machine_of,
    private_app, wait_asleep,
};

/// Sleeps as the server's configuration says: after a second.
pub(crate) const SUSPENDS: &str = "\
[http_service]
  internal_port = 8081
  force_https = false
  auto_stop_machines = \"suspend\"
  auto_start_machines = true
  min_machines_running = 0
";

#[test]
fn an_idle_app_is_frozen_and_the_next_request_finds_it_where_it_was() {
    on_host(|host| {
        let address = one_machine(host, SUSPENDS)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        host.wait_all("quotes", "suspended", SOON)?;
        let before = only_machine(host)?;
        let program = program(host, &before.id)?;
        ensure!(is_frozen(program)?, "it is called suspended and runs");

        let woken = host.get(&address, 80, "/")?;
        check_answer(&woken, "Request 2.")?;
        ensure!(woken.header("perch-wake").is_some(), "no Perch-Wake on {woken:?}");
        let after = only_machine(host)?;
        ensure!(self::program(host, &after.id)? == program, "another program answers");
        let resumes = before.events("resume") + 1;
        ensure!(after.events("resume") == resumes, "no resume among its events: {after:?}");
        ensure!(after.events("launch") == 1, "a resume is called a launch: {after:?}");
        host.wait_all("quotes", "suspended", SOON)
    });
}

#[test]
fn a_suspended_machine_outlives_server_and_proxy() {
    on_host(|host| {
        let address = one_machine(host, SUSPENDS)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        host.wait_all("quotes", "suspended", SOON)?;
        host.kill_proxy()?;
        host.kill_server()?;
        host.start_server()?;
        ensure!(host.states("quotes")? == ["suspended"], "not suspended after a restart");
        check_answer(&host.get(&address, 80, "/")?, "Request 2.")
    });
}

#[test]
fn users_suspend_start_and_stop_it() {
    on_host(|host| {
        let address = one_machine(host, AWAKE)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        let id = only_machine(host)?.id;
        let said = host.fly(&["machine", "suspend", &id, "-w", "30s"])?.ok()?;
        ensure!(said.contains(&format!("{id} has been suspended")), "{said}");
        ensure!(is_frozen(program(host, &id)?)?, "it runs");
        host.fly(&["machine", "suspend", &id])?.ok()?;
        host.fly(&["machine", "start", &id])?.ok()?;
        check_answer(&host.get(&address, 80, "/")?, "Request 2.")?;

        host.fly(&["machine", "suspend", &id, "-w", "30s"])?.ok()?;
        host.fly(&["machine", "stop", &id, "-w", "30s"])?.ok()?;
        ensure!(host.states("quotes")? == ["stopped"], "AS-106: not stopped");
        let refused = host.fly(&["machine", "suspend", &id])?.fails()?;
        ensure!(refused.contains("it is stopped"), "{refused}");
        check_answer(&host.get(&address, 80, "/")?, "Request 1.").context("AS-106: a cold start")
    });
}

#[test]
fn a_deploy_ends_the_frozen_run_and_keeps_the_machine_asleep() {
    on_host(|host| {
        let address = one_machine(host, SUSPENDS)?;
        host.wait_all("quotes", "suspended", SOON)?;
        let image = hello_image(host)?;
        let text = fly_toml("quotes", &image, &format!("{SUSPENDS}\n[env]\n  FLY_NEW = 'yes'\n"));
        let dir = host.app_dir("quotes", &text)?;
        host.fly_in(&dir, &["deploy"])?.ok()?;
        wait_asleep(host, "quotes").context("AS-105")?;
        check_answer(&host.get(&address, 80, "/env")?, "FLY_NEW=yes")
    });
}

#[test]
fn many_callers_at_once_wake_a_frozen_machine_once() {
    on_host(|host| {
        let address = one_machine(host, SUSPENDS)?;
        host.wait_all("quotes", "suspended", SOON)?;
        let before = only_machine(host)?.events("resume");
        let answers: Vec<_> = std::thread::scope(|scope| {
            let callers: Vec<_> =
                (0..200).map(|_| scope.spawn(|| host.get(&address, 80, "/"))).collect();
            callers.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for answer in answers {
            let Ok(answer) = answer else { bail!("a caller panicked") };
            check_answer(&answer?, "Hello")?;
        }
        ensure!(only_machine(host)?.events("resume") == before + 1, "woken more than once");
        Ok(())
    });
}

#[test]
fn no_request_is_lost_over_many_naps() {
    on_host(|host| {
        let sections = format!("{SUSPENDS}  auto_stop_after = '100ms'\n");
        let address = one_machine(host, &sections)?;
        for count in 1..=40 {
            check_answer(&host.get(&address, 80, "/")?, &format!("Request {count}."))?;
            // Every other request comes while it may be falling asleep.
            if count % 2 == 0 {
                host.wait_all("quotes", "suspended", SOON)?;
            } else {
                wait_until("an end of its rest", SOON, || {
                    Ok((host.states("quotes")? != ["started"]).then_some(()))
                })?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_frozen_machine_that_is_killed_is_stopped_and_is_woken_cold() {
    check_killed(|host, id| {
        let init = machine_processes(host, id).iter().map(|process| process.pid).min();
        kill(init.context("nothing of it runs")?)?;
        wait_asleep(host, "quotes")
    });
}

#[test]
fn a_program_that_is_killed_while_its_init_is_frozen_is_missed_by_nobody() {
    // Its end is noticed at the thaw; the caller waits for the start that follows.
    check_killed(|host, id| kill(program(host, id)?));
}

/// Kills something of a frozen Machine; the next request is answered by a new run.
fn check_killed(act: impl FnOnce(&Host, &str) -> Result<()>) {
    on_host(|host| {
        let address = one_machine(host, SUSPENDS)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        host.wait_all("quotes", "suspended", SOON)?;
        act(host, &only_machine(host)?.id)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")
    });
}

fn kill(pid: i32) -> Result<()> {
    Ok(rustix::process::kill_process(Pid::from_raw(pid).context("no pid")?, Signal::KILL)?)
}

#[test]
fn frozen_machines_are_destroyed_and_taken_down() {
    on_host(|host| {
        one_machine(host, SUSPENDS)?;
        private_app(host, "other", SUSPENDS)?;
        for app in ["quotes", "other"] {
            host.wait_all(app, "suspended", SOON)?;
        }
        host.fly(&["apps", "destroy", "quotes", "--yes"])?.ok()?;
        ensure!(host.perch_processes("shim").len() == 2, "the Machine of `quotes` is left");
        host.stop_server()?;
        let data = host.data_dir().to_string_lossy().into_owned();
        host.perch(&["down", "--data-dir", &data])?.ok()?;
        ensure!(host.perch_processes("shim").is_empty(), "frozen Machines are left");
        Ok(())
    });
}

/// Deploys the example app with one Machine; returns its Flycast address.
pub(crate) fn one_machine(host: &Host, sections: &str) -> Result<String> {
    one_machine_of(host, "quotes", &hello_image(host)?, sections)
}

pub(crate) fn only_machine(host: &Host) -> Result<Machine> {
    let machines = host.machines("quotes")?;
    ensure!(machines.len() == 1, "not one Machine: {machines:?}");
    machines.into_iter().next().context("no Machine")
}

/// The pid of the program itself, not of the init that started it.
pub(crate) fn program(host: &Host, id: &str) -> Result<i32> {
    let processes = machine_processes(host, id);
    let last = processes.iter().map(|process| process.pid).max();
    last.with_context(|| format!("nothing of {id} runs"))
}

fn is_frozen(pid: i32) -> Result<bool> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.context("it is in no v2 cgroup")?;
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let events = roots.iter().map(|root| Path::new(root).join(own).join("cgroup.events"));
    let events = events.filter_map(|file| fs::read_to_string(file).ok()).next();
    Ok(events.context("its cgroup has no events")?.contains("frozen 1"))
}
