//! The commands that only look, or do one simple thing, over one deployment: what the server really
//! says to each of them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network};
use serde_json::{Value, json};

use crate::stage::{AWAKE, SOON, fly_toml, hello_image, on, private_app, wait_asleep};

const CONFIG: &str = "auto_stop_after = \"1s\"\norganizations = [\"personal\", \"team\"]\nlisten_api = \"127.0.0.1:0\"\n";

#[test]
fn a_deployment_is_looked_at_from_every_side() {
    on(
        || Host::start_with(Network::Open, CONFIG),
        |host| {
            let image = hello_image(host)?;
            let sections = format!("{AWAKE}\n[env]\n  COLOUR = 'blue'\n");
            let dir = host.app_dir("web", &fly_toml("web", &image, &sections))?;
            let launch = ["launch", "--flycast", "--copy-config", "--name", "web", "--yes"];
            host.fly_in(&dir, &launch)?.ok()?;
            host.wait_all("web", "started", SOON)?;
            the_server(host)?;
            the_app(host, &dir)?;
            the_file(host, &dir)?;
            names(host)?;
            restarting(host)
        },
    );
}

/// Fails unless a command prints exactly this.
fn prints(host: &Host, args: &[&str], wanted: &str) -> Result<()> {
    let said = host.fly(args)?.ok()?;
    ensure!(said == wanted, "fly {args:?}: {said:?} instead of {wanted:?}");
    Ok(())
}

fn the_server(host: &Host) -> Result<()> {
    prints(host, &["auth", "whoami"], "uid 0\n")?;
    host.fly(&["auth", "token"])?.fails().map(drop)?;
    let orgs = host.fly(&["orgs", "list", "--json"])?.json()?;
    ensure!(orgs == json!({"personal": "personal", "team": "team"}), "{orgs}");
    let org = host.fly(&["orgs", "show", "personal", "--json"])?.json()?;
    ensure!(org["Type"] == "PERSONAL" && org["ViewerRole"] == "admin", "{org}");
    let table = " NAME            │ CODE │ MPG \n This host (lcl) │ lcl  │     \n\n";
    prints(host, &["platform", "regions"], table)?;
    prints(host, &["regions"], table)?;
    prints(host, &["regions", "list", "-a", "web"], "Regions [app]: lcl\n")?;
    let sizes = host.fly(&["platform", "vm-sizes", "--json"])?.json()?;
    ensure!(sizes["shared-cpu-1x"]["memory_mb"] == 256, "{sizes}");
    let version = host.fly(&["version", "--json"])?.json()?;
    let server = host.api("/perch/v1/info")?;
    ensure!(version["Version"] == server["version"], "{version}, {server}");
    host.fly(&["version", "upgrade"])?.fails().map(drop)
}

fn the_app(host: &Host, dir: &Path) -> Result<()> {
    let releases = host.fly(&["releases", "-a", "web", "--json"])?.json()?;
    let newest = &releases[0];
    ensure!(newest["Version"] == 1 && newest["Status"] == "complete", "{releases}");
    ensure!(newest["User"]["Email"] == "uid 0", "{releases}");
    let shown = host.fly(&["apps", "releases", "-a", "web", "--image"])?;
    shown.says(&["DOCKER IMAGE", " v1 ", "complete", "uid 0"])?;
    let services = " TCP      │ 80 => 8081  │ [HTTP]     │ False       │ app           │ lcl     │ 2        \n";
    host.fly_in(dir, &["services", "list"])?.says(&[services])?;
    let checks = "Health Checks for web\n NAME │ STATUS │ MACHINE │ LAST UPDATED │ OUTPUT \n";
    prints(host, &["checks", "list", "-a", "web"], checks)?;
    let machines = host.machines("web")?;
    let results = host.fly(&["checks", "list", "-a", "web", "--json"])?.json()?;
    ensure!(results[&machines[0].id] == json!([]), "{results}");
    let addresses = host.fly(&["ips", "private", "-a", "web", "--json"])?.json()?;
    let wanted: Vec<_> = machines.iter().map(|machine| machine.private_ip.clone()).collect();
    ensure!(addresses == json!(wanted), "{addresses}");
    host.fly(&["ips", "private", "-a", "web"])?.says(&[" ID ", &wanted[0]])
}

