//! Deploys while requests come, while Machines sleep, and two at once.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use perch_testkit::{Host, Output, get, wait_until};

use crate::stage::{
    AWAKE, SNIPPET, SOON, fly_toml, on_host, private_app_of, shell_image, wait_asleep,
};

/// Answers with the value of VERSION in its environment.
const SHOWS_VERSION: &str = "mkdir -p /www; echo version $VERSION > /www/index.html; \
    exec busybox httpd -f -p 0.0.0.0:8081 -h /www";

/// The same, but takes its time to come up.
const SLOW: &str = "busybox sleep 3; exec busybox httpd -f -p 0.0.0.0:8081 -h /tmp";

#[test]
fn no_request_is_lost_while_awake_machines_are_replaced() {
    on_host(|host| {
        let (address, dir) = versioned(host, AWAKE)?;
        let failures = while_asking(host, &address, || deploy(host, &dir, AWAKE, 2))?;
        ensure!(
            failures.is_empty(),
            "{} requests were lost, first: {}",
            failures.len(),
            failures[0]
        );
        check_version(host, &address, 2)?;
        ensure!(host.states("web")?.iter().all(|s| s == "started"), "{:?}", host.states("web")?);
        Ok(())
    });
}

#[test]
fn asleep_machines_stay_asleep_and_wake_with_the_new_config() {
    on_host(|host| {
        let (address, dir) = versioned(host, SNIPPET)?;
        wait_asleep(host, "web")?;
        let old: Vec<String> = host.machines("web")?.into_iter().map(|m| m.instance_id).collect();
        deploy(host, &dir, SNIPPET, 2)?;
        for machine in host.machines("web")? {
            ensure!(machine.state == "stopped", "DE-06: {} is {}", machine.id, machine.state);
            ensure!(!old.contains(&machine.instance_id), "{} was not updated", machine.id);
        }
        check_version(host, &address, 2)
    });
}

#[test]
fn a_wake_during_an_update_gets_the_new_config() {
    on_host(|host| {
        let (address, dir) = versioned(host, SNIPPET)?;
        for version in 2..6 {
            wait_asleep(host, "web")?;
            let failures = while_asking(host, &address, || deploy(host, &dir, SNIPPET, version))?;
            ensure!(failures.is_empty(), "lost in round {version}: {}", failures[0]);
            check_version(host, &address, version)?;
        }
        Ok(())
    });
}

#[test]
fn a_second_deploy_is_told_who_holds_the_lease() {
    on_host(|host| {
        let image = shell_image(host, "slow", SLOW)?;
        private_app_of(host, "web", &image, AWAKE)?;
        let dir = host.dir().join("web");
        let mut first = host.fly_command(&dir, &["deploy"]).spawn()?;
        let id = host.machines("web")?[0].id.clone();
        let lease = wait_until("the first deploy to be at work", SOON, || {
            Ok(host.api(&format!("/v1/apps/web/machines/{id}/lease")).ok())
        })?;
        let owner = lease["data"]["owner"].as_str().unwrap_or_default().to_owned();
        ensure!(owner.starts_with("uid 0 (pid "), "held by somebody without a name: {lease}");
        ensure!(lease["data"]["description"] == "fly deploy of web", "{lease}");
        ensure!(lease["data"]["nonce"] == "", "the nonce is not for strangers: {lease}");

        let stop = host.fly_in(&dir, &["machine", "stop", &id])?;
        stop.says(&[
            &format!("could not lease machine {id}"),
            &format!("lease currently held by {owner}, expires at 20"),
        ])?;
        stop.fails()?;
        let second = host.fly_in(&dir, &["deploy"])?;
        second.says(&[
            "could not begin a release of web",
            &format!("lease on app web currently held by {owner}"),
            "uid 0 with release 2 (since ",
            " is changing this app; nothing was deployed",
        ])?;
        second.fails()?;
        let status = first.wait()?;
        ensure!(status.success(), "the first deploy ended with {status}");
        Ok(())
    });
}

fn versioned(host: &Host, sections: &str) -> Result<(String, std::path::PathBuf)> {
    let image = shell_image(host, "web", SHOWS_VERSION)?;
    let address = private_app_of(host, "web", &image, &with_version(sections, 1))?;
    check_version(host, &address, 1)?;
    Ok((address, host.dir().join("web")))
}

fn with_version(sections: &str, version: u32) -> String {
    format!("[env]\n  VERSION = '{version}'\n\n{sections}")
}

fn deploy(host: &Host, dir: &Path, sections: &str, version: u32) -> Result<()> {
    let image = format!("oci:{}", host.dir().join("web-image").display());
    fs::write(dir.join("fly.toml"), fly_toml("web", &image, &with_version(sections, version)))?;
    let deployed: Output = host.fly_in(dir, &["deploy"])?;
    deployed.ok().map(drop)
}

fn check_version(host: &Host, address: &str, version: u32) -> Result<()> {
    let answer = host.get(address, 80, "/")?;
    let expected = format!("version {version}");
    ensure!(answer.body.trim() == expected, "not {expected}: {answer:?}");
    Ok(())
}

/// Asks from four clients while `work` runs; returns what failed.
fn while_asking(
    host: &Host,
    address: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<String>> {
    let target = SocketAddr::new(address.parse::<IpAddr>()?, 80);
    let done = AtomicBool::new(false);
    let enter = host.entrance()?;
    let client = || -> Result<Vec<String>> {
        enter.enter()?;
        let mut failures = Vec::new();
        while !done.load(Ordering::SeqCst) {
            match get(target, "/", Duration::from_secs(65)) {
                Ok(answer) if answer.status == 200 => {}
                Ok(answer) => failures.push(format!("{answer:?}")),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        Ok(failures)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        let result = work();
        done.store(true, Ordering::SeqCst);
        let mut failures = Vec::new();
        for client in clients {
            let join = client.join();
            failures.extend(join.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        result?;
        Ok(failures)
    })
}
