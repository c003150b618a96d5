//! `status`: what a command costs beside a server that has 1,000 apps, and what such a server itself costs.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Image, Network};
use serde_json::{Value, json};

use super::figures::Series;

/// Runs of each command.
pub(crate) const ROUNDS: usize = 200;
/// Apps, and those of them whose Machines run.
const APPS: usize = 1_000;
const AWAKE: usize = 10;
/// Machines of each app.
const MACHINES: usize = 2;
/// `fly status`, whole process, at most.
const LIMIT_MS: f64 = 10.0;
const PORT: u16 = 8081;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Makes the apps and measures; whether the promise holds.
pub(crate) fn run(rounds: usize) -> Result<bool> {
    let mut host = Host::start_with(Network::Open, "")?;
    print_memory(&host, "empty server")?;
    let started = Instant::now();
    fill(&host)?;
    let calls = APPS * (3 + MACHINES);
    println!(
        "{APPS} apps, {} Machines in {calls} calls: {:.1?}",
        APPS * MACHINES,
        started.elapsed()
    );
    print_memory(&host, "full server")?;
    let good = measure(&host, rounds)?;
    for how in ["killed", "ended"] {
        if how == "killed" {
            host.kill_server()?
        } else {
            host.stop_server()?
        }
        let started = Instant::now();
        host.start_server()?;
        println!("start of a server that was {how}: {:.0?} to ready", started.elapsed());
    }
    print_memory(&host, "server that adopted")?;
    Ok(good)
}

fn measure(host: &Host, rounds: usize) -> Result<bool> {
    let commands: [&[&str]; 5] = [
        &["version"],
        &["fly", "status", "-a", "app-500"],
        &["fly", "status", "-a", "app-0"],
        &["fly", "machine", "list", "-a", "app-500"],
        &["fly", "apps", "list"],
    ];
    let mut all: Vec<Series> = commands.iter().map(|_| Series::default()).collect();
    for _ in 0..rounds {
        for (command, series) in commands.iter().zip(&mut all) {
            series.push_ms(whole_process(host, command)?);
        }
    }
    for (command, series) in commands.iter().zip(&all) {
        let name = command.join(" ");
        println!(
            "{name:<28} median {:>7.2} ms   worst {:>7.2} ms",
            series.median(),
            series.at(1.0)
        );
    }
    let good = all[1].median() <= LIMIT_MS;
    let word = if good { "holds" } else { "DOES NOT HOLD" };
    println!("fly status: {:.2} ms, promised at most {LIMIT_MS} ms: {word}\n", all[1].median());
    Ok(good)
}

/// From before the process is made until it has ended.
fn whole_process(host: &Host, args: &[&str]) -> Result<Duration> {
    let perch = std::env::var_os("PERCH_BIN").context("PERCH_BIN is not set")?;
    let mut command = Command::new(perch);
    command.args(args).env("PERCH_SOCKET", host.socket()).env_remove("FLY_APP");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let started = Instant::now();
    let status = command.status().with_context(|| format!("starting {args:?}"))?;
    let took = started.elapsed();
    ensure!(status.success(), "{args:?} ended with {status}");
    Ok(took)
}

fn fill(host: &Host) -> Result<()> {
    let manifest = push_once(host)?;
    for number in 0..APPS {
        let name = format!("app-{number}");
        post(host, "/v1/apps", &json!({"name": name}))?;
        let path = format!("/v2/{name}/manifests/b");
        let pushed = host.request("PUT", &path, MANIFEST, &manifest)?;
        ensure!(pushed.status == 201, "PUT {path}: {pushed:?}");
        post(host, &format!("/v1/apps/{name}/ip_assignments"), &json!({"type": "private_v6"}))?;
        for _ in 0..MACHINES {
            let input = json!({"skip_launch": AWAKE <= number, "config": config(&name)});
            post(host, &format!("/v1/apps/{name}/machines"), &input)?;
        }
    }
    for number in 0..AWAKE {
        host.wait_all(&format!("app-{number}"), "started", Duration::from_secs(30))?;
    }
    Ok(())
}

/// A config as `fly deploy` makes it.
fn config(app: &str) -> Value {
    let ports = json!([{"port": 80, "handlers": ["http"]}]);
    json!({
        "env": {"FLY_PROCESS_GROUP": "app", "PRIMARY_REGION": "lcl"},
        "image": format!("registry.perch/{app}:b"),
        "metadata": {
            "fly_platform_version": "v2", "fly_process_group": "app", "fly_release_version": "1",
        },
        "services": [{
            "protocol": "tcp", "internal_port": PORT, "ports": ports,
            "autostop": true, "autostart": true, "min_machines_running": 0,
        }],
        "restart": {"policy": "on-failure"},
    })
}

/// Pushes the blobs by one deploy; returns the manifest, which each app then gets for itself.
fn push_once(host: &Host) -> Result<Vec<u8>> {
    let image = Image::hello(PORT)?.write(&host.dir().join("image"))?;
    let text = format!("app = 'first'\n[build]\n  image = '{image}'\n");
    let dir = host.app_dir("first", &text)?;
    let args = ["launch", "--flycast", "--ha=false", "--copy-config", "--name", "first", "--yes"];
    host.fly_in(&dir, &args)?.ok()?;
    let machines = host.api("/v1/apps/first/machines")?;
    let digest = machines[0]["image_ref"]["digest"].as_str().context("no digest")?.to_owned();
    let manifest = host.request("GET", &format!("/v2/first/manifests/{digest}"), MANIFEST, &[])?;
    ensure!(manifest.status == 200, "{manifest:?}");
    Ok(manifest.body.into_bytes())
}

fn post(host: &Host, path: &str, body: &Value) -> Result<()> {
    let answer = host.request("POST", path, "application/json", body.to_string().as_bytes())?;
    ensure!(matches!(answer.status, 200 | 201), "POST {path}: {answer:?}");
    Ok(())
}

fn print_memory(host: &Host, name: &str) -> Result<()> {
    let resident = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(str::trim);
        line.unwrap_or("unknown").to_owned()
    };
    let proxy = host.perch_processes("proxy").pop().context("no proxy runs")?;
    let (server, proxy) = (resident(host.server_process()?.pid), resident(proxy.pid));
    println!("{name}: {server} resident, its proxy {proxy}");
    Ok(())
}
