//! Commands on single Machines, as users type them, and what is then true of the world.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Machine, wait_until};
use serde_json::Value;

use crate::stage::{
    AWAKE, SNIPPET, SOON, check_answer, machine_processes, on_host, private_app, shell_image,
    wait_asleep,
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
        host.fly(&["machine", "wait", &first, "--state", "destroyed", "-a", "web", "-w", "30s"])?
            .ok()?;
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

/// Runs an image of busybox in a new Machine of the app, which is made if it is not there; answers the Machine's ID.
fn run_script(host: &Host, script: &str, flags: &[&str]) -> Result<String> {
    let image = shell_image(host, &format!("s{}", script.len()), script)?;
    let args = [&["machine", "run", &image, "-a", "web"], flags].concat();
    let said = host.fly(&args)?.ok()?;
    let id = said.lines().find_map(|line| line.strip_prefix(" Machine ID: "));
    Ok(id.context("no ID is told")?.to_owned())
}

#[test]
fn run_makes_one_that_serves_and_clone_and_update_make_and_change_what_they_say() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        let serve = "mkdir -p /www; echo $WORD $(cat /etc/greeting) > /www/index.html; \
                     exec busybox httpd -f -p 0.0.0.0:8081 -h /www";
        let flags = [
            "-p",
            "80:8081/tcp:http",
            "--autostart",
            "-e",
            "WORD=one",
            "-m",
            "a=b",
            "--file-literal",
            "/etc/greeting=hello",
        ];
        let first = run_script(host, serve, &[&flags[..], &["--vm-memory", "512"]].concat())?;
        host.fly(&["ips", "allocate-v6", "--private", "-a", "web"])?.ok()?;
        let address = host.flycast("web")?;
        check_answer(&host.get(&address, 80, "/")?, "one hello")?;

        let said = host.fly(&["machine", "clone", &first, "-a", "web", "--name", "twin"])?.ok()?;
        ensure!(said.contains("Machine has been successfully cloned!"), "{said}");
        let all = host.machines("web")?;
        let second = all.iter().find(|it| it.id != first).context("no clone")?.id.clone();
        let (old, new) = (config(host, &first)?, config(host, &second)?);
        ensure!(old["config"] == new["config"] && new["name"] == "twin", "{old} and {new}");
        ensure!(new["config"]["guest"]["memory_mb"] == 512, "{new}");
        ensure!(old["private_ip"] != new["private_ip"], "the clone has the same address");

        // The same ID, another run, another config; the other one is left alone.
        let update = ["machine", "update", &first, "-y", "-e", "WORD=two", "--vm-cpus", "2"];
        let said = host.fly(&update)?.ok()?;
        ensure!(said.contains(&format!("Machine {first} updated successfully!")), "{said}");
        let now = config(host, &first)?;
        ensure!(now["instance_id"] != old["instance_id"] && now["state"] == "started", "{now}");
        ensure!(now["config"]["guest"]["cpus"] == 2 && now["config"]["metadata"]["a"] == "b");
        ensure!(config(host, &second)?["config"] == new["config"], "the clone was changed");
        host.fly(&["machine", "stop", &second, "-w", "30s"])?.ok()?;
        check_answer(&host.get(&address, 80, "/")?, "two hello")?;
        let skip = ["machine", "update", &second, "-y", "-e", "WORD=three", "--skip-start"];
        host.fly(&skip)?.ok()?;
        ensure!(machine(host, &second)?.state == "stopped", "--skip-start started it");
        // A deploy's table knows nothing of them.
        let status = host.fly(&["status", "-a", "web"])?.ok()?;
        ensure!(status.contains("Found machines that aren't part of Fly Launch"), "{status}");
        let unknown = host.fly(&["machine", "clone", &first, "-a", "web", "-r", "xyz"])?.fails()?;
        ensure!(unknown.contains("region xyz has no host"), "{unknown}");
        ensure!(host.machines("web")?.len() == 2, "something half-made is left");
        Ok(())
    });
}

