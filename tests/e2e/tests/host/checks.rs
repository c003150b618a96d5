//! Health checks: who gets requests, who sleeps, what is shown, what a deploy waits for (MA-70..77, AS-75).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, Output, wait_until};
use serde_json::json;

use crate::stage::{SOON, fly_toml, on_host, one_machine_of, private_app_of, shell_image};

/// Says who it is at `/`; is well as long as there is a file, which comes after a while if it is `SLOW`, and never
/// if it is `SICK`.
const PATIENT: &str = "\
echo \"I am $FLY_MACHINE_ID.\" > /tmp/index.html
[ -n \"$SLOW\" ] && (busybox sleep 2; busybox touch /tmp/health) &
[ -n \"$SLOW$SICK\" ] || busybox touch /tmp/health
exec busybox httpd -f -p 0.0.0.0:8081 -h /tmp";

/// A checked service; `sleep` is what happens when nobody needs it.
fn sections(sleep: &str, interval: &str) -> String {
    format!(
        "[http_service]\n  internal_port = 8081\n  force_https = false\n  \
         auto_stop_machines = '{sleep}'\n  auto_start_machines = true\n\n  \
         [[http_service.checks]]\n    path = '/health'\n    interval = '{interval}'\n    \
         timeout = '10s'\n    grace_period = '1s'\n"
    )
}

fn image(host: &Host) -> Result<String> {
    shell_image(host, "patient", PATIENT)
}

#[test]
fn a_machine_whose_check_fails_gets_no_request_until_it_passes_also_without_a_server() {
    on_host(|host| {
        let address = private_app_of(host, "web", &image(host)?, &sections("off", "1s"))?;
        let ids: Vec<String> = host.machines("web")?.into_iter().map(|it| it.id).collect();
        let [sick, well] = <[String; 2]>::try_from(ids).ok().context("a deploy makes two")?;
        ensure!(host.fly(&["checks", "list", "-a", "web"])?.ok()?.matches("passing").count() == 2);

        exec(host, &sick, "busybox rm /tmp/health")?.ok()?;
        wait_check(host, &sick, "critical")?;
        check_answered_by(host, &address, &well)?;
        let list = host.fly(&["checks", "list", "-a", "web"])?.ok()?;
        for part in ["servicecheck-00-http-8081", "critical", "status 404", "passing"] {
            ensure!(list.contains(part), "{part} is not in:\n{list}");
        }
        let status = host.fly(&["status", "-a", "web"])?.ok()?;
        ensure!(status.contains("1 total, 1 critical"), "{status}");
        let one = host.fly(&["machine", "status", &sick, "-a", "web"])?.ok()?;
        ensure!(one.contains("Checks [0/1]") && one.contains("critical"), "{one}");

        host.kill_server()?;
        check_answered_by(host, &address, &well)?;
        host.start_server()?;
        check_answered_by(host, &address, &well)?;
        wait_check(host, &sick, "critical").context("the new server does not know it")?;

        exec(host, &sick, "busybox touch /tmp/health")?.ok()?;
        let is_back = || Ok(host.get(&address, 80, "/")?.body.contains(&sick).then_some(()));
        wait_until("a request at the Machine that is well again", SOON, is_back)
    });
}

#[test]
fn checks_wake_nobody_and_keep_nobody_awake() {
    for (sleep, asleep, wake) in [("stop", "stopped", "launch"), ("suspend", "suspended", "resume")]
    {
        on_host(|host| {
            let image = image(host)?;
            let address = one_machine_of(host, "web", &image, &sections(sleep, "1s"))?;
            host.wait_all("web", asleep, SOON)?;
            let before = only_machine(host)?.events(wake);
            for count in 1..=3 {
                let list = host.fly(&["checks", "list", "-a", "web"])?.ok()?;
                ensure!(list.contains("passing (asleep)"), "{list}");
                let answer = host.get(&address, 80, "/")?;
                ensure!(answer.status == 200, "{answer:?}");
                if sleep == "suspend" {
                    let check = &only_machine(host)?.value["checks"][0];
                    ensure!(check["status"] == "passing", "the last result stands: {check}");
                }
                host.wait_all("web", asleep, SOON)?;
                let woken = only_machine(host)?.events(wake) - before;
                ensure!(woken == count, "{woken} wakes by {count} requests");
            }
            Ok(())
        });
    }
}

#[test]
fn after_a_start_a_request_waits_for_a_pass_however_long_the_interval_is() {
    on_host(|host| {
        let sections = format!("{}\n[env]\n  SLOW = '1'\n", sections("stop", "60s"));
        let address = one_machine_of(host, "web", &image(host)?, &sections)?;
        host.wait_all("web", "stopped", SOON)?;
        // At the ordinary rhythm the second try would come after this request has been given up.
        let answer = host.get(&address, 80, "/")?;
        ensure!(answer.status == 200, "{answer:?}");
        let health = host.get(&address, 80, "/health")?;
        ensure!(health.status == 200, "it was let in before it was well: {health:?}");
        Ok(())
    });
}

#[test]
fn a_deploy_and_a_restart_wait_for_checks_and_a_failing_one_fails_the_deploy() {
    on_host(|host| {
        let (image, checked) = (image(host)?, sections("off", "1s"));
        let top = "\n[checks.other]\n  type = 'tcp'\n  port = 8081\n  interval = '2s'\n  timeout = '5s'\n";
        let toml = fly_toml("web", &image, &format!("{checked}{top}"));
        let dir = host.app_dir("web", &toml)?;
        let launch = ["launch", "--flycast", "--copy-config", "--name", "web", "--ha=false", "-y"];
        let said = host.fly_in(&dir, &launch)?;
        said.says(&["to become healthy: 2/2"])?;
        said.ok()?;
        let restart = host.fly(&["apps", "restart", "web"])?;
        restart.says(&["to become healthy (started, 2/2)", "restarted successfully"])?;
        restart.ok()?;

        let sick = fly_toml("web", &image, &format!("{checked}\n[env]\n  SICK = '1'\n"));
        let dir = host.app_dir("web", &sick)?;
        let failed = host.fly_in(&dir, &["deploy", "--wait-timeout", "3s"])?;
        let id = only_machine(host)?.id;
        failed.says(&[
            &format!("timeout reached waiting for health checks to pass for machine {id}"),
            "servicecheck-00-http-8081 is",
            "--wait-timeout",
        ])?;
        failed.fails()?;
        Ok(())
    });
}

#[test]
fn checks_that_cannot_be_done_are_refused_by_their_keys() {
    on_host(|host| {
        let image = image(host)?;
        let checked = sections("off", "1s");
        for (from, to, key, remedy) in [
            ("'/health'", "'health'", "http_service.checks[0].path", "path = \"/health\""),
            ("path =", "protocol = 'https'\n    path =", "http_service.checks[0].protocol", "tcp"),
        ] {
            let dir = host.app_dir("web", &fly_toml("web", &image, &checked.replace(from, to)))?;
            let refused = host.fly_in(&dir, &["deploy"])?;
            refused.says(&[key, remedy])?;
            refused.fails()?;
        }
        host.fly(&["apps", "create", "web"])?.ok()?;
        let check = json!({"type": "http", "path": "health"});
        let config = json!({"image": "x", "services": [{"internal_port": 80, "checks": [check]}]});
        let body = json!({ "config": config }).to_string();
        let path = "/v1/apps/web/machines";
        let answer = host.request("POST", path, "application/json", body.as_bytes())?;
        ensure!(
            answer.status == 422 && answer.body.contains("services[0].checks[0]"),
            "{answer:?}"
        );
        Ok(())
    });
}

fn only_machine(host: &Host) -> Result<Machine> {
    let machines = host.machines("web")?;
    ensure!(machines.len() == 1, "not one Machine: {machines:?}");
    machines.into_iter().next().context("no Machine")
}

fn exec(host: &Host, id: &str, command: &str) -> Result<Output> {
    host.fly(&["machine", "exec", id, command, "-a", "web"])
}

/// Waits until the only check of a Machine is like this.
fn wait_check(host: &Host, id: &str, status: &str) -> Result<()> {
    wait_until(&format!("a check that is {status}"), SOON, || {
        let machines = host.machines("web")?;
        let machine = machines.iter().find(|it| it.id == id).context("it is gone")?;
        Ok((machine.value["checks"][0]["status"] == status).then_some(()))
    })
}

/// Many requests, and one Machine that answers all of them.
fn check_answered_by(host: &Host, address: &str, id: &str) -> Result<()> {
    let mut seen = BTreeSet::new();
    for _ in 0..30 {
        let answer = host.get(address, 80, "/")?;
        ensure!(answer.status == 200, "{answer:?}");
        seen.insert(answer.body.trim().to_owned());
    }
    ensure!(seen == BTreeSet::from([format!("I am {id}.")]), "not only {id}: {seen:?}");
    Ok(())
}
