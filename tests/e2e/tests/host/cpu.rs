//! Who uses more CPU than its baseline yields to others, and comes back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, holds_for, wait_until};

use crate::limits::{Group, only, run_app};
use crate::stage::{AWAKE, QUICK_SLEEP, SOON, machine_processes, on, private_app};

/// Its first program waits for one that spins, and then for nothing.
const SPINS: &str = "while :; do :; done & wait; exec busybox sleep 1000";
/// Spins until it is told to rest, which takes a new run.
const SPINS_UNTOLD: &str =
    "[ -n \"$REST\" ] || while :; do :; done & wait; exec busybox sleep 1000";
/// A spinner is in the idle class by then, and was looked at some times.
const LOOKED_AT: Duration = Duration::from_millis(2500);
/// What the server says when it changes a Machine's class.
const CHANGED: &str = "its part of the CPUs";

fn telling() -> Result<Host> {
    let mut host = Host::bare(Network::Open)?;
    host.equip_server("PERCH_LOG", "perch=debug,info");
    host.configure(&format!("{QUICK_SLEEP}cpu_yield = true\n"));
    host.start_server()?;
    Ok(host)
}

#[test]
fn a_spinner_yields_until_it_stops_spinning_whatever_becomes_of_the_server() {
    on(telling, |host| {
        private_app(host, "quiet", AWAKE)?;
        run_app(host, "spins", SPINS, "")?;
        let group = Group::of(host, &only(host, "spins")?)?;
        if !knows_class(&group) {
            println!("skipped: this kernel has no cpu.idle");
            return Ok(());
        }
        await_class(&group, "1")?;
        host.kill_server()?;
        ensure!(class(&group)? == "1", "it stays as it is while there is no server");
        host.start_server()?;
        stop_spinning(host, "spins")?;
        await_class(&group, "0")?;
        ensure!(is_small(&group)?, "its weight is not what it was");
        let log = fs::read_to_string(host.server_log())?;
        let told = |id: &str| log.lines().any(|line| line.contains(CHANGED) && line.contains(id));
        ensure!(told(&only(host, "spins")?.id), "nothing is told:\n{log}");
        for quiet in host.machines("quiet")? {
            ensure!(class(&Group::of(host, &quiet)?)? == "0", "it never used much");
            ensure!(!told(&quiet.id), "it yielded for nothing:\n{log}");
        }
        Ok(())
    });
}

#[test]
fn who_sleeps_or_starts_anew_is_not_left_in_the_idle_class() {
    on(telling, |host| {
        run_app(host, "spins", SPINS_UNTOLD, "")?;
        let machine = only(host, "spins")?;
        let group = Group::of(host, &machine)?;
        if !knows_class(&group) {
            println!("skipped: this kernel has no cpu.idle");
            return Ok(());
        }
        let ask = |what: &str| host.fly(&["machine", what, &machine.id, "-a", "spins"])?.ok();
        await_class(&group, "1")?;
        ask("suspend")?;
        host.wait_all("spins", "suspended", SOON)?;
        ensure!(class(&group)? == "0" && is_small(&group)?, "it sleeps in the idle class");
        ask("start")?;
        await_class(&group, "1")?;
        set_rest(host, &machine.id, "1")?;
        let rests = Group::of(host, &machine)?;
        holds_for("the new run does little", LOOKED_AT, || {
            Ok(class(&rests)? == "0" && is_small(&rests)?)
        })?;
        set_rest(host, &machine.id, "")?;
        let group = Group::of(host, &machine)?;
        await_class(&group, "1")?;
        // A server that ends in good order leaves nobody there.
        host.stop_server()?;
        ensure!(class(&group)? == "0" && is_small(&group)?, "nobody would take it back");
        // As nothing says otherwise.
        host.configure("");
        host.start_server()?;
        holds_for("it is switched off", LOOKED_AT, || Ok(class(&group)? == "0"))?;
        Ok(())
    });
}

/// Also one that the server has not looked at yet.
#[test]
fn what_a_dead_server_left_is_taken_back_before_it_is_killed() {
    on(telling, |host| {
        run_app(host, "spins", SPINS, "")?;
        let machine = only(host, "spins")?;
        let group = Group::of(host, &machine)?;
        if !knows_class(&group) {
            println!("skipped: this kernel has no cpu.idle");
            return Ok(());
        }
        await_class(&group, "1")?;
        host.kill_server()?;
        let before = taken_back(host, &machine.id)?;
        host.start_server()?;
        host.fly(&["machine", "kill", &machine.id, "-a", "spins"])?.ok()?;
        ensure!(before < taken_back(host, &machine.id)?, "it was killed in the idle class");
        Ok(())
    });
}

#[test]
fn what_a_dead_server_left_is_taken_back_where_nobody_yields() {
    on(telling, |host| {
        run_app(host, "spins", SPINS, "")?;
        let group = Group::of(host, &only(host, "spins")?)?;
        if !knows_class(&group) {
            println!("skipped: this kernel has no cpu.idle");
            return Ok(());
        }
        await_class(&group, "1")?;
        host.kill_server()?;
        // As nothing says otherwise.
        host.configure("");
        host.start_server()?;
        await_class(&group, "0")?;
        ensure!(is_small(&group)?, "its weight is not what it was");
        Ok(())
    });
}

/// By a new run.
fn set_rest(host: &Host, id: &str, rest: &str) -> Result<()> {
    let variable = format!("REST={rest}");
    host.fly(&["machine", "update", id, "-a", "spins", "-y", "-e", &variable])?.ok()?;
    host.wait_all("spins", "started", SOON)
}

fn knows_class(group: &Group) -> bool {
    class(group).is_ok()
}

fn class(group: &Group) -> Result<String> {
    group.read("cpu", "cpu.idle", "cpu.idle")
}

fn await_class(group: &Group, expected: &str) -> Result<()> {
    let text = format!("cpu.idle of {expected}");
    wait_until(&text, SOON, || Ok((class(group)? == expected).then_some(())))
}

/// How often the server is told to have done so.
fn taken_back(host: &Host, id: &str) -> Result<usize> {
    let log = fs::read_to_string(host.server_log())?;
    let told = |line: &&str| [CHANGED, id, "Normal"].iter().all(|it| line.contains(it));
    Ok(log.lines().filter(told).count())
}

/// The weight of the smallest guest, by either version.
fn is_small(group: &Group) -> Result<bool> {
    let weight = group.read("cpu", "cpu.shares", "cpu.weight")?;
    Ok(weight == "64" || weight == "7")
}

fn stop_spinning(host: &Host, app: &str) -> Result<()> {
    let machine = only(host, app)?;
    let spins = |pid: i32| {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        // The state follows the name in its brackets.
        stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, it)| it.starts_with('R')))
    };
    let found = machine_processes(host, &machine.id).into_iter().find(|it| spins(it.pid));
    found.context("nobody spins")?.kill()
}
