//! Machines that stand by for others.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, wait_until};

use crate::stage::{SOON, fly_toml, machine_processes, on_host, shell_image};

#[test]
fn a_standby_is_started_once_for_each_failure_of_another_also_when_no_server_saw_it() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        host.fly(&["apps", "create", "other"])?.ok()?;
        // Fails when it is told to, and else runs.
        let image = shell_image(
            host,
            "job",
            "exit_with=${EXIT_WITH:-}; [ -n \"$exit_with\" ] && exit $exit_with; exec sleep 600",
        )?;
        let make = |host: &Host, verb: &str, flags: &[&str]| {
            let fixed = ["machine", verb, &image, "-a", "web"];
            let said = host.fly(&[&fixed[..], flags].concat())?.ok()?;
            let id = said.lines().find_map(|line| line.strip_prefix(" Machine ID: "));
            Ok::<_, anyhow::Error>(id.context("no ID is told")?.to_owned())
        };
        let first = make(host, "run", &["--restart", "no"])?;
        let standby = make(host, "run", &["--restart", "no", "--standby-for", &first])?;
        ensure!(machine(host, &standby)?.state == "created", "it was started");
        for (app, bad) in [("web", "gone"), ("other", &first)] {
            let run = ["machine", "create", &image, "-a", app, "--standby-for", bad];
            let refused = host.fly(&run)?;
            refused.says(&["config.standbys", bad])?;
            refused.fails()?;
        }
        let itself = ["machine", "update", &standby, "-a", "web", "-y", "--standby-for", &standby];
        ensure!(host.fly(&itself)?.fails()?.contains("cannot stand by for itself"));

        // A stop is no failure, a crash is.
        host.fly(&["machine", "stop", &first, "-a", "web", "-w", "30s"])?.ok()?;
        let update = ["machine", "update", &first, "-a", "web", "-y", "--skip-start", "-e"];
        host.fly(&[&update[..], &["EXIT_WITH=3"]].concat())?.ok()?;
        ensure!(machine(host, &standby)?.events("launch") == 0, "a stop started it");
        start(host, &first)?;
        wait_started(host, &standby, 1)?;
        let told = format!("standby for {first}, which has failed");
        ensure!(machine(host, &standby)?.value.to_string().contains(&told), "it does not say why");

        // Stopped by hand it stays down until there is another failure, which no server sees here.
        host.fly(&["machine", "stop", &standby, "-a", "web", "-w", "30s"])?.ok()?;
        host.fly(&[&update[..], &["EXIT_WITH="]].concat())?.ok()?;
        start(host, &first)?;
        host.fly(&["machine", "wait", &first, "-a", "web", "--state", "started", "-w", "30s"])?
            .ok()?;
        ensure!(machine(host, &standby)?.events("launch") == 1, "nobody has failed since");
        host.kill_server()?;
        let init = machine_processes(host, &first).iter().map(|it| it.pid).min();
        let init = rustix::process::Pid::from_raw(init.context("it does not run")?);
        rustix::process::kill_process(init.context("no pid")?, rustix::process::Signal::KILL)?;
        host.start_server()?;
        wait_started(host, &standby, 2)
    });
}

