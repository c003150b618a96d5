//! Programs that join a started Machine: `fly machine exec` and its call.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::stage::{
    AWAKE, SNIPPET, SOON, machine_processes, on_host, one_machine_of, shell_image, wait_asleep,
};
use crate::suspend::SUSPENDS;

/// A server with a shell beside it.
pub(crate) const SERVES: &str = "mkdir -p /www; echo hello >/www/index.html; \
    exec busybox httpd -f -p 0.0.0.0:8081 -h /www";

/// Deploys an app of one Machine with a shell; the Machine's id.
pub(crate) fn app(host: &Host, sections: &str) -> Result<String> {
    let image = shell_image(host, "serves", SERVES)?;
    one_machine_of(host, "web", &image, sections)?;
    Ok(host.machines("web")?.first().context("no Machine")?.id.clone())
}

/// How many processes of a Machine run this program.
pub(crate) fn count(host: &Host, id: &str, program: &str) -> Result<usize> {
    let listed = host.api(&format!("/v1/apps/web/machines/{id}/ps"))?;
    let all = listed.as_array().context("a list")?;
    let is_it =
        |it: &&serde_json::Value| it["command"].as_str().is_some_and(|it| it.contains(program));
    Ok(all.iter().filter(is_it).count())
}

/// The program itself that a command of the test's is the wrapper of.
pub(crate) fn innermost(mut pid: u32) -> Result<Pid> {
    let children = |pid: u32| {
        let file = format!("/proc/{pid}/task/{pid}/children");
        std::fs::read_to_string(file).unwrap_or_default()
    };
    while let Some(child) = children(pid).split_ascii_whitespace().next() {
        pid = child.parse()?;
    }
    Pid::from_raw(pid.cast_signed()).context("a process id")
}

#[test]
fn a_program_joins_with_the_environment_of_the_machine_and_is_told_of() {
    on_host(|host| {
        let id = app(host, AWAKE)?;
        host.fly(&["secrets", "set", "KEY=hunter2", "-a", "web"])?.ok()?;
        let script = "sh -c 'echo $KEY $FLY_APP_NAME $(hostname); echo sorry >&2; exit 3'";
        let ran = host.fly(&["machine", "exec", &id, script])?;
        ensure!(ran.status.success(), "as flyctl: {ran}");
        ensure!(ran.stdout == format!("Exit code: 3\nhunter2 web {id}\n"), "{ran}");
        ensure!(ran.stderr.contains("sorry"), "{ran}");
        let shown =
            host.fly(&["machine", "exec", &id, "busybox id -u", "--json", "-a", "web"])?.json()?;
        ensure!(shown == json!({"exit_code": 0, "stdout": "0\n", "stderr": ""}), "{shown}");
        let missing = host.fly(&["machine", "exec", &id, "nothing"])?;
        missing.says(&["Exit code: 127", "was not found in PATH"])?;

        let path = format!("/v1/apps/web/machines/{id}/exec");
        let big = "head -c 3000000 /dev/zero | tr '\\\\0' x";
        let body = format!(r#"{{"command": ["sh", "-c", "cat; {big}"], "stdin": "given"}}"#);
        let post = |body: &str| host.request("POST", &path, "application/json", body.as_bytes());
        let answer = post(&body)?;
        ensure!(answer.status == 200 && answer.body.contains("\"givenxxx"), "{}", answer.status);
        ensure!(answer.body.contains("was cut here"), "an answer is bounded");
        let refused = |body: &str| post(body).map(|answer| answer.status);
        ensure!(refused("{}")? == 422 && refused(r#"{"cmd": "'"}"#)? == 422);
        ensure!(refused(r#"{"cmd": "a", "container": "b"}"#)? == 422);
        ensure!(refused(r#"{"command": ["a\u0000"]}"#)? == 422);
        Ok(())
    });
}

#[test]
fn a_program_that_takes_too_long_is_killed_and_so_is_one_whose_caller_or_server_goes() {
    on_host(|host| {
        let id = app(host, AWAKE)?;
        let late =
            host.fly(&["machine", "exec", &id, "busybox sleep 1000", "--timeout", "1"])?.fails()?;
        ensure!(late.contains("did not end within 1 s"), "{late}");
        let gone = |host: &Host| {
            wait_until("its end", SOON, || Ok((count(host, &id, "sleep 1000")? == 0).then_some(())))
        };
        gone(host)?;
        for victim in ["caller", "server"] {
            let mut command =
                host.fly_command(host.dir(), &["machine", "exec", &id, "busybox sleep 1000"]);
            let mut caller = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            wait_until("its start", SOON, || {
                Ok((count(host, &id, "sleep 1000")? == 1).then_some(()))
            })?;
            if victim == "server" {
                host.kill_server()?;
                host.start_server()?;
            } else {
                kill_process(innermost(caller.id())?, Signal::KILL)?;
            }
            caller.wait()?;
            gone(host).context(victim)?;
        }
        ensure!(host.states("web")? == ["started"], "the Machine is as it was");
        Ok(())
    });
}

#[test]
fn a_program_that_joined_keeps_no_machine_awake_and_joins_none_that_sleeps() {
    on_host(|host| {
        let id = app(host, SNIPPET)?;
        let mut command =
            host.fly_command(host.dir(), &["machine", "exec", &id, "busybox sleep 1000"]);
        host.fly(&["machine", "start", &id])?.ok()?;
        let mut caller = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        wait_asleep(host, "web").context("AS-27: exec is no load")?;
        caller.wait()?;
        let refused = host.fly(&["machine", "exec", &id, "true"])?.fails()?;
        ensure!(
            refused.contains("is stopped") && refused.contains("fly machine start"),
            "{refused}"
        );
        ensure!(host.states("web")? == ["stopped"] && machine_processes(host, &id).is_empty());
        let path = format!("/v1/apps/web/machines/{id}/exec");
        let answer = host.request("POST", &path, "application/json", br#"{"cmd": "true"}"#)?;
        ensure!(answer.status == 412, "{answer:?}");
        Ok(())
    });
}

#[test]
fn a_frozen_machine_is_joined_by_nobody() {
    on_host(|host| {
        let id = app(host, SUSPENDS)?;
        host.wait_all("web", "suspended", SOON)?;
        let refused = host.fly(&["machine", "exec", &id, "true"])?.fails()?;
        ensure!(refused.contains("is suspended"), "{refused}");
        let refused = host.fly(&["ssh", "console", "-a", "web"])?.fails()?;
        ensure!(refused.contains("has no started VMs"), "{refused}");
        ensure!(host.states("web")? == ["suspended"], "it was woken");
        Ok(())
    });
}
