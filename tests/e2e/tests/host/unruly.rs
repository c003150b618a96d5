//! Programs that do not do what a program in a Machine should: each has a clear answer, and nobody else pays.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Response, wait_until};

use crate::limits::{in_state, last_exit, only, run_app};
use crate::stage::{AWAKE, SOON, check_answer, fly_toml, on_host, private_app, shell_image};

/// A service for a program that may disappoint its callers; they wait a second.
const SERVICE: &str = "\
[http_service]
  internal_port = 8081
  force_https = false
  auto_stop_machines = \"suspend\"
  auto_start_machines = true
  start_timeout = \"1s\"
";

#[test]
fn a_crash_loop_backs_off_ends_and_is_named() {
    on_host(|host| {
        let retries = "[[restart]]\n  policy = 'on-failure'\n  retries = 2\n";
        run_app(host, "crashes", "exit 7", retries)?;
        let machine = in_state(host, "crashes", "stopped")?;
        let events = machine.value["events"].to_string();
        ensure!(events.contains("it keeps ending: restart 2 within 5 minutes"), "{events}");
        ensure!(machine.events("exit") == 3, "MA-21: not two restarts: {machine:?}");
        ensure!(last_exit(&machine)?["exit_code"] == 7, "{machine:?}");
        for command in [vec!["status"], vec!["logs", "--no-tail"]] {
            let said = host.fly(&[&command[..], &["-a", "crashes"]].concat())?.ok()?;
            ensure!(said.contains("it was restarted 2 times within 5 minutes"), "{said}");
        }
        let of = |region| host.fly(&["logs", "--no-tail", "-a", "crashes", "--region", region]);
        ensure!(of("lcl")?.ok()?.contains("it was restarted"), "nothing of its region");
        ensure!(!of("ams")?.ok()?.contains("it was restarted"), "lines of another region");
        Ok(())
    });
}

#[test]
fn a_policy_of_never_means_never_and_always_means_also_after_success() {
    on_host(|host| {
        run_app(host, "never", "exit 7", "[[restart]]\n  policy = 'never'\n")?;
        run_app(host, "always", "exit 0", "[[restart]]\n  policy = 'always'\n")?;
        run_app(host, "usual", "exit 0", "")?;
        wait_until("a second run", SOON, || {
            Ok((2 <= only(host, "always")?.events("start")).then_some(()))
        })?;
        for app in ["never", "usual"] {
            let machine = in_state(host, app, "stopped")?;
            ensure!(machine.events("start") == 1, "{app}, MA-25: {machine:?}");
        }
        Ok(())
    });
}

#[test]
fn who_ignores_signals_is_killed_when_its_time_is_over() {
    on_host(|host| {
        let script = "trap '' INT TERM; while :; do busybox sleep 1000; done";
        run_app(host, "deaf", script, "kill_signal = 'SIGTERM'\nkill_timeout = '1s'\n")?;
        let machine = in_state(host, "deaf", "started")?;
        let began = Instant::now();
        host.fly(&["machine", "stop", &machine.id, "-a", "deaf", "-w", "30s"])?.ok()?;
        let took = began.elapsed();
        ensure!(Duration::from_secs(1) <= took, "AS-51: it had {took:?}");
        let exit = last_exit(&in_state(host, "deaf", "stopped")?)?;
        ensure!(exit["exit_code"] == 137 && exit["requested_stop"] == true, "{exit}");
        ensure!(exit["oom_killed"] != true, "{exit}");
        Ok(())
    });
}

#[test]
fn callers_of_a_program_that_never_listens_are_told_so() {
    check_told("exec busybox sleep 1000", "8081");
}

#[test]
fn callers_of_a_program_that_forks_away_are_told_so() {
    on_host(|host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        let address = unruly(host, "busybox httpd -f -p 8081 & exit 0")?;
        // Whom the program takes in the moment before its end, it lets go without a word.
        let taken = |it: &Response| it.status == 502 && it.body.starts_with("PU02");
        let answer = wait_until("an answer of no program", SOON, || {
            Ok(Some(host.get(&address, 80, "/")?).filter(|answer| !taken(answer)))
        })?;
        ensure!(answer.status == 503, "{answer:?}");
        in_state(host, "unruly", "stopped")?;
        for command in [vec!["status"], vec!["logs", "--no-tail"]] {
            let said = host.fly(&[&command[..], &["-a", "unruly"]].concat())?.ok()?;
            ensure!(said.contains("a server must stay in the foreground"), "{said}");
        }
        check_answer(&host.get(&neighbour, 80, "/")?, "Hello")
    });
}

#[test]
fn callers_of_a_program_that_closes_its_socket_before_it_sleeps_are_told_so() {
    on_host(|host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        let script = "busybox httpd -f -p 8081 & echo $! >/tmp/server; exec busybox sleep 1000";
        let address = unruly(host, script)?;
        let id = only(host, "unruly")?.id;
        let close = "busybox sh -c 'busybox kill $(busybox cat /tmp/server)'";
        wait_until("the end of its server", SOON, || {
            // It may sleep again before it is joined.
            ensure!(host.get(&address, 80, "/")?.status != 503, "it does not listen yet");
            host.fly(&["machine", "exec", &id, close, "-a", "unruly"])?.ok().map(Some)
        })?;
        for _ in 0..2 {
            host.wait_all("unruly", "suspended", SOON)?;
            let resumes = only(host, "unruly")?.events("resume");
            let began = Instant::now();
            let answer = host.get(&address, 80, "/")?;
            ensure!(answer.status == 503 && answer.body.contains("PR03"), "{answer:?}");
            ensure!(answer.body.contains("8081"), "{answer:?}");
            ensure!(began.elapsed() < SOON, "told after {:?}", began.elapsed());
            check_answer(&host.get(&neighbour, 80, "/")?, "Hello")?;
            let now = only(host, "unruly")?.events("resume");
            ensure!(now == resumes + 1, "it was not asleep: {resumes}, {now}");
        }
        Ok(())
    });
}

/// Deploys such a program; its callers get a 503 that says this, while a neighbour answers.
fn check_told(script: &str, told: &str) {
    on_host(|host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        let address = unruly(host, script)?;
        let said = wait_until("an answer that says why", SOON, || {
            let answer = host.get(&address, 80, "/")?;
            Ok((answer.status == 503).then_some(answer.body))
        })?;
        ensure!(said.contains(told), "{said}");
        let began = Instant::now();
        check_answer(&host.get(&neighbour, 80, "/")?, "Hello")?;
        ensure!(began.elapsed() < Duration::from_secs(10), "the neighbour waited");
        Ok(())
    });
}

/// The Flycast address of an app whose deploy may have failed.
fn unruly(host: &Host, script: &str) -> Result<String> {
    let image = shell_image(host, "unruly", script)?;
    let dir = host.app_dir("unruly", &fly_toml("unruly", &image, SERVICE))?;
    host.fly(&["apps", "create", "unruly"])?.ok()?;
    host.fly(&["ips", "allocate-v6", "--private", "-a", "unruly"])?.ok()?;
    drop(host.fly_in(&dir, &["deploy", "--ha=false", "--detach"])?);
    host.flycast("unruly").context("no address")
}
