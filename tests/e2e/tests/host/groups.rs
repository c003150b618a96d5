//! Process groups: each has a pool of its own, which sleeps and wakes by itself.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, wait_until};

use crate::stage::{SOON, check_answer, fly_toml, on_host, shell_image};

/// Serves its group's name on the port that its command names, or just runs.
const BY_GROUP: &str = "mkdir -p /www; echo group $FLY_PROCESS_GROUP > /www/index.html; \
    exec busybox httpd -f -p 0.0.0.0:8081 -h /www";

const SECTIONS: &str = "\
[processes]
  api = ''
  web = ''
  worker = ''

[[services]]
  internal_port = 8081
  protocol = 'tcp'
  auto_stop_machines = 'stop'
  auto_start_machines = true
  processes = ['web']
  [[services.ports]]
    port = 80
    handlers = ['http']

[[services]]
  internal_port = 8081
  protocol = 'tcp'
  auto_stop_machines = 'stop'
  auto_start_machines = true
  processes = ['api']
  [[services.ports]]
    port = 9000
    handlers = ['http']
";

fn groups(host: &Host) -> Result<Vec<(String, String, String)>> {
    let list = host.fly(&["machine", "list", "--json", "-a", "web"])?.json()?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let one = |machine: &serde_json::Value| {
        let group = text(&machine["config"]["metadata"]["fly_process_group"]);
        (group, text(&machine["state"]), text(&machine["id"]))
    };
    let mut all: Vec<_> = list.as_array().context("a list")?.iter().map(one).collect();
    all.sort();
    Ok(all)
}

fn states(host: &Host, group: &str) -> Result<Vec<String>> {
    Ok(groups(host)?.into_iter().filter(|it| it.0 == group).map(|it| it.1).collect())
}

fn wait_group(host: &Host, group: &str, state: &str) -> Result<()> {
    wait_until(&format!("all of {group} to be {state}"), SOON, || {
        let states = states(host, group)?;
        Ok((!states.is_empty() && states.iter().all(|it| it == state)).then_some(()))
    })
}

#[test]
fn groups_sleep_and_wake_each_by_itself_and_one_without_services_never_sleeps() {
    on_host(|host| {
        let image = shell_image(host, "groups", BY_GROUP)?;
        let dir = host.app_dir("web", &fly_toml("web", &image, SECTIONS))?;
        let args = ["launch", "--flycast", "--copy-config", "--name", "web", "--ha=false", "--yes"];
        host.fly_in(&dir, &args)?.ok()?;
        let address = host.flycast("web")?;
        wait_group(host, "web", "stopped")?;
        wait_group(host, "api", "stopped")?;
        ensure!(states(host, "worker")? == ["started"], "{:?}", groups(host)?);
        check_answer(&host.get(&address, 9000, "/")?, "group api")?;
        ensure!(states(host, "web")? == ["stopped"], "web woke for api: {:?}", groups(host)?);
        wait_group(host, "api", "stopped")?;
        check_answer(&host.get(&address, 80, "/")?, "group web")?;
        ensure!(states(host, "api")? == ["stopped"], "api woke for web: {:?}", groups(host)?);
        ensure!(states(host, "worker")? == ["started"], "{:?}", groups(host)?);
        check_names(host)?;
        let status = host.fly(&["status", "-a", "web"])?.ok()?;
        for group in ["api", "web", "worker"] {
            ensure!(status.lines().any(|line| line.trim_start().starts_with(group)), "{status}");
        }
        let scaled =
            host.fly(&["scale", "count", "web=2", "worker=2", "--yes", "-a", "web"])?.ok()?;
        ensure!(scaled.contains("group 'web'") && scaled.contains("group 'worker'"), "{scaled}");
        let count = |group: &str| Ok::<_, anyhow::Error>(states(host, group)?.len());
        ensure!(
            (count("api")?, count("web")?, count("worker")?) == (1, 2, 2),
            "{:?}",
            groups(host)?
        );
        let before = versions(host)?;
        host.fly_in(&dir, &["deploy", "--process-groups", "worker"])?.ok()?;
        let after = versions(host)?;
        for ((group, id, old), (_, _, new)) in before.iter().zip(&after) {
            let changed = old != new;
            ensure!(changed == (group == "worker"), "{id} of {group} changed: {changed}");
        }
        Ok(())
    });
}

/// PN-25: a group's name is its Machines that are started.
fn check_names(host: &Host) -> Result<()> {
    let all = groups(host)?;
    let worker = &all.iter().find(|it| it.0 == "worker").context("a worker")?.2;
    let machines = host.machines("web")?;
    let own = machines.iter().find(|it| it.id == *worker).context("it is listed")?;
    let answer = crate::dns::ask(host, worker, "worker.process.web.internal")?;
    ensure!(answer.contains(&own.private_ip), "{answer}");
    for machine in machines.iter().filter(|machine| machine.id != *worker) {
        ensure!(!answer.contains(&machine.private_ip), "{} of another group: {answer}", machine.id);
    }
    Ok(())
}

/// Group, id and version of each Machine, by group and id.
fn versions(host: &Host) -> Result<Vec<(String, String, String)>> {
    let machines: Vec<Machine> = host.machines("web")?;
    let version = |id: &str| {
        machines.iter().find(|it| it.id == id).map(|it| it.instance_id.clone()).unwrap_or_default()
    };
    let all = groups(host)?.into_iter().map(|(group, _, id)| {
        let version = version(&id);
        (group, id, version)
    });
    let mut all: Vec<_> = all.collect();
    all.sort();
    Ok(all)
}
