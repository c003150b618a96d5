//! Data directories of earlier releases, which the present server takes over; and those of later ones, which it does not.
//!
//! `tests/e2e/fixtures/data-VERSION.tar.xz` is what `cargo x fixture` made when VERSION was released: a data directory as a
//! power cut leaves it, and what the server told about it before.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network};
use serde_json::Value;

use crate::stage::{SOON, check_answer, on};

/// Where SQLite keeps `user_version` in the first page: the schema of the store.
const SCHEMA_AT: std::ops::Range<usize> = 60..64;

/// One release's data directory.
struct Fixture {
    facts: Value,
}

fn files() -> Result<Vec<PathBuf>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut files = fs::read_dir(dir)?.map(|it| Ok(it?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.to_string_lossy().ends_with(".tar.xz"));
    files.sort();
    ensure!(!files.is_empty(), "there are no fixtures");
    Ok(files)
}

impl Fixture {
    /// Unpacks a file as the data directory of a host in which nothing runs.
    fn unpack(host: &mut Host, file: &Path) -> Result<Self> {
        let (file, dir) = (file.to_string_lossy(), host.dir().to_string_lossy().into_owned());
        host.run("tar", &["--xattrs", "--numeric-owner", "-xJf", &file, "-C", &dir])?.ok()?;
        let facts: Value = serde_json::from_slice(&fs::read(host.dir().join("facts.json"))?)?;
        host.configure(facts["config"].as_str().context("no configuration")?);
        // The place is another one than then, which an upgrade would not see.
        let former = facts["data_dir"].as_str().context("no directory")?;
        for machine in fs::read_dir(host.data_dir().join("machines"))? {
            let spec = machine?.path().join("spec.json");
            let text = fs::read_to_string(&spec)?;
            fs::write(&spec, text.replace(former, &host.data_dir().to_string_lossy()))?;
        }
        Ok(Self { facts })
    }

    /// Whether its image can run here.
    fn is_for_this_host(&self) -> bool {
        self.facts["arch"] == std::env::consts::ARCH
    }

    /// Everything that the server told then is true now.
    fn check_facts(&self, host: &Host) -> Result<()> {
        for (app, told) in self.facts["apps"].as_object().context("no apps")? {
            let calls = [
                ("machines", format!("/v1/apps/{app}/machines")),
                ("ips", format!("/v1/apps/{app}/ip_assignments")),
                ("releases", format!("/api/v1/apps/{app}/releases")),
            ];
            for (what, call) in calls {
                let now = host.api(&call)?;
                check_within(&told[what], &now).with_context(|| format!("{what} of {app}"))?;
            }
        }
        Ok(())
    }

    fn check_token(&self, host: &Host) -> Result<()> {
        let log = fs::read_to_string(host.server_log())?;
        let address = log.lines().rev().find_map(|line| line.strip_prefix("listening on "));
        let api = format!("PERCH_API={}", address.context("the server does not listen")?);
        let token = format!("PERCH_TOKEN={}", self.facts["token"].as_str().context("no token")?);
        let binary = std::env::var("PERCH_BIN")?;
        let list = ["-u", "PERCH_SOCKET", &api, &token, &binary, "fly", "apps", "list"];
        host.run("env", &list)?.says(&["asleep", "halted"])
    }
}

/// Fails unless each value of `told` is in `now`, where more may be.
fn check_within(told: &Value, now: &Value) -> Result<()> {
    match (told, now) {
        (Value::Object(told), Value::Object(now)) => told.iter().try_for_each(|(key, value)| {
            let there = now.get(key).unwrap_or(&Value::Null);
            check_within(value, there).with_context(|| key.clone())
        }),
        (Value::Array(told), Value::Array(now)) if told.len() == now.len() => {
            told.iter().zip(now).try_for_each(|(told, now)| check_within(told, now))
        }
        _ => {
            ensure!(told == now, "it was {told}, it is {now}");
            Ok(())
        }
    }
}

