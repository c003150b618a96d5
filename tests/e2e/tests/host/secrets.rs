//! Secrets reach the programs of their app and nothing else, whatever dies or is lost meanwhile.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Output};

use crate::stage::{
    AWAKE, SNIPPET, check_answer, machine_processes, on_host, private_app_of, shell_image,
    wait_asleep,
};

/// Answers with the values of two variables.
const SHOWS: &str = "mkdir -p /www; echo \"key=$KEY other=$OTHER\" > /www/index.html; \
    exec busybox httpd -f -p 0.0.0.0:8081 -h /www";

/// Nothing else on the host has these bytes.
const VALUE: &str = "hunter2-of-the-host-test";

/// An app that shows its secrets; its address.
fn app(host: &Host, sections: &str) -> Result<String> {
    let image = shell_image(host, "shows", SHOWS)?;
    private_app_of(host, "web", &image, sections)
}

fn fly(host: &Host, args: &[&str]) -> Result<Output> {
    host.fly(&[args, &["-a", "web"]].concat())
}

fn check_shown(host: &Host, address: &str, key: &str, other: &str) -> Result<()> {
    check_answer(&host.get(address, 80, "/")?, &format!("key={key} other={other}\n"))
}

/// Runs a command with something to read; its exit code is 0 when the answer is true.
fn reading(host: &Host, args: &[&str], input: &str) -> Result<bool> {
    let mut command = host.fly_command(host.dir(), &[args, &["-a", "web"]].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(input.as_bytes())?;
    Ok(child.wait()?.success())
}

fn key_file(host: &Host) -> PathBuf {
    host.data_dir().with_added_extension("secrets.key")
}

/// Files below a directory that contain the text. Programs that were built for tests take seconds for that.
fn holders(dir: &Path, text: &str) -> Result<Vec<PathBuf>> {
    let found = Command::new("grep").args(["-rlsF", "--", text]).arg(dir).output()?;
    Ok(String::from_utf8(found.stdout)?.lines().map(PathBuf::from).collect())
}

#[test]
fn a_value_is_nowhere_but_in_the_environment_of_the_program() {
    on_host(|host| {
        let address = app(host, AWAKE)?;
        ensure!(reading(host, &["secrets", "set", "KEY=-"], VALUE)?, "it was not set");
        check_shown(host, &address, VALUE, "")?;
        let mut found = holders(host.dir(), VALUE)?;
        // The program's own page in its root, which it wrote itself.
        let own = |file: &PathBuf| file.ends_with("www/index.html");
        ensure!(found.iter().any(own), "nothing would be found");
        found.retain(|file| !own(file));
        ensure!(found.is_empty(), "the value is in {found:?}");
        check_processes(host)?;
        for machine in host.machines("web")? {
            for part in ["", "/events", "/ps", "/metadata"] {
                let path = format!("/v1/apps/web/machines/{}{part}", machine.id);
                ensure!(!host.api(&path)?.to_string().contains(VALUE), "{path}");
            }
        }
        let paths = [
            "/v1/apps/web",
            "/v1/apps/web/machines",
            "/v1/apps/web/secrets",
            "/v1/apps/web/secrets/KEY",
            "/api/v1/apps/web/releases",
            "/api/v1/apps/web/releases/current",
            "/api/v1/apps/web/logs?hold_ms=0",
        ];
        for path in paths {
            ensure!(!host.api(path)?.to_string().contains(VALUE), "{path}");
        }
        let shown = host.api("/v1/apps/web/secrets?show_secrets=true");
        ensure!(shown.is_err(), "values are shown: {shown:?}");
        ensure!(!fs::read_to_string(host.server_log())?.contains(VALUE), "in the server's log");
        let mode = fs::metadata(key_file(host))?.permissions().mode();
        ensure!(mode & 0o7777 == 0o600, "the key has mode {mode:o}");
        Ok(())
    });
}

/// The programs have the value in their environment; the Machines' own init has not, nor has anybody else.
fn check_processes(host: &Host) -> Result<()> {
    let machines = host.machines("web")?;
    let inside: Vec<i32> = machines
        .iter()
        .flat_map(|machine| machine_processes(host, &machine.id))
        .filter(|process| process.args.first().is_none_or(|it| it != "/.perch/init"))
        .map(|process| process.pid)
        .collect();
    ensure!(!inside.is_empty(), "nothing runs");
    for process in host.processes() {
        let has = |file: &str| {
            let content = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
            content.windows(VALUE.len()).any(|part| part == VALUE.as_bytes())
        };
        ensure!(!has("cmdline"), "in the command line of {process:?}");
        let program = inside.contains(&process.pid);
        ensure!(has("environ") == program, "in whose environment? {process:?}");
    }
    Ok(())
}

#[test]
fn a_sleeping_machine_wakes_with_what_was_deployed_and_not_with_what_is_staged() {
    on_host(|host| {
        let address = app(host, SNIPPET)?;
        fly(host, &["secrets", "set", "KEY=one"])?.ok()?;
        wait_asleep(host, "web")?;
        let staged = fly(host, &["secrets", "set", "KEY=two", "OTHER=x", "--stage"])?.ok()?;
        ensure!(staged.starts_with("Secrets have been staged"), "{staged}");
        check_shown(host, &address, "one", "")?;
        let list = fly(host, &["secrets", "list"])?.ok()?;
        ensure!(
            list.contains("* KEY") && list.contains("There are 2 secrets not deployed"),
            "{list}"
        );
        wait_asleep(host, "web")?;
        fly(host, &["secrets", "deploy"])?.ok()?;
        ensure!(host.states("web")?.iter().all(|state| state == "stopped"), "a sleeper was woken");
        let list = fly(host, &["secrets", "list"])?.ok()?;
        ensure!(!list.contains("Staged") && list.contains("Deployed"), "{list}");
        check_shown(host, &address, "two", "x")?;
        fly(host, &["secrets", "unset", "OTHER"])?.ok()?;
        check_shown(host, &address, "two", "")
    });
}

#[test]
fn a_server_that_dies_between_set_and_deploy_forgets_nothing() {
    on_host(|host| {
        let address = app(host, AWAKE)?;
        fly(host, &["secrets", "set", "KEY=one"])?.ok()?;
        fly(host, &["secrets", "set", "KEY=two", "--stage"])?.ok()?;
        host.kill_server()?;
        host.start_server()?;
        let list = fly(host, &["secrets", "list"])?.ok()?;
        ensure!(list.contains("* KEY"), "{list}");
        let id = host.machines("web")?[0].id.clone();
        host.fly(&["machine", "stop", &id, "-a", "web", "-w", "30s"])?.ok()?;
        host.fly(&["machine", "start", &id, "-a", "web"])?.ok()?;
        fly(host, &["secrets", "deploy"])?.ok()?;
        check_shown(host, &address, "two", "")
    });
}

#[test]
fn two_sets_at_once_both_stay() {
    on_host(|host| {
        app(host, AWAKE)?;
        std::thread::scope(|scope| -> Result<()> {
            let host = &*host;
            let set =
                move |name: String| fly(host, &["secrets", "set", &format!("{name}=x"), "--stage"]);
            let all: Vec<_> = (0..8).map(|at| scope.spawn(move || set(format!("N{at}")))).collect();
            for one in all {
                one.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??.ok()?;
            }
            Ok(())
        })?;
        let listed = host.api("/v1/apps/web/secrets")?;
        let count = listed["secrets"].as_array().map_or(0, Vec::len);
        ensure!(count == 8, "{listed}");
        ensure!(!reading(host, &["secrets", "import"], "A=b\nnonsense\n")?, "a bad line was taken");
        ensure!(!host.api("/v1/apps/web/secrets")?.to_string().contains("\"A\""), "half of it was");
        Ok(())
    });
}

#[test]
fn without_the_right_key_the_server_starts_and_says_which_file_to_put_back() {
    on_host(|host| {
        let address = app(host, AWAKE)?;
        fly(host, &["secrets", "set", "KEY=one"])?.ok()?;
        let file = key_file(host);
        let name = file.to_string_lossy().into_owned();
        let key = fs::read(&file)?;
        fs::remove_file(&file)?;
        host.stop_server()?;
        host.start_server()?;
        check_shown(host, &address, "one", "")?;
        let id = host.machines("web")?[0].id.clone();
        host.fly(&["machine", "stop", &id, "-a", "web", "-w", "30s"])?.ok()?;
        let start = ["machine", "start", &id, "-a", "web"];
        host.fly(&start)?.says(&[&name, "is missing", "backup"])?;
        fly(host, &["secrets", "set", "OTHER=x"])?.says(&[&name, "is missing"])?;
        ensure!(!file.exists(), "a new key was made while the old one is missed");
        fs::write(&file, "7".repeat(64))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        host.fly(&start)?.says(&[&name, "is not the key", "KEY"])?;
        fly(host, &["secrets", "deploy"])?.says(&[&name, "is not the key"])?;
        fs::write(&file, key)?;
        host.fly(&start)?.ok()?;
        fly(host, &["secrets", "deploy"])?.ok()?;
        check_shown(host, &address, "one", "")?;
        // An app without secrets needs no key.
        fs::remove_file(&file)?;
        let image = shell_image(host, "shows", SHOWS)?;
        let other = private_app_of(host, "other", &image, AWAKE)?;
        check_shown(host, &other, "", "")
    });
}
