//! Requests that say which Machine or region they want, and Machines that want them replayed, by the real curl, to apps that
//! sleep (PX-30..33, PX-40..50, AS-80).

use anyhow::{Context, Result, ensure};
use perch_testkit::Host;

use crate::stage::{SNIPPET, SOON, on_host, private_app};
use crate::suspend::SUSPENDS;

#[test]
fn a_named_machine_of_a_stopped_app_is_woken_and_no_other() {
    on_host(|host| named(host, SNIPPET, "stopped"));
}

#[test]
fn a_named_machine_of_a_suspended_app_is_woken_and_no_other() {
    on_host(|host| named(host, SUSPENDS, "suspended"));
}

fn named(host: &Host, sections: &str, asleep: &str) -> Result<()> {
    let address = private_app(host, "quotes", sections)?;
    let ids: Vec<String> = host.machines("quotes")?.into_iter().map(|m| m.id).collect();
    ensure!(ids.len() == 2, "not two Machines: {ids:?}");
    for header in ["Fly-Force-Instance-Id", "Fly-Prefer-Instance-Id"] {
        for (id, other) in [(&ids[0], &ids[1]), (&ids[1], &ids[0])] {
            host.wait_all("quotes", asleep, SOON)?;
            let before = wakes(host, "quotes", other)?;
            let answer = curl(host, &address, "/", &[&format!("{header}: {id}")])?;
            ensure!(answer.contains(&format!("Hello from {id}!")), "{header} {id}: {answer}");
            ensure!(answer.to_lowercase().contains("perch-wake: "), "it was awake: {answer}");
            ensure!(wakes(host, "quotes", other)? == before, "{header} {id} has woken {other} too");
        }
    }
    host.wait_all("quotes", asleep, SOON)?;
    let answer = curl(host, &address, "/headers", &["Fly-Prefer-Instance-Id: 00000000000000"])?;
    let told = "fly-preferred-instance-unavailable: 00000000000000";
    ensure!(answer.contains(told), "PX-09: {answer}");
    let answer = curl(host, &address, "/", &["Fly-Force-Instance-Id: 00000000000000"])?;
    ensure!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("PR02"), "PX-33: {answer}");
    Ok(())
}

#[test]
fn a_region_that_this_host_is_not_is_refused_when_forced_and_ignored_when_preferred() {
    on_host(|host| {
        let address = private_app(host, "quotes", SNIPPET)?;
        host.wait_all("quotes", "stopped", SOON)?;
        let answer = curl(host, &address, "/", &["Fly-Force-Region: ams,us"])?;
        ensure!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("PR04"), "{answer}");
        ensure!(host.states("quotes")?.iter().all(|s| s == "stopped"), "somebody was woken");
        for field in ["Fly-Prefer-Region: ams,us", "Fly-Force-Region: ams,lcl"] {
            let answer = curl(host, &address, "/", &[field])?;
            ensure!(answer.contains("Hello from "), "{field}: {answer}");
        }
        Ok(())
    });
}

#[test]
fn stopped_machines_are_woken_by_replays() {
    on_host(|host| replayed(host, SNIPPET, "stopped"));
}

#[test]
fn suspended_machines_are_woken_by_replays() {
    on_host(|host| replayed(host, SUSPENDS, "suspended"));
}

fn replayed(host: &Host, sections: &str, asleep: &str) -> Result<()> {
    let address = private_app(host, "router", sections)?;
    private_app(host, "worker", sections)?;
    let order = |fields: &str| {
        format!("/respond?body=swallowed&header=fly-replay:{}", fields.replace(';', "%3B"))
    };
    let sleep = || {
        host.wait_all("router", asleep, SOON)?;
        host.wait_all("worker", asleep, SOON)
    };
    let machines = host.machines("worker")?;
    let (id, other) = (&machines[0].id, &machines[1].id);

    sleep()?;
    let before = wakes(host, "worker", other)?;
    let path = order(&format!("app=worker;instance={id};state=here"));
    let answer = curl(host, &address, &path, &[])?;
    ensure!(answer.contains(&format!("{id} got GET /respond?")), "{answer}");
    ensure!(answer.contains(";state=here") && !answer.contains("swallowed\n"), "PX-10: {answer}");
    ensure!(wakes(host, "worker", other)? == before, "{other} was woken too");

    sleep()?;
    let body = "@".to_owned() + &body_file(host, 900_000)?;
    let url = format!("http://[{address}]{}", order("app=worker"));
    let args = ["-gsSi", "-m", "60", "-H", "Expect:", "--data-binary", &body, &url];
    let answer = host.run("curl", &args)?.ok()?;
    ensure!(answer.contains(" with 900000 bytes"), "PX-44: {answer}");

    let answer = curl(host, &address, &order("app=nobody"), &[])?;
    ensure!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("PA04"), "{answer}");
    let answer = curl(host, &address, &order("app=worker;region=ams;fallback=prefer_self"), &[])?;
    ensure!(answer.contains("reason=no_candidate"), "PX-46: {answer}");

    let cached = order("app=worker")
        + "&header=fly-replay-cache:/respond/*&header=fly-replay-cache-ttl-secs:600";
    let first = curl(host, &address, &cached, &[])?;
    ensure!(first.contains("fly-replay-cache-status: miss"), "PX-12: {first}");
    sleep()?;
    // Nothing is told to the router's Machines: they sleep on, and the worker's answer as a page that is not there.
    let second = curl(host, &address, "/respond/more", &[])?;
    ensure!(second.starts_with("HTTP/1.1 404 "), "PX-50: {second}");
    ensure!(host.states("router")?.iter().all(|state| state == asleep), "the router was asked");
    Ok(())
}

fn body_file(host: &Host, length: usize) -> Result<String> {
    let file = host.dir().join("body");
    std::fs::write(&file, vec![b'x'; length])?;
    Ok(file.display().to_string())
}

/// How often a Machine has come up.
fn wakes(host: &Host, app: &str, id: &str) -> Result<usize> {
    let machine = host.machines(app)?.into_iter().find(|machine| machine.id == id);
    let machine = machine.with_context(|| format!("no Machine {id}"))?;
    Ok(machine.events("launch") + machine.events("resume") + machine.events("start"))
}

/// Head and body of the answer.
fn curl(host: &Host, address: &str, path: &str, fields: &[&str]) -> Result<String> {
    let url = format!("http://[{address}]{path}");
    let mut args = vec!["-gsSi", "-m", "60"];
    for field in fields {
        args.extend(["-H", field]);
    }
    args.push(&url);
    host.run("curl", &args)?.ok()
}
