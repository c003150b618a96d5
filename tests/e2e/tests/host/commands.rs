//! Commands on single Machines, as users type them, and what is then true of the world.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, wait_until};
use serde_json::Value;

use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, machine_processes, on_host, private_app, wait_asleep,
};

/// Two Machines of the example app that stay awake, and their Flycast address.
fn two_awake(host: &Host) -> Result<(String, String, String)> {
    let address = private_app(host, "web", AWAKE)?;
    let mut ids: Vec<_> = host.machines("web")?.into_iter().map(|machine| machine.id).collect();
    ids.sort();
    let [first, second] = ids.try_into().ok().context("not two Machines")?;
    Ok((address, first, second))
}

fn machine(host: &Host, id: &str) -> Result<Machine> {
    let all = host.machines("web")?;
    all.into_iter().find(|machine| machine.id == id).with_context(|| format!("{id} is gone"))
}

fn config(host: &Host, id: &str) -> Result<Value> {
    host.api(&format!("/v1/apps/web/machines/{id}"))
}

/// The id of the Machine that answers; the example app says so.
fn answerer(host: &Host, address: &str) -> Result<String> {
    let answer = host.get(address, 80, "/env")?;
    check_answer(&answer, "FLY_MACHINE_ID=")?;
    let id = answer.body.lines().find_map(|line| line.strip_prefix("FLY_MACHINE_ID="));
    Ok(id.context("no id")?.to_owned())
}

#[test]
fn a_cordoned_machine_gets_nothing_new_and_is_not_woken_until_it_is_uncordoned() {
    on_host(|host| {
        let (address, first, second) = two_awake(host)?;
        host.fly(&["machine", "cordon", &first])?.ok()?;
        for _ in 0..20 {
            ensure!(answerer(host, &address)? == second, "{first} is cordoned and answers");
        }
        let status = host.fly(&["status", "-a", "web"])?.ok()?;
        ensure!(status.contains(&format!("Cordoned: {first} ")), "{status}");
        // Also after a crash of the server, and asleep.
        host.kill_server()?;
        host.start_server()?;
        host.fly(&["machine", "stop", &first, &second, "-w", "30s"])?.ok()?;
        ensure!(answerer(host, &address)? == second, "the cordoned one was woken");
        ensure!(machine(host, &first)?.state == "stopped", "the cordoned one was started");
        host.fly(&["machine", "stop", &second, "-w", "30s"])?.ok()?;
        host.fly(&["machine", "uncordon", &first])?.ok()?;
        host.fly(&["machine", "cordon", &second])?.ok()?;
        ensure!(answerer(host, &address)? == first, "the uncordoned one does not answer");
        host.fly(&["machine", "start", &second])?.ok()?;
        // A user may start a cordoned one.
        host.fly(&["machine", "wait", &second, "--state", "started", "-w", "30s"])?.ok().map(drop)
    });
}

#[test]
fn restart_kill_and_wait_act_on_the_one_that_is_named() {
    on_host(|host| {
        let (_, first, second) = two_awake(host)?;
        let program = |id: &str| machine_processes(host, id).iter().map(|it| it.pid).max();
        let (before, others) = (program(&first), program(&second));
        let said = host.fly(&["machine", "restart", &first])?.ok()?;
        ensure!(said.contains(&format!("Machine {first} restarted successfully!")), "{said}");
        ensure!(program(&first) != before && program(&first).is_some(), "the same program runs");
        ensure!(program(&second) == others, "another one was restarted");
        ensure!(machine(host, &first)?.events("restart") == 1, "no event of it");

        host.fly(&["machine", "stop", &first, "-w", "30s"])?.ok()?;
        host.fly(&["machine", "restart", &first])?.ok()?;
        ensure!(machine(host, &first)?.state == "started", "a stopped one is not started");

        let before = program(&first);
        let said = host.fly(&["machine", "kill", &first])?.ok()?;
        ensure!(said.contains("kill signal has been sent"), "{said}");
        // It failed, so its policy starts it again.
        wait_until("another program after the kill", SOON, || {
            let now = program(&first);
            Ok((now.is_some() && now != before).then_some(()))
        })?;
        host.fly(&["machine", "wait", &first, "--state", "started", "-w", "30s"])?.ok()?;
        let exit = config(host, &first)?;
        let exit =
            exit["events"].as_array().and_then(|all| all.iter().find(|e| e["type"] == "exit"));
        let exit = &exit.context("no exit event")?["request"]["exit_event"];
        ensure!(exit["guest_signal"] == 9 && exit["requested_stop"] == false, "{exit}");

        let late = host.fly(&["machine", "wait", &second, "--state", "stopped", "-w", "1s"])?;
        late.says(&[&format!("machine {second} did not reach \"stopped\" within 1s")])?;
        late.fails()?;
        let wait = ["machine", "wait", &second, "--state", "stopped", "-w", "30s"];
        let mut waiting = host.fly_command(host.dir(), &wait).spawn()?;
        host.fly(&["machine", "stop", &second])?.ok()?;
        ensure!(waiting.wait()?.success(), "the wait did not end well");
        let settled = host.fly(&["machine", "wait", &second])?.ok()?;
        ensure!(settled.contains("reached state \"stopped\""), "{settled}");
        Ok(())
    });
}

