//! One deploy of an app at a time, also when there is no Machine to lease yet.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Output, wait_until};
use serde_json::{Value, json};

use crate::stage::{AWAKE, SOON, fly_toml, hello_image, on_host, shell_image};

/// Takes its time to come up, so that a deploy is still at work when the next one comes.
const SLOW: &str = "busybox sleep 5; exec busybox httpd -f -p 0.0.0.0:8081 -h /tmp";

/// An app of the image that was never deployed.
fn undeployed(host: &Host) -> Result<std::path::PathBuf> {
    let image = shell_image(host, "slow", SLOW)?;
    let dir = host.app_dir("web", &fly_toml("web", &image, AWAKE))?;
    let args = ["launch", "--flycast", "--copy-config", "--name", "web", "--no-deploy", "-y"];
    host.fly_in(&dir, &args)?.ok()?;
    Ok(dir)
}

fn begin_deploy(host: &Host, dir: &std::path::Path) -> Result<Child> {
    let mut command = host.fly_command(dir, &["deploy"]);
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

fn end_deploy(child: Child) -> Result<Output> {
    Ok(Output::new("fly deploy".to_owned(), &child.wait_with_output()?))
}

/// Status of each release, newest first.
fn statuses(host: &Host) -> Result<Vec<String>> {
    let answer = host.api("/api/v1/apps/web/releases?limit=9")?;
    let releases = answer["releases"].as_array().context("no list")?;
    Ok(releases.iter().filter_map(|it| it["status"].as_str().map(str::to_owned)).collect())
}

fn wait_running(host: &Host) -> Result<()> {
    wait_until("a release in progress", SOON, || {
        Ok(statuses(host)?.iter().any(|status| status == "running").then_some(()))
    })
}

#[test]
fn of_two_first_deploys_at_once_exactly_one_makes_machines() {
    on_host(|host| {
        let dir = undeployed(host)?;
        let both = [begin_deploy(host, &dir)?, begin_deploy(host, &dir)?];
        let ended = both.into_iter().map(end_deploy).collect::<Result<Vec<_>>>()?;
        let (done, refused): (Vec<_>, Vec<_>) =
            ended.into_iter().partition(|output| output.status.success());
        ensure!(done.len() == 1, "{} of two deploys succeeded: {refused:?}", done.len());
        for output in refused {
            output.says(&[
                "lease on app web currently held by uid 0",
                "since",
                "nothing was deployed",
            ])?;
            output.fails()?;
        }
        ensure!(host.machines("web")?.len() == 2, "{:?}", host.machines("web")?);
        ensure!(host.ips("web")?.len() == 1, "{:?}", host.ips("web")?);
        ensure!(statuses(host)? == ["complete"], "{:?}", statuses(host)?);
        Ok(())
    });
}

#[test]
fn a_first_deploy_that_died_ends_by_itself_also_across_a_restart_of_the_server() {
    on_host(|host| {
        let dir = undeployed(host)?;
        let first = begin_deploy(host, &dir)?;
        wait_running(host)?;
        let mut fly = host.perch_processes("fly").into_iter();
        let deploy = fly.find(|it| it.args.iter().any(|arg| arg == "deploy"));
        deploy.context("no deploy runs")?.kill()?;
        end_deploy(first)?;
        let refused = host.fly_in(&dir, &["deploy"])?;
        refused.says(&["currently held by uid 0"])?;
        refused.fails()?;
        host.kill_server()?;
        host.start_server()?;
        let refused = host.fly_in(&dir, &["deploy"])?;
        refused.says(&["currently held by uid 0"])?;
        wait_until("the dead deploy to be given up", SOON, || {
            Ok((statuses(host)? == ["interrupted"]).then_some(()))
        })?;
        host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
        ensure!(statuses(host)? == ["complete", "interrupted"], "{:?}", statuses(host)?);
        Ok(())
    });
}

#[test]
fn a_deploy_that_the_server_left_alone_holds_up_the_next_one_for_a_while_only() {
    on_host(|host| {
        let dir = undeployed(host)?;
        let first = begin_deploy(host, &dir)?;
        wait_running(host)?;
        wait_until("its first Machine", SOON, || {
            Ok((!host.machines("web")?.is_empty()).then_some(()))
        })?;
        host.kill_server()?;
        host.start_server()?;
        // It may have asked while nobody answered; then it says so, and its release is failed, not lost.
        let output = end_deploy(first)?;
        let expected = if output.status.success() { "complete" } else { "failed" };
        let seen = statuses(host)?;
        ensure!(seen == [expected] || seen == ["running"], "{seen:?} after: {output}");
        wait_until("the next deploy to be let in", SOON, || {
            host.fly_in(&dir, &["deploy", "--ha=false"])?.ok().map(Some)
        })?;
        Ok(())
    });
}

/// What a deploy does before it lists Machines; the release's id.
fn begun_release(host: &Host) -> Result<String> {
    let body = json!({
        "app_name": "web", "image": "registry.perch/web:1", "strategy": "ROLLING", "definition": {"app": "web"},
    });
    let body = body.to_string();
    let made = host.request("POST", "/api/v1/releases", "application/json", body.as_bytes())?;
    ensure!(made.status == 201, "{made:?}");
    let made: Value = serde_json::from_str(&made.body)?;
    let id = made["release"]["id"].as_str().context("no id")?.to_owned();
    move_release(host, &id, "running")?;
    Ok(id)
}

fn move_release(host: &Host, id: &str, status: &str) -> Result<()> {
    let (path, body) = (format!("/api/v1/releases/{id}"), json!({"status": status}).to_string());
    let moved = host.request("PATCH", &path, "application/json", body.as_bytes())?;
    ensure!(moved.status == 200, "{moved:?}");
    Ok(())
}

#[test]
fn nothing_is_scaled_while_a_deploy_is_at_work_also_where_no_machine_is_yet() {
    on_host(|host| {
        let scale = |host: &Host| host.fly(&["scale", "count", "3", "--yes", "-a", "web"]);
        host.fly(&["apps", "create", "web"])?.ok()?;
        let first = begun_release(host)?;
        let refused = scale(host)?;
        refused.says(&["no complete releases"])?;
        refused.fails()?;
        move_release(host, &first, "failed")?;
        let image = hello_image(host)?;
        let dir = host.app_dir("web", &fly_toml("web", &image, AWAKE))?;
        host.fly_in(&dir, &["deploy", "--flycast"])?.ok()?;
        host.fly(&["scale", "count", "0", "--yes", "-a", "web"])?.ok()?;
        wait_until("no Machine", SOON, || Ok(host.machines("web")?.is_empty().then_some(())))?;
        // There is a complete release to copy from, and nothing to lease.
        let next = begun_release(host)?;
        let refused = scale(host)?;
        refused.says(&["is deploying web", "Try again when it is done"])?;
        refused.fails()?;
        ensure!(host.machines("web")?.is_empty(), "{:?}", host.machines("web")?);
        move_release(host, &next, "interrupted")?;
        scale(host)?.ok()?;
        ensure!(host.machines("web")?.len() == 3, "{:?}", host.machines("web")?);
        Ok(())
    });
}
