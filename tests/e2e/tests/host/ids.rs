//! Which of the host's ids Machines use, as their operator chose.

use std::fs;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network};

use crate::stage::{AWAKE, check_answer, machine_processes, on, private_app};

/// The host's id of the user that the programs of an app's Machines run as.
fn users(host: &Host, app: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for machine in host.machines(app)? {
        for process in machine_processes(host, &machine.id) {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
            let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            let user = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            found.push(user.context("a process without a user")?);
        }
    }
    ensure!(!found.is_empty(), "nothing of {app} runs");
    Ok(found)
}

#[test]
fn machines_use_the_ids_that_were_chosen_and_outlive_another_choice() {
    let first = "host_ids = \"700000-1800000\"\n";
    on(
        || Host::start_with(Network::Open, first),
        |host| {
            let old = private_app(host, "old", AWAKE)?;
            let before = users(host, "old")?;
            ensure!(before.iter().all(|id| (700_000..=1_800_000).contains(id)), "{before:?}");
            host.stop_server()?;
            host.configure("host_ids = \"1000-9000000\"\n");
            let error = host.start_server().expect_err("ids of the host's users").to_string();
            ensure!(error.contains("65536 or above"), "{error}");
            host.configure("host_ids = \"3000000-4800000\"\n");
            host.start_server()?;
            ensure!(users(host, "old")? == before, "a Machine was started anew");
            check_answer(&host.get(&old, 80, "/")?, "Hello")?;
            private_app(host, "new", AWAKE)?;
            let after = users(host, "new")?;
            ensure!(after.iter().all(|id| (3_000_000..=4_800_000).contains(id)), "{after:?}");
            Ok(())
        },
    );
}
