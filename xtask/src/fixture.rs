//! `cargo x fixture`: the data directory of this release as a power cut would leave it, for the tests of all later ones.
//!
//! It has an app in each state that a start must tell apart, addresses, a lease, a token, releases and two
//! organizations, and the facts that the server itself told about them. `tests/e2e/tests/host/upgrade.rs` starts the
//! present server on each such file. A release adds its own and never changes an earlier one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::{Host, Image, Network, wait_until};
use serde_json::{Value, json};

use crate::{packages, shell};

/// Longer than a deploy or a sleep takes.
const SOON: Duration = Duration::from_secs(60);
const CONFIG: &str = "organizations = [\"personal\", \"team\"]\nauto_stop_after = \"1s\"\n";
/// What every server makes anew, and what is no file.
const LEFT_OUT: [&str; 6] = ["init", "ballast", "netns", "api.sock", "proxy.sock", "store.db-shm"];

/// An app: its name, organization, `auto_stop_machines`, and `min_machines_running`.
const APPS: [(&str, &str, &str, u32); 4] = [
    ("asleep", "personal", "stop", 0),
    ("awake", "personal", "off", 0),
    ("halted", "team", "off", 0),
    ("kept", "personal", "stop", 1),
];

/// Makes the fixture of this release.
pub(crate) fn make() -> Result<bool> {
    if !shell::is_root() {
        bail!("a fixture is made by a whole host: run `sudo -E cargo x fixture`");
    }
    if std::env::var_os("PERCH_BIN").is_none() {
        return build_and_make();
    }
    let target = shell::root().join("tests/e2e/fixtures").join(name());
    ensure!(!target.exists(), "{} is there; a released one never changes", target.display());
    let mut host = Host::bare(Network::Open)?;
    host.configure(CONFIG);
    host.start_server()?;
    let image = image(&host)?;
    for app in APPS {
        launch(&host, &image, app)?;
    }
    // From the first server's end on the store's file has something, and not only its journal.
    host.stop_server()?;
    host.start_server()?;
    let token = furnish(&host)?;
    settle(&host)?;
    let facts = facts(&host, &token)?;
    host.kill_server()?;
    pack(&host, &facts, &target)?;
    println!("{} ({} kB)", target.display(), fs::metadata(&target)?.len() / 1000);
    Ok(true)
}

fn name() -> String {
    format!("data-{}.tar.xz", env!("CARGO_PKG_VERSION"))
}

/// The program under test and this one again, which makes hosts with it.
fn build_and_make() -> Result<bool> {
    packages::ensure(packages::TESTS)?;
    if !shell::succeeds(&mut shell::cargo(&["build", "--locked", "--package", "perch"]))? {
        bail!("perch does not build");
    }
    let own = std::env::current_exe().context("finding this program")?;
    let mut again = Command::new(own);
    again.arg("fixture").env("PERCH_BIN", shell::built("debug", "perch")?);
    shell::succeeds(&mut again)
}

/// The example app, as small as the compiler makes it.
fn image(host: &Host) -> Result<String> {
    let binary = host.dir().join("hello");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--crate-name", "hello", "-Copt-level=z", "-Cpanic=abort"]);
    rustc.args(["-Cstrip=symbols", "-Clto=fat", "-Ccodegen-units=1"]);
    rustc.args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-o"]);
    rustc.arg(&binary).arg(shell::root().join("crates/hello/src/main.rs"));
    ensure!(shell::succeeds(&mut rustc)?, "the example app does not compile");
    Image::hello_of(&binary, 8081)?.write(&host.dir().join("image"))
}

fn launch(
    host: &Host,
    image: &str,
    (app, org, autostop, floor): (&str, &str, &str, u32),
) -> Result<()> {
    let toml = format!(
        "app = '{app}'\nprimary_region = 'lcl'\n[build]\n  image = '{image}'\n[http_service]\n  \
         internal_port = 8081\n  force_https = false\n  auto_stop_machines = '{autostop}'\n  \
         auto_start_machines = true\n  min_machines_running = {floor}\n"
    );
    let dir = host.app_dir(app, &toml)?;
    let args = ["launch", "--flycast", "--copy-config", "--name", app, "--org", org, "--yes"];
    host.fly_in(&dir, &args)?.ok()?;
    Ok(())
}

