//! Suspend where the kernel has no `cgroup.freeze`: by the v1 freezer, else by signals.
//!
//! The hosts of these tests have lost their mounts of what is better; a machine that has nothing else passes them over.

use std::fs;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Freezing, Host, Network};

use crate::stage::{SOON, check_answer, on, wait_asleep};
use crate::{naps, suspend};

#[test]
fn machines_sleep_and_wake_by_the_v1_freezer() {
    check(Freezing::V1, "v1\n", |pid| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let own = groups.lines().find_map(|line| line.split_once(":freezer:/"));
        let (_, own) = own.context("it is in no cgroup of the freezer")?;
        let state = fs::read_to_string(format!("/sys/fs/cgroup/freezer/{own}/freezer.state"))?;
        Ok(state.trim_end() == "FROZEN")
    });
}

#[test]
fn machines_sleep_and_wake_by_signals_where_there_is_no_freezer() {
    check(Freezing::Signals, "Machines are suspended by signals", |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(status.contains("State:\tT"))
    });
}

fn check(way: Freezing, said: &str, is_frozen: fn(i32) -> Result<bool>) {
    on(
        || Host::bare(Network::Open),
        |host| {
            if !host.freeze_by_at_most(way)? {
                println!("skipped: this machine has no {way:?}");
                return Ok(());
            }
            let before = host.surroundings(&host.data_dir())?;
            let doctor = host.perch(&["doctor"])?;
            ensure!(doctor.stdout.contains(said), "{doctor:?}");
            host.configure("auto_stop_after = \"300ms\"\n");
            host.start_server()?;
            check_sleep(host, way, is_frozen)?;
            let data = host.data_dir().to_string_lossy().into_owned();
            host.perch(&["down", "--data-dir", &data, "--purge"])?.ok()?;
            let after = host.surroundings(&host.data_dir())?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            let left: Vec<_> = host.processes().into_iter().filter(|it| it.state != 'Z').collect();
            ensure!(left.is_empty(), "left behind: {left:?}");
            let log = host.server_log_tail();
            ensure!(!log.contains("could not reap"), "somebody is woken for nothing:\n{log}");
            Ok(())
        },
    );
}

fn check_sleep(host: &mut Host, way: Freezing, is_frozen: fn(i32) -> Result<bool>) -> Result<()> {
    let address = suspend::one_machine(host, suspend::SUSPENDS)?;
    let raw = naps::app(host, naps::ECHO)?;
    let mut stream = naps::connect(host, raw)?;
    naps::echoes(&mut stream, b"begin")?;
    check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
    for app in ["quotes", "db"] {
        host.wait_all(app, "suspended", SOON)?;
    }
    let id = suspend::only_machine(host)?.id;
    let program = suspend::program(host, &id)?;
    ensure!(is_frozen(program)?, "it is called suspended and runs");
    naps::echoes(&mut stream, b"after a nap")?;
    check_answer(&host.get(&address, 80, "/")?, "Request 2.")?;

    for app in ["quotes", "db"] {
        host.wait_all(app, "suspended", SOON)?;
    }
    host.kill_server()?;
    if way != Freezing::Signals {
        // Only a server can send signals.
        naps::echoes(&mut stream, b"without a server")?;
    }
    host.start_server()?;
    ensure!(host.states("quotes")? == ["suspended"], "not suspended after a crash");
    ensure!(is_frozen(program)?, "the next server has let it go on");
    naps::echoes(&mut stream, b"with the next one")?;
    check_answer(&host.get(&address, 80, "/")?, "Request 3.")?;
    let machine = suspend::only_machine(host)?;
    ensure!(machine.events("launch") == 1, "a resume is called a launch: {machine:?}");

    host.wait_all("quotes", "suspended", SOON)?;
    host.fly(&["machine", "stop", &id, "-w", "30s"])?.ok()?;
    wait_asleep(host, "quotes")?;
    check_answer(&host.get(&address, 80, "/")?, "Request 1.").context("a cold start")?;
    host.wait_all("quotes", "suspended", SOON)
}