#[test]
fn destroy_takes_a_running_one_by_force_only_and_what_is_gone_refuses_everything() {
    on_host(|host| {
        let (address, first, second) = two_awake(host)?;
        let refused = host.fly(&["machine", "destroy", &first])?;
        refused.says(&[&format!("machine {first} currently started, either stop first")])?;
        refused.fails()?;
        host.fly(&["machine", "destroy", "--force", &first])?.ok()?;
        host.fly(&["machine", "wait", &first, "--state", "destroyed", "-a", "web", "-w", "30s"])
            .map(drop)?;
        wait_until("its processes to be gone", SOON, || {
            Ok(machine_processes(host, &first).is_empty().then_some(()))
        })?;
        let gone = ["start", "stop", "suspend", "restart", "kill", "cordon", "status", "destroy"];
        for command in gone {
            let refused = host.fly(&["machine", command, &first, "-a", "web"])?;
            let said = refused.fails()?;
            let clear = said.contains(&format!("machine {first} was not found in app 'web'"))
                || said.contains(&format!("machine {first} has already been destroyed"));
            ensure!(clear, "{command}: {said}");
        }
        ensure!(answerer(host, &address)? == second, "the other one does not answer");
        // One that is suspended goes without force.
        host.fly(&["machine", "suspend", &second, "-w", "30s"])?.ok()?;
        host.fly(&["machine", "destroy", &second])?.ok()?;
        wait_until("no Machine to be left", SOON, || {
            Ok(host.machines("web")?.is_empty().then_some(()))
        })
    });
}

#[test]
fn leases_are_seen_without_their_nonce_and_cleared_whoever_holds_them() {
    on_host(|host| {
        private_app(host, "web", SNIPPET)?;
        wait_asleep(host, "web")?;
        let id = host.machines("web")?[0].id.clone();
        let lease = format!("/v1/apps/web/machines/{id}/lease");
        let body = r#"{"ttl":600,"description":"x"}"#;
        let leased = host.request("POST", &lease, "application/json", body.as_bytes())?;
        ensure!(leased.status == 201, "{leased:?}");
        let refused = host.fly(&["machine", "start", &id])?;
        refused.says(&["lease currently held by uid 0"])?;
        refused.fails()?;
        let shown = host.fly(&["machine", "leases", "view", &id, "--json"])?.json()?;
        ensure!(shown[&id]["data"]["nonce"] == "", "the nonce is told: {shown}");
        let cleared = host.fly(&["machine", "leases", "clear", &id])?.ok()?;
        ensure!(cleared.contains(&format!("clearing lease for machine {id}")), "{cleared}");
        ensure!(machine(host, &id)?.events("lease cleared") == 1, "nobody is told who cleared it");
        let none = host.fly(&["machine", "leases", "view", &id])?.ok()?;
        ensure!(none.contains("No leases found"), "{none}");
        host.fly(&["machine", "start", &id])?.ok()?;
        Ok(())
    });
}
