//! The blueprint "Autostart and autostop private apps", command by command.

use std::fs;

use anyhow::{Result, ensure};
use perch_testkit::{Host, get, wait_until};

use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, check_refused, fly_toml, hello_image, on_host, private_app,
    wait_asleep,
};
use crate::table;

#[test]
fn a_new_private_app_sleeps_and_is_woken_by_another_app() {
    on_host(|host| {
        let image = hello_image(host)?;
        let dir = host.dir().join("quotes");
        fs::create_dir(&dir)?;

        let args =
            ["launch", "--flycast", "--image", &image, "--name", "quotes", "--no-deploy", "-y"];
        host.fly_in(&dir, &args)?.ok()?;
        let generated = fs::read_to_string(dir.join("fly.toml"))?;
        ensure!(generated.contains("force_https = false"), "LI-01: {generated}");
        ensure!(host.machines("quotes")?.is_empty(), "--no-deploy made Machines");

        fs::write(dir.join("fly.toml"), fly_toml("quotes", &image, SNIPPET))?;
        let deployed = host.fly_in(&dir, &["deploy"])?;
        let address = check_only_private(host, "quotes")?;
        deployed.says(&[
            "http://quotes.flycast",
            &format!("curl http://[{address}]/"),
            "fly proxy",
        ])?;
        deployed.ok()?;
        ensure!(host.machines("quotes")?.len() == 2, "not two Machines");

        let caller = private_app(host, "caller", AWAKE)?;
        check_sleep_and_wake(host, &caller, "quotes", &address)
    });
}

#[test]
fn an_existing_public_app_becomes_private() {
    on_host(|host| {
        let image = hello_image(host)?;
        let dir = host.app_dir("shop", &fly_toml("shop", &image, SNIPPET))?;
        host.fly_in(&dir, &["launch", "--copy-config", "--name", "shop", "-y"])?.ok()?;
        let public = check_public(host)?;

        host.fly_in(&dir, &["ips", "allocate-v6", "--private"])?.ok()?;
        let rows = table::rows(&host.fly_in(&dir, &["ips", "list"])?.ok()?)?;
        ensure!(rows.len() == 3, "not three addresses: {rows:?}");

        let args = ["ips", "release", &public, "192.0.2.10"];
        let released = host.fly_in(&dir, &args)?;
        released
            .says(&[&format!("Released {public} from shop"), "Released 192.0.2.10 from shop"])?;
        released.ok()?;
        for address in [public.as_str(), "192.0.2.10"] {
            check_refused(host, address, 80)?;
        }

        let address = check_only_private(host, "shop")?;
        host.fly_in(&dir, &["deploy"])?.ok()?;
        check_only_private(host, "shop")?;
        let caller = private_app(host, "caller", AWAKE)?;
        check_sleep_and_wake(host, &caller, "shop", &address)
    });
}

#[test]
fn an_app_without_services_gains_them_by_deploy() {
    on_host(|host| {
        let image = hello_image(host)?;
        let dir = host.app_dir("auth", &fly_toml("auth", &image, "[env]\n  A = '1'\n"))?;
        host.fly(&["apps", "create", "auth"])?.ok()?;
        // With a standby there is one that was never started, which is another test's matter.
        host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
        ensure!(host.ips("auth")?.is_empty(), "an app without services has addresses");

        host.fly_in(&dir, &["ips", "allocate-v6", "--private"])?.ok()?;
        fs::write(dir.join("fly.toml"), fly_toml("auth", &image, SNIPPET))?;
        host.fly_in(&dir, &["deploy"])?.ok()?;
        let address = check_only_private(host, "auth")?;
        let caller = private_app(host, "caller", AWAKE)?;
        check_sleep_and_wake(host, &caller, "auth", &address)
    });
}

#[test]
fn the_local_end_of_fly_proxy_wakes_the_app() {
    on_host(|host| {
        private_app(host, "quotes", SNIPPET)?;
        wait_asleep(host, "quotes")?;
        let mut proxy =
            host.fly_command(host.dir(), &["proxy", "18080:80", "-a", "quotes"]).spawn()?;
        let answer = wait_until("an answer through fly proxy", SOON, || {
            host.inside(|| get(([127, 0, 0, 1], 18080).into(), "/", SOON)).map(Some)
        });
        proxy.kill()?;
        proxy.wait()?;
        check_answer(&answer?, "")
    });
}

/// One row, private; returns its address (FC-62).
fn check_only_private(host: &Host, app: &str) -> Result<String> {
    let rows = table::rows(&host.fly(&["ips", "list", "-a", app])?.ok()?)?;
    ensure!(rows.len() == 1, "not one address: {rows:?}");
    let row = &rows[0];
    ensure!(row[0] == "v6" && row[2] == "private" && row[3] == "global", "{row:?}");
    ensure!(row[1].starts_with("fdaa:") && row[1].contains(":0:1:"), "FC-02: {row:?}");
    Ok(row[1].clone())
}

/// A public IPv6 and the shared IPv4, both answering; returns the IPv6.
fn check_public(host: &Host) -> Result<String> {
    let rows = table::rows(&host.fly(&["ips", "list", "-a", "shop"])?.ok()?)?;
    ensure!(rows.len() == 2, "not two addresses: {rows:?}");
    let find = |kind: &str| rows.iter().find(|row| row[2] == kind).cloned().unwrap_or_default();
    let (dedicated, shared) = (find("public (dedicated)"), find("public (shared)"));
    ensure!(dedicated.first().is_some_and(|v| v == "v6"), "{rows:?}");
    ensure!(
        shared[0] == "v4" && shared[3].is_empty() && shared[4] == "Jan 1 0001 00:00",
        "{rows:?}"
    );
    check_answer(&host.get(&dedicated[1], 80, "/")?, "")?;
    check_shared(host)?;
    Ok(dedicated[1].clone())
}

/// The shared IPv4 finds the app by its Host header; an unknown one is not found.
fn check_shared(host: &Host) -> Result<()> {
    let ask = |name: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        let address = ([192, 0, 2, 10], 80).into();
        host.inside(|| perch_testkit::ask(address, request.as_bytes(), SOON))
    };
    check_answer(&ask("shop.perch.test")?, "")?;
    let unknown = ask("other.perch.test")?;
    ensure!(unknown.status == 404, "an unknown name is not 404: {unknown:?}");
    Ok(())
}

/// Sleeps by itself, is woken by name and by address, and only one Machine is started.
fn check_sleep_and_wake(host: &Host, caller: &str, app: &str, address: &str) -> Result<()> {
    for url in [format!("http://{app}.flycast/"), format!("http://[{address}]/")] {
        wait_asleep(host, app)?;
        check_answer(&host.fetch(caller, &url)?, "Hello from")?;
        let started = host.states(app)?.iter().filter(|state| *state == "started").count();
        ensure!(started == 1, "one request started {started} Machines");
    }
    wait_asleep(host, app)?;
    let held = host.get(address, 80, "/")?;
    check_answer(&held, "")?;
    ensure!(held.header("perch-wake").is_some(), "no Perch-Wake on {held:?}");
    // It may have slept again before the next request.
    let warm = wait_until("a request that wakes nobody", SOON, || {
        Ok(Some(host.get(address, 80, "/")?).filter(|it| it.header("perch-wake").is_none()))
    })?;
    check_answer(&warm, "")?;
    wait_asleep(host, app)
}
