//! The API's description, asked by a stranger's program whether it is true.
//!
//! `schemathesis` reads it, makes up requests that keep to it and that break it, alone and in
//! sequences, and compares every answer with what the description says. What it expects otherwise
//! than usual is in `schemathesis.toml`, with reasons. `cargo x test wire` installs it and sets
//! `SCHEMATHESIS`; the ring of hosts leaves this out.
//!
//! Without settings a run is bounded by examples and can be repeated. `WIRE_SEED=7 WIRE_SECONDS=600` is for people who
//! search.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, wait_until};

use crate::stage::{AWAKE, SOON, on, private_app};

const CONFIG: &str = "listen_api = \"127.0.0.1:0\"\n";
/// Beyond its own limit: loading the description, the last request, the report.
const ENDING_MAX: Duration = Duration::from_secs(60);
/// Cases for each call, and sequences of calls, in a run that says nothing else: a bound that does not depend on how
/// fast the machine is, so that the same seed asks the same tomorrow.
const EXAMPLES: &str = "40";
/// Such a run is over by then on a slow machine.
const RUN_MAX: Duration = Duration::from_secs(600);

/// A setting of whoever runs the test.
fn setting(name: &str, usual: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| usual.to_owned())
}

#[test]
fn what_the_api_says_of_itself_is_true() {
    on(
        || Host::start_with(Network::Open, CONFIG),
        |host| {
            private_app(host, "web", AWAKE)?;
            host.wait_all("web", "started", SOON)?;
            let description = host.dir().join("openapi.json");
            fs::write(&description, host.api("/v1/openapi.json")?.to_string())?;
            let report = host.dir().join("report.txt");
            let good = ask(host, &description, &report)?;
            let said = fs::read_to_string(&report)?;
            let server = host.server_log_tail();
            ensure!(good, "{said}\nthe server:\n{server}");
            let summary = said.split("= SUMMARY =").nth(1).unwrap_or(&said);
            eprintln!("{summary}");
            // It answers on, and nothing was left over that a next call stumbles over.
            host.fly(&["apps", "list"])?.ok().map(drop)
        },
    );
}

#[test]
fn a_wait_counts_the_wanted_version_and_what_came_after_an_event() {
    on(Host::start, |host| {
        private_app(host, "web", AWAKE)?;
        host.wait_all("web", "started", SOON)?;
        let machine = host.machines("web")?.pop().context("a Machine")?.id;
        let path = format!("/v1/apps/web/machines/{machine}");
        let seen = host.api(&path)?;
        let version = seen["instance_id"].as_str().context("a version")?.to_owned();
        let events = seen["events"].as_array().context("events")?;
        let (newest, oldest) = (events[0]["id"].as_str(), events[events.len() - 1]["id"].as_str());
        let (newest, oldest) = (newest.context("an id")?, oldest.context("an id")?);
        let wait = |more: &str| host.api(&format!("{path}/wait?state=started&timeout=1&{more}"));
        wait(&format!("version={version}&from_event_id={oldest}"))?;
        for more in [format!("from_event_id={newest}"), "version=another".to_owned()] {
            let error = format!("{:#}", wait(&more).err().context("it did not wait")?);
            ensure!(error.contains("408"), "{more}: {error}");
        }
        Ok(())
    });
}

/// Runs the program to its end; whether it found nothing.
fn ask(host: &Host, description: &Path, report: &Path) -> Result<bool> {
    let program = std::env::var("SCHEMATHESIS")
        .context("SCHEMATHESIS must name the program; `cargo x test wire` sets it")?;
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis.toml");
    let (seconds, seed) = (std::env::var("WIRE_SECONDS").ok(), setting("WIRE_SEED", "1"));
    let examples = setting("WIRE_EXAMPLES", EXAMPLES);
    let log = fs::read_to_string(host.server_log())?;
    let address = log.lines().rev().find_map(|line| line.strip_prefix("listening on "));
    let description = description.to_string_lossy();
    let mut command = host.command(&program, &["--config-file", config, "run", &description]);
    command.args(["--url", address.context("the server says no address")?]);
    command.args(["--checks", "all", "--seed", &seed, "--workers", "1"]);
    // What an earlier run found is no part of this one.
    command.args(["--generation-database", "none"]);
    match &seconds {
        Some(seconds) => command.args(["--max-time", seconds]),
        None => command.args(["--max-examples", &examples]),
    };
    command.args(["--request-timeout", "20", "--warnings", "off", "--no-color"]);
    let data = host.data_dir().to_string_lossy().into_owned();
    let token = host.perch(&["token", "create", "--name", "wire", "--data-dir", &data])?.ok()?;
    command.env("PERCH_TOKEN", token.trim());
    let file = File::create(report)?;
    let mut running = command.stdout(file.try_clone()?).stderr(file).spawn()?;
    let limit = match seconds {
        Some(seconds) => Duration::from_secs(seconds.parse()?) + ENDING_MAX,
        None => RUN_MAX,
    };
    let status = wait_until("schemathesis to end", limit, || Ok(running.try_wait()?));
    if status.is_err() {
        drop(running.kill());
    }
    Ok(status?.success())
}
