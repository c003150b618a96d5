//! Machines with a schedule. No test waits for an hour to pass. The time that was last done is set back where the server
//! keeps it, which is what a server finds that was down for years; or a Machine gets an ID whose own time is soon.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, wait_until};

use crate::stage::{SOON, on_host, shell_image};

const DUE: &str = "1000000000";
/// A server is up within this, mostly.
const UP_SECS: i64 = 5;
/// Less than a server waits at most for its next look at schedules.
const LATE_SECS: i64 = 10;
const HOUR: i64 = 3_600;

#[test]
fn what_passed_while_the_server_was_down_is_made_up_for_once() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        let image = shell_image(host, "job", "exec sleep ${SECONDS_LONG:-0}")?;
        let make = |host: &Host, verb: &str, flags: &[&str]| self::make(host, verb, &image, flags);
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

#[test]
fn what_falls_due_while_the_server_runs_is_started_then() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        let image = shell_image(host, "job", "exit 0")?;
        let (id, due) = loop {
            let made = make(host, "create", &image, &["--schedule", "hourly"])?;
            let (id, due) = due_soon(host, &made)?;
            if unix_secs() < due {
                break (id, due);
            }
            // It was late, and found it due when it began: that is the other test.
            host.fly(&["machine", "destroy", "--force", &id, "-a", "web"])?.ok()?;
        };
        let job = wait_until("the job to run", SOON, || {
            let job = machine(host, &id)?;
            Ok((job.events("exit") == 1).then_some(job))
        })?;
        ensure!(causes(&job) == ["schedule hourly"], "{job:?}");
        let events = job.value["events"].as_array().into_iter().flatten();
        let begun: Vec<_> = events.filter_map(|event| event["timestamp"].as_i64()).collect();
        let then = due * 1_000..(due + LATE_SECS) * 1_000;
        ensure!(begun.iter().all(|at| then.contains(at)), "not at {due}: {begun:?}");
        Ok(())
    });
}

/// Starts another server, to which this Machine has an ID whose own time is soon: that, and the time.
fn due_soon(host: &mut Host, made: &str) -> Result<(String, i64)> {
    host.stop_server()?;
    let due = unix_secs() + UP_SECS;
    let id = id_of(due, made)?;
    edit_store(host, |store| {
        let places = positions(store, made.as_bytes());
        places.iter().for_each(|&at| store[at..at + id.len()].copy_from_slice(id.as_bytes()));
        places.len()
    })?;
    host.start_server()?;
    Ok((id, due))
}

fn make(host: &Host, verb: &str, image: &str, flags: &[&str]) -> Result<String> {
    let fixed = ["machine", verb, image, "-a", "web"];
    let said = host.fly(&[&fixed[..], flags].concat())?.ok()?;
    let id = said.lines().find_map(|line| line.strip_prefix(" Machine ID: "));
    Ok(id.context("no ID is told")?.to_owned())
}

fn unix_secs() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Another ID, whose own time in an hour is then.
fn id_of(due: i64, other: &str) -> Result<String> {
    let mut ids = (1..1 << 20).map(|number| format!("{number:014x}"));
    let soon = ids.find(|id| second_of_hour(id) == due % HOUR && id != other);
    soon.context("no ID has its time then")
}

/// What an ID draws (MA-46): a release that drew otherwise would start twice what an older one has started.
fn second_of_hour(id: &str) -> i64 {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((hash >> 32) as i64 * HOUR) >> 32
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
    let (id, before) = (format!(r#"{{"id":"{id}""#), r#""schedule":{"last":"#);
    edit_store(host, |store| {
        let mut found = 0;
        for at in positions(store, id.as_bytes()) {
            // A page may hold an older copy.
            let Some(&next) = positions(&store[at..], before.as_bytes()).first() else { continue };
            let digits = at + next + before.len();
            store[digits..digits + DUE.len()].copy_from_slice(DUE.as_bytes());
            found += 1;
        }
        found
    })
}

/// Changes the store's bytes, at one place at least.
fn edit_store(host: &Host, edit: impl FnOnce(&mut [u8]) -> usize) -> Result<()> {
    let wal = fs::metadata(host.data_dir().join("store.db-wal")).map_or(0, |it| it.len());
    ensure!(wal == 0, "the store is not whole: {wal} bytes are beside it");
    let path = host.data_dir().join("store.db");
    let mut store = fs::read(&path)?;
    ensure!(0 < edit(&mut store), "what is to be changed is not there");
    Ok(fs::write(&path, store)?)
}

fn positions(text: &[u8], part: &[u8]) -> Vec<usize> {
    let windows = text.windows(part.len()).enumerate();
    windows.filter(|(_, window)| *window == part).map(|(at, _)| at).collect()
}
