//! Machines with a schedule. No test waits for an hour to pass: the time that was last done is set back where the server
//! keeps it, which is what a server finds that was down for years.

use std::fs;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, wait_until};

use crate::stage::{SOON, on_host, shell_image};

const DUE: &str = "1000000000";

#[test]
fn what_passed_while_the_server_was_down_is_made_up_for_once() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        let image = shell_image(host, "job", "exec sleep ${SECONDS_LONG:-0}")?;
        let make = |host: &Host, verb: &str, flags: &[&str]| {
            let fixed = ["machine", verb, &image, "-a", "web"];
            let said = host.fly(&[&fixed[..], flags].concat())?.ok()?;
            let id = said.lines().find_map(|line| line.strip_prefix(" Machine ID: "));
            Ok::<_, anyhow::Error>(id.context("no ID is told")?.to_owned())
        };
        let job = make(host, "create", &["--schedule", "monthly"])?;
        let long = ["--schedule", "hourly", "-e", "SECONDS_LONG=600"];
        let busy = make(host, "run", &long)?;
        let plain = make(host, "create", &[])?;
        for bad in ["fortnightly", "0 3 * * *"] {
            let run = ["machine", "create", &image, "-a", "web", "--schedule", bad];
            let refused = host.fly(&run)?;
            refused.says(&["config.schedule", bad, "hourly, daily, weekly and monthly"])?;
            refused.fails()?;
        }
        let given = machine(host, &job)?.value;
        ensure!(given["config"]["schedule"] == "monthly", "{given}");
        ensure!(given["config"]["restart"]["policy"] == "on-failure", "MA-22: {given}");

        host.stop_server()?;
        set_back(host, &job)?;
        set_back(host, &busy)?;
        host.start_server()?;
        wait_until("the job to run", SOON, || {
            Ok((machine(host, &job)?.events("exit") == 1).then_some(()))
        })?;
        ensure!(causes(&machine(host, &job)?) == ["schedule monthly"], "{given}");
        ensure!(machine(host, &busy)?.events("launch") == 1, "it ran already");
        ensure!(machine(host, &plain)?.state == "created", "it has no schedule");

        // Of what was done once nothing is left for the next server; another one's start shows that it has looked.
        let other = make(host, "create", &["--schedule", "weekly"])?;
        host.stop_server()?;
        set_back(host, &other)?;
        host.start_server()?;
        wait_until("the other to run", SOON, || {
            Ok((machine(host, &other)?.events("exit") == 1).then_some(()))
        })?;
        ensure!(machine(host, &job)?.events("launch") == 1, "it was made up for twice");
        ensure!(machine(host, &busy)?.events("launch") == 1, "it ran already");
        Ok(())
    });
}

fn machine(host: &Host, id: &str) -> Result<Machine> {
    host.machines("web")?.into_iter().find(|it| it.id == id).context("it is gone")
}

/// What the launches say that led to them.
fn causes(machine: &Machine) -> Vec<String> {
    let events = machine.value["events"].as_array().into_iter().flatten();
    let launches = events.filter(|event| event["type"] == "launch");
    launches.map(|it| it["request"]["cause"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Sets back what was last done for a Machine, while no server runs.
fn set_back(host: &Host, id: &str) -> Result<()> {
    let wal = fs::metadata(host.data_dir().join("store.db-wal")).map_or(0, |it| it.len());
    ensure!(wal == 0, "the store is not whole: {wal} bytes are beside it");
    let path = host.data_dir().join("store.db");
    let mut store = fs::read(&path)?;
    let (id, before) = (format!(r#"{{"id":"{id}""#), r#""schedule":{"last":"#);
    let mut found = 0;
    for at in positions(&store, id.as_bytes()) {
        // A page may hold an older copy.
        let Some(&next) = positions(&store[at..], before.as_bytes()).first() else { continue };
        let digits = at + next + before.len();
        store[digits..digits + DUE.len()].copy_from_slice(DUE.as_bytes());
        found += 1;
    }
    ensure!(0 < found, "no record of {id}");
    Ok(fs::write(&path, store)?)
}

fn positions(text: &[u8], part: &[u8]) -> Vec<usize> {
    let windows = text.windows(part.len()).enumerate();
    windows.filter(|(_, window)| *window == part).map(|(at, _)| at).collect()
}