#[test]
fn a_deploy_makes_a_standby_of_a_group_without_services_that_takes_over_and_is_cloned() {
    on_host(|host| {
        let image = shell_image(host, "worker", "while :; do sleep 0.1; done")?;
        let dir = host.app_dir("web", &fly_toml("web", &image, ""))?;
        host.fly(&["apps", "create", "web"])?.ok()?;
        let launched = host.fly_in(&dir, &["deploy", "--smoke-checks=false"])?;
        launched.says(&["1 \"app\" machine and 1 standby machine for it"])?;
        let (first, standby) = pair(host)?;
        launched.says(&[&format!("Creating a standby machine for {}", first.id)])?;
        ensure!(standby.value["config"]["standbys"] == serde_json::json!([first.id]));
        ensure!(standby.state == "created" && machine_processes(host, &standby.id).is_empty());
        let status = host.fly(&["status", "-a", "web"])?.ok()?;
        ensure!(status.contains("app†"), "{status}");

        // Neither a deploy nor a stop of the first starts it.
        host.fly_in(&dir, &["deploy", "--smoke-checks=false"])?.ok()?;
        host.fly(&["machine", "stop", &first.id, "-a", "web", "-w", "30s"])?.ok()?;
        start(host, &first.id)?;
        let clone = host.fly(&["machine", "clone", &standby.id, "-a", "web"])?.ok()?;
        ensure!(clone.contains("successfully cloned") && !clone.contains("to start"), "{clone}");
        let all = host.machines("web")?;
        let launches: Vec<_> = all.iter().map(|it| (it.id.as_str(), it.events("launch"))).collect();
        ensure!(launches.iter().filter(|(_, count)| 0 < *count).count() == 1, "{launches:?}");
        let clone =
            launches.iter().find(|(id, _)| ![&first.id, &standby.id].contains(&&(*id).to_owned()));
        let clone = clone.context("no clone")?.0.to_owned();
        ensure!(machine(host, &clone)?.value["config"]["standbys"][0] == *first.id, "it is none");
        host.fly(&["machine", "destroy", &clone, "-a", "web", "--force"])?.ok()?;

        let mut config = first.value["config"].clone();
        config["init"] = serde_json::json!({"exec": ["busybox", "false"]});
        config["restart"] = serde_json::json!({"policy": "no"});
        let body = serde_json::json!({ "config": config }).to_string();
        let path = format!("/v1/apps/web/machines/{}", first.id);
        let answer = host.request("POST", &path, "application/json", body.as_bytes())?;
        ensure!(answer.status == 200, "{answer:?}");
        wait_started(host, &standby.id, 1)?;

        // What stood by for one that is destroyed stays as it is.
        host.fly(&["machine", "stop", &standby.id, "-a", "web", "-w", "30s"])?.ok()?;
        host.fly(&["machine", "destroy", &first.id, "-a", "web", "--force"])?.ok()?;
        host.fly(&["scale", "count", "1", "-a", "web", "-y"])?.ok()?;
        let left = host.machines("web")?;
        ensure!(left.len() == 1 && left[0].id == standby.id && left[0].state == "stopped");
        ensure!(left[0].events("launch") == 1, "it was started: {}", left[0].value);
        Ok(())
    });
}

/// The one that runs, and the other.
fn pair(host: &Host) -> Result<(Machine, Machine)> {
    let mut all = host.machines("web")?;
    all.sort_by_key(|it| it.state != "started");
    let [first, other]: [Machine; 2] = all.try_into().ok().context("a deploy makes two")?;
    Ok((first, other))
}

fn start(host: &Host, id: &str) -> Result<()> {
    let path = format!("/v1/apps/web/machines/{id}/start");
    let answer = host.request("POST", &path, "application/json", b"")?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

/// Waits for this run of it, and no other.
fn wait_started(host: &Host, id: &str, launches: usize) -> Result<()> {
    wait_until("the standby to take over", SOON, || {
        let now = machine(host, id)?;
        ensure!(now.events("launch") <= launches, "it was started too often: {}", now.value);
        Ok((now.state == "started" && now.events("launch") == launches).then_some(()))
    })
}

fn machine(host: &Host, id: &str) -> Result<Machine> {
    host.machines("web")?.into_iter().find(|it| it.id == id).context("it is gone")
}

#[test]
fn a_machine_of_run_rm_goes_when_it_crashes_and_a_volume_of_it_stays() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        host.fly(&["volumes", "create", "data", "-a", "web", "-s", "1", "-y"])?.ok()?;
        let image =
            shell_image(host, "rm", "echo $WORD >> /data/words; sync; exit ${EXIT_WITH:-3}")?;
        let run = |host: &Host, word: &str, flags: &[&str]| {
            let (word, volume) = (format!("WORD={word}"), "data:/data");
            let fixed =
                ["machine", "run", &image, "-a", "web", "--detach", "-v", volume, "-e", &word];
            host.fly(&[&fixed[..], flags].concat())
        };
        // Machines are started one after the other: each finds the volume free again.
        for word in ["one", "two"] {
            run(host, word, &["--rm"])?;
            wait_until("it to go and its volume to be free", SOON, || {
                let volumes = host.fly(&["volumes", "list", "-a", "web", "--json"])?.json()?;
                let is_free = volumes[0]["attached_machine_id"].is_null();
                Ok((is_free && host.machines("web")?.is_empty()).then_some(()))
            })?;
        }
        run(host, "three", &["-e", "EXIT_WITH=0", "--restart", "no"])?;
        let kept = host.machines("web")?;
        ensure!(kept.len() == 1, "without --rm it stays");
        ensure!(kept[0].value["config"]["mounts"][0]["name"] == "data", "{}", kept[0].value);
        Ok(())
    });
}
