//! What a Machine finds inside: files of its config, and the API for itself.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entry, Host, Image, Network, Output, wait_until};

use crate::exec::SERVES;
use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, SOON, check_answer, on, on_host, one_machine_of, private_app,
    private_app_of, shell_image, wait_asleep,
};

/// Nothing else on the host has these bytes.
const VALUE: &str = "hunter2-of-a-secret-file";

/// Runs a script in the only Machine.
fn inside(host: &Host, script: &str) -> Result<Output> {
    let id = host.machines("web")?.first().context("no Machine")?.id.clone();
    host.fly(&["machine", "exec", &id, &format!("sh -c '{script}'"), "-a", "web"])
}

fn check(host: &Host, script: &str, says: &str) -> Result<()> {
    let ran = inside(host, script)?;
    ensure!(ran.status.success() && ran.stdout == says, "{script}: {ran}");
    Ok(())
}

/// Whether some file below the test's directory has the bytes; sparse and special ones are passed over.
fn is_on_disk(host: &Host, bytes: &str) -> Result<bool> {
    let found = host.run("grep", &["-rlsF", bytes, &host.data_dir().to_string_lossy()])?;
    Ok(!found.stdout.is_empty())
}

#[test]
fn files_are_there_before_the_program_and_secret_ones_are_on_no_disk() {
    on_host(|host| {
        let image = shell_image(host, "serves", SERVES)?;
        let files = "\
[[files]]
  guest_path = '/etc/app/plain.conf'
  raw_value = 'aGVsbG8K'
[[files]]
  guest_path = '/etc/app/local'
  local_path = 'local.txt'
[[files]]
  guest_path = '/etc/app/secret'
  secret_name = 'KEY'
";
        let sections = format!("{files}\n{AWAKE}");
        let dir = host.app_dir("web", &crate::stage::fly_toml("web", &image, &sections))?;
        host.fly(&["apps", "create", "web"])?.ok()?;
        // In base64, as a secret for a file is.
        let value = "aHVudGVyMi1vZi1hLXNlY3JldC1maWxl";
        host.fly(&["secrets", "set", "--stage", &format!("KEY={value}"), "-a", "web"])?.ok()?;
        let refused = host.fly_in(&dir, &["deploy", "--ha=false"])?.fails()?;
        ensure!(refused.contains("could not read file local.txt"), "{refused}");
        std::fs::write(dir.join("local.txt"), "of mine")?;
        host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
        check(
            host,
            "cat /etc/app/plain.conf /etc/app/local /etc/app/secret",
            &format!("hello\nof mine{VALUE}"),
        )?;
        check(
            host,
            "stat -c \"%a %u %n\" /etc/app/*",
            "644 0 /etc/app/local\n644 0 /etc/app/plain.conf\n644 0 /etc/app/secret\n",
        )?;
        ensure!(!is_on_disk(host, VALUE)?, "the secret is on the disk");
        ensure!(is_on_disk(host, "of mine")?, "nothing would be found");
        // As often as it starts, also under a new server.
        host.kill_server()?;
        host.start_server()?;
        check(host, "cat /etc/app/secret; echo changed >/etc/app/plain.conf", VALUE)?;
        let id = host.machines("web")?[0].id.clone();
        host.fly(&["machine", "stop", &id, "-w", "30s"])?.ok()?;
        host.fly(&["machine", "start", &id])?.ok()?;
        host.wait_all("web", "started", SOON)?;
        check(host, "cat /etc/app/plain.conf /etc/app/secret", &format!("hello\n{VALUE}"))
    });
}