fn the_file(host: &Host, dir: &Path) -> Result<()> {
    host.fly_in(dir, &["config", "env"])?.says(&[" COLOUR │ blue  \n"])?;
    let shown = host.fly_in(dir, &["config", "show"])?.json()?;
    host.fly_in(dir, &["config", "show", "--yaml"])?.says(&["\napp: web\n", "\nenv:\n"])?;
    host.fly_in(dir, &["config", "save"])?.fails()?;
    host.fly_in(dir, &["config", "save", "--yes"])?.says(&["Wrote config file fly.toml\n"])?;
    host.fly_in(dir, &["config", "save", "-a", "web", "--yaml", "-c", "other"])?.ok()?;
    for file in ["fly.toml", "other.yaml"] {
        let local = host.fly_in(dir, &["config", "show", "--local", "-c", file])?.json()?;
        ensure!(local == shown, "{file} says {local} instead of {shown}");
    }
    Ok(())
}

/// By whom a name is asked for is all that counts, and not who calls the API.
fn names(host: &Host) -> Result<()> {
    let flycast = private_app(
        host,
        "asleep",
        "[http_service]\n  internal_port = 8081\n  force_https = false\n  auto_stop_machines = \"stop\"\n  auto_start_machines = true\n",
    )?;
    wait_asleep(host, "asleep")?;
    let short = |name: &str| host.fly(&["dig", "-a", "web", "--short", name])?.ok();
    ensure!(short("asleep.flycast")?.trim() == flycast, "PN-29");
    let mut found: Vec<_> = short("web.internal")?.lines().map(str::to_owned).collect();
    let mut wanted: Vec<_> = host.machines("web")?.into_iter().map(|it| it.private_ip).collect();
    found.sort();
    wanted.sort();
    ensure!(found == wanted, "PN-20: {found:?}");
    ensure!(short("asleep.internal")?.is_empty(), "PN-40: sleeping Machines are not told");
    let whole = host.fly(&["dig", "txt", "_apps.internal", "-o", "personal"])?;
    whole.says(&["status: NOERROR", ";_apps.internal.\tIN\t TXT\n", "\tTXT\t\"asleep,web\"\n"])?;
    let unknown = host.fly(&["dig", "nobody.flycast", "-a", "web"])?;
    unknown.says(&["status: NXDOMAIN", "flags: qr aa", "AUTHORITY: 1"])?;
    ensure!(unknown.status.success(), "an answer is an answer");

    let theirs = host.fly(&["dig", "web.internal", "-o", "team"])?;
    theirs.says(&["status: NXDOMAIN"])?;
    host.fly(&["dig", "a..b", "-a", "web"])?.says(&["is no name that DNS has"])?;
    wait_asleep(host, "asleep").context("a question wakes nobody")
}

fn restarting(host: &Host) -> Result<()> {
    let before = host.machines("web")?;
    let said = host.fly(&["apps", "restart", "web"])?.ok()?;
    for machine in &before {
        let (begun, done) = (
            format!("Restarting machine {}\n", machine.id),
            format!("Machine {} restarted", machine.id),
        );
        ensure!(said.contains(&begun) && said.contains(&done), "{said}");
    }
    let after = host.machines("web")?;
    for machine in &after {
        ensure!(machine.state == "started" && machine.events("restart") == 1, "{}", machine.value);
        ensure!(exit(&machine.value)["requested_stop"] == true, "{}", machine.value);
    }
    host.fly(&["apps", "restart", "web", "--force-stop"])?.ok()?;
    for machine in host.machines("web")? {
        ensure!(exit(&machine.value)["signal"] == 9, "not killed: {}", machine.value);
    }
    let asleep = host.fly(&["apps", "restart", "asleep"])?.ok()?;
    ensure!(asleep.is_empty(), "what sleeps has nothing to begin anew: {asleep}");
    let states = host.states("asleep")?;
    ensure!(states.iter().all(|state| state == "stopped"), "{states:?}");
    Ok(())
}

/// The newest exit of a Machine.
fn exit(machine: &Value) -> Value {
    let events = machine["events"].as_array().cloned().unwrap_or_default();
    let exit = events.into_iter().find(|event| event["type"] == "exit").unwrap_or_default();
    exit["request"]["exit_event"].clone()
}