#[test]
fn a_machine_of_run_rm_goes_with_its_program_also_when_the_server_dies_meanwhile() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        let one = run_script(host, "echo hello; exit 0", &["--rm"])?;
        let gone = |host: &Host, id: &str| {
            let left = host.machines("web")?.iter().any(|machine| machine.id == id);
            Ok((!left && !host.data_dir().join("machines").join(id).exists()).then_some(()))
        };
        wait_until("it to go with its program", SOON, || gone(host, &one))?;
        // The next server may find it over, or see its end.
        for is_over in [true, false] {
            let two = run_script(host, "trap 'exit 3' TERM; sleep 600 & wait", &["--rm"])?;
            host.kill_server()?;
            let init = machine_processes(host, &two).iter().map(|it| it.pid).min();
            let init = rustix::process::Pid::from_raw(init.context("it does not run")?);
            let kill = rustix::process::Signal::KILL;
            rustix::process::kill_process(init.context("no pid")?, kill)?;
            let dir = format!("machines/{two}");
            wait_until("the end of its shim", SOON, || {
                let shims = host.perch_processes("shim");
                let ended = !shims.iter().flat_map(|it| &it.args).any(|arg| arg.ends_with(&dir));
                Ok((ended || !is_over).then_some(()))
            })?;
            host.start_server()?;
            wait_until("it to go at the next start", SOON, || gone(host, &two))?;
        }
        Ok(())
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

/// Refused for a Machine in a state, with the parts that the refusal has.
#[test]
fn what_makes_no_sense_in_a_state_is_refused_with_the_state_and_changes_nothing() {
    on_host(|host| {
        let (_, first, second) = two_awake(host)?;
        host.fly(&["machine", "stop", &first, "-w", "30s"])?.ok()?;
        let call = |method: &str, id: &str, what: &str, body: &str| {
            let path = format!("/v1/apps/web/machines/{id}{what}");
            host.request(method, &path, "application/json", body.as_bytes())
        };
        let check = |answer: perch_testkit::Response, status: u16, part: &str| {
            ensure!(answer.status == status && answer.body.contains(part), "{answer:?}: no {part}");
            Ok(())
        };
        check(
            call("POST", &first, "/suspend", "")?,
            412,
            "unable to suspend machine: it is stopped",
        )?;
        check(call("POST", &first, "/signal", r#"{"signal":9}"#)?, 412, "it is stopped")?;
        check(call("GET", &first, "/ps", "")?, 412, "not running")?;
        check(call("GET", &first, "/wait?state=started&timeout=1", "")?, 408, "was not started")?;
        check(call("GET", &first, "/wait?state=happy", "")?, 400, "happy")?;
        check(call("DELETE", &second, "", "")?, 412, "is started; stop it first")?;
        check(call("DELETE", &first, "/lease", "")?, 404, " lease not found")?;
        // What is so already is no mistake, and is done once.
        let launches = |id: &str| Ok::<_, anyhow::Error>(machine(host, id)?.events("launch"));
        let before = launches(&second)?;
        for _ in 0..2 {
            check(call("POST", &second, "/start", "")?, 200, "started")?;
            check(call("POST", &first, "/stop", "")?, 200, "")?;
        }
        ensure!(launches(&second)? == before, "a second start began another run");
        let both = std::thread::scope(|scope| {
            let starts = [0, 1].map(|_| scope.spawn(|| call("POST", &first, "/start", "")));
            starts.map(|start| start.join())
        });
        for answer in both {
            let answer = answer.ok().context("a caller panicked")??;
            check(answer, 200, "previous_state")?;
        }
        host.fly(&["machine", "wait", &first, "--state", "started", "-w", "30s"])?.ok()?;
        ensure!(launches(&first)? == 2, "two starts at once began {} runs", launches(&first)? - 1);

        check(call("POST", &first, "/lease", r#"{"ttl":60}"#)?, 201, "nonce")?;
        for (method, what, body) in [
            ("POST", "/start", ""),
            ("POST", "/stop", ""),
            ("POST", "/suspend", ""),
            ("POST", "/restart", ""),
            ("POST", "/cordon", ""),
            ("POST", "/signal", r#"{"signal":9}"#),
            ("POST", "/metadata/a", r#"{"value":"b"}"#),
            ("POST", "/lease", ""),
            ("DELETE", "/lease", ""),
            ("DELETE", "?kill=true", ""),
        ] {
            check(call(method, &first, what, body)?, 409, "lease currently held by uid 0")?;
        }
        check(call("DELETE", &first, "/lease?force=true", "")?, 200, "")?;
        check(call("DELETE", &first, "?kill=true", "")?, 200, "")?;
        wait_until("it to be gone", SOON, || {
            Ok((call("POST", &first, "/start", "")?.status == 404).then_some(()))
        })?;
        for what in ["/start", "/stop", "/suspend", "/restart", "/cordon", "/lease"] {
            check(call("POST", &first, what, "")?, 404, "machine not found")?;
        }
        check(call("GET", &first, "/wait?state=destroyed&timeout=1", "")?, 200, "")?;
        check(call("GET", &first, "/wait?state=stopped&timeout=1", "")?, 404, "machine not found")
    });
}