fn schema(host: &Host) -> Result<u32> {
    let store = fs::read(host.data_dir().join("store.db"))?;
    let bytes = store.get(SCHEMA_AT).context("it is no database")?;
    Ok(u32::from_be_bytes(bytes.try_into()?))
}

fn check_upgrade(host: &mut Host, file: &Path) -> Result<()> {
    let fixture = Fixture::unpack(host, file)?;
    if !fixture.is_for_this_host() {
        println!("skipped: {} has an image for {}", file.display(), fixture.facts["arch"]);
        return Ok(());
    }
    let config = fixture.facts["config"].as_str().unwrap_or_default().to_owned();
    host.configure(&format!("{config}listen_api = \"127.0.0.1:0\"\n"));
    let before = fixture.facts["schema"].as_u64().context("no schema")?;
    host.start_server()?;
    fixture.check_facts(host)?;
    fixture.check_token(host)?;
    // As after a reboot (DESIGN 8).
    host.wait_all("awake", "started", SOON)?;
    ensure!(host.states("halted")? == ["stopped", "stopped"], "what was stopped by hand runs");
    ensure!(host.states("asleep")? == ["stopped", "stopped"], "what sleeps was started");
    perch_testkit::wait_until("one of two to be kept up", SOON, || {
        Ok((host.states("kept")? == ["started", "stopped"]).then_some(()))
    })?;
    for app in ["awake", "kept", "asleep"] {
        check_answer(&host.get(&host.flycast(app)?, 80, "/")?, "Hello")?;
    }
    host.stop_server()?;
    let copy = host.data_dir().join(format!("store.db.schema-{before}"));
    ensure!(
        copy.exists() == (before < schema(host)?.into()),
        "a migration and no copy, or the reverse"
    );
    host.start_server()?;
    fixture.check_facts(host)
}

#[test]
fn the_data_of_every_earlier_release_are_taken_over() {
    for file in files().expect("fixtures") {
        println!("{}", file.display());
        on(|| Host::bare(Network::Open), |host| check_upgrade(host, &file));
    }
}

/// All files below a directory with their contents, but those that say who has it and what only waits to be used.
fn contents(host: &Host) -> Result<String> {
    let script = "cd \"$1\" && find . -type f ! -name '*.lock' ! -name lock ! -name '*-shm' ! -name '*-wal' \
                  ! -path './ballast/*' -exec sha256sum {} + | sort";
    host.run("sh", &["-c", script, "sh", &host.data_dir().to_string_lossy()])?.ok()
}

#[test]
fn the_data_of_a_later_release_are_refused_and_left_as_they_are() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let newest = files()?.pop().context("a fixture")?;
            let fixture = Fixture::unpack(host, &newest)?;
            // Everything is in the file then, and nothing in the journal.
            host.start_server()?;
            host.stop_server()?;
            let data = host.data_dir().to_string_lossy().into_owned();
            host.perch(&["down", "--data-dir", &data])?.ok()?;
            let store = host.data_dir().join("store.db");
            let ours = fs::read(&store)?;
            let mut later = ours.clone();
            later[SCHEMA_AT].copy_from_slice(&7_000_u32.to_be_bytes());
            fs::write(&store, &later)?;
            let before = contents(host)?;
            let error = host.start_server().expect_err("it started").to_string();
            for words in ["store.db", "schema 7000", "use the newer release"] {
                ensure!(error.contains(words), "{words} is missing: {error}");
            }
            ensure!(contents(host)? == before, "the data were touched");
            let file = host.dir().join("b").to_string_lossy().into_owned();
            let backup = host.perch(&["backup", &file, "--data-dir", &data])?;
            backup.says(&["schema 7000"])?;
            backup.fails()?;
            fs::write(&store, &ours)?;
            host.start_server()?;
            fixture.check_facts(host)
        },
    );
}