/// A second release, an address that was given back, a shared one, a Machine stopped by hand, a lease, a token.
fn furnish(host: &Host) -> Result<String> {
    host.fly_in(&host.dir().join("awake"), &["deploy"])?.ok()?;
    host.fly(&["ips", "allocate-v4", "--shared", "-a", "awake"])?.ok()?;
    let before = host.flycast("asleep")?;
    host.fly(&["ips", "allocate-v6", "-a", "asleep"])?.ok()?;
    let given = host.ips("asleep")?.into_iter().find(|ip| ip.address != before);
    let given = given.context("no second address")?.address;
    host.fly(&["ips", "release", &given, "-a", "asleep"])?.ok()?;
    for machine in host.machines("halted")? {
        host.fly(&["machine", "stop", &machine.id, "-a", "halted"])?.ok()?;
    }
    lease(host)?;
    let data = host.data_dir().to_string_lossy().into_owned();
    let token = host.perch(&["token", "create", "--name", "ci", "--data-dir", &data])?.ok()?;
    Ok(token.trim().to_owned())
}

fn lease(host: &Host) -> Result<()> {
    let id = host.machines("awake")?.first().context("no Machine")?.id.clone();
    let socket = host.socket().to_string_lossy().into_owned();
    let url = format!("http://perch/v1/apps/awake/machines/{id}/lease");
    let json = "Content-Type: application/json";
    let body = r#"{"ttl":60,"description":"a fixture"}"#;
    let args = ["-sS", "--fail", "--unix-socket", &socket, "-H", json, "-d", body, &url];
    host.run("curl", &args)?.ok().map(drop)
}

/// Waits until nothing changes any more by itself.
fn settle(host: &Host) -> Result<()> {
    let wanted = [
        ("asleep", ["stopped", "stopped"]),
        ("awake", ["started", "started"]),
        ("halted", ["stopped", "stopped"]),
        ("kept", ["started", "stopped"]),
    ];
    for (app, states) in wanted {
        wait_until(&format!("{app} to be {states:?}"), SOON, || {
            Ok((host.states(app)? == states).then_some(()))
        })?;
    }
    Ok(())
}

/// What must still be true after an upgrade, in the server's own words.
fn facts(host: &Host, token: &str) -> Result<Value> {
    let mut apps = serde_json::Map::new();
    for (app, ..) in APPS {
        let machines = host.api(&format!("/v1/apps/{app}/machines"))?;
        let told = |machine: &Value| {
            let kept =
                ["id", "name", "region", "private_ip", "instance_id", "config", "created_at"];
            Value::Object(
                kept.iter().map(|key| ((*key).to_owned(), machine[*key].clone())).collect(),
            )
        };
        let machines: Vec<Value> = machines.as_array().into_iter().flatten().map(told).collect();
        let told = json!({
            "machines": machines,
            "ips": host.api(&format!("/v1/apps/{app}/ip_assignments"))?,
            "releases": host.api(&format!("/api/v1/apps/{app}/releases"))?,
        });
        apps.insert(app.to_owned(), told);
    }
    Ok(json!({
        "perch": env!("CARGO_PKG_VERSION"),
        "arch": std::env::consts::ARCH,
        "schema": schema(host)?,
        "config": CONFIG,
        "data_dir": host.data_dir(),
        "token": token,
        "apps": apps,
    }))
}

/// The store's schema: SQLite keeps it as `user_version` in the first page.
fn schema(host: &Host) -> Result<u32> {
    let store = fs::read(host.data_dir().join("store.db"))?;
    let bytes = store.get(60..64).context("it is no database")?;
    let schema = u32::from_be_bytes(bytes.try_into()?);
    ensure!(0 < schema, "the store's file has no schema yet");
    Ok(schema)
}

fn pack(host: &Host, facts: &Value, target: &Path) -> Result<()> {
    fs::write(host.dir().join("facts.json"), serde_json::to_vec_pretty(facts)?)?;
    let dir: PathBuf = target.parent().context("a directory")?.to_owned();
    fs::create_dir_all(dir)?;
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--sort=name", "-C"]).arg(host.dir());
    tar.args(LEFT_OUT.map(|name| format!("--exclude=data/{name}")));
    tar.args(["-I", "xz -9e", "-cf"]).arg(target).args(["facts.json", "data"]);
    ensure!(shell::succeeds(&mut tar)?, "tar could not pack {}", target.display());
    Ok(())
}
