//! The first command of README.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, wait_until};
use rustix::process::{Pid, Signal};

use crate::stage::{SOON, on};

#[test]
fn quickstart_shows_the_whole_way_and_leaves_nothing() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let dir = host.dir().join("quick");
            let before = host.surroundings(&dir.join("data"))?;
            let output = host.perch(&["quickstart", "--once", "--dir", &dir.to_string_lossy()])?;
            output.says(&["fly launch", "--flycast", ".flycast", "ms"])?;
            output.ok()?;
            let after = host.surroundings(&dir.join("data"))?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            ensure!(host.processes().is_empty(), "left behind: {:?}", host.processes());
            Ok(())
        },
    );
}

#[test]
fn a_closed_terminal_leaves_nothing_of_the_quickstart() {
    check_leaves_nothing_after(Signal::HUP);
}

#[test]
fn a_killed_quickstart_leaves_nothing() {
    check_leaves_nothing_after(Signal::KILL);
}

/// Signals a quickstart and its terminal's other processes while a Machine runs.
fn check_leaves_nothing_after(signal: Signal) {
    on(
        || Host::bare(Network::Open),
        |host| {
            let dir = host.dir().join("quick");
            let before = host.surroundings(&dir.join("data"))?;
            let program = std::env::var("PERCH_BIN").context("PERCH_BIN is not set")?;
            let program = std::fs::canonicalize(program)?.to_string_lossy().into_owned();
            let args = ["quickstart", "--dir", &dir.to_string_lossy()];
            let mut command = host.command(&program, &args);
            let mut child = command.stdout(Stdio::piped()).process_group(0).spawn()?;
            wait_until("a Machine of the quickstart", SOON, || {
                Ok((!host.perch_processes("shim").is_empty()).then_some(()))
            })?;
            // Nobody reads any more, as when a terminal is closed.
            drop(child.stdout.take());
            rustix::process::kill_process_group(Pid::from_child(&child), signal)?;
            child.wait()?;
            wait_until("nothing to be left", SOON, || {
                Ok(host.processes().is_empty().then_some(()))
            })?;
            let after = host.surroundings(&dir.join("data"))?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            ensure!(!dir.join("data").exists(), "the data are still there");
            Ok(())
        },
    );
}

#[test]
fn without_root_quickstart_prints_the_sudo_line() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let output = crate::bad_input::as_nobody(host, &["quickstart", "--once"])?;
            output.says(&["sudo"])?;
            ensure!(!output.status.success(), "it cannot work: {output}");
            Ok(()) as Result<()>
        },
    );
}