#[test]
fn files_that_cannot_be_are_refused_and_none_leaves_the_root_or_replaces_init() {
    on_host(|host| {
        let image = shell_image(host, "serves", SERVES)?;
        private_app_of(host, "web", &image, AWAKE)?;
        let image = host.api("/v1/apps/web/machines")?[0]["config"]["image"].clone();
        let create = |file: &str| {
            let body = format!(
                r#"{{"config": {{"image": {image}, "files": [{file}], "restart": {{"policy": "no"}}}}}}"#
            );
            host.request("POST", "/v1/apps/web/machines", "application/json", body.as_bytes())
        };
        for file in [
            r#"{"guest_path": "x", "raw_value": ""}"#,
            r#"{"guest_path": "/../x", "raw_value": ""}"#,
            r#"{"guest_path": "/x"}"#,
            r#"{"guest_path": "/x", "raw_value": "?"}"#,
            r#"{"guest_path": "/x", "raw_value": "", "mode": 65536}"#,
            r#"{"guest_path": "/x", "raw_value": 1}"#,
        ] {
            let answer = create(file)?;
            ensure!(answer.status == 422, "{file}: {answer:?}");
        }
        for (file, why) in [
            (r#"{"guest_path": "/.perch/init", "raw_value": ""}"#, "belongs to the platform"),
            (r#"{"guest_path": "/bin", "raw_value": ""}"#, "the file /bin"),
            (r#"{"guest_path": "/bin/busybox/x", "raw_value": ""}"#, "the file /bin/busybox/x"),
            (r#"{"guest_path": "/x", "secret_name": "NONE"}"#, "not set"),
        ] {
            let made = create(file)?;
            ensure!(made.status == 200, "{file}: {made:?}");
            let id = serde_json::from_str::<serde_json::Value>(&made.body)?["id"].clone();
            let path = format!("/v1/apps/web/machines/{}", id.as_str().context("an id")?);
            wait_until("its failure to say why", SOON, || {
                Ok(host.api(&path)?["events"].to_string().contains(why).then_some(()))
            })
            .with_context(|| format!("{file}: {:?}", host.api(&path)))?;
            let removed =
                host.request("DELETE", &format!("{path}?force=true"), "application/json", b"")?;
            ensure!(removed.status == 200, "{removed:?}");
        }
        Ok(())
    });
}

/// Deploys one Machine that has `curl` and a shell, and a link where the platform's directory is to be.
fn curious(host: &Host) -> Result<String> {
    curious_with(host, AWAKE)
}

fn curious_with(host: &Host, sections: &str) -> Result<String> {
    let busybox = std::fs::read("/bin/busybox")?;
    let image = Image::program("curl", "curl")?
        .entry("bin", &Entry::Dir)
        .entry("tmp", &Entry::Dir)
        .entry("bin/busybox", &Entry::File(busybox, 0o755))
        .entry("bin/sh", &Entry::Symlink("busybox".to_owned()))
        .entry(".fly", &Entry::Symlink("/etc".to_owned()))
        .entrypoint(&["/bin/sh", "-c", SERVES])
        .write(&host.dir().join("curious-image"))?;
    one_machine_of(host, "web", &image, sections)?;
    Ok(host.machines("web")?[0].id.clone())
}

/// Status and body of a call from inside.
fn ask(host: &Host, method: &str, path: &str, body: &str) -> Result<(String, String)> {
    let id = host.machines("web")?[0].id.clone();
    let command = format!(
        "/curl -sS -m 20 --unix-socket /.fly/api -X {method} -w '\\n%{{http_code}}' -d '{body}' http://flaps{path}"
    );
    let ran = host.fly(&["machine", "exec", &id, &command, "-a", "web"])?.ok()?;
    let (body, status) = ran.rsplit_once('\n').context("a status")?;
    Ok((status.to_owned(), body.to_owned()))
}

#[test]
fn a_machine_reads_itself_and_keeps_its_metadata_and_nothing_else() {
    on_host(|host| {
        let id = curious(host)?;
        let one = format!("/v1/apps/web/machines/{id}");
        for round in ["first", "under a new server"] {
            let (status, body) = ask(host, "GET", &one, "")?;
            ensure!(status == "200" && body.contains(&id), "{round}: {status} {body}");
            let set = ask(host, "POST", &format!("{one}/metadata/note"), r#"{"value": "mine"}"#)?;
            ensure!(set.0 == "200", "{set:?}");
            let (_, body) = ask(host, "GET", &format!("{one}/metadata"), "")?;
            ensure!(body.contains(r#""note":"mine""#), "{body}");
            let gone = ask(host, "DELETE", &format!("{one}/metadata/note"), "")?;
            let (_, left) = ask(host, "GET", &format!("{one}/metadata"), "")?;
            ensure!(gone.0 == "200" && !left.contains("note"), "{gone:?} {left}");
            for (method, path) in [
                ("GET", "/v1/apps".to_owned()),
                ("GET", "/v1/apps/web".to_owned()),
                ("GET", "/v1/apps/web/machines".to_owned()),
                ("GET", "/v1/apps/other/machines/x".to_owned()),
                ("GET", "/v1/apps/web/secrets".to_owned()),
                ("GET", "/perch/v1/info".to_owned()),
                ("DELETE", one.clone()),
                ("POST", one.clone()),
                ("POST", format!("{one}/exec")),
            ] {
                let answer = ask(host, method, &path, "{}")?;
                ensure!(answer.0 == "403", "{method} {path}: {answer:?}");
            }
            host.kill_server()?;
            host.start_server()?;
        }
        let kept = inside(host, "busybox rm -f /.fly/*; busybox touch /.fly/x; busybox ls /.fly")?;
        ensure!(kept.stdout.ends_with("api\nfly-src.pub\n"), "{kept}");
        ensure!(!kept.stdout.contains("x\n"), "{kept}");
        Ok(())
    });
}

#[test]
fn a_machine_suspends_restarts_and_stops_itself_and_is_named_in_the_events() {
    on_host(|host| {
        let id = curious(host)?;
        let script = format!(
            "/curl -sS -m 60 --unix-socket /.fly/api -X POST http://flaps/v1/apps/web/machines/{id}/suspend >/tmp/said; echo >>/tmp/said"
        );
        // In the background, since the frozen Machine answers nobody.
        let ran =
            host.fly(&["machine", "exec", &id, &format!("sh -c '({script}) >/dev/null 2>&1 &'")])?;
        ensure!(ran.status.success(), "{ran}");
        host.wait_all("web", "suspended", SOON)?;
        host.fly(&["machine", "start", &id])?.ok()?;
        // AS-92: the answer is there once it goes on.
        wait_until("the answer", SOON, || {
            let said = inside(host, "busybox cat /tmp/said")?;
            Ok(said.stdout.contains("true").then_some(()))
        })?;
        let events = host.api(&format!("/v1/apps/web/machines/{id}"))?["events"].to_string();
        ensure!(events.contains(r#""source":"machine""#) && events.contains(&id), "{events}");
        let before = host.machines("web")?[0].events("launch");
        let restart = format!("/v1/apps/web/machines/{id}/restart");
        ask(host, "POST", &restart, "").ok();
        wait_until("its restart", SOON, || {
            let machine = &host.machines("web")?[0];
            Ok((before < machine.events("launch") && machine.state == "started").then_some(()))
        })?;
        ask(host, "POST", &format!("/v1/apps/web/machines/{id}/stop"), "").ok();
        host.wait_all("web", "stopped", SOON)
    });
}

/// Wakes the app, and has its Machine say that it is busy while it is awake.
fn say_busy(host: &Host, address: &str, id: &str, body: &str) -> Result<()> {
    wait_until("a word of being busy", SOON, || {
        check_answer(&host.get(address, 80, "/")?, "")?;
        let said = ask(host, "PUT", &format!("/v1/apps/web/machines/{id}/busy"), body);
        // It may have gone to sleep in between.
        Ok(said.ok().filter(|(status, _)| status == "200").map(drop))
    })
}

/// A Machine that has just said that it is busy for long, and an app that says nothing.
struct Busy {
    id: String,
    address: String,
    other: String,
}

/// Runs a test on a host that puts Machines to sleep soon, while one of them is busy.
fn while_busy(test: impl Fn(&mut Host, &Busy) -> Result<()>) {
    let quick = || Host::start_with(Network::Open, QUICK_SLEEP);
    on(quick, |host| {
        let id = curious_with(host, SNIPPET)?;
        let (address, other) = (host.flycast("web")?, private_app(host, "other", SNIPPET)?);
        say_busy(host, &address, &id, r#"{"ttl": 3000, "reason": "a long report"}"#)?;
        test(host, &Busy { id, address, other })
    });
}

/// The other app wakes and goes to sleep; the busy Machine is awake all the time.
fn only_the_other_sleeps(host: &Host, busy: &Busy) -> Result<()> {
    check_answer(&host.get(&busy.other, 80, "/")?, "")?;
    wait_asleep(host, "other")?;
    let machine = &host.machines("web")?[0];
    ensure!(machine.state == "started", "{machine:?}");
    Ok(())
}

#[test]
fn a_machine_that_says_that_it_is_busy_is_kept_awake_until_then() {
    while_busy(|host, busy| {
        only_the_other_sleeps(host, busy)?;
        let said = host.fly(&["machine", "status", &busy.id, "-a", "web"])?.ok()?;
        ensure!(said.contains("a long report"), "{said}");
        let one = format!("/v1/apps/web/machines/{}/busy", busy.id);
        for wrong in [r#"{"ttl": 0}"#, r#"{"ttl": 3601}"#, r#"{"ttl": "soon"}"#] {
            let answer = ask(host, "PUT", &one, wrong)?;
            ensure!(answer.0 == "422" || answer.0 == "400", "{wrong}: {answer:?}");
        }
        ensure!(ask(host, "DELETE", &one, "")?.0 == "200");
        wait_asleep(host, "web")?;
        let machine = &host.machines("web")?[0];
        ensure!(machine.events("busy") == 1, "{machine:?}");
        // By itself, when its time is over.
        say_busy(host, &busy.address, &busy.id, r#"{"ttl": 2}"#)?;
        wait_asleep(host, "web")
    });
}

#[test]
fn a_later_server_knows_who_is_busy_and_the_next_run_is_not() {
    while_busy(|host, busy| {
        host.kill_server()?;
        host.start_server()?;
        only_the_other_sleeps(host, busy)?;
        host.fly(&["machine", "stop", &busy.id, "-a", "web"])?.ok()?;
        wait_asleep(host, "web")?;
        check_answer(&host.get(&busy.address, 80, "/")?, "")?;
        wait_asleep(host, "web")
    });
}
